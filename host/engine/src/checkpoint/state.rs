//! `state.json`: the numbers of a checkpoint, with a checksum of their own.
//!
//! The checksum is the first member, and of all bytes behind it, so no spoilt bit is read as another number. Checkpoints of 0.1.0
//! have none: the members that they have, and what numbers can be, are checked in any case.

use std::collections::BTreeMap;

use maskdiff_base::text::hex;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::{FORMAT, Upon};

/// The numbers of a checkpoint that are not tensors.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct State {
    /// Version of this layout.
    pub format: u32,
    /// Steps done.
    pub step: i64,
    /// Samples read: the number of the next batch's first one.
    pub samples: u64,
    /// Updates of the average.
    pub ema_updates: i64,
    /// Best value of the monitored metric so far.
    pub best: Option<f64>,
    /// The step of the best checkpoint.
    pub best_step: Option<i64>,
    /// The last step that was evaluated.
    pub evaluated: i64,
    /// Sum of the losses since the last line of metrics, and their number.
    pub window: (f64, i64),
    /// Mean of the losses and their number, to tell a spike.
    pub usual: (f64, i64),
    /// Factor of a float16 loss, and steps since it changed.
    pub loss_scale: Option<(f64, i64)>,
    /// Steps whose batches are left out.
    pub skipped: Vec<i64>,
    /// Ranks that wrote it.
    pub world: usize,
    /// Threads of libtorch that computed, where a CPU did; 0 where that is not known.
    #[serde(default)]
    pub threads: i32,
    /// `fused` or `plain`, where a GPU computed; empty elsewhere.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub kernels: String,
    /// From where a clipped schedule draws times, where it reads in blocks.
    #[serde(default)]
    pub interval: Option<(f64, f64)>,
    /// Frozen model to SHA-256 of the checkpoint that it came from.
    #[serde(default)]
    pub others: BTreeMap<String, String>,
    /// Of adapters, the weights that they are added to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upon: Option<Upon>,
    /// Plugin to SHA-256 of its file.
    pub plugins: BTreeMap<String, String>,
    /// SHA-256 of the blocks that were trained on; empty where they are generated.
    #[serde(default)]
    pub data: String,
    /// File name to SHA-256 of its content.
    pub files: BTreeMap<String, String>,
}

/// What stands in front of the checksum, and behind it.
const AROUND: (&str, &str) = ("{\n  \"checksum\": \"", "\",\n");

/// More steps, samples or ranks than any run has.
const MOST: i64 = 1_000_000_000_000_000;

impl State {
    /// The text of the file.
    pub fn to_text(&self) -> String {
        let json = serde_json::to_string_pretty(self).unwrap_or_default();
        let rest = json.strip_prefix("{\n").unwrap_or_default();
        format!("{}{}{}{rest}", AROUND.0, hex(&Sha256::digest(rest)), AROUND.1)
    }

    /// Reads the file; an error says what is wrong with it.
    pub(super) fn read(text: &[u8]) -> std::result::Result<Self, String> {
        /// The version alone, which must be right before the rest can be read.
        #[derive(Deserialize)]
        struct Version {
            format: u32,
        }
        let broken = |e: serde_json::Error| e.to_string();
        let (front, behind) = (AROUND.0.as_bytes(), AROUND.1.as_bytes());
        let sealed = text.strip_prefix(front).and_then(|rest| rest.split_at_checked(64));
        let json = match sealed {
            Some((checksum, rest)) => {
                let rest = rest.strip_prefix(behind).unwrap_or_default();
                if hex(&Sha256::digest(rest)).as_bytes() != checksum {
                    return Err("its checksum differs, so it was cut off or changed".into());
                }
                [b"{", rest].concat()
            }
            None => {
                known(text)?;
                text.to_vec()
            }
        };
        let Version { format } = serde_json::from_slice(&json).map_err(broken)?;
        if format != FORMAT {
            return Err(format!("layout {format}, expected {FORMAT}"));
        }
        let state: Self = serde_json::from_slice(&json).map_err(broken)?;
        match state.fault() {
            Some(fault) => Err(fault),
            None => Ok(state),
        }
    }

    /// What no run can have counted.
    fn fault(&self) -> Option<String> {
        let within = |name: &str, value: i64, most: i64| {
            let fits = (0..=most).contains(&value);
            (!fits).then(|| format!("`{name}` is {value}, and should be in 0..={most}"))
        };
        let samples = i64::try_from(self.samples).unwrap_or(i64::MAX);
        let world = i64::try_from(self.world).unwrap_or(i64::MAX);
        let (scale, scaled) = self.loss_scale.unwrap_or((1.0, 0));
        let usable = scale.is_finite() && scale > 0.0;
        let sums = [self.window.0, self.usual.0, self.best.unwrap_or_default()];
        let counts = [
            within("step", self.step, MOST),
            within("samples", samples, MOST.saturating_mul(1000)),
            within("ema_updates", self.ema_updates, MOST),
            within("best_step", self.best_step.unwrap_or_default(), self.step.max(0)),
            within("evaluated", self.evaluated, self.step.max(0)),
            within("window", self.window.1, self.step.max(0)),
            within("usual", self.usual.1, MOST),
            within("loss_scale", scaled, MOST),
            within("world", world, 1 << 24),
            (!usable).then(|| format!("`loss_scale` is {scale}")),
            sums.iter()
                .any(|sum| !sum.is_finite())
                .then(|| "a sum of losses is no number".to_string()),
            // A step reads one sample at least.
            (samples < self.step)
                .then(|| format!("`samples` is {samples} after {} steps", self.step)),
        ];
        let inside =
            |(low, high): &(f64, f64)| (0.0..=1.0).contains(low) && (*low..=1.0).contains(high);
        if let Some((low, high)) = self.interval.filter(|interval| !inside(interval)) {
            return Some(format!("`interval` is {low} to {high}"));
        }
        let skipped = self.skipped.iter().find_map(|step| within("skipped", *step, MOST));
        counts.into_iter().flatten().next().or(skipped)
    }
}

/// Without a checksum there are the members of 0.1.0 and no others: a spoilt name is none that is merely missing.
fn known(text: &[u8]) -> std::result::Result<(), String> {
    let found: Value = serde_json::from_slice(text).map_err(|e| e.to_string())?;
    let all = json!(State::default());
    let mut names = found.as_object().into_iter().flatten().map(|(name, _)| name);
    match names.find(|name| all.get(name.as_str()).is_none()) {
        Some(name) => Err(format!("it has no checksum in front, and a member `{name}`")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> State {
        State {
            format: FORMAT,
            step: 12,
            samples: 96,
            best: Some(0.1 + 0.2),
            best_step: Some(7),
            evaluated: 10,
            window: (1.0 / 3.0, 2),
            world: 2,
            ..State::default()
        }
    }

    #[test]
    fn no_spoilt_bit_is_read_as_another_number() {
        let text = state().to_text();
        let read = State::read(text.as_bytes()).unwrap();
        assert_eq!((read.step, read.best, read.window), (12, Some(0.1 + 0.2), (1.0 / 3.0, 2)));
        for at in 0..text.len() {
            for bit in 0..8 {
                let mut bytes = text.clone().into_bytes();
                bytes[at] ^= 1 << bit;
                State::read(&bytes).expect_err(&format!("bit {bit} of byte {at}"));
            }
        }
        State::read(&text.as_bytes()[..text.len() - 1]).unwrap_err();
    }

    #[test]
    fn older_ones_are_read_and_have_ranges() {
        let json = |state: &State| serde_json::to_string_pretty(state).unwrap();
        assert_eq!(State::read(json(&state()).as_bytes()).unwrap().step, 12);
        for (spoilt, said) in [
            (State { step: -12, ..state() }, "`step` is -12"),
            (State { step: i64::MAX, ..state() }, "`step` is 9223372036854775807"),
            (State { samples: u64::MAX, ..state() }, "`samples` is"),
            (State { samples: 3, ..state() }, "`samples` is 3 after 12 steps"),
            (State { evaluated: 13, ..state() }, "`evaluated` is 13"),
            (State { best_step: Some(-1), ..state() }, "`best_step` is -1"),
            (State { ema_updates: -1, ..state() }, "`ema_updates` is -1"),
            (State { window: (0.0, -3), ..state() }, "`window` is -3"),
            (State { usual: (0.0, i64::MIN), ..state() }, "`usual` is"),
            (State { loss_scale: Some((0.0, 1)), ..state() }, "`loss_scale` is 0"),
            (State { skipped: vec![-1], ..state() }, "`skipped` is -1"),
            (State { world: usize::MAX, ..state() }, "`world` is"),
        ] {
            let fault = State::read(json(&spoilt).as_bytes()).unwrap_err();
            assert!(fault.contains(said), "{fault}");
        }
        let other = json(&state()).replace("\"evaluated\"", "\"evaluatee\"");
        assert!(State::read(other.as_bytes()).is_err(), "a member that is not known");
    }
}
