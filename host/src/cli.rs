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
parameterization, sampler) are plugins, chosen by name in the configuration.

Try: maskdiff train experiment=demo";

const AFTER_HELP: &str = "\
Overrides:
  optim.lr=1e-3            set a value (`maskdiff config explain` prints all keys)
  model=small              choose a file of configs/model/, configs/data/, configs/noise/, ...
  experiment=demo          choose a file of configs/experiment/
  sampling.predictor=NAME  choose a component (`maskdiff plugins list` prints all)
  run.dir=null, ~run.dir   unset a key: it has its default again

Environment:
  MASKDIFF_OPTIM__LR=1e-3  set a value; an override on the command line wins
  MASKDIFF_SEED=9          the same for a key without a group, and MASKDIFF_MODEL=small for a file
  MASKDIFF_PLUGIN_PATH     more folders with plugins, separated by colons
  MASKDIFF_LOG             log filter, as in `debug`
  MASKDIFF_API_KEY         the key that clients of `maskdiff serve` send

Commands of the original program work as they are: `maskdiff mode=train KEY=VALUE...` (train, ppl_eval,
sample_eval) uses its defaults. `maskdiff config mode=train KEY=VALUE...` prints the configuration.

Exit codes: 0 done, 2 wrong usage, configuration or data, 3 plugin, 4 loss is not a number, 5 other,
75 stopped by the scheduler's signal with a checkpoint (start it again), 130 interrupted";

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
    /// A configuration file; its values win over those of the experiment
    #[arg(long, value_name = "FILE", global = true, value_hint = ValueHint::FilePath)]
    config: Option<PathBuf>,
    /// A plugin file to load before all others (may be repeated)
    #[arg(long, value_name = "FILE", global = true, value_hint = ValueHint::FilePath)]
    plugin: Vec<PathBuf>,
    /// Load the plugins and Python classes that the stored configuration of a checkpoint names
    #[arg(long, global = true)]
    trust: bool,
    /// The format of results on stdout
    #[arg(long, value_enum, default_value_t, global = true)]
    format: Format,
    /// Print errors and results only, no progress
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    quiet: bool,
    /// What the original's form of the command line becomes: what nobody says is as there
    #[arg(long, hide = true, global = true)]
    original: bool,
    /// Which command `config` shows the configuration of
    #[arg(long, hide = true, global = true)]
    of: Option<String>,
    /// Log more: -v information, -vv debugging, -vvv everything
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
    /// finish the step and write a checkpoint; a second signal ends the run at once. `run.dir=FOLDER
    /// checkpointing.resume_from_ckpt=true` resumes a run. Several processes train together when --nproc, torchrun or srun starts them.
    Train {
        /// Train with N processes on this machine
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
        nproc: Option<u16>,
        /// Profile a few steps into trace.json in the run folder, for Perfetto or chrome://tracing
        #[arg(long)]
        profile: bool,
        /// Show the run in a full-screen panel: curves, speed, memory, the latest sample
        #[arg(long, conflicts_with = "nproc")]
        tui: bool,
        /// Print the memory, the tokens and the arithmetic that the training needs, and do not train; with --nproc, of each of N ranks
        #[arg(long, conflicts_with_all = ["profile", "tui"])]
        plan: bool,
        #[command(flatten)]
        flags: Training,
        /// KEY=VALUE
        overrides: Vec<String>,
    },
    /// Evaluate the likelihood bound (perplexity) on validation text, on a file, or on several sets (`data=zeroshot`)
    Eval {
        #[command(flatten)]
        trained: Trained,
        #[command(flatten)]
        flags: Evaluating,
        /// A text file to evaluate on; the same as data=text data.valid_path=FILE
        #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
        text: Option<String>,
        /// Measure answers behind their prompts instead: JSON lines {"prompt": "...", "response": "..."}, texts or lists of token ids
        #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, conflicts_with = "text")]
        answers: Option<PathBuf>,
    },
    /// Score generated text with an evaluator LM: generative perplexity, entropy, distinct n-grams, MAUVE
    ///
    /// `eval.gen_ppl_eval_model_name_or_path` names the evaluator LM, `eval.gen_ppl.protocol` the protocol.
    Score {
        /// Output of `maskdiff sample --format json` (FILE.jsonl), or a text file with lines `---` between texts; and KEY=VALUE
        #[arg(required = true, value_name = "FILE", value_hint = ValueHint::FilePath)]
        words: Vec<String>,
    },
    /// Generate text from a checkpoint
    ///
    /// `maskdiff sample RUN -n 5`. Without -n it generates `sampling.num_sample_batches` batches of `loader.eval_batch_size` texts;
    /// with prompts or templates, one text of each per batch. Given tokens never change.
    Sample {
        #[command(flatten)]
        trained: Trained,
        #[command(flatten)]
        flags: Sampling,
        #[command(flatten)]
        given: Given,
        #[command(flatten)]
        shown: commands::sample::Shown,
        /// Rebuild the plugin in this folder whenever a file is saved, and sample again with it; or read FILE.py:CLASS again, a sampler
        /// in Python
        #[arg(long, value_name = "DIR|FILE.py:CLASS", value_hint = ValueHint::AnyPath)]
        watch: Option<PathBuf>,
        /// What `--watch` runs: draws with each plugin file that is named on stdin
        #[arg(long, hide = true, conflicts_with = "watch")]
        follow: bool,
    },
    /// Compare samplers at few steps: network calls, generative perplexity, entropy, MAUVE and seconds as one table
    ///
    /// `maskdiff steps RUN --steps 8,32,128 --samplers NAME,NAME --svg steps.svg`. Generative perplexity is that of
    /// `eval.gen_ppl_eval_model_name_or_path`; `eval.compute_generative_perplexity=false` leaves it out.
    Steps {
        #[command(flatten)]
        trained: Trained,
        #[command(flatten)]
        flags: Evaluating,
        #[command(flatten)]
        asked: commands::steps::Asked,
    },
    /// Measure speed and memory of a configuration on this machine, without a run folder
    ///
    /// `maskdiff bench train experiment=demo`, `maskdiff bench sample RUN`: the words are those of the command that is measured. It prints tokens per
    /// second, where the time goes, what the matrix products alone would take, and what other settings would change.
    Bench {
        #[command(subcommand)]
        work: nested::Bench,
    },
    /// Talk to a model that was fine-tuned on conversations: a line of yours, an answer of its own
    ///
    /// `maskdiff chat --checkpoint MODEL`. Lines come from the keyboard or another program; `/new` starts a new conversation. The chat template is the
    /// model's own, or `data.chat_template`.
    Chat {
        #[command(flatten)]
        trained: Trained,
        #[command(flatten)]
        flags: Sampling,
    },
    /// Serve a model over HTTP, in the shape of OpenAI's API
    ///
    /// `maskdiff serve RUN --port 8000` answers at `/v1/completions`, `/v1/chat/completions` (where the checkpoint has a chat template) and
    /// `/v1/loglikelihood`, to programs of this machine. Any other address needs a key: --api-key-file FILE, or the variable MASKDIFF_API_KEY.
    Serve {
        #[command(flatten)]
        trained: Trained,
        #[command(flatten)]
        flags: Evaluating,
        #[command(flatten)]
        options: commands::serve::Options,
    },
    /// Write an HTML page about runs: curves, results beside published figures, samples and their denoising
    ///
    /// The page is one file and needs no network.
    Report {
        /// Run folders, or folders that hold some
        #[arg(required = true, value_name = "FOLDER", value_hint = ValueHint::DirPath)]
        folders: Vec<PathBuf>,
        /// The file of the page
        #[arg(long, value_name = "FILE", default_value = "report.html", value_hint = ValueHint::FilePath)]
        output: PathBuf,
        /// Replace the file even if this command did not write it
        #[arg(long)]
        force: bool,
    },
    /// Write a checkpoint for another program
    ///
    /// Exports the EMA weights if the checkpoint has them; `eval.disable_ema=true` exports the others.
    Export {
        #[command(flatten)]
        trained: Trained,
        /// The format to write; `--format KIND` is the same
        #[arg(long = "as", value_enum, value_name = "KIND")]
        kind: commands::export::As,
        /// The folder or file to write; it must not exist yet
        #[arg(long, value_name = "PATH", value_hint = ValueHint::AnyPath)]
        output: PathBuf,
        /// Largest size of one weight file, in gigabytes; larger weights are split into several files
        #[arg(long, value_name = "N", default_value_t = 5.0)]
        shard_gb: f64,
    },
    /// Run a command as a Slurm job that resumes after every stop, or here with the same script
    Launch {
        #[command(subcommand)]
        command: Launch,
    },
    /// Train every combination of settings, and collect the results in a table
    ///
    /// `optim.lr=1e-4,3e-4 seed=1..5` are two axes, ten points; an override with one value holds for all of them. `--random N`
    /// draws N settings, where `optim.lr=log(1e-5,1e-3)`, `uniform(0,0.2)` and `int(2,8)` are axes too, and trains each with every
    /// seed. A finished point never runs again.
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
    /// Sends only what the server does not have yet. A run without a recorded end counts as failed.
    Sync {
        /// Run folders
        #[arg(required = true, value_name = "RUN", value_hint = ValueHint::DirPath)]
        folders: Vec<PathBuf>,
        /// Also send runs that were sent before
        #[arg(long)]
        again: bool,
        #[command(flatten)]
        anew: Anew,
        /// Time limit for each folder, including the time the server does not answer
        #[arg(long, value_name = "SECONDS", default_value_t = 600.0)]
        timeout: f64,
    },
    /// List, show, write, build, check and remove plugins
    Plugins {
        #[command(subcommand)]
        command: Plugins,
    },
    /// Build, verify and show tokenized data
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
    /// A file with one prompt per line; in FILE.jsonl each line is {"prompt": "..."} or {"template": "..."}, texts or lists of token ids
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    prompt_file: Option<PathBuf>,
    /// A text with gaps to fill, [MASK] for one token and [MASK:12] for twelve (may be repeated)
    #[arg(long, value_name = "TEXT")]
    template: Vec<String>,
    /// A file with one text per line to revise, for a sampler that starts from a text; in FILE.jsonl each line is {"text": "..."}
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath,
        conflicts_with_all = ["prompt", "prompt_file", "template"])]
    revise: Option<PathBuf>,
}

impl Given {
    fn into_asks(self) -> Result<Vec<Ask>> {
        let prompts = self.prompt.into_iter().map(Ask::Prompt);
        let templates = self.template.into_iter().map(Ask::Template);
        if let Some(file) = &self.revise {
            return Ask::drafts(file);
        }
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

/// Runs the command line; returns the exit code where no error decides it.
fn run(words: Vec<OsString>) -> Result<i32> {
    let words = with_subcommand(words)?;
    let matches = match words::command().try_get_matches_from(&words) {
        Ok(matches) => matches,
        // Help that was asked for is a result. On a terminal it is printed with its colours.
        Err(said) if !said.use_stderr() && !stdout::is_terminal() => {
            output::result(&said.render().to_string());
            return output::check().map(|()| 0);
        }
        Err(said) => said.exit(),
    };
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
            | Command::Bench { .. }
            | Command::Score { .. }
            | Command::Sample { watch: None, .. }
            | Command::Steps { .. }
            | Command::Chat { .. }
            | Command::Export { .. }
            | Command::Serve { .. }
    ) {
        stdout::keep_apart(global.format);
    }
    let common = Common {
        overrides: Vec::new(),
        file: global.config,
        plugins: global.plugin,
        format: global.format,
        quiet: global.quiet,
        form,
        log,
        preview,
    };
    // A run also writes what it prints into its folder, so it continues when nobody reads its output.
    let trains = matches!(command, Command::Train { plan: false, .. });
    let done = command.run(common, &words);
    if trains {
        return done;
    }
    // The fault of the command comes first.
    done.and_then(|code| output::check().map(|()| code))
}

impl Command {
    /// Runs the command; returns the exit code where no error decides it.
    fn run(self, common: Common, words: &[OsString]) -> Result<i32> {
        match self {
            Self::Train { nproc, profile, tui, plan, flags, mut overrides } => {
                flags.add_to(&mut overrides)?;
                let common = common.overriding(overrides);
                let ranks = nproc.map_or(1, usize::from);
                match (plan, ranks) {
                    (true, _) => commands::train::plan::run(&common, ranks),
                    (_, 1) => commands::train::run(&common, profile, tui),
                    _ => return commands::train::launch(&common, ranks, words),
                }
            }
            Self::Eval { trained, flags, text, answers } => {
                let mut overrides = trained.into_overrides()?;
                flags.add_to(&mut overrides)?;
                if let Some(file) = text {
                    add_text(&mut overrides, &file)?;
                }
                let common = common.overriding(overrides);
                match answers {
                    Some(file) => commands::answers::run(&common, &file),
                    None => commands::eval::run(&common),
                }
            }
            Self::Score { words } => commands::score::run(common, words),
            Self::Sample { trained, flags, given, shown, watch, follow } => {
                let mut overrides = trained.into_overrides()?;
                flags.add_to(&mut overrides)?;
                if given.revise.is_some() {
                    overrides.push(commands::sample::FROM_A_TEXT.to_string());
                }
                let (common, asked) = (common.overriding(overrides), given.into_asks()?);
                match watch {
                    Some(folder) => commands::watch::run(&common, &folder),
                    None if follow => commands::watch::follow(common, &asked),
                    None => commands::sample::run(&common, &asked, &shown),
                }
            }
            Self::Steps { trained, flags, asked } => {
                commands::steps::run(&evaluating(common, trained, &flags)?, &asked)
            }
            Self::Bench { work } => nested::bench(work, common, words),
            Self::Chat { trained, flags } => {
                commands::chat::run(&drawing(common, trained, &flags)?)
            }
            Self::Serve { trained, flags, options } => {
                commands::serve::run(&evaluating(common, trained, &flags)?, &options)
            }
            Self::Export { trained, kind, output, shard_gb } => {
                let common = common.overriding(trained.into_overrides()?);
                commands::export::run(&common, kind, &output, shard_gb)
            }
            Self::Report { folders, output, force } => {
                commands::report::run(&common.report(), &folders, &output, force)
            }
            Self::Config { command: None, overrides } => {
                commands::config::run(&common.overriding(overrides))
            }
            Self::Config { command: Some(nested::Config::Explain { words }), .. } => {
                let (overrides, names): (Vec<String>, Vec<String>) =
                    words.into_iter().partition(|word| word.contains('='));
                commands::explain::run(&common.overriding(overrides), &names)
            }
            Self::Runs { command } => nested::runs(command, &common.report()),
            Self::Launch { command } => nested::launch(command, &common),
            Self::Sweep { new, command } => nested::sweep(&new, command, &common),
            Self::Sync { folders, again, anew, timeout } => {
                let timeout = seconds(timeout)?;
                commands::sync::run(&mut common.report(), &folders, again, &anew, timeout)
            }
            Self::Plugins { command } => nested::plugins(command, common),
            Self::Data { command } => nested::data(command, common),
            Self::Completions { shell } => {
                print_completions(shell);
                Ok(())
            }
        }
        .map(|()| 0)
    }
}

/// What a command that draws from a checkpoint is given.
fn drawing(common: Common, trained: Trained, flags: &Sampling) -> Result<Common> {
    let mut overrides = trained.into_overrides()?;
    flags.add_to(&mut overrides)?;
    Ok(common.overriding(overrides))
}

/// What a command that measures a checkpoint is given.
fn evaluating(common: Common, trained: Trained, flags: &Evaluating) -> Result<Common> {
    let mut overrides = trained.into_overrides()?;
    flags.add_to(&mut overrides)?;
    Ok(common.overriding(overrides))
}

fn print_completions(shell: clap_complete::Shell) {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "maskdiff", &mut script);
    output::result(&String::from_utf8_lossy(&script));
}

/// `eval --text FILE` as overrides.
fn add_text(overrides: &mut Vec<String>, file: &str) -> Result<()> {
    let other = overrides.iter().find(|w| w.starts_with("data=") || w.starts_with("data.sets="));
    if let Some(other) = other {
        let message = format!("`--text` names one text, and `{other}` another");
        return Err(Error::config(message, "leave one of both out"));
    }
    overrides.extend(["data=text".to_string(), maskdiff_config::word("data.valid_path", file)]);
    Ok(())
}

/// `--timeout SECONDS`.
fn seconds(timeout: f64) -> Result<Duration> {
    if !(0.0..=1e7).contains(&timeout) {
        let message = format!("`--timeout` is a number of seconds up to 1e7, got {timeout}");
        return Err(Error::config(message, ""));
    }
    Ok(Duration::from_secs_f64(timeout))
}
