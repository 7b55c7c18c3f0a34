//! What a walk begins with.

use maskdiff_base::error::Result;
use maskdiff_config::kind::ComponentKind;
use maskdiff_plugin_api::capability;
use tch::{Kind, Tensor};

use super::Model;
use crate::component;

/// The parts of a stream from here on are starts: those before are the walks themselves.
const STARTS: u64 = 1 << 31;

impl Model {
    /// The start of a part of a walk: a draw of the prior, `[B, L] i64`. Where noise is any token, it is drawn from the streams of the
    /// sequences: what the process makes of a token of which nothing is left.
    pub fn start(&self, batch: i64, length: i64, part: u64) -> Result<Tensor> {
        if !self.offered.contains(capability::MIXING) {
            return self.prior(batch, length);
        }
        let of_process = |e| component::error(ComponentKind::Process, &self.names.process.name, e);
        self.begin_part(STARTS + part);
        let device = self.facts.device();
        let u_bl = self.moment.borrow_mut().uniforms(&[batch, length], device);
        let zeros = Tensor::zeros([batch, length], (Kind::Int64, device));
        let alpha_b = Tensor::zeros([batch], (Kind::Double, device));
        self.process.corrupt(&zeros, &alpha_b, &u_bl.map_err(of_process)?).map_err(of_process)
    }

    /// Whether the network has a table of positions that ends.
    pub fn has_bounded_positions(&self) -> bool {
        self.offered.contains(capability::BOUNDED_POSITIONS)
    }
}
