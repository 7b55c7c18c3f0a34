//! Forward processes in Python. What a class may be used for is known before it is made, so the word that chooses it says which of
//! three kinds of noise it has, and the class says so too.

use maskdiff_plugin_api::prelude::*;

use crate::door::{Argument as A, Object};
use crate::{Config, make};

macro_rules! process {
    ($type:ident, $name:literal, $about:literal, $provides:expr, $promises:expr) => {
        register!(process $type);

        struct $type(Process);

        impl Component for $type {
            const NAME: &'static str = $name;
            const ABOUT: &'static str = $about;
            const PROVIDES: &'static [&'static str] = $provides;
            type Config = Config;

            fn new(config: Config, context: &Context) -> Result<Self> {
                Process::new($promises, &config, context).map(Self)
            }
        }

        impl ForwardProcess for $type {
            fn mask_id(&self) -> Option<i64> {
                self.0.mask
            }

            fn prior(&self, batch: i64, length: i64) -> Result<Tensor> {
                self.0.object.tensor("prior", &[A::Count(batch), A::Count(length)], None)
            }

            fn corrupt(&self, x0_bl: &Tensor, alpha_b: &Tensor, u_bl: &Tensor) -> Result<Tensor> {
                check_shape!(x0_bl, [B, L], Int64);
                let arguments = [A::Tensor(x0_bl), A::Tensor(alpha_b), A::Tensor(u_bl)];
                self.0.object.tensor("corrupt", &arguments, None)
            }

            fn posterior(
                &self,
                xt_n: &Tensor,
                alpha_t: f64,
                alpha_s: f64,
                p_nv: &Tensor,
            ) -> Result<Tensor> {
                check_shape!(xt_n, [N], Int64);
                let alphas = [A::Number(alpha_t), A::Number(alpha_s)];
                let [alpha_t, alpha_s] = alphas;
                let arguments = [A::Tensor(xt_n), alpha_t, alpha_s, A::Tensor(p_nv)];
                self.0.object.tensor("posterior", &arguments, None)
            }

            fn prior_kl(&self, x0_bl: &Tensor, alpha_1: f64) -> Result<Tensor> {
                let arguments = [A::Tensor(x0_bl), A::Number(alpha_1)];
                self.0.object.tensor("prior_kl", &arguments, None)
            }

            fn mixing(&self, alpha_b: &Tensor) -> Result<Mix> {
                self.0.mix("mixing", alpha_b)
            }

            fn arrival(&self, alpha_b: &Tensor) -> Result<Mix> {
                self.0.mix("arrival", alpha_b)
            }
        }
    };
}

process!(
    Masks,
    "python",
    "a process in Python whose noise is the mask: python:FILE:CLASS",
    &[capability::MASK, capability::MIXING],
    &[capability::MASK]
);
process!(
    Mixed,
    "python_hybrid",
    "a process in Python whose noise is the mask and other tokens: python_hybrid:FILE:CLASS",
    &[capability::MASK, capability::MIXING, capability::HYBRID],
    &[capability::HYBRID]
);
process!(
    Evenly,
    "python_uniform",
    "a process in Python whose noise is any token alike, without a mask: python_uniform:FILE:CLASS",
    &[capability::MIXING, capability::UNIFORM],
    &[capability::UNIFORM]
);

struct Process {
    object: Object,
    mask: Option<i64>,
}

impl Process {
    fn new(promises: &[&str], config: &Config, context: &Context) -> Result<Self> {
        let masks = !promises.contains(&capability::UNIFORM);
        ensure!(!masks || context.mask_id.is_some(), Config, "the vocabulary has no mask token");
        let object = make("process", promises, config, context)?;
        Ok(Self { object, mask: context.mask_id.filter(|_| masks) })
    }

    /// Noise on every token, and more of it on the mask.
    fn mix(&self, method: &str, alpha_b: &Tensor) -> Result<Mix> {
        let [every_b, mask_b] = self.object.tensors(method, &[A::Tensor(alpha_b)])?;
        Ok(Mix::new(every_b, mask_b))
    }
}
