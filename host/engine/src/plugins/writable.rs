//! Who else could put other code in a plugin's place: nothing is loaded that anyone may replace.

use std::fs::{self, Metadata};
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use maskdiff_base::error::{Error, Result};
use maskdiff_base::files::look;

/// As many links may lead to each other in the system.
const LINKS: usize = 40;

/// Refuses a folder of plugins that everyone may write into: whoever puts a file there has it loaded.
pub(super) fn refuse_folder(folder: &Path) -> Result<()> {
    for place in chain(folder)? {
        refuse_replaceable(&place)?;
    }
    let meta = meta(folder)?;
    if writable(&meta) { Err(refused(folder, folder)) } else { Ok(()) }
}

/// Refuses a file that everyone may write, or replace in its folder; the same for what a link leads to.
pub(super) fn refuse_file(file: &Path) -> Result<()> {
    for place in chain(file)? {
        refuse_replaceable(&place)?;
    }
    for place in chain(parent(file))? {
        refuse_replaceable(&place)?;
    }
    let meta = meta(file)?;
    if writable(&meta) { Err(refused(file, file)) } else { Ok(()) }
}

/// A path and, where it is a link, what it leads to, step by step.
fn chain(path: &Path) -> Result<Vec<PathBuf>> {
    let mut steps = vec![path.to_path_buf()];
    while steps.len() <= LINKS + 1 {
        let last = &steps[steps.len() - 1];
        match fs::read_link(last) {
            Ok(next) => steps.push(parent(last).join(next)),
            Err(e) if e.kind() == ErrorKind::InvalidInput || look::is_absence(&e) => break,
            Err(e) => return Err(Error::io("look at", last, &e)),
        }
    }
    Ok(steps)
}

/// Refuses an entry of a folder that everyone may write into. In one where everyone may change what is his own alone (`/tmp`),
/// what counts is whose the entry is.
fn refuse_replaceable(entry: &Path) -> Result<()> {
    const STICKY: u32 = 0o1000;
    let folder = meta(parent(entry))?;
    if !writable(&folder) {
        return Ok(());
    }
    let own = fs::symlink_metadata(entry).is_ok_and(|entry| [0, me()].contains(&entry.uid()));
    let kept = folder.permissions().mode() & STICKY != 0 && own;
    if kept { Ok(()) } else { Err(refused(parent(entry), entry)) }
}

fn refused(open: &Path, what: &Path) -> Error {
    let which = match open == what {
        true => "its plugins are not loaded".to_string(),
        false => format!("`{}` is not loaded", what.display()),
    };
    Error::plugin(
        format!("everyone may write to `{}`, so {which}", open.display()),
        format!("take the right away (`chmod o-w {}`) or move the plugins", open.display()),
    )
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        Some(_) => Path::new("."),
        None => path,
    }
}

fn meta(path: &Path) -> Result<Metadata> {
    fs::metadata(path).map_err(|e| Error::io("read", path, &e))
}

fn writable(meta: &Metadata) -> bool {
    meta.permissions().mode() & 0o002 != 0
}

#[expect(unsafe_code, reason = "a call of the system")]
fn me() -> u32 {
    // SAFETY: it cannot fail.
    unsafe { libc::geteuid() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    /// A folder, a file in it, and links to both from elsewhere.
    #[test]
    fn what_anyone_may_replace_is_refused_wherever_a_link_stands() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        fs::create_dir(at("real")).unwrap();
        fs::create_dir(at("open")).unwrap();
        fs::write(at("real/lib.so"), "").unwrap();
        symlink("real", at("folder")).unwrap();
        symlink("real/lib.so", at("file")).unwrap();
        symlink("file", at("twice")).unwrap();
        symlink("../real/lib.so", at("open/file")).unwrap();
        let files = ["real/lib.so", "folder/lib.so", "file", "twice"];
        let all = |refused: bool| {
            for name in files {
                assert_eq!(refuse_file(&at(name)).is_err(), refused, "{name}");
            }
            for name in ["real", "folder"] {
                assert_eq!(refuse_folder(&at(name)).is_err(), refused, "{name}");
            }
        };
        all(false);
        mode(&at("real"), 0o777);
        all(true);
        // Where everyone may change what is his own alone, a file of ours stays ours.
        mode(&at("real"), 0o1777);
        assert!(files.iter().all(|name| refuse_file(&at(name)).is_ok()));
        assert!(refuse_folder(&at("folder")).is_err());
        mode(&at("real"), 0o755);
        all(false);
        mode(&at("real/lib.so"), 0o646);
        assert!(files.iter().all(|name| refuse_file(&at(name)).is_err()));
        mode(&at("real/lib.so"), 0o644);
        assert!(refuse_file(&at("open/file")).is_ok());
        mode(&at("open"), 0o777);
        let said = refuse_file(&at("open/file")).unwrap_err().to_string();
        assert!(said.contains("open/file` is not loaded"), "{said}");
        assert!(refuse_file(&at("none")).is_err());
    }
}
