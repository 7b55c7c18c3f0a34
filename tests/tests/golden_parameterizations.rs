//! Golden cases d: what each parameterization makes of given logits.

use maskdiff::model::Choice;
use maskdiff_plugin_api::{Context, Model, Result};
use maskdiff_tests::{Tensors, assert_close, golden_case, registry};
use serde_json::json;
use tch::{Device, Kind, Tensor};

/// A network that answers given logits at every time.
struct Given {
    logits_nv: Tensor,
    sigma_b: Tensor,
    mask_id: i64,
}

fn unused<T>() -> Result<T> {
    panic!("a parameterization's log_x0 and score ask only for sigma, hidden and logits")
}

impl Model for Given {
    fn vocab_size(&self) -> i64 {
        self.logits_nv.size()[1]
    }
    fn mask_id(&self) -> Option<i64> {
        Some(self.mask_id)
    }
    fn time_conditioning(&self) -> bool {
        true
    }
    fn device(&self) -> Device {
        Device::Cpu
    }
    fn sigma(&self, _t: &Tensor) -> Result<Tensor> {
        Ok(self.sigma_b.shallow_clone())
    }
    fn dsigma(&self, _t: &Tensor) -> Result<Tensor> {
        unused()
    }
    fn time_of_alpha(&self, _alpha: &Tensor) -> Result<Tensor> {
        unused()
    }
    fn sigma_range(&self) -> Result<(f64, f64)> {
        unused()
    }
    fn importance(&self, _t: &Tensor) -> Result<Tensor> {
        unused()
    }
    fn corrupt(&self, _x0_bl: &Tensor, _alpha_b: &Tensor) -> Result<Tensor> {
        unused()
    }
    fn posterior(&self, _xt: &Tensor, _t: f64, _s: f64, _p: &Tensor) -> Result<Tensor> {
        unused()
    }
    fn hidden(&self, xt_bl: &Tensor, _sigma_b: &Tensor) -> Result<Tensor> {
        let [batch, length] = xt_bl.size()[..] else { panic!("xt_bl {:?}", xt_bl.size()) };
        Ok(self.logits_nv.view([batch, length, -1]))
    }
    fn extend(&self, _x_bl: &Tensor, _cache: Vec<Tensor>) -> Result<(Tensor, Vec<Tensor>)> {
        unused()
    }
    fn logits(&self, hidden_nd: &Tensor) -> Result<Tensor> {
        Ok(hidden_nd.shallow_clone())
    }
    fn weighted_nll(
        &self,
        _hidden_nd: &Tensor,
        _target_n: &Tensor,
        _weight_n: &Tensor,
        _banned: Option<i64>,
    ) -> Result<Tensor> {
        unused()
    }
    fn log_x0(&self, _xt_bl: &Tensor, _t_b: &Tensor, _rows_n: &Tensor) -> Result<Tensor> {
        unused()
    }
    fn score(&self, _xt_bl: &Tensor, _t_b: &Tensor, _rows_n: &Tensor) -> Result<Tensor> {
        unused()
    }
    fn progress(&self, _done: i64, _total: i64, _xt_bl: &Tensor) -> Result<()> {
        unused()
    }
}

/// The golden files write -1e6 and less for minus infinity, and exp of it for 0.
fn finite(log_p: &Tensor) -> Tensor {
    log_p.clamp_min(-1e6).where_self(&log_p.gt(-9e5), &Tensor::from(-1e6))
}

fn check(folder: &str) {
    let Some(case) = golden_case(folder) else { return };
    let registry = registry();
    let golden = Tensors::golden(&format!("{folder}/param.safetensors"));
    let mask_id = case["mask_index"].as_i64().expect("mask_index");
    for (kind, suffix, tolerance) in [(Kind::Float, "", 1e-4), (Kind::Double, ".f64", 1e-9)] {
        for (name, part, options) in [
            ("subs", "subs", json!({})),
            ("d3pm", "d3pm", json!({ "T": 1000 })),
            ("d3pm", "d3pm_subs_masking", json!({ "T": 1000, "subs_masking": true })),
            ("sedd", "sedd", json!({})),
        ] {
            let xt_bl = golden.get("xt");
            let given = Given {
                logits_nv: golden.get("logits").to_kind(kind).flatten(0, 1),
                sigma_b: golden.get("sigma").to_kind(Kind::Double),
                mask_id,
            };
            let facts = Context {
                vocab_size: given.vocab_size(),
                mask_id: Some(mask_id),
                length: xt_bl.size()[1],
                time_conditioning: true,
                kind,
                cuda: None,
            };
            let choice = Choice { name: name.into(), options };
            let method = registry.parameterization(&choice, &facts).expect(name);
            let rows_n = Tensor::arange(xt_bl.numel() as i64, (Kind::Int64, Device::Cpu));
            let t_b = Tensor::full([xt_bl.size()[0]], 0.5, (Kind::Double, Device::Cpu));
            if name != "sedd" {
                let want = golden.get(&format!("{part}{suffix}"));
                let got = method.log_x0(&given, &xt_bl, &t_b, &rows_n).expect("log_x0");
                let what = format!("{folder}: {part}{suffix}");
                assert_close(&what, &finite(&got.view_as(&want)), &finite(&want), tolerance, true);
            }
            if let Some(want) = golden.find(&format!("{part}_score{suffix}")) {
                let got = method.score(&given, &xt_bl, &t_b, &rows_n).expect("score");
                let what = format!("{folder}: score of {part}{suffix}");
                assert_close(&what, &got.view_as(&want), &want, tolerance, true);
            }
        }
    }
}

#[test]
fn golden_mask_is_the_last_token() {
    check("d_param_mask_last");
}

#[test]
fn golden_mask_is_inside_the_vocabulary() {
    check("d_param_mask_inside");
}
