//! The executor on ports that misbehave.

use std::path::Path;

use super::*;
use crate::supervisor::ports::{ContainerSpec, Endpoint, Found, GpuError, PodmanInfo, PortFuture};
use crate::types::{Bytes, Generation, GpuSnapshot, ImageRef, Known, Transport};

/// A podman that hangs: every question ends at the adapter's own deadline. The kernel says that everything is dead.
struct Hung;

const DEADLINE: Duration = Duration::from_secs(15);

fn late<T: Send + 'static>(value: T) -> PortFuture<'static, T> {
    Box::pin(async move {
        tokio::time::sleep(DEADLINE).await;
        value
    })
}

fn hung<T: Send + 'static>() -> PortFuture<'static, Result<T, Fault>> {
    late(Err(Fault::new(FaultCode::PodmanUnreachable, "podman hangs")))
}

impl Shelf for Hung {
    fn save(&self, _: Vec<u8>) -> PortFuture<'_, Result<(), String>> {
        Box::pin(std::future::pending())
    }
}

fn hung_ports() -> Ports {
    let hung = || Arc::new(Hung);
    Ports { containers: hung(), gpus: hung(), engines: hung(), shelf: hung() }
}

impl Containers for Hung {
    fn launch(&self, _: ContainerSpec, _: Progress) -> PortFuture<'_, Result<Launched, Fault>> {
        hung()
    }
    fn stop(&self, _: InstanceId) -> PortFuture<'_, Result<(), Fault>> {
        hung()
    }
    fn reap(&self, _: String) -> PortFuture<'_, Result<(), Fault>> {
        hung()
    }
    fn list(&self) -> PortFuture<'_, Result<Vec<Found>, Fault>> {
        hung()
    }
    fn log_tail(&self, _: InstanceId, _: usize) -> PortFuture<'_, Vec<String>> {
        late(Vec::new())
    }
    fn exit_code(&self, _: InstanceId) -> PortFuture<'_, Option<i32>> {
        late(None)
    }
    fn pids(&self, _: &Path) -> std::io::Result<Vec<u32>> {
        Ok(Vec::new())
    }
    fn info(&self) -> PortFuture<'_, Result<PodmanInfo, Fault>> {
        hung()
    }
    fn image_id(&self, _: ImageRef) -> PortFuture<'_, Result<Option<String>, Fault>> {
        hung()
    }
    fn prove_network(&self, _: Transport) -> PortFuture<'_, Result<(), Fault>> {
        hung()
    }
}

impl Gpus for Hung {
    fn snapshot(&self) -> PortFuture<'_, Result<GpuSnapshot, GpuError>> {
        Box::pin(async { Ok(GpuSnapshot::default()) })
    }
    fn usage(
        &self,
        _: Vec<u32>,
        _: Vec<GpuId>,
        _: Arc<GpuSnapshot>,
    ) -> PortFuture<'_, BTreeMap<GpuId, Known<Bytes>>> {
        Box::pin(async { BTreeMap::new() })
    }
}

impl Engines for Hung {
    fn container(&self, _: &LaunchOrder) -> ContainerSpec {
        unimplemented!("no test launches here")
    }
    fn probe(&self, _: Arc<ModelSpec>, _: Endpoint) -> PortFuture<'_, Result<bool, String>> {
        Box::pin(async { Ok(false) })
    }
}

#[tokio::test(start_paused = true)]
async fn a_podman_that_hangs_does_not_hide_deaths_that_the_kernel_tells() {
    let ports = hung_ports();
    let subject = |n| {
        let id = InstanceId::new("m".parse().unwrap(), Generation(n), 0);
        let endpoint = Endpoint::Unix("/e".into());
        let launched =
            Launched { container: "c".into(), cgroup: "/c".into(), endpoint, image_id: "1".into() };
        Subject { id, launched, gpus: vec![], watched: true }
    };
    let begun = tokio::time::Instant::now();
    let events = observe(&ports, Clock::start(), vec![subject(1), subject(2)]).await;
    let deaths = events.iter().filter(|e| matches!(e, Event::Died { .. })).count();
    assert_eq!(deaths, 2);
    assert!(begun.elapsed() <= 2 * OBITUARY_TIME, "known dead after {:?}", begun.elapsed());
}
