//! The kernels as C++ against the plain formulation in float64, forward and backward; and compiled for GPUs that are not here.

mod compile;
mod refused;

use tch::{Device, Kind, Tensor};

use super::*;
use crate::{Then, linear, linear_nll, rotate};

/// The kernels are on for the CPU of this thread while this lives.
pub(crate) struct OnCpu;

impl OnCpu {
    pub(crate) fn new() -> Self {
        // SAFETY: plain numbers.
        checked(unsafe { maskdiff_kernels_switch(-1, 1) }).unwrap();
        Self
    }
}

impl Drop for OnCpu {
    fn drop(&mut self) {
        // SAFETY: plain numbers.
        checked(unsafe { maskdiff_kernels_switch(-1, 0) }).unwrap();
    }
}

const BF16: Kind = Kind::BFloat16;

fn draw(shape: &[i64], kind: Kind) -> Tensor {
    Tensor::randn(shape, (Kind::Double, Device::Cpu)).to_kind(kind)
}

fn wide(x: &Tensor) -> Tensor {
    x.to_kind(Kind::Double)
}

/// Outputs of `f`, then the gradients of its inputs where each output is weighted by numbers that depend on its shape alone.
fn all_of(inputs: &[Tensor], f: &dyn Fn(&[Tensor]) -> Vec<Tensor>) -> Vec<Tensor> {
    let leaves: Vec<Tensor> =
        inputs.iter().map(|x| x.detach().copy().set_requires_grad(true)).collect();
    let outputs = f(&leaves);
    let weighted = |y: &Tensor| {
        // Numbers of bfloat16, so that no gradient is rounded on its way in.
        let numbers = Tensor::arange(y.numel() as i64, (Kind::Double, Device::Cpu)).cos();
        let numbers = wide(&numbers.to_kind(BF16));
        (wide(y) * numbers.view_as(y)).sum(Kind::Double)
    };
    let total =
        outputs.iter().map(weighted).fold(Tensor::from(0.0), |sum: Tensor, term| sum + term);
    total.backward();
    let grads = leaves.iter().map(|x| {
        let grad = x.grad();
        if grad.defined() { grad } else { x.zeros_like() }
    });
    outputs.iter().map(Tensor::detach).chain(grads).collect()
}

/// Kernels on these inputs give what the formula gives in float64 for the same numbers, each within a share of its largest.
#[track_caller]
fn agree(
    what: &str,
    inputs: &[Tensor],
    kernels: &dyn Fn(&[Tensor]) -> Vec<Tensor>,
    formula: &dyn Fn(&[Tensor]) -> Vec<Tensor>,
) {
    let on = OnCpu::new();
    let ours = all_of(inputs, kernels);
    drop(on);
    let theirs = all_of(&inputs.iter().map(wide).collect::<Vec<_>>(), formula);
    assert_eq!(ours.len(), theirs.len());
    let rounded = ours.iter().any(|x| x.kind() == BF16);
    let tolerance = if rounded { 1.0 / 100.0 } else { 1e-5 };
    for (i, (a, b)) in ours.iter().zip(&theirs).enumerate() {
        assert_eq!(a.size(), b.size(), "{what}, {i}");
        let off = (wide(a) - b).abs().max().double_value(&[]);
        let most = b.abs().max().double_value(&[]).max(1e-3);
        // Written so that no number is a failure.
        assert!(off <= tolerance * most, "{what}, {i}: off by {off:e} of {most:e}");
    }
}

/// A row of several modulations, as a network cuts it: neighbours are further apart than its own numbers.
fn modulations(groups: i64, d: i64, kind: Kind) -> Vec<Tensor> {
    vec![draw(&[groups, 1, 3 * d], kind)]
}

fn part(m: &Tensor, i: i64) -> Tensor {
    m.chunk(3, -1).swap_remove(i as usize)
}

#[test]
fn queries_and_keys_are_turned_and_so_are_their_gradients() {
    tch::manual_seed(1);
    for (texts, length, heads, size) in [(2, 7, 3, 16), (1, 1, 1, 2), (2, 5, 2, 10), (3, 4, 1, 72)]
    {
        for (kind, table) in [(Kind::Float, Kind::Float), (BF16, Kind::Float), (BF16, BF16)] {
            for own in [false, true] {
                let mut shape = vec![length, 1, 1, size / 2];
                if own {
                    shape.insert(0, texts);
                }
                let angle = Tensor::rand(&shape, (Kind::Float, Device::Cpu)) * 6.0;
                let (cos, sin) = (angle.cos().to_kind(table), angle.sin().to_kind(table));
                let qkv = draw(&[texts, length, 3 * heads * size], kind);
                // The leaf is not what is overwritten.
                let kernels = |x: &[Tensor]| {
                    let made = turned(&(&x[0] * 1.0), &cos, &sin, heads).unwrap();
                    made.expect("the kernels are on").into()
                };
                let formula = |x: &[Tensor]| {
                    let parts = x[0].view([texts, length, 3, heads, size]);
                    let (cos, sin) = (wide(&cos), wide(&sin));
                    let qk = rotate(&parts.narrow(2, 0, 2), &cos, &sin).unwrap();
                    [qk.select(2, 0), qk.select(2, 1), parts.select(2, 2)]
                        .map(|x| x.transpose(1, 2))
                        .into()
                };
                agree(&format!("{kind:?} {table:?} {size}"), &[qkv], &kernels, &formula);
            }
        }
    }
}

#[test]
fn what_is_turned_without_gradients_lies_where_the_map_put_it() {
    let _on = OnCpu::new();
    let qkv = draw(&[2, 3, 24], Kind::Float);
    let (cos, sin) = (
        Tensor::zeros([3, 1, 1, 2], (Kind::Float, Device::Cpu)),
        Tensor::ones([3, 1, 1, 2], (Kind::Float, Device::Cpu)),
    );
    let before = qkv.copy();
    let [q, _, v] = turned(&qkv, &cos, &sin, 2).unwrap().expect("the kernels are on");
    assert_eq!(q.data_ptr(), qkv.data_ptr());
    let parts = before.view([2, 3, 3, 2, 4]);
    assert_eq!(v, parts.select(2, 2).transpose(1, 2));
    // A quarter of a turn: (a, b) becomes (-b, a).
    let old = parts.select(2, 0).transpose(1, 2);
    assert_eq!(q, Tensor::cat(&[-old.narrow(-1, 2, 2), old.narrow(-1, 0, 2)], -1));
    // One gradient alone, and none of the others.
    let leaf = before.set_requires_grad(true);
    let [_, k, _] = turned(&(&leaf * 1.0), &cos, &sin, 2).unwrap().expect("the kernels are on");
    k.sum(Kind::Float).backward();
    let grad = leaf.grad().view([2, 3, 3, 2, 4]);
    assert_eq!(grad.select(2, 0).abs().max().double_value(&[]), 0.0);
    assert_eq!(grad.select(2, 1).abs().min().double_value(&[]), 1.0);
}

/// Philox4x32-10, a second time.
fn philox(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let (mut c, mut k) = (counter, key);
    for _ in 0..10 {
        let [a, b] = [(0xD251_1F53u64, c[0]), (0xCD9E_8D57, c[2])].map(|(m, c)| m * u64::from(c));
        c = [(b >> 32) as u32 ^ c[1] ^ k[0], b as u32, (a >> 32) as u32 ^ c[3] ^ k[1], a as u32];
        k = [k[0].wrapping_add(0x9E37_79B9), k[1].wrapping_add(0xBB67_AE85)];
    }
    c
}

/// What is kept of rows `[rows, d]`, times 1 / (1 - p).
fn mask(seed: [i64; 2], rows: i64, d: i64, dropped: u32) -> Tensor {
    let packs = (d as u64).div_ceil(8);
    let half = |x: i64| [x as u32, (x as u64 >> 32) as u32];
    let number = |row: u64, c: u64| {
        let pack = row * packs + c / 8;
        let [low, high] = half(seed[1]);
        let words = philox([pack as u32, (pack >> 32) as u32, low, high], half(seed[0]));
        let bits = words[(c % 8 / 2) as usize] >> (16 * (c % 2)) & 0xffff;
        if bits >= dropped { 65_536.0 / f64::from(65_536 - dropped) } else { 0.0 }
    };
    let all: Vec<f64> =
        (0..rows as u64).flat_map(|row| (0..d as u64).map(move |c| number(row, c))).collect();
    Tensor::from_slice(&all).view([rows, d])
}

#[test]
fn the_generator_is_the_published_one() {
    let zero = [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8];
    assert_eq!(philox([0; 4], [0; 2]), zero);
    let ones = [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd];
    assert_eq!(philox([u32::MAX; 4], [u32::MAX; 2]), ones);
}

#[test]
fn a_gated_residual_is_the_formula_with_the_same_mask() {
    tch::manual_seed(2);
    let seed = [0x0123_4567_89ab_cdef_i64, -77];
    for (texts, length, d) in [(2, 5, 24), (3, 2, 7), (1, 9, 33), (2, 30, 8), (4, 1, 1)] {
        for (x, h, m) in
            [(Kind::Float, Kind::Float, Kind::Float), (Kind::Float, BF16, BF16), (BF16, BF16, BF16)]
        {
            for (groups, p) in [(Some(1), 0.25), (Some(texts), 0.25), (None, 0.1), (Some(1), 0.0)] {
                let dropped = (p * 65_536.0f64).round() as u32;
                let mask = mask(seed, texts * length, d, dropped).view([texts, length, d]);
                let mut inputs = vec![draw(&[texts, length, d], x), draw(&[texts, length, d], h)];
                inputs.extend(groups.into_iter().flat_map(|groups| modulations(groups, d, m)));
                let seed = Tensor::from_slice(&seed);
                let kernels = |x: &[Tensor]| {
                    let gate = x.get(2).map(|m| part(m, 1));
                    let made = gated_by(&x[0], gate.as_ref(), &x[1], p, Some(&seed)).unwrap();
                    vec![made.expect("the kernels are on")]
                };
                let formula = |x: &[Tensor]| {
                    let h = &x[1] * &mask;
                    vec![&x[0] + x.get(2).map_or(h.shallow_clone(), |m| part(m, 1) * &h)]
                };
                let what = format!("{x:?} {h:?}, {texts} {length} {d}, {groups:?} {p}");
                agree(&what, &inputs, &kernels, &formula);
            }
        }
    }
}

#[test]
fn dropped_numbers_follow_the_seed_of_the_generator() {
    let _on = OnCpu::new();
    let x = Tensor::zeros([4, 1000, 250], (Kind::Float, Device::Cpu));
    let h = x.ones_like();
    let draw = |seed: i64| {
        tch::manual_seed(seed);
        gated(&x, None, &h, 0.1).unwrap().expect("the kernels are on")
    };
    let first = draw(4);
    assert_eq!(first, draw(4));
    assert_ne!(first, draw(5));
    let kept = first.gt(0.0).to_kind(Kind::Double).mean(Kind::Double).double_value(&[]);
    assert!((kept - 0.9).abs() < 5.0 * (0.09f64 / 1e6).sqrt() + 1e-5, "{kept}");
}

#[test]
fn a_norm_and_what_goes_on_beside_it_are_the_formula() {
    tch::manual_seed(3);
    for (texts, length, d) in [(2, 5, 24), (3, 2, 7), (1, 40, 33), (2, 3, 768), (2, 9, 1)] {
        for (x, y, m) in
            [(Kind::Float, Kind::Float, Kind::Float), (Kind::Float, BF16, BF16), (BF16, BF16, BF16)]
        {
            for groups in [Some(1), Some(texts), None] {
                let mut inputs = vec![draw(&[texts, length, d], x) * 2.0 + 1.0, draw(&[d], x)];
                inputs.extend(groups.into_iter().flat_map(|groups| modulations(groups, d, m)));
                let kernels = |x: &[Tensor]| {
                    let m = x.get(2).map(|m| (part(m, 0), part(m, 2)));
                    let modulation = m.as_ref().map(|(shift, scale)| (shift, scale));
                    let made = normed(&x[0], &x[1], modulation, Some(y)).unwrap();
                    let made = made.expect("the kernels are on");
                    assert_eq!((made[0].kind(), made[1].kind()), (x[0].kind(), y));
                    made.into()
                };
                let formula = |x: &[Tensor]| {
                    let plain = x[0].layer_norm([d], Some(&x[1]), None::<&Tensor>, 1e-5, false);
                    let y = x.get(2).map_or(plain.shallow_clone(), |m| {
                        &plain * (part(m, 2) + 1.0) + part(m, 0)
                    });
                    vec![x[0].shallow_clone(), y]
                };
                agree(
                    &format!("{x:?} {y:?}, {texts} {length} {d}, {groups:?}"),
                    &inputs,
                    &kernels,
                    &formula,
                );
            }
        }
    }
}

#[test]
fn a_head_in_the_logits_memory_is_the_plain_head() {
    tch::manual_seed(4);
    for (rows, d, v) in [(5, 8, 33), (3, 16, 1000), (40, 4, 10), (1, 8, 514)] {
        for kind in [Kind::Float, BF16] {
            for (banned, even) in [(None, true), (Some(v - 1), false)] {
                let inputs = [draw(&[rows, d], kind), draw(&[v, d], kind) * 0.5, draw(&[v], kind)];
                let target = Tensor::randint(v - 1, [rows], (Kind::Int64, Device::Cpu));
                let weight = Tensor::rand([rows], (Kind::Double, Device::Cpu));
                // All rows alike, or each of its own.
                let upstream = if even { weight.ones_like() } else { weight.cos() };
                let nll = |x: &[Tensor]| {
                    let weight = weight.to_kind(if x[0].kind() == Kind::Double {
                        Kind::Double
                    } else {
                        Kind::Float
                    });
                    let nll = linear_nll(&x[0], &x[1], Some(&x[2]), &target, &weight, banned, None);
                    vec![(wide(&nll.unwrap()) * &upstream).sum(Kind::Double)]
                };
                agree(&format!("{kind:?}, {rows} {d} {v} {banned:?}"), &inputs, &nll, &nll);
            }
        }
    }
}

/// libtorch refuses such a target; a kernel has no words, and must not read what lies beside the row.
#[test]
fn a_target_that_is_no_column_makes_its_row_nan_and_no_other() {
    let _on = OnCpu::new();
    let (hidden, matrix) = (draw(&[3, 8], Kind::Float), draw(&[33, 8], Kind::Float));
    for outside in [33, -100] {
        let hidden = hidden.detach().set_requires_grad(true);
        let target = Tensor::from_slice(&[4i64, outside, 7]);
        let weight = Tensor::ones([3], (Kind::Float, Device::Cpu));
        let nll = linear_nll(&hidden, &matrix, None, &target, &weight, None, None).unwrap();
        nll.sum(Kind::Float).backward();
        for lost in [&nll, &hidden.grad().sum_dim_intlist(1, false, Kind::Float)] {
            let lost = Vec::<f32>::try_from(lost.detach()).unwrap();
            assert_eq!(lost.iter().map(|x| x.is_nan()).collect::<Vec<_>>(), [false, true, false]);
        }
    }
}

#[test]
fn what_kernels_do_not_read_is_left_to_libtorch() {
    let on = OnCpu::new();
    let x = draw(&[2, 3, 8], Kind::Double);
    assert!(gated(&x, None, &x, 0.1).unwrap().is_none());
    assert!(normed(&x, &x.select(0, 0).select(0, 0), None, None).unwrap().is_none());
    let x = draw(&[2, 3, 8], Kind::Float);
    let weight = draw(&[8], Kind::Float);
    // A modulation of each token, a stream with gaps, rows that are too long for what a block shares.
    let each = draw(&[2, 3, 8], Kind::Float);
    assert!(normed(&x, &weight, Some((&each, &each)), None).unwrap().is_none());
    assert!(gated(&x, Some(&each), &x, 0.1).unwrap().is_none());
    assert!(normed(&x.transpose(0, 1), &weight, None, None).unwrap().is_none());
    let long = draw(&[1, 1, 6145], Kind::Float);
    assert!(gated(&long, None, &long, 0.1).unwrap().is_none());
    let (cos, sin) = (draw(&[3, 1, 1, 3], Kind::Float), draw(&[3, 1, 1, 3], Kind::Float));
    assert!(turned(&draw(&[2, 3, 24], Kind::Float), &cos, &sin, 2).unwrap().is_none());
    // Off, they are off.
    drop(on);
    assert!(gated(&x, None, &x, 0.1).unwrap().is_none());
}

#[test]
fn a_gradient_of_a_gradient_is_refused_in_words() {
    let _on = OnCpu::new();
    let x = draw(&[1, 2, 8], Kind::Float).set_requires_grad(true);
    let y = gated(&x, None, &x.square(), 0.0).unwrap().expect("the kernels are on");
    let said =
        Tensor::f_run_backward(&[y.sum(Kind::Float)], &[&x], true, true).unwrap_err().to_string();
    assert!(said.contains("trainer.kernels=plain"), "{said}");
    let _ = linear(&x.detach(), &draw(&[3, 8], Kind::Float), None, Then::Nothing).unwrap();
}
