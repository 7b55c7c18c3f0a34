//! `maskdiff plugins check FILE`: the contract of every component of a plugin, each in a process of its own.
//!
//! A component that panics gives an error like any other. One that kills its process or never comes back takes only that
//! process with it.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use maskdiff_base::error::{Error, Result};
use maskdiff_base::output;
use maskdiff_base::stdout::Format;
use maskdiff_config::kind::ComponentKind;
use maskdiff_config::shape::Shape;
use maskdiff_engine::plugins::refuse_hidden_options;
use maskdiff_plugin_api::abi::load::Plugin;
use maskdiff_plugin_api::abi::module::ComponentInfo;
use maskdiff_plugin_api::testkit::contracts;
use maskdiff_plugin_api::{Kind, PluginError};
use serde_json::{Value, json};

use super::{Common, class};

/// How long a component may take.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// A plugin that keeps its contract.
#[derive(Debug)]
pub struct CheckedPlugin {
    /// The crate.
    pub name: String,
    /// Where it was built, or empty.
    pub folder: String,
    /// All of its components.
    pub components: Vec<ComponentInfo>,
}

/// Checks a plugin file with default options, but for those of the overrides, which go to every component that has them;
/// `kind` picks the components of one kind. Gives the plugin's name; an error names the components that broke their
/// contract.
pub fn check(
    common: &Common,
    file: &Path,
    kind: Option<&str>,
    patience: Duration,
) -> Result<CheckedPlugin> {
    let class = class::in_file(common, file, kind)?;
    let mut options = common.overrides.clone();
    let file = match &class {
        Some(class) => {
            options.push(format!("argument={}", class.argument));
            class.plugin.as_path()
        }
        None => file,
    };
    let options = options.as_slice();
    let listed = in_child(file, None, options, patience)?;
    let listed = listed.map_err(|why| Error::plugin(why, "build it again, or ask its author"))?;
    let all: Vec<ComponentInfo> =
        serde_json::from_value(listed["components"].clone()).unwrap_or_default();
    let components: Vec<&ComponentInfo> =
        all.iter().filter(|c| kind.is_none_or(|kind| c.kind == kind)).collect();
    let components: Vec<&ComponentInfo> = components
        .into_iter()
        .filter(|c| class.as_ref().is_none_or(|class| c.name == class.component))
        .collect();
    if components.is_empty() {
        return Err(Error::plugin(
            format!(
                "`{}` has no component{}",
                file.display(),
                kind.map_or(String::new(), |k| format!(" of kind {k}"))
            ),
            "`register!(KIND Type);` beside each component makes it known",
        ));
    }
    check_options(options, &components)?;
    let mut broken = Vec::new();
    let mut results = Vec::new();
    for component in components {
        let ComponentInfo { kind, name, .. } = component;
        let start = Instant::now();
        let kept = in_child(file, Some((kind, name)), options, patience)?;
        let seconds = start.elapsed().as_secs_f64();
        let why = kept.as_ref().err();
        let left_out = kept.as_ref().map_or(Value::Null, |said| said["left_out"].clone());
        results.push(json!({
            "kind": kind, "name": name, "kept": why.is_none(), "why": why, "left_out": left_out, "seconds": seconds,
        }));
        if common.format != Format::Json {
            let verdict = why.map_or_else(|| kept_but(&left_out), |why| format!("BROKEN: {why}"));
            output::result(&format!("{kind} `{name}` {verdict} ({seconds:.1} s)"));
        }
        broken.extend(why.map(|why| format!("{kind} `{name}`: {why}")));
    }
    if common.format == Format::Json {
        output::result(
            &json!({"file": file, "plugin": listed["name"], "components": results}).to_string(),
        );
    }
    if broken.is_empty() {
        let text = |key: &str| listed[key].as_str().unwrap_or_default().to_string();
        return Ok(CheckedPlugin { name: text("name"), folder: text("folder"), components: all });
    }
    Err(Error::plugin(
        format!("`{}` breaks the contract: {}", file.display(), broken.join("; ")),
        "the rules of a kind are documented at its trait in maskdiff-plugin-api, and in `testkit::contracts`",
    ))
}

/// That a contract is kept, and what of it was not checked.
fn kept_but(left_out: &Value) -> String {
    let words: Vec<&str> =
        left_out.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    match words.is_empty() {
        true => "keeps its contract".into(),
        false => format!("keeps its contract; not checked: {}", words.join(", ")),
    }
}

/// An option that no component takes is a slip of the pen.
fn check_options(options: &[String], components: &[&ComponentInfo]) -> Result<()> {
    for word in options {
        let Some((option, _)) = word.split_once('=') else {
            return Err(Error::config(
                format!("`{word}` is not OPTION=VALUE"),
                "an option of a component, as in `steps=64`",
            ));
        };
        if !components.iter().any(|component| component.takes(option)) {
            return Err(Error::config(
                format!("no component of the plugin has an option `{option}`"),
                "`maskdiff plugins show NAME --plugin FILE` lists a component's options",
            ));
        }
    }
    Ok(())
}

/// What a child process found out: its JSON, or in words why the component did not keep its contract.
///
/// The answer comes in a file of its own: stdout and stderr are the component's, and go where nobody need read them while
/// it runs.
fn in_child(
    file: &Path,
    component: Option<(&str, &str)>,
    options: &[String],
    patience: Duration,
) -> Result<std::result::Result<Value, String>> {
    let failed = |e: std::io::Error| Error::io("run", file, &e);
    let answer = tempfile::NamedTempFile::new().map_err(failed)?;
    let words = tempfile::NamedTempFile::new().map_err(failed)?;
    let mut command = Command::new(std::env::current_exe().map_err(failed)?);
    command.args(["plugins", "check-one"]).arg(file).arg(answer.path());
    if let Some((kind, name)) = component {
        command.args([kind, name]).args(options);
    }
    // The toys are tiny: a second thread would only wait for the first.
    command.env("OMP_NUM_THREADS", "1").stdin(Stdio::null());
    // One place in the file for both, so that the last words are the last.
    let said = words.reopen().map_err(failed)?;
    command.stdout(said.try_clone().map_err(failed)?).stderr(said);
    let mut child = command.spawn().map_err(failed)?;
    let start = Instant::now();
    let status = loop {
        match child.try_wait().map_err(failed)? {
            Some(status) => break status,
            None if start.elapsed() > patience => {
                let _ = child.kill();
                let _ = child.wait();
                let limit = patience.as_secs_f64();
                return Ok(Err(format!("it did not come back within {limit} s")));
            }
            None => std::thread::sleep(Duration::from_millis(5)),
        }
    };
    let said = std::fs::read_to_string(answer.path()).map_err(failed)?;
    let said: Value = serde_json::from_str(&said).unwrap_or_default();
    if !status.success() || said.is_null() {
        let words = std::fs::read(words.path()).map_err(failed)?;
        let last = String::from_utf8_lossy(&words).trim().lines().last().map(str::to_string);
        let last = last.filter(|w| !w.is_empty()).map(|w| format!(": {w}")).unwrap_or_default();
        return Ok(Err(format!("it ended its process ({status}){last}")));
    }
    Ok(match said["broken"].as_str() {
        Some(why) => Err(why.to_string()),
        None => Ok(said),
    })
}

/// The child's part: loads the file, and checks one component or lists all; writes JSON to `answer`.
pub fn check_one(
    file: &Path,
    answer: &Path,
    component: Option<(&str, &str)>,
    options: &[String],
) -> Result<()> {
    // What a panic says is in the answer.
    std::panic::set_hook(Box::new(|_| ()));
    let opened = Plugin::open(file).map_err(|e| e.to_string()).and_then(|plugin| {
        refuse_hidden_options(&plugin).map(|()| plugin).map_err(|e| e.to_string())
    });
    let found = opened.and_then(|plugin| match component {
        None => Ok(json!(plugin.info)),
        Some((kind, name)) => {
            let found = plugin.info.components.iter().find(|c| c.kind == kind && c.name == name);
            let found = found.ok_or_else(|| format!("there is no {kind} `{name}`"))?;
            let kept = contract(&plugin, found, options).map_err(|mut e| {
                // Its name stands in front of the verdict.
                let _ = e.take_culprit();
                match e.location.as_str() {
                    // The rule's own place tells an author nothing.
                    place if place.is_empty() || place.contains("testkit/contracts.rs") => {
                        e.to_string()
                    }
                    place => format!("{e} ({place})"),
                }
            });
            kept.map(|left_out| json!({"kept": true, "left_out": left_out}))
        }
    });
    let found = found.unwrap_or_else(|why| json!({"broken": why}));
    std::fs::write(answer, found.to_string()).map_err(|e| Error::io("write", answer, &e))
}

fn contract(
    plugin: &Plugin,
    component: &ComponentInfo,
    given: &[String],
) -> maskdiff_plugin_api::Result<contracts::LeftOut> {
    let ComponentInfo { kind, name, provides, needs, defaults, schema, fault, .. } = component;
    if !fault.is_empty() {
        let mut error =
            PluginError::new(Kind::Panic, format!("its options cannot be told: {fault}"));
        error.location.clear();
        return Err(error);
    }
    let mut options = defaults.clone();
    for (key, value) in given.iter().filter_map(|word| word.split_once('=')) {
        if component.takes(key) {
            let shape = Shape::of_schema(schema, &schema["properties"][key]);
            options[key] = match serde_json::from_str(value) {
                Ok(whole @ (Value::Object(_) | Value::Array(_))) => whole,
                _ => json!(shape.read(value)),
            };
        }
    }
    let options = options.to_string();
    // One that is a class of another language claims what such a class may have.
    let claimed = if component.takes_any_option() { Vec::new() } else { words_of(provides) };
    use ComponentKind::{Backbone, Noise, Parameterization, Process};
    match ComponentKind::named(kind) {
        Some(Noise) => {
            contracts::noise(&|facts| plugin.noise(name, &options, facts), &words_of(needs))
        }
        // The word that chooses a process or a network says what it claims, in whatever language it is written.
        Some(Process) => {
            contracts::process(&|facts| plugin.process(name, &options, facts), &words_of(provides))
        }
        Some(Backbone) => contracts::backbone(
            &|facts| plugin.backbone(name, &options, facts),
            &words_of(provides),
        ),
        Some(Parameterization) => {
            let make = |facts: &_| plugin.parameterization(name, &options, facts);
            contracts::parameterization(&make, &claimed, &words_of(needs))
        }
        _ => contracts::sampler(&|facts| plugin.sampler(name, &options, facts), &words_of(needs)),
    }
}

fn words_of(list: &[String]) -> Vec<&str> {
    list.iter().map(String::as_str).collect()
}
