//! A headless Chromium that a test drives as a reader would, through chromedriver's WebDriver protocol.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// The key in which WebDriver names an element.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

/// A browser with one page.
pub struct Browser {
    driver: Child,
    port: u16,
    session: String,
}

/// An element of its page.
#[derive(Debug, Clone)]
pub struct Element(String);

impl Drop for Browser {
    fn drop(&mut self) {
        if !self.session.is_empty() {
            let _ = self.send("DELETE", "", None);
        }
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}

impl Browser {
    /// Starts one; none, with a line that says so, where there is no Chromium with its driver.
    pub fn start() -> Option<Self> {
        let there = |name: &str| {
            let said = Command::new(name).arg("--version").stderr(Stdio::null()).output();
            said.is_ok_and(|said| said.status.success())
        };
        if !there("chromedriver") || !there("chromium") {
            crate::skipped(
                "no Chromium with its driver: `scripts/setup.sh --screens` installs them",
            );
            return None;
        }
        let port =
            TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("one").port();
        let driver = Command::new("chromedriver")
            .arg(format!("--port={port}"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("chromedriver");
        let mut this = Self { driver, port, session: String::new() };
        let until = Instant::now() + Duration::from_secs(30);
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(Instant::now() < until, "chromedriver does not answer");
            std::thread::sleep(Duration::from_millis(50));
        }
        let args = ["--headless", "--no-sandbox", "--disable-gpu", "--window-size=1200,1600"];
        let wanted = json!({"capabilities": {"alwaysMatch": {
            "goog:chromeOptions": {"args": args}, "goog:loggingPrefs": {"browser": "ALL"},
        }}});
        let answer = this.http("POST", "/session", Some(&wanted));
        this.session = answer["sessionId"].as_str().expect("a session").to_string();
        Some(this)
    }

    fn http(&self, method: &str, path: &str, body: Option<&Value>) -> Value {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).expect("chromedriver");
        stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a timeout");
        let body = body.map(ToString::to_string).unwrap_or_default();
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{}\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
            self.port,
            body.len()
        )
        .expect("sent");
        let mut reader = BufReader::new(stream);
        let mut length = 0;
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).expect("a header");
            if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().expect("a length");
            }
            if line.trim().is_empty() {
                break;
            }
        }
        let mut bytes = vec![0; length];
        reader.read_exact(&mut bytes).expect("an answer");
        let mut answer: Value = serde_json::from_slice(&bytes).expect("JSON");
        let value = answer["value"].take();
        assert!(value["error"].is_null(), "{method} {path}: {value}");
        value
    }

    fn send(&self, method: &str, path: &str, body: Option<&Value>) -> Value {
        self.http(method, &format!("/session/{}{path}", self.session), body)
    }

    /// Opens a file and waits for its script to end.
    pub fn open(&self, file: &Path) {
        let url = format!("file://{}", file.canonicalize().expect("a file").display());
        self.send("POST", "/url", Some(&json!({"url": url})));
    }

    /// Opens an address and waits for its scripts to load.
    pub fn visit(&self, url: &str) {
        self.send("POST", "/url", Some(&json!({"url": url})));
    }

    /// Gives the window another size.
    pub fn resize(&self, width: u32, height: u32) {
        let size = json!({"width": width, "height": height});
        self.send("POST", "/window/rect", Some(&size));
    }

    /// Asks for dark colours, or for light ones.
    pub fn dark(&self, on: bool) {
        let features =
            json!([{"name": "prefers-color-scheme", "value": if on { "dark" } else { "light" }}]);
        let command =
            json!({"cmd": "Emulation.setEmulatedMedia", "params": {"features": features}});
        self.send("POST", "/goog/cdp/execute", Some(&command));
    }

    /// Waits until an expression is true.
    #[track_caller]
    pub fn wait(&self, expression: &str) {
        let until = Instant::now() + Duration::from_secs(30);
        while self.script(expression) != Value::Bool(true) {
            let text = self.script("document.body.innerText");
            assert!(Instant::now() < until, "`{expression}` does not come about: {text}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// All elements that a CSS selector matches, in order.
    pub fn all(&self, css: &str) -> Vec<Element> {
        let wanted = json!({"using": "css selector", "value": css});
        let found = self.send("POST", "/elements", Some(&wanted));
        let id = |element: &Value| element[ELEMENT].as_str().expect("an element").to_string();
        found.as_array().expect("elements").iter().map(|element| Element(id(element))).collect()
    }

    /// The first of them.
    #[track_caller]
    pub fn one(&self, css: &str) -> Element {
        self.all(css).into_iter().next().unwrap_or_else(|| panic!("no `{css}` on the page"))
    }

    /// Clicks an element.
    pub fn click(&self, Element(id): &Element) {
        self.send("POST", &format!("/element/{id}/click"), Some(&json!({})));
    }

    /// Types into an element.
    pub fn keys(&self, Element(id): &Element, text: &str) {
        self.send("POST", &format!("/element/{id}/value"), Some(&json!({"text": text})));
    }

    /// What an expression of the page's script gives.
    pub fn script(&self, expression: &str) -> Value {
        let body = json!({"script": format!("return {expression};"), "args": []});
        self.send("POST", "/execute/sync", Some(&body))
    }

    /// The text of the first element that matches, as the page holds it.
    pub fn text(&self, css: &str) -> String {
        let value = self.script(&format!("document.querySelector({}).textContent", json!(css)));
        value.as_str().unwrap_or_default().to_string()
    }

    /// What is told to a reader who does not see the page: role and name of each of its parts.
    pub fn heard(&self) -> Vec<(String, String)> {
        let command = json!({"cmd": "Accessibility.getFullAXTree", "params": {}});
        let tree = self.send("POST", "/goog/cdp/execute", Some(&command));
        let text = |node: &Value, key: &str| {
            node[key]["value"].as_str().unwrap_or_default().trim().to_string()
        };
        let nodes = tree["nodes"].as_array().expect("parts").iter();
        let told = nodes.filter(|node| node["ignored"] != true);
        told.map(|node| (text(node, "role"), text(node, "name"))).collect()
    }

    /// What the page complained of.
    pub fn complaints(&self) -> Vec<Value> {
        let log = self.send("POST", "/se/log", Some(&json!({"type": "browser"})));
        log.as_array().cloned().unwrap_or_default()
    }

    /// Takes a picture of the page, PNG.
    pub fn picture(&self, file: &Path) {
        let encoded = self.send("GET", "/screenshot", None);
        let bytes = base64(encoded.as_str().expect("a picture"));
        std::fs::write(file, bytes).expect("written");
    }
}

/// Decodes base64.
fn base64(text: &str) -> Vec<u8> {
    const LETTERS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let value = |byte: u8| LETTERS.iter().position(|letter| *letter == byte).map(|at| at as u32);
    let digits: Vec<u32> = text.bytes().filter_map(value).collect();
    let group = |digits: &[u32]| {
        let bits = digits.iter().enumerate().fold(0, |bits, (i, d)| bits | d << (18 - 6 * i));
        bits.to_be_bytes()[1..digits.len()].to_vec()
    };
    digits.chunks(4).flat_map(group).collect()
}
