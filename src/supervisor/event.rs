//! What the core is told.

use std::collections::BTreeMap;

use super::ports::{CanaryError, Found, Launched};
pub use super::reconfigure::Reconfiguration;
use crate::plan::Usage;
use crate::types::{
    DayMinute, Fault, GpuSnapshot, Haste, InstanceId, ModelName, Moment, Phase, Pulled, WaiterId,
    Wish,
};

/// What went through the way to one instance since the core was told last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Passed {
    /// Which.
    pub instance: InstanceId,
    /// So many leases were taken without asking, of those that [`State::express`](super::state::State::express) names.
    pub taken: u32,
    /// So many came back, whoever granted them.
    pub returned: u32,
}

/// Everything that can happen to the core. Completions name their instance, so a stale one is recognised.
#[derive(Clone, Debug)]
pub enum Event {
    /// A request wants a lease.
    Acquire {
        /// Identity of the caller.
        waiter: WaiterId,
        /// Name or alias, as the client wrote it.
        model: String,
        /// The longest it waits; `None`: as configured.
        wait: Option<std::time::Duration>,
    },
    /// The caller left.
    Cancel {
        /// Which.
        waiter: WaiterId,
    },
    /// Leases were taken without asking, or came back: all of them at once, for nothing may be decided that knows some and not the
    /// others. When each of them passed is not told: it was a moment ago.
    Used(Vec<Passed>),
    /// An operator wants a model ready.
    Load {
        /// Identity of the caller.
        waiter: WaiterId,
        /// Which.
        model: ModelName,
        /// How.
        wish: Wish,
    },
    /// An operator wants a model never to leave, or no longer so.
    Pin {
        /// Identity of the caller.
        waiter: WaiterId,
        /// Which.
        model: ModelName,
        /// Which of the two.
        pinned: bool,
    },
    /// An operator wants a model asleep.
    Sleep {
        /// Identity of the caller.
        waiter: WaiterId,
        /// Which.
        model: ModelName,
    },
    /// An operator wants a model awake.
    Wake {
        /// Identity of the caller.
        waiter: WaiterId,
        /// Which.
        model: ModelName,
    },
    /// An operator wants to know what a model needs.
    Measure {
        /// Identity of the caller.
        waiter: WaiterId,
        /// Which.
        model: ModelName,
    },
    /// An operator wants a model gone.
    Unload {
        /// Identity of the caller.
        waiter: WaiterId,
        /// Which.
        model: ModelName,
        /// How soon.
        haste: Haste,
    },
    /// Take no more requests; stop everything, or leave it running.
    Shutdown {
        /// Leave the containers running.
        keep: bool,
    },
    /// What was on the host when the daemon came up.
    Found(Vec<Found>),
    /// A launch has come to a phase.
    Progress {
        /// Whose.
        instance: InstanceId,
        /// [`Phase::Pulling`] or [`Phase::Starting`].
        phase: Phase,
    },
    /// The pull that a launch waits for has got on.
    Pulled {
        /// Whose.
        instance: InstanceId,
        /// How far.
        pulled: Pulled,
    },
    /// The weights and images of a launch to come are here.
    Provided {
        /// Whose.
        instance: InstanceId,
        /// The engine's image, by podman's ID.
        image_id: String,
    },
    /// The container runs.
    Launched {
        /// Whose.
        instance: InstanceId,
        /// Where it is.
        launched: Launched,
    },
    /// The container could not be started, or what it needs is not to be had; nothing of it is left unless the fault says so.
    LaunchFailed {
        /// Whose.
        instance: InstanceId,
        /// Why.
        fault: Fault,
    },
    /// A loading engine has written something.
    LoadProgress {
        /// Whose.
        instance: InstanceId,
    },
    /// A loading engine was asked whether it is ready, and gave an answer that a healthy one never gives.
    Strange {
        /// Whose.
        instance: InstanceId,
        /// What is wrong with it, for people.
        answer: String,
    },
    /// The engine passed its probe.
    Healthy {
        /// Whose.
        instance: InstanceId,
    },
    /// The engine said that it sleeps, or did not.
    Slept {
        /// Whose.
        instance: InstanceId,
        /// `Err`: why not.
        result: Result<(), String>,
    },
    /// The engine said that it is awake, or did not.
    Woken {
        /// Whose.
        instance: InstanceId,
        /// `Err`: why not.
        result: Result<(), String>,
    },
    /// The engine was asked its canary.
    Sung {
        /// Whose.
        instance: InstanceId,
        /// The answer, or why there is none.
        result: Result<String, CanaryError>,
    },
    /// A ready engine was asked whether it is well.
    Checked {
        /// Whose.
        instance: InstanceId,
        /// `Err`: how it is not.
        result: Result<(), Fault>,
        /// It has not said a word, which a busy engine may not come to either.
        silent: bool,
    },
    /// No process of the engine lives any more, without having been asked to go.
    Died {
        /// Whose.
        instance: InstanceId,
        /// What is known about it.
        fault: Fault,
    },
    /// What an engine wrote last that is being stopped: lines, oldest first.
    Wrote {
        /// Whose.
        instance: InstanceId,
        /// None where there is no log, or podman does not answer.
        log: Vec<String>,
    },
    /// A stop came to its end.
    Stopped {
        /// Whose.
        instance: InstanceId,
        /// `Ok`: no process and no container is left.
        result: Result<(), Fault>,
    },
    /// What podman and the kernel have of ours, or why that is not known.
    Swept {
        /// When that was asked.
        taken: Moment,
        /// The answer.
        list: Result<Vec<Found>, Fault>,
    },
    /// Device memory was read.
    Observed(Observation),
    /// What was measured was written down, or could not be.
    Saved(Result<(), String>),
    /// The configuration is another.
    Configure(Box<Reconfiguration>),
    /// What the clock on the wall shows.
    LocalTime(DayMinute),
    /// Something of the daemon that is not the supervisor's is wrong, or is well again (`None`).
    Trouble {
        /// Stable word to search for.
        code: &'static str,
        /// For people.
        message: Option<String>,
    },
    /// Time has passed.
    Tick,
}

/// One reading of the world.
#[derive(Clone, Debug)]
pub struct Observation {
    /// When the reading was begun.
    pub taken: Moment,
    /// The same in seconds since 1970, for people.
    pub unix_s: u64,
    /// Device memory, or why it could not be read.
    pub devices: Result<GpuSnapshot, String>,
    /// What each live instance holds on its devices, by the same reading.
    pub usage: BTreeMap<InstanceId, Usage>,
}
