//! What the core wants done. Data only; the executor carries it out and answers with an [`super::event::Event`].

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::ports::{Endpoint, LaunchOrder, Launched};
use crate::plan::Measured;
use crate::types::{
    Bytes, Denied, Fault, FaultCode, GpuId, InstanceId, ModelName, ModelSpec, SleepLevel, WaiterId,
};

/// One thing to do.
#[derive(Clone, Debug)]
pub enum Effect {
    /// Create and start a container. Answered by `Launched` or `LaunchFailed`.
    Launch(LaunchOrder),
    /// See that what a launch needs of disk and registry is here, and pull the images that are not. Nothing is created. Answered by
    /// `Provided` or `LaunchFailed`.
    Provide {
        /// For which incarnation.
        instance: InstanceId,
        /// Of which model.
        spec: Arc<ModelSpec>,
    },
    /// Probe an engine until it is ready. Answered by `Healthy` or `Died`; ended by `Stop`.
    AwaitReady {
        /// Whose.
        instance: InstanceId,
        /// Of which model.
        spec: Arc<ModelSpec>,
        /// Where it is.
        launched: Launched,
    },
    /// Put an engine to sleep. Answered by `Slept`; ended by `Stop`.
    Sleep {
        /// Whose.
        instance: InstanceId,
        /// Of which model.
        spec: Arc<ModelSpec>,
        /// Where it listens.
        endpoint: Endpoint,
        /// How deep.
        level: SleepLevel,
    },
    /// Wake an engine. Answered by `Woken`; ended by `Stop`.
    Wake {
        /// Whose.
        instance: InstanceId,
        /// Of which model.
        spec: Arc<ModelSpec>,
        /// Where it listens.
        endpoint: Endpoint,
        /// How deep it sleeps.
        level: SleepLevel,
    },
    /// Ask an engine its canary. Answered by `Sung`; ended by `Stop`.
    Canary {
        /// Whose.
        instance: InstanceId,
        /// Of which model.
        spec: Arc<ModelSpec>,
        /// Where it listens.
        endpoint: Endpoint,
    },
    /// Ask a ready engine whether it is well. Answered by `Checked`.
    Check {
        /// Whose.
        instance: InstanceId,
        /// Of which model.
        spec: Arc<ModelSpec>,
        /// Where it listens.
        endpoint: Endpoint,
        /// It is asked for a token, too.
        token: bool,
        /// How long it may take.
        timeout: Duration,
    },
    /// Stop and remove a container. Answered by `Stopped`.
    Stop {
        /// Whose.
        instance: InstanceId,
        /// Its log is looked at first, for that goes with the container. Told by `Wrote`.
        tail: bool,
    },
    /// Remove a container of ours whose labels are damaged. Not answered: the next start would find it again.
    Reap {
        /// podman's ID.
        container: String,
    },
    /// Read the devices now. Answered by `Observed`.
    Observe,
    /// Write down what was measured: the whole book, in its form on disk. Answered by `Saved`; of several, the last counts.
    Save(Vec<u8>),
    /// Write down which models operators pinned (`true`) or let go (`false`) otherwise than the configuration says: all of them, for
    /// the next daemon. Not answered: a disk that takes nothing keeps nobody from a pin.
    KeepPins(BTreeMap<ModelName, bool>),
    /// Give a caller its lease.
    Grant {
        /// Who.
        waiter: WaiterId,
        /// On which incarnation.
        instance: InstanceId,
        /// Where it listens.
        endpoint: Endpoint,
    },
    /// Refuse a caller.
    Deny {
        /// Who.
        waiter: WaiterId,
        /// Why.
        denied: Denied,
    },
    /// Tell an operator that what was asked for has happened.
    Done {
        /// Who.
        waiter: WaiterId,
    },
    /// Tell people.
    Notice(Notice),
    /// Nothing is left to do: end.
    Exit,
}

/// Something an operator wants to read in the journal. The task logs it, once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// A container is being started.
    Starting {
        /// Which.
        instance: InstanceId,
        /// Where.
        gpus: Vec<GpuId>,
        /// Promised on each device.
        planned: Bytes,
    },
    /// Its image is not here and is being pulled.
    Pulling {
        /// Which.
        instance: InstanceId,
    },
    /// Its container runs, its engine loads.
    Loading {
        /// Which.
        instance: InstanceId,
    },
    /// A container of an earlier daemon was taken over.
    Adopted {
        /// Which.
        instance: InstanceId,
    },
    /// It serves.
    Ready {
        /// Which.
        instance: InstanceId,
        /// From the order to ready; `None`: it was adopted, and how long its load took is not known.
        load_ms: Option<u64>,
    },
    /// It is busy and takes no new requests any more: it leaves when those are over that run on it.
    Yielding {
        /// Which.
        instance: InstanceId,
        /// For whom.
        to: Heir,
        /// Requests run on it, which it ends first.
        busy: bool,
    },
    /// It does not have to leave after all, and serves on.
    Spared {
        /// Which.
        instance: InstanceId,
    },
    /// It is being put to sleep.
    FallingAsleep {
        /// Which.
        instance: InstanceId,
        /// How deep.
        level: SleepLevel,
        /// Why.
        reason: StopReason,
    },
    /// It sleeps.
    Asleep {
        /// Which.
        instance: InstanceId,
        /// How deep.
        level: SleepLevel,
        /// What it was seen to keep, on the device where that is most.
        residual: Bytes,
        /// Host memory charged to it.
        host_ram: Bytes,
    },
    /// It did not fall asleep, or kept too much, and is stopped.
    SleepFailed {
        /// Which.
        instance: InstanceId,
        /// Why.
        why: String,
    },
    /// It is being woken.
    Waking {
        /// Which.
        instance: InstanceId,
    },
    /// It woke and answers as before.
    Woken {
        /// Which.
        instance: InstanceId,
        /// From the order to its canary's answer.
        wake_ms: u64,
    },
    /// It did not wake as it fell asleep, and is stopped; whoever waits for it gets a new container.
    WakeFailed {
        /// Which.
        instance: InstanceId,
        /// Why.
        why: String,
    },
    /// It will not be put to sleep.
    Sleepless {
        /// Which.
        instance: InstanceId,
        /// Why.
        why: String,
    },
    /// It is being stopped.
    Stopping {
        /// Which.
        instance: InstanceId,
        /// Why.
        reason: StopReason,
    },
    /// It is gone.
    Stopped {
        /// Which.
        instance: InstanceId,
    },
    /// A start or a running engine failed.
    Failed {
        /// Which.
        instance: InstanceId,
        /// Why.
        fault: Fault,
        /// Milliseconds until the next attempt may be made.
        retry_ms: u64,
    },
    /// A container could not be stopped; it is tried again.
    StopFailed {
        /// Which.
        instance: InstanceId,
        /// Why.
        fault: Fault,
    },
    /// Its image is another one than the plan was made for, or had to be pulled first; it is planned again.
    PlannedAgain {
        /// Which.
        instance: InstanceId,
        /// [`FaultCode::ImageChanged`] or [`FaultCode::ImagePulled`].
        why: FaultCode,
    },
    /// Its memory was measured, or measured better.
    Measured {
        /// Which.
        instance: InstanceId,
        /// The numbers.
        measured: Measured,
    },
    /// Its memory cannot be measured in this life.
    Unmeasured {
        /// Which.
        instance: InstanceId,
        /// Why.
        why: String,
    },
    /// It has to wait.
    Waiting {
        /// Who.
        model: ModelName,
        /// In the planner's words.
        why: String,
    },
}

/// Who gets the place of one that makes way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heir {
    /// Another model, which waits for it.
    Other(ModelName),
    /// The model itself, in a container as it is configured now.
    Successor,
}

/// Why an instance is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// Unused for its idle time-out.
    Idle,
    /// Another model needs the memory.
    Evicted,
    /// An operator unloaded it.
    Unloaded,
    /// The configuration has changed.
    Reconfigured,
    /// An operator sent it to sleep, or gave its load up.
    Asked,
    /// It was loaded only to be measured: it is, or somebody asks for the room.
    Measured,
    /// The daemon stops.
    Shutdown,
    /// Others use up the headroom of its device.
    Pressure,
    /// Left behind by an earlier daemon and of no use to this one.
    Orphaned,
    /// It sleeps where there is no room to wake, and starts elsewhere.
    Moved,
}

impl StopReason {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Idle,
        Self::Evicted,
        Self::Unloaded,
        Self::Reconfigured,
        Self::Asked,
        Self::Measured,
        Self::Shutdown,
        Self::Pressure,
        Self::Orphaned,
        Self::Moved,
    ];

    /// The word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Evicted => "evicted",
            Self::Unloaded => "unloaded",
            Self::Reconfigured => "reconfigured",
            Self::Asked => "asked",
            Self::Measured => "measured",
            Self::Shutdown => "shutdown",
            Self::Pressure => "pressure",
            Self::Orphaned => "orphaned",
            Self::Moved => "moved",
        }
    }
}
