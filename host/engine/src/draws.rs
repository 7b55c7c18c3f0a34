//! The random numbers of a run as tensors: masks and times of a training step, and of the blocks of an evaluation.

use maskdiff_base::error::Result;
use maskdiff_base::memory;
use maskdiff_base::stream::{Purpose, generator, torch_seed};
use rand::Rng as _;
use tch::Tensor;

use crate::component;

/// Uniform numbers `[rows, length] f64` in [0, 1) for the rows from `first` on of the global batch of a step.
pub fn mask_uniforms(
    seed: u64,
    step: u64,
    first: u64,
    rows: usize,
    length: usize,
) -> Result<Tensor> {
    let mut numbers = memory::room(
        rows.saturating_mul(length),
        "for the masks of `loader.batch_size` times `model.length`",
    )?;
    let mut rng = generator(seed, Purpose::Masks, step);
    // A number takes two words of the stream: a rank begins at its own rows.
    rng.set_word_pos(u128::from(first) * length as u128 * 2);
    numbers.extend((0..rows * length).map(|_| rng.random::<f64>()));
    Ok(Tensor::f_from_slice(&numbers).map_err(component::torch)?.view([rows as i64, length as i64]))
}

/// Labels `[B] i64` of the sequences of a run from a number on, each of which is lost with probability `share`: it becomes `none`.
pub fn with_dropped(label_b: &Tensor, (seed, first): (u64, u64), share: f64, none: i64) -> Tensor {
    let numbers = first..first + label_b.numel() as u64;
    let lost =
        numbers.map(|number| generator(seed, Purpose::Labels, number).random::<f64>() < share);
    let lost_b = Tensor::from_slice(&lost.collect::<Vec<bool>>()).to_device(label_b.device());
    label_b.masked_fill(&lost_b, none)
}

/// The uniform numbers behind the times of a global batch of `n`, `[n] f64`; evenly spread when `antithetic`.
pub fn time_uniforms(seed: u64, step: u64, n: i64, antithetic: bool) -> Result<Tensor> {
    let mut numbers = memory::room(n as usize, "for the times of `loader.global_batch_size`")?;
    let mut rng = generator(seed, Purpose::Times, step);
    numbers.extend((0..n).map(|_| rng.random::<f64>()));
    let u = Tensor::f_from_slice(&numbers).map_err(component::torch)?;
    if !antithetic {
        return Ok(u);
    }
    // Neighbours in the batch get strata far apart, so that any part of it has early and late times alike: what a rank or
    // a micro-batch costs depends on its times.
    let stride = coprime_near(0.618 * n as f64, n);
    let place = Tensor::from_slice(&(0..n).map(|i| i * stride % n).collect::<Vec<i64>>());
    Ok(crate::clock::stratify(&u).index_select(0, &place))
}

/// The uniform numbers behind the times of a global batch of `n` sequences of K blocks, `[n, K] f64`; evenly spread when `antithetic`.
///
/// All are moved on by one common number, modulo 1. Without it a block would always have a time of the same stratum, and the sum over the
/// blocks of a small batch a bias.
pub fn block_times(seed: u64, step: u64, n: i64, blocks: i64, antithetic: bool) -> Result<Tensor> {
    let u = time_uniforms(seed, step, n * blocks, antithetic)?.view([n, blocks]);
    if !antithetic {
        return Ok(u);
    }
    let common: f64 = generator(seed, Purpose::BlockTimes, step).random();
    Ok((u + common).fmod(1.0))
}

/// The uniform numbers behind the times of `rows` blocks from `first` on in a pass of an evaluation, `[rows] f64` in [0, 1).
///
/// Each is uniform for its block, whatever else is measured. Together they are a Sobol' sequence in one dimension with Owen's
/// scrambling (Owen 1995, "Randomly permuted (t,m,s)-nets and (t,s)-sequences"): each aligned group of 2^k of them has one in each of 2^k
/// equal strata. The passes of a block are neighbours, so they are spread as the blocks are.
pub fn evaluation_times(seed: u64, pass: i64, passes: i64, first: i64, rows: i64) -> Tensor {
    let coins: u64 = generator(seed, Purpose::EvaluationTimes, 0).random();
    let place = |block: i64| (block * passes + pass).cast_unsigned();
    let times: Vec<f64> = (first..first + rows).map(|b| scrambled(place(b), coins)).collect();
    Tensor::from_slice(&times)
}

/// The uniform numbers `[rows, length] f64` in [0, 1) that corrupt `rows` blocks from `first` on in a pass of an evaluation.
pub fn evaluation_masks(seed: u64, pass: i64, first: i64, rows: i64, length: i64) -> Tensor {
    let mut numbers = Vec::with_capacity((rows * length) as usize);
    for block in first..first + rows {
        let mut rng = generator(seed, Purpose::EvaluationMasks, place_of_block(pass, block));
        numbers.extend((0..length).map(|_| rng.random::<f64>()));
    }
    Tensor::from_slice(&numbers).view([rows, length])
}

/// The uniform numbers `[draws, numbers] f64` in [0, 1) behind the draws of a part of an answer, by the answer's number and the position
/// where the part begins.
pub fn answer_uniforms(seed: u64, (answer, at): (u64, u64), [draws, numbers]: [i64; 2]) -> Tensor {
    let mut rng = generator(seed, Purpose::Answers, at << 40 | answer);
    let all: Vec<f64> = (0..draws * numbers).map(|_| rng.random()).collect();
    Tensor::from_slice(&all).view([draws, numbers])
}

/// The place of a block in a pass of an evaluation.
pub fn place_of_block(pass: i64, block: i64) -> u64 {
    pass.cast_unsigned() << 40 | block.cast_unsigned()
}

/// Number `index` of the van der Corput sequence in base 2, each of whose digits is turned by a coin of its own for all the
/// digits before it.
fn scrambled(index: u64, coins: u64) -> f64 {
    // As many digits as an f64 holds.
    const DIGITS: u32 = 53;
    let (mut before, mut number) = (1_u64, 0_u64);
    for place in 0..DIGITS {
        let digit = index >> place & 1;
        number = number << 1 | (digit ^ mixed(before ^ coins) & 1);
        before = before << 1 | digit;
    }
    number as f64 / (1_u64 << DIGITS) as f64
}

/// SplitMix64's finalizer: every bit of the result depends on every bit of `x`.
fn mixed(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ x >> 31
}

/// The number at or above `near` that has no divisor in common with `n`.
fn coprime_near(near: f64, n: i64) -> i64 {
    let gcd = |mut a: i64, mut b: i64| {
        while b != 0 {
            (a, b) = (b, a % b);
        }
        a
    };
    let first = (near as i64).max(1);
    (first..).find(|k| gcd(*k, n) == 1).unwrap_or(1)
}

/// Seeds libtorch for a step of a rank.
pub fn seed_torch(seed: u64, purpose: Purpose, place: u64, rank: usize) {
    tch::manual_seed(torch_seed(seed, purpose, place, rank));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_draw_parts_of_one_batch() {
        let whole = mask_uniforms(3, 7, 0, 6, 5).unwrap();
        let parts = [mask_uniforms(3, 7, 0, 2, 5).unwrap(), mask_uniforms(3, 7, 2, 4, 5).unwrap()];
        assert_eq!(whole, Tensor::cat(&parts, 0));
        assert_ne!(whole, mask_uniforms(3, 8, 0, 6, 5).unwrap());
        assert_ne!(whole, mask_uniforms(4, 7, 0, 6, 5).unwrap());
    }

    #[test]
    fn times_are_strata_and_every_part_has_early_and_late_ones() {
        for n in [1, 2, 8, 32, 30, 512] {
            let times = Vec::<f64>::try_from(time_uniforms(1, 4, n, true).unwrap()).unwrap();
            let strata: std::collections::BTreeSet<i64> =
                times.iter().map(|t| (t * n as f64) as i64).collect();
            assert_eq!(strata.len() as i64, n, "each stratum once");
            for part in times.chunks((n as usize / 4).max(8)).filter(|part| part.len() >= 8) {
                let mean = part.iter().sum::<f64>() / part.len() as f64;
                assert!((mean - 0.5).abs() < 0.15, "{n}: {mean}");
            }
        }
    }

    /// Each block of a batch has times of the whole range from step to step, and the blocks of one step are spread.
    #[test]
    fn no_block_keeps_its_stratum() {
        let (n, blocks, steps, parts) = (2, 4, 2_000, 4);
        let mut seen = vec![vec![0.0; parts]; (n * blocks) as usize];
        for step in 0..steps {
            let times = block_times(5, step, n, blocks, true).unwrap();
            let mut times = Vec::<f64>::try_from(times.view([-1])).unwrap();
            for (seen, t) in seen.iter_mut().zip(&times) {
                seen[(t * parts as f64) as usize] += 1.0;
            }
            times.sort_by(f64::total_cmp);
            let widest = times.windows(2).map(|pair| pair[1] - pair[0]).fold(0.0, f64::max);
            assert!(widest < 2.0 / times.len() as f64, "step {step}: {widest}");
        }
        let want = steps as f64 / parts as f64;
        for (block, counts) in seen.iter().enumerate() {
            let off = counts.iter().map(|count| (count - want).abs()).fold(0.0, f64::max);
            assert!(off < 6.0 * want.sqrt(), "block {block}: {counts:?}");
        }
    }

    #[test]
    fn times_of_an_evaluation_are_spread_over_blocks_and_over_passes() {
        let times = |seed, pass, passes, first, rows| {
            let times = evaluation_times(seed, pass, passes, first, rows);
            Vec::<f64>::try_from(times).unwrap()
        };
        let strata = |times: &[f64]| {
            let n = times.len() as f64;
            times.iter().map(|t| (t * n) as i64).collect::<std::collections::BTreeSet<i64>>().len()
        };
        let whole = times(3, 0, 1, 0, 96);
        assert_eq!(whole[32..40], times(3, 0, 1, 32, 8), "whatever the batch is");
        for part in whole.chunks(32) {
            assert_eq!(strata(part), 32);
        }
        // The passes of each block.
        let passes: Vec<Vec<f64>> = (0..4).map(|pass| times(3, pass, 4, 0, 16)).collect();
        for block in 0..16 {
            assert_eq!(strata(&passes.iter().map(|pass| pass[block]).collect::<Vec<f64>>()), 4);
        }
        assert_eq!(strata(&passes.concat()), 64);
    }

    /// A block's loss depends on its time: its mean over seeds is the integral, for each block alone, and the mean over the
    /// blocks varies no more than with strata of a batch.
    #[test]
    fn times_of_an_evaluation_are_uniform_for_each_block() {
        let (blocks, seeds) = (24, 4000);
        let loss = |block: usize, t: f64| (1.0 + block as f64 / 8.0) * 3.0 * t * t;
        let mean = |x: &[f64]| x.iter().sum::<f64>() / x.len() as f64;
        let spread = |x: &[f64]| {
            let m = mean(x);
            x.iter().map(|v| (v - m).powi(2)).sum::<f64>() / x.len() as f64
        };
        let all = |times: &dyn Fn(u64) -> Tensor| -> Vec<Vec<f64>> {
            (0..seeds)
                .map(|seed| {
                    let times = Vec::<f64>::try_from(times(seed)).unwrap();
                    times.iter().enumerate().map(|(block, t)| loss(block, *t)).collect()
                })
                .collect()
        };
        let ours = all(&|seed| evaluation_times(seed, 0, 1, 0, blocks));
        for block in 0..blocks as usize {
            let of_block: Vec<f64> = ours.iter().map(|losses| losses[block]).collect();
            let (truth, error) =
                (1.0 + block as f64 / 8.0, (spread(&of_block) / seeds as f64).sqrt());
            assert!((mean(&of_block) - truth).abs() < 5.0 * error, "block {block}");
        }
        // In batches of 8, as evaluation once stratified.
        let strata = all(&|seed| {
            let batch = |at: u64| {
                let u: Vec<f64> = (0..8)
                    .map(|i| generator(seed, Purpose::Evaluate, at * 8 + i).random())
                    .collect();
                crate::clock::stratify(&Tensor::from_slice(&u))
            };
            Tensor::cat(&(0..3).map(batch).collect::<Vec<Tensor>>(), 0)
        });
        // From the truth: a block that always has the times of its place in the batch is measured with a bias.
        let truth = (0..blocks).map(|block| 1.0 + block as f64 / 8.0).sum::<f64>() / blocks as f64;
        let error = |all: &[Vec<f64>]| {
            all.iter().map(|losses| (mean(losses) - truth).powi(2)).sum::<f64>() / seeds as f64
        };
        let (ours, theirs) = (error(&ours), error(&strata));
        assert!(ours < theirs, "{ours} is not below {theirs}");
    }
}
