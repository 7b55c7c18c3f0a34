//! A measurement in words.

use std::ffi::OsString;
use std::fmt::Write as _;

use serde_json::Value;

use super::Work;
use super::machine::BUSY;

pub(super) fn name(work: Work) -> &'static str {
    match work {
        Work::Train => "train",
        Work::Eval => "eval",
        Work::Sample => "sample",
    }
}

/// A command line without the program and without what says how results are printed.
pub(super) fn without_output(all: &[OsString]) -> Vec<OsString> {
    let mut kept = Vec::new();
    let mut words = all.iter().skip(1).peekable();
    while let Some(word) = words.next() {
        let text = word.to_string_lossy();
        match text.as_ref() {
            "--format" | "--seconds" => drop(words.next()),
            // What is set beside stands behind.
            "-q" | "--quiet" | "--" => {}
            text if text.starts_with("--format=") || text.starts_with("--seconds=") => {}
            text if text.starts_with("-v") || text == "--verbose" => {}
            _ => kept.push(word.clone()),
        }
    }
    kept
}

/// What an error says, of all that a command prints about it.
pub(super) fn reason(said: &str) -> Option<&str> {
    let message = said.lines().find_map(|line| line.trim().strip_prefix("× "));
    message.or_else(|| said.lines().next_back())
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or(f64::NAN)
}

pub(super) fn text(told: &Value) -> String {
    let mut text = speed(told);
    let unit = number(&told["seconds"]);
    for (name, value) in told["parts_s"].as_object().into_iter().flatten() {
        let share = 100.0 * number(value) / unit;
        let _ = writeln!(text, "  {name:<18}{:>10}{share:>5.0} %", seconds(number(value)));
    }
    let products = &told["products"];
    if !products.is_null() {
        let _ = writeln!(
            text,
            "its {} matrix products alone take {}, at {:.0} GFLOP/s: {:.0} % of the time",
            products["count"],
            seconds(number(&products["seconds"])),
            number(&products["flops_per_s"]) / 1e9,
            100.0 * number(&products["share"]),
        );
    }
    if let Some(mfu) = told["mfu"].as_f64() {
        let _ = writeln!(text, "{:.1} % of the device's peak", 100.0 * mfu);
    }
    if let Some(calls) = told["network_calls"].as_f64() {
        let read = number(&told["token_forwards"]);
        let _ = writeln!(text, "{calls:.1} network calls and {read:.0} tokens read for each text");
    }
    if let Some(bytes) = told["bytes"].as_object() {
        let parts = bytes.iter().map(|(name, n)| format!("{name} {:.1} MB", number(n) / 1e6));
        let _ = writeln!(text, "held: {}", parts.collect::<Vec<String>>().join(", "));
    }
    text += &others(told);
    text.trim_end().to_string()
}

/// Speed, machine, memory, and who else uses it.
fn speed(told: &Value) -> String {
    let machine = &told["machine"];
    let what = match told["work"].as_str() {
        Some("train") => "step",
        _ => "batch",
    };
    let mut text = format!(
        "{:.0} tokens/s; a {what} takes {} (median of {}; {} to {})\n{}, {} threads, {}; memory at most {:.2} GiB\n",
        number(&told["tokens_per_s"]),
        seconds(number(&told["seconds"])),
        told["units"],
        seconds(number(&told["seconds_least"])),
        seconds(number(&told["seconds_most"])),
        machine["device"].as_str().unwrap_or_default(),
        machine["threads"],
        machine["processor"].as_str().unwrap_or("unknown processor"),
        number(&told["memory_peak_gib"]),
    );
    if let Some(busy) = machine["busy"].as_f64().filter(|busy| *busy > BUSY) {
        let share = 100.0 * busy;
        let _ = writeln!(
            text,
            "warning: other programs use {share:.0} % of this machine: these figures say nothing about it"
        );
    }
    text
}

/// What other settings would change.
fn others(told: &Value) -> String {
    let machine = &told["machine"];
    let mut text = String::new();
    for other in told["others"].as_array().into_iter().flatten() {
        let setting = other["setting"].as_str().unwrap_or_default();
        let _ = match other["failed"].as_str() {
            Some(why) => writeln!(text, "  with {setting}: {why}"),
            None => writeln!(
                text,
                "  with {setting:<28} {:.2} times as fast, {:.2} GiB",
                number(&other["ratio"]),
                number(&other["memory_peak_gib"]),
            ),
        };
        let slow = machine["bf16"] == false && machine["device"] == "cpu";
        if setting == "trainer.precision=bf16" && slow {
            let _ = writeln!(text, "       (this processor has no bf16 instructions)");
        }
    }
    text
}

fn seconds(seconds: f64) -> String {
    match seconds {
        s if s.abs() >= 1.0 => format!("{s:.2} s"),
        s if s.abs() >= 1e-3 => format!("{:.1} ms", s * 1e3),
        s => format!("{:.0} µs", s * 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn other_settings_are_measured_with_the_same_words() {
        let all = [
            "maskdiff",
            "bench",
            "-q",
            "train",
            "--format",
            "json",
            "--seconds=3",
            "-vv",
            "--",
            "model=tiny",
        ];
        let all: Vec<OsString> = all.iter().map(OsString::from).collect();
        let kept: Vec<OsString> =
            ["bench", "train", "model=tiny"].iter().map(OsString::from).collect();
        assert_eq!(without_output(&all), kept);
    }

    #[test]
    fn a_setting_that_fails_says_why() {
        let said = "maskdiff::config\n\n  × `loader.batch_size` is 3\n  help: say 2\n";
        assert_eq!(reason(said), Some("`loader.batch_size` is 3"));
        assert_eq!(reason("killed"), Some("killed"));
        assert_eq!(reason(""), None);
    }

    #[test]
    fn a_busy_machine_is_told_of() {
        let told = |busy: f64| {
            text(&json!({
                "work": "train", "tokens_per_s": 1000.0, "seconds": 0.5, "seconds_least": 0.4, "seconds_most": 0.6,
                "units": 7, "parts_s": {"network": 0.25}, "memory_peak_gib": 1.5,
                "machine": {"device": "cpu", "threads": 2, "processor": "P", "bf16": false, "busy": busy},
                "products": {"count": 3, "seconds": 0.4, "flops_per_s": 1e11, "share": 0.8},
                "others": [
                    {"setting": "trainer.precision=bf16", "ratio": 0.5, "memory_peak_gib": 1.0},
                    {"setting": "loader.batch_size=64", "failed": "no"},
                ],
            }))
        };
        assert!(told(0.3).contains("other programs use 30 %"));
        let quiet = told(0.02);
        assert!(!quiet.contains("warning"), "{quiet}");
        for said in [
            "1000 tokens/s",
            "500.0 ms",
            "network",
            "50 %",
            "80 % of the time",
            "no bf16",
            "loader.batch_size=64: no",
        ] {
            assert!(quiet.contains(said), "{said} in {quiet}");
        }
    }
}
