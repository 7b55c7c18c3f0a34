//! Pages that explain themselves: one HTML file with all it shows, which needs no network.

use serde_json::{Value, json};

const TEMPLATE: &str = include_str!("../assets/report.html");
const STYLE: &str = include_str!("../assets/report.css");
const SCRIPT: &str = include_str!("../assets/report.js");

/// The page of some data: `runs`, `results`, `published` and `traces`, each of which may be missing. `maker` is the command that
/// writes it, by which it is known again.
pub fn html(title: &str, maker: &str, mut data: Value) -> String {
    for section in ["runs", "results", "published", "traces"] {
        if data[section].is_null() {
            data[section] = json!([]);
        }
    }
    data["title"] = json!(title);
    data["made"] = json!(jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string());
    data["version"] = json!(env!("CARGO_PKG_VERSION"));
    // No text in the data may end the element that it stands in.
    let text = data.to_string().replace('<', "\\u003c");
    // The data last: it may hold any text.
    let page = TEMPLATE.replacen("__MAKER__", maker, 1).replacen("__STYLE__", STYLE, 1).replacen(
        "__SCRIPT__",
        SCRIPT,
        1,
    );
    page.replacen("__DATA__", &text, 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_text_leaves_its_element() {
        let text = "</script><script>alert(1)</script> __DATA__";
        let page = html(text, "report", json!({"traces": [{"name": text}]}));
        assert!(!page.contains("<script>alert"));
        let from = page.find("id=\"data\">").unwrap() + "id=\"data\">".len();
        let json = &page[from..from + page[from..].find("</script>").unwrap()];
        let data: Value = serde_json::from_str(json).unwrap();
        assert_eq!((&data["title"], &data["traces"][0]["name"]), (&json!(text), &json!(text)));
        assert_eq!(data["runs"], json!([]));
    }
}
