//! The world around the core: its clock, its agenda, and the daemon's lives.
//!
//! What happens is an entry of the agenda; the next one is taken, the clock is set, and whoever it concerns acts. The core
//! is woken when it asked to be, as its task would wake it, and is told of facts when a daemon would learn of them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use hostler::plan::Book;
use hostler::supervisor::effect::{Effect, Notice, StopReason};
use hostler::supervisor::event::{Event, Observation};
use hostler::types::{FaultCode, InstanceId, ModelName, Moment, WaiterId};

use crate::case::{Case, model};
use crate::devices::{Device, Shown};
use crate::engines::{Container, Life};
use crate::faults::Kind;
use crate::history::History;
use crate::invariants::{Rule, Step};
use crate::mutants::{Core, Mutant};
use crate::reference::Reference;
use crate::rng::Rng;

/// What is on the agenda.
#[derive(Debug)]
pub enum Happening {
    Client,
    ClientLeaves(WaiterId),
    LeaseEnds(u64),
    Pulling(InstanceId),
    Pulled(InstanceId),
    PullFails(InstanceId),
    Created(InstanceId),
    EngineReady(InstanceId),
    EngineDies(InstanceId),
    Probe(InstanceId),
    StopEnds(InstanceId),
    Reaped(InstanceId),
    Observed(Box<(Vec<InstanceId>, Observation, Shown)>),
    DeviceBack(usize),
    Saved,
    /// Once a second.
    Weather,
    Boot,
}

/// What happened, in numbers.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stats {
    pub grants: u64,
    pub denials: u64,
    pub loads: u64,
    pub evictions: u64,
    /// Lives of the daemon.
    pub daemons: u64,
    /// The most that one was passed over.
    pub overtaken: u32,
}

impl Stats {
    pub fn add(&mut self, other: &Self) {
        self.grants += other.grants;
        self.denials += other.denials;
        self.loads += other.loads;
        self.evictions += other.evictions;
        self.daemons += other.daemons;
        self.overtaken = self.overtaken.max(other.overtaken);
    }
}

pub struct World {
    pub(crate) rng: Rng,
    pub(crate) now: Moment,
    pub(crate) case: Case,
    pub(crate) core: Option<Core>,
    pub(crate) reference: Reference,
    pub(crate) containers: BTreeMap<InstanceId, Container>,
    pub(crate) devices: Vec<Device>,
    /// How often a model's image was replaced.
    pub(crate) images: BTreeMap<ModelName, u32>,
    pub(crate) leases: BTreeMap<u64, InstanceId>,
    pub(crate) lease_count: u64,
    pub(crate) waiters: u64,
    pub(crate) observing: bool,
    pub(crate) observe_again: bool,
    pub(crate) observe_at: Moment,
    pub(crate) shutting_down: bool,
    /// When it began, and whether containers stay.
    shutdown: (Moment, bool),
    pub(crate) exited: bool,
    /// When everything stood still last.
    pub(crate) stalled: Option<Moment>,
    /// Since when nothing has been in the way of whom.
    pub(crate) quiet: Option<(Moment, ModelName)>,
    /// Nobody comes any more.
    settling: bool,
    /// The state file, and what is to be written to it.
    saved: Vec<u8>,
    unsaved: Vec<u8>,
    agenda: BTreeMap<(Moment, u64), Happening>,
    entries: u64,
    mutant: Option<Mutant>,
    pub stats: Stats,
    pub history: History,
}

impl World {
    pub fn new(seed: u64, record: bool, mutant: Option<Mutant>) -> Self {
        let mut rng = Rng::new(seed);
        let case = Case::draw(seed, &mut rng);
        let mut world = Self {
            rng,
            now: Moment::from_secs(1),
            core: None,
            reference: Reference::new(&case),
            containers: BTreeMap::new(),
            devices: case.totals.iter().map(|t| Device::new(*t)).collect(),
            images: BTreeMap::new(),
            leases: BTreeMap::new(),
            lease_count: 0,
            waiters: 0,
            observing: false,
            observe_again: false,
            observe_at: Moment::START,
            shutting_down: false,
            shutdown: (Moment::START, false),
            exited: false,
            stalled: None,
            quiet: None,
            settling: false,
            saved: Vec::new(),
            unsaved: Vec::new(),
            agenda: BTreeMap::new(),
            entries: 0,
            mutant,
            stats: Stats::default(),
            history: History::new(record),
            case,
        };
        world
            .history
            .note(world.now, || format!("{:?} {:?}", world.case.totals, world.case.weather));
        world.later(Duration::ZERO, Happening::Boot);
        world.later(Duration::ZERO, Happening::Client);
        world.later(Duration::from_secs(1), Happening::Weather);
        world
    }

    pub(crate) fn strikes(&mut self, kind: Kind) -> bool {
        self.case.weather.strikes(kind, &mut self.rng)
    }

    pub(crate) fn later(&mut self, after: Duration, what: Happening) {
        self.entries += 1;
        self.agenda.insert((self.now + after, self.entries), what);
    }

    /// The next thing happens.
    pub fn step(&mut self) -> Step {
        let planned = self.agenda.first_key_value().map(|(key, _)| key.0);
        let look = (self.core.is_some() && !self.observing).then_some(self.observe_at);
        let due = self.core.as_ref().and_then(Core::next_deadline);
        let Some(next) = [planned, look, due].into_iter().flatten().min() else { return Ok(()) };
        self.now = self.now.max(next);
        if due == Some(next) {
            return self.tell(Event::Tick);
        }
        if look == Some(next) {
            return self.observe();
        }
        match self.agenda.pop_first() {
            Some((_, what)) => self.happen(what),
            None => Ok(()),
        }
    }

    fn happen(&mut self, what: Happening) -> Step {
        match what {
            Happening::Client if self.settling => Ok(()),
            Happening::Client => {
                let gap = Duration::from_millis(self.rng.below(self.case.gap_ms));
                self.later(gap, Happening::Client);
                self.client()
            }
            Happening::ClientLeaves(waiter) => self.client_leaves(waiter),
            Happening::LeaseEnds(number) => self.lease_ends(number),
            Happening::Pulling(id) => self.pulling(&id),
            Happening::Pulled(id) => self.pulled(&id),
            Happening::PullFails(id) => self.launch_fails(&id, FaultCode::PullFailed),
            Happening::Created(id) => self.created(&id),
            Happening::EngineReady(id) => self.engine_ready(&id),
            Happening::EngineDies(id) => self.engine_dies(&id),
            Happening::Probe(id) => self.probe(&id),
            Happening::StopEnds(id) => self.stop_ends(&id),
            Happening::Reaped(id) => {
                self.reaped(&id);
                Ok(())
            }
            // Of a daemon that is gone.
            Happening::Observed(_) if !self.observing => Ok(()),
            Happening::Observed(told) => self.observed(*told),
            Happening::DeviceBack(at) => {
                self.devices[at].lost = false;
                Ok(())
            }
            Happening::Saved => {
                let fails = self.strikes(Kind::SaveFails);
                if fails {
                    return self.tell(Event::Saved(Err("the disk is full".to_owned())));
                }
                self.saved = std::mem::take(&mut self.unsaved);
                self.tell(Event::Saved(Ok(())))
            }
            Happening::Weather => self.weather(),
            Happening::Boot => self.boot(),
        }
    }

    /// Once a second: what befalls the host as a whole.
    fn weather(&mut self) -> Step {
        self.later(Duration::from_secs(1), Happening::Weather);
        self.device_weather();
        if self.strikes(Kind::ImageChanges) {
            let n = self.rng.below(self.case.specs.len() as u64);
            *self.images.entry(model(n)).or_default() += 1;
        }
        if self.strikes(Kind::Stall) {
            self.now = self.now + Duration::from_millis(self.rng.below(100_000));
            self.stalled = Some(self.now);
            self.quiet = None;
        }
        if self.strikes(Kind::Operator) {
            self.operator()?;
        }
        if self.strikes(Kind::Stale) {
            self.stale()?;
        }
        if self.strikes(Kind::Crash) && self.core.is_some() {
            self.history.note(self.now, || "the daemon is killed".into());
            self.down();
        }
        if self.strikes(Kind::Restart) && self.core.is_some() && !self.shutting_down {
            let keep = self.rng.chance(70);
            return self.shut_down(keep);
        }
        Ok(())
    }

    pub(crate) fn shut_down(&mut self, keep: bool) -> Step {
        self.shutting_down = true;
        self.shutdown = (self.now, keep);
        self.tell(Event::Shutdown { keep })
    }

    /// The daemon is gone, and with it every request; the next one comes up soon.
    fn down(&mut self) {
        self.core = None;
        self.leases.clear();
        (self.observing, self.observe_again, self.quiet) = (false, false, None);
        self.cut_calls();
        let again = Duration::from_millis(self.rng.below(4_000));
        self.later(again, Happening::Boot);
    }

    fn boot(&mut self) -> Step {
        self.stats.daemons += 1;
        self.stats.overtaken = self.stats.overtaken.max(self.reference.overtaken);
        (self.shutting_down, self.exited) = (false, false);
        if self.strikes(Kind::Reconfigured) {
            let n = self.rng.below(self.case.specs.len() as u64);
            if let Some(spec) = self.case.specs.get_mut(&model(n)) {
                Arc::make_mut(spec).args.push("--other".into());
            }
        }
        self.case.settings.seed += 1;
        self.reference = Reference::new(&self.case);
        // A file that is not there, or damaged, costs relearning.
        let book = Book::decode(&self.saved).unwrap_or_default();
        let names = self.case.specs.keys().cloned();
        let images = names.map(|name| (name.clone(), self.image(&name))).collect();
        self.core = Some(Core::new(&self.case, self.mutant, book, images));
        self.observe_at = self.now;
        self.first_reading()?;
        let found = self.list();
        self.tell(Event::Found(found))
    }

    pub(crate) fn tell(&mut self, event: Event) -> Step {
        let Some(core) = &mut self.core else { return Ok(()) };
        self.history.event(self.now, &event);
        self.reference.event(self.now, &event);
        let quiet = matches!(event, Event::Tick | Event::Observed(_));
        let effects = core.handle(self.now, event);
        let told = !quiet || !effects.is_empty();
        for effect in effects {
            self.history.effect(&effect);
            self.reference.effect(self.now, &effect)?;
            self.obey(effect)?;
        }
        if self.exited {
            return self.gone();
        }
        self.check(told)
    }

    /// The daemon has ended in order.
    fn gone(&mut self) -> Step {
        let (began, keep) = self.shutdown;
        self.check_exit(keep, began)?;
        self.down();
        Ok(())
    }

    fn obey(&mut self, effect: Effect) -> Step {
        match effect {
            Effect::Launch(order) => self.launch(order),
            Effect::AwaitReady { instance, .. } => {
                self.await_ready(&instance);
                Ok(())
            }
            Effect::Stop { instance } => self.stop(&instance),
            Effect::Reap { container } => {
                self.reap(&container);
                Ok(())
            }
            Effect::Observe if self.observing => {
                self.observe_again = true;
                Ok(())
            }
            Effect::Observe => {
                self.observe_at = self.now;
                Ok(())
            }
            Effect::Grant { instance, .. } => self.grant(&instance),
            Effect::Deny { .. } => {
                self.stats.denials += 1;
                Ok(())
            }
            Effect::Notice(Notice::Stopping { instance, reason: StopReason::Evicted }) => {
                self.stats.evictions += 1;
                self.check_eviction(&instance)
            }
            Effect::Save(bytes) => {
                self.unsaved = bytes;
                self.later(Duration::from_millis(5), Happening::Saved);
                Ok(())
            }
            Effect::Exit => {
                self.exited = true;
                Ok(())
            }
            Effect::Done { .. } | Effect::Notice(_) => Ok(()),
        }
    }

    fn grant(&mut self, id: &InstanceId) -> Step {
        let Some(container) = self.containers.get_mut(id) else {
            return Rule::LeaseOnReady.broken(format!("a lease on {id}, which does not exist"));
        };
        // A death that the core has not been told of yet is nobody's fault.
        let life = container.life;
        let serves = matches!(life, Life::Ready | Life::Dead) && !container.stopping;
        container.leases += 1;
        self.granted(id);
        Rule::LeaseOnReady.check(serves, || format!("a lease on {id}, which is {life:?}"))
    }

    fn run_for(&mut self, time: Duration) -> Step {
        let end = self.now + time;
        while self.now < end {
            self.step()?;
        }
        Ok(())
    }

    /// Until nothing is under way, at most so long.
    fn rest(&mut self, most: Duration) -> Step {
        let end = self.now + most;
        let moves = |c: &Container| c.life != Life::Ready || c.stopping || c.ready.is_none();
        self.run_for(Duration::from_secs(5))?;
        while self.now < end && (self.reference.anybody() || self.containers.values().any(moves)) {
            self.step()?;
        }
        Ok(())
    }

    /// Faults cease, nobody comes any more, time goes on: everything must come to rest.
    pub fn settle(&mut self) -> Step {
        self.settling = true;
        self.case.weather.clear();
        self.case.observe_ms = 2_500;
        let now = self.now;
        for device in &mut self.devices {
            (device.foreign, device.lost) = (0, false);
            device.lag.retain(|lag| lag.until <= now);
        }
        for number in self.leases.keys().copied().collect::<Vec<_>>() {
            self.lease_ends(number)?;
        }
        // What hangs for longest: a pull, a load's time, a stop, a failure's delay.
        self.rest(Duration::from_secs(200))?;
        // One for each, who must not find it worse than on a new host.
        for n in 0..self.case.specs.len() as u64 {
            self.ask(format!("m{n}"))?;
            self.run_for(Duration::from_secs(4))?;
        }
        self.rest(Duration::from_secs(200))?;
        // A load that evicts nobody, or only the less important, waits for ever unless an operator makes room.
        for _ in 0..10 {
            if self.reference.operators() > 0 {
                self.unload_ready()?;
                self.run_for(Duration::from_secs(50))?;
            }
        }
        let (anybody, operators) = (self.reference.anybody(), self.reference.operators());
        Rule::AnsweredInTime.check(!anybody, || "somebody was never answered".into())?;
        let what = || format!("{operators} operators were never answered");
        Rule::AnsweredOnce.check(operators == 0, what)?;
        self.end()
    }

    fn end(&mut self) -> Step {
        let lives = self.stats.daemons;
        self.shut_down(false)?;
        let began = self.now;
        while self.stats.daemons == lives {
            self.step()?;
            let took = self.now.since(began);
            let late = took > Duration::from_secs(120);
            Rule::CleanShutdown.check(!late, || "the shutdown never ended".into())?;
        }
        self.stats.overtaken = self.stats.overtaken.max(self.reference.overtaken);
        let left: Vec<&InstanceId> = self.containers.keys().collect();
        let cold = left.iter().all(|id| self.reference.pinned(&id.model));
        Rule::CleanShutdown.check(cold, || format!("it left {left:?}"))
    }
}
