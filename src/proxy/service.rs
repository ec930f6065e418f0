//! One request, from its head to its answer.
//!
//! Purpose: the order of the steps; each step is elsewhere. Owner: a connection's task. Invariants: a refused request has
//! asked the supervisor for nothing; every answer carries the request's ID; the future of a request may be dropped at any
//! point (its client has left) and leaves nothing behind.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::header::{self, HeaderValue};
use hyper::{HeaderMap, Method, Request, Response};
use tokio_util::sync::CancellationToken;

use super::conn::Busy;
use super::error::ApiError;
use super::forward::{self, Engines};
use super::intake;
use super::peek::{Peek, PeekError, peek};
use super::record::{REQUEST_ID, Record};
use super::relay::{Broken, Relay};
use super::respond::{self, Whole};
use super::route::{Route, Task, route};
use super::server::Limits;
use crate::supervisor::handle::Handle;

/// Bodies from here on are looked into on a thread of their own: at some GB/s this is a tenth of a millisecond.
const PEEK_INLINE_MAX: usize = 256 << 10;

/// What all requests share.
#[derive(Debug)]
pub(super) struct Service {
    pub supervisor: Handle,
    pub limits: Arc<Limits>,
    pub engines: Arc<Engines>,
    /// Unix seconds of the daemon's start.
    pub created: u64,
    /// The server is about to end: clients are told to come back on a new connection.
    pub ending: CancellationToken,
}

impl Service {
    /// Answers a request.
    pub async fn answer(
        self: Arc<Self>,
        request: Request<Incoming>,
        busy: Busy,
    ) -> Response<Answer> {
        let mut record = Record::new(request.headers());
        let head = request.method() == Method::HEAD;
        let result = self.dispatch(request, &mut record).await;
        let (parts, mut source) = match result {
            Ok(response) => response.into_parts(),
            Err(error) => {
                record.error = Some(error.code);
                own(respond::error(&error)).into_parts()
            }
        };
        if head {
            source = Source::Whole(None);
        }
        record.status = Some(parts.status.as_u16());
        let id = record.id();
        let answer = Answer { source, record: Some(record), busy };
        let mut response = Response::from_parts(parts, answer);
        response.headers_mut().insert(REQUEST_ID, id);
        if self.ending.is_cancelled() {
            let close = HeaderValue::from_static("close");
            response.headers_mut().insert(header::CONNECTION, close);
        }
        response
    }

    async fn dispatch(
        &self,
        request: Request<Incoming>,
        record: &mut Record,
    ) -> Result<Response<Source>, ApiError> {
        let (head, mut body) = request.into_parts();
        let route = match route(&head.method, &head.uri, head.version, &head.headers) {
            Ok(route) => route,
            Err(error) => {
                // Where the head cannot be trusted, neither can the body's end. A client that asked first sends none.
                if !error.close && !head.headers.contains_key(header::EXPECT) {
                    intake::discard(&mut body).await;
                }
                return Err(error);
            }
        };
        record.route = route.name();
        let status = || self.supervisor.status();
        match route {
            Route::Completion(task) => self.complete(task, head.headers, body, record).await,
            Route::Models => Ok(own(respond::models(&status(), self.created))),
            Route::Model(name) => respond::model(&status(), &name, self.created).map(own),
            Route::Health | Route::Ready => {
                record.routine = true;
                let health = matches!(route, Route::Health);
                Ok(own(if health { respond::health() } else { respond::ready(&status()) }))
            }
            Route::Status(format) => Ok(own(respond::status(&status(), format))),
        }
    }

    async fn complete(
        &self,
        task: Task,
        headers: HeaderMap,
        body: Incoming,
        record: &mut Record,
    ) -> Result<Response<Source>, ApiError> {
        let asked_first = headers.contains_key(header::EXPECT);
        let body = intake::collect(body, &self.limits, asked_first).await?;
        let Peek { model, stream } = look(body.clone()).await?;
        tracing::trace!(stream, "routed");
        record.model = Some(model.clone());
        if let Some(error) = ApiError::impossible_model(&model) {
            return Err(error);
        }
        record.queue_begins();
        let lease = self.supervisor.acquire(&model).await;
        record.queue_ends();
        let order = forward::Order { task, headers: &headers, id: record.id(), body };
        match forward::forward(lease?, order, &self.engines).await {
            Ok(response) => Ok(response.map(|relay| Source::Relay(Box::new(relay)))),
            Err(failure) => {
                let error = failure.to_api(&model);
                record.fault = Some(failure.to_string());
                Err(error)
            }
        }
    }
}

async fn look(body: Bytes) -> Result<Peek, PeekError> {
    if body.len() < PEEK_INLINE_MAX {
        return peek(&body);
    }
    let looked = tokio::task::spawn_blocking(move || peek(&body)).await;
    looked.unwrap_or_else(|e| Err(PeekError::Malformed(format!("it could not be read: {e}"))))
}

fn own(response: Whole) -> Response<Source> {
    response.map(|bytes| Source::Whole(Some(bytes)))
}

/// Where an answer's bytes come from.
#[derive(Debug)]
pub(super) enum Source {
    /// Ours.
    Whole(Option<Bytes>),
    /// An engine's.
    Relay(Box<Relay>),
}

/// An answer's body: passes bytes on, counts them, and ends the request's record.
#[derive(Debug)]
pub(super) struct Answer {
    source: Source,
    record: Option<Record>,
    busy: Busy,
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let this = self.get_mut();
        let polled = match &mut this.source {
            Source::Whole(bytes) => Poll::Ready(bytes.take().map(Ok)),
            Source::Relay(relay) => relay.poll_data(cx),
        };
        match polled {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Some(Ok(data))) => {
                if let Some(record) = &mut this.record {
                    record.sent(data.len());
                }
                Poll::Ready(Some(Ok(Frame::data(data))))
            }
            Poll::Ready(Some(Err(broken))) => {
                this.busy.broken();
                if let Some(mut record) = this.record.take() {
                    record.fault = Some(broken.to_string());
                }
                Poll::Ready(Some(Err(broken)))
            }
            Poll::Ready(None) => {
                this.end();
                Poll::Ready(None)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Whole(bytes) => bytes.is_none(),
            Source::Relay(relay) => relay.is_end(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Whole(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, Bytes::len) as u64)
            }
            Source::Relay(relay) => relay.size_hint(),
        }
    }
}

impl Answer {
    fn end(&mut self) {
        let Some(mut record) = self.record.take() else { return };
        let mended = match &mut self.source {
            Source::Whole(_) => None,
            Source::Relay(relay) => relay.take_mended(),
        };
        match mended {
            None => record.complete(),
            Some(broken) => {
                self.busy.last();
                record.fault = Some(broken.to_string());
            }
        }
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        // hyper asks for no further frame once a body of known length has ended.
        if self.is_end_stream() {
            self.end();
        }
    }
}
