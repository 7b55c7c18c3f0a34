//! What both parameterizations share: their options, the law of the clean token, and what the network receives.

use maskdiff_plugin_api::prelude::*;
use tch::Kind;

/// What the network receives of the noise level.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Told {
    /// Total noise sigma.
    Sigma,
    /// The time t, as the networks of MD4 are.
    Time,
}

impl Told {
    /// That at times `t_b`.
    pub(crate) fn at(self, model: &Denoiser, t_b: &Tensor) -> Result<Tensor> {
        match self {
            Self::Sigma => Ok(model.sigma(t_b)?.detach()),
            Self::Time => Ok(t_b.shallow_clone()),
        }
    }
}

/// `log p(x0 | xt)` at rows, `[N, V]`: the mask is impossible, and an open token certain.
pub(crate) fn log_x0(
    model: &Denoiser,
    told: Told,
    xt_bl: &Tensor,
    t_b: &Tensor,
    rows_n: &Tensor,
) -> Result<Tensor> {
    check_shape!(xt_bl, [B, L], Int64);
    let mask = model.mask_id()?;
    let hidden_nd = ops::take_rows(&model.hidden(xt_bl, &told.at(model, t_b)?)?, rows_n);
    let logits_nv = model.logits(&hidden_nd)?;
    // Half precision would lose 0.1 nat in the normaliser.
    let kind = if logits_nv.kind() == Kind::Double { Kind::Double } else { Kind::Float };
    let logits_nv = logits_nv.to_kind(kind).copy();
    let _ = logits_nv.select(1, mask).fill_(f64::NEG_INFINITY);
    let log_p_nv = logits_nv.log_softmax(-1, kind);
    let xt_n = ops::take_rows(xt_bl, rows_n);
    let certain_nv = log_p_nv.full_like(f64::NEG_INFINITY);
    let certain_nv = certain_nv.scatter_value(1, &xt_n.unsqueeze(1), 0.0);
    Ok(log_p_nv.where_self(&xt_n.eq(mask).unsqueeze(1), &certain_nv))
}

/// Tokens with noise, but not where they are given.
pub(crate) fn keep_given(batch: &Batch, xt_bl: &Tensor) -> Tensor {
    match &batch.given_bl {
        Some(given_bl) => batch.x0_bl.where_self(given_bl, xt_bl),
        None => xt_bl.shallow_clone(),
    }
}

/// Values of rows in a block of zeros.
pub(crate) fn whole(like_bl: &Tensor, rows_n: &Tensor, value_n: &Tensor) -> Tensor {
    let zero_bl = Tensor::zeros(like_bl.size(), (value_n.kind(), value_n.device()));
    ops::put_rows(&zero_bl, rows_n, value_n)
}

/// 0 where a token is given, 1 elsewhere, `[B, L]`.
pub(crate) fn free(batch: &Batch, kind: Kind) -> Tensor {
    match &batch.given_bl {
        Some(given_bl) => given_bl.logical_not().to_kind(kind),
        None => Tensor::ones(batch.x0_bl.size(), (kind, batch.x0_bl.device())),
    }
}
