//! How a walk ends.
//!
//! Shape letters: `N` rows, `V` vocabulary.

use maskdiff_plugin_api::prelude::*;
use tch::Kind;

use crate::coins::{self, Rows, Span};
use crate::options::masks_alone;

/// How a walk ends, at `t_min`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Tail {
    /// One more draw, of the clean tokens.
    Ancestral,
    /// Each token that may be noise becomes the likeliest given the others.
    Greedy,
    /// As the walk left it; what is still masked is drawn.
    None,
}

impl Tail {
    /// The flat positions that the end draws, among those that are free.
    pub(crate) fn rows(self, model: &Denoiser, x_bl: &Tensor, free_n: &Tensor) -> Result<Tensor> {
        if self == Self::Ancestral || self == Self::Greedy && !masks_alone(model)? {
            return Ok(free_n.shallow_clone());
        }
        let masked_n = match model.mask() {
            Some(mask) => ops::take_rows(x_bl, free_n).eq(mask),
            None => free_n.zeros_like().to_kind(Kind::Bool),
        };
        // sync: how many are masked is data.
        Ok(free_n.index_select(0, &masked_n.nonzero().squeeze_dim(-1)))
    }

    /// The law of the end from time t, `[N, V] f64`.
    pub(crate) fn law(self, model: &Denoiser, rows: &Rows, t: f64) -> Result<Tensor> {
        let (size, alone) = (model.vocab_size(), masks_alone(model)?);
        match self {
            Self::Ancestral => {
                let Span { from, to, .. } = Span::new(model, t, 0.0)?;
                coins::ancestral_law(model, rows, from, to)
            }
            Self::Greedy => {
                let likeliest_n = rows.log_p_nv.argmax(-1, false);
                // Where masks are the only noise, a token is what it is.
                let token_n = match model.mask().filter(|_| alone) {
                    Some(mask) => likeliest_n.where_self(&rows.z_n.eq(mask), rows.z_n),
                    None => likeliest_n,
                };
                Ok(certain(&token_n, size))
            }
            Self::None => {
                let kept_nv = certain(rows.z_n, size);
                let Some(mask) = model.mask() else { return Ok(kept_nv) };
                let p_nv = rows.log_p_nv.to_kind(Kind::Double).exp();
                Ok(p_nv.where_self(&rows.z_n.eq(mask).unsqueeze(1), &kept_nv))
            }
        }
    }
}

/// A law that is certain of tokens `[N]` → `[N, V]`.
fn certain(token_n: &Tensor, vocab_size: i64) -> Tensor {
    token_n.one_hot(vocab_size).to_kind(Kind::Double)
}
