//! The likelihood of an answer behind its context, and of each token of a text: what a benchmark asks of a server.
//!
//! Shape letters: `R` rows of a call, `L` length, `V` vocabulary including the mask, `N` rows of the head.

use maskdiff_base::error::Result;
use maskdiff_plugin_api::ops::{self, Order};
use maskdiff_plugin_api::{Denoiser, Result as PluginResult};
use tch::{Kind, Tensor};

use super::strict::time_of_share;
use super::{Draws, duel, strict};
use crate::component;
use crate::draws::{evaluation_masks, evaluation_times};
use crate::model::Model;

/// One token of a text.
#[derive(Debug, Clone, PartialEq)]
pub struct Scored {
    /// Its log-probability, nats.
    pub log_p: f64,
    /// The likeliest tokens there, the likeliest first, each with its log-probability.
    pub top: Vec<(i64, f64)>,
}

/// Rows that are read at once, at most.
const ROWS: usize = 32;
/// Tokens that are read at once, at most, where there is more than one row.
const TOKENS: usize = 1 << 14;

/// Rows of `length` tokens for one call.
fn fitting(length: usize) -> usize {
    (TOKENS / length.max(1)).clamp(1, ROWS)
}

/// `log p(x_i | x_<i)` of the tokens from `from` on, all later ones masked, and the `top` likeliest tokens at each.
///
/// The sum is that of [`duel::nats_behind`] with [`Order::LeftToRight`], one token at a time, in as many network calls of as many
/// tokens. It is the one chain that is the same wherever a context is said to end.
pub fn left_to_right(model: &Model, ids: &[i64], from: usize, top: usize) -> Result<Vec<Scored>> {
    let mut scored = Vec::with_capacity(ids.len() - from);
    let all: Vec<usize> = (from..ids.len()).collect();
    for places in all.chunks(fitting(ids.len())) {
        scored.extend(tch::no_grad(|| chunk(model, ids, places, top))?);
    }
    Ok(scored)
}

/// Some places of the chain, a row for each.
fn chunk(model: &Model, ids: &[i64], places: &[usize], top: usize) -> Result<Vec<Scored>> {
    let (rows, length) = (places.len() as i64, ids.len() as i64);
    let denoiser = Denoiser::new(model);
    let device = model.facts().device();
    let named = |e| model.method_error(e);
    let place_r = Tensor::from_slice(&places.iter().map(|i| *i as i64).collect::<Vec<i64>>());
    let place_r = place_r.to_device(device);
    let position_l = Tensor::arange(length, (Kind::Int64, device));
    let open_rl = position_l.unsqueeze(0).lt_tensor(&place_r.unsqueeze(1));
    let x_l = Tensor::from_slice(ids).to_device(device);
    let mask = denoiser.mask_id().map_err(named)?;
    let xt_rl = x_l.unsqueeze(0).where_scalarother(&open_rl, mask);
    let share_r = (&place_r * -1 + length).to_kind(Kind::Double) / length as f64;
    let t_r = time_of_share(&denoiser, &share_r).map_err(named)?;
    let rows_n = Tensor::arange(rows, (Kind::Int64, device)) * length + &place_r;
    let log_p_nv = model.log_x0(&xt_rl, &t_r, &rows_n)?;
    let truth_n1 = x_l.index_select(0, &place_r).unsqueeze(1);
    let log_p_n = log_p_nv.gather(1, &truth_n1, false).squeeze_dim(1).to_kind(Kind::Double);
    let width = (top as i64).min(log_p_nv.size()[1]);
    let (best_nk, id_nk) = log_p_nv.topk(width, -1, true, true);
    let numbers = |t: &Tensor| Vec::<f64>::try_from(t.to_kind(Kind::Double).flatten(0, -1));
    let log_p = numbers(&log_p_n).map_err(component::torch)?;
    let best = numbers(&best_nk).map_err(component::torch)?;
    let ids = Vec::<i64>::try_from(id_nk.flatten(0, -1)).map_err(component::torch)?;
    let width = width as usize;
    let scored = log_p.into_iter().enumerate().map(|(row, log_p)| {
        let at = row * width..(row + 1) * width;
        let top = ids[at.clone()].iter().copied().zip(best[at].iter().copied());
        Scored { log_p, top: top.collect() }
    });
    Ok(scored.collect())
}

/// How the likelihood of an answer is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Draws of [`strict::nats`] over the tokens of the answer.
    Bound {
        /// How many.
        samples: i64,
    },
    /// [`duel::nats_behind`].
    Duel {
        /// Which token is revealed next.
        order: Order,
        /// Tokens revealed at once.
        tokens: i64,
    },
}

/// The log-likelihood of an answer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Likelihood {
    /// Nats; of a bound its mean.
    pub log_p: f64,
    /// Standard error of the mean; 0 of an exact one.
    pub standard_error: f64,
    /// Network calls.
    pub calls: i64,
}

/// The log-likelihood of what stands behind the first `given` of some tokens. What is drawn comes from the seed alone, so the noise of two
/// answers to one context is nearly the same, and their difference has less of it.
pub fn likelihood(
    model: &Model,
    ids: &[i64],
    given: usize,
    way: Way,
    seed: u64,
) -> Result<Likelihood> {
    let before = model.calls();
    let x0_bl = Tensor::from_slice(ids).to_device(model.facts().device()).unsqueeze(0);
    let denoiser = Denoiser::new(model);
    let named = |e| model.method_error(e);
    let (log_p, standard_error) = match way {
        Way::Duel { order, tokens } => {
            let nats_b =
                tch::no_grad(|| duel::nats_behind(&denoiser, &x0_bl, given as i64, order, tokens));
            (-nats_b.map_err(named)?.double_value(&[0]), 0.0)
        }
        Way::Bound { samples } => {
            // There is one way to mask a single token.
            let samples = if ids.len() - given == 1 { 1 } else { samples };
            let draws = Bound { x0_bl, given: given as i64, samples, seed };
            tch::no_grad(|| draws.mean(&denoiser)).map_err(named)?
        }
    };
    Ok(Likelihood { log_p, standard_error, calls: model.calls() - before })
}

/// Draws of the bound of one answer.
struct Bound {
    x0_bl: Tensor,
    given: i64,
    samples: i64,
    seed: u64,
}

impl Bound {
    /// The mean of the log-likelihoods and its standard error, as if the draws were independent: they are spread evenly, and err less.
    fn mean(&self, model: &Denoiser) -> PluginResult<(f64, f64)> {
        let length = self.x0_bl.size()[1];
        let u_b = evaluation_times(self.seed, 0, 1, 0, self.samples);
        let u_bl = evaluation_masks(self.seed, 0, 0, self.samples, length);
        let position_l = Tensor::arange(length, (Kind::Int64, self.x0_bl.device()));
        let given_l = position_l.lt(self.given);
        let rows = fitting(length as usize) as i64;
        let mut nats = Vec::new();
        for (u_b, u_bl) in u_b.split(rows, 0).into_iter().zip(u_bl.split(rows, 0)) {
            let (u_b, u_bl) = (u_b.to_device(model.device()), u_bl.to_device(model.device()));
            let batch = u_b.size()[0];
            let mut draws = Draws::new(u_b, u_bl);
            draws.given_bl = Some(given_l.unsqueeze(0).expand([batch, length], false));
            let x0_bl = self.x0_bl.expand([batch, length], false).contiguous();
            nats.push(strict::nats(model, &x0_bl, &draws)?);
        }
        let nats_b = Tensor::cat(&nats, 0);
        let error = match self.samples {
            1 if length - self.given == 1 => 0.0,
            1 => f64::NAN,
            n => nats_b.std(true).double_value(&[]) / (n as f64).sqrt(),
        };
        Ok((-nats_b.mean(Kind::Double).double_value(&[]), error))
    }
}

/// Whether what stands behind the first `given` tokens is what the model writes there when it opens the token that it is surest of, one after
/// the other. It stops at the first that differs.
pub fn is_greedy(model: &Model, ids: &[i64], given: usize) -> Result<bool> {
    let denoiser = Denoiser::new(model);
    let named = |e| model.method_error(e);
    let x_1l = Tensor::from_slice(ids).to_device(model.facts().device()).unsqueeze(0);
    let mask = denoiser.mask_id().map_err(named)?;
    let length = ids.len() as i64;
    let mut xt_1l = x_1l.full_like(mask);
    xt_1l.narrow(1, 0, given as i64).copy_(&x_1l.narrow(1, 0, given as i64));
    let mut masked: Vec<usize> = (given..ids.len()).collect();
    while !masked.is_empty() {
        let rows = Tensor::from_slice(&masked.iter().map(|i| *i as i64).collect::<Vec<i64>>());
        let rows_n = rows.to_device(x_1l.device());
        let share = Tensor::from_slice(&[masked.len() as f64 / length as f64]);
        let share_b = share.to_device(x_1l.device());
        let best = tch::no_grad(|| -> Result<(Tensor, Tensor)> {
            let t_b = time_of_share(&denoiser, &share_b).map_err(named)?;
            Ok(model.log_x0(&xt_1l, &t_b, &rows_n)?.max_dim(-1, false))
        })?;
        // sync: which token opens next is data.
        let row = best.0.argmax(0, false).int64_value(&[]);
        let place = masked.remove(row as usize);
        if best.1.int64_value(&[row]) != ids[place] {
            return Ok(false);
        }
        let opened = Tensor::from_slice(&[place as i64]).to_device(x_1l.device());
        xt_1l = ops::put_rows(&xt_1l, &opened, &ops::take_rows(&x_1l, &opened));
    }
    Ok(true)
}
