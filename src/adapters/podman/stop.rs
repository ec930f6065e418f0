//! Ending a container for certain.
//!
//! Purpose: stop, reap and the undoing of a launch. Invariants: only containers with our labels are touched;
//! success means that podman does not know the container any more *and* that the kernel has no process in its
//! control group.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::api::Listed;
use super::error::{Cause, PodmanError, kill_command};
use super::inspect::Inspect;
use super::launch::is_ours;
use super::{Inner, cgroup, labels, socket_dir};
use crate::types::{Fault, FaultCode, InstanceId};

/// Assumed where a container has none of its own: podman's default.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);
/// Between looks at a control group that should become empty.
const EMPTY_LOOK: Duration = Duration::from_millis(20);

/// A container of ours that is to go.
struct Doomed {
    id: String,
    name: String,
    stop_timeout: Duration,
}

impl From<Inspect> for Doomed {
    fn from(inspect: Inspect) -> Self {
        let stop_timeout = inspect.config.stop_timeout.map_or(STOP_TIMEOUT, Duration::from_secs);
        Self { id: inspect.id, name: inspect.name, stop_timeout }
    }
}

impl From<Listed> for Doomed {
    fn from(listed: Listed) -> Self {
        Self { id: listed.id, name: listed.name, stop_timeout: STOP_TIMEOUT }
    }
}

impl Inner {
    pub(super) async fn stop(&self, instance: &InstanceId) -> Result<(), Fault> {
        let thing = format!("model {} (container {instance})", instance.model);
        let found = self.doomed(instance).await;
        match found.map_err(|e| e.fault(FaultCode::StopFailed, &thing))? {
            Some(doomed) => self.end(&doomed, &thing).await?,
            // podman may have forgotten what still runs; we have not.
            None => {
                if let Some(id) = self.journal.container(instance) {
                    self.extinguish(&id, &thing).await?;
                }
            }
        }
        self.remove_dir(&socket_dir::path(&self.engine_dir, &instance.container_name())).await;
        self.over(instance).await;
        Ok(())
    }

    pub(super) async fn reap(&self, container: &str) -> Result<(), Fault> {
        let thing = format!("container {container}");
        let doomed = match self.api.inspect(container).await {
            Ok(inspect) => {
                let labels = inspect.config.labels.as_ref();
                if labels.and_then(|l| l.get(labels::NAMESPACE)) != Some(&self.namespace) {
                    let text = format!(
                        "{thing} does not belong to namespace {:?}, ignoring it",
                        self.namespace
                    );
                    return Err(Fault::new(FaultCode::StopFailed, text));
                }
                inspect.into()
            }
            Err(e) if e.cause() == Some(Cause::NoSuchContainer) => {
                self.extinguish(container, &thing).await?;
                self.journal.end(|entry| entry.container.as_deref() == Some(container)).await;
                return Ok(());
            }
            Err(e) => {
                let listed = self.half_removed(e, |listed| listed.id == container).await;
                listed.map_err(|e| e.fault(FaultCode::StopFailed, &thing))?.into()
            }
        };
        self.end(&doomed, &thing).await?;
        // podman's names hold no slash, so this stays below the engines' directory.
        if !doomed.name.is_empty() && !doomed.name.contains('/') {
            self.remove_dir(&socket_dir::path(&self.engine_dir, &doomed.name)).await;
        }
        self.journal.end(|entry| entry.container.as_deref() == Some(&doomed.id)).await;
        Ok(())
    }

    /// The container of an instance, to be ended.
    async fn doomed(&self, instance: &InstanceId) -> Result<Option<Doomed>, PodmanError> {
        match self.look(instance).await {
            Ok(found) => Ok(found.map(Doomed::from)),
            Err(e) => {
                let is_its = |listed: &Listed| {
                    labels::identity(&listed.labels).is_some_and(|i| i.instance == *instance)
                };
                Ok(Some(self.half_removed(e, is_its).await?.into()))
            }
        }
    }

    /// One of ours that podman lists and refuses to inspect, with `refused`: it was killed while it removed it, and says of what
    /// it has lost that it does not know it. It can still be removed, and only that ends it.
    async fn half_removed(
        &self,
        refused: PodmanError,
        which: impl Fn(&Listed) -> bool,
    ) -> Result<Listed, PodmanError> {
        if !matches!(refused, PodmanError::Refused { .. }) {
            return Err(refused);
        }
        let all = self.api.list(labels::NAMESPACE, &self.namespace).await?;
        let found = all.into_iter().find(which).ok_or(refused)?;
        tracing::warn!(container = %found.id, "podman lost a part of {} and still lists it, removing it", found.name);
        Ok(found)
    }

    /// The gentle way, then the certain one.
    async fn end(&self, doomed: &Doomed, thing: &str) -> Result<(), Fault> {
        match self.api.stop(&doomed.id, doomed.stop_timeout).await {
            Ok(()) => {}
            Err(e @ PodmanError::Unreachable { .. }) => {
                return Err(e.fault(FaultCode::StopFailed, thing));
            }
            // Whatever podman's trouble is, removal by force is the next step in any case.
            Err(e) => {
                tracing::debug!(container = %doomed.id, reason = %e, "stop failed, removing by force")
            }
        }
        self.bury(&doomed.id).await
    }

    /// Buries what is left of an instance, if anything is.
    pub(super) async fn bury_instance(&self, instance: &InstanceId) -> Result<(), Fault> {
        match self.doomed(instance).await {
            Ok(Some(doomed)) => self.bury(&doomed.id).await,
            Ok(None) => Ok(()),
            Err(e) => Err(e.fault(FaultCode::StopFailed, "the look for leftovers")),
        }
    }

    /// Removes a container by force and makes sure that nothing of it is left.
    pub(super) async fn bury(&self, id: &str) -> Result<(), Fault> {
        let thing = format!("container {id}");
        // Looked up first: an empty group disappears, and with it the proof that it is the right one.
        let group = self.group(id).await?;
        let removed = self.api.remove(id).await;
        let gone = |e: &PodmanError| e.cause() == Some(Cause::NoSuchContainer);
        match removed {
            Ok(()) => {}
            Err(e) if gone(&e) => {}
            Err(e) => match self.api.inspect(id).await {
                Err(look) if gone(&look) => {}
                _ => return Err(e.fault(FaultCode::StopFailed, &thing)),
            },
        }
        match self.api.inspect(id).await {
            Err(e) if gone(&e) => {}
            Err(e) => return Err(e.fault(FaultCode::StopFailed, &thing)),
            Ok(_) => {
                let text = format!("{thing}: podman removed it without an error, but still has it");
                return Err(Fault::new(FaultCode::StopFailed, text));
            }
        }
        match group {
            Some(group) => self.empty(&group, &thing).await,
            None => self.extinguish(id, &thing).await,
        }
    }

    /// Kills what runs in the control group of a container that podman does not know.
    async fn extinguish(&self, id: &str, thing: &str) -> Result<(), Fault> {
        match self.group(id).await? {
            Some(group) => self.empty(&group, thing).await,
            None => Ok(()),
        }
    }

    /// Waits until a group is empty; kills it if need be.
    async fn empty(&self, group: &Path, thing: &str) -> Result<(), Fault> {
        let patience = self.api.deadlines.dead;
        if wait_empty(group, patience / 5).await {
            return Ok(());
        }
        let killed = self.kill(group).await;
        if killed.is_ok() {
            tracing::warn!(cgroup = %group.display(), "processes outlived their container, killed them");
        }
        if wait_empty(group, patience).await {
            return Ok(());
        }
        let scope = group.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let why = killed.err().map(|e| format!(" ({e})")).unwrap_or_default();
        Err(Fault::new(
            FaultCode::StopFailed,
            format!(
                "{thing}: processes {:?} are still alive in {}{why}; run \"{}\", and if they stay, look at \"dmesg\": the driver holds them",
                cgroup::pids(group).unwrap_or_default(),
                group.display(),
                kill_command(&scope)
            ),
        ))
    }

    /// Kills a group: by the kernel, or where that is not allowed by the manager that it belongs to.
    async fn kill(&self, group: &Path) -> Result<(), String> {
        let Err(refused) = cgroup::kill(group) else { return Ok(()) };
        let scope = group.file_name().unwrap_or_default().to_string_lossy().into_owned();
        match &self.scopes {
            Some(scopes) => {
                scopes.kill(scope).await.map_err(|e| format!("cgroup.kill: {refused}; {e}"))
            }
            None => Err(format!("cgroup.kill: {refused}")),
        }
    }

    /// The instance's container as podman knows it; `None`: no such container, or one that is not ours.
    pub(super) async fn look(&self, instance: &InstanceId) -> Result<Option<Inspect>, PodmanError> {
        match self.api.inspect(&instance.container_name()).await {
            Ok(inspect) => Ok(Some(inspect).filter(|i| is_ours(i, &self.namespace, instance))),
            Err(e) if e.cause() == Some(Cause::NoSuchContainer) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// The control group of a container; `None`: it has none, so nothing of it runs.
    pub(super) async fn group(&self, id: &str) -> Result<Option<PathBuf>, Fault> {
        Ok(self.groups().await?.remove(id))
    }
}

async fn wait_empty(group: &Path, patience: Duration) -> bool {
    let end = tokio::time::Instant::now() + patience;
    loop {
        if cgroup::is_empty(group) {
            return true;
        }
        if tokio::time::Instant::now() >= end {
            return false;
        }
        tokio::time::sleep(EMPTY_LOOK).await;
    }
}
