//! The bound of diffusion between data and any noise, row by row: all processes whose law is `q = alpha x + b`.

use tch::{Kind, Tensor};

use crate::abi::message::crosses;

/// Rows of the bound. Shape letters: `N` rows, `D` hidden size, `V` vocabulary.
#[derive(Debug)]
#[non_exhaustive]
pub struct Interpolation {
    /// The states that enter the head, `[N, D]`.
    pub hidden_nd: Tensor,
    /// Clean tokens, `[N] i64`.
    pub x_n: Tensor,
    /// Observed tokens, `[N] i64`.
    pub z_n: Tensor,
    /// The probability that a token is clean, `[N] f64`.
    pub alpha_n: Tensor,
    /// Noise on each token, `[N] f64`, see [`crate::Mix`].
    pub every_n: Tensor,
    /// Noise beyond that on the token `banned`, `[N] f64`.
    pub mask_n: Tensor,
    /// The rate of arrival at z over q(z), `[N] f64`.
    pub weight_n: Tensor,
    /// The token that is never data, if there is one: the network's probability of it counts as 0.
    pub banned: Option<i64>,
}

crosses!(Interpolation { hidden_nd, x_n, z_n, alpha_n, every_n, mask_n, weight_n, banned });

impl Interpolation {
    /// Rows over a process without a mask, with weight 1; the fields take the rest.
    pub fn new(
        hidden_nd: &Tensor,
        x_n: &Tensor,
        z_n: &Tensor,
        alpha_n: &Tensor,
        every_n: &Tensor,
    ) -> Self {
        Self {
            hidden_nd: hidden_nd.shallow_clone(),
            x_n: x_n.shallow_clone(),
            z_n: z_n.shallow_clone(),
            alpha_n: alpha_n.shallow_clone(),
            every_n: every_n.shallow_clone(),
            mask_n: alpha_n.zeros_like(),
            weight_n: alpha_n.ones_like(),
            banned: None,
        }
    }

    /// With these weights.
    #[must_use]
    pub fn weight(mut self, weight_n: &Tensor) -> Self {
        self.weight_n = weight_n.shallow_clone();
        self
    }

    /// With more noise on a token that is never data.
    #[must_use]
    pub fn banned(mut self, token: i64, mask_n: &Tensor) -> Self {
        (self.banned, self.mask_n) = (Some(token), mask_n.shallow_clone());
        self
    }
}

/// Up to here a series is nearer than the difference of two numbers that are almost equal.
const SMALL: f64 = 0.01;

/// `psi(1 + d) = (1 + d) ln(1 + d) - d`, from d and `rho = 1 + d` that was formed without it.
fn psi(d: &Tensor, rho: &Tensor) -> Tensor {
    let near = &d.clamp(-SMALL, SMALL);
    let series: Tensor = near.square()
        * (0.5 - near / 6.0 + near.square() / 12.0 - near.pow_tensor_scalar(3) / 20.0);
    // At rho = 0 the term is 0, and so is its gradient.
    let rho = rho.clamp_min(1e-30);
    let plain = &rho * rho.log() - d;
    series.where_self(&d.abs().lt(SMALL), &plain)
}

/// `phi(1 + d) = d - ln(1 + d)`.
fn phi(d: &Tensor, rho: &Tensor) -> Tensor {
    let near = &d.clamp(-SMALL, SMALL);
    let series: Tensor = near.square()
        * (0.5 - near / 3.0 + near.square() / 4.0 - near.pow_tensor_scalar(3) / 5.0
            + near.pow_tensor_scalar(4) / 6.0);
    let plain = d - rho.clamp_min(1e-30).log();
    series.where_self(&d.abs().lt(SMALL), &plain)
}

/// The bound's density at each row, from all logits: `logits_nv [N, V]` → `[N]` nats, times the weights.
///
/// # Equation
/// With p the softmax of the logits without `banned`, `q = alpha x + b` and `p~ = alpha p + b`:
/// `weight { sum_v p~_v psi(q_v / p~_v) + phi(q_z / p~_z) }`, where `psi(r) = r ln r - r + 1` and `phi(r) = r - 1 - ln r`.
///
/// # Cost
/// Several `[N, V]` tensors. [`crate::Denoiser::interpolating_nll`] needs none of them where the head is linear.
pub fn interpolating_nll(logits_nv: &Tensor, rows: &Interpolation) -> Tensor {
    let kind = if logits_nv.kind() == Kind::Double { Kind::Double } else { Kind::Float };
    let column = |t: &Tensor| t.to_kind(kind).unsqueeze(1);
    let (alpha, every, x, z) = (
        column(&rows.alpha_n),
        column(&rows.every_n),
        rows.x_n.unsqueeze(1),
        rows.z_n.unsqueeze(1),
    );
    let mut logits_nv = logits_nv.shallow_clone();
    let mut noise_nv = every.expand_as(&logits_nv);
    if let Some(token) = rows.banned {
        let at = Tensor::from_slice(&[token]).to_device(logits_nv.device());
        logits_nv = logits_nv.index_fill(1, &at, f64::NEG_INFINITY);
        noise_nv = noise_nv.index_add(1, &at, &column(&rows.mask_n));
    }
    let log_p_nv = logits_nv.log_softmax(-1, kind);
    let (p_nv, log_p_x) = (log_p_nv.exp(), log_p_nv.gather(1, &x, false));
    // alpha (x - p), where 1 - p of the clean token is formed from its logarithm.
    let difference_nv = (-&alpha * &p_nv).scatter(1, &x, &(-&alpha * log_p_x.expm1()));
    let mixed_nv = &alpha * &p_nv + &noise_nv;
    // Below it the gradient of a quotient is no number, and the terms are 0.
    let held = mixed_nv.gt(1e-18);
    let mixed_nv = mixed_nv.where_self(&held, &mixed_nv.ones_like());
    let d_nv = difference_nv / &mixed_nv;
    let clean = noise_nv.scatter_add(1, &x, &alpha) / &mixed_nv;
    let terms_nv = &mixed_nv * psi(&d_nv, &clean);
    let terms_nv = terms_nv.where_self(&held, &terms_nv.zeros_like());
    // Without noise on the clean token its probability may be too small for a number; its logarithm is not.
    let bare = &alpha * (log_p_x.expm1() - &log_p_x);
    let own =
        bare.where_self(&noise_nv.gather(1, &x, false).eq(0.0), &terms_nv.gather(1, &x, false));
    let terms_nv = terms_nv.scatter(1, &x, &own);
    let seen = phi(&d_nv.gather(1, &z, false), &clean.gather(1, &z, false));
    let nats = terms_nv.sum_dim_intlist([1i64].as_slice(), false, kind) + seen.squeeze_dim(1);
    let weight = rows.weight_n.to_kind(kind);
    (&nats * &weight).where_self(&weight.not_equal(0.0), &weight.zeros_like())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    const F64: (Kind, Device) = (Kind::Double, Device::Cpu);

    /// Random rows over five tokens: hidden states that are logits, clean and observed tokens, alphas.
    fn rows(every: f64) -> Interpolation {
        tch::manual_seed(3);
        let ids = || Tensor::randint(5, [40], (Kind::Int64, Device::Cpu));
        let alpha = Tensor::rand([40], F64) * 0.9 + 0.05;
        let noise = (1.0 - &alpha) * every;
        let logits = Tensor::randn([40, 5], F64) * 2.0;
        Interpolation::new(&logits, &ids(), &ids(), &alpha, &noise)
            .weight(&(Tensor::rand([40], F64) + 0.5))
    }

    /// The definition, with everything written out.
    fn written_out(rows: &Interpolation) -> Tensor {
        let p = rows.hidden_nd.softmax(-1, Kind::Double);
        let column = |t: &Tensor| t.unsqueeze(1);
        let q = rows.x_n.one_hot(5).to_kind(Kind::Double) * column(&rows.alpha_n)
            + column(&rows.every_n);
        let mixed = p * column(&rows.alpha_n) + column(&rows.every_n);
        let divergence =
            (&q * (&q / &mixed).log()).sum_dim_intlist([1i64].as_slice(), false, Kind::Double);
        let ratio = (q / mixed).gather(1, &column(&rows.z_n), false).squeeze_dim(1);
        (divergence + &ratio - ratio.log() - 1.0) * &rows.weight_n
    }

    #[test]
    fn uniform_noise_gives_the_density_as_it_is_defined() {
        let rows = rows(0.2);
        let ours = interpolating_nll(&rows.hidden_nd, &rows);
        let error = (ours - written_out(&rows)).abs().max().double_value(&[]);
        assert!(error < 1e-12, "{error:e}");
        let float = interpolating_nll(&rows.hidden_nd.to_kind(Kind::Float), &rows);
        let error = (float.to_kind(Kind::Double) / written_out(&rows) - 1.0).abs().max();
        assert!(error.double_value(&[]) < 1e-3, "{error:?}");
    }

    #[test]
    fn a_law_that_is_sure_of_the_clean_token_costs_nothing() {
        let rows = rows(0.2);
        let sure = rows.x_n.one_hot(5).to_kind(Kind::Double) * 60.0;
        let nats = interpolating_nll(&sure, &rows).abs().max().double_value(&[]);
        assert!(nats < 1e-12, "{nats:e}");
    }

    /// Without noise on tokens it is the weighted cross-entropy at masks, with a finite gradient however small p is.
    #[test]
    fn noise_on_the_mask_alone_gives_the_cross_entropy() {
        let mut rows = rows(0.0);
        rows.x_n = rows.x_n.clamp_max(3);
        rows.z_n = rows.z_n.full_like(4);
        let rows = Interpolation { mask_n: 1.0 - &rows.alpha_n, banned: Some(4), ..rows };
        let logits = (&rows.hidden_nd * 400.0).set_requires_grad(true);
        let nats = interpolating_nll(&logits, &rows);
        let log_p = logits.narrow(1, 0, 4).log_softmax(-1, Kind::Double);
        let own = log_p.gather(1, &rows.x_n.unsqueeze(1), false).squeeze_dim(1);
        let expected = -own * &rows.alpha_n * &rows.weight_n;
        let error = (&nats - &expected).abs().max().double_value(&[]);
        let largest = expected.abs().max().double_value(&[]);
        assert!(largest > 100.0 && error < 1e-12 * largest, "{error:e} of {largest}");
        nats.sum(Kind::Double).backward();
        let ours = logits.grad().copy();
        logits.shallow_clone().zero_grad();
        expected.sum(Kind::Double).backward();
        let error = (ours - logits.grad()).abs().max().double_value(&[]);
        assert!(error < 1e-9, "{error:e}");
    }
}
