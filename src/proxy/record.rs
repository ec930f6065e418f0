//! The one line that is logged about a request.
//!
//! Purpose: whoever reads the journal sees each request once, whole, with its times. Owner: the request itself; the record
//! travels with it into the answer's body. Invariants: exactly one line, written by `Drop`, so that no way to end a request
//! can miss it, unless the observer counts it instead; never a prompt, a completion, a header's value other than the request's ID.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use hyper::header::{HeaderName, HeaderValue};
use hyper::http::request::Parts;
use hyper::{HeaderMap, Method, Request};
use tokio::time::Instant;

use super::clock;
use super::port::{Caller, Gaps, Observer, Seen, Side, Trace, Traced};
use super::strict::all;
use super::wait::Asked;
use crate::types::{InstanceId, ModelName};

/// Names a request across client, daemon and engine.
pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// What is known of a request so far.
pub(super) struct Record {
    observer: Arc<dyn Observer>,
    id: HeaderValue,
    /// The ID is the client's own.
    named: bool,
    /// What was asked for; `-` where the head was refused.
    pub route: &'static str,
    /// As the client wrote it, where that is not the name of `served`, or what it asks about; fit to be shown.
    model: Option<String>,
    /// The configured model that it is for.
    served: Option<ModelName>,
    /// Whose engine got it.
    pub instance: Option<InstanceId>,
    /// HTTP status; `None` while there is none.
    pub status: Option<u16>,
    /// The name of the key that came with it.
    pub key: Option<String>,
    /// `error.code` of our own refusals.
    pub error: Option<&'static str>,
    /// What went wrong on the engine's side.
    pub fault: Option<String>,
    /// Who broke the answer off, where it was not the client.
    pub broken_by: Option<Side>,
    /// Of the answer's body.
    pub bytes: u64,
    /// Routine questions are logged at debug level: a load balancer asks every second.
    pub routine: bool,
    trace: Option<Box<Place>>,
    start: Instant,
    queued: Option<Instant>,
    queue: Option<Duration>,
    /// When its engine was asked, if nobody had asked that one before.
    asked_first: Option<Instant>,
    first_byte: Option<Duration>,
    piece: Option<Instant>,
    gaps: Gaps,
    complete: bool,
}

/// Where it stands in a trace, and what only a span tells.
struct Place {
    trace: Trace,
    began: SystemTime,
    method: Method,
    path: String,
}

/// What goes out at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Piece {
    /// A sign of life: the answer has not begun.
    Sign,
    /// Some of an engine's stream of events.
    Event,
    /// Some of any other body.
    Part,
}

impl fmt::Debug for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Record").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Record {
    /// Begins with the head. Boxed, because it travels far.
    pub fn new(headers: &HeaderMap, observer: Arc<dyn Observer>) -> Box<Self> {
        observer.begun();
        let (id, named) = match clients_id(headers) {
            Some(id) => (id, true),
            None => (new_id(), false),
        };
        Box::new(Self {
            observer,
            id,
            named,
            route: "-",
            model: None,
            served: None,
            instance: None,
            key: None,
            status: None,
            error: None,
            fault: None,
            broken_by: None,
            bytes: 0,
            routine: false,
            trace: None,
            start: clock::now(),
            queued: None,
            queue: None,
            asked_first: None,
            first_byte: None,
            piece: None,
            gaps: Gaps::default(),
            complete: false,
        })
    }

    /// It may be part of a trace.
    pub fn trace<B>(&mut self, request: &Request<B>) {
        let id = self.id.to_str().unwrap_or_default();
        if let Some(trace) = self.observer.trace(id, &|| Caller::of(request.headers())) {
            self.trace = Some(Box::new(Place {
                trace,
                began: SystemTime::now(),
                method: request.method().clone(),
                path: request.uri().path().to_owned(),
            }));
        }
    }

    /// What the engine sees of the trace: the request's own span where it has one, else what the client wrote.
    pub fn pass_trace(&self, head: &mut Parts) {
        if let Some(place) = &self.trace {
            place.trace.write(&mut head.headers);
        }
    }

    /// It is for a model, as its client wrote it, and, if that is one of ours, as it was configured.
    pub fn is_for(&mut self, asked: &str, served: Option<&ModelName>) {
        self.served = served.cloned();
        self.model = match served {
            None => Some(shown(asked)),
            Some(name) => (name.as_str() != asked).then(|| asked.to_owned()),
        };
    }

    /// It asks about a model, or for something to be done to it; no engine works on it, so it is no request for the model.
    pub fn is_about(&mut self, model: &ModelName) {
        self.model = Some(model.to_string());
    }

    /// The request's ID as a header's value.
    pub fn id(&self) -> HeaderValue {
        self.id.clone()
    }

    /// By which ID an engine is to know it. A client may use one of its own for several requests at once, as proxies do when they try again;
    /// an engine may take it for one request's, refuse the second and end it with the first.
    pub fn engines_id(&self) -> HeaderValue {
        if !self.named {
            return self.id.clone();
        }
        let (unique, ..) = uuid::Uuid::new_v4().as_fields();
        let text = format!("{}-{unique:08x}", self.id.to_str().unwrap_or_default());
        HeaderValue::try_from(text).unwrap_or_else(|_| self.id.clone())
    }

    /// A lease is being asked for.
    pub fn queue_begins(&mut self) {
        self.queued = Some(clock::now());
    }

    /// There is an answer about the lease.
    pub fn queue_ends(&mut self) {
        self.queue = self.queued.map(clock::since);
    }

    /// The wait ended then.
    fn queue_ended(&mut self, at: Instant) {
        self.queue = self.queued.map(|since| at.saturating_duration_since(since));
    }

    /// An engine is asked now, with a body that is here; `None`: one that runs elsewhere.
    pub fn asks(&mut self, instance: Option<InstanceId>) {
        let first = instance.as_ref().is_some_and(|instance| self.observer.asks(instance));
        self.asked_first = first.then(clock::now);
        self.instance = instance;
    }

    /// It was asked while nobody had the record at hand.
    pub fn asked(&mut self, asked: &Asked) {
        self.queue_ended(asked.at);
        self.asked_first = asked.first.then_some(asked.at);
        self.instance.clone_from(&asked.instance);
    }

    /// So many bytes of the body go to the client.
    pub fn sent(&mut self, bytes: usize, what: Piece) {
        self.bytes = self.bytes.saturating_add(u64::try_from(bytes).unwrap_or(u64::MAX));
        if what == Piece::Sign {
            return;
        }
        if what == Piece::Event {
            let now = clock::now();
            if let Some(last) = self.piece.replace(now) {
                self.gaps.add(now.saturating_duration_since(last));
                return;
            }
        }
        self.first_byte.get_or_insert_with(|| clock::since(self.start));
    }

    /// The whole answer went out.
    pub fn complete(mut self: Box<Self>) {
        self.complete = true;
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        // One turn may be all that there was.
        let total = match clock::since(self.start) {
            Duration::ZERO => self.start.elapsed(),
            total => total,
        };
        // Left while it waited: the wait is what there is to tell.
        let queue = self.queue.or_else(|| self.queued.map(clock::since));
        // An error of ours is no answer that could have a first byte.
        let first_byte = self.first_byte.filter(|_| self.error.is_none());
        let broken_by = (!self.complete).then(|| self.broken_by.unwrap_or(Side::Client));
        let id = self.id.to_str().unwrap_or_default();
        let model = self.model.as_deref().or(self.served.as_ref().map(ModelName::as_str));
        let traced = self.trace.as_deref().map(|place| Traced {
            trace: place.trace,
            began: place.began,
            queued: self.queued.map(|at| at.saturating_duration_since(self.start)),
            method: &place.method,
            path: &place.path,
            id,
            asked: model,
        });
        let seen = Seen {
            route: self.route,
            model: self.served.as_ref(),
            instance: self.instance.as_ref(),
            status: self.status,
            refused: self.error,
            key: self.key.as_deref(),
            broken_by,
            total,
            queue,
            asked_first: self.asked_first.map(|at| at.saturating_duration_since(self.start)),
            first_byte,
            gaps: &self.gaps,
            bytes: self.bytes,
            routine: self.routine,
            traced,
        };
        self.observer.ended(&seen);
        if !self.routine && !self.observer.tells(&seen, (self.start + total).into_std()) {
            return;
        }
        let ms = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
        let instance = self.instance.as_ref().map(tracing::field::display);
        macro_rules! line {
            ($level:expr) => {
                tracing::event!(
                    target: "hostler::proxy",
                    $level,
                    kind = "request",
                    route = self.route,
                    model,
                    instance,
                    key = self.key.as_deref(),
                    request_id = id,
                    status = self.status,
                    error = self.error,
                    fault = self.fault.as_deref(),
                    queue_ms = queue.map(ms),
                    first_byte_ms = first_byte.map(ms),
                    total_ms = ms(total),
                    bytes = self.bytes,
                    aborted = !self.complete,
                    aborted_by = broken_by.map(Side::as_str),
                    // Whole without the fields: `journalctl` shows only the text.
                    "{} {}: {}{} after {} ms",
                    self.route,
                    model.unwrap_or("-"),
                    Outcome(self.status),
                    End(broken_by),
                    ms(total),
                )
            };
        }
        if self.routine {
            line!(tracing::Level::DEBUG);
        } else {
            line!(tracing::Level::INFO);
        }
    }
}

/// A name that is none of ours, for a line's text: with line ends and what else steers a terminal written as escapes, or its client would
/// write lines of its own. Cut: nobody bounds what a client writes there but the body's size.
fn shown(asked: &str) -> String {
    asked[..asked.floor_char_boundary(128)].escape_debug().to_string()
}

/// A status, in a line's text.
struct Outcome(Option<u16>);

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(status) => write!(f, "{status}"),
            None => f.write_str("no answer"),
        }
    }
}

/// Who broke the answer off, in a line's text.
struct End(Option<Side>);

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |by| write!(f, ", broken off by the {}", by.as_str()))
    }
}

/// The client's ID, if it is one and harmless.
fn clients_id(headers: &HeaderMap) -> Option<HeaderValue> {
    let mut ids = all(headers, REQUEST_ID);
    let (Some(id), None) = (ids.next(), ids.next()) else { return None };
    let harmless = (1..=128).contains(&id.len()) && id.as_bytes().iter().all(u8::is_ascii_graphic);
    harmless.then(|| id.clone())
}

/// A new ID, which sorts by time.
fn new_id() -> HeaderValue {
    const LENGTH: usize = uuid::fmt::Hyphenated::LENGTH;
    let mut text = [0; LENGTH];
    let text = uuid::Uuid::now_v7().as_hyphenated().encode_lower(&mut text);
    // Shared from the start: it goes into the answer, to the engine and into the log.
    let text = <[u8; LENGTH]>::try_from(text.as_bytes()).map(Bytes::from_owner);
    let id = text.ok().and_then(|text| HeaderValue::from_maybe_shared(text).ok());
    id.unwrap_or_else(|| HeaderValue::from_static("-"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sane_ids_are_kept_and_others_replaced() {
        let of = |ids: &[&[u8]]| {
            let mut headers = HeaderMap::new();
            for id in ids {
                headers.append(REQUEST_ID, HeaderValue::from_bytes(id).unwrap());
            }
            clients_id(&headers)
        };
        assert_eq!(of(&[b"abc-1"]).unwrap(), "abc-1");
        let long = [b'x'; 129];
        assert_eq!(of(&[&long[1..]]).unwrap().len(), 128);
        let bad: [&[&[u8]]; 6] = [&[], &[b""], &[b"a b"], &[b"a\xff"], &[&long], &[b"a", b"b"]];
        for ids in bad {
            assert_eq!(of(ids), None, "{ids:?}");
        }
        let uuid: uuid::Uuid = new_id().to_str().unwrap().parse().unwrap();
        assert_eq!(uuid.get_version_num(), 7);
    }
}
