//! Where the relative paths of a stored configuration start: in the folder where its run was begun, from wherever it is read.
//!
//! A run's `config.toml`, beside it and in its checkpoints, says where that was under `run.begun_in`. It is no key of a run:
//! it is taken out where the file is read, and a run that goes on from another folder writes its own.

use std::path::{Component, Path, PathBuf};

use figment::value::{Dict, Value as Figured};
use maskdiff_base::files::look;

/// The key of `run` in a stored configuration.
pub const KEY: &str = "run.begun_in";

/// Keys whose values are paths, or lists of such.
const PATHS: [&str; 10] = [
    "checkpointing.resume_ckpt_path",
    "checkpointing.save_dir",
    "data.cache_dir",
    "data.chat_template",
    "data.path",
    "data.valid_path",
    "eval.gen_ppl.references",
    "eval.results",
    "plugins.paths",
    "run.dir",
];

/// Keys whose values name something, or are the path of it where there is such a file. Of a component it stands between colons,
/// as in `NAME:FILE:CLASS`.
const NAMES: [&str; 13] = [
    "backbone",
    "data.tokenizer_name_or_path",
    "diffusion",
    "eval.checkpoint_path",
    "eval.gen_ppl_eval_model_name_or_path",
    "model.adapter",
    "noise.type",
    "parameterization",
    "sampling.classifier",
    "sampling.energy",
    "sampling.predictor",
    "training.from",
    "training.teacher",
];

/// What components in Python are made of, `FILE:CLASS`.
const ARGUMENTS: [&str; 6] = [
    "argument",
    "model.argument",
    "noise.argument",
    "process.argument",
    "sampling.argument",
    "training.argument",
];

/// The current folder.
pub fn here() -> Option<PathBuf> {
    std::env::current_dir().ok()
}

/// Whether a layer is the stored configuration of a run or a checkpoint.
pub fn is_stored(layer: &str) -> bool {
    let beside = |name: &str| {
        let file = Path::new(layer).with_file_name(name);
        look::optional_found(&file).is_some_and(|it| it.is_file())
    };
    layer.ends_with("config.toml") && (beside("manifest.json") || beside("state.json"))
}

/// The folder where the run of a stored configuration was begun, as the file and its place tell; none where neither does.
pub fn place(file: &Path, text: &str) -> Option<PathBuf> {
    let values: toml::Table = text.parse().ok()?;
    let run = |key: &str| values.get("run")?.get(key)?.as_str().map(PathBuf::from);
    let said = run("begun_in");
    let is_folder = |path: &PathBuf| look::optional_found(path).is_some_and(|it| it.is_dir());
    if said.as_ref().is_some_and(is_folder) {
        return said;
    }
    // Of a run that was moved together with its folder, or that is from before this was written down.
    let whole = [std::path::absolute(file).ok(), file.canonicalize().ok()];
    let found = whole.iter().flatten().find_map(|file| above(file, run("dir").as_deref()));
    found.filter(|_| is_stored(&file.to_string_lossy())).or(said)
}

/// What is left of a run's folder without its `run.dir` at the end, or without `outputs/DATA/DATE/TIME`.
fn above(file: &Path, dir: Option<&Path>) -> Option<PathBuf> {
    let folder = file.parent()?;
    let run = match folder.parent() {
        Some(checkpoints) if checkpoints.ends_with("checkpoints") => checkpoints.parent()?,
        _ => folder,
    };
    let depth = match dir {
        Some(dir) => {
            let parts: Vec<Component<'_>> =
                dir.components().filter(|part| *part != Component::CurDir).collect();
            let plain = parts.iter().all(|part| matches!(part, Component::Normal(_)));
            let dir: PathBuf = parts.iter().collect();
            (plain && !parts.is_empty() && run.ends_with(dir)).then_some(parts.len())?
        }
        None => run.ancestors().nth(3)?.ends_with("outputs").then_some(4)?,
    };
    run.ancestors().nth(depth).map(Path::to_path_buf)
}

/// Lets the relative paths of a stored configuration start where its run was begun, and takes that place out.
pub(super) fn settle(file: &str, text: &str, values: &mut Dict) {
    if let Some(base) = place(Path::new(file), text).filter(|base| Some(base) != here().as_ref()) {
        for key in PATHS.iter().chain(&NAMES).chain(&ARGUMENTS) {
            if let Some(value) = leaf(values, key) {
                started(key, value, &base);
            }
        }
    }
    if let Some(Figured::Dict(_, run)) = values.get_mut("run") {
        run.remove("begun_in");
    }
}

/// Writes the folder where relative paths start into a stored configuration.
pub fn note(values: &mut toml::Table, folder: &Path) {
    let run = values.entry("run").or_insert_with(|| toml::Table::new().into());
    if let toml::Value::Table(run) = run {
        run.insert("begun_in".into(), folder.display().to_string().into());
    }
}

/// A value of a key whose relative paths start in a folder, with whole paths.
pub fn whole(key: &str, value: &toml::Value, folder: &Path) -> toml::Value {
    match value {
        toml::Value::String(text) => toml::Value::String(from(key, text, folder)),
        toml::Value::Array(all) => {
            toml::Value::Array(all.iter().map(|value| whole(key, value, folder)).collect())
        }
        other => other.clone(),
    }
}

fn leaf<'a>(values: &'a mut Dict, key: &str) -> Option<&'a mut Figured> {
    match key.split_once('.') {
        None => values.get_mut(key),
        Some((group, rest)) => match values.get_mut(group)? {
            Figured::Dict(_, inner) => leaf(inner, rest),
            _ => None,
        },
    }
}

fn started(key: &str, value: &mut Figured, base: &Path) {
    match value {
        Figured::String(_, text) => *text = from(key, text, base),
        Figured::Array(_, list) => list.iter_mut().for_each(|value| started(key, value, base)),
        _ => {}
    }
}

/// The value of a key as it is meant in the folder `base`: a relative path from the root on, anything else as it stands.
pub fn from(key: &str, value: &str, base: &Path) -> String {
    let joined = |path: &str| {
        let path: PathBuf = base.join(path).components().collect();
        path.display().to_string()
    };
    let relative = |path: &str| !path.is_empty() && !path.starts_with(['/', '~']);
    let there = |path: &str| {
        // A value that is no path may have any length.
        relative(path) && path.len() < 4096 && look::optional_found(&base.join(path)).is_some()
    };
    if PATHS.contains(&key) {
        let none = key == "eval.results" && ["none", "None", "null"].contains(&value);
        return if relative(value) && !none { joined(value) } else { value.to_string() };
    }
    if ARGUMENTS.contains(&key) {
        return match value.rsplit_once(':') {
            Some((file, class)) if there(file) => format!("{}:{class}", joined(file)),
            _ => value.to_string(),
        };
    }
    if !NAMES.contains(&key) {
        return value.to_string();
    }
    let component =
        value.split_once(':').and_then(|(name, rest)| Some((name, rest.rsplit_once(':')?)));
    match component {
        Some((name, (file, class))) if there(file) => format!("{name}:{}:{class}", joined(file)),
        _ if there(value) => joined(value),
        _ => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(folder: &Path, text: &str) -> PathBuf {
        std::fs::create_dir_all(folder).unwrap();
        std::fs::write(folder.join("config.toml"), text).unwrap();
        std::fs::write(folder.join("manifest.json"), "{}").unwrap();
        folder.join("config.toml")
    }

    #[test]
    fn a_stored_configuration_tells_where_its_run_was_begun() {
        let root = tempfile::tempdir().unwrap();
        let at = root.path();
        let said = |place: &Path| {
            format!("[run]\nbegun_in = {:?}\ndir = \"runs/x\"\n", place.display().to_string())
        };
        let place = |file: &Path, text: &str| super::place(file, text);
        // As written, also of a run whose folder alone was copied.
        let text = said(at);
        let file = stored(&at.join("copy/runs/x"), &text);
        assert_eq!(place(&file, &text).as_deref(), Some(at));
        // Moved with everything around it, from a place that is no more.
        let text = said(Path::new("/nowhere"));
        let file = stored(&at.join("moved/runs/x"), &text);
        assert_eq!(place(&file, &text).unwrap(), at.join("moved"));
        // Of a checkpoint that lies somewhere else, what was written is all there is.
        let file = stored(&at.join("else"), &text);
        assert_eq!(place(&file, &text).unwrap(), Path::new("/nowhere"));
        // Older ones say their folder or have the usual one.
        for (folder, text) in [
            ("old/runs/x", "[run]\ndir = \"./runs/x\""),
            ("old/outputs/stories/2026.01.01/120000", "seed = 1"),
        ] {
            let file = stored(&at.join(folder), text);
            assert_eq!(place(&file, text).unwrap(), at.join("old"), "{folder}");
            let inner = at.join(folder).join("checkpoints/step-00000001");
            let inner = stored(&inner, text);
            assert_eq!(place(&inner, text).unwrap(), at.join("old"), "{folder}");
        }
        for text in ["[run]\ndir = \"/somewhere/x\"", "[run]\ndir = \"../x\"", "seed = 1"] {
            assert_eq!(place(&stored(&at.join("lost/x"), text), text), None, "{text}");
        }
        // A file of the user's own is none of a run.
        let own = at.join("own/outputs/a/b/c");
        std::fs::create_dir_all(&own).unwrap();
        std::fs::write(own.join("config.toml"), "seed = 1").unwrap();
        assert_eq!(place(&own.join("config.toml"), "seed = 1"), None);
    }

    #[test]
    fn paths_start_there_and_names_stay_names() {
        let root = tempfile::tempdir().unwrap();
        let at = root.path();
        std::fs::write(at.join("mine.py"), "").unwrap();
        std::fs::write(at.join("gpt2"), "").unwrap();
        let whole = |name: &str| at.join(name).display().to_string();
        for (key, value, expected) in [
            ("data.path", "ts.txt", whole("ts.txt")),
            ("data.chat_template", "t.jinja", whole("t.jinja")),
            ("training.teacher", "gpt2", whole("gpt2")),
            ("model.adapter", "gpt2", whole("gpt2")),
            ("data.path", "./a/*.txt", whole("a/*.txt")),
            ("data.path", "/ts.txt", "/ts.txt".into()),
            ("data.path", "~/ts.txt", "~/ts.txt".into()),
            ("eval.results", "none", "none".into()),
            ("data.tokenizer_name_or_path", "bert", "bert".into()),
            ("data.tokenizer_name_or_path", "gpt2", whole("gpt2")),
            ("sampling.predictor", "x:mine.py:Mine", format!("x:{}:Mine", whole("mine.py"))),
            ("sampling.predictor", "x:yours.py:Mine", "x:yours.py:Mine".into()),
            ("data.name", "gpt2", "gpt2".into()),
        ] {
            assert_eq!(from(key, value, at), expected, "{key}={value}");
        }
    }
}
