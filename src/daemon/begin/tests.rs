//! What ends with a daemon that never served.

use std::path::Path;
use std::sync::Mutex;

use super::*;
use crate::supervisor::ports::{
    ContainerSpec, Ending, Found, FoundIdentity, Launched, PodmanInfo, PortFuture, Progress,
};
use crate::types::{
    Bytes, FaultCode, Generation, ImageRef, InstanceId, Need, NeedSource, Placement, SpecHash,
    Transport,
};

/// Two models run, of one of which the labels are damaged; and what was done to them.
#[derive(Default)]
struct Left {
    done: Mutex<Vec<String>>,
    /// It stops nothing.
    stuck: bool,
    /// It does not even say what there is.
    away: bool,
}

fn instance() -> InstanceId {
    InstanceId::new("m".parse().unwrap(), Generation(3), 9)
}

fn now<T: Send + 'static>(value: T) -> PortFuture<'static, T> {
    Box::pin(std::future::ready(value))
}

fn no<T: Send + 'static>() -> PortFuture<'static, Result<T, Fault>> {
    now(Err(Fault::new(FaultCode::PodmanUnreachable, "podman is away")))
}

impl Left {
    fn did(&self, what: String) -> PortFuture<'_, Result<(), Fault>> {
        if self.stuck {
            return no();
        }
        self.done.lock().unwrap().push(what);
        now(Ok(()))
    }
}

impl Containers for Left {
    fn launch(&self, _: ContainerSpec, _: Progress) -> PortFuture<'_, Result<Launched, Fault>> {
        no()
    }
    fn stop(&self, instance: InstanceId) -> PortFuture<'_, Result<(), Fault>> {
        self.did(instance.to_string())
    }
    fn reap(&self, container: String) -> PortFuture<'_, Result<(), Fault>> {
        self.did(container)
    }
    fn list(&self) -> PortFuture<'_, Result<Vec<Found>, Fault>> {
        if self.away {
            return no();
        }
        let need = Need { bytes: Bytes(1), source: NeedSource::Declared };
        let placement =
            Placement { gpus: vec![], need, budget: need.bytes, device_total: Bytes(1) };
        let identity = FoundIdentity { instance: instance(), spec_hash: SpecHash::NONE, placement };
        let found = |container: &str, identity| Found {
            container: container.to_owned(),
            identity,
            running: None,
        };
        now(Ok(vec![found("c1", Some(identity)), found("c2", None)]))
    }
    fn log_tail(&self, _: InstanceId, _: usize) -> PortFuture<'_, Vec<String>> {
        now(Vec::new())
    }
    fn ending(&self, _: InstanceId) -> PortFuture<'_, Option<Ending>> {
        now(None)
    }
    fn pids(&self, _: &Path) -> std::io::Result<Vec<u32>> {
        Ok(Vec::new())
    }
    fn info(&self) -> PortFuture<'_, Result<PodmanInfo, Fault>> {
        no()
    }
    fn image_id(&self, _: ImageRef) -> PortFuture<'_, Result<Option<String>, Fault>> {
        now(Ok(None))
    }
    fn prove_network(&self, _: Transport) -> PortFuture<'_, Result<(), Fault>> {
        no()
    }
}

#[tokio::test]
async fn a_stop_during_the_start_ends_what_an_earlier_daemon_left() {
    let left = Arc::new(Left::default());
    let ports: Arc<dyn Containers> = left.clone();
    assert!(stop_all(&ports).await.is_empty());
    let mut done = left.done.lock().unwrap().clone();
    done.sort();
    let mut expected = vec!["c2".to_owned(), instance().to_string()];
    expected.sort();
    assert_eq!(done, expected);
}

#[tokio::test]
async fn what_does_not_end_is_named() {
    let names = async |left: Left| {
        let ports: Arc<dyn Containers> = Arc::new(left);
        let mut names: Vec<String> =
            stop_all(&ports).await.into_iter().map(|(what, _)| what).collect();
        names.sort();
        names
    };
    let stuck = names(Left { stuck: true, ..Left::default() }).await;
    assert_eq!((stuck.len(), stuck.contains(&instance().to_string())), (2, true));
    assert_eq!(names(Left { away: true, ..Left::default() }).await, ["what runs of ours"]);
}

/// A signal that comes while nobody waits is not lost, and ends no process.
#[tokio::test]
async fn a_signal_from_before_anybody_waits_for_it_counts() {
    use crate::daemon::signals::Signals;
    let mut signals = Signals::listen();
    rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::TERM)
        .unwrap();
    signals.stop().await;
}
