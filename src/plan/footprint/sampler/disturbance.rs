//! Why an instance is not measured, in words.
//!
//! Purpose: the closed list of reasons and their texts, which the journal and who asked for the measurement are told. Owner: nobody;
//! data. Invariant: a reason that a person can mend names the fix.

use std::fmt;

use crate::types::{Bytes, GpuId};

/// Why samples count for nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Disturbance {
    /// Memory of others changed on this device by so much.
    Others(GpuId, Bytes),
    /// The device's use changed by so much after the engine was ready, and the driver does not say whose that is.
    Somebody(GpuId, Bytes),
    /// The driver no longer says what the processes hold.
    Unattributed,
    /// Other devices answered than before.
    Devices,
    /// Samples did not agree for [`super::SampleRule::patience`].
    Restless,
    /// It is ready, and no memory of it was ever seen on its devices: it computes elsewhere. The one reason that may pass:
    /// once memory is seen, it is measured.
    Nothing,
    /// There is no reading from before the start to compare with, and the driver attributes nothing.
    NothingBefore,
}

impl fmt::Display for Disturbance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Others(gpu, by) => write!(f, "memory of others on {gpu} changed by {by}"),
            Self::Somebody(gpu, by) => write!(
                f,
                "the use of {gpu} changed by {by}, and the driver does not say what processes hold"
            ),
            Self::Unattributed => {
                write!(f, "the driver no longer says what the engine's processes hold")
            }
            Self::Devices => write!(f, "other devices answered than before"),
            Self::Restless => write!(f, "its use of memory did not settle"),
            Self::Nothing => write!(
                f,
                "it holds no memory of its devices: is its image made for GPUs (llama.cpp: a tag like server-cuda)? After a suspend \
                 or an upgrade of the driver: reload nvidia_uvm, or reboot"
            ),
            Self::NothingBefore => write!(
                f,
                "the driver does not say what processes hold, and the devices were not read before the engine's start"
            ),
        }
    }
}
