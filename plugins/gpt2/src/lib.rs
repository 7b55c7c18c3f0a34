//! `gpt2`: the transformer of GPT-2 with the parameter names of its published weights, which judges generated text; and
//! `diffugpt`, the same network where each token sees those on both sides.
//!
//! Shape letters: `B` batch, `L` length, `D` hidden size, `V` vocabulary, `P` earlier positions.

use std::rc::Rc;

use maskdiff_plugin_api::nn::{Reading, dropout, embed, linear, residual};
use maskdiff_plugin_api::prelude::*;

maskdiff_plugin_api::export_plugin!();
register!(backbone Gpt2);
register!(backbone DiffuGpt);

/// Options of the `model` group for `gpt2`.
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
    /// A token's law comes from the state of the token before it, as an autoregressive network has learnt it. Of use to a network that
    /// sees both sides; a causal one is read so by its method. It reads no `past`, so neither blocks nor any order.
    #[schemars(extend("x-withdraws" = ["past"], "x-first-given" = true))]
    shift: bool,
    /// Dropout of embeddings, attention weights and what joins the residual stream, while training, in [0, 1).
    #[schemars(range(min = 0.0), extend("exclusiveMaximum" = 1.0))]
    dropout: f64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            hidden_size: 768,
            cond_dim: 128,
            n_blocks: 12,
            n_heads: 12,
            shift: false,
            dropout: 0.1,
        }
    }
}

/// A layer norm with a bias.
struct Norm {
    weight: Tensor,
    bias: Tensor,
}

impl Norm {
    fn new(p: &mut Parameters, name: &str, d: i64) -> Self {
        let weight = p.constant(&format!("{name}.weight"), &[d], 1.0);
        Self { weight, bias: p.constant(&format!("{name}.bias"), &[d], 0.0) }
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        x.layer_norm(self.weight.size(), Some(&self.weight), Some(&self.bias), 1e-5, false)
    }
}

/// A linear map whose matrix is `[in, out]`, as published.
struct Map {
    weight: Tensor,
    bias: Tensor,
    slot: Slot,
}

impl Map {
    /// Drawn from a normal law of deviation `std`.
    fn new(p: &mut Parameters, name: &str, inputs: i64, outputs: i64, std: f64) -> Self {
        let weight = p.normal(&format!("{name}.weight"), &[inputs, outputs], std);
        let slot = p.slot(&format!("{name}.weight"), true);
        Self { weight, bias: p.constant(&format!("{name}.bias"), &[outputs], 0.0), slot }
    }

    /// `[B, L, in]` → `[B, L, out]`.
    fn forward(&self, x: &Tensor) -> Tensor {
        let size = x.size();
        let rows = self.bias.addmm(&x.flatten(0, 1), &self.weight);
        self.slot.add(x, rows.view([size[0], size[1], -1]))
    }
}

struct Block {
    ln_1: Norm,
    c_attn: Map,
    attn_c_proj: Map,
    ln_2: Norm,
    c_fc: Map,
    mlp_c_proj: Map,
    n_heads: i64,
    dropout: f64,
    causal: bool,
}

impl Block {
    /// Queries, keys and values of the stream `[B, L, D]`, `[B, H, L, K]` each.
    fn project(&self, x_bld: &Tensor) -> [Tensor; 3] {
        let size = x_bld.size();
        let qkv = self.c_attn.forward(&self.ln_1.forward(x_bld));
        let qkv = qkv.view([size[0], size[1], 3, self.n_heads, -1]).permute([2, 0, 3, 1, 4]);
        [0, 1, 2].map(|i| qkv.get(i))
    }

    /// The stream `[B, L, D]` with what attention `[B, H, L, K]` and the MLP add to it.
    fn join(&self, x_bld: &Tensor, out: &Tensor, train: bool) -> Tensor {
        let attended = self.attn_c_proj.forward(&out.transpose(1, 2).flatten(2, 3));
        let x_bld = residual(x_bld, None, &attended, self.dropout, train);
        residual(&x_bld, None, &self.widened(&x_bld), self.dropout, train)
    }

    /// The stream `[B, L, D]` over `past` keys and values, `[B, H, P, K]` each; with the longer ones.
    fn forward(
        &self,
        x_bld: &Tensor,
        past: Option<(&Tensor, &Tensor)>,
        train: bool,
    ) -> [Tensor; 3] {
        let [q, k, v] = self.project(x_bld);
        let dropout = if train { self.dropout } else { 0.0 };
        let attention = |k: &Tensor, v: &Tensor, bias: Option<&Tensor>, causal| {
            Tensor::scaled_dot_product_attention(&q, k, v, bias, dropout, causal, None, false)
        };
        let Some((past_k, past_v)) = past else {
            return [self.join(x_bld, &attention(&k, &v, None, self.causal), train), k, v];
        };
        let (new, earlier) = (q.size()[2], past_k.size()[2]);
        let (k, v) = (Tensor::cat(&[past_k, &k], 2), Tensor::cat(&[past_v, &v], 2));
        let seen = Tensor::ones([new, earlier + new], (tch::Kind::Bool, q.device())).tril(earlier);
        [self.join(x_bld, &attention(&k, &v, Some(&seen), false), train), k, v]
    }

    /// The same as a pass reads; its own keys and values. Attention weights are not dropped.
    fn read(
        &self,
        x_bld: &Tensor,
        reading: &Reading,
        past: Option<(&Tensor, &Tensor)>,
        train: bool,
    ) -> [Tensor; 3] {
        let [q, k, v] = self.project(x_bld);
        let out = reading.attend(&q, [&k, &v], past);
        [self.join(x_bld, &out, train), k, v]
    }

    /// What the MLP adds to the stream `[B, L, D]`.
    fn widened(&self, x_bld: &Tensor) -> Tensor {
        let wide = self.c_fc.forward(&self.ln_2.forward(x_bld)).gelu("tanh");
        self.mlp_c_proj.forward(&wide)
    }
}

/// The network, causal or not.
struct Net {
    config: Config,
    parameters: Parameters,
    wte: Tensor,
    wpe: Tensor,
    blocks: Vec<Rc<Block>>,
    ln_f: Norm,
}

/// Deviation of the first weights.
const INIT_STD: f64 = 0.02;

impl Net {
    fn new(config: Config, causal: bool, context: &Context) -> Result<Self> {
        let Config { hidden_size: d, n_blocks, n_heads, dropout, .. } = config;
        for (name, value) in [("hidden_size", d), ("n_blocks", n_blocks), ("n_heads", n_heads)] {
            ensure!(value > 0, Config, "`{name}` must be at least 1, got {value}");
        }
        ensure!(
            d % n_heads == 0,
            Config,
            "`hidden_size` ({d}) must be a multiple of `n_heads` ({n_heads})"
        );
        ensure!(
            (0.0..1.0).contains(&dropout),
            Config,
            "`dropout` must lie in [0, 1), got {dropout}"
        );
        let mut p = Parameters::new(context);
        let wte = p.normal("wte.weight", &[context.vocab_size, d], INIT_STD);
        let wpe = p.normal("wpe.weight", &[context.length, d], INIT_STD);
        // What joins the residual stream is the smaller, the more joins it.
        let joining = INIT_STD / (2.0 * n_blocks as f64).sqrt();
        let mut blocks = Vec::new();
        for i in 0..n_blocks {
            let name = |part: &str| format!("h.{i}.{part}");
            blocks.push(Rc::new(Block {
                ln_1: Norm::new(&mut p, &name("ln_1"), d),
                c_attn: Map::new(&mut p, &name("attn.c_attn"), d, 3 * d, INIT_STD),
                attn_c_proj: Map::new(&mut p, &name("attn.c_proj"), d, d, joining),
                ln_2: Norm::new(&mut p, &name("ln_2"), d),
                c_fc: Map::new(&mut p, &name("mlp.c_fc"), d, 4 * d, INIT_STD),
                mlp_c_proj: Map::new(&mut p, &name("mlp.c_proj"), 4 * d, d, joining),
                n_heads,
                dropout,
                causal,
            }));
        }
        let ln_f = Norm::new(&mut p, "ln_f", d);
        Ok(Self { config, parameters: p, wte, wpe, blocks, ln_f })
    }

    /// Tokens at positions `first ..`: `[B, L]` → `[B, L, D]`.
    fn embed(&self, x_bl: &Tensor, first: i64, train: bool) -> Result<Tensor> {
        let (_b, l) = check_shape!(x_bl, [B, L], Int64);
        let most = self.wpe.size()[0];
        ensure!(first + l <= most, Shape, "this network has {most} positions, got {}", first + l);
        let tokens = Tensor::embedding(&self.wte, x_bl, -1, false, false);
        Ok(dropout(&(tokens + self.wpe.narrow(0, first, l)), self.config.dropout, train))
    }

    /// The residual stream through all blocks, with the keys and values of each where they are `kept`.
    fn blocks(
        &self,
        mut x_bld: Tensor,
        past: &[Tensor],
        train: bool,
        kept: bool,
    ) -> (Tensor, Vec<Tensor>) {
        let mut keys = Vec::with_capacity(2 * self.blocks.len());
        for (i, block) in self.blocks.iter().enumerate() {
            let block = Rc::clone(block);
            let past = past.get(2 * i..2 * i + 2).into_iter().flatten();
            let inputs: Vec<&Tensor> = [&x_bld].into_iter().chain(past).collect();
            let [x, k, v] = self
                .parameters
                .stage(i, &inputs, move |s| block.forward(&s[0], s.get(1).zip(s.get(2)), train));
            x_bld = x;
            if kept {
                keys.extend([k, v]);
            }
        }
        (self.ln_f.forward(&x_bld), keys)
    }
}

/// What a pass may ask of a network that sees both sides.
const READS: &[&str] = &[
    capability::MIXTURE,
    capability::POSITIONS,
    capability::BOUNDED_POSITIONS,
    capability::PAST,
    capability::STAGES,
];

/// What a pass may ask of a causal one.
const READS_CAUSALLY: &[&str] = &[
    capability::CAUSAL,
    capability::KV_CACHE,
    capability::MIXTURE,
    capability::POSITIONS,
    capability::BOUNDED_POSITIONS,
    capability::PAST,
    capability::STAGES,
];

impl Net {
    /// One pass in full. Attention weights are not dropped, whatever `dropout` is.
    fn pass(&self, pass: &Pass, train: bool) -> Result<Passed> {
        let (layers, p) = (self.blocks.len(), self.config.dropout);
        let (reading, at) = Reading::still(pass, layers, self.wte.kind())?;
        let reading = Rc::new(reading);
        let most = self.wpe.size()[0];
        // sync: a table has no other rows.
        let last = if at.numel() > 0 { at.max().int64_value(&[]) } else { 0 };
        ensure!(
            last < most,
            Config,
            "this network has {most} positions, and a token stands at {last}"
        );
        let places = Tensor::embedding(&self.wpe, &at, -1, false, false);
        let mut x = dropout(&(embed(&self.wte, &pass.tokens) + places), p, train);
        let mut keys = Vec::with_capacity(2 * layers);
        for (i, block) in self.blocks.iter().enumerate() {
            let (block, reading) = (Rc::clone(block), Rc::clone(&reading));
            if !pass.wants.state() && i + 1 == layers {
                keys.extend(self.parameters.stage(i, &[&x], move |s| {
                    let [_q, k, v] = block.project(&s[0]);
                    [k, v]
                }));
                break;
            }
            let inputs: Vec<&Tensor> = [&x].into_iter().chain(pass.past_of(i)).collect();
            let [next, k, v] = self.parameters.stage(i, &inputs, move |s| {
                block.read(&s[0], &reading, s.get(1).zip(s.get(2)), train)
            });
            x = next;
            if pass.wants.keys() {
                keys.extend([k, v]);
            }
        }
        let hidden = if pass.wants.state() { self.finish(&x) } else { x };
        Ok(Passed::new(hidden).keys(keys))
    }

    fn hidden(&self, xt_bl: &Tensor, train: bool) -> Result<Tensor> {
        Ok(self.shifted(self.blocks(self.embed(xt_bl, 0, train)?, &[], train, false).0))
    }

    /// The state that enters the head, of the last block's `[B, S, D]`.
    fn finish(&self, x_bsd: &Tensor) -> Tensor {
        self.shifted(self.ln_f.forward(x_bsd))
    }

    fn shifted(&self, hidden: Tensor) -> Tensor {
        if !self.config.shift {
            return hidden;
        }
        let before = hidden.narrow(1, 0, hidden.size()[1] - 1);
        Tensor::cat(&[hidden.narrow(1, 0, 1), before], 1)
    }

    fn logits(&self, hidden_nd: &Tensor) -> Tensor {
        linear(hidden_nd, &self.wte, None)
    }

    fn head(&self) -> Head {
        Head { weight: self.wte.shallow_clone(), bias: None }
    }

    /// The cache holds keys and values of every block, `[B, H, P, K]` each.
    fn extend(&self, x_bl: &Tensor, cache: &[Tensor]) -> Result<(Tensor, Vec<Tensor>)> {
        let wanted = 2 * self.blocks.len();
        ensure!(
            cache.is_empty() || cache.len() == wanted,
            Shape,
            "a cache of this network has {wanted} tensors, got {}",
            cache.len()
        );
        let first = cache.first().map_or(0, |k| k.size()[2]);
        Ok(self.blocks(self.embed(x_bl, first, false)?, cache, false, true))
    }
}

/// # Source
/// Radford et al. 2019, "Language Models are Unsupervised Multitask Learners"; parameter names and the tanh GELU as in the
/// weights published as `gpt2`, `gpt2-medium`, `gpt2-large` and `gpt2-xl`. Differences: none known.
struct Gpt2(Net);

impl Component for Gpt2 {
    const NAME: &'static str = "gpt2";
    const ABOUT: &'static str = "GPT-2, by default its small size; reads published weights";
    const PROVIDES: &'static [&'static str] = READS_CAUSALLY;
    type Config = Config;

    fn new(config: Config, context: &Context) -> Result<Self> {
        ensure!(
            !config.shift,
            Config,
            "`shift` is for a network that sees both sides: backbone `diffugpt`"
        );
        Net::new(config, true, context).map(Self)
    }
}

/// What both backbones do alike, and what one has more.
macro_rules! over_net {
    ($backbone:ident { $($more:tt)* }) => {
        impl Backbone for $backbone {
            fn parameters(&self) -> &Parameters {
                &self.0.parameters
            }

            fn hidden(&self, xt_bl: &Tensor, _sigma_b: &Tensor, train: bool) -> Result<Tensor> {
                self.0.hidden(xt_bl, train)
            }

            fn logits(&self, hidden_nd: &Tensor) -> Result<Tensor> {
                Ok(self.0.logits(hidden_nd))
            }

            fn head(&self) -> Option<Head> {
                Some(self.0.head())
            }

            fn pass(&self, pass: &Pass, train: bool) -> Result<Passed> {
                // With `shift` a token is predicted from the state before it, and a past holds no states.
                let shifted = self.0.config.shift;
                let reads = Self::PROVIDES.iter().filter(|word| !shifted || **word != capability::PAST);
                pass.only(&reads.copied().collect::<Vec<&str>>(), Self::NAME)?;
                self.0.pass(pass, train)
            }

            $($more)*
        }
    };
}

over_net!(Gpt2 {
    fn extend(&self, x_bl: &Tensor, cache: Vec<Tensor>) -> Result<(Tensor, Vec<Tensor>)> {
        self.0.extend(x_bl, &cache)
    }
});

/// # Source
/// Gong et al. 2024, arXiv:2410.17891 (DiffuGPT, DiffuLLaMA): GPT-2 without its causal mask. Differences: none known.
struct DiffuGpt(Net);

impl Component for DiffuGpt {
    const NAME: &'static str = "diffugpt";
    const ABOUT: &'static str = "GPT-2 that sees both sides, by default its small size";
    const PROVIDES: &'static [&'static str] = READS;
    type Config = Config;

    fn new(config: Config, context: &Context) -> Result<Self> {
        Net::new(config, false, context).map(Self)
    }
}

over_net!(DiffuGpt {});

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind};

    fn small() -> Config {
        Config { hidden_size: 16, n_blocks: 2, n_heads: 2, dropout: 0.0, ..Config::default() }
    }

    #[test]
    fn contract() {
        maskdiff_plugin_api::testkit::backbone_contract::<Gpt2>(small());
        maskdiff_plugin_api::testkit::backbone_contract::<DiffuGpt>(small());
        let shifted = Config { shift: true, ..small() };
        maskdiff_plugin_api::testkit::backbone_contract::<DiffuGpt>(shifted);
    }

    #[test]
    fn the_cache_changes_nothing() {
        let context = Context::new(11, 12).kind(Kind::Double);
        tch::manual_seed(3);
        let net = Gpt2::new(small(), &context).unwrap();
        let x = Tensor::randint(11, [3, 12], (Kind::Int64, Device::Cpu));
        let sigma = Tensor::zeros([3], (Kind::Double, Device::Cpu));
        let whole = net.hidden(&x, &sigma, false).unwrap();
        let (mut cache, mut at) = (Vec::new(), 0);
        for piece in [3, 1, 1, 4, 1, 2] {
            let (hidden, longer) = net.extend(&x.narrow(1, at, piece), cache).unwrap();
            let error = (hidden - whole.narrow(1, at, piece)).abs().max().double_value(&[]);
            assert!(error < 1e-12, "positions {at}..{}: {error:e}", at + piece);
            (cache, at) = (longer, at + piece);
        }
        let said = net.extend(&x.narrow(1, 0, 1), cache).unwrap_err().to_string();
        assert!(said.contains("12 positions, got 13"), "{said}");
    }
}
