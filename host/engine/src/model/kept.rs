//! Keys and values of tokens that a walk is not working on, as they were at an earlier call: an approximate cache.

use maskdiff_plugin_api::{
    Model as Lent, Pass, Result as PluginResult, Wants, Window, bail, capability, ensure,
};
use tch::{Kind, Tensor};

use super::Model;

/// The cache of a walk. Shape letters: `B` batch, `L` length, `D` hidden size, `W` tokens that are read.
#[derive(Debug)]
pub(super) struct Kept {
    window: Window,
    /// Those of all layers, once a call has read everything.
    keys: Option<Vec<Tensor>>,
}

impl Kept {
    /// Keys and values that stay: those before the window, and those behind it where they do.
    fn of_others(&self, keys: Vec<Tensor>) -> Vec<Tensor> {
        let Window { first, width, around, .. } = self.window;
        let of = |kept: Tensor| {
            let before = kept.narrow(2, 0, first);
            let rest = kept.size()[2] - first - width;
            match around && rest > 0 {
                true => Tensor::cat(&[before, kept.narrow(2, first + width, rest)], 2),
                false => before.contiguous(),
            }
        };
        keys.into_iter().map(of).collect()
    }

    /// How many tokens of a sequence are read.
    fn reads(&self, length: i64) -> i64 {
        if self.window.around { self.window.width } else { length - self.window.first }
    }
}

impl Model {
    /// Says what the calls to come are about. The next one reads everything.
    pub(super) fn work_on(&self, window: &Window) -> PluginResult<()> {
        ensure!(
            window.first >= 0 && window.width >= 0,
            Shape,
            "a window of {} tokens from {} on",
            window.width,
            window.first
        );
        if window.width == 0 {
            self.kept_keys.take();
            return Ok(());
        }
        for word in [capability::PAST, capability::POSITIONS] {
            ensure!(
                self.offered.contains(word),
                Unsupported,
                "a cache needs a backbone that provides `{word}`, and `{}` does not",
                self.names.backbone.name
            );
        }
        let (keys, window) = (None, *window);
        *self.kept_keys.borrow_mut() = Some(Kept { window, keys });
        Ok(())
    }

    /// Whether a call has been answered from a cache since this was asked last.
    pub(crate) fn has_approximated(&self) -> bool {
        self.approximated.replace(false)
    }

    /// The state of a call while a walk keeps a cache, `[B, L, D]`; none without. Of tokens that are not read it is zero.
    pub(super) fn cached_state(
        &self,
        xt_bl: &Tensor,
        sigma_b: &Tensor,
    ) -> PluginResult<Option<Tensor>> {
        let mut held = self.kept_keys.borrow_mut();
        let Some(kept) = held.as_mut() else { return Ok(None) };
        let (batch, length) = (xt_bl.size()[0], xt_bl.size()[1]);
        let Window { first, width, .. } = kept.window;
        ensure!(
            first + width <= length,
            Shape,
            "a window of {width} tokens from {first} on, of sequences of {length}"
        );
        let Some(keys) = &kept.keys else {
            let passed = Lent::pass(self, &Pass::new(xt_bl, sigma_b).wants(Wants::Both))?;
            kept.keys = Some(kept.of_others(passed.keys));
            return Ok(Some(passed.hidden));
        };
        if keys.first().is_some_and(|keys| keys.size()[0] != batch) {
            bail!(
                Unsupported,
                "this call has {batch} sequences, and the cache holds others: with a cache, a walk must keep the sequences that it began with"
            );
        }
        let reads = kept.reads(length);
        let options = (Kind::Int64, xt_bl.device());
        let positions = Tensor::arange_start(first, first + reads, options).unsqueeze(0);
        let part = xt_bl.narrow(1, first, reads);
        let mut pass = Pass::new(&part, sigma_b).positions(&positions);
        if first > 0 || kept.window.around {
            pass = pass.past(keys);
        }
        let hidden = Lent::pass(self, &pass)?.hidden;
        self.approximated.set(true);
        let whole =
            hidden.new_zeros([batch, length, hidden.size()[2]], (hidden.kind(), hidden.device()));
        whole.narrow(1, first, reads).copy_(&hidden);
        Ok(Some(whole))
    }
}
