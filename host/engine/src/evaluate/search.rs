//! The search of a clipped schedule: how much the losses of blocks vary when times come from an interval.

use maskdiff_base::error::Result;
use maskdiff_base::stream::Purpose;
use maskdiff_data::Blocks as Sequences;
use maskdiff_native::{generator_state, set_generator_state};
use maskdiff_plugin_api::Batch;
use tch::{Kind, Tensor};

use super::Plan;
use crate::distributed::World;
use crate::model::Model;
use crate::model::views::{BlockView, Interval, training};
use crate::moment::{Moment, Streams};
use crate::rows::TokenRows;
use crate::{component, draws};

/// Batches that are looked at, as in the original.
const BATCHES: i64 = 100;

/// Of each interval, the sum over batches of the variance over all blocks of their mean loss, of the first `n` sequences.
///
/// All candidates are measured with the same random numbers, over one read of the clean texts; masks are drawn anew where training does so.
///
/// # Source
/// Arriola et al. 2025, arXiv:2503.09573, section 5. Difference: a batch belongs to one rank, so the sums do not depend on how many there are.
pub fn variances(
    model: &Model,
    sequences: &Sequences,
    n: i64,
    plan: Plan,
    world: &World,
    candidates: &[Interval],
) -> Result<Vec<f64>> {
    let Some(blocks) = model.blocks() else { return Ok(vec![0.0; candidates.len()]) };
    let device = model.facts().device();
    let state = generator_state(device).map_err(component::torch)?;
    let mut sums = vec![0.0; candidates.len()];
    let seed = plan.seed.cast_unsigned();
    let done = tch::no_grad(|| {
        let starts = (0..n).step_by(plan.batch as usize).take(BATCHES as usize);
        for (number, start) in starts.enumerate() {
            if number % world.size() != world.rank() {
                continue;
            }
            let size = plan.batch.min(n - start);
            let rows = TokenRows::new(&sequences.rows(start, size)?, device)?;
            let TokenRows { x0_bl, counted_bl, given_bl, .. } = &rows;
            let clocks = model.clocks();
            let u = draws::evaluation_times(seed, 0, 1, start * clocks, size * clocks);
            let u = u.view([size, clocks]).to_device(device);
            let u_bl = draws::evaluation_masks(seed, 0, start, size, model.facts().length);
            let mut view = BlockView::of_texts(model, blocks, x0_bl)
                .map_err(|error| model.method_error(error))?;
            for (sum, candidate) in sums.iter_mut().zip(candidates) {
                draws::seed_torch(seed, Purpose::Evaluate, number as u64, 0);
                let numbers = (start..start + size).map(|row| draws::place_of_block(0, row));
                let streams = Streams::new(seed, Purpose::EvaluationDraws, numbers);
                model.inject_uniforms(Some(rows.keeping(&u_bl.to_device(device))));
                model.set_moment(Moment::of_loss(None, Some(streams)));
                view = view.redraws(blocks.resample.then_some(*candidate));
                let batch = Batch::new(x0_bl, &model.draw_t_in(*candidate, &u)?)
                    .counted(counted_bl.as_ref())
                    .given(given_bl.as_ref());
                let objective = training::objective_over(model, blocks, &view, &batch);
                model.inject_uniforms(None);
                model.set_moment(Moment::default());
                let loss_bl = objective.map_err(|error| model.method_error(error))?.loss_bl;
                *sum += variance(&loss_bl, blocks.size);
            }
        }
        Ok(())
    });
    set_generator_state(device, &state).map_err(component::torch)?;
    let mut told = [sums, vec![f64::from(u8::from(done.is_err()))]].concat();
    world.sum(&mut told)?;
    done?;
    told.truncate(candidates.len());
    Ok(told)
}

/// The variance over blocks of their mean loss: `[B, L]` → a number.
fn variance(loss_bl: &Tensor, size: i64) -> f64 {
    let of_blocks = loss_bl.to_kind(Kind::Double).view([-1, size]);
    of_blocks.mean_dim([1i64].as_slice(), false, Kind::Double).var(true).double_value(&[])
}
