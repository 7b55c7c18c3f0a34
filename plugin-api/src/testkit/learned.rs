//! What schedules and parameterizations learn, and what tokens have of their own.

use tch::{Device, Kind, Tensor};

use super::contracts::{close, shaped, values};
use super::toy::Toy;
use crate::abi::handles::{Method, Noise, Process};
use crate::{Batch, Parameter, Result, bail, capability, ensure};

const F64: (Kind, Device) = (Kind::Double, Device::Cpu);
const I64: (Kind, Device) = (Kind::Int64, Device::Cpu);

/// The first trained parameter that a loss does not reach.
fn idle(parameters: &[Parameter]) -> Result<()> {
    match parameters.iter().find(|p| p.trainable && !p.tensor.grad().defined()) {
        Some(parameter) => bail!(Other, "`{}` is learned, but gets no gradient", parameter.name),
        None => Ok(()),
    }
}

/// The level of each token rises with time, its rate is the slope, at the start nothing is lost; without a need for
/// [`capability::TOKEN_NOISE`] all tokens have the level of the schedule. Every parameter gets a gradient.
pub(super) fn levels(noise: &Noise, needs: &[&str]) -> Result<()> {
    const TOKENS: i64 = 2;
    let t = Tensor::linspace(0.01, 0.99, 99, F64);
    let tokens = Tensor::arange(TOKENS, I64).unsqueeze(0).expand([99, TOKENS], false);
    let sigma = noise.token_sigma(&tokens, &t)?;
    shaped("token_sigma", &sigma, &[99, TOKENS], Kind::Double)?;
    let rate = noise.token_dsigma(&tokens, &t)?;
    shaped("token_dsigma", &rate, &[99, TOKENS], Kind::Double)?;
    let h = 1e-6;
    let slope: Tensor = (noise.token_sigma(&tokens, &(&t + h))?
        - noise.token_sigma(&tokens, &(&t - h))?)
        / (2.0 * h);
    close(
        "token_dsigma against the slope of token_sigma",
        &(&rate / &slope),
        &slope.ones_like(),
        1e-5,
    )?;
    let rises = values(&sigma.diff(1, 0, None::<Tensor>, None::<Tensor>))?.iter().all(|d| *d > 0.0);
    ensure!(rises, Numeric, "token_sigma does not rise with t");
    let alike = (&sigma - noise.sigma(&t)?.unsqueeze(1)).abs().max().double_value(&[]) < 1e-12;
    ensure!(
        alike || needs.contains(&capability::TOKEN_NOISE),
        Other,
        "its tokens have levels of their own, and it does not need `{}` of those who read them",
        capability::TOKEN_NOISE
    );
    let parameters = noise.parameters()?.0;
    if parameters.iter().any(|parameter| parameter.trainable) {
        (sigma.sum(Kind::Double) + rate.sum(Kind::Double)).backward();
    }
    idle(&parameters)
}

/// A draw with an alpha for each token is that of each token alone.
pub(super) fn tokens(process: &Process) -> Result<()> {
    let x0 = Tensor::randint(5, [16, 4], I64);
    let (alpha, u) = (Tensor::rand([16, 4], F64), Tensor::rand([16, 4], F64));
    let xt = process.corrupt_tokens(&x0, &alpha, &u)?;
    let column = |t: &Tensor, l: i64| t.narrow(1, l, 1);
    for l in 0..4 {
        let one =
            process.corrupt(&column(&x0, l), &column(&alpha, l).squeeze_dim(1), &column(&u, l))?;
        ensure!(
            one == column(&xt, l),
            Other,
            "`corrupt_tokens` differs from `corrupt` of each token alone"
        );
    }
    let one = alpha.ones_like();
    ensure!(process.corrupt_tokens(&x0, &one, &u)? == x0, Other, "alpha = 1 loses a token");
    Ok(())
}

/// The objective of a training step is finite; every parameter of the parameterization gets a gradient from it; its rounds name a model
/// that is there.
pub(super) fn objective(method: &Method, toy: &Toy, batch: &Batch) -> Result<()> {
    if let Some(rounds) = method.rounds()? {
        let there = crate::Denoiser::new(toy).other(&rounds.other).is_ok();
        ensure!(
            there,
            Other,
            "its rounds refresh `{}`, of which it does not say in `NEEDS` that it needs it",
            rounds.other
        );
    }
    toy.set_step(Some(0));
    let trained = method.objective(toy, batch);
    toy.set_step(None);
    let loss_bl = trained?.loss_bl;
    let finite = values(&loss_bl.detach())?.iter().all(|loss| loss.is_finite());
    ensure!(finite, Numeric, "the objective of a training step is not finite");
    let parameters = method.parameters()?.0;
    if parameters.iter().any(|parameter| parameter.trainable) {
        loss_bl.sum(Kind::Double).backward();
    }
    idle(&parameters)
}
