//! Bodies that ask for likelihoods.

use maskdiff_config::listed::DuelOrder;
use maskdiff_engine::evaluate::answers::Way;
use maskdiff_engine::evaluate::order as duel_order;
use maskdiff_plugin_api::ops::Order;
use serde_json::Value;

use super::values::no_others;
use super::{Prompt, Reader};
use crate::fault::Fault;
use crate::job::{Answers, Logits, Look, Score};
use crate::model::Facts;

/// Draws of the bound of an answer, as published tables have them.
pub(super) const SAMPLES: i64 = 128;
/// The largest number of likeliest tokens of a position.
const LIKELIEST: i64 = 1000;
/// Bytes of an answer with logits, and of all of them that are not sent yet, at most.
pub(crate) const TABLE: usize = 1 << 30;

/// Bytes of the logits of texts, in float32; none where a computer cannot count them.
pub(crate) fn logits_bytes(ids: &[Vec<i64>], facts: &Facts) -> Option<usize> {
    let length = ids.first().map_or(0, Vec::len);
    let sizes = [ids.len(), length, facts.tokenizer.vocab_size() as usize, 4];
    sizes.iter().try_fold(1usize, |all, n| all.checked_mul(*n))
}

impl Reader<'_> {
    /// `/v1/loglikelihood`.
    pub(crate) fn likelihood(&self) -> Result<Answers, Fault> {
        self.check_model()?;
        self.check_scores()?;
        let own =
            ["likelihood", "model", "order", "requests", "samples", "seed", "tokens_per_step"];
        self.check_keys(&own)?;
        let requests = match self.body.get("requests") {
            Some(Value::Array(all)) if !all.is_empty() => all,
            _ => {
                return Err(Fault::of_key(
                    "requests",
                    "`requests` is a list of {\"context\": …, \"continuation\": …}, each a text or a list of token ids",
                ));
            }
        };
        self.check_count("requests", requests.len())?;
        let pairs = requests.iter().zip(0..).map(|(request, number)| self.pair(request, number));
        let pairs = pairs.collect::<Result<_, _>>()?;
        let (seed, way) = (self.seed()?.unwrap_or(1), self.way()?);
        if self.facts.blocks && way != Way::Duel(Order::LeftToRight, 1) {
            let said = "this model reads its texts block after block, and one likelihood alone is known of an answer: set `likelihood` to `duel`, `order` to `left_to_right` and `tokens_per_step` to 1, or leave the last out; `maskdiff eval` measures the bound of whole texts";
            return Err(Fault::of_key("likelihood", said));
        }
        Ok(Answers { pairs, way, seed })
    }

    /// `/v1/likeliest`.
    pub(crate) fn likeliest(&self) -> Result<Look, Fault> {
        self.check_model()?;
        self.check_law()?;
        self.check_keys(&["guidance_scale", "label", "model", "position", "tokens", "top"])?;
        let tokens = match self.body.get("tokens") {
            Some(Value::Array(all)) if !all.is_empty() => self.holes(all, "tokens")?,
            _ => {
                let said = "`tokens` is a list of token ids, in which null is a hole";
                return Err(Fault::of_key("tokens", said));
            }
        };
        self.check_most(tokens.len(), self.facts.longest())?;
        let Some(place) = self.whole("position", 0, tokens.len() as i64 - 1)? else {
            let said = "`position` is the place in `tokens` that is asked about, from 0";
            return Err(Fault::of_key("position", said));
        };
        let top = self.whole("top", 1, LIKELIEST)?.unwrap_or(5) as usize;
        let label = self.read_label()?;
        Ok(Look { tokens, place: place as usize, top, label })
    }

    /// `/v1/logits`.
    pub(crate) fn logits(&self) -> Result<Logits, Fault> {
        self.check_model()?;
        if self.facts.blocks {
            let said =
                "this model reads its texts block after block: there are no logits of a whole text";
            return Err(Fault::wrong(said));
        }
        self.check_keys(&["label", "law", "model", "t", "tokens"])?;
        let law = self.flag("law")?;
        let wrong = || {
            Fault::of_key(
                "tokens",
                "`tokens` is a list of texts of one length, each a list of token ids in which the mask or null is a hole",
            )
        };
        let texts = match self.body.get("tokens") {
            Some(Value::Array(texts)) if !texts.is_empty() => texts,
            _ => return Err(wrong()),
        };
        self.check_count("tokens", texts.len())?;
        let mask = self.facts.tokenizer.mask_id();
        let id = |value: &Value| match value.as_i64() {
            Some(id) if id == mask => Ok(mask),
            _ => Ok(self.holes(std::slice::from_ref(value), "tokens")?[0].unwrap_or(mask)),
        };
        let text = |text: &Value| match text {
            Value::Array(all) if !all.is_empty() => all.iter().map(id).collect(),
            _ => Err(wrong()),
        };
        let ids: Vec<Vec<i64>> = texts.iter().map(text).collect::<Result<_, Fault>>()?;
        let length = ids[0].len();
        if ids.iter().any(|text| text.len() != length) {
            return Err(wrong());
        }
        self.check_length(length)?;
        if logits_bytes(&ids, self.facts).is_none_or(|bytes| bytes > TABLE) {
            return Err(Fault::too_much(
                "these logits take more than 1 GiB: ask for fewer texts at a time",
            ));
        }
        let (label, _) = self.read_label()?;
        Ok(Logits { t: self.times(ids.len())?, ids, law, label })
    }

    /// `t`, one for all texts or one for each.
    fn times(&self, texts: usize) -> Result<Vec<f64>, Fault> {
        let time = |value: &Value| value.as_f64().filter(|t| (0.0..=1.0).contains(t));
        let times: Option<Vec<f64>> = match self.body.get("t") {
            Some(Value::Array(all)) if all.len() == texts => all.iter().map(time).collect(),
            Some(one) => time(one).map(|t| vec![t; texts]),
            None => None,
        };
        times.ok_or_else(|| {
            let said = "`t` is a time from 0 (data) to 1 (noise), or a list with one for each text";
            Fault::of_key("t", said)
        })
    }

    /// `likelihood`, `samples`, `order`, `tokens_per_step`.
    fn way(&self) -> Result<Way, Fault> {
        let samples = self.whole("samples", 1, 4096)?;
        let tokens = self.whole("tokens_per_step", 1, 1 << 20)?;
        let order = match self.body.get("order").filter(|said| !said.is_null()) {
            None => None,
            Some(said) => match said.as_str().and_then(DuelOrder::named) {
                Some(order) => Some(duel_order(order)),
                None => {
                    let said = "`order` is `margin`, `confidence`, `entropy` or `left_to_right`";
                    return Err(Fault::of_key("order", said));
                }
            },
        };
        let duel = self.facts.duel;
        let by_duel = match self.body.get("likelihood") {
            Some(Value::String(word)) if word == "bound" => false,
            Some(Value::String(word)) if word == "duel" => true,
            None | Some(Value::Null) => self.facts.by_duel,
            Some(_) => {
                let said =
                    "`likelihood` is `bound`, which draws, or `duel`, which is exact for its order";
                return Err(Fault::of_key("likelihood", said));
            }
        };
        let (own, other, of_other) = match by_duel {
            true => ("duel", "bound", &["samples"][..]),
            false => ("bound", "duel", &["order", "tokens_per_step"][..]),
        };
        let is_said = |key: &&&str| self.body.get(**key).is_some_and(|said| !said.is_null());
        if let Some(key) = of_other.iter().find(is_said) {
            return Err(Fault::of_key(
                key,
                format!(
                    "`{key}` is of `\"likelihood\": \"{other}\"`, and this is `{own}`: leave it out, or set `likelihood`"
                ),
            ));
        }
        Ok(match by_duel {
            true => Way::Duel(order.unwrap_or(duel.0), tokens.unwrap_or(duel.1)),
            false => Way::Bound(samples.unwrap_or(SAMPLES)),
        })
    }

    /// A context and its continuation, the `number`th of the request.
    fn pair(&self, request: &Value, number: usize) -> Result<(Vec<i64>, usize), Fault> {
        let place = format!("requests[{number}]");
        match request {
            Value::Object(all) => no_others(all, &["context", "continuation"], Some(&place))?,
            _ => {
                let said =
                    format!("`{place}` is no object {{\"context\": …, \"continuation\": …}}");
                return Err(Fault::of_key("requests", said));
            }
        }
        let tokens = |key: &str| match &request[key] {
            Value::Null if key == "context" => Ok(Vec::new()),
            Value::Array(ids) => self.ids(ids, key),
            Value::String(text) => self.encode_scored(text, key),
            _ => Err(Fault::of_key(key, format!("`{key}` is a text or a list of token ids"))),
        };
        let (mut ids, continuation) = (tokens("context")?, tokens("continuation")?);
        if continuation.is_empty() {
            return Err(Fault::of_key(
                "continuation",
                "`continuation` is empty: there is nothing to score",
            ));
        }
        let given = ids.len();
        ids.extend(continuation);
        self.check_length(ids.len())?;
        Ok((ids, given))
    }

    /// Texts whose tokens are scored as they stand.
    pub(super) fn score(
        &self,
        prompts: &[Prompt],
        logprobs: usize,
        tokens: Option<i64>,
    ) -> Result<Score, Fault> {
        self.check_law()?;
        if self.whole("n", 1, 1 << 20)?.is_some_and(|n| n != 1) {
            let said = "a prompt that is scored has one score: leave `n` out";
            return Err(Fault::of_key("n", said));
        }
        // They have no effect, and a wrong one is a mistake all the same.
        self.seed()?;
        self.number()?;
        self.stops()?;
        self.shown()?;
        self.some_flag("stop_at_eos")?;
        if self.body.get("cfg_scale").and_then(Value::as_f64).is_some_and(|scale| scale != 0.0) {
            let said = "`cfg_scale` guides what is drawn, and a prompt that is scored has the model's own law: leave it out";
            return Err(Fault::of_key("cfg_scale", said));
        }
        let ids = |prompt: &Prompt| -> Result<Vec<i64>, Fault> {
            let ids = match prompt {
                Prompt::Tokens(ids) => ids.clone(),
                Prompt::Text(text) => self.encode_scored(text, "prompt")?,
                Prompt::Free => Vec::new(),
                Prompt::Holes(_) => {
                    let said = "a prompt with holes has no score: fill them, or leave `echo` out";
                    return Err(Fault::of_key("prompt", said));
                }
            };
            self.check_length(ids.len())?;
            Ok(ids)
        };
        let texts = prompts.iter().map(ids).collect::<Result<_, _>>()?;
        let label = self.read_label()?;
        Ok(Score { texts, logprobs, label, next: tokens == Some(1) })
    }
}
