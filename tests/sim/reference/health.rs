//! Who is asked whether it is well, when, and what came of it.

use std::time::Duration;

use hostler::types::{InstanceId, Moment};

use super::{Reference, Stage};
use crate::invariants::{Rule, Step};

/// After a failure it is asked again at least so soon.
const RECHECK: Duration = Duration::from_secs(5);

/// How one container was, as far as the core was told.
#[derive(Clone, Debug, Default)]
pub(super) struct Health {
    /// Between two questions, by the specification that it runs with.
    interval: Option<Duration>,
    /// It has to be asked by then; `None`: it is not, or is being asked.
    due: Option<Moment>,
    /// It was asked for a token.
    token: bool,
    /// Since when it was not well, in a row.
    ill_since: Option<Moment>,
    /// In a row.
    pub(super) failures: u32,
}

impl Health {
    pub(super) fn of(interval: Option<Duration>) -> Self {
        Self { interval, ..Self::default() }
    }

    pub(super) fn begin(&mut self, now: Moment) {
        *self = Self { due: self.interval.map(|i| now + i), ..Self::of(self.interval) };
    }

    /// Another interval is configured for what it runs with.
    pub(super) fn change(&mut self, now: Moment, interval: Option<Duration>) {
        if self.interval != interval {
            self.interval = interval;
            self.begin(now);
        }
    }
}

impl Reference {
    pub(super) fn asks(&mut self, id: &InstanceId, token: bool) {
        if let Some(told) = self.containers.get_mut(id) {
            (told.health.due, told.health.token) = (None, token);
        }
    }

    pub(super) fn checked(&mut self, now: Moment, id: &InstanceId, well: bool, silent: bool) {
        let patience = self.health.patience;
        let told = self.containers.get_mut(id).filter(|t| t.stage == Stage::Ready);
        let told = told.and_then(|t| t.health.interval.map(|interval| (t, interval)));
        let Some((told, interval)) = told else { return };
        if well {
            (told.health.failures, told.health.ill_since) = (0, None);
        } else {
            let since = *told.health.ill_since.get_or_insert(now);
            let patient = silent && now.since(since) < patience;
            let forgiven = told.leases > 0 && (told.health.token || patient);
            told.health.failures += u32::from(!forgiven);
        }
        told.health.due = Some(now + if well { interval } else { interval.min(RECHECK) });
    }

    pub(super) fn check_health(&self, now: Moment) -> Step {
        if self.shutdown.is_some() {
            return Ok(());
        }
        // Also those that drain: no time ends the requests of who makes way.
        for (id, told) in self.containers.iter().filter(|(_, t)| t.stage == Stage::Ready) {
            let what = || format!("{id} should have been asked at {:?}", told.health.due);
            Rule::HealthAsked.check(told.health.due.is_none_or(|due| due >= now), what)?;
            let failures = told.health.failures;
            let what = || format!("{id} failed {failures} times in a row and serves");
            Rule::SickGo.check(failures < self.health.failures, what)?;
        }
        Ok(())
    }
}
