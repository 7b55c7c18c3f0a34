//! The one door to the network: backbone, process, schedule and parameterization bound together.

use tch::{Device, Kind, Tensor};

use crate::abi::contract::{denoiser_methods, model_defaults};
use crate::beside::{Seat, kept};
use crate::door::{self, Argument, Arguments, first};
use crate::shape::ANY;
use crate::{
    Guidance, Interpolation, Kind as ErrorKind, Mix, Pass, Passed, Rated, Result, Tokens, Window,
    bail, ensure,
};

/// What stands behind a [`Denoiser`]. The host implements it over the loaded components, the test kit over
/// a toy; plugin authors use [`Denoiser`] instead. Tensors as documented there.
#[expect(missing_docs, reason = "each method is documented on Denoiser")]
pub trait Model {
    fn vocab_size(&self) -> i64;
    fn mask_id(&self) -> Option<i64>;
    fn time_conditioning(&self) -> bool;
    fn device(&self) -> Device;
    fn sigma(&self, t: &Tensor) -> Result<Tensor>;
    fn dsigma(&self, t: &Tensor) -> Result<Tensor>;
    fn time_of_alpha(&self, alpha: &Tensor) -> Result<Tensor>;
    fn sigma_range(&self) -> Result<(f64, f64)>;
    fn importance(&self, t: &Tensor) -> Result<Tensor>;
    fn corrupt(&self, x0_bl: &Tensor, alpha_b: &Tensor) -> Result<Tensor>;
    fn posterior(&self, xt_n: &Tensor, alpha_t: f64, alpha_s: f64, p_nv: &Tensor)
    -> Result<Tensor>;
    fn hidden(&self, xt_bl: &Tensor, sigma_b: &Tensor) -> Result<Tensor>;
    fn extend(&self, x_bl: &Tensor, cache: Vec<Tensor>) -> Result<(Tensor, Vec<Tensor>)>;
    fn logits(&self, hidden_nd: &Tensor) -> Result<Tensor>;
    fn weighted_nll(
        &self,
        hidden_nd: &Tensor,
        target_n: &Tensor,
        weight_n: &Tensor,
        banned: Option<i64>,
    ) -> Result<Tensor>;
    fn log_x0(&self, xt_bl: &Tensor, t_b: &Tensor, rows_n: &Tensor) -> Result<Tensor>;
    fn score(&self, xt_bl: &Tensor, t_b: &Tensor, rows_n: &Tensor) -> Result<Tensor>;
    fn progress(&self, done: i64, total: i64, xt_bl: &Tensor) -> Result<()>;

    /// A frozen model beside this one, where it can be asked directly.
    fn other(&self, _name: &str) -> Result<Option<&dyn Model>> {
        Ok(None)
    }

    /// Says which of the models beside it the next calls are about; empty is the model itself.
    fn select(&self, _name: &str) -> Result<()> {
        bail!(Unsupported, "there are no models beside this one")
    }

    denoiser_methods!(model_defaults);
}

/// What the host hands to samplers and parameterizations.
///
/// Shape letters: `B` batch, `L` length, `D` hidden size, `V` vocabulary with the mask, `N` rows. Rows are flat
/// positions `b * L + l`, `[N] i64`. Times and noise levels are `[B] f64`. An argument of another shape, kind or place is
/// an error that names it and the line that gave it.
#[derive(Clone, Copy)]
pub struct Denoiser<'a> {
    model: &'a dyn Model,
    /// The name of the model beside it that is meant, on the far side of the boundary.
    beside: &'static str,
}

impl std::fmt::Debug for Denoiser<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Denoiser(V = {}, mask = {:?})", self.vocab_size(), self.mask())
    }
}

impl<'a> Denoiser<'a> {
    /// Wraps what the host or the test kit provides.
    pub fn new(model: &'a dyn Model) -> Self {
        Self { model, beside: "" }
    }

    /// What is wrapped.
    pub(crate) fn model(&self) -> &'a dyn Model {
        self.model
    }

    /// What a call asks, for as long as it lasts.
    pub(crate) fn seat(&self) -> Result<Seat<'a>> {
        Seat::of(self.model, self.beside)
    }

    /// What all models beside each other agree on, or the model itself where they cannot be asked.
    fn plain<T>(&self, ask: impl Fn(&dyn Model) -> T) -> T {
        self.seat().map_or_else(|_| ask(self.model), |seat| ask(&*seat))
    }

    /// A frozen model from a checkpoint, by the name of the configuration: `teacher`, for instance. Its parameters get no gradient,
    /// and it reads the same random streams as this model.
    ///
    /// # Errors
    /// A name of which there is no model; a method says what it needs in [`crate::Component::NEEDS`], so that no run begins without.
    pub fn other(&self, name: &str) -> Result<Denoiser<'a>> {
        ensure!(
            self.beside.is_empty(),
            Unsupported,
            "`other(\"{name}\")` of `{}`: a model beside a model has none beside it",
            self.beside
        );
        if let Some(model) = self.model.other(name)? {
            return Ok(Denoiser::new(model));
        }
        drop(Seat::of(self.model, name)?);
        Ok(Self { model: self.model, beside: kept(name) })
    }

    /// V, including the mask token.
    pub fn vocab_size(&self) -> i64 {
        self.plain(|model| model.vocab_size())
    }

    /// Id of the absorbing token; an error where the process has none.
    #[track_caller]
    pub fn mask_id(&self) -> Result<i64> {
        match self.mask() {
            Some(id) => Ok(id),
            None => bail!(Unsupported, "the forward process has no mask token"),
        }
    }

    /// Id of the absorbing token, where the process has one.
    pub fn mask(&self) -> Option<i64> {
        self.plain(|model| model.mask_id())
    }

    /// Whether the network sees the noise level; without, equal tokens always give equal outputs.
    pub fn time_conditioning(&self) -> bool {
        self.plain(|model| model.time_conditioning())
    }

    /// Where tensors live.
    pub fn device(&self) -> Device {
        self.plain(|model| model.device())
    }

    pub(crate) fn arguments(&self) -> Arguments<'a> {
        Arguments(self.model)
    }

    /// Total noise at times of any shape, f64.
    #[track_caller]
    pub fn sigma(&self, t: &Tensor) -> Result<Tensor> {
        door::call("sigma", &[self.arguments().times("t", t)], || self.seat()?.sigma(t))
    }

    /// Noise rate dσ/dt at times of any shape, f64.
    #[track_caller]
    pub fn dsigma(&self, t: &Tensor) -> Result<Tensor> {
        door::call("dsigma", &[self.arguments().times("t", t)], || self.seat()?.dsigma(t))
    }

    /// The probability that a token is still clean at time t.
    #[track_caller]
    pub fn alpha(&self, t: f64) -> Result<f64> {
        door::unit("alpha", "t", t)?;
        let t = Tensor::from_slice(&[t]);
        Ok(self.seat()?.sigma(&t)?.neg().exp().double_value(&[0]))
    }

    /// The times at which alpha has the given values, or the nearest it reaches, in [0, 1], f64.
    #[track_caller]
    pub fn time_of_alpha(&self, alpha: &Tensor) -> Result<Tensor> {
        door::call("time_of_alpha", &[self.arguments().times("alpha", alpha)], || {
            // Before the turn begins: it ends with the first call.
            let within = alpha.clamp(self.alpha(1.0)?, self.alpha(0.0)?);
            self.seat()?.time_of_alpha(&within)
        })
    }

    /// The ends of the schedule, as its importance sampling defines them.
    pub fn sigma_range(&self) -> Result<(f64, f64)> {
        self.seat()?.sigma_range()
    }

    /// Times whose loss weight is constant, from uniform ones.
    #[track_caller]
    pub fn importance(&self, t: &Tensor) -> Result<Tensor> {
        door::call("importance", &[self.arguments().times("t", t)], || self.seat()?.importance(t))
    }

    /// A draw of `xt ~ q(xt | x0)` at `alpha_b [B] f64`, with the host's randomness.
    #[track_caller]
    pub fn corrupt(&self, x0_bl: &Tensor, alpha_b: &Tensor) -> Result<Tensor> {
        let given = self.arguments();
        let alpha = given.units("alpha_b", alpha_b, first(x0_bl));
        let arguments = [given.tokens("x0_bl", x0_bl), alpha];
        door::call("corrupt", &arguments, || self.seat()?.corrupt(x0_bl, alpha_b))
    }

    /// `q(xs | xt, x0 ~ p)`: `xt_n [N]`, `p_nv [N, V]` → `[N, V]`.
    #[track_caller]
    pub fn posterior(
        &self,
        xt_n: &Tensor,
        alpha_t: f64,
        alpha_s: f64,
        p_nv: &Tensor,
    ) -> Result<Tensor> {
        door::unit("posterior", "alpha_t", alpha_t)?;
        door::unit("posterior", "alpha_s", alpha_s)?;
        let (given, size) = (self.arguments(), vec![first(xt_n), self.vocab_size()]);
        let xt = given.row_tokens("xt_n", xt_n, ANY);
        let arguments = [xt, given.floats("p_nv", p_nv, "[N, V]", size)];
        door::call("posterior", &arguments, || self.seat()?.posterior(xt_n, alpha_t, alpha_s, p_nv))
    }

    /// One network call: `[B, L] i64` and `sigma_b [B] f64` → `[B, L, D]`. Without time conditioning the network
    /// gets sigma = 0 whatever is given. Counts B calls.
    #[track_caller]
    pub fn hidden(&self, xt_bl: &Tensor, sigma_b: &Tensor) -> Result<Tensor> {
        let given = self.arguments();
        let sigma = given.levels("sigma_b", sigma_b, first(xt_bl));
        let arguments = [given.tokens("xt_bl", xt_bl), sigma];
        door::call("hidden", &arguments, || self.seat()?.hidden(xt_bl, sigma_b))
    }

    /// One network call over the tokens that follow a cache, see [`crate::Backbone::extend`]. Counts B calls.
    #[track_caller]
    pub fn extend(&self, x_bl: &Tensor, cache: Vec<Tensor>) -> Result<(Tensor, Vec<Tensor>)> {
        let arguments = [self.arguments().tokens("x_bl", x_bl)];
        door::call("extend", &arguments, || self.seat()?.extend(x_bl, cache))
    }

    /// The head: `[N, D]` → raw logits `[N, V]`.
    #[track_caller]
    pub fn logits(&self, hidden_nd: &Tensor) -> Result<Tensor> {
        let hidden = self.arguments().floats("hidden_nd", hidden_nd, "[N, D]", vec![ANY, ANY]);
        door::call("logits", &[hidden], || self.seat()?.logits(hidden_nd))
    }

    /// `weight_n * -log softmax(logits)[target_n]` for rows `hidden_nd [N, D]` → `[N]`; the logit of `banned` counts
    /// as -∞. Fused with a linear head: the `[N, V]` logits never exist.
    #[track_caller]
    pub fn weighted_nll(
        &self,
        hidden_nd: &Tensor,
        target_n: &Tensor,
        weight_n: &Tensor,
        banned: Option<i64>,
    ) -> Result<Tensor> {
        let (given, n) = (self.arguments(), first(hidden_nd));
        let arguments = [
            given.floats("hidden_nd", hidden_nd, "[N, D]", vec![ANY, ANY]),
            given.row_tokens("target_n", target_n, n),
            given.floats("weight_n", weight_n, "[N]", vec![n]),
        ];
        door::call("weighted_nll", &arguments, || {
            self.seat()?.weighted_nll(hidden_nd, target_n, weight_n, banned)
        })
    }

    fn law_arguments<'t>(
        &self,
        xt_bl: &'t Tensor,
        t_b: &'t Tensor,
        rows_n: &'t Tensor,
    ) -> [Argument<'t>; 3] {
        let given = self.arguments();
        [
            given.tokens("xt_bl", xt_bl),
            given.units("t_b", t_b, first(xt_bl)),
            given.rows("rows_n", rows_n, xt_bl),
        ]
    }

    /// The parameterization's `log p(x0 | xt)` at `rows_n` → `[N, V]`.
    #[track_caller]
    pub fn log_x0(&self, xt_bl: &Tensor, t_b: &Tensor, rows_n: &Tensor) -> Result<Tensor> {
        let arguments = self.law_arguments(xt_bl, t_b, rows_n);
        door::call("log_x0", &arguments, || self.seat()?.log_x0(xt_bl, t_b, rows_n))
    }

    /// What this walk is guided by at `rows_n`, where that acts on the law of a step; `None` where [`Denoiser::log_x0`] is all there is. A
    /// sampler that does not ask is guided too, on the law of clean tokens.
    #[track_caller]
    pub fn guidance(
        &self,
        xt_bl: &Tensor,
        t_b: &Tensor,
        rows_n: &Tensor,
    ) -> Result<Option<Guidance>> {
        let arguments = self.law_arguments(xt_bl, t_b, rows_n);
        door::call("guidance", &arguments, || known(self.seat()?.guidance(xt_bl, t_b, rows_n)))
    }

    /// The parameterization's concrete score at `rows_n` → `[N, V]`.
    #[track_caller]
    pub fn score(&self, xt_bl: &Tensor, t_b: &Tensor, rows_n: &Tensor) -> Result<Tensor> {
        let arguments = self.law_arguments(xt_bl, t_b, rows_n);
        door::call("score", &arguments, || self.seat()?.score(xt_bl, t_b, rows_n))
    }

    /// Tells the host how far a walk is, with the tokens so far; an error of kind `Interrupted` asks to stop.
    #[track_caller]
    pub fn progress(&self, done: i64, total: i64, xt_bl: &Tensor) -> Result<()> {
        let arguments = [self.arguments().tokens("xt_bl", xt_bl)];
        door::call("progress", &arguments, || self.seat()?.progress(done, total, xt_bl))
    }

    /// The noise of the process at `alpha_b [B] f64`, see [`crate::ForwardProcess::mixing`].
    #[track_caller]
    pub fn mixing(&self, alpha_b: &Tensor) -> Result<Mix> {
        let alpha = self.arguments().units("alpha_b", alpha_b, ANY);
        door::call("mixing", &[alpha], || self.seat()?.mixing(alpha_b))
    }

    /// Where tokens that noise takes arrive, per unit of sigma, see [`crate::ForwardProcess::arrival`].
    #[track_caller]
    pub fn arrival(&self, alpha_b: &Tensor) -> Result<Mix> {
        let alpha = self.arguments().units("alpha_b", alpha_b, ANY);
        door::call("arrival", &[alpha], || self.seat()?.arrival(alpha_b))
    }

    /// One network call in full, see [`Pass`]. Without time conditioning the network gets sigma = 0 whatever is given. Counts B
    /// calls and B S rows.
    #[track_caller]
    pub fn pass(&self, pass: &Pass) -> Result<Passed> {
        let given = self.arguments();
        let size = pass.tokens.ids().size();
        let (batch, new) = (first(pass.tokens.ids()), size.get(1).copied().unwrap_or(ANY));
        let of_tokens = |shape: &[i64]| shape.iter().copied().map(|n| n.max(ANY)).collect();
        let mut arguments = match &pass.tokens {
            Tokens::Ids(ids) => vec![given.tokens("ids", ids)],
            Tokens::Mixture { ids, weight } => vec![
                given.mixed_tokens("ids", ids),
                given.floats("weight", weight, "[B, S, M]", of_tokens(&size)),
            ],
        };
        arguments.push(match pass.sigma.dim() {
            2 => given.token_levels("sigma", &pass.sigma, batch, new),
            _ => given.levels("sigma", &pass.sigma, batch),
        });
        for keys in &pass.past {
            arguments.push(given.floats("past", keys, "[B, H, P, K]", vec![batch, ANY, ANY, ANY]));
        }
        if let Some(positions) = &pass.positions {
            let rows = if first(positions) == 1 { 1 } else { batch };
            arguments.push(given.positions("positions", positions, rows, new));
        }
        if let Some(label) = &pass.label {
            arguments.push(given.labels("label", label, batch));
        }
        door::call("pass", &arguments, || self.seat()?.pass(pass))
    }

    /// The bound of diffusion between data and noise at rows, with its gradient → `[N]` nats, see [`crate::ops::interpolating_nll`].
    /// Fused with a linear head: the `[N, V]` logits never exist.
    #[track_caller]
    pub fn interpolating_nll(&self, rows: &Interpolation) -> Result<Tensor> {
        let (given, n) = (self.arguments(), first(&rows.hidden_nd));
        let mut arguments = vec![
            given.floats("hidden_nd", &rows.hidden_nd, "[N, D]", vec![ANY, ANY]),
            given.row_tokens("x_n", &rows.x_n, n),
            given.row_tokens("z_n", &rows.z_n, n),
        ];
        for (name, tensor) in [
            ("alpha_n", &rows.alpha_n),
            ("every_n", &rows.every_n),
            ("mask_n", &rows.mask_n),
            ("weight_n", &rows.weight_n),
        ] {
            arguments.push(given.floats(name, tensor, "[N]", vec![n]));
        }
        door::call("interpolating_nll", &arguments, || self.seat()?.interpolating_nll(rows))
    }

    /// Whether the backbone, the process or the parameterization claims a [`capability`](crate::capability). `None` where the host
    /// does not say.
    pub fn offers(&self, capability: &str) -> Result<Option<bool>> {
        known(self.seat()?.offers(&capability.to_string()))
    }

    /// Which positions of the walk in progress are given, `[B, L] bool`. `None` where the host does not say; with an absorbing
    /// process those are the positions of a start that hold no mask.
    pub fn given(&self) -> Result<Option<Tensor>> {
        known(self.seat()?.given())
    }

    /// The tokens `x_bl [B, L]` of a walk from `start_bl`, with what was given put back.
    pub fn keep_given(&self, start_bl: &Tensor, x_bl: &Tensor) -> Result<Tensor> {
        Ok(match self.given()? {
            Some(given_bl) => start_bl.where_self(&given_bl, x_bl),
            None => x_bl.shallow_clone(),
        })
    }

    /// The class of each sequence of the batch or the walk, `[B] i64`, where there are classes.
    pub fn label(&self) -> Result<Option<Tensor>> {
        known(self.seat()?.label())
    }

    /// The optimizer step that is being taken, counted from 0; `None` in an evaluation and in a walk.
    pub fn step(&self) -> Result<Option<i64>> {
        known(self.seat()?.step())
    }

    /// Uniform numbers strictly inside (0, 1), f64.
    ///
    /// The first dimension is the sequence, or k rows for each of them in their order. Each sequence has a stream of its own, by
    /// the seed and its number in the run, so a sequence's numbers depend neither on the batch size nor on the rank, and a run that
    /// resumes draws the same ones. Each call draws further numbers.
    #[track_caller]
    pub fn uniforms(&self, shape: &[i64]) -> Result<Tensor> {
        door::shape("uniforms", shape)?;
        self.seat()?.uniforms(&shape.to_vec())
    }

    /// Normal numbers of mean 0 and variance 1, f64; drawn as [`Denoiser::uniforms`] are.
    #[track_caller]
    pub fn normals(&self, shape: &[i64]) -> Result<Tensor> {
        door::shape("normals", shape)?;
        self.seat()?.normals(&shape.to_vec())
    }

    /// Says which sequences of the walk the next call is about: their numbers `[N] i64`, one for each row of that call. A call over
    /// all of them in order needs no word.
    ///
    /// A host that keeps something for each sequence has to know (keys and values of the blocks before, see `block_size`). A sampler
    /// that calls about some of the sequences and does not say which is made to walk one at a time.
    #[track_caller]
    pub fn turn_to(&self, sequences_n: &Tensor) -> Result<()> {
        match self.seat()?.turn_to(sequences_n) {
            Err(error) if error.kind == ErrorKind::Unsupported => Ok(()),
            answer => answer,
        }
    }

    /// Says which tokens the calls to come are about. The next call reads everything and its keys and values are kept; those after it read
    /// the window alone, and what is behind it unless the window is [`Window::around`], over what was kept. **Approximate**, see [`Window`].
    /// The walk's end is its end; [`Window::whole`] ends it before.
    ///
    /// # Errors
    /// A host of contract 1.0, or a network that gives no keys and values.
    #[track_caller]
    pub fn window(&self, window: &Window) -> Result<()> {
        self.seat()?.window(window)
    }

    /// One time for every sequence of a batch: `[B] f64`.
    pub fn times(&self, batch: i64, t: f64) -> Tensor {
        Tensor::full([batch], t, (Kind::Double, self.device()))
    }
}

/// What a host of an older contract does not know is not there.
fn known<T>(answer: Result<Option<T>>) -> Result<Option<T>> {
    match answer {
        Err(error) if error.kind == ErrorKind::Unsupported => Ok(None),
        answer => answer,
    }
}
