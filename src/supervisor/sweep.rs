//! The part of the core that looks over what is on the host, now and then: what nobody cares for is collected.
//!
//! A container with our labels that the core does not know is one that podman made after its answer was given up, or that was
//! left behind in another way. It is given [`STRAY_AGE`] to turn out to be somebody's: a list may be older than what was
//! decided meanwhile. Then it is an orphan like those of an earlier daemon: charged, gated, stopped until it is gone.
//!
//! Invariant: while podman does not answer, no stop begins that is a matter of choice. An engine that nobody can stop serves on; one
//! whose stop was ordered would live on without being asked anything, and its room would be nobody's.

use std::collections::BTreeMap;
use std::time::Duration;

use super::effect::Effect;
use super::ports::Found;
use super::state::State;
use crate::plan::{Decision, Leave, Victim};
use crate::types::{Fault, InstanceId, Moment};

/// How long a container may be of nobody.
pub const STRAY_AGE: Duration = Duration::from_secs(10);

/// Containers of nobody, by podman's ID, and when they were first seen.
pub(super) type Strays = BTreeMap<String, Moment>;

impl State {
    /// podman's list of our containers, or why there is none. `taken`: when it was asked for.
    pub(super) fn swept(
        &mut self,
        now: Moment,
        taken: Moment,
        list: Result<Vec<Found>, Fault>,
        out: &mut Vec<Effect>,
    ) {
        let trouble = list.as_ref().err().map(|fault| fault.message.clone());
        self.note("podman_unreachable", now, trouble.into_iter().collect());
        let Ok(found) = list else { return };
        if !self.surveyed {
            return;
        }
        let strays = found.into_iter().filter(|item| !self.knows(item)).collect::<Vec<_>>();
        self.strays.retain(|id, _| strays.iter().any(|item| item.container == *id));
        for item in strays {
            let since = *self.strays.entry(item.container.clone()).or_insert(taken);
            if taken.since(since) >= STRAY_AGE {
                self.strays.remove(&item.container);
                self.collect(item, out);
            }
        }
    }

    /// podman did not answer when it was last asked for its list.
    pub(super) fn podman_away(&self) -> bool {
        self.problems.contains_key("podman_unreachable")
    }

    /// Whether room that these make has to wait for podman. Who falls asleep needs none.
    pub(super) fn stops_in_vain(&self, victims: &[Victim]) -> bool {
        self.podman_away() && victims.iter().any(|v| v.leave == Leave::Stop)
    }

    /// A decision as far as it can be carried out now; `moves`: it is to stop the sleeper that it is for.
    pub(super) fn feasible(&self, decision: Decision, moves: bool) -> Decision {
        let evicts = match &decision {
            Decision::Evict(victims) => self.stops_in_vain(victims),
            Decision::Start(_)
            | Decision::Wait { .. }
            | Decision::Full(_)
            | Decision::Refuse { .. } => false,
        };
        let vain = evicts || (moves && self.podman_away());
        if !vain {
            return decision;
        }
        let why = "podman does not answer, and nobody can be stopped to make room".to_owned();
        Decision::Wait { why, until: None }
    }

    fn knows(&self, item: &Found) -> bool {
        let known = |id: &InstanceId| {
            let model = self.models.get(&id.model).and_then(|m| m.instance.as_ref());
            model.is_some_and(|i| i.id == *id) || self.orphans.contains_key(id)
        };
        item.identity.as_ref().is_some_and(|identity| known(&identity.instance))
    }

    fn collect(&mut self, item: Found, out: &mut Vec<Effect>) {
        let Some(identity) = item.identity else {
            out.push(Effect::Reap { container: item.container });
            return;
        };
        let id = identity.instance;
        if item.running.is_some() {
            self.ledger.reserve(id.clone(), &identity.placement);
            self.ledger.release(&id);
        }
        self.raise_generation(id.generation);
        self.orphan(id, out);
    }
}
