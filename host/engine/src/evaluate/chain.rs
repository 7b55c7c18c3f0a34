//! The likelihood of each token of a text given those in front of it: what clients of language models ask for.
//!
//! Shape letters: `R` rows of a call, `L` length, `V` vocabulary including the mask, `N` rows of the head.

use maskdiff_base::error::Result;
use maskdiff_plugin_api::Denoiser;
use tch::{Kind, Tensor};

use super::strict::time_of_share;
use crate::component;
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
pub fn fitting(length: usize) -> usize {
    (TOKENS / length.max(1)).clamp(1, ROWS)
}

/// `log p(x_i | x_<i)` of the tokens from `from` on, all later ones masked, and the `top` likeliest tokens at each.
///
/// The sum is that of [`super::duel::nats_behind`] with [`maskdiff_plugin_api::ops::Order::LeftToRight`], one token at a time, in as many network calls of as many
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

/// The `top` likeliest tokens of one position and their log-probabilities, the likeliest first, given what else is known of a text: `None`
/// is a hole, and so is the position itself. One network call.
pub fn likeliest(
    model: &Model,
    tokens: &[Option<i64>],
    place: usize,
    top: usize,
) -> Result<Vec<(i64, f64)>> {
    let denoiser = Denoiser::new(model);
    let named = |e| model.method_error(e);
    let mask = denoiser.mask_id().map_err(named)?;
    let known = |(at, token): (usize, &Option<i64>)| token.filter(|_| at != place).unwrap_or(mask);
    let ids: Vec<i64> = tokens.iter().enumerate().map(known).collect();
    let masked = ids.iter().filter(|id| **id == mask).count();
    let device = model.facts().device();
    let [xt_1l, rows_n] =
        [ids.clone(), vec![place as i64]].map(|all| Tensor::from_slice(&all).to_device(device));
    let share_b = Tensor::from_slice(&[masked as f64 / ids.len() as f64]).to_device(device);
    let log_p_nv = tch::no_grad(|| {
        let t_b = time_of_share(&denoiser, &share_b).map_err(named)?;
        model.log_x0(&xt_1l.unsqueeze(0), &t_b, &rows_n)
    })?;
    let width = (top as i64).min(log_p_nv.size()[1]);
    let (best_nk, id_nk) = log_p_nv.topk(width, -1, true, true);
    let best = Vec::<f64>::try_from(best_nk.to_kind(Kind::Double).flatten(0, -1));
    let id = Vec::<i64>::try_from(id_nk.flatten(0, -1)).map_err(component::torch)?;
    Ok(id.into_iter().zip(best.map_err(component::torch)?).collect())
}
