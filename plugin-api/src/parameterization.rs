//! Parameterizations: what the network's output means, and the loss that teaches it.

use tch::Tensor;

use crate::abi::calls::losses_fit;
use crate::component::{Component, capability};
use crate::{Batch, Denoiser, Noisy, Objective, Parameters, Result, Rounds, bail};

/// A parameterization. Shape letters: `B` batch, `L` length, `V` vocabulary with the mask, `N` rows.
///
/// The network, process and schedule are reached through the [`Denoiser`]. Options are the keys at the top
/// of the configuration and in `training` that the host does not own.
pub trait Parameterization: Component {
    /// How t is drawn: uniform numbers `u_b [B] f64` in [0, 1), stratified by the host → times `[B] f64`.
    fn draw_t(&self, model: &Denoiser, u_b: &Tensor) -> Result<Tensor>;

    /// The training loss: `x0_bl [B, L] i64`, `t_b [B] f64` → nats per token `[B, L]`, with its gradient.
    ///
    /// A method that does not score the first tokens (autoregression needs one to start) returns `[B, L - k]`: the
    /// losses of the last `L - k` positions.
    fn loss(&self, model: &Denoiser, x0_bl: &Tensor, t_b: &Tensor) -> Result<Tensor>;

    /// What a training step minimizes and what it reports: by default the loss for both, where the loss is a bound
    /// ([`capability::BOUND`]), and the loss alone where it is none.
    ///
    /// Training and evaluation call this, never [`Parameterization::loss`] itself. Training minimizes `loss_bl`. Logs and evaluations
    /// show `nats_bl`; without it they show the loss as such, and no perplexity.
    fn objective(&self, model: &Denoiser, batch: &Batch) -> Result<Objective> {
        let loss_bl = self.loss(model, &batch.x0_bl, &batch.t_b)?;
        losses_fit("`loss` returned", &batch.x0_bl, &loss_bl)?;
        let nats_bl = Self::PROVIDES.contains(&capability::BOUND).then(|| loss_bl.detach());
        Ok(Objective { nats_bl, ..Objective::new(loss_bl) })
    }

    /// `log p(x0 | xt)` at flat positions `rows_n [N] i64` of `xt_bl [B, L]` → `[N, V]`, at times `t_b [B] f64`.
    ///
    /// Where noise leaves no trace (a process without a mask), it is the law of each token given the *other* positions.
    fn log_x0(
        &self,
        _model: &Denoiser,
        _xt_bl: &Tensor,
        _t_b: &Tensor,
        _rows_n: &Tensor,
    ) -> Result<Tensor> {
        bail!(Unsupported, "parameterization `{}` gives no law of x0", Self::NAME)
    }

    /// The concrete score `p_t(y) / p_t(xt)` at flat positions `rows_n [N] i64` → `[N, V]`, ≥ 0.
    fn score(
        &self,
        _model: &Denoiser,
        _xt_bl: &Tensor,
        _t_b: &Tensor,
        _rows_n: &Tensor,
    ) -> Result<Tensor> {
        bail!(Unsupported, "parameterization `{}` gives no score", Self::NAME)
    }

    /// `log c(label | xt)` of noisy texts → `[B, C]`, normalised over the classes, with a gradient with respect to the weights of mixtures:
    /// of a method that offers [`capability::CLASSIFIES`].
    fn log_label(&self, _model: &Denoiser, _noisy: &Noisy) -> Result<Tensor> {
        bail!(Unsupported, "parameterization `{}` tells no classes of texts", Self::NAME)
    }

    /// Refuses what the method cannot do with the process, schedule and network around it, and names the key to change.
    ///
    /// Training asks once, before the run has a folder. By default everything fits that [`Component::NEEDS`] lets through.
    fn fits(&self, _model: &Denoiser) -> Result<()> {
        Ok(())
    }

    /// What of the parameterization is learned beside the network, where something is: trained, averaged and saved under
    /// `parameterization.NAME`, as a network's parameters are.
    fn parameters(&self) -> Option<&Parameters> {
        None
    }

    /// Whether the host puts the weights that are learned into a frozen model ([`Denoiser::other`]) every so many steps. By default a
    /// frozen model stays as its checkpoint has it.
    fn rounds(&self) -> Option<Rounds> {
        None
    }
}
