//! Which components read noise that is other tokens than the mask.

use maskdiff_base::error::{Error, Result};
use maskdiff_plugin_api::abi::module::ComponentInfo;
use maskdiff_plugin_api::capability;

use super::{Registry, described};

impl Registry {
    /// Refuses a component that takes every token but the mask for data, over a process whose noise is other tokens too.
    pub(super) fn check_noise(&self, found: &[&ComponentInfo]) -> Result<()> {
        let has = |list: &[String], word: &str| list.iter().any(|w| w == word);
        let Some(process) = found.iter().find(|c| has(&c.provides, capability::HYBRID)) else {
            return Ok(());
        };
        let blind = |c: &ComponentInfo| {
            has(&c.needs, capability::MASK) && !has(&c.needs, capability::MIXING)
        };
        let Some(component) = found.iter().find(|c| blind(c)) else { return Ok(()) };
        let all = self.components();
        let fit = all
            .iter()
            .filter(|(_, c)| c.kind == component.kind && has(&c.needs, capability::MIXING));
        let fit: Vec<String> = fit.map(|(_, c)| format!("`{}`", c.name)).collect();
        Err(Error::config(
            format!(
                "{} takes every token but the mask for data, and the noise of {} is other tokens too",
                described(component),
                described(process)
            ),
            format!("{} that would fit: {}", component.kind, fit.join(", ")),
        ))
    }
}
