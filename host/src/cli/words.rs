//! Command lines as they are written: the original's form, and one that is to run elsewhere.

use std::any::TypeId;
use std::ffi::OsString;
use std::path::PathBuf;

use clap::{CommandFactory as _, FromArgMatches as _, ValueHint};

use super::{Cli, Command};
use crate::commands::Common;
use crate::config::expand_home;
use crate::error::{Error, Result};
use crate::logging;

/// What a command line would do that is to run elsewhere.
#[derive(Debug)]
pub struct Preview {
    /// The subcommand.
    pub name: String,
    /// The command line from its first word on.
    pub words: Vec<String>,
    /// What it is given; the overrides are those of `train` alone.
    pub common: Common,
    /// `--nproc`.
    pub nproc: Option<u16>,
    /// Whether it needs a terminal.
    pub terminal: bool,
}

impl Preview {
    /// Reads a command line as this program would.
    pub fn of(words: &[String]) -> Result<Self> {
        let all = std::iter::once("maskdiff".into()).chain(words.iter().map(OsString::from));
        let words = with_subcommand(all.collect())?;
        let read = command().try_get_matches_from(&words);
        let read = read.and_then(|matches| {
            let name = matches.subcommand_name().unwrap_or_default().to_string();
            Cli::from_arg_matches(&matches).map(|cli| (name, cli))
        });
        let (name, Cli { global, command }) = read.map_err(|e| {
            let text = e.to_string();
            let first = text.lines().next().unwrap_or_default().trim_start_matches("error: ");
            Error::config(format!("the command to launch is none of ours: {first}"), "")
        })?;
        let (nproc, terminal, overrides) = match command {
            Command::Train { nproc, tui, flags, mut overrides, .. } => {
                flags.add_to(&mut overrides)?;
                (nproc, tui, overrides)
            }
            Command::Launch { .. } | Command::Sweep { .. } => {
                let message = format!("`maskdiff {name}` starts commands, and is started by hand");
                return Err(Error::config(message, "launch `train`, `eval` or `sample`"));
            }
            _ => (None, false, Vec::new()),
        };
        let words = words.into_iter().skip(1).map(|word| word.to_string_lossy().into_owned());
        let common = Common {
            overrides,
            file: global.config,
            plugins: global.plugin,
            format: global.format,
            quiet: global.quiet,
            original: global.original,
            log: logging::LogFile::default(),
        };
        Ok(Self { name, words: words.collect(), common, nproc, terminal })
    }
}

/// The program's commands and flags. A path may begin with `~`, which a shell replaces in a word of its own and not behind `--output=`.
pub(super) fn command() -> clap::Command {
    at_home(Cli::command())
}

fn at_home(command: clap::Command) -> clap::Command {
    let command = command.mut_subcommands(at_home);
    command.mut_args(|argument| {
        let of = argument.get_value_parser().type_id();
        let path = |text: &str| expand_home(text).map_err(|error| error.in_one_line());
        if of == TypeId::of::<PathBuf>() {
            return argument.value_parser(move |text: &str| path(text).map(PathBuf::from));
        }
        let paths = [ValueHint::FilePath, ValueHint::DirPath, ValueHint::AnyPath];
        if of != TypeId::of::<String>() || !paths.contains(&argument.get_value_hint()) {
            return argument;
        }
        // Among files there may be words, as in `~KEY=VALUE`.
        let mixed = argument.is_positional();
        argument.value_parser(move |text: &str| match text.contains('=') && mixed {
            true => Ok(text.to_string()),
            false => path(text),
        })
    })
}

/// The original's form: `mode=ppl_eval KEY=VALUE...` becomes `eval KEY=VALUE...`; without a mode it trains.
pub(super) fn with_subcommand(mut words: Vec<OsString>) -> Result<Vec<OsString>> {
    if words
        .iter()
        .skip(1)
        .find(|word| !word.to_string_lossy().starts_with('-'))
        .is_some_and(|word| word == "export")
    {
        // Of an export, `--format` is what is written, unless it is how results are printed.
        let printed = ["auto", "text", "json", "markdown"];
        let last = words.len().saturating_sub(1);
        for at in 0..last {
            if words[at] == "--format" && !printed.iter().any(|word| words[at + 1] == *word) {
                words[at] = "--as".into();
            }
        }
    }
    let mode = words.iter().position(|w| w.to_string_lossy().starts_with("mode="));
    let bare = words.get(1).is_some_and(|w| {
        let word = w.to_string_lossy();
        word.contains('=') && !word.starts_with('-')
    });
    let command = match mode {
        Some(place) => {
            let word = words.remove(place).to_string_lossy().into_owned();
            match word.trim_start_matches("mode=") {
                "train" => "train",
                "ppl_eval" => "eval",
                "sample_eval" => "sample",
                other => {
                    return Err(Error::config(
                        format!("`mode={other}` is not a mode"),
                        "modes: train, ppl_eval, sample_eval",
                    ));
                }
            }
        }
        None if bare => "train",
        None => return Ok(words),
    };
    words.insert(1, command.into());
    if command == "train" {
        words.insert(2, "--original".into());
    }
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rewritten(line: &str) -> Result<String> {
        let words = line.split(' ').map(OsString::from).collect();
        let words = with_subcommand(words)?;
        let words: Vec<String> = words.iter().map(|w| w.to_string_lossy().into_owned()).collect();
        Ok(words.join(" "))
    }

    #[test]
    fn the_original_form_becomes_a_subcommand() {
        let cases = [
            ("maskdiff mode=ppl_eval model=small", "maskdiff eval model=small"),
            ("maskdiff --quiet mode=sample_eval", "maskdiff sample --quiet"),
            ("maskdiff model=small", "maskdiff train --original model=small"),
            ("maskdiff mode=train model=small", "maskdiff train --original model=small"),
            ("maskdiff train model=small", "maskdiff train model=small"),
            ("maskdiff export --format hf --format json", "maskdiff export --as hf --format json"),
        ];
        for (line, expected) in cases {
            assert_eq!(rewritten(line).unwrap(), expected);
        }
        assert!(rewritten("maskdiff mode=fly").unwrap_err().to_string().contains("mode=fly"));
    }

    #[test]
    fn the_command_line_is_consistent() {
        command().debug_assert();
    }
}
