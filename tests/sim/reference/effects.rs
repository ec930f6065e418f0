//! What the core says, and whether it may.

use std::collections::BTreeSet;

use hostler::types::{Denied, GpuId, InstanceId, ModelName, Moment, OnFull, SpecHash, WaiterId};

use super::{Reference, Stage, Told};
use crate::invariants::{Rule, Step};

/// How many others may be started while somebody waits who could have their place. Each takes a load's time, and `max_wait`
/// is two minutes at most here; the most that was seen is 14.
pub(super) const OVERTAKEN_MAX: u32 = 30;

impl Reference {
    /// Whether what it needs is here, which is as much as a pull.
    pub(super) fn look(&mut self, now: Moment, id: &InstanceId, hash: SpecHash) -> Step {
        self.begins(now, id, &[], hash)?;
        self.becomes(now, id, Stage::Pulling);
        Ok(())
    }

    fn begins(&mut self, now: Moment, id: &InstanceId, gpus: &[GpuId], hash: SpecHash) -> Step {
        let early = self.failing(&id.model, now);
        Rule::BreakerKept.check(!early, || format!("{id} is tried before its time"))?;
        let other = self.containers.keys().find(|other| other.model == id.model);
        if let Some(other) = other {
            let loads = self.containers[other].stage == Stage::Coming;
            let rule = if loads { Rule::OneCreate } else { Rule::OneContainer };
            return rule.broken(format!("{id} while {other} has not come to its end"));
        }
        self.comes(now, id, gpus, hash);
        Ok(())
    }

    pub(super) fn launch(
        &mut self,
        now: Moment,
        id: &InstanceId,
        gpus: &[GpuId],
        hash: SpecHash,
    ) -> Step {
        self.begins(now, id, gpus, hash)?;
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

    pub(super) fn stop(&mut self, now: Moment, id: &InstanceId) -> Step {
        let over = self.shutdown.is_some_and(|at| now >= at + self.drain);
        let forced = self.was_forced(now);
        let most = self.health.failures;
        let Some(told) = self.containers.get_mut(id) else { return Ok(()) };
        let free = told.leases == 0 || told.stage != Stage::Ready || over;
        let free = free || told.health.failures >= most || told.cut;
        let forced = forced && told.yields;
        let drained = told.unloaded.is_some_and(|at| now >= at + self.drain);
        let free = free || drained || forced || told.gpus.iter().any(|gpu| self.lost.contains(gpu));
        told.stage = Stage::Stopped;
        let leases = told.leases;
        Rule::NoInFlightStop.check(free, || format!("{id} is stopped with {leases} leases"))
    }

    pub(super) fn grant(&mut self, now: Moment, waiter: WaiterId, id: &InstanceId) -> Step {
        let asked = self.waiting.remove(&waiter);
        let what = || format!("{waiter:?} is answered without waiting");
        Rule::AnsweredOnce.check(asked.is_some(), what)?;
        let model = asked.and_then(|a| a.model);
        let stage = self.containers.get(id).map(|t| t.stage);
        let same = stage != Some(Stage::Changed);
        let what = || format!("{waiter:?} gets a lease on {id}, which does not answer as before");
        Rule::SameAfterWake.check(same, what)?;
        let open = self.containers.get(id).is_some_and(|t| !t.yields);
        let right = open && stage == Some(Stage::Ready) && model.as_ref() == Some(&id.model);
        let what = || format!("{waiter:?} of {model:?} gets a lease on {id}, {stage:?}");
        Rule::LeaseOnReady.check(right, what)?;
        self.check_renewal(now, id)?;
        if let Some(told) = self.containers.get_mut(id) {
            told.leases += 1;
            told.used = now;
        }
        Ok(())
    }

    pub(super) fn deny(&mut self, now: Moment, waiter: WaiterId, denied: &Denied) -> Step {
        if self.measuring.remove(&waiter).is_some() {
            return Ok(());
        }
        if let Some(operator) = self.operators.remove(&waiter) {
            self.refused(now, waiter, &operator, denied);
            return Ok(());
        }
        let waits =
            |m: &ModelName| self.waiting.values().filter(|a| a.model.as_ref() == Some(m)).count();
        let Some(asked) = self.waiting.get(&waiter) else {
            return Rule::AnsweredOnce.broken(format!("{waiter:?} is refused without waiting"));
        };
        let long = now.since(asked.at) >= self.max_wait;
        let spec = asked.model.as_ref().and_then(|m| self.specs.get(m));
        let honest = match denied {
            Denied::UnknownModel { .. } => spec.is_none(),
            Denied::NeverFits { model, .. } => !self.fitting.contains(model),
            Denied::NoRoom { .. } => long || spec.is_some_and(|s| s.on_full == OnFull::Refuse),
            Denied::StillLoading { .. } => long,
            Denied::LoadFailed { model, .. } => self.failing.contains_key(model),
            // The one that is refused is counted here.
            Denied::QueueFull { model, .. } => {
                let loads = self.operators.values().filter(|o| o.model == *model).count();
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
}
