//! Whether a device answers, and how long that takes.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::codes::{GPU_IS_LOST, Return, UNKNOWN};
use crate::script::{Gpu, GpuFault, Script};

/// Devices that were asked since the last `nvmlInit_v2`.
static AWAKE: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// `nvmlInit_v2` was called.
pub(crate) fn begin() {
    AWAKE.lock().unwrap_or_else(PoisonError::into_inner).clear();
}

pub(crate) fn hang(ms: u64) {
    if ms > 0 {
        std::thread::sleep(Duration::from_millis(ms));
    }
}

/// What each call about a device does first.
pub(crate) fn ask(gpu: &Gpu) -> Result<(), Return> {
    let first = {
        let mut awake = AWAKE.lock().unwrap_or_else(PoisonError::into_inner);
        let first = !awake.contains(&gpu.uuid);
        if first {
            awake.push(gpu.uuid.clone());
        }
        first
    };
    hang(if first { gpu.wake_ms } else { 0 });
    hang(gpu.hang_ms);
    match gpu.fault {
        GpuFault::Lost => Err(GPU_IS_LOST),
        GpuFault::Unknown => Err(UNKNOWN),
        GpuFault::None
        | GpuFault::ZeroMemory
        | GpuFault::MemoryNotSupported
        | GpuFault::MemoryUnknown
        | GpuFault::ProcessesNoPermission
        | GpuFault::ProcessesNotSupported => Ok(()),
    }
}

/// What the search for any UUID does first, as `nvml.h` has it: it answers "lost" if *any* device has fallen off the bus.
pub(crate) fn search(script: &Script) -> Result<(), Return> {
    let lost = script.gpus.iter().any(|gpu| gpu.fault == GpuFault::Lost);
    if lost { Err(GPU_IS_LOST) } else { Ok(()) }
}
