//! What podman says of itself and its host.
//!
//! Purpose: the facts that the checks at the start, and `hostler doctor`, judge. Owner: [`Containers::info`](super::Containers::info).
//! Invariant: what was not said is `None`, never a guess.

use std::path::PathBuf;

use crate::types::Bytes;

/// What podman said of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodmanInfo {
    /// `Libpod-API-Version`.
    pub version: String,
    /// Whether the service runs rootless.
    pub rootless: bool,
    /// What else it says of its host.
    pub host: PodmanHost,
}

/// Facts that podman knows best, because they hold where it runs. `None`: it did not say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodmanHost {
    /// Where it writes its events: `file`, `journald`, `none`.
    pub events_logger: Option<String>,
    /// `v2` or `v1`.
    pub cgroup_version: Option<String>,
    /// Controllers that its containers can have.
    pub cgroup_controllers: Vec<String>,
    /// How many user IDs its containers have, their root included.
    pub user_ids: Option<u64>,
    /// How many group IDs.
    pub group_ids: Option<u64>,
    /// Where images and containers are kept.
    pub storage: Option<PathBuf>,
    /// Size of that file system.
    pub storage_total: Option<Bytes>,
    /// Of that, in use by anybody.
    pub storage_used: Option<Bytes>,
    /// Where it puts what it fetches or loads before that is in the storage.
    pub copies: Option<PathBuf>,
    /// Whether SELinux confines its containers.
    pub selinux: Option<bool>,
}
