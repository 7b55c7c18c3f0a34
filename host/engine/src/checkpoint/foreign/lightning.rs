//! A `.ckpt` of the original program: torch's archive of a pickle and of raw numbers, as PyTorch Lightning fills it.
//!
//! Keys that are read: `state_dict`, `ema` (a list without names, in the order of the network's parameters), `global_step`,
//! the configuration in `hyper_parameters`, and in `maskdiff` what an export of ours says. Everything else (loops, callbacks, the tokenizer's own object) is passed over.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::Cursor;
use std::path::Path;

use maskdiff_base::error::{Error, Result};
use memmap2::Mmap;
use serde_json::{Map, Value as Json, json};
use tch::{Kind, Tensor};

use super::super::tensors;
use super::pickle::{Pickle, Ref, Value};
use super::{bare, unusable};

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
    /// Samples read, which our own export says.
    pub(super) samples: Option<i64>,
    /// The configuration as the original has it; null where it cannot be read.
    pub(super) config: Json,
    /// What our own export says: its configuration, and the text of its tokenizer's file.
    pub(super) own: Option<(String, String)>,
}

/// Buffers of the original's network: the average leaves them out.
const BUFFERS: &[&str] = &["rotary_emb.inv_freq"];

/// Numbers among the tensors of block diffusion: the bounds of the masked share in training, as the search leaves them.
const BOUNDS: &[&str] = &["sampling_eps_min", "sampling_eps_max"];

/// Groups inside groups of a configuration, each of which is an object and what it holds: deeper ones are none of the
/// original's.
const DEPTH: usize = 24;

/// What the optimizer keeps of a parameter: three values, and a few of other programs'.
const KEPT: usize = 64;

/// Behind the name of a type, of a file that is whole.
const NOT_READ: &str = ", and weights of that type are not read";

/// An open archive.
struct Archive {
    bytes: Mmap,
    /// Where the numbers of each storage are.
    storages: HashMap<String, (usize, usize)>,
    pickle: Pickle,
    /// Storages that were read, which tensors share.
    read: RefCell<HashMap<(String, Kind), Tensor>>,
    /// Bytes that tensors may still take: what is shared costs once, so no file needs more than its own size twice.
    left: Cell<usize>,
}

/// Why a file is refused that would unfold to more than it holds.
const UNFOLDS: &str = "it would take far more memory than its file";

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
    let mut places: HashSet<Place<'_>> = HashSet::new();
    let mut bounds = Vec::new();
    for (name, place) in pickle.pairs(state) {
        let Ok(name) = bare(name, "backbone.") else {
            // Those of the noise schedule are numbers of the configuration, but for bounds that a search has found.
            if BOUNDS.contains(&name) {
                let bound =
                    archive.tensor(place).map_err(|why| wrong(format!("`{name}`: {why}")))?;
                bounds.push((name, bound));
            }
            continue;
        };
        let tensor = archive.tensor(place).map_err(|why| wrong(format!("`{name}`: {why}")))?;
        // Parts that share a parameter list it under the name of each; ours knows the first one.
        if archive.place(place).is_some_and(|place| !places.insert(place)) {
            continue;
        }
        if weights.insert(name.clone(), tensor).is_some() {
            return Err(wrong(format!("`{name}` is there twice")));
        }
        order.push(name);
    }
    if weights.is_empty() {
        return Err(wrong("its `state_dict` has no tensor of a `backbone`".into()));
    }
    let shadow = pickle.path(&["ema", "shadow_params"]);
    let trained = |name: &&String| !BUFFERS.contains(&name.as_str());
    let mut averaged: Vec<&String> = order.iter().filter(trained).collect();
    if let Some(count) = shadow.map(|list| pickle.elements(list).len()) {
        copies_out(&mut averaged, &weights, count);
    }
    let optimizer =
        archive.optimizer(&averaged).map_err(|why| wrong(format!("its optimizer: {why}")))?;
    let ema = shadow.map(|list| {
        let places = pickle.elements(list);
        archive.average(&averaged, places, &weights).map_err(wrong)
    });
    let number = |keys: &[&str]| pickle.path(keys).and_then(|place| pickle.int(place)).unwrap_or(0);
    let mut left = archive.bytes.len();
    let config = pickle.path(&["hyper_parameters", "config"]);
    let config = config.map(|place| archive.config(place, DEPTH, &mut left)).transpose();
    let config = config.map_err(|why| wrong(format!("its configuration: {why}")))?;
    let config = config.map(|config| with_bounds(config, &bounds)).unwrap_or_default();
    let text = |keys: &[&str]| match pickle.get(pickle.path(keys)?) {
        Value::Text(text) => Some(text.clone()),
        _ => None,
    };
    Ok(Lightning {
        ema: ema.transpose()?,
        ema_updates: number(&["ema", "num_updates"]),
        step: number(&["global_step"]),
        samples: pickle.path(&["maskdiff", "samples"]).and_then(|place| pickle.int(place)),
        optimizer,
        config,
        own: text(&["maskdiff", "config"]).zip(text(&["maskdiff", "tokenizer"])),
        weights,
    })
}

/// The configuration with bounds that its file keeps beside the network, which are later than the configured ones.
fn with_bounds(mut config: Json, bounds: &[(&str, Tensor)]) -> Json {
    for (name, bound) in bounds.iter().filter(|(_, bound)| bound.numel() == 1) {
        // The shortest number that has this float32: 0.3, not 0.30000001192092896.
        let shortest = (bound.double_value(&[]) as f32).to_string().parse::<f64>();
        if let (Ok(number), true) = (shortest, config["training"].is_object()) {
            config["training"][*name] = json!(number);
        }
    }
    config
}

impl Archive {
    /// The averaged weights: a tensor for each of `names`, of the shape of its weight.
    fn average(
        &self,
        names: &[&String],
        places: &[Ref],
        weights: &BTreeMap<String, Tensor>,
    ) -> std::result::Result<BTreeMap<String, Tensor>, String> {
        if places.len() != names.len() {
            let (got, want) = (places.len(), names.len());
            return Err(format!(
                "its average has {got} tensors, and the network {want} parameters"
            ));
        }
        let mut average = BTreeMap::new();
        for (name, place) in names.iter().copied().zip(places) {
            let tensor =
                self.tensor(*place).map_err(|why| format!("the average of `{name}`: {why}"))?;
            let (got, want) = (tensor.size(), weights[name].size());
            if got != want {
                return Err(format!("the average of `{name}` is {got:?}, the parameter {want:?}"));
            }
            average.insert(name.clone(), tensor);
        }
        Ok(average)
    }
}

/// Where the numbers of a tensor are: its storage, offset, shape and strides.
type Place<'a> = (&'a str, i64, Vec<i64>, Vec<i64>);

/// Where the names of shared parameters were stored as copies, the list of averages is shorter than that of names: leaves out
/// those that hold the numbers of an earlier one, whose name differs in one word.
fn copies_out(names: &mut Vec<&String>, weights: &BTreeMap<String, Tensor>, count: usize) {
    let is_twin = |a: &str, b: &str| {
        let (a, b): (Vec<&str>, Vec<&str>) = (a.split('.').collect(), b.split('.').collect());
        let mut differ = a.iter().zip(&b).filter(|(a, b)| a != b);
        let one = differ.next().filter(|_| differ.next().is_none());
        a.len() == b.len() && one.is_some_and(|(word, _)| word.parse::<u32>().is_err())
    };
    let mut at = names.len();
    while names.len() > count && at > 1 {
        at -= 1;
        let (name, earlier) = (names[at], &names[..at]);
        let copied = |other: &&String| {
            is_twin(name, other) && weights[other.as_str()] == weights[name.as_str()]
        };
        if earlier.iter().any(copied) && weights[name].size().len() > 1 {
            names.remove(at);
        }
    }
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
        let left = Cell::new(2 * bytes.len());
        Ok(Self { bytes, storages, pickle, read: RefCell::default(), left })
    }

    fn charge(&self, bytes: usize) -> std::result::Result<(), String> {
        self.left.set(self.left.get().checked_sub(bytes).ok_or(UNFOLDS)?);
        Ok(())
    }

    /// The numbers of a storage as they are kept outside, read once for all tensors over it.
    fn storage(&self, place: Ref) -> std::result::Result<Tensor, String> {
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
        if let Some(read) = self.read.borrow().get(&(key.clone(), kind)) {
            return Ok(read.shallow_clone());
        }
        self.charge(*size)?;
        let count = size / kind.elt_size_in_bytes();
        let whole = &self.bytes[*start..start + count * kind.elt_size_in_bytes()];
        let read =
            Tensor::f_from_data_size(whole, &[count as i64], kind).map_err(|e| e.to_string())?;
        self.read.borrow_mut().insert((key.clone(), kind), read.shallow_clone());
        Ok(read)
    }

    /// Where a tensor's numbers are; none for one without numbers, and for what is no tensor.
    fn place(&self, place: Ref) -> Option<Place<'_>> {
        let Value::Object { args, .. } = self.pickle.get(place) else { return None };
        let args = self.pickle.elements(*args);
        if self.pickle.class(place) == Some("torch._utils._rebuild_parameter") {
            return self.place(*args.first()?);
        }
        let [storage, offset, size, stride, ..] = args else { return None };
        let Value::Outside(name) = self.pickle.get(*storage) else { return None };
        let [_, _, key, ..] = self.pickle.elements(*name) else { return None };
        let Value::Text(key) = self.pickle.get(*key) else { return None };
        let numbers = |place: Ref| -> Option<Vec<i64>> {
            self.pickle.elements(place).iter().map(|n| self.pickle.int(*n)).collect()
        };
        let size = numbers(*size).filter(|size| !size.contains(&0))?;
        Some((key, self.pickle.int(*offset)?, size, numbers(*stride)?))
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
        let storage = self.storage(*storage)?;
        let numbers = |place: Ref| -> Option<Vec<i64>> {
            let all = self.pickle.elements(place).iter();
            all.map(|n| self.pickle.int(*n).filter(|n| *n >= 0)).collect()
        };
        let (Some(offset), Some(size), Some(stride)) =
            (self.pickle.int(*offset), numbers(*size), numbers(*stride))
        else {
            return Err("its shape is malformed".into());
        };
        let length = storage.size()[0];
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
        if empty {
            return storage.f_narrow(0, 0, 0).and_then(|t| t.f_reshape(&size)).map_err(said);
        }
        let view = storage.f_as_strided(&size, &stride, offset).map_err(said)?;
        if !view.is_contiguous() {
            self.charge(view.numel() * view.kind().elt_size_in_bytes())?;
        }
        view.f_contiguous().map_err(said)
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
        let numbered = self.pickle.numbered(state);
        for (number, name) in names.iter().enumerate() {
            let Some(of) = numbered.get(&(number as i64)).copied() else { continue };
            if matches!(self.pickle.get(of), Value::Dict(pairs) if pairs.len() > KEPT) {
                return Err(format!("`{name}` has far more than its moments"));
            }
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

    /// A configuration of OmegaConf, whose nodes keep their content in their state, as plain values. What is shared is written
    /// out where it stands, so it may cost as many bytes as are `left` at most.
    fn config(
        &self,
        place: Ref,
        depth: usize,
        left: &mut usize,
    ) -> std::result::Result<Json, String> {
        if depth == 0 {
            return Ok(Json::Null);
        }
        let mut charge = |bytes: usize| {
            *left = left.checked_sub(bytes + 1).ok_or(UNFOLDS)?;
            Ok::<(), String>(())
        };
        charge(0)?;
        Ok(match self.pickle.get(place) {
            Value::Bool(yes) => json!(yes),
            Value::Int(n) => json!(n),
            Value::Float(n) => json!(n),
            Value::Text(text) => {
                charge(text.len())?;
                json!(text)
            }
            Value::Dict(_) => {
                let mut all = Map::new();
                for (key, value) in self.pickle.pairs(place) {
                    *left = left.checked_sub(key.len()).ok_or(UNFOLDS)?;
                    all.insert(key.to_string(), self.config(value, depth - 1, left)?);
                }
                Json::Object(all)
            }
            Value::List(_) | Value::Tuple(_) => {
                let elements = self.pickle.elements(place).iter();
                let elements = elements.map(|e| self.config(*e, depth - 1, left));
                Json::Array(elements.collect::<std::result::Result<_, _>>()?)
            }
            Value::Object { args, .. } => {
                let content =
                    self.pickle.item(place, "_content").or_else(|| self.pickle.item(place, "_val"));
                // A node is stored as its state, or as the call that makes it of plain values.
                match content.or_else(|| self.pickle.elements(*args).first().copied()) {
                    Some(content) => self.config(content, depth - 1, left)?,
                    None => Json::Null,
                }
            }
            _ => Json::Null,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_among_the_tensors_are_later_than_the_configuration() {
        let config = json!({ "training": { "sampling_eps_min": 1e-3, "ema": 0.9 } });
        let bounds = [
            ("sampling_eps_min", Tensor::from(0.3f32)),
            ("sampling_eps_max", Tensor::from(0.8f32)),
        ];
        let training = &with_bounds(config, &bounds)["training"];
        assert_eq!(
            *training,
            json!({ "sampling_eps_min": 0.3, "sampling_eps_max": 0.8, "ema": 0.9 })
        );
        assert_eq!(with_bounds(Json::Null, &bounds), Json::Null);
    }
}
