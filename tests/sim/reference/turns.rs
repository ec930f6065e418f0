//! Who makes way, and who gets a turn.

use std::time::Duration;

use hostler::types::{InstanceId, ModelName, Moment};

use super::{Reference, Stage};
use crate::invariants::{Rule, Step};

/// What may come before a turn for each model that has waited longer: it loads (12 s), is young (10 s), serves its last requests
/// (4 s), and ends (3 s); readings come between.
const TURN: Duration = Duration::from_secs(40);

impl Reference {
    pub(super) fn yields(&mut self, id: &InstanceId, yields: bool) {
        if let Some(told) = self.containers.get_mut(id) {
            told.yields = yields;
        }
        if yields {
            // The place goes to another, and an operator's load is over with it, however the instance leaves in the end.
            self.loaded.remove(&id.model);
        }
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
