//! Guidance by a classifier, the classifiers themselves, and models that choose among texts. Golden case u_guidance_cbg, and identities.

use std::fs;
use std::path::Path;

use maskdiff_base::stream::Purpose;
use maskdiff_config::listed::ClassifierOrder as Order;
use maskdiff_engine::model::Model;
use maskdiff_engine::model::views::{GuidedView, TellsClasses};
use maskdiff_engine::moment::{Moment, Streams};
use maskdiff_engine::plugins::{Choice, Choices, Registry};
use maskdiff_engine::sample;
use maskdiff_plugin_api::abi::handles::Walker;
use maskdiff_plugin_api::testkit::chi_square;
use maskdiff_plugin_api::{Context, Model as Lent, Noisy, Result, Tokens};
use maskdiff_tests::golden_uniform::{Network, case};
use maskdiff_tests::run::{Output, logged, maskdiff, same_end, train};
use maskdiff_tests::{Tensors, assert_close, laws, registry};
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

const KINDS: [(Kind, &str, f64); 2] = [(Kind::Float, "", 2e-5), (Kind::Double, ".f64", 1e-9)];
const ORDERS: [(Order, &str); 2] = [(Order::Exact, "exact"), (Order::First, "first")];

fn walker(registry: &Registry, facts: &Context, sampler: &str, options: Value) -> Walker {
    registry.sampler(&Choice { name: sampler.into(), options }, facts).expect("the sampler")
}

fn named(name: &str, options: Value) -> Choice {
    Choice { name: name.into(), options }
}

/// The golden classifier: its head has a row for each class.
fn golden_classifier(registry: &Registry, process: &str, mask: Option<i64>, kind: Kind) -> Model {
    let options = json!({
        "hidden_size": 32, "n_heads": 2, "n_blocks": 2, "cond_dim": 16, "dropout": 0.0, "final_norm": false,
    });
    let choices = Choices {
        backbone: named("dit", options),
        process: named(process, json!({})),
        noise: named("loglinear", json!({})),
        parameterization: named("classifier", json!({})),
    };
    let facts = Context::new(11, 6).mask(mask).time_conditioning(true).kind(kind).classes(2);
    let model = Model::build(registry, choices, facts).expect("a model");
    let golden = Tensors::golden("u_models_ddg/classifier.safetensors");
    tch::no_grad(|| {
        for parameter in model.parameters() {
            let into = parameter.tensor.shallow_clone();
            let (name, into) = match parameter.name.as_str() {
                "output_layer.linear.weight" => ("output_layer.weight", into.narrow(0, 0, 2)),
                "output_layer.linear.bias" => ("output_layer.bias", into.narrow(0, 0, 2)),
                name => (name, into),
            };
            into.shallow_clone().copy_(&golden.get(name));
        }
    });
    model
}

#[test]
fn golden_laws_that_are_guided_by_a_classifier() {
    let Some(manifest) = case("u_guidance_cbg") else { return };
    let golden = Tensors::golden("u_guidance_cbg/cbg.safetensors");
    let registry = registry();
    // The case has them in float32.
    let number = |key: &str| f64::from(manifest[key].as_f64().expect("a number") as f32);
    let (t, s) = (number("t"), number("s"));
    let scales = manifest["gamma"].as_array().expect("scales");
    for (name, process, network) in [
        ("uniform", "uniform", Network::udlm()),
        ("absorbing", "absorbing_state", Network::udlm().over_masks()),
    ] {
        for (kind, suffix, tolerance) in KINDS {
            let model = network.build(&registry, kind);
            let classifier = golden_classifier(&registry, process, model.facts().mask_id, kind);
            let x_bl = golden.get(&format!("{name}.xt"));
            let label_b = Tensor::full(
                [x_bl.size()[0]],
                manifest["condition"].as_i64().expect("a class"),
                (Kind::Int64, Device::Cpu),
            );
            let walker = walker(&registry, model.facts(), "interpolating", json!({}));
            let rows_n = Tensor::arange(x_bl.numel() as i64, (Kind::Int64, Device::Cpu));
            let t_b = Tensor::full([x_bl.size()[0]], t, (Kind::Double, Device::Cpu));
            for (order, said) in ORDERS {
                let what = format!("{name}, {said}{suffix}");
                let view = |scale: f64| {
                    GuidedView::classified(&model, (&classifier, order), scale, &label_b)
                };
                let guidance = Lent::guidance(&view(1.0), &x_bl, &t_b, &rows_n);
                let ratio = guidance.expect("a law").expect("guidance").ratio_nv.expect("ratios");
                let want = golden.get(&format!("{name}.log_ratio.{said}{suffix}")).flatten(0, 1);
                let of_networks = if kind == Kind::Double { 1e-9 } else { 2e-4 };
                assert_close(&format!("{what}, ratios"), &ratio, &want, of_networks, true);
                for (i, scale) in scales.iter().enumerate() {
                    let scale = scale.as_f64().expect("a scale");
                    let law = walker.law(&view(scale), &x_bl, t, s).expect("a law");
                    let want = golden.get(&format!("{name}.law.{said}.{i}{suffix}"));
                    assert_close(&format!("{what}, scale {scale}"), &law, &want, tolerance, true);
                }
            }
        }
    }
}

/// Two tokens, texts of two, and weights that are not zero.
fn toy(registry: &Registry, process: &str, method: &str) -> Model {
    let mask = (process == "absorbing_state").then_some(2);
    let sizes =
        json!({"hidden_size": 8, "n_heads": 2, "n_blocks": 1, "cond_dim": 8, "dropout": 0.0});
    let choices = Choices {
        backbone: named("dit", sizes),
        process: named(process, json!({})),
        noise: named("loglinear", json!({})),
        parameterization: named(method, json!({})),
    };
    let facts = Context::new(if mask.is_some() { 3 } else { 2 }, 2)
        .mask(mask)
        .time_conditioning(true)
        .kind(Kind::Double)
        .classes(if method == "classifier" { 2 } else { 0 });
    tch::manual_seed(if method == "classifier" { 9 } else { 4 });
    let model = Model::build(registry, choices, facts).expect("a model");
    // Larger ones are certain of one class, and nothing guides towards that.
    let deviation = if method == "classifier" { 0.5 } else { 0.35 };
    fill(&model, |tensor| {
        let _ = tensor.normal_(0.0, deviation);
    });
    model
}

fn fill(model: &Model, mut with: impl FnMut(&mut Tensor)) {
    tch::no_grad(|| {
        for parameter in model.parameters().iter().filter(|p| p.trainable) {
            with(&mut parameter.tensor.shallow_clone());
        }
    });
}

fn denoiser(registry: &Registry, process: &str) -> Model {
    let masks = process == "absorbing_state";
    toy(registry, process, if masks { "subs" } else { "interpolating" })
}

/// Draws and steps have one law, for both ways to ask the classifier.
#[test]
fn draws_guided_by_a_classifier_have_the_law_of_their_steps() {
    let registry = registry();
    let (steps, t_min) = (3, 0.1);
    let time = |i: i64| 1.0 - (1.0 - t_min) * i as f64 / steps as f64;
    let grid: Vec<(f64, f64)> =
        (0..steps).map(|i| (time(i), time(i + 1))).chain([(t_min, 0.0)]).collect();
    for (process, sampler) in [
        ("uniform", "interpolating"),
        ("uniform", "psi"),
        ("absorbing_state", "interpolating"),
        ("absorbing_state", "ddpm_cache"),
    ] {
        let (model, classifier) =
            (denoiser(&registry, process), toy(&registry, process, "classifier"));
        for (order, said) in ORDERS {
            let options = match sampler {
                "ddpm_cache" => json!({"steps": steps, "t_min": t_min}),
                "psi" => {
                    json!({"steps": steps, "t_min": t_min, "tail": "ancestral", "low": "constant", "eta": 0.4})
                }
                _ => json!({"steps": steps, "t_min": t_min, "tail": "ancestral"}),
            };
            let made = || walker(&registry, model.facts(), sampler, options.clone());
            let by = (&classifier as &dyn TellsClasses, order);
            let (scale, draws) = (4.0, 3000);
            // The class that the classifier thinks unlikely: towards the other there is little to guide.
            let labels = |n: i64| Tensor::zeros([n], (Kind::Int64, Device::Cpu));
            let states = laws::every_text(&model).size()[0];
            let view = GuidedView::classified(&model, by, scale, &labels(states));
            let law = laws::law_of_walk(&made(), &model, &view, &grid);
            let plain = laws::law_of_walk(&made(), &model, &model, &grid);
            let apart: f64 = law.iter().zip(&plain).map(|(a, b)| (a - b).abs()).sum();
            assert!(apart > 0.02, "{process}, {sampler}, {said}: guidance changes {apart}");
            tch::manual_seed(11);
            let start = model.prior(draws, 2).expect("a start");
            let mut named = (sampler.to_string(), made());
            let drawn = sample::classified(&model, &mut named, &start, by, (&labels(draws), scale));
            let counts = laws::counts(&model, &drawn.expect("a walk"));
            let kept: Vec<usize> = (0..law.len()).filter(|i| law[*i] > 1e-12).collect();
            let of = |all: &[f64]| kept.iter().map(|i| all[*i]).collect::<Vec<f64>>();
            assert_eq!(of(&counts).iter().sum::<f64>(), draws as f64, "{process}");
            let p = chi_square(&of(&counts), &of(&law));
            assert!(p > 1e-4, "{process}, {sampler}, {said}: p = {p:e}, {counts:?}, {law:?}");
        }
    }
}

/// The classes of each text follow its own label, in batches of mixed labels.
#[test]
fn each_text_of_a_batch_goes_to_its_own_class() {
    let registry = registry();
    for process in ["uniform", "absorbing_state"] {
        let (model, classifier) =
            (denoiser(&registry, process), toy(&registry, process, "classifier"));
        let x_bl = model.prior(3, 2).expect("a start");
        let made = walker(&registry, model.facts(), "interpolating", json!({}));
        for (order, said) in ORDERS {
            let by = (&classifier as &dyn TellsClasses, order);
            let law = |x_bl: &Tensor, labels: &[i64]| {
                let label_b = Tensor::from_slice(labels);
                let view = GuidedView::classified(&model, by, 3.0, &label_b);
                made.law(&view, x_bl, 0.7, 0.4).expect("a law")
            };
            let mixed = law(&x_bl, &[0, 1, 0]);
            for (row, label) in [(0, 0), (1, 1), (2, 0)] {
                let own = law(&x_bl.narrow(0, row, 1), &[label]);
                let what = format!("{process}, {said}, text {row}");
                assert_close(&what, &mixed.narrow(0, row, 1), &own, 1e-12, true);
                let other = law(&x_bl.narrow(0, row, 1), &[1 - label]);
                assert!((own - other).abs().max().double_value(&[]) > 1e-3, "{what}");
            }
        }
    }
}

/// A classifier that says the same of all texts, and a scale of nothing, leave every sampler as it is.
#[test]
fn a_constant_classifier_and_a_scale_of_nothing_change_no_draw() {
    let registry = registry();
    let model = denoiser(&registry, "absorbing_state");
    let [constant, other] = [0, 1].map(|_| toy(&registry, "absorbing_state", "classifier"));
    fill(&constant, |tensor| {
        let _ = tensor.zero_();
    });
    let start = model.prior(16, 2).expect("a start");
    let label_b = Tensor::from_slice(&[0i64, 1].repeat(8));
    for sampler in ["ddpm_cache", "first_hitting", "confidence", "remdm", "ddpm", "md4", "analytic"]
    {
        let walk = |by: Option<(&Model, Order, f64)>| {
            tch::manual_seed(5);
            let streams = Streams::new(7, Purpose::Walks, 0..16);
            model.set_moment(Moment::of_walk(streams, None));
            let made = walker(&registry, model.facts(), sampler, json!({}));
            let mut named = (sampler.to_string(), made);
            let done = match by {
                None => sample::walk(&model, &mut named, &start),
                Some((by, order, scale)) => {
                    let by = (by as &dyn TellsClasses, order);
                    sample::classified(&model, &mut named, &start, by, (&label_b, scale))
                }
            };
            model.set_moment(Moment::default());
            done.unwrap_or_else(|e| panic!("{sampler}: {e}"))
        };
        let plain = walk(None);
        for (order, said) in ORDERS {
            assert_eq!(walk(Some((&constant, order, 3.0))), plain, "{sampler}, {said}");
            assert_eq!(walk(Some((&other, order, 0.0))), plain, "{sampler}, {said}, scale 0");
        }
        assert_ne!(walk(Some((&other, Order::Exact, 60.0))), plain, "{sampler}");
    }
}

/// The same of samplers that draw from the guided law of a step.
#[test]
fn a_constant_classifier_and_a_scale_of_nothing_change_no_law() {
    let registry = registry();
    for (process, sampler) in [
        ("uniform", "interpolating"),
        ("uniform", "psi"),
        ("absorbing_state", "interpolating"),
        ("absorbing_state", "psi"),
    ] {
        let model = denoiser(&registry, process);
        let [constant, other] = [0, 1].map(|_| toy(&registry, process, "classifier"));
        fill(&constant, |tensor| {
            let _ = tensor.zero_();
        });
        let every = laws::every_text(&model);
        // Of both classes: where the classifier is certain of one, nothing guides towards that.
        let label_b = Tensor::arange(every.size()[0], (Kind::Int64, Device::Cpu)).remainder(2);
        let made = walker(&registry, model.facts(), sampler, json!({}));
        let plain = made.law(&model, &every, 0.6, 0.5).expect("a law").to_kind(Kind::Double);
        for (order, said) in ORDERS {
            let law = |by: &Model, scale: f64| {
                let view = GuidedView::classified(&model, (by, order), scale, &label_b);
                made.law(&view, &every, 0.6, 0.5).expect("a law").to_kind(Kind::Double)
            };
            let what = format!("{process}, {sampler}, {said}");
            assert_close(&what, &law(&constant, 3.0), &plain, 1e-12, false);
            assert_close(&what, &law(&other, 0.0), &plain, 1e-12, false);
            let change = (law(&other, 9.0) - &plain).abs().max().double_value(&[]);
            assert!(change > 1e-3, "{what}: {change}");
        }
    }
}

/// The exact classifier of a table of texts under masks, where the tokens of a text are independent.
#[derive(Debug)]
struct Exact {
    /// Of each token.
    p: [f64; 2],
    /// Of the first class, for each text.
    first: [f64; 4],
}

impl Exact {
    /// `c(first class | xt)`: the mean over the texts that xt may come from.
    fn of(&self, text: &[i64]) -> f64 {
        let (mut with, mut all) = (0.0, 0.0);
        for state in 0..4_i64 {
            let x0 = [state / 2, state % 2];
            if (0..2).all(|l| text[l] == 2 || text[l] == x0[l]) {
                let p = (0..2).filter(|l| text[*l] == 2).map(|l| self.p[x0[l] as usize]);
                let p: f64 = p.product();
                with += p * self.first[state as usize];
                all += p;
            }
        }
        with / all
    }
}

impl TellsClasses for Exact {
    fn log_label(&self, noisy: &Noisy) -> Result<Tensor> {
        let Tokens::Ids(ids) = &noisy.tokens else { panic!("it is asked about texts") };
        let ids = Vec::<i64>::try_from(ids.contiguous().view([-1])).expect("ids");
        let first: Vec<f64> = ids.chunks(2).map(|text| self.of(text)).collect();
        let first = Tensor::from_slice(&first).unsqueeze(1);
        Ok(Tensor::cat(&[&first, &(1.0 - &first)], 1).log())
    }
}

/// At scale 1 the draws have the law of texts given their class, by Bayes' rule.
#[test]
fn exact_guidance_is_bayes_rule() {
    let registry = registry();
    let model = denoiser(&registry, "absorbing_state");
    let p = [0.3_f64, 0.7];
    // Every token is drawn by itself: the head's bias alone says how likely it is.
    tch::no_grad(|| {
        for parameter in model.parameters().iter().filter(|p| p.trainable) {
            let mut tensor = parameter.tensor.shallow_clone();
            let _ = match parameter.name.as_str() {
                "output_layer.linear.bias" => {
                    tensor.copy_(&Tensor::from_slice(&[p[0].ln(), p[1].ln(), 0.0]));
                    tensor
                }
                _ => tensor.zero_(),
            };
        }
    });
    let classifier = Exact { p, first: [0.9, 0.05, 0.2, 0.6] };
    let draws = 6000;
    let start = model.prior(draws, 2).expect("a start");
    for (label, scale) in [(0_i64, 1.0), (1, 1.0), (0, 0.0)] {
        let law: Vec<f64> = (0..4)
            .map(|state| {
                let c = classifier.first[state];
                let c = if label == 0 { c } else { 1.0 - c };
                p[state / 2] * p[state % 2] * if scale == 0.0 { 1.0 } else { c }
            })
            .collect();
        let total: f64 = law.iter().sum();
        let law: Vec<f64> = law.iter().map(|p| p / total).collect();
        let label_b = Tensor::full([draws], label, (Kind::Int64, Device::Cpu));
        tch::manual_seed(21);
        let mut named = (
            "first_hitting".to_string(),
            walker(&registry, model.facts(), "first_hitting", json!({})),
        );
        let by = (&classifier as &dyn TellsClasses, Order::Exact);
        let drawn = sample::classified(&model, &mut named, &start, by, (&label_b, scale));
        let counts = laws::counts(&model, &drawn.expect("a walk"));
        // Of three values, the mask among them, the texts of two tokens.
        let counts = [0, 1, 3, 4].map(|state| counts[state]);
        let p = chi_square(&counts, &law);
        assert!(p > 1e-4, "class {label}, scale {scale}: p = {p:e}, {counts:?}, {law:?}");
    }
}

const ANIMAL: &str = "data.label_column=animal";

fn sampled(at: &Path, more: &[&str]) -> Output {
    maskdiff(at, &[&["sample", "model", "--steps", "4", "-n", "1"], more].concat())
}

/// Trains a classifier of the stories' animals.
fn trained(at: &Path, name: &str, more: &[&str]) -> Output {
    let dir = format!("run.dir={name}");
    let words = ["parameterization=classifier", ANIMAL, "sampling.num_sample_log=0", &dir];
    train(at, &[&words[..], &["trainer.val_check_interval=3"], more].concat())
}

/// Trained, resumed bit for bit, measured, and asked by samplers.
#[test]
fn a_classifier_is_trained_on_noisy_stories_and_guides() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    trained(at, "judge", &["trainer.max_steps=6"]).expect(0);
    trained(at, "parts", &["trainer.max_steps=4"]).expect(0);
    let on = ["trainer.max_steps=6", "checkpointing.resume_from_ckpt=true"];
    trained(at, "parts", &on).expect(0);
    same_end(&at.join("judge"), &at.join("parts"));
    let shares = logged(&at.join("judge"), "val/accuracy");
    assert!(shares.len() >= 2 && shares.iter().all(|(_, share)| (0.0..=1.0).contains(share)));
    assert!(logged(&at.join("judge"), "val/ppl").is_empty(), "a loss is no bound");
    let measured = maskdiff(at, &["eval", "judge"]).expect(0).lines();
    let share = |line: &Value| line["val/accuracy"].as_f64().expect("a share");
    let last = shares.last().map(|(_, share)| *share);
    assert_eq!(Some(share(&measured[0])), last, "{}", measured[0]);
    let once = maskdiff(at, &["eval", "judge", "loader.eval_batch_size=5"]).expect(0).lines();
    assert!((share(&once[0]) - share(&measured[0])).abs() < 1e-9);

    train(at, &["trainer.max_steps=2", "run.dir=model"]).expect(0);
    let by = "sampling.classifier=judge";
    let calls = |out: &Output| out.expect(0).lines()[0]["nfe"].as_f64().expect("calls");
    let plain = calls(&sampled(at, &[]));
    let exact = ["sampling.classifier_order=exact", "sampling.new_tokens=16"];
    for more in [&[][..], &exact] {
        let drawn = sampled(at, &[&[by, "--label", "dog", "--label", "owl"], more].concat());
        let lines = drawn.expect(0).lines();
        assert_eq!([&lines[0]["label"], &lines[1]["label"]], ["dog", "owl"]);
        assert!(calls(&drawn) > plain, "{more:?}");
    }
    let ids = |more: &[&str]| sampled(at, more).expect(0).lines()[0]["ids"].clone();
    let off = ids(&[by, "--label", "dog", "sampling.classifier_scale=0"]);
    assert_eq!(off, ids(&[]));
}

/// What does not fit is refused before anything runs, with what would do.
#[test]
fn classifiers_that_do_not_fit_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    trained(at, "judge", &["trainer.max_steps=1"]).expect(0);
    train(at, &["trainer.max_steps=1", "run.dir=model"]).expect(0);
    let line =
        |i: usize| json!({"text": "ab ".repeat(4 + i % 9), "topic": (["news", "sport"][i % 2])});
    let lines: Vec<String> = (0..40).map(|i| line(i).to_string()).collect();
    fs::write(at.join("a.jsonl"), lines.join("\n")).expect("a file");
    let words = ["<pad>", "[MASK]", "ab", "<unk>"].iter().enumerate();
    let vocab: serde_json::Map<String, Value> =
        words.map(|(id, word)| (word.to_string(), json!(id))).collect();
    let special = |id: i64, word: &str| json!({"id": id, "content": word, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true});
    let tokenizer = json!({
        "version": "1.0", "added_tokens": [special(0, "<pad>"), special(1, "[MASK]")], "normalizer": null,
        "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null, "decoder": null, "truncation": null, "padding": null,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"},
    });
    fs::write(at.join("words.json"), tokenizer.to_string()).expect("a file");
    let letters = ["data=jsonl", "data.path=a.jsonl", "data.tokenizer_name_or_path=words.json"];
    let more = ["data.wrap=false", "data.label_column=topic", "trainer.max_steps=1"];
    trained(at, "letters", &[letters, more].concat()).expect(0);
    trained(at, "uniform", &["trainer.max_steps=1", "diffusion=uniform"]).expect(0);
    let by = "sampling.classifier=judge";
    for (words, said) in [
        (&[by][..], &["guides towards a label, and none is drawn", "labels: bear, bird"][..]),
        (&[by, "--label", "dogg"], &["did you mean `dog`?"]),
        (
            &[by, "--label", "dog", "sampling.guidance_scale=2"],
            &["`sampling.guidance_scale=2` by the network's own labels"],
        ),
        (&["--label", "dog"], &["trained without labels"]),
        (&["sampling.classifier_scale=2"], &["`sampling.classifier` names none"]),
        (
            &["sampling.classifier=model", "--label", "dog"],
            &["tells no classes of texts", "`parameterization=classifier`"],
        ),
        (&["sampling.classifier=letters", "--label", "news"], &["has another vocabulary"]),
        (&["sampling.classifier=uniform", "--label", "dog"], &["is of another process: `uniform`"]),
    ] {
        sampled(at, words).expect(2).says(said);
    }
    for (words, said) in [
        (
            &["parameterization=classifier", "sampling.num_sample_log=0", "run.dir=no"][..],
            "`classifier` learns from labels, and `data.label_column` names none",
        ),
        (&[by, "run.dir=no"], "is of `maskdiff sample`, `maskdiff steps` and `maskdiff serve`"),
    ] {
        train(at, words).expect(2).says(&[said]);
        assert!(!at.join("no").exists(), "{words:?} left a run folder");
    }
    maskdiff(at, &["eval", "model", by]).expect(2).says(&["is of `maskdiff sample`"]);
    maskdiff(at, &["sample", "judge"]).expect(2).says(&["draws no text", "sampling.classifier="]);
    let demo = ["parameterization=classifier", ANIMAL, "run.dir=no"];
    train(at, &demo).expect(2).says(&["draws no text", "sampling.num_sample_log=0"]);
    assert!(!at.join("no").exists());
}

/// Texts are chosen by an autoregressive model; one that cannot score is refused.
#[test]
fn an_autoregressive_model_chooses_among_texts() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    train(at, &["trainer.max_steps=2", "run.dir=model"]).expect(0);
    let ar = ["parameterization=ar", "trainer.max_steps=2", "run.dir=next"];
    let sizes = ["model.hidden_size=32", "model.n_blocks=1", "model.n_heads=2"];
    let more = ["data.valid_blocks=32", "loader.global_batch_size=8", "trainer.accelerator=cpu"];
    maskdiff(at, &[&["train"][..], &ar, &sizes, &more].concat()).expect(0);
    let (by, energy) = ("sampling.predictor=edlm", "sampling.energy=next");
    let text = |more: &[&str]| sampled(at, &[&[by, energy], more].concat()).expect(0).lines();
    let plain = text(&["sampling.candidates=1"]);
    let chosen = text(&["sampling.candidates=6"]);
    assert!(chosen[0]["nfe"].as_f64() > plain[0]["nfe"].as_f64());
    assert_ne!(plain[0]["ids"], chosen[0]["ids"]);
    let two = ["sample", "model", "--steps", "4", "-n", "2", "sampling.candidates=6", by, energy];
    let beside = maskdiff(at, &two).expect(0).lines();
    assert_eq!(chosen[0]["ids"], beside[0]["ids"], "a text does not depend on others");
    for (words, said) in [
        (&[by][..], &["needs `energy`", "sampling.energy=CHECKPOINT"][..]),
        (&[energy], &["does not choose among texts", "`sampling.predictor=edlm`"]),
        (&[by, "sampling.energy=model"], &["does not score whole texts", "`parameterization=ar`"]),
    ] {
        sampled(at, words).expect(2).says(said);
    }
    // Beside other samplers in a table; where none chooses, it is of no use.
    let steps = |samplers: &str| {
        let words = ["steps", "model", "--steps", "2,4", "--samplers", samplers, "-n", "2"];
        let scored = "eval.compute_generative_perplexity=false";
        maskdiff(at, &[&words[..], &["--format", "json", energy, scored]].concat())
    };
    let rows = steps("edlm,ddpm_cache");
    let rows = rows.expect(0).lines();
    let calls = |sampler: &str| -> Vec<f64> {
        let own = rows.iter().filter(|row| row["sampler"] == sampler);
        own.filter_map(|row| row["nfe"].as_f64()).collect()
    };
    let (chosen, plain) = (calls("edlm"), calls("ddpm_cache"));
    assert_eq!((chosen.len(), plain.len()), (2, 2), "{rows:?}");
    assert!(chosen.iter().zip(&plain).all(|(chosen, plain)| chosen > plain), "{rows:?}");
    steps("ddpm_cache").expect(2).says(&["does not choose among texts"]);
    let _ = fs::remove_dir_all(at.join("next"));
    assert_ne!(sampled(at, &[by, energy]).code, 0);
}
