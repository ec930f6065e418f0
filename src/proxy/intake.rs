//! A request's body, within limits.
//!
//! Purpose: take the body in whole, because the model's name may be its last word and a load may come before the engine can
//! take a byte. Owner: `service`. Invariants: never more than `max_body` bytes are held; a client that sends nothing for
//! too long is given up; all bodies together keep to `share`'s budget.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::StatusCode;
use hyper::body::{Body, Frame, Incoming};
use tokio::time::Instant;

use super::budget::Share;
use super::error::ApiError;
use super::server::Limits;
use super::strict;

/// What a body must bring in each period of `body_progress_timeout`.
const PROGRESS_MIN: usize = 1024;
/// How much of a refused body is read, so that its client can read the answer: closing a socket with unread bytes resets it.
const DISCARD_MAX: usize = 128 << 20;
const DISCARD_PAUSE: Duration = Duration::from_millis(500);
const DISCARD_TIME: Duration = Duration::from_secs(5);

/// Takes a body in. `asked_first`: its client sends nothing before it is told to go on, so there is nothing to discard.
///
/// # Errors
/// 413 for one that is too large, 503 where all bodies together are, 408 for one that does not come, 400 for one that breaks HTTP's rules.
pub(super) async fn collect(
    mut body: Incoming,
    limits: &Limits,
    asked_first: bool,
    share: &mut Share,
) -> Result<Bytes, ApiError> {
    let max = usize::try_from(limits.max_body.0).unwrap_or(usize::MAX);
    let announced = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
    if announced > max {
        if !asked_first {
            discard(&mut body).await;
        }
        return Err(too_large(limits));
    }
    // Memory that is not written to is only addresses; growing would copy, and hold the body twice meanwhile.
    let mut all = BytesMut::with_capacity(announced);
    let mut deadline = Instant::now() + limits.body_progress_timeout;
    let mut fresh = 0;
    loop {
        let Ok(frame) = tokio::time::timeout_at(deadline, body.frame()).await else {
            return Err(ApiError::new(
                StatusCode::REQUEST_TIMEOUT,
                "body_timeout",
                format!("the body stopped coming after {} bytes", all.len()),
            )
            .closing());
        };
        let data = match frame.transpose().map(|f| f.map(Frame::into_data)) {
            Ok(None) => return Ok(all.freeze()),
            Ok(Some(Ok(data))) => data,
            Ok(Some(Err(frame))) => {
                if let Some(trailers) = frame.trailers_ref() {
                    strict::trailers(trailers).map_err(ApiError::malformed)?;
                }
                continue;
            }
            Err(error) => {
                return Err(ApiError::malformed(format!("the body could not be read: {error}")));
            }
        };
        if data.len() > max - all.len() {
            discard(&mut body).await;
            return Err(too_large(limits));
        }
        share.grow(data.len())?;
        all.extend_from_slice(&data);
        fresh += data.len();
        if fresh >= PROGRESS_MIN {
            fresh = 0;
            deadline = Instant::now() + limits.body_progress_timeout;
        }
    }
}

/// Reads what a client still sends and throws it away, within bounds, so that it gets to read the answer.
pub(super) async fn discard(body: &mut Incoming) {
    let drain = async {
        let mut left = DISCARD_MAX;
        while let Ok(Some(Ok(frame))) = tokio::time::timeout(DISCARD_PAUSE, body.frame()).await {
            let Some(rest) = left.checked_sub(frame.data_ref().map_or(1, Bytes::len)) else {
                return;
            };
            left = rest;
        }
    };
    let _ = tokio::time::timeout(DISCARD_TIME, drain).await;
}

fn too_large(limits: &Limits) -> ApiError {
    let message = format!("the body is larger than the allowed {} (max_body)", limits.max_body);
    ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", message).closing()
}
