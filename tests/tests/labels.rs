//! Classes of texts: labels of a corpus, networks that are told them, and laws that are guided by them. Golden cases u_guidance_cfg,
//! u_ckpt_udlm and u_models_ddg, and identities.

use std::fs;
use std::path::Path;

use maskdiff_base::report::Report;
use maskdiff_base::stdout::Format;
use maskdiff_base::stop::Stop;
use maskdiff_base::stream::Purpose;
use maskdiff_config::{Request, load};
use maskdiff_data::{Observer, load_tokenizer, open_valid};
use maskdiff_engine::model::Model;
use maskdiff_engine::model::views::GuidedView;
use maskdiff_engine::moment::{Moment, Streams};
use maskdiff_engine::plugins::{Choice, Choices, Registry};
use maskdiff_engine::sample;
use maskdiff_plugin_api::abi::handles::Walker;
use maskdiff_plugin_api::testkit::chi_square;
use maskdiff_plugin_api::{Context, Denoiser, Model as Lent, Pass};
use maskdiff_tests::golden_uniform::{Network, case};
use maskdiff_tests::published::opened;
use maskdiff_tests::run::{logged, maskdiff, same_end, train};
use maskdiff_tests::{Tensors, assert_close, golden, laws, registry};
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

const KINDS: [(Kind, &str, f64); 2] = [(Kind::Float, "", 2e-5), (Kind::Double, ".f64", 1e-9)];

fn walker(registry: &Registry, facts: &Context, sampler: &str, options: Value) -> Walker {
    registry.sampler(&Choice { name: sampler.into(), options }, facts).expect("the sampler")
}

#[test]
fn golden_networks_that_are_told_classes() {
    if case("u_models_ddg").is_none() {
        return;
    }
    let golden = Tensors::golden("u_models_ddg/io.safetensors");
    let sigma = golden.get("sigma").to_kind(Kind::Double);
    for (kind, suffix, tolerance) in [(Kind::Float, "", 2e-4), (Kind::Double, ".f64", 1e-9)] {
        let model = Network::udlm_labels().build(&registry(), kind);
        let lent = Denoiser::new(&model);
        let pass = Pass::new(&golden.get("x"), &sigma).label(Some(&golden.get("label")));
        let hidden = lent.pass(&pass).expect("a pass").hidden;
        let logits = lent.logits(&hidden.flatten(0, 1)).expect("logits");
        let want = golden.get(&format!("logits_cond{suffix}")).flatten(0, 1);
        assert_close(&format!("logits_cond{suffix}"), &logits, &want, tolerance, true);
        let wrong =
            Pass::new(&golden.get("x"), &sigma).label(Some(&golden.get("label").full_like(3)));
        let said = lent.pass(&wrong).expect_err("a class that is none").to_string();
        assert!(said.contains("the classes are 0..2"), "{said}");
    }
    let plain = Network::udlm().build(&registry(), Kind::Double);
    let pass = Pass::new(&golden.get("x"), &sigma).label(Some(&golden.get("label")));
    let said = Denoiser::new(&plain).pass(&pass).expect_err("no classes").to_string();
    assert!(said.contains("made without classes"), "{said}");
}

#[test]
fn golden_laws_that_are_guided_by_labels() {
    let Some(manifest) = case("u_guidance_cfg") else { return };
    let golden = Tensors::golden("u_guidance_cfg/cfg.safetensors");
    let registry = registry();
    // The case has them in float32.
    let number = |key: &str| f64::from(manifest[key].as_f64().expect("a number") as f32);
    let (t, s) = (number("t"), number("s"));
    let scales = manifest["gamma"].as_array().expect("scales");
    for (name, network) in
        [("uniform", Network::udlm_labels()), ("absorbing", Network::udlm_labels().over_masks())]
    {
        for (kind, suffix, tolerance) in KINDS {
            let model = network.build(&registry, kind);
            let (x_bl, label_b) = (golden.get(&format!("{name}.xt")), golden.get("label"));
            let walker = walker(&registry, model.facts(), "interpolating", json!({}));
            for (i, scale) in scales.iter().enumerate() {
                let scale = scale.as_f64().expect("a scale");
                let view = GuidedView::labelled(&model, scale, &label_b);
                let before = model.calls();
                let law = walker.law(&view, &x_bl, t, s).expect("a law");
                let want = golden.get(&format!("{name}.law.{i}{suffix}"));
                let what = format!("{name}, scale {scale}{suffix}");
                assert_close(&what, &law, &want, tolerance, true);
                let copies = if [0.0, 1.0].contains(&scale) { 1 } else { 2 };
                assert_eq!(model.calls() - before, copies * x_bl.size()[0], "{what}: calls");
            }
            // Without a label it is the law of no class.
            let plain = walker.law(&model, &x_bl, t, s).expect("a law");
            let want = golden.get(&format!("{name}.law.0{suffix}"));
            assert_close(&format!("{name}{suffix}, no label"), &plain, &want, tolerance, true);
        }
    }
}

/// A network of two tokens and two classes with weights that are not zero, over masks or over uniform noise.
fn toy(registry: &Registry, process: &str) -> Model {
    let mask = (process == "absorbing_state").then_some(2);
    let named = |name: &str, options: Value| Choice { name: name.into(), options };
    let sizes =
        json!({"hidden_size": 8, "n_heads": 2, "n_blocks": 1, "cond_dim": 8, "dropout": 0.0});
    let choices = Choices {
        backbone: named("dit", sizes),
        process: named(process, json!({})),
        noise: named("loglinear", json!({})),
        // Samplers of masks alone need a law that keeps open tokens.
        parameterization: named(if mask.is_some() { "subs" } else { "interpolating" }, json!({})),
    };
    let facts = Context::new(if mask.is_some() { 3 } else { 2 }, 2)
        .mask(mask)
        .time_conditioning(true)
        .kind(Kind::Double)
        .classes(2);
    tch::manual_seed(4);
    let model = Model::build(registry, choices, facts).expect("a model");
    tch::no_grad(|| {
        for parameter in model.parameters().iter().filter(|p| p.trainable) {
            let _ = parameter.tensor.shallow_clone().normal_(0.0, 0.35);
        }
    });
    model
}

/// The law of a walk's end over all sequences, by the law of each of its steps.
fn law_of_walk(walker: &Walker, model: &Model, scale: f64, steps: &[(f64, f64)]) -> Vec<f64> {
    let states = laws::every_text(model).size()[0];
    let view =
        GuidedView::labelled(model, scale, &Tensor::zeros([states], (Kind::Int64, Device::Cpu)));
    laws::law_of_walk(walker, model, &view, steps)
}

#[test]
fn guided_draws_have_the_law_of_their_steps() {
    let registry = registry();
    let (steps, t_min) = (3, 0.1);
    let time = |i: i64| 1.0 - (1.0 - t_min) * i as f64 / steps as f64;
    let grid: Vec<(f64, f64)> =
        (0..steps).map(|i| (time(i), time(i + 1))).chain([(t_min, 0.0)]).collect();
    for (process, sampler, scale) in [
        ("uniform", "interpolating", 2.5),
        ("uniform", "psi", 2.5),
        ("uniform", "interpolating", 0.0),
        ("absorbing_state", "interpolating", 2.5),
        ("absorbing_state", "interpolating", 1.0),
        ("absorbing_state", "ddpm_cache", 0.5),
    ] {
        let model = toy(&registry, process);
        let options = match sampler {
            "ddpm_cache" => json!({"steps": steps, "t_min": t_min}),
            "psi" => {
                json!({"steps": steps, "t_min": t_min, "tail": "ancestral", "low": "constant", "eta": 0.4})
            }
            _ => json!({"steps": steps, "t_min": t_min, "tail": "ancestral"}),
        };
        let made = || walker(&registry, model.facts(), sampler, options.clone());
        let law = law_of_walk(&made(), &model, scale, &grid);
        tch::manual_seed(11);
        let draws = 3000;
        let label_b = Tensor::zeros([draws], (Kind::Int64, Device::Cpu));
        let start = model.prior(draws, 2).expect("a start");
        let drawn =
            sample::labelled(&model, &mut (sampler.into(), made()), &start, (&label_b, scale));
        let v = model.facts().vocab_size;
        let drawn = drawn.expect("a walk");
        let state = drawn.select(1, 0) * v + drawn.select(1, 1);
        let counts = state.bincount(None::<Tensor>, v * v).to_kind(Kind::Double);
        let counts = Vec::<f64>::try_from(counts).expect("numbers");
        // What no walk reaches holds nothing.
        let kept: Vec<usize> = (0..law.len()).filter(|i| law[*i] > 1e-12).collect();
        assert_eq!(kept.iter().map(|i| counts[*i]).sum::<f64>(), draws as f64, "{process}");
        let of = |all: &[f64]| kept.iter().map(|i| all[*i]).collect::<Vec<f64>>();
        let p = chi_square(&of(&counts), &of(&law));
        assert!(p > 1e-4, "{process}, {sampler}, scale {scale}: p = {p:e}, {counts:?}, {law:?}");
        // The other class, and no class, have other laws.
        let other = GuidedView::labelled(&model, scale, &label_b.full_like(1));
        let own = GuidedView::labelled(&model, scale, &label_b);
        let at = |view: &GuidedView<'_>| made().law(view, &start, 0.5, 0.4).expect("a law");
        assert_eq!(at(&other) == at(&own), scale == 0.0, "{process}, {sampler}");
    }
}

/// Each sampler over masks is guided by labels, whether it says which texts a call is about or not.
#[test]
fn every_sampler_draws_the_classes_of_its_texts() {
    let registry = registry();
    let model = toy(&registry, "absorbing_state");
    let labels = Tensor::from_slice(&[0i64, 1, 2, 1]);
    let start = model.prior(4, 2).expect("a start");
    for sampler in [
        "ddpm_cache",
        "first_hitting",
        "confidence",
        "remdm",
        "ddpm",
        "interpolating",
        "psi",
        "md4",
    ] {
        for scale in [0.0, 1.0, 3.0] {
            let made = walker(&registry, model.facts(), sampler, json!({}));
            let done =
                sample::labelled(&model, &mut (sampler.into(), made), &start, (&labels, scale));
            let done = done.unwrap_or_else(|e| panic!("{sampler}, {scale}: {e}"));
            assert_eq!(done.eq(2).any().int64_value(&[]), 0, "{sampler} leaves masks");
        }
    }
    assert!(model.label().expect("labels").is_none(), "none is left behind");
}

/// In a batch of several classes each text is drawn as one of its own: alone, with the same random numbers, it comes out the same.
#[test]
fn each_text_of_a_batch_is_of_its_own_class() {
    let registry = registry();
    let model = toy(&registry, "absorbing_state");
    let labels = [0i64, 1, 1, 0, 2, 1];
    let draw = |sampler: &str, labels: &[i64], first: u64, scale: f64| {
        let count = labels.len() as u64;
        let streams = Streams::new(3, Purpose::Walks, first..first + count);
        model.set_moment(Moment::of_walk(streams, None));
        let start = model.prior(count as i64, 2).expect("a start");
        // Two masks are equally sure: rounding would say which opens first.
        let options = if sampler == "confidence" { json!({"alg_temp": 1.0}) } else { json!({}) };
        let mut named = (sampler.to_string(), walker(&registry, model.facts(), sampler, options));
        let by = (&Tensor::from_slice(labels), scale);
        let drawn = sample::labelled(&model, &mut named, &start, by);
        model.set_moment(Moment::default());
        drawn.unwrap_or_else(|e| panic!("{sampler}, {scale}: {e}"))
    };
    for sampler in ["ddpm_cache", "first_hitting", "confidence", "remdm", "ddpm", "md4"] {
        for scale in [1.0, 40.0] {
            let whole = draw(sampler, &labels, 0, scale);
            for (row, label) in (0..).zip(labels) {
                let alone = draw(sampler, &[label], row, scale);
                assert_eq!(whole.narrow(0, row as i64, 1), alone, "{sampler}, {scale}, text {row}");
            }
        }
        // It can fail: with the classes exchanged other texts come out.
        let exchanged = labels.map(|label| [1, 0, 2][label as usize]);
        assert_ne!(
            draw(sampler, &labels, 0, 40.0),
            draw(sampler, &exchanged, 0, 40.0),
            "{sampler}"
        );
    }
    // Samplers with a law of a step: each row of it is that of its own class.
    for process in ["uniform", "absorbing_state"] {
        let model = toy(&registry, process);
        let made = walker(&registry, model.facts(), "psi", json!({}));
        let law = |x_bl: &Tensor, labels: &[i64]| {
            let view = GuidedView::labelled(&model, 3.0, &Tensor::from_slice(labels));
            made.law(&view, x_bl, 0.7, 0.4).expect("a law")
        };
        let x_bl = model.prior(2, 2).expect("a start");
        let both = law(&x_bl, &[0, 1]);
        for (row, label) in [(0, 0), (1, 1)] {
            let x_1l = x_bl.narrow(0, row, 1);
            let own = law(&x_1l, &[label]);
            assert_close(process, &both.narrow(0, row, 1), &own, 1e-12, true);
            let other = (law(&x_1l, &[1 - label]) - own).abs().max().double_value(&[]);
            assert!(other > 1e-4, "{process}: the classes differ by {other}");
        }
    }
}

#[test]
fn golden_checkpoints_with_classes_are_read_and_written() {
    let path = golden().join("u_ckpt_udlm/hf_labels");
    if case("u_ckpt_udlm").is_none() || !path.is_dir() {
        return;
    }
    let io = Tensors::golden("u_ckpt_udlm/io.safetensors");
    let check = |path: &std::path::Path| {
        let (checkpoint, mut config) = opened(path, &[]);
        assert_eq!(config.label_names(), ["0", "1"]);
        let registry = registry();
        let choices =
            maskdiff_engine::assemble::choices(&mut config, &registry, true).expect("components");
        let facts =
            Context::new(11, config.model.length).time_conditioning(true).classes(config.classes());
        let model =
            maskdiff_engine::assemble::model(&config, &registry, choices, facts).expect("a model");
        maskdiff_engine::assemble::load_weights(&model, &checkpoint, &config).expect("its weights");
        let sigma = io.get("sigma").to_kind(Kind::Double);
        let pass = Pass::new(&io.get("x"), &sigma).label(Some(&io.get("label")));
        let lent = Denoiser::new(&model);
        let hidden = lent.pass(&pass).expect("a pass").hidden;
        let logits =
            lent.logits(&hidden.flatten(0, 1)).expect("logits").view_as(&io.get("labels.logits"));
        assert_close("labels.logits", &logits, &io.get("labels.logits"), 2e-4, true);
    };
    check(&path);
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    // A tokenizer of as many words.
    let vocab: serde_json::Map<String, Value> =
        (0..11).map(|i| (format!("w{i}"), json!(i))).collect();
    let tokenizer = json!({
        "version": "1.0", "added_tokens": [], "normalizer": null, "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": null, "decoder": null, "truncation": null, "padding": null,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "w0"},
    });
    fs::write(at.join("words.json"), tokenizer.to_string()).expect("a file");
    let from = path.display().to_string();
    let words = "data.tokenizer_name_or_path=words.json";
    maskdiff(at, &["export", "--checkpoint", &from, "--as", "hf", "--output", "out", words])
        .expect(0);
    check(&at.join("out"));
    let theirs: Value =
        serde_json::from_str(&fs::read_to_string(at.join("out/config.json")).expect("a file"))
            .expect("JSON");
    assert_eq!((&theirs["cfg"], &theirs["cfg_num_classes"]), (&json!(true), &json!(2)));
    let draw = [
        "sample",
        "--checkpoint",
        &from,
        words,
        "--label",
        "1",
        "--label",
        "0",
        "-n",
        "2",
        "--steps",
        "3",
    ];
    let drawn = maskdiff(at, &[&draw[..], &["sampling.guidance_scale=2"]].concat());
    let labels: Vec<Value> =
        drawn.expect(0).lines().iter().map(|line| line["label"].clone()).collect();
    assert_eq!(labels, ["1", "0", "1", "0"]);
    maskdiff(at, &["sample", "--checkpoint", &from, words, "--label", "2"])
        .expect(2)
        .says(&["the label `2`", "labels: 0, 1"]);
}

const ANIMAL: &[&str] = &["data.label_column=animal"];

/// Labels of the demo's stories: trained with and without, resumed bit for bit, kept in checkpoints, drawn by name; what does not fit is refused.
#[test]
fn stories_are_trained_and_drawn_by_their_animal() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    let run = |name: &str, more: &[&str]| {
        let dir = format!("run.dir={name}");
        train(at, &[ANIMAL, &["trainer.val_check_interval=3", &dir], more].concat())
    };
    run("whole", &["trainer.max_steps=6"]).expect(0);
    run("parts", &["trainer.max_steps=4"]).expect(0);
    run("parts", &["trainer.max_steps=6", "checkpointing.resume_from_ckpt=true"]).expect(0);
    same_end(&at.join("whole"), &at.join("parts"));
    assert!(!logged(&at.join("whole"), "val/nelbo").is_empty());
    let config = fs::read_to_string(at.join("whole/config.toml")).expect("a configuration");
    assert!(config.contains("\"dog\"") && config.contains("label_column"), "{config}");
    let sample =
        |more: &[&str]| maskdiff(at, &[&["sample", "whole", "--steps", "4"], more].concat());
    let drawn =
        sample(&["--label", "dog", "--label", "owl", "-n", "2", "sampling.guidance_scale=2"]);
    let labels: Vec<Value> =
        drawn.expect(0).lines().iter().map(|line| line["label"].clone()).collect();
    assert_eq!(labels, ["dog", "owl", "dog", "owl"]);
    // Twice the calls, and a text that does not depend on what is drawn beside it.
    let own = sample(&["--label", "dog", "-n", "1", "sampling.guidance_scale=2"]);
    assert_eq!(
        own.expect(0).lines()[0]["nfe"],
        json!(2.0 * plain_calls(&sample(&["-n", "1"]).expect(0).lines()[0]))
    );
    let prompted = sample(&["--label", "cat", "--prompt", "Anna has a", "-n", "1"]);
    assert!(
        prompted.expect(0).lines()[0]["text"].as_str().expect("a text").starts_with("Anna has a")
    );
    maskdiff(at, &["eval", "whole", "data.valid_blocks=16"]).expect(0);
    for (words, said) in [
        (&["--label", "dogg"][..], &["did you mean `dog`?", "`sampling.labels`"][..]),
        (&["sampling.guidance_scale=2"], &["no label is drawn", "labels: bear, bird"]),
        (&["--label", "dog", "sampling.cfg_scale=1"], &["`sampling.cfg_scale=1`"]),
        (
            &["--label", "dog", "sampling.guidance_scale=2", "training.label_dropout=0"],
            &["the law without a label was not trained"],
        ),
    ] {
        sample(words).expect(2).says(said);
    }
    for (words, said) in [
        (
            &["data.label_column=animals"][..],
            &["stories have no label `animals`", "did you mean `animal`?"][..],
        ),
        (&["data.label_column=animal", "block_size=16"], &["reads them in blocks"]),
        (&["training.label_dropout=0.2"], &["`data.label_column` names none"]),
        (&["sampling.labels=[dog]"], &["trained without labels"]),
        (&["data.label_column=animal", "sampling.labels=[dig]"], &["did you mean"]),
    ] {
        train(at, &[&["run.dir=no"], words].concat()).expect(2).says(said);
        assert!(!at.join("no").exists(), "{words:?} left a run folder");
    }
}

/// A network that reads no labels is refused with those that do.
#[test]
fn labels_need_a_network_that_reads_them() {
    let folder = tempfile::tempdir().expect("a folder");
    let words = ["train", "data.label_column=animal", "backbone=llama", "run.dir=no"];
    maskdiff(folder.path(), &words).expect(2).says(&["reads no labels", "`dit`"]);
}

fn plain_calls(line: &Value) -> f64 {
    line["nfe"].as_f64().expect("calls")
}

/// Each block has the label of its own document: even words are news, odd ones sport.
fn each_block_has_its_own_label(at: &Path, data: &[&str]) {
    let words = [&data[..4], &["data.wrap=false", "data.label_column=topic"]].concat();
    let place = format!("data.path={}", at.join("a.jsonl").display());
    let tokens = format!("data.tokenizer_name_or_path={}", at.join("words.json").display());
    let cache = format!("data.cache_dir={}", at.join("own").display());
    let overrides = words.iter().map(|word| (*word).to_string()).chain([place, tokens, cache]);
    let request = Request { overrides: overrides.collect(), ..Request::default() };
    let mut config = load(&request).expect("a configuration");
    config.set_labels(&["news", "sport"].map(String::from));
    let tokenizer = load_tokenizer(&at.join("words.json")).expect("a tokenizer");
    let (mut report, stop) = (Report::new(Format::Json, true), Stop::default());
    let observer = Observer::new(&mut report, &stop);
    let valid = open_valid(&config, tokenizer.as_ref(), &observer).expect("blocks").blocks;
    let rows = valid.rows(0, valid.len()).expect("rows");
    let classes = rows.labels.expect("labels");
    assert_eq!(classes.len() as i64, valid.len());
    for (block, label) in rows.ids.chunks(rows.length).zip(classes) {
        let word = block.iter().find(|id| (3..7).contains(*id)).expect("a word");
        assert_eq!(label, (word - 3) % 2, "{block:?}");
    }
}

/// Labels of JSON lines are names, numbers and truth values; their order is that of the corpus, and a file of blocks keeps them.
#[test]
fn labels_of_json_lines_are_kept_with_their_blocks() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    let line = |i: i64| {
        let topic = if i % 2 == 0 { "news" } else { "sport" };
        json!({"text": format!("word{} again", i % 4), "topic": topic, "stars": i % 3})
    };
    let lines: Vec<String> = (0..40).map(|i| line(i).to_string()).collect();
    fs::write(at.join("a.jsonl"), lines.join("\n")).expect("a file");
    let vocab: serde_json::Map<String, Value> =
        ["<pad>", "[MASK]", "again", "word0", "word1", "word2", "word3", "<unk>"]
            .iter()
            .enumerate()
            .map(|(i, w)| (w.to_string(), json!(i)))
            .collect();
    let special = |i: i64, word: &str| json!({"id": i, "content": word, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true});
    let tokenizer = json!({
        "version": "1.0", "added_tokens": [special(0, "<pad>"), special(1, "[MASK]")], "normalizer": null,
        "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null, "decoder": null, "truncation": null, "padding": null,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"},
    });
    fs::write(at.join("words.json"), tokenizer.to_string()).expect("a file");
    let data = [
        "data=jsonl",
        "data.path=a.jsonl",
        "data.tokenizer_name_or_path=words.json",
        "model.length=8",
        "data.wrap=false",
        "trainer.max_steps=2",
        "loader.global_batch_size=4",
    ];
    let run = |name: &str, more: &[&str]| {
        let dir = format!("run.dir={name}");
        train(at, &[&data[..], &[&dir], more].concat())
    };
    run("topics", &["data.label_column=topic"]).expect(0);
    run("stars", &["data.label_column=stars"]).expect(0);
    let names = |run: &str| {
        let text = fs::read_to_string(at.join(run).join("config.toml")).expect("a configuration");
        let line = text.lines().find(|line| line.starts_with("labels = [\""));
        let line = line.and_then(|line| line.split(" #").next()).expect("labels");
        line.trim_start_matches("labels = ").to_string()
    };
    assert_eq!(
        (names("topics"), names("stars")),
        ("[\"news\",\"sport\"]".into(), "[\"0\",\"1\",\"2\"]".into())
    );
    maskdiff(at, &["sample", "topics", "--label", "sport", "-n", "1", "--steps", "3"]).expect(0);
    each_block_has_its_own_label(at, &data);
    // Weights with labels go on with the same ones, and with no other.
    let topic = "data.label_column=topic";
    run("more", &["training.from=topics", topic]).expect(0);
    assert_eq!(names("more"), names("topics"));
    fs::write(at.join("b.jsonl"), json!({"text": "again", "topic": "nws"}).to_string())
        .expect("a file");
    let other = ["training.from=topics", topic, "data.valid_path=b.jsonl"];
    run("no", &other).expect(2).says(&["the label `nws`", "did you mean `news`?"]);
    for (words, said) in [
        (&["data.label_column=topic", "data.wrap=true"][..], "puts several into a block"),
        (
            &["data.label_column=title"],
            "there is no key `title`, the label; keys there: text, topic, stars",
        ),
        (
            &["data=text", "data.label_column=topic"],
            "`data.label_column` means nothing to the data",
        ),
    ] {
        let code = run("no", words);
        assert_ne!(code.code, 0);
        code.says(&[said]);
    }
}

/// An exported folder has the names of its classes, and so has a file of safetensors: texts of a class are drawn by its name. A `.ckpt` has no
/// place for classes.
#[test]
fn names_of_classes_travel_with_exports() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    let method = ["parameterization=udlm", "diffusion=uniform", "noise.type=loglinear"];
    let more = ["data.label_column=animal", "trainer.max_steps=2", "run.dir=run"];
    train(at, &[&method[..], &more].concat()).expect(0);
    let sample = |from: &str, label: &str| {
        maskdiff(at, &["sample", from, "--label", label, "-n", "1", "--steps", "2", "seed=3"])
    };
    let own = sample("run", "dog").expect(0).lines();
    for (format, to) in [("hf", "folder"), ("safetensors", "whole.safetensors")] {
        maskdiff(at, &["export", "run", "--as", format, "--output", to]).expect(0);
        let drawn = sample(to, "dog").expect(0).lines();
        assert_eq!((&drawn[0]["label"], &drawn[0]["ids"]), (&json!("dog"), &own[0]["ids"]), "{to}");
        sample(to, "dogg").expect(2).says(&["did you mean `dog`?"]);
    }
    let text = fs::read_to_string(at.join("folder/config.json")).expect("a file");
    let theirs: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(theirs["label2id"][theirs["id2label"]["1"].as_str().expect("a name")], 1);
    // Names that are not those of all classes are none.
    let mut few = theirs.clone();
    few["id2label"] = json!({"0": "bear"});
    fs::write(at.join("folder/config.json"), few.to_string()).expect("a file");
    sample("folder", "dog").expect(2).says(&["which training has not seen"]);
    sample("folder", "0").expect(0);
    maskdiff(at, &["export", "run", "--as", "lightning", "--output", "no.ckpt"])
        .expect(2)
        .says(&["no place for them"]);
}
