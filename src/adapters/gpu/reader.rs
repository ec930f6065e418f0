//! One NVML reading: the blocking work of [`super::Nvml`], on its own thread.
//!
//! Purpose: turn what NVML says about the configured devices into a [`GpuSnapshot`] or a [`GpuError`]. Owner: the NVML
//! thread. Invariants: device handles live for one reading only (they are looked up by UUID each time, so that a device
//! that came back is found again); a device that has been read once can later be *lost* but never makes the others
//! unreadable; before that, what is wrong with it is a start-up error with its own cause.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use nvml_wrapper::Nvml as Library;
use nvml_wrapper::error::NvmlError;

use super::cause::{Trouble, device_trouble, init_error};
use super::{processes, vitals};
use crate::supervisor::ports::GpuError;
use crate::types::{Bytes, GpuId, GpuReading, GpuSnapshot, GpuVitals, Silence};

/// What the dynamic linker is asked for when the configuration names no library.
const LIBRARY: &str = "libnvidia-ml.so.1";
/// State of the NVML thread.
pub(super) struct Reader {
    library: Option<PathBuf>,
    /// From the configuration; empty: every device there is.
    wanted: Vec<GpuId>,
    /// Loaded and initialised at the first reading that gets so far.
    nvml: Option<Library>,
    /// Every device there is, once all of them have told their UUID; unused where `wanted` is not empty. Found once, so
    /// that a device which disappears later is lost and not forgotten.
    all: Vec<GpuId>,
    /// Devices that were read at least once.
    seen: BTreeSet<GpuId>,
}

/// Devices, and those that could not be asked.
type Listed = (Vec<GpuId>, Vec<(GpuId, GpuError)>);

impl Reader {
    pub(super) const fn new(library: Option<PathBuf>, wanted: Vec<GpuId>) -> Self {
        Self { library, wanted, nvml: None, all: Vec::new(), seen: BTreeSet::new() }
    }

    /// Reads all devices once.
    pub(super) fn snapshot(&mut self) -> Result<GpuSnapshot, GpuError> {
        // Taken out, and put back only when NVML as a whole is sound: otherwise it is shut down here, and the next
        // reading begins with `nvmlInit`.
        let nvml = match self.nvml.take() {
            Some(nvml) => nvml,
            None => init(self.library.as_deref())?,
        };
        match self.read_all(&nvml) {
            Ok(snapshot) => {
                self.nvml = Some(nvml);
                Ok(snapshot)
            }
            Err(Trouble::Device(error)) => {
                self.nvml = Some(nvml);
                Err(error)
            }
            Err(Trouble::Backend(error)) => Err(error),
        }
    }

    /// How the devices of a reading do.
    pub(super) fn vitals(&self, snapshot: &GpuSnapshot) -> Vec<GpuVitals> {
        let ids = snapshot.devices.iter().map(|device| &device.id);
        self.nvml.as_ref().map_or_else(Vec::new, |nvml| vitals::read(nvml, ids))
    }

    fn read_all(&mut self, nvml: &Library) -> Result<GpuSnapshot, Trouble> {
        let (ids, mut failed) = self.targets(nvml)?;
        if ids.is_empty() && failed.is_empty() {
            return Err(Trouble::Device(GpuError::NoDevices));
        }
        let mut devices = Vec::with_capacity(ids.len());
        for id in ids {
            match read(nvml, &id) {
                Ok(reading) => {
                    self.seen.insert(id);
                    devices.push(reading);
                }
                // What was never read is a mistake in the set-up; only a device that fell off the bus never is.
                Err(Trouble::Device(error))
                    if self.seen.contains(&id) || matches!(error, GpuError::Lost(..)) =>
                {
                    failed.push((id, error));
                }
                Err(trouble) => return Err(trouble),
            }
        }
        // Only footprint keys need it: a driver that will not tell is one of its own, and no reason to serve nobody.
        let driver = nvml.sys_driver_version().unwrap_or_default();
        settle(devices, failed, &self.seen, driver)
    }

    fn targets(&mut self, nvml: &Library) -> Result<Listed, Trouble> {
        if !self.wanted.is_empty() {
            return Ok((self.wanted.clone(), Vec::new()));
        }
        if !self.all.is_empty() {
            return Ok((self.all.clone(), Vec::new()));
        }
        let (ids, failed) = list(nvml)?;
        if failed.is_empty() {
            self.all.clone_from(&ids);
        }
        Ok((ids, failed))
    }
}

/// A snapshot of whatever answered. If nothing did, the reason of the first device is the reason of all, unless all were read before and
/// fell off the bus since: then that is known of each, and what runs on them has failed.
fn settle(
    devices: Vec<GpuReading>,
    failed: Vec<(GpuId, GpuError)>,
    seen: &BTreeSet<GpuId>,
    driver: String,
) -> Result<GpuSnapshot, Trouble> {
    let gone =
        |(id, error): &(GpuId, GpuError)| seen.contains(id) && matches!(error, GpuError::Lost(..));
    let all_gone = failed.iter().all(gone);
    let lost = failed.iter().map(|(id, error)| (id.clone(), silence(error))).collect();
    match failed.into_iter().next() {
        Some((_, error)) if devices.is_empty() && !all_gone => Err(Trouble::Device(error)),
        _ => Ok(GpuSnapshot { devices, lost, driver }),
    }
}

/// Why a device is in `lost`: without its identifier, which stands beside it. Only what is not there any more is gone: a driver
/// under load, or a slice that is reset, has other words, and what runs serves on.
fn silence(error: &GpuError) -> Silence {
    match error {
        GpuError::Lost(_, why) => Silence::Gone(why.clone()),
        GpuError::NotFound { .. } => Silence::Gone(error.to_string()),
        GpuError::LibraryMissing(_)
        | GpuError::DriverNotLoaded(_)
        | GpuError::VersionMismatch(_)
        | GpuError::MemoryUnsupported(_)
        | GpuError::ZeroMemory(_)
        | GpuError::NoDevices
        | GpuError::Timeout(_)
        | GpuError::HostMemory(_)
        | GpuError::Other(_) => Silence::Unread(error.to_string()),
    }
}

/// Loads the library and initialises it.
fn init(library: Option<&Path>) -> Result<Library, GpuError> {
    let path = library.unwrap_or(Path::new(LIBRARY));
    Library::builder().lib_path(path.as_os_str()).init().map_err(|error| init_error(path, &error))
}

/// Every device that models can be placed on. A device in MIG mode is replaced by its MIG devices, because memory
/// cannot be had from the device itself any more.
fn list(nvml: &Library) -> Result<Listed, Trouble> {
    let nowhere = GpuId::new("all devices");
    let count = nvml
        .device_count()
        .map_err(|error| device_trouble(nvml, &nowhere, "nvmlDeviceGetCount_v2", &error))?;
    let (mut ids, mut failed) = (Vec::new(), Vec::new());
    for index in 0..count {
        match device_uuids(nvml, index) {
            Ok(uuids) => ids.extend(uuids.iter().map(|uuid| GpuId::new(uuid))),
            Err(error) => {
                // Its UUID cannot be had, so this names it as NVML counts.
                let name = GpuId::new(&format!("index {index}"));
                match device_trouble(nvml, &name, "nvmlDeviceGetUUID", &error) {
                    Trouble::Device(error) => failed.push((name, error)),
                    backend @ Trouble::Backend(_) => return Err(backend),
                }
            }
        }
    }
    Ok((ids, failed))
}

/// The UUID of the device at an index, or those of its MIG devices.
fn device_uuids(nvml: &Library, index: u32) -> Result<Vec<String>, NvmlError> {
    let device = nvml.device_by_index(index)?;
    // Not supported, or no such function: no MIG.
    let in_mig_mode = device.mig_mode().is_ok_and(|mode| mode.current == 1);
    if !in_mig_mode {
        return Ok(vec![device.uuid()?]);
    }
    // The count is the most there can be; free slots answer "not found".
    let slots = 0..device.mig_device_count()?;
    slots.filter_map(|slot| device.mig_device_by_index(slot).ok()).map(|mig| mig.uuid()).collect()
}

/// Reads one device.
fn read(nvml: &Library, id: &GpuId) -> Result<GpuReading, Trouble> {
    let trouble = |call: &str, error: &NvmlError| device_trouble(nvml, id, call, error);
    let device = match nvml.device_by_uuid(id.as_str()) {
        Ok(device) => device,
        Err(NvmlError::NotFound | NvmlError::InvalidArg) => {
            let (present, _) = list(nvml)?;
            return Err(Trouble::Device(GpuError::NotFound { wanted: id.clone(), present }));
        }
        Err(error) => return Err(trouble("nvmlDeviceGetHandleByUUID", &error)),
    };
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
    let processes = processes::of(nvml, &device)
        .map_err(|error| trouble("nvmlDeviceGetComputeRunningProcesses_v3", &error))?;
    Ok(GpuReading {
        id: id.clone(),
        name,
        total: Bytes(total),
        used: Bytes(memory.used),
        processes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_that_cannot_be_loaded_is_named() {
        let path = Path::new("/nonexistent/libnvidia-ml.so.1");
        let Err(GpuError::LibraryMissing(text)) = init(Some(path)) else { panic!() };
        assert!(text.contains("/nonexistent/libnvidia-ml.so.1"), "{text}");
        assert!(!text.contains("libloading"), "{text}");
    }

    #[test]
    fn what_is_lost_is_told_of_each_once_it_was_read() {
        let id = GpuId::new("GPU-1");
        let error = || vec![(id.clone(), GpuError::Lost(id.clone(), "off the bus".into()))];
        let reading = GpuReading {
            id: GpuId::new("GPU-0"),
            name: "test".into(),
            total: Bytes(1),
            used: Bytes(0),
            processes: Vec::new(),
        };
        let never = BTreeSet::new();
        let snapshot = settle(vec![reading], error(), &never, "580.1".into()).unwrap();
        assert_eq!(snapshot.lost, [(id.clone(), Silence::Gone("off the bus".to_owned()))]);
        assert_eq!(snapshot.driver, "580.1");
        assert!(matches!(
            settle(Vec::new(), error(), &never, String::new()),
            Err(Trouble::Device(GpuError::Lost(..)))
        ));
        // The only one of this host, which models may run on.
        let seen = BTreeSet::from([id.clone()]);
        let snapshot = settle(Vec::new(), error(), &seen, String::new()).unwrap();
        assert_eq!((snapshot.devices.len(), snapshot.lost.len()), (0, 1));
        let zero = vec![(id.clone(), GpuError::ZeroMemory(id.clone()))];
        assert!(matches!(
            settle(Vec::new(), zero, &seen, String::new()),
            Err(Trouble::Device(GpuError::ZeroMemory(_)))
        ));
    }
}
