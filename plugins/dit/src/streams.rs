//! A pass over clean and noisy blocks: two streams, one long pass, and a cache are the same network.
//!
//! Shape letters: `B` batch, `L` length, `D` hidden size. Source of the identities: Arriola et al. 2025, arXiv:2503.09573, section 3.

use maskdiff_plugin_api::prelude::*;
use tch::{Device, Kind};

use crate::{Config, Dit};

const F64: (Kind, Device) = (Kind::Double, Device::Cpu);
const LENGTH: i64 = 12;
const VOCAB: i64 = 9;

/// A network whose gates and head are not zero, in float64.
fn network(time_conditioning: bool) -> Dit {
    let context = Context::new(VOCAB, LENGTH)
        .mask(Some(VOCAB - 1))
        .time_conditioning(time_conditioning)
        .kind(Kind::Double);
    let config = Config {
        hidden_size: 16,
        cond_dim: 8,
        n_blocks: 3,
        n_heads: 2,
        dropout: 0.0,
        ..Config::default()
    };
    let net = Dit::new(config, &context).unwrap();
    tch::manual_seed(5);
    tch::no_grad(|| {
        for parameter in net.parameters().entries().iter().filter(|p| p.trainable) {
            let mut tensor = parameter.tensor.shallow_clone();
            let _ = tensor.normal_(0.0, 0.4);
        }
    });
    net
}

/// Clean and noisy tokens, `[2, L]` each.
fn texts() -> (Tensor, Tensor) {
    tch::manual_seed(6);
    let x = Tensor::randint(VOCAB - 1, [2, LENGTH], (Kind::Int64, Device::Cpu));
    let masked = Tensor::rand([2, LENGTH], F64).lt(0.5);
    let z = x.masked_fill(&masked, VOCAB - 1);
    (x, z)
}

fn zeros() -> Tensor {
    Tensor::zeros([2], F64)
}

fn positions() -> Tensor {
    Tensor::arange(LENGTH, (Kind::Int64, Device::Cpu)).unsqueeze(0)
}

/// Clean keys and values, then the noisy read, `[2, L, D]`.
fn two_streams(net: &Dit, x: &Tensor, z: &Tensor, sigma: &Tensor, block: i64) -> Tensor {
    let clean = Pass::new(x, &zeros()).sees(Sees::Blocks(block)).wants(Wants::Keys);
    let clean = net.pass(&clean, false).unwrap();
    let noisy = Pass::new(z, sigma).sees(Sees::Earlier(block)).past(&clean.keys);
    net.pass(&noisy.positions(&positions()), false).unwrap().hidden
}

/// The noisy half of one pass over `[z ; x]`.
fn one_pass(net: &Dit, x: &Tensor, z: &Tensor, sigma: &Tensor, block: i64) -> Tensor {
    let at = Tensor::arange(LENGTH, (Kind::Int64, Device::Cpu)).floor_divide_scalar(block);
    let (rows, columns) = (at.unsqueeze(1), at.unsqueeze(0));
    let of_z = Tensor::cat(&[columns.eq_tensor(&rows), columns.lt_tensor(&rows)], 1);
    let of_x = Tensor::cat(
        &[rows.zeros_like().expand([LENGTH, LENGTH], false).gt(0), columns.le_tensor(&rows)],
        1,
    );
    let pairs = Tensor::cat(&[of_z, of_x], 0);
    let each = |sigma: &Tensor| sigma.unsqueeze(1).expand([2, LENGTH], false);
    let both = Tensor::cat(&[each(sigma), each(&zeros())], 1);
    let pass = Pass::new(&Tensor::cat(&[z, x], 1), &both)
        .positions(&Tensor::cat(&[positions(), positions()], 1))
        .sees(Sees::Pairs(pairs));
    net.pass(&pass, false).unwrap().hidden.narrow(1, 0, LENGTH)
}

#[track_caller]
fn same(what: &str, a: &Tensor, b: &Tensor) {
    let error = (a - b).abs().max().double_value(&[]);
    assert!(error < 1e-12, "{what}: {error:e}");
}

/// The gradients of all parameters that a state reaches; zeros of the others.
fn gradients(net: &Dit, hidden: &Tensor) -> Vec<Tensor> {
    let trained = || net.parameters().entries().iter().filter(|p| p.trainable);
    trained().for_each(|p| p.tensor.shallow_clone().zero_grad());
    let weight = (Tensor::arange(hidden.numel() as i64, F64) * 0.7).sin().view_as(hidden);
    (net.logits(&hidden.flatten(0, 1)).unwrap().square().sum(Kind::Double)
        + (hidden * weight).sum(Kind::Double))
    .backward();
    let grad = |p: &maskdiff_plugin_api::Parameter| {
        let grad = p.tensor.grad();
        if grad.defined() { grad.copy() } else { p.tensor.zeros_like() }
    };
    trained().map(grad).collect()
}

#[test]
fn one_block_as_long_as_the_text_is_the_network_itself() {
    for timed in [false, true] {
        let net = network(timed);
        let (x, z) = texts();
        let sigma = Tensor::from_slice(&[0.3, 1.1]);
        let whole = net.hidden(&z, &sigma, false).unwrap();
        assert_eq!(net.pass(&Pass::new(&z, &sigma), false).unwrap().hidden, whole);
        same("two streams", &two_streams(&net, &x, &z, &sigma, LENGTH), &whole);
    }
}

#[test]
fn two_streams_are_one_pass_and_have_its_gradients() {
    for (timed, block) in [(false, 1), (false, 4), (true, 3), (true, 6)] {
        let net = network(timed);
        let (x, z) = texts();
        // Without time conditioning the host passes zeros.
        let sigma = if timed { Tensor::from_slice(&[0.3, 1.1]) } else { zeros() };
        let one = one_pass(&net, &x, &z, &sigma, block);
        let two = two_streams(&net, &x, &z, &sigma, block);
        same(&format!("states, blocks of {block}"), &two, &one);
        let pairs = gradients(&net, &one).into_iter().zip(gradients(&net, &two));
        for ((one, two), p) in pairs.zip(net.parameters().entries().iter().filter(|p| p.trainable))
        {
            let scale = one.abs().max().double_value(&[]).max(1.0);
            same(&format!("{}, blocks of {block}", p.name), &(one / scale), &(two / scale));
        }
    }
}

/// Block after block over the keys and values of those before: what a sampler does.
#[test]
fn a_cache_of_finished_blocks_changes_nothing() {
    let net = network(true);
    let (x, z) = texts();
    let sigma = Tensor::from_slice(&[0.3, 1.1]);
    for block in [1, 4] {
        let whole = two_streams(&net, &x, &z, &sigma, block);
        let mut past: Vec<Tensor> = Vec::new();
        for first in (0..LENGTH).step_by(block as usize) {
            let noisy = Pass::new(&z.narrow(1, first, block), &sigma).past(&past);
            let hidden = net.pass(&noisy, false).unwrap().hidden;
            same("a block over its past", &hidden, &whole.narrow(1, first, block));
            let clean =
                Pass::new(&x.narrow(1, first, block), &zeros()).past(&past).wants(Wants::Keys);
            let own = net.pass(&clean, false).unwrap().keys;
            past = match past.is_empty() {
                true => own,
                false => past.iter().zip(&own).map(|(a, b)| Tensor::cat(&[a, b], 2)).collect(),
            };
        }
    }
}

/// A clean token reaches later blocks, a noisy one its own, and neither any other.
#[test]
fn a_changed_token_is_seen_only_where_it_should_be() {
    let net = network(false);
    let (x, z) = texts();
    let block = 4;
    let before = two_streams(&net, &x, &z, &zeros(), block);
    for j in 0..LENGTH {
        let changed = |tokens: &Tensor| {
            let tokens = tokens.copy();
            let _ = tokens.narrow(1, j, 1).fill_(7 - tokens.int64_value(&[0, j]).min(6));
            tokens
        };
        let moved = |after: &Tensor, i: i64| after.select(1, i) != before.select(1, i);
        let clean = two_streams(&net, &changed(&x), &z, &zeros(), block);
        let noisy = two_streams(&net, &x, &changed(&z), &zeros(), block);
        for i in 0..LENGTH {
            assert_eq!(moved(&clean, i), j / block < i / block, "clean {j} to {i}");
            assert_eq!(moved(&noisy, i), j / block == i / block, "noisy {j} to {i}");
        }
    }
}

#[test]
fn a_mixture_is_a_mixture_of_embeddings_and_has_a_gradient() {
    let net = network(false);
    let (_, z) = texts();
    let ids = Tensor::stack(&[&z, &z.fmod(3)], 2);
    let weight = Tensor::rand([2, LENGTH, 2], F64).set_requires_grad(true);
    let pass = Pass::new(&z, &zeros()).mixture(&ids, &weight);
    net.pass(&pass, false).unwrap().hidden.sum(Kind::Double).backward();
    assert!(weight.grad().abs().sum(Kind::Double).double_value(&[]) > 0.0);
    let sure = Tensor::from_slice(&[0.0, 1.0]).expand([2, LENGTH, 2], false);
    let mixed = net.pass(&Pass::new(&z, &zeros()).mixture(&ids, &sure), false).unwrap().hidden;
    same("all weight on one", &mixed, &net.hidden(&z.fmod(3), &zeros(), false).unwrap());
}

#[test]
fn what_is_no_past_of_this_network_is_refused() {
    let net = network(false);
    let (_, z) = texts();
    let keys = [Tensor::zeros([2, 2, 3, 8], F64)];
    let error = net.pass(&Pass::new(&z, &zeros()).past(&keys), false).unwrap_err();
    assert!(error.to_string().contains("`past` holds 1 tensors"), "{error}");
    let pairs = Tensor::ones([LENGTH, 3], (Kind::Bool, Device::Cpu));
    let error = net.pass(&Pass::new(&z, &zeros()).sees(Sees::Pairs(pairs)), false).unwrap_err();
    assert!(error.to_string().contains("the pairs of a pass are [12, 3]"), "{error}");
    let label = Tensor::zeros([2], (Kind::Int64, Device::Cpu));
    let error = net.pass(&Pass::new(&z, &zeros()).label(Some(&label)), false).unwrap_err();
    assert!(error.to_string().contains("this network was made without classes"), "{error}");
}
