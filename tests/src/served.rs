//! `maskdiff serve` as a program of its own, and clients that ask it over plain sockets.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::run::{command, maskdiff, train};

/// A folder with a tiny model, `run`, and one that reads in blocks, `blocks`.
pub fn folder() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let folder = tempfile::tempdir().expect("a folder").keep();
        train(&folder, &["run.dir=run"]).expect(0);
        let words = ["run.dir=blocks", "block_size=8", "trainer.max_steps=3"];
        train(&folder, &words).expect(0);
        folder
    })
}

/// A folder with a tiny model of stories whose animal it is told, `animals`.
pub fn labelled() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let folder = tempfile::tempdir().expect("a folder").keep();
        // So much that a class has a law of its own after a few steps.
        let words = ["run.dir=animals", "data.label_column=animal", "optim.lr=1e-2"];
        train(&folder, &words).expect(0);
        folder
    })
}

/// A folder with a model without classes, `model`, a classifier of its tokens, `judge`, and an autoregressive model of them, `next`.
pub fn judged() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let folder = tempfile::tempdir().expect("a folder").keep();
        train(&folder, &["run.dir=model", "trainer.max_steps=4"]).expect(0);
        let classifier = [
            "parameterization=classifier",
            "data.label_column=animal",
            "sampling.num_sample_log=0",
        ];
        let words = [&classifier[..], &["run.dir=judge", "trainer.max_steps=4"]].concat();
        train(&folder, &words).expect(0);
        let ar = ["train", "parameterization=ar", "trainer.max_steps=2", "run.dir=next"];
        let sizes = ["model.hidden_size=32", "model.n_blocks=1", "model.n_heads=2"];
        let more =
            ["data.valid_blocks=32", "loader.global_batch_size=8", "trainer.accelerator=cpu"];
        maskdiff(&folder, &[&ar[..], &sizes, &more].concat()).expect(0);
        folder
    })
}

/// A folder with a model in blocks that has a BOS in front of every text, `begun`, over a vocabulary of few words.
pub fn begun() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let folder = tempfile::tempdir().expect("a folder").keep();
        let words =
            ["<s>", "</s>", "[MASK]", "<unk>", "we", "know", "that", "they", "see", "what", "is"];
        let vocab = words.iter().enumerate().map(|(i, word)| ((*word).to_string(), json!(i)));
        let vocab: serde_json::Map<String, Value> = vocab.collect();
        let special = |i: usize| {
            json!({
                "id": i, "content": words[i], "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true,
            })
        };
        let tokenizer = json!({
            "version": "1.0", "added_tokens": [special(0), special(1), special(2)], "normalizer": null,
            "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null, "decoder": null, "truncation": null, "padding": null,
            "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"},
        });
        let write =
            |name: &str, text: &str| std::fs::write(folder.join(name), text).expect("written");
        write("words.json", &tokenizer.to_string());
        let line = "{\"text\": \"we know that they see what we see and that is what they know\"}\n";
        write("a.jsonl", &line.replace(" and", "").repeat(60));
        let words = [
            "run.dir=begun",
            "data=jsonl",
            "data.path=a.jsonl",
            "data.tokenizer_name_or_path=words.json",
            "data.wrap=true",
            "data.insert_special=both",
            "model.length=32",
            "block_size=8",
            "trainer.max_steps=10",
        ];
        train(&folder, &words).expect(0);
        folder
    })
}

/// The model `run` of [`folder`] with a chat template that writes what was said one after the other, under a name.
pub fn chatting(name: &str) -> Server {
    let template = "{% for m in messages %}{{ m['content'] }} {% endfor %}";
    std::fs::write(folder().join("chat.jinja"), template).expect("written");
    let words = ["sampling.predictor=first_hitting", "data.chat_template=chat.jinja"];
    Server::start(folder(), &[&["run", "--name", name], &words[..]].concat())
}

/// A server that is ended with its value.
pub struct Server {
    child: Child,
    /// Where it listens.
    pub port: u16,
    /// The line that it printed.
    pub said: Value,
    started: Duration,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An answer of a server.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// The lines of the head behind the first.
    pub head: String,
    /// The body.
    pub body: String,
}

impl Answer {
    /// The body as JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }

    /// The same of an answer with a status.
    #[track_caller]
    pub fn expect(&self, status: u16) -> Value {
        assert_eq!(self.status, status, "{self:?}");
        self.json()
    }

    /// The events of a stream, without the last word.
    #[track_caller]
    pub fn events(&self) -> Vec<Value> {
        assert_eq!(self.status, 200, "{self:?}");
        let data: Vec<&str> =
            self.body.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
        assert_eq!(data.last(), Some(&"[DONE]"), "{self:?}");
        let parse = |text: &&str| serde_json::from_str(text).expect("JSON");
        data[..data.len() - 1].iter().map(parse).collect()
    }
}

impl Server {
    /// Serves in a folder with words of the command line.
    pub fn start(folder: &Path, words: &[&str]) -> Self {
        Self::with(folder, words, &[])
    }

    /// The same with variables.
    pub fn with(folder: &Path, words: &[&str], variables: &[(&str, &str)]) -> Self {
        let fixed = ["serve", "--port", "0", "--format", "json", "trainer.accelerator=cpu"];
        let mut command = command(folder, &[&fixed[..], words].concat());
        command.envs(variables.iter().copied());
        let begun = Instant::now();
        let mut child = command.stdout(Stdio::piped()).spawn().expect("the server");
        let mut line = String::new();
        let stdout = child.stdout.take().expect("its output");
        BufReader::new(stdout).read_line(&mut line).expect("a line");
        let said: Value = serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: {line}"));
        let url = said["listening"].as_str().expect("an address");
        let port = url.rsplit(':').next().and_then(|port| port.parse().ok()).expect("a port");
        Self { child, port, said, started: begun.elapsed() }
    }

    /// From its start to its first line.
    pub fn started(&self) -> Duration {
        self.started
    }

    /// Its number among the processes.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Bytes of memory that it holds.
    pub fn memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid()));
        let status = status.expect("its status");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
        kib.expect("a number") * 1024
    }

    /// Whether it runs.
    pub fn runs(&mut self) -> bool {
        self.child.try_wait().expect("its state").is_none()
    }

    /// Sends a signal.
    pub fn signal(&self, name: &str) {
        let kill = std::process::Command::new("kill");
        let mut kill = kill;
        kill.args([&format!("-{name}"), &self.pid().to_string()]).status().expect("kill");
    }

    /// Waits for its end: the exit code.
    pub fn end(mut self) -> i32 {
        let until = Instant::now() + Duration::from_secs(60);
        loop {
            if let Some(status) = self.child.try_wait().expect("its state") {
                return status.code().unwrap_or(-1);
            }
            assert!(Instant::now() < until, "the server does not end");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// A connection.
    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).expect("a connection");
        stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a timeout");
        stream
    }

    /// GET.
    pub fn get(&self, path: &str) -> Answer {
        self.ask("GET", path, "", "")
    }

    /// POST of JSON, without a content type.
    pub fn post(&self, path: &str, body: &Value) -> Answer {
        self.ask("POST", path, "", &body.to_string())
    }

    /// A request with more lines of its head, each ended.
    pub fn ask(&self, method: &str, path: &str, head: &str, body: &str) -> Answer {
        let mut stream = self.connect();
        send(&mut stream, (method, path, head, body));
        read(&mut stream)
    }
}

/// Sends a request: method, path, more lines of its head, and the body.
pub fn send(stream: &mut TcpStream, (method, path, head, body): (&str, &str, &str, &str)) {
    let host = match head.to_lowercase().contains("host:") {
        true => "",
        false => "Host: localhost\r\n",
    };
    let length = body.len();
    let text = format!(
        "{method} {path} HTTP/1.1\r\n{host}{head}Content-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    );
    stream.write_all(text.as_bytes()).expect("sent");
}

/// Reads an answer to the end of its connection.
pub fn read(stream: &mut TcpStream) -> Answer {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).expect("an answer");
    parse(&bytes)
}

/// An answer of its bytes.
pub fn parse(bytes: &[u8]) -> Answer {
    let at = bytes.windows(4).position(|four| four == b"\r\n\r\n");
    let at = at.unwrap_or_else(|| panic!("no answer: {:?}", String::from_utf8_lossy(bytes)));
    let head = String::from_utf8_lossy(&bytes[..at]).into_owned();
    let status = head.split(' ').nth(1).and_then(|word| word.parse().ok()).expect("a status");
    let mut rest = &bytes[at + 4..];
    let mut body = Vec::new();
    if head.to_lowercase().contains("transfer-encoding: chunked") {
        while let Some(line) = rest.windows(2).position(|two| two == b"\r\n") {
            let size = std::str::from_utf8(&rest[..line]).expect("a size");
            let size = usize::from_str_radix(size, 16).expect("a size");
            let part = &rest[line + 2..];
            body.extend(&part[..size.min(part.len())]);
            rest = part.get(size + 2..).unwrap_or(&[]);
        }
    } else {
        body.extend(rest);
    }
    Answer { status, head, body: String::from_utf8_lossy(&body).into_owned() }
}
