//! Traces: what requests and loads took, span by span, for OpenTelemetry.
//!
//! ```text
//!   front door ── Caller ─▶ Trace (the engine is told) ── Traced ─┐
//!   owner ── Notice, for which request ───────────────────────────┴─▶ Span ─▶ queue ─▶ Exporter ─▶ OTLP collector
//! ```
//! Purpose: a request's span, with its wait below it and the load that it caused. Owner: the composition root, where `[traces] otlp` is
//! given. Invariants: nobody waits for the collector, and what it does not take in time is lost and counted; no prompt, no answer and
//! no key is in a span; what the caller decided about sampling holds.

use std::collections::BTreeMap;
use std::num::{NonZeroU64, NonZeroU128};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use tokio::sync::mpsc;

use crate::observe::metrics::Metrics;
use crate::proxy::port::{Caller, Observer, Seen, Trace};
use crate::supervisor::witness::{Notice, Witness};
use crate::types::{Collector, InstanceId, Moment};
pub use send::Exporter;
use span::Span;

mod request;
mod send;
mod span;

/// Spans that wait for the collector at most: some seconds of a busy front door.
const WAITING: usize = 4096;

/// Makes spans.
#[derive(Debug)]
pub struct Traces {
    queue: mpsc::Sender<Span>,
    /// Of a million.
    sample: u32,
    metrics: Arc<Metrics>,
    /// Requests that are not over yet, by their IDs.
    open: Mutex<BTreeMap<String, Trace>>,
    /// Loads and wakes that are not over yet, and only those of traced requests.
    loads: Mutex<BTreeMap<InstanceId, Span>>,
}

impl Traces {
    /// Traces requests from now on; what comes of it goes to whoever runs the [`Exporter`]. `sample`: of a million requests that nobody
    /// has decided about, so many.
    #[must_use]
    pub fn new(collector: Collector, sample: u32, metrics: Arc<Metrics>) -> (Arc<Self>, Exporter) {
        let (queue, waiting) = mpsc::channel(WAITING);
        let exporter = Exporter::new(collector, waiting, metrics.clone());
        let (open, loads) = (Mutex::default(), Mutex::default());
        (Arc::new(Self { queue, sample, metrics, open, loads }), exporter)
    }

    fn send(&self, span: Span) {
        if self.queue.try_send(span).is_err() {
            self.metrics.spans(0, 1);
        }
    }

    /// Whether a request is traced that nobody has decided about: by its trace's own random bits, so that others decide the same.
    fn samples(&self, trace: u128) -> bool {
        const BITS: u32 = 56;
        let random = (trace & ((1 << BITS) - 1)) * 1_000_000;
        random >> BITS < u128::from(self.sample)
    }

    fn begin(&self, instance: &InstanceId, request: Option<&str>, what: &'static str) {
        let open = request.and_then(|id| locked(&self.open).get(id).copied());
        if let Some(of) = open {
            let mut span =
                Span::below(&of, format!("{what} {}", instance.model), SystemTime::now());
            span.text("hostler.model", instance.model.as_str());
            span.text("hostler.instance", &instance.to_string());
            locked(&self.loads).insert(instance.clone(), span);
        }
    }

    fn mark(&self, instance: &InstanceId, event: &'static str) {
        if let Some(span) = locked(&self.loads).get_mut(instance) {
            span.event(event, SystemTime::now());
        }
    }

    fn end(&self, instance: &InstanceId, error: Option<&str>) {
        let span = locked(&self.loads).remove(instance);
        if let Some(mut span) = span {
            span.end(SystemTime::now());
            if let Some(error) = error {
                span.failed(error);
            }
            self.send(span);
        }
    }
}

/// Nothing under these locks can leave what they hold half changed; each is held for one look-up.
fn locked<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A new trace. Never zero: a random UUID has bits that are always set, in both halves.
fn random_trace() -> NonZeroU128 {
    NonZeroU128::new(uuid::Uuid::new_v4().as_u128()).unwrap_or(NonZeroU128::MIN)
}

/// A new span, in the same way.
fn random_span() -> NonZeroU64 {
    let half = (uuid::Uuid::new_v4().as_u128() >> 64) as u64;
    NonZeroU64::new(half).unwrap_or(NonZeroU64::MIN)
}

impl Observer for Traces {
    fn begun(&self) {}

    fn trace(&self, id: &str, caller: &dyn Fn() -> Option<Caller>) -> Option<Trace> {
        let (trace, parent) = match caller() {
            Some(caller) if !caller.sampled => return None,
            Some(caller) => (caller.trace, Some(caller.span)),
            None => (random_trace(), None),
        };
        if parent.is_none() && !self.samples(trace.get()) {
            return None;
        }
        let trace = Trace { trace, span: random_span(), parent };
        locked(&self.open).insert(id.to_owned(), trace);
        Some(trace)
    }

    fn ended(&self, seen: &Seen<'_>) {
        let Some(traced) = &seen.traced else { return };
        let mut open = locked(&self.open);
        // Two requests may have one ID; then it is the later's.
        if open.get(traced.id) == Some(&traced.trace) {
            open.remove(traced.id);
        }
        drop(open);
        // Nobody asked for the spans of a load balancer's questions.
        if seen.routine && traced.trace.parent.is_none() {
            return;
        }
        if let Some(wait) = request::wait(seen, traced) {
            self.send(wait);
        }
        self.send(request::request(seen, traced));
    }
}

impl Witness for Traces {
    fn see(&self, _: Moment, notice: &Notice, request: Option<&str>) {
        match notice {
            Notice::Starting { instance, .. } => self.begin(instance, request, "load"),
            Notice::Waking { instance } => self.begin(instance, request, "wake"),
            Notice::Pulling { instance } => {
                // Where others have to leave for it, this is how it begins.
                if !locked(&self.loads).contains_key(instance) {
                    self.begin(instance, request, "load");
                }
                self.mark(instance, "pulling");
            }
            Notice::Loading { instance } => self.mark(instance, "loading"),
            Notice::Ready { instance, .. } | Notice::Woken { instance, .. } => {
                self.end(instance, None);
            }
            // Nothing failed: its image is here now, or is another, and the next attempt follows at once.
            Notice::PlannedAgain { instance, .. } => {
                self.mark(instance, "planned_again");
                self.end(instance, None);
            }
            Notice::Failed { instance, fault, .. } => self.end(instance, Some(fault.code.as_str())),
            Notice::WakeFailed { instance, .. } => self.end(instance, Some("wake_failed")),
            Notice::Stopping { instance, reason } => self.end(instance, Some(reason.as_str())),
            Notice::Stopped { instance } => self.end(instance, Some("stopped")),
            Notice::Adopted { .. }
            | Notice::Yielding { .. }
            | Notice::Spared { .. }
            | Notice::FallingAsleep { .. }
            | Notice::Asleep { .. }
            | Notice::SleepFailed { .. }
            | Notice::Sleepless { .. }
            | Notice::StopFailed { .. }
            | Notice::Measured { .. }
            | Notice::Unmeasured { .. }
            | Notice::Waiting { .. } => {}
        }
    }
}
