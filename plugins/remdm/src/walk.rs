//! The walk: what opens, what is masked again, and what is left alone.

use maskdiff_plugin_api::prelude::*;
use tch::Kind;

use crate::Remdm;
use crate::schedule::{Step, by_confidence};

/// What a walk remembers.
struct State {
    /// Tokens `[B, L] i64`.
    x_bl: Tensor,
    /// Where a token was given, `[B, L] bool`.
    given_bl: Tensor,
    /// The probability with which each token was drawn, `[B, L] f64`.
    confidence_bl: Tensor,
}

impl Remdm {
    /// The chance that each open token is masked in a step, `[B, L] f64`.
    fn remask_chance(&self, step: Step, state: &State, masked_bl: &Tensor) -> Tensor {
        let fixed_bl = masked_bl.logical_or(&state.given_bl);
        if self.remasking.by_confidence() {
            return by_confidence(step.sigma, &state.confidence_bl, &fixed_bl);
        }
        state.confidence_bl.full_like(step.sigma).masked_fill(&fixed_bl, 0.0)
    }

    /// The chance that a masked token opens: one masked by confidence has none of sigma.
    fn open_chance(&self, step: Step) -> f64 {
        step.open_chance(if self.remasking.by_confidence() { 0.0 } else { step.sigma })
    }

    /// The times at which the schedule keeps a share `alpha`, `[B] f64`.
    fn times(model: &Denoiser, batch: i64, alpha: f64) -> Result<Tensor> {
        model.time_of_alpha(&Tensor::full([batch], alpha, (Kind::Double, model.device())))
    }

    /// The tokens of `opens_bl` are drawn by uniform numbers `[B, L]`, or are the likeliest ones.
    fn open(
        &self,
        model: &Denoiser,
        state: &mut State,
        opens_bl: &Tensor,
        alpha_t: f64,
        u_bl: Option<&Tensor>,
    ) -> Result<()> {
        let (changed_b, rows_n) = ops::sequences_and_rows(opens_bl);
        if changed_b.numel() == 0 {
            return Ok(());
        }
        let x_bl = state.x_bl.index_select(0, &changed_b);
        let t_b = Self::times(model, x_bl.size()[0], alpha_t)?;
        model.turn_to(&changed_b)?;
        let log_x0_nv = model.log_x0(&x_bl, &t_b, &rows_n)?;
        let token_n = match u_bl {
            None => log_x0_nv.argmax(-1, false),
            Some(u_bl) => {
                let u_n = ops::take_rows(&u_bl.index_select(0, &changed_b), &rows_n);
                ops::categorical_at(&self.restriction.apply(&log_x0_nv), &u_n)
            }
        };
        let p_n = log_x0_nv.gather(1, &token_n.unsqueeze(1), false).squeeze_dim(1).exp();
        let drawn_bl = ops::put_rows(&x_bl, &rows_n, &token_n);
        let known_bl = state.confidence_bl.index_select(0, &changed_b);
        let known_bl = ops::put_rows(&known_bl, &rows_n, &p_n.to_kind(Kind::Double));
        state.x_bl = state.x_bl.index_copy(0, &changed_b, &drawn_bl);
        state.confidence_bl = state.confidence_bl.index_copy(0, &changed_b, &known_bl);
        Ok(())
    }

    fn step(&self, model: &Denoiser, state: &mut State, t: f64, s: f64) -> Result<()> {
        let mask = model.mask_id()?;
        let step = self.remasking.step(model, t, s)?;
        let x_bl = &state.x_bl;
        let (b, l) = check_shape!(x_bl, [B, L], Int64);
        let masked_bl = x_bl.eq(mask);
        // For each position of each sequence, whatever happens there: a sequence draws the same in every batch.
        let u_b3l = model.uniforms(&[b, 3, l])?;
        let chance_bl = self.remask_chance(step, state, &masked_bl);
        let again_bl = u_b3l.select(1, 0).lt_tensor(&chance_bl);
        let opens_bl = masked_bl.logical_and(&u_b3l.select(1, 1).lt(self.open_chance(step)));
        self.open(model, state, &opens_bl, step.alpha_t, Some(&u_b3l.select(1, 2)))?;
        state.x_bl = state.x_bl.masked_fill(&again_bl, mask);
        Ok(())
    }
}

impl Sampler for Remdm {
    fn sample(&mut self, model: &Denoiser, xt_bl: &Tensor) -> Result<Tensor> {
        check_shape!(xt_bl, [B, L], Int64);
        let mask = model.mask_id()?;
        let mut state = State {
            x_bl: xt_bl.shallow_clone(),
            given_bl: xt_bl.not_equal(mask),
            confidence_bl: Tensor::ones(xt_bl.size(), (Kind::Double, xt_bl.device())),
        };
        let Walk { steps, t_min, noise_removal } = self.walk;
        for i in 0..steps {
            self.step(model, &mut state, self.walk.time(i), self.walk.time(i + 1))?;
            model.progress(i + 1, steps, &state.x_bl)?;
        }
        if noise_removal {
            let masked_bl = state.x_bl.eq(mask);
            let alpha = self.remasking.alpha(model, t_min)?;
            self.open(model, &mut state, &masked_bl, alpha, None)?;
        }
        Ok(state.x_bl)
    }

    /// Every open token counts as drawn; with `conf`, all with the same confidence.
    fn law(&self, model: &Denoiser, xt_bl: &Tensor, t: f64, s: f64) -> Result<Tensor> {
        let (b, l) = check_shape!(xt_bl, [B, L], Int64);
        let (mask, v) = (model.mask_id()?, model.vocab_size());
        let masked_bl = xt_bl.eq(mask);
        let state = State {
            x_bl: xt_bl.shallow_clone(),
            given_bl: masked_bl.zeros_like(),
            confidence_bl: Tensor::ones(xt_bl.size(), (Kind::Double, xt_bl.device())),
        };
        let rows_n = Tensor::arange(b * l, (Kind::Int64, xt_bl.device()));
        let step = self.remasking.step(model, t, s)?;
        let t_b = Self::times(model, b, step.alpha_t)?;
        let log_x0_nv = model.log_x0(xt_bl, &t_b, &rows_n)?;
        let (drawn_nv, open, remask_bl) = if s > 0.0 {
            let law_nv = self.restriction.apply(&log_x0_nv).softmax(-1, Kind::Double);
            (law_nv, self.open_chance(step), self.remask_chance(step, &state, &masked_bl))
        } else {
            let likeliest = log_x0_nv.argmax(-1, false).one_hot(v).to_kind(Kind::Double);
            (likeliest, 1.0, state.confidence_bl.zeros_like())
        };
        let stays_nv = xt_bl.reshape([-1]).one_hot(v).to_kind(Kind::Double);
        let mask_v = stays_nv.zeros_like();
        let _ = mask_v.select(1, mask).fill_(1.0);
        let remask_n1 = remask_bl.reshape([-1, 1]);
        let of_open: Tensor = &stays_nv * (1.0 - &remask_n1) + &mask_v * remask_n1;
        let of_masked: Tensor = drawn_nv * open + mask_v * (1.0 - open);
        Ok(of_masked.where_self(&masked_bl.reshape([-1, 1]), &of_open).view([b, l, v]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Config, Strategy};
    use maskdiff_plugin_api::testkit::{
        Toy, chi_square, law_of_walk, sampler_contract, walk_contract,
    };

    fn remdm(config: Config) -> Remdm {
        Remdm::new(config, &Toy::new(3, 3).context()).unwrap()
    }

    #[test]
    fn contract() {
        sampler_contract::<Remdm>();
    }

    #[test]
    fn samples_have_the_law_of_the_walk() {
        walk_contract(|steps| {
            let sampler = remdm(Config { eta: 0.5, steps, ..Config::default() });
            let walk = sampler.walk;
            (sampler, walk)
        });
    }

    #[test]
    fn cap_and_loop_have_the_law_of_their_walks() {
        for (strategy, eta) in [(Strategy::Cap, 0.3), (Strategy::Loop, 0.3)] {
            let toy = Toy::new(3, 3);
            let mut sampler = remdm(Config { strategy, eta, steps: 12, ..Config::default() });
            let law = law_of_walk(&sampler, sampler.walk, &toy).unwrap();
            tch::manual_seed(11);
            let x0 = sampler.sample(&Denoiser::new(&toy), &toy.masked(20_000)).unwrap();
            let p = chi_square(&toy.counts(&x0), &law);
            assert!(p > 1e-4, "{strategy:?}: p = {p:e}");
        }
    }

    /// With `conf`, of two drawn tokens the one drawn with less confidence is masked more often, as the softmax says.
    #[test]
    fn confidence_decides_what_is_masked_again() {
        tch::manual_seed(12);
        let (toy, n) = (Toy::new(3, 3), 40_000);
        let sampler = remdm(Config { strategy: Strategy::Conf, ..Config::default() });
        let x_bl = toy.masked(n);
        let _ = x_bl.narrow(1, 0, 2).fill_(1);
        let confidence_bl = Tensor::from_slice(&[0.9, 0.2, 1.0]).expand([n, 3], false);
        let given_bl = x_bl.zeros_like().to_kind(Kind::Bool);
        let mut state = State { x_bl, given_bl, confidence_bl };
        let (t, s) = (0.6, 0.5);
        let step = sampler.remasking.step(&Denoiser::new(&toy), t, s).unwrap();
        sampler.step(&Denoiser::new(&toy), &mut state, t, s).unwrap();
        let masked = state.x_bl.eq(3).to_kind(Kind::Double);
        let got = Vec::<f64>::try_from(masked.mean_dim(0, false, Kind::Double)).unwrap();
        let weight = [(-0.9f64).exp(), (-0.2f64).exp()];
        let share = |i: usize| step.sigma * weight[i] / (weight[0] + weight[1]);
        let want = [share(0), share(1), 1.0 - step.open_chance(0.0)];
        for (got, want) in got.iter().zip(want) {
            let error = (want * (1.0 - want) / n as f64).sqrt();
            assert!((got - want).abs() < 5.0 * error, "{got} {want}");
        }
    }

    #[test]
    fn every_strategy_keeps_what_is_given_and_leaves_no_mask() {
        let toy = Toy::new(6, 3);
        let start = toy.masked(50);
        let _ = start.narrow(1, 0, 2).fill_(2);
        for strategy in [Strategy::Cap, Strategy::Rescale, Strategy::Conf, Strategy::Loop] {
            let mut sampler = remdm(Config { strategy, eta: 0.8, steps: 40, ..Config::default() });
            let x0 = sampler.sample(&Denoiser::new(&toy), &start).unwrap();
            assert_eq!(x0.narrow(1, 0, 2), start.narrow(1, 0, 2), "{strategy:?}");
            assert!(x0.max().int64_value(&[]) < 3, "{strategy:?}");
        }
    }

    /// Without remasking, a step is the posterior.
    #[test]
    fn eta_zero_is_ancestral_sampling() {
        let toy = Toy::new(3, 3);
        let model = Denoiser::new(&toy);
        let sampler = remdm(Config { strategy: Strategy::Cap, eta: 0.0, ..Config::default() });
        let (x, rows) = (toy.masked(1), Tensor::arange(3, (Kind::Int64, tch::Device::Cpu)));
        let law = Sampler::law(&sampler, &model, &x, 0.6, 0.4).unwrap();
        let p = model.log_x0(&x, &model.times(1, 0.6), &rows).unwrap().exp();
        let (alpha_t, alpha_s) = (model.alpha(0.6).unwrap(), model.alpha(0.4).unwrap());
        let want = model.posterior(&x.view([-1]), alpha_t, alpha_s, &p).unwrap();
        assert!((law.view([3, 4]) - want).abs().max().double_value(&[]) < 1e-12);
    }
}
