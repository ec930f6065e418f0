//! Totals, and who holds what.

use std::process::{Command, Stdio};

use hostler::supervisor::ports::Gpus as _;
use hostler::types::{Bytes, GpuId, Known};

use crate::rig::{Process, Rig, device, gpu, usage};

#[tokio::test]
async fn total_is_without_what_is_reserved_and_used_is_that_of_version_two() {
    let mut rig = Rig::new();
    rig.change(|script| script.gpus[1].used = 5 << 30);
    let snapshot = rig.nvml().snapshot().await.unwrap();
    assert!(snapshot.lost.is_empty());
    assert_eq!(snapshot.devices.len(), 2);
    for index in [0, 1] {
        let device = device(&snapshot, index);
        assert_eq!(device.total, Bytes::gib(23));
        assert!(!device.name.is_empty());
    }
    assert_eq!(device(&snapshot, 0).used, Bytes::ZERO);
    assert_eq!(device(&snapshot, 1).used, Bytes::gib(5), "without the reserved GiB");
}

#[tokio::test]
async fn only_the_configured_devices_are_read_in_their_order() {
    let rig = Rig::new();
    let ids = async |wanted: &[GpuId]| {
        let snapshot = rig.nvml_for(wanted).snapshot().await.unwrap();
        snapshot.devices.into_iter().map(|device| device.id).collect::<Vec<_>>()
    };
    assert_eq!(ids(&[gpu(1)]).await, [gpu(1)]);
    assert_eq!(ids(&[gpu(1), gpu(0)]).await, [gpu(1), gpu(0)]);
    assert_eq!(ids(&[]).await, [gpu(0), gpu(1)], "none configured: all there are");
}

#[tokio::test]
async fn a_live_process_is_charged_its_exact_bytes_until_it_lets_go() {
    let mut rig = Rig::new();
    let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
    let (pid, held) = (child.id(), (3 << 30) + 12_345);
    let other = std::process::id();
    rig.change(|script| {
        script.gpus[0].used = held + 777;
        script.processes = vec![
            Process { gpu: 0, pid, bytes: Some(held), graphics: false },
            Process { gpu: 0, pid: other, bytes: Some(777), graphics: false },
            Process { gpu: 1, pid: other, bytes: Some(55), graphics: false },
        ];
    });
    let nvml = rig.nvml();
    assert_eq!(usage(&nvml, &[pid], 0).await, Known::Known(Bytes(held)));
    assert_eq!(usage(&nvml, &[pid, other], 0).await, Known::Known(Bytes(held + 777)));
    assert_eq!(usage(&nvml, &[pid], 1).await, Known::Known(Bytes::ZERO));
    assert_eq!(usage(&nvml, &[], 0).await, Known::Known(Bytes::ZERO));

    child.kill().unwrap();
    child.wait().unwrap();
    rig.change(|script| {
        script.processes.remove(0);
        script.gpus[0].used = 777;
    });
    assert_eq!(usage(&nvml, &[pid], 0).await, Known::Known(Bytes::ZERO));
    assert_eq!(device(&nvml.snapshot().await.unwrap(), 0).used, Bytes(777));
}

#[tokio::test]
async fn compute_and_graphics_of_one_process_are_one_entry() {
    let mut rig = Rig::new();
    let pid = std::process::id();
    rig.change(|script| {
        script.processes = vec![
            Process { gpu: 0, pid, bytes: Some(100), graphics: false },
            Process { gpu: 0, pid, bytes: Some(100), graphics: true },
            Process { gpu: 0, pid: pid + 1, bytes: Some(7), graphics: true },
        ];
    });
    let nvml = rig.nvml();
    assert_eq!(usage(&nvml, &[pid], 0).await, Known::Known(Bytes(100)));
    assert_eq!(usage(&nvml, &[pid + 1], 0).await, Known::Known(Bytes(7)));
}

#[tokio::test]
async fn bytes_that_the_driver_does_not_attribute_are_unknown() {
    let mut rig = Rig::new();
    let pid = std::process::id();
    rig.change(|script| {
        script.gpus[0].used = 10 << 30;
        script.processes = vec![Process { gpu: 0, pid, bytes: None, graphics: false }];
    });
    let nvml = rig.nvml();
    assert_eq!(usage(&nvml, &[pid], 0).await, Known::Unknown);
    // Nobody has a number, so this one may hold memory as well.
    assert_eq!(usage(&nvml, &[pid + 1], 0).await, Known::Unknown);
    // Memory is in use, and no process is listed at all.
    rig.change(|script| script.processes.clear());
    assert_eq!(usage(&nvml, &[pid], 0).await, Known::Unknown);
    assert_eq!(device(&nvml.snapshot().await.unwrap(), 0).used, Bytes::gib(10));
}

#[tokio::test]
async fn more_processes_than_the_first_guess_are_all_listed() {
    let mut rig = Rig::new();
    rig.change(|script| {
        let process = |pid| Process { gpu: 0, pid, bytes: Some(u64::from(pid)), graphics: false };
        script.processes = (1..=50).map(process).collect();
    });
    let pids: Vec<_> = (1..=50).collect();
    assert_eq!(usage(&rig.nvml(), &pids, 0).await, Known::Known(Bytes(50 * 51 / 2)));
}
