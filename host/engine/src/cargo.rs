//! Building a plugin's crate with the user's cargo, against the libtorch that this process runs over.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use maskdiff_base::error::{Error, Result};
use maskdiff_base::files::look;
use maskdiff_base::process;
use serde_json::Value;

use crate::accelerator::torch_folder;

/// First line of a `.cargo/config.toml` that is ours to write again.
const MARK: &str = "# Written by `maskdiff plugins`, again at each build while this line is here. Not for version control.";

/// Writes `.cargo/config.toml` in a plugin's folder, so that plain cargo finds this machine's libtorch; unless a file of the
/// user's is there, or one above says where libtorch is.
pub fn point_at_libtorch(folder: &Path) -> Result<()> {
    let file = folder.join(".cargo/config.toml");
    let above = folder.canonicalize().unwrap_or_else(|_| folder.to_path_buf());
    for (i, place) in above.ancestors().map(|up| up.join(".cargo/config.toml")).enumerate() {
        let Some(text) = look::text(&place)? else { continue };
        let ours = text.starts_with(MARK);
        if !ours && (i == 0 || text.contains("LIBTORCH")) {
            return Ok(());
        }
    }
    let text = format!(
        "{MARK}\n\n[env]\nLIBTORCH = {{ value = \"{}\", force = true }}\n\
         # libtorch has one random generator a process: tests run one at a time.\n\
         RUST_TEST_THREADS = \"1\"\n\n[build]\n# One for all plugins: what they share is built once.\n\
         target-dir = \"{}\"\n",
        libtorch()?.display(),
        target_folder()?.display(),
    );
    if look::text(&file)?.is_some_and(|old| old == text) {
        return Ok(());
    }
    maskdiff_base::files::write_whole(&file, text)
}

/// The libtorch of this process, with its headers.
fn libtorch() -> Result<PathBuf> {
    let lib = torch_folder().and_then(|lib| lib.canonicalize().ok());
    let torch = lib.as_deref().and_then(Path::parent).map(Path::to_path_buf).unwrap_or_default();
    if look::is_folder(&torch.join("include/torch"))? {
        return Ok(torch);
    }
    Err(Error::plugin(
        format!("the libtorch in `{}` has no headers, which a build needs", torch.display()),
        "run the host over a whole libtorch 2.11: `scripts/setup.sh` in a checkout fetches one",
    ))
}

fn target_folder() -> Result<PathBuf> {
    let Some(cache) = process::cache_folder() else {
        return Err(Error::plugin("there is no cache folder: HOME is not set", "set HOME"));
    };
    Ok(cache.join("maskdiff/plugins-target"))
}

/// Cargo within a folder, so that it reads the folder's own settings.
fn cargo(folder: &Path) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(folder);
    // For a folder whose settings are the user's own; ours say the same.
    if let Ok(libtorch) = libtorch() {
        command.env("LIBTORCH", libtorch);
    }
    command
}

/// Two crates of one name share a place in the shared target folder, where the newer one would pass for the other: what
/// was built from another folder is forgotten.
fn forget_namesake(folder: &Path) -> Result<()> {
    let manifest = look::text(&folder.join("Cargo.toml"))?.unwrap_or_default();
    let manifest: toml::Table = toml::from_str(&manifest).unwrap_or_default();
    let Some(name) = manifest.get("package").and_then(|p| p.get("name")?.as_str()) else {
        return Ok(());
    };
    let folder = folder.canonicalize().map_err(|e| Error::io("find", folder, &e))?;
    let notes = target_folder()?.join("built-from");
    let note = notes.join(name);
    let here = folder.display().to_string();
    let before = look::optional(&note);
    if before.as_ref().is_some_and(|before| *before != here) {
        let _ = cargo(&folder).args(["clean", "--quiet", "--package", name]).status();
    }
    std::fs::create_dir_all(&notes).map_err(|e| Error::io("write", &notes, &e))?;
    std::fs::write(&note, here).map_err(|e| Error::io("write", &note, &e))
}

/// How cargo tells what it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Telling {
    /// Its progress and its messages.
    All,
    /// Warnings and errors only.
    Problems,
}

/// Builds the plugin in `folder` and gives its file. What the compiler says goes to stderr as it comes.
pub fn build(folder: &Path, release: bool, telling: Telling) -> Result<PathBuf> {
    let manifest = folder.join("Cargo.toml");
    if !look::is_file(&manifest)? {
        return Err(Error::plugin(
            format!("`{}` holds no Cargo.toml", folder.display()),
            "give the folder of a plugin's crate: `maskdiff plugins new KIND NAME` makes one",
        ));
    }
    point_at_libtorch(folder)?;
    forget_namesake(folder)?;
    let mut command = cargo(folder);
    command.args(["build", "--lib", "--message-format=json-render-diagnostics"]);
    if release {
        command.arg("--release");
    }
    if telling == Telling::Problems {
        command.arg("--quiet");
    }
    let child = command.stdout(Stdio::piped()).spawn().map_err(|e| {
        Error::plugin(
            format!("cargo does not start: {e}"),
            "a plugin is built by Rust's cargo: install Rust (https://rustup.rs)",
        )
    })?;
    let done = child.wait_with_output().map_err(|e| Error::io("run cargo in", folder, &e))?;
    if !done.status.success() {
        return Err(Error::plugin(
            format!("`{}` does not build", folder.display()),
            "the compiler's words stand above",
        ));
    }
    let said = String::from_utf8_lossy(&done.stdout);
    let own = manifest.canonicalize().map_err(|e| Error::io("read", &manifest, &e))?;
    let built = said.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let library =
        built.filter(|m| m["manifest_path"] == own.display().to_string().as_str()).find_map(|m| {
            let files = m["filenames"].as_array()?.iter().filter_map(Value::as_str);
            files.map(PathBuf::from).find(|file| file.extension().is_some_and(|e| e == "so"))
        });
    library.ok_or_else(|| {
        Error::plugin(
            format!("`{}` makes no library that could be a plugin", manifest.display()),
            "its Cargo.toml needs `crate-type = [\"cdylib\"]` under `[lib]`",
        )
    })
}
