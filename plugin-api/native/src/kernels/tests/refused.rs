//! Calls that a kernel must not see: each is an error that names the operator and the argument.

use std::ffi::{CString, c_char};

use super::*;

// SAFETY: the signatures repeat cpp/kernels.cpp.
unsafe extern "C" {
    fn maskdiff_kernels_call(
        name: *const c_char,
        tensors: *const *const C_tensor,
        numbers: *const i64,
    ) -> *mut c_char;
    fn maskdiff_kernels_refusal(
        what: *const c_char,
        code: c_int,
        said: *const c_char,
    ) -> *mut c_char;
}

/// An operator with right arguments. A null tensor stands for none.
struct Call {
    op: &'static str,
    names: Vec<&'static str>,
    tensors: Vec<Tensor>,
    numbers: Vec<i64>,
}

impl Call {
    fn run(&self, tensors: &[&Tensor]) -> Result<()> {
        let name = CString::new(format!("maskdiff::{}", self.op)).unwrap();
        let pointers: Vec<*const C_tensor> = tensors.iter().map(|x| x.as_ptr()).collect();
        // SAFETY: as many live tensors and numbers as the operator has.
        checked(unsafe {
            maskdiff_kernels_call(name.as_ptr(), pointers.as_ptr(), self.numbers.as_ptr())
        })
    }
}

/// One of each operator: 2 texts of 3 tokens, 8 wide, 2 heads, a vocabulary of 9.
fn calls() -> Vec<Call> {
    let float = |size: &[i64]| Tensor::rand(size, (Kind::Float, Device::Cpu));
    let double = |size: &[i64]| Tensor::rand(size, (Kind::Double, Device::Cpu));
    let token = || Tensor::from_slice(&[1i64, 2, 3, 4]);
    let (x, m, d) = (|| float(&[2, 3, 8]), || float(&[2, 1, 8]), || float(&[8]));
    let heads = || float(&[2, 2, 3, 4]);
    let seed = || Tensor::from_slice(&[1i64, 2]);
    let angles = || float(&[3, 1, 1, 2]);
    vec![
        Call {
            op: "turn",
            names: vec!["q", "k", "v", "cos", "sin", "into"],
            tensors: vec![heads(), heads(), heads(), angles(), angles(), float(&[2, 3, 3, 2, 4])],
            numbers: vec![1],
        },
        Call {
            op: "gated",
            names: vec!["x", "gate", "h", "seed"],
            tensors: vec![x(), m(), x(), seed()],
            numbers: vec![6_554],
        },
        Call {
            op: "gated_back",
            names: vec!["up", "gate", "h", "seed"],
            tensors: vec![x(), m(), x(), seed()],
            numbers: vec![6_554],
        },
        Call {
            op: "norm",
            names: vec!["x", "weight", "shift", "scale"],
            tensors: vec![x(), d(), m(), m()],
            numbers: vec![6],
        },
        Call {
            op: "norm_back",
            names: vec!["through", "up", "x", "mean", "inverse", "weight", "scale"],
            tensors: vec![x(), x(), x(), float(&[6]), float(&[6]), d(), m()],
            numbers: vec![],
        },
        Call {
            op: "nll",
            names: vec!["logits", "target", "weight", "nll"],
            tensors: vec![float(&[4, 9]), token(), float(&[4]), float(&[4])],
            numbers: vec![8, 1],
        },
        Call {
            op: "bound",
            names: vec!["logits", "x", "z", "alpha", "every", "weight", "nats"],
            tensors: vec![
                float(&[4, 9]),
                token(),
                token(),
                double(&[4]),
                double(&[4]),
                double(&[4]),
                float(&[4]),
            ],
            numbers: vec![8, 1],
        },
    ]
}

/// The same numbers with gaps between neighbours.
fn with_gaps(x: &Tensor) -> Tensor {
    Tensor::stack(&[x, x], -1).select(-1, 0)
}

#[test]
fn a_wrong_call_is_an_error_that_names_the_argument() {
    let _on = OnCpu::new();
    for call in calls() {
        let right: Vec<&Tensor> = call.tensors.iter().collect();
        call.run(&right).unwrap_or_else(|error| panic!("{}: {error}", call.op));
        for (i, name) in call.names.iter().enumerate() {
            let x = &call.tensors[i];
            let last = x.dim() as i64 - 1;
            let wrong = [
                ("of another type", x.to_kind(Kind::Half)),
                ("too short", x.narrow(last, 0, x.size()[last as usize] - 1).contiguous()),
                ("with gaps", with_gaps(x)),
                ("of more dimensions", x.unsqueeze(0)),
            ];
            for (what, wrong) in wrong {
                let mut tensors = right.clone();
                tensors[i] = &wrong;
                let said = match call.run(&tensors) {
                    Ok(()) => panic!("{}: `{name}` {what} is taken", call.op),
                    Err(error) => error.to_string(),
                };
                assert!(said.contains(&format!("{}: ", call.op)), "{name} {what}: {said}");
                // What is wrong about one is often said of the other.
                let all = || call.names.iter().chain(&["banned"]);
                let named = all().any(|name| said.contains(&format!("`{name}`")));
                assert!(named, "{} {name} {what}: {said}", call.op);
            }
        }
    }
}

#[test]
fn numbers_that_no_kernel_takes_are_refused() {
    let _on = OnCpu::new();
    for (op, numbers, word) in [
        ("gated", vec![65_536], "`dropped` is 65536"),
        ("gated_back", vec![-1], "`dropped` is -1"),
        ("nll", vec![9, 1], "`banned` is 9"),
        ("bound", vec![9, 1], "`banned` is 9"),
        ("norm", vec![7], "`type` is Double"),
    ] {
        let mut call = calls().into_iter().find(|call| call.op == op).unwrap();
        call.numbers = numbers;
        let said = call.run(&call.tensors.iter().collect::<Vec<_>>()).unwrap_err().to_string();
        assert!(said.contains(word), "{op}: {said}");
    }
    // Rows that are longer than what a block shares.
    let long = Tensor::zeros([1, 1, 6_145], (Kind::Float, Device::Cpu));
    let call = calls().into_iter().find(|call| call.op == "gated").unwrap();
    let said = call.run(&[&long, &long, &long, &call.tensors[3]]).unwrap_err().to_string();
    assert!(said.contains("1 to 6144"), "{said}");
}

/// A GPU reports a fault to whoever calls next: the kernel that hears of it is not to blame.
#[test]
fn a_fault_of_earlier_work_is_not_laid_on_the_kernel_that_hears_of_it() {
    let words = |code: c_int| {
        // SAFETY: strings of C; the words are given away.
        let said = checked(unsafe {
            maskdiff_kernels_refusal(
                c"started the kernel nll_b".as_ptr(),
                code,
                c"an illegal memory access was encountered".as_ptr(),
            )
        });
        said.unwrap_err().to_string()
    };
    let earlier = words(700);
    assert!(earlier.contains("fault of earlier work") && earlier.contains("(700)"), "{earlier}");
    assert!(earlier.contains("CUDA_LAUNCH_BLOCKING=1"), "{earlier}");
    let own = words(701);
    assert!(own.contains("driver refused when it started the kernel nll_b"), "{own}");
    assert!(!own.contains("earlier"), "{own}");
}
