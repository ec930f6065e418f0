//! What there is: podman's list, the kernel's control groups, and the journal, each asked for what it knows best.
//!
//! Invariants: alive is what has processes, whatever podman says; what podman has forgotten is found by the ID that the journal
//! holds; what the journal holds and nobody has is struck, with the directory that was made for it.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use super::api::Listed;
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
        let open = self.journal.survey(&names, &self.namespace).await;
        let mut found: Vec<Found> = listed
            .into_iter()
            .map(|container| {
                let group = groups.get(&container.id).filter(|g| !cgroup::is_empty(g));
                let running = group.map(|cgroup| Launched {
                    container: container.id.clone(),
                    cgroup: cgroup.clone(),
                    endpoint: self.endpoint(&container),
                    image_id: container.image_id.clone(),
                });
                let identity = labels::identity(&container.labels);
                Found { container: container.id, identity, running }
            })
            .collect();
        for entry in open {
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
        self.remove_dir(&socket_dir::path(&self.engine_dir, &instance.container_name()));
        self.over(&instance).await;
    }

    /// Nothing of an instance is left.
    pub(super) async fn over(&self, instance: &InstanceId) {
        self.journal.end(|entry| entry.is_of(instance)).await;
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

    pub(super) async fn groups(&self) -> Result<BTreeMap<String, PathBuf>, Fault> {
        let walk = tokio::task::spawn_blocking(|| cgroup::containers(&cgroup::mount()?));
        let walked = walk.await.unwrap_or_else(|e| Err(std::io::Error::other(e)));
        walked.map_err(|e| {
            Fault::new(FaultCode::Internal, format!("control groups could not be read ({e})"))
        })
    }
}
