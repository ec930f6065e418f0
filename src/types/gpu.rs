//! What a memory backend reported.

use serde::Serialize;

use super::{Bytes, GpuId};

/// A measurement that may not be had. "Unknown" is a value of its own, never 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, schemars::JsonSchema)]
#[serde(untagged)]
pub enum Known<T> {
    /// Measured.
    Known(T),
    /// The backend could not tell.
    Unknown,
}

impl<T: Copy> Known<T> {
    /// The value, if there is one.
    #[must_use]
    pub const fn get(&self) -> Option<T> {
        match self {
            Self::Known(value) => Some(*value),
            Self::Unknown => None,
        }
    }
}

/// Device memory of one process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ProcessMemory {
    /// In the PID namespace of the reader (NVML: the initial one).
    pub pid: u32,
    /// As the driver attributes it; some drivers and virtual GPUs do not.
    pub bytes: Known<Bytes>,
}

/// One device at one time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct GpuReading {
    /// Identity.
    pub id: GpuId,
    /// Product name, for people and footprint keys.
    pub name: String,
    /// All memory that models could ever use: NVML v2 `total − reserved`; `MemTotal` for the host backend. Never zero.
    pub total: Bytes,
    /// In use by anybody: NVML v2 `used`; `MemTotal − MemAvailable` for the host backend.
    pub used: Bytes,
    /// Processes that hold memory here; empty and meaningless for the host backend, which attributes by cgroup.
    pub processes: Vec<ProcessMemory>,
}

/// How one device does, for people and monitoring; nothing is decided by it.
#[derive(Clone, Debug, PartialEq)]
pub struct GpuVitals {
    /// Identity.
    pub id: GpuId,
    /// Share of the last sample period in which a kernel ran, from 0 to 1.
    pub compute: Known<f64>,
    /// Share of the last sample period in which memory was read or written, from 0 to 1.
    pub memory: Known<f64>,
    /// Of the chip, in degrees Celsius.
    pub temperature: Known<f64>,
    /// Drawn now, in watts.
    pub power: Known<f64>,
    /// The limit that is enforced, in watts.
    pub power_limit: Known<f64>,
}

/// Why a device did not answer, for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Silence {
    /// It fell off the bus, or is not there any more: what ran on it has failed.
    Gone(String),
    /// Anything else. It may answer the next time, and what runs on it may be well.
    Unread(String),
}

impl Silence {
    /// The reason.
    #[must_use]
    pub fn why(&self) -> &str {
        match self {
            Self::Gone(why) | Self::Unread(why) => why,
        }
    }
}

/// All configured devices at one time. A device that could not be read is in `lost`, never in `devices` with zeros.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct GpuSnapshot {
    /// Devices that answered.
    pub devices: Vec<GpuReading>,
    /// Configured devices that did not, with the reason.
    pub lost: Vec<(GpuId, Silence)>,
    /// Version of the driver, for footprint keys; empty for the host backend, which has none.
    pub driver: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_is_not_zero() {
        assert_ne!(Known::Unknown, Known::Known(Bytes::ZERO));
        assert_eq!(Known::<Bytes>::Unknown.get(), None);
        assert_eq!(Known::Known(3).get(), Some(3));
        assert_eq!(serde_json::to_string(&Known::<Bytes>::Unknown).unwrap(), "null");
    }
}
