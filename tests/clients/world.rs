//! podman, the device and the disk of a house, as tasks of this process.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};

use fake_engine::{Config, Engine, Exit};
use hostler::control::{Host, HostFuture, Reloaded};
use hostler::proxy::{Healths, SharedRules};
use hostler::supervisor::ports::{
    ContainerSpec, Containers, Ending, Endpoint, Found, GpuError, Gpus, Launched, PodmanHost,
    PodmanInfo, PortFuture, Progress, SOCKET_DIR, SOCKET_NAME, Shelf,
};
use hostler::types::{
    Bytes, Check, ExternalStatus, Fault, GpuId, GpuReading, GpuSnapshot, ImageRef, InstanceId,
    Known, Transport,
};
use tokio::task::JoinHandle;

/// An engine and its task.
type Running = (Arc<Engine>, JoinHandle<Exit>);

/// podman, the device and the disk.
pub struct World {
    pub root: tempfile::TempDir,
    pub env: BTreeMap<String, String>,
    pub containers: Mutex<BTreeMap<InstanceId, Running>>,
    /// Models that run elsewhere, as the server sees them.
    pub elsewhere: OnceLock<(SharedRules, Arc<Healths>)>,
}

fn done<T: Send + 'static>(value: T) -> PortFuture<'static, T> {
    Box::pin(async move { value })
}

impl World {
    pub fn devices(&self) -> GpuSnapshot {
        let device = GpuReading {
            id: GpuId::new("host"),
            name: "host".into(),
            total: Bytes::gib(24),
            used: Bytes::ZERO,
            processes: vec![],
        };
        GpuSnapshot { devices: vec![device], lost: vec![], driver: "1".into() }
    }
}

impl Containers for World {
    fn launch(&self, spec: ContainerSpec, _: Progress) -> PortFuture<'_, Result<Launched, Fault>> {
        let socket: PathBuf = self.root.path().join(format!("{}.sock", spec.instance));
        let inside = format!("{SOCKET_DIR}/{SOCKET_NAME}");
        let word = |word: String| {
            if word == inside { socket.to_str().unwrap().to_owned() } else { word }
        };
        let name = std::iter::once("llama-server".to_owned());
        let arguments: Vec<String> = name.chain(spec.command.into_iter().map(word)).collect();
        let mut environment = self.env.clone();
        environment.extend(spec.env);
        let running = fake_engine::start(Config::read(&environment, &arguments).unwrap());
        self.containers.lock().unwrap().insert(spec.instance.clone(), running);
        done(Ok(Launched {
            container: spec.instance.to_string(),
            cgroup: spec.instance.to_string().into(),
            endpoint: Endpoint::Unix(socket),
            image_id: "sha256:1".into(),
        }))
    }

    fn stop(&self, instance: InstanceId) -> PortFuture<'_, Result<(), Fault>> {
        if let Some((engine, _)) = self.containers.lock().unwrap().remove(&instance) {
            engine.terminate();
        }
        done(Ok(()))
    }

    fn reap(&self, _: String) -> PortFuture<'_, Result<(), Fault>> {
        done(Ok(()))
    }

    fn list(&self) -> PortFuture<'_, Result<Vec<Found>, Fault>> {
        done(Ok(vec![]))
    }

    fn log_tail(&self, _: InstanceId, _: usize) -> PortFuture<'_, Vec<String>> {
        done(vec!["no memory for the cache".into()])
    }

    fn ending(&self, _: InstanceId) -> PortFuture<'_, Option<Ending>> {
        done(Some(Ending { code: 1, out_of_memory: false }))
    }

    fn pids(&self, cgroup: &Path) -> std::io::Result<Vec<u32>> {
        let containers = self.containers.lock().unwrap();
        let mine = |(id, _): &(&InstanceId, _)| Path::new(&id.to_string()) == cgroup;
        let alive = containers.iter().filter(mine).filter(|(_, (_, task))| !task.is_finished());
        Ok(alive.map(|_| 100).collect())
    }

    fn info(&self) -> PortFuture<'_, Result<PodmanInfo, Fault>> {
        done(Ok(PodmanInfo { version: "5".into(), rootless: true, host: PodmanHost::default() }))
    }

    fn image_id(&self, _: ImageRef) -> PortFuture<'_, Result<Option<String>, Fault>> {
        done(Ok(Some("1".to_owned())))
    }

    fn prove_network(&self, _: Transport) -> PortFuture<'_, Result<(), Fault>> {
        done(Ok(()))
    }
}

impl Gpus for World {
    fn snapshot(&self) -> PortFuture<'_, Result<GpuSnapshot, GpuError>> {
        done(Ok(self.devices()))
    }

    fn usage(
        &self,
        _: Vec<u32>,
        gpus: Vec<GpuId>,
        _: Arc<GpuSnapshot>,
    ) -> PortFuture<'_, BTreeMap<GpuId, Known<Bytes>>> {
        done(gpus.into_iter().map(|gpu| (gpu, Known::Known(Bytes::gib(1)))).collect())
    }
}

impl Shelf for World {
    fn save(&self, _: Vec<u8>) -> PortFuture<'_, Result<(), String>> {
        done(Ok(()))
    }
}

impl Host for World {
    fn validate(&self) -> HostFuture<'_, Vec<Check>> {
        Box::pin(async { vec![] })
    }

    fn reload(&self) -> HostFuture<'_, Result<Reloaded, String>> {
        Box::pin(async { Ok(Reloaded::default()) })
    }

    fn catch_up(&self) -> HostFuture<'_, ()> {
        Box::pin(async {})
    }

    /// A log of one line; whoever follows it sees its end.
    fn open_log(
        &self,
        instance: InstanceId,
        _: Option<usize>,
        _: bool,
    ) -> HostFuture<'_, Result<OwnedFd, String>> {
        let (read, mut write) = std::io::pipe().unwrap();
        writeln!(write, "<b>{instance}</b> listens").unwrap();
        Box::pin(async move { Ok(read.into()) })
    }

    fn externals(&self) -> Vec<ExternalStatus> {
        let (rules, healths) = self.elsewhere.get().unwrap();
        healths.status(&rules.load())
    }
}
