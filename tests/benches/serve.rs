//! The server under load: tokens per second of 16 clients that ask at once, against one at a time; how long `/health` takes meanwhile; and when the
//! first event of a stream comes.
//!
//! Prints `serve NAME NUMBER`, which `scripts/bench_json.py` reads.

use std::io::Read as _;
use std::time::{Duration, Instant};

use maskdiff_tests::bench::median;
use maskdiff_tests::run::maskdiff;
use maskdiff_tests::served::{Server, send};
use serde_json::{Value, json};

const CLIENTS: usize = 16;
const ROUNDS: usize = 4;

fn body(seed: usize) -> Value {
    json!({"max_tokens": 64, "seed": seed})
}

/// Tokens per second of some clients that ask at once, one request after the other.
fn speed(server: &Server, clients: usize, requests: usize) -> f64 {
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for client in 0..clients {
            scope.spawn(move || {
                for number in 0..requests {
                    let answer =
                        server.post("/v1/completions", &body(1000 * client + number)).expect(200);
                    assert_eq!(answer["usage"]["completion_tokens"], 64);
                }
            });
        }
    });
    (64 * clients * requests) as f64 / begun.elapsed().as_secs_f64()
}

/// Seconds from a request to the first event of its stream, and seconds of a network call.
fn first_event(server: &Server, seed: usize) -> (f64, f64) {
    let mut asked = body(seed);
    asked["stream"] = json!(true);
    asked["denoising"] = json!(true);
    let mut stream = server.connect();
    let begun = Instant::now();
    send(&mut stream, ("POST", "/v1/completions", "", &asked.to_string()));
    let mut text = Vec::new();
    let mut part = [0; 4096];
    let mut first = None;
    while let Ok(count @ 1..) = stream.read(&mut part) {
        text.extend(&part[..count]);
        if first.is_none() && String::from_utf8_lossy(&text).contains("data: ") {
            first = Some(begun.elapsed().as_secs_f64());
        }
    }
    let text = String::from_utf8_lossy(&text).into_owned();
    let number = |key: &str| {
        let rest = text.rsplit_once(&format!("\"{key}\":")).expect("the last event").1;
        rest.split([',', '}']).next().and_then(|word| word.parse::<f64>().ok()).expect("a number")
    };
    (first.expect("an event"), number("seconds") / number("calls"))
}

fn main() {
    let folder = tempfile::tempdir().expect("a folder");
    let words = [
        "train",
        "experiment=demo",
        "trainer.max_steps=20",
        "run.dir=run",
        "trainer.accelerator=cpu",
        "-q",
    ];
    maskdiff(folder.path(), &words).expect(0);
    let server = Server::start(folder.path(), &["run", "sampling.predictor=first_hitting"]);
    let _ = speed(&server, 2, 1);
    let (mut alone, mut together, mut health) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..3 {
        alone.push(speed(&server, 1, ROUNDS));
        let done = std::sync::atomic::AtomicBool::new(false);
        let (done, server) = (&done, &server);
        std::thread::scope(|scope| {
            let watch = scope.spawn(move || {
                let mut times = Vec::new();
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    let begun = Instant::now();
                    server.get("/health").expect(200);
                    times.push(begun.elapsed().as_secs_f64());
                    std::thread::sleep(Duration::from_millis(5));
                }
                times
            });
            together.push(speed(server, CLIENTS, ROUNDS));
            done.store(true, std::sync::atomic::Ordering::Relaxed);
            health.extend(watch.join().expect("times"));
        });
    }
    let events: Vec<(f64, f64)> = (0..9).map(|seed| first_event(&server, seed)).collect();
    health.sort_by(f64::total_cmp);
    let (alone, together) = (median(alone), median(together));
    println!("serve tokens_per_s_alone {alone:.0}");
    println!("serve tokens_per_s_of_16 {together:.0}");
    println!("serve speedup {:.2}", together / alone);
    println!("serve health_p99_ms {:.2}", 1e3 * health[health.len() * 99 / 100]);
    println!("serve first_event_ms {:.2}", 1e3 * median(events.iter().map(|e| e.0).collect()));
    println!("serve network_call_ms {:.2}", 1e3 * median(events.iter().map(|e| e.1).collect()));
}
