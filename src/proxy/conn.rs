//! One client connection and its clocks.
//!
//! Purpose: bound how long a client may take for each step, which hyper does for heads only and not apart from idling.
//! Owner: the server, one task a connection. Invariants: a connection is in exactly one [`Stage`]; its deadline follows
//! from the stage and from whether the client takes what is written; when it passes, the connection is dropped, and with it the request's
//! future, body and lease; who is asked to leave for others does so between two requests or before the first, and never within one.
//!
//! ```text
//!  Head ──(head complete)──▶ Busy ──(answer sent)──▶ Idle ──(first byte)──▶ Head
//! ```

mod watched;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use futures_util::task::AtomicWaker;
use hyper::body::{Body, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::time::Instant;

use super::bell::Doorbell;
use super::clock;
use super::end::End;
use super::server::Limits;
use super::stream::Stream;
use watched::Watched;

/// What is read of a large body at once; a connection that brings none has no such buffer. It is looked into and copied while the processor
/// still has it in its cache: twice as much is slower.
const READ_MAX: usize = 128 << 10;

/// Who keeps a connection that is waited for so long gives it up where others have none. Most heads are whole when they come, and who is
/// between two requests for a moment has the next one on its way.
const PATIENCE: Duration = Duration::from_secs(1);

/// Where a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// A request's head is on its way.
    Head { since: Instant },
    /// A request is being served; its own clocks run.
    Busy,
    /// Between two requests.
    Idle { since: Instant },
}

#[derive(Debug)]
struct State {
    stage: Stage,
    /// The client takes no more bytes since then.
    stuck: Option<Instant>,
    /// The answer broke off: the end must not look like one.
    reset: bool,
}

/// What the parts of one connection tell each other.
#[derive(Debug)]
pub(super) struct Pulse {
    state: Mutex<State>,
    /// The connection ends after the answer in hand.
    last: AtomicBool,
    /// The server's drain is over.
    over: AtomicBool,
    /// Others wait for its room.
    leave: AtomicBool,
    /// Who hears that.
    task: AtomicWaker,
    /// Held while it takes room.
    _room: Arc<()>,
}

/// Held while a request is served, until the last byte of its answer was handed on.
#[derive(Debug)]
pub(super) struct Busy(Arc<Pulse>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.state().stage = Stage::Idle { since: clock::now() };
    }
}

impl Busy {
    /// The answer broke off: the client gets a reset, which no length or framing can pass off as a clean end.
    pub fn broken(&self) {
        self.0.state().reset = true;
    }

    /// The connection ends after this answer. To be said while the connection is polled, which looks for it then.
    pub fn last(&self) {
        self.0.last.store(true, Ordering::Relaxed);
    }

    /// The server's drain is over: an answer that is not there yet is broken off, so that its client is told. Whoever waits
    /// for the engine is polled when this turns true.
    pub fn is_over(&self) -> bool {
        self.0.over.load(Ordering::Relaxed)
    }
}

impl Pulse {
    /// Of a new connection, which takes that room.
    pub fn new(room: Arc<()>) -> Arc<Self> {
        let stage = Stage::Head { since: clock::now() };
        let state = Mutex::new(State { stage, stuck: None, reset: false });
        let [last, over, leave] = [false; 3].map(AtomicBool::new);
        Arc::new(Self { state, last, over, leave, task: AtomicWaker::new(), _room: room })
    }

    /// Since when nothing but the client is waited for: between two requests, or for a head that does not come.
    pub fn waits_since(&self, now: Instant) -> Option<Instant> {
        let state = self.state();
        let since = match state.stage {
            Stage::Idle { since } if state.stuck.is_none() => since,
            Stage::Head { since } => since,
            Stage::Idle { .. } | Stage::Busy => return None,
        };
        (now.saturating_duration_since(since) >= PATIENCE).then_some(since)
    }

    /// Others wait for its room: it ends, unless a request has come meanwhile.
    pub fn ask_to_leave(&self) {
        self.leave.store(true, Ordering::Relaxed);
        self.task.wake();
    }

    /// Whether it was asked, and has not answered yet.
    pub fn is_asked(&self) -> bool {
        self.leave.load(Ordering::Relaxed)
    }

    /// A request has come: it stays.
    fn stays(&self) {
        self.leave.store(false, Ordering::Relaxed);
    }

    /// A request's head is complete.
    pub fn busy(self: &Arc<Self>) -> Busy {
        self.state().stage = Stage::Busy;
        Busy(self.clone())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing that is done under the lock can panic half-way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn heard(&self) {
        let mut state = self.state();
        if matches!(state.stage, Stage::Idle { .. }) {
            state.stage = Stage::Head { since: clock::now() };
        }
    }

    pub(super) fn wrote(&self, stuck: bool) {
        let mut state = self.state();
        match (stuck, state.stuck) {
            (true, None) => state.stuck = Some(clock::now()),
            (false, Some(_)) => {
                state.stuck = None;
                // The end of its answer was still here, and nobody was waited for but who takes it.
                if let Stage::Idle { since } = &mut state.stage {
                    *since = clock::now();
                }
            }
            (true, Some(_)) | (false, None) => {}
        }
    }

    /// When to look again, or why the connection must end now.
    fn check(&self, now: Instant, limits: &Limits) -> Result<Instant, &'static str> {
        let state = self.state();
        let mut next = now + soonest(limits);
        let mut due = |at: Instant, why: &'static str| {
            next = next.min(at);
            if at <= now { Err(why) } else { Ok(()) }
        };
        match state.stage {
            Stage::Head { since } => {
                due(since + limits.header_timeout, "the request's head did not arrive in time")?;
            }
            Stage::Idle { since } if state.stuck.is_none() => {
                due(since + limits.idle_timeout, "idle")?;
            }
            Stage::Idle { .. } | Stage::Busy => {}
        }
        if let Some(since) = state.stuck {
            due(since + limits.stall_timeout, "the client takes no more bytes")?;
        }
        Ok(next)
    }
}

/// No stage that begins now can end sooner.
fn soonest(limits: &Limits) -> Duration {
    limits.header_timeout.min(limits.idle_timeout).min(limits.stall_timeout)
}

/// Serves a connection to its end, or until it is carried on as a WebSocket. The future that `answer` gives should be small, for hyper keeps room for it as long as
/// the connection lives.
pub(super) async fn run<F, Fut, B>(
    stream: Stream,
    pulse: Arc<Pulse>,
    limits: Arc<Limits>,
    end: End,
    answer: F,
) where
    F: Fn(Request<Incoming>, Busy) -> Fut,
    Fut: Future<Output = Response<B>>,
    B: Body + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let io = TokioIo::new(Watched { stream, pulse: pulse.clone() });
    let service = service_fn(|request| {
        let answer = answer(request, pulse.busy());
        async move { Ok::<_, std::convert::Infallible>(answer.await) }
    });
    let buffer = usize::try_from(limits.max_header_bytes.0).unwrap_or(usize::MAX).max(8192);
    let conn = http1::Builder::new()
        // `Pulse` bounds heads and idling; a timer for each request would be a second one.
        .header_read_timeout(None)
        .max_headers(limits.max_headers)
        .max_header_size(buffer)
        .max_buf_size(buffer.max(READ_MAX))
        .serve_connection(io, service)
        .with_upgrades();
    tokio::pin!(conn);
    let (drain, over) = (end.drain.token().cancelled_owned(), end.over.token().cancelled_owned());
    // As late as any stage allows: a timer that is due before all others makes the runtime wake itself.
    let look = tokio::time::sleep_until(clock::now() + soonest(&limits));
    tokio::pin!(drain, over, look);
    let (mut listening, mut ending) = (false, false);
    // Who is woken by the timer: to ask it again before it is due would be to tell it the same.
    let mut told: Option<Waker> = None;
    let mut bell = Doorbell::default();
    let mut serve = |cx: &mut Context<'_>| {
        loop {
            // Before it is looked whether a request has come.
            let asked = pulse.is_asked();
            if asked || !listening {
                // Who was woken once is not woken again.
                pulse.task.register(cx.waker());
            }
            if let Poll::Ready(result) = conn.as_mut().poll(cx) {
                if let Err(error) = result {
                    tracing::debug!(
                        error = &error as &dyn std::error::Error,
                        "a client's connection ended"
                    );
                }
                return Poll::Ready(());
            }
            if !listening {
                // Once: they wake this task, which then looks at what was given. To ask them each time is to take locks.
                listening = true;
                let _ = (drain.as_mut().poll(cx), over.as_mut().poll(cx));
            }
            if asked && pulse.is_asked() {
                pulse.stays();
                if pulse.waits_since(clock::read()).is_some() {
                    tracing::debug!(
                        "a client's idle connection ends, for others wait for its room"
                    );
                    return Poll::Ready(());
                }
            }
            if !ending && (end.drain.is_given() || pulse.last.load(Ordering::Relaxed)) {
                ending = true;
                conn.as_mut().graceful_shutdown();
                continue;
            }
            if ending && end.over.is_given() && !pulse.over.swap(true, Ordering::Relaxed) {
                // The request that is polled next sees it.
                continue;
            }
            let due = clock::due();
            if let Some(due) = due.filter(|due| *due < look.deadline()) {
                look.as_mut().reset(due);
            }
            if told.as_ref().is_some_and(|told| told.will_wake(cx.waker())) && !look.is_elapsed() {
                return Poll::Pending;
            }
            told = Some(cx.waker().clone());
            std::task::ready!(look.as_mut().poll(cx));
            told = None;
            // As the clock has it: in a turn's own time a deadline that passed within the turn would be still to come, for ever.
            match pulse.check(clock::read(), &limits) {
                Ok(next) => look.as_mut().reset(due.map_or(next, |due| due.min(next))),
                Err(why) => {
                    tracing::debug!(why, "a client's connection is cut");
                    return Poll::Ready(());
                }
            }
        }
    };
    std::future::poll_fn(|cx| clock::turn(|| bell.poll(cx, &mut serve))).await;
    // Who carries it on has clocks of his own, and is not asked to leave.
    pulse.state().stage = Stage::Busy;
}

#[cfg(test)]
pub(super) mod tests;
