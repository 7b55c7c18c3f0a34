//! A whole training step of uniform diffusion over 50,258 tokens: the product's; the same over all logits, with the original's network
//! and optimizer; and its matrix products alone. Each in a process of its own.
//!
//! Prints `uniform NAME NUMBER UNIT`, which `scripts/bench_json.py` reads.

use std::process::Command;
use std::rc::Rc;
use std::time::Instant;

use maskdiff_config::{Request, load};
use maskdiff_engine::distributed::World;
use maskdiff_engine::draws::{mask_uniforms, time_uniforms};
use maskdiff_engine::learner::{Ask, Batch, Learner};
use maskdiff_engine::model::Model;
use maskdiff_tests::bench::{Size, THREADS, median, peak_mib, registry};
use maskdiff_tests::original::Original;
use tch::{Device, Kind, Tensor};

const ASKED: &str = "MASKDIFF_BENCH_UNIFORM";
const VOCABULARY: i64 = 50_258;
const LENGTH: i64 = 128;
const BATCH: i64 = 8;
const STEPS: u64 = 7;

fn batch(model: &Model, step: u64) -> Batch {
    let u_b = time_uniforms(1, step, BATCH, true).expect("memory");
    let x0_bl = Tensor::randint(VOCABULARY, [BATCH, LENGTH], (Kind::Int64, Device::Cpu));
    let u_bl = mask_uniforms(1, step, 0, BATCH as usize, LENGTH as usize).expect("memory");
    Batch {
        x0_bl,
        t_b: model.draw_t(&u_b).expect("times"),
        counted_bl: None,
        given_bl: None,
        label_b: None,
        document_bl: None,
        u_bl: Some(u_bl),
        streams: None,
    }
}

fn report(name: &str, seconds: Vec<f64>) {
    println!("uniform {name}_step_s {:.4} s", median(seconds));
    println!("uniform {name}_peak_mib {:.0} MiB", peak_mib());
}

/// Seconds of each step; the first warms up.
fn timed(mut step: impl FnMut(u64) -> f64) -> Vec<f64> {
    step(0);
    (1..=STEPS).map(step).collect()
}

fn product(size: &Size) {
    let model = size.over_uniform(&registry());
    let config = load(&Request::default()).expect("a configuration");
    let mut learner = Learner::new(&model, &config, Rc::new(World::alone())).expect("a learner");
    let seconds = timed(|k| {
        let batch = batch(&model, k);
        let begun = Instant::now();
        learner.step(&model, vec![batch], Ask::STEP).expect("a step");
        begun.elapsed().as_secs_f64()
    });
    report("product", seconds);
}

fn dense(size: &Size) {
    let model = size.over_uniform(&registry());
    let mut peer = Original::new(&model, size.n_heads, size.n_blocks, 0.1);
    // A peer that computes something else is no peer; two sequences tell.
    let Batch { x0_bl, t_b, u_bl, .. } = batch(&model, 0);
    let part = |t: &Tensor| t.narrow(0, 0, 2);
    let off = peer.difference_of_uniform(&model, &part(&x0_bl), &part(&t_b), &part(&u_bl.unwrap()));
    assert!(off < 1e-4, "the loss over all logits is off by {off:e}");
    let seconds = timed(|k| {
        let Batch { x0_bl, t_b, u_bl, .. } = batch(&model, k);
        let u_bl = u_bl.expect("uniforms");
        let begun = Instant::now();
        peer.step_by(1e-4, |peer| peer.uniform_loss(&model, &x0_bl, &t_b, &u_bl, true));
        begun.elapsed().as_secs_f64()
    });
    report("dense", seconds);
}

/// The products of matrices of one step, forward and backward, into memory that is there.
fn products(size: &Size) {
    tch::set_num_threads(THREADS);
    let (float, rows, d) = ((Kind::Float, Device::Cpu), BATCH * LENGTH, size.hidden_size);
    let (heads, width) = (BATCH * size.n_heads, d / size.n_heads);
    // How often, batch, rows, inner, columns of the forward product.
    let shapes = [
        (size.n_blocks, 1, rows, d, 3 * d),
        (size.n_blocks, 1, rows, d, d),
        (size.n_blocks, 1, rows, d, 4 * d),
        (size.n_blocks, 1, rows, 4 * d, d),
        (size.n_blocks, heads, LENGTH, width, LENGTH),
        (size.n_blocks, heads, LENGTH, LENGTH, width),
        (1, 1, rows, d, size.vocab_size),
    ];
    let mut total = 0.0;
    for (times, b, n, k, m) in shapes {
        let make = |r: i64, c: i64| Tensor::randn([b, r, c], float);
        let (x, w, y) = (make(n, k), make(k, m), make(n, m));
        let (forward, of_x, of_w) = (make(n, m), make(n, k), make(k, m));
        let mut seconds = Vec::new();
        for _ in 0..=5 {
            let begun = Instant::now();
            let _ = x.bmm_out(&forward, &w);
            let _ = y.bmm_out(&of_x, &w.transpose(1, 2));
            let _ = x.transpose(1, 2).bmm_out(&of_w, &y);
            seconds.push(begun.elapsed().as_secs_f64());
        }
        // The first warms up.
        total += times as f64 * median(seconds.split_off(1));
    }
    println!("uniform products_step_s {total:.4} s");
}

fn main() {
    let size = Size::small(VOCABULARY, LENGTH);
    match std::env::var(ASKED).as_deref() {
        Ok("product") => return product(&size),
        Ok("dense") => return dense(&size),
        Ok("products") => return products(&size),
        _ => {}
    }
    let own = std::env::current_exe().expect("this program");
    for name in ["products", "product", "dense", "products", "product", "dense"] {
        let status = Command::new(&own).env(ASKED, name).status();
        assert!(status.expect("the child starts").success(), "{name} failed");
    }
}
