//! Images of compiled kernels on disk.

use std::fs::{File, TryLockError};
use std::hash::BuildHasher;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::Result;

/// How long a process waits for another that compiles.
const PATIENCE: Duration = Duration::from_secs(60);

/// FNV-1a, 64 bits: the same in every build.
pub(super) fn hash_of(bytes: &[u8]) -> u64 {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, step)
}

/// The image of a file where that is trusted and whole, or a new one, which the file then has. One that cannot be written keeps nothing.
/// Ranks of a machine that begin together make it once.
pub(super) fn cached(
    file: Option<&Path>,
    trusted: bool,
    make: impl FnOnce() -> Result<Vec<u8>>,
) -> Result<Vec<u8>> {
    if let Some(image) = file.filter(|_| trusted).and_then(whole) {
        return Ok(image);
    }
    let lock = file.and_then(Path::parent).and_then(locked);
    // Another may have made it meanwhile.
    if let Some(image) = file.filter(|_| trusted && lock.is_some()).and_then(whole) {
        return Ok(image);
    }
    let image = make()?;
    if let Some(file) = file {
        let _ = keep(file, &image);
    }
    Ok(image)
}

/// The folder, locked until the file is dropped; none where it cannot be, or another holds it for longer than any compiler takes.
fn locked(folder: &Path) -> Option<File> {
    std::fs::create_dir_all(folder).ok()?;
    let lock = File::open(folder).ok()?;
    let begun = Instant::now();
    while begun.elapsed() < PATIENCE {
        match lock.try_lock() {
            Ok(()) => return Some(lock),
            Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(50)),
            Err(TryLockError::Error(_)) => return None,
        }
    }
    None
}

/// The image of a file, behind its hash: the driver is told no length, and would read on behind a part of one.
pub(super) fn whole(file: &Path) -> Option<Vec<u8>> {
    let mut bytes = std::fs::read(file).ok()?;
    let hash = u64::from_le_bytes(bytes.get(..8)?.try_into().ok()?);
    bytes.drain(..8);
    (hash == hash_of(&bytes)).then_some(bytes)
}

/// Writes the file of an image whole or not at all: other processes may be at it, also on other machines.
fn keep(file: &Path, image: &[u8]) -> std::io::Result<()> {
    if let Some(folder) = file.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let random = std::hash::RandomState::new().hash_one(std::process::id());
    let beside = file.with_extension(format!("{random:016x}.part"));
    let write = || {
        let mut new = File::create_new(&beside)?;
        new.write_all(&hash_of(image).to_le_bytes())?;
        new.write_all(image)?;
        new.sync_all()?;
        std::fs::rename(&beside, file)
    };
    let kept = write();
    if kept.is_err() {
        let _ = std::fs::remove_file(&beside);
    }
    kept
}
