//! The exact law of a walk over a toy.

use tch::{Kind as TensorKind, Tensor};

use super::toy::Toy;
use crate::{Denoiser, Result, Sampler, Walk};

/// The exact law of a sampler's result over a toy, from its prior: each step's [`Sampler::law`] applied to the
/// distribution over all `V^length` states. In the order of [`Toy::joint`].
pub fn law_of_walk(sampler: &impl Sampler, walk: Walk, toy: &Toy) -> Result<Vec<f64>> {
    let (base, model) = (toy.vocab(), Denoiser::new(toy));
    let states = base.pow(u32::try_from(toy.length)?);
    let every: Vec<i64> =
        (0..states).flat_map(|s| toy.digits(s, base)).map(|token| token as i64).collect();
    let every = Tensor::from_slice(&every).view([states as i64, toy.length()]);
    let mut law = vec![0.0; states];
    let prior = Vec::<f64>::try_from(toy.noise.law(toy.tokens))?;
    spread(&prior.repeat(toy.length), base, 1.0, 0, &mut law);
    let last = walk.noise_removal.then_some((walk.t_min, 0.0));
    let steps = (0..walk.steps).map(|i| (walk.time(i), walk.time(i + 1))).chain(last);
    for (t, s) in steps {
        let step = sampler.law(&model, &every, t, s)?.to_kind(TensorKind::Double);
        let step = Vec::<f64>::try_from(step.contiguous().view([-1]))?;
        let mut next = vec![0.0; states];
        for (state, mass) in law.iter().enumerate().filter(|(_, mass)| **mass > 0.0) {
            let row = &step[state * toy.length * base..(state + 1) * toy.length * base];
            spread(row, base, *mass, 0, &mut next);
        }
        law = next;
    }
    let clean = |state: usize| {
        let number = toy.digits(state, toy.tokens);
        number.iter().fold(0, |index, digit| index * base + digit)
    };
    Ok((0..toy.joint.len()).map(|state| law[clean(state)]).collect())
}

/// Adds `mass` times the product of the positions' laws to every state, position by position.
fn spread(row: &[f64], base: usize, mass: f64, state: usize, next: &mut [f64]) {
    if row.is_empty() {
        next[state] += mass;
        return;
    }
    for (token, p) in row[..base].iter().enumerate().filter(|(_, p)| **p > 0.0) {
        spread(&row[base..], base, mass * p, state * base + token, next);
    }
}
