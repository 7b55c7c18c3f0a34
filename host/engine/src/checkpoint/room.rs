//! Room on the disk: looked at before a run begins, and made where it runs out.

use std::ffi::CString;
use std::fs;
use std::path::{Path, PathBuf};

use maskdiff_base::error::{Error, Kind, Result};
use maskdiff_base::files::look;
use tch::Tensor;

use super::keep::{discard, is_ours, link, linked, list};

/// Bytes of a tensor's numbers.
pub fn bytes(tensor: &Tensor) -> u64 {
    (tensor.numel() * tensor.kind().elt_size_in_bytes()) as u64
}

/// Bytes that may still be written into a folder, where the system tells.
#[expect(unsafe_code, reason = "a call of the system")]
pub fn free(folder: &Path) -> Option<u64> {
    let name = CString::new(folder.as_os_str().as_encoded_bytes()).ok()?;
    // SAFETY: plain numbers, for which zero is a value.
    let mut stat: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: a string and a place for the answer, both alive through the call.
    let code = unsafe { libc::statvfs(name.as_ptr(), &raw mut stat) };
    (code == 0).then(|| stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// What is to be told of a disk that has less room than `keep` checkpoints of `size` bytes and the one that is being written;
/// those that are there already count.
pub fn short(folder: &Path, size: u64, keep: usize) -> Result<Option<String>> {
    let Some(free) = free(folder) else { return Ok(None) };
    let wanted = size * (keep as u64 + 1);
    let there = list(folder)?.iter().map(|path| size_of(path)).sum::<Result<u64>>()?;
    Ok((free.saturating_add(there) < wanted).then(|| {
        format!(
            "warning: `{}` has room for {}, and `checkpointing.keep_last={keep}` needs {} for {} checkpoints of {}: when it \
             is full, the oldest makes room for the next",
            folder.display(),
            in_words(free + there),
            in_words(wanted),
            keep + 1,
            in_words(size)
        )
    }))
}

/// Bytes of a checkpoint's files.
fn size_of(folder: &Path) -> Result<u64> {
    // One that is no folder is damage, and small.
    if !look::is_folder(folder)? {
        return Ok(0);
    }
    let size = |entry: fs::DirEntry| {
        let path = entry.path();
        entry.metadata().map(|it| it.len()).map_err(|e| Error::io("look at", &path, &e))
    };
    look::entries(folder)?.into_iter().map(size).sum()
}

fn in_words(bytes: u64) -> String {
    let mega = bytes as f64 / 1e6;
    if mega < 1000.0 { format!("{mega:.1} MB") } else { format!("{:.1} GB", mega / 1e3) }
}

/// Writes the checkpoint `target`. While the disk has no room for its `size` bytes, the oldest removable checkpoint is removed
/// and the write is retried; `tell` receives a warning for each. Checkpoints that are `in_use` and the best one are kept. The newest
/// is removed only if the best one remains and the freed space certainly suffices.
pub(super) fn made_for(
    folder: &Path,
    target: &Path,
    size: u64,
    in_use: &dyn Fn() -> Vec<PathBuf>,
    mut tell: impl FnMut(String),
    mut write: impl FnMut() -> Result<()>,
) -> Result<()> {
    loop {
        let error = match write() {
            Err(error) if error.kind == Kind::Full => error,
            ended => return ended,
        };
        let Some(oldest) = oldest(folder, target, size, &in_use())? else { return Err(error) };
        let left = list(folder)?.into_iter().find(|path| *path != oldest && path != target);
        // No link may point at what is gone.
        if points_at(folder, "last", &oldest)?
            && let Some(name) = left.as_deref().and_then(Path::file_name)
        {
            link(folder, "last", &name.to_string_lossy())?;
        }
        discard(&oldest)?;
        let (gone, next) = (oldest.display(), target.display());
        tell(format!("warning: the disk is full: `{gone}` was removed to make room for `{next}`"));
    }
}

/// The oldest checkpoint that may go for the sake of another.
fn oldest(folder: &Path, target: &Path, size: u64, in_use: &[PathBuf]) -> Result<Option<PathBuf>> {
    let others: Vec<PathBuf> = list(folder)?.into_iter().filter(|path| path != target).collect();
    let best = linked(folder, "best")?;
    let is_best = |path: &Path| best.as_deref().is_some_and(|best| is_named(path, best));
    // What cannot be looked at stays.
    let ours = |path: &Path| is_ours(path).unwrap_or(false);
    let may_go = |path: &&PathBuf| ours(path) && !is_best(path) && !in_use.contains(path);
    if let Some(older) = others.iter().skip(1).rev().find(may_go) {
        return Ok(Some(older.clone()));
    }
    let newest = others.first().filter(may_go).filter(|_| others.len() > 1);
    let (Some(newest), Some(free)) = (newest, free(folder)) else { return Ok(None) };
    let room = free.saturating_add(size_of(newest)?);
    Ok((room > size + size / 50).then(|| newest.clone()))
}

fn points_at(folder: &Path, link: &str, checkpoint: &Path) -> Result<bool> {
    Ok(linked(folder, link)?.is_some_and(|target| is_named(checkpoint, &target)))
}

fn is_named(checkpoint: &Path, target: &Path) -> bool {
    Some(target.as_os_str()) == checkpoint.file_name()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full() -> Error {
        Error::io("write", Path::new("x"), &std::io::ErrorKind::StorageFull.into())
    }

    /// A folder of checkpoints in which `last` is the newest.
    fn checkpoints(steps: &[i64], best: i64) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for step in steps {
            fs::create_dir(folder.path().join(super::super::name(*step))).unwrap();
        }
        link(folder.path(), "last", &super::super::name(steps[steps.len() - 1])).unwrap();
        link(folder.path(), "best", &super::super::name(best)).unwrap();
        folder
    }

    fn names(folder: &Path) -> Vec<i64> {
        let name = |path: &PathBuf| super::super::step_of(&path.file_name()?.to_string_lossy());
        list(folder).unwrap().iter().filter_map(name).collect()
    }

    /// Writes step 99, which fits after `n` other checkpoints are removed.
    fn written(folder: &Path, fits: usize, in_use: &[PathBuf]) -> (Result<()>, Vec<String>) {
        let (target, mut told) = (folder.join(super::super::name(99)), Vec::new());
        let used = || in_use.to_vec();
        let ended = made_for(
            folder,
            &target,
            0,
            &used,
            |text| told.push(text),
            || {
                if list(folder)?.len() > fits { Err(full()) } else { Ok(()) }
            },
        );
        (ended, told)
    }

    #[test]
    fn the_oldest_that_may_go_makes_room() {
        let folder = checkpoints(&[1, 2, 3, 4], 1);
        let (ended, told) = written(folder.path(), 3, &[]);
        ended.unwrap();
        assert_eq!(names(folder.path()), [4, 3, 1]);
        assert!(told[0].contains("disk is full") && told[0].contains("step-00000002"), "{told:?}");
        // As many as are needed, and none that is being copied.
        let used = folder.path().join(super::super::name(3));
        let (ended, told) = written(folder.path(), 2, &[used]);
        ended.unwrap();
        assert_eq!((names(folder.path()), told.len()), (vec![3, 1], 1));
        assert!(folder.path().join("last").exists(), "it points at what is left");
    }

    #[test]
    fn the_only_one_and_the_best_stay() {
        let folder = checkpoints(&[7], 7);
        let (ended, told) = written(folder.path(), 0, &[]);
        assert!(matches!(ended, Err(Error { kind: Kind::Full, .. })) && told.is_empty());
        assert_eq!(names(folder.path()), [7]);
        let folder = checkpoints(&[7], 5);
        written(folder.path(), 0, &[]).0.unwrap_err();
        assert_eq!(names(folder.path()), [7]);
        // Another fault than a full disk removes nothing.
        let folder = checkpoints(&[1, 2], 2);
        let other = || Err(Error::checkpoint("no", ""));
        made_for(folder.path(), Path::new("x"), 0, &Vec::new, |_| panic!("nothing"), other)
            .unwrap_err();
        assert_eq!(names(folder.path()), [2, 1]);
    }

    #[test]
    fn a_disk_that_is_short_is_told_of() {
        let folder = tempfile::tempdir().unwrap();
        assert!(free(folder.path()).unwrap() > 0);
        assert_eq!(short(folder.path(), 1, 2).unwrap(), None);
        let said = short(folder.path(), 1 << 50, 2).unwrap().unwrap();
        assert!(said.contains("needs") && said.contains("for 3 checkpoints"), "{said}");
    }
}
