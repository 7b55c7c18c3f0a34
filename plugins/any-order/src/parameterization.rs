//! `any_order`: the loss of masked diffusion and of filling in from left to right, over tokens in any order; the likelihood of an order.
//!
//! Shape letters: `B` batch, `L` length, `V` vocabulary including the mask, `N` rows.

use maskdiff_plugin_api::prelude::*;
use tch::Kind;

use crate::ANY_ORDER;
use crate::order::{left_to_right, masked_nats, ordered_nats, sorted, states};

register!(parameterization AnyOrder);

/// Options of `any_order`, at the top of the configuration and in `training`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct Config {
    /// The share of tokens that diffusion reveals, in [0, 1]. The others are then filled in from left to right: 1 is diffusion alone, 0 is
    /// autoregression.
    #[schemars(range(min = 0.0, max = 1.0))]
    alpha_0: f64,
    /// The share of a batch that trains diffusion, in (0, 1); the others train the filling in. Counts for `alpha_0` between 0 and 1.
    #[schemars(extend("exclusiveMinimum" = 0.0, "exclusiveMaximum" = 1.0))]
    batch_split: f64,
    /// Train with the weight 1 at every time, which varies less. Needs `alpha_0 = 1`. What is reported keeps the weight of the bound.
    low_variance: bool,
    /// Orders that an evaluation draws for each sequence. It measures `-log mean over the orders of p(x | order)`, a bound that falls with
    /// their number.
    #[schemars(range(min = 1, max = 65536))]
    orders: i64,
    /// Smallest time in training, in (0, 1).
    #[schemars(extend("exclusiveMinimum" = 0.0, "exclusiveMaximum" = 1.0))]
    sampling_eps: f64,
}

impl Default for Config {
    fn default() -> Self {
        Self { alpha_0: 1.0, batch_split: 0.5, low_variance: false, orders: 1, sampling_eps: 1e-3 }
    }
}

/// # Equation
/// With `a = alpha_0 alpha(t)`, what a mask sees written before the bar, and `z0` masked with probability `1 - alpha_0`:
/// `loss = E_t [ -a' / (1 - a) sum over masked l of -log p(x_l | zt) ] + E_z0 [ sum over masked l of -log p(x_l | z0, x_<l) ]`.
/// Training draws both terms, an evaluation `-log mean_o prod_i p(x_{o_i} | x_{o_<i})` over random orders o of the same law.
///
/// # Source
/// arXiv:2506.01928, variant B. Differences: how many sequences of a batch train which term, and which, is drawn, so that the loss has no
/// bias for any batch, also where their times are stratified; an evaluation measures the likelihood of orders, of which training's first term is a bound where the masks before it tell a mask
/// nothing; the law for other samplers reads the clean tokens from left to right.
struct AnyOrder {
    config: Config,
    mask: i64,
}

impl Component for AnyOrder {
    const NAME: &'static str = "any_order";
    const ABOUT: &'static str =
        "masked diffusion whose tokens attend causally in any order: exact caching (Eso-LM)";
    const PROVIDES: &'static [&'static str] =
        &[ANY_ORDER, capability::LOG_X0, capability::CARRY_OVER, capability::BOUND];
    const NEEDS: &'static [&'static str] =
        &[capability::MASK, capability::PAST, capability::POSITIONS];
    type Config = Config;

    fn new(config: Config, context: &Context) -> Result<Self> {
        let Config { alpha_0, batch_split, low_variance, orders, sampling_eps } = config;
        for (name, value) in [("batch_split", batch_split), ("sampling_eps", sampling_eps)] {
            ensure!(
                0.0 < value && value < 1.0,
                Config,
                "`training.{name}` must lie in (0, 1), got {value}"
            );
        }
        ensure!(
            (0.0..=1.0).contains(&alpha_0),
            Config,
            "`training.alpha_0` must lie in [0, 1], got {alpha_0}"
        );
        ensure!(orders > 0, Config, "`training.orders` must be at least 1, got {orders}");
        ensure!(
            !low_variance || alpha_0 == 1.0,
            Config,
            "`training.low_variance` is for diffusion alone: it needs `training.alpha_0 = 1`, got {alpha_0}"
        );
        ensure!(
            !context.time_conditioning,
            Config,
            "`any_order` keeps what clean tokens have computed, which must not depend on the time: set `time_conditioning=false`"
        );
        ensure!(
            context.classes == 0 || alpha_0 == 0.0 || alpha_0 == 1.0,
            Config,
            "`any_order` with `training.alpha_0` between 0 and 1 trains two parts of a batch apart, and does not tell their classes \
             (`data.label_column`): leave the labels out, or set `training.alpha_0=1`"
        );
        let Some(mask) = context.mask_id else { bail!(Config, "`any_order` needs a mask token") };
        Ok(Self { config, mask })
    }
}

/// What a training step minimizes, and what it reports: `[B, L]` each.
struct Terms {
    loss_bl: Tensor,
    nats_bl: Tensor,
}

impl Terms {
    fn scaled(self, by: f64) -> Self {
        Self { loss_bl: self.loss_bl * by, nats_bl: self.nats_bl * by }
    }
}

/// A batch as it is trained on.
struct Drawn<'a> {
    x0_bl: &'a Tensor,
    xt_bl: Tensor,
    u_bl: Tensor,
    sigma_b: Tensor,
    dsigma_b: Tensor,
}

/// Which sequences of a batch train which term: their places, `[N] i64` each, and the share of diffusion on average.
struct Split {
    diffused_n: Tensor,
    filled_n: Tensor,
    share: f64,
}

impl AnyOrder {
    /// The term of diffusion, of some sequences.
    fn diffused(&self, model: &Denoiser, drawn: &Drawn<'_>, places_n: &Tensor) -> Result<Terms> {
        let a0 = self.config.alpha_0;
        let rows = |x: &Tensor| x.index_select(0, places_n);
        let xt_bl = rows(&drawn.xt_bl);
        let masked_bl = xt_bl.eq(self.mask).to_kind(Kind::Double);
        let order_bl = sorted(&(rows(&drawn.u_bl) + masked_bl));
        // -a'/(1 - a), for both over exp(-sigma).
        let weight_b = rows(&drawn.dsigma_b) * a0 / (rows(&drawn.sigma_b).expm1() + (1.0 - a0));
        let in_loss = (!self.config.low_variance).then_some(&weight_b);
        let loss_bl = masked_nats(model, &rows(drawn.x0_bl), &xt_bl, &order_bl, in_loss)?;
        let nats_bl = match in_loss {
            Some(_) => loss_bl.shallow_clone(),
            None => &loss_bl * weight_b.unsqueeze(1).to_kind(loss_bl.kind()),
        };
        Ok(Terms { loss_bl, nats_bl })
    }

    /// The term of filling in, of some sequences.
    fn filled(&self, model: &Denoiser, drawn: &Drawn<'_>, places_n: &Tensor) -> Result<Terms> {
        let rows = |x: &Tensor| x.index_select(0, places_n);
        let (masked_bl, u_bl) = (rows(&drawn.xt_bl).eq(self.mask), rows(&drawn.u_bl));
        let order_bl = sorted(&left_to_right(&u_bl, 1.0).where_self(&masked_bl, &u_bl));
        let scored_bl = masked_bl.gather(1, &order_bl, false);
        let nats_bl = ordered_nats(model, &rows(drawn.x0_bl), &order_bl, &scored_bl)?;
        Ok(Terms { loss_bl: nats_bl.shallow_clone(), nats_bl })
    }

    /// The sequences that train diffusion stand side by side from a random place on: the times of a batch are stratified by place.
    fn split(&self, model: &Denoiser, batch: i64) -> Result<Split> {
        let Config { alpha_0, batch_split, .. } = self.config;
        let (count, turn, share) = if alpha_0 >= 1.0 {
            (batch, 0, 1.0)
        } else if alpha_0 <= 0.0 {
            (0, 0, 0.0)
        } else {
            let u_b2 = model.uniforms(&[batch, 2])?;
            // sync: two numbers decide which sequences are computed how.
            let [count, turn] = [0, 1].map(|i| u_b2.double_value(&[0, i]));
            let count = (batch as f64 * batch_split + count).floor() as i64;
            (count, (batch as f64 * turn) as i64, batch_split)
        };
        let places = |from: i64, to: i64| {
            let places: Vec<i64> = (from..to).map(|i| (i + turn) % batch).collect();
            Tensor::from_slice(&places).to_device(model.device())
        };
        Ok(Split { diffused_n: places(0, count), filled_n: places(count, batch), share })
    }

    fn terms(&self, model: &Denoiser, batch: &Batch) -> Result<Terms> {
        let x0_bl = &batch.x0_bl;
        let (all, _l) = check_shape!(x0_bl, [B, L], Int64);
        let Split { diffused_n, filled_n, share } = self.split(model, all)?;
        let sigma_b = model.sigma(&batch.t_b)?;
        // What is filled in is masked as diffusion leaves it.
        let alpha_b = sigma_b.neg().exp() * self.config.alpha_0;
        let alpha_b = alpha_b.index_fill(0, &filled_n, self.config.alpha_0);
        let noisy_bl = model.corrupt(x0_bl, &alpha_b)?;
        let xt_bl = match &batch.given_bl {
            Some(given_bl) => x0_bl.where_self(given_bl, &noisy_bl),
            None => noisy_bl,
        };
        let (u_bl, dsigma_b) = (model.uniforms(&x0_bl.size())?, model.dsigma(&batch.t_b)?);
        let drawn = Drawn { x0_bl, xt_bl, u_bl, sigma_b, dsigma_b };
        let mut parts = Vec::new();
        if diffused_n.numel() > 0 {
            parts.push(self.diffused(model, &drawn, &diffused_n)?.scaled(share.recip()));
        }
        if filled_n.numel() > 0 {
            let filled = self.filled(model, &drawn, &filled_n)?;
            parts.push(filled.scaled((1.0 - share).recip()));
        }
        // Back to the places of the batch.
        let back_b = Tensor::cat(&[diffused_n, filled_n], 0).argsort(0, false);
        let whole = |of: fn(&Terms) -> &Tensor| {
            let parts: Vec<&Tensor> = parts.iter().map(of).collect();
            Tensor::cat(&parts, 0).index_select(0, &back_b)
        };
        Ok(Terms { loss_bl: whole(|terms| &terms.loss_bl), nats_bl: whole(|terms| &terms.nats_bl) })
    }

    /// An order of the law of the walk, and which of it is scored: what is given comes first, and what does not count last.
    fn drawn_order(&self, model: &Denoiser, batch: &Batch) -> Result<(Tensor, Tensor)> {
        let u_bl = model.uniforms(&batch.x0_bl.size())?;
        let late_bl = u_bl.ge(self.config.alpha_0);
        let mut key_bl = left_to_right(&u_bl, 1.0).where_self(&late_bl, &u_bl);
        let mut scored_bl = u_bl.ge(0.0);
        if let Some(counted_bl) = &batch.counted_bl {
            scored_bl = counted_bl.not_equal(0.0);
            key_bl = (&u_bl + 2.0).where_self(&scored_bl.logical_not(), &key_bl);
        }
        if let Some(given_bl) = &batch.given_bl {
            scored_bl = scored_bl.logical_and(&given_bl.logical_not());
            key_bl = (&u_bl - 1.0).where_self(given_bl, &key_bl);
        }
        let order_bl = sorted(&key_bl);
        let in_order = scored_bl.gather(1, &order_bl, false);
        Ok((order_bl, in_order))
    }

    /// The bound over several orders, `[B, L]`: of one its terms at their tokens, of more the bound of a sequence shared among the tokens
    /// that count.
    fn bound(&self, model: &Denoiser, batch: &Batch) -> Result<Tensor> {
        let (mut sums, mut last) = (Vec::new(), None);
        for _ in 0..self.config.orders {
            let (order_bl, scored_bl) = self.drawn_order(model, batch)?;
            let nats_bl = ordered_nats(model, &batch.x0_bl, &order_bl, &scored_bl)?;
            if self.config.orders == 1 {
                return Ok(nats_bl);
            }
            sums.push(-nats_bl.sum_dim_intlist([1i64].as_slice(), false, Kind::Double));
            last = Some((order_bl, scored_bl, nats_bl.kind()));
        }
        let Some((order_bl, scored_bl, kind)) = last else {
            bail!(Config, "`training.orders` must be at least 1")
        };
        let log_p_bm = Tensor::stack(&sums, 1);
        let total_b = (self.config.orders as f64).ln() - log_p_bm.logsumexp([1i64], false);
        let share_bl = scored_bl.to_kind(Kind::Double);
        let count_b1 = share_bl.sum_dim_intlist([1i64].as_slice(), true, Kind::Double);
        let shared = share_bl / count_b1.clamp_min(1.0) * total_b.unsqueeze(1);
        Ok(crate::order::at_positions(&shared.to_kind(kind), &order_bl))
    }
}

impl Parameterization for AnyOrder {
    fn draw_t(&self, _model: &Denoiser, u_b: &Tensor) -> Result<Tensor> {
        let eps = self.config.sampling_eps;
        Ok(u_b * (1.0 - eps) + eps)
    }

    fn loss(&self, model: &Denoiser, x0_bl: &Tensor, t_b: &Tensor) -> Result<Tensor> {
        Ok(self.terms(model, &Batch::new(x0_bl, t_b))?.loss_bl)
    }

    fn objective(&self, model: &Denoiser, batch: &Batch) -> Result<Objective> {
        if model.step()?.is_none() {
            let nats_bl = self.bound(model, batch)?;
            return Ok(Objective::new(nats_bl.shallow_clone()).nats(nats_bl.detach()));
        }
        let Terms { loss_bl, nats_bl } = self.terms(model, batch)?;
        Ok(Objective::new(loss_bl).nats(nats_bl.detach()))
    }

    fn log_x0(
        &self,
        model: &Denoiser,
        xt_bl: &Tensor,
        _t_b: &Tensor,
        rows_n: &Tensor,
    ) -> Result<Tensor> {
        check_shape!(xt_bl, [B, L], Int64);
        let hidden_nd = ops::take_rows(&states(model, xt_bl)?, rows_n);
        let logits_nv = model.logits(&hidden_nd)?;
        Ok(ops::carried_over(&logits_nv, &ops::take_rows(xt_bl, rows_n), self.mask, true))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use maskdiff_plugin_api::tch::Device;
    use maskdiff_plugin_api::testkit::{Toy, parameterization_contract};

    #[test]
    fn contract() {
        parameterization_contract::<AnyOrder>();
    }

    fn every(toy: &Toy) -> Tensor {
        let states = toy.joint().len();
        let all: Vec<i64> = (0..states).flat_map(|state| toy.tokens_of(state)).collect();
        Tensor::from_slice(&all).view([states as i64, toy.length()])
    }

    fn made(toy: &Toy, config: Config) -> AnyOrder {
        AnyOrder::new(config, &toy.context()).unwrap()
    }

    /// Exact conditionals multiply to the joint in every order, so the bound over any number of orders is the likelihood.
    #[test]
    fn an_exact_model_is_measured_exactly() {
        let toy = Toy::new(3, 3);
        let model = Denoiser::new(&toy);
        let truth = -Tensor::from_slice(toy.joint()).log();
        for (alpha_0, orders) in [(1.0, 1), (1.0, 4), (0.4, 3), (0.0, 1)] {
            let method = made(&toy, Config { alpha_0, orders, ..Config::default() });
            let t = model.times(27, 0.5);
            let objective = method.objective(&model, &Batch::new(&every(&toy), &t)).unwrap();
            let nats = objective.nats_bl.unwrap().sum_dim_intlist(1, false, Kind::Double);
            let error = (nats - &truth).abs().max().double_value(&[]);
            assert!(error < 1e-12, "alpha_0 = {alpha_0}, {orders} orders: {error:e}");
        }
    }

    /// Of the last token alone, given the others: what is given comes first and is not scored.
    #[test]
    fn what_is_given_is_a_condition() {
        let toy = Toy::new(3, 3);
        let (model, x0) = (Denoiser::new(&toy), every(&toy));
        let given = Tensor::from_slice(&[true, true, false]).expand([27, 3], false);
        let batch = || Batch::new(&x0, &model.times(27, 0.5)).given(Some(&given));
        let joint = Tensor::from_slice(toy.joint()).view([9, 3]);
        let total = joint.sum_dim_intlist([1i64].as_slice(), true, Kind::Double);
        let truth = -(joint / total).log().view([27]);
        for orders in [1, 2] {
            let method = made(&toy, Config { orders, ..Config::default() });
            let nats = method.objective(&model, &batch()).unwrap().nats_bl.unwrap();
            let error = (nats.select(1, 2) - &truth).abs().max().double_value(&[]);
            assert!(error < 1e-12, "{orders} orders: {error:e}");
            assert_eq!(nats.narrow(1, 0, 2).abs().max().double_value(&[]), 0.0);
        }
        let method = made(&toy, Config::default());
        let terms = method.terms(&model, &batch()).unwrap();
        assert_eq!(terms.loss_bl.narrow(1, 0, 2).abs().max().double_value(&[]), 0.0);
    }

    /// The mean of both terms, over any split of a batch, is the likelihood of an exact model up to the smallest time.
    #[test]
    fn the_terms_of_training_sum_to_the_bound() {
        let toy = Toy::new(3, 3);
        let model = Denoiser::new(&toy);
        for (alpha_0, batch_split) in [(1.0, 0.5), (0.6, 0.3), (0.25, 0.8), (0.0, 0.5)] {
            let method = made(&toy, Config { alpha_0, batch_split, ..Config::default() });
            tch::manual_seed(11);
            // A batch of two whose times are stratified: no half of them is one term's alone.
            for (batch, draws) in [(40, 400), (2, 4000)] {
                let state = 5;
                let x0 = every(&toy).narrow(0, state, 1).expand([batch, 3], false);
                let (mut sum, mut square) = (0.0, 0.0);
                for _ in 0..draws {
                    let u = Tensor::rand([batch], (Kind::Double, Device::Cpu));
                    let strata = Tensor::arange(batch, (Kind::Double, Device::Cpu));
                    let u = (u + strata) / batch as f64;
                    let t = method.draw_t(&model, &u).unwrap();
                    let loss = method.loss(&model, &x0, &t).unwrap().sum(Kind::Double);
                    let mean = loss.double_value(&[]) / batch as f64;
                    (sum, square) = (sum + mean, square + mean * mean);
                }
                let mean = sum / f64::from(draws);
                let error =
                    ((square / f64::from(draws) - mean * mean) / f64::from(draws)).max(0.0).sqrt();
                let truth = -toy.joint()[state as usize].ln();
                let far = (mean - truth).abs();
                assert!(far < 5.0 * error + 0.01, "alpha_0 = {alpha_0}: {mean} ± {error}, {truth}");
            }
        }
    }

    #[test]
    fn options_that_do_not_go_together_are_refused() {
        let toy = Toy::new(2, 2);
        for (config, said) in [
            (Config { low_variance: true, alpha_0: 0.5, ..Config::default() }, "alpha_0 = 1"),
            (Config { orders: 0, ..Config::default() }, "`training.orders`"),
            (Config { alpha_0: 1.5, ..Config::default() }, "[0, 1]"),
            (Config { batch_split: 1.0, ..Config::default() }, "`training.batch_split`"),
        ] {
            let error = AnyOrder::new(config, &toy.context()).err().unwrap().to_string();
            assert!(error.contains(said), "{error}");
        }
        let timed = Toy::new(2, 2).time_conditioned().context();
        assert!(AnyOrder::new(Config::default(), &timed).is_err());
    }
}
