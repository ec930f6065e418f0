//! A request that an engine answers.
//!
//! Purpose: body → model → turn → lease → engine, each step elsewhere. Owner: the request's future; where signs of life are sent,
//! the answer's body, which then holds the rest of the way. Invariants: a refused request has asked the supervisor for nothing, but for
//! one whose large body is found wrong behind what told its model; no engine gets a refused request whole; dropping the future at any point gives turn, lease and connection back.

mod asking;

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use hyper::body::Incoming;
use hyper::header::{self, HeaderValue};
use hyper::http::request::Parts;
use hyper::{HeaderMap, Response, StatusCode};

use super::answer::Source;
use super::beat::Beat;
use super::budget::Share;
use super::clock;
use super::endpoints::{BodyForm, Task};
use super::error::ApiError;
use super::flow;
use super::forward;
use super::gate::Place;
use super::grant::Grant;
use super::intake::{Intake, Taken};
use super::keys::Key;
use super::multipart;
use super::order::{Order, Target};
use super::recall::{Origin, Watch};
use super::record::Record;
use super::rewrite::rewrite;
use super::rules::Rules;
use super::service::Service;
use super::strict;
use super::wait::{Asked, Begun, Wait, Waiter};
use crate::types::DoorSpec;

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

/// A request whose body was read, or enough of it.
struct Job {
    service: Arc<Service>,
    visitor: Visitor,
    order: Order,
    /// The body's part of the memory for bodies.
    share: Option<Share>,
    /// The rest of a body that flows.
    flow: Option<Box<Intake>>,
    /// Its place among those who wait for a turn at the model, where it has one already.
    place: Option<Place>,
    /// As the client wrote it.
    model: String,
    /// It asks for a stream.
    stream: bool,
    /// The body is an answer of `/v1/responses`, which may be asked for again.
    recalled: bool,
    spec: Arc<DoorSpec>,
    /// Where it is to be said when the engine is asked, if anybody waits to hear it.
    asked: Option<Arc<OnceLock<Asked>>>,
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
    let (mut job, early) = Job::read(service, task, head.headers, body, visitor, record).await?;
    record.queue_begins();
    let told = early.is_none() && job.is_told();
    let at_once = if told { job.at_once()? } else { early };
    let (mut job, granted) = if let Some(grant) = at_once {
        (job, Ok(grant))
    } else if told {
        match with_feedback(job).await {
            Ok(soon) => soon,
            Err(waiting) => return Ok(waiting),
        }
    } else {
        let wait_max = job.visitor.rules.max_wait;
        let granted = job.grant(wait_max).await;
        (job, granted)
    };
    record.queue_ends();
    let grant = granted?;
    let instance = grant.lease().map(|lease| lease.instance().clone());
    if job.flow.is_some() {
        record.instance = instance;
    } else {
        record.asks(instance);
    }
    // The record is at hand: nobody else need say it.
    job.asked = None;
    job.finish(grant).await.map(own_head)
}

/// What is particular to the model, if the visitor may use it. Nobody but us knows the alias of one that runs elsewhere: the far side is
/// told the model's own name for it, if no other is configured. One that nobody configured is refused where it is asked for.
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
    let spec = name.and_then(|name| rules.models.get(name)).cloned().unwrap_or_default();
    match name {
        Some(name)
            if name.as_str() != model && spec.served_name.is_none() && rules.is_far(model) =>
        {
            Ok(Arc::new(DoorSpec { served_name: Some(name.to_string()), ..(*spec).clone() }))
        }
        Some(_) | None => Ok(spec),
    }
}

/// A stream. Whoever is served soon gets the engine's own head; whoever has to wait gets one of ours (`Err`), and signs of life.
async fn with_feedback(
    mut job: Box<Job>,
) -> Result<(Box<Job>, Result<Grant, ApiError>), Response<Source>> {
    let since = clock::now();
    let rules = job.visitor.rules.clone();
    let wait = rules.stream_wait;
    let asked = Arc::<OnceLock<Asked>>::default();
    job.asked = Some(asked.clone());
    let waiter = rules.resolve(&job.model).map(|model| Waiter {
        beat: Beat {
            form: job.spec.feedback,
            events: job.order.target.events,
            model: job.model.clone(),
            created: job.service.created,
        },
        id: job.order.id.clone(),
        every: rules.feedback_interval,
        since,
        supervisor: job.service.supervisor.clone(),
        model: model.clone(),
        asked,
    });
    let mut granted = Box::pin(async move {
        let granted = job.grant(wait).await;
        (job, granted)
    });
    let Some(waiter) = waiter else { return Ok(granted.await) };
    if let Some(soon) = clock::within(rules.feedback_after, &mut granted).await {
        return Ok(soon);
    }
    let work = Box::pin(async move {
        let (job, granted) = granted.await;
        job.finish(granted?).await
    });
    let wait = Wait::new(work, waiter);
    let mut response = Response::new(Source::Wait(Box::new(wait)));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert(forward::UNGATHERED, HeaderValue::from_static("no"));
    Err(response)
}

fn own_head(begun: Begun) -> Response<Source> {
    let Begun { response, watch } = begun;
    response.map(|relay| Source::Relay(Box::new(relay), watch.map(Box::new)))
}

/// Why a body cannot be read: it is compressed, or else as it was found.
fn unreadable(headers: &HeaderMap, found: ApiError) -> ApiError {
    let coding = headers.get(header::CONTENT_ENCODING).map(HeaderValue::as_bytes);
    if coding.is_none_or(|coding| coding.eq_ignore_ascii_case(b"identity")) {
        return found;
    }
    let message = "the request's body is compressed (Content-Encoding); send it as it is";
    ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_encoding", message)
}

impl Job {
    /// Takes the body in, and finds out whom it is for. With a grant: the body flows, and has not come in whole. Boxed, because it is
    /// moved from hand to hand.
    async fn read(
        service: &Arc<Service>,
        task: Task,
        headers: HeaderMap,
        body: Incoming,
        visitor: Visitor,
        record: &mut Record,
    ) -> Result<(Box<Self>, Option<Grant>), ApiError> {
        let asked_first = strict::has(&headers, &header::EXPECT);
        let json = task.body() == BodyForm::Json;
        let share = service.budget.share(visitor.rules.max_buffered.0);
        let mut intake = Intake::open(body, &service.limits, asked_first, json, share).await?;
        let taken = intake.take(false).await?;
        // No engine of ours works on without a lease.
        if task == Task::Responses
            && intake.model().is_some_and(|model| !visitor.rules.is_far(model))
        {
            intake.in_foreground();
        }
        if taken == Taken::Part {
            if let Some(model) = intake.model().map(str::to_owned) {
                let job = Self::new(service, task, headers, visitor, record, model);
                return Box::pin(Self::read_on(job, intake)).await;
            }
            // Refused by now, and its client may have to send all before it reads. Nothing of it is kept.
            drop(intake.let_go());
            intake.forget();
            intake.rest().await?;
        }
        let (peek, named) = match intake.peeked().map_err(|error| unreadable(&headers, error))? {
            Some(peek) => (peek, None),
            None => {
                let content_type = headers.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes);
                let form = multipart::peek(content_type, intake.held());
                let form = form.map_err(|error| unreadable(&headers, error))?;
                (form.peek, Some(form.model))
            }
        };
        let mut job = Self::new(service, task, headers, visitor, record, peek.model)?;
        job.fill(intake, named, peek.stream);
        Ok((job, None))
    }

    /// A body of which much is still to come: to the engine with it, if one is to be had at once. If not, it is as any other, and the
    /// model has heard already that it is wanted.
    async fn read_on(
        mut job: Result<Box<Self>, ApiError>,
        mut intake: Intake,
    ) -> Result<(Box<Self>, Option<Grant>), ApiError> {
        if let (Ok(early), Some(length)) = (&mut job, intake.length())
            && !early.spec.rewrites()
        {
            let since = clock::now();
            let grant = early.early().await;
            intake.pardon(since);
            if grant.is_some() {
                early.order.rest = length;
                early.flow = Some(Box::new(intake));
                return job.map(|job| (job, grant));
            }
            // The body may be hours on its way: no turn is kept for it meanwhile.
            early.place.as_mut().into_iter().for_each(Place::step_aside);
        }
        intake.take(true).await?;
        let peek = intake.peeked()?;
        let mut job = job?;
        job.place.as_mut().into_iter().for_each(Place::come_back);
        job.fill(intake, None, peek.is_some_and(|peek| peek.stream));
        Ok((job, None))
    }

    fn new(
        service: &Arc<Service>,
        task: Task,
        headers: HeaderMap,
        visitor: Visitor,
        record: &mut Record,
        model: String,
    ) -> Result<Box<Self>, ApiError> {
        record.is_for(&model, visitor.rules.resolve(&model));
        if let Some(error) = ApiError::impossible_model(&model) {
            return Err(error);
        }
        let spec = admit_model(&visitor, &model)?;
        let order = Order {
            target: Target::from(task),
            headers,
            id: record.id(),
            engines_id: record.engines_id(),
            body: Bytes::new(),
            rest: 0,
        };
        let service = service.clone();
        let recalled = task == Task::Responses;
        Ok(Box::new(Self {
            service,
            visitor,
            order,
            share: None,
            flow: None,
            place: None,
            model,
            stream: false,
            recalled,
            spec,
            asked: None,
        }))
    }

    /// Its body has come in whole. `named`: the part of a form that has the model's name; `None`: it is JSON.
    fn fill(&mut self, intake: Intake, named: Option<Range<usize>>, stream: bool) {
        let (body, share) = intake.whole();
        self.order.body = match (named, &self.spec.served_name) {
            (None, _) if self.spec.rewrites() => {
                rewrite(&body, &self.spec, self.order.target.events)
            }
            (Some(named), Some(name)) => multipart::renamed(&body, named, name),
            (None | Some(_), _) => body,
        };
        self.share = Some(share);
        self.stream = stream;
    }

    /// To the engine, and the head of its answer.
    async fn finish(mut self: Box<Self>, grant: Grant) -> Result<Begun, ApiError> {
        let instance = grant.lease().map(|lease| lease.instance().clone());
        let giver = instance.clone().filter(|_| self.recalled);
        if let Some(asked) = &self.asked {
            let observer = &self.service.observer;
            let first = instance.as_ref().is_some_and(|instance| observer.asks(instance));
            let _ = asked.set(Asked { at: clock::now(), instance, first });
        }
        let engines = &self.service.engines;
        let response = match self.flow.take() {
            Some(intake) => {
                Box::pin(flow::flow(grant, &self.order, intake, engines, &self.model)).await?
            }
            None => {
                let response = forward::forward(grant, &self.order, engines).await;
                response.map_err(|failure| failure.to_api(&self.model))?
            }
        };
        let watch = giver.filter(|_| response.status().is_success()).map(|instance| {
            let origin = Origin { instance, caller: self.visitor.name().map(str::to_owned) };
            Watch::new(self.service.answers.clone(), origin)
        });
        Ok(Begun { response, watch })
    }
}
