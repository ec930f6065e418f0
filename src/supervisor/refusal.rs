//! The part of the core that says no: to those who waited too long, to those for whom there is no room, and to operators who
//! wish for what cannot be.

use std::time::Duration;

use super::effect::{Effect, Heir, Notice};
use super::instance::{Instance, Life, Yield};
use super::state::{Model, State};
use crate::types::{Bytes, Denied, ModelName, Moment, WaiterId};

impl State {
    /// The model that an operator wants loaded, whatever for; `None`: the operator is refused.
    pub(super) fn wished(
        &mut self,
        now: Moment,
        waiter: WaiterId,
        name: &ModelName,
        out: &mut Vec<Effect>,
    ) -> Option<&mut Model> {
        let shutting_down = self.shutdown.is_some();
        let Some(model) = self.resolve(name.as_str()) else {
            let denied = Denied::UnknownModel { model: name.to_string() };
            out.push(Effect::Deny { waiter, denied });
            return None;
        };
        if shutting_down {
            out.push(Effect::Deny { waiter, denied: Denied::ShuttingDown });
            return None;
        }
        // An operator's word overrides the delay after a failure.
        if let Some(failure) = &mut model.failure {
            failure.retry_at = now;
        }
        Some(model)
    }
}

impl Model {
    /// Why a new request is refused at once, if so.
    pub(super) fn refusal(&self, now: Moment) -> Option<Denied> {
        let failure = self.failure.as_ref().filter(|f| f.retry_at > now)?;
        // A failure of the engine that is being replaced is not one of the next.
        if self.instance.is_some() {
            return None;
        }
        Some(Denied::LoadFailed {
            model: self.spec.name.clone(),
            fault: failure.told(),
            retry_after: failure.retry_at.since(now),
        })
    }

    /// Why a request that has waited its time gets nothing.
    pub(super) fn too_long(&self, now: Moment) -> Denied {
        let model = self.spec.name.clone();
        match &self.instance {
            Some(instance) if matches!(instance.life, Life::Waking { .. }) => {
                let retry_after = self.last_wake().unwrap_or_default().max(Duration::from_secs(1));
                Denied::StillLoading { model, phase: instance.phase(), retry_after }
            }
            Some(instance) if instance.is_loading() => {
                let passed = now.since(instance.ordered);
                Denied::loading(model, instance.phase(), self.loads.last(), passed)
            }
            Some(_) | None => {
                let why = self.waiting_for.clone();
                let busy = |i: &Instance| match (&i.life, &i.yields) {
                    (Life::Dozing { .. }, _) => Some("it is falling asleep".to_owned()),
                    (Life::Draining { .. }, Some(Yield { to: Heir::Other(to), .. })) => {
                        Some(format!("it makes way for {to}, whose turn it is"))
                    }
                    (Life::Draining { .. }, Some(Yield { to: Heir::Successor, .. })) => {
                        Some(format!("it waits {}", Self::RENEWAL))
                    }
                    _ => None,
                };
                let why = why.or_else(|| self.instance.as_ref().and_then(busy));
                let why =
                    why.unwrap_or_else(|| "its earlier container is still stopping".to_owned());
                let retry_after = self.loads.last().unwrap_or(Denied::LOAD_GUESS);
                Denied::NoRoom { model, why, report: self.report.clone(), retry_after }
            }
        }
    }

    pub(super) fn wait(&mut self, why: String, out: &mut Vec<Effect>) {
        // Free bytes change at every reading; only the first reason is news.
        if self.waiting_for.is_none() && (self.wanted || !self.queue.is_empty()) {
            let notice = Notice::Waiting { model: self.spec.name.clone(), why: why.clone() };
            out.push(Effect::Notice(notice));
        }
        self.waiting_for = Some(why);
    }

    /// There is no room, and nobody is to wait for it. A pin stays wanted: it is loaded when there is room.
    pub(super) fn turn_away(&mut self, why: &str, out: &mut Vec<Effect>) {
        let denied = self.no_room(why);
        self.deny_all(&denied, out);
    }

    pub(super) fn no_room(&self, why: &str) -> Denied {
        Denied::NoRoom {
            model: self.spec.name.clone(),
            why: why.to_owned(),
            report: self.report.clone(),
            retry_after: self.loads.last().unwrap_or(Denied::LOAD_GUESS),
        }
    }

    /// Refuses the operators alone: it is their wish that cannot be, and not what others ask for.
    pub(super) fn deny_operators(&mut self, denied: &Denied, out: &mut Vec<Effect>) {
        for waiter in self.queue.drain_operators() {
            out.push(Effect::Deny { waiter: waiter.id, denied: denied.clone() });
            self.wanted = self.pinned;
        }
    }

    /// Refuses everybody who waits. Of what operators wished only a pin is left.
    pub(super) fn deny_all(&mut self, denied: &Denied, out: &mut Vec<Effect>) {
        self.discovery.end(denied, out);
        for waiter in self.queue.drain() {
            out.push(Effect::Deny { waiter: waiter.id, denied: denied.clone() });
        }
        // Of one who was answered long ago, too: his load was for use, and nobody would be told what becomes of it.
        self.wanted &= self.pinned;
    }

    pub(super) fn never_fits(&self, need: Bytes, largest: Bytes) -> Denied {
        let model = self.spec.name.clone();
        let (devices, report) = (self.spec.gpu_count, self.report.clone());
        Denied::NeverFits { model, need, devices, largest, report }
    }

    pub(super) fn refuse(&mut self, need: Bytes, largest: Bytes, out: &mut Vec<Effect>) {
        let denied = self.never_fits(need, largest);
        self.waiting_for = Some(denied.to_string());
        self.deny_all(&denied, out);
    }
}
