//! Golden cases of DUO's curriculum.

use std::cell::RefCell;

use maskdiff_engine::plugins::Choice;
use maskdiff_plugin_api::ops::alpha_of_gamma;
use maskdiff_plugin_api::{Batch, Denoiser, Pass};
use maskdiff_tests::golden_uniform::{Network, case};
use maskdiff_tests::scripted::Scripted;
use maskdiff_tests::{Tensors, assert_close, device, registry};
use serde_json::json;
use tch::{Kind, Tensor};

use crate::{KINDS, Rows, double, tolerance};

#[test]
fn golden_uniform_noise_in_gaussian_noise() {
    let Some(manifest) = case("u_duo_transform") else { return };
    let golden = Tensors::golden("u_duo_transform/transform.safetensors");
    let gamma = golden.get("gamma");
    for size in manifest["K"].as_array().expect("K") {
        let size = size.as_i64().expect("a size");
        let (alpha, slope) = alpha_of_gamma(&gamma, size);
        let (v, others) = (size as f64, (size - 1) as f64);
        let want: Tensor = (golden.get(&format!("K{size}.pt")) * v - 1.0) / others;
        assert_close(&format!("alpha, V = {size}"), &alpha, &want, 1e-9, false);
        let want = golden.get(&format!("K{size}.grad_pt")) * (v / others);
        assert_close(&format!("its slope, V = {size}"), &slope, &want, 1e-8, false);
    }
}

/// Numbers from which the k ids follow when each is drawn among those that are left.
fn numbers_of(ids_blk: &Tensor, x0_bl: &Tensor, size: i64) -> Tensor {
    let k = ids_blk.size()[2];
    let number = |i: i64| {
        let id = ids_blk.select(-1, i);
        // Ids that are gone and lie below: the clean one, and those before it.
        let gone = (0..i).map(|j| ids_blk.select(-1, j)).chain([x0_bl.shallow_clone()]);
        let below = gone.map(|other| other.lt_tensor(&id).to_kind(Kind::Int64));
        let rank = below.fold(id.shallow_clone(), |rank, one| rank - one);
        (double(&rank) + 0.5) / (size - 1 - i) as f64
    };
    Tensor::stack(&(0..k).map(number).collect::<Vec<_>>(), -1)
}

/// The ids that Floyd's method draws from the case's integers, before the clean one takes the last place.
fn floyd(golden: &Tensors, x0_bl: &Tensor, size: i64, k: i64) -> Tensor {
    let mut ids: Vec<Tensor> = Vec::new();
    for i in 0..k {
        let drawn = golden.get(&format!("efficient.draw{}.i", 3 + i));
        let known = ids.iter().fold(drawn.zeros_like().to_kind(Kind::Bool), |known, id| {
            known.logical_or(&id.eq_tensor(&drawn))
        });
        ids.push(drawn.masked_fill(&known, size - 1 - k + i));
    }
    let ids = Tensor::stack(&ids, -1);
    &ids + ids.ge_tensor(&x0_bl.unsqueeze(-1)).to_kind(Kind::Int64)
}

/// The k-fold mixtures through the plugin: its loss at the largest entry. The original takes the clean token for the largest entry
/// wherever it is among the k; at those rows the loss follows from the case's law by the density.
#[test]
fn golden_curriculum_of_duo() {
    let Some(manifest) = case("u_duo_curriculum") else { return };
    let number = |key: &str| manifest[key].as_f64().expect("a number");
    let (size, k) = (number("vocab_size") as i64, number("top_k") as i64);
    let golden = Tensors::golden("u_duo_curriculum/curriculum.safetensors");
    let get = |name: &str| golden.get(&format!("efficient.{name}"));
    let x0_bl = golden.get("x0");
    let floyd_blk = floyd(&golden, &x0_bl, size, k);
    let registry = registry();
    for (kind, suffix) in KINDS {
        let (network, batch) = (Network::duo(), x0_bl.size()[0]);
        let model = network.build(&registry, kind);
        let options = json!({ "curriculum": {
            "steps": 10, "k": k, "tau": 10f64.powf(number("tau_log10")),
            "gamma_min": number("gamma_min"), "gamma_max": number("gamma_max"),
        } });
        let choice = Choice { name: "interpolating".into(), options };
        let method = registry.parameterization(&choice, &network.facts(kind)).expect("the method");
        let u_b = double(&get("draw0.u")) / batch as f64
            + Tensor::arange(batch, (Kind::Double, device())) / batch as f64;
        let t_b = method.draw_t(&model, &u_b.fmod(1.0)).expect("times");
        assert_close("t", &t_b, &get("t.f64"), 1e-7, false);
        let scripted = Scripted {
            inner: &model,
            step: Some(3),
            uniforms: RefCell::new(
                [double(&get("draw1.u")), numbers_of(&floyd_blk, &x0_bl, size)].into(),
            ),
            normals: RefCell::new([double(&get("draw2.n"))].into()),
        };
        let batch = Batch::new(&x0_bl, &t_b).at(3, 10);
        let objective = method.objective(&scripted, &batch).expect("an objective");
        assert!(objective.nats_bl.is_none(), "a loss over mixtures bounds nothing");
        // The network over the case's own mixtures, which gives the law there.
        let lent = Denoiser::new(&model);
        let right_bl = get("xt_right");
        let pass = Pass::new(&right_bl, &double(&get("sigma.f64")))
            .mixture(&get("ids"), &get("weights.f64").to_kind(kind));
        let hidden = lent.pass(&pass).expect("a pass").hidden;
        let law = lent.logits(&hidden.flatten(0, 1)).expect("logits").log_softmax(-1, kind);
        let law_blv = get(&format!("log_p{suffix}"));
        let bound = tolerance(kind, 2e-4);
        assert_close("log p", &law, &law_blv.flatten(0, 1), bound, true);
        // d alpha / dt over that of `Rows`, which is -1.
        let (alpha, slope) = (double(&get("alpha.f64")), double(&get("dalpha.f64")));
        let nats = |z_bl: &Tensor| {
            let rows = Rows::uniform(&x0_bl, z_bl, &alpha.expand_as(&x0_bl), size);
            rows.nats(&law_blv).view_as(&x0_bl) * -&slope
        };
        // The case takes alpha from a series, which has eight digits (`check_uniform.py` allows 1e-6).
        let bound = tolerance(kind, 3e-4).max(1e-8);
        let original = get(&format!("loss{suffix}"));
        assert_close("the original's loss", &nats(&get("xt")), &original, bound, true);
        assert_close("loss", &objective.loss_bl, &nats(&right_bl), bound, true);
        let agree = right_bl.eq_tensor(&get("xt")).to_kind(Kind::Double);
        assert!(agree.sum(Kind::Double).double_value(&[]) > 0.0, "no row is alike");
        let [ours, theirs] = [&objective.loss_bl, &original].map(|loss| double(loss) * &agree);
        assert_close("loss where the token is the same", &ours, &theirs, bound, true);
    }
}

/// The dense form: the network over whole laws, and the loss at the largest entry. The plugin keeps k entries instead, whose means its
/// own tests compare with dense draws; alpha is the nearest entry of the original's table. Its temperature falls in steps
/// (`tau.*`); ours is one for the whole curriculum.
#[test]
fn golden_dense_curriculum_of_duo() {
    let Some(manifest) = case("u_duo_curriculum") else { return };
    let number = |key: &str| manifest[key].as_f64().expect("a number");
    let size = number("vocab_size") as i64;
    let golden = Tensors::golden("u_duo_curriculum/curriculum.safetensors");
    let get = |name: &str| golden.get(&format!("simple.{name}"));
    let (x0_bl, t_b) = (golden.get("x0"), get("t.f64"));
    let (low, high) = (number("gamma_min"), number("gamma_max"));
    let gamma: Tensor = (&t_b * (high - low) + low).view([-1, 1, 1]);
    let w_blv = double(&x0_bl.one_hot(size)) * gamma.neg().sigmoid().sqrt()
        + double(&get("draw1.n")) * gamma.sigmoid().sqrt();
    assert_eq!(w_blv.argmax(-1, false), get("xt"));
    let weight_blv = (w_blv * 10f64.powf(-number("tau_log10"))).softmax(-1, Kind::Double);
    let ids = Tensor::arange(size, (Kind::Int64, device())).expand(weight_blv.size(), false);
    let (alpha, slope) = (double(&get("alpha.f64")), double(&get("dalpha.f64")));
    for (kind, suffix) in KINDS {
        let model = Network::duo().build(&registry(), kind);
        let lent = Denoiser::new(&model);
        let pass = Pass::new(&get("xt"), &double(&get("sigma.f64")))
            .mixture(&ids, &weight_blv.to_kind(kind));
        let hidden = lent.pass(&pass).expect("a pass").hidden;
        let law = lent.logits(&hidden.flatten(0, 1)).expect("logits").log_softmax(-1, kind);
        let want = get(&format!("log_p{suffix}")).flatten(0, 1);
        assert_close(&format!("log p{suffix}"), &law, &want, tolerance(kind, 2e-4), true);
        let rows = Rows::uniform(&x0_bl, &get("xt"), &alpha.expand_as(&x0_bl), size);
        let nats = rows.nats(&law).view_as(&x0_bl) * -&slope;
        let want = get(&format!("loss{suffix}"));
        assert_close(&format!("loss{suffix}"), &nats, &want, tolerance(kind, 3e-4), true);
    }
}
