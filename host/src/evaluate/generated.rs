//! Generative perplexity: how likely a judge finds generated text, under a named protocol, and how varied the text is.

use std::path::Path;

use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::judge::Judge;
use super::mauve::{self, Mauve};
use super::protocol::{Protocol, Window, tidied};
use super::{diversity, summarize};
use crate::error::{Error, Result};

/// A generated text.
#[derive(Debug, Clone, Deserialize)]
pub struct Generated {
    /// The text.
    pub text: String,
    /// The tokens that it was drawn as, where they are known.
    pub ids: Option<Vec<i64>>,
}

impl Generated {
    /// The texts of a file: of a `.jsonl` the objects of its lines that have a `text`, as `maskdiff sample` writes them; of
    /// any other what stands between lines `---`.
    pub fn read(path: &Path) -> Result<Vec<Self>> {
        let text = std::fs::read_to_string(path).map_err(|e| Error::io("read", path, &e))?;
        let texts = if path.extension().is_some_and(|extension| extension == "jsonl") {
            Self::lines(&text, path)?
        } else {
            let parts = text.split("\n---\n").map(str::trim).filter(|part| !part.is_empty());
            parts.map(|part| Self { text: part.to_string(), ids: None }).collect()
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
            let wrong = |e: serde_json::Error| {
                let hint =
                    r#"each line is an object with a `text`, as `{"text": "…", "ids": […]}`"#;
                Error::data(format!("`{}`, line {}: {e}", path.display(), i + 1), hint)
            };
            let value: serde_json::Value = serde_json::from_str(line).map_err(wrong)?;
            // What else is printed beside the texts, as their scores.
            if !value.is_object() || value.get("text").is_some() {
                texts.push(serde_json::from_value(value).map_err(wrong)?);
            }
        }
        Ok(texts)
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
            "generative perplexity {:.4} ({:.4} ± {:.4} nats per token) by `{}`, protocol `{}`: {} tokens of {} texts",
            self.perplexity,
            self.nats_per_token,
            self.standard_error,
            judge.name,
            plan.protocol.name,
            self.tokens,
            self.samples,
        );
        if self.left_out > 0 {
            words += &format!(" ({} left out)", self.left_out);
        }
        words += &format!("; entropy {:.4} nats", self.entropy);
        if let Some(distinct) = self.distinct_4 {
            words += &format!(", distinct 4-grams {distinct:.4}");
        }
        if let Some(mauve) = self.mauve {
            words += &format!(", MAUVE {mauve:.4}");
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
    let kept = plan.protocol.kept(tokens.len(), plan.batch);
    let cut = |tokens: &[i64]| match plan.length.filter(|_| plan.protocol.cut) {
        Some(length) => tokens[..tokens.len().min(length)].to_vec(),
        None => tokens.to_vec(),
    };
    let scored: Vec<Vec<i64>> = tokens.iter().map(|tokens| cut(tokens)).collect();
    let longest = scored.iter().map(Vec::len).max().unwrap_or(0);
    let mut windows: Vec<(usize, Window)> = Vec::new();
    for (number, text) in scored.into_iter().take(kept).enumerate() {
        let text = plan.protocol.text(text, longest, judge.eos);
        let parts = plan.protocol.windows(&text, judge.length(), !plan.retokenize, judge.eos);
        windows.extend(parts.into_iter().map(|window| (number, window)));
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
            "they are empty, or one token long",
        ));
    }
    let mean = summarize(&sums, &counts, 1)?;
    // The tokens as they were drawn say more of variety than those of another tokenizer.
    let drawn: Vec<Vec<i64>> =
        texts.iter().zip(tokens).map(|(text, own)| text.ids.clone().unwrap_or(own)).collect();
    let mauve = plan.references.as_ref().map(|people| apart(texts, people, judge, plan));
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
    let hint = if plan.retokenize {
        "`eval.gen_ppl.protocol=pooled` takes windows of the judge's own length"
    } else {
        "`eval.gen_ppl.retokenize=true` scores long texts in windows"
    };
    let message =
        format!("the judge `{name}` sees {length} tokens at once, and {longest} are asked for");
    Err(Error::config(message, hint))
}

/// How far the texts are from texts by people.
fn apart(texts: &[Generated], people: &[String], judge: &Judge, plan: &Plan) -> Result<Mauve> {
    let generated: Vec<&str> = texts.iter().map(|text| &text.text[..]).collect();
    let people: Vec<&str> = people.iter().map(String::as_str).collect();
    let states = [generated, people].map(|texts| states(&texts, judge, plan.batch));
    let [generated, people] = states;
    Ok(mauve::mauve(&generated?, &people?, plan.seed))
}

/// The judge's state at the end of each text, `[N, D]`; a text is cut at what the judge sees at once.
fn states(texts: &[&str], judge: &Judge, batch: usize) -> Result<Tensor> {
    let ids = |text: &&str| -> Result<Vec<i64>> {
        let ids = judge.tokenizer.encode(text)?.into_iter().map(i64::from);
        let ids: Vec<i64> = ids.take(judge.length() as usize).collect();
        Ok(if ids.is_empty() { vec![judge.eos] } else { ids })
    };
    let ids: Vec<Vec<i64>> = texts.iter().map(ids).collect::<Result<_>>()?;
    let parts = ids.chunks(batch).map(|part| {
        let part: Vec<&[i64]> = part.iter().map(Vec::as_slice).collect();
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
        std::fs::write(&path, "one\ntwo\n\n---\n\nthree\n").unwrap();
        let texts: Vec<String> =
            Generated::read(&path).unwrap().into_iter().map(|text| text.text).collect();
        assert_eq!(texts, ["one\ntwo", "three"]);
        for (name, text, said) in [
            ("b.jsonl", "{\"text\": 3}", "line 1"),
            ("c.jsonl", "[1]", "line 1"),
            ("d.jsonl", "{\"text\": \"x\"", "line 1"),
            ("e.txt", " \n", "holds no text"),
        ] {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            let error = Generated::read(&path).unwrap_err().to_string();
            assert!(error.contains(said), "{name}: {error}");
        }
    }
}
