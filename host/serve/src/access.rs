//! Whom the server answers: keys, and pages of other sites.

use std::net::SocketAddr;

use axum::http::{HeaderMap, StatusCode, header};
use sha2::{Digest as _, Sha256};

use crate::fault::Fault;

/// What clients must send, kept as its hash: comparing takes as long whatever is wrong with it.
#[derive(Clone)]
pub struct Key([u8; 32]);

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key")
    }
}

impl Key {
    /// Of a secret.
    pub fn new(secret: &str) -> Self {
        Self(Sha256::digest(secret).into())
    }

    /// Whether it is this secret.
    fn fits(&self, secret: &str) -> bool {
        let given: [u8; 32] = Sha256::digest(secret).into();
        // Every byte counts, so that the time says nothing of the first that differs.
        self.0.iter().zip(given).fold(0, |differs, (a, b)| differs | (a ^ b)) == 0
    }
}

/// Who is answered.
#[derive(Debug)]
pub(crate) struct Access {
    key: Option<Key>,
    loopback: bool,
}

/// Whether a path needs no key. The pages hold nothing of the model or the runs: what they show, they ask for with the key.
fn is_open(path: &str) -> bool {
    ["/", "/health", "/runs"].contains(&path) || path.starts_with("/assets/")
}

impl Access {
    /// To a server at an address.
    pub(crate) fn new(key: Option<Key>, address: SocketAddr) -> Self {
        Self { key, loopback: address.ip().is_loopback() }
    }

    /// Whether a request may be answered. A page of another site must not reach a server of this machine through its user's browser, not even
    /// under a name of its own that leads here.
    pub(crate) fn admits(&self, path: &str, headers: &HeaderMap) -> Result<(), Fault> {
        let text =
            |name: header::HeaderName| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
        let host = text(header::HOST);
        let name = |host: &str| match host.rsplit_once(':') {
            Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => {
                name.to_string()
            }
            _ => host.to_string(),
        };
        let forbidden = |said: &str| Fault::new(StatusCode::FORBIDDEN, "forbidden", said);
        let local = |name: &str| {
            // A name may begin with 127. and lead anywhere.
            let is_address = |ip: std::net::Ipv4Addr| ip.is_loopback();
            name.eq_ignore_ascii_case("localhost")
                || name == "[::1]"
                || name.parse().is_ok_and(is_address)
        };
        if self.loopback && self.key.is_none() && !host.is_none_or(|host| local(&name(host))) {
            return Err(forbidden(
                "this server answers to the names of its own machine: localhost, 127.0.0.1, [::1]",
            ));
        }
        if let Some(origin) = text(header::ORIGIN) {
            let is_host = |rest: &str| host.is_some_and(|host| rest.eq_ignore_ascii_case(host));
            let of_here = origin.split_once("://").is_some_and(|(_, rest)| is_host(rest));
            if !of_here {
                return Err(forbidden("pages of other sites may not ask this server"));
            }
        }
        let Some(key) = self.key.as_ref().filter(|_| !is_open(path)) else { return Ok(()) };
        let given = text(header::AUTHORIZATION).unwrap_or_default();
        let secret = given.split_once(' ').filter(|(kind, _)| kind.eq_ignore_ascii_case("bearer"));
        match secret.is_some_and(|(_, secret)| key.fits(secret.trim())) {
            true => Ok(()),
            false => Err(Fault::new(
                StatusCode::UNAUTHORIZED,
                "invalid_api_key",
                "this server wants its key: send `Authorization: Bearer KEY`",
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_fits_itself_alone() {
        let key = Key::new("secret");
        assert!(key.fits("secret"));
        for other in ["", "secre", "secret ", "Secret", "secret0"] {
            assert!(!key.fits(other), "{other}");
        }
        assert_eq!(format!("{key:?}"), "Key");
    }

    /// Names of machines are the same in capital letters.
    #[test]
    fn the_machine_has_its_names() {
        let access = Access::new(None, ([127, 0, 0, 1], 80).into());
        let admits = |host: &'static str, origin: Option<&'static str>| {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, header::HeaderValue::from_static(host));
            if let Some(origin) = origin {
                headers.insert(header::ORIGIN, header::HeaderValue::from_static(origin));
            }
            access.admits("/v1/models", &headers).is_ok()
        };
        assert!(admits("LOCALHOST:80", None) && admits("LocalHost", None));
        assert!(admits("LOCALHOST:80", Some("http://localhost:80")));
        assert!(!admits("LOCALHOST.evil", None) && !admits("localhost", Some("http://evil")));
    }

    #[test]
    fn pages_are_open_and_what_they_show_is_not() {
        let access = Access::new(Some(Key::new("secret")), ([127, 0, 0, 1], 80).into());
        for path in ["/", "/runs", "/assets/draw.js", "/health"] {
            assert!(access.admits(path, &HeaderMap::new()).is_ok(), "{path}");
        }
        for path in ["/runs/data", "/v1/models", "/metrics", "/v1/likeliest"] {
            assert!(access.admits(path, &HeaderMap::new()).is_err(), "{path}");
        }
    }
}
