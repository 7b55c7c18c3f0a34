//! What a plugin file exports: one root module with the list of components and a maker for each kind.

use abi_stable::StableAbi;
use abi_stable::library::RootModule;
use abi_stable::package_version_strings;
use abi_stable::sabi_types::VersionStrings;
use abi_stable::std_types::{RStr, RString};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

pub use super::forward::HostApi_Ref;
use super::forward::install;
use super::guard::{RAnswer, answer, guarded, note_panic_place};
use super::handles::{Method, Network, Noise, Process, Walker};
use super::objects::*;
use crate::backbone::Backbone;
use crate::component::Component;
use crate::noise::NoiseSchedule;
use crate::parameterization::Parameterization;
use crate::process::ForwardProcess;
use crate::sampler::Sampler;
use crate::{Context, PluginError, Result, bail};

/// The root module. New fields go to the end.
#[repr(C)]
#[derive(StableAbi, Clone, Copy)]
#[sabi(kind(Prefix(prefix_ref = Module_Ref)))]
#[sabi(missing_field(panic))]
pub struct Module {
    /// [`PluginInfo`] as JSON.
    pub info: extern "C" fn() -> RString,
    /// Hands the host's log over; called once, before any component is made.
    pub init: extern "C" fn(HostApi_Ref),
    // The makers take a component's name, its options and the [`Context`], both as JSON. Written out,
    // because abi_stable sees no lifetimes through a type alias.
    pub make_noise:
        extern "C" fn(name: RStr<'_>, config: RStr<'_>, context: RStr<'_>) -> RAnswer<NoiseBox>,
    pub make_process:
        extern "C" fn(name: RStr<'_>, config: RStr<'_>, context: RStr<'_>) -> RAnswer<ProcessBox>,
    pub make_backbone:
        extern "C" fn(name: RStr<'_>, config: RStr<'_>, context: RStr<'_>) -> RAnswer<BackboneBox>,
    pub make_parameterization: extern "C" fn(
        name: RStr<'_>,
        config: RStr<'_>,
        context: RStr<'_>,
    ) -> RAnswer<ParameterizationBox>,
    #[sabi(last_prefix_field)]
    pub make_sampler:
        extern "C" fn(name: RStr<'_>, config: RStr<'_>, context: RStr<'_>) -> RAnswer<SamplerBox>,
}

impl RootModule for Module_Ref {
    abi_stable::declare_root_module_statics! {Module_Ref}
    const BASE_NAME: &'static str = "maskdiff_plugin";
    const NAME: &'static str = "maskdiff_plugin";
    const VERSION_STRINGS: VersionStrings = package_version_strings!();
}

/// What a plugin says of itself.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PluginInfo {
    /// The crate's name.
    pub name: String,
    /// The crate's version.
    pub version: String,
    /// Version of the contract it was built against.
    pub api_version: String,
    /// Version of libtorch it was built against.
    pub torch_version: String,
    /// Build id of that libtorch, or empty.
    pub torch_build_id: String,
    /// Where its `at::globalContext` is, see [`super::torch_address`].
    pub torch_address: usize,
    /// The compiler that built it.
    pub rustc: String,
    /// The folder of its crate where it was built, or empty.
    #[serde(default)]
    pub folder: String,
    /// Its components, sorted by kind and name.
    pub components: Vec<ComponentInfo>,
}

/// What the host knows of a component without making one.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ComponentInfo {
    /// `noise`, `process`, `backbone`, `parameterization` or `sampler`.
    pub kind: String,
    /// The word in the configuration.
    pub name: String,
    /// One line.
    pub about: String,
    /// Capabilities offered.
    pub provides: Vec<String>,
    /// Capabilities needed.
    pub needs: Vec<String>,
    /// JSON Schema of its options.
    pub schema: Value,
    /// Its default options.
    pub defaults: Value,
    /// Why its options cannot be told, or empty: it is listed, but not made.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub fault: String,
}

impl ComponentInfo {
    /// Whether it takes any option of its group and checks them itself.
    pub fn takes_any_option(&self) -> bool {
        self.schema["additionalProperties"] == Value::Bool(true)
    }

    /// Whether it has an option of that name, or takes any.
    pub fn takes(&self, option: &str) -> bool {
        self.takes_any_option() || self.schema["properties"].get(option).is_some()
    }
}

/// A component as `register!` notes it in the plugin's own registry.
pub struct Entry {
    kind: &'static str,
    name: &'static str,
    describe: fn(&str) -> ComponentInfo,
    make: Maker,
}

enum Maker {
    Noise(fn(&str, &str) -> Result<NoiseBox>),
    Process(fn(&str, &str) -> Result<ProcessBox>),
    Backbone(fn(&str, &str) -> Result<BackboneBox>),
    Parameterization(fn(&str, &str) -> Result<ParameterizationBox>),
    Sampler(fn(&str, &str) -> Result<SamplerBox>),
}

inventory::collect!(Entry);

impl Entry {
    const fn of<T: Component>(kind: &'static str, make: Maker) -> Self {
        Self { kind, name: T::NAME, describe: describe::<T>, make }
    }

    pub const fn noise<T: NoiseSchedule>() -> Self {
        Self::of::<T>("noise", Maker::Noise(make_noise::<T>))
    }

    pub const fn process<T: ForwardProcess>() -> Self {
        Self::of::<T>("process", Maker::Process(make_process::<T>))
    }

    pub const fn backbone<T: Backbone>() -> Self {
        Self::of::<T>("backbone", Maker::Backbone(make_backbone::<T>))
    }

    pub const fn parameterization<T: Parameterization>() -> Self {
        Self::of::<T>("parameterization", Maker::Parameterization(make_parameterization::<T>))
    }

    pub const fn sampler<T: Sampler>() -> Self {
        Self::of::<T>("sampler", Maker::Sampler(make_sampler::<T>))
    }
}

/// What runs of an author's code is guarded, as the host asks this of every plugin that it finds.
fn describe<T: Component>(kind: &str) -> ComponentInfo {
    let words = |list: &[&str]| list.iter().map(ToString::to_string).collect();
    let told = guarded(|| {
        let schema = schemars::schema_for!(T::Config).to_value();
        Ok((schema, serde_json::to_value(T::Config::default())?))
    });
    let (schema, defaults, fault) = match told {
        Ok((schema, defaults)) => (schema, defaults, String::new()),
        Err(error) if error.location.is_empty() => (json!({}), json!({}), error.to_string()),
        Err(error) => (json!({}), json!({}), format!("{error} ({})", error.location)),
    };
    ComponentInfo {
        kind: kind.to_string(),
        name: T::NAME.to_string(),
        about: T::ABOUT.to_string(),
        provides: words(T::PROVIDES),
        needs: words(T::NEEDS),
        schema,
        defaults,
        fault,
    }
}

/// Makes a component from JSON; a fault in the options names the option.
fn build<T: Component>(config: &str, context: &str) -> Result<T> {
    let context: Context = serde_json::from_str(context)?;
    let reader = &mut serde_json::Deserializer::from_str(config);
    let config: T::Config = serde_path_to_error::deserialize(reader).map_err(|e| {
        let path = e.path().to_string();
        let message = option_message(&e.into_inner().to_string());
        PluginError::new(crate::Kind::Config, message).at(path)
    })?;
    T::new(config, &context)
}

/// serde_json's message without the place in a text that the user never saw.
fn option_message(text: &str) -> String {
    text.rfind(" at line ").map_or(text, |end| &text[..end]).to_string()
}

macro_rules! maker {
    ($make:ident, $all:ident, $variant:ident, $bound:ident, $boxed:ident, $handle:ident) => {
        fn $make<T: $bound>(config: &str, context: &str) -> Result<$boxed> {
            Ok($handle::boxed(build::<T>(config, context)?))
        }

        pub extern "C" fn $all(
            name: RStr<'_>,
            config: RStr<'_>,
            context: RStr<'_>,
        ) -> RAnswer<$boxed> {
            let make = || {
                for entry in inventory::iter::<Entry> {
                    match entry.make {
                        Maker::$variant(make) if entry.name == name.as_str() => {
                            return make(config.as_str(), context.as_str());
                        }
                        _ => {}
                    }
                }
                bail!(Config, "this plugin has no component `{}`", name.as_str())
            };
            answer(make, |made| made)
        }
    };
}

maker!(make_noise, noise, Noise, NoiseSchedule, NoiseBox, Noise);
maker!(make_process, process, Process, ForwardProcess, ProcessBox, Process);
maker!(make_backbone, backbone, Backbone, Backbone, BackboneBox, Network);
maker!(
    make_parameterization,
    parameterization,
    Parameterization,
    Parameterization,
    ParameterizationBox,
    Method
);
maker!(make_sampler, sampler, Sampler, Sampler, SamplerBox, Walker);

/// All components; a panic of one is noted, and told by the host.
fn described() -> Vec<ComponentInfo> {
    // The plugin's own hook comes with `init`, or is there from an earlier load.
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|info| {
        let place = info.location().map(|place| format!("{}:{}", place.file(), place.line()));
        note_panic_place(place.unwrap_or_default());
    }));
    let all = inventory::iter::<Entry>.into_iter().map(|entry| (entry.describe)(entry.kind));
    let all = all.collect();
    std::panic::set_hook(hook);
    all
}

/// What `export_plugin!` calls: everything about this plugin as JSON.
pub fn info(name: &str, version: &str, folder: &str) -> RString {
    let mut components = described();
    // The order of inventory differs from build to build.
    components.sort_by(|a, b| (&a.kind, &a.name).cmp(&(&b.kind, &b.name)));
    let info = PluginInfo {
        name: name.to_string(),
        version: version.to_string(),
        api_version: super::API_VERSION.to_string(),
        torch_version: super::TORCH_VERSION.to_string(),
        torch_build_id: super::TORCH_BUILD_ID.to_string(),
        torch_address: super::torch_address(),
        rustc: super::RUSTC.to_string(),
        folder: folder.to_string(),
        components,
    };
    serde_json::to_string(&info).unwrap_or_default().into()
}

/// What `export_plugin!` calls at load.
pub fn init(host: HostApi_Ref, folder: &'static str, shown: &'static str) {
    install(host, folder, shown);
}
