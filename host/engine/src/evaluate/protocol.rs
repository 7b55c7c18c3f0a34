//! How generated text is scored: `configs/protocol/NAME.toml` says which tokens a judge sees together and which of them count.

use std::ops::Range;

use maskdiff_base::error::{Error, Result};
use maskdiff_base::text::{nearest, read_toml};
use maskdiff_config::{Config, shelf_file, shelf_names};
use serde::Deserialize;

/// A protocol; `configs/protocol/pooled.toml` explains the keys.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Protocol {
    /// Its name.
    #[serde(skip)]
    pub name: String,
    /// What it is, in a few words.
    pub about: String,
    /// Whether spaces before marks are taken out first.
    pub tidy: bool,
    /// Whether a text is cut off at a length.
    pub cut: bool,
    /// Tokens in a window; by default the judge's own length.
    context: Option<i64>,
    /// Tokens by which it moves; by default half a window.
    stride: Option<i64>,
    eos: Eos,
    eos_in_front: bool,
    filled: bool,
    /// Whether samples behind the last whole batch are left out.
    pub whole_batches: bool,
}

/// Which EOS count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Eos {
    /// The first of a window.
    First,
    /// None.
    None,
    /// The text ends with it.
    End,
}

/// Tokens that a judge sees at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    /// They.
    pub tokens: Vec<i64>,
    /// For each token but the first, whether it counts.
    pub counted: Vec<bool>,
}

impl Protocol {
    /// The protocol that `eval.gen_ppl.protocol` names.
    pub fn new(config: &Config) -> Result<Self> {
        let name = &config.eval.gen_ppl.protocol;
        let Some((file, text)) = shelf_file("protocol", name)? else {
            let known = shelf_names("protocol");
            let names: Vec<&str> = known.iter().map(String::as_str).collect();
            let hint = match nearest(name, &names) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("protocols: {}", names.join(", ")),
            };
            let message = format!("there is no protocol `{name}`");
            return Err(config.layers.error("eval.gen_ppl.protocol", &message, &hint));
        };
        let hint = "`configs/protocol/pooled.toml` explains the keys";
        let this: Self = read_toml(&text, &format!("`{file}`"), hint)?;
        for (key, value) in [("context", this.context), ("stride", this.stride)] {
            if value.is_some_and(|value| value < 2) {
                return Err(Error::config(format!("`{file}`: `{key}` must be at least 2"), ""));
            }
        }
        Ok(Self { name: name.clone(), ..this })
    }

    /// How many of `samples` count, with batches of `batch`.
    pub fn kept(&self, samples: usize, batch: usize) -> usize {
        if self.whole_batches {
            samples - samples % batch.clamp(1, samples.max(1))
        } else {
            samples
        }
    }

    /// A sample's tokens as they are scored, where the longest sample has `longest`.
    pub fn text(&self, mut tokens: Vec<i64>, longest: usize, eos: i64) -> Vec<i64> {
        if self.eos_in_front && tokens.first() != Some(&eos) {
            tokens.insert(0, eos);
        }
        if self.eos == Eos::End
            && let Some(end) = tokens.iter().skip(1).position(|token| *token == eos)
        {
            tokens.truncate(end + 2);
        }
        // Of those that fill a text, none but the first can count.
        if self.filled && tokens.len() < longest {
            tokens.push(eos);
        }
        tokens
    }

    /// Tokens of the longest window of texts of up to `text` tokens, none where their number is not known, for a judge that sees
    /// `length`; `whole` makes one window of a text.
    pub fn longest(&self, text: Option<i64>, length: i64, whole: bool) -> i64 {
        let text = text.unwrap_or(i64::MAX - 1) + i64::from(self.eos_in_front);
        if whole { text } else { text.min(self.context.unwrap_or(length)) }
    }

    /// The windows of a text for a judge that sees `length` tokens; `whole` makes one of it all.
    pub fn windows(&self, text: &[i64], length: i64, whole: bool, eos: i64) -> Vec<Window> {
        let context = if whole { text.len() } else { self.context.unwrap_or(length) as usize };
        let stride = self.stride.map_or(context.div_ceil(2), |stride| stride as usize).min(context);
        let (mut windows, mut start, mut scored) = (Vec::new(), 0, 1);
        while scored < text.len() {
            let end = text.len().min(start + context);
            let window = self.window(text, start..end, scored.max(start + 1), eos);
            // The judge need not see what does not count.
            if window.counted.contains(&true) {
                windows.push(window);
            }
            (start, scored) = (start + stride, end);
        }
        windows
    }

    /// A window whose tokens from `scored` on have not counted yet.
    fn window(&self, text: &[i64], range: Range<usize>, scored: usize, eos: i64) -> Window {
        let start = range.start;
        let tokens = text[range].to_vec();
        let first = tokens.iter().position(|token| *token == eos);
        let counts = |at: usize| match self.eos {
            Eos::End => true,
            Eos::None => tokens[at] != eos,
            Eos::First => tokens[at] != eos || first == Some(at),
        };
        let counted = (1..tokens.len()).map(|at| start + at >= scored && counts(at)).collect();
        Window { tokens, counted }
    }
}

/// Takes out the spaces that transformers' `clean_up_tokenization_spaces` takes out.
pub fn tidied(text: &str) -> String {
    const PAIRS: [(&str, &str); 10] = [
        (" .", "."),
        (" ?", "?"),
        (" !", "!"),
        (" ,", ","),
        (" ' ", "'"),
        (" n't", "n't"),
        (" 'm", "'m"),
        (" 's", "'s"),
        (" 've", "'ve"),
        (" 're", "'re"),
    ];
    PAIRS.iter().fold(text.to_string(), |text, (from, to)| text.replace(from, to))
}

#[cfg(test)]
mod tests {
    use super::*;

    const EOS: i64 = 9;

    fn protocol(eos: Eos, context: i64, stride: i64) -> Protocol {
        Protocol {
            name: String::new(),
            about: String::new(),
            tidy: false,
            cut: false,
            context: Some(context),
            stride: Some(stride),
            eos,
            eos_in_front: eos == Eos::End,
            filled: eos != Eos::End,
            whole_batches: true,
        }
    }

    /// Which tokens of the text count, all windows together; each at most once.
    fn counted(protocol: &Protocol, text: &[i64]) -> Vec<usize> {
        let windows = protocol.windows(text, 100, false, EOS);
        let (mut all, mut start, stride) = (Vec::new(), 0, protocol.stride.unwrap() as usize);
        for window in &windows {
            // Windows in which nothing counts are left out.
            while text[start..].len() < window.tokens.len()
                || text[start..start + window.tokens.len()] != window.tokens
            {
                start += stride;
            }
            assert!(window.tokens.len() > 1 && window.counted.contains(&true));
            let places = window.counted.iter().enumerate().filter(|(_, counts)| **counts);
            all.extend(places.map(|(at, _)| start + at + 1));
            start += stride;
        }
        let mut once = all.clone();
        once.dedup();
        assert_eq!(all, once);
        all
    }

    #[test]
    fn chunks_see_nothing_of_one_another_and_sliding_windows_do() {
        let text: Vec<i64> = (10..20).collect();
        // A text that ends with a chunk of one token.
        assert_eq!(protocol(Eos::First, 3, 3).windows(&text, 100, false, EOS).len(), 3);
        // The first token of a chunk has nothing before it.
        assert_eq!(counted(&protocol(Eos::First, 4, 4), &text), [1, 2, 3, 5, 6, 7, 9]);
        assert_eq!(counted(&protocol(Eos::None, 4, 2), &text), (1..10).collect::<Vec<_>>());
        assert_eq!(counted(&protocol(Eos::None, 50, 2), &text), (1..10).collect::<Vec<_>>());
        assert!(counted(&protocol(Eos::None, 4, 2), &text[..1]).is_empty());
    }

    #[test]
    fn each_rule_counts_its_eos() {
        let text = [1, EOS, 2, EOS, EOS, 3, EOS, 4];
        assert_eq!(counted(&protocol(Eos::First, 8, 8), &text), [1, 2, 5, 7]);
        assert_eq!(counted(&protocol(Eos::First, 4, 4), &text), [1, 2, 5, 7]);
        assert_eq!(counted(&protocol(Eos::None, 8, 8), &text), [2, 5, 7]);
        let end = protocol(Eos::End, 8, 4);
        assert_eq!(end.text(text.to_vec(), 8, EOS), [EOS, 1, EOS]);
        assert_eq!(end.text(vec![EOS, EOS, 1], 8, EOS), [EOS, EOS]);
        let first = protocol(Eos::First, 4, 4);
        assert_eq!(first.text(vec![1, 2], 4, EOS), [1, 2, EOS], "one that fills it may count");
        assert_eq!(first.text(vec![1, 2], 2, EOS), [1, 2]);
    }

    #[test]
    fn whole_batches_are_kept() {
        let mut some = protocol(Eos::First, 4, 4);
        assert_eq!([some.kept(5, 2), some.kept(3, 8), some.kept(0, 8)], [4, 3, 0]);
        some.whole_batches = false;
        assert_eq!(some.kept(5, 2), 5);
    }

    #[test]
    fn spaces_before_marks_go() {
        assert_eq!(tidied("He did n't , did he ? It 's so ."), "He didn't, did he? It's so.");
    }
}
