//! Bodies of requests as work for the model.

mod scored;
mod texts;
mod values;

use maskdiff_data::chat::{ANSWER, ends};
use maskdiff_engine::prompt::{Ask, Given};
use serde_json::{Map, Value, json};

use crate::Limits;
use crate::fault::Fault;
use crate::fresh::random;
use crate::job::{Draw, Order, Shown, Work};
use crate::keys;
use crate::model::Facts;

use values::SEEDS;

pub(crate) use scored::{TABLE, logits_bytes};

/// What a client is answered with.
#[derive(Debug, Clone)]
pub(crate) struct Reply {
    /// Whether it is a turn of a conversation.
    pub chat: bool,
    /// Whether the prompt stands in front of the text.
    pub echo: bool,
    /// Whether events are streamed.
    pub stream: bool,
    /// Whether the last event of a stream has the usage alone.
    pub usage_event: bool,
    /// Texts of each prompt.
    pub each: usize,
    /// The sampler.
    pub sampler: String,
    /// Its options, `KEY=VALUE`.
    pub words: Vec<String>,
    /// The class of the texts.
    pub label: Option<String>,
    /// Tokens behind each prompt.
    pub new_tokens: Option<i64>,
    /// Whether texts end at EOS, where that is said.
    pub stop_at_eos: Option<bool>,
    /// Log-probabilities are told.
    pub logprobs: Option<usize>,
}

/// The largest number of likeliest tokens in an answer.
const TOP: i64 = 20;
/// Keys of both endpoints that draw.
const DRAWS: [&str; 11] = [
    "denoising",
    "diffusing",
    "label",
    "max_tokens",
    "n",
    "number",
    "seed",
    "stop",
    "stop_at_eos",
    "stream",
    "stream_options",
];

/// A body that is read.
pub(crate) struct Reader<'a> {
    /// The object.
    pub body: &'a Map<String, Value>,
    /// The model.
    pub facts: &'a Facts,
    /// What the server keeps to.
    pub limits: &'a Limits,
}

impl Reader<'_> {
    /// `/v1/completions`.
    pub(crate) fn completion(&self) -> Result<(Work, Reply), Fault> {
        self.check_model()?;
        let own = [&DRAWS[..], &["echo", "logprobs", "prompt"]].concat();
        let echo = self.flag("echo")?;
        let logprobs = self.whole("logprobs", 0, TOP)?.map(|k| k as usize);
        let max_tokens = self.max_tokens("max_tokens")?;
        let prompts = self.prompts()?;
        if let (true, Some(logprobs), Some(0 | 1)) = (echo, logprobs, max_tokens)
            && !prompts.iter().any(|prompt| matches!(prompt, Prompt::Free))
        {
            keys::unused(self.body, &own, self.facts)?;
            let reply = self.reply(Some(logprobs), (self.facts.predictor.clone(), Vec::new()))?;
            return Ok((Work::Score(self.score(&prompts, logprobs, max_tokens)?), reply));
        }
        if max_tokens == Some(0) {
            return Err(nothing_to_draw(echo, logprobs.is_some()));
        }
        let chosen = keys::sampler(self.body, &own, self.facts)?;
        let given = prompts.iter().map(|prompt| self.given(prompt)).collect::<Result<_, _>>()?;
        let draw = self.draw(&chosen, given, max_tokens, logprobs)?;
        let reply = self.reply(logprobs, (chosen.sampler.name.clone(), chosen.words))?;
        let reply = told(reply, &draw);
        Ok((Work::Draw(draw), reply))
    }

    /// `/v1/chat/completions`.
    pub(crate) fn chat(&self) -> Result<(Work, Reply), Fault> {
        self.check_model()?;
        let Some(template) = &self.facts.template else {
            return Err(Fault::wrong(
                "this checkpoint has no chat template: use `/v1/completions`, or start the server with `data.chat_template=FILE`",
            ));
        };
        let own = [&DRAWS[..], &["logprobs", "max_completion_tokens", "messages", "top_logprobs"]]
            .concat();
        let logprobs = match (self.flag("logprobs")?, self.whole("top_logprobs", 0, TOP)?) {
            (true, top) => Some(top.unwrap_or(0) as usize),
            (false, None | Some(0)) => None,
            (false, Some(_)) => {
                let said = "`top_logprobs` is the number of likeliest tokens in the answer, and needs `logprobs=true`: set it, or leave both out";
                return Err(Fault::of_key("top_logprobs", said));
            }
        };
        let text = template.render(&self.messages()?, true);
        let text = text.map_err(|e| Fault::of_error(&e, &self.facts.hidden))?;
        let prompt = match self.facts.tokenizer.encode(&text) {
            Ok(ids) => Prompt::Tokens(ids.into_iter().map(i64::from).collect()),
            Err(e) => return Err(Fault::of_error(&e, &self.facts.hidden)),
        };
        let chosen = keys::sampler(self.body, &own, self.facts)?;
        let given = self.given(&prompt)?;
        let room = self.facts.room - (self.facts.lead + given.reach()) as i64;
        let said = self.max_tokens("max_completion_tokens")?.or(self.max_tokens("max_tokens")?);
        let max_tokens = said.or(self.facts.new_tokens).unwrap_or(ANSWER.min(room));
        if max_tokens == 0 {
            return Err(Fault::of_key("max_tokens", "`max_tokens` is at least 1"));
        }
        let mut draw = self.draw(&chosen, vec![given], Some(max_tokens), logprobs)?;
        draw.ends = ends(self.facts.tokenizer.as_ref());
        draw.stop_at_eos = draw.stop_at_eos.or(Some(true));
        let words = (chosen.sampler.name.clone(), chosen.words);
        let reply = Reply { chat: true, ..told(self.reply(logprobs, words)?, &draw) };
        Ok((Work::Draw(draw), reply))
    }

    /// Tokens that are drawn of a text: its holes, what was asked for, or all that the model has room for.
    fn tokens_of(&self, given: &Given, max_tokens: Option<i64>) -> i64 {
        let known = (self.facts.lead + given.count()) as i64;
        match (given.whole(), max_tokens) {
            (Some(all), _) => (all - given.count()) as i64,
            (None, Some(tokens)) => tokens,
            (None, None) => (self.facts.longest() - known).max(0),
        }
    }

    /// Texts to draw.
    fn draw(
        &self,
        chosen: &keys::Chosen<'_>,
        mut given: Vec<Given>,
        max_tokens: Option<i64>,
        logprobs: Option<usize>,
    ) -> Result<Draw, Fault> {
        if logprobs.is_some() {
            self.check_law()?;
        }
        let each = self.whole("n", 1, 1 << 20)?.unwrap_or(1) as u64;
        self.check_count("n", given.len().saturating_mul(each as usize))?;
        let max_tokens = max_tokens.or(self.facts.new_tokens);
        for given in given.iter().filter(|given| !given.is_whole()) {
            let (reach, tokens) = (self.facts.lead + given.reach(), max_tokens.unwrap_or(1));
            if reach as i64 + tokens > self.facts.room {
                return Err(Fault::of_key(
                    "max_tokens",
                    format!(
                        "the prompt has {reach} tokens, and {tokens} behind it are more than the {} of this model: at most {}",
                        self.facts.room,
                        (self.facts.room - reach as i64).max(0)
                    ),
                ));
            }
        }
        if logprobs.is_some() {
            self.check_windows(&given, max_tokens)?;
        }
        let drawn = given.iter().map(|given| self.tokens_of(given, max_tokens)).max();
        self.check_tokens("max_tokens", drawn.unwrap_or(0))?;
        let seed = match self.seed()? {
            Some(seed) => seed,
            None => random() % SEEDS,
        };
        let first = self.number()?.unwrap_or(0);
        let count = given.len() as u64;
        let label = self.labelled()?.0;
        self.check_classifier(label, logprobs)?;
        given.iter_mut().for_each(|given| given.label = label);
        // The texts of a prompt stand together, and are numbered as `maskdiff sample` draws them: a round of all prompts after the other.
        let orders = given.into_iter().zip(0..).flat_map(|(given, place)| {
            (0..each).map(move |round| Order {
                given: given.clone(),
                seed,
                number: first + round * count + place,
            })
        });
        Ok(Draw {
            words: with_label(chosen.words.clone(), self.facts, label),
            revises: chosen.sampler.revises,
            orders: orders.collect(),
            new_tokens: max_tokens,
            stop_at_eos: self.some_flag("stop_at_eos")?,
            stops: self.stops()?,
            ends: Vec::new(),
            logprobs,
            echo: self.flag("echo")?,
            shown: self.shown()?,
        })
    }

    fn reply(
        &self,
        logprobs: Option<usize>,
        chosen: (String, Vec<String>),
    ) -> Result<Reply, Fault> {
        let (sampler, words) = chosen;
        Ok(Reply {
            chat: false,
            echo: self.flag("echo")?,
            stream: self.flag("stream")?,
            usage_event: self.usage_event()?,
            each: self.whole("n", 1, 1 << 20)?.unwrap_or(1) as usize,
            sampler,
            words,
            label: self.labelled()?.0.and_then(|label| self.facts.label_name(label).cloned()),
            new_tokens: None,
            stop_at_eos: None,
            logprobs,
        })
    }

    fn shown(&self) -> Result<Option<Shown>, Fault> {
        let (stream, denoising) = (self.flag("stream")?, self.flag("denoising")?);
        let diffusing = self.flag("diffusing")?;
        Ok(match (stream, denoising, diffusing) {
            (false, false, false) => None,
            (false, ..) => {
                return Err(Fault::of_key(
                    "stream",
                    "steps are shown in a stream: set `stream` to true",
                ));
            }
            (_, true, true) => {
                let said =
                    "`denoising` and `diffusing` are two ways to show the same: leave one out";
                return Err(Fault::of_key("diffusing", said));
            }
            (_, true, false) => Some(Shown::Denoising),
            (_, false, true) => Some(Shown::Diffusing),
            (true, false, false) => Some(Shown::Text),
        })
    }

    /// `prompt`: nothing, a text, several, token ids, or several lists of them.
    fn prompts(&self) -> Result<Vec<Prompt>, Fault> {
        let wrong = || {
            let said = "`prompt` is a text, a list of token ids, or a list of either; in a list of ids null is a hole";
            Fault::of_key("prompt", said)
        };
        let holed = |ids: &[Value]| ids.iter().any(Value::is_null);
        let one = |value: &Value| match value {
            Value::Array(ids) if holed(ids) => self.holes(ids, "prompt").map(Prompt::Holes),
            Value::String(text) if text.is_empty() => Ok(Prompt::Free),
            Value::String(text) => Ok(Prompt::Text(text.clone())),
            Value::Array(ids) if ids.is_empty() => Ok(Prompt::Free),
            Value::Array(ids) => self.ids(ids, "prompt").map(Prompt::Tokens),
            _ => Err(wrong()),
        };
        match self.body.get("prompt") {
            None | Some(Value::Null) => Ok(vec![Prompt::Free]),
            Some(Value::Array(all))
                if all.first().is_some_and(|first| !first.is_number() && !first.is_null()) =>
            {
                self.check_count("prompt", all.len())?;
                all.iter().map(one).collect()
            }
            Some(value) => Ok(vec![one(value)?]),
        }
    }

    fn given(&self, prompt: &Prompt) -> Result<Given, Fault> {
        let tokenizer = self.facts.tokenizer.as_ref();
        let lead = self.facts.lead as i64;
        // Holes may be in any window, and a prompt stands in the first one.
        let (room, longest) = (self.facts.room - lead, self.facts.longest() - lead);
        let given = match prompt {
            Prompt::Free => return Ok(Given::default()),
            Prompt::Tokens(ids) => Given::of_tokens(ids, tokenizer, room),
            Prompt::Holes(tokens) => Given::of_holes(tokens, tokenizer, longest),
            Prompt::Text(text) if text.contains("[MASK]") || text.contains("[MASK:") => {
                Given::new(&Ask::Template(text.clone()), tokenizer, longest)
            }
            Prompt::Text(text) => Given::new(&Ask::Prompt(text.clone()), tokenizer, room),
        };
        given.map_err(|e| Fault {
            key: Some("prompt".into()),
            ..Fault::of_error(&e, &self.facts.hidden)
        })
    }
}

/// Why a request for no tokens is refused: only prompts are scored.
fn nothing_to_draw(echo: bool, logprobs: bool) -> Fault {
    let said = |what: &str| {
        format!("`max_tokens` is 0, which scores the prompt alone: set {what}, or ask for a token")
    };
    match (echo, logprobs) {
        (false, false) => {
            Fault::of_key("max_tokens", said("`echo` to true and `logprobs` to a number"))
        }
        (false, true) => Fault::of_key("max_tokens", said("`echo` to true")),
        (true, false) => Fault::of_key("max_tokens", said("`logprobs` to a number")),
        (true, true) => Fault::of_key(
            "prompt",
            "an empty prompt has no tokens to score: leave it out, or ask for a token with `max_tokens`",
        ),
    }
}

/// A reply that tells how to draw its texts again.
fn told(reply: Reply, draw: &Draw) -> Reply {
    Reply { new_tokens: draw.new_tokens, stop_at_eos: draw.stop_at_eos, ..reply }
}

/// Words of a sampler whose texts have classes: which, each text says itself, and texts of several are drawn together.
fn with_label(mut words: Vec<String>, facts: &Facts, label: Option<i64>) -> Vec<String> {
    let any = facts.labels.first().filter(|_| label.is_some());
    words.extend(any.map(|any| format!("sampling.labels={}", json!([any]))));
    words
}

/// What is given of a text.
#[derive(Debug, Clone, PartialEq)]
enum Prompt {
    /// Nothing.
    Free,
    /// A text, which may have holes.
    Text(String),
    /// Tokens.
    Tokens(Vec<i64>),
    /// Tokens of a whole text, of which those that are none are to be drawn.
    Holes(Vec<Option<i64>>),
}

#[cfg(test)]
#[path = "order/tests.rs"]
mod tests;
