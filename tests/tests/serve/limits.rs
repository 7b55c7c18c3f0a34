//! Keys and other sites, limits, clients that leave, attacks, the end.

use std::io::Read as _;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use maskdiff_tests::run::maskdiff;
use maskdiff_tests::served::{Server, folder, read, send};
use maskdiff_tests::storm::{Counts, storm};
use serde_json::{Value, json};

use super::{ids, long, sampled, serve, wait};

#[test]
fn other_machines_need_a_key() {
    let refused =
        |words: &[&str]| maskdiff(folder(), &[&["serve", "run", "--port", "0"], words].concat());
    refused(&["--host", "0.0.0.0"]).expect(2).says(&["other machines", "--api-key-file"]);
    refused(&["--api-key-file", "none.txt"]).expect(2).says(&["there is no file"]);
    std::fs::write(folder().join("key.txt"), "short\n").expect("written");
    refused(&["--api-key-file", "key.txt"]).expect(2).says(&["5 characters"]);
    std::fs::write(folder().join("key.txt"), "a-long-secret\nnot this\n").expect("written");
    let server = serve(&["--host", "0.0.0.0", "--api-key-file", "key.txt"]);
    assert_eq!(server.get("/health").status, 200);
    assert_eq!(server.get("/v1/models").status, 401);
    for (head, status) in [
        ("Authorization: Bearer a-long-secret\r\n", 200),
        ("Authorization: bearer a-long-secret\r\nHost: some.name\r\n", 200),
        ("Authorization: Bearer a-long-secreT\r\n", 401),
        ("Authorization: Bearer not this\r\n", 401),
        ("Authorization: Basic a-long-secret\r\n", 401),
        ("Authorization: Bearer\r\n", 401),
    ] {
        assert_eq!(server.ask("GET", "/v1/models", head, "").status, status, "{head}");
    }
    let variable = [("MASKDIFF_API_KEY", "a-long-secret")];
    let server = Server::with(folder(), &["run"], &variable);
    assert_eq!(server.get("/v1/models").status, 401);
    // Without a key, pages of other sites get nothing, whatever name they give this machine.
    let server = serve(&[]);
    for (head, status) in [
        ("Host: evil.example\r\n", 403),
        ("Origin: https://evil.example\r\n", 403),
        ("Host: 127.0.0.1:80\r\nOrigin: http://127.0.0.1:80\r\n", 200),
        ("Host: [::1]:80\r\n", 200),
        ("Host: LOCALHOST\r\n", 200),
        ("Host: localhost.evil.example\r\n", 403),
        ("Host: 127.evil.example:80\r\nOrigin: http://127.evil.example:80\r\n", 403),
        ("Host: 127.0.0.2\r\n", 200),
    ] {
        assert_eq!(server.ask("GET", "/v1/models", head, "").status, status, "{head}");
    }
}

#[test]
fn a_client_that_leaves_makes_room() {
    let server = serve(&["--queue", "2"]);
    let leave = |body: Value| {
        let mut stream = server.connect();
        send(&mut stream, ("POST", "/v1/completions", "", &body.to_string()));
        stream
    };
    let mut streamed = long();
    streamed["stream"] = json!(true);
    streamed["denoising"] = json!(true);
    for body in [long(), streamed] {
        let first = leave(body);
        let second = leave(long());
        wait(|| server.get("/health").expect(200)["waiting"] == 2);
        let full = server.post("/v1/completions", &json!({"steps": 2}));
        assert_eq!(full.status, 429);
        assert!(full.head.to_lowercase().contains("retry-after"), "{full:?}");
        drop((first, second));
        wait(|| server.get("/health").expect(200)["waiting"] == 0);
    }
    let body = json!({"steps": 4, "seed": 1});
    server.post("/v1/completions", &body).expect(200);
}

#[test]
fn what_takes_too_long_or_is_too_large_is_ended() {
    let server =
        serve(&["--timeout", "1", "--read-timeout", "1", "--max-body", "4", "--connections", "20"]);
    let begun = Instant::now();
    assert_eq!(server.post("/v1/completions", &long()).status, 504);
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    let large = json!({"prompt": "a".repeat(5000)});
    assert_eq!(server.post("/v1/completions", &large).status, 413);
    // A head or a body that does not come.
    let slow = |text: &str| {
        use std::io::Write as _;
        let mut stream = server.connect();
        stream.write_all(text.as_bytes()).expect("sent");
        let mut bytes = Vec::new();
        let _ = stream.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    };
    assert!(!slow("GET /health HTTP/1.1\r\nHost: local").contains("200 OK"));
    let half = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{";
    assert!(slow(half).contains("408"));
    // More connections than it takes: those beyond are told so, and the others end by themselves.
    let idle: Vec<TcpStream> = (0..60).map(|_| server.connect()).collect();
    let mut last = server.connect();
    send(&mut last, ("POST", "/v1/completions", "", &"x".repeat(1 << 14)));
    assert!(read(&mut last).expect(503)["error"]["message"].is_string());
    wait(|| server.connect_health());
    drop(idle);
}

/// Connections that stand still take no place from who watches the server, and one that asks for more is told why it gets nothing.
#[test]
fn it_says_that_it_is_well_where_all_connections_are_taken() {
    let server = serve(&["--connections", "4", "--read-timeout", "60"]);
    let idle: Vec<TcpStream> = (0..4).map(|_| server.connect()).collect();
    wait(|| server.connect_health());
    let full = server.post("/v1/completions", &json!({"prompt": "a".repeat(1 << 14)}));
    assert!(full.expect(503)["error"]["message"].as_str().is_some_and(|it| it.contains("many")));
    assert!(full.head.to_lowercase().contains("retry-after"), "{full:?}");
    assert_eq!(server.get("/v1/models").status, 503);
    assert!(server.connect_health(), "no idle connection has ended meanwhile");
    drop(idle);
    wait(|| server.get("/v1/models").status == 200);
}

/// `/health` once more, where a connection may be refused.
trait Health {
    fn connect_health(&self) -> bool;
}

impl Health for Server {
    fn connect_health(&self) -> bool {
        use std::io::Write as _;
        let Ok(mut stream) = TcpStream::connect(("127.0.0.1", self.port)) else { return false };
        let asked = "GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        let mut text = String::new();
        stream.write_all(asked.as_bytes()).is_ok()
            && stream.read_to_string(&mut text).is_ok()
            && text.contains("200 OK")
    }
}

/// Who takes nothing of an answer holds its memory no longer than `--write-timeout`; who reads slowly gets all of it.
#[test]
fn who_does_not_read_is_given_up() {
    let server = serve(&["--write-timeout", "2", "--max-texts", "2000", "--max-body", "4096"]);
    let text: Vec<Option<i64>> = vec![None; 64];
    let body = json!({"tokens": vec![text; 1500], "t": 0.5}).to_string();
    let ask = || {
        let mut stream = server.connect();
        send(&mut stream, ("POST", "/v1/logits", "", &body));
        stream
    };
    let open = || {
        let page = server.get("/metrics").body;
        let line = page.lines().find_map(|line| line.strip_prefix("maskdiff_connections "));
        line.and_then(|count| count.parse::<usize>().ok()).expect("a number")
    };
    let mut slow = ask();
    let mut bytes = vec![0; 1 << 20];
    slow.read_exact(&mut bytes).expect("a part");
    let begun = Instant::now();
    // The socket takes more only once a megabyte or two are free again, which is more than a limit here.
    while begun.elapsed() < Duration::from_secs(5) {
        std::thread::sleep(Duration::from_millis(100));
        slow.read_exact(&mut bytes[..1 << 16]).expect("a part");
    }
    let rest = slow.read_to_end(&mut Vec::new()).expect("all of it");
    assert!(rest > 1 << 20, "{rest} bytes were left");
    drop(slow);
    let idle = ask();
    idle.peek(&mut [0]).expect("its beginning");
    assert!(open() >= 2, "it is sent");
    wait(|| open() == 1);
    let mut all = Vec::new();
    // Its connection was cut.
    let _ = { idle }.read_to_end(&mut all);
    let head = String::from_utf8_lossy(&all[..all.len().min(2000)]).to_lowercase();
    let length = head.split("content-length: ").nth(1).and_then(|rest| rest.lines().next());
    let length: usize = length.and_then(|length| length.parse().ok()).expect("a length");
    assert!(all.len() < length, "{} of {length} bytes", all.len());
}

/// Ten thousand requests of which most are wrong, after some to warm up: each is answered with a status that is right for it, no crash, no memory that
/// stays. `scripts/serve_storm.sh` does it for hours.
#[test]
fn it_survives_a_storm() {
    let seconds = std::env::var("MASKDIFF_TEST_STORM_S").ok().and_then(|said| said.parse().ok());
    let (clients, warm, each) = (6, 340, 1680);
    let mut server =
        serve(&["--read-timeout", "2", "--timeout", "120", "--queue", "16", "sampling.steps=4"]);
    let round = |first: u64, each: usize, server: &Server| {
        let counts = std::thread::scope(|scope| {
            let port = server.port;
            let all: Vec<_> = (first..first + clients)
                .map(|seed| scope.spawn(move || storm(port, seed, each)))
                .collect();
            all.into_iter().map(|one| one.join().expect("its counts")).collect::<Vec<Counts>>()
        });
        let sum = |name: &str, status: Option<u16>| {
            let of = |((case, code), _): &(&(&str, u16), &usize)| {
                *case == name && status.is_none_or(|status| status == *code)
            };
            counts.iter().flatten().filter(of).map(|(_, count)| *count).sum::<usize>()
        };
        // Most of what is right is drawn, and every case has come.
        for name in ["right", "stream"] {
            assert!(sum(name, Some(200)) * 2 > sum(name, None), "{counts:?}");
        }
        for name in ["noise", "head", "mutated", "likeliest", "odd", "large", "wrong", "endless"] {
            assert!(sum(name, None) > each / 20, "{name}: {counts:?}");
        }
        wait(|| server.get("/health").expect(200)["waiting"] == 0);
    };
    round(1, warm, &server);
    let (before, begun, mut first) = (server.memory(), Instant::now(), 1 + clients);
    round(first, each, &server);
    while begun.elapsed().as_secs_f64() < seconds.unwrap_or(0.0) {
        first += clients;
        round(first, each, &server);
    }
    let after = server.memory();
    assert!(after as f64 <= before as f64 * 1.05, "{before} bytes became {after}");
    assert!(server.runs());
    let body = json!({"seed": 5, "steps": 12});
    let drawn = server.post("/v1/completions", &body).expect(200);
    assert_eq!(ids(&drawn), sampled("run", &["-n", "1", "--seed", "5", "--steps", "12"]));
}

#[test]
fn a_signal_ends_it_when_requests_are_answered() {
    let server = serve(&[]);
    let body =
        json!({"sampler": "remdm", "steps": 2000, "eta": 0.5, "strategy": "rescale", "seed": 1});
    let mut stream = server.connect();
    send(&mut stream, ("POST", "/v1/completions", "", &body.to_string()));
    wait(|| server.get("/health").expect(200)["waiting"] == 1);
    server.signal("TERM");
    let answer = read(&mut stream);
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(server.end(), 0);
    // What takes longer than the grace is told so.
    let server = serve(&["--grace", "1"]);
    let mut stream = server.connect();
    send(&mut stream, ("POST", "/v1/completions", "", &long().to_string()));
    wait(|| server.get("/health").expect(200)["waiting"] == 1);
    server.signal("INT");
    let answer = read(&mut stream);
    assert_eq!(answer.status, 503, "{answer:?}");
    assert_eq!(server.end(), 0);
}
