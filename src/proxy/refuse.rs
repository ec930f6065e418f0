//! The server of a daemon that could not start.
//!
//! Purpose: clients that wait in the queue of a socket that systemd holds learn why nobody serves them, instead of hanging.
//! Owner: the composition root, between a failed validation and the exit. Invariants: every request gets 503 with the cause; it
//! returns, even under a flood; when it returns, the queue was empty a moment ago.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{self, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::conn::{self, Busy, Pulse};
use super::end::End;
use super::endpoints::Dialect;
use super::error::ApiError;
use super::intake;
use super::port::Unobserved;
use super::record::Record;
use super::respond;
use super::server::{AcceptErrors, Limits};
use super::stream::{Listener, Peer, accept};
use super::strict;

/// A queue from which nothing came for so long is empty.
const QUIET: Duration = Duration::from_millis(100);
/// A flood may keep the queue from being quiet for so long after the grace.
const FLOOD: Duration = Duration::from_secs(10);
/// For a request to arrive and its answer to leave.
const LAST: Duration = Duration::from_secs(2);
/// When a client may find the daemon restarted.
const RETRY: Duration = Duration::from_secs(5);

/// Why there is no daemon, as whole sentences for people.
#[derive(Clone, Debug)]
pub struct Cause {
    /// All of it, with paths and texts of the configuration: for this host's clients.
    pub cause: String,
    /// What others may hear, of whom no key can be asked.
    pub brief: String,
}

impl Cause {
    fn told(&self, peer: Peer) -> &str {
        match peer {
            Peer::Unix | Peer::Loopback => &self.cause,
            Peer::Far | Peer::Monitoring => &self.brief,
        }
    }
}

/// Answers every queued and new connection with 503 and the cause until `grace` has passed and the queue has been quiet.
pub async fn refuse(listeners: Vec<Listener>, cause: Cause, grace: Duration) {
    let limits = Arc::new(Limits {
        header_timeout: LAST,
        idle_timeout: LAST,
        stall_timeout: LAST,
        ..Limits::default()
    });
    let error = |peer| {
        let cause = cause.told(peer);
        let error = ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "startup_failed", cause);
        Arc::new(error.retry_after(RETRY).closing())
    };
    let ending = End::default();
    let mut connections = JoinSet::new();
    let (mut turn, mut errors) = (0, AcceptErrors::default());
    let end = Instant::now() + grace;
    loop {
        let quiet = tokio::time::sleep_until(end.max(Instant::now() + QUIET));
        tokio::select! {
            biased;
            Some(_) = connections.join_next() => {}
            accepted = errors.accept(accept(&listeners, &mut turn)),
                if connections.len() < limits.max_connections => {
                if let Some((stream, peer)) = accepted {
                    let error = error(peer);
                    let answer = move |request, busy| Box::pin(answer(request, busy, error.clone()));
                    let pulse = Pulse::new(Arc::default());
                    let (limits, ending) = (limits.clone(), ending.clone());
                    connections.spawn(conn::run(stream, pulse, limits, ending, answer));
                }
            }
            () = quiet => break,
        }
        if Instant::now() > end + FLOOD {
            break;
        }
    }
    drop(listeners);
    // Requests that are still on their way get the same answer.
    let rest = async { while connections.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(LAST, rest).await;
}

async fn answer(
    request: Request<Incoming>,
    _busy: Busy,
    error: Arc<ApiError>,
) -> Response<Full<Bytes>> {
    let mut record = Record::new(request.headers(), std::sync::Arc::new(Unobserved));
    record.status = Some(error.status.as_u16());
    record.error = Some(error.code);
    let id = record.id();
    let (head, mut body) = request.into_parts();
    let dialect = Dialect::of(head.uri.path());
    if !strict::has(&head.headers, &header::EXPECT) {
        intake::discard(&mut body).await;
    }
    let mut response = respond::error(&error, dialect, &id);
    if head.method == Method::HEAD {
        response.body_mut().clear();
    }
    respond::name(response.headers_mut(), dialect, id);
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    record.complete();
    response.map(Full::new)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_hosts_hear_nothing_of_the_configuration() {
        let cause = Cause { cause: "/etc/x:3: sk-secret".into(), brief: "not started".into() };
        for (peer, says) in [
            (Peer::Unix, "/etc/x:3: sk-secret"),
            (Peer::Loopback, "/etc/x:3: sk-secret"),
            (Peer::Far, "not started"),
            (Peer::Monitoring, "not started"),
        ] {
            assert_eq!(cause.told(peer), says, "{peer:?}");
        }
    }
}
