//! What the service takes of what a run says of itself: it refuses the rest when the run is sent, days later where it was logged offline.

use maskdiff_base::error::{Error, Result};
use maskdiff_config::Config;

use serde_json::json;

use super::about::{mode, said, tags};
use super::record::Run;

/// What names in addresses may not hold.
const OF_ADDRESSES: [char; 6] = ['/', '\\', '#', '?', '%', ':'];

/// Names of a run, with how long they may be.
const NAMES: [(&str, &str, usize); 3] = [
    ("name", "WANDB_NAME", 128),
    ("group", "WANDB_RUN_GROUP", 128),
    ("job_type", "WANDB_JOB_TYPE", 64),
];

/// The longest tag.
const TAG: usize = 64;

/// Refuses what the service would, where the run is logged at all.
pub fn check(config: &Config) -> Result<()> {
    if mode(config)?.is_none() {
        return Ok(());
    }
    let keys = &config.wandb;
    let fault = |key: &str, variable: &str, what: String, hint: &str| {
        let key = format!("wandb.{key}");
        let unset =
            config.layers.value(&key).is_none_or(|value| value.is_null() || value == json!([]));
        let message = |of: &str| format!("`{of}`: W&B takes no {what}");
        Err(match unset {
            true => {
                Error::config(message(variable), format!("{hint}; `{key}` wins over the variable"))
            }
            false => config.layers.error(&key, &message(&key), hint),
        })
    };
    check_id(config, &said(keys.id.as_ref(), "WANDB_RUN_ID"))?;
    if let Some(what) = bad_name("project", &said(keys.project.as_ref(), "WANDB_PROJECT")) {
        let hint = "name another; who owns it stands in `wandb.entity`";
        return fault("project", "WANDB_PROJECT", what, hint);
    }
    if let Some(what) = bad_name("entity", &said(keys.entity.as_ref(), "WANDB_ENTITY")) {
        let hint = "name a user or a team alone; the project stands in `wandb.project`";
        return fault("entity", "WANDB_ENTITY", what, hint);
    }
    for (key, variable, most) in NAMES {
        let own = match key {
            "name" => &keys.name,
            "group" => &keys.group,
            _ => &keys.job_type,
        };
        if let Some(what) = too_long(&said(own.as_ref(), variable), most) {
            return fault(key, variable, what, "shorten it; `wandb.notes` has room");
        }
    }
    match tags(config).iter().find_map(|tag| bad_tag(tag)) {
        Some(what) => {
            fault("tags", "WANDB_TAGS", what, "shorten or leave it out; `wandb.notes` has room")
        }
        None => Ok(()),
    }
}

/// What a run's id may be on a server.
pub(super) fn check_id(config: &Config, id: &str) -> Result<()> {
    if id.chars().count() <= 128 && ![".", ".."].contains(&id) && !id.contains(OF_ADDRESSES) {
        return Ok(());
    }
    let message = format!("`{id}` is no id of a run");
    let hint = "at most 128 characters, and none of / \\ # ? % :";
    Err(config.layers.error("wandb.id", &message, hint))
}

/// Values that `maskdiff sync` sets anew for runs, instead of those in their files.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Anew {
    /// Tags of the runs that are sent, instead of their own: as in `a,b`, or nothing for none
    #[arg(long, value_name = "TAGS", value_delimiter = ',')]
    tags: Option<Vec<String>>,
    /// The project they are sent to, instead of their own
    #[arg(long, value_name = "NAME")]
    project: Option<String>,
    /// Who owns that project, instead of the runs' own: a user or a team
    #[arg(long, value_name = "NAME")]
    entity: Option<String>,
}

impl Anew {
    /// Refuses what the service would.
    pub fn check(&self) -> Result<()> {
        let names = [("project", &self.project), ("entity", &self.entity)];
        let names = names.into_iter().filter_map(|(kind, name)| Some((kind, name.as_ref()?)));
        let names = names.map(|(kind, name)| match name.trim().is_empty() {
            true => Some(format!("empty {kind}")),
            false => bad_name(kind, name),
        });
        let tags = self.tags().into_iter().flatten();
        match names.chain(tags.map(|tag| bad_tag(&tag))).flatten().next() {
            Some(what) => Err(Error::config(format!("W&B takes no {what}"), "give another")),
            None => Ok(()),
        }
    }

    fn tags(&self) -> Option<Vec<String>> {
        let tags = self.tags.as_ref()?.iter().map(|tag| tag.trim().to_string());
        Some(tags.filter(|tag| !tag.is_empty()).collect())
    }

    /// Mends a run so that the service takes it: what is said anew, and of the rest what it takes; gives what was left out or cut.
    pub(super) fn mend(&self, run: &mut Run) -> Vec<String> {
        let mut notes = Vec::new();
        if let Some(project) = &self.project {
            run.project.clone_from(project);
        }
        if let Some(entity) = &self.entity {
            run.entity.clone_from(entity);
        }
        match self.tags() {
            Some(tags) => run.tags = tags,
            None => run.tags.retain(|tag| {
                let bad = bad_tag(tag);
                notes.extend(bad.as_ref().map(|what| format!("W&B takes no {what}: left out")));
                bad.is_none()
            }),
        }
        let names = [&mut run.display_name, &mut run.run_group, &mut run.job_type];
        for (name, (key, _, most)) in names.into_iter().zip(NAMES) {
            if let Some(what) = too_long(name, most) {
                notes.push(format!("`wandb.{key}`: W&B takes no {what}: cut"));
                *name = name.chars().take(most).collect();
            }
        }
        notes
    }
}

/// What is wrong with the name of a project or of who owns it.
fn bad_name(kind: &str, name: &str) -> Option<String> {
    match name.chars().find(|c| OF_ADDRESSES.contains(c)) {
        Some(_) => Some(format!("{kind} with any of / \\ # ? % : in it, and this is `{name}`")),
        None => too_long(name, 128),
    }
}

fn bad_tag(tag: &str) -> Option<String> {
    if tag.trim().is_empty() {
        return Some("empty tag".into());
    }
    let length = tag.chars().count();
    (length > TAG).then(|| format!("tag of more than {TAG} characters, and `{tag}` has {length}"))
}

fn too_long(name: &str, most: usize) -> Option<String> {
    let length = name.chars().count();
    (length > most).then(|| format!("more than {most} characters, and `{name}` has {length}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use maskdiff_config::{Request, load};

    #[test]
    fn what_the_service_refuses_is_refused_at_once() {
        let long = |n: usize| "x".repeat(n);
        for (word, expected) in [
            (format!("wandb.tags=[a,{}]", long(65)), "tag of more than 64 characters"),
            ("wandb.project=me/mine".into(), "project with any of / \\ # ? % : in it"),
            (format!("wandb.project={}", long(129)), "more than 128 characters"),
            (format!("wandb.name={}", long(129)), "more than 128 characters"),
            (format!("wandb.group={}", long(129)), "more than 128 characters"),
            (format!("wandb.job_type={}", long(65)), "more than 64 characters"),
            ("wandb.id=a/b".into(), "is no id of a run"),
            ("wandb.entity=a/b".into(), "`wandb.entity`: W&B takes no entity with any of / \\ #"),
            (format!("wandb.entity={}", long(129)), "more than 128 characters"),
        ] {
            let overrides = vec!["wandb.offline=true".to_string(), word.clone()];
            let config = load(&Request { overrides, ..Request::default() }).unwrap();
            let said = check(&config).unwrap_err().in_one_line();
            assert!(said.contains(expected), "{word}: {said}");
        }
        let taken =
            [format!("wandb.tags=[{},é]", long(64)), format!("wandb.name={}", "é".repeat(128))];
        let overrides = ["wandb.offline=true".to_string()].into_iter().chain(taken).collect();
        check(&load(&Request { overrides, ..Request::default() }).unwrap()).unwrap();
        // A run that is logged nowhere may be called anything.
        let overrides = vec![format!("wandb.tags=[{}]", long(65))];
        check(&load(&Request { overrides, ..Request::default() }).unwrap()).unwrap();
    }

    #[test]
    fn a_file_that_has_such_a_thing_is_mended() {
        let run = || Run {
            project: "p".into(),
            tags: vec!["a".into(), "x".repeat(80), String::new()],
            display_name: "x".repeat(200),
            ..Run::default()
        };
        let mut mended = run();
        assert_eq!(Anew::default().mend(&mut mended).len(), 3);
        assert_eq!((mended.tags, mended.display_name.len()), (vec!["a".to_string()], 128));
        let tags = Some(vec!["b".into()]);
        let anew = Anew { tags, project: Some("q".into()), entity: Some("we".into()) };
        let mut mended = Run { entity: "a/b".into(), ..run() };
        anew.mend(&mut mended);
        assert_eq!((mended.tags, mended.project), (vec!["b".to_string()], "q".to_string()));
        assert_eq!(mended.entity, "we");
        let with = |tags: Option<String>, project: Option<&str>, entity: Option<&str>| Anew {
            tags: tags.map(|tag| vec![tag]),
            project: project.map(String::from),
            entity: entity.map(String::from),
        };
        for wrong in [
            with(Some("x".repeat(65)), None, None),
            with(None, Some("a/b"), None),
            with(None, None, Some("a/b")),
            with(None, None, Some(" ")),
        ] {
            assert!(wrong.check().is_err(), "{wrong:?}");
        }
    }
}
