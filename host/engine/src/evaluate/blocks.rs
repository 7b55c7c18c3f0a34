//! Likelihood by blocks: a true bound and the exact likelihood of an order, each block given the clean blocks before it.

use maskdiff_plugin_api::ops::Order;
use maskdiff_plugin_api::{Denoiser, Result};
use tch::{Kind, Tensor};

use super::{Draws, duel, strict};
use crate::model::Model;
use crate::model::views::{BlockView, Blocks, given};

/// As [`strict::nats`] over the blocks of texts `[B, L]`: nats `[B] f64`.
pub fn strict_nats(
    model: &Model,
    blocks: &Blocks,
    x0_bl: &Tensor,
    draws: &Draws,
) -> Result<Tensor> {
    let given_nb = given(blocks, x0_bl, None);
    let view = BlockView::of_texts(model, blocks, x0_bl)?;
    let shown = |x: &Tensor| x.reshape([-1, blocks.size]);
    let own = Draws::new(draws.u_b.reshape([-1]), shown(&draws.u_bl));
    let own = Draws { given_bl: given_nb, ..own };
    let nats_n = strict::nats(&Denoiser::new(&view), &shown(x0_bl), &own)?;
    Ok(nats_n.view([x0_bl.size()[0], -1]).sum_dim_intlist([1i64].as_slice(), false, Kind::Double))
}

/// As [`duel::nats`], block after block.
pub fn duel_nats(
    model: &Model,
    blocks: &Blocks,
    x0_bl: &Tensor,
    order: Order,
    tokens: i64,
) -> Result<Tensor> {
    let (batch, length) = (x0_bl.size()[0], x0_bl.size()[1]);
    let clean = BlockView::of_texts(model, blocks, x0_bl)?;
    let mut total_b = Tensor::zeros([batch], (Kind::Double, x0_bl.device()));
    for at in (0..length).step_by(blocks.size as usize) {
        let view = clean.at(at);
        let first = i64::from(at == 0 && blocks.begins().is_some());
        let block = x0_bl.narrow(1, at, blocks.size);
        total_b += duel::nats_behind(&Denoiser::new(&view), &block, first, order, tokens)?;
    }
    Ok(total_b)
}
