//! `maskdiff launch slurm|local`

mod plan;

use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use maskdiff_base::error::{Error, Result};
use maskdiff_base::files::look;
use maskdiff_base::report::Report;
use maskdiff_base::text::quoted;
use maskdiff_base::{output, process};
use maskdiff_cluster::launch::settings::{self, Layer, Said, Settings};
use maskdiff_cluster::launch::{self, package, slurm};
use maskdiff_config::secrets::Vault;
use maskdiff_config::{expand_home, trust};
use maskdiff_engine::{accelerator, plugins};
use maskdiff_records::run_dir::Claim;
use plan::Plan;
use serde_json::json;

use super::Common;

/// What a job asks of the cluster; `configs/launcher/slurm.toml` has the same keys.
#[derive(Debug, clap::Args)]
pub struct Job {
    /// A table [profiles.NAME] of configs/launcher/slurm.toml
    #[arg(long, value_name = "NAME")]
    profile: Option<String>,
    /// Number of nodes
    #[arg(long, value_name = "N")]
    nodes: Option<String>,
    /// GPUs per node: a number, or KIND:NUMBER
    #[arg(long, value_name = "G")]
    gpus_per_node: Option<String>,
    /// Processes per node; by default one per GPU
    #[arg(long, value_name = "T")]
    tasks_per_node: Option<String>,
    /// CPU cores per process
    #[arg(long, value_name = "C")]
    cpus_per_task: Option<String>,
    /// Time limit, in the format of Slurm
    #[arg(long, value_name = "TIME")]
    time: Option<String>,
    /// The partition
    #[arg(long, value_name = "NAME")]
    partition: Option<String>,
    /// The account to charge
    #[arg(long, value_name = "NAME")]
    account: Option<String>,
    /// The quality of service
    #[arg(long, value_name = "NAME")]
    qos: Option<String>,
    /// Features that the nodes must have
    #[arg(long, value_name = "FEATURES")]
    constraint: Option<String>,
    /// Memory per node
    #[arg(long, value_name = "SIZE")]
    mem: Option<String>,
    /// How often the job may be restarted
    #[arg(long, value_name = "N")]
    max_restarts: Option<String>,
    /// Any other option of sbatch (may be repeated)
    #[arg(long, value_name = "OPTION=VALUE")]
    sbatch: Vec<String>,
}

impl Job {
    /// What flags and the words `launcher.KEY=VALUE` say.
    pub fn said(&self, words: Layer) -> Result<Said> {
        let flags = [
            ("nodes", &self.nodes),
            ("gpus_per_node", &self.gpus_per_node),
            ("tasks_per_node", &self.tasks_per_node),
            ("cpus_per_task", &self.cpus_per_task),
            ("time", &self.time),
            ("partition", &self.partition),
            ("account", &self.account),
            ("qos", &self.qos),
            ("constraint", &self.constraint),
            ("mem", &self.mem),
            ("max_restarts", &self.max_restarts),
        ];
        let flags = flags.into_iter().filter_map(|(k, v)| Some((k.to_string(), v.clone()?)));
        let passed = self.sbatch.iter().map(|word| match word.split_once('=') {
            Some((key, value)) => Ok((format!("sbatch.{key}"), value.to_string())),
            None => Err(Error::config(
                format!("`--sbatch {word}` is not OPTION=VALUE"),
                "as in `--sbatch exclusive=user`",
            )),
        });
        let layer = words.into_iter().map(Ok).chain(flags.map(Ok)).chain(passed);
        Ok(Said { profile: self.profile.clone(), layer: layer.collect::<Result<Layer>>()? })
    }
}

/// How a command is started elsewhere.
#[derive(Debug, clap::Args)]
pub struct Ways {
    /// Tasks of a job array, as in 0-3, 1,5, or 1-20%4; `{task}` in the command stands for the number
    #[arg(long, value_name = "TASKS")]
    array: Option<String>,
    /// Print the script and do nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    package: Packaged,
    /// launcher.KEY=VALUE
    #[arg(value_name = "launcher.KEY=VALUE")]
    settings: Vec<String>,
    /// The command: `train KEY=VALUE ...`, `eval --checkpoint RUN`, ...
    #[arg(last = true, required = true, value_name = "COMMAND")]
    words: Vec<String>,
}

/// The folder from which jobs run.
#[derive(Debug, clap::Args)]
pub struct Packaged {
    /// Run from a copy of the program and its plugins as they are now; by default `package` beside the script
    #[arg(long, value_name = "FOLDER", num_args = 0..=1, require_equals = true, default_missing_value = "")]
    package: Option<String>,
    /// Copy libtorch into that folder, too
    #[arg(long, requires = "package")]
    with_torch: bool,
}

impl Packaged {
    /// Where it goes for a job with this folder; none when it is not asked for. Beside a script, under the first name that is free.
    pub fn folder(&self, job: &Path) -> Result<Option<PathBuf>> {
        let Some(named) = &self.package else { return Ok(None) };
        if !named.is_empty() {
            return absolute(Path::new(&expand_home(named)?)).map(Some);
        }
        let (mut folder, mut number) = (job.join("package"), 1);
        while look::is_taken(&folder)? {
            number += 1;
            folder = job.join(format!("package-{number}"));
        }
        absolute(&folder).map(Some)
    }

    /// Makes it in `folder`, where it is asked for.
    pub fn make(
        &self,
        folder: Option<&Path>,
        registry: &plugins::Registry,
        config: Option<&Path>,
        report: &Report,
    ) -> Result<()> {
        let Some(folder) = folder else { return Ok(()) };
        report.note(&format!("packing the program and its plugins into {}", folder.display()));
        let plugins = registry.plugins().iter();
        let contents = package::Contents {
            plugins: plugins.map(|p| (p.info.name.as_str(), p.path.as_path())).collect(),
            cuda: accelerator::cuda_library(),
            used: accelerator::torch_folder(),
            version: maskdiff_plugin_api::abi::TORCH_VERSION,
            config,
            torch: self.with_torch,
        };
        package::make(folder, &contents).map(drop)
    }
}

/// The program that a job runs, from its package where it has one.
pub fn program(package: Option<&Path>) -> Result<PathBuf> {
    match package {
        Some(folder) => Ok(folder.join("maskdiff")),
        None => std::env::current_exe()
            .map_err(|e| Error::config(format!("cannot find this program: {e}"), "")),
    }
}

/// Submits a command as a job of Slurm.
pub fn slurm(common: &Common, job: &Job, mut ways: Ways) -> Result<()> {
    let mut said = settings_only(&ways.settings)?;
    said.extend(settings::from_words(&mut ways.words));
    let settings = job.said(said)?.settings(&Said::default())?;
    let mut plan = Plan::new(common, &ways, settings.tasks(), false)?;
    if plan.trains {
        settings.check_time()?;
    }
    let mut vault = Vault::new(&plan.folder);
    let text = plan.script(&ways, settings, &mut vault)?.slurm()?;
    let report = common.report();
    if ways.dry_run {
        output::result(&text);
        report.note(&format!("nothing was written; it would go to {}", plan.folder.display()));
        return Ok(());
    }
    slurm::check()?;
    // Another launch may have ended between the first look and the claims.
    check_idle(&plan.folder, &plan.runs)?;
    let new = plan.claims.iter().any(|claim| claim.is_new() && claim.path() == plan.folder);
    plan.package.as_deref().map_or(Ok(()), package::check_free)?;
    let made = plan.pack(&ways, &report).and_then(|()| vault.write());
    let submitted = made.and_then(|()| launch::submit(&plan.folder, &text, slurm::submit));
    if submitted.is_err() {
        // All that is in them was made for this job.
        let folder = new.then_some(&plan.folder);
        let made = folder.into_iter().chain(&plan.package);
        made.for_each(|folder| drop(std::fs::remove_dir_all(folder)));
    }
    let (script, job) = submitted?;
    if let Some(job) = &job {
        // Before others may look: of an array: a run's own folder knows its task.
        plan.runs.iter().for_each(|(n, run)| launch::remember(run, &format!("{job}_{n}"), &script));
    }
    plan.claims.drain(..).for_each(Claim::hand_over);
    let line = json!({"job": job, "folder": plan.folder, "script": script});
    let job = job.unwrap_or("of unknown number".into());
    let words = format!(
        "job {job}; its script {}, its output in {}/logs",
        script.display(),
        plan.folder.display()
    );
    report.result(&line, &words);
    Ok(())
}

/// Runs a command here by a script; gives its exit code.
pub fn local(common: &Common, nproc: Option<u16>, mut ways: Ways) -> Result<()> {
    settings_only(&ways.settings)?;
    settings::from_words(&mut ways.words);
    if let (Some(n), Some(place)) = (nproc, ways.words.iter().position(|word| word == "train")) {
        ways.words.insert(place + 1, format!("--nproc={n}"));
    }
    let mut plan = Plan::new(common, &ways, nproc.unwrap_or(1).into(), true)?;
    let mut vault = Vault::new(&plan.folder);
    let text = plan.script(&ways, Settings::default(), &mut vault)?.local(&plan.numbers)?;
    let report = common.report();
    if ways.dry_run {
        output::result(&text);
        report.note(&format!("nothing was written; it would go to {}", plan.folder.display()));
        return Ok(());
    }
    plan.pack(&ways, &report)?;
    vault.write()?;
    let script = launch::write(&plan.folder, &text)?;
    report.note(&format!("{} runs here", script.display()));
    plan.claims.drain(..).for_each(Claim::hand_over);
    // Becomes the script, which so hears every signal itself.
    let error = Command::new("bash").arg(&script).exec();
    Err(Error::io("start", &script, &error))
}

/// Refuses folders in which a job of Slurm waits or runs.
fn check_idle(folder: &Path, runs: &[(u64, PathBuf)]) -> Result<()> {
    launch::check_idle(runs.iter().map(|(_, run)| run.as_path()).chain([folder]))
}

/// The command line of this process, as a shell takes it.
pub fn said() -> String {
    let words = process::command_line();
    let words = words.iter().enumerate().map(|(i, word)| match i {
        0 => "maskdiff".to_string(),
        _ => quoted(word),
    });
    words.collect::<Vec<String>>().join(" ")
}

/// A path from the root.
pub fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).map_err(|e| Error::io("read", path, &e))
}

/// What the launching command was told that the launched one should know.
pub fn globals(common: &Common) -> Vec<String> {
    let file = common.file.iter().flat_map(|file| ["--config".into(), file.display().to_string()]);
    let plugins =
        common.plugins.iter().flat_map(|file| ["--plugin".to_string(), file.display().to_string()]);
    let trust = trust::is_said().then(|| trust::FLAG.to_string());
    file.chain(plugins).chain(trust).collect()
}

/// Words that set the launcher alone.
pub fn settings_only(words: &[String]) -> Result<Layer> {
    let mut rest = words.to_vec();
    let layer = settings::from_words(&mut rest);
    match rest.first() {
        None => Ok(layer),
        Some(word) => Err(Error::config(
            format!("`{word}` stands where only `launcher.KEY=VALUE` and flags do"),
            "a launch has its command behind a `--`: `maskdiff launch slurm -- train KEY=VALUE`; a sweep that goes on has its points",
        )),
    }
}
