//! The part of the core that asks engines whether they are well, and that stops trying where it is no use.
//!
//! ```text
//!   ready ── every interval ──▶ Check ── Ok ───▶ (asked again after the interval)
//!                                 └──── Err, so many in a row ──▶ stopped: a fault
//!
//!   circuit breaker of a model, by faults in a row:
//!     closed ── fault: a growing delay, then again ──┐
//!       ▲ └──────── as many as breaker_failures ─────┴─▶ open ── breaker_open ──▶ half-open: one start
//!       └──────────── it has served for a minute ◀────────┴────────── fault ◀──────────┘
//! ```
//! A launch for which podman was not there, before anything was begun, is no fault of the model: the count stays, and the next attempt is
//! soon. One that drains is asked as well: where it makes way for another no time ends its requests, and one that hangs would keep the place for
//! ever. An engine on which requests run is asked for its health alone: that it is too busy for more in time is no fault. Nor is it one
//! that it does not come to speak of its health while it answers requests, which who asks for the core finds out; nor, for as long as its
//! clients are patient themselves, while it says nothing to anybody: whole answers are one word in minutes. llama-server's loop answers
//! between batches, which take minutes on slow hosts also when the client has gone: it is asked for more when nobody was there for longer.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::effect::{Effect, Notice};
use super::instance::{Instance, Life};
use super::lifecycle::FORGIVEN_AFTER;
use super::state::{Model, State};
use crate::types::{
    Breaker, Denied, EngineKind, Fault, FaultCode, GpuId, HealthStatus, InstanceId, ModelName,
    Moment,
};

/// The longest delay between two attempts while the breaker is closed.
const RETRY_DELAY_MAX: Duration = Duration::from_secs(60);
/// After a failure it is asked again at least so soon.
const RECHECK: Duration = Duration::from_secs(5);
/// Nobody was at a llama-server for so long: what its last client left it to compute is over. Not longer: who comes back meanwhile puts
/// it off.
const FORSAKEN: Duration = Duration::from_secs(120);
/// From a launch that podman was not there for to the next.
const PODMAN_RETRY: Duration = Duration::from_secs(5);

/// A failure that is not yet forgiven.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    pub(super) fault: Fault,
    /// It had been ready: what it wrote last may hold what its clients sent.
    pub(super) served: bool,
    /// In a row.
    pub(super) count: u32,
    /// No attempt before.
    pub(super) retry_at: Moment,
    /// Where loads failed in that row, and how often: the next goes elsewhere if it can.
    pub(super) failed_on: BTreeMap<GpuId, u32>,
}

impl Failure {
    /// As it is told to whoever asks for the model.
    pub(super) fn told(&self) -> Fault {
        let mut fault = self.fault.clone();
        if self.served {
            fault.log_tail = Arc::default();
        }
        fault
    }
}

/// What the core needs of `[health]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HealthRules {
    /// How long an answer may take.
    pub timeout: Duration,
    /// How long it may be silent while requests wait for it: as long as they do themselves.
    pub patience: Duration,
    /// So many failures in a row make a restart.
    pub failures: u32,
    /// Whether engines on which nothing runs are asked for a token.
    pub probe: bool,
    /// So many faults in a row open the circuit breaker.
    pub breaker_failures: u32,
    /// How long it stays open.
    pub breaker_open: Duration,
}

impl Default for HealthRules {
    fn default() -> Self {
        let [timeout, patience, breaker_open] = [10, 600, 300].map(Duration::from_secs);
        Self { timeout, patience, failures: 3, probe: true, breaker_failures: 6, breaker_open }
    }
}

impl HealthRules {
    /// From the `count`th fault in a row to the next attempt. `noise`: any number; it makes those that failed together come
    /// back apart, up to a quarter sooner.
    pub(super) fn delay(&self, count: u32, noise: u32) -> Duration {
        let full = if self.opens(count) {
            self.breaker_open
        } else {
            Duration::from_secs(1 << (count.max(1) - 1).min(6)).min(RETRY_DELAY_MAX)
        };
        apart(full, noise)
    }

    pub(super) fn opens(&self, count: u32) -> bool {
        count >= self.breaker_failures
    }

    fn breaker(&self, now: Moment, failure: Option<&Failure>, served: bool) -> Breaker {
        match failure.filter(|f| self.opens(f.count) && !served) {
            None => Breaker::Closed,
            Some(failure) if failure.retry_at > now => Breaker::Open,
            Some(_) => Breaker::HalfOpen,
        }
    }
}

fn apart(full: Duration, noise: u32) -> Duration {
    full - full * (noise % 1000) / 4000
}

/// How an instance was, when it was asked.
#[derive(Clone, Debug, Default)]
pub(super) struct Health {
    /// When it is asked next; `None`: not at all, or it is being asked.
    next: Option<Moment>,
    /// In a row.
    failures: u32,
    /// It was asked for a token.
    token: bool,
    /// Since when it was silent each time, with requests on it.
    silent_since: Option<Moment>,
}

impl Health {
    /// It is ready from now on.
    pub(super) fn begin(now: Moment, interval: Option<Duration>) -> Self {
        Self { next: interval.map(|interval| now + interval), ..Self::default() }
    }
}

impl Instance {
    /// When it has to be asked whether it is well.
    pub(super) fn check_at(&self) -> Option<Moment> {
        self.health.next.filter(|_| self.answers())
    }

    /// Whether it may be asked for what only its loop can do: nothing keeps that busy.
    fn rests(&self, now: Moment) -> bool {
        let over = match self.spec.engine {
            EngineKind::Llamacpp => now.since(self.last_used) >= FORSAKEN,
            EngineKind::Vllm => true,
        };
        over && self.in_flight == 0
    }

    /// It has requests to answer, now or later.
    fn answers(&self) -> bool {
        matches!(self.life, Life::Ready | Life::Draining { .. })
    }
}

impl State {
    /// Asks those whose time has come.
    pub(super) fn check_health(&mut self, now: Moment, out: &mut Vec<Effect>) {
        let rules = self.settings.health;
        for instance in self.models.values_mut().filter_map(|m| m.instance.as_mut()) {
            let due = instance.check_at().is_some_and(|at| at <= now);
            let Some(launched) = instance.launched.as_ref().filter(|_| due) else { continue };
            let token = rules.probe && instance.rests(now);
            instance.health.next = None;
            instance.health.token = token;
            out.push(Effect::Check {
                instance: instance.id.clone(),
                spec: instance.spec.clone(),
                endpoint: launched.endpoint.clone(),
                token,
                timeout: rules.timeout,
            });
        }
    }

    pub(super) fn checked(
        &mut self,
        now: Moment,
        id: &InstanceId,
        (result, silent): (Result<(), Fault>, bool),
        out: &mut Vec<Effect>,
    ) {
        let rules = self.settings.health;
        let Some(instance) = self.instance_mut(id).filter(|i| i.answers()) else { return };
        let Some(interval) = instance.spec.health_interval else { return };
        let Err(fault) = result else {
            instance.health = Health::begin(now, Some(interval));
            return;
        };
        instance.health.next = Some(now + interval.min(RECHECK));
        let busy = instance.in_flight > 0;
        let since = *instance.health.silent_since.get_or_insert(now);
        // Whoever came meanwhile may have kept it from a token in time; whoever waits keeps it from a word.
        let patient = silent && now.since(since) < rules.patience;
        if busy && (instance.health.token || patient) {
            return;
        }
        instance.health.failures += 1;
        if instance.health.failures >= rules.failures {
            self.begin_stop(id, Some(fault), out);
        }
    }

    /// Models that are not tried any more for now, for people.
    pub(super) fn note_breakers(&mut self, now: Moment) {
        let rules = self.settings.health;
        let text = |m: &Model| {
            let failure =
                m.failure.as_ref().filter(|f| rules.opens(f.count) && f.retry_at > now)?;
            Some(format!(
                "{} has failed {} times in a row and is not tried again for a while: {}",
                m.spec.name, failure.count, failure.fault
            ))
        };
        let open = self.models.values().filter_map(text).collect();
        self.note("circuit_open", now, open);
    }

    /// Devices that a start avoids where there is room elsewhere, with how many loads failed there.
    pub(super) fn shunned(&self, model: &Model) -> BTreeMap<GpuId, u32> {
        let mut all: BTreeMap<GpuId, u32> =
            self.suspects.keys().map(|gpu| (gpu.clone(), 1)).collect();
        for (gpu, times) in model.failure.iter().flat_map(|f| &f.failed_on) {
            *all.entry(gpu.clone()).or_default() += times;
        }
        all
    }

    /// A model has loaded: its devices are well, and those on which it failed before may not be. One that failed on these, too, says
    /// nothing of the others.
    pub(super) fn judge_devices(&mut self, now: Moment, id: &InstanceId) {
        let Some(model) = self.models.get_mut(&id.model) else { return };
        let failed_on = model.failure.as_mut().map(|f| std::mem::take(&mut f.failed_on));
        let failed_on = failed_on.unwrap_or_default();
        let gpus = model.instance.as_ref().map(|i| i.placement.gpus.as_slice()).unwrap_or_default();
        // What took too long may have waited for a disk, which has the weights at hand by the second time.
        let slow = model.failure.as_ref().is_some_and(|f| f.fault.code == FaultCode::LoadTimeout);
        if !slow && !gpus.iter().any(|gpu| failed_on.contains_key(gpu)) {
            let suspects = failed_on.into_keys().map(|gpu| (gpu, id.model.clone()));
            self.suspects.extend(suspects);
        }
        self.suspects.retain(|gpu, _| !gpus.contains(gpu));
        self.note_suspects(now);
    }

    /// Devices that are avoided, for people. A model that is gone accuses none.
    pub(super) fn note_suspects(&mut self, now: Moment) {
        let models = &self.models;
        self.suspects.retain(|_, by| models.get(by).is_some_and(|model| !model.retired));
        let text = |(gpu, model): (&GpuId, &ModelName)| {
            format!(
                "{gpu}: {model} failed to load there and loaded elsewhere; until a model has loaded there, each goes elsewhere where it \
                 has room: see \"dmesg\"; \"hostler load MODEL --gpus {gpu}\" tries it"
            )
        };
        let told = self.suspects.iter().map(text).collect();
        self.note("gpu_suspect", now, told);
    }
}

/// What a fault makes of the count of those in a row.
#[derive(Clone, Copy, Debug)]
enum Tally {
    /// It says nothing of the model: podman was not there. All of them would fail like this one, and none would be tried when it is back.
    Kept(u32),
    /// The engine had served long enough: a new count begins.
    First,
    /// As many, with this one.
    OneMore(u32),
}

impl Tally {
    fn of(now: Moment, earlier: u32, instance: &Instance, fault: &Fault) -> Self {
        // From ready on: a long load is no service, and an engine that dies after each must not be restarted for ever.
        let served = instance.ready_since.is_some_and(|at| now.since(at) >= FORGIVEN_AFTER);
        if fault.code == FaultCode::PodmanUnreachable && !instance.begun {
            Self::Kept(earlier)
        } else if served {
            Self::First
        } else {
            Self::OneMore(earlier + 1)
        }
    }

    fn count(self) -> u32 {
        match self {
            Self::Kept(count) | Self::OneMore(count) => count,
            Self::First => 1,
        }
    }

    /// Whether it is the model's.
    fn is_counted(self) -> bool {
        !matches!(self, Self::Kept(_))
    }

    /// To the next attempt.
    fn delay(self, rules: &HealthRules, was_ready: bool, noise: u32) -> Duration {
        match self {
            Self::Kept(_) => apart(PODMAN_RETRY, noise),
            // The first death of an engine that was ready is made good at once; requests that came since then wait for it.
            Self::First | Self::OneMore(1) if was_ready => Duration::ZERO,
            Self::First | Self::OneMore(_) => rules.delay(self.count(), noise),
        }
    }
}

/// Says on which devices a load failed, and counts it to them.
fn blame(gpus: &[GpuId], fault: &mut Fault, failed_on: &mut BTreeMap<GpuId, u32>) {
    let real: Vec<&str> = gpus.iter().filter(|gpu| !gpu.is_host()).map(GpuId::as_str).collect();
    if !real.is_empty() {
        fault.message.push_str(&format!(" (on {})", real.join(", ")));
    }
    for gpu in gpus {
        *failed_on.entry(gpu.clone()).or_default() += 1;
    }
}

impl Model {
    /// Takes note of a failure and tells those who waited for this very start.
    pub(super) fn fail(
        &mut self,
        (now, rules): (Moment, HealthRules),
        instance: &Instance,
        mut fault: Fault,
        was_ready: bool,
        out: &mut Vec<Effect>,
    ) {
        let earlier = self.failure.take();
        let tally = Tally::of(now, earlier.as_ref().map_or(0, |f| f.count), instance, &fault);
        let mut failed_on = match tally {
            Tally::First => BTreeMap::new(),
            Tally::Kept(_) | Tally::OneMore(_) => earlier.map(|f| f.failed_on).unwrap_or_default(),
        };
        if !was_ready && fault.code.may_be_the_devices() {
            blame(&instance.placement.gpus, &mut fault, &mut failed_on);
        }
        let count = tally.count();
        self.restarts = self.restarts.saturating_add(u32::from(tally.is_counted()));
        let delay = tally.delay(&rules, was_ready, instance.id.noise());
        if tally.is_counted() && rules.opens(count) {
            let text = format!(
                "; after {count} failures in a row it is not tried again for {} s (the circuit breaker of {} is open)",
                delay.as_secs(),
                self.spec.name
            );
            fault.message.push_str(&text);
        }
        let retry_ms = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
        let notice =
            Notice::Failed { instance: instance.id.clone(), fault: fault.clone(), retry_ms };
        out.push(Effect::Notice(notice));
        let retry_at = now + delay;
        let failure = Failure { fault, served: was_ready, count, retry_at, failed_on };
        if delay > Duration::ZERO {
            // What is no fault of the model's is tried again for who was answered long ago, too.
            let kept = self.wanted && !tally.is_counted() && !self.queue.has_operators();
            // The operator is told too, if he still waits; only a pin is tried again without being asked.
            let denied = Denied::LoadFailed {
                model: self.spec.name.clone(),
                fault: failure.told(),
                retry_after: delay,
            };
            self.deny_all(&denied, out);
            self.wanted |= kept;
        }
        self.failure = Some(failure);
    }

    pub(super) fn health_status(&self, now: Moment, rules: HealthRules) -> HealthStatus {
        let instance = self.instance.as_ref();
        let ready = instance.and_then(|i| i.ready_since);
        let served = ready.is_some_and(|at| now.since(at) >= FORGIVEN_AFTER);
        HealthStatus {
            failures_in_a_row: self.failure.as_ref().filter(|_| !served).map_or(0, |f| f.count),
            breaker: rules.breaker(now, self.failure.as_ref(), served),
            checks_failed: instance.map_or(0, |i| i.health.failures),
        }
    }
}
