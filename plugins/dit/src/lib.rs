//! `dit`: the bidirectional diffusion transformer of MDLM, with the original's parameter names.
//!
//! Pre-norm blocks whose shift, scale and gate come from the noise level (adaLN), rotary positions, weight-only layer
//! norms, GELU (tanh). Attention is libtorch's fused kernel; the head is apart, so that only the rows that are needed
//! pay for the vocabulary.
//!
//! Shape letters: `B` batch, `L` length, `D` hidden size, `C` conditioning size, `H` heads, `K` head size,
//! `V` vocabulary including the mask, `N` rows.
//!
//! Source: Peebles and Xie 2023, arXiv:2212.09748; Lou et al. 2024, arXiv:2310.16834; MDLM code, `models/dit.py`.
//! Differences: on a GPU the original forces bfloat16 inside; here the host's precision decides.

use std::rc::Rc;

use maskdiff_plugin_api::nn::{
    LabelEmbedder, Modulation, Reading, Rotary, SelfAttention, TimestepEmbedder, embed, linear,
    modulated_norm,
};
use maskdiff_plugin_api::prelude::*;

mod block;
#[cfg(test)]
mod streams;

use block::Block;

export_plugin!();
register!(backbone Dit);
register!(backbone HfDit);

/// Options of the `model` group for `dit`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Config {
    /// D, a multiple of `n_heads`.
    #[schemars(range(min = 1, max = 65536))]
    pub(crate) hidden_size: i64,
    /// C, the width of the noise-level embedding.
    #[schemars(range(min = 1, max = 65536))]
    pub(crate) cond_dim: i64,
    /// Transformer blocks.
    #[schemars(range(min = 1, max = 4096))]
    pub(crate) n_blocks: i64,
    /// Attention heads.
    #[schemars(range(min = 1, max = 4096))]
    pub(crate) n_heads: i64,
    /// Dropout after attention and after the MLP while training, in [0, 1).
    #[schemars(range(min = 0.0), extend("exclusiveMaximum" = 1.0))]
    pub(crate) dropout: f64,
    /// Use the embedding as the head's matrix.
    pub(crate) tie_word_embeddings: bool,
    /// Put a norm with its modulation before the head. Published classifiers of noisy texts have none.
    pub(crate) final_norm: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            hidden_size: 256,
            cond_dim: 128,
            n_blocks: 4,
            n_heads: 4,
            dropout: 0.1,
            tie_word_embeddings: false,
            final_norm: true,
        }
    }
}

impl Config {
    fn checked(self) -> Result<Self> {
        for (name, value) in [
            ("hidden_size", self.hidden_size),
            ("cond_dim", self.cond_dim),
            ("n_blocks", self.n_blocks),
            ("n_heads", self.n_heads),
        ] {
            ensure!(value > 0, Config, "`{name}` must be at least 1, got {value}");
        }
        ensure!(
            self.hidden_size % self.n_heads == 0 && self.hidden_size / self.n_heads % 2 == 0,
            Config,
            "`hidden_size` ({}) must be an even multiple of `n_heads` ({})",
            self.hidden_size,
            self.n_heads
        );
        let dropout = self.dropout;
        ensure!(
            (0.0..1.0).contains(&dropout),
            Config,
            "`dropout` must lie in [0, 1), got {dropout}"
        );
        Ok(self)
    }
}

/// What [`Dit::pass`] reads.
const READS: &[&str] = &[
    capability::MIXTURE,
    capability::POSITIONS,
    capability::TOKEN_SIGMA,
    capability::LABEL,
    capability::PAST,
    capability::STAGES,
];

/// See the module documentation.
struct Dit {
    parameters: Parameters,
    time_free: bool,
    embedding: Tensor,
    timestep: TimestepEmbedder,
    /// Of a network that is told classes.
    labels: Option<LabelEmbedder>,
    rotary: Rotary,
    blocks: Vec<Rc<Block>>,
    /// The last norm's weight and modulation.
    last: Option<(Tensor, Modulation)>,
    head: Head,
}

impl Component for Dit {
    const NAME: &'static str = "dit";
    const ABOUT: &'static str = "bidirectional transformer conditioned on the noise level (adaLN)";
    const PROVIDES: &'static [&'static str] = READS;
    type Config = Config;

    fn new(config: Config, context: &Context) -> Result<Self> {
        let config = config.checked()?;
        let (v, d, c) = (context.vocab_size, config.hidden_size, config.cond_dim);
        let mut p = Parameters::new(context);
        // kaiming_uniform(a = √5) of a [V, D] matrix is uniform in ±1/√D, as `linear` draws.
        let embedding = p.linear("vocab_embed.embedding", v, d);
        let timestep = TimestepEmbedder::new(&mut p, c);
        let labels = LabelEmbedder::new(&mut p, context.classes, c);
        let rotary = Rotary::new(&mut p, d / config.n_heads);
        let blocks =
            (0..config.n_blocks).map(|i| Rc::new(Block::new(&mut p, i, &config))).collect();
        let weight = |p: &mut Parameters| p.constant("output_layer.norm_final.weight", &[d], 1.0);
        let norm_final = config.final_norm.then(|| weight(&mut p));
        // The head and every adaLN start at zero: the first prediction is uniform.
        let weight = if config.tie_word_embeddings {
            embedding.shallow_clone()
        } else {
            p.constant("output_layer.linear.weight", &[v, d], 0.0)
        };
        let bias = Some(p.constant("output_layer.linear.bias", &[v], 0.0));
        let last = norm_final
            .map(|norm| (norm, Modulation::new(&mut p, "output_layer.adaLN_modulation", 2 * d, c)));
        let head = Head { weight, bias };
        Ok(Self {
            parameters: p,
            time_free: !context.time_conditioning,
            embedding,
            timestep,
            labels,
            rotary,
            blocks,
            last,
            head,
        })
    }
}

impl Dit {
    /// The conditioning on noise levels `[B]` → `[B, C]`, or `[B, L]` → `[B, L, C]`. Without time conditioning every token hears
    /// the same: one row speaks for all. Labels `[B] i64` add theirs: `silu(level) + silu(label)`.
    fn conditioning(&self, sigma: &Tensor, label_b: Option<&Tensor>) -> Result<Tensor> {
        let one = || sigma.reshape([-1]).narrow(0, 0, 1);
        let sigma = if self.time_free { one() } else { sigma.shallow_clone() };
        let c = self.timestep.forward(&sigma).silu();
        let Some(labels) = &self.labels else {
            ensure!(
                label_b.is_none(),
                Unsupported,
                "a call has labels, and this network was made without classes"
            );
            return Ok(c);
        };
        let of_label = labels.forward(label_b)?.silu();
        Ok(c + if sigma.dim() == 2 { of_label.unsqueeze(1) } else { of_label })
    }

    fn finish(&self, x_bld: &Tensor, c_bc: &Tensor) -> Tensor {
        let Some((norm, modulation)) = &self.last else { return x_bld.shallow_clone() };
        let m = modulation.chunks(c_bc, 2);
        modulated_norm(x_bld, norm, &m[0], &m[1])
    }
}

impl Backbone for Dit {
    fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    fn hidden(&self, xt_bl: &Tensor, sigma_b: &Tensor, train: bool) -> Result<Tensor> {
        let (_b, l) = check_shape!(xt_bl, [B, L], Int64);
        let c_bc = self.conditioning(sigma_b, None)?;
        let rotation = Rc::new(self.rotary.at(0, l));
        let mut x_bld = Tensor::embedding(&self.embedding, xt_bl, -1, false, false);
        for (i, block) in self.blocks.iter().enumerate() {
            let (block, rotation) = (Rc::clone(block), Rc::clone(&rotation));
            [x_bld] = self.parameters.stage(i, &[&x_bld, &c_bc], move |s| {
                let attend = |attention: &SelfAttention, h: &Tensor| {
                    (attention.forward(h, &rotation, false), ())
                };
                [block.forward(&s[0], &s[1], train, attend).0]
            });
        }
        Ok(self.finish(&x_bld, &c_bc))
    }

    fn pass(&self, pass: &Pass, train: bool) -> Result<Passed> {
        pass.only(READS, Self::NAME)?;
        let layers = self.blocks.len();
        let reading = Rc::new(Reading::new(pass, &self.rotary, layers)?);
        let c_bc = self.conditioning(&pass.sigma, pass.label.as_ref())?;
        let mut keys = Vec::with_capacity(2 * layers);
        let mut x_bld = embed(&self.embedding, &pass.tokens);
        for (i, block) in self.blocks.iter().enumerate() {
            let (block, reading) = (Rc::clone(block), Rc::clone(&reading));
            if !pass.wants.state() && i + 1 == layers {
                let inputs = [&x_bld, &c_bc];
                let last =
                    self.parameters.stage(i, &inputs, move |s| block.keys(&s[0], &s[1], &reading));
                keys.extend(last);
                break;
            }
            let inputs: Vec<&Tensor> = [&x_bld, &c_bc].into_iter().chain(pass.past_of(i)).collect();
            let [x, k, v] = self.parameters.stage(i, &inputs, move |s| {
                let attend = |attention: &SelfAttention, h: &Tensor| {
                    attention.read(h, &reading, s.get(2).zip(s.get(3)))
                };
                let (x, [k, v]) = block.forward(&s[0], &s[1], train, attend);
                [x, k, v]
            });
            x_bld = x;
            if pass.wants.keys() {
                keys.extend([k, v]);
            }
        }
        let hidden = if pass.wants.state() { self.finish(&x_bld, &c_bc) } else { x_bld };
        Ok(Passed::new(hidden).keys(keys))
    }

    fn logits(&self, hidden_nd: &Tensor) -> Result<Tensor> {
        Ok(linear(hidden_nd, &self.head.weight, self.head.bias.as_ref()))
    }

    fn head(&self) -> Option<Head> {
        let bias = self.head.bias.as_ref().map(Tensor::shallow_clone);
        Some(Head { weight: self.head.weight.shallow_clone(), bias })
    }
}

/// `hf_dit`: `dit` by the name that published command lines give it for a Hugging Face folder.
struct HfDit(Dit);

impl Component for HfDit {
    const NAME: &'static str = "hf_dit";
    const ABOUT: &'static str = "`dit`, as command lines for Hugging Face folders call it";
    const PROVIDES: &'static [&'static str] = READS;
    type Config = Config;

    fn new(config: Config, context: &Context) -> Result<Self> {
        Dit::new(config, context).map(Self)
    }
}

impl Backbone for HfDit {
    fn parameters(&self) -> &Parameters {
        self.0.parameters()
    }

    fn hidden(&self, xt_bl: &Tensor, sigma_b: &Tensor, train: bool) -> Result<Tensor> {
        self.0.hidden(xt_bl, sigma_b, train)
    }

    fn pass(&self, pass: &Pass, train: bool) -> Result<Passed> {
        self.0.pass(pass, train)
    }

    fn logits(&self, hidden_nd: &Tensor) -> Result<Tensor> {
        self.0.logits(hidden_nd)
    }

    fn head(&self) -> Option<Head> {
        self.0.head()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn small() -> Config {
        Config { hidden_size: 16, cond_dim: 8, n_blocks: 2, dropout: 0.0, ..Config::default() }
    }

    #[test]
    fn contract() {
        maskdiff_plugin_api::testkit::backbone_contract::<Dit>(small());
        let tied = Config { tie_word_embeddings: true, ..small() };
        maskdiff_plugin_api::testkit::backbone_contract::<Dit>(tied);
        let bare = Config { final_norm: false, ..small() };
        maskdiff_plugin_api::testkit::backbone_contract::<Dit>(bare);
        maskdiff_plugin_api::testkit::backbone_contract::<HfDit>(small());
    }

    #[test]
    fn a_width_that_heads_do_not_divide_is_refused() {
        let error = Config { hidden_size: 10, ..small() }.checked().unwrap_err();
        assert!(error.to_string().contains("`hidden_size` (10)"), "{error}");
    }
}
