//! A step as a coin of three sides: stay, draw a token of the network, draw noise.
//!
//! `q(xs | xt = z, p)` is a mixture of these three with weights that take one number of the row, `p_z`; so no `[N, V]` law of the
//! step is made, and a row is drawn from only where the coin says so.
//!
//! Shape letters: `N` rows, `V` vocabulary.

use maskdiff_plugin_api::prelude::*;
use tch::Kind;

/// Noise at one level: `every` on each token and `mask` more on the mask.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Noise {
    pub(crate) alpha: f64,
    every: f64,
    mask: f64,
    apart: bool,
}

/// Two times of a walk, t above s, and the noise at each.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Span {
    pub(crate) t: f64,
    pub(crate) s: f64,
    /// At t.
    pub(crate) from: Noise,
    /// At s.
    pub(crate) to: Noise,
}

impl Span {
    /// Between each two neighbours of `times`.
    pub(crate) fn all(model: &Denoiser, times: &[f64]) -> Result<Vec<Self>> {
        let noise = Noise::of(model, times)?;
        let pairs = times.windows(2).zip(noise.windows(2));
        let span = |(times, noise): (&[f64], &[Noise])| Self {
            t: times[0],
            s: times[1],
            from: noise[0],
            to: noise[1],
        };
        Ok(pairs.map(span).collect())
    }

    /// Between two times.
    pub(crate) fn new(model: &Denoiser, t: f64, s: f64) -> Result<Self> {
        let noise = Noise::of(model, &[t, s])?;
        Ok(Self { t, s, from: noise[0], to: noise[1] })
    }
}

impl Noise {
    /// At times; 0 is the clean text, whatever the schedule ends at. The process is asked once, so a GPU is waited for once.
    pub(crate) fn of(model: &Denoiser, times: &[f64]) -> Result<Vec<Self>> {
        let alpha = |t: &f64| if *t > 0.0 { model.alpha(*t) } else { Ok(1.0) };
        let alphas = times.iter().map(alpha).collect::<Result<Vec<f64>>>()?;
        let mix = model.mixing(&Tensor::from_slice(&alphas).to_device(model.device()))?;
        // sync: two numbers of the process for each time.
        let both_2b = Tensor::stack(&[mix.every_b, mix.mask_b], 0).to_device(tch::Device::Cpu);
        let both: Vec<f64> = Vec::try_from(both_2b.to_kind(Kind::Double).view([-1]))?;
        let (every, mask) = both.split_at(alphas.len());
        let of = |(i, alpha): (usize, f64)| Self {
            alpha,
            every: every[i],
            mask: mask[i],
            apart: mix.mask_apart,
        };
        Ok(alphas.into_iter().enumerate().map(of).collect())
    }

    /// b at tokens `[N]` → `[N] f64`.
    fn on(&self, token_n: &Tensor, mask: Option<i64>) -> Tensor {
        let every_n = Tensor::full(token_n.size(), self.every, (Kind::Double, token_n.device()));
        match mask {
            Some(mask) => {
                let level = self.mask + if self.apart { 0.0 } else { self.every };
                every_n.masked_fill(&token_n.eq(mask), level)
            }
            None => every_n,
        }
    }

    /// Draws of b over its sum by uniform numbers `[N]`: `[N] i64`.
    fn draw(&self, model: &Denoiser, u_n: &Tensor) -> Tensor {
        let size = model.vocab_size();
        let token = |u_n: &Tensor, count: i64| {
            (u_n * count as f64).floor().to_kind(Kind::Int64).clamp(0, count - 1)
        };
        let Some(mask) = model.mask() else { return token(u_n, size) };
        let tokens = size - i64::from(self.apart);
        let total = self.mask + self.every * tokens as f64;
        let share = if total > 0.0 { self.mask / total } else { 1.0 };
        // What is left of a number behind the coin is uniform again.
        let token_n = token(&((u_n - share) / (1.0 - share).max(f64::MIN_POSITIVE)), tokens);
        let token_n = match self.apart {
            true => &token_n + token_n.ge(mask).to_kind(Kind::Int64),
            false => token_n,
        };
        token_n.masked_fill(&u_n.lt(share), mask)
    }
}

/// Uniform numbers of a step at its rows. Each position of each sequence has some of its own, so a text is the same in every batch.
pub(crate) struct Draws {
    u_nk: Tensor,
}

/// What a number of [`Draws`] decides.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Draw {
    /// The side of the coin.
    Coin,
    /// A token of the network, or of a law.
    Token,
    /// A token of the noise.
    Noise,
    /// Whether a clean token keeps clean.
    Keep,
    /// Whether a step predicts.
    Predict,
}

impl Draws {
    /// Those of the rows of texts `[B, L]`.
    pub(crate) fn new(model: &Denoiser, xt_bl: &Tensor, rows_n: &Tensor) -> Result<Self> {
        let (b, l) = check_shape!(xt_bl, [B, L], Int64);
        let u_blk = model.uniforms(&[b, l, Draw::Predict as i64 + 1])?;
        Ok(Self { u_nk: ops::take_rows(&u_blk, rows_n) })
    }

    /// One for each row, `[N] f64`.
    pub(crate) fn of(&self, draw: Draw) -> Tensor {
        self.u_nk.select(1, draw as i64).contiguous()
    }

    /// Tokens of a law `[N, V]`, `[N] i64`.
    pub(crate) fn token_of(&self, law_nv: &Tensor) -> Tensor {
        ops::categorical_at(&law_nv.log(), &self.of(Draw::Token))
    }
}

/// Tokens at noise level t with the network's law of each, `[N] i64` and `log p [N, V]`.
pub(crate) struct Rows<'a> {
    pub(crate) z_n: &'a Tensor,
    pub(crate) log_p_nv: &'a Tensor,
}

impl Rows<'_> {
    /// The network's probability of the tokens that stand there, `[N] f64`.
    fn p_z(&self) -> Tensor {
        let log_p_n1 = self.log_p_nv.gather(1, &self.z_n.unsqueeze(1), false);
        log_p_n1.squeeze_dim(1).to_kind(Kind::Double).exp()
    }

    /// Where `drawn`, a token of the network by uniform numbers `[N]`; the others keep `else_n`.
    fn tokens(&self, drawn_n: &Tensor, else_n: &Tensor, u_n: &Tensor) -> Tensor {
        // sync: how many draw is data.
        let index = drawn_n.nonzero().squeeze_dim(-1);
        let log_p = self.log_p_nv.index_select(0, &index);
        let token = ops::categorical_at(&log_p, &u_n.index_select(0, &index));
        else_n.index_copy(0, &index, &token)
    }
}

/// Weights of the three sides, `[N] f64`, not normalised.
struct Coin {
    stay_n: Tensor,
    token_n: Tensor,
    noise_n: Tensor,
}

impl Coin {
    /// Tosses all coins by uniform numbers `[N]`: whether each stays, and whether it takes a token of the network.
    fn toss(&self, u_n: &Tensor) -> (Tensor, Tensor) {
        let total_n = &self.stay_n + &self.token_n + &self.noise_n;
        let u_n = u_n * &total_n;
        // A token that cannot stand there stays.
        let stays_n = u_n.lt_tensor(&self.stay_n).logical_or(&total_n.eq(0.0));
        let token_n = u_n.lt_tensor(&(&self.stay_n + &self.token_n));
        (stays_n.shallow_clone(), token_n.logical_and(&stays_n.logical_not()))
    }
}

/// The coin of `q(xs | xt, p)` from level t to s.
fn coin(model: &Denoiser, rows: &Rows, t: Noise, s: Noise) -> Coin {
    let mask = model.mask();
    let ratio = if t.alpha == s.alpha { 1.0 } else { t.alpha / s.alpha };
    let noise_s_n = s.on(rows.z_n, mask);
    let rest_n = (t.on(rows.z_n, mask) - &noise_s_n * ratio).clamp_min(0.0);
    Coin {
        stay_n: (rows.p_z() * s.alpha + noise_s_n) * ratio,
        token_n: &rest_n * s.alpha,
        noise_n: rest_n * (1.0 - s.alpha),
    }
}

/// One draw of `q(xs | xt, x0 ~ p)`, `[N] i64`.
pub(crate) fn ancestral(
    model: &Denoiser,
    rows: &Rows,
    (t, s): (Noise, Noise),
    draws: &Draws,
) -> Tensor {
    let (stays_n, drawn_n) = coin(model, rows, t, s).toss(&draws.of(Draw::Coin));
    let noise_n = s.draw(model, &draws.of(Draw::Noise));
    let else_n = rows.z_n.where_self(&stays_n, &noise_n);
    rows.tokens(&drawn_n, &else_n, &draws.of(Draw::Token))
}

/// One draw of `alpha_s q(x0 | xt, p) + b_s`: a clean token, noised again.
pub(crate) fn corrected(
    model: &Denoiser,
    rows: &Rows,
    (t, s): (Noise, Noise),
    draws: &Draws,
) -> Tensor {
    // The clean end has no noise: its side of the coin has no weight.
    let clean = Noise { alpha: 1.0, every: 0.0, mask: 0.0, apart: s.apart };
    let clean_n = ancestral(model, rows, (t, clean), draws);
    let kept_n = draws.of(Draw::Keep).lt(s.alpha);
    clean_n.where_self(&kept_n, &s.draw(model, &draws.of(Draw::Noise)))
}

/// The law of [`ancestral`], `[N, V] f64`: the process's posterior.
pub(crate) fn ancestral_law(model: &Denoiser, rows: &Rows, t: Noise, s: Noise) -> Result<Tensor> {
    let p_nv = rows.log_p_nv.to_kind(Kind::Double).exp();
    model.posterior(rows.z_n, t.alpha, s.alpha, &p_nv)
}

/// The law of [`corrected`], `[N, V] f64`.
pub(crate) fn corrected_law(model: &Denoiser, rows: &Rows, t: Noise, s: Noise) -> Result<Tensor> {
    let p_nv = rows.log_p_nv.to_kind(Kind::Double).exp();
    let clean_nv = model.posterior(rows.z_n, t.alpha, 1.0, &p_nv)?;
    let every = Tensor::arange(model.vocab_size(), (Kind::Int64, rows.z_n.device()));
    Ok(clean_nv * s.alpha + s.on(&every, model.mask()).unsqueeze(0))
}
