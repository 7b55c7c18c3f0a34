//! A network's work on a GPU as one graph, for sampling: each step gives it the same shapes, and a small network's many kernels
//! start faster than the CPU can ask for them one by one.

use std::collections::HashMap;

use maskdiff_native::Graph;
use maskdiff_plugin_api::{Kind as ErrorKind, PluginError, Result};
use tch::{Device, Kind, Tensor};

/// Passes of one shape that are computed as usual before it is recorded: they load what belongs to no recording.
const WARM: usize = 3;

/// Shapes that are recorded at most; each holds the memory of a pass.
const MOST: usize = 8;

/// The recorded passes of one network, by what goes in.
#[derive(Debug)]
pub struct Graphs {
    device: Device,
    passes: HashMap<Key, Pass>,
}

/// Shape of the tokens, and the type of reduced precision.
type Key = (Vec<i64>, Option<Kind>);

#[derive(Debug)]
enum Pass {
    Seen(usize),
    Recorded(Recorded),
}

#[derive(Debug)]
struct Recorded {
    // Dropped before what it reads and writes.
    graph: Graph,
    xt_bl: Tensor,
    sigma_b: Tensor,
    hidden: Tensor,
}

impl Graphs {
    /// For a network whose weights stay where they are in the device's memory; they may change there.
    pub fn new(device: Device) -> Self {
        Self { device, passes: HashMap::new() }
    }

    /// What `network` makes of tokens `[B, L] i64` and noise levels `[B] f64`, without gradients: the same numbers as from
    /// the network itself.
    ///
    /// # Errors
    /// The network's own; one that cannot be recorded, since its work depends on the tokens' values.
    pub fn hidden(
        &mut self,
        xt_bl: &Tensor,
        sigma_b: &Tensor,
        reduced: Option<Kind>,
        network: impl Fn(&Tensor, &Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let recorded = |pass: &Pass| matches!(pass, Pass::Recorded(_));
        let full = self.passes.values().filter(|pass| recorded(pass)).count() >= MOST;
        let device = self.device;
        let pass = self.passes.entry((xt_bl.size(), reduced)).or_insert(Pass::Seen(0));
        match pass {
            Pass::Recorded(recorded) => recorded.replay(xt_bl, sigma_b),
            Pass::Seen(times) if *times < WARM || full => {
                *times += 1;
                network(xt_bl, sigma_b)
            }
            Pass::Seen(_) => {
                let recorded = Recorded::new(device, xt_bl, sigma_b, network)?;
                let hidden = recorded.replay(xt_bl, sigma_b);
                *pass = Pass::Recorded(recorded);
                hidden
            }
        }
    }

    /// How many shapes are recorded.
    pub fn recorded(&self) -> usize {
        self.passes.values().filter(|pass| matches!(pass, Pass::Recorded(_))).count()
    }
}

impl Recorded {
    fn new(
        device: Device,
        xt_bl: &Tensor,
        sigma_b: &Tensor,
        network: impl Fn(&Tensor, &Tensor) -> Result<Tensor>,
    ) -> Result<Self> {
        let (xt_bl, sigma_b) = (xt_bl.copy(), sigma_b.copy());
        let pass = || network(&xt_bl, &sigma_b).map_err(Failed::Network);
        let (graph, hidden) = Graph::record(device, pass).map_err(|failed| match failed {
            Failed::Network(error) => error.hint(HINT),
            Failed::Graph(error) => failure(&error).hint(HINT),
        })?;
        Ok(Self { graph, xt_bl, sigma_b, hidden })
    }

    fn replay(&self, xt_bl: &Tensor, sigma_b: &Tensor) -> Result<Tensor> {
        self.xt_bl.shallow_clone().copy_(xt_bl);
        self.sigma_b.shallow_clone().copy_(sigma_b);
        self.graph.replay().map_err(|e| failure(&e))?;
        // The next pass writes over it.
        Ok(self.hidden.copy())
    }
}

const HINT: &str = "`sampling.cuda_graph=false` draws without graphs; a network that is recorded may not look at values (`item`, \
                    `nonzero`) nor make tensors on the CPU";

enum Failed {
    Network(PluginError),
    Graph(maskdiff_native::Error),
}

impl From<maskdiff_native::Error> for Failed {
    fn from(error: maskdiff_native::Error) -> Self {
        Self::Graph(error)
    }
}

fn failure(error: &maskdiff_native::Error) -> PluginError {
    PluginError::new(ErrorKind::Other, format!("the network cannot be a CUDA graph: {error}"))
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn without_a_gpu_the_fourth_pass_says_what_to_do() {
        let mut graphs = Graphs::new(Device::Cuda(0));
        let calls = Cell::new(0);
        let network = |xt_bl: &Tensor, _: &Tensor| {
            calls.set(calls.get() + 1);
            Ok(xt_bl * 2)
        };
        let x = Tensor::from_slice(&[1i64, 2]).unsqueeze(0);
        let sigma = Tensor::zeros([1], (Kind::Double, Device::Cpu));
        for _ in 0..WARM {
            assert_eq!(graphs.hidden(&x, &sigma, None, network).unwrap(), &x * 2);
        }
        // A pass of another shape counts by itself.
        let _ = graphs.hidden(&x.repeat([2, 1]), &sigma, None, network).unwrap();
        assert_eq!((calls.get(), graphs.recorded()), (WARM + 1, 0));
        if tch::Cuda::is_available() {
            return;
        }
        let error = graphs.hidden(&x, &sigma, None, network).unwrap_err();
        assert!(error.to_string().contains("cannot be a CUDA graph"), "{error}");
        assert_eq!(calls.get(), WARM + 1, "nothing is computed in the recording that failed");
    }
}
