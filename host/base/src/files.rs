//! Small files that appear whole or not at all; [`look`] asks what is there, [`lock`] keeps other processes away.

pub mod lock;
pub mod look;

use std::fs::{self, File, Permissions};
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use crate::error::{Error, Result};

/// Who shares a folder may read what lies in it: a temporary file is its maker's alone.
pub const SHARED: u32 = 0o644;
/// What holds a secret is its owner's alone.
pub const PRIVATE: u32 = 0o600;

/// Writes a file that is there as a whole or not at all, after a power cut too: under another name, which it loses when its content is
/// on the disk. The folder is made.
pub fn write_whole(path: &Path, content: impl AsRef<[u8]>) -> Result<()> {
    write_as(path, content.as_ref(), SHARED)
}

/// The same for what nobody but its owner may read.
pub fn write_private(path: &Path, content: impl AsRef<[u8]>) -> Result<()> {
    write_as(path, content.as_ref(), PRIVATE)
}

fn write_as(path: &Path, content: &[u8], mode: u32) -> Result<()> {
    let folder = folder_of(path);
    fs::create_dir_all(folder).map_err(|e| Error::io("create", folder, &e))?;
    // Made with the owner's rights alone: what is private never was readable.
    let written = tempfile::NamedTempFile::new_in(folder).and_then(|mut file| {
        file.write_all(content)?;
        file.as_file().set_permissions(Permissions::from_mode(mode))?;
        file.as_file().sync_all()?;
        file.persist(path).map_err(|e| e.error)
    });
    written.map_err(|e| Error::io("write", path, &e))?;
    sync_folder(folder)
}

/// Writes a file under the first of some names that no file has, which no other process gets at the same time; gives the name.
pub fn write_first(
    mut names: impl Iterator<Item = std::path::PathBuf>,
    content: impl AsRef<[u8]>,
    mode: u32,
) -> Result<std::path::PathBuf> {
    let Some(mut path) = names.next() else {
        return Err(Error::config("there is no name for a file", ""));
    };
    let folder = folder_of(&path).to_path_buf();
    let written = tempfile::NamedTempFile::new_in(&folder).and_then(|mut file| {
        file.write_all(content.as_ref())?;
        file.as_file().set_permissions(Permissions::from_mode(mode))?;
        file.as_file().sync_all()?;
        Ok(file)
    });
    let mut file = written.map_err(|e| Error::io("write", &path, &e))?;
    loop {
        match file.persist_noclobber(&path) {
            Ok(_) => break,
            Err(e) if e.error.kind() == ErrorKind::AlreadyExists => {
                file = e.file;
                path = names.next().unwrap_or(path);
            }
            Err(e) => return Err(Error::io("write", &path, &e.error)),
        }
    }
    sync_folder(&folder)?;
    Ok(path)
}

/// Points a link at `target`, in one step also where there is one of its name already.
pub fn link_whole(link: &Path, target: &Path) -> Result<()> {
    let folder = folder_of(link);
    let name = link.file_name().unwrap_or_default().to_string_lossy();
    let temporary = folder.join(format!(".{name}.tmp"));
    let _ = fs::remove_file(&temporary);
    std::os::unix::fs::symlink(target, &temporary)
        .and_then(|()| fs::rename(&temporary, link))
        .map_err(|e| Error::io("link", link, &e))?;
    sync_folder(folder)
}

/// Gives something that is on the disk its name, for good.
pub fn rename_whole(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).map_err(|e| Error::io("write", to, &e))?;
    sync_folder(folder_of(to))
}

/// Brings a folder's names to the disk. A file system that cannot says so, and keeps them as safe as it can.
pub fn sync_folder(folder: &Path) -> Result<()> {
    let synced = File::open(folder).and_then(|folder| folder.sync_all());
    match synced {
        Err(e) if matches!(e.kind(), ErrorKind::InvalidInput | ErrorKind::Unsupported) => Ok(()),
        synced => synced.map_err(|e| Error::io("flush", folder, &e)),
    }
}

/// The folder that a path is in.
fn folder_of(path: &Path) -> &Path {
    let parent = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    parent.unwrap_or(Path::new("."))
}

/// What lies in the place of a file that cannot be read, where that can be told, and what to do: downloads and clones leave
/// such.
pub fn stand_in(path: &Path) -> Option<(&'static str, &'static str)> {
    let mut head = Vec::new();
    // It explains an error that is told already: another adds nothing.
    let read = File::open(path).and_then(|file| file.take(512).read_to_end(&mut head));
    if read.is_err() {
        return None;
    }
    let text = String::from_utf8_lossy(&head).trim_start().to_lowercase();
    if text.starts_with("version https://git-lfs.github.com/") {
        let hint =
            "fetch the file itself: `git lfs install`, then `git lfs pull` in its repository";
        return Some(("a Git LFS pointer, not the file that it points at", hint));
    }
    if text.starts_with("<!doctype html") || text.starts_with("<html") {
        let hint =
            "fetch it again: a server has answered with a page, as for a file that needs a login";
        return Some(("a web page (HTML), not the file that was wanted", hint));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_its_rights_whatever_stood_there_before() {
        let folder = tempfile::tempdir().unwrap();
        let (shared, private) = (folder.path().join("new/shared"), folder.path().join("private"));
        fs::write(&private, "old").unwrap();
        fs::set_permissions(&private, Permissions::from_mode(0o666)).unwrap();
        write_whole(&shared, "text").unwrap();
        write_private(&private, "text").unwrap();
        for (file, mode) in [(&shared, SHARED), (&private, PRIVATE)] {
            assert_eq!(fs::read_to_string(file).unwrap(), "text");
            assert_eq!(fs::metadata(file).unwrap().permissions().mode() & 0o777, mode);
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2, "nothing else is left");
    }

    #[test]
    fn a_first_free_name_is_taken_once() {
        let folder = tempfile::tempdir().unwrap();
        let names = || (1..).map(|n| folder.path().join(format!("job-{n}.sh")));
        let one = || write_first(names(), "text", PRIVATE).unwrap();
        let made = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(one)).collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect::<Vec<_>>()
        });
        let made: std::collections::BTreeSet<_> = made.into_iter().collect();
        assert_eq!(made.len(), 8);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 8, "nothing else is left");
    }

    #[test]
    fn a_link_is_replaced_in_one_step() {
        let folder = tempfile::tempdir().unwrap();
        let link = folder.path().join("last");
        for target in ["a", "b"] {
            link_whole(&link, Path::new(target)).unwrap();
            assert_eq!(fs::read_link(&link).unwrap(), Path::new(target));
        }
        // What a kill has left is no hindrance.
        fs::write(folder.path().join(".last.tmp"), "").unwrap();
        link_whole(&link, Path::new("c")).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
