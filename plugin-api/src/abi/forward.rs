//! A plugin has its own copy of every Rust static, so its log and its panics are handed to the host.

use std::backtrace::Backtrace;
use std::fmt::Write as _;
use std::sync::OnceLock;

use abi_stable::StableAbi;
use abi_stable::std_types::RStr;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

use super::guard::note_panic_place;

/// What the host gives every plugin at load. Grows at the end only.
#[repr(C)]
#[derive(StableAbi, Clone, Copy)]
#[sabi(kind(Prefix(prefix_ref = HostApi_Ref)))]
pub struct HostApi {
    /// Whether a message of this level (1 error … 5 trace) would be shown.
    pub log_enabled: extern "C" fn(level: u32) -> bool,
    /// One log message: level, target (the plugin's module path) and text.
    #[sabi(last_prefix_field)]
    pub log: extern "C" fn(level: u32, target: RStr<'_>, message: RStr<'_>),
}

static HOST: OnceLock<HostApi_Ref> = OnceLock::new();

/// Installs the forwarding subscriber and the panic hook in this plugin, whose crate lies in `folder` and is told as
/// `shown`.
pub(crate) fn install(host: HostApi_Ref, folder: &'static str, shown: &'static str) {
    if HOST.set(host).is_err() {
        return;
    }
    // Fails only if the plugin has set a subscriber of its own, which then wins.
    let _ = tracing::subscriber::set_global_default(Forward);
    std::panic::set_hook(Box::new(move |info| {
        let own = own_frame(&Backtrace::force_capture().to_string(), folder, shown);
        let place = own.or_else(|| info.location().map(|l| format!("{}:{}", l.file(), l.line())));
        note_panic_place(place.unwrap_or_default());
    }));
}

/// The first frame of a backtrace that lies in the plugin's own source: tch's panics name tch's file.
fn own_frame(backtrace: &str, folder: &str, shown: &str) -> Option<String> {
    let here = std::env::current_dir().unwrap_or_default();
    let places = backtrace.lines().filter_map(|line| line.trim().strip_prefix("at "));
    let own = places.into_iter().find_map(|place| {
        // What lies below the process's folder is told from there.
        let below = place.strip_prefix("./").map(|rest| here.join(rest).display().to_string());
        let place = below.unwrap_or_else(|| place.to_string());
        Some(place.strip_prefix(folder)?.strip_prefix('/')?.to_string())
    })?;
    let line = own.rsplit_once(':').map_or(own.as_str(), |(place, _column)| place);
    Some(format!("{shown}{line}"))
}

fn number(level: &Level) -> u32 {
    match *level {
        Level::ERROR => 1,
        Level::WARN => 2,
        Level::INFO => 3,
        Level::DEBUG => 4,
        Level::TRACE => 5,
    }
}

/// The level of a number that crossed.
pub(crate) fn level_of(number: u32) -> Level {
    match number {
        0 | 1 => Level::ERROR,
        2 => Level::WARN,
        3 => Level::INFO,
        4 => Level::DEBUG,
        _ => Level::TRACE,
    }
}

/// Sends events to the host; spans are not kept.
struct Forward;

impl Subscriber for Forward {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        HOST.get().is_some_and(|host| host.log_enabled()(number(metadata.level())))
    }

    fn event(&self, event: &Event<'_>) {
        let Some(host) = HOST.get() else { return };
        let mut text = Text(String::new());
        event.record(&mut text);
        let meta = event.metadata();
        host.log()(number(meta.level()), meta.target().into(), text.0.as_str().into());
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

/// The message, then its fields as `name=value`.
struct Text(String);

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        let text = if field.name() == "message" {
            format!("{value:?}")
        } else {
            format!(" {}={value:?}", field.name())
        };
        // Writing to a String cannot fail.
        let _ = self.0.write_str(&text);
    }
}

#[cfg(test)]
mod tests {
    use super::own_frame;

    #[test]
    fn the_plugins_own_frame_is_found() {
        let trace = "   3: tch::f\n             at /registry/tch/src/t.rs:9:1\n   4: me\n             \
                     at /home/me/plugins/dit/src/lib.rs:38:12\n";
        let own = |folder: &str| own_frame(trace, folder, "plugins/dit/");
        assert_eq!(own("/home/me/plugins/dit").unwrap(), "plugins/dit/src/lib.rs:38");
        assert_eq!(own("/home/me/plugins/ar"), None);
        let here = std::env::current_dir().unwrap().display().to_string();
        let near = own_frame("at ./src/lib.rs:7:1", &here, "");
        assert_eq!(near.unwrap(), "src/lib.rs:7");
    }
}
