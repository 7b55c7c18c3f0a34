//! Golden cases k: a Hugging Face folder and a `.ckpt` of the original are read, evaluated and sampled; damaged ones are not.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use maskdiff_config::{Config, Request, load};
use maskdiff_engine::assemble;
use maskdiff_engine::checkpoint::{Checkpoint, EMA, MODEL, OPTIMIZER};
use maskdiff_engine::model::Model;
use maskdiff_plugin_api::{Context, Denoiser};
use maskdiff_tests::corpora::sentence;
use maskdiff_tests::hub::Hub;
use maskdiff_tests::run::{Output, SMALL, command, finish, maskdiff};
use maskdiff_tests::{Tensors, assert_close, golden, golden_case, in_memory, registry};
use serde_json::Value;
use tch::{Kind, Tensor};

fn opened(path: &Path, overrides: &[&str]) -> (Checkpoint, Config) {
    let checkpoint = Checkpoint::open(path).expect("a checkpoint");
    let overrides = overrides.iter().map(ToString::to_string).collect();
    let stored = Some(checkpoint.stored().expect("a configuration"));
    let config = load(&Request { overrides, stored, foreign: true, ..Request::default() })
        .expect("a configuration");
    (checkpoint, config)
}

/// The model of a checkpoint over the plugins as built.
fn model(checkpoint: &Checkpoint, config: &mut Config, kind: Kind) -> Model {
    let registry = registry();
    let choices = assemble::choices(config, &registry, true).expect("components");
    let vocab_size = checkpoint.foreign.as_ref().expect("of another program").vocab_size;
    let facts = Context::new(vocab_size, config.model.length)
        .mask(Some(vocab_size - 1))
        .time_conditioning(config.top.time_conditioning)
        .kind(kind);
    let model = assemble::model(config, &registry, choices, facts).expect("a model");
    assemble::load_weights(&model, checkpoint, config).expect("its weights");
    model
}

fn logits(model: &Model, x: &Tensor, sigma: &Tensor) -> Tensor {
    let denoiser = Denoiser::new(model);
    tch::no_grad(|| {
        let hidden = denoiser.hidden(x, &sigma.to_kind(Kind::Double)).expect("hidden");
        denoiser.logits(&hidden.flatten(0, 1)).expect("logits")
    })
}

#[test]
fn a_hugging_face_folder_gives_the_logits_of_its_model() {
    let Some(case) = golden_case("k_hf_mdlm") else { return };
    let mut checked = 0;
    for name in ["mdlm", "mdlm_tc"] {
        if !case["files"].as_object().expect("files").contains_key(&format!("{name}/")) {
            continue;
        }
        let folder = golden().join("k_hf_mdlm").join(name);
        for backbone in ["backbone=dit", "backbone=hf_dit"] {
            let (checkpoint, mut config) = opened(&folder, &[backbone]);
            let model = model(&checkpoint, &mut config, Kind::Float);
            let io = Tensors::golden(&format!("k_hf_mdlm/{name}.safetensors"));
            let want = io.get("logits");
            // Without time conditioning the network hears nothing of the noise level.
            let sigma = io.get("timesteps");
            let sigma = if config.top.time_conditioning { sigma } else { sigma.zeros_like() };
            let got = logits(&model, &io.get("input_ids"), &sigma).view_as(&want);
            assert_close(name, &got, &want, 1e-4, false);
        }
        checked += 1;
    }
    assert!(checked > 0);
}

#[test]
fn a_checkpoint_of_the_original_gives_its_weights_and_its_average() {
    if golden_case("k_lightning_ckpt").is_none() {
        return;
    }
    let expected = Tensors::golden("k_lightning_ckpt/expected.safetensors");
    let path = golden().join("k_lightning_ckpt/last.ckpt");
    let (checkpoint, _) = opened(&path, &[]);
    assert_eq!(checkpoint.state.step, 6);
    for (file, prefix) in [(MODEL, "raw/backbone."), (EMA, "ema/backbone.")] {
        let tensors = in_memory(checkpoint.tensors(file).expect("read").expect("there"));
        let names = expected.iter().filter(|(name, _)| name.starts_with(prefix)).count();
        assert_eq!(tensors.len(), names, "{file}");
        for (name, tensor) in &tensors {
            assert_eq!(*tensor, expected.get(&format!("{prefix}{name}")), "{file}: {name}");
        }
    }
    for (overrides, name) in [(&[][..], "ema"), (&["eval.disable_ema=true"], "raw")] {
        let (checkpoint, mut config) = opened(&path, overrides);
        assert_eq!((config.model.length, config.top.time_conditioning), (16, true));
        let model = model(&checkpoint, &mut config, Kind::Float);
        let want = expected.get(&format!("logits_{name}"));
        let got = logits(&model, &expected.get("x"), &expected.get("sigma")).view_as(&want);
        assert_close(name, &got, &want, 1e-4, false);
    }
}

/// The small tokenizer that the golden checkpoint was trained with.
fn tokenizer() -> String {
    let path = golden().join("h_pipeline/tok_gpt2");
    format!("data.tokenizer_name_or_path={}", path.display())
}

fn text(folder: &Path) {
    let lines: String = (0..200).map(|i| sentence(i) + "\n").collect();
    fs::write(folder.join("text.txt"), lines).expect("written");
}

fn bits(out: &Output) -> f64 {
    out.expect(0).lines()[0]["val/bits_per_token"].as_f64().expect("bits")
}

#[test]
fn a_checkpoint_of_the_original_is_evaluated_and_sampled() {
    if golden_case("k_lightning_ckpt").is_none() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    text(folder.path());
    let path = golden().join("k_lightning_ckpt/last.ckpt").display().to_string();
    let tokenizer = tokenizer();
    let data = ["data=text", "data.path=text.txt", &tokenizer, "trainer.accelerator=cpu"];
    let eval = |more: &[&str]| {
        let words = [&["eval", "--checkpoint", &path], &data[..], more].concat();
        bits(&maskdiff(folder.path(), &words))
    };
    let averaged = eval(&[]);
    assert!(averaged > 1.0 && averaged < 30.0, "{averaged}");
    assert_ne!(averaged, eval(&["eval.disable_ema=true"]));
    let words = [&["sample", "--checkpoint", &path, "sampling.steps=4"], &data[2..]].concat();
    let drawn = maskdiff(folder.path(), &words).expect(0).lines();
    assert!(!drawn.is_empty() && drawn[0]["text"].is_string(), "{drawn:?}");
    // Another tokenizer than its own.
    let bert = golden().join("h_pipeline/bert-base-uncased");
    let bert = format!("data.tokenizer_name_or_path={}", bert.display());
    let words = ["eval", "--checkpoint", &path, "data=text", "data.path=text.txt", &bert];
    maskdiff(folder.path(), &words).expect(2).says(&["348 tokens with the mask", "makes 121"]);
}

/// A run that was begun in Python goes on here: moments, average, step.
#[test]
fn a_run_of_the_original_goes_on() {
    if golden_case("k_lightning_ckpt").is_none() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    text(folder.path());
    let path = golden().join("k_lightning_ckpt/last.ckpt");
    let from = format!("checkpointing.resume_ckpt_path={}", path.display());
    let tokenizer = tokenizer();
    let words = [
        "train",
        "data=text",
        "data.path=text.txt",
        &tokenizer,
        "trainer.accelerator=cpu",
        &from,
        "checkpointing.resume_from_ckpt=true",
        "run.dir=run",
        "time_conditioning=true",
        "model.length=16",
        "model.hidden_size=32",
        "model.cond_dim=16",
        "model.n_heads=2",
        "model.n_blocks=2",
        "model.dropout=0.0",
        "loader.global_batch_size=4",
        "trainer.log_every_n_steps=1",
        "sampling.num_sample_log=0",
    ];
    let run = |steps: &str| maskdiff(folder.path(), &[&words[..], &[steps]].concat());
    // Nothing is left to train: what is saved is what was read.
    run("trainer.max_steps=6").expect(0).says(&["resuming after step 6"]);
    let read = Checkpoint::open(&path).expect("a checkpoint");
    let saved = Checkpoint::open(&folder.path().join("run")).expect("a checkpoint");
    assert_eq!((saved.state.step, saved.state.samples, saved.state.ema_updates), (6, 24, 6));
    for file in [MODEL, EMA, OPTIMIZER] {
        let of = |checkpoint: &Checkpoint| checkpoint.tensors(file).expect("read").map(in_memory);
        let (a, b) = (of(&read), of(&saved));
        let (a, b) = (a.expect("there"), b.expect("there"));
        assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>(), "{file}");
        assert!(a.iter().all(|(name, tensor)| b[name] == *tensor), "{file}");
    }
    // The run's own checkpoint comes before the other's from then on.
    run("trainer.max_steps=9").expect(0).says(&["resuming after step 6"]);
    let losses = maskdiff_tests::run::losses(&folder.path().join("run"));
    let steps: Vec<i64> = losses.iter().map(|(step, _)| *step).collect();
    assert_eq!(steps, [7, 8, 9]);
}

/// A tokenizer of so many words for the golden Hugging Face folder, which has none.
fn with_tokenizer(folder: &Path, to: &Path) {
    fs::create_dir_all(to).expect("folders");
    for name in ["config.json", "model.safetensors"] {
        fs::copy(folder.join(name), to.join(name)).expect("copied");
    }
    let vocab: serde_json::Map<String, Value> = (0..60)
        .map(|i| (if i == 0 { "[UNK]".into() } else { format!("w{i}") }, i.into()))
        .collect();
    let file = serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "[UNK]"},
    });
    fs::write(to.join("tokenizer.json"), file.to_string()).expect("written");
}

/// The golden folder was made by the original's own code, whose logits of it are known. What is exported from it has the same
/// bits and says the same of the network, so that code gives the same logits of it.
#[test]
fn an_exported_folder_is_what_the_originals_code_made() {
    let Some(golden) = golden_folder() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let from = folder.path().join("from");
    with_tokenizer(&golden, &from);
    let words = ["export", "--checkpoint", "from", "--format", "hf", "--output", "out"];
    maskdiff(folder.path(), &words).expect(0);
    let tensors = |folder: &Path| -> BTreeMap<String, Tensor> {
        let file = folder.join("model.safetensors");
        Tensor::read_safetensors(file).expect("tensors").into_iter().collect()
    };
    let config = |folder: &Path| -> Value {
        let text = fs::read_to_string(folder.join("config.json")).expect("a configuration");
        serde_json::from_str(&text).expect("JSON")
    };
    let (out, golden) = (folder.path().join("out"), golden.as_path());
    assert_eq!(tensors(&out), tensors(golden));
    let (ours, theirs) = (config(&out), config(golden));
    for key in [
        "model_type",
        "architectures",
        "auto_map",
        "vocab_size",
        "model_length",
        "hidden_dim",
        "cond_dim",
        "n_blocks",
        "n_heads",
        "dropout",
        "time_conditioning",
        "torch_dtype",
    ] {
        assert_eq!(ours[key], theirs[key], "{key}");
    }
}

/// What is exported reads back bit for bit, here and in Python; and back again.
#[test]
fn exports_read_back() {
    // Long: one story, and half of it is a script in Python.
    if golden_case("k_lightning_ckpt").is_none() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    let ckpt = golden().join("k_lightning_ckpt/last.ckpt").display().to_string();
    let tokenizer = tokenizer();
    let export = |from: &str, kind: &str, to: &str, more: &[&str]| {
        let words = ["export", "--checkpoint", from, "--format", kind, "--output", to, &tokenizer];
        maskdiff(at, &[&words[..], more].concat())
    };
    let tensors = |path: &Path, file: &str| {
        let checkpoint = Checkpoint::open(path).expect("a checkpoint");
        in_memory(checkpoint.tensors(file).expect("read").expect("there"))
    };
    let original = |file: &str| tensors(Path::new(&ckpt), file);
    export(&ckpt, "hf", "hf", &[]).expect(0);
    export(&ckpt, "hf", "raw", &["eval.disable_ema=true"]).expect(0);
    export(&ckpt, "lightning", "again.ckpt", &[]).expect(0);
    let raw = tensors(&at.join("raw"), MODEL);
    assert_eq!(raw, original(MODEL), "as it is learnt");
    let averaged = tensors(&at.join("hf"), MODEL);
    for (name, tensor) in original(EMA) {
        assert_eq!(averaged[&name], tensor, "{name}");
    }
    for file in [MODEL, EMA] {
        assert_eq!(tensors(&at.join("again.ckpt"), file), original(file), "{file}");
    }
    // From there to the other form: the folder carries its tokenizer.
    let words =
        ["export", "--checkpoint", "hf", "--format", "lightning", "--output", "from_hf.ckpt"];
    maskdiff(at, &words).expect(0);
    assert_eq!(tensors(&at.join("from_hf.ckpt"), MODEL), averaged);
    let (checkpoint, mut config) = opened(&at.join("hf"), &[]);
    let model = model(&checkpoint, &mut config, Kind::Float);
    let expected = Tensors::golden("k_lightning_ckpt/expected.safetensors");
    let want = expected.get("logits_ema");
    let got = logits(&model, &expected.get("x"), &expected.get("sigma")).view_as(&want);
    assert_close("exported", &got, &want, 1e-4, false);
    // A native checkpoint goes out the same way.
    let run = ["train", "data=stories", "run.dir=run", "trainer.max_steps=2"];
    maskdiff(at, &[&run[..], &SMALL[1..]].concat()).expect(0);
    for (kind, to) in [("safetensors", "plain"), ("hf", "stories"), ("lightning", "stories.ckpt")] {
        let words = ["export", "--checkpoint", "run", "--format", kind, "--output", to];
        maskdiff(at, &words).expect(0);
    }
    let average = tensors(&at.join("run"), EMA);
    for (name, tensor) in average {
        assert_eq!(tensors(&at.join("stories.ckpt"), EMA)[&name], tensor, "{name}");
        assert_eq!(tensors(&at.join("stories"), MODEL)[&name], tensor, "{name}");
    }
    export(&ckpt, "hf", "hf", &[]).expect(2).says(&["`hf` is there already"]);
    let ar = [
        "backbone=ar",
        "parameterization=ar",
        "sampling.predictor=ar",
        "run.dir=ar",
        "trainer.max_steps=1",
    ];
    let small: Vec<&str> = SMALL[1..]
        .iter()
        .copied()
        .filter(|w| !w.contains("cond_dim") && !w.contains("sampling.steps"))
        .collect();
    maskdiff(at, &[&["train", "data=stories"], &ar[..], &small].concat()).expect(0);
    let words = ["export", "--checkpoint", "ar", "--format", "hf", "--output", "ar-hf"];
    maskdiff(at, &words)
        .expect(2)
        .says(&["no Hugging Face layout for `ar`", "--format safetensors"]);
    let Some(python) = maskdiff_tests::python() else {
        return maskdiff_tests::skipped("no Python with torch: run scripts/setup.sh --python");
    };
    // Torch's own reader finds the same in both files. Of other modules they name these classes alone, which are not needed for that.
    let script = "import pickle, sys, torch, types\n\
        named = set()\n\
        class Stub:\n\
        \x20 def __init__(self, *a): pass\n\
        \x20 def __call__(self, *a): return self\n\
        \x20 def __setstate__(self, state): pass\n\
        class Unpickler(pickle.Unpickler):\n\
        \x20 def find_class(self, module, name):\n\
        \x20   if module.split('.')[0] in ('torch', 'collections'): return super().find_class(module, name)\n\
        \x20   named.add(module + '.' + name)\n\
        \x20   return Stub\n\
        reader = types.ModuleType('reader')\n\
        reader.__dict__.update(Unpickler=Unpickler, load=pickle.load)\n\
        a, b = (torch.load(p, weights_only=False, pickle_module=reader) for p in sys.argv[1:])\n\
        assert named == {'omegaconf.dictconfig.DictConfig', 'functools.partial', 'transformers.PreTrainedTokenizerFast', 'tokenizers.Tokenizer', 'tokenizers.models.BPE'}, named\n\
        assert a['global_step'] == 6 and a['loops']['fit_loop']['epoch_progress']['current']['completed'] == 0\n\
        assert len(a['optimizer_states'][0]['state']) == 30 and a['optimizer_states'][0]['param_groups'][0]['betas'] == (0.9, 0.999)\n\
        assert all(x.is_contiguous() for x in a['ema']['shadow_params'])\n\
        print(len(a['state_dict']), len(a['ema']['shadow_params']), len(b['state_dict']))";
    let done = std::process::Command::new(python)
        .args(["-c", script])
        .args([at.join("again.ckpt"), at.join("stories.ckpt")])
        .output()
        .expect("python");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let said = String::from_utf8_lossy(&done.stdout).into_owned();
    assert!(said.starts_with("31 30 "), "{said}");
}

fn golden_folder() -> Option<PathBuf> {
    golden_case("k_hf_mdlm")?;
    let folder = golden().join("k_hf_mdlm/mdlm_tc");
    folder.is_dir().then_some(folder)
}

#[test]
fn a_model_of_the_hub_is_evaluated_and_sampled_by_its_name() {
    let Some(golden) = golden_folder() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let root = folder.path().join("root");
    with_tokenizer(&golden, &root.join("models/lab/mdlm-tiny"));
    let words: String = (0..400).map(|i| format!("w{} ", 1 + i * 7 % 59)).collect();
    fs::write(folder.path().join("text.txt"), words).expect("written");
    for hub in Hub::all(&root, &["--lfs-threshold", "1000", "--redirect"]) {
        let run = |words: &[&str]| {
            let mut command = command(folder.path(), words);
            let home = folder.path().join(hub.url.replace(['/', ':'], "-"));
            command.env("HF_ENDPOINT", &hub.url).env("HF_HOME", home).env_remove("HF_TOKEN");
            finish(&mut command)
        };
        let base =
            ["eval.checkpoint_path=lab/mdlm-tiny", "backbone=hf_dit", "trainer.accelerator=cpu"];
        let data =
            ["data=text", "data.path=text.txt", "data.insert_eos=none", "loader.eval_batch_size=4"];
        let found = bits(&run(&[&["mode=ppl_eval"], &base[..], &data].concat()));
        assert!(found > 1.0 && found < 30.0, "{found}");
        let more = [
            "sampling.steps=4",
            "loader.eval_batch_size=1",
            "eval.compute_generative_perplexity=False",
        ];
        let drawn = run(&[&["mode=sample_eval"], &base[..], &more].concat());
        assert_eq!(drawn.expect(0).lines().len(), 2);
        let nobody = ["eval", "--checkpoint", "lab/nothing"];
        run(&nobody).expect(2).says(&["no repository `lab/nothing`"]);
    }
}

#[test]
fn what_is_damaged_or_strange_is_told_and_nothing_is_loaded() {
    let (Some(hf), Some(_)) = (golden_folder(), golden_case("k_lightning_ckpt")) else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    text(at);
    let whole = fs::read(golden().join("k_lightning_ckpt/last.ckpt")).expect("a file");
    let tokenizer = tokenizer();
    let refused = |name: &str, code: i32, says: &[&str]| {
        let words = ["eval", "--checkpoint", name, "data=text", "data.path=text.txt", &tokenizer];
        maskdiff(at, &words).expect(code).says(says);
    };
    for (bytes, said) in [
        (&whole[..whole.len() / 2], "no whole archive"),
        (&whole[..0], "no whole archive"),
        (b"PK\x03\x04 not a zip", "no whole archive"),
    ] {
        fs::write(at.join("bad.ckpt"), bytes).expect("written");
        refused("bad.ckpt", 5, &["`bad.ckpt` is damaged", said]);
    }
    // What a pickle would call is never called.
    let mut archive = zip(&[("archive/data.pkl", b"cos\nsystem\n(X\x04\x00\x00\x00true\x85R.")]);
    fs::write(at.join("harm.ckpt"), &archive).expect("written");
    refused("harm.ckpt", 5, &["`os.system`", "may mean harm"]);
    archive = zip(&[("archive/data.pkl", b"}.")]);
    fs::write(at.join("empty.ckpt"), &archive).expect("written");
    refused("empty.ckpt", 5, &["has no `state_dict`"]);
    // A folder whose tensors are others'.
    let copy = at.join("hf");
    with_tokenizer(&hf, &copy);
    let config = fs::read_to_string(copy.join("config.json")).expect("a file");
    let change = |from: &str, to: &str| {
        fs::write(copy.join("config.json"), config.replace(from, to)).expect("written");
    };
    let words = |more: &[&str]| {
        let words = [
            "eval",
            "--checkpoint",
            "hf",
            "data=text",
            "data.path=text.txt",
            "data.insert_eos=none",
        ];
        maskdiff(at, &[&words[..], more].concat())
    };
    change("\"n_blocks\": 2", "\"n_blocks\": 3");
    words(&[]).expect(5).says(&["another architecture", "`blocks.2.", "is missing"]);
    change("\"hidden_dim\": 32", "\"hidden_dim\": 64");
    words(&[]).expect(5).says(&["the model has"]);
    change("\"model_type\": \"mdlm\"", "\"model_type\": \"bd3lm\"");
    words(&[]).expect(5).says(&["config.json` is damaged", "it has no `block_size`"]);
    change("\"model_type\": \"mdlm\"", "\"model_type\": \"llama\"");
    words(&[]).expect(5).says(&["is of `llama`", "MDLM's folder", "SEDD's folder"]);
    change("\"n_heads\": 4,", "");
    words(&[]).expect(5).says(&["config.json` is damaged", "it has no `n_heads`"]);
    change("{", "[");
    words(&[]).expect(5).says(&["config.json` is damaged"]);
    change("{", "{");
    words(&[]).expect(0);
    fs::remove_file(copy.join("model.safetensors")).expect("removed");
    words(&[]).expect(5).says(&["has no `model.safetensors`"]);
}

/// A text, as a pickle has it.
fn text_of(text: &str) -> Vec<u8> {
    [b"X", &(text.len() as u32).to_le_bytes()[..], text.as_bytes()].concat()
}

/// A tensor of `count` numbers over storage 0, with this stride.
fn tensor_of(count: u32, stride: u8) -> Vec<u8> {
    let number = [b"J", &count.to_le_bytes()[..]].concat();
    let storage = [b"(".to_vec(), text_of("storage"), b"ctorch\nFloatStorage\n".to_vec()].concat();
    let storage = [storage, text_of("0"), text_of("cpu"), number.clone(), b"tQ".to_vec()].concat();
    let head = b"ctorch._utils\n_rebuild_tensor_v2\n(".to_vec();
    [
        head,
        storage,
        b"K\0".to_vec(),
        number,
        b"\x85K".to_vec(),
        vec![stride],
        b"\x85\x89NtR".to_vec(),
    ]
    .concat()
}

/// A `.ckpt` with these tensors over one storage of `count` numbers, and this configuration.
fn crafted(tensors: &[Vec<u8>], count: u32, config: &[u8]) -> Vec<u8> {
    let mut pickle = b"\x80\x02}(".to_vec();
    pickle.extend([text_of("state_dict"), b"}(".to_vec()].concat());
    for (number, tensor) in tensors.iter().enumerate() {
        pickle.extend([text_of(&format!("backbone.t{number}")), tensor.clone()].concat());
    }
    pickle.extend([b"u".to_vec(), text_of("hyper_parameters"), b"}".to_vec()].concat());
    pickle.extend([text_of("config"), config.to_vec(), b"su.".to_vec()].concat());
    let numbers = vec![0; count as usize * 4];
    zip(&[("archive/data.pkl", &pickle), ("archive/data/0", &numbers)])
}

/// Files of a few megabytes that would take the stack, gigabytes or hours, under a limit of memory.
#[test]
fn a_pickle_costs_what_its_file_holds() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    let small = [tensor_of(4, 1)];
    // An object whose content is itself; and a list, as its own element.
    let object = b"comegaconf\nNode\n)R\x94}X\x08\0\0\0_contenth\0sb";
    let list = b"]\x94h\0a";
    // Lists that hold the list before a thousand times, six deep.
    let mut nested = b"(]\x94K\x01a".to_vec();
    for level in 0..6u8 {
        nested.extend(b"](");
        nested.extend([b'h', level].repeat(1000));
        nested.extend(b"e\x94");
    }
    nested.push(b't');
    let count = 1 << 20;
    let shared = vec![tensor_of(count, 1); 2000];
    // As many numbers as the storage has, all of them its first.
    let spread = vec![tensor_of(count, 0); 2000];
    for (name, archive, said) in [
        ("self", crafted(&small, 4, object), ""),
        ("own", crafted(&small, 4, list), ""),
        ("nested", crafted(&small, 4, &nested), "far more memory than its file"),
        ("shared", crafted(&shared, count, b"}"), "vocab_embed.embedding"),
        ("spread", crafted(&spread, count, b"}"), "far more memory than its file"),
    ] {
        fs::write(at.join(format!("{name}.ckpt")), archive).expect("written");
        let begun = std::time::Instant::now();
        let line = format!("ulimit -v 4500000; exec maskdiff eval --checkpoint {name}.ckpt");
        let out = maskdiff_tests::run::shell(at, &line);
        assert!(matches!(out.code, 2 | 5), "{name}: {} {}", out.code, out.stderr);
        out.says(&[said]);
        assert!(!out.stderr.contains("memory ran out"), "{name}: {}", out.stderr);
        assert!(begun.elapsed() < std::time::Duration::from_secs(20), "{name}");
    }
}

/// A zip archive of stored files.
fn zip(files: &[(&str, &[u8])]) -> Vec<u8> {
    let script = "import sys, zipfile, json\n\
        z = zipfile.ZipFile(sys.argv[1], 'w')\n\
        [z.writestr(n, bytes(b)) for n, b in json.load(sys.stdin)]\nz.close()";
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("a.zip");
    let files: Vec<(&str, Vec<u8>)> = files.iter().map(|(name, b)| (*name, b.to_vec())).collect();
    let input = folder.path().join("in.json");
    fs::write(&input, serde_json::to_string(&files).expect("JSON")).expect("written");
    let done = std::process::Command::new("python3")
        .args(["-c", script])
        .arg(&path)
        .stdin(fs::File::open(&input).expect("a file"))
        .status();
    assert!(done.expect("python3").success());
    fs::read(&path).expect("an archive")
}
