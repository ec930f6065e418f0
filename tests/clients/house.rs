//! The daemon's own supervisor and server, over containers that are tasks of this process.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fake_engine::{Config, Engine, Exit};
use hostler::adapters::engine::Profiles;
use hostler::config::{self, Defaults, Source};
use hostler::plan::{ReleaseRule, Rules as Planning, SleepRules, policy};
use hostler::proxy::{Key, Limits, Rules, Server, Upstream};
use hostler::supervisor::health::HealthRules;
use hostler::supervisor::ports::{
    ContainerSpec, Containers, Endpoint, Found, GpuError, Gpus, Launched, PodmanHost, PodmanInfo,
    PortFuture, Progress, SOCKET_DIR, SOCKET_NAME, Shelf,
};
use hostler::supervisor::state::Settings;
use hostler::supervisor::task::{Clock, Ports, Supervisor};
use hostler::types::{
    Bytes, Eviction, Fault, GpuId, GpuReading, GpuSnapshot, Hours, ImageRef, InstanceId, Known,
    Transport,
};
use sha2::{Digest, Sha256};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// The one key that is let in.
pub const KEY: &str = "sk-test";

/// An engine and its task.
type Running = (Arc<Engine>, JoinHandle<Exit>);

/// podman, the device and the disk.
struct World {
    root: tempfile::TempDir,
    env: BTreeMap<String, String>,
    containers: Mutex<BTreeMap<InstanceId, Running>>,
}

pub struct House {
    pub address: SocketAddr,
    _world: Arc<World>,
    _stop: tokio_util::sync::DropGuard,
}

impl House {
    /// Models of one engine each, by the keys of their configuration; `knobs` are the stand-in's.
    pub async fn new(model: &str, knobs: &[(&str, &str)], rules: impl FnOnce(&mut Rules)) -> Self {
        let root = tempfile::tempdir().unwrap();
        let common = [("FAKE_RATE", "500"), ("FAKE_TTFT", "5ms")];
        let pair = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let env = common.iter().chain(knobs).map(pair).collect();
        let world = Arc::new(World { root, env, containers: Mutex::default() });
        let text = format!(
            "[gpu]\nbackend = \"host\"\n[models.\"org/fake\"]\nengine = \"llamacpp\"\n\
             image = \"localhost/e\"\naliases = [\"gpt-4o\", \"claude-x\"]\nvram = \"1GiB\"\n{model}\n"
        );
        let config = config::parse(&[Source::settings("/f", text)], &Defaults::system()).unwrap();
        let settings = Settings {
            max_wait: Duration::from_secs(60),
            max_queue: 100,
            drain_timeout: Duration::from_secs(1),
            headroom: Bytes::ZERO,
            release: ReleaseRule::default(),
            rules: Planning {
                policy: policy::named(Eviction::Cost),
                min_residency: Duration::ZERO,
                sleep: SleepRules { host_ram_budget: Bytes::ZERO, residual_max: Bytes::ZERO },
            },
            measure_after: None,
            turn_after: None,
            measure_hours: Hours::ALL,
            health: HealthRules::default(),
            seed: 1,
        };
        let ports = Ports {
            containers: world.clone(),
            gpus: world.clone(),
            engines: Arc::new(Profiles),
            shelf: world.clone(),
        };
        let (supervisor, handle) = Supervisor::new(
            settings,
            &config.models,
            ports,
            Clock::start(),
            vec![],
            world.devices(),
        );
        let running = supervisor.spawn(handle.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = Server::new(running.handle, Limits::default(), Upstream::default());
        let models = config.models.values();
        let mut all = Rules {
            keys: vec![Key {
                name: "tester".into(),
                digest: Sha256::digest(KEY).into(),
                models: vec![],
                per_minute: None,
                concurrent: None,
                share: 1,
                admin: false,
            }],
            aliases: models
                .clone()
                .flat_map(|m| m.aliases.iter().map(|a| (a.clone(), m.name.clone())))
                .collect(),
            models: models.map(|m| (m.name.clone(), Arc::new(m.door.clone()))).collect(),
            ..Rules::default()
        };
        rules(&mut all);
        server.rules().store(Arc::new(all));
        let stop = CancellationToken::new();
        tokio::spawn(server.serve(vec![listener.into()], stop.clone(), Duration::from_secs(1)));
        Self { address, _world: world, _stop: stop.drop_guard() }
    }
}

fn done<T: Send + 'static>(value: T) -> PortFuture<'static, T> {
    Box::pin(async move { value })
}

impl World {
    fn devices(&self) -> GpuSnapshot {
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

    fn exit_code(&self, _: InstanceId) -> PortFuture<'_, Option<i32>> {
        done(Some(1))
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
        done(Ok(None))
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
