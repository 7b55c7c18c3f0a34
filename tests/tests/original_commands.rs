//! End to end: command lines of the original program. Each key of its configurations is taken with its meaning or refused with the
//! sentence that helps, its commands resolve to its settings, and its form has its defaults.

use std::fs;
use std::path::Path;

use maskdiff_config::{Form, Request, load};
use maskdiff_tests::run::{SMALL, command, finish, logged, maskdiff};
use serde_json::{Value, json};

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a folder")
}

/// What `maskdiff config WORDS` resolves to, and what it says.
#[track_caller]
fn resolved(at: &Path, words: &[&str]) -> (Value, String) {
    let out = maskdiff(at, &[&["config", "--format", "json"], words].concat());
    (serde_json::from_str(&out.expect(0).stdout).expect("JSON"), out.stderr)
}

/// The value of a dotted key.
fn at<'a>(config: &'a Value, key: &str) -> &'a Value {
    key.split('.').fold(config, |value, part| &value[part])
}

#[track_caller]
fn check(config: &Value, key: &str, expected: &Value, of: &str) {
    let found = at(config, key);
    let same = found == expected || found.as_f64().is_some_and(|f| expected.as_f64() == Some(f));
    assert!(same, "{of}: `{key}` is {found}, expected {expected}");
}

/// The value that a cell of a table in the docs says, where it says one and not a sentence.
fn said(cell: &str) -> Option<Value> {
    let cell = cell.trim();
    let word = match cell.strip_prefix('`') {
        Some(code) => return Some(json!(code.split('`').next()?)),
        None => cell.split([' ', ':', ';']).next()?.trim_end_matches(',').replace(',', ""),
    };
    serde_json::from_str(&word).ok()
}

/// The table of defaults that differ between the two forms is true.
#[test]
fn the_docs_tell_the_defaults_that_differ() {
    let docs = maskdiff_tests::root().join("docs/original.md");
    let docs = fs::read_to_string(docs).expect("the page");
    let (_, table) = docs.split_once("## Defaults that differ").expect("its table");
    let rows: Vec<&str> = table
        .split("\n## ")
        .next()
        .into_iter()
        .flat_map(str::lines)
        .filter(|l| l.starts_with("| `"))
        .collect();
    let of = |form| load(&Request { form, ..Request::default() }).expect("a configuration");
    let forms = [of(Form::Train), of(Form::Own)];
    let mut checked = 0;
    for row in rows {
        let cells: Vec<&str> = row.split('|').collect();
        let key = match cells[1].split('`').nth(1).expect("a key") {
            "data" => "data.train",
            "model" => "model.name",
            key => key,
        };
        for (config, cell) in forms.iter().zip(&cells[2..4]) {
            let Some(expected) = said(cell) else { continue };
            let found = config.layers.value(key).unwrap_or_default();
            let same = found == expected
                || found.as_f64().is_some_and(|f| expected.as_f64() == Some(f))
                // A corpus without its parts has two names.
                || found.as_str().zip(expected.as_str()).is_some_and(|(f, e)| f.starts_with(e));
            assert!(same, "{row}: `{key}` is {found}");
            checked += 1;
        }
    }
    assert!(checked >= 16, "{checked}");
}

/// Words of every key of its configurations that changes something, none with its default; which key of ours they set, and to what.
fn taken() -> Vec<(&'static str, &'static str, Value)> {
    // Long: one table.
    vec![
        ("diffusion=absorbing_state", "diffusion", json!("absorbing_state")),
        ("backbone=dimamba", "backbone", json!("dimamba")),
        ("parameterization=subs", "parameterization", json!("subs")),
        ("time_conditioning=True", "time_conditioning", json!(true)),
        ("T=1000", "T", json!(1000)),
        ("seed=7", "seed", json!(7)),
        ("loader.global_batch_size=64", "loader.global_batch_size", json!(64)),
        ("loader.eval_global_batch_size=24", "loader.eval_batch_size", json!(24)),
        ("loader.batch_size=16", "loader.batch_size", json!(16)),
        ("loader.num_workers=3", "loader.num_workers", json!(3)),
        ("sampling.predictor=ddpm", "sampling.predictor", json!("ddpm")),
        ("sampling.steps=1_000", "sampling.steps", json!(1000)),
        ("sampling.noise_removal=False", "sampling.noise_removal", json!(false)),
        ("sampling.num_sample_batches=3", "sampling.num_sample_batches", json!(3)),
        ("sampling.num_sample_log=4", "sampling.num_sample_log", json!(4)),
        ("sampling.semi_ar=True", "sampling.semi_ar", json!(true)),
        ("sampling.stride_length=8", "sampling.stride_length", json!(8)),
        ("sampling.num_strides=2", "sampling.num_strides", json!(2)),
        ("training.ema=0.5", "training.ema", json!(0.5)),
        ("training.antithetic_sampling=False", "training.antithetic_sampling", json!(false)),
        ("training.importance_sampling=True", "training.importance_sampling", json!(true)),
        ("training.sampling_eps=1e-4", "training.sampling_eps", json!(1e-4)),
        ("training.change_of_variables=False", "training.change_of_variables", json!(false)),
        ("eval.disable_ema=True", "eval.disable_ema", json!(true)),
        (
            "eval.compute_generative_perplexity=True",
            "eval.compute_generative_perplexity",
            json!(true),
        ),
        ("eval.perplexity_batch_size=2", "eval.perplexity_batch_size", json!(2)),
        (
            "eval.gen_ppl_eval_model_name_or_path=gpt2",
            "eval.gen_ppl_eval_model_name_or_path",
            json!("gpt2"),
        ),
        ("optim.weight_decay=0.1", "optim.weight_decay", json!(0.1)),
        ("optim.lr=1e-3", "optim.lr", json!(1e-3)),
        ("optim.beta1=0.8", "optim.beta1", json!(0.8)),
        ("optim.beta2=0.99", "optim.beta2", json!(0.99)),
        ("optim.eps=1e-6", "optim.eps", json!(1e-6)),
        ("trainer.accelerator=cpu", "trainer.accelerator", json!("cpu")),
        ("trainer.accumulate_grad_batches=4", "trainer.accumulate_grad_batches", json!(4)),
        ("trainer.gradient_clip_val=0.5", "trainer.gradient_clip_val", json!(0.5)),
        ("trainer.precision='32'", "trainer.precision", json!("32")),
        ("trainer.num_sanity_val_steps=1", "trainer.num_sanity_val_steps", json!(1)),
        ("trainer.max_steps=1_000", "trainer.max_steps", json!(1000)),
        ("trainer.log_every_n_steps=5", "trainer.log_every_n_steps", json!(5)),
        ("trainer.limit_train_batches=0.5", "trainer.limit_train_batches", json!(0.5)),
        ("trainer.limit_val_batches=2", "trainer.limit_val_batches", json!(2)),
        ("trainer.val_check_interval=50", "trainer.val_check_interval", json!(50)),
        ("wandb.project=mine", "wandb.project", json!("mine")),
        ("wandb.notes=x", "wandb.notes", json!("x")),
        ("wandb.group=g", "wandb.group", json!("g")),
        ("wandb.job_type=j", "wandb.job_type", json!("j")),
        ("wandb.name=n", "wandb.name", json!("n")),
        ("wandb.id=i", "wandb.id", json!("i")),
        ("wandb.tags=[a,b]", "wandb.tags", json!(["a", "b"])),
        ("+wandb.offline=true", "wandb.offline", json!(true)),
        ("hydra.run.dir=./r", "run.dir", json!("./r")),
        ("checkpointing.save_dir=/s", "checkpointing.save_dir", json!("/s/checkpoints")),
        ("checkpointing.resume_from_ckpt=False", "checkpointing.resume_from_ckpt", json!(false)),
        (
            "callbacks.checkpoint_every_n_steps.every_n_train_steps=70",
            "checkpointing.every_n_steps",
            json!(70),
        ),
        (
            "callbacks.checkpoint_every_n_steps.save_top_k=-1",
            "checkpointing.keep_last",
            json!(1_000_000_000),
        ),
        (
            "callbacks.checkpoint_monitor.monitor=val/nll",
            "checkpointing.monitor",
            json!("val/nelbo"),
        ),
        ("callbacks.checkpoint_monitor.mode=max", "checkpointing.mode", json!("max")),
        ("data.train=ptb", "data.train", json!("ptb")),
        ("data.valid=ptb", "data.valid", json!("ptb")),
        ("data.tokenizer_name_or_path=gpt2", "data.tokenizer_name_or_path", json!("gpt2")),
        ("data.cache_dir=/c", "data.cache_dir", json!("/c")),
        ("data.wrap=False", "data.wrap", json!(false)),
        ("data.streaming=False", "data.streaming", json!(false)),
        ("model.name=m", "model.name", json!("m")),
        ("model.hidden_size=64", "model.hidden_size", json!(64)),
        ("model.cond_dim=32", "model.cond_dim", json!(32)),
        ("model.length=128", "model.length", json!(128)),
        ("model.n_blocks=2", "model.n_blocks", json!(2)),
        ("model.temb_strategy=add", "model.temb_strategy", json!("add")),
        ("model.tie_word_embeddings=True", "model.tie_word_embeddings", json!(true)),
        ("noise=linear", "noise.type", json!("linear")),
        ("noise.sigma_min=2e-3", "noise.sigma_min", json!(2e-3)),
        ("noise.sigma_max=6.0", "noise.sigma_max", json!(6.0)),
        ("lr_scheduler=cosine_decay_warmup", "lr_scheduler.name", json!("cosine_decay_warmup")),
        ("lr_scheduler.t_initial=900", "lr_scheduler.t_initial", json!(900)),
        ("lr_scheduler.warmup_t=90", "lr_scheduler.num_warmup_steps", json!(90)),
        ("lr_scheduler.warmup_lr_init=1e-5", "lr_scheduler.warmup_lr_init", json!(1e-5)),
        ("lr_scheduler.lr_min=1e-7", "lr_scheduler.lr_min", json!(1e-7)),
        ("strategy=ddp", "trainer.strategy", json!("ddp")),
    ]
}

/// Words of keys that change nothing, and what is said of them.
const UNCHANGED: &[(&str, &str)] = &[
    ("loader.pin_memory=True", "copied to a GPU"),
    ("eval.compute_perplexity_on_sanity=False", "changes nothing"),
    ("callbacks.checkpoint_every_n_steps.save_last=True", "always names the newest"),
    ("callbacks.checkpoint_every_n_steps.verbose=True", "changes nothing"),
    ("callbacks.checkpoint_every_n_steps.auto_insert_metric_name=False", "changes nothing"),
    ("callbacks.checkpoint_monitor.save_top_k=1", "one best checkpoint"),
    ("callbacks.checkpoint_monitor.save_last=False", "a name of its own"),
    ("callbacks.checkpoint_monitor.filename=best", "`checkpoints/best`"),
    ("callbacks.learning_rate_monitor.logging_interval=step", "every line of metrics"),
    ("hydra.job.chdir=true", "relative paths start"),
    ("strategy.find_unused_parameters=false", "changes nothing"),
    ("trainer._target_=lightning.Trainer", "changes nothing"),
    ("lr_scheduler.t_in_epochs=False", "count steps"),
    ("lr_scheduler.warmup_prefix=True", "behind the warm-up"),
    ("model.type=dimamba", "`backbone` chooses"),
    ("model.scale_by_sigma=True", "do not use it"),
    ("model.causal=True", "`backbone` chooses"),
    ("model.n_heads=8", "`backbone=dimamba` does not read it"),
    ("model.dropout=0.1", "`backbone=dimamba` does not read it"),
];

/// The same of words that are said without a note.
const SILENT: &[&str] = &[
    "eval.checkpoint_path=",
    "eval.generate_samples=True",
    "trainer.devices=1",
    "trainer.num_nodes=1",
    "lr_scheduler._target_=utils.CosineDecayWarmupLRScheduler",
    "strategy._target_=lightning.pytorch.strategies.DDPStrategy",
];

/// Words that cannot be followed, and what is said instead.
const REFUSED: &[(&str, &str)] = &[
    ("subs_masking=True", "`d3pm`"),
    ("noise=ar", "has no schedule for this file either"),
    ("noise.type=polynomial", "has no schedule of this name either"),
    ("noise.scale=6.0", "belongs to `noise=ar`"),
    ("noise.a=-3", "belongs to `noise=polynomial`"),
    ("noise.b=5", "belongs to `noise=polynomial`"),
    ("noise.c=-4", "belongs to `noise=polynomial`"),
    ("strategy=fsdp", "`trainer.strategy=shard`"),
    ("strategy.sharding_strategy=SHARD_GRAD_OP", "`trainer.strategy=zero1`"),
    ("callbacks=null", "`checkpointing.every_n_steps=0`"),
    ("callbacks.checkpoint_monitor._target_=x.Y", "no callbacks here"),
    ("model._target_=x.Y", "components are plugins"),
    ("lr_scheduler.t_in_epochs=True", "count steps"),
    ("eval.compute_perplexity_on_sanity=True", "`val/gen_ppl`"),
    ("hydra.job.name=x", "`maskdiff sweep`"),
    ("wandb=x", "`wandb.project=NAME`"),
];

#[test]
fn every_key_of_its_configurations_is_taken_or_refused_with_what_helps() {
    let here = folder();
    let taken = taken();
    let mut words = vec!["mode=train", "eval.generate_samples=True"];
    words.extend(taken.iter().map(|(word, _, _)| *word));
    words.extend(UNCHANGED.iter().map(|(word, _)| *word));
    words.extend(SILENT);
    let (config, said) = resolved(here.path(), &words);
    for (word, key, expected) in &taken {
        check(&config, key, expected, word);
    }
    for (word, phrase) in UNCHANGED {
        let line = said.lines().find(|line| line.to_lowercase().contains(&word.to_lowercase()));
        assert!(line.is_some_and(|line| line.contains(phrase)), "{word}: {said}");
    }
    for word in SILENT {
        assert!(!said.contains(word), "{word}: {said}");
    }
    // By other names of the same.
    let words = ["mode=train", "eval.generate_samples=False", "loader.eval_batch_size=5", "~wandb"];
    let (config, _) =
        resolved(here.path(), &[&words[..], &["loader.eval_global_batch_size=9"]].concat());
    check(&config, "sampling.num_sample_log", &json!(0), "eval.generate_samples=False");
    check(&config, "loader.eval_batch_size", &json!(5), "its own name wins");
    assert!(at(&config, "wandb.project").is_null(), "~wandb");
    let path = here.path();
    std::thread::scope(|scope| {
        for part in REFUSED.chunks(REFUSED.len() / 2) {
            scope.spawn(move || {
                for (word, phrase) in part {
                    let out = maskdiff(path, &["config", "mode=train", word]);
                    let named = word.split('=').next().expect("a key");
                    out.expect(2).says(&[phrase, named]);
                }
            });
        }
    });
}

/// What the original resolves to with no word, in our keys.
fn defaults() -> Value {
    json!({
        "diffusion": "absorbing_state", "backbone": "dit", "parameterization": "subs", "time_conditioning": false, "seed": 1,
        "loader": {"global_batch_size": 512, "eval_batch_size": 512},
        "sampling": {
            "predictor": "ddpm_cache", "steps": 128, "noise_removal": true, "num_sample_batches": 2, "num_sample_log": 2,
            "semi_ar": false, "stride_length": 1, "num_strides": 1,
        },
        "training": {"ema": 0.9999, "antithetic_sampling": true},
        "eval": {
            "disable_ema": false, "compute_generative_perplexity": false, "perplexity_batch_size": 8,
            "gen_ppl_eval_model_name_or_path": "gpt2-large",
        },
        "optim": {"weight_decay": 0, "lr": 3e-4, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8},
        "trainer": {
            "gradient_clip_val": 1.0, "precision": "bf16", "num_sanity_val_steps": 2, "max_steps": 1_000_000,
            "log_every_n_steps": 10, "limit_train_batches": 1.0, "limit_val_batches": 1.0, "val_check_interval": 10_000,
        },
        "wandb": {"project": "text-diffusion", "tags": ["loglinear", "openwebtext", "wikitext103"]},
        "checkpointing": {"resume_from_ckpt": true, "every_n_steps": 500},
        "lr_scheduler": {"name": "constant_warmup", "num_warmup_steps": 2500},
        "model": {
            "length": 1024, "hidden_size": 768, "cond_dim": 128, "n_blocks": 12, "n_heads": 12, "dropout": 0.1,
        },
        "noise": {"type": "loglinear"},
        "data": {
            "train": "openwebtext", "valid": "wikitext103", "tokenizer_name_or_path": "gpt2", "wrap": true, "streaming": false,
        },
    })
}

fn merge(into: &mut Value, more: &Value) {
    match (into, more) {
        (Value::Object(into), Value::Object(more)) => {
            for (key, value) in more {
                merge(into.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (into, more) => *into = more.clone(),
    }
}

/// Every leaf; null stands for a key that the command's network does not have.
fn leaves(value: &Value, key: &str, found: &mut Vec<(String, Value)>) {
    match value {
        Value::Object(inner) => {
            for (name, value) in inner {
                let key = if key.is_empty() { name.clone() } else { format!("{key}.{name}") };
                leaves(value, &key, found);
            }
        }
        leaf => found.push((key.to_string(), leaf.clone())),
    }
}

/// The commands of its README and of its scripts, each with what differs from the defaults.
fn commands() -> Vec<(&'static str, Value)> {
    // Long: one table.
    let split = json!({"train": "openwebtext-train", "valid": "openwebtext-valid"});
    let tags = json!(["loglinear", "openwebtext-train", "openwebtext-valid"]);
    let lm1b = json!({"train": "lm1b", "valid": "lm1b", "tokenizer_name_or_path": "bert-base-uncased", "wrap": false});
    let lm1b_tags = json!(["loglinear", "lm1b", "lm1b"]);
    let sixteen = json!({"batch_size": 16, "eval_batch_size": 16});
    let scored = json!({"compute_generative_perplexity": true});
    let offline = json!({"offline": true, "tags": tags});
    let ar = json!({"predictor": "ar"});
    vec![
        (
            "loader.batch_size=16 loader.eval_batch_size=16 model=small data=openwebtext-split wandb.name=mdlm-owt \
             parameterization=subs model.length=1024 eval.compute_generative_perplexity=True sampling.steps=1000",
            json!({
                "loader": sixteen, "data": split, "eval": scored, "sampling": {"steps": 1000},
                "wandb": {"name": "mdlm-owt", "tags": tags},
            }),
        ),
        (
            "loader.batch_size=16 loader.eval_batch_size=16 model=small data=openwebtext-split wandb.name=sedd-owt \
             parameterization=sedd model.length=1024 eval.compute_generative_perplexity=True sampling.steps=1000 \
             sampling.predictor=analytic time_conditioning=True",
            json!({
                "parameterization": "sedd", "time_conditioning": true, "loader": sixteen, "data": split, "eval": scored,
                "sampling": {"steps": 1000, "predictor": "analytic"}, "wandb": {"name": "sedd-owt", "tags": tags},
            }),
        ),
        (
            "loader.batch_size=16 loader.eval_batch_size=16 model=small-ar backbone=ar data=lm1b wandb.name=ar-lm1b \
             parameterization=ar model.length=128 eval.compute_generative_perplexity=True sampling.steps=1000 \
             time_conditioning=True",
            // Its network sees no noise level, and its sampler has no steps.
            json!({
                "parameterization": "ar", "backbone": "ar", "loader": sixteen, "data": lm1b, "eval": scored,
                "model": {"length": 128, "cond_dim": null}, "sampling": {"predictor": "ar", "steps": null, "noise_removal": null},
                "wandb": {"name": "ar-lm1b", "tags": lm1b_tags},
            }),
        ),
        (
            "loader.batch_size=16 loader.eval_batch_size=16 model=small data=lm1b wandb.name=d3pm-lm1b parameterization=d3pm \
             model.length=128 eval.compute_generative_perplexity=True sampling.steps=1000 sampling.predictor=ddpm \
             time_conditioning=True T=1000",
            json!({
                "parameterization": "d3pm", "T": 1000, "time_conditioning": true, "loader": sixteen, "data": lm1b, "eval": scored,
                "model": {"length": 128}, "sampling": {"predictor": "ddpm", "steps": 1000},
                "wandb": {"name": "d3pm-lm1b", "tags": lm1b_tags},
            }),
        ),
        (
            "model=small data=openwebtext-split wandb.name=mdlm-owt parameterization=subs model.length=1024 \
             eval.compute_generative_perplexity=True sampling.steps=1000",
            json!({
                "data": split, "eval": scored, "sampling": {"steps": 1000}, "wandb": {"name": "mdlm-owt", "tags": tags},
            }),
        ),
        (
            "mode=ppl_eval loader.batch_size=16 loader.eval_batch_size=16 data=openwebtext-split model=small parameterization=subs \
             backbone=dit model.length=1024 T=1000 +wandb.offline=true",
            json!({"loader": sixteen, "data": split, "T": 1000, "wandb": offline}),
        ),
        (
            "mode=ppl_eval loader.batch_size=16 loader.eval_batch_size=16 data=openwebtext-split model=small-ar parameterization=ar \
             backbone=ar model.length=1024 +wandb.offline=true",
            json!({
                "parameterization": "ar", "backbone": "ar", "loader": sixteen, "data": split, "wandb": offline,
                "model": {"cond_dim": null}, "sampling": {"predictor": ar["predictor"], "steps": null, "noise_removal": null},
            }),
        ),
        (
            "mode=ppl_eval loader.batch_size=16 loader.eval_batch_size=16 data=openwebtext-split model=small parameterization=sedd \
             backbone=dit model.length=1024 time_conditioning=True +wandb.offline=true",
            // There the sampler would be one for another method; nothing is sampled.
            json!({
                "parameterization": "sedd", "time_conditioning": true, "loader": sixteen, "data": split, "wandb": offline,
                "sampling": {"predictor": "analytic"},
            }),
        ),
        (
            "mode=sample_eval data=openwebtext-split model.length=1024 sampling.predictor=ddpm_cache sampling.steps=1000 \
             loader.eval_batch_size=1 sampling.num_sample_batches=10 backbone=hf_dit",
            json!({
                "backbone": "hf_dit", "data": split, "eval": scored, "loader": {"eval_batch_size": 1},
                "sampling": {"steps": 1000, "num_sample_batches": 10}, "wandb": {"tags": tags},
            }),
        ),
        (
            "mode=sample_eval data=openwebtext-split model.length=1024 sampling.predictor=ddpm_cache sampling.steps=10000 \
             loader.eval_batch_size=1 sampling.num_sample_batches=1 backbone=dit",
            json!({
                "data": split, "eval": scored, "loader": {"eval_batch_size": 1},
                "sampling": {"steps": 10_000, "num_sample_batches": 1}, "wandb": {"tags": tags},
            }),
        ),
        (
            "mode=sample_eval data=openwebtext-split parameterization=subs model.length=1024 sampling.predictor=ddpm_cache \
             sampling.steps=1000 loader.eval_batch_size=1 sampling.num_sample_batches=2 sampling.semi_ar=True \
             sampling.stride_length=512 sampling.num_strides=2 backbone=dit",
            // Windows are not scored.
            json!({
                "data": split, "loader": {"eval_batch_size": 1}, "wandb": {"tags": tags},
                "sampling": {"steps": 1000, "semi_ar": true, "stride_length": 512, "num_strides": 2},
            }),
        ),
    ]
}

#[test]
fn its_commands_resolve_to_its_settings() {
    let here = folder();
    for (line, differs) in std::iter::once(("mode=train", json!({}))).chain(commands()) {
        let mut words: Vec<&str> = line.split_whitespace().collect();
        if !line.starts_with("mode=") {
            words.insert(0, "mode=train");
        }
        let (config, _) = resolved(here.path(), &words);
        let mut expected = defaults();
        merge(&mut expected, &differs);
        let mut found = Vec::new();
        leaves(&expected, "", &mut found);
        assert!(found.len() > 50);
        for (key, value) in found {
            check(&config, &key, &value, line);
        }
    }
    let text = maskdiff(here.path(), &["config", "mode=train", "--format", "text"]);
    let text = &text.expect(0).stdout;
    assert!(text.contains("What differs from the original program by intent"), "{text}");
    assert!(text.contains("global_batch_size = 512 # configs/compat/original.toml"), "{text}");
    // Our own commands keep our own.
    let (own, _) = resolved(here.path(), &[]);
    check(&own, "loader.global_batch_size", &json!(32), "maskdiff config");
    assert!(at(&own, "wandb.project").is_null());
}

/// What its checkpoints of the baseline store is no hindrance.
#[test]
fn what_an_ar_checkpoint_stores_beside_its_method_is_left_out() {
    let text = "backbone = 'ar'\nparameterization = 'ar'\ntime_conditioning = true\n[model]\ncond_dim = 128\n\
        [sampling]\npredictor = 'ddpm_cache'\nsteps = 1000\n[training]\nsampling_eps = 1e-3\n";
    for form in [Form::Own, Form::Evaluate, Form::Sample] {
        let stored = Some(("last.ckpt".to_string(), text.to_string()));
        let request = Request { stored, foreign: true, form, ..Request::default() };
        let config = load(&request).expect("a configuration");
        assert_eq!(config.sampling.predictor, "ar");
        assert!(!config.top.time_conditioning, "{form:?}");
    }
}

const TINY: &[&str] = &[
    "data=stories",
    "model=nano",
    "model.hidden_size=32",
    "model.n_blocks=1",
    "model.n_heads=2",
    "data.valid_blocks=8",
    "loader.global_batch_size=8",
    "loader.eval_batch_size=4",
    "trainer.max_steps=4",
    "trainer.log_every_n_steps=1",
    "trainer.accelerator=cpu",
    "sampling.num_sample_log=1",
];

/// The baseline is trained with every word of its script, measured and sampled with no further word, and judges another run, which logs
/// its generative perplexity and goes on when it is started again.
#[test]
fn runs_in_its_form_are_trained_scored_measured_and_sampled() {
    // Long: one story, each step works on what the one before left.
    let here = folder();
    let at = here.path();
    // A judge's texts end, so its tokenizer has a token for that.
    let text = "a cat sat on a mat and a dog ran to it ".repeat(60);
    fs::write(at.join("text.txt"), text).expect("written");
    let ar = [
        "run.dir=ar",
        "data=text",
        "data.path=text.txt",
        "data.tokenizer_name_or_path=text8",
        "backbone=ar",
        "parameterization=ar",
        "sampling.steps=1000",
        "time_conditioning=True",
        "sampling.predictor=ddpm_cache",
        "eval.compute_generative_perplexity=True",
        "wandb.name=ar",
    ];
    let out = maskdiff(at, &[TINY, &ar].concat());
    out.expect(0).says(&[
        "`time_conditioning=True` changes nothing",
        "W&B: logging into the run folder alone",
    ]);
    assert!(fs::read_dir(at.join("ar/wandb")).expect("wandb").next().is_some());
    let path = "eval.checkpoint_path=ar";
    let steps = "sampling.steps=1000";
    let some = ["trainer.limit_val_batches=1", "loader.eval_batch_size=3"];
    let out = maskdiff(at, &[&["mode=ppl_eval", path, steps], &some[..]].concat());
    assert_eq!(out.expect(0).lines()[0]["val/sequences"], 3);
    let words = ["loader.eval_batch_size=2", "eval.compute_generative_perplexity=False"];
    let out = maskdiff(at, &[&["mode=sample_eval", path, steps], &words[..]].concat());
    assert_eq!(out.expect(0).lines().len(), 4, "two batches");

    let judge = "eval.gen_ppl_eval_model_name_or_path=ar";
    let base = [
        "mode=train",
        "run.dir=run",
        "model.cond_dim=16",
        "sampling.steps=4",
        "trainer.val_check_interval=2",
        "eval.compute_generative_perplexity=True",
        "eval.perplexity_batch_size=4",
    ];
    let nobody = "eval.gen_ppl_eval_model_name_or_path=nowhere/at/all";
    // Of several machines, each process must have been started.
    maskdiff(at, &[TINY, &["trainer.num_nodes=2"]].concat()).expect(2).says(&["were started"]);
    maskdiff(at, &[TINY, &base, &[nobody]].concat()).expect(2).says(&["nowhere/at/all"]);
    assert!(!at.join("run").exists(), "a judge that is not there is missed before the run begins");
    maskdiff(at, &[TINY, &base, &[judge]].concat()).expect(0);
    let scores = logged(&at.join("run"), "val/gen_ppl");
    assert_eq!(scores.iter().map(|score| score.0).collect::<Vec<_>>(), [2, 4]);
    assert!(scores.iter().all(|score| score.1.is_finite() && score.1 > 1.0), "{scores:?}");
    // Given again, it goes on.
    maskdiff(at, &[TINY, &base, &[judge]].concat()).expect(0).says(&["the run is complete"]);
    // What `mode=sample_eval` draws is scored, of a judge that is not there the word is named that does without.
    let path = "eval.checkpoint_path=run";
    let words = ["mode=sample_eval", path, "loader.eval_batch_size=4", "sampling.steps=2"];
    let more = ["eval.perplexity_batch_size=4", judge];
    let lines = maskdiff(at, &[&words[..], &more].concat()).expect(0).lines();
    assert_eq!(lines.len(), 9);
    assert!(lines[8]["gen/ppl"].as_f64().is_some_and(f64::is_finite), "{}", lines[8]);
    let out = maskdiff(at, &[&words[..], &[nobody]].concat());
    out.expect(2).says(&["`eval.compute_generative_perplexity=false` leaves that out"]);
    // The configuration that such a command runs with: what the checkpoint stores, and loader, sampling and eval of the form.
    let (config, _) = resolved(at, &["mode=sample_eval", path]);
    for (key, value) in [
        ("model.hidden_size", json!(32)),
        ("data.train", json!("stories")),
        ("loader.global_batch_size", json!(512)),
        ("sampling.steps", json!(128)),
        ("eval.compute_generative_perplexity", json!(true)),
    ] {
        check(&config, key, &value, "mode=sample_eval");
    }
    // In our own form, a name alone is told to log nothing.
    let own = ["train", "run.dir=own", "model.cond_dim=16", "wandb.name=x", "trainer.max_steps=1"];
    let said = "`wandb.name` is set and nothing is logged";
    maskdiff(at, &[&own[..], &TINY[..8], &["trainer.accelerator=cpu"]].concat())
        .expect(0)
        .says(&[said]);
}

/// Words with keys in them are read as there; W&B that is taken out stays out, whatever the environment says.
#[test]
fn words_with_keys_in_them_and_words_that_take_out() {
    let folder = folder();
    let words = [
        "mode=train",
        "trainer.max_steps=${trainer.val_check_interval}",
        "wandb.name=s${seed}-${data.train}",
    ];
    let (config, _) = resolved(folder.path(), &words);
    assert_eq!(at(&config, "trainer.max_steps"), at(&config, "trainer.val_check_interval"));
    assert_eq!(at(&config, "wandb.name"), "s1-openwebtext");
    let run = |dir: &str, more: &[&str]| {
        let words = [&["train", dir, "trainer.max_steps=1"], &SMALL[1..], more].concat();
        let mut command = command(folder.path(), &words);
        finish(command.env("WANDB_PROJECT", "named").env("WANDB_MODE", "offline")).expect(0);
    };
    run("run.dir=with", &[]);
    run("run.dir=without", &["~wandb"]);
    assert!(folder.path().join("with/wandb").is_dir());
    assert!(!folder.path().join("without/wandb").exists());
    for word in
        ["checkpointing.monitor=val/gen_ppl", "callbacks.checkpoint_monitor.monitor=val/gen_ppl"]
    {
        let out = maskdiff(folder.path(), &["config", "mode=train", word]);
        out.expect(2).says(&["`checkpointing.monitor` is `val/nelbo`", "got `val/gen_ppl`"]);
    }
}
