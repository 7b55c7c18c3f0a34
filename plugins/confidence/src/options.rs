//! Options of the sampler.

use maskdiff_plugin_api::ops::{Order, Restriction};
use maskdiff_plugin_api::prelude::*;

/// By which law a position is ranked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Rank {
    /// The model's own law.
    Law,
    /// The probability that the model's own law gives to the token drawn, as LLaDA ranks; for `order=confidence`.
    Drawn,
    /// The law after temperature, top-k and top-p, as Dream ranks; with `order=confidence` the probability of the token drawn.
    Restricted,
}

/// Which keys and values of tokens outside a block are those of the call that began it. Approximate: they would be others as soon as a token
/// opens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Cache {
    /// None: each call reads everything.
    None,
    /// Those before the block.
    Prefix,
    /// Those on both sides.
    Dual,
}

/// How many tokens open at each step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Plan {
    /// As many at each step as can be, the rest in the first steps, as LLaDA plans.
    Even,
    /// On times 1 to 0.001 in equal steps, `masked (1 - s/t)` rounded down, and all that are left in the last step, as Dream plans.
    Times,
}

/// Options under `sampling` for `confidence`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Config {
    /// Which token opens next: `confidence`, `margin`, `entropy`, `left_to_right`.
    pub(crate) order: Order,
    /// By which law tokens are ranked: `law`, `drawn`, `restricted`.
    pub(crate) rank: Rank,
    /// Tokens of a sequence that open at once, ≥ 1, where `total_steps` does not say it.
    #[schemars(range(min = 1, max = 16_777_216))]
    pub(crate) tokens_per_step: i64,
    /// Steps of a whole walk, shared out over its blocks; 0: as many as `tokens_per_step` takes.
    #[schemars(range(min = 0, max = 16_777_216))]
    pub(crate) total_steps: i64,
    /// How `total_steps` share out the tokens: `even`, `times`.
    pub(crate) plan: Plan,
    /// Tokens of a block. A block opens when those before it are whole; the first begins at the first masked token. 0: one block.
    #[schemars(range(min = 0, max = 16_777_216))]
    pub(crate) block_length: i64,
    /// APPROXIMATE, for speed: `prefix` reads what is before a block once, in the call that begins the block, and `dual` what is behind it too;
    /// each further call reads the rest. `none` reads everything in each call. Sequences are walked one at a time with it.
    #[schemars(extend("x-in-blocks" = "none"))]
    pub(crate) cache: Cache,
    /// Besides them, every token whose likeliest value has at least this probability opens; above 1 none does.
    #[schemars(range(max = 1e6), extend("exclusiveMinimum" = 0.0))]
    pub(crate) threshold: f64,
    /// Besides them, of the tokens in the order of their probability the n-th opens while it has at least `1 - factor / (n + 1)`;
    /// 0 opens none.
    #[schemars(range(min = 0.0, max = 1e6))]
    pub(crate) factor: f64,
    /// Log-probabilities are divided by this before the draw; 0 takes the likeliest token.
    #[schemars(range(min = 0.0, max = 1e6))]
    pub(crate) temperature: f64,
    /// Draw among the k likeliest tokens; 0 is all.
    #[schemars(range(min = 0, max = 2_147_483_647))]
    pub(crate) top_k: i64,
    /// Draw among the likeliest tokens whose mass first reaches p, in (0, 1].
    #[schemars(range(max = 1.0), extend("exclusiveMinimum" = 0.0))]
    pub(crate) top_p: f64,
    /// Positions are drawn with odds `exp(score / alg_temp)` instead of taken in order; 0 takes them in order.
    #[schemars(range(min = 0.0, max = 1e6))]
    pub(crate) alg_temp: f64,
    /// Ids that are never drawn.
    #[schemars(inner(range(min = 0, max = 2_147_483_647)))]
    pub(crate) banned: Vec<i64>,
    /// Ids that open last: a position where one is proposed is ranked behind all others.
    #[schemars(inner(range(min = 0, max = 2_147_483_647)))]
    pub(crate) doubted: Vec<i64>,
    /// A walk ends once everything in front of this token is open; what is behind it becomes this token. The host sets it where
    /// texts are cut at EOS.
    #[schemars(range(min = 0, max = 2_147_483_647))]
    pub(crate) eos_id: Option<i64>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            order: Order::Confidence,
            rank: Rank::Law,
            tokens_per_step: 1,
            total_steps: 0,
            plan: Plan::Even,
            block_length: 0,
            cache: Cache::None,
            threshold: 2.0,
            factor: 0.0,
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            alg_temp: 0.0,
            banned: Vec::new(),
            doubted: Vec::new(),
            eos_id: None,
        }
    }
}

impl Config {
    /// Whether the likeliest token is taken.
    pub(crate) fn is_greedy(&self) -> bool {
        self.temperature == 0.0
    }

    /// Checks what the options say together; the law to draw from.
    pub(crate) fn checked(&self, vocab_size: i64) -> Result<Restriction> {
        let Self { tokens_per_step, threshold, temperature, top_k, top_p, .. } = *self;
        ensure!(
            tokens_per_step > 0,
            Config,
            "`sampling.tokens_per_step` must be at least 1, got {tokens_per_step}"
        );
        ensure!(threshold > 0.0, Config, "`sampling.threshold` must be above 0, got {threshold}");
        for (name, value) in
            [("total_steps", self.total_steps), ("block_length", self.block_length)]
        {
            ensure!(value >= 0, Config, "`sampling.{name}` must not be negative, got {value}");
        }
        for (name, value) in [("factor", self.factor), ("alg_temp", self.alg_temp)] {
            ensure!(
                value >= 0.0 && value.is_finite(),
                Config,
                "`sampling.{name}` must not be negative, got {value}"
            );
        }
        ensure!(
            self.total_steps == 0 || tokens_per_step == 1,
            Config,
            "`sampling.total_steps` and `sampling.tokens_per_step` both say how many tokens open at once: leave one out"
        );
        ensure!(
            self.total_steps > 0 || self.plan == Plan::Even,
            Config,
            "`sampling.plan` shares out the steps of `sampling.total_steps`, which is not set"
        );
        ensure!(
            self.rank != Rank::Drawn || self.order == Order::Confidence,
            Config,
            "`sampling.rank = drawn` is a probability: it goes with `sampling.order = confidence`"
        );
        for (name, ids) in [("banned", &self.banned), ("doubted", &self.doubted)] {
            if let Some(id) = ids.iter().find(|id| !(0..vocab_size).contains(*id)) {
                bail!(
                    Config,
                    "`sampling.{name}` has token {id}, and the vocabulary 0..{vocab_size}"
                );
            }
        }
        Restriction::new(if self.is_greedy() { 1.0 } else { temperature }, top_k, top_p)
    }
}
