//! Errors of components and of libtorch as errors of the host.

use std::fmt;

use maskdiff_base::error::{Error, Kind};
use maskdiff_base::memory;
use maskdiff_config::kind::ComponentKind;
use maskdiff_plugin_api::{Kind as Said, PluginError};

/// An error that a component returned.
#[derive(Debug)]
pub struct ComponentError {
    /// Kind and name, as in ``sampler `NAME` ``.
    pub component: String,
    /// The component's own error.
    pub error: PluginError,
}

impl fmt::Display for ComponentError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { component, error } = self;
        write!(f, "{component}: {error}")?;
        if error.location.is_empty() { Ok(()) } else { write!(f, " ({})", error.location) }
    }
}

impl std::error::Error for ComponentError {}

/// An error that the component of a kind and a name returned: its own, or that of another one that it called.
pub fn error(kind: ComponentKind, name: &str, mut error: PluginError) -> Error {
    let component = error.take_culprit().unwrap_or_else(|| format!("{kind} `{name}`"));
    if error.kind == Said::Memory {
        return memory::error(&component, &error.to_string());
    }
    let code = match error.kind {
        Said::Config | Said::Unsupported => 2,
        Said::Numeric => 4,
        Said::Interrupted => 130,
        Said::Panic => 3,
        _ => 5,
    };
    let hint = match error.hint.as_str() {
        "" => "`maskdiff plugins show NAME` lists a component's options and what it needs",
        hint => hint,
    };
    let hint = hint.to_string();
    let said = ComponentError { component, error };
    Error::new(Kind::Component(code), said.to_string(), hint).because(said)
}

/// What a component returned, where an error comes from one.
pub fn said(error: &Error) -> Option<&ComponentError> {
    error.cause()
}

/// An error of libtorch.
pub fn torch(error: impl fmt::Display) -> Error {
    let text = error.to_string();
    if memory::speaks_of_memory(&text) {
        return memory::error("", &text);
    }
    // The rest is where in libtorch it was raised.
    let end = text.find("\nException raised").unwrap_or(text.len());
    Error::new(Kind::Torch, format!("libtorch failed: {}", text[..end].trim_end()), "")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The lowest layer of the host knows no contract of plugins, so the words stand in both.
    #[test]
    fn host_and_plugins_recognise_the_same_words_for_memory() {
        for said in [
            "DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes",
            "Cannot allocate memory (os error 12)",
            "DefaultCPUAllocator: not enough memory",
            "CUDA out of memory. Tried to allocate 20.00 GiB",
            "CUDA_ERROR_OUT_OF_MEMORY",
            "std::bad_alloc",
            "CUBLAS_STATUS_ALLOC_FAILED",
            "NCCL_ALLOCATION_FAILED",
            "numpy: Unable to allocate 8 GiB",
            "MemoryError",
            "memory allocation of 8 bytes failed",
            "Storage size calculation overflowed with sizes=[9]",
            "capacity overflow",
            "sizes differ",
        ] {
            let ours = memory::speaks_of_memory(said);
            assert_eq!(ours, maskdiff_plugin_api::speaks_of_memory(said), "{said}");
            assert_eq!(ours, said != "sizes differ", "{said}");
        }
    }
}
