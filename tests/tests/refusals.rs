//! End to end: what bad input gets. A clear error, the right exit code, nothing half-written.

use std::fs;
use std::path::{Path, PathBuf};

use maskdiff_tests::run::{maskdiff, train};
use maskdiff_tests::target;

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a folder")
}

fn bad_plugin() -> String {
    target().join("libfixture_bad_plugin.so").display().to_string()
}

/// A run folder must not appear when nothing was run.
#[track_caller]
fn nothing_written(folder: &Path) {
    let left: Vec<_> =
        fs::read_dir(folder).expect("the folder").flatten().map(|e| e.path()).collect();
    let runs: Vec<&PathBuf> =
        left.iter().filter(|p| p.ends_with("outputs") || p.ends_with("run")).collect();
    assert!(runs.is_empty(), "{runs:?}");
}

#[test]
fn mistakes_in_the_configuration_name_key_source_and_remedy() {
    let folder = folder();
    let cases: &[(&[&str], &[&str])] = &[
        (
            &["optim.lrr=1"],
            &["unknown key `optim.lrr`", "command line", "did you mean `optim.lr`?"],
        ),
        (&["optim.lr=fast"], &["`optim.lr` is a number, got the text `fast`", "command line"]),
        (&["model=tinny"], &["there is no `model=tinny`", "did you mean `model=tiny`?"]),
        (&["backbone=ditt"], &["there is no backbone `ditt`", "did you mean `dit`?"]),
        (&["sampling.stepz=4"], &["`sampling.stepz`", "did you mean `steps`?"]),
        (
            &["sampling.stepz=4", "sampling.num_sample_log=0"],
            &["`sampling.stepz`", "did you mean `steps`?"],
        ),
        (&["sampling.steps=0"], &["`sampling.steps` must be at least 1, got 0", "command line"]),
        (
            &["model.hidden_size=ten"],
            &["`model.hidden_size` is a whole number, got the text `ten`", "command line"],
        ),
        (&["model.hidden_size=8.5"], &["is a whole number, got the number 8.5", "8 and 9"]),
        (&["training.lora.rnk=4"], &["unknown key `training.lora.rnk`", "`training.lora.rank`"]),
        (
            &["parameterization=duo", "training.curriculum.tua=1"],
            &["unknown key `training.curriculum.tua`", "did you mean `training.curriculum.tau`?"],
        ),
        (&["eval.gen_ppl.mauv=true"], &["did you mean `eval.gen_ppl.mauve`?"]),
        (
            &["training.lora=4"],
            &["`training.lora` has no value of its own", "`training.lora.rank`"],
        ),
        (
            &["data.wrap=yes"],
            &["`data.wrap` is `true` or `false`, got the text `yes`", "`data.wrap=true`"],
        ),
        (&["wandb.tags=a,b"], &["is a list of texts", "in brackets: `wandb.tags=[a,b]`"]),
        (&["seed=99999999999999999999"], &["`seed` must be below 2^63, got 1e20"]),
        (&["sampling.steps=many"], &["`sampling.steps` is a whole number, got the text `many`"]),
        (&["model.hidden_size=30", "model.n_heads=4"], &["`hidden_size` (30)", "`n_heads` (4)"]),
        (&["loader.batch_size=3"], &["`loader.batch_size` (3) must divide"]),
        (&["trainer.accelerator=tpu"], &["`auto`, `cpu` or `cuda`, got `tpu`"]),
        (&["lr_scheduler.name=cyclic"], &["`constant_warmup` or", "got `cyclic`"]),
        (&["data.train=books"], &["no corpus `books`", "wikitext2"]),
        (&["data.train=wikitext"], &["did you mean `wikitext2`?"]),
        (&["data.packing=tight"], &["`data.packing` is `canonical` or `reference`, got `tight`"]),
        (&["model.length=63"], &["a story is a block of 64 tokens"]),
        (&["data=text"], &["needs `data.path`"]),
        (&["experiment=demmo"], &["did you mean `experiment=demo`?"]),
    ];
    for (words, phrases) in cases {
        let out = train(folder.path(), words);
        assert!([2, 3].contains(&out.code), "{words:?}: {} {}", out.code, out.stderr);
        out.says(phrases);
    }
    nothing_written(folder.path());
}

#[test]
fn a_mistake_in_a_file_is_shown_in_the_file() {
    let folder = folder();
    fs::write(folder.path().join("mine.toml"), "seed = 3\n\n[sampling]\nsteps = 0\n")
        .expect("a file");
    let out = maskdiff(folder.path(), &["train", "--config", "mine.toml", "trainer.max_steps=1"]);
    out.expect(2).says(&["mine.toml:4", "steps = 0", "`sampling.steps` must be at least 1"]);
    fs::write(folder.path().join("broken.toml"), "seed = = 3\n").expect("a file");
    let out = maskdiff(folder.path(), &["config", "--config", "broken.toml"]);
    out.expect(2).says(&["`broken.toml` is not TOML"]);
    maskdiff(folder.path(), &["config", "--config", "none.toml"]).says(&["none.toml"]);
}

#[test]
fn files_that_are_no_plugins_are_refused() {
    let folder = folder();
    let fake = folder.path().join("libfake.so");
    fs::write(&fake, "no library").expect("a file");
    let fake = fake.display().to_string();
    let out = maskdiff(folder.path(), &["plugins", "list", "--plugin", &fake]);
    out.expect(3).says(&["libfake.so` is not a maskdiff plugin"]);
    let out = maskdiff(folder.path(), &["plugins", "list", "--plugin", "missing.so"]);
    out.expect(3).says(&["there is no such file"]);
    // A library, but not one of ours.
    let torch = maskdiff_tests::root().join(".libtorch/torch/lib/libc10.so").display().to_string();
    let out = maskdiff(folder.path(), &["plugins", "list", "--plugin", &torch]);
    out.expect(3).says(&["is not a maskdiff plugin"]);
}

/// A copy of a shipped plugin in which a version string reads otherwise.
fn patched(folder: &Path, from: &str, to: &str) -> String {
    let mut bytes = fs::read(target().join("libmaskdiff_noise.so")).expect("the plugin");
    let places: Vec<usize> = (0..bytes.len() - from.len())
        .filter(|i| bytes[*i..*i + from.len()] == *from.as_bytes())
        .collect();
    assert!(!places.is_empty(), "no `{from}` in the plugin");
    for place in places {
        bytes[place..place + to.len()].copy_from_slice(to.as_bytes());
    }
    let path = folder.join("libpatched.so");
    fs::write(&path, bytes).expect("a file");
    path.display().to_string()
}

#[test]
fn a_plugin_for_another_api_or_libtorch_is_refused_in_one_sentence() {
    let folder = folder();
    let api = maskdiff_plugin_api::abi::API_VERSION;
    let other = patched(folder.path(), api, &format!("9{}", &api[1..]));
    let out = maskdiff(folder.path(), &["plugins", "list", "--plugin", &other]);
    let built = format!("was built against plugin-api 9{}", &api[1..]);
    out.expect(3).says(&[&built, &format!("this host has {api}"), "cargo build"]);
    let torch = maskdiff_plugin_api::abi::TORCH_VERSION;
    let other = patched(folder.path(), torch, "2.10.0");
    let out = maskdiff(folder.path(), &["plugins", "list", "--plugin", &other]);
    out.expect(3).says(&["was built against libtorch 2.10.0", "runs over 2.11"]);
}

#[test]
fn a_name_that_two_plugins_claim_needs_the_crate() {
    let folder = folder();
    let plugin = bad_plugin();
    let steps = ["trainer.max_steps=1", "--plugin", &plugin];
    let out = train(folder.path(), &[&steps[..], &["noise.type=geometric"]].concat());
    out.expect(3).says(&[
        "noise `geometric` is claimed by two plugins",
        "libfixture_bad_plugin.so",
        "libmaskdiff_noise.so",
        "`maskdiff-noise:geometric`",
    ]);
    let chosen = ["noise.type=maskdiff-noise:geometric", "run.dir=run"];
    train(folder.path(), &[&steps[..], &chosen[..]].concat()).expect(0);
}

#[test]
fn everyones_plugin_folder_is_refused() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = folder();
    let plugins = folder.path().join("plugins");
    fs::create_dir(&plugins).expect("a folder");
    fs::copy(target().join("libmaskdiff_noise.so"), plugins.join("libmaskdiff_x.so"))
        .expect("a copy");
    fs::set_permissions(&plugins, fs::Permissions::from_mode(0o777)).expect("permissions");
    let path = format!("plugins.paths=[\"{}\"]", plugins.display());
    let out = maskdiff(folder.path(), &["plugins", "list", &path]);
    out.expect(3).says(&["everyone may write to", "chmod o-w"]);
}

/// The loader would map what is not there, and the process end by SIGBUS.
#[test]
fn a_plugin_that_is_cut_off_is_named_and_the_others_go_on() {
    let folder = folder();
    let plugins = folder.path().join("plugins");
    fs::create_dir(&plugins).expect("a folder");
    let whole = fs::read(target().join("libmaskdiff_noise.so")).expect("the plugin");
    let broken = plugins.join("libmaskdiff_broken.so");
    let path = format!("plugins.paths=[\"{}\"]", plugins.display());
    let named = format!("plugins.paths=[\"{}\"]", broken.display());
    for length in [whole.len() - 1, whole.len() / 2, 5000, 70, 20, 0] {
        fs::write(&broken, &whole[..length]).expect("a part of it");
        let out = maskdiff(folder.path(), &["plugins", "list", &path, "--format", "text"]);
        out.expect(0).says(&["libmaskdiff_broken.so` is damaged", "it is left out"]);
        assert!(out.stdout.contains("loglinear"), "{}", out.stdout);
        let words = ["plugins", "list", "--plugin", "plugins/libmaskdiff_broken.so"];
        maskdiff(folder.path(), &words).expect(3).says(&["libmaskdiff_broken.so` is damaged"]);
        maskdiff(folder.path(), &["plugins", "list", &named])
            .expect(3)
            .says(&["libmaskdiff_broken.so` is damaged"]);
    }
    // A file of its length whose end was never written, and one that is no library.
    let zeros = [&whole[..whole.len() / 2], &vec![0; whole.len() - whole.len() / 2][..]].concat();
    for bytes in [&zeros[..], b"<html>not found</html>"] {
        fs::write(&broken, bytes).expect("a file");
        let out = maskdiff(folder.path(), &["plugins", "list", &path, "--format", "text"]);
        out.expect(0).says(&["libmaskdiff_broken.so`", "it is left out"]);
        assert!(out.stdout.contains("loglinear"), "{}", out.stdout);
    }
    // What is missing with it says where it was.
    let out = train(folder.path(), &[&path, "backbone=mine", "run.dir=run"]);
    out.expect(3).says(&["there is no backbone `mine`", "libmaskdiff_broken.so"]);
}

/// A file that is named itself, a link, and what it leads to.
#[test]
fn a_plugin_that_anyone_may_replace_is_refused() {
    use std::os::unix::fs::{PermissionsExt as _, symlink};
    let folder = folder();
    let at = |name: &str| folder.path().join(name);
    let open = |name: &str, mode: u32| {
        fs::set_permissions(at(name), fs::Permissions::from_mode(mode)).expect("permissions");
    };
    fs::create_dir(at("open")).expect("a folder");
    fs::create_dir(at("own")).expect("a folder");
    fs::copy(target().join("libmaskdiff_noise.so"), at("open/libx.so")).expect("a copy");
    symlink("../open/libx.so", at("own/libmaskdiff_x.so")).expect("a link");
    symlink("own/libmaskdiff_x.so", at("twice.so")).expect("a link");
    let asked = |code: i32| {
        let own = format!("plugins.paths=[\"{}\"]", at("own").display());
        let file = format!("plugins.paths=[\"{}\"]", at("open/libx.so").display());
        for words in
            [["--plugin", "open/libx.so"], ["--plugin", "twice.so"], [&own, "-q"], [&file, "-q"]]
        {
            let out = maskdiff(folder.path(), &[&["plugins", "list"], &words[..]].concat());
            out.expect(code);
            if code != 0 {
                out.says(&["everyone may write to", "chmod o-w"]);
            }
        }
    };
    asked(0);
    open("open", 0o777);
    asked(3);
    open("open", 0o755);
    open("open/libx.so", 0o666);
    asked(3);
}

#[test]
fn what_a_plugin_does_wrong_is_reported_with_its_name() {
    let folder = folder();
    train(folder.path(), &["trainer.max_steps=1", "run.dir=run"]).expect(0);
    let plugin = bad_plugin();
    let cases: &[(&str, i32, &[&str])] = &[
        ("panics", 3, &["sampler `panics`", "a bug of the author", "bad-plugin/src/lib.rs:"]),
        ("throws", 3, &["sampler `throws`", "libtorch: ", "bad-plugin/src/lib.rs:"]),
        ("wrong_shape", 3, &["sampler `wrong_shape` returned [32, 63] Int64, expected [32, 64]"]),
        ("wrong_token", 3, &["sampler `wrong_token` returned token ids 198..=198 outside 0..198"]),
    ];
    for (name, code, phrases) in cases {
        let predictor = format!("sampling.predictor={name}");
        let words = ["sample", "--checkpoint", "run", "--plugin", &plugin, &predictor];
        maskdiff(folder.path(), &words).expect(*code).says(phrases);
    }
}

#[test]
fn not_a_number_stops_and_keeps_the_last_checkpoint() {
    let folder = folder();
    let plugin = bad_plugin();
    let words = [
        "--plugin",
        &plugin,
        "parameterization=not_a_number",
        "sampling.num_sample_log=0",
        "checkpointing.every_n_steps=2",
        // The fixture counts the calls.
        "trainer.num_sanity_val_steps=0",
        "run.dir=run",
    ];
    let out = train(folder.path(), &words);
    out.expect(4).says(&[
        "at step 4 the loss is NaN",
        "the last good checkpoint is",
        "step-00000004",
    ]);
    let state = fs::read_to_string(folder.path().join("run/checkpoints/last/state.json"));
    assert!(state.expect("a checkpoint").contains("\"step\": 4"));
}

#[test]
fn a_learning_rate_that_explodes_says_at_which_step() {
    let folder = folder();
    let words =
        ["optim.lr=1e30", "trainer.gradient_clip_val=0", "trainer.max_steps=50", "run.dir=run"];
    let out = train(folder.path(), &words);
    out.expect(4).says(&["at step ", "lower `optim.lr`", "no checkpoint had been written yet"]);
}

#[test]
fn checkpoints_that_are_missing_damaged_or_foreign_are_named() {
    let folder = folder();
    let out = maskdiff(folder.path(), &["eval"]);
    out.expect(2).says(&["`eval.checkpoint_path` is not set", "--checkpoint"]);
    let out = maskdiff(folder.path(), &["eval", "--checkpoint", "nowhere"]);
    out.expect(2).says(&["`nowhere` does not exist"]);
    train(folder.path(), &["trainer.max_steps=1", "run.dir=run"]).expect(0);
    let out = maskdiff(folder.path(), &["sample", "--checkpoint", "run", "model.hidden_size=64"]);
    out.expect(5).says(&[
        "is of another architecture",
        "`vocab_embed.embedding` is [198, 32], the model has [198, 64]",
        "and ",
    ]);
    let out = maskdiff(folder.path(), &["eval", "--checkpoint", "run", "model.n_blocks=2"]);
    out.expect(5).says(&["`blocks.1.norm1.weight` is missing"]);
    let weights = folder.path().join("run/checkpoints/last/model.safetensors");
    let bytes = fs::read(&weights).expect("weights");
    fs::write(&weights, &bytes[..bytes.len() / 2]).expect("a cut file");
    for command in ["eval", "sample"] {
        let out = maskdiff(folder.path(), &[command, "--checkpoint", "run"]);
        out.expect(5).says(&["model.safetensors` is damaged", "cut off"]);
    }
    let go_on = ["trainer.max_steps=2", "run.dir=run", "checkpointing.resume_from_ckpt=true"];
    train(folder.path(), &go_on).expect(5).says(&["is damaged"]);
}

#[test]
fn a_second_run_does_not_overwrite_the_first() {
    let folder = folder();
    train(folder.path(), &["trainer.max_steps=1", "run.dir=run"]).expect(0);
    let before = fs::read(folder.path().join("run/metrics.jsonl")).expect("metrics");
    let out = train(folder.path(), &["trainer.max_steps=1", "run.dir=run"]);
    out.expect(2).says(&["already holds a run", "checkpointing.resume_from_ckpt=true"]);
    assert_eq!(fs::read(folder.path().join("run/metrics.jsonl")).expect("metrics"), before);
}

#[test]
fn texts_that_cannot_be_used_say_why() {
    let folder = folder();
    let write =
        |name: &str, bytes: &[u8]| fs::write(folder.path().join(name), bytes).expect("a file");
    write("empty.txt", b"");
    write("short.txt", b"too short");
    write("binary.txt", &[0xff, 0xfe, 0x00, 0x41]);
    write("good.txt", "a good text for a small test. ".repeat(200).as_bytes());
    fs::create_dir(folder.path().join("nothing")).expect("a folder");
    write("tokenizer.json", b"{\"no\": \"tokenizer\"}");
    let cases: &[(&[&str], &[&str])] = &[
        (&["data.path=empty.txt"], &["no text in empty.txt (0 bytes)"]),
        (&["data.path=nothing"], &["`nothing` holds no `.txt` files"]),
        (&["data.path=short.txt"], &["less than one block of 64", "model.length"]),
        (&["data.path=binary.txt"], &["`binary.txt` is not UTF-8", "byte 0"]),
        (&["data.path=missing.txt"], &["missing.txt", "No such file"]),
        (
            &["data.path=good.txt", "data.tokenizer_name_or_path=tokenizer.json"],
            &["tokenizer.json` is not a tokenizer"],
        ),
    ];
    for (words, phrases) in cases {
        let out = train(folder.path(), &[&["data=text"], *words].concat());
        assert!([2, 5].contains(&out.code), "{words:?}: {} {}", out.code, out.stderr);
        out.says(phrases);
    }
    nothing_written(folder.path());
}

#[test]
fn a_full_disk_ends_the_run_and_keeps_what_was_whole() {
    let folder = folder();
    let disk = folder.path().join("disk");
    fs::create_dir(&disk).expect("a folder");
    let target = disk.display().to_string();
    let mount = ["-t", "tmpfs", "-o", "size=2m", "tmpfs", &target];
    let mounted = std::process::Command::new("mount").args(mount).output();
    if !mounted.is_ok_and(|out| out.status.success()) {
        maskdiff_tests::skipped("mounting a small disk needs root");
        return;
    }
    let words = [
        "checkpointing.every_n_steps=1",
        "trainer.max_steps=50",
        "run.dir=disk/run",
        "model.hidden_size=64",
    ];
    let out = train(folder.path(), &words);
    let kept = maskdiff(folder.path(), &["eval", "--checkpoint", "disk/run"]);
    let state = fs::read_dir(disk.join("run/checkpoints")).map(|entries| {
        entries.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect::<Vec<_>>()
    });
    std::process::Command::new("umount").arg(&target).status().expect("umount");
    out.expect(5).says(&["No space left on device", "free some space"]);
    assert!(
        state.expect("checkpoints").iter().all(|name| !name.contains("tmp")),
        "half a checkpoint"
    );
    kept.expect(0);
}

#[test]
fn words_that_are_no_overrides_are_explained() {
    let folder = folder();
    maskdiff(folder.path(), &["train", "optim.lr"])
        .expect(2)
        .says(&["`optim.lr` is not KEY=VALUE"]);
    maskdiff(folder.path(), &["mode=fly"])
        .expect(2)
        .says(&["`mode=fly` is not a mode", "ppl_eval"]);
    maskdiff(folder.path(), &["trian"]).expect(2).says(&["unrecognized subcommand", "train"]);
    maskdiff(folder.path(), &["plugins", "show", "ditt"]).expect(3).says(&["did you mean `dit`?"]);
}
