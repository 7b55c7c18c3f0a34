//! Options of the network, and the sizes that follow from them.

use maskdiff_plugin_api::nn::Heads;
use maskdiff_plugin_api::prelude::*;

/// Deviation of the first embedding.
pub(crate) const INIT_STD: f64 = 0.02;

/// Options of the `model` group for `llama`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Config {
    /// D.
    #[schemars(range(min = 1, max = 65536))]
    pub(crate) hidden_size: i64,
    /// Not used: the group files name it for networks that see the noise level.
    #[schemars(range(min = 0, max = 65536))]
    pub(crate) cond_dim: i64,
    /// Transformer blocks.
    #[schemars(range(min = 1, max = 4096))]
    pub(crate) n_blocks: i64,
    /// Heads of the queries.
    #[schemars(range(min = 1, max = 4096))]
    pub(crate) n_heads: i64,
    /// Heads of keys and values, a divisor of `n_heads`; 0 is as many as those of the queries.
    #[schemars(range(min = 0, max = 4096))]
    pub(crate) n_kv_heads: i64,
    /// Width of a head, even; 0 is `hidden_size / n_heads`.
    #[schemars(range(min = 0, max = 65536))]
    pub(crate) head_size: i64,
    /// Width inside the MLP; 0 is four times `hidden_size`.
    #[schemars(range(min = 0, max = 1_048_576))]
    pub(crate) mlp_size: i64,
    /// Base of the rotary frequencies.
    #[schemars(range(max = 1e12), extend("exclusiveMinimum" = 0.0))]
    pub(crate) rope_theta: f64,
    /// Joins the mean of the squares in every norm.
    #[schemars(range(max = 1.0), extend("exclusiveMinimum" = 0.0))]
    pub(crate) norm_eps: f64,
    /// Biases of queries, keys and values, as Dream and Qwen2 have.
    pub(crate) qkv_bias: bool,
    /// Norms of queries and keys in each head, as Qwen3 has.
    pub(crate) qk_norm: bool,
    /// Use the embedding as the head's matrix.
    pub(crate) tie_word_embeddings: bool,
    /// A token's law comes from the state of the token before it, as in Dream and other networks that were autoregressive. The first
    /// token then has no state of its own: give a prompt, or a BOS. It reads no `past`, so neither blocks nor any order.
    #[schemars(extend("x-withdraws" = ["past"], "x-first-given" = true))]
    pub(crate) shift: bool,
    /// Not used: these networks have none.
    #[schemars(range(min = 0.0), extend("exclusiveMaximum" = 1.0))]
    pub(crate) dropout: f64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            hidden_size: 256,
            cond_dim: 128,
            n_blocks: 4,
            n_heads: 4,
            n_kv_heads: 0,
            head_size: 0,
            mlp_size: 0,
            rope_theta: 10_000.0,
            norm_eps: 1e-5,
            qkv_bias: false,
            qk_norm: false,
            tie_word_embeddings: false,
            shift: false,
            dropout: 0.0,
        }
    }
}

impl Config {
    /// The heads that the options ask for.
    pub(crate) fn heads(&self) -> Result<Heads> {
        let Self { hidden_size, n_blocks, n_heads, norm_eps, rope_theta, .. } = *self;
        for (name, value) in
            [("hidden_size", hidden_size), ("n_blocks", n_blocks), ("n_heads", n_heads)]
        {
            ensure!(value > 0, Config, "`{name}` must be at least 1, got {value}");
        }
        for (name, value) in [
            ("n_kv_heads", self.n_kv_heads),
            ("head_size", self.head_size),
            ("mlp_size", self.mlp_size),
        ] {
            ensure!(value >= 0, Config, "`{name}` must not be negative, got {value}");
        }
        for (name, value) in [("norm_eps", norm_eps), ("rope_theta", rope_theta)] {
            ensure!(value > 0.0, Config, "`{name}` must be above 0, got {value}");
        }
        let n_kv_heads = if self.n_kv_heads == 0 { n_heads } else { self.n_kv_heads };
        ensure!(
            n_heads % n_kv_heads == 0,
            Config,
            "`n_heads` ({n_heads}) must be a multiple of `n_kv_heads` ({n_kv_heads})"
        );
        let head_size = match self.head_size {
            0 => {
                ensure!(
                    hidden_size % n_heads == 0 && hidden_size / n_heads % 2 == 0,
                    Config,
                    "`hidden_size` ({hidden_size}) must be an even multiple of `n_heads` ({n_heads}), or `head_size` be set"
                );
                hidden_size / n_heads
            }
            size => size,
        };
        ensure!(head_size % 2 == 0, Config, "`head_size` must be even, got {head_size}");
        Ok(Heads {
            hidden_size,
            n_heads,
            n_kv_heads,
            head_size,
            qkv_bias: self.qkv_bias,
            qk_norm: self.qk_norm.then_some(norm_eps),
        })
    }

    /// The width inside the MLP.
    pub(crate) fn width(&self) -> i64 {
        if self.mlp_size == 0 { 4 * self.hidden_size } else { self.mlp_size }
    }
}
