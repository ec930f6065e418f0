//! `/metrics`, and engines' own below `/metrics/models/`.
//!
//! Purpose: one scrape. Owner: [`super::Desk`]. Invariants: a scrape asks neither podman nor the driver for
//! anything; it wakes no model, holds no lease and counts as no use; an engine that does not answer costs it a bounded time.

use std::sync::Arc;

use hyper::Response;

use super::whole;
use crate::observe::metrics::{Format, Metrics, Scrape, relabel};
use crate::proxy::port::{Asker, Content, Refusal};
use crate::supervisor::handle::Handle;
use crate::supervisor::ports::{Engines, Gpus};
use crate::types::{Denied, ExternalStatus, ModelName};

/// Answers scrapes.
#[derive(Clone)]
pub struct Scrapes {
    /// For the status, and where engines are.
    pub handle: Handle,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// For what the driver tells beside memory.
    pub gpus: Arc<dyn Gpus>,
    /// For engines' own metrics.
    pub engines: Arc<dyn Engines>,
}

impl std::fmt::Debug for Scrapes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scrapes").finish_non_exhaustive()
    }
}

impl Scrapes {
    /// `GET /metrics`. `externals`: models that run elsewhere, of which the supervisor knows nothing.
    pub async fn own(&self, asker: &Asker, externals: Vec<ExternalStatus>) -> Response<Content> {
        let format = if asker.openmetrics { Format::OpenMetrics } else { Format::Text };
        let vitals = self.gpus.vitals().await;
        let (status, now) = (self.handle.status(), self.handle.now());
        let scrape = Scrape { status, now, vitals, externals };
        whole(format.content_type(), self.metrics.render(scrape, format))
    }

    /// `GET /metrics/models/{id}`.
    ///
    /// # Errors
    /// Where there is no engine that could be asked, or it does not answer.
    pub async fn of_engine(&self, model: &ModelName) -> Result<Response<Content>, Refusal> {
        let reached = self.handle.reach(model).await;
        let (instance, endpoint) = reached.map_err(|denied| {
            let unknown = matches!(denied, Denied::UnknownModel { .. });
            let (status, code) =
                if unknown { (404, denied.code()) } else { (503, "model_not_ready") };
            Refusal { status, code, message: denied.to_string() }
        })?;
        let asked = self.engines.metrics(endpoint).await;
        let page = asked.map_err(|why| {
            let message = format!("the engine of {} gave no metrics: {why}", instance.model);
            Refusal { status: 502, code: "engine_failed", message }
        })?;
        let page = relabel::with_model(&page, instance.model.as_str());
        Ok(whole(Format::Text.content_type(), page))
    }
}
