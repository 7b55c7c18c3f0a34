//! Configurations of programs that grew out of the original (`duo`, `discrete-diffusion-guidance`), as the original would say them.

use serde_json::{Value, json};

/// The one method that reads the `block_size` that its program has for all.
const BLOCKS: &str = "bd3lm";

/// Their name of a method: the process, and what we call the method.
const METHODS: &[(&str, &str, &str)] = &[
    ("mdlm", "absorbing_state", "subs"),
    ("sedd", "absorbing_state", "sedd"),
    ("d3pm", "absorbing_state", "d3pm"),
    ("ar", "absorbing_state", "ar"),
    (BLOCKS, "absorbing_state", "subs"),
    ("duo", "uniform", "duo"),
    ("duo_base", "uniform", "duo"),
    ("distillation", "uniform", "duo"),
];

/// Keys of `algo` that the original has at the top.
const AT_THE_TOP: &[&str] = &["backbone", "time_conditioning", "T", "subs_masking"];

/// The configuration in the original's words; one of the original itself as it is.
pub(super) fn recast(mut config: Value) -> Value {
    if let Some(name) = config["algo"]["name"].as_str().map(ToString::to_string) {
        let known = METHODS.iter().find(|(theirs, ..)| *theirs == name);
        // Another is refused by its own name later.
        let (process, method) = known.map_or(("absorbing_state", &*name), |(_, p, m)| (*p, *m));
        (config["diffusion"], config["parameterization"]) = (json!(process), json!(method));
        for key in AT_THE_TOP {
            config[*key] = config["algo"][*key].take();
        }
        if name != BLOCKS {
            config["block_size"] = Value::Null;
        }
        if config["noise"]["type"] == "log-linear" {
            config["noise"]["type"] = json!("loglinear");
        }
    } else if is_uniform(&config) && config["parameterization"] == "d3pm" {
        config["parameterization"] = json!("udlm");
    }
    if is_uniform(&config) {
        // Their one sampler, whose ends have names.
        let sampling = config["sampling"].as_object_mut();
        if let Some(sampling) = sampling {
            sampling.remove("predictor");
            if let Some(tail) = sampling.remove("noise_removal").filter(Value::is_string) {
                sampling.insert("tail".into(), tail);
            }
        }
    }
    config
}

/// Whether its process turns tokens into any token alike, so that none is a mask.
pub(super) fn is_uniform(config: &Value) -> bool {
    config["diffusion"] == "uniform"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configurations_of_descendants_are_recast() {
        let duo = recast(json!({
            "algo": {"name": "duo_base", "backbone": "dit", "T": 0, "time_conditioning": true},
            "noise": {"type": "log-linear"},
            "sampling": {"predictor": "ancestral", "noise_removal": "greedy", "steps": 9},
        }));
        assert_eq!(
            (&duo["parameterization"], &duo["diffusion"]),
            (&json!("duo"), &json!("uniform"))
        );
        assert_eq!((&duo["backbone"], &duo["T"]), (&json!("dit"), &json!(0)));
        assert_eq!(duo["noise"]["type"], "loglinear");
        assert_eq!(duo["sampling"], json!({"tail": "greedy", "steps": 9}));
        let blocks = |name: &str| {
            let training = json!({"sampling_eps_min": 0.3, "resample": true});
            recast(json!({"algo": {"name": name}, "block_size": 16, "training": training}))
        };
        assert_eq!(blocks(BLOCKS)["block_size"], 16);
        assert_eq!(blocks(BLOCKS)["parameterization"], "subs");
        assert_eq!(blocks("mdlm")["block_size"], Value::Null);
        let udlm = recast(json!({"diffusion": "uniform", "parameterization": "d3pm"}));
        assert_eq!(udlm["parameterization"], "udlm");
        let own = json!({"diffusion": "absorbing_state", "parameterization": "d3pm"});
        assert_eq!(recast(own.clone()), own);
        assert_eq!(recast(json!({"algo": {"name": "other"}}))["parameterization"], "other");
    }
}
