//! What large models are used with: guidance by what is given, likelihoods of answers, approximate caches. Golden cases l_llada_gen,
//! l_likelihood and l_fast, and identities.

use std::fs;

use maskdiff_engine::evaluate::answers::{self, Asked, Plan, Way};
use maskdiff_engine::model::Model;
use maskdiff_engine::model::views::GuidedView;
use maskdiff_engine::sample;
use maskdiff_plugin_api::ops::Order;
use maskdiff_plugin_api::{Denoiser, Window};
use maskdiff_tests::published::{folder, model, walked, walked_guided};
use maskdiff_tests::run::maskdiff;
use maskdiff_tests::{Tensors, assert_close, device, golden, golden_case, registry};
use serde_json::{Value, json};
use tch::{Kind, Tensor};

fn runs(case: &str) -> Vec<Value> {
    let text = fs::read_to_string(golden().join(case).join("runs.json")).expect("runs.json");
    serde_json::from_str(&text).expect("JSON")
}

/// LLaDA's network for texts of a length, with the probability that published programs leave the mask.
fn llada(length: i64, more: &[&str], kind: Kind) -> Model {
    let length = format!("model.length={length}");
    let words = [&["training.mask_in_law=true", length.as_str()], more].concat();
    model(&registry(), &folder("l_llada", "hf"), &words, kind)
}

#[test]
fn golden_guidance() {
    if golden_case("l_llada_gen").is_none() {
        return;
    }
    let runs = runs("l_llada_gen");
    let run = runs.iter().find(|run| run["name"] == "cfg").expect("a run");
    let states = Tensors::golden("l_llada_gen/gen.safetensors").get("cfg.states");
    let model = llada(states.size()[2], &[], Kind::Double);
    let options = json!({
        "total_steps": run["steps"], "block_length": run["block_length"], "rank": "drawn", "temperature": 0.0,
    });
    let scale = run["cfg_scale"].as_f64().expect("a scale");
    let start = states.get(0).to_device(device());
    let before = model.calls();
    let found = walked_guided(&model, &registry(), options.clone(), &start, scale);
    assert_eq!(found.len() as i64, states.size()[0]);
    for (i, found) in found.iter().enumerate() {
        assert_eq!(found, &states.get(i as i64).to_device(device()), "step {i}");
    }
    // Both texts twice in each of 16 calls.
    assert_eq!(model.calls() - before, 16 * 2 * 2);
    let plain = walked(&model, &registry(), options.clone(), &start);
    assert_ne!(plain.last(), found.last(), "guidance changes what is drawn");
    // A scale of nothing is no guidance; and so is one where nothing is given.
    let none = walked_guided(&model, &registry(), options.clone(), &start, 1e-12);
    assert_eq!(none, plain);
    let empty = start.full_like(model.facts().mask_id.expect("a mask"));
    let options = json!({"rank": "drawn", "temperature": 0.0});
    let free = walked(&model, &registry(), options.clone(), &empty);
    let before = model.calls();
    assert_eq!(walked_guided(&model, &registry(), options, &empty, scale), free);
    assert_eq!(model.calls() - before, states.size()[2] * 2, "and costs nothing");
}

/// Every sampler of laws is guided, also one that asks about some texts without saying which.
#[test]
fn laws_are_guided_for_every_sampler() {
    if golden_case("l_llada").is_none() {
        return;
    }
    let (registry, model) = (registry(), llada(12, &[], Kind::Float));
    let mask = model.facts().mask_id.expect("a mask");
    let start = Tensor::full([3, 12], mask, (Kind::Int64, device()));
    start.narrow(1, 0, 4).copy_(&Tensor::randint(100, [3, 4], (Kind::Int64, device())));
    for (name, options) in [
        ("ddpm_cache", json!({"steps": 6})),
        ("first_hitting", json!({})),
        ("confidence", json!({"threshold": 0.02, "tokens_per_step": 2})),
        ("remdm", json!({"steps": 6})),
        ("analytic", json!({"steps": 6})),
    ] {
        let choice = maskdiff_engine::plugins::Choice { name: name.into(), options };
        let walk = |scale: f64| {
            tch::manual_seed(7);
            let walker = registry.sampler(&choice, model.facts()).expect(name);
            model.give(Some(start.not_equal(mask)));
            let done = sample::guided(&model, &mut (name.into(), walker), &start, scale);
            model.give(None);
            done.unwrap_or_else(|e| panic!("{name}: {e}"))
        };
        let (plain, guided) = (walk(0.0), walk(3.0));
        assert_ne!(plain, guided, "{name}");
        assert_eq!(guided.narrow(1, 0, 4), start.narrow(1, 0, 4), "{name} keeps what is given");
    }
}

#[test]
fn golden_likelihoods_of_answers() {
    let Some(about) = golden_case("l_likelihood") else { return };
    let t = Tensors::golden("l_likelihood/likelihood.safetensors");
    let ids = |name: &str| Vec::<i64>::try_from(t.get(name)).expect("ids");
    let asked = Asked { prompt: ids("prompt"), answer: ids("answer") };
    let given = asked.prompt.len() as i64;
    let x0 = Tensor::from_slice(&[&asked.prompt[..], &asked.answer[..]].concat());
    let x0 = x0.to_device(device()).unsqueeze(0);
    let scale = about["cfg_scale"].as_f64().expect("a scale");
    for (kind, tag, tolerance) in [(Kind::Float, "", 2e-3), (Kind::Double, ".f64", 1e-8)] {
        let model = llada(64, &[], kind);
        let number = |name: &str| t.get(&format!("{name}{tag}")).double_value(&[]);
        let plan = |way| Plan { way, batch: 7, seed: 1, guidance: 0.0, growth: None };
        let exact = answers::measure(&model, &asked, plan(Way::Bound(31)), 0).expect("a bound");
        assert_eq!((exact.likelihood, exact.standard_error), ("exact bound", Some(0.0)));
        assert!((exact.loglikelihood - number("bound")).abs() < tolerance, "{exact:?}");
        let way = Way::Duel(Order::LeftToRight, 1);
        let chain = answers::measure(&model, &asked, plan(way), 0).expect("a likelihood");
        let want = t.get(&format!("chain{tag}")).sum(Kind::Double).double_value(&[]);
        assert!((chain.loglikelihood - want).abs() < tolerance, "{chain:?} {want}");
        assert!(!chain.is_greedy);
        let greedy = Asked { answer: ids("greedy"), ..asked.clone() };
        let found = answers::measure(&model, &greedy, plan(way), 0).expect("a likelihood");
        assert!(found.is_greedy);
        // Draws come near the mean, as near as they say.
        let drawn = answers::measure(&model, &asked, plan(Way::Bound(30)), 3).expect("a bound");
        let error = drawn.standard_error.expect("an error");
        assert!(drawn.likelihood == "bound" && error > 0.0);
        assert!((drawn.loglikelihood - exact.loglikelihood).abs() < 5.0 * error, "{drawn:?}");
        let again = answers::measure(&model, &asked, Plan { batch: 30, ..plan(Way::Bound(30)) }, 3);
        let again = again.expect("a bound").loglikelihood;
        assert!((again - drawn.loglikelihood).abs() < 1e-4, "batches change nothing");
        // The published draws.
        for (name, scale) in [("mc", 0.0), ("mc_cfg", scale)] {
            let (noisy, share) =
                (t.get(&format!("{name}.noisy")), t.get(&format!("{name}.p_mask")));
            let given_bl = x0.zeros_like().to_kind(Kind::Bool);
            let _ = given_bl.narrow(1, 0, given).fill_(1);
            let view = GuidedView::new(&model, scale, &given_bl);
            let denoiser = if scale == 0.0 { Denoiser::new(&model) } else { Denoiser::new(&view) };
            let mask = model.facts().mask_id.expect("a mask");
            let nats = (0..noisy.size()[0]).map(|i| {
                let noisy = noisy.get(i).to_device(device());
                let x0 = x0.expand_as(&noisy);
                let share_b = share.get(i).to_device(device()).to_kind(Kind::Double);
                let masked_bl = noisy.eq(mask);
                let nats =
                    answers::masked_nats(&denoiser, &x0, &masked_bl, &share_b).expect("nats");
                (nats / share.get(i).to_device(device())).mean(Kind::Double).double_value(&[])
            });
            let found = -nats.sum::<f64>() / noisy.size()[0] as f64;
            let want = number(&format!("{name}.loglikelihood"));
            assert!((found - want).abs() < tolerance, "{name}{tag}: {found} {want}");
        }
    }
}

/// The same numbers by the command line, and what it refuses.
#[test]
fn answers_are_measured_by_the_command_line() {
    if golden_case("l_likelihood").is_none() {
        return;
    }
    let place = tempfile::tempdir().expect("a folder");
    let at = place.path();
    let t = Tensors::golden("l_likelihood/likelihood.safetensors");
    let ids = |name: &str| Vec::<i64>::try_from(t.get(name)).expect("ids");
    let (prompt, answer, greedy) = (ids("prompt"), ids("answer"), ids("greedy"));
    let text = |ids: &[i64]| ids.iter().map(|id| format!("<{id}>")).collect::<String>();
    let lines = [
        json!({"prompt": prompt, "response": answer}),
        json!({"prompt": text(&prompt), "completion": text(&answer)}),
        json!({"prompt": prompt, "response": greedy}),
        json!({"prompt": prompt, "response": [answer[0]]}),
    ];
    let written: String = lines.iter().map(|line| format!("{line}\n")).collect();
    fs::write(at.join("a.jsonl"), written).expect("written");
    let base = folder("l_llada", "hf").display().to_string();
    let eval = |more: &[&str]| {
        let words = ["eval", "--checkpoint", &base, "--answers", "a.jsonl", "--format", "json"];
        let own = ["training.mask_in_law=true", "trainer.precision=64", "trainer.accelerator=cpu"];
        maskdiff(at, &[&words[..], &own, more].concat())
    };
    let found = eval(&[]).expect(0).lines();
    let want = t.get("bound.f64").double_value(&[]);
    for (i, line) in found.iter().enumerate().take(2) {
        assert_eq!(line["line"], i + 1);
        let error = line["loglikelihood"].as_f64().expect("nats") - want;
        assert!(error.abs() < 1e-8 && line["likelihood"] == "exact bound", "{line}");
    }
    assert_eq!((&found[2]["is_greedy"], &found[0]["is_greedy"]), (&json!(true), &json!(false)));
    let duel = eval(&["eval.likelihood=duel", "eval.duel_order=left_to_right"]).expect(0).lines();
    let want = t.get("chain.f64").sum(Kind::Double).double_value(&[]);
    let error = duel[0]["loglikelihood"].as_f64().expect("nats") - want;
    assert!(error.abs() < 1e-8 && duel[0]["likelihood"] == "duel", "{}", duel[0]);
    let few = eval(&["eval.answer_samples=8"]).expect(0).lines();
    assert!(few[0]["standard_error"].as_f64().is_some_and(|error| error > 0.0), "{}", few[0]);
    assert!(few[0]["likelihood"] == "bound" && few[3]["likelihood"] == "exact bound");
    let guided = eval(&["sampling.cfg_scale=0.7"]).expect(0).lines();
    assert_ne!(guided[0]["loglikelihood"], found[0]["loglikelihood"]);
    let log = fs::read_to_string(at.join("results.jsonl")).expect("the results log");
    assert!(log.lines().count() == 4 && log.contains(r#""kind":"answers""#), "{log}");
    for (line, said) in [
        (json!({"prompt": [1, 2]}), "lacks a `prompt` or a `response`"),
        (json!({"prompt": [1], "response": []}), "its response has no tokens"),
        (json!({"prompt": [1], "response": [999]}), "lists of ids below 128"),
        (json!({"prompt": "<999>", "response": "<1>"}), "has no token `<999>`"),
        (json!({"prompt": vec![1; 70], "response": [1]}), "71 tokens, and the model knows 64"),
    ] {
        let good = json!({"prompt": [1], "response": [2]});
        fs::write(at.join("a.jsonl"), format!("\n{good}\n{line}\n")).expect("written");
        let out = eval(&[]);
        assert_eq!(out.code, 2, "{}", out.stderr);
        out.says(&["`a.jsonl`, line 3", said]);
        // Nothing is measured before all lines are known to be sound.
        assert_eq!(out.stdout, "");
    }
}

fn cached(run: &Value) -> Value {
    let by_threshold = run["threshold"].as_f64();
    let steps = if by_threshold.is_none() { run["steps"].clone() } else { json!(0) };
    json!({
        "total_steps": steps, "block_length": run["block_length"], "threshold": by_threshold.unwrap_or(2.0),
        "cache": run["cache"], "rank": "drawn", "temperature": 0.0,
    })
}

#[test]
fn golden_caches() {
    if golden_case("l_fast").is_none() {
        return;
    }
    let t = Tensors::golden("l_fast/fast.safetensors");
    for run in runs("l_fast").iter().filter(|run| run["model"] == "l_llada") {
        let name = run["name"].as_str().expect("a name");
        let states = t.get(&format!("{name}.states"));
        let model = llada(states.size()[2], &[], Kind::Double);
        let before = model.rows();
        let start = states.get(0).to_device(device());
        let found = walked(&model, &registry(), cached(run), &start);
        // A published block makes a second call even where the first has opened everything; ours does not.
        let (mut want, mut rows) = (vec![states.get(0)], 0);
        let counted = Vec::<i64>::try_from(t.get(&format!("{name}.rows"))).expect("rows");
        for (i, count) in (1..).zip(counted) {
            let state = states.get(i);
            if want.last() != Some(&state) {
                want.push(state);
                rows += count;
            }
        }
        assert_eq!(found.len(), want.len(), "{name}");
        for (i, (found, want)) in found.iter().zip(&want).enumerate() {
            assert_eq!(found, &want.to_device(device()), "{name}: step {i}");
        }
        assert_eq!(model.rows() - before, rows, "{name}: rows");
        if run["threshold"].is_null() {
            assert_eq!(run["rows_total"].as_i64(), Some(rows), "{name}");
        }
        if let Some(logits) = t.find(&format!("{name}.cached.f64")) {
            first_cached_call(run, &t, &model, &logits);
        }
    }
}

/// The logits of the first call that used a cache, and how far they are from those of a whole call.
fn first_cached_call(run: &Value, t: &Tensors, model: &Model, want: &Tensor) {
    let name = run["name"].as_str().expect("a name");
    let one = |part: &str| t.get(&format!("{name}.{part}")).int64_value(&[]);
    let (call, first, width) = (one("cached_call"), one("cached_from"), want.size()[1]);
    let states = t.get(&format!("{name}.states")).to_device(device());
    let denoiser = Denoiser::new(model);
    let sigma = Tensor::zeros([1], (Kind::Double, device()));
    let logits = |x: &Tensor| {
        let hidden = denoiser.hidden(x, &sigma).expect("hidden").narrow(1, first, width);
        denoiser.logits(&hidden.flatten(0, 1)).expect("logits").view_as(want)
    };
    let window = Window::new(first, width).around(run["cache"] == "dual");
    denoiser.window(&window).expect("a window");
    let (before, now) = (states.get(call - 1), states.get(call));
    let begun = logits(&before);
    let same = logits(&before);
    assert_close(&format!("{name}: nothing changed"), &same, &begun, 1e-12, false);
    let cached = logits(&now);
    assert_close(&format!("{name}: cached"), &cached, want, 1e-9, false);
    denoiser.window(&Window::whole()).expect("no window");
    let error = (logits(&now) - cached).abs().max().double_value(&[]);
    let published = run["cache_error"].as_f64().expect("an error");
    assert!((error - published).abs() < 1e-6, "{name}: {error} {published}");
}

/// What must be exact is: one block with both caches; a cache that each call makes anew; texts of a batch.
#[test]
fn caches_are_exact_where_they_can_be() {
    if golden_case("l_llada").is_none() {
        return;
    }
    let model = llada(14, &[], Kind::Double);
    let mask = model.facts().mask_id.expect("a mask");
    let start = Tensor::full([2, 14], mask, (Kind::Int64, device()));
    start.get(0).narrow(0, 0, 4).copy_(&Tensor::from_slice(&[5_i64, 9, 40, 3]));
    start.get(1).narrow(0, 0, 2).copy_(&Tensor::from_slice(&[7_i64, 8]));
    let walk = |cache: &str, block: i64, tokens: i64| {
        let options = json!({
            "cache": cache, "block_length": block, "tokens_per_step": tokens, "temperature": 0.0,
        });
        walked(&model, &registry(), options, &start).pop().expect("a text")
    };
    assert_eq!(walk("prefix", 12, 1), walk("dual", 12, 1), "nothing is behind one block");
    for cache in ["prefix", "dual"] {
        assert_eq!(walk(cache, 3, 3), walk("none", 3, 3), "{cache}: one call a block");
        assert_ne!(walk(cache, 6, 1), walk("none", 6, 1), "{cache}: approximate");
    }
}

/// Caches are said to be approximate wherever they are on, and refused where they cannot be.
#[test]
fn a_cache_is_called_approximate() {
    if golden_case("l_llada").is_none() {
        return;
    }
    let place = tempfile::tempdir().expect("a folder");
    let sample = |case: &str, more: &[&str]| {
        let base = folder(case, "hf").display().to_string();
        let words = ["sample", "--checkpoint", &base, "-n", "1", "--format", "json"];
        let own = ["sampling.block_length=8", "trainer.accelerator=cpu", "model.length=24"];
        maskdiff(place.path(), &[&words[..], &own, more].concat())
    };
    let out = sample("l_llada", &["sampling.cache=dual"]);
    out.expect(0).says(&["approximate"]);
    assert_eq!(out.lines()[0]["approximate"], true);
    let out = sample("l_llada", &[]);
    assert!(
        out.expect(0).lines()[0].get("approximate").is_none()
            && !out.stderr.contains("approximate")
    );
    sample("l_dream", &["sampling.cache=dual"]).expect(2).says(&["`past` holds no states"]);
    sample("l_llada", &["sampling.total_steps=7"])
        .expect(2)
        .says(&["`sampling.total_steps` is 7", "3 blocks of 8"]);
}
