//! What is at one of NVML's indices, and how it is read.
//!
//! Purpose: the calls about one device. Owner: [`super::reader`]. Invariants: handles come from an index, never from a UUID: NVML answers
//! the question for a UUID with "lost" as soon as any device is lost, and looks through all of them for it; a handle lives for one
//! reading only, so that a device that came back is found again.

use nvml_wrapper::error::NvmlError;
use nvml_wrapper::{Device, Nvml as Library};

use super::cause::{Trouble, device_trouble};
use super::processes;
use crate::supervisor::ports::GpuError;
use crate::types::{Bytes, GpuId, GpuReading};

/// A call that failed, and how.
pub(super) type Failed = (&'static str, NvmlError);

/// The device at an index, or its MIG devices: memory cannot be had any more from one in MIG mode itself, so it counts only where it is
/// `wanted` by name.
pub(super) fn at<'n>(
    nvml: &'n Library,
    index: u32,
    wanted: &[GpuId],
) -> Result<Vec<(GpuId, Device<'n>)>, Failed> {
    let device = nvml.device_by_index(index).map_err(|e| ("nvmlDeviceGetHandleByIndex_v2", e))?;
    // Not supported, or no such function: no MIG.
    let in_mig_mode = device.mig_mode().is_ok_and(|mode| mode.current == 1);
    let slices = if in_mig_mode { slices(&device)? } else { Vec::new() };
    let mut found = Vec::with_capacity(slices.len() + 1);
    let whole = named(device)?;
    if !in_mig_mode || wanted.contains(&whole.0) {
        found.push(whole);
    }
    for slice in slices {
        found.push(named(slice)?);
    }
    Ok(found)
}

fn slices<'n>(device: &Device<'n>) -> Result<Vec<Device<'n>>, Failed> {
    // The count is the most there can be; free slots answer "not found".
    let count = device.mig_device_count().map_err(|e| ("nvmlDeviceGetMaxMigDeviceCount", e))?;
    Ok((0..count).filter_map(|slot| device.mig_device_by_index(slot).ok()).collect())
}

fn named(device: Device<'_>) -> Result<(GpuId, Device<'_>), Failed> {
    let uuid = device.uuid().map_err(|e| ("nvmlDeviceGetUUID", e))?;
    Ok((GpuId::new(&uuid), device))
}

/// Reads one device.
pub(super) fn read(nvml: &Library, id: &GpuId, device: &Device<'_>) -> Result<GpuReading, Trouble> {
    let trouble = |call: &str, error: &NvmlError| device_trouble(nvml, id, call, error);
    let name = device.name().map_err(|error| trouble("nvmlDeviceGetName", &error))?;
    let memory = match device.memory_info() {
        Ok(memory) => memory,
        Err(NvmlError::NotSupported) => {
            return Err(Trouble::Device(GpuError::MemoryUnsupported(id.clone())));
        }
        Err(error) => return Err(trouble("nvmlDeviceGetMemoryInfo_v2", &error)),
    };
    // Memory that the driver and the firmware keep for themselves is no model's, and v2 `used` does not count it.
    let total = memory.total.saturating_sub(memory.reserved);
    if total == 0 {
        return Err(Trouble::Device(GpuError::ZeroMemory(id.clone())));
    }
    let processes = processes::of(nvml, device)
        .map_err(|error| trouble("nvmlDeviceGetComputeRunningProcesses_v3", &error))?;
    Ok(GpuReading {
        id: id.clone(),
        name,
        total: Bytes(total),
        used: Bytes(memory.used),
        processes,
    })
}
