//! Golden cases i: a GPT-2 scores text as the original's does; `maskdiff score` and `sample` with every protocol; bad input.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use maskdiff_config::{Config, Request, load};
use maskdiff_data::load_tokenizer;
use maskdiff_engine::assemble;
use maskdiff_engine::checkpoint::{Checkpoint, MODEL};
use maskdiff_engine::evaluate::generated::{Generated, Plan, score};
use maskdiff_engine::evaluate::judge::Judge;
use maskdiff_engine::evaluate::protocol::Protocol;
use maskdiff_tests::hub::Hub;
use maskdiff_tests::run::{command, finish, maskdiff, train};
use maskdiff_tests::{Tensors, golden, golden_case, in_memory, registry};
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

fn config(overrides: &[&str], stored: Option<(String, String)>) -> Config {
    let overrides = overrides.iter().map(ToString::to_string).collect();
    let foreign = stored.is_some();
    load(&Request { overrides, stored, foreign, ..Request::default() }).expect("a configuration")
}

/// The small GPT-2 of the golden folder.
fn judge() -> Judge {
    let folder = golden().join("i_genppl/gpt2");
    let checkpoint = Checkpoint::open(&folder).expect("a checkpoint");
    let mut config = config(&[], Some(checkpoint.stored().expect("a configuration")));
    let registry = registry();
    let tokenizer = load_tokenizer(&folder).expect("a tokenizer");
    let choices = assemble::choices(&mut config, &registry, true).expect("components");
    let facts =
        assemble::facts(&config, &registry, tokenizer.as_ref(), Device::Cpu).expect("facts");
    let model = assemble::model(&config, &registry, choices, facts).expect("a model");
    assemble::load_weights(&model, &checkpoint, &config).expect("its weights");
    let hash = checkpoint.hash().expect("a hash");
    Judge::new("gpt2", hash, model, Arc::from(tokenizer)).expect("a judge")
}

fn texts(run: &Value, io: &Tensors, judge: &Judge) -> Vec<Generated> {
    if let Some(samples) = run["samples"].as_array() {
        let text = |sample: &Value| sample.as_str().expect("text").to_string();
        return samples
            .iter()
            .map(|s| Generated { text: text(s), ids: None, batch: None })
            .collect();
    }
    let rows = io.get("tokens").unbind(0).into_iter();
    let ids = rows.map(|row| Vec::<i64>::try_from(row).expect("ids"));
    ids.map(|ids| Generated { text: judge.tokenizer.decode(&ids), ids: Some(ids), batch: None })
        .collect()
}

#[test]
fn the_originals_generative_perplexity_comes_out() {
    let Some(case) = golden_case("i_genppl") else { return };
    let judge = judge();
    for (name, run) in case["runs"].as_object().expect("runs") {
        let io = Tensors::golden(&format!("i_genppl/{name}.safetensors"));
        let size = |key: &str| run[key].as_u64().expect(key) as usize;
        let plan = Plan {
            protocol: Protocol::new(&config(&["eval.gen_ppl.protocol=mdlm"], None)).expect("one"),
            batch: size("perplexity_batch_size"),
            retokenize: run["retokenize"].as_bool().expect("retokenize"),
            length: Some(size("max_length")),
            references: None,
            seed: 1,
        };
        let texts = texts(run, &io, &judge);
        let mut told = Vec::new();
        let scores = score(&texts, &judge, &plan, |done, total| {
            told.push((done, total));
            Ok(())
        });
        let scores = scores.expect("scores");
        let want = |key: &str| io.get(key).double_value(&[]);
        assert_eq!(scores.tokens as f64, want("count"), "{name}: tokens that count");
        let error = scores.perplexity / want("ppl_f64_sum") - 1.0;
        assert!(error.abs() < 1e-5, "{name}: off by {error:e}");
        assert_eq!(scores.samples + scores.left_out, texts.len());
        assert!(told.last().is_some_and(|(done, total)| done == total), "{told:?}");
    }
}

/// What each protocol counts, taken apart by hand: the nats of a text are those of its tokens one by one.
#[test]
fn protocols_agree_where_they_count_the_same() {
    let Some(case) = golden_case("i_genppl") else { return };
    let judge = judge();
    let io = Tensors::golden("i_genppl/tokens.safetensors");
    // Without EOS inside, and whole batches.
    let ids = |row: i64| -> Vec<i64> {
        let ids = Vec::<i64>::try_from(io.get("tokens").get(row)).expect("ids");
        ids.into_iter().filter(|id| *id != judge.eos).collect()
    };
    assert!(case["runs"]["tokens"].is_object());
    let texts: Vec<Generated> = [0, 1]
        .map(|row| Generated {
            text: judge.tokenizer.decode(&ids(row)),
            ids: Some(ids(row)),
            batch: None,
        })
        .into();
    let with = |name: &str| {
        let protocol = format!("eval.gen_ppl.protocol={name}");
        let protocol = Protocol::new(&config(&[&protocol], None)).expect("one");
        let (length, references) = (None, None);
        let plan = Plan { protocol, batch: 2, retokenize: false, length, references, seed: 1 };
        score(&texts, &judge, &plan, |_, _| Ok(())).expect("scores")
    };
    let [chunks, sliding, pooled] = ["mdlm", "bd3lm", "pooled"].map(with);
    // The shorter one is filled with one EOS, which the first rule counts and the second does not.
    let (short, long) = (ids(0).len().min(ids(1).len()), ids(0).len().max(ids(1).len()));
    assert_eq!(sliding.tokens as usize, short + long - 2);
    assert_eq!(chunks.tokens, sliding.tokens + i64::from(short < long));
    // An EOS in front lets the first tokens count too.
    assert_eq!(pooled.tokens as usize, short + long);
    assert_eq!((chunks.entropy, chunks.distinct_2), (pooled.entropy, pooled.distinct_2));
}

/// A text of many windows: each token counts once, whatever the batch; and the chunks of a text are texts of their own.
#[test]
fn text_longer_than_the_judge_is_scored_whole() {
    if golden_case("i_genppl").is_none() {
        return;
    }
    let judge = judge();
    let ids: Vec<i64> = (0..2049).map(|i| 5 + i * i % 300).collect();
    let scored = |name: &str, parts: &[&[i64]], batch| {
        let text = |ids: &&[i64]| Generated {
            text: judge.tokenizer.decode(ids),
            ids: Some(ids.to_vec()),
            batch: None,
        };
        let texts: Vec<Generated> = parts.iter().map(text).collect();
        let protocol = format!("eval.gen_ppl.protocol={name}");
        let protocol = Protocol::new(&config(&[&protocol], None)).expect("one");
        let (length, references) = (None, None);
        let plan = Plan { protocol, batch, retokenize: true, length, references, seed: 1 };
        score(&texts, &judge, &plan, |_, _| Ok(())).expect("scores")
    };
    let whole = scored("pooled", &[&ids], 3);
    let text = judge.tokenizer.decode(&ids);
    let ids =
        judge.tokenizer.encode(&text).expect("ids").into_iter().map(i64::from).collect::<Vec<_>>();
    assert!(ids.len() as i64 > 2 * judge.length());
    assert_eq!(whole.tokens as usize, ids.len());
    let again = scored("pooled", &[&ids], 1);
    assert!((whole.nats_per_token - again.nats_per_token).abs() < 1e-6);
    // The last chunk has one token, in which nothing counts.
    let ids = &ids[..2049.min(ids.len())];
    let chunks = scored("mdlm", &[ids], 1);
    let alone = [&ids[..1024], &ids[1024..2048]].map(|part| scored("mdlm", &[part], 1));
    assert_eq!(chunks.tokens, alone[0].tokens + alone[1].tokens);
    let nats = |scores: &maskdiff_engine::evaluate::generated::Scores| {
        scores.nats_per_token * scores.tokens as f64
    };
    assert!(
        (nats(&chunks) - nats(&alone[0]) - nats(&alone[1])).abs() < 1e-5 * chunks.tokens as f64
    );
}

/// Texts that were drawn in two batches: what is left out and what is filled is each batch's own.
#[test]
fn batches_are_scored_as_they_were_drawn() {
    let Some(case) = golden_case("i_genppl") else { return };
    let judge = judge();
    let run = &case["runs"]["short_text"];
    let io = Tensors::golden("i_genppl/short_text.safetensors");
    let plan = |batch| Plan {
        protocol: Protocol::new(&config(&["eval.gen_ppl.protocol=mdlm"], None)).expect("one"),
        batch,
        retokenize: true,
        length: Some(64),
        references: None,
        seed: 1,
    };
    let scored =
        |texts: &[Generated]| score(texts, &judge, &plan(2), |_, _| Ok(())).expect("scores");
    let mut texts = texts(run, &io, &judge);
    let apart = [scored(&texts[..3]), scored(&texts[3..])];
    for (i, text) in texts.iter_mut().enumerate() {
        text.batch = Some(u64::from(i >= 3));
    }
    let both = scored(&texts);
    assert_eq!((both.samples, both.left_out), (4, 1));
    let nats: f64 = apart.iter().map(|s| s.nats_per_token * s.tokens as f64).sum();
    assert_eq!(both.tokens, apart[0].tokens + apart[1].tokens);
    assert!((both.nats_per_token - nats / both.tokens as f64).abs() < 1e-6);
}

#[test]
fn states_tell_texts_apart() {
    if golden_case("i_genppl").is_none() {
        return;
    }
    let judge = judge();
    let features = judge.features(&[&[5, 6, 7], &[5], &[5, 6, 7]]).expect("states");
    assert_eq!((features.size(), features.kind()), (vec![3, 32], Kind::Float));
    let apart = |a: i64, b: i64| (features.get(a) - features.get(b)).abs().max().double_value(&[]);
    // What fills the shorter one changes nothing.
    let alone = judge.features(&[&[5]]).expect("states").get(0);
    let filled: Tensor = features.get(1) - alone;
    assert!(apart(0, 2) < 1e-5 && apart(0, 1) > 1e-2);
    assert!(filled.abs().max().double_value(&[]) < 1e-5);
}

fn words(judge: &str) -> [String; 2] {
    let golden = golden().join("i_genppl").join(judge);
    [
        format!("eval.gen_ppl_eval_model_name_or_path={}", golden.display()),
        "trainer.accelerator=cpu".into(),
    ]
}

#[test]
fn what_is_sampled_is_scored_at_once_or_later() {
    if golden_case("i_genppl").is_none() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    train(at, &["run.dir=run"]).expect(0);
    let [judge, cpu] = words("gpt2");
    let base = ["--checkpoint", "run", "loader.eval_batch_size=4", &judge, &cpu];
    let more = ["eval.compute_generative_perplexity=true", "eval.gen_ppl.mauve=true"];
    let out = maskdiff(at, &[&["sample"], &base[..], &more].concat());
    let lines = out.expect(0).lines();
    assert_eq!(lines.len(), 5);
    let (samples, at_once) = lines.split_at(4);
    for sample in samples {
        let ids = sample["ids"].as_array().expect("ids");
        assert!(ids.len() == 64 && sample["nfe"].as_f64() > Some(0.0), "{sample}");
        assert!(sample["seconds"].as_f64() > Some(0.0) && sample["entropy"].as_f64() > Some(0.0));
    }
    let mauve = at_once[0]["gen/mauve"].as_f64().expect("MAUVE");
    assert!(mauve > 0.0 && mauve <= 1.0, "{mauve}");
    fs::write(at.join("drawn.jsonl"), &out.stdout).expect("written");
    let later = maskdiff(at, &["score", "drawn.jsonl", &judge, &cpu]).expect(0).lines();
    for key in ["gen/ppl", "gen/tokens", "gen/entropy", "gen/distinct_3", "max_length"] {
        assert_eq!(later[0][key], at_once[0][key], "{key}");
    }
    // Both stand in a ledger: the run's, and the folder's.
    let ledger = |file: &str| -> Value {
        let text = fs::read_to_string(at.join(file)).expect(file);
        serde_json::from_str(text.lines().last().expect("a line")).expect("JSON")
    };
    let (own, here) = (ledger("run/results.jsonl"), ledger("results.jsonl"));
    assert_eq!(own["result"], at_once[0]);
    assert_eq!(own["judge_sha256"], here["judge_sha256"]);
    assert_eq!(own["checkpoint"]["step"], 20);
    assert!(own["plugins"].as_object().is_some_and(|p| p.len() >= 3) && own["sampler"].is_string());
    assert_eq!(here["files"], json!(["drawn.jsonl"]));
    assert_eq!(own["texts_sha256"], here["texts_sha256"]);
    // Each protocol, one of one's own, and none that is written down.
    fs::create_dir_all(at.join("configs/protocol")).expect("a folder");
    let own = "about = \"x\"\ntidy = false\ncut = false\ncontext = 16\nstride = 8\neos = \"none\"\neos_in_front = false\n\
        filled = false\nwhole_batches = false\n";
    fs::write(at.join("configs/protocol/mine.toml"), own).expect("written");
    let before = fs::read_to_string(at.join("results.jsonl")).expect("a ledger");
    for protocol in ["bd3lm", "pooled", "mine"] {
        let chosen = format!("eval.gen_ppl.protocol={protocol}");
        let words = ["score", "drawn.jsonl", &judge, &cpu, &chosen, "eval.results=none"];
        let line = &maskdiff(at, &words).expect(0).lines()[0];
        assert_eq!((&line["protocol"], &line["gen/left_out"]), (&json!(protocol), &json!(0)));
        assert!(line["gen/ppl"].as_f64().is_some_and(|ppl| ppl > 1.0), "{line}");
    }
    assert_eq!(fs::read_to_string(at.join("results.jsonl")).expect("a ledger"), before);
}

#[test]
fn what_cannot_be_scored_is_told() {
    if golden_case("i_genppl").is_none() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    let [judge, cpu] = words("gpt2");
    fs::write(at.join("a.txt"), "one text\n---\nanother\n").expect("written");
    fs::write(at.join("ids.jsonl"), "{\"text\": \"other\", \"ids\": [5, 6]}\n").expect("written");
    fs::write(at.join("odd.jsonl"), "{\"text\": \"\", \"ids\": [-1, 99999]}\n").expect("written");
    fs::write(at.join("bad.jsonl"), "{\"text\": 3}\n").expect("written");
    let cases: &[(&[&str], i32, &[&str])] = &[
        (&["a.txt", &judge], 2, &["cuts texts at the length", "eval.gen_ppl.max_length"]),
        (&["a.txt", &judge, "eval.gen_ppl.protocol=poold"], 2, &["did you mean `pooled`?"]),
        (&["a.txt", &judge, "eval.gen_ppl.protokoll=x"], 2, &["eval.gen_ppl", "protokoll"]),
        (&["a.txt", &judge, "eval.gen_ppl.mauve=true"], 2, &["eval.gen_ppl.references=FILE"]),
        (&["ids.jsonl", &judge, "eval.gen_ppl.retokenize=false"], 2, &["text 1 reads otherwise"]),
        (&["a.txt", &judge, "eval.gen_ppl.retokenize=false"], 2, &["text 1 has no `ids`"]),
        (
            &["odd.jsonl", &judge, "eval.gen_ppl.retokenize=false"],
            2,
            &["none of the judge's tokens"],
        ),
        (
            &["a.txt", &judge, "eval.gen_ppl.max_length=8", "eval.results=no/where"],
            2,
            &["cannot be written"],
        ),
        (&["bad.jsonl", &judge], 2, &["`bad.jsonl`, line 1"]),
        (&["nothing.txt", &judge], 2, &["nothing.txt"]),
        (&[&judge], 2, &["there is no text to score"]),
        (
            &["a.txt", "eval.gen_ppl_eval_model_name_or_path=./no", "eval.gen_ppl.max_length=8"],
            2,
            &["`./no` does not exist"],
        ),
    ];
    for (words, code, phrases) in cases {
        maskdiff(at, &[&["score", &cpu], *words].concat()).expect(*code).says(phrases);
    }
    assert!(!at.join("results.jsonl").exists());
    // A diffusion model is no judge.
    train(at, &["run.dir=run"]).expect(0);
    let words = ["score", "a.txt", "eval.gen_ppl_eval_model_name_or_path=run", &cpu];
    let said = ["a judge (`run`) needs `next_token`"];
    maskdiff(at, &[&words[..], &["eval.gen_ppl.max_length=8"]].concat()).expect(2).says(&said);
    // One of another network under GPT-2's name.
    let other = at.join("other");
    fs::create_dir(&other).expect("a folder");
    let text =
        fs::read_to_string(golden().join("i_genppl/gpt2/config.json")).expect("its configuration");
    fs::write(other.join("config.json"), text.replace("gelu_new", "relu")).expect("written");
    let words = [
        "score",
        "a.txt",
        "eval.gen_ppl_eval_model_name_or_path=other",
        &cpu,
        "eval.gen_ppl.max_length=8",
    ];
    maskdiff(at, &words)
        .expect(5)
        .says(&["of another network", "`activation_function` is \"relu\""]);
    // One whose weights lack a matrix.
    let broken = at.join("broken");
    fs::create_dir(&broken).expect("a folder");
    for name in ["config.json", "tokenizer.json"] {
        fs::copy(golden().join("i_genppl/gpt2").join(name), broken.join(name)).expect("a copy");
    }
    let lacking = Tensor::zeros([2, 2], (Kind::Float, Device::Cpu));
    Tensor::write_safetensors(&[("wpe.weight", lacking)], broken.join("model.safetensors"))
        .expect("written");
    let words = [
        "score",
        "a.txt",
        "eval.gen_ppl_eval_model_name_or_path=broken",
        &cpu,
        "eval.gen_ppl.max_length=8",
    ];
    maskdiff(at, &words).expect(5).says(&["no matrix `wte.weight`"]);
}

/// A judge has a name of the hub, as `gpt2-large`; it is fetched once.
#[test]
fn a_judge_comes_from_the_hub_by_its_bare_name() {
    if golden_case("i_genppl").is_none() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let root = folder.path().join("root");
    let to = root.join("models/owner/judge-tiny");
    fs::create_dir_all(&to).expect("a folder");
    for entry in fs::read_dir(golden().join("i_genppl/gpt2")).expect("the judge") {
        let path = entry.expect("an entry").path();
        fs::copy(&path, to.join(path.file_name().expect("a name"))).expect("a copy");
    }
    fs::write(folder.path().join("a.txt"), "one text").expect("written");
    let hub = Hub::own(&root, &[]);
    let run = |name: &str| {
        let judge = format!("eval.gen_ppl_eval_model_name_or_path={name}");
        let words =
            ["score", "a.txt", &judge, "eval.gen_ppl.protocol=pooled", "trainer.accelerator=cpu"];
        let mut command = command(folder.path(), &words);
        let home = folder.path().join("home");
        command.env("HF_ENDPOINT", &hub.url).env("HF_HOME", home).env_remove("HF_TOKEN");
        finish(&mut command)
    };
    let first = run("judge-tiny").expect(0).lines()[0].clone();
    assert_eq!(first["judge"], "judge-tiny");
    run("nobody").expect(2).says(&["there is no `nobody` here"]);
}

/// An autoregressive model of ours goes to a folder of GPT-2's layout and comes back; a published one samples.
#[test]
fn a_gpt2_goes_both_ways() {
    if golden_case("i_genppl").is_none() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    let from = golden().join("i_genppl/gpt2").display().to_string();
    let drawn = |path: &str| {
        let words = ["sample", "--checkpoint", path, "loader.eval_batch_size=1"];
        maskdiff(at, &[&words[..], &["trainer.accelerator=cpu"]].concat()).expect(0).lines()[0]["ids"].clone()
    };
    maskdiff(at, &["export", "--checkpoint", &from, "--format", "hf", "--output", "out"]).expect(0);
    let written: Value = serde_json::from_str(
        &fs::read_to_string(at.join("out/config.json")).expect("its configuration"),
    )
    .expect("JSON");
    assert_eq!((&written["vocab_size"], &written["model_type"]), (&json!(348), &json!("gpt2")));
    let read = |path: &Path| {
        let checkpoint = Checkpoint::open(path).expect("a checkpoint");
        in_memory(checkpoint.tensors(MODEL).expect("read").expect("there"))
    };
    assert_eq!(read(Path::new(&from)), read(&at.join("out")));
    assert_eq!(drawn(&from), drawn("out"));
}

/// Few steps of several samplers as one table, one file of it and one picture; a row says what `sample` says of the same texts.
#[test]
fn few_steps_are_compared_in_one_table() {
    if golden_case("i_genppl").is_none() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    train(at, &["run.dir=net", "trainer.max_steps=2"]).expect(0);
    let [lm, _] = words("gpt2");
    let lm = lm.as_str();
    let steps = |more: &[&str]| {
        maskdiff(at, &[&["steps", "net", "--steps", "2,4", "-n", "3"], more].concat())
    };
    let out = ["--csv", "t.csv", "--svg", "t.svg", "--samplers", "ddpm_cache,first_hitting"];
    let rows = steps(&[&out[..], &[lm]].concat()).expect(0).lines();
    let of = |key: &str| rows.iter().map(|row| row[key].clone()).collect::<Vec<Value>>();
    assert_eq!(of("sampler"), ["ddpm_cache", "ddpm_cache", "first_hitting"]);
    assert_eq!(of("steps"), [json!(2), json!(4), json!(null)]);
    assert!(rows[0]["nfe"].as_f64() < rows[1]["nfe"].as_f64(), "{rows:?}");
    let draw =
        ["sample", "net", "-n", "3", "--steps", "4", "eval.compute_generative_perplexity=true", lm];
    let drawn = maskdiff(at, &draw).expect(0).lines();
    let scored = drawn.last().expect("scores");
    for key in ["gen/ppl", "gen/entropy", "gen/tokens"] {
        assert_eq!(rows[1][key], scored[key], "{key}");
    }
    // That a judge does not see a whole text is told before any is drawn.
    let long = [
        "sample",
        "net",
        "-n",
        "1",
        "--steps",
        "1",
        "sampling.semi_ar=true",
        "sampling.stride_length=64",
        "sampling.num_strides=16",
        "eval.gen_ppl.retokenize=false",
        "eval.compute_generative_perplexity=true",
        lm,
    ];
    let out = maskdiff(at, &long);
    out.expect(2).says(&["sees 1024 tokens at once, and 108", "`eval.gen_ppl.retokenize=true`"]);
    assert_eq!(out.stdout, "", "nothing was drawn");
    let csv = fs::read_to_string(at.join("t.csv")).expect("a table");
    assert!(
        csv.starts_with("sampler,steps,nfe,gen_ppl,entropy,mauve,seconds\nddpm_cache,2,"),
        "{csv}"
    );
    assert_eq!(csv.lines().count(), 4);
    let svg = fs::read_to_string(at.join("t.svg")).expect("a picture");
    assert!(svg.starts_with("<svg ") && svg.contains("network calls"), "{svg}");
    let bare = steps(&["eval.compute_generative_perplexity=false"]);
    assert!(bare.expect(0).lines().iter().all(|row| row.get("gen/ppl").is_none()));
    let told =
        steps(&["eval.compute_generative_perplexity=false", "--steps", "8", "--format", "text"]);
    assert!(told.expect(0).stdout.contains("198.27"), "{}", told.stdout);
    fs::write(at.join("mine.csv"), "mine").expect("a file");
    for (words, said) in [
        (&["--samplers", "nothing"][..], "nothing"),
        (&["--samplers", "ar", lm], "`ar`"),
        (&["--csv", "mine.csv", lm], "`mine.csv`"),
        (&["eval.gen_ppl_eval_model_name_or_path=./no"], "makes the table without it"),
    ] {
        let refused = steps(words);
        assert_ne!(refused.code, 0, "{words:?}");
        refused.says(&[said]);
    }
}
