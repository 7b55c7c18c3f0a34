//! Laws of walks over enumerated toys, for the tests of all samplers here.

use maskdiff_plugin_api::prelude::*;
use maskdiff_plugin_api::tch::Device;
use maskdiff_plugin_api::testkit::{Toy, chi_square};
use tch::Kind;

/// A position and the token that is given there.
pub(crate) type Given = Option<(usize, i64)>;

/// All sequences of `length` tokens out of `base`, first position most significant, `[S, L] i64`.
fn every(base: i64, length: i64) -> Tensor {
    let states = Tensor::arange(base.pow(length as u32), (Kind::Int64, Device::Cpu));
    let digit =
        |l: i64| states.floor_divide_scalar(base.pow((length - 1 - l) as u32)).remainder(base);
    Tensor::stack(&(0..length).map(digit).collect::<Vec<_>>(), 1)
}

/// Spreads each row of laws `[S, L, V]` over all sequences: `[S, S]`.
fn transitions(law_slv: &Tensor, length: i64) -> Tensor {
    let rows = law_slv.size()[0];
    let mut joint = Tensor::ones([rows, 1], (Kind::Double, Device::Cpu));
    for l in 0..length {
        let position = law_slv.select(1, l).unsqueeze(1);
        joint = (joint.unsqueeze(2) * position).reshape([rows, -1]);
    }
    joint
}

/// A law whose given position is certain.
fn held(law_slv: &Tensor, given: Given) -> Tensor {
    let Some((place, token)) = given else { return law_slv.shallow_clone() };
    let law_slv = law_slv.copy();
    let mut position = law_slv.select(1, place as i64);
    let _ = position.zero_();
    let _ = position.select(1, token).fill_(1.0);
    law_slv
}

/// The law of a walk's end over all sequences of the vocabulary, step by step.
fn law_of_walk(sampler: &impl Sampler, steps: &[(f64, f64)], toy: &Toy, given: Given) -> Tensor {
    let (size, length, model) = (toy.context().vocab_size, toy.length(), Denoiser::new(toy));
    let all = every(size, length);
    let noise_v = {
        let nothing = Tensor::zeros([1], (Kind::Double, Device::Cpu));
        let tokens = Tensor::arange(size, (Kind::Int64, Device::Cpu)).unsqueeze(0);
        model.mixing(&nothing).unwrap().at(&tokens, model.mask())
    };
    let start = noise_v.unsqueeze(1).expand([1, length, size], false);
    let mut law = transitions(&held(&start.contiguous(), given), length);
    for (t, s) in steps {
        let step = sampler.law(&model, &all, *t, *s).unwrap().to_kind(Kind::Double);
        law = law.matmul(&transitions(&held(&step, given), length));
    }
    law.squeeze_dim(0)
}

/// Equal steps from `start` to `t_min`, and the tail.
pub(crate) fn grid(steps: i64, start: f64, t_min: f64) -> Vec<(f64, f64)> {
    let time = |i: i64| start - (start - t_min) * i as f64 / steps as f64;
    (0..steps).map(|i| (time(i), time(i + 1))).chain([(t_min, 0.0)]).collect()
}

/// The draws of a sampler have the law of its steps, in batches of one and of eight.
pub(crate) fn draws_have_the_law<T: Sampler>(
    make: impl Fn(&Context) -> T,
    steps: &[(f64, f64)],
    toy: &Toy,
    given: Given,
) {
    tch::manual_seed(17);
    let (size, length) = (toy.context().vocab_size, toy.length());
    let mut sampler = make(&toy.context());
    let law = law_of_walk(&sampler, steps, toy, given);
    let law = Vec::<f64>::try_from(law).unwrap();
    assert!((law.iter().sum::<f64>() - 1.0).abs() < 1e-9);
    for (batch, walks) in [(1, 400), (8, 400)] {
        let mut counts = vec![0.0; law.len()];
        for _ in 0..walks {
            let start = toy.start(batch);
            toy.give(None);
            if let Some((place, token)) = given {
                let _ = start.select(1, place as i64).fill_(token);
                let given_bl = start.zeros_like().to_kind(Kind::Bool);
                let _ = given_bl.select(1, place as i64).fill_(1);
                toy.give(Some(given_bl));
            }
            let drawn = sampler.sample(&Denoiser::new(toy), &start).unwrap();
            for row in 0..batch {
                let tokens = Vec::<i64>::try_from(drawn.get(row)).unwrap();
                counts[tokens
                    .iter()
                    .fold(0, |state, token| state * size as usize + *token as usize)] += 1.0;
            }
        }
        toy.give(None);
        // A walk that ends at the likeliest tokens may have one end.
        if let Some(only) = law.iter().position(|p| *p > 1.0 - 1e-9) {
            assert_eq!(counts[only], (walks * batch) as f64);
            continue;
        }
        let p = chi_square(&counts, &law);
        assert!(
            p > 1e-4,
            "length {length}, batch {batch}, given {given:?}: p = {p:e}, {counts:?} {law:?}"
        );
    }
}

/// With many steps the walk of an exact network ends at the data's law.
pub(crate) fn it_ends_at_the_data(
    sampler: &impl Sampler,
    steps: &[(f64, f64)],
    toy: &Toy,
    bound: f64,
) {
    let (size, length) = (toy.context().vocab_size, toy.length());
    let law = law_of_walk(sampler, steps, toy, None);
    let weights: Vec<i64> = (0..length).map(|l| size.pow((length - 1 - l) as u32)).collect();
    let mut distance = 0.0;
    for (state, p) in toy.joint().iter().enumerate() {
        let index: i64 = toy.tokens_of(state).iter().zip(&weights).map(|(a, b)| a * b).sum();
        distance += (law.double_value(&[index]) - p).abs() / 2.0;
    }
    assert!(distance < bound, "total variation {distance}");
}
