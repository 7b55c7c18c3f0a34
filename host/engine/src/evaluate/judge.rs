//! A judge: a causal model whose probabilities and states tell how good a text is.
//!
//! Shape letters: `B` batch, `L` length, `D` hidden size.

use std::sync::Arc;

use maskdiff_base::error::{Error, Result};
use maskdiff_config::kind::ComponentKind;
use maskdiff_data::Tokenizer;
use maskdiff_plugin_api::Denoiser;
use tch::{Device, Kind, Tensor};

use super::protocol::Window;
use crate::component;
use crate::model::Model;

/// A causal model with its tokenizer.
pub struct Judge {
    /// As the user named it.
    pub name: String,
    /// Hash of its weights, hex.
    pub sha256: String,
    /// Its tokenizer.
    pub tokenizer: Arc<dyn Tokenizer>,
    /// What ends a text.
    pub eos: i64,
    model: Model,
}

impl std::fmt::Debug for Judge {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Judge({}, {:?})", self.name, self.model)
    }
}

impl Judge {
    /// A loaded model that predicts next tokens.
    pub fn new(
        name: &str,
        sha256: String,
        model: Model,
        tokenizer: Arc<dyn Tokenizer>,
    ) -> Result<Self> {
        let Some(eos) = tokenizer.eos().map(i64::from) else {
            return Err(Error::config(
                format!("`{name}` cannot judge: its tokenizer has no EOS"),
                "judges are causal models whose texts end, as `gpt2-large`",
            ));
        };
        Ok(Self { name: name.to_string(), sha256, tokenizer, eos, model })
    }

    /// Tokens that it sees at once.
    pub fn length(&self) -> i64 {
        self.model.facts().length
    }

    /// Texts of unlike lengths as one batch `[B, L] i64`: what fills the shorter ones is behind all that they hold.
    fn batch(&self, texts: &[&[i64]]) -> Tensor {
        let longest = texts.iter().map(|text| text.len()).max().unwrap_or(0);
        let filled = texts
            .iter()
            .flat_map(|text| text.iter().copied().chain(std::iter::repeat(self.eos)).take(longest));
        let ids: Vec<i64> = filled.collect();
        let x_bl = Tensor::from_slice(&ids).view([texts.len() as i64, longest as i64]);
        x_bl.to_device(self.model.facts().device())
    }

    /// Nats of every counted token of each window given those before it in the window, and their number.
    pub fn nats(&self, windows: &[&Window]) -> Result<Vec<(f64, f64)>> {
        let texts: Vec<&[i64]> = windows.iter().map(|window| &window.tokens[..]).collect();
        let x_bl = self.batch(&texts);
        let nats_bl = tch::no_grad(|| {
            let t_b = Tensor::zeros([x_bl.size()[0]], (Kind::Double, x_bl.device()));
            self.model.loss(&x_bl, &t_b)
        })?;
        let nats_bl = nats_bl.to_device(Device::Cpu).to_kind(Kind::Double);
        let rows = nats_bl.unbind(0).into_iter().zip(windows);
        let sums = rows.map(|(row, window)| {
            let nats = Vec::<f64>::try_from(row).map_err(component::torch)?;
            let counted = nats.iter().zip(&window.counted).filter(|(_, counts)| **counts);
            let (mut sum, mut count) = (0.0, 0.0);
            for (nats, _) in counted {
                sum += nats;
                count += 1.0;
            }
            Ok((sum, count))
        });
        sums.collect()
    }

    /// The state at the last token of each text, which none is empty: `[B, D]` f32 on the CPU.
    pub fn features(&self, texts: &[&[i64]]) -> Result<Tensor> {
        let x_bl = self.batch(texts);
        let hidden_bld = tch::no_grad(|| {
            let sigma_b = Tensor::zeros([x_bl.size()[0]], (Kind::Double, x_bl.device()));
            Denoiser::new(&self.model).hidden(&x_bl, &sigma_b)
        });
        let hidden_bld =
            hidden_bld.map_err(|e| component::error(ComponentKind::Backbone, &self.name, e))?;
        let last = |(row, text): (Tensor, &&[i64])| row.get(text.len() as i64 - 1);
        let rows: Vec<Tensor> = hidden_bld.unbind(0).into_iter().zip(texts).map(last).collect();
        Ok(Tensor::stack(&rows, 0).to_device(Device::Cpu).to_kind(Kind::Float))
    }
}
