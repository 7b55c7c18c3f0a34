//! `~` and `~user` at the start of a path are a home folder: no shell sees it behind `run.dir=`.

use std::path::PathBuf;
use std::process::Command;

use maskdiff_base::error::{Error, Result};
use maskdiff_base::files::look;
use maskdiff_base::places::Places;

/// The path with the home folder in it, where it begins with one.
pub fn expand(path: &str) -> Result<String> {
    expand_by(path, home_of)
}

/// The folders of `MASKDIFF_PLUGIN_PATH`, where no shell replaces a `~` behind a colon. One without a home stays as it is: there is no
/// such folder.
pub fn plugin_folders() -> Vec<PathBuf> {
    let whole = |folder: PathBuf| match folder.to_str().map(expand) {
        Some(Ok(path)) => PathBuf::from(path),
        _ => folder,
    };
    Places::of_environment().into_iter().map(whole).collect()
}

fn expand_by(path: &str, home_of: impl Fn(&str) -> Option<String>) -> Result<String> {
    let Some(rest) = path.strip_prefix('~') else { return Ok(path.to_string()) };
    let (user, rest) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    match home_of(user) {
        Some(home) if home.len() > 1 => Ok(format!("{}{rest}", home.trim_end_matches('/'))),
        Some(home) => Ok(if rest.is_empty() { home } else { rest.to_string() }),
        // As a shell does.
        None if look::names_something(path)? => Ok(path.to_string()),
        None => {
            let whose = if user.is_empty() {
                "you have no home folder: HOME is not set".to_string()
            } else {
                format!("there is no user `{user}`")
            };
            Err(Error::config(
                format!("`{path}` begins with a home folder, and {whose}"),
                format!("`./{path}` is a path of that name in the current folder"),
            ))
        }
    }
}

/// The home folder of a user, or for an empty name of who runs this.
fn home_of(user: &str) -> Option<String> {
    if user.is_empty() {
        return Some(std::env::home_dir()?.to_str()?.to_string()).filter(|home| !home.is_empty());
    }
    // The system's own answer, which knows the users of a cluster too: name:password:uid:gid:about:home:shell.
    let said = Command::new("getent").args(["passwd", "--", user]).output().ok()?;
    let line = String::from_utf8(said.stdout).ok()?;
    let home = line.trim_end().split(':').nth(5)?;
    (said.status.success() && !home.is_empty()).then(|| home.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leading_tilde_is_a_home_folder() {
        let home = |user: &str| match user {
            "" => Some("/home/me".to_string()),
            "eve" => Some("/people/eve/".to_string()),
            "root" => Some("/".to_string()),
            _ => None,
        };
        for (path, expected) in [
            ("~", "/home/me"),
            ("~/runs/x", "/home/me/runs/x"),
            ("~eve/runs", "/people/eve/runs"),
            ("~root/x", "/x"),
            ("~root", "/"),
            ("a/~/b", "a/~/b"),
            ("./~/b", "./~/b"),
            ("gpt2", "gpt2"),
        ] {
            assert_eq!(expand_by(path, home).unwrap(), expected, "{path}");
        }
        let said = expand_by("~nobody-here/x", home).unwrap_err().in_one_line();
        assert!(said.contains("no user `nobody-here`"), "{said}");
        assert!(said.contains("`./~nobody-here/x`"), "{said}");
        assert_eq!(home_of("root").as_deref(), Some("/root"));
    }
}
