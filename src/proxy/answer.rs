//! An answer's body.
//!
//! Purpose: pass bytes on, whoever they are from, count them, and end the request's record. Owner: hyper, until the last byte or
//! the client is gone. Invariants: the request's record ends with it; an answer that broke off never looks whole.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};

use super::conn::Busy;
use super::port::{ByteStream, Side};
use super::recall::Watch;
use super::record::{Piece, Record};
use super::relay::{Broken, Relay};
use super::tunnel::Tunnel;
use super::wait::{Begun, Step, Wait};

/// Where an answer's bytes come from.
pub(super) enum Source {
    /// Ours.
    Whole(Option<Bytes>),
    /// An engine's, and who looks at them as they pass.
    Relay(Box<Relay>, Option<Box<Watch>>),
    /// Ours until an engine's come.
    Wait(Box<Wait>),
    /// The console's, as they come.
    Page(ByteStream),
    /// None: what follows is no answer's, and whoever carries it has the record.
    Socket(Box<Tunnel>),
    /// All was said, by an event that told of a failure.
    Failed,
}

impl Source {
    /// What the bytes are that it has just given.
    fn piece(&self) -> Piece {
        match self {
            Self::Wait(_) => Piece::Sign,
            Self::Relay(relay, _) if relay.is_events() => Piece::Event,
            Self::Whole(_) | Self::Relay(..) | Self::Page(_) | Self::Socket(_) => Piece::Part,
            // An event that tells of a failure is no answer.
            Self::Failed => Piece::Sign,
        }
    }
}

impl From<Begun> for Source {
    fn from(begun: Begun) -> Self {
        Self::Relay(Box::new(begun.response.into_body()), begun.watch.map(Box::new))
    }
}

/// The body.
pub(super) struct Answer {
    pub source: Source,
    pub record: Option<Box<Record>>,
    pub busy: Busy,
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let this = self.get_mut();
        let polled = std::task::ready!(this.poll_source(cx));
        match polled {
            Some(Ok(data)) => {
                let what = this.source.piece();
                if let Some(record) = &mut this.record {
                    record.sent(data.len(), what);
                }
                Poll::Ready(Some(Ok(Frame::data(data))))
            }
            Some(Err(broken)) => {
                this.busy.broken();
                if let Some(mut record) = this.record.take() {
                    record.fault = Some(broken.to_string());
                    record.broken_by = Some(broken.by);
                }
                Poll::Ready(Some(Err(broken)))
            }
            None => {
                this.end();
                Poll::Ready(None)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Whole(bytes) => bytes.is_none(),
            Source::Relay(relay, _) => relay.is_end(),
            Source::Wait(_) | Source::Page(_) => false,
            Source::Socket(_) | Source::Failed => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Whole(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, Bytes::len) as u64)
            }
            Source::Relay(relay, _) => relay.size_hint(),
            Source::Wait(_) | Source::Page(_) => SizeHint::default(),
            Source::Socket(_) | Source::Failed => SizeHint::with_exact(0),
        }
    }
}

impl Answer {
    fn poll_source(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Broken>>> {
        loop {
            match &mut self.source {
                Source::Whole(bytes) => return Poll::Ready(bytes.take().map(Ok)),
                Source::Socket(_) | Source::Failed => return Poll::Ready(None),
                Source::Page(stream) => return stream.as_mut().poll_next(cx).map(|b| b.map(Ok)),
                Source::Relay(relay, watch) => {
                    let mut polled = relay.poll_data(cx);
                    if polled.is_pending() && self.busy.is_over() {
                        polled = relay.end_early(cx);
                    }
                    let polled = std::task::ready!(polled);
                    if let (Some(watch), Some(Ok(data))) = (watch, &polled) {
                        watch.see(data);
                    }
                    return Poll::Ready(polled);
                }
                Source::Wait(wait) => {
                    let mut step = wait.poll(cx);
                    if step.is_pending() && self.busy.is_over() {
                        step = Poll::Ready(wait.end_early());
                    }
                    match std::task::ready!(step) {
                        Step::Beat(bytes) => return Poll::Ready(Some(Ok(bytes))),
                        Step::Began(begun) => {
                            if let Some(record) = &mut self.record {
                                wait.tell(record);
                            }
                            self.source = (*begun).into();
                        }
                        Step::Failed(event, error) => {
                            if let Some(record) = &mut self.record {
                                wait.tell(record);
                                let engines = error.is_engines();
                                let by = if engines { Side::Engine } else { Side::Host };
                                // Of a mistake of the client's the event is a whole answer.
                                let ours = !error.status.is_client_error();
                                record.broken_by = ours.then_some(by);
                                record.error = Some(error.code);
                                record.fault = Some(error.message);
                            }
                            self.busy.last();
                            self.source = Source::Failed;
                            return Poll::Ready(Some(Ok(event)));
                        }
                    }
                }
            }
        }
    }

    fn end(&mut self) {
        let Some(mut record) = self.record.take() else { return };
        let mended = match &mut self.source {
            // What was told by an event has its place in the record already.
            Source::Failed if record.broken_by.is_some() => return,
            Source::Whole(_)
            | Source::Wait(_)
            | Source::Page(_)
            | Source::Socket(_)
            | Source::Failed => None,
            Source::Relay(relay, _) => relay.take_mended(),
        };
        match mended {
            None => record.complete(),
            Some(broken) => {
                self.busy.last();
                record.fault = Some(broken.to_string());
                record.broken_by = Some(broken.by);
            }
        }
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        // The client left meanwhile: the engine may have been asked long ago.
        if let (Source::Wait(wait), Some(record)) = (&self.source, &mut self.record) {
            wait.tell(record);
        }
        // hyper asks for no further frame once a body of known length has ended.
        if self.is_end_stream() {
            self.end();
        }
    }
}
