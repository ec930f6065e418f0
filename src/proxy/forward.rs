//! To the engine, under a lease.
//!
//! Purpose: connect, send the request that we rebuilt, wait for the engine's head. Owner: the request's future. Invariants:
//! a request is sent at most once (only connecting is tried again, when no byte has gone out); dropping the future at any
//! point closes the engine's connection and returns the lease.
//!
//! Connections are not kept: llama-server closes after every stream without a word, and a connection on loopback costs some
//! tens of microseconds.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::header::{self, HeaderName, HeaderValue};
use hyper::{HeaderMap, Method, Request, Response, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use tokio::time::Instant;

use super::endpoints::{Events, Task};
use super::error::ApiError;
use super::grant::Grant;
use super::record::REQUEST_ID;
use super::relay::{Driver, Relay, chain};
use super::route::{Act, Recall};
use super::stream::Stream;
use crate::supervisor::ports::Endpoint;

/// Headers of the client's that an engine may see. Keys and cookies are not among them: they are between the client and us.
const PASSED: [HeaderName; 8] = [
    header::CONTENT_TYPE,
    header::ACCEPT,
    header::USER_AGENT,
    HeaderName::from_static("traceparent"),
    HeaderName::from_static("tracestate"),
    HeaderName::from_static("anthropic-version"),
    HeaderName::from_static("anthropic-beta"),
    HeaderName::from_static("openai-beta"),
];

/// Headers of the engine's that are about its connection, not about its answer.
const HOP_BY_HOP: [HeaderName; 9] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// Patience with engines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upstream {
    /// To connect. Long for a local socket: a busy engine's queue of connections may be full for a while.
    pub connect_timeout: Duration,
    /// From the request to the head of the answer, which comes with the first token of a stream and with the last one otherwise.
    pub header_timeout: Duration,
}

impl Default for Upstream {
    fn default() -> Self {
        Self { connect_timeout: Duration::from_secs(10), header_timeout: Duration::from_secs(600) }
    }
}

/// What an engine is asked, and in which form it may answer.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub method: Method,
    pub uri: Uri,
    pub events: Events,
}

impl From<Task> for Target {
    fn from(task: Task) -> Self {
        Self { method: Method::POST, uri: Uri::from_static(task.path()), events: task.events() }
    }
}

impl From<&Recall> for Target {
    fn from(recall: &Recall) -> Self {
        let (method, end) = match recall.act {
            Act::Retrieve => (Method::GET, ""),
            Act::Cancel => (Method::POST, "/cancel"),
        };
        // An identifier is letters, digits, `_` and `-`; were it not so, the engine would refuse the bare path.
        let uri = Uri::try_from(format!("/v1/responses/{}{end}", recall.id));
        let uri = uri.unwrap_or_else(|_| Uri::from_static("/v1/responses"));
        Self { method, uri, events: Events::Responses }
    }
}

/// What is to be sent.
pub(super) struct Order<'a> {
    pub target: Target,
    /// The client's, to pick from.
    pub headers: &'a HeaderMap,
    pub id: HeaderValue,
    pub body: Bytes,
}

/// Why there is no answer of the engine's.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error("the engine could not be reached: {0}")]
    Connect(#[source] io::Error),
    #[error("the engine gave no answer: {0}")]
    NoAnswer(String),
    #[error("the engine answered with an upgrade, which nobody asked for")]
    Upgrade,
    #[error("the engine sent no head within {0:?}")]
    Timeout(Duration),
}

impl Failure {
    /// As the client gets it.
    pub fn to_api(&self, model: &str) -> ApiError {
        let (status, code) = match self {
            Self::Connect(_) => (StatusCode::BAD_GATEWAY, "engine_unreachable"),
            Self::NoAnswer(_) | Self::Upgrade => (StatusCode::BAD_GATEWAY, "engine_failed"),
            Self::Timeout(_) => (StatusCode::GATEWAY_TIMEOUT, "engine_timeout"),
        };
        let error = ApiError::new(status, code, format!("model {model}: {self}"));
        match self {
            // Nothing was sent, so nothing can be done twice.
            Self::Connect(_) => error.retry_after(Duration::from_secs(1)),
            Self::NoAnswer(_) | Self::Upgrade | Self::Timeout(_) => error,
        }
    }
}

/// Sends a request and waits for the head of the answer. The lease goes into the answer's body.
///
/// # Errors
/// When there is no head; the lease has been returned then.
pub(super) async fn forward(
    grant: Grant,
    order: Order<'_>,
    upstream: &Upstream,
) -> Result<Response<Relay>, Failure> {
    let stream = grant.connect(upstream).await?;
    let handshake = http1::handshake::<_, Full<Bytes>>(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(|e| Failure::NoAnswer(chain(&e)))?;
    let driver = Driver::spawn(async move {
        // Whoever waits for the answer gets the error too.
        let _ = connection.await;
    });
    let events = order.target.events;
    let sent = tokio::time::timeout(
        upstream.header_timeout,
        sender.send_request(grant.dress(request(order), events)),
    );
    let response = match sent.await {
        Ok(Ok(response)) => response,
        Ok(Err(error)) => return Err(Failure::NoAnswer(chain(&error))),
        Err(_) => return Err(Failure::Timeout(upstream.header_timeout)),
    };
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        return Err(Failure::Upgrade);
    }
    Ok(answer(response, driver, grant, events))
}

/// An engine's answer without what is about its connection. `events`: what it carries, if it is a stream of events.
pub(super) fn answer(
    response: Response<Incoming>,
    driver: Driver,
    grant: Grant,
    events: Events,
) -> Response<Relay> {
    let (mut head, body) = response.into_parts();
    head.version = hyper::Version::HTTP_11;
    head.extensions.clear();
    strip(&mut head.headers);
    let content_type = head.headers.get(header::CONTENT_TYPE).map_or(&b""[..], |v| v.as_bytes());
    let essence = content_type.split(|b| *b == b';').next().unwrap_or_default().trim_ascii();
    // To a stream of a stated length nothing can be appended.
    let streams = essence.eq_ignore_ascii_case(b"text/event-stream")
        && !head.headers.contains_key(header::CONTENT_LENGTH);
    Response::from_parts(head, Relay::new(body, driver, grant, streams.then_some(events)))
}

/// Removes what is about the engine's connection, including what its `Connection` header names.
fn strip(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .flat_map(|v| v.as_bytes().split(|b| *b == b','))
        .filter_map(|token| HeaderName::from_bytes(token.trim_ascii()).ok())
        .filter(|name| *name != header::CONTENT_LENGTH)
        .collect();
    for name in named.iter().chain(&HOP_BY_HOP) {
        headers.remove(name);
    }
}

fn request(order: Order<'_>) -> Request<Full<Bytes>> {
    let length = order.body.len();
    let posts = order.target.method == Method::POST;
    let mut request = Request::new(Full::new(order.body));
    *request.method_mut() = order.target.method;
    *request.uri_mut() = order.target.uri;
    let headers = request.headers_mut();
    headers.insert(header::HOST, HeaderValue::from_static("localhost"));
    if posts {
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    }
    for name in PASSED {
        if let Some(value) = order.headers.get(&name) {
            headers.insert(name, value.clone());
        }
    }
    headers.insert(REQUEST_ID, order.id);
    if posts {
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    }
    request
}

/// Connects. A Unix listener whose queue is full says so at once, where TCP would wait: then it is tried until the deadline.
/// Any other failure is tried once more, after a moment.
pub(super) async fn connect(endpoint: &Endpoint, timeout: Duration) -> Result<Stream, Failure> {
    let deadline = Instant::now() + timeout;
    let mut pause = Duration::from_millis(1);
    let mut failed = false;
    loop {
        let attempt = tokio::time::timeout_at(deadline, Stream::connect(endpoint)).await;
        let error = match attempt.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
            Ok(stream) => return Ok(stream),
            Err(error) => error,
        };
        let full = error.kind() == io::ErrorKind::WouldBlock;
        if Instant::now() >= deadline || (failed && !full) {
            return Err(Failure::Connect(error));
        }
        failed |= !full;
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let pair = |(n, v): &(&'static str, &'static str)| {
            (HeaderName::from_static(n), HeaderValue::from_static(v))
        };
        pairs.iter().map(pair).collect()
    }

    #[test]
    fn the_engine_sees_only_what_is_allowed() {
        let headers = map(&[
            ("authorization", "Bearer k"),
            ("cookie", "c=1"),
            ("x-api-key", "k"),
            ("host", "evil"),
            ("connection", "keep-alive"),
            ("transfer-encoding", "chunked"),
            ("x-forwarded-for", "10.0.0.1"),
            ("content-type", "application/json; charset=utf-8"),
            ("accept", "text/event-stream"),
            ("traceparent", "00-1"),
            ("x-request-id", "theirs"),
        ]);
        let id = HeaderValue::from_static("ours");
        let body = Bytes::from_static(b"{}");
        let request = request(Order { target: Task::Chat.into(), headers: &headers, id, body });
        let mut got: Vec<String> = request
            .headers()
            .iter()
            .map(|(n, v)| format!("{n}: {}", v.to_str().unwrap()))
            .collect();
        got.sort();
        let want = [
            "accept: text/event-stream",
            "content-length: 2",
            "content-type: application/json; charset=utf-8",
            "host: localhost",
            "traceparent: 00-1",
            "x-request-id: ours",
        ];
        assert_eq!(got, want);
        assert_eq!(request.uri(), "/v1/chat/completions");
    }

    #[test]
    fn the_client_sees_nothing_of_the_engines_connection() {
        let mut headers = map(&[
            ("connection", "close, x-hop, content-length"),
            ("keep-alive", "timeout=5"),
            ("x-hop", "1"),
            ("transfer-encoding", "chunked"),
            ("content-type", "application/json"),
            ("server", "llama.cpp"),
            ("content-length", "5"),
        ]);
        strip(&mut headers);
        let mut names: Vec<&str> = headers.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["content-length", "content-type", "server"]);
    }

    #[tokio::test]
    async fn connecting_is_tried_twice_and_then_given_up() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("e.sock");
        let endpoint = Endpoint::Unix(path.clone());
        let failure = connect(&endpoint, Duration::from_secs(5)).await.unwrap_err();
        let api = failure.to_api("m");
        assert_eq!((api.status.as_u16(), api.code), (502, "engine_unreachable"));
        assert!(api.message.starts_with("model m: the engine could not be reached: "), "{api:?}");
        let _listener = tokio::net::UnixListener::bind(&path).unwrap();
        connect(&endpoint, Duration::from_secs(5)).await.unwrap();
    }
}
