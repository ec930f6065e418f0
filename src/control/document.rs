//! The status as one JSON document: what `GetStatus` returns.
//!
//! Invariant: its schema ([`schema`], shipped as `docs/status.schema.json`) is made from the very types that are written, so the two
//! cannot drift apart.

use std::borrow::Cow;
use std::time::Duration;

use serde::Serialize;

use super::Context;
use crate::types::{ExternalStatus, Status};

/// Everything that a reader may know, at one moment.
#[derive(Debug, Serialize, schemars::JsonSchema)]
pub struct Document<'a> {
    /// The daemon itself.
    #[serde(flatten)]
    about: About<'a>,
    /// Models, devices, problems.
    #[serde(flatten)]
    status: &'a Status,
    /// Models that run elsewhere: routed to, and asked whether they live. In the order of the names.
    externals: Vec<ExternalStatus>,
}

/// What is not about models and devices.
#[derive(Debug, Serialize, schemars::JsonSchema)]
struct About<'a> {
    /// The daemon's version.
    version: &'a str,
    /// `running`, `degraded` or `stopping`.
    state: &'static str,
    /// The moment, on the daemon's clock; all others (`since`, `last_used`) are on it too.
    now: Duration,
    /// Microseconds since 1970 at the clock's start, as the host's clock is now: it moves with a suspend, or when that is set.
    epoch_us: u64,
    /// podman's API version.
    podman_version: &'a str,
    /// Where requests are accepted.
    listeners: &'a [String],
    /// Running and lately ended.
    jobs: Vec<JobRow>,
}

/// One job.
#[derive(Debug, Serialize, schemars::JsonSchema)]
pub struct JobRow {
    /// Its number.
    id: u32,
    /// What it does.
    kind: &'static str,
    /// Of which model; `None`: all.
    model: Option<String>,
    /// `running`, `done`, `failed` or `cancelled`.
    state: &'static str,
    /// When it was begun.
    began: Duration,
    /// From 0 to 1, by what earlier loads took; `None`: not known.
    progress: Option<f64>,
    /// Why it failed, for people.
    error: Option<String>,
}

fn jobs(context: &Context) -> Vec<JobRow> {
    let job = |job: super::jobs::Record| JobRow {
        id: job.id,
        kind: job.kind.as_str(),
        model: job.model.as_ref().map(ToString::to_string),
        state: job.state.as_str(),
        began: job.began.0,
        progress: Some(context.job_progress(&job).0).filter(|p| *p >= 0.0),
        error: job.error().map(|error| error.message.clone()),
    };
    context.jobs.all().into_iter().map(job).collect()
}

fn about_now<'a>(context: &'a Context, status: &Status) -> About<'a> {
    About {
        version: &context.facts.version,
        state: state(status),
        now: context.handle.now().0,
        epoch_us: context.epoch_us(),
        podman_version: &context.facts.podman,
        listeners: &context.facts.listeners,
        jobs: jobs(context),
    }
}

/// The document, as it is now; with what engines that failed wrote last, for who may read `logs`.
pub(super) fn json(context: &Context, logs: bool) -> String {
    let status = context.handle.status();
    let shown = if logs { Cow::Borrowed(&*status) } else { status.without_logs() };
    let about = about_now(context, &status);
    let document = Document { about, status: &shown, externals: context.host.externals() };
    // Strings, numbers and lists of them cannot fail to serialise.
    serde_json::to_string(&document).unwrap_or_default()
}

/// The part that is about the daemon itself.
pub(super) fn about(context: &Context) -> serde_json::Map<String, serde_json::Value> {
    match serde_json::to_value(about_now(context, &context.handle.status())) {
        Ok(serde_json::Value::Object(map)) => map,
        Ok(_) | Err(_) => serde_json::Map::new(),
    }
}

/// The jobs alone.
pub(super) fn jobs_json(context: &Context) -> String {
    serde_json::to_string(&jobs(context)).unwrap_or_default()
}

/// One word for it all.
pub(super) fn state(status: &Status) -> &'static str {
    if status.shutting_down {
        "stopping"
    } else if status.problems.is_empty() {
        "running"
    } else {
        "degraded"
    }
}

/// The document's JSON schema.
#[must_use]
pub fn schema() -> serde_json::Value {
    schemars::schema_for!(Document<'_>).to_value()
}
