//! Totals, and who holds what.

use hostler::supervisor::ports::Gpus as _;
use hostler::types::{Bytes, GpuId, Known};

use nvidia_ml::{GpuFault, Kind, Process, ProcessMemory, Size};

use crate::rig::{Rig, device, gpu, usage};

#[tokio::test]
async fn total_is_without_what_is_reserved_and_used_is_that_of_version_two() {
    let rig = Rig::new().await;
    rig.change(|script| script.gpus[1].foreign = Size(5 << 30));
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
    let rig = Rig::new().await;
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
    let rig = Rig::new().await;
    let held = (3 << 30) + 12_345;
    let one = rig.claimant(0, held);
    let two = rig.claimant(0, 777);
    let nvml = rig.nvml();
    assert_eq!(usage(&nvml, &[one.pid()], 0).await, Known::Known(Bytes(held)));
    assert_eq!(usage(&nvml, &[two.pid(), one.pid()], 0).await, Known::Known(Bytes(held + 777)));
    assert_eq!(usage(&nvml, &[one.pid()], 1).await, Known::Known(Bytes::ZERO));
    assert_eq!(usage(&nvml, &[], 0).await, Known::Known(Bytes::ZERO));
    assert_eq!(device(&nvml.snapshot().await.unwrap(), 0).used, Bytes(held + 777));

    let pid = one.pid();
    drop(one);
    assert_eq!(usage(&nvml, &[pid], 0).await, Known::Known(Bytes::ZERO));
    assert_eq!(device(&nvml.snapshot().await.unwrap(), 0).used, Bytes(777));
}

/// A process of the script alone.
fn process(pid: u32, bytes: u64, kind: Kind) -> Process {
    Process { pid, bytes: Size(bytes), kind }
}

#[tokio::test]
async fn compute_and_graphics_of_one_process_are_one_entry() {
    let rig = Rig::new().await;
    let pid = std::process::id();
    rig.change(|script| {
        script.gpus[0].processes = vec![
            process(pid, 100, Kind::Compute),
            process(pid, 100, Kind::Graphics),
            process(pid + 1, 7, Kind::Graphics),
        ];
    });
    let nvml = rig.nvml();
    assert_eq!(usage(&nvml, &[pid], 0).await, Known::Known(Bytes(100)));
    assert_eq!(usage(&nvml, &[pid + 1], 0).await, Known::Known(Bytes(7)));
}

#[tokio::test]
async fn bytes_that_the_driver_does_not_attribute_are_unknown() {
    let rig = Rig::new().await;
    let pid = std::process::id();
    rig.change(|script| {
        script.gpus[0].process_memory = ProcessMemory::NotAvailable;
        script.gpus[0].processes = vec![process(pid, 10 << 30, Kind::Compute)];
    });
    let nvml = rig.nvml();
    assert_eq!(usage(&nvml, &[pid], 0).await, Known::Unknown);
    // Nobody has a number, so this one may hold memory as well.
    assert_eq!(usage(&nvml, &[pid + 1], 0).await, Known::Unknown);
    // Memory is in use, and no process is listed at all.
    for fault in [GpuFault::None, GpuFault::ProcessesNotSupported, GpuFault::ProcessesNoPermission]
    {
        rig.change(|script| {
            script.gpus[0].processes.clear();
            script.gpus[0].foreign = Size(10 << 30);
            script.gpus[0].fault = fault;
        });
        assert_eq!(usage(&nvml, &[pid], 0).await, Known::Unknown);
        assert_eq!(device(&nvml.snapshot().await.unwrap(), 0).used, Bytes::gib(10));
    }
}

#[tokio::test]
async fn more_processes_than_the_first_guess_are_all_listed() {
    let rig = Rig::new().await;
    rig.change(|script| {
        let all = (1..=50).map(|pid| process(pid, u64::from(pid), Kind::Compute));
        script.gpus[0].processes = all.collect();
    });
    let pids: Vec<_> = (1..=50).collect();
    assert_eq!(usage(&rig.nvml(), &pids, 0).await, Known::Known(Bytes(50 * 51 / 2)));
}
