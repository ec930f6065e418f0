//! The core, as it is or broken on purpose: each way to break it must be caught by the invariant it is meant for.
//!
//! Starvation has no mutant: no small damage makes the core unfair for long enough. `reference` is shown it directly.

use std::collections::BTreeMap;
use std::sync::Arc;

use hostler::supervisor::effect::{Effect, Notice, StopReason};
use hostler::supervisor::event::Event;
use hostler::supervisor::ports::{Endpoint, LaunchOrder, Launched};
use hostler::supervisor::state::{Recalled, State};
use hostler::types::{
    Bytes, Denied, Generation, Haste, InstanceId, ModelSpec, Moment, SleepLevel, Status, WaiterId,
};

use crate::case::Case;
use crate::invariants::Rule;

mod settings;

/// A way to break the core.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutant {
    /// An answer is lost.
    DropGrant,
    /// An answer is given twice.
    GrantTwice,
    /// An answer is kept back until its engine has been ordered to stop.
    GrantAfterStop,
    /// An answer is given when the engine is not ready yet.
    GrantEarly,
    /// A launch is ordered twice.
    LaunchTwice,
    /// A model gets a second container under another name.
    LaunchBeside,
    /// A model that has become ready is launched again.
    LaunchAgain,
    /// What an earlier daemon left is ignored.
    ForgetFound,
    /// Promises grow on the way.
    Overcommit,
    /// The headroom is forgotten.
    NoHeadroom,
    /// What serves is stopped.
    StopBusy,
    /// What has just been ordered is stopped.
    StopCreating,
    /// Whatever becomes ready is evicted for nobody.
    EvictForNobody,
    /// Nobody looks whether a model's files and image are here.
    Unseen,
    /// Priorities are not looked at.
    NoPriority,
    /// Nor is how long an instance has been ready.
    NoResidency,
    /// Nor pins.
    NoPins,
    /// What is ready is idled out at once.
    IdleEarly,
    /// Nothing is done in time.
    Deaf,
    /// Requests wait longer than they should.
    Patient,
    /// Readings after the first do not arrive.
    Blind,
    /// A launch is ordered, and nobody carries it out.
    DropLaunch,
    /// A shutdown does not stop what runs.
    KeepAlways,
    /// Refusals name whatever comes to mind.
    LieInRefusal,
    /// Requests on what does not serve are counted.
    LieInStatus,
    /// What serves is put to sleep.
    SleepBusy,
    /// An answer is given when the engine is only being woken.
    GrantAsleep,
    /// The host has as much memory as anybody wants.
    NoBudget,
    /// Whoever sleeps is woken as soon as another has taken its place.
    WakeBeside,
    /// Whatever it answers after a wake is right.
    DeafToCanary,
    /// An operator's pin is forgotten.
    ForgetPin,
    /// A reload changes every model.
    ReplaceAll,
    /// No reload changes anything.
    DeafToReload,
    /// Some operators are never told.
    DropDone,
    /// Operators are told that it sleeps before it does.
    DoneEarly,
    /// Nothing is unloaded before its requests are over.
    LazyUnload,
    /// Nobody is asked whether it is well.
    DropCheck,
    /// Everybody is well.
    DeafToSickness,
    /// What failed is tried again before the time that was said.
    Impatient,
    /// Nobody who is busy ever makes way.
    NoTurns,
    /// What operators said about pins is gone with the daemon.
    LosePins,
    /// No engine minds what is given back while it loads.
    ProfilesNothing,
}

/// All of them, with what has to catch each.
pub const ALL: [(Mutant, &[Rule]); 43] = [
    (Mutant::DropGrant, &[Rule::AnsweredInTime]),
    (Mutant::GrantTwice, &[Rule::AnsweredOnce]),
    (Mutant::GrantAfterStop, &[Rule::LeaseOnReady]),
    (Mutant::GrantEarly, &[Rule::LeaseOnReady]),
    (Mutant::LaunchTwice, &[Rule::OneCreate]),
    (Mutant::LaunchBeside, &[Rule::OneCreate]),
    (Mutant::LaunchAgain, &[Rule::OneContainer]),
    (Mutant::ForgetFound, &[Rule::OneCreate]),
    (Mutant::Overcommit, &[Rule::Capacity]),
    (Mutant::NoHeadroom, &[Rule::Capacity]),
    (Mutant::StopBusy, &[Rule::NoInFlightStop]),
    (Mutant::StopCreating, &[Rule::StopAfterCreate]),
    (Mutant::EvictForNobody, &[Rule::EvictedForOne]),
    (Mutant::Unseen, &[Rule::EvictedForOne]),
    (Mutant::NoPriority, &[Rule::PriorityKept]),
    (Mutant::NoResidency, &[Rule::ResidencyKept]),
    (Mutant::NoPins, &[Rule::PinKept]),
    (Mutant::IdleEarly, &[Rule::IdleKept]),
    (Mutant::Deaf, &[Rule::DeadlinesKept]),
    (Mutant::Patient, &[Rule::AnsweredInTime]),
    (Mutant::Blind, &[Rule::Progress]),
    (Mutant::DropLaunch, &[Rule::Progress]),
    (Mutant::KeepAlways, &[Rule::CleanShutdown]),
    (Mutant::LieInRefusal, &[Rule::HonestRefusal]),
    (Mutant::LieInStatus, &[Rule::HonestStatus]),
    (Mutant::SleepBusy, &[Rule::SleepsIdle]),
    (Mutant::GrantAsleep, &[Rule::LeaseOnReady]),
    (Mutant::NoBudget, &[Rule::HostRam]),
    (Mutant::WakeBeside, &[Rule::WakeFits]),
    (Mutant::DeafToCanary, &[Rule::SameAfterWake]),
    (Mutant::ForgetPin, &[Rule::PinKept]),
    (Mutant::ReplaceAll, &[Rule::ReloadKept]),
    (Mutant::DeafToReload, &[Rule::ReloadDone]),
    (Mutant::DropDone, &[Rule::AnsweredOnce]),
    (Mutant::DoneEarly, &[Rule::HonestAnswer]),
    (Mutant::LazyUnload, &[Rule::NowMeansNow]),
    (Mutant::DropCheck, &[Rule::HealthAsked]),
    (Mutant::DeafToSickness, &[Rule::SickGo]),
    (Mutant::Impatient, &[Rule::BreakerKept]),
    (Mutant::NoTurns, &[Rule::TurnComes]),
    (Mutant::NoTurns, &[Rule::ChangeComes]),
    (Mutant::LosePins, &[Rule::PinKept]),
    (Mutant::ProfilesNothing, &[Rule::LoadsInPeace]),
];

/// The production core, with whatever is wrong with it.
pub struct Core {
    state: State,
    /// What the core says of it after each event.
    due: Option<Moment>,
    mutant: Option<Mutant>,
    /// A grant that is kept back.
    kept: Vec<Effect>,
    waiting: BTreeMap<WaiterId, String>,
    readings: u32,
    orders: BTreeMap<InstanceId, LaunchOrder>,
    /// Who sleeps, and what wakes it.
    asleep: BTreeMap<InstanceId, Effect>,
    answers: BTreeMap<InstanceId, String>,
}

impl Core {
    pub fn new(case: &Case, mutant: Option<Mutant>, mut recalled: Recalled) -> Self {
        if mutant == Some(Mutant::LosePins) {
            recalled.pins.clear();
        }
        let mut settings = case.settings.clone();
        let mut specs = case.specs.clone();
        if let Some(mutant) = mutant {
            mutant.settings(&mut settings);
            specs.values_mut().for_each(|spec| mutant.spec(Arc::make_mut(spec)));
        }
        let mut state = State::new(settings, &specs);
        state.remember(recalled);
        let (kept, waiting, orders) = (Vec::new(), BTreeMap::new(), BTreeMap::new());
        let (asleep, answers) = (BTreeMap::new(), BTreeMap::new());
        let due = state.next_deadline();
        Self { state, due, mutant, kept, waiting, readings: 0, orders, asleep, answers }
    }

    pub fn state(&self) -> &State {
        &self.state
    }

    pub fn next_deadline(&self) -> Option<Moment> {
        self.due
    }

    pub fn status(&self, now: Moment) -> Status {
        let mut status = self.state.status(now);
        if self.mutant == Some(Mutant::LieInStatus) {
            status.models.iter_mut().for_each(|m| m.in_flight += 1);
        }
        status
    }

    pub fn handle(&mut self, now: Moment, event: Event) -> Vec<Effect> {
        let out = self.turn(now, event);
        self.due = self.state.next_deadline();
        out
    }

    fn turn(&mut self, now: Moment, event: Event) -> Vec<Effect> {
        let Some(mutant) = self.mutant else { return self.state.handle(now, event) };
        self.remember(&event);
        let event = match (mutant, event) {
            (Mutant::ForgetFound, Event::Found(_)) => Event::Found(vec![]),
            (Mutant::KeepAlways, Event::Shutdown { .. }) => Event::Shutdown { keep: true },
            (Mutant::Deaf, Event::Tick) => return vec![],
            (Mutant::Blind, Event::Observed(_)) if self.readings > 1 => return vec![],
            (Mutant::DeafToCanary, Event::Sung { instance, result: Ok(answer) }) => {
                let first = self.answers.entry(instance.clone()).or_insert(answer).clone();
                Event::Sung { instance, result: Ok(first) }
            }
            (Mutant::ForgetPin, Event::Pin { waiter, pinned: true, .. })
            | (Mutant::DoneEarly, Event::Sleep { waiter, .. }) => {
                return vec![Effect::Done { waiter }];
            }
            (Mutant::LazyUnload, Event::Unload { waiter, model, .. }) => {
                Event::Unload { waiter, model, haste: Haste::Drain }
            }
            (Mutant::DeafToSickness, Event::Checked { instance, .. }) => {
                Event::Checked { instance, result: Ok(()), silent: false }
            }
            (Mutant::DeafToReload, Event::Configure(_)) => return vec![],
            (mutant, Event::Configure(mut new)) => {
                mutant.settings(&mut new.settings);
                new.specs.values_mut().for_each(|spec| mutant.spec(Arc::make_mut(spec)));
                if mutant == Mutant::ReplaceAll {
                    let other = |spec: &mut Arc<ModelSpec>| {
                        Arc::make_mut(spec).args.push("--other".into());
                    };
                    new.specs.values_mut().for_each(other);
                }
                Event::Configure(new)
            }
            (_, event) => event,
        };
        let mut out = self.state.handle(now, event);
        let looks = |e: &Effect| matches!(e, Effect::Provide { .. });
        while let Some(at) = out.iter().position(looks).filter(|_| mutant == Mutant::Unseen) {
            let Effect::Provide { instance, .. } = out.remove(at) else { continue };
            let seen = Event::Provided { instance, image_id: "image0".into() };
            out.extend(self.state.handle(now, seen));
        }
        out.into_iter().flat_map(|effect| self.corrupt(mutant, effect)).collect()
    }

    fn remember(&mut self, event: &Event) {
        if let Event::Acquire { waiter, model, .. } = event {
            self.waiting.insert(*waiter, model.clone());
        }
        if let Event::Cancel { waiter } = event {
            self.waiting.remove(waiter);
        }
        self.readings += u32::from(matches!(event, Event::Observed(_)));
    }

    fn corrupt(&mut self, mutant: Mutant, effect: Effect) -> Vec<Effect> {
        if let Effect::Grant { waiter, .. } | Effect::Deny { waiter, .. } = &effect {
            self.waiting.remove(waiter);
        }
        match (mutant, effect) {
            (Mutant::DropGrant, Effect::Grant { waiter, .. }) if waiter.0 % 8 == 0 => vec![],
            (Mutant::GrantTwice, grant @ Effect::Grant { .. }) => vec![grant.clone(), grant],
            (Mutant::GrantAfterStop, grant @ Effect::Grant { .. }) => {
                self.kept.push(grant);
                vec![]
            }
            (Mutant::GrantAfterStop, Effect::Stop { instance, tail }) => {
                let kept = std::mem::take(&mut self.kept).into_iter();
                [Effect::Stop { instance, tail }].into_iter().chain(kept).collect()
            }
            (Mutant::GrantEarly, Effect::AwaitReady { instance, spec, launched }) => {
                let name = instance.model.as_str();
                let waiter = self.waiting.iter().find(|(_, m)| *m == name).map(|(w, _)| *w);
                let early = waiter.map(|waiter| grant(waiter, &instance, &launched));
                let ready = Effect::AwaitReady { instance, spec, launched };
                [ready].into_iter().chain(early).collect()
            }
            (Mutant::GrantAsleep, Effect::Wake { instance, spec, endpoint, level }) => {
                let name = instance.model.as_str();
                let waiter = self.waiting.iter().find(|(_, m)| *m == name).map(|(w, _)| *w);
                let (id, to) = (instance.clone(), endpoint.clone());
                let early = |waiter| Effect::Grant { waiter, instance: id, endpoint: to };
                let early = waiter.map(early);
                let wake = Effect::Wake { instance, spec, endpoint, level };
                [wake].into_iter().chain(early).collect()
            }
            (Mutant::SleepBusy, Effect::AwaitReady { instance, spec, launched }) => {
                let (id, endpoint) = (instance.clone(), launched.endpoint.clone());
                let level = SleepLevel::Two;
                let sleep = Effect::Sleep { instance: id, spec: spec.clone(), endpoint, level };
                self.asleep.insert(instance.clone(), sleep);
                vec![Effect::AwaitReady { instance, spec, launched }]
            }
            (Mutant::SleepBusy, Effect::Grant { waiter, instance, endpoint }) => {
                let sleep = self.asleep.get(&instance).cloned();
                let grant = Effect::Grant { waiter, instance, endpoint };
                [grant].into_iter().chain(sleep).collect()
            }
            (Mutant::WakeBeside, Effect::Sleep { instance, spec, endpoint, level }) => {
                let (id, to) = (instance.clone(), endpoint.clone());
                let wake = Effect::Wake { instance: id, spec: spec.clone(), endpoint: to, level };
                self.asleep.insert(instance.clone(), wake);
                vec![Effect::Sleep { instance, spec, endpoint, level }]
            }
            (Mutant::WakeBeside, Effect::Notice(asleep @ Notice::Asleep { .. })) => {
                if let Notice::Asleep { instance, .. } = &asleep {
                    self.kept.extend(self.asleep.remove(instance));
                }
                vec![Effect::Notice(asleep)]
            }
            (Mutant::WakeBeside, launch @ Effect::Launch(_)) => {
                [launch].into_iter().chain(std::mem::take(&mut self.kept)).collect()
            }
            (Mutant::LaunchTwice, launch @ Effect::Launch(_)) => vec![launch.clone(), launch],
            (Mutant::LaunchBeside, Effect::Launch(order)) => {
                let mut beside = order.clone();
                beside.instance.generation = Generation(order.instance.generation.0 + 1_000);
                vec![Effect::Launch(order), Effect::Launch(beside)]
            }
            (Mutant::LaunchAgain, Effect::Launch(order)) => {
                self.orders.insert(order.instance.clone(), order.clone());
                vec![Effect::Launch(order)]
            }
            (Mutant::LaunchAgain, Effect::Notice(Notice::Ready { instance, load_ms })) => {
                let mut order = self.orders.get(&instance).cloned();
                if let Some(order) = &mut order {
                    order.instance.generation = Generation(instance.generation.0 + 1_000);
                }
                let ready = Effect::Notice(Notice::Ready { instance, load_ms });
                [ready].into_iter().chain(order.map(Effect::Launch)).collect()
            }
            (Mutant::Overcommit, Effect::Launch(mut order)) => {
                order.placement.need.bytes = Bytes(order.placement.need.bytes.0 * 3);
                vec![Effect::Launch(order)]
            }
            (Mutant::DropLaunch, Effect::Launch(_)) => vec![],
            (Mutant::StopCreating, Effect::Launch(order)) => {
                let instance = order.instance.clone();
                vec![Effect::Launch(order), Effect::Stop { instance, tail: false }]
            }
            (Mutant::StopBusy, Effect::Grant { waiter, instance, endpoint }) => {
                let stop = Effect::Stop { instance: instance.clone(), tail: false };
                vec![Effect::Grant { waiter, instance, endpoint }, stop]
            }
            (Mutant::EvictForNobody, Effect::Notice(Notice::Ready { instance, load_ms })) => {
                let ready = Notice::Ready { instance: instance.clone(), load_ms };
                let stopping = Notice::Stopping { instance, reason: StopReason::Evicted };
                vec![Effect::Notice(ready), Effect::Notice(stopping)]
            }
            (Mutant::LieInRefusal, Effect::Deny { waiter, .. }) => {
                vec![Effect::Deny { waiter, denied: Denied::ShuttingDown }]
            }
            (Mutant::DropDone, Effect::Done { waiter }) if waiter.0 % 4 == 0 => vec![],
            (Mutant::DropCheck, Effect::Check { .. }) => vec![],
            (Mutant::Impatient, Effect::Notice(Notice::Failed { instance, fault, retry_ms })) => {
                let retry_ms = retry_ms + 60_000;
                vec![Effect::Notice(Notice::Failed { instance, fault, retry_ms })]
            }
            (_, effect) => vec![effect],
        }
    }
}

fn grant(waiter: WaiterId, instance: &InstanceId, launched: &Launched) -> Effect {
    let endpoint: Endpoint = launched.endpoint.clone();
    Effect::Grant { waiter, instance: instance.clone(), endpoint }
}
