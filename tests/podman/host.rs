//! A real podman and looks past it.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hostler::adapters::podman::Podman;
use hostler::supervisor::ports::{ContainerSpec, Containers, Launched};
use hostler::types::{Fault, FaultCode, InstanceId};
use serde_json::Value;

use crate::support::{entries, progress, raw, spec, unique, until};

/// A podman, a namespace of its own and a directory for sockets.
pub struct Host {
    pub podman: Podman,
    pub socket: PathBuf,
    pub image: String,
    pub engines: PathBuf,
    pub namespace: String,
    _dir: tempfile::TempDir,
}

impl Host {
    pub fn new() -> Self {
        let var = |name: &str| std::env::var(name).unwrap_or_else(|_| panic!("set {name}"));
        let socket = PathBuf::from(var("HOSTLER_TEST_PODMAN_SOCKET"));
        let image = var("HOSTLER_TEST_IMAGE");
        let dir = tempfile::tempdir().unwrap();
        let engines = dir.path().join("e");
        let namespace = format!("test-{:x}", unique());
        let podman = Podman::new(socket.clone(), namespace.clone(), engines.clone(), false);
        Self { podman, socket, image, engines, namespace, _dir: dir }
    }

    pub fn spec(&self, script: &str) -> ContainerSpec {
        spec(&self.image, script)
    }

    pub async fn launch(&self, spec: &ContainerSpec) -> Launched {
        self.podman.launch(spec.clone(), progress().0).await.unwrap()
    }

    pub fn inspect(&self, instance: &InstanceId) -> (u16, Value) {
        raw(&self.socket, "GET", &format!("/containers/{instance}/json"), &Value::Null)
    }

    /// Waits for a line in the container's log; returns the whole log.
    pub async fn log_with(&self, instance: &InstanceId, line: &str) -> Vec<String> {
        for _ in 0..100 {
            let log = self.podman.log_tail(instance.clone(), 200).await;
            if log.iter().any(|l| l == line) {
                return log;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("{line:?} is not in {:?}", self.podman.log_tail(instance.clone(), 200).await);
    }

    /// Makes of a container that has ended what a launch makes of one, and removes it.
    pub async fn fault_of(&self, instance: &InstanceId, launched: &Launched) -> Fault {
        let group = &launched.cgroup;
        until("its end", Duration::from_secs(5), || self.podman.pids(group).unwrap().is_empty())
            .await;
        let code = self.podman.ending(instance.clone()).await;
        let log = self.podman.log_tail(instance.clone(), 20).await;
        self.podman.stop(instance.clone()).await.unwrap();
        let text = format!("exit code {}", code.unwrap().code);
        Fault::new(FaultCode::EngineExited, text).with_log(log)
    }

    /// Nothing of the namespace is left: not in podman, not on disk, not in the kernel.
    pub async fn assert_clean(&self, launched: &[&Launched]) {
        assert_eq!(self.podman.list().await.unwrap(), []);
        assert_eq!(entries(&self.engines), [""; 0].map(PathBuf::from));
        for l in launched {
            assert_eq!(self.podman.pids(&l.cgroup).unwrap(), [0; 0]);
            // systemd collects an empty scope a moment later.
            until("the scope's end", Duration::from_secs(5), || !scope_exists(&l.container)).await;
        }
    }
}

pub fn scope_exists(id: &str) -> bool {
    fn search(dir: &Path, id: &str) -> bool {
        fs::read_dir(dir).into_iter().flatten().flatten().any(|e| {
            e.file_type().is_ok_and(|t| t.is_dir())
                && (e.file_name().to_string_lossy().contains(id) || search(&e.path(), id))
        })
    }
    search(Path::new("/sys/fs/cgroup"), id)
}

pub fn status(pid: u32, field: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find_map(|l| l.strip_prefix(field)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("no {field} in {text}")).trim().to_owned()
}

/// A test that failed leaves nothing either.
impl Drop for Host {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        let label =
            format!("%7B%22label%22%3A%5B%22io.hostler.namespace%3D{}%22%5D%7D", self.namespace);
        let path = format!("/containers/json?all=true&filters={label}");
        let (_, list) = raw(&self.socket, "GET", &path, &Value::Null);
        for container in list.as_array().into_iter().flatten() {
            let id = container["Id"].as_str().unwrap_or_default();
            raw(&self.socket, "DELETE", &format!("/containers/{id}?force=true"), &Value::Null);
        }
    }
}

pub fn own_uid() -> u32 {
    fs::metadata("/proc/self").unwrap().uid()
}

/// busybox without links in /bin: each applet by name.
pub fn applets(script: &str) -> String {
    let names = ["sleep", "cp", "cat", "id", "touch", "mkdir", "nc"];
    let aliases: String =
        names.iter().map(|n| format!("{n}() {{ /bin/busybox {n} \"$@\"; }}\n")).collect();
    format!("busybox() {{ /bin/busybox \"$@\"; }}\n{aliases}{script}")
}
