//! What the network says of every token of some texts at a time: logits, or the law of the clean tokens.
//!
//! Shape letters: `B` texts, `L` length, `V` vocabulary including the mask, `N` rows of the head.

use maskdiff_base::error::{Error, Result};
use maskdiff_plugin_api::Denoiser;
use tch::{Kind, Tensor};

use super::chain::fitting;
use crate::model::Model;

/// Numbers `[B, L, V]` in the order of the processor's bytes.
#[derive(Debug, Clone)]
pub struct Table {
    /// `B`, `L`, `V`.
    pub size: [i64; 3],
    /// `f32`, or `f64` of a network in double precision.
    pub kind: &'static str,
    /// The numbers.
    pub bytes: Vec<u8>,
}

/// Numbers of a part that is computed at once, where a text has fewer.
const PART: usize = 1 << 24;

/// Logits at noisy tokens `ids`, all of one length, at the times `t`, one for each text. With `law`, log p(x0 | xt) of the parameterization instead.
///
/// A few texts are read at a time, and each goes into the answer at once: no second table is held. Texts are of the class `label`, where one is said.
pub fn table(
    model: &Model,
    (ids, t): (&[Vec<i64>], &[f64]),
    law: bool,
    label: Option<i64>,
) -> Result<Table> {
    let vocab = Denoiser::new(model).vocab_size();
    if let Some(id) = ids.iter().flatten().find(|id| !(0..vocab).contains(*id)) {
        return Err(Error::config(
            format!("`tokens` holds {id}, and the network knows the tokens 0 to {}", vocab - 1),
            "a model without a mask has no holes",
        ));
    }
    let length = ids.first().map_or(0, Vec::len);
    let mut table =
        Table { size: [ids.len() as i64, length as i64, 0], kind: "f32", bytes: Vec::new() };
    let row = length.max(1) * vocab.max(1) as usize;
    let each = fitting(length).min(PART / row).max(1);
    for (ids, t) in ids.chunks(each).zip(t.chunks(each)) {
        let read = || tch::no_grad(|| part(model, ids, t, law));
        let part_nv = match label {
            Some(label) => {
                let label_b = Tensor::from_slice(&vec![label; ids.len()]);
                model.labelled(&label_b.to_device(model.facts().device()), read)
            }
            None => read(),
        }?;
        let (kind, name, width) = match part_nv.kind() {
            Kind::Double => (Kind::Double, "f64", 8),
            _ => (Kind::Float, "f32", 4),
        };
        if table.bytes.is_empty() {
            (table.size[2], table.kind) = (part_nv.size()[1], name);
            table.bytes.reserve_exact(table.size.iter().product::<i64>() as usize * width);
        }
        let part_nv = part_nv.to_device(tch::Device::Cpu).to_kind(kind).contiguous();
        let (before, numbers) = (table.bytes.len(), part_nv.numel());
        table.bytes.resize(before + numbers * width, 0);
        part_nv.copy_data_u8(&mut table.bytes[before..], numbers);
    }
    Ok(table)
}

/// Some texts in one call, `[N, V]`.
fn part(model: &Model, ids: &[Vec<i64>], t: &[f64], law: bool) -> Result<Tensor> {
    let (batch, device) = (ids.len() as i64, model.facts().device());
    let denoiser = Denoiser::new(model);
    let named = |e| model.method_error(e);
    let xt_bl = Tensor::from_slice(&ids.concat()).view([batch, -1]).to_device(device);
    let t_b = Tensor::from_slice(t).to_device(device);
    if law {
        let rows_n = Tensor::arange(xt_bl.numel() as i64, (Kind::Int64, device));
        return model.log_x0(&xt_bl, &t_b, &rows_n);
    }
    let sigma_b = denoiser.sigma(&t_b).map_err(named)?;
    let hidden_bld = denoiser.hidden(&xt_bl, &sigma_b).map_err(named)?;
    denoiser.logits(&hidden_bld.flatten(0, 1)).map_err(named)
}
