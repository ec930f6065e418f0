//! Ports: what the supervisor needs done by the outside world, as traits.
//!
//! Purpose: the only place where the core's decisions meet podman, NVML and engines. Owner: the composition root holds
//! one adapter per port; the executor calls it. Invariants: every call is bounded in time by the adapter itself, never
//! panics, and reports a failure as data; no adapter calls another.

use std::collections::BTreeMap;
use std::future::Future;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

pub use ending::Ending;
pub use gpu_error::GpuError;
pub use ill::Ill;
pub use podman_info::{PodmanHost, PodmanInfo};

use crate::types::{
    Bytes, Fault, FaultCode, GpuId, GpuSnapshot, GpuVitals, ImageRef, InstanceId, Known, ModelName,
    ModelSpec, Phase, Placement, Pulled, Secret, SleepLevel, SpecHash, Transport,
};

/// A boxed future: ports are used as trait objects.
pub type PortFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What an adapter tells while it works on a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sign {
    /// It has come to a phase: [`Phase::Pulling`], or [`Phase::Starting`].
    Phase(Phase),
    /// So much of an image is here.
    Pulled(Pulled),
}

/// Called by an adapter while it works on a launch.
pub type Progress = Arc<dyn Fn(Sign) + Send + Sync>;

/// Everything the executor needs to start one incarnation.
#[derive(Clone, Debug)]
pub struct LaunchOrder {
    /// The incarnation to be.
    pub instance: InstanceId,
    /// What it is an incarnation of.
    pub spec: Arc<ModelSpec>,
    /// Where it goes and what it may use.
    pub placement: Placement,
    /// The image that the plan was made for, if it was made for one.
    pub image_id: Option<String>,
    /// Tokens of context that its promise was made for; `None`: the engine decides.
    pub context: Option<u32>,
}

/// How to reach a running engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// A Unix socket on the host, in a directory that is the service user's alone. [`Endpoint::connect_unix`] is the way to it.
    Unix(PathBuf),
    /// A port published on loopback, where every user of the host can connect, and the key that the engine asks of whoever does;
    /// `None`: a container of an earlier version, whose engine asks for none.
    Tcp(SocketAddr, Option<Secret>),
}

impl Endpoint {
    /// What the engine asks for; goes out as `Authorization: Bearer`.
    #[must_use]
    pub fn key(&self) -> Option<&Secret> {
        match self {
            Self::Tcp(_, key) => key.as_ref(),
            Self::Unix(_) => None,
        }
    }
}

/// What podman is asked to create: pure data, made by an engine profile, carried out by the container adapter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerSpec {
    /// Identity; becomes name and labels.
    pub instance: InstanceId,
    /// Becomes a label, compared at adoption.
    pub spec_hash: SpecHash,
    /// Becomes labels, so that an adopted container keeps its place in the ledger.
    pub placement: Placement,
    /// The engine's image.
    pub image: ImageRef,
    /// Which image that name has to mean: any other is refused with [`crate::types::FaultCode::ImageChanged`], for what is
    /// known of the one is not true of the other.
    pub image_id: Option<String>,
    /// Replaces the image's entry point; empty: keep it.
    pub entrypoint: Vec<String>,
    /// Arguments after the entry point.
    pub command: Vec<String>,
    /// Environment.
    pub env: BTreeMap<String, String>,
    /// The variable of the environment by which the engine learns the key that it is to ask for. Whoever creates the container
    /// makes one up for it, and `None`: nobody else can connect.
    pub key_variable: Option<String>,
    /// Read-only bind mounts: (host path, path in the container).
    pub binds: Vec<(PathBuf, PathBuf)>,
    /// The model on the host, in one of `binds`: its directory, or the first of its files. `None`: it is in an image.
    pub weights: Option<PathBuf>,
    /// Images mounted read-only: (image, path in the container).
    pub image_volumes: Vec<(ImageRef, PathBuf)>,
    /// CDI device names (`nvidia.com/gpu=GPU-…`); empty for the host backend.
    pub cdi_devices: Vec<String>,
    /// How the engine listens. `Unix`: no network, socket [`SOCKET_NAME`] in [`SOCKET_DIR`]; `Tcp`: [`TCP_PORT`],
    /// published on a loopback port that podman picks.
    pub transport: Transport,
    /// Size of `/dev/shm`.
    pub shm_size: Bytes,
    /// From SIGTERM to SIGKILL; set at creation because podman's stop call is unreliable about it.
    pub stop_timeout: Duration,
}

/// Where the socket directory is mounted in a container.
pub const SOCKET_DIR: &str = "/run/engine";
/// The engine's socket in [`SOCKET_DIR`].
pub const SOCKET_NAME: &str = "e.sock";
/// The port an engine listens on inside its container with [`Transport::Tcp`].
pub const TCP_PORT: u16 = 8000;

/// A started container whose effective hardening has been verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launched {
    /// podman's container ID.
    pub container: String,
    /// Host path of the container's cgroup, for liveness and attribution.
    pub cgroup: PathBuf,
    /// Where the engine will listen.
    pub endpoint: Endpoint,
    /// The image that it runs, by podman's ID (the digest of its configuration); empty where podman does not say.
    pub image_id: String,
}

/// One of our containers as found on the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// podman's container ID.
    pub container: String,
    /// From the labels; `None` where they are damaged (then it can only be reaped).
    pub identity: Option<FoundIdentity>,
    /// Processes are alive in its cgroup: asked of the kernel, not of podman. `None`: nothing runs.
    pub running: Option<Launched>,
}

/// The labels of a [`Found`] container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundIdentity {
    /// Which incarnation.
    pub instance: InstanceId,
    /// Of what specification.
    pub spec_hash: SpecHash,
    /// Where it was placed.
    pub placement: Placement,
}

/// One request to a container engine's API that is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    /// What was asked, by the adapter's list.
    pub op: &'static str,
    /// It was done, or answered.
    pub ok: bool,
}

/// Counts requests to a container engine's API. May neither block nor compute for long.
pub trait Calls: Send + Sync + 'static {
    /// One is over.
    fn over(&self, call: Call, took: Duration);
}

/// The container engine: podman, for one label namespace. Objects without our labels are never touched.
pub trait Containers: Send + Sync + 'static {
    /// Sees that the files and images of a launch are here, and pulls images that are not; the ID of the engine's image. Nothing is
    /// created. Where an adapter does no more than this, images are here or are not to be had.
    fn provide(
        &self,
        instance: InstanceId,
        spec: Arc<ModelSpec>,
        progress: Progress,
    ) -> PortFuture<'_, Result<String, Fault>> {
        drop(progress);
        Box::pin(async move {
            let absent = || {
                let text = format!("{instance}: {} is not here", spec.image);
                Fault::new(FaultCode::ImageMissing, text)
            };
            self.image_id(spec.image.clone()).await?.ok_or_else(absent)
        })
    }

    /// Creates and starts a container and verifies its effective hardening. An ambiguous outcome (the API died in the
    /// middle) is resolved by looking the instance's label up. On failure nothing is left behind, or the fault says that
    /// something may be ([`Fault::left_behind`]). An image that is missing all the same is pulled, and the launch ends with
    /// [`crate::types::FaultCode::ImagePulled`] without a container.
    fn launch(
        &self,
        spec: ContainerSpec,
        progress: Progress,
    ) -> PortFuture<'_, Result<Launched, Fault>>;

    /// Stops (SIGTERM, the container's stop timeout, SIGKILL) and removes a container and its socket directory. `Ok` means:
    /// no process of it is left and podman does not know it any more. An unknown instance is `Ok`.
    fn stop(&self, instance: InstanceId) -> PortFuture<'_, Result<(), Fault>>;

    /// Removes a container by podman's ID, for those whose labels are damaged.
    fn reap(&self, container: String) -> PortFuture<'_, Result<(), Fault>>;

    /// All containers of our namespace, in any state; and those that podman has forgotten, but that were begun since the
    /// boot and still run. These fit no specification ([`SpecHash::NONE`]).
    fn list(&self) -> PortFuture<'_, Result<Vec<Found>, Fault>>;

    /// The last `lines` lines a container wrote, oldest first; empty when it is gone.
    fn log_tail(&self, instance: InstanceId, lines: usize) -> PortFuture<'_, Vec<String>>;

    /// The read end of a pipe into which all that a container writes goes: its last `lines` lines, or all, and with `follow` also
    /// what comes, until it ends or nobody reads any more.
    fn open_log(
        &self,
        instance: InstanceId,
        lines: Option<usize>,
        follow: bool,
    ) -> PortFuture<'_, Result<OwnedFd, Fault>> {
        let _ = (lines, follow);
        let text = format!("this container engine keeps no log of {instance}");
        Box::pin(std::future::ready(Err(Fault::new(FaultCode::Internal, text))))
    }

    /// How an instance ended whose processes are gone, waiting a moment for podman to record it, which it does a little later than
    /// the kernel; `None`: still running or unknown.
    fn ending(&self, instance: InstanceId) -> PortFuture<'_, Option<Ending>>;

    /// Host PIDs in a container's cgroup, below it too; empty: it is dead. Reads the kernel only and does not block.
    ///
    /// # Errors
    /// If that could not be found out, for example without a free file descriptor. It says nothing about the container.
    fn pids(&self, cgroup: &std::path::Path) -> std::io::Result<Vec<u32>>;

    /// Version and rootlessness, for the readiness check.
    fn info(&self) -> PortFuture<'_, Result<PodmanInfo, Fault>>;

    /// The ID of the image that a name means now: the digest of its configuration. `None`: it is not in the storage.
    fn image_id(&self, image: ImageRef) -> PortFuture<'_, Result<Option<String>, Fault>>;

    /// Runs a throw-away process in a container that is given these devices, and returns what it printed about them, for
    /// whoever asked to judge. An adapter that runs no containers of its own cannot.
    fn try_devices(&self, _gpus: Vec<GpuId>) -> PortFuture<'_, Result<Vec<String>, Fault>> {
        let why = "no container can be run to try the devices";
        Box::pin(async move { Err(Fault::new(FaultCode::Internal, why)) })
    }

    /// Writes down, beside what was begun, what operators said about pins: all of it, until the next boot. Of two calls the later one
    /// counts, whichever ends first; the call itself does not block. An adapter that writes nothing down keeps nothing.
    fn keep_pins(&self, pins: BTreeMap<ModelName, bool>) -> PortFuture<'static, ()> {
        drop(pins);
        Box::pin(std::future::ready(()))
    }

    /// Proves the path that models of this transport use by starting and removing a throw-away container through it:
    /// user namespace, mounts of the socket directory, and for TCP the network and a published port.
    fn prove_network(&self, transport: Transport) -> PortFuture<'_, Result<(), Fault>>;
}

/// Device memory: NVML or the host's.
pub trait Gpus: Send + Sync + 'static {
    /// Reads all configured devices within a deadline of its own.
    ///
    /// # Errors
    /// When the backend as a whole does not answer.
    fn snapshot(&self) -> PortFuture<'_, Result<GpuSnapshot, GpuError>>;

    /// How the devices do, for people; empty where the backend cannot tell, which is no error. Within the deadline of a reading.
    fn vitals(&self) -> PortFuture<'_, Vec<GpuVitals>> {
        Box::pin(std::future::ready(Vec::new()))
    }

    /// Bytes that the processes of one cgroup hold, per device of `gpus`, judged by `snapshot` (NVML) or by the
    /// processes' proportional set size (host).
    fn usage(
        &self,
        pids: Vec<u32>,
        gpus: Vec<GpuId>,
        snapshot: Arc<GpuSnapshot>,
    ) -> PortFuture<'_, BTreeMap<GpuId, Known<Bytes>>>;
}

/// Where bytes outlive the daemon.
pub trait Shelf: Send + Sync + 'static {
    /// Puts a new generation there, one call at a time. When it is done, they outlive a power cut too.
    ///
    /// # Errors
    /// Why it could not, for people; the generation before it is still there.
    fn save(&self, bytes: Vec<u8>) -> PortFuture<'_, Result<(), String>>;
}

/// Who may do what this process may not: kill the processes of a control group.
pub trait Scopes: Send + Sync + 'static {
    /// Kills all processes of a scope, such as `libpod-….scope`, of the manager that podman's containers belong to.
    ///
    /// # Errors
    /// Why it could not, for people. A scope that is not there is `Ok`.
    fn kill(&self, scope: String) -> PortFuture<'_, Result<(), String>>;
}

/// Engines: how to run them and how to ask whether they are ready.
pub trait Engines: Send + Sync + 'static {
    /// The container for an order. Pure.
    fn container(&self, order: &LaunchOrder) -> ContainerSpec;

    /// One health probe, at most a second or so. `Ok(true)`: ready for requests; `Ok(false)`: alive, still loading, or
    /// not listening yet; `Err`: it answered something that a healthy engine never answers.
    fn probe(
        &self,
        spec: Arc<ModelSpec>,
        endpoint: Endpoint,
    ) -> PortFuture<'_, Result<bool, String>>;

    /// Asks an engine that is ready whether it is well, and with `token` for one thing that only its loop can do (of vLLM
    /// a token). `Err`: it did not answer
    /// within `timeout`, or not as a healthy engine does. That it has no such route is no error.
    fn check(
        &self,
        spec: Arc<ModelSpec>,
        endpoint: Endpoint,
        token: bool,
        timeout: Duration,
    ) -> PortFuture<'_, Result<(), Ill>>;

    /// Puts an engine that serves nobody to sleep. `Ok`: it says that it sleeps, which is no proof. At most a minute.
    fn sleep(
        &self,
        spec: Arc<ModelSpec>,
        endpoint: Endpoint,
        level: SleepLevel,
    ) -> PortFuture<'_, Result<(), String>>;

    /// Wakes an engine that sleeps so deep. `Ok`: it says that it is awake. At most a minute; from level 2, which loads the
    /// weights again, the model's load time-out.
    fn wake(
        &self,
        spec: Arc<ModelSpec>,
        endpoint: Endpoint,
        level: SleepLevel,
    ) -> PortFuture<'_, Result<(), String>>;

    /// What the engine makes of a fixed prompt, in a way that gives the same text each time. Only for one that serves
    /// nobody else meanwhile: the company of other requests may change the text. At most half a minute.
    fn canary(
        &self,
        spec: Arc<ModelSpec>,
        endpoint: Endpoint,
    ) -> PortFuture<'_, Result<String, CanaryError>>;

    /// The engine's own metrics in Prometheus' text format, as it wrote them. Bounded in time and size.
    fn metrics(&self, endpoint: Endpoint) -> PortFuture<'_, Result<String, String>> {
        drop(endpoint);
        Box::pin(std::future::ready(Err("this engine has none".to_owned())))
    }
}

/// Why an engine gave no canary's answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CanaryError {
    /// It sleeps, although nobody now living sent it to sleep.
    #[error("the engine sleeps, and nobody knows how deep")]
    Asleep,
    /// It answered, but not so that another answer could be compared.
    #[error("{0}")]
    Failed(String),
    /// It gave no answer, or said that it is broken: it may be dead, or too busy.
    #[error("{0}")]
    Silent(String),
}

mod ending;
mod gpu_error;
mod ill;
mod podman_info;
pub(crate) mod reach;
