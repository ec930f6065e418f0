//! Carries effects out.
//!
//! Purpose: turns one [`Effect`] into calls of ports and their outcome into one [`Event`]. Owner: the supervisor's task.
//! Invariants: decides nothing; every effect that promises an answer gets one, also if an adapter panics; nothing here
//! is awaited by the owner.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinHandle};

use super::event::{Event, Observation};
use super::ports::{
    CanaryError, Containers, Endpoint, Engines, Gpus, LaunchOrder, Launched, Progress, Shelf, Sign,
};
use crate::plan::Usage;
use crate::types::{
    DayMinute, Fault, FaultCode, GpuId, InstanceId, ModelName, ModelSpec, Moment, SleepLevel,
};

/// How long the end of the daemon waits for the disk.
const CLOSE_TIME: Duration = Duration::from_secs(5);

/// One adapter per port.
#[derive(Clone)]
pub struct Ports {
    /// podman.
    pub containers: Arc<dyn Containers>,
    /// NVML or the host's memory.
    pub gpus: Arc<dyn Gpus>,
    /// Engine profiles.
    pub engines: Arc<dyn Engines>,
    /// The disk.
    pub shelf: Arc<dyn Shelf>,
}

impl std::fmt::Debug for Ports {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Ports")
    }
}

/// The daemon's monotonic clock.
#[derive(Clone, Copy, Debug)]
pub struct Clock(Instant);

impl Clock {
    /// A clock that starts now.
    #[must_use]
    pub fn start() -> Self {
        Self(Instant::now())
    }

    /// The time since the start.
    #[must_use]
    pub fn now(&self) -> Moment {
        Moment(self.0.elapsed())
    }

    /// The runtime's name for a moment.
    #[must_use]
    pub fn instant(&self, moment: Moment) -> tokio::time::Instant {
        (self.0 + moment.0).into()
    }
}

/// The clock on the wall, in the time zone of the host.
pub(super) fn local_time() -> Option<DayMinute> {
    let now = jiff::Zoned::now();
    let part = |n: i8| u16::try_from(n).ok();
    DayMinute::new(part(now.hour())?, part(now.minute())?)
}

/// An instance that an observation looks at.
pub(super) struct Subject {
    pub(super) id: InstanceId,
    pub(super) launched: Launched,
    pub(super) gpus: Vec<GpuId>,
    pub(super) watched: bool,
}

pub(super) struct Executor {
    ports: Ports,
    events: mpsc::UnboundedSender<Event>,
    clock: Clock,
    probes: BTreeMap<InstanceId, AbortHandle>,
    observing: Arc<AtomicBool>,
    sweeping: Arc<AtomicBool>,
    /// Whose death is being looked into.
    dying: BTreeSet<InstanceId>,
    writer: Option<Writer>,
    /// The last pins on their way to the disk.
    pins: Option<JoinHandle<()>>,
    /// Where the adapters run, wherever the owner does.
    runtime: tokio::runtime::Handle,
}

/// The task that writes footprints down, one generation after the other; of those that came meanwhile, the newest.
struct Writer {
    newest: watch::Sender<Vec<u8>>,
    task: JoinHandle<()>,
}

impl Executor {
    pub(super) fn new(ports: Ports, events: mpsc::UnboundedSender<Event>, clock: Clock) -> Self {
        let (probes, dying) = (BTreeMap::new(), BTreeSet::new());
        let (observing, sweeping) = (Arc::default(), Arc::default());
        let runtime = tokio::runtime::Handle::current();
        Self {
            ports,
            events,
            clock,
            probes,
            observing,
            sweeping,
            dying,
            writer: None,
            pins: None,
            runtime,
        }
    }

    fn progress(&self, instance: &InstanceId) -> Progress {
        let (events, instance) = (self.events.clone(), instance.clone());
        Arc::new(move |sign| {
            let instance = instance.clone();
            let _ = events.send(match sign {
                Sign::Phase(phase) => Event::Progress { instance, phase },
                Sign::Pulled(pulled) => Event::Pulled { instance, pulled },
            });
        })
    }

    pub(super) fn provide(&self, instance: InstanceId, spec: Arc<ModelSpec>) {
        let (ports, id, progress) =
            (self.ports.clone(), instance.clone(), self.progress(&instance));
        let work = async move { ports.containers.provide(id, spec, progress).await };
        self.answer(work, move |result| match result {
            Ok(image_id) => Event::Provided { instance, image_id },
            Err(fault) => Event::LaunchFailed { instance, fault },
        });
    }

    pub(super) fn launch(&self, order: LaunchOrder) {
        let (ports, instance) = (self.ports.clone(), order.instance.clone());
        let progress = self.progress(&instance);
        let work = async move {
            let spec = ports.engines.container(&order);
            ports.containers.launch(spec, progress).await
        };
        self.answer(work, move |result| match result {
            Ok(launched) => Event::Launched { instance, launched },
            Err(fault) => Event::LaunchFailed { instance, fault },
        });
    }

    pub(super) fn stop(&mut self, instance: InstanceId, tail: bool) {
        if let Some(probe) = self.probes.remove(&instance) {
            probe.abort();
        }
        let (ports, id, events) = (self.ports.clone(), instance.clone(), self.events.clone());
        let work = async move {
            if tail {
                let (instance, log) = (id.clone(), tend::last_lines(&ports, &id).await);
                let _ = events.send(Event::Wrote { instance, log });
            }
            ports.containers.stop(id).await
        };
        self.answer(work, move |result| Event::Stopped { instance, result });
    }

    pub(super) fn save(&mut self, footprints: Vec<u8>) {
        let (ports, events) = (self.ports.clone(), self.events.clone());
        let runtime = &self.runtime;
        let writer = self.writer.get_or_insert_with(|| {
            let (newest, mut changes) = watch::channel(Vec::new());
            let task = runtime.spawn(async move {
                while changes.changed().await.is_ok() {
                    let bytes = changes.borrow_and_update().clone();
                    let _ = events.send(Event::Saved(ports.shelf.save(bytes).await));
                }
            });
            Writer { newest, task }
        });
        let _ = writer.newest.send(footprints);
    }

    pub(super) fn keep_pins(&mut self, pins: BTreeMap<ModelName, bool>) {
        // The order of the calls is the order of what was said; the writing may take its time.
        let work = self.ports.containers.keep_pins(pins);
        self.pins = Some(self.runtime.spawn(work));
    }

    /// Lets what is being written be written.
    pub(super) async fn close(self) {
        let footprints = self.writer.map(|Writer { task, .. }| ("footprints", task));
        let pins = self.pins.map(|task| ("pins", task));
        for (what, task) in footprints.into_iter().chain(pins) {
            if tokio::time::timeout(CLOSE_TIME, task).await.is_err() {
                tracing::warn!("the disk takes too long to take the last {what}, ignoring");
            }
        }
    }

    pub(super) fn reap(&self, container: String) {
        let ports = self.ports.clone();
        self.runtime.spawn(async move {
            if let Err(fault) = ports.containers.reap(container.clone()).await {
                tracing::warn!(%container, %fault, "a damaged container could not be removed, ignoring");
            }
        });
    }

    pub(super) fn await_ready(
        &mut self,
        instance: InstanceId,
        spec: Arc<ModelSpec>,
        launched: Launched,
    ) {
        let (ports, events) = (self.ports.clone(), self.events.clone());
        let id = instance.clone();
        let task = self.runtime.spawn(async move {
            let event = tend::load(&ports, &events, id, spec, launched).await;
            let _ = events.send(event);
        });
        self.probes.retain(|_, probe| !probe.is_finished());
        self.probes.insert(instance, task.abort_handle());
    }

    pub(super) fn sleep(
        &mut self,
        instance: InstanceId,
        spec: Arc<ModelSpec>,
        endpoint: Endpoint,
        level: SleepLevel,
    ) {
        let (engines, id) = (self.ports.engines.clone(), instance.clone());
        let work = async move { engines.sleep(spec, endpoint, level).await };
        self.ask(instance, work, Err, move |result| Event::Slept { instance: id, result });
    }

    pub(super) fn wake(
        &mut self,
        instance: InstanceId,
        spec: Arc<ModelSpec>,
        endpoint: Endpoint,
        level: SleepLevel,
    ) {
        let (engines, id) = (self.ports.engines.clone(), instance.clone());
        let work = async move { engines.wake(spec, endpoint, level).await };
        self.ask(instance, work, Err, move |result| Event::Woken { instance: id, result });
    }

    pub(super) fn canary(
        &mut self,
        instance: InstanceId,
        spec: Arc<ModelSpec>,
        endpoint: Endpoint,
    ) {
        let (engines, id) = (self.ports.engines.clone(), instance.clone());
        let work = async move { engines.canary(spec, endpoint).await };
        let failed = |failed| Err(CanaryError::Silent(failed));
        self.ask(instance, work, failed, move |result| Event::Sung { instance: id, result });
    }

    /// Asks an engine something, until it is stopped. A panic becomes `failed`.
    fn ask<T: Send + 'static>(
        &mut self,
        instance: InstanceId,
        work: impl Future<Output = T> + Send + 'static,
        failed: impl FnOnce(String) -> T + Send + 'static,
        event: impl FnOnce(T) -> Event + Send + 'static,
    ) {
        let events = self.events.clone();
        let work = self.runtime.spawn(work);
        self.probes.retain(|_, probe| !probe.is_finished());
        self.probes.insert(instance, work.abort_handle());
        self.runtime.spawn(async move {
            match work.await {
                Ok(result) => drop(events.send(event(result))),
                Err(err) if err.is_panic() => {
                    let text = format!("an adapter failed: {err}");
                    drop(events.send(event(failed(text))));
                }
                // Its instance is being stopped: nobody waits for it.
                Err(_) => {}
            }
        });
    }

    /// Reads the world once. `false`: a reading is still under way, and is not doubled.
    pub(super) fn observe(&self, subjects: Vec<Subject>) -> bool {
        let Some(one) = Once::begin(&self.observing) else { return false };
        let (ports, events, clock) = (self.ports.clone(), self.events.clone(), self.clock);
        self.runtime.spawn(async move {
            let _ = events.send(observe(&ports, clock, subjects).await);
            drop(one);
        });
        true
    }

    /// Runs a port call and sends its event; a panic becomes a fault.
    fn answer<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, Fault>> + Send + 'static,
        event: impl FnOnce(Result<T, Fault>) -> Event + Send + 'static,
    ) {
        let events = self.events.clone();
        let work = self.runtime.spawn(work);
        self.runtime.spawn(async move {
            let result = work.await.unwrap_or_else(|err| {
                let text = format!("an adapter failed: {err}");
                Err(Fault::new(FaultCode::Internal, text).leaving_something())
            });
            let _ = events.send(event(result));
        });
    }
}

/// One at a time: the flag is cleared however the work ends.
struct Once(Arc<AtomicBool>);

impl Once {
    fn begin(flag: &Arc<AtomicBool>) -> Option<Self> {
        (!flag.swap(true, Ordering::AcqRel)).then(|| Self(flag.clone()))
    }
}

impl Drop for Once {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

async fn observe(ports: &Ports, clock: Clock, subjects: Vec<Subject>) -> Event {
    let (taken, unix_s) = (clock.now(), unix_s());
    let before: Vec<Vec<u32>> = subjects
        .iter()
        .map(|subject| ports.containers.pids(&subject.launched.cgroup).unwrap_or_default())
        .collect();
    let snapshot = ports.gpus.snapshot().await.map(Arc::new);
    let mut usage = BTreeMap::new();
    for (subject, before) in subjects.into_iter().zip(before) {
        let pids = match ports.containers.pids(&subject.launched.cgroup) {
            Ok(pids) => pids,
            Err(err) => {
                // Not known to be dead; what it was last seen to use stays what it uses.
                tracing::warn!(instance = %subject.id, %err, "the processes could not be read, retrying");
                continue;
            }
        };
        // Whoever watches it will say that it is dead.
        if pids.is_empty() && subject.watched {
            continue;
        }
        if let Ok(snapshot) = &snapshot {
            // Whoever was in the group before the driver was read and after it was meant by the driver: a number that came into
            // the group meanwhile may have been somebody else's.
            let through = pids.iter().copied().filter(|pid| before.contains(pid)).collect();
            let bytes = ports.gpus.usage(through, subject.gpus, snapshot.clone()).await;
            usage.insert(subject.id, Usage { pids, bytes });
        }
    }
    let devices = match snapshot {
        Ok(snapshot) => Ok(Arc::unwrap_or_clone(snapshot)),
        Err(err) => Err(err.to_string()),
    };
    Event::Observed(Observation { taken, unix_s, devices, usage })
}

/// Seconds since 1970, by the system's clock.
pub(super) fn unix_s() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

mod tend;

#[cfg(test)]
mod tests;
