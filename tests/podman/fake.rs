//! A scripted server in podman's place.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hostler::adapters::podman::api::Deadlines;
use hostler::adapters::podman::{Helpers, Podman};
use serde_json::Value;

/// What the server does with one request.
pub enum Act {
    /// Answers.
    Say(u16, Value),
    /// Reads the request and never answers.
    Hang,
    /// Reads the request and closes the connection.
    Cut,
    /// Sends these bytes and closes.
    Bytes(&'static str),
}

/// `(method, path after the prefix, body, how many requests came before)`.
type Script = dyn Fn(&str, &str, &Value, usize) -> Act + Send + Sync;

pub struct Fake {
    pub dir: tempfile::TempDir,
    pub calls: Arc<Mutex<Vec<String>>>,
}

impl Fake {
    pub fn new(
        script: impl Fn(&str, &str, &Value, usize) -> Act + Send + Sync + 'static,
    ) -> (Self, Podman) {
        Self::with(script, Helpers::default())
    }

    /// The same for an adapter that is helped.
    pub fn with(
        script: impl Fn(&str, &str, &Value, usize) -> Act + Send + Sync + 'static,
        helpers: Helpers,
    ) -> (Self, Podman) {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("s")).unwrap();
        let calls = Arc::new(Mutex::new(Vec::new()));
        let (script, log) = (Arc::new(script) as Arc<Script>, calls.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (script, log) = (script.clone(), log.clone());
                std::thread::spawn(move || serve(stream, &*script, &log));
            }
        });
        let deadlines = Deadlines {
            ask: Duration::from_millis(400),
            act: Duration::from_millis(400),
            stop_margin: Duration::from_millis(300),
            pull_idle: Duration::from_millis(400),
            pull: Duration::from_secs(2),
            pull_pause: Duration::from_millis(10),
            comeback: Duration::from_secs(1),
            dead: Duration::from_millis(200),
            leftover: Duration::from_secs(300),
        };
        let fake = Self { dir, calls };
        let podman = Podman::with(
            fake.dir.path().join("s"),
            "ns".into(),
            fake.engines(),
            true,
            deadlines,
            helpers,
        );
        (fake, podman)
    }

    pub fn engines(&self) -> PathBuf {
        self.dir.path().join("e")
    }

    pub fn count(&self, call: &str) -> usize {
        self.calls.lock().unwrap().iter().filter(|c| c.starts_with(call)).count()
    }
}

fn serve(stream: UnixStream, script: &Script, log: &Mutex<Vec<String>>) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut stream = stream;
    let mut line = String::new();
    while reader.read_line(&mut line).is_ok_and(|n| n > 0) {
        let mut words = line.split(' ');
        let method = words.next().unwrap_or_default().to_owned();
        let path = words.next().unwrap_or_default();
        let path = path.split_once("/libpod").map_or(path, |(_, rest)| rest).to_owned();
        let mut length = 0;
        loop {
            let mut header = String::new();
            reader.read_line(&mut header).unwrap();
            if header.trim().is_empty() {
                break;
            }
            if let Some(value) = header.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).unwrap();
        let body = serde_json::from_slice(&body).unwrap_or_default();
        let before = {
            let mut log = log.lock().unwrap();
            log.push(format!("{method} {path}"));
            log.len() - 1
        };
        match script(&method, &path, &body, before) {
            Act::Say(status, value) => {
                let text = if value.is_null() { String::new() } else { value.to_string() };
                let _ = write!(
                    stream,
                    "HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{text}",
                    text.len()
                );
            }
            Act::Hang => std::thread::sleep(Duration::from_secs(20)),
            Act::Cut => return,
            Act::Bytes(text) => {
                let _ = stream.write_all(text.as_bytes());
                return;
            }
        }
        line.clear();
    }
}
