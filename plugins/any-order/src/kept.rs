//! The calls of a walk, and the keys and values that they leave.
//!
//! Shape letters: `A` texts that are still walked, `P` tokens that are kept, `S` tokens of a call, `H` heads, `K` head size, `N` rows.

use maskdiff_plugin_api::prelude::*;
use tch::Kind;

use crate::plan::Plan;

/// What a call was asked: the states of its masks `[N, D]`, and where these stand in the batch, `[N] i64`.
pub(crate) struct Asked {
    pub(crate) hidden_nd: Tensor,
    pub(crate) rows_n: Tensor,
}

/// Keys and values of the tokens that were revealed.
pub(crate) struct Kept {
    length: i64,
    keeps: bool,
    /// The texts that are still walked.
    texts: Vec<usize>,
    /// Layer by layer, `[A, H, C, K]`, of which the first P columns are filled; empty at first.
    keys: Vec<Tensor>,
    /// Which columns hold a token, for each text.
    holds: Vec<Vec<bool>>,
}

/// One token of a call.
#[derive(Clone, Copy)]
struct Slot {
    position: i64,
    /// Whether it is a mask.
    is_mask: bool,
    /// Whether it fills a row up.
    is_filler: bool,
}

/// The tokens of a call for one text: revealed ones first, filled up with others to a width that all texts have.
fn row(seen: &[i64], masks: &[i64], [revealed, opened]: [usize; 2]) -> Vec<Slot> {
    let part = |positions: &[i64], is_mask: bool, width: usize| -> Vec<Slot> {
        let own = positions.iter().map(|at| Slot { position: *at, is_mask, is_filler: false });
        let filler = Slot { position: 0, is_mask, is_filler: true };
        own.chain(std::iter::repeat(filler)).take(width).collect()
    };
    [part(seen, false, revealed), part(masks, true, opened)].concat()
}

impl Kept {
    /// Of a walk over texts of `length` tokens; one that does not keep reads all that was revealed in each call.
    pub(crate) fn new(plan: &Plan, length: i64, keeps: bool) -> Self {
        let texts: Vec<usize> = (0..plan.texts()).collect();
        let holds = vec![Vec::new(); texts.len()];
        Self { length, keeps, texts, keys: Vec::new(), holds }
    }

    /// Columns that are filled.
    fn width(&self) -> i64 {
        self.holds.first().map_or(0, |holds| holds.len() as i64)
    }

    /// Leaves the texts that are whole.
    fn narrow(&mut self, plan: &Plan, call: usize) {
        let open = |text: usize| plan.reveals(text, call).is_some();
        if self.texts.iter().all(|text| open(*text)) {
            return;
        }
        let left: Vec<usize> = (0..self.texts.len()).filter(|i| open(self.texts[*i])).collect();
        let index: Vec<i64> = left.iter().map(|i| *i as i64).collect();
        for keys in &mut self.keys {
            *keys = keys.index_select(0, &Tensor::from_slice(&index).to_device(keys.device()));
        }
        self.texts = left.iter().map(|i| self.texts[*i]).collect();
        self.holds = left.iter().map(|i| std::mem::take(&mut self.holds[*i])).collect();
    }

    /// The tokens that a text shows in a call beside its masks.
    fn seen(&self, plan: &Plan, text: usize, call: usize) -> Vec<i64> {
        let first = if self.keeps { call } else { 0 };
        (first..=call).flat_map(|call| plan.before(text, call).to_vec()).collect()
    }

    /// One call of the network: what was revealed last, kept from now on, and the masks that are revealed next.
    pub(crate) fn ask(
        &mut self,
        model: &Denoiser,
        plan: &Plan,
        x_bl: &Tensor,
        call: usize,
    ) -> Result<Asked> {
        self.narrow(plan, call);
        let seen: Vec<Vec<i64>> =
            self.texts.iter().map(|text| self.seen(plan, *text, call)).collect();
        let masks: Vec<&[i64]> =
            self.texts.iter().map(|text| plan.reveals(*text, call).unwrap_or_default()).collect();
        let widest = |all: &mut dyn Iterator<Item = usize>| all.max().unwrap_or(0);
        let revealed = widest(&mut seen.iter().map(Vec::len));
        let opened = widest(&mut masks.iter().map(|masks| masks.len()));
        let rows: Vec<Vec<Slot>> = seen
            .iter()
            .zip(&masks)
            .map(|(seen, masks)| row(seen, masks, [revealed, opened]))
            .collect();
        let (pass, rows_n) = self.pass(model, x_bl, &rows)?;
        let Passed { hidden, keys, .. } = model.pass(&pass)?;
        if self.keeps && revealed > 0 {
            self.keep(&keys, revealed as i64);
            for (holds, row) in self.holds.iter_mut().zip(&rows) {
                holds.extend(row[..revealed].iter().map(|slot| !slot.is_filler));
            }
        }
        // The masks that are no fillers.
        let width = (revealed + opened) as i64;
        let opens = rows.iter().flatten().enumerate();
        let opens: Vec<i64> = opens
            .filter(|(_, slot)| slot.is_mask && !slot.is_filler)
            .map(|(at, _)| at as i64)
            .collect();
        debug_assert_eq!(hidden.size()[1], width);
        let opens_n = Tensor::from_slice(&opens).to_device(hidden.device());
        Ok(Asked { hidden_nd: ops::take_rows(&hidden, &opens_n), rows_n })
    }

    /// The pass over the rows of a call, and the flat positions of its masks in the batch.
    fn pass(&self, model: &Denoiser, x_bl: &Tensor, rows: &[Vec<Slot>]) -> Result<(Pass, Tensor)> {
        let (texts, width) = (rows.len() as i64, rows.first().map_or(0, Vec::len) as i64);
        let slots = || {
            rows.iter()
                .zip(&self.texts)
                .flat_map(|(row, text)| row.iter().map(move |slot| (slot, *text)))
        };
        let place = |(slot, text): (&Slot, usize)| text as i64 * self.length + slot.position;
        let at_device = |x: &[i64]| Tensor::from_slice(x).to_device(x_bl.device());
        let positions: Vec<i64> = slots().map(|(slot, _)| slot.position).collect();
        let places: Vec<i64> = slots().map(place).collect();
        // A mask that was not drawn yet is one in the text itself; a filler stands for any token.
        let ids = ops::take_rows(&x_bl.unsqueeze(2), &at_device(&places)).view([texts, width]);
        let opened: Vec<i64> =
            slots().filter(|(slot, _)| slot.is_mask && !slot.is_filler).map(place).collect();
        let pass = Pass::new(&ids, &model.times(texts, 0.0))
            .positions(&at_device(&positions).view([texts, width]))
            .sees(self.sees(rows, x_bl.device()))
            .wants(if self.keeps { Wants::Both } else { Wants::State });
        let filled = |keys: &Tensor| keys.narrow(2, 0, self.width());
        let past: Vec<Tensor> = self.keys.iter().map(filled).collect();
        Ok((pass.past(&past), at_device(&opened)))
    }

    /// Each token sees those before it in the order, and no filler but itself.
    fn sees(&self, rows: &[Vec<Slot>], device: tch::Device) -> Sees {
        let whole = rows.iter().flatten().all(|slot| !slot.is_filler)
            && self.holds.iter().flatten().all(|holds| *holds);
        if whole {
            return Sees::Causal;
        }
        let mut pairs = Vec::new();
        for (row, holds) in rows.iter().zip(&self.holds) {
            for i in 0..row.len() {
                pairs.extend(holds.iter().copied());
                pairs.extend((0..row.len()).map(|j| j == i || j < i && !row[j].is_filler));
            }
        }
        let (texts, width) = (rows.len() as i64, rows.first().map_or(0, Vec::len) as i64);
        let pairs = Tensor::from_slice(&pairs).to_device(device).to_kind(Kind::Bool);
        Sees::Pairs(pairs.view([texts, width, self.width() + width]))
    }

    /// Appends the keys and values of the first tokens of a call.
    fn keep(&mut self, keys: &[Tensor], count: i64) {
        let width = self.width();
        for (i, own) in keys.iter().enumerate() {
            let size = own.size();
            if i >= self.keys.len() {
                let all = [size[0], size[1], self.length.max(count), size[3]];
                self.keys.push(Tensor::zeros(all, (own.kind(), own.device())));
            }
            let room = self.keys[i].size()[2];
            if width + count > room {
                // Fillers take columns too.
                let more = [size[0], size[1], (width + count).max(2 * room) - room, size[3]];
                let more = Tensor::zeros(more, (own.kind(), own.device()));
                self.keys[i] = Tensor::cat(&[&self.keys[i], &more], 2);
            }
            self.keys[i].narrow(2, width, count).copy_(&own.narrow(2, 0, count));
        }
    }
}
