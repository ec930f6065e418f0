//! What the published picture says, as metrics.
//!
//! Purpose: gauges and the owner's own counts are read from [`Status`] at the scrape and kept nowhere else, so they cannot drift apart
//! from what every other reader sees. Owner: [`super::Metrics`], for the length of one scrape. Invariant: what is not known is absent,
//! never 0.

use super::page::{Page, Value};
use super::{Scrape, names};
use crate::types::{
    Breaker, Bytes, ExternalHealth, ExternalStatus, GpuVitals, Known, MeasuredNeed, ModelName,
    ModelStatus, Moment, Phase, SleepStatus, Status,
};

const BREAKERS: [(Breaker, &str); 3] =
    [(Breaker::Closed, "closed"), (Breaker::Open, "open"), (Breaker::HalfOpen, "half_open")];

/// `turns`: requests that wait for one of a model's turns, of which the picture knows nothing.
pub(super) fn write(
    page: &mut Page<'_>,
    scrape: &Scrape,
    turns: impl Fn(&ModelName) -> i64,
) -> std::fmt::Result {
    let Scrape { status, now, externals, .. } = scrape;
    let version = vec![env!("CARGO_PKG_VERSION").to_owned()];
    page.family(&names::BUILD, [(version, Value::Level(1.0))])?;
    let mut codes: Vec<&str> = status.problems.iter().map(|p| p.code).collect();
    codes.sort_unstable();
    codes.dedup();
    page.family(&names::PROBLEM, codes.iter().map(|c| (vec![(*c).to_owned()], flag(true))))?;
    let here = status.models.iter().map(|m| (&m.name, m.queued));
    // Those that run elsewhere have turns, too.
    let queues = here.chain(externals.iter().map(|e| (&e.name, 0))).map(|(name, queued)| {
        let waiting = f64::from(queued) + turns(name) as f64;
        (vec![name.to_string()], Value::Level(waiting))
    });
    page.family(&names::QUEUE_LENGTH, queues)?;
    models(page, &status.models, *now)?;
    memory(page, &status.models)?;
    elsewhere(page, externals)?;
    devices(page, status)
}

fn models(page: &mut Page<'_>, models: &[ModelStatus], now: Moment) -> std::fmt::Result {
    let each = |value: fn(&ModelStatus) -> Value| {
        models.iter().map(move |m| (vec![m.name.to_string()], value(m)))
    };
    page.family(&names::IN_FLIGHT, each(|m| Value::Level(f64::from(m.in_flight))))?;
    page.family(&names::CHUNKS, each(|m| Value::Count(m.chunks)))?;
    let phases = models.iter().flat_map(|m| {
        Phase::ALL.iter().map(|p| (vec![m.name.to_string(), p.to_string()], flag(m.phase == *p)))
    });
    page.family(&names::PHASE, phases)?;
    page.family(&names::PINNED, each(|m| flag(m.pinned)))?;
    let idle = models.iter().filter_map(|m| {
        let idle = if m.in_flight > 0 { 0.0 } else { now.since(m.last_used?).as_secs_f64() };
        Some((vec![m.name.to_string()], Value::Level(idle)))
    });
    page.family(&names::IDLE_SECONDS, idle)?;
    page.family(&names::RESTARTS, each(|m| Value::Count(u64::from(m.restarts))))?;
    let breakers = models.iter().flat_map(|m| {
        BREAKERS.iter().map(|(state, word)| {
            (vec![m.name.to_string(), (*word).to_owned()], flag(m.health.breaker == *state))
        })
    });
    page.family(&names::BREAKER, breakers)?;
    let row = each(|m| Value::Level(f64::from(m.health.failures_in_a_row)));
    page.family(&names::FAILURES_IN_A_ROW, row)?;
    let checks = each(|m| Value::Level(f64::from(m.health.checks_failed)));
    page.family(&names::CHECKS_FAILED, checks)?;
    let slept = |value: fn(&SleepStatus) -> u64| {
        models.iter().filter_map(move |m| {
            Some((vec![m.name.to_string()], Value::Count(value(m.sleep.as_ref()?))))
        })
    };
    page.family(&names::SLEEPS, slept(|s| s.sleeps))?;
    page.family(&names::SLEEP_FAILURES, slept(|s| s.sleep_failures))?;
    page.family(&names::WAKES, slept(|s| s.wakes))?;
    page.family(&names::WAKE_FAILURES, slept(|s| s.wake_failures))?;
    page.family(&names::CANARY_FAILURES, slept(|s| s.canary_failures))
}

fn memory(page: &mut Page<'_>, models: &[ModelStatus]) -> std::fmt::Result {
    let held = models.iter().flat_map(|m| {
        let planned = m.planned.as_ref().map(|need| ("planned", need.bytes));
        // Without an instance nothing is observed.
        let observed = m.observed.get().filter(|_| m.instance.is_some());
        let all = planned.into_iter().chain(observed.map(|bytes| ("observed", bytes)));
        all.map(|(kind, bytes)| (vec![m.name.to_string(), kind.to_owned()], level(bytes)))
    });
    page.family(&names::MODEL_MEMORY, held)?;
    let measured: Vec<(&ModelStatus, &MeasuredNeed)> =
        models.iter().filter_map(|m| Some((m, m.footprint.as_ref()?))).collect();
    let footprints = measured.iter().flat_map(|(m, need)| {
        [("median", need.bytes), ("peak", need.peak)]
            .map(|(stat, bytes)| (vec![m.name.to_string(), stat.to_owned()], level(bytes)))
    });
    page.family(&names::FOOTPRINT, footprints)?;
    let confidence = measured.iter().filter_map(|(m, need)| {
        let at = ["low", "medium", "high"].iter().position(|word| *word == need.confidence)?;
        Some((vec![m.name.to_string()], Value::Level((at + 1) as f64)))
    });
    page.family(&names::FOOTPRINT_CONFIDENCE, confidence)?;
    let samples = measured
        .iter()
        .map(|(m, need)| (vec![m.name.to_string()], Value::Level(f64::from(need.samples))));
    page.family(&names::FOOTPRINT_SAMPLES, samples)?;
    let ram = models
        .iter()
        .filter_map(|m| Some((vec![m.name.to_string()], level(m.sleep.as_ref()?.host_ram))));
    page.family(&names::SLEEP_RAM, ram)
}

fn elsewhere(page: &mut Page<'_>, externals: &[ExternalStatus]) -> std::fmt::Result {
    let asked = externals.iter().filter_map(|e| {
        let up = match e.health {
            ExternalHealth::Unknown => return None,
            ExternalHealth::Well => true,
            ExternalHealth::Unwell => false,
        };
        Some((vec![e.name.to_string()], flag(up)))
    });
    page.family(&names::EXTERNAL_UP, asked)
}

fn devices(page: &mut Page<'_>, status: &Status) -> std::fmt::Result {
    let info = status.gpus.iter().map(|g| (vec![g.id.to_string(), g.name.clone()], flag(true)));
    page.family(&names::GPU, info)?;
    let memory = status.gpus.iter().flat_map(|gpu| {
        let kinds = [
            ("total", gpu.total),
            ("headroom", Known::Known(gpu.headroom)),
            ("reserved", Known::Known(gpu.reserved)),
            ("confirmed", Known::Known(gpu.confirmed)),
            ("releasing", Known::Known(gpu.releasing)),
            ("quarantined", Known::Known(gpu.quarantined)),
            ("foreign", gpu.foreign),
            ("free", gpu.free),
        ];
        kinds.into_iter().filter_map(|(kind, bytes)| {
            Some((vec![gpu.id.to_string(), kind.to_owned()], level(bytes.get()?)))
        })
    });
    page.family(&names::GPU_MEMORY, memory)
}

/// What the driver tells beside memory.
pub(super) fn vitals(page: &mut Page<'_>, vitals: &[GpuVitals]) -> std::fmt::Result {
    let two = |words: [&'static str; 2], values: fn(&GpuVitals) -> [Known<f64>; 2]| {
        vitals.iter().flat_map(move |gpu| {
            words.into_iter().zip(values(gpu)).filter_map(|(word, value)| {
                Some((vec![gpu.id.to_string(), word.to_owned()], Value::Level(value.get()?)))
            })
        })
    };
    let busy = two(["compute", "memory"], |gpu| [gpu.compute, gpu.memory]);
    page.family(&names::GPU_UTILISATION, busy)?;
    let heat = vitals
        .iter()
        .filter_map(|gpu| Some((vec![gpu.id.to_string()], Value::Level(gpu.temperature.get()?))));
    page.family(&names::GPU_TEMPERATURE, heat)?;
    let power = two(["drawn", "limit"], |gpu| [gpu.power, gpu.power_limit]);
    page.family(&names::GPU_POWER, power)
}

fn flag(is: bool) -> Value {
    Value::Level(f64::from(u8::from(is)))
}

fn level(bytes: Bytes) -> Value {
    Value::Level(bytes.0 as f64)
}
