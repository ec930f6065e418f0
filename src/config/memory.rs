//! `[memory]`, and what of a model depends on it.
//!
//! Owner: [`super::parse`] and [`super::model`]. Pure.

use std::time::Duration;

use schemars::JsonSchema;
use toml::Spanned;

use crate::types::{Bytes, EngineKind, SleepLevel, Transport};

use super::check::{self, HOUR, SECOND};
use super::model::{Devices, Entry};
use super::parse::MEMORY_MAX;
use super::raw::{BytesText, Written};
use super::source::Report;
use super::types::{GpuBackend, MemoryConfig};

/// What may be done with memory beside the devices'.
#[derive(Debug, Default, serde::Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RawMemory {
    /// Host memory for the weights of models that sleep instead of being stopped, 0B to 64TiB. Default "0B": none sleeps.
    #[schemars(with = "BytesText", extend("default" = "0B"))]
    pub host_ram_budget: Option<Spanned<BytesText>>,
    /// A model that holds more than this on a device after it fell asleep is stopped, 0B to 64TiB. Default "2GiB".
    #[schemars(with = "BytesText", extend("default" = "2GiB"))]
    pub sleep_residual_max: Option<Spanned<BytesText>>,
}

impl Written for RawMemory {
    const FORM: &'static str = "a table, [memory]";
}

/// How long a model sleeps before it is stopped.
const SLEEP_TIMEOUT: Duration = Duration::from_secs(4 * 3600);

pub(super) fn memory(report: &mut Report<'_>, raw: &RawMemory) -> MemoryConfig {
    let limits = (Bytes::ZERO, MEMORY_MAX);
    let mut bytes = |key: &str, value| check::bytes(report, key, value, limits);
    let budget = bytes("memory.host_ram_budget", raw.host_ram_budget.as_ref());
    let residual = bytes("memory.sleep_residual_max", raw.sleep_residual_max.as_ref());
    MemoryConfig {
        host_ram_budget: budget.unwrap_or(Bytes::ZERO),
        sleep_residual_max: residual.unwrap_or(Bytes::gib(2)),
    }
}

/// How deep a model may sleep, and for how long. What is asked for and cannot be is reported; what is not asked for is as
/// deep as it is safe.
pub(super) fn sleep(
    report: &mut Report<'_>,
    entry: &Entry,
    engine: Option<EngineKind>,
    devices: &Devices,
) -> (Option<SleepLevel>, Option<Duration>) {
    let raw = &entry.raw;
    let key = entry.key("sleep_level");
    let asked = raw.sleep_level.as_ref();
    let cannot = if engine == Some(EngineKind::Llamacpp) {
        Some("must be 0 with engine = \"llamacpp\", which cannot sleep; remove it")
    } else if raw.transport.as_ref().is_some_and(|v| *v.get_ref() == Transport::Tcp) {
        Some(
            "must be 0 with transport = \"tcp\": everybody on this host could reach the routes for sleeping, which run \
             code in the engine; use transport = \"unix\"",
        )
    } else if devices.backend == Some(GpuBackend::Host) {
        Some("must be 0 with backend = \"host\", where a sleep gives nothing back; remove it")
    } else if devices.host_ram_budget == Bytes::ZERO {
        Some("has no effect without host_ram_budget in [memory]; set that, or remove this")
    } else {
        None
    };
    let level = match asked.map(|value| (*value.get_ref(), value.span().start)) {
        None => Some(SleepLevel::One),
        Some((0, _)) => None,
        Some((1, _)) => Some(SleepLevel::One),
        Some((2, _)) => Some(SleepLevel::Two),
        Some((number, at)) => {
            report.at(at, &key, format!("must be 0, 1 or 2, not {number}"));
            None
        }
    };
    if let (Some(why), Some(_), Some(value)) = (cannot, level, asked) {
        report.at(value.span().start, &key, why);
    }
    let level = level.filter(|_| cannot.is_none());
    let key = entry.key("sleep_timeout");
    let timeout = match &raw.sleep_timeout {
        None => Some(SLEEP_TIMEOUT),
        Some(value) if value.get_ref().0 == "never" => None,
        Some(value) => check::duration(report, &key, Some(value), (SECOND, 8760 * HOUR)),
    };
    (level, level.and(timeout))
}
