//! The mixer of one direction: convolution, selective scan, gate.

use maskdiff_native::selective_scan;
use maskdiff_plugin_api::prelude::*;
use maskdiff_plugin_api::tch::{Device, Kind};

use crate::Config;

/// Step sizes at the start are log-uniform in this range.
const DT_RANGE: (f64, f64) = (1e-3, 0.1);

pub(crate) struct Mixer {
    in_proj: Tensor,
    conv: (Tensor, Tensor),
    x_proj: Tensor,
    dt_proj: (Tensor, Tensor),
    a_log: Tensor,
    d: Tensor,
    out_proj: Tensor,
}

impl Mixer {
    /// Parameters `PREFIX.*`; `in_proj` and `out_proj` are those of `tied`, if given.
    pub(crate) fn new(
        p: &mut Parameters,
        prefix: &str,
        width: i64,
        config: &Config,
        tied: Option<&Self>,
    ) -> Self {
        let cpu = (Kind::Float, Device::Cpu);
        let (e, n, taps) = (config.expand * width, config.d_state, config.d_conv);
        let rank = (width + 15) / 16;
        let name = |part: &str| format!("{prefix}.{part}");

        let states = Tensor::arange_start(1, n + 1, cpu).log();
        let a_log = p.add(&name("A_log"), states.expand([e, n], false).contiguous());
        let d = p.constant(&name("D"), &[e], 1.0);
        let in_proj = match tied {
            Some(other) => {
                p.shared(&name("in_proj.weight"), &other.in_proj);
                other.in_proj.shallow_clone()
            }
            None => p.linear(&name("in_proj.weight"), 2 * e, width),
        };
        let bound = 1.0 / (taps as f64).sqrt();
        let kernel = Tensor::empty([e, 1, taps], cpu).uniform_(-bound, bound);
        let conv = (p.add(&name("conv1d.weight"), kernel), p.bias(&name("conv1d.bias"), e, taps));
        let x_proj = p.linear(&name("x_proj.weight"), rank + 2 * n, e);
        let dt_weight = p.linear(&name("dt_proj.weight"), e, rank);
        let (low, high) = (DT_RANGE.0.ln(), DT_RANGE.1.ln());
        let dt = (Tensor::rand([e], cpu) * (high - low) + low).exp();
        // The inverse of softplus, so that softplus(bias) = dt.
        let dt_bias = p.add(&name("dt_proj.bias"), &dt + (-(-&dt).expm1()).log());
        let out_proj = match tied {
            Some(other) => {
                p.shared(&name("out_proj.weight"), &other.out_proj);
                other.out_proj.shallow_clone()
            }
            None => {
                // Each block adds to the residual stream; this keeps the stream's size as blocks are added.
                let bound = 1.0 / (e as f64 * config.n_blocks as f64).sqrt();
                p.add(
                    &name("out_proj.weight"),
                    Tensor::empty([width, e], cpu).uniform_(-bound, bound),
                )
            }
        };
        Self { in_proj, conv, x_proj, dt_proj: (dt_weight, dt_bias), a_log, d, out_proj }
    }

    /// `h_blw [B, L, W]` → `[B, L, W]`; position l depends on positions up to l.
    pub(crate) fn forward(&self, h_blw: &Tensor) -> Result<Tensor> {
        let (l, none) = (h_blw.size()[1], None::<&Tensor>);
        let inner = h_blw.linear(&self.in_proj, none).chunk(2, -1);
        let (u_ble, gate_ble) = (&inner[0], &inner[1]);

        let (e, taps) = (self.conv.0.size()[0], self.conv.0.size()[2]);
        let u_bel =
            u_ble.transpose(1, 2).conv1d(&self.conv.0, Some(&self.conv.1), 1, taps - 1, 1, e);
        let u_ble = u_bel.narrow(2, 0, l).silu().transpose(1, 2);

        let n = self.a_log.size()[1];
        let rank = self.dt_proj.0.size()[1];
        let parts = u_ble.linear(&self.x_proj, none).split_with_sizes([rank, n, n], -1);
        let dt_ble = parts[0].linear(&self.dt_proj.0, Some(&self.dt_proj.1)).softplus();
        let a_en = -self.a_log.exp();
        let y_ble = selective_scan(&u_ble, &dt_ble, &a_en, &parts[1], &parts[2])?;
        let y_ble = (y_ble + u_ble * &self.d) * gate_ble.silu();
        Ok(y_ble.linear(&self.out_proj, none))
    }
}
