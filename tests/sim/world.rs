//! The world around the core: its clock, its agenda, and the daemon's lives.
//!
//! What happens is an entry of the agenda; the next one is taken, the clock is set, and whoever it concerns acts. The core
//! is woken when it asked to be, as its task would wake it, and is told of facts when a daemon would learn of them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use hostler::supervisor::effect::{Effect, Notice, StopReason};
use hostler::supervisor::event::{Event, Observation, Passed};
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
    Stirred,
    /// A look ends: all is here, or is not to be had.
    Looked(InstanceId, Option<FaultCode>),
    Pulling(InstanceId),
    PullEnds(InstanceId, FaultCode),
    Created(InstanceId),
    EngineReady(InstanceId),
    EngineDies(InstanceId),
    Probe(InstanceId),
    /// By which of the daemons, and whether it never answered.
    Checked(u64, InstanceId, bool),
    StopEnds(InstanceId),
    Reaped(InstanceId),
    FallsAsleep(InstanceId),
    /// Until it keeps so much.
    GivesBack(InstanceId, u64),
    Wakes(InstanceId),
    Sings(InstanceId),
    /// By which of the daemons.
    Observed(u64, Box<(Vec<InstanceId>, Observation, Shown)>),
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
    pub sleeps: u64,
    pub wakes: u64,
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
        self.sleeps += other.sleeps;
        self.wakes += other.wakes;
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
    /// For whom podman looks, and of whom all was seen to be here since they were started last.
    pub(crate) looks: BTreeSet<InstanceId>,
    pub(crate) seen: BTreeSet<ModelName>,
    pub(crate) devices: Vec<Device>,
    /// How often a model's image was replaced.
    pub(crate) images: BTreeMap<ModelName, u32>,
    pub(crate) leases: BTreeMap<u64, InstanceId>,
    pub(crate) lease_count: u64,
    pub(crate) passed: BTreeMap<InstanceId, Passed>,
    pub(crate) waiters: u64,
    pub(crate) observing: bool,
    pub(crate) observe_again: bool,
    pub(crate) observe_at: Moment,
    pub(crate) shutting_down: bool,
    /// When it began, and whether containers stay.
    pub(crate) shutdown: (Moment, bool),
    pub(crate) exited: bool,
    /// When everything stood still last.
    pub(crate) stalled: Option<Moment>,
    /// Since when nothing has been in the way of whom.
    pub(crate) quiet: Option<(Moment, ModelName)>,
    /// Nobody comes any more.
    pub(crate) settling: bool,
    /// The state file, and what is to be written to it.
    pub(crate) saved: Vec<u8>,
    pub(crate) unsaved: Vec<u8>,
    /// The journal, of which the core knows pins.
    pub(crate) pins: BTreeMap<ModelName, bool>,
    agenda: BTreeMap<(Moment, u64), Happening>,
    entries: u64,
    pub(crate) mutant: Option<Mutant>,
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
            looks: BTreeSet::new(),
            seen: BTreeSet::new(),
            devices: case.totals.iter().map(|t| Device::new(*t, case.resident)).collect(),
            images: BTreeMap::new(),
            leases: BTreeMap::new(),
            lease_count: 0,
            passed: BTreeMap::new(),
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
            pins: BTreeMap::new(),
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
        // No two things happen at the very same time.
        self.now = next.max(self.now + Duration::from_nanos(100));
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
            Happening::ClientLeaves(waiter) => self.gives_up(waiter),
            Happening::LeaseEnds(number) => self.lease_ends(number),
            Happening::Stirred => self.tell_passed(),
            Happening::Looked(id, fails) => self.looked(&id, fails),
            Happening::Pulling(id) => self.pulling(&id),
            Happening::PullEnds(id, code) => self.launch_fails(&id, code),
            Happening::Created(id) => self.created(&id),
            Happening::EngineReady(id) => self.engine_ready(&id),
            Happening::EngineDies(id) => self.engine_dies(&id),
            Happening::Probe(id) => self.probe(&id),
            // A daemon that is gone hears nothing.
            Happening::Checked(life, ..) if life != self.stats.daemons || self.core.is_none() => {
                Ok(())
            }
            Happening::Checked(_, id, hung) => self.checked(&id, hung),
            Happening::StopEnds(id) => self.stop_ends(&id),
            Happening::Reaped(id) => {
                self.reaped(&id);
                Ok(())
            }
            Happening::FallsAsleep(id) => self.falls_asleep(&id),
            Happening::GivesBack(id, keeps) => {
                self.gives_back(&id, keeps);
                Ok(())
            }
            Happening::Wakes(id) => self.wakes(&id),
            Happening::Sings(id) => self.sings(&id),
            // Of a daemon that is gone.
            Happening::Observed(life, _) if life != self.stats.daemons || !self.observing => Ok(()),
            Happening::Observed(_, told) => self.observed(*told),
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
        if self.strikes(Kind::Desk) {
            self.desk()?;
        }
        if self.strikes(Kind::Configured) {
            self.configured()?;
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

    pub(crate) fn tell(&mut self, event: Event) -> Step {
        self.tell_passed()?;
        self.turn(event)
    }

    pub(crate) fn turn(&mut self, event: Event) -> Step {
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

    fn obey(&mut self, effect: Effect) -> Step {
        match effect {
            Effect::Provide { instance, .. } => self.provide(&instance),
            Effect::Launch(order) => self.launch(order),
            Effect::AwaitReady { instance, .. } => {
                self.await_ready(&instance);
                Ok(())
            }
            Effect::Stop { instance, .. } => self.stop(&instance),
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
            Effect::Check { instance, timeout, .. } => {
                self.check_up(&instance, timeout);
                Ok(())
            }
            Effect::Sleep { instance, level, .. } => self.sleep(&instance, level),
            Effect::Wake { instance, .. } => self.wake(&instance),
            Effect::Canary { instance, .. } => {
                self.canary(&instance);
                Ok(())
            }
            Effect::Grant { instance, .. } => self.grant(&instance),
            Effect::Deny { .. } => {
                self.stats.denials += 1;
                Ok(())
            }
            Effect::Notice(
                Notice::Stopping { instance, reason: StopReason::Evicted }
                | Notice::FallingAsleep { instance, reason: StopReason::Evicted, .. },
            ) => {
                self.stats.evictions += 1;
                self.check_eviction(&instance)
            }
            Effect::Notice(Notice::Asleep { instance, residual, .. }) => {
                self.asleep(&instance, residual)
            }
            Effect::Notice(Notice::Ready { instance, .. } | Notice::Woken { instance, .. }) => {
                self.woken(&instance);
                Ok(())
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
            Effect::KeepPins(pins) => {
                self.pins = pins;
                Ok(())
            }
            Effect::Done { .. } | Effect::Notice(_) => Ok(()),
        }
    }

    pub(crate) fn grant(&mut self, id: &InstanceId) -> Step {
        let Some(container) = self.containers.get_mut(id) else {
            return Rule::LeaseOnReady.broken(format!("a lease on {id}, which does not exist"));
        };
        // A death that the core has not been told of yet is nobody's fault.
        let life = container.life;
        let awake = !container.stopping && !container.sleep.ordered;
        let serves = matches!(life, Life::Ready | Life::Dead) && awake;
        container.leases += 1;
        self.granted(id);
        Rule::LeaseOnReady.check(serves, || format!("a lease on {id}, which is {life:?}"))
    }
}
