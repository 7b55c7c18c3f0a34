//! Servers that answer what nobody asked for, or without an end; and a command that is measured while it bears that.

use std::io::{BufReader, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::run::Output;

/// A request.
#[derive(Debug, Clone)]
pub struct Asked {
    /// `POST`, `GET`, ...
    pub method: String,
    /// The path with its question.
    pub path: String,
    /// Lines of the head, without the first.
    pub headers: Vec<String>,
    /// What was sent.
    pub body: Vec<u8>,
}

impl Asked {
    /// Whether the request holds a word, in its path or what was sent.
    pub fn names(&self, word: &str) -> bool {
        self.path.contains(word) || String::from_utf8_lossy(&self.body).contains(word)
    }

    /// What a good server answers to the same request.
    pub fn forward(&self, url: &str) -> Lie {
        let address = url.trim_start_matches("http://");
        let mut stream = TcpStream::connect(address).expect("the good server");
        let mut head = format!("{} {} HTTP/1.1\r\n", self.method, self.path);
        self.headers.iter().for_each(|header| head += &format!("{header}\r\n"));
        let whole = [format!("{head}\r\n").as_bytes(), &self.body].concat();
        stream.write_all(&whole).expect("a request");
        let Some(answer) = read(&mut BufReader::new(stream)) else { return Lie::Cut(100, b"") };
        let status = answer.0.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(500);
        Lie::Says(status, Vec::new(), answer.2)
    }
}

/// How it answers.
#[derive(Debug, Clone)]
pub enum Lie {
    /// Status, lines of the head, body.
    Says(u16, Vec<String>, Vec<u8>),
    /// A body without an end, as fast as it is taken, that begins and goes on with these.
    Endless(&'static str, &'static str),
    /// A body of a byte now and then.
    Slow(Duration),
    /// Nothing at all.
    Silent,
    /// To itself, under another path each time.
    Redirect,
    /// A body that is announced with this length, and ends before.
    Cut(usize, &'static [u8]),
}

impl Lie {
    /// A good status with a body.
    pub fn ok(body: &str) -> Self {
        Self::Says(200, Vec::new(), body.as_bytes().to_vec())
    }
}

/// A running server.
pub struct Liar {
    /// Its address.
    pub url: String,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Liar {
    /// Answers every request by `lie`.
    pub fn start(lie: impl Fn(&Asked) -> Lie + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("a port"));
        let (lie, asked) = (Arc::new(lie), Arc::new(Mutex::new(Vec::new())));
        let kept = Arc::clone(&asked);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (lie, kept) = (Arc::clone(&lie), Arc::clone(&kept));
                std::thread::spawn(move || serve(stream, &*lie, &kept));
            }
        });
        Self { url, asked }
    }

    /// Answers every request in one way.
    pub fn always(lie: Lie) -> Self {
        Self::start(move |_| lie.clone())
    }

    /// The requests so far.
    pub fn asked(&self) -> Vec<Asked> {
        self.asked.lock().expect("the requests").clone()
    }
}

/// The first line, the others of the head, and the body of a message.
fn read(from: &mut impl std::io::BufRead) -> Option<(String, Vec<String>, Vec<u8>)> {
    let mut line = String::new();
    if from.read_line(&mut line).unwrap_or(0) == 0 {
        return None;
    }
    let (mut headers, mut length) = (Vec::new(), 0);
    loop {
        let mut header = String::new();
        if from.read_line(&mut header).unwrap_or(0) == 0 || header.trim().is_empty() {
            break;
        }
        let (name, value) = header.split_once(':').unwrap_or_default();
        if name.eq_ignore_ascii_case("content-length") {
            length = value.trim().parse().unwrap_or(0);
        }
        headers.push(header.trim_end().to_string());
    }
    let mut body = vec![0; length];
    from.read_exact(&mut body).ok()?;
    Some((line, headers, body))
}

fn serve(mut stream: TcpStream, lie: &dyn Fn(&Asked) -> Lie, kept: &Mutex<Vec<Asked>>) {
    let Ok(reading) = stream.try_clone() else { return };
    let mut reading = BufReader::new(reading);
    while let Some((line, headers, body)) = read(&mut reading) {
        let mut words = line.split(' ').map(str::to_string);
        let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let asked = Asked { method, path, headers, body };
        let answer = lie(&asked);
        let number = {
            let mut kept = kept.lock().expect("the requests");
            kept.push(asked);
            kept.len()
        };
        if say(&mut stream, &answer, number).is_err() {
            let _ = stream.shutdown(Shutdown::Both);
            return;
        }
    }
}

fn say(stream: &mut TcpStream, lie: &Lie, number: usize) -> std::io::Result<()> {
    let over = || std::io::Error::other("the connection ends");
    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    match lie {
        Lie::Says(status, headers, body) => {
            let mut head = format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\n", body.len());
            headers.iter().for_each(|header| head += &format!("{header}\r\n"));
            // In one piece, or the body waits for a word of the other side.
            stream.write_all(&[format!("{head}\r\n").as_bytes(), body].concat())
        }
        Lie::Endless(first, more) => {
            stream.write_all(chunked.as_bytes())?;
            stream.write_all(format!("{:x}\r\n{first}\r\n", first.len()).as_bytes())?;
            let piece = more.repeat((1 << 16) / more.len());
            let piece = format!("{:x}\r\n{piece}\r\n", piece.len());
            loop {
                stream.write_all(piece.as_bytes())?;
            }
        }
        Lie::Slow(pause) => {
            stream.write_all(chunked.as_bytes())?;
            loop {
                stream.write_all(b"1\r\n \r\n")?;
                std::thread::sleep(*pause);
            }
        }
        Lie::Silent => {
            std::thread::sleep(Duration::from_secs(600));
            Err(over())
        }
        Lie::Redirect => {
            let head = "HTTP/1.1 302 Found\r\nContent-Length: 0\r\n";
            stream.write_all(format!("{head}Location: /{number}\r\n\r\n").as_bytes())
        }
        Lie::Cut(length, body) => {
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n");
            stream.write_all(head.as_bytes())?;
            stream.write_all(body)?;
            Err(over())
        }
    }
}

/// What a command did, in which time, and the most memory that it had.
#[derive(Debug)]
pub struct Measured {
    /// What it left.
    pub output: Output,
    /// Seconds to its end.
    pub seconds: f64,
    /// The peak of its memory.
    pub peak_mib: f64,
}

/// Runs a command to its end; `signal` is sent to it after a time.
pub fn measured(command: &mut Command, signal: Option<(&str, f64)>) -> Measured {
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("maskdiff");
    let (pid, begun) = (child.id().to_string(), Instant::now());
    let status = format!("/proc/{pid}/status");
    let watch = std::thread::spawn({
        let signal = signal.map(|(name, after)| (name.to_string(), after));
        move || {
            let (mut peak, mut signal) = (0.0_f64, signal);
            while let Ok(text) = std::fs::read_to_string(&status) {
                let Some(line) = text.lines().find(|line| line.starts_with("VmHWM")) else { break };
                let kib = line.split_whitespace().nth(1).and_then(|kib| kib.parse::<f64>().ok());
                peak = peak.max(kib.unwrap_or(0.0) / 1024.0);
                if let Some((name, _)) =
                    signal.take_if(|(_, after)| begun.elapsed().as_secs_f64() > *after)
                {
                    Command::new("kill").args([&name, &pid]).status().expect("kill");
                }
                // What does not end by itself ends here, and the test fails by its code.
                if begun.elapsed().as_secs() > 90 || peak > 4096.0 {
                    Command::new("kill").args(["-9", &pid]).status().expect("kill");
                }
                std::thread::sleep(Duration::from_millis(10));
            }
            peak
        }
    });
    let output = child.wait_with_output().expect("its output");
    let seconds = begun.elapsed().as_secs_f64();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let code = output.status.code().unwrap_or(-1);
    let output = Output { code, stdout: text(&output.stdout), stderr: text(&output.stderr) };
    Measured { output, seconds, peak_mib: watch.join().expect("the watch") }
}

impl Measured {
    /// Fails when it took longer or more memory than it may, or printed what a server says at length or what acts on a terminal.
    #[track_caller]
    pub fn within(&self, seconds: f64, mib: f64) -> &Output {
        let said = &self.output.stderr[..self.output.stderr.len().min(4000)];
        assert!(self.seconds <= seconds, "{} s of {seconds}: {said}", self.seconds);
        assert!(self.peak_mib <= mib, "{} MiB of {mib}: {said}", self.peak_mib);
        assert!(self.output.stderr.len() < 40_000, "{} bytes: {said}", self.output.stderr.len());
        let acts = |c: char| c.is_control() && c != '\n';
        assert!(!self.output.stderr.contains(acts), "control characters: {said:?}");
        &self.output
    }
}
