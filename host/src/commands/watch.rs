//! `maskdiff sample --watch DIR`: at each save of a plugin's source, the plugin is built and the model draws again. So it does at each save of
//! a file in Python, `--watch FILE.py:CLASS`, which needs no build.
//!
//! Two processes. The one the user started watches and builds; the other holds the model and draws. A library that is open
//! stays open, so each build is loaded beside the ones before, from a copy of its own. A sampler that kills its process or
//! hangs costs loading the model once more, not the session.

use std::fs;
use std::io::{BufRead as _, BufReader, IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant, SystemTime};

use maskdiff_base::error::{Error, Result};
use maskdiff_base::files::look;
use maskdiff_base::stdout::Format;
use maskdiff_base::stop::Stop;
use maskdiff_base::{memory, output};
use maskdiff_config::kind::ComponentKind;
use maskdiff_engine::cargo::{self, Telling};
use maskdiff_engine::prompt::Ask;
use maskdiff_plugin_api::abi::load::Plugin;

use super::Common;
use super::sample::{Session, Shown};

/// How often the source is looked at. Asking for times works on every file system, also one of a network.
const PACE: Duration = Duration::from_millis(100);
/// The line, on a stream of texts, with which the drawing process says that it is done.
const DONE: &str = "\u{1e}done";

/// Watches a plugin's folder, or a class as FILE.py:CLASS, until the user stops it.
pub fn run(common: &Common, watched: &Path) -> Result<()> {
    let stop = Stop::listen("the build that is under way is ended")?;
    let copies = tempfile::tempdir().map_err(|e| Error::io("write", &std::env::temp_dir(), &e))?;
    watch(common, &Watched::of(watched), copies.path(), &stop)
}

/// What is watched.
enum Watched<'a> {
    /// A crate.
    Folder(&'a Path),
    /// A class in Python: its file, and the word that chooses it.
    Class(PathBuf, String),
}

/// Before the name of a class in a file of Python.
const PYTHON: &str = ".py:";
/// The component that opens such a class.
const OPENS: &str = "python:";

impl<'a> Watched<'a> {
    fn of(path: &'a Path) -> Self {
        let word = path.to_string_lossy();
        let word = word.strip_prefix(OPENS).unwrap_or(&word);
        match word.rsplit_once(':').filter(|_| word.contains(PYTHON)) {
            Some((file, _)) => Self::Class(file.into(), format!("{OPENS}{word}")),
            None => Self::Folder(path),
        }
    }

    /// The newest change, and the number of files.
    fn last_change(&self) -> Result<Option<(SystemTime, usize)>> {
        match self {
            Self::Folder(folder) => last_change(folder),
            Self::Class(file, word) => {
                let changed = look::optional_found(file).and_then(|found| found.modified().ok());
                let missing = || {
                    Error::config(
                        format!("there is no file `{}`", file.display()),
                        format!(
                            "`maskdiff plugins new --python sampler NAME` writes one; it is watched as `{word}`"
                        ),
                    )
                };
                changed.map(|time| Some((time, 1))).ok_or_else(missing)
            }
        }
    }
}

/// The library that was built; none where it does not build, which has been said.
fn built(folder: &Path, first: bool) -> Result<Option<PathBuf>> {
    match cargo::build(folder, false, Telling::Problems) {
        Ok(file) => Ok(Some(file)),
        // Without a crate there is nothing to wait for.
        Err(error) if first && !look::is_file(&folder.join("Cargo.toml"))? => Err(error),
        Err(error) => {
            output::error(error);
            Ok(None)
        }
    }
}

fn watch(common: &Common, watched: &Watched<'_>, copies: &Path, stop: &Stop) -> Result<()> {
    let mut drawing: Option<Drawing> = None;
    let mut seen = None;
    let mut builds = 0;
    loop {
        if stop.asked() {
            return Err(Error::interrupted("stopped watching"));
        }
        if let Some(died) = drawing.as_mut().and_then(Drawing::died) {
            drawing = None;
            output::word(&format!(
                "the sampler ended its process ({died}); the session goes on with the next save"
            ));
        }
        let now = match (watched.last_change(), watched, seen) {
            // An editor replaces files: only at the beginning must it be there.
            (Err(_), Watched::Class(..), Some(before)) => before,
            (now, ..) => now?,
        };
        if seen == Some(now) {
            std::thread::sleep(PACE);
            continue;
        }
        // An editor may write a file in several steps.
        std::thread::sleep(PACE);
        if watched.last_change().ok() != Some(now) {
            continue;
        }
        seen = Some(now);
        let start = Instant::now();
        let asked = match watched {
            Watched::Class(_, word) => PathBuf::from(word),
            Watched::Folder(folder) => {
                let Some(built) = built(folder, builds == 0)? else { continue };
                let copy = copies.join(format!("libmaskdiff_{}.so", builds + 1));
                fs::copy(&built, &copy).map_err(|e| Error::io("write", &copy, &e))?;
                copy
            }
        };
        builds += 1;
        if !common.quiet {
            let what = if matches!(watched, Watched::Class(..)) { "save" } else { "build" };
            output::word(&format!("── {what} {builds}, {:.1} s", start.elapsed().as_secs_f64()));
        }
        // One that is still at the build before will not come back in time.
        if drawing.as_mut().is_none_or(|d| !d.is_idle()) {
            drawing = Some(Drawing::start(common.format)?);
        }
        if let Some(drawing) = &mut drawing {
            drawing.ask(&asked);
        }
    }
}

/// The newest change of the crate's source, and how many files it has. What an editor keeps beside a file does not count.
fn last_change(folder: &Path) -> Result<Option<(SystemTime, usize)>> {
    fn visit(path: &Path, newest: &mut Option<(SystemTime, usize)>) {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with('.') {
            return;
        }
        // An editor replaces files: what is gone for a moment is there at the next look.
        let Some(found) = look::optional_found(path) else { return };
        if found.is_dir() {
            for entry in look::optional_entries(path) {
                visit(&entry.path(), newest);
            }
        } else if path.extension().is_some_and(|e| e == "rs" || e == "toml")
            && let Ok(changed) = found.modified()
        {
            let (time, files) = newest.unwrap_or((SystemTime::UNIX_EPOCH, 0));
            *newest = Some((time.max(changed), files + 1));
        }
    }
    let mut newest = None;
    for part in ["src", "build.rs", "Cargo.toml"] {
        visit(&folder.join(part), &mut newest);
    }
    if newest.is_none() {
        return Err(Error::plugin(
            format!("`{}` holds no Cargo.toml", folder.display()),
            "give the folder of a plugin's crate: `maskdiff plugins new sampler NAME` makes one",
        ));
    }
    Ok(newest)
}

/// The process that holds the model. It is killed when this is dropped.
struct Drawing {
    child: Child,
    asks: ChildStdin,
    done: Receiver<()>,
    asked: usize,
    answered: usize,
}

impl Drawing {
    /// This very command, but with the plugins to draw with on its standard input.
    fn start(format: Format) -> Result<Self> {
        let failed = |e| Error::io("run", Path::new("maskdiff"), &e);
        let mut words = std::env::args_os().skip(1);
        let mut command = Command::new(std::env::current_exe().map_err(failed)?);
        while let Some(word) = words.next() {
            match word.to_string_lossy() {
                flag if flag == "--watch" => drop(words.next()),
                flag if flag.starts_with("--watch=") => {}
                _ => drop(command.arg(word)),
            }
        }
        // Its own output is no terminal.
        if format == Format::Auto && std::io::stdout().is_terminal() {
            command.args(["--format", "text"]);
        }
        let mut child = command
            .arg("--follow")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(failed)?;
        let closed = || Error::plugin("the drawing process has no streams", "");
        let asks = child.stdin.take().ok_or_else(closed)?;
        let texts = child.stdout.take().ok_or_else(closed)?;
        let (tell, done) = channel();
        memory::thread("texts", move || {
            for line in BufReader::new(texts).split(b'\n').map_while(std::io::Result::ok) {
                let line = String::from_utf8_lossy(&line);
                // A sampler may have printed something without ending its line.
                let (text, done) = match line.strip_suffix(DONE) {
                    Some(text) => (text, true),
                    None => (&*line, false),
                };
                if !done || !text.is_empty() {
                    output::result(text);
                }
                if done {
                    let _ = tell.send(());
                }
            }
        })?;
        Ok(Self { child, asks, done, asked: 0, answered: 0 })
    }

    fn ask(&mut self, plugin: &Path) {
        self.asked += 1;
        // Where it has died, the next look at it says so.
        let _ = writeln!(self.asks, "{}", plugin.display());
    }

    fn is_idle(&mut self) -> bool {
        self.answered += self.done.try_iter().count();
        self.answered == self.asked
    }

    fn died(&mut self) -> Option<String> {
        Some(self.child.try_wait().ok()??.to_string())
    }
}

impl Drop for Drawing {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The drawing process: draws with each plugin that is named on standard input, and keeps the model in memory.
pub fn follow(mut common: Common, asked: &[Ask]) -> Result<()> {
    let (files, overrides) = (common.plugins.clone(), common.overrides.clone());
    let mut session = Session::default();
    for line in std::io::stdin().lines().map_while(std::io::Result::ok) {
        let file = PathBuf::from(&line);
        let class = line.contains(PYTHON);
        common.plugins = match class {
            true => files.clone(),
            false => [vec![file.clone()], files.clone()].concat(),
        };
        let chosen = match class {
            true => Ok(unless_chosen(&overrides, || line.clone())),
            false => its_sampler(&file, &overrides),
        };
        let drawn = chosen.and_then(|choice| {
            common.overrides = overrides.iter().cloned().chain(choice).collect();
            session.draw(&common, asked, &Shown::default(), &Stop::default())
        });
        if let Err(error) = drawn {
            output::error(error);
        }
        output::result(DONE);
    }
    Ok(())
}

const CHOICE: &str = "sampling.predictor=";

fn is_chosen(overrides: &[String]) -> bool {
    overrides.iter().any(|word| word.starts_with(CHOICE))
}

/// The override that picks a sampler, unless the user picks one.
fn unless_chosen(overrides: &[String], name: impl FnOnce() -> String) -> Option<String> {
    (!is_chosen(overrides)).then(|| format!("{CHOICE}{}", name()))
}

/// The override that picks the plugin's sampler, unless the user picks one.
fn its_sampler(file: &Path, overrides: &[String]) -> Result<Option<String>> {
    if is_chosen(overrides) {
        return Ok(None);
    }
    let plugin = Plugin::open(file).map_err(|e| Error::plugin(e.to_string(), e.hint()))?;
    let components = plugin.info.components.iter();
    let samplers: Vec<&str> =
        components.filter(|c| c.kind == ComponentKind::Sampler).map(|c| c.name.as_str()).collect();
    match samplers[..] {
        [name] => Ok(Some(format!("{CHOICE}{}:{name}", plugin.info.name))),
        _ => Err(Error::plugin(
            format!("`{}` has {} samplers", plugin.info.name, samplers.len()),
            "say which one to watch: `sampling.predictor=NAME`",
        )),
    }
}
