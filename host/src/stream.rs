//! The random numbers of a run: each is a function of the seed, of what it is for, and of its place in the run.
//!
//! A step draws from no state that an earlier step left, so a run goes on anywhere with the very same numbers, and its
//! batches, times and masks do not depend on how many processes share them. Only what libtorch draws inside a network
//! (dropout) differs from rank to rank: [`torch_seed`] gives each rank its own seed at each step.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tch::Tensor;

/// What a stream of random numbers is for.
#[derive(Debug, Clone, Copy)]
pub enum Purpose {
    /// A training sample that is generated, or where it is cut; one stream for each sample.
    Sample = 1,
    /// Generated validation blocks.
    Valid = 2,
    /// The order of the blocks; one stream for each epoch.
    Order = 3,
    /// Times of a global batch; one stream for each step.
    Times = 4,
    /// What the forward process does to a global batch; one stream for each step.
    Masks = 5,
    /// libtorch's own draws in training, by step and rank.
    Torch = 6,
    /// libtorch's own draws in evaluation, by batch.
    Evaluate = 7,
}

/// The stream of a purpose and a place, as in the step; the place is below 2^56.
pub fn generator(seed: u64, purpose: Purpose, place: u64) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream((purpose as u64) << 56 | place);
    rng
}

/// A seed for libtorch's generator, different for each purpose, place and rank.
pub fn torch_seed(seed: u64, purpose: Purpose, place: u64, rank: usize) -> i64 {
    let mut rng = generator(seed, purpose, place);
    rng.set_word_pos(2 * rank as u128);
    // libtorch's generator on a CPU looks at 32 bits only: the top ones would be lost.
    rng.random::<u64>().cast_signed()
}

/// Uniform numbers `[rows, length] f64` in [0, 1) for the rows from `first` on of the global batch of a step.
pub fn mask_uniforms(seed: u64, step: u64, first: u64, rows: usize, length: usize) -> Tensor {
    let mut rng = generator(seed, Purpose::Masks, step);
    // A number takes two words of the stream: a rank begins at its own rows.
    rng.set_word_pos(u128::from(first) * length as u128 * 2);
    let numbers: Vec<f64> = (0..rows * length).map(|_| rng.random()).collect();
    Tensor::from_slice(&numbers).view([rows as i64, length as i64])
}

/// The uniform numbers behind the times of a global batch of `n`, `[n] f64`; evenly spread when `antithetic`.
pub fn time_uniforms(seed: u64, step: u64, n: i64, antithetic: bool) -> Tensor {
    let mut rng = generator(seed, Purpose::Times, step);
    let numbers: Vec<f64> = (0..n).map(|_| rng.random()).collect();
    let u = Tensor::from_slice(&numbers);
    if !antithetic {
        return u;
    }
    // Neighbours in the batch get strata far apart, so that any part of it has early and late times alike: what a rank or
    // a micro-batch costs depends on its times.
    let stride = coprime_near(0.618 * n as f64, n);
    let place = Tensor::from_slice(&(0..n).map(|i| i * stride % n).collect::<Vec<i64>>());
    crate::clock::stratify(&u).index_select(0, &place)
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
        let whole = mask_uniforms(3, 7, 0, 6, 5);
        let parts = [mask_uniforms(3, 7, 0, 2, 5), mask_uniforms(3, 7, 2, 4, 5)];
        assert_eq!(whole, Tensor::cat(&parts, 0));
        assert_ne!(whole, mask_uniforms(3, 8, 0, 6, 5));
        assert_ne!(whole, mask_uniforms(4, 7, 0, 6, 5));
    }

    #[test]
    fn times_are_strata_and_every_part_has_early_and_late_ones() {
        for n in [1, 2, 8, 32, 30, 512] {
            let times = Vec::<f64>::try_from(time_uniforms(1, 4, n, true)).unwrap();
            let strata: std::collections::BTreeSet<i64> =
                times.iter().map(|t| (t * n as f64) as i64).collect();
            assert_eq!(strata.len() as i64, n, "each stratum once");
            for part in times.chunks((n as usize / 4).max(8)).filter(|part| part.len() >= 8) {
                let mean = part.iter().sum::<f64>() / part.len() as f64;
                assert!((mean - 0.5).abs() < 0.15, "{n}: {mean}");
            }
        }
    }

    #[test]
    fn steps_and_ranks_have_seeds_of_their_own() {
        let seeds = |seed| {
            let of = move |step| {
                (0..4).map(move |rank| torch_seed(seed, Purpose::Torch, step, rank) as u32)
            };
            (0..100).flat_map(of).collect::<std::collections::BTreeSet<u32>>()
        };
        let (one, two) = (seeds(1), seeds(2));
        assert_eq!((one.len(), two.len()), (400, 400));
        assert!(one.is_disjoint(&two));
    }
}
