//! The daemon's lives: it comes up, is told what is on the host, ends in order or is killed; and the end of a history.

use std::sync::Arc;
use std::time::Duration;

use hostler::plan::Book;
use hostler::supervisor::event::Event;
use hostler::supervisor::state::Recalled;
use hostler::types::InstanceId;

use crate::case::model;
use crate::engines::Container;
use crate::faults::Kind;
use crate::invariants::{Rule, Step};
use crate::mutants::Core;
use crate::reference::Reference;
use crate::world::{Happening, World};

impl World {
    pub(crate) fn shut_down(&mut self, keep: bool) -> Step {
        self.shutting_down = true;
        self.shutdown = (self.now, keep);
        self.tell(Event::Shutdown { keep })
    }

    /// The daemon is gone, and with it every request; the next one comes up soon.
    pub(crate) fn down(&mut self) {
        self.core = None;
        self.leases.clear();
        self.passed.clear();
        (self.observing, self.observe_again, self.quiet) = (false, false, None);
        self.cut_calls();
        let again = Duration::from_millis(self.rng.below(4_000));
        self.later(again, Happening::Boot);
    }

    pub(crate) fn boot(&mut self) -> Step {
        self.stats.daemons += 1;
        self.stats.overtaken = self.stats.overtaken.max(self.reference.overtaken);
        (self.shutting_down, self.exited) = (false, false);
        if self.strikes(Kind::Reconfigured) {
            let n = self.rng.below(self.case.specs.len() as u64);
            if let Some(spec) = self.case.specs.get_mut(&model(n)) {
                Arc::make_mut(spec).args.push("--other".into());
            }
        }
        self.case.settings.seed += 1;
        let pinned = self.reference.outlives();
        self.reference = Reference::new(&self.case);
        self.reference.recall(pinned);
        // A file that is not there, or damaged, costs relearning.
        let book = Book::decode(&self.saved).unwrap_or_default();
        let names = self.case.specs.keys().cloned();
        let images = names.map(|name| (name.clone(), self.image(&name))).collect();
        let recalled = Recalled { book, images, pins: self.pins.clone(), ..Recalled::default() };
        self.core = Some(Core::new(&self.case, self.mutant, recalled));
        self.observe_at = self.now;
        self.first_reading()?;
        let found = self.list();
        self.tell(Event::Found(found))
    }

    /// The daemon has ended in order.
    pub(crate) fn gone(&mut self) -> Step {
        let (began, keep) = self.shutdown;
        self.check_exit(keep, began)?;
        self.down();
        Ok(())
    }

    fn run_for(&mut self, time: Duration) -> Step {
        let end = self.now + time;
        while self.now < end {
            self.step()?;
        }
        Ok(())
    }

    /// Until nothing is under way, at most so long.
    fn rest(&mut self, most: Duration) -> Step {
        let end = self.now + most;
        let moves = |c: &Container| !c.rests();
        self.run_for(Duration::from_secs(5))?;
        while self.now < end && (self.reference.anybody() || self.containers.values().any(moves)) {
            self.step()?;
        }
        Ok(())
    }

    /// Faults cease, nobody comes any more, time goes on: everything must come to rest.
    pub fn settle(&mut self) -> Step {
        self.settling = true;
        self.case.weather.clear();
        self.case.observe_ms = 2_500;
        let now = self.now;
        for device in &mut self.devices {
            (device.foreign, device.lost) = (device.resident, false);
            device.lag.retain(|lag| lag.until <= now);
        }
        for number in self.leases.keys().copied().collect::<Vec<_>>() {
            self.lease_ends(number)?;
        }
        // What hangs for longest: a pull, a load's time, a stop, a failure's delay.
        self.rest(Duration::from_secs(200))?;
        // One for each, who must not find it worse than on a new host.
        for name in self.case.names() {
            self.ask(name.to_string())?;
            self.run_for(Duration::from_secs(4))?;
        }
        self.rest(Duration::from_secs(200))?;
        // A load that evicts nobody, or only the less important, waits for ever unless an operator makes room.
        for _ in 0..10 {
            if self.reference.operators() > 0 {
                self.unload_ready()?;
                self.run_for(Duration::from_secs(50))?;
            }
        }
        let (anybody, operators) = (self.reference.anybody(), self.reference.operators());
        Rule::AnsweredInTime.check(!anybody, || "somebody was never answered".into())?;
        let what = || format!("{operators} operators were never answered");
        Rule::AnsweredOnce.check(operators == 0, what)?;
        self.check_configured()?;
        self.end()
    }

    fn end(&mut self) -> Step {
        let lives = self.stats.daemons;
        self.shut_down(false)?;
        let began = self.now;
        while self.stats.daemons == lives {
            self.step()?;
            let took = self.now.since(began);
            let late = took > Duration::from_secs(120);
            Rule::CleanShutdown.check(!late, || "the shutdown never ended".into())?;
        }
        self.stats.overtaken = self.stats.overtaken.max(self.reference.overtaken);
        let left: Vec<&InstanceId> = self.containers.keys().collect();
        let cold = left.iter().all(|id| self.reference.pinned(&id.model));
        Rule::CleanShutdown.check(cold, || format!("it left {left:?}"))
    }
}
