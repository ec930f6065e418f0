//! Everything that can be wrong with NVML, each with its own cause.

use std::sync::Arc;

use hostler::adapters::gpu::Nvml;
use hostler::supervisor::ports::{GpuError, Gpus as _};
use hostler::types::{Bytes, GpuId, Known, Silence};

use nvidia_ml::{Code, Gpu, GpuFault, Kind, Process, Script, Size};

use crate::rig::{Rig, device, gpu, usage};

#[tokio::test]
async fn each_failure_to_initialise_has_its_cause_and_ends_when_it_is_mended() {
    let rig = Rig::new().await;
    for (code, wanted) in [
        (Code::DriverNotLoaded, "modprobe nvidia"),
        (Code::LibRmVersionMismatch, "different versions"),
        (Code::NoPermission, "/dev/nvidiactl"),
        (Code::Other { number: 42 }, "42"),
        (Code::Unknown, "internal driver error"),
    ] {
        // At initialisation, and after it.
        for late in [false, true] {
            rig.reset();
            let nvml = rig.nvml();
            if late {
                nvml.snapshot().await.unwrap();
                rig.change(|script| script.fault = code);
            } else {
                rig.change(|script| script.init = code);
            }
            let error = nvml.snapshot().await.unwrap_err();
            let has_its_kind = if code == Code::DriverNotLoaded {
                matches!(error, GpuError::DriverNotLoaded(_))
            } else if code == Code::LibRmVersionMismatch {
                matches!(error, GpuError::VersionMismatch(_))
            } else {
                matches!(error, GpuError::Other(_))
            };
            let says_why = late || error.to_string().contains(wanted);
            assert!(has_its_kind && says_why, "{code:?}: {error:?}");
        }
    }
    let nvml = rig.nvml();
    rig.change(|script| script.init = Code::DriverNotLoaded);
    assert!(nvml.snapshot().await.is_err());
    rig.reset();
    assert!(nvml.snapshot().await.is_ok(), "initialisation is tried anew at each call");
}

#[tokio::test]
async fn a_library_that_is_not_there_yet_is_loaded_once_it_is() {
    let rig = Rig::new().await;
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
    assert_eq!(device(&nvml.snapshot().await.unwrap(), 0).total, Bytes::gib(23));
}

#[tokio::test]
async fn a_device_without_memory_is_refused_by_name() {
    let rig = Rig::new().await;
    rig.change(|script| script.gpus[1].fault = GpuFault::ZeroMemory);
    assert_eq!(rig.nvml().snapshot().await, Err(GpuError::ZeroMemory(gpu(1))));
    // All of it reserved leaves nothing either.
    rig.change(|script| script.gpus[1].total = script.gpus[1].reserved);
    assert_eq!(rig.nvml().snapshot().await, Err(GpuError::ZeroMemory(gpu(1))));
    rig.change(|script| script.gpus[1].fault = GpuFault::MemoryNotSupported);
    assert_eq!(rig.nvml().snapshot().await, Err(GpuError::MemoryUnsupported(gpu(1))));
    // It is nobody's business who has not configured it.
    assert!(rig.nvml_for(&[gpu(0)]).snapshot().await.is_ok());
}

#[tokio::test]
async fn a_driver_that_is_too_old_names_the_one_that_is_needed() {
    let rig = Rig::new().await;
    // The function is missing; it does not know this version of its argument.
    for number in [13, 25] {
        rig.change(|script| script.fault = Code::Ok);
        let nvml = rig.nvml();
        nvml.snapshot().await.unwrap();
        rig.change(|script| script.fault = Code::Other { number });
        let error = nvml.snapshot().await.unwrap_err();
        assert!(matches!(error, GpuError::Other(_)), "{error:?}");
        assert!(error.to_string().contains("driver 510 or newer"), "{error}");
    }
}

#[tokio::test]
async fn a_configured_device_that_does_not_exist_is_named_beside_those_that_do() {
    let rig = Rig::new().await;
    let wanted = GpuId::new("GPU-22222222-2222-2222-2222-222222222222");
    let error = rig.nvml_for(&[gpu(0), wanted.clone()]).snapshot().await.unwrap_err();
    assert_eq!(error, GpuError::NotFound { wanted, present: vec![gpu(0), gpu(1)] });
    rig.change(|script| script.gpus.clear());
    assert_eq!(rig.nvml_for(&[]).snapshot().await, Err(GpuError::NoDevices));
}

#[tokio::test]
async fn one_lost_device_leaves_the_other_and_comes_back() {
    let rig = Rig::new().await;
    for configured in [&[gpu(0), gpu(1)][..], &[]] {
        let nvml = rig.nvml_for(configured);
        assert_eq!(nvml.snapshot().await.unwrap().devices.len(), 2);
        rig.change(|script| script.gpus[1].fault = GpuFault::Lost);
        let snapshot = Arc::new(nvml.snapshot().await.unwrap());
        assert_eq!(device(&snapshot, 0).total, Bytes::gib(23));
        let [(lost, why)] = &snapshot.lost[..] else { panic!("{snapshot:?}") };
        assert_eq!(lost, &gpu(1));
        assert!(matches!(why, Silence::Gone(why) if why.contains("fell off the bus")), "{why:?}");
        let usage = nvml.usage(vec![1], vec![gpu(0), gpu(1)], snapshot).await;
        assert_eq!(usage[&gpu(0)], Known::Known(Bytes::ZERO));
        assert_eq!(usage[&gpu(1)], Known::Unknown);

        rig.change(|script| script.gpus[0].fault = GpuFault::Lost);
        // Also where none is left: what ran on them has failed.
        let none = nvml.snapshot().await.unwrap();
        assert_eq!((none.devices.len(), none.lost.len()), (0, 2));
        // Who never read them cannot know what they were.
        assert!(matches!(rig.nvml_for(configured).snapshot().await, Err(GpuError::Lost(..))));
        rig.change(|script| script.gpus.iter_mut().for_each(|gpu| gpu.fault = GpuFault::None));
        let snapshot = nvml.snapshot().await.unwrap();
        assert_eq!((snapshot.devices.len(), snapshot.lost.len()), (2, 0));
    }
}

#[tokio::test]
async fn whatever_befalls_a_device_that_once_worked_leaves_the_other() {
    let rig = Rig::new().await;
    let nvml = rig.nvml();
    nvml.snapshot().await.unwrap();
    type Change = fn(&mut Script);
    // What is not there any more is gone, and what runs on it; whatever else it says, the next word may be another.
    let changes: [(&str, bool, Change); 3] = [
        ("zero memory", false, |script| script.gpus[0].fault = GpuFault::ZeroMemory),
        ("not list it any more", true, |script| drop(script.gpus.remove(0))),
        ("internal driver error", false, |script| script.gpus[0].fault = GpuFault::MemoryUnknown),
    ];
    for (wanted, gone, change) in changes {
        rig.reset();
        rig.change(change);
        let snapshot = nvml.snapshot().await.unwrap();
        assert_eq!(device(&snapshot, 1).total, Bytes::gib(23));
        let [(lost, why)] = &snapshot.lost[..] else { panic!("{snapshot:?}") };
        assert!(lost == &gpu(0) && why.why().contains(wanted), "{lost}: {why:?}");
        assert_eq!(matches!(why, Silence::Gone(_)), gone, "{wanted}");
    }
}

#[tokio::test]
async fn a_device_that_is_lost_as_newer_drivers_tell_it_is_gone_once_that_was_said_twice() {
    let rig = Rig::new().await;
    let nvml = rig.nvml();
    nvml.snapshot().await.unwrap();
    rig.change(|script| script.gpus[1].fault = GpuFault::Unknown);
    for gone in [false, true, true] {
        let snapshot = nvml.snapshot().await.unwrap();
        assert_eq!(device(&snapshot, 0).total, Bytes::gib(23));
        let [(lost, why)] = &snapshot.lost[..] else { panic!("{snapshot:?}") };
        assert_eq!((lost, matches!(why, Silence::Gone(_))), (&gpu(1), gone), "{why:?}");
    }
    // Odd words between readings that are good are no more than that.
    for fault in [GpuFault::None, GpuFault::Unknown] {
        rig.change(|script| script.gpus[1].fault = fault);
        let snapshot = nvml.snapshot().await.unwrap();
        assert!(!snapshot.lost.iter().any(|(_, why)| matches!(why, Silence::Gone(_))));
    }
}

#[tokio::test]
async fn a_device_that_is_lost_from_the_start_is_told_and_used_when_it_answers() {
    let rig = Rig::new().await;
    rig.change(|script| script.gpus[1].fault = GpuFault::Lost);
    // Of those that nobody named, all that is known is NVML's number.
    for (configured, name) in [(&[gpu(0), gpu(1)][..], gpu(1)), (&[], GpuId::at_index(1))] {
        rig.change(|script| script.gpus[1].fault = GpuFault::Lost);
        let nvml = rig.nvml_for(configured);
        let snapshot = nvml.snapshot().await.unwrap();
        assert_eq!(device(&snapshot, 0).total, Bytes::gib(23));
        let [(lost, Silence::Gone(_))] = &snapshot.lost[..] else { panic!("{snapshot:?}") };
        assert_eq!(lost, &name);
        rig.change(|script| script.gpus[1].fault = GpuFault::None);
        let snapshot = nvml.snapshot().await.unwrap();
        assert_eq!((device(&snapshot, 1).total, snapshot.lost), (Bytes::gib(23), Vec::new()));
    }
    // One device keeps its name to itself: of two that nobody sees, one at least does not exist.
    rig.change(|script| script.gpus[1].fault = GpuFault::Lost);
    let wanted = GpuId::new("GPU-22222222-2222-2222-2222-222222222222");
    let error = rig.nvml_for(&[gpu(0), gpu(1), wanted.clone()]).snapshot().await.unwrap_err();
    assert_eq!(error, GpuError::NotFound { wanted, present: vec![gpu(0)] });
    // Nobody's business who has not configured it.
    assert_eq!(rig.nvml_for(&[gpu(0)]).snapshot().await.unwrap().lost, []);
}

#[tokio::test]
async fn devices_that_are_made_anew_are_gone_also_where_they_were_all() {
    let rig = Rig::new().await;
    let divide = |names: [&'static str; 2]| {
        rig.change(move |script| {
            script.gpus.truncate(1);
            script.gpus[0].mig = Some(true);
            script.gpus[0].mig_devices = names.map(|name| Gpu::new(name, 10 << 30)).to_vec();
        });
    };
    divide(["MIG-a", "MIG-b"]);
    let nvml = rig.nvml_for(&[]);
    assert_eq!(nvml.snapshot().await.unwrap().devices.len(), 2);
    divide(["MIG-c", "MIG-d"]);
    let snapshot = nvml.snapshot().await.unwrap();
    assert_eq!((snapshot.devices.len(), snapshot.lost.len()), (0, 2));
    for (_, why) in snapshot.lost {
        assert!(matches!(&why, Silence::Gone(why) if why.contains("MIG-c, MIG-d")), "{why:?}");
    }
    divide(["MIG-a", "MIG-b"]);
    assert_eq!(nvml.snapshot().await.unwrap().devices.len(), 2);
}

#[tokio::test]
async fn a_driver_that_writes_broken_process_lists_is_not_asked_for_them() {
    let rig = Rig::new().await;
    rig.change(|script| {
        script.driver = "535.86.05".into();
        script.gpus[0].processes = vec![Process { pid: 1, bytes: Size(500), kind: Kind::Compute }];
    });
    let nvml = rig.nvml();
    assert_eq!(usage(&nvml, &[1], 0).await, Known::Unknown);
    rig.change(|script| script.driver = "535.104.05".into());
    assert_eq!(usage(&nvml, &[1], 0).await, Known::Known(Bytes(500)));
}
