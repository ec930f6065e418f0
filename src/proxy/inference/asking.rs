//! How a request asks for its engine.
//!
//! Purpose: a turn, then a lease, at once or with patience. Owner: the request's future. Invariants: a place among those who wait for a
//! turn is taken once; a grant holds the turn that it was had by.

use std::time::Duration;

use super::super::endpoints::Events;
use super::super::error::ApiError;
use super::super::external;
use super::super::gate::{Patience, Place};
use super::super::grant::{Engine, Grant};
use super::Job;
use crate::types::Feedback;

/// A model that is ready is had within this, unless all processors are busy with others.
const AT_ONCE: Duration = Duration::from_millis(100);

impl Job {
    /// Whether its client is to be told that it waits.
    pub fn is_told(&self) -> bool {
        let events = self.order.target.events;
        self.stream && self.spec.feedback != Feedback::Off && events != Events::Other
    }

    /// The grant, if nothing has to be waited for: neither for a turn nor for a load. What kind of answer is asked for does not matter
    /// then. If there is none, why is found again, and told, by who asks with patience.
    pub async fn early(&mut self) -> Option<Grant> {
        if !self.is_its_turn().ok()? {
            return None;
        }
        let engine = tokio::time::timeout(AT_ONCE, self.engine(None)).await.ok()?.ok()?;
        Some(self.granted(engine))
    }

    /// The grant, where it is there to be taken.
    pub fn at_once(&mut self) -> Result<Option<Grant>, ApiError> {
        if !self.is_its_turn()? {
            return Ok(None);
        }
        let lease = self.service.supervisor.at_once(&self.model);
        Ok(lease.map(|lease| self.granted(Engine::Own(lease))))
    }

    /// Whether it may ask for the engine now. Takes a place among those who wait for a turn, which is kept for who asks with patience.
    fn is_its_turn(&mut self) -> Result<bool, ApiError> {
        let rules = &self.visitor.rules;
        let Some(name) = rules.resolve(&self.model) else { return Ok(false) };
        if self.place.is_none() {
            let (key, spec) = (self.visitor.key(), &self.spec);
            self.place = self.service.gate.place(key, name, spec, rules.max_queue)?;
        }
        Ok(self.place.as_ref().is_none_or(Place::is_turn))
    }

    fn granted(&mut self, engine: Engine) -> Grant {
        Grant { engine, _slot: self.place.take().map(Place::into_slot) }
    }

    /// A turn at the model, then a lease on it. `wait`: how long for the lease, where that is not as for all.
    pub async fn grant(
        &mut self,
        wait: Option<Duration>,
        turn: Duration,
    ) -> Result<Grant, ApiError> {
        let rules = &self.visitor.rules;
        let slot = match (rules.resolve(&self.model), self.place.take()) {
            (None, _) => None,
            (Some(name), Some(place)) => Some(place.turn(name, &self.spec, turn).await?),
            (Some(name), None) => {
                let patience = Patience { wait_max: turn, queue_max: rules.max_queue };
                let key = self.visitor.key();
                self.service.gate.enter(key, name, &self.spec, patience).await?
            }
        };
        let engine = self.engine(wait).await?;
        Ok(Grant { engine, _slot: slot })
    }

    /// The engine, when it is there.
    async fn engine(&self, wait: Option<Duration>) -> Result<Engine, ApiError> {
        let rules = &self.visitor.rules;
        let far = rules.resolve(&self.model).and_then(|n| Some((n, rules.externals.get(n)?)));
        match far {
            Some((name, external)) => {
                external::check(&self.service.healths, name)?;
                Ok(Engine::Far(external.clone()))
            }
            None => {
                let id = self.order.id.to_str().ok();
                let lease = self.service.supervisor.acquire_for(&self.model, wait, id).await;
                Ok(Engine::Own(lease?))
            }
        }
    }
}
