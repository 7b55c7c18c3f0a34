//! What every component is told when it is made.

use serde::{Deserialize, Serialize};
use tch::{Device, Kind};

/// Facts about the model that is being built. Crosses the boundary as JSON, so it may grow.
///
/// Plugins receive it; tests and hosts make one by [`Context::new`] and say what differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Context {
    /// V, the number of tokens including the mask.
    pub vocab_size: i64,
    /// Id of the absorbing token, in `0..vocab_size`, where the vocabulary has one.
    pub mask_id: Option<i64>,
    /// L, the length of a block in tokens.
    pub length: i64,
    /// Whether the network sees the noise level. Off: it always gets sigma = 0.
    pub time_conditioning: bool,
    /// Kind of the parameters.
    #[serde(with = "kind_name")]
    pub kind: Kind,
    /// CUDA device index, or none for the CPU.
    pub cuda: Option<usize>,
    /// Whether parameters get their first values. Off: a checkpoint fills them at once, so that [`crate::Parameters`] leaves the
    /// memory of matrices as it is and draws nothing.
    #[serde(default = "yes")]
    pub fresh: bool,
    /// Classes that a sequence may be of; 0 where there are none. A network that offers [`crate::capability::LABEL`] then reads
    /// labels `0..classes`, and the label `classes` for "none".
    #[serde(default)]
    pub classes: i64,
    /// Whether the stages of a network keep their inputs alone for the backward pass, in which they are computed again, see
    /// [`crate::Parameters::stage`].
    #[serde(default)]
    pub activation_checkpointing: bool,
}

fn yes() -> bool {
    true
}

impl Context {
    /// A vocabulary without a mask and blocks of `length` tokens, for a network that does not see the noise level: in float32, on the
    /// CPU, with first values.
    pub fn new(vocab_size: i64, length: i64) -> Self {
        Self {
            vocab_size,
            mask_id: None,
            length,
            time_conditioning: false,
            kind: Kind::Float,
            cuda: None,
            fresh: true,
            classes: 0,
            activation_checkpointing: false,
        }
    }

    /// The same with this mask, or with none.
    #[must_use]
    pub fn mask(self, mask_id: Option<i64>) -> Self {
        Self { mask_id, ..self }
    }

    /// The same for blocks of `length` tokens.
    #[must_use]
    pub fn length(self, length: i64) -> Self {
        Self { length, ..self }
    }

    /// The same for a network that sees the noise level, or does not.
    #[must_use]
    pub fn time_conditioning(self, time_conditioning: bool) -> Self {
        Self { time_conditioning, ..self }
    }

    /// The same with parameters of this kind.
    #[must_use]
    pub fn kind(self, kind: Kind) -> Self {
        Self { kind, ..self }
    }

    /// The same on this CUDA device, or on the CPU.
    #[must_use]
    pub fn cuda(self, cuda: Option<usize>) -> Self {
        Self { cuda, ..self }
    }

    /// The same with first values for parameters, or without.
    #[must_use]
    pub fn fresh(self, fresh: bool) -> Self {
        Self { fresh, ..self }
    }

    /// The same for sequences of this many classes.
    #[must_use]
    pub fn classes(self, classes: i64) -> Self {
        Self { classes, ..self }
    }

    /// The same with stages that are computed again in the backward pass, or without.
    #[must_use]
    pub fn activation_checkpointing(self, activation_checkpointing: bool) -> Self {
        Self { activation_checkpointing, ..self }
    }

    /// Where parameters live.
    pub fn device(&self) -> Device {
        self.cuda.map_or(Device::Cpu, Device::Cuda)
    }
}

/// A tensor kind as the word `f32`, `f64`, `bf16` or `f16`.
mod kind_name {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};
    use tch::Kind;

    const NAMES: [(Kind, &str); 4] = [
        (Kind::Float, "f32"),
        (Kind::Double, "f64"),
        (Kind::BFloat16, "bf16"),
        (Kind::Half, "f16"),
    ];

    pub(super) fn serialize<S: Serializer>(kind: &Kind, serializer: S) -> Result<S::Ok, S::Error> {
        let name = NAMES.iter().find(|(k, _)| k == kind).map_or("f32", |(_, name)| name);
        serializer.serialize_str(name)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(de: D) -> Result<Kind, D::Error> {
        let text = String::deserialize(de)?;
        let known = NAMES.iter().find(|(_, name)| *name == text);
        known.map(|(kind, _)| *kind).ok_or_else(|| D::Error::custom(format!("kind `{text}`")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_round_trip() {
        let context = Context::new(7, 4).mask(Some(6)).kind(Kind::Double).fresh(false);
        let text = serde_json::to_string(&context).unwrap();
        assert_eq!(serde_json::from_str::<Context>(&text).unwrap(), context);
        // A host of contract 1.0 says none of these.
        let newer = r#","fresh":false,"classes":0,"activation_checkpointing":false"#;
        let older = text.replace(newer, "");
        assert_ne!(older, text);
        let older = serde_json::from_str::<Context>(&older).unwrap();
        assert!(older.fresh && older.classes == 0 && !older.activation_checkpointing);
    }
}
