//! One container incarnation, as the core sees it.

use super::effect::{Heir, StopReason};
use super::health::Health;
use super::measure::Measuring;
use super::ports::Launched;
use crate::plan::{Leave, Pace};
use crate::types::{
    Bytes, Fault, GpuId, InstanceId, ModelSpec, Moment, Phase, Placement, Pulled, SleepLevel,
};
use std::sync::Arc;
use std::time::Duration;

/// One incarnation.
#[derive(Clone, Debug)]
pub(super) struct Instance {
    pub(super) id: InstanceId,
    /// As it was when this incarnation was ordered.
    pub(super) spec: Arc<ModelSpec>,
    pub(super) placement: Placement,
    pub(super) life: Life,
    /// Set from `Launched` on.
    pub(super) launched: Option<Launched>,
    pub(super) in_flight: u32,
    pub(super) last_used: Moment,
    /// When the launch was ordered, or the container adopted.
    pub(super) ordered: Moment,
    /// When its image was there and its load began; `None`: it was adopted, and how long it loaded is not known.
    pub(super) load_began: Option<Moment>,
    /// podman was asked for its container, by this daemon or an earlier one.
    pub(super) begun: bool,
    /// When it passed its probe; `None`: not yet.
    pub(super) ready_since: Option<Moment>,
    pub(super) measuring: Measuring,
    pub(super) health: Health,
    /// How its load may go on.
    pub(super) pace: Pace,
    /// The most that it was seen to hold while it loaded.
    pub(super) grown_to: Bytes,
    /// What it last said to a probe that a healthy engine never says, while it loaded.
    pub(super) strange: Option<String>,
    /// Somebody had it for a purpose beside measuring it.
    pub(super) used: bool,
    /// What it answers when nothing is wrong with it; asked only of those that may sleep.
    pub(super) canary: Canary,
    /// For whom it drains, if it is to leave while requests run on it.
    pub(super) yields: Option<Yield>,
    /// Since when the configuration asks for another container.
    pub(super) outdated: Option<Moment>,
    /// It made way in vain, or for nobody: that it is outdated counts anew from then.
    pub(super) serves_from: Option<Moment>,
    /// It has drained in turn for as long as anybody waits, in vain: until then, or until it is idle, its equals do not ask again.
    pub(super) rests_until: Option<Moment>,
    /// Host memory charged to its sleep, from the plan until it has woken, or is gone: its processes keep it until then.
    pub(super) host_ram: Bytes,
}

/// That a busy one makes way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Yield {
    pub(super) to: Heir,
    /// An operator wants it at any price: what still runs after the time for drains is cut off. Nobody else cuts requests off.
    pub(super) cut: bool,
    /// How it is to leave by the plan.
    pub(super) leave: Leave,
    /// Since when it drains.
    pub(super) since: Moment,
}

/// The answer that a wake is judged by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Canary {
    /// Not asked yet.
    None,
    /// Asked.
    Asked {
        /// It gave no answer when it was asked first.
        again: bool,
    },
    /// It gave no answer, and is asked once more if it says that it is ready.
    Silent,
    /// What it answered after its load.
    Answered(String),
    /// It gave no answer that another could be compared with: it never sleeps.
    Unfit,
}

/// Where an incarnation is in its life.
#[derive(Clone, Debug)]
pub(super) enum Life {
    /// What its launch needs of disk and registry is looked at, and images that are not here are pulled. Not under the load deadline:
    /// a pull has its own. It has no place.
    Pulling {
        /// podman fetches an image.
        begun: bool,
        /// How far it has come; `None`: not known.
        pulled: Option<Pulled>,
    },
    /// podman creates and starts the container.
    Starting {
        /// When the load has failed.
        deadline: Moment,
    },
    /// The engine loads.
    Loading {
        /// When the load has failed.
        deadline: Moment,
    },
    /// Serves.
    Ready,
    /// Is being put to sleep: the engine was asked, and what it keeps has not been observed.
    Dozing {
        /// How deep.
        level: SleepLevel,
        /// It is stopped then.
        deadline: Moment,
    },
    /// Sleeps.
    Asleep {
        /// How deep.
        level: SleepLevel,
        /// Since when.
        since: Moment,
    },
    /// Takes its memory back, then answers its canary.
    Waking {
        /// How deep it slept.
        level: SleepLevel,
        /// Since when.
        since: Moment,
        /// It is stopped then.
        deadline: Moment,
    },
    /// Finishes what runs, then goes.
    Draining {
        /// Why.
        reason: StopReason,
        /// It goes then, whatever runs; `None`: not yet said.
        until: Option<Moment>,
    },
    /// To be stopped as soon as the launch, which cannot be interrupted without leaving half a container, is over.
    Abandoned {
        /// Why it failed, if it did.
        fault: Option<Fault>,
    },
    /// Being stopped.
    Stopping {
        /// Why it failed, if it did.
        fault: Option<Fault>,
        /// It was ready before it failed.
        was_ready: bool,
        /// A failed stop is tried again then; `None`: a stop is under way.
        retry_at: Option<Moment>,
    },
}

impl Instance {
    /// One whose launch is ordered now.
    pub(super) fn ordered(
        id: InstanceId,
        spec: Arc<ModelSpec>,
        placement: Placement,
        pace: Pace,
        measuring: Measuring,
        now: Moment,
    ) -> Self {
        Self {
            id,
            spec,
            placement,
            life: Life::Starting { deadline: pace.deadline() },
            launched: None,
            in_flight: 0,
            last_used: now,
            ordered: now,
            load_began: Some(now),
            begun: false,
            ready_since: None,
            measuring,
            health: Health::default(),
            pace,
            grown_to: Bytes::ZERO,
            strange: None,
            used: false,
            canary: Canary::None,
            yields: None,
            outdated: None,
            serves_from: None,
            rests_until: None,
            host_ram: Bytes::ZERO,
        }
    }

    pub(super) fn phase(&self) -> Phase {
        match self.life {
            Life::Pulling { begun: true, .. } => Phase::Pulling,
            Life::Pulling { .. } | Life::Starting { .. } => Phase::Starting,
            Life::Loading { .. } => Phase::Loading,
            Life::Ready => Phase::Ready,
            Life::Dozing { .. } => Phase::Dozing,
            Life::Asleep { .. } => Phase::Asleep,
            Life::Waking { .. } => Phase::Waking,
            Life::Draining { .. } => Phase::Draining,
            Life::Abandoned { .. } | Life::Stopping { .. } => Phase::Stopping,
        }
    }

    /// Whether its load is under way.
    pub(super) fn is_loading(&self) -> bool {
        matches!(self.life, Life::Pulling { .. } | Life::Starting { .. } | Life::Loading { .. })
    }

    /// Whether it is looked whether its files and images are here, and nothing is pulled.
    pub(super) fn is_looked_for(&self) -> bool {
        matches!(self.life, Life::Pulling { begun: false, .. })
    }

    pub(super) fn is_ready(&self) -> bool {
        matches!(self.life, Life::Ready)
    }

    /// Its processes hold all that they held when it was ready, or did before they slept.
    pub(super) fn has_served(&self) -> bool {
        matches!(
            self.life,
            Life::Ready
                | Life::Draining { .. }
                | Life::Dozing { .. }
                | Life::Asleep { .. }
                | Life::Waking { .. }
        )
    }

    /// Whether it would give memory back on one of these.
    pub(super) fn disturbs(&self, profiled: &[GpuId]) -> bool {
        self.has_served() && self.placement.gpus.iter().any(|gpu| profiled.contains(gpu))
    }

    /// When it goes, whatever runs on it.
    pub(super) fn drained_at(&self) -> Option<Moment> {
        if let Life::Draining { until, .. } = self.life { until } else { None }
    }

    /// When its drain in turn is given up, which cuts off nobody.
    pub(super) fn spared_at(&self, max_wait: Duration) -> Option<Moment> {
        let drains = matches!(self.life, Life::Draining { .. });
        let yields = self.yields.as_ref().filter(|y| drains && !y.cut)?;
        let patience = match yields.to {
            Heir::Other(_) => max_wait,
            // Those who wait meanwhile are to be served yet, by it or by the next.
            Heir::Successor => max_wait / 2,
        };
        Some(yields.since + patience)
    }

    /// When a stop that failed is tried again.
    pub(super) fn stop_retry_at(&self) -> Option<Moment> {
        if let Life::Stopping { retry_at, .. } = self.life { retry_at } else { None }
    }

    /// When its load has failed, while there is such a time.
    pub(super) fn load_deadline(&self) -> Option<Moment> {
        match self.life {
            Life::Starting { deadline } | Life::Loading { deadline } => Some(deadline),
            Life::Pulling { .. }
            | Life::Ready
            | Life::Dozing { .. }
            | Life::Asleep { .. }
            | Life::Waking { .. }
            | Life::Draining { .. }
            | Life::Abandoned { .. }
            | Life::Stopping { .. } => None,
        }
    }
}
