//! Clients.

use std::time::Duration;

use hostler::supervisor::event::{Event, Passed};
use hostler::supervisor::state::Way;
use hostler::types::{Generation, InstanceId, WaiterId};

use crate::case::model;
use crate::faults::Kind;
use crate::invariants::Step;
use crate::world::{Happening, World};

/// How long the daemon takes to look what went through its turnstiles.
const STIR_MAX: Duration = Duration::from_millis(50);

impl World {
    pub(crate) fn next_waiter(&mut self) -> WaiterId {
        self.waiters += 1;
        WaiterId(self.waiters)
    }

    /// Somebody comes, or very many do.
    pub(crate) fn client(&mut self) -> Step {
        // Low numbers are asked for more often; the last one is not configured.
        let most = self.case.specs.len() as u64 + 1;
        let (a, b) = (self.rng.below(most), self.rng.below(most));
        let n = if self.rng.chance(10) { most - 1 } else { a.min(b) };
        let name = if self.rng.chance(20) { format!("alias{n}") } else { format!("m{n}") };
        let count = if self.strikes(Kind::Burst) { 2 + self.rng.below(20) } else { 1 };
        for _ in 0..count {
            self.ask(name.clone())?;
        }
        Ok(())
    }

    pub(crate) fn ask(&mut self, model: String) -> Step {
        if self.core.is_none() {
            return Ok(());
        }
        // The other half are as those of whom the daemon's turnstiles did not know yet.
        if self.rng.chance(50)
            && let Some(instance) = self.way(|way| way.name.as_str() == model)
        {
            self.passes(&instance).taken += 1;
            return self.grant(&instance);
        }
        let waiter = self.next_waiter();
        if self.rng.chance(15) {
            let patience = Duration::from_millis(self.rng.below(80_000));
            self.later(patience, Happening::ClientLeaves(waiter));
        }
        self.tell(Event::Acquire { waiter, model, wait: None })
    }

    pub(crate) fn granted(&mut self, id: &InstanceId) {
        self.stats.grants += 1;
        let long = self.strikes(Kind::LongStream);
        let ms = if long { self.rng.below(200_000) } else { 20 + self.rng.below(4_000) };
        self.lease_count += 1;
        self.leases.insert(self.lease_count, id.clone());
        self.later(Duration::from_millis(ms), Happening::LeaseEnds(self.lease_count));
    }

    pub(crate) fn lease_ends(&mut self, number: u64) -> Step {
        let Some(instance) = self.leases.remove(&number) else { return Ok(()) };
        if let Some(container) = self.containers.get_mut(&instance) {
            container.leases = container.leases.saturating_sub(1);
        }
        let open = self.way(|way| *way.instance == instance).is_some();
        self.passes(&instance).returned += 1;
        // Somebody may wait for it, otherwise.
        if open { Ok(()) } else { self.tell_passed() }
    }

    /// Whom the core lets in without being asked.
    fn way(&self, like: impl Fn(&Way<'_>) -> bool) -> Option<InstanceId> {
        let state = self.core.as_ref()?.state();
        state.express().find(like).map(|way| way.instance.clone())
    }

    fn passes(&mut self, instance: &InstanceId) -> &mut Passed {
        if self.passed.is_empty() {
            self.later(STIR_MAX, Happening::Stirred);
        }
        let none = || Passed { instance: instance.clone(), taken: 0, returned: 0 };
        self.passed.entry(instance.clone()).or_insert_with(none)
    }

    /// As the daemon does when a turn begins.
    pub(crate) fn tell_passed(&mut self) -> Step {
        let passed: Vec<Passed> = std::mem::take(&mut self.passed).into_values().collect();
        if passed.is_empty() { Ok(()) } else { self.turn(Event::Used(passed)) }
    }

    /// Completions of an incarnation that nobody remembers.
    pub(crate) fn stale(&mut self) -> Step {
        let ghost = InstanceId::new(model(0), Generation(0), 1);
        let fault = crate::engines::broke("long ago");
        match self.rng.below(5) {
            0 => self.tell(Event::Healthy { instance: ghost }),
            1 => self.tell(Event::Used(vec![Passed { instance: ghost, taken: 0, returned: 1 }])),
            2 => self.tell(Event::Died { instance: ghost, fault }),
            3 => self.tell(Event::LaunchFailed { instance: ghost, fault }),
            _ => self.tell(Event::Stopped { instance: ghost, result: Err(fault) }),
        }
    }
}
