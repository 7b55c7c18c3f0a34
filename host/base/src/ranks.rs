//! Where a process stands among the ranks of its run: from the variables of torchrun or of Slurm.

use crate::error::{Error, Result};

/// The number of the step that an interactive shell is, `SLURM_INTERACTIVE_STEP` of Slurm's own header. Older ones do not say its tasks.
const INTERACTIVE: u64 = 0xffff_fffa;

/// Where a process stands, from its environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// This process, in 0..world.
    pub rank: usize,
    /// Processes in all.
    pub world: usize,
    /// This process among those of its machine: the number of its GPU.
    pub local_rank: usize,
    /// Rank 0's machine.
    pub host: String,
    /// The port of the rendezvous there.
    pub port: u16,
}

impl Place {
    /// From the environment: `RANK WORLD_SIZE LOCAL_RANK MASTER_ADDR MASTER_PORT`, else Slurm's variables of a step; `None`
    /// for a process that is alone.
    pub fn from_environment() -> Result<Option<Self>> {
        Self::find(|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
    }

    fn find(var: impl Fn(&str) -> Option<String>) -> Result<Option<Self>> {
        let place = if var("WORLD_SIZE").is_some() || var("RANK").is_some() {
            Self::torchrun(&var)?
        } else if var("SLURM_JOB_ID").is_some() {
            Self::slurm(&var)?
        } else {
            None
        };
        let Some(place) = place.filter(|p| p.world > 1) else { return Ok(None) };
        if place.rank >= place.world {
            let Self { rank, world, .. } = place;
            let message = format!("rank {rank} of {world} processes: ranks are 0 to {}", world - 1);
            return Err(Error::config(message, "RANK must be less than WORLD_SIZE"));
        }
        Ok(Some(place))
    }

    fn torchrun(var: &impl Fn(&str) -> Option<String>) -> Result<Option<Self>> {
        let (rank, world) = (number(var, "RANK")?, number(var, "WORLD_SIZE")?);
        if world == 1 {
            return Ok(None);
        }
        let local_rank =
            if var("LOCAL_RANK").is_some() { number(var, "LOCAL_RANK")? } else { rank };
        let host = var("MASTER_ADDR").ok_or_else(|| missing("MASTER_ADDR"))?;
        Ok(Some(Self { rank, world, local_rank, host, port: number(var, "MASTER_PORT")? }))
    }

    fn slurm(var: &impl Fn(&str) -> Option<String>) -> Result<Option<Self>> {
        // A batch script has the variables of its tasks as well, but is none of them: only a step has a number. What an allocation
        // has is not what its step has: the shell that `salloc` opens on a node is a step of one task.
        let own = ["SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"].into_iter().find(|v| var(v).is_some());
        let tasks = own.map_or(Ok(1), |name| number(var, name))?;
        let Some(step) = var("SLURM_STEP_ID") else {
            if tasks > 1 {
                return Err(Error::config(
                    format!("this Slurm job has {tasks} tasks, and this process is none of them"),
                    "start it by `srun maskdiff train ...`; to train alone here, set WORLD_SIZE=1 and RANK=0",
                ));
            }
            return Ok(None);
        };
        if step.parse() == Ok(INTERACTIVE) {
            return Ok(None);
        }
        // A step may run on a part of the job's nodes.
        let nodes = var("SLURM_STEP_NODELIST").or_else(|| var("SLURM_JOB_NODELIST"));
        let nodes = nodes.ok_or_else(|| missing("SLURM_JOB_NODELIST"))?;
        let hosts = expand_nodes(&nodes).ok_or_else(|| {
            Error::config(format!("SLURM_JOB_NODELIST=`{nodes}` is no list of nodes"), "")
        })?;
        let (job, step): (u64, u64) =
            (number(var, "SLURM_JOB_ID")?, step.parse().unwrap_or_default());
        let port = match var("MASTER_PORT") {
            Some(_) => number(var, "MASTER_PORT")?,
            // Below the ports that systems give out by themselves. Jobs and steps that follow each other are far apart: tasks of an
            // array run side by side.
            None => u16::try_from(15_000 + (job * 7_919 + step * 5_003) % 17_000).unwrap_or(15_000),
        };
        let first = hosts.into_iter().next().ok_or_else(|| missing("SLURM_JOB_NODELIST"))?;
        Ok(Some(Self {
            rank: number(var, "SLURM_PROCID")?,
            world: tasks,
            local_rank: number(var, "SLURM_LOCALID")?,
            host: var("MASTER_ADDR").unwrap_or(first),
            port,
        }))
    }
}

fn missing(name: &str) -> Error {
    Error::config(
        format!("this process is one of several, and {name} is not set"),
        "start them by `maskdiff train --nproc N`, by torchrun or by srun; for one process, unset RANK and WORLD_SIZE",
    )
}

fn number<T: std::str::FromStr>(var: &impl Fn(&str) -> Option<String>, name: &str) -> Result<T> {
    let text = var(name).ok_or_else(|| missing(name))?;
    text.parse().map_err(|_| Error::config(format!("{name}=`{text}` is not a number"), ""))
}

/// The names in a list of Slurm's, as in `a[01-03,7],b2`. Zeros in front are kept.
pub fn expand_nodes(list: &str) -> Option<Vec<String>> {
    let mut names = Vec::new();
    let mut rest = list;
    while !rest.is_empty() {
        let end = rest.find([',', '[']).unwrap_or(rest.len());
        let (prefix, tail) = rest.split_at(end);
        let Some(inner) = tail.strip_prefix('[') else {
            names.push(prefix.to_string());
            rest = tail.strip_prefix(',').unwrap_or(tail);
            continue;
        };
        let (ranges, after) = inner.split_once(']')?;
        // What follows the brackets up to the next comma belongs to each name, and may have brackets itself.
        let end = after.find(',').filter(|_| !after.starts_with('['));
        let (suffix, next) = after.split_at(end.unwrap_or(after.len()));
        let suffixes = if suffix.is_empty() { vec![String::new()] } else { expand_nodes(suffix)? };
        for range in ranges.split(',') {
            let (low, high) = range.split_once('-').unwrap_or((range, range));
            let (first, last): (u64, u64) = (low.parse().ok()?, high.parse().ok()?);
            for n in first..=last {
                let width = low.len();
                names.extend(suffixes.iter().map(|s| format!("{prefix}{n:0width$}{s}")));
            }
        }
        rest = next.strip_prefix(',').unwrap_or(next);
    }
    Some(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(vars: &[(&str, &str)]) -> Result<Option<Place>> {
        Place::find(|name| {
            vars.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_string())
        })
    }

    #[test]
    fn ranks_come_from_torchrun_or_slurm() {
        let torchrun =
            [("RANK", "1"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "h"), ("MASTER_PORT", "99")];
        let found = place(&torchrun).unwrap().unwrap();
        assert_eq!((found.rank, found.world, found.local_rank, found.port), (1, 2, 1, 99));
        let slurm = [
            ("SLURM_JOB_ID", "1234"),
            ("SLURM_STEP_ID", "0"),
            ("SLURM_NTASKS", "4"),
            ("SLURM_PROCID", "3"),
            ("SLURM_LOCALID", "1"),
            ("SLURM_JOB_NODELIST", "n[07-08]"),
        ];
        let found = place(&slurm).unwrap().unwrap();
        assert_eq!((found.rank, found.world, found.local_rank), (3, 4, 1));
        assert_eq!((found.host.as_str(), found.port), ("n07", 29_046));
        // A shell on the node of an allocation of four, with and without what its step says; and four by srun from that shell.
        let mut shell = slurm.to_vec();
        shell.extend([("SLURM_STEP_ID", "4294967290"), ("SLURM_PROCID", "0")]);
        shell.retain(|pair| ![slurm[1], slurm[3]].contains(pair));
        assert_eq!(place(&shell).unwrap(), None);
        shell.push(("SLURM_STEP_NUM_TASKS", "1"));
        assert_eq!(place(&shell).unwrap(), None);
        let started: Vec<(&str, &str)> =
            slurm.into_iter().chain([("SLURM_STEP_NUM_TASKS", "4")]).collect();
        assert_eq!(place(&started).unwrap().unwrap().world, 4);
        // A step of its own size in a larger allocation.
        let alone: Vec<(&str, &str)> =
            slurm.into_iter().chain([("SLURM_STEP_NUM_TASKS", "1")]).collect();
        assert_eq!(place(&alone).unwrap(), None);
        assert_eq!(place(&[]).unwrap(), None);
        assert_eq!(place(&[("RANK", "0"), ("WORLD_SIZE", "1")]).unwrap(), None);
    }

    #[test]
    fn what_is_wrong_with_the_environment_is_named() {
        let batch = [("SLURM_JOB_ID", "1"), ("SLURM_NTASKS", "4"), ("SLURM_PROCID", "0")];
        let cases: [(&[(&str, &str)], &str); 4] = [
            (&[("WORLD_SIZE", "2")], "RANK is not set"),
            (&[("RANK", "x"), ("WORLD_SIZE", "2")], "RANK=`x` is not a number"),
            (
                &[("RANK", "2"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "h"), ("MASTER_PORT", "1")],
                "rank 2 of 2",
            ),
            (&batch, "has 4 tasks"),
        ];
        for (vars, expected) in cases {
            let said = place(vars).unwrap_err().to_string();
            assert!(said.contains(expected), "{said}");
        }
    }

    #[test]
    fn lists_of_nodes_are_expanded() {
        let cases = [
            ("n1", vec!["n1"]),
            ("a[01-03,7],b2", vec!["a01", "a02", "a03", "a7", "b2"]),
            ("x,y-[9-11]-ib", vec!["x", "y-9-ib", "y-10-ib", "y-11-ib"]),
            ("r[1-2]n[1-2]", vec!["r1n1", "r1n2", "r2n1", "r2n2"]),
        ];
        for (list, names) in cases {
            assert_eq!(expand_nodes(list).unwrap(), names, "{list}");
        }
        assert_eq!(expand_nodes("a[1-"), None);
    }
}
