//! The reference: what clients and operators may observe, from nothing but what the core is told and what it says.
//!
//! It knows no memory, no plan and no time-outs of podman; it is simple enough to be seen to be right.
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use hostler::supervisor::effect::{Effect, Notice};
use hostler::supervisor::event::{Event, Observation, Passed};
use hostler::supervisor::health::HealthRules;
use hostler::types::{GpuId, InstanceId, ModelName, Moment, OnFull, Phase, SpecHash, WaiterId};

use crate::case::{Case, Specs};
use crate::invariants::{Rule, Step};

#[derive(Clone, Debug)]
struct Asked {
    /// `None`: it is not configured.
    model: Option<ModelName>,
    at: Moment,
    overtaken: u32,
}

/// A container as it was ordered and told.
#[derive(Clone, Debug)]
struct Told {
    stage: Stage,
    leases: u32,
    unloaded: Option<Moment>,
    /// It takes no new requests.
    yields: bool,
    /// Since when it has served without being as it is configured; `None`: it is.
    outdated: Option<Moment>,
    /// It makes way for its own next container.
    renews: bool,
    /// It made way in vain: until when it is let be.
    let_be: Option<Moment>,
    /// Unloaded without waiting.
    cut: bool,
    used: Moment,
    gpus: Vec<GpuId>,
    /// What it answered after its load, if it is asked that.
    canary: Option<String>,
    /// So often it gave no answer to that.
    silent: u32,
    /// As it was ordered.
    hash: SpecHash,
    /// Its model was removed since.
    retired: bool,
    /// It holds all of its memory, or has.
    served: bool,
    /// Its load ended before it was through.
    given_up: bool,
    health: Health,
    /// Since when it has slept.
    asleep: Option<Moment>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Coming,
    /// Its image comes first.
    Pulling,
    Ready,
    /// Was told to sleep, and has not answered as before since.
    Asleep,
    /// Woke, and answered otherwise.
    Changed,
    Died,
    Stopped,
}

/// One daemon's life, as seen from outside.
#[derive(Debug)]
pub struct Reference {
    specs: Specs,
    max_wait: Duration,
    max_queue: usize,
    drain: Duration,
    /// Models that fit on an otherwise idle host.
    fitting: BTreeSet<ModelName>,
    /// Those whose room each of them could use.
    rivals: BTreeMap<ModelName, BTreeSet<ModelName>>,
    waiting: BTreeMap<WaiterId, Asked>,
    operators: BTreeMap<WaiterId, Operator>,
    /// When somebody wished that busy ones leave, and until when.
    ruthless: Vec<(WaiterId, Moment, Option<Moment>)>,
    health: HealthRules,
    /// Since when models have been asked for without an engine; kept where everybody gets a turn.
    hungry: BTreeMap<ModelName, Moment>,
    turn: Option<Duration>,
    /// How long a busy one that was changed serves on.
    renew: Option<Duration>,
    /// Unloaded now, in this very turn.
    cut: Option<InstanceId>,
    /// Operators who want a model measured: their end says nothing of a load.
    measuring: BTreeMap<WaiterId, ModelName>,
    containers: BTreeMap<InstanceId, Told>,
    pinned: BTreeSet<ModelName>,
    loaded: BTreeSet<ModelName>,
    failing: BTreeMap<ModelName, Moment>,
    unloading: Option<ModelName>,
    shutdown: Option<Moment>,
    /// The daemon ends with its models.
    ends: bool,
    /// By the last reading: what runs there is lost with them.
    lost: Vec<GpuId>,
    /// The most that anybody was overtaken.
    pub overtaken: u32,
}

impl Reference {
    pub fn new(case: &Case) -> Self {
        let specs = case.specs.clone();
        let mut reference = Self {
            rivals: BTreeMap::new(),
            fitting: BTreeSet::new(),
            max_wait: case.settings.max_wait,
            max_queue: case.settings.max_queue,
            drain: case.settings.drain_timeout,
            waiting: BTreeMap::new(),
            operators: BTreeMap::new(),
            ruthless: Vec::new(),
            health: case.settings.health,
            cut: None,
            hungry: BTreeMap::new(),
            renew: case.settings.turn_after.map(|after| after.min(case.settings.max_wait / 2)),
            turn: case.rush.then_some(case.settings.turn_after).flatten(),
            measuring: BTreeMap::new(),
            containers: BTreeMap::new(),
            pinned: specs.values().filter(|s| s.pin).map(|s| s.name.clone()).collect(),
            loaded: BTreeSet::new(),
            failing: BTreeMap::new(),
            unloading: None,
            shutdown: None,
            ends: false,
            lost: Vec::new(),
            overtaken: 0,
            specs,
        };
        reference.compare(case);
        reference
    }

    /// Who fits, and who is in whose way.
    fn compare(&mut self, case: &Case) {
        let specs = &self.specs;
        let fits = specs.values().filter(|s| case.fits(s)).map(|s| s.name.clone()).collect();
        let rivals = specs.values().map(|a| {
            let mine = case.allowed(a);
            let shares = |b: &&std::sync::Arc<hostler::types::ModelSpec>| {
                b.priority <= a.priority && case.allowed(b).iter().any(|n| mine.contains(n))
            };
            let all = specs.values().filter(shares).map(|b| b.name.clone()).collect();
            (a.name.clone(), all)
        });
        (self.rivals, self.fitting) = (rivals.collect(), fits);
    }

    pub fn is_waiting(&self, waiter: WaiterId) -> bool {
        let operators =
            self.operators.contains_key(&waiter) || self.measuring.contains_key(&waiter);
        operators || self.waiting.contains_key(&waiter)
    }

    pub fn anybody(&self) -> bool {
        !self.waiting.is_empty()
    }

    pub fn operators(&self) -> usize {
        self.operators.len() + self.measuring.len()
    }

    pub fn waits(&self, model: &ModelName) -> bool {
        self.waiting.values().any(|a| a.model.as_ref() == Some(model))
    }

    /// Somebody or something may want it loaded.
    pub fn wanted(&self, model: &ModelName) -> bool {
        let measured = self.measuring.values().any(|m| m == model);
        let asked = measured || self.is_waited_for(model) || self.waits(model);
        asked || self.pinned(model) || self.loaded.contains(model)
    }

    pub fn pinned(&self, model: &ModelName) -> bool {
        self.pinned.contains(model)
    }

    pub fn failing(&self, model: &ModelName, now: Moment) -> bool {
        self.failing.get(model).is_some_and(|until| *until > now)
    }

    /// What the core is about to be told.
    pub fn event(&mut self, now: Moment, event: &Event) {
        (self.unloading, self.cut) = (None, None);
        match event {
            Event::Acquire { waiter, model, .. } => {
                let asked = Asked { model: self.resolve(model), at: now, overtaken: 0 };
                self.waiting.insert(*waiter, asked);
            }
            Event::Cancel { waiter } => {
                self.waiting.remove(waiter);
                self.measuring.remove(waiter);
                self.gives_up(now, *waiter);
            }
            Event::Used(passed) => {
                for Passed { instance, taken, returned } in passed {
                    if let Some(told) = self.containers.get_mut(instance) {
                        told.leases = (told.leases + taken).saturating_sub(*returned);
                        told.used = told.used.max(now);
                    }
                }
            }
            Event::Load { waiter, model, wish } => self.load(now, *waiter, model, wish),
            Event::Pin { waiter, model, pinned } => {
                self.wishes(*waiter, model, Verb::Pin(*pinned));
            }
            Event::Sleep { waiter, model } => self.wishes(*waiter, model, Verb::Sleep),
            Event::Wake { waiter, model } => self.wishes(*waiter, model, Verb::Wake),
            Event::Measure { waiter, model } => {
                self.measuring.insert(*waiter, model.clone());
                self.failing.remove(model);
            }
            Event::Unload { waiter, model, haste } => self.unload(now, *waiter, model, *haste),
            Event::Checked { instance, result, silent } => {
                self.checked(now, instance, result.is_ok(), *silent);
            }
            Event::Swept { .. }
            | Event::LoadProgress { .. }
            | Event::Strange { .. }
            | Event::Wrote { .. }
            | Event::Pulled { .. } => {}
            Event::Shutdown { keep } => {
                self.ends |= self.shutdown.is_none() && !keep;
                self.shutdown = self.shutdown.or(Some(now));
            }
            Event::Found(found) => {
                for identity in found.iter().filter_map(|f| f.identity.as_ref()) {
                    let gpus = &identity.placement.gpus;
                    self.comes(now, &identity.instance, gpus, identity.spec_hash.clone());
                }
            }
            Event::LaunchFailed { instance, fault } if !fault.left_behind => {
                self.containers.remove(instance);
            }
            Event::Progress { instance, phase: Phase::Pulling } => {
                self.becomes(now, instance, Stage::Pulling);
            }
            Event::Healthy { instance } => {
                // One that may sleep is asked for its canary first.
                let asked = self.containers.get(instance).is_some_and(|t| t.silent >= 2);
                if asked || self.specs.get(&instance.model).is_some_and(|s| s.sleep_level.is_none())
                {
                    self.becomes(now, instance, Stage::Ready);
                }
            }
            Event::Sung { instance, result } => self.sung(now, instance, result),
            Event::Died { instance, .. } => self.becomes(now, instance, Stage::Died),
            Event::Stopped { instance, result: Ok(()) } | Event::Provided { instance, .. } => {
                self.containers.remove(instance);
            }
            Event::Observed(Observation { devices: Ok(snapshot), .. }) => {
                self.lost = snapshot.lost.iter().map(|(gpu, _)| gpu.clone()).collect();
            }
            Event::Stopped { .. }
            | Event::LaunchFailed { .. }
            | Event::Progress { .. }
            | Event::Launched { .. }
            | Event::Observed(_)
            | Event::Slept { .. }
            | Event::Woken { .. }
            | Event::Saved(_)
            | Event::LocalTime(_)
            | Event::Trouble { .. }
            | Event::Configure(_)
            | Event::Tick => {}
        }
    }

    fn comes(&mut self, now: Moment, id: &InstanceId, gpus: &[GpuId], hash: SpecHash) {
        let interval = self.specs.get(&id.model).and_then(|s| s.health_interval);
        let told = Told {
            stage: Stage::Coming,
            leases: 0,
            unloaded: None,
            yields: false,
            outdated: None,
            renews: false,
            let_be: None,
            cut: false,
            used: now,
            gpus: gpus.to_vec(),
            canary: None,
            silent: 0,
            hash,
            retired: false,
            served: false,
            given_up: false,
            health: Health::of(interval),
            asleep: None,
        };
        self.containers.insert(id.clone(), told);
    }

    fn becomes(&mut self, now: Moment, id: &InstanceId, stage: Stage) {
        let Some(told) = self.containers.get_mut(id) else { return };
        if told.stage != Stage::Stopped {
            (told.stage, told.used) = (stage, now);
            told.served |= stage == Stage::Ready;
            told.asleep = told.asleep.filter(|_| stage != Stage::Ready);
            if stage == Stage::Ready {
                told.health.begin(now);
                self.compare_container(now, id, true);
            }
        }
    }

    /// What the core says.
    pub fn effect(&mut self, now: Moment, effect: &Effect) -> Step {
        match effect {
            Effect::Launch(order) => {
                let hash = order.spec.spec_hash();
                self.launch(now, &order.instance, &order.placement.gpus, hash)
            }
            Effect::Provide { instance, spec } => self.look(now, instance, spec.spec_hash()),
            Effect::Stop { instance, .. } => self.stop(now, instance),
            Effect::Grant { waiter, instance, .. } => self.grant(now, *waiter, instance),
            Effect::Deny { waiter, denied } => self.deny(now, *waiter, denied),
            Effect::Done { waiter } => self.done(now, *waiter),
            Effect::Check { instance, token, .. } => {
                self.asks(instance, *token);
                Ok(())
            }
            Effect::Notice(Notice::Stopping { instance, reason }) => {
                self.stopping(now, instance, *reason)
            }
            Effect::Notice(Notice::Failed { instance, retry_ms, .. }) => {
                let until = now + Duration::from_millis(*retry_ms);
                self.failing.insert(instance.model.clone(), until);
                // What an operator once loaded is not tried for ever.
                if *retry_ms > 0 {
                    self.loaded.remove(&instance.model);
                }
                self.came_to_nothing(instance);
                Ok(())
            }
            // Given up before its pull was told.
            Effect::Notice(Notice::Stopped { instance }) => {
                self.came_to_nothing(instance);
                Ok(())
            }
            Effect::Sleep { instance, .. } => self.sleep(now, instance),
            Effect::Notice(Notice::FallingAsleep { instance, reason, .. }) => {
                self.stopping(now, instance, *reason)
            }
            Effect::Notice(Notice::Yielding { instance, to, busy }) => {
                self.yields(instance, to, *busy)
            }
            Effect::Notice(Notice::Spared { instance }) => {
                self.serves_on(now, instance);
                Ok(())
            }
            Effect::Notice(Notice::Asleep { instance, .. }) => {
                if let Some(told) = self.containers.get_mut(instance) {
                    told.asleep = Some(now);
                }
                Ok(())
            }
            Effect::AwaitReady { .. }
            | Effect::Wake { .. }
            | Effect::Canary { .. }
            | Effect::Reap { .. }
            | Effect::Observe
            | Effect::Save(_)
            | Effect::KeepPins(_)
            | Effect::Notice(_)
            | Effect::Exit => Ok(()),
        }
    }

    /// After every event.
    pub fn check(&mut self, now: Moment) -> Step {
        let late = self.waiting.iter().find(|(_, a)| now.since(a.at) > self.max_wait);
        Rule::AnsweredInTime.check(late.is_none(), || format!("{late:?} still waits"))?;
        self.check_cut()?;
        self.check_turns(now)?;
        self.check_health(now)
    }
}

mod effects;
mod health;
mod leaving;
mod operators;
mod tests;
mod turns;

use health::Health;
use operators::{Operator, Verb};
