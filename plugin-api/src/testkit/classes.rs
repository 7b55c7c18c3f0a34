//! The contract of parameterizations that learn classes of texts.

use tch::{Device, Kind, Tensor};

use super::contracts::{LeftOut, Make, law, shaped, unwritten, values};
use super::toy::Toy;
use crate::abi::handles::Method;
use crate::{Batch, Noisy, Result, capability, ensure};

/// Classes that it is told of.
const CLASSES: i64 = 2;

/// Times stay in [0, 1], the loss of labelled texts is finite, a batch without labels is refused, and classes have a law at each text.
pub(super) fn classifies(make: Make<'_, Method>, needs: &[&str]) -> Result<LeftOut> {
    let toy = match needs.contains(&capability::MASK) {
        true => Toy::hybrid(4, 3),
        false => Toy::uniform(4, 3),
    };
    let method = make(&toy.context().classes(CLASSES))?;
    let u = Tensor::linspace(0.0, 0.999, 32, (Kind::Double, Device::Cpu));
    let t = method.draw_t(&toy, &u)?;
    shaped("draw_t", &t, &[32], Kind::Double)?;
    let inside = values(&t)?.iter().all(|t| (0.0..=1.0).contains(t));
    ensure!(inside, Numeric, "draw_t gives times outside [0, 1]");
    let x0 = Tensor::randint(3, [32, 4], (Kind::Int64, Device::Cpu));
    let label = Tensor::randint(CLASSES, [32], (Kind::Int64, Device::Cpu));
    let (kept_x0, kept_label) = (x0.copy(), label.copy());
    let batch = Batch::new(&x0, &t).label(Some(&label)).at(1, 2);
    let objective = method.objective(&toy, &batch)?;
    unwritten("the batch `x0_bl` of the objective", &x0, &kept_x0)?;
    unwritten("the batch `label_b` of the objective", &label, &kept_label)?;
    let finite = values(&objective.loss_bl)?.iter().all(|l| l.is_finite());
    ensure!(finite, Numeric, "the objective is not finite");
    let refused = method.objective(&toy, &Batch::new(&x0, &t).at(1, 2)).is_err();
    ensure!(refused, Other, "a batch without labels is not refused");
    let log_c = method.log_label(&toy, &Noisy::new(&x0, &t))?;
    law("log_label", &log_c.exp(), &[32, CLASSES], 1e-6)?;
    Ok(LeftOut::new())
}
