//! Who makes NaN: what was last asked of each component is asked once more, and looked at.

use std::collections::BTreeMap;

use maskdiff_plugin_api::Result as PluginResult;
use tch::Tensor;

use super::Model;
use crate::plugins::Choices;

/// What the components of a model were last asked, so that a failure can be looked into: small tensors, never results.
#[derive(Debug, Default)]
pub(super) struct Asked {
    /// A sampler asks.
    pub(super) drawn: bool,
    hidden: Option<(Tensor, Tensor)>,
    law: Option<Law>,
    /// The last question to each method of the schedule and of the process that is about times or levels: those, and the tokens.
    levels: BTreeMap<Level, (Tensor, Option<Tensor>)>,
}

impl Asked {
    /// Nothing yet, of a walk.
    pub(super) fn drawn() -> Self {
        Self { drawn: true, ..Self::default() }
    }
}

/// A question for `log p(x0 | xt)`, or for a score.
#[derive(Debug)]
struct Law {
    score: bool,
    xt_bl: Tensor,
    t_b: Tensor,
    rows_n: Tensor,
}

/// A method whose answer is a noise level, its derivative, a time, or weights of the noise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Level {
    TimeOfAlpha,
    Importance,
    Sigma,
    TokenSigma,
    Dsigma,
    TokenDsigma,
}

impl Level {
    fn method(self) -> &'static str {
        match self {
            Self::TimeOfAlpha => "time_of_alpha",
            Self::Importance => "importance",
            Self::Sigma => "sigma",
            Self::TokenSigma => "token_sigma",
            Self::Dsigma => "dsigma",
            Self::TokenDsigma => "token_dsigma",
        }
    }
}

/// Whether a tensor has NaN; with `finite`, also whether it has infinities.
fn is_bad(tensor: &Tensor, finite: bool) -> bool {
    let bad = if finite { tensor.isfinite().logical_not() } else { tensor.isnan() };
    bad.any().int64_value(&[]) != 0
}

fn is_nan(tensor: &Tensor) -> bool {
    is_bad(tensor, false)
}

impl Model {
    /// Who makes NaN of what was last asked, in words: the schedule, the network's last pass and its law are computed once more. One that
    /// was given NaN is not to blame.
    pub fn not_a_number(&self) -> Option<String> {
        let asked = self.asked.take();
        tch::no_grad(|| {
            self.bad_level(&asked, false)
                .or_else(|| self.bad_hidden(&asked))
                .or_else(|| self.bad_law(&asked))
                // At an end of time a level may be infinite, and a walk may do without it.
                .or_else(|| self.bad_level(&asked, true).filter(|_| !asked.drawn))
        })
    }

    fn bad_level(&self, asked: &Asked, finite: bool) -> Option<String> {
        let Choices { noise, parameterization, .. } = &self.names;
        for (level, (given, tokens)) in &asked.levels {
            let method = level.method();
            if is_nan(given) {
                // Times are what the parameterization draws, unless the schedule has made them.
                if asked.drawn || *level == Level::TimeOfAlpha {
                    continue;
                }
                let of = &parameterization.name;
                return Some(format!("`draw_t` of parameterization `{of}` gives NaN"));
            }
            let answer = self.level(*level, given, tokens.as_ref());
            if let Ok(answer) = answer.as_ref()
                && is_bad(answer, finite)
            {
                let what = if is_nan(answer) { "NaN" } else { "infinity" };
                return Some(format!("`{method}` of noise `{}` gives {what}", noise.name));
            }
        }
        None
    }

    fn level(&self, level: Level, given: &Tensor, tokens: Option<&Tensor>) -> PluginResult<Tensor> {
        match (level, tokens) {
            (Level::TimeOfAlpha, _) => self.noise.time_of_alpha(given),
            (Level::Importance, _) => self.noise.importance(given),
            (Level::Dsigma, _) => self.noise.dsigma(given),
            (Level::TokenSigma, Some(tokens_bl)) => self.noise.token_sigma(tokens_bl, given),
            (Level::TokenDsigma, Some(tokens_bl)) => self.noise.token_dsigma(tokens_bl, given),
            _ => self.noise.sigma(given),
        }
    }

    fn bad_hidden(&self, asked: &Asked) -> Option<String> {
        let Choices { backbone, .. } = &self.names;
        let (xt_bl, sigma_b) = asked.hidden.as_ref()?;
        let hidden = self.reduced(|| self.network.hidden(xt_bl, sigma_b, false)).ok()?;
        if is_nan(&hidden) {
            if is_bad(sigma_b, true) {
                let what = if is_nan(sigma_b) { "NaN" } else { "infinite" };
                let made = self.bad_level(asked, true);
                return made.or_else(|| {
                    Some(format!(
                        "backbone `{}` received a noise level that is {what}",
                        backbone.name
                    ))
                });
            }
            return Some(format!("`hidden` of backbone `{}` gives NaN", backbone.name));
        }
        let row = hidden.flatten(0, 1).narrow(0, 0, 1);
        let logits = self.reduced(|| self.network.logits(&row));
        let bad = logits.is_ok_and(|logits| is_nan(&logits));
        bad.then(|| format!("`logits` of backbone `{}` gives NaN", backbone.name))
    }

    fn bad_law(&self, asked: &Asked) -> Option<String> {
        let Law { score, xt_bl, t_b, rows_n } = asked.law.as_ref()?;
        let (method, law) = match score {
            true => ("score", self.method.score(self, xt_bl, t_b, rows_n)),
            false => ("log_x0", self.method.log_x0(self, xt_bl, t_b, rows_n)),
        };
        let name = &self.names.parameterization.name;
        let bad = law.is_ok_and(|law| is_nan(&law));
        bad.then(|| format!("`{method}` of parameterization `{name}` gives NaN"))
    }

    pub(super) fn note_level(&self, level: Level, given: &Tensor, tokens: Option<&Tensor>) {
        let noted = (given.detach(), tokens.map(Tensor::shallow_clone));
        self.asked.borrow_mut().levels.insert(level, noted);
    }

    pub(crate) fn note_law(&self, score: bool, xt_bl: &Tensor, t_b: &Tensor, rows_n: &Tensor) {
        let [xt_bl, t_b, rows_n] = [xt_bl, t_b, rows_n].map(Tensor::shallow_clone);
        self.asked.borrow_mut().law = Some(Law { score, xt_bl, t_b, rows_n });
    }

    pub(crate) fn note_hidden(&self, xt_bl: &Tensor, sigma_b: &Tensor) {
        let noted = (xt_bl.shallow_clone(), sigma_b.shallow_clone());
        self.asked.borrow_mut().hidden = Some(noted);
    }
}
