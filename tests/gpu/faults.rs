//! Everything that can be wrong with NVML, each with its own cause.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hostler::adapters::gpu::Nvml;
use hostler::supervisor::ports::{GpuError, Gpus as _};
use hostler::types::{Bytes, GpuId, Known};

use crate::rig::{Gpu, Process, Rig, device, gpu, usage};

// NVML's numbers, from nvml.h.
const NOT_SUPPORTED: u32 = 3;
const NO_PERMISSION: u32 = 4;
const DRIVER_NOT_LOADED: u32 = 9;
const FUNCTION_NOT_FOUND: u32 = 13;
const GPU_IS_LOST: u32 = 15;
const VERSION_MISMATCH: u32 = 18;
const ARGUMENT_VERSION_MISMATCH: u32 = 25;
const FROM_THE_FUTURE: u32 = 42;
const UNKNOWN: u32 = 999;

#[tokio::test]
async fn each_failure_to_initialise_has_its_cause_and_ends_when_it_is_mended() {
    let mut rig = Rig::new();
    let nvml = rig.nvml();
    for (code, wanted) in [
        (DRIVER_NOT_LOADED, "modprobe nvidia"),
        (VERSION_MISMATCH, "different versions"),
        (NO_PERMISSION, "/dev/nvidiactl"),
        (FROM_THE_FUTURE, "42"),
        (UNKNOWN, "internal driver error"),
    ] {
        rig.change(|script| script.init = code);
        let error = nvml.snapshot().await.unwrap_err();
        let has_its_kind = match code {
            DRIVER_NOT_LOADED => matches!(error, GpuError::DriverNotLoaded(_)),
            VERSION_MISMATCH => matches!(error, GpuError::VersionMismatch(_)),
            _ => matches!(error, GpuError::Other(_)),
        };
        assert!(has_its_kind && error.to_string().contains(wanted), "{code}: {error:?}");
    }
    rig.change(|script| script.init = 0);
    assert!(nvml.snapshot().await.is_ok(), "initialisation is tried anew at each call");
}

#[tokio::test]
async fn a_library_that_is_not_there_yet_is_loaded_once_it_is() {
    let rig = Rig::new();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("libnvidia-ml.so.1");
    let nvml = Nvml::start(Some(path.clone()), vec![gpu(0)]);
    let error = nvml.snapshot().await.unwrap_err();
    assert!(matches!(error, GpuError::LibraryMissing(_)), "{error:?}");
    assert!(error.to_string().contains(&path.display().to_string()), "{error}");
    // A file that is no library.
    std::fs::write(&path, "no ELF").unwrap();
    assert!(matches!(nvml.snapshot().await, Err(GpuError::LibraryMissing(_))));

    std::fs::remove_file(&path).unwrap();
    std::fs::copy(rig.library(), &path).unwrap();
    std::fs::copy(rig.library().with_file_name("script"), dir.path().join("script")).unwrap();
    assert_eq!(device(&nvml.snapshot().await.unwrap(), 0).total, Bytes::gib(23));
}

#[tokio::test]
async fn a_hang_is_a_timeout_then_fails_fast_then_ends() {
    let mut rig = Rig::new();
    let deadline = Duration::from_millis(200);
    let nvml = Nvml::with_deadline(Some(rig.library()), vec![gpu(0)], deadline);
    let sound = async || loop {
        // The first call loads the library, which may take longer than this deadline on a busy machine.
        if let Ok(snapshot) = nvml.snapshot().await {
            break snapshot;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    let patience = Duration::from_secs(20);
    tokio::time::timeout(patience, sound()).await.unwrap();

    rig.change(|script| script.hang = true);
    let start = Instant::now();
    assert_eq!(nvml.snapshot().await, Err(GpuError::Timeout(deadline)));
    assert!(start.elapsed() >= deadline);
    let start = Instant::now();
    for _ in 0..100 {
        assert_eq!(nvml.snapshot().await, Err(GpuError::Timeout(deadline)));
    }
    assert!(start.elapsed() < deadline * 10, "100 calls behind a hang took {:?}", start.elapsed());

    rig.change(|script| script.hang = false);
    let snapshot = tokio::time::timeout(patience, sound()).await.unwrap();
    assert_eq!(device(&snapshot, 0).total, Bytes::gib(23));
}

#[tokio::test]
async fn a_device_without_memory_is_refused_by_name() {
    let mut rig = Rig::new();
    rig.change(|script| script.gpus[1].total = 0);
    assert_eq!(rig.nvml().snapshot().await, Err(GpuError::ZeroMemory(gpu(1))));
    // All of it reserved leaves nothing either.
    rig.change(|script| (script.gpus[1].total, script.gpus[1].reserved) = (1 << 30, 1 << 30));
    assert_eq!(rig.nvml().snapshot().await, Err(GpuError::ZeroMemory(gpu(1))));
    rig.change(|script| script.gpus[1].fault = NOT_SUPPORTED);
    assert_eq!(rig.nvml().snapshot().await, Err(GpuError::MemoryUnsupported(gpu(1))));
    // It is nobody's business who has not configured it.
    assert!(rig.nvml_for(&[gpu(0)]).snapshot().await.is_ok());
}

#[tokio::test]
async fn a_driver_that_is_too_old_names_the_one_that_is_needed() {
    let mut rig = Rig::new();
    for fault in [FUNCTION_NOT_FOUND, ARGUMENT_VERSION_MISMATCH] {
        rig.change(|script| {
            script.driver = "470.256.02";
            script.gpus[0].fault = fault;
        });
        let error = rig.nvml().snapshot().await.unwrap_err();
        assert!(matches!(error, GpuError::Other(_)), "{error:?}");
        for part in ["470.256.02", "510", "nvmlDeviceGetMemoryInfo_v2"] {
            assert!(error.to_string().contains(part), "{error}");
        }
    }
}

#[tokio::test]
async fn a_configured_device_that_does_not_exist_is_named_beside_those_that_do() {
    let mut rig = Rig::new();
    let wanted = GpuId::new("GPU-22222222-2222-2222-2222-222222222222");
    let error = rig.nvml_for(&[gpu(0), wanted.clone()]).snapshot().await.unwrap_err();
    assert_eq!(error, GpuError::NotFound { wanted, present: vec![gpu(0), gpu(1)] });
    rig.change(|script| script.gpus.clear());
    assert_eq!(rig.nvml_for(&[]).snapshot().await, Err(GpuError::NoDevices));
}

#[tokio::test]
async fn one_lost_device_leaves_the_other_and_comes_back() {
    let mut rig = Rig::new();
    for configured in [&[gpu(0), gpu(1)][..], &[]] {
        let nvml = rig.nvml_for(configured);
        assert_eq!(nvml.snapshot().await.unwrap().devices.len(), 2);
        rig.change(|script| script.gpus[1].fault = GPU_IS_LOST);
        let snapshot = Arc::new(nvml.snapshot().await.unwrap());
        assert_eq!(device(&snapshot, 0).total, Bytes::gib(23));
        let [(lost, why)] = &snapshot.lost[..] else { panic!("{snapshot:?}") };
        assert_eq!(lost, &gpu(1));
        assert!(why.contains("fell off the bus"), "{why}");
        let usage = nvml.usage(vec![1], vec![gpu(0), gpu(1)], snapshot).await;
        assert_eq!(usage[&gpu(0)], Known::Known(Bytes::ZERO));
        assert_eq!(usage[&gpu(1)], Known::Unknown);

        rig.change(|script| script.gpus[0].fault = GPU_IS_LOST);
        assert!(matches!(nvml.snapshot().await, Err(GpuError::Lost(..))));
        rig.change(|script| script.gpus.iter_mut().for_each(|gpu| gpu.fault = 0));
        let snapshot = nvml.snapshot().await.unwrap();
        assert_eq!((snapshot.devices.len(), snapshot.lost.len()), (2, 0));
    }
}

#[tokio::test]
async fn whatever_befalls_a_device_that_once_worked_leaves_the_other() {
    let mut rig = Rig::new();
    let nvml = rig.nvml();
    nvml.snapshot().await.unwrap();
    let sound = rig.script.clone();
    type Change = fn(&mut Gpu);
    let changes: [(&str, Change); 3] = [
        ("zero memory", |gpu| gpu.total = 0),
        ("does not exist", |gpu| gpu.absent = true),
        ("internal driver error", |gpu| gpu.fault = UNKNOWN),
    ];
    for (wanted, change) in changes {
        rig.change(|script| {
            script.clone_from(&sound);
            change(&mut script.gpus[0]);
        });
        let snapshot = nvml.snapshot().await.unwrap();
        assert_eq!(device(&snapshot, 1).total, Bytes::gib(23));
        let [(lost, why)] = &snapshot.lost[..] else { panic!("{snapshot:?}") };
        assert!(lost == &gpu(0) && why.contains(wanted), "{lost}: {why}");
    }
}

#[tokio::test]
async fn a_driver_that_writes_broken_process_lists_is_not_asked_for_them() {
    let mut rig = Rig::new();
    rig.change(|script| {
        script.driver = "535.86.05";
        script.gpus[0].used = 500;
        script.processes = vec![Process { gpu: 0, pid: 1, bytes: Some(500), graphics: false }];
    });
    let nvml = rig.nvml();
    assert_eq!(usage(&nvml, &[1], 0).await, Known::Unknown);
    rig.change(|script| script.driver = "535.104.05");
    assert_eq!(usage(&nvml, &[1], 0).await, Known::Known(Bytes(500)));
}
