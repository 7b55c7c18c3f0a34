//! Shape, kind and place of a tensor against what the contract says. Nothing is read, so a GPU is never waited for.

use tch::{Device, Kind, Tensor};

/// The kinds that will do.
#[derive(Clone, Copy)]
pub(crate) enum Kinds {
    Is(Kind),
    /// Float, Double, BFloat16 or Half.
    Floating,
}

impl Kinds {
    pub(crate) fn hold(self, kind: Kind) -> bool {
        match self {
            Self::Is(wanted) => kind == wanted,
            Self::Floating => {
                matches!(kind, Kind::Float | Kind::Double | Kind::BFloat16 | Kind::Half)
            }
        }
    }
}

impl std::fmt::Display for Kinds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Is(kind) => write!(f, "{kind:?}"),
            Self::Floating => f.write_str("of floating point"),
        }
    }
}

/// A size that may be anything.
pub(crate) const ANY: i64 = -1;

/// What a tensor should be: letters for people, a size for each ([`ANY`] where it is free), kinds, a place.
pub(crate) struct Wanted<'a> {
    pub(crate) letters: &'a str,
    pub(crate) size: &'a [i64],
    pub(crate) kinds: Kinds,
    pub(crate) device: Device,
}

impl Wanted<'_> {
    /// What is wrong with a tensor, in words: `[3] Float, expected [N, V] = [3, 8] Float`.
    pub(crate) fn fault(&self, tensor: &Tensor) -> Option<String> {
        let (size, kind, device) = (tensor.size(), tensor.kind(), tensor.device());
        let fits = |(got, wanted): (&i64, &i64)| *wanted == ANY || got == wanted;
        let shaped = size.len() == self.size.len() && size.iter().zip(self.size).all(fits);
        if shaped && self.kinds.hold(kind) && device == self.device {
            return None;
        }
        let Self { letters, kinds, .. } = self;
        let known = self.size.iter().all(|n| *n != ANY) && !self.size.is_empty();
        let numbers = if known { format!(" = {:?}", self.size) } else { String::new() };
        // A place is told only where it is what is wrong.
        let (here, there) = match device == self.device {
            true => (String::new(), String::new()),
            false => (format!(" on {device:?}"), format!(" on {:?}", self.device)),
        };
        Some(format!("{size:?} {kind:?}{here}, expected {letters}{numbers} {kinds}{there}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_names_what_is_there_and_what_should_be() {
        let wanted =
            |size| Wanted { letters: "[N, V]", size, kinds: Kinds::Floating, device: Device::Cpu };
        let t = Tensor::zeros([3, 8], (Kind::Float, Device::Cpu));
        assert_eq!(wanted(&[3, 8]).fault(&t), None);
        assert_eq!(wanted(&[ANY, 8]).fault(&t), None);
        let fault = wanted(&[4, 8]).fault(&t).unwrap();
        assert_eq!(fault, "[3, 8] Float, expected [N, V] = [4, 8] of floating point");
        let ids = t.to_kind(Kind::Int64);
        let fault = wanted(&[ANY, 8]).fault(&ids).unwrap();
        assert_eq!(fault, "[3, 8] Int64, expected [N, V] of floating point");
        let gpu = Wanted { device: Device::Cuda(0), ..wanted(&[3, 8]) };
        assert!(gpu.fault(&t).unwrap().contains("Float on Cpu, expected"));
    }
}
