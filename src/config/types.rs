//! The checked configuration that the rest of the program reads.
//!
//! Purpose: plain data, units in the types, all defaults filled in. Owner: made by [`super::parse`], then never changed.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::health::HealthConfig;
use super::log::LogConfig;
use super::traces::TracesConfig;
use crate::types::{
    Bytes, Eviction, ExternalSpec, GpuId, Hours, ModelName, ModelSpec, OnFull, Secret,
};

/// The whole configuration, checked, with all defaults filled in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// `[server]`.
    pub server: ServerConfig,
    /// `[auth]`: where the keys are; `None`: none are asked for.
    pub auth: Option<KeySource>,
    /// The keys that were read from there.
    pub keys: Vec<KeyConfig>,
    /// `[gpu]`.
    pub gpu: GpuConfig,
    /// `[memory]`.
    pub memory: MemoryConfig,
    /// `[podman]`.
    pub podman: PodmanConfig,
    /// `[policy]`.
    pub policy: PolicyConfig,
    /// `[health]`.
    pub health: HealthConfig,
    /// `[startup]`.
    pub startup: StartupConfig,
    /// `[metrics]`.
    pub metrics: MetricsConfig,
    /// `[traces]`.
    pub traces: TracesConfig,
    /// `[log]`.
    pub log: LogConfig,
    /// All models by name. Aliases are unique among all names and aliases.
    pub models: BTreeMap<ModelName, Arc<ModelSpec>>,
    /// Models that run elsewhere.
    pub externals: BTreeMap<ModelName, ExternalSpec>,
    /// Their keys, that were read from credentials.
    pub external_keys: BTreeMap<ModelName, Secret>,
}

impl Config {
    /// The longest time to stop that any engine is given.
    #[must_use]
    pub fn longest_stop(&self) -> Duration {
        self.models.values().map(|model| model.stop_timeout).max().unwrap_or_default()
    }

    /// How many models there are, in words: `2 models, 1 of them elsewhere`.
    #[must_use]
    pub fn counted(&self) -> String {
        let (own, elsewhere) = (self.models.len(), self.externals.len());
        let models = if own + elsewhere == 1 { "model" } else { "models" };
        let elsewhere = match (own, elsewhere) {
            (_, 0) => String::new(),
            (0, 1) => ", elsewhere".to_owned(),
            (0, _) => ", all elsewhere".to_owned(),
            (_, some) => format!(", {some} of them elsewhere"),
        };
        format!("{} {models}{elsewhere}", own + self.externals.len())
    }

    /// A model's own name, for a name or alias of it.
    #[must_use]
    pub fn resolve(&self, name: &str) -> Option<&ModelName> {
        let name: ModelName = name.parse().ok()?;
        let own = self.models.values().map(|m| (&m.name, &m.aliases));
        let external = self.externals.values().map(|m| (&m.name, &m.aliases));
        let mut all = own.chain(external);
        all.find(|(own, aliases)| **own == name || aliases.contains(&name)).map(|(own, _)| own)
    }
}

/// Where the file of keys is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeySource {
    /// At this path.
    File(PathBuf),
    /// In the systemd credential of this name.
    Credential(String),
}

impl KeySource {
    /// The credential's name, if it is one.
    #[must_use]
    pub fn credential(&self) -> Option<&str> {
        match self {
            Self::File(_) => None,
            Self::Credential(name) => Some(name),
        }
    }
}

/// One key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyConfig {
    /// What logs and metrics call its holder.
    pub name: String,
    /// SHA-256 of the key.
    pub digest: [u8; 32],
    /// Models that it may use; empty: all.
    pub models: Vec<ModelName>,
    /// Requests in a minute; `None`: any number.
    pub per_minute: Option<u32>,
    /// Requests at once; `None`: any number.
    pub concurrent: Option<u32>,
    /// Weight where keys share a model, default 1.
    pub share: u32,
    /// It may change what runs, default no.
    pub admin: bool,
}

/// `[metrics]`: where they are shown beside the front door.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MetricsConfig {
    /// Addresses that have metrics and nothing else, for whoever can reach them; none by default.
    pub listen: Vec<SocketAddr>,
}

/// The HTTP side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerConfig {
    /// Addresses to listen on when systemd hands over no sockets; loopback only, unless keys are asked for.
    pub listen: Vec<SocketAddr>,
    /// The longest a request waits for a model, default 240 s.
    pub max_wait: Duration,
    /// The longest a stream waits that gets signs of life, default 1 h.
    pub max_stream_wait: Duration,
    /// The longest until an engine's answer begins, default 10 min.
    pub answer_timeout: Duration,
    /// How long a stream waits in silence, default 1.5 s.
    pub feedback_after: Duration,
    /// Between two signs of life, default 5 s.
    pub feedback_interval: Duration,
    /// The largest request body, default 32 MiB.
    pub max_body: Bytes,
    /// Bytes of bodies held at once over all connections, default 1 GiB.
    pub max_buffered: Bytes,
    /// Client connections served at once, default 4096.
    pub max_connections: usize,
    /// Requests that may wait for one model, default 512.
    pub max_queue: usize,
    /// Names that `Host` may have, in lower case; empty: any.
    pub hosts: Vec<String>,
    /// Origins of pages that may come from browsers; empty: none.
    pub origins: Vec<String>,
}

/// Which memory is managed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GpuConfig {
    /// Required; never guessed.
    pub backend: GpuBackend,
    /// Devices to manage; empty: all that NVML lists.
    pub devices: Vec<GpuId>,
    /// Kept free on each device, default 512 MiB.
    pub headroom: Bytes,
    /// For the host backend: how much of the host's memory there is for models, headroom included; `None`: all of it.
    pub budget: Option<Bytes>,
    /// Path of `libnvidia-ml.so.1`; `None`: as the dynamic linker finds it.
    pub nvml_library: Option<PathBuf>,
}

/// Where memory is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GpuBackend {
    /// NVIDIA's management library.
    Nvml,
    /// The host's RAM: models run on the CPU, also where a GPU has the same memory.
    Host,
}

/// What may be done with memory beside the devices'.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryConfig {
    /// Host memory for the weights of models that sleep, default none: nobody sleeps.
    pub host_ram_budget: Bytes,
    /// A model that holds more than this on a device after falling asleep is stopped, default 2 GiB.
    pub sleep_residual_max: Bytes,
}

/// How podman is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodmanConfig {
    /// Its API socket.
    pub socket: PathBuf,
    /// Label namespace: two daemons on one podman never touch each other's containers. Default `default`.
    pub namespace: String,
    /// Directory in which each instance gets a directory for its socket.
    pub engine_dir: PathBuf,
    /// Whether missing images are pulled (default) or refused.
    pub pull: bool,
}

/// What happens without being asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyConfig {
    /// `on_stop`: whether a stop of the daemon stops the containers (default) or keeps them.
    pub on_stop: OnStop,
    /// How long a stop waits for running requests, default 30 s.
    pub drain_timeout: Duration,
    /// How the models to evict are chosen, default by cost.
    pub eviction: Eviction,
    /// An instance that became ready less than this ago is evicted only for a model of higher priority, default 10 s
    /// (`docs/eviction.md` says why).
    pub min_residency: Duration,
    /// Busy models take no new requests any more when another has waited so long for their place, default 30 s; `None`: they
    /// never make way.
    pub turn_after: Option<Duration>,
    /// What happens when there is no room for a model that does not say it itself, default eviction.
    pub on_full: OnFull,
    /// Models that were never measured are loaded for that when nothing was requested for so long; `None` (default): never.
    pub measure_after: Option<Duration>,
    /// That begins only then, local time; default: at any time.
    pub measure_hours: Hours,
}

impl PolicyConfig {
    /// Whether a stop of the daemon keeps the containers.
    #[must_use]
    pub fn keeps(&self) -> bool {
        self.on_stop == OnStop::Keep
    }
}

/// What a stop of the daemon does to its containers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnStop {
    /// Stop and remove them.
    Stop,
    /// Keep them; the next start adopts them.
    Keep,
}

/// Validation before READY.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StartupConfig {
    /// How long all checks together may be retried, default 60 s.
    pub timeout: Duration,
}

/// Defaults that depend on who runs the daemon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Defaults {
    /// `[podman] socket`.
    pub podman_socket: PathBuf,
    /// `[podman] engine_dir`.
    pub engine_dir: PathBuf,
}

impl Defaults {
    /// Of the system service: everything below `/run/hostler`.
    #[must_use]
    pub fn system() -> Self {
        Self {
            podman_socket: "/run/hostler/service/podman.sock".into(),
            engine_dir: "/run/hostler/engines".into(),
        }
    }

    /// Of a desktop user's service: everything below `hostler` in `runtime_dir`, which is
    /// `$XDG_RUNTIME_DIR`.
    #[must_use]
    pub fn user(runtime_dir: &Path) -> Self {
        Self {
            podman_socket: runtime_dir.join("hostler/podman.sock"),
            engine_dir: runtime_dir.join("hostler/engines"),
        }
    }
}
