//! The random numbers of a run: each is a function of the seed, of what it is for, and of its place in the run.
//!
//! A step draws from no state that an earlier step left, so a run resumes anywhere with the same numbers, and its
//! batches, times and masks do not depend on how many processes share them. Only what libtorch draws inside a network
//! (dropout) differs from rank to rank: [`torch_seed`] gives each rank its own seed at each step.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

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
    /// Times of the blocks of an evaluation, spread evenly.
    EvaluationTimes = 8,
    /// What is done to the blocks of an evaluation; one stream for each block in each pass.
    EvaluationMasks = 9,
    /// What components draw for a training sequence; one stream for each sequence.
    Draws = 10,
    /// The same in an evaluation; one stream for each block in each pass.
    EvaluationDraws = 11,
    /// The same in a walk; one stream for each text.
    Walks = 12,
    /// What the times of all blocks of a global batch are moved on by; one stream for each step.
    BlockTimes = 13,
    /// The first numbers of a low-rank adapter; one stream for each matrix.
    Adapters = 20,
    /// The draws of the bound of an answer; one stream for each answer.
    Answers = 21,
    /// Whether a training sequence loses its label; one stream for each sequence.
    Labels = 22,
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

#[cfg(test)]
mod tests {
    use super::*;

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
