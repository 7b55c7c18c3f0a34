//! Plugins: where they are found, and which component a name means.

use std::fs::DirEntry;
use std::path::{Path, PathBuf};

use maskdiff_base::error::{Error, Result};
use maskdiff_base::files::look;
use maskdiff_config::kind::ComponentKind;
use maskdiff_config::options;
use maskdiff_plugin_api::Context;
use maskdiff_plugin_api::abi::handles::{Method, Network, Noise, Process, Walker};
use maskdiff_plugin_api::abi::load::{LoadError, Plugin};
use maskdiff_plugin_api::abi::module::ComponentInfo;
use sha2::{Digest, Sha256};
use tch::Device;

use crate::{component, kernels};

pub use maskdiff_base::places::{Places, looks_like_plugin};
use maskdiff_base::text::plural;
use maskdiff_base::text::{hex, nearest};
use maskdiff_records::used::{Setup, UsedPlugin};

mod hybrid;
mod refuse;
mod writable;

use refuse::another_crate;
pub use refuse::{refuse_fault, refuse_hidden_options};

/// A component as the configuration asks for it: its name and its options.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// As in `dit`, or `crate:dit`.
    pub name: String,
    /// Options as a JSON object.
    pub options: serde_json::Value,
}

/// The components of a model.
#[derive(Debug, Clone)]
pub struct Choices {
    /// `backbone` and the `model` group.
    pub backbone: Choice,
    /// `diffusion` and the `process` group.
    pub process: Choice,
    /// `noise.type` and the `noise` group.
    pub noise: Choice,
    /// `parameterization` and what is left at the top and in `training`.
    pub parameterization: Choice,
}

impl Choices {
    /// The component of a kind.
    ///
    /// # Panics
    /// A kind that no model has.
    pub fn of_model(&self, kind: ComponentKind) -> &Choice {
        match kind {
            ComponentKind::Backbone => &self.backbone,
            ComponentKind::Process => &self.process,
            ComponentKind::Noise => &self.noise,
            ComponentKind::Parameterization => &self.parameterization,
            ComponentKind::Sampler => unreachable!("a model has no sampler"),
        }
    }

    /// The components of the model by kind.
    pub fn names(&self) -> [(ComponentKind, &str); 4] {
        use ComponentKind::{Backbone, Noise, Parameterization, Process};
        [
            (Backbone, &self.backbone.name),
            (Process, &self.process.name),
            (Noise, &self.noise.name),
            (Parameterization, &self.parameterization.name),
        ]
    }
}

/// The open plugins.
#[derive(Debug, Default)]
pub struct Registry {
    plugins: Vec<Plugin>,
    /// Files in folders of plugins that could not be used, and why.
    broken: Vec<String>,
}

impl Registry {
    /// Opens every plugin in `places`. A crate found twice counts where it was found first.
    pub fn open(places: &Places) -> Result<Self> {
        // From here on tensors are made.
        // Who sets glibc's own variable wants memory back at once.
        if std::env::var_os("MALLOC_MMAP_THRESHOLD_").is_none() {
            maskdiff_native::keep_memory();
        }
        let mut registry = Self::default();
        for file in &places.files {
            registry.add(file)?;
        }
        for path in places.paths.iter().chain(&places.environment) {
            if look::is_folder(path)? {
                registry.add_folder(path, look::entries(path)?)?;
            } else {
                registry.add(path)?;
            }
        }
        // Nobody has named these: one that cannot be read is told of, and done without.
        for folder in &Places::defaults() {
            registry.add_folder(folder, look::optional_entries(folder))?;
        }
        Ok(registry)
    }

    /// Opens the plugins beside this program alone.
    pub fn of_program() -> Result<Self> {
        let mut registry = Self::default();
        let program = std::env::current_exe().map_err(|e| Error::plugin(e.to_string(), ""))?;
        if let Some(folder) = program.parent() {
            registry.add_folder(folder, look::entries(folder)?)?;
        }
        Ok(registry)
    }

    fn add_folder(&mut self, folder: &Path, entries: Vec<DirEntry>) -> Result<()> {
        let mut files: Vec<PathBuf> = entries
            .into_iter()
            .map(|entry| entry.path())
            .filter(|path| looks_like_plugin(path))
            .collect();
        files.sort();
        if !files.is_empty() {
            writable::refuse_folder(folder)?;
        }
        for file in files {
            match Self::opened(&file)? {
                Ok(plugin) => self.take(&file, plugin)?,
                // A file that broke is no reason to lose the others.
                Err(e @ (LoadError::Damaged { .. } | LoadError::NotAPlugin { .. })) => {
                    tracing::warn!("{e}; it is left out ({})", e.hint());
                    self.broken.push(e.to_string());
                }
                Err(e) => return Err(unusable(&e)),
            }
        }
        Ok(())
    }

    /// A file that was asked for.
    fn add(&mut self, file: &Path) -> Result<()> {
        let plugin = Self::opened(file)?.map_err(|e| unusable(&e))?;
        self.take(file, plugin)
    }

    fn opened(file: &Path) -> Result<std::result::Result<Plugin, LoadError>> {
        if look::is_file(file)? {
            writable::refuse_file(file)?;
        }
        // A bare name would be looked for where the system's libraries are.
        let place = match file.parent() {
            Some(folder) if folder.as_os_str().is_empty() => Path::new(".").join(file),
            _ => file.to_path_buf(),
        };
        Ok(Plugin::open(&place))
    }

    fn take(&mut self, file: &Path, plugin: Plugin) -> Result<()> {
        refuse_hidden_options(&plugin)?;
        if let Some(first) = self.plugins.iter().find(|p| p.info.name == plugin.info.name) {
            let (kept, skipped) = (first.path.display(), file.display());
            let name = &plugin.info.name;
            if another_crate(first, &plugin) {
                tracing::warn!(
                    "two crates are called `{name}`: {kept} is used, {skipped} is not; give one of them another name"
                );
            } else {
                tracing::debug!("plugin `{name}` from {kept}; {skipped} is not used");
            }
            return Ok(());
        }
        let (name, version) = (&plugin.info.name, &plugin.info.version);
        tracing::debug!(file = %file.display(), "Loaded plugin {name} {version}");
        self.plugins.push(plugin);
        Ok(())
    }

    /// The open plugins, in the order they were found.
    pub fn plugins(&self) -> &[Plugin] {
        &self.plugins
    }

    /// All components with their plugin, by kind and name.
    pub fn components(&self) -> Vec<(&Plugin, &ComponentInfo)> {
        let mut all = Vec::new();
        for plugin in &self.plugins {
            all.extend(plugin.info.components.iter().map(|component| (plugin, component)));
        }
        all.sort_by(|(_, a), (_, b)| (&a.kind, &a.name).cmp(&(&b.kind, &b.name)));
        all
    }

    /// The component that `name` or `crate:name` means for a kind.
    ///
    /// A component with an option `argument` is also meant by `name:ARGUMENT`, see [`Registry::argument`].
    pub fn find(&self, kind: ComponentKind, name: &str) -> Result<(&Plugin, &ComponentInfo)> {
        let name = match self.argument(kind, name) {
            Some(argument) => &name[..name.len() - argument.len() - 1],
            None => name,
        };
        let (of_crate, bare) = name.split_once(':').map_or((None, name), |(c, n)| (Some(c), n));
        let all = self.components();
        let of_kind = || all.iter().filter(|(_, c)| c.kind == kind);
        let mut hits = of_kind().filter(|(plugin, component)| {
            component.name == bare && of_crate.is_none_or(|c| c == plugin.info.name)
        });
        let Some(&first) = hits.next() else {
            let known: Vec<&str> = of_kind().map(|(_, c)| c.name.as_str()).collect();
            let mut hint = unknown_hint(kind, name, &known);
            if let Some(broken) = self.broken.first() {
                hint = format!(
                    "{broken}: copy or build that plugin again, if it is there; else {hint}"
                );
            }
            return Err(Error::plugin(format!("there is no {kind} `{name}`"), hint));
        };
        if let Some((second, _)) = hits.next() {
            let (a, b) = (&first.0, second);
            return Err(Error::plugin(
                format!(
                    "{kind} `{bare}` is claimed by two plugins: `{}` and `{}`",
                    a.path.display(),
                    b.path.display()
                ),
                format!("say which: `{}:{bare}` or `{}:{bare}`", a.info.name, b.info.name),
            ));
        }
        Ok(first)
    }

    /// What stands behind the colon in `name:ARGUMENT`, where the named component has an option `argument`.
    pub fn argument<'n>(&self, kind: ComponentKind, name: &'n str) -> Option<&'n str> {
        let (component, argument) = name.split_once(':')?;
        let taking = self.having(kind, "argument");
        taking.iter().any(|c| c.name == component).then_some(argument)
    }

    /// The components of a kind that have an option.
    pub fn having(&self, kind: ComponentKind, option: &str) -> Vec<&ComponentInfo> {
        let all = self.components().into_iter().map(|(_, component)| component);
        all.filter(|c| c.kind == kind && options::schema(&c.schema, option).is_some()).collect()
    }

    /// Checks that every capability a chosen component needs is offered by another one or by the host.
    pub fn check_needs(&self, chosen: &[(ComponentKind, &str)], host: &[&str]) -> Result<()> {
        let found: Vec<&ComponentInfo> = chosen
            .iter()
            .map(|&(kind, name)| Ok(self.find(kind, name)?.1))
            .collect::<Result<_>>()?;
        let offered = |need: &String| {
            host.contains(&need.as_str()) || found.iter().any(|c| c.provides.contains(need))
        };
        for component in &found {
            if let Some(need) = component.needs.iter().find(|need| !offered(need)) {
                return Err(self.missing(component, need, (&found, host)));
            }
        }
        self.check_noise(&found)
    }

    /// Checks that the chosen components offer all of `needs`; `who` needs them.
    pub fn check_offered(
        &self,
        who: &str,
        needs: &[&str],
        chosen: &[(ComponentKind, &str)],
    ) -> Result<()> {
        let found: Vec<&ComponentInfo> = chosen
            .iter()
            .map(|&(kind, name)| Ok(self.find(kind, name)?.1))
            .collect::<Result<_>>()?;
        let offered = |need: &str| found.iter().any(|c| c.provides.iter().any(|p| p == need));
        let Some(need) = needs.iter().find(|need| !offered(need)) else { return Ok(()) };
        let with: Vec<String> = found.iter().map(|c| described(c)).collect();
        Err(Error::config(
            format!("{who} needs `{need}`, which {} does not offer", with.join(" with ")),
            self.giving(need),
        ))
    }

    /// A choice with the defaults of the options that it leaves out.
    pub fn whole(&self, kind: ComponentKind, choice: &Choice) -> Result<Choice> {
        let (_, component) = self.find(kind, &choice.name)?;
        let mut options = component.defaults.clone();
        if let (Some(all), Some(said)) = (options.as_object_mut(), choice.options.as_object()) {
            all.extend(said.iter().map(|(option, value)| (option.clone(), value.clone())));
        }
        Ok(Choice { name: component.name.clone(), options })
    }

    /// Whether a component in the place of that of its kind leaves nothing to be missed.
    fn would_fit(&self, other: &ComponentInfo, chosen: &[&ComponentInfo], host: &[&str]) -> bool {
        let rest = chosen.iter().copied().filter(|c| c.kind != other.kind);
        let all: Vec<&ComponentInfo> = rest.chain([other]).collect();
        let offered = |need: &String| {
            host.contains(&need.as_str()) || all.iter().any(|c| c.provides.contains(need))
        };
        all.iter().all(|c| c.needs.iter().all(offered)) && self.check_noise(&all).is_ok()
    }

    /// Who offers a capability, in words.
    fn giving(&self, need: &str) -> String {
        let all = self.components();
        let giving = all.iter().filter(|(_, c)| c.provides.iter().any(|p| p == need));
        let giving: Vec<String> = giving.map(|(_, c)| described(c)).collect();
        if giving.is_empty() {
            return "no loaded plugin offers it".into();
        }
        format!("offered by: {}", giving.join(", "))
    }

    fn missing(
        &self,
        component: &ComponentInfo,
        need: &str,
        (chosen, host): (&[&ComponentInfo], &[&str]),
    ) -> Error {
        let with: Vec<String> =
            chosen.iter().filter(|c| c.name != component.name).map(|c| described(c)).collect();
        let all = self.components();
        let fits = |c: &&ComponentInfo| self.would_fit(c, chosen, host);
        let others = all.iter().map(|(_, c)| *c).filter(|c| c.name != component.name);
        let same_kind: Vec<String> = others
            .filter(|c| c.kind == component.kind && fits(c))
            .map(|c| format!("`{}`", c.name))
            .collect();
        // One that offers it may lack something else beside these.
        let givers = all.iter().map(|(_, c)| *c).filter(|c| c.provides.iter().any(|p| p == need));
        let givers: Vec<String> = givers.filter(fits).map(described).collect();
        let mut hint = if need == maskdiff_plugin_api::capability::TIME_CONDITIONING {
            "set `time_conditioning=true`".to_string()
        } else if need == maskdiff_plugin_api::capability::TEACHER {
            "name the checkpoint to learn from: `training.teacher=CHECKPOINT`".to_string()
        } else if need == maskdiff_plugin_api::capability::ENERGY {
            "name a checkpoint that scores texts, autoregressive or of an energy: `sampling.energy=CHECKPOINT`"
                .to_string()
        } else if !givers.is_empty() {
            format!("offered by: {}", givers.join(", "))
        } else if !same_kind.is_empty() {
            String::new()
        } else {
            self.giving(need)
        };
        if !same_kind.is_empty() {
            let between = if hint.is_empty() { "" } else { "; " };
            hint +=
                &format!("{between}{} that would fit: {}", component.kind, same_kind.join(", "));
        }
        Error::config(
            format!(
                "{} needs `{need}`, which neither {} nor the host offers",
                described(component),
                with.join(" nor ")
            ),
            hint,
        )
    }
}

macro_rules! make {
    ($($(#[$doc:meta])* $method:ident, $kind:ident, $handle:ident;)+) => {
        impl Registry {$(
            $(#[$doc])*
            pub fn $method(&self, choice: &Choice, facts: &Context) -> Result<$handle> {
                let (plugin, component) = self.find(ComponentKind::$kind, &choice.name)?;
                plugin
                    .$method(&component.name, &choice.options.to_string(), facts)
                    .map(|made| made.called(&choice.name))
                    .map_err(|e| component::error(ComponentKind::$kind, &choice.name, e))
            }
        )+}
    };
}

make! {
    /// Makes a noise schedule.
    noise, Noise, Noise;
    /// Makes a forward process.
    process, Process, Process;
    /// Makes a backbone with fresh parameters.
    backbone, Backbone, Network;
    /// Makes a parameterization.
    parameterization, Parameterization, Method;
    /// Makes a sampler.
    sampler, Sampler, Walker;
}

/// The plugins that a model and a sampler use: name, version, file, SHA-256, for the run's manifest; behind them the files whose classes these
/// components are.
pub fn used(
    registry: &Registry,
    choices: &Choices,
    sampler: Option<&Choice>,
) -> Result<Vec<UsedPlugin>> {
    let of_model = choices.names().into_iter().map(|(kind, _)| (kind, choices.of_model(kind)));
    let all: Vec<(ComponentKind, &Choice)> =
        of_model.chain(sampler.map(|choice| (ComponentKind::Sampler, choice))).collect();
    let mut used: Vec<UsedPlugin> = Vec::new();
    for (kind, choice) in &all {
        let (plugin, _) = registry.find(*kind, &choice.name)?;
        if used.iter().all(|u| u.name != plugin.info.name) {
            used.push(used_plugin(plugin)?);
        }
    }
    for (_, choice) in all {
        let class = choice.options["argument"].as_str();
        let Some((name, (file, _))) = class.and_then(|c| Some((c, c.rsplit_once(':')?))) else {
            continue;
        };
        let file = PathBuf::from(file);
        if look::is_file(&file)? && used.iter().all(|u| u.name != name) {
            let (name, sha256) = (name.to_string(), hash(&file)?);
            let (version, api_version) = Default::default();
            used.push(UsedPlugin { name, version, api_version, file, sha256 });
        }
    }
    Ok(used)
}

fn hash(file: &Path) -> Result<String> {
    let bytes = std::fs::read(file).map_err(|e| Error::io("read", file, &e))?;
    Ok(hex(&Sha256::digest(&bytes)))
}

/// What the manifest says of a plugin.
fn used_plugin(plugin: &Plugin) -> Result<UsedPlugin> {
    Ok(UsedPlugin {
        name: plugin.info.name.clone(),
        version: plugin.info.version.clone(),
        api_version: plugin.info.api_version.clone(),
        file: plugin.path.clone(),
        sha256: hash(&plugin.path)?,
    })
}

/// What a run on a device is made with.
pub fn setup(plugins: &[UsedPlugin], device: Device) -> Setup<'_> {
    use maskdiff_plugin_api::abi::{API_VERSION, RUSTC, TORCH_VERSION};
    Setup {
        plugins,
        plugin_api: API_VERSION,
        libtorch: TORCH_VERSION,
        rustc: RUSTC,
        gpus: tch::Cuda::device_count(),
        threads: tch::get_num_threads(),
        kernels: kernels::used(device),
    }
}

/// Kind and name of a component, for people.
fn described(component: &ComponentInfo) -> String {
    format!("{} `{}`", component.kind, component.name)
}

fn unusable(error: &LoadError) -> Error {
    if let Some(report) = error.report() {
        tracing::debug!("{report}");
    }
    Error::plugin(error.to_string(), error.hint())
}

fn unknown_hint(kind: ComponentKind, name: &str, known: &[&str]) -> String {
    if known.is_empty() {
        return "no plugin is loaded that has one: build the shipped ones with `cargo build`, or \
                point `--plugin` or MASKDIFF_PLUGIN_PATH at yours"
            .into();
    }
    match nearest(name, known) {
        Some(near) => format!("did you mean `{near}`? (`maskdiff plugins list` shows all)"),
        None => format!("{} here: {}", plural(kind.name()), known.join(", ")),
    }
}
