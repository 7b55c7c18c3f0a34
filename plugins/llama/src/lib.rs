//! `llama`: the transformer of LLaDA, Dream and adapted Qwen, which sees both sides.
//!
//! Shape letters: `B` batch, `L` length, `S` tokens of a call, `D` hidden size, `V` vocabulary including the mask, `N` rows.

mod options;

use std::rc::Rc;

use maskdiff_plugin_api::nn::{GroupedAttention, Linear, Reading, RmsNorm, Rotary, SwiGlu, embed};
use maskdiff_plugin_api::prelude::*;

use options::Config;

maskdiff_plugin_api::export_plugin!();
register!(backbone Llama);

struct Block {
    norm1: RmsNorm,
    attention: GroupedAttention,
    norm2: RmsNorm,
    mlp: SwiGlu,
}

impl Block {
    /// `[B, S, D]` → `[B, S, D]`, and the keys and values of these tokens.
    fn forward(
        &self,
        x_bsd: &Tensor,
        reading: &Reading,
        past: Option<(&Tensor, &Tensor)>,
    ) -> [Tensor; 3] {
        let (attended, [k, v]) = self.attention.read(&self.norm1.forward(x_bsd), reading, past);
        let x_bsd = x_bsd + attended;
        [&x_bsd + self.mlp.forward(&self.norm2.forward(&x_bsd)), k, v]
    }
}

/// # Source
/// Nie et al. 2025, arXiv:2502.09992 (LLaDA); Ye et al. 2025, arXiv:2508.15487 (Dream); Qwen2.5 and Qwen3 without a causal
/// mask. Parameter names are Qwen's. Differences: the row of Dream's padding token is trained like any other.
struct Llama {
    shift: bool,
    parameters: Parameters,
    embedding: Tensor,
    rotary: Rotary,
    blocks: Vec<Rc<Block>>,
    norm: RmsNorm,
    head: Linear,
}

/// What a pass may ask for.
const READS: &[&str] =
    &[capability::MIXTURE, capability::POSITIONS, capability::PAST, capability::STAGES];

impl Component for Llama {
    const NAME: &'static str = "llama";
    const ABOUT: &'static str =
        "the network of LLaDA, Dream and adapted Qwen: grouped heads, SwiGLU, RMS norms";
    const PROVIDES: &'static [&'static str] = READS;
    type Config = Config;

    fn new(config: Config, context: &Context) -> Result<Self> {
        let heads = config.heads()?;
        let (d, v, eps) = (config.hidden_size, context.vocab_size, config.norm_eps);
        let mut p = Parameters::new(context);
        let embedding = p.normal("embed_tokens.weight", &[v, d], options::INIT_STD);
        let rotary = Rotary::of_theta(&p, heads.head_size, config.rope_theta);
        let mut blocks = Vec::new();
        for i in 0..config.n_blocks {
            let name = |part: &str| format!("layers.{i}.{part}");
            blocks.push(Rc::new(Block {
                norm1: RmsNorm::new(&mut p, &name("input_layernorm"), d, eps),
                attention: GroupedAttention::new(&mut p, &name("self_attn"), heads),
                norm2: RmsNorm::new(&mut p, &name("post_attention_layernorm"), d, eps),
                mlp: SwiGlu::new(&mut p, &name("mlp"), d, config.width()),
            }));
        }
        let norm = RmsNorm::new(&mut p, "norm", d, eps);
        let head = match config.tie_word_embeddings {
            true => {
                p.shared("lm_head.weight", &embedding);
                Linear::of(&embedding)
            }
            false => Linear::new(&mut p, "lm_head", v, d, false),
        };
        Ok(Self { shift: config.shift, parameters: p, embedding, rotary, blocks, norm, head })
    }
}

impl Llama {
    /// The state that enters the head, of the last block's `[B, S, D]`.
    fn finish(&self, x_bsd: &Tensor) -> Tensor {
        let hidden = self.norm.forward(x_bsd);
        if !self.shift {
            return hidden;
        }
        let before = hidden.narrow(1, 0, hidden.size()[1] - 1);
        Tensor::cat(&[hidden.narrow(1, 0, 1), before], 1)
    }
}

impl Backbone for Llama {
    fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    fn hidden(&self, xt_bl: &Tensor, _sigma_b: &Tensor, _train: bool) -> Result<Tensor> {
        let (_b, l) = check_shape!(xt_bl, [B, L], Int64);
        let reading = Rc::new(Reading::whole(l, &self.rotary));
        let mut x_bld = Tensor::embedding(&self.embedding, xt_bl, -1, false, false);
        for (i, block) in self.blocks.iter().enumerate() {
            let (block, reading) = (Rc::clone(block), Rc::clone(&reading));
            [x_bld] = self.parameters.stage(i, &[&x_bld], move |s| {
                let [x_bld, ..] = block.forward(&s[0], &reading, None);
                [x_bld]
            });
        }
        Ok(self.finish(&x_bld))
    }

    fn logits(&self, hidden_nd: &Tensor) -> Result<Tensor> {
        Ok(self.head.forward(hidden_nd))
    }

    fn head(&self) -> Option<Head> {
        Some(Head { weight: self.head.weight().shallow_clone(), bias: None })
    }

    fn pass(&self, pass: &Pass, _train: bool) -> Result<Passed> {
        pass.only(READS, Self::NAME)?;
        ensure!(
            !self.shift || pass.past.is_empty() || !pass.wants.state(),
            Unsupported,
            "backbone `llama` with `shift` predicts a token from the state before it, and `past` holds no states"
        );
        let layers = self.blocks.len();
        let reading = Rc::new(Reading::new(pass, &self.rotary, layers)?);
        let mut keys = Vec::with_capacity(2 * layers);
        let mut x_bsd = embed(&self.embedding, &pass.tokens);
        for (i, block) in self.blocks.iter().enumerate() {
            let (block, reading) = (Rc::clone(block), Rc::clone(&reading));
            if !pass.wants.state() && i + 1 == layers {
                keys.extend(self.parameters.stage(i, &[&x_bsd], move |s| {
                    block.attention.keys(&block.norm1.forward(&s[0]), &reading)
                }));
                break;
            }
            let inputs: Vec<&Tensor> = [&x_bsd].into_iter().chain(pass.past_of(i)).collect();
            let [x, k, v] = self
                .parameters
                .stage(i, &inputs, move |s| block.forward(&s[0], &reading, s.get(1).zip(s.get(2))));
            x_bsd = x;
            if pass.wants.keys() {
                keys.extend([k, v]);
            }
        }
        let hidden = if pass.wants.state() { self.finish(&x_bsd) } else { x_bsd };
        Ok(Passed::new(hidden).keys(keys))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind};

    fn small() -> Config {
        Config { hidden_size: 16, n_blocks: 2, n_heads: 4, mlp_size: 24, ..Config::default() }
    }

    #[test]
    fn contract() {
        let grouped = Config { n_kv_heads: 2, head_size: 6, qk_norm: true, ..small() };
        let biased = Config { qkv_bias: true, tie_word_embeddings: true, ..small() };
        for config in [small(), grouped, biased] {
            maskdiff_plugin_api::testkit::backbone_contract::<Llama>(config);
        }
    }

    fn made(config: Config, fresh: bool) -> Llama {
        let context = Context::new(11, 6).mask(Some(10)).kind(Kind::Double).fresh(fresh);
        tch::manual_seed(4);
        Llama::new(config, &context).unwrap()
    }

    #[test]
    fn a_shift_moves_the_state_by_one() {
        let (plain, shifted) = (made(small(), true), made(Config { shift: true, ..small() }, true));
        let x = Tensor::randint(10, [2, 6], (Kind::Int64, Device::Cpu));
        let sigma = Tensor::zeros([2], (Kind::Double, Device::Cpu));
        let hidden = |net: &Llama| net.hidden(&x, &sigma, false).unwrap();
        let (a, b) = (hidden(&plain), hidden(&shifted));
        assert_eq!(a.narrow(1, 0, 1), b.narrow(1, 0, 1));
        assert_eq!(a.narrow(1, 0, 5), b.narrow(1, 1, 5));
        let keys = plain.pass(&Pass::new(&x, &sigma).wants(Wants::Keys), false).unwrap().keys;
        let over = shifted.pass(&Pass::new(&x, &sigma).past(&keys), false).unwrap_err();
        assert!(over.to_string().contains("holds no states"), "{over}");
    }

    #[test]
    fn a_network_for_a_checkpoint_has_the_same_parameters() {
        let names = |net: &Llama| -> Vec<(String, Vec<i64>)> {
            let entries = net.parameters.entries().iter();
            entries.map(|p| (p.name.clone(), p.tensor.size())).collect()
        };
        let config = Config { qkv_bias: true, qk_norm: true, ..small() };
        assert_eq!(names(&made(config.clone(), true)), names(&made(config, false)));
    }

    #[test]
    fn sizes_that_do_not_go_together_are_refused() {
        for (config, said) in [
            (
                Config { n_kv_heads: 3, ..small() },
                "`n_heads` (4) must be a multiple of `n_kv_heads` (3)",
            ),
            (Config { hidden_size: 18, ..small() }, "`hidden_size` (18) must be"),
            (Config { head_size: 5, ..small() }, "`head_size` must be even, got 5"),
            (Config { norm_eps: 0.0, ..small() }, "`norm_eps`"),
        ] {
            let error = config.heads().unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
    }
}
