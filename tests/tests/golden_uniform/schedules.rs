//! Golden schedules of DUO and GIDD, and GIDD's weights.

use maskdiff_engine::plugins::Choice;
use maskdiff_plugin_api::{Batch, Denoiser};
use maskdiff_tests::fixed::Fixed;
use maskdiff_tests::golden_uniform::{Network, case};
use maskdiff_tests::{Tensors, assert_close, device, registry};
use serde_json::json;
use tch::{Kind, Tensor};

use crate::double;

/// The log-linear schedule is ours. No schedule of ours is DUO's cosine; the one that other tests take for it is compared here.
#[test]
fn golden_schedules_of_duo() {
    if case("u_duo_schedule").is_none() {
        return;
    }
    let (golden, registry) = (Tensors::golden("u_duo_schedule/schedule.safetensors"), registry());
    let t = double(&golden.get("t"));
    let noise = |name: &str| {
        let choice = Choice { name: name.into(), options: json!({}) };
        registry.noise(&choice, &Network::duo().facts(Kind::Double)).expect("a schedule")
    };
    // The original's derivative of the cosine lacks the factor 1 - eps.
    for (name, ours, factor) in
        [("loglinear", "loglinear", 1.0), ("cosine", "duo_cosine", 1.0 - 1e-3)]
    {
        let noise = noise(ours);
        let (sigma, rate) = (noise.sigma(&t).expect("sigma"), noise.dsigma(&t).expect("dsigma"));
        let alpha = sigma.neg().exp();
        let get = |part: &str| golden.get(&format!("{name}.{part}.f64"));
        assert_close(name, &alpha, &get("alpha"), 1e-9, true);
        let slope = -alpha * rate;
        assert_close(&format!("{name}: slope"), &slope, &(get("dalpha") * factor), 1e-9, true);
    }
    // The original inverts the schedule with eps = 0.
    let time = noise("loglinear").time_of_alpha(&double(&golden.get("alpha_grid"))).expect("times");
    let want = golden.get("loglinear.inverse.f64") / (1.0 - 1e-3);
    assert_close("times", &time, &want.clamp(0.0, 1.0), 1e-9, true);
}

/// Noise, the bound's weights and those of training, all from the plugins.
#[test]
fn golden_schedules_of_gidd() {
    let Some(manifest) = case("u_gidd_schedule") else { return };
    let (golden, registry) = (Tensors::golden("u_gidd_schedule/schedule.safetensors"), registry());
    let t_b = double(&golden.get("t"));
    let rows = t_b.size()[0];
    let numbers = |key: &str| {
        let list = manifest[key].as_array().expect("a list").iter();
        list.map(|value| value.as_f64().expect("a number")).collect::<Vec<_>>()
    };
    let place = (Kind::Int64, device());
    let z_bl = Tensor::from_slice(&[0_i64, 1, 11]).to_device(device()).repeat([rows, 1]);
    let x0_bl = z_bl.zeros_like();
    tch::manual_seed(5);
    let logits = Tensor::randn([rows, 3, 12], (Kind::Double, device()));
    for (i, p_uniform) in numbers("p_uniform").into_iter().enumerate() {
        for (j, gamma) in numbers("gamma").into_iter().enumerate() {
            let mut network = Network::gidd(p_uniform);
            for (_, options) in [&mut network.process, &mut network.noise] {
                options["gamma"] = json!(gamma);
            }
            let what = |part: &str| format!("p_u {p_uniform}, gamma {gamma}: {part}");
            let get = |part: &str| golden.get(&format!("p{i}.g{j}.{part}.f64"));
            let close = |part: &str, got: &Tensor| {
                let want = get(part);
                assert_close(&what(part), &(got / &want), &want.ones_like(), 1e-9, true);
            };
            let model = network.build(&registry, Kind::Double);
            let lent = Denoiser::new(&model);
            let alpha_b = lent.sigma(&t_b).expect("sigma").neg().exp();
            let rate_b = lent.dsigma(&t_b).expect("dsigma");
            close("alpha", &alpha_b);
            close("alpha_ratio", &-&rate_b);
            let mix = lent.mixing(&alpha_b).expect("mixing");
            let every = Tensor::arange(12, place).repeat([rows, 1]);
            assert_close(&what("b"), &mix.at(&every, Some(11)), &get("beta_pi"), 1e-9, true);
            let q_bl =
                double(&z_bl.eq_tensor(&x0_bl)) * alpha_b.unsqueeze(1) + mix.at(&z_bl, Some(11));
            let arrival_bl = lent.arrival(&alpha_b).expect("arrival").at(&z_bl, Some(11));
            close("elbo_w", &(arrival_bl * rate_b.unsqueeze(1) / q_bl));
            let fixed = Fixed::new(&model).logits(&logits).drawn(&z_bl);
            let loss = |mode: &str| {
                let mut options = network.method.clone();
                options["loss_weight"] = json!(mode);
                let choice = Choice { name: "interpolating".into(), options };
                let facts = network.facts(Kind::Double);
                let method = registry.parameterization(&choice, &facts).expect("the method");
                method.objective(&fixed, &Batch::new(&x0_bl, &t_b)).expect("an objective").loss_bl
            };
            // A loss is its weight times what all of them share.
            let shared = loss("none") / get("elbo_w");
            for mode in ["clip", "dynamic"] {
                close(&format!("w.{mode}"), &(loss(mode) / &shared));
            }
        }
    }
}
