//! The executor on ports that misbehave.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Mutex;

use super::tend::OBITUARY_TIME;
use super::*;
use crate::supervisor::express::Turnstile;
use crate::supervisor::ports::{
    ContainerSpec, Ending, Endpoint, Found, GpuError, Ill, PodmanInfo, PortFuture,
};
use crate::types::{Bytes, Generation, GpuSnapshot, ImageRef, Known, Transport};

/// A podman that hangs: every question ends at the adapter's own deadline. The kernel says that everything is dead.
#[derive(Default)]
struct Hung {
    /// What the group holds, look by look; at last nothing.
    pids: Mutex<VecDeque<Vec<u32>>>,
    /// Whose memory was asked for.
    charged: Mutex<Vec<Vec<u32>>>,
    /// What the engine says while it loads, question by question; at last that it does.
    probes: Mutex<VecDeque<Result<bool, String>>>,
    /// How the engine is, and where it speaks before it says so.
    ill: Mutex<Option<(Ill, Option<Arc<Turnstile>>)>>,
    /// What it has of every log, at once; `None`: it hangs there too.
    log: Option<String>,
}

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
    let hung = || Arc::new(Hung::default());
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
        match self.log.clone() {
            Some(line) => Box::pin(async { vec![line] }),
            None => late(Vec::new()),
        }
    }
    fn ending(&self, _: InstanceId) -> PortFuture<'_, Option<Ending>> {
        late(None)
    }
    fn pids(&self, _: &Path) -> std::io::Result<Vec<u32>> {
        Ok(self.pids.lock().unwrap().pop_front().unwrap_or_default())
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
        pids: Vec<u32>,
        _: Vec<GpuId>,
        _: Arc<GpuSnapshot>,
    ) -> PortFuture<'_, BTreeMap<GpuId, Known<Bytes>>> {
        self.charged.lock().unwrap().push(pids);
        Box::pin(async { BTreeMap::new() })
    }
}

impl Engines for Hung {
    fn container(&self, _: &LaunchOrder) -> ContainerSpec {
        unimplemented!("no test launches here")
    }
    fn probe(&self, _: Arc<ModelSpec>, _: Endpoint) -> PortFuture<'_, Result<bool, String>> {
        let said = self.probes.lock().unwrap().pop_front().unwrap_or(Ok(false));
        Box::pin(async { said })
    }
    fn sleep(
        &self,
        _: Arc<ModelSpec>,
        _: Endpoint,
        _: SleepLevel,
    ) -> PortFuture<'_, Result<(), String>> {
        Box::pin(async { panic!("no engine here sleeps") })
    }
    fn wake(
        &self,
        _: Arc<ModelSpec>,
        _: Endpoint,
        _: SleepLevel,
    ) -> PortFuture<'_, Result<(), String>> {
        Box::pin(std::future::pending())
    }
    fn check(
        &self,
        _: Arc<ModelSpec>,
        _: Endpoint,
        _: bool,
        _: Duration,
    ) -> PortFuture<'_, Result<(), Ill>> {
        let (ill, way) = self.ill.lock().unwrap().take().unwrap();
        if let Some(way) = way {
            way.says();
        }
        late(Err(ill))
    }
    fn canary(
        &self,
        _: Arc<ModelSpec>,
        _: Endpoint,
    ) -> PortFuture<'_, Result<String, CanaryError>> {
        Box::pin(async { Ok("1 2 3".to_owned()) })
    }
}

#[tokio::test(start_paused = true)]
async fn an_engine_is_asked_until_it_is_stopped_and_a_panic_is_an_answer() {
    let (events_tx, mut events) = mpsc::unbounded_channel();
    let mut executor = Executor::new(hung_ports(), events_tx, Clock::start());
    let id = InstanceId::new("m".parse().unwrap(), Generation(1), 0);
    let spec = Arc::new(crate::types::test_spec("m"));
    let endpoint = || Endpoint::Unix("/e".into());
    executor.canary(id.clone(), spec.clone(), endpoint());
    let Some(Event::Sung { result: Ok(answer), .. }) = events.recv().await else { panic!() };
    assert_eq!(answer, "1 2 3");
    executor.sleep(id.clone(), spec.clone(), endpoint(), SleepLevel::One);
    let Some(Event::Slept { result: Err(why), .. }) = events.recv().await else { panic!() };
    assert!(why.contains("an adapter failed"), "{why}");
    executor.wake(id.clone(), spec, endpoint(), SleepLevel::One);
    executor.stop(id, false);
    let Some(Event::Stopped { .. }) = events.recv().await else { panic!("the wake was answered") };
}

#[tokio::test(start_paused = true)]
async fn what_is_strange_about_a_load_is_told_once_until_something_else_is() {
    let (events_tx, mut events) = mpsc::unbounded_channel();
    let hung = Arc::new(Hung::default());
    let strange = |what: &str| Err(what.to_owned());
    let said = [strange("404"), Ok(false), strange("404"), strange("500"), Ok(true)];
    hung.pids.lock().unwrap().extend(vec![vec![1]; said.len()]);
    hung.probes.lock().unwrap().extend(said);
    let ports = Ports { containers: hung.clone(), engines: hung, ..hung_ports() };
    let id = InstanceId::new("m".parse().unwrap(), Generation(1), 0);
    let endpoint = Endpoint::Unix("/e".into());
    let launched =
        Launched { container: "c".into(), cgroup: "/c".into(), endpoint, image_id: "1".into() };
    let spec = Arc::new(crate::types::test_spec("m"));
    let end = tend::load(&ports, &events_tx, id.clone(), spec, launched).await;
    assert!(matches!(end, Event::Healthy { instance } if instance == id));
    for told in ["404", "500"] {
        let Some(Event::Strange { answer, .. }) = events.recv().await else { panic!("{told}") };
        assert_eq!(answer, told);
    }
    assert!(events.try_recv().is_err());
}

#[tokio::test(start_paused = true)]
async fn an_engine_that_answers_others_is_not_ill_for_being_silent() {
    let id = InstanceId::new("m".parse().unwrap(), Generation(1), 0);
    let spec = Arc::new(crate::types::test_spec("m"));
    let endpoint = Endpoint::Unix("/e".into());
    let (asks, _asked) = mpsc::unbounded_channel();
    let way = Arc::new(Turnstile::shut(id.clone(), endpoint.clone(), asks));
    // Before it was asked; that was another time.
    way.says();
    let cases = [
        (Ill::silent("no answer"), true, true),
        (Ill::silent("no answer"), false, false),
        (Ill::says("500"), true, false),
    ];
    for (ill, speaks, well) in cases {
        let (events_tx, mut events) = mpsc::unbounded_channel();
        let engines = Hung::default();
        *engines.ill.lock().unwrap() = Some((ill.clone(), speaks.then(|| way.clone())));
        let ports = Ports { engines: Arc::new(engines), ..hung_ports() };
        let executor = Executor::new(ports, events_tx, Clock::start());
        let subject = (id.clone(), Some(way.clone()));
        executor.check(subject, spec.clone(), endpoint.clone(), false, Duration::from_secs(20));
        let Some(Event::Checked { result, silent, .. }) = events.recv().await else { panic!() };
        assert_eq!(result.is_ok(), well, "{ill:?}, speaks: {speaks}: {result:?}");
        assert_eq!(silent, ill.silent && !well, "{ill:?}, speaks: {speaks}");
    }
}

#[tokio::test(start_paused = true)]
async fn neither_a_podman_nor_a_driver_that_hangs_hides_deaths_that_the_kernel_tells() {
    let (events_tx, mut events) = mpsc::unbounded_channel();
    let mut executor = Executor::new(hung_ports(), events_tx, Clock::start());
    let instance = |n| InstanceId::new("m".parse().unwrap(), Generation(n), 0);
    let endpoint = Endpoint::Unix("/e".into());
    let launched =
        Launched { container: "c".into(), cgroup: "/c".into(), endpoint, image_id: "1".into() };
    let begun = tokio::time::Instant::now();
    // Looked at again before anything is known of its end: it dies once.
    for _ in 0..2 {
        executor.watch([(&instance(1), &launched), (&instance(2), &launched)].into_iter());
    }
    for _ in 0..2 {
        let Some(Event::Died { fault, .. }) = events.recv().await else { panic!() };
        assert_eq!(fault.code, FaultCode::EngineExited);
    }
    assert!(begun.elapsed() <= OBITUARY_TIME, "known dead after {:?}", begun.elapsed());
    executor.watch(std::iter::empty());
    drop(executor);
    assert!(events.recv().await.is_none(), "each dies once");
}

#[tokio::test]
async fn fault_17_a_number_that_came_into_the_group_meanwhile_is_not_charged() {
    let hung = Arc::new(Hung::default());
    // While the driver is read, 12 ends; 13 is somebody else's then, and its number comes to a new process of the group.
    hung.pids.lock().unwrap().extend([vec![11, 12], vec![11, 13]]);
    let ports = Ports { containers: hung.clone(), gpus: hung.clone(), ..hung_ports() };
    let id = InstanceId::new("m".parse().unwrap(), Generation(1), 0);
    let endpoint = Endpoint::Unix("/e".into());
    let (container, cgroup) = ("c".repeat(64), "/g".into());
    let launched = Launched { container, cgroup, endpoint, image_id: String::new() };
    let subject = Subject { id: id.clone(), launched, gpus: Vec::new(), watched: true };
    let Event::Observed(seen) = observe(&ports, Clock::start(), vec![subject]).await else {
        panic!()
    };
    assert_eq!(*hung.charged.lock().unwrap(), [vec![11]]);
    assert_eq!(seen.usage[&id].pids, [11, 13], "it lives");
}

#[tokio::test(start_paused = true)]
async fn the_last_words_of_one_that_failed_are_looked_up_before_it_is_stopped() {
    let id = InstanceId::new("m".parse().unwrap(), Generation(1), 0);
    for log in [Some("NCCL: init".to_owned()), None] {
        let (events_tx, mut events) = mpsc::unbounded_channel();
        let hung = Hung { log: log.clone(), ..Hung::default() };
        let ports = Ports { containers: Arc::new(hung), ..hung_ports() };
        let begun = tokio::time::Instant::now();
        Executor::new(ports, events_tx, Clock::start()).stop(id.clone(), true);
        let Some(Event::Wrote { log: told, .. }) = events.recv().await else { panic!() };
        assert_eq!(told, log.into_iter().collect::<Vec<_>>());
        assert!(begun.elapsed() <= OBITUARY_TIME, "a podman that hangs holds no stop up");
        let Some(Event::Stopped { .. }) = events.recv().await else { panic!() };
    }
}
