//! A request's body, within limits.
//!
//! Purpose: take a body in, or as much of it as tells whose it is, and look into it as it comes. Most bodies are taken in whole,
//! because the model's name may be their last word and a load may come before the engine can take a byte; one of which much is
//! still to come when its model is known may flow on ([`super::flow`]). Owner: `inference`. Invariants: never more than
//! `max_body` bytes are taken; a client that sends nothing for too long is given up; all bytes of bodies that are held keep to
//! `share`'s budget (one that came in one piece also keeps the buffer that it came in, as its head does); what is wrong with
//! HTTP's framing is told before what is wrong with the JSON in it, however both came.

use std::fmt::Display;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::StatusCode;
use hyper::body::{Body, Frame, Incoming};
use tokio::time::Instant;

use super::bell;
use super::budget::Share;
use super::clock;
use super::error::ApiError;
use super::peek::{Peek, PeekError, Scan};
use super::server::Limits;
use super::strict;

/// What a body must bring in each period of `body_progress_timeout`.
const PROGRESS_MIN: usize = 1024;
/// The same of one that an engine waits for.
const PROGRESS_MIN_FLOWING: usize = 1 << 20;
/// So much of a body must have come before it may flow: it shows how fast its client is.
const FLOW_HELD: usize = 256 << 10;
/// And so much must be still to come: what is smaller is taken in before an engine could be asked.
const FLOW_REST: usize = 512 << 10;
/// How much of a refused body is read, so that its client can read the answer: closing a socket with unread bytes resets it.
const DISCARD_MAX: usize = 128 << 20;
const DISCARD_PAUSE: Duration = Duration::from_millis(500);
const DISCARD_TIME: Duration = Duration::from_secs(5);

/// How far a body was taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Taken {
    Whole,
    /// It may flow: its model is known, much of it is still to come, and it comes fast.
    Part,
}

/// A body on its way in.
#[derive(Debug)]
pub(super) struct Intake<B = Incoming> {
    body: B,
    limits: Arc<Limits>,
    share: Share,
    held: Held,
    /// How much came.
    came: usize,
    /// How much is to come in all, where the client said so.
    length: Option<usize>,
    /// What is known of it, if it has to be JSON.
    scan: Option<Result<Scan, PeekError>>,
    began: Instant,
    deadline: Instant,
    /// What came since the deadline was set, and what must.
    fresh: usize,
    fresh_min: usize,
}

/// What comes next of a body. Whoever takes a piece wakes who fetches the next one, which is the connection's task itself: behind the last
/// one it would look once more at everything, for nothing.
fn next<B: Body + Unpin>(
    body: &mut B,
) -> impl Future<Output = Option<Result<Frame<B::Data>, B::Error>>> + Unpin {
    std::future::poll_fn(move |cx| {
        bell::heard(|| {
            let polled = Pin::new(&mut *body).poll_frame(cx);
            (polled, !body.is_end_stream())
        })
    })
}

impl<B: Body<Data = Bytes, Error: Display> + Unpin> Intake<B> {
    /// Begins. `asked_first`: its client sends nothing before it is told to go on, so there is nothing to discard.
    ///
    /// # Errors
    /// 413 for one that is announced to be too large.
    pub async fn open(
        mut body: B,
        limits: &Arc<Limits>,
        asked_first: bool,
        json: bool,
        share: Share,
    ) -> Result<Self, ApiError> {
        let size = body.size_hint();
        let announced = usize::try_from(size.lower()).unwrap_or(usize::MAX);
        if announced > max(limits) {
            if !asked_first {
                discard(&mut body).await;
            }
            return Err(too_large(limits));
        }
        let now = clock::now();
        Ok(Self {
            body,
            limits: limits.clone(),
            share,
            held: Held::default(),
            came: 0,
            length: size.exact().and_then(|exact| usize::try_from(exact).ok()),
            scan: json.then(|| Ok(Scan::new())),
            began: now,
            deadline: now + limits.body_progress_timeout,
            fresh: 0,
            fresh_min: PROGRESS_MIN,
        })
    }

    /// Takes the body in: `all` of it, or until it may flow.
    ///
    /// # Errors
    /// As [`Intake::piece`]; 503 where all bodies together are too large.
    pub async fn take(&mut self, all: bool) -> Result<Taken, ApiError> {
        while let Some(data) = self.piece().await? {
            if let Err(full) = self.share.grow(data.len()) {
                // What is held would keep others out meanwhile.
                drop((self.let_go(), data));
                self.forget();
                discard(&mut self.body).await;
                return Err(full);
            }
            self.held.add(data, self.length);
            if !all && self.may_flow() {
                return Ok(Taken::Part);
            }
        }
        Ok(Taken::Whole)
    }

    /// The next piece, looked into; `None`: the body has ended as HTTP has it. May be dropped and called again.
    ///
    /// # Errors
    /// 413 for a body that is too large, 408 for one that does not come, 400 for one that breaks HTTP's rules.
    pub async fn piece(&mut self) -> Result<Option<Bytes>, ApiError> {
        loop {
            let Some(frame) = clock::by(self.deadline, next(&mut self.body)).await else {
                return Err(ApiError::new(
                    StatusCode::REQUEST_TIMEOUT,
                    "body_timeout",
                    format!("the body stopped coming after {} bytes", self.came),
                )
                .closing());
            };
            let data = match frame.transpose().map(|f| f.map(Frame::into_data)) {
                Ok(None) => return Ok(None),
                Ok(Some(Ok(data))) => data,
                Ok(Some(Err(frame))) => {
                    if let Some(trailers) = frame.trailers_ref() {
                        strict::trailers(trailers).map_err(ApiError::malformed)?;
                    }
                    continue;
                }
                Err(error) => {
                    let message = format!("the body could not be read: {error}");
                    return Err(ApiError::malformed(message));
                }
            };
            if data.len() > max(&self.limits) - self.came {
                discard(&mut self.body).await;
                return Err(too_large(&self.limits));
            }
            if data.is_empty() {
                continue;
            }
            self.note(&data);
            return Ok(Some(data));
        }
    }

    fn note(&mut self, data: &[u8]) {
        self.came += data.len();
        self.fresh += data.len();
        if self.fresh >= self.fresh_min {
            self.fresh = 0;
            self.deadline = clock::now() + self.limits.body_progress_timeout;
        }
        if let Some(Ok(scan)) = &mut self.scan
            && let Err(error) = scan.feed(data)
        {
            self.scan = Some(Err(error));
        }
    }

    /// A body of unknown length may not: its request gets a length of our own, which is then not known in time.
    fn may_flow(&self) -> bool {
        let Some(length) = self.length else { return false };
        let pace = self.limits.flow_pace.as_nanos() * self.came as u128;
        self.held().len() >= FLOW_HELD
            && length - self.came >= FLOW_REST
            && self.model().is_some()
            && clock::since(self.began).as_nanos() << 20 <= pace
    }

    /// The model, once it is known.
    pub fn model(&self) -> Option<&str> {
        self.scan.as_ref()?.as_ref().ok()?.model()
    }

    /// Refuses it if it wants its answer later.
    pub fn in_foreground(&mut self) {
        if let Some(Ok(scan)) = &mut self.scan
            && let Err(error) = scan.in_foreground()
        {
            self.scan = Some(Err(error));
        }
    }

    /// Why what has come so far is refused already.
    pub fn refused(&self) -> Option<ApiError> {
        let refused = self.scan.as_ref()?.as_ref().err()?;
        Some(refused.clone().into())
    }

    /// How large the body is, where its client said so.
    pub const fn length(&self) -> Option<usize> {
        self.length
    }

    /// Others were waited for since then, which its client is not to blame for.
    pub fn pardon(&mut self, since: Instant) {
        self.deadline += clock::since(since);
    }

    /// An engine waits for it from now on.
    pub fn hurry(&mut self) {
        self.fresh_min = PROGRESS_MIN_FLOWING;
    }

    /// What is held.
    pub fn held(&self) -> &[u8] {
        match &self.held {
            Held::Piece(piece) => piece,
            Held::Many(all) => all,
        }
    }

    /// What is held, which is then no longer the intake's.
    pub fn let_go(&mut self) -> Bytes {
        std::mem::take(&mut self.held).into_bytes()
    }

    /// What was let go is no longer in memory.
    pub fn forget(&mut self) {
        self.share.release();
    }

    /// The rest comes in, and is not kept.
    ///
    /// # Errors
    /// What is wrong with the body.
    pub async fn rest(&mut self) -> Result<(), ApiError> {
        while self.piece().await?.is_some() {}
        self.peeked().map(drop)
    }

    /// The same within bounds, for who need not have it: `false`: it does not come soon.
    ///
    /// # Errors
    /// What is wrong with the body.
    pub async fn rest_soon(&mut self) -> Result<bool, ApiError> {
        let rest = async {
            while let Ok(piece) = tokio::time::timeout(DISCARD_PAUSE, self.piece()).await {
                if piece?.is_none() {
                    return self.peeked().map(|_| true);
                }
            }
            Ok(false)
        };
        tokio::time::timeout(DISCARD_TIME, rest).await.unwrap_or(Ok(false))
    }

    /// What the body, which has ended, says about itself; `None`: it is not JSON. To be asked once.
    ///
    /// # Errors
    /// Why it is refused.
    pub fn peeked(&mut self) -> Result<Option<Peek>, ApiError> {
        match self.scan.take() {
            None => Ok(None),
            Some(scan) => Ok(Some(scan.and_then(Scan::finish)?)),
        }
    }

    /// The whole body, and its part of the memory for bodies.
    pub fn whole(self) -> (Bytes, Share) {
        (self.held.into_bytes(), self.share)
    }
}

/// What came of a body and was not passed on.
#[derive(Debug)]
enum Held {
    /// At most one piece. Most bodies come in one, which is then kept where it is.
    Piece(Bytes),
    Many(BytesMut),
}

impl Default for Held {
    fn default() -> Self {
        Self::Piece(Bytes::new())
    }
}

impl Held {
    /// One more piece. `length`: that of the whole body, where it is known.
    fn add(&mut self, data: Bytes, length: Option<usize>) {
        match self {
            Self::Piece(first) if first.is_empty() && length == Some(data.len()) => *first = data,
            Self::Piece(first) => {
                // Memory that is not written to is only addresses; growing would copy, and hold the body twice meanwhile.
                let least = first.len() + data.len();
                let mut all = BytesMut::with_capacity(length.unwrap_or(least).max(least));
                all.extend_from_slice(first);
                all.extend_from_slice(&data);
                *self = Self::Many(all);
            }
            Self::Many(all) => all.extend_from_slice(&data),
        }
    }

    fn into_bytes(self) -> Bytes {
        match self {
            Self::Piece(piece) => piece,
            Self::Many(all) => all.freeze(),
        }
    }
}

/// Reads what a client still sends and throws it away, within bounds, so that it gets to read the answer.
pub(super) async fn discard(body: &mut (impl Body<Data = Bytes> + Unpin)) {
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

fn max(limits: &Limits) -> usize {
    usize::try_from(limits.max_body.0).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use std::task::Poll;

    use futures_util::stream::{self, StreamExt};
    use http_body_util::StreamBody;

    use super::*;
    use crate::proxy::budget::Budget;

    #[tokio::test(start_paused = true)]
    async fn who_is_refused_for_room_gives_up_what_it_had() {
        let budget = Arc::<Budget>::default();
        let piece = || Ok::<_, std::convert::Infallible>(Frame::data(vec![b' '; 60].into()));
        // Then neither more nor an end.
        let body = StreamBody::new(stream::iter([piece(), piece()]).chain(stream::pending()));
        let (limits, share) = (Arc::new(Limits::default()), budget.share(100));
        let mut intake = Intake::open(body, &limits, false, false, share).await.unwrap();
        let mut taken = std::pin::pin!(intake.take(true));
        let pending = std::future::poll_fn(|cx| Poll::Ready(taken.as_mut().poll(cx).is_pending()));
        assert!(pending.await, "the rest is waited for");
        budget.share(100).grow(100).unwrap();
        assert!(taken.await.is_err());
    }
}
