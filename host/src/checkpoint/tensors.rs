//! Named tensors in safetensors files.

use std::collections::BTreeMap;
use std::path::Path;

use memmap2::Mmap;
use safetensors::tensor::{Dtype, SafeTensors};
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

use super::damaged;
use super::sink::Sink;
use crate::error::{Error, Result};

/// Named tensors in order.
pub type Named = Vec<(String, Tensor)>;

fn dtype(kind: Kind) -> Result<Dtype> {
    Ok(match kind {
        Kind::Float => Dtype::F32,
        Kind::Double => Dtype::F64,
        Kind::Int64 => Dtype::I64,
        Kind::Uint8 => Dtype::U8,
        Kind::BFloat16 => Dtype::BF16,
        Kind::Half => Dtype::F16,
        other => {
            return Err(Error::Torch { message: format!("{other:?} tensors are not stored") });
        }
    })
}

fn kind(dtype: Dtype) -> Option<Kind> {
    Some(match dtype {
        Dtype::F32 => Kind::Float,
        Dtype::F64 => Kind::Double,
        Dtype::I64 => Kind::Int64,
        Dtype::U8 => Kind::Uint8,
        Dtype::BF16 => Kind::BFloat16,
        Dtype::F16 => Kind::Half,
        _ => return None,
    })
}

/// The bytes of a tensor on the CPU whose numbers lie one after the other.
#[expect(unsafe_code, reason = "borrows a tensor's numbers instead of copying gigabytes")]
pub(super) fn bytes(tensor: &Tensor) -> &[u8] {
    let length = tensor.numel() * tensor.kind().elt_size_in_bytes();
    if length == 0 {
        return &[];
    }
    // SAFETY: a contiguous tensor on the CPU (`write`) of so many bytes, which lives as long as the borrow and which nobody
    // writes meanwhile.
    unsafe { std::slice::from_raw_parts(tensor.data_ptr().cast::<u8>().cast_const(), length) }
}

/// The header of a safetensors file of these tensors in this order: its length, and JSON padded to eight bytes.
fn header(named: &[(&str, &Tensor)]) -> Result<Vec<u8>> {
    let (mut table, mut end) = (serde_json::Map::new(), 0);
    // Without it, programs in Python take a file for another framework's.
    table.insert("__metadata__".into(), json!({"format": "pt"}));
    for (name, tensor) in named {
        let (start, length) = (end, bytes(tensor).len());
        end += length;
        let entry = json!({
            "dtype": dtype(tensor.kind())?,
            "shape": tensor.size(),
            "data_offsets": [start, end],
        });
        table.insert((*name).to_string(), entry);
    }
    let mut text = Value::Object(table).to_string();
    text += &" ".repeat(text.len().next_multiple_of(8) - text.len());
    Ok([&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat())
}

/// Writes named tensors into a file and flushes it; gives the SHA-256 of its content. Those on the CPU are read from where
/// they are, once.
pub fn write(named: &Named, path: &Path) -> Result<String> {
    let place = |t: &Tensor| t.detach().to_device(Device::Cpu).contiguous();
    let tensors: Vec<Tensor> = named.iter().map(|(_, tensor)| place(tensor)).collect();
    let mut ordered: Vec<(&str, &Tensor)> =
        named.iter().map(|(name, _)| name.as_str()).zip(&tensors).collect();
    // As safetensors orders them, so that every number lies at a multiple of its size.
    ordered.sort_by_key(|(name, t)| (std::cmp::Reverse(t.kind().elt_size_in_bytes()), *name));
    let mut sink = Sink::create(path).map_err(|e| Error::io("write", path, &e))?;
    let header = header(&ordered)?;
    let parts = std::iter::once(&header[..]).chain(ordered.iter().map(|(_, t)| bytes(t)));
    for part in parts {
        sink.write(part).map_err(|e| Error::io("write", path, &e))?;
    }
    sink.finish().map_err(|e| Error::io("write", path, &e))
}

/// The tensors of a safetensors file by name, on the CPU.
pub fn read(path: &Path) -> Result<BTreeMap<String, Tensor>> {
    let bytes = map(path)?;
    let file = SafeTensors::deserialize(&bytes).map_err(|e| damaged(path, &e.to_string()))?;
    let mut tensors = BTreeMap::new();
    for (name, view) in file.tensors() {
        let kind = kind(view.dtype())
            .ok_or_else(|| damaged(path, &format!("`{name}` is {:?}", view.dtype())))?;
        let shape: Vec<i64> = view.shape().iter().map(|n| *n as i64).collect();
        let tensor = Tensor::f_from_data_size(view.data(), &shape, kind)?;
        tensors.insert(name, tensor);
    }
    Ok(tensors)
}

/// A file as memory, without reading it before it is used.
#[expect(unsafe_code, reason = "maps a file")]
pub(super) fn map(path: &Path) -> Result<Mmap> {
    let file = std::fs::File::open(path).map_err(|e| Error::io("read", path, &e))?;
    // SAFETY: a finished file of ours, which is replaced whole and never changed in place.
    unsafe { Mmap::map(&file) }.map_err(|e| Error::io("read", path, &e))
}

/// Copies stored tensors into parameters by name. All differences are listed before anything is changed.
pub fn load_into(
    parameters: &[(String, Tensor)],
    stored: BTreeMap<String, Tensor>,
    from: &Path,
) -> Result<()> {
    copy(matched(parameters, stored, from)?);
    Ok(())
}

/// Copies the second of each pair into the first, without the graph noticing.
pub fn copy(pairs: Vec<(Tensor, Tensor)>) {
    tch::no_grad(|| pairs.into_iter().for_each(|(mut to, from)| to.copy_(&from)));
}

/// Parameters with the stored tensors of their names. All differences are listed.
pub fn matched(
    parameters: &[(String, Tensor)],
    mut stored: BTreeMap<String, Tensor>,
    from: &Path,
) -> Result<Vec<(Tensor, Tensor)>> {
    let mut faults = Vec::new();
    let mut pairs = Vec::new();
    for (name, tensor) in parameters {
        match stored.remove(name) {
            None => faults.push(format!("`{name}` is missing")),
            Some(value) if value.size() != tensor.size() => faults.push(format!(
                "`{name}` is {:?}, the model has {:?}",
                value.size(),
                tensor.size()
            )),
            Some(value) => pairs.push((tensor.shallow_clone(), value)),
        }
    }
    faults.extend(stored.keys().map(|name| format!("`{name}` is not in the model")));
    if !faults.is_empty() {
        let shown = faults.iter().take(12).cloned().collect::<Vec<String>>().join("\n  ");
        let rest = faults.len().saturating_sub(12);
        let more = if rest > 0 { format!("\n  and {rest} more") } else { String::new() };
        return Err(Error::checkpoint(
            format!("`{}` is of another architecture:\n  {shown}{more}", from.display()),
            "choose the backbone and model sizes it was trained with, or leave them to the checkpoint",
        ));
    }
    Ok(pairs)
}
