//! `any_order`: exact laws and likelihoods over a network, the cache, and a run as a user makes it.

use maskdiff_base::stream::Purpose;
use maskdiff_engine::evaluate::blocks as likelihood;
use maskdiff_engine::model::Model;
use maskdiff_engine::model::views::Blocks;
use maskdiff_engine::moment::{Moment, Streams};
use maskdiff_engine::plugins::{Choice, Registry};
use maskdiff_engine::sample::walk;
use maskdiff_plugin_api::ops::Order;
use maskdiff_plugin_api::testkit::chi_square;
use maskdiff_plugin_api::{Batch, Denoiser, Pass, Passed, Sees, Wants};
use maskdiff_tests::run::{SMALL, maskdiff, metrics};
use maskdiff_tests::{Setup, assert_close, device, registry};
use serde_json::{Value, json};
use tch::{Kind, Tensor};

const TOKENS: i64 = 3;
const LENGTH: i64 = 4;
const MASK: i64 = TOKENS;

/// A DiT in float64 over three tokens and a mask, with random weights that are the same for every method.
fn tiny(registry: &Registry, method: &str, options: Value, blocks: Option<Blocks>) -> Model {
    let sizes = json!({
        "hidden_size": 16, "n_heads": 2, "n_blocks": 2, "cond_dim": 8, "dropout": 0.0, "vocab_size": TOKENS + 1, "length": LENGTH,
    });
    let mut setup = Setup::new(&sizes, &json!([]), MASK, Kind::Double);
    setup.choices.parameterization = Choice { name: method.into(), options };
    let model = Model::in_blocks(registry, setup.choices, setup.facts, blocks).expect("a model");
    tch::manual_seed(5);
    tch::no_grad(|| {
        for mut tensor in model.trainable() {
            let _ = tensor.normal_(0.0, 0.4);
        }
    });
    model
}

/// All sequences, `[81, 4]`.
fn every() -> Tensor {
    let number = Tensor::arange(TOKENS.pow(4), (Kind::Int64, device()));
    let digit = |l: u32| number.floor_divide_scalar(TOKENS.pow(3 - l)).remainder(TOKENS);
    Tensor::stack(&(0..4).map(digit).collect::<Vec<_>>(), 1)
}

fn silent(x: &Tensor) -> Tensor {
    Tensor::zeros([x.size()[0]], (Kind::Double, x.device()))
}

/// The law at a masked position next in the order, behind the tokens before it: `[B, V]`.
fn next_law(model: &Model, x: &Tensor, order: &[i64], i: usize) -> Tensor {
    let batch = x.size()[0];
    let seen = x.index_select(1, &Tensor::from_slice(&order[..i]).to_device(x.device()));
    let mask = Tensor::full([batch, 1], MASK, (Kind::Int64, x.device()));
    let at = Tensor::from_slice(&order[..=i]).to_device(x.device()).unsqueeze(0);
    let pass = Pass::new(&Tensor::cat(&[seen, mask], 1), &silent(x)).positions(&at);
    let hidden = Denoiser::new(model).pass(&pass.sees(Sees::Causal)).expect("a state").hidden;
    let logits = Denoiser::new(model).logits(&hidden.select(1, i as i64)).expect("logits");
    let _ = logits.select(1, MASK).fill_(f64::NEG_INFINITY);
    logits.log_softmax(-1, Kind::Double)
}

/// `log p(x | order)` of sequences `[B, L]`, one call a token.
fn log_p(model: &Model, x: &Tensor, order: &[i64]) -> Tensor {
    let of_next = |i: usize| {
        let at = x.select(1, order[i]).unsqueeze(1);
        next_law(model, x, order, i).gather(1, &at, false).squeeze_dim(1)
    };
    (0..order.len()).map(of_next).fold(silent(x), |sum, one| sum + one)
}

fn orders(n: i64) -> Vec<Vec<i64>> {
    if n == 0 {
        return vec![Vec::new()];
    }
    let longer = |order: Vec<i64>| {
        (0..=order.len()).map(move |at| {
            let mut order = order.clone();
            order.insert(at, n - 1);
            order
        })
    };
    orders(n - 1).into_iter().flat_map(longer).collect()
}

/// What an evaluation reports of all sequences, each with the same random numbers: `[81, 4]`.
fn reported(model: &Model, number: u64) -> Tensor {
    let all = every();
    let numbers = std::iter::repeat_n(number, all.size()[0] as usize);
    let streams = Streams::new(3, Purpose::EvaluationDraws, numbers);
    model.set_moment(Moment::of_loss(None, Some(streams)));
    let batch = Batch::new(&all, &Denoiser::new(model).times(all.size()[0], 0.5));
    let objective = tch::no_grad(|| model.objective(&batch)).expect("an objective");
    model.set_moment(Moment::default());
    objective.nats_bl.expect("a bound")
}

fn summed(nats: &Tensor) -> Tensor {
    nats.sum_dim_intlist([1i64].as_slice(), false, Kind::Double)
}

/// For each order, and for each set of orders, the probabilities of all sequences sum to 1; more orders lower the bound.
#[test]
fn likelihoods_of_orders_are_laws() {
    let registry = registry();
    for alpha_0 in [1.0, 0.5, 0.0] {
        let (mut one, mut several) = (0.0, 0.0);
        for (orders, sum) in [(1, &mut one), (8, &mut several)] {
            let options = json!({ "alpha_0": alpha_0, "orders": orders });
            let model = tiny(&registry, "any_order", options, None);
            for number in 0..12 {
                let nats = summed(&reported(&model, number));
                let total = nats.neg().exp().sum(Kind::Double).double_value(&[]);
                assert!((total - 1.0).abs() < 1e-12, "alpha_0 = {alpha_0}, {orders}: {total}");
                *sum += nats.mean(Kind::Double).double_value(&[]);
            }
        }
        let falls = several < one || alpha_0 == 0.0 && (several - one).abs() < 1e-9;
        assert!(falls, "alpha_0 = {alpha_0}: {several} of eight orders, {one} of one");
    }
}

/// One pass over clean tokens and masks is the chain of single calls, and from left to right that of blocks of one token.
#[test]
fn an_order_is_scored_as_it_is_drawn() {
    let registry = registry();
    let all = every();
    let model = tiny(&registry, "any_order", json!({}), None);
    tch::no_grad(|| {
        for number in 0..4 {
            let got = -summed(&reported(&model, number));
            let near = orders(LENGTH).into_iter().any(|order| {
                (log_p(&model, &all, &order) - &got).abs().max().double_value(&[]) < 1e-12
            });
            assert!(near, "no order has these probabilities");
        }
        let left = tiny(&registry, "any_order", json!({ "alpha_0": 0.0 }), None);
        let got = summed(&reported(&left, 1));
        let chain = log_p(&left, &all, &[0, 1, 2, 3]);
        assert_close("from left to right", &got, &-chain, 1e-12, true);
        let in_blocks = tiny(&registry, "subs", json!({}), Some(Blocks::of(1)));
        let blocks = in_blocks.blocks().expect("blocks");
        let nats = likelihood::duel_nats(&in_blocks, blocks, &all, Order::LeftToRight, 1);
        assert_close("blocks of one token", &got, &nats.expect("nats"), 1e-12, true);
    });
}

/// Token after token over kept keys and values, in any order: the states of one causal pass.
#[test]
fn keys_that_are_kept_change_no_state() {
    let registry = registry();
    let model = tiny(&registry, "any_order", json!({}), None);
    let (net, all) = (Denoiser::new(&model), every());
    let order = Tensor::from_slice(&[2i64, 0, 3, 1]).to_device(device());
    let x = all.index_select(1, &order);
    let at = order.unsqueeze(0);
    let pass = |first: i64, count: i64, past: &[Tensor]| {
        let pass = Pass::new(&x.narrow(1, first, count), &silent(&x)).past(past);
        let pass = pass.positions(&at.narrow(1, first, count)).sees(Sees::Causal);
        net.pass(&pass.wants(Wants::Both)).expect("a state")
    };
    tch::no_grad(|| {
        let whole = pass(0, LENGTH, &[]).hidden;
        let mut past: Vec<Tensor> = Vec::new();
        for (first, count) in [(0, 1), (1, 2), (3, 1)] {
            let Passed { hidden, keys, .. } = pass(first, count, &past);
            assert_close("states", &hidden, &whole.narrow(1, first, count), 1e-12, true);
            let joined = |(past, own): (&Tensor, &Tensor)| Tensor::cat(&[past, own], 2);
            past =
                if past.is_empty() { keys } else { past.iter().zip(&keys).map(joined).collect() };
        }
    });
}

/// A walk over texts of which some tokens are given, with streams of their own.
fn drawn(model: &Model, registry: &Registry, options: Value, start: &Tensor) -> (Tensor, i64) {
    let choice = Choice { name: "any_order".into(), options };
    let mut sampler =
        (choice.name.clone(), registry.sampler(&choice, model.facts()).expect("a sampler"));
    let streams = Streams::new(9, Purpose::Walks, 0..start.size()[0] as u64);
    model.set_moment(Moment::of_walk(streams, Some(start.not_equal(MASK))));
    let rows = model.rows();
    let x = walk(model, &mut sampler, start).expect("texts");
    model.set_moment(Moment::default());
    (x, model.rows() - rows)
}

fn masks(texts: i64) -> Tensor {
    Tensor::full([texts, LENGTH], MASK, (Kind::Int64, device()))
}

/// Texts with other given tokens, one by one, several at once, with a tail: the cache and the batch change none of them.
#[test]
fn neither_cache_nor_batch_changes_a_token() {
    let registry = registry();
    let model = tiny(&registry, "any_order", json!({}), None);
    let start = masks(48);
    let _ = start.narrow(0, 0, 12).select(1, 1).fill_(2);
    let _ = start.narrow(0, 6, 20).narrow(1, 2, 2).fill_(1);
    let _ = start.get(40).fill_(0);
    for mut options in [
        json!({}),
        json!({ "steps": 3 }),
        json!({ "stride": 2 }),
        json!({ "alpha_0": 0.5, "steps": 2, "temperature": 0.7, "top_p": 0.9 }),
    ] {
        let (with, few) = drawn(&model, &registry, options.clone(), &start);
        // The first text of a batch is the same alone.
        let (alone, _) = drawn(&model, &registry, options.clone(), &start.narrow(0, 0, 1));
        assert_eq!(alone, with.narrow(0, 0, 1), "{options}");
        options["keep_keys"] = json!(false);
        let (without, more) = drawn(&model, &registry, options.clone(), &start);
        assert_eq!(with, without, "{options}");
        assert!(few < more, "{options}: {few} tokens read, {more} without");
        let given = start.not_equal(MASK);
        assert_eq!(with.where_self(&given, &start), start, "{options}");
    }
    // Every token is read twice in all: as a mask, and revealed; the last one is not read again.
    let (_, rows) = drawn(&model, &registry, json!({}), &masks(10));
    assert_eq!(rows, 10 * (2 * LENGTH - 1));
}

/// One at a time the texts have the mean over all orders of their laws: by chi-square over 81 texts.
#[test]
fn texts_have_the_law_of_random_orders() {
    let registry = registry();
    let model = tiny(&registry, "any_order", json!({}), None);
    let all = every();
    let law = tch::no_grad(|| {
        let laws: Vec<Tensor> =
            orders(LENGTH).iter().map(|order| log_p(&model, &all, order)).collect();
        (Tensor::stack(&laws, 0).logsumexp([0i64], false) - (laws.len() as f64).ln()).exp()
    });
    let law = Vec::<f64>::try_from(law.to_device(tch::Device::Cpu)).expect("numbers");
    let (x, _) = drawn(&model, &registry, json!({}), &masks(6000));
    let number = (0..LENGTH)
        .fold(silent(&x).to_kind(Kind::Int64), |number, l| number * TOKENS + x.select(1, l));
    let counts = number.to_device(tch::Device::Cpu).bincount::<Tensor>(None, 81);
    let counts = Vec::<f64>::try_from(counts.to_kind(Kind::Double)).expect("numbers");
    let p = chi_square(&counts, &law);
    assert!(p > 1e-4, "p = {p:e}");
}

/// [`SMALL`], and what makes it a run of any order.
fn words<'a>(more: &[&'a str]) -> Vec<&'a str> {
    let own = ["train", "parameterization=any_order", "run.dir=run"];
    [&own[..], SMALL, more].concat()
}

#[test]
fn a_run_in_any_order_trains_is_measured_and_draws() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    let longer =
        ["trainer.max_steps=60", "optim.lr=3e-3", "training.ema=0.9", "training.alpha_0=0.5"];
    maskdiff(at, &words(&longer)).expect(0);
    let bounds: Vec<f64> =
        metrics(&at.join("run")).iter().filter_map(|line| line["val/nelbo"].as_f64()).collect();
    let last = *bounds.last().expect("an evaluation");
    // That of the words of the stories, all alike, is 5.3.
    assert!(last > 0.5 && last < 4.8, "{bounds:?}");
    let eval = |more: &[&str]| {
        let out = maskdiff(at, &[&["eval", "eval.checkpoint_path=run"], more].concat());
        out.expect(0).lines()[0]["val/nelbo"].as_f64().expect("a bound")
    };
    let (one, eight) = (eval(&[]), eval(&["training.orders=8"]));
    assert!(eight < one, "{eight} nats of eight orders, {one} of one");
    assert!((eval(&["eval.bound=strict", "eval.passes=4"]) - one).abs() < 0.5);
    assert!(eval(&["eval.likelihood=duel"]) > 0.5);
    let sample = |more: &[&str]| {
        let base = ["sample", "eval.checkpoint_path=run", "sampling.num_samples=2"];
        maskdiff(at, &[&base[..], more].concat())
    };
    let line = &sample(&["sampling.steps=0", "sampling.alpha_0=0.5"]).expect(0).lines()[0];
    let calls = line["nfe"].as_f64().expect("calls");
    assert!((63.0..=64.0).contains(&calls), "{calls}");
    assert!(line["token_forwards"].as_f64().expect("tokens") <= 2.0 * calls);
    // The share of diffusion is that of training, unless it is set: the other half of the tokens comes one by one.
    let few = |more: &[&str]| {
        let out = sample(&[&["sampling.steps=4"], more].concat());
        out.expect(0).lines()[0]["nfe"].as_f64().expect("calls")
    };
    assert!(few(&[]) > 12.0 && few(&["sampling.alpha_0=1"]) <= 4.0);
    let given = sample(&[
        "sampling.steps=4",
        "sampling.alpha_0=1",
        "--prompt",
        "Ben has a",
        "--trace",
        "t.json",
    ]);
    for line in given.expect(0).lines() {
        assert!(line["text"].as_str().expect("a text").starts_with("Ben has a"), "{line}");
        assert!(line["nfe"].as_f64().expect("calls") <= 4.0, "{line}");
    }
    let template = "Ben has a [MASK] [MASK] and [MASK] .";
    let blank = sample(&[
        "sampling.steps=0",
        "sampling.stride=8",
        "sampling.alpha_0=1",
        "--template",
        template,
    ]);
    assert!(blank.expect(0).lines()[0]["nfe"].as_f64().expect("calls") <= 8.0);
    // Other samplers read its law.
    sample(&["sampling.predictor=first_hitting"]).expect(0);
    // Eso-LM's folder and file.
    let bound = |path: &str| {
        let out = maskdiff(at, &["eval", "--checkpoint", path, "data=stories"]);
        out.expect(0).lines()[0]["val/nelbo"].as_f64().expect("a bound")
    };
    let ours = bound("run");
    for (format, path) in [("hf", "folder"), ("lightning", "file.ckpt")] {
        maskdiff(at, &["export", "--checkpoint", "run", "--format", format, "--output", path])
            .expect(0);
        assert!((bound(path) - ours).abs() < 1e-6, "{format}: {} for {ours}", bound(path));
    }
    let config = std::fs::read_to_string(at.join("folder/config.json")).expect("config.json");
    let config: Value = serde_json::from_str(&config).expect("JSON");
    assert_eq!((&config["model_type"], &config["alpha_0"]), (&json!("EsoLM"), &json!(0.5)));
}

/// What cannot be ordered is refused before a run folder is made.
#[test]
fn what_does_not_fit_any_order_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    for (more, said) in [
        (&["block_size=8"][..], &["`block_size` is 8", "orders the tokens of a whole text"][..]),
        (&["backbone=dimamba", "~model.n_heads"], &["needs `past`"]),
        (&["time_conditioning=true"], &["`time_conditioning=false`"]),
        (&["sampling.cfg_scale=1"], &["`any_order` reads the network past the laws"]),
        (&["training.alpha_0=2"], &["training.alpha_0"]),
        (&["training.low_variance=true", "training.alpha_0=0.5"], &["training.alpha_0 = 1"]),
        (&["diffusion=uniform"], &["mask"]),
    ] {
        maskdiff(at, &words(more)).expect(2).says(said);
        assert!(!at.join("run").exists(), "{more:?}");
    }
    let other = ["train", "sampling.predictor=any_order", "run.dir=run"];
    maskdiff(at, &[&other[..], SMALL].concat()).expect(2).says(&["any_order"]);
    assert!(!at.join("run").exists());
}
