//! What training minimizes over blocks: each block is a sequence with a time of its own.

use maskdiff_plugin_api::{Batch, Objective, Result, ensure};
use tch::{Kind, Tensor};

use super::blocks::BlockView;
use super::bounds::Interval;
use super::settings::Blocks;
use crate::model::Model;

/// The given tokens of all blocks of texts `[B, L]`, `[N, b] bool`.
pub fn given(blocks: &Blocks, x0_bl: &Tensor, more_bl: Option<&Tensor>) -> Option<Tensor> {
    if blocks.begins().is_none() && more_bl.is_none() {
        return None;
    }
    let given_bl = match more_bl {
        Some(more_bl) => more_bl.copy(),
        None => x0_bl.zeros_like().to_kind(Kind::Bool),
    };
    if blocks.begins().is_some() {
        let _ = given_bl.narrow(1, 0, 1).fill_(1);
    }
    Some(given_bl.view([-1, blocks.size]))
}

/// The objective of texts `[B, L]` with times `[B, K]`, in the shape of the texts.
pub(crate) fn objective(
    model: &Model,
    blocks: &Blocks,
    batch: &Batch,
    redraws: Option<Interval>,
) -> Result<Objective> {
    let view = BlockView::of_texts(model, blocks, &batch.x0_bl)?.redraws(redraws);
    objective_over(model, blocks, &view, batch)
}

/// The same over texts whose clean tokens have been read.
pub(crate) fn objective_over(
    model: &Model,
    blocks: &Blocks,
    view: &BlockView<'_>,
    batch: &Batch,
) -> Result<Objective> {
    let size = blocks.size;
    let shown = |x: &Tensor| x.reshape([-1, size]);
    let given_nb = given(blocks, &batch.x0_bl, batch.given_bl.as_ref());
    let own = Batch::new(&shown(&batch.x0_bl), &batch.t_b.reshape([-1]))
        .counted(batch.counted_bl.as_ref().map(shown).as_ref())
        .given(given_nb.as_ref())
        .at(batch.step, batch.total_steps);
    view.give(given_nb);
    let Objective { loss_bl, nats_bl, metrics, .. } = model.method().objective(view, &own)?;
    let whole = |loss: Tensor| -> Result<Tensor> {
        ensure!(
            loss.numel() == batch.x0_bl.numel(),
            Unsupported,
            "this parameterization does not score every token of a block"
        );
        Ok(loss.view_as(&batch.x0_bl))
    };
    let mut objective = Objective::new(whole(loss_bl)?);
    objective.nats_bl = nats_bl.map(whole).transpose()?;
    objective.metrics = metrics;
    Ok(objective)
}
