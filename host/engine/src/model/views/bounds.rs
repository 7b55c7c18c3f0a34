//! Clipped schedules: the interval from which times are drawn, drawing masks anew, and the candidates of a search.
//!
//! Shape letters: `N` blocks, `b` tokens of a block. Source: Arriola et al. 2025, arXiv:2503.09573, section 5 and appendix B.

use maskdiff_plugin_api::{Result, bail};
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

/// The least share of masks that the whole range of times reaches.
const LEAST: f64 = 1e-3;

/// Draws of masks before the search for a fitting one fails.
const DRAWS: usize = 20_000;

/// What separates an end of the range from a bound.
const CLOSE: f64 = 1e-6;

/// An interval of the masked share, from which a training time is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// Its lower end.
    pub low: f64,
    /// Its upper end.
    pub high: f64,
}

impl Interval {
    /// The whole range.
    pub const WHOLE: Self = Self { low: LEAST, high: 1.0 };

    /// Every token is masked.
    pub const ALL_MASKED: Self = Self { low: 1.0, high: 1.0 };

    /// Whether the lower end is a bound, and no end of the range.
    fn binds_below(self) -> bool {
        self.low > LEAST + CLOSE
    }

    /// Whether the upper end is a bound.
    fn binds_above(self) -> bool {
        self.high < 1.0 - CLOSE
    }

    /// Whether it is less than the whole range.
    pub fn binds(self) -> bool {
        self.binds_below() || self.binds_above()
    }

    /// Whether a share of masks lies in it. An end of the range is no bound.
    fn holds(self, share: f64) -> bool {
        !(self.binds_below() && share < self.low || self.binds_above() && share > self.high)
    }

    /// Whether some number of masks among so many tokens lies in it; without a mask there is nothing to learn.
    pub fn is_met(self, tokens: i64) -> bool {
        (1..=tokens).any(|masks| self.holds(masks as f64 / tokens as f64))
    }

    /// Uniform numbers `u` in [0, 1) as those that give times in the interval, where the times of 0 and 1 are `first` and `last`, and
    /// those of the interval's shares `times`. Exact for times that are linear in u.
    pub fn narrowed(self, u: &Tensor, [first, last]: [f64; 2], times: [f64; 2]) -> Tensor {
        let low = if self.binds_below() { times[0].max(first) } else { first };
        let high = if self.binds_above() { times[1].min(last) } else { last };
        let t: Tensor = u * (high - low) + low;
        ((t - first) / (last - first)).clamp(0.0, 1.0)
    }

    /// Blocks whose share of masks lies outside: `masked_nb`, and the tokens that may be masked, `[N, b] bool` each → `[N] bool`.
    /// A block with another number of free tokens than b, of which no number of masks fits, stays as it is.
    fn outside(self, masked_nb: &Tensor, free_nb: Option<&Tensor>) -> Tensor {
        let size = masked_nb.size()[1];
        let count = |of: &Tensor| of.sum_dim_intlist([1i64].as_slice(), false, Kind::Double);
        let free_n = match free_nb {
            Some(free_nb) => count(free_nb),
            None => count(masked_nb).full_like(size as f64),
        };
        let share_n = count(masked_nb) / free_n.clamp_min(1.0);
        let mut outside_n = share_n.zeros_like().to_kind(Kind::Bool);
        if self.binds_below() {
            outside_n = outside_n.logical_or(&share_n.lt(self.low));
        }
        if self.binds_above() {
            outside_n = outside_n.logical_or(&share_n.gt(self.high));
        }
        for tokens in 0..size {
            if tokens == 0 || !self.is_met(tokens) {
                outside_n = outside_n.logical_and(&free_n.not_equal(tokens as f64));
            }
        }
        outside_n
    }

    /// Noisy blocks whose share of masks lies in the interval. `draw` corrupts all blocks, each time with other random numbers; blocks that
    /// are outside take the next draw until none is.
    ///
    /// # Errors
    /// Those of `draw`. The interval must be met by some number of masks among b, see [`Interval::is_met`].
    pub fn redrawn(
        self,
        mask: i64,
        free_nb: Option<&Tensor>,
        mut draw: impl FnMut() -> Result<Tensor>,
    ) -> Result<Tensor> {
        let mut x_nb = draw()?;
        if !self.binds() {
            return Ok(x_nb);
        }
        for _ in 0..DRAWS {
            let mut masked_nb = x_nb.eq(mask);
            if let Some(free_nb) = free_nb {
                masked_nb = masked_nb.logical_and(free_nb);
            }
            let outside_n = self.outside(&masked_nb, free_nb);
            // sync: when the shares fit is data.
            if outside_n.any().int64_value(&[]) == 0 {
                return Ok(x_nb);
            }
            x_nb = draw()?.where_self(&outside_n.unsqueeze(1), &x_nb);
        }
        bail!(
            Config,
            "`training.resample`: after {DRAWS} draws there are blocks whose share of masks is not between {} and {}; widen the interval, or \
             leave it out",
            self.low,
            self.high
        )
    }

    /// The candidates of a search: the whole range, then for each width the intervals that start at multiples of `step`. With blocks of
    /// one token there is one other, at which all is masked.
    pub fn candidates(block_size: i64, widths: &[f64], step: f64) -> Vec<Self> {
        let mut all = vec![Self::WHOLE];
        if block_size == 1 {
            all.push(Self::ALL_MASKED);
            return all;
        }
        for width in widths {
            let starts = ((1.0 - width) / step + CLOSE).floor() as i64;
            all.extend((0..=starts).map(|i| {
                let low = i as f64 * step;
                Self { low: low.max(LEAST), high: (low + width).min(1.0) }
            }));
        }
        all
    }

    /// Of candidates, the first whose losses vary least: `sums[i]` is the sum over batches of the variance over blocks.
    pub fn best(candidates: &[Self], sums: &[f64]) -> Self {
        let mut best = (Self::WHOLE, f64::INFINITY);
        for (candidate, sum) in candidates.iter().zip(sums) {
            if *sum < best.1 {
                best = (*candidate, *sum);
            }
        }
        best.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interval_that_no_number_of_masks_meets_is_known() {
        let of = |low, high| Interval { low, high };
        for (interval, tokens, met) in [
            (of(0.55, 0.95), 2, false),
            (of(0.3, 0.45), 4, false),
            (of(0.3, 0.8), 1, false),
            (of(1e-3, 0.1), 8, false),
            (of(0.0, 0.13), 8, true),
            (of(0.3, 0.8), 2, true),
            (of(0.45, 0.95), 4, true),
            (Interval::WHOLE, 1, true),
            (of(1e-3, 0.5), 1, false),
            (of(0.5, 1.0), 1, true),
        ] {
            assert_eq!(interval.is_met(tokens), met, "{interval:?} of {tokens}");
        }
    }

    #[test]
    fn candidates_stay_inside_and_start_with_the_whole_range() {
        let all = Interval::candidates(4, &[0.5, 0.6, 0.7, 0.8, 0.9], 0.05);
        assert_eq!(all.len(), 36);
        assert_eq!(all[0], Interval::WHOLE);
        // In floating point a width of 0.45 has a start at 0.6 that would end above 1.
        let narrow = Interval::candidates(4, &[0.45], 0.05);
        assert!(all.iter().chain(&narrow).all(|i| i.high <= 1.0 && i.low < i.high));
        assert_eq!(Interval::candidates(1, &[0.5], 0.05).len(), 2);
    }

    #[test]
    fn narrowed_numbers_give_times_in_the_interval() {
        let u = Tensor::from_slice(&[0.0, 0.5, 1.0]);
        let eps = 1e-3;
        let t = |u: &Tensor| u * (1.0 - eps) + eps;
        let clipped = t(&Interval { low: 0.3, high: 0.8 }.narrowed(&u, [eps, 1.0], [0.3, 0.8]));
        assert!(
            (clipped - Tensor::from_slice(&[0.3, 0.55, 0.8])).abs().max().double_value(&[]) < 1e-12
        );
        let whole = Interval::WHOLE.narrowed(&u, [eps, 1.0], [eps, 1.0]);
        assert!((whole - &u).abs().max().double_value(&[]) < 1e-12);
    }
}
