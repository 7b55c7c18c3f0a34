//! Blocks of token ids as tensors.

use maskdiff_base::error::Result;
use maskdiff_data::Rows;
use tch::{Device, Tensor};

use crate::component;

/// Blocks as a network sees them. Shape letters: `B` batch, `L` length.
#[derive(Debug)]
pub struct TokenRows {
    /// Tokens `[B, L] i64`.
    pub x0_bl: Tensor,
    /// Which tokens count `[B, L] bool`; none when all do.
    pub counted_bl: Option<Tensor>,
}

impl TokenRows {
    /// Blocks on a device.
    pub fn new(rows: &Rows, device: Device) -> Result<Self> {
        let shape = [rows.len() as i64, rows.length as i64];
        let x0_bl = Tensor::f_from_slice(&rows.ids).map_err(component::torch)?.view(shape);
        let counted_bl = match &rows.used {
            None => None,
            Some(used) => {
                let counts = |used: &usize| {
                    let used = *used;
                    (0..rows.length).map(move |i| i < used)
                };
                let counted: Vec<bool> = used.iter().flat_map(counts).collect();
                let counted = Tensor::f_from_slice(&counted).map_err(component::torch)?;
                Some(counted.view(shape).to_device(device))
            }
        };
        Ok(Self { x0_bl: x0_bl.to_device(device), counted_bl })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filling_does_not_count() {
        let rows = Rows { ids: (0..6).collect(), length: 3, used: Some(vec![2, 3]) };
        let TokenRows { x0_bl, counted_bl } = TokenRows::new(&rows, Device::Cpu).unwrap();
        assert_eq!(x0_bl, Tensor::arange(6, (tch::Kind::Int64, Device::Cpu)).view([2, 3]));
        let counted = Vec::<Vec<bool>>::try_from(counted_bl.unwrap()).unwrap();
        assert_eq!(counted, [[true, true, false], [true; 3]]);
    }
}
