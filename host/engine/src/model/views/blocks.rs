//! The model as components see it in blocks: each sequence that they are shown is one block.

use std::cell::{Cell, RefCell};

use maskdiff_plugin_api::{
    Interpolation, Mix, Model as Lent, Pass, Passed, Rated, Result, Sees, Tokens, Wants, Window,
    bail, ensure,
};
use tch::{Device, Kind, Tensor};

use super::bounds::Interval;
use super::settings::Blocks;
use super::text::Past;
use crate::model::Model;

/// What the network reads of what is shown.
#[derive(Debug)]
pub(super) enum Reads {
    /// All blocks of texts `[B, L]`, over keys and values of the clean texts but for their last blocks.
    Texts { batch: i64, length: i64, keys: Vec<Tensor> },
    /// One block of each text, over what is before it.
    Next(Past),
}

/// A model whose sequences are blocks. Shape letters: `B` batch, `L` length, `K` blocks of a text, `N` blocks that are shown, `b` tokens
/// of a block.
#[derive(Debug)]
pub struct BlockView<'a> {
    model: &'a Model,
    size: i64,
    reads: Reads,
    /// Tokens that noise leaves alone, `[N, b] bool`.
    given_nb: RefCell<Option<Tensor>>,
    /// Masks are drawn anew until their share lies there.
    redraws: Option<Interval>,
    /// The texts that the next call is about.
    turned: RefCell<Option<Tensor>>,
    /// Whether a call came about other texts than it could be told.
    untold: Cell<bool>,
}

impl<'a> BlockView<'a> {
    /// All blocks of clean texts `x0_bl [B, L]`, which are read once, but for the last block, for their keys and values.
    pub fn of_texts(model: &'a Model, blocks: &Blocks, x0_bl: &Tensor) -> Result<Self> {
        let (batch, length) = (x0_bl.size()[0], x0_bl.size()[1]);
        ensure!(
            length % blocks.size == 0,
            Shape,
            "texts of {length} tokens are no whole blocks of {}",
            blocks.size
        );
        let keys = clean(model, blocks.size, x0_bl)?;
        Ok(Self::over(model, blocks.size, Reads::Texts { batch, length, keys }))
    }

    /// Of texts that have been read, the blocks that begin at a position, over what is before them.
    ///
    /// # Panics
    /// A view of other than whole texts.
    #[must_use]
    pub fn at(&self, at: i64) -> Self {
        let Reads::Texts { batch, keys, .. } = &self.reads else { panic!("no whole texts") };
        Self::next(self.model, self.size, Past::of_keys(keys, at, *batch))
    }

    /// The next block of texts, over what is before it.
    pub(super) fn next(model: &'a Model, size: i64, past: Past) -> Self {
        Self::over(model, size, Reads::Next(past))
    }

    fn over(model: &'a Model, size: i64, reads: Reads) -> Self {
        Self {
            model,
            size,
            reads,
            given_nb: RefCell::new(None),
            redraws: None,
            turned: RefCell::new(None),
            untold: Cell::new(false),
        }
    }

    /// With tokens `[N, b] bool` that are given.
    #[must_use]
    pub(crate) fn given(self, given_nb: Option<Tensor>) -> Self {
        self.give(given_nb);
        self
    }

    /// Says which tokens `[N, b] bool` are given from now on.
    pub(super) fn give(&self, given_nb: Option<Tensor>) {
        *self.given_nb.borrow_mut() = given_nb;
    }

    /// With masks whose share lies in an interval.
    #[must_use]
    pub(crate) fn redraws(mut self, interval: Option<Interval>) -> Self {
        self.redraws = interval;
        self
    }

    /// Whether a sampler has asked about some of the texts without saying which. It walks them one at a time, then.
    pub fn untold(&self) -> bool {
        self.untold.get()
    }

    /// The texts that a call over N blocks is about; none for all of them, in order.
    fn turned(&self, shown: i64, texts: i64) -> Result<Option<Tensor>> {
        let turned = self.turned.borrow_mut().take();
        match turned {
            Some(texts_n) => {
                ensure!(
                    texts_n.size() == [shown],
                    Shape,
                    "a call over {shown} sequences, and `turn_to` named {:?}",
                    texts_n.size()
                );
                Ok(Some(texts_n))
            }
            None if shown == texts => Ok(None),
            // Of a single text all are about it.
            None if texts == 1 => {
                Ok(Some(Tensor::zeros([shown], (Kind::Int64, self.model.facts().device()))))
            }
            None => {
                self.untold.set(true);
                bail!(
                    Unsupported,
                    "a call over {shown} of {texts} sequences: `turn_to` says which they are"
                )
            }
        }
    }

    /// A call of the network over blocks that are shown.
    fn read(&self, tokens: Tokens, sigma_n: &Tensor) -> Result<Tensor> {
        let (shown, size) = (tokens.ids().size()[0], tokens.ids().size()[1]);
        ensure!(size == self.size, Shape, "a call over {size} tokens in blocks of {}", self.size);
        match &self.reads {
            Reads::Texts { batch, length, keys } => {
                let (own, length) = (*batch, *length);
                let all = own * length / size;
                ensure!(
                    shown % all == 0 && shown > 0,
                    Unsupported,
                    "a call over {shown} blocks of {all}: in blocks, a loss asks about all of them"
                );
                // A loss may ask about several corruptions of the batch at once, one batch behind the other.
                let (times, batch) = (shown / all, shown / all * own);
                let repeated = |key: &Tensor| key.repeat([times, 1, 1, 1]);
                let many: Vec<Tensor>;
                let keys = match times {
                    1 => keys,
                    _ => {
                        many = keys.iter().map(repeated).collect();
                        &many
                    }
                };
                let whole = |x: &Tensor| {
                    let rest = x.size()[2..].to_vec();
                    x.reshape([&[batch, length], rest.as_slice()].concat())
                };
                let tokens = match &tokens {
                    Tokens::Ids(ids) => Tokens::Ids(whole(ids)),
                    Tokens::Mixture { ids, weight } => {
                        Tokens::Mixture { ids: whole(ids), weight: whole(weight) }
                    }
                };
                let sigma = match self.model.facts().time_conditioning {
                    true => {
                        sigma_n.unsqueeze(1).expand([shown, size], false).reshape([batch, length])
                    }
                    false => Tensor::zeros([batch], (Kind::Double, sigma_n.device())),
                };
                let positions = Tensor::arange(length, (Kind::Int64, sigma_n.device()));
                let mut pass = Pass::new(tokens.ids(), &sigma)
                    .positions(&positions.unsqueeze(0))
                    .past(keys)
                    .sees(Sees::Earlier(size));
                pass.tokens = tokens;
                let hidden = Lent::pass(self.model, &pass)?.hidden;
                Ok(hidden.reshape([shown, size, -1]))
            }
            Reads::Next(past) => {
                let turned = self.turned(shown, past.texts())?;
                past.state(self.model, tokens, sigma_n, turned.as_ref())
            }
        }
    }
}

/// Keys and values of clean texts `[B, L]`, at positions from 0 on: without the last block, before which everything stands. None where
/// a text is one block.
fn clean(model: &Model, size: i64, x0_bl: &Tensor) -> Result<Vec<Tensor>> {
    let (batch, length) = (x0_bl.size()[0], x0_bl.size()[1]);
    if length <= size {
        return Ok(Vec::new());
    }
    let sigma = Tensor::zeros([batch], (Kind::Double, x0_bl.device()));
    let pass = Pass::new(&x0_bl.narrow(1, 0, length - size), &sigma)
        .sees(Sees::Blocks(size))
        .wants(Wants::Keys);
    Ok(Lent::pass(model, &pass)?.keys)
}

impl Lent for BlockView<'_> {
    fn vocab_size(&self) -> i64 {
        self.model.vocab_size()
    }

    fn mask_id(&self) -> Option<i64> {
        self.model.mask_id()
    }

    fn time_conditioning(&self) -> bool {
        self.model.time_conditioning()
    }

    fn device(&self) -> Device {
        self.model.device()
    }

    fn sigma(&self, t: &Tensor) -> Result<Tensor> {
        self.model.sigma(t)
    }

    fn dsigma(&self, t: &Tensor) -> Result<Tensor> {
        self.model.dsigma(t)
    }

    fn time_of_alpha(&self, alpha: &Tensor) -> Result<Tensor> {
        self.model.time_of_alpha(alpha)
    }

    fn sigma_range(&self) -> Result<(f64, f64)> {
        self.model.sigma_range()
    }

    fn importance(&self, t: &Tensor) -> Result<Tensor> {
        self.model.importance(t)
    }

    fn corrupt(&self, x0_nb: &Tensor, alpha_n: &Tensor) -> Result<Tensor> {
        let free_nb = self.given_nb.borrow().as_ref().map(Tensor::logical_not);
        let draw = || self.model.corrupt_shown(x0_nb, alpha_n);
        let x_nb = match (self.redraws, self.mask_id()) {
            (Some(interval), Some(mask)) => interval.redrawn(mask, free_nb.as_ref(), draw)?,
            _ => draw()?,
        };
        Ok(match &free_nb {
            Some(free_nb) => x_nb.where_self(free_nb, x0_nb),
            None => x_nb,
        })
    }

    fn posterior(
        &self,
        xt_n: &Tensor,
        alpha_t: f64,
        alpha_s: f64,
        p_nv: &Tensor,
    ) -> Result<Tensor> {
        self.model.posterior(xt_n, alpha_t, alpha_s, p_nv)
    }

    fn hidden(&self, xt_nb: &Tensor, sigma_n: &Tensor) -> Result<Tensor> {
        self.model.note_hidden(xt_nb, sigma_n);
        self.read(Tokens::Ids(xt_nb.shallow_clone()), sigma_n)
    }

    fn extend(&self, _: &Tensor, _: Vec<Tensor>) -> Result<(Tensor, Vec<Tensor>)> {
        bail!(Unsupported, "in blocks (`block_size`) no text is read token by token")
    }

    fn logits(&self, hidden_nd: &Tensor) -> Result<Tensor> {
        self.model.logits(hidden_nd)
    }

    fn weighted_nll(
        &self,
        hidden_nd: &Tensor,
        target_n: &Tensor,
        weight_n: &Tensor,
        banned: Option<i64>,
    ) -> Result<Tensor> {
        self.model.weighted_nll(hidden_nd, target_n, weight_n, banned)
    }

    fn log_x0(&self, xt_nb: &Tensor, t_n: &Tensor, rows: &Tensor) -> Result<Tensor> {
        self.model.note_law(false, xt_nb, t_n, rows);
        let log_p_nv = self.model.method().log_x0(self, xt_nb, t_n, rows)?;
        self.model.note_answer(xt_nb, rows, &log_p_nv);
        Ok(log_p_nv)
    }

    fn score(&self, xt_nb: &Tensor, t_n: &Tensor, rows: &Tensor) -> Result<Tensor> {
        self.model.note_law(true, xt_nb, t_n, rows);
        self.model.method().score(self, xt_nb, t_n, rows)
    }

    fn progress(&self, done: i64, total: i64, xt_nb: &Tensor) -> Result<()> {
        self.model.progress(done, total, xt_nb)
    }

    fn mixing(&self, alpha_b: &Tensor) -> Result<Mix> {
        self.model.mixing(alpha_b)
    }

    fn arrival(&self, alpha_b: &Tensor) -> Result<Mix> {
        self.model.arrival(alpha_b)
    }

    /// A plain one: what a block sees and where it stands is the view's.
    fn pass(&self, pass: &Pass) -> Result<Passed> {
        let plain = matches!(pass.sees, Sees::All) && pass.wants == Wants::State;
        ensure!(
            plain && pass.past.is_empty() && pass.positions.is_none() && pass.label.is_none(),
            Unsupported,
            "in blocks (`block_size`) a component's call has tokens and noise levels and nothing else"
        );
        ensure!(
            pass.sigma.dim() == 1,
            Unsupported,
            "in blocks (`block_size`) all tokens of a block have one noise level"
        );
        let tokens = match &pass.tokens {
            Tokens::Ids(ids) => Tokens::Ids(ids.shallow_clone()),
            Tokens::Mixture { ids, weight } => {
                Tokens::Mixture { ids: ids.shallow_clone(), weight: weight.shallow_clone() }
            }
        };
        Ok(Passed::new(self.read(tokens, &pass.sigma)?))
    }

    fn other(&self, name: &str) -> Result<Option<&dyn Lent>> {
        bail!(Unsupported, "in blocks (`block_size`) there is no model `{name}` beside this one")
    }

    fn token_sigma(&self, tokens_nb: &Tensor, t_n: &Tensor) -> Result<Tensor> {
        self.model.token_sigma(tokens_nb, t_n)
    }

    fn token_dsigma(&self, tokens_nb: &Tensor, t_n: &Tensor) -> Result<Tensor> {
        self.model.token_dsigma(tokens_nb, t_n)
    }

    fn corrupt_tokens(&self, x0_nb: &Tensor, alpha_nb: &Tensor) -> Result<Tensor> {
        let x_nb = self.model.corrupt_tokens(x0_nb, alpha_nb)?;
        Ok(match self.given_nb.borrow().as_ref() {
            Some(given_nb) => x0_nb.where_self(given_nb, &x_nb),
            None => x_nb,
        })
    }

    fn rated_nll(&self, rows: &Rated) -> Result<Tensor> {
        self.model.rated_nll(rows)
    }

    fn interpolating_nll(&self, rows: &Interpolation) -> Result<Tensor> {
        self.model.interpolating_nll(rows)
    }

    fn given(&self) -> Result<Option<Tensor>> {
        Ok(self.given_nb.borrow().as_ref().map(Tensor::shallow_clone))
    }

    fn label(&self) -> Result<Option<Tensor>> {
        self.model.label()
    }

    fn step(&self) -> Result<Option<i64>> {
        self.model.step()
    }

    fn uniforms(&self, shape: &Vec<i64>) -> Result<Tensor> {
        self.model.uniforms(shape)
    }

    fn normals(&self, shape: &Vec<i64>) -> Result<Tensor> {
        self.model.normals(shape)
    }

    fn window(&self, _: &Window) -> Result<()> {
        bail!(
            Unsupported,
            "in blocks (`block_size`) finished blocks are kept exactly: a cache within a block is of no use"
        )
    }

    fn turn_to(&self, sequences_n: &Tensor) -> Result<()> {
        *self.turned.borrow_mut() = Some(sequences_n.shallow_clone());
        self.model.turn_to(sequences_n)
    }
}
