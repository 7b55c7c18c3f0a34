//! A model whose random numbers are written down beforehand.

use std::cell::RefCell;
use std::collections::VecDeque;

use maskdiff_plugin_api::{Interpolation, Mix, Model, Pass, Passed, PluginError, Rated, Result};
use tch::{Device, Tensor};

/// Everything is the inner model's but the step and the random numbers, which come in the order in which they stand here.
pub struct Scripted<'a> {
    /// What answers.
    pub inner: &'a dyn Model,
    /// The step of training that is being taken.
    pub step: Option<i64>,
    /// What `uniforms` gives, call by call.
    pub uniforms: RefCell<VecDeque<Tensor>>,
    /// What `normals` gives, call by call.
    pub normals: RefCell<VecDeque<Tensor>>,
}

fn next(queue: &RefCell<VecDeque<Tensor>>, shape: &[i64]) -> Result<Tensor> {
    let drawn = queue.borrow_mut().pop_front().ok_or_else(|| {
        PluginError::new(maskdiff_plugin_api::Kind::Other, "no further numbers are written down")
    })?;
    assert_eq!(drawn.size(), shape, "numbers of another shape are asked for");
    Ok(drawn)
}

macro_rules! passed_on {
    ($($method:ident($($name:ident: $type:ty),*) -> $answer:ty;)*) => {$(
        fn $method(&self, $($name: $type),*) -> $answer {
            self.inner.$method($($name),*)
        }
    )*};
}

impl Model for Scripted<'_> {
    passed_on! {
        vocab_size() -> i64;
        mask_id() -> Option<i64>;
        time_conditioning() -> bool;
        device() -> Device;
        sigma(t: &Tensor) -> Result<Tensor>;
        dsigma(t: &Tensor) -> Result<Tensor>;
        time_of_alpha(alpha: &Tensor) -> Result<Tensor>;
        sigma_range() -> Result<(f64, f64)>;
        importance(t: &Tensor) -> Result<Tensor>;
        corrupt(x0_bl: &Tensor, alpha_b: &Tensor) -> Result<Tensor>;
        posterior(xt_n: &Tensor, alpha_t: f64, alpha_s: f64, p_nv: &Tensor) -> Result<Tensor>;
        hidden(xt_bl: &Tensor, sigma_b: &Tensor) -> Result<Tensor>;
        extend(x_bl: &Tensor, cache: Vec<Tensor>) -> Result<(Tensor, Vec<Tensor>)>;
        logits(hidden_nd: &Tensor) -> Result<Tensor>;
        weighted_nll(hidden_nd: &Tensor, target_n: &Tensor, weight_n: &Tensor, banned: Option<i64>) -> Result<Tensor>;
        log_x0(xt_bl: &Tensor, t_b: &Tensor, rows_n: &Tensor) -> Result<Tensor>;
        score(xt_bl: &Tensor, t_b: &Tensor, rows_n: &Tensor) -> Result<Tensor>;
        progress(done: i64, total: i64, xt_bl: &Tensor) -> Result<()>;
        mixing(alpha_b: &Tensor) -> Result<Mix>;
        arrival(alpha_b: &Tensor) -> Result<Mix>;
        pass(pass: &Pass) -> Result<Passed>;
        interpolating_nll(rows: &Interpolation) -> Result<Tensor>;
        offers(capability: &String) -> Result<Option<bool>>;
        given() -> Result<Option<Tensor>>;
        label() -> Result<Option<Tensor>>;
        other(name: &str) -> Result<Option<&dyn Model>>;
        token_sigma(tokens_bl: &Tensor, t_b: &Tensor) -> Result<Tensor>;
        token_dsigma(tokens_bl: &Tensor, t_b: &Tensor) -> Result<Tensor>;
        corrupt_tokens(x0_bl: &Tensor, alpha_bl: &Tensor) -> Result<Tensor>;
        rated_nll(rows: &Rated) -> Result<Tensor>;
    }

    fn step(&self) -> Result<Option<i64>> {
        Ok(self.step)
    }

    fn uniforms(&self, shape: &Vec<i64>) -> Result<Tensor> {
        next(&self.uniforms, shape)
    }

    fn normals(&self, shape: &Vec<i64>) -> Result<Tensor> {
        next(&self.normals, shape)
    }
}
