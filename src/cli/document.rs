//! The daemon's status as it comes over the bus, as far as this program reads it.
//!
//! Invariant: numbers that the daemon does not know are absent here, never zero; fields that are added later are ignored, so
//! an older program reads a newer daemon's.

use std::time::Duration;

use serde::Deserialize;

use crate::types::Bytes;

/// `GetStatus`; its schema is in docs/status.schema.json.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Document {
    pub version: String,
    pub state: String,
    /// On the daemon's clock, like all other moments.
    pub now: Duration,
    pub podman_version: String,
    pub listeners: Vec<String>,
    pub models: Vec<Model>,
    pub externals: Vec<External>,
    pub gpus: Vec<Gpu>,
    pub problems: Vec<Problem>,
    pub jobs: Vec<Job>,
}

/// One model.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Model {
    pub name: String,
    pub aliases: Vec<String>,
    pub engine: String,
    pub image: String,
    pub image_id: Option<String>,
    pub context: Option<u32>,
    pub phase: String,
    pub instance: Option<String>,
    pub container: Option<String>,
    pub gpus: Vec<String>,
    pub planned: Option<Need>,
    pub observed: Option<Bytes>,
    pub footprint: Option<Footprint>,
    pub in_flight: u32,
    pub queued: u32,
    pub pinned: bool,
    pub idle_timeout: Option<Duration>,
    pub restarts: u32,
    pub chunks: Option<u64>,
    pub progress: Option<Progress>,
    pub last_used: Option<Duration>,
    pub load_ms: Option<u64>,
    pub error: Option<Fault>,
    pub waiting_for: Option<String>,
    pub report: Option<Report>,
    pub sleep: Option<Sleep>,
}

/// One that runs elsewhere.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct External {
    pub name: String,
    pub aliases: Vec<String>,
    pub url: String,
    pub health: String,
    pub why: Option<String>,
    pub since: Option<Duration>,
}

/// Whom a name means.
#[derive(Clone, Copy, Debug)]
pub enum Named<'a> {
    /// A model of this host.
    Here(&'a Model),
    /// One that runs elsewhere.
    Elsewhere(&'a External),
}

/// Memory that is promised on each device.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Need {
    pub bytes: Bytes,
    pub source: String,
}

/// Memory that was measured on one device.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Footprint {
    pub bytes: Bytes,
    pub peak: Bytes,
    pub samples: u32,
    pub confidence: String,
}

/// Why something failed.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Fault {
    pub code: String,
    pub message: String,
    pub log_tail: Vec<String>,
    pub log_withheld: bool,
}

/// How a model sleeps.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Sleep {
    pub level: Option<u8>,
    pub host_ram: Bytes,
    pub sleeps: u64,
    pub sleep_failures: u64,
    pub wakes: u64,
    pub wake_failures: u64,
    pub canary_failures: u64,
}

/// A load or a wake that is under way.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Progress {
    pub since: Duration,
    pub expected: Option<Duration>,
    /// Of the image that is missing.
    pub pulled: Option<Pulled>,
}

/// How far a pull has come.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Pulled {
    pub done: Bytes,
    pub total: Bytes,
}

/// The planner's reasons.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Report {
    pub need: Option<Need>,
    pub devices: Vec<Device>,
    pub victims: Vec<Victim>,
}

/// One device in a plan.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Device {
    pub gpu: String,
    pub free: Bytes,
    pub empty: Bytes,
    pub quarantined: Bytes,
    pub foreign: Bytes,
    pub kept: Bytes,
    pub verdict: String,
}

/// One model in the way.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Victim {
    pub instance: String,
    pub spared: Option<String>,
    pub chosen: bool,
    pub asleep: Option<u8>,
}

/// One device's ledger.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Gpu {
    pub id: String,
    pub name: String,
    pub total: Option<Bytes>,
    pub headroom: Bytes,
    pub reserved: Bytes,
    pub confirmed: Bytes,
    pub releasing: Bytes,
    pub quarantined: Bytes,
    pub foreign: Option<Bytes>,
    pub free: Option<Bytes>,
    pub processes: Vec<Process>,
}

/// One process on one device.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Process {
    pub pid: u32,
    pub model: Option<String>,
    pub bytes: Option<Bytes>,
}

/// Something that is wrong.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Problem {
    pub code: String,
    pub message: String,
    pub since: Duration,
}

/// One job.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Job {
    pub id: u32,
    pub kind: String,
    pub model: Option<String>,
    pub state: String,
    pub progress: Option<f64>,
    pub error: Option<String>,
}

/// What `Plan` says.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Preview {
    pub outcome: String,
    pub why: String,
    pub gpus: Vec<Place>,
    pub leaving: Vec<Leaving>,
    pub report: Option<Report>,
}

/// Where it would go.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Place {
    pub gpu: String,
    pub bytes: Bytes,
}

/// Who would leave.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Leaving {
    pub instance: String,
    pub asleep: Option<u8>,
}

impl Model {
    /// How much of its image is here, while that is pulled.
    #[must_use]
    pub fn pulled(&self) -> Option<String> {
        let Pulled { done, total } = self.progress.as_ref()?.pulled?;
        // podman tells of the layers one after the other.
        Some(if total == Bytes::ZERO { done.to_string() } else { format!("{done} of {total}") })
    }
}

impl Document {
    /// A model by its name or an alias.
    #[must_use]
    pub fn model(&self, name: &str) -> Option<&Model> {
        let by_name = self.models.iter().find(|m| m.name == name);
        by_name.or_else(|| self.models.iter().find(|m| m.aliases.iter().any(|a| a == name)))
    }

    /// Whom a name or an alias means.
    #[must_use]
    pub fn named(&self, name: &str) -> Option<Named<'_>> {
        let here = self.model(name).map(Named::Here);
        here.or_else(|| self.external(name).map(Named::Elsewhere))
    }

    /// One that runs elsewhere, by its name or an alias.
    #[must_use]
    pub fn external(&self, name: &str) -> Option<&External> {
        let is = |e: &&External| e.name == name || e.aliases.iter().any(|a| a == name);
        self.externals.iter().find(is)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A host with one of each.
    pub fn example() -> Document {
        let text = include_str!("tests/status.json");
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn what_is_not_known_is_absent() {
        let document = example();
        assert_eq!(document.model("small").unwrap().name, "org/qwen3-8b");
        assert!(document.model("none").is_none());
        assert_eq!(document.external("cloud").unwrap().name, "far/away");
        assert!(document.external("small").is_none());
        assert_eq!(document.gpus[1].total, None);
        let empty: Document = serde_json::from_str("{}").unwrap();
        assert!(empty.models.is_empty());
    }
}
