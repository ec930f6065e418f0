//! The part of the core that loads models only to measure them: because an operator asks, or because nobody needs the
//! devices. Discovery never disrupts: an operator's makes room as any start does, by idle models alone; the background's
//! makes none, and what it loads leaves at once for whoever asks for the room.

use std::time::Duration;

use super::effect::{Effect, Heir, Notice, StopReason};
use super::instance::{Instance, Life};
use super::state::{Model, State};
use crate::plan::Claims;
use crate::types::{
    Denied, GpuId, Hours, InstanceId, ModelName, Moment, Report, Verdict, WaiterId,
};

/// Between two that the background picks: the first may have found no room.
const PAUSE: Duration = Duration::from_secs(1);
/// Why one that is pinned is not measured.
const FILES_OF_BEFORE: &str =
    "its engine was started before its files changed, and it is pinned: unload it first";

/// Who wants to know what a model needs.
#[derive(Debug, Default)]
pub(super) struct Discovery {
    /// Operators, each with the time of the wish, in the order of these.
    pub(super) waiters: Vec<(WaiterId, Moment)>,
    /// When it had to leave before it was measured: it has had a turn, and waits for its next one since then. Only while an
    /// operator waits.
    pub(super) evicted: Option<Moment>,
    /// The daemon itself.
    pub(super) background: bool,
    /// It was tried in the background; once is enough, for what fails will fail again.
    pub(super) tried: bool,
    /// It is measured and goes, unless somebody uses it, as soon as that disturbs nobody's start.
    pub(super) over: bool,
}

impl Discovery {
    pub(super) fn is_wanted(&self) -> bool {
        self.background || !self.waiters.is_empty()
    }

    /// An operator has left; whether it was one who waits for this. A turn that nobody waits for is none: it would keep the model
    /// from being evicted for good.
    pub(super) fn take_back(&mut self, waiter: WaiterId) -> bool {
        let before = self.waiters.len();
        self.waiters.retain(|(w, _)| *w != waiter);
        self.evicted = self.evicted.filter(|_| !self.waiters.is_empty());
        before != self.waiters.len()
    }

    /// There is no room for what nobody asked for.
    pub(super) fn give_up(&mut self) {
        self.background = false;
        self.tried = true;
    }

    /// It will not be measured: everybody who waits is told.
    pub(super) fn end(&mut self, denied: &Denied, out: &mut Vec<Effect>) {
        self.tried |= self.background;
        self.background = false;
        self.evicted = None;
        for (waiter, _) in self.waiters.drain(..) {
            out.push(Effect::Deny { waiter, denied: denied.clone() });
        }
    }
}

impl Model {
    /// Somebody beside the background's discovery wants it.
    pub(super) fn is_asked_for(&self) -> bool {
        self.wanted || !self.queue.is_empty() || !self.discovery.waiters.is_empty()
    }

    /// Anybody wants it.
    pub(super) fn is_demanded(&self) -> bool {
        self.is_asked_for() || self.discovery.background
    }

    /// Since when somebody has asked for it; `None`: nobody does, or only a pin.
    pub(super) fn asked_since(&self) -> Option<Moment> {
        let first = self.discovery.waiters.first().map(|(_, since)| *since);
        let measured = first.map(|since| self.discovery.evicted.unwrap_or(since));
        self.queue.oldest().into_iter().chain(measured).min()
    }
}

impl State {
    /// Whether what the clock on the wall shows changes anything.
    pub(super) fn asks_the_hour(&self) -> bool {
        self.settings.measure_hours != Hours::ALL
    }

    /// An operator wants a model measured.
    pub(super) fn measure_on_demand(
        &mut self,
        now: Moment,
        waiter: WaiterId,
        name: &ModelName,
        out: &mut Vec<Effect>,
    ) {
        if let Some(model) = self.wished(now, waiter, name, out) {
            model.discovery.waiters.push((waiter, now));
        }
    }

    /// Answers those whose model is measured now, or cannot be; lets it go where nobody else used it. One that runs with the
    /// files of before goes when it is idle, for the next one to be measured.
    pub(super) fn finish_discoveries(&mut self, out: &mut Vec<Effect>) {
        let mut idle = Vec::new();
        for model in self.models.values_mut().filter(|m| m.discovery.is_wanted()) {
            let Some(instance) = model.instance.as_ref().filter(|i| i.is_ready()) else { continue };
            if !model.known.is_of(instance) {
                // One that is configured otherwise is replaced in any case.
                if instance.outdated.is_none() && !model.pinned {
                    idle.push((model.spec.name.clone(), StopReason::Reconfigured));
                } else if instance.outdated.is_none() {
                    let (name, why) = (model.spec.name.clone(), FILES_OF_BEFORE.to_owned());
                    model.discovery.end(&Denied::Unmeasurable { model: name, why }, out);
                }
                continue;
            }
            match instance.measuring.outcome() {
                None => continue,
                Some(Ok(())) => {
                    let done = |(waiter, _)| Effect::Done { waiter };
                    out.extend(model.discovery.waiters.drain(..).map(done));
                    model.discovery.background = false;
                    model.discovery.evicted = None;
                }
                Some(Err(why)) => {
                    let (name, why) = (model.spec.name.clone(), why.to_owned());
                    model.discovery.end(&Denied::Unmeasurable { model: name, why }, out);
                }
            }
            model.discovery.over = true;
        }
        if self.podman_away() {
            return;
        }
        let profiled = self.profiled();
        // Nothing can be learned of what its files are now from an engine that has read others.
        idle.retain(|(name, _)| {
            let model = self.models.get(name).filter(|m| m.queue.is_empty());
            let instance = model.and_then(|m| m.instance.as_ref());
            instance.is_some_and(|i| i.in_flight == 0 && !i.disturbs(&profiled))
        });
        for model in self.models.values_mut().filter(|m| m.discovery.over) {
            let instance = model.instance.as_ref().filter(|i| i.is_ready() && !i.used);
            let unused = !model.pinned && !model.wanted && model.queue.is_empty();
            let instance = instance.filter(|_| unused);
            model.discovery.over = instance.is_some_and(|i| i.disturbs(&profiled));
            if instance.is_some() && !model.discovery.over {
                idle.push((model.spec.name.clone(), StopReason::Measured));
            }
        }
        for (name, reason) in idle {
            self.dismiss(&name, reason, out);
        }
    }

    /// Somebody waits for room: who is on its devices only because the background wants to know what it needs goes at once, and
    /// has its turn when the host has been quiet again. These are they. Where a place is claimed already it is for those
    /// devices that it waits, and not for those that are too small; nobody makes room while it is not known what there is.
    ///
    /// A pin that finds no room is no reason: it may wait for ever, and nothing would be measured until then.
    pub(super) fn in_background(
        &self,
        to: &ModelName,
        (report, claim): (&Report, &Claims),
    ) -> Vec<InstanceId> {
        let asked = self.models.get(to).is_some_and(|model| model.asked_since().is_some());
        if !asked || self.ledger.stale().is_some() || self.podman_away() {
            return Vec::new();
        }
        let fits = |gpu: &GpuId| {
            report.devices.iter().any(|d| d.gpu == *gpu && d.verdict != Verdict::TooSmall)
        };
        let here = |gpu| if claim.is_empty() { fits(gpu) } else { claim.touch(gpu) };
        let only_measured = |m: &&Model| m.discovery.background && !m.pinned && !m.is_asked_for();
        let models = self.models.values().filter(only_measured);
        let profiled = self.profiled();
        let going = models.filter_map(|m| m.instance.as_ref()).filter(|i| {
            // What is pulled is on no device.
            let holds =
                matches!(i.life, Life::Starting { .. } | Life::Loading { .. } | Life::Ready);
            holds && !i.used && !i.disturbs(&profiled) && i.placement.gpus.iter().any(here)
        });
        going.map(|i| i.id.clone()).collect()
    }

    /// They go.
    pub(super) fn end_background(
        &mut self,
        now: Moment,
        to: &ModelName,
        going: &[InstanceId],
        out: &mut Vec<Effect>,
    ) {
        for instance in going {
            let name = &instance.model;
            self.put_off(now, name);
            let (instance, to) = (instance.clone(), Heir::Other(to.clone()));
            out.push(Effect::Notice(Notice::Yielding { instance, to, busy: false }));
            self.dismiss(name, StopReason::Measured, out);
        }
    }

    /// A model leaves for others, and comes back for who asks for it then. If only the background wanted it, it has its turn when the
    /// host has been quiet again: it would come back at once otherwise, or be taken for one that never finds room.
    pub(super) fn put_off(&mut self, now: Moment, name: &ModelName) {
        let Some(model) = self.models.get_mut(name) else { return };
        model.wanted = false;
        if model.discovery.background && !model.is_asked_for() {
            model.discovery.background = false;
            self.discover_later(now);
        }
    }

    /// Picks the next model to measure when the host has been quiet for long enough; whether there is one.
    pub(super) fn discover(&mut self, now: Moment) -> bool {
        if self.discovery_at().is_none_or(|at| at > now) {
            return false;
        }
        let next = self.unmeasured().map(|m| m.spec.name.clone()).next();
        let Some(model) = next.and_then(|name| self.models.get_mut(&name)) else { return false };
        model.discovery.background = true;
        self.discover_from = now + PAUSE;
        true
    }

    /// The daemon has come up, or somebody has asked for room: the host has been quiet since then at the longest.
    pub(super) fn discover_later(&mut self, now: Moment) {
        self.discover_from = now + self.settings.measure_after.unwrap_or_default();
    }

    /// When that will be, if nothing happens; `None`: not as things are, or not at this hour.
    pub(super) fn discovery_at(&self) -> Option<Moment> {
        let after = self.settings.measure_after?;
        let its_hour = |now| self.settings.measure_hours.contain(now);
        if self.asks_the_hour() && !self.local_time.is_some_and(its_hour) {
            return None;
        }
        let busy = |m: &Model| {
            let settled = |i: &Instance| i.is_asleep() || (i.is_ready() && i.in_flight == 0);
            !m.queue.is_empty()
                || m.discovery.is_wanted()
                || !m.instance.as_ref().is_none_or(settled)
        };
        let settled = self.ledger.stale().is_none() && !self.ledger.rows().iter().any(|r| r.gated);
        let here = self.surveyed && !self.podman_away();
        let quiet = here && self.shutdown.is_none() && settled;
        if !quiet || self.models.values().any(busy) || self.unmeasured().next().is_none() {
            return None;
        }
        let last = self.models.values().filter_map(|m| m.last_used).max();
        Some(last.map_or(self.discover_from, |last| self.discover_from.max(last + after)))
    }

    /// Models that could be measured and are not. One whose image is not here is not pulled for it.
    fn unmeasured(&self) -> impl Iterator<Item = &Model> {
        self.models.values().filter(|m| {
            let possible =
                m.instance.is_none() && m.failure.is_none() && m.known.image_id.is_some();
            possible && !m.discovery.tried && self.measured_need(m).is_none()
        })
    }
}
