//! The podman adapter: containers over podman's REST API on its Unix socket.
//!
//! Purpose: [`Containers`] for a rootless podman that runs as a service of its own; this process is only its
//! client, so its sandbox never reaches a container. Owner: the composition root, one for the daemon's life.
//!
//! ```text
//!  mod      the port                 create   ContainerSpec → JSON (pure)      labels   identity ↔ labels (pure)
//!  launch   create, start, verify    harden   is it as restricted? (pure)      error    causes → faults
//!  stop     stop, reap, undo         cgroup   the kernel's word on life        logs     log frames → lines (pure)
//!  helper   short-lived containers of our own program          info     what podman knows of its host (pure)
//!  prove    the path that models use socket_dir  engines' directories         api      calls: podman-api, or wire (raw)
//!  journal  what was begun           pull     images and their pulls          list     what there is, by podman and kernel
//!  timed    how long calls take         sources  what is mounted from the host   broom  directories' ends
//! ```
//!
//! # Architecture Invariant
//! podman is never believed where the kernel can be asked: what runs is what has processes in its control group,
//! and what is restricted is what `/proc` says is restricted. Objects without our labels are never touched. Nothing
//! is retried blindly: after an answer that got lost, the instance is looked up by its labels. A call whose future
//! is dropped half-way undoes nothing; what it leaves carries our labels, so the next `list` finds it.

pub mod api;
mod broom;
mod cgroup;
mod create;
pub mod error;
mod follow;
mod harden;
pub mod helper;
mod info;
mod inspect;
pub mod journal;
mod labels;
mod launch;
mod list;
mod logs;
mod prove;
mod pull;
mod socket_dir;
mod sources;
mod stop;
mod timed;
mod wire;

use std::collections::BTreeMap;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::watch;

use api::{Api, Deadlines};
pub use broom::Left;
pub use error::fixes_are_for;
use journal::{Journal, Record};
pub use sources::stray;

use crate::supervisor::ports::{
    Calls, ContainerSpec, Containers, Ending, Found, Launched, PodmanInfo, PortFuture, Progress,
    Scopes, Shelf,
};
use crate::types::{
    Fault, FaultCode, GpuId, ImageRef, InstanceId, ModelName, ModelSpec, Transport,
};

/// [`Containers`] over podman's API. Cheap to clone; nothing is connected until the first call.
#[derive(Clone, Debug)]
pub struct Podman {
    inner: Arc<Inner>,
}

struct Inner {
    api: Api,
    namespace: String,
    engine_dir: PathBuf,
    pull: bool,
    journal: Journal,
    scopes: Option<Arc<dyn Scopes>>,
    unresolved: Option<Unresolved>,
    left: watch::Sender<Left>,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inner").field("namespace", &self.namespace).finish_non_exhaustive()
    }
}

/// Why CDI devices of these names cannot be given to a container, with the fix; `None`: nothing is found to be wrong. Reads files.
pub type Unresolved = Arc<dyn Fn(&[String]) -> Option<String> + Send + Sync>;

/// What helps the adapter where podman does not.
#[derive(Default)]
pub struct Helpers {
    /// What earlier daemons had begun.
    pub record: Record,
    /// Where the journal is written; `None`: it is not.
    pub journal: Option<Arc<dyn Shelf>>,
    /// Who kills what outlives its container; `None`: nobody, where this process may not.
    pub scopes: Option<Arc<dyn Scopes>>,
    /// Who counts what podman is asked; `None`: nobody.
    pub calls: Option<Arc<dyn Calls>>,
    /// Who knows what may be wrong with a container's devices where podman's words do not say it; `None`: nobody.
    pub unresolved: Option<Unresolved>,
    /// Where directories that cannot be removed are told; whoever is to know subscribes.
    pub left: watch::Sender<Left>,
}

impl std::fmt::Debug for Helpers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Helpers").field("record", &self.record).finish_non_exhaustive()
    }
}

impl Podman {
    /// podman at `socket`, for the containers of one label `namespace`, with the engines' sockets below
    /// `engine_dir`; `pull` says whether missing images are fetched or refused. Nobody helps.
    #[must_use]
    pub fn new(socket: PathBuf, namespace: String, engine_dir: PathBuf, pull: bool) -> Self {
        let deadlines = Deadlines::default();
        Self::with(socket, namespace, engine_dir, pull, deadlines, Helpers::default())
    }

    /// As [`Podman::new`], with other deadlines than the default ones, and with help.
    #[must_use]
    pub fn with(
        socket: PathBuf,
        namespace: String,
        engine_dir: PathBuf,
        pull: bool,
        deadlines: Deadlines,
        helpers: Helpers,
    ) -> Self {
        let Helpers { record, journal, scopes, calls, unresolved, left } = helpers;
        let inner = Inner {
            api: Api::new(socket, deadlines, timed::Ear(calls)),
            namespace,
            engine_dir,
            pull,
            journal: Journal::new(record, journal),
            scopes,
            unresolved,
            left,
        };
        Self { inner: Arc::new(inner) }
    }
}

impl Containers for Podman {
    fn provide(
        &self,
        instance: InstanceId,
        spec: Arc<ModelSpec>,
        progress: Progress,
    ) -> PortFuture<'_, Result<String, Fault>> {
        Box::pin(async move { self.inner.provide(&instance, &spec, &progress).await })
    }

    fn launch(
        &self,
        spec: ContainerSpec,
        progress: Progress,
    ) -> PortFuture<'_, Result<Launched, Fault>> {
        Box::pin(async move { self.inner.launch(&spec, &progress).await })
    }

    fn stop(&self, instance: InstanceId) -> PortFuture<'_, Result<(), Fault>> {
        Box::pin(async move { self.inner.stop(&instance).await })
    }

    fn reap(&self, container: String) -> PortFuture<'_, Result<(), Fault>> {
        Box::pin(async move { self.inner.reap(&container).await })
    }

    fn list(&self) -> PortFuture<'_, Result<Vec<Found>, Fault>> {
        Box::pin(self.inner.list())
    }

    fn log_tail(&self, instance: InstanceId, lines: usize) -> PortFuture<'_, Vec<String>> {
        Box::pin(async move { self.inner.tail(&instance.container_name(), lines).await })
    }

    fn open_log(
        &self,
        instance: InstanceId,
        lines: Option<usize>,
        follow: bool,
    ) -> PortFuture<'_, Result<OwnedFd, Fault>> {
        Box::pin(async move {
            let opened = self.inner.api.open_log(&instance.container_name(), lines, follow).await;
            opened.map_err(|e| e.fault(FaultCode::PodmanUnreachable, &format!("{instance}")))
        })
    }

    fn ending(&self, instance: InstanceId) -> PortFuture<'_, Option<Ending>> {
        Box::pin(async move { self.inner.ending(&instance).await })
    }

    fn pids(&self, cgroup: &Path) -> std::io::Result<Vec<u32>> {
        cgroup::pids(cgroup)
    }

    fn info(&self) -> PortFuture<'_, Result<PodmanInfo, Fault>> {
        Box::pin(async move {
            let info = self.inner.api.info().await;
            info.map_err(|e| e.fault(FaultCode::PodmanUnreachable, "podman's version"))
        })
    }

    fn image_id(&self, image: ImageRef) -> PortFuture<'_, Result<Option<String>, Fault>> {
        Box::pin(async move {
            let found = self.inner.api.image(&image).await;
            // That podman refuses says of others nothing.
            found
                .map(|found| found.map(|image| image.id))
                .map_err(|e| e.fault(FaultCode::Internal, &format!("image {image}")))
        })
    }

    fn try_devices(&self, gpus: Vec<GpuId>) -> PortFuture<'_, Result<Vec<String>, Fault>> {
        Box::pin(async move {
            let helper = helper::Helper {
                program: helper::program()?,
                args: vec!["probe-gpus".to_owned()],
                env: Vec::new(),
                writable: None,
                network: helper::Network::None,
                devices: gpus.iter().map(|gpu| format!("nvidia.com/gpu={gpu}")).collect(),
                secret: None,
            };
            let mut lines = Vec::new();
            self.run_helper(&helper, &mut |line| lines.push(line.to_owned())).await?;
            Ok(lines)
        })
    }

    fn keep_pins(&self, pins: BTreeMap<ModelName, bool>) -> PortFuture<'static, ()> {
        let inner = self.inner.clone();
        // Now, and not when somebody has time for it: calls have an order.
        let changed = inner.journal.pin(pins);
        Box::pin(async move {
            if changed {
                inner.journal.write().await;
            }
        })
    }

    fn prove_network(&self, transport: Transport) -> PortFuture<'_, Result<(), Fault>> {
        Box::pin(self.inner.prove(transport))
    }
}

impl Inner {
    /// Never an error: a log is help for a person, and its absence is no further fault.
    async fn tail(&self, container: &str, lines: usize) -> Vec<String> {
        self.api.logs(container, lines).await.unwrap_or_else(|e| {
            tracing::debug!(container, reason = %e, "no log to be had, ignoring");
            Vec::new()
        })
    }

    async fn ending(&self, instance: &InstanceId) -> Option<Ending> {
        let inspect = self.look(instance).await.ok().flatten()?;
        self.ending_of(&inspect.id).await
    }
}

/// The user that this process, podman and so all of our containers run as.
fn own_uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// A random number for a name; the standard library seeds its hashers from the operating system.
fn random() -> u32 {
    RandomState::new().build_hasher().finish() as u32
}
