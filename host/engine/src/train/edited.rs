//! Files of code that the run read at its start. It does not read them again, and warns once a file has changed.

use std::path::PathBuf;
use std::time::SystemTime;

use maskdiff_base::files::look;
use maskdiff_records::used::UsedPlugin;

/// The files whose classes a run uses, each with the time of its last change.
#[derive(Debug, Default)]
pub struct Edited(Vec<(PathBuf, Option<SystemTime>)>);

impl Edited {
    /// Those among what a run uses: built plugins have a version of the contract.
    pub fn of(used: &[UsedPlugin]) -> Self {
        let classes = used.iter().filter(|one| one.api_version.is_empty());
        Self(classes.map(|one| (one.file.clone(), changed(&one.file))).collect())
    }

    /// Those that have changed since the last look.
    pub(super) fn look(&mut self) -> Vec<PathBuf> {
        let mut edited = Vec::new();
        for (file, known) in &mut self.0 {
            let now = changed(file);
            // An editor replaces files: one that is gone for a moment is no change.
            if now.is_some() && now != *known {
                *known = now;
                edited.push(file.clone());
            }
        }
        edited
    }
}

fn changed(file: &std::path::Path) -> Option<SystemTime> {
    look::optional_found(file)?.modified().ok()
}
