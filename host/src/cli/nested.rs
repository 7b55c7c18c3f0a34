//! Commands with commands of their own.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Subcommand, ValueHint};
use maskdiff_base::error::Result;
use maskdiff_base::report::Report;

use crate::commands::{self, Common};

#[derive(Debug, Subcommand)]
pub(super) enum Config {
    /// What a key means: its type, default, value and source; of a group, all its keys; without a name, a page of all keys
    Explain {
        /// Keys or groups; and KEY=VALUE
        words: Vec<String>,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum Plugins {
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
        /// Also with the name of a component that another plugin has: both are then chosen by `crate:name`
        #[arg(long)]
        force: bool,
    },
    /// Load a plugin file in processes of its own and run the contract of each component
    Check {
        /// The plugin file
        #[arg(value_hint = ValueHint::FilePath)]
        file: PathBuf,
        /// How long a component may take
        #[arg(long, value_name = "SECONDS", default_value_t = commands::plugins::check::PATIENCE.as_secs(), value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
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
pub(super) enum Launch {
    /// Submit it to Slurm: one process for each task, started by srun
    ///
    /// The script goes into the run folder (`--dry-run` shows it). Before its time limit, and when it is pre-empted, the job writes
    /// a checkpoint, is started again and goes on in the same folder. Settings: flags, `launcher.KEY=VALUE`, the environment
    /// (MASKDIFF_LAUNCHER__KEY), a profile of configs/launcher/slurm.toml, that file.
    Slurm {
        #[command(flatten)]
        job: Box<commands::launch::Job>,
        #[command(flatten)]
        ways: commands::launch::Ways,
    },
    /// Run it here, by a script in the run folder
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
    /// How far the points of a sweep are
    Status {
        /// The sweep's folder
        #[arg(value_name = "FOLDER", value_hint = ValueHint::DirPath)]
        folder: PathBuf,
    },
    /// Run the points that are not done
    Resume {
        /// The sweep's folder
        #[arg(value_name = "FOLDER", value_hint = ValueHint::DirPath)]
        folder: PathBuf,
        /// launcher.KEY=VALUE, where it is not as the sweep was begun
        #[arg(value_name = "launcher.KEY=VALUE")]
        words: Vec<String>,
        #[command(flatten)]
        run: Box<commands::sweep::Running>,
    },
    /// One table of the points that are done: mean and standard error over seeds
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
        /// Run folders, or folders that hold some, as a sweep's
        #[arg(required = true, value_name = "RUN", value_hint = ValueHint::DirPath)]
        folders: Vec<PathBuf>,
    },
    /// A picture of learning curves, SVG
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
        /// Do it
        #[arg(long)]
        yes: bool,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum Data {
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
    use commands::plugins::{build, check, docs, list, new, remove};
    match command {
        Plugins::List { overrides } => list::list(&common.overriding(overrides)),
        Plugins::Show { name, overrides } => list::show(&common.overriding(overrides), &name),
        Plugins::New { kind, name, path, api } => {
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
