//! What every component is told when it is made.

use serde::{Deserialize, Serialize};
use tch::{Device, Kind};

/// Facts about the model that is being built. Crosses the boundary as JSON, so it may grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
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
}

fn yes() -> bool {
    true
}

impl Context {
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
        let context = Context {
            vocab_size: 7,
            mask_id: Some(6),
            length: 4,
            time_conditioning: false,
            kind: Kind::Double,
            cuda: None,
            fresh: false,
        };
        let text = serde_json::to_string(&context).unwrap();
        assert_eq!(serde_json::from_str::<Context>(&text).unwrap(), context);
        // A host of contract 1.0 does not say it.
        let older = text.replace(r#","fresh":false"#, "");
        assert!(serde_json::from_str::<Context>(&older).unwrap().fresh);
    }
}
