//! The bound of uniform diffusion over a head of 50,258 tokens with its gradients: fused, and as the formula is written over all
//! logits. Each in a process of its own, which prints its peak memory over the weights and the best of its times.

use std::time::Instant;

use maskdiff_native::{InterpolatingRows, interpolating_nll};
use maskdiff_tests::bench::{THREADS, peak_mib};
use tch::{Device, Kind, Tensor};

const VOCABULARY: i64 = 50_258;
const WIDTH: i64 = 128;
const ROWS: i64 = 256;
const REPEATS: usize = 5;

/// One loss with its gradients at a third of the way to noise.
struct Case {
    hidden: Tensor,
    matrix: Tensor,
    bias: Tensor,
    x_n: Tensor,
    z_n: Tensor,
    alpha_n: Tensor,
    every_n: Tensor,
    weight_n: Tensor,
}

impl Case {
    fn new() -> Self {
        tch::manual_seed(1);
        let (float, double) = ((Kind::Float, Device::Cpu), (Kind::Double, Device::Cpu));
        let tokens = || Tensor::randint(VOCABULARY, [ROWS], (Kind::Int64, Device::Cpu));
        let alpha = 0.7;
        let leaf = |shape: &[i64], scale: f64| {
            let value: Tensor = Tensor::randn(shape, float) * scale;
            value.set_requires_grad(true)
        };
        let (x_n, any) = (tokens(), tokens());
        let kept = Tensor::rand([ROWS], double).lt(alpha);
        Self {
            hidden: leaf(&[ROWS, WIDTH], 1.0),
            matrix: leaf(&[VOCABULARY, WIDTH], 0.1),
            bias: leaf(&[VOCABULARY], 0.1),
            z_n: x_n.where_self(&kept, &any),
            x_n,
            alpha_n: Tensor::full([ROWS], alpha, double),
            every_n: Tensor::full([ROWS], (1.0 - alpha) / VOCABULARY as f64, double),
            weight_n: Tensor::full([ROWS], 1.0, double),
        }
    }

    fn fused(&self) -> Tensor {
        let rows = InterpolatingRows {
            x_n: &self.x_n,
            z_n: &self.z_n,
            alpha_n: &self.alpha_n,
            every_n: &self.every_n,
            weight_n: &self.weight_n,
            banned: None,
        };
        interpolating_nll(&self.hidden, &self.matrix, Some(&self.bias), &rows, None).expect("nats")
    }

    /// `KL(q ‖ p~) + q_z/p~_z - ln(q_z/p~_z) - 1` over all logits.
    fn dense(&self) -> Tensor {
        let column = |t: &Tensor| t.to_kind(Kind::Float).unsqueeze(1);
        let (alpha, every) = (column(&self.alpha_n), column(&self.every_n));
        let logits = self.hidden.linear(&self.matrix, Some(&self.bias));
        let mixed = logits.softmax(-1, Kind::Float) * &alpha + &every;
        let x = self.x_n.unsqueeze(1);
        let clean = every.expand_as(&mixed).contiguous().scatter_add(1, &x, &alpha);
        let kl = (&clean * (clean.log() - mixed.log())).sum_dim_intlist(1, false, Kind::Float);
        let at = |t: &Tensor| t.gather(1, &self.z_n.unsqueeze(1), false).squeeze_dim(1);
        let ratio = at(&clean) / at(&mixed);
        kl + &ratio - ratio.log() - 1.0
    }
}

fn measure(name: &str, nats: impl Fn(&Case) -> Tensor) {
    tch::set_num_threads(THREADS);
    let case = Case::new();
    // What libtorch sets up at the first product is not the loss's.
    drop(case.hidden.detach().narrow(0, 0, 1).linear(&case.matrix.detach(), None::<&Tensor>));
    let before = peak_mib();
    let mut best = f64::INFINITY;
    for _ in 0..REPEATS {
        let start = Instant::now();
        let loss = nats(&case).mean(Kind::Float);
        drop(Tensor::run_backward(
            &[loss],
            &[&case.hidden, &case.matrix, &case.bias],
            false,
            false,
        ));
        best = best.min(start.elapsed().as_secs_f64());
    }
    println!("head {name}_s {best:.4} s");
    println!("head {name}_peak_mib {:.0} MiB", peak_mib() - before);
}

fn main() {
    match std::env::var("MASKDIFF_BENCH_HEAD").ok().as_deref() {
        Some("fused") => return measure("fused", Case::fused),
        Some("dense") => return measure("dense", Case::dense),
        _ => {}
    }
    let own = std::env::current_exe().expect("this program");
    for name in ["fused", "dense"] {
        let status = std::process::Command::new(&own).env("MASKDIFF_BENCH_HEAD", name).status();
        assert!(status.expect("the child starts").success(), "{name} failed");
    }
}
