//! Who makes way, and who gets a turn.

use std::time::Duration;

use hostler::supervisor::effect::Heir;
use hostler::types::{EngineKind, InstanceId, ModelName, Moment};

use super::{Reference, Stage};
use crate::invariants::{Rule, Step};

/// What may come before a turn for each model that has waited longer: it loads (12 s), is young (10 s), serves its last requests
/// (4 s), and ends (3 s); readings come between.
const TURN: Duration = Duration::from_secs(40);

impl Reference {
    pub(super) fn yields(&mut self, id: &InstanceId, to: &Heir, yields: bool) -> Step {
        if let Some(told) = self.containers.get_mut(id) {
            told.yields = yields;
            told.renews = *to == Heir::Successor;
        }
        match to {
            // The place goes to another, and an operator's load is over with it, however the instance leaves in the end.
            Heir::Other(_) if yields => drop(self.loaded.remove(&id.model)),
            Heir::Other(_) => {}
            Heir::Successor => self.check_reload(id)?,
        }
        Ok(())
    }

    pub(super) fn serves_on(&mut self, now: Moment, id: &InstanceId) {
        let least = self.max_wait;
        if let Some(told) = self.containers.get_mut(id) {
            told.yields = false;
            // What it did for itself in vain it need not do again before as long has passed as it has been due.
            let due = told.outdated.filter(|_| told.renews).map(|since| now.since(since));
            told.let_be = Some(now + least.max(due.unwrap_or_default()));
        }
    }

    /// Takes note of whose configuration asks for another container; `ready`: it serves anew.
    pub(super) fn compare_container(&mut self, now: Moment, id: &InstanceId, ready: bool) {
        let same = self.is_as_configured(id);
        if let Some(told) = self.containers.get_mut(id) {
            let since = told.outdated.filter(|_| !ready).unwrap_or(now);
            told.outdated = (!same).then_some(since);
            told.let_be = told.let_be.filter(|_| !ready);
        }
    }

    /// A lease is given on it, beside others: that keeps what was changed from coming into force.
    pub(super) fn check_renewal(&self, now: Moment, id: &InstanceId) -> Step {
        let (Some(told), Some(turn)) = (self.containers.get(id), self.renew) else { return Ok(()) };
        // It would give memory back to one that profiles the device.
        let loads = |(other, t): (&InstanceId, &super::Told)| {
            let spec = self.specs.get(&other.model);
            t.stage == Stage::Coming
                && spec.is_none_or(|s| s.engine == EngineKind::Vllm)
                && t.gpus.iter().any(|gpu| told.gpus.contains(gpu))
        };
        let from = told.outdated.map(|at| told.let_be.map_or(at, |until| at.max(until)));
        let late = from.is_some_and(|at| now.since(at) >= turn && now >= at);
        let stays = late && told.leases > 0 && !self.containers.iter().any(loads);
        let what = || format!("{id} serves on, and is configured otherwise: {told:?}");
        Rule::ChangeComes.check(!stays, what)
    }

    /// Where nothing goes wrong and everybody is asked for all the time.
    pub(super) fn check_turns(&mut self, now: Moment) -> Step {
        let Some(turn) = self.turn.filter(|_| self.shutdown.is_none()) else { return Ok(()) };
        let up = |m: &ModelName| {
            let serves = |t: &super::Told| t.stage == Stage::Ready && !t.yields;
            self.containers.iter().any(|(id, t)| id.model == *m && serves(t))
        };
        let asked: Vec<ModelName> =
            self.fitting.iter().filter(|m| self.waits(m) && !up(m)).cloned().collect();
        // Whoever comes again soon waits on.
        self.hungry.retain(|m, _| asked.contains(m));
        let most = turn + TURN * u32::try_from(self.specs.len()).unwrap_or(1);
        for model in asked {
            let since = *self.hungry.entry(model.clone()).or_insert(now);
            let waited = now.since(since);
            let what = || format!("{model} has waited {waited:?} for its turn");
            Rule::TurnComes.check(waited <= most, what)?;
        }
        Ok(())
    }
}
