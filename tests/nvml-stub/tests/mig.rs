//! A divided device as the real client sees it. One test: the environment that names the world is the process's.
#![expect(clippy::unwrap_used, reason = "a panic is the failure report")]

use nvidia_ml::{Claim, ClaimError, Gpu, Script, StateDir};
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::{Device, Nvml};

const GIB: u64 = 1 << 30;
const WHOLE: &str = "GPU-aaaaaaaa-0000-0000-0000-000000000000";
const SLICE: &str = "MIG-11111111-0000-0000-0000-000000000000";

fn used(device: &Device<'_>) -> u64 {
    device.memory_info().unwrap().used
}

#[test]
fn mig_devices_are_devices_of_their_own_inside_another() {
    let root = tempfile::tempdir().unwrap();
    let dir = StateDir::new(root.path().join("state"));
    let mut script = Script::with_gpus(vec![Gpu::new(WHOLE, 24 * GIB), Gpu::new("GPU-b", 8 * GIB)]);
    script.gpus[0].mig = Some(true);
    script.gpus[0].mig_devices = vec![Gpu::new(SLICE, 10 * GIB), Gpu::new("MIG-2", 5 * GIB)];
    // Divided, but with MIG switched off: they are not there.
    script.gpus[1].mig = Some(false);
    script.gpus[1].mig_devices = vec![Gpu::new("MIG-3", GIB)];
    script.save(&dir).unwrap();
    // SAFETY: this is the only test of its process.
    unsafe { std::env::set_var(nvidia_ml::ENV, dir.path()) };
    let library = nvidia_ml::built_library().unwrap();
    let nvml = Nvml::builder().lib_path(library.as_os_str()).init().unwrap();

    assert_eq!(nvml.device_count().unwrap(), 2);
    let whole = nvml.device_by_index(0).unwrap();
    assert_eq!((whole.mig_mode().unwrap().current, whole.mig_device_count().unwrap()), (1, 7));
    assert_eq!(whole.mig_device_by_index(0).unwrap().uuid().unwrap(), SLICE);
    assert!(matches!(whole.mig_device_by_index(2), Err(NvmlError::NotFound)));
    let other = nvml.device_by_index(1).unwrap();
    assert!(matches!(other.mig_device_by_index(0), Err(NvmlError::NotSupported)));
    assert!(matches!(nvml.device_by_uuid("MIG-3"), Err(NvmlError::NotFound)));

    let _claim = Claim::take(&dir, SLICE, 4 * GIB).unwrap();
    let slice = nvml.device_by_uuid(SLICE).unwrap();
    assert_eq!(slice.memory_info().unwrap().total, 10 * GIB);
    assert_eq!((used(&slice), used(&whole)), (4 * GIB, 4 * GIB));
    assert_eq!(used(&nvml.device_by_uuid("MIG-2").unwrap()), 0);
    let list = slice.running_compute_processes().unwrap();
    assert_eq!(list.iter().map(|p| p.pid).collect::<Vec<_>>(), [std::process::id()]);
    // CUDA does not offer the whole device any more.
    let refused = Claim::take(&dir, WHOLE, 1);
    assert!(matches!(refused, Err(ClaimError::NoSuchGpu(_))), "{refused:?}");
}
