//! The part of the core that puts instances to sleep and wakes them.
//!
//! ```text
//!          idle, evicted           Slept, observed              demand, room          Woken, Sung as before
//!   Ready ───────────────▶ Dozing ─────────────────▶ Asleep ─────────────────▶ Waking ─────────────────────▶ Ready
//!                            │ refused, late,           │ memory needed, unload,  │ refused, late, died,
//!                            ▼ kept too much            ▼ slept too long          ▼ another canary
//!                         Stopping                   Stopping                  Stopping ──▶ a cold start, if wanted
//! ```
//! Owner: [`State`]. Invariants: only an idle instance falls asleep, so no request is ever sent to an engine that would
//! not answer; memory is free only when it was seen to be; a waking instance has reserved all that it needs before its engine
//! is asked to wake; nobody is served by one that woke before it has answered its canary as after its load. The ladder is
//! the plan's (`plan::sleep`).

use std::time::Duration;

use super::effect::{Effect, Notice, StopReason};
use super::instance::{Canary, Instance, Life};
use super::ports::Endpoint;
use super::state::{Model, State};
use crate::plan::{Leave, Sleeper};
use crate::types::{Bytes, InstanceId, Known, ModelName, Moment, SleepLevel, SleepStatus};

/// How long an engine may take to say that it sleeps. More than the port's own time.
const SLEEP_TIME: Duration = Duration::from_secs(75);
/// How long its memory may take to come back then. Unmapping is over when it says so; drivers lag a second or two.
const RESIDUAL_TIME: Duration = Duration::from_secs(10);
/// After so many failures in a row, to fall asleep or to wake, a model is always stopped.
const FAILURES_MAX: u32 = 3;

/// How a model has slept.
#[derive(Debug, Default)]
pub(super) struct Sleeps {
    /// What it kept when it slept last, on the device where that was most; `None`: not known yet.
    pub(super) residual: Option<Bytes>,
    /// Since its last good wake.
    pub(super) failures: u32,
    pub(super) counts: SleepStatus,
}

impl Instance {
    pub(super) fn sleep_level(&self) -> Option<SleepLevel> {
        match self.life {
            Life::Dozing { level, .. }
            | Life::Asleep { level, .. }
            | Life::Waking { level, .. } => Some(level),
            Life::Pulling { .. }
            | Life::Starting { .. }
            | Life::Loading { .. }
            | Life::Ready
            | Life::Draining { .. }
            | Life::Abandoned { .. }
            | Life::Stopping { .. } => None,
        }
    }

    pub(super) fn is_asleep(&self) -> bool {
        matches!(self.life, Life::Asleep { .. })
    }

    /// When it is stopped unless it has fallen asleep, or woken, by then.
    pub(super) fn sleep_deadline(&self) -> Option<Moment> {
        match self.life {
            Life::Dozing { deadline, .. } | Life::Waking { deadline, .. } => Some(deadline),
            Life::Asleep { .. }
            | Life::Pulling { .. }
            | Life::Starting { .. }
            | Life::Loading { .. }
            | Life::Ready
            | Life::Draining { .. }
            | Life::Abandoned { .. }
            | Life::Stopping { .. } => None,
        }
    }

    pub(super) fn endpoint(&self) -> Option<Endpoint> {
        self.launched.as_ref().map(|launched| launched.endpoint.clone())
    }
}

impl Model {
    /// The picture of its sleep; `None`: it never sleeps.
    pub(super) fn sleep_status(&self) -> Option<SleepStatus> {
        self.spec.sleep_level?;
        let now = self.instance.as_ref();
        Some(SleepStatus {
            level: now.and_then(Instance::sleep_level),
            host_ram: now.map_or(Bytes::ZERO, |i| i.host_ram),
            residual: self.sleeps.residual,
            ..self.sleeps.counts.clone()
        })
    }

    /// How long its last wake took, for whoever waits for the next.
    pub(super) fn last_wake(&self) -> Option<Duration> {
        self.sleeps.counts.wake_ms.map(Duration::from_millis)
    }
}

impl State {
    /// What an instance is to sleep, or why it cannot.
    pub(super) fn sleeper(
        &self,
        model: &Model,
        instance: &Instance,
    ) -> Result<Sleeper, &'static str> {
        let deepest = instance.spec.sleep_level.ok_or("it may not sleep")?;
        if instance.outdated.is_some() {
            return Err("it is configured otherwise by now, and goes for a container of that");
        }
        let hold = self.ledger.hold(&instance.id);
        let known = hold.and_then(|h| h.observed_total().get());
        match &instance.canary {
            _ if !instance.is_ready() => return Err("it is not ready"),
            Canary::Answered(_) => {}
            Canary::None | Canary::Asked { .. } | Canary::Silent | Canary::Unfit => {
                return Err("after its load it gave no answer that a wake could be judged by");
            }
        }
        if model.sleeps.failures >= FAILURES_MAX {
            return Err("it failed to fall asleep or to wake too often");
        }
        // A wake takes all of it again, and only a reading since then shows all.
        if !instance.measuring.whole {
            return Err(
                "what it holds has not been looked at since it became ready; try again in a moment",
            );
        }
        let Some(held) = known else {
            return Err("the driver does not say how much memory it holds");
        };
        let placement = &instance.placement;
        let told: Bytes = placement.gpus.iter().map(|_| placement.budget).sum();
        let weights = instance.spec.anatomy.as_ref().map(|a| a.weights);
        Ok(Sleeper {
            deepest,
            residual: model.sleeps.residual.unwrap_or(self.settings.rules.sleep.residual_max),
            // Without a look into the files: they are less than all that it was told to take, or holds.
            weights: weights.unwrap_or(held.max(told)),
        })
    }

    /// An idle instance leaves as the plan says.
    pub(super) fn leave(
        &mut self,
        now: Moment,
        name: &ModelName,
        leave: Leave,
        reason: StopReason,
        out: &mut Vec<Effect>,
    ) {
        let Leave::Sleep { level, host_ram, residual } = leave else {
            self.dismiss(name, reason, out);
            return;
        };
        let instance = self.models.get_mut(name).and_then(|m| m.instance.as_mut());
        let idle = instance.filter(|i| i.is_ready() && i.in_flight == 0);
        let Some((instance, endpoint)) = idle.and_then(|i| i.endpoint().map(|e| (i, e))) else {
            self.dismiss(name, reason, out);
            return;
        };
        instance.life = Life::Dozing { level, deadline: now + SLEEP_TIME };
        instance.host_ram = host_ram;
        let (id, spec) = (instance.id.clone(), instance.spec.clone());
        self.ledger.doze(&id, residual);
        out.push(Effect::Notice(Notice::FallingAsleep { instance: id.clone(), level, reason }));
        out.push(Effect::Sleep { instance: id, spec, endpoint, level });
    }

    pub(super) fn slept(
        &mut self,
        now: Moment,
        id: &InstanceId,
        result: Result<(), String>,
        out: &mut Vec<Effect>,
    ) {
        let Some(instance) = self.instance_mut(id) else { return };
        let Life::Dozing { deadline, .. } = &mut instance.life else { return };
        match result {
            Ok(()) => {
                *deadline = now + RESIDUAL_TIME;
                self.ledger.slept(id, now);
                out.push(Effect::Observe);
            }
            Err(why) => self.sleep_failed(id, why, out),
        }
    }

    /// Looks at what those keep who say that they sleep.
    pub(super) fn judge_sleepers(&mut self, now: Moment, out: &mut Vec<Effect>) {
        let limit = self.settings.rules.sleep.residual_max;
        for model in self.models.values_mut() {
            let Some(instance) = &mut model.instance else { continue };
            let Life::Dozing { level, .. } = instance.life else { continue };
            let residual = self.ledger.residual(&instance.id);
            let Some(Known::Known(residual)) = residual else { continue };
            // A learned number is taken only from one that was believed; too much is taken at the deadline.
            if residual > limit {
                continue;
            }
            instance.life = Life::Asleep { level, since: now };
            self.ledger.asleep(&instance.id, residual);
            model.sleeps.residual = Some(residual);
            model.sleeps.counts.sleeps += 1;
            let (instance, host_ram) = (instance.id.clone(), instance.host_ram);
            out.push(Effect::Notice(Notice::Asleep { instance, level, residual, host_ram }));
        }
    }

    /// Stops those who have neither fallen asleep nor woken in time.
    pub(super) fn stop_late_sleepers(&mut self, now: Moment, out: &mut Vec<Effect>) {
        let instances = self.models.values().filter_map(|m| m.instance.as_ref());
        let late = instances.filter(|i| i.sleep_deadline().is_some_and(|at| at <= now));
        let late: Vec<(InstanceId, bool)> =
            late.map(|i| (i.id.clone(), matches!(i.life, Life::Dozing { .. }))).collect();
        for (id, dozing) in late {
            if !dozing {
                self.wake_failed(&id, "it did not wake in time".to_owned(), false, out);
                continue;
            }
            let why = match self.ledger.residual(&id) {
                None => "it did not fall asleep in time, or could not be measured".to_owned(),
                Some(Known::Unknown) => "the driver does not say what it still holds".to_owned(),
                Some(Known::Known(residual)) => {
                    if let Some(model) = self.models.get_mut(&id.model) {
                        model.sleeps.residual = Some(residual);
                    }
                    let limit = self.settings.rules.sleep.residual_max;
                    format!(
                        "asleep it still holds {residual}, more than sleep_residual_max ({limit})"
                    )
                }
            };
            self.sleep_failed(&id, why, out);
        }
    }

    pub(super) fn sleep_failed(&mut self, id: &InstanceId, why: String, out: &mut Vec<Effect>) {
        let Some(model) = self.models.get_mut(&id.model) else { return };
        model.sleeps.counts.sleep_failures += 1;
        let instance = id.clone();
        out.push(Effect::Notice(Notice::SleepFailed { instance, why }));
        self.count_failure(id, out);
        // It was to leave anyway.
        self.begin_stop(id, None, out);
    }

    /// A wake that fails costs a cold start, and is no failure of the model's load.
    pub(super) fn wake_failed(
        &mut self,
        id: &InstanceId,
        why: String,
        canary: bool,
        out: &mut Vec<Effect>,
    ) {
        let Some(model) = self.models.get_mut(&id.model) else { return };
        model.sleeps.counts.wake_failures += 1;
        model.sleeps.counts.canary_failures += u64::from(canary);
        let instance = id.clone();
        out.push(Effect::Notice(Notice::WakeFailed { instance, why }));
        self.count_failure(id, out);
        self.begin_stop(id, None, out);
    }

    fn count_failure(&mut self, id: &InstanceId, out: &mut Vec<Effect>) {
        let Some(model) = self.models.get_mut(&id.model) else { return };
        model.sleeps.failures += 1;
        if model.sleeps.failures == FAILURES_MAX {
            let why =
                format!("{FAILURES_MAX} failures in a row; from now on it is stopped instead");
            out.push(Effect::Notice(Notice::Sleepless { instance: id.clone(), why }));
        }
    }
}
