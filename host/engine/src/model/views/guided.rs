//! The model as a sampler sees it whose laws are guided: pushed away from what the model says without knowing what is given, or of which class
//! a text is; or pulled towards what a classifier says.

use std::cell::{Cell, RefCell};

use maskdiff_config::listed::ClassifierOrder;
use maskdiff_plugin_api::{
    Guidance, Interpolation, Mix, Model as Lent, Pass, Passed, Rated, Result, Window, bail,
};
use tch::{Device, Kind, Tensor};

use super::classifier::{Asked, TellsClasses, Towards};
use crate::model::Model;

/// A model with guided laws. Shape letters: `B` sequences of a walk, `N` rows, `V` vocabulary including the mask.
///
/// # Equation
/// `log p = normalised g log p(x0 | xt, known) + (1 - g) log p(x0 | xt)`; a score is guided alike, and keeps the sum that it has without. What is
/// known is a label, or the given tokens, without which they are masked. Where noise is other tokens than the mask, samplers that ask for it
/// ([`Lent::guidance`]) guide the law of a step by labels in this way, and not that of clean tokens.
///
/// By a classifier, `log p = normalised log p(x0 | xt) + g log c(label | xt with this token there)`; samplers that ask guide the law of a step
/// so, over any noise. A score is multiplied by `c(label | xt with this token there) / c(label | xt)` to the power of g.
///
/// # Source
/// Schiff et al. 2024, arXiv:2412.10193, section 3.1 (D-CFG, labels); Nie et al. 2025, arXiv:2410.18514 (unsupervised guidance, `g = 1 + w`); Schiff
/// et al., section 3.2 (D-CBG, a classifier), and Nisonoff et al. 2024, arXiv:2406.01572 (rates by a classifier).
/// Differences: published programs guide logits; of laws that come from them it is the same.
///
/// # Cost
/// Twice the tokens in each call; none more where nothing is known, or the scale is 0 or 1. With a classifier one call of the network, and the
/// classifier's: to first order one forward and backward, exactly as many texts as rows times tokens of the vocabulary.
#[derive(Debug)]
pub struct GuidedView<'a> {
    model: &'a Model,
    /// g: 1 is the law with what is known, 0 that without.
    scale: f64,
    by: By<'a>,
    /// The sequences that the next call is about.
    turned: RefCell<Option<Tensor>>,
    /// Whether a call came about other sequences than it could be told.
    untold: Cell<bool>,
}

/// What is known of the sequences of a walk.
#[derive(Debug)]
enum By<'a> {
    /// Tokens, `[B, L] bool`.
    Given(Tensor),
    /// The class, `[B] i64`.
    Label(Tensor),
    /// The class, by a classifier.
    Classifier(Towards<'a>),
}

impl By<'_> {
    fn sequences(&self) -> i64 {
        match self {
            Self::Given(known) | Self::Label(known) => known.size()[0],
            Self::Classifier(towards) => towards.label_b.size()[0],
        }
    }
}

/// The largest logarithm by which a guided score grows.
const LARGEST: f64 = 80.0;

/// A question to the model: tokens, times, rows.
type Law<'f> = &'f dyn Fn(&Tensor, &Tensor, &Tensor) -> Result<Tensor>;

impl<'a> GuidedView<'a> {
    /// Guided by `w`, which is `g - 1`, of walks in which `given_bl [B, L] bool` is given.
    pub fn new(model: &'a Model, w: f64, given_bl: &Tensor) -> Self {
        let any = given_bl.any().int64_value(&[]) == 1;
        // Where nothing is given, both laws are one.
        let scale = if any { 1.0 + w } else { 1.0 };
        Self::by(model, scale, By::Given(given_bl.shallow_clone()))
    }

    /// Of these classes, `label_b [B] i64`, guided by `g`.
    pub fn labelled(model: &'a Model, scale: f64, label_b: &Tensor) -> Self {
        Self::by(model, scale, By::Label(label_b.shallow_clone()))
    }

    /// Towards these classes of a classifier, `label_b [B] i64`, guided by `g`.
    pub fn classified(
        model: &'a Model,
        (classifier, order): (&'a dyn TellsClasses, ClassifierOrder),
        scale: f64,
        label_b: &Tensor,
    ) -> Self {
        let label_b = label_b.shallow_clone();
        Self::by(model, scale, By::Classifier(Towards { classifier, label_b, order }))
    }

    fn by(model: &'a Model, scale: f64, by: By<'a>) -> Self {
        Self { model, scale, by, turned: RefCell::new(None), untold: Cell::new(false) }
    }

    /// Whether a sampler has asked about some of the sequences without saying which. It walks them one at a time, then.
    pub fn untold(&self) -> bool {
        self.untold.get()
    }

    /// What is known of the `shown` sequences that a call is about: rows of `known`.
    fn of_call(&self, known: &Tensor, shown: i64) -> Result<Tensor> {
        let all = self.by.sequences();
        match self.turned.borrow_mut().take() {
            Some(sequences_n) if sequences_n.size() == [shown] => {
                Ok(known.index_select(0, &sequences_n))
            }
            _ if shown == all => Ok(known.shallow_clone()),
            // Of a single one all are about it.
            _ if all == 1 => Ok(known.repeat_interleave_self_int(shown, 0, shown)),
            _ => {
                self.untold.set(true);
                bail!(
                    Unsupported,
                    "a call over {shown} of {all} sequences: `turn_to` says which they are"
                )
            }
        }
    }

    /// What the model says of tokens with what is known and without it, by a call over both; one law where the scale leaves one.
    fn laws(
        &self,
        xt_bl: &Tensor,
        t_b: &Tensor,
        rows_n: &Tensor,
        law: Law<'_>,
    ) -> Result<(Tensor, Option<Tensor>)> {
        let (n, shown) = (rows_n.size()[0], xt_bl.size()[0]);
        let (with, without) = (self.scale != 0.0, self.scale != 1.0);
        let copies = |of: &Tensor| {
            if with && without { Tensor::cat(&[of, of], 0) } else { of.shallow_clone() }
        };
        let rows = match with && without {
            true => Tensor::cat(&[rows_n, &(rows_n + xt_bl.numel() as i64)], 0),
            false => rows_n.shallow_clone(),
        };
        let laws = match &self.by {
            By::Classifier(_) => return Ok((law(xt_bl, t_b, rows_n)?, None)),
            By::Given(given_bl) => {
                let Some(mask) = self.model.mask_id() else {
                    bail!(Unsupported, "guidance masks what is given, and the process has no mask")
                };
                let given = without.then(|| self.of_call(given_bl, shown)).transpose()?;
                let masked = given.map(|given| xt_bl.masked_fill(&given, mask));
                let parts: Vec<&Tensor> =
                    with.then_some(xt_bl).into_iter().chain(masked.as_ref()).collect();
                law(&Tensor::cat(&parts, 0), &copies(t_b), &rows)?
            }
            By::Label(label_b) => {
                let own = with.then(|| self.of_call(label_b, shown)).transpose()?;
                let none = || {
                    Tensor::full([shown], self.model.facts().classes, (Kind::Int64, xt_bl.device()))
                };
                let parts: Vec<Tensor> = own.into_iter().chain(without.then(none)).collect();
                let labels = Tensor::cat(&parts, 0);
                self.model.labelled(&labels, || law(&copies(xt_bl), &copies(t_b), &rows))?
            }
        };
        Ok(match with && without {
            true => (laws.narrow(0, 0, n), Some(laws.narrow(0, n, n))),
            false => (laws, None),
        })
    }

    /// What the classifier says of the tokens at rows, `[N, V]`, where one guides.
    fn ratios(&self, xt_bl: &Tensor, t_b: &Tensor, rows_n: &Tensor) -> Result<Option<Tensor>> {
        let By::Classifier(towards) = &self.by else { return Ok(None) };
        if self.scale == 0.0 || rows_n.numel() == 0 {
            return Ok(None);
        }
        let label_b = self.of_call(&towards.label_b, xt_bl.size()[0])?;
        let vocab_size = self.model.facts().vocab_size;
        towards.ratios(&Asked { xt_bl, t_b, rows_n, vocab_size }, &label_b).map(Some)
    }

    /// Whether the laws are the model's own.
    fn is_plain(&self) -> bool {
        matches!(self.by, By::Classifier(_)) && self.scale == 0.0
    }

    /// The class of the sequences of a call that reads the network past the laws: where one law is all there is.
    fn label_of(&self, what: &str, shown: i64) -> Result<Tensor> {
        match &self.by {
            By::Label(label_b) if self.scale == 1.0 => self.of_call(label_b, shown),
            By::Label(label_b) if self.scale == 0.0 => {
                Ok(self.of_call(label_b, shown)?.full_like(self.model.facts().classes))
            }
            By::Label(_) => unguided(what, "sampling.guidance_scale"),
            By::Given(_) => unguided(what, "sampling.cfg_scale"),
            By::Classifier(_) => unguided(what, "sampling.classifier_scale"),
        }
    }
}

/// A call that reads the network past the laws.
fn unguided<T>(what: &str, key: &str) -> Result<T> {
    bail!(Unsupported, "this sampler asks for `{what}`, and guidance (`{key}`) changes laws alone")
}

/// Methods that are the model's own.
macro_rules! passed_on {
    ($($method:ident($($name:ident: $type:ty),*) -> $answer:ty;)*) => {$(
        fn $method(&self, $($name: $type),*) -> $answer {
            Lent::$method(self.model, $($name),*)
        }
    )*};
}

impl Lent for GuidedView<'_> {
    passed_on! {
        vocab_size() -> i64;
        mask_id() -> Option<i64>;
        time_conditioning() -> bool;
        device() -> Device;
        sigma(t: &Tensor) -> Result<Tensor>;
        dsigma(t: &Tensor) -> Result<Tensor>;
        time_of_alpha(alpha: &Tensor) -> Result<Tensor>;
        sigma_range() -> Result<(f64, f64)>;
        importance(t: &Tensor) -> Result<Tensor>;
        corrupt(x0_bl: &Tensor, alpha_b: &Tensor) -> Result<Tensor>;
        posterior(xt_n: &Tensor, alpha_t: f64, alpha_s: f64, p_nv: &Tensor) -> Result<Tensor>;
        logits(hidden_nd: &Tensor) -> Result<Tensor>;
        weighted_nll(h: &Tensor, target_n: &Tensor, weight_n: &Tensor, banned: Option<i64>) -> Result<Tensor>;
        progress(done: i64, total: i64, xt_bl: &Tensor) -> Result<()>;
        mixing(alpha_b: &Tensor) -> Result<Mix>;
        arrival(alpha_b: &Tensor) -> Result<Mix>;
        interpolating_nll(rows: &Interpolation) -> Result<Tensor>;
        offers(capability: &String) -> Result<Option<bool>>;
        given() -> Result<Option<Tensor>>;
        step() -> Result<Option<i64>>;
        uniforms(shape: &Vec<i64>) -> Result<Tensor>;
        normals(shape: &Vec<i64>) -> Result<Tensor>;
        token_sigma(tokens_bl: &Tensor, t_b: &Tensor) -> Result<Tensor>;
        token_dsigma(tokens_bl: &Tensor, t_b: &Tensor) -> Result<Tensor>;
        corrupt_tokens(x0_bl: &Tensor, alpha_bl: &Tensor) -> Result<Tensor>;
        rated_nll(rows: &Rated) -> Result<Tensor>;
    }

    /// Models beside the guided one are not guided.
    fn other(&self, name: &str) -> Result<Option<&dyn Lent>> {
        Lent::other(self.model, name)
    }

    fn hidden(&self, xt_bl: &Tensor, sigma_b: &Tensor) -> Result<Tensor> {
        if self.is_plain() {
            return Lent::hidden(self.model, xt_bl, sigma_b);
        }
        let label_b = self.label_of("hidden", xt_bl.size()[0])?;
        self.model.labelled(&label_b, || Lent::hidden(self.model, xt_bl, sigma_b))
    }

    fn extend(&self, _: &Tensor, _: Vec<Tensor>) -> Result<(Tensor, Vec<Tensor>)> {
        bail!(Unsupported, "this sampler asks for `extend`, and guidance changes laws alone")
    }

    fn pass(&self, pass: &Pass) -> Result<Passed> {
        if self.is_plain() {
            return Lent::pass(self.model, pass);
        }
        let label_b = self.label_of("pass", pass.tokens.ids().size()[0])?;
        self.model.labelled(&label_b, || Lent::pass(self.model, pass))
    }

    fn window(&self, window: &Window) -> Result<()> {
        match &self.by {
            By::Given(_) | By::Classifier(_) => Lent::window(self.model, window),
            By::Label(_) => bail!(
                Unsupported,
                "keys and values that are kept (`cache`) are those of texts without a label"
            ),
        }
    }

    fn label(&self) -> Result<Option<Tensor>> {
        match &self.by {
            By::Given(_) | By::Classifier(_) => Lent::label(self.model),
            By::Label(label_b) => Ok(Some(label_b.shallow_clone())),
        }
    }

    fn log_x0(&self, xt_bl: &Tensor, t_b: &Tensor, rows_n: &Tensor) -> Result<Tensor> {
        let law = |x: &Tensor, t: &Tensor, rows: &Tensor| Lent::log_x0(self.model, x, t, rows);
        // Who watches the walk sees the law that the sampler sees.
        if let Some(ratio_nv) = self.ratios(xt_bl, t_b, rows_n)? {
            let law_nv = self.model.laws().apart(|| law(xt_bl, t_b, rows_n))?;
            let law_nv = Guidance::towards(self.scale, law_nv, ratio_nv).clean();
            self.model.note_answer(xt_bl, rows_n, &law_nv);
            return Ok(law_nv);
        }
        let laws = || self.laws(xt_bl, t_b, rows_n, &law);
        let law_nv = match self.model.laws().apart(laws)? {
            (l, Some(u)) => Guidance::away(self.scale, l, u).clean(),
            (law, None) => law,
        };
        self.model.note_answer(xt_bl, rows_n, &law_nv);
        Ok(law_nv)
    }

    /// By labels, of a process with a mask it is the law of clean tokens that is guided: mixing the laws of a step would change how many tokens
    /// open.
    fn guidance(&self, xt_bl: &Tensor, t_b: &Tensor, rows_n: &Tensor) -> Result<Option<Guidance>> {
        if let Some(ratio_nv) = self.ratios(xt_bl, t_b, rows_n)? {
            let law = || Lent::log_x0(self.model, xt_bl, t_b, rows_n);
            let guidance = Guidance::towards(self.scale, self.model.laws().apart(law)?, ratio_nv);
            if self.model.laws().watched() {
                self.model.note_answer(xt_bl, rows_n, &guidance.clean());
            }
            return Ok(Some(guidance));
        }
        if matches!(self.by, By::Given(_) | By::Classifier(_))
            || self.model.mask_id().is_some()
            || self.scale == 0.0
            || self.scale == 1.0
        {
            return Ok(None);
        }
        let law = |x: &Tensor, t: &Tensor, rows: &Tensor| Lent::log_x0(self.model, x, t, rows);
        let laws = || self.laws(xt_bl, t_b, rows_n, &law);
        let (l, u) = self.model.laws().apart(laws)?;
        let guidance = u.map(|u| Guidance::away(self.scale, l, u));
        if let Some(guidance) = guidance.as_ref().filter(|_| self.model.laws().watched()) {
            self.model.note_answer(xt_bl, rows_n, &guidance.clean());
        }
        Ok(guidance)
    }

    fn score(&self, xt_bl: &Tensor, t_b: &Tensor, rows_n: &Tensor) -> Result<Tensor> {
        let law = |x: &Tensor, t: &Tensor, rows: &Tensor| Lent::score(self.model, x, t, rows);
        if let Some(ratio_nv) = self.ratios(xt_bl, t_b, rows_n)? {
            let own_n1 = xt_bl.reshape([-1]).index_select(0, rows_n).unsqueeze(1);
            let change_nv = (&ratio_nv - ratio_nv.gather(1, &own_n1, false)) * self.scale;
            let score_nv = law(xt_bl, t_b, rows_n)?;
            // Finite in float32 too: a token that cannot be there has the score 0, and 0 times infinity is no number.
            let change_nv = change_nv.clamp_max(LARGEST).exp().to_kind(score_nv.kind());
            return Ok(score_nv * change_nv);
        }
        let (l, u) = match self.laws(xt_bl, t_b, rows_n, &law)? {
            (l, Some(u)) => (l, u),
            (law, None) => return Ok(law),
        };
        // The ratio of the token that is there is 1, and no part of what is guided.
        let own_n1 = xt_bl.reshape([-1]).index_select(0, rows_n).unsqueeze(1);
        let [others, u] = [&l, &u].map(|x| x.scatter_value(1, &own_n1, 0.0).to_kind(Kind::Double));
        let sum = others.sum_dim_intlist([-1i64].as_slice(), true, Kind::Double);
        let shares = Guidance::away(self.scale, others.log(), u.log()).clean().exp();
        let guided = (shares * sum).to_kind(l.kind());
        Ok(guided.scatter(1, &own_n1, &l.gather(1, &own_n1, false)))
    }

    fn turn_to(&self, sequences_n: &Tensor) -> Result<()> {
        *self.turned.borrow_mut() = Some(sequences_n.shallow_clone());
        self.model.turn_to(sequences_n)
    }
}
