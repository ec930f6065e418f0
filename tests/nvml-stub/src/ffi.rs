//! The C side: the functions that `nvml-wrapper` looks up.
//!
//! Every function reads the stage anew. A device's handle is its index plus one.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::time::{Duration, Instant};

use nvml_wrapper_sys::bindings::{
    nvmlMemory_t, nvmlMemory_v2_t, nvmlPciInfo_t, nvmlProcessInfo_t, nvmlUtilization_t,
};

use crate::script::{Device, Script};
use crate::{claims, directory};

const SUCCESS: c_uint = 0;
const INVALID_ARGUMENT: c_uint = 2;
const NOT_SUPPORTED: c_uint = 3;
const NOT_FOUND: c_uint = 6;
const INSUFFICIENT_SIZE: c_uint = 7;
const UNKNOWN: c_uint = 999;
/// What the driver says for a process whose memory it does not know.
const VALUE_NOT_AVAILABLE: u64 = u64::MAX;
/// "No MIG instance".
const NO_INSTANCE: c_uint = u32::MAX;

type Handle = *mut c_void;

/// The stage, after the time that the driver hangs. A stage that cannot be read is an unknown error, which no test takes
/// for an answer.
fn stage() -> Result<Script, c_uint> {
    let begun = Instant::now();
    loop {
        let script = Script::read(&directory()).map_err(|_| UNKNOWN)?;
        if begun.elapsed() >= Duration::from_millis(script.hang_ms) {
            return Ok(script);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn present(script: &Script) -> impl Iterator<Item = &Device> {
    script.devices.iter().filter(|d| !d.absent)
}

fn device(handle: Handle) -> Result<(Script, Device), c_uint> {
    let script = stage()?;
    let index = (handle as usize).checked_sub(1).ok_or(INVALID_ARGUMENT)?;
    let device = script.devices.get(index).filter(|d| !d.absent).ok_or(NOT_FOUND)?.clone();
    if device.fault == SUCCESS { Ok((script, device)) } else { Err(device.fault) }
}

fn code(result: Result<(), c_uint>) -> c_uint {
    result.err().unwrap_or(SUCCESS)
}

/// Writes through a pointer that C promises to be valid.
///
/// # Safety
/// `to` is null or valid for a write.
unsafe fn put<T>(to: *mut T, value: T) -> Result<(), c_uint> {
    if to.is_null() {
        return Err(INVALID_ARGUMENT);
    }
    // SAFETY: not null, and the caller promises the rest.
    unsafe { to.write(value) };
    Ok(())
}

/// # Safety
/// `to` is null or valid for `length` bytes.
unsafe fn put_text(to: *mut c_char, length: c_uint, text: &str) -> Result<(), c_uint> {
    if to.is_null() {
        return Err(INVALID_ARGUMENT);
    }
    if text.len() >= length as usize {
        return Err(INSUFFICIENT_SIZE);
    }
    // SAFETY: the text and its end fit, and the caller promises the rest.
    unsafe {
        std::ptr::copy_nonoverlapping(text.as_ptr().cast(), to, text.len());
        to.add(text.len()).write(0);
    }
    Ok(())
}

/// Declares NVML functions. All share one contract: pointers are null or valid, as `nvml.h` says.
macro_rules! nvml {
    ($($name:ident($($arg:ident: $type:ty),*) $body:block)*) => {$(
        #[doc = concat!("`", stringify!($name), "`, see `nvml.h`.")]
        ///
        /// # Safety
        /// Pointers are null or valid, as `nvml.h` says.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name($($arg: $type),*) -> c_uint {
            let run = || -> Result<(), c_uint> { $body };
            code(run())
        }
    )*};
}

fn init() -> Result<(), c_uint> {
    let script = Script::read(&directory()).map_err(|_| UNKNOWN)?;
    if script.init == SUCCESS { Ok(()) } else { Err(script.init) }
}

nvml! {
    nvmlInit_v2() { init() }
    nvmlInitWithFlags(_flags: c_uint) { init() }
    nvmlShutdown() { Ok(()) }

    nvmlSystemGetDriverVersion(to: *mut c_char, length: c_uint) {
        let script = stage()?;
        // SAFETY: see the contract.
        unsafe { put_text(to, length, &script.driver) }
    }
    nvmlSystemGetNVMLVersion(to: *mut c_char, length: c_uint) {
        let script = stage()?;
        // SAFETY: see the contract.
        unsafe { put_text(to, length, &format!("12.{}", script.driver)) }
    }
    nvmlSystemGetCudaDriverVersion_v2(to: *mut c_int) {
        stage()?;
        // SAFETY: see the contract.
        unsafe { put(to, 12_080) }
    }

    nvmlDeviceGetCount_v2(to: *mut c_uint) {
        let script = stage()?;
        let count = c_uint::try_from(present(&script).count()).map_err(|_| UNKNOWN)?;
        // SAFETY: see the contract.
        unsafe { put(to, count) }
    }
    nvmlDeviceGetHandleByIndex_v2(index: c_uint, to: *mut Handle) {
        let script = stage()?;
        let wanted = present(&script).nth(index as usize).ok_or(INVALID_ARGUMENT)?.uuid.clone();
        // SAFETY: see the contract.
        unsafe { put(to, find(&script, &wanted)?) }
    }
    nvmlDeviceGetHandleByUUID(uuid: *const c_char, to: *mut Handle) {
        if uuid.is_null() {
            return Err(INVALID_ARGUMENT);
        }
        // SAFETY: see the contract; a C string.
        let uuid = unsafe { CStr::from_ptr(uuid) }.to_str().map_err(|_| INVALID_ARGUMENT)?;
        let script = stage()?;
        // SAFETY: see the contract.
        unsafe { put(to, find(&script, uuid)?) }
    }

    nvmlDeviceGetUUID(handle: Handle, to: *mut c_char, length: c_uint) {
        let (_, device) = device(handle)?;
        // SAFETY: see the contract.
        unsafe { put_text(to, length, &device.uuid) }
    }
    nvmlDeviceGetName(handle: Handle, to: *mut c_char, length: c_uint) {
        let (_, device) = device(handle)?;
        // SAFETY: see the contract.
        unsafe { put_text(to, length, &device.name) }
    }
    nvmlDeviceGetIndex(handle: Handle, to: *mut c_uint) {
        let (script, device) = device(handle)?;
        let at = present(&script).position(|d| d.uuid == device.uuid).ok_or(NOT_FOUND)?;
        // SAFETY: see the contract.
        unsafe { put(to, c_uint::try_from(at).map_err(|_| UNKNOWN)?) }
    }
    nvmlDeviceGetPciInfo_v3(handle: Handle, to: *mut nvmlPciInfo_t) {
        device(handle)?;
        // SAFETY: a plain C struct of integers, for which zero is a value.
        let mut info: nvmlPciInfo_t = unsafe { std::mem::zeroed() };
        info.bus = c_uint::try_from(handle as usize).map_err(|_| UNKNOWN)?;
        // SAFETY: see the contract.
        unsafe { put(to, info) }
    }
    nvmlDeviceGetMigMode(handle: Handle, current: *mut c_uint, pending: *mut c_uint) {
        let _ = (current, pending);
        device(handle)?;
        Err(NOT_SUPPORTED)
    }
    nvmlDeviceGetUtilizationRates(handle: Handle, to: *mut nvmlUtilization_t) {
        device(handle)?;
        // SAFETY: see the contract.
        unsafe { put(to, nvmlUtilization_t { gpu: 7, memory: 3 }) }
    }
    nvmlDeviceGetTemperature(handle: Handle, _sensor: c_uint, to: *mut c_uint) {
        device(handle)?;
        // SAFETY: see the contract.
        unsafe { put(to, 42) }
    }
    nvmlDeviceGetPowerUsage(handle: Handle, to: *mut c_uint) {
        device(handle)?;
        // SAFETY: see the contract.
        unsafe { put(to, 65_000) }
    }

    nvmlDeviceGetMemoryInfo(handle: Handle, to: *mut nvmlMemory_t) {
        let (_, device) = device(handle)?;
        let used = used(&device)? + device.reserved;
        let free = device.total.saturating_sub(used);
        // SAFETY: see the contract.
        unsafe { put(to, nvmlMemory_t { total: device.total, free, used }) }
    }
    nvmlDeviceGetMemoryInfo_v2(handle: Handle, to: *mut nvmlMemory_v2_t) {
        let (_, device) = device(handle)?;
        let used = used(&device)?;
        let free = device.total.saturating_sub(used + device.reserved);
        let Device { total, reserved, .. } = device;
        if to.is_null() {
            return Err(INVALID_ARGUMENT);
        }
        // SAFETY: not null; see the contract.
        let version = unsafe { (*to).version };
        // SAFETY: see the contract.
        unsafe { put(to, nvmlMemory_v2_t { version, total, reserved, free, used }) }
    }

    nvmlDeviceGetComputeRunningProcesses_v3(
        handle: Handle, count: *mut c_uint, to: *mut nvmlProcessInfo_t
    ) {
        let (_, device) = device(handle)?;
        let mut all = listed(&device, false);
        let live = claims::held(&directory()).map_err(|_| UNKNOWN)?;
        all.extend(live.values().filter(|h| h.uuid == device.uuid).map(|h| {
            let bytes = if device.no_process_memory { VALUE_NOT_AVAILABLE } else { h.bytes };
            (h.pid, bytes)
        }));
        // SAFETY: see the contract.
        unsafe { put_processes(&all, count, to) }
    }
    nvmlDeviceGetGraphicsRunningProcesses_v3(
        handle: Handle, count: *mut c_uint, to: *mut nvmlProcessInfo_t
    ) {
        let (_, device) = device(handle)?;
        // SAFETY: see the contract.
        unsafe { put_processes(&listed(&device, true), count, to) }
    }
}

fn find(script: &Script, uuid: &str) -> Result<Handle, c_uint> {
    let at = script.devices.iter().position(|d| !d.absent && d.uuid == uuid).ok_or(NOT_FOUND)?;
    let fault = script.devices[at].fault;
    if fault == SUCCESS { Ok(std::ptr::without_provenance_mut(at + 1)) } else { Err(fault) }
}

/// Version 2 `used`: without what is reserved.
fn used(device: &Device) -> Result<u64, c_uint> {
    if device.memory_fault != SUCCESS {
        return Err(device.memory_fault);
    }
    let live = claims::held(&directory()).map_err(|_| UNKNOWN)?;
    let claimed: u64 = live.values().filter(|h| h.uuid == device.uuid).map(|h| h.bytes).sum();
    let others: u64 = device.processes.iter().filter_map(|p| p.bytes).sum();
    Ok(device.used + claimed + claims::lagging(&live, device) + others)
}

fn listed(device: &Device, graphics: bool) -> Vec<(u32, u64)> {
    let known = |bytes: Option<u64>| bytes.filter(|_| !device.no_process_memory);
    let of_kind = device.processes.iter().filter(|p| p.graphics == graphics);
    of_kind.map(|p| (p.pid, known(p.bytes).unwrap_or(VALUE_NOT_AVAILABLE))).collect()
}

/// # Safety
/// `count` is null or valid; `to` is null or valid for `*count` elements.
unsafe fn put_processes(
    all: &[(u32, u64)],
    count: *mut c_uint,
    to: *mut nvmlProcessInfo_t,
) -> Result<(), c_uint> {
    if count.is_null() {
        return Err(INVALID_ARGUMENT);
    }
    // SAFETY: not null, and the caller promises the rest.
    let room = unsafe { *count } as usize;
    // SAFETY: as above.
    unsafe { count.write(c_uint::try_from(all.len()).map_err(|_| UNKNOWN)?) };
    if all.is_empty() {
        return Ok(());
    }
    if to.is_null() || room < all.len() {
        return Err(INSUFFICIENT_SIZE);
    }
    for (at, (pid, bytes)) in all.iter().enumerate() {
        let info = nvmlProcessInfo_t {
            pid: *pid,
            usedGpuMemory: *bytes,
            gpuInstanceId: NO_INSTANCE,
            computeInstanceId: NO_INSTANCE,
        };
        // SAFETY: `at` is below `room`, and the caller promises the rest.
        unsafe { to.add(at).write(info) };
    }
    Ok(())
}

/// `nvmlErrorString`, see `nvml.h`.
///
/// # Safety
/// None is needed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlErrorString(_code: c_uint) -> *const c_char {
    c"an error of the stub".as_ptr()
}
