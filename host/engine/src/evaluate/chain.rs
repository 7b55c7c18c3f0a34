//! The likelihood of each token of a text given those in front of it: what clients of language models ask for.
//!
//! Shape letters: `R` rows of a call, `L` length, `V` vocabulary including the mask, `N` rows of the head.

use maskdiff_base::error::{Error, Result};
use maskdiff_config::Config;
use maskdiff_plugin_api::{Denoiser, Model as Lent};
use tch::{Kind, Tensor};

use super::strict::time_of_share;
use crate::component;
use crate::model::Model;
use crate::model::views::{Blocks, Growth, GuidedView, Text};
use crate::windows::Windows;

/// How a text is read whose tokens are asked about: as a walk reads it.
#[derive(Debug, Clone, Copy)]
pub struct Reading {
    /// In windows: how they move over a text that is longer than one.
    pub windows: Windows,
    /// In blocks: how texts grow.
    pub growth: Option<Growth>,
    /// The class of the text.
    pub label: Option<i64>,
    /// g: the law is guided by the class; 1 is the law of the class.
    pub guidance: f64,
}

impl Reading {
    /// Of a text that is read as a whole.
    pub const WHOLE: Self =
        Self { windows: Windows::ONE, growth: None, label: None, guidance: 1.0 };

    /// As the configuration has it.
    pub fn new(config: &Config) -> Self {
        let sampling = &config.sampling;
        let growth = config.top.block_size.map(|size| Growth {
            size,
            window: config.model.length,
            context: sampling.context,
            cached: sampling.kv_cache,
        });
        Self { windows: Windows::new(sampling), growth, ..Self::WHOLE }
    }

    /// The model as one that knows the class of its texts, where they have one.
    fn view<'m>(&self, model: &'m Model) -> Option<GuidedView<'m>> {
        let label = self.label?;
        let label_b = Tensor::from_slice(&[label]).to_device(model.facts().device());
        Some(GuidedView::labelled(model, self.guidance, &label_b))
    }
}

/// The model, or how it is seen.
fn lent<'m>(view: Option<&'m GuidedView<'_>>, model: &'m Model) -> &'m dyn Lent {
    match view {
        Some(view) => view,
        None => model,
    }
}

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

/// `log p(x_i | x_<i)` of the tokens from `from` on, all later ones masked, and the `top` likeliest tokens at each. In blocks the text has the
/// model's BOS in front, where it has one, which is certain.
///
/// The sum is that of [`super::duel::nats_behind`] with [`maskdiff_plugin_api::ops::Order::LeftToRight`], one token at a time, in as many network calls of as many
/// tokens. It is the one chain that is the same wherever a context is said to end.
pub fn left_to_right(
    model: &Model,
    ids: &[i64],
    from: usize,
    top: usize,
    reading: Reading,
) -> Result<Vec<Scored>> {
    if let (Some(blocks), Some(growth)) = (model.blocks(), reading.growth) {
        return tch::no_grad(|| in_blocks(model, (blocks, growth), ids, from, top));
    }
    let view = reading.view(model);
    let lent = lent(view.as_ref(), model);
    let mut scored = Vec::with_capacity(ids.len() - from);
    let all: Vec<usize> = (from..ids.len()).collect();
    for places in all.chunks(fitting(ids.len())) {
        scored.extend(tch::no_grad(|| chunk(model, lent, ids, places, top))?);
    }
    Ok(scored)
}

/// Some places of the chain, a row for each, of a text or of a block of one.
fn chunk(
    model: &Model,
    lent: &dyn Lent,
    ids: &[i64],
    places: &[usize],
    top: usize,
) -> Result<Vec<Scored>> {
    let (rows, length) = (places.len() as i64, ids.len() as i64);
    let denoiser = Denoiser::new(lent);
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
    let log_p_nv = denoiser.log_x0(&xt_rl, &t_r, &rows_n).map_err(named)?;
    let truth_n1 = x_l.index_select(0, &place_r).unsqueeze(1);
    let log_p_n = log_p_nv.gather(1, &truth_n1, false).squeeze_dim(1).to_kind(Kind::Double);
    let log_p = Vec::<f64>::try_from(&log_p_n).map_err(component::torch)?;
    let top = best(&log_p_nv, top)?;
    Ok(log_p.into_iter().zip(top).map(|(log_p, top)| Scored { log_p, top }).collect())
}

/// The `top` likeliest tokens of each row of `log p [N, V]`, the likeliest first, each with its log-probability.
fn best(log_p_nv: &Tensor, top: usize) -> Result<Vec<Vec<(i64, f64)>>> {
    let width = (top as i64).min(log_p_nv.size()[1]);
    let (best_nk, id_nk) = log_p_nv.topk(width, -1, true, true);
    let best = Vec::<f64>::try_from(best_nk.to_kind(Kind::Double).flatten(0, -1));
    let id = Vec::<i64>::try_from(id_nk.flatten(0, -1)).map_err(component::torch)?;
    let all: Vec<(i64, f64)> = id.into_iter().zip(best.map_err(component::torch)?).collect();
    Ok(all.chunks(width.max(1) as usize).map(<[_]>::to_vec).collect())
}

/// The same block by block: a token sees the blocks before its own, and of its own those in front of it.
fn in_blocks(
    model: &Model,
    (blocks, growth): (&Blocks, Growth),
    ids: &[i64],
    from: usize,
    top: usize,
) -> Result<Vec<Scored>> {
    let (size, device) = (growth.size as usize, model.facts().device());
    let named = |e| model.method_error(e);
    let lead = usize::from(blocks.begins().is_some());
    let mut text = Text::new(model, 1, growth);
    let mut scored = Vec::with_capacity(ids.len() - from);
    scored.extend((from..lead).map(|at| Scored { log_p: 0.0, top: vec![(ids[at], 0.0)] }));
    // What stands behind the end of the text is masked in each of its calls.
    let filler = i64::from(model.facts().mask_id == Some(0));
    for (number, block) in ids.chunks(size).enumerate() {
        let at = number * size;
        let places: Vec<usize> =
            (from.max(lead).max(at)..at + block.len()).map(|place| place - at).collect();
        let mut whole = block.to_vec();
        whole.resize(size, filler);
        if !places.is_empty() {
            let view = text.next(None).map_err(named)?;
            scored.extend(chunk(model, &view, &whole, &places, top)?);
        }
        text.push(&Tensor::from_slice(&whole).to_device(device).unsqueeze(0));
    }
    Ok(scored)
}

/// The `top` likeliest tokens of one position and their log-probabilities, the likeliest first, given what else is known of a text: `None`
/// is a hole, and so is the position itself. One network call; in blocks, of which a text has the model's BOS in front where it has one, one more for each before.
///
/// # Errors
/// In blocks, a hole in a block before that of the position.
pub fn likeliest(
    model: &Model,
    tokens: &[Option<i64>],
    place: usize,
    top: usize,
    reading: Reading,
) -> Result<Vec<(i64, f64)>> {
    tch::no_grad(|| likeliest_in(model, (tokens, place), top, reading))
}

fn likeliest_in(
    model: &Model,
    (tokens, place): (&[Option<i64>], usize),
    top: usize,
    reading: Reading,
) -> Result<Vec<(i64, f64)>> {
    let Some(growth) = reading.growth.filter(|_| model.blocks().is_some()) else {
        // The window that has drawn the position sees no other tokens.
        let length = model.facts().length;
        let from = reading.windows.begin(place as i64, length) as usize;
        let end = tokens.len().min(from + length as usize);
        let view = reading.view(model);
        let lent = lent(view.as_ref(), model);
        return likeliest_of(model, lent, (&tokens[from..end], place - from), top);
    };
    let size = growth.size as usize;
    let at = place / size * size;
    let before: Option<Vec<i64>> = tokens[..at].iter().copied().collect();
    let Some(before) = before else {
        let hole = tokens.iter().position(Option::is_none).unwrap_or(0);
        return Err(Error::config(
            format!(
                "position {hole} is a hole in a block before that of position {place}, and this model reads finished blocks alone"
            ),
            "fill the holes of earlier blocks first",
        ));
    };
    let mut text = Text::new(model, 1, growth);
    if at > 0 {
        text.push(&Tensor::from_slice(&before).to_device(model.facts().device()).unsqueeze(0));
    }
    let view = text.next(None).map_err(|e| model.method_error(e))?;
    let mut block = tokens[at..tokens.len().min(at + size)].to_vec();
    block.resize(size, None);
    likeliest_of(model, &view, (&block, place - at), top)
}

/// The same of what the model reads at once.
fn likeliest_of(
    model: &Model,
    lent: &dyn Lent,
    (tokens, place): (&[Option<i64>], usize),
    top: usize,
) -> Result<Vec<(i64, f64)>> {
    let denoiser = Denoiser::new(lent);
    let named = |e| model.method_error(e);
    let mask = denoiser.mask_id().map_err(named)?;
    let known = |(at, token): (usize, &Option<i64>)| token.filter(|_| at != place).unwrap_or(mask);
    let ids: Vec<i64> = tokens.iter().enumerate().map(known).collect();
    let masked = ids.iter().filter(|id| **id == mask).count();
    let device = model.facts().device();
    let [xt_1l, rows_n] =
        [ids.clone(), vec![place as i64]].map(|all| Tensor::from_slice(&all).to_device(device));
    let share_b = Tensor::from_slice(&[masked as f64 / ids.len() as f64]).to_device(device);
    let t_b = time_of_share(&denoiser, &share_b).map_err(named)?;
    let log_p_nv = denoiser.log_x0(&xt_1l.unsqueeze(0), &t_b, &rows_n).map_err(named)?;
    Ok(best(&log_p_nv, top)?.pop().unwrap_or_default())
}
