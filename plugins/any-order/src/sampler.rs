//! `any_order`: tokens are revealed in an order that is drawn first, over the keys and values of those before them.
//!
//! Shape letters: `B` batch, `L` length, `A` texts that are still walked, `P` tokens that are kept, `S` tokens of a call, `N` rows.

use maskdiff_plugin_api::ops::Restriction;
use maskdiff_plugin_api::prelude::*;

use crate::ANY_ORDER;
use crate::kept::Kept;
use crate::plan::{Grid, Plan};

register!(sampler AnyOrderWalk);

/// Options under `sampling` for `any_order`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Config {
    /// Steps of time in which diffusion reveals its tokens, those of a step blind to each other; a step that reveals none costs nothing.
    /// 0 reveals one token at a time, which is exact.
    #[schemars(range(min = 0, max = 16_777_216))]
    pub(crate) steps: i64,
    /// Reveal the tokens that stand this far apart at once, in as many calls; 0 leaves it to `steps`.
    #[schemars(range(min = 0, max = 16_777_216))]
    pub(crate) stride: i64,
    /// The share of tokens that diffusion reveals; the others follow one by one from left to right. Where it is not set, the share with
    /// which the model was trained (`training.alpha_0`).
    #[schemars(range(min = 0.0, max = 1.0), extend("x-follows" = "training.alpha_0"))]
    pub(crate) alpha_0: f64,
    /// Keep the keys and values of revealed tokens. Without, each call reads all of them again, with the same result.
    pub(crate) keep_keys: bool,
    /// Logits are divided by this before the draw, > 0.
    #[schemars(range(max = 1e6), extend("exclusiveMinimum" = 0.0))]
    pub(crate) temperature: f64,
    /// Draw among the k likeliest tokens; 0 is all.
    #[schemars(range(min = 0, max = 2_147_483_647))]
    pub(crate) top_k: i64,
    /// Draw among the likeliest tokens whose mass first reaches p, in (0, 1].
    #[schemars(range(max = 1.0), extend("exclusiveMinimum" = 0.0))]
    pub(crate) top_p: f64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            steps: 0,
            stride: 0,
            alpha_0: 1.0,
            keep_keys: true,
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
        }
    }
}

/// # Equation
/// Each call reads the tokens that the call before revealed and k masks, causally over what is kept, and draws the k tokens from
/// `p(x_{o_i} | x_{o_<=i'})`, where i' is the last token that was revealed before. With k = 1, `p(x) = mean_o p(x | o)`.
///
/// # Source
/// arXiv:2506.01928, the sampler of variant B. Differences: the time at which a token is revealed is drawn for each token, which is the
/// same law; draws are exact in f64; given tokens are read first; texts of a batch may reveal other numbers of tokens.
///
/// # Cost
/// A call for each step that reveals a token; 2 L tokens read in all.
struct AnyOrderWalk {
    config: Config,
    restriction: Restriction,
}

impl Component for AnyOrderWalk {
    const NAME: &'static str = "any_order";
    const ABOUT: &'static str = "any order with a KV cache over the whole text (Eso-LM)";
    const NEEDS: &'static [&'static str] =
        &[ANY_ORDER, capability::MASK, capability::PAST, capability::POSITIONS];
    type Config = Config;

    fn new(config: Config, _: &Context) -> Result<Self> {
        let Config { steps, stride, alpha_0, temperature, top_k, top_p, .. } = config;
        for (name, value) in [("steps", steps), ("stride", stride)] {
            ensure!(value >= 0, Config, "`sampling.{name}` must not be negative, got {value}");
        }
        ensure!(
            steps == 0 || stride == 0,
            Config,
            "`sampling.stride` ({stride}) and `sampling.steps` ({steps}) both say which tokens are revealed at once: leave one out"
        );
        ensure!(
            (0.0..=1.0).contains(&alpha_0),
            Config,
            "`sampling.alpha_0` must lie in [0, 1], got {alpha_0}"
        );
        let restriction = Restriction::new(temperature, top_k, top_p)?;
        Ok(Self { config, restriction })
    }
}

impl AnyOrderWalk {
    /// When diffusion reveals its tokens.
    fn grid(&self, model: &Denoiser) -> Result<Grid> {
        let Config { steps, stride, alpha_0, .. } = self.config;
        if stride > 0 {
            return Ok(Grid::Apart(stride));
        }
        let level = |i: i64| Ok(alpha_0 * model.alpha(1.0 - i as f64 / steps as f64)?);
        match steps {
            0 => Ok(Grid::Alone),
            _ => Ok(Grid::Levels((1..=steps).map(level).collect::<Result<_>>()?)),
        }
    }
}

impl Sampler for AnyOrderWalk {
    fn sample(&mut self, model: &Denoiser, xt_bl: &Tensor) -> Result<Tensor> {
        let (b, l) = check_shape!(xt_bl, [B, L], Int64);
        let mask = model.mask_id()?;
        // A text's numbers depend on neither the batch nor how many tokens a call reveals.
        let (order_bl, token_bl) = (model.uniforms(&[b, l])?, model.uniforms(&[b, l])?);
        let plan =
            Plan::new(&order_bl, &xt_bl.not_equal(mask), self.config.alpha_0, &self.grid(model)?)?;
        let total = plan.calls();
        let (mut x_bl, mut kept) = (xt_bl.copy(), Kept::new(&plan, l, self.config.keep_keys));
        for call in 0..total {
            let asked = kept.ask(model, &plan, &x_bl, call)?;
            let logits_nv = model.logits(&asked.hidden_nd)?;
            let _ = logits_nv.select(1, mask).fill_(f64::NEG_INFINITY);
            let u_n = token_bl.reshape([-1]).index_select(0, &asked.rows_n);
            let token_n = ops::categorical_at(&self.restriction.apply(&logits_nv), &u_n);
            x_bl = ops::put_rows(&x_bl, &asked.rows_n, &token_n);
            model.progress(call as i64 + 1, total as i64, &x_bl)?;
        }
        Ok(x_bl)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use maskdiff_plugin_api::testkit::{Toy, chi_square, sampler_contract};

    fn sampler(config: Config) -> AnyOrderWalk {
        let restriction = Restriction::new(1.0, 0, 1.0).unwrap();
        AnyOrderWalk { config, restriction }
    }

    #[test]
    fn contract() {
        sampler_contract::<AnyOrderWalk>();
    }

    /// One token at a time, exact conditionals give the joint law, in any order and in a batch; many steps come near to it.
    #[test]
    fn samples_have_the_joint_law_of_the_model() {
        let toy = Toy::new(3, 3);
        for (config, batch) in [
            (Config::default(), 1),
            (Config::default(), 8),
            (Config { alpha_0: 0.4, ..Config::default() }, 8),
            (Config { alpha_0: 0.0, ..Config::default() }, 8),
            (Config { stride: 3, ..Config::default() }, 8),
            (Config { steps: 2000, ..Config::default() }, 8),
            (Config { keep_keys: false, ..Config::default() }, 8),
        ] {
            tch::manual_seed(batch);
            let mut counts = vec![0.0; 27];
            for _ in 0..4000 / batch {
                let mut walk = sampler(config.clone());
                let x0 = walk.sample(&Denoiser::new(&toy), &toy.masked(batch)).unwrap();
                counts.iter_mut().zip(toy.counts(&x0)).for_each(|(sum, count)| *sum += count);
            }
            let p = chi_square(&counts, toy.joint());
            assert!(p > 1e-4, "{config:?}, batch {batch}: p = {p:e}");
        }
    }

    /// Texts of a batch with other given tokens: each has the law of the rest given these.
    #[test]
    fn given_tokens_are_conditions() {
        let toy = Toy::new(3, 3);
        tch::manual_seed(2);
        let (half, start) = (4000, toy.masked(8000));
        let _ = start.narrow(0, 0, half).select(1, 1).fill_(2);
        let _ = start.narrow(0, half, half).narrow(1, 1, 2).fill_(0);
        for steps in [0, 3000] {
            let mut walk = sampler(Config { steps, ..Config::default() });
            let x0 = walk.sample(&Denoiser::new(&toy), &start).unwrap();
            let fits = |given: fn(&[i64]) -> bool| -> Vec<f64> {
                let p = |state: usize| {
                    if given(&toy.tokens_of(state)) { toy.joint()[state] } else { 0.0 }
                };
                let all: Vec<f64> = (0..27).map(p).collect();
                let total: f64 = all.iter().sum();
                all.into_iter().map(|p| p / total).collect()
            };
            let one = chi_square(&toy.counts(&x0.narrow(0, 0, half)), &fits(|x| x[1] == 2));
            let two =
                chi_square(&toy.counts(&x0.narrow(0, half, half)), &fits(|x| x[1..] == [0, 0]));
            assert!(one > 1e-4 && two > 1e-4, "{steps} steps: {one:e}, {two:e}");
        }
    }

    #[test]
    fn a_text_costs_a_call_for_each_step_that_reveals_a_token() {
        for (config, calls) in [
            (Config::default(), 5),
            (Config { stride: 2, ..Config::default() }, 2),
            (Config { steps: 1, ..Config::default() }, 1),
            (Config { steps: 1, alpha_0: 0.0, ..Config::default() }, 5),
        ] {
            let toy = Toy::new(5, 3);
            let _ = sampler(config).sample(&Denoiser::new(&toy), &toy.masked(3)).unwrap();
            assert_eq!(toy.calls(), 3 * calls);
        }
        // Texts that are whole are read no more.
        let toy = Toy::new(5, 3);
        let start = toy.masked(2);
        let _ = start.get(1).narrow(0, 0, 3).fill_(1);
        let _ = sampler(Config::default()).sample(&Denoiser::new(&toy), &start).unwrap();
        assert_eq!(toy.calls(), 5 + 2);
    }
}
