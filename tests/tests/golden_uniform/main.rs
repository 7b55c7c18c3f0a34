//! Golden cases u: uniform and hybrid diffusion as DUO, UDLM and GIDD have it, and the process in general.

mod checkpoints;
mod curriculum;
mod psi;
mod walks;

use maskdiff_engine::clock;
use maskdiff_engine::model::Model;
use maskdiff_engine::plugins::{Choice, Registry};
use maskdiff_native::{InterpolatingRows, interpolating_nll};
use maskdiff_plugin_api::abi::handles::Walker;
use maskdiff_plugin_api::{Batch, Denoiser, Pass};
use maskdiff_tests::golden_uniform::{Network, case, uniforms};
use maskdiff_tests::{Tensors, assert_close, device, registry};
use serde_json::{Value, json};
use tch::{Kind, Tensor};

const KINDS: [(Kind, &str); 2] = [(Kind::Float, ""), (Kind::Double, ".f64")];

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
fn loss_of_duo() {
    if case("u_duo_loss").is_none() {
        return;
    }
    let (golden, registry) = (Tensors::golden("u_duo_loss/loss.safetensors"), registry());
    let (x0_bl, get) = (golden.get("x0"), |name: &str| golden.get(&format!("loglinear.{name}")));
    for (kind, suffix) in KINDS {
        let model = Network::duo().build(&registry, kind);
        let u_b = Tensor::cat(&[get("u_t")], 0).to_kind(Kind::Double);
        let t_b = model.draw_t(&clock::stratify(&u_b)).expect("times");
        assert_close("t", &t_b, &get("t.f64"), 1e-7, false);
        let alpha_b = Denoiser::new(&model).sigma(&t_b).expect("sigma").neg().exp();
        assert_close("alpha", &alpha_b.unsqueeze(1), &get("alpha.f64"), 1e-7, false);
        let (every_b, none_b) = ((1.0 - &alpha_b) / 13.0, alpha_b.zeros_like());
        let u_bl = uniforms((&x0_bl, &get("xt")), &alpha_b, (&every_b, &none_b), None);
        model.inject_uniforms(Some(u_bl));
        let loss = model.loss(&x0_bl, &t_b).expect("a loss");
        let want = get(&format!("loss{suffix}"));
        let bound = if kind == Kind::Double { 1e-6 } else { 3e-4 };
        assert_close(&format!("loss{suffix}"), &loss, &want, bound, true);
        let rows_n = Tensor::arange(x0_bl.numel() as i64, (Kind::Int64, device()));
        let law = model.log_x0(&get("xt"), &t_b, &rows_n).expect("a law");
        let want = get(&format!("log_p{suffix}")).flatten(0, 1);
        assert_close(
            &format!("log_p{suffix}"),
            &law,
            &want,
            if kind == Kind::Double { 1e-6 } else { 2e-4 },
            true,
        );
    }
}

/// Noise of GIDD's process at noise levels, from its plugin.
fn mixture(model: &Model, alpha_b: &Tensor) -> (Tensor, Tensor) {
    let mix = Denoiser::new(model).mixing(alpha_b).expect("mixing");
    (mix.every_b, mix.mask_b)
}

#[test]
fn loss_of_gidd() {
    let Some(manifest) = case("u_gidd_loss") else { return };
    let (golden, registry) = (Tensors::golden("u_gidd_loss/loss.safetensors"), registry());
    let x0_bl = golden.get("x0");
    for (i, p_uniform) in manifest["p_uniform"].as_array().expect("p_uniform").iter().enumerate() {
        let mut network = Network::gidd(p_uniform.as_f64().expect("a number"));
        let get = |name: &str| golden.get(&format!("net.p{i}.{name}"));
        for mode in ["none", "dynamic"] {
            network.method["loss_weight"] = json!(mode);
            let model = network.build(&registry, Kind::Double);
            let batch = x0_bl.size()[0];
            let u_b = (Tensor::arange(batch, (Kind::Double, device())) / batch as f64
                + double(&get("u_t")))
            .fmod(1.0);
            let t_b = model.draw_t(&u_b).expect("times");
            assert_close("t", &t_b, &get("t.f64"), 1e-7, false);
            let alpha_b = Denoiser::new(&model).sigma(&t_b).expect("sigma").neg().exp();
            let (every_b, mask_b) = mixture(&model, &alpha_b);
            let z_bl = get("z");
            let u_bl = uniforms((&x0_bl, &z_bl), &alpha_b, (&every_b, &mask_b), network.mask);
            model.inject_uniforms(Some(u_bl));
            let objective = model.objective(&Batch::new(&x0_bl, &t_b)).expect("an objective");
            let nats = objective.nats_bl.expect("a bound");
            let what = |part: &str| format!("p_u {p_uniform}, {mode}: {part}");
            assert_close(&what("elbo"), &nats, &get("elbo.f64"), 1e-5, true);
            if mode == "dynamic" {
                assert_close(&what("loss"), &objective.loss_bl, &get("loss.f64"), 1e-5, true);
            } else {
                assert_close(&what("loss"), &objective.loss_bl, &get("elbo.f64"), 1e-5, true);
            }
        }
    }
}

/// The given logits of GIDD's case: the bound, its clipped and dynamic weights, and their gradients.
#[test]
fn weights_of_gidd() {
    let Some(manifest) = case("u_gidd_loss") else { return };
    let (golden, registry) = (Tensors::golden("u_gidd_loss/loss.safetensors"), registry());
    let (x0_bl, z_bl, t_b) = (golden.get("x0"), golden.get("z"), double(&golden.get("t")));
    for (i, p_uniform) in manifest["p_uniform"].as_array().expect("p_uniform").iter().enumerate() {
        let network = Network::gidd(p_uniform.as_f64().expect("a number"));
        let model = network.build(&registry, Kind::Double);
        let lent = Denoiser::new(&model);
        let sigma_b = lent.sigma(&t_b).expect("sigma");
        let alpha_b = sigma_b.neg().exp();
        let mix = lent.mixing(&alpha_b).expect("mixing");
        let every_bl = mix.every_b.unsqueeze(1).expand_as(&x0_bl);
        let q_bl = double(&z_bl.eq_tensor(&x0_bl)) * alpha_b.unsqueeze(1) + mix.at(&z_bl, Some(11));
        let rate_b1 = lent.dsigma(&t_b).expect("dsigma").unsqueeze(1);
        let own_bl = lent.arrival(&alpha_b).expect("arrival").at(&z_bl, Some(11)) * rate_b1 / q_bl;
        // The dynamic weight over the bound's own, as the case's losses have it: what is compared then is the gradient.
        let fixed = |name: &str| golden.get(&format!("fixed.p{i}.{name}.f64"));
        let dynamic_bl = &own_bl * fixed("loss.dynamic") / fixed("elbo");
        for (mode, weight_bl) in [
            ("none", own_bl.shallow_clone()),
            ("clip", own_bl.clamp(0.05, 2.0)),
            ("dynamic", dynamic_bl),
        ] {
            let flat = |t: &Tensor| t.contiguous().flatten(0, -1);
            let rows = Rows {
                x: flat(&x0_bl),
                z: flat(&z_bl),
                alpha: flat(&alpha_b.unsqueeze(1).expand_as(&x0_bl)),
                every: flat(&every_bl),
                weight: flat(&weight_bl),
                banned: network.mask,
            };
            for (kind, suffix) in KINDS {
                let want = |name: &str| golden.get(&format!("fixed.p{i}.{name}.{mode}{suffix}"));
                let (weights, gradient) = (golden.get("R"), want("grad"));
                let what = format!("p_u {p_uniform}, {mode}{suffix}");
                let leaf = golden
                    .get("fixed.logits")
                    .detach()
                    .to_kind(kind)
                    .copy()
                    .set_requires_grad(true);
                let nats = rows.nats(&leaf).view_as(&want("loss"));
                let bound = if kind == Kind::Double { 1e-7 } else { 3e-4 };
                assert_close(&what, &nats, &want("loss"), bound, true);
                (nats * weights.to_kind(kind)).sum(kind).backward();
                assert_close(&format!("{what}: gradient"), &leaf.grad(), &gradient, bound, true);
            }
        }
    }
}

/// The process in general, to 60 digits: rates, density and posterior.
#[test]
fn every_process_in_general() {
    let Some(manifest) = case("u_universal") else { return };
    let (golden, registry) = (Tensors::golden("u_universal/universal.safetensors"), registry());
    let (size, mask) = (6, manifest["mask_id"].as_i64().expect("mask_id"));
    let (x, t) = (golden.get("x"), double(&golden.get("t")));
    for (name, process, options) in [
        ("mdlm", "absorbing_state", json!({})),
        ("udlm", "uniform", json!({})),
        ("udlm_cosine", "uniform", json!({})),
        ("gidd", "gidd", json!({ "p_uniform": 0.2 })),
        ("gidd_gamma", "gidd", json!({ "p_uniform": 0.4, "gamma": 1.5 })),
        ("xdlm", "xdlm", json!({ "k": 0.1 })),
    ] {
        let has_mask = !name.starts_with("udlm");
        let mut network = Network::gidd(0.1);
        network.sizes[5] = size;
        network.mask = has_mask.then_some(mask);
        let choice = Choice { name: process.into(), options };
        let made = registry.process(&choice, &network.facts(Kind::Double)).expect("the process");
        let alpha = golden.get(&format!("{name}.alpha"));
        let mix = made.mixing(&alpha).expect("mixing");
        let every_token =
            Tensor::arange(size, (Kind::Int64, device())).expand([alpha.size()[0], size], false);
        let b = mix.at(&every_token, network.mask);
        assert_close(&format!("{name}: b"), &b, &golden.get(&format!("{name}.b")), 1e-9, true);
        let z = match name {
            "mdlm" => golden.get("z").where_self(&golden.get("z").eq(mask), &x),
            _ => golden.get("z"),
        };
        // The rate per unit of sigma times that of sigma: read off where it is largest.
        let rho = made.arrival(&alpha).expect("arrival").at(&every_token, network.mask);
        let rate = golden.get(&format!("{name}.rate"));
        let total = rate.sum_dim_intlist(1, true, Kind::Double);
        assert_close(
            &format!("{name}: rate"),
            &(&rho * &total / &total.clamp_min(1.0)),
            &(&rate / &total.clamp_min(1.0)),
            1e-8,
            true,
        );
        let at = |v: &Tensor| v.gather(1, &z.unsqueeze(1), false).squeeze_dim(1);
        let q_z = double(&x.eq_tensor(&z)) * &alpha + at(&b);
        let rows = Rows {
            x: x.shallow_clone(),
            z: z.shallow_clone(),
            alpha: alpha.shallow_clone(),
            every: mix.every_b.shallow_clone(),
            weight: at(&rate) / q_z,
            banned: network.mask,
        };
        let logits = double(&golden.get("logits"));
        let nats = rows.nats(&logits);
        assert_close(
            &format!("{name}: density"),
            &nats,
            &golden.get(&format!("{name}.density")),
            1e-8,
            true,
        );
        let banned = Tensor::from_slice(&[mask]).to_device(device());
        let allowed =
            if has_mask { logits.index_fill(1, &banned, f64::NEG_INFINITY) } else { logits };
        let p = allowed.softmax(-1, Kind::Double);
        let earlier = golden.get(&format!("{name}.post"));
        for i in 0..t.size()[0] {
            let alpha_s = earlier_alpha(name, t.double_value(&[i]) * 0.6, &made);
            let alpha_t = alpha.double_value(&[i]);
            let row = |v: &Tensor| v.narrow(0, i, 1);
            // An open token of the masked process stays, whatever the law.
            let law = made.posterior(&row(&z), alpha_t, alpha_s, &row(&p)).expect("a posterior");
            assert_close(&format!("{name}: posterior {i}"), &law, &row(&earlier), 1e-8, true);
        }
    }
}

/// Alpha of the case's own times.
fn earlier_alpha(name: &str, t: f64, _process: &maskdiff_plugin_api::abi::handles::Process) -> f64 {
    let gidd = |p: f64, gamma: f64| {
        let c = 2f64.powf(gamma) * p / (1.0 - p) * (t * (1.0 - t)).powf(gamma / 2.0);
        (1.0 - t) / (1.0 + c)
    };
    match name {
        "udlm_cosine" => 1.0 - (std::f64::consts::FRAC_PI_2 * t).sin(),
        "gidd" => gidd(0.2, 1.0),
        "gidd_gamma" => gidd(0.4, 1.5),
        _ => 1.0 - t,
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

#[test]
fn walks_of_udlm_and_duo() {
    let Some(manifest) = case("u_duo_trajectories") else { return };
    let registry = registry();
    let steps = manifest["steps"].as_i64().expect("steps");
    for (name, sampler, options) in [
        ("ancestral_none", "interpolating", json!({ "tail": "none" })),
        ("ancestral_ancestral", "interpolating", json!({ "tail": "ancestral" })),
        ("ancestral_greedy", "interpolating", json!({ "tail": "greedy" })),
        ("nucleus", "interpolating", json!({ "tail": "greedy", "top_p": 0.9 })),
        ("psi_pc", "psi", json!({ "low": "corrector", "tail": "ancestral" })),
    ] {
        let mut options = options;
        options["steps"] = json!(steps);
        let network = Network::duo();
        let (model, walker) =
            (network.build(&registry, Kind::Double), walker(&registry, &network, sampler, options));
        let golden = Tensors::golden(&format!("u_duo_trajectories/{name}.safetensors"));
        let (u, tokens) = (golden.get("u"), golden.get("tokens"));
        let time = |i: i64| 1.0 - (1.0 - 1e-5) * i as f64 / steps as f64;
        let mut x_bl = golden.get("start");
        for i in 0..steps {
            let law = walker.law(&model, &x_bl, time(i), time(i + 1)).expect("a law");
            x_bl = race(&law, &u.get(i));
            assert_eq!(x_bl, tokens.get(i), "{name}, step {i}");
            if i == 0 {
                assert_close(name, &law, &golden.get("law.first"), 1e-6, true);
            }
        }
        let law = walker.law(&model, &x_bl, 1e-5, 0.0).expect("the tail");
        let last =
            if u.size()[0] > steps { race(&law, &u.get(steps)) } else { law.argmax(-1, false) };
        assert_eq!(last, golden.get("final"), "{name}, end");
    }
    if case("u_udlm_trajectories").is_none() {
        return;
    }
    let golden = Tensors::golden("u_udlm_trajectories/uniform.safetensors");
    let network = Network::udlm();
    let model = network.build(&registry, Kind::Double);
    let walker =
        walker(&registry, &network, "interpolating", json!({ "steps": 8, "tail": "none" }));
    let mut x_bl = golden.get("start");
    for i in 0..8 {
        let time = |i: i64| 1.0 - (1.0 - 1e-5) * i as f64 / 8.0;
        let law = walker.law(&model, &x_bl, time(i), time(i + 1)).expect("a law");
        x_bl = race(&law, &golden.get("u").get(i));
        assert_eq!(x_bl, golden.get("draws").get(i), "step {i}");
    }
    assert_eq!(x_bl, golden.get("final"));
}

#[test]
fn walks_of_gidd() {
    let Some(manifest) = case("u_gidd_trajectories") else { return };
    let registry = registry();
    for name in manifest["margins"].as_object().expect("margins").keys() {
        let index: usize = name[1..2].parse().expect("a number");
        let network = Network::gidd(manifest["p_uniform"][index].as_f64().expect("p_uniform"));
        let min_p = if name.ends_with("min_p") { 0.02 } else { 0.0 };
        let model = network.build(&registry, Kind::Double);
        let walker = walker(&registry, &network, "interpolating", json!({ "min_p": min_p }));
        let golden = Tensors::golden(&format!("u_gidd_trajectories/{name}.safetensors"));
        let tokens = golden.get("tokens");
        let mut x_bl = Tensor::full(tokens.get(0).size(), 11, (Kind::Int64, device()));
        // The original never uses the last of its times, and its last step changes nothing.
        let time = |i: i64| (1.0 - 2e-4) * i as f64 / 8.0 + 1e-4;
        for (n, i) in (1..8).rev().enumerate() {
            let law = walker.law(&model, &x_bl, time(i), time(i - 1)).expect("a law");
            x_bl = inverse(&law, &golden.get("u").get(n as i64));
            assert_eq!(x_bl, tokens.get(n as i64), "{name}, step {n}");
            if n == 0 {
                assert_close(name, &law, &golden.get("law.first"), 1e-6, true);
            }
        }
    }
}

#[test]
fn self_correction_of_gidd() {
    let Some(manifest) = case("u_gidd_self_correction") else { return };
    let registry = registry();
    for i in 0..2usize {
        let network = Network::gidd(0.1);
        let model = network.build(&registry, Kind::Double);
        let options =
            json!({ "temperature": manifest["temp"][i], "tokens_per_step": manifest["k"][i] });
        let walker = walker(&registry, &network, "self_correction", options);
        let golden = Tensors::golden(&format!("u_gidd_self_correction/temp{i}.safetensors"));
        let law = walker.law(&model, &golden.get("start"), 0.01, 0.0).expect("a law");
        assert_close("the first law", &law, &golden.get("law.first"), 1e-5, true);
        let proposal = inverse(&law, &golden.get("u").get(0));
        assert_eq!(proposal, golden.get("proposal").get(0));
    }
}
