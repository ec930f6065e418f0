//! For whom a model loads or leaves. PURE.
//!
//! Purpose: `journalctl HOSTLER_REQUEST_ID=…` tells a request's whole story, and `HOSTLER_JOB=…` a job's: the load of its model, and who had
//! to leave for it. So these lines carry the ID of the request, and the number of the job, that have waited longest when it began.
//! Owner: the task. Invariants: nothing is decided by it; a load that nobody waits for (a pin) carries none; others that wait for the
//! same load have it by the instance, which their own lines name.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::effect::{Heir, Notice, StopReason};
use crate::types::ModelName;

/// For whom something is done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Cause {
    /// The ID of the request that has waited longest.
    pub request: Option<Arc<str>>,
    /// The number of the operator's job that has waited longest.
    pub job: Option<u32>,
}

/// For whom models load, wake and leave now.
#[derive(Debug, Default)]
pub(super) struct Stories(BTreeMap<ModelName, Cause>);

impl Stories {
    /// For whom that happens which a notice tells. `waiting`: who waits for a model now.
    pub(super) fn of(
        &mut self,
        notice: &Notice,
        waiting: impl FnOnce(&ModelName) -> Cause,
    ) -> Cause {
        match notice {
            Notice::Waiting { model, .. } => waiting(model),
            Notice::Starting { instance, .. } | Notice::Waking { instance } => {
                self.begin(&instance.model, waiting(&instance.model))
            }
            Notice::Yielding { instance, to, .. } => {
                let heir = match to {
                    Heir::Other(to) => to,
                    Heir::Successor => &instance.model,
                };
                self.begin(&instance.model, waiting(heir))
            }
            Notice::Stopping { instance, reason }
            | Notice::FallingAsleep { instance, reason, .. } => match reason {
                StopReason::Unloaded
                | StopReason::Asked
                | StopReason::Measured
                | StopReason::Moved => self.begin(&instance.model, waiting(&instance.model)),
                StopReason::Idle
                | StopReason::Evicted
                | StopReason::Reconfigured
                | StopReason::Shutdown
                | StopReason::Pressure
                | StopReason::Orphaned => self.known(&instance.model),
            },
            // Where others have to leave for it, this is how it begins.
            Notice::Pulling { instance } => match self.0.get(&instance.model) {
                Some(known) => known.clone(),
                None => self.begin(&instance.model, waiting(&instance.model)),
            },
            // It may fail before anything of it was to be told.
            Notice::Failed { instance, .. } => {
                let known = self.0.remove(&instance.model);
                known.unwrap_or_else(|| waiting(&instance.model))
            }
            Notice::Loading { instance }
            | Notice::SleepFailed { instance, .. }
            | Notice::StopFailed { instance, .. } => self.known(&instance.model),
            Notice::Ready { instance, .. }
            | Notice::Woken { instance, .. }
            | Notice::WakeFailed { instance, .. }
            | Notice::PlannedAgain { instance, .. }
            | Notice::Asleep { instance, .. }
            | Notice::Spared { instance }
            | Notice::Stopped { instance } => self.0.remove(&instance.model).unwrap_or_default(),
            Notice::Adopted { .. }
            | Notice::Sleepless { .. }
            | Notice::Measured { .. }
            | Notice::Unmeasured { .. } => Cause::default(),
        }
    }

    fn begin(&mut self, model: &ModelName, cause: Cause) -> Cause {
        self.0.insert(model.clone(), cause.clone());
        cause
    }

    fn known(&self, model: &ModelName) -> Cause {
        self.0.get(model).cloned().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Bytes, Generation, InstanceId};

    fn instance(model: &str, generation: u64) -> InstanceId {
        InstanceId::new(model.parse().unwrap(), Generation(generation), 7)
    }

    fn request(id: &str) -> Cause {
        Cause { request: Some(Arc::from(id)), job: None }
    }

    fn starting(generation: u64) -> Notice {
        let instance = instance("m", generation);
        Notice::Starting { instance, gpus: vec![], planned: Bytes::ZERO }
    }

    fn nobody(_: &ModelName) -> Cause {
        Cause::default()
    }

    #[test]
    fn a_load_is_of_those_who_waited_when_it_began() {
        let mut stories = Stories::default();
        let a = Cause { job: Some(3), ..request("a") };
        assert_eq!(stories.of(&starting(1), |_| a.clone()), a);
        // They have left meanwhile, and another waits: the load was not for that one.
        let loading = |n| Notice::Loading { instance: instance("m", n) };
        assert_eq!(stories.of(&loading(1), |_| request("b")), a);
        let ready = Notice::Ready { instance: instance("m", 1), load_ms: Some(1) };
        assert_eq!(stories.of(&ready, nobody), a);
        let stopped = Notice::Stopped { instance: instance("m", 1) };
        assert_eq!(stories.of(&stopped, |_| request("b")), Cause::default());
        // A pin's load.
        assert_eq!(stories.of(&starting(2), nobody), Cause::default());
        assert_eq!(stories.of(&loading(2), |_| request("b")), Cause::default());
    }

    #[test]
    fn who_leaves_for_another_leaves_for_its_request() {
        let mut stories = Stories::default();
        let leaver = instance("old", 1);
        let of_new = |model: &ModelName| match model.as_str() {
            "new" => request("a"),
            other => panic!("{other} is not who it leaves for"),
        };
        let to = Heir::Other("new".parse().unwrap());
        let yielding = Notice::Yielding { instance: leaver.clone(), to, busy: false };
        assert_eq!(stories.of(&yielding, of_new), request("a"));
        let reason = StopReason::Evicted;
        let stopping = Notice::Stopping { instance: leaver.clone(), reason };
        assert_eq!(stories.of(&stopping, of_new), request("a"));
        let stopped = Notice::Stopped { instance: leaver.clone() };
        assert_eq!(stories.of(&stopped, of_new), request("a"));
        // Later it goes because nobody uses it.
        let stopping = Notice::Stopping { instance: leaver, reason: StopReason::Idle };
        assert_eq!(stories.of(&stopping, of_new), Cause::default());
    }
}
