//! Laws of walks over all texts of a small vocabulary.

use maskdiff_engine::model::Model;
use maskdiff_plugin_api::Model as Lent;
use maskdiff_plugin_api::abi::handles::Walker;
use tch::{Device, Kind, Tensor};

/// All texts of the model's vocabulary, the first position most significant, `[S, L] i64`.
pub fn every_text(model: &Model) -> Tensor {
    let (v, l) = (model.facts().vocab_size, model.facts().length);
    let digit = |place: i64| {
        let all = Tensor::arange(v.pow(l as u32), (Kind::Int64, Device::Cpu));
        all.floor_divide_scalar(v.pow((l - 1 - place) as u32)).remainder(v)
    };
    Tensor::stack(&(0..l).map(digit).collect::<Vec<_>>(), 1)
}

/// The number of each text `[B, L]` in [`every_text`], counted: `[S]`.
pub fn counts(model: &Model, x_bl: &Tensor) -> Vec<f64> {
    let (v, l) = (model.facts().vocab_size, model.facts().length);
    let mut state = x_bl.select(1, 0).zeros_like();
    for place in 0..l {
        state = state * v + x_bl.select(1, place);
    }
    let counts = state.bincount(None::<Tensor>, v.pow(l as u32)).to_kind(Kind::Double);
    Vec::try_from(counts).expect("numbers")
}

/// The law of a walk's end over all texts, by the law of each of its steps; `view` is of as many texts as there are.
pub fn law_of_walk(
    walker: &Walker,
    model: &Model,
    view: &dyn Lent,
    steps: &[(f64, f64)],
) -> Vec<f64> {
    let (v, l) = (model.facts().vocab_size, model.facts().length);
    let every = every_text(model);
    let joint = |law_slv: &Tensor| {
        let mut joint = Tensor::ones([law_slv.size()[0], 1], (Kind::Double, Device::Cpu));
        for place in 0..l {
            joint = (joint.unsqueeze(2) * law_slv.select(1, place).unsqueeze(1))
                .reshape([-1, joint.size()[1] * v]);
        }
        joint
    };
    let start = match model.facts().mask_id {
        Some(mask) => Tensor::from(mask).one_hot(v).to_kind(Kind::Double),
        None => Tensor::full([v], 1.0 / v as f64, (Kind::Double, Device::Cpu)),
    };
    let mut law = joint(&start.view([1, 1, v]).expand([1, l, v], false));
    for (t, s) in steps {
        let step = walker.law(view, &every, *t, *s).expect("a law").to_kind(Kind::Double);
        law = law.matmul(&joint(&step));
    }
    Vec::try_from(law.view([-1])).expect("numbers")
}
