//! A large body on its way through.
//!
//! Purpose: what of a body is still to come when its model is known, and an engine could be had at once, goes to the engine piece by
//! piece, so that a large body takes no memory of its size. Owner: the request's future. Invariants: the engine never has a whole
//! request that the scan has not let through, for each piece goes out only when the next has come, and the last when the body has
//! ended well; what its client is told is what it would be told had the body been taken in whole; a body cannot be sent twice, so it goes
//! out on a fresh connection and once; what holds a lease meanwhile is a client that keeps up ([`super::intake`]).

use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyper::Response;
use hyper::body::Body;
use hyper::header::{self, HeaderValue};
use tokio::time::Instant;

use super::error::ApiError;
use super::forward::{self, Engines, Failure};
use super::grant::Grant;
use super::intake::Intake;
use super::message::Head;
use super::order::Order;
use super::relay::Relay;
use super::upstream::Conn;

/// Why there is no answer of the engine's.
enum Stopped {
    /// The body has ended, or does not come: this is what to say.
    Ended(ApiError),
    /// What has come is refused.
    Refused(ApiError),
    Engine(Failure),
}

impl From<Failure> for Stopped {
    fn from(failure: Failure) -> Self {
        Self::Engine(failure)
    }
}

/// Sends a request whose body is on its way in, and waits for the head of the answer. The lease goes into the answer's body.
///
/// # Errors
/// When there is no head; the lease has been returned then.
pub(super) async fn flow<B: Body<Data = Bytes, Error: Display> + Unpin>(
    grant: Grant,
    order: &Order,
    mut intake: Box<Intake<B>>,
    engines: &Arc<Engines>,
    model: &str,
) -> Result<Response<Relay>, ApiError> {
    let (conn, head) = match exchange(&grant, order, &mut intake, engines).await {
        Ok(answered) => answered,
        Err(stopped) => {
            drop(grant);
            // Its client may have to send all before it reads; and a body that is refused is refused however the engine fares.
            return Err(match stopped {
                Stopped::Ended(error) => error,
                Stopped::Refused(error) => intake.rest().await.err().unwrap_or(error),
                Stopped::Engine(failure) => {
                    intake.rest().await.err().unwrap_or_else(|| failure.to_api(model))
                }
            });
        }
    };
    let early = !conn.is_sent();
    let mut response = forward::answer(conn, head, grant, order.told(), engines);
    // Its client reads no answer before it has sent all, perhaps; one that sends no more is not waited for.
    if early && !intake.rest_soon().await? {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    Ok(response)
}

async fn exchange<B: Body<Data = Bytes, Error: Display> + Unpin>(
    grant: &Grant,
    order: &Order,
    intake: &mut Intake<B>,
    engines: &Arc<Engines>,
) -> Result<(Conn, Head), Stopped> {
    let patience = engines.header_timeout;
    let since = Instant::now();
    let mut conn = Conn::new(Box::pin(grant.connect(engines)).await?);
    let mut head = grant.written(order, &[]);
    let mut piece = intake.let_go();
    intake.pardon(since);
    intake.hurry();
    loop {
        let next = tokio::select! {
            biased;
            next = intake.piece() => next.map_err(Stopped::Ended)?,
            said = conn.speaks() => {
                said.map_err(|error| Failure::NoAnswer(error.to_string()))?;
                break;
            }
        };
        if let Some(error) = intake.refused() {
            return Err(Stopped::Refused(error));
        }
        if next.is_none() {
            intake.peeked().map_err(Stopped::Ended)?;
        }
        let since = Instant::now();
        if let Some(answered) = send(&mut conn, &head, &piece, patience).await? {
            return Ok((conn, answered));
        }
        intake.pardon(since);
        match next {
            Some(next) if conn.is_sent() => piece = next,
            Some(_) | None => break,
        }
        // What was held first is no longer; a piece at a time is no more than every connection has.
        intake.forget();
        head.clear();
    }
    drop(piece);
    let answered = answered(&mut conn, patience).await?;
    Ok((conn, answered))
}

/// Sends a piece, and the head before the first. Some: the engine takes no more, and has said why.
async fn send(
    conn: &mut Conn,
    head: &[u8],
    piece: &[u8],
    patience: Duration,
) -> Result<Option<Head>, Failure> {
    let (first, second) = if head.is_empty() { (piece, &[][..]) } else { (head, piece) };
    match tokio::time::timeout(patience, conn.send(first, second)).await {
        Ok(Ok(())) => Ok(None),
        // It may have said why before it closed.
        Ok(Err(_)) => answered(conn, patience).await.map(Some),
        Err(_) => Err(Failure::Timeout(patience)),
    }
}

async fn answered(conn: &mut Conn, patience: Duration) -> Result<Head, Failure> {
    match tokio::time::timeout(patience, conn.head()).await {
        Ok(head) => forward::admitted(head?),
        Err(_) => Err(Failure::Timeout(patience)),
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use futures_util::stream;
    use http_body_util::StreamBody;
    use hyper::HeaderMap;
    use hyper::body::Frame;
    use proptest::prelude::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixListener;

    use super::super::budget::Budget;
    use super::super::endpoints::Task;
    use super::super::forward::Upstream;
    use super::super::grant::Engine;
    use super::super::peek::peek;
    use super::super::server::Limits;
    use super::*;
    use crate::supervisor::handle::{Handle, Lease};
    use crate::supervisor::ports::Endpoint;
    use crate::types::{Generation, InstanceId, Status};

    /// What an engine gets of a body, which it answers when it has it whole.
    async fn engine(listener: UnixListener) -> Vec<u8> {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut raw = Vec::new();
        loop {
            if let Some(head) = raw.windows(4).position(|w| w == b"\r\n\r\n") {
                let text = std::str::from_utf8(&raw[..head]).unwrap();
                let length = text.split_once("content-length: ").unwrap().1;
                let length: usize = length.lines().next().unwrap().parse().unwrap();
                if raw.len() == head + 4 + length {
                    stream
                        .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
                        .await
                        .unwrap();
                    return raw.split_off(head + 4);
                }
            }
            if stream.read_buf(&mut raw).await.unwrap() == 0 {
                let head = raw.windows(4).position(|w| w == b"\r\n\r\n");
                return head.map(|head| raw.split_off(head + 4)).unwrap_or_default();
            }
        }
    }

    /// What becomes of a body that comes in such pieces: what the engine got, and the status or the code that its client gets.
    async fn played(pieces: Vec<Vec<u8>>) -> (Vec<u8>, Result<u16, &'static str>) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("e.sock");
        let served = tokio::spawn(engine(UnixListener::bind(&path).unwrap()));
        let (handle, _asks, _status) = Handle::scripted(Status::default());
        let instance = InstanceId::new("m".parse().unwrap(), Generation(1), 1);
        let lease = Lease::scripted(instance, Endpoint::Unix(path), &handle);
        let grant = Grant { engine: Engine::Own(lease), _slot: None };
        let order = Order {
            target: Task::Chat.into(),
            headers: HeaderMap::new(),
            id: HeaderValue::from_static("id"),
            engines_id: HeaderValue::from_static("id"),
            body: Bytes::new(),
            rest: pieces.iter().map(Vec::len).sum(),
        };
        let frames = pieces.into_iter().map(|p| Ok::<_, Infallible>(Frame::data(p.into())));
        let body = StreamBody::new(stream::iter(frames.collect::<Vec<_>>()));
        let share = Arc::new(Budget::default()).share(u64::MAX);
        let limits = Arc::new(Limits::default());
        let intake = Intake::open(body, &limits, false, true, share).await.unwrap();
        let engines = Engines::new(Upstream::default());
        let answer = flow(grant, &order, Box::new(intake), &engines, "m").await;
        let answer = answer.map(|r| r.status().as_u16()).map_err(|e| e.code);
        (served.await.unwrap(), answer)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        #[test]
        fn an_engine_has_a_whole_request_only_if_the_scan_lets_it_through(
            text in ".{0,40}",
            tail in prop::option::of(".{0,8}"),
            edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0..3u8), 0..3),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
        ) {
            let value = serde_json::json!({ "model": "m", "messages": [text], "n": 1 });
            let mut body = serde_json::to_vec(&value).unwrap();
            body.extend(tail.unwrap_or_default().into_bytes());
            for (at, byte, how) in edits {
                let at = at.index(body.len());
                match how {
                    0 => body[at] = byte,
                    1 if body.len() > 1 => { body.remove(at); }
                    _ => body.insert(at, byte),
                }
            }
            let mut cuts: Vec<usize> = cuts.iter().map(|c| c.index(body.len() + 1)).collect();
            cuts.extend([0, body.len()]);
            cuts.sort_unstable();
            let pieces = cuts.windows(2).map(|w| body[w[0]..w[1]].to_vec()).collect();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let (got, answer) = runtime.block_on(played(pieces));
            match peek(&body) {
                Ok(_) => prop_assert_eq!((got, answer), (body, Ok(200))),
                Err(error) => {
                    prop_assert!(got.len() < body.len() && body.starts_with(&got));
                    prop_assert_eq!(answer, Err(ApiError::from(error).code));
                }
            }
        }
    }
}
