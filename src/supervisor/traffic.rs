//! The part of the core that knows what runs through its instances, and when that needs no decision of its own.
//!
//! Purpose: a request for a ready model is let through by the turnstiles (`express`) while nothing depends on it. Owner: [`State`].
//! Invariants: who is named by [`State::express`] is ready and stays; while somebody waits for the end of a request anywhere (for
//! room, for a model that is to leave, for a shutdown) nobody is named, so that every end is told at once.

use super::event::Passed;
use super::instance::{Instance, Life};
use super::ports::Endpoint;
use super::state::{Model, State};
use crate::types::{InstanceId, ModelName, Moment};

/// An instance of which a lease needs no asking, by one of its model's names.
#[derive(Clone, Copy, Debug)]
pub struct Way<'a> {
    /// The model's, or an alias.
    pub name: &'a ModelName,
    /// Which.
    pub instance: &'a InstanceId,
    /// Where it listens.
    pub endpoint: &'a Endpoint,
}

impl Model {
    /// The next step of something depends on the end of requests.
    fn waits_for_requests(&self) -> bool {
        let leaves = |i: &Instance| {
            matches!(i.life, Life::Draining { .. }) || (i.is_ready() && self.has_changed(i))
        };
        self.waiting_for.is_some()
            || self.retired
            || self.discovery.is_wanted()
            || !self.unloading.is_empty()
            || !self.dozing.is_empty()
            || self.instance.as_ref().is_some_and(leaves)
    }
}

impl State {
    /// Those of whom a lease may be taken without asking, until the next event; by each of their names.
    pub fn express(&self) -> impl Iterator<Item = Way<'_>> {
        let calm = self.shutdown.is_none() && !self.models.values().any(Model::waits_for_requests);
        let ready = self.models.values().filter(move |_| calm).filter_map(|model| {
            let instance = model.instance.as_ref().filter(|i| i.is_ready())?;
            let endpoint = &instance.launched.as_ref()?.endpoint;
            let names = std::iter::once(&model.spec.name).chain(&model.spec.aliases);
            Some(names.map(move |name| Way { name, instance: &instance.id, endpoint }))
        });
        ready.flatten()
    }

    pub(super) fn used(&mut self, now: Moment, passed: &Passed) {
        let Passed { instance: id, taken, returned } = passed;
        let Some(model) = self.models.get_mut(&id.model) else { return };
        if let Some(instance) = model.instance.as_mut().filter(|i| i.id == *id) {
            instance.in_flight = (instance.in_flight + taken).saturating_sub(*returned);
            instance.last_used = instance.last_used.max(now);
            model.last_used = model.last_used.max(Some(now));
            if *taken > 0 {
                instance.used = true;
                model.demand.used(now);
            }
        }
    }
}
