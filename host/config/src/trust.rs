//! Whose code is used: a checkpoint is data, and the code that a stored configuration names is used only where its user has named that
//! path before on this machine by a word of their own, or where it lies in a folder of plugins that they have set up.
//!
//! A word of one's own stands on the command line, in the environment or in a file that `--config` names. It is remembered in the user's
//! data folder (`trust/memory`). A stored configuration is that of a run, of a checkpoint or of another program's model. What is
//! remembered must be safe from others' hands (`trust/rights`). A path that one has named stays one's own when its file is edited. A file
//! elsewhere of the same content is used from the remembered path: beside the other one may lie what it imports.

mod memory;
mod rights;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::kind::ComponentKind;
use maskdiff_base::error::{Error, Result};
use maskdiff_base::files::look;
use maskdiff_base::places::{Places, looks_like_plugin};
use maskdiff_base::text::quoted;
use memory::Memory;

use crate::{Config, expand_home};

pub use memory::remember;

/// The flag that lets this command use whatever code a stored configuration names.
pub const FLAG: &str = "--trust";

/// Whether [`FLAG`] was said.
static SAID: AtomicBool = AtomicBool::new(false);

/// [`FLAG`] was said.
pub fn say() {
    SAID.store(true, Ordering::Relaxed);
}

/// Whether [`FLAG`] was said.
pub fn is_said() -> bool {
    SAID.load(Ordering::Relaxed)
}

/// The plugin files and folders that `plugins.paths` names, as they may be opened.
pub fn plugins(config: &Config) -> Result<Vec<PathBuf>> {
    const KEY: &str = "plugins.paths";
    let paths = config.plugins.paths.iter().map(PathBuf::from);
    if config.is_own_word(KEY) {
        return Ok(paths.inspect(|path| remember(path)).collect());
    }
    let mut used = Vec::new();
    for path in paths {
        let whole = format!("{KEY}=[{}]", path.display());
        let code = Code { config, key: KEY, word: quoted(&whole), without: "`plugins.paths=[]`" };
        used.extend(code.trusted(&path)?);
    }
    Ok(used)
}

/// The argument of a component that `key` chooses, as in `FILE:CLASS`, with the file that may be used. `name` is the component's.
pub fn argument(config: &Config, key: &str, name: &str, argument: &str) -> Result<String> {
    // What stands behind the last colon is a name in the file.
    let (file, class) = argument.rsplit_once(':').unwrap_or((argument, ""));
    let path = PathBuf::from(expand_home(file)?);
    let with = |path: &Path| {
        if class.is_empty() {
            path.display().to_string()
        } else {
            format!("{}:{class}", path.display())
        }
    };
    if config.is_own_word(key) {
        remember(&path);
        return Ok(with(&path));
    }
    // A word that is the path of nothing.
    if !argument.contains(['/', ':']) && look::found(&path)?.is_none() {
        return Ok(argument.to_string());
    }
    let whole = if key.ends_with(".argument") || key == "argument" {
        format!("{key}={argument}")
    } else {
        format!("{key}={name}:{argument}")
    };
    let code = Code { config, key, word: quoted(&whole), without: "the name of another component" };
    let used = code.trusted(&path)?;
    Ok(used.first().map_or_else(|| with(&path), |path| with(path)))
}

/// Whether a word of a command line lets something run, or sends something somewhere.
pub fn is_acting(word: &str) -> bool {
    const KEYS: [&str; 5] = ["alert.", "checkpointing.mirror", "launcher.s", "plugins.", "wandb."];
    let word = word.trim_start_matches('+');
    let (key, value) = word.split_once('=').unwrap_or((word, ""));
    let names_file =
        ComponentKind::ALL.iter().any(|kind| kind.key() == key) && value.contains([':', '/']);
    let sends = KEYS.iter().any(|begin| key.starts_with(begin)) && key != "wandb.group";
    word.starts_with("--") || names_file || sends || key.ends_with("argument")
}

/// Refuses to go on with what a folder's files say, where this user has not written them; `word` is what they would do.
pub fn begun(folder: &Path, written: &[PathBuf], word: &str) -> Result<()> {
    let memory = Memory::read();
    let own = |file: &PathBuf| {
        memory.knows_content(file)
            || memory.path(file).is_some() && rights::others_may_write(file).is_none()
    };
    if is_said() || written.iter().all(own) {
        return Ok(());
    }
    let word = word.split_once('=').map_or(word, |(key, _)| key);
    Err(Error::plugin(
        format!(
            "`{}` was not begun by you on this machine, and its words say `{word}`, which runs or sends something",
            folder.display()
        ),
        format!("if you trust it, add `{FLAG}`; or begin a sweep of your own with its settings"),
    ))
}

/// Code that a stored configuration names.
struct Code<'a> {
    config: &'a Config,
    key: &'a str,
    /// The words that name it oneself, for a shell.
    word: String,
    /// What does without it.
    without: &'a str,
}

impl Code<'_> {
    /// From where it is used, or why it is not. Nothing of it is opened but to compare its content.
    fn trusted(&self, path: &Path) -> Result<Vec<PathBuf>> {
        if is_said() || in_set_up_folder(path) {
            return Ok(vec![path.to_path_buf()]);
        }
        let memory = Memory::read();
        if let Some(own) = memory.path(path) {
            self.check_rights(path, &own)?;
            remember(&own);
            return Ok(vec![own]);
        }
        let files =
            if look::is_folder(path)? { plugins_in(path)? } else { vec![path.to_path_buf()] };
        let mut used = Vec::new();
        for file in files {
            let Some(own) = memory.same_content(&file) else { return Err(self.refused(&file)) };
            self.check_rights(&file, &own)?;
            used.push(own);
        }
        // A folder without plugins names no code, but might later.
        if used.is_empty() { Err(self.refused(path)) } else { Ok(used) }
    }

    fn refused(&self, file: &Path) -> Error {
        let (key, source) = (self.key, self.config.layers.source(self.key));
        let is_there = look::optional_found(file).is_some();
        let absent = if is_there { "" } else { " (there is no such file)" };
        Error::plugin(
            format!(
                "`{}`{absent} is code that `{source}` names (`{key}`), and you have not: a stored configuration is data, its code is not \
                 used by itself",
                file.display()
            ),
            format!(
                "if you trust it, name it in your own words, which are remembered: {}; or say `{FLAG}`, which counts for this command; \
                 {} does without it",
                self.word, self.without
            ),
        )
    }

    /// Refuses what was named once, and somebody else may have changed since.
    fn check_rights(&self, named: &Path, own: &Path) -> Result<()> {
        let Some(weak) = rights::others_may_write(own) else { return Ok(()) };
        let (key, source) = (self.key, self.config.layers.source(self.key));
        let same = if named == own {
            String::new()
        } else {
            format!(", which is used for `{}`", named.display())
        };
        Err(Error::plugin(
            format!(
                "`{}`{same} is code that `{source}` names (`{key}`), and somebody else may write `{}`",
                own.display(),
                weak.display()
            ),
            format!(
                "take the right away (`chmod go-w {}`, if it is yours); or name it again: {}; or say `{FLAG}`",
                quoted(&weak.display().to_string()),
                self.word
            ),
        ))
    }
}

/// Whether a path is, or lies in, a folder that the user has set up for plugins and that is safe from others.
fn in_set_up_folder(path: &Path) -> bool {
    let Ok(path) = path.canonicalize() else { return false };
    let inside =
        |folder: &PathBuf| folder.canonicalize().is_ok_and(|folder| path.starts_with(folder));
    let set_up = Places::of_user().into_iter().chain(crate::plugin_folders());
    // Of the program's own folder, what is opened there anyway.
    let opened = Places::beside().iter().any(inside) && looks_like_plugin(&path);
    let found = opened || set_up.into_iter().any(|folder| inside(&folder));
    found && rights::others_may_write(&path).is_none()
}

/// The plugin files of a folder.
fn plugins_in(folder: &Path) -> Result<Vec<PathBuf>> {
    let paths = look::entries(folder)?.into_iter().map(|entry| entry.path());
    let mut files: Vec<PathBuf> = paths.filter(|path| looks_like_plugin(path)).collect();
    files.sort();
    Ok(files)
}
