//! The part of the core that looks at the whole: who may start, who has waited long enough, who is idle, what is next.
//! Runs after every event, so that no event needs to know what it makes possible.

use std::collections::BTreeMap;
use std::time::Duration;

use super::effect::{Effect, Notice, StopReason};
use super::instance::{Instance, Life};
use super::lifecycle::lacks_log;
use super::queue::Purpose;
use super::state::{Model, Shutdown, State};
use crate::plan::{self, Usage};
use crate::types::{GpuId, InstanceId, ModelName, Moment};

/// How long after the end of the drain a shutdown still waits for podman, at the least.
const STOP_GRACE: Duration = Duration::from_secs(45);
/// How long after an engine's own time to stop podman may take to end it.
const STOP_MARGIN: Duration = Duration::from_secs(15);

/// A stop that failed.
#[derive(Clone, Debug)]
pub(super) struct Stuck {
    /// For people.
    pub(super) message: String,
    /// podman was not there to be asked.
    pub(super) away: bool,
}

impl State {
    pub(super) fn schedule(&mut self, now: Moment, out: &mut Vec<Effect>) {
        self.expire(now, out);
        self.fail_late_loads(now, out);
        self.stop_late_sleepers(now, out);
        self.retry_stops(now, out);
        self.replace_changed(now, out);
        self.reprieve(now, out);
        self.renew_busy(now, out);
        self.check_health(now, out);
        self.finish_drains(now, out);
        self.finish_discoveries(out);
        self.serve_ready(now, out);
        // Before anybody starts or wakes: what was waited for is so now, and may not be a moment later.
        self.finish_unloads(out);
        self.finish_sleeps(out);
        self.start_wanted(now, out);
        // Last, for one that sleeps may just have lost those who wanted it awake.
        self.unload_idle(now, out);
        if self.discover(now) {
            self.start_wanted(now, out);
        }
        self.note_breakers(now);
        self.save_again(now, out);
        self.finish_shutdown(now, out);
    }

    /// When something is due without any event.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Moment> {
        let (renew_after, profiled) = (self.renew_after(), self.profiled());
        let may_idle = !self.podman_away();
        let models = self.models.values().flat_map(|model| {
            let instance = model.instance.as_ref();
            let demand = model.is_demanded();
            let retry = model.failure.as_ref().map(|f| f.retry_at);
            [
                model.queue.next_deadline(),
                instance.and_then(Instance::load_deadline),
                instance.and_then(Instance::sleep_deadline),
                instance.and_then(Instance::check_at),
                instance.and_then(Instance::drained_at),
                instance.and_then(|i| i.spared_at(self.settings.max_wait)),
                instance.and_then(|i| i.rests_until),
                model.renewal_at(renew_after, &profiled),
                instance
                    .filter(|i| may_idle && !i.disturbs(&profiled))
                    .and_then(|i| idle_at(model, i)),
                instance.and_then(Instance::stop_retry_at),
                // Once it is over, it is room that the model waits for.
                retry.filter(|_| demand && instance.is_none() && model.waiting_for.is_none()),
                model.plan_at,
            ]
        });
        let shutdown = self.shutdown.filter(|_| !self.exited);
        let shutdown = shutdown.map(|s| if s.cut { self.gives_up_at(s) } else { s.deadline });
        let orphans = self.orphans.values().copied();
        models.chain(orphans).chain([shutdown, self.discovery_at(), self.save_at]).flatten().min()
    }

    fn expire(&mut self, now: Moment, out: &mut Vec<Effect>) {
        for model in self.models.values_mut() {
            for waiter in model.queue.expire(now) {
                let denied = model.too_long(now);
                out.push(Effect::Deny { waiter: waiter.id, denied });
            }
        }
    }

    fn fail_late_loads(&mut self, now: Moment, out: &mut Vec<Effect>) {
        let late = |i: &&mut Instance| i.load_deadline().is_some_and(|d| d <= now);
        let instances = self.models.values_mut().filter_map(|m| m.instance.as_mut());
        let mut stop = Vec::new();
        for instance in instances.filter(late) {
            let fault = instance.too_slow();
            if matches!(instance.life, Life::Starting { .. }) {
                instance.life = Life::Abandoned { fault: Some(fault) };
            } else {
                stop.push((instance.id.clone(), fault));
            }
        }
        for (id, fault) in stop {
            self.begin_stop(&id, Some(fault), out);
        }
    }

    fn retry_stops(&mut self, now: Moment, out: &mut Vec<Effect>) {
        let instances = self.models.values_mut().filter_map(|m| m.instance.as_mut());
        let stopping = instances.filter_map(|i| match &mut i.life {
            Life::Stopping { retry_at, fault, .. } => {
                Some((&i.id, retry_at, lacks_log(fault.as_ref())))
            }
            Life::Pulling { .. }
            | Life::Starting { .. }
            | Life::Loading { .. }
            | Life::Ready
            | Life::Dozing { .. }
            | Life::Asleep { .. }
            | Life::Waking { .. }
            | Life::Draining { .. }
            | Life::Abandoned { .. } => None,
        });
        let orphans = self.orphans.iter_mut().map(|(id, retry_at)| (id, retry_at, false));
        for (id, retry_at, tail) in stopping.chain(orphans) {
            if retry_at.is_some_and(|at| at <= now) {
                *retry_at = None;
                out.push(Effect::Stop { instance: id.clone(), tail });
            }
        }
    }

    /// Those on which nothing runs any more go, and those whose time is over. Who makes way does not beside a load that it would
    /// disturb: it takes no new requests, and goes when that is over.
    fn finish_drains(&mut self, now: Moment, out: &mut Vec<Effect>) {
        let limit = now + self.settings.drain_timeout;
        // Looked at again then, and not at once.
        let later = limit.max(now + Duration::from_secs(1));
        let profiled = self.profiled();
        let stays = |i: &Instance| i.yields.is_some() && i.disturbs(&profiled);
        for instance in self.models.values_mut().filter_map(|m| m.instance.as_mut()) {
            // Whoever makes way for another in turn is not cut off.
            let cut = instance.yields.as_ref().is_none_or(|y| y.cut);
            let stays = stays(instance);
            if let Life::Draining { until, .. } = &mut instance.life
                && cut
            {
                let due = if stays { later } else { limit };
                *until = until.filter(|at| !stays || *at > now).or(Some(due));
            }
        }
        let instances = self.models.values().filter_map(|m| m.instance.as_ref());
        let drained = instances.filter_map(|i| match i.life {
            Life::Draining { reason, until }
                if !stays(i) && (i.in_flight == 0 || until.is_some_and(|at| at <= now)) =>
            {
                Some((i.id.clone(), reason, i.in_flight > 0))
            }
            Life::Pulling { .. }
            | Life::Starting { .. }
            | Life::Loading { .. }
            | Life::Ready
            | Life::Dozing { .. }
            | Life::Asleep { .. }
            | Life::Waking { .. }
            | Life::Draining { .. }
            | Life::Abandoned { .. }
            | Life::Stopping { .. } => None,
        });
        for (instance, reason, cut) in drained.collect::<Vec<_>>() {
            if !cut && self.falls_asleep_in_turn(now, &instance, reason, out) {
                continue;
            }
            self.begin_stop(&instance, None, out);
            out.push(Effect::Notice(Notice::Stopping { instance, reason }));
        }
    }

    fn unload_idle(&mut self, now: Moment, out: &mut Vec<Effect>) {
        if self.podman_away() {
            return;
        }
        let profiled = self.profiled();
        let idle = |m: &&Model| {
            let instance = m.instance.as_ref().filter(|i| !i.disturbs(&profiled));
            m.queue.is_empty() && instance.and_then(|i| idle_at(m, i)).is_some_and(|at| at <= now)
        };
        let names: Vec<ModelName> =
            self.models.values().filter(idle).map(|m| m.spec.name.clone()).collect();
        for name in names {
            if let Some(model) = self.models.get_mut(&name) {
                // An operator's load was for use, not for ever; a pin is for ever.
                model.wanted = false;
            }
            let instance = self.models.get(&name).and_then(|m| m.instance.as_ref());
            let Some(id) = instance.map(|i| i.id.clone()) else { continue };
            let leave = plan::idle_leave(self.settings.rules.sleep, &self.holders(None), &id);
            self.leave(now, &name, leave, StopReason::Idle, out);
        }
    }

    fn serve_ready(&mut self, now: Moment, out: &mut Vec<Effect>) {
        if self.shutdown.is_some() {
            return;
        }
        for model in self.models.values_mut() {
            let Some(instance) = model.instance.as_mut().filter(|i| i.is_ready()) else { continue };
            let Some(launched) = &instance.launched else { continue };
            for waiter in model.queue.drain() {
                // An operator's wish counts as use: what was just asked for does not idle out at once.
                instance.last_used = now;
                instance.used = true;
                match waiter.purpose {
                    Purpose::Ready { pin } => {
                        model.pinned |= pin;
                        out.push(Effect::Done { waiter: waiter.id });
                    }
                    Purpose::Lease { .. } => {
                        instance.in_flight += 1;
                        model.last_used = Some(now);
                        model.demand.used(now);
                        out.push(Effect::Grant {
                            waiter: waiter.id,
                            instance: instance.id.clone(),
                            endpoint: launched.endpoint.clone(),
                        });
                    }
                }
            }
        }
    }

    /// An unload is done when nothing is left to unload.
    fn finish_unloads(&mut self, out: &mut Vec<Effect>) {
        let orphans = &self.orphans;
        let left = |name: &ModelName| orphans.keys().any(|id| id.model == *name);
        let gone = |m: &&mut Model| m.instance.is_none() && !left(&m.spec.name);
        for model in self.models.values_mut().filter(gone) {
            for waiter in model.unloading.drain(..) {
                out.push(Effect::Done { waiter });
            }
        }
    }

    fn finish_shutdown(&mut self, now: Moment, out: &mut Vec<Effect>) {
        let Some(shutdown) = self.shutdown else { return };
        if self.exited {
            return;
        }
        let over = shutdown.deadline <= now;
        if shutdown.keep {
            // One that is being stopped runs on for a while: the next daemon would take it for one to keep, and send it requests. One that
            // has no container that runs yet would be nothing for the next daemon, and its load would begin anew.
            let moves = |i: &Instance| {
                matches!(
                    i.life,
                    Life::Starting { .. }
                        | Life::Abandoned { .. }
                        | Life::Stopping { retry_at: None, .. }
                )
            };
            let busy = |i: &Instance| i.in_flight > 0 || moves(i);
            let instances = self.models.values().filter_map(|m| m.instance.as_ref());
            self.exited = over || !instances.into_iter().any(busy);
        } else {
            if over && !shutdown.cut {
                self.shutdown = Some(Shutdown { cut: true, ..shutdown });
                let instances = self.models.values().filter_map(|m| m.instance.as_ref());
                let draining: Vec<InstanceId> = instances
                    .filter(|i| matches!(i.life, Life::Draining { .. }))
                    .map(|i| i.id.clone())
                    .collect();
                for id in draining {
                    self.begin_stop(&id, None, out);
                }
            }
            let empty = self.models.values().all(|m| m.instance.is_none());
            let late = self.gives_up_at(shutdown) <= now;
            self.exited = late || (empty && self.orphans.is_empty());
        }
        if self.exited {
            out.push(Effect::Exit);
        }
    }
}

impl State {
    /// In a shutdown podman may go first, as where the host goes down, and then no stop ends well any more. An engine of which the kernel
    /// has no process is over all the same; what podman still has of it the next daemon finds.
    pub(super) fn outlive_podman(
        &mut self,
        now: Moment,
        usage: &BTreeMap<InstanceId, Usage>,
        out: &mut Vec<Effect>,
    ) {
        if self.shutdown.is_none_or(|s| s.keep) {
            return;
        }
        let dead = |id: &&InstanceId| usage.get(*id).is_some_and(|usage| usage.pids.is_empty());
        let away = self.stuck.iter().filter(|(_, stuck)| stuck.away).map(|(id, _)| id);
        for id in away.filter(dead).cloned().collect::<Vec<_>>() {
            self.stopped(now, &id, Ok(()), out);
        }
    }

    /// Devices on which an engine starts that takes what others give back there meanwhile for its own, or fails of it: nobody who is
    /// there is made to leave before it is ready, but by a person's word or by its own end. Every load ends.
    pub(super) fn profiled(&self) -> Vec<GpuId> {
        let instances = self.models.values().filter_map(|m| m.instance.as_ref());
        let starting = instances.filter(|i| {
            let loads = matches!(i.life, Life::Starting { .. } | Life::Loading { .. });
            loads && i.spec.engine.profiles_device()
        });
        let gpus = starting.flat_map(|i| &i.placement.gpus);
        gpus.filter(|gpu| !gpu.is_host()).cloned().collect()
    }

    /// When a shutdown no longer waits for engines to end. Each has the time to stop that it was given.
    fn gives_up_at(&self, shutdown: Shutdown) -> Moment {
        let instances = self.models.values().filter_map(|m| m.instance.as_ref());
        let longest = instances.map(|i| i.spec.stop_timeout + STOP_MARGIN).max();
        shutdown.deadline + longest.unwrap_or_default().max(STOP_GRACE)
    }
}

/// When an instance has been unused for its idle time-out, or has slept for its own.
fn idle_at(model: &Model, instance: &Instance) -> Option<Moment> {
    if let Life::Asleep { since, .. } = instance.life {
        // A pin is for ever, also in a shutdown that keeps the models, which ends all demand.
        let kept = model.pinned || model.is_demanded();
        let timeout = model.spec.sleep_timeout.filter(|_| !kept)?;
        return Some(since + timeout);
    }
    let measured = !model.discovery.is_wanted();
    let usable = instance.is_ready() && instance.in_flight == 0 && !model.pinned && measured;
    let timeout = model.spec.idle_timeout.filter(|_| usable)?;
    Some(instance.last_used + timeout)
}
