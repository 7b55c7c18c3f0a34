//! The contracts for the tests of a plugin: one call with the component's type, panics with what is wrong.

use super::contracts;
use super::statistics::chi_square;
use super::toy::Toy;
use super::walk::law_of_walk;
use crate::abi::handles::{Method, Network, Noise, Process, Walker};
use crate::{
    Backbone, Component, Context, Denoiser, ForwardProcess, NoiseSchedule, Parameterization,
    PluginError, Result, Sampler, Walk,
};

/// Options, sent through JSON as they are across the boundary.
fn make<T: Component>(config: &T::Config, context: &Context) -> Result<T> {
    let text = serde_json::to_string(config)?;
    T::new(serde_json::from_str(&text)?, context)
}

fn with_defaults<T: Component>(context: &Context) -> Result<T> {
    make(&T::Config::default(), context)
}

#[track_caller]
fn kept<T: Component>(contract: Result<contracts::LeftOut>) {
    match contract {
        Ok(left_out) if left_out.is_empty() => {}
        Ok(left_out) => eprintln!("`{}`: not checked: {}", T::NAME, left_out.join(", ")),
        Err(error) => panic!("`{}`: {} ({})", T::NAME, bare(error.clone()), error.location),
    }
}

/// The capabilities that options leave: the schema of one that takes some back names them as `x-withdraws`.
fn left<T: Component>(config: &T::Config) -> Vec<&'static str> {
    let schema = crate::schemars::schema_for!(T::Config).to_value();
    let options = serde_json::to_value(config).unwrap_or_default();
    let properties = schema["properties"].as_object().into_iter().flatten();
    let set = properties.filter(|(option, _)| options[option.as_str()] == true);
    let taken: Vec<&str> = set
        .filter_map(|(_, about)| about["x-withdraws"].as_array())
        .flatten()
        .filter_map(|word| word.as_str())
        .collect();
    T::PROVIDES.iter().copied().filter(|word| !taken.contains(word)).collect()
}

/// An error without the component's name, which is told beside it.
fn bare(mut error: PluginError) -> PluginError {
    let _ = error.take_culprit();
    error
}

/// [`contracts::noise`], with default options.
#[track_caller]
pub fn noise_contract<T: NoiseSchedule>() {
    let make = |facts: &Context| with_defaults::<T>(facts).map(|c| Noise::of(c, facts));
    kept::<T>(contracts::noise(&make, T::NEEDS));
}

/// [`contracts::process`], with default options.
#[track_caller]
pub fn process_contract<T: ForwardProcess>() {
    let make = |facts: &Context| with_defaults::<T>(facts).map(|c| Process::of(c, facts));
    kept::<T>(contracts::process(&make, T::PROVIDES));
}

/// [`contracts::backbone`], with the given options: small ones are quick. A capability that an option withdraws must be refused.
#[track_caller]
pub fn backbone_contract<T: Backbone>(config: T::Config) {
    let provides = left::<T>(&config);
    let make = |facts: &Context| make::<T>(&config, facts).map(|c| Network::of(c, facts));
    kept::<T>(contracts::backbone(&make, &provides));
}

/// [`contracts::parameterization`], with default options.
#[track_caller]
pub fn parameterization_contract<T: Parameterization>() {
    let make = |facts: &Context| with_defaults::<T>(facts).map(|c| Method::of(c, facts));
    kept::<T>(contracts::parameterization(&make, T::PROVIDES, T::NEEDS));
}

/// [`contracts::sampler`], with default options.
#[track_caller]
pub fn sampler_contract<T: Sampler>() {
    let make = |facts: &Context| with_defaults::<T>(facts).map(|c| Walker::of(c, facts));
    kept::<T>(contracts::sampler(&make, T::NEEDS));
}

/// The law of the samples is the exact law of the walk: one sequence at a time and in batches, 4 to 1,000 steps, each
/// by a chi-square test at 1e-4. `with_steps` makes the sampler of so many steps, and its grid.
///
/// The environment's `MASKDIFF_TEST_LAWS` multiplies how often each is walked (`scripts/laws.sh` has 10).
pub fn walk_contract<T: Sampler>(with_steps: impl Fn(i64) -> (T, Walk)) {
    let (small, large) = (Toy::new(2, 2), Toy::new(3, 3));
    let times = std::env::var("MASKDIFF_TEST_LAWS").map_or(1, |n| n.parse().expect("a number"));
    for (toy, steps, batch, walks) in [
        (&large, 4, 1, 2000),
        (&large, 4, 8, 1000),
        (&large, 64, 8, 100),
        (&small, 1000, 1, 20),
        (&small, 1000, 50, 8),
        (&large, 1000, 4000, 2),
    ] {
        let (mut sampler, walk) = with_steps(steps);
        let law = law_of_walk(&sampler, walk, toy).expect("law");
        tch::manual_seed(steps + batch);
        let mut counts = vec![0.0; law.len()];
        for _ in 0..walks * times {
            let x0 = sampler.sample(&Denoiser::new(toy), &toy.masked(batch)).expect("sample");
            counts.iter_mut().zip(toy.counts(&x0)).for_each(|(sum, count)| *sum += count);
        }
        let p = chi_square(&counts, &law);
        assert!(p > 1e-4, "{steps} steps, batch {batch}: p = {p:e}");
    }
}
