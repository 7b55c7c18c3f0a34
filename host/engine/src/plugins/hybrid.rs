//! Which components read noise that is other tokens than the mask.

use maskdiff_base::error::{Error, Result};
use maskdiff_plugin_api::abi::module::ComponentInfo;
use maskdiff_plugin_api::capability;

use super::{Registry, described};

impl Registry {
    /// Refuses a component that takes every token but the mask for data, over a process whose noise is other tokens too.
    pub(super) fn check_noise(&self, found: &[&ComponentInfo]) -> Result<()> {
        self.check_token_noise(found)?;
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

    /// Refuses a sampler that gives all tokens one noise level, over a schedule in which each has its own. The parameterization is asked
    /// by the schedule's needs.
    fn check_token_noise(&self, found: &[&ComponentInfo]) -> Result<()> {
        let has = |list: &[String]| list.iter().any(|word| word == capability::TOKEN_NOISE);
        let schedule = found.iter().find(|c| c.kind == "noise" && has(&c.needs));
        let sampler = found.iter().find(|c| c.kind == "sampler" && !has(&c.provides));
        let (Some(schedule), Some(sampler)) = (schedule, sampler) else { return Ok(()) };
        let all = self.components();
        let fit = all.iter().filter(|(_, c)| c.kind == "sampler" && has(&c.provides));
        let fit: Vec<String> = fit.map(|(_, c)| format!("`{}`", c.name)).collect();
        Err(Error::config(
            format!(
                "{} gives all tokens one noise level, and in {} each has its own",
                described(sampler),
                described(schedule)
            ),
            format!("samplers that would fit: {}", fit.join(", ")),
        ))
    }
}
