//! What must not be read by others: where a run's end is told, and addresses with a password, a signature or a token in them.
//!
//! A file of the run that others may read (configuration, manifest, checkpoint, job, sweep, W&B) holds a reference, `secret:NAME`, or
//! `secret:FILE#NAME` in the words of a job. What it stands for is in one file of mode 600, [`FILE`], in the folder of the run, of the
//! job or of the sweep. Words that are only shown have [`HIDDEN`](maskdiff_base::scrub::HIDDEN) instead.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use figment::value::{Dict, Value};
use maskdiff_base::error::{Error, Result};
use maskdiff_base::files::{self, look};
use maskdiff_base::scrub::{REFERENCE, is_secret, scrubbed};
use maskdiff_base::text::quoted_path;

use crate::Config;

/// The file that holds the secrets of a folder, by name; its owner's alone.
pub const FILE: &str = "secrets.toml";

/// How far above a configuration the secrets of its run may be: it is in the run folder, or in one of its checkpoints.
const ABOVE: usize = 4;

/// Secrets by name.
pub type Secrets = BTreeMap<String, String>;

/// Values with references for the secrets among them, and those.
pub fn split(values: &Dict) -> (Dict, Secrets) {
    let (mut shown, mut secrets) = (values.clone(), Secrets::new());
    each(&mut shown, &mut |key, text| {
        if is_secret(key, text) {
            secrets.insert(key.to_string(), std::mem::replace(text, format!("{REFERENCE}{key}")));
        }
    });
    (shown, secrets)
}

/// The value of a word with what its reference stands for.
pub fn value_of(value: &str) -> String {
    let found = value.strip_prefix(REFERENCE).and_then(|rest| look_up(rest, Path::new("")));
    found.unwrap_or_else(|| value.to_string())
}

/// Replaces references by the secrets that they refer to, where those can be read. `file` is the configuration that contains them.
pub fn resolved(mut values: Dict, file: &Path) -> Dict {
    each(&mut values, &mut |_, text| {
        let Some(found) = text.strip_prefix(REFERENCE).and_then(|rest| look_up(rest, file)) else {
            return;
        };
        *text = found;
    });
    values
}

/// Calls `act` with every text and its dotted key.
fn each(values: &mut Dict, act: &mut impl FnMut(&str, &mut String)) {
    for (key, value) in values {
        each_of(key, value, act);
    }
}

fn each_of(path: &str, value: &mut Value, act: &mut impl FnMut(&str, &mut String)) {
    match value {
        Value::String(_, text) => act(path, text),
        Value::Dict(_, inner) => {
            inner.iter_mut().for_each(|(key, value)| each_of(&format!("{path}.{key}"), value, act));
        }
        Value::Array(_, all) => {
            let numbered = all.iter_mut().enumerate();
            numbered.for_each(|(n, value)| each_of(&format!("{path}.{n}"), value, act));
        }
        _ => {}
    }
}

fn look_up(reference: &str, file: &Path) -> Option<String> {
    if let Some((place, name)) = reference.rsplit_once('#') {
        // In words alone: a file must not name another's secrets.
        if !file.as_os_str().is_empty() {
            return None;
        }
        return read(Path::new(place)).remove(name);
    }
    let folders = file.parent()?.ancestors().take(ABOVE);
    folders.filter_map(|folder| read(&folder.join(FILE)).remove(reference)).next()
}

/// The secrets of a file; none where it is not there or not ours to read.
fn read(file: &Path) -> Secrets {
    let is_ours = |e: &std::io::Error| e.kind() != std::io::ErrorKind::PermissionDenied;
    match fs::File::open(file) {
        Err(e) if !is_ours(&e) => Secrets::default(),
        _ => toml::from_str(&look::optional(file).unwrap_or_default()).unwrap_or_default(),
    }
}

/// Keeps secrets in a folder, beside those that are there.
pub fn keep(folder: &Path, secrets: &Secrets) -> Result<()> {
    if secrets.is_empty() {
        return Ok(());
    }
    let file = folder.join(FILE);
    // One that cannot be read now is not written over.
    let mut all: Secrets =
        toml::from_str(&look::text(&file)?.unwrap_or_default()).unwrap_or_default();
    all.extend(secrets.clone());
    let text = toml::to_string(&all).unwrap_or_default();
    files::write_private(&file, format!("# What only the owner of this folder may read.\n{text}"))
}

/// Refuses to begin with a reference to what cannot be read.
pub fn check(config: &Config) -> Result<()> {
    let told = [
        ("alert.on_finish", &config.alert.on_finish),
        ("alert.on_crash", &config.alert.on_crash),
        ("checkpointing.mirror", &config.checkpointing.mirror),
    ];
    for (key, value) in told {
        if value.as_ref().is_some_and(|value| value.starts_with(REFERENCE)) {
            let message = format!("`{key}` is a secret that is not to be had here");
            let hint = format!(
                "it stands in `{FILE}` of the folder that the configuration comes from, which its owner alone may read; give it \
                 anew: `{key}=...`"
            );
            return Err(config.layers.error(key, &message, &hint));
        }
    }
    Ok(())
}

/// Takes the secrets out of the words of a job or of a sweep, into the file of its folder.
#[derive(Debug, Clone)]
pub struct Vault {
    folder: PathBuf,
    kept: Secrets,
    /// Lines of the shell that have some.
    setup: Option<String>,
}

/// The file of the lines of the shell that a job runs first, when they hold secrets.
const SETUP: &str = "setup.sh";

impl Vault {
    /// For words that are written into `folder`, a path from the root.
    pub fn new(folder: &Path) -> Self {
        Self { folder: folder.to_path_buf(), kept: Secrets::new(), setup: None }
    }

    /// A word `KEY=VALUE` with a reference for its value where that is a secret; others stay as they are.
    pub fn word(&mut self, word: &str) -> String {
        self.word_for(word, "", &[])
    }

    /// The value of a key of a job's settings, or a reference for it.
    pub fn value(&mut self, key: &str, value: &str) -> String {
        let word = self.word(&format!("launcher.{key}={value}"));
        word.split_once('=').map_or_else(String::new, |(_, value)| value.to_string())
    }

    /// The same of a word in which `mark` stands for each of `numbers`.
    pub fn word_for(&mut self, word: &str, mark: &str, numbers: &[u64]) -> String {
        let Some((key, value)) = word.split_once('=') else { return word.to_string() };
        let name = key.trim_start_matches(['+', '~']);
        if !is_secret(name, value) {
            return word.to_string();
        }
        let file = self.folder.join(FILE);
        if mark.is_empty() || !value.contains(mark) {
            let name = self.put(name, value);
            return format!("{key}={REFERENCE}{}#{name}", file.display());
        }
        for number in numbers {
            let (name, value) =
                (format!("{name}-{number}"), value.replace(mark, &number.to_string()));
            self.kept.insert(name, value);
        }
        format!("{key}={REFERENCE}{}#{name}-{mark}", file.display())
    }

    /// Lines of the shell, or where they hold secrets the one that reads them from the vault.
    pub fn lines(&mut self, lines: Vec<String>) -> Vec<String> {
        if lines.iter().all(|line| scrubbed(line) == *line) {
            return lines;
        }
        self.setup = Some(lines.join("\n") + "\n");
        vec![format!(". {}", quoted_path(&self.folder.join(SETUP)))]
    }

    /// Keeps a value under a name that no other value has.
    fn put(&mut self, name: &str, value: &str) -> String {
        let numbered = (2..).map(|n: u32| format!("{name}-{n}"));
        let free = |name: &String| self.kept.get(name).is_none_or(|other| other == value);
        let name = std::iter::once(name.to_string()).chain(numbered).find(free);
        let name = name.unwrap_or_default();
        self.kept.insert(name.clone(), value.to_string());
        name
    }

    /// Writes them down.
    pub fn write(&self) -> Result<()> {
        if let Some(setup) = &self.setup {
            files::write_private(&self.folder.join(SETUP), setup)?;
        }
        keep(&self.folder, &self.kept)
    }
}

/// A file with the mode of what holds secrets, when its text has some.
pub fn protect(file: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    let text = fs::read_to_string(file).map_err(|e| Error::io("read", file, &e))?;
    let values: Dict = toml::from_str(&text).unwrap_or_default();
    if split(&values).1.is_empty() {
        return Ok(());
    }
    let private = fs::Permissions::from_mode(files::PRIVATE);
    fs::set_permissions(file, private).map_err(|e| Error::io("write", file, &e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_hidden_is_found_again_by_its_owner() {
        let folder = tempfile::tempdir().unwrap();
        let text = "[alert]\non_finish = 'echo me'\n[plugins]\npaths = ['a', 'http://u:p@h']\n";
        let values: Dict = toml::from_str(text).unwrap();
        let (shown, secrets) = split(&values);
        assert_eq!(secrets["alert.on_finish"], "echo me");
        assert_eq!(secrets["plugins.paths.1"], "http://u:p@h");
        assert!(!format!("{shown:?}").contains("echo me") && !format!("{shown:?}").contains("u:p"));
        // As others see it: the file is not there.
        let config = folder.path().join("checkpoints/step-1/config.toml");
        let plain = |values: &Dict| serde_json::to_value(values).unwrap();
        assert_eq!(plain(&resolved(shown.clone(), &config)), plain(&shown));
        keep(folder.path(), &secrets).unwrap();
        keep(folder.path(), &Secrets::from([("b".into(), "c".into())])).unwrap();
        assert_eq!(plain(&resolved(shown, &config)), plain(&values));
        use std::os::unix::fs::PermissionsExt as _;
        let mode = fs::metadata(folder.path().join(FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn the_words_of_a_job_hold_references() {
        let folder = tempfile::tempdir().unwrap();
        let mut vault = Vault::new(folder.path());
        let file = folder.path().join(FILE).display().to_string();
        assert_eq!(vault.word("seed=1"), "seed=1");
        let word = vault.word("alert.on_finish=one");
        assert_eq!(word, format!("alert.on_finish=secret:{file}#alert.on_finish"));
        assert_eq!(vault.word(&word), word, "a reference is no secret");
        let export = ["module load a", "export HTTPS_PROXY=http://u:p@h"].map(String::from);
        let lines = vault.lines(export.to_vec());
        assert_eq!(lines, [format!(". {}", folder.path().join("setup.sh").display())]);
        assert_eq!(vault.lines(vec![export[0].clone()]), export[..1]);
        // Another value of the same key, and one with the number of a task in it.
        assert!(vault.word("alert.on_finish=two").ends_with("#alert.on_finish-2"));
        let task = vault.word_for("alert.on_crash=say {task}", "{task}", &[4, 7]);
        assert!(task.ends_with("#alert.on_crash-{task}"), "{task}");
        vault.write().unwrap();
        let setup = fs::read_to_string(folder.path().join("setup.sh")).unwrap();
        assert_eq!(setup, export.join("\n") + "\n");
        let value = |word: &str| value_of(word.split_once('=').unwrap().1);
        assert_eq!(value(&word), "one");
        assert_eq!(value(&task.replace("{task}", "7")), "say 7");
    }
}
