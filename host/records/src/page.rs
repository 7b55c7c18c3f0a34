//! Pages that explain themselves: one HTML file with all it shows, which needs no network.

use serde_json::{Value, json};

const TEMPLATE: &str = include_str!("../assets/report.html");
/// How pages look.
pub const STYLE: &str = include_str!("../assets/report.css");

/// What makes a page of data, in the order in which it is read. A page of one file holds all of it, and a server gives it file by file.
pub const SCRIPTS: [(&str, &str); 6] = [
    ("nodes.js", include_str!("../assets/nodes.js")),
    ("curves.js", include_str!("../assets/curves.js")),
    ("charts.js", include_str!("../assets/charts.js")),
    ("texts.js", include_str!("../assets/texts.js")),
    ("tables.js", include_str!("../assets/tables.js")),
    ("report.js", include_str!("../assets/report.js")),
];

/// Data with all sections that a page knows.
pub fn data(title: &str, mut data: Value) -> Value {
    for section in ["runs", "results", "published", "traces"] {
        if data[section].is_null() {
            data[section] = json!([]);
        }
    }
    data["title"] = json!(title);
    data["made"] = json!(jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string());
    data["version"] = json!(env!("CARGO_PKG_VERSION"));
    data
}

/// The page of some data: `runs`, `results`, `published` and `traces`, each of which may be missing. `maker` is the command that
/// writes it, by which it is known again.
pub fn html(title: &str, maker: &str, found: Value) -> String {
    let data = data(title, found);
    let script: Vec<&str> = SCRIPTS.iter().map(|(_, text)| *text).collect();
    let script =
        script.join("\n") + "\nshow(JSON.parse(document.getElementById('data').textContent));\n";
    // No text in the data may end the element that it stands in.
    let text = data.to_string().replace('<', "\\u003c");
    // The data last: it may hold any text.
    let page = TEMPLATE.replacen("__MAKER__", maker, 1).replacen("__STYLE__", STYLE, 1).replacen(
        "__SCRIPT__",
        &script,
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
