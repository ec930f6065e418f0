//! What operators asked for, and what another configuration changes.

use std::collections::BTreeSet;
use std::time::Duration;

use hostler::types::{Denied, Evict, Haste, InstanceId, ModelName, Moment, WaiterId, Wish};

use super::{Reference, Stage};
use crate::case::Case;
use crate::invariants::{Rule, Step};

/// What one of them asked.
#[derive(Clone, Debug)]
pub(super) enum Verb {
    /// `fresh`: nobody had asked for it before.
    Load {
        pin: bool,
        evict: Option<Evict>,
        fresh: bool,
    },
    Unload,
    Pin(bool),
    Sleep,
    Wake,
}

#[derive(Clone, Debug)]
pub(super) struct Operator {
    pub(super) model: ModelName,
    pub(super) verb: Verb,
}

impl Operator {
    fn waits_for_it(&self) -> bool {
        matches!(self.verb, Verb::Load { .. } | Verb::Wake)
    }
}

impl Reference {
    pub(super) fn resolve(&self, name: &str) -> Option<ModelName> {
        let name: ModelName = name.replace("alias", "m").parse().ok()?;
        self.specs.contains_key(&name).then_some(name)
    }

    pub(super) fn wishes(&mut self, waiter: WaiterId, model: &ModelName, verb: Verb) {
        self.operators.insert(waiter, Operator { model: model.clone(), verb });
        if self.shutdown.is_none() {
            self.failing.remove(model);
        }
    }

    pub(super) fn load(&mut self, now: Moment, waiter: WaiterId, model: &ModelName, wish: &Wish) {
        let fresh = self.loaded.insert(model.clone());
        if wish.evict == Some(Evict::Any) {
            self.ruthless.push((waiter, now, None));
        }
        self.wishes(waiter, model, Verb::Load { pin: wish.pin, evict: wish.evict, fresh });
    }

    pub(super) fn unload(
        &mut self,
        now: Moment,
        waiter: WaiterId,
        model: &ModelName,
        haste: Haste,
    ) {
        self.operators.insert(waiter, Operator { model: model.clone(), verb: Verb::Unload });
        self.loaded.remove(model);
        self.pinned.remove(model);
        self.unloading = Some(model.clone());
        let own = self.containers.iter_mut().find(|(id, _)| id.model == *model);
        let Some((id, told)) = own else { return };
        told.unloaded.get_or_insert(now);
        if haste == Haste::Now && told.stage == Stage::Ready && self.specs.contains_key(model) {
            told.cut = true;
            self.cut = Some(id.clone());
        }
    }

    pub(super) fn gives_up(&mut self, now: Moment, waiter: WaiterId) {
        let Some(operator) = self.operators.remove(&waiter) else { return };
        self.relents(now, waiter);
        if operator.waits_for_it() && !self.is_waited_for(&operator.model) {
            self.loaded.remove(&operator.model);
        }
    }

    /// Some of them wait until it is up.
    pub(super) fn is_waited_for(&self, model: &ModelName) -> bool {
        self.operators.values().any(|o| o.model == *model && o.waits_for_it())
    }

    fn relents(&mut self, now: Moment, waiter: WaiterId) {
        for (_, _, until) in self.ruthless.iter_mut().filter(|(w, ..)| *w == waiter) {
            until.get_or_insert(now);
        }
    }

    pub(super) fn refused(
        &mut self,
        now: Moment,
        waiter: WaiterId,
        operator: &Operator,
        denied: &Denied,
    ) {
        self.relents(now, waiter);
        let kept = match (&operator.verb, denied) {
            // It contradicts what is: everything stays as it was.
            (Verb::Load { fresh, .. }, Denied::Conflict { .. }) => !fresh,
            (Verb::Wake, Denied::Conflict { .. }) => true,
            (Verb::Load { .. } | Verb::Wake, _) => self.pinned(&operator.model),
            (Verb::Unload | Verb::Pin(_) | Verb::Sleep, _) => true,
        };
        if !kept && !self.is_waited_for(&operator.model) {
            self.loaded.remove(&operator.model);
        }
    }

    pub(super) fn done(&mut self, now: Moment, waiter: WaiterId) -> Step {
        if self.measuring.remove(&waiter).is_some() {
            return Ok(());
        }
        self.relents(now, waiter);
        let Some(Operator { model, verb }) = self.operators.remove(&waiter) else {
            return Rule::AnsweredOnce.broken(format!("{waiter:?} is told twice"));
        };
        let told = self.containers.iter().find(|(id, _)| id.model == model).map(|(_, t)| t);
        let true_ = match verb {
            Verb::Load { .. } | Verb::Wake => told.is_some_and(|t| t.stage == Stage::Ready),
            Verb::Unload => told.is_none(),
            Verb::Sleep => told.is_some_and(|t| t.asleep.is_some()),
            Verb::Pin(_) => true,
        };
        let what = || format!("{verb:?} of {model} is said to be done, and it is {told:?}");
        Rule::HonestAnswer.check(true_, what)?;
        match verb {
            Verb::Load { pin: true, .. } | Verb::Pin(true) => drop(self.pinned.insert(model)),
            Verb::Pin(false) => {
                self.pinned.remove(&model);
                if !self.is_waited_for(&model) {
                    self.loaded.remove(&model);
                }
            }
            Verb::Load { .. } | Verb::Unload | Verb::Sleep | Verb::Wake => {}
        }
        Ok(())
    }

    /// An operator lets others leave for it, whatever its configuration says.
    pub fn may_evict(&self, model: &ModelName) -> bool {
        let may = |e: Option<Evict>| matches!(e, Some(Evict::Idle | Evict::Any));
        self.operators
            .values()
            .any(|o| o.model == *model && matches!(o.verb, Verb::Load { evict, .. } if may(evict)))
    }

    /// Whatever their priority.
    pub fn evicts_any(&self, model: &ModelName) -> bool {
        let any = |verb: &Verb| matches!(verb, Verb::Load { evict: Some(Evict::Any), .. });
        self.operators.values().any(|o| o.model == *model && any(&o.verb))
    }

    /// Somebody wished for longer than a drain takes that busy ones leave, or did until a drain ago: what drains is cut off then.
    pub(super) fn was_forced(&self, now: Moment) -> bool {
        // A machine that stands still is late.
        let late = self.drain + Duration::from_secs(120);
        let until = |until: &Option<Moment>| until.is_none_or(|u| now.since(u) <= late);
        self.ruthless.iter().any(|(_, from, to)| now.since(*from) >= self.drain && until(to))
    }

    pub(super) fn check_cut(&self) -> Step {
        let told = self.cut.as_ref().and_then(|id| self.containers.get(id));
        let serves = told.is_some_and(|t| t.stage == Stage::Ready);
        let what = || format!("{:?} still serves, and was unloaded at once", self.cut);
        Rule::NowMeansNow.check(!serves, what)
    }

    /// Only what is not as it is configured has to go.
    pub(super) fn check_reload(&self, id: &InstanceId) -> Step {
        let Some(told) = self.containers.get(id) else { return Ok(()) };
        let same = self.is_as_configured(id);
        Rule::ReloadKept.check(!same || told.retired, || format!("{id} goes, and is as configured"))
    }

    pub(super) fn is_as_configured(&self, id: &InstanceId) -> bool {
        let both = self.containers.get(id).zip(self.specs.get(&id.model));
        both.is_some_and(|(told, spec)| {
            let allowed = |gpu| spec.gpus.is_empty() || spec.gpus.contains(gpu);
            spec.spec_hash() == told.hash && told.gpus.iter().all(allowed)
        })
    }

    /// Who stays pinned whatever happens to the daemon; `None`: it has ended with its models, and pins are as configured.
    pub fn outlives(&self) -> Option<BTreeSet<ModelName>> {
        (!self.ends).then(|| self.pinned.clone())
    }

    /// Begins with what operators said to an earlier daemon.
    pub fn recall(&mut self, pinned: Option<BTreeSet<ModelName>>) {
        self.pinned = pinned.unwrap_or_else(|| std::mem::take(&mut self.pinned));
    }

    /// Another configuration, which the core is about to be told.
    pub fn reconfigured(&mut self, now: Moment, case: &Case) {
        for (name, spec) in &case.specs {
            let old = self.specs.get(name);
            if old.is_none_or(|old| old.pin != spec.pin) {
                self.pinned.remove(name);
                self.loaded.remove(name);
                if spec.pin {
                    self.pinned.insert(name.clone());
                }
                if self.is_waited_for(name) {
                    self.loaded.insert(name.clone());
                }
            }
            // What failed is not what comes, whatever is different.
            if old.is_none_or(|old| old != spec) {
                self.failing.remove(name);
            }
            let hash = spec.spec_hash();
            let own =
                self.containers.iter_mut().filter(|(id, t)| id.model == *name && t.hash == hash);
            own.for_each(|(_, told)| told.health.change(now, spec.health_interval));
        }
        let gone = |name: &ModelName| !case.specs.contains_key(name);
        self.pinned.retain(|name| !gone(name));
        self.loaded.retain(|name| !gone(name));
        for (_, told) in self.containers.iter_mut().filter(|(id, _)| gone(&id.model)) {
            told.retired = true;
            told.unloaded.get_or_insert(now);
        }
        self.specs = case.specs.clone();
        self.renew = case.settings.turn_after.map(|after| after.min(self.max_wait / 2));
        self.compare(case);
        for id in self.containers.keys().cloned().collect::<Vec<_>>() {
            self.compare_container(now, &id, false);
        }
    }
}
