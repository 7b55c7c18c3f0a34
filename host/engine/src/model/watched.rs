//! What whoever started a computation may see and say while it runs: how sure the model was of a token, and that nobody waits any more.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;

use maskdiff_plugin_api::{Kind as ErrorKind, PluginError, Result as PluginResult};
use tch::{Kind, Tensor};

use super::Model;

/// The last answer to the question for `log p(x0 | xt)`, where somebody watches. In blocks it is about tokens of a block, in windows about those
/// of a window, and guided laws are those that the sampler sees.
#[derive(Debug, Default)]
pub struct Laws {
    on: Cell<bool>,
    last: RefCell<Option<Answered>>,
    /// The last answer of the window or block before: what its last step wrote shows when the next one begins.
    before: RefCell<Option<Answered>>,
    /// Where the window or block that is walked begins in its text.
    from: Cell<i64>,
    /// The texts of the batch that a question is about, where it is not about all of them.
    turned: RefCell<Vec<i64>>,
    /// The one text of the batch that is walked by itself.
    alone: Cell<Option<usize>>,
}

#[derive(Debug)]
struct Answered {
    /// Of the tokens that were asked about, `[B, L]`.
    size: Vec<i64>,
    /// Where these tokens begin in their texts.
    from: i64,
    /// Which texts of the batch these are, where they are not all of them.
    texts: Vec<i64>,
    rows_n: Tensor,
    log_p_nv: Tensor,
}

impl Answered {
    /// The row of a text in the call, for a batch of `batch` texts; none where the call was not about it.
    fn row(&self, text: usize, batch: usize) -> Option<i64> {
        let text = text as i64;
        match self.texts.len() as i64 == self.size[0] {
            true => self.texts.iter().position(|own| *own == text).map(|at| at as i64),
            false => (self.size[0] == batch as i64).then_some(text),
        }
    }

    /// The probability of tokens of a batch, `(text, position, token)` each: none where nothing was asked about the position.
    fn of(&self, batch: usize, tokens: &[(usize, usize, i64)]) -> Option<Vec<Option<f64>>> {
        // sync: whoever watches wants numbers.
        let rows = Vec::<i64>::try_from(self.rows_n.to_kind(Kind::Int64)).ok()?;
        let place: HashMap<i64, i64> = rows.into_iter().zip(0..).collect();
        let length = self.size[1];
        let known = tokens.iter().map(|(text, position, token)| {
            let at = *position as i64 - self.from;
            let row = self.row(*text, batch).filter(|_| (0..length).contains(&at))?;
            place.get(&(row * length + at)).map(|at| (*at, *token))
        });
        let known: Vec<Option<(i64, i64)>> = known.collect();
        let asked: Vec<(i64, i64)> = known.iter().flatten().copied().collect();
        if asked.is_empty() {
            return None;
        }
        let (at, token): (Vec<i64>, Vec<i64>) = asked.into_iter().unzip();
        let [at_n, token_n] =
            [at, token].map(|all| Tensor::from_slice(&all).to_device(self.log_p_nv.device()));
        let log_p_nv = self.log_p_nv.index_select(0, &at_n);
        let p_n = log_p_nv.gather(1, &token_n.unsqueeze(1), false).squeeze_dim(1).exp();
        let p = Vec::<f64>::try_from(p_n.to_kind(Kind::Double)).ok()?;
        let mut p = p.into_iter();
        Some(known.into_iter().map(|known| known.and_then(|_| p.next())).collect())
    }
}

impl Laws {
    /// Begins or ends to keep the last answer.
    pub fn watch(&self, on: bool) {
        self.on.set(on);
        self.last.take();
        self.before.take();
        self.turned.take();
        self.from.set(0);
    }

    /// Whether somebody watches.
    pub(super) fn watched(&self) -> bool {
        self.on.get()
    }

    /// Runs something of its own, of which nothing is kept.
    pub fn apart<T>(&self, body: impl FnOnce() -> T) -> T {
        let on = self.on.replace(false);
        let done = body();
        self.on.set(on);
        done
    }

    /// A window or block that begins at this position of its texts is walked from now on.
    pub(crate) fn begin(&self, from: i64) {
        if self.from.replace(from) != from {
            *self.before.borrow_mut() = self.last.take();
        }
    }

    /// The one text of the batch that is walked by itself, where that is so.
    pub fn alone(&self) -> Option<usize> {
        self.alone.get()
    }

    /// One text of the batch is walked by itself, or again all together.
    pub(super) fn leave_alone(&self, text: Option<usize>) {
        self.alone.set(text);
    }

    /// The next question is about these texts of the batch alone.
    pub(super) fn turn_to(&self, texts_b: &Tensor) {
        if self.on.get() {
            // sync: whoever watches wants numbers.
            *self.turned.borrow_mut() = Vec::try_from(texts_b).unwrap_or_default();
        }
    }

    pub(super) fn note(&self, xt_bl: &Tensor, rows_n: &Tensor, log_p_nv: &Tensor) {
        if !self.on.get() {
            return;
        }
        let (rows_n, log_p_nv) = (rows_n.shallow_clone(), log_p_nv.shallow_clone());
        let (size, turned) = (xt_bl.size(), self.turned.take());
        let texts = match self.alone.get() {
            Some(text) if size.first() == Some(&1) => vec![text as i64],
            _ => turned,
        };
        if size.len() == 2 {
            let from = self.from.get();
            *self.last.borrow_mut() = Some(Answered { size, from, texts, rows_n, log_p_nv });
        }
    }

    /// The probability of tokens, as of the last call about each, for a batch of `batch` texts: `(text, position, token)` each.
    pub fn of(&self, batch: usize, tokens: &[(usize, usize, i64)]) -> Vec<Option<f64>> {
        let of = |answered: &RefCell<Option<Answered>>| {
            let answered = answered.borrow();
            let found = answered.as_ref().and_then(|answered| answered.of(batch, tokens));
            found.unwrap_or_else(|| vec![None; tokens.len()])
        };
        let (last, before) = (of(&self.last), of(&self.before));
        last.into_iter().zip(before).map(|(last, before)| last.or(before)).collect()
    }
}

/// Whether nobody waits for what is computed.
pub type Unwanted = Rc<dyn Fn() -> bool>;

impl Model {
    /// The laws that a walk asks for, for those who watch it.
    pub fn laws(&self) -> Rc<Laws> {
        Rc::clone(&self.laws)
    }

    /// Ends what is computed at its next network call once nobody waits for it; `None` lets it run.
    pub fn end_when(&self, unwanted: Option<Unwanted>) {
        *self.unwanted.borrow_mut() = unwanted;
    }

    pub(super) fn check_wanted(&self) -> PluginResult<()> {
        match self.unwanted.borrow().as_ref().is_some_and(|unwanted| unwanted()) {
            true => Err(PluginError::new(
                ErrorKind::Interrupted,
                "nobody waits for it any more".to_string(),
            )),
            false => Ok(()),
        }
    }

    pub(super) fn note_answer(&self, xt_bl: &Tensor, rows_n: &Tensor, log_p_nv: &Tensor) {
        self.laws.note(xt_bl, rows_n, log_p_nv);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_has_the_probability_of_the_last_answer() {
        let laws = Laws::default();
        let xt_bl = Tensor::zeros([2, 3], (Kind::Int64, tch::Device::Cpu));
        let rows_n = Tensor::from_slice(&[1i64, 5]);
        let p_nv = Tensor::from_slice(&[0.25f64, 0.75, 0.5, 0.5]).view([2, 2]);
        laws.note(&xt_bl, &rows_n, &p_nv.log());
        assert_eq!(laws.of(2, &[(0, 1, 1)]), [None], "nobody watched");
        laws.watch(true);
        laws.note(&xt_bl, &rows_n, &p_nv.log());
        let of = laws.of(2, &[(0, 1, 1), (0, 0, 1), (1, 2, 0), (0, 7, 1)]);
        assert!((of[0].unwrap() - 0.75).abs() < 1e-12 && of[1].is_none() && of[3].is_none());
        assert!((of[2].unwrap() - 0.5).abs() < 1e-12);
        assert_eq!(laws.of(1, &[(0, 1, 1)]), [None], "another batch");
        // Of four texts the two last.
        laws.turn_to(&Tensor::from_slice(&[2i64, 3]));
        laws.note(&xt_bl, &rows_n, &p_nv.log());
        let of = laws.of(4, &[(2, 1, 1), (1, 1, 1), (3, 2, 0)]);
        assert!((of[0].unwrap() - 0.75).abs() < 1e-12 && of[1].is_none() && of[2].is_some());
        laws.watch(false);
        assert_eq!(laws.of(2, &[(0, 1, 1)]), [None]);
    }

    /// Positions are those of the text, wherever its window begins; what the window before wrote last is still known.
    #[test]
    fn windows_of_a_text_follow_each_other() {
        let laws = Laws::default();
        laws.watch(true);
        let xt_bl = Tensor::zeros([1, 4], (Kind::Int64, tch::Device::Cpu));
        let note = |places: &[i64], p: f64| {
            let n = places.len() as i64;
            let p_nv = Tensor::full([n, 2], p, (Kind::Double, tch::Device::Cpu));
            laws.note(&xt_bl, &Tensor::from_slice(places), &p_nv.log());
        };
        let of = |place: usize| laws.of(1, &[(0, place, 0)])[0].map(|p| (p * 100.0).round());
        note(&[2, 3], 0.25);
        laws.begin(2);
        assert_eq!([of(1), of(2), of(3), of(4)], [None, Some(25.0), Some(25.0), None]);
        note(&[2], 0.5);
        assert_eq!([of(3), of(4), of(5)], [Some(25.0), Some(50.0), None]);
        laws.begin(4);
        assert_eq!([of(3), of(4)], [None, Some(50.0)]);
        // One text of several, by itself.
        laws.leave_alone(Some(2));
        note(&[0], 0.75);
        assert_eq!(laws.of(3, &[(2, 4, 0), (0, 4, 0)])[1], None);
        assert!(laws.of(3, &[(2, 4, 0)])[0].is_some());
    }
}
