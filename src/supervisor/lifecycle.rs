//! The part of the core that moves instances: completions of effects, and the decision to stop.

use std::time::Duration;

use super::effect::{Effect, Notice, StopReason};
use super::health::Health;
use super::instance::{Canary, Instance, Life};
use super::measure::Measuring;
use super::ports::{Found, FoundIdentity, Launched};
use super::schedule::Stuck;
use super::state::State;
use crate::plan::{Pace, Sample};
use crate::types::{Fault, FaultCode, GpuId, InstanceId, ModelName, Moment};

/// A stop that failed is tried again after this.
const STOP_RETRY_DELAY: Duration = Duration::from_secs(5);
/// An engine that has served so long has earned a new count of failures.
pub(super) const FORGIVEN_AFTER: Duration = Duration::from_secs(60);

/// Whether what the engine wrote last is to be looked at before its log goes with its container.
pub(super) fn lacks_log(fault: Option<&Fault>) -> bool {
    fault.is_some_and(|fault| fault.log_tail.is_empty())
}

impl State {
    pub(super) fn launched(&mut self, id: &InstanceId, launched: Launched, out: &mut Vec<Effect>) {
        let model = self.models.get_mut(&id.model);
        let known = model.map(|m| (&mut m.known, m.instance.as_mut().filter(|i| i.id == *id)));
        let Some((known, Some(instance))) = known else {
            // Of an earlier incarnation that is already written off: it must not live on.
            out.push(Effect::Stop { instance: id.clone(), tail: false });
            return;
        };
        // Of an older configuration it says nothing of what comes.
        if known.is_of(instance) {
            known.image_id = Some(launched.image_id.clone()).filter(|image| !image.is_empty());
        }
        match &instance.life {
            Life::Starting { deadline } => {
                instance.life = Life::Loading { deadline: *deadline };
                instance.launched = Some(launched.clone());
                let (instance, spec) = (id.clone(), instance.spec.clone());
                out.push(Effect::Notice(Notice::Loading { instance: instance.clone() }));
                out.push(Effect::AwaitReady { instance, spec, launched });
            }
            Life::Pulling { .. } => {
                // Its place is given to others: it must not stay.
                instance.launched = Some(launched);
                self.begin_stop(id, None, out);
            }
            Life::Abandoned { fault } => {
                let fault = fault.clone();
                instance.launched = Some(launched);
                self.begin_stop(id, fault, out);
            }
            Life::Loading { .. }
            | Life::Ready
            | Life::Dozing { .. }
            | Life::Asleep { .. }
            | Life::Waking { .. }
            | Life::Draining { .. }
            | Life::Stopping { .. } => {}
        }
    }

    pub(super) fn launch_failed(
        &mut self,
        now: Moment,
        id: &InstanceId,
        fault: Fault,
        out: &mut Vec<Effect>,
    ) {
        let Some(instance) = self.instance_mut(id) else { return };
        let left_behind = fault.left_behind;
        let replan = matches!(fault.code, FaultCode::ImageChanged | FaultCode::ImagePulled);
        if replan && matches!(instance.life, Life::Pulling { .. } | Life::Starting { .. }) {
            let seen = fault.code == FaultCode::ImagePulled;
            self.plan_again(id, fault.code, seen, out);
            return;
        }
        let fault = match &instance.life {
            // Nobody wants it any more: that it failed is not worth a delay.
            Life::Abandoned { fault: earlier } => earlier.clone(),
            Life::Pulling { .. } | Life::Starting { .. } => Some(fault),
            Life::Loading { .. }
            | Life::Ready
            | Life::Dozing { .. }
            | Life::Asleep { .. }
            | Life::Waking { .. }
            | Life::Draining { .. }
            | Life::Stopping { .. } => return,
        };
        self.finish(now, id, fault, false, out);
        if left_behind {
            // As one of an earlier daemon: charged, gated and stopped until it is gone, and no successor starts before.
            self.ledger.release(id);
            out.push(Effect::Stop { instance: id.clone(), tail: false });
            self.orphans.insert(id.clone(), None);
        }
    }

    pub(super) fn healthy(&mut self, now: Moment, id: &InstanceId, out: &mut Vec<Effect>) {
        let Some(model) = self.models.get_mut(&id.model) else { return };
        let Some(instance) = model.instance.as_mut().filter(|i| i.id == *id) else { return };
        let asked = matches!(instance.canary, Canary::Asked { .. });
        if !matches!(instance.life, Life::Loading { .. }) || asked {
            return;
        }
        let unasked = matches!(instance.canary, Canary::None | Canary::Silent);
        if instance.spec.sleep_level.is_some() && unasked {
            self.ask_canary(now, id, out);
            return;
        }
        instance.life = Life::Ready;
        instance.last_used = now;
        instance.ready_since = Some(now);
        instance.measuring.ready(now);
        instance.health = Health::begin(now, instance.spec.health_interval);
        let took = now.since(instance.ordered);
        // One of an older configuration says nothing of those to come.
        if let Some(began) = instance.load_began.filter(|_| model.known.is_of(instance)) {
            model.demand.loaded(now.since(began));
            model.loads.record(now.since(began));
            model.last_load = Some(took);
        }
        model.waiting_for = None;
        let load_ms =
            instance.load_began.map(|_| u64::try_from(took.as_millis()).unwrap_or(u64::MAX));
        out.push(Effect::Notice(Notice::Ready { instance: id.clone(), load_ms }));
        self.ledger.confirm(id);
        self.judge_devices(now, id);
        self.note_loads(&id.model, out);
        out.push(Effect::Observe);
    }

    pub(super) fn died(&mut self, id: &InstanceId, fault: Fault, out: &mut Vec<Effect>) {
        let Some(instance) = self.instance_mut(id) else { return };
        match instance.life {
            Life::Loading { .. } | Life::Ready | Life::Asleep { .. } | Life::Draining { .. } => {
                self.begin_stop(id, Some(fault), out);
            }
            Life::Dozing { .. } => self.sleep_failed(id, fault.to_string(), out),
            Life::Waking { .. } => self.wake_failed(id, fault.to_string(), false, out),
            Life::Pulling { .. }
            | Life::Starting { .. }
            | Life::Abandoned { .. }
            | Life::Stopping { .. } => {}
        }
    }

    pub(super) fn stopped(
        &mut self,
        now: Moment,
        id: &InstanceId,
        result: Result<(), Fault>,
        out: &mut Vec<Effect>,
    ) {
        match result {
            Ok(()) => {
                self.stuck.remove(id);
                self.note_stuck(now);
                self.running_orphans.remove(id);
                if self.orphans.remove(id).is_some() {
                    self.ledger.gone(id, now);
                    out.push(Effect::Notice(Notice::Stopped { instance: id.clone() }));
                    out.push(Effect::Observe);
                    return;
                }
                let Some(instance) = self.instance_mut(id) else { return };
                if let Life::Stopping { fault, was_ready, .. } = instance.life.clone() {
                    self.finish(now, id, fault, was_ready, out);
                }
            }
            Err(fault) => {
                let again = now + STOP_RETRY_DELAY;
                if let Some(retry_at) = self.orphans.get_mut(id) {
                    *retry_at = Some(again);
                } else if let Some(Life::Stopping { retry_at, .. }) =
                    self.instance_mut(id).map(|i| &mut i.life)
                {
                    *retry_at = Some(again);
                } else {
                    return;
                }
                self.ledger.stuck(id, now);
                let message = format!("{id} could not be stopped, retrying: {fault}");
                let away = fault.code == FaultCode::PodmanUnreachable;
                self.stuck.insert(id.clone(), Stuck { message, away });
                self.note_stuck(now);
                out.push(Effect::Notice(Notice::StopFailed { instance: id.clone(), fault }));
                if away && self.shutdown.is_some() {
                    // Nobody may be there to be asked again: the kernel decides.
                    out.push(Effect::Observe);
                }
            }
        }
    }

    fn note_stuck(&mut self, now: Moment) {
        let messages = self.stuck.values().map(|stuck| stuck.message.clone()).collect();
        self.note("stop_failed", now, messages);
    }

    /// Asks an instance to go: at once if nothing runs on it, else when nothing runs any more.
    pub(super) fn dismiss(&mut self, name: &ModelName, reason: StopReason, out: &mut Vec<Effect>) {
        let Some(instance) = self.models.get_mut(name).and_then(|m| m.instance.as_mut()) else {
            return;
        };
        let id = instance.id.clone();
        match instance.life {
            // Nothing of it is there yet, and nothing is left to wait for. The pull may go on, and its end is of nobody.
            Life::Pulling { .. } => {
                self.forget(&id, false);
                out.push(Effect::Notice(Notice::Stopping { instance: id.clone(), reason }));
                out.push(Effect::Notice(Notice::Stopped { instance: id }));
                return;
            }
            Life::Starting { .. } => instance.life = Life::Abandoned { fault: None },
            Life::Ready if instance.in_flight > 0 => {
                instance.life = Life::Draining { reason, until: None };
                return;
            }
            Life::Loading { .. }
            | Life::Ready
            | Life::Dozing { .. }
            | Life::Asleep { .. }
            | Life::Waking { .. } => self.begin_stop(&id, None, out),
            Life::Draining { until, .. } => {
                // It goes for this now, and not only as long as another waits for its place.
                if instance.yields.take().is_some() {
                    instance.life = Life::Draining { reason, until };
                }
                return;
            }
            Life::Abandoned { .. } | Life::Stopping { .. } => return,
        }
        out.push(Effect::Notice(Notice::Stopping { instance: id, reason }));
    }

    /// The one place where a running container is ordered to stop.
    pub(super) fn begin_stop(
        &mut self,
        id: &InstanceId,
        fault: Option<Fault>,
        out: &mut Vec<Effect>,
    ) {
        let Some(instance) = self.instance_mut(id) else { return };
        let was_ready = instance.has_served();
        let tail = lacks_log(fault.as_ref());
        instance.life = Life::Stopping { fault, was_ready, retry_at: None };
        self.ledger.release(id);
        out.push(Effect::Stop { instance: id.clone(), tail });
    }

    /// What one that is being stopped wrote last. Its fault may know already.
    pub(super) fn wrote(&mut self, id: &InstanceId, log: Vec<String>) {
        let life = self.instance_mut(id).map(|i| &mut i.life);
        if let Some(Life::Stopping { fault: Some(fault), .. }) = life
            && fault.log_tail.is_empty()
        {
            *fault = fault.clone().with_log(log);
        }
    }

    /// Nothing of the instance is left.
    pub(super) fn finish(
        &mut self,
        now: Moment,
        id: &InstanceId,
        fault: Option<Fault>,
        was_ready: bool,
        out: &mut Vec<Effect>,
    ) {
        self.ledger.gone(id, now);
        out.push(Effect::Observe);
        let rules = self.settings.health;
        let Some(model) = self.models.get_mut(&id.model) else { return };
        let Some(instance) = model.instance.take() else { return };
        match fault {
            None => {
                model.failure = None;
                out.push(Effect::Notice(Notice::Stopped { instance: id.clone() }));
            }
            Some(fault) => model.fail((now, rules), &instance, fault, was_ready, out),
        }
    }

    /// Decides about what an earlier daemon left on the host: what fits the configuration is adopted, the rest goes.
    pub(super) fn take_over(&mut self, now: Moment, found: Vec<Found>, out: &mut Vec<Effect>) {
        self.surveyed = true;
        self.discover_later(now);
        let mut running: Vec<(FoundIdentity, Launched)> = Vec::new();
        for item in found {
            match (item.identity, item.running) {
                (Some(identity), running_at) => {
                    self.raise_generation(identity.instance.generation);
                    match running_at {
                        Some(launched) => running.push((identity, launched)),
                        None => self.orphan(identity.instance, out),
                    }
                }
                (None, _) => out.push(Effect::Reap { container: item.container }),
            }
        }
        // Of two containers of one model the later one is kept.
        running.sort_by_key(|(identity, _)| std::cmp::Reverse(identity.instance.generation));
        for (identity, launched) in running {
            let id = identity.instance.clone();
            self.ledger.reserve(id.clone(), &identity.placement);
            if self.may_adopt(&identity) {
                self.adopt(now, identity, launched, out);
            } else {
                self.ledger.release(&id);
                self.running_orphans.insert(id.clone(), launched);
                self.orphan(id, out);
            }
        }
    }

    fn may_adopt(&self, found: &FoundIdentity) -> bool {
        let Some(model) = self.models.get(&found.instance.model) else { return false };
        // Devices are no part of the hash: whatever of them is still allowed can be kept.
        let allowed = |gpu: &GpuId| {
            let bound = &model.spec.gpus;
            (bound.is_empty() || bound.contains(gpu)) && !self.ledger.excludes(gpu)
        };
        model.instance.is_none()
            && model.spec.spec_hash() == found.spec_hash
            && found.placement.gpus.iter().all(allowed)
    }

    fn adopt(
        &mut self,
        now: Moment,
        identity: FoundIdentity,
        launched: Launched,
        out: &mut Vec<Effect>,
    ) {
        let id = identity.instance;
        let Some(model) = self.models.get_mut(&id.model) else { return };
        let spec = model.spec.clone();
        model.known.image_id = Some(launched.image_id.clone()).filter(|id| !id.is_empty());
        let pace = Pace::new(now, None, spec.load_timeout);
        let measuring = Measuring::new(&model.known, Sample::new());
        model.instance = Some(Instance {
            life: Life::Loading { deadline: now + spec.load_timeout },
            launched: Some(launched.clone()),
            load_began: None,
            begun: true,
            used: true,
            ..Instance::ordered(id.clone(), spec.clone(), identity.placement, pace, measuring, now)
        });
        out.push(Effect::Notice(Notice::Adopted { instance: id.clone() }));
        out.push(Effect::AwaitReady { instance: id, spec, launched });
    }

    pub(super) fn orphan(&mut self, id: InstanceId, out: &mut Vec<Effect>) {
        let reason = StopReason::Orphaned;
        out.push(Effect::Notice(Notice::Stopping { instance: id.clone(), reason }));
        out.push(Effect::Stop { instance: id.clone(), tail: false });
        self.orphans.insert(id, None);
    }
}
