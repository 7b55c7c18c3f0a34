//! A network whose stages are computed again in the backward pass is the same network.

use tch::{Device, Kind, Tensor};

use super::contracts::Make;
use crate::abi::handles::Network;
use crate::{Context, Pass, Result, Sees, Wants, bail, capability, ensure};

const I64: (Kind, Device) = (Kind::Int64, Device::Cpu);

/// One of two networks alike, whose parameters are drawn anew such that no gate or head is zero.
fn made(make: Make<'_, Network>, facts: &Context, again: bool) -> Result<Network> {
    let network = make(&facts.activation_checkpointing(again))?;
    tch::manual_seed(7);
    for parameter in network.parameters()?.iter().filter(|p| p.trainable) {
        let _ = tch::no_grad(|| parameter.tensor.shallow_clone().normal_(0.0, 0.3));
    }
    Ok(network)
}

/// What is compared: a scalar of a call, and the gradients of the parameters.
fn trained(network: &Network, y: &Tensor) -> Result<Vec<Tensor>> {
    let loss = (y * y.sin()).sum(Kind::Double);
    loss.backward();
    let mut all = vec![loss];
    for parameter in network.parameters()?.iter_mut().filter(|p| p.trainable) {
        let grad = parameter.tensor.grad();
        all.push(if grad.defined() { grad.copy() } else { Tensor::zeros([0], I64) });
        parameter.tensor.zero_grad();
    }
    Ok(all)
}

/// Numbers and gradients of both calls are the same to the last bit, in training, where there is dropout; and the stages are computed
/// again.
pub(super) fn stages(make: Make<'_, Network>, facts: &Context, provides: &[&str]) -> Result<()> {
    let (plain, again) = (made(make, facts, false)?, made(make, facts, true)?);
    let ids = Tensor::randint(10, [2, 6], I64);
    let sigma = Tensor::rand([2], (Kind::Double, Device::Cpu));
    let hidden = |network: &Network| {
        tch::manual_seed(8);
        trained(network, &network.hidden(&ids, &sigma, true)?)
    };
    alike("hidden", &hidden(&plain)?, &hidden(&again)?)?;
    if provides.contains(&capability::PAST) {
        let sees = || match provides.contains(&capability::CAUSAL) {
            true => Sees::Causal,
            false => Sees::All,
        };
        let pass = |network: &Network| {
            tch::manual_seed(8);
            let first = Pass::new(&ids.narrow(1, 0, 4), &sigma).sees(sees()).wants(Wants::Both);
            let first = network.pass(&first, true)?;
            let rest = Pass::new(&ids.narrow(1, 4, 2), &sigma).sees(sees()).past(&first.keys);
            let rest = network.pass(&rest, true)?;
            trained(network, &Tensor::cat(&[first.hidden, rest.hidden], 1))
        };
        // An option may take `past` back.
        if let Ok(expected) = pass(&plain) {
            alike("pass", &expected, &pass(&again)?)?;
        }
    }
    // A stage that is computed again has no gradient of its gradient: so it can be seen from outside.
    let y = network_sum(&again, &ids, &sigma)?;
    let parameters = again.parameters()?;
    let of: Vec<&Tensor> = parameters.iter().filter(|p| p.trainable).map(|p| &p.tensor).collect();
    let twice = Tensor::f_run_backward(&[y], &of, true, true);
    match twice {
        Err(error) if error.to_string().contains("activation checkpointing") => Ok(()),
        _ => {
            bail!(Other, "it offers `stages`, and no block of it is one: call `Parameters::stage`")
        }
    }
}

fn network_sum(network: &Network, ids: &Tensor, sigma: &Tensor) -> Result<Tensor> {
    Ok(network.hidden(ids, sigma, false)?.sum(Kind::Double))
}

fn alike(call: &str, plain: &[Tensor], again: &[Tensor]) -> Result<()> {
    let same = plain.iter().zip(again).all(|(a, b)| a.size() == b.size() && a.equal(b));
    ensure!(
        same,
        Numeric,
        "`{call}` with activation checkpointing gives other numbers or gradients"
    );
    Ok(())
}
