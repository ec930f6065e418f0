//! What podman says of its host, as far as the checks need it. Every field may be missing or null, as in [`super::inspect`].

use std::path::PathBuf;

use serde::Deserialize;

use crate::supervisor::ports::PodmanHost;
use crate::types::Bytes;

/// `GET /libpod/info`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Info {
    /// The host.
    pub host: Host,
    /// Its storage.
    pub store: Store,
}

/// `host`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Host {
    /// Whether it runs rootless, and SELinux.
    pub security: Security,
    event_logger: Option<String>,
    cgroup_version: Option<String>,
    cgroup_controllers: Option<Vec<String>>,
    id_mappings: Option<IdMappings>,
}

/// `host.security`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Security {
    /// Whether podman runs rootless.
    pub rootless: Option<bool>,
    selinux_enabled: Option<bool>,
}

/// `host.idMappings`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct IdMappings {
    uidmap: Option<Vec<Range>>,
    gidmap: Option<Vec<Range>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Range {
    size: u64,
}

/// `store`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Store {
    graph_root: Option<PathBuf>,
    graph_root_allocated: Option<u64>,
    graph_root_used: Option<u64>,
    image_copy_tmp_dir: Option<PathBuf>,
}

impl From<Info> for PodmanHost {
    fn from(info: Info) -> Self {
        let Info { host, store } = info;
        let count = |ranges: Option<Vec<Range>>| ranges.map(|r| r.iter().map(|r| r.size).sum());
        let ids = host.id_mappings.unwrap_or_default();
        Self {
            events_logger: host.event_logger,
            cgroup_version: host.cgroup_version,
            cgroup_controllers: host.cgroup_controllers.unwrap_or_default(),
            user_ids: count(ids.uidmap),
            group_ids: count(ids.gidmap),
            storage: store.graph_root,
            storage_total: store.graph_root_allocated.map(Bytes),
            storage_used: store.graph_root_used.map(Bytes),
            copies: store.image_copy_tmp_dir.filter(|dir| dir.is_absolute()),
            selinux: host.security.selinux_enabled,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_podman_says_and_what_it_leaves_out() {
        let text = r#"{"host":{"eventLogger":"file","cgroupVersion":"v2","cgroupControllers":["cpu"],
            "idMappings":{"uidmap":[{"container_id":0,"host_id":996,"size":1},
            {"container_id":1,"host_id":100000,"size":65536}],"gidmap":null},
            "security":{"rootless":true,"selinuxEnabled":false}},
            "store":{"graphRoot":"/s","graphRootAllocated":100,"graphRootUsed":40,
            "imageCopyTmpDir":"/var/tmp"}}"#;
        let info: Info = serde_json::from_str(text).unwrap();
        assert_eq!(info.host.security.rootless, Some(true));
        let host = PodmanHost::from(info);
        assert_eq!((host.user_ids, host.group_ids), (Some(65537), None));
        assert_eq!(host.events_logger.as_deref(), Some("file"));
        assert_eq!((host.storage_total, host.storage_used), (Some(Bytes(100)), Some(Bytes(40))));
        assert_eq!(host.copies, Some("/var/tmp".into()));
        let info: Info = serde_json::from_str("{}").unwrap();
        assert_eq!(PodmanHost::from(info), PodmanHost::default());
    }
}
