//! Named tensors in safetensors files, whose numbers are read when somebody asks for them.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;

use maskdiff_base::error::{Error, Result};
use memmap2::Mmap;
use safetensors::SafeTensorError;
use safetensors::tensor::{Dtype, SafeTensors};
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

use super::damaged;
use super::sink::Sink;
use crate::component;

/// Named tensors in order.
pub type Named = Vec<(String, Tensor)>;

fn dtype(name: &str, tensor: &Tensor) -> Result<Dtype> {
    Ok(match tensor.kind() {
        Kind::Float => Dtype::F32,
        Kind::Double => Dtype::F64,
        Kind::Int64 => Dtype::I64,
        Kind::Int => Dtype::I32,
        Kind::Int16 => Dtype::I16,
        Kind::Int8 => Dtype::I8,
        Kind::Uint8 => Dtype::U8,
        Kind::Bool => Dtype::BOOL,
        Kind::BFloat16 => Dtype::BF16,
        Kind::Half => Dtype::F16,
        other => {
            let message = format!("`{name}` holds {other:?} numbers, which no checkpoint stores");
            return Err(Error::plugin(
                message,
                "the network should keep them as real numbers or integers",
            ));
        }
    })
}

fn kind(dtype: Dtype) -> Option<Kind> {
    Some(match dtype {
        Dtype::F32 => Kind::Float,
        Dtype::F64 => Kind::Double,
        Dtype::I64 => Kind::Int64,
        Dtype::I32 => Kind::Int,
        Dtype::I16 => Kind::Int16,
        Dtype::I8 => Kind::Int8,
        Dtype::U8 => Kind::Uint8,
        Dtype::BOOL => Kind::Bool,
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
    // SAFETY: a contiguous tensor on the CPU (`write`) of `length` bytes, which lives as long as the borrow and which nobody
    // writes meanwhile.
    unsafe { std::slice::from_raw_parts(tensor.data_ptr().cast::<u8>().cast_const(), length) }
}

/// The header of a safetensors file of these tensors in this order: its length, and JSON padded to eight bytes.
fn header(named: &[(&str, &Tensor)], words: &[(&str, String)]) -> Result<Vec<u8>> {
    let (mut table, mut end) = (serde_json::Map::new(), 0);
    // Without a format, programs in Python take a file for another framework's.
    let mut metadata = json!({"format": "pt"});
    for (key, text) in words {
        metadata[key] = json!(text);
    }
    table.insert("__metadata__".into(), metadata);
    for (name, tensor) in named {
        let (start, length) = (end, bytes(tensor).len());
        end += length;
        let entry = json!({
            "dtype": dtype(name, tensor)?,
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
    write_with(named, &[], path)
}

/// The same with words in the file's metadata.
pub(super) fn write_with(named: &Named, words: &[(&str, String)], path: &Path) -> Result<String> {
    let place = |t: &Tensor| t.detach().to_device(Device::Cpu).contiguous();
    let tensors: Vec<Tensor> = named.iter().map(|(_, tensor)| place(tensor)).collect();
    let mut ordered: Vec<(&str, &Tensor)> =
        named.iter().map(|(name, _)| name.as_str()).zip(&tensors).collect();
    // As safetensors orders them, so that every number lies at a multiple of its size.
    ordered.sort_by_key(|(name, t)| (std::cmp::Reverse(t.kind().elt_size_in_bytes()), *name));
    let mut sink = Sink::create(path).map_err(|e| Error::io("write", path, &e))?;
    let header = header(&ordered, words)?;
    let parts = std::iter::once(&header[..]).chain(ordered.iter().map(|(_, t)| bytes(t)));
    for part in parts {
        sink.write(part).map_err(|e| Error::io("write", path, &e))?;
    }
    sink.finish().map_err(|e| Error::io("write", path, &e))
}

/// A tensor of a checkpoint: in memory, or still in its file, so that a model takes gigabytes over without a second copy.
#[derive(Debug)]
pub struct Stored {
    shape: Vec<i64>,
    kind: Kind,
    place: Place,
}

#[derive(Debug)]
enum Place {
    Memory(Tensor),
    /// From this byte on.
    File(Arc<File>, u64),
    /// With a matrix added to it.
    Sum(Box<Stored>, Box<Added>),
}

/// A matrix in two factors: `scale b a`, turned round where it is `transposed`.
#[derive(Debug)]
pub(super) struct Added {
    pub(super) a: Tensor,
    pub(super) b: Tensor,
    pub(super) scale: f64,
    pub(super) transposed: bool,
}

impl Added {
    /// The same numbers.
    fn shared(&self) -> Self {
        let (a, b) = (self.a.shallow_clone(), self.b.shallow_clone());
        Self { a, b, scale: self.scale, transposed: self.transposed }
    }

    /// Its shape; an error where the factors do not go together.
    pub(super) fn size(&self) -> Option<[i64; 2]> {
        let (a, b) = (self.a.size(), self.b.size());
        let fits = a.len() == 2 && b.len() == 2 && a[0] == b[1];
        fits.then(|| if self.transposed { [a[1], b[0]] } else { [b[0], a[1]] })
    }

    fn tensor(&self) -> Tensor {
        let product = self.b.to_kind(Kind::Double).matmul(&self.a.to_kind(Kind::Double));
        if self.transposed { product.tr() * self.scale } else { product * self.scale }
    }
}

impl From<Tensor> for Stored {
    fn from(tensor: Tensor) -> Self {
        Self { shape: tensor.size(), kind: tensor.kind(), place: Place::Memory(tensor) }
    }
}

impl Clone for Stored {
    /// Shares the numbers.
    fn clone(&self) -> Self {
        let place = match &self.place {
            Place::Memory(tensor) => Place::Memory(tensor.shallow_clone()),
            Place::File(file, at) => Place::File(Arc::clone(file), *at),
            Place::Sum(base, added) => Place::Sum(base.clone(), Box::new(added.shared())),
        };
        Self { shape: self.shape.clone(), kind: self.kind, place }
    }
}

impl Stored {
    /// Its shape.
    pub fn size(&self) -> &[i64] {
        &self.shape
    }

    /// The type of its numbers, as safetensors names it, where no network computes with it.
    pub(super) fn not_float(&self) -> Option<&'static str> {
        Some(match self.kind {
            Kind::Int64 => "I64",
            Kind::Int => "I32",
            Kind::Int16 => "I16",
            Kind::Int8 => "I8",
            Kind::Uint8 => "U8",
            Kind::Bool => "BOOL",
            _ => return None,
        })
    }

    /// The same with a matrix of its shape added, computed when somebody asks for the numbers.
    pub(super) fn plus(self, added: Added) -> Self {
        let (shape, kind) = (self.shape.clone(), self.kind);
        Self { shape, kind, place: Place::Sum(Box::new(self), Box::new(added)) }
    }

    /// Its first rows.
    pub fn first_rows(mut self, rows: i64) -> Self {
        match &mut self.place {
            Place::Memory(tensor) => *tensor = tensor.narrow(0, 0, rows),
            Place::File(..) => {}
            Place::Sum(base, added) => {
                let (a, b) = (added.a.shallow_clone(), added.b.shallow_clone());
                let Added { scale, transposed, .. } = **added;
                let (a, b) =
                    if transposed { (a.narrow(1, 0, rows), b) } else { (a, b.narrow(0, 0, rows)) };
                **base = base.clone().first_rows(rows);
                **added = Added { a, b, scale, transposed };
            }
        }
        self.shape[0] = rows;
        self
    }

    /// Its numbers, on the CPU; of a sum in float64.
    pub fn tensor(&self) -> Result<Tensor> {
        match &self.place {
            Place::Memory(tensor) => return Ok(tensor.shallow_clone()),
            Place::Sum(base, added) => {
                return Ok(base.tensor()?.to_kind(Kind::Double) + added.tensor());
            }
            Place::File(..) => {}
        }
        let tensor =
            Tensor::f_empty(&self.shape, (self.kind, Device::Cpu)).map_err(component::torch)?;
        self.copy_into(&tensor)?;
        Ok(tensor)
    }

    /// Copies it into a tensor of its shape, of any type and on any device, without the graph noticing.
    pub fn copy_into(&self, to: &Tensor) -> Result<()> {
        let mut to = to.detach();
        match &self.place {
            Place::Memory(tensor) => to.f_copy_(tensor).map_err(component::torch)?,
            Place::File(file, at)
                if to.device() == Device::Cpu && to.kind() == self.kind && to.is_contiguous() =>
            {
                read_exact(file, *at, &mut to)?;
            }
            Place::File(..) | Place::Sum(..) => {
                to.f_copy_(&self.tensor()?).map_err(component::torch)?;
            }
        }
        Ok(())
    }

    /// Copies N of its numbers, from number `first` on, into `to [N]`.
    fn copy_part(&self, first: usize, to: &Tensor) -> Result<()> {
        let numbers = match &self.place {
            Place::File(file, at) => {
                let mut read = Tensor::empty(to.size(), (self.kind, Device::Cpu));
                read_exact(file, at + (first * self.kind.elt_size_in_bytes()) as u64, &mut read)?;
                read
            }
            _ => self.tensor()?.reshape([-1]).narrow(0, first as i64, to.numel() as i64),
        };
        to.detach().f_copy_(&numbers).map_err(component::torch)
    }
}

/// Reads a contiguous tensor of the CPU from byte `at` of a file on.
fn read_exact(file: &File, at: u64, to: &mut Tensor) -> Result<()> {
    file.read_exact_at(bytes_mut(to), at).map_err(|e| {
        Error::checkpoint(
            format!("a tensor could not be read: {e}"),
            "the file may be truncated, or the disk failing",
        )
    })
}

/// As [`bytes`], to be written.
#[expect(unsafe_code, reason = "reads a file into a tensor's own memory")]
fn bytes_mut(tensor: &mut Tensor) -> &mut [u8] {
    let length = tensor.numel() * tensor.kind().elt_size_in_bytes();
    if length == 0 {
        return &mut [];
    }
    // SAFETY: a contiguous tensor on the CPU (`copy_into`) of `length` bytes, which nobody else reads or writes meanwhile.
    unsafe { std::slice::from_raw_parts_mut(tensor.data_ptr().cast::<u8>(), length) }
}

/// What a safetensors file holds.
#[derive(Debug, Default)]
pub(super) struct Contents {
    /// The tensors by name.
    pub(super) tensors: BTreeMap<String, Stored>,
    /// What is said beside them.
    pub(super) words: HashMap<String, String>,
}

/// Why a safetensors file gives no tensors.
#[derive(Debug)]
pub(super) enum Unread {
    /// The system's words.
    System(Error),
    /// It is no whole file of this kind.
    Damaged(String),
    /// A tensor that is wanted has numbers of this type, which is not read.
    Kind { name: String, kind: String },
}

/// The tensors of a safetensors file by name. Its header is checked against its length now, its numbers are read later.
pub fn read(path: &Path) -> Result<BTreeMap<String, Stored>> {
    let file = File::open(path).map_err(|e| Error::io("read", path, &e))?;
    read_open(&Arc::new(file), path)
}

/// The same of a file that is open.
pub(super) fn read_open(file: &Arc<File>, path: &Path) -> Result<BTreeMap<String, Stored>> {
    let contents = of_file(file, path, |_| true).map_err(|why| match why {
        Unread::System(error) => error,
        Unread::Damaged(why) => damaged(path, &why),
        Unread::Kind { name, kind } => damaged(path, &format!("`{name}` is {kind}")),
    })?;
    Ok(contents.tensors)
}

/// As [`read`], without the tensors that are not wanted: these may be of any type.
pub(super) fn open(
    path: &Path,
    wanted: impl Fn(&str) -> bool,
) -> std::result::Result<Contents, Unread> {
    let file = File::open(path).map_err(|e| Unread::System(Error::io("read", path, &e)))?;
    of_file(&Arc::new(file), path, wanted)
}

fn of_file(
    file: &Arc<File>,
    path: &Path,
    wanted: impl Fn(&str) -> bool,
) -> std::result::Result<Contents, Unread> {
    let bytes = map_file(file, path).map_err(Unread::System)?;
    let wrong = |e: SafeTensorError| Unread::Damaged(in_words(&e, bytes.len()));
    let (header, table) = SafeTensors::read_metadata(&bytes).map_err(wrong)?;
    let words = table.metadata().clone().unwrap_or_default();
    let mut contents = Contents { words, ..Contents::default() };
    for (name, info) in table.tensors() {
        if !wanted(&name) {
            continue;
        }
        let Some(kind) = kind(info.dtype) else {
            return Err(Unread::Kind { name, kind: format!("{:?}", info.dtype) });
        };
        let shape = info.shape.iter().map(|n| *n as i64).collect();
        let at = (8 + header + info.data_offsets.0) as u64;
        let place = Place::File(Arc::clone(file), at);
        contents.tensors.insert(name, Stored { shape, kind, place });
    }
    Ok(contents)
}

/// Why a file of this size cannot be read. The library's own message for a truncated file is unclear.
fn in_words(error: &SafeTensorError, bytes: usize) -> String {
    match error {
        SafeTensorError::HeaderTooSmall
        | SafeTensorError::InvalidHeaderLength
        | SafeTensorError::MetadataIncompleteBuffer => {
            format!(
                "it ends after {bytes} bytes, and its header tells of another length: it was cut off"
            )
        }
        other => other.to_string(),
    }
}

/// A file as memory, without reading it before it is used.
pub(super) fn map(path: &Path) -> Result<Mmap> {
    let file = File::open(path).map_err(|e| Error::io("read", path, &e))?;
    map_file(&file, path)
}

#[expect(unsafe_code, reason = "maps a file")]
fn map_file(file: &File, path: &Path) -> Result<Mmap> {
    // SAFETY: a finished file of ours, which is replaced whole and never changed in place.
    unsafe { Mmap::map(file) }.map_err(|e| Error::io("read", path, &e))
}

/// Where a model is used with fewer positions than it was trained with: of each table with a row for every position, the
/// first rows. Gives the name of one that has too few.
pub fn shorten(
    parameters: &[(String, Tensor)],
    stored: &mut BTreeMap<String, Stored>,
    trained: i64,
    length: i64,
) -> Option<String> {
    let mut too_few = None;
    for (name, tensor) in parameters {
        let Some(value) = stored.get(name) else { continue };
        let size = tensor.size();
        let is_table = size.len() == 2 && value.size() == [trained, size[1]] && size[0] == length;
        if is_table && length < trained {
            let first = value.clone().first_rows(length);
            stored.insert(name.clone(), first);
        } else if is_table && length > trained {
            too_few = Some(name.clone());
        }
    }
    too_few
}

/// Copies stored tensors into parameters by name. All differences are listed before anything is changed.
pub fn load_into(
    parameters: &[(String, Tensor)],
    stored: BTreeMap<String, Stored>,
    from: &Path,
) -> Result<()> {
    let whole = |(name, tensor): &(String, Tensor)| (name.clone(), Target::from(tensor));
    copy(matched(parameters.iter().map(whole).collect(), stored, from)?)
}

/// Where a stored tensor goes.
#[derive(Debug)]
pub struct Target {
    /// Its shape.
    pub size: Vec<i64>,
    /// A tensor of that shape; of a part, its numbers `[N]`.
    pub tensor: Tensor,
    /// From which number of the stored tensor on this is a part of it; none of a whole one.
    pub first: Option<usize>,
}

impl From<&Tensor> for Target {
    /// All of it.
    fn from(tensor: &Tensor) -> Self {
        Self { size: tensor.size(), tensor: tensor.shallow_clone(), first: None }
    }
}

/// Copies the second of each pair into the first, without the graph noticing.
pub fn copy(pairs: Vec<(Target, Stored)>) -> Result<()> {
    pairs.into_iter().try_for_each(|(to, from)| match to.first {
        None => from.copy_into(&to.tensor),
        Some(_) if to.tensor.numel() == 0 => Ok(()),
        Some(first) => from.copy_part(first, &to.tensor),
    })
}

/// Parameters with the stored tensors of their names. All differences are listed.
pub fn matched(
    parameters: Vec<(String, Target)>,
    mut stored: BTreeMap<String, Stored>,
    from: &Path,
) -> Result<Vec<(Target, Stored)>> {
    let mut faults = Vec::new();
    let mut pairs = Vec::new();
    for (name, target) in parameters {
        match stored.remove(&name) {
            None => faults.push(format!("`{name}` is missing")),
            Some(value) if value.size() != target.size => faults.push(format!(
                "`{name}` is {:?}, the model has {:?}",
                value.size(),
                target.size
            )),
            Some(value) => pairs.push((target, value)),
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
