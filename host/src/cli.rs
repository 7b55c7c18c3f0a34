//! The command line.

use std::ffi::OsString;
use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::LazyLock;
use std::time::Duration;

use clap::{Args, CommandFactory as _, Parser, Subcommand, ValueHint};

use crate::commands::{self, Common};
use crate::error::{Error, Result};
use crate::prompt::Ask;
use crate::report::{Format, Report};
use crate::{accelerator, logging};

const LONG_ABOUT: &str = "\
Trains, evaluates and samples discrete-diffusion language models whose parts (network, noise, \
parameterization, sampler) are plugins, chosen by words in the configuration.

Try: maskdiff train experiment=demo";

const AFTER_HELP: &str = "\
Overrides:
  optim.lr=1e-3            set a value (`maskdiff config` prints all keys with their sources)
  model=small              choose a file of configs/model/, configs/data/, configs/noise/, ...
  experiment=demo          choose a file of configs/experiment/
  sampling.predictor=NAME  choose a component (`maskdiff plugins list` prints all)

Environment:
  MASKDIFF_OPTIM__LR=1e-3  set a value; the command line wins
  MASKDIFF_PLUGIN_PATH     more folders with plugins, separated by colons
  MASKDIFF_LOG             log filter, as in `debug`

The form `maskdiff mode=train KEY=VALUE...` works too (train, ppl_eval, sample_eval).

Exit codes: 0 done, 2 usage, configuration or data, 3 plugin, 4 not a number, 5 other, 75 stopped by a
scheduler's signal and to be started again, 130 interrupted";

/// The three versions that matter to a plugin.
static VERSION: LazyLock<String> = LazyLock::new(|| {
    use maskdiff_plugin_api::abi::{API_VERSION, TORCH_VERSION};
    format!("{} (plugin-api {API_VERSION}, libtorch {TORCH_VERSION})", env!("CARGO_PKG_VERSION"))
});

/// See [`LONG_ABOUT`].
#[derive(Debug, Parser)]
#[command(name = "maskdiff", version = VERSION.as_str(), about = "Research on discrete-diffusion language models",
    long_about = LONG_ABOUT, after_help = AFTER_HELP, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Args)]
struct Global {
    /// A configuration file, read after the experiment
    #[arg(long, value_name = "FILE", global = true, value_hint = ValueHint::FilePath)]
    config: Option<PathBuf>,
    /// A plugin file to load before all others (may be repeated)
    #[arg(long, value_name = "FILE", global = true, value_hint = ValueHint::FilePath)]
    plugin: Vec<PathBuf>,
    /// How results are printed to stdout
    #[arg(long, value_enum, default_value_t, global = true)]
    format: Format,
    /// No progress; errors and results only
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    quiet: bool,
    /// More log: -v information, -vv debugging, -vvv everything
    #[arg(short, long, action = clap::ArgAction::Count, global = true)]
    verbose: u8,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Train a model; results go to a run folder
    ///
    /// The run folder is `run.dir`, or else `outputs/<data>/<date>/<time>`. Ctrl-C, SIGTERM, SIGUSR1 and SIGUSR2 finish the
    /// step and write a checkpoint (a second one ends at once); `run.dir=FOLDER checkpointing.resume_from_ckpt=true` goes
    /// on. Several processes train together when started by --nproc, torchrun or srun.
    Train {
        /// Train with N processes on this machine
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
        nproc: Option<u16>,
        /// Record a few steps into trace.json in the run folder, for Perfetto or chrome://tracing
        #[arg(long)]
        profile: bool,
        /// Show the run on the whole terminal: curves, speed, memory, the last sample
        #[arg(long, conflicts_with = "nproc")]
        tui: bool,
        /// KEY=VALUE
        overrides: Vec<String>,
    },
    /// Bound the likelihood of text: of the validation text, of a file, or of several sets (`data=zeroshot`)
    Eval {
        #[command(flatten)]
        trained: Trained,
        /// A text file to measure on; the same as data=text data.valid_path=FILE
        #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
        text: Option<String>,
    },
    /// Score generated text by a judge: generative perplexity, entropy, distinct n-grams, MAUVE
    ///
    /// `eval.gen_ppl_eval_model_name_or_path` names the judge, `eval.gen_ppl.protocol` says what counts.
    Score {
        /// What `maskdiff sample --format json` printed (FILE.jsonl), or texts between lines `---`; and KEY=VALUE
        #[arg(required = true, value_name = "FILE", value_hint = ValueHint::FilePath)]
        words: Vec<String>,
    },
    /// Draw text
    ///
    /// Without a prompt, `sampling.num_sample_batches` batches of `loader.eval_batch_size` texts; with prompts and
    /// templates, as many texts for each as there are batches. What is given never changes.
    Sample {
        #[command(flatten)]
        trained: Trained,
        #[command(flatten)]
        given: Given,
        #[command(flatten)]
        shown: commands::sample::Shown,
        /// Build the plugin in this folder at each save, and draw again with its sampler
        #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
        watch: Option<PathBuf>,
        /// What `--watch` runs: draws with each plugin file that is named on stdin
        #[arg(long, hide = true, conflicts_with = "watch")]
        follow: bool,
    },
    /// Make one page of runs: curves, results beside published figures, samples, and how they came to be
    ///
    /// The page holds all it shows and needs no network.
    Report {
        /// Run folders, or folders that hold some
        #[arg(required = true, value_name = "FOLDER", value_hint = ValueHint::DirPath)]
        folders: Vec<PathBuf>,
        /// Where the page goes
        #[arg(long, value_name = "FILE", default_value = "report.html", value_hint = ValueHint::FilePath)]
        output: PathBuf,
    },
    /// Write a checkpoint for another program
    ///
    /// The averaged weights where there are such; `eval.disable_ema=true` takes the others.
    Export {
        #[command(flatten)]
        trained: Trained,
        /// What is written; `--format KIND` is the same
        #[arg(long = "as", value_enum, value_name = "KIND")]
        kind: commands::export::As,
        /// The folder or the file, which must not be there yet
        #[arg(long, value_name = "PATH", value_hint = ValueHint::AnyPath)]
        output: PathBuf,
    },
    /// List, show, compare and remove runs
    Runs {
        #[command(subcommand)]
        command: Runs,
    },
    /// Send runs that were logged offline to Weights & Biases
    ///
    /// What the server has already is not sent again; a run that does not say how it ended ends as failed.
    Sync {
        /// Run folders
        #[arg(required = true, value_name = "RUN", value_hint = ValueHint::DirPath)]
        folders: Vec<PathBuf>,
        /// Those that were sent before, too
        #[arg(long)]
        again: bool,
        /// How long each folder may take, a server that is away included
        #[arg(long, value_name = "SECONDS", default_value_t = 600.0)]
        timeout: f64,
    },
    /// List, show, write, build, check and remove plugins
    Plugins {
        #[command(subcommand)]
        command: Plugins,
    },
    /// Prepare, check and look at blocks of tokens
    Data {
        #[command(subcommand)]
        command: Data,
    },
    /// Print the resolved configuration with the source of every value
    Config {
        /// KEY=VALUE
        overrides: Vec<String>,
    },
    /// Print a completion script, for example `maskdiff completions bash > maskdiff.bash`
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

#[derive(Debug, Args)]
struct Trained {
    /// A run folder, or one of its checkpoints; the same as eval.checkpoint_path=PATH
    #[arg(long, value_name = "PATH", value_hint = ValueHint::DirPath)]
    checkpoint: Option<String>,
    /// KEY=VALUE; what is not given comes from the checkpoint's configuration
    overrides: Vec<String>,
}

impl Trained {
    fn into_overrides(self) -> Vec<String> {
        let checkpoint = self.checkpoint.map(|path| format!("eval.checkpoint_path={path}"));
        self.overrides.into_iter().chain(checkpoint).collect()
    }
}

#[derive(Debug, Args)]
struct Given {
    /// A text to continue (may be repeated)
    #[arg(long, value_name = "TEXT")]
    prompt: Vec<String>,
    /// A file with a prompt a line; in FILE.jsonl each line is {"prompt": "..."} or {"template": "..."}
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    prompt_file: Option<PathBuf>,
    /// A text with holes to fill, [MASK] for one token and [MASK:12] for twelve (may be repeated)
    #[arg(long, value_name = "TEXT")]
    template: Vec<String>,
}

impl Given {
    fn into_asks(self) -> Result<Vec<Ask>> {
        let prompts = self.prompt.into_iter().map(Ask::Prompt);
        let templates = self.template.into_iter().map(Ask::Template);
        let lines = self.prompt_file.as_deref().map(Ask::read).transpose()?;
        Ok(prompts.chain(templates).chain(lines.into_iter().flatten()).collect())
    }
}

#[derive(Debug, Subcommand)]
enum Plugins {
    /// All components, by kind
    List {
        /// KEY=VALUE
        overrides: Vec<String>,
    },
    /// One component with its options, or all of a plugin
    Show {
        /// The component's or the plugin's name
        name: String,
        /// KEY=VALUE
        overrides: Vec<String>,
    },
    /// Write a new plugin: a crate that builds, passes its contract and runs
    ///
    /// KIND is backbone, noise, parameterization, process or sampler.
    New {
        /// The kind of its component
        kind: String,
        /// The component's name, and the folder's
        name: String,
        /// Where the folder is made
        #[arg(long, value_name = "DIR", default_value = ".", value_hint = ValueHint::DirPath)]
        path: PathBuf,
        /// Where maskdiff-plugin-api comes from: a folder, a git address or a version
        #[arg(long, value_name = "SOURCE")]
        api: Option<String>,
    },
    /// Build a plugin, check its contract and install it for this user
    Build {
        /// The folder of its crate
        #[arg(value_name = "DIR", value_hint = ValueHint::DirPath)]
        folder: PathBuf,
        /// With optimizations
        #[arg(long)]
        release: bool,
    },
    /// Load a plugin file in processes of its own and run the contract of each component
    Check {
        /// The plugin file
        #[arg(value_hint = ValueHint::FilePath)]
        file: PathBuf,
        /// How long a component may take
        #[arg(long, value_name = "SECONDS", default_value_t = commands::plugins::check::PATIENCE.as_secs())]
        timeout: u64,
        /// Only the components of this kind
        #[arg(long)]
        kind: Option<String>,
        /// OPTION=VALUE for every component that has the option, as in T=1000
        options: Vec<String>,
    },
    /// Take away a plugin that was installed
    Rm {
        /// The plugin's name, or its component's
        name: String,
    },
    /// Write a page for each loaded component
    Docs {
        /// The folder for the pages
        #[arg(value_name = "DIR", value_hint = ValueHint::DirPath)]
        folder: PathBuf,
    },
    /// What `check` runs for each component
    #[command(hide = true)]
    CheckOne {
        file: PathBuf,
        answer: PathBuf,
        kind: Option<String>,
        name: Option<String>,
        options: Vec<String>,
    },
}

#[derive(Debug, Subcommand)]
enum Runs {
    /// A table of the runs at and below some folders
    List {
        /// The folders; `outputs` when none is named
        #[arg(value_name = "FOLDER", value_hint = ValueHint::DirPath)]
        folders: Vec<PathBuf>,
    },
    /// One run: how far it came, and all settings
    Show {
        /// The run folder
        #[arg(value_name = "RUN", value_hint = ValueHint::DirPath)]
        folder: PathBuf,
    },
    /// The settings in which runs differ, and how good they became
    Compare {
        /// The run folders
        #[arg(required = true, num_args = 2.., value_name = "RUN", value_hint = ValueHint::DirPath)]
        folders: Vec<PathBuf>,
    },
    /// Remove runs with their checkpoints
    Rm {
        /// The run folders
        #[arg(required = true, value_name = "RUN", value_hint = ValueHint::DirPath)]
        folders: Vec<PathBuf>,
        /// Do it
        #[arg(long)]
        yes: bool,
    },
}

#[derive(Debug, Subcommand)]
enum Data {
    /// All corpora that have a name, with where they come from and their licences
    List,
    /// Fetch and tokenize what a configuration trains and validates on
    Build {
        /// KEY=VALUE
        overrides: Vec<String>,
    },
    /// What blocks hold and how they were made
    Info {
        /// Files of blocks, or the KEY=VALUE of a configuration that they were made for
        words: Vec<String>,
    },
    /// Read every byte of blocks and compare it with their hash
    Verify {
        /// Files of blocks, or KEY=VALUE
        words: Vec<String>,
    },
    /// Print blocks as text
    Show {
        /// Files of blocks, or KEY=VALUE
        words: Vec<String>,
        /// The first block
        #[arg(long, default_value_t = 0)]
        first: u64,
        /// How many blocks
        #[arg(long, default_value_t = 3)]
        blocks: u64,
    },
}

/// Runs the command line and reports an error once; gives the exit code.
pub fn main() -> ExitCode {
    quiet_libtorch();
    // Before anything asks libtorch, see there.
    accelerator::load_cuda();
    match run(std::env::args_os().collect()) {
        Ok(code) => ExitCode::from(u8::try_from(code).unwrap_or(5)),
        Err(error) => {
            let code = error.exit_code();
            show(error);
            ExitCode::from(u8::try_from(code).unwrap_or(5))
        }
    }
}

/// libtorch's own warnings repeat in its words what we say in ours.
#[expect(unsafe_code, reason = "sets variables before there are threads")]
fn quiet_libtorch() {
    for (name, value) in [("TORCH_CPP_LOG_LEVEL", "ERROR"), ("KINETO_LOG_LEVEL", "99")] {
        if std::env::var_os(name).is_none() {
            // SAFETY: the first thing that `main` does, so no other thread reads the environment.
            unsafe { std::env::set_var(name, value) };
        }
    }
}

/// Prints an error with its hint and its place.
pub fn show(error: Error) {
    // Paths and commands stay whole, so that they can be copied.
    let wrapped = std::io::stderr().is_terminal();
    let _ = miette::set_hook(Box::new(move |_| {
        let look = miette::MietteHandlerOpts::new().break_words(false).wrap_lines(wrapped);
        Box::new(look.build())
    }));
    eprintln!("{:?}", miette::Report::new(error));
}

/// Runs the command line; gives the exit code where no error decides it.
fn run(words: Vec<OsString>) -> Result<i32> {
    let words = with_subcommand(words)?;
    let Cli { global, command } = Cli::parse_from(&words);
    let verbosity = if global.quiet { -1 } else { i8::try_from(global.verbose).unwrap_or(3) };
    let log = logging::start(verbosity);
    let common = |overrides| Common {
        overrides,
        file: global.config,
        plugins: global.plugin,
        format: global.format,
        quiet: global.quiet,
        log,
    };
    let done = match command {
        Command::Train { nproc, profile, tui, overrides } => {
            let common = common(overrides);
            match nproc.filter(|n| *n > 1) {
                Some(n) => return commands::train::launch(&common, n.into(), &words),
                None => commands::train::run(&common, profile, tui),
            }
        }
        Command::Eval { trained, text } => {
            let mut overrides = trained.into_overrides();
            if let Some(file) = text {
                let other = overrides
                    .iter()
                    .find(|w| w.starts_with("data=") || w.starts_with("data.sets="));
                if let Some(other) = other {
                    let message = format!("`--text` names one text, and `{other}` another");
                    return Err(Error::config(message, "leave one of both out"));
                }
                // Quoted, as its name may be a number to TOML.
                let file = toml::Value::String(file);
                overrides.extend(["data=text".to_string(), format!("data.valid_path={file}")]);
            }
            commands::eval::run(&common(overrides))
        }
        Command::Score { words } => commands::score::run(common(Vec::new()), words),
        Command::Sample { trained, given, shown, watch, follow } => {
            let (common, asked) = (common(trained.into_overrides()), given.into_asks()?);
            match watch {
                Some(folder) => commands::watch::run(&common, &folder),
                None if follow => commands::watch::follow(common, &asked),
                None => commands::sample::run(&common, &asked, &shown),
            }
        }
        Command::Export { trained, kind, output } => {
            commands::export::run(&common(trained.into_overrides()), kind, &output)
        }
        Command::Report { folders, output } => {
            let common = common(Vec::new());
            commands::report::run(&Report::new(common.format, common.quiet), &folders, &output)
        }
        Command::Config { overrides } => commands::config::run(&common(overrides)),
        Command::Runs { command } => {
            let common = common(Vec::new());
            runs(command, &Report::new(common.format, common.quiet))
        }
        Command::Sync { folders, again, timeout } => {
            let common = common(Vec::new());
            let mut report = Report::new(common.format, common.quiet);
            if !(0.0..=1e7).contains(&timeout) {
                let message =
                    format!("`--timeout` is a number of seconds up to 1e7, got {timeout}");
                return Err(Error::config(message, ""));
            }
            let timeout = Duration::from_secs_f64(timeout);
            commands::sync::run(&mut report, &folders, again, timeout)
        }
        Command::Plugins { command } => plugins(command, common),
        Command::Data { command } => data(command, common),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "maskdiff", &mut std::io::stdout());
            Ok(())
        }
    };
    done.map(|()| 0)
}

fn runs(command: Runs, report: &Report) -> Result<()> {
    use commands::runs;
    match command {
        Runs::List { folders } => runs::list(report, &folders),
        Runs::Show { folder } => runs::show(report, &folder),
        Runs::Compare { folders } => runs::compare(report, &folders),
        Runs::Rm { folders, yes } => runs::remove(report, &folders, yes),
    }
}

fn plugins(command: Plugins, common: impl FnOnce(Vec<String>) -> Common) -> Result<()> {
    use commands::plugins::{build, check, docs, list, new, remove};
    match command {
        Plugins::List { overrides } => list::list(&common(overrides)),
        Plugins::Show { name, overrides } => list::show(&common(overrides), &name),
        Plugins::New { kind, name, path, api } => {
            new::new(&common(Vec::new()), &kind, &name, &path, api.as_deref())
        }
        Plugins::Build { folder, release } => build::build(&common(Vec::new()), &folder, release),
        Plugins::Check { file, timeout, kind, options } => {
            let patience = Duration::from_secs(timeout);
            check::check(&common(options), &file, kind.as_deref(), patience).map(drop)
        }
        Plugins::Docs { folder } => docs::write(&common(Vec::new()), &folder),
        Plugins::Rm { name } => remove::remove(&common(Vec::new()), &name),
        Plugins::CheckOne { file, answer, kind, name, options } => {
            let component = kind.as_deref().zip(name.as_deref());
            check::check_one(&file, &answer, component, &options)
        }
    }
}

fn data(command: Data, common: impl FnOnce(Vec<String>) -> Common) -> Result<()> {
    use commands::data;
    match command {
        Data::List => data::list(&common(Vec::new())),
        Data::Build { overrides } => data::build(&common(overrides)),
        Data::Info { words } => data::info(common(Vec::new()), words),
        Data::Verify { words } => data::verify(common(Vec::new()), words),
        Data::Show { words, first, blocks } => data::show(common(Vec::new()), words, first, blocks),
    }
}

/// The original's form: `mode=ppl_eval KEY=VALUE...` becomes `eval KEY=VALUE...`; without a mode it trains.
fn with_subcommand(mut words: Vec<OsString>) -> Result<Vec<OsString>> {
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
            ("maskdiff model=small", "maskdiff train model=small"),
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
        Cli::command().debug_assert();
    }
}
