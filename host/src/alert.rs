//! Tells somebody that a run has ended: a command of the shell, or a web address.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::config::Config;
use crate::error::Error;

/// How long the one who is told may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// Tells whoever `alert.on_finish` or `alert.on_crash` names of a run's end. A run that somebody stopped, or that a scheduler will
/// start again, is neither. Gives what went wrong with the telling.
pub fn tell(config: &Config, run: &str, step: i64, error: Option<&Error>) -> Option<String> {
    let (who, key, state) = match error {
        None => (&config.alert.on_finish, "alert.on_finish", "finished"),
        Some(Error::Interrupted { .. } | Error::Preempted { .. }) => return None,
        Some(_) => (&config.alert.on_crash, "alert.on_crash", "crashed"),
    };
    let who = who.as_deref()?;
    let message =
        error.map_or_else(|| format!("{run} is done after step {step}"), ToString::to_string);
    let said = if who.starts_with("http://") || who.starts_with("https://") {
        post(
            who,
            &json!({"run": run, "state": state, "step": step, "message": message, "text": format!("{run}: {message}")}),
        )
    } else {
        let step = step.to_string();
        command(who, &[("RUN", run), ("STATE", state), ("STEP", &step), ("MESSAGE", &message)])
    };
    said.err().map(|said| format!("warning: `{key}`: {said}"))
}

/// Runs a line of the shell with what happened in MASKDIFF_RUN, _STATE, _STEP and _MESSAGE. It may hold a secret: errors do not show it.
fn command(line: &str, facts: &[(&str, &str)]) -> Result<(), String> {
    let mut command = Command::new("sh");
    command.args(["-c", line]).stdin(Stdio::null()).stdout(Stdio::null());
    command.envs(facts.iter().map(|(name, value)| (format!("MASKDIFF_{name}"), value)));
    let mut child = command.spawn().map_err(|e| e.to_string())?;
    let until = Instant::now() + PATIENCE;
    while Instant::now() < until {
        match child.try_wait().map_err(|e| e.to_string())? {
            Some(status) if status.success() => return Ok(()),
            Some(status) => return Err(format!("the command ended with {status}")),
            None => std::thread::sleep(Duration::from_millis(20)),
        }
    }
    let _ = child.kill();
    let _ = child.wait();
    Err(format!("the command took more than {} s", PATIENCE.as_secs()))
}

fn post(address: &str, body: &Value) -> Result<(), String> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|e| e.to_string())?;
    let client = reqwest::Client::builder().timeout(PATIENCE).build().map_err(|e| e.to_string())?;
    let request =
        client.post(address).header("content-type", "application/json").body(body.to_string());
    // An address may hold a secret: errors do not show it.
    let answer = runtime
        .block_on(async { request.send().await })
        .map_err(|e| e.without_url().to_string())?;
    let status = answer.status();
    if status.is_success() { Ok(()) } else { Err(format!("the server answered {status}")) }
}
