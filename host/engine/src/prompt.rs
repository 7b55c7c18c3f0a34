//! Text that is given in part: a prompt to continue, or a template with holes to fill.

mod ask;

use maskdiff_base::error::{Error, Result};
use maskdiff_base::text::counted;
use maskdiff_data::Tokenizer;
use tch::Tensor;

pub use ask::Ask;

/// What is given of one sequence, in tokens.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Given {
    /// As the user wrote it; empty when nothing is given.
    pub text: String,
    /// Tokens from the first position on; `None` is a hole. Later positions are free.
    tokens: Vec<Option<i64>>,
    /// A template is the whole text: what is drawn after it is cut off.
    whole: bool,
    /// A draft: its tokens may change.
    free: bool,
    /// Its class, where it is to be of one.
    pub label: Option<i64>,
}

impl Given {
    /// Of sequences of `length` tokens.
    pub fn new(ask: &Ask, tokenizer: &dyn Tokenizer, length: i64) -> Result<Self> {
        match ask {
            Ask::Prompt(text) => Self::prompt(text, tokenizer, length),
            Ask::Template(text) => Self::template(text, tokenizer, length),
            Ask::Draft(text) => Self::draft(text, tokenizer, length),
            Ask::Tokens(ids) => Self::of_tokens(ids, tokenizer, length),
            Ask::Holes(tokens) => Self::of_holes(tokens, tokenizer, length),
        }
    }

    fn prompt(text: &str, tokenizer: &dyn Tokenizer, length: i64) -> Result<Self> {
        if text.contains("[MASK]") || text.contains("[MASK:") {
            return Err(Error::config(
                format!("the prompt `{}` has a hole", shortened(text)),
                "texts with holes are for `--template`, in a file `.jsonl` lines {\"template\": \"…\"}",
            ));
        }
        let tokens = known(text, text, false, tokenizer)?;
        if tokens.is_empty() {
            return Err(Error::config(
                "the prompt is empty",
                "without a prompt, text is drawn freely: leave it out",
            ));
        }
        if tokens.len() as i64 >= length {
            return Err(Error::config(
                format!(
                    "the prompt `{}` has {}, and the model draws sequences of {length}",
                    shortened(text),
                    counted(tokens.len(), "token")
                ),
                format!("shorten it to at most {}", counted(length - 1, "token")),
            ));
        }
        Ok(Self { text: text.to_string(), tokens, ..Self::default() })
    }

    /// A prompt that is tokens already, of sequences of `length` tokens; each must be one of the vocabulary's, and none the mask.
    pub fn of_tokens(ids: &[i64], tokenizer: &dyn Tokenizer, length: i64) -> Result<Self> {
        let mask = tokenizer.mask_id();
        if let Some(wrong) = ids.iter().find(|id| !tokenizer.has(**id) || **id == mask) {
            let what = if *wrong == mask { "the mask" } else { "no token of the vocabulary" };
            return Err(Error::config(
                format!("the prompt holds the token {wrong}, which is {what}"),
                format!("tokens are whole numbers below {}", tokenizer.vocab_size()),
            ));
        }
        if ids.len() as i64 >= length {
            let have = counted(ids.len(), "token");
            return Err(Error::config(
                format!("the prompt has {have}, and the model draws sequences of {length}"),
                format!("shorten it to at most {}", counted(length - 1, "token")),
            ));
        }
        let tokens = ids.iter().map(|id| Some(*id)).collect();
        Ok(Self { text: tokenizer.decode(ids), tokens, ..Self::default() })
    }

    /// A text of tokens with holes, `None`, of which it says the end; of sequences of `length` tokens.
    pub fn of_holes(
        tokens: &[Option<i64>],
        tokenizer: &dyn Tokenizer,
        length: i64,
    ) -> Result<Self> {
        let known: Vec<i64> = tokens.iter().flatten().copied().collect();
        // What holds of the tokens of a prompt holds of these.
        Self::of_tokens(&known, tokenizer, length.max(known.len() as i64 + 1))?;
        if tokens.len() as i64 > length {
            let have = counted(tokens.len(), "token");
            return Err(Error::config(
                format!("the text has {have}, and the model draws sequences of {length}"),
                format!("shorten it to at most {}", counted(length, "token")),
            ));
        }
        let shown: Vec<i64> =
            tokens.iter().map(|token| token.unwrap_or(tokenizer.mask_id())).collect();
        let text = tokenizer.decode(&shown);
        Ok(Self { text, tokens: tokens.to_vec(), whole: true, free: false, label: None })
    }

    fn draft(text: &str, tokenizer: &dyn Tokenizer, length: i64) -> Result<Self> {
        let tokens = known(text, text, false, tokenizer)?;
        if tokens.len() as i64 > length {
            return Err(Error::config(
                format!(
                    "the text `{}` has {}, and the model draws sequences of {length}",
                    shortened(text),
                    counted(tokens.len(), "token")
                ),
                format!("revise it in parts of at most {}", counted(length, "token")),
            ));
        }
        Ok(Self { text: text.to_string(), tokens, whole: true, free: true, label: None })
    }

    fn template(text: &str, tokenizer: &dyn Tokenizer, length: i64) -> Result<Self> {
        let mut tokens = Vec::new();
        let mut rest = text;
        let mut holes = 0;
        while let Some(start) = rest.find("[MASK") {
            let (size, after) = hole(&rest[start..]).ok_or_else(|| {
                let shown = shortened(&rest[start..]);
                Error::config(
                    format!("the template `{}` has no hole at `{shown}`", shortened(text)),
                    format!("write [MASK] for one token and [MASK:n] for n of them, 1 to {length}"),
                )
            })?;
            let before = &rest[..start];
            // What fills the hole brings the space before it along.
            let before = match before.strip_suffix(' ') {
                Some(stripped) if tokenizer.space_leads() => stripped,
                _ => before,
            };
            tokens.extend(known(before, text, holes > 0, tokenizer)?);
            // Too large a hole is refused below; no need to store it.
            let size = size.min(length.unsigned_abs() as usize + 1);
            tokens.extend(std::iter::repeat_n(None, size));
            holes += 1;
            rest = after;
        }
        tokens.extend(known(rest, text, holes > 0, tokenizer)?);
        if holes == 0 {
            return Err(Error::config(
                format!("the template `{}` has no hole", shortened(text)),
                "write [MASK] where one token is wanted, [MASK:12] for twelve; `--prompt` continues a text",
            ));
        }
        if tokens.len() as i64 > length {
            return Err(Error::config(
                format!(
                    "the template `{}` has more than the {length} tokens that the model draws",
                    shortened(text)
                ),
                "shorten it, or make its holes smaller",
            ));
        }
        Ok(Self { text: text.to_string(), tokens, whole: true, free: false, label: None })
    }

    /// Whether it says where the text ends.
    pub fn is_whole(&self) -> bool {
        self.whole
    }

    /// The tokens of a draft.
    pub fn draft_length(&self) -> Option<usize> {
        self.free.then_some(self.tokens.len())
    }

    /// The tokens of a text of which it says the end.
    pub fn whole(&self) -> Option<usize> {
        self.whole.then_some(self.tokens.len())
    }

    /// Puts what is given into a start `[L] i64` drawn from the prior, which begins at position `from` of the text.
    pub fn put_into(&self, start_l: &Tensor, from: usize) {
        for (position, token) in self.known_of(from, start_l.size()[0]) {
            let _ = start_l.get(position).fill_(token);
        }
    }

    /// Sets the given positions of `given_l [L] bool`, which begins at position `from` of the text.
    pub fn mark(&self, given_l: &Tensor, from: usize) {
        if self.free {
            return;
        }
        for (position, _) in self.known_of(from, given_l.size()[0]) {
            let _ = given_l.get(position).fill_(1);
        }
    }

    /// The given tokens of a part of the text, with their positions in it.
    fn known_of(&self, from: usize, length: i64) -> impl Iterator<Item = (i64, i64)> {
        // A draft is where a text starts: what follows moves on from what became of it.
        let starts = from == 0 || !self.free;
        let within = self.known().filter(move |(position, _)| starts && *position >= from);
        let within = within.map(move |(position, token)| ((position - from) as i64, token));
        within.filter(move |(position, _)| *position < length)
    }

    /// Cuts off what was drawn after a template or a draft, which begins at `lead`.
    pub fn cut(&self, lead: usize, ids: &mut Vec<i64>) {
        if self.whole {
            ids.truncate(lead + self.tokens.len());
        }
    }

    /// The given tokens with their positions.
    pub fn known(&self) -> impl Iterator<Item = (usize, i64)> {
        let tokens = self.tokens.iter().enumerate();
        tokens.filter_map(|(position, token)| Some((position, (*token)?)))
    }

    /// How many tokens are given.
    pub fn count(&self) -> usize {
        self.tokens.iter().flatten().count()
    }

    /// How many tokens of a text are what was given and what lies between.
    pub fn reach(&self) -> usize {
        if self.free {
            return 0;
        }
        self.tokens.iter().rposition(Option::is_some).map_or(0, |last| last + 1)
    }
}

/// The size of the hole at the start of `text`, and what follows it.
fn hole(text: &str) -> Option<(usize, &str)> {
    let inner = text.strip_prefix("[MASK")?;
    if let Some(after) = inner.strip_prefix(']') {
        return Some((1, after));
    }
    let (digits, after) = inner.strip_prefix(':')?.split_once(']')?;
    // A number may have a sign, and a hole has none.
    let is_plain = digits.bytes().all(|byte| byte.is_ascii_digit());
    let size = digits.parse().ok().filter(|size| is_plain && *size > 0)?;
    Some((size, after))
}

/// Tokens of a piece of `whole`, which stands behind others or not; one that the tokenizer does not know is an error.
fn known(
    piece: &str,
    whole: &str,
    behind: bool,
    tokenizer: &dyn Tokenizer,
) -> Result<Vec<Option<i64>>> {
    if piece.is_empty() {
        return Ok(Vec::new());
    }
    let refused = |reason: String| {
        Error::config(
            format!("`{}` cannot be given: {reason}", shortened(whole)),
            "the checkpoint's `tokenizer.json` holds the vocabulary it was trained with",
        )
    };
    let ids = if behind { tokenizer.encode_behind(piece) } else { tokenizer.encode(piece) };
    let ids = ids.map_err(|e| refused(e.to_string()))?;
    if let Some(unknown) = tokenizer.unknown().filter(|id| ids.contains(id)) {
        let shown = tokenizer.decode(&[i64::from(unknown)]);
        return Err(refused(format!("a part of it is unknown to the tokenizer (`{shown}`)")));
    }
    if ids.iter().any(|id| i64::from(*id) == tokenizer.mask_id()) {
        return Err(refused(
            "it contains the mask token itself; holes are for `--template`".into(),
        ));
    }
    Ok(ids.into_iter().map(|id| Some(i64::from(id))).collect())
}

/// The beginning of a long text.
fn shortened(text: &str) -> String {
    let mut characters = text.chars();
    let start: String = characters.by_ref().take(60).collect();
    if characters.next().is_some() { start + "…" } else { start }
}

#[cfg(test)]
mod tests {
    use super::*;
    use maskdiff_data::tokenizer::characters;

    #[test]
    fn a_template_is_tokens_and_holes() {
        let tokenizer = characters("The cat sat on it.");
        let given = Given::template("The [MASK:3] sat[MASK]", tokenizer.as_ref(), 64).unwrap();
        let shape: String =
            given.tokens.iter().map(|token| if token.is_some() { 't' } else { '_' }).collect();
        assert_eq!(shape, "tttt___tttt_");
        let start = Tensor::full([16], 99, (tch::Kind::Int64, tch::Device::Cpu));
        given.put_into(&start, 0);
        let mut ids = Vec::<i64>::try_from(&start).unwrap();
        assert_eq!(ids.iter().filter(|id| **id == 99).count(), 3 + 1 + 4);
        given.cut(0, &mut ids);
        assert_eq!(ids.len(), 12);
    }

    #[test]
    fn tokens_with_holes_are_a_whole_text() {
        let tokenizer = characters("abc ");
        let holes = [Some(1), None, Some(2)];
        let given = Given::of_holes(&holes, tokenizer.as_ref(), 3).unwrap();
        assert_eq!((given.whole(), given.count(), given.reach()), (Some(3), 2, 3));
        assert_eq!(given.known().collect::<Vec<_>>(), [(0, 1), (2, 2)]);
        assert!(Given::of_holes(&holes, tokenizer.as_ref(), 2).is_err(), "too long");
        let mask = [Some(tokenizer.mask_id()), None];
        assert!(Given::of_holes(&mask, tokenizer.as_ref(), 8).is_err(), "the mask is no token");
    }

    #[test]
    fn what_cannot_be_given_is_refused() {
        let tokenizer = characters("abc ");
        let refused = |result: Result<Given>, reason: &str| {
            let error = result.unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        };
        let prompt = |text| Given::prompt(text, tokenizer.as_ref(), 4);
        let template = |text| Given::template(text, tokenizer.as_ref(), 4);
        refused(prompt(""), "empty");
        refused(prompt("abca"), "has 4 tokens");
        refused(prompt("abx"), "'x' has no token");
        refused(prompt("a[MASK]"), "has a hole");
        refused(template("abc"), "has no hole");
        refused(template("ab[MASK:3]"), "more than the 4 tokens");
        refused(template("a[MASK:99999999999999999999]"), "no hole at");
        for bad in ["a[MASK:0]", "a[MASK:+3]", "a[MASK:x]", "a[MASK:-1]", "a[MASK:2", "a[MASK"] {
            refused(template(bad), "no hole at");
        }
        assert!(prompt("abc").is_ok() && template("abc[MASK]").is_ok());
    }

    /// A tokenizer that puts a space in front of every text, with a token for each character.
    fn with_leading_space() -> Box<dyn Tokenizer> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokenizer.json");
        let json = r#"{
            "version": "1.0", "truncation": {
                "direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0
            }, "padding": null, "added_tokens": [
                {"id": 5, "content": "[MASK]", "single_word": false, "lstrip": false,
                 "rstrip": false, "normalized": false, "special": true}
            ],
            "normalizer": null, "post_processor": null, "decoder": null,
            "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true},
            "model": {"type": "BPE", "dropout": null, "unk_token": "?", "continuing_subword_prefix": null,
                "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
                "vocab": {"▁": 0, "a": 1, "b": 2, ".": 3, "?": 4}, "merges": []}
        }"#;
        std::fs::write(&path, json).unwrap();
        maskdiff_data::load_tokenizer(&path).unwrap()
    }

    #[test]
    fn a_tokenizers_leading_space_stays_out_of_the_holes() {
        let tokenizer = with_leading_space();
        let tokens = |text| Given::template(text, tokenizer.as_ref(), 16).unwrap().tokens;
        assert_eq!(tokens("[MASK:2]."), [None, None, Some(3)]);
        assert_eq!(tokens("a [MASK] b."), [Some(0), Some(1), None, Some(0), Some(2), Some(3)]);
        let long = Given::prompt("a b a b", tokenizer.as_ref(), 16).unwrap();
        assert_eq!(long.tokens.len(), 8, "the file's limit of two tokens is none of ours");
    }

    #[test]
    fn unknown_tokens_and_the_mask_itself_are_refused() {
        let tokenizer = with_leading_space();
        let refused = |text| Given::prompt(text, tokenizer.as_ref(), 16).unwrap_err().to_string();
        assert!(refused("a c").contains("unknown to the tokenizer (`?`)"), "{}", refused("a c"));
        assert!(refused("a [MASK]").contains("has a hole"));
        let template = Given::template("a[MASK:2] c", tokenizer.as_ref(), 16).unwrap_err();
        assert!(template.to_string().contains("unknown to the tokenizer"));
        let stories = maskdiff_data::tokenizer::stories();
        let error = Given::prompt("Ben has a spaceship", stories.as_ref(), 64).unwrap_err();
        assert!(error.to_string().contains("`spaceship` is not a word of the stories"), "{error}");
    }

    #[test]
    fn a_file_holds_one_prompt_a_line() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let prompt = |text: &str| Ask::Prompt(text.into());
        let plain = Ask::read(&write("a.txt", "one two\n\nthree\n")).unwrap();
        assert_eq!(plain, [prompt("one two"), prompt("three")]);
        let json = "{\"prompt\": \"x\\n\"}\n{\"template\": \"[MASK] y\"}\n";
        let json = Ask::read(&write("a.jsonl", json)).unwrap();
        assert_eq!(json, [prompt("x\n"), Ask::Template("[MASK] y".into())]);
        // The mark of an editor is no part of the text, and what else a line says is let be.
        let marked = Ask::read(&write("d.txt", "\u{feff}one two\r\nthree")).unwrap();
        assert_eq!(marked, [prompt("one two"), prompt("three")]);
        let marked = "\u{feff}{\"prompt\": \"x\", \"id\": 7, \"score\": NaN}\n";
        assert_eq!(Ask::read(&write("d.jsonl", marked)).unwrap(), [prompt("x")]);
        for (line, said) in [
            (
                "{\"promt\": 1}",
                "line 2: there is neither a `prompt` nor a `template`; keys there: promt",
            ),
            ("{\"prompt\": 1}", "line 2: `prompt` is no text but a number"),
            ("{\"prompt\": \"a\", \"template\": \"b\"}", "line 2: it has both"),
            ("{\"prompt\": \"\\ud83d\"}", "is half of a surrogate pair"),
            ("\"x\"", "line 2: no JSON object"),
        ] {
            let bad = write("b.jsonl", &format!("{{\"prompt\": \"x\"}}\n{line}\n"));
            let error = Ask::read(&bad).unwrap_err().to_string();
            assert!(error.contains(said) && !error.contains("column"), "{error}");
        }
        assert!(Ask::read(&write("c.txt", "\n")).unwrap_err().to_string().contains("no prompt"));
    }
}
