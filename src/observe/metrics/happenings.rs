//! What the owner's notices are counted by.
//!
//! Purpose: loads with the times of their steps, evictions, failures, wakes. Owner: [`super::Metrics`]; called by the owner's task, so
//! the lock here is held by one at a time, and by a scrape for a copy of a number or two. Invariant: times are differences of the moments
//! at which notices came, so a load that another daemon began has none. What is counted of a model is there at 0 from when it is
//! configured: Prometheus takes the first value that it sees for where a count began.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::count::{Count, Histogram, LONG_SECONDS, Table};
use super::names;
use super::page::{Page, Value};
use crate::supervisor::witness::{Look, Notice, StopReason};
use crate::types::{FaultCode, InstanceId, ModelName, ModelStatus, Moment};

/// How a load ends.
const RESULTS: [&str; 3] = ["ok", "failed", "abandoned"];
/// Why a model is put to sleep; for other reasons it is stopped.
const TO_SLEEP: [StopReason; 4] =
    [StopReason::Idle, StopReason::Evicted, StopReason::Pressure, StopReason::Asked];

/// A model and a word about it.
type Pair = (ModelName, &'static str);
/// A model, why it leaves, and where to.
type Eviction = (ModelName, &'static str, &'static str);

/// A load under way.
#[derive(Clone, Copy, Debug)]
struct Load {
    ordered: Moment,
    pulling: Option<Moment>,
    runs: Option<Moment>,
}

/// All that has happened since the daemon's start.
#[derive(Debug, Default)]
pub(super) struct Happenings {
    loading: Mutex<BTreeMap<InstanceId, Load>>,
    loads: Table<Pair, Count>,
    steps: Table<Pair, Histogram>,
    failures: Table<Pair, Count>,
    evictions: Table<Eviction, Count>,
    wakes: Table<ModelName, Histogram>,
    looks: Table<(&'static str, &'static str), Count>,
}

impl Happenings {
    pub(super) fn see(&self, at: Moment, notice: &Notice) {
        match notice {
            Notice::Starting { instance, .. } => {
                let load = Load { ordered: at, pulling: None, runs: None };
                self.loading().insert(instance.clone(), load);
            }
            Notice::Pulling { instance } => {
                // Where others have to leave for it, this is how it begins.
                let new = || Load { ordered: at, pulling: None, runs: None };
                self.loading().entry(instance.clone()).or_insert_with(new).pulling = Some(at);
            }
            Notice::Loading { instance } => {
                let ordered = self.loading().get_mut(instance).map(|load| {
                    load.runs = Some(at);
                    load.ordered
                });
                if let Some(ordered) = ordered {
                    self.step(&instance.model, "create", at.since(ordered));
                }
            }
            Notice::PlannedAgain { instance, why } => {
                let load = self.loading().remove(instance);
                let pulling =
                    load.and_then(|l| l.pulling).filter(|_| *why == FaultCode::ImagePulled);
                if let Some(since) = pulling {
                    self.step(&instance.model, "pull", at.since(since));
                }
            }
            Notice::Ready { instance, .. } => {
                let Some(load) = self.loading().remove(instance) else { return };
                if let Some(runs) = load.runs {
                    self.step(&instance.model, "load", at.since(runs));
                }
                self.step(&instance.model, "total", at.since(load.ordered));
                self.ended(&instance.model, "ok");
            }
            Notice::Failed { instance, fault, .. } => {
                let told = self.loading().remove(instance).is_some();
                if told || is_absence(fault.code) {
                    self.ended(&instance.model, "failed");
                }
                let key = (instance.model.clone(), fault.code.as_str());
                self.failures.with(&key, || key.clone(), Count::default, |n| n.add(1));
            }
            Notice::Stopping { instance, reason } => {
                if self.loading().remove(instance).is_some() {
                    self.ended(&instance.model, "abandoned");
                }
                self.evicted(instance, reason.as_str(), "stopped");
            }
            Notice::FallingAsleep { instance, reason, .. } => {
                self.evicted(instance, reason.as_str(), "asleep");
            }
            Notice::Woken { instance, wake_ms } => {
                let (model, took) = (&instance.model, Duration::from_millis(*wake_ms));
                let new = || Histogram::new(LONG_SECONDS);
                self.wakes.with(model, || model.clone(), new, |h| h.observe(took));
            }
            Notice::Adopted { .. }
            | Notice::Yielding { .. }
            | Notice::Spared { .. }
            | Notice::Asleep { .. }
            | Notice::SleepFailed { .. }
            | Notice::Waking { .. }
            | Notice::WakeFailed { .. }
            | Notice::Sleepless { .. }
            | Notice::Stopped { .. }
            | Notice::StopFailed { .. }
            | Notice::Measured { .. }
            | Notice::Unmeasured { .. }
            | Notice::Waiting { .. } => {}
        }
    }

    /// Of which something was counted.
    #[cfg(test)]
    pub(super) fn models(&self) -> std::collections::BTreeSet<ModelName> {
        self.loads.rows().keys().map(|(model, _)| model.clone()).collect()
    }

    /// Drops what was counted of other models.
    pub(super) fn retain(&self, there: impl Fn(&ModelName) -> bool) {
        self.loads.retain(|(model, _), _| there(model));
        self.steps.retain(|(model, _), _| there(model));
        self.failures.retain(|(model, _), _| there(model));
        self.evictions.retain(|(model, ..), _| there(model));
        self.wakes.retain(|model, _| there(model));
    }

    pub(super) fn looked(&self, at: Look, ok: bool) {
        let source = match at {
            Look::Containers => "containers",
            Look::Devices => "devices",
        };
        let key = (source, if ok { "ok" } else { "error" });
        self.looks.with(&key, || key, Count::default, |n| n.add(1));
    }

    fn step(&self, model: &ModelName, step: &'static str, took: Duration) {
        let key = (model.clone(), step);
        let new = || Histogram::new(LONG_SECONDS);
        self.steps.with(&key, || key.clone(), new, |h| h.observe(took));
    }

    fn ended(&self, model: &ModelName, result: &'static str) {
        let key = (model.clone(), result);
        self.loads.with(&key, || key.clone(), Count::default, |n| n.add(1));
    }

    fn evicted(&self, instance: &InstanceId, reason: &'static str, to: &'static str) {
        let key = (instance.model.clone(), reason, to);
        self.evictions.with(&key, || key.clone(), Count::default, |n| n.add(1));
    }

    fn loading(&self) -> MutexGuard<'_, BTreeMap<InstanceId, Load>> {
        // Nothing under the lock can leave the map half changed.
        self.loading.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn write(
        &self,
        page: &mut Page<'_>,
        first_token: &Table<ModelName, Histogram>,
        models: &[ModelStatus],
    ) -> std::fmt::Result {
        let pair = |(model, word): &Pair| vec![model.to_string(), (*word).to_owned()];
        let counted = |(key, n): (Pair, u64)| (pair(&key), Value::Count(n));
        let loads = models.iter().flat_map(|m| RESULTS.map(|result| (m.name.clone(), result)));
        page.family(&names::LOADS, from_zero(loads, &self.loads).map(counted))?;
        let steps = self.steps.rows();
        let steps = steps.iter().map(|(k, h)| (pair(k), Value::Histogram(h.read())));
        let first = first_token.rows();
        let first = first.iter().map(|(model, h)| {
            (vec![model.to_string(), "first_token".to_owned()], Value::Histogram(h.read()))
        });
        page.family(&names::LOAD_SECONDS, steps.chain(first))?;
        let codes = || FaultCode::ALL.iter().filter(|code| fails(**code));
        let failures =
            models.iter().flat_map(|m| codes().map(|code| (m.name.clone(), code.as_str())));
        page.family(&names::FAILURES, from_zero(failures, &self.failures).map(counted))?;
        let evictions = from_zero(models.iter().flat_map(evictions), &self.evictions);
        let evictions = evictions.map(|((model, reason, to), n)| {
            (vec![model.to_string(), reason.to_owned(), to.to_owned()], Value::Count(n))
        });
        page.family(&names::EVICTIONS, evictions)?;
        let wakes = self.wakes.rows();
        let wakes = wakes.iter().map(|(m, h)| (vec![m.to_string()], Value::Histogram(h.read())));
        page.family(&names::WAKE_SECONDS, wakes)?;
        let looks = self.looks.rows();
        let looks = looks.iter().map(|((source, result), n)| {
            (vec![(*source).to_owned(), (*result).to_owned()], Value::Count(n.get()))
        });
        page.family(&names::RECONCILES, looks)
    }
}

/// Whether a load can fail, or an engine die, with it.
const fn fails(code: FaultCode) -> bool {
    match code {
        // After the first two it is planned again, and a stop that fails is no failure of the model.
        FaultCode::ImagePulled | FaultCode::ImageChanged | FaultCode::StopFailed => false,
        FaultCode::ImageMissing
        | FaultCode::PullFailed
        | FaultCode::WeightsMissing
        | FaultCode::CdiUnresolvable
        | FaultCode::StorageFull
        | FaultCode::PodmanUnreachable
        | FaultCode::CreateFailed
        | FaultCode::StartFailed
        | FaultCode::HardeningMismatch
        | FaultCode::EngineExited
        | FaultCode::GpuLost
        | FaultCode::Unhealthy
        | FaultCode::LoadTimeout
        | FaultCode::Internal => true,
    }
}

/// What a launch needs is not to be had: a load has failed with it even where nothing was to be told of it before.
const fn is_absence(code: FaultCode) -> bool {
    matches!(
        code,
        FaultCode::ImageMissing
            | FaultCode::PullFailed
            | FaultCode::WeightsMissing
            | FaultCode::StorageFull
            | FaultCode::PodmanUnreachable
    )
}

/// In which ways a model can be told to leave.
fn evictions(model: &ModelStatus) -> impl Iterator<Item = Eviction> {
    let asleep = model.sleep.as_ref().map(|_| TO_SLEEP.map(|reason| (reason, "asleep")));
    let stopped = StopReason::ALL.map(|reason| (reason, "stopped"));
    let ways = stopped.into_iter().chain(asleep.into_iter().flatten());
    ways.map(|(reason, to)| (model.name.clone(), reason.as_str(), to))
}

/// What was counted, and 0 for those of `keys` of which nothing was, in the order of the keys.
fn from_zero<K: Ord + Clone>(
    keys: impl Iterator<Item = K>,
    counted: &Table<K, Count>,
) -> impl Iterator<Item = (K, u64)> {
    let mut all: BTreeMap<K, u64> = keys.map(|key| (key, 0)).collect();
    all.extend(counted.rows().iter().map(|(key, n)| (key.clone(), n.get())));
    all.into_iter()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supervisor::witness::StopReason;
    use crate::types::{Bytes, Fault, Generation};

    fn instance(generation: u64) -> InstanceId {
        InstanceId::new("m".parse().unwrap(), Generation(generation), 7)
    }

    fn starting(generation: u64) -> Notice {
        let instance = instance(generation);
        Notice::Starting { instance, gpus: vec![], planned: Bytes::gib(1) }
    }

    #[test]
    fn the_steps_of_a_load_are_told_apart() {
        let seen = Happenings::default();
        let see = |secs, notice: Notice| seen.see(Moment::from_secs(secs), &notice);
        see(0, starting(1));
        see(1, Notice::Pulling { instance: instance(1) });
        see(31, Notice::PlannedAgain { instance: instance(1), why: FaultCode::ImagePulled });
        see(31, starting(2));
        see(33, Notice::Loading { instance: instance(2) });
        see(43, Notice::Ready { instance: instance(2), load_ms: Some(12_000) });
        let steps = seen.steps.rows();
        let sums = steps.iter().map(|((_, step), h)| (*step, h.read().sum));
        let sums: Vec<(&str, f64)> = sums.collect();
        assert_eq!(sums, [("create", 2.0), ("load", 10.0), ("pull", 30.0), ("total", 12.0)]);
        assert!(seen.loading().is_empty());
    }

    #[test]
    fn loads_end_in_one_of_three_ways_and_deaths_are_no_loads() {
        let seen = Happenings::default();
        let see = |notice: Notice| seen.see(Moment::START, &notice);
        let failed = |generation| {
            let fault = Fault::new(FaultCode::EngineExited, "exit 1");
            Notice::Failed { instance: instance(generation), fault, retry_ms: 0 }
        };
        see(starting(1));
        see(Notice::Ready { instance: instance(1), load_ms: Some(1) });
        see(failed(1));
        see(starting(2));
        see(failed(2));
        see(starting(3));
        see(Notice::Stopping { instance: instance(3), reason: StopReason::Unloaded });
        // Taken over from an earlier daemon.
        see(Notice::Ready { instance: instance(4), load_ms: Some(1) });
        let loads = seen.loads.rows();
        let loads = loads.iter().map(|((_, result), n)| (*result, n.get()));
        let loads: Vec<(&str, u64)> = loads.collect();
        assert_eq!(loads, [("abandoned", 1), ("failed", 1), ("ok", 1)]);
        assert_eq!(seen.failures.rows().values().map(|n| n.get()).sum::<u64>(), 2);
    }
}
