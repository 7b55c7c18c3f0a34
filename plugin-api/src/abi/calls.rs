//! Whose method runs: for errors that name the component at fault, and for the last words of a process that one ends.

use std::cell::Cell;

use tch::{Device, Tensor};

use crate::error::{Kind, PluginError, Result};
use crate::shape::{ANY, Kinds, Wanted};
use crate::{Context, bail};

thread_local! {
    /// The component and the method that this thread is in.
    static CURRENT: Cell<Option<(&'static str, &'static str)>> = const { Cell::new(None) };
}

/// The component that this thread is in, as in ``sampler `NAME` ``, and its method. A signal handler may ask.
pub fn current() -> Option<(&'static str, &'static str)> {
    CURRENT.try_with(Cell::get).ok().flatten()
}

/// Until it is dropped, this thread is in `who`.
struct Inside(Option<(&'static str, &'static str)>);

impl Inside {
    fn enter(who: Option<(&'static str, &'static str)>) -> Self {
        Self(CURRENT.replace(who))
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        CURRENT.set(self.0);
    }
}

/// Runs the code of `who` on the way to a component: the loading of its plugin, its making.
pub(crate) fn within<T>(who: &str, method: &'static str, body: impl FnOnce() -> T) -> T {
    // Kept for ever, as the library is: a handler may read it at any time.
    let _inside = Inside::enter(Some((String::leak(who.to_string()), method)));
    body()
}

/// Runs what is the host's own while a component waits for it.
pub(crate) fn outside<T>(body: impl FnOnce() -> T) -> T {
    let _inside = Inside::enter(None);
    body()
}

/// Whom a handle belongs to, and what it was told.
#[derive(Clone, Copy)]
pub(crate) struct Owner {
    who: &'static str,
    pub(crate) facts: Context,
}

impl Owner {
    pub(crate) fn new(kind: &str, name: &str, facts: Context) -> Self {
        Self { who: String::leak(format!("{kind} `{name}`")), facts }
    }

    /// Its name, as the user knows it.
    pub(crate) fn name(&self) -> &'static str {
        self.who.split('`').nth(1).unwrap_or(self.who)
    }

    /// A call over the boundary. An error that names nobody is this component's. What it is lent stays as it is.
    pub(crate) fn call<T>(
        &self,
        method: &'static str,
        lent: &[(&str, &Tensor)],
        body: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        let before = version(lent);
        let answer = {
            let _inside = Inside::enter(Some((self.who, method)));
            body()
        };
        let untouched = version(lent) == before;
        let answer = if untouched { answer } else { answer.and_then(|_| written(method, lent)) };
        answer.map_err(|error| error.blamed(self.who))
    }
}

/// libtorch counts what is written into a tensor, its views included; of those that it does not count, 0.
fn version(lent: &[(&str, &Tensor)]) -> i64 {
    lent.iter().map(|(_, tensor)| tensor.f_internal_version().unwrap_or(0)).sum()
}

fn written<T>(method: &str, lent: &[(&str, &Tensor)]) -> Result<T> {
    let names: Vec<String> = lent.iter().map(|(name, _)| format!("`{name}`")).collect();
    broken(format!("`{method}` writes into what it is lent ({})", names.join(", ")))
}

/// What only a bug in a component can bring about.
pub(crate) fn broken<T>(message: String) -> Result<T> {
    let mut error = PluginError::new(Kind::Panic, message).hint(
        "this is a bug in the component, not in your input: `maskdiff plugins check FILE` runs its contract",
    );
    // The line that found it tells nobody anything.
    error.location.clear();
    Err(error)
}

/// Refuses losses that are not `[B, L]` for `x0_bl`, or of its last positions; `returned` says whose they are.
pub(crate) fn losses_fit(returned: &str, x0_bl: &Tensor, loss_bl: &Tensor) -> Result<()> {
    let size = x0_bl.size();
    let [rows, length] = size[..] else { return Ok(()) };
    let letters = format!("[B, L] = [{rows}, {length}] (or the last positions of it)");
    let (kinds, device) = (Kinds::Floating, x0_bl.device());
    let wanted = Wanted { letters: &letters, size: &[rows, ANY], kinds, device };
    if let Some(fault) = wanted.fault(loss_bl) {
        return broken(format!("{returned} {fault}"));
    }
    let (scored, kind) = (loss_bl.size()[1], loss_bl.kind());
    if !(1..=length).contains(&scored) {
        return broken(format!("{returned} [{rows}, {scored}] {kind:?}, expected {letters}"));
    }
    Ok(())
}

/// Two numbers that are numbers.
pub(crate) fn numbers(method: &str, (low, high): (f64, f64)) -> Result<(f64, f64)> {
    if low.is_nan() || high.is_nan() {
        bail!(Numeric, "`{method}` returned ({low}, {high})");
    }
    Ok((low, high))
}

/// Rounding may carry a value so far past the end of its range.
const SLACK: f64 = 1e-6;

/// The values of noise levels, of their derivatives and of rates.
pub(crate) const LEVELS: (f64, f64) = (0.0, f64::INFINITY);
/// The values of times and of shares.
pub(crate) const SHARES: (f64, f64) = (0.0, 1.0);

/// Refuses values that are NaN or outside a range, of those that lie in the CPU's memory: a GPU would be waited for. Who was given NaN is
/// not to blame for it.
pub(crate) fn values_fit(
    returned: &str,
    values: &Tensor,
    given: &Tensor,
    (least, most): (f64, f64),
) -> Result<()> {
    if values.device() != Device::Cpu || values.numel() == 0 {
        return Ok(());
    }
    // Of numbers of which one is NaN, both ends are NaN.
    let Ok((low, high)) = values.detach().f_aminmax(None, false) else { return Ok(()) };
    let (low, high) = (low.double_value(&[]), high.double_value(&[]));
    let outside = match (low, high) {
        _ if low.is_nan() => low,
        _ if low < least - SLACK => low,
        _ if high > most + SLACK => high,
        _ => return Ok(()),
    };
    if given.isnan().any().int64_value(&[]) != 0 {
        return Ok(());
    }
    let range = match most.is_finite() {
        true => format!("{least} to {most}"),
        false => format!("{least} or more"),
    };
    let mut error =
        PluginError::new(Kind::Numeric, format!("{returned} {outside}, expected {range}"));
    error.location.clear();
    Err(error)
}
