//! `{{component}}`: a forward process that turns tokens into the mask. The place to change what noise does to a token.
//!
//! Shape letters: `B` batch, `L` length, `V` vocabulary including the mask, `N` rows.

use maskdiff_plugin_api::prelude::*;
use tch::Kind;

export_plugin!();
register!(process {{Type}});

/// Options under `process`; none yet.
#[derive(Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct Config {}

struct {{Type}} {
    mask: i64,
    context: Context,
}

impl Component for {{Type}} {
    const NAME: &'static str = "{{component}}";
    const ABOUT: &'static str = "tokens turn into the mask and stay there";
    const PROVIDES: &'static [&'static str] = &[capability::MASK, capability::MIXING];
    type Config = Config;

    fn new(_: Config, context: &Context) -> Result<Self> {
        let Some(mask) = context.mask_id else {
            bail!(Config, "the vocabulary has no mask token");
        };
        Ok(Self { mask, context: *context })
    }
}

impl ForwardProcess for {{Type}} {
    fn mask_id(&self) -> Option<i64> {
        Some(self.mask)
    }

    /// The law at t = 1, `[B, L] i64`: nothing but masks.
    fn prior(&self, batch: i64, length: i64) -> Result<Tensor> {
        Ok(Tensor::full([batch, length], self.mask, (Kind::Int64, self.context.device())))
    }

    /// A token is lost where its uniform number `u_bl` is below `1 - alpha_b`.
    fn corrupt(&self, x0_bl: &Tensor, alpha_b: &Tensor, u_bl: &Tensor) -> Result<Tensor> {
        check_shape!(x0_bl, [B, L], Int64);
        let chance_b1 = (alpha_b * -1.0 + 1.0).unsqueeze(1);
        Ok(x0_bl.masked_fill(&u_bl.lt_tensor(&chance_b1), self.mask))
    }

    /// `q(xs | xt, x0 ~ p)`: a mask stays with probability `(1 - alpha_s) / (1 - alpha_t)`, else it is drawn from p. Between equal
    /// levels nothing moves.
    fn posterior(
        &self,
        xt_n: &Tensor,
        alpha_t: f64,
        alpha_s: f64,
        p_nv: &Tensor,
    ) -> Result<Tensor> {
        let stay = if alpha_t == alpha_s { 1.0 } else { (1.0 - alpha_s) / (1.0 - alpha_t) };
        let opened_nv = p_nv * (1.0 - stay);
        let _ = opened_nv.select(1, self.mask).fill_(stay);
        let kept_nv = xt_n.one_hot(self.context.vocab_size).to_kind(p_nv.kind());
        Ok(opened_nv.where_self(&xt_n.eq(self.mask).unsqueeze(1), &kept_nv))
    }

    /// The noise b of `q(z | x) = alpha x + b`: nothing on other tokens, what was lost on the mask.
    fn mixing(&self, alpha_b: &Tensor) -> Result<Mix> {
        Ok(Mix::new(alpha_b.zeros_like(), alpha_b * -1.0 + 1.0))
    }

    /// Where tokens that are lost arrive, as alpha falls: all at the mask.
    fn arrival(&self, alpha_b: &Tensor) -> Result<Mix> {
        Ok(Mix::new(alpha_b.zeros_like(), alpha_b.ones_like()))
    }

    /// Infinite where a token may survive to t = 1: the prior gives it no mass.
    fn prior_kl(&self, x0_bl: &Tensor, alpha_1: f64) -> Result<Tensor> {
        let kl = if alpha_1 > 0.0 { f64::INFINITY } else { 0.0 };
        Ok(Tensor::full(x0_bl.size(), kl, (Kind::Double, x0_bl.device())))
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn contract() {
        maskdiff_plugin_api::testkit::process_contract::<super::{{Type}}>();
    }
}
