//! A part of a network that keeps its inputs only, and is computed again in the backward pass.

use std::any::Any;
use std::cell::RefCell;
use std::ffi::{CString, c_int, c_void};
use std::mem::ManuallyDrop;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;

use tch::Tensor;
use torch_sys::C_tensor;

use crate::{Result, c_char, checked};

type Run = unsafe extern "C" fn(
    data: *mut c_void,
    inputs: *const *mut C_tensor,
    count: usize,
    made: *mut c_void,
) -> *const c_char;

// SAFETY: the signatures repeat cpp/stages.cpp.
unsafe extern "C" {
    fn maskdiff_gradients_on() -> c_int;
    fn maskdiff_made(made: *mut c_void, tensor: *mut C_tensor);
    fn maskdiff_stage_entered(stage: i64, result: *mut *mut c_void) -> *mut c_char;
    fn maskdiff_stage_left(entered: *mut c_void) -> *mut c_char;
    fn maskdiff_stage(
        stage: i64,
        inputs: *const *mut C_tensor,
        count: usize,
        data: *mut c_void,
        run: Run,
        drop: unsafe extern "C" fn(*mut c_void),
        list: *mut c_void,
        give: unsafe extern "C" fn(*mut c_void, *mut C_tensor),
    ) -> *mut c_char;
}

/// Whether operations of this thread are recorded for a backward pass.
pub fn gradients_on() -> bool {
    // SAFETY: reads a flag of this thread.
    unsafe { maskdiff_gradients_on() != 0 }
}

/// What a panic carries.
type Payload = Box<dyn Any + Send>;
/// A panic of the first run, on its way through C++.
type Caught = Rc<RefCell<Option<Payload>>>;

/// What computes a part.
type Body = dyn Fn(&[Tensor]) -> Vec<Tensor>;

struct Block {
    body: Box<Body>,
    panic: Caught,
    /// What C++ reads of the last failure.
    said: CString,
}

/// What a panic says.
fn words(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<String>().cloned();
    text.or_else(|| payload.downcast_ref::<&str>().map(ToString::to_string))
        .unwrap_or_else(|| "it panicked".into())
}

/// Runs a block for C++.
///
/// # Safety
/// `data` is a `Block` that nobody else uses meanwhile, `inputs` are `count` new handles, `made` is a list of C++.
unsafe extern "C" fn run(
    data: *mut c_void,
    inputs: *const *mut C_tensor,
    count: usize,
    made: *mut c_void,
) -> *const c_char {
    // SAFETY: by the contract of this function. A backward pass on a GPU runs it on a thread of libtorch, while the thread that made
    // the block waits for it.
    let block = unsafe { &mut *data.cast::<Block>() };
    let inputs: Vec<Tensor> = (0..count)
        // SAFETY: as above.
        .map(|i| unsafe { Tensor::from_ptr(*inputs.add(i)) })
        .collect();
    match catch_unwind(AssertUnwindSafe(|| (block.body)(&inputs))) {
        Ok(outputs) => {
            for output in outputs {
                let mut output = ManuallyDrop::new(output);
                // SAFETY: C++ takes the handle over, so this side forgets it.
                unsafe { maskdiff_made(made, output.as_mut_ptr()) };
            }
            std::ptr::null()
        }
        Err(payload) => {
            let text = words(payload.as_ref()).replace('\0', " ");
            block.said = CString::new(text).unwrap_or_default();
            *block.panic.borrow_mut() = Some(payload);
            block.said.as_ptr()
        }
    }
}

/// # Safety
/// `data` is a `Block` that nothing uses any more.
unsafe extern "C" fn drop_block(data: *mut c_void) {
    // SAFETY: by the contract of this function.
    drop(unsafe { Box::from_raw(data.cast::<Block>()) });
}

/// # Safety
/// `list` is a `Vec<Tensor>` and `tensor` a new handle.
unsafe extern "C" fn give(list: *mut c_void, tensor: *mut C_tensor) {
    // SAFETY: by the contract of this function.
    unsafe { (*list.cast::<Vec<Tensor>>()).push(Tensor::from_ptr(tensor)) };
}

/// What `body` makes as the stage of that number, of which no gradient is needed.
///
/// # Errors
/// What the host does where a stage begins or ends has failed.
pub fn announced<T>(stage: usize, body: impl FnOnce() -> T) -> Result<T> {
    /// Ends the stage where `body` panics.
    struct Entered(*mut c_void);
    impl Drop for Entered {
        fn drop(&mut self) {
            // SAFETY: made by `maskdiff_stage_entered` and not used again; the host has noted what failed.
            let _ = checked(unsafe { maskdiff_stage_left(self.0) });
        }
    }
    let mut entered = std::ptr::null_mut();
    // SAFETY: a place for what is made.
    checked(unsafe { maskdiff_stage_entered(number(stage), &raw mut entered) })?;
    let entered = Entered(entered);
    let made = body();
    let entered = ManuallyDrop::new(entered).0;
    // SAFETY: as in `Entered`, which does not drop it.
    checked(unsafe { maskdiff_stage_left(entered) })?;
    Ok(made)
}

fn number(stage: usize) -> i64 {
    i64::try_from(stage).unwrap_or(i64::MAX)
}

/// Runs `body` over `inputs` as the stage of that number. Of it the inputs alone are kept for the backward pass, in which `body` runs again under
/// the same random numbers and the same reduced precision (activation checkpointing; Chen et al. 2016, arXiv:1604.06174).
///
/// Values and gradients equal those of `body(inputs)`, bit for bit. Under reduced precision that holds where `body` uses no weight twice: each
/// use then has a cast of its own. `body` must return equal values for equal inputs. Each tensor with a gradient that it reads is an input
/// or a leaf.
///
/// # Errors
/// A tensor with a graph that is not among the inputs. A panic of `body` goes on as one; in the backward pass it is an error of
/// that.
pub fn recomputed(
    stage: usize,
    inputs: &[&Tensor],
    body: impl Fn(&[Tensor]) -> Vec<Tensor> + 'static,
) -> Result<Vec<Tensor>> {
    let list: Vec<*mut C_tensor> = inputs.iter().map(|input| input.as_ptr().cast_mut()).collect();
    let panic = Caught::default();
    let block = Block { body: Box::new(body), panic: Rc::clone(&panic), said: CString::default() };
    let data = Box::into_raw(Box::new(block)).cast();
    let mut made: Vec<Tensor> = Vec::new();
    // SAFETY: live tensors; C++ takes the block over and drops it once; `made` outlives the call.
    let answer = checked(unsafe {
        maskdiff_stage(
            number(stage),
            list.as_ptr(),
            list.len(),
            data,
            run,
            drop_block,
            (&raw mut made).cast(),
            give,
        )
    });
    if let Some(payload) = panic.borrow_mut().take() {
        resume_unwind(payload);
    }
    answer.map(|()| made)
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;
    use crate::{allocated_bytes, dropout};

    const FLOAT: (Kind, Device) = (Kind::Float, Device::Cpu);

    /// Eight maps behind one another, each with dropout and beside an input that all read; with the gradients of all leaves.
    fn trained(again: bool, kind: Kind) -> Vec<Tensor> {
        tch::manual_seed(3);
        let leaf = |shape: &[i64]| {
            let x = Tensor::randn(shape, FLOAT).to_kind(kind);
            x.set_requires_grad(true)
        };
        let (x, beside) = (leaf(&[4, 16]), leaf(&[1, 16]));
        let weights: Vec<Tensor> = (0..8).map(|_| leaf(&[16, 16])).collect();
        let (mut h, level) = (x.tanh(), beside.sigmoid());
        for w in &weights {
            let w = w.shallow_clone();
            let body = move |s: &[Tensor]| {
                let y = (&s[0] + &s[1]).matmul(&w).tanh();
                vec![&s[0] + dropout(&y, 0.3).unwrap(), y.square()]
            };
            let made = match again {
                true => recomputed(0, &[&h, &level], body).unwrap(),
                false => body(&[h, level.shallow_clone()]),
            };
            h = &made[0] + &made[1] * 0.1;
        }
        let loss = (&h * &h).sum(kind);
        loss.backward();
        let after = Tensor::rand([3], FLOAT);
        [&x, &beside].into_iter().chain(&weights).map(Tensor::grad).chain([loss, after]).collect()
    }

    #[test]
    fn gradients_are_the_same_to_the_last_bit_and_draws_go_on_alike() {
        for kind in [Kind::Float, Kind::Double, Kind::BFloat16] {
            let (plain, again) = (trained(false, kind), trained(true, kind));
            for (i, (a, b)) in plain.iter().zip(&again).enumerate() {
                assert!(a.defined() && a.equal(b), "{kind:?}: tensor {i} differs");
            }
        }
    }

    #[test]
    fn what_a_block_keeps_is_its_input() {
        let x = Tensor::randn([256, 1024], FLOAT).set_requires_grad(true);
        let held = |again: bool| {
            let before = allocated_bytes();
            let mut h = x.shallow_clone();
            for _ in 0..4 {
                let body = |s: &[Tensor]| vec![s[0].exp().tanh().sin().cos().sigmoid()];
                h = match again {
                    true => recomputed(0, &[&h], body).unwrap().remove(0),
                    false => body(&[h]).remove(0),
                };
            }
            allocated_bytes() - before
        };
        // Of five results of a megabyte in each of four blocks four are kept (the cosine keeps what it read, and the last function what it made), or one.
        let (all, one) = (held(false) >> 20, held(true) >> 20);
        assert!((15..=21).contains(&all) && (3..=5).contains(&one), "{all} MB and {one} MB");
    }

    #[test]
    fn what_cannot_be_is_said() {
        let x = Tensor::ones([2], FLOAT).set_requires_grad(true);
        let apart = x.exp();
        let error = recomputed(0, &[&x], move |s| vec![&s[0] * &apart]).unwrap_err().to_string();
        assert!(error.contains("not among its inputs"), "{error}");
        let y = recomputed(0, &[&x], |s| vec![s[0].exp()]).unwrap().remove(0);
        let twice = Tensor::f_run_backward(&[y.sum(Kind::Float)], &[&x], true, true);
        assert!(twice.unwrap_err().to_string().contains("gradient of its gradient"));
        let died =
            catch_unwind(AssertUnwindSafe(|| recomputed(0, &[&x], |_| panic!("no such network"))));
        assert_eq!(words(died.unwrap_err().as_ref()), "no such network");
        // Where nothing is recorded, nothing is kept.
        let calls = Rc::new(std::cell::Cell::new(0));
        let seen = Rc::clone(&calls);
        let body = move |s: &[Tensor]| {
            seen.set(seen.get() + 1);
            assert!(seen.get() < 2, "the second run fails");
            vec![s[0].exp()]
        };
        let z = recomputed(0, &[&x], body).unwrap().remove(0).sum(Kind::Float);
        let error = z.f_backward().unwrap_err().to_string();
        assert!(error.contains("the second run fails"), "{error}");
        assert_eq!(calls.get(), 2);
        assert!(gradients_on() && !tch::no_grad(gradients_on));
    }

    #[test]
    fn frozen_inputs_do_not_take_the_gradient_from_weights() {
        let w = Tensor::ones([2], FLOAT).set_requires_grad(true);
        let own = w.shallow_clone();
        let x = Tensor::from_slice(&[2f32, 3.0]);
        let y = recomputed(0, &[&x], move |s| vec![&s[0] * &own]).unwrap().remove(0);
        y.sum(Kind::Float).backward();
        assert_eq!(w.grad(), x);
        let still = recomputed(0, &[&x], |s| vec![s[0].exp()]).unwrap().remove(0);
        assert!(!still.requires_grad());
    }
}
