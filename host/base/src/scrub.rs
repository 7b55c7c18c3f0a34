//! Texts without the secrets in them: passwords, signatures and tokens of addresses, and values that are a secret as a whole.

use std::sync::LazyLock;

use regex::Regex;

/// What stands for a secret where nobody reads it back.
pub const HIDDEN: &str = "(secret)";

/// Keys whose whole value is a secret: a hook's address is its password, and a command may have one in it.
const WHOLE: &[&str] = &["alert.on_finish", "alert.on_crash"];

/// How a reference begins.
pub const REFERENCE: &str = "secret:";

/// The user and password of an address.
static USER: LazyLock<Option<Regex>> =
    LazyLock::new(|| Regex::new(r"(?i)\b([a-z][a-z0-9+.-]*://)[^\s/?#'`]*@").ok());

/// A part of an address' query that is a key to something.
static QUERY: LazyLock<Option<Regex>> = LazyLock::new(|| {
    let parts = "token|secret|passw|signature|credential|api[-_]?key|access[-_]?key|authorization";
    let names = format!(r"[^=&?#\s]*(?:{parts})[^=&#\s]*|auth|sig|key|pwd|code");
    Regex::new(&format!(r"(?i)([?&](?:{names})=)(?:\(secret\)|[^&#\s'`)]+)")).ok()
});

/// A text without passwords, signatures and tokens of the addresses in it.
pub fn scrubbed(text: &str) -> String {
    if !text.contains("://") && !text.contains('?') {
        return text.to_string();
    }
    let replaced = |pattern: &LazyLock<Option<Regex>>, text: &str, with: &str| match &**pattern {
        Some(pattern) => pattern.replace_all(text, with).into_owned(),
        None => text.to_string(),
    };
    let text = replaced(&USER, text, "${1}(secret)@");
    replaced(&QUERY, &text, "${1}(secret)")
}

/// Whether the value of a dotted key must not be shown.
pub fn is_secret(key: &str, value: &str) -> bool {
    !value.starts_with(REFERENCE)
        && !value.is_empty()
        && (WHOLE.contains(&key) || scrubbed(value) != value)
}

/// A word of a command line as others may see it.
pub fn hidden(word: &str) -> String {
    let Some((key, value)) = word.split_once('=') else { return scrubbed(word) };
    let bare = key.trim_start_matches(['+', '~']);
    if WHOLE.contains(&bare) || is_secret(bare, value) {
        return format!("{key}={HIDDEN}");
    }
    word.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_lose_what_opens_them_and_nothing_else() {
        for (text, shown) in [
            ("http://me:pa:ss@proxy:3128/x", "http://(secret)@proxy:3128/x"),
            (
                "https://ghp_abc@github.com/a and s3://k:s@b/c",
                "https://(secret)@github.com/a and s3://(secret)@b/c",
            ),
            (
                "cannot get `https://b.s3.amazonaws.com/o?X-Amz-Algorithm=A&X-Amz-Credential=AK%2F1&X-Amz-Signature=dead`",
                "cannot get `https://b.s3.amazonaws.com/o?X-Amz-Algorithm=A&X-Amz-Credential=(secret)&X-Amz-Signature=(secret)`",
            ),
            ("https://h/a?token=t&n=1#x", "https://h/a?token=(secret)&n=1#x"),
            ("https://h/a?sv=1&sig=ab%3D", "https://h/a?sv=1&sig=(secret)"),
            (
                "s3://bucket/run and a@b.c, https://h/x@y?page=2",
                "s3://bucket/run and a@b.c, https://h/x@y?page=2",
            ),
            ("what is this? key=value", "what is this? key=value"),
        ] {
            assert_eq!(scrubbed(text), shown);
            assert_eq!(scrubbed(shown), shown, "once is enough");
        }
    }

    #[test]
    fn words_are_shown_without_their_secrets() {
        for (word, shown) in [
            ("alert.on_finish=https://hooks.example.com/T/B/x", "alert.on_finish=(secret)"),
            ("+alert.on_crash=curl -H 'Bearer x' y", "+alert.on_crash=(secret)"),
            ("checkpointing.mirror=s3://k:s@b/p", "checkpointing.mirror=(secret)"),
            ("launcher.setup=[\"export HTTPS_PROXY=http://u:p@h\"]", "launcher.setup=(secret)"),
            ("checkpointing.mirror=s3://b/p", "checkpointing.mirror=s3://b/p"),
            ("https://u:p@h/x", "https://(secret)@h/x"),
            ("optim.lr=1e-3", "optim.lr=1e-3"),
        ] {
            assert_eq!(hidden(word), shown);
        }
    }
}
