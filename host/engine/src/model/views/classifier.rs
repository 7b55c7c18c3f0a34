//! What a classifier of noisy texts says of a text in which one token is another one.

use std::fmt;

use maskdiff_config::listed::ClassifierOrder as Order;
use maskdiff_plugin_api::{Noisy, Parameter, Result, bail, capability, ensure, ops};
use tch::{Kind, Tensor};

use crate::model::Model;

/// The name of the classifier among the models beside another one.
pub const NAME: &str = "classifier";

/// What tells classes of noisy texts.
pub trait TellsClasses: fmt::Debug {
    /// `log c(label | xt)`, `[B, C]`, with a gradient with respect to the weights of mixtures.
    fn log_label(&self, noisy: &Noisy) -> Result<Tensor>;

    /// The kind of the weights of mixtures that it reads.
    fn kind(&self) -> Kind {
        Kind::Float
    }
}

impl TellsClasses for Model {
    fn log_label(&self, noisy: &Noisy) -> Result<Tensor> {
        self.method().log_label(self, noisy)
    }

    fn kind(&self) -> Kind {
        let wide = |parameter: &&Parameter| parameter.tensor.kind() == Kind::Double;
        if self.parameters().iter().find(wide).is_some() { Kind::Double } else { Kind::Float }
    }
}

impl Model {
    /// The classifier beside this model.
    pub fn classifier(&self) -> Result<&dyn TellsClasses> {
        match self.others().find(|(name, _)| *name == NAME) {
            Some((_, other)) => Ok(other),
            None => bail!(Unsupported, "there is no classifier beside this model"),
        }
    }

    /// Whether the network reads mixtures of tokens.
    pub fn reads_mixtures(&self) -> bool {
        self.offered.contains(capability::MIXTURE)
    }
}

/// A classifier, the classes to go to, and how it is asked. Shape letters: `B` texts, `N` rows, `V` vocabulary.
#[derive(Debug)]
pub(crate) struct Towards<'a> {
    pub(crate) classifier: &'a dyn TellsClasses,
    /// `[B] i64`.
    pub(crate) label_b: Tensor,
    pub(crate) order: Order,
}

/// Tokens that the classifier reads at once, where it is asked about many texts.
const AT_ONCE: i64 = 1 << 16;

/// Weights of mixtures that it reads at once, where one text has fewer; the gradient has as many.
const WEIGHTS_AT_ONCE: i64 = 1 << 26;

/// Texts of a call: tokens `[B, L] i64`, times `[B] f64`, flat positions `[N] i64`, and the size of the vocabulary.
pub(crate) struct Asked<'t> {
    pub(crate) xt_bl: &'t Tensor,
    pub(crate) t_b: &'t Tensor,
    pub(crate) rows_n: &'t Tensor,
    pub(crate) vocab_size: i64,
}

impl Towards<'_> {
    /// `log c(label | xt with token v at the row)`, `[N, V]`, of texts whose classes are `label_b [B]`.
    ///
    /// # Equation
    /// To first order it is `log c(label | xt) + d_v - d_z` with the gradient `d` with respect to the one-hot token of the row, which is z.
    ///
    /// # Cost
    /// `exact`: the classifier reads `N V` texts, in parts of bounded memory. `first`: it reads B texts, forward and backward.
    pub(crate) fn ratios(&self, asked: &Asked<'_>, label_b: &Tensor) -> Result<Tensor> {
        let length = asked.xt_bl.size()[1];
        let sequence_n = asked.rows_n.floor_divide_scalar(length);
        match self.order {
            Order::Exact => self.exact(asked, label_b, &sequence_n),
            Order::First => self.first(asked, label_b, &sequence_n),
        }
    }

    /// `log c` of the class of each text, `[B]`.
    fn of_class(&self, noisy: &Noisy, label_b: &Tensor) -> Result<Tensor> {
        let log_c_bc = self.classifier.log_label(noisy)?;
        Ok(log_c_bc.gather(1, &label_b.unsqueeze(1), false).squeeze_dim(1))
    }

    fn exact(&self, asked: &Asked<'_>, label_b: &Tensor, sequence_n: &Tensor) -> Result<Tensor> {
        let Asked { xt_bl, t_b, rows_n, vocab_size: v } = *asked;
        let (length, all) = (xt_bl.size()[1], rows_n.size()[0] * v);
        let place_n = rows_n.remainder(length);
        let mut parts = Vec::new();
        let at_once = (AT_ONCE / length).max(1);
        for first in (0..all).step_by(at_once as usize) {
            let count = at_once.min(all - first);
            let which_m = Tensor::arange_start(first, first + count, (Kind::Int64, xt_bl.device()));
            let row_m = which_m.floor_divide_scalar(v);
            let of = |t: &Tensor| t.index_select(0, &row_m);
            let sequence_m = of(sequence_n);
            let text_ml = xt_bl.index_select(0, &sequence_m).scatter(
                1,
                &of(&place_n).unsqueeze(1),
                &which_m.remainder(v).unsqueeze(1),
            );
            let noisy = Noisy::new(&text_ml, &t_b.index_select(0, &sequence_m));
            parts.push(self.of_class(&noisy, &label_b.index_select(0, &sequence_m))?);
        }
        ensure!(!parts.is_empty(), Shape, "a law of no rows");
        Ok(Tensor::cat(&parts, 0).view([-1, v]))
    }

    fn first(&self, asked: &Asked<'_>, label_b: &Tensor, sequence_n: &Tensor) -> Result<Tensor> {
        let Asked { xt_bl, t_b, rows_n, vocab_size } = *asked;
        let (texts, length) = xt_bl.size2()?;
        let at_once = (WEIGHTS_AT_ONCE / (length * vocab_size)).max(1);
        let mut parts = Vec::new();
        let mut places = Vec::new();
        for first in (0..texts).step_by(at_once as usize) {
            let count = at_once.min(texts - first);
            let part = |t: &Tensor| t.narrow(0, first, count);
            let own = sequence_n.ge(first).logical_and(&sequence_n.lt(first + count));
            // sync: which rows are of these texts is data.
            let place_m = ops::rows_of(&own);
            if place_m.numel() == 0 {
                continue;
            }
            let row_m = rows_n.index_select(0, &place_m) - first * length;
            let asked = Asked { xt_bl: &part(xt_bl), t_b: &part(t_b), rows_n: &row_m, vocab_size };
            parts.push(self.first_of(&asked, &part(label_b))?);
            places.push(place_m);
        }
        ensure!(!parts.is_empty(), Shape, "a law of no rows");
        let (all_nv, place_n) = (Tensor::cat(&parts, 0), Tensor::cat(&places, 0));
        Ok(all_nv.empty_like().index_copy(0, &place_n, &all_nv))
    }

    /// The same of some texts by one call.
    fn first_of(&self, asked: &Asked<'_>, label_b: &Tensor) -> Result<Tensor> {
        let Asked { xt_bl, t_b, rows_n, vocab_size } = *asked;
        // Walks run without gradients.
        let (log_c_b, slope_blv) = tch::with_grad(|| {
            let kind = self.classifier.kind();
            let one_hot_blv = xt_bl.one_hot(vocab_size).to_kind(kind).set_requires_grad(true);
            let log_c_b = self.of_class(&Noisy::weighted(&one_hot_blv, t_b), label_b)?;
            // Each text has its own weights: the gradient of the sum is that of each.
            let sum = log_c_b.sum(log_c_b.kind());
            let slope = Tensor::f_run_backward(&[sum], &[&one_hot_blv], false, false)?;
            Ok::<_, maskdiff_plugin_api::PluginError>((log_c_b.detach(), slope[0].detach()))
        })?;
        let slope_nv = ops::take_rows(&slope_blv, rows_n);
        let own_n1 = slope_nv.gather(1, &ops::take_rows(xt_bl, rows_n).unsqueeze(1), false);
        let sequence_n = rows_n.floor_divide_scalar(xt_bl.size()[1]);
        let log_c_n1 = log_c_b.index_select(0, &sequence_n).unsqueeze(1);
        Ok(log_c_n1 + slope_nv - own_n1)
    }
}
