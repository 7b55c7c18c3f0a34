//! `remdm`: ancestral sampling that masks drawn tokens again, so that early mistakes can be mended.
//!
//! Shape letters: `B` batch, `L` length, `V` vocabulary including the mask, `N` rows.

use maskdiff_plugin_api::ops::Restriction;
use maskdiff_plugin_api::prelude::*;

mod schedule;
mod walk;

use schedule::Remasking;

export_plugin!();
register!(sampler Remdm);

/// How much is masked again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Strategy {
    /// `min(eta, largest)` at every token.
    Cap,
    /// `eta * largest` at every token.
    Rescale,
    /// The largest chance, shared among the tokens: more for those that were drawn with less confidence.
    Conf,
    /// None while the text appears, then `eta` at a constant share of masks, then none until the end.
    Loop,
}

/// Options under `sampling` for `remdm`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct Config {
    /// How much is masked again: `cap`, `rescale`, `conf`, `loop`.
    strategy: Strategy,
    /// Strength of the strategy, in [0, 1]; 0 masks nothing again, `conf` does not use it. The authors take 0.008 for
    /// `cap`, 0.015 for `rescale` and 0.02 for `loop` at 1,024 steps.
    #[schemars(range(min = 0.0, max = 1.0))]
    eta: f64,
    /// `loop`: time at which it begins, in (`t_off`, 1).
    #[schemars(extend("exclusiveMinimum" = 0.0, "exclusiveMaximum" = 1.0))]
    t_on: f64,
    /// `loop`: time at which it ends, in (0, `t_on`).
    #[schemars(extend("exclusiveMinimum" = 0.0, "exclusiveMaximum" = 1.0))]
    t_off: f64,
    /// `loop`: share of tokens that are open meanwhile, in (0, 1).
    #[schemars(extend("exclusiveMinimum" = 0.0, "exclusiveMaximum" = 1.0))]
    alpha_on: f64,
    /// Reverse steps, ≥ 1.
    #[schemars(range(min = 1, max = 1_000_000_000))]
    steps: i64,
    /// Time at which the walk ends, in (0, 1).
    #[schemars(extend("exclusiveMinimum" = 0.0, "exclusiveMaximum" = 1.0))]
    t_min: f64,
    /// Give what is still masked at the end its most likely token.
    noise_removal: bool,
    /// Log-probabilities are divided by this before the draw, > 0.
    #[schemars(range(max = 1e6), extend("exclusiveMinimum" = 0.0))]
    temperature: f64,
    /// Draw among the k likeliest tokens; 0 is all.
    #[schemars(range(min = 0, max = 2_147_483_647))]
    top_k: i64,
    /// Draw among the likeliest tokens whose mass first reaches p, in (0, 1]. The authors take 0.9.
    #[schemars(range(max = 1.0), extend("exclusiveMinimum" = 0.0))]
    top_p: f64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            strategy: Strategy::Rescale,
            eta: 0.015,
            t_on: 0.55,
            t_off: 0.05,
            alpha_on: 0.9,
            steps: 128,
            t_min: 1e-5,
            noise_removal: true,
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
        }
    }
}

/// # Equation
/// With alpha now, beta a step later and a chance σ ≤ min(1, (1 - beta) / alpha): an open token is masked with
/// probability σ; a masked one opens with probability `(beta - (1 - σ) alpha) / (1 - alpha)`, its token drawn from
/// `p(x0 | xt)`. σ = 0 is ancestral sampling, and the share of open tokens is beta whatever σ is. With `conf`, σ differs from
/// token to token and is 0 for masked ones, so fewer than beta are open.
///
/// # Source
/// Wang et al. 2025, arXiv:2503.00307, sections 4 and 5. Differences: what is given is never masked; what opens is decided
/// before the network is called, and only sequences in which something opens are; draws are exact in f64; `top_p` keeps the
/// token that reaches p, where the authors keep those below it and the likeliest.
struct Remdm {
    remasking: Remasking,
    walk: Walk,
    restriction: Restriction,
}

impl Component for Remdm {
    const NAME: &'static str = "remdm";
    const ABOUT: &'static str =
        "ancestral steps that mask drawn tokens again: cap, rescale, conf, loop";
    const NEEDS: &'static [&'static str] =
        &[capability::MASK, capability::LOG_X0, capability::CARRY_OVER];
    const PROVIDES: &'static [&'static str] = &[capability::REVISES];
    type Config = Config;

    fn new(config: Config, _: &Context) -> Result<Self> {
        let Config { steps, t_min, noise_removal, temperature, top_k, top_p, .. } = config;
        ensure!(steps > 0, Config, "`sampling.steps` must be at least 1, got {steps}");
        ensure!(
            0.0 < t_min && t_min < 1.0,
            Config,
            "`sampling.t_min` must lie in (0, 1), got {t_min}"
        );
        Ok(Self {
            remasking: Remasking::new(&config)?,
            walk: Walk { steps, t_min, noise_removal },
            restriction: Restriction::new(temperature, top_k, top_p)?,
        })
    }
}
