//! Identities of uniform and hybrid noise that need no reference program, through the plugins as built.
//!
//! Notation as in `identities.rs`, with noise b on every token: `q(z | x) = alpha x + b`, `p~ = alpha p + b`.

use maskdiff_engine::model::Model;
use maskdiff_engine::plugins::{Choice, Choices, Registry};
use maskdiff_plugin_api::abi::handles::{Method, Walker};
use maskdiff_plugin_api::testkit::{Toy, chi_square};
use maskdiff_plugin_api::{Context, Denoiser, Model as _};
use maskdiff_tests::fixed::Fixed;
use maskdiff_tests::{assert_close, registry};
use proptest::prelude::*;
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

const F64: (Kind, Device) = (Kind::Double, Device::Cpu);
/// V, with the mask where there is one.
const V: i64 = 6;

/// Noise: a process, its options, and whether it has a mask, which is the last token.
type Noisy = (&'static str, Value, bool);

fn noises() -> Vec<Noisy> {
    vec![
        ("uniform", json!({}), false),
        ("gidd", json!({ "p_uniform": 0.2 }), true),
        ("gidd", json!({ "p_uniform": 0.4, "gamma": 1.5 }), true),
        ("xdlm", json!({ "k": 0.3 }), true),
    ]
}

fn choice(name: &str, options: Value) -> Choice {
    Choice { name: name.into(), options }
}

fn facts(mask: bool) -> Context {
    Context::new(V, 1).mask(mask.then_some(V - 1)).time_conditioning(true).kind(Kind::Double)
}

/// A model over this noise; its network is not asked.
fn model(registry: &Registry, (process, options, mask): &Noisy, schedule: &str) -> Model {
    let small = json!({ "hidden_size": 8, "n_heads": 2, "n_blocks": 1, "cond_dim": 8 });
    let clock = if schedule == "gidd" { options.clone() } else { json!({}) };
    let choices = Choices {
        backbone: choice("dit", small),
        process: choice(process, options.clone()),
        noise: choice(schedule, clock),
        parameterization: choice("interpolating", json!({})),
    };
    Model::build(registry, choices, facts(*mask)).expect("the model")
}

fn method(registry: &Registry, mask: bool) -> Method {
    registry.parameterization(&choice("interpolating", json!({})), &facts(mask)).expect("a method")
}

fn sampler(registry: &Registry, name: &str, options: Value, facts: &Context) -> Walker {
    registry.sampler(&choice(name, options), facts).expect("the sampler")
}

/// Every pair of a clean token and an observed one, `[N, 1]` each, with a law for each clean token, `[N, 1, V]`.
struct Pairs {
    x: Tensor,
    z: Tensor,
    log_p: Tensor,
}

impl Pairs {
    fn new(seed: i64, mask: bool) -> Self {
        tch::manual_seed(seed);
        let data = V - i64::from(mask);
        let pairs = Tensor::arange(data * V, (Kind::Int64, Device::Cpu)).unsqueeze(1);
        let logits = Tensor::randn([data * V, 1, V], F64) * 2.0;
        if mask {
            let _ = logits.select(2, V - 1).fill_(f64::NEG_INFINITY);
        }
        Self {
            x: pairs.floor_divide_scalar(V),
            z: pairs.remainder(V),
            log_p: logits.log_softmax(-1, Kind::Double),
        }
    }

    fn rows(&self) -> i64 {
        self.x.size()[0]
    }

    /// The loss of every pair at time t, `[N]`.
    fn nats(&self, method: &Method, model: &Model, t: f64) -> Tensor {
        let fixed = Fixed::new(model).logits(&self.log_p).drawn(&self.z);
        let t_b = Tensor::full([self.rows()], t, F64);
        method.loss(&fixed, &self.x, &t_b).expect("a loss").squeeze_dim(1)
    }
}

/// The noise b at a level on every token, `[1, V]`.
fn b(model: &Model, alpha: f64) -> Tensor {
    let tokens = Tensor::arange(V, (Kind::Int64, Device::Cpu)).unsqueeze(0);
    let mix = Denoiser::new(model).mixing(&Tensor::from_slice(&[alpha])).expect("mixing");
    mix.at(&tokens, model.mask_id())
}

/// `q(. | x)`, `[N, V]`.
fn q(model: &Model, x_n: &Tensor, alpha: f64) -> Tensor {
    x_n.one_hot(V).to_kind(Kind::Double) * alpha + b(model, alpha)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    /// The density is never negative, and 0 where the law is certain of the truth.
    #[test]
    fn the_density_is_a_divergence(seed in 0..10_000i64, t in 0.001..0.999f64) {
        let registry = registry();
        for noise in noises() {
            let model = model(&registry, &noise, "loglinear");
            let (method, mut pairs) = (method(&registry, noise.2), Pairs::new(seed, noise.2));
            let least = pairs.nats(&method, &model, t).min().double_value(&[]);
            prop_assert!(least >= 0.0, "{noise:?}: {least}");
            let certain = pairs.log_p.full_like(-800.0);
            pairs.log_p = certain.scatter_value(2, &pairs.x.unsqueeze(-1), 0.0);
            let nats = pairs.nats(&method, &model, t);
            assert_close(noise.0, &nats, &nats.zeros_like(), 1e-9, false);
        }
    }

    /// The divergence of a step of 1e-6 in time, over its length.
    #[test]
    fn short_steps_tend_to_the_density(seed in 0..10_000i64, t in 0.05..0.95f64) {
        let registry = registry();
        for noise in noises() {
            let model = model(&registry, &noise, "loglinear");
            let (method, pairs) = (method(&registry, noise.2), Pairs::new(seed, noise.2));
            let lent = Denoiser::new(&model);
            let step = 1e-6;
            // The middle of the step is the time of the density.
            let alphas = [t + step / 2.0, t - step / 2.0].map(|t| lent.alpha(t).expect("alpha"));
            let post = |p_nv: &Tensor| {
                let z_n = pairs.z.squeeze_dim(1);
                lent.posterior(&z_n, alphas[0], alphas[1], p_nv).expect("a posterior")
            };
            let certain = pairs.x.squeeze_dim(1).one_hot(V).to_kind(Kind::Double);
            let (q, p) = (post(&certain), post(&pairs.log_p.exp().squeeze_dim(1)));
            // Each term is a divergence of its own, so that nothing of order 1 cancels.
            let ratio = (&q - &p) / &p;
            let terms = &p * ((&ratio + 1.0) * ratio.log1p() - &ratio);
            let terms = terms.masked_fill(&p.eq(0.0), 0.0);
            // Where q is 0 the term is p.
            let terms = p.where_self(&q.eq(0.0), &terms);
            let kl = terms.sum_dim_intlist(-1, false, Kind::Double) / step;
            let want = pairs.nats(&method, &model, t);
            assert_close(noise.0, &kl, &want, 1e-3, true);
        }
    }

    /// Per unit of alpha the density is one, whatever the schedule: so the bound is one for a network that sees no time.
    #[test]
    fn schedules_do_not_change_the_density(seed in 0..10_000i64, alpha in 0.02..0.98f64) {
        let registry = registry();
        for noise in noises() {
            let (method, pairs) = (method(&registry, noise.2), Pairs::new(seed, noise.2));
            let per_alpha = |schedule: &str| {
                let model = model(&registry, &noise, schedule);
                let lent = Denoiser::new(&model);
                let t_b = lent.time_of_alpha(&Tensor::from_slice(&[alpha])).expect("a time");
                let slope = lent.dsigma(&t_b).expect("dsigma").double_value(&[0]) * alpha;
                pairs.nats(&method, &model, t_b.double_value(&[0])) / slope
            };
            let want = per_alpha("loglinear");
            for schedule in ["cosine", "cosinesqr", "square"] {
                assert_close(&format!("{noise:?}, {schedule}"), &per_alpha(schedule), &want, 1e-7, true);
            }
        }
    }

    /// The ends of XDLM, and GIDD without uniform noise, are MDLM and UDLM: density and steps.
    #[test]
    fn the_ends_of_a_mixture(seed in 0..10_000i64, t in 0.02..0.98f64, s in 0.01..1.0f64) {
        let registry = registry();
        let masks: Noisy = ("absorbing_state", json!({}), true);
        let uniform: Noisy = ("uniform", json!({}), false);
        for (noise, end) in [
            (("xdlm", json!({ "k": 0.0 }), true), &masks),
            (("gidd", json!({ "p_uniform": 0.0 }), true), &masks),
            (("xdlm", json!({ "k": 1.0 }), true), &uniform),
        ] {
            // No text has the mask, which uniform noise over V tokens makes all the same.
            let mut pairs = Pairs::new(seed, true);
            if end.2 {
                // Under masks alone an open token is the clean one.
                pairs.z = pairs.z.where_self(&pairs.z.eq(V - 1), &pairs.x);
            }
            let models = [&noise, end].map(|noise| model(&registry, noise, "loglinear"));
            let nats = [0, 1].map(|i| {
                let method = method(&registry, [noise.2, end.2][i]);
                pairs.nats(&method, &models[i], t)
            });
            assert_close(&format!("{noise:?}: density"), &nats[0], &nats[1], 1e-9, true);
            let alpha = Denoiser::new(&models[1]).alpha(t).expect("alpha");
            let earlier = alpha + (1.0 - alpha) * s;
            let [got, want] = models.each_ref().map(|m| {
                let z_n = pairs.z.squeeze_dim(1);
                let p_nv = pairs.log_p.exp().squeeze_dim(1);
                Denoiser::new(m).posterior(&z_n, alpha, earlier, &p_nv).expect("a posterior")
            });
            assert_close(&format!("{noise:?}: step"), &got, &want, 1e-9, true);
        }
    }

    /// A step from `q_t` ends at `q_s` with any share of the corrector when the law is the truth.
    #[test]
    fn psi_keeps_the_forward_law(kappa in 0.0..=1.0f64, t in 0.1..0.999f64, share in 0.05..0.999f64) {
        let registry = registry();
        let masks: Noisy = ("absorbing_state", json!({}), true);
        for noise in noises().into_iter().chain([masks]) {
            let model = model(&registry, &noise, "loglinear");
            let options = json!({ "steps": 2, "low": "constant", "eta": kappa });
            let psi = sampler(&registry, "psi", options, &facts(noise.2));
            let z = Tensor::arange(V, (Kind::Int64, Device::Cpu)).unsqueeze(1);
            let s = t * share;
            let [from, to] = [t, s].map(|t| Denoiser::new(&model).alpha(t).expect("alpha"));
            for x in 0..V - i64::from(noise.2) {
                let x_n = Tensor::from_slice(&[x]);
                let logits = Tensor::full([V, 1, V], -800.0, F64);
                let _ = logits.select(2, x).fill_(0.0);
                let law = psi.law(&Fixed::new(&model).logits(&logits), &z, t, s).expect("a law");
                let got = q(&model, &x_n, from).matmul(&law.squeeze_dim(1));
                assert_close(&format!("{noise:?}, x = {x}"), &got, &q(&model, &x_n, to), 1e-9, false);
            }
        }
    }

    /// Over masks the corrector's share is ReMDM's remasking with `(1 - kappa)(1 - alpha_s)`.
    #[test]
    fn psi_over_masks_is_remdm(seed in 0..10_000i64, kappa in 0.0..=1.0f64, t in 0.1..0.999f64, share in 0.05..0.999f64) {
        let registry = registry();
        let noise: Noisy = ("absorbing_state", json!({}), true);
        let (model, pairs) = (model(&registry, &noise, "loglinear"), Pairs::new(seed, true));
        let options = json!({ "steps": 2, "low": "constant", "eta": kappa });
        let psi = sampler(&registry, "psi", options, &facts(true));
        let s = t * share;
        let [from, to] = [t, s].map(|t| Denoiser::new(&model).alpha(t).expect("alpha"));
        let fixed = Fixed::new(&model).logits(&pairs.log_p);
        let law = psi.law(&fixed, &pairs.z, t, s).expect("a law").squeeze_dim(1);
        let remask = (1.0 - kappa) * (1.0 - to);
        let mask_v = Tensor::from_slice(&[V - 1]).one_hot(V).to_kind(Kind::Double);
        let open = pairs.z.squeeze_dim(1).one_hot(V).to_kind(Kind::Double) * (1.0 - remask) + &mask_v * remask;
        let opens = (to - (1.0 - remask) * from) / (1.0 - from);
        let stays = (1.0 - to - remask * from) / (1.0 - from);
        let masked = pairs.log_p.exp().squeeze_dim(1) * opens + mask_v * stays;
        let want = masked.where_self(&pairs.z.eq(V - 1), &open);
        assert_close("a step", &law, &want, 1e-9, true);
    }
}

/// The law of a text after one correction, `[9]`: a token is drawn at each position, and the best of those that are free takes its place.
fn corrected(corrector: &Walker, toy: &Toy, start: [i64; 2], free: [bool; 2]) -> Vec<f64> {
    let x_bl = Tensor::from_slice(&start).view([1, 2]);
    let law = corrector.law(toy, &x_bl, 0.01, 0.0).expect("a law");
    let p = |l: i64, v: i64| law.double_value(&[0, l, v]);
    let mut want = vec![0.0; 9];
    for y in (0..9).map(|i| [i / 3, i % 3]) {
        let score = |l: usize| match free[l] && y[l] != start[l] {
            true => p(l as i64, y[l]),
            false => 0.0,
        };
        let mut end = start;
        if score(0) > score(1) {
            end[0] = y[0];
        } else if score(1) > 0.0 {
            end[1] = y[1];
        }
        want[(end[0] * 3 + end[1]) as usize] += p(0, y[0]) * p(1, y[1]);
    }
    assert!((want.iter().sum::<f64>() - 1.0).abs() < 1e-9, "{want:?}");
    want
}

/// How often each text comes, of `draws` batches.
fn counts(corrector: &mut Walker, toy: &Toy, x_bl: &Tensor, draws: i64) -> Vec<f64> {
    let mut counts = vec![0.0; 9];
    for _ in 0..draws {
        let drawn = corrector.sample(toy, x_bl).expect("a correction");
        for text in (drawn.select(1, 0) * 3 + drawn.select(1, 1)).iter::<i64>().expect("texts") {
            counts[text as usize] += 1.0;
        }
    }
    counts
}

/// Draws of one correction have the law that follows from [`Walker::law`], with a given token too.
#[test]
fn a_correction_has_its_law() {
    let registry = registry();
    for toy in [Toy::uniform(2, 3), Toy::hybrid(2, 3)] {
        let options = json!({ "from": "text", "corrections": 1, "temperature": 1.0 });
        let mut corrector = sampler(&registry, "self_correction", options, &toy.context());
        for (start, free) in [([0, 0], [true; 2]), ([2, 1], [true; 2]), ([2, 1], [false, true])] {
            let want = corrected(&corrector, &toy, start, free);
            for (batch, draws) in [(1, 2000), (8, 250)] {
                tch::manual_seed(23);
                let x_bl = Tensor::from_slice(&start).view([1, 2]).repeat([batch, 1]);
                let given_bl = Tensor::from_slice(&free).logical_not().view([1, 2]);
                toy.give(Some(given_bl.repeat([batch, 1])));
                let counts = counts(&mut corrector, &toy, &x_bl, draws);
                let p = chi_square(&counts, &want);
                assert!(
                    p > 1e-4,
                    "{start:?}, {free:?}, batch {batch}: p = {p:e}, {counts:?} {want:?}"
                );
            }
            toy.give(None);
        }
    }
}

/// From noise it is a correction of what a walk draws, which over many steps is the data.
#[test]
fn a_correction_behind_a_walk_has_its_law() {
    let registry = registry();
    for toy in [Toy::uniform(2, 3), Toy::hybrid(2, 3)] {
        let options = json!({ "steps": 300, "corrections": 1, "temperature": 1.0 });
        let mut corrector = sampler(&registry, "self_correction", options, &toy.context());
        let mut want = vec![0.0; 9];
        for (i, p) in toy.joint().iter().enumerate() {
            let start = [i as i64 / 3, i as i64 % 3];
            let after = corrected(&corrector, &toy, start, [true; 2]);
            want.iter_mut().zip(after).for_each(|(want, after)| *want += p * after);
        }
        tch::manual_seed(29);
        let pure = match toy.mask_id() {
            Some(mask) => Tensor::full([500, 2], mask, (Kind::Int64, Device::Cpu)),
            None => Tensor::randint(3, [500, 2], (Kind::Int64, Device::Cpu)),
        };
        let counts = counts(&mut corrector, &toy, &pure, 4);
        let p = chi_square(&counts, &want);
        assert!(p > 1e-4, "p = {p:e}, {counts:?} {want:?}");
    }
}

/// A text that no correction changes any more is done; one whose agreement does not rise is given up after `patience` rounds.
#[test]
fn corrections_stop_by_themselves() {
    let registry = registry();
    let toy = Toy::uniform(2, 3).noting_times();
    let calls = |patience: i64| {
        let options =
            json!({ "from": "text", "corrections": 50, "temperature": 5.0, "patience": patience });
        let mut corrector = sampler(&registry, "self_correction", options, &toy.context());
        tch::manual_seed(31);
        let before = toy.asked().len();
        let x_bl = Tensor::zeros([200, 2], (Kind::Int64, Device::Cpu));
        let _ = corrector.sample(&toy, &x_bl).expect("a text");
        toy.asked().len() - before
    };
    let (hasty, patient) = (calls(0), calls(1_000));
    assert!(hasty < patient && patient <= 50, "{hasty}, {patient}");
}
