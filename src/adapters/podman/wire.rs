//! A small HTTP/1.1 client on podman's Unix socket.
//!
//! Purpose: the calls that `podman-api` gets wrong (create, stop, pull: see [`super::api`]) or reads too much for
//! (inspect walks the whole root file system, logs can panic). Owner: [`super::api::Api`]. Invariants: one connection
//! a call, closed with it, so a broken one is never met twice; every call has a deadline; a body is never larger
//! than [`BODY_MAX`].

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::{Method, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::UnixStream;
use tokio::task::JoinHandle;

use super::error::PodmanError;

/// The largest answer that is read, in bytes; an inspect has some 10 kB.
const BODY_MAX: usize = 16 << 20;
/// The longest line of a streamed answer that is kept, in bytes.
const LINE_MAX: usize = 64 << 10;
/// Of an answer without podman's fields, so many characters go into the error.
const RAW_MAX: usize = 200;
/// How long the head of a streamed answer may take.
const HEAD_TIME: Duration = Duration::from_secs(10);
/// Accepted by podman 4.x, 5.x and 6.x; newer paths change the types of fields.
const PREFIX: &str = "http://d/v4.0.0/libpod";

/// Where to connect.
#[derive(Clone, Debug)]
pub struct Wire {
    socket: PathBuf,
}

/// Ends the connection's task with the call, also when the caller gives up.
pub(super) struct Driver(JoinHandle<()>);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Wire {
    /// Connects lazily: nothing happens until the first call.
    #[must_use]
    pub fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    /// The socket's path.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// One call; returns the body. `path` begins after `/libpod` and is already encoded; `what` is how errors name
    /// the call.
    ///
    /// # Errors
    /// [`PodmanError::Refused`] for every status of 400 and above, the others as they say.
    pub async fn call(
        &self,
        what: &str,
        method: Method,
        path: &str,
        body: Option<&Value>,
        deadline: Duration,
    ) -> Result<Bytes, PodmanError> {
        let work = async {
            let (response, _driver) = self.send(what, method, path, body).await?;
            let status = response.status();
            let body = read_all(what, response.into_body()).await?;
            check(what, status, &body)?;
            Ok(body)
        };
        tokio::time::timeout(deadline, work)
            .await
            .unwrap_or_else(|_| Err(PodmanError::Deadline { what: what.into(), after: deadline }))
    }

    /// One call whose answer comes as lines over a long time; `line` sees each. `idle` bounds the time between two
    /// pieces of the answer, `deadline` the whole. Dropping the future closes the connection, by which podman
    /// cancels the work.
    ///
    /// # Errors
    /// As [`Wire::call`], or what `line` returns.
    pub async fn lines(
        &self,
        what: &str,
        method: Method,
        path: &str,
        idle: Duration,
        deadline: Duration,
        line: &mut (dyn FnMut(&[u8]) -> Result<(), PodmanError> + Send),
    ) -> Result<(), PodmanError> {
        let late = |after| PodmanError::Deadline { what: what.into(), after };
        let work = async {
            let sent = tokio::time::timeout(idle, self.send(what, method, path, None)).await;
            let (response, _driver) = sent.map_err(|_| late(idle))??;
            let status = response.status();
            let mut body = response.into_body();
            if status.as_u16() >= 400 {
                let read = tokio::time::timeout(idle, read_all(what, body)).await;
                return check(what, status, &read.map_err(|_| late(idle))??);
            }
            let mut buffer: Vec<u8> = Vec::new();
            loop {
                let frame = tokio::time::timeout(idle, body.frame()).await;
                let Some(frame) = frame.map_err(|_| late(idle))? else { break };
                let Ok(data) = frame.map_err(|e| lost(what, &e))?.into_data() else { continue };
                buffer.extend_from_slice(&data);
                while let Some(end) = buffer.iter().position(|b| *b == b'\n') {
                    line(&buffer[..end])?;
                    buffer.drain(..=end);
                }
                if buffer.len() > LINE_MAX {
                    let detail = format!("a line of more than {LINE_MAX} bytes");
                    return Err(PodmanError::Garbage { what: what.into(), detail });
                }
            }
            line(&buffer)
        };
        tokio::time::timeout(deadline, work).await.unwrap_or_else(|_| Err(late(deadline)))
    }

    /// A call whose answer comes piece by piece, for as long as its connection is held.
    ///
    /// # Errors
    /// As [`Wire::call`]; the answer's head is waited for at most [`HEAD_TIME`].
    pub(super) async fn stream(
        &self,
        what: &str,
        path: &str,
    ) -> Result<(Incoming, Driver), PodmanError> {
        let work = async {
            let (response, driver) = self.send(what, Method::GET, path, None).await?;
            let status = response.status();
            let body = response.into_body();
            if status.as_u16() >= 400 {
                check(what, status, &read_all(what, body).await?)?;
                return Err(PodmanError::Garbage { what: what.into(), detail: status.to_string() });
            }
            Ok((body, driver))
        };
        let late = |_| Err(PodmanError::Deadline { what: what.into(), after: HEAD_TIME });
        tokio::time::timeout(HEAD_TIME, work).await.unwrap_or_else(late)
    }

    /// One call with a body of bytes; returns the answer's.
    ///
    /// # Errors
    /// As [`Wire::call`].
    pub async fn post_bytes(
        &self,
        what: &str,
        path: &str,
        kind: &str,
        body: Vec<u8>,
        deadline: Duration,
    ) -> Result<Bytes, PodmanError> {
        let work = async {
            let sent = self.send_bytes(what, Method::POST, path, kind, body).await;
            let (response, _driver) = sent?;
            let status = response.status();
            let body = read_all(what, response.into_body()).await?;
            check(what, status, &body)?;
            Ok(body)
        };
        tokio::time::timeout(deadline, work)
            .await
            .unwrap_or_else(|_| Err(PodmanError::Deadline { what: what.into(), after: deadline }))
    }

    async fn send(
        &self,
        what: &str,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<(Response<Incoming>, Driver), PodmanError> {
        let bytes = body.map(|v| v.to_string().into_bytes()).unwrap_or_default();
        self.send_bytes(what, method, path, "application/json", bytes).await
    }

    async fn send_bytes(
        &self,
        what: &str,
        method: Method,
        path: &str,
        kind: &str,
        bytes: Vec<u8>,
    ) -> Result<(Response<Incoming>, Driver), PodmanError> {
        let unreachable = |e: std::io::Error| PodmanError::Unreachable {
            socket: self.socket.clone(),
            reason: e.to_string(),
        };
        let stream = UnixStream::connect(&self.socket).await.map_err(unreachable)?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|e| lost(what, &e))?;
        let driver = Driver(tokio::spawn(async move {
            // Its error reaches the caller through the request.
            let _ = connection.await;
        }));
        let request = hyper::Request::builder()
            .method(method)
            .uri(format!("{PREFIX}{path}"))
            .header("host", "d")
            .header("content-type", kind)
            .body(Full::new(Bytes::from(bytes)))
            .map_err(|e| PodmanError::Garbage { what: what.into(), detail: e.to_string() })?;
        let response = sender.send_request(request).await.map_err(|e| lost(what, &e))?;
        Ok((response, driver))
    }
}

fn lost(what: &str, error: &hyper::Error) -> PodmanError {
    if error.is_parse() {
        return PodmanError::Garbage { what: what.into(), detail: error.to_string() };
    }
    PodmanError::Lost { what: what.into(), reason: error.to_string() }
}

async fn read_all(what: &str, body: Incoming) -> Result<Bytes, PodmanError> {
    let limited = http_body_util::Limited::new(body, BODY_MAX);
    let collected = limited.collect().await.map_err(|e| PodmanError::Lost {
        what: what.into(),
        reason: format!("the body ended early or is too large: {e}"),
    })?;
    Ok(collected.to_bytes())
}

/// Turns podman's `{cause, message, response}` into a refusal.
fn check(what: &str, status: StatusCode, body: &[u8]) -> Result<(), PodmanError> {
    if status.as_u16() < 400 {
        return Ok(());
    }
    let parsed: Option<Value> = serde_json::from_slice(body).ok();
    let field = |name: &str| {
        parsed.as_ref().and_then(|v| v.get(name)).and_then(Value::as_str).unwrap_or_default()
    };
    let (message, cause) = (field("message"), field("cause"));
    // A pod answers with what each of its containers said.
    let each = parsed.as_ref().and_then(|v| v.get("Errs")).and_then(Value::as_array);
    let each: Vec<&str> = each.into_iter().flatten().filter_map(Value::as_str).collect();
    let text = if !each.is_empty() {
        each.join("; ")
    } else if message.is_empty() && cause.is_empty() {
        let raw: String = String::from_utf8_lossy(body).chars().take(RAW_MAX).collect();
        format!("{status} {}", raw.trim())
    } else if message.contains(cause) {
        message.to_owned()
    } else {
        format!("{message}: {cause}")
    };
    Err(PodmanError::refused(what, &text))
}

/// Percent-encodes a value for a query.
#[must_use]
pub fn encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapters::podman::error::Cause;

    #[test]
    fn refusals_carry_podmans_words() {
        let body = br#"{"cause":"that name is already in use","message":"creating: taken","response":500}"#;
        let e = check("create", StatusCode::INTERNAL_SERVER_ERROR, body).unwrap_err();
        assert_eq!(e.cause(), Some(Cause::NameTaken));
        assert!(e.to_string().contains("creating: taken: that name is already in use"), "{e}");
        let e = check("create", StatusCode::BAD_GATEWAY, b"<html>").unwrap_err();
        assert!(e.to_string().contains("502 Bad Gateway <html>"), "{e}");
        assert!(check("stop", StatusCode::NOT_MODIFIED, b"").is_ok());
    }

    #[test]
    fn several_lines_of_podmans_are_one_of_ours() {
        let body = br#"{"cause":"OCI runtime error","message":"crun: no such device:\nREADY=1\r\n","response":500}"#;
        let e = check("start", StatusCode::INTERNAL_SERVER_ERROR, body).unwrap_err();
        let text = "podman refused \"start\": crun: no such device: READY=1 : OCI runtime error";
        assert_eq!(e.to_string(), text);
        let e = check("start", StatusCode::BAD_GATEWAY, b"<html>\n<body>").unwrap_err();
        assert!(e.to_string().ends_with("502 Bad Gateway <html> <body>"), "{e}");
    }

    #[test]
    fn queries_are_encoded() {
        assert_eq!(encode("a/b:1@x +{\"é"), "a%2Fb%3A1%40x%20%2B%7B%22%C3%A9");
    }
}
