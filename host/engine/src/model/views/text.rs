//! Texts that grow block by block: what their next block sees.
//!
//! A clean token's keys and values depend on its own and earlier blocks alone, so those of finished blocks are kept (the cache is exact).

use std::cell::RefCell;
use std::rc::Rc;

use maskdiff_config::listed::Context;
use maskdiff_plugin_api::{Model as Lent, Pass, Passed, Result, Sees, Tokens, Wants};
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
    /// Keys and values of texts that grow.
    Growing(Rc<RefCell<Held>>),
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

    /// The states `[N, b, D]` of a block of some of the texts, or of all in order.
    pub(super) fn state(
        &self,
        model: &Model,
        tokens: Tokens,
        sigma_n: &Tensor,
        texts_n: Option<&Tensor>,
    ) -> Result<Tensor> {
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
            Holds::Growing(held) => {
                let mut held = held.borrow_mut();
                if let (None, Tokens::Ids(x_bb)) = (texts_n, &tokens)
                    && let Some(state) = held.read_with(model, x_bb, sigma_n)?
                {
                    return Ok(state);
                }
                held.read_pending(model)?;
                held.keys.iter().map(of_texts).collect()
            }
            Holds::Keys(keys) => keys.iter().map(of_texts).collect(),
            Holds::Tokens { x_bp, .. } if x_bp.size()[1] == 0 => Vec::new(),
            Holds::Tokens { x_bp, from, size } => {
                read(model, &of_texts(x_bp), *from, &[], Sees::Blocks(*size))?
            }
        };
        let mut pass = Pass::new(tokens.ids(), sigma_n)
            .positions(&positions(tokens.ids(), self.at))
            .past(&keys);
        pass.tokens = tokens;
        Ok(Lent::pass(model, &pass)?.hidden)
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

/// Keys and values of texts that grow.
#[derive(Debug, Default)]
struct Held {
    /// Of the last tokens that were read, layer by layer.
    keys: Vec<Tensor>,
    /// Tokens that were read so far.
    read: i64,
    /// The finished block `[B, b]` behind them. It is read with the next one, in one call.
    pending: Option<Tensor>,
    /// How many tokens are held at most; `None` for all.
    most: Option<i64>,
}

impl Held {
    fn columns(&self) -> i64 {
        self.keys.first().map_or(0, |keys| keys.size()[2])
    }

    /// Appends keys and values, and drops what is out of the window.
    fn append(&mut self, own: Vec<Tensor>) {
        self.read += own.first().map_or(0, |keys| keys.size()[2]);
        let joined = |(past, own): (&Tensor, &Tensor)| Tensor::cat(&[past, own], 2);
        self.keys = match self.keys.is_empty() {
            true => own,
            false => self.keys.iter().zip(&own).map(joined).collect(),
        };
        let held = self.columns();
        if let Some(most) = self.most.filter(|most| held > *most) {
            let cut = |keys: &Tensor| keys.narrow(2, held - most, most).contiguous();
            self.keys = self.keys.iter().map(cut).collect();
            if most == 0 {
                self.keys.clear();
            }
        }
    }

    /// Reads clean tokens `[B, S]` behind all that was read.
    fn read(&mut self, model: &Model, x_bs: &Tensor, sees: Sees) -> Result<()> {
        let own = read(model, x_bs, self.read, &self.keys, sees)?;
        self.append(own);
        Ok(())
    }

    /// Reads the finished block alone.
    fn read_pending(&mut self, model: &Model) -> Result<()> {
        match self.pending.take() {
            // One block over its past sees all of it.
            Some(x_bb) => self.read(model, &x_bb, Sees::All),
            None => Ok(()),
        }
    }

    /// Reads the finished block and the tokens `[B, b]` of the next one in one call, where there is one to read: the states of the next one.
    ///
    /// The clean tokens do not see the others, so their keys and values are those of a call of their own. What leaves the window when
    /// they join is seen by them, and not by the next block.
    fn read_with(
        &mut self,
        model: &Model,
        x_bb: &Tensor,
        sigma_b: &Tensor,
    ) -> Result<Option<Tensor>> {
        let Some(clean) = self.pending.take() else { return Ok(None) };
        let (size, held) = (x_bb.size()[1], self.columns());
        let dropped = self.most.map_or(0, |most| (held + size - most).clamp(0, held + size));
        let (all, device) = (held + 2 * size, x_bb.device());
        let pairs = Tensor::ones([2 * size, all], (Kind::Bool, device));
        let _ = pairs.narrow(0, 0, size).narrow(1, held + size, size).fill_(0);
        let _ = pairs.narrow(0, size, size).narrow(1, 0, dropped).fill_(0);
        let sigma = match model.facts().time_conditioning {
            true => {
                let next = sigma_b.unsqueeze(1).expand([x_bb.size()[0], size], false);
                Tensor::cat(&[next.zeros_like(), next], 1)
            }
            false => silent(x_bb),
        };
        let both = Tensor::cat(&[&clean, x_bb], 1);
        let pass = Pass::new(&both, &sigma)
            .positions(&positions(&both, self.read))
            .past(&self.keys)
            .sees(Sees::Pairs(pairs))
            .wants(Wants::Both);
        let Passed { hidden, keys, .. } = Lent::pass(model, &pass)?;
        self.append(keys.iter().map(|keys| keys.narrow(2, 0, size)).collect());
        Ok(Some(hidden.narrow(1, size, size)))
    }
}

/// Texts of a batch, all at the same block.
#[derive(Debug)]
pub struct Text<'a> {
    model: &'a Model,
    growth: Growth,
    /// All tokens so far, `[B, P]`.
    x_bp: Tensor,
    held: Rc<RefCell<Held>>,
}

impl<'a> Text<'a> {
    /// Empty texts.
    pub fn new(model: &'a Model, batch: i64, growth: Growth) -> Self {
        let x_bp = Tensor::zeros([batch, 0], (Kind::Int64, model.facts().device()));
        let most = (growth.context != Context::All).then_some(growth.window - growth.size);
        let held = Rc::new(RefCell::new(Held { most, ..Held::default() }));
        Self { model, growth, x_bp, held }
    }

    /// The tokens so far, `[B, P]`.
    pub fn tokens(&self) -> &Tensor {
        &self.x_bp
    }

    /// Appends finished blocks `[B, k b]`.
    pub fn push(&mut self, x_bs: &Tensor) {
        self.x_bp = Tensor::cat(&[&self.x_bp, x_bs], 1);
    }

    /// The tokens from a position on.
    fn since(&self, from: i64) -> Tensor {
        self.x_bp.narrow(1, from, self.at() - from)
    }

    /// How many there are so far.
    fn at(&self) -> i64 {
        self.x_bp.size()[1]
    }

    /// The first position that the next block sees.
    fn from(&self) -> i64 {
        let Growth { size, window, context, .. } = self.growth;
        match context {
            Context::All => 0,
            Context::Slide | Context::Reread => (self.at() + size - window).max(0),
        }
    }

    /// The model over the next block, whose given positions are `[B, b] bool`. What was pushed and is not held yet is read now, or with
    /// the first call over that block.
    pub fn next(&mut self, given_bb: Option<Tensor>) -> Result<BlockView<'a>> {
        let Growth { size, cached, .. } = self.growth;
        let (at, batch, from) = (self.at(), self.x_bp.size()[0], self.from());
        let holds = if cached {
            self.hold()?;
            Holds::Growing(Rc::clone(&self.held))
        } else {
            Holds::Tokens { x_bp: self.since(from), from, size }
        };
        let past = Past { at, batch, holds };
        Ok(BlockView::next(self.model, size, past).given(given_bb))
    }

    /// The same for one of the texts alone.
    pub fn next_of(&mut self, row: i64, given_1b: Option<Tensor>) -> Result<BlockView<'a>> {
        let Growth { size, cached, .. } = self.growth;
        let (at, from) = (self.at(), self.from());
        let of_row = |x: &Tensor| x.narrow(0, row, 1);
        let holds = if cached {
            self.hold()?;
            let mut held = self.held.borrow_mut();
            held.read_pending(self.model)?;
            Holds::Keys(held.keys.iter().map(of_row).collect())
        } else {
            Holds::Tokens { x_bp: of_row(&self.since(from)), from, size }
        };
        let past = Past { at, batch: 1, holds };
        Ok(BlockView::next(self.model, size, past).given(given_1b))
    }

    /// Reads what is not held yet but the last block, which waits for the next one.
    fn hold(&mut self) -> Result<()> {
        let Growth { size, window, context, .. } = self.growth;
        let from = self.from();
        if context == Context::Reread && from > 0 {
            // What left the window would still be in the keys of those that saw it.
            let seen = self.since(from);
            // A block that is the whole window sees nothing before it.
            let keys = match seen.size()[1] {
                0 => Vec::new(),
                _ => read(self.model, &seen, from, &[], Sees::Blocks(size))?,
            };
            let most = self.held.borrow().most;
            *self.held.borrow_mut() = Held { keys, read: self.at(), pending: None, most };
            return Ok(());
        }
        let mut held = self.held.borrow_mut();
        loop {
            let left = self.at() - held.read;
            if left <= size {
                held.pending = (left > 0).then(|| self.since(self.at() - left));
                return Ok(());
            }
            // Several blocks see one another as blocks do, from the start of the text; later ones come one by one.
            let begins = held.read == 0;
            let new = if begins { (left - size).min(window.max(size)) } else { size };
            let sees = if begins { Sees::Blocks(size) } else { Sees::All };
            let x_bs = self.since(held.read).narrow(1, 0, new);
            held.read(self.model, &x_bs, sees)?;
        }
    }
}
