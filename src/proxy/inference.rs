//! A request that an engine answers.
//!
//! Purpose: body → model → turn → lease → engine, each step elsewhere. Owner: the request's future; where signs of life are sent,
//! the answer's body, which then holds the rest of the way. Invariants: a refused request has asked the supervisor for nothing;
//! dropping the future at any point gives turn, lease and connection back.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::Incoming;
use hyper::header::{self, HeaderValue};
use hyper::http::request::Parts;
use hyper::{HeaderMap, Response, StatusCode};
use tokio::time::Instant;

use super::answer::Source;
use super::beat::Beat;
use super::budget::Share;
use super::endpoints::{BodyForm, Events, Task};
use super::error::ApiError;
use super::external;
use super::forward::{self, Order, Target};
use super::gate::Patience;
use super::grant::{Engine, Grant};
use super::intake;
use super::keys::Key;
use super::multipart;
use super::peek::{Peek, PeekError, peek};
use super::recall::{Origin, Watch};
use super::record::Record;
use super::rewrite::rewrite;
use super::rules::Rules;
use super::service::Service;
use super::wait::{Asked, Begun, Wait, Waiter};
use crate::types::{DoorSpec, Feedback};

/// Bodies from here on are looked into on a thread of their own: at some GB/s this is a tenth of a millisecond.
const PEEK_INLINE_MAX: usize = 256 << 10;

/// Who asks, and by which rules.
#[derive(Clone, Debug)]
pub(super) struct Visitor {
    pub rules: Arc<Rules>,
    /// Where in the rules' keys theirs is.
    pub key: Option<usize>,
}

impl Visitor {
    /// The key, where keys are asked for.
    pub fn key(&self) -> Option<&Key> {
        self.key.and_then(|at| self.rules.keys.get(at))
    }

    /// Its name.
    pub fn name(&self) -> Option<&str> {
        self.key().map(|key| key.name.as_str())
    }
}

/// A request whose body was read.
struct Job {
    service: Arc<Service>,
    visitor: Visitor,
    target: Target,
    headers: HeaderMap,
    id: HeaderValue,
    body: Bytes,
    /// The body's part of the memory for bodies.
    share: Share,
    /// As the client wrote it.
    model: String,
    /// The body is an answer of `/v1/responses`, which may be asked for again.
    recalled: bool,
    spec: Arc<DoorSpec>,
    asked: Arc<OnceLock<Asked>>,
}

/// Answers a request for inference.
///
/// # Errors
/// Why there is no answer of an engine's.
pub(super) async fn infer(
    service: &Arc<Service>,
    task: Task,
    head: Parts,
    body: Incoming,
    visitor: Visitor,
    record: &mut Record,
) -> Result<Response<Source>, ApiError> {
    let asked_first = head.headers.contains_key(header::EXPECT);
    let mut share = service.budget.share(visitor.rules.max_buffered.0);
    let body = intake::collect(body, &service.limits, asked_first, &mut share).await?;
    let Peek { model, stream } = look(task, &head.headers, body.clone()).await?;
    record.model = Some(model.clone());
    record.served = visitor.rules.resolve(&model).cloned();
    if let Some(error) = ApiError::impossible_model(&model) {
        return Err(error);
    }
    let spec = admit_model(&visitor, &model)?;
    let rewritten = task.body() == BodyForm::Json && spec.rewrites();
    let job = Job {
        service: service.clone(),
        target: Target::from(task),
        headers: head.headers,
        id: record.id(),
        body: if rewritten { rewrite(&body, &spec) } else { body },
        share,
        model,
        recalled: task == Task::Responses,
        spec,
        visitor,
        asked: Arc::default(),
    };
    record.queue_begins();
    if !stream || job.spec.feedback == Feedback::Off || task.events() == Events::Other {
        let wait_max = job.visitor.rules.max_wait;
        let granted = job.grant(None, wait_max).await;
        return job.finish_now(granted, record).await;
    }
    with_feedback(job, record).await
}

/// The model's own rules, if the visitor may use it. One that nobody configured is the supervisor's to refuse.
pub(super) fn admit_model(visitor: &Visitor, model: &str) -> Result<Arc<DoorSpec>, ApiError> {
    let rules = &visitor.rules;
    let name = rules.resolve(model);
    if let (Some(key), Some(name)) = (visitor.key(), name)
        && !key.allows(name)
    {
        let message = format!("this key may not use the model {model}");
        let mut error = ApiError::new(StatusCode::FORBIDDEN, "model_not_allowed", message);
        error.param = Some("model");
        return Err(error);
    }
    Ok(rules.model(model).unwrap_or_default())
}

/// A stream. Whoever is served soon gets the engine's own head; whoever has to wait gets one of ours, and signs of life.
async fn with_feedback(job: Job, record: &mut Record) -> Result<Response<Source>, ApiError> {
    let since = Instant::now();
    let rules = job.visitor.rules.clone();
    let (supervisor, asked) = (job.service.supervisor.clone(), job.asked.clone());
    let beat = Beat {
        form: job.spec.feedback,
        events: job.target.events,
        model: job.model.clone(),
        id: job.id.to_str().unwrap_or_default().to_owned(),
        created: job.service.created,
    };
    let name = rules.resolve(&job.model).cloned();
    let wait = rules.stream_wait;
    let mut granted = Box::pin(async move {
        let granted = job.grant(Some(wait), wait).await;
        (job, granted)
    });
    let soon = tokio::time::timeout(rules.feedback_after, &mut granted).await;
    if let Ok((job, granted)) = soon {
        return job.finish_now(granted, record).await;
    }
    let Some(model) = name else {
        let (job, granted) = granted.await;
        return job.finish_now(granted, record).await;
    };
    let work = Box::pin(async move {
        let (job, granted) = granted.await;
        job.finish(granted?).await
    });
    let every = rules.feedback_interval;
    let wait = Wait::new(work, Waiter { beat, every, since, supervisor, model, asked });
    let mut response = Response::new(Source::Wait(Box::new(wait)));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // nginx would gather the signs of life otherwise.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    Ok(response)
}

fn own_head(begun: Begun) -> Response<Source> {
    let Begun { response, watch } = begun;
    response.map(|relay| Source::Relay(Box::new(relay), watch.map(Box::new)))
}

impl Job {
    /// A turn at the model, then a lease on it. `wait`: how long for the lease, where that is not as for all.
    async fn grant(&self, wait: Option<Duration>, turn: Duration) -> Result<Grant, ApiError> {
        let rules = &self.visitor.rules;
        let slot = match rules.resolve(&self.model) {
            None => None,
            Some(name) => {
                let patience = Patience { wait_max: turn, queue_max: rules.max_queue };
                let key = self.visitor.key();
                self.service.gate.enter(key, name, &self.spec, patience).await?
            }
        };
        let far = rules.resolve(&self.model).and_then(|n| Some((n, rules.externals.get(n)?)));
        let engine = match far {
            Some((name, external)) => {
                external::check(&self.service.healths, name)?;
                Engine::Far(external.clone())
            }
            None => {
                let id = self.id.to_str().ok();
                let lease = self.service.supervisor.acquire_for(&self.model, wait, id).await;
                Engine::Own(lease?)
            }
        };
        Ok(Grant { engine, _slot: slot })
    }

    /// The rest of the way of a request that has had no signs of life.
    async fn finish_now(
        self,
        granted: Result<Grant, ApiError>,
        record: &mut Record,
    ) -> Result<Response<Source>, ApiError> {
        record.queue_ends();
        let grant = granted?;
        record.instance = grant.lease().map(|lease| lease.instance().clone());
        self.finish(grant).await.map(own_head)
    }

    /// To the engine, and the head of its answer.
    async fn finish(self, grant: Grant) -> Result<Begun, ApiError> {
        let watch = grant.lease().filter(|_| self.recalled).map(|lease| {
            let instance = lease.instance().clone();
            let origin = Origin { instance, caller: self.visitor.name().map(str::to_owned) };
            Watch::new(self.service.answers.clone(), origin)
        });
        let instance = grant.lease().map(|lease| lease.instance().clone());
        let _ = self.asked.set(Asked { at: Instant::now(), instance });
        let order =
            Order { target: self.target, headers: &self.headers, id: self.id, body: self.body };
        let response = forward::forward(grant, order, &self.service.engines).await;
        // The engine has the body.
        drop(self.share);
        let response = response.map_err(|failure| failure.to_api(&self.model))?;
        Ok(Begun { response, watch })
    }
}

async fn look(task: Task, headers: &HeaderMap, body: Bytes) -> Result<Peek, ApiError> {
    match task.body() {
        BodyForm::Multipart => {
            let content_type = headers.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes);
            multipart::peek(content_type, &body)
        }
        BodyForm::Json if body.len() < PEEK_INLINE_MAX => Ok(peek(&body)?),
        BodyForm::Json => {
            let looked = tokio::task::spawn_blocking(move || peek(&body)).await;
            let failed = |e| Err(PeekError::Malformed(format!("it could not be read: {e}")));
            Ok(looked.unwrap_or_else(failed)?)
        }
    }
}
