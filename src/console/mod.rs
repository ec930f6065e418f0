//! L3: what the endpoint tells about its host: metrics, status, events, the dashboard, and what an administrator does there.
//!
//! Purpose: answers the pages that `proxy::port` names, from the published `Status`, from `observe` and `control`. Owner: the composition
//! root makes one [`Desk`]. Invariants: nothing here decides about models; what changes something goes the way of every operator's
//! wish; no answer holds a prompt, a completion or a key.

use std::sync::Arc;

use bytes::Bytes;
use hyper::Response;
use hyper::header::{self, HeaderValue};
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::control::Context;
use crate::control::deed::Deed;
use crate::control::error::{Code, Error};
use crate::observe::timeline::Timeline;
use crate::proxy::port::{Act, Answer, Asker, ByteStream, Console, Content, Page, Refusal};
use crate::types::{Haste, ModelName, Wish};

mod events;
mod log;
pub mod metrics;
pub mod openapi;
mod ui;

use metrics::Scrapes;

/// Answers for the host.
#[derive(Debug)]
pub struct Desk {
    /// For metrics.
    pub scrapes: Scrapes,
    /// For events.
    pub timeline: Arc<Timeline>,
    /// For all else.
    pub control: Arc<Context>,
    /// Where control runs: its jobs live longer than the thread of requests cares to.
    pub runtime: tokio::runtime::Handle,
}

impl Console for Desk {
    fn answer(&self, page: Page, asker: Asker) -> Answer<'_> {
        Box::pin(self.page(page, asker))
    }

    fn about(&self) -> Map<String, Value> {
        self.control.about()
    }
}

impl Desk {
    async fn page(&self, page: Page, asker: Asker) -> Result<Response<Content>, Refusal> {
        let status = || self.control.status();
        Ok(match page {
            Page::Metrics => self.scrapes.own(&asker, self.control.externals()).await,
            Page::EngineMetrics(model) => {
                let model = self.control.name(model.as_str())?;
                self.scrapes.of_engine(&model).await?
            }
            // What engines wrote is on a page of its own, for who may read it.
            Page::Models => json_page(&status().without_logs().models),
            Page::Externals => json_page(&self.control.externals()),
            Page::Gpus => json_page(&status().gpus),
            Page::Jobs => json_text(self.control.jobs_json()),
            Page::Events => stream(events::listen(self.control.clone(), &self.timeline, &asker)),
            Page::Log(model) => stream(self.log(model).await?),
            Page::OpenApi => whole("application/json", openapi::text()),
            Page::Act(model, act) => self.act(model, act, asker).await?,
            Page::Ui => ui::page(),
            Page::DebugState => json_text(self.control.status_json()),
            Page::DebugPlan(model) => json_text(self.control.plan_json(model.as_str()).await?),
        })
    }

    async fn log(&self, model: ModelName) -> Result<ByteStream, Refusal> {
        let control = self.control.clone();
        let opened = self
            .away(async move { control.open_log(model.as_str(), Some(log::LINES), true).await });
        let pipe = opened.await?;
        log::lines(pipe)
            .map_err(|err| Error::new(Code::NoLog, format!("the log cannot be read: {err}")).into())
    }

    /// Does what an administrator asks for; the job's number where it takes a while.
    async fn act(
        &self,
        name: ModelName,
        act: Act,
        asker: Asker,
    ) -> Result<Response<Content>, Refusal> {
        let control = self.control.clone();
        let model = control.name(name.as_str())?;
        let (word, key) = (act.word(), asker.key.unwrap_or_default());
        tracing::info!(%model, key, "{model}: {word} was asked for over HTTP with the key {key:?}");
        let done = self.away(async move {
            let deed = match act {
                Act::Load => Deed::Load(model, Wish::default()),
                Act::Unload => Deed::Unload(model, Haste::Drain),
                Act::Measure => Deed::Measure(model),
                Act::Sleep => Deed::Sleep(model),
                Act::Wake => Deed::Wake(model),
                Act::Pin => return control.pin(&model, true).await.map(|()| None),
                Act::Unpin => return control.pin(&model, false).await.map(|()| None),
            };
            control.start(deed).await.map(Some)
        });
        let job = done.await?;
        let mut response = json_page(&json!({ "job": job }));
        if job.is_some() {
            *response.status_mut() = hyper::StatusCode::ACCEPTED;
        }
        Ok(response)
    }

    /// Control's work, off the thread of requests; it is finished also where the client leaves.
    async fn away<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, Error>> + Send + 'static,
    ) -> Result<T, Error> {
        let failed = |err| Err(Error::new(Code::Internal, format!("it did not end: {err}")));
        self.runtime.spawn(work).await.unwrap_or_else(failed)
    }
}

/// A fault that a request may be refused for, too, has the same word as there ([`crate::types::Denied::code`]).
impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        let (status, code) = match error.code {
            Code::UnknownModel => (404, "model_not_found"),
            Code::UnknownJob => (404, "job_not_found"),
            Code::NoLog => (404, "no_log"),
            Code::InvalidArgument => (400, "invalid_argument"),
            Code::Conflict => (409, "conflict"),
            Code::NeverFits => (503, "model_never_fits"),
            Code::NoRoom => (503, "no_room"),
            Code::StillLoading => (503, "model_loading"),
            Code::LoadFailed => (503, "model_load_failed"),
            Code::QueueFull => (503, "queue_full"),
            Code::Unmeasurable => (503, "model_unmeasurable"),
            Code::Unloaded => (503, "model_unloaded"),
            Code::Cancelled => (409, "cancelled"),
            Code::ShuttingDown => (503, "shutting_down"),
            Code::ConfigInvalid | Code::Internal => (500, "internal"),
            Code::AccessDenied | Code::InteractiveAuthorizationRequired => (403, "access_denied"),
        };
        Self { status, code, message: error.message }
    }
}

fn json_page(value: &impl Serialize) -> Response<Content> {
    // Plain data with string keys cannot fail to serialise.
    json_text(serde_json::to_string(value).unwrap_or_default())
}

fn json_text(json: String) -> Response<Content> {
    whole("application/json", json)
}

fn whole(content_type: &'static str, body: impl Into<Bytes>) -> Response<Content> {
    let body = body.into();
    let length = HeaderValue::from(body.len());
    let mut response = typed(content_type, Content::Whole(body));
    response.headers_mut().insert(header::CONTENT_LENGTH, length);
    response
}

fn stream(events: ByteStream) -> Response<Content> {
    let mut response = typed("text/event-stream", Content::Stream(events));
    // nginx would gather events otherwise.
    response.headers_mut().insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

/// Nothing here may be kept by anybody on the way: it is of this moment.
fn typed(content_type: &'static str, content: Content) -> Response<Content> {
    let mut response = Response::new(content);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::types::{self, Denied, Fault, FaultCode, Phase};

    #[test]
    fn a_fault_has_one_word_whoever_is_told_of_it() {
        let model: ModelName = "m".parse().unwrap();
        let (retry_after, why) = (Duration::from_secs(1), String::from("x"));
        let (need, largest) = (types::Bytes::gib(9), types::Bytes::gib(8));
        let fault = Fault::new(FaultCode::EngineExited, "exit 1");
        let phase = Phase::Loading;
        let all = [
            Denied::UnknownModel { model: "m".into() },
            Denied::NeverFits { model: model.clone(), need, devices: 1, largest, report: None },
            Denied::NoRoom { model: model.clone(), why: why.clone(), report: None, retry_after },
            Denied::StillLoading { model: model.clone(), phase, retry_after },
            Denied::LoadFailed { model: model.clone(), fault, retry_after },
            Denied::QueueFull { model: model.clone(), queued: 9, retry_after },
            Denied::Unmeasurable { model: model.clone(), why: why.clone() },
            Denied::Unloaded { model: model.clone() },
            Denied::Conflict { model, why },
            Denied::ShuttingDown,
        ];
        for denied in all {
            let refusal = Refusal::from(Error::from(denied.clone()));
            assert_eq!(refusal.code, denied.code());
            let status = match refusal.code {
                "model_not_found" => 404,
                "conflict" => 409,
                _ => 503,
            };
            assert_eq!(refusal.status, status, "{}", refusal.code);
        }
    }
}
