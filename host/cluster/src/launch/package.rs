//! A folder from which the program runs on a machine without Rust, over any torch of its version: what is built again while a job
//! waits does not change the job.
//!
//! ```text
//! maskdiff  bin/maskdiff  bin/lib*.so  configs/  config.toml (of --config)  torch/ (if asked for)
//! ```

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use maskdiff_base::error::{Error, Result};
use maskdiff_base::files::{self, look};
use maskdiff_base::process::PACKAGED_CONFIG;
use maskdiff_base::text::quoted;
use maskdiff_config::secrets;

/// The run path that the build gives the program, up to the build's own folder.
const NEAR: &[u8] = b"$ORIGIN/../libtorch/torch/lib:";

/// What goes into a package.
#[derive(Debug)]
pub struct Contents<'a> {
    /// The plugins: their crates' names and their files.
    pub plugins: Vec<(&'a str, &'a Path)>,
    /// Our library over libtorch's CUDA half, if it exists.
    pub cuda: PathBuf,
    /// The folder of the libraries of libtorch that this process runs over.
    pub used: Option<PathBuf>,
    /// Version of libtorch.
    pub version: &'a str,
    /// The file that `--config` names.
    pub config: Option<&'a Path>,
    /// Whether libtorch goes into it too.
    pub torch: bool,
}

/// Makes the folder; gives the program in it. An older package is not touched: a job may wait to run from it.
pub fn make(folder: &Path, contents: &Contents<'_>) -> Result<PathBuf> {
    check_free(folder)?;
    // Written beside, so that half a folder never has its name.
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    let fresh = folder.with_file_name(format!(".{name}.{}.tmp", std::process::id()));
    let made = fill(&fresh, contents).and_then(|()| files::rename_whole(&fresh, folder));
    if let Err(error) = made {
        let _ = fs::remove_dir_all(&fresh);
        return Err(error);
    }
    let program = folder.join("maskdiff");
    program.canonicalize().map_err(|e| Error::io("read", &program, &e))
}

/// Refuses a folder that is there already.
pub fn check_free(folder: &Path) -> Result<()> {
    if !look::is_taken(folder)? {
        return Ok(());
    }
    Err(Error::config(
        format!("`{}` is there already, and a job may run from it", folder.display()),
        "name a folder that is not there yet by `--package=FOLDER`",
    ))
}

fn fill(fresh: &Path, contents: &Contents<'_>) -> Result<()> {
    let Contents { plugins, config, torch, .. } = contents;
    let bin = fresh.join("bin");
    fs::create_dir_all(&bin).map_err(|e| Error::io("create", &bin, &e))?;
    let program = std::env::current_exe()
        .map_err(|e| Error::config(format!("cannot find this program: {e}"), ""))?;
    let bytes = fs::read(&program).map_err(|e| Error::io("read", &program, &e))?;
    put(&bin.join("maskdiff"), &without_build_path(bytes), 0o755)?;
    slim(&bin.join("maskdiff"));
    for (name, file) in plugins {
        // By such names they are found beside the program; crates, unlike files, have different ones.
        let name = name.replace('-', "_");
        let name = name.strip_prefix("maskdiff_").unwrap_or(&name);
        let copy = bin.join(format!("libmaskdiff_{name}.so"));
        fs::copy(file, &copy).map_err(|e| Error::io("copy", file, &e))?;
        slim(&copy);
    }
    let cuda = &contents.cuda;
    if look::is_file(cuda)? {
        let copy = bin.join(cuda.file_name().unwrap_or_default());
        fs::copy(cuda, &copy).map_err(|e| Error::io("copy", cuda, &e))?;
        slim(&copy);
    }
    maskdiff_config::write_files(&fresh.join("configs"))?;
    // Those of the current folder stand before the built-in ones.
    if look::is_folder(Path::new("configs"))? {
        copy_folder(Path::new("configs"), &fresh.join("configs"), ".toml")?;
    }
    if let Some(file) = config {
        fs::copy(file, fresh.join(PACKAGED_CONFIG)).map_err(|e| Error::io("copy", file, &e))?;
        secrets::protect(&fresh.join(PACKAGED_CONFIG))?;
    }
    let used = contents.used.as_ref().and_then(|lib| Some(lib.parent()?.to_path_buf()));
    let used = used.and_then(|torch| torch.canonicalize().ok());
    if let Some(from) = used.as_ref().filter(|_| *torch) {
        copy_folder(&from.join("lib"), &fresh.join("torch/lib"), ".so")?;
        // What a build with CUDA looks for beside its own folder.
        let nvidia = from.with_file_name("nvidia");
        if look::is_folder(&nvidia)? {
            copy_folder(&nvidia, &fresh.join("nvidia"), ".so")?;
        }
    }
    put(&fresh.join("maskdiff"), starter(used.as_deref(), contents.version).as_bytes(), 0o755)
}

fn put(file: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    fs::write(file, bytes)
        .and_then(|()| fs::set_permissions(file, Permissions::from_mode(mode)))
        .map_err(|e| Error::io("write", file, &e))
}

/// Ends the program's run path before the folder of the build, so that the starter alone says which libtorch it is.
fn without_build_path(mut bytes: Vec<u8>) -> Vec<u8> {
    let places: Vec<usize> = bytes
        .windows(NEAR.len())
        .enumerate()
        .filter(|(_, window)| *window == NEAR)
        .map(|(place, _)| place)
        .collect();
    for place in places {
        // The constant above is one such text, and no run path follows it.
        let tail = place + NEAR.len() - 1;
        let end = bytes[tail..].iter().position(|byte| *byte == 0).map_or(tail, |n| tail + n);
        if bytes.get(tail + 1) == Some(&b'/') {
            bytes[tail..end].fill(0);
        }
    }
    bytes
}

/// Leaves out what only a debugger reads, where there is a `strip`.
fn slim(file: &Path) {
    if let Err(e) = Command::new("strip").arg("--strip-debug").arg(file).output() {
        tracing::debug!("{} keeps what a debugger reads: {e}", file.display());
    }
}

/// Copies the files whose names have `part` in them, at any depth.
fn copy_folder(from: &Path, to: &Path, part: &str) -> Result<()> {
    fs::create_dir_all(to).map_err(|e| Error::io("create", to, &e))?;
    for entry in look::entries(from)? {
        let (path, copy) = (entry.path(), to.join(entry.file_name()));
        if look::is_folder(&path)? {
            copy_folder(&path, &copy, part)?;
        } else if entry.file_name().to_string_lossy().contains(part) {
            fs::copy(&path, &copy).map_err(|e| Error::io("copy", &path, &e))?;
        }
    }
    Ok(())
}

/// The script that finds a torch and starts the program over it.
fn starter(used: Option<&Path>, version: &str) -> String {
    let used = used.map_or("''".into(), |path| quoted(&path.display().to_string()));
    format!(
        r#"#!/bin/sh
# Starts the program of this folder over a torch {version}: the one that MASKDIFF_TORCH names, one in this folder, python3's, or the
# one that it was packaged beside.
here=$(dirname "$(readlink -f "$0")")
fits() {{
  [ -n "$1" ] && [ -e "$1/lib/libtorch_cpu.so" ] || return 1
  [ ! -f "$1/version.py" ] || grep -q "__version__ = '{version}" "$1/version.py"
}}
python() {{
  python3 -c 'import importlib.util as u; print(u.find_spec("torch").submodule_search_locations[0])' 2>/dev/null
}}
if [ -n "${{MASKDIFF_TORCH:-}}" ]; then
  torch=$(readlink -f "$MASKDIFF_TORCH") || torch=$MASKDIFF_TORCH
  fits "$torch" || {{ echo "maskdiff: MASKDIFF_TORCH=$MASKDIFF_TORCH is no torch {version}" >&2; exit 3; }}
else
  for torch in "$here/torch" "$(python)" {used} ''; do
    fits "$torch" && break
  done
  [ -n "$torch" ] || {{
    echo "maskdiff: no torch {version} here: pip install torch=={version}, or name one by MASKDIFF_TORCH=.../site-packages/torch" >&2
    exit 3
  }}
fi
export LD_LIBRARY_PATH="$torch/lib${{LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}}"
# MASKDIFF_PROGRAM names another program of bin/.
exec "$here/bin/${{MASKDIFF_PROGRAM:-maskdiff}}" "$@"
"#
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_builds_folder_is_cut_off_the_run_path_and_nothing_else_changes() {
        let text = b"abc\0$ORIGIN/../libtorch/torch/lib:/build/lib\0def\0$ORIGIN/../libtorch/torch/lib:x\0";
        let cut = without_build_path(text.to_vec());
        let mut expected = text.to_vec();
        expected[33..44].fill(0);
        assert_eq!(cut, expected);
    }

    #[test]
    fn the_starter_is_one_that_the_shell_reads() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("maskdiff");
        fs::write(&file, starter(Some(Path::new("/a b/torch")), "2.11")).unwrap();
        assert!(Command::new("sh").arg("-n").arg(&file).status().unwrap().success());
        // A torch that is none is refused by its name.
        let said =
            Command::new("sh").arg(&file).env("MASKDIFF_TORCH", "/nowhere").output().unwrap();
        assert_eq!(said.status.code(), Some(3));
        assert!(String::from_utf8_lossy(&said.stderr).contains("MASKDIFF_TORCH=/nowhere"));
    }
}
