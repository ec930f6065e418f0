//! What an operator asks for, beyond a model's name.

use serde::Serialize;

use super::{Bytes, GpuId, InstanceId, Report};

/// How a model is to be loaded. The default is: as a request would load it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wish {
    /// Pin it once it is ready: never evicted, never idled out.
    pub pin: bool,
    /// Who may be made to leave for it; `None`: whoever the model's `on_full` lets leave.
    pub evict: Option<Evict>,
    /// Devices that it may be placed on this time; empty: those of its configuration.
    pub gpus: Vec<GpuId>,
}

/// Who may be made to leave for a model that an operator wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Evict {
    /// Nobody.
    None,
    /// Models that nobody uses.
    Idle,
    /// Busy ones too, after the requests that they serve. Pinned ones never.
    Any,
}

impl Evict {
    /// The word for it on the bus and the command line.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Idle => "idle",
            Self::Any => "any",
        }
    }

    /// The one that a word means.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        [Self::None, Self::Idle, Self::Any].into_iter().find(|e| e.as_str() == word)
    }
}

/// How a model is unloaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Haste {
    /// After the requests that it serves.
    Drain,
    /// At once; what it serves breaks off.
    Now,
}

impl Haste {
    /// The word for it on the bus and the command line.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Drain => "drain",
            Self::Now => "now",
        }
    }

    /// The one that a word means.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        [Self::Drain, Self::Now].into_iter().find(|h| h.as_str() == word)
    }
}

/// What a load would do now: the planner was asked, and nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, schemars::JsonSchema)]
pub struct Preview {
    /// What would happen.
    pub outcome: Outcome,
    /// In words.
    pub why: String,
    /// Where it would be placed, or is; empty where it would not be.
    pub gpus: Vec<PreviewGpu>,
    /// Who would have to leave first.
    pub leaving: Vec<Leaving>,
    /// The planner's reasons; `None` where it was not asked, because the model is loaded.
    pub report: Option<Report>,
}

/// What a load would come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// It is loaded, or being loaded.
    Loaded,
    /// It would start, or wake, at once.
    Start,
    /// It would start when `leaving` have left.
    Evict,
    /// It would wait for room.
    Wait,
    /// It would be turned away: there is no room and nobody is to wait for it.
    Full,
    /// It can never fit.
    Refuse,
}

/// One device of a [`Preview`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, schemars::JsonSchema)]
pub struct PreviewGpu {
    /// Which.
    pub gpu: GpuId,
    /// Promised to the model on it.
    pub bytes: Bytes,
}

/// One instance that would leave.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, schemars::JsonSchema)]
pub struct Leaving {
    /// Which.
    pub instance: InstanceId,
    /// It would sleep, so deep, instead of being stopped.
    pub asleep: Option<super::SleepLevel>,
}

impl Outcome {
    /// It is or would be ready without waiting for anybody but those who would have to leave.
    #[must_use]
    pub const fn is_possible(self) -> bool {
        match self {
            Self::Loaded | Self::Start | Self::Evict => true,
            Self::Wait | Self::Full | Self::Refuse => false,
        }
    }
}
