//! A model whose network answers given logits.

use maskdiff_plugin_api::{Model, Result};
use tch::{Device, Kind, Tensor};

/// A network that answers `logits_nv` at every row, whatever it sees; noise masks every token.
///
/// Shape letters: `B` batch, `L` length, `N` rows, `V` vocabulary with the mask.
pub struct Answers {
    /// Raw logits `[B L, V]`.
    pub logits_nv: Tensor,
    /// Total noise of each sequence `[B] f64`, at every time.
    pub sigma_b: Tensor,
    /// Noise rate of each sequence `[B] f64`, at every time.
    pub dsigma_b: Tensor,
    /// Id of the mask.
    pub mask_id: i64,
}

fn unused<T>() -> Result<T> {
    panic!("no parameterization asks for this")
}

impl Answers {
    /// Over sequences of one token whose mask is the last token.
    pub fn masked(logits_nv: Tensor, sigma_b: Tensor, dsigma_b: Tensor) -> Self {
        let mask_id = logits_nv.size()[1] - 1;
        Self { logits_nv, sigma_b, dsigma_b, mask_id }
    }
}

impl Model for Answers {
    fn vocab_size(&self) -> i64 {
        self.logits_nv.size()[1]
    }
    fn mask_id(&self) -> Option<i64> {
        Some(self.mask_id)
    }
    fn time_conditioning(&self) -> bool {
        true
    }
    fn device(&self) -> Device {
        self.sigma_b.device()
    }
    fn sigma(&self, _t: &Tensor) -> Result<Tensor> {
        Ok(self.sigma_b.shallow_clone())
    }
    fn dsigma(&self, _t: &Tensor) -> Result<Tensor> {
        Ok(self.dsigma_b.shallow_clone())
    }
    fn time_of_alpha(&self, _alpha: &Tensor) -> Result<Tensor> {
        unused()
    }
    fn sigma_range(&self) -> Result<(f64, f64)> {
        unused()
    }
    fn importance(&self, _t: &Tensor) -> Result<Tensor> {
        unused()
    }
    fn corrupt(&self, x0_bl: &Tensor, _alpha_b: &Tensor) -> Result<Tensor> {
        Ok(x0_bl.full_like(self.mask_id))
    }
    fn posterior(&self, _xt: &Tensor, _t: f64, _s: f64, _p: &Tensor) -> Result<Tensor> {
        unused()
    }
    fn hidden(&self, xt_bl: &Tensor, _sigma_b: &Tensor) -> Result<Tensor> {
        let [batch, length] = xt_bl.size()[..] else { panic!("xt_bl {:?}", xt_bl.size()) };
        Ok(self.logits_nv.view([batch, length, -1]))
    }
    fn extend(&self, _x_bl: &Tensor, _cache: Vec<Tensor>) -> Result<(Tensor, Vec<Tensor>)> {
        unused()
    }
    fn logits(&self, hidden_nd: &Tensor) -> Result<Tensor> {
        Ok(hidden_nd.shallow_clone())
    }
    fn weighted_nll(
        &self,
        hidden_nd: &Tensor,
        target_n: &Tensor,
        weight_n: &Tensor,
        banned: Option<i64>,
    ) -> Result<Tensor> {
        let column = Tensor::from_slice(banned.as_slice());
        let logits = hidden_nd.index_fill(1, &column, f64::NEG_INFINITY);
        let log_p = logits.log_softmax(-1, Kind::Double);
        Ok(-log_p.gather(1, &target_n.unsqueeze(1), false).squeeze_dim(1) * weight_n)
    }
    fn log_x0(&self, _xt_bl: &Tensor, _t_b: &Tensor, _rows_n: &Tensor) -> Result<Tensor> {
        unused()
    }
    fn score(&self, _xt_bl: &Tensor, _t_b: &Tensor, _rows_n: &Tensor) -> Result<Tensor> {
        unused()
    }
    fn progress(&self, _done: i64, _total: i64, _xt_bl: &Tensor) -> Result<()> {
        unused()
    }
}
