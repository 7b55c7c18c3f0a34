//! The command line.

mod nested;
mod short;
mod words;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::LazyLock;
use std::time::Duration;

use clap::{Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand, ValueHint};
use maskdiff_base::error::{Error, Result};
use maskdiff_base::report::Report;
use maskdiff_base::stdout::{self, Format};
use maskdiff_base::{logging, memory, output, signals};
use maskdiff_config::{Form, trust};
use maskdiff_engine::prompt::Ask;
use maskdiff_engine::{accelerator, last_words};
use maskdiff_track::wandb::Anew;
use nested::{Data, Launch, Plugins, Runs, Sweep};
use short::{Evaluating, Sampling, Trained, Training};
use words::{preview, with_subcommand};

use crate::commands::{self, Common};

const LONG_ABOUT: &str = "\
Trains, evaluates and samples discrete-diffusion language models whose parts (network, noise, \
parameterization, sampler) are plugins, chosen by words in the configuration.

Try: maskdiff train experiment=demo";

const AFTER_HELP: &str = "\
Overrides:
  optim.lr=1e-3            set a value (`maskdiff config explain` prints all keys)
  model=small              choose a file of configs/model/, configs/data/, configs/noise/, ...
  experiment=demo          choose a file of configs/experiment/
  sampling.predictor=NAME  choose a component (`maskdiff plugins list` prints all)
  run.dir=null, ~run.dir   unset a key, as if nothing had been said

Environment:
  MASKDIFF_OPTIM__LR=1e-3  set a value; the command line wins
  MASKDIFF_SEED=9          the same for a key without a group, and MASKDIFF_MODEL=small for a file
  MASKDIFF_PLUGIN_PATH     more folders with plugins, separated by colons
  MASKDIFF_LOG             log filter, as in `debug`

The original's form `maskdiff mode=train KEY=VALUE...` (train, ppl_eval, sample_eval) has the original's
defaults; `maskdiff config mode=train KEY=VALUE...` prints what it runs with.

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
    /// Use the code that a stored configuration names (plugins, classes in Python), whoever wrote it
    #[arg(long, global = true)]
    trust: bool,
    /// How results are printed to stdout
    #[arg(long, value_enum, default_value_t, global = true)]
    format: Format,
    /// No progress; errors and results only
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    quiet: bool,
    /// What the original's form of the command line becomes: what nobody says is as there
    #[arg(long, hide = true, global = true)]
    original: bool,
    /// Which command `config` shows the configuration of
    #[arg(long, hide = true, global = true)]
    of: Option<String>,
    /// More log: -v information, -vv debugging, -vvv everything
    #[arg(short, long, action = clap::ArgAction::Count, global = true)]
    verbose: u8,
}

impl Global {
    /// The form of the command line, whose command is named.
    fn form(&self, command: &str) -> Form {
        match self.of.as_deref().unwrap_or(command) {
            _ if !self.original => Form::Own,
            "eval" => Form::Evaluate,
            "sample" => Form::Sample,
            _ => Form::Train,
        }
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Train a model; results go to a run folder
    ///
    /// The run folder is `run.dir`, or else `outputs/<data>/<date>/<time>`. Ctrl-C, SIGTERM, SIGHUP, SIGUSR1 and SIGUSR2
    /// finish the step and write a checkpoint (a second one ends at once); `run.dir=FOLDER checkpointing.resume_from_ckpt=true` goes
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
        #[command(flatten)]
        flags: Training,
        /// KEY=VALUE
        overrides: Vec<String>,
    },
    /// Bound the likelihood of text: of the validation text, of a file, or of several sets (`data=zeroshot`)
    Eval {
        #[command(flatten)]
        trained: Trained,
        #[command(flatten)]
        flags: Evaluating,
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
    /// `maskdiff sample RUN -n 5`. Without a number, `sampling.num_sample_batches` batches of `loader.eval_batch_size` texts; with
    /// prompts and templates, as many texts for each as there are batches. What is given never changes.
    Sample {
        #[command(flatten)]
        trained: Trained,
        #[command(flatten)]
        flags: Sampling,
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
    /// Talk to a model that was fine-tuned on conversations: a line of yours, an answer of its own
    ///
    /// `maskdiff chat --checkpoint MODEL`. Lines come from the keyboard or another program; `/new` begins anew. The chat template is the
    /// model's own, or `data.chat_template`.
    Chat {
        #[command(flatten)]
        trained: Trained,
        #[command(flatten)]
        flags: Sampling,
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
        /// Replace a file that is no page of this command, too
        #[arg(long)]
        force: bool,
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
        /// Weights of a folder for other programs that are larger stand in several files of at most so many gigabytes
        #[arg(long, value_name = "N", default_value_t = 5.0)]
        shard_gb: f64,
    },
    /// Start a command elsewhere: as a job of Slurm that goes on after every stop, or here by the same script
    Launch {
        #[command(subcommand)]
        command: Launch,
    },
    /// Train every combination of settings, and make one table of them
    ///
    /// `optim.lr=1e-4,3e-4 seed=1..5` are two axes, ten points; a word with one value holds for all of them. `--random N` draws N
    /// settings, where `optim.lr=log(1e-5,1e-3)`, `uniform(0,0.2)` and `int(2,8)` are axes too, and trains each with every seed.
    /// Points that are done are never done again.
    #[command(args_conflicts_with_subcommands = true)]
    Sweep {
        #[command(flatten)]
        new: Box<commands::sweep::New>,
        #[command(subcommand)]
        command: Option<Sweep>,
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
        #[command(flatten)]
        anew: Anew,
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
    #[command(args_conflicts_with_subcommands = true)]
    Config {
        #[command(subcommand)]
        command: Option<nested::Config>,
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

/// Runs the command line and reports an error once; gives the exit code.
pub fn main() -> ExitCode {
    quiet_libtorch();
    // Before libtorch makes its threads.
    signals::block();
    last_words::prepare();
    memory::quiet_panics();
    // Before anything asks libtorch, see there.
    accelerator::load_cuda();
    match memory::guarded(|| run(std::env::args_os().collect())) {
        Ok(code) => ExitCode::from(u8::try_from(code).unwrap_or(5)),
        Err(error) => {
            let code = error.exit_code();
            output::error(error);
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

/// Runs the command line; gives the exit code where no error decides it.
fn run(words: Vec<OsString>) -> Result<i32> {
    let words = with_subcommand(words)?;
    let matches = words::command().get_matches_from(&words);
    let Cli { global, command } = Cli::from_arg_matches(&matches).unwrap_or_else(|e| e.exit());
    let form = global.form(matches.subcommand_name().unwrap_or_default());
    let verbosity = if global.quiet { -1 } else { i8::try_from(global.verbose).unwrap_or(3) };
    let log = logging::start(verbosity);
    if global.trust {
        trust::say();
    }
    // What runs components here and prints results.
    if matches!(
        command,
        Command::Train { nproc: None | Some(1), .. }
            | Command::Eval { .. }
            | Command::Score { .. }
            | Command::Sample { watch: None, .. }
    ) {
        stdout::keep_apart(global.format);
    }
    let common = |overrides| Common {
        overrides,
        file: global.config,
        plugins: global.plugin,
        format: global.format,
        quiet: global.quiet,
        form,
        log,
        preview,
    };
    // A run also writes what it prints into its folder, so it continues when nobody reads its output.
    let trains = matches!(command, Command::Train { .. });
    let done = match command {
        Command::Train { nproc, profile, tui, flags, mut overrides } => {
            flags.add_to(&mut overrides)?;
            let common = common(overrides);
            match nproc.filter(|n| *n > 1) {
                Some(n) => return commands::train::launch(&common, n.into(), &words),
                None => commands::train::run(&common, profile, tui),
            }
        }
        Command::Eval { trained, flags, text } => {
            let mut overrides = trained.into_overrides()?;
            flags.add_to(&mut overrides)?;
            if let Some(file) = text {
                let other = overrides
                    .iter()
                    .find(|w| w.starts_with("data=") || w.starts_with("data.sets="));
                if let Some(other) = other {
                    let message = format!("`--text` names one text, and `{other}` another");
                    return Err(Error::config(message, "leave one of both out"));
                }
                overrides.extend([
                    "data=text".to_string(),
                    maskdiff_config::word("data.valid_path", &file),
                ]);
            }
            commands::eval::run(&common(overrides))
        }
        Command::Score { words } => commands::score::run(common(Vec::new()), words),
        Command::Sample { trained, flags, given, shown, watch, follow } => {
            let mut overrides = trained.into_overrides()?;
            flags.add_to(&mut overrides)?;
            let (common, asked) = (common(overrides), given.into_asks()?);
            match watch {
                Some(folder) => commands::watch::run(&common, &folder),
                None if follow => commands::watch::follow(common, &asked),
                None => commands::sample::run(&common, &asked, &shown),
            }
        }
        Command::Chat { trained, flags } => {
            let mut overrides = trained.into_overrides()?;
            flags.add_to(&mut overrides)?;
            commands::chat::run(&common(overrides))
        }
        Command::Export { trained, kind, output, shard_gb } => {
            let common = common(trained.into_overrides()?);
            commands::export::run(&common, kind, &output, shard_gb)
        }
        Command::Report { folders, output, force } => {
            let common = common(Vec::new());
            let report = Report::new(common.format, common.quiet);
            commands::report::run(&report, &folders, &output, force)
        }
        Command::Config { command: None, overrides } => commands::config::run(&common(overrides)),
        Command::Config { command: Some(nested::Config::Explain { words }), .. } => {
            let (overrides, names): (Vec<String>, Vec<String>) =
                words.into_iter().partition(|word| word.contains('='));
            commands::explain::run(&common(overrides), &names)
        }
        Command::Runs { command } => {
            let common = common(Vec::new());
            nested::runs(command, &Report::new(common.format, common.quiet))
        }
        Command::Launch { command } => nested::launch(command, &common(Vec::new())),
        Command::Sweep { new, command } => nested::sweep(&new, command, &common(Vec::new())),
        Command::Sync { folders, again, anew, timeout } => {
            let common = common(Vec::new());
            let mut report = Report::new(common.format, common.quiet);
            if !(0.0..=1e7).contains(&timeout) {
                let message =
                    format!("`--timeout` is a number of seconds up to 1e7, got {timeout}");
                return Err(Error::config(message, ""));
            }
            let timeout = Duration::from_secs_f64(timeout);
            commands::sync::run(&mut report, &folders, again, &anew, timeout)
        }
        Command::Plugins { command } => nested::plugins(command, common),
        Command::Data { command } => nested::data(command, common),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "maskdiff", &mut script);
            output::result(&String::from_utf8_lossy(&script));
            Ok(())
        }
    };
    if !trains {
        // The fault of the command comes first.
        return done.and_then(|()| output::check()).map(|()| 0);
    }
    done.map(|()| 0)
}
