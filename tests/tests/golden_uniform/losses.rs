//! Golden losses of DUO, UDLM and GIDD.

use maskdiff_engine::clock;
use maskdiff_engine::model::Model;
use maskdiff_engine::plugins::Choice;
use maskdiff_plugin_api::{Batch, Denoiser};
use maskdiff_tests::fixed::Fixed;
use maskdiff_tests::golden_uniform::{Network, case, uniforms};
use maskdiff_tests::{Tensors, assert_close, device, registry};
use serde_json::json;
use tch::{Kind, Tensor};

use crate::{KINDS, Rows, TABLES, double, tolerance};

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
        assert_close("t", &t_b, &get("t.f64"), 1e-9, false);
        let alpha_b = Denoiser::new(&model).sigma(&t_b).expect("sigma").neg().exp();
        assert_close("alpha", &alpha_b.unsqueeze(1), &get("alpha.f64"), 1e-9, false);
        let (every_b, none_b) = ((1.0 - &alpha_b) / 13.0, alpha_b.zeros_like());
        let u_bl = uniforms((&x0_bl, &get("xt")), &alpha_b, (&every_b, &none_b), None);
        model.inject_uniforms(Some(u_bl));
        let loss = model.loss(&x0_bl, &t_b).expect("a loss");
        let want = get(&format!("loss{suffix}"));
        let bound = tolerance(kind, 3e-4);
        assert_close(&format!("loss{suffix}"), &loss, &want, bound, true);
        let rows_n = Tensor::arange(x0_bl.numel() as i64, (Kind::Int64, device()));
        let law = model.log_x0(&get("xt"), &t_b, &rows_n).expect("a law");
        let want = get(&format!("log_p{suffix}")).flatten(0, 1);
        assert_close(&format!("log_p{suffix}"), &law, &want, tolerance(kind, 2e-4), true);
    }
}

/// With DUO's own cosine.
#[test]
fn loss_of_duo_with_its_cosine() {
    if case("u_duo_loss").is_none() {
        return;
    }
    let (golden, registry) = (Tensors::golden("u_duo_loss/loss.safetensors"), registry());
    let (x0_bl, get) = (golden.get("x0"), |name: &str| golden.get(&format!("cosine.{name}")));
    let (z_bl, t_b) = (get("xt"), get("t.f64"));
    for (kind, suffix) in KINDS {
        let network = Network::duo().over_cosine();
        let model = network.build(&registry, kind);
        let fixed = Fixed::new(&model).drawn(&z_bl);
        let lent = Denoiser::new(&fixed);
        let sigma_b = lent.sigma(&t_b).expect("sigma");
        assert_close("sigma", &sigma_b, &get("sigma.f64"), 1e-9, true);
        let choice = Choice { name: "interpolating".into(), options: json!({}) };
        let method = registry.parameterization(&choice, &network.facts(kind)).expect("the method");
        let loss = method.loss(&fixed, &x0_bl, &t_b).expect("a loss");
        // The original's derivative lacks the factor 1 - eps.
        let want = get(&format!("loss{suffix}")) * (1.0 - 1e-3);
        assert_close(&format!("loss{suffix}"), &loss, &want, tolerance(kind, 3e-4), true);
        let rows_n = Tensor::arange(x0_bl.numel() as i64, (Kind::Int64, device()));
        let law = method.log_x0(&fixed, &z_bl, &t_b, &rows_n).expect("a law");
        let want = get(&format!("log_p{suffix}")).flatten(0, 1);
        assert_close(&format!("log_p{suffix}"), &law, &want, tolerance(kind, 2e-4), true);
    }
}

/// `T KL(q(s | t, x0) || q(s | t, p))`, `[B, L]`, of a step of length 1/T that ends at times `t_b`, through the process.
fn of_steps(
    model: &Model,
    (steps, t_b): (f64, &Tensor),
    x: &Tensor,
    z: &Tensor,
    p: &Tensor,
) -> Tensor {
    let (lent, size) = (Denoiser::new(model), model.facts().vocab_size);
    let rows = (0..x.size()[0]).map(|b| {
        let t = t_b.double_value(&[b]).min(1.0 - 1e-4);
        let step = |p_nv: &Tensor| {
            lent.posterior(&z.get(b), 1.0 - t, 1.0 - (t - 1.0 / steps), p_nv).expect("a posterior")
        };
        let (q, p) = (step(&x.get(b).one_hot(size).to_kind(p.kind())), step(&p.get(b)));
        (&q * ((&q + 1e-12).log() - p.log())).sum_dim_intlist(-1, false, p.kind()) * steps
    });
    Tensor::stack(&rows.collect::<Vec<Tensor>>(), 0)
}

/// UDLM's losses over T steps, which `interpolating`, a bound in continuous time, does not train: by the posterior of the process.
#[test]
fn loss_of_udlm_over_steps() {
    let Some(manifest) = case("u_udlm_loss") else { return };
    let size = manifest["vocab_size"].as_i64().expect("vocab_size");
    let (golden, registry) = (Tensors::golden("u_udlm_loss/loss.safetensors"), registry());
    let model = Network::udlm().build(&registry, Kind::Double);
    let (x, t) = (golden.get("x0"), double(&golden.get("t")));
    let rows_n = Tensor::arange(x.numel() as i64, (Kind::Int64, device()));
    for steps in [1000.0, 50.0] {
        // The end of the step that t lies in.
        let t_b = (&t * steps).floor() / steps + 1.0 / steps;
        let get = |part: &str| golden.get(&part.replace("T", &format!("T{steps}")));
        let z = get("T.xt");
        let law =
            model.log_x0(&z, &t_b, &rows_n).expect("a law").exp().view([x.size()[0], -1, size]);
        let nats = of_steps(&model, (steps, &t_b), &x, &z, &law);
        // The sum of 1e-12 costs the case digits: `check_uniform.py` allows 5e-4.
        assert_close("net", &nats, &get("net.T.diffusion.f64"), 5e-4, true);
        let logits = double(&golden.get("fixed.logits")).set_requires_grad(true);
        let law = logits.log_softmax(-1, Kind::Double).exp();
        let nats = of_steps(&model, (steps, &t_b), &x, &z, &law);
        assert_close("fixed", &nats.detach(), &get("fixed.T.diffusion.f64"), 5e-4, true);
        (nats * double(&golden.get("R"))).sum(Kind::Double).backward();
        let want = get("fixed.T.grad.f64");
        let most = want.abs().max().double_value(&[]);
        assert_close("gradient", &logits.grad(), &want, 1e-3 * most, false);
    }
}

/// The network of UDLM: the law through the method, the density at the original's alpha, and the reconstruction.
#[test]
fn loss_of_udlm_with_its_network() {
    let Some(manifest) = case("u_udlm_loss") else { return };
    let size = manifest["vocab_size"].as_i64().expect("vocab_size");
    let (golden, registry) = (Tensors::golden("u_udlm_loss/loss.safetensors"), registry());
    let (x, z, t_b) = (golden.get("x0"), golden.get("T0.xt"), double(&golden.get("t")));
    let alpha: Tensor = 1.0 - &t_b;
    let rows = Rows::uniform(&x, &z, &alpha.unsqueeze(1).expand_as(&x), size);
    let rows_n = Tensor::arange(x.numel() as i64, (Kind::Int64, device()));
    for (kind, suffix) in KINDS {
        let model = Network::udlm().build(&registry, kind);
        let law_nv = model.log_x0(&z, &t_b, &rows_n).expect("a law");
        let want = golden.get(&format!("net.T0.diffusion{suffix}"));
        let nats = rows.nats(&law_nv).view_as(&want);
        assert_close(&format!("net{suffix}"), &nats, &want, tolerance(kind, 3e-4), true);
        let lent = Denoiser::new(&model);
        let hidden = lent.hidden(&x, &t_b.zeros_like()).expect("hidden").flatten(0, 1);
        let log_p = lent.logits(&hidden).expect("logits").log_softmax(-1, kind);
        let recon = -log_p.gather(1, &x.view([-1, 1]), false).view_as(&x);
        let want = golden.get(&format!("net.T0.recon{suffix}"));
        assert_close(&format!("recon{suffix}"), &recon, &want, tolerance(kind, 3e-4), true);
    }
    let (x, z) = (golden.get("stress.x0"), golden.get("stress.xt"));
    let alpha: Tensor = 1.0 - double(&golden.get("stress.t"));
    let stress = Rows::uniform(&x, &z, &alpha.unsqueeze(1).expand_as(&x), size);
    let want = golden.get("stress.diffusion.f64");
    // Its own float64 loses digits near both ends: `check_uniform.py` allows 1e-8 as well.
    let nats = stress.nats(&double(&golden.get("stress.logits"))).view_as(&want);
    assert_close("stress", &nats, &want, 1e-8, true);
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
            assert_close("t", &t_b, &get("t.f64"), 1e-9, false);
            let alpha_b = Denoiser::new(&model).sigma(&t_b).expect("sigma").neg().exp();
            let (every_b, mask_b) = mixture(&model, &alpha_b);
            let z_bl = get("z");
            let u_bl = uniforms((&x0_bl, &z_bl), &alpha_b, (&every_b, &mask_b), network.mask);
            model.inject_uniforms(Some(u_bl));
            let objective = model.objective(&Batch::new(&x0_bl, &t_b)).expect("an objective");
            let nats = objective.nats_bl.expect("a bound");
            let what = |part: &str| format!("p_u {p_uniform}, {mode}: {part}");
            // The network: see `TABLES`.
            assert_close(&what("elbo"), &nats, &get("elbo.f64"), TABLES, true);
            if mode == "dynamic" {
                assert_close(&what("loss"), &objective.loss_bl, &get("loss.f64"), TABLES, true);
            } else {
                assert_close(&what("loss"), &objective.loss_bl, &get("elbo.f64"), TABLES, true);
            }
        }
    }
}

/// The given logits of GIDD's case through the method: the bound, its clipped and dynamic weights, and their gradients.
///
/// `padded.*` is the bound of a vocabulary with columns that no text has; ours has none of them.
#[test]
fn weights_of_gidd() {
    let Some(manifest) = case("u_gidd_loss") else { return };
    let (golden, registry) = (Tensors::golden("u_gidd_loss/loss.safetensors"), registry());
    let (x0_bl, z_bl, t_b) = (golden.get("x0"), golden.get("z"), double(&golden.get("t")));
    for (i, p_uniform) in manifest["p_uniform"].as_array().expect("p_uniform").iter().enumerate() {
        for (mode, (kind, suffix)) in
            ["none", "clip", "dynamic"].into_iter().flat_map(|mode| KINDS.map(|k| (mode, k)))
        {
            let mut network = Network::gidd(p_uniform.as_f64().expect("a number"));
            network.method["loss_weight"] = json!(mode);
            let model = network.build(&registry, kind);
            let choice = Choice { name: "interpolating".into(), options: network.method.clone() };
            let facts = network.facts(kind);
            let method = registry.parameterization(&choice, &facts).expect("the method");
            let leaf =
                golden.get("fixed.logits").detach().to_kind(kind).copy().set_requires_grad(true);
            let fixed = Fixed::new(&model).logits(&leaf).drawn(&z_bl);
            let batch = Batch::new(&x0_bl, &t_b);
            let objective = method.objective(&fixed, &batch).expect("an objective");
            let want = |name: &str| golden.get(&format!("fixed.p{i}.{name}{suffix}"));
            let what = |part: &str| format!("p_u {p_uniform}, {mode}{suffix}: {part}");
            let bound = tolerance(kind, 3e-4);
            let wanted = want(&format!("loss.{mode}"));
            assert_close(&what("loss"), &objective.loss_bl, &wanted, bound, true);
            let nats_bl = objective.nats_bl.expect("a bound");
            assert_close(&what("elbo"), &nats_bl, &want("elbo"), bound, true);
            (objective.loss_bl * golden.get("R").to_kind(kind)).sum(kind).backward();
            let wanted = want(&format!("grad.{mode}"));
            assert_close(&what("gradient"), &leaf.grad(), &wanted, bound, true);
        }
    }
}
