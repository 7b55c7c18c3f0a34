//! Tokens in the order in which they are revealed, and what a network says of them.
//!
//! Shape letters: `B` batch, `L` length, `D` hidden size, `N` rows.

use maskdiff_plugin_api::prelude::*;
use tch::Kind;

/// Tokens that stay clean when noise may take any.
pub(crate) fn silent(x_bl: &Tensor) -> Tensor {
    Tensor::zeros([x_bl.size()[0]], (Kind::Double, x_bl.device()))
}

/// The positions `[B, L]` in the order of their keys `[B, L] f64`, the smallest first.
pub(crate) fn sorted(key_bl: &Tensor) -> Tensor {
    key_bl.argsort(1, false)
}

/// Keys by which positions behind all others stand from left to right, `[1, L]`: `base` and above, below `base + 1`.
pub(crate) fn left_to_right(x_bl: &Tensor, base: f64) -> Tensor {
    let length = x_bl.size()[1];
    let at = Tensor::arange(length, (Kind::Double, x_bl.device())) / length as f64;
    (at + base).unsqueeze(0)
}

/// Values of the tokens in some order, back at their positions: `[B, L]` each.
pub(crate) fn at_positions(value_bl: &Tensor, order_bl: &Tensor) -> Tensor {
    value_bl.zeros_like().scatter(1, order_bl, value_bl)
}

/// What scores a token: the rows of a pass, the tokens that they should have, and a factor for each sequence.
struct Scored<'a> {
    hidden: &'a Tensor,
    target: &'a Tensor,
    rows: &'a Tensor,
    weight_b: Option<&'a Tensor>,
}

/// Nats at the rows that `scored` marks, times their factor, 0 elsewhere: `hidden [B, S, D]`, `target [B, S] i64`, `scored [B, S] bool`
/// → `[B, S]`. A factor that came behind would cost a second pass over the head.
fn nats(model: &Denoiser, scored: &Scored<'_>) -> Result<Tensor> {
    let rows_n = ops::rows_of(scored.rows);
    let hidden_nd = ops::take_rows(scored.hidden, &rows_n);
    let weight_n = match scored.weight_b {
        Some(weight_b) => ops::of_sequence(weight_b, &rows_n, scored.target.size()[1]),
        None => Tensor::ones(rows_n.size(), (Kind::Double, rows_n.device())),
    };
    let (weight_n, target_n) =
        (weight_n.to_kind(hidden_nd.kind()), ops::take_rows(scored.target, &rows_n));
    let nats_n = model.weighted_nll(&hidden_nd, &target_n, &weight_n, Some(model.mask_id()?))?;
    let zero = Tensor::zeros(scored.target.size(), (nats_n.kind(), nats_n.device()));
    Ok(ops::put_rows(&zero, &rows_n, &nats_n))
}

/// Nats `[B, L]` of the masked tokens of `xt_bl`, times the factor of their sequence, at their positions. The clean tokens come first in the order; a mask sees all of them, and the
/// masks before it.
///
/// # Cost
/// One pass over L tokens.
pub(crate) fn masked_nats(
    model: &Denoiser,
    x0_bl: &Tensor,
    xt_bl: &Tensor,
    order_bl: &Tensor,
    weight_b: Option<&Tensor>,
) -> Result<Tensor> {
    let xt = xt_bl.gather(1, order_bl, false);
    let pass = Pass::new(&xt, &silent(x0_bl)).positions(order_bl).sees(Sees::Causal);
    let hidden = model.pass(&pass)?.hidden;
    let (target, rows) = (x0_bl.gather(1, order_bl, false), xt.eq(model.mask_id()?));
    let scored = Scored { hidden: &hidden, target: &target, rows: &rows, weight_b };
    let nats = nats(model, &scored)?;
    Ok(at_positions(&nats, order_bl))
}

/// Nats `[B, L]` of each token given the true ones before it in the order, at their positions; 0 where `scored_bl [B, L] bool`, in the order,
/// is false. Those that are not scored come first or last.
///
/// # Equation
/// `log p(x | o) = sum_i log p(x_{o_i} | x_{o_1} .. x_{o_{i-1}})`: exact, for every order sums over all sequences to 1.
///
/// # Cost
/// Two passes over L tokens: the clean ones, for their keys and values, and the masks over these.
pub(crate) fn ordered_nats(
    model: &Denoiser,
    x0_bl: &Tensor,
    order_bl: &Tensor,
    scored_bl: &Tensor,
) -> Result<Tensor> {
    let (sigma, target) = (silent(x0_bl), x0_bl.gather(1, order_bl, false));
    let (batch, length) = (x0_bl.size()[0], x0_bl.size()[1]);
    let clean =
        Pass::new(&target, &sigma).positions(order_bl).sees(Sees::Causal).wants(Wants::Keys);
    let keys = model.pass(&clean)?.keys;
    // sync: from where on anything is scored is data.
    let first = scored_bl.any_dim(0, false).to_kind(Kind::Int64).argmax(0, false).int64_value(&[]);
    let rest = length - first;
    let slots = Tensor::full([batch, rest], model.mask_id()?, (Kind::Int64, x0_bl.device()));
    // A slot sees itself and the clean tokens strictly before it.
    let at = Tensor::arange(length, (Kind::Int64, x0_bl.device()));
    let own = at.narrow(0, first, rest).unsqueeze(1);
    let pairs = Tensor::cat(
        &[at.unsqueeze(0).lt_tensor(&own), at.narrow(0, first, rest).unsqueeze(0).eq_tensor(&own)],
        1,
    );
    let behind = |x: &Tensor| x.narrow(1, first, rest);
    let pass =
        Pass::new(&slots, &sigma).positions(&behind(order_bl)).past(&keys).sees(Sees::Pairs(pairs));
    let hidden = model.pass(&pass)?.hidden;
    let (target, rows) = (behind(&target), behind(scored_bl));
    let scored = Scored { hidden: &hidden, target: &target, rows: &rows, weight_b: None };
    let nats = nats(model, &scored)?;
    let nats = Tensor::cat(&[Tensor::zeros([batch, first], (nats.kind(), nats.device())), nats], 1);
    Ok(at_positions(&nats, order_bl))
}

/// The state at each position of `xt_bl [B, L]`, `[B, L, D]`: a masked token sees the clean ones, which see one another from left to right.
pub(crate) fn states(model: &Denoiser, xt_bl: &Tensor) -> Result<Tensor> {
    let length = xt_bl.size()[1];
    let clean_bl = xt_bl.not_equal(model.mask_id()?);
    let at = Tensor::arange(length, (Kind::Int64, xt_bl.device()));
    let (rows, columns) = (at.unsqueeze(1), at.unsqueeze(0));
    let masked_b = clean_bl.logical_not().unsqueeze(2);
    let pairs = clean_bl.unsqueeze(1).logical_and(&masked_b.logical_or(&columns.le_tensor(&rows)));
    let pairs = pairs.logical_or(&columns.eq_tensor(&rows));
    let pass = Pass::new(xt_bl, &silent(xt_bl)).sees(Sees::Pairs(pairs));
    Ok(model.pass(&pass)?.hidden)
}
