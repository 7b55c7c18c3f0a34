//! A network that takes adapters computes with one as with the sum of its matrix and their product.

use tch::{Device, Kind, Tensor};

use super::contracts::close;
use crate::abi::handles::Network;
use crate::{Adaptation, Result, bail};

const F64: (Kind, Device) = (Kind::Double, Device::Cpu);

/// Each linear map that [`crate::LinearMaps::adapting`] names.
pub(super) fn adapting(network: &Network) -> Result<()> {
    let (maps, parameters) = (network.linear_maps()?, network.parameters()?);
    let ids = Tensor::randint(10, [2, 6], (Kind::Int64, Device::Cpu));
    let sigma = Tensor::rand([2], F64);
    let head = network.head()?.map(|head| head.weight.data_ptr());
    for name in maps.names.iter().chain(&maps.transposed).chain(&maps.adapting) {
        let Some(parameter) = parameters.iter().find(|parameter| parameter.name == *name) else {
            bail!(Other, "`linear_maps` names `{name}`, which is no parameter")
        };
        let size = parameter.tensor.size();
        let [rows, columns] = size[..] else {
            bail!(Other, "`linear_maps` names `{name}`, which is {size:?} and no matrix")
        };
        if !maps.adapting.contains(name) || head == Some(parameter.tensor.data_ptr()) {
            continue;
        }
        let turned = maps.transposed.contains(name);
        let (out, inputs) = if turned { (columns, rows) } else { (rows, columns) };
        let (a, b) = (Tensor::randn([2, inputs], F64) * 0.1, Tensor::randn([out, 2], F64) * 0.1);
        let product = b.matmul(&a) * 0.5;
        let product = if turned { product.tr() } else { product };
        let mut matrix = parameter.tensor.detach();
        let kept = matrix.copy();
        matrix.copy_(&(&kept + product));
        let expected = network.hidden(&ids, &sigma, false)?;
        matrix.copy_(&kept);
        network.adapt(&Adaptation::new(name, &a, &b, 0.5))?;
        let found = network.hidden(&ids, &sigma, false)?;
        close(&format!("an adapter at `{name}` against the sum"), &found, &expected, 1e-9)?;
        network.adapt(&Adaptation::new(name, &a, &b.zeros_like(), 0.5))?;
    }
    Ok(())
}
