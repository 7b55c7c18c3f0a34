//! What the benches share: models of the sizes that the README quotes, and the slow ways they are compared with.

use maskdiff_engine::model::Model;
use maskdiff_engine::model::views::Blocks;
use maskdiff_engine::plugins::Registry;
use maskdiff_engine::plugins::{Choice, Choices};
use maskdiff_plugin_api::abi::handles::Walker;
use maskdiff_plugin_api::{Context, Denoiser, ops};
use serde_json::{Value, json};
use tch::{Kind, Tensor};

/// Threads of the stated machine.
pub const THREADS: i32 = 2;

/// The built plugins, over libtorch as users have it.
pub fn registry() -> Registry {
    crate::built()
}

/// The middle one of some numbers.
pub fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    numbers[numbers.len() / 2]
}

/// The most memory that this process has held, MiB.
pub fn peak_mib() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("/proc/self/status");
    let line = status.lines().find(|l| l.starts_with("VmHWM")).expect("the field");
    line.split_whitespace().nth(1).and_then(|n| n.parse::<f64>().ok()).expect("a number") / 1024.0
}

/// A DiT over `vocab_size` tokens, the last of which is the mask; weights random and not zero.
pub struct Size {
    /// Width of the network.
    pub hidden_size: i64,
    /// Attention heads.
    pub n_heads: i64,
    /// Blocks.
    pub n_blocks: i64,
    /// Tokens with the mask.
    pub vocab_size: i64,
    /// Tokens of a sequence.
    pub length: i64,
}

impl Size {
    /// The network of the original's measured speed.
    pub fn small(vocab_size: i64, length: i64) -> Self {
        Self { hidden_size: 256, n_heads: 4, n_blocks: 4, vocab_size, length }
    }

    fn facts(&self) -> Context {
        Context::new(self.vocab_size, self.length)
            .mask(Some(self.vocab_size - 1))
            .kind(Kind::Float)
            .cuda(crate::cuda())
    }

    /// The DiT with `subs` over it.
    pub fn model(&self, registry: &Registry) -> Model {
        self.model_of(registry, "dit", "subs")
    }

    /// The same in blocks.
    pub fn model_in(&self, registry: &Registry, blocks: Option<Blocks>) -> Model {
        self.made(registry, ["dit", "absorbing_state", "subs"], blocks, Kind::Float)
    }

    /// The DiT with `interpolating` over uniform noise: no token is a mask.
    pub fn over_uniform(&self, registry: &Registry) -> Model {
        self.made(registry, ["dit", "uniform", "interpolating"], None, Kind::Float)
    }

    /// Another network of the same size, and what its output means.
    pub fn model_of(&self, registry: &Registry, backbone: &str, parameterization: &str) -> Model {
        self.made(registry, [backbone, "absorbing_state", parameterization], None, Kind::Float)
    }

    /// The DiT with weights of another type than float32.
    pub fn model_in_kind(&self, registry: &Registry, kind: Kind) -> Model {
        self.made(registry, ["dit", "absorbing_state", "subs"], None, kind)
    }

    fn made(
        &self,
        registry: &Registry,
        [backbone, process, parameterization]: [&str; 3],
        blocks: Option<Blocks>,
        kind: Kind,
    ) -> Model {
        tch::set_num_threads(THREADS);
        tch::manual_seed(1);
        let choice = |name: &str| Choice { name: name.into(), options: json!({}) };
        let mut options = json!({
            "hidden_size": self.hidden_size,
            "n_blocks": self.n_blocks,
            "cond_dim": 128,
            "dropout": 0.1,
        });
        // A network without attention has no heads.
        if backbone != "dimamba" {
            options["n_heads"] = json!(self.n_heads);
        }
        // `python:FILE:CLASS` as the configuration has it.
        let (backbone, argument) = backbone.split_once(':').unwrap_or((backbone, ""));
        if !argument.is_empty() {
            options["argument"] = json!(argument);
        }
        let choices = Choices {
            backbone: Choice { name: backbone.into(), options },
            process: choice(process),
            noise: choice("loglinear"),
            parameterization: choice(parameterization),
        };
        let mut facts = self.facts().kind(kind);
        if process == "uniform" {
            facts.mask_id = None;
        }
        let model = Model::in_blocks(registry, choices, facts, blocks);
        let model = model.expect("the model builds");
        tch::no_grad(|| {
            for mut tensor in model.trainable() {
                let _ = tensor.normal_(0.0, 0.02);
            }
        });
        model
    }

    /// A sampler with its options.
    pub fn sampler(&self, registry: &Registry, name: &str, options: Value) -> Walker {
        let choice = Choice { name: name.into(), options };
        registry.sampler(&choice, &self.facts()).expect("the sampler")
    }
}

/// The original's substitution: log p(x0 | xt) `[B, L, V]` over all positions of all logits.
fn substituted(model: &Denoiser, xt_bl: &Tensor, sigma_b: &Tensor) -> Tensor {
    let [batch, length] = xt_bl.size()[..] else { panic!("xt_bl {:?}", xt_bl.size()) };
    let hidden = model.hidden(xt_bl, sigma_b).expect("hidden").flatten(0, 1);
    let logits = model.logits(&hidden).expect("logits").view([batch, length, -1]);
    substituted_logits(model, xt_bl, logits)
}

/// The same from logits `[B, L, V]`.
pub fn substituted_logits(model: &Denoiser, xt_bl: &Tensor, logits: Tensor) -> Tensor {
    let mask = model.mask_id().expect("a mask");
    let _ = logits.select(2, mask).fill_(-1e6);
    let total = logits.logsumexp([-1], true);
    let logits = logits - total;
    let open = xt_bl.not_equal(mask).unsqueeze(-1);
    let certain = Tensor::full_like(&logits, -1e6).scatter_value(-1, &xt_bl.unsqueeze(-1), 0.0);
    certain.where_self(&open, &logits)
}

/// `ddpm_cache` as the original walks: all logits, noise for every entry at every step, one cache for the batch.
pub fn original_walk(model: &Model, xt_bl: &Tensor, steps: i64) -> Tensor {
    let model = Denoiser::new(model);
    let mask = model.mask_id().expect("a mask");
    let mut xt_bl = xt_bl.shallow_clone();
    let mut cache: Option<Tensor> = None;
    let (batch, t_min) = (xt_bl.size()[0], 1e-5);
    let dt = (1.0 - t_min) / steps as f64;
    let law = |xt_bl: &Tensor, t: f64| {
        let sigma_b = model.sigma(&model.times(batch, t)).expect("sigma");
        substituted(&model, xt_bl, &sigma_b)
    };
    for i in 0..steps {
        let t = 1.0 - dt * i as f64;
        let p_blv = cache.take().unwrap_or_else(|| law(&xt_bl, t).exp());
        let q_blv = &p_blv * dt;
        let _ = q_blv.select(2, mask).fill_(t - dt);
        let noise = 1e-10 - (q_blv.rand_like() + 1e-10).log();
        let race: Tensor = q_blv / noise;
        let drawn = race.argmax(-1, false);
        let next = drawn.where_self(&xt_bl.eq(mask), &xt_bl);
        cache = next.equal(&xt_bl).then_some(p_blv);
        xt_bl = next;
    }
    law(&xt_bl, t_min).argmax(-1, false)
}

/// Left to right as the original walks: all earlier tokens through the network again for each new one.
pub fn recomputed_walk(model: &Model, xt_bl: &Tensor) -> Tensor {
    let (model, x_bl) = (Denoiser::new(model), xt_bl.copy());
    let sigma_b = model.times(xt_bl.size()[0], 0.0);
    let _ = x_bl.select(1, 0).fill_(0);
    for i in 1..x_bl.size()[1] {
        let hidden = model.hidden(&x_bl.narrow(1, 0, i), &sigma_b).expect("hidden");
        let logits = model.logits(&hidden.select(1, i - 1)).expect("logits");
        x_bl.select(1, i).copy_(&ops::categorical(&logits));
    }
    x_bl
}

/// How a training step turns the network's output into a loss.
#[derive(Clone, Copy, Debug)]
pub enum Loss {
    /// The product: the head and cross-entropy fused, on masked rows.
    Fused,
    /// All logits and libtorch's cross-entropy.
    FullLogits,
    /// All logits, the substitution, a gather.
    Original,
}

/// The mean loss of one batch `x0_bl`.
pub fn loss(model: &Model, how: Loss, x0_bl: &Tensor) -> Tensor {
    model.set_train(true);
    let clocks = model.clocks();
    let u_b = maskdiff_engine::clock::stratify(&Tensor::rand(
        [x0_bl.size()[0] * clocks],
        (Kind::Double, x0_bl.device()),
    ));
    let u_b = if clocks > 1 { u_b.view([-1, clocks]) } else { u_b };
    let t_b = model.draw_t(&u_b).expect("times");
    if let Loss::Fused = how {
        return model.loss(x0_bl, &t_b).expect("a loss").mean(Kind::Float);
    }
    let model = Denoiser::new(model);
    let sigma_b = model.sigma(&t_b).expect("sigma");
    let xt_bl = model.corrupt(x0_bl, &(-&sigma_b).exp()).expect("xt");
    let weight_b = model.dsigma(&t_b).expect("dsigma") / sigma_b.expm1();
    let weight_b1 = weight_b.to_kind(Kind::Float).unsqueeze(1);
    let nll_bl = match how {
        Loss::Original => {
            let log_p = substituted(&model, &xt_bl, &sigma_b);
            -log_p.gather(-1, &x0_bl.unsqueeze(-1), false).squeeze_dim(-1)
        }
        _ => {
            let hidden = model.hidden(&xt_bl, &sigma_b).expect("hidden").flatten(0, 1);
            let mask = model.mask_id().expect("a mask");
            let logits = model.logits(&hidden).expect("logits");
            let _ = logits.select(1, mask).fill_(f64::NEG_INFINITY);
            let nll_n = logits.cross_entropy_loss::<Tensor>(
                &x0_bl.flatten(0, 1),
                None,
                tch::Reduction::None,
                -100,
                0.0,
            );
            nll_n.view_as(x0_bl) * xt_bl.eq(mask)
        }
    };
    (nll_bl * weight_b1).mean(Kind::Float)
}

/// Uniform tokens `[B, L]` without the mask.
pub fn tokens(size: &Size, batch: i64) -> Tensor {
    Tensor::randint(size.vocab_size - 1, [batch, size.length], (Kind::Int64, crate::device()))
}
