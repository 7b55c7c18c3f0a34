//! Whose a file is: one that this program wrote as the same kind is replaced, one of the user's is not.
//!
//! The content says what a file is: a marker, a first line, the members of a JSON object. There is no list of files that were
//! written, so a copy counts like the original. An empty file is free to be filled. Pipes and devices are written into.

use std::fs::{self, File, Metadata};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use maskdiff_base::error::{Error, Result};
use maskdiff_base::files::{self, look};
use maskdiff_base::output;
use maskdiff_base::text::hex;
use serde_json::Value;

/// Bytes at the start of a file that decide.
const HEAD: u64 = 1 << 20;

/// What this program writes under names that a user chooses, or in a folder that a user chooses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The page of `maskdiff report`.
    Report,
    /// The page of `maskdiff sample --html`.
    Player,
    /// What `maskdiff sample --trace` writes.
    Trace,
    /// The picture of `maskdiff sample --svg`.
    Denoising,
    /// The picture of `maskdiff runs plot`.
    Plot,
    /// Results of evaluations, a line each.
    Ledger,
    /// The jobs of a folder, a line each.
    Jobs,
    /// The table of a sweep.
    Table,
    /// The table of `maskdiff steps`.
    Steps,
    /// The page of a component.
    Component,
    /// `config.toml` of a run.
    Config,
    /// `manifest.json` of a run.
    Manifest,
    /// `tokenizer.json` of a run.
    Tokenizer,
    /// `secrets.toml` of a run.
    Secrets,
    /// What `maskdiff train --profile` records.
    Profile,
    /// Logs and metrics of a run, which have no mark of their own.
    Log,
}

/// The files of a run.
const RUN: [(&str, Kind); 7] = [
    ("config.toml", Kind::Config),
    ("manifest.json", Kind::Manifest),
    ("tokenizer.json", Kind::Tokenizer),
    ("secrets.toml", Kind::Secrets),
    ("metrics.jsonl", Kind::Log),
    ("metrics.csv", Kind::Log),
    ("log.txt", Kind::Log),
];

impl Kind {
    fn in_words(self) -> &'static str {
        match self {
            Self::Report => "page of `maskdiff report`",
            Self::Player => "page of `maskdiff sample --html`",
            Self::Trace => "trace of `maskdiff sample --trace`",
            Self::Denoising => "picture of `maskdiff sample --svg`",
            Self::Plot => "picture of `maskdiff runs plot`",
            Self::Ledger => "ledger of results",
            Self::Jobs => "list of jobs",
            Self::Table => "table of a sweep",
            Self::Steps => "table of `maskdiff steps`",
            Self::Component => "page of `maskdiff plugins docs`",
            Self::Profile => "recording of `maskdiff train --profile`",
            Self::Config | Self::Manifest | Self::Tokenizer | Self::Secrets | Self::Log => {
                "file of a run of maskdiff"
            }
        }
    }

    /// Whether a file that begins with `head` is of this kind.
    fn is_of(self, head: &str) -> bool {
        let any_line = |wanted: &dyn Fn(&Value) -> bool| {
            head.lines().any(|line| serde_json::from_str(line).is_ok_and(|line| wanted(&line)))
        };
        let has = |line: &Value, keys: &[&str]| keys.iter().all(|key| line.get(key).is_some());
        let page = |maker: &str| {
            let generator = format!("<meta name=\"generator\" content=\"maskdiff {maker}\">");
            // Pages of 0.1.0 have the title alone.
            let old = "<title>maskdiff report</title>";
            head.starts_with("<!DOCTYPE html>")
                && (head.contains(&generator)
                    || head.contains(old) && !head.contains("name=\"generator\""))
        };
        let picture = |maker: &str| {
            let opening = head.split('>').next().unwrap_or_default();
            opening.starts_with("<svg ")
                && opening.contains(&format!("data-maker=\"maskdiff {maker}\""))
        };
        match self {
            Self::Report => page("report"),
            Self::Denoising => picture("sample"),
            Self::Plot => picture("runs plot"),
            Self::Player => page("sample"),
            Self::Trace => head.starts_with("{\"format\":") && head.contains(",\"sampler\":\""),
            Self::Ledger => any_line(&|line| has(line, &["kind", "maskdiff", "libtorch", "time"])),
            Self::Jobs => any_line(&|line| has(line, &["job", "script", "submitted"])),
            Self::Table => head.starts_with("point,") || head.starts_with("point\n"),
            Self::Steps => head.starts_with("sampler,steps,nfe,"),
            Self::Component => {
                head.starts_with("# ")
                    && (head.contains("\nChosen by `")
                        || head.contains("Written by `maskdiff plugins docs`"))
            }
            Self::Config => head.contains("# where relative paths start"),
            Self::Manifest => ["maskdiff", "plugin_api", "started"]
                .iter()
                .all(|key| head.contains(&format!("\"{key}\":"))),
            Self::Tokenizer => head.trim_start().starts_with("{\"maskdiff_tokenizer\""),
            Self::Secrets => head.starts_with("# What only the owner of this folder may read."),
            Self::Profile => head.contains("\"traceEvents\"") || head.contains("\"schemaVersion\""),
            Self::Log => false,
        }
    }
}

/// Why a path may not be written as a file of a kind; none where it may.
pub fn fault(path: &Path, kind: Kind) -> Result<Option<String>> {
    let Some(found) = look::found(path)? else {
        let dangling = look::is_taken(path)?;
        return Ok(dangling.then(|| "is a link to a file that is not there".to_string()));
    };
    if found.is_dir() {
        return Ok(Some("is a folder".into()));
    }
    if !found.is_file() || found.len() == 0 {
        return Ok(None);
    }
    Ok(match head(path) {
        Ok(head) if kind.is_of(&head) => None,
        Ok(_) => Some(format!("is there already, and is no {}", kind.in_words())),
        Err(e) => Some(format!("is there already, and cannot be read: {e}")),
    })
}

/// The start of a file.
fn head(path: &Path) -> std::io::Result<String> {
    let mut bytes = Vec::new();
    File::open(path)?.take(HEAD).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The same; empty where there is no file.
fn start(path: &Path) -> Result<String> {
    match head(path) {
        Err(e) if !look::is_absence(&e) => Err(Error::io("read", path, &e)),
        head => Ok(head.unwrap_or_default()),
    }
}

/// Checks before any work that `path`, which the option `said` names, can be written as a file of a kind. With `force` a file
/// of another kind is replaced too.
pub fn check(path: &Path, kind: Kind, said: &str, force: bool) -> Result<()> {
    let refused = |why: &str, hint: &str| {
        Err(Error::config(format!("{said}: `{}` {why}", path.display()), hint))
    };
    let is_file = look::is_file(path)?;
    match fault(path, kind)? {
        Some(_) if force && is_file => {}
        Some(why) if is_file => {
            return refused(&why, "name another file; `--force` replaces this one");
        }
        Some(why) => return refused(&why, "name another file"),
        None => {}
    }
    if is_stream(path) {
        return Ok(());
    }
    let target = target(path);
    let folder = target.parent().filter(|folder| !folder.as_os_str().is_empty());
    match tempfile::tempfile_in(folder.unwrap_or(Path::new("."))) {
        Ok(_) => Ok(()),
        Err(e) => refused(
            &format!("cannot be written: {e}"),
            "name a file in a folder that is there and that you may write into",
        ),
    }
}

/// Writes a file that [`check`] let pass: whole or not at all, but into what is a pipe or a device. What has come there since
/// is checked again.
pub fn put(path: &Path, kind: Kind, said: &str, force: bool, content: &str) -> Result<()> {
    check(path, kind, said, force)?;
    if is_standard_output(path) {
        output::result(content);
        return Ok(());
    }
    if is_stream(path) {
        let file = File::options().append(true).open(path);
        let written = file.and_then(|mut file| file.write_all(content.as_bytes()));
        return written.map_err(|e| Error::io("write", path, &e));
    }
    files::write_whole(&target(path), content)
}

/// Where a link leads; the path itself where there is nothing yet.
fn target(path: &Path) -> PathBuf {
    path.canonicalize().unwrap_or_else(|_| path.to_path_buf())
}

/// Whether a path is this process's standard output, whatever that leads to.
pub fn is_standard_output(path: &Path) -> bool {
    ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"].iter().any(|name| Path::new(name) == path)
}

/// Whether something is written into, in place of being replaced: a pipe, a device, an open descriptor.
pub fn is_stream(path: &Path) -> bool {
    let special = |found: Metadata| {
        let kind = found.file_type();
        kind.is_fifo() || kind.is_char_device() || kind.is_socket() || kind.is_block_device()
    };
    let open = ["/dev/std", "/dev/fd/", "/proc/"];
    open.iter().any(|start| path.to_string_lossy().starts_with(start))
        || fs::metadata(path).is_ok_and(special)
}

/// Whether two paths are one file, also one that is not there yet.
pub fn is_same(a: &Path, b: &Path) -> bool {
    let whole = |path: &Path| {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        let folder = folder.unwrap_or(Path::new(".")).canonicalize().ok()?;
        Some(
            path.canonicalize()
                .unwrap_or_else(|_| folder.join(path.file_name().unwrap_or_default())),
        )
    };
    let number = |path: &Path| Some(look::optional_found(path)?).map(|it| (it.dev(), it.ino()));
    let same = |a: Option<_>, b: Option<_>| a.is_some() && a == b;
    whole(a).is_some() && whole(a) == whole(b) || same(number(a), number(b))
}

/// Checks that a run can write into a folder without replacing anything of the user's; `given` is the configuration file that
/// the command reads. A folder with our manifest is a run's.
pub fn check_run(folder: &Path, given: Option<&Path>, profile: bool) -> Result<()> {
    let manifest = start(&folder.join("manifest.json"))?;
    let is_run = Kind::Manifest.is_of(&manifest);
    for name in ["checkpoints", "samples"] {
        let path = folder.join(name);
        if look::found(&path)?.is_some_and(|it| !it.is_dir()) {
            return Err(of_user(folder, &path, "is no folder"));
        }
    }
    let recorded = profile.then_some(("trace.json", Kind::Profile));
    for (name, kind) in RUN.into_iter().chain(recorded) {
        let path = folder.join(name);
        let read = given.is_some_and(|given| is_same(given, &path));
        let is_file = look::is_file(&path)?;
        if read && !is_run && is_file {
            return Err(of_user(folder, &path, "is the configuration that `--config` names"));
        }
        let Some(why) = fault(&path, kind)? else { continue };
        let vouched = match kind {
            Kind::Log => true,
            Kind::Tokenizer => is_listed(&manifest, &path)?,
            // Those of 0.1.0 have the sources of their values alone.
            Kind::Config => start(&path)?.contains(" # default\n"),
            _ => false,
        };
        if !(is_run && vouched && is_file) {
            return Err(of_user(folder, &path, &why));
        }
    }
    let samples = folder.join("samples");
    let samples = if look::is_folder(&samples)? { look::entries(&samples)? } else { Vec::new() };
    let drawn = |name: &str| name.starts_with("step-") && name.ends_with(".txt");
    let mut drawn = samples.into_iter().filter(|entry| drawn(&entry.file_name().to_string_lossy()));
    match drawn.next().filter(|_| !is_run) {
        Some(entry) => {
            Err(of_user(folder, &entry.path(), "is there already, and is no sample of a run"))
        }
        None => Ok(()),
    }
}

/// Whether a manifest holds the hash of the tokenizer's file; those of 0.1.0 hold none.
fn is_listed(manifest: &str, file: &Path) -> Result<bool> {
    let manifest: Value = serde_json::from_str(manifest).unwrap_or_default();
    let Some(listed) = manifest["tokenizer_sha256"].as_str() else { return Ok(true) };
    let hash = |bytes: Vec<u8>| hex(&<sha2::Sha256 as sha2::Digest>::digest(bytes));
    Ok(look::bytes(file)?.map(hash).is_some_and(|found| found == listed))
}

fn of_user(folder: &Path, path: &Path, why: &str) -> Error {
    Error::config(
        format!(
            "`run.dir={}` would replace files of yours: `{}` {why}",
            folder.display(),
            path.display()
        ),
        "name a folder of its own for the run by `run.dir`, or move the file away",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(path: &Path, kind: Kind, force: bool) -> String {
        check(path, kind, "--output", force).unwrap_err().to_string()
    }

    #[test]
    fn only_what_is_ours_of_the_same_kind_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let page = crate::page::html("x", "report", serde_json::json!({}));
        fs::write(at("page"), &page).unwrap();
        fs::write(at("empty"), "").unwrap();
        fs::write(at("mine"), "<!DOCTYPE html>\n<p>mine</p>").unwrap();
        for name in ["page", "empty", "new"] {
            check(&at(name), Kind::Report, "--output", false).unwrap();
        }
        assert!(
            refused(&at("page"), Kind::Player, false).contains("is no page of `maskdiff sample")
        );
        assert!(refused(&at("mine"), Kind::Report, false).contains("is there already"));
        check(&at("mine"), Kind::Report, "--output", true).unwrap();
        assert!(refused(folder.path(), Kind::Report, true).contains("is a folder"));
        assert!(refused(&at("no/new"), Kind::Report, true).contains("cannot be written"));
        let plot = crate::picture::curves::Plot::default().svg();
        fs::write(at("plot"), plot).unwrap();
        check(&at("plot"), Kind::Plot, "--svg", false).unwrap();
        assert!(refused(&at("plot"), Kind::Denoising, false).contains("is no picture of"));
        fs::write(at("drawn"), "<svg><text data-maker=\"maskdiff runs plot\"/></svg>").unwrap();
        assert!(refused(&at("drawn"), Kind::Plot, false).contains("is there already"));
        std::os::unix::fs::symlink(at("page"), at("link")).unwrap();
        put(&at("link"), Kind::Report, "--output", false, &page).unwrap();
        assert!(at("link").is_symlink(), "a link stays one");
        std::os::unix::fs::symlink("nothing", at("dangling")).unwrap();
        assert!(refused(&at("dangling"), Kind::Report, false).contains("link to a file"));
    }

    #[test]
    fn pipes_and_devices_are_written_into() {
        check(Path::new("/dev/null"), Kind::Trace, "--trace", false).unwrap();
        put(Path::new("/dev/null"), Kind::Trace, "--trace", false, "{}").unwrap();
        assert!(is_stream(Path::new("/dev/null")) && is_stream(Path::new("/dev/stdout")));
        assert!(!is_stream(Path::new("/etc/hostname")));
    }

    #[test]
    fn one_file_has_many_names() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        assert!(is_same(&at("a"), &at("./a")) && !is_same(&at("a"), &at("b")));
        fs::write(at("a"), "x").unwrap();
        fs::hard_link(at("a"), at("hard")).unwrap();
        std::os::unix::fs::symlink("a", at("soft")).unwrap();
        assert!(is_same(&at("a"), &at("hard")) && is_same(&at("soft"), &at("a")));
    }
}
