//! Golden cases u of schedules and of distillation: MD4, GenMD4, SDTT and DCD, through the plugins as built.

mod distillation;
mod stand_in;

use maskdiff_engine::plugins::Choice;
use maskdiff_plugin_api::{Batch, Context, Denoiser};
use maskdiff_tests::golden_uniform::case;
use maskdiff_tests::{Tensors, assert_close, device, registry};
use serde_json::json;
use stand_in::{StandIn, V};
use tch::{Kind, Tensor};

const KINDS: [(Kind, &str); 2] = [(Kind::Float, ""), (Kind::Double, ".f64")];

fn double(t: &Tensor) -> Tensor {
    t.to_kind(Kind::Double)
}

fn tolerance(kind: Kind, float: f64) -> f64 {
    if kind == Kind::Double { 1e-9 } else { float }
}

fn choice(name: &str, options: serde_json::Value) -> Choice {
    Choice { name: name.into(), options }
}

fn facts(kind: Kind) -> Context {
    Context::new(V + 1, 6)
        .mask(Some(V))
        .time_conditioning(true)
        .kind(kind)
        .cuda(maskdiff_tests::cuda())
}

/// A schedule's word and its options.
fn schedule(name: &str) -> Choice {
    match name.strip_prefix("poly") {
        Some(power) => {
            let power: f64 = power.parse().expect("a power");
            choice("md4", json!({ "shape": "poly", "power": power }))
        }
        None => choice("md4", json!({ "shape": name })),
    }
}

#[test]
fn schedules_of_md4() {
    let Some(manifest) = case("u_md4_schedule") else { return };
    let golden = Tensors::golden("u_md4_schedule/md4_schedule.safetensors");
    let (t, registry) = (double(&golden.get("t")), registry());
    for name in manifest["schedules"].as_array().expect("schedules") {
        let name = name.as_str().expect("a name");
        let noise = registry.noise(&schedule(name), &facts(Kind::Double)).expect("the schedule");
        let sigma = noise.sigma(&t).expect("sigma");
        let want = |part: &str| golden.get(&format!("{name}.{part}.f64"));
        assert_close(&format!("{name}: alpha"), &sigma.neg().exp(), &want("alpha"), 1e-9, true);
        // Where the rate is infinite, both are.
        let rate = noise.dsigma(&t).expect("dsigma");
        let finite = want("weight").isfinite();
        let picked = |t: &Tensor| t.masked_select(&finite);
        let weight = -(&rate / sigma.expm1());
        let ratio = picked(&weight) / picked(&want("weight"));
        let ratio = ratio.nan_to_num(1.0, None, None);
        assert_close(&format!("{name}: weight"), &ratio, &ratio.ones_like(), 1e-9, true);
        let slope = -(rate * sigma.neg().exp());
        assert_close(
            &format!("{name}: dalpha"),
            &picked(&slope),
            &picked(&want("dalpha")),
            1e-9,
            true,
        );
        let odds = -sigma.expm1().log();
        assert_close(&format!("{name}: logsnr"), &odds, &want("logsnr"), 1e-9, true);
    }
}

#[test]
fn loss_of_md4() {
    let Some(manifest) = case("u_md4_loss") else { return };
    let golden = Tensors::golden("u_md4_loss/md4_loss.safetensors");
    let (x0_bl, registry) = (golden.get("x"), registry());
    let (t, steps) = (double(&golden.get("t")), manifest["timesteps"].as_i64().expect("T"));
    for (kind, suffix) in KINDS {
        for name in ["linear", "cosine", "poly3"] {
            for (mode, t_steps) in [("cont", 0), ("T", steps)] {
                let noise = registry.noise(&schedule(name), &facts(kind)).expect("the schedule");
                let options = json!({ "T": t_steps });
                let method = registry.parameterization(&choice("md4", options), &facts(kind));
                let method = method.expect("the method");
                let model = StandIn::new(&golden, kind, noise, vec![golden.get("u_mask")]);
                let t_b = method.draw_t(&model, &t).expect("times");
                let loss_bl = method.loss(&model, &x0_bl, &t_b).expect("a loss");
                assert_eq!(
                    model.drawn(0),
                    golden.get(&format!("{name}.{mode}.z")),
                    "{name}, {mode}"
                );
                let first = double(&golden.get(&format!("{name}.recon"))).view([]);
                let loss_b = double(&loss_bl).sum_dim_intlist(1, false, Kind::Double) - first;
                let want = golden.get(&format!("{name}.{mode}.loss{suffix}"));
                // The original's sign.
                let what = format!("{name}, {mode}{suffix}");
                // The reconstruction is kept in float32.
                let bound = if kind == Kind::Double { 1e-6 } else { 3e-4 };
                assert_close(&what, &loss_b, &double(&want), bound, true);
            }
        }
    }
}

#[test]
fn loss_and_gradients_of_genmd4() {
    if case("u_genmd4").is_none() {
        return;
    }
    let golden = Tensors::golden("u_genmd4/genmd4.safetensors");
    let (x0_bl, registry) = (golden.get("x"), registry());
    let batch = x0_bl.size()[0] as f64;
    for (kind, suffix) in KINDS {
        let want = |name: &str| double(&golden.get(&format!("{name}{suffix}")));
        let bound = tolerance(kind, 3e-4);
        let noise = registry.noise(&choice("genmd4", json!({})), &facts(kind)).expect("noise");
        let raw = noise.parameters().expect("parameters").0.remove(0).tensor;
        tch::no_grad(|| raw.narrow(0, 0, V).copy_(&golden.get("w")));
        let method = registry
            .parameterization(&choice("genmd4", json!({ "network_input": "time" })), &facts(kind));
        let method = method.expect("the method");
        let given = vec![golden.get("u1"), golden.get("u2")];
        let model = StandIn::new(&golden, kind, noise, given);
        let t_b = double(&golden.get("t"));
        let all = Tensor::arange(V, (Kind::Int64, device()));
        let all_bv = all.unsqueeze(0).expand([x0_bl.size()[0], V], false);
        let lent = Denoiser::new(&model);
        let sigma = lent.token_sigma(&all_bv, &t_b).expect("sigma");
        assert_close("alpha", &sigma.neg().exp(), &want("alpha"), bound.max(1e-6), true);
        let rate = lent.token_dsigma(&all_bv, &t_b).expect("rate") / sigma.expm1();
        assert_close("weight", &-rate, &want("weight"), bound.max(1e-6), true);

        let objective = method.objective(&model, &Batch::new(&x0_bl, &t_b)).expect("an objective");
        assert_eq!(model.drawn(0), golden.get("z1"));
        assert_eq!(model.drawn(1), golden.get("z2"));
        let nats_b =
            double(&objective.nats_bl.expect("a bound")).sum_dim_intlist(1, false, Kind::Double);
        let reported = (want("loss1") + want("loss2")) / 2.0 + want("recon");
        assert_close(&format!("bound{suffix}"), &nats_b, &reported, bound, true);
        let loss = objective.loss_bl.sum(Kind::Double) / batch;
        let surrogate = want("surrogate").view([]);
        assert_close(&format!("surrogate{suffix}"), &loss, &surrogate, bound, true);
        loss.backward();
        let of_powers = double(&raw.grad().narrow(0, 0, V));
        assert_close(&format!("grad w{suffix}"), &of_powers, &want("grad.w"), bound, true);
        for name in ["table", "pos", "tvec", "mix"] {
            let what = format!("grad {name}{suffix}");
            let grad = double(&model.gradient(name));
            assert_close(&what, &grad, &want(&format!("grad.net.{name}")), bound, true);
        }
    }
}

/// With equal powers the loss of GenMD4 is that of MD4 with the same schedule, and so is its value in the case.
#[test]
fn equal_powers_are_md4() {
    if case("u_genmd4").is_none() {
        return;
    }
    let golden = Tensors::golden("u_genmd4/genmd4.safetensors");
    let (x0_bl, t_b, registry) = (golden.get("x"), double(&golden.get("t")), registry());
    let facts = facts(Kind::Double);
    let power = double(&golden.get("power.f64")).double_value(&[0]);
    let noise = registry.noise(&choice("genmd4", json!({ "power": power })), &facts);
    let noise = noise.expect("noise");
    let method = registry
        .parameterization(&choice("genmd4", json!({ "network_input": "time" })), &facts)
        .expect("method");
    // The case's first corruption twice: the term of the difference is 0.
    let given = vec![golden.get("u1"), golden.get("u1")];
    let model = StandIn::new(&golden, Kind::Double, noise, given);
    let objective = method.objective(&model, &Batch::new(&x0_bl, &t_b)).expect("an objective");
    let of_masks = objective.nats_bl.expect("a bound").sum_dim_intlist(1, false, Kind::Double);
    let first = {
        // All tokens share the masks alike: -m (log m - log sum m) is m log V.
        let masked = (1.0 - 1e-4) * 1e-3f64.powf(power);
        x0_bl.size()[1] as f64 * masked * (V as f64).ln()
    };
    let want = golden.get("equal.loss.f64");
    assert_close("equal powers", &(of_masks - first), &want, 1e-7, true);
}

#[test]
fn steps_of_the_sampler_of_md4() {
    let Some(manifest) = case("u_md4_sampler") else { return };
    let golden = Tensors::golden("u_md4_sampler/md4_sampler.safetensors");
    let number = |key: &str| manifest[key].as_f64().expect("a number");
    let (steps, step) = (number("steps"), number("step"));
    let (z_bl, registry) = (golden.get("z"), registry());
    let masked = z_bl.eq(V).flatten(0, 1).nonzero().squeeze_dim(1);
    let rows = |t: &Tensor| double(&t.flatten(0, 1).index_select(0, &masked));
    for (kind, suffix) in KINDS {
        for name in ["linear", "cosine"] {
            let method = registry.parameterization(&choice("md4", json!({})), &facts(kind));
            let noise = registry.noise(&schedule(name), &facts(kind)).expect("the schedule");
            let model = StandIn::new(&golden, kind, noise, Vec::new())
                .with_law(method.expect("the method"));
            for grid in ["uniform", "cosine"] {
                let time = |i: f64| {
                    let equal = (steps - i) / steps;
                    match grid {
                        "uniform" => equal,
                        _ => (std::f64::consts::FRAC_PI_2 * (1.0 - equal)).cos(),
                    }
                };
                let (t, s) = (time(step), time(step + 1.0));
                let law = |options| {
                    let walker = registry.sampler(&choice("md4", options), &facts(kind));
                    walker.expect("the sampler").law(&model, &z_bl, t, s).expect("a law")
                };
                let bound = tolerance(kind, 2e-5);
                let want = golden.get(&format!("{name}.{grid}.ancestral{suffix}"));
                let what = format!("{name}, {grid}{suffix}");
                assert_close(&what, &rows(&law(json!({}))), &rows(&want), bound, false);
                if kind == Kind::Float {
                    let want = golden.get(&format!("{name}.{grid}.topp"));
                    let ours = law(json!({ "top_p": manifest["topp"] }));
                    assert_close(
                        &format!("{what}, top p"),
                        &rows(&ours),
                        &rows(&want),
                        2e-5,
                        false,
                    );
                }
            }
            let walker = registry.sampler(&choice("md4", json!({})), &facts(kind));
            let last = walker.expect("the sampler").law(&model, &z_bl, 0.0, 0.0).expect("a law");
            assert_eq!(last.argmax(-1, false), golden.get("decode"), "{name}{suffix}");
        }
    }
}

/// The mean of the surrogate's gradient over all pairs of masks is the gradient of the mean loss, by the powers too.
#[test]
fn the_surrogate_has_the_exact_gradient() {
    if case("u_genmd4").is_none() {
        return;
    }
    let golden = Tensors::golden("u_genmd4/genmd4.safetensors");
    let (registry, facts) = (registry(), facts(Kind::Double));
    let x0_l = golden.get("x").get(0);
    let length = x0_l.size()[0];
    let masks = 1_i64 << length;
    // Mask number i hides the positions of its bits: a number of 2 masks, one of 0 keeps.
    let bits = |numbers: &Tensor| {
        let shift = Tensor::arange(length, (Kind::Int64, device()));
        let two = Tensor::full([1], 2, (Kind::Int64, device())).pow(&shift);
        numbers.unsqueeze(1).floor_divide(&two).remainder(2).to_kind(Kind::Double)
    };
    let every = Tensor::arange(masks, (Kind::Int64, device()));
    let (first, second) =
        (every.repeat_interleave_self_int(masks, 0, None::<i64>), every.repeat([masks]));
    // The gradient by the powers of a sum over pairs of masks, weighted by `weight`; with it the sum of the weighted bounds.
    let gradient = |one: &Tensor, two: &Tensor, moving: bool| {
        let noise = registry.noise(&choice("genmd4", json!({})), &facts).expect("noise");
        let raw = noise.parameters().expect("parameters").0.remove(0).tensor;
        tch::no_grad(|| raw.narrow(0, 0, V).copy_(&golden.get("w")));
        let method = registry
            .parameterization(&choice("genmd4", json!({ "network_input": "time" })), &facts);
        let given = vec![bits(one) * 2.0, bits(two) * 2.0];
        let model = StandIn::new(&golden, Kind::Double, noise, given);
        let rows = one.size()[0];
        let x0_bl = x0_l.unsqueeze(0).repeat([rows, 1]);
        let t_b = Tensor::full([rows], 0.43, (Kind::Double, device()));
        let sigma = Denoiser::new(&model).token_sigma(&x0_bl, &t_b).expect("sigma");
        let log_masked = (-sigma.neg().expm1()).log();
        let likely = |numbers: &Tensor| {
            let hidden = bits(numbers);
            let open: Tensor = 1.0 - &hidden;
            let log_q = &hidden * &log_masked - open * &sigma;
            log_q.sum_dim_intlist(1, false, Kind::Double).exp()
        };
        let weight = if moving { likely(one) } else { (likely(one) * likely(two)).detach() };
        let batch = Batch::new(&x0_bl, &t_b);
        let objective = method.expect("the method").objective(&model, &batch).expect("one");
        let of_sequence = |t: &Tensor| t.sum_dim_intlist(1, false, Kind::Double);
        // The surrogate is for its gradient; what is reported has the value.
        let nats_b = of_sequence(&objective.nats_bl.expect("a bound"));
        let value = (weight.detach() * nats_b).sum(Kind::Double);
        (weight * of_sequence(&objective.loss_bl)).sum(Kind::Double).backward();
        (value, raw.grad().narrow(0, 0, V))
    };
    // Twice the same mask: the surrogate is the loss itself, and the weight moves with the powers.
    let (mean, exact) = gradient(&every, &every, true);
    let (of_pairs, surrogate) = gradient(&first, &second, false);
    assert_close("the mean", &of_pairs, &mean, 1e-9, true);
    assert_close("its gradient", &surrogate, &exact, 1e-9, true);
    assert!(exact.abs().max().double_value(&[]) > 1e-3, "{exact:?}");
}
