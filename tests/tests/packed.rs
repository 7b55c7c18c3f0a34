//! Rows of conversations in batches: packed into sequences with borders (`data.pack`), and grouped by length
//! (`data.group_by_length`).

use std::path::Path;

use maskdiff_data::{Document, Rows};
use maskdiff_engine::assemble;
use maskdiff_engine::model::Model;
use maskdiff_engine::moment::Moment;
use maskdiff_engine::rows::TokenRows;
use maskdiff_plugin_api::{Batch, Context};
use maskdiff_tests::run::{Output, logged, losses, maskdiff, same_end};
use maskdiff_tests::{golden, golden_case, registry};
use serde_json::json;
use tch::{Device, Kind, Tensor};

const LENGTH: usize = 16;

/// A small network in float64 whose gates and head are not zero.
fn model(words: &[&str]) -> Model {
    let registry = registry();
    let small = ["model.hidden_size=16", "model.n_blocks=2", "model.n_heads=2", "model.length=16"];
    let request = maskdiff_config::Request {
        overrides: [&small, words].concat().iter().map(ToString::to_string).collect(),
        ..maskdiff_config::Request::default()
    };
    let mut config = maskdiff_config::load(&request).expect("a configuration");
    let choices = assemble::choices(&mut config, &registry, false).expect("components");
    let facts = Context::new(23, LENGTH as i64)
        .mask(Some(22))
        .time_conditioning(config.top.time_conditioning)
        .kind(Kind::Double);
    let model = assemble::model(&config, &registry, choices, facts).expect("a model");
    tch::no_grad(|| {
        for mut tensor in model.trainable() {
            let _ = tensor.normal_(0.0, 0.3);
        }
    });
    model
}

/// The loss of each token, and which tokens count.
fn loss(model: &Model, rows: &Rows, t: f64, u_bl: &Tensor) -> (Tensor, Tensor) {
    let mut rows = TokenRows::new(rows, Device::Cpu).expect("tensors");
    model.leave_first(&mut rows);
    let t_b = Tensor::full([rows.x0_bl.size()[0]], t, (Kind::Double, Device::Cpu));
    model.inject_uniforms(Some(rows.keeping(u_bl)));
    let document_bl = rows.document_bl.as_ref().map(Tensor::shallow_clone);
    model.set_moment(Moment::of_loss(None, None).packed(document_bl));
    let batch = Batch::new(&rows.x0_bl, &t_b)
        .counted(rows.counted_bl.as_ref())
        .given(rows.given_bl.as_ref());
    let objective = model.objective(&batch).expect("an objective");
    model.set_moment(Moment::default());
    (objective.loss_bl.detach(), rows.counted_bl.expect("some do not count"))
}

/// Each token of a packed row has the loss that it has in a sequence of its own.
#[test]
fn a_packed_row_is_scored_as_if_it_were_alone() {
    let documents = [[(5, 2), (7, 3), (3, 1)], [(9, 4), (2, 1), (5, 2)]];
    let document = |&(length, given): &(usize, usize)| Document { length, given };
    let ids: Vec<i64> = (0..2 * LENGTH as i64).map(|i| (i * 7 + 3) % 22).collect();
    let packed = Rows {
        ids: ids.clone(),
        length: LENGTH,
        documents: Some(
            documents.iter().map(|block| block.iter().map(document).collect()).collect(),
        ),
        ..Rows::default()
    };
    tch::manual_seed(5);
    let u_bl = Tensor::rand([2, LENGTH as i64], (Kind::Double, Device::Cpu));
    for words in [
        &["model.dropout=0", "time_conditioning=true"][..],
        &["parameterization=ar", "model.dropout=0"],
        &["backbone=llama", "model.mlp_size=24", "model.n_kv_heads=1"],
        &["backbone=diffugpt", "model.dropout=0"],
        &["parameterization=udlm", "model.dropout=0"],
    ] {
        let model = model(words);
        let (whole, counted) = loss(&model, &packed, 0.6, &u_bl);
        // A loss of the next token has no first column.
        let lead = LENGTH as i64 - whole.size()[1];
        let mut total = 0.0;
        for (row, block) in documents.iter().enumerate() {
            let mut start = 0;
            for &(length, given) in block {
                let from = row * LENGTH + start;
                let alone = Rows {
                    ids: ids[from..from + length].to_vec(),
                    length,
                    used: Some(vec![length]),
                    given: Some(vec![given]),
                    ..Rows::default()
                };
                let (at, n) = (start as i64, length as i64);
                let own_u = u_bl.narrow(0, row as i64, 1).narrow(1, at, n);
                let (own, own_counted) = loss(&model, &alone, 0.6, &own_u);
                let part =
                    |t: &Tensor, from: i64, n: i64| t.narrow(0, row as i64, 1).narrow(1, from, n);
                // What counts has a state of its own document before it.
                let first = lead.max(0);
                let here = part(&whole, at + first - lead, n - first);
                let scored = own_counted.narrow(1, first, n - first);
                assert_eq!(part(&counted, at + first, n - first), scored, "{words:?}");
                let off = ((here - &own) * &scored).abs().max().double_value(&[]);
                assert!(off < 1e-9, "{words:?}, row {row} from {start}: {off:e}");
                total += (own * &scored).sum(Kind::Double).double_value(&[]);
                start += length;
            }
            // Filling counts nowhere.
            let rest = LENGTH as i64 - start as i64;
            let filling = counted.narrow(0, row as i64, 1).narrow(1, start as i64, rest);
            assert_eq!(filling.any().int64_value(&[]), 0);
        }
        assert!(total > 1.0, "{words:?}: {total} nats are nothing");
    }
}

/// Rows of very different lengths.
fn rows(at: &Path) -> String {
    let line = |i: usize| {
        let answer = "We know ".repeat(1 + 5 * (i % 4));
        json!({"prompt": "Hi", "response": format!("{answer}{i}")}).to_string() + "\n"
    };
    let file = at.join("a.jsonl");
    std::fs::write(&file, (0..30).map(line).collect::<String>()).expect("written");
    file.display().to_string()
}

fn train(at: &Path, run: &str, more: &[&str]) -> Output {
    let file = format!("data.path={}", rows(at));
    let folder = golden().join("l_chat/llada").display().to_string();
    let (dir, tokenizer) =
        (format!("run.dir={run}"), format!("data.tokenizer_name_or_path={folder}"));
    let words = [
        "train",
        "data=sft",
        "backbone=llama",
        "model.length=96",
        "model.hidden_size=16",
        "model.n_blocks=1",
        "model.n_heads=2",
        "sampling.predictor=confidence",
        "sampling.num_sample_log=0",
        "loader.global_batch_size=4",
        "loader.eval_batch_size=4",
        "trainer.accelerator=cpu",
        "trainer.max_steps=8",
        "trainer.log_every_n_steps=1",
        "lr_scheduler.num_warmup_steps=0",
        "checkpointing.every_n_steps=4",
        &file,
        &dir,
        &tokenizer,
    ];
    maskdiff(at, &[&words, more].concat())
}

#[test]
fn runs_resume_bit_for_bit_and_ranks_share_a_batch() {
    if golden_case("l_chat").is_none() {
        return;
    }
    for (name, key) in [("packed", "data.pack=true"), ("grouped", "data.group_by_length=true")] {
        let place = tempfile::tempdir().expect("a folder");
        let at = place.path();
        let whole = train(at, "whole", &[key]);
        whole.expect(0);
        train(at, "halves", &[key, "trainer.max_steps=4"]).expect(0);
        train(at, "halves", &[key, "checkpointing.resume_from_ckpt=true"]).expect(0);
        same_end(&at.join("whole"), &at.join("halves"));
        // The same sequences, times and masks, cut to the same length, in micro-batches and on two ranks.
        train(at, "plain", &[]).expect(0);
        for (run, more) in [("micro", "loader.batch_size=1"), ("ranks", "--nproc=2")] {
            train(at, run, &[key, more]).expect(0);
            let (whole, parts) = (losses(&at.join("whole")), losses(&at.join(run)));
            for ((step, a), (_, b)) in whole.iter().zip(&parts) {
                assert!((a - b).abs() < 1e-4, "{name}, {run}, step {step}: {a} and {b}");
            }
        }
        assert_ne!(losses(&at.join("whole")), losses(&at.join("plain")), "{name}");
        // What a second's tokens are counted of: rows as long as the longest of their batch.
        let lengths = |run: &str| -> Vec<i64> {
            let [tokens, rows] =
                ["perf/tokens_per_s", "perf/samples_per_s"].map(|key| logged(&at.join(run), key));
            let each = tokens.iter().zip(&rows);
            each.map(|((_, tokens), (_, rows))| (tokens / rows).round() as i64).collect()
        };
        assert!(lengths("plain").iter().all(|length| *length == 96));
        let cut = lengths("whole").iter().filter(|length| **length < 96).count();
        assert_eq!(cut > 0, name == "grouped", "{name}: {:?}", lengths("whole"));
    }
}

#[test]
fn what_cannot_be_packed_or_grouped_is_refused_with_the_remedy() {
    if golden_case("l_chat").is_none() {
        return;
    }
    let place = tempfile::tempdir().expect("a folder");
    let at = place.path();
    let pack = "data.pack=true";
    for (more, said) in [
        (&["backbone=dimamba", "~model.n_heads"][..], "cannot stop where a row ends"),
        (&["model.shift=true"], "`model.shift` reads over the end of a row"),
        (&["data.group_by_length=true"], "leave one of them out"),
        (&["block_size=16"], "`block_size` is 16"),
    ] {
        train(at, "no", &[&[pack], more].concat()).expect(2).says(&["data.pack", said]);
    }
    maskdiff(at, &["train", "experiment=demo", pack])
        .expect(2)
        .says(&["`data.pack` means nothing", "`data=sft` has conversations"]);
}
