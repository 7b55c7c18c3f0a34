//! `confidence`: the tokens that the model is surest of open first.
//!
//! Shape letters: `B` batch, `L` length, `V` vocabulary including the mask, `M` masked tokens that may open, `N` those that do.

mod options;
mod plan;

use maskdiff_plugin_api::ops::{Order, Restriction};
use maskdiff_plugin_api::prelude::*;
use tch::{Device, Kind};

use options::{Cache, Config, Rank};
use plan::Places;

export_plugin!();
register!(sampler Confidence);

/// # Source
/// Nie et al. 2025, arXiv:2502.09992 (low-confidence remasking, blocks); Ye et al. 2025, arXiv:2508.15487 (`plan=times`,
/// `rank=restricted`, `alg_temp`); Kim et al. 2025, arXiv:2502.06768 (top-k margin); Wu et al. 2025, arXiv:2505.22618 (threshold,
/// factor). Differences: by default the order looks at the law, not at the token drawn from it, so it is the order of
/// `eval.likelihood=duel`, which with equal `order` and `tokens_per_step` gives the exact likelihood of what is drawn where no other
/// option is set; ties go to the earlier position; the parameterization bans the mask, which published programs do not; a step that
/// opens nothing makes no call; top-k comes before top-p.
///
/// # Cost
/// `L / tokens_per_step` network calls a sequence, or `total_steps`, or fewer with a threshold, each with the law `[M, V]`. With a cache
/// (Wu et al. 2025; approximate) the first call of a block reads all L tokens, the others those of the block, or all from its first on.
struct Confidence {
    config: Config,
    restriction: Restriction,
}

impl Component for Confidence {
    const NAME: &'static str = "confidence";
    const ABOUT: &'static str =
        "surest tokens first: confidence, margin or entropy; blocks, steps, threshold";
    const NEEDS: &'static [&'static str] =
        &[capability::MASK, capability::LOG_X0, capability::CARRY_OVER];
    type Config = Config;

    fn new(config: Config, context: &Context) -> Result<Self> {
        let restriction = config.checked(context.vocab_size)?;
        Ok(Self { config, restriction })
    }
}

/// What opens at a step.
struct Opening {
    /// Flat positions, `[N] i64`.
    rows_n: Tensor,
    /// What is drawn there, where the rank has needed it.
    drawn_n: Option<Tensor>,
    /// The law to draw from, not normalised, `[N, V] f64`.
    law_nv: Tensor,
}

/// The uniform numbers of a step, one for each position of each sequence, whatever opens: a sequence draws the same in every batch.
struct Draws {
    /// Behind the tokens, `[B, L] f64`.
    value_bl: Tensor,
    /// Behind the order, `[B, L] f64`, where that is drawn.
    order_bl: Tensor,
}

impl Draws {
    /// Of a step over `x_bl [B, L]`.
    fn new(model: &Denoiser, x_bl: &Tensor) -> Result<Self> {
        let (b, l) = check_shape!(x_bl, [B, L], Int64);
        let u_b2l = model.uniforms(&[b, 2, l])?;
        Ok(Self { value_bl: u_b2l.select(1, 0), order_bl: u_b2l.select(1, 1) })
    }

    /// The same numbers.
    fn whole(&self) -> Self {
        let [value_bl, order_bl] = [&self.value_bl, &self.order_bl].map(Tensor::shallow_clone);
        Self { value_bl, order_bl }
    }

    /// Those of some sequences.
    fn of(&self, sequences_n: &Tensor) -> Self {
        let of = |x: &Tensor| x.index_select(0, sequences_n);
        Self { value_bl: of(&self.value_bl), order_bl: of(&self.order_bl) }
    }
}

impl Opening {
    fn drawn(&self, draws: &Draws) -> Tensor {
        match &self.drawn_n {
            Some(drawn_n) => drawn_n.shallow_clone(),
            None => {
                let u_n = ops::take_rows(&draws.value_bl, &self.rows_n);
                ops::categorical_at(&self.law_nv, &u_n)
            }
        }
    }
}

/// Log-probabilities without some tokens, normalised.
fn without(log_p_nv: &Tensor, ids: &[i64]) -> Tensor {
    if ids.is_empty() {
        return log_p_nv.shallow_clone();
    }
    let columns = Tensor::from_slice(ids).to_device(log_p_nv.device());
    let left = log_p_nv.index_fill(-1, &columns, f64::NEG_INFINITY);
    left.log_softmax(-1, log_p_nv.kind())
}

impl Confidence {
    /// The law to draw from, not normalised.
    fn law_of(&self, log_p_nv: &Tensor, vocab_size: i64) -> Tensor {
        if self.config.is_greedy() {
            return log_p_nv.argmax(-1, false).one_hot(vocab_size).to_kind(Kind::Double).log();
        }
        self.restriction.apply(log_p_nv)
    }

    /// How much each position is preferred, `[M] f64`, and what is drawn there by uniform numbers `[M]`, where that counts.
    fn scores(&self, log_p_mv: &Tensor, u_m: &Tensor, vocab_size: i64) -> (Tensor, Option<Tensor>) {
        let Config { order, rank, doubted, .. } = &self.config;
        let drawn_m = (*rank != Rank::Law)
            .then(|| ops::categorical_at(&self.law_of(log_p_mv, vocab_size), u_m));
        let sure_mv = without(log_p_mv, doubted);
        let ranked_mv = match rank {
            Rank::Restricted => self.restriction.apply(&sure_mv).log_softmax(-1, Kind::Double),
            _ => sure_mv,
        };
        let mut score_m = match &drawn_m {
            Some(drawn_m) if *order == Order::Confidence => {
                ranked_mv.gather(-1, &drawn_m.unsqueeze(-1), false).squeeze_dim(-1).exp()
            }
            _ => order.score(&ranked_mv),
        }
        .to_kind(Kind::Double);
        if !doubted.is_empty() {
            let proposed_m = match &drawn_m {
                Some(drawn_m) => drawn_m.shallow_clone(),
                None => log_p_mv.argmax(-1, false),
            };
            let ids = Tensor::from_slice(doubted).to_device(proposed_m.device());
            // Still in front of what must not open.
            score_m = score_m.masked_fill(&Tensor::isin(&proposed_m, &ids, false, false), f64::MIN);
        }
        (score_m, drawn_m)
    }

    /// What opens of the flat positions `rows_m [M]`: the surest `opens` of each sequence, and what threshold and factor add.
    fn opening(
        &self,
        model: &Denoiser,
        xt_bl: &Tensor,
        (rows_m, opens): (&Tensor, &[i64]),
        draws: &Draws,
    ) -> Result<Opening> {
        let (b, l) = check_shape!(xt_bl, [B, L], Int64);
        let v = model.vocab_size();
        let masked_bl = xt_bl.eq(model.mask_id()?);
        let log_p_mv = model.log_x0(xt_bl, &self.times(model, &masked_bl)?, rows_m)?;
        let log_p_mv = without(&log_p_mv, &self.config.banned);
        let at = |u_bl: &Tensor| ops::take_rows(u_bl, rows_m);
        let (score_m, drawn_m) = self.scores(&log_p_mv, &at(&draws.value_bl), v);
        let score_m = self.shuffled(score_m, &at(&draws.order_bl));
        let spread = |value_m: &Tensor| {
            let never = Tensor::full([b * l], f64::NEG_INFINITY, (Kind::Double, xt_bl.device()));
            never.index_copy(0, rows_m, value_m).view([b, l])
        };
        let n_b = Tensor::from_slice(opens).to_device(xt_bl.device()).unsqueeze(1);
        let places = Tensor::arange(l, (Kind::Int64, xt_bl.device())).unsqueeze(0);
        let picked = |value_bl: &Tensor, in_order_bl: &Tensor| {
            let (_, order_bl) = value_bl.sort_stable(true, -1, true);
            masked_bl.zeros_like().scatter(1, &order_bl, in_order_bl)
        };
        let mut opens_bl = picked(&spread(&score_m), &places.lt_tensor(&n_b));
        let best_m = log_p_mv.max_dim(-1, false).0.exp().to_kind(Kind::Double);
        if self.config.factor > 0.0 {
            let best_bl = spread(&best_m);
            let (sorted_bl, _) = best_bl.sort_stable(true, -1, true);
            // The n-th, counted from one.
            let least =
                ((&places + 2).to_kind(Kind::Double).reciprocal() * -self.config.factor) + 1.0;
            let goes_on = sorted_bl.ge_tensor(&least).to_kind(Kind::Int64).cumprod(1, Kind::Int64);
            opens_bl = opens_bl.logical_or(&picked(&best_bl, &goes_on.to_kind(Kind::Bool)));
        }
        let first_m = ops::take_rows(&opens_bl, rows_m);
        let opens_n = if self.config.factor > 0.0 || self.config.threshold <= 1.0 {
            // sync: how many open is data.
            first_m.logical_or(&best_m.ge(self.config.threshold)).nonzero().squeeze_dim(-1)
        } else {
            // As many as the plan says: those come first, in their order.
            let (_, order_m) = first_m.to_kind(Kind::Int).sort_stable(true, 0, true);
            order_m.narrow(0, 0, opens.iter().sum::<i64>().min(rows_m.numel() as i64))
        };
        Ok(Opening {
            law_nv: self.law_of(&log_p_mv.index_select(0, &opens_n), v),
            drawn_n: drawn_m.map(|drawn_m| drawn_m.index_select(0, &opens_n)),
            rows_n: rows_m.index_select(0, &opens_n),
        })
    }

    /// Scores whose order is that of a draw without replacement at `alg_temp`.
    fn shuffled(&self, score_m: Tensor, u_m: &Tensor) -> Tensor {
        let temperature = self.config.alg_temp;
        if temperature == 0.0 {
            return score_m;
        }
        // What opens last keeps its place behind the others.
        let gumbel_m = u_m.log().neg().log().neg();
        let shuffled_m = &score_m / temperature + gumbel_m;
        shuffled_m.where_self(&score_m.gt(f64::MIN), &score_m)
    }

    /// The times at which the schedule masks as many tokens as are masked, `[B] f64`.
    fn times(&self, model: &Denoiser, masked_bl: &Tensor) -> Result<Tensor> {
        let open_bl = masked_bl.logical_not().to_kind(Kind::Double);
        let alpha_b = open_bl.mean_dim(1, false, Kind::Double);
        model.time_of_alpha(&alpha_b)
    }

    /// Sequences in which everything in front of an EOS behind what was given is open: EOS is put into the rest.
    fn ended(&self, x_bl: &Tensor, start_bl: &Tensor, mask: i64) -> Tensor {
        let Some(eos) = self.config.eos_id else { return x_bl.shallow_clone() };
        let masked_bl = x_bl.eq(mask);
        let places = Tensor::arange(x_bl.size()[1], (Kind::Int64, x_bl.device()));
        let given_bl = start_bl.not_equal(mask).to_kind(Kind::Int64);
        let (last_given_b, _) = (given_bl * (&places + 1)).max_dim(1, true);
        let behind_bl = places.ge_tensor(&last_given_b);
        let whole_bl = masked_bl.cumsum(1, Kind::Int64).eq(0);
        let ends_b = x_bl.eq(eos).logical_and(&behind_bl).logical_and(&whole_bl).any_dim(1, true);
        x_bl.masked_fill(&masked_bl.logical_and(&ends_b), eos)
    }
}

impl Confidence {
    /// Walks `count` of the sequences `whole_bl [B, L]`, beginning at `from`, and returns them. `numbers` returns the draws of a step of
    /// all sequences: what walks alone takes its own, however many the one before it took.
    fn walk(
        &self,
        model: &Denoiser,
        whole_bl: &Tensor,
        (from, count): (i64, i64),
        numbers: &mut dyn FnMut(usize) -> Result<Draws>,
    ) -> Result<Tensor> {
        let mask = model.mask_id()?;
        let start_bl = whole_bl.narrow(0, from, count);
        let mut x_bl = start_bl.copy();
        // sync: where the masks are is data.
        let masked = |x_bl: &Tensor| x_bl.eq(mask).to_device(Device::Cpu);
        let mut masked_bl = masked(&x_bl);
        let mut places = Places::new(&self.config, &masked_bl)?;
        let (mut done, mut window) = (0, None);
        while let Some((eligible_bl, opens)) = places.next(&masked_bl) {
            if self.config.cache != Cache::None && window != Some(places.window(0)) {
                let (first, width) = places.window(0);
                let around = self.config.cache == Cache::Dual;
                model.window(&Window::new(first, width).around(around))?;
                window = Some((first, width));
            }
            // Sequences that are whole need no call.
            let open_b = ops::rows_of(&eligible_bl.any_dim(1, false));
            let rows_m = ops::rows_of(&eligible_bl.index_select(0, &open_b));
            let (open_b, rows_m) =
                (open_b.to_device(x_bl.device()), rows_m.to_device(x_bl.device()));
            let part = |x: &Tensor| x.index_select(0, &open_b);
            let opens: Vec<i64> = opens.into_iter().filter(|n| *n > 0).collect();
            let part_bl = part(&x_bl);
            let turned_b = &open_b + from;
            let drawn = numbers(done as usize)?.of(&turned_b);
            model.turn_to(&turned_b)?;
            let opening = self.opening(model, &part_bl, (&rows_m, &opens), &drawn)?;
            let part_bl = ops::put_rows(&part_bl, &opening.rows_n, &opening.drawn(&drawn));
            let next_bl = self.ended(&x_bl.index_copy(0, &open_b, &part_bl), &start_bl, mask);
            // A law that has the mask may draw it for ever.
            if self.config.total_steps == 0 && next_bl == x_bl {
                break;
            }
            (x_bl, done) = (next_bl, done + 1);
            masked_bl = masked(&x_bl);
            let shown_bl = whole_bl.slice_scatter(&x_bl, 0, from, from + count, 1);
            // With a threshold there may be fewer to come than there were.
            model.progress(done, done + places.steps_left(&masked_bl), &shown_bl)?;
        }
        Ok(x_bl)
    }
}

impl Sampler for Confidence {
    fn sample(&mut self, model: &Denoiser, xt_bl: &Tensor) -> Result<Tensor> {
        let (b, _l) = check_shape!(xt_bl, [B, L], Int64);
        if self.config.cache == Cache::None {
            return self.walk(model, xt_bl, (0, b), &mut |_| Draws::new(model, xt_bl));
        }
        // Each is in a block of its own.
        let whole_bl = xt_bl.copy();
        let mut kept: Vec<Draws> = Vec::new();
        let mut numbers = |step: usize| {
            if kept.len() == step {
                kept.push(Draws::new(model, xt_bl)?);
            }
            Ok(kept[step].whole())
        };
        for row in 0..b {
            let walked = self.walk(model, &whole_bl, (row, 1), &mut numbers)?;
            whole_bl.narrow(0, row, 1).copy_(&walked);
        }
        Ok(whole_bl)
    }

    /// The law of the first step from here; times have no meaning here.
    fn law(&self, model: &Denoiser, xt_bl: &Tensor, _t: f64, _s: f64) -> Result<Tensor> {
        let (b, l) = check_shape!(xt_bl, [B, L], Int64);
        let stays = xt_bl.reshape([-1]).one_hot(model.vocab_size()).to_kind(Kind::Double);
        let masked_bl = xt_bl.eq(model.mask_id()?).to_device(Device::Cpu);
        let mut places = Places::new(&self.config, &masked_bl)?;
        let law = match places.next(&masked_bl) {
            None => stays,
            Some((eligible_bl, opens)) => {
                let draws = Draws::new(model, xt_bl)?;
                let rows_m = ops::rows_of(&eligible_bl).to_device(xt_bl.device());
                let opening = self.opening(model, xt_bl, (&rows_m, &opens), &draws)?;
                stays.index_copy(0, &opening.rows_n, &opening.law_nv.softmax(-1, Kind::Double))
            }
        };
        Ok(law.view([b, l, model.vocab_size()]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use maskdiff_plugin_api::testkit::{Toy, chi_square, sampler_contract};

    fn sampler(config: Config) -> Confidence {
        Confidence::new(config, &Toy::new(3, 3).context()).unwrap()
    }

    #[test]
    fn contract() {
        sampler_contract::<Confidence>();
    }

    /// Exact conditionals multiply to the joint in every order.
    #[test]
    fn one_at_a_time_samples_have_the_joint_law() {
        let toy = Toy::new(3, 3);
        for (name, order) in Order::ALL {
            for batch in [1, 8] {
                tch::manual_seed(batch);
                let mut counts = vec![0.0; 27];
                for _ in 0..400 {
                    let mut sampler = sampler(Config { order, ..Config::default() });
                    let x0 = sampler.sample(&Denoiser::new(&toy), &toy.masked(batch)).unwrap();
                    counts.iter_mut().zip(toy.counts(&x0)).for_each(|(sum, count)| *sum += count);
                }
                let p = chi_square(&counts, toy.joint());
                assert!(p > 1e-4, "{name}, batch {batch}: p = {p:e}");
            }
        }
    }

    #[test]
    fn temperature_zero_draws_nothing() {
        let toy = Toy::new(4, 3);
        let draw = |seed| {
            tch::manual_seed(seed);
            let mut sampler = sampler(Config { temperature: 0.0, ..Config::default() });
            sampler.sample(&Denoiser::new(&toy), &toy.masked(2)).unwrap()
        };
        assert_eq!(draw(1), draw(2));
    }

    #[test]
    fn a_threshold_opens_what_is_sure_at_once() {
        let toy = Toy::new(4, 3);
        let calls = |threshold, tokens_per_step| {
            let before = toy.calls();
            let mut sampler = sampler(Config { threshold, tokens_per_step, ..Config::default() });
            let _ = sampler.sample(&Denoiser::new(&toy), &toy.masked(1)).unwrap();
            toy.calls() - before
        };
        assert_eq!(calls(2.0, 1), 4);
        assert_eq!(calls(2.0, 3), 2);
        assert_eq!(calls(0.01, 1), 1, "every likeliest token has a third or more");
    }

    #[test]
    fn blocks_open_one_after_the_other() {
        let toy = Toy::new(4, 3);
        let mut sampler =
            sampler(Config { block_length: 2, temperature: 0.0, ..Config::default() });
        let model = Denoiser::new(&toy);
        let start = toy.masked(1);
        let mut places = Places::new(&sampler.config, &start.eq(3)).unwrap();
        let (eligible, opens) = places.next(&start.eq(3)).unwrap();
        let eligible = eligible.sum(Kind::Int64).int64_value(&[]);
        assert_eq!((eligible, opens[0]), (2, 1), "two of four may open, one does");
        let whole = sampler.sample(&model, &start).unwrap();
        assert!(whole.not_equal(3).all().int64_value(&[]) == 1);
    }

    /// Where one token opens at a time, and where is no matter of what is drawn, samples keep the joint law.
    #[test]
    fn blocks_plans_and_drawn_orders_of_one_token_have_the_joint_law() {
        let toy = Toy::new(3, 3);
        for config in [
            Config { block_length: 2, ..Config::default() },
            Config { total_steps: 3, ..Config::default() },
            Config { alg_temp: 0.5, ..Config::default() },
        ] {
            tch::manual_seed(11);
            let mut counts = vec![0.0; 27];
            for _ in 0..400 {
                let mut sampler = sampler(config.clone());
                let x0 = sampler.sample(&Denoiser::new(&toy), &toy.masked(8)).unwrap();
                counts.iter_mut().zip(toy.counts(&x0)).for_each(|(sum, count)| *sum += count);
            }
            let p = chi_square(&counts, toy.joint());
            assert!(p > 1e-4, "{config:?}: p = {p:e}");
        }
    }

    #[test]
    fn banned_tokens_are_never_drawn_and_doubted_ones_last() {
        let toy = Toy::new(4, 3);
        tch::manual_seed(5);
        let draw = |config: Config| {
            let mut sampler = sampler(config);
            sampler.sample(&Denoiser::new(&toy), &toy.masked(64)).unwrap()
        };
        let without = draw(Config { banned: vec![1], ..Config::default() });
        assert_eq!(without.eq(1).any().int64_value(&[]), 0);
        let doubted = draw(Config { doubted: vec![1], rank: Rank::Drawn, ..Config::default() });
        assert_eq!(doubted.eq(3).any().int64_value(&[]), 0);
        let error = Config { banned: vec![9], ..Config::default() }.checked(4).unwrap_err();
        assert!(error.to_string().contains("has token 9"), "{error}");
    }

    #[test]
    fn a_walk_ends_at_the_end_of_the_text() {
        let sampler = sampler(Config { eos_id: Some(0), ..Config::default() });
        let x = |ids: [i64; 4]| Tensor::from_slice(&ids).unsqueeze(0);
        let ended = |now, start| sampler.ended(&x(now), &x(start), 3);
        assert_eq!(ended([1, 0, 3, 3], [3, 3, 3, 3]), x([1, 0, 0, 0]));
        assert_eq!(ended([3, 0, 3, 3], [3, 3, 3, 3]), x([3, 0, 3, 3]), "a hole is in front");
        assert_eq!(ended([0, 3, 3, 1], [0, 3, 3, 1]), x([0, 3, 3, 1]), "it was given");
        assert_eq!(ended([1, 0, 3, 1], [3, 3, 3, 1]), x([1, 0, 3, 1]), "more was given behind it");
    }

    #[test]
    fn a_factor_opens_while_tokens_are_sure() {
        let toy = Toy::new(4, 3);
        let calls = |factor| {
            let before = toy.calls();
            let mut sampler = sampler(Config { factor, ..Config::default() });
            let _ = sampler.sample(&Denoiser::new(&toy), &toy.masked(1)).unwrap();
            toy.calls() - before
        };
        assert_eq!(calls(0.0), 4);
        assert_eq!(calls(5.0), 1, "1 - 5/(n + 1) is no bar for four tokens");
    }
}
