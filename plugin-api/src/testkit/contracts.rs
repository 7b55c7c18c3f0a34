//! The contract of each kind, as one call in a plugin's tests.

use tch::{Device, Kind, Tensor};

use super::statistics::chi_square;
use super::toy::{Toy, law_of_walk};
use crate::{
    Backbone, Component, Context, Denoiser, ForwardProcess, Model, NoiseSchedule, Parameterization,
    Sampler, Walk, ops,
};

/// Default options, sent through JSON as they are across the boundary.
fn make<T: Component>(context: &Context) -> T {
    let text = serde_json::to_string(&T::Config::default()).expect("options are JSON");
    let config = serde_json::from_str(&text).expect("options read back what they wrote");
    T::new(config, context).unwrap_or_else(|e| panic!("`{}` with default options: {e:?}", T::NAME))
}

fn values(t: &Tensor) -> Vec<f64> {
    Vec::try_from(t.to_kind(Kind::Double).contiguous().view([-1])).expect("a tensor of numbers")
}

fn close(what: &str, a: &Tensor, b: &Tensor, tolerance: f64) {
    let error = (a - b).abs().max().double_value(&[]);
    assert!(error <= tolerance, "{what}: off by {error:e}, allowed {tolerance:e}");
}

/// Sigma is finite and rises, `dsigma` is its derivative, `time_of_alpha` its inverse; shapes and kind stay.
pub fn noise_contract<T: NoiseSchedule>() {
    let noise: T = make(&Toy::new(2, 2).context());
    let t = Tensor::linspace(0.01, 0.99, 99, (Kind::Double, Device::Cpu));
    let sigma = noise.sigma(&t);
    assert_eq!((sigma.size(), sigma.kind()), (t.size(), Kind::Double), "shape and kind of sigma");
    let list = values(&noise.sigma(&Tensor::linspace(0.0, 1.0, 101, (Kind::Double, Device::Cpu))));
    assert!(list.iter().all(|s| s.is_finite() && *s >= 0.0), "sigma is finite and not negative");
    assert!(list.windows(2).all(|w| w[0] < w[1]), "sigma rises with t");
    let h = 1e-6;
    let slope = (noise.sigma(&(&t + h)) - noise.sigma(&(&t - h))) / (2.0 * h);
    let dsigma = noise.dsigma(&t);
    assert_eq!(dsigma.size(), t.size(), "dsigma has one value for each time");
    close("dsigma against the slope of sigma", &(dsigma / &slope), &slope.ones_like(), 1e-5);
    close("time_of_alpha(alpha(t))", &noise.time_of_alpha(&sigma.neg().exp()), &t, 1e-6);
    let (low, high) = noise.sigma_range();
    assert!(low < high, "sigma_range rises");
}

/// Nothing is lost at alpha = 1, everything at alpha = 0; the posterior is a law; equal uniforms give equal draws.
pub fn process_contract<T: ForwardProcess>() {
    let toy = Toy::new(4, 5);
    let process: T = make(&toy.context());
    let x0 = Tensor::randint(5, [64, 4], (Kind::Int64, Device::Cpu));
    let u = Tensor::rand([64, 4], (Kind::Double, Device::Cpu));
    let alpha = |a: f64| Tensor::full([64], a, (Kind::Double, Device::Cpu));
    let corrupt = |a: f64| process.corrupt(&x0, &alpha(a), &u).expect("corrupt");
    assert_eq!(corrupt(1.0), x0, "alpha = 1 keeps every token");
    assert_eq!(corrupt(0.3), corrupt(0.3), "a draw is a function of its uniforms");
    let prior = process.prior(64, 4).expect("prior");
    assert_eq!((prior.size(), prior.kind()), (vec![64, 4], Kind::Int64), "shape of the prior");
    if process.mask_id().is_some() {
        assert_eq!(corrupt(0.0), prior, "alpha = 0 loses every token");
    }
    let xt = corrupt(0.5).view([-1]);
    let p = Tensor::rand([256, toy.vocab_size()], (Kind::Double, Device::Cpu));
    if let Some(mask) = process.mask_id() {
        let _ = p.select(1, mask).fill_(0.0);
    }
    let p = &p / p.sum_dim_intlist([-1i64].as_slice(), true, Kind::Double);
    let q = process.posterior(&xt, 0.5, 0.7, &p).expect("posterior");
    let sums = q.sum_dim_intlist([-1i64].as_slice(), false, Kind::Double);
    close("rows of the posterior", &sums, &sums.ones_like(), 1e-9);
    assert!(q.min().double_value(&[]) >= 0.0, "probabilities are not negative");
    assert!(process.corrupt(&x0.to_kind(Kind::Float), &alpha(0.5), &u).is_err(), "float tokens");
}

/// Shapes, unique names, a linear head that equals `logits`, gradients for every parameter, length 1, repeatability.
pub fn backbone_contract<T: Backbone>(config: T::Config) {
    let facts = Context {
        vocab_size: 11,
        mask_id: Some(10),
        length: 6,
        time_conditioning: true,
        kind: Kind::Double,
        cuda: None,
    };
    let network = T::new(config, &facts).unwrap_or_else(|e| panic!("new: {e:?}"));
    let entries = network.parameters().entries();
    let mut names: Vec<&str> = entries.iter().map(|p| p.name.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), entries.len(), "names of parameters are unique");
    for length in [6, 1] {
        let xt = Tensor::randint(11, [3, length], (Kind::Int64, Device::Cpu));
        let sigma = Tensor::rand([3], (Kind::Double, Device::Cpu));
        let hidden = network.hidden(&xt, &sigma, false).expect("hidden");
        assert_eq!(hidden.size()[..2], [3, length], "hidden is [B, L, D]");
        let again = network.hidden(&xt, &sigma, false).expect("hidden");
        assert_eq!(hidden, again, "two calls without dropout agree");
        let rows = hidden.flatten(0, 1);
        let logits = network.logits(&rows).expect("logits");
        assert_eq!(logits.size(), [3 * length, 11], "logits are [N, V]");
        if let Some(head) = network.head() {
            close("head against logits", &rows.linear(&head.weight, head.bias), &logits, 1e-9);
        }
        let loss = (logits.log_softmax(-1, Kind::Double) * logits.randn_like()).sum(Kind::Double);
        loss.backward();
    }
    for parameter in entries.iter().filter(|p| p.trainable) {
        assert!(parameter.tensor.grad().defined(), "`{}` gets no gradient", parameter.name);
    }
    let float = Tensor::zeros([1, 6], (Kind::Float, Device::Cpu));
    let sigma = Tensor::zeros([1], (Kind::Double, Device::Cpu));
    assert!(network.hidden(&float, &sigma, false).is_err(), "float tokens are refused");
}

/// Times stay in (0, 1], the loss is finite, one value for each token; laws of x0 sum to 1.
pub fn parameterization_contract<T: Parameterization>() {
    let toy = Toy::new(4, 3).time_conditioned();
    let method: T = make(&toy.context());
    let model = Denoiser::new(&toy);
    let u = Tensor::linspace(0.0, 0.999, 32, (Kind::Double, Device::Cpu));
    let t = method.draw_t(&model, &u).expect("draw_t");
    assert!(values(&t).iter().all(|t| *t > 0.0 && *t <= 1.0), "times lie in (0, 1]");
    let x0 = Tensor::randint(3, [32, 4], (Kind::Int64, Device::Cpu));
    let loss = method.loss(&model, &x0, &t).expect("loss");
    assert_eq!(loss.size(), [32, 4], "the loss has one value for each token");
    assert!(values(&loss).iter().all(|l| l.is_finite()), "the loss is finite");
    let rows = Tensor::arange(128, (Kind::Int64, Device::Cpu));
    if T::PROVIDES.contains(&crate::capability::LOG_X0) {
        let p = method.log_x0(&model, &x0, &t, &rows).expect("log_x0").exp();
        let sums = p.sum_dim_intlist([-1i64].as_slice(), false, Kind::Double);
        close("rows of the law of x0", &sums, &sums.ones_like(), 1e-6);
    }
    if T::PROVIDES.contains(&crate::capability::SCORE) {
        let score = method.score(&model, &x0, &t, &rows).expect("score");
        assert!(score.min().double_value(&[]) >= 0.0, "scores are not negative");
    }
}

/// Shape, no mask left, given tokens kept, equal seeds equal tokens, laws that sum to 1, length 1, stops when asked.
pub fn sampler_contract<T: Sampler>() {
    for length in [5, 1] {
        let toy = Toy::new(length, 3);
        let (model, mut sampler): (_, T) = (Denoiser::new(&toy), make(&toy.context()));
        let start = toy.masked(4);
        let _ = start.select(1, 0).fill_(2);
        let mut draw = |seed| {
            tch::manual_seed(seed);
            sampler.sample(&model, &start).expect("sample")
        };
        let tokens = draw(1);
        assert_eq!((tokens.size(), tokens.kind()), (start.size(), Kind::Int64), "shape of tokens");
        assert_eq!(tokens, draw(1), "equal seeds give equal tokens");
        assert!(values(&tokens).iter().all(|v| *v < 3.0), "a mask is left: {tokens}");
        assert_eq!(tokens.select(1, 0), start.select(1, 0), "given tokens were changed");
        let all = Tensor::full([2, length as i64], 1, (Kind::Int64, Device::Cpu));
        assert_eq!(sampler.sample(&model, &all).expect("sample"), all, "all tokens given");
        for (t, s) in [(1.0, 0.9), (0.5, 0.25), (0.01, 0.0)] {
            let law = sampler.law(&model, &start, t, s).expect("law");
            let sums = law.sum_dim_intlist([-1i64].as_slice(), false, Kind::Double);
            close("rows of the law", &sums, &sums.ones_like(), 1e-6);
        }
    }
    let toy = Toy::new(5, 3);
    toy.stop_after(0);
    let mut sampler: T = make(&toy.context());
    let stopped = sampler.sample(&Denoiser::new(&toy), &toy.masked(1)).map(|x| ops::rows_of(&x));
    assert_eq!(stopped.expect_err("asked to stop").kind, crate::Kind::Interrupted);
}

/// The law of the samples is the exact law of the walk: one sequence at a time and in batches, 4 to 1,000 steps, each
/// by a chi-square test at 1e-4. `with_steps` makes the sampler of so many steps, and its grid.
pub fn walk_contract<T: Sampler>(with_steps: impl Fn(i64) -> (T, Walk)) {
    let (small, large) = (Toy::new(2, 2), Toy::new(3, 3));
    for (toy, steps, batch, walks) in [
        (&large, 4, 1, 3000),
        (&large, 4, 8, 3000),
        (&large, 64, 8, 300),
        (&small, 1000, 1, 100),
        (&small, 1000, 8, 50),
        (&large, 1000, 4000, 2),
    ] {
        let (mut sampler, walk) = with_steps(steps);
        let law = law_of_walk(&sampler, walk, toy).expect("law");
        tch::manual_seed(steps + batch);
        let mut counts = vec![0.0; law.len()];
        for _ in 0..walks {
            let x0 = sampler.sample(&Denoiser::new(toy), &toy.masked(batch)).expect("sample");
            counts.iter_mut().zip(toy.counts(&x0)).for_each(|(sum, count)| *sum += count);
        }
        let p = chi_square(&counts, &law);
        assert!(p > 1e-4, "{steps} steps, batch {batch}: p = {p:e}");
    }
}
