//! The reference: what clients and operators may observe, from nothing but what the core is told and what it says.
//!
//! It knows no memory, no plan and no time-outs of podman; it is simple enough to be seen to be right.
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use hostler::supervisor::effect::{Effect, Notice};
use hostler::supervisor::event::{Event, Observation};
use hostler::types::{Denied, GpuId, InstanceId, ModelName, Moment, OnFull, Phase, WaiterId};

use crate::case::{Case, Specs};
use crate::invariants::{Rule, Step};

/// How many others may be started while somebody waits who could have their place. Each takes a load's time, and `max_wait`
/// is two minutes at most here; the most that was seen is 14.
const OVERTAKEN_MAX: u32 = 30;

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
    used: Moment,
    gpus: Vec<GpuId>,
    /// What it answered after its load, if it is asked that.
    canary: Option<String>,
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
    operators: BTreeMap<WaiterId, ModelName>,
    /// Operators who want a model measured: their end says nothing of a load.
    measuring: BTreeMap<WaiterId, ModelName>,
    containers: BTreeMap<InstanceId, Told>,
    pinned: BTreeSet<ModelName>,
    loaded: BTreeSet<ModelName>,
    failing: BTreeMap<ModelName, Moment>,
    unloading: Option<ModelName>,
    shutdown: Option<Moment>,
    /// By the last reading: what runs there is lost with them.
    lost: Vec<GpuId>,
    /// The most that anybody was overtaken.
    pub overtaken: u32,
}

impl Reference {
    pub fn new(case: &Case) -> Self {
        let specs = case.specs.clone();
        let fits = specs.values().filter(|s| case.fits(s)).map(|s| s.name.clone()).collect();
        let rivals = specs.values().map(|a| {
            let mine = case.allowed(a);
            let shares = |b: &&std::sync::Arc<hostler::types::ModelSpec>| {
                b.priority <= a.priority && case.allowed(b).iter().any(|n| mine.contains(n))
            };
            let all = specs.values().filter(shares).map(|b| b.name.clone()).collect();
            (a.name.clone(), all)
        });
        Self {
            rivals: rivals.collect(),
            fitting: fits,
            max_wait: case.settings.max_wait,
            max_queue: case.settings.max_queue,
            drain: case.settings.drain_timeout,
            waiting: BTreeMap::new(),
            operators: BTreeMap::new(),
            measuring: BTreeMap::new(),
            containers: BTreeMap::new(),
            pinned: specs.values().filter(|s| s.pin).map(|s| s.name.clone()).collect(),
            loaded: BTreeSet::new(),
            failing: BTreeMap::new(),
            unloading: None,
            shutdown: None,
            lost: Vec::new(),
            overtaken: 0,
            specs,
        }
    }

    pub fn is_waiting(&self, waiter: WaiterId) -> bool {
        self.waiting.contains_key(&waiter)
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
        measured || self.pinned(model) || self.loaded.contains(model) || self.waits(model)
    }

    pub fn pinned(&self, model: &ModelName) -> bool {
        self.pinned.contains(model)
    }

    pub fn failing(&self, model: &ModelName, now: Moment) -> bool {
        self.failing.get(model).is_some_and(|until| *until > now)
    }

    fn resolve(&self, name: &str) -> Option<ModelName> {
        let name: ModelName = name.replace("alias", "m").parse().ok()?;
        self.specs.contains_key(&name).then_some(name)
    }

    /// What the core is about to be told.
    pub fn event(&mut self, now: Moment, event: &Event) {
        self.unloading = None;
        match event {
            Event::Acquire { waiter, model, .. } => {
                let asked = Asked { model: self.resolve(model), at: now, overtaken: 0 };
                self.waiting.insert(*waiter, asked);
            }
            Event::Cancel { waiter } => drop(self.waiting.remove(waiter)),
            Event::Release { instance } => {
                if let Some(told) = self.containers.get_mut(instance) {
                    told.leases = told.leases.saturating_sub(1);
                    told.used = now;
                }
            }
            Event::Load { waiter, model, .. } => {
                self.operators.insert(*waiter, model.clone());
                self.loaded.insert(model.clone());
                self.failing.remove(model);
            }
            Event::Measure { waiter, model } => {
                self.measuring.insert(*waiter, model.clone());
                self.failing.remove(model);
            }
            Event::Unload { waiter, model, .. } => {
                self.operators.insert(*waiter, model.clone());
                self.loaded.remove(model);
                self.pinned.remove(model);
                self.unloading = Some(model.clone());
                let mut own = self.containers.iter_mut().filter(|(id, _)| id.model == *model);
                own.next().map(|(_, told)| told.unloaded.get_or_insert(now));
            }
            Event::Swept { .. } | Event::Checked { .. } | Event::LoadProgress { .. } => {}
            Event::Shutdown { .. } => self.shutdown = self.shutdown.or(Some(now)),
            Event::Found(found) => {
                for identity in found.iter().filter_map(|f| f.identity.as_ref()) {
                    self.comes(now, &identity.instance, &identity.placement.gpus);
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
                if self.specs.get(&instance.model).is_some_and(|s| s.sleep_level.is_none()) {
                    self.becomes(now, instance, Stage::Ready);
                }
            }
            Event::Sung { instance, result } => self.sung(now, instance, result),
            Event::Died { instance, .. } => self.becomes(now, instance, Stage::Died),
            Event::Stopped { instance, result: Ok(()) } => drop(self.containers.remove(instance)),
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
            | Event::Pin { .. }
            | Event::Sleep { .. }
            | Event::Wake { .. }
            | Event::Trouble { .. }
            | Event::Configure(_)
            | Event::Tick => {}
        }
    }

    fn comes(&mut self, now: Moment, id: &InstanceId, gpus: &[GpuId]) {
        let told = Told {
            stage: Stage::Coming,
            leases: 0,
            unloaded: None,
            used: now,
            gpus: gpus.to_vec(),
            canary: None,
            asleep: None,
        };
        self.containers.insert(id.clone(), told);
    }

    fn becomes(&mut self, now: Moment, id: &InstanceId, stage: Stage) {
        let Some(told) = self.containers.get_mut(id) else { return };
        if told.stage != Stage::Stopped {
            (told.stage, told.used) = (stage, now);
            told.asleep = told.asleep.filter(|_| stage != Stage::Ready);
        }
    }

    /// What the core says.
    pub fn effect(&mut self, now: Moment, effect: &Effect) -> Step {
        match effect {
            Effect::Launch(order) => self.launch(now, &order.instance, &order.placement.gpus),
            Effect::Stop { instance } => self.stop(now, instance),
            Effect::Grant { waiter, instance, .. } => self.grant(now, *waiter, instance),
            Effect::Deny { waiter, denied } => self.deny(now, *waiter, denied),
            Effect::Done { waiter } => {
                let known = self.measuring.remove(waiter).is_some()
                    || self.operators.remove(waiter).is_some();
                Rule::AnsweredOnce.check(known, || format!("{waiter:?} is told twice"))
            }
            Effect::Notice(Notice::Stopping { instance, reason }) => {
                self.stopping(now, instance, *reason)
            }
            Effect::Notice(Notice::Failed { instance, retry_ms, .. }) => {
                let until = now + Duration::from_millis(*retry_ms);
                self.failing.insert(instance.model.clone(), until);
                Ok(())
            }
            Effect::Sleep { instance, .. } => self.sleep(now, instance),
            Effect::Notice(Notice::FallingAsleep { instance, reason, .. }) => {
                self.stopping(now, instance, *reason)
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
            | Effect::Check { .. }
            | Effect::Reap { .. }
            | Effect::Observe
            | Effect::Save(_)
            | Effect::Notice(_)
            | Effect::Exit => Ok(()),
        }
    }

    fn launch(&mut self, now: Moment, id: &InstanceId, gpus: &[GpuId]) -> Step {
        let other = self.containers.keys().find(|other| other.model == id.model);
        if let Some(other) = other {
            let loads = self.containers[other].stage == Stage::Coming;
            let rule = if loads { Rule::OneCreate } else { Rule::OneContainer };
            return rule.broken(format!("{id} while {other} has not come to its end"));
        }
        self.comes(now, id, gpus);
        let there = |t: &Told| t.stage != Stage::Asleep;
        let cold = |m: &ModelName| !self.containers.iter().any(|(c, t)| c.model == *m && there(t));
        let overtaken = |m: &ModelName| {
            *m != id.model
                && cold(m)
                && self.fitting.contains(m)
                && self.specs[m].on_full == OnFull::Evict
                && self.failing.get(m).is_none_or(|until| *until <= now)
                && self.rivals[m].contains(&id.model)
        };
        let models: BTreeSet<ModelName> =
            self.specs.keys().filter(|m| overtaken(m)).cloned().collect();
        for (waiter, asked) in &mut self.waiting {
            if asked.model.as_ref().is_some_and(|m| models.contains(m)) {
                asked.overtaken += 1;
                self.overtaken = self.overtaken.max(asked.overtaken);
                let what = || format!("{waiter:?} of {:?} was passed over", asked.model);
                Rule::NoStarvation.check(asked.overtaken <= OVERTAKEN_MAX, what)?;
            }
        }
        Ok(())
    }

    fn stop(&mut self, now: Moment, id: &InstanceId) -> Step {
        let over = self.shutdown.is_some_and(|at| now >= at + self.drain);
        let Some(told) = self.containers.get_mut(id) else { return Ok(()) };
        let free = told.leases == 0 || told.stage != Stage::Ready || over;
        let drained = told.unloaded.is_some_and(|at| now >= at + self.drain);
        let free = free || drained || told.gpus.iter().any(|gpu| self.lost.contains(gpu));
        told.stage = Stage::Stopped;
        let leases = told.leases;
        Rule::NoInFlightStop.check(free, || format!("{id} is stopped with {leases} leases"))
    }

    fn grant(&mut self, now: Moment, waiter: WaiterId, id: &InstanceId) -> Step {
        let asked = self.waiting.remove(&waiter);
        let what = || format!("{waiter:?} is answered without waiting");
        Rule::AnsweredOnce.check(asked.is_some(), what)?;
        let model = asked.and_then(|a| a.model);
        let stage = self.containers.get(id).map(|t| t.stage);
        let same = stage != Some(Stage::Changed);
        let what = || format!("{waiter:?} gets a lease on {id}, which does not answer as before");
        Rule::SameAfterWake.check(same, what)?;
        let right = stage == Some(Stage::Ready) && model.as_ref() == Some(&id.model);
        let what = || format!("{waiter:?} of {model:?} gets a lease on {id}, {stage:?}");
        Rule::LeaseOnReady.check(right, what)?;
        if let Some(told) = self.containers.get_mut(id) {
            told.leases += 1;
            told.used = now;
        }
        Ok(())
    }

    fn deny(&mut self, now: Moment, waiter: WaiterId, denied: &Denied) -> Step {
        if self.measuring.remove(&waiter).is_some() {
            return Ok(());
        }
        if let Some(model) = self.operators.remove(&waiter) {
            if !self.pinned(&model) {
                self.loaded.remove(&model);
            }
            return Ok(());
        }
        let waits =
            |m: &ModelName| self.waiting.values().filter(|a| a.model.as_ref() == Some(m)).count();
        let Some(asked) = self.waiting.get(&waiter) else {
            return Rule::AnsweredOnce.broken(format!("{waiter:?} is refused without waiting"));
        };
        let long = now.since(asked.at) >= self.max_wait;
        let spec = asked.model.as_ref().map(|m| &self.specs[m]);
        let honest = match denied {
            Denied::UnknownModel { .. } => asked.model.is_none(),
            Denied::NeverFits { model, .. } => !self.fitting.contains(model),
            Denied::NoRoom { .. } => long || spec.is_some_and(|s| s.on_full == OnFull::Refuse),
            Denied::StillLoading { .. } => long,
            Denied::LoadFailed { model, .. } => self.failing.contains_key(model),
            // The one that is refused is counted here.
            Denied::QueueFull { model, .. } => {
                let loads = self.operators.values().filter(|m| *m == model).count();
                waits(model) + loads > self.max_queue
            }
            Denied::Unloaded { model } => self.unloading.as_ref() == Some(model),
            // Only operators are told that.
            Denied::Unmeasurable { .. } | Denied::Conflict { .. } => false,
            Denied::ShuttingDown => self.shutdown.is_some(),
        };
        self.waiting.remove(&waiter);
        Rule::HonestRefusal.check(honest, || format!("{waiter:?} is refused: {denied:?}"))
    }

    /// After every event.
    pub fn check(&self, now: Moment) -> Step {
        let late = self.waiting.iter().find(|(_, a)| now.since(a.at) > self.max_wait);
        Rule::AnsweredInTime.check(late.is_none(), || format!("{late:?} still waits"))
    }
}

mod leaving;
mod tests;
