//! Models of the golden cases of uniform and hybrid diffusion.

use std::collections::BTreeMap;

use maskdiff_engine::model::Model;
use maskdiff_engine::plugins::{Choice, Choices, Registry};
use maskdiff_plugin_api::Context;
use serde_json::{Value, json};
use tch::{Kind, Tensor};

use crate::{Tensors, cuda, golden, skipped};

/// What the manifest of these cases says of one; `None`, with a line that says so, where this folder lacks it.
pub fn case(name: &str) -> Option<Value> {
    crate::as_golden();
    let found = std::fs::read_to_string(golden().join("u_manifest.json")).ok().and_then(|text| {
        // Python writes numbers that JSON does not have.
        let text =
            text.replace("-Infinity", "null").replace("Infinity", "null").replace("NaN", "null");
        let manifest: Value = serde_json::from_str(&text).expect("u_manifest.json is JSON");
        manifest["cases"].as_array().expect("cases").iter().find(|c| c["case"] == name).cloned()
    });
    if found.is_none() {
        skipped(&format!("golden case {name} is not in {}", golden().display()));
    }
    found
}

/// A network of a golden folder and what is around it.
#[derive(Debug, Clone)]
pub struct Network {
    /// Its file.
    pub weights: &'static str,
    /// `hidden_size`, `n_heads`, `n_blocks`, `cond_dim`, and the facts `length` and `vocab_size`.
    pub sizes: [i64; 6],
    /// The mask, where the process has one.
    pub mask: Option<i64>,
    /// Name and options of the process.
    pub process: (&'static str, Value),
    /// Name and options of the schedule.
    pub noise: (&'static str, Value),
    /// Options of the parameterization `interpolating`.
    pub method: Value,
    /// Whether it sees the noise level.
    pub time_conditioning: bool,
    /// Classes that it is told.
    pub classes: i64,
}

impl Network {
    /// That of DUO's cases: 13 tokens, none of them a mask.
    pub fn duo() -> Self {
        Self {
            weights: "u_models_duo/dit.safetensors",
            sizes: [32, 2, 2, 16, 8, 13],
            mask: None,
            process: ("uniform", json!({})),
            noise: ("loglinear", json!({})),
            method: json!({}),
            time_conditioning: true,
            classes: 0,
        }
    }

    /// The same that is told two classes.
    pub fn udlm_labels() -> Self {
        Self { weights: "u_models_ddg/dit_cond.safetensors", classes: 2, ..Self::udlm() }
    }

    /// The same over DUO's cosine.
    #[must_use]
    pub fn over_cosine(self) -> Self {
        Self { noise: ("duo_cosine", json!({})), ..self }
    }

    /// The same over masks, its last token, without a view of the time.
    #[must_use]
    pub fn over_masks(self) -> Self {
        let [.., vocab_size] = self.sizes;
        Self {
            mask: Some(vocab_size - 1),
            process: ("absorbing_state", json!({})),
            time_conditioning: false,
            ..self
        }
    }

    /// That of the cases of UDLM: 11 tokens.
    pub fn udlm() -> Self {
        Self {
            weights: "u_models_ddg/dit.safetensors",
            sizes: [32, 2, 2, 16, 6, 11],
            ..Self::duo()
        }
    }

    /// That of GIDD's cases: 12 tokens, the last of which is the mask; it sees the time.
    pub fn gidd(p_uniform: f64) -> Self {
        // The original keeps this much where there is none.
        let options = json!({ "p_uniform": p_uniform.max((-20f64).exp()) });
        Self {
            weights: "u_ckpt_gidd/hf/model.safetensors",
            sizes: [32, 2, 2, 16, 8, 12],
            mask: Some(11),
            process: ("gidd", options.clone()),
            noise: ("gidd", options),
            method: json!({ "network_input": "time", "sampling_eps": 1e-4, "sampling_end": 0.9999 }),
            time_conditioning: true,
            classes: 0,
        }
    }

    /// What its components are told.
    pub fn facts(&self, kind: Kind) -> Context {
        let [.., length, vocab_size] = self.sizes;
        let mask_id = self.mask;
        Context::new(vocab_size, length)
            .mask(mask_id)
            .time_conditioning(self.time_conditioning)
            .kind(kind)
            .classes(self.classes)
            .cuda(cuda())
    }

    /// The model with its weights.
    pub fn build(&self, registry: &Registry, kind: Kind) -> Model {
        let [hidden_size, n_heads, n_blocks, cond_dim, ..] = self.sizes;
        let named = |(name, options): &(&str, Value)| Choice {
            name: (*name).into(),
            options: options.clone(),
        };
        let options = json!({
            "hidden_size": hidden_size, "n_heads": n_heads, "n_blocks": n_blocks, "cond_dim": cond_dim, "dropout": 0.0
        });
        let choices = Choices {
            backbone: named(&("dit", options)),
            process: named(&self.process),
            noise: named(&self.noise),
            parameterization: named(&("interpolating", self.method.clone())),
        };
        let model = Model::build(registry, choices, self.facts(kind)).expect("the model builds");
        let golden: BTreeMap<String, Tensor> =
            Tensors::golden(self.weights).iter().map(|(k, v)| (k.clone(), v.copy())).collect();
        tch::no_grad(|| {
            for parameter in model.parameters() {
                match golden.get(&parameter.name) {
                    Some(value) => parameter.tensor.shallow_clone().copy_(value),
                    // GIDD stores cosines, which follow from ours.
                    None => assert_eq!(parameter.name, "rotary_emb.inv_freq"),
                }
            }
        });
        model
    }
}

/// Uniform numbers that make a process draw `z_bl` from `x0_bl` at `alpha_b`, given its noise on each token and on the mask.
pub fn uniforms(
    (x0_bl, z_bl): (&Tensor, &Tensor),
    alpha_b: &Tensor,
    (every_b, mask_b): (&Tensor, &Tensor),
    mask: Option<i64>,
) -> Tensor {
    let column = |t: &Tensor| t.to_kind(Kind::Double).unsqueeze(1);
    let (alpha, every, more) = (column(alpha_b), column(every_b), column(mask_b));
    let drawn = &more + (z_bl.to_kind(Kind::Double) + 0.5) * every;
    let kept: Tensor = (2.0 - alpha) / 2.0;
    let u_bl = kept.expand_as(&drawn).where_self(&z_bl.eq_tensor(x0_bl), &drawn);
    match mask {
        Some(mask) => (more / 2.0).expand_as(&u_bl).where_self(&z_bl.eq(mask), &u_bl),
        None => u_bl,
    }
}
