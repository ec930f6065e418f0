//! How a stored answer is asked for.
//!
//! Purpose: have an answer again, or cancel it, from the instance that gave it. Owner: the request's future. Invariants: nothing is
//! loaded, woken or evicted for it, and it waits for neither; the key's models and limits hold as for any request, but a turn at the
//! model is not waited for, as it costs the engine next to nothing and may free a turn; and a cancel, which may free a request of the
//! key's, counts for its rate alone.

use hyper::body::Incoming;
use hyper::{HeaderMap, Response, StatusCode};
use tokio::time::Instant;

use super::super::answer::Source;
use super::super::error::ApiError;
use super::super::forward;
use super::super::gate::Place;
use super::super::grant::{Engine, Grant};
use super::super::inference::{Visitor, admit_model};
use super::super::intake;
use super::super::keys::Key;
use super::super::order::{Order, Target};
use super::super::record::Record;
use super::super::route::{Act, Recall};
use super::super::service::Service;
use super::Origin;
use crate::types::{Denied, DoorSpec, ModelName, Phase};

/// Asks the instance that gave an answer for it.
///
/// # Errors
/// 404 where the answer has ended with its instance, 503 where that takes no request now.
pub(in crate::proxy) async fn recall(
    service: &Service,
    recall: Recall,
    headers: HeaderMap,
    mut body: Incoming,
    visitor: &Visitor,
    record: &mut Record,
) -> Result<Response<Source>, ApiError> {
    intake::discard(&mut body).await;
    let origin = service.answers.find(&recall.id, visitor.name(), Instant::now());
    let origin = origin.ok_or_else(gone)?;
    let model = &origin.instance.model;
    record.is_for(model.as_str(), Some(model));
    // A name that is gone, or leads to another model by now, is none that the key could be asked for.
    if visitor.rules.resolve(model.as_str()) != Some(model) {
        return Err(gone());
    }
    admit_model(visitor, model.as_str())?;
    is_there(service, &origin)?;
    let place = place(service, recall.act, visitor, model)?;
    record.queue_begins();
    let engine = engine(service, &origin).await;
    record.queue_ends();
    let engine = engine?;
    record.instance = Some(origin.instance.clone());
    let order = Order {
        target: Target::from(&recall),
        headers,
        id: record.id(),
        engines_id: record.engines_id(),
        body: bytes::Bytes::new(),
        rest: 0,
    };
    let grant = Grant { engine, _slot: place.map(Place::into_slot) };
    match forward::forward(grant, &order, &service.engines).await {
        Ok(response) => Ok(response.map(|relay| Source::Relay(Box::new(relay), None))),
        Err(failure) => Err(failure.to_api(model.as_str())),
    }
}

/// What the key may. No limit of the model's: no turn is waited for.
fn place(
    service: &Service,
    act: Act,
    visitor: &Visitor,
    model: &ModelName,
) -> Result<Option<Place>, ApiError> {
    let place = |key| service.gate.place(key, model, &DoorSpec::default(), visitor.rules.max_queue);
    match act {
        Act::Retrieve => place(visitor.key()),
        Act::Cancel => {
            let rate = visitor.key().map(|key| Key { concurrent: None, ..key.clone() });
            // What comes beside it finds all that the key may have at once.
            place(rate.as_ref()).map(|_| None)
        }
    }
}

fn gone() -> ApiError {
    let message = "no such response here: it is not known or was not stored, is older than a day or made way for newer ones, its engine \
         has been stopped or the daemon restarted since, or a model that runs elsewhere gave it";
    ApiError::new(StatusCode::NOT_FOUND, "response_not_found", message)
}

fn not_ready(origin: &Origin, phase: &str) -> ApiError {
    let model = &origin.instance.model;
    let message = format!(
        "the engine of model {model} that has this response is {phase}; nothing is loaded or woken for a stored response"
    );
    ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "model_not_ready", message)
}

/// Whether the picture shows that the instance serves.
fn is_there(service: &Service, origin: &Origin) -> Result<(), ApiError> {
    let status = service.supervisor.status();
    let shown = status.models.iter().find(|m| m.instance.as_ref() == Some(&origin.instance));
    let shown = shown.ok_or_else(gone)?;
    match shown.phase {
        Phase::Ready => Ok(()),
        Phase::Draining | Phase::Dozing | Phase::Asleep | Phase::Waking => {
            Err(not_ready(origin, shown.phase.as_str()))
        }
        Phase::Stopped
        | Phase::Waiting
        | Phase::Pulling
        | Phase::Starting
        | Phase::Loading
        | Phase::Stopping
        | Phase::Failed => Err(gone()),
    }
}

/// The instance under a lease, where one is to be had without asking. Else without one: whoever is asked for a lease loads the model
/// where it has gone meanwhile.
async fn engine(service: &Service, origin: &Origin) -> Result<Engine, ApiError> {
    let model = &origin.instance.model;
    let (instance, engine) = match service.supervisor.at_once(model.as_str()) {
        Some(lease) => (lease.instance().clone(), Engine::Own(lease)),
        None => match service.supervisor.reach(model).await {
            Ok((instance, endpoint)) => (instance, Engine::Unheld(endpoint)),
            Err(Denied::ShuttingDown) => return Err(Denied::ShuttingDown.into()),
            Err(_) => {
                is_there(service, origin)?;
                return Err(not_ready(origin, "not ready any more"));
            }
        },
    };
    if instance == origin.instance { Ok(engine) } else { Err(gone()) }
}
