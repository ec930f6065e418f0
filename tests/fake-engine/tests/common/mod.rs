//! A small HTTP client that hides nothing: heads, chunks and ends as they come.

#![allow(dead_code, reason = "each test program uses its own part")]
#![allow(clippy::allow_attributes, reason = "what is unused differs between the programs")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a panic is the failure report")]

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{
    AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader,
};
use tokio::net::UnixStream;

pub trait Wire: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Wire for T {}

pub struct Client(pub BufReader<Box<dyn Wire>>);

#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// Whether the body came to its own end, not the connection's.
    pub whole: bool,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&self.body)))
    }

    pub fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// The stream's events, `[DONE]` as the text that it is.
    pub fn events(&self) -> Vec<Value> {
        self.text()
            .split_terminator("\n\n")
            .map(|event| event.strip_prefix("data: ").expect(event))
            .map(|data| serde_json::from_str(data).unwrap_or_else(|_| json!(data)))
            .collect()
    }

    /// The streamed text.
    pub fn said(&self) -> String {
        let events = self.events();
        let parts = events.iter().filter_map(|event| {
            let choice = &event["choices"][0];
            choice["delta"]["content"].as_str().or(choice["text"].as_str())
        });
        parts.collect()
    }

    pub fn finish(&self) -> String {
        let events = self.events();
        let mut reasons = events.iter().filter_map(|e| e["choices"][0]["finish_reason"].as_str());
        reasons.next_back().unwrap_or("").to_owned()
    }

    pub fn done(&self) -> bool {
        self.events().last() == Some(&json!("[DONE]"))
    }
}

impl Client {
    pub async fn unix(socket: &Path) -> Self {
        Self::over(UnixStream::connect(socket).await.unwrap())
    }

    pub fn over(wire: impl Wire + 'static) -> Self {
        Self(BufReader::new(Box::new(wire)))
    }

    pub async fn send(&mut self, method: &str, path: &str, body: &Value) {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: engine\r\ncontent-type: application/json\r\n\
             x-request-id: r-1\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        self.0.write_all(request.as_bytes()).await.unwrap();
    }

    async fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        match self.0.read_line(&mut line).await {
            Ok(0) | Err(_) => None,
            Ok(_) => Some(line.trim_end().to_owned()),
        }
    }

    /// The answer's head; `None` when the connection ended first.
    pub async fn head(&mut self) -> Option<Answer> {
        let status = self.line().await?.split(' ').nth(1)?.parse().ok()?;
        let mut head = Vec::new();
        loop {
            let line = self.line().await?;
            let Some((name, value)) = line.split_once(": ") else { break };
            head.push((name.to_ascii_lowercase(), value.to_owned()));
        }
        Some(Answer { status, head, body: Vec::new(), whole: false })
    }

    /// One more chunk of a streamed body; empty at its end, `None` when the connection ended first.
    pub async fn chunk(&mut self) -> Option<Vec<u8>> {
        let size = usize::from_str_radix(&self.line().await?, 16).ok()?;
        let mut chunk = vec![0; size + 2];
        self.0.read_exact(&mut chunk).await.ok()?;
        chunk.truncate(size);
        Some(chunk)
    }

    pub async fn rest(&mut self, mut answer: Answer) -> Answer {
        if let Some(length) = answer.header("content-length") {
            let mut body = vec![0; length.parse().unwrap()];
            answer.whole = self.0.read_exact(&mut body).await.is_ok();
            answer.body = body;
            return answer;
        }
        while let Some(chunk) = self.chunk().await {
            if chunk.is_empty() {
                answer.whole = true;
                break;
            }
            answer.body.extend(chunk);
        }
        answer
    }

    pub async fn call(&mut self, method: &str, path: &str, body: &Value) -> Answer {
        self.send(method, path, body).await;
        let answer = self.head().await.expect("an answer");
        self.rest(answer).await
    }

    /// Whether the other side has closed, without sending anything more.
    pub async fn closed_within(&mut self, time: Duration) -> bool {
        let mut byte = [0];
        matches!(tokio::time::timeout(time, self.0.read(&mut byte)).await, Ok(Ok(0) | Err(_)))
    }
}

pub fn chat(tokens: u64, stream: bool) -> Value {
    json!({
        "model": "m",
        "messages": [{"role": "user", "content": "please count"}],
        "max_tokens": tokens,
        "stream": stream,
    })
}

pub async fn get(socket: &Path, path: &str) -> Answer {
    Client::unix(socket).await.call("GET", path, &Value::Null).await
}

pub async fn post(socket: &Path, path: &str, body: &Value) -> Answer {
    Client::unix(socket).await.call("POST", path, body).await
}

pub async fn stream(socket: &Path, tokens: u64) -> Answer {
    post(socket, "/v1/chat/completions", &chat(tokens, true)).await
}

pub async fn configure(socket: &Path, knobs: Value) {
    let answer = Client::unix(socket).await.call("PUT", "/_fake/config", &knobs).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
}

/// Waits until `check` holds of `GET /_fake/state`; how long it took, at most `most`.
pub async fn until(socket: &Path, most: Duration, check: impl Fn(&Value) -> bool) -> Duration {
    let begun = std::time::Instant::now();
    loop {
        let state = get(socket, "/_fake/state").await.json();
        if check(&state) {
            return begun.elapsed();
        }
        assert!(begun.elapsed() < most, "not within {most:?}: {state:#}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

pub fn count(tokens: u64) -> String {
    (1..=tokens).map(|n| format!(" {n}")).collect()
}

pub const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}
