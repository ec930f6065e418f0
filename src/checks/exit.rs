//! Why the daemon ended or would not start, as an exit status, and what to do about each.

use std::fmt;
use std::process::ExitCode;

use crate::types::CDI_WRITE;

/// The daemon's exit statuses. Documented in docs/troubleshoot.md and `hostlerd(8)`; never renumbered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Asked to stop, and stopped.
    Ok = 0,
    /// A bug, or the operating system refused something basic.
    Internal = 1,
    /// The state directory cannot be used.
    State = 10,
    /// Another daemon runs the same containers, or keeps the same state.
    Twice = 11,
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
            Self::Twice => "already_running",
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

impl Exit {
    /// All of them, by their numbers.
    pub const ALL: [Self; 18] = [
        Self::Ok,
        Self::Internal,
        Self::State,
        Self::Twice,
        Self::NvmlMissing,
        Self::DriverNotLoaded,
        Self::DriverMismatch,
        Self::GpuMemory,
        Self::GpuNotFound,
        Self::GpuFailed,
        Self::HostMemory,
        Self::Cdi,
        Self::Podman,
        Self::PodmanUnfit,
        Self::Network,
        Self::Image,
        Self::Listen,
        Self::Config,
    ];

    /// What an admin does about it, where the failure's own message does not end with something more exact.
    #[must_use]
    pub const fn fix(self) -> &'static str {
        match self {
            Self::Ok => "",
            Self::Internal => "look at \"journalctl -u hostler\" and report it",
            Self::State => "run /usr/lib/hostler/postinst.sh, or change [podman] engine_dir",
            Self::Twice => "systemctl status hostler (--user), pgrep -a hostlerd: stop one of them",
            Self::NvmlMissing => {
                "install the NVIDIA driver; on a machine without a GPU set [gpu] backend = \"host\""
            }
            Self::DriverNotLoaded => "modprobe nvidia; if that fails: dmesg",
            Self::DriverMismatch => {
                "reboot, or unload and load the nvidia modules while Hostler is stopped (docs/operate.md)"
            }
            Self::GpuMemory => {
                "nvidia-smi; dmesg; with unified memory set [gpu] backend = \"host\", which runs models on the CPU"
            }
            Self::GpuNotFound => {
                "nvidia-smi -L, then correct devices in [gpu] or gpus of the model; to serve without one that is gone, list the others in devices and take it out of gpus"
            }
            Self::GpuFailed => {
                "dmesg; reset the device while Hostler is stopped (docs/operate.md), or reboot; or serve without it: list the others in [gpu] devices"
            }
            Self::HostMemory => {
                "systemctl cat hostler: look for a sandbox that was changed to hide /proc"
            }
            Self::Cdi => CDI_WRITE,
            Self::Podman => {
                "systemctl --user --machine=hostler@ start hostler-podman.socket; if that fails run /usr/lib/hostler/postinst.sh"
            }
            Self::PodmanUnfit => {
                "install podman 4.3 or newer, and point [podman] socket at a rootless one"
            }
            Self::Network => {
                "as the message says; often subordinate ids, catatonit or passt (of podman 4: slirp4netns) are missing"
            }
            Self::Image => "podman load, build or pull it as the service user, or unpin the model",
            Self::Listen => {
                "end what listens there, or choose another port; systemctl status hostler.socket"
            }
            Self::Config => "hostler config check",
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
