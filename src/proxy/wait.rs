//! A stream whose model is not there yet.
//!
//! Purpose: after its 200, a client gets signs of life until the engine's own bytes come. Owner: the answer's body. Invariants: the
//! work (a turn, a lease, the engine's head) goes on between the signs and is dropped with the client; what fails after the 200
//! is told by an event, and the stream then ends without a `[DONE]`.

use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::header::{self, HeaderValue};
use hyper::{Response, StatusCode};
use serde_json::Value;
use tokio::time::{Instant, Interval, MissedTickBehavior};

use super::beat::{Beat, Stage};
use super::endpoints::Events;
use super::error::ApiError;
use super::recall::Watch;
use super::record::Record;
use super::relay::Relay;
use crate::supervisor::handle::Handle;
use crate::types::{InstanceId, ModelName};

/// An engine's refusal is read up to here, to be told as an event.
const REFUSAL_MAX: usize = 64 << 10;

/// An engine's answer whose head has come.
#[derive(Debug)]
pub(super) struct Begun {
    pub response: Response<Relay>,
    /// Looks for what has to be remembered of it.
    pub watch: Option<Watch>,
}

/// When an engine was asked, and which.
#[derive(Debug)]
pub(super) struct Asked {
    pub at: Instant,
    /// `None`: one that runs elsewhere.
    pub instance: Option<InstanceId>,
    /// Nobody had asked it before.
    pub first: bool,
}

/// What is to be done until then.
pub(super) type Work = Pin<Box<dyn Future<Output = Result<Begun, ApiError>> + Send>>;

/// How it goes on.
#[derive(Debug)]
pub(super) enum Step {
    /// A sign of life.
    Beat(Bytes),
    /// The engine's stream begins.
    Began(Box<Begun>),
    /// It never will: the event that says so, and what is to be logged.
    Failed(Bytes, Box<ApiError>),
}

/// The future of the engine's answer: what was asked for, or an event that tells why not.
type Told = Pin<Box<dyn Future<Output = Result<Begun, (Vec<u8>, ApiError)>> + Send>>;

/// The wait.
pub(super) struct Wait {
    work: Told,
    beat: Beat,
    id: HeaderValue,
    tick: Interval,
    since: Instant,
    supervisor: Handle,
    model: ModelName,
    asked: Arc<OnceLock<Asked>>,
}

impl std::fmt::Debug for Wait {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Wait").field("model", &self.model).finish_non_exhaustive()
    }
}

/// What a wait is for.
pub(super) struct Waiter {
    pub beat: Beat,
    /// The request's ID.
    pub id: HeaderValue,
    pub every: Duration,
    /// When the request came.
    pub since: Instant,
    pub supervisor: Handle,
    pub model: ModelName,
    /// Set once the engine was asked.
    pub asked: Arc<OnceLock<Asked>>,
}

impl Wait {
    /// Begins with a sign of life at once.
    pub fn new(work: Work, waiter: Waiter) -> Self {
        let Waiter { beat, id, every, since, supervisor, model, asked } = waiter;
        let mut tick = tokio::time::interval(every);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let work = Box::pin(streamed(work, beat.events, id.clone()));
        Self { work, beat, id, tick, since, supervisor, model, asked }
    }

    /// The next step.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Step> {
        match self.work.as_mut().poll(cx) {
            Poll::Ready(Ok(begun)) => return Poll::Ready(Step::Began(Box::new(begun))),
            Poll::Ready(Err((event, error))) => {
                return Poll::Ready(Step::Failed(event.into(), Box::new(error)));
            }
            Poll::Pending => {}
        }
        std::task::ready!(self.tick.poll_tick(cx));
        let stage = if self.asked.get().is_some() {
            Stage::Engine
        } else {
            Stage::of(&self.supervisor.status(), &self.model, self.supervisor.now())
        };
        Poll::Ready(Step::Beat(self.beat.bytes(stage, self.since.elapsed()).into()))
    }

    /// What a request's record has to know of it when it is over.
    pub fn tell(&self, record: &mut Record) {
        match self.asked.get() {
            Some(asked) => record.asked(asked),
            None => record.queue_ends(),
        }
    }

    /// Ends it before the engine's own bytes came, because the daemon ends.
    pub fn end_early(&self) -> Step {
        let error = ApiError::drained();
        Step::Failed(error.event(self.beat.events, &self.id).into(), Box::new(error))
    }
}

/// The work, whose outcome has to be a stream of events: a client that has its 200 understands nothing else.
async fn streamed(
    work: Work,
    events: Events,
    id: HeaderValue,
) -> Result<Begun, (Vec<u8>, ApiError)> {
    let mut begun = work.await.map_err(|error| (error.event(events, &id), error))?;
    let status = begun.response.status();
    if status == StatusCode::OK && begun.response.body().is_events() {
        begun.response.body_mut().open();
        return Ok(begun);
    }
    let compressed = begun.response.headers().contains_key(header::CONTENT_ENCODING);
    let mut body = begun.response.into_body();
    let mut all = Vec::new();
    while all.len() < REFUSAL_MAX {
        match std::future::poll_fn(|cx| body.poll_data(cx)).await {
            Some(Ok(data)) => all.extend_from_slice(&data),
            Some(Err(_)) | None => break,
        }
    }
    let message = format!("the engine answered with status {status} instead of a stream");
    let error = ApiError::new(status_for(status), "engine_refused", message);
    // Its own words, if they are an error in JSON that fits an event, or a text in one. They are its client's to read and nobody else's: they
    // may repeat what was asked.
    let said = serde_json::from_slice::<Value>(&all).ok().filter(|_| !compressed);
    let event = match said {
        // One of responses' has its fields elsewhere.
        Some(value) if events != Events::Responses && value.get("error").is_some() => {
            let name = if events == Events::Messages { "event: error\n" } else { "" };
            format!("{name}data: {value}\n\n").into_bytes()
        }
        said => {
            let words = said.as_ref().and_then(words).map(|words| format!(": {words}"));
            let message = error.message.clone() + &words.unwrap_or_default();
            ApiError { message, ..error.clone() }.event(events, &id)
        }
    };
    Err((event, error))
}

/// What engines say in words: in an `error`, or outside of one as vLLM of old, SGLang, and whatever is made with FastAPI.
fn words(said: &Value) -> Option<&str> {
    let said = said.get("error").unwrap_or(said);
    said.as_str()
        .or_else(|| ["message", "detail"].into_iter().find_map(|key| said.get(key)?.as_str()))
}

fn status_for(status: StatusCode) -> StatusCode {
    if status.is_client_error() || status.is_server_error() {
        status
    } else {
        StatusCode::BAD_GATEWAY
    }
}
