//! `maskdiff plugins ...`: what is loaded, and what a plugin's author needs.

pub mod build;
pub mod check;
pub mod class;
pub mod docs;
pub mod list;
pub mod new;
pub mod remove;

use maskdiff_config::kind::ComponentKind;

use super::Common;

/// The key that chooses a component, by what a plugin says of its kind: one of a later contract has none here.
pub(in crate::commands) fn key(kind: &str) -> &str {
    match ComponentKind::named(kind) {
        Some(kind) => kind.key(),
        None => kind,
    }
}

/// The key of a component's option.
pub(in crate::commands) fn option_key(kind: &str, option: &str) -> String {
    ComponentKind::named(kind).map_or_else(|| option.into(), |kind| kind.option_key(option))
}
