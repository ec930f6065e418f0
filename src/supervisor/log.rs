//! What the owner says in the journal.
//!
//! Purpose: one line for each notice. Owner: the task, which alone calls it. Invariant: the text is whole without its fields.

use super::effect::Notice;

/// The owner's one line for each thing that an operator wants to know. The text is whole without the fields, because
/// `journalctl` shows only that; the fields are for `journalctl HOSTLER_MODEL=…`.
pub(super) fn log(notice: &Notice) {
    match notice {
        Notice::Starting { instance, gpus, planned } => {
            let model = &instance.model;
            let on: Vec<&str> = gpus.iter().map(crate::types::GpuId::as_str).collect();
            let on = on.join(", ");
            tracing::info!(%model, %instance, gpu = on, "{model}: starting on {on} with {planned} each, as {instance}");
        }
        Notice::Adopted { instance } => {
            let model = &instance.model;
            tracing::info!(%model, %instance, "{model}: adopting the running container {instance}");
        }
        Notice::Ready { instance, load_ms } => {
            let model = &instance.model;
            tracing::info!(%model, %instance, load_ms, "{model}: ready after {load_ms} ms");
        }
        Notice::Yielding { instance, to } => {
            let model = &instance.model;
            tracing::info!(%model, %instance, "{model}: takes no new requests, and leaves for {to} after those that run");
        }
        Notice::Spared { instance } => {
            let model = &instance.model;
            tracing::info!(%model, %instance, "{model}: serves on, nobody waits for its place any more");
        }
        Notice::FallingAsleep { instance, level, reason } => {
            let (model, reason) = (&instance.model, reason.as_str());
            tracing::info!(%model, %instance, reason, "{model}: putting {instance} to sleep at level {level} ({reason})");
        }
        Notice::Asleep { instance, level, residual, host_ram } => {
            let model = &instance.model;
            tracing::info!(%model, %instance, "{model}: asleep at level {level}, it keeps {residual} on a device and {host_ram} of the host");
        }
        Notice::SleepFailed { instance, why } => {
            let model = &instance.model;
            tracing::warn!(%model, %instance, "{model}: {instance} is stopped instead of asleep: {why}");
        }
        Notice::Waking { instance } => {
            let model = &instance.model;
            tracing::info!(%model, %instance, "{model}: waking {instance}");
        }
        Notice::Woken { instance, wake_ms } => {
            let model = &instance.model;
            tracing::info!(%model, %instance, wake_ms, "{model}: awake after {wake_ms} ms, and it answers as before");
        }
        Notice::WakeFailed { instance, why } => {
            let model = &instance.model;
            tracing::warn!(%model, %instance, "{model}: {instance} did not wake well and is stopped, a cold start follows on demand: {why}");
        }
        Notice::Sleepless { instance, why } => {
            let model = &instance.model;
            tracing::warn!(%model, %instance, "{model}: it will not be put to sleep: {why}");
        }
        Notice::Stopping { instance, reason } => {
            let (model, reason) = (&instance.model, reason.as_str());
            tracing::info!(%model, %instance, reason, "{model}: stopping {instance} ({reason})");
        }
        Notice::Stopped { instance } => {
            let model = &instance.model;
            tracing::info!(%model, %instance, "{model}: stopped, {instance} is gone");
        }
        Notice::Failed { instance, fault, retry_ms } => {
            let (model, code) = (&instance.model, fault.code.as_str());
            tracing::error!(%model, %instance, code, retry_ms, "{model}: failed ({code}): {fault}; next attempt in {retry_ms} ms at the earliest");
            for line in &fault.log_tail {
                tracing::info!(%model, %instance, "{model} | {line}");
            }
        }
        Notice::StopFailed { instance, fault } => {
            let model = &instance.model;
            tracing::warn!(%model, %instance, "{model}: {instance} could not be stopped, retrying: {fault}");
        }
        Notice::PlannedAgain { instance, why } => {
            let (model, why) = (&instance.model, why.as_str());
            tracing::info!(%model, %instance, why, "{model}: planning again ({why})");
        }
        Notice::Measured { instance, measured } => {
            let (model, m) = (&instance.model, measured);
            let (median, peak, samples) = (m.median, m.peak, m.samples);
            let confidence = m.confidence;
            tracing::info!(%model, %instance, "{model}: measured {median} on each device, at most {peak} ({samples} samples, {confidence:?} confidence)");
        }
        Notice::Unmeasured { instance, why } => {
            let model = &instance.model;
            tracing::info!(%model, %instance, "{model}: its memory cannot be measured this time: {why}");
        }
        Notice::Waiting { model, why } => {
            tracing::info!(%model, "{model}: waiting for room: {why}");
        }
    }
}
