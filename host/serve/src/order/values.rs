//! Single values of a body, and what they must keep to.

use maskdiff_base::text::nearest;
use maskdiff_engine::prompt::Given;
use serde_json::{Map, Value};

use super::Reader;
use crate::fault::Fault;

/// Seeds are below this, so that every program that reads JSON keeps them.
pub(super) const SEEDS: u64 = 1 << 53;
/// Numbers of texts are below this.
const NUMBERS: i64 = 1 << 40;

/// How strongly a class guides.
const SCALE: &str = "guidance_scale";
/// Classes that a refusal names.
const SHOWN: usize = 20;

/// Whether an object has no keys but these; `place` is where it stands in the body, if it is not all of that.
pub(super) fn no_others(
    object: &Map<String, Value>,
    own: &[&str],
    place: Option<&str>,
) -> Result<(), Fault> {
    let Some(key) = object.keys().find(|key| !own.contains(&key.as_str())) else {
        return Ok(());
    };
    let hint = match nearest(key, own) {
        Some(near) => format!("did you mean `{near}`?"),
        None => format!("those that are: {}", own.join(", ")),
    };
    let shown: String = key.chars().take(60).collect();
    let place = place.map(|place| format!(" in `{place}`")).unwrap_or_default();
    let mut fault = Fault::of_key(key, format!("unknown key `{shown}`{place}; {hint}"));
    fault.code = "unknown_key";
    Err(fault)
}

impl Reader<'_> {
    /// Whether there are no keys but these.
    pub(crate) fn check_keys(&self, own: &[&str]) -> Result<(), Fault> {
        no_others(self.body, own, None)
    }

    pub(super) fn encode(&self, text: &str) -> Result<Vec<i64>, Fault> {
        let ids = self.facts.tokenizer.encode(text);
        let ids = ids.map_err(|e| Fault::of_error(&e, &self.facts.hidden))?;
        Ok(ids.into_iter().map(i64::from).collect())
    }

    pub(super) fn ids(&self, all: &[Value], key: &str) -> Result<Vec<i64>, Fault> {
        let tokenizer = &self.facts.tokenizer;
        let id = |value: &Value| {
            let id = value.as_i64();
            id.filter(|id| tokenizer.has(*id) && *id != tokenizer.mask_id()).ok_or_else(|| {
                let shown: String = value.to_string().chars().take(40).collect();
                Fault::of_key(
                    key,
                    format!("`{key}` holds `{shown}`, which is no token of this model"),
                )
            })
        };
        all.iter().map(id).collect()
    }

    /// A text to score: each of its tokens is one of the vocabulary, and none the mask.
    pub(super) fn encode_scored(&self, text: &str, key: &str) -> Result<Vec<i64>, Fault> {
        let tokenizer = self.facts.tokenizer.as_ref();
        let unknown = tokenizer.unknown().map(i64::from);
        let shown: String = text.chars().take(60).collect();
        let has_hole = text.contains("[MASK]") || text.contains("[MASK:");
        let ids = if has_hole { Vec::new() } else { self.encode(text)? };
        if has_hole || ids.contains(&tokenizer.mask_id()) {
            let said =
                format!("`{key}` is scored as it stands, and `{shown}` holds the mask: fill it");
            return Err(Fault::of_key(key, said));
        }
        match unknown.filter(|id| ids.contains(id)) {
            Some(id) => {
                let token = tokenizer.decode(&[id]);
                let said = format!(
                    "a part of `{shown}` is unknown to the tokenizer (`{token}`): its likelihood would be that of another text"
                );
                Err(Fault::of_key(key, said))
            }
            None => Ok(ids),
        }
    }

    /// Tokens of a text, in which null is a hole.
    pub(super) fn holes(&self, all: &[Value], key: &str) -> Result<Vec<Option<i64>>, Fault> {
        let one = |value: &Value| match value {
            Value::Null => Ok(None),
            value => Ok(self.ids(std::slice::from_ref(value), key)?.pop()),
        };
        all.iter().map(one).collect()
    }

    pub(crate) fn check_model(&self) -> Result<(), Fault> {
        match self.body.get("model") {
            None | Some(Value::Null) => Ok(()),
            Some(Value::String(name)) => self.facts.is_named(name),
            Some(other) => self.facts.is_named(&other.to_string()),
        }
    }

    /// The class of the texts, and how strongly it guides their laws.
    pub(super) fn labelled(&self) -> Result<(Option<i64>, f64), Fault> {
        let facts = self.facts;
        let label = match self.body.get("label") {
            None | Some(Value::Null) => facts.label,
            Some(Value::String(name)) => Some(self.class(name)?),
            // Classes of a corpus may be numbers, or true and false.
            Some(value @ (Value::Number(_) | Value::Bool(_))) => {
                Some(self.class(&value.to_string())?)
            }
            Some(_) => return Err(Fault::of_key("label", "`label` is the name of a class")),
        };
        let scale = match self.body.get(SCALE) {
            None | Some(Value::Null) => return Ok((label, facts.guidance)),
            Some(said) => said.as_f64(),
        };
        let refused = |said: &str| Err(Fault::of_key(SCALE, format!("`{SCALE}` {said}")));
        match scale {
            None => refused(
                "is a number: 1 is the law of the label, and more is further away from that without one",
            ),
            Some(scale) if scale == 1.0 => Ok((label, scale)),
            Some(_) if facts.labels.is_empty() => {
                refused("guides by a label, and this model was trained without: leave it out")
            }
            Some(_) if facts.by_classifier => refused(
                "guides by labels of the network, and here a classifier guides: set `classifier_scale`",
            ),
            Some(_) if label.is_none() => {
                refused(&format!("guides by a label: name one as `label`, of {}", self.classes()))
            }
            Some(_) if !facts.guides => refused(
                "guides away from the law without a label, and that was not trained (`training.label_dropout=0`): leave it out",
            ),
            Some(scale) if !(0.0..=1e6).contains(&scale) => refused("must lie in [0, 1e6]"),
            Some(scale) => Ok((label, scale)),
        }
    }

    /// The same of texts that are read and not drawn, where a classifier says nothing.
    pub(super) fn read_label(&self) -> Result<(Option<i64>, f64), Fault> {
        if !self.facts.by_classifier {
            return self.labelled();
        }
        let named = ["label", SCALE]
            .into_iter()
            .find(|key| self.body.get(*key).is_some_and(|value| !value.is_null()));
        match named {
            Some(key) => Err(Fault::of_key(
                key,
                format!(
                    "`{key}`: a classifier guides texts that are drawn here, and the network reads no labels: leave it out"
                ),
            )),
            None => Ok((None, 1.0)),
        }
    }

    /// Refuses words about a classifier that does not guide these texts, and what it leaves unknown.
    pub(super) fn check_classifier(
        &self,
        label: Option<i64>,
        logprobs: Option<usize>,
    ) -> Result<(), Fault> {
        let facts = self.facts;
        let said = |key: &&str| self.body.get(*key).is_some_and(|value| !value.is_null());
        if let Some(key) = ["classifier_scale", "classifier_order"].iter().find(|key| said(key)) {
            if !facts.by_classifier {
                let why = "no classifier guides here: the server is started with `sampling.classifier=CHECKPOINT` where one does";
                return Err(Fault::of_key(key, format!("`{key}`: {why}")));
            }
            if label.is_none() {
                let names = self.classes();
                return Err(Fault::of_key(
                    key,
                    format!("`{key}` guides towards a label: name one as `label`, of {names}"),
                ));
            }
        }
        if facts.by_classifier && label.is_some() && logprobs.is_some() {
            return Err(Fault::of_key(
                "logprobs",
                "`logprobs` are those of the network, and a classifier guides this text away from them: leave one of both out",
            ));
        }
        Ok(())
    }

    fn class(&self, name: &str) -> Result<i64, Fault> {
        let labels = &self.facts.labels;
        if labels.is_empty() {
            let said = "this model was trained without labels: leave `label` out";
            return Err(Fault::of_key("label", said));
        }
        labels.iter().position(|known| known == name).map(|at| at as i64).ok_or_else(|| {
            let known: Vec<&str> = labels.iter().map(String::as_str).collect();
            let hint = match nearest(name, &known) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("labels: {}", self.classes()),
            };
            let shown: String = name.chars().take(60).collect();
            Fault::of_key("label", format!("there is no label `{shown}`; {hint}"))
        })
    }

    /// The classes, the first of many.
    fn classes(&self) -> String {
        let labels = &self.facts.labels;
        let rest = if labels.len() > SHOWN { ", …" } else { "" };
        labels[..labels.len().min(SHOWN)].join(", ") + rest
    }

    pub(super) fn check_scores(&self) -> Result<(), Fault> {
        match &self.facts.no_law {
            Some(why) => Err(Fault::wrong(format!("this model scores no single texts: {why}"))),
            None => Ok(()),
        }
    }

    /// Refuses questions for the law of a token given others.
    pub(super) fn check_law(&self) -> Result<(), Fault> {
        match &self.facts.no_law {
            Some(why) => {
                Err(Fault::wrong(format!("this model has no law of single tokens: {why}")))
            }
            None => Ok(()),
        }
    }

    /// Refuses log-probabilities of texts that are drawn in several windows: the network reads one.
    pub(super) fn check_windows(&self, given: &[Given], new: Option<i64>) -> Result<(), Fault> {
        let Some(windows) = self.facts.windows else { return Ok(()) };
        let most = self.facts.length;
        let tokens = |given: &Given| match (given.whole(), new) {
            (Some(all), _) => all as i64,
            (None, Some(new)) => given.reach() as i64 + new,
            (None, None) => windows.tokens(most),
        };
        match given.iter().map(tokens).max().filter(|longest| *longest > most) {
            Some(longest) => {
                let said = format!(
                    "`logprobs` are of texts that the model reads at once, of at most {most} tokens, and this one has {longest}: set `max_tokens`, or leave it out"
                );
                Err(Fault::of_key("logprobs", said))
            }
            None => Ok(()),
        }
    }

    pub(super) fn check_count(&self, key: &str, count: usize) -> Result<(), Fault> {
        match count > self.limits.texts {
            true => {
                let most = self.limits.texts;
                let fault =
                    Fault::too_much(format!("{count} texts in one request: at most {most}"));
                Err(Fault { key: Some(key.to_string()), ..fault })
            }
            false => Ok(()),
        }
    }

    pub(super) fn check_length(&self, tokens: usize) -> Result<(), Fault> {
        let facts = self.facts;
        self.check_most(tokens, if facts.blocks { facts.room } else { facts.length })
    }

    /// Checks a text against a number of tokens, of which the model has the first itself.
    pub(super) fn check_most(&self, tokens: usize, most: i64) -> Result<(), Fault> {
        let most = most - self.facts.lead as i64;
        match tokens as i64 > most {
            true => Err(Fault::too_much(format!(
                "a text of {tokens} tokens, and the model knows {most}: shorten it"
            ))),
            false => Ok(()),
        }
    }

    pub(super) fn max_tokens(&self, key: &str) -> Result<Option<i64>, Fault> {
        let Some(tokens) = self.whole(key, 0, i64::from(i32::MAX))? else { return Ok(None) };
        self.check_tokens(key, tokens)?;
        Ok(Some(tokens))
    }

    /// Checks the number of tokens to draw against the server's limit.
    pub(super) fn check_tokens(&self, key: &str, tokens: i64) -> Result<(), Fault> {
        let most = self.limits.tokens;
        if tokens <= most {
            return Ok(());
        }
        let fault = Fault::too_much(format!(
            "this text has {tokens} tokens to draw, and this server draws at most {most}: set `{key}`, or leave fewer holes"
        ));
        Err(Fault { key: Some(key.to_string()), ..fault })
    }

    pub(super) fn seed(&self) -> Result<Option<u64>, Fault> {
        Ok(self.whole("seed", 0, SEEDS as i64 - 1)?.map(i64::cast_unsigned))
    }

    /// The number of the first text among those of its seed.
    pub(super) fn number(&self) -> Result<Option<u64>, Fault> {
        Ok(self.whole("number", 0, NUMBERS - 1)?.map(i64::cast_unsigned))
    }

    pub(crate) fn flag(&self, key: &str) -> Result<bool, Fault> {
        Ok(self.some_flag(key)?.unwrap_or(false))
    }

    pub(super) fn some_flag(&self, key: &str) -> Result<Option<bool>, Fault> {
        match self.body.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Bool(on)) => Ok(Some(*on)),
            Some(_) => Err(Fault::of_key(key, format!("`{key}` is true or false"))),
        }
    }

    /// A whole number, which may be written as `1.0`.
    pub(super) fn whole(&self, key: &str, least: i64, most: i64) -> Result<Option<i64>, Fault> {
        let said = match self.body.get(key) {
            None | Some(Value::Null) => return Ok(None),
            Some(value) => value,
        };
        let float =
            |value: f64| (value.fract() == 0.0 && value.abs() < 1e15).then_some(value as i64);
        let number = said.as_i64().or_else(|| said.as_f64().and_then(float));
        match number.filter(|number| (least..=most).contains(number)) {
            Some(number) => Ok(Some(number)),
            None => {
                Err(Fault::of_key(key, format!("`{key}` is a whole number from {least} to {most}")))
            }
        }
    }
}
