//! Who holds memory, as far as a plan must know it.

use super::policy::Demand;
use super::sleep::Sleeper;
use crate::types::{Bytes, GpuId, InstanceId, Moment};

/// An instance that holds memory, as far as the planner must know it.
#[derive(Clone, Debug)]
pub struct Holder {
    /// Who.
    pub instance: InstanceId,
    /// Charged on each device, as the ledger has it.
    pub charges: Vec<(GpuId, Bytes)>,
    /// Whether it could leave.
    pub standing: Standing,
    /// When a lease was last given or returned.
    pub last_used: Moment,
    /// When it became ready; `None`: it is not.
    pub ready_since: Option<Moment>,
    /// Its model's priority.
    pub priority: i8,
    /// How its model was used.
    pub demand: Demand,
    /// What it is to sleep, or why it cannot.
    pub sleep: Result<Sleeper, &'static str>,
    /// Host memory that is charged to its sleep now.
    pub host_ram: Bytes,
}

impl Holder {
    pub(super) fn charge_on(&self, gpu: &GpuId) -> Option<Bytes> {
        self.charges.iter().find(|(g, _)| g == gpu).map(|(_, bytes)| *bytes)
    }
}

/// Whether an instance could leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Ready, nothing in flight, not pinned: it may be evicted.
    Idle,
    /// Serves requests.
    Busy,
    /// Idle, but loaded to be measured, and the one that asks is too, or it has been evicted before it was measured already:
    /// they would evict each other for ever.
    Measuring,
    /// Pinned.
    Pinned,
    /// Its load is under way.
    Starting,
    /// It is leaving already, or falling asleep.
    Leaving,
    /// It sleeps; it may be stopped.
    Asleep,
    /// It is idle or sleeps, and on one of its devices an engine loads that would take what it gives back there for its own, or fail
    /// of it. It may leave when that load is over.
    BesideLoad,
}

impl Standing {
    pub(super) const fn spared(self) -> Option<&'static str> {
        match self {
            Self::Idle | Self::Asleep => None,
            Self::Busy => Some("it serves requests"),
            Self::Measuring => Some("it is being measured"),
            Self::Pinned => Some("it is pinned"),
            Self::Starting => Some("it is loading"),
            Self::Leaving => Some("it is leaving already"),
            Self::BesideLoad => {
                Some("an engine that loads beside it would be disturbed; it may leave after that")
            }
        }
    }
}
