//! The original program's training step and its likelihood, operation by operation over the same libtorch: its network (float32, its attention
//! by libtorch's own kernel), SUBS over all logits, PyTorch's AdamW, clipping and average in their default forms on a CPU.

use std::collections::BTreeMap;

use maskdiff_engine::model::Model;
use maskdiff_plugin_api::Denoiser;
use tch::{Kind, Tensor};

use crate::bench::substituted_logits;

/// Weights by name, moments and average: everything that a step changes.
#[derive(Debug)]
pub struct Original {
    weights: BTreeMap<String, Tensor>,
    trained: Vec<Tensor>,
    exp_avg: Vec<Tensor>,
    exp_avg_sq: Vec<Tensor>,
    shadow: Vec<Tensor>,
    steps: i32,
    n_heads: i64,
    n_blocks: i64,
    dropout: f64,
}

impl Original {
    /// Over the weights of a `dit`, which it changes.
    pub fn new(model: &Model, n_heads: i64, n_blocks: i64, dropout: f64) -> Self {
        let trained = model.trainable();
        let zeros = || trained.iter().map(|p| p.detach().zeros_like()).collect();
        let shadow = trained.iter().map(|p| p.detach().copy()).collect();
        let (exp_avg, exp_avg_sq) = (zeros(), zeros());
        let weights = model.named().into_iter().collect();
        Self { weights, trained, exp_avg, exp_avg_sq, shadow, steps: 0, n_heads, n_blocks, dropout }
    }

    /// The same without what only a training step needs.
    pub fn for_likelihood(model: &Model, n_heads: i64, n_blocks: i64) -> Self {
        let weights = model.named().into_iter().collect();
        let none = Vec::new;
        let (trained, exp_avg, exp_avg_sq, shadow) = (none(), none(), none(), none());
        Self {
            weights,
            trained,
            exp_avg,
            exp_avg_sq,
            shadow,
            steps: 0,
            n_heads,
            n_blocks,
            dropout: 0.0,
        }
    }

    fn at(&self, name: &str) -> &Tensor {
        self.weights.get(name).unwrap_or_else(|| panic!("no weight `{name}`"))
    }

    fn linear(&self, x: &Tensor, name: &str) -> Tensor {
        let bias = self.weights.get(&format!("{name}.bias"));
        x.linear(self.at(&format!("{name}.weight")), bias)
    }

    fn norm(&self, x: &Tensor, name: &str) -> Tensor {
        let weight = self.at(name);
        let x = x.layer_norm(weight.size(), None::<&Tensor>, None::<&Tensor>, 1e-5, false);
        x * weight.unsqueeze(0).unsqueeze(0)
    }

    fn attention(&self, x: &Tensor, prefix: &str, cos: &Tensor, sin: &Tensor) -> Tensor {
        let [batch, length] = x.size()[..2] else { panic!("{:?}", x.size()) };
        let qkv = self.linear(x, &format!("{prefix}.attn_qkv"));
        let qkv = qkv.view([batch, length, 3, self.n_heads, -1]);
        // Queries, keys and values are rotated alike; for the values the angle is zero.
        let halves = qkv.chunk(2, -1);
        let rotated = Tensor::cat(&[-&halves[1], halves[0].shallow_clone()], -1);
        let qkv = qkv * cos + rotated * sin;
        let [q, k, v] = [0, 1, 2].map(|i| qkv.select(2, i).transpose(1, 2));
        let out = Tensor::scaled_dot_product_attention(
            &q,
            &k,
            &v,
            None::<&Tensor>,
            0.0,
            false,
            None,
            false,
        );
        self.linear(
            &out.transpose(1, 2).reshape([batch, length, -1]),
            &format!("{prefix}.attn_out"),
        )
    }

    /// Logits `[B, L, V]` of `xt_bl [B, L]`.
    fn logits(&self, xt_bl: &Tensor, sigma_b: &Tensor, train: bool) -> Tensor {
        let (half, device) = (128, xt_bl.device());
        let steps = Tensor::arange(half, (Kind::Float, device));
        let frequencies = (steps * (-(10_000f64.ln()) / half as f64)).exp();
        let angle = sigma_b.to_kind(Kind::Float).unsqueeze(1) * frequencies.unsqueeze(0);
        let features = Tensor::cat(&[angle.cos(), angle.sin()], -1);
        let c = self.linear(&features, "sigma_map.mlp.0").silu();
        let c = self.linear(&c, "sigma_map.mlp.2").silu();
        let length = xt_bl.size()[1];
        let positions = Tensor::arange(length, (Kind::Float, device));
        let angle = positions.outer(self.at("rotary_emb.inv_freq"));
        let angle = Tensor::cat(&[&angle, &angle], -1).view([1, length, 1, 1, -1]);
        // The values are not turned.
        let turned = Tensor::from_slice(&[1f32, 1.0, 0.0]).to_device(device).view([1, 1, 3, 1, 1]);
        let (cos, sin) = (angle.cos() * &turned + (1.0f64 - &turned), angle.sin() * &turned);
        let mut x = Tensor::embedding(self.at("vocab_embed.embedding"), xt_bl, -1, false, false);
        for i in 0..self.n_blocks {
            let prefix = format!("blocks.{i}");
            let m = self.linear(&c, &format!("{prefix}.adaLN_modulation")).unsqueeze(1).chunk(6, 2);
            let h = self.norm(&x, &format!("{prefix}.norm1.weight")) * (&m[1] + 1.0) + &m[0];
            let h = self.attention(&h, &prefix, &cos, &sin);
            x = &x + &m[2] * h.dropout(self.dropout, train);
            let h = self.norm(&x, &format!("{prefix}.norm2.weight")) * (&m[4] + 1.0) + &m[3];
            let h = self.linear(&h, &format!("{prefix}.mlp.0")).gelu("tanh");
            let h = self.linear(&h, &format!("{prefix}.mlp.2"));
            x = &x + &m[5] * h.dropout(self.dropout, train);
        }
        let m = self.linear(&c, "output_layer.adaLN_modulation").unsqueeze(1).chunk(2, 2);
        let h = self.norm(&x, "output_layer.norm_final.weight") * (&m[1] + 1.0) + &m[0];
        self.linear(&h, "output_layer.linear")
    }

    /// The mean loss of `x0_bl [B, L]` at times `t_b`, masked where `u_bl` says.
    pub fn loss(
        &self,
        model: &Model,
        x0_bl: &Tensor,
        t_b: &Tensor,
        u_bl: &Tensor,
        train: bool,
    ) -> Tensor {
        let denoiser = Denoiser::new(model);
        let sigma_b = denoiser.sigma(t_b).expect("sigma");
        model.inject_uniforms(Some(u_bl.shallow_clone()));
        let xt_bl = denoiser.corrupt(x0_bl, &(-&sigma_b).exp()).expect("xt");
        let weight_b = denoiser.dsigma(t_b).expect("dsigma") / sigma_b.expm1();
        // A network without time conditioning hears of no noise.
        let logits = self.logits(&xt_bl, &sigma_b.zeros_like(), train);
        let log_p = substituted_logits(&denoiser, &xt_bl, logits);
        let nll_bl = -log_p.gather(-1, &x0_bl.unsqueeze(-1), false).squeeze_dim(-1);
        (nll_bl * weight_b.to_kind(Kind::Float).unsqueeze(1)).mean(Kind::Float)
    }

    /// The mean bound of uniform diffusion (UDLM, arXiv 2412.10193, equation 18) over all tokens of every position.
    pub fn uniform_loss(
        &self,
        model: &Model,
        x0_bl: &Tensor,
        t_b: &Tensor,
        u_bl: &Tensor,
        train: bool,
    ) -> Tensor {
        let denoiser = Denoiser::new(model);
        let sigma_b = denoiser.sigma(t_b).expect("sigma");
        let alpha_b = (-&sigma_b).exp();
        model.inject_uniforms(Some(u_bl.shallow_clone()));
        let xt_bl = denoiser.corrupt(x0_bl, &alpha_b).expect("xt");
        let logits = self.logits(&xt_bl, &sigma_b.zeros_like(), train);
        let n = logits.size()[2] as f64;
        let column = |t: &Tensor| t.to_kind(Kind::Float).view([-1, 1, 1]);
        let (signal, noise) = (column(&(&alpha_b * n)), column(&(1.0 - &alpha_b)));
        let p = logits.log_softmax(-1, Kind::Float).exp();
        let clean = Tensor::zeros_like(&p).scatter_value(2, &x0_bl.unsqueeze(2), 1.0);
        let (clean, mixed) = (&signal * clean + &noise, &signal * p + &noise);
        let at_z = |t: &Tensor| t.gather(2, &xt_bl.unsqueeze(2), false);
        let (clean_z, mixed_z) = (at_z(&clean), at_z(&mixed));
        let ratios = (&clean / &clean_z) * ((&mixed_z / &mixed).log() - (&clean_z / &clean).log());
        let sum = ratios.sum_dim_intlist(-1, true, Kind::Float);
        let nats =
            (sum - n / &clean_z + n / &mixed_z) * column(&denoiser.dsigma(t_b).expect("rate"));
        (nats / n).mean(Kind::Float)
    }

    /// How far the product's bound of uniform diffusion is from the one here, without dropout.
    pub fn difference_of_uniform(
        &self,
        model: &Model,
        x0_bl: &Tensor,
        t_b: &Tensor,
        u_bl: &Tensor,
    ) -> f64 {
        tch::no_grad(|| {
            let theirs = self.uniform_loss(model, x0_bl, t_b, u_bl, false).double_value(&[]);
            relative(theirs, model, x0_bl, t_b, u_bl)
        })
    }

    /// A whole step: gradient, clipping to 1, AdamW at `lr`, the average.
    pub fn step(
        &mut self,
        model: &Model,
        x0_bl: &Tensor,
        t_b: &Tensor,
        u_bl: &Tensor,
        lr: f64,
    ) -> f64 {
        self.step_by(lr, |peer| peer.loss(model, x0_bl, t_b, u_bl, true))
    }

    /// The same with another loss.
    pub fn step_by(&mut self, lr: f64, loss: impl Fn(&Self) -> Tensor) -> f64 {
        maskdiff_native::clear_grads(&self.trained).expect("gradients");
        let loss = loss(self);
        loss.backward();
        self.steps += 1;
        tch::no_grad(|| self.update(lr));
        loss.double_value(&[])
    }

    fn update(&mut self, lr: f64) {
        let (beta1, beta2, eps) = (0.9, 0.999, 1e-8);
        let grads: Vec<Tensor> = self.trained.iter().map(Tensor::grad).collect();
        let norms: Vec<Tensor> = grads.iter().map(Tensor::norm).collect();
        let total = Tensor::stack(&norms, 0).norm();
        let factor = (total + 1e-6).reciprocal().clamp_max(1.0);
        let (correction1, correction2) =
            (1.0 - f64::powi(beta1, self.steps), 1.0 - f64::powi(beta2, self.steps));
        let k = f64::from(self.steps);
        let decay = 0.9999f64.min((1.0 + k) / (10.0 + k));
        for (i, param) in self.trained.iter().enumerate() {
            let mut grad = grads[i].shallow_clone();
            let _ = grad.g_mul_(&factor);
            let (m, v) = (&mut self.exp_avg[i], &mut self.exp_avg_sq[i]);
            let _ = m.lerp_(&grad, 1.0 - beta1);
            let _ = v.g_mul_scalar_(beta2);
            let _ = v.g_add_(&(&grad * &grad * (1.0 - beta2)));
            let denominator = (v.sqrt() / correction2.sqrt()) + eps;
            let mut param = param.detach();
            let _ = param.g_sub_(&(&*m / denominator * (lr / correction1)));
        }
        for (shadow, param) in self.shadow.iter_mut().zip(&self.trained) {
            let step = (&*shadow - param.detach()) * (1.0 - decay);
            let _ = shadow.g_sub_(&step);
        }
    }
}

/// The largest difference between the loss here and the product's, without dropout.
pub fn loss_difference(
    model: &Model,
    original: &Original,
    x0_bl: &Tensor,
    t_b: &Tensor,
    u_bl: &Tensor,
) -> f64 {
    tch::no_grad(|| {
        let theirs = original.loss(model, x0_bl, t_b, u_bl, false).double_value(&[]);
        relative(theirs, model, x0_bl, t_b, u_bl)
    })
}

/// How far `theirs` is from the product's loss.
fn relative(theirs: f64, model: &Model, x0_bl: &Tensor, t_b: &Tensor, u_bl: &Tensor) -> f64 {
    model.set_train(false);
    model.inject_uniforms(Some(u_bl.shallow_clone()));
    let ours = model.loss(x0_bl, t_b).expect("a loss").mean(Kind::Float).double_value(&[]);
    (theirs - ours).abs() / ours.abs()
}
