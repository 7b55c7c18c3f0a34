//! Blocks of token ids as tensors.

use maskdiff_base::error::Result;
use maskdiff_data::{Document, Rows};
use tch::{Device, Kind, Tensor};

use crate::component;

/// Blocks as a network sees them. Shape letters: `B` batch, `L` length.
#[derive(Debug)]
pub struct TokenRows {
    /// Tokens `[B, L] i64`.
    pub x0_bl: Tensor,
    /// Which tokens count `[B, L] bool`; none when all do.
    pub counted_bl: Option<Tensor>,
    /// Which tokens are given `[B, L] bool`; none when none are. They do not count.
    pub given_bl: Option<Tensor>,
    /// The class of each block, `[B] i64`; none where they have none.
    pub label_b: Option<Tensor>,
    /// The number of each token's document in its block, `[B, L] i64`; filling is one of its own. None where a block is one document.
    pub document_bl: Option<Tensor>,
}

impl TokenRows {
    /// Blocks on a device.
    pub fn new(rows: &Rows, device: Device) -> Result<Self> {
        let shape = [rows.len() as i64, rows.length as i64];
        let x0_bl = Tensor::f_from_slice(&rows.ids).map_err(component::torch)?.view(shape);
        // The first tokens of each block.
        let first = |of: &Option<Vec<usize>>| -> Result<Option<Tensor>> {
            let Some(of) = of else { return Ok(None) };
            let each = |n: &usize| {
                let n = *n;
                (0..rows.length).map(move |i| i < n)
            };
            let all: Vec<bool> = of.iter().flat_map(each).collect();
            let all = Tensor::f_from_slice(&all).map_err(component::torch)?;
            Ok(Some(all.view(shape).to_device(device)))
        };
        let (mut used_bl, mut given_bl) = (first(&rows.used)?, first(&rows.given)?);
        let mut document_bl = None;
        if let Some(documents) = &rows.documents {
            let [used, given, number] = of_documents(documents, rows.length);
            let placed = |values: Vec<i64>| -> Result<Tensor> {
                let values = Tensor::f_from_slice(&values).map_err(component::torch)?;
                Ok(values.view(shape).to_device(device))
            };
            used_bl = Some(placed(used)?.to_kind(Kind::Bool));
            given_bl = Some(placed(given)?.to_kind(Kind::Bool));
            document_bl = Some(placed(number)?);
        }
        let counted_bl = match (used_bl, &given_bl) {
            (Some(used), Some(given)) => Some(used.logical_and(&given.logical_not())),
            (None, Some(given)) => Some(given.logical_not()),
            (used, None) => used,
        };
        let label_b = rows.labels.as_ref().map(|labels| Tensor::f_from_slice(labels)).transpose();
        let label_b = label_b.map_err(component::torch)?.map(|label_b| label_b.to_device(device));
        let x0_bl = x0_bl.to_device(device);
        Ok(Self { x0_bl, counted_bl, given_bl, label_b, document_bl })
    }

    /// Leaves the first token of each sequence and document out of the loss, which a network cannot predict that reads a token off the
    /// state before it. Where tokens are `masked`, it is given too.
    pub fn without_first(&mut self, masked: bool) {
        let first_bl = match &self.document_bl {
            Some(document_bl) => starts(document_bl),
            None => starts(&self.x0_bl.zeros_like()),
        };
        let rest_bl = first_bl.logical_not();
        self.counted_bl = Some(match &self.counted_bl {
            Some(counted_bl) => counted_bl.logical_and(&rest_bl),
            None => rest_bl,
        });
        if masked {
            self.given_bl = Some(match &self.given_bl {
                Some(given_bl) => given_bl.logical_or(&first_bl),
                None => first_bl,
            });
        }
    }

    /// The uniform numbers of a corruption, made such that it keeps what is given.
    pub fn keeping(&self, u_bl: &Tensor) -> Tensor {
        match &self.given_bl {
            Some(given_bl) => u_bl.masked_fill(given_bl, 1.0),
            None => u_bl.shallow_clone(),
        }
    }
}

/// True where a document begins, of the numbers of documents `[B, L]`.
pub(crate) fn starts(document_bl: &Tensor) -> Tensor {
    let first = document_bl.narrow(1, 0, 1).ones_like();
    let changes = document_bl.diff(1, 1, None::<&Tensor>, None::<&Tensor>);
    Tensor::cat(&[first, changes], 1).not_equal(0)
}

/// Of each token of packed blocks: whether it is text, whether it is given, and the number of its document.
fn of_documents(blocks: &[Vec<Document>], length: usize) -> [Vec<i64>; 3] {
    let mut all = [(); 3].map(|()| Vec::with_capacity(blocks.len() * length));
    for (row, documents) in blocks.iter().enumerate() {
        let [used, given, number] = &mut all;
        for (document, Document { length, given: prompt }) in (0..).zip(documents) {
            used.extend(std::iter::repeat_n(1, *length));
            given.extend((0..*length).map(|at| i64::from(at < *prompt)));
            number.extend(std::iter::repeat_n(document, *length));
        }
        let end = (row + 1) * length;
        used.resize(end, 0);
        given.resize(end, 0);
        number.resize(end, documents.len() as i64);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filling_does_not_count() {
        let rows =
            Rows { ids: (0..6).collect(), length: 3, used: Some(vec![2, 3]), ..Rows::default() };
        let TokenRows { x0_bl, counted_bl, .. } = TokenRows::new(&rows, Device::Cpu).unwrap();
        assert_eq!(x0_bl, Tensor::arange(6, (tch::Kind::Int64, Device::Cpu)).view([2, 3]));
        let counted = Vec::<Vec<bool>>::try_from(counted_bl.unwrap()).unwrap();
        assert_eq!(counted, [[true, true, false], [true; 3]]);
        let rows = Rows { given: Some(vec![1, 0]), ..rows };
        let rows = TokenRows::new(&rows, Device::Cpu).unwrap();
        let counted = Vec::<Vec<bool>>::try_from(rows.counted_bl.as_ref().unwrap()).unwrap();
        assert_eq!(counted, [[false, true, false], [true; 3]]);
        let u = rows.keeping(&Tensor::zeros([2, 3], (tch::Kind::Double, Device::Cpu)));
        assert_eq!(Vec::<Vec<f64>>::try_from(u).unwrap(), [[1.0, 0.0, 0.0], [0.0; 3]]);
    }
}
