//! To the engine, under a lease.
//!
//! Purpose: connect, send the request that we rebuilt, wait for the engine's head. Owner: the request's future. Invariants:
//! a request is sent on a fresh connection at most once; on a kept one it is sent first where there is one, and again only where
//! that one turns out, at once, to have been closed before a byte came back; dropping the future at any point closes the engine's
//! connection and returns the lease.

use std::io;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use hyper::header::{self, HeaderName, HeaderValue};
use hyper::{HeaderMap, Response, StatusCode};

use super::clock;
use super::endpoints::Events;
use super::error::ApiError;
use super::grant::Grant;
use super::message::{Framing, Head};
use super::order::Order;
use super::pool::Pool;
use super::relay::Relay;
use super::stream::Stream;
use super::strict;
use super::upstream::{Conn, Lost};

/// Bodies up to here are copied behind their heads.
const TOGETHER: usize = 4 << 10;

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

/// Why there is no answer of the engine's.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error("the engine could not be reached: {0}")]
    Connect(#[source] io::Error),
    #[error("the engine gave no answer: {0}")]
    NoAnswer(String),
    #[error("the engine answered with an upgrade, which nobody asked for")]
    Upgrade,
    #[error("the engine answered with a redirect ({}), which is not followed", .0.as_u16())]
    Redirect(StatusCode),
    #[error("the engine did not begin its answer within {0:?} ([server] answer_timeout)")]
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
            Self::NoAnswer(_) | Self::Upgrade | Self::Redirect(_) => {
                (StatusCode::BAD_GATEWAY, "engine_failed")
            }
            Self::Timeout(_) => (StatusCode::GATEWAY_TIMEOUT, "engine_timeout"),
        };
        let error = ApiError::new(status, code, format!("model {model}: {self}"));
        match self {
            // Nothing was sent, so nothing can be done twice.
            Self::Connect(_) => error.retry_after(Duration::from_secs(1)),
            // All that the engine did would be done once more, and thrown away as late.
            Self::Timeout(_) => ApiError { hopeless: true, ..error },
            Self::NoAnswer(_) | Self::Upgrade | Self::Redirect(_) => error,
        }
    }
}

/// Sends a request and waits for the head of the answer. The lease goes into the answer's body.
///
/// # Errors
/// When there is no head; the lease has been returned then.
pub(super) async fn forward(
    grant: Grant,
    order: &Order,
    engines: &Arc<Engines>,
) -> Result<Response<Relay>, Failure> {
    let events = order.told();
    // A small body goes out with the head in one piece, which is cheaper than two.
    let (ahead, body) = if order.body.len() <= TOGETHER {
        (&*order.body, &[][..])
    } else {
        (&[][..], &*order.body)
    };
    let head = grant.written(order, ahead);
    let patience = engines.header_timeout;
    let mut lost = None;
    if let Some(stream) = grant.lease().and_then(|lease| engines.pool.take(lease.instance())) {
        let since = clock::now();
        match ask(stream, &head, body, patience).await {
            Ok((conn, head)) => return Ok(answer(conn, head, grant, events, engines)),
            Err(Unanswered::Silent(error)) if may_ask_again(clock::since(since)) => {
                lost = Some(error)
            }
            Err(unanswered) => return Err(unanswered.into()),
        }
    }
    // Boxed, for TLS and a resolver need room that hardly any request needs.
    let stream = Box::pin(grant.connect(engines)).await.map_err(|failure| {
        // It has gone with the request in its hands: who asks again may be the one who made it go.
        lost.map_or(failure, |error| Unanswered::Silent(error).into())
    })?;
    let (conn, head) = ask(stream, &head, body, patience).await?;
    Ok(answer(conn, head, grant, events, engines))
}

/// Whether a kept connection that ended without a byte, so long after the request, was closed just as the request came, which nobody
/// could know: an engine on this host is heard of at once. Later, it had begun to work.
fn may_ask_again(after: Duration) -> bool {
    after < Duration::from_secs(1)
}

enum Unanswered {
    /// Not a byte came back.
    Silent(io::Error),
    Failed(Failure),
}

impl From<Unanswered> for Failure {
    fn from(unanswered: Unanswered) -> Self {
        match unanswered {
            Unanswered::Silent(error) => Lost::Silent(error).into(),
            Unanswered::Failed(failure) => failure,
        }
    }
}

async fn ask(
    stream: Stream,
    head: &[u8],
    body: &[u8],
    patience: Duration,
) -> Result<(Conn, Head), Unanswered> {
    let mut conn = Conn::new(stream);
    let asked = async {
        if let Err(error) = conn.send(head, body).await {
            // It may have said why before it closed.
            return conn.head().await.map_err(|lost| match lost {
                Lost::Silent(_) => Lost::Silent(error),
                Lost::Broken(why) => Lost::Broken(why),
            });
        }
        conn.head().await
    };
    let answered = clock::within(patience, std::pin::pin!(asked)).await;
    let head = match answered {
        Some(Ok(head)) => head,
        Some(Err(Lost::Silent(error))) => return Err(Unanswered::Silent(error)),
        Some(Err(Lost::Broken(why))) => return Err(Unanswered::Failed(Failure::NoAnswer(why))),
        None => return Err(Unanswered::Failed(Failure::Timeout(patience))),
    };
    Ok((conn, admitted(head).map_err(Unanswered::Failed)?))
}

/// A head that is an answer. A client would follow a redirect by itself, with its prompt and perhaps its key, to wherever the engine
/// says, and take what it finds there for the model's words.
pub(super) fn admitted(head: Head) -> Result<Head, Failure> {
    match head.status {
        StatusCode::SWITCHING_PROTOCOLS => Err(Failure::Upgrade),
        status if status.is_redirection() => Err(Failure::Redirect(status)),
        _ => Ok(head),
    }
}

/// nginx would gather a stream's events to 16 KiB otherwise, where it speaks TLS.
pub(super) const UNGATHERED: HeaderName = HeaderName::from_static("x-accel-buffering");

/// An engine's answer without what [`stays`]. `events`: what it carries, if it is a stream of events, and for which request.
pub(super) fn answer(
    conn: Conn,
    mut head: Head,
    mut grant: Grant,
    (events, id): (Events, &HeaderValue),
    engines: &Arc<Engines>,
) -> Response<Relay> {
    if !head.status.is_success() {
        grant.refused();
    }
    strip(&mut head.headers, head.framing);
    let stream = label(&mut head.headers);
    let keep = head.lasting.then(|| engines.clone());
    let events = stream.then(|| (events, id.clone()));
    let mut response = Response::new(Relay::new(conn, head.framing, grant, keep, events));
    *response.status_mut() = head.status;
    *response.headers_mut() = head.headers;
    response
}

/// Says what others are to do with an answer of this type. Returns whether it is a stream of events.
fn label(headers: &mut HeaderMap) -> bool {
    let mut types = strict::all(headers, header::CONTENT_TYPE);
    let (first, more) = (types.next(), types.next().is_some());
    drop(types);
    let content_type = first.map_or(&b""[..], HeaderValue::as_bytes);
    let essence = content_type.split(|b| *b == b';').next().unwrap_or_default().trim_ascii();
    let stream = essence.eq_ignore_ascii_case(b"text/event-stream");
    let data = stream || essence.eq_ignore_ascii_case(b"application/json");
    // A browser goes by the last of several types, in one value or in more.
    let data = data && !content_type.contains(&b',');
    if more && let Some(first) = first.cloned() {
        headers.insert(header::CONTENT_TYPE, first);
    }
    if stream && !strict::has(headers, &UNGATHERED) {
        headers.insert(UNGATHERED, HeaderValue::from_static("no"));
    }
    if !data {
        // A browser may show it, at our address: as a page of its own origin, which can do nothing in our dashboard's name.
        headers.append(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static("sandbox"));
    }
    stream
}

/// Whether a header of the engine's stays here: it is about its connection, or it speaks for more than its answer. Browsers take cookies,
/// redirects and the like for the word of the whole site, which is ours or our administrator's, and so does a proxy before us.
fn stays(name: &HeaderName) -> bool {
    let name = name.as_str();
    // To be compared is cheaper than to be looked up.
    matches!(
        name,
        "connection"
            | "keep-alive"
            | "proxy-connection"
            | "proxy-authenticate"
            | "proxy-authorization"
            | "te"
            | "trailer"
            | "transfer-encoding"
            | "upgrade"
    ) || matches!(
        name,
        "location"
            | "refresh"
            | "set-cookie"
            | "alt-svc"
            | "strict-transport-security"
            | "clear-site-data"
            | "nel"
            | "report-to"
            | "reporting-endpoints"
            | "x-accel-redirect"
            | "x-sendfile"
    ) || name.starts_with("access-control-")
}

/// Removes what [`stays`], including what the engine's `Connection` header names.
fn strip(headers: &mut HeaderMap, framing: Framing) {
    if !headers.keys().any(stays) {
        return;
    }
    let named: Vec<HeaderName> = strict::all(headers, header::CONNECTION)
        .flat_map(|v| v.as_bytes().split(|b| *b == b','))
        .filter_map(|token| HeaderName::from_bytes(token.trim_ascii()).ok())
        .filter(|name| *name != header::CONTENT_LENGTH)
        .collect();
    // Where the body came in chunks, a length was not what told its end, and would cut it off for who believes it.
    let chunked = framing == Framing::Chunked;
    let goes = |name: &&HeaderName| {
        stays(name) || named.contains(name) || (chunked && **name == header::CONTENT_LENGTH)
    };
    let gone: Vec<HeaderName> = headers.keys().filter(goes).cloned().collect();
    for name in &gone {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::super::order::tests::map;
    use super::*;

    /// What is told to the client of a head of these.
    fn told(pairs: &[(&'static str, &'static str)], framing: Framing) -> Vec<String> {
        let mut headers = map(pairs);
        strip(&mut headers, framing);
        let mut names: Vec<String> = headers.keys().map(|name| name.to_string()).collect();
        names.sort_unstable();
        names
    }

    #[test]
    fn the_client_sees_nothing_of_the_engines_connection() {
        let headers = [
            ("connection", "close, x-hop, content-length"),
            ("keep-alive", "timeout=5"),
            ("x-hop", "1"),
            ("transfer-encoding", "chunked"),
            ("content-type", "application/json"),
            ("server", "llama.cpp"),
            ("content-length", "5"),
        ];
        let whole = told(&headers, Framing::Length(5));
        assert_eq!(whole, ["content-length", "content-type", "server"]);
        assert_eq!(told(&headers, Framing::Chunked), ["content-type", "server"]);
    }

    /// Each alone: none of them waits for another to be seen.
    #[test]
    fn an_engine_says_nothing_for_the_whole_site_and_nothing_to_a_proxy() {
        for name in [
            "location",
            "refresh",
            "set-cookie",
            "alt-svc",
            "strict-transport-security",
            "clear-site-data",
            "nel",
            "report-to",
            "reporting-endpoints",
            "access-control-allow-origin",
            "access-control-allow-credentials",
            "x-accel-redirect",
            "x-sendfile",
        ] {
            let headers = [("content-type", "text/plain"), (name, "x"), ("openai-version", "1")];
            let told = told(&headers, Framing::Length(0));
            assert_eq!(told, ["content-type", "openai-version"], "{name}");
        }
    }

    #[test]
    fn what_a_browser_may_show_is_no_page_of_ours() {
        let policies = |content_type: &'static str, own: &'static str| {
            let mut headers = map(&[("content-type", content_type), (own, "x")]);
            label(&mut headers);
            headers.get_all("content-security-policy").iter().cloned().collect::<Vec<_>>()
        };
        for data in ["application/json", "Application/JSON; charset=utf-8", "text/event-stream"] {
            assert!(policies(data, "server").is_empty(), "{data}");
        }
        for page in ["text/html", "image/svg+xml", "application/xhtml+xml", "text/plain", ""] {
            assert_eq!(policies(page, "server"), ["sandbox"], "{page}");
        }
        assert_eq!(policies("text/html", "content-security-policy"), ["x", "sandbox"]);
    }

    /// A browser goes by the last type that it knows, in several headers or in one.
    #[test]
    fn two_types_are_no_way_out_of_the_sandbox() {
        let (data, page) = ("application/json", "text/html");
        for (first, second) in [(data, page), (page, data), ("text/event-stream", page)] {
            let mut headers = map(&[("content-type", first), ("content-type", second)]);
            label(&mut headers);
            let types: Vec<_> = headers.get_all("content-type").iter().cloned().collect();
            let sandbox = headers.contains_key("content-security-policy");
            assert_eq!((types, sandbox), (vec![HeaderValue::from_static(first)], first == page));
        }
        for both in [
            "application/json, text/html",
            "application/json; a=b, text/html",
            "text/event-stream;a=b,text/html",
        ] {
            let mut headers = map(&[("content-type", both)]);
            label(&mut headers);
            assert_eq!(headers["content-security-policy"], "sandbox", "{both}");
        }
    }
}
