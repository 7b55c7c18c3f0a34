//! What a component gives to the model: checked before another component sees it, so that an error names the argument and its
//! giver, and no line inside another plugin.
//!
//! Shape, kind and place are looked at before a call, and values that are in the CPU's memory anyway; all other values only
//! after a call that failed.

use std::panic::Location;

use tch::{Device, Kind as TensorKind, Tensor};

use crate::abi::guard::guarded;
use crate::denoiser::Model;
use crate::error::{Kind, PluginError, Result};
use crate::shape::{ANY, Kinds, Wanted};

/// Rounding may carry a time so far past its end.
const SLACK: f64 = 1e-6;
/// Times that are looked at one by one.
const FEW: usize = 4096;

/// Which values an argument may have.
#[derive(Clone, Copy)]
enum Values {
    /// 0 to below it.
    Below(i64),
    /// [0, 1].
    Unit,
    /// Any number.
    Numbers,
}

/// An argument of a method of the model.
pub(crate) struct Argument<'a> {
    name: &'static str,
    tensor: &'a Tensor,
    letters: &'static str,
    size: Vec<i64>,
    kinds: Kinds,
    values: Values,
    /// Where it must be; `None` leaves that open.
    device: Option<Device>,
}

/// The first size of a tensor, where it has one.
pub(crate) fn first(tensor: &Tensor) -> i64 {
    tensor.size().first().copied().unwrap_or(ANY)
}

/// Arguments for a model.
pub(crate) struct Arguments<'a>(pub(crate) &'a dyn Model);

impl Arguments<'_> {
    fn ids<'t>(
        &self,
        name: &'static str,
        tensor: &'t Tensor,
        letters: &'static str,
        size: Vec<i64>,
    ) -> Argument<'t> {
        let (values, kinds) = (Values::Below(self.0.vocab_size()), Kinds::Is(TensorKind::Int64));
        let device = Some(self.0.device());
        Argument { name, tensor, letters, size, kinds, values, device }
    }

    /// Tokens `[B, L]`.
    pub(crate) fn tokens<'t>(&self, name: &'static str, tensor: &'t Tensor) -> Argument<'t> {
        self.ids(name, tensor, "[B, L]", vec![ANY, ANY])
    }

    /// Tokens `[N]`, one for each row.
    pub(crate) fn row_tokens<'t>(
        &self,
        name: &'static str,
        tensor: &'t Tensor,
        n: i64,
    ) -> Argument<'t> {
        self.ids(name, tensor, "[N]", vec![n])
    }

    /// Flat positions `[N]` of tokens `x_bl`.
    pub(crate) fn rows<'t>(
        &self,
        name: &'static str,
        tensor: &'t Tensor,
        x_bl: &Tensor,
    ) -> Argument<'t> {
        let values = Values::Below(x_bl.numel() as i64);
        Argument { values, ..self.ids(name, tensor, "[N]", vec![ANY]) }
    }

    /// A number in [0, 1] for each sequence.
    pub(crate) fn units<'t>(
        &self,
        name: &'static str,
        tensor: &'t Tensor,
        batch: i64,
    ) -> Argument<'t> {
        let kinds = Kinds::Is(TensorKind::Double);
        Argument { kinds, values: Values::Unit, ..self.ids(name, tensor, "[B]", vec![batch]) }
    }

    /// A number in [0, 1] for each token of `x_bl`.
    pub(crate) fn token_units<'t>(
        &self,
        name: &'static str,
        tensor: &'t Tensor,
        x_bl: &Tensor,
    ) -> Argument<'t> {
        Argument { letters: "[B, L]", size: x_bl.size(), ..self.units(name, tensor, ANY) }
    }

    /// Numbers `[N]` from 0 to below `end`.
    pub(crate) fn numbers<'t>(
        &self,
        name: &'static str,
        tensor: &'t Tensor,
        n: i64,
        end: i64,
    ) -> Argument<'t> {
        Argument { values: Values::Below(end), ..self.ids(name, tensor, "[N]", vec![n]) }
    }

    /// A noise level for each sequence.
    pub(crate) fn levels<'t>(
        &self,
        name: &'static str,
        tensor: &'t Tensor,
        batch: i64,
    ) -> Argument<'t> {
        Argument { values: Values::Numbers, ..self.units(name, tensor, batch) }
    }

    /// A noise level for each token.
    pub(crate) fn token_levels<'t>(
        &self,
        name: &'static str,
        tensor: &'t Tensor,
        batch: i64,
        new: i64,
    ) -> Argument<'t> {
        Argument { letters: "[B, S]", size: vec![batch, new], ..self.levels(name, tensor, batch) }
    }

    /// Tokens `[B, S, M]` to be mixed.
    pub(crate) fn mixed_tokens<'t>(&self, name: &'static str, tensor: &'t Tensor) -> Argument<'t> {
        self.ids(name, tensor, "[B, S, M]", vec![ANY; 3])
    }

    /// Positions `[B, S]` or `[1, S]`.
    pub(crate) fn positions<'t>(
        &self,
        name: &'static str,
        tensor: &'t Tensor,
        batch: i64,
        new: i64,
    ) -> Argument<'t> {
        let values = Values::Below(i64::MAX);
        Argument { values, ..self.ids(name, tensor, "[B, S]", vec![batch, new]) }
    }

    /// A class for each sequence.
    pub(crate) fn labels<'t>(
        &self,
        name: &'static str,
        tensor: &'t Tensor,
        batch: i64,
    ) -> Argument<'t> {
        Argument { values: Values::Below(i64::MAX), ..self.ids(name, tensor, "[B]", vec![batch]) }
    }

    /// Times of any shape, anywhere.
    pub(crate) fn times<'t>(&self, name: &'static str, tensor: &'t Tensor) -> Argument<'t> {
        let (size, device) = (tensor.size(), None);
        Argument { size, device, letters: "any shape", ..self.units(name, tensor, ANY) }
    }

    /// Floating point: `[N, V]`, `[N, D]` or `[N]`.
    pub(crate) fn floats<'t>(
        &self,
        name: &'static str,
        tensor: &'t Tensor,
        letters: &'static str,
        size: Vec<i64>,
    ) -> Argument<'t> {
        let (values, kinds) = (Values::Numbers, Kinds::Floating);
        Argument { values, kinds, ..self.ids(name, tensor, letters, size) }
    }
}

/// An error placed at who called the model.
fn error(kind: Kind, message: String, place: &Location<'_>) -> PluginError {
    let mut error = PluginError::new(kind, message);
    error.location = format!("{}:{}", place.file(), place.line());
    error
}

/// Calls `method` of the model with arguments that fit; where it fails, their values are looked at before another is blamed.
#[track_caller]
pub(crate) fn call<T>(
    method: &str,
    arguments: &[Argument<'_>],
    body: impl FnOnce() -> Result<T>,
) -> Result<T> {
    let place = Location::caller();
    for argument in arguments {
        argument.check(method, place)?;
    }
    guarded(body).map_err(|inner| match inner.kind {
        Kind::Interrupted | Kind::Unsupported | Kind::Config => inner,
        _ => arguments.iter().find_map(|a| a.fault(method, place)).unwrap_or(inner),
    })
}

/// A number in [0, 1].
#[track_caller]
pub(crate) fn unit(method: &str, name: &str, value: f64) -> Result<()> {
    if (-SLACK..=1.0 + SLACK).contains(&value) {
        return Ok(());
    }
    let message = format!("`{name}` of `{method}` is {value}, outside [0, 1]");
    Err(error(Kind::Numeric, message, Location::caller()))
}

/// The shape of a tensor of random numbers.
#[track_caller]
pub(crate) fn shape(method: &str, shape: &[i64]) -> Result<()> {
    if !shape.is_empty() && shape.iter().all(|n| *n >= 0) {
        return Ok(());
    }
    let message =
        format!("`shape` of `{method}` is {shape:?}, expected [B, ..]: the sequences come first");
    Err(error(Kind::Shape, message, Location::caller()))
}

impl Argument<'_> {
    fn check(&self, method: &str, place: &Location<'_>) -> Result<()> {
        let Self { letters, kinds, .. } = *self;
        let device = self.device.unwrap_or_else(|| self.tensor.device());
        let wanted = Wanted { letters, size: &self.size, kinds, device };
        if let Some(fault) = wanted.fault(self.tensor) {
            let message = format!("`{}` of `{method}` is {fault}", self.name);
            return Err(error(Kind::Shape, message, place));
        }
        let here = self.tensor.device() == Device::Cpu && self.tensor.numel() <= FEW;
        match self.values {
            Values::Unit if here => self.fault(method, place).map_or(Ok(()), Err),
            _ => Ok(()),
        }
    }

    /// What is wrong with its values. Waits for a GPU; what that can no longer tell is no fault.
    fn fault(&self, method: &str, place: &Location<'_>) -> Option<PluginError> {
        let flat = self.tensor.detach();
        if flat.numel() == 0 {
            return None;
        }
        let number = |t: tch::Result<Tensor>| t.and_then(|t| t.f_double_value(&[])).ok();
        let (low, high) = (number(flat.f_min())?, number(flat.f_max())?);
        let said = |kind, what: String| {
            Some(error(kind, format!("`{}` of `{method}` holds {what}", self.name), place))
        };
        // Of numbers of which one is NaN, least and greatest are NaN.
        let outside = |least: f64, most: f64| match (low, high) {
            _ if low.is_nan() => Some(low),
            _ if low < least => Some(low),
            _ if high > most => Some(high),
            _ => None,
        };
        match self.values {
            Values::Below(end) => {
                let id = outside(0.0, (end - 1) as f64)?;
                said(Kind::Shape, format!("{id}, outside 0..{end}"))
            }
            Values::Unit => {
                let t = outside(-SLACK, 1.0 + SLACK)?;
                said(Kind::Numeric, format!("{t}, outside [0, 1]"))
            }
            Values::Numbers if low.is_nan() => said(Kind::Numeric, "NaN".into()),
            Values::Numbers => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::testkit::Toy;
    use crate::{Denoiser, Kind as ErrorKind};
    use tch::{Device, Kind, Tensor};

    /// What a call is told, and that it is this file that it names.
    #[track_caller]
    fn refused(answer: crate::Result<Tensor>, kind: ErrorKind, words: &str) {
        let error = answer.expect_err(words);
        assert_eq!(error.kind, kind, "{error}");
        assert_eq!(error.to_string(), words);
        assert!(error.location.contains("door.rs:"), "{}", error.location);
    }

    #[test]
    fn arguments_that_do_not_fit_are_named_with_what_is_expected() {
        use ErrorKind::{Numeric, Shape};
        let toy = Toy::new(4, 3);
        let model = Denoiser::new(&toy);
        let (x, t) = (toy.masked(2), model.times(2, 0.5));
        let rows = Tensor::from_slice(&[0i64, 5]);
        let _ = model.log_x0(&x, &t, &rows).expect("arguments that fit");
        let float = x.to_kind(Kind::Float);
        for (answer, words) in [
            (
                model.log_x0(&float, &t, &rows),
                "`xt_bl` of `log_x0` is [2, 4] Float, expected [B, L] Int64",
            ),
            (
                model.log_x0(&x.get(0), &t, &rows),
                "`xt_bl` of `log_x0` is [4] Int64, expected [B, L] Int64",
            ),
            (
                model.log_x0(&x, &model.times(3, 0.5), &rows),
                "`t_b` of `log_x0` is [3] Double, expected [B] = [2] Double",
            ),
            (
                model.score(&x, &t.to_kind(Kind::Float), &rows),
                "`t_b` of `score` is [2] Float, expected [B] = [2] Double",
            ),
            (
                model.score(&x, &t, &rows.to_kind(Kind::Double)),
                "`rows_n` of `score` is [2] Double, expected [N] Int64",
            ),
            (
                model.hidden(&x, &t.unsqueeze(1)),
                "`sigma_b` of `hidden` is [2, 1] Double, expected [B] = [2] Double",
            ),
            (
                model.corrupt(&x, &model.times(1, 0.5)),
                "`alpha_b` of `corrupt` is [1] Double, expected [B] = [2] Double",
            ),
            (
                model.posterior(&rows, 0.2, 0.4, &t.view([2, 1])),
                "`p_nv` of `posterior` is [2, 1] Double, expected [N, V] = [2, 4] of floating point",
            ),
            (
                model.logits(&x),
                "`hidden_nd` of `logits` is [2, 4] Int64, expected [N, D] of floating point",
            ),
            (model.sigma(&rows), "`t` of `sigma` is [2] Int64, expected any shape = [2] Double"),
        ] {
            refused(answer, Shape, words);
        }
        for (answer, words) in [
            (model.sigma(&model.times(2, 1.5)), "`t` of `sigma` holds 1.5, outside [0, 1]"),
            (
                model.log_x0(&x, &model.times(2, f64::NAN), &rows),
                "`t_b` of `log_x0` holds NaN, outside [0, 1]",
            ),
        ] {
            refused(answer, Numeric, words);
        }
        assert!(model.alpha(f64::NAN).is_err() && model.alpha(2.0).is_err());
    }

    /// The values of tokens and rows cost a look: they are looked at once the call has failed.
    #[test]
    fn values_out_of_range_are_called_that() {
        let toy = Toy::new(4, 3);
        let model = Denoiser::new(&toy);
        let (x, t) = (toy.masked(2), model.times(2, 0.5));
        let rows = Tensor::from_slice(&[0i64, 8]);
        refused(
            model.log_x0(&x, &t, &rows),
            ErrorKind::Shape,
            "`rows_n` of `log_x0` holds 8, outside 0..8",
        );
        let fails = |argument| {
            super::call("hidden", &[argument], || crate::bail!(Panic, "index out of range"))
        };
        let ids = super::Arguments(&toy);
        let high = &x + 1;
        refused(
            fails(ids.tokens("xt_bl", &high)),
            ErrorKind::Shape,
            "`xt_bl` of `hidden` holds 4, outside 0..4",
        );
        let nan = Tensor::full([2, 3], f64::NAN, (Kind::Float, Device::Cpu));
        let state = ids.floats("hidden_nd", &nan, "[N, D]", vec![-1, -1]);
        refused(fails(state), ErrorKind::Numeric, "`hidden_nd` of `hidden` holds NaN");
        let inner = fails(ids.tokens("xt_bl", &x)).expect_err("the error itself");
        assert_eq!(inner.to_string(), "index out of range");
    }
}
