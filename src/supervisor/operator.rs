//! The part of the core that does what operators say: load, unload, pin, sleep, wake, and the dry run of a load.
//!
//! Invariants: an operator's wish lasts as long as somebody waits for it; whoever gives up takes his wish back, and a load that nobody
//! wants any more ends with it; a dry run changes nothing; what was said about pins is written down, for a restart of the daemon is no
//! reason to forget it.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::effect::{Effect, StopReason};
use super::instance::{Instance, Life};
use super::queue::{Purpose, Waiter};
use super::state::{Model, State};
use crate::plan::{self, Decision, Leave, Plan};
use crate::types::{
    Denied, Evict, Haste, Leaving, ModelName, Moment, OnFull, Outcome, Preview, PreviewGpu, Report,
    SleepLevel, WaiterId, Wish,
};

impl Model {
    /// What the last of the operators that wait for it wishes. Whoever has left wishes for nothing.
    pub(super) fn wish(&self) -> Option<&Wish> {
        let waits = |of: &&(WaiterId, Wish)| self.queue.contains(of.0);
        self.wishes.iter().rev().find(waits).map(|(_, wish)| wish)
    }

    /// What happens where there is no room. What nobody asked for makes nobody leave.
    pub(super) fn on_full(&self, wish: Option<&Wish>) -> OnFull {
        match wish.and_then(|wish| wish.evict) {
            Some(Evict::None) => OnFull::Refuse,
            Some(Evict::Idle | Evict::Any) => OnFull::Evict,
            None if wish.is_some() || self.is_asked_for() => self.spec.on_full,
            None => OnFull::Wait,
        }
    }

    /// Whom it may make leave, and who is young enough to stay. An operator's "any" is above all that a configuration can say.
    pub(super) fn priority(&self, wish: Option<&Wish>) -> i8 {
        let any = wish.is_some_and(|wish| wish.evict == Some(Evict::Any));
        if any { i8::MAX } else { self.spec.priority }
    }
}

impl State {
    pub(super) fn load(
        &mut self,
        now: Moment,
        waiter: WaiterId,
        name: &ModelName,
        wish: Wish,
        out: &mut Vec<Effect>,
    ) {
        let Some(model) = self.wished(now, waiter, name, out) else { return };
        if let Some(why) = model.contradicts(&wish) {
            let denied = Denied::Conflict { model: model.spec.name.clone(), why };
            out.push(Effect::Deny { waiter, denied });
            return;
        }
        model.wanted = true;
        let purpose = Purpose::Ready { pin: wish.pin };
        model.queue.push(Waiter { id: waiter, purpose, since: now });
        // Of several operators the last one's word counts.
        let queue = &model.queue;
        model.wishes.retain(|(waiter, _)| queue.contains(*waiter));
        model.wishes.push((waiter, wish));
    }

    pub(super) fn unload(
        &mut self,
        waiter: WaiterId,
        name: &ModelName,
        haste: Haste,
        out: &mut Vec<Effect>,
    ) {
        let Some(model) = self.resolve(name.as_str()) else {
            let denied = Denied::UnknownModel { model: name.to_string() };
            out.push(Effect::Deny { waiter, denied });
            return;
        };
        model.wanted = false;
        model.pinned = false;
        model.unloading.push(waiter);
        let name = model.spec.name.clone();
        let denied = Denied::Unloaded { model: name.clone() };
        model.discovery.end(&denied, out);
        for waiting in model.queue.drain() {
            out.push(Effect::Deny { waiter: waiting.id, denied: denied.clone() });
        }
        self.dismiss(&name, StopReason::Unloaded, out);
        if haste == Haste::Now {
            self.cut(&name, out);
        }
    }

    /// What still drains is stopped.
    fn cut(&mut self, name: &ModelName, out: &mut Vec<Effect>) {
        let instance = self.models.get(name).and_then(|m| m.instance.as_ref());
        let draining = instance.filter(|i| matches!(i.life, Life::Draining { .. }));
        if let Some(id) = draining.map(|i| i.id.clone()) {
            self.begin_stop(&id, None, out);
            let reason = StopReason::Unloaded;
            out.push(Effect::Notice(super::effect::Notice::Stopping { instance: id, reason }));
        }
    }

    pub(super) fn pin(
        &mut self,
        now: Moment,
        waiter: WaiterId,
        name: &ModelName,
        pinned: bool,
        out: &mut Vec<Effect>,
    ) {
        let Some(model) = self.wished(now, waiter, name, out) else { return };
        model.pinned = pinned;
        // Whoever still waits for it wants it still.
        model.wanted = pinned || model.queue.has_operators();
        if !pinned && let Some(instance) = &mut model.instance {
            // Its idle time begins now.
            instance.last_used = now;
        }
        out.push(Effect::Done { waiter });
    }

    /// Begins with what operators said to an earlier daemon.
    pub(super) fn recall_pins(&mut self, pins: BTreeMap<ModelName, bool>) {
        for (name, pinned) in &pins {
            if let Some(model) = self.models.get_mut(name) {
                model.pinned = *pinned;
                model.wanted = *pinned;
            }
        }
        self.pins = pins;
    }

    /// Has written down what operators say about pins, where that is no longer what was written. A daemon that ends with its models
    /// ends what was said about them: they come back as they are configured.
    pub(super) fn keep_pins(&mut self, out: &mut Vec<Effect>) {
        let over = self.shutdown.is_some_and(|shutdown| !shutdown.keep);
        let said = self.models.values().filter(|m| !over && !m.retired && m.pinned != m.spec.pin);
        let said = said.map(|m| (&m.spec.name, &m.pinned));
        if !said.clone().eq(&self.pins) {
            self.pins = said.map(|(name, pinned)| (name.clone(), *pinned)).collect();
            out.push(Effect::KeepPins(self.pins.clone()));
        }
    }

    pub(super) fn sleep(
        &mut self,
        now: Moment,
        waiter: WaiterId,
        name: &ModelName,
        out: &mut Vec<Effect>,
    ) {
        let Some(model) = self.wished(now, waiter, name, out) else { return };
        let name = model.spec.name.clone();
        match self.may_sleep(&name) {
            Ok(None) => {}
            Ok(Some(leave)) => {
                if let Some(model) = self.models.get_mut(&name) {
                    model.wanted = false;
                }
                self.leave(now, &name, leave, StopReason::Asked, out);
            }
            Err(why) => {
                out.push(Effect::Deny { waiter, denied: Denied::Conflict { model: name, why } });
                return;
            }
        }
        if let Some(model) = self.models.get_mut(&name) {
            model.dozing.push(waiter);
        }
    }

    /// How it would fall asleep; `None`: it does already, or sleeps.
    fn may_sleep(&self, name: &ModelName) -> Result<Option<Leave>, String> {
        let model = self.models.get(name);
        let both = model.and_then(|m| m.instance.as_ref().map(|i| (m, i)));
        let (model, instance) = both.ok_or("it is not loaded")?;
        if matches!(instance.life, Life::Dozing { .. } | Life::Asleep { .. }) {
            return Ok(None);
        }
        if model.pinned {
            return Err("it is pinned; unpin it first".to_owned());
        }
        if instance.in_flight > 0 || !model.queue.is_empty() {
            let requests = instance.in_flight as usize + model.queue.len();
            return Err(format!("it serves {requests} requests; only an idle model falls asleep"));
        }
        self.sleeper(model, instance)?;
        let rules = self.settings.rules.sleep;
        Ok(Some(plan::idle_rung(rules, &self.holders(None), &instance.id)?))
    }

    /// Tells those who sent models to sleep what came of it.
    pub(super) fn finish_sleeps(&mut self, out: &mut Vec<Effect>) {
        for model in self.models.values_mut().filter(|m| !m.dozing.is_empty()) {
            let instance = model.instance.as_ref();
            if instance.is_some_and(|i| matches!(i.life, Life::Dozing { .. })) {
                continue;
            }
            let asleep = instance.is_some_and(Instance::is_asleep);
            for waiter in model.dozing.drain(..) {
                out.push(if asleep {
                    Effect::Done { waiter }
                } else {
                    let why = "it did not fall asleep; the journal says why".to_owned();
                    let model = model.spec.name.clone();
                    Effect::Deny { waiter, denied: Denied::Conflict { model, why } }
                });
            }
        }
    }

    pub(super) fn wake_asked(
        &mut self,
        now: Moment,
        waiter: WaiterId,
        name: &ModelName,
        out: &mut Vec<Effect>,
    ) {
        let Some(model) = self.wished(now, waiter, name, out) else { return };
        let up = |i: &Instance| i.is_ready() || i.sleep_level().is_some();
        if model.instance.as_ref().is_some_and(up) {
            let purpose = Purpose::Ready { pin: false };
            model.queue.push(Waiter { id: waiter, purpose, since: now });
        } else {
            let why = "it does not sleep; load it instead".to_owned();
            let model = model.spec.name.clone();
            out.push(Effect::Deny { waiter, denied: Denied::Conflict { model, why } });
        }
    }

    /// A caller has left. What only he wanted is not wanted any more.
    pub(super) fn cancel(&mut self, waiter: WaiterId, out: &mut Vec<Effect>) {
        let mut given_up = None;
        for model in self.models.values_mut() {
            let before = model.queue.has_operators();
            model.queue.remove(waiter);
            model.unloading.retain(|w| *w != waiter);
            model.dozing.retain(|w| *w != waiter);
            let measured = model.discovery.take_back(waiter);
            if before && !model.queue.has_operators() {
                model.wanted = model.pinned;
            } else if !measured {
                continue;
            }
            let loading = model.instance.as_ref().is_some_and(Instance::is_loading);
            if loading && !model.is_demanded() {
                given_up = Some(model.spec.name.clone());
            }
        }
        if let Some(name) = given_up {
            self.dismiss(&name, StopReason::Asked, out);
        }
    }

    /// What a load would do now.
    ///
    /// # Errors
    /// [`Denied::UnknownModel`], and [`Denied::Conflict`] for a wish that cannot be.
    pub fn preview(&self, now: Moment, name: &ModelName, wish: &Wish) -> Result<Preview, Denied> {
        let known = self.aliases.get(name).unwrap_or(name);
        let unknown = || Denied::UnknownModel { model: name.to_string() };
        let model = self.models.get(known).ok_or_else(unknown)?;
        if let Some(why) = model.contradicts(wish) {
            return Err(Denied::Conflict { model: known.clone(), why });
        }
        let instance = model.instance.as_ref();
        let leaving = |i: &&Instance| {
            matches!(i.life, Life::Draining { .. } | Life::Abandoned { .. } | Life::Stopping { .. })
        };
        if let Some(instance) = instance.filter(|i| !i.is_asleep() && !leaving(i)) {
            let bytes = instance.placement.need.bytes;
            let gpus = instance.placement.gpus.iter();
            return Ok(Preview {
                outcome: Outcome::Loaded,
                why: format!("it is {} already", instance.phase()),
                gpus: gpus.map(|gpu| PreviewGpu { gpu: gpu.clone(), bytes }).collect(),
                leaving: Vec::new(),
                report: None,
            });
        }
        let Plan { decision, report, .. } = self.dry_run(now, model, wish);
        Ok(shown(model, decision, report))
    }
}

impl Model {
    /// Why its configuration does not allow a wish.
    fn forbids(&self, wish: &Wish) -> Option<String> {
        let bound = &self.spec.gpus;
        let outside = wish.gpus.iter().find(|gpu| !bound.is_empty() && !bound.contains(gpu))?;
        Some(format!("its configuration does not allow the device {outside}"))
    }

    /// Refuses operators who wish for what another configuration has made impossible, before it is planned for them.
    pub(super) fn deny_forbidden(&mut self, out: &mut Vec<Effect>) {
        let forbidden = |(waiter, wish): &(WaiterId, Wish)| Some((*waiter, self.forbids(wish)?));
        for (waiter, why) in self.wishes.iter().filter_map(forbidden).collect::<Vec<_>>() {
            if self.queue.remove(waiter) {
                let denied = Denied::Conflict { model: self.spec.name.clone(), why };
                out.push(Effect::Deny { waiter, denied });
                self.wanted = self.pinned || self.queue.has_operators();
            }
        }
    }

    /// Why a wish cannot be.
    fn contradicts(&self, wish: &Wish) -> Option<String> {
        if let Some(why) = self.forbids(wish) {
            return Some(why);
        }
        let instance = self.instance.as_ref().filter(|i| i.has_served() || i.is_loading())?;
        let elsewhere = instance.placement.gpus.iter().find(|gpu| !wish.gpus.contains(gpu));
        let elsewhere = elsewhere.filter(|_| !wish.gpus.is_empty())?;
        Some(format!("it is {} on {elsewhere}; unload it first", instance.phase()))
    }
}

fn shown(model: &Model, decision: Decision, report: Report) -> Preview {
    let mut preview = Preview {
        outcome: Outcome::Start,
        why: report.to_string(),
        gpus: Vec::new(),
        leaving: Vec::new(),
        report: None,
    };
    match decision {
        Decision::Start(placement) => {
            let bytes = placement.need.bytes;
            let gpus = placement.gpus.into_iter();
            preview.gpus = gpus.map(|gpu| PreviewGpu { gpu, bytes }).collect();
        }
        Decision::Evict(victims) => {
            preview.outcome = Outcome::Evict;
            let asleep = |leave| -> Option<SleepLevel> {
                match leave {
                    Leave::Stop => None,
                    Leave::Sleep { level, .. } => Some(level),
                }
            };
            let leaving = victims.into_iter();
            preview.leaving = leaving
                .map(|v| Leaving { instance: v.instance, asleep: asleep(v.leave) })
                .collect();
        }
        Decision::Wait { why, .. } => {
            preview.outcome = Outcome::Wait;
            preview.why = why;
        }
        Decision::Full(why) => {
            preview.outcome = Outcome::Full;
            preview.why = why;
        }
        Decision::Refuse { largest } => {
            preview.outcome = Outcome::Refuse;
            let (need, devices) = (report.need.bytes, model.spec.gpu_count);
            let (model, report) = (model.spec.name.clone(), Some(Arc::new(report.clone())));
            let never = Denied::NeverFits { model, need, devices, largest, report };
            preview.why = never.to_string();
        }
    }
    preview.report = Some(report);
    preview
}
