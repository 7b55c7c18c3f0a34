//! Command lines as they are written: the original's form, and one that is to run elsewhere.

use std::any::TypeId;
use std::ffi::OsString;
use std::path::PathBuf;

use clap::{CommandFactory as _, FromArgMatches as _, ValueHint};
use maskdiff_base::error::{Error, Result};
use maskdiff_base::logging;
use maskdiff_base::ranks::Place;
use maskdiff_config::expand_home;

use super::{Cli, Command};
use crate::commands::{Common, Preview};

/// Reads a command line as this program would.
pub(super) fn preview(words: &[String]) -> Result<Preview> {
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
    let form = global.form(&name);
    let common = Common {
        overrides,
        file: global.config,
        plugins: global.plugin,
        format: global.format,
        quiet: global.quiet,
        form,
        log: logging::LogFile::default(),
        preview,
    };
    Ok(Preview { name, words: words.collect(), common, nproc, terminal })
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

/// Options of the program that have a value.
const WITH_VALUE: [&str; 3] = ["--config", "--plugin", "--format"];

/// The first word that is no flag and no value of one.
fn first_word(words: &[OsString]) -> Option<(usize, String)> {
    let mut at = 1;
    while let Some(word) = words.get(at).map(|word| word.to_string_lossy().into_owned()) {
        if !word.starts_with('-') {
            return Some((at, word));
        }
        at += if WITH_VALUE.contains(&&*word) { 2 } else { 1 };
    }
    None
}

/// `mode=MODE` as one of our commands.
fn command_of(mode: &str) -> Result<&'static str> {
    match mode.trim_matches(['"', '\'']) {
        "train" => Ok("train"),
        "ppl_eval" => Ok("eval"),
        "sample_eval" => Ok("sample"),
        other => Err(Error::config(
            format!("`mode={other}` is not a mode"),
            "modes: train, ppl_eval, sample_eval",
        )),
    }
}

/// The original's form: `mode=ppl_eval KEY=VALUE...` becomes `eval KEY=VALUE...`; without a mode it trains. `config mode=MODE` shows what
/// that would run with.
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
    let first = first_word(&words);
    let is_word = |word: &str| word.contains('=') || word.starts_with('~');
    let named = first.as_ref().filter(|(_, word)| !is_word(word)).map(|(_, word)| word.clone());
    if named.as_ref().is_some_and(|name| name != "config") {
        return Ok(words);
    }
    let is_mode = |word: &OsString| {
        let word = word.to_string_lossy();
        word.trim_start_matches('+').starts_with("mode=")
    };
    let mode = words.iter().position(is_mode).map(|place| {
        let word = words.remove(place).to_string_lossy().into_owned();
        command_of(word.split_once('=').map_or("", |(_, mode)| mode))
    });
    match (named, mode.transpose()?) {
        (Some(_), None) => {}
        (Some(_), Some(command)) => {
            let flags = ["--original", "--of", command].map(OsString::from);
            let at = first_word(&words).map_or(words.len(), |(at, _)| at + 1);
            words.splice(at..at, flags);
        }
        (None, None) if first.is_none() => {}
        (None, mode) => {
            let command = mode.unwrap_or("train");
            words.splice(1..1, [command, "--original"].map(OsString::from));
            if command == "train" {
                with_processes(&mut words)?;
            }
        }
    }
    Ok(words)
}

/// `trainer.devices=N` starts N processes, as the original does; of several machines, each process must have been started.
fn with_processes(words: &mut Vec<OsString>) -> Result<()> {
    let said = |key: &str| {
        let found = words.iter().rev().find_map(|word| {
            let word = word.to_str()?.trim_start_matches('+');
            Some(word.strip_prefix(key)?.strip_prefix('=')?.to_string())
        });
        let found = found.filter(|value| !["auto", "-1"].contains(&value.as_str()));
        found.map(|value| match value.parse::<u16>() {
            Ok(number) if number > 0 => Ok(number),
            _ => Err(Error::config(
                format!("`{key}={value}` is no number of processes"),
                "a whole number from 1 on; CUDA_VISIBLE_DEVICES says which GPUs they use",
            )),
        })
    };
    let (devices, nodes) =
        (said("trainer.devices").transpose()?, said("trainer.num_nodes").transpose()?);
    if devices.is_none() && nodes.is_none() {
        return Ok(());
    }
    let world = Place::from_environment()?.map_or(1, |place| place.world);
    let (each, nodes) = (usize::from(devices.unwrap_or(1)), usize::from(nodes.unwrap_or(1)));
    let asked_here = words.iter().any(|word| word.to_string_lossy().starts_with("--nproc"));
    if asked_here || world == each * nodes || (devices.is_none() && world.is_multiple_of(nodes)) {
        return Ok(());
    }
    if world == 1 && nodes == 1 {
        words.splice(3..3, [format!("--nproc={each}").into()]);
        return Ok(());
    }
    Err(Error::config(
        format!(
            "`trainer.devices` and `trainer.num_nodes` ask for {} processes, and {world} were started",
            each * nodes
        ),
        "start them by srun or torchrun, which say how many there are; `maskdiff launch slurm` writes the job",
    ))
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
            ("maskdiff mode=ppl_eval model=small", "maskdiff eval --original model=small"),
            ("maskdiff --quiet mode=sample_eval", "maskdiff sample --original --quiet"),
            ("maskdiff --config a.toml seed=1", "maskdiff train --original --config a.toml seed=1"),
            ("maskdiff config mode=train seed=1", "maskdiff config --original --of train seed=1"),
            (
                "maskdiff -v config seed=1 mode=ppl_eval",
                "maskdiff -v config --original --of eval seed=1",
            ),
            ("maskdiff config seed=1", "maskdiff config seed=1"),
            (
                "maskdiff launch local -- mode=train seed=1",
                "maskdiff launch local -- mode=train seed=1",
            ),
            ("maskdiff ~wandb seed=1", "maskdiff train --original ~wandb seed=1"),
            (
                "maskdiff seed=1 trainer.devices=2",
                "maskdiff train --original --nproc=2 seed=1 trainer.devices=2",
            ),
            (
                "maskdiff seed=1 trainer.devices=1",
                "maskdiff train --original seed=1 trainer.devices=1",
            ),
            ("maskdiff model=small", "maskdiff train --original model=small"),
            ("maskdiff mode=train model=small", "maskdiff train --original model=small"),
            ("maskdiff train model=small", "maskdiff train model=small"),
            ("maskdiff export --format hf --format json", "maskdiff export --as hf --format json"),
        ];
        for (line, expected) in cases {
            assert_eq!(rewritten(line).unwrap(), expected);
        }
        for (line, expected) in [
            ("maskdiff mode=fly", "mode=fly"),
            ("maskdiff trainer.devices=[0,1]", "is no number of processes"),
            ("maskdiff trainer.num_nodes=2", "ask for 2 processes, and 1 were started"),
        ] {
            assert!(rewritten(line).unwrap_err().to_string().contains(expected));
        }
    }

    #[test]
    fn the_command_line_is_consistent() {
        command().debug_assert();
    }
}
