//! Whose request a model's load is for. PURE.
//!
//! Purpose: `journalctl HOSTLER_REQUEST_ID=…` tells a request's whole story, the load of its model included, so the load's lines carry the
//! ID of the request that has waited longest for it when it is begun. Owner: the task. Invariants: nothing is decided by it; a load that
//! nobody's request waits for (a pin, an operator's wish) carries none; others that wait for the same load have it by the instance,
//! which their own lines name.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::effect::Notice;
use crate::types::ModelName;

/// The requests for which models load or wake now.
#[derive(Debug, Default)]
pub(super) struct Stories(BTreeMap<ModelName, Arc<str>>);

impl Stories {
    /// The request that a notice is about. `first`: the one that has waited longest for a model.
    pub(super) fn of(
        &mut self,
        notice: &Notice,
        first: impl FnOnce(&ModelName) -> Option<Arc<str>>,
    ) -> Option<Arc<str>> {
        match notice {
            Notice::Waiting { model, .. } => first(model),
            Notice::Starting { instance, .. } | Notice::Waking { instance } => {
                let model = &instance.model;
                let request = first(model);
                match &request {
                    Some(request) => self.0.insert(model.clone(), request.clone()),
                    None => self.0.remove(model),
                };
                request
            }
            Notice::Pulling { instance }
            | Notice::Loading { instance }
            | Notice::Stopping { instance, .. } => self.0.get(&instance.model).cloned(),
            Notice::Ready { instance, .. }
            | Notice::Woken { instance, .. }
            | Notice::WakeFailed { instance, .. }
            | Notice::PlannedAgain { instance, .. }
            | Notice::Failed { instance, .. }
            | Notice::Stopped { instance } => self.0.remove(&instance.model),
            Notice::Adopted { .. }
            | Notice::Yielding { .. }
            | Notice::Spared { .. }
            | Notice::FallingAsleep { .. }
            | Notice::Asleep { .. }
            | Notice::SleepFailed { .. }
            | Notice::Sleepless { .. }
            | Notice::StopFailed { .. }
            | Notice::Measured { .. }
            | Notice::Unmeasured { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Bytes, Generation, InstanceId};

    #[test]
    fn a_load_is_of_the_request_that_waited_when_it_began() {
        let mut stories = Stories::default();
        let instance = |n| InstanceId::new("m".parse().unwrap(), Generation(n), 7);
        let starting =
            |n| Notice::Starting { instance: instance(n), gpus: vec![], planned: Bytes::ZERO };
        let waits = |id: &'static str| move |_: &ModelName| Some(Arc::from(id));
        let nobody = |_: &ModelName| -> Option<Arc<str>> { None };
        let is = |of: Option<Arc<str>>, id: &str| assert_eq!(of.as_deref(), Some(id));
        is(stories.of(&starting(1), waits("a")), "a");
        // It has left meanwhile, and another waits: the load was not for that one.
        is(stories.of(&Notice::Loading { instance: instance(1) }, waits("b")), "a");
        is(stories.of(&Notice::Ready { instance: instance(1), load_ms: 1 }, nobody), "a");
        assert_eq!(stories.of(&Notice::Stopped { instance: instance(1) }, waits("b")), None);
        // A pin's load.
        assert_eq!(stories.of(&starting(2), nobody), None);
        assert_eq!(stories.of(&Notice::Loading { instance: instance(2) }, waits("b")), None);
    }
}
