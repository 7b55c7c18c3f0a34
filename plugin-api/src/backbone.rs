//! Backbones: the network x_θ, with its parameters under stable names.

use std::cell::Cell;
use std::rc::Rc;

use tch::{Device, Kind, Tensor};

use crate::adapt::{Adaptation, LinearMaps, Slot};
use crate::component::Component;
use crate::error::{Kind as ErrorKind, PluginError};
use crate::{Context, Pass, Passed, Result, bail, ensure};

/// A parameter or buffer with its name in checkpoints.
#[derive(Debug)]
pub struct Parameter {
    /// As in `blocks.0.norm1.weight`.
    pub name: String,
    /// The tensor; shares its memory with the network.
    pub tensor: Tensor,
    /// A buffer (rotary frequencies) is saved but not trained.
    pub trainable: bool,
}

/// The named store a backbone builds its parameters in. The order is the order of the checkpoint's EMA list.
#[derive(Debug)]
pub struct Parameters {
    entries: Vec<Parameter>,
    kind: Kind,
    device: Device,
    fresh: bool,
    maps: Vec<Map>,
    /// Whether the network is training, for its slots.
    train: Rc<Cell<bool>>,
    /// Whether stages are computed again in the backward pass.
    again: bool,
    /// Calls of stages so far.
    staged: Cell<u64>,
}

/// A linear map among the parameters.
#[derive(Debug)]
struct Map {
    name: String,
    transposed: bool,
    slot: Option<Slot>,
}

/// The type in which constants and angles are computed beside weights of `kind`.
pub(crate) fn wide(kind: Kind) -> Kind {
    if matches!(kind, Kind::BFloat16 | Kind::Half) { Kind::Float } else { kind }
}

impl Parameters {
    /// An empty store for parameters of the context's kind, on its device.
    pub fn new(context: &Context) -> Self {
        Self {
            entries: Vec::new(),
            kind: context.kind,
            device: context.device(),
            fresh: context.fresh,
            maps: Vec::new(),
            train: Rc::default(),
            again: context.activation_checkpointing,
            staged: Cell::new(0),
        }
    }

    /// The place of an adapter beside the linear map of that matrix, which is `[in, out]` where it is `transposed`.
    pub fn slot(&mut self, name: &str, transposed: bool) -> Slot {
        let slot = Slot::new(&self.train);
        self.maps.retain(|map| map.name != name);
        self.maps.push(Map { name: name.to_string(), transposed, slot: Some(slot.clone()) });
        slot
    }

    /// The linear maps: matrices that [`Parameters::linear`] made, and those that have a slot.
    pub fn linear_maps(&self) -> LinearMaps {
        let which = |wanted: &dyn Fn(&Map) -> bool| -> Vec<String> {
            self.maps.iter().filter(|map| wanted(map)).map(|map| map.name.clone()).collect()
        };
        LinearMaps {
            names: which(&|_| true),
            transposed: which(&|map| map.transposed),
            adapting: which(&|map| map.slot.is_some()),
        }
    }

    /// Fills the slot of a linear map.
    pub fn adapt(&self, adaptation: &Adaptation) -> Result<()> {
        let Adaptation { name, a, b, .. } = adaptation;
        let slot = self.maps.iter().find(|map| map.name == *name);
        let (Some(map), Some(entry)) = (slot, self.entries.iter().find(|e| e.name == *name)) else {
            bail!(Unsupported, "there is no linear map `{name}`")
        };
        let Some(slot) = &map.slot else {
            bail!(Unsupported, "the linear map `{name}` takes no adapter")
        };
        let size = entry.tensor.size();
        let (out, inputs) = if map.transposed { (size[1], size[0]) } else { (size[0], size[1]) };
        let (rank, fits) =
            (a.size().first().copied().unwrap_or(0), |t: &Tensor, size: [i64; 2]| t.size() == size);
        ensure!(
            fits(a, [rank, inputs]) && fits(b, [out, rank]),
            Shape,
            "an adapter of {:?} and {:?} does not fit `{name}`, which is {size:?}",
            a.size(),
            b.size()
        );
        let own = Adaptation::new(name, a, b, adaptation.scale).dropping(adaptation.dropout);
        slot.fill(own);
        Ok(())
    }

    /// Tells the slots whether the network is training: before each call that the host makes.
    pub(crate) fn set_train(&self, train: bool) {
        self.train.set(train);
    }

    /// A part of the network, `block` of these inputs, as the stage of that number. A network that calls it for each of its blocks
    /// offers [`crate::capability::STAGES`].
    ///
    /// By default it is the call itself. With [`Context::activation_checkpointing`], where gradients are recorded, the inputs
    /// alone are kept for the backward pass, in which the block runs again under the same random numbers (Chen et al. 2016,
    /// arXiv:1604.06174). Numbers and gradients stay the same bit for bit. The host learns where the stage begins and ends, and may hold
    /// the parameters that it reads only meanwhile: they are read nowhere else, or by another stage too.
    ///
    /// `block` owns what it reads, since it outlives the call, and gives the same for the same inputs. A tensor that depends on trained
    /// parameters (the conditioning on a noise level) is one of the inputs, or else this panics; parameters and adapters themselves
    /// are found.
    #[track_caller]
    pub fn stage<const N: usize>(
        &self,
        index: usize,
        inputs: &[&Tensor],
        block: impl Fn(&[Tensor]) -> [Tensor; N] + 'static,
    ) -> [Tensor; N] {
        self.staged.set(self.staged.get() + 1);
        let plain = || {
            let inputs: Vec<Tensor> = inputs.iter().map(|input| input.shallow_clone()).collect();
            block(&inputs)
        };
        if !self.again {
            return plain();
        }
        if !maskdiff_native::gradients_on() {
            return maskdiff_native::announced(index, plain)
                .unwrap_or_else(|error| panic!("stage {index}: {error}"));
        }
        // The second run is of a network that trains or not as in the first.
        let (train, then) = (Rc::clone(&self.train), self.train.get());
        let body = move |inputs: &[Tensor]| {
            let now = train.replace(then);
            let made = block(inputs);
            train.set(now);
            Vec::from(made)
        };
        let made = maskdiff_native::recomputed(index, inputs, body)
            .unwrap_or_else(|error| panic!("stage {index}: {error}"));
        made.try_into().unwrap_or_else(|_| panic!("stage {index} returned other than {N} tensors"))
    }

    /// How often [`Parameters::stage`] was called.
    pub fn staged(&self) -> u64 {
        self.staged.get()
    }

    /// Memory for a parameter that a checkpoint fills at once.
    #[track_caller]
    fn empty(&mut self, name: &str, shape: &[i64]) -> Tensor {
        let options = (self.kind, self.device);
        self.push(name, Tensor::empty(shape, options), self.kind, true)
    }

    #[track_caller]
    fn push(&mut self, name: &str, value: Tensor, kind: Kind, trainable: bool) -> Tensor {
        if self.entries.iter().any(|entry| entry.name == name) {
            // It returns no `Result`: the boundary makes an error of it.
            std::panic::panic_any(PluginError::new(
                ErrorKind::Panic,
                format!("two parameters are called `{name}`"),
            ));
        }
        let tensor = value.to_device(self.device).to_kind(kind).detach();
        let tensor = tensor.set_requires_grad(trainable);
        let handle = tensor.shallow_clone();
        self.entries.push(Parameter { name: name.to_string(), tensor, trainable });
        handle
    }

    /// Adds a trained parameter with its initial value. A second one of a name is refused, here and below.
    #[track_caller]
    pub fn add(&mut self, name: &str, value: Tensor) -> Tensor {
        self.push(name, value, self.kind, true)
    }

    /// Adds a buffer: saved, loaded, never trained; in float32 also where the parameters have 16 bits, which are too few
    /// for a constant such as a frequency.
    #[track_caller]
    pub fn buffer(&mut self, name: &str, value: Tensor) -> Tensor {
        self.push(name, value, wide(self.kind), false)
    }

    /// Another name of a tensor that was added: a part that uses the parameter of another one. Other programs list it under
    /// both names. A checkpoint of ours holds it once, under its first name.
    #[track_caller]
    pub fn shared(&mut self, name: &str, of: &Tensor) {
        let kind = of.kind();
        let own = self.push(name, Tensor::zeros([0], (kind, Device::Cpu)), kind, false);
        drop(own);
        if let Some(entry) = self.entries.last_mut() {
            entry.tensor = of.shallow_clone();
        }
    }

    /// A tensor that something else has made and computes with: it stays the very tensor, whatever its kind and device.
    #[track_caller]
    pub fn given(&mut self, name: &str, tensor: &Tensor, trainable: bool) {
        self.shared(name, tensor);
        if let Some(entry) = self.entries.last_mut() {
            entry.trainable = trainable;
        }
    }

    /// Says that the matrix `[out, in]` of that name is a linear map, which can be adapted from outside.
    pub fn maps(&mut self, name: &str) {
        self.maps.push(Map { name: name.to_string(), transposed: false, slot: None });
    }

    /// The type of the parameters.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Where they live.
    pub fn device(&self) -> Device {
        self.device
    }

    /// A matrix `[out, in]` drawn as torch's `nn.Linear` does: uniform in ±1/√in.
    #[track_caller]
    pub fn linear(&mut self, name: &str, outputs: i64, inputs: i64) -> Tensor {
        self.maps.push(Map { name: name.to_string(), transposed: false, slot: None });
        if !self.fresh {
            return self.empty(name, &[outputs, inputs]);
        }
        let bound = 1.0 / (inputs as f64).sqrt();
        self.add(name, uniform(&[outputs, inputs], bound))
    }

    /// A tensor drawn from a normal law of mean zero and this deviation.
    #[track_caller]
    pub fn normal(&mut self, name: &str, shape: &[i64], std: f64) -> Tensor {
        if !self.fresh {
            return self.empty(name, shape);
        }
        self.add(name, Tensor::randn(shape, (Kind::Float, Device::Cpu)) * std)
    }

    /// The bias `[out]` that goes with [`Parameters::linear`].
    #[track_caller]
    pub fn bias(&mut self, name: &str, outputs: i64, inputs: i64) -> Tensor {
        self.add(name, uniform(&[outputs], 1.0 / (inputs as f64).sqrt()))
    }

    /// A constant parameter.
    #[track_caller]
    pub fn constant(&mut self, name: &str, shape: &[i64], value: f64) -> Tensor {
        self.add(name, Tensor::full(shape, value, (Kind::Float, Device::Cpu)))
    }

    /// What has been added, in order.
    pub fn entries(&self) -> &[Parameter] {
        &self.entries
    }
}

fn uniform(shape: &[i64], bound: f64) -> Tensor {
    Tensor::empty(shape, (Kind::Float, Device::Cpu)).uniform_(-bound, bound)
}

/// A linear head: `logits = hidden weightᵀ + bias`. Knowing it lets the host fuse it with the loss.
#[derive(Debug)]
pub struct Head {
    /// `[V, D]`.
    pub weight: Tensor,
    /// `[V]`, if there is one.
    pub bias: Option<Tensor>,
}

/// A network over token ids. Shape letters: `B` batch, `L` length, `D` hidden size, `V` vocabulary, `N` rows.
///
/// The head is apart from the trunk, so that a caller pays for the vocabulary only at the rows it needs.
/// Options are the keys of the `model` group.
pub trait Backbone: Component {
    /// The store in which the network built its parameters.
    fn parameters(&self) -> &Parameters;

    /// The state that enters the head: `xt_bl [B, L] i64`, `sigma_b [B] f64` (zeros without time
    /// conditioning) → `[B, L, D]`. `train` turns dropout on.
    fn hidden(&self, xt_bl: &Tensor, sigma_b: &Tensor, train: bool) -> Result<Tensor>;

    /// The head: `[N, D]` → raw logits `[N, V]`.
    fn logits(&self, hidden_nd: &Tensor) -> Result<Tensor>;

    /// The head's matrix, when the head is linear.
    fn head(&self) -> Option<Head> {
        None
    }

    /// The state of tokens that follow earlier ones: `x_bl [B, L] i64` → `[B, L, D]` and the longer cache.
    ///
    /// An empty cache is the start of a text. What a cache holds is the backbone's own affair; the result equals
    /// [`Backbone::hidden`] of the whole text at the new positions. For causal networks only.
    fn extend(&self, _x_bl: &Tensor, _cache: Vec<Tensor>) -> Result<(Tensor, Vec<Tensor>)> {
        bail!(Unsupported, "backbone `{}` keeps no cache", Self::NAME)
    }

    /// One call of the network in full, see [`Pass`]. `train` turns dropout on.
    ///
    /// By default a pass in which only tokens and a noise level are set is [`Backbone::hidden`], and anything else is refused by
    /// name. A network that reads more offers the words for it ([`crate::capability::MIXTURE`], `POSITIONS`, `TOKEN_SIGMA`,
    /// `LABEL`, `PAST`), and refuses the rest by [`Pass::only`].
    fn pass(&self, pass: &Pass, train: bool) -> Result<Passed> {
        let reads: Vec<&str> = Self::PROVIDES
            .iter()
            .copied()
            .filter(|word| *word == crate::capability::CAUSAL)
            .collect();
        pass.only(&reads, Self::NAME)?;
        self.hidden(pass.ids()?, &pass.sigma, train).map(Passed::new)
    }

    /// Its linear maps, to which adapters can be added.
    fn linear_maps(&self) -> Result<LinearMaps> {
        Ok(self.parameters().linear_maps())
    }

    /// Adds an adapter to one of the maps that [`LinearMaps::adapting`] names, in place of an earlier one. From then on all calls
    /// compute with it.
    fn adapt(&self, adaptation: &Adaptation) -> Result<()> {
        self.parameters().adapt(adaptation)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::guard::guarded;
    use crate::testkit::Toy;

    #[test]
    fn a_shared_parameter_is_the_same_memory_and_no_second_one_to_train() {
        let mut store = Parameters::new(&Toy::new(2, 2).context());
        let first = store.constant("a", &[2], 0.0);
        store.shared("b", &first);
        let entries = store.entries();
        assert_eq!(entries[0].tensor.data_ptr(), entries[1].tensor.data_ptr());
        assert_eq!((entries[1].name.as_str(), entries[1].trainable), ("b", false));
        let again = guarded(|| {
            store.shared("a", &first);
            Ok(())
        });
        let again = again.unwrap_err();
        assert_eq!(again.to_string(), "two parameters are called `a`");
    }

    #[test]
    fn two_parameters_of_one_name_are_refused_where_the_second_is_made() {
        let mut store = Parameters::new(&Toy::new(2, 2).context());
        let _ = store.constant("w", &[2], 0.0);
        let error = guarded(|| Ok(store.linear("w", 2, 2))).unwrap_err();
        assert_eq!(error.to_string(), "two parameters are called `w`");
        assert!(error.location.contains("backbone.rs:"), "{}", error.location);
    }
}
