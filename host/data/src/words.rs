//! Words about data that the chosen source has no use for.

use maskdiff_base::error::Result;
use maskdiff_config::listed::Packing;
use maskdiff_config::{Config, groups};

use super::corpora::{FILES, OWN, Spec};
use super::sft;

/// Keys that mean nothing to conversations: a row is a conversation, and the files are yours.
const WITHOUT_ROWS: [&str; 18] = [
    "label_column",
    "valid",
    "valid_split",
    "wrap",
    "insert_eos",
    "insert_special",
    "packing",
    "reference_num_proc",
    "streaming",
    "stream_window",
    "random_offsets",
    "documents",
    "column",
    "detokenizer",
    "repo",
    "revision",
    "config",
    "split",
];

/// What is trained and validated on.
struct Sources<'a> {
    data: &'a groups::Data,
    train: &'a str,
    valid: &'a str,
}

/// Refuses a key of `data` that was set by hand and means nothing to what is trained and validated on. Files and checkpoints may say
/// more than is needed.
pub fn check_words(config: &Config) -> Result<()> {
    let data = &config.data;
    if !data.sets.is_empty() {
        return Ok(());
    }
    let (now, usual) = (serde_json::to_value(data), serde_json::to_value(groups::Data::default()));
    let (now, usual) = (now.unwrap_or_default(), usual.unwrap_or_default());
    let sources =
        Sources { data, train: &data.train, valid: data.valid.as_ref().unwrap_or(&data.train) };
    for field in groups::fields("data") {
        let (name, key) = (field.name, format!("data.{}", field.name));
        // What changes nothing is no mistake.
        if now[name] == usual[name] || !config.layers.is_by_hand(&key) || sources.use_key(name) {
            continue;
        }
        let source = match sources.train == sources.valid {
            true => format!("`{}`", sources.train),
            false => format!("`{}` and `{}`", sources.train, sources.valid),
        };
        let message = format!("`{key}` means nothing to the data {source}");
        return Err(config.layers.error(&key, &message, &sources.remedy(name)));
    }
    Ok(())
}

impl Sources<'_> {
    fn either(&self, kinds: &[&str]) -> bool {
        kinds.contains(&self.train) || kinds.contains(&self.valid)
    }

    /// Whether a key of `data` says something of these.
    fn use_key(&self, key: &str) -> bool {
        if self.train == sft::NAME {
            return !WITHOUT_ROWS.contains(&key);
        }
        let stories = self.train == "stories";
        let files = |name: &str| FILES.contains(&name);
        let text8 = |name: &str| {
            !OWN.contains(&name) && Spec::named(name).is_ok_and(|spec| spec.format == "text8")
        };
        let of_hub = |name: &str| !files(name) && name != "stories" && !text8(name);
        let data = self.data;
        match key {
            "path" => {
                files(self.train)
                    || text8(self.train)
                    || files(self.valid) && data.valid_path.is_none()
            }
            "valid_path" => files(self.valid) || text8(self.valid) && !text8(self.train),
            "chat_template" | "answer_filling" | "group_by_length" | "pack" => false,
            "documents" => self.either(&["text"]),
            "column" => self.either(&["jsonl", "parquet", "hf"]),
            "label_column" => stories || !self.either(&["text"]) && !text8(self.train),
            "detokenizer" => self.either(&OWN),
            "repo" | "config" => self.either(&["hf"]),
            "split" => self.train == "hf",
            "revision" => of_hub(self.train) || of_hub(self.valid),
            "valid_split" => !files(self.valid) && !stories,
            // Without `data.streaming` it waits for it.
            "stream_window" => !stories,
            "reference_num_proc" => data.packing == Packing::Reference && !stories,
            "insert_eos" | "insert_special" => data.wrap && !stories,
            "wrap"
            | "packing"
            | "streaming"
            | "on_invalid"
            | "random_offsets"
            | "valid_fraction"
            | "tokenizer_name_or_path" => !stories,
            // Sizes and places, which a script sets for whatever data it is given.
            _ => true,
        }
    }

    /// What a key would need.
    fn remedy(&self, key: &str) -> String {
        let needed = match key {
            "path" | "valid_path" => "`data=text` (or jsonl, parquet) reads files of yours",
            "chat_template" | "answer_filling" | "group_by_length" | "pack" => {
                "`data=sft` has conversations"
            }
            "documents" => "`data=text` has documents that are files or lines",
            "label_column" => {
                "`data=jsonl`, `data=parquet`, `data=hf`, corpora of the hub and `data=stories` have labels"
            }
            "column" => "`data=jsonl`, `data=parquet` and `data=hf` have columns",
            "repo" | "config" | "split" => "`data=hf` reads a repository of the hub",
            "reference_num_proc" if self.train != "stories" => {
                "it goes with `data.packing=reference`"
            }
            "insert_eos" | "insert_special" if self.train != "stories" => {
                "it goes with `data.wrap=true`"
            }
            _ => "choose other data, as in `data=text data.path=FILE`",
        };
        format!("leave it out; {needed}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use maskdiff_config::{Request, load};

    fn said(words: &[&str]) -> String {
        let overrides = words.iter().map(ToString::to_string).collect();
        let config = load(&Request { overrides, ..Request::default() }).unwrap();
        check_words(&config).err().map_or(String::new(), |error| error.in_one_line())
    }

    #[test]
    fn a_word_that_the_data_have_no_use_for_is_refused() {
        for words in [
            &["data.column=body"][..],
            &["data.path=x"],
            &["data.valid_path=x"],
            &["data.repo=a/b"],
            &["data.streaming=true"],
            &["data.tokenizer_name_or_path=gpt2"],
            &["data=text", "data.path=x", "data.column=body"],
            &["data=text", "data.path=x", "data.repo=a/b"],
            &["data=jsonl", "data.path=x", "data.documents=line"],
            &["data=stories", "data.stream_window=3"],
            &["data=text", "data.path=x", "data.revision=v1"],
            &["data=hf", "data.repo=a/b", "data.path=x"],
            &["data=wikitext2", "data.path=x"],
            &["data=wikitext2", "data.column=x"],
            &["data=text8", "data.valid_path=x"],
            &["data=sft", "data.path=x", "data.column=x"],
            &["data=sft", "data.path=x", "data.streaming=true"],
            &["data=text", "data.path=x", "data.chat_template=x"],
        ] {
            let said = said(words);
            let key = words.last().and_then(|word| word.split('=').next()).unwrap();
            assert!(
                said.contains(&format!("`{key}` means nothing to the data")),
                "{words:?}: {said}"
            );
            assert!(said.contains("leave it out"), "{said}");
        }
    }

    #[test]
    fn what_is_used_or_changes_nothing_is_taken() {
        for words in [
            &["data.column=text", "data.wrap=true", "data.tokenizer_name_or_path=char"][..],
            &["data=text", "data.path=x", "data.valid_path=y", "data.documents=line"],
            &["data=jsonl", "data.path=x", "data.column=body", "data.detokenizer=ptb"],
            &["data=hf", "data.repo=a/b", "data.split=all", "data.column=x", "data.revision=v"],
            &["data=text8", "data.path=x"],
            &["data=wikitext2", "data.revision=v", "data.valid_split=test", "data.streaming=true"],
            &["data=wikitext2", "data.valid=text", "data.valid_path=x"],
            &["data=wikitext2", "data.valid=text", "data.path=x"],
            &["data=zeroshot", "data.cache_dir=x"],
            &["data=sft", "data.path=x", "data.valid_path=y", "data.answer_filling=false"],
        ] {
            assert_eq!(said(words), "", "{words:?}");
        }
    }
}
