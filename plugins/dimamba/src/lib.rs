//! `dimamba`: the bidirectional Mamba of MDLM, with the original's parameter names.
//!
//! Pre-norm blocks of two selective scans, one from the left and one from the right; no attention, so work and memory
//! are linear in the length.
//!
//! Shape letters: `B` batch, `L` length, `D` hidden size, `C` conditioning size, `W` width of the blocks (D, or D + C
//! with `concat`), `E` channels inside a mixer, `N` states of a channel, `R` rank of the step sizes, `V` vocabulary
//! including the mask.
//!
//! Source: Gu and Dao 2023, arXiv:2312.00752; Schiff et al. 2024, arXiv:2403.03234; MDLM code, `models/dimamba.py`.
//! Differences: the original has residual connections with `adaln` only (`residual = false` gives its other networks)
//! and always drops out 0.1; its table of embeddings has C unused rows with `concat`, where it also ties a head that
//! does not fit.

use maskdiff_plugin_api::nn::{Modulation, TimestepEmbedder, linear, rms_norm};
use maskdiff_plugin_api::prelude::*;
use maskdiff_plugin_api::tch::{Device, Kind};

mod block;
mod mixer;

use block::Block;

export_plugin!();
register!(backbone DiMamba);

/// How the noise level enters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum Conditioning {
    /// It shifts, scales and gates every block.
    Adaln,
    /// Its embedding is added to the tokens'.
    Add,
    /// Its embedding stands before each token's.
    Concat,
    /// Not at all.
    Null,
}

/// How the two directions become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Directions {
    /// Their sum.
    Add,
    /// Their product, element by element.
    EwMultiply,
}

/// Options of the `model` group for `dimamba`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Config {
    /// D, the width of a token's embedding.
    #[schemars(range(min = 1, max = 65536))]
    hidden_size: i64,
    /// C, the width of the noise-level embedding; with `temb_strategy=add` it is D and this is not used.
    #[schemars(range(min = 1, max = 65536))]
    cond_dim: i64,
    /// Blocks.
    #[schemars(range(min = 1, max = 4096))]
    n_blocks: i64,
    /// Dropout after each mixer while training, in [0, 1).
    #[schemars(range(min = 0.0), extend("exclusiveMaximum" = 1.0))]
    dropout: f64,
    /// Use the embedding as the head's matrix.
    tie_word_embeddings: bool,
    /// How the noise level enters: `adaln`, `add`, `concat`, `null`.
    temb_strategy: Conditioning,
    /// Residual connections between blocks; `false` is what the original does with all but `adaln`, which has its own.
    residual: bool,
    /// How the two directions become one: `add`, `ew_multiply`.
    bidirectional_strategy: Directions,
    /// The two directions share the maps into and out of the mixer.
    bidirectional_weight_tie: bool,
    /// E / W.
    #[schemars(range(min = 1, max = 64))]
    expand: i64,
    /// N.
    #[schemars(range(min = 1, max = 4096))]
    d_state: i64,
    /// Width of the causal convolution before each scan.
    #[schemars(range(min = 1, max = 4096))]
    d_conv: i64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            hidden_size: 256,
            cond_dim: 128,
            n_blocks: 4,
            dropout: 0.1,
            tie_word_embeddings: false,
            temb_strategy: Conditioning::Adaln,
            residual: true,
            bidirectional_strategy: Directions::Add,
            bidirectional_weight_tie: true,
            expand: 2,
            d_state: 16,
            d_conv: 4,
        }
    }
}

impl Config {
    fn checked(self, context: &Context) -> Result<Self> {
        for (name, value) in [
            ("hidden_size", self.hidden_size),
            ("cond_dim", self.cond_dim),
            ("n_blocks", self.n_blocks),
            ("expand", self.expand),
            ("d_state", self.d_state),
            ("d_conv", self.d_conv),
        ] {
            ensure!(value > 0, Config, "`{name}` must be at least 1, got {value}");
        }
        let dropout = self.dropout;
        ensure!(
            (0.0..1.0).contains(&dropout),
            Config,
            "`dropout` must lie in [0, 1), got {dropout}"
        );
        let temb = self.temb_strategy;
        ensure!(
            temb != Conditioning::Concat || !self.tie_word_embeddings,
            Config,
            "`tie_word_embeddings` does not go with `temb_strategy=concat`: the head reads {} numbers of a token, its \
             embedding has {}",
            self.hidden_size + self.cond_dim,
            self.hidden_size
        );
        ensure!(
            temb != Conditioning::Null || !context.time_conditioning,
            Config,
            "`temb_strategy=null` hides the noise level from the network, `time_conditioning=true` asks for it: choose \
             `temb_strategy` adaln, add or concat, or `time_conditioning=false`"
        );
        ensure!(
            temb != Conditioning::Adaln || self.residual,
            Config,
            "`residual=false` does not go with `temb_strategy=adaln`, whose blocks always have a residual connection"
        );
        Ok(self)
    }

    /// W.
    fn width(&self) -> i64 {
        match self.temb_strategy {
            Conditioning::Concat => self.hidden_size + self.cond_dim,
            _ => self.hidden_size,
        }
    }
}

/// Prefix of everything but the head and the noise-level embedding.
pub(crate) const TRUNK: &str = "model.bimamba.backbone";

/// See the module documentation.
struct DiMamba {
    parameters: Parameters,
    conditioning: Conditioning,
    timestep: Option<TimestepEmbedder>,
    embedding: Tensor,
    blocks: Vec<Block>,
    norm_f: Tensor,
    modulation_final: Option<Modulation>,
    head: Tensor,
}

impl Component for DiMamba {
    const NAME: &'static str = "dimamba";
    const ABOUT: &'static str = "bidirectional Mamba, linear in the length";
    type Config = Config;

    fn new(config: Config, context: &Context) -> Result<Self> {
        let config = config.checked(context)?;
        let (v, d, width) = (context.vocab_size, config.hidden_size, config.width());
        let mut p = Parameters::new(context);
        let cond_dim = match config.temb_strategy {
            Conditioning::Null => None,
            Conditioning::Add => Some(d),
            Conditioning::Adaln | Conditioning::Concat => Some(config.cond_dim),
        };
        let timestep = cond_dim.map(|c| TimestepEmbedder::new(&mut p, c));
        let words = Tensor::randn([v, d], (Kind::Float, Device::Cpu)) * 0.02;
        let embedding = p.add(&format!("{TRUNK}.embeddings.word_embeddings.weight"), words);
        let modulated = config.temb_strategy == Conditioning::Adaln;
        let blocks = (0..config.n_blocks)
            .map(|i| Block::new(&mut p, i, width, modulated, &config))
            .collect();
        let modulation_final = modulated.then(|| {
            let name = format!("{TRUNK}.adaLN_modulation_final");
            Modulation::new(&mut p, &name, 2 * width, config.cond_dim)
        });
        // In the order in which the original lists them.
        let norm_f = p.constant(&format!("{TRUNK}.norm_f.weight"), &[width], 1.0);
        let head = if config.tie_word_embeddings {
            p.shared("model.lm_head.weight", &embedding);
            embedding.shallow_clone()
        } else {
            p.linear("model.lm_head.weight", v, width)
        };
        Ok(Self {
            parameters: p,
            conditioning: config.temb_strategy,
            timestep,
            embedding,
            blocks,
            norm_f,
            modulation_final,
            head,
        })
    }
}

impl Backbone for DiMamba {
    fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    fn hidden(&self, xt_bl: &Tensor, sigma_b: &Tensor, train: bool) -> Result<Tensor> {
        let (b, l) = check_shape!(xt_bl, [B, L], Int64);
        let c_bc = self.timestep.as_ref().map(|timestep| timestep.forward(sigma_b).silu());
        let mut h_blw = Tensor::embedding(&self.embedding, xt_bl, -1, false, false);
        if let Some(c_b1c) = c_bc.as_ref().map(|c| c.unsqueeze(1)) {
            match self.conditioning {
                Conditioning::Add => h_blw = c_b1c + h_blw,
                Conditioning::Concat => {
                    h_blw = Tensor::cat(&[c_b1c.expand([b, l, -1], false), h_blw], -1);
                }
                Conditioning::Adaln | Conditioning::Null => {}
            }
        }
        for block in &self.blocks {
            h_blw = block.forward(h_blw, c_bc.as_ref(), train)?;
        }
        let h_blw = rms_norm(&h_blw, &self.norm_f);
        Ok(match (&self.modulation_final, &c_bc) {
            (Some(modulation), Some(c_bc)) => {
                let m = modulation.chunks(c_bc, 2);
                h_blw * (&m[1] + 1.0) + &m[0]
            }
            _ => h_blw,
        })
    }

    fn logits(&self, hidden_nd: &Tensor) -> Result<Tensor> {
        Ok(linear(hidden_nd, &self.head, None))
    }

    fn head(&self) -> Option<Head> {
        Some(Head { weight: self.head.shallow_clone(), bias: None })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use maskdiff_plugin_api::testkit::backbone_contract;

    fn small() -> Config {
        Config { hidden_size: 16, cond_dim: 8, n_blocks: 2, dropout: 0.0, ..Config::default() }
    }

    #[test]
    fn contract() {
        use Conditioning::{Adaln, Add, Concat};
        for temb_strategy in [Adaln, Add, Concat] {
            backbone_contract::<DiMamba>(Config { temb_strategy, ..small() });
        }
        backbone_contract::<DiMamba>(Config { tie_word_embeddings: true, ..small() });
        backbone_contract::<DiMamba>(Config { bidirectional_weight_tie: false, ..small() });
        let bidirectional_strategy = Directions::EwMultiply;
        backbone_contract::<DiMamba>(Config { bidirectional_strategy, ..small() });
        backbone_contract::<DiMamba>(Config { temb_strategy: Add, residual: false, ..small() });
    }

    #[test]
    fn options_that_do_not_fit_are_refused() {
        let context = Context::new(9, 4).mask(Some(8)).time_conditioning(true).kind(Kind::Float);
        let refused = |config: Config, reason: &str| {
            let error = config.checked(&context).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        };
        let concat = Config { temb_strategy: Conditioning::Concat, ..small() };
        refused(Config { tie_word_embeddings: true, ..concat }, "reads 24 numbers");
        refused(Config { temb_strategy: Conditioning::Null, ..small() }, "time_conditioning");
        refused(Config { residual: false, ..small() }, "always have a residual");
        refused(Config { d_state: 0, ..small() }, "`d_state` must be at least 1");
    }
}
