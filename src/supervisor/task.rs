//! The owner: the one task that holds the [`State`].
//!
//! Purpose: select → handle → dispatch → publish. Owner of: state, pending callers, the executor. Invariants: never
//! awaits anything but its inputs and the next deadline; publishes a whole [`Status`] after each turn; ends only after
//! [`Effect::Exit`].

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use super::effect::Effect;
use super::event::{Event, Observation};
pub use super::execute::{Clock, Ports};
use super::execute::{Executor, Subject, local_time, unix_s};
use super::express::Turnstiles;
use super::handle::{Ask, Handle, Lease, Verb};
use super::log;
use super::ports::Found;
use super::state::{Recalled, Settings, State};
use super::stir::STIR_MAX;
use super::story::{Cause, Stories};
use super::witness::{Blind, Look, Witness};
use crate::types::{
    DayMinute, Denied, GpuSnapshot, ModelName, ModelSpec, Moment, Status, WaiterId,
};

/// How often the world is read without a cause.
const OBSERVE_INTERVAL: Duration = Duration::from_secs(2);
/// How often the kernel is asked who lives: one small file an instance.
const WATCH_INTERVAL: Duration = Duration::from_millis(500);
/// How often podman is asked for all that is ours.
const SWEEP_INTERVAL: Duration = Duration::from_secs(2);
/// When to ask again while a reading is under way.
const OBSERVE_RETRY: Duration = Duration::from_millis(20);
/// A turn at least this often, so that a watchdog can tell a quiet owner from a stuck one.
const TURN_INTERVAL: Duration = Duration::from_secs(1);
/// Inputs taken in one turn before readers get a new picture.
const BATCH: usize = 256;

/// What a turn begins with.
enum Input {
    Event(Event),
    Ask(Ask),
}

/// How what an operator asked for has ended.
type Done = Result<(), Denied>;

enum Pending {
    /// With the request's ID.
    Lease(oneshot::Sender<Result<Lease, Denied>>, Option<Arc<str>>),
    /// With the number of the job.
    Operator(oneshot::Sender<Done>, Option<u32>),
}

/// The supervisor before it runs.
pub struct Supervisor {
    state: State,
    executor: Executor,
    clock: Clock,
    asks: mpsc::UnboundedReceiver<Ask>,
    events: mpsc::UnboundedReceiver<Event>,
    pending: BTreeMap<WaiterId, Pending>,
    /// What is to be told when readers can see it, too.
    told: Vec<(oneshot::Sender<Done>, Done)>,
    turnstiles: Turnstiles,
    /// When it is looked what went through the turnstiles; `None`: nothing did.
    stir_at: Option<Moment>,
    witness: Arc<dyn Witness>,
    stories: Stories,
    status: watch::Sender<Arc<Status>>,
    turns: Arc<AtomicU64>,
    observe_at: Moment,
    watch_at: Moment,
    sweep_at: Moment,
    told_time: Option<DayMinute>,
    exit: bool,
}

/// A running supervisor.
#[derive(Debug)]
pub struct Running {
    /// For callers.
    pub handle: Handle,
    /// Grows with every turn of the owner; a watchdog is fed only while it does.
    pub turns: Arc<AtomicU64>,
    /// Ends when a shutdown is complete.
    pub task: JoinHandle<()>,
}

impl Supervisor {
    /// A supervisor that will first deal with what was `found` on the host, and knows the `devices` as they were read
    /// before the clock was started.
    #[must_use]
    pub fn new(
        settings: Settings,
        specs: &BTreeMap<ModelName, Arc<ModelSpec>>,
        ports: Ports,
        clock: Clock,
        found: Vec<Found>,
        devices: GpuSnapshot,
    ) -> (Self, Handle) {
        let (ask, asks) = mpsc::unbounded_channel();
        let turnstiles = Turnstiles::new(ask.clone());
        let (event_tx, events) = mpsc::unbounded_channel();
        let state = State::new(settings, specs);
        let (status, watch) = watch::channel(Arc::new(state.status(clock.now())));
        let next = Arc::new(AtomicU64::new(1));
        let express = turnstiles.express();
        let handle = Handle { asks: ask, status: watch, next, clock, job: None, express };
        // Nothing can have closed the channel yet.
        let usage = BTreeMap::new();
        let first =
            Observation { taken: Moment::START, unix_s: unix_s(), devices: Ok(devices), usage };
        // First, because what was found is judged by the devices that there are.
        let _ = event_tx.send(Event::Observed(first));
        let _ = event_tx.send(Event::Found(found));
        let supervisor = Self {
            state,
            executor: Executor::new(ports, event_tx, clock),
            clock,
            asks,
            events,
            pending: BTreeMap::new(),
            told: Vec::new(),
            turnstiles,
            stir_at: None,
            witness: Arc::new(Blind),
            stories: Stories::default(),
            status,
            turns: Arc::new(AtomicU64::new(0)),
            observe_at: Moment::START,
            watch_at: Moment::START,
            sweep_at: clock.now() + SWEEP_INTERVAL,
            told_time: None,
            exit: false,
        };
        (supervisor, handle)
    }

    /// Begins with what an earlier daemon knew.
    pub fn remember(&mut self, recalled: Recalled) {
        self.state.remember(recalled);
    }

    /// Tells a witness what the journal is told.
    pub fn witnessed_by(&mut self, witness: Arc<dyn Witness>) {
        self.witness = witness;
    }

    /// Starts the task.
    #[must_use]
    pub fn spawn(self, handle: Handle) -> Running {
        self.spawn_on(handle, &tokio::runtime::Handle::current())
    }

    /// Starts the task on another runtime than its adapters', which run where [`Self::new`] was called. Where those who ask for
    /// leases run on one thread, a lease costs no change of threads there.
    #[must_use]
    pub fn spawn_on(self, handle: Handle, runtime: &tokio::runtime::Handle) -> Running {
        let turns = self.turns.clone();
        Running { handle, turns, task: runtime.spawn(self.run()) }
    }

    async fn run(mut self) {
        while !self.exit {
            self.turn_inputs().await;
            self.look_if_due();
            self.open();
            let picture = Arc::new(self.picture());
            self.status.send_if_modified(|old| {
                let new = **old != *picture;
                *old = picture;
                new
            });
            // Whoever is told that it is done looks next, and must not see how it was before.
            for (answer, result) in self.told.drain(..) {
                let _ = answer.send(result);
            }
            self.turns.fetch_add(1, Ordering::Relaxed);
        }
        self.executor.close().await;
        // Whoever still waits learns it from the closed channel.
    }

    fn picture(&self) -> Status {
        let mut picture = self.state.status(self.clock.now());
        self.turnstiles.show(&mut picture.models);
        picture
    }

    /// Waits for something to do and does it, with whatever else has come in by then.
    async fn turn_inputs(&mut self) {
        let latest = self.clock.now() + TURN_INTERVAL;
        let look = self.observe_at.min(self.watch_at).min(self.sweep_at);
        let due = self.state.next_deadline().unwrap_or(latest).min(latest).min(look);
        let input = loop {
            let due = self.stir_at.map_or(due, |stir| stir.min(due));
            tokio::select! {
                biased;
                Some(event) = self.events.recv() => break Input::Event(event),
                Some(ask) = self.asks.recv() => {
                    if !matches!(ask, Ask::Stir) {
                        break Input::Ask(ask);
                    }
                    self.stirred();
                }
                () = tokio::time::sleep_until(self.clock.instant(due)) => {
                    break Input::Event(Event::Tick);
                }
            }
        };
        self.shut();
        match input {
            Input::Event(event) => self.apply(event),
            Input::Ask(ask) => self.take(ask),
        }
        for _ in 0..BATCH {
            if let Ok(event) = self.events.try_recv() {
                self.apply(event);
            } else if let Ok(ask) = self.asks.try_recv() {
                self.take(ask);
            } else {
                break;
            }
        }
    }

    fn stirred(&mut self) {
        self.stir_at.get_or_insert(self.clock.now() + STIR_MAX);
    }

    /// The core decides while nobody passes, and knows who has.
    fn shut(&mut self) {
        self.stir_at = None;
        let passed = self.turnstiles.shut();
        if !passed.is_empty() {
            self.apply(Event::Used(passed));
        }
    }

    fn open(&mut self) {
        let state = &self.state;
        self.turnstiles.forget(|id| state.live().any(|live| live.id == id));
        self.turnstiles.open(state.express());
    }

    fn take(&mut self, ask: Ask) {
        match ask {
            Ask::Acquire { model, wait, request, waiter, answer } => {
                self.pending.insert(waiter, Pending::Lease(answer, request));
                self.apply(Event::Acquire { waiter, model, wait });
            }
            Ask::Cancel { waiter } => {
                self.pending.remove(&waiter);
                self.apply(Event::Cancel { waiter });
            }
            Ask::Release { .. } => {} // It was told when the turn began.
            Ask::Stir => self.stirred(),
            Ask::Operate { waiter, model, verb, job, answer } => {
                self.pending.insert(waiter, Pending::Operator(answer, job));
                self.apply(match verb {
                    Verb::Load(wish) => Event::Load { waiter, model, wish },
                    Verb::Measure => Event::Measure { waiter, model },
                    Verb::Unload(haste) => Event::Unload { waiter, model, haste },
                    Verb::Pin(pinned) => Event::Pin { waiter, model, pinned },
                    Verb::Sleep => Event::Sleep { waiter, model },
                    Verb::Wake => Event::Wake { waiter, model },
                });
            }
            Ask::Preview { model, wish, answer } => {
                let _ = answer.send(self.state.preview(self.clock.now(), &model, &wish));
            }
            Ask::Reach { model, answer } => {
                let _ = answer.send(self.state.reach(&model));
            }
            Ask::Configure(new, answer) => {
                self.apply(Event::Configure(new));
                self.told.push((answer, Ok(())));
            }
            Ask::Trouble { code, message } => self.apply(Event::Trouble { code, message }),
            Ask::Shutdown { keep } => self.apply(Event::Shutdown { keep }),
        }
    }

    fn apply(&mut self, event: Event) {
        if let Event::Swept { list, .. } = &event {
            self.witness.looked(Look::Containers, list.is_ok());
        } else if let Event::Observed(seen) = &event {
            self.witness.looked(Look::Devices, seen.devices.is_ok());
        }
        let effects = self.state.handle(self.clock.now(), event);
        for effect in effects {
            self.dispatch(effect);
        }
    }

    fn dispatch(&mut self, effect: Effect) {
        match effect {
            Effect::Provide { instance, spec } => self.executor.provide(instance, spec),
            Effect::Launch(order) => self.executor.launch(order),
            Effect::AwaitReady { instance, spec, launched } => {
                self.executor.await_ready(instance, spec, launched);
            }
            Effect::Sleep { instance, spec, endpoint, level } => {
                self.executor.sleep(instance, spec, endpoint, level);
            }
            Effect::Wake { instance, spec, endpoint, level } => {
                self.executor.wake(instance, spec, endpoint, level);
            }
            Effect::Canary { instance, spec, endpoint } => {
                self.executor.canary(instance, spec, endpoint);
            }
            Effect::Check { instance, spec, endpoint, token, timeout } => {
                let way = self.turnstiles.way(&instance);
                self.executor.check((instance, way), spec, endpoint, token, timeout);
            }
            Effect::Stop { instance, tail } => self.executor.stop(instance, tail),
            Effect::Reap { container } => self.executor.reap(container),
            Effect::Save(footprints) => self.executor.save(footprints),
            Effect::KeepPins(pins) => self.executor.keep_pins(pins),
            Effect::Observe => self.observe_at = Moment::START,
            Effect::Grant { waiter, instance, endpoint } => {
                // Made first: if nobody takes it, dropping it gives it back.
                let lease = self.turnstiles.admit(&instance, &endpoint);
                if let Some(Pending::Lease(answer, _)) = self.pending.remove(&waiter) {
                    let _ = answer.send(Ok(lease));
                }
            }
            Effect::Deny { waiter, denied } => match self.pending.remove(&waiter) {
                Some(Pending::Lease(answer, _)) => drop(answer.send(Err(denied))),
                Some(Pending::Operator(answer, _)) => self.told.push((answer, Err(denied))),
                None => {}
            },
            Effect::Done { waiter } => {
                if let Some(Pending::Operator(answer, _)) = self.pending.remove(&waiter) {
                    self.told.push((answer, Ok(())));
                }
            }
            Effect::Notice(notice) => {
                let (state, pending) = (&self.state, &self.pending);
                let cause = self.stories.of(&notice, |model| {
                    let of = |waiter: Option<WaiterId>| waiter.and_then(|w| pending.get(&w));
                    let request = match of(state.first_request(model)) {
                        Some(Pending::Lease(_, request)) => request.clone(),
                        Some(Pending::Operator(..)) | None => None,
                    };
                    let job = match of(state.first_operator(model)) {
                        Some(Pending::Operator(_, job)) => *job,
                        Some(Pending::Lease(..)) | None => None,
                    };
                    Cause { request, job }
                });
                log::log(&notice, &cause);
                self.witness.see(self.clock.now(), &notice, cause.request.as_deref());
            }
            Effect::Exit => self.exit = true,
        }
    }

    /// Once a minute, where it matters.
    fn tell_local_time(&mut self) {
        if self.state.asks_the_hour()
            && let Some(minute) = local_time().filter(|m| self.told_time != Some(*m))
        {
            self.told_time = Some(minute);
            self.apply(Event::LocalTime(minute));
        }
    }

    fn look_if_due(&mut self) {
        let now = self.clock.now();
        if self.watch_at <= now {
            let watched = self.state.live().filter(|live| live.watched);
            self.executor.watch(watched.map(|live| (live.id, live.launched)));
            self.watch_at = now + WATCH_INTERVAL;
        }
        if self.sweep_at <= now {
            self.executor.sweep();
            self.sweep_at = now + SWEEP_INTERVAL;
        }
        if self.observe_at > now {
            return;
        }
        let subjects = self.state.live().map(|live| Subject {
            id: live.id.clone(),
            launched: live.launched.clone(),
            gpus: live.gpus.to_vec(),
            watched: live.watched,
        });
        let begun = self.executor.observe(subjects.collect());
        self.tell_local_time();
        // A reading that was begun before the event that asked for one does not count.
        self.observe_at = now + if begun { OBSERVE_INTERVAL } else { OBSERVE_RETRY };
    }
}
