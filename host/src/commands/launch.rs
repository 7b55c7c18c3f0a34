//! `maskdiff launch slurm|local`

use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use maskdiff_base::error::{Error, Result};
use maskdiff_base::files::look;
use maskdiff_base::report::Report;
use maskdiff_base::text::{self, quoted};
use maskdiff_base::{output, process};
use maskdiff_cluster::launch::script::{Body, Script, TASK, array_numbers};
use maskdiff_cluster::launch::settings::{self, Layer, Said, Settings};
use maskdiff_cluster::launch::{self, package, slurm};
use maskdiff_config::secrets::Vault;
use maskdiff_config::{expand_home, trust};
use maskdiff_engine::{accelerator, assemble, plugins};
use maskdiff_records::run_dir::{self, Claim, RunDir};
use serde_json::json;

use super::{Common, train};

/// What a job asks of the cluster; `configs/launcher/slurm.toml` has the same keys.
#[derive(Debug, clap::Args)]
pub struct Job {
    /// A table [profiles.NAME] of configs/launcher/slurm.toml
    #[arg(long, value_name = "NAME")]
    profile: Option<String>,
    /// Machines
    #[arg(long, value_name = "N")]
    nodes: Option<String>,
    /// GPUs of each machine: a number, or KIND:NUMBER
    #[arg(long, value_name = "G")]
    gpus_per_node: Option<String>,
    /// Processes on each machine; by default one for each GPU
    #[arg(long, value_name = "T")]
    tasks_per_node: Option<String>,
    /// Cores of each process
    #[arg(long, value_name = "C")]
    cpus_per_task: Option<String>,
    /// The time limit, as Slurm reads it
    #[arg(long, value_name = "TIME")]
    time: Option<String>,
    /// The partition
    #[arg(long, value_name = "NAME")]
    partition: Option<String>,
    /// Who pays
    #[arg(long, value_name = "NAME")]
    account: Option<String>,
    /// The quality of service
    #[arg(long, value_name = "NAME")]
    qos: Option<String>,
    /// What the machines must have
    #[arg(long, value_name = "FEATURES")]
    constraint: Option<String>,
    /// Memory of each machine
    #[arg(long, value_name = "SIZE")]
    mem: Option<String>,
    /// How often the job may be started again
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
    /// Several tasks of the same command, `{task}` in its words is their number: as in 0-3, 1,5, or 1-20%4
    #[arg(long, value_name = "TASKS")]
    array: Option<String>,
    /// Show the script and do nothing
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
    /// Run from a folder of its own, with the program and its plugins as they are now; by default `package` beside the script
    #[arg(long, value_name = "FOLDER", num_args = 0..=1, require_equals = true, default_missing_value = "")]
    package: Option<String>,
    /// Copy libtorch into that folder too
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

/// A command that is to run elsewhere, checked as far as that can be done here.
struct Plan {
    /// Where the script goes.
    folder: PathBuf,
    /// What runs.
    words: Vec<String>,
    trains: bool,
    registry: plugins::Registry,
    /// The tasks of an array.
    numbers: Vec<u64>,
    /// Of an array that trains, each task's run folder.
    runs: Vec<(u64, PathBuf)>,
    /// What `--config` names.
    config: Option<PathBuf>,
    /// Where the package goes.
    package: Option<PathBuf>,
    /// The folders that this launch alone writes into until it is done; none where nothing is written.
    claims: Vec<Claim>,
}

/// The most named run folders of an array that are locked one by one: each lock needs an open file.
const CLAIMED: usize = 400;

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
    let report = Report::new(common.format, common.quiet);
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
    let report = Report::new(common.format, common.quiet);
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

impl Plan {
    fn new(common: &Common, ways: &Ways, world: usize, local: bool) -> Result<Self> {
        let numbers = match &ways.array {
            None => Vec::new(),
            Some(spec) => array_numbers(spec).ok_or_else(|| {
                Error::config(
                    format!("`--array {spec}` is no list of tasks"),
                    "as in `0-3`, `1,5,9` or `1-20%4`, four of twenty at a time",
                )
            })?,
        };
        let first = numbers.first().map(ToString::to_string);
        let at_first = |words: &[String]| -> Vec<String> {
            let replaced = |word: &String| match &first {
                Some(first) => word.replace(TASK, first),
                None => word.clone(),
            };
            words.iter().map(replaced).collect()
        };
        let mut words = globals(common);
        words.extend(ways.words.iter().cloned());
        let preview = (common.preview)(&at_first(&words))?;
        let mut words =
            if first.is_some() { (common.preview)(&words)?.words } else { preview.words };
        if preview.terminal {
            let message = "`--tui` needs a terminal, and a job has none";
            return Err(Error::config(message, "leave it out"));
        }
        if preview.nproc.is_some() && !local {
            let message = "`--nproc` starts processes by hand, and srun starts those of a job";
            return Err(Error::config(message, "say `--tasks-per-node N` before the `--`"));
        }
        if world > 1 && preview.name != "train" {
            return Err(Error::config(
                format!(
                    "`maskdiff {}` runs as one process, and this asks for {world} processes",
                    preview.name
                ),
                "ask for one node and one task",
            ));
        }
        let now = jiff::ZonedDateTime::now();
        let own = format!("outputs/launch/{}/{}", now.strftime("%Y.%m.%d"), now.strftime("%H%M%S"));
        let trains = preview.name == "train";
        if !trains {
            // What it needs beside its words may come from a checkpoint: only the plugins are looked at.
            let config = preview.common.config()?;
            let registry = assemble::registry(&preview.common.plugins, &config)?;
            let (folder, claim) = own_folder(Path::new(&own), ways)?;
            let package = ways.package.folder(&folder)?;
            let config = preview.common.file;
            let (runs, claims) = (Vec::new(), claim.into_iter().collect());
            return Ok(Self {
                folder,
                words,
                trains,
                registry,
                numbers,
                runs,
                config,
                package,
                claims,
            });
        }
        let mut config = preview.common.config()?;
        train::check_words(&config)?;
        config.shares(world)?;
        let registry = assemble::registry(&preview.common.plugins, &config)?;
        let logs = config.sampling.num_sample_log > 0;
        let choices = assemble::choices(&mut config, &registry, logs)?;
        assemble::check_options(&config, &registry, &choices, logs)?;
        let named = words.iter().find_map(|word| word.strip_prefix("run.dir=")).map(String::from);
        let (folder, run, claim) = match (&first, named) {
            (None, _) => {
                let (run, claim) = match &config.run.dir {
                    Some(dir) => (absolute(Path::new(dir))?, None),
                    None => own_folder(&run_dir::proposed(&config), ways)?,
                };
                (run.clone(), run.display().to_string(), claim)
            }
            (Some(_), None) => {
                let (folder, claim) = own_folder(Path::new(&own), ways)?;
                let run = folder.join(TASK).display().to_string();
                (folder, run, claim)
            }
            (Some(_), Some(run)) if run.contains(TASK) => {
                let run = absolute(Path::new(&expand_home(&run)?))?.display().to_string();
                let (folder, claim) = own_folder(Path::new(&own), ways)?;
                (folder, run, claim)
            }
            (Some(_), Some(run)) => {
                return Err(Error::config(
                    format!("all tasks of the array would write into `{run}`"),
                    format!("put `{TASK}` into it, as in `run.dir=runs/{TASK}`"),
                ));
            }
        };
        let of = |n: &u64| (*n, PathBuf::from(run.replace(TASK, &n.to_string())));
        let runs: Vec<(u64, PathBuf)> = numbers.iter().map(of).collect();
        let mut claims: Vec<Claim> = claim.into_iter().collect();
        if !ways.dry_run {
            if !local {
                // Slurm knows the job that is at work in a folder; a lock does not.
                check_idle(&folder, &runs)?;
            }
            claims.extend(claimed(&run, &runs, &claims)?);
        }
        if !config.checkpointing.resume_from_ckpt {
            let alone = first.is_none().then(|| Path::new(&run));
            let mut all = runs.iter().map(|(_, run)| run.as_path()).chain(alone);
            all.try_for_each(RunDir::check_fresh)?;
        }
        // A job that is started again goes on, in the same folder.
        words.retain(|word| {
            !word.starts_with("run.dir=") && !word.starts_with("checkpointing.resume_from_ckpt=")
        });
        words.extend([format!("run.dir={run}"), "checkpointing.resume_from_ckpt=true".into()]);
        let package = ways.package.folder(&folder)?;
        let config = preview.common.file;
        Ok(Self { folder, words, trains, registry, numbers, runs, config, package, claims })
    }

    fn pack(&self, ways: &Ways, report: &Report) -> Result<()> {
        let (package, config) = (self.package.as_deref(), self.config.as_deref());
        ways.package.make(package, &self.registry, config, report)
    }

    /// The script to be, and its command; what its words must not show goes into the vault.
    fn script(&self, ways: &Ways, mut settings: Settings, vault: &mut Vault) -> Result<Script> {
        for (_, run) in &self.runs {
            text::check("the run folder", &run.display().to_string())?;
        }
        // Before its lines go into a file of their own.
        settings.check_lines()?;
        settings.setup = vault.lines(settings.setup);
        let words = self.words.iter().map(|word| vault.word_for(word, TASK, &self.numbers));
        let words = words.collect();
        Ok(Script {
            made_by: said(),
            settings,
            folder: self.folder.clone(),
            from: std::env::current_dir().map_err(|e| Error::io("read", Path::new("."), &e))?,
            program: program(self.package.as_deref())?,
            package: self.package.clone(),
            array: ways.array.clone(),
            body: Body::Command { words, trains: self.trains },
        })
    }
}

/// Refuses folders in which a job of Slurm waits or runs.
fn check_idle(folder: &Path, runs: &[(u64, PathBuf)]) -> Result<()> {
    launch::check_idle(runs.iter().map(|(_, run)| run.as_path()).chain([folder]))
}

/// A folder that no other launch has: made now, or only named where nothing is written.
fn own_folder(base: &Path, ways: &Ways) -> Result<(PathBuf, Option<Claim>)> {
    let base = absolute(base)?;
    if ways.dry_run {
        return Ok((base, None));
    }
    let claim = Claim::fresh_to_launch(&base)?;
    Ok((claim.path().to_path_buf(), Some(claim)))
}

/// Claims the run folders that the user has named, and of an array the folder that all of them lie in: two launches that name the
/// same would go on from each other's checkpoints. `run` is the name of one, or of all with their number left open; what lies in a folder
/// of `held` is claimed already.
fn claimed(run: &str, runs: &[(u64, PathBuf)], held: &[Claim]) -> Result<Vec<Claim>> {
    if held.iter().any(|claim| Path::new(run).starts_with(claim.path())) {
        return Ok(Vec::new());
    }
    if runs.is_empty() {
        return Ok(vec![Claim::to_launch(Path::new(run))?]);
    }
    let open = |part: &std::path::Component<'_>| part.as_os_str().to_string_lossy().contains(TASK);
    let all: PathBuf = Path::new(run).components().take_while(|part| !open(part)).collect();
    let mut folders = vec![all.as_path()];
    if runs.len() <= CLAIMED {
        folders.extend(runs.iter().map(|(_, run)| run.as_path()));
    }
    // Two tasks may have one folder, as where a number is named twice.
    folders.sort_unstable();
    folders.dedup();
    folders.into_iter().map(Claim::to_launch).collect()
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
