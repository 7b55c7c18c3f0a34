//! One call of a network in full: soft or hard tokens, at given positions, over keys and values of other tokens.
//!
//! Shape letters: `B` batch, `S` tokens of this call, `P` tokens of the past, `M` tokens mixed at a position, `D` hidden size,
//! `H` heads, `K` head size.

use serde::{Deserialize, Serialize};
use tch::Tensor;

use crate::abi::message::{Crosses, Message, crosses};
use crate::{Result, bail};

/// What a network reads at each position.
#[derive(Debug)]
pub enum Tokens {
    /// One token, `[B, S] i64`.
    Ids(Tensor),
    /// A mixture of the embeddings of M tokens; needs [`crate::capability::MIXTURE`].
    Mixture {
        /// `[B, S, M] i64`.
        ids: Tensor,
        /// `[B, S, M]`, of floating point. The host does not scale them to a sum of 1.
        weight: Tensor,
    },
}

impl Tokens {
    /// The ids, `[B, S]` or `[B, S, M]`.
    pub fn ids(&self) -> &Tensor {
        match self {
            Self::Ids(ids) | Self::Mixture { ids, .. } => ids,
        }
    }
}

/// Noisy texts at their times, as a classifier reads them. Shape letters: `B` batch, `L` length, `M` tokens mixed at a position.
#[derive(Debug)]
#[non_exhaustive]
pub struct Noisy {
    /// `[B, L] i64`, or mixtures `[B, L, M]`.
    pub tokens: Tokens,
    /// Times `[B] f64`.
    pub t_b: Tensor,
}

crosses!(Noisy { tokens, t_b });

impl Noisy {
    /// Tokens `[B, L] i64` at times `[B] f64`.
    pub fn new(xt_bl: &Tensor, t_b: &Tensor) -> Self {
        Self { tokens: Tokens::Ids(xt_bl.shallow_clone()), t_b: t_b.shallow_clone() }
    }

    /// Every token of the vocabulary at each position, with weights `[B, L, V]` that add up to the embedding of what is there: of one-hot
    /// weights it is the text itself, and they may have a gradient.
    pub fn weighted(weight_blv: &Tensor, t_b: &Tensor) -> Self {
        let size = weight_blv.size();
        let all_v = Tensor::arange(size[2], (tch::Kind::Int64, weight_blv.device()));
        let tokens =
            Tokens::Mixture { ids: all_v.expand(&size, false), weight: weight_blv.shallow_clone() };
        Self { tokens, t_b: t_b.shallow_clone() }
    }

    /// The number of texts.
    pub fn texts(&self) -> i64 {
        self.tokens.ids().size().first().copied().unwrap_or(0)
    }
}

/// Which tokens a token attends to. The block of a token is its position divided by b. A token of the past stands at one of
/// the positions `0..P`.
#[derive(Debug)]
pub enum Sees {
    /// The past, and all tokens of the call.
    All,
    /// The past, and of the call itself and the tokens before it.
    Causal,
    /// Of past and call, its own block and earlier ones.
    Blocks(i64),
    /// Of the past, strictly earlier blocks; of the call, its own block.
    Earlier(i64),
    /// True where row `i` of the call sees column `j` of past and call: `[S, P + S]` or `[B, S, P + S] bool`.
    Pairs(Tensor),
}

impl Sees {
    /// The tokens of a block, where it speaks of blocks.
    pub fn block(&self) -> Option<i64> {
        match self {
            Self::Blocks(block) | Self::Earlier(block) => Some(*block),
            _ => None,
        }
    }

    /// As it is written in messages.
    pub fn name(&self) -> &'static str {
        match self {
            Self::All => "all",
            Self::Causal => "causal",
            Self::Blocks(_) => "blocks",
            Self::Earlier(_) => "earlier",
            Self::Pairs(_) => "pairs",
        }
    }
}

/// What a call is made for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Wants {
    /// The state that enters the head.
    #[default]
    State,
    /// Keys and values alone: the last layer's attention and MLP are not computed.
    Keys,
    /// Both.
    Both,
}

impl Wants {
    /// Whether the state is wanted.
    pub fn state(self) -> bool {
        self != Self::Keys
    }

    /// Whether keys and values are wanted.
    pub fn keys(self) -> bool {
        self != Self::State
    }
}

/// The arguments of [`crate::Backbone::pass`].
#[derive(Debug)]
#[non_exhaustive]
pub struct Pass {
    /// What the network reads.
    pub tokens: Tokens,
    /// The noise level, `[B] f64`, or `[B, S] f64` with [`crate::capability::TOKEN_SIGMA`].
    pub sigma: Tensor,
    /// Positions `[B, S]` or `[1, S] i64`; `None`: they follow the past. Needs [`crate::capability::POSITIONS`].
    pub positions: Option<Tensor>,
    /// A class for each sequence, `[B] i64`; the last class is "none". Needs [`crate::capability::LABEL`].
    pub label: Option<Tensor>,
    /// Keys and values of other tokens, layer by layer: `[B, H, P, K]` each. Needs [`crate::capability::PAST`].
    pub past: Vec<Tensor>,
    /// Which tokens a token attends to. What is not the network's own way needs [`crate::capability::PAST`].
    pub sees: Sees,
    /// What the call is made for. Keys need [`crate::capability::PAST`].
    pub wants: Wants,
}

crosses!(Pass { tokens, sigma, positions, label, past, sees, wants });

impl Pass {
    /// A call that reads tokens `[B, S] i64` at a noise level, and sees all of them.
    pub fn new(ids: &Tensor, sigma: &Tensor) -> Self {
        Self {
            tokens: Tokens::Ids(ids.shallow_clone()),
            sigma: sigma.shallow_clone(),
            positions: None,
            label: None,
            past: Vec::new(),
            sees: Sees::All,
            wants: Wants::State,
        }
    }

    /// The keys and values of other tokens in a layer: two, or none without a past.
    pub fn past_of(&self, layer: usize) -> impl Iterator<Item = &Tensor> {
        self.past.get(2 * layer..2 * layer + 2).into_iter().flatten()
    }

    /// Reads mixtures instead of tokens: `ids [B, S, M] i64`, `weight [B, S, M]`.
    #[must_use]
    pub fn mixture(mut self, ids: &Tensor, weight: &Tensor) -> Self {
        self.tokens = Tokens::Mixture { ids: ids.shallow_clone(), weight: weight.shallow_clone() };
        self
    }

    /// At these positions.
    #[must_use]
    pub fn positions(mut self, positions: &Tensor) -> Self {
        self.positions = Some(positions.shallow_clone());
        self
    }

    /// Of these classes.
    #[must_use]
    pub fn label(mut self, label: Option<&Tensor>) -> Self {
        self.label = label.map(Tensor::shallow_clone);
        self
    }

    /// Over keys and values of other tokens.
    #[must_use]
    pub fn past(mut self, past: &[Tensor]) -> Self {
        self.past = past.iter().map(Tensor::shallow_clone).collect();
        self
    }

    /// Attends like this.
    #[must_use]
    pub fn sees(mut self, sees: Sees) -> Self {
        self.sees = sees;
        self
    }

    /// Is made for this.
    #[must_use]
    pub fn wants(mut self, wants: Wants) -> Self {
        self.wants = wants;
        self
    }

    /// The same pass at another noise level.
    #[must_use]
    pub fn at_sigma(&self, sigma: &Tensor) -> Self {
        let tokens = match &self.tokens {
            Tokens::Ids(ids) => Tokens::Ids(ids.shallow_clone()),
            Tokens::Mixture { ids, weight } => {
                Tokens::Mixture { ids: ids.shallow_clone(), weight: weight.shallow_clone() }
            }
        };
        let sees = match &self.sees {
            Sees::All => Sees::All,
            Sees::Causal => Sees::Causal,
            Sees::Blocks(block) => Sees::Blocks(*block),
            Sees::Earlier(block) => Sees::Earlier(*block),
            Sees::Pairs(pairs) => Sees::Pairs(pairs.shallow_clone()),
        };
        Self {
            tokens,
            sigma: sigma.shallow_clone(),
            positions: self.positions.as_ref().map(Tensor::shallow_clone),
            label: self.label.as_ref().map(Tensor::shallow_clone),
            past: self.past.iter().map(Tensor::shallow_clone).collect(),
            sees,
            wants: self.wants,
        }
    }

    /// Refuses by name what a network does not read: all that is set but not among `reads`, the capability words.
    pub fn only(&self, reads: &[&str], backbone: &str) -> Result<()> {
        use crate::capability::{CAUSAL, LABEL, MIXTURE, PAST, POSITIONS, TOKEN_SIGMA};
        let own = match reads.contains(&CAUSAL) {
            true => matches!(self.sees, Sees::Causal),
            false => matches!(self.sees, Sees::All),
        };
        let sees = format!("sees = {}", self.sees.name());
        let mixed = matches!(self.tokens, Tokens::Mixture { .. });
        for (is_set, what, word) in [
            (mixed, "a mixture of tokens", MIXTURE),
            (self.sigma.dim() == 2, "a noise level for each token", TOKEN_SIGMA),
            (self.positions.is_some(), "`positions`", POSITIONS),
            (self.label.is_some(), "`label`", LABEL),
            (!self.past.is_empty(), "`past`", PAST),
            (!own, &format!("`{sees}`"), PAST),
            (self.wants.keys(), "a wish for keys and values", PAST),
        ] {
            if is_set && !reads.contains(&word) {
                bail!(
                    Unsupported,
                    "backbone `{backbone}` does not read {what}: that takes a backbone that offers `{word}`"
                );
            }
        }
        Ok(())
    }

    /// The ids `[B, S]` of a pass without mixtures.
    pub fn ids(&self) -> Result<&Tensor> {
        match &self.tokens {
            Tokens::Ids(ids) => Ok(ids),
            Tokens::Mixture { .. } => bail!(Unsupported, "a mixture of tokens has no one id"),
        }
    }
}

/// What [`crate::Backbone::pass`] returns.
#[derive(Debug)]
#[non_exhaustive]
pub struct Passed {
    /// The state that enters the head, `[B, S, D]`; of no meaning where only keys were wanted.
    pub hidden: Tensor,
    /// Keys, then values, of the tokens of this call, layer by layer: `[B, H, S, K]` each. Empty where they were not wanted.
    pub keys: Vec<Tensor>,
}

crosses!(Passed { hidden, keys });

impl Passed {
    /// A state, and no keys.
    pub fn new(hidden: Tensor) -> Self {
        Self { hidden, keys: Vec::new() }
    }

    /// The keys and values too.
    #[must_use]
    pub fn keys(mut self, keys: Vec<Tensor>) -> Self {
        self.keys = keys;
        self
    }
}

impl Crosses for Tokens {
    fn pack(&self, _: &str, message: &mut Message) {
        message.put("ids", self.ids());
        if let Self::Mixture { weight, .. } = self {
            message.put("weight", weight);
        }
    }

    fn unpack(_: &str, message: &mut Message) -> Result<Self> {
        let ids = Tensor::unpack("ids", message)?;
        Ok(match message.take("weight") {
            Some(weight) => Self::Mixture { ids, weight },
            None => Self::Ids(ids),
        })
    }
}

impl Crosses for Sees {
    fn pack(&self, _: &str, message: &mut Message) {
        match self {
            Self::All => {}
            Self::Causal => message.say("sees", self.name()),
            Self::Blocks(block) | Self::Earlier(block) => {
                message.say("sees", self.name());
                message.say("block", *block);
            }
            Self::Pairs(pairs) => message.put("pairs", pairs),
        }
    }

    fn unpack(_: &str, message: &mut Message) -> Result<Self> {
        if let Some(pairs) = message.take("pairs") {
            return Ok(Self::Pairs(pairs));
        }
        let Some(name) = message.hear::<String>("sees")? else { return Ok(Self::All) };
        if name == "causal" {
            return Ok(Self::Causal);
        }
        match (name.as_str(), message.hear::<i64>("block")?) {
            ("blocks", Some(block)) => Ok(Self::Blocks(block)),
            ("earlier", Some(block)) => Ok(Self::Earlier(block)),
            _ => bail!(Unsupported, "`pass` does not know what `sees = {name}` means"),
        }
    }
}
