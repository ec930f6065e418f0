//! What the front door asks of those behind it: who counts its requests, and who answers for the host.
//!
//! Purpose: the two ports by which metrics and the console get to the one endpoint, without the front door knowing either. Owner: the
//! composition root gives one of each to [`super::Server`]. Invariants: an [`Observer`] sees each request exactly once, at its
//! end; a [`Console`] is asked only by those who may ([`Asker`] is checked first); neither sees a prompt, a completion or a key.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::Stream;
use hyper::{Method, Response};

use super::error::is_engines;
use super::external::Healths;
pub use super::trace::{Caller, Trace};
use crate::types::{InstanceId, ModelName};

/// One request that is over.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'a> {
    /// What was asked for, by the list of routes; `-` where the head was refused. Bounded.
    pub route: &'static str,
    /// The configured model whose engine was to work on it; `None`: none, or one that nobody configured. What is asked about a model, or done
    /// to it, is for none. Bounded.
    pub model: Option<&'a ModelName>,
    /// Whose engine it was given to; `None`: to none of ours.
    pub instance: Option<&'a InstanceId>,
    /// HTTP status; `None`: the client left before there was one.
    pub status: Option<u16>,
    /// `error.code`, where there was an error in place of an engine's answer. Bounded.
    pub refused: Option<&'static str>,
    /// The name of the key that came with it. Bounded.
    pub key: Option<&'a str>,
    /// Who ended it before its whole answer went out; `None`: nobody did.
    pub broken_by: Option<Side>,
    /// From the head to the end.
    pub total: Duration,
    /// Its wait for a turn and a lease; `None`: it did not get so far.
    pub queue: Option<Duration>,
    /// From the head until its engine was asked, where that was the engine's first request ([`Observer::asks`]).
    pub asked_first: Option<Duration>,
    /// From the head to the first byte of the answer's body that is no sign of life; `None` where there was an error instead.
    pub first_byte: Option<Duration>,
    /// Between the pieces of a stream.
    pub gaps: &'a Gaps,
    /// Of the answer's body.
    pub bytes: u64,
    /// A question that monitoring asks all the time, which no person wants told with the rest.
    pub routine: bool,
    /// What is traced of it; `None`: it is not.
    pub traced: Option<Traced<'a>>,
}

impl Seen<'_> {
    /// Why this host refused it; `None`: it did not, it was its engine that failed, or monitoring was told what it came to hear.
    #[must_use]
    pub fn denied(&self) -> Option<&'static str> {
        self.refused.filter(|code| !self.routine && !is_engines(code))
    }
}

/// What a span tells beside what is counted. Nothing here is bounded but by the head's size.
#[derive(Clone, Copy, Debug)]
pub struct Traced<'a> {
    /// Its place.
    pub trace: Trace,
    /// When the head was here, by the host's clock.
    pub began: SystemTime,
    /// From the head until it began to wait; `None`: it did not get so far.
    pub queued: Option<Duration>,
    /// How it was asked.
    pub method: &'a Method,
    /// What was asked for, without the query.
    pub path: &'a str,
    /// `x-request-id`.
    pub id: &'a str,
    /// The model as the client wrote it.
    pub asked: Option<&'a str>,
}

/// Who can end a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The client left.
    Client,
    /// The engine did, or said something that is no answer.
    Engine,
    /// The daemon did, because it ends, or because there was no engine for a stream that had begun.
    Host,
}

impl Side {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Client, Self::Engine, Self::Host];

    /// The word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Engine => "engine",
            Self::Host => "host",
        }
    }
}

/// Times between the pieces of one stream, in buckets: a request counts them for itself, so that a piece costs next to nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gaps {
    /// By [`Gaps::BOUNDS`]; the last is of those above all of them.
    pub counts: [u32; Self::BOUNDS.len() + 1],
    /// Of all.
    pub sum: Duration,
}

impl Gaps {
    /// Upper bounds of the buckets, in seconds.
    pub const BOUNDS: &'static [f64] =
        &[0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0];

    /// One more.
    pub fn add(&mut self, gap: Duration) {
        let seconds = gap.as_secs_f64();
        let at = Self::BOUNDS.iter().position(|bound| seconds <= *bound);
        let count = &mut self.counts[at.unwrap_or(Self::BOUNDS.len())];
        *count = count.saturating_add(1);
        self.sum += gap;
    }
}

/// Counts requests. Called on the thread of requests: it may neither block nor compute for long.
pub trait Observer: Send + Sync + 'static {
    /// A head has come in.
    fn begun(&self);
    /// It begins (`true`) or ends (`false`) to wait for one of the turns (`max_concurrent`) that a model has which runs elsewhere. Those who
    /// wait for this host's own are in the picture that the supervisor publishes.
    fn awaits_turn(&self, model: &ModelName, begins: bool) {
        let _ = (model, begins);
    }
    /// An engine of this host's is asked, with a body that is here. Whether it is the first request that it gets: who ends one says so
    /// again ([`Seen::asked_first`]).
    fn asks(&self, instance: &InstanceId) -> bool {
        let _ = instance;
        false
    }
    /// Which span it is; `None`: none. Asked once, behind `begun`. `id`: its `x-request-id`; `caller`: who looks for the client's own
    /// span, which costs something and is of no use where there are no spans.
    fn trace(&self, id: &str, caller: &dyn Fn() -> Option<Caller>) -> Option<Trace> {
        let _ = (id, caller);
        None
    }
    /// A request is over; each that has begun is, however it ends.
    fn ended(&self, seen: &Seen<'_>);
    /// Whether a request that ended `at` that time gets a line of its own in the log. Asked once, behind `ended`, unless it is routine.
    fn tells(&self, seen: &Seen<'_>, at: std::time::Instant) -> bool {
        let _ = (seen, at);
        true
    }
}

/// Counts nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unobserved;

impl Observer for Unobserved {
    fn begun(&self) {}
    fn ended(&self, _: &Seen<'_>) {}
}

/// Two, one after the other; the second is who traces.
impl<A: Observer, B: Observer> Observer for (Arc<A>, Arc<B>) {
    fn begun(&self) {
        self.0.begun();
        self.1.begun();
    }

    fn awaits_turn(&self, model: &ModelName, begins: bool) {
        self.0.awaits_turn(model, begins);
        self.1.awaits_turn(model, begins);
    }

    fn asks(&self, instance: &InstanceId) -> bool {
        let first = self.0.asks(instance);
        self.1.asks(instance) || first
    }

    fn trace(&self, id: &str, caller: &dyn Fn() -> Option<Caller>) -> Option<Trace> {
        self.1.trace(id, caller)
    }

    fn ended(&self, seen: &Seen<'_>) {
        self.0.ended(seen);
        self.1.ended(seen);
    }

    fn tells(&self, seen: &Seen<'_>, at: std::time::Instant) -> bool {
        self.0.tells(seen, at) && self.1.tells(seen, at)
    }
}

/// What is asked about the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Page {
    /// `GET /metrics`.
    Metrics,
    /// `GET /metrics/models/{id}`: an engine's own.
    EngineMetrics(ModelName),
    /// `GET /api/v1/models`.
    Models,
    /// `GET /api/v1/externals`: models that run elsewhere.
    Externals,
    /// `GET /api/v1/gpus`.
    Gpus,
    /// `GET /api/v1/jobs`.
    Jobs,
    /// `GET /api/v1/events`: server-sent events.
    Events,
    /// `GET /api/v1/models/{id}/log`: server-sent events.
    Log(ModelName),
    /// `GET /api/v1/openapi.json`.
    OpenApi,
    /// `POST /api/v1/models/{id}/{verb}`.
    Act(ModelName, Act),
    /// `GET /ui`.
    Ui,
    /// `GET /debug/state`, on a Unix socket.
    DebugState,
    /// `GET /debug/plan?model=`, on a Unix socket.
    DebugPlan(ModelName),
}

/// What an administrator may do to a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// Make it ready.
    Load,
    /// Make it leave after its requests.
    Unload,
    /// Keep it loaded.
    Pin,
    /// Keep it loaded no more.
    Unpin,
    /// Put it to sleep.
    Sleep,
    /// Wake it.
    Wake,
    /// Find out what it needs.
    Measure,
}

impl Act {
    /// All of them, by their words in paths.
    pub const ALL: [(&'static str, Self); 7] = [
        ("load", Self::Load),
        ("unload", Self::Unload),
        ("pin", Self::Pin),
        ("unpin", Self::Unpin),
        ("sleep", Self::Sleep),
        ("wake", Self::Wake),
        ("measure", Self::Measure),
    ];

    /// The word for it.
    #[must_use]
    pub fn word(self) -> &'static str {
        Self::ALL.iter().find(|(_, act)| *act == self).map_or("", |(word, _)| word)
    }
}

/// Who asks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Asker {
    /// The name of the key that came with it.
    pub key: Option<String>,
    /// That key is an administrator's.
    pub admin: bool,
    /// Keys are asked for here at all.
    pub keys: bool,
    /// It reads OpenMetrics' text format (`Accept`).
    pub openmetrics: bool,
}

/// Bytes that come as they are made.
pub type ByteStream = Pin<Box<dyn Stream<Item = Bytes> + Send>>;

/// What a page is made of.
pub enum Content {
    /// All of it.
    Whole(Bytes),
    /// What there is now and what comes; it ends when the daemon drains.
    Stream(ByteStream),
}

impl std::fmt::Debug for Content {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Whole(_) => "Whole",
            Self::Stream(_) => "Stream",
        })
    }
}

/// Why there is no page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// HTTP status.
    pub status: u16,
    /// Stable word for programs.
    pub code: &'static str,
    /// For people.
    pub message: String,
}

/// A page, or why there is none.
pub type Answer<'a> = Pin<Box<dyn Future<Output = Result<Response<Content>, Refusal>> + Send + 'a>>;

/// Answers for the host. Called on the thread of requests: it may not block.
pub trait Console: Send + Sync + 'static {
    /// One page.
    fn answer(&self, page: Page, asker: Asker) -> Answer<'_>;

    /// What `GET /api/v1/status` says of the daemon itself, beside models and devices.
    fn about(&self) -> serde_json::Map<String, serde_json::Value> {
        serde_json::Map::new()
    }
}

/// Who is behind a front door.
#[derive(Clone)]
pub struct Behind {
    /// Who counts its requests.
    pub observer: Arc<dyn Observer>,
    /// Who answers for the host.
    pub console: Arc<dyn Console>,
    /// Where it writes down how models are that run elsewhere, for whoever shows that.
    pub healths: Arc<Healths>,
}

impl Default for Behind {
    fn default() -> Self {
        Self {
            observer: Arc::new(Unobserved),
            console: Arc::new(NoConsole),
            healths: Arc::default(),
        }
    }
}

impl std::fmt::Debug for Behind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Behind").finish_non_exhaustive()
    }
}

/// Knows no page.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoConsole;

impl Console for NoConsole {
    fn answer(&self, _: Page, _: Asker) -> Answer<'_> {
        let message = "this server has no pages about its host".to_owned();
        Box::pin(std::future::ready(Err(Refusal { status: 404, code: "unknown_path", message })))
    }
}
