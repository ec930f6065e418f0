//! Drivers and devices that take their time.

use std::time::{Duration, Instant};

use hostler::adapters::gpu::Nvml;
use hostler::supervisor::ports::{GpuError, Gpus as _};
use hostler::types::{Bytes, GpuId, GpuSnapshot, Silence};

use crate::rig::{Rig, device, gpu};

type Answer = Result<GpuSnapshot, GpuError>;

/// Asks until an answer is as wanted.
async fn until(nvml: &Nvml, wanted: impl Fn(&Answer) -> bool) -> Answer {
    let asking = async {
        loop {
            let answer = nvml.snapshot().await;
            if wanted(&answer) {
                break answer;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), asking).await.expect("never answered so")
}

#[tokio::test]
async fn the_first_answer_may_take_as_long_as_a_driver_needs_to_prepare_its_devices() {
    let rig = Rig::new().await;
    rig.change(|script| script.gpus.iter_mut().for_each(|gpu| gpu.wake_ms = 600));
    let deadline = Duration::from_millis(500);
    let nvml = Nvml::with_deadline(Some(rig.library()), Vec::new(), deadline);
    let start = Instant::now();
    assert_eq!(nvml.snapshot().await.unwrap().devices.len(), 2);
    assert!(start.elapsed() > 2 * deadline, "it woke nobody");
}

#[tokio::test]
async fn a_hang_is_a_timeout_then_fails_fast_then_ends() {
    let rig = Rig::new().await;
    let deadline = Duration::from_millis(200);
    let nvml = Nvml::with_deadline(Some(rig.library()), vec![gpu(0)], deadline);
    nvml.snapshot().await.unwrap();

    // Long enough for a busy machine to make all the calls below meanwhile.
    rig.change(|script| script.hang_ms = 3000);
    let start = Instant::now();
    assert_eq!(nvml.snapshot().await, Err(GpuError::Timeout(deadline)));
    assert!(start.elapsed() >= deadline);
    let start = Instant::now();
    for _ in 0..100 {
        assert_eq!(nvml.snapshot().await, Err(GpuError::Timeout(deadline)));
    }
    assert!(start.elapsed() < deadline * 10, "100 calls behind a hang took {:?}", start.elapsed());

    rig.reset();
    let snapshot = until(&nvml, |answer| answer.is_ok()).await.unwrap();
    assert_eq!(device(&snapshot, 0).total, Bytes::gib(23));
}

#[tokio::test]
async fn one_device_that_hangs_keeps_no_other_from_being_read() {
    let rig = Rig::new().await;
    let deadline = Duration::from_secs(1);
    let nvml = Nvml::with_deadline(Some(rig.library()), vec![gpu(0), gpu(1)], deadline);
    nvml.snapshot().await.unwrap();
    rig.change(|script| script.gpus[0].hang_ms = 500);
    // Two of its calls take as long as the deadline. It is the first in NVML's order: once it has hung it is asked last.
    let without = |answer: &Answer| {
        answer.as_ref().is_ok_and(|found| {
            let ids: Vec<&GpuId> = found.devices.iter().map(|device| &device.id).collect();
            ids == [&gpu(1)] && matches!(&found.lost[..], [(_, Silence::Unread(_))])
        })
    };
    let snapshot = until(&nvml, without).await.unwrap();
    let [(hangs, why)] = &snapshot.lost[..] else { panic!("{snapshot:?}") };
    assert!(hangs == &gpu(0) && why.why().contains("did not answer for it within"), "{why:?}");
    // When it has hung once more it is left alone for a while, and nothing hangs.
    let rests = |answer: &Answer| {
        without(answer) && answer.as_ref().is_ok_and(|a| a.lost[0].1.why().contains("dmesg"))
    };
    until(&nvml, rests).await.unwrap();
    for _ in 0..3 {
        assert!(rests(&nvml.snapshot().await));
    }
    // Then it is asked again.
    rig.reset();
    let found = until(&nvml, |answer| answer.as_ref().is_ok_and(|a| a.lost.is_empty())).await;
    assert_eq!(device(&found.unwrap(), 0).total, Bytes::gib(23));
}
