//! Notices in words.
//!
//! Purpose: one text and one set of fields for each [`Notice`], for the journal, the timeline and whoever else tells people. Owner: none;
//! pure. Invariant: the text is whole without the fields, because `journalctl` shows only that.

use serde::Serialize;

use super::effect::{Heir, Notice, StopReason};
use crate::types::{FaultCode, GpuId, InstanceId, ModelName};

/// How much it matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Weight {
    /// As it should be.
    Info,
    /// Something was mended, or is tried again.
    Warning,
    /// Requests may have failed.
    Error,
}

/// One notice, for people and for programs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, schemars::JsonSchema)]
pub struct Line {
    /// A stable word for what has happened.
    pub kind: &'static str,
    /// How much it matters.
    pub weight: Weight,
    /// To which model.
    pub model: ModelName,
    /// To which of its incarnations.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instance: Option<InstanceId>,
    /// On which devices, with commas between.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gpu: Option<String>,
    /// Why, in one word that never changes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<&'static str>,
    /// How long it took, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub took_ms: Option<u64>,
    /// Milliseconds until the next attempt may be made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_ms: Option<u64>,
    /// The whole, as the journal has it.
    pub text: String,
}

impl Line {
    fn new(kind: &'static str, model: &ModelName, text: String) -> Self {
        Self {
            kind,
            weight: Weight::Info,
            model: model.clone(),
            instance: None,
            gpu: None,
            reason: None,
            took_ms: None,
            retry_ms: None,
            text: format!("{model}: {text}"),
        }
    }

    fn of(kind: &'static str, instance: &InstanceId, text: String) -> Self {
        Self { instance: Some(instance.clone()), ..Self::new(kind, &instance.model, text) }
    }

    fn why(self, reason: &'static str) -> Self {
        Self { reason: Some(reason), ..self }
    }

    fn took(self, ms: u64) -> Self {
        Self { took_ms: Some(ms), ..self }
    }

    fn weighs(self, weight: Weight) -> Self {
        Self { weight, ..self }
    }
}

impl From<&Notice> for Line {
    fn from(notice: &Notice) -> Self {
        match notice {
            Notice::Starting { instance, gpus, planned } => {
                let on: Vec<&str> = gpus.iter().map(GpuId::as_str).collect();
                let on = on.join(", ");
                let text = format!("starting on {on} with {planned} each, as {instance}");
                Self { gpu: Some(on), ..Self::of("starting", instance, text) }
            }
            Notice::Pulling { instance } => {
                Self::of("pulling", instance, "its image is not here and is being pulled".into())
            }
            Notice::Loading { instance } => {
                Self::of("loading", instance, format!("{instance} runs, its engine loads"))
            }
            Notice::Adopted { instance } => {
                let text = format!("adopting the running container {instance}");
                Self::of("adopted", instance, text)
            }
            Notice::Ready { instance, load_ms } => {
                let text = load_ms.map(|ms| format!("ready after {ms} ms"));
                let text =
                    text.unwrap_or_else(|| "ready, in the container that was adopted".into());
                Self { took_ms: *load_ms, ..Self::of("ready", instance, text) }
            }
            Notice::Yielding { instance, to: Heir::Other(to), busy: false } => {
                Self::of("yielding", instance, format!("leaves for {to}"))
            }
            Notice::Yielding { instance, to: Heir::Other(to), busy: true } => {
                let text =
                    format!("takes no new requests, and leaves for {to} after those that run");
                Self::of("yielding", instance, text)
            }
            Notice::Yielding { instance, to: Heir::Successor, .. } => {
                let text = "takes no new requests, and goes after those that run: it is configured otherwise now";
                let line = Self::of("yielding", instance, text.to_owned());
                line.why(StopReason::Reconfigured.as_str())
            }
            Notice::Spared { instance } => {
                let text = "serves on, and need not leave any more";
                Self::of("spared", instance, text.to_owned())
            }
            Notice::PlannedAgain { instance, why } => {
                let why = FaultCode::as_str(*why);
                Self::of("planned_again", instance, format!("planning again ({why})")).why(why)
            }
            Notice::Stopping { instance, reason } => {
                let reason = reason.as_str();
                Self::of("stopping", instance, format!("stopping {instance} ({reason})"))
                    .why(reason)
            }
            Notice::Stopped { instance } => {
                Self::of("stopped", instance, format!("stopped, {instance} is gone"))
            }
            Notice::Failed { instance, fault, retry_ms } => {
                let code = fault.code.as_str();
                let text = format!(
                    "failed ({code}): {fault}; next attempt in {retry_ms} ms at the earliest"
                );
                let line = Self::of("failed", instance, text).why(code).weighs(Weight::Error);
                Self { retry_ms: Some(*retry_ms), ..line }
            }
            Notice::StopFailed { instance, fault } => {
                let text = format!("{instance} could not be stopped, retrying: {fault}");
                let line = Self::of("stop_failed", instance, text).why(fault.code.as_str());
                line.weighs(Weight::Warning)
            }
            Notice::Measured { instance, measured: m } => {
                let text = format!(
                    "measured {} on each device, at most {} ({} samples, {} confidence)",
                    m.median,
                    m.peak,
                    m.samples,
                    m.confidence.as_str()
                );
                Self::of("measured", instance, text)
            }
            Notice::Unmeasured { instance, why } => {
                let text = format!("its memory cannot be measured this time: {why}");
                Self::of("unmeasured", instance, text)
            }
            Notice::Waiting { model, why } => {
                Self::new("waiting", model, format!("waiting for room: {why}"))
            }
            Notice::FallingAsleep { instance, level, reason } => {
                let reason = reason.as_str();
                let text = format!("putting {instance} to sleep at level {level} ({reason})");
                Self::of("falling_asleep", instance, text).why(reason)
            }
            Notice::Asleep { instance, level, residual, host_ram } => {
                let text = format!(
                    "asleep at level {level}, it keeps {residual} on a device and {host_ram} of the host"
                );
                Self::of("asleep", instance, text)
            }
            Notice::SleepFailed { instance, why } => {
                let text = format!("{instance} is stopped instead of asleep: {why}");
                Self::of("sleep_failed", instance, text).weighs(Weight::Warning)
            }
            Notice::Waking { instance } => {
                Self::of("waking", instance, format!("waking {instance}"))
            }
            Notice::Woken { instance, wake_ms } => {
                let text = format!("awake after {wake_ms} ms, and it answers as before");
                Self::of("awake", instance, text).took(*wake_ms)
            }
            Notice::WakeFailed { instance, why } => {
                let text = format!(
                    "{instance} did not wake well and is stopped, a cold start follows on demand: {why}"
                );
                Self::of("wake_failed", instance, text).weighs(Weight::Warning)
            }
            Notice::Sleepless { instance, why } => {
                let text = format!("it will not be put to sleep: {why}");
                Self::of("sleepless", instance, text).weighs(Weight::Warning)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Confidence, Measured, Source};
    use crate::types::{Bytes, Generation};

    #[test]
    fn a_measurement_is_told_in_the_words_of_the_status() {
        let measured = Measured {
            median: Bytes::mib(512),
            peak: Bytes::gib(1),
            samples: 9,
            spread: Bytes::ZERO,
            confidence: Confidence::Medium,
            source: Source::Process,
        };
        let instance = InstanceId::new("m".parse().unwrap(), Generation(1), 1);
        let line = Line::from(&Notice::Measured { instance, measured });
        let want =
            "measured 512.0 MiB on each device, at most 1.0 GiB (9 samples, medium confidence)";
        assert!(line.text.ends_with(want), "{}", line.text);
    }
}
