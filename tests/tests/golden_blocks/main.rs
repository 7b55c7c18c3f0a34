//! Golden cases of block diffusion (BD3-LM): the two streams of the network, the cache, losses, schedules, walks.

mod losses;
mod network;
mod schedules;
mod stops;
mod validation;
mod walks;

use maskdiff_engine::model::Model;
use maskdiff_engine::model::views::Blocks;
use maskdiff_engine::plugins::Registry;
use maskdiff_plugin_api::Denoiser;
use maskdiff_tests::{Setup, Tensors};
use serde_json::{Value, json};
use tch::{Kind, Tensor};

const WEIGHTS: &str = "n_block_net/weights.safetensors";

/// A model of these cases, whose schedule masks a share t at time t and whose times are those of the original.
fn model(registry: &Registry, case: &Value, size: i64, (mask, kind): (i64, Kind)) -> Model {
    model_of(registry, case, (size, WEIGHTS), (mask, kind), &[])
}

fn model_of(
    registry: &Registry,
    case: &Value,
    (size, weights): (i64, &str),
    (mask, kind): (i64, Kind),
    overrides: &[&str],
) -> Model {
    let mut setup = Setup::new(&case["model"], &json!(overrides), mask, kind);
    setup.choices.noise.options = json!({ "eps": 1e-12 });
    setup.build_in(registry, weights, Some(Blocks::of(size)))
}

fn whole(value: &Value, key: &str) -> i64 {
    value[key].as_i64().unwrap_or_else(|| panic!("{key}"))
}

fn sizes(case: &Value) -> Vec<i64> {
    case["block_sizes"].as_array().expect("sizes").iter().filter_map(Value::as_i64).collect()
}

fn silent(x: &Tensor) -> Tensor {
    Tensor::zeros([x.size()[0]], (Kind::Double, x.device()))
}

fn logits(model: &Model, hidden: &Tensor) -> Tensor {
    let flat = Denoiser::new(model).logits(&hidden.flatten(0, 1)).expect("logits");
    flat.view([hidden.size()[0], hidden.size()[1], -1])
}

fn file(case: &Value, name: &str) -> Option<Tensors> {
    let here = case["files"].as_object().expect("files").contains_key(name);
    here.then(|| Tensors::golden(&format!("{}/{name}", case["case"].as_str().expect("case"))))
}
