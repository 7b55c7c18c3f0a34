//! A random order of any number of blocks, without a list of them.
//!
//! The swap-or-not shuffle (Hoang, Morris and Rogaway, "An Enciphering Scheme Based on a Card Shuffle", 2012): a round pairs
//! each number `x` with `k - x` for a random `k`, and swaps a pair or not by a random bit. Every round is a permutation, and
//! after a few times `log n` rounds they are mixed. A place of an epoch is looked up on its own, so a run goes on anywhere
//! at once.

use rand::Rng;

/// Rounds for each bit of `n`: the paper's bound for a good mix is about six.
const ROUNDS: u32 = 6;

/// A permutation of `0..n`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Permutation {
    n: u64,
    rounds: u64,
    key: u64,
}

impl Permutation {
    /// One of `0..n`, `n` ≥ 1, that is drawn from `rng`.
    pub(super) fn new(n: u64, rng: &mut impl Rng) -> Self {
        let bits = u64::BITS - n.leading_zeros();
        Self { n, rounds: u64::from(ROUNDS * bits), key: rng.random() }
    }

    /// What stands at a place below `n`.
    pub(super) fn at(&self, place: u64) -> u64 {
        let mut x = place;
        for round in 0..self.rounds {
            let key = mix(self.key.wrapping_add(round));
            let k = key % self.n;
            let partner = if k >= x { k - x } else { k + self.n - x };
            if mix(x.max(partner) ^ key.rotate_left(32)) & 1 == 1 {
                x = partner;
            }
        }
        x
    }
}

/// The finalizer of SplitMix64: each bit of the result depends on each of the argument.
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;

    #[test]
    fn every_number_comes_once() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        for n in (1..70).chain([255, 256, 257, 1000, 4097]) {
            let order = Permutation::new(n, &mut rng);
            let mut seen: Vec<u64> = (0..n).map(|place| order.at(place)).collect();
            seen.sort_unstable();
            assert_eq!(seen, (0..n).collect::<Vec<u64>>(), "n = {n}");
        }
    }

    /// Over many orders of five numbers each of the 120 comes up as often as the others, and so does each number at each
    /// place of a longer order.
    #[test]
    fn orders_are_drawn_evenly() {
        let mut rng = ChaCha8Rng::seed_from_u64(2);
        let draws = 24_000;
        let mut counts = std::collections::BTreeMap::<Vec<u64>, u64>::new();
        for _ in 0..draws {
            let order = Permutation::new(5, &mut rng);
            *counts.entry((0..5).map(|place| order.at(place)).collect()).or_default() += 1;
        }
        let expected = draws as f64 / 120.0;
        let chi: f64 = counts.values().map(|c| (*c as f64 - expected).powi(2) / expected).sum();
        // 119 degrees of freedom: mean 119, standard deviation 15.4.
        assert_eq!(counts.len(), 120);
        assert!(chi < 119.0 + 5.0 * 15.4, "chi-square {chi}");
        let n = 100;
        let mut at = vec![0u64; (n * n) as usize];
        for _ in 0..draws {
            let order = Permutation::new(n, &mut rng);
            (0..n).for_each(|place| at[(place * n + order.at(place)) as usize] += 1);
        }
        let expected = draws as f64 / n as f64;
        let chi: f64 = at.iter().map(|c| (*c as f64 - expected).powi(2) / expected).sum();
        let freedom = ((n - 1) * (n - 1)) as f64;
        assert!((chi - freedom).abs() < 5.0 * (2.0 * freedom).sqrt(), "chi-square {chi}");
    }
}
