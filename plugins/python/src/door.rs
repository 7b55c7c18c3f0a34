//! Calls between Rust and Python: a line of JSON and a list of tensors each way, through C functions of which each side
//! knows the other's address.
//!
//! Into Python a tensor goes as `at::Tensor*`, which Python wraps; out of it as the `c10::TensorImpl*` that a
//! `torch.Tensor` holds. Either way both sides share it.
#![expect(unsafe_code, reason = "C functions between two languages")]

use std::cell::RefCell;
use std::ffi::{CStr, CString, c_char, c_void};

use maskdiff_plugin_api::prelude::*;
use maskdiff_plugin_api::{Kind, PluginError};
use serde_json::{Map, Value, json};

use crate::ask_model;
use crate::interpreter::{Python, python};

/// An argument of a method.
pub(crate) enum Argument<'a> {
    Model,
    Tensor(&'a Tensor),
    Number(f64),
    Count(i64),
    Flag(bool),
    /// An object in JSON, without a key `tensor` or `model`.
    Words(Value),
}

/// A Python object by its number in `door.py`.
pub(crate) struct Object {
    python: &'static Python,
    number: u64,
}

/// What came back: JSON, and the tensors that it counts.
#[derive(Default)]
struct Answer {
    said: Value,
    tensors: Vec<Tensor>,
}

impl Object {
    /// Makes `FILE:CLASS` with the options as keyword arguments.
    pub(crate) fn new(
        class: &str,
        (kind, promises): (&str, &[&str]),
        options: &Map<String, Value>,
        context: &Value,
    ) -> Result<Self> {
        let python = python()?;
        let request = json!({
            "make": class, "kind": kind, "promises": promises, "options": options, "context": context
        });
        let answer = ask(python, &request, &[], None)?;
        let Some(number) = answer.said["value"].as_u64() else {
            bail!(Other, "Python gave no object for `{class}`: {}", answer.said);
        };
        Ok(Self { python, number })
    }

    fn call(
        &self,
        method: &str,
        arguments: &[Argument<'_>],
        model: Option<&Denoiser>,
    ) -> Result<Answer> {
        let mut tensors = Vec::new();
        let words: Vec<Value> = arguments
            .iter()
            .map(|argument| match argument {
                Argument::Model => json!({"model": facts(model)}),
                Argument::Number(number) => json!(number),
                Argument::Count(count) => json!(count),
                Argument::Flag(flag) => json!(flag),
                Argument::Words(words) => words.clone(),
                Argument::Tensor(tensor) => {
                    tensors.push(*tensor);
                    json!({"tensor": tensors.len() - 1})
                }
            })
            .collect();
        let request = json!({"object": self.number, "method": method, "arguments": words});
        ask(self.python, &request, &tensors, model)
    }

    /// A method that gives a tensor.
    pub(crate) fn tensor(
        &self,
        method: &str,
        arguments: &[Argument<'_>],
        model: Option<&Denoiser>,
    ) -> Result<Tensor> {
        let answer = self.call(method, arguments, model)?;
        let count = answer.tensors.len();
        match <[Tensor; 1]>::try_from(answer.tensors) {
            Ok([tensor]) => Ok(tensor),
            Err(_) if count == 0 => {
                bail!(Shape, "`{method}` returned {}, expected a tensor", answer.said["value"])
            }
            Err(_) => bail!(Shape, "`{method}` returned {count} tensors, expected one"),
        }
    }

    /// A method that gives two tensors.
    pub(crate) fn tensors(&self, method: &str, arguments: &[Argument<'_>]) -> Result<[Tensor; 2]> {
        let answer = self.call(method, arguments, None)?;
        let count = answer.tensors.len();
        match <[Tensor; 2]>::try_from(answer.tensors) {
            Ok(both) => Ok(both),
            Err(_) => bail!(
                Shape,
                "`{method}` returned {count} tensors and {}, expected two tensors",
                answer.said["value"]
            ),
        }
    }

    /// A method that gives any number of tensors.
    pub(crate) fn all(&self, method: &str, arguments: &[Argument<'_>]) -> Result<Vec<Tensor>> {
        Ok(self.call(method, arguments, None)?.tensors)
    }

    /// What a network says of its parameters and its head, and the parameters themselves.
    pub(crate) fn described(&self) -> Result<(Value, Vec<Tensor>)> {
        let Answer { mut said, tensors } = self.call("described", &[], None)?;
        Ok((said["value"].take(), tensors))
    }

    /// A method that gives two numbers.
    pub(crate) fn pair(&self, method: &str) -> Result<(f64, f64)> {
        let said = self.call(method, &[], None)?.said;
        match (said["value"][0].as_f64(), said["value"][1].as_f64()) {
            (Some(low), Some(high)) => Ok((low, high)),
            _ => bail!(Shape, "`{method}` returned {}, expected two numbers", said["value"]),
        }
    }
}

impl Drop for Object {
    fn drop(&mut self) {
        let _ = ask(self.python, &json!({"drop": self.number}), &[], None);
    }
}

/// What Python is told of the model.
fn facts(model: Option<&Denoiser>) -> Value {
    model.map_or(Value::Null, |model| {
        json!({
            "vocab_size": model.vocab_size(),
            "mask_id": model.mask_id().ok(),
            "time_conditioning": model.time_conditioning(),
        })
    })
}

fn ask(
    python: &Python,
    request: &Value,
    tensors: &[&Tensor],
    model: Option<&Denoiser>,
) -> Result<Answer> {
    let request = CString::new(request.to_string())?;
    let tensors: Vec<*const c_void> = tensors.iter().map(|t| t.as_ptr().cast()).collect();
    let model = model.map_or(std::ptr::null(), |m| std::ptr::from_ref(m).cast::<c_void>());
    let mut answer = Answer::default();
    python.with_lock(|call| {
        // SAFETY: all pointers live until Python has returned; it gives the answer to `take_answer` before.
        unsafe {
            call(
                request.as_ptr(),
                tensors.as_ptr(),
                tensors.len(),
                model,
                (&raw mut answer).cast(),
            );
        }
    });
    // What Python was reading is read: a large tensor must not stay behind.
    drop(REPLY.take());
    if let Some(raised) = answer.said.get("raised") {
        return Err(raised_error(raised));
    }
    Ok(answer)
}

/// What Python raised. An error of ours that went through Python is itself again.
fn raised_error(raised: &Value) -> PluginError {
    let text = |key: &str| raised[key].as_str().unwrap_or_default().to_string();
    let kind = match raised["kind"].as_str().unwrap_or_default() {
        "Config" => Kind::Config,
        "Shape" => Kind::Shape,
        "Numeric" => Kind::Numeric,
        "Io" => Kind::Io,
        "Interrupted" => Kind::Interrupted,
        "Unsupported" => Kind::Unsupported,
        "Panic" => Kind::Panic,
        _ => Kind::Other,
    };
    let mut error = PluginError::new(kind, text("message")).hint(text("traceback"));
    error.location = text("place");
    // Links that are all words: who is at fault may be the first.
    let chain = raised["chain"].as_array().into_iter().flatten();
    let chain: Vec<String> = chain.filter_map(Value::as_str).map(str::to_string).collect();
    if !chain.is_empty() {
        error.chain = chain;
    }
    error
}

/// Called by Python with the answer to a request: JSON, and the implementations of its tensors.
///
/// # Safety
/// `answer` is the pointer that came with the request; the implementations live.
pub(crate) unsafe extern "C" fn take_answer(
    answer: *mut c_void,
    said: *const c_char,
    impls: *const *mut c_void,
    count: usize,
) {
    // SAFETY: `ask` waits for this call with its answer on the stack.
    let answer = unsafe { &mut *answer.cast::<Answer>() };
    // SAFETY: Python passes a string that ends in zero, and as many pointers as it says.
    let (said, tensors) = unsafe { (parsed(said), taken(impls, count)) };
    match tensors {
        Ok(tensors) => *answer = Answer { said, tensors },
        Err(error) => answer.said = json!({"raised": {"message": error.to_string()}}),
    }
}

unsafe fn parsed(text: *const c_char) -> Value {
    // SAFETY: by the caller.
    let bytes = unsafe { CStr::from_ptr(text) }.to_bytes();
    serde_json::from_slice(bytes).unwrap_or_default()
}

unsafe fn taken(impls: *const *mut c_void, count: usize) -> Result<Vec<Tensor>> {
    let each = (0..count).map(|i| {
        // SAFETY: by the caller.
        Ok(unsafe { maskdiff_native::tensor_of_impl(*impls.add(i)) }?)
    });
    each.collect()
}

/// What a call of the model gives.
pub(crate) enum Made {
    Tensor(Tensor),
    Value(Value),
}

thread_local! {
    /// What Python is reading.
    static REPLY: RefCell<(Option<Tensor>, CString)> = RefCell::default();
}

/// A call of the model out of Python. Gives JSON, valid until the next call of this thread, and at most one tensor as
/// `at::Tensor*` in `made`, which Python wraps before it calls again.
///
/// # Safety
/// `model` is the pointer that came with the request in progress; `made` is writable; the implementations live.
pub(crate) unsafe extern "C" fn call_model(
    model: *const c_void,
    request: *const c_char,
    impls: *const *mut c_void,
    count: usize,
    made: *mut *const c_void,
) -> *const c_char {
    drop(REPLY.take());
    // A panic must not unwind into Python.
    let answered = std::panic::catch_unwind(|| -> Result<Made> {
        // SAFETY: Python passes a string that ends in zero, and as many pointers as it says.
        let (request, tensors) = unsafe { (parsed(request), taken(impls, count)?) };
        ensure!(
            !model.is_null(),
            Unsupported,
            "a model is there only during the call that brought it"
        );
        // SAFETY: `ask` holds the reference while Python runs.
        let model = unsafe { &*model.cast::<Denoiser<'_>>() };
        let numbers = request["numbers"].as_array().into_iter().flatten();
        let numbers: Vec<f64> = numbers.filter_map(Value::as_f64).collect();
        let name = request["name"].as_str().unwrap_or_default();
        ask_model(model, name, &tensors, &numbers)
    });
    let answered = answered
        .unwrap_or_else(|_| Err(PluginError::new(Kind::Panic, "a call of the model panicked")));
    let (tensor, said) = match answered {
        Ok(Made::Tensor(tensor)) => (Some(tensor), Value::Null),
        Ok(Made::Value(value)) => (None, json!({"value": value})),
        Err(error) => {
            let kind = format!("{:?}", error.kind);
            (
                None,
                json!({"error": error.to_string(), "chain": error.chain, "kind": kind, "hint": error.hint}),
            )
        }
    };
    REPLY.with_borrow_mut(|reply| {
        // Empty since the beginning, but for a call within this one.
        *reply = (tensor, CString::new(said.to_string()).unwrap_or_default());
        // SAFETY: Python gives the address of a pointer of its own.
        unsafe { *made = reply.0.as_ref().map_or(std::ptr::null(), |t| t.as_ptr().cast()) };
        reply.1.as_ptr()
    })
}
