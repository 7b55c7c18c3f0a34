//! What components may ask for while they run, beyond the network: the step, what is given, classes, random numbers.

use maskdiff_base::stream::{self, Purpose};
use maskdiff_plugin_api::{Result as PluginResult, bail, ensure};
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use tch::{Device, Kind, Tensor};

/// A stream of random numbers for each sequence of a batch, by the seed and the sequence's number. So what is drawn for a
/// sequence does not depend on its place in a batch, on the batch's size or on the rank.
#[derive(Debug, Clone)]
pub struct Streams(Vec<ChaCha8Rng>);

impl Streams {
    /// Streams of the sequences with these numbers, which are below 2^56.
    pub fn new(seed: u64, purpose: Purpose, numbers: impl Iterator<Item = u64>) -> Self {
        Self::each(purpose, numbers.map(|number| (seed, number)))
    }

    /// Streams of sequences of which each has a seed of its own, beside its number.
    pub fn each(purpose: Purpose, sources: impl Iterator<Item = (u64, u64)>) -> Self {
        Self(sources.map(|(seed, number)| stream::generator(seed, purpose, number)).collect())
    }

    /// Goes to the numbers of a part of a walk. They begin far behind those of the part before, so a part's draws do not depend on how many a
    /// sequence of the same batch has needed so far.
    fn seek(&mut self, part: u64) {
        // Of the 2^68 words of a stream, a part has 2^36.
        self.0.iter_mut().for_each(|generator| generator.set_word_pos(u128::from(part) << 36));
    }

    /// The streams of one sequence alone, and those of all.
    fn only(self, row: usize) -> (Self, Self) {
        (Self(vec![self.0[row].clone()]), self)
    }

    /// Uniform numbers strictly inside (0, 1), f64. The rows of the first dimension are those of the sequences, in order.
    fn uniforms(&mut self, shape: &[i64]) -> PluginResult<Tensor> {
        let (rows, sequences) = (shape.first().copied().unwrap_or(0), self.0.len() as i64);
        ensure!(
            sequences > 0 && rows % sequences == 0,
            Shape,
            "random numbers {shape:?}: the first dimension counts sequences, and there are {sequences}"
        );
        let all: i64 = shape.iter().product();
        let each = all / sequences;
        let mut numbers = Vec::with_capacity(all as usize);
        for generator in &mut self.0 {
            numbers.extend((0..each).map(|_| inside(generator.random::<u64>())));
        }
        Ok(Tensor::from_slice(&numbers).view(shape))
    }
}

/// 52 random bits as the middle of one of 2^52 equal parts of (0, 1): neither end can come out.
fn inside(bits: u64) -> f64 {
    ((bits >> 12) as f64 + 0.5) / (1_u64 << 52) as f64
}

/// See the module. Without streams, random numbers come from libtorch's generator.
#[derive(Debug, Default)]
pub struct Moment {
    /// The optimizer step that is being taken.
    pub step: Option<i64>,
    /// The streams of the sequences of the batch or the walk.
    pub streams: Option<Streams>,
    /// Whether a corruption draws from the streams as well.
    pub draws_noise: bool,
    /// Given positions, `[B, L] bool`.
    pub given_bl: Option<Tensor>,
    /// Classes, `[B] i64`.
    pub label_b: Option<Tensor>,
    /// The number of each token's document in its sequence, `[B, L] i64`, where there are several.
    pub document_bl: Option<Tensor>,
}

impl Moment {
    /// Of a training step, or with none of an evaluation.
    pub fn of_loss(step: Option<i64>, streams: Option<Streams>) -> Self {
        Self { step, draws_noise: streams.is_some(), streams, ..Self::default() }
    }

    /// The same of sequences of these classes, `[B] i64`.
    #[must_use]
    pub fn labelled(self, label_b: Option<Tensor>) -> Self {
        Self { label_b, ..self }
    }

    /// The same of sequences that are packed with documents, `[B, L] i64`.
    #[must_use]
    pub fn packed(self, document_bl: Option<Tensor>) -> Self {
        Self { document_bl, ..self }
    }

    /// Of a walk in which positions `[B, L] bool` are given.
    pub fn of_walk(streams: Streams, given_bl: Option<Tensor>) -> Self {
        Self { streams: Some(streams), given_bl, ..Self::default() }
    }

    /// A part of a walk begins: a window, or a block of the texts.
    pub fn begin_part(&mut self, part: u64) {
        if let Some(streams) = &mut self.streams {
            streams.seek(part);
        }
    }

    /// The streams as they stand.
    pub fn streams(&self) -> Option<&Streams> {
        self.streams.as_ref()
    }

    /// Puts the streams back where they stood.
    pub fn rewind(&mut self, streams: Option<Streams>) {
        self.streams = streams;
    }

    /// Keeps the stream of one sequence alone; returns the streams of all, for [`Moment::together`].
    pub fn alone(&mut self, row: usize) -> Option<Streams> {
        let (own, all) = self.streams.take()?.only(row);
        self.streams = Some(own);
        Some(all)
    }

    /// Ends what [`Moment::alone`] began: all sequences have their streams again, and that one continues where it stopped.
    pub fn together(&mut self, row: usize, all: Option<Streams>) {
        let own = self.streams.take();
        self.streams = all;
        if let (Some(Streams(all)), Some(Streams(mut own))) = (&mut self.streams, own) {
            all[row] = own.remove(0);
        }
    }

    /// Uniform numbers strictly inside (0, 1), f64, on a device.
    pub fn uniforms(&mut self, shape: &[i64], device: Device) -> PluginResult<Tensor> {
        if shape.is_empty() {
            bail!(Shape, "random numbers need a shape: the sequences come first");
        }
        match &mut self.streams {
            Some(streams) => Ok(streams.uniforms(shape)?.to_device(device)),
            None => {
                let parts = (1_u64 << 52) as f64;
                let drawn = Tensor::rand(shape, (Kind::Double, device));
                Ok(((drawn * parts).floor() + 0.5) / parts)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moment(numbers: std::ops::Range<u64>) -> Moment {
        Moment { streams: Some(Streams::new(3, Purpose::Walks, numbers)), ..Moment::default() }
    }

    #[test]
    fn a_sequence_draws_the_same_numbers_wherever_it_stands() {
        let draw = |numbers: std::ops::Range<u64>, calls: usize| {
            let rows = (numbers.end - numbers.start) as i64;
            let mut moment = moment(numbers);
            let all: Vec<Tensor> =
                (0..calls).map(|_| moment.uniforms(&[rows, 2, 3], Device::Cpu).unwrap()).collect();
            Tensor::stack(&all, 1)
        };
        let whole = draw(0..6, 3);
        assert_eq!(whole, Tensor::cat(&[draw(0..2, 3), draw(2..6, 3)], 0));
        let calls = Vec::<f64>::try_from(whole.contiguous().view([-1])).unwrap();
        let different: std::collections::BTreeSet<u64> =
            calls.iter().map(|u| u.to_bits()).collect();
        assert_eq!(different.len(), calls.len(), "each call continues its stream");
    }

    /// What one sequence has used up in a part is no matter to the next part of another one.
    #[test]
    fn a_part_of_a_walk_has_numbers_of_its_own() {
        let draw = |used: i64| {
            let mut moment = moment(0..2);
            let first = moment.uniforms(&[2, used], Device::Cpu).unwrap();
            moment.begin_part(1);
            (first, moment.uniforms(&[2, 4], Device::Cpu).unwrap())
        };
        let ((few, after_few), (many, after_many)) = (draw(4), draw(40));
        assert_eq!(after_few, after_many);
        assert_eq!(few, many.narrow(1, 0, 4));
        assert_ne!(few, after_few);
    }

    #[test]
    fn rows_belong_to_sequences_and_a_shape_that_fits_none_is_refused() {
        let blocks = moment(0..2).uniforms(&[6, 4], Device::Cpu).unwrap();
        let rows = moment(0..2).uniforms(&[2, 12], Device::Cpu).unwrap();
        assert_eq!(blocks.view([2, 12]), rows);
        let error = moment(0..2).uniforms(&[3, 4], Device::Cpu).unwrap_err();
        assert!(error.to_string().contains("there are 2"), "{error}");
    }

    #[test]
    fn uniform_numbers_stay_inside_and_normal_ones_are_finite() {
        assert!(inside(0) > 0.0 && inside(u64::MAX) < 1.0);
        let ends = Tensor::from_slice(&[inside(0), inside(u64::MAX)]).special_ndtri();
        assert!(Vec::<f64>::try_from(ends).unwrap().iter().all(|x| x.is_finite()));
        let normal = moment(0..1).uniforms(&[1, 40_000], Device::Cpu).unwrap().special_ndtri();
        let (mean, spread) = (normal.mean(Kind::Double), normal.std(true));
        assert!(mean.double_value(&[]).abs() < 5.0 / 200.0, "{mean:?}");
        assert!((spread.double_value(&[]) - 1.0).abs() < 5.0 / 280.0, "{spread:?}");
    }
}
