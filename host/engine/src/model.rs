//! The model: backbone, process, schedule and parameterization bound together.

mod adapting;
mod alone;
mod blame;
mod documents;
mod kept;
mod learned;
mod lent;
mod losses;
mod others;
mod spent;
mod start;
mod units;
pub mod views;
mod watched;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use maskdiff_base::error::Result;
use maskdiff_config::kind::ComponentKind;
use maskdiff_native::set_attention_by_cudnn;
use maskdiff_plugin_api::abi::handles::{Method, Network, Noise, Process};
use maskdiff_plugin_api::{
    Context, Head, Kind as ErrorKind, Parameter, PluginError, Result as PluginResult, capability,
};
use tch::{Device, Kind, Tensor};

use crate::component;
use crate::graphs::Graphs;
use crate::lora::Lora;
use crate::moment::{Moment, Streams};
use crate::plugins::{Choice, Choices, Registry};

use alone::Alone;
use blame::Asked;
use kept::Kept;
use spent::Clocks;
use views::Blocks;

pub use learned::is_of_group;
pub use spent::Spent;
pub use watched::{Laws, Unwanted};

/// Called with steps done, steps in all, and the tokens so far; an error stops the walk.
pub type Progress<'a> = Box<dyn FnMut(i64, i64, &Tensor) -> PluginResult<()> + 'a>;

/// A model over loaded components. Lent to plugins as their [`maskdiff_plugin_api::Denoiser`].
pub struct Model {
    noise: Noise,
    process: Process,
    network: Network,
    method: Method,
    names: Choices,
    head: Option<Head>,
    /// The parameter that is the head's matrix.
    head_matrix: Option<String>,
    bound: bool,
    /// Whether the parameterization was built before a loss could differ from what is reported.
    carries_over: bool,
    /// The capabilities of backbone, process and parameterization.
    offered: BTreeSet<String>,
    reports_loss: bool,
    facts: Context,
    blocks: Option<Blocks>,
    parameters: Vec<Parameter>,
    /// Whether an option of the network leaves the first token of a text without a law.
    first_given: bool,
    /// How many of them are the network's; the others stand behind.
    of_network: usize,
    shared: Vec<(String, String)>,
    lora: Option<Rc<Lora>>,
    asked: RefCell<Asked>,
    train: Cell<bool>,
    calls: Cell<i64>,
    rows: Cell<i64>,
    clocks: Clocks,
    reduced: Cell<Option<Kind>>,
    drawing: Cell<bool>,
    alone: Alone,
    graphs: RefCell<Option<Graphs>>,
    /// What a walk keeps of earlier calls, where it works on a part of its tokens.
    kept_keys: RefCell<Option<Kept>>,
    approximated: Cell<bool>,
    uniforms: RefCell<Option<Tensor>>,
    /// Shared with the models beside it, which read the same streams.
    moment: Rc<RefCell<Moment>>,
    others: Vec<(String, Model)>,
    /// Rows of the head that are no tokens: no walk draws them.
    unused: RefCell<Option<Tensor>>,
    progress: RefCell<Option<Progress<'static>>>,
    laws: Rc<Laws>,
    unwanted: RefCell<Option<Unwanted>>,
}

impl std::fmt::Debug for Model {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Model({:?}, {} tensors)", self.names, self.parameters.len())
    }
}

/// What the components are told, of which the mask is the process's: a vocabulary may have a token that no process uses.
pub fn told(
    registry: &Registry,
    process: &Choice,
    vocabulary: Context,
) -> Result<(Process, Context)> {
    let made = registry.process(process, &vocabulary)?;
    let mask_id =
        made.mask_id().map_err(|e| component::error(ComponentKind::Process, &process.name, e))?;
    Ok((made, vocabulary.mask(mask_id)))
}

/// The parameters, and the names that share the memory of an earlier one with that one's name.
fn told_apart(all: Vec<Parameter>) -> (Vec<Parameter>, Vec<(String, String)>) {
    let (mut own, mut shared): (Vec<Parameter>, Vec<(String, String)>) = (Vec::new(), Vec::new());
    for parameter in all {
        let place = |p: &Parameter| (p.tensor.data_ptr() as usize, p.tensor.size());
        let first = own.iter().find(|p| p.trainable && place(p) == place(&parameter));
        match first.filter(|_| !parameter.trainable && parameter.tensor.numel() > 0) {
            Some(first) => shared.push((parameter.name, first.name.clone())),
            None => own.push(parameter),
        }
    }
    (own, shared)
}

/// The name of the parameter that a tensor is.
fn name_of(tensor: &Tensor, parameters: &[Parameter]) -> Option<String> {
    let found = parameters.iter().find(|p| p.tensor.data_ptr() == tensor.data_ptr());
    found.map(|p| p.name.clone())
}

impl Model {
    /// Makes all components. Fresh parameters come from libtorch's generator: seed it before.
    pub fn build(registry: &Registry, names: Choices, vocabulary: Context) -> Result<Self> {
        Self::in_blocks(registry, names, vocabulary, None)
    }

    /// The same, whose sequences are read in blocks.
    pub fn in_blocks(
        registry: &Registry,
        names: Choices,
        vocabulary: Context,
        blocks: Option<Blocks>,
    ) -> Result<Self> {
        let (process, facts) = told(registry, &names.process, vocabulary)?;
        // A block is the sequence of all but the network.
        let length = blocks.as_ref().map_or(facts.length, |blocks| blocks.size);
        let shown = facts.length(length);
        // What is learnt beside the network is small, and a checkpoint of another method does not have it.
        let noise = registry.noise(&names.noise, &facts.fresh(true))?;
        let (plugin, said) =
            registry.find(ComponentKind::Parameterization, &names.parameterization.name)?;
        let offers = |capability: &str| said.provides.iter().any(|offer| offer == capability);
        // What is to be told from the text is not told to the network.
        let classes = if offers(capability::CLASSIFIES) { 0 } else { facts.classes };
        let network = registry.backbone(&names.backbone, &facts.classes(classes))?;
        let method = registry.parameterization(&names.parameterization, &shown.fresh(true))?;
        let backbone = |e| component::error(ComponentKind::Backbone, &names.backbone.name, e);
        let mut all = network.parameters().map_err(backbone)?;
        let beside = learned::beside_network(&noise, &method, &names)?;
        learned::check_names(&all, &beside, &names)?;
        let learned = beside.len();
        all.extend(beside);
        let (parameters, shared) = told_apart(all);
        let of_network = parameters.len() - learned;
        let head = network.head().map_err(backbone)?;
        let head_matrix = head.as_ref().and_then(|head| name_of(&head.weight, &parameters));
        let (bound, carries_over) = (offers(capability::BOUND), offers(capability::CARRY_OVER));
        let mut offered: BTreeSet<String> = said.provides.iter().cloned().collect();
        for (kind, choice) in
            [(ComponentKind::Backbone, &names.backbone), (ComponentKind::Process, &names.process)]
        {
            offered.extend(registry.find(kind, &choice.name)?.1.provides.iter().cloned());
        }
        let schema = &registry.find(ComponentKind::Backbone, &names.backbone.name)?.1.schema;
        let first_given = documents::first_is_given(schema, &names.backbone.options);
        let reports_loss = plugin.info.api_version.starts_with("1.0.");
        Ok(Self {
            noise,
            process,
            network,
            method,
            names,
            head,
            head_matrix,
            bound,
            carries_over,
            offered,
            reports_loss,
            facts,
            blocks,
            first_given,
            parameters,
            of_network,
            shared,
            lora: None,
            asked: RefCell::default(),
            train: Cell::new(false),
            calls: Cell::new(0),
            rows: Cell::new(0),
            clocks: Clocks::default(),
            reduced: Cell::new(None),
            drawing: Cell::new(false),
            alone: Alone::default(),
            graphs: RefCell::new(None),
            kept_keys: RefCell::new(None),
            approximated: Cell::new(false),
            uniforms: RefCell::new(None),
            moment: Rc::default(),
            others: Vec::new(),
            unused: RefCell::new(None),
            progress: RefCell::new(None),
            laws: Rc::default(),
            unwanted: RefCell::new(None),
        })
    }

    /// Facts the components were told.
    pub fn facts(&self) -> &Context {
        &self.facts
    }

    /// Whether the parameterization says that its loss bounds the likelihood.
    pub fn is_bound(&self) -> bool {
        self.bound
    }

    /// Whether tokens that are not masked keep their values in the parameterization's law.
    pub fn carries_over(&self) -> bool {
        self.carries_over
    }

    /// Whether the parameterization learns classes of texts, which the network is not told.
    pub fn classifies(&self) -> bool {
        self.offered.contains(capability::CLASSIFIES)
    }

    /// What the process leaves of the clean tokens at `alpha_1`, against its prior: nats, `[B, L] i64` → `[B, L] f64`.
    pub fn prior_kl(&self, x0_bl: &Tensor, alpha_1: f64) -> Result<Tensor> {
        let named = |e| component::error(ComponentKind::Process, &self.names.process.name, e);
        self.process.prior_kl(x0_bl, alpha_1).map_err(named)
    }

    /// All parameters and buffers: the backbone's in its order, then those of the schedule and of the parameterization.
    pub fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    /// All parameters and buffers by name, for checkpoints.
    pub fn named(&self) -> Vec<(String, Tensor)> {
        self.parameters.iter().map(|p| (p.name.clone(), p.tensor.shallow_clone())).collect()
    }

    /// Second names of parameters that parts of the network share, each with the first one.
    pub fn shared(&self) -> &[(String, String)] {
        &self.shared
    }

    /// Of tensors that another program stored under both names of a shared parameter, leaves one: that of the first name.
    pub fn once<T>(&self, stored: &mut BTreeMap<String, T>) {
        for (second, first) in &self.shared {
            if let Some(value) = stored.remove(second) {
                stored.entry(first.clone()).or_insert(value);
            }
        }
    }

    /// Turns dropout on or off.
    pub fn set_train(&self, train: bool) {
        self.train.set(train);
    }

    /// The type in which the network's products are computed from now on; `None` for that of its weights. All that is
    /// around the network (noise, losses, laws) keeps its precision.
    pub fn set_reduced(&self, kind: Option<Kind>) {
        self.reduced.set(kind);
    }

    /// Lets the network's passes of a sampler be recorded as graphs, on a GPU, from now on; or never.
    pub fn set_graphs(&self, on: bool) {
        *self.graphs.borrow_mut() = on.then(|| Graphs::new(self.facts.device()));
    }

    /// How many passes are recorded.
    pub fn recorded(&self) -> usize {
        self.graphs.borrow().as_ref().map_or(0, Graphs::recorded)
    }

    /// Ids that walks never draw from now on.
    pub fn set_unused(&self, ids: &[i64]) {
        let columns = || Tensor::from_slice(ids).to_device(self.facts.device());
        *self.unused.borrow_mut() = (!ids.is_empty()).then(columns);
    }

    /// Says whether a sampler draws, without gradients.
    pub(crate) fn set_drawing(&self, drawing: bool) {
        if drawing {
            *self.asked.borrow_mut() = Asked::drawn();
        }
        if self.facts.device().is_cuda()
            && let Err(error) = set_attention_by_cudnn(!drawing)
        {
            tracing::debug!("attention by cuDNN stays as it was: {error}");
        }
        self.kept_keys.take();
        self.alone.release();
        self.drawing.set(drawing);
    }

    fn reduced<T>(&self, body: impl FnOnce() -> PluginResult<T>) -> PluginResult<T> {
        maskdiff_native::autocast(self.facts.device(), self.reduced.get(), body)
            .map_err(|e| PluginError::new(ErrorKind::Other, e.to_string()))?
    }

    /// Network calls so far, counted for each sequence; those of the models beside it too.
    pub fn calls(&self) -> i64 {
        self.calls.get() + self.others.iter().map(|(_, other)| other.calls()).sum::<i64>()
    }

    /// Where the time of the calls went since the last time; on a GPU each call is waited for from now on.
    pub fn take_spent(&self) -> Spent {
        let others = self.others.iter().map(|(_, other)| other.take_spent());
        others.fold(self.clocks.take(), Spent::plus)
    }

    /// Tokens that the networks have read so far, in all of their calls: what a walk over a cache costs.
    pub fn rows(&self) -> i64 {
        self.rows.get() + self.others.iter().map(|(_, other)| other.rows()).sum::<i64>()
    }

    /// Before a call of a sampler over N tokens of the network, or N rows of its head: how many threads compute it.
    fn enter(&self, tokens: usize, of_head: bool) {
        if !self.drawing.get() || self.facts.device() != Device::Cpu {
            return;
        }
        let vocab_size = self.facts.vocab_size;
        let is_asked = |size: &[i64]| size.len() > 1 && size.contains(&vocab_size) == of_head;
        let sizes = self.parameters.iter().map(|parameter| parameter.tensor.size());
        let numbers = sizes.filter(|size| is_asked(size)).map(|size| size.iter().product::<i64>());
        self.alone.enter(tokens as i64, numbers.sum());
    }

    /// Counts a call that reads `x [B, S]`, or mixtures `[B, S, M]`.
    fn count(&self, x: &Tensor) {
        let size = x.size();
        self.calls.set(self.calls.get() + size[0]);
        self.rows.set(self.rows.get() + size[0] * size[1]);
    }

    /// What components may ask for while they run, from now on.
    pub fn set_moment(&self, moment: Moment) {
        *self.moment.borrow_mut() = moment;
    }

    /// Which positions of the walk that comes next are given, `[B, L] bool`.
    pub fn give(&self, given_bl: Option<Tensor>) {
        self.moment.borrow_mut().given_bl = given_bl;
    }

    /// A part of the walk begins, a window or a block: what is drawn in it comes from numbers of its own.
    pub fn begin_part(&self, part: u64) {
        self.moment.borrow_mut().begin_part(part);
    }

    /// The random streams as they stand, for [`Model::rewind`].
    pub fn streams(&self) -> Option<Streams> {
        self.moment.borrow().streams().cloned()
    }

    /// Puts the random streams back where they stood.
    pub fn rewind(&self, streams: Option<Streams>) {
        self.moment.borrow_mut().rewind(streams);
    }

    /// Runs `body` for one sequence of a batch alone: what it draws comes from that sequence's stream.
    pub fn alone<T>(&self, row: usize, body: impl FnOnce() -> T) -> T {
        let all = self.moment.borrow_mut().alone(row);
        self.laws.leave_alone(Some(row));
        let done = body();
        self.laws.leave_alone(None);
        self.moment.borrow_mut().together(row, all);
        done
    }

    /// How the model reads its sequences, where it does so in blocks.
    pub fn blocks(&self) -> Option<&Blocks> {
        self.blocks.as_ref()
    }

    /// How many times a sequence has: one for each block.
    pub fn clocks(&self) -> i64 {
        self.blocks.as_ref().map_or(1, |blocks| self.facts.length / blocks.size)
    }

    /// Which tokens of clean sequences count in a loss; `None` counts all.
    pub fn counted(&self, counted_bl: Option<Tensor>, x0_bl: &Tensor) -> Option<Tensor> {
        match &self.blocks {
            Some(blocks) => blocks.counted(counted_bl, x0_bl),
            None => counted_bl,
        }
    }

    pub(crate) fn method(&self) -> &Method {
        &self.method
    }

    /// Runs `body` about sequences of these classes, `[B] i64`: the network reads them in every call.
    pub(crate) fn labelled<T>(&self, label_b: &Tensor, body: impl FnOnce() -> T) -> T {
        let label_b = Some(label_b.shallow_clone());
        let before = std::mem::replace(&mut self.moment.borrow_mut().label_b, label_b);
        let done = body();
        self.moment.borrow_mut().label_b = before;
        done
    }

    /// Whether the network is conditioned on classes. A second model beside the sampled one may have none.
    fn is_told(&self) -> bool {
        self.facts.classes > 0 && !self.classifies()
    }

    /// The classes of the sequences of a call over `rows` of them: those of the batch, or of each of several copies of the batch.
    fn labels_of(&self, rows: i64) -> PluginResult<Option<Tensor>> {
        let moment = self.moment.borrow();
        let Some(label_b) = moment.label_b.as_ref().filter(|_| self.is_told()) else {
            return Ok(None);
        };
        let known = label_b.size()[0];
        if known == 0 || rows % known != 0 {
            return Err(PluginError::new(
                ErrorKind::Unsupported,
                format!(
                    "a call over {rows} sequences of a batch of {known} whose classes are known"
                ),
            ));
        }
        Ok(Some(label_b.repeat([rows / known])))
    }

    /// Which positions of the walk in progress are given, `[B, L] bool`.
    pub fn given(&self) -> Option<Tensor> {
        self.moment.borrow().given_bl.as_ref().map(Tensor::shallow_clone)
    }

    /// The uniform numbers `[B, L]` that the next corruption uses instead of fresh ones; `None` takes back what was given.
    pub fn inject_uniforms(&self, u_bl: Option<Tensor>) {
        *self.uniforms.borrow_mut() = u_bl;
    }

    /// Who is told how far a walk is.
    pub fn on_progress(&self, progress: Option<Progress<'static>>) {
        *self.progress.borrow_mut() = progress;
    }

    /// A draw of the prior, `[B, L] i64`.
    pub fn prior(&self, batch: i64, length: i64) -> Result<Tensor> {
        let named = |e| component::error(ComponentKind::Process, &self.names.process.name, e);
        self.process.prior(batch, length).map_err(named)
    }
}
