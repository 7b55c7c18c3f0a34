//! Configurations of programs that grew out of the original, as the original would say them. `configs/compat/descendants.toml` has their
//! words.

use std::collections::BTreeMap;

use maskdiff_base::error::{Error, Result};
use maskdiff_base::text::read_toml;
use maskdiff_config::shelf_file;
use serde::Deserialize;
use serde_json::{Value, json};

/// Their words and ours.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Words {
    schedules: BTreeMap<String, String>,
    methods: BTreeMap<String, Method>,
    /// Methods by another name over a process that has no mask.
    maskless: BTreeMap<String, BTreeMap<String, String>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Method {
    diffusion: String,
    parameterization: String,
    /// Whether it reads the size of blocks that stands in every configuration.
    #[serde(default)]
    blocks: bool,
    /// Schedules of its program that are ours by another name.
    #[serde(default)]
    schedules: BTreeMap<String, String>,
    /// Their networks that are ours by another name.
    #[serde(default)]
    backbones: BTreeMap<String, String>,
    /// `noise.eps` of its schedules, which its configuration does not say.
    eps: Option<f64>,
    /// Keys of `algo` that we have in `training`.
    #[serde(default)]
    training: Vec<String>,
    /// Keys of `algo` with the one value that we know.
    #[serde(default)]
    only: BTreeMap<String, Value>,
}

impl Method {
    /// Puts what `algo` says of the method where the original would have it.
    fn settle(&self, config: &mut Value) -> Result<()> {
        config["diffusion"] = json!(self.diffusion);
        config["parameterization"] = json!(self.parameterization);
        let algo = config["algo"].clone();
        if let Some((key, wanted)) = self.only.iter().find(|(key, wanted)| algo[*key] != **wanted) {
            return Err(Error::checkpoint(
                format!(
                    "its configuration has `algo.{key}={}`: another network than ours",
                    algo[key]
                ),
                format!("models with `algo.{key}={wanted}` are read"),
            ));
        }
        if let Some(ours) = algo["backbone"].as_str().and_then(|name| self.backbones.get(name)) {
            config["algo"]["backbone"] = json!(ours);
        }
        if let (Some(eps), true) = (self.eps, config["noise"]["eps"].is_null()) {
            config["noise"]["eps"] = json!(eps);
        }
        for key in self.training.iter().filter(|key| !algo[*key].is_null()) {
            config["training"][key] = algo[key].clone();
        }
        Ok(())
    }
}

/// Keys of `algo` that the original has at the top.
const AT_THE_TOP: &[&str] = &["backbone", "time_conditioning", "T", "subs_masking"];

/// Keys of `training` that only a method in blocks reads, and that stand in every configuration.
const OF_BLOCKS: &[&str] = &[
    "sampling_eps_min",
    "sampling_eps_max",
    "resample",
    "clip_search_widths",
    "clip_search_delta",
];

/// The configuration in the original's words, and whether its process has a mask; one of the original itself stays as it is.
pub(super) fn recast(config: Value) -> Result<(Value, bool)> {
    let (file, text) = shelf_file("compat", "descendants")?.unwrap_or_default();
    let words: Words = read_toml(&text, &format!("`{file}`"), "see the shipped configs/compat/")?;
    words.recast(config)
}

impl Words {
    fn recast(&self, mut config: Value) -> Result<(Value, bool)> {
        if let Some(name) = config["algo"]["name"].as_str().map(ToString::to_string) {
            match self.methods.get(&name) {
                Some(method) => method.settle(&mut config)?,
                // It is refused by its own name later.
                None => config["parameterization"] = json!(name),
            }
            for key in AT_THE_TOP {
                config[*key] = config["algo"][*key].take();
            }
            if !self.methods.get(&name).is_some_and(|method| method.blocks) {
                config["block_size"] = Value::Null;
                let training = config.get_mut("training").and_then(Value::as_object_mut);
                if let Some(training) = training {
                    training.retain(|key, _| !OF_BLOCKS.contains(&key.as_str()));
                }
            }
            if let Some(theirs) = config["noise"]["type"].as_str() {
                let own = self.methods.get(&name).and_then(|method| method.schedules.get(theirs));
                config["noise"]["type"] = match own {
                    Some(ours) => json!(ours),
                    None => json!(self.schedule(theirs)?),
                };
            }
        }
        let Some(methods) = config["diffusion"].as_str().and_then(|p| self.maskless.get(p)) else {
            return Ok((config, true));
        };
        let method = config["parameterization"].as_str();
        if let Some(ours) = method.and_then(|theirs| methods.get(theirs)) {
            config["parameterization"] = json!(ours);
        }
        // Their one sampler, whose ends have names.
        if let Some(sampling) = config.get_mut("sampling").and_then(Value::as_object_mut) {
            sampling.remove("predictor");
            if let Some(tail) = sampling.remove("noise_removal").filter(Value::is_string) {
                sampling.insert("tail".into(), tail);
            }
        }
        Ok((config, false))
    }

    /// Our name of their schedule.
    fn schedule(&self, theirs: &str) -> Result<&String> {
        self.schedules.get(theirs).ok_or_else(|| {
            let known: Vec<String> =
                self.schedules.keys().map(|name| format!("`{name}`")).collect();
            Error::checkpoint(
                format!(
                    "its configuration has `noise.type={theirs}`: a schedule of that program, which is not ours of that name"
                ),
                format!("models with {} are read", known.join(", ")),
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words() -> Words {
        toml::from_str(
            r#"
            [schedules]
            theirs = "ours"
            [methods]
            plain = { diffusion = "masks", parameterization = "method" }
            parts = { diffusion = "masks", parameterization = "method", blocks = true }
            free = { diffusion = "no_masks", parameterization = "other" }
            [methods.kin]
            diffusion = "masks"
            parameterization = "method"
            backbones = { kin_net = "net" }
            schedules = { cosine = "another" }
            eps = 1e-12
            training = ["share"]
            only = { order = true }
            [maskless.no_masks]
            old = "other"
            "#,
        )
        .unwrap()
    }

    #[test]
    fn a_kindred_method_is_read_where_its_network_is_ours() {
        let config = |order: bool| {
            json!({
                "algo": {"name": "kin", "backbone": "kin_net", "share": 0.25, "order": order},
                "training": {"ema": 0.9}, "noise": {"type": "cosine"},
            })
        };
        let (kin, _) = words().recast(config(true)).unwrap();
        assert_eq!((&kin["backbone"], &kin["parameterization"]), (&json!("net"), &json!("method")));
        assert_eq!(kin["training"], json!({"ema": 0.9, "share": 0.25}));
        assert_eq!(kin["noise"], json!({"type": "another", "eps": 1e-12}));
        let error = words().recast(config(false)).unwrap_err().to_string();
        assert!(error.contains("`algo.order=false`"), "{error}");
    }

    #[test]
    fn a_method_by_its_name_becomes_process_and_parameterization() {
        let (free, has_mask) = words()
            .recast(json!({
                "algo": {"name": "free", "backbone": "net", "T": 0, "time_conditioning": true},
                "noise": {"type": "theirs"},
                "sampling": {"predictor": "one", "noise_removal": "greedy", "steps": 9},
            }))
            .unwrap();
        assert!(!has_mask);
        assert_eq!(
            (&free["parameterization"], &free["diffusion"]),
            (&json!("other"), &json!("no_masks"))
        );
        assert_eq!((&free["backbone"], &free["T"]), (&json!("net"), &json!(0)));
        assert_eq!(free["noise"]["type"], "ours");
        assert_eq!(free["sampling"], json!({"tail": "greedy", "steps": 9}));
        let blocks = |name: &str| {
            let (config, has_mask) =
                words().recast(json!({"algo": {"name": name}, "block_size": 16})).unwrap();
            assert!(has_mask, "{name}");
            config["block_size"].clone()
        };
        assert_eq!(
            [blocks("parts"), blocks("plain"), blocks("new")],
            [json!(16), json!(null), json!(null)]
        );
        assert_eq!(
            words().recast(json!({"algo": {"name": "new"}})).unwrap().0["parameterization"],
            "new"
        );
    }

    /// Schedules of one name differ between the programs: another one would be read without a word.
    #[test]
    fn a_schedule_that_is_not_known_is_refused() {
        let theirs = json!({"algo": {"name": "plain"}, "noise": {"type": "cosine"}});
        let error = words().recast(theirs).unwrap_err().to_string();
        assert!(error.contains("`noise.type=cosine`"), "{error}");
    }

    #[test]
    fn without_a_name_the_process_decides() {
        let old = |process: &str| json!({"diffusion": process, "parameterization": "old"});
        let (free, has_mask) = words().recast(old("no_masks")).unwrap();
        assert_eq!((&free["parameterization"], has_mask), (&json!("other"), false));
        assert_eq!(words().recast(old("masks")).unwrap(), (old("masks"), true));
    }

    #[test]
    fn the_shipped_words_are_read() {
        let (config, has_mask) = recast(json!({"diffusion": "uniform"})).unwrap();
        assert_eq!((config, has_mask), (json!({"diffusion": "uniform"}), false));
    }
}
