//! `first_hitting`: one token after another at the times at which ancestral sampling of infinitely many steps would open
//! them.
//!
//! Between two openings nothing happens, so the time of the next one is drawn at once: L network calls a sequence give
//! the law of T to infinity exactly, each for one row of the vocabulary.
//!
//! Shape letters: `B` batch, `L` length, `V` vocabulary including the mask, `N` rows.

use maskdiff_plugin_api::ops::{Nucleus, Restriction};
use maskdiff_plugin_api::prelude::*;
use tch::{Device, Kind};

export_plugin!();
register!(sampler FirstHitting);

/// Options under `sampling` for `first_hitting`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct Config {
    /// Tokens of a sequence that open at once, ≥ 1. One is exact; more are faster, and blind to each other.
    #[schemars(range(min = 1, max = 16_777_216))]
    tokens_per_step: i64,
    /// Log-probabilities are divided by this before the draw, > 0.
    #[schemars(range(max = 1e6), extend("exclusiveMinimum" = 0.0))]
    temperature: f64,
    /// Draw among the k likeliest tokens; 0 is all.
    #[schemars(range(min = 0, max = 2_147_483_647))]
    top_k: i64,
    /// Draw among the likeliest tokens whose mass first reaches p, in (0, 1].
    #[schemars(range(max = 1.0), extend("exclusiveMinimum" = 0.0))]
    top_p: f64,
    /// Whether `top_p` keeps the token that crosses it (`reach`) or leaves it out (`within`), as the program of block diffusion does.
    nucleus: Nucleus,
}

impl Default for Config {
    fn default() -> Self {
        let nucleus = Nucleus::Reach;
        Self { tokens_per_step: 1, temperature: 1.0, top_k: 0, top_p: 1.0, nucleus }
    }
}

/// # Equation
/// With n masked tokens at time τ and `u ~ U(0, 1)`, the next opens where `1 - alpha(τ') = (1 - alpha(τ)) u^(1/n)`; which one
/// is uniform, and its token is drawn from `p(x0 | x, τ')`.
///
/// # Source
/// Zheng et al. 2024, arXiv:2409.02908, section 4. Differences: sequences of a batch may have different numbers of given
/// tokens; the position is chosen before the network's head is called; draws are exact in f64.
struct FirstHitting {
    tokens_per_step: i64,
    restriction: Restriction,
}

impl Component for FirstHitting {
    const NAME: &'static str = "first_hitting";
    const ABOUT: &'static str = "ancestral sampling of infinitely many steps in L network calls";
    const NEEDS: &'static [&'static str] =
        &[capability::MASK, capability::LOG_X0, capability::CARRY_OVER];
    type Config = Config;

    fn new(config: Config, _: &Context) -> Result<Self> {
        let Config { tokens_per_step, temperature, top_k, top_p, nucleus } = config;
        ensure!(
            tokens_per_step > 0,
            Config,
            "`sampling.tokens_per_step` must be at least 1, got {tokens_per_step}"
        );
        let restriction = Restriction::new(temperature, top_k, top_p)?.nucleus(nucleus);
        Ok(Self { tokens_per_step, restriction })
    }
}

impl Sampler for FirstHitting {
    fn sample(&mut self, model: &Denoiser, xt_bl: &Tensor) -> Result<Tensor> {
        let (b, l) = check_shape!(xt_bl, [B, L], Int64);
        let mask = model.mask_id()?;
        let mut x_bl = xt_bl.shallow_clone();
        let mut noise_b =
            Tensor::full([b], 1.0 - model.alpha(1.0)?, (Kind::Double, xt_bl.device()));
        let steps = |left: &[i64]| {
            let most = left.iter().copied().max().unwrap_or(0);
            (most + self.tokens_per_step - 1) / self.tokens_per_step
        };
        // What each step opens is known from here on, so the host waits for a GPU no more.
        let mut left = masked(&x_bl, mask);
        let (mut total, mut done) = (steps(&left), 0);
        while steps(&left) > 0 {
            // Sequences that are whole need no call.
            let open: Vec<i64> = (0..b).filter(|row| left[*row as usize] > 0).collect();
            let open_b = Tensor::from_slice(&open).to_device(xt_bl.device());
            let part_bl = x_bl.index_select(0, &open_b);
            let opening = self.tokens_per_step.min(l);
            // Of every sequence, also those that are whole: each draws the same in every batch.
            let u_bk = model.uniforms(&[b, 2 * l + opening])?.index_select(0, &open_b);
            let (lot_bl, value_bl) = (u_bk.narrow(1, 0, l), u_bk.narrow(1, l, l));
            let wait = |k: i64, masked_b: &Tensor| wait(&u_bk.select(1, 2 * l + k), masked_b);
            // How long the first of them waits is when the network is asked.
            let masked_b = part_bl.eq(mask).sum_dim_intlist(1, false, Kind::Double);
            let first_b = noise_b.index_select(0, &open_b) * wait(0, &masked_b);
            let t_b = model.time_of_alpha(&(first_b.ones_like() - &first_b))?;
            let mut after_b = first_b;
            for k in 1..opening {
                let later = wait(k, &(&masked_b - k as f64).clamp_min(1.0));
                after_b = &after_b * later;
            }
            noise_b = noise_b.index_copy(0, &open_b, &after_b);
            let counts: Vec<i64> =
                open.iter().map(|row| left[*row as usize].min(opening)).collect();
            let rows_n = some_masked(&part_bl, mask, &lot_bl, &counts);
            model.turn_to(&open_b)?;
            let log_x0_nv = model.log_x0(&part_bl, &t_b, &rows_n)?;
            let u_n = ops::take_rows(&value_bl, &rows_n);
            let token_n = ops::categorical_at(&self.restriction.apply(&log_x0_nv), &u_n);
            let part_bl = ops::put_rows(&part_bl, &rows_n, &token_n);
            x_bl = x_bl.index_copy(0, &open_b, &part_bl);
            open.iter().zip(&counts).for_each(|(row, count)| left[*row as usize] -= count);
            done += 1;
            if steps(&left) == 0 {
                // A law that has the mask may have drawn it.
                left = masked(&x_bl, mask);
                total = done + steps(&left);
            }
            model.progress(done, total, &x_bl)?;
        }
        Ok(x_bl)
    }

    /// The law of a step that opens what ancestral sampling would between t and s: the posterior.
    fn law(&self, model: &Denoiser, xt_bl: &Tensor, t: f64, s: f64) -> Result<Tensor> {
        let (b, l) = check_shape!(xt_bl, [B, L], Int64);
        let rows_n = Tensor::arange(b * l, (Kind::Int64, xt_bl.device()));
        let log_x0_nv = model.log_x0(xt_bl, &model.times(b, t), &rows_n)?;
        let p_nv = self.restriction.apply(&log_x0_nv).softmax(-1, Kind::Double);
        let alpha_s = if s > 0.0 { model.alpha(s)? } else { 1.0 };
        let law_nv = model.posterior(&xt_bl.reshape([-1]), model.alpha(t)?, alpha_s, &p_nv)?;
        Ok(law_nv.view([b, l, model.vocab_size()]))
    }
}

/// The factor by which `1 - alpha` falls until the next of n tokens opens: `u^(1/n)`, `[B] f64` → `[B] f64`. The uniform numbers lie
/// strictly inside (0, 1): a zero would be the end of time.
fn wait(u_b: &Tensor, masked_b: &Tensor) -> Tensor {
    (u_b.log() / masked_b).exp()
}

/// The number of masked tokens in each sequence.
fn masked(x_bl: &Tensor, mask: i64) -> Vec<i64> {
    // sync: how long the walk takes is data.
    let masked_b = x_bl.eq(mask).sum_dim_intlist(1, false, Kind::Int64).to_device(Device::Cpu);
    Vec::try_from(masked_b).unwrap_or_default()
}

/// Flat positions, ascending, of the masked tokens of each sequence with the highest lots: as many of each as `counts` says, `[N] i64`.
fn some_masked(x_bl: &Tensor, mask: i64, lot_bl: &Tensor, counts: &[i64]) -> Tensor {
    let most = counts.iter().copied().max().unwrap_or(0);
    let lot_bl = lot_bl.masked_fill(&x_bl.not_equal(mask), -1.0);
    let (_, best_bk) = lot_bl.topk(most, -1, true, true);
    let first_b =
        Tensor::arange(counts.len() as i64, (Kind::Int64, x_bl.device())) * x_bl.size()[1];
    let flat = (best_bk + first_b.unsqueeze(1)).view([-1]);
    let flat = if counts.iter().all(|count| *count == most) {
        flat
    } else {
        let of_row = |(row, count): (i64, &i64)| (0..*count).map(move |k| row * most + k);
        let chosen: Vec<i64> = (0..).zip(counts).flat_map(of_row).collect();
        flat.index_select(0, &Tensor::from_slice(&chosen).to_device(x_bl.device()))
    };
    flat.sort(0, false).0
}

#[cfg(test)]
mod tests {
    use super::*;
    use maskdiff_plugin_api::testkit::{Toy, chi_square, sampler_contract};

    fn sampler(tokens_per_step: i64) -> FirstHitting {
        FirstHitting { tokens_per_step, restriction: Restriction::new(1.0, 0, 1.0).unwrap() }
    }

    #[test]
    fn contract() {
        sampler_contract::<FirstHitting>();
    }

    #[test]
    fn samples_have_the_joint_law_of_the_model() {
        let toy = Toy::new(3, 3);
        for batch in [1, 8] {
            tch::manual_seed(batch);
            let mut counts = vec![0.0; 27];
            for _ in 0..2000 {
                let x0 = sampler(1).sample(&Denoiser::new(&toy), &toy.masked(batch)).unwrap();
                counts.iter_mut().zip(toy.counts(&x0)).for_each(|(sum, count)| *sum += count);
            }
            let p = chi_square(&counts, toy.joint());
            assert!(p > 1e-4, "batch {batch}: p = {p:e}");
        }
    }

    #[test]
    fn a_sequence_costs_as_many_calls_as_it_has_masks() {
        let toy = Toy::new(5, 3);
        let start = toy.masked(3);
        let _ = start.get(1).narrow(0, 0, 2).fill_(1);
        let _ = start.get(2).fill_(0);
        let x0 = sampler(1).sample(&Denoiser::new(&toy), &start).unwrap();
        assert_eq!(toy.calls(), 5 + 3);
        assert_eq!(x0.get(2), start.get(2));
        let toy = Toy::new(5, 3);
        let _ = sampler(2).sample(&Denoiser::new(&toy), &toy.masked(4)).unwrap();
        assert_eq!(toy.calls(), 4 * 3, "two at a time");
    }

    /// The number of masks at time t is binomial with probability (1 - alpha(t)) / (1 - alpha(1)): what opens below t was
    /// masked at it.
    #[test]
    fn tokens_open_when_ancestral_sampling_opens_them() {
        tch::manual_seed(3);
        let (toy, half, t) = (Toy::new(5, 3).noting_times(), 4000, 0.3);
        let start = toy.masked(2 * half);
        let _ = start.narrow(0, half, half).narrow(1, 0, 2).fill_(1);
        let _ = sampler(1).sample(&Denoiser::new(&toy), &start).unwrap();
        let asked = toy.asked();
        // The first three calls are for all sequences, the last two for those without given tokens.
        let below = |first: usize, calls: usize| -> Vec<f64> {
            let late = |i: usize| (0..calls).filter(|k| asked[*k][first + i] < t).count() as f64;
            (0..half as usize).map(late).collect()
        };
        for (n, counts) in [(5.0, below(0, 5)), (3.0, below(half as usize, 3))] {
            let draws = counts.len() as f64;
            let mean = counts.iter().sum::<f64>() / draws;
            let variance = counts.iter().map(|c| (c - mean).powi(2)).sum::<f64>() / draws;
            let spread = n * t * (1.0 - t);
            assert!((mean - n * t).abs() < 5.0 * (spread / draws).sqrt(), "{mean}, want {}", n * t);
            assert!((variance / spread - 1.0).abs() < 0.15, "{variance}, want {spread}");
        }
    }
}
