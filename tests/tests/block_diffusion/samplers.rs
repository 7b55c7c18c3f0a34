//! Samplers draw from the exact law, and a cache changes no token.

use maskdiff_engine::model::Model;
use maskdiff_engine::model::views::Growth;
use maskdiff_engine::plugins::{Choice, Registry};
use maskdiff_engine::sample::grow::{Start, grow};
use maskdiff_plugin_api::testkit::chi_square;
use maskdiff_tests::{Tensors, device, golden_case, registry};
use serde_json::json;
use tch::{Kind, Tensor};

use super::{growth, tiny};

/// `batch` texts of the sampler with a BOS in front, and of each the number of the sequence.
fn drawn(
    model: &Model,
    registry: &Registry,
    sampler: &Choice,
    growth: Growth,
    batch: i64,
) -> Tensor {
    let facts = *model.facts();
    let walker = registry.sampler(sampler, &facts).expect("a sampler");
    let x_bn = model.prior(batch, 4).expect("a prior");
    let given_bn = x_bn.zeros_like().to_kind(Kind::Bool);
    let _ = x_bn.narrow(1, 0, 1).fill_(0);
    let _ = given_bn.narrow(1, 0, 1).fill_(1);
    let start = Start { x_bn, given_bn, from: vec![0; batch as usize], ends: None, least: None };
    let mut named = (sampler.name.clone(), walker);
    let grown = grow(model, &mut named, &start, growth, None).expect("texts");
    let rows: Vec<Tensor> = grown.rows.iter().map(|row| Tensor::from_slice(row)).collect();
    Tensor::stack(&rows, 0).to_device(device())
}

/// Samplers draw from the law of first hitting: by chi-square over all 27 texts, batched, with sequences at other places of their walk.
#[test]
fn samplers_draw_from_the_exact_law() {
    let Some(case) = golden_case("n_block_exact") else { return };
    let registry = registry();
    let golden = Tensors::golden("n_block_exact/exact.safetensors");
    let texts = 4000;
    for (name, options, size) in [
        ("first_hitting", json!({}), 2),
        ("ddpm_cache", json!({ "steps": 250, "t_min": 1e-9 }), 2),
        ("ddpm", json!({ "steps": 8, "t_min": 1e-9 }), 1),
    ] {
        let model = tiny(&registry, &case, size);
        tch::manual_seed(7);
        let sampler = Choice { name: name.into(), options };
        let x = drawn(&model, &registry, &sampler, growth(size, true), texts);
        let number =
            (x.select(1, 1) * 9 + x.select(1, 2) * 3 + x.select(1, 3)).to_device(tch::Device::Cpu);
        let counts = number.bincount::<Tensor>(None, 27).to_kind(Kind::Double);
        let law = golden.find(&format!("log_law.b{size}")).unwrap_or_else(|| -golden.get("nll.b1"));
        let want = law.exp().to_device(tch::Device::Cpu) * texts as f64;
        // Texts that hardly ever come make one class.
        let rare = want.lt(5.0).to_kind(Kind::Double);
        let common = 1.0 - &rare;
        let part = |x: &Tensor| (x * &rare).sum(Kind::Double).double_value(&[]);
        let off =
            ((&counts - &want).square() / &want * &common).sum(Kind::Double).double_value(&[]);
        let off = off + (part(&counts) - part(&want)).powi(2) / part(&want).max(1.0);
        let classes = common.sum(Kind::Double).double_value(&[]) + 1.0;
        // Mean of degrees of freedom, five standard deviations above.
        let most = classes + 5.0 * (2.0 * classes).sqrt();
        assert!(off < most, "{name}: chi-square {off:.1} over {classes} classes");
    }
}

/// A given prefix conditions the law, and nothing else: prompts that end inside a block, and of other lengths in one batch.
#[test]
fn prompts_condition_the_exact_law() {
    let Some(case) = golden_case("n_block_exact") else { return };
    let registry = registry();
    let golden = Tensors::golden("n_block_exact/exact.safetensors");
    let law = golden.get("log_law.b2").exp().to_device(tch::Device::Cpu).view([3, 3, 3]);
    let model = tiny(&registry, &case, 2);
    let options = (Kind::Int64, device());
    let texts = 3000;
    for (name, sampler) in
        [("first_hitting", json!({})), ("ddpm_cache", json!({ "steps": 250, "t_min": 1e-9 }))]
    {
        // Even texts are given one token behind the BOS, odd ones two.
        let x_bn = model.prior(2 * texts, 4).expect("a prior");
        let given_bn = x_bn.zeros_like().to_kind(Kind::Bool);
        let odd = Tensor::arange(2 * texts, options).remainder(2).to_kind(Kind::Bool);
        for (at, token, rows) in [(0, 0, None), (1, 2, None), (2, 1, Some(&odd))] {
            let rows = rows.map_or_else(|| odd.ones_like(), Tensor::shallow_clone);
            let (mut x, mut given) = (x_bn.select(1, at), given_bn.select(1, at));
            let _ = x.masked_fill_(&rows, token);
            let _ = given.masked_fill_(&rows, 1);
        }
        let from = vec![0; 2 * texts as usize];
        let start = Start { x_bn, given_bn, from, ends: None, least: None };
        let choice = Choice { name: name.into(), options: sampler };
        let walker = registry.sampler(&choice, model.facts()).expect("a sampler");
        tch::manual_seed(11);
        let grown = grow(&model, &mut (name.into(), walker), &start, growth(2, true), None);
        let rows = grown.expect("texts").rows;
        assert!(rows.iter().all(|row| row[..2] == [0, 2]), "{name}");
        let of = |place: usize| rows.iter().skip(place).step_by(2);
        let mut one = vec![0.0; 9];
        of(0).for_each(|row| one[(row[2] * 3 + row[3]) as usize] += 1.0);
        let mut two = vec![0.0; 3];
        of(1).for_each(|row| {
            assert_eq!(row[2], 1, "{name}");
            two[row[3] as usize] += 1.0;
        });
        for (counts, given) in [(one, law.get(2)), (two, law.get(2).get(1))] {
            let given = Vec::<f64>::try_from(given.reshape([-1])).expect("a law");
            let all: f64 = given.iter().sum();
            let want: Vec<f64> = given.iter().map(|p| p / all).collect();
            let p = chi_square(&counts, &want);
            assert!(p > 1e-4, "{name}: p = {p:e}, {counts:?} {want:?}");
        }
    }
}

/// With equal random numbers a cache changes no token, of any sampler and in a batch.
#[test]
fn a_cache_changes_no_token() {
    let Some(case) = golden_case("n_block_exact") else { return };
    let registry = registry();
    for (name, options) in [
        ("first_hitting", json!({ "tokens_per_step": 2, "temperature": 0.8 })),
        ("ddpm_cache", json!({ "steps": 16 })),
        ("ddpm", json!({ "steps": 8 })),
        ("confidence", json!({})),
        ("remdm", json!({})),
        ("analytic", json!({ "steps": 8 })),
    ] {
        let model = tiny(&registry, &case, 2);
        let sampler = Choice { name: name.into(), options };
        let draw = |cached: bool| {
            tch::manual_seed(3);
            let before = (model.calls(), model.rows());
            let x = drawn(&model, &registry, &sampler, growth(2, cached), 64);
            (x, model.calls() - before.0, model.rows() - before.1)
        };
        let ((with, calls, rows), (without, _, more)) = (draw(true), draw(false));
        assert_eq!(with, without, "{name}");
        assert!(calls > 0 && rows <= more, "{name}: {rows} tokens read, {more} without the cache");
        assert_eq!(with.eq(3).any().int64_value(&[]), 0, "{name} leaves masks");
    }
}
