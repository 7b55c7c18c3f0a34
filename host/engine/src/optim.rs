//! The optimizer: AdamW and the average of the weights through libtorch's fused ops, Muon, and the learning rate over time.

use maskdiff_base::error::Result;
use maskdiff_config::{derived, groups, listed};
use maskdiff_native::{AdamW, foreach_lerp, fused_adamw};
use tch::{Kind, Tensor};

use crate::component;

/// A list of parameters under AdamW, with its state.
#[derive(Debug, Default)]
struct AdamGroup {
    index: Vec<usize>,
    params: Vec<Tensor>,
    exp_avg: Vec<Tensor>,
    exp_avg_sq: Vec<Tensor>,
    /// Steps taken, one f32 scalar for each parameter.
    steps: Vec<Tensor>,
    decay: f64,
}

/// A list of matrices under Muon, with its state.
#[derive(Debug, Default)]
struct MuonGroup {
    index: Vec<usize>,
    params: Vec<Tensor>,
    momentum: Vec<Tensor>,
}

/// The optimizer of a list of parameters: AdamW, or Muon for the matrices inside the network and AdamW for the rest. Its
/// state is plain tensors, so it can be saved.
#[derive(Debug)]
pub struct Optimizer {
    /// With and without weight decay.
    adamw: [AdamGroup; 2],
    muon: MuonGroup,
    options: groups::Optim,
}

/// A parameter as an optimizer sees it.
#[derive(Debug)]
pub struct Learned {
    /// Its numbers, or a part of them.
    pub tensor: Tensor,
    /// Whether it is a matrix inside the network.
    pub matrix: bool,
    /// Whether this optimizer changes it.
    pub mine: bool,
}

impl Learned {
    /// All of these parameters, whole.
    pub fn all(params: &[Tensor], vocab_size: i64) -> Vec<Self> {
        let one = |tensor: &Tensor| {
            let matrix = is_inner_matrix(&tensor.size(), vocab_size);
            Self { tensor: tensor.shallow_clone(), matrix, mine: true }
        };
        params.iter().map(one).collect()
    }
}

/// Whether a parameter of this size is a matrix inside the network: no vector, and no table with a row for each of `vocab_size` tokens.
pub fn is_inner_matrix(size: &[i64], vocab_size: i64) -> bool {
    size.len() == 2 && !size.contains(&vocab_size)
}

impl Optimizer {
    /// Zero moments for those of `params` that are this optimizer's.
    pub fn new(params: &[Learned], options: groups::Optim) -> Self {
        let muon = options.name == listed::Optimizer::Muon;
        let only_matrices = options.weight_decay_on == listed::DecayOn::Matrices;
        let (adamw, group) = (Default::default(), MuonGroup::default());
        let mut this = Self { adamw, muon: group, options };
        this.adamw[0].decay = this.options.weight_decay;
        for (i, learned) in params.iter().enumerate().filter(|(_, learned)| learned.mine) {
            let (param, matrix) = (&learned.tensor, learned.matrix);
            let zeros = || param.detach().zeros_like();
            if muon && matrix {
                let group = &mut this.muon;
                group.index.push(i);
                group.params.push(param.shallow_clone());
                group.momentum.push(zeros());
                continue;
            }
            let group = &mut this.adamw[usize::from(only_matrices && !matrix)];
            group.index.push(i);
            group.params.push(param.shallow_clone());
            group.exp_avg.push(zeros());
            group.exp_avg_sq.push(zeros());
            group.steps.push(Tensor::zeros([], (Kind::Float, param.device())));
        }
        this
    }

    /// One step at learning rate `lr` with the gradients of all parameters (of which this optimizer uses its own), each
    /// divided by `divisor` first.
    pub fn step(&mut self, grads: &[Tensor], lr: f64, divisor: f64) -> Result<()> {
        let of = |index: &[usize]| -> Vec<Tensor> {
            index.iter().map(|i| grads[*i].shallow_clone()).collect()
        };
        let groups::Optim { beta1, beta2, eps, .. } = self.options;
        for group in &self.adamw {
            let options = AdamW { lr, beta1, beta2, eps, weight_decay: group.decay, divisor };
            let (avg, sq) = (&group.exp_avg, &group.exp_avg_sq);
            fused_adamw(&group.params, &of(&group.index), avg, sq, &group.steps, options)
                .map_err(component::torch)?;
        }
        let (mu, decay) = (self.options.muon_momentum, self.options.weight_decay);
        tch::no_grad(|| {
            let group = &self.muon;
            for (i, (param, momentum)) in group.params.iter().zip(&group.momentum).enumerate() {
                let grad = &grads[group.index[i]] / divisor;
                let _ = momentum.shallow_clone().lerp_(&grad, 1.0 - mu);
                let direction = orthogonalize(&grad.lerp(momentum, mu));
                let [rows, columns] = param.size()[..] else { continue };
                // As large as a step of AdamW, so that one learning rate serves both (arXiv:2502.16982, eq. 4).
                let scale = 0.2 * (rows.max(columns) as f64).sqrt();
                let mut param = param.detach();
                let _ = param.g_mul_scalar_(1.0 - lr * decay);
                let _ = param.g_sub_(&(direction * (lr * scale)));
            }
        });
        Ok(())
    }

    /// Names of the state of a parameter, whoever's it is: as [`Optimizer::state`] would give them. All but `step` are of its shape.
    pub fn state_names(&self, matrix: bool) -> &'static [&'static str] {
        match self.options.name {
            listed::Optimizer::Muon if matrix => &["momentum"],
            _ => &["exp_avg", "exp_avg_sq", "step"],
        }
    }

    /// Its state with the parameter each tensor belongs to: `(name, parameter, tensor)`, to be saved or filled.
    pub fn state(&self) -> Vec<(&'static str, usize, Tensor)> {
        let mut state = Vec::new();
        let mut put = |name, index: &[usize], list: &[Tensor]| {
            state.extend(index.iter().zip(list).map(|(i, t)| (name, *i, t.shallow_clone())));
        };
        for group in &self.adamw {
            put("exp_avg", &group.index, &group.exp_avg);
            put("exp_avg_sq", &group.index, &group.exp_avg_sq);
            put("step", &group.index, &group.steps);
        }
        put("momentum", &self.muon.index, &self.muon.momentum);
        state
    }
}

/// A matrix with all singular values near 1 and the singular vectors of `g [R, C]`, by five Newton-Schulz steps with the
/// coefficients of K. Jordan's Muon (2024). On a GPU in bfloat16.
fn orthogonalize(g: &Tensor) -> Tensor {
    let kind = g.kind();
    let wide = g.size()[0] <= g.size()[1];
    let x = if wide { g.shallow_clone() } else { g.tr() };
    let mut x = &x / (x.norm() + 1e-7);
    if x.device().is_cuda() {
        x = x.to_kind(Kind::BFloat16);
    }
    for _ in 0..5 {
        let a = x.matmul(&x.tr());
        let b = &a * -4.775 + a.matmul(&a) * 2.0315;
        x = &x * 3.4445 + b.matmul(&x);
    }
    let x = if wide { x } else { x.tr() };
    x.to_kind(kind)
}

/// The factor by which gradients of norm `norm` are to be divided so that their norm is at most `limit` (0: no limit).
///
/// As torch's `clip_grad_norm_`, which multiplies by `limit / (norm + 1e-6)`.
pub fn clip_divisor(norm: f64, limit: f64) -> f64 {
    if limit > 0.0 && norm > limit { (norm + 1e-6) / limit } else { 1.0 }
}

/// Exponential moving average of the weights, with the original's warm-up of the decay: at update k = 1, 2, … it is
/// `min(decay, (1 + k) / (10 + k))`.
#[derive(Debug)]
pub struct Ema {
    /// The average, in the order of the parameters.
    pub shadow: Vec<Tensor>,
    /// Updates so far.
    pub updates: i64,
    decay: f64,
    warm_up: bool,
}

impl Ema {
    /// Starts at the parameters as they are.
    pub fn new(params: &[Tensor], decay: f64, warm_up: bool) -> Self {
        let shadow = params.iter().map(|p| p.detach().copy()).collect();
        Self { shadow, updates: 0, decay, warm_up }
    }

    /// Moves the average towards `params`.
    pub fn update(&mut self, params: &[Tensor]) -> Result<()> {
        self.updates += 1;
        let k = self.updates as f64;
        let decay = if self.warm_up { self.decay.min((1.0 + k) / (10.0 + k)) } else { self.decay };
        let params: Vec<Tensor> = params.iter().map(Tensor::detach).collect();
        foreach_lerp(&self.shadow, &params, 1.0 - decay).map_err(component::torch)
    }
}

/// The learning rate over time.
#[derive(Debug, Clone)]
pub enum Schedule {
    /// From 0 to the peak in `warmup` steps, then constant. Step 0 has rate 0, as in the original.
    Constant {
        /// Peak rate.
        peak: f64,
        /// Steps of the rise.
        warmup: f64,
    },
    /// From `first` to the peak in `warmup` steps, then a cosine to `last` over `decay` steps.
    Cosine {
        /// Peak rate.
        peak: f64,
        /// Steps of the rise.
        warmup: f64,
        /// Rate at step 0.
        first: f64,
        /// Rate at the end.
        last: f64,
        /// Steps of the fall.
        decay: f64,
    },
}

impl Schedule {
    /// From the configuration.
    pub fn new(config: &groups::LrScheduler, peak: f64) -> Self {
        let warmup = config.num_warmup_steps.unwrap_or(derived::WARMUP);
        match config.name {
            listed::Schedule::ConstantWarmup => Self::Constant { peak, warmup },
            listed::Schedule::CosineDecayWarmup => Self::Cosine {
                peak,
                warmup,
                first: config.warmup_lr_init,
                last: config.lr_min,
                decay: config.t_initial.unwrap_or(1.0),
            },
        }
    }

    /// The rate of optimizer step `step`, counted from 0.
    pub fn rate(&self, step: i64) -> f64 {
        let k = step as f64;
        match *self {
            Self::Constant { peak, warmup } if k < warmup => peak * k / warmup.max(1.0),
            Self::Constant { peak, .. } => peak,
            Self::Cosine { peak, warmup, first, .. } if k < warmup => {
                first + k * (peak - first) / warmup
            }
            Self::Cosine { peak, warmup, last, decay, .. } => {
                let share = ((k - warmup) / decay).min(1.0);
                last + 0.5 * (peak - last) * (1.0 + (std::f64::consts::PI * share).cos())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_warm_up_of_no_steps_begins_at_the_peak() {
        let rates =
            |warmup: f64| [0, 1, 2].map(|k| Schedule::Constant { peak: 2.0, warmup }.rate(k));
        assert_eq!(rates(0.0), [2.0, 2.0, 2.0]);
        assert_eq!(rates(2.0), [0.0, 1.0, 2.0]);
    }

    #[test]
    fn singular_values_come_near_one() {
        tch::manual_seed(1);
        for size in [[8, 20], [20, 8], [12, 12]] {
            let x = orthogonalize(&Tensor::randn(size, tch::kind::FLOAT_CPU));
            assert_eq!(x.size(), size);
            let (_, values, _) = x.svd(true, false);
            let values = Vec::<f32>::try_from(values).unwrap();
            assert!(values.iter().all(|v| (0.3..1.4).contains(v)), "{values:?}");
        }
    }

    /// Least squares of a matrix: both optimizers come down, and each parameter is under the right rule.
    #[test]
    fn muon_takes_the_inner_matrices() {
        tch::manual_seed(2);
        let zeros =
            |size: &[i64]| Tensor::zeros(size, tch::kind::FLOAT_CPU).set_requires_grad(true);
        let (w, b, table) = (zeros(&[6, 8]), zeros(&[6]), zeros(&[50, 8]));
        let params = [w.shallow_clone(), b.shallow_clone(), table.shallow_clone()];
        let options = groups::Optim { name: listed::Optimizer::Muon, ..groups::Optim::default() };
        let mut optimizer = Optimizer::new(&Learned::all(&params, 50), options);
        let names: Vec<(&str, usize)> =
            optimizer.state().iter().map(|(n, i, _)| (*n, *i)).collect();
        assert_eq!(names.iter().filter(|(_, i)| *i == 0).count(), 1);
        assert!(names.contains(&("momentum", 0)) && names.contains(&("exp_avg", 2)), "{names:?}");
        let (x, y) = (
            Tensor::randn([64, 8], tch::kind::FLOAT_CPU),
            Tensor::randn([64, 6], tch::kind::FLOAT_CPU),
        );
        let loss = || {
            (x.matmul(&w.tr()) + &b - &y).square().mean(Kind::Float)
                + table.square().sum(Kind::Float)
        };
        let first = loss().double_value(&[]);
        for _ in 0..100 {
            let grads = Tensor::run_backward(&[loss()], &params, false, false);
            optimizer.step(&grads, 0.02, 1.0).unwrap();
        }
        assert!(loss().double_value(&[]) < 0.95 * first, "{first} to {}", loss().double_value(&[]));
    }

    #[test]
    fn weight_decay_spares_what_it_should() {
        let ones = |size: &[i64]| Tensor::ones(size, tch::kind::FLOAT_CPU);
        let params = [ones(&[3, 3]), ones(&[3]), ones(&[50, 3])];
        let options = |on| groups::Optim {
            weight_decay: 0.5,
            weight_decay_on: on,
            ..groups::Optim::default()
        };
        let learned = Learned::all(&params, 50);
        let mut optimizer = Optimizer::new(&learned, options(listed::DecayOn::Matrices));
        let grads: Vec<Tensor> = params.iter().map(Tensor::zeros_like).collect();
        optimizer.step(&grads, 0.1, 1.0).unwrap();
        let first = |i: usize| params[i].view(-1).double_value(&[0]);
        assert!((first(0) - 0.95).abs() < 1e-6);
        assert_eq!((first(1), first(2)), (1.0, 1.0));
    }
}
