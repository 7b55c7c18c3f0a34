//! The laws that a toy's table gives.

use std::rc::Rc;

use tch::Tensor;

use super::toy::Toy;
use crate::{Model as _, Result};

impl Toy {
    /// `p(x_l = v | the unmasked tokens of xt)` for all l and v, mask last with probability 0.
    pub(super) fn conditional(&self, xt: &[i64]) -> Rc<[f64]> {
        if let Some(known) = self.known.borrow().get(xt) {
            return known.clone();
        }
        let vocab = self.tokens + 1;
        let mut table = vec![0.0; self.length * vocab];
        for (state, p) in self.joint.iter().enumerate() {
            let x = self.digits(state, self.tokens);
            let fits = |(x, z): (&usize, &i64)| *z == self.tokens as i64 || *x as i64 == *z;
            if x.iter().zip(xt).all(fits) {
                for (l, token) in x.iter().enumerate() {
                    table[l * vocab + token] += p;
                }
            }
        }
        for row in table.chunks_mut(vocab) {
            let total: f64 = row.iter().sum();
            row.iter_mut().for_each(|p| *p /= total);
        }
        let table: Rc<[f64]> = table.into();
        self.known.borrow_mut().insert(xt.to_vec(), table.clone());
        table
    }
}

impl Toy {
    /// `p(x_l = v | the other tokens of z)` for all l and v, where a token is still clean with probability `alpha`.
    fn of_others(&self, z: &[i64], alpha: f64) -> Vec<f64> {
        let vocab = self.vocab();
        let likely = |x: usize, z: i64| {
            let noise = self.noise.on(self.tokens, 1.0 - alpha, z as usize);
            noise + if x as i64 == z { alpha } else { 0.0 }
        };
        let mut table = vec![0.0; z.len() * vocab];
        for (state, p) in self.joint.iter().enumerate() {
            let x = self.digits(state, self.tokens);
            for (l, token) in x.iter().take(z.len()).enumerate() {
                let others = (0..z.len()).filter(|m| *m != l).map(|m| likely(x[m], z[m]));
                table[l * vocab + token] += p * others.product::<f64>();
            }
        }
        for row in table.chunks_mut(vocab) {
            let total: f64 = row.iter().sum();
            row.iter_mut().for_each(|p| *p /= total);
        }
        table
    }

    /// [`Toy::of_others`] for each sequence, as logarithms.
    pub(super) fn hidden_of_others(&self, xt_bl: &Tensor, sigma_b: &Tensor) -> Result<Tensor> {
        let (batch, length) = (xt_bl.size()[0], xt_bl.size()[1]);
        let tokens = Vec::<i64>::try_from(xt_bl.contiguous().view([-1]))?;
        let alphas = Vec::<f64>::try_from(sigma_b.neg().exp())?;
        let blocks = tokens.chunks(length as usize).zip(alphas);
        let table: Vec<f64> = blocks.flat_map(|(z, alpha)| self.of_others(z, alpha)).collect();
        Ok(Tensor::from_slice(&table).view([batch, length, self.vocab_size()]).log())
    }
}
