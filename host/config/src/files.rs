//! `configs/NAME.toml`: built in, or of the current folder, or of a job's package.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use include_dir::{Dir, include_dir};
use maskdiff_base::error::{Error, Result};
use maskdiff_base::files::look;
use maskdiff_base::process::{self, is_first_rank};
use maskdiff_base::text::nearest;

use super::{ENVIRONMENT, variable};

static EMBEDDED: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/../../configs");

/// `configs/<name>.toml`, from the job's package, the current folder, or else as built in. One that stands in the current folder
/// instead of a built-in one is told of, and its name begins with `./`.
pub(super) fn config_file(name: &str) -> Result<Option<(String, String)>> {
    let path = format!("configs/{name}.toml");
    let packed = process::package().map(|package| package.join(&path));
    if let Some(text) = packed.map_or(Ok(None), |file| text_of(&file))? {
        return Ok(Some((path, text)));
    }
    let own = EMBEDDED.get_file(format!("{name}.toml")).and_then(|file| file.contents_utf8());
    Ok(match (text_of(Path::new(&path))?, own) {
        (Some(text), Some(own)) if text != own => {
            told(name, &path);
            Some((format!("./{path}"), text))
        }
        (Some(text), _) => Some((path, text)),
        (None, own) => own.map(|own| (path, own.to_string())),
    })
}

/// A name that no file can have is that of none: it may be a word that was never meant as one.
fn text_of(file: &Path) -> Result<Option<String>> {
    if look::names_something(&file.to_string_lossy())? { look::text(file) } else { Ok(None) }
}

/// Says once that a file stands for a built-in one.
fn told(name: &str, path: &str) {
    static TOLD: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    // A file of the launcher is the user's by its nature.
    if name.starts_with("launcher/") || !is_first_rank() {
        return;
    }
    if TOLD.lock().unwrap_or_else(PoisonError::into_inner).insert(path.to_string()) {
        tracing::warn!("`{path}` of this folder is used instead of the built-in one");
    }
}

/// `configs/NAME.toml` as built in.
pub(super) fn built_in(name: &str) -> &'static str {
    let file = EMBEDDED.get_file(format!("{name}.toml"));
    file.and_then(|file| file.contents_utf8()).unwrap_or_default()
}

/// A file of a group; `said_by` is the layer that chooses it.
pub(super) fn named_file(group: &str, name: &str, said_by: &str) -> Result<(String, String)> {
    let word = |name: &str| {
        let key = if said_by == ENVIRONMENT { variable(group) } else { group.to_string() };
        format!("{key}={name}")
    };
    let data = group == "data";
    let is_path = data && look::names_something(name)?;
    let is_corpus = data && config_file(&format!("corpus/{name}"))?.is_some();
    config_file(&format!("{group}/{name}"))?.ok_or_else(|| {
        let known = names(group);
        let known: Vec<&str> = known.iter().map(String::as_str).collect();
        let hint = match nearest(name, &known) {
            _ if is_path => {
                format!("your own text: `data=text data.path={name}`")
            }
            _ if is_corpus => {
                format!("a corpus is chosen by `data.train={name}`")
            }
            Some(near) => format!("did you mean `{}`?", word(near)),
            None if group == "model" => {
                let files = known.join(", ");
                format!("files of `model`: {files}; a network is chosen by `backbone={name}`")
            }
            None => format!("files of `{group}`: {}", known.join(", ")),
        };
        Error::config(format!("there is no `{}`", word(name)), hint)
    })
}

/// The name and the text of a file of `configs/SHELF/`: one that is looked up by name and is no layer of the configuration.
pub fn shelf_file(shelf: &str, name: &str) -> Result<Option<(String, String)>> {
    config_file(&format!("{shelf}/{name}"))
}

/// Writes the built-in files below a folder, to be read and changed.
pub fn write_files(folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder)
        .and_then(|()| EMBEDDED.extract(folder))
        .map_err(|e| Error::io("write", folder, &e))
}

/// The names of the files there.
pub fn shelf_names(shelf: &str) -> Vec<String> {
    names(shelf)
}

/// The built-in and the current folder's files of a group.
pub(super) fn names(group: &str) -> Vec<String> {
    let stem = |path: &Path| path.file_stem().map(|s| s.to_string_lossy().into_owned());
    let embedded = EMBEDDED.get_dir(group).into_iter().flat_map(Dir::files);
    let mut names: Vec<String> = embedded.filter_map(|file| stem(file.path())).collect();
    let here = look::optional_entries(Path::new(&format!("configs/{group}")));
    let here = here.into_iter().map(|entry| entry.path());
    let toml = here.filter(|path| path.extension().is_some_and(|ending| ending == "toml"));
    names.extend(toml.filter_map(|path| stem(&path)));
    names.sort();
    names.dedup();
    names
}
