//! A host whose containers are tasks of this process.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use fake_engine::{Config, Engine, Exit};
use hostler::adapters::engine::Profiles;
use hostler::config::{self, Defaults, Source};
use hostler::plan::{self, ReleaseRule, Rules, SleepRules, policy};
use hostler::supervisor::handle::{Handle, Lease};
use hostler::supervisor::health::HealthRules;
use hostler::supervisor::ports::{
    ContainerSpec, Containers, Ending, Endpoint, Found, GpuError, Gpus, Launched, PodmanHost,
    PodmanInfo, PortFuture, Progress, SOCKET_DIR, SOCKET_NAME, Shelf,
};
use hostler::supervisor::state::Settings;
use hostler::supervisor::task::{Clock, Ports, Running, Supervisor};
use hostler::types::{
    Bytes, Eviction, Fault, GpuId, GpuReading, GpuSnapshot, Hours, ImageRef, InstanceId, Known,
    ModelSpec, ModelStatus, Phase, ProcessMemory, Status, Transport,
};
use nvidia_ml::{Gpu, Script, StateDir};
use tokio::task::JoinHandle;

const GPU: &str = "GPU-0";
const TOTAL: Bytes = Bytes::gib(24);
const SOON: Duration = Duration::from_secs(20);

struct Container {
    engine: Arc<Engine>,
    task: JoinHandle<Exit>,
    pid: u32,
}

impl Container {
    /// What it has claimed.
    fn held(&self) -> Bytes {
        let state = self.engine.state();
        let claims = state["claims"].as_array().into_iter().flatten();
        Bytes(claims.filter_map(|claim| claim["bytes"].as_u64()).sum())
    }
}

#[derive(Default)]
struct Inner {
    containers: BTreeMap<InstanceId, Container>,
    launches: u32,
}

/// podman, the driver and the disk.
struct World {
    root: tempfile::TempDir,
    /// The stand-in's settings.
    env: BTreeMap<String, String>,
    inner: Mutex<Inner>,
}

pub struct House {
    world: Arc<World>,
    handle: Handle,
    running: Running,
}

impl House {
    /// Models of 13 GiB on one device, which idle out after a moment; `knobs` are the stand-in's.
    pub fn new(models: &[&str], knobs: &[(&str, &str)], host_ram_budget: Bytes) -> Self {
        Self::of(models.iter().map(|m| spec(m)), knobs, host_ram_budget)
    }

    /// One model of which nobody knows what it needs.
    pub fn unknown(model: &str, knobs: &[(&str, &str)]) -> Self {
        Self::of([ModelSpec { vram: None, ..spec(model) }], knobs, Bytes::ZERO)
    }

    fn of(
        models: impl IntoIterator<Item = ModelSpec>,
        knobs: &[(&str, &str)],
        host_ram_budget: Bytes,
    ) -> Self {
        let root = tempfile::tempdir().unwrap();
        let nvstub = StateDir::new(root.path().join("nv"));
        Script::with_gpus(vec![Gpu::new(GPU, TOTAL.0)]).save(&nvstub).unwrap();
        let common = [
            ("FAKE_VRAM", "weights=8GiB,kv=4GiB,overhead=1GiB"),
            ("FAKE_RATE", "2000"),
            ("FAKE_TTFT", "1ms"),
            (nvidia_ml::ENV, nvstub.path().to_str().unwrap()),
        ];
        let pair = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let env = common.iter().chain(knobs).map(pair).collect();
        let world = Arc::new(World { root, env, inner: Mutex::default() });
        let settings = Settings {
            max_wait: SOON,
            max_queue: 10,
            drain_timeout: Duration::from_secs(1),
            headroom: Bytes::ZERO,
            slack: plan::SLACK,
            release: ReleaseRule::default(),
            rules: Rules {
                policy: policy::named(Eviction::Cost),
                min_residency: Duration::ZERO,
                sleep: SleepRules { host_ram_budget, residual_max: Bytes::gib(2) },
            },
            measure_after: None,
            turn_after: None,
            health: HealthRules::default(),
            measure_hours: Hours::ALL,
            seed: 1,
        };
        let specs = models.into_iter().map(|m| (m.name.clone(), Arc::new(m))).collect();
        let ports = Ports {
            containers: world.clone(),
            gpus: world.clone(),
            engines: Arc::new(Profiles::default()),
            shelf: world.clone(),
        };
        let devices = world.snapshot_now();
        let (supervisor, handle) =
            Supervisor::new(settings, &specs, ports, Clock::start(), vec![], devices);
        let running = supervisor.spawn(handle.clone());
        Self { world, handle, running }
    }

    pub async fn acquire(&self, model: &str) -> Lease {
        self.handle.acquire(model).await.unwrap()
    }

    pub async fn unload(&self, model: &str) {
        self.handle.unload(&model.parse().unwrap()).await.unwrap();
    }

    pub async fn shutdown(self) {
        self.handle.shutdown(false);
        tokio::time::timeout(SOON, self.running.task).await.unwrap().unwrap();
        assert!(self.world.inner.lock().unwrap().containers.is_empty());
    }

    pub fn status(&self) -> Arc<Status> {
        self.handle.status()
    }

    pub fn model(&self, name: &str) -> ModelStatus {
        let status = self.status();
        status.models.iter().find(|m| m.name.as_str() == name).unwrap().clone()
    }

    pub async fn until(&self, model: &str, phase: Phase) {
        let begun = Instant::now();
        while self.model(model).phase != phase {
            let now = self.model(model);
            assert!(begun.elapsed() < SOON, "not {phase}: {now:#?}");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// What a model's container has claimed, by the driver's word.
    pub fn held(&self, model: &str) -> Bytes {
        let inner = self.world.inner.lock().unwrap();
        let mine = inner.containers.iter().filter(|(id, _)| id.model.as_str() == model);
        mine.map(|(_, container)| container.held()).sum()
    }

    pub fn launches(&self) -> u32 {
        self.world.inner.lock().unwrap().launches
    }
}

/// As the configuration makes it, but for an idle time-out that no configuration allows.
fn spec(name: &str) -> ModelSpec {
    let text = format!(
        "[gpu]\nbackend = \"nvml\"\n[memory]\nhost_ram_budget = \"1GiB\"\n\
         [models.{name}]\nengine = \"vllm\"\nimage = \"localhost/vllm\"\nvram = \"13GiB\"\n"
    );
    let config = config::parse(&[Source::settings("/f", text)], &Defaults::system()).unwrap();
    let mut spec = ModelSpec::clone(&config.models[name]);
    spec.idle_timeout = Some(Duration::from_millis(300));
    spec
}

fn done<T: Send + 'static>(value: T) -> PortFuture<'static, T> {
    Box::pin(async move { value })
}

impl World {
    /// In a directory of its own, as an engine has it.
    fn socket(&self, instance: &InstanceId) -> PathBuf {
        let dir = self.root.path().join(instance.to_string());
        std::fs::create_dir_all(&dir).unwrap();
        dir.join(SOCKET_NAME)
    }

    fn snapshot_now(&self) -> GpuSnapshot {
        let inner = self.inner.lock().unwrap();
        let of = |c: &Container| ProcessMemory { pid: c.pid, bytes: Known::Known(c.held()) };
        let processes: Vec<ProcessMemory> = inner.containers.values().map(of).collect();
        let used = processes.iter().filter_map(|p| p.bytes.get()).sum();
        let id = GpuId::new(GPU);
        let device = GpuReading { id, name: "H200".into(), total: TOTAL, used, processes };
        GpuSnapshot { devices: vec![device], lost: vec![], driver: "1".into() }
    }
}

impl Containers for World {
    fn launch(&self, spec: ContainerSpec, _: Progress) -> PortFuture<'_, Result<Launched, Fault>> {
        let socket = self.socket(&spec.instance);
        let inside = format!("{SOCKET_DIR}/{SOCKET_NAME}");
        let outside = socket.to_str().unwrap();
        let word = |word: String| if word == inside { outside.to_owned() } else { word };
        let arguments: Vec<String> =
            std::iter::once("vllm".to_owned()).chain(spec.command.into_iter().map(word)).collect();
        let mut environment = self.env.clone();
        environment.extend(spec.env);
        let config = Config::read(&environment, &arguments).unwrap();
        assert!(config.sleep_mode && config.dev_mode, "the adapter makes sleep possible");
        let mut inner = self.inner.lock().unwrap();
        inner.launches += 1;
        let pid = 100 + inner.launches;
        let (engine, task) = fake_engine::start(config);
        inner.containers.insert(spec.instance.clone(), Container { engine, task, pid });
        done(Ok(Launched {
            container: spec.instance.to_string(),
            cgroup: spec.instance.to_string().into(),
            endpoint: Endpoint::Unix(socket),
            image_id: "sha256:1".into(),
        }))
    }

    fn stop(&self, instance: InstanceId) -> PortFuture<'_, Result<(), Fault>> {
        Box::pin(async move {
            let container = self.inner.lock().unwrap().containers.remove(&instance);
            if let Some(Container { engine, task, .. }) = container {
                engine.terminate();
                let _ended = tokio::time::timeout(SOON, task).await.unwrap();
            }
            Ok(())
        })
    }

    fn reap(&self, _: String) -> PortFuture<'_, Result<(), Fault>> {
        done(Ok(()))
    }

    fn list(&self) -> PortFuture<'_, Result<Vec<Found>, Fault>> {
        done(Ok(vec![]))
    }

    fn log_tail(&self, _: InstanceId, _: usize) -> PortFuture<'_, Vec<String>> {
        done(vec![])
    }

    fn ending(&self, _: InstanceId) -> PortFuture<'_, Option<Ending>> {
        done(None)
    }

    fn pids(&self, cgroup: &Path) -> std::io::Result<Vec<u32>> {
        let inner = self.inner.lock().unwrap();
        let here = |(id, _): &(&InstanceId, &Container)| Path::new(&id.to_string()) == cgroup;
        let alive = inner.containers.iter().filter(here).filter(|(_, c)| !c.task.is_finished());
        Ok(alive.map(|(_, c)| c.pid).collect())
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
        done(Ok(self.snapshot_now()))
    }

    fn usage(
        &self,
        pids: Vec<u32>,
        gpus: Vec<GpuId>,
        snapshot: Arc<GpuSnapshot>,
    ) -> PortFuture<'_, BTreeMap<GpuId, Known<Bytes>>> {
        let mine = |p: &&ProcessMemory| pids.contains(&p.pid);
        let processes = snapshot.devices.iter().flat_map(|d| &d.processes);
        let sum = processes.filter(mine).filter_map(|p| p.bytes.get()).sum();
        done(gpus.into_iter().map(|gpu| (gpu, Known::Known(sum))).collect())
    }
}

impl Shelf for World {
    fn save(&self, _: Vec<u8>) -> PortFuture<'_, Result<(), String>> {
        done(Ok(()))
    }
}
