//! Parameters of which each rank holds a part, gathered where a stage of the network reads them.

use std::ffi::{c_char, c_int, c_void};

use tch::Tensor;
use torch_sys::C_tensor;

use crate::{Error, Group, List, Result, checked, pointers};

// SAFETY: the signatures repeat cpp/shard.cpp.
unsafe extern "C" {
    fn maskdiff_record(result: *mut *mut c_void) -> *mut c_char;
    fn maskdiff_recorded(
        recorder: *mut c_void,
        list: *mut c_void,
        give: unsafe extern "C" fn(*mut c_void, i64, *mut C_tensor),
    ) -> *mut c_char;
    fn maskdiff_shards_new(
        group: *mut c_void,
        params: List,
        at: *const i64,
        counts: *const i64,
        parts: *const i64,
        count: usize,
        result: *mut *mut c_void,
    ) -> *mut c_char;
    fn maskdiff_shards_own(
        shards: *mut c_void,
        unit: usize,
        own: *mut *mut C_tensor,
        gradient: *mut *mut C_tensor,
    ) -> *mut c_char;
    fn maskdiff_shards_open(shards: *mut c_void) -> *mut c_char;
    fn maskdiff_shards_close(shards: *mut c_void) -> *mut c_char;
    fn maskdiff_shards_hold(shards: *mut c_void, whole: c_int) -> *mut c_char;
    fn maskdiff_shards_failed(shards: *mut c_void) -> *mut c_char;
    fn maskdiff_shards_free(shards: *mut c_void);
}

/// # Safety
/// `list` is a `Vec<(i64, Tensor)>` and `tensor` a new handle.
unsafe extern "C" fn give(list: *mut c_void, stage: i64, tensor: *mut C_tensor) {
    // SAFETY: by the contract of this function.
    unsafe { (*list.cast::<Vec<(i64, Tensor)>>()).push((stage, Tensor::from_ptr(tensor))) };
}

/// Which parameters the stages read that `body` runs with gradients: each with the number of its stage, as often as it was read.
pub fn recorded<T>(body: impl FnOnce() -> T) -> Result<(T, Vec<(i64, Tensor)>)> {
    let (mut recorder, mut met) = (std::ptr::null_mut(), Vec::new());
    // SAFETY: a place for what is made.
    checked(unsafe { maskdiff_record(&raw mut recorder) })?;
    let made = body();
    // SAFETY: made above and not used again; `met` outlives the call.
    checked(unsafe { maskdiff_recorded(recorder, (&raw mut met).cast(), give) })?;
    Ok((made, met))
}

/// How the parameters of a unit lie in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// Where each begins.
    pub at: Vec<usize>,
    /// N, the numbers of each rank: the first N are rank 0's.
    pub part: usize,
}

impl Layout {
    /// Numbers between which parameters begin: 64 bytes of float32, as libtorch's own memory.
    const STEP: usize = 16;

    /// Parameters of these sizes one behind the other, in equal parts of `ranks` ranks.
    pub fn new(sizes: impl IntoIterator<Item = usize>, ranks: usize) -> Self {
        let mut end = 0;
        let begin = |size: usize| {
            let at = end;
            end = (end + size).next_multiple_of(Self::STEP);
            at
        };
        let at = sizes.into_iter().map(begin).collect();
        Self { at, part: end.div_ceil(ranks).next_multiple_of(Self::STEP) }
    }

    /// Of the numbers `at..at + size` of the unit those that are a rank's: from which of them, and how many.
    pub fn of_rank(&self, at: usize, size: usize, rank: usize) -> (usize, usize) {
        let (first, end) = (rank * self.part, (rank + 1) * self.part);
        let (low, high) = (first.clamp(at, at + size), end.clamp(at, at + size));
        (low - at, high - low)
    }
}

/// The parts of one rank. The parameters are empty, and not a number, but where a stage reads them.
#[derive(Debug)]
pub struct Shards {
    handle: *mut c_void,
}

impl Shards {
    /// Shares out parameters that are equal on all ranks: those of each stage, by its number, then those that no stage reads alone. The
    /// network is made with stages that are computed again.
    ///
    /// # Errors
    /// A network whose stages are listened to already.
    pub fn new(group: &Group, units: &[(Vec<Tensor>, Layout)]) -> Result<Self> {
        let whole = |numbers: &[usize]| -> Vec<i64> { numbers.iter().map(|n| *n as i64).collect() };
        let params: Vec<Tensor> =
            units.iter().flat_map(|(params, _)| params).map(Tensor::shallow_clone).collect();
        let at: Vec<i64> = units.iter().flat_map(|(_, layout)| whole(&layout.at)).collect();
        let counts: Vec<i64> = units.iter().map(|(params, _)| params.len() as i64).collect();
        let parts: Vec<i64> = units.iter().map(|(_, layout)| layout.part as i64).collect();
        let (list, mut handle) = (pointers(&params), std::ptr::null_mut());
        // SAFETY: a live group, N live tensors with N places, M counts and M parts of M units, a place for what is made.
        checked(unsafe {
            maskdiff_shards_new(
                group.handle,
                list.as_ptr(),
                at.as_ptr(),
                counts.as_ptr(),
                parts.as_ptr(),
                units.len(),
                &raw mut handle,
            )
        })?;
        Ok(Self { handle })
    }

    /// This rank's part of a unit that has parameters, as it is learnt (float32 or wider), and that of the gradient: `[part]` each.
    pub fn own(&self, unit: usize) -> Result<(Tensor, Tensor)> {
        let (mut own, mut gradient) = (std::ptr::null_mut(), std::ptr::null_mut());
        // SAFETY: a live value, places for two tensors.
        checked(unsafe {
            maskdiff_shards_own(self.handle, unit, &raw mut own, &raw mut gradient)
        })?;
        // SAFETY: on success the shim hands over two new tensors.
        Ok(unsafe { (Tensor::from_ptr(own), Tensor::from_ptr(gradient)) })
    }

    /// Before the passes of a step: clears the gradients, and gathers what no stage reads alone. All ranks take part, here and below.
    pub fn open(&self) -> Result<()> {
        // SAFETY: a live value.
        checked(unsafe { maskdiff_shards_open(self.handle) })
    }

    /// After the passes of a step: the gradients are the means over the ranks.
    pub fn close(&self) -> Result<()> {
        // SAFETY: a live value.
        checked(unsafe { maskdiff_shards_close(self.handle) })
    }

    /// Gathers all parameters, on every rank, until [`Shards::part`].
    pub fn gather(&self) -> Result<()> {
        // SAFETY: a live value.
        checked(unsafe { maskdiff_shards_hold(self.handle, 1) })
    }

    /// Lets go of what [`Shards::gather`] has gathered.
    pub fn part(&self) -> Result<()> {
        // SAFETY: a live value.
        checked(unsafe { maskdiff_shards_hold(self.handle, 0) })
    }

    /// What failed first: a pass through a network that failed on the way has other words for it.
    pub fn failure(&self) -> Option<Error> {
        // SAFETY: a live value.
        checked(unsafe { maskdiff_shards_failed(self.handle) }).err()
    }
}

impl Drop for Shards {
    fn drop(&mut self) {
        // SAFETY: made by `maskdiff_shards_new` and not used again.
        unsafe { maskdiff_shards_free(self.handle) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_equal_and_parameters_may_lie_in_several() {
        let layout = Layout::new([100, 3, 40], 2);
        // 112 + 16 + 48 = 176 numbers, of which each rank has half, rounded up.
        assert_eq!(layout, Layout { at: vec![0, 112, 128], part: 96 });
        let of = |rank| [(0, 100), (112, 3), (128, 40)].map(|(at, n)| layout.of_rank(at, n, rank));
        assert_eq!(of(0).map(|(_, n)| n), [96, 0, 0]);
        assert_eq!(of(1), [(96, 4), (0, 3), (0, 40)]);
        assert_eq!(Layout::new([], 4), Layout { at: vec![], part: 0 });
    }
}
