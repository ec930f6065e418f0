//! The engine's state: phase, control of running generations, counters, what was seen on the wire.
//!
//! One [`Engine`] per running server, shared by all its tasks. Locks are held for a few lines and
//! never across an await. Generations watch [`Control`]; nothing else tells them to stop.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use crate::config::Config;
use crate::knobs::{Death, Fail, Knobs, When};
use crate::vram::Memory;

/// How the process is to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// With this status.
    Code(u8),
    /// By SIGABRT.
    Abort,
    /// By SIGKILL.
    Kill,
}

/// Where the engine is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Not listening for its own reasons (BIND).
    Starting,
    /// Claiming memory for the weights.
    Loading,
    /// All memory claimed, not yet serving.
    Warmup,
    /// Serving (or asleep).
    Ready,
    /// Ending in good order.
    Ending,
    /// The engine core is dead, the API server still lives.
    CoreDead,
}

impl Phase {
    fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Loading => "loading",
            Self::Warmup => "warmup",
            Self::Ready => "ready",
            Self::Ending => "ending",
            Self::CoreDead => "core-dead",
        }
    }
}

/// What every generation obeys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Control {
    pub phase: Phase,
    /// The sleep level, while asleep.
    pub asleep: Option<u8>,
    /// `/pause`: generations stand still.
    pub paused: bool,
    /// No new generation starts, while the running ones end.
    pub closed: bool,
    /// Hung: no token ever again.
    pub frozen: bool,
    /// Generations of an older epoch end with `abort`.
    pub epoch: u64,
    /// Woke up wrong.
    pub gibberish: bool,
}

impl Control {
    /// Whether the engine ends, in good order or not.
    pub(crate) fn ending(&self) -> bool {
        matches!(self.phase, Phase::Ending | Phase::CoreDead)
    }

    /// Whether generations stand still.
    pub(crate) fn halted(&self) -> bool {
        self.frozen || self.paused || self.asleep.is_some()
    }
}

/// Time for the server to put buffered bytes on the wire before it breaks.
pub(crate) const FLUSH: Duration = Duration::from_millis(20);

const KEPT_REQUESTS: usize = 256;
const KEPT_ABORTS: usize = 1024;
const KEPT_BODY: usize = 4096;

#[derive(Debug, Default)]
struct Seen {
    requests: VecDeque<Value>,
    aborts: VecDeque<Value>,
}

/// A running engine.
#[derive(Debug)]
pub struct Engine {
    pub(crate) config: Config,
    pub(crate) memory: Memory,
    pub(crate) control: watch::Sender<Control>,
    pub(crate) exit: watch::Sender<Option<Exit>>,
    pub(crate) address: watch::Sender<Option<SocketAddr>>,
    /// Generations that have a slot.
    pub(crate) running: watch::Sender<usize>,
    pub(crate) stop_listening: watch::Sender<bool>,
    pub(crate) counters: Counters,
    pub(crate) sleep_lock: tokio::sync::Mutex<()>,
    /// Bytes per device held before the last sleep.
    pub(crate) awake_bytes: AtomicU64,
    waiting: AtomicUsize,
    slots: Arc<Semaphore>,
    knobs: Mutex<Arc<Knobs>>,
    /// Bumped when FAIL changes: older timers are void.
    fail_epoch: AtomicU64,
    seen: Mutex<Seen>,
    started: Instant,
}

/// What was done so far.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub requests: AtomicU64,
    pub inference: AtomicU64,
    pub finished: AtomicU64,
    pub aborted: AtomicU64,
    pub prompt_tokens: AtomicU64,
    pub tokens: AtomicU64,
    pub refused: AtomicU64,
    pub connections: AtomicU64,
    pub sleeps: AtomicU64,
    pub wakes: AtomicU64,
    pub terms: AtomicU64,
}

pub(crate) fn add(counter: &AtomicU64, n: u64) -> u64 {
    counter.fetch_add(n, Ordering::SeqCst) + n
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Engine {
    /// An engine that has not started yet.
    #[must_use]
    pub fn new(config: Config) -> Arc<Self> {
        let control = Control {
            phase: Phase::Starting,
            asleep: None,
            paused: false,
            closed: false,
            frozen: false,
            epoch: 0,
            gibberish: false,
        };
        Arc::new(Self {
            memory: Memory::new(&config),
            control: watch::Sender::new(control),
            exit: watch::Sender::new(None),
            address: watch::Sender::new(None),
            running: watch::Sender::new(0),
            stop_listening: watch::Sender::new(false),
            counters: Counters::default(),
            sleep_lock: tokio::sync::Mutex::new(()),
            awake_bytes: AtomicU64::new(0),
            waiting: AtomicUsize::new(0),
            slots: Arc::new(Semaphore::new(config.knobs.slots)),
            knobs: Mutex::new(Arc::new(config.knobs.clone())),
            fail_epoch: AtomicU64::new(0),
            seen: Mutex::default(),
            started: Instant::now(),
            config,
        })
    }

    /// The knobs as they are now.
    #[must_use]
    pub fn knobs(&self) -> Arc<Knobs> {
        Arc::clone(&locked(&self.knobs))
    }

    /// The TCP address listened on; `None` before that, and on a Unix socket.
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        *self.address.borrow()
    }

    /// Waits until the engine serves; `false` when it ended instead.
    pub async fn ready(&self) -> bool {
        let (mut control, mut exit) = (self.control.subscribe(), self.exit.subscribe());
        tokio::select! {
            ready = control.wait_for(|control| control.phase == Phase::Ready) => ready.is_ok(),
            _ = exit.wait_for(Option::is_some) => false,
        }
    }

    /// Replaces the knobs, and starts the clock of a changed FAIL.
    pub fn set_knobs(self: &Arc<Self>, knobs: Knobs) {
        let changed = self.knobs().fail != knobs.fail;
        *locked(&self.knobs) = Arc::new(knobs);
        if changed {
            self.arm();
        }
    }

    pub(crate) fn phase(&self) -> Phase {
        self.control.borrow().phase
    }

    pub(crate) fn set_phase(&self, phase: Phase) {
        eprintln!("fake-engine: {}", phase.as_str());
        self.control.send_modify(|control| {
            // Nothing comes back from its end.
            if !control.ending() {
                control.phase = phase;
            }
        });
    }

    /// Milliseconds since the engine was made.
    pub(crate) fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Ends the process; the first reason wins.
    pub(crate) fn end(&self, exit: Exit) {
        self.exit.send_if_modified(|old| old.is_none() && old.replace(exit).is_none());
    }

    /// Does what FAIL threatened.
    pub(crate) fn strike(self: &Arc<Self>, death: Death) {
        eprintln!("fake-engine: FAIL strikes: {death:?}");
        match death {
            Death::Exit(code) => self.end(Exit::Code(code)),
            Death::Abort => self.end(Exit::Abort),
            Death::Oom => self.end(Exit::Kill),
            Death::Hang => self.control.send_modify(|control| control.frozen = true),
            Death::Engine => self.core_dies(),
        }
    }

    fn core_dies(self: &Arc<Self>) {
        eprintln!("EngineCore encountered a fatal error. (fake-engine: FAIL=engine)");
        self.control.send_modify(|control| control.phase = Phase::CoreDead);
        self.memory.release();
        let engine = Arc::clone(self);
        tokio::spawn(async move {
            // As measured: the port closes at a third of the way to the process's end.
            let death = engine.knobs().death;
            tokio::time::sleep(death * 3 / 10).await;
            engine.stop_listening.send_replace(true);
            tokio::time::sleep(death * 7 / 10).await;
            engine.end(Exit::Code(0));
        });
    }

    /// Starts the timer of FAIL, if it has one.
    pub(crate) fn arm(self: &Arc<Self>) {
        let epoch = self.fail_epoch.fetch_add(1, Ordering::SeqCst) + 1;
        let (death, after_ready, delay) = match self.knobs().fail {
            Fail::At(death, When::Start(delay)) => (death, false, delay),
            Fail::At(death, When::Ready(delay)) => (death, true, delay),
            Fail::Flap(delay) => (Death::Exit(1), true, delay),
            Fail::At(_, When::Request(_) | When::Token(_))
            | Fail::None
            | Fail::First(_)
            | Fail::Vram => return,
        };
        let engine = Arc::clone(self);
        tokio::spawn(async move {
            if after_ready && !engine.ready().await {
                return;
            }
            tokio::time::sleep(delay).await;
            if engine.fail_epoch.load(Ordering::SeqCst) == epoch {
                engine.strike(death);
            }
        });
    }

    /// Counts an inference request, and lets FAIL strike at its number; a killed engine does not
    /// come back from here.
    pub(crate) async fn count_inference(self: &Arc<Self>) {
        let number = add(&self.counters.inference, 1);
        if let Fail::At(death, When::Request(n)) = self.knobs().fail
            && n == number
        {
            self.strike_for_good(death).await;
        }
    }

    /// Lets FAIL strike in a generation that has sent `tokens`; returns as [`Self::count_inference`].
    pub(crate) async fn between_tokens(self: &Arc<Self>, tokens: u64) {
        if let Fail::At(death, When::Token(n)) = self.knobs().fail
            && n == tokens
        {
            // What was sent is to be on the wire.
            tokio::time::sleep(FLUSH).await;
            self.strike_for_good(death).await;
        }
    }

    async fn strike_for_good(self: &Arc<Self>, death: Death) {
        self.strike(death);
        match death {
            Death::Exit(_) | Death::Abort | Death::Oom => std::future::pending().await,
            Death::Hang | Death::Engine => {}
        }
    }

    /// Notes a request as it arrived; the number is its name from here on.
    pub(crate) fn note_request(&self, head: &hyper::http::request::Parts, body: &[u8]) -> u64 {
        let number = add(&self.counters.requests, 1);
        let headers: Vec<_> = head
            .headers
            .iter()
            .map(|(name, value)| json!([name.as_str(), String::from_utf8_lossy(value.as_bytes())]))
            .collect();
        let mut seen = locked(&self.seen);
        if seen.requests.len() == KEPT_REQUESTS {
            seen.requests.pop_front();
        }
        seen.requests.push_back(json!({
            "number": number,
            "t_ms": self.now_ms(),
            "method": head.method.as_str(),
            "path": head.uri.to_string(),
            "headers": headers,
            "body_bytes": body.len(),
            "body": String::from_utf8_lossy(&body[..body.len().min(KEPT_BODY)]),
        }));
        number
    }

    fn note_abort(&self, flight: &Flight) {
        add(&self.counters.aborted, 1);
        let mut seen = locked(&self.seen);
        if seen.aborts.len() == KEPT_ABORTS {
            seen.aborts.pop_front();
        }
        seen.aborts.push_back(json!({
            "number": flight.number,
            "t_ms": self.now_ms(),
            "tokens": flight.tokens,
            "had_slot": flight.permit.is_some(),
        }));
    }

    /// Requests that wait: for a slot, or for the engine to wake.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::SeqCst)
    }

    /// Everything, for `GET /_fake/state`.
    #[must_use]
    pub fn state(&self) -> Value {
        let control = self.control.borrow().clone();
        let counters = &self.counters;
        let get = |counter: &AtomicU64| counter.load(Ordering::SeqCst);
        let seen = locked(&self.seen);
        json!({
            "pid": std::process::id(),
            "t_ms": self.now_ms(),
            "phase": control.phase.as_str(),
            "asleep": control.asleep,
            "paused": control.paused,
            "frozen": control.frozen,
            "running": *self.running.borrow(),
            "waiting": self.waiting(),
            "counters": {
                "requests": get(&counters.requests),
                "inference": get(&counters.inference),
                "finished": get(&counters.finished),
                "aborted": get(&counters.aborted),
                "refused": get(&counters.refused),
                "prompt_tokens": get(&counters.prompt_tokens),
                "tokens": get(&counters.tokens),
                "connections": get(&counters.connections),
                "sleeps": get(&counters.sleeps),
                "wakes": get(&counters.wakes),
                "terms": get(&counters.terms),
            },
            "claims": self.memory.describe(),
            "requests": seen.requests,
            "aborts": seen.aborts,
            "knobs": format!("{:?}", self.knobs()),
        })
    }
}

/// One inference request in the engine. Dropped before [`Flight::finish`], it was aborted: its client
/// left.
#[derive(Debug)]
pub(crate) struct Flight {
    pub engine: Arc<Engine>,
    pub number: u64,
    /// Tokens generated.
    pub tokens: u64,
    /// [`Control::epoch`] at admission.
    pub epoch: u64,
    permit: Option<OwnedSemaphorePermit>,
    finished: bool,
}

/// The queue is full.
#[derive(Debug)]
pub(crate) struct QueueFull;

impl Flight {
    /// Waits for the engine to be awake and for a slot.
    pub(crate) async fn admit(engine: &Arc<Engine>, number: u64) -> Result<Self, QueueFull> {
        let mut flight = Self {
            engine: Arc::clone(engine),
            number,
            tokens: 0,
            epoch: 0,
            permit: None,
            finished: false,
        };
        let before = engine.waiting.fetch_add(1, Ordering::SeqCst);
        let knobs = engine.knobs();
        let full = engine.slots.available_permits() == 0 || engine.control.borrow().halted();
        if full && knobs.queue.is_some_and(|queue| before >= queue) {
            add(&engine.counters.refused, 1);
            flight.finish();
            return Err(QueueFull);
        }
        let mut control = engine.control.subscribe();
        loop {
            // The engine owns the sender and never closes the semaphore: neither wait can fail.
            let open = |c: &Control| !(c.halted() || c.closed) || c.ending();
            drop(control.wait_for(open).await);
            flight.epoch = control.borrow().epoch;
            flight.permit = Arc::clone(&engine.slots).acquire_owned().await.ok();
            engine.running.send_modify(|running| *running += 1);
            engine.waiting.fetch_sub(1, Ordering::SeqCst);
            // A sleep closes the gate and *then* waits for the running ones: whoever counted itself
            // as running and still finds the gate open is seen by the next sleep.
            if open(&control.borrow()) {
                return Ok(flight);
            }
            engine.waiting.fetch_add(1, Ordering::SeqCst);
            engine.running.send_modify(|running| *running -= 1);
            flight.permit = None;
        }
    }

    /// The request has its whole answer (or was refused): its end is no abort.
    pub(crate) fn finish(&mut self) {
        self.finished = true;
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        if self.permit.is_some() {
            self.engine.running.send_modify(|running| *running -= 1);
        } else {
            self.engine.waiting.fetch_sub(1, Ordering::SeqCst);
        }
        if self.finished {
            add(&self.engine.counters.finished, 1);
        } else {
            self.engine.note_abort(self);
        }
    }
}

/// Sleeps; a zero duration does not even yield.
pub(crate) async fn pause(duration: Duration) {
    if !duration.is_zero() {
        tokio::time::sleep(duration).await;
    }
}
