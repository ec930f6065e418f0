//! How a request asks for its engine.
//!
//! Purpose: a turn, then a lease, at once or with patience. Owner: the request's future. Invariants: a place among those who wait for a
//! turn is taken once; a grant holds the turn that it was had by.

use std::time::Duration;

use super::super::endpoints::Events;
use super::super::error::ApiError;
use super::super::gate::Place;
use super::super::grant::{Engine, Grant};
use super::super::patience::{AT_ONCE, Asking};
use super::Job;
use crate::types::Feedback;

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
        let asking = self.asking();
        let engine = asking.engine(self.visitor.rules.max_wait);
        let engine = tokio::time::timeout(AT_ONCE, engine).await.ok()?.ok()?;
        Some(self.granted(engine))
    }

    /// The grant, where it is there to be taken.
    pub fn at_once(&mut self) -> Result<Option<Grant>, ApiError> {
        if !self.is_its_turn()? {
            return Ok(None);
        }
        let engine = self.asking().at_once();
        Ok(engine.map(|engine| self.granted(engine)))
    }

    /// Whether it may ask for the engine now. Takes a place among those who wait for a turn, which is kept for who asks with patience.
    fn is_its_turn(&mut self) -> Result<bool, ApiError> {
        if self.visitor.rules.resolve(&self.model).is_none() {
            return Ok(false);
        }
        if self.place.is_none() {
            self.place = self.asking().place()?;
        }
        Ok(self.place.as_ref().is_none_or(Place::is_turn))
    }

    fn granted(&mut self, engine: Engine) -> Grant {
        Grant { engine, _slot: self.place.take().map(Place::into_slot) }
    }

    /// A turn at the model, then a lease on it, both within that time.
    pub async fn grant(&mut self, within: Duration) -> Result<Grant, ApiError> {
        let place = self.place.take();
        self.asking().grant(place, within).await
    }

    fn asking(&self) -> Asking<'_> {
        Asking {
            gate: &self.service.gate,
            supervisor: &self.service.supervisor,
            healths: &self.service.healths,
            visitor: &self.visitor,
            model: &self.model,
            spec: &self.spec,
            id: self.order.id.to_str().ok(),
        }
    }
}
