//! What `configs/corpus/NAME.toml` says of a corpus.

use std::collections::BTreeMap;

use maskdiff_base::error::{Error, Result};
use maskdiff_base::text::{nearest, read_toml};
use maskdiff_config::listed::Detokenizer;
use maskdiff_config::{shelf_file, shelf_names};
use serde::Deserialize;

/// A file of `configs/corpus/`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spec {
    /// What it is, in a line.
    pub about: String,
    /// Its licence.
    pub licence: String,
    /// Its repository on the hub.
    pub repo: Option<String>,
    /// Branch, tag or commit.
    pub revision: Option<String>,
    /// The column of the text.
    #[serde(default = "text")]
    pub column: String,
    /// What is done to its text first.
    pub detokenizer: Option<Detokenizer>,
    /// `parquet`, or `text8`.
    #[serde(default = "parquet")]
    pub format: String,
    /// `text8`: where it is fetched from.
    pub url: Option<String>,
    /// Training samples are cut from blocks of twice the length.
    #[serde(default)]
    pub crop: bool,
    /// The part that is validated on.
    #[serde(default = "validation")]
    pub valid: String,
    /// Its parts.
    pub split: BTreeMap<String, PartSpec>,
}

/// A part of a corpus.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PartSpec {
    /// Patterns of its files in the repository.
    #[serde(default)]
    pub files: Vec<String>,
    /// Which rows, as in Python.
    pub slice: Option<String>,
    /// How many rows there should be.
    pub rows: Option<u64>,
}

fn text() -> String {
    "text".into()
}

fn parquet() -> String {
    "parquet".into()
}

fn validation() -> String {
    "validation".into()
}

impl Spec {
    /// The corpus of a name.
    pub fn named(name: &str) -> Result<Self> {
        let Some((file, text)) = shelf_file("corpus", name)? else {
            let known = shelf_names("corpus");
            let own = ["stories", "text", "jsonl", "parquet", "hf", "sft"].map(String::from);
            let all: Vec<&str> = known.iter().chain(&own).map(String::as_str).collect();
            let hint = match nearest(name, &all) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("corpora: {}", all.join(", ")),
            };
            return Err(Error::config(format!("there is no corpus `{name}`"), hint));
        };
        read_toml(&text, &format!("`{file}`"), "see the shipped files of configs/corpus/")
    }
}
