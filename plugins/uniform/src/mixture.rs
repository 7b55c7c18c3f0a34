//! What all processes with noise of two numbers share: draws, the posterior.
//!
//! Shape letters: `B` batch, `L` length, `V` vocabulary including the mask, `N` rows.

use maskdiff_plugin_api::prelude::*;
use tch::{Device, Kind};

/// A vocabulary, and which of its tokens noise is on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Vocabulary {
    pub(crate) size: i64,
    pub(crate) mask: Option<i64>,
    /// `every` leaves the mask out.
    pub(crate) apart: bool,
    pub(crate) device: Device,
}

/// Noise at one level, as numbers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Level {
    pub(crate) alpha: f64,
    pub(crate) every: f64,
    pub(crate) mask: f64,
}

impl Level {
    /// From the process's mixture at a number.
    pub(crate) fn of(process: &impl ForwardProcess, alpha: f64) -> Result<Self> {
        let mix = process.mixing(&Tensor::from_slice(&[alpha]))?;
        let [every, mask] = [mix.every_b, mix.mask_b].map(|value| value.double_value(&[0]));
        Ok(Self { alpha, every, mask })
    }
}

impl Vocabulary {
    pub(crate) fn new(context: &Context, apart: bool) -> Result<Self> {
        let size = context.vocab_size;
        let Some(mask) = context.mask_id else {
            bail!(Config, "the vocabulary has no mask token");
        };
        ensure!((0..size).contains(&mask), Config, "mask id {mask} is outside 0..{size}");
        Ok(Self { size, mask: Some(mask), apart, device: context.device() })
    }

    /// Every token is data or noise alike.
    pub(crate) fn without_mask(context: &Context) -> Self {
        let (size, device) = (context.vocab_size, context.device());
        Self { size, mask: None, apart: false, device }
    }

    /// The number of tokens that `every` is on.
    pub(crate) fn spread(&self) -> i64 {
        self.size - i64::from(self.apart)
    }

    /// What is on the mask alone at a level.
    fn on_mask(&self, level: &Level) -> f64 {
        level.mask + if self.apart { 0.0 } else { level.every }
    }

    /// One uniform number decides and draws: below the mask's share it is the mask, below `1 - alpha` a token.
    pub(crate) fn corrupt(
        &self,
        x0_bl: &Tensor,
        alpha_b: &Tensor,
        mix: &Mix,
        u_bl: &Tensor,
    ) -> Result<Tensor> {
        check_shape!(x0_bl, [B, L], Int64);
        let column = |t: &Tensor| t.to_kind(Kind::Double).unsqueeze(1);
        let u_bl = u_bl.to_kind(Kind::Double);
        let (every, mask) = (column(&mix.every_b), column(&mix.mask_b));
        let place = (&u_bl - &mask) / every.clamp_min(f64::MIN_POSITIVE);
        let last = self.spread() - 1;
        let mut token = place.clamp(0.0, last as f64).floor().to_kind(Kind::Int64);
        if let Some(id) = self.mask {
            if self.apart {
                token = &token + token.ge(id).to_kind(Kind::Int64);
            }
            // Without uniform noise rounding may leave a number between both shares.
            let masked = u_bl.lt_tensor(&mask).logical_or(&every.eq(0.0));
            token = token.masked_fill(&masked, id);
        }
        let moved = u_bl.lt_tensor(&column(&(1.0 - alpha_b)));
        Ok(token.where_self(&moved, x0_bl))
    }

    /// A draw of the process at alpha = 0.
    pub(crate) fn prior(
        &self,
        process: &impl ForwardProcess,
        batch: i64,
        length: i64,
    ) -> Result<Tensor> {
        let zeros = Tensor::zeros([batch, length], (Kind::Int64, self.device));
        let alpha_b = Tensor::zeros([batch], (Kind::Double, self.device));
        let u_bl = Tensor::rand([batch, length], (Kind::Double, self.device));
        process.corrupt(&zeros, &alpha_b, &u_bl)
    }

    /// `q(xs | xt = z, x0 ~ p) = [ratio 1{xs = z} + rest] (alpha_s p + b_s) / (alpha_t p_z + b_t(z))`, with
    /// `ratio = alpha_t / alpha_s` and `rest = b_t(z) - ratio b_s(z)`.
    pub(crate) fn posterior(
        &self,
        xt_n: &Tensor,
        (t, s): (Level, Level),
        p_nv: &Tensor,
    ) -> Result<Tensor> {
        check_shape!(xt_n, [N], Int64);
        ensure!(
            0.0 <= t.alpha && t.alpha <= s.alpha && s.alpha <= 1.0,
            Numeric,
            "a reverse step needs 0 <= alpha_t <= alpha_s <= 1, got {} and {}",
            t.alpha,
            s.alpha
        );
        let ratio = if t.alpha == s.alpha { 1.0 } else { t.alpha / s.alpha };
        let at = |token: f64, mask: f64| match self.mask {
            Some(id) => {
                let token_n = Tensor::full(xt_n.size(), token, (Kind::Double, xt_n.device()));
                token_n.masked_fill(&xt_n.eq(id), mask)
            }
            None => Tensor::full(xt_n.size(), token, (Kind::Double, xt_n.device())),
        };
        let noise_t_n = at(t.every, self.on_mask(&t));
        let noise_s_n = at(s.every, self.on_mask(&s));
        let rest_n = (&noise_t_n - noise_s_n * ratio).clamp_min(0.0);
        let z_n1 = xt_n.unsqueeze(1);
        let p_z_n = p_nv.gather(1, &z_n1, false).squeeze_dim(1).to_kind(Kind::Double);
        let total_n = p_z_n * t.alpha + noise_t_n;
        // A token that cannot stand there stays.
        let never_n = total_n.eq(0.0);
        let total_n = total_n.masked_fill(&never_n, 1.0);
        let mixed_nv: Tensor = p_nv * s.alpha + s.every;
        if let Some(id) = self.mask {
            let beyond = self.on_mask(&s) - s.every;
            let _ = mixed_nv.select(1, id).g_add_scalar_(beyond);
        }
        let of = |value_n: Tensor| value_n.to_kind(p_nv.kind()).unsqueeze(1);
        let law_nv = &mixed_nv * of(rest_n / &total_n);
        let stays_n1 = mixed_nv.gather(1, &z_n1, false) * of(total_n.reciprocal() * ratio);
        let law_nv = law_nv.scatter_add(1, &z_n1, &stays_n1);
        let kept_nv = xt_n.one_hot(self.size).to_kind(p_nv.kind());
        Ok(kept_nv.where_self(&never_n.unsqueeze(1), &law_nv))
    }
}

/// `KL(q(x1 | x0) ‖ prior)` in nats a token, where b is at every level the same law: `share` of it is on the clean token.
///
/// # Equation
/// `(alpha + share (1 - alpha)) ln((alpha/share + 1 - alpha)) + (1 - share) (1 - alpha) ln(1 - alpha)`
pub(crate) fn prior_kl(x0_bl: &Tensor, alpha_1: f64, share: f64) -> Tensor {
    let lost = 1.0 - alpha_1;
    let others = if lost > 0.0 { (1.0 - share) * lost * (-alpha_1).ln_1p() } else { 0.0 };
    let own = match (alpha_1 > 0.0, share > 0.0) {
        (false, _) => 0.0,
        // The prior gives a token that survives no mass.
        (true, false) => f64::INFINITY,
        (true, true) => (alpha_1 + share * lost) * (alpha_1 / share - alpha_1).ln_1p(),
    };
    Tensor::full(x0_bl.size(), own + others, (Kind::Double, x0_bl.device()))
}

/// Properties that each process's tests check.
#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use maskdiff_plugin_api::testkit::chi_square;
    use tch::Device;

    pub(crate) const V: i64 = 6;

    pub(crate) fn context() -> Context {
        Context::new(V, 4).mask(Some(V - 1)).time_conditioning(true).kind(Kind::Double)
    }

    fn tensor(values: &[f64]) -> Tensor {
        Tensor::from_slice(values)
    }

    fn b_of(process: &impl ForwardProcess, alpha: f64) -> Tensor {
        let all = Tensor::arange(V, (Kind::Int64, Device::Cpu)).unsqueeze(0);
        process.mixing(&tensor(&[alpha])).unwrap().at(&all, process.mask_id()).squeeze_dim(0)
    }

    fn worst(a: &Tensor, b: &Tensor) -> f64 {
        (a - b).abs().max().double_value(&[])
    }

    /// b sums to what is lost, rho to one, and rho is the slope of b and b itself, per unit of sigma.
    pub(crate) fn noise_is_a_law(process: &impl ForwardProcess) {
        let all = Tensor::arange(V, (Kind::Int64, Device::Cpu)).unsqueeze(0);
        for alpha in [1e-6, 0.2, 0.5, 0.9, 1.0 - 1e-6] {
            let b = b_of(process, alpha);
            assert!((b.sum(Kind::Double).double_value(&[]) - (1.0 - alpha)).abs() < 1e-12);
            let rho = process.arrival(&tensor(&[alpha])).unwrap();
            let rho = rho.at(&all, process.mask_id()).squeeze_dim(0);
            assert!((rho.sum(Kind::Double).double_value(&[]) - 1.0).abs() < 1e-12, "{rho}");
            assert!(rho.min().double_value(&[]) >= 0.0);
            let h = 1e-5;
            let moved = |by: f64| b_of(process, alpha * (-by * (1.0 - alpha)).exp());
            let slope = (moved(h) - moved(-h)) / (2.0 * h * (1.0 - alpha));
            assert!(worst(&rho, &(slope + b)) < 1e-4, "alpha = {alpha}: {rho}");
        }
    }

    /// The draws of one uniform number, counted over a fine grid of them, are the law.
    pub(crate) fn one_number_decides_and_draws(process: &impl ForwardProcess) {
        let n = 200_000;
        let u = (Tensor::arange(n, (Kind::Double, Device::Cpu)) + 0.5) / n as f64;
        for alpha in [0.0, 0.35, 0.999, 1.0] {
            let x0 = Tensor::full([1, n], 3, (Kind::Int64, Device::Cpu));
            let xt = process.corrupt(&x0, &tensor(&[alpha]), &u.unsqueeze(0)).unwrap();
            let counts = xt.squeeze_dim(0).bincount(None::<Tensor>, V).to_kind(Kind::Double);
            let want = b_of(process, alpha) + Tensor::from(3i64).one_hot(V) * alpha;
            assert!(worst(&(counts / n as f64), &want) < 2.0 / n as f64, "alpha = {alpha}");
        }
    }

    /// The posterior of every observed token is a law, and takes q at t back to q at s.
    pub(crate) fn the_posterior_is_bayes(process: &impl ForwardProcess) {
        let z_n = Tensor::arange(V, (Kind::Int64, Device::Cpu));
        let x = Tensor::from(2i64).one_hot(V).to_kind(Kind::Double);
        for (alpha_t, alpha_s) in [(0.0, 0.3), (0.3, 0.7), (0.5, 0.5), (0.2, 1.0), (1e-9, 2e-9)] {
            let p_nv = x.unsqueeze(0).expand([V, V], false).contiguous();
            let law_nv = process.posterior(&z_n, alpha_t, alpha_s, &p_nv).unwrap();
            let sums = law_nv.sum_dim_intlist(1, false, Kind::Double);
            assert!(worst(&sums, &sums.ones_like()) < 1e-9);
            assert!(law_nv.min().double_value(&[]) >= 0.0);
            let q = |alpha: f64| b_of(process, alpha) + &x * alpha;
            let back = q(alpha_t).unsqueeze(0).matmul(&law_nv).squeeze_dim(0);
            assert!(worst(&back, &q(alpha_s)) < 1e-9, "{alpha_t} {alpha_s}: {back} {}", q(alpha_s));
        }
        let p_nv = Tensor::rand([V, V], (Kind::Double, Device::Cpu));
        assert!(process.posterior(&z_n, 0.7, 0.3, &p_nv).is_err());
    }

    /// Draws of the prior are what nothing survives to.
    pub(crate) fn the_prior_is_all_noise(process: &impl ForwardProcess) {
        tch::manual_seed(2);
        let draws = process.prior(100, 500).unwrap();
        let counts = draws.view([-1]).bincount(None::<Tensor>, V).to_kind(Kind::Double);
        let counts = Vec::<f64>::try_from(counts).unwrap();
        let want = Vec::<f64>::try_from(b_of(process, 0.0)).unwrap();
        // Where only masks are noise, there is one outcome.
        let one = want.iter().position(|share| *share > 1.0 - 1e-12);
        match one {
            Some(id) => assert_eq!(counts[id], 50_000.0, "{counts:?}"),
            None => assert!(chi_square(&counts, &want) > 1e-4, "{counts:?}"),
        }
    }

    /// The prior's divergence, written out.
    pub(crate) fn the_divergence_is_the_sum(process: &impl ForwardProcess) {
        let x0 = Tensor::full([2, 3], 2, (Kind::Int64, Device::Cpu));
        for alpha in [0.0, 1e-3, 0.4] {
            let kl = process.prior_kl(&x0, alpha).unwrap();
            assert_eq!((kl.size(), kl.kind()), (vec![2, 3], Kind::Double));
            let x = Tensor::from(2i64).one_hot(V).to_kind(Kind::Double);
            let (q, prior) = (b_of(process, alpha) + x * alpha, b_of(process, 0.0));
            let terms = q.special_xlogy(&(&q / &prior)).masked_fill(&q.eq(0.0), 0.0);
            let want = terms.sum(Kind::Double).double_value(&[]);
            let got = kl.double_value(&[1, 1]);
            assert!(got == want || (got - want).abs() < 1e-12, "{alpha}: {got} {want}");
        }
    }

    pub(crate) fn all(process: &impl ForwardProcess) {
        noise_is_a_law(process);
        one_number_decides_and_draws(process);
        the_posterior_is_bayes(process);
        the_prior_is_all_noise(process);
        the_divergence_is_the_sum(process);
    }
}
