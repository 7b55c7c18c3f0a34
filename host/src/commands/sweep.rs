//! `maskdiff sweep`, and `status`, `resume`, `collect` of one

mod points;

use std::path::{Path, PathBuf};

use maskdiff_base::error::{Error, Result};
use maskdiff_base::files::lock::Lock;
use maskdiff_base::stop::Stop;
use maskdiff_base::text::{counted, quoted_path};
use maskdiff_base::{files, output};
use maskdiff_cluster::launch::script::{Body, Script};
use maskdiff_cluster::launch::settings::{self, Said};
use maskdiff_cluster::launch::{self, package, slurm};
use maskdiff_cluster::sweep::axes::Plan;
use maskdiff_cluster::sweep::{State, Sweep, collect, local, name};
use maskdiff_config::secrets::Vault;
use maskdiff_data::Observer;
use maskdiff_engine::accelerator;
use maskdiff_engine::plugins::Registry;
use maskdiff_records::ownership;
use maskdiff_records::run_dir::Claim;
use serde_json::json;

use super::Common;
use super::launch::{Job, Packaged, absolute, globals, program, said, settings_only};
use points::{DRY, PATIENCE, check};

/// A sweep to begin.
#[derive(Debug, clap::Args)]
pub struct New {
    /// KEY=VALUE for all points, KEY=A,B,C and KEY=1..5 for axes
    #[arg(value_name = "KEY=VALUES")]
    words: Vec<String>,
    /// Draw N random settings instead of every combination
    #[arg(long, value_name = "N")]
    random: Option<usize>,
    /// Seed of the random settings
    #[arg(long, value_name = "SEED", default_value_t = 1)]
    draw_seed: u64,
    /// A TOML file with `words`, `random`, [axes] and [[cases]]; the command line adds to it
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    file: Option<PathBuf>,
    /// The folder of the sweep; by default outputs/sweeps/DATE/TIME
    #[arg(long, value_name = "FOLDER", value_hint = clap::ValueHint::DirPath)]
    dir: Option<PathBuf>,
    /// List the points (with --slurm, print the script) and do nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    run: Running,
}

/// How points are run.
#[derive(Debug, clap::Args)]
pub struct Running {
    /// Number of points at a time on this machine
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    jobs: u16,
    /// Run the points as a Slurm job array
    #[arg(long, conflicts_with = "jobs")]
    slurm: bool,
    /// Run at most N tasks of the array at a time
    #[arg(long, value_name = "N", requires = "slurm", value_parser = clap::value_parser!(u32).range(1..))]
    at_once: Option<u32>,
    /// Largest number of tasks of the array; in a longer sweep each task runs several points
    #[arg(long, value_name = "N", requires = "slurm", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    array_tasks: u32,
    #[command(flatten)]
    job: Job,
    #[command(flatten)]
    package: Packaged,
}

/// What a table shows.
#[derive(Debug, clap::Args)]
pub struct Table {
    /// A metric of the table (may be repeated); by default val/nelbo and val/ppl, or val/loss
    #[arg(long, value_name = "NAME")]
    metric: Vec<String>,
    /// Take the best evaluation of each point instead of the last
    #[arg(long)]
    best: bool,
    /// Larger values of the metric are better
    #[arg(long)]
    larger: bool,
}

/// Begins a sweep and runs it.
pub fn new(common: &Common, new: &New) -> Result<()> {
    let text = new
        .file
        .as_deref()
        .map(|file| std::fs::read_to_string(file).map_err(|e| Error::io("read", file, &e)));
    let mut words = new.words.clone();
    let launcher = settings::from_words(&mut words);
    let plan = Plan::new(text.transpose()?.as_deref(), &words, new.random, new.draw_seed)?;
    let now = jiff::ZonedDateTime::now();
    let own = format!("outputs/sweeps/{}/{}", now.strftime("%Y.%m.%d"), now.strftime("%H%M%S"));
    // Of two that begin at one moment, each has a folder of its own.
    let (own, writes) = (absolute(Path::new(&own))?, !new.dry_run);
    let (folder, mut claim) = match &new.dir {
        Some(named) => (absolute(named)?, None),
        None if writes => {
            let claim = Claim::fresh(&own)?;
            (claim.path().to_path_buf(), Some(claim))
        }
        None => (own, None),
    };
    let mut sweep = Sweep::new(&folder, plan, &globals(common))?;
    sweep.job = new.run.job.said(launcher)?;
    let report = common.report();
    let settings = sweep.job.settings(&Said::default())?;
    let tasks = tasks(&new.run, &settings)?;
    let all: Vec<usize> = (0..sweep.points.len()).collect();
    let patience = if new.dry_run { DRY } else { PATIENCE };
    let (registry, apart) = check(&sweep, &all, tasks, patience, common)?;
    if new.dry_run && !new.run.slurm {
        let lines = sweep.points.iter().enumerate().map(|(point, words)| {
            let line = json!({"point": point, "words": words});
            if report.json() {
                line.to_string()
            } else {
                format!("{}  {}", name(point), words.join(" "))
            }
        });
        // All at once: there may be very many.
        output::result(&lines.map(|line| line + "\n").collect::<String>());
        report.note(&format!("{}; nothing was written", counted(sweep.points.len(), "point")));
        return Ok(());
    }
    let package = new.run.package.folder(&folder)?;
    if new.dry_run {
        let script = script(&sweep, &new.run, settings, &all, "todo.txt", package)?;
        output::result(&script.0.slurm()?);
        report.note(&format!("{}; nothing was written", counted(sweep.points.len(), "point")));
        return Ok(());
    }
    if new.run.slurm {
        slurm::check()?;
    }
    package.as_deref().map_or(Ok(()), package::check_free)?;
    // Before hours of making data, too.
    sweep.check_free()?;
    prepare(&sweep, &apart, common)?;
    let claim = claim.take().map_or_else(|| Claim::named(&folder), Ok)?;
    let held = sweep.create(claim)?;
    report.note(&format!("{} in {}", counted(sweep.points.len(), "point"), folder.display()));
    let ready = Ready { settings, package, registry, held };
    let ran = run(common, &sweep, &new.run, ready, &all);
    if ran.is_err() && new.run.slurm {
        // Nothing was submitted, so nothing was begun; all that is in it was made here.
        let _ = std::fs::remove_dir_all(&folder);
    }
    ran
}

/// Runs the points that are left.
pub fn resume(common: &Common, folder: &Path, words: &[String], run_as: &Running) -> Result<()> {
    let sweep = Sweep::open(folder)?;
    // What is left is asked under the lock: who ran it may have ended just now.
    let held = Some(sweep.hold()?);
    launch::check_idle([sweep.folder.as_path()])?;
    let package = run_as.package.folder(&sweep.folder)?;
    let report = common.report();
    let left = sweep.left()?;
    if left.is_empty() {
        report.note(&format!(
            "{}; `maskdiff sweep collect {}` makes the table",
            match sweep.points.len() {
                1 => "the one point is done".to_string(),
                all => format!("all {all} points are done"),
            },
            quoted_path(folder)
        ));
        return Ok(());
    }
    let all = counted(sweep.points.len(), "point");
    report.note(&format!("{} of {all} are left", left.len()));
    sweep.check_begun()?;
    // Paths in its words, and configurations, are those of where it was begun.
    std::env::set_current_dir(&sweep.from).map_err(|e| Error::io("enter", &sweep.from, &e))?;
    let settings = run_as.job.said(settings_only(words)?)?.settings(&sweep.job)?;
    let tasks = tasks(run_as, &settings)?;
    let (registry, _) = check(&sweep, &left, tasks, PATIENCE, common)?;
    run(common, &sweep, run_as, Ready { settings, package, registry, held }, &left)
}

/// What was found before anything runs.
struct Ready {
    settings: settings::Settings,
    /// Where the package goes.
    package: Option<PathBuf>,
    registry: Registry,
    /// Nobody else is at work in the folder.
    held: Option<Lock>,
}

/// Processes of a point.
fn tasks(run_as: &Running, settings: &settings::Settings) -> Result<usize> {
    if !run_as.slurm {
        return Ok(1);
    }
    settings.check_time()?;
    Ok(settings.tasks())
}

/// Runs points here, or submits them.
fn run(
    common: &Common,
    sweep: &Sweep,
    run_as: &Running,
    ready: Ready,
    points: &[usize],
) -> Result<()> {
    let Ready { settings, package, registry, held } = ready;
    let mut report = common.report();
    // Where the points have a file of `--config`, it is the sweep's.
    let file = (common.preview)(&sweep.command(points[0]))?.common.file;
    run_as.package.make(package.as_deref(), &registry, file.as_deref(), &report)?;
    if !run_as.slurm {
        let program = program(package.as_deref())?;
        let place = local::Place {
            jobs: run_as.jobs.into(),
            program,
            package,
            gpus: accelerator::visible_gpus(),
        };
        local::run(sweep, points, &place, &mut report)?;
        return collect(
            common,
            &sweep.folder,
            &Table { metric: Vec::new(), best: false, larger: false },
        );
    }
    let numbered = |n: u32| format!("todo-{n}.txt");
    let names = std::iter::once("todo.txt".to_string()).chain((2..).map(numbered));
    let names = names.map(|name| sweep.folder.join(name));
    let numbers: String = points.iter().map(|point| name(*point) + "\n").collect();
    let list = files::write_first(names, numbers, files::SHARED)?;
    let shown = list.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let (script, vault) = script(sweep, run_as, settings, points, &shown, package.clone())?;
    let text = script.slurm()?;
    vault.write()?;
    let submitted = launch::submit(&sweep.folder, &text, slurm::submit);
    if submitted.is_err() {
        let _ = std::fs::remove_file(&list);
        package.iter().for_each(|folder| drop(std::fs::remove_dir_all(folder)));
    }
    let (script, job) = submitted?;
    drop(held);
    let folder = quoted_path(&sweep.folder);
    let line =
        json!({"job": job, "folder": sweep.folder, "script": script, "points": points.len()});
    let job = job.unwrap_or("of unknown number".into());
    let words = format!(
        "job {job} has {}; `maskdiff sweep status {folder}` shows how far they are, `scancel {job}` stops them",
        counted(points.len(), "point")
    );
    report.result(&line, &words);
    Ok(())
}

fn script(
    sweep: &Sweep,
    run_as: &Running,
    mut settings: settings::Settings,
    points: &[usize],
    list: &str,
    package: Option<PathBuf>,
) -> Result<(Script, Vault)> {
    let mut vault = Vault::new(&sweep.folder);
    settings.check_lines()?;
    settings.setup = vault.lines(settings.setup);
    let tasks = points.len().min(run_as.array_tasks as usize);
    let most = run_as.at_once.map_or(String::new(), |most| format!("%{most}"));
    let script = Script {
        made_by: said(),
        settings,
        folder: sweep.folder.clone(),
        from: sweep.from.clone(),
        program: program(package.as_deref())?,
        package,
        array: Some(format!("0-{}{most}", tasks - 1)),
        body: Body::Points { list: sweep.folder.join(list).display().to_string(), tasks },
    };
    Ok((script, vault))
}

/// Makes the blocks of tokens that points share, once, before several of them want to.
fn prepare(sweep: &Sweep, apart: &[usize], common: &Common) -> Result<()> {
    let (stop, mut report) = (Stop::default(), common.report());
    for point in apart {
        let config = (common.preview)(&sweep.command(*point))?.common.config()?;
        // Made as they are read.
        if config.data.train != "stories" {
            maskdiff_data::open(&config, None, &Observer::new(&mut report, &stop))?;
        }
    }
    Ok(())
}

/// Tells how far the points are.
pub fn status(common: &Common, folder: &Path) -> Result<()> {
    let sweep = Sweep::open(folder)?;
    let report = common.report();
    let states = (0..sweep.points.len()).map(|point| sweep.state(point));
    let states = states.collect::<Result<Vec<State>>>()?;
    let count = |wanted: fn(&State) -> bool| states.iter().filter(|state| wanted(state)).count();
    let done = count(|s| *s == State::Done);
    let failed = count(|s| matches!(s, State::Failed(_)));
    let (begun, missing) = (count(|s| *s == State::Begun), count(|s| *s == State::Missing));
    // Without Slurm, what its queue holds is not known.
    let jobs = launch::live(&sweep.folder);
    let in_queue = jobs.as_ref().map_or(0, |jobs| jobs.len());
    let mut text = format!(
        "{}: {}, {done} done, {failed} failed, {begun} begun, {missing} not begun",
        folder.display(),
        counted(states.len(), "point")
    );
    if let Err(error) = &jobs {
        text += &format!("\n  {error}");
    } else if in_queue > 0 {
        text += &format!("; Slurm has {} of it", counted(in_queue, "task"));
    }
    // Those of which there is something to say.
    for (point, _) in
        states.iter().enumerate().filter(|(_, s)| matches!(s, State::Failed(_) | State::Begun))
    {
        text += &format!(
            "\n  {} ({}) {}",
            name(point),
            sweep.values(point).join(", "),
            sweep.about(point)
        );
    }
    if done < states.len() && in_queue == 0 {
        let folder = quoted_path(folder);
        text += &format!("\n  `maskdiff sweep resume {folder}` runs what is missing");
    }
    let numbers = |wanted: fn(&State) -> bool| -> Vec<usize> {
        let found = states.iter().enumerate().filter(|(_, state)| wanted(state));
        found.map(|(point, _)| point).collect()
    };
    let line = json!({
        "folder": sweep.folder, "points": states.len(), "done": numbers(|s| *s == State::Done),
        "failed": numbers(|s| matches!(s, State::Failed(_))), "begun": numbers(|s| *s == State::Begun),
        "missing": numbers(|s| *s == State::Missing), "jobs": jobs.unwrap_or_default(),
    });
    report.result(&line, &text);
    Ok(())
}

/// Makes the table.
pub fn collect(common: &Common, folder: &Path, table: &Table) -> Result<()> {
    let sweep = Sweep::open(folder)?;
    let report = common.report();
    let metrics: Vec<String> = match &table.metric[..] {
        [] => collect::usual(&sweep)?,
        named => named.to_vec(),
    };
    let found = collect::collect(&sweep, &metrics, table.best, table.larger)?;
    let (done, total) = (found.points.len(), sweep.points.len());
    if done == 0 {
        let hint =
            format!("`maskdiff sweep status {}` shows how far they are", quoted_path(folder));
        return Err(Error::data("no point of the sweep is done".to_string(), hint));
    }
    let file = sweep.folder.join("results.csv");
    if let Some(why) = ownership::fault(&file, ownership::Kind::Table)? {
        let message = format!("the table goes to `{}`, which {why}", file.display());
        return Err(Error::config(message, "move the file away"));
    }
    files::write_whole(&file, found.csv(&sweep.plan.keys()))?;
    if report.json() {
        found.rows.iter().for_each(|row| report.result(&found.json(row), ""));
    }
    let (head, rows) = found.table();
    let head: Vec<&str> = head.iter().map(String::as_str).collect();
    report.table(&head, &rows);
    let all = counted(total, "point");
    report.note(&format!("{done} of {all}; each of them in {}", file.display()));
    Ok(())
}
