//! Metrics.
//!
//! ```text
//!   front door ── Seen ──▶ requests ──┐
//!   owner ── Notice, Look ▶ happenings ┼─▶ page, in OpenMetrics' or Prometheus' text
//!   podman ── Call ───────▶ calls ────┤
//!   Status, driver, kernel ───────────┘ read at the scrape
//! ```
//! Purpose: count what happens, for Prometheus. Owner: the composition root. Invariants: labels are bounded by the configuration and by
//! lists in this source, whatever clients write; a model's series go with the model; what [`Status`] has already is read at the scrape and never counted twice; counting
//! takes no lock on the thread of requests. The names are in [`names`].

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, prometheus_text, text};
use prometheus_client::registry::Registry;

use crate::proxy::port::{Observer, Seen};
use crate::supervisor::witness::{Call, Calls, Look, Notice, Witness};
use crate::types::{ExternalStatus, GpuVitals, InstanceId, ModelName, Moment, Status};
use count::{Count, Histogram, LONG_SECONDS, Table};
use page::{Page, Value};

mod count;
mod happenings;
pub mod names;
mod page;
mod picture;
mod process;
pub mod relabel;
mod requests;

/// All that is counted.
#[derive(Debug, Default)]
pub struct Metrics {
    requests: requests::Requests,
    happenings: happenings::Happenings,
    calls: Table<(&'static str, &'static str), Histogram>,
    spans: Spans,
    /// Models that are configured; `None`: nobody said which.
    configured: ArcSwapOption<BTreeSet<ModelName>>,
}

/// What has become of spans.
#[derive(Debug, Default)]
struct Spans {
    sent: Count,
    lost: Count,
}

/// What a scrape reads, beside what is counted.
#[derive(Clone, Debug, Default)]
pub struct Scrape {
    /// The latest picture.
    pub status: Arc<Status>,
    /// On the clock of its moments.
    pub now: Moment,
    /// What the driver tells beside memory; empty where it tells nothing.
    pub vitals: Vec<GpuVitals>,
    /// Models that run elsewhere.
    pub externals: Vec<ExternalStatus>,
}

/// How the page is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// OpenMetrics 1.0.
    OpenMetrics,
    /// Prometheus' own text, version 0.0.4, which everybody reads.
    Text,
}

impl Format {
    /// For the answer's `Content-Type`.
    #[must_use]
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Text => prometheus_text::CONTENT_TYPE,
        }
    }
}

impl Metrics {
    /// The collector took so many spans, and so many are lost.
    pub fn spans(&self, sent: u64, lost: u64) {
        self.spans.sent.add(sent);
        self.spans.lost.add(lost);
    }

    /// These models are configured from now on, those that run elsewhere included. What was counted of one that is not any more is
    /// forgotten: by the next scrape for which it has left, or, where nobody scrapes, by the next call.
    pub fn configured(&self, models: BTreeSet<ModelName>) {
        let before = self.configured.swap(Some(Arc::new(models)));
        self.forget(|model| before.as_ref().is_none_or(|before| before.contains(model)));
    }

    /// These are the names of keys from now on. What was counted of others is forgotten.
    pub fn keys(&self, names: &BTreeSet<String>) {
        self.requests.retain_keys(names);
    }

    /// Forgets all models that are neither configured nor still there.
    fn forget(&self, still: impl Fn(&ModelName) -> bool) {
        if let Some(configured) = &*self.configured.load() {
            let there = |model: &ModelName| configured.contains(model) || still(model);
            self.requests.retain(there);
            self.happenings.retain(there);
        }
    }

    /// The page.
    #[must_use]
    pub fn render(self: &Arc<Self>, scrape: Scrape, format: Format) -> String {
        let models = &scrape.status.models;
        self.forget(|model| models.iter().any(|m| m.name == *model));
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Whole { metrics: self.clone(), scrape }));
        let mut page = String::new();
        let written = match format {
            Format::OpenMetrics => text::encode(&mut page, &registry),
            Format::Text => prometheus_text::encode(&mut page, &registry),
        };
        // Nothing that is written into a text can fail.
        debug_assert_eq!(written, Ok(()));
        page
    }
}

/// The whole page as the library wants it.
#[derive(Debug)]
struct Whole {
    metrics: Arc<Metrics>,
    scrape: Scrape,
}

impl Collector for Whole {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> std::fmt::Result {
        let mut page = Page::new(encoder);
        let page = &mut page;
        let Self { metrics, scrape } = self;
        let turns = |model: &ModelName| metrics.requests.waiting(model);
        picture::write(page, scrape, turns)?;
        metrics.requests.write(page)?;
        let models = &scrape.status.models;
        metrics.happenings.write(page, &metrics.requests.first_token, models)?;
        picture::vitals(page, &scrape.vitals)?;
        let calls = metrics.calls.rows();
        let calls = calls.iter().map(|((op, result), took)| {
            (vec![(*op).to_owned(), (*result).to_owned()], Value::Histogram(took.read()))
        });
        page.family(&names::PODMAN_SECONDS, calls)?;
        let Spans { sent, lost } = &metrics.spans;
        let spans = [("sent", sent), ("lost", lost)]
            .map(|(result, n)| (vec![result.to_owned()], Value::Count(n.get())));
        page.family(&names::TRACE_SPANS, spans)?;
        process::write(page)
    }
}

impl Observer for Metrics {
    fn begun(&self) {
        self.requests.begun();
    }

    fn awaits_turn(&self, model: &ModelName, begins: bool) {
        self.requests.awaits_turn(model, begins);
    }

    fn asks(&self, instance: &InstanceId) -> bool {
        self.requests.asks(instance)
    }

    fn ended(&self, seen: &Seen<'_>) {
        self.requests.ended(seen);
    }
}

impl Witness for Metrics {
    fn see(&self, at: Moment, notice: &Notice, _: Option<&str>) {
        match notice {
            // One of an earlier daemon has had its first request long ago.
            Notice::Starting { instance, .. } => self.requests.fresh(instance, true),
            Notice::Stopped { instance } | Notice::Failed { instance, .. } => {
                self.requests.fresh(instance, false);
            }
            Notice::Pulling { .. }
            | Notice::Loading { .. }
            | Notice::Adopted { .. }
            | Notice::Ready { .. }
            | Notice::Yielding { .. }
            | Notice::Spared { .. }
            | Notice::FallingAsleep { .. }
            | Notice::Asleep { .. }
            | Notice::SleepFailed { .. }
            | Notice::Waking { .. }
            | Notice::Woken { .. }
            | Notice::WakeFailed { .. }
            | Notice::Sleepless { .. }
            | Notice::Stopping { .. }
            | Notice::StopFailed { .. }
            | Notice::PlannedAgain { .. }
            | Notice::Measured { .. }
            | Notice::Unmeasured { .. }
            | Notice::Waiting { .. } => {}
        }
        self.happenings.see(at, notice);
    }

    fn looked(&self, at: Look, ok: bool) {
        self.happenings.looked(at, ok);
    }
}

impl Calls for Metrics {
    fn over(&self, call: Call, took: Duration) {
        let key = (call.op, if call.ok { "ok" } else { "error" });
        self.calls.with(&key, || key, || Histogram::new(LONG_SECONDS), |h| h.observe(took));
    }
}

#[cfg(test)]
mod tests;
