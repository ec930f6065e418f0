//! Talking to the endpoint as a person does, with curl inside the host. Owner: the test. Invariant: nothing is retried and
//! nothing is made up; an answer that is not whole is an error.

use std::process::{Child, Stdio};

use serde_json::{Value, json};
use testhost::{Host, Result};

/// Where the daemon listens.
const BASE: &str = "http://127.0.0.1:8711";
/// No test waits longer for one answer; it is also longer than any back-off between two starts of the daemon.
const ANSWER_MAX_S: &str = "90";

/// A whole answer.
#[derive(Debug)]
pub struct Answer {
    /// HTTP's status; 0 if there was no answer.
    pub status: u16,
    /// The head, in lower case.
    pub head: String,
    /// The body.
    pub body: String,
    /// Why curl failed; empty if it did not.
    pub failure: String,
}

impl Answer {
    /// What `curl -i` printed.
    pub fn of(text: &str) -> Self {
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or((text, ""));
        let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
        Self { status, head: head.to_lowercase(), body: body.to_owned(), failure: String::new() }
    }

    /// The body as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|err| panic!("{err} in {self:?}"))
    }

    /// The value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines.find(|(key, _)| *key == name).map(|(_, value)| value)
    }

    /// The streamed text, put together again.
    pub fn streamed(&self) -> Streamed {
        assert_eq!((self.status, self.failure.as_str()), (200, ""), "{self:?}");
        assert_eq!(self.header("content-type"), Some("text/event-stream"), "{}", self.head);
        let mut streamed = Streamed { text: String::new(), pieces: 0, done: false };
        for line in self.body.lines().filter(|line| !line.is_empty() && !line.starts_with(':')) {
            assert!(!streamed.done, "{line:?} after the end");
            let data = line.strip_prefix("data: ").unwrap_or_else(|| panic!("no event: {line:?}"));
            if data == "[DONE]" {
                streamed.done = true;
                continue;
            }
            let event: Value = serde_json::from_str(data).unwrap_or_else(|e| panic!("{e}: {data}"));
            if let Some(piece) = event["choices"][0]["delta"]["content"].as_str() {
                streamed.text.push_str(piece);
                streamed.pieces += 1;
            }
        }
        streamed
    }
}

/// What a stream of server-sent events said.
#[derive(Debug, PartialEq, Eq)]
pub struct Streamed {
    /// All pieces in their order.
    pub text: String,
    /// How many there were.
    pub pieces: usize,
    /// It ended as it should.
    pub done: bool,
}

/// A request under way. It is the test's to wait for.
#[derive(Debug)]
pub struct Pending(Child);

impl Pending {
    /// Waits for the answer.
    pub fn wait(self) -> Answer {
        let output = self.0.wait_with_output().expect("curl is waited for");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let mut failure = String::from_utf8_lossy(&output.stderr).into_owned();
        if !output.status.success() && failure.is_empty() {
            failure = output.status.to_string();
        }
        Answer { failure, ..Answer::of(&text) }
    }
}

/// Starts a curl with these arguments.
pub fn send(host: &Host, args: &[&str]) -> Pending {
    let mut command = host.command("curl");
    command.args(["-sS", "-i", "-N", "--max-time", ANSWER_MAX_S]).args(args);
    let spawned =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    Pending(spawned.expect("curl starts"))
}

/// One curl with these arguments.
pub fn curl(host: &Host, args: &[&str]) -> Answer {
    send(host, args).wait()
}

/// `GET path`.
pub fn get(host: &Host, path: &str) -> Result<Answer> {
    Ok(curl(host, &[&format!("{BASE}{path}")]))
}

/// `POST path` of a JSON text; the answer is waited for later.
pub fn post(host: &Host, path: &str, body: &str) -> Pending {
    let url = format!("{BASE}{path}");
    send(host, &["-H", "content-type: application/json", "--data-binary", body, &url])
}

/// A streamed chat completion of a model, greedily, of so many tokens at most.
pub fn count_request(model: &str, tokens_max: usize) -> String {
    let messages = json!([{"role": "user", "content": "go"}]);
    // The model may also end by itself: it says 512 numbers and stops.
    json!({
        "model": model, "stream": true, "temperature": 0, "messages": messages,
        "max_tokens": tokens_max + usize::from(tokens_max == 512),
    })
    .to_string()
}
