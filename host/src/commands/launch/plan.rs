//! What a launch will do, checked as far as that can be done here.

use std::path::{Path, PathBuf};

use maskdiff_base::error::{Error, Result};
use maskdiff_base::report::Report;
use maskdiff_base::text;
use maskdiff_cluster::launch::script::{Body, Script, TASK, array_numbers};
use maskdiff_cluster::launch::settings::Settings;
use maskdiff_config::secrets::Vault;
use maskdiff_config::{Config, expand_home};
use maskdiff_engine::{assemble, plugins};
use maskdiff_records::run_dir::{self, Claim, RunDir};

use super::super::{Common, Preview, train};
use super::{Ways, absolute, check_idle, globals, program, said};

/// A command that is to run elsewhere, checked as far as that can be done here.
pub(super) struct Plan {
    /// Where the script goes.
    pub(super) folder: PathBuf,
    /// What runs.
    words: Vec<String>,
    pub(super) trains: bool,
    registry: plugins::Registry,
    /// The tasks of an array.
    pub(super) numbers: Vec<u64>,
    /// Of an array that trains, each task's run folder.
    pub(super) runs: Vec<(u64, PathBuf)>,
    /// What `--config` names.
    config: Option<PathBuf>,
    /// Where the package goes.
    pub(super) package: Option<PathBuf>,
    /// The folders that this launch alone writes into until it is done; none where nothing is written.
    pub(super) claims: Vec<Claim>,
}

/// The most named run folders of an array that are locked one by one: each lock needs an open file.
const CLAIMED: usize = 400;

/// Where tasks run: their number, and the folders that are this launch's.
struct Folders {
    /// Where the script goes.
    script: PathBuf,
    /// The run folder, with the number of an array's task left open.
    run: String,
    claim: Option<Claim>,
}

impl Plan {
    /// Checks a command that `world` processes are to run, `local` to this machine or as a job.
    pub(super) fn new(common: &Common, ways: &Ways, world: usize, local: bool) -> Result<Self> {
        let numbers = match &ways.array {
            None => Vec::new(),
            Some(spec) => array_numbers(spec).ok_or_else(|| {
                Error::config(
                    format!("`--array {spec}` is no list of tasks"),
                    "as in `0-3`, `1,5,9` or `1-20%4`, four of twenty at a time",
                )
            })?,
        };
        let preview = previewed(common, ways, numbers.first())?;
        check(&preview, world, local)?;
        if preview.name == "train" {
            Self::of_training(preview, ways, numbers, (world, local))
        } else {
            Self::of_command(preview, ways, numbers)
        }
    }

    /// A command that trains nothing. What it needs beside its words may come from a checkpoint: only the plugins are looked at.
    fn of_command(preview: Preview, ways: &Ways, numbers: Vec<u64>) -> Result<Self> {
        let config = preview.common.config()?;
        let registry = assemble::registry(&preview.common.plugins, &config)?;
        let (folder, claim) = own_folder(&dated(), ways)?;
        let package = ways.package.folder(&folder)?;
        Ok(Self {
            folder,
            words: preview.words,
            trains: false,
            registry,
            numbers,
            runs: Vec::new(),
            config: preview.common.file,
            package,
            claims: claim.into_iter().collect(),
        })
    }

    /// A command that trains: its configuration is checked, and its folders are claimed.
    fn of_training(
        preview: Preview,
        ways: &Ways,
        numbers: Vec<u64>,
        (world, local): (usize, bool),
    ) -> Result<Self> {
        let Preview { mut words, common, .. } = preview;
        let mut config = common.config()?;
        train::check_words(&config)?;
        config.shares(world)?;
        let registry = assemble::registry(&common.plugins, &config)?;
        let logs = config.sampling.num_sample_log > 0;
        let choices = assemble::choices(&mut config, &registry, logs)?;
        assemble::check_options(&config, &registry, &choices, logs)?;
        let Folders { script: folder, run, claim } = match numbers.is_empty() {
            true => Folders::of_run(&config, ways)?,
            false => Folders::of_array(&words, ways)?,
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
            let alone = numbers.is_empty().then(|| Path::new(&run));
            let mut all = runs.iter().map(|(_, run)| run.as_path()).chain(alone);
            all.try_for_each(RunDir::check_fresh)?;
        }
        // A job that is started again resumes, in the same folder.
        words.retain(|word| {
            !word.starts_with("run.dir=") && !word.starts_with("checkpointing.resume_from_ckpt=")
        });
        words.extend([format!("run.dir={run}"), "checkpointing.resume_from_ckpt=true".into()]);
        let package = ways.package.folder(&folder)?;
        let config = common.file;
        Ok(Self { folder, words, trains: true, registry, numbers, runs, config, package, claims })
    }

    pub(super) fn pack(&self, ways: &Ways, report: &Report) -> Result<()> {
        let (package, config) = (self.package.as_deref(), self.config.as_deref());
        ways.package.make(package, &self.registry, config, report)
    }

    /// The script to be, and its command; what its words must not show goes into the vault.
    pub(super) fn script(
        &self,
        ways: &Ways,
        mut settings: Settings,
        vault: &mut Vault,
    ) -> Result<Script> {
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

impl Folders {
    /// Of one run: its folder holds the script, too.
    fn of_run(config: &Config, ways: &Ways) -> Result<Self> {
        let (script, claim) = match &config.run.dir {
            Some(dir) => (absolute(Path::new(dir))?, None),
            None => own_folder(&run_dir::proposed(config), ways)?,
        };
        Ok(Self { run: script.display().to_string(), script, claim })
    }

    /// Of an array: each task has a run folder.
    fn of_array(words: &[String], ways: &Ways) -> Result<Self> {
        let Some(run) = words.iter().find_map(|word| word.strip_prefix("run.dir=")) else {
            let (script, claim) = own_folder(&dated(), ways)?;
            return Ok(Self { run: script.join(TASK).display().to_string(), script, claim });
        };
        if !run.contains(TASK) {
            return Err(Error::config(
                format!("all tasks of the array would write into `{run}`"),
                format!("put `{TASK}` into it, as in `run.dir=runs/{TASK}`"),
            ));
        }
        let run = absolute(Path::new(&expand_home(run)?))?.display().to_string();
        let (script, claim) = own_folder(&dated(), ways)?;
        Ok(Self { script, run, claim })
    }
}

/// What the command would do, of an array its first task; its words keep the number open.
fn previewed(common: &Common, ways: &Ways, first: Option<&u64>) -> Result<Preview> {
    let mut words = globals(common);
    words.extend(ways.words.iter().cloned());
    let Some(first) = first.map(ToString::to_string) else { return (common.preview)(&words) };
    let at_first: Vec<String> = words.iter().map(|word| word.replace(TASK, &first)).collect();
    let preview = (common.preview)(&at_first)?;
    Ok(Preview { words: (common.preview)(&words)?.words, ..preview })
}

/// Refuses what no job can do.
fn check(preview: &Preview, world: usize, local: bool) -> Result<()> {
    if preview.terminal {
        let message = "`--tui` needs a terminal, and a job has none";
        return Err(Error::config(message, "leave it out"));
    }
    if preview.nproc.is_some() && !local {
        let message = "`--nproc` starts processes by hand, and srun starts those of a job";
        return Err(Error::config(message, "say `--tasks-per-node N` before the `--`"));
    }
    if world > 1 && preview.name != "train" {
        let name = &preview.name;
        return Err(Error::config(
            format!("`maskdiff {name}` runs as one process, and this asks for {world} processes"),
            "ask for one node and one task",
        ));
    }
    Ok(())
}

/// A folder that is named after this moment.
fn dated() -> PathBuf {
    let now = jiff::ZonedDateTime::now();
    format!("outputs/launch/{}/{}", now.strftime("%Y.%m.%d"), now.strftime("%H%M%S")).into()
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
