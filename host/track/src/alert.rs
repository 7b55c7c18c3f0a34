//! Tells somebody that a run has ended: a command of the shell, or a web address.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use maskdiff_base::error::{Error, Kind};
use maskdiff_base::net;
use maskdiff_base::stop::Stop;
use maskdiff_config::Config;
use serde_json::{Value, json};

/// The time limit of a notification after a signal.
const SIGNALLED: Duration = Duration::from_secs(4);
/// Between two looks at a command or a signal.
const LOOK: Duration = Duration::from_millis(20);

/// The time that telling may take.
struct Limit {
    begun: Instant,
    time: Duration,
    signalled: Option<Instant>,
}

impl Limit {
    fn new(time: Duration) -> Self {
        Self { begun: Instant::now(), time, signalled: None }
    }

    /// An error once it is over.
    fn check(&mut self) -> Result<(), String> {
        if Stop::current().asked() {
            self.signalled.get_or_insert_with(Instant::now);
        }
        if self.begun.elapsed() >= self.time {
            return Err(format!("it took more than {} s", self.time.as_secs_f64()));
        }
        match self.signalled {
            Some(at) if at.elapsed() >= SIGNALLED => Err("a signal came before its end".into()),
            _ => Ok(()),
        }
    }
}

/// Tells whoever `alert.on_finish` or `alert.on_crash` names of a run's end. A run that somebody stopped, or that a scheduler will
/// start again, is neither. Gives what went wrong with the telling.
pub fn tell(config: &Config, run: &str, step: i64, error: Option<&Error>) -> Option<String> {
    let (who, key, state) = match error {
        None => (&config.alert.on_finish, "alert.on_finish", "finished"),
        Some(Error { kind: Kind::Interrupted | Kind::Preempted, .. }) => return None,
        Some(_) => (&config.alert.on_crash, "alert.on_crash", "crashed"),
    };
    let who = who.as_deref()?;
    let limit = Limit::new(Duration::from_secs_f64(config.alert.timeout_s));
    let message =
        error.map_or_else(|| format!("{run} is done after step {step}"), ToString::to_string);
    let said = say(who, (run, state, step), &message, limit);
    said.err().map(|said| format!("warning: `{key}`: {said}"))
}

/// Tells `who` of a crash in the last moments of a process, which take `timeout` at most.
pub fn crashed(who: &str, run: &str, message: &str, timeout: Duration) {
    // Nobody is there who could hear that it failed.
    let _ = say(who, (run, "crashed", 0), message, Limit::new(timeout));
}

fn say(
    who: &str,
    (run, state, step): (&str, &str, i64),
    message: &str,
    limit: Limit,
) -> Result<(), String> {
    if who.starts_with("http://") || who.starts_with("https://") {
        return post(
            who,
            &json!({"run": run, "state": state, "step": step, "message": message, "text": format!("{run}: {message}")}),
            limit,
        );
    }
    let step = step.to_string();
    let facts = [("RUN", run), ("STATE", state), ("STEP", &*step), ("MESSAGE", message)];
    command(who, &facts, limit)
}

/// Runs a line of the shell with what happened in MASKDIFF_RUN, _STATE, _STEP and _MESSAGE. It may hold a secret: errors do not show it.
fn command(line: &str, facts: &[(&str, &str)], mut limit: Limit) -> Result<(), String> {
    let mut command = Command::new("sh");
    command.args(["-c", line]).stdin(Stdio::null()).stdout(Stdio::null());
    command.envs(facts.iter().map(|(name, value)| (format!("MASKDIFF_{name}"), value)));
    let mut child = command.spawn().map_err(|e| e.to_string())?;
    loop {
        match child.try_wait().map_err(|e| e.to_string())? {
            Some(status) if status.success() => return Ok(()),
            Some(status) => return Err(format!("the command ended with {status}")),
            None => {}
        }
        if let Err(over) = limit.check() {
            let _ = child.kill();
            let _ = child.wait();
            return Err(format!("the command was ended: {over}"));
        }
        std::thread::sleep(LOOK);
    }
}

/// Posts to an address. It may hold a secret: errors do not show it, and no redirection takes it or the message elsewhere.
fn post(address: &str, body: &Value, mut limit: Limit) -> Result<(), String> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = net::runtime();
    let runtime = runtime.map_err(|e| e.to_string())?;
    let client = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).build();
    let client = client.map_err(|e| e.to_string())?;
    let request =
        client.post(address).header("content-type", "application/json").body(body.to_string());
    let answer = runtime.block_on(async {
        let mut sent = std::pin::pin!(request.send());
        loop {
            match tokio::time::timeout(LOOK, &mut sent).await {
                Ok(answer) => return answer.map_err(|e| net::causes(&e.without_url())),
                Err(_) => limit.check().map_err(|over| format!("no answer: {over}"))?,
            }
        }
    })?;
    // What it says beside that is nobody's concern, and may have no end.
    match answer.status() {
        status if status.is_success() => Ok(()),
        status if status.is_redirection() => {
            Err(format!("the server sends elsewhere ({status}): give the address that it leads to"))
        }
        status => Err(format!("the server answered {status}")),
    }
}
