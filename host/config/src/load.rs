//! figment merges, later wins: defaults in code, `configs/config.toml`, in the original's form its defaults, one file for each chosen
//! group, what goes with the chosen parameterization, the stored configuration of a checkpoint, `experiment=NAME`, `--config FILE`,
//! environment, command line.

mod builder;
mod gather;
mod text;

use std::path::PathBuf;

use maskdiff_base::error::{Error, Result};
use maskdiff_base::text::plain_types;
use serde::de::DeserializeOwned;

use super::place::Layers;
use super::{Config, Form, check, derived, groups, interpolation};
use gather::{Gathered, Origin, gathered};

/// What the command line says about the configuration.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// `KEY=VALUE` in order.
    pub overrides: Vec<String>,
    /// `--config FILE`.
    pub file: Option<PathBuf>,
    /// Configuration stored with a checkpoint, its name and its text: what it was trained with is the default for using it.
    pub stored: Option<(String, String)>,
    /// The stored configuration is of another program: its options that no chosen component has are dropped.
    pub foreign: bool,
    /// The form of the command line: in the original's, what nobody says is as there.
    pub form: Form,
}

/// Resolves the configuration; everything that can be known to be wrong without plugins is an error here.
pub fn load(request: &Request) -> Result<Config> {
    resolve(request, None)
}

/// The same, with the configuration of another model (its name and its text) as the layer above the built-in defaults.
pub fn load_upon(request: &Request, basis: &(String, String)) -> Result<Config> {
    resolve(request, Some(basis))
}

fn resolve(request: &Request, basis: Option<&(String, String)>) -> Result<Config> {
    let layers = |words: &[String]| {
        let request = Request { overrides: words.to_vec(), ..request.clone() };
        layers(gathered(&request, basis)?, &request).map(|(layers, _)| layers)
    };
    let overrides = interpolation::settled(&request.overrides, request.form, layers)?;
    let request = Request { overrides, ..request.clone() };
    finish(gathered(&request, basis)?, &request)
}

/// The layers put together, with what follows from them.
fn layers(gathered: Gathered, request: &Request) -> Result<(Layers, Origin)> {
    let Gathered { builder, raw, origin } = gathered;
    // The choice of group files has been followed; it is no value of its own.
    let mut layers = Layers::new(builder.layers, builder.texts, raw)
        .map_err(|e| Error::config(e.to_string(), ""))?;
    derived::fill(&mut layers, request.form)?;
    Ok((layers, origin))
}

fn finish(gathered: Gathered, request: &Request) -> Result<Config> {
    let (layers, Origin { own_file, stored, basis }) = layers(gathered, request)?;
    check::keys(&layers)?;
    check::empty(&layers, stored.as_deref())?;
    check::finite(&layers)?;
    check::numbers(&layers)?;
    check::types(&layers)?;
    check::words(&layers)?;
    let top: groups::Top = part(&layers, "")?;
    let theirs = stored.clone().or_else(|| basis.clone());
    let config = Config {
        top,
        data: part(&layers, "data")?,
        model: part(&layers, "model")?,
        noise: part(&layers, "noise")?,
        training: part(&layers, "training")?,
        sampling: part(&layers, "sampling")?,
        loader: part(&layers, "loader")?,
        optim: part(&layers, "optim")?,
        lr_scheduler: part(&layers, "lr_scheduler")?,
        trainer: part(&layers, "trainer")?,
        checkpointing: part(&layers, "checkpointing")?,
        eval: part(&layers, "eval")?,
        track: part(&layers, "track")?,
        wandb: part(&layers, "wandb")?,
        alert: part(&layers, "alert")?,
        run: part(&layers, "run")?,
        plugins: part(&layers, "plugins")?,
        beside: None,
        own_file,
        stored: stored.iter().cloned().chain(basis.clone()).collect(),
        foreign: theirs.filter(|_| request.foreign),
        layers,
    };
    check::ranges(&config)?;
    Ok(config)
}

/// One typed group; a wrong type names the key, its source and what was expected.
fn part<T: DeserializeOwned>(layers: &Layers, group: &str) -> Result<T> {
    let figment = layers.figment();
    let extracted = if group.is_empty() { figment.extract() } else { figment.extract_inner(group) };
    extracted.map_err(|e: figment::Error| {
        // figment gives the path inside the group and the group in no order to rely on.
        let inner: Vec<&str> = e.path.iter().map(String::as_str).filter(|p| *p != group).collect();
        let prefix = if group.is_empty() { vec![] } else { vec![group] };
        let key = [prefix, inner].concat().join(".");
        let message = format!("`{key}`: {}", plain_types(&e.kind.to_string()));
        layers.error(&key, &message, "`maskdiff config` shows every key with its value and source")
    })
}

#[cfg(test)]
mod tests {
    use maskdiff_base::error::Kind;

    use super::builder::METHOD;
    use super::*;
    use crate::files::names;
    use crate::words::CHOSEN;

    fn resolve(words: &[&str]) -> Result<Config> {
        let overrides = words.iter().map(ToString::to_string).collect();
        load(&Request { overrides, ..Request::default() })
    }

    fn refusal(words: &[&str]) -> String {
        let error = resolve(words).expect_err("a refusal");
        let Error { kind: Kind::Config, message, hint, .. } = &error else { panic!("{error:?}") };
        format!("{message} | {}", hint.clone().unwrap_or_default())
    }

    #[test]
    fn the_command_line_wins_and_says_so() {
        let config = resolve(&["optim.lr=1e-2", "T=1000", "seed=7", "noise.type=cosine"]).unwrap();
        assert_eq!((config.optim.lr, config.top.seed), (1e-2, 7));
        assert_eq!(config.noise.kind, "cosine");
        assert_eq!(config.layers.options("")["T"], 1000);
        assert_eq!(config.layers.source("optim.lr"), "command line");
        assert_eq!(config.layers.source("optim.beta1"), "default");
    }

    #[test]
    fn a_method_brings_what_goes_with_it() {
        let methods = names(METHOD);
        assert!(methods.len() >= 3, "{methods:?}");
        for method in methods {
            let word = format!("{METHOD}={method}");
            let config = resolve(&[&word]).unwrap();
            let brought = format!("configs/{METHOD}/{method}.toml");
            // What draws no text brings no sampler.
            let key = ["sampling.predictor", "sampling.num_sample_log"];
            let draws = config.sampling.num_sample_log > 0;
            assert_eq!(config.layers.source(key[usize::from(!draws)]), brought);
            // Whatever is said wins.
            let config = resolve(&[&word, "sampling.predictor=mine"]).unwrap();
            assert_eq!(config.sampling.predictor, "mine");
            let folder = tempfile::tempdir().unwrap();
            let file = folder.path().join("own.toml");
            let text = format!("{METHOD} = '{method}'\n[sampling]\npredictor = 'mine'");
            std::fs::write(&file, text).unwrap();
            let request = Request { file: Some(file), ..Request::default() };
            assert_eq!(load(&request).unwrap().sampling.predictor, "mine");
            // A checkpoint knows what it was trained with.
            let stored =
                ("x".to_string(), format!("{METHOD} = '{method}'\n[sampling]\npredictor = 'y'"));
            let request = Request { stored: Some(stored), ..Request::default() };
            assert_eq!(load(&request).unwrap().sampling.predictor, "y");
        }
    }

    #[test]
    fn every_shipped_file_resolves() {
        for group in CHOSEN.iter().chain(&["experiment"]) {
            for name in names(group) {
                let word = format!("{group}={name}");
                resolve(&[&word]).unwrap_or_else(|e| panic!("{word}: {e}"));
            }
        }
    }

    #[test]
    fn mistakes_name_the_key_and_the_nearest_right_one() {
        let cases: &[(&[&str], &str)] = &[
            (
                &["optim.lrr=1"],
                "unknown key `optim.lrr` (from command line) | did you mean `optim.lr`?",
            ),
            (&["model=tinny"], "there is no `model=tinny` | did you mean `model=tiny`?"),
            (&["optim.lr=fast"], "`optim.lr` is a number, got the text `fast` (from command line)"),
            (
                &["training.lora.rnk=4"],
                "`training.lora.rnk` (from command line) | did you mean `training.lora.rank`?",
            ),
            (&["training.lora=4"], "`training.lora` has no value of its own"),
            (&["training.lora.by=netwrk"], "did you mean `training.lora.by=network`?"),
            (&["training.lora.dropout=2"], "`training.lora.dropout` must lie in [0, 1), got 2"),
            (&["optim.lr.x=2"], "`optim.lr` is a number, and holds no `optim.lr.x`"),
            (&["wandb.tags=a,b"], "`wandb.tags` is a list of texts, got the text `a,b`"),
            (
                &["trainer.max_steps=1.5"],
                "`trainer.max_steps` is a whole number, got the number 1.5",
            ),
            (&["trainer.tf32=yes"], "`trainer.tf32` is `true` or `false`, got the text `yes`"),
            (&["seed=1e19"], "`seed` must be below 2^63, got 1e19"),
            (&["seed=9223372036854775808"], "`seed` must be below 2^63, got 2^63"),
            (&["sampling.seed=1e19"], "`sampling.seed` must be below 2^63, got 1e19"),
            (&["seed=-1"], "`seed` must be at least 0, got -1"),
            (&["optim"], "`optim` is not KEY=VALUE"),
            (&["trainer=big"], "`trainer` is a group"),
            (&["loader.batch_size=5"], "must divide a rank's share of `loader.global_batch_size`"),
            (&["training.ema=1.5"], "`training.ema` must lie in [0, 1), got 1.5"),
        ];
        for (words, expected) in cases {
            let said = refusal(words);
            assert!(said.contains(expected), "{words:?} said: {said}");
        }
        // The largest that a float of 64 bits holds exactly below the limit.
        let largest = 9_223_372_036_854_774_784;
        let config = resolve(&["wandb.tags=solo", &format!("seed={largest}")]).unwrap();
        assert_eq!((&config.wandb.tags[..], config.top.seed), (&["solo".to_string()][..], largest));
        assert_eq!(resolve(&["seed=9e18"]).unwrap().top.seed, 9_000_000_000_000_000_000);
    }
}
