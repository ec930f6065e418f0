//! Why device memory cannot be read. PURE.
//!
//! Purpose: the closed list of causes, each with its message and its fix. Owner: nobody; data.

use std::time::Duration;

use crate::types::GpuId;

/// Why the memory backend does not answer. Each cause has its own message and start-up exit status.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GpuError {
    /// `libnvidia-ml.so.1` cannot be loaded.
    #[error(
        "the NVML library could not be loaded ({0}); install the NVIDIA driver, or set [gpu] backend = \"host\" on a machine without one"
    )]
    LibraryMissing(String),
    /// The kernel module is not loaded.
    #[error(
        "the NVIDIA driver is not loaded ({0}); run \"modprobe nvidia\" and look at \"dmesg\" for why it was not"
    )]
    DriverNotLoaded(String),
    /// User-space library and kernel module are of different versions.
    #[error(
        "the NVML library and the NVIDIA kernel module are of different versions ({0}); reboot, or reload the modules (docs/operate.md), after the driver's upgrade"
    )]
    VersionMismatch(String),
    /// NVML reports a device with no memory.
    #[error(
        "NVML reports zero memory on {0}; the device is not usable: look at \"nvidia-smi\" and \"dmesg\""
    )]
    ZeroMemory(GpuId),
    /// NVML has no memory information for the device (unified-memory boards).
    #[error(
        "NVML has no memory information for {0} (a unified-memory board?); set [gpu] backend = \"host\", which runs models on the CPU"
    )]
    MemoryUnsupported(GpuId),
    /// A configured device does not exist.
    #[error("the configured device {wanted} does not exist; NVML lists {present:?}")]
    NotFound {
        /// From the configuration.
        wanted: GpuId,
        /// What there is.
        present: Vec<GpuId>,
    },
    /// There is no device at all.
    #[error(
        "NVML lists no device; look at \"nvidia-smi\", or set [gpu] backend = \"host\" on a machine without one"
    )]
    NoDevices,
    /// A device has fallen off the bus.
    #[error("the device {0} is lost ({1}); it needs a reset or a reboot")]
    Lost(GpuId, String),
    /// NVML did not answer in time.
    #[error("NVML did not answer within {0:?}; the driver hangs: look at \"dmesg\"")]
    Timeout(Duration),
    /// NVML did not answer in time, the first time that it was asked: it may take long then.
    #[error(
        "NVML did not give its first answer within {0:?}; the driver hangs: look at \"dmesg\". Without persistence mode it prepares each GPU anew for the first program that asks: \"nvidia-smi -pm 1\""
    )]
    NoFirstAnswer(Duration),
    /// `/proc/meminfo` or a process's memory cannot be read.
    #[error("the host's memory could not be read ({0})")]
    HostMemory(String),
    /// Any other NVML error.
    #[error("NVML failed: {0}")]
    Other(String),
}
