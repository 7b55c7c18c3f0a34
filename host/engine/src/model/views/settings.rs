//! What `block_size` and the keys beside it ask for.

use std::cell::Cell;

use maskdiff_base::error::Result;
use maskdiff_config::Config;
use tch::{Kind, Tensor};

use super::bounds::Interval;

/// Checks the keys of the interval search.
fn check_search(config: &Config) -> Result<()> {
    let training = &config.training;
    if let Some(width) = training.clip_search_widths.iter().find(|w| !(**w > 0.0 && **w <= 1.0)) {
        return Err(config.layers.error(
            "training.clip_search_widths",
            &format!("`training.clip_search_widths` has {width}, and a width lies above 0 and is at most 1"),
            "as in [0.5, 0.6, 0.7, 0.8, 0.9]",
        ));
    }
    if training.clip_search_delta < LEAST_STEP {
        return Err(config.layers.error(
            "training.clip_search_delta",
            &format!(
                "`training.clip_search_delta` is {}, which makes too many intervals to measure",
                training.clip_search_delta
            ),
            &format!("at least {LEAST_STEP}; 0.05 is usual"),
        ));
    }
    Ok(())
}

/// Steps between intervals that a search can go through.
const LEAST_STEP: f64 = 1e-3;

/// Blocks of a model. Shape letters: `B` batch, `L` length, `K` blocks of a sequence, `N` = B K, `b` tokens of a block.
#[derive(Debug)]
pub struct Blocks {
    /// b, which divides the length.
    pub size: i64,
    /// Whether masks are drawn anew in training until their share lies in the interval.
    pub resample: bool,
    interval: Cell<Interval>,
    begins: Cell<Option<i64>>,
}

impl Blocks {
    /// Blocks of `size` tokens, whose times come from the whole range.
    pub fn of(size: i64) -> Self {
        let interval = Cell::new(Interval::WHOLE);
        Self { size, resample: false, interval, begins: Cell::new(None) }
    }

    /// What the configuration asks for; none without `block_size`.
    pub fn new(config: &Config) -> Result<Option<Self>> {
        let (length, training) = (config.model.length, &config.training);
        let Some(size) = config.top.block_size else { return Ok(None) };
        if size > length || length % size != 0 {
            let near = |of: i64| (length % of == 0).then_some(of);
            let below = (1..size.min(length)).rev().find_map(near).unwrap_or(1);
            let above = (size + 1..=length).find_map(near).unwrap_or(length);
            return Err(config.layers.error(
                "block_size",
                &format!("`block_size` is {size}, which does not divide `model.length` ({length})"),
                &format!("the nearest that do: {below} and {above}"),
            ));
        }
        let interval = Interval { low: training.sampling_eps_min, high: training.sampling_eps_max };
        // [1, 1] masks every token.
        if interval.high <= Interval::WHOLE.low {
            return Err(config.layers.error(
                "training.sampling_eps_max",
                &format!(
                    "`training.sampling_eps_max` is {}, and shares begin at {}",
                    interval.high,
                    Interval::WHOLE.low
                ),
                "the largest share of masks that training draws, as in 0.8",
            ));
        }
        if interval.low >= interval.high && interval != Interval::ALL_MASKED {
            return Err(config.layers.error(
                "training.sampling_eps_min",
                &format!(
                    "`training.sampling_eps_min` is {}, and not below `training.sampling_eps_max` ({})",
                    interval.low, interval.high
                ),
                "an interval of the masked share, as in 0.3 and 0.8",
            ));
        }
        check_search(config)?;
        let unmet =
            Interval::candidates(size, &training.clip_search_widths, training.clip_search_delta);
        let unmet = unmet.into_iter().chain([interval]).find(|all| !all.is_met(size));
        if let Some(Interval { low, high }) = unmet.filter(|_| training.resample) {
            return Err(config.layers.error(
                "training.resample",
                &format!(
                    "no number of masks among the {size} tokens of a block is a share from {low} to {high}"
                ),
                "`training.resample` would draw forever: widen the interval, or leave it out",
            ));
        }
        let this = Self { resample: training.resample, ..Self::of(size) };
        this.interval.set(interval);
        Ok(Some(this))
    }

    /// From where training draws times.
    pub fn interval(&self) -> Interval {
        self.interval.get()
    }

    /// Lets training draw times from there.
    pub fn set_interval(&self, interval: Interval) {
        self.interval.set(interval);
    }

    /// The BOS that every text begins with: it is given, never noisy and never scored.
    pub fn begins(&self) -> Option<i64> {
        self.begins.get()
    }

    /// Says so.
    pub fn set_begins(&self, bos: Option<i64>) {
        self.begins.set(bos);
    }

    /// Which tokens of whole texts count: `[B, L]`, the first one never where it is given. `None` counts all.
    pub fn counted(&self, counted_bl: Option<Tensor>, x0_bl: &Tensor) -> Option<Tensor> {
        if self.begins().is_none() {
            return counted_bl;
        }
        let counted_bl = counted_bl.unwrap_or_else(|| x0_bl.ones_like().to_kind(Kind::Bool)).copy();
        let _ = counted_bl.narrow(1, 0, 1).fill_(0);
        Some(counted_bl)
    }
}
