//! The bound of uniform and hybrid diffusion, fused with a linear head.

use tch::{Kind, Tensor};

use crate::*;

/// What each row of [`interpolating_nll`] is asked about. Shape letters: `N` rows.
#[derive(Debug, Clone, Copy)]
pub struct InterpolatingRows<'a> {
    /// The clean token, `[N] i64`, never `banned`.
    pub x_n: &'a Tensor,
    /// The observed token, `[N] i64`.
    pub z_n: &'a Tensor,
    /// P(the clean token is kept), `[N] f64`.
    pub alpha_n: &'a Tensor,
    /// Probability that noise puts on each token, `[N] f64`, ≥ 0.
    pub every_n: &'a Tensor,
    /// The rate at which noise arrives at the observed token, over the probability of that token: `[N] f64`.
    pub weight_n: &'a Tensor,
    /// A token that the network never predicts (the mask), or `None`.
    pub banned: Option<i64>,
}

/// The continuous-time bound of a process that keeps a token or puts noise in its place, without ever holding the `[N, V]`
/// logits.
///
/// # Tensors
/// | name | shape | kind | meaning |
/// |---|---|---|---|
/// | `hidden` | `[N, D]` | float | rows that enter the head |
/// | `matrix` | `[V, D]` | float | the head's weight |
/// | `bias` | `[V]` | float | the head's bias, if it has one |
/// | returns | `[N]` | float | nats of each row, ≥ 0, with gradients for the three above |
///
/// # Equation
/// With the network's law `p`, `q = alpha onehot(x) + every` and `p~ = alpha p + every`:
/// `weight { KL(q ‖ p~) + q_z/p~_z - ln(q_z/p~_z) - 1 }`. The banned token has p = 0, so that `p~ = q` there. A row of weight
/// 0 is 0.
///
/// # Cost
/// About 16 MiB of logits at a time; gradients are made in the forward pass, as by [`linear_nll`]. A value a row is computed in
/// float64; the products in `reduced` where it is given, else in the type of `hidden`; values a token in float32 or float64. No
/// nearly equal numbers are subtracted: t = 1e-4 is as exact as t = 0.5.
pub fn interpolating_nll(
    hidden: &Tensor,
    matrix: &Tensor,
    bias: Option<&Tensor>,
    rows: &InterpolatingRows,
    reduced: Option<Kind>,
) -> Result<Tensor> {
    run((hidden, matrix, bias), rows, reduced, false)
}

/// `by_tensors`: by libtorch's operations, as on devices that have no loop of their own.
fn run(
    (hidden, matrix, bias): (&Tensor, &Tensor, Option<&Tensor>),
    rows: &InterpolatingRows,
    reduced: Option<Kind>,
    by_tensors: bool,
) -> Result<Tensor> {
    let (mut result, kind) = (std::ptr::null_mut(), crate::modes::reduced(reduced)?);
    let bias = bias.map_or(std::ptr::null(), Tensor::as_ptr);
    let InterpolatingRows { x_n, z_n, alpha_n, every_n, weight_n, banned } = rows;
    // SAFETY: live tensors, and a place for the new one.
    checked(unsafe {
        maskdiff_interpolating_nll(
            hidden.as_ptr(),
            matrix.as_ptr(),
            bias,
            x_n.as_ptr(),
            z_n.as_ptr(),
            alpha_n.as_ptr(),
            every_n.as_ptr(),
            weight_n.as_ptr(),
            banned.unwrap_or(-1),
            kind,
            c_int::from(by_tensors),
            &mut result,
        )
    })?;
    // SAFETY: on success the shim hands over a new tensor.
    Ok(unsafe { Tensor::from_ptr(result) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::tests::OnCpu;
    use tch::{Device, IndexOp};

    const DOUBLE: (Kind, Device) = (Kind::Double, Device::Cpu);

    /// Rows of a process at noise levels from 1e-4 to 0.9999: half of the clean tokens are observed, some masks.
    struct Case {
        x: Tensor,
        z: Tensor,
        alpha: Tensor,
        every: Tensor,
        weight: Tensor,
        banned: Option<i64>,
    }

    #[derive(Clone, Copy, Debug)]
    enum Process {
        Uniform,
        Hybrid,
        Masks,
    }

    impl Case {
        fn new(process: Process, n: i64, v: i64) -> Self {
            let mask = v - 2;
            let every_second = Tensor::arange(n, (Kind::Int64, Device::Cpu)).remainder(2).eq(0);
            let x = Tensor::randint(mask, [n], (Kind::Int64, Device::Cpu));
            let any = Tensor::randint(v, [n], (Kind::Int64, Device::Cpu));
            let mut z = x.where_self(&every_second, &any);
            let steps = Tensor::linspace(0.0, 1.0, n, DOUBLE);
            let shift: Tensor = (steps * (0.9999f64 / 1e-4).ln()) + (1e-4f64).ln();
            let moved = shift.exp();
            let alpha = 1.0 - &moved;
            let share = match process {
                Process::Uniform => 1.0,
                Process::Hybrid => 0.3,
                Process::Masks => 0.0,
            };
            let banned = (!matches!(process, Process::Uniform)).then_some(mask);
            if banned.is_some() {
                let masked = Tensor::arange(n, (Kind::Int64, Device::Cpu)).remainder(4).eq(1);
                z = z.masked_fill(&masked, mask);
            }
            let mut weight: Tensor = Tensor::rand([n], DOUBLE) + 0.5;
            if let Process::Masks = process {
                weight = weight.masked_fill(&z.not_equal(mask), 0.0);
            }
            Self { x, z, alpha, every: moved * share / v as f64, weight, banned }
        }

        fn rows(&self) -> InterpolatingRows<'_> {
            InterpolatingRows {
                x_n: &self.x,
                z_n: &self.z,
                alpha_n: &self.alpha,
                every_n: &self.every,
                weight_n: &self.weight,
                banned: self.banned,
            }
        }

        /// The formula as it is written, over all logits; fit for float64 away from p = x.
        fn dense(&self, hidden: &Tensor, matrix: &Tensor, bias: &Tensor) -> Tensor {
            let (n, v) = (self.x.size()[0], matrix.size()[0]);
            let forbid = Tensor::zeros([v], DOUBLE);
            if let Some(banned) = self.banned {
                let _ = forbid.get(banned).fill_(f64::NEG_INFINITY);
            }
            let log_p = (hidden.linear(matrix, Some(bias)) + forbid).log_softmax(-1, Kind::Double);
            let (alpha, every) = (self.alpha.unsqueeze(1), self.every.unsqueeze(1));
            let every = every.expand([n, v], false).contiguous();
            let q = &alpha * self.x.one_hot(v).to_kind(Kind::Double) + &every;
            let mixed = &alpha * log_p.exp() + &every;
            let zero = q.zeros_like();
            let live = q.gt(0.0);
            let safe = |t: &Tensor| t.where_self(&live, &q.ones_like());
            let kl = (&q * (safe(&q) / safe(&mixed)).log()).where_self(&live, &zero);
            let at = |t: &Tensor| t.gather(1, &self.z.unsqueeze(1), false).squeeze_dim(1);
            let (q_z, mut mixed_z) = (at(&q), at(&mixed));
            if let Some(banned) = self.banned {
                // The network changes nothing at the mask.
                mixed_z = q_z.where_self(&self.z.eq(banned), &mixed_z);
            }
            let none = q_z.eq(0.0);
            let [q_z, mixed_z] = [q_z, mixed_z].map(|t| t.masked_fill(&none, 1.0));
            let ratio = q_z / mixed_z;
            let observed: Tensor = &ratio - ratio.log() - 1.0;
            let nats = (kl.sum_dim_intlist(1, false, Kind::Double) + observed) * &self.weight;
            nats.where_self(&self.weight.gt(0.0), &self.weight.zeros_like())
        }
    }

    fn leaf(shape: &[i64], scale: f64, kind: Kind) -> Tensor {
        let value: Tensor = Tensor::randn(shape, DOUBLE) * scale;
        value.to_kind(kind).set_requires_grad(true)
    }

    fn as_kind(x: &Tensor, kind: Kind) -> Tensor {
        x.detach().to_kind(kind).set_requires_grad(true)
    }

    fn worst(a: &Tensor, b: &Tensor) -> f64 {
        (a - b).abs().max().double_value(&[])
    }

    fn gradients(nats: &Tensor, upstream: &Tensor, leaves: &[&Tensor]) -> Vec<Tensor> {
        let total = (nats * upstream.to_kind(nats.kind())).sum(nats.kind());
        Tensor::run_backward(&[total], leaves, true, false)
    }

    #[test]
    fn values_and_gradients_are_those_of_the_dense_formula() {
        tch::manual_seed(11);
        let (n, d, v) = (48, 8, 700);
        for process in [Process::Uniform, Process::Hybrid, Process::Masks] {
            let case = Case::new(process, n, v);
            let [h, w] = [&[n, d], &[v, d]].map(|shape| leaf(shape, 0.7, Kind::Double));
            let b = leaf(&[v], 1.0, Kind::Double);
            for upstream in [Tensor::ones([n], DOUBLE), Tensor::rand([n], DOUBLE)] {
                let dense = case.dense(&h, &w, &b);
                let wanted = gradients(&dense, &upstream, &[&h, &w, &b]);
                for (by_tensors, kind, tolerance) in [
                    (false, Kind::Double, 1e-11),
                    (true, Kind::Double, 1e-11),
                    (false, Kind::Float, 2e-5),
                    (true, Kind::Float, 2e-5),
                ] {
                    let [h, w, b] = [&h, &w, &b].map(|x| as_kind(x, kind));
                    let ours = run((&h, &w, Some(&b)), &case.rows(), None, by_tensors).unwrap();
                    assert_eq!(ours.kind(), kind);
                    let error =
                        worst(&(&ours / &dense.clamp_min(1.0)), &(&dense / dense.clamp_min(1.0)));
                    let what = format!("{process:?} {kind:?} by_tensors={by_tensors}");
                    assert!(error < tolerance, "{what}: nats {error:e}");
                    for (a, b) in gradients(&ours, &upstream, &[&h, &w, &b]).iter().zip(&wanted) {
                        let size = b.abs().max().double_value(&[]);
                        assert!(worst(a, b) < tolerance * size, "{what}: {:e}", worst(a, b) / size);
                    }
                }
            }
        }
    }

    /// The head's matrix is the identity: what the kernel reads are these logits, in both types, and the gradient of `hidden` is theirs.
    #[test]
    fn the_kernel_turns_logits_into_their_gradient() {
        tch::manual_seed(13);
        let n = 48;
        for (v, process) in [
            (700, Process::Uniform),
            (33, Process::Hybrid),
            (514, Process::Masks),
            (10, Process::Uniform),
        ] {
            let case = Case::new(process, n, v);
            let logits: Tensor = Tensor::randn([n, v], DOUBLE) * 2.0;
            let eye = Tensor::eye(v, DOUBLE);
            for (kind, rounding) in [(Kind::Float, 2e-5), (Kind::BFloat16, 4.5e-3)] {
                for upstream in [Tensor::ones([n], DOUBLE), Tensor::rand([n], DOUBLE)] {
                    let h = as_kind(&logits, kind);
                    let exact = as_kind(&h, Kind::Double);
                    let dense = case.dense(&exact, &eye, &Tensor::zeros([v], DOUBLE));
                    let wanted = gradients(&dense, &upstream, &[&exact]).swap_remove(0);
                    let _on = OnCpu::new();
                    let ours = interpolating_nll(&h, &eye.to_kind(kind), None, &case.rows(), None);
                    let ours = ours.unwrap();
                    let what = format!("{process:?} {kind:?} {v}");
                    assert_eq!(ours.kind(), Kind::Float);
                    let error =
                        worst(&(&ours / &dense.clamp_min(1.0)), &(&dense / dense.clamp_min(1.0)));
                    assert!(error < 2e-5, "{what}: nats {error:e}");
                    let g = gradients(&ours, &upstream, &[&h]).swap_remove(0);
                    assert_eq!(g.kind(), kind);
                    // Each row by itself: those near the data are a thousand times as large.
                    let largest = wanted.abs().amax([1i64].as_slice(), true).clamp_min(1e-30);
                    let off = worst(&(g.to_kind(Kind::Double) / &largest), &(wanted / &largest));
                    assert!(off < rounding, "{what}: gradient {off:e}");
                }
            }
        }
    }

    /// A kernel has no words: what is no token makes its row NaN, and a row without a weight is 0 whatever its logits are.
    #[test]
    fn rows_of_the_kernel_fail_alone() {
        let _on = OnCpu::new();
        let case = Case::new(Process::Uniform, 4, 9);
        let x = Tensor::from_slice(&[1i64, 9, 2, 3]);
        let z = Tensor::from_slice(&[1i64, 2, -1, 4]);
        let weight = Tensor::from_slice(&[1.0f64, 1.0, 1.0, 0.0]);
        let rows = InterpolatingRows { x_n: &x, z_n: &z, weight_n: &weight, ..case.rows() };
        let h = Tensor::randn([4, 3], (Kind::Float, Device::Cpu));
        let _ = h.i((3, 0)).fill_(f64::NAN);
        let h = h.set_requires_grad(true);
        let w = Tensor::randn([9, 3], (Kind::Float, Device::Cpu));
        let nats = interpolating_nll(&h, &w, None, &rows, None).unwrap();
        nats.sum(Kind::Float).backward();
        for lost in [nats.detach(), h.grad().sum_dim_intlist(1, false, Kind::Float)] {
            let lost = Vec::<f32>::try_from(lost).unwrap();
            assert_eq!(
                lost.iter().map(|x| x.is_nan()).collect::<Vec<_>>(),
                [false, true, true, false]
            );
            assert_eq!(lost[3], 0.0);
        }
    }

    /// Near and at p = x, where the formula as written has no digits left: the loss is quadratic in what is missing.
    #[test]
    fn a_sure_network_keeps_its_digits() {
        let (v, n) = (50_258i64, 4);
        for (missing, alpha) in [(1e-3, 0.9999), (1e-6, 0.5), (1e-9, 0.9), (1e-12, 0.1)] {
            let every = (1.0 - alpha) / v as f64;
            let logit = ((1.0 - missing) / missing * (v - 1) as f64).ln();
            let hidden = Tensor::ones([n, 1], DOUBLE);
            let matrix = Tensor::zeros([v, 1], DOUBLE);
            let _ = matrix.i((3, 0)).fill_(logit);
            let token = |id: i64| Tensor::full([n], id, (Kind::Int64, Device::Cpu));
            let (x, z) = (token(3), Tensor::from_slice(&[3i64, 3, 7, 7]));
            let fill = |value: f64| Tensor::full([n], value, DOUBLE);
            let (alpha_n, every_n, weight_n) = (fill(alpha), fill(every), fill(1.0));
            let rows = InterpolatingRows {
                x_n: &x,
                z_n: &z,
                alpha_n: &alpha_n,
                every_n: &every_n,
                weight_n: &weight_n,
                banned: None,
            };
            // Each term by itself: p~ = q + e, and p~ psi = e^2 / 2q to the leading order, with the next one of each series.
            let others = alpha * missing / (v - 1) as f64;
            let (y, d) = (others / every, alpha * missing / (alpha * (1.0 - missing) + every));
            let series = |y: f64| {
                if y < 1e-4 { y * y * (0.5 - y / 3.0 + y * y / 4.0) } else { y - y.ln_1p() }
            };
            let psi = if d < 1e-4 {
                d * d * (0.5 - d / 6.0 + d * d / 12.0)
            } else {
                (1.0 + d) * d.ln_1p() - d
            };
            let divergence =
                (v - 1) as f64 * every * series(y) + (alpha * (1.0 - missing) + every) * psi;
            let of_z =
                if y < 1e-4 { y * y * (0.5 - 2.0 * y / 3.0) } else { y.ln_1p() - y / (1.0 + y) };
            for (kind, kernels) in
                [(Kind::Double, false), (Kind::Float, false), (Kind::Float, true)]
            {
                let _on = kernels.then(OnCpu::new);
                let (h, w) = (hidden.to_kind(kind), matrix.to_kind(kind));
                let ours = run((&h, &w, None), &rows, None, false).unwrap();
                let ours = Vec::<f64>::try_from(ours.to_kind(Kind::Double)).unwrap();
                for (i, more) in [(0, series(d)), (2, of_z)] {
                    let want = divergence + more;
                    // A float32 logit of 40 has an error of 2e-6.
                    let tolerance = if kind == Kind::Double { 1e-6 } else { 3e-5 };
                    let error = (ours[i] - want).abs() / want;
                    assert!(
                        error < tolerance,
                        "{kind:?} {kernels} {missing} {alpha} {i}: {} {want} {error:e}",
                        ours[i]
                    );
                }
            }
        }
    }

    #[test]
    fn float32_keeps_its_digits_at_every_time() {
        tch::manual_seed(12);
        let (n, d, v) = (90, 64, 50_258);
        for process in [Process::Uniform, Process::Hybrid] {
            let case = Case::new(process, n, v);
            let (h, w, b) = (
                leaf(&[n, d], 1.0, Kind::Float),
                leaf(&[v, d], 0.3, Kind::Float),
                leaf(&[v], 0.1, Kind::Float),
            );
            let ours = interpolating_nll(&h, &w, Some(&b), &case.rows(), None).unwrap();
            let kernel = {
                let _on = OnCpu::new();
                interpolating_nll(&h, &w, Some(&b), &case.rows(), None).unwrap()
            };
            let [h, w, b] = [&h, &w, &b].map(|x| as_kind(x, Kind::Double));
            let exact = interpolating_nll(&h, &w, Some(&b), &case.rows(), None).unwrap();
            let dense = case.dense(&h, &w, &b);
            assert!(worst(&(&exact / &dense), &dense.ones_like()) < 1e-9);
            assert!(worst(&(ours / &exact), &exact.ones_like()) < 1e-5);
            let off = worst(&(kernel / &exact), &exact.ones_like());
            assert!(off < 2e-5, "{process:?}: {off:e}");
        }
    }

    /// The first walk takes the gradients made in the forward pass, the second makes them anew.
    #[test]
    fn it_can_be_walked_twice_and_without_a_bias() {
        tch::manual_seed(4);
        let case = Case::new(Process::Hybrid, 40, 30);
        let (h, w) = (leaf(&[40, 6], 1.0, Kind::Double), leaf(&[30, 6], 1.0, Kind::Double));
        let nats = interpolating_nll(&h, &w, None, &case.rows(), None).unwrap();
        let loss = nats.sum(Kind::Double) * 0.5;
        let walk = |keep| Tensor::run_backward(&[&loss], &[&h, &w], keep, false);
        for (first, second) in walk(true).iter().zip(&walk(false)) {
            assert!(worst(first, second) < 1e-12);
            assert!(first.abs().max().double_value(&[]) > 0.0);
        }
    }

    #[test]
    fn reduced_precision_is_near_full() {
        tch::manual_seed(6);
        let (n, d, v) = (90, 48, 5_000);
        let case = Case::new(Process::Uniform, n, v);
        let (h, w) = (leaf(&[n, d], 1.0, Kind::Float), leaf(&[v, d], 0.05, Kind::Float));
        let run = |h: &Tensor, w: &Tensor, kind| {
            let nats = interpolating_nll(h, w, None, &case.rows(), kind).unwrap();
            assert_eq!(nats.kind(), Kind::Float);
            let gradients = gradients(&nats, &Tensor::ones([n], DOUBLE), &[h, w]);
            (nats, gradients)
        };
        let (full, g_full) = run(&h, &w, None);
        let (cast, g_cast) = run(&h, &w, Some(Kind::BFloat16));
        let half = |x: &Tensor| as_kind(x, Kind::BFloat16);
        let (pure, g_pure) = run(&half(&h), &half(&w), None);
        for (nats, gradients, kind) in [(cast, g_cast, Kind::Float), (pure, g_pure, Kind::BFloat16)]
        {
            let error = worst(&(nats / &full), &full.ones_like());
            assert!(error < 0.02, "{error}");
            for (a, b) in gradients.iter().zip(&g_full) {
                assert_eq!(a.kind(), kind);
                let (error, size) = (worst(a, b), b.abs().max().double_value(&[]));
                assert!(error < 0.02 * size, "{error:e} of {size}");
            }
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        let case = Case::new(Process::Uniform, 4, 9);
        let (h, w) = (leaf(&[4, 2], 1.0, Kind::Double), leaf(&[9, 2], 1.0, Kind::Double));
        let outside = Tensor::from_slice(&[0i64, 1, 9, 2]);
        let rows = InterpolatingRows { z_n: &outside, ..case.rows() };
        let said = interpolating_nll(&h, &w, None, &rows, None).unwrap_err().to_string();
        assert!(said.contains("outside of 0..9"), "{said}");
        let few = case.x.narrow(0, 0, 3);
        let rows = InterpolatingRows { x_n: &few, ..case.rows() };
        let said = interpolating_nll(&h, &w, None, &rows, None).unwrap_err().to_string();
        assert!(said.contains("each of the 4 rows"), "{said}");
        let learnt = case.weight.copy().set_requires_grad(true);
        let rows = InterpolatingRows { weight_n: &learnt, ..case.rows() };
        let said = interpolating_nll(&h, &w, None, &rows, None).unwrap_err().to_string();
        assert!(said.contains("no gradient flows"), "{said}");
        let broken: Tensor = &h * f64::NAN;
        let nats = interpolating_nll(&broken, &w, None, &case.rows(), None).unwrap();
        assert!(nats.isnan().all().int64_value(&[]) == 1);
    }
}
