//! How far each sequence of a walk is: its block, its step in it, and how many tokens open next.

use maskdiff_plugin_api::{Result, ensure};
use tch::{Kind, Tensor};

use crate::options::{Config, Plan};

/// The last time of [`Plan::Times`].
const LAST_TIME: f64 = 1e-3;

/// Where a sequence is.
#[derive(Debug, Clone, Copy, Default)]
struct At {
    block: usize,
    step: i64,
    /// Masked tokens of its block when that began.
    masked: i64,
}

/// The places of all sequences. They and the masks that they are asked about are on the host: a GPU is waited for once a step, for
/// where the masks are.
#[derive(Debug)]
pub(crate) struct Places {
    /// The block of every position, `[B, L] i64`; negative before the first.
    block_bl: Tensor,
    blocks: i64,
    at: Vec<At>,
    /// Of each sequence the steps of a block; 0 without a plan.
    steps: Vec<i64>,
    each: i64,
    /// Of each sequence and each step of a block, the share of the masked tokens that opens.
    shares: Option<Vec<Vec<f32>>>,
}

impl Places {
    /// Of a start in which `masked_bl [B, L]` are masked.
    pub(crate) fn new(config: &Config, masked_bl: &Tensor) -> Result<Self> {
        let (b, l) = (masked_bl.size()[0], masked_bl.size()[1]);
        let size = if config.block_length == 0 { l.max(1) } else { config.block_length };
        let first_b = masked_bl.to_kind(Kind::Int).argmax(1, true);
        let positions = Tensor::arange(l, (Kind::Int64, masked_bl.device()));
        let block_bl = (positions - first_b).floor_divide_scalar(size);
        let last_b = (masked_bl.to_kind(Kind::Int64) * &block_bl).amax([1], false);
        let blocks_b: Vec<i64> = Vec::try_from(last_b.clamp_min(0) + 1).unwrap_or_default();
        let blocks = blocks_b.iter().copied().max().unwrap_or(1);
        for blocks in &blocks_b {
            ensure!(
                config.total_steps % blocks == 0,
                Config,
                "`sampling.total_steps` is {}, and a text has {blocks} blocks of {size}: they cannot share the steps evenly; take a multiple of {blocks}",
                config.total_steps
            );
        }
        let of_block =
            |n: &i64| if config.total_steps == 0 { 0 } else { (config.total_steps / n).max(1) };
        let steps: Vec<i64> = blocks_b.iter().map(of_block).collect();
        let by_time = config.plan == Plan::Times && config.total_steps > 0;
        let shares = by_time.then(|| steps.iter().map(|steps| shares(*steps)).collect());
        let at = vec![At { block: usize::MAX, ..At::default() }; b as usize];
        Ok(Self { block_bl, blocks, at, steps, each: config.tokens_per_step, shares })
    }

    /// The first position of the block of a sequence, and how many it has.
    pub(crate) fn window(&self, row: usize) -> (i64, i64) {
        let own = self.block_bl.get(row as i64).eq(self.at[row].block as i64);
        let places = own.nonzero();
        let width = places.size()[0];
        (if width > 0 { places.int64_value(&[0, 0]) } else { 0 }, width)
    }

    /// Masked tokens of each block of each sequence.
    fn counts(&self, masked_bl: &Tensor) -> Vec<Vec<i64>> {
        let (b, n) = (self.at.len() as i64, self.blocks);
        let row = Tensor::arange(b, (Kind::Int64, masked_bl.device())).unsqueeze(1) * n;
        let cells = (&self.block_bl + row).masked_select(masked_bl);
        let counts = cells.bincount(None::<Tensor>, b * n).view([b, n]);
        Vec::<Vec<i64>>::try_from(counts).unwrap_or_default()
    }

    /// Which positions may open now, `[B, L] bool`, and how many of each sequence do; none when the walk is done. A step at which
    /// nothing opens is passed over.
    pub(crate) fn next(&mut self, masked_bl: &Tensor) -> Option<(Tensor, Vec<i64>)> {
        let counts = self.counts(masked_bl);
        let mut opens = vec![0; self.at.len()];
        for (row, masked) in counts.iter().enumerate() {
            opens[row] = self.of_row(row, masked);
        }
        if opens.iter().all(|n| *n == 0) {
            return None;
        }
        let blocks: Vec<i64> = self.at.iter().map(|at| at.block as i64).collect();
        let own = Tensor::from_slice(&blocks).unsqueeze(1);
        Some((masked_bl.logical_and(&self.block_bl.eq_tensor(&own)), opens))
    }

    /// Moves one sequence on to its next step at which something opens; the number of tokens.
    fn of_row(&mut self, row: usize, masked: &[i64]) -> i64 {
        loop {
            let at = self.at[row];
            let ended =
                at.block == usize::MAX || (self.steps[row] > 0 && at.step >= self.steps[row]);
            if ended || masked.get(at.block).is_none_or(|left| *left == 0) {
                let from = if at.block == usize::MAX { 0 } else { at.block + 1 };
                let Some(next) = (from..masked.len()).find(|block| masked[*block] > 0) else {
                    self.at[row].block = masked.len();
                    return 0;
                };
                self.at[row] = At { block: next, step: 0, masked: masked[next] };
                continue;
            }
            self.at[row].step += 1;
            let n = self.count(row, at, masked[at.block]);
            if n > 0 {
                return n;
            }
        }
    }

    /// Tokens of a sequence that open at a step of a block in which `left` are masked.
    fn count(&self, row: usize, at: At, left: i64) -> i64 {
        let steps = self.steps[row];
        if steps == 0 {
            return self.each.min(left);
        }
        match &self.shares {
            None => at.masked / steps + i64::from(at.step < at.masked % steps),
            Some(_) if at.step + 1 == steps => left,
            Some(shares) => (left as f32 * shares[row][at.step as usize]) as i64,
        }
        .min(left)
    }

    /// Steps that are left when each opens no more than it must.
    pub(crate) fn steps_left(&self, masked_bl: &Tensor) -> i64 {
        let counts = self.counts(masked_bl);
        let of_row = |((at, masked), steps): ((&At, &Vec<i64>), &i64)| -> i64 {
            let of_block = |(block, left): (usize, &i64)| match *steps {
                0 => (left + self.each - 1) / self.each,
                _ if *left == 0 => 0,
                steps if block == at.block => (steps - at.step).max(0),
                steps => steps,
            };
            masked.iter().enumerate().map(of_block).sum()
        };
        self.at.iter().zip(&counts).zip(&self.steps).map(of_row).max().unwrap_or(0)
    }
}

/// `1 - s/t` on equal steps of time, in float32 as published: the rounding decides how many tokens open.
fn shares(steps: i64) -> Vec<f32> {
    let t = Tensor::linspace(1.0, LAST_TIME, steps + 1, (Kind::Float, tch::Device::Cpu));
    let t = Vec::<f32>::try_from(t).unwrap_or_default();
    t.windows(2).map(|pair| 1.0 - pair[1] / pair[0]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tokens that open at each step of one sequence of which `given` are open.
    fn opened(config: &Config, given: i64, length: i64) -> Vec<i64> {
        let mut masked = vec![true; length as usize];
        masked[..given as usize].fill(false);
        let tensor = |masked: &[bool]| Tensor::from_slice(masked).unsqueeze(0);
        let mut places = Places::new(config, &tensor(&masked)).unwrap();
        let mut all = Vec::new();
        while let Some((eligible, opens)) = places.next(&tensor(&masked)) {
            let eligible = Vec::<bool>::try_from(eligible.get(0)).unwrap();
            let at = (0..masked.len()).filter(|i| eligible[*i]).take(opens[0] as usize);
            at.for_each(|i| masked[i] = false);
            all.push(opens[0]);
        }
        assert!(masked.iter().all(|masked| !masked));
        all
    }

    #[test]
    fn plans_share_out_all_tokens() {
        let config = |total_steps, plan, block_length| Config {
            total_steps,
            plan,
            block_length,
            ..Config::default()
        };
        assert_eq!(opened(&config(6, Plan::Even, 0), 3, 19), [3, 3, 3, 3, 2, 2]);
        assert_eq!(opened(&config(4, Plan::Even, 5), 0, 10), [3, 2, 3, 2]);
        assert_eq!(
            opened(&config(12, Plan::Even, 0), 0, 8),
            [1; 8],
            "with nothing to open, no call"
        );
        // The last block is what is left.
        assert_eq!(opened(&config(3, Plan::Even, 4), 1, 10), [4, 4, 1]);
        assert_eq!(opened(&config(0, Plan::Even, 4), 1, 7), [1; 6]);
        assert_eq!(opened(&config(5, Plan::Times, 0), 0, 10), [1, 2, 2, 2, 3]);
        // As many steps as tokens: the first opens nothing, the last two.
        assert_eq!(opened(&config(16, Plan::Times, 0), 0, 16)[14], 2);
    }
}
