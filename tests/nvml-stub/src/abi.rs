//! The C side: the symbols of `libnvidia-ml.so.1` that an NVML client calls.
//!
//! Each call re-reads the state directory. Handles are interned UUIDs, so a device that leaves the
//! script is lost and one that comes back is the same device. Layouts follow `nvml.h`; a test
//! compares them with the client's.

use std::ffi::{CStr, c_char, c_int, c_uint};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::codes::{
    DRIVER_NOT_LOADED, GPU_IS_LOST, INSUFFICIENT_SIZE, INVALID_ARGUMENT, NO_PERMISSION, NOT_FOUND,
    NOT_SUPPORTED, Return, SUCCESS, UNINITIALIZED, UNKNOWN, VERSION_MISMATCH,
};
use crate::ledger::{self, Usage};
use crate::presence::{self, hang};
use crate::script::{Gpu, GpuFault, Kind, MIG_SLOTS, ProcessMemory, Script, ScriptError};
use crate::{StateDir, claims};

type Device = *mut std::ffi::c_void;

const VALUE_NOT_AVAILABLE: u64 = u64::MAX;

/// `nvmlMemory_t`: used includes reserved.
#[repr(C)]
pub(crate) struct Memory {
    total: u64,
    free: u64,
    used: u64,
}

/// `nvmlMemory_v2_t`: used excludes reserved.
#[repr(C)]
pub(crate) struct MemoryV2 {
    version: c_uint,
    total: u64,
    reserved: u64,
    free: u64,
    used: u64,
}

/// `nvmlProcessInfo_t` of the third version of the calls.
#[repr(C)]
pub(crate) struct ProcessInfo {
    pid: c_uint,
    used_gpu_memory: u64,
    gpu_instance_id: c_uint,
    compute_instance_id: c_uint,
}

/// `nvmlPciInfo_t`.
#[repr(C)]
pub(crate) struct PciInfo {
    bus_id_legacy: [c_char; 16],
    domain: c_uint,
    bus: c_uint,
    device: c_uint,
    pci_device_id: c_uint,
    pci_sub_system_id: c_uint,
    bus_id: [c_char; 32],
}

/// `nvmlUtilization_t`.
#[repr(C)]
pub(crate) struct Utilization {
    gpu: c_uint,
    memory: c_uint,
}

static INITIALIZED: AtomicU32 = AtomicU32::new(0);
static UUIDS: Mutex<Vec<String>> = Mutex::new(Vec::new());

fn answer(result: Result<(), Return>) -> Return {
    result.err().unwrap_or(SUCCESS)
}

fn load() -> Result<Script, Return> {
    Script::load(&StateDir::from_env()).map_err(|error| match error {
        // A machine without a script is a machine without a driver.
        ScriptError::Io { .. } => DRIVER_NOT_LOADED,
        ScriptError::Parse { .. } | ScriptError::Encode(_) => {
            eprintln!("nvml-stub: {error}");
            UNKNOWN
        }
    })
}

/// The script, for a call that needs an initialised library.
fn script() -> Result<Script, Return> {
    if INITIALIZED.load(Ordering::SeqCst) == 0 {
        return Err(UNINITIALIZED);
    }
    let script = load()?;
    hang(script.hang_ms);
    match script.fault.number() {
        SUCCESS => Ok(script),
        code => Err(code),
    }
}

fn handle_of(gpu: &Gpu) -> Result<Device, Return> {
    presence::ask(gpu)?;
    let mut uuids = UUIDS.lock().unwrap_or_else(PoisonError::into_inner);
    let index = uuids.iter().position(|known| *known == gpu.uuid).unwrap_or_else(|| {
        uuids.push(gpu.uuid.clone());
        uuids.len() - 1
    });
    Ok(std::ptr::without_provenance_mut(index + 1))
}

/// The device behind a handle, with its index.
fn device(handle: Device) -> Result<(usize, Gpu), Return> {
    let script = script()?;
    let uuid = {
        let uuids = UUIDS.lock().unwrap_or_else(PoisonError::into_inner);
        handle.addr().checked_sub(1).and_then(|i| uuids.get(i).cloned()).ok_or(INVALID_ARGUMENT)?
    };
    let (index, gpu) = script.find(&uuid).ok_or(GPU_IS_LOST)?;
    presence::ask(gpu)?;
    Ok((index, gpu.clone()))
}

fn usage(gpu: &Gpu) -> Result<Usage, Return> {
    let seen = ledger::scan(&StateDir::from_env()).map_err(|error| {
        eprintln!("nvml-stub: cannot read the claims: {error}");
        UNKNOWN
    })?;
    Ok(ledger::of(gpu, &seen, claims::now_ms()))
}

fn memory(handle: Device) -> Result<Usage, Return> {
    let (_, gpu) = device(handle)?;
    match gpu.fault {
        GpuFault::MemoryNotSupported => Err(NOT_SUPPORTED),
        GpuFault::MemoryUnknown => Err(UNKNOWN),
        GpuFault::ZeroMemory => {
            Ok(Usage { total: 0, reserved: 0, used: 0, lingering: 0, processes: Vec::new() })
        }
        GpuFault::None
        | GpuFault::Lost
        | GpuFault::Unknown
        | GpuFault::ProcessesNoPermission
        | GpuFault::ProcessesNotSupported => {
            let mut usage = usage(&gpu)?;
            usage.used = usage.used.min(usage.total.saturating_sub(usage.reserved));
            Ok(usage)
        }
    }
}

fn processes(handle: Device, kind: Kind) -> Result<Vec<ProcessInfo>, Return> {
    let (_, gpu) = device(handle)?;
    match gpu.fault {
        GpuFault::ProcessesNoPermission => return Err(NO_PERMISSION),
        GpuFault::ProcessesNotSupported => return Err(NOT_SUPPORTED),
        GpuFault::None
        | GpuFault::Lost
        | GpuFault::Unknown
        | GpuFault::ZeroMemory
        | GpuFault::MemoryNotSupported
        | GpuFault::MemoryUnknown => {}
    }
    let listed = usage(&gpu)?.processes.into_iter().filter(|process| process.kind == kind);
    Ok(listed
        .map(|process| ProcessInfo {
            pid: process.pid,
            used_gpu_memory: match gpu.process_memory {
                ProcessMemory::Known => process.bytes.0,
                ProcessMemory::NotAvailable => VALUE_NOT_AVAILABLE,
            },
            gpu_instance_id: c_uint::MAX,
            compute_instance_id: c_uint::MAX,
        })
        .collect())
}

/// Stores a value through a C out-pointer.
///
/// # Safety
/// `out` is null or valid for writing a `T`.
unsafe fn put<T>(out: *mut T, value: T) -> Result<(), Return> {
    if out.is_null() {
        return Err(INVALID_ARGUMENT);
    }
    // SAFETY: not null, and valid by this function's contract.
    unsafe { out.write(value) };
    Ok(())
}

/// Stores a text with its final zero.
///
/// # Safety
/// `out` is null or valid for writing `length` characters.
unsafe fn put_text(out: *mut c_char, length: c_uint, text: &str) -> Result<(), Return> {
    if out.is_null() {
        return Err(INVALID_ARGUMENT);
    }
    if text.len() + 1 > length as usize {
        return Err(INSUFFICIENT_SIZE);
    }
    // SAFETY: text and zero fit into `length`, for which `out` is valid by contract.
    unsafe {
        out.cast::<u8>().copy_from_nonoverlapping(text.as_ptr(), text.len());
        out.add(text.len()).write(0);
    }
    Ok(())
}

/// Stores a process list the way all of NVML's list calls do.
///
/// # Safety
/// `count` is null or valid; `infos` is null or valid for writing `*count` entries.
unsafe fn put_list(
    count: *mut c_uint,
    infos: *mut ProcessInfo,
    list: Vec<ProcessInfo>,
) -> Result<(), Return> {
    if count.is_null() {
        return Err(INVALID_ARGUMENT);
    }
    // SAFETY: not null, and valid by contract.
    let room = unsafe { count.read() } as usize;
    let length = c_uint::try_from(list.len()).map_err(|_| UNKNOWN)?;
    // SAFETY: as above.
    unsafe { count.write(length) };
    if list.len() > room {
        return Err(INSUFFICIENT_SIZE);
    }
    if list.is_empty() {
        return Ok(());
    }
    if infos.is_null() {
        return Err(INVALID_ARGUMENT);
    }
    for (index, info) in list.into_iter().enumerate() {
        // SAFETY: `index` is less than the room that the caller named.
        unsafe { infos.add(index).write(info) };
    }
    Ok(())
}

fn pci_info(index: usize) -> PciInfo {
    let bus = c_uint::try_from(index).unwrap_or(0) + 1;
    let mut info = PciInfo {
        bus_id_legacy: [0; 16],
        domain: 0,
        bus,
        device: 0,
        pci_device_id: 0x2330_10de,
        pci_sub_system_id: 0,
        bus_id: [0; 32],
    };
    let copy = |out: &mut [c_char], text: String| {
        for (to, from) in out.iter_mut().zip(text.bytes()) {
            *to = from.cast_signed() as c_char;
        }
    };
    copy(&mut info.bus_id_legacy, format!("0000:{bus:02X}:00.0"));
    copy(&mut info.bus_id, format!("00000000:{bus:02X}:00.0"));
    info
}

/// Declares exported functions. All share one contract, that of `nvml.h`: out-pointers are null or
/// valid for their type, buffers for the length given beside them, texts end in a zero.
macro_rules! exports {
    ($($name:ident($($arg:ident: $kind:ty),*) $body:block)*) => {$(
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $name($($arg: $kind),*) -> Return {
            // The closure is what `?` returns from.
            let call = move || $body;
            answer(call())
        }
    )*};
}

fn init() -> Result<(), Return> {
    let script = load()?;
    hang(script.init_hang_ms);
    match script.init.number() {
        SUCCESS => {
            presence::begin();
            INITIALIZED.fetch_add(1, Ordering::SeqCst);
            Ok(())
        }
        code => Err(code),
    }
}

// SAFETY: for every unsafe block below, the contract of `exports!` is that of the callee.
exports! {
    nvmlInit_v2() { init() }
    nvmlInitWithFlags(_flags: c_uint) { init() }
    nvmlShutdown() {
        INITIALIZED
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1))
            .map(drop)
            .map_err(|_| UNINITIALIZED)
    }
    nvmlSystemGetDriverVersion(out: *mut c_char, length: c_uint) {
        let script = script()?;
        unsafe { put_text(out, length, &script.driver) }
    }
    nvmlSystemGetNVMLVersion(out: *mut c_char, length: c_uint) {
        let script = script()?;
        unsafe { put_text(out, length, &script.nvml) }
    }
    nvmlSystemGetCudaDriverVersion(out: *mut c_int) {
        let script = script()?;
        unsafe { put(out, script.cuda) }
    }
    nvmlSystemGetCudaDriverVersion_v2(out: *mut c_int) {
        let script = script()?;
        unsafe { put(out, script.cuda) }
    }
    nvmlDeviceGetCount_v2(out: *mut c_uint) {
        let count = c_uint::try_from(script()?.gpus.len()).map_err(|_| UNKNOWN)?;
        unsafe { put(out, count) }
    }
    nvmlDeviceGetHandleByIndex_v2(index: c_uint, out: *mut Device) {
        let script = script()?;
        let gpu = script.gpus.get(index as usize).ok_or(INVALID_ARGUMENT)?;
        let handle = handle_of(gpu)?;
        unsafe { put(out, handle) }
    }
    nvmlDeviceGetHandleByUUID(uuid: *const c_char, out: *mut Device) {
        let script = script()?;
        if uuid.is_null() {
            return Err(INVALID_ARGUMENT);
        }
        let uuid = unsafe { CStr::from_ptr(uuid) }.to_str().map_err(|_| INVALID_ARGUMENT)?;
        presence::search(&script)?;
        let handle = handle_of(script.gpu(uuid).ok_or(NOT_FOUND)?)?;
        unsafe { put(out, handle) }
    }
    nvmlDeviceGetUUID(handle: Device, out: *mut c_char, length: c_uint) {
        let (_, gpu) = device(handle)?;
        unsafe { put_text(out, length, &gpu.uuid) }
    }
    nvmlDeviceGetName(handle: Device, out: *mut c_char, length: c_uint) {
        let (_, gpu) = device(handle)?;
        unsafe { put_text(out, length, &gpu.name) }
    }
    nvmlDeviceGetIndex(handle: Device, out: *mut c_uint) {
        let (index, _) = device(handle)?;
        unsafe { put(out, c_uint::try_from(index).map_err(|_| UNKNOWN)?) }
    }
    nvmlDeviceGetMinorNumber(handle: Device, out: *mut c_uint) {
        let (index, _) = device(handle)?;
        unsafe { put(out, c_uint::try_from(index).map_err(|_| UNKNOWN)?) }
    }
    nvmlDeviceGetPciInfo_v3(handle: Device, out: *mut PciInfo) {
        let (index, _) = device(handle)?;
        unsafe { put(out, pci_info(index)) }
    }
    nvmlDeviceGetCudaComputeCapability(handle: Device, major: *mut c_int, minor: *mut c_int) {
        let (_, gpu) = device(handle)?;
        let [one, two] = gpu.compute_capability;
        unsafe { put(major, one).and_then(|()| put(minor, two)) }
    }
    nvmlDeviceGetMemoryInfo(handle: Device, out: *mut Memory) {
        let usage = memory(handle)?;
        let free = usage.free();
        unsafe { put(out, Memory { total: usage.total, free, used: usage.total - free }) }
    }
    nvmlDeviceGetMemoryInfo_v2(handle: Device, out: *mut MemoryV2) {
        if out.is_null() {
            return Err(INVALID_ARGUMENT);
        }
        let version = unsafe { (&raw const (*out).version).read() };
        if version as usize != size_of::<MemoryV2>() | 2 << 24 {
            return Err(VERSION_MISMATCH);
        }
        let Usage { total, reserved, used, .. } = memory(handle)?;
        let free = total.saturating_sub(reserved).saturating_sub(used);
        unsafe { put(out, MemoryV2 { version, total, reserved, free, used }) }
    }
    nvmlDeviceGetComputeRunningProcesses_v3(
        handle: Device, count: *mut c_uint, infos: *mut ProcessInfo
    ) {
        let list = processes(handle, Kind::Compute)?;
        unsafe { put_list(count, infos, list) }
    }
    nvmlDeviceGetGraphicsRunningProcesses_v3(
        handle: Device, count: *mut c_uint, infos: *mut ProcessInfo
    ) {
        let list = processes(handle, Kind::Graphics)?;
        unsafe { put_list(count, infos, list) }
    }
    nvmlDeviceGetUtilizationRates(handle: Device, out: *mut Utilization) {
        let (_, gpu) = device(handle)?;
        if gpu.mig == Some(true) {
            return Err(NOT_SUPPORTED);
        }
        let gpu = gpu.utilization_percent;
        unsafe { put(out, Utilization { gpu, memory: gpu / 2 }) }
    }
    nvmlDeviceGetTemperature(handle: Device, _sensor: c_uint, out: *mut c_uint) {
        let (_, gpu) = device(handle)?;
        unsafe { put(out, gpu.temperature_c) }
    }
    nvmlDeviceGetPowerUsage(handle: Device, out: *mut c_uint) {
        let (_, gpu) = device(handle)?;
        unsafe { put(out, gpu.power_mw) }
    }
    nvmlDeviceGetMigMode(handle: Device, current: *mut c_uint, pending: *mut c_uint) {
        let (_, gpu) = device(handle)?;
        let mode = c_uint::from(gpu.mig.ok_or(NOT_SUPPORTED)?);
        unsafe { put(current, mode).and_then(|()| put(pending, mode)) }
    }
    nvmlDeviceGetMaxMigDeviceCount(handle: Device, out: *mut c_uint) {
        let (_, gpu) = device(handle)?;
        let slots = if gpu.mig.is_some() { MIG_SLOTS } else { 0 };
        unsafe { put(out, c_uint::try_from(slots).map_err(|_| UNKNOWN)?) }
    }
    nvmlDeviceGetMigDeviceHandleByIndex(handle: Device, index: c_uint, out: *mut Device) {
        let (_, gpu) = device(handle)?;
        if !gpu.in_mig_mode() {
            return Err(NOT_SUPPORTED);
        }
        if index as usize >= MIG_SLOTS {
            return Err(INVALID_ARGUMENT);
        }
        let slice = handle_of(gpu.slices().get(index as usize).ok_or(NOT_FOUND)?)?;
        unsafe { put(out, slice) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nvml_wrapper_sys::bindings as real;

    #[test]
    fn layouts_are_the_clients() {
        assert_eq!(size_of::<Memory>(), size_of::<real::nvmlMemory_t>());
        assert_eq!(size_of::<MemoryV2>(), size_of::<real::nvmlMemory_v2_t>());
        assert_eq!(size_of::<ProcessInfo>(), size_of::<real::nvmlProcessInfo_t>());
        assert_eq!(size_of::<PciInfo>(), size_of::<real::nvmlPciInfo_t>());
        assert_eq!(size_of::<Utilization>(), size_of::<real::nvmlUtilization_t>());
        let offset = std::mem::offset_of!(MemoryV2, free);
        assert_eq!(offset, std::mem::offset_of!(real::nvmlMemory_v2_t, free));
        let offset = std::mem::offset_of!(ProcessInfo, used_gpu_memory);
        assert_eq!(offset, std::mem::offset_of!(real::nvmlProcessInfo_t, usedGpuMemory));
    }
}
