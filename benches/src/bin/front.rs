//! `front PORT ENGINE [--log | --journal SOCKET] [--bare]`: Hostler's front door as the daemon wires it, in front of one engine that is always there.
//!
//! The supervisor is the real one; only podman, the device and the engine's profile are stand-ins, which are asked nothing
//! once the model is ready. So what a request costs here is what it costs in the daemon.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;
use hostler::config::{self, Defaults, Source};
use hostler::daemon::Plane;
use hostler::daemon::allocator::Allocator;
use hostler::observe::log::Format;
use hostler::observe::metrics::Metrics;
use hostler::observe::telling::Telling;
use hostler::plan::{ReleaseRule, Rules, SleepRules, policy};
use hostler::proxy::port::Behind;
use hostler::proxy::{Limits, Rules as Served, Server, Upstream};
use hostler::supervisor::health::HealthRules;
use hostler::supervisor::ports::{
    CanaryError, ContainerSpec, Containers, Ending, Endpoint, Engines, Found, GpuError, Gpus, Ill,
    LaunchOrder, Launched, PodmanInfo, PortFuture, Progress, Shelf,
};
use hostler::supervisor::state::Settings;
use hostler::supervisor::task::{Clock, Ports, Supervisor};
use hostler::types::{
    Bytes, Eviction, Fault, GpuId, GpuReading, GpuSnapshot, Hours, ImageRef, InstanceId, Known,
    ModelSpec, SleepLevel, Transport,
};
use tokio_util::sync::CancellationToken;

#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

const CONFIG: &str = "[gpu]\nbackend = \"host\"\nbudget = \"8GiB\"\n[models.m]\nengine = \"llamacpp\"\n\
                      image = \"localhost/e\"\nweights = { path = \"/w.gguf\" }\nvram = \"1GiB\"\npin = true\n";

#[derive(Parser)]
struct Cli {
    /// Port on 127.0.0.1.
    port: u16,
    /// Where the engine listens: `/path` or `address:port`.
    engine: String,
    /// Writes the log of requests to stderr, as the daemon does.
    #[arg(long)]
    log: bool,
    /// Writes it to who listens at this socket, in the journal's form.
    #[arg(long, conflicts_with = "log")]
    journal: Option<PathBuf>,
    /// So many requests a second have a line at most; by default as many as the daemon's.
    #[arg(long)]
    lines: Option<u32>,
    /// Counts nothing, which the daemon always does.
    #[arg(long)]
    bare: bool,
}

fn main() -> Result<()> {
    let Cli { port, engine, log, journal, lines, bare } = Cli::parse();
    if let Some(socket) = journal {
        hostler::observe::log::start_journal(&socket, "info")?;
    } else if log {
        hostler::observe::log::start(Format::Text, "info")?;
    }
    let endpoint = if engine.starts_with('/') {
        Endpoint::Unix(engine.into())
    } else {
        Endpoint::Tcp(engine.parse()?, None)
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(serve(port, endpoint, lines, bare))
}

async fn serve(port: u16, endpoint: Endpoint, lines: Option<u32>, bare: bool) -> Result<()> {
    let config = config::parse(&[Source::settings("bench", CONFIG)], &Defaults::system());
    let config = config.map_err(|e| anyhow::anyhow!("{e}"))?;
    let specs = config.models.iter().map(|(n, s)| (n.clone(), Arc::new(ModelSpec::clone(s))));
    let specs: BTreeMap<_, _> = specs.collect();
    let settings = Settings {
        max_wait: Duration::from_secs(60),
        max_queue: 100_000,
        drain_timeout: Duration::from_secs(1),
        headroom: Bytes::ZERO,
        slack: Bytes::ZERO,
        release: ReleaseRule::default(),
        rules: Rules {
            policy: policy::named(Eviction::Cost),
            min_residency: Duration::ZERO,
            sleep: SleepRules { host_ram_budget: Bytes::ZERO, residual_max: Bytes::gib(1) },
        },
        measure_after: None,
        turn_after: None,
        measure_hours: Hours::ALL,
        health: HealthRules::default(),
        seed: 1,
    };
    let world = Arc::new(World { endpoint });
    let ports = Ports {
        containers: world.clone(),
        gpus: world.clone(),
        engines: world.clone(),
        shelf: world.clone(),
    };
    let (mut supervisor, handle) =
        Supervisor::new(settings, &specs, ports, Clock::start(), vec![], devices());
    let mut behind = Behind::default();
    if !bare {
        let metrics = Arc::new(Metrics::default());
        supervisor.witnessed_by(metrics.clone());
        let telling = Telling::new(lines.unwrap_or(config.log.request_lines));
        behind.observer = Arc::new((metrics, Arc::new(telling)));
    }
    let plane = Plane::start()?;
    let running = supervisor.spawn_on(handle.clone(), plane.runtime());
    running.handle.acquire("m").await.context("the model")?;
    let listener = hostler::proxy::listen(([127, 0, 0, 1], port).into())?;
    let limits = Limits { max_connections: 9000, ..Limits::default() };
    let models = config.models.values().map(|m| (m.name.clone(), Arc::new(m.door.clone())));
    // As the daemon's: a request is counted for its model only where it is configured.
    let rules = Served { models: models.collect(), ..Served::default() }.shared();
    let server = Server::with(handle, limits, Upstream::default(), rules, behind);
    let served = server.serve(vec![listener.into()], CancellationToken::new(), Duration::ZERO);
    plane.spawn(served).await?;
    Ok(())
}

fn devices() -> GpuSnapshot {
    let device = GpuReading {
        id: GpuId::new("host"),
        name: "host".into(),
        total: Bytes::gib(8),
        used: Bytes::ZERO,
        processes: vec![],
    };
    GpuSnapshot { devices: vec![device], lost: vec![], driver: "1".into() }
}

struct World {
    endpoint: Endpoint,
}

fn done<T: Send + 'static>(value: T) -> PortFuture<'static, T> {
    Box::pin(async move { value })
}

impl Containers for World {
    fn launch(&self, spec: ContainerSpec, _: Progress) -> PortFuture<'_, Result<Launched, Fault>> {
        done(Ok(Launched {
            container: spec.instance.to_string(),
            cgroup: "/".into(),
            endpoint: self.endpoint.clone(),
            image_id: String::new(),
        }))
    }

    fn stop(&self, _: InstanceId) -> PortFuture<'_, Result<(), Fault>> {
        done(Ok(()))
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

    fn pids(&self, _: &Path) -> std::io::Result<Vec<u32>> {
        Ok(vec![1])
    }

    fn info(&self) -> PortFuture<'_, Result<PodmanInfo, Fault>> {
        done(Ok(PodmanInfo {
            version: "5".into(),
            rootless: true,
            host: hostler::supervisor::ports::PodmanHost::default(),
        }))
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
        done(Ok(devices()))
    }

    fn usage(
        &self,
        _: Vec<u32>,
        gpus: Vec<GpuId>,
        _: Arc<GpuSnapshot>,
    ) -> PortFuture<'_, BTreeMap<GpuId, Known<Bytes>>> {
        done(gpus.into_iter().map(|gpu| (gpu, Known::Known(Bytes::ZERO))).collect())
    }
}

impl Engines for World {
    fn container(&self, order: &LaunchOrder) -> ContainerSpec {
        hostler::adapters::engine::Profiles::default().container(order)
    }

    fn probe(&self, _: Arc<ModelSpec>, _: Endpoint) -> PortFuture<'_, Result<bool, String>> {
        done(Ok(true))
    }

    fn sleep(
        &self,
        _: Arc<ModelSpec>,
        _: Endpoint,
        _: SleepLevel,
    ) -> PortFuture<'_, Result<(), String>> {
        done(Ok(()))
    }

    fn wake(
        &self,
        _: Arc<ModelSpec>,
        _: Endpoint,
        _: SleepLevel,
    ) -> PortFuture<'_, Result<(), String>> {
        done(Ok(()))
    }

    fn check(
        &self,
        _: Arc<ModelSpec>,
        _: Endpoint,
        _: bool,
        _: Duration,
    ) -> PortFuture<'_, Result<(), Ill>> {
        done(Ok(()))
    }

    fn canary(
        &self,
        _: Arc<ModelSpec>,
        _: Endpoint,
    ) -> PortFuture<'_, Result<String, CanaryError>> {
        done(Ok(String::new()))
    }
}

impl Shelf for World {
    fn save(&self, _: Vec<u8>) -> PortFuture<'_, Result<(), String>> {
        done(Ok(()))
    }
}
