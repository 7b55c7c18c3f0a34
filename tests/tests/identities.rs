//! Identities of the losses that need no reference program, through the plugins as built.
//!
//! Notation: alpha is the probability that a token is still clean, `a'` its slope, p the network's law of the clean token,
//! x the clean token, m the mask. The universal density of the bound of an interpolating process
//! `q(z | x) = alpha x + (1 - alpha) m` at a masked position is, with `p~ = alpha p + (1 - alpha) m` and `r = -a'/alpha`,
//! `r / q(m) * (KL(q || p~) + ratio - ln ratio - 1)`, `ratio = q(m) / p~(m)`.

use std::cell::Cell;
use std::rc::Rc;

use maskdiff_base::error::INTERRUPTED;
use maskdiff_engine::evaluate::answers::{Asked, Plan, Way, measure};
use maskdiff_engine::evaluate::chain;
use maskdiff_engine::evaluate::{Draws, duel, in_time, strict};
use maskdiff_engine::model::Model;
use maskdiff_engine::model::views::Blocks;
use maskdiff_engine::plugins::Registry;
use maskdiff_engine::plugins::{Choice, Choices};
use maskdiff_plugin_api::abi::handles::{Method, Noise};
use maskdiff_plugin_api::ops::Order;
use maskdiff_plugin_api::{Context, Denoiser};
use maskdiff_tests::{Answers, assert_close, registry};
use proptest::prelude::*;
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

const F64: (Kind, Device) = (Kind::Double, Device::Cpu);

/// One masked token a sequence with a random law of the clean token, the mask last.
struct Case {
    /// Time of each sequence, `[B]`.
    t_b: Tensor,
    /// `[B, 1]`.
    x0_bl: Tensor,
    /// Logarithm of the law, `[B, V]`; the mask has a share only when asked for.
    log_p_bv: Tensor,
}

impl Case {
    fn new(seed: i64, vocab_size: i64, mask_share: bool) -> Self {
        tch::manual_seed(seed);
        let batch = 32;
        let logits = Tensor::randn([batch, vocab_size], F64) * 2.0;
        if !mask_share {
            let _ = logits.select(1, vocab_size - 1).fill_(f64::NEG_INFINITY);
        }
        Self {
            t_b: Tensor::rand([batch], F64) * 0.96 + 0.02,
            x0_bl: Tensor::randint(vocab_size - 1, [batch, 1], (Kind::Int64, Device::Cpu)),
            log_p_bv: logits.log_softmax(-1, Kind::Double),
        }
    }

    fn vocab_size(&self) -> i64 {
        self.log_p_bv.size()[1]
    }

    fn facts(&self) -> Context {
        Context::new(self.vocab_size(), 1)
            .mask(Some(self.vocab_size() - 1))
            .time_conditioning(true)
            .kind(Kind::Double)
    }

    fn method(&self, registry: &Registry, name: &str, options: Value) -> Method {
        let choice = Choice { name: name.into(), options };
        registry.parameterization(&choice, &self.facts()).expect(name)
    }

    /// A network that answers `logits_bv`, every token of whose input is masked.
    fn network(&self, noise: &Noise, logits_bv: Tensor) -> Answers {
        let call =
            |t_b: &Tensor| (noise.sigma(t_b).expect("sigma"), noise.dsigma(t_b).expect("dsigma"));
        let (sigma_b, dsigma_b) = call(&self.t_b);
        Answers::masked(logits_bv, sigma_b, dsigma_b)
    }

    /// The universal density, `[B]`.
    fn density(&self, sigma_b: &Tensor, dsigma_b: &Tensor) -> Tensor {
        let alpha = sigma_b.neg().exp();
        let p = self.log_p_bv.exp();
        let p_x = p.gather(1, &self.x0_bl, false).squeeze_dim(1);
        let kept: Tensor = &p * alpha.unsqueeze(1);
        let q_mask: Tensor = 1.0 - &alpha;
        let p_mask = kept.select(1, self.vocab_size() - 1) + &q_mask;
        let ratio = &q_mask / &p_mask;
        let divergence: Tensor = &alpha * -p_x.log() + &q_mask * ratio.log();
        // -a'/alpha is dσ/dt.
        dsigma_b / q_mask * (divergence + &ratio - ratio.log() - 1.0)
    }
}

const SCHEDULES: [&str; 5] = ["loglinear", "cosine", "cosinesqr", "linear", "geometric"];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Equation 10 of the MDLM paper is the universal density of the absorbing process.
    #[test]
    fn subs_is_the_universal_density(seed in 0..10_000i64, v in 3..40i64, s in 0..5usize) {
        let (registry, case) = (registry(), Case::new(seed, v, false));
        let schedule = Choice { name: SCHEDULES[s].into(), options: json!({}) };
        let noise = registry.noise(&schedule, &case.facts()).expect("a schedule");
        let net = case.network(&noise, case.log_p_bv.shallow_clone());
        let want = case.density(&net.sigma_b, &net.dsigma_b);
        let subs = case.method(&registry, "subs", json!({}));
        let got = subs.loss(&net, &case.x0_bl, &case.t_b).expect("loss").squeeze_dim(1);
        assert_close(SCHEDULES[s], &got, &want, 1e-9, true);
    }

    /// With `s = p / (e^σ - 1)` score entropy is the cross-entropy of MDLM.
    #[test]
    fn sedd_collapses_to_it(seed in 0..10_000i64, v in 3..40i64, s in 0..5usize) {
        let (registry, case) = (registry(), Case::new(seed, v, false));
        let schedule = Choice { name: SCHEDULES[s].into(), options: json!({}) };
        let noise = registry.noise(&schedule, &case.facts()).expect("a schedule");
        // The parameterization subtracts ln(V - 1) and ln(e^σ - 1).
        let net = case.network(&noise, &case.log_p_bv + (v as f64 - 1.0).ln());
        let want = case.density(&net.sigma_b, &net.dsigma_b);
        let sedd = case.method(&registry, "sedd", json!({}));
        let got = sedd.loss(&net, &case.x0_bl, &case.t_b).expect("loss").squeeze_dim(1);
        assert_close(SCHEDULES[s], &got, &want, 1e-8, true);
    }

    /// With ever more steps the discrete bound becomes the density, also when the law gives the mask a share.
    #[test]
    fn d3pm_tends_to_it(seed in 0..10_000i64, v in 3..40i64, share in any::<bool>()) {
        let (registry, case) = (registry(), Case::new(seed, v, share));
        // The discrete weights are those of alpha = 1 - t.
        let sigma_b = -(case.t_b.neg().log1p());
        let dsigma_b = (case.t_b.ones_like() - &case.t_b).reciprocal();
        let want = case.density(&sigma_b, &dsigma_b);
        let net = Answers::masked(case.log_p_bv.shallow_clone(), sigma_b, dsigma_b);
        let d3pm = case.method(&registry, "d3pm", json!({ "T": 10_000_000 }));
        let loss = d3pm.loss(&net, &case.x0_bl, &case.t_b).expect("loss").squeeze_dim(1);
        // The answers are the same at t = 0, so the reconstruction is the cross-entropy of the same law.
        let nll = -case.log_p_bv.gather(1, &case.x0_bl, false).squeeze_dim(1);
        assert_close("d3pm", &(loss - nll), &want, 1e-4, true);
    }

    /// A law that is certain of the truth costs nothing.
    #[test]
    fn the_truth_costs_nothing(seed in 0..10_000i64, v in 3..40i64) {
        let (registry, mut case) = (registry(), Case::new(seed, v, false));
        let zero = case.log_p_bv.full_like(-800.0);
        case.log_p_bv = zero.scatter_value(1, &case.x0_bl, 0.0);
        let schedule = Choice { name: "loglinear".into(), options: json!({}) };
        let noise = registry.noise(&schedule, &case.facts()).expect("a schedule");
        for (name, options, shift) in [
            ("subs", json!({}), 0.0),
            ("d3pm", json!({ "T": 1000 }), 0.0),
            ("sedd", json!({}), (v as f64 - 1.0).ln()),
        ] {
            let net = case.network(&noise, &case.log_p_bv + shift);
            let loss = case.method(&registry, name, options).loss(&net, &case.x0_bl, &case.t_b);
            let loss = loss.expect("loss");
            // At the largest t the weights are thousands and the terms cancel.
            assert_close(name, &loss, &loss.zeros_like(), 1e-9, false);
        }
        let density = case.density(
            &noise.sigma(&case.t_b).expect("sigma"),
            &noise.dsigma(&case.t_b).expect("dsigma"),
        );
        assert_close("density", &density, &density.zeros_like(), 1e-9, false);
    }

    /// The posterior is a law for every alpha, vocabulary and token, and averages to the forward process.
    #[test]
    fn posteriors_sum_to_one(seed in 0..10_000i64, v in 3..40i64, s in 0.05..1.0f64, share in 0.0..0.99f64) {
        let (registry, case) = (registry(), Case::new(seed, v, false));
        let choice = Choice { name: "absorbing_state".into(), options: json!({}) };
        let process = registry.process(&choice, &case.facts()).expect("a process");
        let (alpha_s, alpha_t) = (s, s * share);
        let certain = case.x0_bl.squeeze_dim(1).one_hot(v).to_kind(Kind::Double);
        let posterior = |xt: &Tensor| {
            process.posterior(xt, alpha_t, alpha_s, &certain).expect("a posterior")
        };
        let x0 = case.x0_bl.squeeze_dim(1);
        let all_masked = x0.full_like(v - 1);
        let (open, masked) = (posterior(&x0), posterior(&all_masked));
        let p = case.log_p_bv.exp();
        let of_law = process.posterior(&all_masked, alpha_t, alpha_s, &p).expect("a posterior");
        for law in [&open, &masked, &of_law] {
            let sums = law.sum_dim_intlist(-1, false, Kind::Double);
            assert_close("rows", &sums, &sums.ones_like(), 1e-12, false);
        }
        // q(xs | x0) = sum over xt of q(xt | x0) q(xs | xt, x0).
        let marginal: Tensor = open * alpha_t + masked * (1.0 - alpha_t);
        let want = &certain * alpha_s;
        let _ = want.select(1, v - 1).fill_(1.0 - alpha_s);
        assert_close("marginal", &marginal, &want, 1e-12, false);
    }
}

/// Over all sequences of a tiny vocabulary `exp(-nats)` sums to 1, whatever the network.
#[test]
fn the_exact_likelihood_sums_to_one() {
    let registry = registry();
    for time_conditioning in [false, true] {
        let (model, every) = every_sequence_of(&registry, "loglinear", time_conditioning);
        for (name, order) in Order::ALL {
            for tokens in [1, 2, 3] {
                let nats =
                    tch::no_grad(|| duel::nats(&Denoiser::new(&model), &every, order, tokens));
                let nats = nats.expect("nats");
                let sum = nats.neg().exp().sum(Kind::Double).double_value(&[]);
                assert!((sum - 1.0).abs() < 1e-9, "{name}, {tokens} at once: {sum}");
            }
        }
    }
}

/// A small random network with `subs` over it, and every sequence of its three tokens `[27, 3]`.
fn every_sequence_of(registry: &Registry, noise: &str, time_conditioning: bool) -> (Model, Tensor) {
    let choice = |name: &str, options| Choice { name: name.into(), options };
    let small =
        json!({ "hidden_size": 16, "n_heads": 2, "n_blocks": 1, "cond_dim": 8, "dropout": 0.0 });
    let choices = Choices {
        backbone: choice("dit", small),
        process: choice("absorbing_state", json!({})),
        noise: choice(noise, json!({})),
        parameterization: choice("subs", json!({})),
    };
    let facts =
        Context::new(4, 3).mask(Some(3)).time_conditioning(time_conditioning).kind(Kind::Double);
    let model = Model::build(registry, choices, facts).expect("the model");
    tch::manual_seed(7);
    tch::no_grad(|| {
        for mut weight in model.trainable() {
            let _ = weight.normal_(0.0, 0.7);
        }
    });
    let states = Tensor::arange(27, (Kind::Int64, Device::Cpu));
    let digit = |place: i64| states.floor_divide_scalar(3i64.pow(place as u32)).remainder(3);
    (model, Tensor::stack(&[digit(2), digit(1), digit(0)], 1))
}

/// What is scored ends at the next call of the network once nobody waits for it.
#[test]
fn a_score_ends_when_nobody_waits() {
    let (model, every) = every_sequence_of(&registry(), "loglinear", false);
    let ids = Vec::<i64>::try_from(every.get(5)).expect("ids");
    let asked_for = Asked { prompt: Vec::new(), answer: ids.clone() };
    // Three tokens have seven sets of masks: so few draws are drawn, one a call.
    let plan = Plan { way: Way::Bound(6), batch: 1, seed: 1, guidance: 0.0, growth: None };
    let bound = || measure(&model, &asked_for, plan, 0);
    let (asked, before) = (Rc::new(Cell::new(0)), model.calls());
    let seen = Rc::clone(&asked);
    model.end_when(Some(Rc::new(move || {
        seen.set(seen.get() + 1);
        seen.get() > 3
    })));
    assert_eq!(bound().expect_err("nobody waits").exit_code(), INTERRUPTED);
    assert_eq!(asked.get(), 4, "before each call");
    assert_eq!(model.calls() - before, 3);
    assert!(chain::left_to_right(&model, &ids, 0, 1, chain::Reading::WHOLE).is_err());
    assert!(chain::likeliest(&model, &[Some(ids[0]), None], 1, 1, chain::Reading::WHOLE).is_err());
    model.end_when(None);
    assert!(bound().is_ok());
}

/// The likeliest tokens of a position are those of the chain, where all later positions are holes.
#[test]
fn the_likeliest_tokens_are_those_of_the_chain() {
    let (model, every) = every_sequence_of(&registry(), "loglinear", true);
    let ids = Vec::<i64>::try_from(every.get(11)).expect("ids");
    let whole = chain::left_to_right(&model, &ids, 0, 3, chain::Reading::WHOLE).expect("the chain");
    for (place, scored) in whole.iter().enumerate() {
        let mut tokens: Vec<Option<i64>> = ids.iter().map(|id| Some(*id)).collect();
        // Whatever stands at the position itself counts as a hole.
        tokens[place + 1..].fill(None);
        let found =
            chain::likeliest(&model, &tokens, place, 3, chain::Reading::WHOLE).expect("tokens");
        for ((id, p), (other, other_p)) in found.iter().zip(&scored.top) {
            assert!(id == other && (p - other_p).abs() < 1e-9, "{found:?} {scored:?}");
        }
    }
}

/// The bound of each sequence by enumeration of every masked set S: the sum of `CE(S) / (k binomial(L, k))`, `[27]`.
///
/// It is the integral over λ of `λ^(k-1) (1-λ)^(L-k) CE(S)`, and the mean over orders of unmasking.
fn enumerated(model: &Model, every: &Tensor) -> Tensor {
    let denoiser = Denoiser::new(model);
    let mut bound = Tensor::zeros([27], F64);
    for set in 1..8i64 {
        let positions: Vec<i64> = (0..3).filter(|l| set >> l & 1 == 1).collect();
        let mask = Tensor::from_slice(&[0, 1, 2].map(|l: i64| positions.contains(&l)));
        let masked = mask.unsqueeze(0).expand([27, 3], false);
        let xt = every.masked_fill(&masked, 3);
        let rows = maskdiff_plugin_api::ops::rows_of(&masked);
        let log_p = denoiser.log_x0(&xt, &denoiser.times(27, 0.5), &rows).expect("a law");
        let truth = maskdiff_plugin_api::ops::take_rows(every, &rows).unsqueeze(1);
        let k = positions.len() as i64;
        let ce = -log_p.gather(1, &truth, false).view([27, k]);
        let sets_of_k = if k == 3 { 1.0 } else { 3.0 };
        bound += ce.sum_dim_intlist(1, false, Kind::Double) / (k as f64 * sets_of_k);
    }
    bound
}

/// Fails when the mean of draws for the 27 sequences is not within five standard errors of `want`, and `slack`.
fn assert_mean(what: &str, draws: &Tensor, want: &Tensor, slack: f64) {
    let n = draws.size()[0] as f64;
    let error = draws.std(true).double_value(&[]) / n.sqrt();
    let mean = draws.mean(Kind::Double).double_value(&[]);
    let want = want.mean(Kind::Double).double_value(&[]);
    assert!((mean - want).abs() < 5.0 * error + slack, "{what}: {mean} ± {error}, want {want}");
}

/// Masked counts, masked shares and times give one bound for a network that sees no time, exact or not; the continuous
/// bound does not depend on the schedule.
#[test]
fn all_bounds_of_a_time_free_network_are_one() {
    let registry = registry();
    let repeats = 3000;
    for noise in ["loglinear", "cosine", "cosinesqr"] {
        let (model, every) = every_sequence_of(&registry, noise, false);
        tch::no_grad(|| {
            let want = enumerated(&model, &every);
            let x0 = every.repeat([repeats, 1]);
            tch::manual_seed(8);
            let u = maskdiff_engine::clock::stratify(&Tensor::rand([27 * repeats], F64));
            let draws = Draws::new(u.shallow_clone(), Tensor::rand(x0.size(), F64));
            let strict = strict::nats(&Denoiser::new(&model), &x0, &draws).expect("nats");
            assert_mean(&format!("{noise}: strict"), &strict, &want, 0.0);
            let t = model.draw_t(&u).expect("times");
            let loss = model.loss(&x0, &t).expect("a loss");
            let reference = loss.sum_dim_intlist(1, false, Kind::Double);
            // Both ends of time are left out: shares below and above 1e-3 for loglinear, more for the others.
            assert_mean(&format!("{noise}: reference"), &reference, &want, 0.03);
        });
    }
}

/// A fresh network gives every token the same share, which is the law of the others where the data has no structure: then the
/// strict bound is the entropy, for any noise, whatever the first time is.
#[test]
fn the_strict_bound_over_any_noise_is_the_entropy_of_data_without_structure() {
    let registry = registry();
    let choice = |name: &str, options| Choice { name: name.into(), options };
    for (process, options, schedule, mask) in [
        ("uniform", json!({}), "loglinear", None),
        ("uniform", json!({}), "cosine", None),
        ("xdlm", json!({ "k": 0.5 }), "loglinear", Some(5)),
        ("gidd", json!({ "p_uniform": 0.2 }), "gidd", Some(5)),
    ] {
        let small = json!({ "hidden_size": 16, "n_heads": 2, "n_blocks": 1, "cond_dim": 8 });
        let clock = if schedule == "gidd" { options.clone() } else { json!({}) };
        let choices = Choices {
            backbone: choice("dit", small),
            process: choice(process, options),
            noise: choice(schedule, clock),
            parameterization: choice("interpolating", json!({})),
        };
        let facts = Context::new(5 + i64::from(mask.is_some()), 3)
            .mask(mask)
            .time_conditioning(true)
            .kind(Kind::Double);
        for first in [1e-3, 0.05, 0.3] {
            let mut choices = choices.clone();
            choices.parameterization.options = json!({ "sampling_eps": first });
            let model = Model::build(&registry, choices, facts).expect("the model");
            tch::manual_seed(9);
            let x0 = Tensor::randint(5, [15_000, 3], (Kind::Int64, Device::Cpu));
            let u = maskdiff_engine::clock::stratify(&Tensor::rand([15_000], F64));
            let draws = Draws::new(u, Tensor::rand(x0.size(), F64));
            let nats = tch::no_grad(|| in_time::nats(&model, &x0, &draws)).expect("nats");
            let entropy = nats.full_like(3.0 * 5f64.ln());
            assert_mean(&format!("{process}, {schedule}, cut at {first}"), &nats, &entropy, 1e-3);
        }
    }
}

/// In blocks the bound is the sum of those of the blocks: one block is the whole text, and of data without structure it is the entropy,
/// to which a given first token adds nothing.
#[test]
fn the_strict_bound_over_any_noise_is_taken_in_blocks() {
    let registry = registry();
    let choice = |name: &str, options| Choice { name: name.into(), options };
    let small = json!({ "hidden_size": 16, "n_heads": 2, "n_blocks": 1, "cond_dim": 8 });
    for (process, mask) in [("uniform", None), ("xdlm", Some(5))] {
        let choices = Choices {
            backbone: choice("dit", small.clone()),
            process: choice(process, json!({})),
            noise: choice("loglinear", json!({})),
            parameterization: choice("interpolating", json!({ "sampling_eps": 0.05 })),
        };
        let facts = Context::new(5 + i64::from(mask.is_some()), 4)
            .mask(mask)
            .time_conditioning(true)
            .kind(Kind::Double);
        let model = |size: Option<i64>| {
            let blocks = size.map(Blocks::of);
            Model::in_blocks(&registry, choices.clone(), facts, blocks).expect("the model")
        };
        tch::manual_seed(9);
        let x0 = Tensor::randint(5, [3_000, 4], (Kind::Int64, Device::Cpu));
        let u_bl = Tensor::rand(x0.size(), F64);
        let nats = |model: &Model, x0: &Tensor| {
            let rows = x0.size()[0];
            let u = maskdiff_engine::clock::stratify(&Tensor::rand([rows * model.clocks()], F64));
            let u = u.view([rows, model.clocks()]);
            let draws = Draws::new(u.squeeze_dim(-1), u_bl.narrow(0, 0, rows));
            let draws = if model.blocks().is_some() { Draws { u_b: u, ..draws } } else { draws };
            tch::no_grad(|| in_time::nats(model, x0, &draws)).expect("nats")
        };
        for size in [1, 2, 4] {
            let model = model(Some(size));
            let got = nats(&model, &x0);
            assert_mean(
                &format!("{process}, b = {size}"),
                &got,
                &got.full_like(4.0 * 5f64.ln()),
                1e-3,
            );
            model.blocks().expect("blocks").set_begins(Some(0));
            let got = nats(&model, &x0);
            assert_mean(&format!("{process}, BOS"), &got, &got.full_like(3.0 * 5f64.ln()), 1e-3);
        }
        let (whole, one) = (model(None), model(Some(4)));
        for (a, b) in whole.named().into_iter().zip(one.named()) {
            let random = Tensor::randn(a.1.size(), F64) * 0.3;
            tch::no_grad(|| [a, b].map(|(_, mut tensor)| tensor.copy_(&random)));
        }
        let rows = x0.narrow(0, 0, 64);
        let of = |model: &Model| {
            tch::manual_seed(4);
            nats(model, &rows)
        };
        assert_close(process, &of(&one), &of(&whole), 1e-9, true);
    }
}

/// A law that gives the mask nothing leaves of the discrete bound the cross-entropy over t, with any number of steps.
#[test]
fn d3pm_without_mask_share_is_subs_in_as_many_steps() {
    let registry = registry();
    for steps in [4, 100, 1000] {
        let case = Case::new(steps, 12, false);
        let schedule = Choice { name: "loglinear".into(), options: json!({}) };
        let noise = registry.noise(&schedule, &case.facts()).expect("a schedule");
        let net = case.network(&noise, case.log_p_bv.shallow_clone());
        let steps = json!(steps);
        let d3pm = case.method(&registry, "d3pm", json!({ "T": steps, "subs_masking": true }));
        let subs = case.method(&registry, "subs", json!({ "T": steps }));
        let u_b = Tensor::rand([32], F64);
        let t_b = subs.draw_t(&net, &u_b).expect("times");
        let nll = -case.log_p_bv.gather(1, &case.x0_bl, false);
        let got = d3pm.loss(&net, &case.x0_bl, &t_b).expect("loss") - nll;
        let want = subs.loss(&net, &case.x0_bl, &t_b).expect("loss");
        assert_close("d3pm", &got, &want, 1e-9, true);
    }
}
