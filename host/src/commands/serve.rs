//! `maskdiff serve`

use std::net::{SocketAddr, ToSocketAddrs as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use maskdiff_base::error::{Error, Result};
use maskdiff_base::files::look;
use maskdiff_base::stop::Stop;
use maskdiff_config::kind::ComponentKind;
use maskdiff_config::{Config, groups, listed, options, shelf_file};
use maskdiff_data::Tokenizer;
use maskdiff_data::chat::Template;
use maskdiff_data::sft;
use maskdiff_engine::assemble::beside::{CLASSIFIER, ENERGY, chooses};
use maskdiff_engine::checkpoint::Checkpoint;
use maskdiff_engine::distributed::World;
use maskdiff_engine::evaluate;
use maskdiff_engine::evaluate::chain::Reading;
use maskdiff_engine::plugins::Registry;
use maskdiff_engine::sample::{self, Windows};
use maskdiff_engine::{accelerator, assemble};
use maskdiff_plugin_api::capability;
use maskdiff_records::runs;
use maskdiff_serve::{Facts, Host, Key, Limits, Sampler, Settings, Settled};
use serde_json::json;

use super::frozen::{Beside, Sampled};
use super::{Common, unused};

/// Where and to whom a model is served, and within which limits.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// The address to listen at; any but one of this machine's own needs a key
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    host: String,
    /// The port to listen at; 0 takes a free one
    #[arg(long, value_name = "PORT", default_value_t = 8000)]
    port: u16,
    /// The name of the model in the API; by default that of the checkpoint's folder
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// A folder whose runs are shown at `/runs`, live while they train; may be given several times, and without a checkpoint
    #[arg(long, value_name = "FOLDER", value_hint = clap::ValueHint::DirPath)]
    runs: Vec<PathBuf>,
    /// A file with the key that clients must send; the variable MASKDIFF_API_KEY may hold it instead
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    api_key_file: Option<PathBuf>,
    /// Texts that wait or are drawn at once; a request that would be more is refused, unless no other is under way
    #[arg(long, value_name = "N", default_value_t = 256)]
    queue: u32,
    /// Texts of one request
    #[arg(long, value_name = "N", default_value_t = 128)]
    max_texts: u32,
    /// Tokens behind a prompt that a request may ask for
    #[arg(long, value_name = "N", default_value_t = 4096)]
    max_tokens: u32,
    /// Kibibytes of a request
    #[arg(long, value_name = "N", default_value_t = 1024)]
    max_body: u32,
    /// Connections at once
    #[arg(long, value_name = "N", default_value_t = 512)]
    connections: u32,
    /// Seconds for a request, from its last byte to its answer
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    timeout: u32,
    /// Seconds for a client to send its request
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    read_timeout: u32,
    /// Seconds for a client to take the next part of its answer
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    write_timeout: u32,
    /// Seconds from the first signal to the end, for requests that are under way
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    grace: u32,
}

impl Options {
    /// The address. One that other machines reach needs a key.
    fn address(&self, key: Option<&Key>) -> Result<SocketAddr> {
        let named = format!("`--host {}`", self.host);
        let mut found = (self.host.as_str(), self.port).to_socket_addrs().map_err(|e| {
            Error::config(format!("{named} is no address: {e}"), "127.0.0.1 is this machine alone")
        })?;
        let address = found.next().ok_or_else(|| {
            Error::config(format!("{named} is no address"), "127.0.0.1 is this machine alone")
        })?;
        if address.ip().is_loopback() || key.is_some() {
            return Ok(address);
        }
        Err(Error::config(
            format!("{named} can be reached by other machines, and there is no key"),
            "name a file with one: `--api-key-file FILE`; or put it into MASKDIFF_API_KEY; or leave `--host` out",
        ))
    }

    /// The key, from the file or the environment.
    fn key(&self) -> Result<Option<Key>> {
        const VARIABLE: &str = "MASKDIFF_API_KEY";
        let said = std::env::var_os(VARIABLE).filter(|said| !said.is_empty());
        let (secret, place) = match (&self.api_key_file, said) {
            (Some(_), Some(_)) => {
                let message = format!("`--api-key-file` and {VARIABLE} both give a key");
                return Err(Error::config(message, "leave one of both out"));
            }
            (None, None) => return Ok(None),
            (Some(file), None) => {
                let text = look::text(file)?.ok_or_else(|| {
                    let message = format!("there is no file `{}`", file.display());
                    Error::config(
                        message,
                        "`--api-key-file` names a file with the key in its first line",
                    )
                })?;
                (text, format!("`{}`", file.display()))
            }
            (None, Some(said)) => (said.to_string_lossy().into_owned(), VARIABLE.to_string()),
        };
        let secret = secret.lines().next().unwrap_or_default().trim();
        if !secret.chars().all(|sign| sign.is_ascii_graphic()) {
            return Err(Error::config(
                format!("the key in {place} has signs that no header can carry"),
                "use letters, digits and signs of ASCII without blanks",
            ));
        }
        if secret.len() < 8 {
            let message = format!("the key in {place} has {} characters", secret.len());
            return Err(Error::config(
                message,
                "use 8 or more, such as those of `openssl rand -hex 16`",
            ));
        }
        Ok(Some(Key::new(secret)))
    }

    fn limits(&self, batch: usize) -> Limits {
        let seconds = |seconds: u32| Duration::from_secs(u64::from(seconds.max(1)));
        Limits {
            connections: self.connections.max(1) as usize,
            body: self.max_body.max(1) as usize * 1024,
            tokens: i64::from(self.max_tokens.max(1)),
            queue: self.queue.max(1) as usize,
            texts: self.max_texts.max(1) as usize,
            batch,
            reading: seconds(self.read_timeout),
            writing: seconds(self.write_timeout),
            request: seconds(self.timeout),
            grace: Duration::from_secs(u64::from(self.grace)),
        }
    }
}

/// Serves the checkpoint until a signal.
pub fn run(common: &Common, given: &Options) -> Result<()> {
    let key = given.key()?;
    let address = given.address(key.as_ref())?;
    for folder in &given.runs {
        // A folder that is not there shows now.
        runs::find(folder)?;
    }
    let settings = |batch| {
        let limits = given.limits(batch);
        Settings { address, key, limits, runs: given.runs.clone() }
    };
    if !given.runs.is_empty() && common.config()?.eval.checkpoint_path.is_none() {
        return runs_alone(common, settings(1));
    }
    let (checkpoint, mut config, tokenizer) = common.trained()?;
    unused::refuse(common, &config, "serve")?;
    let common = &with_named_settings(common, &config)?;
    let registry = assemble::registry(&common.plugins, &config)?;
    let others = Beside::open(&mut config, &registry)?;
    let beside = config.beside.take().map(|beside| maskdiff_config::Beside {
        own_labels: true,
        several: true,
        ..beside
    });
    config.beside.clone_from(&beside);
    let choices = assemble::choices(&mut config, &registry, true)?;
    assemble::labels::check_one(&config)?;
    let device = accelerator::device(&config, &World::alone())?;
    let facts = assemble::facts(&config, &registry, tokenizer.as_ref(), device)?;
    let facts = facts.fresh(false);
    let mut model = assemble::model(&config, &registry, choices.clone(), facts)?;
    assemble::begin_texts(&model, &config, tokenizer.as_ref());
    assemble::load_weights(&model, &checkpoint, &config)?;
    let sampled = Sampled {
        common,
        checkpoint: &checkpoint,
        config: &config,
        registry: &registry,
        choices: &choices,
        tokenizer: tokenizer.as_ref(),
    };
    others.put(sampled, &mut model)?;
    let served = Served { checkpoint: &checkpoint, config: &config, registry: &registry };
    let lead = model.blocks().map_or(0, |blocks| usize::from(blocks.begins().is_some()));
    let mut known = served.facts(given, &tokenizer, lead)?;
    known.own_words = own_words(common);
    let known = Arc::new(known);
    let settle = |words: &[String]| -> Result<Settled> {
        let common = without_options(common, words);
        let mut config = common.for_checkpoint(&checkpoint, words)?;
        config.beside.clone_from(&beside);
        assemble::choices(&mut config, &registry, true)?;
        let choice = assemble::sampler_choice(&config, &registry, tokenizer.as_ref())?;
        Ok(Settled { sampler: assemble::sampler(&config, &registry, &choice, &facts)?, config })
    };
    // What is wrong with the sampler that the command line names shows now.
    drop(settle(&[])?);
    let stop = Stop::listen("requests that are under way are answered")?;
    let settings = settings(config.loader.eval_batch_size as usize);
    let reading = Reading::new(&config);
    let report = common.report();
    let name = known.name.clone();
    let hash = known.checkpoint.clone();
    let host = Host { facts: known, model, reading, settle: Box::new(settle) };
    maskdiff_serve::serve(host, settings, &stop, |address| {
        let url = format!("http://{address}");
        let line = json!({"listening": url, "model": name, "checkpoint": hash});
        report.result(&line, &format!("`{name}` is served at {url}"));
    })
}

/// Serves runs without a model.
fn runs_alone(common: &Common, settings: Settings) -> Result<()> {
    let stop = Stop::listen("the pages that are open are answered")?;
    let report = common.report();
    maskdiff_serve::serve_runs(settings, &stop, |address| {
        let url = format!("http://{address}");
        let line = json!({"listening": url, "runs": format!("{url}/runs")});
        report.result(&line, &format!("runs are shown at {url}/runs"));
    })
}

/// How settings are named that a file has.
const NAMED_SETTINGS: &str = "sampling=";

/// The command with what the file of `sampling=NAME` sets here as words, too: a request overrides some of them, and an answer says with which
/// it was drawn.
fn with_named_settings(common: &Common, config: &Config) -> Result<Common> {
    let name = common.overrides.iter().rev().find_map(|word| word.strip_prefix(NAMED_SETTINGS));
    let file = name.map(|name| shelf_file("sampling", name)).transpose()?.flatten();
    let Some((file, _)) = file else { return Ok(common.clone()) };
    let of_file = config.layers.leaves().into_iter().filter_map(|(key, value, source)| {
        let is_set = source == file && key.starts_with("sampling.");
        let text = serde_json::from_str::<String>(&value).unwrap_or(value);
        is_set.then(|| format!("{key}={text}"))
    });
    Ok(common.clone().overriding(of_file.chain(common.overrides.iter().cloned()).collect()))
}

/// The command without options of its own sampler, where a request names another one.
fn without_options(common: &Common, words: &[String]) -> Common {
    if !words.iter().any(|word| word.starts_with("sampling.predictor=")) {
        return common.clone();
    }
    let of_host = groups::keys("sampling");
    let kept = |word: &&String| {
        let option = word.strip_prefix("sampling.").and_then(|word| word.split('=').next());
        option.is_none_or(|option| of_host.contains(&option)) && !word.starts_with(NAMED_SETTINGS)
    };
    let overrides = common.overrides.iter().filter(kept).cloned().collect();
    common.clone().overriding(overrides)
}

/// Words of the command line that decide how texts are drawn.
fn own_words(common: &Common) -> Vec<String> {
    let draws = |word: &&String| {
        ["sampling.", NAMED_SETTINGS, "eval.disable_ema="].iter().any(|part| word.starts_with(part))
    };
    // These may be paths.
    const NAMED: [&str; 3] = ["sampling.predictor", CLASSIFIER, ENERGY];
    let told = |word: &String| match word.split_once('=') {
        Some((key, name)) if NAMED.contains(&key) => format!("{key}={}", without_folders(name)),
        _ => word.clone(),
    };
    common.overrides.iter().filter(draws).map(told).collect()
}

/// A name of a component as clients are told it: `NAME:FILE:CLASS` without the folders of the file.
fn without_folders(name: &str) -> String {
    let last = |part: &str| part.rsplit(['/', '\\']).next().unwrap_or_default().to_string();
    name.split(':').map(last).collect::<Vec<String>>().join(":")
}

/// What facts are gathered from.
struct Served<'a> {
    checkpoint: &'a Checkpoint,
    config: &'a Config,
    registry: &'a Registry,
}

impl Served<'_> {
    fn facts(&self, given: &Options, tokenizer: &Arc<dyn Tokenizer>, lead: usize) -> Result<Facts> {
        let (checkpoint, config) = (self.checkpoint, self.config);
        let named = config.eval.checkpoint_path.clone().unwrap_or_default();
        let name = Path::new(&named).file_name().map(|name| name.to_string_lossy().into_owned());
        let absolute = checkpoint.path.canonicalize().unwrap_or_else(|_| checkpoint.path.clone());
        let hidden = [checkpoint.path.display().to_string(), absolute.display().to_string(), named];
        let others = [&config.sampling.classifier, &config.sampling.energy];
        // A name without folders is a word that clients may know.
        let others = others.into_iter().flatten().filter(|path| path.contains('/')).cloned();
        let duel = (evaluate::order(config.eval.duel_order), config.eval.duel_tokens);
        Ok(Facts {
            name: given.name.clone().or(name).unwrap_or_else(|| "model".into()),
            checkpoint: checkpoint.hash()?,
            step: checkpoint.state.step.try_into().unwrap_or_default(),
            length: config.model.length,
            room: sample::length(config),
            blocks: config.top.block_size.is_some(),
            lead,
            tokenizer: Arc::clone(tokenizer),
            template: self.template()?,
            samplers: self.samplers(),
            predictor: without_folders(&config.sampling.predictor),
            new_tokens: config.sampling.new_tokens,
            by_duel: config.eval.likelihood == listed::Likelihood::Duel,
            duel,
            windows: config.sampling.semi_ar.then(|| Windows::new(&config.sampling)),
            labels: config.drawn_names(),
            by_classifier: config.sampling.classifier.is_some(),
            label: config.sampling.labels.first().and_then(|name| sample::class(config, name)),
            guidance: config.sampling.guidance_scale,
            guides: config.training.label_dropout > 0.0 && config.sampling.classifier.is_none(),
            no_law: self.no_law(),
            hidden: hidden.into_iter().chain(others).collect(),
            own_words: Vec::new(),
        })
    }

    /// The chat template, where there is one.
    fn template(&self) -> Result<Option<Template>> {
        let path = &self.checkpoint.path;
        let own = match look::is_folder(path)? && self.config.data.chat_template.is_none() {
            true => Template::find(path)?,
            false => None,
        };
        own.map_or_else(|| sft::template(self.config), |own| Ok(Some(own)))
    }

    /// The samplers that fit the model. One that runs code which an option names is there only where the command line chooses it.
    fn samplers(&self) -> Vec<Sampler> {
        use ComponentKind::{Backbone, Noise, Parameterization, Process};
        let (config, top) = (self.config, &self.config.top);
        let model =
            [Backbone, Process, Noise, Parameterization].map(|kind| (kind, kind.chosen(config)));
        let predictor = &self.config.sampling.predictor;
        let offers = [
            (capability::TIME_CONDITIONING, top.time_conditioning),
            (capability::ENERGY, config.sampling.energy.is_some()),
        ];
        let host: Vec<&str> =
            offers.iter().filter(|(_, is_set)| *is_set).map(|(word, _)| *word).collect();
        let components = self.registry.components();
        let fitting = components.into_iter().map(|(_, component)| component).filter(|component| {
            let runs_code = component.takes_any_option()
                || options::schema(&component.schema, "argument").is_some();
            let sampler = (ComponentKind::Sampler, component.name.as_str());
            let chosen: Vec<(ComponentKind, &str)> = model.into_iter().chain([sampler]).collect();
            component.kind == "sampler"
                && component.fault.is_empty()
                && (!runs_code || component.name == *predictor)
                && self.registry.check_needs(&chosen, &host).is_ok()
        });
        let mut all: Vec<Sampler> = fitting
            .map(|component| Sampler {
                name: component.name.clone(),
                about: component.about.clone(),
                schema: component.schema.clone(),
                defaults: component.defaults.clone(),
                any_option: component.takes_any_option(),
                revises: component.provides.iter().any(|word| word == capability::REVISES),
                chooses: chooses(component),
            })
            .collect();
        // Named with its argument, as `NAME:FILE`, it is none of the list.
        if !all.iter().any(|sampler| sampler.name == *predictor)
            && let Ok((_, component)) = self.registry.find(ComponentKind::Sampler, predictor)
        {
            all.push(Sampler {
                name: without_folders(predictor),
                about: component.about.clone(),
                schema: component.schema.clone(),
                defaults: component.defaults.clone(),
                any_option: component.takes_any_option(),
                // Nothing is known of what the code does.
                revises: true,
                chooses: chooses(component),
            });
        }
        all
    }

    /// Why tokens have no law given others, where that is so.
    fn no_law(&self) -> Option<String> {
        let needs = [capability::MASK, capability::LOG_X0, capability::CARRY_OVER];
        let chosen = [ComponentKind::Process, ComponentKind::Parameterization]
            .map(|kind| (kind, kind.chosen(self.config)));
        let lacks = self.registry.check_offered("the law of a token", &needs, &chosen).err();
        lacks.map(|error| error.in_one_line())
    }
}
