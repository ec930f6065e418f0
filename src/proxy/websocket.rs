//! WebSockets, for `/v1/realtime`.
//!
//! Purpose: pass the opening to the engine, then carry bytes both ways. Owner: the request's future for the opening; then a task
//! of its own that the service's tracker counts. Invariants: the lease lives as long as the socket; either side's end ends the other, soon, whether it
//! listens or not; what is passed of the opening is from an allowlist; frames are not looked at.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::Either;
use hyper::header::{self, HeaderName, HeaderValue};
use hyper::http::request::Parts;
use hyper::upgrade::OnUpgrade;
use hyper::{HeaderMap, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::answer::Source;
use super::endpoints::Events;
use super::error::ApiError;
use super::forward::{self, Failure};
use super::grant::Grant;
use super::inference::Visitor;
use super::order;
use super::patience::Asking;
use super::protocols;
use super::record::{REQUEST_ID, Record};
use super::service::Service;
use super::trace::{TRACEPARENT, TRACESTATE};
use super::upstream::{Conn, Lost};
use crate::types::{Denied, DoorSpec};

/// After one side's end, so long the other may take to end too. Neither may hold the lease, the turn and the connection any longer.
const LAST_FRAMES: Duration = Duration::from_secs(5);

/// Bytes that are carried at once.
const PIECE: usize = 8 << 10;

/// What the engine sees of the opening, beside what [`protocols`] lets pass.
const PASSED: [HeaderName; 7] = [
    header::SEC_WEBSOCKET_KEY,
    header::SEC_WEBSOCKET_VERSION,
    header::SEC_WEBSOCKET_EXTENSIONS,
    header::USER_AGENT,
    TRACEPARENT,
    TRACESTATE,
    HeaderName::from_static("openai-beta"),
];

/// What the client sees of the engine's consent.
const RETURNED: [HeaderName; 3] = [
    header::SEC_WEBSOCKET_ACCEPT,
    header::SEC_WEBSOCKET_PROTOCOL,
    header::SEC_WEBSOCKET_EXTENSIONS,
];

/// Opens a socket to a model's engine.
///
/// # Errors
/// Why there is none. What the engine says instead of consent comes back as any answer of its.
pub(super) async fn open(
    service: &Arc<Service>,
    mut head: Parts,
    model: String,
    visitor: &Visitor,
    record: &mut Record,
) -> Result<Response<Source>, ApiError> {
    record.is_for(&model, visitor.rules.resolve(&model));
    if let Some(error) = ApiError::impossible_model(&model) {
        return Err(error);
    }
    if protocols::are_private(&head.headers) {
        let message = "the WebSocket offers nothing but its key as a protocol, which is not sent back: offer \"realtime\", too, as in \
             new WebSocket(url, [\"realtime\", \"openai-insecure-api-key.KEY\"])";
        let mut error = ApiError::new(StatusCode::BAD_REQUEST, "invalid_value", message);
        error.param = Some("Sec-WebSocket-Protocol");
        return Err(error);
    }
    let client = head.extensions.remove::<OnUpgrade>().ok_or_else(|| {
        ApiError::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "internal",
            "the connection cannot be upgraded",
        )
    })?;
    record.queue_begins();
    let granted = grant(service, &model, visitor, &record.id()).await;
    record.queue_ends();
    let (grant, spec) = granted?;
    record.instance = grant.lease().map(|lease| lease.instance().clone());
    let engines = &service.engines;
    let stream = grant.connect(engines).await;
    let mut conn = Conn::new(stream.map_err(|failure| failure.to_api(&model))?);
    let name = spec.served_name.as_deref().unwrap_or(&model);
    let request = request(&head.headers, name, record.engines_id());
    let opening = order::written(&grant.dress(request), &[]);
    let asked = async {
        conn.send(&opening, &[]).await.map_err(Lost::Silent)?;
        conn.head().await
    };
    let consent = match tokio::time::timeout(engines.header_timeout, asked).await {
        Ok(Ok(head)) => head,
        Ok(Err(lost)) => return Err(Failure::from(lost).to_api(&model)),
        Err(_) => return Err(Failure::Timeout(engines.header_timeout).to_api(&model)),
    };
    if consent.status != StatusCode::SWITCHING_PROTOCOLS {
        let refusal = forward::admitted(consent).map_err(|failure| failure.to_api(&model))?;
        let answer = forward::answer(conn, refusal, grant, (Events::Other, &record.id()), engines);
        return Ok(answer.map(|relay| Source::Relay(Box::new(relay), None)));
    }
    let mut accepted = Response::new(Source::Whole(None));
    *accepted.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = accepted.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    for name in RETURNED {
        if let Some(value) = consent.headers.get(&name) {
            headers.insert(name, value.clone());
        }
    }
    if !headers.contains_key(header::SEC_WEBSOCKET_PROTOCOL)
        && let Some(protocol) = protocols::chosen(&head.headers)
    {
        headers.insert(header::SEC_WEBSOCKET_PROTOCOL, protocol);
    }
    let tunnel = Tunnel { counted: Some(service.tunnels.token()), service: service.clone() };
    tokio::spawn(async move {
        let service = &tunnel.service;
        let carried = carry(client, conn, grant, service.limits.stall_timeout);
        tokio::select! {
            () = carried => {}
            () = service.cut.cancelled() => {}
        }
    });
    Ok(accepted)
}

/// A socket that is carried. When it is over the house has room for another client, and is told.
struct Tunnel {
    counted: Option<TaskTrackerToken>,
    service: Arc<Service>,
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        drop(self.counted.take());
        self.service.closed.notify_one();
    }
}

async fn grant(
    service: &Arc<Service>,
    model: &str,
    visitor: &Visitor,
    id: &HeaderValue,
) -> Result<(Grant, Arc<DoorSpec>), ApiError> {
    let rules = &visitor.rules;
    rules.resolve(model).ok_or_else(|| Denied::UnknownModel { model: model.to_owned() })?;
    let spec = super::inference::admit_model(visitor, model)?;
    let asking = Asking {
        gate: &service.gate,
        supervisor: &service.supervisor,
        healths: &service.healths,
        visitor,
        model,
        spec: &spec,
        id: id.to_str().ok(),
    };
    let grant = asking.grant(None, rules.max_wait).await?;
    Ok((grant, spec))
}

fn request(client: &HeaderMap, model: &str, id: HeaderValue) -> Request<()> {
    let mut request = Request::new(());
    let query: String = model
        .bytes()
        .map(|b| match b {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                char::from(b).to_string()
            }
            other => format!("%{other:02X}"),
        })
        .collect();
    // Letters, digits and escapes make a target; were it not so, the engine would refuse the bare path.
    *request.uri_mut() = hyper::Uri::try_from(format!("/v1/realtime?model={query}"))
        .unwrap_or_else(|_| hyper::Uri::from_static("/v1/realtime"));
    let headers = request.headers_mut();
    headers.insert(header::HOST, HeaderValue::from_static("localhost"));
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    for name in PASSED {
        if let Some(value) = client.get(&name) {
            headers.insert(name, value.clone());
        }
    }
    if let Some(protocols) = protocols::passed(client) {
        headers.insert(header::SEC_WEBSOCKET_PROTOCOL, protocols);
    }
    headers.insert(REQUEST_ID, id);
    request
}

/// Carries bytes until a side has ended and the other had time for it, or one has failed.
async fn carry(client: OnUpgrade, engine: Conn, grant: Grant, stall: Duration) {
    // Dropped last: the order of these ends is that of a relay.
    let _held = grant;
    let Ok(client) = client.await else { return };
    let mut client = TokioIo::new(client);
    let (engine, early) = engine.into_parts();
    if client.write_all(&early).await.is_ok() {
        both_ways(client, engine, stall).await;
    }
}

/// Carries bytes both ways. What a side has sent before its end arrives; after it the other is given [`LAST_FRAMES`]. A side that takes
/// nothing of what waits for it for as long as `stall` ends both.
async fn both_ways(
    client: impl AsyncRead + AsyncWrite,
    engine: impl AsyncRead + AsyncWrite,
    stall: Duration,
) {
    let (mut from_client, mut to_client) = tokio::io::split(client);
    let (mut from_engine, mut to_engine) = tokio::io::split(engine);
    let there = std::pin::pin!(one_way(&mut from_client, &mut to_engine, stall));
    let back = std::pin::pin!(one_way(&mut from_engine, &mut to_client, stall));
    match futures_util::future::select(there, back).await {
        Either::Left((Ok(()), back)) => drop(tokio::time::timeout(LAST_FRAMES, back).await),
        Either::Right((Ok(()), there)) => drop(tokio::time::timeout(LAST_FRAMES, there).await),
        // Nobody reads there any more.
        Either::Left((Err(_), _)) | Either::Right((Err(_), _)) => {}
    }
}

/// Carries bytes one way, and then the end.
async fn one_way(
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
    stall: Duration,
) -> io::Result<()> {
    let mut piece = vec![0; PIECE];
    loop {
        let read = from.read(&mut piece).await?;
        let mut rest = &piece[..read];
        while !rest.is_empty() {
            let taken = tokio::time::timeout(stall, to.write(rest)).await??;
            if taken == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            rest = &rest[taken..];
        }
        if read == 0 {
            return tokio::time::timeout(stall, to.shutdown()).await?;
        }
        tokio::time::timeout(stall, to.flush()).await??;
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::duplex;
    use tokio::time::Instant;

    use super::*;

    const STALL: Duration = Duration::from_secs(300);

    /// Either side ends, the other neither ends nor says a word: it has what was sent, and its time, and no more.
    #[tokio::test(start_paused = true)]
    async fn who_does_not_close_is_cut_after_the_others_end() {
        for engine_ends in [true, false] {
            let ((mut client, ours), (theirs, mut engine)) = (duplex(64), duplex(64));
            let carried = tokio::spawn(both_ways(ours, theirs, STALL));
            let (ends, stays) =
                if engine_ends { (&mut engine, &mut client) } else { (&mut client, &mut engine) };
            ends.write_all(b"last words").await.unwrap();
            ends.shutdown().await.unwrap();
            let since = Instant::now();
            let mut heard = String::new();
            stays.read_to_string(&mut heard).await.unwrap();
            assert_eq!((heard.as_str(), since.elapsed()), ("last words", Duration::ZERO));
            carried.await.unwrap();
            assert_eq!(since.elapsed(), LAST_FRAMES);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_to_the_others_end_passes() {
        let ((mut client, ours), (theirs, mut engine)) = (duplex(64), duplex(64));
        let carried = tokio::spawn(both_ways(ours, theirs, STALL));
        let since = Instant::now();
        client.shutdown().await.unwrap();
        assert_eq!(engine.read(&mut [0]).await.unwrap(), 0);
        engine.write_all(b"bye").await.unwrap();
        drop(engine);
        let mut heard = String::new();
        client.read_to_string(&mut heard).await.unwrap();
        carried.await.unwrap();
        assert_eq!((heard.as_str(), since.elapsed()), ("bye", Duration::ZERO));
    }

    #[tokio::test(start_paused = true)]
    async fn who_takes_nothing_of_what_waits_is_cut() {
        let ((client, ours), (theirs, mut engine)) = (duplex(64), duplex(64));
        let since = Instant::now();
        let carried = tokio::spawn(both_ways(ours, theirs, STALL));
        let says = async {
            while engine.write_all(&[0; 64]).await.is_ok() {}
            since.elapsed()
        };
        assert_eq!(says.await, STALL);
        carried.await.unwrap();
        drop(client);
    }
}
