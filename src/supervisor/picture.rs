//! The part of the core that describes it: `State → Status`, and what an observation has to look at.

use super::effect::Heir;
use super::instance::Life;
use super::ports::{Endpoint, Launched};
use super::state::{Model, State};
use crate::plan::Hold;
use crate::types::{
    Denied, GpuId, InstanceId, Known, LoadProgress, ModelName, ModelStatus, Moment, Phase, Problem,
    Status, WaiterId,
};

impl State {
    /// The picture for readers, at `now`.
    #[must_use]
    pub fn status(&self, now: Moment) -> Status {
        let problem = |(code, (message, since)): (&&'static str, &(String, Moment))| Problem {
            code,
            message: message.clone(),
            since: *since,
        };
        Status {
            models: self.models.values().map(|m| self.model_status(now, m)).collect(),
            gpus: self.ledger.status(),
            problems: self.problems.iter().map(problem).collect(),
            shutting_down: self.shutdown.is_some(),
        }
    }

    /// Instances whose processes may live, with their devices: what an observation has to look at.
    pub fn live(&self) -> impl Iterator<Item = Live<'_>> {
        let instances = self.models.values().filter_map(|m| m.instance.as_ref());
        let instances = instances.filter_map(|i| {
            let launched = i.launched.as_ref()?;
            let watched = i.has_served();
            Some(Live { id: &i.id, launched, gpus: &i.placement.gpus, watched })
        });
        let orphans = self.running_orphans.iter().filter_map(|(id, launched)| {
            let gpus = &self.ledger.hold(id)?.gpus;
            Some(Live { id, launched, gpus, watched: false })
        });
        instances.chain(orphans)
    }

    /// The request that has waited longest for a model.
    #[must_use]
    pub fn first_request(&self, model: &ModelName) -> Option<WaiterId> {
        self.models.get(model)?.queue.first_lease()
    }

    /// The operator that has waited longest for something of a model: that it is ready, measured, gone or asleep.
    #[must_use]
    pub fn first_operator(&self, model: &ModelName) -> Option<WaiterId> {
        let model = self.models.get(model)?;
        let measuring = model.discovery.waiters.first().map(|(waiter, _)| waiter);
        let queued = model.queue.first_operator();
        let others = measuring.or(model.unloading.first()).or(model.dozing.first());
        queued.or(others.copied())
    }

    /// Where a ready engine listens, for who asks it something that is no use of the model.
    ///
    /// # Errors
    /// [`Denied::UnknownModel`], and [`Denied::Conflict`] where none is ready.
    pub fn reach(&self, name: &ModelName) -> Result<(InstanceId, Endpoint), Denied> {
        let known = self.aliases.get(name).unwrap_or(name);
        let unknown = || Denied::UnknownModel { model: name.to_string() };
        let model = self.models.get(known).ok_or_else(unknown)?;
        let ready = model.instance.as_ref().filter(|i| i.is_ready());
        let reached = ready.and_then(|i| Some((i.id.clone(), i.endpoint()?)));
        reached.ok_or_else(|| {
            let why = "no engine of it is ready".to_owned();
            Denied::Conflict { model: known.clone(), why }
        })
    }

    fn model_status(&self, now: Moment, model: &Model) -> ModelStatus {
        // Of one that is looked for there is nothing yet.
        let instance = model.instance.as_ref().filter(|i| !i.is_looked_for());
        let hold = instance.and_then(|i| self.ledger.hold(&i.id));
        let launched = instance.and_then(|i| i.launched.as_ref());
        ModelStatus {
            name: model.spec.name.clone(),
            aliases: model.spec.aliases.clone(),
            engine: model.spec.engine.as_str(),
            image: instance.map_or(&model.spec, |i| &i.spec).image.to_string(),
            image_id: launched.map(|l| l.image_id.clone()).filter(|id| !id.is_empty()),
            context: model.spec.context,
            phase: model.phase(now),
            instance: instance.map(|i| i.id.clone()),
            container: launched.map(|l| l.container.clone()),
            gpus: instance.map(|i| i.placement.gpus.clone()).unwrap_or_default(),
            planned: instance.map(|i| i.placement.need),
            observed: hold.map_or(Known::Unknown, Hold::observed_total),
            footprint: self.measured_need(model),
            in_flight: instance.map_or(0, |i| i.in_flight),
            queued: u32::try_from(model.queue.len()).unwrap_or(u32::MAX),
            pinned: model.pinned,
            idle_timeout: model.spec.idle_timeout,
            progress: model.progress(),
            restarts: model.restarts,
            // Whoever publishes the picture has counted them.
            chunks: 0,
            last_used: model.last_used,
            load_ms: model.last_load.map(|d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX)),
            // A failure that a later load has made good is history, kept only for the delay of the next.
            error: model
                .failure
                .as_ref()
                .filter(|_| instance.and_then(|i| i.ready_since).is_none())
                .map(|f| f.fault.clone()),
            waiting_for: model.waiting_for.clone().or_else(|| model.renewal()),
            report: model.report.clone(),
            sleep: model.sleep_status(),
            health: model.health_status(now, self.settings.health),
        }
    }
}

/// One instance that an observation has to look at.
#[derive(Clone, Copy, Debug)]
pub struct Live<'a> {
    /// Which.
    pub id: &'a InstanceId,
    /// Where it is.
    pub launched: &'a Launched,
    /// On which devices.
    pub gpus: &'a [GpuId],
    /// Its end is to be reported by the observer; a loading one is watched by its probe.
    pub watched: bool,
}

impl Model {
    fn progress(&self) -> Option<LoadProgress> {
        let instance = self.instance.as_ref()?;
        match instance.life {
            // Nobody knows how long a pull takes.
            Life::Pulling { pulled, .. } => {
                Some(LoadProgress { since: instance.ordered, expected: None, pulled })
            }
            Life::Starting { .. } | Life::Loading { .. } => Some(LoadProgress {
                since: instance.load_began.unwrap_or(instance.ordered),
                expected: self.demand.reload(),
                pulled: None,
            }),
            Life::Waking { since, .. } => {
                Some(LoadProgress { since, expected: self.last_wake(), pulled: None })
            }
            Life::Ready
            | Life::Dozing { .. }
            | Life::Asleep { .. }
            | Life::Draining { .. }
            | Life::Abandoned { .. }
            | Life::Stopping { .. } => None,
        }
    }

    /// What it waits for although it serves.
    fn renewal(&self) -> Option<String> {
        let instance = self.instance.as_ref().filter(|i| i.outdated.is_some())?;
        let successor = instance.yields.as_ref().is_some_and(|y| y.to == Heir::Successor);
        (instance.is_ready() || successor).then(|| Self::RENEWAL.to_owned())
    }

    fn phase(&self, now: Moment) -> Phase {
        match &self.instance {
            Some(instance) => instance.phase(),
            None if self.waiting_for.is_some() => Phase::Waiting,
            None if self.failure.as_ref().is_some_and(|f| f.retry_at > now) => Phase::Failed,
            None => Phase::Stopped,
        }
    }
}
