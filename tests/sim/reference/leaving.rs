//! Those who go, fall asleep and come back.

use std::sync::Arc;
use std::time::Duration;

use hostler::supervisor::effect::StopReason;
use hostler::supervisor::ports::CanaryError;
use hostler::types::{EngineKind, InstanceId, ModelSpec, Moment};

use super::{Reference, Stage, Told};
use crate::invariants::{Rule, Step};

impl Reference {
    pub(super) fn sung(
        &mut self,
        now: Moment,
        id: &InstanceId,
        result: &Result<String, CanaryError>,
    ) {
        let Some(told) = self.containers.get_mut(id) else { return };
        let serves = match (result, &told.canary, told.stage) {
            (Ok(answer), None, _) => {
                told.canary = Some(answer.clone());
                true
            }
            (Ok(answer), Some(before), _) => answer == before,
            // It has none that a wake could be judged by.
            (Err(CanaryError::Failed(_)), None, Stage::Coming) => true,
            // Once more, and then it has to say itself that it is ready.
            (Err(CanaryError::Silent(_)), None, Stage::Coming) => {
                told.silent += 1;
                false
            }
            (Err(_), _, _) => false,
        };
        if serves {
            self.becomes(now, id, Stage::Ready);
        } else if result.is_ok() {
            self.becomes(now, id, Stage::Changed);
        }
    }

    pub(super) fn sleep(&mut self, now: Moment, id: &InstanceId) -> Step {
        let Some(told) = self.containers.get_mut(id) else { return Ok(()) };
        let (stage, leases) = (told.stage, told.leases);
        let idle = stage == Stage::Ready && leases == 0;
        Rule::SleepsIdle.check(idle, || format!("{id} sleeps while {stage:?}, {leases} leases"))?;
        let known = told.canary.is_some();
        Rule::SameAfterWake.check(known, || format!("nobody knows what {id} answers"))?;
        // It has made way, if it was to: what wakes is open to everybody again.
        told.yields = false;
        self.becomes(now, id, Stage::Asleep);
        Ok(())
    }

    /// It is over, and nothing of it was there.
    pub(super) fn came_to_nothing(&mut self, id: &InstanceId) {
        if self.containers.get(id).is_some_and(|t| t.stage == Stage::Pulling) {
            self.containers.remove(id);
        }
    }

    /// A vLLM loads beside it, and would take what it gives back for its own or fail of it.
    fn disturbs(&self, now: Moment, id: &InstanceId) -> Option<&InstanceId> {
        let told = self.containers.get(id).filter(|t| t.served)?;
        let loads = |other: &InstanceId, t: &Told| {
            let spec = self.specs.get(&other.model);
            let vllm = spec.filter(|s| s.engine == EngineKind::Vllm);
            // A launch that hangs for longer has been given up, whatever becomes of it.
            let in_time = |s: &Arc<ModelSpec>| now.since(t.used) < s.load_timeout;
            let begun = t.stage == Stage::Coming && !t.given_up;
            begun && vllm.is_some_and(in_time) && t.gpus.iter().any(|gpu| told.gpus.contains(gpu))
        };
        self.containers.iter().find(|(other, t)| *other != id && loads(other, t)).map(|(id, _)| id)
    }

    /// By whose choice it goes, and when.
    fn check_beside_load(&self, now: Moment, id: &InstanceId, reason: StopReason) -> Step {
        let retired = self.containers.get(id).is_some_and(|t| t.retired);
        let chosen = match reason {
            StopReason::Idle
            | StopReason::Pressure
            | StopReason::Evicted
            | StopReason::Measured
            | StopReason::Moved => true,
            StopReason::Reconfigured => !retired,
            StopReason::Asked
            | StopReason::Unloaded
            | StopReason::Shutdown
            | StopReason::Orphaned => false,
        };
        let disturbed = self.disturbs(now, id).filter(|_| chosen);
        let what = || format!("{id} goes ({reason:?}) while {disturbed:?} loads beside it");
        Rule::LoadsInPeace.check(disturbed.is_none(), what)
    }

    pub(super) fn stopping(&mut self, now: Moment, id: &InstanceId, reason: StopReason) -> Step {
        // Nothing of it is there yet: nothing has to be told.
        self.came_to_nothing(id);
        self.check_beside_load(now, id, reason)?;
        if let Some(told) = self.containers.get_mut(id) {
            told.given_up = true;
        }
        match reason {
            StopReason::Idle => {
                let pinned = self.pinned(&id.model);
                Rule::PinKept.check(!pinned, || format!("{id} is pinned and idled out"))?;
                let told = self.containers.get(id);
                let spec = self.specs.get(&id.model);
                let asleep = told.and_then(|t| t.asleep);
                let after = spec.and_then(|spec| match asleep {
                    Some(_) => spec.sleep_timeout,
                    None => spec.idle_timeout,
                });
                let after = after.unwrap_or(Duration::MAX);
                let idle = told
                    .is_some_and(|t| t.leases == 0 && now.since(asleep.unwrap_or(t.used)) >= after);
                self.loaded.remove(&id.model);
                Rule::IdleKept.check(idle, || format!("{id} was in use until {told:?}"))
            }
            StopReason::Pressure => {
                self.loaded.remove(&id.model);
                let pinned = self.pinned(&id.model);
                Rule::PinKept.check(!pinned, || format!("{id} is pinned and yields"))
            }
            StopReason::Evicted => {
                self.loaded.remove(&id.model);
                Ok(())
            }
            StopReason::Measured => {
                let kept = self.pinned(&id.model) || self.loaded.contains(&id.model);
                Rule::PinKept.check(!kept, || format!("{id} is wanted and only measured"))
            }
            StopReason::Asked => {
                self.loaded.remove(&id.model);
                let pinned = self.pinned(&id.model);
                Rule::PinKept.check(!pinned, || format!("{id} is pinned, and sent away"))
            }
            StopReason::Reconfigured => self.check_reload(id),
            StopReason::Unloaded
            | StopReason::Moved
            | StopReason::Shutdown
            | StopReason::Orphaned => Ok(()),
        }
    }
}
