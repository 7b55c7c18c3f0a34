//! Opens plugin files in the host: older and newer ones, each on its own.
//!
//! abi_stable's own loader accepts only plugins at least as new as the host and caches the first one for
//! ever. This one compares the older side's layout with the newer side's, with a fresh type map for each file.

use std::path::{Path, PathBuf};

use abi_stable::StableAbi;
use abi_stable::abi_stability::abi_checking::{
    AbiInstabilityErrors, CheckingGlobals, check_layout_compatibility_with_globals,
};
use abi_stable::library::{AbiHeaderRef, LibraryError, RootModule, abi_header_from_path};
use abi_stable::prefix_type::PrefixTypeTrait;
use abi_stable::std_types::RStr;
use tracing::Level;

use super::adapters::plain;
use super::calls::within;
use super::elf;
use super::forward::{HostApi, level_of};
use super::handles::{Method, Network, Noise, Process, Walker};
use super::module::{Module_Ref, PluginInfo};
use super::{API_VERSION, TORCH_VERSION, torch_address};
use crate::{Context, Result};

/// Why a file was not accepted as a plugin. Each prints as one sentence; [`LoadError::hint`] says what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LoadError {
    /// The file cannot be opened as a library, or is not one of ours.
    NotAPlugin { path: PathBuf, why: String },
    /// A part of the file is missing.
    Damaged { path: PathBuf, why: String },
    /// Built against another major version of the contract.
    OtherApi { path: PathBuf, built: String },
    /// The same version, but another layout: a changed copy of the contract.
    OtherLayout { path: PathBuf, summary: String, report: String },
    /// Built against, or running over, another libtorch.
    OtherTorch { path: PathBuf, built: String },
}

impl LoadError {
    /// What the user can do.
    pub fn hint(&self) -> String {
        match self {
            Self::NotAPlugin { .. } => {
                "a plugin is a Rust cdylib that calls `export_plugin!()`; check the path".into()
            }
            Self::Damaged { .. } => {
                "copy or build it again; a full disk or a copy that broke leaves such a file".into()
            }
            _ => "build the plugin again against this host's plugin-api and libtorch \
                  (`cargo build` in the plugin's folder)"
                .into(),
        }
    }

    /// The full layout report, for the log file.
    pub fn report(&self) -> Option<&str> {
        match self {
            Self::OtherLayout { report, .. } => Some(report),
            _ => None,
        }
    }
}

impl std::fmt::Display for LoadError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NotAPlugin { path, why } => {
                write!(f, "`{}` is not a maskdiff plugin: {why}", path.display())
            }
            Self::Damaged { path, why } => write!(f, "`{}` is damaged: {why}", path.display()),
            Self::OtherApi { path, built } => write!(
                f,
                "`{}` was built against plugin-api {built}, this host has {API_VERSION}",
                path.display()
            ),
            Self::OtherLayout { path, summary, .. } => write!(
                f,
                "`{}` was built against a changed plugin-api ({summary}), this host has {API_VERSION}",
                path.display()
            ),
            Self::OtherTorch { path, built } => write!(
                f,
                "`{}` was built against libtorch {built}, this host runs over {TORCH_VERSION}",
                path.display()
            ),
        }
    }
}

impl std::error::Error for LoadError {}

/// An open plugin. Libraries are never closed: objects and code pointers live in them.
pub struct Plugin {
    /// The file.
    pub path: PathBuf,
    /// What it says of itself.
    pub info: PluginInfo,
    module: Module_Ref,
}

impl std::fmt::Debug for Plugin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Plugin({} {} from {})", self.info.name, self.info.version, self.path.display())
    }
}

impl Plugin {
    /// Opens a plugin file, checks that it fits this host, and takes over its log.
    pub fn open(path: &Path) -> std::result::Result<Self, LoadError> {
        within(&format!("plugin `{}`", path.display()), "load", || Self::opened(path))
    }

    fn opened(path: &Path) -> std::result::Result<Self, LoadError> {
        let not_a_plugin = |why: &dyn std::fmt::Display| LoadError::NotAPlugin {
            path: path.to_path_buf(),
            why: why.to_string(),
        };
        match std::fs::metadata(path) {
            Ok(it) if it.is_file() => {}
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(not_a_plugin(&e)),
            _ => return Err(not_a_plugin(&"there is no such file")),
        }
        match elf::damage(path) {
            Ok(None) => {}
            Ok(Some(why)) => return Err(LoadError::Damaged { path: path.to_path_buf(), why }),
            Err(e) => return Err(not_a_plugin(&format!("it cannot be read: {e}"))),
        }
        let header = abi_header_from_path(path).map_err(|e| not_a_plugin(&brief(&e)))?;
        let module = checked_module(path, header)?;
        let info: PluginInfo = serde_json::from_str(module.info()().as_str())
            .map_err(|e| not_a_plugin(&format!("its description is not readable ({e})")))?;
        let minor = |version: &str| version.splitn(3, '.').take(2).collect::<Vec<_>>().join(".");
        if minor(&info.torch_version) != minor(TORCH_VERSION)
            || info.torch_address != torch_address()
        {
            let built = info.torch_version.clone();
            return Err(LoadError::OtherTorch { path: path.to_path_buf(), built });
        }
        module.init()(HostApi { log_enabled, log }.leak_into_prefix());
        Ok(Self { path: path.to_path_buf(), info, module })
    }
}

macro_rules! make {
    ($(#[$doc:meta])* $method:ident, $field:ident, $handle:ident) => {
        $(#[$doc])*
        pub fn $method(&self, name: &str, config: &str, context: &Context) -> Result<$handle> {
            let told = serde_json::to_string(context)?;
            let make = || self.module.$field()(name.into(), config.into(), told.as_str().into());
            let answer = within(&format!("{} `{name}`", stringify!($method)), "new", make);
            plain(answer, |made| $handle::new(made, name, context))
        }
    };
}

impl Plugin {
    make!(
        /// Makes the named noise schedule from its options as JSON.
        noise, make_noise, Noise
    );
    make!(
        /// Makes the named forward process from its options as JSON.
        process, make_process, Process
    );
    make!(
        /// Makes the named backbone from its options as JSON.
        backbone, make_backbone, Network
    );
    make!(
        /// Makes the named parameterization from its options as JSON.
        parameterization, make_parameterization, Method
    );
    make!(
        /// Makes the named sampler from its options as JSON.
        sampler, make_sampler, Walker
    );
}

fn checked_module(path: &Path, header: AbiHeaderRef) -> std::result::Result<Module_Ref, LoadError> {
    let not_a_plugin = |why: String| LoadError::NotAPlugin { path: path.to_path_buf(), why };
    let header = header.upgrade().map_err(|e| not_a_plugin(brief(&e)))?;
    let host = <Module_Ref as StableAbi>::LAYOUT;
    let plugin = header.layout().ok_or_else(|| not_a_plugin("it carries no layout".into()))?;
    let built = header.version_strings().to_string();
    let parsed = |version: &str| -> Option<(u64, u64)> {
        let mut parts = version.trim_start_matches('v').split('.').map(str::parse);
        Some((parts.next()?.ok()?, parts.next()?.ok()?))
    };
    let (ours, theirs) = (parsed(Module_Ref::VERSION_STRINGS.version.as_str()), parsed(&built));
    let (Some(ours), Some(theirs)) = (ours, theirs) else {
        return Err(not_a_plugin(format!("its version `{built}` is not readable")));
    };
    if ours.0 != theirs.0 {
        return Err(LoadError::OtherApi { path: path.to_path_buf(), built });
    }
    // The older side is the interface that the newer side must still honour.
    let globals = CheckingGlobals::new();
    let fits = if theirs.1 < ours.1 {
        check_layout_compatibility_with_globals(plugin, host, &globals)
    } else {
        check_layout_compatibility_with_globals(host, plugin, &globals)
    };
    fits.map_err(|errors| LoadError::OtherLayout {
        path: path.to_path_buf(),
        summary: format!("{built}, {}", summary(&errors)),
        report: errors.to_string(),
    })?;
    // SAFETY: the layouts were compared just above.
    let module = unsafe { header.init_root_module_with_unchecked_layout::<Module_Ref>() };
    module.map_err(|e| not_a_plugin(brief(&e)))
}

/// The first thing that differs, out of a report of thousands of lines.
fn summary(errors: &AbiInstabilityErrors) -> String {
    let text = errors.to_string();
    let telling = |line: &&str| line.contains("Expected") || line.contains("Found");
    let lines: Vec<&str> = text.lines().map(str::trim).filter(telling).take(2).collect();
    if lines.is_empty() { "its layout differs".into() } else { lines.join(", ") }
}

/// The telling part of abi_stable's and the linker's message.
fn brief(error: &LibraryError) -> String {
    let text = error.to_string();
    let cause =
        text.lines().map(str::trim).rfind(|line| !line.is_empty() && !line.starts_with("at"));
    let cause = cause.unwrap_or("it cannot be opened");
    if cause.contains("root_bmodule_bloader") {
        return "it exports no plugin module".into();
    }
    cause.rsplit(": ").next().unwrap_or(cause).to_string()
}

extern "C" fn log_enabled(level: u32) -> bool {
    match level_of(level) {
        Level::ERROR => tracing::enabled!(target: "maskdiff_plugin", Level::ERROR),
        Level::WARN => tracing::enabled!(target: "maskdiff_plugin", Level::WARN),
        Level::INFO => tracing::enabled!(target: "maskdiff_plugin", Level::INFO),
        Level::DEBUG => tracing::enabled!(target: "maskdiff_plugin", Level::DEBUG),
        Level::TRACE => tracing::enabled!(target: "maskdiff_plugin", Level::TRACE),
    }
}

extern "C" fn log(level: u32, target: RStr<'_>, message: RStr<'_>) {
    let (from, text) = (target.as_str(), message.as_str());
    match level_of(level) {
        Level::ERROR => tracing::error!(target: "maskdiff_plugin", from, "{text}"),
        Level::WARN => tracing::warn!(target: "maskdiff_plugin", from, "{text}"),
        Level::INFO => tracing::info!(target: "maskdiff_plugin", from, "{text}"),
        Level::DEBUG => tracing::debug!(target: "maskdiff_plugin", from, "{text}"),
        Level::TRACE => tracing::trace!(target: "maskdiff_plugin", from, "{text}"),
    }
}
