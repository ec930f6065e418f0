//! Proof that the path which models use works on this host.
//!
//! Purpose: readiness must not be claimed from "podman answers": user namespaces, mounts, networks and port
//! forwarding each fail on their own. Invariants: what is proven is what models use (the same mount, the same port
//! mapping, the same service); it needs no image but podman's own, because it starts a *pod*: its infra container
//! is made by podman itself from `catatonit`; everything is removed afterwards, and what a crash left is removed
//! before: what whoever made it does not run for any more, or what is so old that nobody can be at work with it. Proofs of others who live are
//! left alone: `hostler doctor` proves beside a daemon that starts.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::net::{TcpStream, UnixListener};

use super::error::{Cause, PodmanError};
use super::helper::is_older;
use super::inspect::{Inspect, Pod, published};
use super::{Inner, cgroup, create, labels, random, socket_dir};
use crate::supervisor::ports::{Endpoint, SOCKET_DIR, SOCKET_NAME, TCP_PORT};
use crate::types::{Fault, FaultCode, Transport, sandbox};

/// How long a published port may take to accept its first connection.
const ACCEPT: Duration = Duration::from_secs(5);
/// Written into the mounted directory and looked for from inside.
const MARKER: &str = "proof";

impl Inner {
    pub(super) async fn prove(&self, transport: Transport) -> Result<(), Fault> {
        let thing = thing(transport);
        let fault = |e: PodmanError| e.fault(FaultCode::StopFailed, &thing);
        self.sweep().await.map_err(fault)?;
        let name = format!("{}{:x}-{:08x}", self.prefix(), std::process::id(), random());
        let proven = self.attempt(transport, &name, &thing).await;
        let removed = self.remove_pod(&name).await.map_err(fault);
        self.remove_dir(&socket_dir::path(&self.engine_dir, &name)).await;
        proven.and(removed)
    }

    /// Names of our proofs begin with this; the hash keeps two daemons on one podman apart.
    fn prefix(&self) -> String {
        let digest = Sha256::digest(self.namespace.as_bytes());
        let hex: String = digest.iter().take(4).map(|b| format!("{b:02x}")).collect();
        format!("hostler-proof-{hex}-")
    }

    /// Removes pods and directories of proofs that crashes left.
    async fn sweep(&self) -> Result<(), PodmanError> {
        let (age, prefix) = (self.api.deadlines.leftover, self.prefix());
        for [pod, name, made] in self.api.proof_pods(&self.namespace).await? {
            if is_orphan(&prefix, &name) || is_older(&made, age) {
                self.remove_pod(&pod).await?;
            }
        }
        let Ok(entries) = std::fs::read_dir(&self.engine_dir) else { return Ok(()) };
        for entry in entries.flatten() {
            let (made, name) =
                (entry.metadata().and_then(|meta| meta.modified()), entry.file_name());
            let name = name.to_string_lossy();
            let old = made.is_ok_and(|made| made.elapsed().is_ok_and(|since| since > age));
            if name.starts_with(&prefix) && (old || is_orphan(&prefix, &name)) {
                self.remove_dir(&entry.path()).await;
            }
        }
        Ok(())
    }

    async fn remove_pod(&self, pod: &str) -> Result<(), PodmanError> {
        match self.api.pod_remove(pod).await {
            Err(e) if e.cause() != Some(Cause::NoSuchContainer) => Err(e),
            _ => Ok(()),
        }
    }

    async fn attempt(&self, transport: Transport, name: &str, thing: &str) -> Result<(), Fault> {
        let dir = match transport {
            Transport::Unix => {
                let dir = socket_dir::make(&self.engine_dir, name)?;
                talk(&dir).await.map_err(|why| failed(thing, &why))?;
                Some(dir)
            }
            Transport::Tcp => None,
        };
        let fault = |e: PodmanError| e.fault(FaultCode::StartFailed, thing);
        let body = self.pod(name, dir.as_deref());
        let id = self.api.pod_create(&body).await.map_err(fault)?;
        self.api.pod_start(&id).await.map_err(fault)?;
        let pod = self.api.pod_inspect(&id).await.map_err(fault)?;
        let infra = self.api.inspect(&pod.infra).await.map_err(fault)?;
        let alive = self.group(&infra.id).await?.is_some_and(|g| !cgroup::is_empty(&g));
        if !alive {
            let why = "its container does not run, or has no control group of its own; the service user needs a running user manager (\"loginctl enable-linger hostler\") and catatonit";
            return Err(failed(thing, why));
        }
        user_namespace(&infra).map_err(|why| failed(thing, &why))?;
        match dir {
            Some(dir) => mounted(&infra, &dir),
            None => accepts(&pod).await,
        }
        .map_err(|why| failed(thing, &why))
    }

    fn pod(&self, name: &str, dir: Option<&Path>) -> Value {
        let mut body = json!({
            "name": name,
            "labels": {labels::PROOF: self.namespace},
        });
        if let Some(fields) = body.as_object_mut() {
            match dir {
                Some(dir) => {
                    fields.insert("netns".into(), json!({"nsmode": "none"}));
                    fields.insert("shared_namespaces".into(), json!(["ipc"]));
                    fields.insert("mounts".into(), json!([create::socket_mount(dir)]));
                }
                None => {
                    fields.insert("portmappings".into(), create::port_mapping());
                }
            }
        }
        body
    }
}

/// Whether the process that made a proof of this name is gone. All who make some are of one user, who sees its own processes. `false` where
/// another has its number now: age tells then.
fn is_orphan(prefix: &str, name: &str) -> bool {
    let pid = name.strip_prefix(prefix).and_then(|rest| rest.split_once('-'));
    let pid = pid.and_then(|(pid, _)| u32::from_str_radix(pid, 16).ok());
    pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists())
}

fn thing(transport: Transport) -> String {
    format!("the proof of the {} path to engines", labels::transport_word(transport))
}

fn failed(thing: &str, why: &str) -> Fault {
    Fault::new(FaultCode::StartFailed, format!("{thing} failed: {why}"))
}

/// A Unix socket in the directory accepts a connection, over the way that models' have.
async fn talk(dir: &Path) -> Result<(), String> {
    let path = dir.join(SOCKET_NAME);
    let fail = |e: std::io::Error| format!("a Unix socket at {path:?} does not work ({e})");
    let listener = UnixListener::bind(&path).map_err(fail)?;
    Endpoint::connect_unix(&path).await.map_err(fail)?;
    listener.accept().await.map_err(fail)?;
    std::fs::write(dir.join(MARKER), MARKER).map_err(fail)
}

/// The container's IDs are mapped. `Ok` as well where the map cannot be read, in a daemon that hides other users'
/// processes.
fn user_namespace(infra: &Inspect) -> Result<(), String> {
    let path = format!("/proc/{}/uid_map", infra.state.pid);
    let Ok(map) = std::fs::read_to_string(path) else { return Ok(()) };
    uid_map(&map)
}

/// Judges a `uid_map`: engines need IDs 0 and 1000, mapped to somebody else's than the host's.
fn uid_map(map: &str) -> Result<(), String> {
    let mut covered = false;
    for line in map.lines() {
        let numbers: Vec<u64> = line.split_whitespace().flat_map(str::parse).collect();
        let [inside, outside, count] = numbers[..] else { continue };
        if inside == 0 && outside == 0 && count == u64::from(u32::MAX) {
            return Err("containers do not get a user namespace: podman must run as the service user, not as root".into());
        }
        covered |= (inside..inside + count).contains(&1000);
    }
    if covered {
        return Ok(());
    }
    Err(format!(
        "the user namespace has no ID 1000 (map: {:?}); give the service user subordinate IDs: \"usermod --add-subuids 100000-165535 --add-subgids 100000-165535 hostler\", then \"podman system migrate\" as that user",
        map.split_whitespace().collect::<Vec<_>>().join(" ")
    ))
}

/// The directory is mounted in the container; seen from inside where the kernel lets us.
fn mounted(infra: &Inspect, dir: &Path) -> Result<(), String> {
    if infra.host_config.network_mode.as_deref() != Some("none") {
        return Err(format!("its network is {:?}, not none", infra.host_config.network_mode));
    }
    let told = infra.mounts.iter().flatten().any(|m| {
        m.kind == "bind" && m.rw && m.destination == SOCKET_DIR && Path::new(&m.source) == dir
    });
    if !told {
        return Err(format!("podman did not mount {dir:?} at {SOCKET_DIR}"));
    }
    let proc = PathBuf::from(format!("/proc/{}", infra.state.pid));
    if let Ok(mounts) = std::fs::read_to_string(proc.join("mountinfo"))
        && !mounts.lines().any(|line| line.split(' ').nth(4) == Some(SOCKET_DIR))
    {
        return Err(format!("{SOCKET_DIR} is no mount point in the container"));
    }
    let inside = proc.join("root").join(SOCKET_DIR.trim_start_matches('/'));
    if std::fs::read_dir(&inside).is_ok() && !inside.join(MARKER).exists() {
        return Err(format!("{SOCKET_DIR} in the container is not {dir:?}"));
    }
    Ok(())
}

/// The published port accepts a connection; nobody listens behind it, so nothing is said.
async fn accepts(pod: &Pod) -> Result<(), String> {
    let Some(address) = published(pod.infra_config.port_bindings.as_ref(), TCP_PORT) else {
        return Err("podman published no port".into());
    };
    if !address.ip().is_loopback() {
        return Err(format!("podman published the port at {address}, not on loopback"));
    }
    let connect = async {
        loop {
            match TcpStream::connect(address).await {
                Ok(_) => return Ok(()),
                Err(error) if sandbox::forbids(&error) => {
                    return Err(sandbox::unconnected(&error));
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    };
    tokio::time::timeout(ACCEPT, connect).await.unwrap_or_else(|_| {
        Err(format!(
            "the published port {address} accepts no connection within {ACCEPT:?}; rootless networking (pasta or slirp4netns) does not work for the service user"
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proof_is_an_orphan_when_its_maker_is_gone() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let name = |pid: u32| format!("p-{pid:x}-00000001");
        assert!(!is_orphan("p-", &name(std::process::id())));
        assert!(!is_orphan("p-", &name(child.id())), "it was not waited for");
        child.wait().unwrap();
        assert!(is_orphan("p-", &name(child.id())));
        for other in ["", "p-", "p-zz-1", "p-1", "q-ffffffff-1"] {
            assert!(!is_orphan("p-", other), "{other}");
        }
    }

    #[test]
    fn only_a_real_user_namespace_with_subordinate_ids_passes() {
        uid_map("         0        996          1\n         1     100000      65536\n").unwrap();
        assert!(uid_map("0 0 4294967295\n").unwrap_err().contains("not as root"));
        assert!(uid_map("0 996 1\n").unwrap_err().contains("add-subuids"));
        assert!(uid_map("").is_err());
    }

    #[tokio::test]
    async fn a_socket_directory_is_talked_through() {
        let dir = tempfile::tempdir().unwrap();
        talk(dir.path()).await.unwrap();
        assert!(dir.path().join(MARKER).exists());
        assert!(talk(&dir.path().join("gone")).await.unwrap_err().contains("does not work"));
    }
}
