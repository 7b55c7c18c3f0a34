//! `ar`: the causal transformer that MDLM is compared with, with the original's parameter names.
//!
//! Shape letters: `B` batch, `L` length, `D` hidden size, `V` vocabulary including the mask, `N` rows.

use std::rc::Rc;

use maskdiff_plugin_api::nn::{
    Mlp, Reading, Rotary, Rotation, SelfAttention, embed, linear, norm, norm_beside, residual,
};
use maskdiff_plugin_api::prelude::*;

register!(backbone Ar);

/// Options of the `model` group for `ar`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct Config {
    /// D, a multiple of `n_heads`.
    #[schemars(range(min = 1, max = 65536))]
    hidden_size: i64,
    /// Not used: the group files name it for networks that see the noise level.
    #[schemars(range(min = 0, max = 65536))]
    cond_dim: i64,
    /// Transformer blocks.
    #[schemars(range(min = 1, max = 4096))]
    n_blocks: i64,
    /// Attention heads.
    #[schemars(range(min = 1, max = 4096))]
    n_heads: i64,
    /// Dropout after attention and after the MLP while training, in [0, 1).
    #[schemars(range(min = 0.0), extend("exclusiveMaximum" = 1.0))]
    dropout: f64,
    /// Use the embedding as the head's matrix.
    tie_word_embeddings: bool,
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
        }
    }
}

struct Block {
    norm1: Tensor,
    attention: SelfAttention,
    norm2: Tensor,
    mlp: Mlp,
    dropout: f64,
}

impl Block {
    /// The residual stream `[B, L, D]` through the block, whose attention is `attend`, with what else that gives.
    fn forward<T>(
        &self,
        x_bld: &Tensor,
        train: bool,
        attend: impl FnOnce(&SelfAttention, &Tensor) -> (Tensor, T),
    ) -> (Tensor, T) {
        let (x, h) = norm_beside(x_bld, &self.norm1);
        let (attended, more) = attend(&self.attention, &h);
        let x = residual(&x, None, &attended, self.dropout, train);
        let (x, h) = norm_beside(&x, &self.norm2);
        (residual(&x, None, &self.mlp.forward(&h), self.dropout, train), more)
    }
}

/// # Source
/// MDLM code, `models/autoregressive.py`. Differences: the head gives raw logits, the ban of the mask token is the
/// parameterization's; earlier positions can be kept in a cache.
struct Ar {
    parameters: Parameters,
    embedding: Tensor,
    rotary: Rotary,
    blocks: Vec<Rc<Block>>,
    norm_final: Tensor,
    head: Head,
}

impl Component for Ar {
    const NAME: &'static str = "ar";
    const ABOUT: &'static str = "causal transformer with a KV cache";
    const PROVIDES: &'static [&'static str] = &[
        capability::CAUSAL,
        capability::KV_CACHE,
        capability::MIXTURE,
        capability::POSITIONS,
        capability::PAST,
        capability::STAGES,
    ];
    type Config = Config;

    fn new(config: Config, context: &Context) -> Result<Self> {
        let Config { hidden_size: d, n_blocks, n_heads, dropout, .. } = config;
        for (name, value) in [("hidden_size", d), ("n_blocks", n_blocks), ("n_heads", n_heads)] {
            ensure!(value > 0, Config, "`{name}` must be at least 1, got {value}");
        }
        ensure!(
            d % n_heads == 0 && d / n_heads % 2 == 0,
            Config,
            "`hidden_size` ({d}) must be an even multiple of `n_heads` ({n_heads})"
        );
        ensure!(
            (0.0..1.0).contains(&dropout),
            Config,
            "`dropout` must lie in [0, 1), got {dropout}"
        );
        let v = context.vocab_size;
        let mut p = Parameters::new(context);
        let embedding = p.linear("vocab_embed.embedding", v, d);
        let rotary = Rotary::new(&mut p, d / n_heads);
        let mut blocks = Vec::new();
        for i in 0..n_blocks {
            let prefix = format!("blocks.{i}");
            blocks.push(Rc::new(Block {
                norm1: p.constant(&format!("{prefix}.norm1.weight"), &[d], 1.0),
                attention: SelfAttention::new(&mut p, &prefix, d, n_heads),
                norm2: p.constant(&format!("{prefix}.norm2.weight"), &[d], 1.0),
                mlp: Mlp::new(&mut p, &prefix, d),
                dropout,
            }));
        }
        let norm_final = p.constant("output_layer.norm_final.weight", &[d], 1.0);
        // The head starts at zero: the first prediction is uniform.
        let weight = if config.tie_word_embeddings {
            embedding.shallow_clone()
        } else {
            p.constant("output_layer.linear.weight", &[v, d], 0.0)
        };
        let bias = Some(p.constant("output_layer.linear.bias", &[v], 0.0));
        let head = Head { weight, bias };
        Ok(Self { parameters: p, embedding, rotary, blocks, norm_final, head })
    }
}

impl Ar {
    fn embed(&self, x_bl: &Tensor) -> Tensor {
        embed(&self.embedding, &Tokens::Ids(x_bl.shallow_clone()))
    }
}

impl Backbone for Ar {
    fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    fn hidden(&self, xt_bl: &Tensor, _sigma_b: &Tensor, train: bool) -> Result<Tensor> {
        let (_b, l) = check_shape!(xt_bl, [B, L], Int64);
        let rotation = Rc::new(self.rotary.at(0, l));
        let mut x_bld = self.embed(xt_bl);
        for (i, block) in self.blocks.iter().enumerate() {
            let (block, rotation) = (Rc::clone(block), Rc::clone(&rotation));
            [x_bld] = self.parameters.stage(i, &[&x_bld], move |s| {
                let attend = |attention: &SelfAttention, h: &Tensor| {
                    (attention.forward(h, &rotation, true), ())
                };
                [block.forward(&s[0], train, attend).0]
            });
        }
        Ok(norm(&x_bld, &self.norm_final))
    }

    fn logits(&self, hidden_nd: &Tensor) -> Result<Tensor> {
        Ok(linear(hidden_nd, &self.head.weight, self.head.bias.as_ref()))
    }

    fn head(&self) -> Option<Head> {
        let bias = self.head.bias.as_ref().map(Tensor::shallow_clone);
        Some(Head { weight: self.head.weight.shallow_clone(), bias })
    }

    /// Noise levels mean nothing to it. Without `sees = causal` it is a network that it was not trained as.
    fn pass(&self, pass: &Pass, train: bool) -> Result<Passed> {
        pass.only(Self::PROVIDES, Self::NAME)?;
        let layers = self.blocks.len();
        let reading = Rc::new(Reading::new(pass, &self.rotary, layers)?);
        let mut keys = Vec::with_capacity(2 * layers);
        let mut x_bld = embed(&self.embedding, &pass.tokens);
        for (i, block) in self.blocks.iter().enumerate() {
            let (block, reading) = (Rc::clone(block), Rc::clone(&reading));
            if !pass.wants.state() && i + 1 == layers {
                keys.extend(self.parameters.stage(i, &[&x_bld], move |s| {
                    block.attention.keys(&norm(&s[0], &block.norm1), &reading)
                }));
                break;
            }
            let inputs: Vec<&Tensor> = [&x_bld].into_iter().chain(pass.past_of(i)).collect();
            let [x, k, v] = self.parameters.stage(i, &inputs, move |s| {
                let attend = |attention: &SelfAttention, h: &Tensor| {
                    attention.read(h, &reading, s.get(1).zip(s.get(2)))
                };
                let (x, [k, v]) = block.forward(&s[0], train, attend);
                [x, k, v]
            });
            x_bld = x;
            if pass.wants.keys() {
                keys.extend([k, v]);
            }
        }
        let hidden = if pass.wants.state() { norm(&x_bld, &self.norm_final) } else { x_bld };
        Ok(Passed::new(hidden).keys(keys))
    }

    /// The cache holds keys and values of every block, `[B, H, P, K]` each.
    fn extend(&self, x_bl: &Tensor, cache: Vec<Tensor>) -> Result<(Tensor, Vec<Tensor>)> {
        let (_b, l) = check_shape!(x_bl, [B, L], Int64);
        let wanted = 2 * self.blocks.len();
        ensure!(
            cache.is_empty() || cache.len() == wanted,
            Shape,
            "a cache of this network has {wanted} tensors, got {}",
            cache.len()
        );
        let first = cache.first().map_or(0, |k| k.size()[2]);
        let rotation: Rotation = self.rotary.at(first, l);
        let mut longer = Vec::with_capacity(wanted);
        let mut x_bld = self.embed(x_bl);
        for (i, block) in self.blocks.iter().enumerate() {
            let past = cache.get(2 * i).zip(cache.get(2 * i + 1));
            let (x, kept) =
                block.forward(&x_bld, false, |attention, h| attention.extend(h, &rotation, past));
            longer.extend(kept);
            x_bld = x;
        }
        Ok((norm(&x_bld, &self.norm_final), longer))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind};

    fn small() -> Config {
        Config { hidden_size: 16, n_blocks: 2, n_heads: 2, dropout: 0.0, ..Config::default() }
    }

    #[test]
    fn contract() {
        maskdiff_plugin_api::testkit::backbone_contract::<Ar>(small());
    }

    #[test]
    fn a_causal_pass_is_the_network_and_a_prefix_may_see_itself() {
        let context = Context::new(11, 8).mask(Some(10)).kind(Kind::Double);
        tch::manual_seed(4);
        let net = Ar::new(small(), &context).unwrap();
        let x = Tensor::randint(10, [2, 8], (Kind::Int64, Device::Cpu));
        let sigma = Tensor::zeros([2], (Kind::Double, Device::Cpu));
        let whole = net.hidden(&x, &sigma, false).unwrap();
        let error = |a: &Tensor, b: &Tensor| (a - b).abs().max().double_value(&[]);
        let causal = Pass::new(&x, &sigma).sees(Sees::Causal).wants(Wants::Both);
        let Passed { hidden, keys, .. } = net.pass(&causal, false).unwrap();
        assert!(error(&hidden, &whole) < 1e-12);
        // The keys of a pass are the cache of `extend`.
        let (_, cache) = net.extend(&x, Vec::new()).unwrap();
        assert!(keys.iter().zip(&cache).all(|(a, b)| error(a, b) < 1e-12));
        let past: Vec<Tensor> = keys.iter().map(|keys| keys.narrow(2, 0, 5)).collect();
        let rest = Pass::new(&x.narrow(1, 5, 3), &sigma).sees(Sees::Causal).past(&past);
        assert!(error(&net.pass(&rest, false).unwrap().hidden, &whole.narrow(1, 5, 3)) < 1e-12);
        // A prefix that sees all of itself is another network at its first position, not at its last.
        let prefix = Pass::new(&x.narrow(1, 0, 5), &sigma);
        let open = net.pass(&prefix, false).unwrap().hidden;
        assert!(error(&open.select(1, 0), &whole.select(1, 0)) > 1e-6);
    }

    #[test]
    fn the_cache_changes_nothing() {
        let context = Context::new(11, 12).mask(Some(10)).kind(Kind::Double);
        let net = Ar::new(small(), &context).unwrap();
        tch::manual_seed(3);
        let x = Tensor::randint(10, [3, 12], (Kind::Int64, Device::Cpu));
        let whole =
            net.hidden(&x, &Tensor::zeros([3], (Kind::Double, Device::Cpu)), false).unwrap();
        let (mut cache, mut at) = (Vec::new(), 0);
        for piece in [3, 1, 1, 4, 1, 2] {
            let (hidden, longer) = net.extend(&x.narrow(1, at, piece), cache).unwrap();
            let error = (hidden - whole.narrow(1, at, piece)).abs().max().double_value(&[]);
            assert!(error < 1e-12, "positions {at}..{}: {error:e}", at + piece);
            (cache, at) = (longer, at + piece);
        }
    }
}
