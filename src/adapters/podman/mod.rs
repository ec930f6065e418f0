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
//! ```
//!
//! # Architecture Invariant
//! podman is never believed where the kernel can be asked: what runs is what has processes in its control group,
//! and what is restricted is what `/proc` says is restricted. Objects without our labels are never touched. Nothing
//! is retried blindly: after an answer that got lost, the instance is looked up by its labels. A call whose future
//! is dropped half-way undoes nothing; what it leaves carries our labels, so the next `list` finds it.

pub mod api;
mod cgroup;
mod create;
pub mod error;
mod follow;
mod harden;
pub mod helper;
mod info;
mod inspect;
mod labels;
mod launch;
mod logs;
mod prove;
mod socket_dir;
mod stop;
mod wire;

use std::collections::BTreeMap;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use api::{Api, Deadlines, Listed};
use error::PodmanError;

use crate::supervisor::ports::{
    ContainerSpec, Containers, Endpoint, Found, Launched, PodmanInfo, PortFuture, Progress,
    SOCKET_NAME, TCP_PORT,
};
use crate::types::{Fault, FaultCode, GpuId, ImageRef, InstanceId, Transport};

/// [`Containers`] over podman's API. Cheap to clone; nothing is connected until the first call.
#[derive(Clone, Debug)]
pub struct Podman {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    api: Api,
    namespace: String,
    engine_dir: PathBuf,
    pull: bool,
    /// Container IDs of instances that were launched or found, for the case that podman forgets one that still runs.
    known: Mutex<BTreeMap<InstanceId, String>>,
    proving: tokio::sync::Mutex<()>,
}

impl Podman {
    /// podman at `socket`, for the containers of one label `namespace`, with the engines' sockets below
    /// `engine_dir`; `pull` says whether missing images are fetched or refused.
    #[must_use]
    pub fn new(socket: PathBuf, namespace: String, engine_dir: PathBuf, pull: bool) -> Self {
        Self::with_deadlines(socket, namespace, engine_dir, pull, Deadlines::default())
    }

    /// As [`Podman::new`], with other deadlines than the default ones.
    #[must_use]
    pub fn with_deadlines(
        socket: PathBuf,
        namespace: String,
        engine_dir: PathBuf,
        pull: bool,
        deadlines: Deadlines,
    ) -> Self {
        let inner = Inner {
            api: Api::new(socket, deadlines),
            namespace,
            engine_dir,
            pull,
            known: Mutex::default(),
            proving: tokio::sync::Mutex::default(),
        };
        Self { inner: Arc::new(inner) }
    }
}

impl Containers for Podman {
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

    fn exit_code(&self, instance: InstanceId) -> PortFuture<'_, Option<i32>> {
        Box::pin(async move { self.inner.exit_code(&instance).await })
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
            let found = self.inner.api.image_id(&image).await;
            found.map_err(|e| e.fault(FaultCode::PodmanUnreachable, &format!("image {image}")))
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

    fn prove_network(&self, transport: Transport) -> PortFuture<'_, Result<(), Fault>> {
        Box::pin(self.inner.prove(transport))
    }
}

impl Inner {
    async fn list(&self) -> Result<Vec<Found>, Fault> {
        let listed = self.api.list(labels::NAMESPACE, &self.namespace).await;
        let listed =
            listed.map_err(|e| e.fault(FaultCode::PodmanUnreachable, "the list of containers"))?;
        let groups = self.groups().await?;
        let found = listed.into_iter().map(|container| {
            let identity = labels::identity(&container.labels);
            if let Some(identity) = &identity {
                self.remember(&identity.instance, &container.id);
            }
            let group = groups.get(&container.id).filter(|g| !cgroup::is_empty(g));
            let running = group.map(|cgroup| Launched {
                container: container.id.clone(),
                cgroup: cgroup.clone(),
                endpoint: self.endpoint(&container),
                image_id: container.image_id.clone(),
            });
            Found { container: container.id, identity, running }
        });
        Ok(found.collect())
    }

    /// Where a listed container's engine listens. One whose port is not known gets port 0, which no probe passes,
    /// so it is reaped and not adopted.
    fn endpoint(&self, container: &Listed) -> Endpoint {
        if labels::transport(&container.labels) == Some(Transport::Tcp) {
            let port = container.ports.iter().find(|(_, _, inside)| *inside == TCP_PORT);
            let port = port.map_or(0, |(_, port, _)| *port);
            return Endpoint::Tcp(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port));
        }
        Endpoint::Unix(socket_dir::path(&self.engine_dir, &container.name).join(SOCKET_NAME))
    }

    /// Never an error: a log is help for a person, and its absence is no further fault.
    async fn tail(&self, container: &str, lines: usize) -> Vec<String> {
        self.api.logs(container, lines).await.unwrap_or_else(|e| {
            tracing::debug!(container, reason = %e, "no log to be had, ignoring");
            Vec::new()
        })
    }

    async fn exit_code(&self, instance: &InstanceId) -> Option<i32> {
        let inspect = self.look(instance).await.ok().flatten()?;
        let ended = matches!(inspect.state.status.as_str(), "exited" | "stopped");
        // podman says -1 where it lost the process and never learned its code.
        (ended && inspect.state.exit_code >= 0).then_some(inspect.state.exit_code)
    }

    async fn groups(&self) -> Result<BTreeMap<String, PathBuf>, Fault> {
        let walk = tokio::task::spawn_blocking(|| cgroup::containers(&cgroup::mount()?));
        let walked = walk.await.unwrap_or_else(|e| Err(std::io::Error::other(e)));
        walked.map_err(|e| {
            Fault::new(FaultCode::Internal, format!("control groups could not be read ({e})"))
        })
    }

    fn remember(&self, instance: &InstanceId, id: &str) {
        self.table().insert(instance.clone(), id.to_owned());
    }

    fn known(&self, instance: &InstanceId) -> Option<String> {
        self.table().get(instance).cloned()
    }

    fn forget(&self, instance: &InstanceId) {
        self.table().remove(instance);
    }

    fn table(&self) -> MutexGuard<'_, BTreeMap<InstanceId, String>> {
        // Each use is a single call on the map: a panic cannot leave it half-changed.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The user that this process runs as. Where `/proc` is missing it does not matter: then no process's status can be
/// read to be compared with it.
fn own_uid() -> u32 {
    std::fs::metadata("/proc/self").map_or(0, |m| m.uid())
}

/// A random number for a name; the standard library seeds its hashers from the operating system.
fn random() -> u32 {
    RandomState::new().build_hasher().finish() as u32
}
