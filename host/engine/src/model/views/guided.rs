//! The model as a sampler sees it whose laws are guided: pushed away from what the model says without knowing what is given.

use std::cell::{Cell, RefCell};

use maskdiff_plugin_api::{
    Interpolation, Mix, Model as Lent, Pass, Passed, Rated, Result, Window, bail, ensure,
};
use tch::{Device, Kind, Tensor};

use crate::model::Model;

/// A model with guided laws. Shape letters: `B` sequences of a walk, `N` rows, `V` vocabulary including the mask.
///
/// # Equation
/// `log p = normalised (1 + w) log p(x0 | xt) - w log p(x0 | xt with every given token masked)`; a score is guided alike, and keeps the sum that
/// it has without.
///
/// # Source
/// Nie et al. 2025, arXiv:2410.18514 (unsupervised guidance). Differences: published programs guide logits; of laws that come from them it is
/// the same.
///
/// # Cost
/// Twice the tokens in each call; none more where nothing is given.
#[derive(Debug)]
pub struct GuidedView<'a> {
    model: &'a Model,
    scale: f64,
    /// `[B, L] bool`.
    given_bl: Tensor,
    /// Whether any token is given.
    any: bool,
    /// The sequences that the next call is about.
    turned: RefCell<Option<Tensor>>,
    /// Whether a call came about other sequences than it could be told.
    untold: Cell<bool>,
}

/// What stands for a probability of zero in the law that is left behind: its logarithm would leave no numbers.
const NEVER: f64 = -1e4;

impl<'a> GuidedView<'a> {
    /// Guided by `scale`, of walks in which `given_bl [B, L] bool` is given.
    pub fn new(model: &'a Model, scale: f64, given_bl: &Tensor) -> Self {
        let any = given_bl.any().int64_value(&[]) == 1;
        let (turned, untold) = (RefCell::new(None), Cell::new(false));
        Self { model, scale, given_bl: given_bl.shallow_clone(), any, turned, untold }
    }

    /// Whether a sampler has asked about some of the sequences without saying which. It walks them one at a time, then.
    pub fn untold(&self) -> bool {
        self.untold.get()
    }

    /// What is given of the sequences `[n, L]` that a call is about.
    fn given_of(&self, x_nl: &Tensor) -> Result<Tensor> {
        let (shown, all) = (x_nl.size()[0], self.given_bl.size()[0]);
        ensure!(
            x_nl.size()[1] == self.given_bl.size()[1],
            Shape,
            "a guided call over {} tokens of sequences of {}",
            x_nl.size()[1],
            self.given_bl.size()[1]
        );
        match self.turned.borrow_mut().take() {
            Some(sequences_n) if sequences_n.size() == [shown] => {
                Ok(self.given_bl.index_select(0, &sequences_n))
            }
            _ if shown == all => Ok(self.given_bl.shallow_clone()),
            // Of a single one all are about it.
            _ if all == 1 => Ok(self.given_bl.expand([shown, -1], false)),
            _ => {
                self.untold.set(true);
                bail!(
                    Unsupported,
                    "a call over {shown} of {all} sequences: `turn_to` says which they are"
                )
            }
        }
    }

    /// What the model says of tokens with and without what is given, by a call over both.
    fn both(
        &self,
        xt_bl: &Tensor,
        t_b: &Tensor,
        rows_n: &Tensor,
        law: impl Fn(&Tensor, &Tensor, &Tensor) -> Result<Tensor>,
    ) -> Result<[Tensor; 2]> {
        let given = self.given_of(xt_bl)?;
        let Some(mask) = self.model.mask_id() else {
            bail!(Unsupported, "guidance masks what is given, and the process has no mask")
        };
        let without = xt_bl.masked_fill(&given, mask);
        let rows_2n = Tensor::cat(&[rows_n, &(rows_n + xt_bl.numel() as i64)], 0);
        let both =
            law(&Tensor::cat(&[xt_bl, &without], 0), &Tensor::cat(&[t_b, t_b], 0), &rows_2n)?;
        let n = rows_n.size()[0];
        Ok([both.narrow(0, 0, n), both.narrow(0, n, n)])
    }

    /// `(1 + w) l - w u`; what is never there stays so.
    fn pushed(&self, l: &Tensor, u: &Tensor) -> Tensor {
        let pushed = l * (1.0 + self.scale) - u.clamp_min(NEVER) * self.scale;
        pushed.masked_fill(&l.eq(f64::NEG_INFINITY), f64::NEG_INFINITY)
    }
}

/// A call that reads the network past the laws.
fn unguided<T>(what: &str) -> Result<T> {
    bail!(
        Unsupported,
        "this sampler asks for `{what}`, and guidance (`sampling.cfg_scale`) changes laws alone"
    )
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
        label() -> Result<Option<Tensor>>;
        step() -> Result<Option<i64>>;
        uniforms(shape: &Vec<i64>) -> Result<Tensor>;
        normals(shape: &Vec<i64>) -> Result<Tensor>;
        window(window: &Window) -> Result<()>;
        token_sigma(tokens_bl: &Tensor, t_b: &Tensor) -> Result<Tensor>;
        token_dsigma(tokens_bl: &Tensor, t_b: &Tensor) -> Result<Tensor>;
        corrupt_tokens(x0_bl: &Tensor, alpha_bl: &Tensor) -> Result<Tensor>;
        rated_nll(rows: &Rated) -> Result<Tensor>;
    }

    fn hidden(&self, _: &Tensor, _: &Tensor) -> Result<Tensor> {
        unguided("hidden")
    }

    fn extend(&self, _: &Tensor, _: Vec<Tensor>) -> Result<(Tensor, Vec<Tensor>)> {
        unguided("extend")
    }

    fn pass(&self, _: &Pass) -> Result<Passed> {
        unguided("pass")
    }

    fn log_x0(&self, xt_bl: &Tensor, t_b: &Tensor, rows_n: &Tensor) -> Result<Tensor> {
        if !self.any {
            return Lent::log_x0(self.model, xt_bl, t_b, rows_n);
        }
        let law = |x: &Tensor, t: &Tensor, rows: &Tensor| Lent::log_x0(self.model, x, t, rows);
        let [l, u] = self.both(xt_bl, t_b, rows_n, law)?;
        Ok(self.pushed(&l, &u).log_softmax(-1, l.kind()))
    }

    fn score(&self, xt_bl: &Tensor, t_b: &Tensor, rows_n: &Tensor) -> Result<Tensor> {
        if !self.any {
            return Lent::score(self.model, xt_bl, t_b, rows_n);
        }
        let law = |x: &Tensor, t: &Tensor, rows: &Tensor| Lent::score(self.model, x, t, rows);
        let [l, u] = self.both(xt_bl, t_b, rows_n, law)?;
        // The ratio of the token that is there is 1, and no part of what is guided.
        let own_n1 = xt_bl.reshape([-1]).index_select(0, rows_n).unsqueeze(1);
        let [others, u] = [&l, &u].map(|x| x.scatter_value(1, &own_n1, 0.0));
        let sum = others.sum_dim_intlist([-1i64].as_slice(), true, Kind::Double);
        let shares = self.pushed(&others.log(), &u.log()).softmax(-1, Kind::Double);
        let guided = (shares * sum).to_kind(l.kind());
        Ok(guided.scatter(1, &own_n1, &l.gather(1, &own_n1, false)))
    }

    fn turn_to(&self, sequences_n: &Tensor) -> Result<()> {
        *self.turned.borrow_mut() = Some(sequences_n.shallow_clone());
        Ok(())
    }
}
