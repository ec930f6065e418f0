//! Paths about the host. PURE.
//!
//! Purpose: the part of the list of paths that leads to the console. Owner: [`super::find`]. Invariant: as there, the answer depends on
//! nothing but the head.

use super::{ApiError, decode, model};
use crate::proxy::port::{Act, Page};

/// The word for a page in logs.
pub(super) const fn name(page: &Page) -> &'static str {
    match page {
        Page::Metrics => "metrics",
        Page::EngineMetrics(_) => "engine_metrics",
        Page::Models => "status_models",
        Page::Externals => "status_externals",
        Page::Gpus => "status_gpus",
        Page::Jobs => "status_jobs",
        Page::Events => "events",
        Page::Log(_) => "log",
        Page::OpenApi => "openapi",
        Page::Act(..) => "act",
        Page::Ui => "ui",
        Page::DebugState => "debug_state",
        Page::DebugPlan(_) => "debug_plan",
    }
}

/// The page at a path; `None`: there is none, so it is somebody else's.
pub(super) fn find(path: &str, query: Option<&str>) -> Option<Result<Page, ApiError>> {
    Some(Ok(match path {
        "/metrics" => Page::Metrics,
        "/ui" | "/ui/" => Page::Ui,
        "/api/v1/models" => Page::Models,
        "/api/v1/externals" => Page::Externals,
        "/api/v1/gpus" => Page::Gpus,
        "/api/v1/jobs" => Page::Jobs,
        "/api/v1/events" => Page::Events,
        "/api/v1/openapi.json" => Page::OpenApi,
        "/debug/state" => Page::DebugState,
        "/debug/plan" => return Some(plan(query.unwrap_or_default())),
        _ => {
            if let Some(id) = path.strip_prefix("/metrics/models/") {
                return Some(model(id).map(Page::EngineMetrics));
            }
            let (id, verb) = path.strip_prefix("/api/v1/models/")?.rsplit_once('/')?;
            if verb == "log" {
                return Some(model(id).map(Page::Log));
            }
            let (_, act) = Act::ALL.into_iter().find(|(word, _)| *word == verb)?;
            return Some(model(id).map(|id| Page::Act(id, act)));
        }
    }))
}

fn plan(query: &str) -> Result<Page, ApiError> {
    let malformed = |why: &str| ApiError::malformed(why);
    let id = query.strip_prefix("model=").filter(|id| !id.contains('&'));
    let id = id.ok_or_else(|| malformed("the model is missing: /debug/plan?model=NAME"))?;
    let id =
        decode(id).ok_or_else(|| malformed("the model's name holds a broken percent-escape"))?;
    model(&id).map(Page::DebugPlan)
}
