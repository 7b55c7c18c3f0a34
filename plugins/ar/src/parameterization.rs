//! `ar`: the network's output at a position is the law of the next token.

use maskdiff_plugin_api::prelude::*;

register!(parameterization NextToken);

/// `ar` has no options.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct Config {}

/// # Equation
/// `loss_i = -log p(x_i | x_0 .. x_{i-1})` for `i` in `1..L`: `[B, L - 1]`. The mask has probability zero.
///
/// # Source
/// MDLM code, `_loss` with `parameterization=ar`. Difference: the mask is banned exactly, where the original adds -1000.
struct NextToken {
    mask: Option<i64>,
}

impl Component for NextToken {
    const NAME: &'static str = "ar";
    const ABOUT: &'static str = "cross-entropy of the next token; for causal networks";
    const PROVIDES: &'static [&'static str] = &[capability::NEXT_TOKEN, capability::BOUND];
    const NEEDS: &'static [&'static str] = &[capability::CAUSAL];
    type Config = Config;

    fn new(_: Config, context: &Context) -> Result<Self> {
        ensure!(
            !context.time_conditioning,
            Config,
            "`ar` knows no noise level: set `time_conditioning=false`"
        );
        Ok(Self { mask: context.mask_id })
    }
}

impl Parameterization for NextToken {
    /// Times have no meaning here; they are passed through.
    fn draw_t(&self, _model: &Denoiser, u_b: &Tensor) -> Result<Tensor> {
        Ok(u_b.shallow_clone())
    }

    fn loss(&self, model: &Denoiser, x0_bl: &Tensor, t_b: &Tensor) -> Result<Tensor> {
        let (b, l) = check_shape!(x0_bl, [B, L], Int64);
        ensure!(l > 1, Shape, "a sequence of one token has no next one");
        let hidden = model.hidden(&x0_bl.narrow(1, 0, l - 1), &t_b.zeros_like())?;
        let target_n = x0_bl.narrow(1, 1, l - 1).reshape([-1]);
        let one_n = Tensor::ones(target_n.size(), (hidden.kind(), target_n.device()));
        let nats_n = model.weighted_nll(&hidden.flatten(0, 1), &target_n, &one_n, self.mask)?;
        Ok(nats_n.view([b, l - 1]))
    }
}
