//! `trainer.precision`: in which numbers a network is held and computed.

use maskdiff_base::error::Result;
use maskdiff_config::{Config, listed};
use maskdiff_native::{set_deterministic, set_tf32, set_wide_sums};
use tch::Kind;

use crate::component;

/// How numbers are held and computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// Everything in one type, float32 or float64.
    Full(Kind),
    /// Float32 weights, products in a type of 16 bits, as the original trains. With `Half` the loss is scaled, so that
    /// small gradients do not vanish.
    Mixed(Kind),
    /// The network is a bfloat16 copy of float32 weights, refreshed once a step: half the memory traffic of `Mixed`.
    PureBFloat16,
}

impl Precision {
    /// What `trainer.precision` asks for.
    pub fn of(config: &Config) -> Self {
        match config.trainer.precision {
            listed::Precision::Fp32 => Self::Full(Kind::Float),
            listed::Precision::Fp64 => Self::Full(Kind::Double),
            listed::Precision::Bf16 => Self::Mixed(Kind::BFloat16),
            listed::Precision::Fp16 => Self::Mixed(Kind::Half),
            listed::Precision::PureBf16 => Self::PureBFloat16,
        }
    }

    /// The type of the network's weights.
    pub fn weights(self) -> Kind {
        match self {
            Self::Full(kind) => kind,
            Self::Mixed(_) => Kind::Float,
            Self::PureBFloat16 => Kind::BFloat16,
        }
    }

    /// The type of products, where it is not that of the weights.
    pub fn reduced(self) -> Option<Kind> {
        match self {
            Self::Mixed(kind) => Some(kind),
            _ => None,
        }
    }
}

/// Sets the modes of libtorch that a run asks for.
pub fn set_modes(config: &Config) -> Result<()> {
    set_tf32(config.trainer.tf32).map_err(component::torch)?;
    set_wide_sums().map_err(component::torch)?;
    set_deterministic(config.trainer.deterministic).map_err(component::torch)
}

/// The factor by which a float16 loss is multiplied, so that its gradients fit the type: halved when they do not, doubled
/// after many steps in which they did. The rule and the numbers of torch's `GradScaler`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LossScale {
    /// The factor now, a power of two.
    pub factor: f64,
    /// Steps since it changed.
    pub steps: i64,
}

impl LossScale {
    const GROWTH_INTERVAL: i64 = 2000;

    /// The scale for a precision: 2^16 for float16, else none.
    pub fn new(precision: Precision) -> Option<Self> {
        (precision == Precision::Mixed(Kind::Half)).then_some(Self { factor: 65_536.0, steps: 0 })
    }

    /// Learns whether the gradients of a step were finite.
    pub fn update(&mut self, finite: bool) {
        if !finite {
            *self = Self { factor: self.factor / 2.0, steps: 0 };
            return;
        }
        self.steps += 1;
        if self.steps == Self::GROWTH_INTERVAL {
            *self = Self { factor: self.factor * 2.0, steps: 0 };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scale_halves_at_once_and_doubles_slowly() {
        assert_eq!(LossScale::new(Precision::Mixed(Kind::BFloat16)), None);
        let mut scale = LossScale::new(Precision::Mixed(Kind::Half)).unwrap();
        scale.update(false);
        assert_eq!(scale.factor, 32_768.0);
        (0..2000).for_each(|_| scale.update(true));
        assert_eq!(scale, LossScale { factor: 65_536.0, steps: 0 });
    }
}
