//! `[health]`: how engines that serve are asked whether they still can, and what follows when they cannot.
//!
//! Owner: [`super::parse`] and [`super::model`]. Pure.

use std::time::Duration;

use schemars::JsonSchema;
use toml::Spanned;

use super::check::{self, HOUR, SECOND};
use super::raw::{DurationText, Written};
use super::source::Report;

/// How engines that serve are asked whether they still can.
#[derive(Debug, Default, serde::Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RawHealth {
    /// How often a ready engine is asked, 1s to 1h, or "never". Default "15s".
    #[schemars(with = "DurationText", extend("default" = "15s"))]
    pub interval: Option<Spanned<DurationText>>,
    /// How long it may take to answer, 100ms to 5m. Default "10s".
    #[schemars(with = "DurationText", extend("default" = "10s"))]
    pub timeout: Option<Spanned<DurationText>>,
    /// It is restarted after so many failures in a row, 1 to 100; that it is silent is none while it answers requests, nor for [server] answer_timeout while requests wait for it. Default 3.
    #[schemars(with = "u32", range(min = 1, max = 100), extend("default" = 3))]
    pub failures: Option<Spanned<i64>>,
    /// Whether an engine on which nothing runs is also asked for what shows whether its own loop gets on (vLLM: one token; llama.cpp, where nobody was for two minutes: its metrics, which take no prompt's place in its cache): some hang although they say that they are well. One that hangs so while requests run on it is not found before they are over.
    /// Default true.
    #[schemars(with = "bool", extend("default" = true))]
    pub probe: Option<bool>,
    /// After so many failed starts or deaths in a row no further one is tried for breaker_open, 1 to 100. Default 6.
    #[schemars(with = "u32", range(min = 1, max = 100), extend("default" = 6))]
    pub breaker_failures: Option<Spanned<i64>>,
    /// How long, 1s to 24h; then one start is tried. Default "5m".
    #[schemars(with = "DurationText", extend("default" = "5m"))]
    pub breaker_open: Option<Spanned<DurationText>>,
}

impl Written for RawHealth {
    const FORM: &'static str = "a table, [health]";
}

/// How engines that serve are asked whether they still can.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthConfig {
    /// How often; `None`: never. Default 15 s.
    pub interval: Option<Duration>,
    /// How long an answer may take, default 10 s.
    pub timeout: Duration,
    /// So many failures in a row make a restart, default 3.
    pub failures: u32,
    /// Whether idle engines are asked for a token (default).
    pub probe: bool,
    /// So many failed starts or deaths in a row open the circuit breaker, default 6.
    pub breaker_failures: u32,
    /// How long it stays open, default 5 minutes.
    pub breaker_open: Duration,
}

pub(super) fn health(report: &mut Report<'_>, raw: &RawHealth) -> HealthConfig {
    let limits = (Duration::from_millis(100), 300 * SECOND);
    let timeout = check::duration(report, "health.timeout", raw.timeout.as_ref(), limits);
    let limits = (SECOND, 24 * HOUR);
    let open = check::duration(report, "health.breaker_open", raw.breaker_open.as_ref(), limits);
    let failures = check::count(report, "health.failures", raw.failures.as_ref(), 100);
    let key = "health.breaker_failures";
    let breaker = check::count(report, key, raw.breaker_failures.as_ref(), 100);
    HealthConfig {
        interval: interval(report, "health.interval", raw.interval.as_ref(), Some(15 * SECOND)),
        timeout: timeout.unwrap_or(10 * SECOND),
        failures: failures.unwrap_or(3),
        probe: raw.probe.unwrap_or(true),
        breaker_failures: breaker.unwrap_or(6),
        breaker_open: open.unwrap_or(300 * SECOND),
    }
}

/// How often; `None`: never.
pub(super) fn interval(
    report: &mut Report<'_>,
    key: &str,
    value: Option<&Spanned<DurationText>>,
    default: Option<Duration>,
) -> Option<Duration> {
    match value {
        None => default,
        Some(value) if value.get_ref().0 == "never" => None,
        Some(value) => check::duration(report, key, Some(value), (SECOND, HOUR)),
    }
}
