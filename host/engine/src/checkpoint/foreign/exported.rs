//! What `maskdiff export` wrote for any network: a file of safetensors that says in its metadata how the model was made, alone
//! or in a folder with the same words in files of their own.

use std::collections::BTreeMap;
use std::path::Path;

use maskdiff_base::error::{Error, Result};
use maskdiff_base::files::look;
use maskdiff_config::{Config, begun};
use maskdiff_data::parse_tokenizer;

use super::super::Stored;
use super::{Foreign, Kept, MaskRow, bare, floats, unusable};

/// The groups of a configuration that say what a model is and what it was made for. The others say where and how a run went,
/// and some hold what is nobody else's business.
const GROUPS: &[&str] = &["data", "model", "noise", "process", "training", "sampling"];

/// Their keys that name places of the machine that it was trained on, and an adapter, which the weights hold by then.
const LEFT_OUT: &[&str] = &["data.cache_dir", "training.from", "model.adapter"];

/// What the model is, as TOML. Paths are whole: the file may be used from any folder.
pub(super) fn words(config: &Config) -> String {
    let (mut text, mut group) = (String::new(), String::new());
    let here = begun::here();
    let whole = |key: &str, value: &str| {
        let read: toml::Table = format!("x = {value}").parse().ok()?;
        let whole = begun::whole(key, read.get("x")?, here.as_ref()?);
        (Some(&whole) != read.get("x")).then(|| whole.to_string())
    };
    for (key, value, _) in config.layers.leaves() {
        let (prefix, bare) = key.rsplit_once('.').unwrap_or(("", &key));
        let first = prefix.split('.').next().unwrap_or_default();
        if !(first.is_empty() || GROUPS.contains(&first)) || LEFT_OUT.contains(&key.as_str()) {
            continue;
        }
        if prefix != group {
            text += &format!("\n[{prefix}]\n");
            group = prefix.to_string();
        }
        let value = whole(&key, &value).unwrap_or(value);
        text += &format!("{bare} = {value}\n");
    }
    text
}

/// Keys of the metadata.
pub(super) const CONFIG: &str = "maskdiff.config";
pub(super) const TOKENIZER: &str = "maskdiff.tokenizer";
pub(super) const STEP: &str = "maskdiff.step";

/// The files of the same words in a folder.
pub(super) const FILES: [&str; 2] = ["config.toml", "tokenizer.json"];

/// Reads such a file. What lies beside it in a folder of an export comes before what it says itself.
pub(super) fn read(path: &Path, file: &Path) -> Result<Foreign> {
    // What a file says of itself comes first: of another program's, tensors may be of types that are not read.
    let words = floats(file, |_| false)?.words;
    let folder = file.parent().unwrap_or(Path::new("."));
    let beside = |name: &str| look::text(&folder.join(name));
    let is_folder = look::is_folder(path)?;
    let said = |name: &str, key: &str| -> Result<Option<String>> {
        let own = words.get(key).cloned();
        match own {
            Some(own) if !is_folder => Ok(Some(own)),
            own => Ok(beside(name)?.or(own)),
        }
    };
    let (Some(config), Some(tokenizer)) = (said(FILES[0], CONFIG)?, said(FILES[1], TOKENIZER)?)
    else {
        if is_folder {
            return Err(Error::checkpoint(
                format!(
                    "`{}` does not tell how its model was made, and there is no `config.json` beside it",
                    file.display()
                ),
                "copy the model's `config.json` beside them, and its tokenizer (`tokenizer.json`); or fetch the whole folder again",
            ));
        }
        return Err(Error::checkpoint(
            format!("`{}` does not tell how its model was made", file.display()),
            "a file of `maskdiff export --format safetensors` does; of another program's model give the folder, with its `config.json`",
        ));
    };
    let contents = floats(file, |_| true)?;
    let vocab_size = parse_tokenizer(&tokenizer, path)?.vocab_size();
    let mut weights: BTreeMap<String, Stored> = BTreeMap::new();
    for (name, tensor) in contents.tensors {
        let name = bare(&name, "").unwrap_or_else(|name| name);
        if weights.insert(name.clone(), tensor).is_some() {
            return Err(unusable(file, &format!("`{name}` is there twice")));
        }
    }
    Ok(Foreign {
        path: path.to_path_buf(),
        files: vec![file.to_path_buf()],
        config,
        run: String::new(),
        samples: None,
        step: contents.words.get(STEP).and_then(|step| step.parse().ok()).unwrap_or(0),
        vocab_size,
        weights,
        ema: None,
        ema_updates: 0,
        optimizer: BTreeMap::new(),
        tokenizer: Some(Kept::Text(tokenizer)),
        mask: MaskRow::OfTokenizer,
        length_key: None,
        is_told: true,
        layout: None,
    })
}
