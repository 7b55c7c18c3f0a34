//! `interpolating`: the law of each token given the other positions, and the bound that it has under any mixture of noise.
//!
//! Shape letters: `B` batch, `L` length, `V` vocabulary with the mask where there is one, `N` rows.

use maskdiff_plugin_api::prelude::*;
use tch::Kind;

use crate::curriculum::{Curriculum, Soft};
use crate::weights::{LossWeight, Observed, dynamic, scale_and_gamma};

register!(parameterization Interpolating);

/// What the network receives of the noise level.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Told {
    /// Total noise sigma.
    Sigma,
    /// The time t, as GIDD's networks are.
    Time,
}

/// Options of `interpolating`, at the top of the configuration and in `training`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Config {
    /// Must be 0: the bound is one of continuous time.
    #[serde(rename = "T")]
    #[schemars(range(min = 0, max = 0))]
    pub(crate) t_steps: i64,
    /// Smallest time in training and evaluation, in (0, 1).
    #[schemars(extend("exclusiveMinimum" = 0.0, "exclusiveMaximum" = 1.0))]
    pub(crate) sampling_eps: f64,
    /// Largest time in training and evaluation, above `sampling_eps`, at most 1.
    #[schemars(range(max = 1.0), extend("exclusiveMinimum" = 0.0))]
    pub(crate) sampling_end: f64,
    /// What the network receives of the noise level: `sigma`, or `time`.
    pub(crate) network_input: Told,
    /// Weights of the training loss: `none` (the bound), `clip` or `dynamic` (GIDD). Logs and evaluations show the bound.
    pub(crate) loss_weight: LossWeight,
    /// Smallest weight for `loss_weight=clip`, above 0.
    #[schemars(extend("exclusiveMinimum" = 0.0))]
    pub(crate) loss_weight_min: f64,
    /// Largest weight for `loss_weight=clip`.
    #[schemars(extend("exclusiveMinimum" = 0.0))]
    pub(crate) loss_weight_max: f64,
    /// DUO's curriculum.
    pub(crate) curriculum: Curriculum,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            t_steps: 0,
            sampling_eps: 1e-3,
            sampling_end: 1.0,
            network_input: Told::Sigma,
            loss_weight: LossWeight::None,
            loss_weight_min: 0.05,
            loss_weight_max: 2.0,
            curriculum: Curriculum::default(),
        }
    }
}

/// Diffusion over a mixture `q = alpha x + b`.
///
/// # Equation
/// `loss = r(z)/q(z) { KL(q ‖ p~) + q(z)/p~(z) - ln(q(z)/p~(z)) - 1 }` with `p~ = alpha p + b` and the rate of arrival
/// `r = σ' rho`. Over `absorbing_state` it is that of `subs`, over `uniform` that of UDLM and DUO, over `gidd` and `xdlm` theirs.
/// With `loss_weight` another weight takes the place of `r/q` in training. With `curriculum` the network first reads mixtures of
/// tokens: `softmax(w / tau)` of Gaussian `w`, whose k largest entries are drawn without the others; the loss is the density above
/// at the largest entry, with the noise level that it has.
///
/// # Source
/// Sahoo et al. 2024, arXiv:2406.07524; Schiff et al. 2024, arXiv:2412.10193; Sahoo et al. 2025, arXiv:2506.10892; von Rütte et
/// al. 2025, arXiv:2503.04482. Differences: one form for all, without differences of nearly equal numbers; a process without
/// uniform noise is exactly MDLM; where the uniform and masked numbers of UDLM's code take alpha from two schedules, one is used.
///
/// # Cost
/// No `[B, L, V]` tensor where the head is linear. All rows count, but for those whose weight is 0.
pub(crate) struct Interpolating(Config);

impl Component for Interpolating {
    const NAME: &'static str = "interpolating";
    const ABOUT: &'static str =
        "law of each token given the others; every mixture of noise (UDLM, DUO, GIDD, XDLM, MDLM)";
    const PROVIDES: &'static [&'static str] =
        &[capability::LOG_X0, capability::SCORE, capability::BOUND];
    const NEEDS: &'static [&'static str] = &[capability::MIXING];
    type Config = Config;

    fn new(config: Config, context: &Context) -> Result<Self> {
        let Config { sampling_eps: start, sampling_end: end, loss_weight_min, .. } = config;
        ensure!(
            config.t_steps == 0,
            Config,
            "`T` must be 0, got {}: `interpolating` is a bound in continuous time",
            config.t_steps
        );
        ensure!(
            0.0 < start && start < 1.0,
            Config,
            "`training.sampling_eps` must lie in (0, 1), got {start}"
        );
        ensure!(
            start < end && end <= 1.0,
            Config,
            "`training.sampling_end` must lie above `training.sampling_eps` ({start}) and not above 1, got {end}"
        );
        ensure!(
            0.0 < loss_weight_min && loss_weight_min <= config.loss_weight_max,
            Config,
            "`training.loss_weight_min` must lie above 0 and not above `training.loss_weight_max` ({}), got {loss_weight_min}",
            config.loss_weight_max
        );
        config.curriculum.check(context)?;
        ensure!(
            !config.curriculum.is_on() || config.network_input == Told::Sigma,
            Config,
            "`training.curriculum` needs `training.network_input=sigma`"
        );
        Ok(Self(config))
    }
}

/// What the network read, at which noise level, and what it made of it.
struct Noisy {
    /// Total noise `[B] f64`, and its rate.
    sigma_b: Tensor,
    rate_b: Tensor,
    /// The tokens that the bound is about, `[B, L]`.
    z_bl: Tensor,
    hidden_bld: Tensor,
}

/// Rows of the bound, and what to train them with.
struct Scored {
    rows_n: Tensor,
    nats_n: Tensor,
    /// What the training loss has more, or less: its weight over that of the bound. `None` is 1.
    more_n: Option<Tensor>,
}

impl Interpolating {
    /// What the network receives at times `t_b`.
    fn input(&self, model: &Denoiser, t_b: &Tensor) -> Result<Tensor> {
        match self.0.network_input {
            Told::Sigma => model.sigma(t_b),
            Told::Time => Ok(t_b.shallow_clone()),
        }
    }

    /// What the network reads of a batch: tokens with noise, but not where they are given.
    fn noisy(&self, model: &Denoiser, batch: &Batch) -> Result<Noisy> {
        let sigma_b = model.sigma(&batch.t_b)?;
        let xt_bl = model.corrupt(&batch.x0_bl, &sigma_b.neg().exp())?;
        let z_bl = keep(batch, &xt_bl, &batch.x0_bl);
        let rate_b = model.dsigma(&batch.t_b)?;
        let hidden_bld = model.hidden(&z_bl, &self.input(model, &batch.t_b)?)?;
        Ok(Noisy { sigma_b, rate_b, z_bl, hidden_bld })
    }

    /// The same in DUO's curriculum, where it reads mixtures.
    fn mixed(&self, model: &Denoiser, batch: &Batch) -> Result<Noisy> {
        let Soft { sigma_b, rate_b, z_bl, ids_blk, weight_blk } =
            self.0.curriculum.soften(model, &batch.x0_bl, &batch.t_b)?;
        let z_bl = keep(batch, &z_bl, &batch.x0_bl);
        let (ids_blk, weight_blk) = match &batch.given_bl {
            None => (ids_blk, weight_blk),
            Some(given_bl) => {
                let given = given_bl.unsqueeze(-1);
                let one = weight_blk.zeros_like();
                let _ = one.select(-1, 0).fill_(1.0);
                let clean = batch.x0_bl.unsqueeze(-1).where_self(&given, &ids_blk);
                (clean, one.where_self(&given, &weight_blk))
            }
        };
        let pass = Pass::new(&z_bl, &sigma_b).mixture(&ids_blk, &weight_blk);
        let hidden_bld = model.pass(&pass)?.hidden;
        Ok(Noisy { sigma_b, rate_b, z_bl, hidden_bld })
    }

    /// The weight r/q of every position, `[B, L] f64`.
    fn weights(model: &Denoiser, batch: &Batch, noisy: &Noisy) -> Result<Tensor> {
        let Noisy { sigma_b, rate_b, z_bl, .. } = noisy;
        let (alpha_b, mask) = (sigma_b.neg().exp(), model.mask());
        let clean_bl = z_bl.eq_tensor(&batch.x0_bl).to_kind(Kind::Double);
        let q_bl = clean_bl * alpha_b.unsqueeze(1) + model.mixing(&alpha_b)?.at(z_bl, mask);
        let weight_bl = model.arrival(&alpha_b)?.at(z_bl, mask) * rate_b.unsqueeze(1) / q_bl;
        Ok(match &batch.given_bl {
            Some(given_bl) => weight_bl.masked_fill(given_bl, 0.0),
            None => weight_bl,
        })
    }

    /// The bound at every row that has a weight, by the weights of training or its own.
    fn scored(
        &self,
        model: &Denoiser,
        batch: &Batch,
        noisy: &Noisy,
        training: bool,
    ) -> Result<Scored> {
        let x0_bl = &batch.x0_bl;
        let (_b, l) = check_shape!(x0_bl, [B, L], Int64);
        let weight_bl = Self::weights(model, batch, noisy)?;
        // sync: which rows count is data. Over masks alone open ones do not.
        let rows_n = ops::rows_of(&weight_bl.not_equal(0.0));
        let hidden_nd = ops::take_rows(&noisy.hidden_bld, &rows_n);
        let (x_n, z_n) =
            (ops::take_rows(&batch.x0_bl, &rows_n), ops::take_rows(&noisy.z_bl, &rows_n));
        let of_row = |value_b: &Tensor| ops::of_sequence(value_b, &rows_n, l);
        let alpha_b = noisy.sigma_b.neg().exp();
        let mix = model.mixing(&alpha_b)?;
        let own_n = ops::take_rows(&weight_bl, &rows_n);
        let alpha_n = of_row(&alpha_b);
        let weight_n = match training {
            true => {
                let is_mask_n = match model.mask() {
                    Some(mask) => z_n.eq(mask),
                    None => z_n.zeros_like().to_kind(Kind::Bool),
                };
                let is_clean_n = z_n.eq_tensor(&x_n);
                let alpha_n = alpha_n.shallow_clone();
                self.training_weight(model, &own_n, &Observed { is_mask_n, is_clean_n, alpha_n })?
            }
            false => None,
        };
        let used_n = weight_n.as_ref().unwrap_or(&own_n);
        let mut rows = Interpolation::new(&hidden_nd, &x_n, &z_n, &alpha_n, &of_row(&mix.every_b))
            .weight(used_n);
        if let Some(mask) = model.mask() {
            rows = rows.banned(mask, &of_row(&mix.mask_b));
        }
        let nats_n = model.interpolating_nll(&rows)?;
        let more_n = weight_n.map(|weight_n| &own_n / weight_n);
        Ok(Scored { rows_n, nats_n, more_n })
    }

    /// GIDD's weights; `None` leaves the bound's.
    fn training_weight(
        &self,
        model: &Denoiser,
        own_n: &Tensor,
        observed: &Observed,
    ) -> Result<Option<Tensor>> {
        let Config { loss_weight, loss_weight_min, loss_weight_max, .. } = self.0;
        Ok(match loss_weight {
            LossWeight::None => None,
            LossWeight::Clip => Some(own_n.clamp(loss_weight_min, loss_weight_max)),
            LossWeight::Dynamic => Some(dynamic(model, observed)?),
        })
    }
}

/// `drawn_bl`, but what was given where the batch says so.
fn keep(batch: &Batch, drawn_bl: &Tensor, x0_bl: &Tensor) -> Tensor {
    match &batch.given_bl {
        Some(given_bl) => x0_bl.where_self(given_bl, drawn_bl),
        None => drawn_bl.shallow_clone(),
    }
}

/// Values of rows in a block of zeros.
fn whole(like_bl: &Tensor, rows_n: &Tensor, value_n: &Tensor) -> Tensor {
    let zero_bl = Tensor::zeros(like_bl.size(), (value_n.kind(), value_n.device()));
    ops::put_rows(&zero_bl, rows_n, value_n)
}

impl Parameterization for Interpolating {
    fn fits(&self, model: &Denoiser) -> Result<()> {
        ensure!(
            !self.0.curriculum.is_on() || model.offers(capability::MIXTURE)? != Some(false),
            Config,
            "`training.curriculum` needs a backbone that reads mixtures of tokens, and this one has no `mixture`; `training.curriculum.steps=0` turns it off"
        );
        match self.0.loss_weight {
            LossWeight::Dynamic => scale_and_gamma(model).map(|_| ()),
            LossWeight::None | LossWeight::Clip => Ok(()),
        }
    }

    fn draw_t(&self, _model: &Denoiser, u_b: &Tensor) -> Result<Tensor> {
        let Config { sampling_eps, sampling_end, .. } = self.0;
        Ok(u_b * (sampling_end - sampling_eps) + sampling_eps)
    }

    fn loss(&self, model: &Denoiser, x0_bl: &Tensor, t_b: &Tensor) -> Result<Tensor> {
        let batch = Batch::new(x0_bl, t_b);
        let scored = self.scored(model, &batch, &self.noisy(model, &batch)?, false)?;
        Ok(whole(x0_bl, &scored.rows_n, &scored.nats_n))
    }

    fn objective(&self, model: &Denoiser, batch: &Batch) -> Result<Objective> {
        if let Some(step) = model.step()?
            && self.0.curriculum.covers(step, batch.total_steps)
        {
            // A loss over mixtures bounds no likelihood of tokens.
            let scored = self.scored(model, batch, &self.mixed(model, batch)?, false)?;
            return Ok(Objective::new(whole(&batch.x0_bl, &scored.rows_n, &scored.nats_n)));
        }
        let Scored { rows_n, nats_n, more_n } =
            self.scored(model, batch, &self.noisy(model, batch)?, true)?;
        let loss_bl = whole(&batch.x0_bl, &rows_n, &nats_n);
        let nats_bl = match more_n {
            // A weight that rounds to 0 hides the row.
            Some(more_n) => {
                let bound_n = nats_n.detach() * more_n.to_kind(nats_n.kind());
                whole(&batch.x0_bl, &rows_n, &bound_n.nan_to_num(0.0, None, None))
            }
            None => loss_bl.detach(),
        };
        Ok(Objective::new(loss_bl).nats(nats_bl))
    }

    fn log_x0(
        &self,
        model: &Denoiser,
        xt_bl: &Tensor,
        t_b: &Tensor,
        rows_n: &Tensor,
    ) -> Result<Tensor> {
        check_shape!(xt_bl, [B, L], Int64);
        let hidden_bld = model.hidden(xt_bl, &self.input(model, t_b)?)?;
        let logits_nv = model.logits(&ops::take_rows(&hidden_bld, rows_n))?;
        // Half precision would lose 0.1 nat in the normaliser.
        let kind = if logits_nv.kind() == Kind::Double { Kind::Double } else { Kind::Float };
        let logits_nv = logits_nv.to_kind(kind).copy();
        if let Some(mask) = model.mask() {
            let _ = logits_nv.select(1, mask).fill_(f64::NEG_INFINITY);
        }
        Ok(logits_nv.log_softmax(-1, kind))
    }

    /// `p~(y) / p~(xt)`: with the law given the other positions it is the score of every token, noise or not.
    fn score(
        &self,
        model: &Denoiser,
        xt_bl: &Tensor,
        t_b: &Tensor,
        rows_n: &Tensor,
    ) -> Result<Tensor> {
        let (_b, l) = check_shape!(xt_bl, [B, L], Int64);
        let p_nv = self.log_x0(model, xt_bl, t_b, rows_n)?.exp();
        let alpha_b = model.sigma(t_b)?.neg().exp();
        let mix = model.mixing(&alpha_b)?;
        let of_row = |value_b: &Tensor| {
            ops::of_sequence(value_b, rows_n, l).to_kind(p_nv.kind()).unsqueeze(1)
        };
        let mixed_nv = &p_nv * of_row(&alpha_b) + of_row(&mix.every_b);
        if let Some(mask) = model.mask() {
            let level = if mix.mask_apart { mix.mask_b } else { &mix.every_b + &mix.mask_b };
            mixed_nv.select(1, mask).copy_(&of_row(&level).squeeze_dim(1));
        }
        let xt_n1 = ops::take_rows(xt_bl, rows_n).unsqueeze(1);
        Ok(&mixed_nv / mixed_nv.gather(1, &xt_n1, false))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use maskdiff_plugin_api::Model as _;
    use maskdiff_plugin_api::tch::Device;
    use maskdiff_plugin_api::testkit::{Toy, parameterization_contract};

    #[test]
    fn contract() {
        parameterization_contract::<Interpolating>();
    }

    /// The mean over noise and times from `first` on of what an exact network loses, and its error.
    fn bound_of(toy: &Toy, [tokens, length]: [i64; 2], n: i64, first: f64) -> (f64, f64) {
        let config = Config { sampling_eps: first, ..Config::default() };
        let method = Interpolating::new(config, &toy.context()).unwrap();
        let law = Tensor::from_slice(toy.joint()).log().unsqueeze(0);
        let state = ops::categorical(&law.expand([n, -1], false));
        let digit = |l: i64| {
            let place = tokens.pow((length - 1 - l) as u32);
            state.floor_divide_scalar(place).remainder(tokens)
        };
        let x0_bl = Tensor::stack(&(0..length).map(digit).collect::<Vec<_>>(), 1);
        let model = Denoiser::new(toy);
        let u_b = (Tensor::arange(n, (Kind::Double, Device::Cpu)) + 0.5) / n as f64;
        let t_b = method.draw_t(&model, &u_b).unwrap();
        let loss = method.loss(&model, &x0_bl, &t_b).unwrap();
        let nats = loss.sum_dim_intlist(1, false, Kind::Double);
        let error = nats.std(true).double_value(&[]) / (n as f64).sqrt();
        let mean = nats.mean(Kind::Double).double_value(&[]);
        ((1.0 - first) * mean, (1.0 - first) * error)
    }

    fn entropy(toy: &Toy) -> f64 {
        toy.joint().iter().map(|p| -p * p.ln()).sum()
    }

    #[test]
    fn the_bound_of_an_exact_model_is_the_entropy() {
        tch::manual_seed(5);
        for (name, toy) in [("uniform", Toy::uniform(3, 3)), ("hybrid", Toy::hybrid(3, 3))] {
            let (mean, error) = bound_of(&toy, [3, 3], 20_000, 1e-3);
            let entropy = entropy(&toy);
            // What is left out below sampling_eps and at alpha(1) is about one part in 300 of it.
            let slack = 0.02;
            assert!(
                (mean - entropy).abs() < 5.0 * error + slack,
                "{name}: {mean} ± {error}, {entropy}"
            );
        }
    }

    /// What an exact network loses at time t when it names a text of one token: `-E log p(x | z)`, with `p(x | z)` the law of the data
    /// times the noise, over all x and z.
    fn reconstruction(toy: &Toy, t: f64) -> f64 {
        let (model, data) = (Denoiser::new(toy), toy.joint());
        let alpha = model.alpha(t).unwrap();
        let tokens = Tensor::arange(toy.vocab_size(), (Kind::Int64, Device::Cpu)).unsqueeze(0);
        let mix = model.mixing(&Tensor::from_slice(&[alpha])).unwrap();
        let noise = Vec::<f64>::try_from(mix.at(&tokens, model.mask()).squeeze_dim(0)).unwrap();
        let q = |z: usize, x: usize| noise[z] + if z == x { alpha } else { 0.0 };
        let mut lost = 0.0;
        for z in 0..noise.len() {
            let all: f64 = data.iter().enumerate().map(|(x, p)| p * q(z, x)).sum();
            for (x, p) in data.iter().enumerate().filter(|(x, _)| q(z, *x) > 0.0) {
                lost -= p * q(z, x) * (p * q(z, x) / all).ln();
            }
        }
        lost
    }

    /// Wherever the bound of a token is cut, what is left to reconstruct is what its first part lacks.
    #[test]
    fn a_bound_that_is_cut_is_the_entropy_too() {
        tch::manual_seed(6);
        for (name, toy) in [("uniform", Toy::uniform(1, 5)), ("hybrid", Toy::hybrid(1, 5))] {
            let entropy = entropy(&toy);
            for first in [0.02, 0.2, 0.5] {
                let (mean, error) = bound_of(&toy, [5, 1], 20_000, first);
                let left = reconstruction(&toy, first);
                assert!(left > 0.01, "{name}, cut at {first}: {left}");
                // The share of clean tokens at t = 1 is not counted.
                assert!(
                    (mean + left - entropy).abs() < 5.0 * error + 0.005,
                    "{name}, cut at {first}: {mean} ± {error} + {left}, {entropy}"
                );
            }
        }
    }

    #[test]
    fn training_weights_change_the_loss_and_not_the_nats() {
        let toy = Toy::hybrid(3, 3);
        let model = Denoiser::new(&toy);
        let x0_bl = Tensor::randint(3, [64, 3], (Kind::Int64, Device::Cpu));
        let t_b = Tensor::linspace(0.05, 0.95, 64, (Kind::Double, Device::Cpu));
        let of = |loss_weight: LossWeight| {
            let config = Config { loss_weight, loss_weight_max: 1.2, ..Config::default() };
            let method = Interpolating::new(config, &toy.context()).unwrap();
            tch::manual_seed(8);
            method.objective(&model, &Batch::new(&x0_bl, &t_b)).unwrap()
        };
        let (plain, clipped) = (of(LossWeight::None), of(LossWeight::Clip));
        let distance = |a: &Tensor, b: &Tensor| (a - b).abs().max().double_value(&[]);
        let nats = plain.nats_bl.unwrap();
        assert_eq!(plain.loss_bl, nats);
        assert!(distance(&nats, &clipped.nats_bl.unwrap()) < 1e-9);
        assert!(distance(&nats, &clipped.loss_bl) > 1e-3);
    }

    #[test]
    fn wrong_options_are_refused_with_their_names() {
        let toy = Toy::uniform(2, 2);
        let refused = |config: Config, name: &str| {
            let error = Interpolating::new(config, &toy.context()).err().expect("a refusal");
            assert!(error.to_string().contains(name), "{error}");
        };
        refused(Config { t_steps: 8, ..Config::default() }, "`T` must be 0");
        refused(Config { sampling_eps: 0.0, ..Config::default() }, "`training.sampling_eps`");
        refused(Config { sampling_end: 1e-3, ..Config::default() }, "`training.sampling_end`");
        refused(Config { loss_weight_min: 3.0, ..Config::default() }, "`training.loss_weight_min`");
    }
}
