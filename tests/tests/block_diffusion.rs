//! `block_size`: exact laws on tiny vocabularies, sampling with and without a cache, training and evaluation as a user runs them.

use std::path::Path;

use maskdiff_config::listed::Context as Beyond;
use maskdiff_config::{Request, load};
use maskdiff_engine::assemble;
use maskdiff_engine::checkpoint::Checkpoint;
use maskdiff_engine::evaluate::Draws;
use maskdiff_engine::evaluate::blocks as likelihood;
use maskdiff_engine::model::Model;
use maskdiff_engine::model::views::{Blocks, Growth, Interval, Text};
use maskdiff_engine::plugins::{Choice, Registry};
use maskdiff_engine::sample::grow::{Start, grow};
use maskdiff_plugin_api::ops::Order;
use maskdiff_plugin_api::{Context, Denoiser};
use maskdiff_tests::run::{SMALL, maskdiff, metrics};
use maskdiff_tests::{Setup, Tensors, assert_close, device, golden_case, registry};
use serde_json::{Value, json};
use tch::{Kind, Tensor};

/// The network of `n_block_exact`, in float64: sequences of 4 tokens of 3 kinds, of which the first is BOS.
fn tiny(registry: &Registry, case: &Value, size: i64) -> Model {
    let mut setup = Setup::new(&case["model"], &json!([]), 3, Kind::Double);
    setup.choices.noise.options = json!({ "eps": 1e-12 });
    let model =
        setup.build_in(registry, "n_block_exact/weights.safetensors", Some(Blocks::of(size)));
    model.blocks().expect("blocks").set_begins(Some(0));
    model
}

fn growth(size: i64, cached: bool) -> Growth {
    Growth { size, window: 4, context: Beyond::Slide, cached }
}

/// All orders of so many things.
fn orders(n: usize) -> Vec<Vec<usize>> {
    if n == 0 {
        return vec![Vec::new()];
    }
    let longer = |order: Vec<usize>| {
        (0..=order.len()).map(move |at| {
            let mut order = order.clone();
            order.insert(at, n - 1);
            order
        })
    };
    orders(n - 1).into_iter().flat_map(longer).collect()
}

/// `log p` of the true tokens of a block at `open`, when the positions of `masked` are masked, for all sequences.
fn log_p(view: &Denoiser<'_>, block: &Tensor, masked: &[usize], open: usize) -> Tensor {
    let x = block.copy();
    for at in masked {
        let _ = x.select(1, *at as i64).fill_(3);
    }
    let n = block.size()[0];
    let size = block.size()[1];
    let rows = Tensor::arange(n, (Kind::Int64, device())) * size + open as i64;
    let t = Tensor::full([n], 0.5, (Kind::Double, device()));
    let law = view.log_x0(&x, &t, &rows).expect("a law");
    law.gather(1, &block.select(1, open as i64).unsqueeze(1), false).squeeze_dim(1)
}

/// The law of first hitting, from the view that a sampler walks: `log p` of all sequences.
fn law_of_first_hitting(model: &Model, all: &Tensor, size: i64) -> Tensor {
    let mut text = Text::new(model, all.size()[0], growth(size, true));
    let mut total = Tensor::zeros([all.size()[0]], (Kind::Double, device()));
    for at in (0..4).step_by(size as usize) {
        let block = all.narrow(1, at, size);
        let view = text.next(None).expect("a view");
        let free: Vec<usize> = (0..size as usize).filter(|i| at as usize + i > 0).collect();
        let lent = Denoiser::new(&view);
        let of_order = |order: Vec<usize>| {
            let steps = (0..order.len()).map(|j| {
                let masked: Vec<usize> = order[j..].iter().map(|i| free[*i]).collect();
                log_p(&lent, &block, &masked, masked[0])
            });
            steps.fold(total.zeros_like(), |sum, step| sum + step)
        };
        let all_orders: Vec<Tensor> = orders(free.len()).into_iter().map(of_order).collect();
        let count = (all_orders.len() as f64).ln();
        total += Tensor::stack(&all_orders, 0).logsumexp([0i64].as_slice(), false) - count;
        text.push(&block);
    }
    total
}

#[test]
fn golden_exact() {
    let Some(case) = golden_case("n_block_exact") else { return };
    let registry = registry();
    let golden = Tensors::golden("n_block_exact/exact.safetensors");
    let all = golden.get("sequences");
    let n = all.size()[0];
    for size in [1_i64, 2, 4] {
        let model = tiny(&registry, &case, size);
        let blocks = model.blocks().expect("blocks");
        tch::no_grad(|| {
            // Every number of masks and every set of them once: the mean of the draws is the bound.
            let free = size.max(2) - i64::from(size == 4);
            let perms = orders(free as usize);
            let mut sum = Tensor::zeros([n], (Kind::Double, device()));
            for k in 0..free {
                for order in &perms {
                    let u_b = Tensor::full(
                        [n, 4 / size],
                        (k as f64 + 0.5) / free as f64,
                        (Kind::Double, device()),
                    );
                    let places: Vec<f64> = order.iter().map(|i| *i as f64 / 8.0).collect();
                    // Of four tokens the first is BOS.
                    let block = if size == 4 { [vec![0.9], places].concat() } else { places };
                    let row: Vec<f64> = block.iter().copied().cycle().take(4).collect();
                    let u_bl =
                        Tensor::from_slice(&row).to_device(device()).unsqueeze(0).repeat([n, 1]);
                    let draws = Draws::new(u_b, u_bl);
                    sum += likelihood::strict_nats(&model, blocks, &all, &draws).expect("nats");
                }
            }
            let bound = sum / (free as f64 * perms.len() as f64);
            let name = if size == 1 { "nll.b1".into() } else { format!("nelbo.b{size}") };
            assert_close(&name, &bound, &golden.get(&name), 1e-9, true);
            let law = law_of_first_hitting(&model, &all, size);
            let want =
                golden.find(&format!("log_law.b{size}")).unwrap_or_else(|| -golden.get("nll.b1"));
            assert_close(&format!("law, b = {size}"), &law, &want, 1e-9, true);
            let total = law.exp().sum(Kind::Double).double_value(&[]);
            assert!((total - 1.0).abs() < 1e-12, "{total}");
            let short = (&bound + &law).min().double_value(&[]);
            assert!(short > -1e-12, "the bound is below the law by {short}");
            // A deterministic order has a likelihood, too.
            for order in [Order::LeftToRight, Order::Confidence] {
                let nats = likelihood::duel_nats(&model, blocks, &all, order, 1).expect("nats");
                let total = nats.neg().exp().sum(Kind::Double).double_value(&[]);
                assert!((total - 1.0).abs() < 1e-12, "{order:?}, b = {size}: {total}");
                if size == 1 {
                    assert_close("one order", &nats, &golden.get("nll.b1"), 1e-9, true);
                }
            }
        });
    }
}

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
    let start = Start { x_bn, given_bn, ends: None, least: None };
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

const BLOCKS: &[&str] = &["block_size=8"];

/// [`SMALL`] without the option of one sampler.
fn small() -> Vec<&'static str> {
    SMALL.iter().copied().filter(|word| !word.starts_with("sampling.steps")).collect()
}

fn train(at: &Path, more: &[&str]) -> maskdiff_tests::run::Output {
    maskdiff(at, &[&["train"], &small()[..], BLOCKS, &["run.dir=run"], more].concat())
}

#[test]
fn a_run_in_blocks_trains_is_measured_and_draws_texts_of_any_length() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    train(at, &["trainer.max_steps=30", "optim.lr=3e-3", "training.ema=0.9"]).expect(0);
    let all = metrics(&at.join("run"));
    let nats = |line: &Value| line["val/nelbo"].as_f64();
    let last = all.iter().filter_map(nats).next_back().expect("an evaluation");
    // That of 198 words, all alike.
    let uniform = 5.2;
    assert!(last > 0.5 && last < uniform, "{last}");
    let eval = |more: &[&str]| {
        let out = maskdiff(at, &[&["eval", "eval.checkpoint_path=run"], more].concat());
        out.expect(0).lines()[0]["val/nelbo"].as_f64().expect("a bound")
    };
    // Two estimates of one bound, and the likelihood of an order.
    let (reference, strict) =
        (eval(&["eval.passes=8"]), eval(&["eval.bound=strict", "eval.passes=8"]));
    assert!((reference - strict).abs() < 0.1, "{reference}, {strict}");
    assert!(eval(&["eval.likelihood=duel"]) > 0.5);
    let sample = |more: &[&str]| {
        let hits = "sampling.predictor=first_hitting";
        let base = ["sample", "eval.checkpoint_path=run", "sampling.num_samples=3", hits];
        maskdiff(at, &[&base[..], more].concat())
    };
    let plain = sample(&[]);
    let line = &plain.expect(0).lines()[0];
    assert_eq!(line["ids"].as_array().expect("ids").len(), 64);
    // A call for each free token and one to keep each block but the last; the first token may be given.
    let calls = line["nfe"].as_f64().expect("calls");
    assert!((70.0..=71.0).contains(&calls), "{calls}");
    assert_eq!(line["token_forwards"].as_f64(), Some(calls * 8.0));
    for context in ["slide", "reread", "all"] {
        let context = format!("sampling.context={context}");
        let long = sample(&["sampling.length=150", &context]);
        assert_eq!(long.expect(0).lines()[2]["ids"].as_array().expect("ids").len(), 150);
    }
    let prompted = sample(&["--prompt", "Ben has a", "sampling.length=50"]);
    for line in prompted.expect(0).lines() {
        assert!(line["text"].as_str().expect("a text").contains("Ben has a"), "{line}");
    }
    // Of few kinds of words no text has an entropy of 50 nats: all are drawn ten times, or end where they say nothing new.
    let dull = ["sampling.length=300", "sampling.min_entropy=50", "sampling.num_samples=1"];
    let rejected = sample(&dull);
    rejected.expect(0).says(&["9 drawn anew", "after 10 draws 1 text still"]);
    assert_eq!(rejected.lines()[0]["rejected"], 9);
    let ended = sample(&[&dull[..], &["sampling.stop_at_eos=true"]].concat());
    assert!(ended.expect(0).lines()[0]["ids"].as_array().expect("ids").len() < 64);
    // A walk without the cache costs more tokens.
    let anew = sample(&["sampling.kv_cache=false"]);
    let more = anew.expect(0).lines()[0]["token_forwards"].as_f64().expect("a number");
    assert!(more > 2.0 * calls * 8.0, "{more}");
}

/// Other methods and samplers run in blocks as they are.
#[test]
fn every_method_over_masks_works_in_blocks() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    for (name, words) in [
        (
            "sedd",
            &["parameterization=sedd", "time_conditioning=true", "sampling.predictor=analytic"][..],
        ),
        ("d3pm", &["parameterization=d3pm", "T=100", "sampling.predictor=ddpm"]),
        ("timed", &["time_conditioning=true", "sampling.predictor=confidence"]),
    ] {
        let run = format!("run.dir={name}");
        let base = ["trainer.max_steps=4", "sampling.num_sample_log=1", &run];
        let out = maskdiff(at, &[&["train"], &small()[..], BLOCKS, words, &base].concat());
        out.expect(0);
        let last =
            metrics(&at.join(name)).iter().filter_map(|l| l["val/nelbo"].as_f64()).next_back();
        assert!(last.expect("a bound").is_finite(), "{name}");
        let from = format!("eval.checkpoint_path={name}");
        maskdiff(at, &["sample", &from, "sampling.num_samples=2", "sampling.length=80"]).expect(0);
    }
}

#[test]
fn a_clipped_schedule_is_searched_and_kept() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    let search =
        ["training.clip_search_widths=[0.5,0.7]", "training.resample=true", "trainer.max_steps=6"];
    train(at, &search).expect(0).says(&["times are drawn from masked shares"]);
    let state =
        std::fs::read_to_string(at.join("run/checkpoints/last/state.json")).expect("state.json");
    let state: Value = serde_json::from_str(&state).expect("JSON");
    let end = |i: usize| state["interval"][i].as_f64().expect("an end");
    assert!(end(1) - end(0) < 0.8, "{state}");
}

#[test]
fn what_does_not_fit_blocks_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    let bounds = [
        "training.resample=true",
        "training.sampling_eps_min=0.3",
        "training.sampling_eps_max=0.45",
    ];
    for (words, said) in [
        (&["block_size=5"][..], &["does not divide `model.length` (64)", "4 and 8"][..]),
        (&["block_size=128"], &["does not divide", "32 and 64"]),
        (&["backbone=ar", "parameterization=ar"], &["predicts one token after the other"]),
        (&["backbone=dimamba", "~model.n_heads"], &["needs `past`"]),
        (
            &[&["block_size=4"], &bounds[..]].concat(),
            &["no number of masks among the 4 tokens", "widen"],
        ),
        (&["training.sampling_eps_min=0.9", "training.sampling_eps_max=0.2"], &["not below"]),
        (&["sampling.semi_ar=true"], &["`sampling.semi_ar`", "sampling.length"]),
    ] {
        train(at, words).expect(2).says(said);
    }
    let whole = maskdiff(at, &[&["train"], SMALL, &["sampling.length=64", "run.dir=run"]].concat());
    whole.expect(2).says(&["set `block_size`"]);
}

/// The folder of `n_block_hf`: block after block over its cache, and the numbers beside the weights.
#[test]
fn golden_folder() {
    let Some(case) = golden_case("n_block_hf") else { return };
    let folder = maskdiff_tests::golden().join("n_block_hf/bd3lm");
    let checkpoint = Checkpoint::open(&folder).expect("a checkpoint");
    let stored = Some(checkpoint.stored().expect("a configuration"));
    let mut config =
        load(&Request { stored, foreign: true, ..Request::default() }).expect("a configuration");
    let registry = registry();
    let choices = assemble::choices(&mut config, &registry, true).expect("components");
    let vocab_size = checkpoint.foreign.as_ref().expect("of another program").vocab_size;
    assert_eq!(vocab_size, case["model"]["vocab_size"].as_i64().expect("a number"));
    let facts =
        Context::new(vocab_size, config.model.length).mask(Some(vocab_size - 1)).kind(Kind::Float);
    let model = assemble::model(&config, &registry, choices, facts).expect("a model");
    assemble::load_weights(&model, &checkpoint, &config).expect("its weights");
    let blocks = model.blocks().expect("blocks");
    assert_eq!(blocks.size, 4);
    assert_eq!(blocks.interval(), Interval { low: 0.3, high: 0.8 });
    let io = Tensors::golden("n_block_hf/io.safetensors");
    let ids = io.get("input_ids");
    let read = |z: &Tensor, x: &Tensor| {
        let mut text = Text::new(&model, 2, Growth { window: 12, ..growth(4, true) });
        let of_block = |at: i64| {
            let view = text.next(None).expect("a view");
            let sigma = Tensor::zeros([2], (Kind::Double, device()));
            let hidden = Denoiser::new(&view).hidden(&z.narrow(1, at, 4), &sigma).expect("a state");
            text.push(&x.narrow(1, at, 4));
            model_logits(&model, &hidden)
        };
        Tensor::cat(&(0..z.size()[1]).step_by(4).map(of_block).collect::<Vec<Tensor>>(), 1)
    };
    tch::no_grad(|| {
        let (z, x) = (ids.narrow(1, 0, 12), ids.narrow(1, 12, 12));
        assert_close("logits", &read(&z, &x), &io.get("logits"), 1e-4, false);
        let prefix = io.get("prefix");
        assert_close("prefix", &read(&prefix, &prefix), &io.get("prefix_logits"), 1e-4, false);
    });
}

fn model_logits(model: &Model, hidden: &Tensor) -> Tensor {
    let flat = Denoiser::new(model).logits(&hidden.flatten(0, 1)).expect("logits");
    flat.view([hidden.size()[0], hidden.size()[1], -1])
}

/// An MDLM becomes a model of blocks, which other programs' folders and files carry to and fro.
#[test]
fn checkpoints_go_to_other_programs_and_come_back() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    maskdiff(at, &[&["train"], SMALL, &["trainer.max_steps=5", "run.dir=whole"]].concat())
        .expect(0);
    let from = [
        "training.from=whole",
        "trainer.max_steps=3",
        "training.sampling_eps_min=0.3",
        "training.sampling_eps_max=0.8",
    ];
    train(at, &from).expect(0);
    let bound = |path: &str| {
        let from = format!("eval.checkpoint_path={path}");
        let out = maskdiff(at, &["eval", &from, "data=stories"]);
        out.expect(0).lines()[0]["val/nelbo"].as_f64().expect("a bound")
    };
    let ours = bound("run");
    for (format, path) in [("hf", "folder"), ("lightning", "file.ckpt"), ("safetensors", "plain")] {
        maskdiff(at, &["export", "--checkpoint", "run", "--format", format, "--output", path])
            .expect(0);
        assert!((bound(path) - ours).abs() < 1e-6, "{format}: {} for {ours}", bound(path));
    }
    let config = std::fs::read_to_string(at.join("folder/config.json")).expect("config.json");
    let config: Value = serde_json::from_str(&config).expect("JSON");
    assert_eq!((&config["model_type"], &config["block_size"]), (&json!("bd3lm"), &json!(8)));
    assert_eq!(config["sampling_eps_min"], json!(0.3));
    let stored = Tensor::read_safetensors(at.join("folder/model.safetensors")).expect("weights");
    let bound = stored.iter().find(|(name, _)| name == "sampling_eps_max").expect("a bound");
    assert!(bound.1.size().is_empty() && (bound.1.double_value(&[]) - 0.8).abs() < 1e-6);
    // What reads in blocks is no MDLM, and the other way round.
    let other = ["sample", "eval.checkpoint_path=run", "block_size=16", "sampling.num_samples=1"];
    let said = ["was trained in blocks of 8 tokens", "blocks of 16", "training.from"];
    maskdiff(at, &other).expect(2).says(&said);
    let whole = ["sample", "eval.checkpoint_path=whole", "block_size=16"];
    maskdiff(at, &whole).expect(2).says(&["was trained without blocks"]);
}

/// What only blocks have is refused without them, what makes no sense in them as well, and a start that fails leaves no folder.
#[test]
fn keys_of_blocks_are_refused_where_they_would_be_ignored() {
    let folder = tempfile::tempdir().expect("a folder");
    for (words, said) in [
        (&["training.sampling_eps_min=0.3"][..], "`block_size` is not set"),
        (&["training.resample=true"], "`block_size` is not set"),
        (&["training.clip_search_widths=[0.5]"], "`block_size` is not set"),
        (&["sampling.kv_cache=false"], "`block_size` is not set"),
        (&["sampling.min_entropy=4"], "`block_size` is not set"),
        (&["block_size=16", "parameterization=udlm", "training.resample=true"], "has none"),
        (&["block_size=16", "training.clip_search_widths=[0.5,5]"], "has 5"),
        (&["block_size=16", "training.clip_search_widths=[0.0]"], "has 0"),
        (&["block_size=16", "training.clip_search_delta=1e-9"], "too many intervals"),
        (&["block_size=16", "sampling.min_entropy=4"], "the last 256 tokens"),
        (
            &["block_size=16", "sampling.length=128", "sampling.kv_cache=false"],
            "`sampling.context=reread`",
        ),
    ] {
        let out =
            maskdiff(folder.path(), &[&["train"], &small()[..], &["run.dir=run"], words].concat());
        out.expect(2).says(&[said]);
        assert!(!folder.path().join("run").exists(), "{words:?}");
    }
}

/// The interval is one of masked shares, whatever the schedule is; a run that goes on takes the one that is asked for, and an export the one
/// that it was trained in.
#[test]
fn an_interval_is_of_shares_and_of_the_run_as_it_is() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    let plain = |more: &[&str]| maskdiff(at, &[&["train"], &small()[..], more].concat());
    let words = ["block_size=16", "run.dir=run", "noise=geometric", "sampling.num_sample_log=0"];
    let go = |more: &[&str]| plain(&[&words[..], more].concat());
    let narrow = ["training.sampling_eps_min=0.3", "training.sampling_eps_max=0.8"];
    // Times of 0.3 to 0.8 would have masked nearly nothing: it would draw for ever.
    go(&[&narrow[..], &["training.resample=true", "trainer.max_steps=2"]].concat()).expect(0);
    let other = ["training.sampling_eps_min=0.45", "training.sampling_eps_max=0.95"];
    let resume = ["checkpointing.resume_from_ckpt=true", "trainer.max_steps=4"];
    go(&[&other[..], &resume].concat()).expect(0);
    let interval = |run: &str| {
        let file = at.join(run).join("checkpoints/last/state.json");
        let text = std::fs::read_to_string(file).expect("state.json");
        serde_json::from_str::<serde_json::Value>(&text).expect("JSON")["interval"].clone()
    };
    assert_eq!(interval("run"), serde_json::json!([0.45, 0.95]));
    plain(&[
        "block_size=16",
        "run.dir=found",
        "training.clip_search_widths=[0.5]",
        "trainer.max_steps=4",
        "trainer.val_check_interval=2",
        "sampling.num_sample_log=0",
    ])
    .expect(0);
    let found = interval("found");
    let export = ["export", "--checkpoint", "found", "--as", "hf", "--output", "out"];
    maskdiff(at, &export).expect(0);
    let text = std::fs::read_to_string(at.join("out/config.json")).expect("config.json");
    let config: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!([&config["sampling_eps_min"], &config["sampling_eps_max"]], [&found[0], &found[1]]);
}

/// A whole block that is given is a part of the trace as any other.
#[test]
fn a_trace_begins_with_blocks_that_are_given() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    train(at, &["block_size=4", "run.dir=run", "trainer.max_steps=1", "sampling.num_sample_log=0"])
        .expect(0);
    let prompt = "Ben has a green boat and a red hat .";
    for shown in [["--trace", "t.json"], ["--svg", "t.svg"]] {
        let sample = ["sample", "--checkpoint", "run", "-n", "1", "--prompt", prompt];
        maskdiff(at, &[&sample[..], &shown].concat()).expect(0);
    }
}
