//! How long texts become, where they end, and what they are drawn as.

use maskdiff_base::error::{Error, Result};
use maskdiff_base::text::counted;
use maskdiff_config::Config;
use maskdiff_config::listed::{ClassifierOrder, Context};
use maskdiff_data::Tokenizer;
use maskdiff_plugin_api::Context as Facts;
use tch::Tensor;

use super::grow;
use crate::model::Model;
use crate::prompt::Given;
use crate::windows::Windows;

/// How sampled tokens become text: the length, the end, the tokenizer.
#[derive(Clone, Copy)]
pub struct Texts<'a> {
    /// Ids to text.
    pub tokenizer: &'a dyn Tokenizer,
    /// How long.
    pub windows: Windows,
    /// Tokens behind what is given, where the length of a text goes by that.
    pub new_tokens: Option<i64>,
    /// Cut a text at its first EOS or padding after the given tokens. The network was not trained on what follows.
    pub stop_at_eos: bool,
    /// What samplers draw by [`maskdiff_plugin_api::Denoiser::uniforms`] comes from it,
    pub seed: u64,
    /// and from the number of the first text.
    pub first: u64,
    /// Where the texts do not follow each other: the seed and the number of each.
    pub sources: &'a [(u64, u64)],
    /// In blocks: tokens of a text at most, where `new_tokens` does not say it.
    pub length: i64,
    /// In blocks: what is done with tokens beyond the trained window.
    pub context: Context,
    /// In blocks: keep keys and values of finished blocks.
    pub cached: bool,
    /// In blocks: the least entropy of the end of a text.
    pub least: Option<f64>,
    /// How strongly laws are guided by what is given; 0 leaves them as they are.
    pub guidance: f64,
    /// The class of texts that say none of their own.
    pub label: Option<i64>,
    /// How strongly laws are guided by the class of a text; 1 is the law of the class.
    pub label_guidance: f64,
    /// How strongly laws are guided by the classifier beside the model, and how it is asked, where there is one.
    pub classifier: Option<(f64, ClassifierOrder)>,
}

impl<'a> Texts<'a> {
    /// What the configuration asks for, for the model's length.
    pub fn new(config: &Config, tokenizer: &'a dyn Tokenizer) -> Self {
        let (windows, stop_at_eos) = (Windows::ONE, stops_at_eos(config));
        Self {
            tokenizer,
            windows,
            new_tokens: config.sampling.new_tokens,
            stop_at_eos,
            seed: config.texts_seed(),
            first: config.sampling.first_number,
            sources: &[],
            length: length(config),
            context: config.sampling.context,
            cached: config.sampling.kv_cache,
            least: config.sampling.min_entropy,
            guidance: config.sampling.cfg_scale,
            label: match &config.sampling.labels[..] {
                [only] => class(config, only),
                _ => None,
            },
            label_guidance: config.sampling.guidance_scale,
            classifier: config
                .sampling
                .classifier
                .as_ref()
                .map(|_| (config.sampling.classifier_scale, config.sampling.classifier_order)),
        }
    }

    /// Tokens of a walk over what is given: those of the model, or what is given and so many behind.
    pub(super) fn walk_length(&self, given: &[Given], most: i64) -> Result<i64> {
        // Nothing stands behind a draft.
        if let Some(longest) = given.iter().filter_map(Given::draft_length).max() {
            return Ok(longest as i64);
        }
        let Some(new) = self.new_tokens.filter(|_| !given.iter().any(Given::is_whole)) else {
            return Ok(most);
        };
        let reach = given.iter().map(|given| given.reach() as i64).max().unwrap_or(0);
        if reach + new > most {
            return Err(Error::config(
                format!(
                    "the prompt has {}, and with `sampling.new_tokens = {new}` there are more than the {most} that the model knows",
                    counted(reach, "token")
                ),
                format!(
                    "at most `sampling.new_tokens={}`, or another `model.length`",
                    most - reach
                ),
            ));
        }
        Ok(reach + new)
    }

    /// Tokens of a text in blocks at most, `lead` tokens in front of what is given included.
    pub(super) fn length_in_blocks(&self, given: &[Given], lead: usize) -> i64 {
        let Some(new) = self.new_tokens else { return self.length };
        let reach = given.iter().map(Given::reach).max().unwrap_or(0);
        (lead + reach) as i64 + new
    }

    /// Checks that texts in blocks may become as long as they will, now that what is given is known.
    pub(super) fn check_length(&self, model: &Model) -> Result<()> {
        let (length, window) = (self.length, model.facts().length);
        let refused = |what: String, hint: &str| Err(Error::config(what, hint));
        if length > window && self.context == Context::Slide && !self.cached {
            return refused(
                format!(
                    "texts become {length} tokens long, longer than `model.length` ({window}), and `sampling.context=slide` needs the KV cache there"
                ),
                "set `sampling.context=reread` (the window) or `sampling.context=all` (the whole text), or leave `sampling.kv_cache=false` out",
            );
        }
        if length > window && model.has_bounded_positions() {
            return refused(
                format!(
                    "texts become {length} tokens long, and the network has a table of {window} positions: it knows none behind"
                ),
                "ask for fewer tokens (`sampling.new_tokens`, `sampling.length`), or use a backbone whose positions have no end",
            );
        }
        if self.least.is_some() && length < grow::TAIL as i64 {
            return refused(
                format!(
                    "`sampling.min_entropy` looks at the last {} tokens of a text, and texts become {length} long",
                    grow::TAIL
                ),
                "draw longer texts (`sampling.new_tokens` or `sampling.length`), or leave it out",
            );
        }
        Ok(())
    }

    /// The class of each text, `[B] i64`, where any has one; those that have none are of no class.
    pub(super) fn labels(&self, given: &[Given], facts: &Facts) -> Option<Tensor> {
        let own: Vec<Option<i64>> = given.iter().map(|given| given.label.or(self.label)).collect();
        let all = own.iter().map(|label| label.unwrap_or(facts.classes)).collect::<Vec<i64>>();
        own.iter().any(Option::is_some).then(|| Tensor::from_slice(&all).to_device(facts.device()))
    }

    /// The seed and the number of a text of the batch.
    pub(super) fn source(&self, row: usize) -> (u64, u64) {
        match self.sources.get(row) {
            Some(source) => *source,
            None => (self.seed, self.first + row as u64),
        }
    }

    /// The tokens that end a text.
    pub(super) fn ends(&self) -> Vec<i64> {
        let ends = [self.tokenizer.eos(), self.tokenizer.pad()];
        ends.into_iter().flatten().map(i64::from).collect()
    }

    /// Cuts a text, in which what is given begins at `lead`.
    pub(super) fn end(&self, given: &Given, lead: usize, ids: &mut Vec<i64>) {
        given.cut(lead, ids);
        if !self.stop_at_eos {
            return;
        }
        let from = self.free_from(given, lead, ids.first().copied()).min(ids.len());
        let ends = self.ends();
        if let Some(end) = ids[from..].iter().position(|token| ends.contains(token)) {
            ids.truncate(from + end);
        }
    }

    /// The first position at which a token may end a text that begins with `first`.
    pub(super) fn free_from(&self, given: &Given, lead: usize, first: Option<i64>) -> usize {
        let bos = self.tokenizer.bos().map(i64::from);
        // The first token may be a BOS that is the EOS too.
        let begins = usize::from(bos.is_some() && first == bos);
        let reach = match given.reach() {
            0 => 0,
            reach => lead + reach,
        };
        reach.max(begins)
    }
}

/// The class of a name.
pub fn class(config: &Config, name: &str) -> Option<i64> {
    config.drawn_names().iter().position(|known| known == name).map(|at| at as i64)
}

/// Tokens of a text at most: `sampling.length`, or else the model's.
pub fn length(config: &Config) -> i64 {
    config.sampling.length.unwrap_or(config.model.length)
}

/// Whether texts are cut at EOS: `sampling.stop_at_eos`, or else if each training block held one document.
pub fn stops_at_eos(config: &Config) -> bool {
    config.sampling.stop_at_eos.unwrap_or(!config.data.wrap)
}
