//! A Slurm of several pretended nodes on this machine, for as long as a test lasts: a real slurmctld, and a real slurmd for each
//! node, without systemd, accounting or cgroups. Everything it writes lies in one folder.
//!
//! A job in the partition `urgent` pre-empts those in `main`, which are started again after about six seconds.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::run::{Output, finish, shell};
use crate::skipped;

/// The cluster; ends with the value.
pub struct Cluster {
    folder: TempDir,
    daemons: Vec<Child>,
}

/// A program of the system's packages, which may lie where only root looks.
fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    folders.map(|folder| folder.join(name)).find(|file| file.is_file())
}

/// A port that was free a moment ago.
fn port() -> u16 {
    let bound = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    bound.expect("a free port").port()
}

impl Cluster {
    /// Starts `nodes` nodes of four cores; none, with a line that says so, where there is no Slurm.
    ///
    /// The last node does not see `hidden`: it has an empty folder there.
    pub fn start(nodes: u32, hidden: Option<&Path>) -> Option<Self> {
        let (Some(controller), Some(node)) = (program("slurmctld"), program("slurmd")) else {
            skipped("no Slurm: `scripts/setup.sh --slurm` installs it");
            return None;
        };
        let folder = tempfile::tempdir().expect("a folder");
        let mut this = Self { folder, daemons: Vec::new() };
        this.configure(nodes);
        let conf = this.conf();
        let spawn = |command: &mut Command, log: &str| {
            let log = fs::File::create(this.folder.path().join(log)).expect("a log");
            command
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(log)
                .spawn()
                .expect("a daemon")
        };
        let mut daemons =
            vec![spawn(Command::new(controller).arg("-D").arg("-f").arg(&conf), "controller.log")];
        for i in 1..=nodes {
            let name = format!("n{i}");
            fs::create_dir_all(this.folder.path().join("spool").join(&name)).expect("a folder");
            let mut command = match hidden.filter(|_| i == nodes) {
                None => Command::new(&node),
                Some(hidden) => {
                    let mut command = Command::new("unshare");
                    let line = format!(
                        "mount -t tmpfs none '{}' && exec {} \"$@\"",
                        hidden.display(),
                        node.display()
                    );
                    command.args(["-m", "sh", "-c", &line, "slurmd"]);
                    command
                }
            };
            command.args(["-D", "-N", &name, "-f"]).arg(&conf);
            daemons.push(spawn(&mut command, &format!("{name}.log")));
        }
        this.daemons = daemons;
        let until = Instant::now() + Duration::from_secs(40);
        let idle = |text: &str| text.lines().filter(|line| line.trim() == "idle").count() as u32;
        while idle(&this.shell("sinfo --noheader --Node --partition=main --format=%t").stdout)
            < nodes
        {
            if hidden.is_some()
                && this.daemons.iter_mut().any(|d| d.try_wait().is_ok_and(|s| s.is_some()))
            {
                skipped("no folder can be hidden from a process here");
                return None;
            }
            assert!(Instant::now() < until, "the cluster does not come up: {}", this.logs());
            std::thread::sleep(Duration::from_millis(100));
        }
        Some(this)
    }

    fn configure(&self, nodes: u32) {
        let at = self.folder.path().display();
        let said = Command::new("hostname").arg("-s").output().expect("hostname");
        let host = String::from_utf8_lossy(&said.stdout).trim().to_string();
        let said = Command::new("id").arg("-un").output().expect("id");
        let user = String::from_utf8_lossy(&said.stdout).trim().to_string();
        for folder in ["state", "cgroup"] {
            fs::create_dir_all(self.folder.path().join(folder)).expect("a folder");
        }
        let mut conf = format!(
            "ClusterName=tests\nSlurmctldHost={host}(127.0.0.1)\nSlurmctldPort={}\nSlurmUser={user}\nSlurmdUser={user}\n\
             AuthType=auth/none\nCredType=cred/none\nAuthInfo=cred_expire=5\n\
             StateSaveLocation={at}/state\nSlurmdSpoolDir={at}/spool/%n\n\
             SlurmctldPidFile={at}/controller.pid\nSlurmdPidFile={at}/%n.pid\n\
             ProctrackType=proctrack/linuxproc\nTaskPlugin=task/none\nSwitchType=switch/none\nMpiDefault=none\n\
             JobAcctGatherType=jobacct_gather/none\nAccountingStorageType=accounting_storage/none\n\
             SlurmdParameters=config_overrides\nCommunicationParameters=NoAddrCache\nDebugFlags=NO_CONF_HASH\n\
             SelectType=select/cons_tres\nSelectTypeParameters=CR_Core\nSchedulerType=sched/backfill\n\
             SchedulerParameters=sched_min_interval=0,batch_sched_delay=0,bf_interval=1\n\
             PreemptType=preempt/partition_prio\nPreemptMode=REQUEUE\nJobRequeue=1\nReturnToService=2\n\
             KillWait=10\nMinJobAge=3600\nInactiveLimit=0\nSlurmdTimeout=60\n",
            port()
        );
        for i in 1..=nodes {
            conf += &format!(
                "NodeName=n{i} NodeHostname={host} NodeAddr=127.0.0.1 Port={} CPUs=4 RealMemory=4000 State=UNKNOWN\n",
                port()
            );
        }
        conf += "PartitionName=main Nodes=ALL Default=YES PriorityTier=1 GraceTime=10 MaxTime=INFINITE State=UP\n\
                 PartitionName=urgent Nodes=ALL PriorityTier=10 PreemptMode=OFF MaxTime=INFINITE State=UP\n";
        fs::write(self.conf(), conf).expect("slurm.conf");
        // Nothing here uses cgroups, but an slurmd before 23.02 cannot be told so: it gets a folder that it never touches.
        let said = Command::new(program("slurmd").expect("slurmd"))
            .arg("-V")
            .output()
            .expect("its version");
        let version = String::from_utf8_lossy(&said.stdout).replace("slurm-wlm ", "");
        let cgroup = if version.trim() < "23.02" {
            format!("CgroupPlugin=cgroup/v1\nCgroupAutomount=no\nCgroupMountpoint={at}/cgroup\n")
        } else {
            "CgroupPlugin=disabled\n".into()
        };
        fs::write(self.folder.path().join("cgroup.conf"), cgroup).expect("cgroup.conf");
    }

    /// Its configuration: what `SLURM_CONF` names.
    pub fn conf(&self) -> PathBuf {
        self.folder.path().join("slurm.conf")
    }

    /// A command that talks to this cluster.
    pub fn with<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command.env("SLURM_CONF", self.conf())
    }

    /// Runs a line of a shell that talks to this cluster.
    pub fn shell(&self, line: &str) -> Output {
        shell(self.folder.path(), &format!("export SLURM_CONF={}; {line}", self.conf().display()))
    }

    /// Runs `maskdiff WORDS` in a folder, as on a login node of this cluster.
    pub fn maskdiff(&self, folder: &Path, words: &[&str]) -> Output {
        let mut command = crate::run::command(folder, words);
        finish(self.with(&mut command))
    }

    /// What Slurm says of a job: the value of a field, as in `JobState`.
    pub fn field(&self, job: &str, name: &str) -> String {
        let shown = self.shell(&format!("scontrol show job {job} --oneliner")).stdout;
        let prefix = format!("{name}=");
        let found = shown.split_whitespace().find_map(|word| word.strip_prefix(prefix.as_str()));
        found.unwrap_or_default().to_string()
    }

    /// Waits until something is so; fails with the cluster's logs after two minutes.
    #[track_caller]
    pub fn until(&self, what: &str, mut is_so: impl FnMut() -> bool) {
        let until = Instant::now() + Duration::from_secs(120);
        while !is_so() {
            assert!(Instant::now() < until, "{what}: not after two minutes\n{}", self.logs());
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn logs(&self) -> String {
        let queue = self.shell("squeue; scontrol show jobs --oneliner").stdout;
        let entries = fs::read_dir(self.folder.path()).into_iter().flatten().flatten();
        let logs =
            entries.map(|entry| entry.path()).filter(|p| p.extension().is_some_and(|e| e == "log"));
        let tail = |path: PathBuf| {
            let text = fs::read_to_string(&path).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            format!("{}\n{}\n", path.display(), lines[lines.len().saturating_sub(15)..].join("\n"))
        };
        queue + &logs.map(tail).collect::<String>()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if !self.daemons.is_empty() {
            // Jobs first, while there is somebody to end them.
            self.shell("scancel --signal=KILL --full $(squeue --noheader --format=%A) 2>/dev/null; scancel --me");
        }
        for daemon in self.daemons.iter_mut().rev() {
            let _ = Command::new("kill").arg(daemon.id().to_string()).status();
            let until = Instant::now() + Duration::from_secs(5);
            while Instant::now() < until && daemon.try_wait().is_ok_and(|status| status.is_none()) {
                std::thread::sleep(Duration::from_millis(50));
            }
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
    }
}
