//! The invariants, each stated once: its name, why it must hold, and where it is looked for.
//!
//! Here are those that need the truth of the world; those that a client or an operator could observe are in
//! `reference`. `mutants` shows of each that a core which breaks it is caught.

use std::fmt;
use std::time::Duration;

use hostler::supervisor::ports::LaunchOrder;
use hostler::types::{InstanceId, Moment, OnFull, Phase};

use crate::case::gpu;
use crate::engines::Life;
use crate::world::World;

/// How long a quiet host may take to begin what somebody waits for: a reading may be under way that was begun before it was
/// quiet, and only the next one shows that. Each takes 8 s at most, and is begun 2.5 s after the last.
const PROGRESS_MAX: Duration = Duration::from_secs(19);

/// What must hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rule {
    /// Promises to all that exists, what dead processes left, foreign use and headroom fit each device at each start:
    /// or an engine that takes what it was promised runs out of memory.
    Capacity,
    /// A model has one container at most: two would take the memory twice, and requests would see two caches.
    OneContainer,
    /// However many wait for a cold model, it is created once, and again only after that one's end: a thousand requests
    /// must not be a thousand loads.
    OneCreate,
    /// A lease is given only on an engine between its readiness and the order to stop it: elsewhere the request fails.
    LeaseOnReady,
    /// Nothing that serves is evicted, idled out or unloaded, and a shutdown cuts off only after its time: a client must
    /// not lose its stream for somebody else's.
    NoInFlightStop,
    /// Whoever asked is answered exactly once, and nobody else is: a lost answer hangs a client, a second one leaks a lease.
    AnsweredOnce,
    /// No request waits longer than `max_wait`: clients give up without knowing why.
    AnsweredInTime,
    /// A refusal names a cause that exists: people act on it.
    HonestRefusal,
    /// Nothing is stopped while it is being created: podman would not find it, and it would come after all.
    StopAfterCreate,
    /// A model is evicted only for one that waits, wants its device, may evict, and has its weights and images here: or it leaves in vain.
    EvictedForOne,
    /// Nobody is evicted for a less important model.
    PriorityKept,
    /// Nobody is evicted for an equally important one before `min_residency` is over: or two models evict each other for ever.
    ResidencyKept,
    /// A pinned model is never evicted or idled out.
    PinKept,
    /// A model is idled out only after its time without use.
    IdleKept,
    /// While one waits whose model would fit on an otherwise idle host, only so many others are started before it.
    NoStarvation,
    /// Whoever waits for the place of others that are always busy gets it in bounded time, though nobody is cut off for it.
    TurnComes,
    /// On a host where nothing happens and nothing is in the way, what somebody waits for begins.
    Progress,
    /// What the core says is due has been done when it has looked at the time.
    DeadlinesKept,
    /// A shutdown starts nothing, ends in bounded time, and leaves nothing unless it was told to.
    CleanShutdown,
    /// Nobody is put to sleep while it serves, or while it sleeps, wakes or stops already: whoever was sent to it would hang.
    SleepsIdle,
    /// The weights of all that sleep at level 1 fit into the host's budget until their processes have ended: or the kernel
    /// kills whom it likes.
    HostRam,
    /// Whoever is woken has room for all that it had before it slept: or it runs out of memory, or others do.
    WakeFits,
    /// Nobody is served by one that woke and does not answer as after its load: it would be served gibberish.
    SameAfterWake,
    /// A reload leaves alone what did not change: its engine, and the requests on it.
    ReloadKept,
    /// What a reload changed or removed is, in the end, as it is configured.
    ReloadDone,
    /// A model that is always busy is not served for ever by a container of an older configuration: nobody would know why not.
    ChangeComes,
    /// An operator is told that it is done when it is.
    HonestAnswer,
    /// "Unload now" does not wait for requests.
    NowMeansNow,
    /// An engine that serves, or drains, is asked whether it is well as often as its configuration says.
    HealthAsked,
    /// One that failed so many checks in a row is stopped at once.
    SickGo,
    /// A model that failed is not tried again before the time that was said, unless an operator asks.
    BreakerKept,
    /// Nobody is made to leave a device on which a vLLM loads: it takes what comes back there for its own, or fails of it.
    LoadsInPeace,
    /// A status never says what cannot be: requests on an engine that does not serve, waiting although ready.
    HonestStatus,
}

/// A rule that was broken, and how.
#[derive(Clone, Debug)]
pub struct Broken {
    pub rule: Rule,
    pub what: String,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.rule, self.what)
    }
}

/// The outcome of a step.
pub type Step = Result<(), Broken>;

impl Rule {
    /// Nothing to say if `holds`.
    pub fn check(self, holds: bool, what: impl FnOnce() -> String) -> Step {
        if holds { Ok(()) } else { self.broken(what()) }
    }

    pub fn broken(self, what: String) -> Step {
        Err(Broken { rule: self, what })
    }
}

impl World {
    /// After every event; `told`: something may have changed that a status shows.
    pub(crate) fn check(&mut self, told: bool) -> Step {
        let Some(core) = &self.core else { return Ok(()) };
        if let Some(due) = core.next_deadline() {
            let what = || format!("due at {due:?}, still pending");
            Rule::DeadlinesKept.check(due > self.now || self.exited, what)?;
        }
        self.reference.check(self.now)?;
        self.check_progress()?;
        if !told {
            return Ok(());
        }
        let Some(core) = &self.core else { return Ok(()) };
        let status = core.status(self.now);
        for model in &status.models {
            let serves = matches!(model.phase, Phase::Ready | Phase::Draining | Phase::Stopping);
            let what = || format!("{} serves while {}", model.name, model.phase);
            Rule::HonestStatus.check(model.in_flight == 0 || serves, what)?;
            let waits = model.queued > 0 && model.phase == Phase::Ready && !status.shutting_down;
            let what = || format!("{} lets {} wait although ready", model.name, model.queued);
            Rule::HonestStatus.check(!waits, what)?;
        }
        Ok(())
    }

    /// At each start, on each of its devices.
    pub(crate) fn check_room(&self, order: &LaunchOrder) -> Step {
        for id in &order.placement.gpus {
            let at = self.index(id);
            let device = &self.devices[at];
            let (ours, rest) = self.spoken_for(at);
            let sum = ours + rest + order.placement.need.bytes.0;
            Rule::Capacity.check(sum <= device.total, || {
                let need = order.placement.need.bytes;
                format!(
                    "{} takes {need} of {id}: {ours} promised, {rest} in use besides ({} foreign), of {}",
                    order.instance, device.told_foreign, device.total
                )
            })?;
        }
        let devices = order.placement.gpus.len();
        let Some(spec) = self.case.specs.get(&order.instance.model) else {
            return Rule::ReloadDone.broken(format!("{} is configured no more", order.instance));
        };
        let asked = devices == spec.gpu_count.max(1) as usize;
        let what = || format!("{} gets {devices} devices", order.instance);
        Rule::Capacity.check(asked, what)
    }

    /// What is promised on a device; and what is not free there besides: of the dead, foreign, headroom.
    pub(crate) fn spoken_for(&self, at: usize) -> (u64, u64) {
        let device = &self.devices[at];
        let lag = if self.case.numbers { device.lagging_ours(self.now) } else { 0 };
        let ours = self.on(at).map(crate::engines::Container::claim).sum();
        (ours, lag + device.told_foreign + self.case.headroom())
    }

    /// Somebody waits who may evict this one.
    pub(crate) fn check_eviction(&self, id: &InstanceId) -> Step {
        let Some(victim) = self.containers.get(id) else {
            return Rule::EvictedForOne.broken(format!("{id} does not exist"));
        };
        let Some(spec) = self.case.specs.get(&id.model) else {
            return Rule::EvictedForOne.broken(format!("{id} is of no model any more"));
        };
        let pinned = self.reference.pinned(&id.model);
        Rule::PinKept.check(!pinned, || format!("{id} is pinned and evicted"))?;
        let shares = |n: &usize| victim.gpus.contains(n);
        let asks = self.case.specs.values().filter(|s| {
            (s.on_full == OnFull::Evict || self.reference.may_evict(&s.name))
                && self.reference.wanted(&s.name)
                && (self.seen.contains(&s.name)
                    || self.containers.iter().any(|(id, _)| id.model == s.name))
                && !self
                    .containers
                    .iter()
                    .any(|(id, c)| id.model == s.name && c.is_more_than_asleep())
                && self.case.allowed(s).iter().any(shares)
        });
        let wished = |s: &hostler::types::ModelSpec| self.reference.evicts_any(&s.name);
        let best = asks.map(|s| if wished(s) { i8::MAX } else { s.priority }).max();
        let Some(best) = best else {
            return Rule::EvictedForOne
                .broken(format!("{id} is evicted for nobody who may, and can"));
        };
        let what = || format!("{id} of priority {} goes for {best}", spec.priority);
        Rule::PriorityKept.check(best >= spec.priority, what)?;
        let least = self.case.settings.rules.min_residency;
        let asleep = victim.sleep.awake.is_some();
        let settled = asleep || victim.ready.is_some_and(|at| self.now.since(at) >= least);
        Rule::ResidencyKept.check(settled || best > spec.priority, || format!("{id} is too young"))
    }

    /// Everybody who waits although nothing has been in the way for long enough.
    fn check_progress(&mut self) -> Step {
        let anybody = self.reference.anybody();
        let mut models = self.case.specs.keys().filter(|_| anybody);
        let clear = models.find(|m| self.nothing_in_the_way(m)).cloned();
        if clear.is_none() || self.quiet.as_ref().map(|q| &q.1) != clear.as_ref() {
            self.quiet = clear.map(|model| (self.now, model));
        }
        let Some((since, model)) = &self.quiet else { return Ok(()) };
        let waited = self.now.since(*since);
        let what = || format!("{model} could have been started for {waited:?}");
        Rule::Progress.check(waited <= PROGRESS_MAX, what)
    }

    fn nothing_in_the_way(&self, name: &hostler::types::ModelName) -> bool {
        let spec = &self.case.specs[name];
        let alone = || {
            let others = self.case.specs.keys().filter(|m| *m != name);
            others.into_iter().all(|m| !self.reference.wanted(m))
        };
        let least = self.case.settings.rules.min_residency;
        let may_go = |(id, c): (&InstanceId, &crate::engines::Container)| {
            let Some(other) = self.case.specs.get(&id.model) else { return false };
            let older = c.ready.is_some_and(|at| self.now.since(at) >= least);
            let asleep = c.sleep.awake.is_some();
            let age = other.priority == spec.priority && (older || asleep);
            c.rests()
                && c.leases == 0
                && c.idle_to_the_core()
                && !self.reference.pinned(&id.model)
                && (other.priority < spec.priority || age)
        };
        self.reference.waits(name)
            && !self.shutting_down
            && !self.reference.failing(name, self.now)
            && (spec.on_full == OnFull::Evict || self.containers.is_empty())
            && self.case.fits(spec)
            && alone()
            && self.looks.is_empty()
            && self.containers.iter().all(may_go)
            && self.devices.iter().all(|d| d.is_calm(self.now))
    }

    /// Living containers on a device.
    pub(crate) fn on(&self, at: usize) -> impl Iterator<Item = &crate::engines::Container> {
        self.containers.values().filter(move |c| c.gpus.contains(&at))
    }

    pub(crate) fn index(&self, id: &hostler::types::GpuId) -> usize {
        (0..self.devices.len()).find(|n| gpu(*n) == *id).unwrap()
    }

    /// What a shutdown has left when it is over.
    pub(crate) fn check_exit(&self, keep: bool, began: Moment) -> Step {
        let grace = self.case.settings.drain_timeout + Duration::from_secs(50);
        let took = self.now.since(began);
        let stalled = self.stalled.is_some_and(|at| at >= began);
        let what = || format!("the shutdown took {took:?}");
        Rule::CleanShutdown.check(took <= grace || stalled, what)?;
        let late = took >= self.case.settings.drain_timeout;
        let there = self.containers.iter().filter(|(_, c)| c.life != Life::Pulling);
        let left: Vec<&InstanceId> = there.map(|(id, _)| id).collect();
        let what = || format!("it left {left:?}");
        Rule::CleanShutdown.check(keep || late || left.is_empty() || self.damaged(), what)?;
        let waits = self.reference.anybody();
        Rule::AnsweredOnce.check(!waits, || "it ended, and requests wait".into())
    }

    fn damaged(&self) -> bool {
        self.containers.values().any(|c| c.damaged)
    }
}
