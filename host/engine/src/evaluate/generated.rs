//! Generative perplexity: how likely a judge finds generated text, under a named protocol, and how varied the text is.

use std::path::Path;

use maskdiff_base::error::{Error, Result};
use maskdiff_base::text::counted;
use maskdiff_data::{json, read_text};
use serde::Serialize;
use tch::Tensor;

use super::judge::Judge;
use super::mauve::{self, Mauve};
use super::protocol::{Protocol, Window, tidied};
use super::{diversity, give_or_take, summarize};

/// A generated text.
#[derive(Debug, Clone)]
pub struct Generated {
    /// The text.
    pub text: String,
    /// The tokens that it was drawn as, where they are known.
    pub ids: Option<Vec<i64>>,
    /// The batch that it was drawn in; texts that do not say it are one batch.
    pub batch: Option<u64>,
}

impl Generated {
    /// The texts of a file: of one of JSON lines the objects that have a `text`, as `maskdiff sample` writes them; of any other
    /// what stands between lines `---`.
    pub fn read(path: &Path) -> Result<Vec<Self>> {
        let text = read_text(path)?;
        let named = path.extension().is_some_and(|extension| extension == "jsonl");
        let texts = if named || text.trim_start().starts_with("{\"") {
            Self::lines(&text, path)?
        } else {
            let mut parts = vec![String::new()];
            for line in text.lines() {
                match parts.last_mut() {
                    Some(part) if line.trim_end() != "---" => *part += &format!("{line}\n"),
                    _ => parts.push(String::new()),
                }
            }
            let parts = parts.iter().map(|part| part.trim()).filter(|part| !part.is_empty());
            parts.map(|part| Self { text: part.into(), ids: None, batch: None }).collect()
        };
        if texts.is_empty() {
            return Err(Error::data(
                format!("`{}` holds no text", path.display()),
                "give what `maskdiff sample --format json` prints, or texts between lines `---`",
            ));
        }
        Ok(texts)
    }

    fn lines(text: &str, path: &Path) -> Result<Vec<Self>> {
        let mut texts = Vec::new();
        for (i, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let own = Self::of_json(line).map_err(|why| {
                let hint =
                    r#"each line is an object with a `text`, as `{"text": "…", "ids": […]}`"#;
                Error::data(format!("`{}`, line {}: {why}", path.display(), i + 1), hint)
            })?;
            texts.extend(own);
        }
        Ok(texts)
    }

    /// The text of a line; none of one with what else is printed beside the texts, as their scores.
    fn of_json(line: &str) -> std::result::Result<Option<Self>, String> {
        let members =
            json::members(line.as_bytes()).map_err(|why| format!("no JSON object: {why}"))?;
        let value = |key: &str| json::get(&members, key).map(|place| &line[place.clone()]);
        let Some(text) = value("text") else { return Ok(None) };
        let text = json::text(text.as_bytes()).map_err(|why| format!("`text` {why}"))?;
        let ids = value("ids").map_or(Ok(None), serde_json::from_str);
        let ids = ids.map_err(|_| "`ids` is no list of whole numbers")?;
        let batch = value("batch").map_or(Ok(None), serde_json::from_str);
        let batch = batch.map_err(|_| "`batch` is no whole number")?;
        Ok(Some(Self { text, ids, batch }))
    }
}

/// How texts are scored.
#[derive(Debug, Clone)]
pub struct Plan {
    /// What counts.
    pub protocol: Protocol,
    /// Windows in a batch, ≥ 1.
    pub batch: usize,
    /// Whether the judge's tokenizer reads the text, or the tokens that were drawn are taken as they are.
    pub retokenize: bool,
    /// Where a protocol cuts a text, in tokens; none where it is not known.
    pub length: Option<usize>,
    /// Texts by people, for MAUVE.
    pub references: Option<Vec<String>>,
    /// Of MAUVE's clusters.
    pub seed: u64,
}

/// What a judge says.
#[derive(Debug, Clone, Serialize)]
pub struct Scores {
    /// `exp` of the nats per token.
    #[serde(rename = "gen/ppl")]
    pub perplexity: f64,
    /// Nats per counted token, all texts together.
    #[serde(rename = "gen/nats_per_token")]
    pub nats_per_token: f64,
    /// Its standard error over the texts.
    #[serde(rename = "gen/standard_error")]
    pub standard_error: f64,
    /// Tokens that count.
    #[serde(rename = "gen/tokens")]
    pub tokens: i64,
    /// Texts that count.
    #[serde(rename = "gen/samples")]
    pub samples: usize,
    /// Texts that the protocol leaves out.
    #[serde(rename = "gen/left_out")]
    pub left_out: usize,
    /// Mean over all texts of the entropy of their tokens, nats.
    #[serde(rename = "gen/entropy")]
    pub entropy: f64,
    /// Share of unlike pairs of tokens.
    #[serde(rename = "gen/distinct_2")]
    pub distinct_2: Option<f64>,
    /// Share of unlike runs of three.
    #[serde(rename = "gen/distinct_3")]
    pub distinct_3: Option<f64>,
    /// Share of unlike runs of four.
    #[serde(rename = "gen/distinct_4")]
    pub distinct_4: Option<f64>,
    /// Texts by people that it is compared with.
    #[serde(rename = "gen/references", skip_serializing_if = "Option::is_none")]
    pub references: Option<usize>,
    /// MAUVE, where there are texts by people.
    #[serde(rename = "gen/mauve", skip_serializing_if = "Option::is_none")]
    pub mauve: Option<f64>,
    /// Its frontier integral.
    #[serde(rename = "gen/frontier_integral", skip_serializing_if = "Option::is_none")]
    pub frontier_integral: Option<f64>,
}

impl Scores {
    /// One line for people.
    pub fn in_words(&self, judge: &Judge, plan: &Plan) -> String {
        let mut words = format!(
            "generative perplexity {:.4} ({:.4}{} nats per token) by `{}`, protocol `{}`: {} of {}",
            self.perplexity,
            self.nats_per_token,
            give_or_take(self.standard_error),
            judge.name,
            plan.protocol.name,
            counted(self.tokens, "token"),
            counted(self.samples, "text"),
        );
        if self.left_out > 0 {
            words += &format!(" ({} left out)", self.left_out);
        }
        words += &format!("; entropy {:.4} nats", self.entropy);
        if let Some(distinct) = self.distinct_4 {
            words += &format!(", distinct 4-grams {distinct:.4}");
        }
        if let (Some(mauve), Some(references)) = (self.mauve, self.references) {
            words += &format!(", MAUVE {mauve:.4} against {}", counted(references, "text"));
        }
        words
    }
}

/// Scores texts. `tick` is told of windows done and in all.
pub fn score(
    texts: &[Generated],
    judge: &Judge,
    plan: &Plan,
    mut tick: impl FnMut(i64, i64) -> Result<()>,
) -> Result<Scores> {
    let tokens = texts.iter().enumerate().map(|(i, text)| tokens(i, text, judge, plan));
    let tokens: Vec<Vec<i64>> = tokens.collect::<Result<_>>()?;
    let cut = |tokens: &[i64]| match plan.length.filter(|_| plan.protocol.cut) {
        Some(length) => tokens[..tokens.len().min(length)].to_vec(),
        None => tokens.to_vec(),
    };
    let scored: Vec<Vec<i64>> = tokens.iter().map(|tokens| cut(tokens)).collect();
    let mut windows: Vec<(usize, Window)> = Vec::new();
    let (mut first, mut kept) = (0, 0);
    // Programs score each batch as it is drawn: what is filled and what is left out is a matter of the batch.
    for batch in texts.chunk_by(|a, b| a.batch == b.batch) {
        let of_batch = &scored[first..first + batch.len()];
        let longest = of_batch.iter().map(Vec::len).max().unwrap_or(0);
        for text in &of_batch[..plan.protocol.kept(batch.len(), plan.batch)] {
            let text = plan.protocol.text(text.clone(), longest, judge.eos);
            let parts = plan.protocol.windows(&text, judge.length(), !plan.retokenize, judge.eos);
            windows.extend(parts.into_iter().map(|window| (kept, window)));
            kept += 1;
        }
        first += batch.len();
    }
    check_fit(&windows, judge, plan)?;
    // Like lengths together: little is filled.
    windows.sort_by_key(|(_, window)| std::cmp::Reverse(window.tokens.len()));
    let (mut sums, mut counts) = (vec![0.0; kept], vec![0.0; kept]);
    let mut done = 0;
    for batch in windows.chunks(plan.batch) {
        let parts: Vec<&Window> = batch.iter().map(|(_, window)| window).collect();
        for ((number, _), (sum, count)) in batch.iter().zip(judge.nats(&parts)?) {
            sums[*number] += sum;
            counts[*number] += count;
        }
        done += batch.len() as i64;
        tick(done, windows.len() as i64)?;
    }
    if counts.iter().sum::<f64>() == 0.0 {
        return Err(Error::data(
            format!("protocol `{}` counts no token of these texts", plan.protocol.name),
            "they are empty, or one token long; or `eval.gen_ppl.max_length` cuts them so short",
        ));
    }
    let mean = summarize(&sums, &counts, 1)?;
    // The tokens as they were drawn say more of variety than those of another tokenizer.
    let drawn: Vec<Vec<i64>> =
        texts.iter().zip(tokens).map(|(text, own)| text.ids.clone().unwrap_or(own)).collect();
    let mauve = plan.references.as_ref().map(|people| apart(texts, people, judge, plan, &mut tick));
    let mauve = mauve.transpose()?;
    Ok(Scores {
        perplexity: mean.perplexity,
        nats_per_token: mean.nats_per_token,
        standard_error: mean.standard_error,
        tokens: mean.tokens,
        samples: kept,
        left_out: texts.len() - kept,
        entropy: drawn.iter().map(|ids| diversity::entropy(ids)).sum::<f64>() / drawn.len() as f64,
        distinct_2: diversity::distinct(&drawn, 2),
        distinct_3: diversity::distinct(&drawn, 3),
        distinct_4: diversity::distinct(&drawn, 4),
        references: plan.references.as_ref().map(Vec::len),
        mauve: mauve.map(|m| m.mauve),
        frontier_integral: mauve.map(|m| m.frontier_integral),
    })
}

/// The tokens of the `i`-th text for the judge.
fn tokens(i: usize, text: &Generated, judge: &Judge, plan: &Plan) -> Result<Vec<i64>> {
    if plan.retokenize {
        let text = if plan.protocol.tidy { &tidied(&text.text) } else { &text.text };
        return Ok(judge.tokenizer.encode(text)?.into_iter().map(i64::from).collect());
    }
    let wrong = |what: &str| {
        let message = format!("`eval.gen_ppl.retokenize=false`, but text {} {what}", i + 1);
        Err(Error::config(
            message,
            "let the judge's tokenizer read it: `eval.gen_ppl.retokenize=true`",
        ))
    };
    match &text.ids {
        None => wrong("has no `ids`"),
        Some(ids) if !ids.iter().all(|id| (0..judge.tokenizer.vocab_size()).contains(id)) => {
            wrong("has ids that are none of the judge's tokens")
        }
        Some(ids) if judge.tokenizer.decode(ids) != text.text => {
            wrong("reads otherwise in the judge's tokens")
        }
        Some(ids) => Ok(ids.clone()),
    }
}

fn check_fit(windows: &[(usize, Window)], judge: &Judge, plan: &Plan) -> Result<()> {
    let longest = windows.iter().map(|(_, window)| window.tokens.len() as i64).max().unwrap_or(0);
    if longest <= judge.length() {
        return Ok(());
    }
    let (name, length) = (&judge.name, judge.length());
    let message =
        format!("the judge `{name}` sees {length} tokens at once, and {longest} are asked for");
    Err(Error::config(message, remedy(plan)))
}

fn remedy(plan: &Plan) -> &'static str {
    if plan.retokenize {
        "`eval.gen_ppl.protocol=pooled` takes windows of the judge's own length"
    } else {
        "`eval.gen_ppl.retokenize=true` scores long texts in windows"
    }
}

/// What is known of a judge's windows before texts of `drawn` tokens are there: a warning where some of them may not fit.
///
/// # Errors
/// All of them are longer than the judge's window: `whole` says that none ends before its last token.
pub fn check_room(judge: &Judge, plan: &Plan, drawn: i64, whole: bool) -> Result<Option<String>> {
    // The judge's own tokens of a text may be more or fewer.
    let text = match plan.retokenize {
        false => Some(drawn),
        true if plan.protocol.cut => Some(plan.length.map_or(drawn, |length| length as i64)),
        true => None,
    };
    let (name, length) = (&judge.name, judge.length());
    let longest = plan.protocol.longest(text, length, !plan.retokenize);
    if longest <= length {
        return Ok(None);
    }
    let message = format!("the judge `{name}` sees {length} tokens at once");
    // An EOS in front is left out where a text begins with it.
    if !plan.retokenize && whole && drawn > length {
        let message = format!("{message}, and {longest} are asked for");
        return Err(Error::config(message, remedy(plan)));
    }
    let protocol = &plan.protocol.name;
    Ok(Some(format!(
        "{message}, and protocol `{protocol}` asks for up to {longest}: longer texts cannot be scored ({})",
        remedy(plan)
    )))
}

/// How far the texts are from texts by people.
fn apart(
    texts: &[Generated],
    people: &[String],
    judge: &Judge,
    plan: &Plan,
    tick: &mut dyn FnMut(i64, i64) -> Result<()>,
) -> Result<Mauve> {
    let all: Vec<&str> =
        texts.iter().map(|text| &text.text[..]).chain(people.iter().map(String::as_str)).collect();
    let states_nd = states(&all, judge, plan.batch, tick)?;
    let count = texts.len() as i64;
    let generated_nd = states_nd.narrow(0, 0, count);
    let people_nd = states_nd.narrow(0, count, people.len() as i64);
    mauve::mauve(&generated_nd, &people_nd, plan.seed, &mut || {
        tick(all.len() as i64, all.len() as i64)
    })
}

/// The judge's state at the end of each text, `[N, D]`; a text is cut at what the judge sees at once.
fn states(
    texts: &[&str],
    judge: &Judge,
    batch: usize,
    tick: &mut dyn FnMut(i64, i64) -> Result<()>,
) -> Result<Tensor> {
    let ids = |text: &&str| -> Result<Vec<i64>> {
        let ids = judge.tokenizer.encode(text)?.into_iter().map(i64::from);
        let ids: Vec<i64> = ids.take(judge.length() as usize).collect();
        Ok(if ids.is_empty() { vec![judge.eos] } else { ids })
    };
    let ids: Vec<Vec<i64>> = texts.iter().map(ids).collect::<Result<_>>()?;
    let mut done = 0;
    let parts = ids.chunks(batch).map(|part| {
        let part: Vec<&[i64]> = part.iter().map(Vec::as_slice).collect();
        done += part.len() as i64;
        tick(done, ids.len() as i64)?;
        judge.features(&part)
    });
    Ok(Tensor::cat(&parts.collect::<Result<Vec<Tensor>>>()?, 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_texts() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.jsonl");
        std::fs::write(&path, "{\"text\": \"a b\", \"ids\": [1, 2], \"nfe\": 3.0}\n\n{\"gen/ppl\": 3}\n{\"text\": \"c\"}\n").unwrap();
        let read = Generated::read(&path).unwrap();
        assert_eq!((read.len(), &read[0].ids, &read[1].text[..]), (2, &Some(vec![1, 2]), "c"));
        let path = folder.path().join("a.txt");
        std::fs::write(&path, "---\r\none\ntwo\n\n---\r\n\nthree\n---").unwrap();
        let texts: Vec<String> =
            Generated::read(&path).unwrap().into_iter().map(|text| text.text).collect();
        assert_eq!(texts, ["one\ntwo", "three"]);
        // The mark of an editor, and what Python writes for numbers.
        for (name, text) in [
            (
                "m.jsonl",
                "\u{feff}{\"text\": \"a\", \"score\": NaN}\n{\"score\": -Infinity, \"text\": \"b\", \"ids\": null}",
            ),
            ("m.json", "\u{feff}{\"text\": \"a\"}\r\n{\"text\": \"b\"}"),
            ("m.txt", "\u{feff}a\n---\nb"),
        ] {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            let read = Generated::read(&path).unwrap();
            assert_eq!((&read[0].text[..], &read[1].text[..], read.len()), ("a", "b", 2), "{name}");
        }
        for (name, text, said) in [
            ("b.jsonl", "{\"text\": 3}", "line 1: `text` is no text but a number"),
            ("c.jsonl", "[1]", "line 1: no JSON object"),
            ("d.jsonl", "{\"text\": \"x\"", "line 1: no JSON object"),
            (
                "f.jsonl",
                "{\"text\": \"x\", \"ids\": [1.5]}",
                "line 1: `ids` is no list of whole numbers",
            ),
            ("e.txt", " \n", "holds no text"),
        ] {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            let error = Generated::read(&path).unwrap_err().to_string();
            assert!(error.contains(said) && !error.contains("column"), "{name}: {error}");
        }
    }
}
