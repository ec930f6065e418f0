//! Device memory from NVIDIA's management library.
//!
//! Purpose: the [`Gpus`] port on NVML. Owner: the composition root. Invariants: all NVML calls happen on one thread
//! ([`super::thread`]); every call ends within the deadline; initialisation is tried anew at each call until it works,
//! so retrying is the caller's to time. What is read, and what its errors mean, is [`super::reader`]'s.
//!
//! # What the numbers are
//! `total` is v2 `total − reserved`, `used` is v2 `used` (all processes, without what is reserved), both of the whole
//! device. `processes` are NVML's compute and graphics lists merged by PID; PIDs are those of the initial PID
//! namespace, so the daemon must live there too. A MIG device is configured by its own UUID (`MIG-…`); without
//! configured devices, a device in MIG mode counts as its MIG devices.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::partial::Partial;
use super::reader::Reader;
use super::thread::{NoAnswer, Worker};
use super::vitals::Last;
use crate::supervisor::ports::{GpuError, Gpus, PortFuture};
use crate::types::{Bytes, GpuId, GpuReading, GpuSnapshot, GpuVitals, Known};

/// The NVML backend.
pub struct Nvml {
    worker: Worker<Result<GpuSnapshot, GpuError>>,
    deadline: Duration,
    /// It has answered once.
    answered: AtomicBool,
    partial: Arc<Partial>,
    vitals: Arc<Last>,
}

impl Nvml {
    /// A backend for these devices (empty: all there are, as first found), with [`super::DEADLINE`] for each call.
    /// `library` is the path of `libnvidia-ml.so.1`; `None`: as the dynamic linker finds it. Does nothing yet: the
    /// library is loaded and initialised by the first call, and again by each later one until that works.
    #[must_use]
    pub fn start(library: Option<PathBuf>, devices: Vec<GpuId>) -> Self {
        Self::with_deadline(library, devices, super::DEADLINE)
    }

    /// Like [`Nvml::start`], with a deadline of its own for each call but the first, which has [`super::FIRST`] at least.
    #[must_use]
    pub fn with_deadline(
        library: Option<PathBuf>,
        devices: Vec<GpuId>,
        deadline: Duration,
    ) -> Self {
        let vitals = Arc::new(Last::default());
        let partial = Arc::new(Partial::default());
        let (last, found) = (vitals.clone(), partial.clone());
        let worker = Worker::new("hostler-nvml", move || {
            let mut reader = Reader::new(library.clone(), devices.clone(), deadline, found.clone());
            let last = last.clone();
            Box::new(move || {
                let (snapshot, vitals) = match reader.read() {
                    Ok((snapshot, vitals)) => (Ok(snapshot), vitals),
                    Err(error) => (Err(error), Vec::new()),
                };
                last.set(vitals);
                snapshot
            })
        });
        Self { worker, deadline, answered: AtomicBool::new(false), partial, vitals }
    }
}

impl Gpus for Nvml {
    /// As the port says. Where a device hangs, what the others said by then; while that reading hangs on in the driver, fails at once with
    /// [`GpuError::Timeout`].
    fn snapshot(&self) -> PortFuture<'_, Result<GpuSnapshot, GpuError>> {
        Box::pin(async move {
            let answered = self.answered.load(Ordering::Relaxed);
            let deadline = if answered { self.deadline } else { self.deadline.max(super::FIRST) };
            match self.worker.call(deadline).await {
                Ok(answer) => {
                    self.answered.fetch_or(answer.is_ok(), Ordering::Relaxed);
                    answer
                }
                Err(NoAnswer::Timeout) => self.partial.take(deadline).ok_or(if answered {
                    GpuError::Timeout(deadline)
                } else {
                    GpuError::NoFirstAnswer(deadline)
                }),
                Err(NoAnswer::Broken(why)) => Err(GpuError::Other(why)),
            }
        })
    }

    /// From the last reading; asks the driver for nothing.
    fn vitals(&self) -> PortFuture<'_, Vec<GpuVitals>> {
        Box::pin(std::future::ready(self.vitals.get()))
    }

    fn usage(
        &self,
        pids: Vec<u32>,
        gpus: Vec<GpuId>,
        snapshot: Arc<GpuSnapshot>,
    ) -> PortFuture<'_, BTreeMap<GpuId, Known<Bytes>>> {
        Box::pin(async move { attribute(&pids, gpus, &snapshot) })
    }
}

/// Bytes that `pids` hold on each of `gpus`, as far as `snapshot` tells.
fn attribute(
    pids: &[u32],
    gpus: Vec<GpuId>,
    snapshot: &GpuSnapshot,
) -> BTreeMap<GpuId, Known<Bytes>> {
    gpus.into_iter()
        .map(|gpu| {
            let reading = snapshot.devices.iter().find(|device| device.id == gpu);
            let bytes = reading.map_or(Known::Unknown, |reading| held(pids, reading));
            (gpu, bytes)
        })
        .collect()
}

fn held(pids: &[u32], reading: &GpuReading) -> Known<Bytes> {
    if pids.is_empty() {
        return Known::Known(Bytes::ZERO);
    }
    // Virtual GPUs, some drivers, and a PID namespace that NVML cannot see into: memory is in use, but by nobody that
    // the driver would name with a number. Then "not in the list" does not mean "holds nothing".
    let attributes_nothing =
        reading.processes.iter().all(|process| process.bytes == Known::Unknown);
    if attributes_nothing && (reading.used > Bytes::ZERO || !reading.processes.is_empty()) {
        return Known::Unknown;
    }
    let mut sum = Bytes::ZERO;
    for process in reading.processes.iter().filter(|process| pids.contains(&process.pid)) {
        match process.bytes {
            Known::Known(bytes) => sum += bytes,
            Known::Unknown => return Known::Unknown,
        }
    }
    Known::Known(sum)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{ProcessMemory, Silence};

    fn device(id: &str, used: u64, processes: &[(u32, Option<u64>)]) -> GpuReading {
        let processes = processes
            .iter()
            .map(|&(pid, bytes)| ProcessMemory {
                pid,
                bytes: bytes.map_or(Known::Unknown, |b| Known::Known(Bytes(b))),
            })
            .collect();
        GpuReading {
            id: GpuId::new(id),
            name: "test".into(),
            total: Bytes(1000),
            used: Bytes(used),
            processes,
        }
    }

    fn on(device: GpuReading, pids: &[u32]) -> Known<Bytes> {
        let gpu = device.id.clone();
        let snapshot =
            GpuSnapshot { devices: vec![device], lost: Vec::new(), driver: String::new() };
        attribute(pids, vec![gpu.clone()], &snapshot)[&gpu]
    }

    #[test]
    fn matching_processes_add_up() {
        let list = [(1, Some(10)), (2, Some(20)), (3, Some(40))];
        assert_eq!(on(device("a", 70, &list), &[1, 3, 9]), Known::Known(Bytes(50)));
        assert_eq!(on(device("a", 70, &list), &[9]), Known::Known(Bytes::ZERO));
        assert_eq!(on(device("a", 70, &list), &[]), Known::Known(Bytes::ZERO));
    }

    #[test]
    fn what_the_driver_does_not_say_is_unknown() {
        let list = [(1, Some(10)), (2, None)];
        assert_eq!(on(device("a", 70, &list), &[1, 2]), Known::Unknown);
        assert_eq!(on(device("a", 70, &list), &[1]), Known::Known(Bytes(10)));
        // No numbers at all: a process that is not listed may well hold memory.
        assert_eq!(on(device("a", 70, &[(2, None)]), &[1]), Known::Unknown);
        assert_eq!(on(device("a", 70, &[]), &[1]), Known::Unknown);
        assert_eq!(on(device("a", 70, &[]), &[]), Known::Known(Bytes::ZERO));
        // Nothing in use at all: then these hold nothing either.
        assert_eq!(on(device("a", 0, &[]), &[1]), Known::Known(Bytes::ZERO));
    }

    #[test]
    fn a_device_that_did_not_answer_is_unknown() {
        let gone = GpuId::new("gone");
        let snapshot = GpuSnapshot {
            devices: vec![device("a", 5, &[(1, Some(5))])],
            lost: vec![(gone.clone(), Silence::Gone("off the bus".into()))],
            driver: String::new(),
        };
        let usage = attribute(&[1], vec![GpuId::new("a"), gone.clone()], &snapshot);
        assert_eq!(usage[&GpuId::new("a")], Known::Known(Bytes(5)));
        assert_eq!(usage[&gone], Known::Unknown);
        assert_eq!(usage.len(), 2);
    }

    #[tokio::test]
    async fn a_missing_library_is_reported_at_each_call() {
        let nvml = Nvml::start(Some("/nonexistent/libnvidia-ml.so.1".into()), Vec::new());
        for _ in 0..2 {
            assert!(matches!(nvml.snapshot().await, Err(GpuError::LibraryMissing(_))));
        }
    }
}
