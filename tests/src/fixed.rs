//! A model with another clock than its schedule, or whose network answers given logits.

use maskdiff_plugin_api::{Interpolation, Mix, Model, Pass, Passed, Rated, Result, ops};
use tch::{Device, Tensor};

/// Total noise and its rate, each from times `[B] f64` to `[B] f64`.
pub type Clock = [fn(&Tensor) -> Tensor; 2];

/// Everything is the inner model's but what stands here. The mask, where there is one, is banned from the law.
///
/// Shape letters: `B` batch, `L` length, `V` vocabulary.
#[derive(Clone, Copy)]
pub struct Fixed<'a> {
    /// What answers.
    pub inner: &'a dyn Model,
    /// The logits of the network, `[B, L, V]`, whatever it sees.
    pub logits_blv: Option<&'a Tensor>,
    /// What the process draws, `[B, L] i64`.
    pub z_bl: Option<&'a Tensor>,
    /// Another schedule.
    pub clock: Option<Clock>,
}

impl<'a> Fixed<'a> {
    /// As the inner model is.
    pub fn new(inner: &'a dyn Model) -> Self {
        Self { inner, logits_blv: None, z_bl: None, clock: None }
    }

    /// With logits.
    #[must_use]
    pub fn logits(self, logits_blv: &'a Tensor) -> Self {
        Self { logits_blv: Some(logits_blv), ..self }
    }

    /// With noise that was drawn.
    #[must_use]
    pub fn drawn(self, z_bl: &'a Tensor) -> Self {
        Self { z_bl: Some(z_bl), ..self }
    }
}

macro_rules! passed_on {
    ($($method:ident($($name:ident: $type:ty),*) -> $answer:ty;)*) => {$(
        fn $method(&self, $($name: $type),*) -> $answer {
            self.inner.$method($($name),*)
        }
    )*};
}

impl Model for Fixed<'_> {
    passed_on! {
        vocab_size() -> i64;
        mask_id() -> Option<i64>;
        time_conditioning() -> bool;
        device() -> Device;
        time_of_alpha(alpha: &Tensor) -> Result<Tensor>;
        sigma_range() -> Result<(f64, f64)>;
        importance(t: &Tensor) -> Result<Tensor>;
        posterior(xt_n: &Tensor, alpha_t: f64, alpha_s: f64, p_nv: &Tensor) -> Result<Tensor>;
        extend(x_bl: &Tensor, cache: Vec<Tensor>) -> Result<(Tensor, Vec<Tensor>)>;
        weighted_nll(hidden_nd: &Tensor, target_n: &Tensor, weight_n: &Tensor, banned: Option<i64>) -> Result<Tensor>;
        score(xt_bl: &Tensor, t_b: &Tensor, rows_n: &Tensor) -> Result<Tensor>;
        mixing(alpha_b: &Tensor) -> Result<Mix>;
        arrival(alpha_b: &Tensor) -> Result<Mix>;
        offers(capability: &String) -> Result<Option<bool>>;
        other(name: &str) -> Result<Option<&dyn Model>>;
        token_sigma(tokens_bl: &Tensor, t_b: &Tensor) -> Result<Tensor>;
        token_dsigma(tokens_bl: &Tensor, t_b: &Tensor) -> Result<Tensor>;
        corrupt_tokens(x0_bl: &Tensor, alpha_bl: &Tensor) -> Result<Tensor>;
        rated_nll(rows: &Rated) -> Result<Tensor>;
        step() -> Result<Option<i64>>;
        uniforms(shape: &Vec<i64>) -> Result<Tensor>;
        normals(shape: &Vec<i64>) -> Result<Tensor>;
    }

    fn progress(&self, _done: i64, _total: i64, _xt_bl: &Tensor) -> Result<()> {
        Ok(())
    }

    fn given(&self) -> Result<Option<Tensor>> {
        Ok(None)
    }

    fn label(&self) -> Result<Option<Tensor>> {
        Ok(None)
    }

    fn sigma(&self, t: &Tensor) -> Result<Tensor> {
        self.clock.map_or_else(|| self.inner.sigma(t), |[sigma, _]| Ok(sigma(t)))
    }

    fn dsigma(&self, t: &Tensor) -> Result<Tensor> {
        self.clock.map_or_else(|| self.inner.dsigma(t), |[_, rate]| Ok(rate(t)))
    }

    fn corrupt(&self, x0_bl: &Tensor, alpha_b: &Tensor) -> Result<Tensor> {
        match self.z_bl {
            Some(z_bl) => Ok(z_bl.shallow_clone()),
            None => self.inner.corrupt(x0_bl, alpha_b),
        }
    }

    fn hidden(&self, xt_bl: &Tensor, sigma_b: &Tensor) -> Result<Tensor> {
        match self.logits_blv {
            Some(logits_blv) => Ok(logits_blv.shallow_clone()),
            None => self.inner.hidden(xt_bl, sigma_b),
        }
    }

    fn pass(&self, pass: &Pass) -> Result<Passed> {
        match self.logits_blv {
            Some(logits_blv) => Ok(Passed::new(logits_blv.shallow_clone())),
            None => self.inner.pass(pass),
        }
    }

    fn logits(&self, hidden_nd: &Tensor) -> Result<Tensor> {
        match self.logits_blv {
            Some(_) => Ok(hidden_nd.shallow_clone()),
            None => self.inner.logits(hidden_nd),
        }
    }

    /// Only over networks that are told the total noise.
    fn log_x0(&self, xt_bl: &Tensor, t_b: &Tensor, rows_n: &Tensor) -> Result<Tensor> {
        let hidden_bld = self.hidden(xt_bl, &self.sigma(t_b)?)?;
        let logits_nv = self.logits(&ops::take_rows(&hidden_bld, rows_n))?.copy();
        if let Some(mask) = self.mask_id() {
            let _ = logits_nv.select(1, mask).fill_(f64::NEG_INFINITY);
        }
        Ok(logits_nv.log_softmax(-1, logits_nv.kind()))
    }

    fn interpolating_nll(&self, rows: &Interpolation) -> Result<Tensor> {
        match self.logits_blv {
            Some(_) => Ok(ops::interpolating_nll(&rows.hidden_nd, rows)),
            None => self.inner.interpolating_nll(rows),
        }
    }
}
