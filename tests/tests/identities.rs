//! Identities of the losses that need no reference program, through the plugins as built.
//!
//! Notation: alpha is the probability that a token is still clean, `a'` its slope, p the network's law of the clean token,
//! x the clean token, m the mask. The universal density of the bound of an interpolating process
//! `q(z | x) = alpha x + (1 - alpha) m` at a masked position is, with `p~ = alpha p + (1 - alpha) m` and `r = -a'/alpha`,
//! `r / q(m) * (KL(q || p~) + ratio - ln ratio - 1)`, `ratio = q(m) / p~(m)`.

use maskdiff::evaluate::duel;
use maskdiff::model::{Choice, Choices, Model};
use maskdiff::plugins::Registry;
use maskdiff_plugin_api::abi::handles::{Method, Noise};
use maskdiff_plugin_api::ops::Order;
use maskdiff_plugin_api::{Context, Denoiser, Model as _};
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
        Context {
            vocab_size: self.vocab_size(),
            mask_id: Some(self.vocab_size() - 1),
            length: 1,
            time_conditioning: true,
            kind: Kind::Double,
            cuda: None,
        }
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
        let (open, masked) = (posterior(&x0), posterior(&x0.full_like(v - 1)));
        for law in [&open, &masked, &case.log_p_bv.exp()] {
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
    let choice = |name: &str, options| Choice { name: name.into(), options };
    let small =
        json!({ "hidden_size": 16, "n_heads": 2, "n_blocks": 1, "cond_dim": 8, "dropout": 0.0 });
    for time_conditioning in [false, true] {
        let choices = Choices {
            backbone: choice("dit", small.clone()),
            process: choice("absorbing_state", json!({})),
            noise: choice("loglinear", json!({})),
            parameterization: choice("subs", json!({})),
        };
        let facts = Context {
            vocab_size: 4,
            mask_id: Some(3),
            length: 4,
            time_conditioning,
            kind: Kind::Double,
            cuda: None,
        };
        tch::manual_seed(7);
        let model = Model::build(&registry, choices, facts).expect("the model");
        tch::no_grad(|| {
            for mut weight in model.trainable() {
                let _ = weight.normal_(0.0, 0.7);
            }
        });
        let states = Tensor::arange(81, (Kind::Int64, Device::Cpu));
        let digit = |place: i64| states.floor_divide_scalar(3i64.pow(place as u32)).remainder(3);
        let every = Tensor::stack(&[digit(3), digit(2), digit(1), digit(0)], 1);
        for (name, order) in Order::ALL {
            for tokens in [1, 2, 4] {
                let nats =
                    tch::no_grad(|| duel::nats(&Denoiser::new(&model), &every, order, tokens));
                let nats = nats.expect("nats");
                let sum = nats.neg().exp().sum(Kind::Double).double_value(&[]);
                assert!((sum - 1.0).abs() < 1e-9, "{name}, {tokens} at once: {sum}");
            }
        }
        assert_eq!(model.vocab_size(), 4);
    }
}
