//! Golden cases u: uniform and hybrid diffusion as DUO, UDLM and GIDD have it, and the process in general.

mod ancestral;
mod checkpoints;
mod curriculum;
mod losses;
mod psi;
mod schedules;
mod universal;
mod walks;

use maskdiff_engine::plugins::{Choice, Registry};
use maskdiff_native::{InterpolatingRows, interpolating_nll};
use maskdiff_plugin_api::abi::handles::{Process, Walker};
use maskdiff_plugin_api::{Denoiser, Pass};
use maskdiff_tests::golden_uniform::{Network, case};
use maskdiff_tests::{Tensors, assert_close, device, registry};
use serde_json::{Value, json};
use tch::{Kind, Tensor};

const KINDS: [(Kind, &str); 2] = [(Kind::Float, ""), (Kind::Double, ".f64")];

/// Bound of laws and losses of GIDD's network in float64. Its program computes cosines and sines of positions in float32, where ours has
/// the network's type: 1.2e-8 to 4.7e-8 of a law here.
const TABLES: f64 = 1e-7;

fn double(t: &Tensor) -> Tensor {
    t.to_kind(Kind::Double)
}

/// Network, law and loss to the tolerances of both precisions.
fn tolerance(kind: Kind, float: f64) -> f64 {
    if kind == Kind::Double { 1e-9 } else { float }
}

#[test]
fn networks() {
    let registry = registry();
    for (name, network) in [("u_models_duo", Network::duo()), ("u_models_ddg", Network::udlm())] {
        if case(name).is_none() {
            return;
        }
        let golden = Tensors::golden(&format!("{name}/io.safetensors"));
        for (kind, suffix) in KINDS {
            let model = network.build(&registry, kind);
            let lent = Denoiser::new(&model);
            let hidden =
                lent.hidden(&golden.get("x"), &double(&golden.get("sigma"))).expect("hidden");
            let logits = lent.logits(&hidden.flatten(0, 1)).expect("logits");
            let want = golden.get(&format!("logits{suffix}")).flatten(0, 1);
            assert_close(&format!("{name}{suffix}"), &logits, &want, tolerance(kind, 2e-4), true);
            if golden.find("bag_ids").is_none() {
                continue;
            }
            let pass = Pass::new(&golden.get("x"), &double(&golden.get("sigma")))
                .mixture(&golden.get("bag_ids"), &golden.get("bag_weights").to_kind(kind));
            let hidden = lent.pass(&pass).expect("a pass").hidden;
            let logits = lent.logits(&hidden.flatten(0, 1)).expect("logits");
            let want = golden.get(&format!("logits_bag{suffix}")).flatten(0, 1);
            assert_close(&format!("bag{suffix}"), &logits, &want, tolerance(kind, 2e-4), true);
            // A position that is any law over tokens is a mixture of all of them.
            let soft_blv = golden.get("soft").to_kind(kind);
            let ids = Tensor::arange(soft_blv.size()[2], (Kind::Int64, device()));
            let pass = Pass::new(&golden.get("x"), &double(&golden.get("sigma")))
                .mixture(&ids.expand(soft_blv.size(), false), &soft_blv.softmax(-1, kind));
            let hidden = lent.pass(&pass).expect("a pass").hidden;
            let logits = lent.logits(&hidden.flatten(0, 1)).expect("logits");
            let want = golden.get(&format!("logits_soft{suffix}")).flatten(0, 1);
            assert_close(&format!("soft{suffix}"), &logits, &want, tolerance(kind, 2e-4), true);
        }
    }
}

/// Rows of golden logits through the fused head: the identity is its matrix.
struct Rows {
    x: Tensor,
    z: Tensor,
    alpha: Tensor,
    every: Tensor,
    weight: Tensor,
    banned: Option<i64>,
}

impl Rows {
    /// Of a uniform process with the time derivative of alpha -1.
    fn uniform(x: &Tensor, z: &Tensor, alpha: &Tensor, size: i64) -> Self {
        let [x, z] = [x, z].map(|t| t.flatten(0, -1));
        let alpha = double(alpha).flatten(0, -1);
        let every: Tensor = (1.0 - &alpha) / size as f64;
        let q = double(&x.eq_tensor(&z)) * &alpha + &every;
        let weight = (&alpha * size as f64).reciprocal() / q;
        Self { x, z, alpha, every, weight, banned: None }
    }

    fn nats(&self, logits: &Tensor) -> Tensor {
        let size = logits.size()[logits.dim() - 1];
        let eye = Tensor::eye(size, (logits.kind(), logits.device()));
        let rows = InterpolatingRows {
            x_n: &self.x,
            z_n: &self.z,
            alpha_n: &self.alpha,
            every_n: &self.every,
            weight_n: &self.weight,
            banned: self.banned,
        };
        interpolating_nll(&logits.reshape([-1, size]), &eye, None, &rows, None).expect("nats")
    }

    /// Nats against the golden ones, and the gradient of their weighted sum at the logits.
    fn check(
        &self,
        what: &str,
        logits: &Tensor,
        want: &Tensor,
        gradient: Option<(&Tensor, &Tensor)>,
    ) {
        let kind = want.kind();
        let leaf = logits.detach().to_kind(kind).copy().set_requires_grad(true);
        let nats = self.nats(&leaf).view_as(want);
        assert_close(what, &nats, want, tolerance(kind, 3e-4), true);
        if let Some((weights, want)) = gradient {
            (nats * weights.to_kind(kind)).sum(kind).backward();
            let what = format!("{what}: gradient");
            assert_close(&what, &leaf.grad(), want, tolerance(kind, 3e-4), true);
        }
    }
}

#[test]
fn density_of_duo_and_udlm() {
    let Some(manifest) = case("u_duo_nll") else { return };
    let size = manifest["vocab_size"].as_i64().expect("vocab_size");
    let golden = Tensors::golden("u_duo_nll/nll.safetensors");
    let (x, z) = (golden.get("x0"), golden.get("xt"));
    let rows = Rows::uniform(&x, &z, &golden.get("alpha").expand_as(&x), size);
    for (_, suffix) in KINDS {
        let want = |name: &str| golden.get(&format!("{name}{suffix}"));
        let (weights, gradient) = (golden.get("R"), want("grad"));
        let against = Some((&weights, &gradient));
        rows.check(&format!("loss{suffix}"), &golden.get("logits"), &want("loss"), against);
    }
    let (x, z) = (golden.get("stress.x0"), golden.get("stress.xt"));
    let alpha: Tensor = 1.0 - double(&golden.get("stress.t"));
    let stress = Rows::uniform(&x, &z, &alpha.unsqueeze(1).expand_as(&x), size);
    let want = golden.get("stress.loss.f64");
    // The original's own float64 loses digits here; ours in float32 is as near as the logits are.
    let logits = golden.get("stress.logits");
    let nats = |kind: Kind| stress.nats(&logits.to_kind(kind)).view_as(&want);
    assert_close("stress", &nats(Kind::Double), &want, 1e-8, true);
    assert_close("stress, float32", &nats(Kind::Float), &nats(Kind::Double), 1e-4, true);

    let Some(manifest) = case("u_udlm_loss") else { return };
    let size = manifest["vocab_size"].as_i64().expect("vocab_size");
    let golden = Tensors::golden("u_udlm_loss/loss.safetensors");
    let (x, z) = (golden.get("x0"), golden.get("T0.xt"));
    // The original's loss takes alpha = 1 - t, though its noise does not.
    let alpha: Tensor = 1.0 - double(&golden.get("t"));
    let rows = Rows::uniform(&x, &z, &alpha.unsqueeze(1).expand_as(&x), size);
    for (_, suffix) in KINDS {
        let want = |name: &str| golden.get(&format!("fixed.T0.{name}{suffix}"));
        let (weights, gradient) = (golden.get("R"), want("grad"));
        let what = format!("udlm{suffix}");
        let logits = golden.get("fixed.logits");
        rows.check(&what, &logits, &want("diffusion"), Some((&weights, &gradient)));
    }
}

#[test]
fn posterior_of_duo() {
    if case("u_duo_posterior").is_none() {
        return;
    }
    let (golden, registry) = (Tensors::golden("u_duo_posterior/posterior.safetensors"), registry());
    let process = registry
        .process(
            &Choice { name: "uniform".into(), options: json!({}) },
            &Network::duo().facts(Kind::Double),
        )
        .expect("the process");
    let over_masks = Network::duo().over_masks();
    let choice = Choice { name: "absorbing_state".into(), options: json!({}) };
    let masks = registry.process(&choice, &over_masks.facts(Kind::Double)).expect("the process");
    let (xt, p) = (golden.get("xt"), double(&golden.get("p")));
    let p = &p / p.sum_dim_intlist(-1, true, Kind::Double);
    for b in 0..xt.size()[0] {
        let alpha = |name: &str| double(&golden.get(name)).get(b).view([-1]).double_value(&[0]);
        let (alpha_t, alpha_s) = (alpha("alpha_t"), alpha("alpha_s"));
        let post = |alpha_s: f64| {
            process.posterior(&xt.get(b), alpha_t, alpha_s, &p.get(b)).expect("a law")
        };
        assert_close("post", &post(alpha_s), &golden.get("post.f64").get(b), 1e-9, true);
        assert_close("to zero", &post(1.0), &golden.get("to_zero.f64").get(b), 1e-9, true);
        let certain = double(&golden.get("x0").get(b).one_hot(13));
        let law = process.posterior(&xt.get(b), alpha_t, alpha_s, &certain).expect("a law");
        assert_close("of x0", &law, &golden.get("post_x0.f64").get(b), 1e-9, true);
        let noised = |process: &Process, p: &Tensor, mask: Option<i64>| {
            let level = Tensor::from_slice(&[alpha_s]).to_device(device());
            let tokens = Tensor::arange(13, (Kind::Int64, device())).unsqueeze(0);
            p * alpha_s + process.mixing(&level).expect("mixing").at(&tokens, mask)
        };
        let law = noised(&process, &p.get(b), None);
        assert_close("forward", &law, &golden.get("forward.f64").get(b), 1e-9, true);
        // The same over masks.
        let get = |name: &str| golden.get(&format!("mask.{name}.f64")).get(b);
        let (xt, p) = (golden.get("mask.xt").get(b), get("p"));
        let post = |alpha_s: f64| masks.posterior(&xt, alpha_t, alpha_s, &p).expect("a law");
        assert_close("masks: post", &post(alpha_s), &get("post"), 1e-9, true);
        assert_close("masks: to zero", &post(1.0), &get("to_zero"), 1e-9, true);
        assert_close("masks: forward", &noised(&masks, &p, Some(12)), &get("forward"), 1e-9, true);
    }
}

/// The original's categorical draw: the largest of probability over exponential noise.
fn race(law_blv: &Tensor, u_blv: &Tensor) -> Tensor {
    let noise = 1e-10 - (double(u_blv) + 1e-10).log();
    let race_blv: Tensor = double(law_blv) / noise;
    race_blv.argmax(-1, false)
}

/// The first token whose cumulative probability exceeds u.
fn inverse(law_blv: &Tensor, u_bl: &Tensor) -> Tensor {
    let reached = law_blv.cumsum(-1, Kind::Double).le_tensor(&double(u_bl).unsqueeze(-1));
    let last = law_blv.size()[2] - 1;
    reached.sum_dim_intlist(-1, false, Kind::Int64).clamp_max(last)
}

fn walker(registry: &Registry, network: &Network, sampler: &str, options: Value) -> Walker {
    let choice = Choice { name: sampler.into(), options };
    registry.sampler(&choice, &network.facts(Kind::Double)).expect("the sampler")
}
