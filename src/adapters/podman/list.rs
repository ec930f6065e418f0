//! What there is: podman's list, the kernel's control groups, and the journal, each asked for what it knows best.
//!
//! Invariants: alive is what has processes, whatever podman says; what podman has forgotten is found by the ID that the journal
//! holds; what the journal holds and nobody has is struck, with the directory that was made for it; what podman ends already has
//! no specification that anybody could adopt it by.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use super::api::Listed;
use super::error::Cause;
use super::journal::Entry;
use super::{Inner, cgroup, labels, socket_dir};
use crate::supervisor::ports::{Endpoint, Found, Launched, SOCKET_NAME, TCP_PORT};
use crate::types::{Fault, FaultCode, InstanceId, SpecHash, Transport};

impl Inner {
    pub(super) async fn list(&self) -> Result<Vec<Found>, Fault> {
        let listed = self.api.list(labels::NAMESPACE, &self.namespace).await;
        let listed =
            listed.map_err(|e| e.fault(FaultCode::PodmanUnreachable, "the list of containers"))?;
        // After the list: what is in it and has no group now has ended, not begun.
        let groups = self.groups().await?;
        let names: Vec<_> = listed.iter().map(|c| (c.id.clone(), c.labels.clone())).collect();
        let mut found = Vec::new();
        for container in listed {
            let group = groups.get(&container.id).filter(|g| !cgroup::is_empty(g));
            let running = match group {
                None => None,
                Some(cgroup) => Some(Launched {
                    container: container.id.clone(),
                    cgroup: cgroup.clone(),
                    endpoint: self.endpoint(&container).await?,
                    image_id: container.image_id.clone(),
                }),
            };
            let mut identity = labels::identity(&container.labels);
            // An earlier daemon was killed while podman stopped it, and podman goes on: it serves nobody for long, so it fits nothing.
            if let Some(identity) = identity.as_mut().filter(|_| container.goes) {
                identity.spec_hash = SpecHash::NONE;
            }
            found.push(Found { container: container.id, identity, running });
        }
        // Last, when nothing can fail any more: what the journal holds and podman has forgotten is told once.
        for entry in self.journal.survey(&names, &self.namespace).await {
            match self.forgotten(&entry, &groups) {
                Some(alive) => found.push(alive),
                None => self.strike(&entry).await,
            }
        }
        Ok(found)
    }

    /// What podman does not know any more and still runs. It fits no specification: podman could not stop it in order.
    fn forgotten(&self, entry: &Entry, groups: &BTreeMap<String, PathBuf>) -> Option<Found> {
        let container = entry.container.clone()?;
        let cgroup = groups.get(&container).filter(|group| !cgroup::is_empty(group))?.clone();
        let mut identity = labels::identity(&entry.labels)?;
        tracing::warn!(%container, instance = %identity.instance, "podman has forgotten {}, which still runs: it is ended", identity.instance);
        let dir = socket_dir::path(&self.engine_dir, &identity.instance.container_name());
        identity.spec_hash = SpecHash::NONE;
        let endpoint = Endpoint::Unix(dir.join(SOCKET_NAME));
        let running =
            Launched { container: container.clone(), cgroup, endpoint, image_id: String::new() };
        Some(Found { container, identity: Some(identity), running: Some(running) })
    }

    /// It was begun and came to nothing, or went while nobody looked. What podman may still be making of it carries our labels.
    async fn strike(&self, entry: &Entry) {
        let Some(identity) = labels::identity(&entry.labels) else { return };
        let instance = identity.instance;
        tracing::info!(%instance, "nothing is left of {instance}, which an earlier daemon began");
        self.remove_dir(&socket_dir::path(&self.engine_dir, &instance.container_name())).await;
        self.over(&instance).await;
    }

    /// Nothing of an instance is left.
    pub(super) async fn over(&self, instance: &InstanceId) {
        self.journal.end(|entry| entry.is_of(instance)).await;
    }

    /// Where a listed container's engine listens. One whose port is not known gets port 0, which no probe passes,
    /// so it is reaped and not adopted.
    async fn endpoint(&self, container: &Listed) -> Result<Endpoint, Fault> {
        if labels::transport(&container.labels) != Some(Transport::Tcp) {
            let dir = socket_dir::path(&self.engine_dir, &container.name);
            return Ok(Endpoint::Unix(dir.join(SOCKET_NAME)));
        }
        let port = container.ports.iter().find(|(_, _, inside)| *inside == TCP_PORT);
        let port = port.map_or(0, |(_, port, _)| *port);
        let key = match labels::key_variable(&container.labels) {
            None => None,
            // A list says nothing of the environment.
            Some(_) => match self.api.inspect(&container.id).await {
                Ok(inspect) => inspect.config.key(),
                // It has just gone, and nobody will ask it.
                Err(e) if e.cause() == Some(Cause::NoSuchContainer) => None,
                Err(e) => {
                    return Err(e.fault(FaultCode::PodmanUnreachable, &container.name));
                }
            },
        };
        Ok(Endpoint::Tcp(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port), key))
    }

    pub(super) async fn groups(&self) -> Result<BTreeMap<String, PathBuf>, Fault> {
        let walk =
            tokio::task::spawn_blocking(|| cgroup::containers(&cgroup::mount()?, super::own_uid()));
        let walked = walk.await.unwrap_or_else(|e| Err(std::io::Error::other(e)));
        walked.map_err(|e| {
            Fault::new(FaultCode::Internal, format!("control groups could not be read ({e})"))
        })
    }
}
