//! Whether the files that a configuration names are there, before anything is read or fetched.

use std::path::Path;

use maskdiff_base::error::{Error, Result};
use maskdiff_base::files::look;
use maskdiff_config::Config;

use super::corpora::{FILES, LazyHub, OWN, Part, Role, Spec, at_key};
use super::{check_use, is_stories, labels, listing, prepare, sft};

/// Looks for the text files, the tokenizer and the chat template of a run. What the hub has is not asked for.
///
/// # Errors
/// A file that is missing, a folder or a pattern without files, a corpus that does not exist. `given` says that a checkpoint has the
/// tokenizer.
pub fn check_files(config: &Config, given: bool) -> Result<()> {
    if is_stories(config)? {
        return Ok(());
    }
    let data = &config.data;
    if data.train == sft::NAME {
        for (key, paths) in [("data.path", &data.path), ("data.valid_path", &data.valid_path)] {
            let listed = paths.as_ref().map(|paths| listing::list(paths, sft::ENDINGS));
            let _ = listed.transpose().map_err(|e| at_key(config, key, e))?;
        }
        let _ = sft::template(config)?;
    } else {
        let hub = LazyHub::default();
        let here = |name: &str| -> Result<bool> {
            let of_hub = !FILES.contains(&name) && OWN.contains(&name);
            Ok(FILES.contains(&name) || !of_hub && Spec::named(name)?.format == "text8")
        };
        let valid = data.valid.as_ref().unwrap_or(&data.train);
        let find = |name: &str, role| match here(name)? {
            true => Part::find(config, role, &hub),
            false => Ok(None),
        };
        let train = find(&data.train, Role::Train)?;
        let of_valid = find(valid, Role::Valid)?;
        if let Some(train) = &train {
            check_use(config, train, of_valid.is_some() || !here(valid)?)?;
        }
        labels::check(config)?;
    }
    if given { Ok(()) } else { tokenizer(&data.tokenizer_name_or_path) }
}

/// A tokenizer that is a file or a folder must be there.
fn tokenizer(name: &str) -> Result<()> {
    if look::names_something(name)? || !prepare::is_path(name) {
        return Ok(());
    }
    Err(Error::io("read", Path::new(name), &std::io::ErrorKind::NotFound.into()))
}
