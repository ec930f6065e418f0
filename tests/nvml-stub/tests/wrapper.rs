//! The built library under the real `nvml-wrapper`.
#![expect(clippy::unwrap_used, reason = "a panic is how a test reports its failure")]

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nvidia_ml::{Claim, Device, Process, Script};
use nvml_wrapper::Nvml;
use nvml_wrapper::enums::device::UsedGpuMemory;
use nvml_wrapper::error::NvmlError;

/// The cdylib lies beside the test: cargo builds it together with the rlib.
fn library() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let beside = test.parent().unwrap().join("libnvidia_ml.so");
    assert!(beside.exists(), "{} is missing", beside.display());
    beside
}

fn init() -> Result<Nvml, NvmlError> {
    Nvml::builder().lib_path(library().as_os_str()).init()
}

/// Runs this test binary again as a process that holds memory until it is killed.
fn holder(dir: &Path, uuid: &str, bytes: u64) -> Child {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "hold_when_asked", "--nocapture"])
        .env("HOLD", format!("{uuid}={bytes}"))
        .env("NVSTUB", dir)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("holding")));
    child
}

/// No test by itself: the body of [`holder`]'s process.
#[test]
fn hold_when_asked() {
    let Ok(what) = std::env::var("HOLD") else { return };
    let (uuid, bytes) = what.split_once('=').unwrap();
    let _claim = Claim::take(&nvidia_ml::directory(), uuid, bytes.parse().unwrap()).unwrap();
    println!("\nholding");
    loop {
        std::thread::park();
    }
}

/// One test, because the stage is named by the process's environment.
#[test]
fn the_real_wrapper_reads_the_stage() {
    let dir = tempfile::tempdir().unwrap();
    // SAFETY: this is the only thread that touches the environment while the test runs.
    unsafe { std::env::set_var("NVSTUB", dir.path()) };
    let device = Device { reserved: 1 << 30, used: 5, release_lag_ms: 300, ..Device::default() };
    let mut script = Script { devices: vec![device.clone()], ..Script::default() };
    let play = |script: &Script| script.write(dir.path()).unwrap();

    for (code, wanted) in [(9, "DriverNotLoaded"), (18, "LibRmVersionMismatch"), (999, "Unknown")] {
        script.init = code;
        play(&script);
        let error = init().err().unwrap();
        assert_eq!(format!("{error:?}"), wanted);
    }
    script.init = 0;
    play(&script);
    let nvml = init().unwrap();
    assert_eq!(nvml.device_count().unwrap(), 1);
    let gpu = nvml.device_by_uuid(device.uuid.as_str()).unwrap();
    let memory = gpu.memory_info().unwrap();
    assert_eq!((memory.total, memory.reserved, memory.used), (24 << 30, 1 << 30, 5));
    assert!(matches!(nvml.device_by_uuid("GPU-other"), Err(NvmlError::NotFound)));

    // A live process and its claim; a kill ends it after the lag.
    let mut child = holder(dir.path(), &device.uuid, 7_000);
    let processes = gpu.running_compute_processes().unwrap();
    assert_eq!(processes.len(), 1);
    assert_eq!(processes[0].pid, child.id());
    assert!(matches!(processes[0].used_gpu_memory, UsedGpuMemory::Used(7_000)));
    assert_eq!(gpu.memory_info().unwrap().used, 7_005);
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(gpu.running_compute_processes().unwrap().is_empty());
    assert_eq!(gpu.memory_info().unwrap().used, 7_005, "the driver lags");
    let begun = Instant::now();
    while gpu.memory_info().unwrap().used != 5 {
        assert!(begun.elapsed() < Duration::from_secs(10));
        std::thread::sleep(Duration::from_millis(10));
    }

    // Faults of the device.
    script.devices[0].processes = vec![Process { pid: 1, bytes: None, graphics: true }];
    play(&script);
    let graphics = gpu.running_graphics_processes().unwrap();
    assert!(matches!(graphics[0].used_gpu_memory, UsedGpuMemory::Unavailable));
    script.devices[0].memory_fault = 3;
    play(&script);
    assert!(matches!(gpu.memory_info(), Err(NvmlError::NotSupported)));
    script.devices[0].fault = 15;
    play(&script);
    assert!(matches!(gpu.memory_info(), Err(NvmlError::GpuLost)));
    script.devices[0] = Device { total: 0, ..Device::default() };
    play(&script);
    assert_eq!(gpu.memory_info().unwrap().total, 0);
    script.devices[0].absent = true;
    play(&script);
    assert_eq!(nvml.device_count().unwrap(), 0);

    script.hang_ms = 200;
    play(&script);
    let begun = Instant::now();
    nvml.device_count().unwrap();
    assert!(begun.elapsed() >= Duration::from_millis(200));
}
