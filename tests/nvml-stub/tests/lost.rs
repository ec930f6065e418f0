//! Devices that fell off the bus, hang or wake up, as the real client sees them. One test: the environment that names the world is the
//! process's.

use std::time::{Duration, Instant};

use nvidia_ml::{Gpu, GpuFault, Script, StateDir};
use nvml_wrapper::Nvml;
use nvml_wrapper::error::NvmlError;

#[test]
fn a_lost_device_hides_the_others_from_a_search_by_uuid_alone() {
    let root = tempfile::tempdir().unwrap();
    let dir = StateDir::new(root.path().join("state"));
    let sleepy = Gpu { wake_ms: 300, ..Gpu::new("GPU-b", 8 << 30) };
    Script::with_gpus(vec![Gpu::new("GPU-a", 24 << 30), sleepy]).save(&dir).unwrap();
    // SAFETY: this is the only test of its process.
    unsafe { std::env::set_var(nvidia_ml::ENV, dir.path()) };
    let library = nvidia_ml::built_library().unwrap();
    let nvml = Nvml::builder().lib_path(library.as_os_str()).init().unwrap();

    let begun = Instant::now();
    let other = nvml.device_by_index(1).unwrap();
    assert!(begun.elapsed() >= Duration::from_millis(300), "the first program that asks waits");

    let fault = |fault| Script::edit(&dir, |script| script.gpus[0].fault = fault).unwrap();
    fault(GpuFault::Lost);
    assert!(matches!(nvml.device_by_uuid("GPU-b"), Err(NvmlError::GpuLost)));
    assert!(matches!(nvml.device_by_index(0), Err(NvmlError::GpuLost)));
    assert_eq!(nvml.device_by_index(1).unwrap().uuid().unwrap(), "GPU-b");

    fault(GpuFault::Unknown);
    assert!(matches!(nvml.device_by_index(0), Err(NvmlError::Unknown)));
    assert!(other.memory_info().is_ok());
}
