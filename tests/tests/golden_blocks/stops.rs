//! When a text ends by itself.

use maskdiff_config::listed::Context;
use maskdiff_engine::evaluate::diversity;
use maskdiff_engine::model::Model;
use maskdiff_engine::model::views::Growth;
use maskdiff_engine::plugins::{Choice, Registry};
use maskdiff_engine::sample::grow::{Grown, Start, TAIL, grow};
use maskdiff_tests::{golden_case, registry};
use serde_json::json;
use tch::{Kind, Tensor};

use super::{file, model, whole};

/// The original stops a text whose last tokens have an entropy below 4 nats.
const LEAST: f64 = 4.0;

/// Texts that are given whole, in blocks of a size: what is left of them.
fn grown(model: &Model, registry: &Registry, start: &Start, size: i64) -> Grown {
    let choice = Choice { name: "first_hitting".into(), options: json!({}) };
    let walker = registry.sampler(&choice, model.facts()).expect("a sampler");
    let growth = Growth { size, window: 512, context: Context::All, cached: true };
    grow(model, &mut ("first_hitting".into(), walker), start, growth, None).expect("texts")
}

fn row(x: &Tensor, i: i64) -> Vec<i64> {
    Vec::try_from(x.get(i).to_device(tch::Device::Cpu)).expect("tokens")
}

/// Entropies, and what is done with a text that says little new; where an EOS ends a text, each has one of its own, and the first one counts.
#[test]
fn golden_stop() {
    let (Some(case), Some(net)) = (golden_case("n_block_stop"), golden_case("n_block_net")) else {
        return;
    };
    let registry = registry();
    let model = model(&registry, &net, 4, (63, Kind::Float));
    for (name, run) in case["runs"].as_object().expect("runs") {
        let golden = file(&case, &format!("{name}.safetensors")).expect("numbers");
        let x = golden.get("x");
        let (texts, length) = (x.size()[0], x.size()[1]);
        let tail: Vec<i64> = (0..texts)
            .flat_map(|i| row(&x, i).into_iter().rev().take(TAIL).collect::<Vec<i64>>())
            .collect();
        let entropy = diversity::entropy(&tail);
        let want = golden.get("entropy").double_value(&[]);
        assert!((entropy - want).abs() < 1e-5, "{name}: {entropy}, want {want}");
        let (ends, eos) = (run["var_length"] == true, whole(run, "eos_id"));
        // There a second EOS ends a text, and those of all texts count together: ours ends at the first one behind `from`.
        let found: Vec<i64> = (0..length).filter(|l| x.int64_value(&[0, *l]) == eos).collect();
        let from = found.first().map_or(0, |first| first + 1);
        let given_bn = x.ones_like().to_kind(Kind::Bool);
        let start = |least: Option<f64>, eos: Option<i64>, from: i64| Start {
            x_bn: x.copy(),
            given_bn: given_bn.copy(),
            from: vec![from; texts as usize],
            ends: ends.then(|| eos.into_iter().collect()),
            least,
        };
        // The entropy is looked at in one text, once, at its end.
        if texts == 1 {
            let dull = grown(&model, &registry, &start(Some(LEAST), None, 0), length);
            let low = want < LEAST && length >= TAIL as i64;
            assert_eq!(dull.rejected[0], low && !ends, "{name}");
            let left = if low && ends { length - TAIL as i64 } else { length };
            assert_eq!(dull.rows[0].len() as i64, left, "{name}");
            if low {
                assert_eq!(left, whole(run, "kept"), "{name}");
            }
        }
        if let ([_, second, ..], true) = (found.as_slice(), ends) {
            let size = 10;
            let stopped = grown(&model, &registry, &start(None, Some(eos), from), size);
            // The block of the EOS is the last one; the cut behind it is made with the text.
            assert_eq!(stopped.rows[0].len() as i64, (second / size + 1) * size, "{name}");
            if texts == 1 && want >= LEAST {
                assert_eq!(second + 1, whole(run, "kept"), "{name}");
            }
        }
    }
}
