//! Which files a path of the user's means: itself, all below a folder, or what matches a pattern. What is left out is counted.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use maskdiff_base::error::{Error, Result};
use maskdiff_config::values::Paths;
use maskdiff_hub::matches;

/// How the names of files end that are read of a folder.
#[derive(Debug, Clone, Copy)]
pub(super) struct Endings {
    /// The endings, without the dot.
    pub(super) of: &'static [&'static str],
    /// Whether one for packed files may stand behind them.
    pub(super) packed: bool,
}

/// Endings of packed files that are read.
const PACKED: [&str; 2] = [".gz", ".zst"];

impl Endings {
    fn fit(self, name: &str) -> bool {
        let name = name.to_lowercase();
        let packed = PACKED.iter().find_map(|ending| name.strip_suffix(ending));
        let plain = packed.filter(|_| self.packed).unwrap_or(&name);
        plain.rsplit_once('.').is_some_and(|(_, ending)| self.of.contains(&ending))
    }
}

/// Files of a corpus on this machine.
#[derive(Debug, Default)]
pub(super) struct Listing {
    /// The files, those of a folder in the order of their paths.
    pub(super) files: Vec<PathBuf>,
    /// What a user should hear: what is left out of folders, and what may be there twice.
    pub(super) notes: Vec<String>,
}

/// The files that paths mean.
pub(super) fn list(paths: &Paths, endings: Endings) -> Result<Listing> {
    let mut listing = Listing::default();
    if paths.0.is_empty() || paths.0.iter().any(String::is_empty) {
        return Err(Error::data("no file is named", HINT));
    }
    for path in &paths.0 {
        let whole = Path::new(path);
        match fs::metadata(whole) {
            Ok(it) if it.is_dir() => listing.folder(whole, endings, true)?,
            Ok(it) if it.is_file() => listing.files.push(whole.to_path_buf()),
            Ok(_) => return Err(no_file(whole)),
            Err(_) if path.contains('*') => listing.pattern(path, endings)?,
            Err(e) => return Err(Error::io("read", whole, &e)),
        }
    }
    listing.twins();
    Ok(listing)
}

const HINT: &str = "give a file, a folder, or a pattern as in `\"texts/*.txt\"`";

impl Listing {
    /// Adds what is below a folder; an error where that is nothing and something is `wanted`.
    fn folder(&mut self, folder: &Path, endings: Endings, wanted: bool) -> Result<()> {
        let mut walk =
            Walk { endings, files: Vec::new(), left: BTreeMap::new(), above: Vec::new() };
        walk.enter(folder)?;
        walk.files.sort();
        let (read, left) = (walk.files.len(), walk.left.values().sum::<usize>());
        let kinds: Vec<String> = walk.left.iter().map(|(kind, n)| format!("{n} {kind}")).collect();
        let (name, kinds) = (folder.display(), kinds.join(", "));
        if read == 0 && wanted {
            let beside = if left == 0 { String::new() } else { format!(", but {kinds}") };
            return Err(Error::data(
                format!("`{name}` holds no `.{}` files{beside}", endings.of[0]),
                HINT,
            ));
        }
        if left > 0 {
            let files = if read == 1 { "1 file is" } else { &format!("{read} files are") };
            self.notes.push(format!("of `{name}` {files} read and {left} left out: {kinds}"));
        }
        self.files.append(&mut walk.files);
        Ok(())
    }

    /// Adds what a pattern with `*` in its last part matches; a folder among it with all below.
    fn pattern(&mut self, path: &str, endings: Endings) -> Result<()> {
        let (folder, pattern) = path.rsplit_once('/').unwrap_or((".", path));
        if folder.contains('*') {
            return Err(Error::data(
                format!("`{path}`: a pattern may stand in the last part only"),
                "as in `\"texts/*.txt\"`; a folder is read with all below it",
            ));
        }
        let folder = Path::new(if folder.is_empty() { "/" } else { folder });
        let mut found = entries(folder)?;
        // As a shell: hidden files are not meant.
        found.retain(|path| !is_hidden(path) && matches(pattern, &name(path)));
        if found.is_empty() {
            let message = format!("`{}` holds no file `{pattern}`", folder.display());
            return Err(Error::data(message, HINT));
        }
        found.sort();
        for path in found {
            match fs::metadata(&path) {
                Ok(it) if it.is_dir() => self.folder(&path, endings, false)?,
                Ok(it) if !it.is_file() => return Err(no_file(&path)),
                _ => self.files.push(path),
            }
        }
        if self.files.is_empty() {
            let message = format!("the folders `{path}` hold no `.{}` files", endings.of[0]);
            return Err(Error::data(message, HINT));
        }
        Ok(())
    }

    /// A file beside its own packed copy is the same text twice.
    fn twins(&mut self) {
        let all: std::collections::BTreeSet<&Path> =
            self.files.iter().map(PathBuf::as_path).collect();
        let plain = |path: &Path| {
            let text = path.to_str()?;
            PACKED.iter().find_map(|ending| text.strip_suffix(ending)).map(PathBuf::from)
        };
        let twins =
            self.files.iter().filter_map(|path| plain(path)).filter(|p| all.contains(p.as_path()));
        let twins: Vec<PathBuf> = twins.collect();
        if let Some(first) = twins.first() {
            self.notes.push(format!(
                "warning: `{}` is read, and so is its packed copy beside it ({} such in all): is it the same text twice?",
                first.display(),
                twins.len()
            ));
        }
    }
}

/// Goes through folders.
struct Walk {
    endings: Endings,
    files: Vec<PathBuf>,
    /// What is left out, and how often.
    left: BTreeMap<String, usize>,
    /// The folders that it is in: a link may lead back to one.
    above: Vec<(u64, u64)>,
}

impl Walk {
    fn enter(&mut self, folder: &Path) -> Result<()> {
        let own = fs::metadata(folder).map_err(|e| Error::io("read", folder, &e))?;
        self.above.push((own.dev(), own.ino()));
        for path in entries(folder)? {
            let name = name(&path);
            let fits = self.endings.fit(&name);
            match fs::metadata(&path) {
                _ if is_hidden(&path) => self.leave("hidden"),
                Ok(it) if it.is_dir() && self.above.contains(&(it.dev(), it.ino())) => {
                    self.leave("linked to a folder above");
                }
                Ok(it) if it.is_dir() => self.enter(&path)?,
                Ok(it) if !it.is_file() => self.leave("that are no files (pipes, devices)"),
                // A link that leads nowhere is told of when it is read.
                Ok(_) | Err(_) if fits => self.files.push(path),
                Err(_) => self.leave("that cannot be read"),
                Ok(_) => match path.extension().map(OsStr::to_string_lossy) {
                    Some(ending) => self.leave(&format!("`.{ending}`")),
                    None => self.leave("without an ending"),
                },
            }
        }
        self.above.pop();
        Ok(())
    }

    fn leave(&mut self, kind: &str) {
        *self.left.entry(kind.to_string()).or_default() += 1;
    }
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let said = |e: std::io::Error| Error::io("read", folder, &e);
    let entries = fs::read_dir(folder).map_err(said)?;
    entries
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<std::io::Result<_>>()
        .map_err(said)
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn is_hidden(path: &Path) -> bool {
    name(path).starts_with('.')
}

fn no_file(path: &Path) -> Error {
    Error::data(
        format!(
            "`{}` is no file but a pipe or a device, and a corpus is read more than once",
            path.display()
        ),
        "write its content into a file first",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: Endings = Endings { of: &["txt"], packed: true };

    fn tree(files: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for file in files {
            let path = folder.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "text").unwrap();
        }
        folder
    }

    fn listed(folder: &Path, words: &[&str]) -> Result<(Vec<String>, Vec<String>)> {
        let paths = words.iter().map(|word| folder.join(word).display().to_string()).collect();
        let Listing { files, notes } = list(&Paths(paths), TEXT)?;
        let short = |path: &PathBuf| path.strip_prefix(folder).unwrap().display().to_string();
        Ok((files.iter().map(short).collect(), notes))
    }

    #[test]
    fn a_folder_is_all_below_it_and_what_is_left_out_is_counted() {
        let files = [
            "t/b.txt",
            "t/a.TXT",
            "t/c.txt.gz",
            "t/x=1/y=2/d.txt",
            "t/e.txt.zst",
            "t/.git/f.txt",
            "t/.g.txt",
            "t/h.md",
            "t/i.md",
            "t/j.txt.bz2",
            "t/_SUCCESS",
            "t/k.gz",
        ];
        let folder = tree(&files);
        let at = folder.path();
        let (files, notes) = listed(at, &["t"]).unwrap();
        assert_eq!(files, ["t/a.TXT", "t/b.txt", "t/c.txt.gz", "t/e.txt.zst", "t/x=1/y=2/d.txt"]);
        let said = "5 files are read and 7 left out: 1 `.bz2`, 1 `.gz`, 2 `.md`, 2 hidden, 1 without an ending";
        assert!(notes.len() == 1 && notes[0].ends_with(said), "{notes:?}");
        // A link that leads back, and one that leads nowhere.
        std::os::unix::fs::symlink(at.join("t"), at.join("t/x=1/back")).unwrap();
        std::os::unix::fs::symlink("nowhere", at.join("t/lost.txt")).unwrap();
        std::os::unix::fs::symlink(at.join("t/x=1"), at.join("t/again")).unwrap();
        let (files, notes) = listed(at, &["t"]).unwrap();
        assert!(
            files.contains(&"t/lost.txt".to_string()),
            "its error comes when it is read: {files:?}"
        );
        assert!(files.contains(&"t/again/y=2/d.txt".to_string()), "{files:?}");
        assert!(notes[0].contains("linked to a folder above"), "{notes:?}");
    }

    #[test]
    fn lists_and_patterns() {
        let folder = tree(&[
            "b.txt", "a.txt", "t/c.txt", "u/d.txt", "u/e.md", "u/.f.txt", "v/g.md", "c.txt",
            "c.txt.gz",
        ]);
        let at = folder.path();
        assert_eq!(listed(at, &["b.txt", "a.txt", "t"]).unwrap().0, ["b.txt", "a.txt", "t/c.txt"]);
        let (files, notes) = listed(at, &["u/*", "u/*"]).unwrap();
        assert_eq!(
            files,
            ["u/d.txt", "u/e.md", "u/d.txt", "u/e.md"],
            "a pattern means what it says"
        );
        assert!(notes.is_empty());
        let (files, notes) = listed(at, &["*"]).unwrap();
        assert_eq!(files, ["a.txt", "b.txt", "c.txt", "c.txt.gz", "t/c.txt", "u/d.txt"]);
        assert_eq!(notes.len(), 3, "{notes:?}");
        assert!(notes[2].contains("its packed copy"), "{notes:?}");
        for (word, said) in [
            ("v", "holds no `.txt` files, but 1 `.md`"),
            ("x*", "holds no file `x*`"),
            ("*/x", "in the last part only"),
            ("lost.txt", "No such file"),
        ] {
            let error = listed(at, &[word]).unwrap_err().to_string();
            assert!(error.contains(said), "{word}: {error}");
        }
        let made = std::process::Command::new("mkfifo").arg(at.join("pipe")).status();
        if made.is_ok_and(|made| made.success()) {
            let error = listed(at, &["pipe"]).unwrap_err().to_string();
            assert!(error.contains("is no file but a pipe"), "{error}");
        }
    }
}
