//! From sources to a [`Config`]: pure, and all errors at once.
//!
//! Purpose: merge the settings of all sources key by key, later ones over earlier ones; check every section; hand each
//! model to [`super::model`]. Owner: the caller of [`parse`]; nothing is kept.
//!
//! # Architecture Invariant
//! No file system, no clock, no environment, no network: addresses and paths are judged by their text alone.

use std::collections::BTreeMap;
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::types::{Bytes, Hours};

use super::check::{self, HOUR, SECOND};
use super::error::ConfigErrors;
use super::health;
use super::log;
use super::memory::memory;
use super::model::{self, Devices, Entry, Fallback};
use super::raw::{
    DurationText, RawBackend, RawFile, RawGpu, RawModel, RawOnStop, RawPodman, RawPolicy,
    RawStartup, Table,
};
use super::server::{auth, metrics, server};
use super::source::{Report, Source, SourceKind};
use super::traces;
use super::types::{
    Config, Defaults, GpuBackend, GpuConfig, OnStop, PodmanConfig, PolicyConfig, StartupConfig,
};
use super::{misplaced, tree};

/// The largest amount of memory that is believed to be no typing error.
pub(super) const MEMORY_MAX: Bytes = Bytes::gib(64 << 10);

/// Checks the sources, which are in the order in which they apply: keys of later ones replace those of earlier ones.
/// Models are never merged: each is defined in one place.
///
/// # Errors
/// All that is wrong, in all sources, sorted by file and line.
pub fn parse(sources: &[Source], defaults: &Defaults) -> Result<Config, ConfigErrors> {
    let mut report = Report::new(sources);
    let mut settings = DeTable::new();
    let mut entries = Vec::new();
    for (index, source) in sources.iter().enumerate() {
        let text = match &source.text {
            Ok(text) => text,
            Err(why) => {
                report.unreadable(index, why);
                continue;
            }
        };
        let mut table = tree::read(text, index, &mut report);
        match source.kind {
            SourceKind::Settings => {
                misplaced::dotted(&mut table, &mut report);
                let raw: RawFile = tree::fit(&mut table, &mut report);
                entries
                    .extend(raw.models.into_iter().map(|(name, raw)| Entry::in_table(name, raw.0)));
                table.remove("models");
                merge(&mut settings, table);
            }
            SourceKind::Model => {
                if !misplaced::sections(&mut table, &mut report) {
                    continue;
                }
                let raw: RawModel = tree::fit(&mut table, &mut report);
                entries.push(Entry::in_file(source.stem(), report.base(index), raw));
            }
        }
    }
    // Every part fitted already, so that the merged tree fits too; were it not so, `fit` would report it.
    let raw: RawFile = tree::fit(&mut settings, &mut report);
    let gpu = gpu(&mut report, raw.gpu);
    let memory = memory(&mut report, &raw.memory.0);
    let devices = Devices {
        backend: gpu.as_ref().map(|gpu| gpu.backend),
        ids: gpu.as_ref().map(|gpu| gpu.devices.clone()).unwrap_or_default(),
        budget: gpu.as_ref().and_then(|gpu| Some((gpu.budget?, gpu.headroom))),
        host_ram_budget: memory.host_ram_budget,
    };
    let auth = auth(&mut report, &raw.auth.0);
    let server = server(&mut report, raw.server.0, auth.is_some());
    let podman = podman(&mut report, raw.podman.0, defaults);
    let policy = policy(&mut report, &raw.policy.0);
    let startup = startup(&mut report, &raw.startup.0);
    let health = health::health(&mut report, &raw.health.0);
    let metrics = metrics(&mut report, &raw.metrics.0, &server.listen);
    let traces = traces::traces(&mut report, &raw.traces.0);
    let log = log::log(&mut report, &raw.log.0);
    let fallback = Fallback { on_full: policy.on_full, health_interval: health.interval };
    let models = model::models(&mut report, entries, &devices, fallback);
    match gpu {
        Some(gpu) if !report.has_errors() => Ok(Config {
            server,
            auth,
            keys: Vec::new(),
            gpu,
            memory,
            podman,
            policy,
            health,
            startup,
            metrics,
            traces,
            log,
            models: models.own,
            externals: models.external,
            external_keys: BTreeMap::new(),
        }),
        _ => Err(report.into_errors()),
    }
}

/// Lays `over` on top of `under`: a section's keys one by one, a key's value as a whole.
fn merge<'t>(under: &mut DeTable<'t>, over: DeTable<'t>) {
    for (key, value) in over {
        let section = under.get_mut(key.get_ref().as_ref()).map(Spanned::get_mut);
        match (section, value.get_ref()) {
            (Some(DeValue::Table(below)), DeValue::Table(_)) => {
                if let DeValue::Table(above) = value.into_inner() {
                    for (key, value) in above {
                        // The map would keep the old key with its old span.
                        below.remove(key.get_ref().as_ref());
                        below.insert(key, value);
                    }
                }
            }
            _ => {
                under.remove(key.get_ref().as_ref());
                under.insert(key, value);
            }
        }
    }
}

/// `None`: the backend is not known, which was reported or follows from a file that could not be understood.
fn gpu(report: &mut Report<'_>, raw: Option<Spanned<Table<RawGpu>>>) -> Option<GpuConfig> {
    let at = raw.as_ref().map(|raw| raw.span().start);
    let raw = raw.map(Spanned::into_inner).unwrap_or_default().0;
    let devices = raw.devices.as_ref();
    let ids = devices.map(|list| check::gpus(report, "gpu.devices", list.get_ref()));
    let headroom_limits = (Bytes::ZERO, Bytes::gib(1 << 10));
    let headroom = check::bytes(report, "gpu.headroom", raw.headroom.as_ref(), headroom_limits);
    let budget_limits = (Bytes::mib(1), MEMORY_MAX);
    let budget = check::bytes(report, "gpu.budget", raw.budget.as_ref(), budget_limits);
    let library = check::path(report, "gpu.nvml_library", raw.nvml_library.as_ref());
    let Some(backend) = raw.backend.map(Spanned::into_inner) else {
        missing_backend(report, at);
        return None;
    };
    let backend = match backend {
        RawBackend::Nvml => GpuBackend::Nvml,
        RawBackend::Host => GpuBackend::Host,
    };
    let misplaced = match backend {
        GpuBackend::Host => [
            devices.map(|v| ("gpu.devices", v.span().start, "nvml")),
            raw.nvml_library.as_ref().map(|v| ("gpu.nvml_library", v.span().start, "nvml")),
        ],
        GpuBackend::Nvml => {
            [raw.budget.as_ref().map(|v| ("gpu.budget", v.span().start, "host")), None]
        }
    };
    for (key, offset, other) in misplaced.into_iter().flatten() {
        let message = format!("is for backend = {other:?} only; remove it or change the backend");
        report.at(offset, key, message);
    }
    let headroom = headroom.unwrap_or(Bytes::mib(512));
    if let (Some(all), Some(value)) = (budget, &raw.budget)
        && all <= headroom
    {
        let message = format!(
            "{all} is all headroom ({headroom}), so nothing would fit; raise it, or lower headroom"
        );
        report.at(value.span().start, "gpu.budget", message);
    }
    Some(GpuConfig {
        backend,
        devices: ids.unwrap_or_default(),
        headroom,
        budget,
        nvml_library: library,
    })
}

fn missing_backend(report: &mut Report<'_>, section: Option<usize>) {
    const KEY: &str = "gpu.backend";
    if report.settings_broken() || report.is_reported(None, KEY) {
        return;
    }
    let message = "must be given: \"nvml\" for NVIDIA GPUs, \"host\" for models in RAM; it is not guessed, because a GPU \
                   whose driver is broken would then look like a machine without one";
    match section {
        Some(offset) => report.at(offset, KEY, message),
        None => report.whole(KEY, message),
    }
}

fn podman(report: &mut Report<'_>, raw: RawPodman, defaults: &Defaults) -> PodmanConfig {
    let socket = check::socket_path(report, "podman.socket", raw.socket.as_ref());
    let engine_dir = check::engine_dir(report, "podman.engine_dir", raw.engine_dir.as_ref());
    let namespace = raw.namespace.map_or_else(
        || "default".to_owned(),
        |value| {
            let ok = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
            let text = value.get_ref();
            if !(1..=32).contains(&text.len()) || !text.bytes().all(ok) {
                let message = format!("must be 1 to 32 of a-z, 0-9 and \"-\", not {text:?}");
                report.at(value.span().start, "podman.namespace", message);
            }
            value.into_inner()
        },
    );
    PodmanConfig {
        socket: socket.unwrap_or_else(|| defaults.podman_socket.clone()),
        engine_dir: engine_dir.unwrap_or_else(|| defaults.engine_dir.clone()),
        namespace,
        pull: raw.pull.unwrap_or(true),
    }
}

fn policy(report: &mut Report<'_>, raw: &RawPolicy) -> PolicyConfig {
    let mut time = |key: &str, value: Option<&Spanned<DurationText>>, default: Duration| {
        check::duration(report, key, value, (Duration::ZERO, HOUR)).unwrap_or(default)
    };
    let measure_after =
        Some(time("policy.measure_after", raw.measure_after.as_ref(), Duration::ZERO))
            .filter(|after| *after > Duration::ZERO);
    let turn_after = time("policy.turn_after", raw.turn_after.as_ref(), 30 * SECOND);
    let mut config = PolicyConfig {
        turn_after: Some(turn_after).filter(|after| *after > Duration::ZERO),
        drain_timeout: time("policy.drain_timeout", raw.drain_timeout.as_ref(), 30 * SECOND),
        min_residency: time("policy.min_residency", raw.min_residency.as_ref(), 10 * SECOND),
        measure_after,
        measure_hours: Hours::ALL,
        eviction: raw.eviction.unwrap_or_default(),
        on_full: raw.on_full.unwrap_or_default(),
        on_stop: match raw.on_stop {
            Some(RawOnStop::Stop) | None => OnStop::Stop,
            Some(RawOnStop::Keep) => OnStop::Keep,
        },
    };
    config.measure_hours = measure_hours(report, raw, measure_after);
    config
}

fn measure_hours(report: &mut Report<'_>, raw: &RawPolicy, after: Option<Duration>) -> Hours {
    let (key, value) = ("policy.measure_hours", raw.measure_hours.as_ref());
    let Some((hours, value)) = check::hours(report, key, value).zip(value) else {
        return Hours::ALL;
    };
    if after.is_none() && hours != Hours::ALL {
        let message = "without measure_after nothing is measured at any hour; add for example \
                       measure_after = \"10m\"";
        report.at(value.span().start, key, message.to_owned());
    }
    hours
}

fn startup(report: &mut Report<'_>, raw: &RawStartup) -> StartupConfig {
    let limits = (SECOND, HOUR);
    let timeout = check::duration(report, "startup.timeout", raw.timeout.as_ref(), limits);
    StartupConfig { timeout: timeout.unwrap_or(60 * SECOND) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "[gpu]\nbackend = \"host\"\n";

    fn parsed(text: &str) -> Result<Config, ConfigErrors> {
        parse(&[Source::settings("/f", text)], &Defaults::system())
    }

    #[test]
    fn the_defaults_are_those_that_are_documented() {
        let config = parsed(GOOD).unwrap();
        let schema = super::super::schema();
        let default = |table: &str, key: &str| {
            schema["$defs"][table]["properties"][key]["default"].as_str().unwrap().to_owned()
        };
        let seconds = |text: String| {
            jiff::SignedDuration::from_secs(text.parse::<jiff::SignedDuration>().unwrap().as_secs())
        };
        let same = |table: &str, key: &str, value: Duration| {
            assert_eq!(seconds(default(table, key)), value.try_into().unwrap(), "{table} {key}");
        };
        same("RawServer", "max_wait", config.server.max_wait);
        same("RawServer", "max_stream_wait", config.server.max_stream_wait);
        same("RawServer", "answer_timeout", config.server.answer_timeout);
        same("RawServer", "feedback_interval", config.server.feedback_interval);
        assert_eq!(default("RawServer", "feedback_after"), "1500ms");
        assert_eq!(config.server.feedback_after, Duration::from_millis(1500));
        assert_eq!(default("RawServer", "max_buffered").parse(), Ok(config.server.max_buffered));
        same("RawPolicy", "drain_timeout", config.policy.drain_timeout);
        same("RawPolicy", "min_residency", config.policy.min_residency);
        same("RawPolicy", "turn_after", config.policy.turn_after.unwrap());
        same("RawStartup", "timeout", config.startup.timeout);
        assert_eq!(default("RawLog", "level"), config.log.level);
        same("RawHealth", "interval", config.health.interval.unwrap());
        same("RawHealth", "timeout", config.health.timeout);
        same("RawHealth", "breaker_open", config.health.breaker_open);
        let health = &schema["$defs"]["RawHealth"]["properties"];
        assert_eq!(health["failures"]["default"], config.health.failures);
        assert_eq!(health["breaker_failures"]["default"], config.health.breaker_failures);
        assert_eq!(health["probe"]["default"], config.health.probe);
        assert_eq!(default("RawServer", "max_body").parse(), Ok(config.server.max_body));
        assert_eq!(default("RawGpu", "headroom").parse(), Ok(config.gpu.headroom));
        let memory = |key: &str| default("RawMemory", key).parse();
        assert_eq!(memory("host_ram_budget"), Ok(config.memory.host_ram_budget));
        assert_eq!(memory("sleep_residual_max"), Ok(config.memory.sleep_residual_max));
        assert_eq!(default("RawPodman", "namespace"), config.podman.namespace);
        assert_eq!(default("RawPodman", "socket"), config.podman.socket.to_str().unwrap());
        assert_eq!(default("RawPodman", "engine_dir"), config.podman.engine_dir.to_str().unwrap());
        let listen: Vec<_> = config.server.listen.iter().map(ToString::to_string).collect();
        let server = &schema["$defs"]["RawServer"]["properties"];
        assert_eq!(server["listen"]["default"], serde_json::json!(listen));
        let own: Vec<std::net::SocketAddr> = vec![];
        assert_eq!(config.metrics.listen, own);
        assert_eq!(server["max_connections"]["default"], config.server.max_connections);
        assert_eq!(server["max_queue"]["default"], config.server.max_queue);
        assert!(config.podman.pull && config.policy.on_stop == OnStop::Stop);
    }

    #[test]
    fn user_defaults_lie_in_the_runtime_directory() {
        let defaults = Defaults::user(std::path::Path::new("/run/user/7"));
        let config = parse(&[Source::settings("/f", GOOD)], &defaults).unwrap();
        assert_eq!(config.podman.socket.to_str(), Some("/run/user/7/hostler/podman.sock"));
        assert_eq!(config.podman.engine_dir.to_str(), Some("/run/user/7/hostler/engines"));
    }

    #[test]
    fn later_sources_replace_keys_and_errors_name_the_one_that_counts() {
        let sources = [
            Source::settings("/a", "[gpu]\nbackend = \"host\"\n[server]\nmax_queue = 0\n"),
            Source::settings("/b", "[server]\nmax_queue = 9\nmax_wait = \"0s\"\n"),
        ];
        let errors = parse(&sources, &Defaults::system()).unwrap_err();
        assert_eq!(
            errors.to_string(),
            "/b:3:12: server.max_wait: must be from 1s to 1h, not \"0s\""
        );
        let config = parse(&sources[..1], &Defaults::system()).unwrap_err();
        assert!(config.to_string().starts_with("/a:4:13: server.max_queue"), "{config}");
    }

    #[test]
    fn nothing_at_all_lacks_a_backend() {
        let errors = parse(&[], &Defaults::system()).unwrap_err();
        assert!(errors.to_string().starts_with("gpu.backend: must be given"), "{errors}");
    }

    #[test]
    fn an_unread_source_is_an_error_beside_the_others() {
        let unread = Source {
            path: "/b".into(),
            kind: SourceKind::Settings,
            text: Err("permission denied".into()),
        };
        let sources = [Source::settings("/a", "[server]\nmax_queue = 0\n"), unread];
        let errors = parse(&sources, &Defaults::system()).unwrap_err();
        // The backend may be in what could not be read.
        assert_eq!(
            errors.to_string(),
            "/a:2:13: server.max_queue: must be from 1 to 65536, not 0\n\
             /b: cannot be read: permission denied"
        );
    }

    /// Every beginning of a full configuration, and every one with a byte replaced: errors, never a panic, and always
    /// with a place inside the text.
    #[test]
    fn no_text_is_too_broken() {
        let text = include_str!("../../docs/hostler.toml.example").replace("\n#", "\n");
        let lines = text.lines().count();
        let mut broken = 0;
        for at in (0..text.len()).filter(|at| text.is_char_boundary(*at)).step_by(41) {
            for odd in ["", "\"", "[", "=", "}", "\u{0}", "é", "\n\n", "5"] {
                let mut mutant = text[..at].to_owned();
                mutant.push_str(odd);
                if !odd.is_empty() {
                    mutant.extend(text[at..].chars().skip(1));
                }
                if let Err(errors) = parsed(&mutant) {
                    broken += 1;
                    for error in errors.as_slice() {
                        assert!(error.position.is_none_or(|p| p.line <= lines + 3), "{error}");
                    }
                }
            }
        }
        assert!(broken > 300, "{broken}");
    }
}
