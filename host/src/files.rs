//! Small files that appear whole or not at all, and locks between processes.

use std::fs::{self, File, Permissions, TryLockError};
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use crate::error::{Error, Result};

/// Who shares a folder may read what lies in it: a temporary file is its maker's alone.
pub const SHARED: u32 = 0o644;

/// Between two looks at a lock that another process holds.
const LOOK: Duration = Duration::from_millis(200);

/// Writes a file under another name, then gives it its own. The folder is made.
pub fn put(path: &Path, content: impl AsRef<[u8]>) -> Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder).map_err(|e| Error::io("create", folder, &e))?;
    let written = tempfile::NamedTempFile::new_in(folder).and_then(|file| {
        fs::write(file.path(), content)?;
        file.as_file().set_permissions(Permissions::from_mode(SHARED))?;
        file.persist(path).map_err(|e| e.error)
    });
    written.map(drop).map_err(|e| Error::io("write", path, &e))
}

/// Holds a lock file until the result is dropped. While another process holds it, `waiting` is called again and again, with
/// true the first time; its error ends the wait.
pub fn lock(path: &Path, mut waiting: impl FnMut(bool) -> Result<()>) -> Result<File> {
    let open = File::options().create(true).truncate(false).write(true).open(path);
    let file = open.map_err(|e| Error::io("write", path, &e))?;
    let mut first = true;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) => waiting(std::mem::take(&mut first))?,
            // Some file systems of clusters know no locks; what is made is whole all the same, only made twice.
            Err(TryLockError::Error(e)) if e.kind() == ErrorKind::Unsupported => {
                tracing::warn!("`{}` cannot be locked: {e}", path.display());
                return Ok(file);
            }
            Err(TryLockError::Error(e)) => return Err(Error::io("lock", path, &e)),
        }
        std::thread::sleep(LOOK);
    }
}
