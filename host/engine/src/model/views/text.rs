//! Texts that grow block by block: what their next block sees.
//!
//! A clean token's keys and values depend on its own and earlier blocks alone, so those of finished blocks are kept (the cache is exact).

use maskdiff_config::listed::Context;
use maskdiff_plugin_api::{Model as Lent, Pass, Result, Sees, Wants};
use tch::{Kind, Tensor};

use super::blocks::BlockView;
use crate::model::Model;

/// How texts grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Growth {
    /// Tokens of a block.
    pub size: i64,
    /// Tokens that a block and what it sees have at most.
    pub window: i64,
    /// What is done with tokens beyond the window.
    pub context: Context,
    /// Keep keys and values of finished blocks, or read what is before a block in every call.
    pub cached: bool,
}

/// What stands before a block.
#[derive(Debug)]
pub(super) struct Past {
    /// The position of the block's first token.
    at: i64,
    batch: i64,
    holds: Holds,
}

#[derive(Debug)]
enum Holds {
    /// Keys and values, layer by layer: `[B, H, P, K]`.
    Keys(Vec<Tensor>),
    /// Tokens `[B, P]` from a position on, which are read in every call.
    Tokens { x_bp: Tensor, from: i64, size: i64 },
}

impl Past {
    /// How many texts there are.
    pub(super) fn texts(&self) -> i64 {
        self.batch
    }

    /// Keys and values `[B, H, P, K]` of what is before position `at`.
    pub(super) fn of_keys(keys: &[Tensor], at: i64, batch: i64) -> Self {
        let before = |keys: &Tensor| keys.narrow(2, 0, at);
        let keys = if at == 0 { Vec::new() } else { keys.iter().map(before).collect() };
        Self { at, batch, holds: Holds::Keys(keys) }
    }

    /// A call over a block `[N, b]` of some of the texts, or of all in order. Its noise level is set by the caller.
    pub(super) fn pass(
        &self,
        model: &Model,
        x_nb: &Tensor,
        texts_n: Option<&Tensor>,
    ) -> Result<Pass> {
        // All of them in order need no copy.
        let all = |texts_n: &&Tensor| {
            texts_n.numel() as i64 == self.batch
                && **texts_n == Tensor::arange(self.batch, (Kind::Int64, texts_n.device()))
        };
        let texts_n = texts_n.filter(|texts_n| !all(texts_n));
        let of_texts = |x: &Tensor| match texts_n {
            Some(texts_n) => x.index_select(0, texts_n),
            None => x.shallow_clone(),
        };
        let keys = match &self.holds {
            Holds::Keys(keys) => keys.iter().map(of_texts).collect(),
            Holds::Tokens { x_bp, .. } if x_bp.size()[1] == 0 => Vec::new(),
            Holds::Tokens { x_bp, from, size } => {
                read(model, &of_texts(x_bp), *from, &[], Sees::Blocks(*size))?
            }
        };
        Ok(Pass::new(x_nb, &silent(x_nb)).positions(&positions(x_nb, self.at)).past(&keys))
    }
}

fn silent(x_bl: &Tensor) -> Tensor {
    Tensor::zeros([x_bl.size()[0]], (Kind::Double, x_bl.device()))
}

fn positions(x_bl: &Tensor, from: i64) -> Tensor {
    let length = x_bl.size()[1];
    Tensor::arange_start(from, from + length, (Kind::Int64, x_bl.device())).unsqueeze(0)
}

/// Keys and values of clean tokens `[B, S]` from a position on.
fn read(
    model: &Model,
    x_bs: &Tensor,
    from: i64,
    past: &[Tensor],
    sees: Sees,
) -> Result<Vec<Tensor>> {
    let pass = Pass::new(x_bs, &silent(x_bs))
        .positions(&positions(x_bs, from))
        .past(past)
        .sees(sees)
        .wants(Wants::Keys);
    Ok(Lent::pass(model, &pass)?.keys)
}

/// Texts of a batch, all at the same block.
#[derive(Debug)]
pub struct Text<'a> {
    model: &'a Model,
    growth: Growth,
    /// All tokens so far, `[B, P]`.
    x_bp: Tensor,
    /// Keys and values of the last of them.
    keys: Vec<Tensor>,
    /// Tokens whose keys and values are held, or will be when the next block is read.
    read: i64,
}

impl<'a> Text<'a> {
    /// Empty texts.
    pub fn new(model: &'a Model, batch: i64, growth: Growth) -> Self {
        let x_bp = Tensor::zeros([batch, 0], (Kind::Int64, model.facts().device()));
        Self { model, growth, x_bp, keys: Vec::new(), read: 0 }
    }

    /// The tokens so far, `[B, P]`.
    pub fn tokens(&self) -> &Tensor {
        &self.x_bp
    }

    /// Appends finished blocks `[B, k b]`.
    pub fn push(&mut self, x_bs: &Tensor) {
        self.x_bp = Tensor::cat(&[&self.x_bp, x_bs], 1);
    }

    /// The first position that the next block sees.
    fn from(&self) -> i64 {
        let (at, Growth { size, window, context, .. }) = (self.x_bp.size()[1], self.growth);
        match context {
            Context::All => 0,
            Context::Slide | Context::Reread => (at + size - window).max(0),
        }
    }

    /// The model over the next block, whose given positions are `[B, b] bool`. What was pushed and is not held yet is read now.
    pub fn next(&mut self, given_bb: Option<Tensor>) -> Result<BlockView<'a>> {
        let (at, batch, from) = (self.x_bp.size()[1], self.x_bp.size()[0], self.from());
        let Growth { size, context, cached, .. } = self.growth;
        let holds = if cached {
            self.hold(at, from, context == Context::Reread)?;
            Holds::Keys(self.keys.iter().map(Tensor::shallow_clone).collect())
        } else {
            Holds::Tokens { x_bp: self.x_bp.narrow(1, from, at - from), from, size }
        };
        let past = Past { at, batch, holds };
        Ok(BlockView::next(self.model, size, past).given(given_bb))
    }

    /// The same for one of the texts alone.
    pub fn next_of(&mut self, row: i64, given_1b: Option<Tensor>) -> Result<BlockView<'a>> {
        let (at, from) = (self.x_bp.size()[1], self.from());
        let Growth { size, context, cached, .. } = self.growth;
        let of_row = |x: &Tensor| x.narrow(0, row, 1);
        let holds = if cached {
            self.hold(at, from, context == Context::Reread)?;
            Holds::Keys(self.keys.iter().map(of_row).collect())
        } else {
            Holds::Tokens { x_bp: of_row(&self.x_bp.narrow(1, from, at - from)), from, size }
        };
        let past = Past { at, batch: 1, holds };
        Ok(BlockView::next(self.model, size, past).given(given_1b))
    }

    /// Reads what is not held yet, and drops what is out of the window.
    fn hold(&mut self, at: i64, from: i64, anew: bool) -> Result<()> {
        let size = self.growth.size;
        if anew && from > 0 {
            // What left the window would still be in the keys of those that saw it.
            let x_bp = self.x_bp.narrow(1, from, at - from);
            self.keys = read(self.model, &x_bp, from, &[], Sees::Blocks(size))?;
            self.read = at;
            return Ok(());
        }
        while self.read < at {
            // One block over its past sees all of it; several see one another as blocks do, from the start of the text.
            let new = if self.read == 0 {
                (at - self.read).min(self.growth.window.max(size))
            } else {
                size
            };
            let sees = if self.read == 0 { Sees::Blocks(size) } else { Sees::All };
            let x_bs = self.x_bp.narrow(1, self.read, new);
            let own = read(self.model, &x_bs, self.read, &self.keys, sees)?;
            let joined = |(past, own): (&Tensor, &Tensor)| Tensor::cat(&[past, own], 2);
            self.keys = match self.keys.is_empty() {
                true => own,
                false => self.keys.iter().zip(&own).map(joined).collect(),
            };
            self.read += new;
            let held = self.keys.first().map_or(0, |keys| keys.size()[2]);
            let most = self.growth.window - size;
            if self.growth.context != Context::All && held > most {
                let cut = |keys: &Tensor| keys.narrow(2, held - most, most).contiguous();
                self.keys = self.keys.iter().map(cut).collect();
                if most == 0 {
                    self.keys.clear();
                }
            }
        }
        Ok(())
    }
}
