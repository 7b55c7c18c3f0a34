//! Nothing but values crosses: panics and C++ exceptions become errors, and the grad mode is put back.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};

use abi_stable::StableAbi;
use abi_stable::std_types::{RResult, RString, RVec};

use crate::error::{Kind, PluginError, Result, first_lines, speaks_of_memory};

/// [`PluginError`] with a C layout. It can never grow: what is new goes into the chain.
#[repr(C)]
#[derive(StableAbi, Debug)]
pub struct RError {
    kind: u32,
    chain: RVec<RString>,
    hint: RString,
    location: RString,
    config_path: RString,
}

impl From<PluginError> for RError {
    fn from(error: PluginError) -> Self {
        Self {
            kind: error.kind.code(),
            chain: error.chain.into_iter().map(RString::from).collect(),
            hint: error.hint.into(),
            location: error.location.into(),
            config_path: error.config_path.into(),
        }
    }
}

impl From<RError> for PluginError {
    fn from(error: RError) -> Self {
        let mut kind = Kind::from_code(error.kind);
        // A plugin that was built before there was a kind for it calls it a panic.
        let unnamed = matches!(kind, Kind::Panic | Kind::Other);
        if unnamed && error.chain.iter().any(|said| speaks_of_memory(said)) {
            kind = Kind::Memory;
        }
        Self {
            kind,
            chain: error.chain.into_iter().map(RString::into_string).collect(),
            hint: error.hint.into(),
            location: error.location.into(),
            config_path: error.config_path.into(),
        }
    }
}

/// What every call across the boundary returns.
pub type RAnswer<T> = RResult<T, RError>;

thread_local! {
    /// Where in the plugin the last panic of this thread arose; filled by the panic hook.
    static PANIC_PLACE: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Told by the panic hook of [`super::forward`].
pub(crate) fn note_panic_place(place: String) {
    PANIC_PLACE.with(|cell| *cell.borrow_mut() = place);
}

/// Runs `body`; a panic becomes an error of kind `Panic`, and a `tch::no_grad` that unwound is undone.
pub(crate) fn guarded<T>(body: impl FnOnce() -> Result<T>) -> Result<T> {
    let caught = catch_unwind(AssertUnwindSafe(|| {
        let _restore = GradMode::save();
        body()
    }));
    caught.unwrap_or_else(|payload| Err(panic_error(payload.as_ref())))
}

/// [`guarded`], with the value turned into what crosses.
pub(crate) fn answer<T, R>(
    body: impl FnOnce() -> Result<T>,
    pack: impl FnOnce(T) -> R,
) -> RAnswer<R> {
    match guarded(body) {
        Ok(value) => RResult::ROk(pack(value)),
        Err(error) => RResult::RErr(error.into()),
    }
}

fn panic_error(payload: &(dyn std::any::Any + Send)) -> PluginError {
    // A method that returns no `Result` may panic with the error itself.
    if let Some(error) = payload.downcast_ref::<PluginError>() {
        return error.clone();
    }
    let text = payload.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("a panic");
    // tch's operators unwrap: what libtorch said stands in the message as a Rust literal.
    let said = match text.split_once("`Err` value: Torch(\"") {
        Some((_, literal)) => format!("libtorch: {}", first_lines(&literal.replace("\\n", "\n"))),
        None => first_lines(text),
    };
    if speaks_of_memory(&said) {
        let mut error = PluginError::new(Kind::Memory, said);
        error.location = PANIC_PLACE.with(|cell| cell.take());
        return error;
    }
    let mut error = PluginError::new(Kind::Panic, format!("panicked: {said}"));
    error.location = PANIC_PLACE.with(|cell| cell.take());
    error.hint(
        "this is a bug in the component, not in your input; report it to its author".to_string(),
    )
}

/// Puts libtorch's grad mode of this thread back when dropped (also while unwinding).
struct GradMode(i32);

impl GradMode {
    fn save() -> Self {
        // SAFETY: sets the thread's flag and tells the old value; set back at once.
        unsafe {
            let old = torch_sys::at_grad_set_enabled(1);
            torch_sys::at_grad_set_enabled(old);
            Self(old)
        }
    }
}

impl Drop for GradMode {
    fn drop(&mut self) {
        // SAFETY: as above.
        unsafe { torch_sys::at_grad_set_enabled(self.0) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind as TensorKind, Tensor};

    #[test]
    fn a_panic_inside_no_grad_leaves_gradients_on() {
        let error = guarded::<()>(|| tch::no_grad(|| panic!("boom"))).unwrap_err();
        assert_eq!((error.kind, error.chain[0].as_str()), (Kind::Panic, "panicked: boom"));
        let x = Tensor::ones([1], (TensorKind::Float, Device::Cpu)).set_requires_grad(true);
        assert!((&x * 2).requires_grad());
    }

    #[test]
    fn what_libtorch_throws_is_told_in_one_line() {
        let error = guarded::<Tensor>(|| {
            let square = Tensor::ones([3, 3], (TensorKind::Float, Device::Cpu));
            Ok(square.matmul(&square.narrow(0, 0, 2)))
        });
        let said = error.unwrap_err().chain.remove(0);
        assert!(said.starts_with("panicked: libtorch: ") && !said.contains('\n'), "{said}");
        assert!(!said.contains("Exception raised"), "{said}");
    }

    #[test]
    fn an_error_survives_the_crossing() {
        let error = PluginError::new(Kind::Config, "`steps` is 0").hint("try 128").at("steps");
        assert_eq!(PluginError::from(RError::from(error.clone())), error);
    }
}
