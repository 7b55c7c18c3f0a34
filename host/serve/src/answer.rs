//! Texts as clients receive them: OpenAI's shapes, and what draws the text again under `maskdiff`.

use maskdiff_config::groups;
use maskdiff_data::tokenizer::piece;
use serde_json::{Map, Value, json};

use crate::fault::without_paths;
use crate::fresh::{now, random};
use crate::job::{Step, Text};
use crate::model::Facts;
use crate::order::Reply;

/// An answer under way.
#[derive(Debug)]
pub(crate) struct Answer<'a> {
    /// The model.
    pub facts: &'a Facts,
    /// What was asked for.
    pub reply: &'a Reply,
    /// Its id.
    id: String,
    /// When it began, seconds since 1970.
    created: u64,
}

/// The parts of a text that its client was sent.
#[derive(Debug, Default)]
pub(crate) struct Spoken {
    /// The role.
    role: bool,
    /// The text in front of what is drawn.
    head: bool,
    /// In a conversation: a part that is not blank.
    begun: bool,
    /// In a conversation: blanks that are left out where nothing comes behind them.
    held: String,
}

impl Spoken {
    /// The next part of a turn, of which blanks at both ends are left out.
    fn trimmed(&mut self, part: &str, is_last: bool) -> String {
        let all = std::mem::take(&mut self.held) + part;
        let all = if self.begun { &all[..] } else { all.trim_start() };
        let kept = all.trim_end();
        self.begun |= !kept.is_empty();
        if !is_last && self.begun {
            self.held = all[kept.len()..].to_string();
        }
        kept.to_string()
    }
}

impl<'a> Answer<'a> {
    /// A new one.
    pub(crate) fn new(facts: &'a Facts, reply: &'a Reply) -> Self {
        let kind = if reply.chat { "chatcmpl" } else { "cmpl" };
        let id = format!("{kind}-{:016x}", random());
        Self { facts, reply, id, created: now() }
    }

    /// The one that has this id, or a new one that is remembered there.
    pub(crate) fn again(
        facts: &'a Facts,
        reply: &'a Reply,
        known: &mut Option<(String, u64)>,
    ) -> Self {
        match known {
            Some((id, created)) => Self { facts, reply, id: id.clone(), created: *created },
            None => {
                let new = Self::new(facts, reply);
                *known = Some((new.id.clone(), new.created));
                new
            }
        }
    }

    fn shell(&self, object: &str) -> Map<String, Value> {
        let shell = json!({
            "id": self.id, "object": object, "created": self.created, "model": self.facts.name,
        });
        shell.as_object().cloned().unwrap_or_default()
    }

    fn object(&self, chunk: bool) -> &'static str {
        match (self.reply.chat, chunk) {
            (true, true) => "chat.completion.chunk",
            (true, false) => "chat.completion",
            (false, _) => "text_completion",
        }
    }

    /// The whole answer.
    pub(crate) fn whole(&self, texts: &[Text]) -> Value {
        let mut answer = self.shell(self.object(false));
        let choices = texts.iter().enumerate().map(|(index, text)| self.choice(index, text));
        answer.insert("choices".into(), choices.collect());
        answer.insert("usage".into(), self.usage(texts));
        answer.insert("maskdiff".into(), self.about());
        Value::Object(answer)
    }

    fn choice(&self, index: usize, text: &Text) -> Value {
        let logprobs = self.logprobs(text);
        let mut choice = match self.reply.chat {
            true => json!({
                "index": index, "message": {"role": "assistant", "content": text.text.trim(), "refusal": null},
                "logprobs": logprobs, "finish_reason": text.finish,
            }),
            false => {
                let head = if self.reply.echo { &text.head[..] } else { "" };
                let shown = format!("{head}{}", text.text);
                json!({"index": index, "text": shown, "logprobs": logprobs, "finish_reason": text.finish})
            }
        };
        choice["maskdiff"] = self.of_text(text);
        choice
    }

    /// What is said of a text beyond OpenAI's words.
    fn of_text(&self, text: &Text) -> Value {
        let mut about = json!({
            "ids": text.ids, "entropy": text.entropy, "calls": text.calls, "rows": text.rows, "seconds": text.seconds,
            "batch": text.batch,
        });
        if text.approximate {
            about["approximate"] = json!(true);
        }
        if text.scored.is_none() || text.seconds > 0.0 {
            if let Some(label) = &self.reply.label {
                about["label"] = json!(label);
            }
            about["seed"] = json!(text.seed);
            about["number"] = json!(text.number);
            about["words"] = json!(self.words(text));
        }
        about
    }

    /// The words with which `maskdiff sample CHECKPOINT` draws a text again, beside its prompt.
    fn words(&self, text: &Text) -> Vec<String> {
        let mut words = vec![
            "sampling.num_samples=1".to_string(),
            format!("sampling.seed={}", text.seed),
            format!("sampling.first_number={}", text.number),
        ];
        if let Some(new) = self.reply.new_tokens.filter(|_| text.reach > 0 || text.given == 0) {
            words.push(match self.facts.blocks {
                true => format!("sampling.length={}", text.reach as i64 + new),
                false => format!("sampling.new_tokens={new}"),
            });
        }
        let label = self.reply.label.as_ref();
        words.extend(label.map(|label| format!("sampling.labels={}", json!([label]))));
        let ends = self.reply.new_tokens.is_some() || text.reach == 0 && text.given > 0;
        let fits = text.ids.len() as i64 <= self.facts.length;
        let in_one = ends && fits && self.facts.windows.is_some();
        words.extend(in_one.then(|| "sampling.semi_ar=false".to_string()));
        words.extend(self.reply.stop_at_eos.map(|on| format!("sampling.stop_at_eos={on}")));
        words.extend(self.own_words(in_one));
        words.extend(self.reply.words.iter().cloned());
        words
    }

    /// Words of the server's own command line that hold for this text: those that the request does not say otherwise, and of another
    /// sampler than the server's none of its options; of a text that is drawn in one window none of how windows move.
    fn own_words(&self, in_one: bool) -> Vec<String> {
        let key = |word: &str| word.split('=').next().unwrap_or_default().to_string();
        let mut said: Vec<String> = self.reply.words.iter().map(|word| key(word)).collect();
        let of_text = ["num_samples", "seed", "first_number"];
        said.extend(of_text.map(|key| format!("sampling.{key}")));
        if self.reply.new_tokens.is_some() {
            said.extend(["sampling.new_tokens", "sampling.length"].map(String::from));
        }
        if self.reply.stop_at_eos.is_some() {
            said.push("sampling.stop_at_eos".into());
        }
        if self.reply.label.is_some() {
            said.push("sampling.labels".into());
        } else if self.facts.by_classifier {
            let guides = ["classifier", "classifier_scale", "classifier_order"];
            said.extend(guides.map(|key| format!("sampling.{key}")));
        }
        if !self.facts.sampler(&self.reply.sampler).is_some_and(|sampler| sampler.chooses) {
            said.push("sampling.energy".into());
        }
        if in_one {
            let moves = ["semi_ar", "num_strides", "stride_length"];
            said.extend(moves.map(|key| format!("sampling.{key}")));
        }
        let other = said.iter().any(|key| key == "sampling.predictor");
        let of_host = groups::keys("sampling");
        let holds = |word: &&String| {
            let key = key(word);
            let option = key.strip_prefix("sampling.").filter(|_| other);
            // `sampling=NAME` names the options of the server's sampler.
            let is_named = other && key == "sampling";
            !said.contains(&key)
                && !is_named
                && option.is_none_or(|option| of_host.contains(&option))
        };
        let own = self.facts.own_words.iter().filter(holds);
        own.map(|word| without_paths(word, &self.facts.hidden)).collect()
    }

    /// What is said of all texts beyond OpenAI's words.
    pub(crate) fn about(&self) -> Value {
        let mut about = json!({
            "checkpoint": self.facts.checkpoint, "step": self.facts.step, "sampler": self.reply.sampler,
            "settings": self.reply.words,
        });
        if self.reply.logprobs.is_some() {
            about["likelihood"] = json!("duel:left_to_right");
        }
        about
    }

    /// Tokens, and what they cost.
    pub(crate) fn usage(&self, texts: &[Text]) -> Value {
        let each = self.reply.each.max(1);
        // A prompt counts once, however many texts are drawn behind it.
        let prompt: usize = texts.iter().step_by(each).map(|text| text.given).sum();
        let drawn = |text: &Text| text.ids.len().saturating_sub(text.given);
        let completion: usize = texts.iter().map(drawn).sum();
        let sum = |of: fn(&Text) -> f64| texts.iter().map(of).sum::<f64>();
        let seconds = texts.iter().map(|text| text.seconds).fold(0.0, f64::max);
        json!({
            "prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion,
            "maskdiff": {"calls": sum(|t| t.calls), "rows": sum(|t| t.rows), "seconds": seconds},
        })
    }

    fn logprobs(&self, text: &Text) -> Value {
        let (Some(scored), Some(wanted)) = (&text.scored, self.reply.logprobs) else {
            return Value::Null;
        };
        let tokenizer = self.facts.tokenizer.as_ref();
        let from = if self.reply.echo { 0 } else { text.reach };
        let tokens: Vec<String> =
            text.ids[from..text.kept.max(from)].iter().map(|id| piece(*id, tokenizer)).collect();
        let end = text.kept.min(scored.len());
        let scored = &scored[from.min(end)..end];
        if self.reply.chat {
            let likely = |(token, log_p): (String, f64)| json!({"bytes": token.as_bytes(), "token": token, "logprob": log_p});
            let told = tokens.into_iter().zip(scored).map(|(token, one)| {
                let top = one.top.iter().take(wanted);
                let mut told = likely((token, one.log_p));
                told["top_logprobs"] =
                    top.map(|(id, log_p)| likely((piece(*id, tokenizer), *log_p))).collect();
                told
            });
            return json!({"content": told.collect::<Vec<Value>>(), "refusal": null});
        }
        let offsets: Vec<usize> = tokens
            .iter()
            .scan(0, |at, token| Some(std::mem::replace(at, *at + token.chars().count())))
            .collect();
        let top = scored.iter().map(|one| {
            let mut all = Map::new();
            // Two tokens that read alike count as the likelier one.
            for (id, log_p) in one.top.iter().take(wanted.max(1)) {
                all.entry(piece(*id, tokenizer)).or_insert(json!(log_p));
            }
            Value::Object(all)
        });
        let top: Value = if wanted == 0 { Value::Null } else { top.collect() };
        let log_p: Vec<f64> = scored.iter().map(|one| one.log_p).collect();
        json!({"tokens": tokens, "token_logprobs": log_p, "top_logprobs": top, "text_offset": offsets})
    }

    /// A chunk of a stream with one choice.
    fn chunk(
        &self,
        index: usize,
        text: &str,
        spoken: &mut Spoken,
        end: Option<(&str, Value)>,
    ) -> Map<String, Value> {
        let mut chunk = self.shell(self.object(true));
        let (finish, logprobs) = end.unzip();
        let mut choice =
            json!({"index": index, "logprobs": logprobs, "finish_reason": finish, "text": text});
        if self.reply.chat {
            choice = json!({"index": index, "logprobs": logprobs, "finish_reason": finish, "delta": {"content": text}});
            // Clients put the parts of a message together, its role among them.
            if !std::mem::replace(&mut spoken.role, true) {
                choice["delta"]["role"] = json!("assistant");
            }
        }
        chunk.insert("choices".into(), json!([choice]));
        chunk
    }

    /// A part of a text as its client gets it: behind the prompt where that is echoed, and without blanks at the ends of a turn.
    fn part(&self, text: &str, head: Option<&str>, spoken: &mut Spoken, is_last: bool) -> String {
        let head = head.filter(|_| self.reply.echo && !spoken.head);
        spoken.head |= head.is_some();
        match self.reply.chat {
            true => spoken.trimmed(text, is_last),
            false => head.unwrap_or_default().to_string() + text,
        }
    }

    /// A step of a text.
    pub(crate) fn step(&self, step: &Step, spoken: &mut Spoken) -> Value {
        let shown = match &step.whole {
            Some(whole) => whole.clone(),
            None => self.part(&step.delta, step.head.as_deref(), spoken, false),
        };
        let mut chunk = self.chunk(step.text, &shown, spoken, None);
        let mut about = json!({"step": step.done, "steps": step.total, "masked": step.masked});
        if !step.opened.is_empty() {
            about["opened"] = json!(step.opened);
        }
        if let Some(begun) = &step.given {
            about["given"] = json!(begun.given);
            about["length"] = json!(begun.length);
        }
        chunk.insert("maskdiff".into(), about);
        Value::Object(chunk)
    }

    /// The end of a text, with the log-probabilities of all of it where they are asked for; in `diffusing` the whole text once more.
    pub(crate) fn end(
        &self,
        index: usize,
        text: &Text,
        diffusing: bool,
        spoken: &mut Spoken,
    ) -> Value {
        let rest = if diffusing { &text.text } else { &text.rest };
        let shown = self.part(rest, Some(&text.head), spoken, true);
        let end = Some((text.finish, self.logprobs(text)));
        let mut chunk = self.chunk(index, &shown, spoken, end);
        let mut about = self.about();
        if let (Some(about), Value::Object(of_text)) = (about.as_object_mut(), self.of_text(text)) {
            about.extend(of_text);
        }
        if !text.opened.is_empty() {
            about["opened"] = json!(text.opened);
        }
        if let Some(begun) = &text.begun {
            about["given"] = json!(begun.given);
            about["length"] = json!(begun.length);
        }
        chunk.insert("maskdiff".into(), about);
        Value::Object(chunk)
    }

    /// The usage of all texts, in a chunk without a choice.
    pub(crate) fn last(&self, texts: &[Text]) -> Value {
        let mut chunk = self.shell(self.object(true));
        chunk.insert("choices".into(), json!([]));
        chunk.insert("usage".into(), self.usage(texts));
        Value::Object(chunk)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// However a turn is cut into parts, they are the turn without the blanks at its ends.
    #[test]
    fn parts_of_a_turn_are_the_turn() {
        for turn in [" Ella gets  meow ", "a", "  ", "", "x \n\n", "\n a b  c"] {
            for size in 1..turn.len().max(2) {
                let mut spoken = Spoken::default();
                let letters: Vec<char> = turn.chars().collect();
                let mut told = String::new();
                for part in letters.chunks(size) {
                    told += &spoken.trimmed(&part.iter().collect::<String>(), false);
                    assert!(turn.trim().starts_with(&told));
                }
                told += &spoken.trimmed("", true);
                assert_eq!(told, turn.trim(), "{turn:?} in parts of {size}");
            }
        }
    }
}
