//! `genmd4`: the bound of a schedule in which tokens differ, with the gradient that learns the schedule.
//!
//! Shape letters: `B` batch, `L` length, `V` vocabulary including the mask, `N` rows.

use maskdiff_plugin_api::prelude::*;
use tch::Kind;

use crate::law::{Told, free, keep_given, log_x0, whole};

register!(parameterization GenMd4);

/// Options of `genmd4`, at the top of the configuration and in `training`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Config {
    /// Must be 0: the bound is one of continuous time.
    #[serde(rename = "T")]
    #[schemars(range(min = 0, max = 0))]
    pub(crate) t_steps: i64,
    /// Smallest time in training and evaluation, in (0, 1). What is masked before it is scored by the schedule alone.
    #[schemars(extend("exclusiveMinimum" = 0.0, "exclusiveMaximum" = 1.0))]
    pub(crate) sampling_eps: f64,
    /// What the network receives of the noise level: `sigma` of the mean power, or `time`.
    pub(crate) network_input: Told,
}

impl Default for Config {
    fn default() -> Self {
        Self { t_steps: 0, sampling_eps: 1e-3, network_input: Told::Sigma }
    }
}

/// Masked diffusion in which each token has a schedule of its own.
///
/// # Equation
/// With rates `r_v = -alpha_v'/(1 - alpha_v)` a masked position of clean token x has the loss `<r, p> - r_x (log p_x + 1)`. Two
/// corruptions of a sequence at one time have the losses l1 and l2, and training minimizes
/// `(l1 + l2)/2 + sg(l1 - l2)/2 (log q1 - log q2) + recon`, whose gradient has the right mean for the network and for the schedule.
/// `(l1 + l2)/2 + recon` is reported. `recon = -m_x (log m_x - log sum_v m_v)` with `m = 1 - alpha` at the smallest time: what is masked
/// there is drawn by the share that each token has of the masks.
///
/// # Source
/// Shi et al. 2024, arXiv:2406.04329, section 5 and its code. Differences: any schedule with levels of tokens will do; where a token does
/// not count, its loss is in no difference of losses.
///
/// # Cost
/// Two passes of the network. No `[B, L, V]` tensor where the head is linear: see [`Denoiser::rated_nll`].
pub(crate) struct GenMd4(Config);

impl Component for GenMd4 {
    const NAME: &'static str = "genmd4";
    const ABOUT: &'static str =
        "the masked bound where tokens differ; learns the schedule (GenMD4)";
    const PROVIDES: &'static [&'static str] =
        &[capability::LOG_X0, capability::CARRY_OVER, capability::BOUND, capability::TOKEN_NOISE];
    const NEEDS: &'static [&'static str] = &[capability::MASK];
    type Config = Config;

    fn new(config: Config, context: &Context) -> Result<Self> {
        let eps = config.sampling_eps;
        ensure!(
            config.t_steps == 0,
            Config,
            "`T` must be 0, got {}: `genmd4` is a bound in continuous time",
            config.t_steps
        );
        ensure!(
            0.0 < eps && eps < 1.0,
            Config,
            "`training.sampling_eps` must lie in (0, 1), got {eps}"
        );
        ensure!(context.mask_id.is_some(), Config, "`genmd4` needs a mask token");
        Ok(Self(config))
    }
}

/// Two corruptions of each sequence.
struct Pair {
    /// Loss of each position, `[2, B, L]`.
    loss_2bl: Tensor,
    /// Log-probability of each corruption, `[2, B]`.
    log_q_2b: Tensor,
}

impl GenMd4 {
    /// The rate of each token of the vocabulary at each time, `[B, V] f64`.
    fn rates(model: &Denoiser, t_b: &Tensor) -> Result<Tensor> {
        let options = (Kind::Int64, t_b.device());
        let all_bv = Tensor::arange(model.vocab_size(), options)
            .unsqueeze(0)
            .expand([t_b.size()[0], model.vocab_size()], false);
        Ok(model.token_dsigma(&all_bv, t_b)? / model.token_sigma(&all_bv, t_b)?.expm1())
    }

    fn pair(&self, model: &Denoiser, batch: &Batch) -> Result<Pair> {
        let (x0_bl, t_b) = (&batch.x0_bl, &batch.t_b);
        let (b, l) = check_shape!(x0_bl, [B, L], Int64);
        let mask = model.mask_id()?;
        let sigma_bl = model.token_sigma(x0_bl, t_b)?;
        let alpha_bl = sigma_bl.detach().neg().exp();
        let draw = || -> Result<Tensor> {
            Ok(keep_given(batch, &model.corrupt_tokens(x0_bl, &alpha_bl)?))
        };
        let two = [draw()?, draw()?];
        let xt_bl = Tensor::cat(&two, 0);
        let input_b = self.0.network_input.at(model, t_b)?.repeat([2]);
        let hidden_bld = model.hidden(&xt_bl, &input_b)?;
        let rows_n = ops::rows_of(&xt_bl.eq(mask));
        let sequence_n = rows_n.floor_divide_scalar(l).remainder(b);
        let target_n = ops::take_rows(&x0_bl.repeat([2, 1]), &rows_n);
        let rows = Rated::new(
            &ops::take_rows(&hidden_bld, &rows_n),
            &target_n,
            &sequence_n,
            &Self::rates(model, t_b)?,
        );
        let loss_n = model.rated_nll(&rows.banned(Some(mask)))?;
        let log_masked_bl = (-sigma_bl.neg().expm1()).log();
        let free_bl = free(batch, Kind::Double);
        let log_q = |xt_bl: &Tensor| {
            let log_q_bl = log_masked_bl.where_self(&xt_bl.eq(mask), &-&sigma_bl) * &free_bl;
            log_q_bl.sum_dim_intlist([1i64].as_slice(), false, Kind::Double)
        };
        Ok(Pair {
            loss_2bl: whole(&xt_bl, &rows_n, &loss_n).view([2, b, l]),
            log_q_2b: Tensor::stack(&two.each_ref().map(log_q), 0),
        })
    }

    /// What is masked at the smallest time, `[B, L] f64`.
    fn first(&self, model: &Denoiser, batch: &Batch) -> Result<Tensor> {
        let (x0_bl, mask) = (&batch.x0_bl, model.mask_id()?);
        let start_b = model.times(x0_bl.size()[0], self.0.sampling_eps);
        let log_masked = |tokens: &Tensor, t_b: &Tensor| -> Result<Tensor> {
            Ok((-model.token_sigma(tokens, t_b)?.neg().expm1()).log())
        };
        let tokens_v = Tensor::arange(model.vocab_size(), (Kind::Int64, x0_bl.device()));
        let tokens_v = tokens_v.index_select(0, &ops::rows_of(&tokens_v.not_equal(mask)));
        let all = log_masked(&tokens_v.unsqueeze(0), &model.times(1, self.0.sampling_eps))?;
        let own_bl = log_masked(x0_bl, &start_b)?;
        let recon_bl = own_bl.exp() * (all.logsumexp([1i64].as_slice(), true) - &own_bl);
        Ok(recon_bl * free(batch, Kind::Double))
    }

    /// The objective and what it reports.
    fn learn(&self, model: &Denoiser, batch: &Batch) -> Result<(Tensor, Tensor)> {
        let Pair { loss_2bl, log_q_2b } = self.pair(model, batch)?;
        let kind = loss_2bl.kind();
        let first_bl = self.first(model, batch)?.to_kind(kind);
        let bound_bl = loss_2bl.mean_dim([0i64].as_slice(), false, kind) + first_bl;
        // Each sequence has one term, in equal parts at the tokens that count, for only those are summed.
        let counted_bl = match &batch.counted_bl {
            Some(counted_bl) => counted_bl.to_kind(Kind::Double),
            None => Tensor::ones(batch.x0_bl.size(), (Kind::Double, batch.x0_bl.device())),
        };
        let sum = |t: &Tensor| t.sum_dim_intlist([-1i64].as_slice(), false, Kind::Double);
        let loss_2b = sum(&(loss_2bl.detach().to_kind(Kind::Double) * &counted_bl));
        let difference = |t: &Tensor| t.get(0) - t.get(1);
        let term_b = difference(&loss_2b) * difference(&log_q_2b) * 0.5;
        let share_bl = &counted_bl / sum(&counted_bl).clamp_min(1.0).unsqueeze(1);
        let term_bl = (term_b.unsqueeze(1) * share_bl).to_kind(kind);
        let nats_bl = bound_bl.detach();
        Ok((bound_bl + term_bl, nats_bl))
    }
}

impl Parameterization for GenMd4 {
    fn draw_t(&self, _: &Denoiser, u_b: &Tensor) -> Result<Tensor> {
        Ok(u_b * (1.0 - self.0.sampling_eps) + self.0.sampling_eps)
    }

    fn loss(&self, model: &Denoiser, x0_bl: &Tensor, t_b: &Tensor) -> Result<Tensor> {
        Ok(self.learn(model, &Batch::new(x0_bl, t_b))?.0)
    }

    fn objective(&self, model: &Denoiser, batch: &Batch) -> Result<Objective> {
        let (loss_bl, nats_bl) = self.learn(model, batch)?;
        Ok(Objective::new(loss_bl).nats(nats_bl))
    }

    fn log_x0(
        &self,
        model: &Denoiser,
        xt_bl: &Tensor,
        t_b: &Tensor,
        rows_n: &Tensor,
    ) -> Result<Tensor> {
        log_x0(model, self.0.network_input, xt_bl, t_b, rows_n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use maskdiff_plugin_api::testkit::parameterization_contract;

    #[test]
    fn contract() {
        parameterization_contract::<GenMd4>();
    }
}
