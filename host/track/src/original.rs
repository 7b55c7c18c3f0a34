//! The original's names of metrics, beside ours, for scripts that look for them.

use serde_json::{Map, Value, json};

/// Adds its names to a row: the nats of a token, their bits, and the perplexity.
pub fn name(row: &mut Map<String, Value>) {
    let number = |row: &Map<String, Value>, names: &[&str]| {
        names.iter().find_map(|name| row.get(*name)?.as_f64())
    };
    for (split, ours) in
        [("val", ["val/nelbo", "val/loss"]), ("train", ["train/nelbo", "train/loss"])]
    {
        let Some(nats) = number(row, &ours) else { continue };
        let perplexity = row.get(&format!("{split}/ppl")).and_then(Value::as_f64);
        row.insert(format!("{split}/nll"), json!(nats));
        row.insert(format!("{split}/bpd"), json!(nats / std::f64::consts::LN_2));
        row.insert(format!("{split}/ppl"), json!(perplexity.unwrap_or(nats.exp())));
        if split == "train" {
            row.insert("trainer/loss".into(), json!(nats));
        }
    }
    if let Some(rate) = number(row, &["train/lr"]) {
        row.insert("lr-AdamW".into(), json!(rate));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_names_stand_beside_ours() {
        let mut row = Map::from_iter([
            ("val/nelbo".to_string(), json!(2.0)),
            ("val/ppl".to_string(), json!(7.5)),
            ("train/loss".to_string(), json!(1.0)),
            ("train/lr".to_string(), json!(1e-3)),
        ]);
        name(&mut row);
        let all = Value::Object(row);
        assert_eq!((&all["val/nll"], &all["val/ppl"]), (&json!(2.0), &json!(7.5)));
        assert_eq!(all["val/bpd"], json!(2.0 / std::f64::consts::LN_2));
        assert_eq!((&all["trainer/loss"], &all["train/nll"]), (&json!(1.0), &json!(1.0)));
        assert_eq!((&all["lr-AdamW"], &all["val/nelbo"]), (&json!(1e-3), &json!(2.0)));
    }
}
