//! How a request comes to its engine: a turn, then a lease.
//!
//! Purpose: both are waited for one after the other, within one time, by requests and by WebSockets alike. Owner: the request's future.
//! Invariants: nobody waits longer than it was given, but for the moment in which a model that is ready is had; who gets no turn because
//! of a load is told of the load; a grant holds the turn that it was had by, and is of the model that was judged, wherever its alias leads
//! meanwhile.

use std::sync::Arc;
use std::time::Duration;

use super::clock;
use super::error::ApiError;
use super::external::{self, Healths};
use super::gate::{Gate, Place};
use super::grant::{Engine, Grant};
use super::inference::Visitor;
use super::page;
use crate::supervisor::handle::Handle;
use crate::types::{Denied, DoorSpec, ModelName};

/// A model that is ready is had within this, unless all processors are busy with others.
pub(super) const AT_ONCE: Duration = Duration::from_millis(100);

/// Who asks whom for what.
pub(super) struct Asking<'a> {
    pub gate: &'a Arc<Gate>,
    pub supervisor: &'a Handle,
    pub healths: &'a Healths,
    pub visitor: &'a Visitor,
    /// As the client wrote it.
    pub model: &'a str,
    pub spec: &'a DoorSpec,
    /// The request's ID.
    pub id: Option<&'a str>,
}

impl Asking<'_> {
    /// The name of the model that was judged. The supervisor is asked by it: an alias may lead elsewhere by then, to a model that the key
    /// may not use.
    fn name(&self) -> Option<&ModelName> {
        self.visitor.rules.resolve(self.model)
    }

    /// A place among those who wait for a turn; `None`: no limit concerns this request.
    ///
    /// # Errors
    /// 429 where the key has used up what it may, 503 where too many wait.
    pub fn place(&self) -> Result<Option<Place>, ApiError> {
        self.name().map_or(Ok(None), |name| self.place_at(name))
    }

    fn place_at(&self, name: &ModelName) -> Result<Option<Place>, ApiError> {
        self.gate.place(self.visitor.key(), name, self.spec, self.visitor.rules.max_queue)
    }

    /// A turn at the model, by a place that it has already or a new one, then a lease on it; both `within` that time.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn grant(&self, place: Option<Place>, within: Duration) -> Result<Grant, ApiError> {
        let (since, name) = (clock::now(), self.known()?);
        let place = match place {
            None => self.place_at(name)?,
            Some(place) => Some(place),
        };
        let slot = match place {
            Some(place) => {
                let turn = place.turn(name, self.spec, within).await;
                Some(turn.map_err(|busy| self.loading(name).unwrap_or(busy))?)
            }
            None => None,
        };
        let left = within.saturating_sub(clock::since(since));
        let engine = self.engine_of(name, left.max(AT_ONCE)).await?;
        Ok(Grant { engine, _slot: slot })
    }

    /// The engine, when it is there.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn engine(&self, wait: Duration) -> Result<Engine, ApiError> {
        self.engine_of(self.known()?, wait).await
    }

    /// The name. One that is new since then was not judged.
    fn known(&self) -> Result<&ModelName, ApiError> {
        let unknown = || Denied::UnknownModel { model: self.model.into() }.into();
        self.name().ok_or_else(unknown)
    }

    async fn engine_of(&self, name: &ModelName, wait: Duration) -> Result<Engine, ApiError> {
        if let Some(external) = self.visitor.rules.externals.get(name) {
            return external::grant(self.healths, name, external).map(Engine::Far);
        }
        let lease = self.supervisor.acquire_for(name.as_str(), Some(wait), self.id).await;
        Ok(Engine::Own(lease.map_err(|denied| self.told(denied))?))
    }

    /// A refusal as this visitor may have it: why there is no room tells of all models of the host.
    fn told(&self, denied: Denied) -> ApiError {
        if page::sees_all(self.visitor).is_ok() { denied } else { denied.without_others() }.into()
    }

    /// The engine, where it is there to be taken.
    pub fn at_once(&self) -> Option<Engine> {
        self.supervisor.at_once(self.name()?.as_str()).map(Engine::Own)
    }

    /// The refusal of who got no turn because those who have one wait for a load; `None`: there is none under way.
    fn loading(&self, name: &ModelName) -> Option<ApiError> {
        let status = self.supervisor.status();
        let model = status.models.iter().find(|model| model.name == *name)?;
        let progress = model.progress?;
        let last = || model.load_ms.map(Duration::from_millis);
        let expected = progress.expected.or_else(last);
        let passed = self.supervisor.now().since(progress.since);
        Some(Denied::loading(name.clone(), model.phase, expected, passed).into())
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::super::port::{Observer, Seen};
    use super::super::rules::Rules;
    use super::*;
    use crate::supervisor::handle::Ask;
    use crate::types::test_status as configured;
    use crate::types::{LoadProgress, Moment, Phase, Status};

    struct Nobody;

    impl Observer for Nobody {
        fn begun(&self) {}

        fn ended(&self, _: &Seen<'_>) {}
    }

    const WITHIN: Duration = Duration::from_secs(10);

    /// A model that serves one at once and loads for an hour: one has the turn and waits for the load, one comes a second later and has what
    /// is left of its own time after the first one's, and one comes so that its time is over before its turn.
    #[tokio::test(start_paused = true)]
    async fn a_turn_and_a_load_are_waited_for_within_one_time() {
        let mut row = configured("m");
        row.phase = Phase::Loading;
        row.load_ms = Some(60_000);
        let expected = Some(Duration::from_secs(60));
        row.progress = Some(LoadProgress { since: Moment::START, expected, pulled: None });
        let status = Status { models: vec![row], ..Status::default() };
        let (supervisor, mut asks, _publish) = Handle::scripted(status);
        let patient = tokio::spawn(async move {
            while let Some(ask) = asks.recv().await {
                if let Ask::Acquire { wait, answer, .. } = ask {
                    tokio::spawn(async move {
                        tokio::time::sleep(wait.unwrap()).await;
                        let (model, retry_after) = ("m".parse().unwrap(), Duration::from_secs(9));
                        let phase = Phase::Loading;
                        drop(answer.send(Err(Denied::StillLoading { model, phase, retry_after })));
                    });
                }
            }
        });
        let spec = DoorSpec { max_concurrent: Some(1), ..DoorSpec::default() };
        let name: ModelName = "m".parse().unwrap();
        let rules = Rules { models: [(name, Arc::new(spec.clone()))].into(), ..Rules::default() };
        let rules = rules.shared();
        let gate = Gate::new(rules.clone(), supervisor.clone(), Arc::new(Nobody));
        let (healths, visitor) =
            (Healths::default(), Visitor { rules: rules.load_full(), key: None });
        let asking = Asking {
            gate: &gate,
            supervisor: &supervisor,
            healths: &healths,
            visitor: &visitor,
            model: "m",
            spec: &spec,
            id: None,
        };
        let client = |after: u64, within: Duration| {
            let asking = &asking;
            async move {
                tokio::time::sleep(Duration::from_secs(after)).await;
                let since = Instant::now();
                let error = asking.grant(None, within).await.unwrap_err();
                (error.code, error.retry_after_secs(), since.elapsed().as_secs())
            }
        };
        let (first, second, third) =
            tokio::join!(client(0, WITHIN), client(1, WITHIN), client(2, WITHIN / 2));
        assert_eq!(first, ("model_loading", Some(9), 10));
        assert_eq!(second, ("model_loading", Some(9), 10));
        // No turn came, and it is told of the load nevertheless, by what the status has of it.
        assert_eq!((third.0, third.2), ("model_loading", 5));
        assert!((40..=60).contains(&third.1.unwrap()), "{third:?}");
        patient.abort();
    }
}
