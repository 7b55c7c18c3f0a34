//! `absorbing_state`: noise turns tokens into the mask, for good.
//!
//! Shape letters: `B` batch, `L` length, `V` vocabulary including the mask, `N` rows.

use maskdiff_plugin_api::prelude::*;
use tch::Kind;

export_plugin!();
register!(process Absorbing);

/// No options.
#[derive(Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct Config {}

/// The absorbing process: `q(xt | x0)` keeps a token with probability alpha and masks it otherwise.
///
/// # Source
/// Austin et al. 2021, arXiv:2107.03006, section 3.1; Sahoo et al. 2024, arXiv:2406.07524, equations 1 and 5.
struct Absorbing {
    mask: i64,
    vocab_size: i64,
    device: tch::Device,
}

impl Component for Absorbing {
    const NAME: &'static str = "absorbing_state";
    const ABOUT: &'static str = "tokens turn into the mask and stay there";
    const PROVIDES: &'static [&'static str] = &[capability::MASK, capability::MIXING];
    type Config = Config;

    fn new(_: Config, context: &Context) -> Result<Self> {
        let Some(mask) = context.mask_id else {
            bail!(Config, "the vocabulary has no mask token");
        };
        let vocab_size = context.vocab_size;
        ensure!(
            (0..vocab_size).contains(&mask),
            Config,
            "mask id {mask} is outside 0..{vocab_size}"
        );
        Ok(Self { mask, vocab_size, device: context.device() })
    }
}

impl ForwardProcess for Absorbing {
    fn mask_id(&self) -> Option<i64> {
        Some(self.mask)
    }

    fn prior(&self, batch: i64, length: i64) -> Result<Tensor> {
        Ok(Tensor::full([batch, length], self.mask, (Kind::Int64, self.device)))
    }

    /// A token is masked where its uniform number is below `1 - alpha`, as in the original's `q_xt`.
    fn corrupt(&self, x0_bl: &Tensor, alpha_b: &Tensor, u_bl: &Tensor) -> Result<Tensor> {
        check_shape!(x0_bl, [B, L], Int64);
        let move_chance = (alpha_b * -1.0 + 1.0).unsqueeze(1);
        Ok(x0_bl.masked_fill(&u_bl.lt_tensor(&move_chance), self.mask))
    }

    /// A masked token stays with probability `(1 - alpha_s) / (1 - alpha_t)` and else takes a value from p.
    fn posterior(
        &self,
        xt_n: &Tensor,
        alpha_t: f64,
        alpha_s: f64,
        p_nv: &Tensor,
    ) -> Result<Tensor> {
        check_shape!(xt_n, [N], Int64);
        ensure!(
            0.0 <= alpha_t && alpha_t <= alpha_s && alpha_s <= 1.0,
            Numeric,
            "a reverse step needs 0 <= alpha_t <= alpha_s <= 1, got {alpha_t} and {alpha_s}"
        );
        // Where nothing moves, and where no token is masked yet, a mask stays.
        let stay = if alpha_t == alpha_s { 1.0 } else { (1.0 - alpha_s) / (1.0 - alpha_t) };
        let opened = p_nv * (1.0 - stay);
        let _ = opened.select(1, self.mask).fill_(stay);
        let kept = xt_n.one_hot(self.vocab_size).to_kind(p_nv.kind());
        Ok(opened.where_self(&xt_n.eq(self.mask).unsqueeze(1), &kept))
    }

    /// 0 when nothing survives to t = 1; infinite otherwise, since the all-mask prior gives a surviving token no mass.
    fn prior_kl(&self, x0_bl: &Tensor, alpha_1: f64) -> Result<Tensor> {
        let kl = if alpha_1 > 0.0 { f64::INFINITY } else { 0.0 };
        Ok(Tensor::full(x0_bl.size(), kl, (Kind::Double, x0_bl.device())))
    }

    /// All noise is on the mask, `1 - alpha` of it.
    fn mixing(&self, alpha_b: &Tensor) -> Result<Mix> {
        Ok(Mix::new(alpha_b.zeros_like(), 1.0 - alpha_b))
    }

    fn arrival(&self, alpha_b: &Tensor) -> Result<Mix> {
        Ok(Mix::new(alpha_b.zeros_like(), alpha_b.ones_like()))
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn contract() {
        maskdiff_plugin_api::testkit::process_contract::<super::Absorbing>();
    }
}
