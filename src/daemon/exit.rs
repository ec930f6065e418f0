//! Why the daemon ended, as an exit status.

use std::fmt;
use std::process::ExitCode;

/// The daemon's exit statuses. Documented in README.md and, one day, `hostlerd(8)`; never renumbered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Asked to stop, and stopped.
    Ok = 0,
    /// A bug, or the operating system refused something basic.
    Internal = 1,
    /// The state directory cannot be used.
    State = 10,
    /// The NVML library cannot be loaded.
    NvmlMissing = 20,
    /// The NVIDIA driver is not loaded.
    DriverNotLoaded = 21,
    /// NVML library and kernel module are of different versions.
    DriverMismatch = 22,
    /// A device reports no memory, or has no memory information.
    GpuMemory = 23,
    /// A configured device does not exist, or there is none at all.
    GpuNotFound = 24,
    /// NVML does not answer, or failed otherwise.
    GpuFailed = 25,
    /// The host's memory cannot be read.
    HostMemory = 26,
    /// A CDI device does not resolve.
    Cdi = 30,
    /// podman's API does not answer.
    Podman = 40,
    /// podman is too old, or not rootless.
    PodmanUnfit = 41,
    /// The path to the engines could not be proven.
    Network = 50,
    /// The image of a pinned model is missing.
    Image = 60,
    /// The listening sockets cannot be used.
    Listen = 71,
    /// The configuration is wrong (`EX_CONFIG`).
    Config = 78,
}

impl Exit {
    /// Stable word for logs, `STATUS=` and the 503's body.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Internal => "internal",
            Self::State => "state_unusable",
            Self::NvmlMissing => "nvml_missing",
            Self::DriverNotLoaded => "driver_not_loaded",
            Self::DriverMismatch => "driver_mismatch",
            Self::GpuMemory => "gpu_without_memory",
            Self::GpuNotFound => "gpu_not_found",
            Self::GpuFailed => "gpu_failed",
            Self::HostMemory => "host_memory_unreadable",
            Self::Cdi => "cdi_unresolvable",
            Self::Podman => "podman_unreachable",
            Self::PodmanUnfit => "podman_unfit",
            Self::Network => "network_unproven",
            Self::Image => "image_missing",
            Self::Listen => "listen_failed",
            Self::Config => "config_invalid",
        }
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// A start that failed: what goes to the journal, to systemd and to the clients that wait already.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct StartFailure {
    /// The kind.
    pub exit: Exit,
    /// What failed, on which thing, why, and the fix.
    pub message: String,
    /// It cannot heal within this start: trying again would only keep clients waiting.
    pub lasting: bool,
}

impl StartFailure {
    /// A failure of a kind, which may heal by itself.
    pub fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, message: message.into(), lasting: false }
    }

    /// The same, not worth another attempt.
    #[must_use]
    pub fn lasting(mut self) -> Self {
        self.lasting = true;
        self
    }
}
