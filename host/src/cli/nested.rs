//! Commands with commands of their own.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Subcommand, ValueHint};
use maskdiff_base::error::Result;
use maskdiff_base::report::Report;

use super::short::{Evaluating, Sampling, Trained, Training};
use crate::commands::{self, Common};

#[derive(Debug, Subcommand)]
pub(super) enum Config {
    /// Explain a key: type, default, value, source and meaning; for a group all its keys; without a name a page of all keys
    Explain {
        /// Keys or groups; and KEY=VALUE
        words: Vec<String>,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum Bench {
    /// Optimizer steps with fresh weights
    Train {
        #[command(flatten)]
        how: commands::bench::How,
        #[command(flatten)]
        flags: Training,
        /// KEY=VALUE
        overrides: Vec<String>,
    },
    /// Batches of the likelihood
    Eval {
        #[command(flatten)]
        how: commands::bench::How,
        #[command(flatten)]
        trained: Trained,
        #[command(flatten)]
        flags: Evaluating,
    },
    /// Batches of texts
    Sample {
        #[command(flatten)]
        how: commands::bench::How,
        #[command(flatten)]
        trained: Trained,
        #[command(flatten)]
        flags: Sampling,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum Plugins {
    /// List all components by kind
    List {
        /// KEY=VALUE
        overrides: Vec<String>,
    },
    /// Show a component with its options, or all components of a plugin
    Show {
        /// The component's or the plugin's name
        name: String,
        /// KEY=VALUE
        overrides: Vec<String>,
    },
    /// Create a plugin crate, or a class in Python, from a template that passes its contract and runs
    ///
    /// KIND is backbone, noise, parameterization, process or sampler.
    New {
        /// The kind of its component
        kind: String,
        /// The name of the component and of the folder
        name: String,
        /// The parent folder
        #[arg(long, value_name = "DIR", default_value = ".", value_hint = ValueHint::DirPath)]
        path: PathBuf,
        /// The source of maskdiff-plugin-api: a folder, a git address or a version
        #[arg(long, value_name = "SOURCE", conflicts_with = "python")]
        api: Option<String>,
        /// Write a Python file with a class instead of a crate
        #[arg(long)]
        python: bool,
    },
    /// Build a plugin, check its contract and install it for this user
    Build {
        /// The folder of its crate
        #[arg(value_name = "DIR", value_hint = ValueHint::DirPath)]
        folder: PathBuf,
        /// Build with optimizations
        #[arg(long)]
        release: bool,
        /// Install it even if another plugin has a component of this name; `crate:name` then chooses between them
        #[arg(long)]
        force: bool,
    },
    /// Run the contract tests of each component of a plugin file, in child processes
    Check {
        /// The plugin file, or FILE.py:CLASS with `--kind`
        #[arg(value_hint = ValueHint::FilePath)]
        file: PathBuf,
        /// Time limit per component, in seconds
        #[arg(long, value_name = "SECONDS", default_value_t = commands::plugins::check::PATIENCE.as_secs(), value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
        timeout: u64,
        /// Check only components of this kind
        #[arg(long)]
        kind: Option<String>,
        /// OPTION=VALUE, for every component that has the option, as in T=1000
        options: Vec<String>,
    },
    /// Remove an installed plugin
    Rm {
        /// The name of the plugin or of its component
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
pub(super) enum Launch {
    /// Submit a command to Slurm: one process per task, started by srun
    ///
    /// The script goes into the run folder (`--dry-run` shows it). Before its time limit, and when it is pre-empted, the job writes
    /// a checkpoint, is requeued and resumes in the same folder. Settings: flags, `launcher.KEY=VALUE`, the environment
    /// (MASKDIFF_LAUNCHER__KEY), a profile of configs/launcher/slurm.toml, that file.
    Slurm {
        #[command(flatten)]
        job: Box<commands::launch::Job>,
        #[command(flatten)]
        ways: commands::launch::Ways,
    },
    /// Run a command on this machine, with a script in the run folder
    Local {
        /// Train with N processes
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
        nproc: Option<u16>,
        #[command(flatten)]
        ways: commands::launch::Ways,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum Sweep {
    /// Show the progress of a sweep
    Status {
        /// The sweep's folder
        #[arg(value_name = "FOLDER", value_hint = ValueHint::DirPath)]
        folder: PathBuf,
    },
    /// Run the points that are not finished
    Resume {
        /// The sweep's folder
        #[arg(value_name = "FOLDER", value_hint = ValueHint::DirPath)]
        folder: PathBuf,
        /// launcher.KEY=VALUE that differs from the first start of the sweep
        #[arg(value_name = "launcher.KEY=VALUE")]
        words: Vec<String>,
        #[command(flatten)]
        run: Box<commands::sweep::Running>,
    },
    /// Print a table of the finished points: mean and standard error over seeds
    Collect {
        /// The sweep's folder
        #[arg(value_name = "FOLDER", value_hint = ValueHint::DirPath)]
        folder: PathBuf,
        #[command(flatten)]
        table: commands::sweep::Table,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum Runs {
    /// List the runs in some folders and below
    List {
        /// The folders [default: outputs]
        #[arg(value_name = "FOLDER", value_hint = ValueHint::DirPath)]
        folders: Vec<PathBuf>,
    },
    /// Show the progress and all settings of a run
    Show {
        /// The run folder
        #[arg(value_name = "RUN", value_hint = ValueHint::DirPath)]
        folder: PathBuf,
    },
    /// Compare runs: the settings that differ, and their results
    Compare {
        /// Run folders, or folders that contain some, such as a sweep's
        #[arg(required = true, value_name = "RUN", value_hint = ValueHint::DirPath)]
        folders: Vec<PathBuf>,
    },
    /// Plot learning curves as SVG
    Plot {
        /// Run folders, or folders that hold some
        #[arg(required = true, value_name = "RUN", value_hint = ValueHint::DirPath)]
        folders: Vec<PathBuf>,
        #[command(flatten)]
        plot: commands::runs::plot::Asked,
    },
    /// Remove runs with their checkpoints
    Rm {
        /// The run folders
        #[arg(required = true, value_name = "RUN", value_hint = ValueHint::DirPath)]
        folders: Vec<PathBuf>,
        /// Confirm; without this flag nothing is removed
        #[arg(long)]
        yes: bool,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum Data {
    /// List the named corpora with their sources and licences
    List,
    /// Download and tokenize the training and validation data of a configuration
    Build {
        /// KEY=VALUE
        overrides: Vec<String>,
    },
    /// Show what tokenized files contain and how they were made
    Info {
        /// Tokenized files (.blocks), or KEY=VALUE of the configuration that they belong to
        words: Vec<String>,
    },
    /// Verify tokenized files: read every byte and compare the hash
    Verify {
        /// Tokenized files (.blocks), or KEY=VALUE
        words: Vec<String>,
    },
    /// Print sequences as text
    Show {
        /// Tokenized files (.blocks), or KEY=VALUE
        words: Vec<String>,
        /// The first sequence
        #[arg(long, default_value_t = 0)]
        first: u64,
        /// The number of sequences
        #[arg(long, default_value_t = 3)]
        blocks: u64,
    },
}

pub(super) fn bench(work: Bench, common: Common, all: &[OsString]) -> Result<()> {
    use commands::bench::{Work, run};
    let (work, how, overrides) = match work {
        Bench::Train { how, flags, mut overrides } => {
            flags.add_to(&mut overrides)?;
            (Work::Train, how, overrides)
        }
        Bench::Eval { how, trained, flags } => {
            let mut overrides = trained.into_overrides()?;
            flags.add_to(&mut overrides)?;
            (Work::Eval, how, overrides)
        }
        Bench::Sample { how, trained, flags } => {
            let mut overrides = trained.into_overrides()?;
            flags.add_to(&mut overrides)?;
            (Work::Sample, how, overrides)
        }
    };
    run(&common.overriding(overrides), work, &how, all)
}

pub(super) fn runs(command: Runs, report: &Report) -> Result<()> {
    use commands::runs;
    match command {
        Runs::List { folders } => runs::list(report, &folders),
        Runs::Show { folder } => runs::show(report, &folder),
        Runs::Compare { folders } => runs::compare(report, &folders),
        Runs::Plot { folders, plot } => runs::plot::run(report, &folders, &plot),
        Runs::Rm { folders, yes } => runs::remove(report, &folders, yes),
    }
}

pub(super) fn plugins(command: Plugins, common: Common) -> Result<()> {
    use commands::plugins::{build, check, class, docs, list, new, remove};
    match command {
        Plugins::List { overrides } => list::list(&common.overriding(overrides)),
        Plugins::Show { name, overrides } => list::show(&common.overriding(overrides), &name),
        Plugins::New { kind, name, path, python: true, .. } => class::new(&kind, &name, &path),
        Plugins::New { kind, name, path, api, .. } => {
            new::new(&common, &kind, &name, &path, api.as_deref())
        }
        Plugins::Build { folder, release, force } => build::build(&common, &folder, release, force),
        Plugins::Check { file, timeout, kind, options } => {
            let patience = Duration::from_secs(timeout);
            check::check(&common.overriding(options), &file, kind.as_deref(), patience).map(drop)
        }
        Plugins::Docs { folder } => docs::write(&common, &folder),
        Plugins::Rm { name } => remove::remove(&common, &name),
        Plugins::CheckOne { file, answer, kind, name, options } => {
            let component = kind.as_deref().zip(name.as_deref());
            check::check_one(&file, &answer, component, &options)
        }
    }
}

pub(super) fn data(command: Data, common: Common) -> Result<()> {
    use commands::data;
    match command {
        Data::List => data::list(&common),
        Data::Build { overrides } => data::build(&common.overriding(overrides)),
        Data::Info { words } => data::info(common, words),
        Data::Verify { words } => data::verify(common, words),
        Data::Show { words, first, blocks } => data::show(common, words, first, blocks),
    }
}

pub(super) fn launch(command: Launch, common: &Common) -> Result<()> {
    use commands::launch;
    match command {
        Launch::Slurm { job, ways } => launch::slurm(common, &job, ways),
        Launch::Local { nproc, ways } => launch::local(common, nproc, ways),
    }
}

pub(super) fn sweep(
    new: &commands::sweep::New,
    command: Option<Sweep>,
    common: &Common,
) -> Result<()> {
    use commands::sweep;
    match command {
        None => sweep::new(common, new),
        Some(Sweep::Status { folder }) => sweep::status(common, &folder),
        Some(Sweep::Resume { folder, words, run }) => sweep::resume(common, &folder, &words, &run),
        Some(Sweep::Collect { folder, table }) => sweep::collect(common, &folder, &table),
    }
}
