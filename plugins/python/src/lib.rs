//! Components written in Python: `sampling.predictor=python:my_sampler.py:MySampler`, and so for networks, processes, noise
//! schedules and parameterizations.
//!
//! The interpreter runs inside this process, over the same libtorch: tensors cross as `torch.Tensor` without a copy, and
//! autograd goes through. It is looked for when the first such component is made, so this plugin loads on a machine
//! without Python. See `interpreter` for which Python is used, and the page `python` of plugin-api's guide for what a class has.
//!
//! Shape letters: `B` batch, `L` length, `V` vocabulary including the mask, `N` rows.

use maskdiff_plugin_api::prelude::*;
use serde_json::{Map, Value, json};

mod backbone;
mod door;
mod interpreter;
mod process;

use door::{Argument as A, Made, Object};

export_plugin!();
register!(noise PythonNoise);
register!(parameterization PythonParameterization);
register!(sampler PythonSampler);

/// The options of a Python class: what its `__init__` takes beside the context.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub(crate) struct Config {
    /// `FILE:CLASS`, as behind the colon of `python:FILE:CLASS`.
    argument: String,
    /// All other options of the group, handed to the class as keyword arguments.
    #[serde(flatten)]
    options: Map<String, Value>,
}

/// `promises` are capabilities that the class must claim as well, each by an attribute that is true.
fn make(kind: &str, promises: &[&str], config: &Config, context: &Context) -> Result<Object> {
    ensure!(
        !config.argument.is_empty(),
        Config,
        "`python` needs a file and a class, as in `python:my_{kind}.py:MyClass`"
    );
    Object::new(
        &config.argument,
        (kind, promises),
        &config.options,
        &serde_json::to_value(context)?,
    )
}

macro_rules! component {
    ($type:ident, $kind:literal, $about:literal, $provides:expr, $promises:expr) => {
        struct $type(Object);

        impl Component for $type {
            const NAME: &'static str = "python";
            const ABOUT: &'static str = $about;
            const PROVIDES: &'static [&'static str] = $provides;
            type Config = Config;

            fn new(config: Config, context: &Context) -> Result<Self> {
                Ok(Self(make($kind, $promises, &config, context)?))
            }
        }
    };
}

component!(PythonNoise, "noise", "a noise schedule in Python: python:FILE:CLASS", &[], &[]);
component!(
    PythonParameterization,
    "parameterization",
    "a parameterization in Python: python:FILE:CLASS",
    &[capability::LOG_X0, capability::CARRY_OVER],
    &[capability::CARRY_OVER]
);
component!(PythonSampler, "sampler", "a sampler in Python: python:FILE:CLASS", &[], &[]);

/// A noise schedule's methods cannot fail: what Python raises goes to the boundary as a panic with the error itself.
fn or_panic<T>(result: Result<T>) -> T {
    result.unwrap_or_else(|error| std::panic::panic_any(error))
}

impl NoiseSchedule for PythonNoise {
    fn sigma(&self, t: &Tensor) -> Tensor {
        or_panic(self.0.tensor("sigma", &[A::Tensor(t)], None))
    }

    fn dsigma(&self, t: &Tensor) -> Tensor {
        or_panic(self.0.tensor("dsigma", &[A::Tensor(t)], None))
    }

    fn time_of_alpha(&self, alpha: &Tensor) -> Tensor {
        or_panic(self.0.tensor("time_of_alpha", &[A::Tensor(alpha)], None))
    }

    fn sigma_range(&self) -> (f64, f64) {
        or_panic(self.0.pair("sigma_range"))
    }

    fn importance(&self, t: &Tensor) -> Result<Tensor> {
        self.0.tensor("importance", &[A::Tensor(t)], None)
    }
}

impl Parameterization for PythonParameterization {
    fn draw_t(&self, model: &Denoiser, u_b: &Tensor) -> Result<Tensor> {
        self.0.tensor("draw_t", &[A::Model, A::Tensor(u_b)], Some(model))
    }

    fn loss(&self, model: &Denoiser, x0_bl: &Tensor, t_b: &Tensor) -> Result<Tensor> {
        self.0.tensor("loss", &[A::Model, A::Tensor(x0_bl), A::Tensor(t_b)], Some(model))
    }

    fn log_x0(
        &self,
        model: &Denoiser,
        xt_bl: &Tensor,
        t_b: &Tensor,
        rows_n: &Tensor,
    ) -> Result<Tensor> {
        let arguments = [A::Model, A::Tensor(xt_bl), A::Tensor(t_b), A::Tensor(rows_n)];
        self.0.tensor("log_x0", &arguments, Some(model))
    }

    fn score(
        &self,
        model: &Denoiser,
        xt_bl: &Tensor,
        t_b: &Tensor,
        rows_n: &Tensor,
    ) -> Result<Tensor> {
        let arguments = [A::Model, A::Tensor(xt_bl), A::Tensor(t_b), A::Tensor(rows_n)];
        self.0.tensor("score", &arguments, Some(model))
    }
}

impl Sampler for PythonSampler {
    fn sample(&mut self, model: &Denoiser, xt_bl: &Tensor) -> Result<Tensor> {
        self.0.tensor("sample", &[A::Model, A::Tensor(xt_bl)], Some(model))
    }

    fn law(&self, model: &Denoiser, xt_bl: &Tensor, t: f64, s: f64) -> Result<Tensor> {
        let arguments = [A::Model, A::Tensor(xt_bl), A::Number(t), A::Number(s)];
        self.0.tensor("law", &arguments, Some(model))
    }
}

/// Whole numbers that came as any.
fn sizes(numbers: &[f64]) -> Vec<i64> {
    numbers.iter().map(|number| *number as i64).collect()
}

/// What a call to the model is, by its name in Python.
fn ask_model(model: &Denoiser, name: &str, tensors: &[Tensor], numbers: &[f64]) -> Result<Made> {
    let tensor = |i: usize| -> Result<&Tensor> {
        let Some(tensor) = tensors.get(i) else {
            bail!(Shape, "`model.{name}` needs {} tensors, got {}", i + 1, tensors.len());
        };
        Ok(tensor)
    };
    let number = |i: usize| numbers.get(i).copied().unwrap_or(f64::NAN);
    let made = match name {
        "sigma" => model.sigma(tensor(0)?)?,
        "dsigma" => model.dsigma(tensor(0)?)?,
        "time_of_alpha" => model.time_of_alpha(tensor(0)?)?,
        "importance" => model.importance(tensor(0)?)?,
        "corrupt" => model.corrupt(tensor(0)?, tensor(1)?)?,
        "posterior" => model.posterior(tensor(0)?, number(0), number(1), tensor(1)?)?,
        "hidden" => model.hidden(tensor(0)?, tensor(1)?)?,
        "logits" => model.logits(tensor(0)?)?,
        "weighted_nll" => {
            let banned = (number(0) >= 0.0).then(|| number(0) as i64);
            model.weighted_nll(tensor(0)?, tensor(1)?, tensor(2)?, banned)?
        }
        "log_x0" => model.log_x0(tensor(0)?, tensor(1)?, tensor(2)?)?,
        "score" => model.score(tensor(0)?, tensor(1)?, tensor(2)?)?,
        "uniforms" => model.uniforms(&sizes(numbers))?,
        "normals" => model.normals(&sizes(numbers))?,
        "alpha" => return Ok(Made::Value(json!(model.alpha(number(0))?))),
        "sigma_range" => return Ok(Made::Value(json!(model.sigma_range()?))),
        "progress" => {
            model.progress(number(0) as i64, number(1) as i64, tensor(0)?)?;
            return Ok(Made::Value(Value::Null));
        }
        other => bail!(Unsupported, "the model has no `{other}`"),
    };
    Ok(Made::Tensor(made))
}
