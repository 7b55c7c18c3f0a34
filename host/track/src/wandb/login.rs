//! Where the server is, and the key for it: `WANDB_BASE_URL`, `WANDB_API_KEY`, or a line of `~/.netrc`.

use std::path::PathBuf;

use maskdiff_base::error::{Error, Result};
use maskdiff_base::files::look;
use maskdiff_base::process;
use reqwest::Url;

/// A server and who we are there. The key shows nowhere, not even in debugging.
#[derive(Clone)]
pub(super) struct Login {
    pub(super) base: Url,
    pub(super) key: String,
}

impl std::fmt::Debug for Login {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Login({})", self.base)
    }
}

const SERVICE: &str = "https://api.wandb.ai";

impl Login {
    /// From the environment and the files of the user.
    pub(super) fn find() -> Result<Self> {
        let set = |name: &str| std::env::var(name).ok().filter(|value| !value.trim().is_empty());
        let text = set("WANDB_BASE_URL").unwrap_or_else(|| SERVICE.into());
        let wrong = |why: &str| {
            let message = format!("WANDB_BASE_URL `{text}` {why}");
            Error::config(message, format!("as in {SERVICE}"))
        };
        let base = Url::parse(text.trim_end_matches('/'));
        if text.contains('@') {
            let message =
                "WANDB_BASE_URL holds a name or a password, which an address shows to everybody";
            return Err(Error::config(
                message,
                "leave them out: the key comes from WANDB_API_KEY or ~/.netrc",
            ));
        }
        let base = base.map_err(|e| wrong(&e.to_string()))?;
        let host = base.host_str().ok_or_else(|| wrong("names no host"))?;
        let key = set("WANDB_API_KEY").or_else(|| from_netrc(host));
        let Some(key) = key else {
            return Err(Error::config(
                format!("there is no API key for {host}"),
                "set WANDB_API_KEY, or put `machine HOST login user password KEY` into ~/.netrc",
            ));
        };
        Ok(Self { base, key: key.trim().to_string() })
    }
}

/// The password of a machine in the user's netrc file.
fn from_netrc(host: &str) -> Option<String> {
    let home = || process::home_folder().map(|home| home.join(".netrc"));
    let file = std::env::var_os("NETRC").map(PathBuf::from).or_else(home)?;
    password(&look::optional(&file)?, host)
}

fn password(netrc: &str, host: &str) -> Option<String> {
    let lines = netrc.lines().map(|line| line.split('#').next().unwrap_or_default());
    let words: Vec<&str> = lines.flat_map(str::split_whitespace).collect();
    let mut here = false;
    for pair in words.windows(2) {
        match pair[0] {
            "machine" => here = pair[1] == host,
            "password" if here => return Some(pair[1].to_string()),
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_that_of_its_machine() {
        let netrc = "machine a.com login user password one # note\nmachine api.wandb.ai\n  login user\n  password two\n";
        assert_eq!(password(netrc, "api.wandb.ai").as_deref(), Some("two"));
        assert_eq!(password(netrc, "a.com").as_deref(), Some("one"));
        assert_eq!(password(netrc, "b.com"), None);
    }

    #[test]
    fn a_key_is_not_printed() {
        let login = Login { base: Url::parse(SERVICE).unwrap(), key: "secret".into() };
        assert!(!format!("{login:?}").contains("secret"));
    }
}
