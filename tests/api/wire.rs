//! Raw bytes to and from the server: a client that can misbehave.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// Waits for an event; only a failure waits so long.
pub async fn soon<T>(what: &str, event: impl Future<Output = T>) -> T {
    match tokio::time::timeout(Duration::from_secs(20), event).await {
        Ok(value) => value,
        Err(_) => panic!("waited in vain for {what}"),
    }
}

/// An answer, taken apart.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: BTreeMap<String, String>,
    /// Without the framing.
    pub body: Vec<u8>,
    /// The sizes of the chunks, where there were any.
    pub chunks: Vec<usize>,
    /// The framing says that this was all.
    pub whole: bool,
}

impl Reply {
    pub fn parse(raw: &[u8]) -> Self {
        let text = String::from_utf8_lossy(raw);
        let end = raw.windows(4).position(|w| w == b"\r\n\r\n");
        let end = end.unwrap_or_else(|| panic!("no head in {text:?}"));
        let head = String::from_utf8(raw[..end].to_vec()).unwrap();
        let mut lines = head.split("\r\n");
        let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let headers: BTreeMap<String, String> = lines
            .map(|l| l.split_once(": ").unwrap())
            .map(|(n, v)| (n.to_ascii_lowercase(), v.to_owned()))
            .collect();
        let rest = &raw[end + 4..];
        let (body, chunks, whole) = if headers.contains_key("transfer-encoding") {
            dechunk(rest)
        } else if let Some(length) = headers.get("content-length") {
            let length: usize = length.parse().unwrap();
            (rest[..rest.len().min(length)].to_vec(), vec![], rest.len() >= length)
        } else {
            (rest.to_vec(), vec![], true)
        };
        Self { status, headers, body, chunks, whole }
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|e| panic!("{e}: {:?}", String::from_utf8_lossy(&self.body)))
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    /// Asserts OpenAI's error shape.
    pub fn error(&self, status: u16, code: &str) -> Value {
        assert_eq!(self.status, status, "{self:?}");
        assert_eq!(self.headers["content-type"], "application/json");
        assert!(self.headers.contains_key("x-request-id"));
        assert!(self.whole);
        let error = self.json()["error"].take();
        for key in ["message", "type", "param", "code"] {
            assert!(error.get(key).is_some(), "{key} is missing in {error}");
        }
        assert_eq!(error["code"], code, "{error}");
        assert!(!error["message"].as_str().unwrap().is_empty());
        error
    }
}

fn dechunk(mut rest: &[u8]) -> (Vec<u8>, Vec<usize>, bool) {
    let (mut body, mut chunks) = (Vec::new(), Vec::new());
    loop {
        let Some(eol) = rest.windows(2).position(|w| w == b"\r\n") else {
            return (body, chunks, false);
        };
        let size = std::str::from_utf8(&rest[..eol]).unwrap();
        let size = usize::from_str_radix(size, 16).unwrap();
        rest = &rest[eol + 2..];
        if size == 0 {
            return (body, chunks, rest.starts_with(b"\r\n"));
        }
        if rest.len() < size + 2 {
            body.extend_from_slice(&rest[..rest.len().min(size)]);
            return (body, chunks, false);
        }
        body.extend_from_slice(&rest[..size]);
        chunks.push(size);
        rest = &rest[size + 2..];
    }
}

/// A connection to the server.
pub struct Client<S> {
    pub io: S,
    /// All that has come so far.
    pub raw: Vec<u8>,
}

impl<S: Io> Client<S> {
    pub fn new(io: S) -> Self {
        Self { io, raw: Vec::new() }
    }

    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.io.write_all(bytes.as_ref()).await.unwrap();
    }

    /// Reads until `text` has come.
    pub async fn until(&mut self, text: &str) {
        let read = async {
            while !self.raw.windows(text.len()).any(|w| w == text.as_bytes()) {
                let n = self.io.read_buf(&mut self.raw).await.unwrap();
                assert_ne!(n, 0, "closed before {text:?}: {}", String::from_utf8_lossy(&self.raw));
            }
        };
        soon(text, read).await;
    }

    /// Reads until the server closes; the error is a reset.
    pub async fn end(&mut self) -> std::io::Result<()> {
        let read = async {
            loop {
                match self.io.read_buf(&mut self.raw).await {
                    Ok(0) => return Ok(()),
                    Ok(_) => {}
                    Err(error) => return Err(error),
                }
            }
        };
        soon("the server to close", read).await
    }

    /// Reads to the end and takes it apart.
    pub async fn reply(mut self) -> Reply {
        let _ = self.end().await;
        Reply::parse(&self.raw)
    }
}

/// A POST with a body, after which the connection ends.
pub fn post(path: &str, body: impl AsRef<[u8]>) -> Vec<u8> {
    post_with(path, "connection: close\r\n", body)
}

/// A POST with further header lines, each with its line end.
pub fn post_with(path: &str, headers: &str, body: impl AsRef<[u8]>) -> Vec<u8> {
    let body = body.as_ref();
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n{headers}\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

pub fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
}

pub const CHAT: &str = "/v1/chat/completions";
pub const BODY: &str = r#"{"model":"m","stream":true,"messages":[]}"#;
/// The head of a stream of server-sent events.
pub const SSE: &str =
    "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";

/// One chunk of a chunked body.
pub fn chunk(data: impl AsRef<[u8]>) -> Vec<u8> {
    let data = data.as_ref();
    [format!("{:x}\r\n", data.len()).as_bytes(), data, b"\r\n"].concat()
}
