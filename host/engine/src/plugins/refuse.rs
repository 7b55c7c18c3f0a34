//! Plugins that open, and still cannot be used as they are.

use maskdiff_base::error::{Error, Result};
use maskdiff_config::groups;
use maskdiff_config::kind::ComponentKind;
use maskdiff_plugin_api::abi::load::Plugin;
use maskdiff_plugin_api::abi::module::ComponentInfo;

use super::described;

/// An option by the name of a key that the host has in the same group would never get a value.
pub fn refuse_hidden_options(plugin: &Plugin) -> Result<()> {
    let faults: Vec<String> = plugin.info.components.iter().filter_map(hidden_options).collect();
    if faults.is_empty() {
        return Ok(());
    }
    Err(Error::plugin(
        format!("`{}` is not loaded: {}", plugin.path.display(), faults.join("; ")),
        "give the options other names; what the host knows is in the `Context` that the component is told",
    ))
}

fn hidden_options(component: &ComponentInfo) -> Option<String> {
    let groups = ComponentKind::named(&component.kind)?.groups();
    let hosts = |option: &&String| {
        let option = option.as_str();
        let of_group = groups.iter().any(|group| groups::keys(group).contains(&option));
        of_group || (groups.contains(&"") && groups::GROUPS.contains(&option))
    };
    let options = component.schema["properties"].as_object()?;
    let hidden: Vec<String> = options.keys().filter(hosts).map(|o| format!("`{o}`")).collect();
    let (are, what) = match hidden.len() {
        0 => return None,
        1 => ("has an option", "which is a key of the host"),
        _ => ("has options", "which are keys of the host"),
    };
    Some(format!("{} {are} {}, {what}", described(component), hidden.join(", ")))
}

/// A component whose options cannot be told is listed, but not made.
pub fn refuse_fault(component: &ComponentInfo) -> Result<()> {
    if component.fault.is_empty() {
        return Ok(());
    }
    Err(Error::plugin(
        format!("the options of {} cannot be told: {}", described(component), component.fault),
        "this is a bug in the component (its `Config` or `Config::default()`): report it to its author",
    ))
}

/// Whether two plugins of one name are something else, and no other build or version of the same.
pub(super) fn another_crate(one: &Plugin, other: &Plugin) -> bool {
    let names = |plugin: &Plugin| -> Vec<(String, String)> {
        plugin.info.components.iter().map(|c| (c.kind.clone(), c.name.clone())).collect()
    };
    let (a, b) = (&one.info.folder, &other.info.folder);
    names(one) != names(other) || (!a.is_empty() && !b.is_empty() && a != b)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_option_that_is_a_key_of_the_host_is_named() {
        let of = |kind: &str, options: serde_json::Value| {
            let info = json!({
                "kind": kind, "name": "mine", "about": "", "provides": [], "needs": [],
                "schema": {"properties": options}, "defaults": {},
            });
            hidden_options(&serde_json::from_value(info).unwrap())
        };
        let fault = of("backbone", json!({"length": {}, "name": {}, "heads": {}})).unwrap();
        assert_eq!(
            fault,
            "backbone `mine` has options `length`, `name`, which are keys of the host"
        );
        assert!(of("sampler", json!({"num_sample_batches": {}})).unwrap().contains("an option"));
        assert!(of("parameterization", json!({"ema": {}, "trainer": {}, "seed": {}})).is_some());
        assert!(of("noise", json!({"type": {}})).is_some());
        for kind in ComponentKind::ALL {
            assert_eq!(of(kind.name(), json!({"eps": {}, "steps": {}})), None, "{kind}");
        }
    }
}
