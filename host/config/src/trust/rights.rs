//! Who may write a file: its owner, its group, those who may write the folder that it is in.

use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// All may write.
const OTHERS: u32 = 0o002;
/// The group may write.
const GROUP: u32 = 0o020;
/// In a folder: everybody takes away what is their own alone.
const STICKY: u32 = 0o1000;

/// The part of a path that somebody else than the user and the system may write; none where there is no such. A file and the folder that
/// it is in must be the user's or the system's own; what is above may be anybody's that not all may write.
pub(super) fn others_may_write(path: &Path) -> Option<PathBuf> {
    let Ok(whole) = std::path::absolute(path) else { return Some(path.to_path_buf()) };
    // Where links lead, and the links themselves.
    let Ok(real) = whole.canonicalize() else { return Some(whole) };
    weak(&whole).or_else(|| weak(&real))
}

fn weak(path: &Path) -> Option<PathBuf> {
    let is_weak = |(depth, part): &(usize, &Path)| {
        let Ok(it) = fs::symlink_metadata(part) else { return true };
        if *depth < 2 && !is_mine(&it) && !is_shared(&it) {
            return true;
        }
        // A link has no rights of its own.
        if it.mode() & libc::S_IFMT == libc::S_IFLNK || is_shared(&it) {
            return false;
        }
        it.mode() & OTHERS != 0 || (*depth < 2 && it.mode() & GROUP != 0 && !is_private(it.gid()))
    };
    path.ancestors().enumerate().find(is_weak).map(|(_, part)| part.to_path_buf())
}

fn is_mine(it: &Metadata) -> bool {
    [0, me()].contains(&it.uid())
}

/// A folder as `/tmp`: what is in it is safe there.
fn is_shared(it: &Metadata) -> bool {
    it.is_dir() && it.mode() & STICKY != 0
}

/// The user of this process, as the owner of its entry in the process table tells.
fn me() -> u32 {
    fs::metadata("/proc/self").map_or(u32::MAX, |it| it.uid())
}

/// Whether a group is the private one of the user, as many systems give each user one: it has the user's name and nobody else in it.
fn is_private(group: u32) -> bool {
    let ask = |base: &str, id: u32| {
        let said = Command::new("getent").args([base, &id.to_string()]).output().ok()?;
        Some(String::from_utf8(said.stdout).ok()?.trim_end().to_string())
    };
    let (Some(group), Some(user)) = (ask("group", group), ask("passwd", me())) else {
        return false;
    };
    let name = user.split(':').next().unwrap_or_default();
    let parts: Vec<&str> = group.split(':').collect();
    !name.is_empty() && parts.len() == 4 && parts[0] == name && ["", name].contains(&parts[3])
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, chown, symlink};

    use super::*;

    #[test]
    fn what_others_may_write_is_found() {
        let root = tempfile::tempdir().unwrap();
        let at = root.path().canonicalize().unwrap();
        let (folder, file) = (at.join("a/b"), at.join("a/b/c.py"));
        fs::create_dir_all(&folder).unwrap();
        fs::write(&file, "").unwrap();
        let mode = |path: &Path, mode| {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        };
        mode(&folder, 0o755);
        mode(&at.join("a"), 0o755);
        mode(&file, 0o644);
        assert_eq!(others_may_write(&file), None);
        for (path, rights, usual) in
            [(&file, 0o646, 0o644), (&folder, 0o757, 0o755), (&at.join("a"), 0o757, 0o755)]
        {
            mode(path, rights);
            assert_eq!(others_may_write(&file).as_ref(), Some(path));
            mode(path, usual);
        }
        // As /tmp.
        mode(&folder, 0o1777);
        assert_eq!(others_may_write(&file), None);
        mode(&folder, 0o755);
        // Where a link leads.
        let link = at.join("link.py");
        symlink(&file, &link).unwrap();
        assert_eq!(others_may_write(&link), None);
        mode(&file, 0o646);
        assert_eq!(others_may_write(&link).as_ref(), Some(&file));
        mode(&file, 0o644);
        assert_eq!(others_may_write(&at.join("nowhere")), Some(at.join("nowhere")));
        // Of another user, where this one may give files away.
        if chown(&file, Some(12_345), None).is_ok() {
            assert_eq!(others_may_write(&file), Some(file));
        }
    }
}
