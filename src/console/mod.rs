//! L3: what the endpoint tells about its host: metrics, status, events, the dashboard, and what an administrator does there.
//!
//! Purpose: answers the pages that `proxy::port` names, from the published `Status`, from `observe` and `control`. Owner: the composition
//! root makes one [`Desk`]. Invariants: nothing here decides about models; what changes something goes the way of every operator's
//! wish; no answer holds a prompt, a completion or a key.

use std::sync::Arc;

use bytes::Bytes;
use hyper::Response;
use hyper::header::{self, HeaderValue};

use crate::control::Context;
use crate::observe::metrics::Metrics;
use crate::observe::timeline::Timeline;
use crate::proxy::port::{Answer, Asker, Console, Content, Page, Refusal};
use crate::supervisor::handle::Handle;

/// Answers for the host.
#[derive(Debug)]
pub struct Desk {
    /// For the status.
    pub handle: Handle,
    /// For metrics.
    pub metrics: Arc<Metrics>,
    /// For events.
    pub timeline: Arc<Timeline>,
    /// For jobs.
    pub control: Arc<Context>,
}

impl Console for Desk {
    fn answer(&self, page: Page, asker: Asker) -> Answer<'_> {
        Box::pin(self.page(page, asker))
    }
}

impl Desk {
    async fn page(&self, page: Page, _asker: Asker) -> Result<Response<Content>, Refusal> {
        match page {
            Page::Metrics => {
                let text = self.metrics.render(&self.handle.status());
                Ok(whole("application/openmetrics-text; version=1.0.0; charset=utf-8", text))
            }
            Page::EngineMetrics(_)
            | Page::Models
            | Page::Gpus
            | Page::Jobs
            | Page::Events
            | Page::Log(_)
            | Page::OpenApi
            | Page::Act(..)
            | Page::Ui
            | Page::DebugState
            | Page::DebugPlan(_) => {
                let message = "there is no such page yet".to_owned();
                Err(Refusal { status: 404, code: "unknown_path", message })
            }
        }
    }
}

fn whole(content_type: &'static str, body: impl Into<Bytes>) -> Response<Content> {
    let mut response = Response::new(Content::Whole(body.into()));
    let value = HeaderValue::from_static(content_type);
    response.headers_mut().insert(header::CONTENT_TYPE, value);
    response
}
