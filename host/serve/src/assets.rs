//! The pages and what they are made of: files that the server holds in itself, so that a page needs no other network.

use std::sync::LazyLock;

use axum::Router;
use axum::body::Body;
use axum::extract::Path;
use axum::http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use axum::routing::get;
use maskdiff_records::page;
use sha2::{Digest as _, Sha256};

use crate::fault::Fault;

/// What a page may load and ask: its own server.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

const DRAW: &str = include_str!("../assets/draw.html");
const RUNS: &str = include_str!("../assets/runs.html");
const SCRIPT: &str = "text/javascript; charset=utf-8";
const STYLE: &str = "text/css; charset=utf-8";

/// A file with its name, its content type, and its hash.
#[derive(Debug)]
struct Asset {
    name: &'static str,
    kind: &'static str,
    text: &'static str,
    tag: String,
}

static ASSETS: LazyLock<Vec<Asset>> = LazyLock::new(|| {
    let own = [
        ("draw.js", SCRIPT, include_str!("../assets/draw.js")),
        ("settings.js", SCRIPT, include_str!("../assets/settings.js")),
        ("canvas.js", SCRIPT, include_str!("../assets/canvas.js")),
        ("draw.css", STYLE, include_str!("../assets/draw.css")),
        ("runs.js", SCRIPT, include_str!("../assets/runs.js")),
        ("door.js", SCRIPT, include_str!("../assets/door.js")),
        ("report.css", STYLE, page::STYLE),
    ];
    let shared = page::SCRIPTS.iter().map(|(name, text)| (*name, SCRIPT, *text));
    let all = own.into_iter().chain(shared);
    all.map(|(name, kind, text)| Asset { name, kind, text, tag: tag(text) }).collect()
});

/// What changes with a text.
pub(crate) fn tag(text: &str) -> String {
    let hash = Sha256::digest(text);
    let hex: String = hash.iter().take(12).map(|byte| format!("{byte:02x}")).collect();
    format!("\"{hex}\"")
}

/// Whether a client has what has this tag.
pub(crate) fn has(headers: &HeaderMap, tag: &str) -> bool {
    let said = headers.get(header::IF_NONE_MATCH).and_then(|said| said.to_str().ok());
    said.is_some_and(|said| said.split(',').any(|one| one.trim().trim_start_matches("W/") == tag))
}

/// The pages: `/` where a model is served, `/runs` where runs are, and their files.
pub(crate) fn router(model: bool, runs: bool) -> Router {
    let mut router = Router::new().route("/assets/{name}", get(asset));
    if model {
        let to_runs = if runs { "<a href=\"/runs\">Runs</a>" } else { "" };
        let text = DRAW.replacen("__RUNS__", to_runs, 1);
        router = router.route("/", get(move |headers| html(headers, text.clone())));
    } else if runs {
        router = router.route("/", get(to_runs));
    }
    if runs {
        let to_draw = if model { "<a href=\"/\">Draw text</a>" } else { "" };
        let text = RUNS.replacen("__DRAW__", to_draw, 1);
        router = router.route("/runs", get(move |headers| html(headers, text.clone())));
    }
    router
}

async fn to_runs() -> Response<Body> {
    let mut answer = Response::new(Body::empty());
    *answer.status_mut() = StatusCode::TEMPORARY_REDIRECT;
    answer.headers_mut().insert(header::LOCATION, HeaderValue::from_static("/runs"));
    answer
}

async fn html(headers: HeaderMap, text: String) -> Response<Body> {
    let tag = tag(&text);
    let mut answer = tagged(&headers, "text/html; charset=utf-8", &tag, Body::from(text));
    let headers = answer.headers_mut();
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    answer
}

async fn asset(Path(name): Path<String>, headers: HeaderMap) -> Response<Body> {
    match ASSETS.iter().find(|asset| asset.name == name) {
        Some(asset) => tagged(&headers, asset.kind, &asset.tag, Body::from(asset.text)),
        None => Fault::new(StatusCode::NOT_FOUND, "not_found", "no page has a file of this name")
            .answer(),
    }
}

/// A file, or that it is still the one that the client has.
pub(crate) fn tagged(
    headers: &HeaderMap,
    kind: &'static str,
    tag: &str,
    body: Body,
) -> Response<Body> {
    let mut answer = Response::new(body);
    if has(headers, tag) {
        *answer.status_mut() = StatusCode::NOT_MODIFIED;
        *answer.body_mut() = Body::empty();
    }
    let own = answer.headers_mut();
    own.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    // It is asked again each time, for a server may be a newer one.
    own.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    if let Ok(tag) = HeaderValue::from_str(tag) {
        own.insert(header::ETAG, tag);
    }
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_and_all_its_files_are_small_and_there() {
        for page in [DRAW, RUNS] {
            let mut bytes = page.len();
            for link in page.split("/assets/").skip(1) {
                let name = link.split('"').next().unwrap();
                let asset = ASSETS.iter().find(|asset| asset.name == name);
                bytes += asset.unwrap_or_else(|| panic!("no `{name}`")).text.len();
            }
            assert!(bytes < 150_000, "{bytes} bytes");
            assert!(!page.contains("http://") && !page.contains("https://"), "another network");
        }
    }

    #[test]
    fn who_has_a_file_is_told_so() {
        let tag = tag("a");
        let mut headers = HeaderMap::new();
        assert!(!has(&headers, &tag));
        let list = format!("\"x\", W/{tag}");
        headers.insert(header::IF_NONE_MATCH, HeaderValue::from_str(&list).unwrap());
        assert!(has(&headers, &tag) && !has(&headers, &super::tag("b")));
    }
}
