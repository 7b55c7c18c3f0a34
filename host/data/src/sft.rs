//! Conversations and pairs to fine-tune on: JSON lines, of which the last answer of each is what a model learns to write.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use maskdiff_base::error::{Error, Result};
use maskdiff_base::files::look;
use maskdiff_base::text::{counted, hex};
use maskdiff_config::Config;
use maskdiff_config::listed::OnInvalid;
use maskdiff_config::values::Paths;
use sha2::{Digest, Sha256};

use super::chat::{ASSISTANT, Message, Template};
use super::corpora::LazyHub;
use super::grouped::Grouped;
use super::listing::{self, Endings, Listing};
use super::loader::Loader;
use super::packed::packed;
use super::read::json;
use super::rows::Rows;
use super::source::{Blocks, Source};
use super::tokenizer::Tokenizer;
use super::{Corpus, Observer, Reads, prepare, read_text};

/// The name of such data.
pub(crate) const NAME: &str = "sft";

/// Its files.
pub(super) const ENDINGS: Endings = Endings { of: &["jsonl", "json"], packed: true };

/// A conversation as tokens: the prompt, and the answer behind it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Example {
    /// All tokens.
    pub ids: Vec<u32>,
    /// How many of them are the prompt.
    pub prompt: usize,
}

/// What a line holds.
enum Line {
    Messages(Vec<Message>),
    Pair { prompt: String, answer: String },
}

impl Line {
    /// Of a line's JSON; an error says what is wrong with it. What stands under keys that are not read may be anything. With `mend`,
    /// what stands for no character becomes U+FFFD.
    fn new(line: &str, mend: bool) -> std::result::Result<Self, String> {
        let members = members(line)?;
        let text = |key: &str| text(line, &members, key, mend);
        let list = json::get(&members, "messages").map(|place| &line[place.clone()]);
        let this = if let Some(list) = list.filter(|value| value.starts_with('[')) {
            let messages = messages(list, mend)?;
            match messages.last() {
                Some(last) if last.role == ASSISTANT && messages.len() > 1 => {
                    Self::Messages(messages)
                }
                _ => {
                    return Err(format!(
                        "its `messages` do not end with an answer of `{ASSISTANT}`"
                    ));
                }
            }
        } else if let (Some(asked), Some(answer)) = (text("instruction")?, text("output")?) {
            let more = text("input")?.filter(|more| !more.is_empty());
            let asked = more.map_or(asked.clone(), |more| format!("{asked}\n\n{more}"));
            Self::Messages(vec![Message::new("user", &asked), Message::new(ASSISTANT, &answer)])
        } else if let (Some(prompt), Some(answer)) =
            (text("prompt")?, text("response")?.or(text("completion")?))
        {
            Self::Pair { prompt, answer }
        } else {
            return Err(format!(
                "it has neither `messages`, nor `instruction` and `output`, nor `prompt` and `response`; keys there: {}",
                json::keys_of(line)
            ));
        };
        // Of a conversation an empty answer still says where a turn ends.
        match &this {
            Self::Pair { answer, .. } if answer.is_empty() => Err("its answer is empty".into()),
            _ => Ok(this),
        }
    }
}

fn members(line: &str) -> std::result::Result<json::Members, String> {
    json::members(line.as_bytes()).map_err(|why| format!("it is no JSON: {why}"))
}

/// The text under a key, if it is one.
fn text(
    line: &str,
    members: &json::Members,
    key: &str,
    mend: bool,
) -> std::result::Result<Option<String>, String> {
    let value = json::get(members, key).map(|place| &line[place.clone()]);
    let inside = value.and_then(|value| value.strip_prefix('"')?.strip_suffix('"'));
    match inside.map(json::unescaped) {
        Some((_, Some(fault))) if !mend => Err(format!("`{key}` is not valid: {fault}")),
        Some((text, _)) => Ok(Some(text)),
        None => Ok(None),
    }
}

/// The turns of a conversation.
fn messages(list: &str, mend: bool) -> std::result::Result<Vec<Message>, String> {
    let lacking = || "each of its `messages` needs a `role` and a `content`".to_string();
    let places = json::items(list.as_bytes()).map_err(|why| format!("its `messages`: {why}"))?;
    let message = |place: std::ops::Range<usize>| {
        let message = &list[place];
        let members = members(message).map_err(|_| lacking())?;
        let part = |key: &str| text(message, &members, key, mend)?.ok_or_else(lacking);
        Ok(Message { role: part("role")?, content: part("content")? })
    };
    places.into_iter().map(message).collect()
}

/// The tokens of a line, by a template where there is one. Pairs without a template are one text behind the other, with an EOS.
fn example(
    line: Line,
    template: Option<&Template>,
    tokenizer: &dyn Tokenizer,
) -> std::result::Result<Example, String> {
    let said = |e: Error| e.to_string();
    let messages = match (line, template) {
        (Line::Pair { prompt, answer }, None) => {
            let mut ids = tokenizer.encode(&prompt).map_err(said)?;
            let prompt = ids.len();
            ids.extend(tokenizer.encode_behind(&answer).map_err(said)?);
            ids.extend(tokenizer.eos());
            return Ok(Example { ids, prompt });
        }
        (Line::Pair { prompt, answer }, Some(_)) => {
            vec![Message::new("user", &prompt), Message::new(ASSISTANT, &answer)]
        }
        (Line::Messages(messages), _) => messages,
    };
    let Some(template) = template else {
        return Err("a conversation needs a chat template: `data.chat_template=FILE`".into());
    };
    let (last, before) = messages.split_last().ok_or("it has no messages")?;
    let prompt_text = template.render(before, true).map_err(said)?;
    let text = template.render(&messages, false).map_err(said)?;
    // Some templates write the header of the next answer whether it is asked for or not.
    let header = prompt_text.strip_prefix(&template.render(before, false).map_err(said)?[..]);
    let text = match (header, text.strip_prefix(&prompt_text[..])) {
        (Some(""), Some(answer)) => {
            let content = last.content.trim();
            let end = answer.find(content).map_or(0, |at| at + content.len());
            let next = answer[end..].find('>').map_or(answer.len(), |at| end + at + 1);
            format!("{prompt_text}{}", &answer[..next])
        }
        (_, Some(_)) => text,
        (_, None) => {
            return Err("the chat template writes a prompt with which the whole conversation does not begin, so it is not \
                        known where the answer starts: `data.chat_template=FILE` names another"
                .into());
        }
    };
    let ids = tokenizer.encode(&text).map_err(said)?;
    let prompt = tokenizer.encode(&prompt_text).map_err(said)?.len();
    if prompt >= ids.len() {
        return Err("its answer is empty".into());
    }
    Ok(Example { ids, prompt })
}

/// What is done with lines that cannot be used.
struct Left {
    on_invalid: OnInvalid,
    count: usize,
}

impl Left {
    fn out(&mut self, file: &Path, number: usize, why: &str) -> Result<()> {
        self.count += 1;
        let message = format!("`{}`, line {number}: {why}", file.display());
        match self.on_invalid {
            OnInvalid::Skip => {
                if self.count <= 3 {
                    tracing::warn!("{message}; the line is left out");
                }
                Ok(())
            }
            _ => Err(Error::data(
                message,
                "mend the line, or leave such lines out: `data.on_invalid=skip`; `replace` puts U+FFFD for characters that are none",
            )),
        }
    }
}

/// The template that the configuration names, or that lies beside the tokenizer or the weights.
pub fn template(config: &Config) -> Result<Option<Template>> {
    if let Some(path) = &config.data.chat_template {
        let found = Template::find(Path::new(path))?;
        return match found {
            Some(found) => Ok(Some(found)),
            None => Err(config.layers.error(
                "data.chat_template",
                &format!("`{path}` has no chat template"),
                "a file of Jinja, or a folder with `chat_template.jinja` or a `chat_template` in `tokenizer_config.json`",
            )),
        };
    }
    let places = [
        Some(&config.data.tokenizer_name_or_path),
        config.training.from.as_ref(),
        config.eval.checkpoint_path.as_ref(),
    ];
    for place in places.into_iter().flatten().map(Path::new) {
        if look::is_folder(place)?
            && let Some(found) = Template::find(place)?
        {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

/// Rows of conversations.
#[derive(Debug, Clone)]
pub(super) struct Conversations {
    rows: Rows,
    /// How many tokens of each are no filling.
    lengths: Vec<usize>,
}

impl Conversations {
    fn part(&self, start: usize, n: usize) -> Self {
        let lengths = self.lengths[start..start + n].to_vec();
        Self { rows: self.rows.part(start, n), lengths }
    }

    /// What a run trains on.
    fn source(self, config: &Config) -> Source {
        let Self { rows, lengths } = self;
        if config.data.pack {
            let packed = packed(&rows, &lengths);
            tracing::info!("{} packed into {} sequences", counted(rows.len(), "row"), packed.len());
            return Source::Given(packed);
        }
        if config.data.group_by_length {
            let batch = config.loader.global_batch_size.cast_unsigned();
            return Source::Grouped(Grouped::new(rows, lengths, batch));
        }
        Source::Given(rows)
    }
}

/// The rows of some files, and where they come from. `length` is that of a row.
fn rows(
    config: &Config,
    paths: &[PathBuf],
    tokenizer: &dyn Tokenizer,
    split: &str,
) -> Result<(Conversations, Reads)> {
    let length = config.model.length as usize;
    let template = template(config)?;
    let fill = tokenizer.eos().or_else(|| tokenizer.pad()).map(i64::from);
    if fill.is_none() && config.data.answer_filling {
        return Err(config.layers.error(
            "data.answer_filling",
            "the tokenizer has neither an EOS nor padding, with which rows would be filled as a part of their answer",
            "`data.answer_filling=false` leaves the filling out of the loss; or name a tokenizer with an EOS",
        ));
    }
    let mend = config.data.on_invalid == OnInvalid::Replace;
    let mut left = Left { on_invalid: config.data.on_invalid, count: 0 };
    let (mut ids, mut used, mut given, mut lengths) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let (mut origin, mut hash) = (Vec::new(), Sha256::new());
    for file in paths {
        let text = read_text(file)?;
        origin.push(format!("{} ({} bytes)", file.display(), text.len()));
        let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
        for (number, line) in lines.map(|(i, line)| (i + 1, line)) {
            let made =
                Line::new(line, mend).and_then(|line| example(line, template.as_ref(), tokenizer));
            let Example { ids: row, prompt } = match made {
                Ok(made) => made,
                Err(why) => {
                    left.out(file, number, &why)?;
                    continue;
                }
            };
            if prompt >= length {
                let why = format!(
                    "its prompt has {}, and a row {length}: no token of the answer is left",
                    counted(prompt, "token")
                );
                left.out(file, number, &why)?;
                continue;
            }
            let n = row.len().min(length);
            ids.extend(row[..n].iter().copied().map(i64::from));
            ids.extend(std::iter::repeat_n(fill.unwrap_or(0), length - n));
            used.push(if config.data.answer_filling { length } else { n });
            given.push(prompt);
            lengths.push(n);
        }
    }
    if left.count > 0 {
        tracing::warn!("{} of {} left out", counted(left.count, "line"), left.count + used.len());
    }
    for id in &ids {
        hash.update(id.to_le_bytes());
    }
    let reads = Reads {
        corpus: NAME.into(),
        split: split.into(),
        origin,
        blocks: None,
        sha256: hex(&hash.finalize()),
    };
    let (used, given) = (Some(used), Some(given));
    let rows = Rows { ids, length, used, given, ..Rows::default() };
    Ok((Conversations { rows, lengths }, reads))
}

/// Rows to train on and rows to validate on.
pub(super) fn open(
    config: &Config,
    tokenizer: &dyn Tokenizer,
    observer: &Observer<'_>,
) -> Result<(Conversations, Rows, Vec<Reads>)> {
    let data = &config.data;
    let files = |key: &str, paths: &Option<Paths>| -> Result<Vec<PathBuf>> {
        let Some(paths) = paths else {
            let message = format!("`{key}` names no conversations to read");
            return Err(config.layers.error(
                key,
                &message,
                "a file of JSON lines, a folder, or a pattern",
            ));
        };
        let Listing { files, notes } = listing::list(paths, ENDINGS)?;
        notes.iter().for_each(|note| observer.note(note));
        Ok(files)
    };
    let trained = files("data.path", &data.path)?;
    let (train, reads) = rows(config, &trained, tokenizer, "train")?;
    let empty = |key: &str| {
        Err(config.layers.error(
            key,
            "there is no row to use",
            "a line is {\"messages\": [..]}, or {\"prompt\": .., \"response\": ..}",
        ))
    };
    if data.valid_path.is_some() {
        let paths = files("data.valid_path", &data.valid_path)?;
        let whole = |path: &PathBuf| path.canonicalize().ok();
        let seen: BTreeSet<PathBuf> = trained.iter().filter_map(whole).collect();
        let is_seen = |path: &&PathBuf| whole(path).is_some_and(|path| seen.contains(&path));
        let shared: Vec<&Path> = paths.iter().filter(is_seen).map(PathBuf::as_path).collect();
        super::tell_shared(&shared, observer);
        let (valid, valid_reads) = rows(config, &paths, tokenizer, "validation")?;
        let valid = valid.rows;
        if train.rows.is_empty() || valid.is_empty() {
            return empty(if train.rows.is_empty() { "data.path" } else { "data.valid_path" });
        }
        return Ok((train, valid, vec![reads, valid_reads]));
    }
    let n = train.rows.len();
    if n < 2 {
        return empty("data.path");
    }
    let kept = ((n as f64 * (1.0 - data.valid_fraction)) as usize).clamp(1, n - 1);
    Ok((train.part(0, kept), train.rows.part(kept, n - kept), vec![reads]))
}

/// Checks how rows become batches.
fn check_batches(config: &Config) -> Result<()> {
    let Config { data, top, .. } = config;
    if data.pack && data.group_by_length {
        return Err(config.layers.error(
            "data.group_by_length",
            "`data.group_by_length` sorts rows by length, and with `data.pack` all sequences are of one length",
            "leave one of them out",
        ));
    }
    for (key, is_on) in [("data.pack", data.pack), ("data.group_by_length", data.group_by_length)] {
        if let (true, Some(size)) = (is_on, top.block_size) {
            return Err(config.layers.error(
                key,
                &format!(
                    "`{key}` needs sequences that are read as a whole, and `block_size` is {size}"
                ),
                "leave one of them out",
            ));
        }
    }
    Ok(())
}

/// What a run on conversations reads. A tokenizer that comes with a checkpoint is used as it is.
pub(super) fn corpus(
    config: &Config,
    tokenizer: Option<Arc<dyn Tokenizer>>,
    observer: &Observer<'_>,
) -> Result<Corpus> {
    let tokenizer = match tokenizer {
        Some(given) => given,
        None => {
            let name = &config.data.tokenizer_name_or_path;
            prepare::named_tokenizer(name, &LazyHub::default(), observer)?
        }
    };
    check_batches(config)?;
    let (train, valid, reads) = open(config, tokenizer.as_ref(), observer)?;
    let train = Loader::new(train.source(config));
    let valid = Blocks::Given(valid);
    Ok(Corpus { tokenizer, train, valid, reads, labels: Vec::new() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_read_of_a_line_matters() {
        let line = r#"{"id": NaN, "messages": [{"role": "user", "content": "a\u00e9", "w": NaN},
            {"w": [1e400], "role": "assistant", "content": "b"}]}"#;
        let Ok(Line::Messages(messages)) = Line::new(line, false) else { panic!("no messages") };
        assert_eq!(messages, [Message::new("user", "a\u{e9}"), Message::new(ASSISTANT, "b")]);
        let half = r#"{"prompt": "a", "response": "b\ud83d"}"#;
        let said = Line::new(half, false).err().unwrap();
        assert!(said.contains("`response` is not valid: `\\ud83d` is half"), "{said}");
        let Ok(Line::Pair { answer, .. }) = Line::new(half, true) else { panic!("no pair") };
        assert_eq!(answer, "b\u{fffd}");
        for (line, said) in [
            (r#"{"messages": [{"role": "user"}]}"#, "needs a `role` and a `content`"),
            (r#"{"messages": [1]}"#, "needs a `role` and a `content`"),
            (r#"{"messages": []}"#, "do not end with an answer"),
            (r#"{"text": "a"}"#, "keys there: text"),
            ("x", "it is no JSON"),
        ] {
            let why = Line::new(line, true).err().unwrap();
            assert!(why.contains(said), "{line}: {why}");
        }
    }
}
