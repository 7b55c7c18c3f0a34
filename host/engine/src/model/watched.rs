//! What whoever started a computation may see and say while it runs: how sure the model was of a token, and that nobody waits any more.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;

use maskdiff_plugin_api::{Kind as ErrorKind, PluginError, Result as PluginResult};
use tch::{Kind, Tensor};

use super::Model;

/// The last answer to the question for `log p(x0 | xt)`, where somebody watches.
#[derive(Debug, Default)]
pub struct Laws {
    on: Cell<bool>,
    last: RefCell<Option<Answered>>,
    /// The texts of the batch that a question is about, where it is not about all of them.
    turned: RefCell<Vec<i64>>,
}

#[derive(Debug)]
struct Answered {
    /// Of the tokens that were asked about, `[B, L]`.
    size: Vec<i64>,
    /// Which texts of the batch these are, where they are not all of them.
    texts: Vec<i64>,
    rows_n: Tensor,
    log_p_nv: Tensor,
}

impl Answered {
    /// Whether it is about texts of a batch of this size, or some of them.
    fn fits(&self, size: &[i64]) -> bool {
        let some = self.size.first() == Some(&(self.texts.len() as i64));
        size.len() == 2 && self.size.get(1) == size.get(1) && (self.size == size || some)
    }

    /// The place of a text of the batch among those of the question.
    fn row(&self, text: usize) -> Option<i64> {
        let text = text as i64;
        match self.texts.len() as i64 == self.size[0] {
            true => self.texts.iter().position(|own| *own == text).map(|at| at as i64),
            false => (text < self.size[0]).then_some(text),
        }
    }
}

impl Laws {
    /// Begins or ends to keep the last answer.
    pub fn watch(&self, on: bool) {
        self.on.set(on);
        self.last.take();
        self.turned.take();
    }

    /// Runs something of its own, of which nothing is kept.
    pub fn apart<T>(&self, body: impl FnOnce() -> T) -> T {
        let on = self.on.replace(false);
        let done = body();
        self.on.set(on);
        done
    }

    /// Tokens of the texts that were asked about last; 0 where nothing was.
    pub fn length(&self) -> i64 {
        self.last.borrow().as_ref().and_then(|law| law.size.get(1).copied()).unwrap_or(0)
    }

    /// The next question is about these texts of the batch alone.
    pub(super) fn turn_to(&self, texts_b: &Tensor) {
        if self.on.get() {
            // sync: whoever watches wants numbers.
            *self.turned.borrow_mut() = Vec::try_from(texts_b).unwrap_or_default();
        }
    }

    fn note(&self, xt_bl: &Tensor, rows_n: &Tensor, log_p_nv: &Tensor) {
        if self.on.get() {
            let (rows_n, log_p_nv) = (rows_n.shallow_clone(), log_p_nv.shallow_clone());
            let (size, texts) = (xt_bl.size(), self.turned.take());
            *self.last.borrow_mut() = Some(Answered { size, texts, rows_n, log_p_nv });
        }
    }

    /// The probability of tokens in the last answer, where it was asked about texts of this size: `(row, position, token)` each. None where
    /// nothing was asked about the position.
    pub fn of(&self, size: &[i64], tokens: &[(usize, usize, i64)]) -> Vec<Option<f64>> {
        let last = self.last.borrow();
        let nothing = || vec![None; tokens.len()];
        let Some(law) = last.as_ref().filter(|law| law.fits(size)) else { return nothing() };
        // sync: whoever watches wants numbers.
        let Ok(rows) = Vec::<i64>::try_from(law.rows_n.to_kind(Kind::Int64)) else {
            return nothing();
        };
        let place: HashMap<i64, i64> = rows.into_iter().zip(0..).collect();
        let known = tokens.iter().map(|(row, position, token)| {
            let flat = law.row(*row)? * size[1] + *position as i64;
            place.get(&flat).map(|at| (*at, *token))
        });
        let known: Vec<Option<(i64, i64)>> = known.collect();
        let asked: Vec<(i64, i64)> = known.iter().flatten().copied().collect();
        if asked.is_empty() {
            return nothing();
        }
        let (at, token): (Vec<i64>, Vec<i64>) = asked.into_iter().unzip();
        let [at_n, token_n] =
            [at, token].map(|all| Tensor::from_slice(&all).to_device(law.log_p_nv.device()));
        let log_p_nv = law.log_p_nv.index_select(0, &at_n);
        let p_n = log_p_nv.gather(1, &token_n.unsqueeze(1), false).squeeze_dim(1).exp();
        let Ok(p) = Vec::<f64>::try_from(p_n.to_kind(Kind::Double)) else { return nothing() };
        let mut p = p.into_iter();
        known.into_iter().map(|known| known.and_then(|_| p.next())).collect()
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
        assert_eq!(laws.of(&[2, 3], &[(0, 1, 1)]), [None], "nobody watched");
        laws.watch(true);
        laws.note(&xt_bl, &rows_n, &p_nv.log());
        let of = laws.of(&[2, 3], &[(0, 1, 1), (0, 0, 1), (1, 2, 0)]);
        assert!((of[0].unwrap() - 0.75).abs() < 1e-12 && of[1].is_none());
        assert!((of[2].unwrap() - 0.5).abs() < 1e-12);
        assert_eq!(laws.of(&[1, 3], &[(0, 1, 1)]), [None], "texts of another shape");
        // Of four texts the two last.
        laws.turn_to(&Tensor::from_slice(&[2i64, 3]));
        laws.note(&xt_bl, &rows_n, &p_nv.log());
        let of = laws.of(&[4, 3], &[(2, 1, 1), (1, 1, 1), (3, 2, 0)]);
        assert!((of[0].unwrap() - 0.75).abs() < 1e-12 && of[1].is_none() && of[2].is_some());
        laws.watch(false);
        assert_eq!(laws.of(&[2, 3], &[(0, 1, 1)]), [None]);
    }
}
