//! What must be true on the host, as named checks.
//!
//! Purpose: one list and one code path for both that look: the daemon before READY, which tries the checks of
//! [`Check::GATE`] again until they hold, and `hostler doctor`, which tries each of [`Check::ALL`] once and reports all. Owner:
//! `daemon` and `cli` make a [`Checks`] for each round. Invariants: each cause has its own message and exit status; what was
//! measured is said also where all is well; nothing is replaced by a guess, and what could not be looked at is a warning, never
//! a pass.
//!
//! ```text
//!  mod    the list, outcomes          gate   those that READY waits for    exit    causes as exit statuses, with the fix
//!  host   those that doctor adds      ports  who listens on a port         repair  commands that mend, for doctor --fix
//!  images what podman has, asked once  disk   room for more of them
//! ```

mod disk;
mod exit;
mod gate;
pub mod gpus;
mod host;
pub mod images;
mod labels;
mod ports;
mod repair;

use std::path::PathBuf;
use std::sync::Arc;

use crate::adapters::gpu::{self, Nvml};
use crate::adapters::podman::api::Deadlines;
use crate::adapters::podman::{self, Helpers, Podman};
use crate::config::{Config, GpuBackend};
use crate::supervisor::ports::{Containers, Found, Gpus, PodmanInfo};
use crate::types::{GpuId, GpuSnapshot};

pub use disk::room;
pub use exit::{Exit, StartFailure};
pub use gate::bound_elsewhere;
use repair::repair;
pub use repair::wanted;

/// One thing that is looked at. The words are an interface: doctor, D-Bus and scripts use them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Check {
    /// Every device answers, has memory, and exists where a model names it.
    Memory,
    /// The GPUs' device nodes can be opened by containers.
    DeviceNodes,
    /// podman will find each device in a CDI specification.
    Cdi,
    /// This podman can read that specification.
    CdiVersion,
    /// podman's API answers, rootless, and is new enough.
    Podman,
    /// Containers get enough user and group IDs.
    Subids,
    /// The service user's manager runs without a login.
    Linger,
    /// Control groups are of version 2.
    Cgroups,
    /// SELinux lets containers use devices.
    Selinux,
    /// SELinux lets engines read their weights.
    Labels,
    /// podman's events go where its user can read them.
    Events,
    /// There is room for images.
    Disk,
    /// Images are there or can come.
    Images,
    /// A throw-away container is reached over each transport that models use.
    Network,
    /// What an earlier daemon left can be listed.
    Containers,
    /// The endpoint's ports are ours or free.
    Ports,
    /// A process in a container with the GPUs sees them and their memory.
    GpuContainer,
}

impl Check {
    /// All, in the order in which one may be the cause of the next.
    pub const ALL: [Self; 17] = [
        Self::Memory,
        Self::DeviceNodes,
        Self::Cdi,
        Self::Linger,
        Self::Podman,
        Self::CdiVersion,
        Self::Cgroups,
        Self::Subids,
        Self::Selinux,
        Self::Labels,
        Self::Events,
        Self::Disk,
        Self::Images,
        Self::Network,
        Self::Containers,
        Self::Ports,
        Self::GpuContainer,
    ];

    /// Those that READY waits for, in that order. Memory comes last once more: the first models are placed by it, and the
    /// others may have taken minutes.
    pub const GATE: [Self; 7] = [
        Self::Memory,
        Self::Cdi,
        Self::Podman,
        Self::Network,
        Self::Images,
        Self::Containers,
        Self::Memory,
    ];

    /// The stable word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Memory => "gpu_memory",
            Self::DeviceNodes => "device_nodes",
            Self::Cdi => "cdi",
            Self::CdiVersion => "cdi_version",
            Self::Podman => "podman",
            Self::Subids => "subids",
            Self::Linger => "linger",
            Self::Cgroups => "cgroups",
            Self::Selinux => "selinux",
            Self::Labels => "labels",
            Self::Events => "events",
            Self::Disk => "disk",
            Self::Images => "images",
            Self::Network => "network",
            Self::Containers => "containers",
            Self::Ports => "ports",
            Self::GpuContainer => "gpu_container",
        }
    }

    /// The check of a word.
    #[must_use]
    pub fn named(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|check| check.as_str() == word)
    }

    /// What is looked at, for a status line: "Checking …".
    #[must_use]
    pub const fn subject(self) -> &'static str {
        match self {
            Self::Memory => "device memory",
            Self::DeviceNodes => "device nodes",
            Self::Cdi => "CDI devices",
            Self::CdiVersion => "the version of the CDI specification",
            Self::Podman => "podman",
            Self::Subids => "subordinate IDs",
            Self::Linger => "linger",
            Self::Cgroups => "control groups",
            Self::Selinux => "SELinux",
            Self::Labels => "the labels of weights",
            Self::Events => "podman's events logger",
            Self::Disk => "disk space",
            Self::Images => "images",
            Self::Network => "the path to the engines",
            Self::Containers => "containers of an earlier daemon",
            Self::Ports => "ports",
            Self::GpuContainer => "a container with the GPUs",
        }
    }
}

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Outcome {
    /// It holds.
    Pass,
    /// It may hurt, or could not be looked at.
    Warn,
    /// It does not hold.
    Fail,
}

impl Outcome {
    /// `PASS`, `WARN` or `FAIL`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pass => "PASS",
            Self::Warn => "WARN",
            Self::Fail => "FAIL",
        }
    }

    /// The outcome of a word.
    #[must_use]
    pub fn named(word: &str) -> Option<Self> {
        [Self::Pass, Self::Warn, Self::Fail].into_iter().find(|outcome| outcome.as_str() == word)
    }
}

/// What a check found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Which.
    pub check: Check,
    /// How it ended.
    pub outcome: Outcome,
    /// What was measured or seen; for a failure also why that is wrong.
    pub measured: String,
    /// What to do about it; empty where nothing is to be done.
    pub fix: String,
}

impl Finding {
    fn pass(check: Check, measured: impl Into<String>) -> Self {
        Self { check, outcome: Outcome::Pass, measured: measured.into(), fix: String::new() }
    }

    fn bad(check: Check, outcome: Outcome, measured: impl Into<String>, fix: &str) -> Self {
        Self { check, outcome, measured: measured.into(), fix: fix.to_owned() }
    }
}

/// As `Validate` reports it.
impl From<Finding> for crate::types::Check {
    fn from(finding: Finding) -> Self {
        use crate::types::CheckVerdict;
        Self {
            name: finding.check.as_str().to_owned(),
            verdict: match finding.outcome {
                Outcome::Pass => CheckVerdict::Pass,
                Outcome::Warn => CheckVerdict::Warn,
                Outcome::Fail => CheckVerdict::Fail,
            },
            found: finding.measured,
            fix: finding.fix,
        }
    }
}

/// [`Check::Ports`] alone, for whoever sees more processes than the service user: who listens is judged by who holds the socket.
#[must_use]
pub fn ports(config: &Config) -> Finding {
    let (outcome, measured) = ports::judge(&config.server.listen);
    let fix = if outcome == Outcome::Pass { "" } else { host::advice(Check::Ports, SERVICE_USER) };
    Finding::bad(Check::Ports, outcome, measured, fix)
}

/// What one check learned that another one, or the daemon, needs.
#[derive(Debug, Default)]
pub struct Learned {
    /// The devices.
    pub devices: Option<GpuSnapshot>,
    /// podman.
    pub podman: Option<PodmanInfo>,
    /// Our containers that an earlier daemon left.
    pub found: Option<Vec<Found>>,
}

/// What there is to ask of the host, made from the configuration.
#[derive(Clone)]
pub struct Probes {
    /// podman.
    pub containers: Arc<dyn Containers>,
    /// Device memory.
    pub gpus: Arc<dyn Gpus>,
}

impl Probes {
    /// Nothing is asked yet. NVML's thread starts, where it is configured.
    #[must_use]
    pub fn new(config: &Config, user: &str) -> Self {
        podman::fixes_are_for(user != SERVICE_USER);
        Self::with(config, Helpers::default())
    }

    /// The same for whoever starts containers, and so needs help with those that outlive podman's knowledge of them.
    #[must_use]
    pub fn with(config: &Config, helpers: Helpers) -> Self {
        let gpus: Arc<dyn Gpus> = match config.gpu.backend {
            GpuBackend::Nvml => {
                Arc::new(Nvml::start(config.gpu.nvml_library.clone(), config.gpu.devices.clone()))
            }
            GpuBackend::Host => Arc::new(gpu::Host::new(config.gpu.budget)),
        };
        let podman = &config.podman;
        let containers = Podman::with(
            podman.socket.clone(),
            podman.namespace.clone(),
            podman.engine_dir.clone(),
            podman.pull,
            Deadlines::default(),
            Helpers { unresolved: Some(Arc::new(unresolved)), ..helpers },
        );
        Self { containers: Arc::new(containers), gpus }
    }
}

/// One round of checks.
pub struct Checks<'a> {
    /// What was asked for.
    pub config: &'a Config,
    /// podman.
    pub containers: &'a dyn Containers,
    /// Device memory.
    pub gpus: &'a dyn Gpus,
    /// Where CDI specifications are.
    pub cdi_dirs: &'a [PathBuf],
    /// Whose containers they are: the user that the daemon runs as.
    pub user: &'a str,
}

impl Checks<'_> {
    /// Makes one check; what it learned is kept in `learned`, where later ones look for it.
    ///
    /// # Errors
    /// Where a check of [`Check::GATE`] does not hold. The others report that as a [`Finding`].
    pub async fn look(&self, check: Check, learned: &mut Learned) -> Result<Finding, StartFailure> {
        match check {
            Check::Memory => self.devices(learned).await,
            Check::Cdi => self.cdi(learned),
            Check::Podman => self.podman(learned).await,
            Check::Network => self.network().await,
            Check::Images => self.images().await,
            Check::Containers => self.found(learned).await,
            Check::DeviceNodes
            | Check::CdiVersion
            | Check::Subids
            | Check::Linger
            | Check::Cgroups
            | Check::Selinux
            | Check::Labels
            | Check::Events
            | Check::Disk
            | Check::Ports
            | Check::GpuContainer => Ok(self.host(check, learned).await),
        }
    }

    /// All checks, each once; what fails does not keep the others from being made.
    pub async fn all(&self) -> Vec<Finding> {
        let mut learned = Learned::default();
        let mut findings = Vec::with_capacity(Check::ALL.len());
        for check in Check::ALL {
            let finding = self.look(check, &mut learned).await.unwrap_or_else(|failure| Finding {
                check,
                outcome: Outcome::Fail,
                fix: match repair(check, self.user) {
                    commands if commands.is_empty() => failure.exit.fix().to_owned(),
                    commands => repair::shown(&commands),
                },
                measured: failure.message,
            });
            findings.push(finding);
        }
        findings
    }
}

/// The user that the system service runs as.
pub const SERVICE_USER: &str = "hostler";

/// Where podman looks for CDI specifications.
#[must_use]
pub fn cdi_dirs() -> Vec<PathBuf> {
    gpu::cdi::DIRS.iter().map(PathBuf::from).collect()
}

/// What is wrong with the specification of these devices.
fn unresolved(names: &[String]) -> Option<String> {
    let own = |name: &String| name.strip_prefix(gpu::cdi::KIND)?.strip_prefix('=').map(GpuId::new);
    let gpus: Vec<GpuId> = names.iter().filter_map(own).collect();
    gpu::cdi::check(&cdi_dirs(), &gpus).err().map(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_check_is_in_the_list_once_and_has_its_word() {
        let words: BTreeSet<_> = Check::ALL.iter().map(|c| c.as_str()).collect();
        assert_eq!(words.len(), Check::ALL.len());
        for check in Check::ALL {
            assert_eq!(Check::named(check.as_str()), Some(check));
        }
        assert!(Check::GATE.iter().all(|check| Check::ALL.contains(check)));
        assert_eq!(Check::named("x"), None);
        assert_eq!(Outcome::named("WARN"), Some(Outcome::Warn));
    }
}
