//! The part of the core that wakes instances, and asks them whether they still are who they were. See `sleep`.

use std::time::Duration;

use super::effect::{Effect, Notice, StopReason};
use super::health::Health;
use super::instance::{Canary, Instance, Life};
use super::ports::CanaryError;
use super::state::{Model, State};
use crate::plan::Promise;
use crate::types::{Bytes, GpuId, InstanceId, ModelName, Moment, Need, NeedSource, SleepLevel};

/// How long a wake may take, its canary included. More than the ports' own times.
const WAKE_TIME: Duration = Duration::from_secs(120);
/// How long the answer to a canary may take, beside a load or a wake. More than the port's own time.
const CANARY_TIME: Duration = Duration::from_secs(45);

impl State {
    /// What it takes again on each of its devices: never less than it was seen to take.
    pub(super) fn wake_need(&self, model: &Model, instance: &Instance) -> Promise {
        let placed = instance.placement.need;
        let name = |gpu: &GpuId| self.ledger.name(gpu);
        let peak = instance.placement.gpus.first().and_then(name).and_then(|n| model.known.peak(n));
        let bytes = match (placed.source, peak) {
            // It was given all that there was, and took this.
            (NeedSource::Exclusive, Some(peak)) => peak,
            (_, peak) => placed.bytes.max(peak.unwrap_or(Bytes::ZERO)),
        };
        let need = Need { bytes, source: NeedSource::Measured };
        Promise { need, least: peak.unwrap_or(bytes) }
    }

    pub(super) fn wake(
        &mut self,
        now: Moment,
        name: &ModelName,
        need: Bytes,
        out: &mut Vec<Effect>,
    ) {
        let Some(model) = self.models.get_mut(name) else { return };
        let Some(instance) = model.instance.as_mut() else { return };
        let Life::Asleep { level, .. } = instance.life else { return };
        let Some(endpoint) = instance.endpoint() else { return };
        let (id, spec) = (instance.id.clone(), instance.spec.clone());
        let time = match level {
            SleepLevel::One => WAKE_TIME,
            SleepLevel::Two => spec.load_timeout + CANARY_TIME,
        };
        instance.life = Life::Waking { level, since: now, deadline: now + time };
        instance.last_used = now;
        (model.waiting_for, model.hunger) = (None, None);
        self.ledger.wake(&id, need);
        out.push(Effect::Notice(Notice::Waking { instance: id.clone() }));
        out.push(Effect::Wake { instance: id, spec, endpoint, level });
    }

    pub(super) fn woken(
        &mut self,
        id: &InstanceId,
        result: Result<(), String>,
        out: &mut Vec<Effect>,
    ) {
        let Some(instance) = self.instance_mut(id) else { return };
        if !matches!(instance.life, Life::Waking { .. }) {
            return;
        }
        match (result, instance.endpoint()) {
            (Ok(()), Some(endpoint)) => {
                let spec = instance.spec.clone();
                out.push(Effect::Canary { instance: id.clone(), spec, endpoint });
            }
            (Ok(()), None) => {}
            (Err(why), _) => self.wake_failed(id, why, false, out),
        }
    }

    /// An engine that may sleep has loaded: what it answers now is what it has to answer after each wake. Asked before the
    /// first request is let in, because in company the same prompt may get another text.
    pub(super) fn ask_canary(&mut self, now: Moment, id: &InstanceId, out: &mut Vec<Effect>) {
        let Some(instance) = self.instance_mut(id) else { return };
        let (Life::Loading { deadline }, Some(endpoint)) =
            (instance.life.clone(), instance.endpoint())
        else {
            return;
        };
        instance.canary = Canary::Asked { again: instance.canary == Canary::Silent };
        // The load is over; its time-out is not to end the canary.
        instance.life = Life::Loading { deadline: deadline.max(now + CANARY_TIME) };
        let spec = instance.spec.clone();
        out.push(Effect::Canary { instance: id.clone(), spec, endpoint });
    }

    pub(super) fn sung(
        &mut self,
        now: Moment,
        id: &InstanceId,
        result: Result<String, CanaryError>,
        out: &mut Vec<Effect>,
    ) {
        let Some(instance) = self.instance_mut(id) else { return };
        match (&instance.life, &instance.canary, result) {
            (Life::Loading { .. }, Canary::Asked { .. }, Ok(answer)) => {
                instance.canary = Canary::Answered(answer);
                self.healthy(now, id, out);
            }
            // Nobody knows what it answered after its load.
            (Life::Loading { .. }, Canary::Asked { .. }, Err(CanaryError::Asleep)) => {
                let (instance, reason) = (id.clone(), StopReason::Orphaned);
                out.push(Effect::Notice(Notice::Stopping { instance, reason }));
                self.begin_stop(id, None, out);
            }
            (Life::Loading { .. }, Canary::Asked { .. }, Err(CanaryError::Failed(why))) => {
                instance.canary = Canary::Unfit;
                out.push(Effect::Notice(Notice::Sleepless { instance: id.clone(), why }));
                self.healthy(now, id, out);
            }
            (
                Life::Loading { deadline },
                Canary::Asked { again },
                Err(CanaryError::Silent(why)),
            ) => {
                // It may have died of it, and nobody looks for that while it is asked: it has to say once more that it is ready.
                let (deadline, again) = (*deadline, *again);
                instance.life = Life::Loading { deadline: deadline.max(now + CANARY_TIME) };
                instance.canary = if again { Canary::Unfit } else { Canary::Silent };
                instance.strange = Some(why.clone());
                let (spec, launched) = (instance.spec.clone(), instance.launched.clone());
                if again {
                    out.push(Effect::Notice(Notice::Sleepless { instance: id.clone(), why }));
                }
                out.extend(launched.map(|launched| Effect::AwaitReady {
                    instance: id.clone(),
                    spec,
                    launched,
                }));
            }
            (Life::Waking { since, .. }, Canary::Answered(before), Ok(answer)) => {
                let since = *since;
                if *before == answer {
                    self.awake(now, id, since, out);
                } else {
                    let why = format!("its canary answered {answer:?}, after its load {before:?}");
                    self.wake_failed(id, why, true, out);
                }
            }
            (Life::Waking { .. }, _, Err(error)) => {
                let why = format!("its canary did not answer: {error}");
                self.wake_failed(id, why, true, out);
            }
            // Of a life that is over.
            (_, _, Ok(_) | Err(_)) => {}
        }
    }

    fn awake(&mut self, now: Moment, id: &InstanceId, since: Moment, out: &mut Vec<Effect>) {
        let Some(model) = self.models.get_mut(&id.model) else { return };
        let Some(instance) = model.instance.as_mut() else { return };
        instance.life = Life::Ready;
        instance.last_used = now;
        instance.ready_since = Some(now);
        instance.host_ram = Bytes::ZERO;
        instance.health = Health::begin(now, instance.spec.health_interval);
        let wake_ms = u64::try_from(now.since(since).as_millis()).unwrap_or(u64::MAX);
        model.sleeps.failures = 0;
        model.sleeps.counts.wakes += 1;
        model.sleeps.counts.wake_ms = Some(wake_ms);
        out.push(Effect::Notice(Notice::Woken { instance: id.clone(), wake_ms }));
        self.ledger.confirm(id);
        out.push(Effect::Observe);
    }
}
