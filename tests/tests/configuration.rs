//! End to end: where values come from. Words mean the same everywhere, texts stay texts, and no word is ignored.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use maskdiff_config::range::Range;
use maskdiff_config::shape::{Field, Of, Shape};
use maskdiff_config::{Request, groups, load};
use maskdiff_engine::{assemble, choose};
use maskdiff_tests::run::{Output, SMALL, command, finish, maskdiff, train};
use maskdiff_tests::{registry, root, target};
use serde_json::{Value, json};

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a folder")
}

/// `maskdiff WORDS` with variables of the environment.
fn with(at: &Path, variables: &[(&str, &str)], words: &[&str]) -> Output {
    finish(command(at, words).envs(variables.iter().copied()))
}

/// The resolved configuration.
#[track_caller]
fn resolved(at: &Path, variables: &[(&str, &str)], words: &[&str]) -> Value {
    let out = with(at, variables, &[&["config", "--format", "json"], words].concat());
    serde_json::from_str(&out.expect(0).stdout).expect("JSON")
}

#[test]
fn a_word_means_the_same_in_the_environment_and_on_the_command_line() {
    let at = folder();
    // The example of the README and of `--help`, and its neighbours.
    let variables = [
        ("MASKDIFF_OPTIM__LR", "1e-3"),
        ("MASKDIFF_OPTIM__EPS", ".5"),
        ("MASKDIFF_SEED", "9"),
        ("MASKDIFF_TRAINER__MAX_STEPS", "1e3"),
        ("MASKDIFF_MODEL", "tiny"),
        ("MASKDIFF_MODEL__LENGTH", "1_28"),
        ("MASKDIFF_PARAMETERIZATION", "d3pm"),
        ("MASKDIFF_T", "1_000"),
        ("MASKDIFF_WANDB__NAME", "12345"),
        ("MASKDIFF_WANDB__TAGS", "[a,1e-4]"),
    ];
    let words = [
        "optim.lr=.001",
        "optim.eps=5E-1",
        "seed=+9",
        "trainer.max_steps=1000.",
        "model=tiny",
        "model.length=128",
        "parameterization=d3pm",
        "T=1000",
        "wandb.name=12345",
        "wandb.tags=[a, \"1e-4\"]",
    ];
    let (one, other) = (resolved(at.path(), &variables, &[]), resolved(at.path(), &[], &words));
    assert_eq!(one, other);
    assert_eq!(
        (&one["optim"]["lr"], &one["seed"], &one["T"]),
        (&json!(0.001), &json!(9), &json!(1000))
    );
    assert_eq!((&one["wandb"]["name"], &one["model"]["name"]), (&json!("12345"), &json!("tiny")));
    // The command line wins, and what the program reads itself is no key.
    let variables = [
        ("MASKDIFF_SEED", "9"),
        ("MASKDIFF_MODEL", "tiny"),
        ("MASKDIFF_LOG", "error"),
        ("MASKDIFF_RUN", "x"),
    ];
    let both = resolved(at.path(), &variables, &["seed=3", "model=nano"]);
    assert_eq!((&both["seed"], &both["model"]["name"]), (&json!(3), &json!("nano")));
}

#[test]
fn a_text_is_taken_letter_by_letter_and_null_unsets_it() {
    let at = folder();
    let words =
        ["run.dir=2024-11-29", "wandb.offline=true", "wandb.name={task}", "wandb.group=true"];
    let small = ["trainer.max_steps=1", "sampling.num_sample_log=0", "data.valid_blocks=8"];
    train(at.path(), &[&words[..], &small].concat()).expect(0);
    let stored =
        fs::read_to_string(at.path().join("2024-11-29/config.toml")).expect("its configuration");
    for line in ["name = \"{task}\"", "group = \"true\"", "dir = \"2024-11-29\""] {
        assert!(stored.contains(line), "{line}: {stored}");
    }
    let unset =
        resolved(at.path(), &[("MASKDIFF_WANDB__NAME", "x")], &["wandb.name=null", "run.dir=None"]);
    assert_eq!((&unset["wandb"]["name"], &unset["run"]["dir"]), (&Value::Null, &Value::Null));
    // Hydra's sign takes out what was said before, down to what holds when nothing is said.
    let words = [
        "experiment=demo",
        "optim.lr=1",
        "~optim.lr",
        "~trainer.max_steps=2000",
        "~sampling.steps",
    ];
    let taken = resolved(at.path(), &[("MASKDIFF_OPTIM__LR", "2")], &words);
    assert_eq!(
        (&taken["optim"]["lr"], &taken["trainer"]["max_steps"]),
        (&json!(3e-4), &json!(1_000_000))
    );
    assert_eq!(taken["sampling"].get("steps"), None);
}

#[test]
fn a_leading_tilde_is_the_home_folder_everywhere() {
    let at = folder();
    let home = at.path().join("home");
    fs::create_dir(&home).expect("a home");
    fs::write(home.join("own.toml"), "[data]\ncache_dir = '~/blocks'\n").expect("a file");
    let variables =
        [("HOME", home.to_str().expect("UTF-8")), ("MASKDIFF_CHECKPOINTING__SAVE_DIR", "~/saved")];
    let small = ["trainer.max_steps=1", "sampling.num_sample_log=0", "data.valid_blocks=8"];
    let words = [&["train", "--config=~/own.toml", "run.dir=~/runs/x"], SMALL, &small].concat();
    let mut run = command(at.path(), &words);
    run.env_remove("MASKDIFF_DATA__CACHE_DIR");
    finish(run.envs(variables)).expect(0);
    assert!(home.join("runs/x/metrics.jsonl").is_file() && home.join("saved/last").exists());
    let stored = fs::read_to_string(home.join("runs/x/config.toml")).expect("its configuration");
    assert!(stored.contains(&format!("cache_dir = \"{}/blocks\"", home.display())), "{stored}");
    with(at.path(), &variables, &["report", "~/runs/x", "--output=~/page.html"]).expect(0);
    assert!(home.join("page.html").is_file());
    let said = with(
        at.path(),
        &variables,
        &["launch", "slurm", "--dry-run", "--", "train", "run.dir=~/j"],
    );
    said.expect(0);
    assert!(said.stdout.contains(&format!("run.dir={}/j", home.display())), "{}", said.stdout);
    with(at.path(), &variables, &["config", "run.dir=~nobody-here/x"])
        .expect(2)
        .says(&["no user `nobody-here`"]);
    assert!(!at.path().join("~").exists());
    // Behind a colon no shell replaces it.
    for name in ["plug", "none"] {
        fs::create_dir(home.join(name)).expect("a folder");
    }
    let from = target().join("libfixture_flat_plugin.so");
    fs::copy(from, home.join("plug/libmaskdiff_flat.so")).expect("copied");
    let listed = |folders: &str| {
        let variables = [("HOME", variables[0].1), ("MASKDIFF_PLUGIN_PATH", folders)];
        with(at.path(), &variables, &["plugins", "list"]).expect(0).stdout.clone()
    };
    let (whole, short) = (format!("{0}/none:{0}/plug", home.display()), "~/none:~/plug");
    assert!(listed(&whole).contains("flat") && listed(&whole) == listed(short));
}

#[test]
fn no_word_is_ignored() {
    let at = folder();
    let long = format!("wandb.tags=[{}]", "x".repeat(80));
    let cases: &[(&[&str], &[&str])] = &[
        (
            &["eval.checkpoint_path=x"],
            &["is not used by `maskdiff train`", "resume_ckpt_path=PATH"],
        ),
        (
            &["eval.likelihood=duel"],
            &["`eval.likelihood` is not used by `maskdiff train`", "maskdiff eval --checkpoint"],
        ),
        (&["optim_lr=1e-3"], &["unknown key `optim_lr`", "did you mean `optim.lr`?"]),
        (&["parameterization=udlm", "T=1000"], &["`T` must be 0, got 1000"]),
        (&["training.from=~/none.ckpt"], &["none.ckpt` does not exist"]),
        (&["data.column=body"], &["`data.column` means nothing to the data `stories`"]),
        (
            &["data=text", "data.path=x", "data.repo=a/b"],
            &["`data.repo` means nothing to the data `text`"],
        ),
        (&["~optim.lrr"], &["unsets what nothing sets", "`optim.lr`"]),
        (&["~optim.lr=5", "optim.lr=1"], &["unsets another value"]),
        (&["~model"], &["choose another one: `model=NAME`"]),
        (&["optim.lr=1", "optim.lr.x=1"], &["`optim.lr.x` does not go with `optim.lr`"]),
        (&["run.dir="], &["`run.dir` is empty", "`run.dir=null` unsets it"]),
        (&["plugins.paths=[\"\"]"], &["`plugins.paths` has an empty text"]),
        (&["wandb.offline=true", &long], &["W&B takes no tag of more than 64 characters"]),
        (&["wandb.project=me/mine"], &["W&B takes no project with"]),
        (&["samplng.steps=4"], &["unknown key `samplng.steps`", "did you mean `sampling.steps`?"]),
        (&["lr=1e-3"], &["unknown key `lr`", "did you mean `optim.lr`?"]),
        (&["num_samples=5"], &["did you mean `sampling.num_samples`?"]),
        (&["steps=5"], &["did you mean `sampling.steps`?"]),
        (
            &["trainer.on_nan=skipp"],
            &["`stop`, `skip` or `rollback`", "did you mean `trainer.on_nan=skip`?"],
        ),
        (&["process=x"], &["`process` is a group", "`diffusion=x`"]),
        (&["noise=cosin"], &["there is no noise `cosin`", "did you mean `cosine`?"]),
        (&["model=dit"], &["a network is chosen by `backbone=dit`"]),
    ];
    for (words, phrases) in cases {
        let out = train(at.path(), words);
        assert!([2, 3].contains(&out.code), "{words:?}: {} {}", out.code, out.stderr);
        out.says(phrases);
    }
    for (variable, phrases) in [
        (
            "MASKDIFF_OPTIM__LRR",
            &["environment variable MASKDIFF_OPTIM__LRR", "`MASKDIFF_OPTIM__LR`?"][..],
        ),
        ("MASKDIFF_OPTM__LR", &["environment variable MASKDIFF_OPTM__LR", "`MASKDIFF_OPTIM__LR`?"]),
        ("MASKDIFF_SED", &["environment variable MASKDIFF_SED", "`MASKDIFF_SEED`?"]),
        ("MASKDIFF_TRAINER", &["MASKDIFF_TRAINER", "is a group"]),
    ] {
        with(at.path(), &[(variable, "1")], &["config"]).expect(2).says(phrases);
    }
    let words = ["config", "backbone=dimamba", "model.temb_strategy=adalm"];
    let out = maskdiff(at.path(), &words);
    out.expect(2).says(&["did you mean `model.temb_strategy=adaln`?"]);
    assert!(!at.path().join("outputs").exists(), "nothing was written");
}

#[test]
fn a_schedule_needs_no_file() {
    let at = folder();
    let config = resolved(at.path(), &[], &["noise=maskdiff-noise:cosine"]);
    assert_eq!(config["noise"], json!({"type": "maskdiff-noise:cosine"}));
    let config =
        resolved(at.path(), &[("MASKDIFF_NOISE", "maskdiff-noise:linear")], &["noise.sigma_max=3"]);
    assert_eq!(config["noise"], json!({"type": "maskdiff-noise:linear", "sigma_max": 3}));
}

#[test]
fn a_file_that_stands_for_a_built_in_one_is_told_of() {
    let at = folder();
    let base = fs::read_to_string(root().join("configs/config.toml")).expect("the base");
    fs::create_dir_all(at.path().join("configs/model")).expect("a folder");
    let put = |name: &str, text: &str| {
        fs::write(at.path().join("configs").join(name), text).expect("a file")
    };
    put("config.toml", &base);
    put("model/mine.toml", "name = 'mine'\n");
    let out = maskdiff(at.path(), &["config", "model=mine"]);
    assert_eq!(out.expect(0).stderr, "", "an equal file and a new one need no word");
    put("config.toml", &format!("seed = 77\n{base}"));
    let out = maskdiff(at.path(), &["config"]);
    out.expect(0)
        .says(&["`configs/config.toml` of this folder is used instead of the built-in one"]);
    assert_eq!(out.stderr.matches("instead of the built-in one").count(), 1, "{}", out.stderr);
    assert!(out.stdout.contains("seed = 77 # ./configs/config.toml"), "{}", out.stdout);
}

#[test]
fn a_run_that_has_nothing_left_to_do_says_so() {
    let at = folder();
    let small = [
        "run.dir=run",
        "sampling.num_sample_log=0",
        "data.valid_blocks=8",
        "trainer.num_sanity_val_steps=0",
    ];
    train(at.path(), &[&small[..], &["trainer.max_steps=2"]].concat()).expect(0);
    let again = ["trainer.max_steps=1", "checkpointing.resume_from_ckpt=true"];
    let out = train(at.path(), &[&small[..], &again].concat());
    out.expect(0).says(&["nothing is left to train: step 2 is done", "`trainer.max_steps` is 1"]);
}

/// Of each kind of value the worst words.
fn worst(of: Of) -> Vec<String> {
    let words: &[&str] = match of {
        Of::Whole | Of::Real => &[
            "nan",
            "inf",
            "-inf",
            "-1",
            "0",
            "1",
            "9223372036854775807",
            "-9223372036854775808",
            "1e300",
            "-1e300",
            "1e-300",
            "99999999999999999999999",
            "",
            "x",
        ],
        Of::Text | Of::Listed(_) => &["", " ", "nan", "../../x", "\u{1b}[2J", "a\nb", "null", "-1"],
        Of::Switch => &["", "1", "-1", "nan", "maybe", "true"],
        Of::Any | Of::Group(_) => &["", "nan", "[nan]", "-1", "1e300", "{a = 1}", "[[[]]]", "x"],
    };
    let huge = "9".repeat(100_000);
    words.iter().map(ToString::to_string).chain([huge]).collect()
}

/// Every key of the host and of the shipped components with the worst values of its type: refused with the code of a mistake of the
/// user's, or it works as far as no run is begun; never a panic, a hang or a number that is none.
#[test]
fn no_key_has_a_value_that_breaks_the_program() {
    // Long: most of it is the table of the worst values.
    let registry = registry();
    let (mut tried, mut refused) = (0, 0);
    let mut attempt = |words: &[String]| {
        let began = Instant::now();
        let request = Request { overrides: words.to_vec(), ..Request::default() };
        let done = load(&request).and_then(|mut config| {
            let choices = assemble::choices(&mut config, &registry, true)?;
            assemble::check_options(&config, &registry, &choices, true)?;
            let _ = (Duration::from_secs_f64(config.trainer.grace_s), config.shares(3));
            let _ = Duration::from_secs_f64(config.trainer.timeout_s);
            assert!(config.optim.lr.is_finite() && config.optim.lr >= 0.0, "{words:?}");
            assert!(!choose::shown(&config, &registry).is_empty());
            Ok(())
        });
        tried += 1;
        if let Err(error) = done {
            refused += 1;
            let said = error.in_one_line();
            let code = error.exit_code();
            let key = words.last().map_or("", |word| word.split('=').next().unwrap_or_default());
            // A component that is not there.
            let unknown = code == 3 && said.contains("there is no ");
            assert!(code == 2 || unknown, "{key}: code {code}: {said:.300}");
        }
        assert!(began.elapsed() < Duration::from_secs(5), "{:.100}", words.join(" "));
    };
    fn leaves(key: &str, field: &Field, all: &mut Vec<(String, Of)>) {
        match field.shape.of {
            Of::Group(inner) => {
                for field in inner {
                    leaves(&format!("{key}.{}", field.name), field, all);
                }
            }
            of => all.push((key.to_string(), of)),
        }
    }
    let mut keys = Vec::new();
    for group in std::iter::once(&"").chain(groups::GROUPS) {
        for field in groups::fields(group) {
            let dot = if group.is_empty() { "" } else { "." };
            leaves(&format!("{group}{dot}{}", field.name), field, &mut keys);
        }
    }
    assert!(keys.len() > 100, "{}", keys.len());
    for (key, of) in keys {
        for value in worst(of) {
            attempt(&[format!("{key}={value}")]);
        }
    }
    for (_, component) in registry.components() {
        let (choice, group) = match component.kind.as_str() {
            "backbone" => ("backbone", "model."),
            "noise" => ("noise.type", "noise."),
            "process" => ("diffusion", "process."),
            "sampler" => ("sampling.predictor", "sampling."),
            _ => ("parameterization", ""),
        };
        let options = component.schema["properties"].as_object();
        for (option, schema) in
            options.into_iter().flatten().filter(|(name, _)| *name != "argument")
        {
            let of = Shape::of_schema(&component.schema, schema).of;
            let is_number = matches!(of, Of::Whole | Of::Real);
            let range = Range::of_schema(&component.schema, schema);
            assert!(
                !is_number || range.in_words().is_some(),
                "{} `{}`: `{option}` has no range",
                component.kind,
                component.name
            );
            for value in worst(of) {
                attempt(&[
                    format!("{choice}={}", component.name),
                    format!("{group}{option}={value}"),
                ]);
            }
        }
    }
    assert!(tried > 1500 && refused > tried / 3, "{refused} of {tried}");
}

#[test]
fn a_number_without_sense_is_refused_with_the_nearest_sense() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    for (word, said) in [
        ("optim.lr=-0.1", "`optim.lr` must be at least 0, got -0.1"),
        ("optim.lr=inf", "`optim.lr` must be at least 0, at most 1e38, got inf"),
        ("optim.beta1=1", "`optim.beta1` must lie in [0, 1), got 1"),
        ("optim.beta2=-0.1", "`optim.beta2` must lie in [0, 1), got -0.1"),
        ("optim.eps=-1e-8", "`optim.eps` must be at least 0"),
        ("optim.weight_decay=-1", "`optim.weight_decay` must be at least 0, got -1"),
        ("trainer.gradient_clip_val=-1", "`trainer.gradient_clip_val` must be at least 0"),
        ("lr_scheduler.num_warmup_steps=-1", "`lr_scheduler.num_warmup_steps` must be at least 0"),
        ("trainer.grace_s=1e300", "`trainer.grace_s` must be at most 1e7, got 1e300"),
        ("trainer.timeout_s=nan", "`trainer.timeout_s` must be at least 1, at most 1e7, got nan"),
        (
            "loader.global_batch_size=9223372036854775807",
            "`loader.global_batch_size` must be at most",
        ),
        ("data.valid_blocks=9223372036854775807", "`data.valid_blocks` must be at most"),
        ("model.n_blocks=1000000000", "`model.n_blocks` must be at most 4096, got 1e9"),
        ("model.dropout=nan", "`model.dropout` must"),
        ("sampling.t_min=0", "`sampling.t_min` must lie in (0, 1), got 0"),
    ] {
        let request = Request { overrides: vec![word.to_string()], ..Request::default() };
        let registry = registry();
        let done =
            load(&request).and_then(|mut config| assemble::choices(&mut config, &registry, true));
        let error = done.expect_err(word);
        assert_eq!(error.exit_code(), 2, "{word}");
        assert!(error.in_one_line().contains(said), "{word}: {}", error.in_one_line());
    }
    // Zeros that turn something off stay.
    let zeros = [
        "optim.lr=0",
        "optim.weight_decay=0",
        "optim.eps=0",
        "trainer.gradient_clip_val=0",
        "trainer.loss_spike=0",
        "training.ema=0",
        "lr_scheduler.num_warmup_steps=0",
        "trainer.val_check_interval=0",
        "trainer.grace_s=0",
    ];
    let shown = maskdiff(at, &[&["config"], &zeros[..]].concat());
    let text = &shown.expect(0).stdout;
    assert!(text.contains("lr = 0 # command line; at least 0, at most 1e38"), "{text}");
    assert!(
        text.contains("dropout = 0.1 # configs/model/tiny.toml; in [0, 1)")
            || text.contains("; in [0, 1)")
    );
    let shown = maskdiff(at, &["plugins", "show", "dit", "--format", "text"]);
    assert!(shown.expect(0).stdout.contains("at least 1, at most 4096"), "{}", shown.stdout);
}

#[test]
fn thousands_of_unknown_keys_are_answered_at_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    for group in ["model", "sampling", "training", "optim"] {
        let keys: String = (0..4000).map(|n| format!("unknown_{n} = {n}\n")).collect();
        fs::write(at.join("many.toml"), format!("[{group}]\n{keys}")).expect("written");
        let began = Instant::now();
        maskdiff(at, &["config", "--config", "many.toml"]).expect(2).says(&["unknown key"]);
        assert!(began.elapsed() < Duration::from_secs(3), "{group}: {:?}", began.elapsed());
    }
}

/// The page of all keys is what the program says of them, so that neither gets old.
#[test]
fn the_page_of_all_keys_is_not_stale() {
    let at = folder();
    let printed = maskdiff(at.path(), &["config", "explain"]);
    let page = std::fs::read_to_string(root().join("docs/config.md")).expect("docs/config.md");
    assert!(
        printed.expect(0).stdout == page,
        "docs/config.md is stale: `maskdiff config explain > docs/config.md` writes it again"
    );
    // No option of a shipped component is without a sentence.
    let bare = page.lines().filter(|line| line.starts_with("| `") && line.ends_with("|  |"));
    assert_eq!(bare.collect::<Vec<&str>>(), Vec::<&str>::new());
}

#[test]
fn a_key_is_explained_with_its_value_and_where_that_comes_from() {
    let at = folder();
    let explain = |words: &[&str]| maskdiff(at.path(), &[&["config", "explain"], words].concat());
    let out = explain(&["optim.lr", "optim.lr=0.5"]);
    for line in [
        "Peak learning rate.",
        "type: number; at least 0, at most 1e38",
        "default: 0.0003",
        "here: 0.5 (command line)",
    ] {
        assert!(out.expect(0).stdout.contains(line), "{out:?}");
    }
    // A group, an option of several components, and one line for each as JSON.
    let group = explain(&["wandb", "--format", "json"]);
    assert!(group.expect(0).lines().len() > 10, "{group:?}");
    let steps = explain(&["sampling.steps"]);
    for sampler in ["(sampler `ddpm`)", "(sampler `remdm`)"] {
        assert!(steps.expect(0).stdout.contains(sampler), "{steps:?}");
    }
    explain(&["lr"]).expect(2).says(&["no key `lr`", "did you mean `optim.lr`?"]);
    explain(&["optim.lrr"]).expect(2).says(&["did you mean `optim.lr`?"]);
}

/// Words of a fixed list are refused when the configuration is read, wherever they stand.
#[test]
fn a_word_that_is_not_in_its_list_is_refused_with_the_nearest() {
    let at = folder();
    let config = |words: &[&str]| maskdiff(at.path(), &[&["config"], words].concat());
    for (word, near) in [
        ("trainer.precision=bf61", "trainer.precision=bf16"),
        ("lr_scheduler.name=constant_warmpu", "lr_scheduler.name=constant_warmup"),
        ("eval.duel_order=margn", "eval.duel_order=margin"),
        ("data.detokenizer=ptbb", "data.detokenizer=ptb"),
        ("trainer.strategy=zero", "trainer.strategy=zero1"),
    ] {
        config(&[word]).expect(2).says(&["command line", &format!("did you mean `{near}`?")]);
    }
    // A file of a group is named as whoever chose it named it.
    for (variable, word, near) in [
        ("MASKDIFF_MODEL", "tinny", "MASKDIFF_MODEL=tiny"),
        ("MASKDIFF_DATA", "storis", "MASKDIFF_DATA=stories"),
    ] {
        let out = finish(command(at.path(), &["config"]).env(variable, word));
        let there = format!("there is no `{variable}={word}`");
        out.expect(2).says(&[&there, &format!("did you mean `{near}`?")]);
    }
    // One letter is near no other.
    let out = config(&["a.b=1"]);
    assert!(!out.expect(2).stderr.contains("did you mean"), "{}", out.stderr);
    std::fs::write(at.path().join("own.toml"), "[trainer]\nprecision = 32\non_nan = \"skp\"\n")
        .expect("a file");
    config(&["--config", "own.toml"]).expect(2).says(&["own.toml", "`trainer.on_nan=skip`"]);
    // Other programs' spellings, and a number in a file.
    config(&["--config", "own.toml", "trainer.on_nan=skip", "trainer.accelerator=gpu"]).expect(0);
}
