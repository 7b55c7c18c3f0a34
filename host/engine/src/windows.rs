//! Texts that are longer than the model: window after window.

use maskdiff_base::error::Result;
use maskdiff_config::groups;
use tch::Tensor;

use crate::prompt::Given;

/// How long a text becomes: a window of the model's length, then windows that each move on by `stride` tokens and see
/// the end of the one before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Windows {
    /// Tokens by which a window moves, 1 to the model's length.
    pub stride: i64,
    /// Windows after the first, ≥ 0.
    pub more: i64,
}

impl Windows {
    /// Texts of the model's length.
    pub const ONE: Self = Self { stride: 1, more: 0 };

    /// What the configuration asks for.
    pub fn new(sampling: &groups::Sampling) -> Self {
        if !sampling.semi_ar {
            return Self::ONE;
        }
        Self { stride: sampling.stride_length, more: sampling.num_strides }
    }

    /// Those that texts need of which `longest` tokens are all, in windows of `length` tokens.
    #[must_use]
    pub fn up_to(self, longest: i64, length: i64) -> Self {
        let beyond = (longest - length).max(0);
        Self { more: ((beyond + self.stride - 1) / self.stride).min(self.more), ..self }
    }

    /// Those that these texts need, in windows of `length` tokens: fewer where each says its end.
    #[must_use]
    pub fn of(self, given: &[Given], length: i64) -> Self {
        match given.iter().all(Given::is_whole) {
            true => {
                self.up_to(given.iter().filter_map(Given::whole).max().unwrap_or(0) as i64, length)
            }
            false => self,
        }
    }

    /// Tokens of a text, where a window has `length`.
    pub fn tokens(self, length: i64) -> i64 {
        length + self.stride * self.more
    }

    /// Where the window begins that draws a position of a text.
    pub fn begin(self, position: i64, length: i64) -> i64 {
        let beyond = (position + 1 - length).max(0);
        (beyond + self.stride - 1) / self.stride * self.stride
    }

    /// All windows of a text: from the first start `[B, L]` to `[B, L + more * stride]`. `prior` makes the starts of later
    /// ones, `sample` walks from a start.
    pub fn walk(
        self,
        first: &Tensor,
        prior: impl Fn() -> Result<Tensor>,
        mut sample: impl FnMut(&Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let seen = first.size()[1] - self.stride;
        let mut text = sample(first)?;
        for _ in 0..self.more {
            let start = prior()?;
            start.narrow(1, 0, seen).copy_(&text.narrow(1, text.size()[1] - seen, seen));
            text = Tensor::cat(&[text, sample(&start)?.narrow(1, seen, self.stride)], 1);
        }
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::component;
    use tch::{Device, Kind};

    const MASK: i64 = 99;

    /// A sampler that counts up from the last given token shows what each window saw.
    #[test]
    fn each_window_sees_the_end_of_the_one_before() {
        for (stride, more) in [(1, 3), (2, 2), (4, 2), (3, 0)] {
            let prior = || Ok(Tensor::full([1, 4], MASK, (Kind::Int64, Device::Cpu)));
            let mut starts = Vec::new();
            let count = |start: &Tensor| {
                let mut ids = Vec::<i64>::try_from(start.get(0)).map_err(component::torch)?;
                starts.push(ids.clone());
                let given = ids.iter().take_while(|id| **id != MASK).count();
                let first = if given == 0 { starts.len() as i64 * 10 } else { ids[given - 1] + 1 };
                (given..4).for_each(|i| ids[i] = first + (i - given) as i64);
                Ok(Tensor::from_slice(&ids).unsqueeze(0))
            };
            let text = Windows { stride, more }.walk(&prior().unwrap(), prior, count).unwrap();
            let text = Vec::<i64>::try_from(text.get(0)).unwrap();
            assert_eq!(text.len() as i64, 4 + stride * more);
            for (i, start) in starts.iter().enumerate().skip(1) {
                let seen = (4 - stride) as usize;
                let at = i * stride as usize;
                assert_eq!(start[..seen], text[at..at + seen], "window {i}, stride {stride}");
                assert!(start[seen..].iter().all(|id| *id == MASK));
            }
            let windows = Windows { stride, more };
            assert_eq!(windows.tokens(4), text.len() as i64);
            for position in 0..text.len() as i64 {
                // The first window that has it.
                let from = windows.begin(position, 4);
                assert!(from % stride == 0 && (from..from + 4).contains(&position));
                assert!(from == 0 || position >= from - stride + 4);
            }
            assert_eq!(windows.up_to(5, 4).more, 1.min(more));
            assert_eq!(windows.up_to(4, 4).more, 0);
            if stride < 4 {
                assert!(text.windows(2).all(|pair| pair[1] == pair[0] + 1), "{text:?}");
            }
        }
    }
}
