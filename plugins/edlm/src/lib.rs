//! `edlm`: ancestral steps whose clean texts are chosen among several by a second model, which scores whole texts. It is autoregressive, or was
//! trained for that by `nce`.
//!
//! Shape letters: `B` batch, `L` length, `K` candidates, `V` vocabulary including the mask, `N` rows.

mod energy;
mod nce;

use maskdiff_plugin_api::prelude::*;
use tch::Kind;

export_plugin!();
register!(sampler Edlm);

/// Options under `sampling` for `edlm`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct Config {
    /// Reverse steps, ≥ 1.
    #[schemars(range(min = 1, max = 1_000_000_000))]
    steps: i64,
    /// Time at which the walk ends, in (0, 1).
    #[schemars(extend("exclusiveMinimum" = 0.0, "exclusiveMaximum" = 1.0))]
    t_min: f64,
    /// k: clean texts that are drawn in a step, of which one is kept, ≥ 1; 1 asks the second model nothing.
    #[schemars(range(min = 1, max = 65536))]
    candidates: i64,
    /// w: steps at times of at least 1 - w choose among candidates, later ones draw one alone; in [0, 1], 0 is never.
    #[schemars(range(min = 0.0, max = 1.0))]
    window: f64,
}

impl Default for Config {
    fn default() -> Self {
        Self { steps: 128, t_min: 1e-5, candidates: 4, window: 1.0 }
    }
}

/// Ancestral sampling over masks whose clean text is drawn by importance from a residual energy.
///
/// # Equation
/// In each step k texts `x^1 .. x^k` are drawn, every masked token from `p(x0 | xt)` by itself. One of them is kept, with probability
/// `w_i / sum w`, `w_i = q(x^i) / p(x^i | xt)`, where `q` is the law of whole texts of the second model and `p` the product over the masked
/// tokens; or `w_i = exp(-E(x^i, xt, t))` where the second model learned the energy `E` (`nce`). A position that opens between t and s
/// takes its token from the kept text. With many candidates the kept text has the law `q`, given what is open.
///
/// # Source
/// Xu et al. 2024, arXiv:2410.21357, sections 3.2, 3.3 and 4 (`E = -log q + log p`, autoregressive, or learned; `window` is its
/// importance window). Differences: the draws are exact in f64, and `w` is normalised in logarithms. A next-token model has no law of the
/// first token, so the first token's `p` stands for its `q` too.
///
/// # Cost
/// A call of the network in each step in which a token opens, and k of the second model.
struct Edlm(Config);

impl Component for Edlm {
    const NAME: &'static str = "edlm";
    const ABOUT: &'static str =
        "ancestral steps that choose among clean texts by a second model (EDLM)";
    const NEEDS: &'static [&'static str] =
        &[capability::MASK, capability::LOG_X0, capability::CARRY_OVER, capability::ENERGY];
    type Config = Config;

    fn new(config: Config, _: &Context) -> Result<Self> {
        let Config { steps, t_min, candidates, window } = config;
        ensure!(steps > 0, Config, "`sampling.steps` must be at least 1, got {steps}");
        ensure!(
            0.0 < t_min && t_min < 1.0,
            Config,
            "`sampling.t_min` must lie in (0, 1), got {t_min}"
        );
        ensure!(
            candidates > 0,
            Config,
            "`sampling.candidates` must be at least 1, got {candidates}"
        );
        ensure!(
            (0.0..=1.0).contains(&window),
            Config,
            "`sampling.window` must lie in [0, 1], got {window}"
        );
        Ok(Self(config))
    }
}

/// `log q(x)` of texts `[B, L]` without the first token, `[B] f64`, by a model of next tokens.
fn log_likelihood(energy: &Denoiser, x0_bl: &Tensor) -> Result<Tensor> {
    let (b, l) = check_shape!(x0_bl, [B, L], Int64);
    if l == 1 {
        return Ok(Tensor::zeros([b], (Kind::Double, x0_bl.device())));
    }
    let hidden = energy.hidden(&x0_bl.narrow(1, 0, l - 1), &energy.times(b, 0.0))?;
    let target_n = x0_bl.narrow(1, 1, l - 1).reshape([-1]);
    let one_n = Tensor::ones(target_n.size(), (hidden.kind(), target_n.device()));
    let nats_n = energy.weighted_nll(&hidden.flatten(0, 1), &target_n, &one_n, energy.mask())?;
    Ok(-nats_n.view([b, l - 1]).sum_dim_intlist([1i64].as_slice(), false, Kind::Double))
}

/// Masked positions of texts, and the law at each of them.
struct Open<'a> {
    x_bl: &'a Tensor,
    rows_n: Tensor,
    log_x0_nv: Tensor,
}

impl Open<'_> {
    /// A clean text of each, from uniform numbers `[B, L]`.
    fn candidate(&self, u_bl: &Tensor) -> Tensor {
        let token_n = ops::categorical_at(&self.log_x0_nv, &ops::take_rows(u_bl, &self.rows_n));
        ops::put_rows(self.x_bl, &self.rows_n, &token_n)
    }

    /// `log w` of clean texts, `[B] f64`.
    fn log_weight(&self, energy: &Denoiser, x0_bl: &Tensor, alpha: f64) -> Result<Tensor> {
        if energy.offers(capability::RESIDUAL)? == Some(true) {
            let masked_bl = self.x_bl.ne_tensor(x0_bl);
            let alpha_b = Tensor::full([x0_bl.size()[0]], alpha, (Kind::Double, x0_bl.device()));
            let ratio_b = energy::log_ratio(energy, x0_bl, &masked_bl, &alpha_b)?;
            return Ok(ratio_b.to_kind(Kind::Double));
        }
        let token_n1 = ops::take_rows(x0_bl, &self.rows_n).unsqueeze(1);
        let log_p_n = self.log_x0_nv.gather(1, &token_n1, false).squeeze_dim(1);
        let zero_bl = Tensor::zeros(x0_bl.size(), (Kind::Double, x0_bl.device()));
        let log_p_bl = ops::put_rows(&zero_bl, &self.rows_n, &log_p_n.to_kind(Kind::Double));
        // The first token has no law of the second model.
        let scored_bl = log_p_bl.narrow(1, 1, x0_bl.size()[1] - 1);
        let log_p_b = scored_bl.sum_dim_intlist([1i64].as_slice(), false, Kind::Double);
        Ok(log_likelihood(energy, x0_bl)? - log_p_b)
    }
}

impl Edlm {
    /// How many candidates a step at t has.
    fn candidates(&self, t: f64) -> i64 {
        // Equal steps end where the window does only up to rounding.
        let within = self.0.window > 0.0 && t >= 1.0 - self.0.window - 1e-9;
        if within { self.0.candidates } else { 1 }
    }

    /// One clean text for each at time t, from uniform numbers `u_bm [B, K L + 1]`.
    fn clean(&self, model: &Denoiser, open: &Open<'_>, u_bm: &Tensor, t: f64) -> Result<Tensor> {
        let k = self.candidates(t);
        let l = open.x_bl.size()[1];
        let numbers = |i: i64| u_bm.narrow(1, i * l, l);
        if k == 1 {
            return Ok(open.candidate(&numbers(0)));
        }
        let (energy, alpha) = (model.other("energy")?, model.alpha(t)?);
        let all: Vec<Tensor> = (0..k).map(|i| open.candidate(&numbers(i))).collect();
        let log_w: Vec<Tensor> = all
            .iter()
            .map(|x0_bl| open.log_weight(&energy, x0_bl, alpha))
            .collect::<Result<_>>()?;
        let log_w_bk = Tensor::stack(&log_w, 1).log_softmax(-1, Kind::Double);
        let chosen_b = ops::categorical_at(&log_w_bk, &u_bm.select(1, k * l));
        let all_bkl = Tensor::stack(&all, 1);
        let chosen_b1l = chosen_b.view([-1, 1, 1]).expand([-1, 1, l], false);
        Ok(all_bkl.gather(1, &chosen_b1l, false).squeeze_dim(1))
    }
}

impl StepSampler for Edlm {
    fn walk(&self) -> Walk {
        let Config { steps, t_min, .. } = self.0;
        Walk { steps, t_min, noise_removal: true }
    }

    fn step(&mut self, model: &Denoiser, xt_bl: &Tensor, t: f64, s: f64) -> Result<Tensor> {
        let (b, l) = check_shape!(xt_bl, [B, L], Int64);
        let k = self.candidates(t);
        let mut opens_bl = xt_bl.eq(model.mask_id()?);
        // For each position of each text, whatever opens: a text draws the same in every batch.
        let u_bm = model.uniforms(&[b, (k + 1) * l + 1])?;
        if s > 0.0 {
            let (alpha_t, alpha_s) = (model.alpha(t)?, model.alpha(s)?);
            let opens = u_bm.narrow(1, k * l + 1, l).lt((alpha_s - alpha_t) / (1.0 - alpha_t));
            opens_bl = opens_bl.logical_and(&opens);
        }
        // sync: which texts change is data.
        let changed_b = ops::rows_of(&opens_bl.any_dim(1, false));
        if changed_b.numel() == 0 {
            return Ok(xt_bl.shallow_clone());
        }
        let x_bl = xt_bl.index_select(0, &changed_b);
        let rows_n = ops::rows_of(&x_bl.eq(model.mask_id()?));
        model.turn_to(&changed_b)?;
        let log_x0_nv = model.log_x0(&x_bl, &model.times(x_bl.size()[0], t), &rows_n)?;
        let open = Open { x_bl: &x_bl, rows_n, log_x0_nv };
        let x0_bl = self.clean(model, &open, &u_bm.index_select(0, &changed_b), t)?;
        let opened_bl = x0_bl.where_self(&opens_bl.index_select(0, &changed_b), &x_bl);
        Ok(xt_bl.index_copy(0, &changed_b, &opened_bl))
    }

    fn law(&self, _: &Denoiser, _: &Tensor, _: f64, _: f64) -> Result<Tensor> {
        bail!(
            Unsupported,
            "the tokens of a step of `edlm` depend on each other: it has no law of each"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use maskdiff_plugin_api::testkit::{Toy, chi_square, sampler_contract};

    #[test]
    fn contract() {
        sampler_contract::<Edlm>();
    }

    const STATES: usize = 9;

    /// Texts of two tokens out of three; the second model has another table.
    fn toy() -> Toy {
        Toy::new(2, 3).beside("energy", other())
    }

    /// The table of longer texts, of which the first two tokens are read.
    fn other() -> Toy {
        Toy::new(3, 3).causal()
    }

    /// The product of the laws of single tokens under nothing but masks, and the logarithm of each text's weight.
    fn product_and_weights() -> (Vec<f64>, Vec<f64>) {
        let (toy, longer) = (toy(), other());
        let sum = |joint: &[f64], matches: &dyn Fn(&[i64]) -> bool, of: &Toy| -> f64 {
            let all = joint.iter().enumerate();
            all.filter(|(state, _)| matches(&of.tokens_of(*state))).map(|(_, p)| p).sum()
        };
        let mut law = Vec::new();
        let mut weight = Vec::new();
        for state in 0..STATES {
            let tokens = toy.tokens_of(state);
            let p = [0, 1].map(|l| sum(toy.joint(), &|other| other[l] == tokens[l], &toy));
            let first = sum(longer.joint(), &|other| other[0] == tokens[0], &longer);
            let both = sum(longer.joint(), &|other| other[..2] == tokens[..], &longer);
            law.push(p[0] * p[1]);
            weight.push(both / first / p[1]);
        }
        (law, weight)
    }

    fn draws(candidates: i64, window: f64, count: i64) -> Vec<f64> {
        let toy = toy();
        // One step opens everything at once.
        let config = Config { steps: 1, t_min: 1e-9, candidates, window };
        let mut sampler = Edlm::new(config, &toy.context()).unwrap();
        tch::manual_seed(3);
        let drawn = sampler.sample(&Denoiser::new(&toy), &toy.masked(count)).unwrap();
        toy.counts(&drawn)
    }

    #[track_caller]
    fn agree(counts: &[f64], law: &[f64]) {
        let p = chi_square(counts, law);
        assert!(p > 1e-4, "p = {p:e}, {counts:?} {law:?}");
    }

    /// Of two candidates the law of the kept one is a sum over all pairs.
    #[test]
    fn the_law_of_few_candidates_is_that_of_importance() {
        let (p, w) = product_and_weights();
        let mut law = vec![0.0; STATES];
        for a in 0..STATES {
            for b in 0..STATES {
                law[a] += p[a] * p[b] * w[a] / (w[a] + w[b]);
                law[b] += p[a] * p[b] * w[b] / (w[a] + w[b]);
            }
        }
        agree(&draws(2, 1.0, 20_000), &law);
        assert!(chi_square(&draws(2, 1.0, 20_000), &p) < 1e-6, "it is not the product");
        // One candidate, and steps outside the window, are ancestral.
        agree(&draws(1, 1.0, 20_000), &p);
        agree(&draws(8, 0.0, 20_000), &p);
    }

    /// With many candidates it is the law of the second model, whose first token comes from the first.
    #[test]
    fn with_many_candidates_the_law_is_the_product_of_both() {
        let (p, w) = product_and_weights();
        let law: Vec<f64> = p.iter().zip(&w).map(|(p, w)| p * w).collect();
        assert!((law.iter().sum::<f64>() - 1.0).abs() < 1e-9);
        agree(&draws(400, 1.0, 4000), &law);
    }

    #[test]
    fn wrong_options_are_refused_with_their_names() {
        let context = toy().context();
        for (config, name) in [
            (Config { steps: 0, ..Config::default() }, "`sampling.steps`"),
            (Config { candidates: 0, ..Config::default() }, "`sampling.candidates`"),
            (Config { window: 1.5, ..Config::default() }, "`sampling.window`"),
            (Config { t_min: 0.0, ..Config::default() }, "`sampling.t_min`"),
        ] {
            let error = Edlm::new(config, &context).err().expect("a refusal");
            assert!(error.to_string().contains(name), "{error}");
        }
    }
}
