//! Which checkpoints of a run there are, which are kept, and which is gone on from.

use std::fs;
use std::path::{Path, PathBuf};

use maskdiff_base::error::{Error, Kind, Result};
use maskdiff_base::files::{self, look};

use super::write::put_in_place;
use super::{Checkpoint, MODEL, name, remove, step_of};

/// The links beside the checkpoints.
const LINKS: [&str; 2] = ["last", "best"];

/// Points the link `name` at a checkpoint of the same folder, in one step. A copy of a checkpoint in its place is removed.
pub fn link(folder: &Path, name: &str, checkpoint: &str) -> Result<()> {
    let place = folder.join(name);
    match stands_in(&place)? {
        Place::Copy => {
            let temporary = folder.join(format!(".step-{name}.tmp"));
            remove(&temporary)?;
            files::link_whole(&temporary, Path::new(checkpoint))?;
            put_in_place(&temporary, &place)?;
            files::sync_folder(folder)
        }
        Place::Free => files::link_whole(&place, Path::new(checkpoint)),
        Place::Foreign => Err(foreign(&place)),
    }
}

/// Points `last` at the checkpoint from which a run resumes, and `best` at the one that this names. A write that failed, or a process
/// that was killed, may have put a checkpoint in place and left the links behind.
pub fn mend_links(folder: &Path, newest: &Checkpoint) -> Result<()> {
    let best = newest.state.best_step.map(name);
    let last = newest.path.file_name().map(|name| name.to_string_lossy().into_owned());
    let last = last.filter(|name| newest.path.parent() == Some(folder) && step_of(name).is_some());
    for (place, checkpoint) in [("last", last), ("best", best)] {
        let Some(checkpoint) = checkpoint else { continue };
        let is_behind = linked(folder, place)?.is_none_or(|to| to != Path::new(&checkpoint));
        if is_behind
            && stands_in(&folder.join(place))? == Place::Free
            && look::is_folder(&folder.join(&checkpoint))?
        {
            link(folder, place, &checkpoint)?;
        }
    }
    Ok(())
}

/// What lies where a link should be.
#[derive(Debug, PartialEq, Eq)]
enum Place {
    /// Nothing, a link, or the text of one: what programs make of a link that know none.
    Free,
    /// A copy of a checkpoint: what programs make of a link that they follow.
    Copy,
    /// Something else.
    Foreign,
}

fn stands_in(place: &Path) -> Result<Place> {
    let Some(kind) = look::kind(place)? else { return Ok(Place::Free) };
    if kind.is_dir() {
        return Ok(if is_ours(place)? { Place::Copy } else { Place::Foreign });
    }
    let is_text = || -> Result<bool> {
        let text = look::bytes(place)?.unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        Ok(text.is_empty() || step_of(text.trim()).is_some())
    };
    let is_free = kind.is_symlink() || kind.is_file() && is_text()?;
    Ok(if is_free { Place::Free } else { Place::Foreign })
}

fn foreign(place: &Path) -> Error {
    Error::config(
        format!("`{}` is no link to a checkpoint and no copy of one", place.display()),
        "move it away, or name another folder by `checkpointing.save_dir` or `run.dir`",
    )
}

/// Refuses a folder in which something of the user's lies where a link should be.
pub fn check(folder: &Path) -> Result<()> {
    for place in LINKS.iter().map(|name| folder.join(name)) {
        if stands_in(&place)? == Place::Foreign {
            return Err(foreign(&place));
        }
    }
    Ok(())
}

/// Whether a folder holds a checkpoint, or what is left of one, and nothing else would be lost with it.
pub(super) fn is_ours(folder: &Path) -> Result<bool> {
    Ok(look::is_file(&folder.join("state.json"))?
        || look::is_file(&folder.join(MODEL))?
        || look::entries(folder)?.is_empty())
}

/// The checkpoints of a folder, newest first, with the copies that stand where links were.
pub fn all(folder: &Path) -> Result<Vec<PathBuf>> {
    let listed = list(folder)?.into_iter().map(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        (step_of(&name).unwrap_or_default(), path)
    });
    let mut all: Vec<(i64, PathBuf)> = listed.collect();
    for place in LINKS.iter().map(|name| folder.join(name)) {
        if stands_in(&place)? != Place::Copy {
            continue;
        }
        match Checkpoint::of_folder(&place) {
            Ok(copy) => all.push((copy.state.step, place)),
            // A damaged copy is none; the next link replaces it.
            Err(Error { kind: Kind::Checkpoint, .. }) => {}
            Err(error) => return Err(error),
        }
    }
    // The sort is stable: of one step, the checkpoint comes before its copies.
    all.sort_by_key(|(step, _)| std::cmp::Reverse(*step));
    Ok(all.into_iter().map(|(_, path)| path).collect())
}

/// The checkpoints of a folder, newest first; none where there is no such folder.
///
/// # Errors
/// The folder cannot be read: what is in it is not known, and it is no empty one.
pub fn list(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = look::entries(folder)?.into_iter();
    let mut steps: Vec<i64> =
        entries.filter_map(|entry| step_of(&entry.file_name().to_string_lossy())).collect();
    steps.sort_by_key(|step| std::cmp::Reverse(*step));
    Ok(steps.into_iter().map(|step| folder.join(name(step))).collect())
}

/// What a link of a folder of checkpoints leads to; none where there is no such link.
pub(super) fn linked(folder: &Path, link: &str) -> Result<Option<PathBuf>> {
    let link = folder.join(link);
    match fs::read_link(&link) {
        Ok(target) => Ok(Some(target)),
        // Something else in its place leads nowhere, and the next link replaces it.
        Err(e) if look::is_misplaced(&e) || e.kind() == std::io::ErrorKind::InvalidInput => {
            Ok(None)
        }
        Err(e) => Err(Error::io("read", &link, &e)),
    }
}

/// In a checkpoint whose weights adapters of other runs are added to: the folders of these runs, a line each.
const NEEDED: &str = "needed_by.txt";

/// Notes in a checkpoint of a run that the adapters of the run in `by` are added to its weights: its own run then keeps it. Weights that are no
/// such checkpoint are nobody's to remove.
///
/// # Errors
/// The note cannot be written.
pub fn note_needed(checkpoint: &Path, by: &Path) -> Result<()> {
    let is_step = checkpoint.file_name().is_some_and(|n| step_of(&n.to_string_lossy()).is_some());
    if !is_step || !is_ours(checkpoint)? {
        return Ok(());
    }
    let note = checkpoint.join(NEEDED);
    let known = look::text(&note)?.unwrap_or_default();
    let by = by.display().to_string();
    if known.lines().any(|line| line == by) {
        return Ok(());
    }
    files::write_whole(&note, format!("{known}{by}\n"))
}

/// Removes all but the newest `keep` checkpoints, those that `last` and `best` point at, those that are `in_use`, and those whose weights
/// adapters of other runs need.
pub fn prune(folder: &Path, keep: usize, in_use: &[PathBuf]) -> Result<()> {
    let kept = [linked(folder, "last")?, linked(folder, "best")?];
    for path in list(folder)?.iter().skip(keep.max(1)) {
        let name = path.file_name().map(PathBuf::from);
        let is_kept = (name.is_some() && kept.contains(&name)) || in_use.contains(path);
        if is_kept || !is_ours(path)? || look::is_file(&path.join(NEEDED))? {
            continue;
        }
        discard(path)?;
    }
    Ok(())
}

/// Removes a checkpoint: out of sight first, so that a removal that is cut off leaves no half one under its name.
pub(super) fn discard(path: &Path) -> Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let hidden = path.with_file_name(format!(".{name}.tmp"));
    remove(&hidden)?;
    fs::rename(path, &hidden).map_err(|e| Error::io("rename", path, &e))?;
    remove(&hidden)
}

/// Removes what a write or a removal that was cut off has left.
pub fn sweep(folder: &Path) -> Result<()> {
    for entry in look::entries(folder)? {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with(".step-") && name.ends_with(".tmp") {
            remove(&entry.path())?;
        }
    }
    Ok(())
}

/// The newest checkpoint that is whole; none when there are none. Damaged ones that are newer are set aside under another
/// name, and `tell` hears of it.
///
/// # Errors
/// There are checkpoints, and all are damaged; or one could not be read. Nothing is moved then.
pub fn newest(folder: &Path, mut tell: impl FnMut(&str)) -> Result<Option<Checkpoint>> {
    let mut damaged: Vec<(PathBuf, Error)> = Vec::new();
    for path in all(folder)? {
        match Checkpoint::checked(&path) {
            Ok(checkpoint) => {
                for (path, error) in damaged {
                    let aside = set_aside(folder, &path)?;
                    let name = checkpoint.path.display();
                    tell(&format!(
                        "warning: {error}; it is set aside as `{aside}`, and `{name}` is used"
                    ));
                }
                return Ok(Some(checkpoint));
            }
            Err(error @ Error { kind: Kind::Checkpoint, .. }) => damaged.push((path, error)),
            // It may be whole: the machine did not let it be read.
            Err(error) => return Err(error),
        }
    }
    damaged.into_iter().next().map_or(Ok(None), |(_, error)| Err(error))
}

/// Gives a damaged checkpoint a name that is not taken for a checkpoint.
pub fn set_aside(folder: &Path, path: &Path) -> Result<String> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut number = 1;
    let named = |n: u32| folder.join(format!("damaged-{n}-{name}"));
    while look::is_taken(&named(number))? {
        number += 1;
    }
    let aside = named(number);
    fs::rename(path, &aside).map_err(|e| Error::io("rename", path, &e))?;
    Ok(aside.display().to_string())
}
