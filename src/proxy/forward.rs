//! To the engine, under a lease.
//!
//! Purpose: connect, send the request that we rebuilt, wait for the engine's head. Owner: the request's future. Invariants:
//! a request is sent on a fresh connection at most once; on a kept one it is sent first where there is one, and again only where
//! that one turns out to have been closed before a byte came back; dropping the future at any point closes the engine's
//! connection and returns the lease.

use std::io;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyper::header::{self, HeaderName, HeaderValue};
use hyper::{HeaderMap, Method, Request, Response, StatusCode, Uri};

use super::endpoints::{Events, Task};
use super::error::ApiError;
use super::grant::Grant;
use super::message::Head;
use super::record::REQUEST_ID;
use super::relay::Relay;
use super::route::{Act, Recall};
use super::stream::Stream;
use super::trace::{TRACEPARENT, TRACESTATE};
use super::upstream::{Conn, Lost, Pool};

/// Headers of the client's that an engine may see. Keys and cookies are not among them: they are between the client and us.
const PASSED: [HeaderName; 8] = [
    header::CONTENT_TYPE,
    header::ACCEPT,
    header::USER_AGENT,
    TRACEPARENT,
    TRACESTATE,
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

/// All engines: patience with them, and connections that wait for their next request.
#[derive(Debug)]
pub(super) struct Engines {
    upstream: Upstream,
    pub pool: Pool,
}

impl Engines {
    pub fn new(upstream: Upstream) -> Arc<Self> {
        Arc::new(Self { upstream, pool: Pool::default() })
    }
}

impl Deref for Engines {
    type Target = Upstream;

    fn deref(&self) -> &Upstream {
        &self.upstream
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

impl From<Lost> for Failure {
    fn from(lost: Lost) -> Self {
        match lost {
            Lost::Silent(error) => Self::NoAnswer(error.to_string()),
            Lost::Broken(why) => Self::NoAnswer(why),
        }
    }
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
    engines: &Arc<Engines>,
) -> Result<Response<Relay>, Failure> {
    let events = order.target.events;
    let head = written(&grant.dress(request(&order), events));
    let patience = engines.header_timeout;
    if let Some(stream) = grant.lease().and_then(|lease| engines.pool.take(lease.instance())) {
        match ask(stream, &head, &order.body, patience).await {
            // It was closed just now, which nobody could know.
            Err(Unanswered::Silent(_)) => {}
            Err(Unanswered::Failed(failure)) => return Err(failure),
            Ok((conn, head)) => return Ok(answer(conn, head, grant, events, engines)),
        }
    }
    let stream = grant.connect(engines).await?;
    match ask(stream, &head, &order.body, patience).await {
        Ok((conn, head)) => Ok(answer(conn, head, grant, events, engines)),
        Err(Unanswered::Silent(error)) => Err(Failure::NoAnswer(error.to_string())),
        Err(Unanswered::Failed(failure)) => Err(failure),
    }
}

enum Unanswered {
    /// Not a byte came back.
    Silent(io::Error),
    Failed(Failure),
}

async fn ask(
    stream: Stream,
    head: &[u8],
    body: &Bytes,
    patience: Duration,
) -> Result<(Conn, Head), Unanswered> {
    let mut conn = Conn::new(stream);
    let asked = async {
        if let Err(error) = conn.send(&[head, body]).await {
            // It may have said why before it closed.
            return conn.head().await.map_err(|lost| match lost {
                Lost::Silent(_) => Lost::Silent(error),
                Lost::Broken(why) => Lost::Broken(why),
            });
        }
        conn.head().await
    };
    let head = match tokio::time::timeout(patience, asked).await {
        Ok(Ok(head)) => head,
        Ok(Err(Lost::Silent(error))) => return Err(Unanswered::Silent(error)),
        Ok(Err(Lost::Broken(why))) => return Err(Unanswered::Failed(Failure::NoAnswer(why))),
        Err(_) => return Err(Unanswered::Failed(Failure::Timeout(patience))),
    };
    if head.status == StatusCode::SWITCHING_PROTOCOLS {
        return Err(Unanswered::Failed(Failure::Upgrade));
    }
    Ok((conn, head))
}

/// An engine's answer without what is about its connection. `events`: what it carries, if it is a stream of events.
pub(super) fn answer(
    conn: Conn,
    mut head: Head,
    grant: Grant,
    events: Events,
    engines: &Arc<Engines>,
) -> Response<Relay> {
    strip(&mut head.headers);
    let content_type = head.headers.get(header::CONTENT_TYPE).map_or(&b""[..], |v| v.as_bytes());
    let essence = content_type.split(|b| *b == b';').next().unwrap_or_default().trim_ascii();
    let stream = essence.eq_ignore_ascii_case(b"text/event-stream");
    // To a stream of a stated length nothing can be appended.
    let open = stream && !head.headers.contains_key(header::CONTENT_LENGTH);
    // Engines close behind a stream, whatever they say.
    let keep = (head.lasting && !stream).then(|| engines.clone());
    let mut response =
        Response::new(Relay::new(conn, head.framing, grant, keep, open.then_some(events)));
    *response.status_mut() = head.status;
    *response.headers_mut() = head.headers;
    response
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

fn request(order: &Order<'_>) -> Request<()> {
    let length = order.body.len();
    let posts = order.target.method == Method::POST;
    let mut request = Request::new(());
    *request.method_mut() = order.target.method.clone();
    *request.uri_mut() = order.target.uri.clone();
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
    headers.insert(REQUEST_ID, order.id.clone());
    if posts {
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    }
    request
}

/// A request's head in its bytes.
pub(super) fn written(request: &Request<()>) -> Vec<u8> {
    let mut head = Vec::with_capacity(512);
    let target = request.uri().path_and_query().map_or("/", |target| target.as_str());
    for part in [request.method().as_str(), " ", target, " HTTP/1.1\r\n"] {
        head.extend_from_slice(part.as_bytes());
    }
    for (name, value) in request.headers() {
        for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
            head.extend_from_slice(part);
        }
    }
    head.extend_from_slice(b"\r\n");
    head
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
        let order = Order { target: Task::Chat.into(), headers: &headers, id, body };
        let head = written(&request(&order));
        let text = String::from_utf8(head).unwrap();
        let (line, rest) = text.split_once("\r\n").unwrap();
        assert_eq!(line, "POST /v1/chat/completions HTTP/1.1");
        let mut got: Vec<&str> = rest.strip_suffix("\r\n\r\n").unwrap().split("\r\n").collect();
        got.sort_unstable();
        let want = [
            "accept: text/event-stream",
            "content-length: 2",
            "content-type: application/json; charset=utf-8",
            "host: localhost",
            "traceparent: 00-1",
            "x-request-id: ours",
        ];
        assert_eq!(got, want);
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
}
