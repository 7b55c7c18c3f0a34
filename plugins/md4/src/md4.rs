//! `md4`: the masked bound in continuous or discrete time, with the term of what the schedule loses at its start.
//!
//! Shape letters: `B` batch, `L` length, `V` vocabulary including the mask, `N` rows.

use maskdiff_plugin_api::prelude::*;

use crate::law::{Told, free, keep_given, log_x0, whole};

register!(parameterization Md4);

/// Options of `md4`, at the top of the configuration and in `training`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Config {
    /// Steps of the discrete-time bound; 0 is continuous time.
    #[serde(rename = "T")]
    #[schemars(range(min = 0, max = 1_000_000_000))]
    pub(crate) t_steps: i64,
    /// What the network receives of the noise level: `time`, or `sigma`.
    pub(crate) network_input: Told,
}

impl Default for Config {
    fn default() -> Self {
        Self { t_steps: 0, network_input: Told::Time }
    }
}

/// Masked diffusion with any schedule.
///
/// # Equation
/// `loss = w sum over masked of -log p(x0 | xt) + (1 - alpha(0)) log(V - 1)`, with `w = -alpha'/(1 - alpha)` in continuous time and
/// `T (alpha_s - alpha_t)/(1 - alpha_t)` between the T steps s < t.
///
/// # Source
/// Shi et al. 2024, arXiv:2406.04329, equations 4 and 5 and its code. Differences: times are spread over (0, 1) by the host; where a
/// weight is infinite (t = 0) t is 1e-6.
pub(crate) struct Md4(Config);

/// The smallest time.
const FIRST: f64 = 1e-6;

impl Component for Md4 {
    const NAME: &'static str = "md4";
    const ABOUT: &'static str = "the masked bound with any schedule (MD4)";
    const PROVIDES: &'static [&'static str] =
        &[capability::LOG_X0, capability::CARRY_OVER, capability::BOUND];
    const NEEDS: &'static [&'static str] = &[capability::MASK];
    type Config = Config;

    fn new(config: Config, context: &Context) -> Result<Self> {
        ensure!(config.t_steps >= 0, Config, "`T` must not be negative, got {}", config.t_steps);
        ensure!(context.mask_id.is_some(), Config, "`md4` needs a mask token");
        Ok(Self(config))
    }
}

impl Md4 {
    /// What a nat weighs, `[B] f64`.
    fn weight(&self, model: &Denoiser, t_b: &Tensor, sigma_b: &Tensor) -> Result<Tensor> {
        let steps = self.0.t_steps as f64;
        if self.0.t_steps == 0 {
            return Ok(model.dsigma(t_b)? / sigma_b.expm1());
        }
        let earlier_b = model.sigma(&(t_b - 1.0 / steps).clamp_min(0.0))?.neg().exp();
        let alpha_b = sigma_b.neg().exp();
        Ok((earlier_b - &alpha_b) * steps / (1.0 - alpha_b))
    }

    fn nats(&self, model: &Denoiser, batch: &Batch) -> Result<Tensor> {
        let (x0_bl, t_b) = (&batch.x0_bl, &batch.t_b);
        let (_b, l) = check_shape!(x0_bl, [B, L], Int64);
        let mask = model.mask_id()?;
        let sigma_b = model.sigma(t_b)?;
        let xt_bl = keep_given(batch, &model.corrupt(x0_bl, &sigma_b.neg().exp())?);
        let rows_n = ops::rows_of(&xt_bl.eq(mask));
        let hidden_bld = model.hidden(&xt_bl, &self.0.network_input.at(model, t_b)?)?;
        let hidden_nd = ops::take_rows(&hidden_bld, &rows_n);
        let weight_b = self.weight(model, t_b, &sigma_b)?;
        let weight_n = ops::of_sequence(&weight_b, &rows_n, l);
        let target_n = ops::take_rows(x0_bl, &rows_n);
        let nats_n = model.weighted_nll(&hidden_nd, &target_n, &weight_n, Some(mask))?;
        let lost = 1.0 - model.alpha(0.0)?;
        let first = free(batch, nats_n.kind()) * (lost * ((model.vocab_size() - 1) as f64).ln());
        Ok(whole(x0_bl, &rows_n, &nats_n) + first)
    }
}

impl Parameterization for Md4 {
    fn draw_t(&self, _: &Denoiser, u_b: &Tensor) -> Result<Tensor> {
        let steps = self.0.t_steps as f64;
        Ok(match self.0.t_steps {
            0 => u_b.clamp_min(FIRST),
            _ => ((u_b * steps).floor() + 1.0).clamp_max(steps) / steps,
        })
    }

    fn loss(&self, model: &Denoiser, x0_bl: &Tensor, t_b: &Tensor) -> Result<Tensor> {
        self.nats(model, &Batch::new(x0_bl, t_b))
    }

    fn objective(&self, model: &Denoiser, batch: &Batch) -> Result<Objective> {
        let nats_bl = self.nats(model, batch)?;
        Ok(Objective::new(nats_bl.shallow_clone()).nats(nats_bl.detach()))
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
    use maskdiff_plugin_api::testkit::{Toy, parameterization_contract};
    use tch::{Device, Kind};

    #[test]
    fn contract() {
        parameterization_contract::<Md4>();
    }

    /// Over the toy's joint, averaged over times: continuous time gives the entropy, 16 steps more, and more steps less of it.
    #[test]
    fn the_bound_of_an_exact_model_falls_to_the_entropy() {
        tch::manual_seed(5);
        let toy = Toy::new(3, 3);
        let entropy: f64 = toy.joint().iter().map(|p| -p * p.ln()).sum();
        let mean = |t_steps: i64| {
            let config = Config { t_steps, network_input: Told::Sigma };
            let method = Md4::new(config, &toy.context()).unwrap();
            let n = 60_000;
            let law = Tensor::from_slice(toy.joint()).log().unsqueeze(0);
            let state = ops::categorical(&law.expand([n, -1], false));
            let digit = |d: i64| state.floor_divide_scalar(d).remainder(3);
            let x0 = Tensor::stack(&[digit(9), digit(3), digit(1)], 1);
            let model = Denoiser::new(&toy);
            let u = Tensor::arange(n, (Kind::Double, Device::Cpu)) / n as f64;
            let t = method.draw_t(&model, &u).unwrap();
            let loss = method.loss(&model, &x0, &t).unwrap();
            loss.sum_dim_intlist([1i64].as_slice(), false, Kind::Double)
                .mean(Kind::Double)
                .double_value(&[])
        };
        let (few, many, all) = (mean(4), mean(64), mean(0));
        // The weights at small times make the mean noisy: its deviation is 0.026.
        assert!((all - entropy).abs() < 0.13, "{all}, entropy {entropy}");
        assert!(few > entropy - 0.05 && many > entropy - 0.13, "{few}, {many}, {entropy}");
    }
}
