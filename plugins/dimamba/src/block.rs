//! One block: a norm, the mixers of both directions, and a residual connection.

use maskdiff_plugin_api::nn::{Modulation, dropout, rms_norm};
use maskdiff_plugin_api::prelude::*;

use crate::mixer::Mixer;
use crate::{Config, Directions, TRUNK};

pub(crate) struct Block {
    residual: bool,
    dropout: f64,
    norm: Tensor,
    directions: Directions,
    from_left: Mixer,
    from_right: Mixer,
    modulation: Option<Modulation>,
}

impl Block {
    pub(crate) fn new(
        p: &mut Parameters,
        index: i64,
        width: i64,
        modulated: bool,
        config: &Config,
    ) -> Self {
        let prefix = format!("{TRUNK}.layers.{index}");
        let name = |part: &str| format!("{prefix}.mixer.{part}");
        let from_left = Mixer::new(p, &name("mamba_fwd"), width, config, None);
        let tied = config.bidirectional_weight_tie.then_some(&from_left);
        let from_right = Mixer::new(p, &name("mamba_rev"), width, config, tied);
        let norm = p.constant(&format!("{prefix}.norm.weight"), &[width], 1.0);
        let modulation = modulated.then(|| {
            let name = format!("{prefix}.adaLN_modulation");
            Modulation::new(p, &name, 3 * width, config.cond_dim)
        });
        Self {
            residual: config.residual,
            dropout: config.dropout,
            norm,
            directions: config.bidirectional_strategy,
            from_left,
            from_right,
            modulation,
        }
    }

    fn mix(&self, h_blw: &Tensor) -> Result<Tensor> {
        let left = self.from_left.forward(h_blw)?;
        let right = self.from_right.forward(&h_blw.flip([1]))?.flip([1]);
        Ok(match self.directions {
            Directions::Add => left + right,
            Directions::EwMultiply => left * right,
        })
    }

    /// `h_blw [B, L, W]`, `c_bc [B, C]` → `[B, L, W]`.
    pub(crate) fn forward(
        &self,
        h_blw: Tensor,
        c_bc: Option<&Tensor>,
        train: bool,
    ) -> Result<Tensor> {
        let inner = rms_norm(&h_blw, &self.norm);
        let change = match (&self.modulation, c_bc) {
            (Some(modulation), Some(c_bc)) => {
                let m = modulation.chunks(c_bc, 3);
                let mixed = self.mix(&(inner * (&m[1] + 1.0) + &m[0]))?;
                dropout(&mixed, self.dropout, train) * &m[2]
            }
            _ => dropout(&self.mix(&inner)?, self.dropout, train),
        };
        Ok(if self.residual { h_blw + change } else { change })
    }
}
