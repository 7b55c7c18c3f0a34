//! Calls for files that fail as a disk, a server or a missing right lets them fail: a library that is preloaded into the binary.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use crate::root;
use crate::run::command;

/// The library, built once a test program.
fn library() -> &'static Path {
    static BUILT: OnceLock<(tempfile::TempDir, PathBuf)> = OnceLock::new();
    let (_, library) = BUILT.get_or_init(|| {
        let folder = tempfile::tempdir().expect("a folder");
        let library = folder.path().join("faults.so");
        let source = root().join("tests/src/faults.c");
        let mut cc = Command::new("cc");
        cc.args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(source).arg("-ldl");
        assert!(cc.status().expect("cc, which links this test too").success());
        (folder, library)
    });
    library
}

/// `maskdiff WORDS` in `folder`, where a call (`open`, `list`, `look`, `read`, `lock`) fails with an error of the system for
/// paths that have `part` in them.
pub fn failing(folder: &Path, words: &[&str], call: &str, part: &str, errno: i32) -> Command {
    let mut command = command(folder, words);
    command.env("LD_PRELOAD", library());
    command.env("FAULT_CALL", call).env("FAULT_PATH", part).env("FAULT_ERRNO", errno.to_string());
    command
}

/// `maskdiff WORDS` in `folder`, of which `log` gets a line `CALL\tFROM\tTO` for each fsync, rename and symlink that was done.
pub fn logged(folder: &Path, words: &[&str], log: &Path) -> Command {
    let mut command = command(folder, words);
    command.env("LD_PRELOAD", library()).env("FAULT_LOG", log);
    command
}
