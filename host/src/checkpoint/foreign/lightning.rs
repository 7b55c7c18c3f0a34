//! A `.ckpt` of the original program: torch's archive of a pickle and of raw numbers, as PyTorch Lightning fills it.
//!
//! Keys that are read: `state_dict`, `ema` (a list without names, in the order of the network's parameters), `global_step`,
//! the configuration in `hyper_parameters`, and in `maskdiff` what an export of ours says. Everything else (loops, callbacks, the tokenizer's own object) is passed over.

use std::collections::{BTreeMap, HashMap};
use std::io::Cursor;
use std::path::Path;

use memmap2::Mmap;
use serde_json::{Map, Value as Json, json};
use tch::{Kind, Tensor};

use super::super::tensors;
use super::pickle::{Pickle, Ref, Value};
use super::{bare, unusable};
use crate::error::{Error, Result};

/// What a `.ckpt` holds of what we need.
#[derive(Debug)]
pub(super) struct Lightning {
    /// The network's tensors, by the names of the original's backbone.
    pub(super) weights: BTreeMap<String, Tensor>,
    /// The average, where there is one.
    pub(super) ema: Option<BTreeMap<String, Tensor>>,
    /// Updates of the average.
    pub(super) ema_updates: i64,
    /// The optimizer's moments and steps, named as ours.
    pub(super) optimizer: BTreeMap<String, Tensor>,
    /// Steps done.
    pub(super) step: i64,
    /// The configuration as the original has it; null where it cannot be read.
    pub(super) config: Json,
    /// What our own export says: its configuration, and the text of its tokenizer's file.
    pub(super) own: Option<(String, String)>,
}

/// Buffers of the original's network: the average leaves them out.
const BUFFERS: &[&str] = &["rotary_emb.inv_freq"];

/// Groups inside groups of a configuration: deeper ones are none of the original's.
const DEPTH: usize = 8;

/// Behind the name of a type, of a file that is whole.
const NOT_READ: &str = ", and weights of that type are not read";

/// An open archive.
struct Archive {
    bytes: Mmap,
    /// Where the numbers of each storage are.
    storages: HashMap<String, (usize, usize)>,
    pickle: Pickle,
}

/// Reads a `.ckpt`.
pub(super) fn read(path: &Path) -> Result<Lightning> {
    let wrong = |why: String| match why.strip_suffix(NOT_READ) {
        Some(why) => {
            Error::checkpoint(format!("`{}`: {why}{NOT_READ}", path.display()), super::TYPES)
        }
        None => unusable(path, &why),
    };
    let archive = Archive::open(path).map_err(wrong)?;
    let pickle = &archive.pickle;
    let state = pickle.path(&["state_dict"]);
    let state = state.ok_or_else(|| {
        wrong("it has no `state_dict`: it is no checkpoint of the original".into())
    })?;
    let (mut weights, mut order) = (BTreeMap::new(), Vec::new());
    for (name, place) in pickle.pairs(state) {
        // The noise schedule's are numbers of the configuration.
        let Ok(name) = bare(name, "backbone.") else { continue };
        let tensor = archive.tensor(place).map_err(|why| wrong(format!("`{name}`: {why}")))?;
        if weights.insert(name.clone(), tensor).is_some() {
            return Err(wrong(format!("`{name}` is there twice")));
        }
        order.push(name);
    }
    if weights.is_empty() {
        return Err(wrong("its `state_dict` has no tensor of a `backbone`".into()));
    }
    let trained = |name: &&String| !BUFFERS.contains(&name.as_str());
    let averaged: Vec<&String> = order.iter().filter(trained).collect();
    let optimizer =
        archive.optimizer(&averaged).map_err(|why| wrong(format!("its optimizer: {why}")))?;
    let shadow = pickle.path(&["ema", "shadow_params"]);
    let ema = shadow.map(|list| {
        let list = pickle.elements(list);
        if list.len() != averaged.len() {
            let (got, want) = (list.len(), averaged.len());
            return Err(wrong(format!(
                "its average has {got} tensors, and the network {want} parameters"
            )));
        }
        let mut ema = BTreeMap::new();
        for (name, place) in averaged.iter().copied().zip(list) {
            let tensor = archive
                .tensor(*place)
                .map_err(|why| wrong(format!("the average of `{name}`: {why}")))?;
            let (got, want) = (tensor.size(), weights[name].size());
            if got != want {
                return Err(wrong(format!(
                    "the average of `{name}` is {got:?}, the parameter {want:?}"
                )));
            }
            ema.insert(name.clone(), tensor);
        }
        Ok(ema)
    });
    let number = |keys: &[&str]| pickle.path(keys).and_then(|place| pickle.int(place)).unwrap_or(0);
    let config = pickle.path(&["hyper_parameters", "config"]);
    let text = |keys: &[&str]| match pickle.get(pickle.path(keys)?) {
        Value::Text(text) => Some(text.clone()),
        _ => None,
    };
    Ok(Lightning {
        ema: ema.transpose()?,
        ema_updates: number(&["ema", "num_updates"]),
        step: number(&["global_step"]),
        optimizer,
        config: config.map_or(Json::Null, |place| archive.config(place, DEPTH)),
        own: text(&["maskdiff", "config"]).zip(text(&["maskdiff", "tokenizer"])),
        weights,
    })
}

impl Archive {
    fn open(path: &Path) -> std::result::Result<Self, String> {
        let bytes = tensors::map(path).map_err(|e| e.to_string())?;
        let no_archive = |e: zip::result::ZipError| format!("it is no whole archive of torch: {e}");
        let mut archive = zip::ZipArchive::new(Cursor::new(&bytes[..])).map_err(no_archive)?;
        let (mut storages, mut program) = (HashMap::new(), None);
        for index in 0..archive.len() {
            let entry = archive.by_index_raw(index).map_err(no_archive)?;
            let (start, size) = (entry.data_start() as usize, entry.size() as usize);
            let inside = start.checked_add(size).is_some_and(|end| end <= bytes.len());
            if entry.compression() != zip::CompressionMethod::Stored || !inside {
                return Err(format!("`{}` in it is compressed or cut off", entry.name()));
            }
            // ROOT/data.pkl, ROOT/byteorder, ROOT/data/KEY.
            match entry.name().split_once('/') {
                Some((_, "data.pkl")) => program = Some((start, size)),
                Some((_, "byteorder")) if &bytes[start..start + size] != b"little" => {
                    return Err("its numbers are big-endian".into());
                }
                Some((_, rest)) => {
                    if let Some(key) = rest.strip_prefix("data/") {
                        storages.insert(key.to_string(), (start, size));
                    }
                }
                None => {}
            }
        }
        let (start, size) = program.ok_or("it holds no `data.pkl`: it is no file of torch.save")?;
        drop(archive);
        let pickle = Pickle::read(&bytes[start..start + size], bytes.len())?;
        Ok(Self { bytes, storages, pickle })
    }

    /// The numbers of a storage as they are kept outside: bytes and kind.
    fn storage(&self, place: Ref) -> std::result::Result<(&[u8], Kind), String> {
        let Value::Outside(name) = self.pickle.get(place) else {
            return Err("its numbers are nowhere".into());
        };
        let [_, class, key, ..] = self.pickle.elements(*name) else {
            return Err("its storage has no name".into());
        };
        let (Value::Class(class), Value::Text(key)) =
            (self.pickle.get(*class), self.pickle.get(*key))
        else {
            return Err("its storage has no name".into());
        };
        let kind = match class.as_str() {
            "torch.FloatStorage" => Kind::Float,
            "torch.DoubleStorage" => Kind::Double,
            "torch.HalfStorage" => Kind::Half,
            "torch.BFloat16Storage" => Kind::BFloat16,
            "torch.LongStorage" => Kind::Int64,
            "torch.IntStorage" => Kind::Int,
            "torch.ShortStorage" => Kind::Int16,
            "torch.CharStorage" => Kind::Int8,
            "torch.ByteStorage" => Kind::Uint8,
            "torch.BoolStorage" => Kind::Bool,
            other => return Err(format!("it holds `{other}`{NOT_READ}")),
        };
        let (start, size) =
            self.storages.get(key).ok_or_else(|| format!("storage {key} is missing"))?;
        Ok((&self.bytes[*start..start + size], kind))
    }

    fn tensor(&self, place: Ref) -> std::result::Result<Tensor, String> {
        let Value::Object { class, args, .. } = self.pickle.get(place) else {
            return Err("it is no tensor".into());
        };
        let args = self.pickle.elements(*args);
        match (self.pickle.get(*class), args) {
            (Value::Class(name), [inner, ..]) if name == "torch._utils._rebuild_parameter" => {
                self.tensor_v2(*inner)
            }
            _ => self.tensor_v2(place),
        }
    }

    fn tensor_v2(&self, place: Ref) -> std::result::Result<Tensor, String> {
        let known = self.pickle.class(place) == Some("torch._utils._rebuild_tensor_v2");
        // Types that torch has no storage of are written another way.
        if let (Some("torch._utils._rebuild_tensor_v3"), Value::Object { args, .. }) =
            (self.pickle.class(place), self.pickle.get(place))
            && let [_, _, _, _, _, _, kind, ..] = self.pickle.elements(*args)
            && let Value::Class(kind) = self.pickle.get(*kind)
        {
            return Err(format!("it holds `{kind}`{NOT_READ}"));
        }
        let args = match self.pickle.get(place) {
            Value::Object { args, .. } if known => self.pickle.elements(*args),
            _ => return Err("it is no tensor".into()),
        };
        let [storage, offset, size, stride, ..] = args else {
            return Err("it is malformed".into());
        };
        let (bytes, kind) = self.storage(*storage)?;
        let numbers = |place: Ref| -> Option<Vec<i64>> {
            let all = self.pickle.elements(place).iter();
            all.map(|n| self.pickle.int(*n).filter(|n| *n >= 0)).collect()
        };
        let (Some(offset), Some(size), Some(stride)) =
            (self.pickle.int(*offset), numbers(*size), numbers(*stride))
        else {
            return Err("its shape is malformed".into());
        };
        let element = kind.elt_size_in_bytes();
        let length = (bytes.len() / element) as i64;
        // The last number that it reaches.
        let reach = size.iter().zip(&stride).try_fold(offset, |reach, (n, step)| {
            (n - 1).max(0).checked_mul(*step).and_then(|more| reach.checked_add(more))
        });
        let empty = size.contains(&0);
        let count = size.iter().try_fold(1i64, |all, n| all.checked_mul(*n));
        let fits = size.len() == stride.len()
            && offset >= 0
            && (empty || reach.is_some_and(|reach| reach < length))
            && count.is_some_and(|count| count <= length);
        if !fits {
            return Err(format!("its storage of {length} numbers is too short for shape {size:?}"));
        }
        let said = |e: tch::TchError| e.to_string();
        let from = (offset as usize).min(length as usize) * element;
        let end = reach.filter(|_| !empty).map_or(from, |reach| (reach as usize + 1) * element);
        let flat =
            Tensor::f_from_data_size(&bytes[from..end], &[((end - from) / element) as i64], kind);
        let flat = flat.map_err(said)?;
        if empty {
            return flat.f_reshape(&size).map_err(said);
        }
        flat.f_as_strided(&size, &stride, 0).and_then(|t| t.f_contiguous()).map_err(said)
    }

    /// The state of AdamW, whose parameters have numbers in their order; empty where there is none.
    fn optimizer(
        &self,
        names: &[&String],
    ) -> std::result::Result<BTreeMap<String, Tensor>, String> {
        let mut all = BTreeMap::new();
        let first = self.pickle.path(&["optimizer_states"]).map(|list| self.pickle.elements(list));
        let first = first.and_then(|list| list.first().copied());
        let Some(state) = first.and_then(|first| self.pickle.item(first, "state")) else {
            return Ok(all);
        };
        for (number, name) in names.iter().enumerate() {
            let Some(of) = self.pickle.numbered(state, number as i64) else { continue };
            for part in ["step", "exp_avg", "exp_avg_sq"] {
                let place = self.pickle.item(of, part);
                let place = place.ok_or_else(|| format!("`{name}` has no `{part}`"))?;
                let tensor =
                    self.tensor(place).map_err(|why| format!("`{part}` of `{name}`: {why}"))?;
                all.insert(format!("{part}/{name}"), tensor);
            }
        }
        Ok(all)
    }

    /// A configuration of OmegaConf, whose nodes keep their content in their state, as plain values.
    fn config(&self, place: Ref, depth: usize) -> Json {
        if depth == 0 {
            return Json::Null;
        }
        match self.pickle.get(place) {
            Value::Bool(yes) => json!(yes),
            Value::Int(n) => json!(n),
            Value::Float(n) => json!(n),
            Value::Text(text) => json!(text),
            Value::Dict(_) => {
                let pairs = self.pickle.pairs(place).into_iter();
                Json::Object(
                    pairs
                        .map(|(key, value)| (key.to_string(), self.config(value, depth - 1)))
                        .collect::<Map<_, _>>(),
                )
            }
            Value::List(_) | Value::Tuple(_) => {
                let elements = self.pickle.elements(place).iter();
                Json::Array(elements.map(|e| self.config(*e, depth - 1)).collect())
            }
            Value::Object { .. } => {
                let content =
                    self.pickle.item(place, "_content").or_else(|| self.pickle.item(place, "_val"));
                content.map_or(Json::Null, |content| self.config(content, depth))
            }
            _ => Json::Null,
        }
    }
}
