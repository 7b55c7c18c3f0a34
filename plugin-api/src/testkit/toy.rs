//! A denoiser whose joint distribution over short sequences is a table.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;

use tch::{Device, IndexOp, Kind as TensorKind, Tensor};

use super::kind::{Noise, corrupted, masked};
use super::reading;
use crate::error::Kind;
use crate::{
    Context, Interpolation, Mix, Model, Pass, Passed, PluginError, Rated, Result, Tokens, bail, ops,
};

/// The exact denoiser of a table of probabilities over sequences of `length` tokens out of `tokens`, plus a mask.
///
/// Absorbing process ([`Toy::new`]), uniform noise without a mask ([`Toy::uniform`]), or both ([`Toy::hybrid`]); log-linear schedule.
/// `hidden` is the exact log-conditional at each position, the head is the identity, so a parameterization can be tested over it
/// as well. Over uniform and hybrid noise it is the law of a token given the *other* positions. `extend` is the exact law of the
/// next token, as a causal network gives it.
#[derive(Debug)]
pub struct Toy {
    pub(super) length: usize,
    pub(super) tokens: usize,
    pub(super) noise: Noise,
    pub(super) joint: Vec<f64>,
    time_conditioning: bool,
    /// The power of time by which each token is masked, where tokens differ.
    pub(super) powers: Option<Vec<f64>>,
    /// Models beside it, by name.
    pub(super) others: Vec<(String, Toy)>,
    causal: bool,
    calls: Cell<i64>,
    stop_after: Cell<i64>,
    /// The times of each call for a law of x0, when they are wanted.
    asked: Option<RefCell<Vec<Vec<f64>>>>,
    /// Conditionals that were asked for before.
    pub(super) known: RefCell<HashMap<Vec<i64>, Rc<[f64]>>>,
    given: RefCell<Option<Tensor>>,
    step: Cell<Option<i64>>,
}

pub(super) const EPS: f64 = 1e-3;

impl Toy {
    /// A random table with a strong dependence between positions, always the same for the same sizes.
    pub fn new(length: usize, tokens: usize) -> Self {
        let states = tokens.pow(u32::try_from(length).expect("a short length"));
        // Multiplicative hashing; cubes make some sequences far likelier than others.
        let weight = |i: usize| {
            let word = (i as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40;
            (word as f64 / (1u64 << 24) as f64 + 0.05).powi(3)
        };
        let joint: Vec<f64> = (0..states).map(weight).collect();
        let total: f64 = joint.iter().sum();
        Self {
            length,
            tokens,
            noise: Noise::Absorbing,
            joint: joint.into_iter().map(|w| w / total).collect(),
            time_conditioning: false,
            powers: None,
            others: Vec::new(),
            causal: false,
            calls: Cell::new(0),
            stop_after: Cell::new(i64::MAX),
            asked: None,
            known: RefCell::default(),
            given: RefCell::default(),
            step: Cell::new(None),
        }
    }

    /// The same table under noise that turns tokens into any token; there is no mask. The law depends on the noise level.
    pub fn uniform(length: usize, tokens: usize) -> Self {
        Self { noise: Noise::Uniform, time_conditioning: true, ..Self::new(length, tokens) }
    }

    /// The same table under noise that turns tokens into the mask or, less often, into any other token.
    pub fn hybrid(length: usize, tokens: usize) -> Self {
        Self { noise: Noise::Hybrid, time_conditioning: true, ..Self::new(length, tokens) }
    }

    /// The absorbing process in which each token is masked at a rate of its own: that of token v with alpha
    /// `1 - (1 - eps) t^(w_v)`. What is masked tells which token it was.
    pub fn rated(length: usize, tokens: usize) -> Self {
        let powers = (0..tokens).map(|token| 0.7 + 0.6 * token as f64).collect();
        Self { powers: Some(powers), time_conditioning: true, ..Self::new(length, tokens) }
    }

    /// The same model with another one beside it, [`crate::Denoiser::other`].
    #[must_use]
    pub fn beside(mut self, name: &str, other: Self) -> Self {
        self.others.push((name.to_string(), other));
        self
    }

    /// Says which optimizer step is taken, or that none is.
    pub fn set_step(&self, step: Option<i64>) {
        self.step.set(step);
    }

    /// Says which positions of a walk are given, `[B, L] bool`.
    pub fn give(&self, given_bl: Option<Tensor>) {
        *self.given.borrow_mut() = given_bl;
    }

    /// The same model, which claims that its network sees the noise level.
    #[must_use]
    pub fn time_conditioned(mut self) -> Self {
        self.time_conditioning = true;
        self
    }

    /// The same model as a causal network: at each position the law of the next token given those so far.
    #[must_use]
    pub fn causal(mut self) -> Self {
        self.causal = true;
        self
    }

    /// The same model, which notes the times it is asked for, see [`Toy::asked`].
    #[must_use]
    pub fn noting_times(mut self) -> Self {
        self.asked = Some(RefCell::default());
        self
    }

    /// Asks to stop at the first progress report after `steps` of them.
    pub fn stop_after(&self, steps: i64) {
        self.stop_after.set(steps);
    }

    /// L.
    pub fn length(&self) -> i64 {
        self.length as i64
    }

    /// Network calls so far, counted for each sequence.
    pub fn calls(&self) -> i64 {
        self.calls.get()
    }

    /// The times, one for each sequence, of every call for `log_x0` so far; empty unless it notes them.
    pub fn asked(&self) -> Vec<Vec<f64>> {
        self.asked.as_ref().map(|asked| asked.borrow().clone()).unwrap_or_default()
    }

    /// The table: probability of each sequence, first position most significant.
    pub fn joint(&self) -> &[f64] {
        &self.joint
    }

    /// The tokens of sequence number `state` of [`Toy::joint`].
    pub fn tokens_of(&self, state: usize) -> Vec<i64> {
        self.digits(state, self.tokens).into_iter().map(|token| token as i64).collect()
    }

    /// What a component over this model is told.
    pub fn context(&self) -> Context {
        Context::new(self.vocab_size(), self.length())
            .mask(self.mask_id())
            .time_conditioning(self.time_conditioning)
            .kind(TensorKind::Double)
    }

    /// An all-mask start.
    pub fn masked(&self, batch: i64) -> Tensor {
        masked(self.tokens, &[batch, self.length()])
    }

    /// A draw of the prior, from which a walk starts.
    pub fn start(&self, batch: i64) -> Tensor {
        self.noise.draw(self.tokens, &[batch, self.length()])
    }

    /// The number behind the last token, which is the mask where there is one.
    pub(super) fn mask(&self) -> i64 {
        self.tokens as i64
    }

    /// V, as a size.
    pub(super) fn vocab(&self) -> usize {
        self.noise.vocab(self.tokens)
    }

    /// How often each sequence occurs among `x0_bl`, in the order of [`Toy::joint`].
    pub fn counts(&self, x0_bl: &Tensor) -> Vec<f64> {
        let mut index = Tensor::zeros([x0_bl.size()[0]], (TensorKind::Int64, Device::Cpu));
        for l in 0..self.length() {
            index = index * self.tokens as i64 + x0_bl.i((.., l));
        }
        let counts = index.bincount(None::<Tensor>, self.joint.len() as i64);
        Vec::try_from(counts.to_kind(TensorKind::Double)).expect("a vector of counts")
    }

    /// The tokens of sequence number `state` in base `base`.
    pub(super) fn digits(&self, mut state: usize, base: usize) -> Vec<usize> {
        let mut digits = vec![0; self.length];
        for digit in digits.iter_mut().rev() {
            *digit = state % base;
            state /= base;
        }
        digits
    }

    /// Mixtures `[B, S, M]` as vectors over the vocabulary, `[B, S, V] f64`.
    fn mixed(&self, ids: &Tensor, weight: &Tensor) -> Tensor {
        let each = ids.one_hot(self.vocab_size()).to_kind(TensorKind::Double);
        let weighed = each * weight.to_kind(TensorKind::Double).unsqueeze(-1);
        weighed.sum_dim_intlist([-2i64].as_slice(), false, TensorKind::Double)
    }
}

impl Model for Toy {
    fn vocab_size(&self) -> i64 {
        self.vocab() as i64
    }

    fn mask_id(&self) -> Option<i64> {
        self.noise.mask(self.tokens)
    }

    fn time_conditioning(&self) -> bool {
        self.time_conditioning
    }

    fn device(&self) -> Device {
        Device::Cpu
    }

    fn sigma(&self, t: &Tensor) -> Result<Tensor> {
        Ok(-(t * -(1.0 - EPS)).log1p())
    }

    fn dsigma(&self, t: &Tensor) -> Result<Tensor> {
        Ok((1.0 - EPS) / (1.0 - t * (1.0 - EPS)))
    }

    fn time_of_alpha(&self, alpha: &Tensor) -> Result<Tensor> {
        Ok((1.0 - alpha) / (1.0 - EPS))
    }

    fn sigma_range(&self) -> Result<(f64, f64)> {
        Ok((EPS, -EPS.ln()))
    }

    fn importance(&self, t: &Tensor) -> Result<Tensor> {
        let (low, high) = (1.0 - (-EPS).exp(), 1.0 - EPS);
        Ok((t * (high / low).ln()).exp() * low / (1.0 - EPS))
    }

    fn corrupt(&self, x0_bl: &Tensor, alpha_b: &Tensor) -> Result<Tensor> {
        Ok(corrupted(self.noise, self.tokens, x0_bl, alpha_b))
    }

    fn posterior(
        &self,
        xt_n: &Tensor,
        alpha_t: f64,
        alpha_s: f64,
        p_nv: &Tensor,
    ) -> Result<Tensor> {
        if self.noise != Noise::Absorbing {
            return Ok(self.noise.posterior(self.tokens, xt_n, (alpha_t, alpha_s), p_nv));
        }
        let mask = self.tokens as i64;
        let stay = if alpha_t == alpha_s { 1.0 } else { (1.0 - alpha_s) / (1.0 - alpha_t) };
        let opened = p_nv * (1.0 - stay);
        let _ = opened.i((.., mask)).fill_(stay);
        let kept = xt_n.one_hot(self.vocab_size()).to_kind(p_nv.kind());
        Ok(opened.where_self(&xt_n.eq(mask).unsqueeze(1), &kept))
    }

    /// A block shorter than L is the start of one.
    fn hidden(&self, xt_bl: &Tensor, sigma_b: &Tensor) -> Result<Tensor> {
        if self.causal {
            return Ok(self.extend(xt_bl, Vec::new())?.0);
        }
        let (batch, seen) = (xt_bl.size()[0], xt_bl.size()[1]);
        self.calls.set(self.calls.get() + batch);
        if self.noise != Noise::Absorbing {
            return self.hidden_of_others(xt_bl, sigma_b);
        }
        if let Some(powers) = &self.powers {
            return self.hidden_of_rates(powers, xt_bl, sigma_b);
        }
        let tokens = Vec::<i64>::try_from(xt_bl.contiguous().view([-1]))?;
        let mut table = Vec::new();
        for block in tokens.chunks(seen as usize) {
            let mut whole = block.to_vec();
            whole.resize(self.length, self.tokens as i64);
            let rows = seen as usize * (self.tokens + 1);
            table.extend_from_slice(&self.conditional(&whole)[..rows]);
        }
        let shape = [batch, seen, self.vocab_size()];
        Ok(Tensor::from_slice(&table).view(shape).log())
    }

    /// The cache holds the tokens so far. Behind the last position nothing follows: its law is uniform.
    fn extend(&self, x_bl: &Tensor, cache: Vec<Tensor>) -> Result<(Tensor, Vec<Tensor>)> {
        if self.noise != Noise::Absorbing {
            bail!(Unsupported, "this toy is no causal network");
        }
        let (batch, vocab) = (x_bl.size()[0], self.tokens + 1);
        self.calls.set(self.calls.get() + batch);
        let past: Vec<&Tensor> = cache.iter().chain([x_bl]).collect();
        let so_far = Tensor::cat(&past, 1);
        let (seen, new) = (so_far.size()[1] as usize, x_bl.size()[1] as usize);
        let tokens = Vec::<i64>::try_from(so_far.contiguous().view([-1]))?;
        let mut table = Vec::new();
        for text in tokens.chunks(seen) {
            for end in seen - new + 1..=seen {
                let mut prefix = text[..end].to_vec();
                prefix.resize(self.length, self.tokens as i64);
                match self.conditional(&prefix).chunks(vocab).nth(end) {
                    Some(next) => table.extend_from_slice(next),
                    None => table.extend(vec![1.0; vocab]),
                }
            }
        }
        let shape = [batch, new as i64, vocab as i64];
        Ok((Tensor::from_slice(&table).view(shape).log(), vec![so_far]))
    }

    fn logits(&self, hidden_nd: &Tensor) -> Result<Tensor> {
        Ok(hidden_nd.shallow_clone())
    }

    fn weighted_nll(
        &self,
        hidden_nd: &Tensor,
        target_n: &Tensor,
        weight_n: &Tensor,
        _banned: Option<i64>,
    ) -> Result<Tensor> {
        let log_p = hidden_nd.log_softmax(-1, TensorKind::Double);
        Ok(-log_p.gather(1, &target_n.unsqueeze(1), false).squeeze_dim(1) * weight_n)
    }

    fn log_x0(&self, xt_bl: &Tensor, t_b: &Tensor, rows_n: &Tensor) -> Result<Tensor> {
        if let Some(asked) = &self.asked {
            asked.borrow_mut().push(Vec::try_from(t_b)?);
        }
        Ok(ops::take_rows(&self.hidden(xt_bl, &self.sigma(t_b)?)?, rows_n))
    }

    fn score(&self, xt_bl: &Tensor, t_b: &Tensor, rows_n: &Tensor) -> Result<Tensor> {
        if self.noise != Noise::Absorbing {
            bail!(Unsupported, "this toy gives no score");
        }
        // p_t(y) / p_t(xt) at a masked position is p(y | xt) alpha / (1 - alpha); at an open one 1 for
        // itself and (1 - alpha) / alpha for the mask.
        let p = self.log_x0(xt_bl, t_b, rows_n)?.exp();
        let sigma = ops::of_sequence(&self.sigma(t_b)?, rows_n, self.length()).unsqueeze(1);
        let odds = sigma.expm1();
        let mask = self.tokens as i64;
        let masked = &p / &odds;
        let _ = masked.i((.., mask)).fill_(1.0);
        let open = p;
        open.i((.., mask)).copy_(&odds.squeeze_dim(1));
        Ok(masked.where_self(&ops::take_rows(xt_bl, rows_n).eq(mask).unsqueeze(1), &open))
    }

    fn progress(&self, done: i64, _total: i64, _xt_bl: &Tensor) -> Result<()> {
        if done > self.stop_after.get() {
            return Err(PluginError::new(Kind::Interrupted, "asked to stop"));
        }
        Ok(())
    }

    fn mixing(&self, alpha_b: &Tensor) -> Result<Mix> {
        Ok(self.noise.mix(self.tokens, &(1.0 - alpha_b)))
    }

    fn arrival(&self, alpha_b: &Tensor) -> Result<Mix> {
        Ok(self.noise.mix(self.tokens, &alpha_b.ones_like()))
    }

    /// Over masks it reads tokens at any positions over any others, see `reading`. Its state of a mixture is the mixture itself.
    fn pass(&self, pass: &Pass) -> Result<Passed> {
        use crate::capability::{CAUSAL, PAST, POSITIONS};
        if let Tokens::Mixture { ids, weight } = &pass.tokens {
            return Ok(Passed::new(self.mixed(ids, weight)));
        }
        let reads: &[&str] = match (self.noise, self.causal) {
            (_, true) => &[CAUSAL],
            (Noise::Absorbing, false) => &[PAST, POSITIONS],
            _ => &[],
        };
        pass.only(reads, "toy")?;
        if self.causal || self.noise != Noise::Absorbing {
            return self.hidden(pass.ids()?, &pass.sigma).map(Passed::new);
        }
        self.calls.set(self.calls.get() + pass.ids()?.size()[0]);
        reading::read(self, pass)
    }

    fn interpolating_nll(&self, rows: &Interpolation) -> Result<Tensor> {
        Ok(ops::interpolating_nll(&rows.hidden_nd, rows))
    }

    fn other(&self, name: &str) -> Result<Option<&dyn Model>> {
        match self.others.iter().find(|(known, _)| known == name) {
            Some((_, toy)) => Ok(Some(toy)),
            None => bail!(Unsupported, "there is no model `{name}` beside this toy"),
        }
    }

    fn token_sigma(&self, tokens_bl: &Tensor, t_b: &Tensor) -> Result<Tensor> {
        Ok(match &self.powers {
            Some(powers) => super::rates::sigma(powers, tokens_bl, t_b),
            None => self.sigma(t_b)?.unsqueeze(1).expand_as(tokens_bl),
        })
    }

    fn token_dsigma(&self, tokens_bl: &Tensor, t_b: &Tensor) -> Result<Tensor> {
        Ok(match &self.powers {
            Some(powers) => super::rates::dsigma(powers, tokens_bl, t_b),
            None => self.dsigma(t_b)?.unsqueeze(1).expand_as(tokens_bl),
        })
    }

    fn corrupt_tokens(&self, x0_bl: &Tensor, alpha_bl: &Tensor) -> Result<Tensor> {
        let each =
            corrupted(self.noise, self.tokens, &x0_bl.reshape([-1, 1]), &alpha_bl.reshape([-1]));
        Ok(each.view_as(x0_bl))
    }

    fn rated_nll(&self, rows: &Rated) -> Result<Tensor> {
        Ok(ops::rated_nll(&rows.hidden_nd, rows))
    }

    fn given(&self) -> Result<Option<Tensor>> {
        Ok(self.given.borrow().as_ref().map(Tensor::shallow_clone))
    }

    fn label(&self) -> Result<Option<Tensor>> {
        Ok(None)
    }

    fn step(&self) -> Result<Option<i64>> {
        Ok(self.step.get())
    }

    /// From libtorch's generator.
    fn uniforms(&self, shape: &Vec<i64>) -> Result<Tensor> {
        let parts = (1_u64 << 52) as f64;
        let drawn = Tensor::rand(shape, (TensorKind::Double, Device::Cpu));
        Ok(((drawn * parts).floor() + 0.5) / parts)
    }

    fn normals(&self, shape: &Vec<i64>) -> Result<Tensor> {
        Ok(self.uniforms(shape)?.special_ndtri())
    }
}
