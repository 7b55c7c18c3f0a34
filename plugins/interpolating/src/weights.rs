//! The weights with which GIDD trains, in the place of those of the bound.

use maskdiff_plugin_api::prelude::*;
use tch::Kind;

/// How a row's divergence is weighted in training.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum LossWeight {
    /// As the bound has it: the rate of arrival over the probability of the observed token.
    None,
    /// That, kept between `loss_weight_min` and `loss_weight_max`.
    Clip,
    /// GIDD's: 2 on masks, 1 on other wrong tokens, little on right ones.
    Dynamic,
}

/// A token's place in the noise: `[N]` each.
pub(crate) struct Observed {
    pub(crate) is_mask_n: Tensor,
    pub(crate) is_clean_n: Tensor,
    /// The noise level, f64.
    pub(crate) alpha_n: Tensor,
}

/// GIDD's clock at noise levels: `t = mask / (alpha + mask)`, since `alpha = (1 - t)/C` and `mask = t/C`.
fn time(alpha: &Tensor, mask: &Tensor) -> Tensor {
    mask / (alpha + mask)
}

/// The two numbers of GIDD's noise, `c = scale (t (1 - t))^(gamma/2)`, read off the process at two noise levels.
pub(crate) fn scale_and_gamma(model: &Denoiser) -> Result<(f64, f64)> {
    let alpha = Tensor::from_slice(&[0.4, 0.1]).to_device(model.device());
    let mix = model.mixing(&alpha)?;
    ensure!(
        mix.mask_apart,
        Config,
        "`training.loss_weight=dynamic` is made for the noise of process `gidd`; take `none` or `clip`"
    );
    let t = time(&alpha, &mix.mask_b);
    let tokens = (model.vocab_size() - 1) as f64;
    let c = &mix.every_b * tokens / (alpha + &mix.mask_b);
    // sync: two numbers of the process.
    let [t, c] = [t, c].map(|v| [0, 1].map(|i| v.double_value(&[i])));
    if c[0] == 0.0 {
        return Ok((0.0, 1.0));
    }
    let place = t.map(|t| (t * (1.0 - t)).ln());
    let half = (c[0] / c[1]).ln() / (place[0] - place[1]);
    Ok((c[0] / (half * place[0]).exp(), 2.0 * half))
}

/// `dynamic` at each row, f64.
pub(crate) fn dynamic(model: &Denoiser, observed: &Observed) -> Result<Tensor> {
    let (scale, gamma) = scale_and_gamma(model)?;
    let mix = model.mixing(&observed.alpha_n)?;
    let t_n = time(&observed.alpha_n, &mix.mask_b);
    let right_n = (t_n.neg().sigmoid() * (gamma / 2.0)).exp() * (scale / model.vocab_size() as f64);
    let ones_n = right_n.ones_like();
    let weight_n = right_n.clamp(0.0, 2.0).where_self(&observed.is_clean_n, &ones_n);
    Ok(weight_n.masked_fill(&observed.is_mask_n, 2.0).to_kind(Kind::Double))
}
