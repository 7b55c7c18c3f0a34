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

/// How many requests of each case were answered with which status; 0 counts connections that ended without an answer.
pub type Counts = BTreeMap<(&'static str, u16), usize>;

/// Sends `requests` requests, one after the other.
///
/// # Panics
/// Where a request is answered with a status that is wrong for it.
pub fn storm(port: u16, seed: u64, requests: usize) -> Counts {
    let (mut dice, mut counts) = (Dice::new(seed), Counts::new());
    for _ in 0..requests {
        let case = Case::any(&mut dice);
        let status = case.strike(port, &mut dice);
        let right = matches!(case.end, End::Leaves) || case.right.contains(&status);
        let shown = String::from_utf8_lossy(&case.bytes[..case.bytes.len().min(600)]);
        assert!(right, "{}: answered with {status}, not {:?}: {shown}", case.name, case.right);
        *counts.entry((case.name, status)).or_default() += 1;
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

/// A request, and the statuses that are right for it.
struct Case {
    name: &'static str,
    bytes: Vec<u8>,
    end: End,
    right: &'static [u16],
}

/// What is answered to a request that is right: the queue may be full.
const DRAWN: &[u16] = &[200, 429];
/// The same to one that may be right.
const READ: &[u16] = &[200, 400, 429];
/// What a head that is too long gets; the server reads no more of it, and its answer may be lost.
const LONG: &[u16] = &[0, 414, 431];

impl Case {
    fn any(dice: &mut Dice) -> Self {
        let new = |name, bytes, end, right| Self { name, bytes, end, right };
        let leaves = |name, bytes| new(name, bytes, End::Leaves, &[]);
        match dice.below(10) {
            0 => new("noise", noise(dice), End::Closes, &[0, 400]),
            1 => Self::head(dice),
            2 => new("mutated", posted(&mutated(dice), None), End::Waits, READ),
            3 if dice.below(4) == 0 => {
                let (body, right) = looked(dice);
                new("likeliest", asked(&body.to_string()), End::Waits, right)
            }
            3 => {
                let (body, right) = odd(dice);
                new("odd", posted(&body.to_string(), None), End::Waits, right)
            }
            4 if dice.below(4) == 0 => {
                new("large", posted("{", Some(1 + (1 << 20))), End::Waits, &[413])
            }
            4 => leaves("endless", posted("{", Some(dice.below(1 << 40)))),
            5 => leaves("chunked", chunked(dice)),
            6 => {
                let mut bytes = posted(&right(dice).to_string(), None);
                bytes.truncate(dice.below(bytes.len()));
                leaves("cut", bytes)
            }
            7 => {
                let mut body = right(dice);
                body["stream"] = json!(true);
                body["denoising"] = json!(dice.below(2) == 0);
                let bytes = posted(&body.to_string(), None);
                match dice.below(2) {
                    0 => leaves("left stream", bytes),
                    _ => new("stream", bytes, End::Waits, DRAWN),
                }
            }
            8 => Self::unknown(dice),
            _ if dice.below(8) == 0 => leaves("left", posted(&right(dice).to_string(), None)),
            _ => new("right", posted(&right(dice).to_string(), None), End::Waits, DRAWN),
        }
    }

    /// Heads that are none, too long, or ask for what is there or not.
    fn head(dice: &mut Dice) -> Self {
        // A part that is read at once may be longer than the longest head: around that, either answer is right.
        let by = |length: usize, most: usize, short, long| match length {
            length if length + most / 20 < most => short,
            length if length > 2 * most + most / 20 => long,
            _ => &[0, 200, 404, 414, 431][..],
        };
        let (path, more, right): (String, String, &[u16]) = match dice.below(8) {
            0 => {
                let length = dice.below(200_000);
                (
                    format!("/{}", "a".repeat(length)),
                    String::new(),
                    by(length, 65_534, &[404], LONG),
                )
            }
            1 => {
                let lines = dice.below(400);
                ("/".into(), "X: y\r\n".repeat(lines), by(lines, 98, &[200], &[431]))
            }
            2 => {
                let length = dice.below(200_000);
                (
                    "/".into(),
                    format!("X: {}\r\n", "b".repeat(length)),
                    by(length, 65_000, &[200], LONG),
                )
            }
            3 => {
                let (text, right): (&str, &[u16]) = *dice.one(&[
                    ("GET\r\n\r\n", &[400][..]),
                    ("BREW /v1/completions HTTP/9.9\r\n\r\n", &[400, 505]),
                    ("POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: -4\r\n\r\n{}", &[400]),
                    ("POST /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", &[405]),
                    ("GET /v1/models HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n", &[403]),
                ]);
                return Self { name: "head", bytes: text.into(), end: End::Waits, right };
            }
            _ => {
                let (path, right): (&str, &[u16]) = *dice.one(&[
                    ("/", &[200][..]),
                    ("/../../etc/passwd", &[404]),
                    ("/v1", &[404]),
                    ("/metrics", &[200]),
                    ("/v1/models", &[200]),
                    ("/v1/models/none", &[404]),
                    ("/assets/draw.js", &[200]),
                    ("/assets/%2e%2e/Cargo.toml", &[404]),
                    ("/runs/data", &[404]),
                    ("/%00", &[404]),
                    ("//", &[404]),
                ]);
                (path.into(), String::new(), right)
            }
        };
        let text =
            format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n{more}Connection: close\r\n\r\n");
        Self { name: "head", bytes: text.into_bytes(), end: End::Waits, right }
    }

    /// Bodies with one thing wrong.
    fn unknown(dice: &mut Dice) -> Self {
        let mut body = right(dice);
        let (key, value, right): (&str, Value, &[u16]) = match dice.below(6) {
            0 => ("stepz", json!(4), &[400]),
            1 => ("max_tokens", json!("4"), &[400]),
            2 => ("seed", json!(-1), &[400]),
            3 => ("prompt", json!("spaceship"), &[400]),
            4 => ("model", json!("gpt"), &[404]),
            _ => ("sampler", json!("first_hiting"), &[400]),
        };
        body[key] = value;
        Self { name: "wrong", bytes: posted(&body.to_string(), None), end: End::Waits, right }
    }

    /// Sends it: the status of its answer.
    fn strike(&self, port: u16, dice: &mut Dice) -> u16 {
        let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) else { return 0 };
        let _ = stream.set_read_timeout(Some(Duration::from_secs(30)));
        let _ = stream.set_write_timeout(Some(Duration::from_secs(30)));
        if stream.write_all(&self.bytes).is_err() {
            return 0;
        }
        match self.end {
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
}

fn noise(dice: &mut Dice) -> Vec<u8> {
    (0..dice.below(400)).map(|_| dice.below(256) as u8).collect()
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
fn looked(dice: &mut Dice) -> (Value, &'static [u16]) {
    let tokens: Vec<Value> = (0..dice.below(70))
        .map(|_| if dice.below(3) == 0 { json!(null) } else { json!(dice.below(40)) })
        .collect();
    let (count, position, top) = (tokens.len(), dice.below(70), dice.below(8));
    let fits = position < count && top > 0 && count <= 64;
    let body = json!({"tokens": tokens, "position": position, "top": top});
    (body, if fits { READ } else { &[400] })
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
fn odd(dice: &mut Dice) -> (Value, &'static [u16]) {
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
    let said = |key: &str| !body[key].is_null();
    let right = if said("model") {
        // What is nested too deeply is no JSON to the server.
        &[400, 404][..]
    } else if ["qqq", "semi_ar", "argument"].into_iter().any(said) {
        &[400]
    } else {
        READ
    };
    (body, right)
}
