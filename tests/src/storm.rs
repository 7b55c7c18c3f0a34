//! Requests that a server must survive: malformed, oversized, slow, broken off, and some that are right.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::{Value, json};

/// A generator of random numbers (xorshift64*), by its seed.
pub struct Dice(u64);

impl Dice {
    /// Of a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// A number below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % n
    }

    fn one<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len())]
    }
}

/// How many answers had which status; 0 counts connections that ended without one.
pub type Counts = BTreeMap<u16, usize>;

/// Sends `requests` requests, one after the other.
pub fn storm(port: u16, seed: u64, requests: usize) -> Counts {
    let (mut dice, mut counts) = (Dice::new(seed), Counts::new());
    for _ in 0..requests {
        *counts.entry(strike(port, &mut dice)).or_default() += 1;
    }
    counts
}

/// What a client does after its request.
enum End {
    /// It is gone.
    Leaves,
    /// It says that no more comes, and reads.
    Closes,
    /// It reads.
    Waits,
}

/// One request, and the status of its answer.
fn strike(port: u16, dice: &mut Dice) -> u16 {
    let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) else { return 0 };
    let _ = stream.set_read_timeout(Some(Duration::from_secs(20)));
    let _ = stream.set_write_timeout(Some(Duration::from_secs(20)));
    let (bytes, end) = match dice.below(9) {
        0 => (noise(dice), End::Closes),
        1 => (head(dice), End::Closes),
        2 => (posted(&mutated(dice), None), End::Waits),
        3 if dice.below(4) == 0 => (asked(&looked(dice).to_string()), End::Waits),
        3 => (posted(&odd(dice).to_string(), None), End::Waits),
        4 => (posted("{", Some(dice.below(1 << 40))), End::Leaves),
        5 => (chunked(dice), End::Leaves),
        6 => {
            let mut bytes = posted(&right(dice).to_string(), None);
            bytes.truncate(dice.below(bytes.len()));
            (bytes, End::Leaves)
        }
        7 => {
            let mut body = right(dice);
            body["stream"] = json!(true);
            body["denoising"] = json!(dice.below(2) == 0);
            let end = if dice.below(2) == 0 { End::Leaves } else { End::Waits };
            (posted(&body.to_string(), None), end)
        }
        _ => {
            let end = if dice.below(8) == 0 { End::Leaves } else { End::Waits };
            (posted(&right(dice).to_string(), None), end)
        }
    };
    if stream.write_all(&bytes).is_err() {
        return 0;
    }
    match end {
        End::Leaves => {
            if dice.below(2) == 0 {
                std::thread::sleep(Duration::from_millis(dice.below(4) as u64));
            }
            return 0;
        }
        End::Closes => drop(stream.shutdown(std::net::Shutdown::Write)),
        End::Waits => {}
    }
    let mut answer = Vec::new();
    let _ = stream.take(1 << 22).read_to_end(&mut answer);
    let first = String::from_utf8_lossy(&answer[..answer.len().min(40)]).into_owned();
    first.split(' ').nth(1).and_then(|word| word.parse().ok()).unwrap_or(0)
}

fn noise(dice: &mut Dice) -> Vec<u8> {
    (0..dice.below(400)).map(|_| dice.below(256) as u8).collect()
}

/// Heads that are none, or too long.
fn head(dice: &mut Dice) -> Vec<u8> {
    let text = match dice.below(7) {
        0 => "GET\r\n\r\n".to_string(),
        1 => format!("GET /{} HTTP/1.1\r\nHost: localhost\r\n\r\n", "a".repeat(dice.below(90_000))),
        2 => format!(
            "GET / HTTP/1.1\r\nHost: localhost\r\n{}\r\n",
            "X: y\r\n".repeat(dice.below(400))
        ),
        3 => format!(
            "GET / HTTP/1.1\r\nHost: localhost\r\nX: {}\r\n\r\n",
            "b".repeat(dice.below(200_000))
        ),
        4 => "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: -4\r\n\r\n{}"
            .into(),
        5 => "BREW /v1/completions HTTP/9.9\r\n\r\n".into(),
        _ => {
            let path = dice.one(&[
                "/",
                "/../../etc/passwd",
                "/v1",
                "/metrics",
                "/v1/models",
                "/assets/draw.js",
                "/assets/%2e%2e/Cargo.toml",
                "/runs/data",
                "/%00",
                "//",
            ]);
            format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        }
    };
    text.into_bytes()
}

fn posted(body: &str, length: Option<usize>) -> Vec<u8> {
    to("/v1/completions", body, length)
}

fn asked(body: &str) -> Vec<u8> {
    to("/v1/likeliest", body, None)
}

fn to(path: &str, body: &str, length: Option<usize>) -> Vec<u8> {
    let length = length.unwrap_or(body.len());
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
    );
    [head.as_bytes(), body.as_bytes()].concat()
}

/// A question for the likeliest tokens of a position, right or not.
fn looked(dice: &mut Dice) -> Value {
    let tokens: Vec<Value> = (0..dice.below(70))
        .map(|_| if dice.below(3) == 0 { json!(null) } else { json!(dice.below(40)) })
        .collect();
    json!({"tokens": tokens, "position": dice.below(70), "top": dice.below(8)})
}

fn chunked(dice: &mut Dice) -> Vec<u8> {
    let mut text =
        "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
            .to_string();
    for _ in 0..dice.below(5) {
        text += *dice.one(&[
            "5\r\n{\"a\":\r\n",
            "zz\r\n",
            "ffffffffffffffff\r\n",
            "0\r\n\r\n",
            "1\r\n",
        ]);
    }
    text.into_bytes()
}

/// A body that is right.
fn right(dice: &mut Dice) -> Value {
    let sampler = *dice.one(&["first_hitting", "confidence", "remdm"]);
    let mut body = json!({"sampler": sampler, "seed": dice.below(9), "number": dice.below(9), "prompt": "Ben has a"});
    if sampler == "remdm" {
        body["steps"] = json!(1 + dice.below(6));
    }
    body["max_tokens"] = json!(1 + dice.below(8));
    body["n"] = json!(1 + dice.below(3));
    body
}

/// A body of which some bytes are others.
fn mutated(dice: &mut Dice) -> String {
    let mut bytes = right(dice).to_string().into_bytes();
    for _ in 0..1 + dice.below(4) {
        let at = dice.below(bytes.len());
        match dice.below(3) {
            0 => bytes[at] = b' ' + dice.below(94) as u8,
            1 => bytes.truncate(at + 1),
            _ => bytes.insert(at, *dice.one(b"{}[]\",:0e-\\")),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A body with a value that no key of its name has.
fn odd(dice: &mut Dice) -> Value {
    let keys = [
        "prompt",
        "max_tokens",
        "n",
        "seed",
        "stop",
        "sampler",
        "steps",
        "stream",
        "logprobs",
        "model",
        "echo",
        "qqq",
        "temperature",
        "order",
        "context",
        "semi_ar",
        "argument",
        "predictor",
        "top_p",
        "logit_bias",
    ];
    let deep = (0..200).fold(json!(1), |inner, _| json!([inner]));
    let values = [
        json!(null),
        json!(-1),
        json!(1e300),
        json!(0.5),
        json!("x"),
        json!([]),
        json!([[[]]]),
        json!({}),
        json!("${seed}"),
        json!(u64::MAX),
        json!("a".repeat(3000)),
        json!([1, "a", null]),
        json!(true),
        deep,
        json!("\u{0}\u{202e}"),
        json!("[MASK:99999999]"),
        json!([-1, 4]),
    ];
    let mut body = right(dice);
    for _ in 0..1 + dice.below(2) {
        body[*dice.one(&keys)] = dice.one(&values).clone();
    }
    body
}
