//! The immutable picture that readers get.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use schemars::JsonSchema;
use serde::Serialize;

use super::{
    Bytes, Fault, GpuId, InstanceId, Known, ModelName, Moment, Need, Phase, Report, SleepLevel,
};

/// Everything a reader may know, published whole by the supervisor after each turn; never walked while it changes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Status {
    /// In the order of the names.
    pub models: Vec<ModelStatus>,
    /// In the order of the identifiers.
    pub gpus: Vec<GpuStatus>,
    /// What is wrong right now; empty when all is well.
    pub problems: Vec<Problem>,
    /// The daemon takes no new requests any more.
    pub shutting_down: bool,
}

impl Status {
    /// Whether it holds what an engine wrote.
    #[must_use]
    pub fn has_logs(&self) -> bool {
        let tail = |m: &ModelStatus| m.error.as_ref().is_some_and(|f| !f.log_tail.is_empty());
        self.models.iter().any(tail)
    }

    /// The same without what engines wrote, which may hold what their clients sent: for whoever may not read logs.
    #[must_use]
    pub fn without_logs(&self) -> Cow<'_, Self> {
        if !self.has_logs() {
            return Cow::Borrowed(self);
        }
        let mut status = self.clone();
        for fault in status.models.iter_mut().filter_map(|m| m.error.as_mut()) {
            fault.log_withheld = !std::mem::take(&mut fault.log_tail).is_empty();
        }
        Cow::Owned(status)
    }
}

/// One model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct ModelStatus {
    /// Configured name.
    pub name: ModelName,
    /// Other names it answers to.
    pub aliases: Vec<ModelName>,
    /// What runs in its image.
    pub engine: &'static str,
    /// The image of its engine by name: the one that runs, else the one that is configured.
    pub image: String,
    /// podman's ID of the image that its engine runs from, while that is known: what a name with a moving tag stood for at its load.
    pub image_id: Option<String>,
    /// Tokens of its context, where that is configured; `None`: what the engine takes by itself.
    pub context: Option<u32>,
    /// Where it is.
    pub phase: Phase,
    /// Its container's name, while it has one.
    pub instance: Option<InstanceId>,
    /// podman's ID of that container, while it runs.
    pub container: Option<String>,
    /// Devices it is placed on, while it is.
    pub gpus: Vec<GpuId>,
    /// Promised per device, with the source of the number; while it sleeps, what it is promised when it wakes.
    pub planned: Option<Need>,
    /// Measured per instance, summed over its devices.
    pub observed: Known<Bytes>,
    /// What it was measured to need on one device, where it would be placed now or is.
    pub footprint: Option<MeasuredNeed>,
    /// Leases held now.
    pub in_flight: u32,
    /// Requests, and operators' loads, that wait for it now: for it to be ready, or for one of its turns (`max_concurrent`).
    pub queued: u32,
    /// Never evicted or idled out.
    pub pinned: bool,
    /// Unloaded, or put to sleep, after so long without a request; `None`: never.
    pub idle_timeout: Option<Duration>,
    /// Its load or wake under way.
    pub progress: Option<LoadProgress>,
    /// Failures of starts and of running engines since the daemon's start.
    pub restarts: u32,
    /// Chunks of answers that its engines have streamed to clients since the daemon's start: server-sent events with data, of which
    /// most carry one token, more where the engine sends several at once, and a few per answer none. Answers in one piece are not in it.
    pub chunks: u64,
    /// Last time a lease was given or returned.
    pub last_used: Option<Moment>,
    /// Duration of the last successful load, in milliseconds.
    pub load_ms: Option<u64>,
    /// The last failure, until a later load succeeds.
    pub error: Option<Fault>,
    /// Why it waits, in the planner's words; of one that serves and is configured otherwise now, what it waits for to start anew.
    pub waiting_for: Option<String>,
    /// The last plan made for it, with the reasons for every device and every possible victim.
    pub report: Option<Arc<Report>>,
    /// How it has slept; `None`: it never sleeps.
    pub sleep: Option<SleepStatus>,
    /// How well it has been.
    pub health: HealthStatus,
}

/// How well a model has been since the daemon's start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, schemars::JsonSchema)]
pub struct HealthStatus {
    /// Failed starts and deaths in a row; 0 again after a minute of service.
    pub failures_in_a_row: u32,
    /// Whether it is tried again.
    pub breaker: Breaker,
    /// Failed health checks of the running instance, in a row.
    pub checks_failed: u32,
}

/// A model's circuit breaker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Breaker {
    /// It is started when it is wanted.
    #[default]
    Closed,
    /// It has failed too often in a row, and is not tried for a while.
    Open,
    /// One start may show whether it is well again.
    HalfOpen,
}

/// A load or a wake that is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct LoadProgress {
    /// When it was begun.
    pub since: Moment,
    /// How long earlier ones took; `None`: there were none.
    pub expected: Option<Duration>,
    /// How far the pull of its image has come; `None`: none is under way, or nothing is known of it yet.
    pub pulled: Option<Pulled>,
}

/// How far the pull of an image has come, by podman's word. The total grows while layers are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Pulled {
    /// What is here.
    pub done: Bytes,
    /// What is known of.
    pub total: Bytes,
}

/// How a model has slept since the daemon's start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct SleepStatus {
    /// How deep it sleeps now; `None`: it does not.
    pub level: Option<SleepLevel>,
    /// Host memory that is charged to its sleep now.
    pub host_ram: Bytes,
    /// What it was last seen to hold asleep, on the device where that is most.
    pub residual: Option<Bytes>,
    /// Times that it fell asleep and gave its memory back.
    pub sleeps: u64,
    /// Times that it was stopped because it did not fall asleep, or kept too much.
    pub sleep_failures: u64,
    /// Times that it woke and answered as before.
    pub wakes: u64,
    /// Times that it was stopped because it did not wake, its canary included.
    pub wake_failures: u64,
    /// Of these, times that it woke and answered otherwise than after its load, or not at all.
    pub canary_failures: u64,
    /// Milliseconds of the last wake, its canary included.
    pub wake_ms: Option<u64>,
}

/// A footprint, as readers see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct MeasuredNeed {
    /// Median of the samples, on the device where it holds most.
    pub bytes: Bytes,
    /// The most that was seen.
    pub peak: Bytes,
    /// Samples that the median is of.
    pub samples: u32,
    /// `low`, `medium` or `high`.
    pub confidence: &'static str,
    /// `process`: the driver says whose the memory is; `delta`: it was inferred from the device's totals.
    pub attribution: &'static str,
    /// Seconds since 1970.
    pub measured_at: u64,
}

/// One device's ledger.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct GpuStatus {
    /// Identity.
    pub id: GpuId,
    /// Product name.
    pub name: String,
    /// Memory that models could ever use.
    pub total: Known<Bytes>,
    /// Kept free by configuration.
    pub headroom: Bytes,
    /// Promised to instances that are not ready yet.
    pub reserved: Bytes,
    /// Held by instances that are ready: the larger of promise and observation.
    pub confirmed: Bytes,
    /// Held by stopped instances until their release is observed.
    pub releasing: Bytes,
    /// Not given back by instances that are gone.
    pub quarantined: Bytes,
    /// Used by others.
    pub foreign: Known<Bytes>,
    /// What the planner could promise now.
    pub free: Known<Bytes>,
    /// Processes that hold memory there, by the last reading; empty for the host backend.
    pub processes: Vec<GpuProcess>,
}

/// One process on one device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct GpuProcess {
    /// In the initial PID namespace.
    pub pid: u32,
    /// Whose engine it belongs to; `None`: it is none of Hostler's.
    pub model: Option<ModelName>,
    /// What it holds there.
    pub bytes: Known<Bytes>,
}

impl Problem {
    /// Whether requests may fail by it. Control, configurations that wait, what was measured for a later daemon, what engines left, a
    /// device that is avoided and that one computes on the CPU are operators' business.
    #[must_use]
    pub fn hinders_requests(&self) -> bool {
        let operators = [
            "bus_missing",
            "bus_lost",
            "gpu_suspect",
            "gpu_unused",
            "reload_failed",
            "restart_needed",
            "sockets_left",
            "state_unwritable",
        ];
        !operators.contains(&self.code)
    }
}

/// Something that is wrong and that an admin could mend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Problem {
    /// Stable word to search for.
    pub code: &'static str,
    /// What, on which thing, why, and the fix.
    pub message: String,
    /// When it began.
    pub since: Moment,
}

impl Problem {
    /// The message without amounts of memory: those of processes that nobody here rules are others at every reading, which is no news.
    #[must_use]
    pub fn gist(&self) -> String {
        const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
        let amount = |number: &str, unit: &str| {
            let number = number.trim_start_matches(|c: char| !c.is_ascii_digit());
            let unit = unit.trim_end_matches(|c: char| !c.is_ascii_alphabetic());
            number.parse::<f64>().is_ok() && UNITS.contains(&unit)
        };
        let mut words = self.message.split(' ').peekable();
        let mut gist = String::with_capacity(self.message.len());
        while let Some(word) = words.next() {
            if words.next_if(|unit| amount(word, unit)).is_none() {
                gist.push_str(word);
            }
            gist.push(' ');
        }
        gist
    }
}

/// A model that is configured and nothing more, for the tests of every layer.
#[cfg(test)]
#[must_use]
pub fn test_status(name: &str) -> ModelStatus {
    ModelStatus {
        name: name.parse().unwrap(),
        aliases: vec![],
        engine: "llamacpp",
        image: "localhost/engine".to_owned(),
        image_id: None,
        context: None,
        phase: Phase::Stopped,
        instance: None,
        container: None,
        gpus: vec![],
        planned: None,
        footprint: None,
        observed: Known::Unknown,
        in_flight: 0,
        queued: 0,
        pinned: false,
        idle_timeout: None,
        progress: None,
        restarts: 0,
        chunks: 0,
        last_used: None,
        load_ms: None,
        error: None,
        waiting_for: None,
        report: None,
        sleep: None,
        health: HealthStatus::default(),
    }
}
