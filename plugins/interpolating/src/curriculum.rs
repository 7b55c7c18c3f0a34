//! DUO's curriculum: while it lasts, the network reads mixtures of tokens that Gaussian noise makes, and learns the clean token
//! under the uniform noise of their largest entry.
//!
//! Shape letters: `B` batch, `L` length, `V` vocabulary, `k` entries kept of the V.

use maskdiff_plugin_api::ops::alpha_of_gamma;
use maskdiff_plugin_api::prelude::*;
use tch::Kind;

/// Options of the curriculum, under `training.curriculum`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Curriculum {
    /// Steps that the curriculum lasts. Below 1 it is a share of the run; 0 is no curriculum.
    #[schemars(range(min = 0.0))]
    pub(crate) steps: f64,
    /// Temperature of the mixtures, above 0. The smaller, the nearer a mixture is to one token.
    #[schemars(extend("exclusiveMinimum" = 0.0))]
    pub(crate) tau: f64,
    /// Log of noise over signal at t = 0.
    #[schemars(range(min = -100.0, max = 100.0))]
    pub(crate) gamma_min: f64,
    /// Log of noise over signal at t = 1, above `gamma_min`.
    #[schemars(range(min = -100.0, max = 100.0))]
    pub(crate) gamma_max: f64,
    /// Tokens in a mixture, at least 2.
    #[schemars(range(min = 2))]
    pub(crate) k: i64,
}

impl Default for Curriculum {
    fn default() -> Self {
        Self { steps: 0.0, tau: 1e-3, gamma_min: -3.5, gamma_max: -1.75, k: 3 }
    }
}

/// What the curriculum makes of a batch.
pub(crate) struct Soft {
    /// Uniform noise of the same level: `[B] f64` and its rate.
    pub(crate) sigma_b: Tensor,
    pub(crate) rate_b: Tensor,
    /// The largest entry of each mixture, `[B, L] i64`.
    pub(crate) z_bl: Tensor,
    /// The mixtures, `[B, L, k]`. What is left out of the V entries has the rest of the weight.
    pub(crate) ids_blk: Tensor,
    pub(crate) weight_blk: Tensor,
}

impl Curriculum {
    pub(crate) fn check(&self, context: &Context) -> Result<()> {
        let Self { steps, tau, gamma_min, gamma_max, k } = *self;
        let at_least = |name: &str, holds: bool, wanted: &str, got: String| {
            ensure!(holds, Config, "`training.curriculum.{name}` must be {wanted}, got {got}");
            Ok(())
        };
        at_least("steps", steps >= 0.0, "at least 0", steps.to_string())?;
        at_least("tau", tau > 0.0, "above 0", tau.to_string())?;
        let above = format!("above `training.curriculum.gamma_min` ({gamma_min})");
        at_least("gamma_max", gamma_min < gamma_max, &above, gamma_max.to_string())?;
        at_least("k", k >= 2, "at least 2", k.to_string())?;
        if !self.is_on() {
            return Ok(());
        }
        ensure!(
            context.mask_id.is_none(),
            Config,
            "`training.curriculum` is made for process `uniform`, and this one has a mask; `training.curriculum.steps=0` turns it off"
        );
        let below = format!("below the vocabulary's {} tokens", context.vocab_size);
        at_least("k", k < context.vocab_size, &below, k.to_string())
    }

    /// Whether it is on at all.
    pub(crate) fn is_on(&self) -> bool {
        self.steps > 0.0
    }

    /// Whether step `step` of `total` belongs to it.
    pub(crate) fn covers(&self, step: i64, total: i64) -> bool {
        let steps = if self.steps < 1.0 { self.steps * total as f64 } else { self.steps };
        (step as f64) < steps
    }

    /// Mixtures of clean tokens `x0_bl` at times `t_b`. Random numbers come from the sequences' own streams.
    pub(crate) fn soften(&self, model: &Denoiser, x0_bl: &Tensor, t_b: &Tensor) -> Result<Soft> {
        let size = model.vocab_size();
        let range = self.gamma_max - self.gamma_min;
        let gamma_b = t_b * range + self.gamma_min;
        let (alpha_b, slope_b) = alpha_of_gamma(&gamma_b, size);
        let rate_b = slope_b * -range / &alpha_b;
        let entries = self.largest(model, x0_bl, &gamma_b)?;
        let ids_blk = ids(model, x0_bl, &entries.clean_is_in_bl, self.k)?;
        let at = entries.weight_blk.argmax(-1, true);
        let z_bl = ids_blk.gather(-1, &at, false).squeeze_dim(-1);
        let weight_blk = entries.weight_blk;
        Ok(Soft { sigma_b: -alpha_b.log(), rate_b, z_bl, ids_blk, weight_blk })
    }

    /// The k largest entries of `softmax(w / tau)`, without the V: the others' by order statistics, and the clean token's in the last
    /// place where it belongs among them. What is left out counts by its mean.
    fn largest(&self, model: &Denoiser, x0_bl: &Tensor, gamma_b: &Tensor) -> Result<Entries> {
        let (b, l) = check_shape!(x0_bl, [B, L], Int64);
        let (k, size) = (self.k, model.vocab_size());
        let of_gamma = |gamma_b: &Tensor| gamma_b.sigmoid().sqrt().view([-1, 1]);
        let (signal, noise) = (of_gamma(&-gamma_b), of_gamma(gamma_b));
        let left =
            Tensor::arange_start_step(size - 1, size - 1 - k, -1, (Kind::Double, x0_bl.device()));
        let log_u = (model.uniforms(&[b, l, k])?.log() / left).cumsum(-1, Kind::Double);
        let others_blk = log_u.exp().special_ndtri() * noise.unsqueeze(-1);
        let clean_bl = model.normals(&[b, l])? * &noise + signal;
        let last = |from_end: i64| others_blk.select(-1, k - from_end);
        let clean_is_in_bl = clean_bl.gt_tensor(&last(1));
        let place = last(1).where_self(&clean_is_in_bl.logical_not(), &clean_bl).unsqueeze(-1);
        let kept_blk = Tensor::cat(&[others_blk.narrow(-1, 0, k - 1), place], -1) / self.tau;
        // E[exp(w/tau)] of a normal entry that is below the smallest kept one.
        let (top, spread): (Tensor, Tensor) =
            (last(2).where_self(&clean_is_in_bl, &last(1)) / self.tau, noise / self.tau);
        let mean = spread.square() / 2.0 + ((&top - spread.square()) / &spread).special_log_ndtr()
            - (&top / &spread).special_log_ndtr();
        let out: Tensor =
            (clean_is_in_bl.to_kind(Kind::Double) + (size - k - 1) as f64).log() + mean;
        let clean_out = (clean_bl / self.tau).masked_fill(&clean_is_in_bl, f64::NEG_INFINITY);
        let rest = [out.unsqueeze(-1), clean_out.unsqueeze(-1)];
        let all = Tensor::cat(&[&kept_blk, &rest[0], &rest[1]], -1).logsumexp([-1], true);
        Ok(Entries { weight_blk: (kept_blk - all).exp(), clean_is_in_bl })
    }
}

/// Weights of the largest entries, and whether the last of them is the clean token's.
struct Entries {
    weight_blk: Tensor,
    clean_is_in_bl: Tensor,
}

/// Which tokens the entries are: k different ones, none of them the clean one, in a random order; the clean one in the last place
/// where it is among them.
///
/// Difference from the original, which draws by Floyd's method: there the first entry is never one of the last k - 1 tokens.
fn ids(model: &Denoiser, x0_bl: &Tensor, clean_is_in_bl: &Tensor, k: i64) -> Result<Tensor> {
    let (b, l) = check_shape!(x0_bl, [B, L], Int64);
    let others = model.vocab_size() - 1;
    let u_blk = model.uniforms(&[b, l, k])?;
    // Taken so far with the clean one, ascending: each moves what is at or above it up by one.
    let mut taken = vec![x0_bl.shallow_clone()];
    let mut drawn = Vec::new();
    for i in 0..k {
        let mut id = (u_blk.select(-1, i) * (others - i) as f64).floor().to_kind(Kind::Int64);
        let (ascending, _) = Tensor::stack(&taken, -1).sort(-1, false);
        for j in 0..=i {
            id = &id + id.ge_tensor(&ascending.select(-1, j)).to_kind(Kind::Int64);
        }
        taken.push(id.shallow_clone());
        drawn.push(id);
    }
    let last = drawn.len() - 1;
    drawn[last] = x0_bl.where_self(clean_is_in_bl, &drawn[last]);
    Ok(Tensor::stack(&drawn, -1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use maskdiff_plugin_api::tch::Device;
    use maskdiff_plugin_api::testkit::Toy;

    const N: i64 = 20_000;

    fn soft(curriculum: &Curriculum, size: i64, t: f64) -> (Soft, Tensor) {
        tch::manual_seed(9);
        let toy = Toy::uniform(1, size as usize);
        let model = Denoiser::new(&toy);
        let x0_bl = Tensor::full([N, 1], 2, (Kind::Int64, Device::Cpu));
        let soft = curriculum.soften(&model, &x0_bl, &model.times(N, t)).unwrap();
        (soft, x0_bl)
    }

    /// Shares of a boolean tensor are binomial.
    fn near(what: &str, got: &Tensor, want: f64) {
        let got = got.to_kind(Kind::Double).mean(Kind::Double).double_value(&[]);
        let error = (want * (1.0 - want) / N as f64).sqrt();
        assert!((got - want).abs() < 5.0 * error, "{what}: {got}, expected {want} ± {error}");
    }

    #[test]
    fn the_largest_entry_is_a_token_under_uniform_noise() {
        for (k, t) in [(2, 0.0), (4, 0.6), (5, 1.0)] {
            let curriculum = Curriculum { k, gamma_max: 0.5, ..Curriculum::default() };
            let (soft, _) = soft(&curriculum, 6, t);
            let alpha = soft.sigma_b.neg().exp().double_value(&[0]);
            for token in 0..6 {
                let want = (1.0 - alpha) / 6.0 + if token == 2 { alpha } else { 0.0 };
                near(&format!("k = {k}, token {token}"), &soft.z_bl.eq(token), want);
            }
        }
    }

    /// Every entry of a dense draw, the k largest of them: means of the weights in their order.
    #[test]
    fn weights_have_the_means_of_a_dense_draw() {
        let (k, size, t, tau) = (4, 9, 0.7, 0.5);
        let curriculum = Curriculum { k, tau, gamma_max: 0.5, ..Curriculum::default() };
        let (soft, x0_bl) = soft(&curriculum, size, t);
        let gamma = curriculum.gamma_min + t * (curriculum.gamma_max - curriculum.gamma_min);
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        let noise = Tensor::randn([N, size], (Kind::Double, Device::Cpu));
        let w: Tensor = x0_bl.squeeze_dim(1).one_hot(size).to_kind(Kind::Double)
            * sigmoid(-gamma).sqrt()
            + noise * sigmoid(gamma).sqrt();
        let (dense, _) = (w / tau).softmax(-1, Kind::Double).sort(-1, true);
        let (ours, _) = soft.weight_blk.squeeze_dim(1).sort(-1, true);
        for j in 0..k {
            let (dense, ours) = (dense.select(1, j), ours.select(1, j));
            let error = ((dense.var(true) + ours.var(true)) / N as f64).sqrt().double_value(&[]);
            let [dense, ours] = [dense, ours].map(|x| x.mean(Kind::Double).double_value(&[]));
            // What is left out counts by its mean, which moves a quotient by a little more than that.
            assert!((dense - ours).abs() < 5.0 * error + 0.004, "{j}: {ours}, dense {dense}");
        }
    }

    #[test]
    fn tokens_of_a_mixture_differ_and_each_place_holds_any_of_them() {
        let (soft, x0_bl) = soft(&Curriculum { k: 3, ..Curriculum::default() }, 6, 1.0);
        let ids = soft.ids_blk.squeeze_dim(1);
        for (i, j) in [(0, 1), (0, 2), (1, 2)] {
            assert_eq!(ids.select(1, i).eq_tensor(&ids.select(1, j)).any().int64_value(&[]), 0);
        }
        assert_eq!(ids.narrow(1, 0, 2).eq_tensor(&x0_bl).any().int64_value(&[]), 0);
        for token in [0, 1, 3, 4, 5] {
            near(&format!("token {token}"), &ids.select(1, 0).eq(token), 0.2);
        }
    }

    #[test]
    fn a_share_below_1_is_of_the_run() {
        let of = |steps: f64| Curriculum { steps, ..Curriculum::default() };
        let last = |steps: f64| (0..100).filter(|step| of(steps).covers(*step, 100)).count();
        assert_eq!([0.0, 0.5, 1.0, 30.0, 500.0].map(last), [0, 50, 1, 30, 100]);
    }
}
