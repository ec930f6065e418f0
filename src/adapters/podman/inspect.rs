//! The parts of podman's answers that are read.
//!
//! Purpose: decode only what is needed, so that a field whose type changes between podman's versions cannot break
//! an answer. Every field may be missing or null; who reads one decides what that means.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use serde::Deserialize;

use super::labels;
use crate::types::Secret;

/// `GET /libpod/containers/ID/json`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Inspect {
    /// 64 digits.
    pub id: String,
    /// The container's name.
    pub name: String,
    /// When it was made, in RFC 3339.
    pub created: String,
    /// ID of its image.
    pub image: String,
    /// What podman believes of its process.
    pub state: State,
    /// What was asked for.
    pub config: Config,
    /// What was asked of the host.
    pub host_config: HostConfig,
    /// Capabilities of the process.
    pub effective_caps: Option<Vec<String>>,
    /// Capabilities it could ever have.
    pub bounding_caps: Option<Vec<String>>,
    /// Published ports.
    pub network_settings: NetworkSettings,
    /// Binds and image volumes.
    pub mounts: Option<Vec<Mount>>,
}

/// `GET /libpod/images/NAME/json`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Image {
    /// 64 digits: the digest of its configuration.
    pub id: String,
    /// Those of its manifest.
    pub annotations: Option<BTreeMap<String, serde_json::Value>>,
}

/// `State`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct State {
    /// `created`, `running`, `exited`, …
    pub status: String,
    /// Whether podman believes that it runs.
    pub running: bool,
    /// The first process, 0 when there is none.
    pub pid: u32,
    /// Meaningful when `status` is `exited`.
    pub exit_code: i32,
    /// Its monitor saw the kernel kill a process of its group for want of memory.
    #[serde(rename = "OOMKilled")]
    pub oom_killed: bool,
    /// When it last ended, in RFC 3339.
    pub finished_at: String,
}

/// `Config`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Config {
    /// `1000:1000`.
    pub user: Option<String>,
    /// All labels.
    pub labels: Option<BTreeMap<String, String>>,
    /// Seconds from SIGTERM to SIGKILL.
    pub stop_timeout: Option<u64>,
    /// `NAME=VALUE`; one of them may be the engine's key.
    pub env: Option<Vec<Secret>>,
}

impl Config {
    /// The key that the engine asks for, as its container was made.
    #[must_use]
    pub fn key(&self) -> Option<Secret> {
        let variable = labels::key_variable(self.labels.as_ref()?)?;
        let value = |entry: &Secret| {
            let value = entry.0.strip_prefix(variable)?.strip_prefix('=')?;
            Some(Secret(value.to_owned()))
        };
        self.env.as_ref()?.iter().find_map(value)
    }
}

/// `HostConfig`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct HostConfig {
    /// `none`, `slirp4netns`, `pasta`, …
    pub network_mode: Option<String>,
    /// Holds `no-new-privileges`.
    pub security_opt: Option<Vec<String>>,
    /// Whether the root is mounted read-only.
    pub readonly_rootfs: bool,
    /// Whether all restrictions are off.
    pub privileged: bool,
    /// `private`; `shareable` in podman 4.
    pub ipc_mode: Option<String>,
    /// `private`.
    pub pid_mode: Option<String>,
}

/// `NetworkSettings`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct NetworkSettings {
    /// By `8000/tcp`.
    pub ports: Option<Ports>,
}

/// Published ports by `PORT/PROTOCOL`.
pub type Ports = BTreeMap<String, Option<Vec<HostPort>>>;

/// One end of a published port.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct HostPort {
    /// Empty: all addresses.
    pub host_ip: String,
    /// A number, as text.
    pub host_port: String,
}

/// One mount.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Mount {
    /// `bind`, `image`, …
    #[serde(rename = "Type")]
    pub kind: String,
    /// On the host, or the image.
    pub source: String,
    /// In the container.
    pub destination: String,
    /// Writable.
    #[serde(rename = "RW")]
    pub rw: bool,
}

/// `GET /libpod/pods/ID/json`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Pod {
    /// The container that holds the pod's namespaces.
    #[serde(rename = "InfraContainerID")]
    pub infra: String,
    /// Holds the published ports.
    #[serde(rename = "InfraConfig")]
    pub infra_config: InfraConfig,
}

/// `InfraConfig` of a pod.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct InfraConfig {
    /// By `8000/tcp`.
    pub port_bindings: Option<Ports>,
}

/// The loopback address at which `port` of a container is published.
#[must_use]
pub fn published(ports: Option<&Ports>, port: u16) -> Option<SocketAddr> {
    let ends = ports?.get(&format!("{port}/tcp"))?.as_ref()?;
    ends.iter().find_map(|end| {
        let ip = match end.host_ip.as_str() {
            "" | "0.0.0.0" => IpAddr::V4(Ipv4Addr::LOCALHOST),
            text => text.parse().ok()?,
        };
        let port: u16 = end.host_port.parse().ok().filter(|port| *port != 0)?;
        Some(SocketAddr::new(ip, port))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_and_null_fields_are_no_errors() {
        let text = r#"{"Id":"a","State":{"Pid":7,"New":[]},"EffectiveCaps":null,"Config":{"StopSignal":"SIGTERM"},
            "NetworkSettings":{"Ports":{"8000/tcp":[{"HostIp":"127.0.0.1","HostPort":"37283"}],"9/tcp":null}}}"#;
        let inspect: Inspect = serde_json::from_str(text).unwrap();
        assert_eq!((inspect.id.as_str(), inspect.state.pid), ("a", 7));
        let ports = inspect.network_settings.ports.as_ref();
        assert_eq!(published(ports, 8000), Some("127.0.0.1:37283".parse().unwrap()));
        assert_eq!(published(ports, 9), None);
        assert_eq!(published(ports, 10), None);
        assert_eq!(published(None, 8000), None);
        assert_eq!(inspect.config.key(), None);
        let text = r#"{"Labels":{"io.hostler.key-variable":"KEY"},"Env":["PATH=/bin","KEYS=x","KEY=a=b"]}"#;
        let config: Config = serde_json::from_str(text).unwrap();
        assert_eq!(config.key(), Some(Secret("a=b".into())));
        assert!(!format!("{config:?}").contains("a=b"));
        serde_json::from_str::<Inspect>("{}").unwrap();
        serde_json::from_str::<Pod>("{}").unwrap();
    }

    #[test]
    fn an_image_may_have_annotations() {
        for text in [r#"{"Id":"a"}"#, r#"{"Id":"a","Annotations":null,"Labels":{"a":"b"}}"#] {
            let image: Image = serde_json::from_str(text).unwrap();
            assert!(image.id == "a" && image.annotations.is_none());
        }
        let image: Image = serde_json::from_str(r#"{"Annotations":{"k":"v","n":1}}"#).unwrap();
        assert_eq!(image.annotations.unwrap().into_keys().collect::<Vec<_>>(), ["k", "n"]);
    }

    #[test]
    fn fuzz_podman_json() {
        use super::super::info::Info;
        let words =
            ["null", "\"\"", "{", "}", "[", "]", ":", ",", "-1", "1e9", "\"8000/tcp\"", "\"Pid\""];
        crate::fuzz::fuzz("podman", &words, |input| {
            let _ = serde_json::from_slice::<Info>(input);
            let _ = serde_json::from_slice::<Pod>(input);
            let _ = serde_json::from_slice::<Image>(input);
            if let Ok(found) = serde_json::from_slice::<Inspect>(input) {
                let end = published(found.network_settings.ports.as_ref(), 8000);
                assert!(end.is_none_or(|end| end.port() != 0));
            }
        });
    }
}
