//! One NVML reading: the blocking work of [`super::Nvml`], on its own thread.
//!
//! Purpose: turn what NVML says about the configured devices into a [`GpuSnapshot`] or a [`GpuError`]. Owner: the NVML
//! thread. Invariants: device handles live for one reading only (they are looked up by UUID each time, so that a device
//! that came back is found again); a device that has been read once can later be *lost* but never makes the others
//! unreadable; before that, what is wrong with it is a start-up error with its own cause.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use nvml_wrapper::enums::device::UsedGpuMemory;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::struct_wrappers::device::ProcessInfo;
use nvml_wrapper::{Device, Nvml as Library};

use crate::supervisor::ports::GpuError;
use crate::types::{Bytes, GpuId, GpuReading, GpuSnapshot, Known, ProcessMemory};

/// What the dynamic linker is asked for when the configuration names no library.
const LIBRARY: &str = "libnvidia-ml.so.1";
/// The first driver branch with `nvmlDeviceGetMemoryInfo_v2` and the `_v3` process lists.
const DRIVER_NEEDED: u32 = 510;
/// How often a process list is asked for: it may outgrow its buffer between the question for its length and the one
/// for its entries.
const LIST_TRIES: usize = 4;
/// `NVML_ERROR_ARGUMENT_VERSION_MISMATCH`: the library knows the function but not this version of its argument.
const ARGUMENT_VERSION_MISMATCH: u32 = 25;

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

/// What went wrong, and how far it reaches.
#[derive(Debug, PartialEq, Eq)]
enum Trouble {
    /// NVML as a whole does not work; it is initialised anew at the next reading.
    Backend(GpuError),
    /// This device does not work.
    Device(GpuError),
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
        settle(devices, failed)
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

/// A snapshot of whatever answered; if nothing did, the reason of the first device is the reason of all.
fn settle(
    devices: Vec<GpuReading>,
    failed: Vec<(GpuId, GpuError)>,
) -> Result<GpuSnapshot, Trouble> {
    let lost = failed.iter().map(|(id, error)| (id.clone(), reason(error))).collect();
    match failed.into_iter().next() {
        Some((_, error)) if devices.is_empty() => Err(Trouble::Device(error)),
        _ => Ok(GpuSnapshot { devices, lost }),
    }
}

/// Why a device is in `lost`: without its identifier, which stands beside it.
fn reason(error: &GpuError) -> String {
    if let GpuError::Lost(_, why) = error { why.clone() } else { error.to_string() }
}

/// Loads the library and initialises it.
fn init(library: Option<&Path>) -> Result<Library, GpuError> {
    let path = library.unwrap_or(Path::new(LIBRARY));
    Library::builder().lib_path(path.as_os_str()).init().map_err(|error| init_error(path, &error))
}

fn init_error(path: &Path, error: &NvmlError) -> GpuError {
    if let Some(cause) = backend_error(error) {
        return cause;
    }
    match error {
        // The linker's message does not always name what was to be loaded.
        NvmlError::LibloadingError(_) | NvmlError::LibraryNotFound => {
            let text = error_text(error);
            let text = text.strip_prefix("a libloading error occurred: ").unwrap_or(&text);
            let path = path.display().to_string();
            GpuError::LibraryMissing(if text.contains(&path) {
                text.to_owned()
            } else {
                format!("{path}: {text}")
            })
        }
        NvmlError::NoPermission => GpuError::Other(
            "nvmlInit_v2: no permission to talk to the driver; check that the service's user may open /dev/nvidiactl"
                .to_owned(),
        ),
        error => GpuError::Other(format!("nvmlInit_v2: {}", error_text(error))),
    }
}

/// Errors that mean the same whatever call they come from.
fn backend_error(error: &NvmlError) -> Option<GpuError> {
    match error {
        NvmlError::DriverNotLoaded => Some(GpuError::DriverNotLoaded(error_text(error))),
        NvmlError::LibRmVersionMismatch => Some(GpuError::VersionMismatch(error_text(error))),
        NvmlError::Uninitialized => {
            Some(GpuError::Other("the library lost its initialisation, retrying".to_owned()))
        }
        _ => None,
    }
}

/// An NVML error without its own misspellings and with its number where it has no words.
fn error_text(error: &NvmlError) -> String {
    match error {
        NvmlError::GpuLost => "the device fell off the bus or is inaccessible".to_owned(),
        NvmlError::UnexpectedVariant(code) => format!("NVML error {code}"),
        error => error.to_string(),
    }
}

/// Sorts an error of one call about one device.
fn device_error(nvml: &Library, id: &GpuId, call: &str, error: &NvmlError) -> Trouble {
    if let Some(cause) = backend_error(error) {
        return Trouble::Backend(cause);
    }
    match error {
        NvmlError::FailedToLoadSymbol(_)
        | NvmlError::FunctionNotFound
        | NvmlError::UnexpectedVariant(ARGUMENT_VERSION_MISMATCH) => {
            let driver = nvml.sys_driver_version().unwrap_or_else(|_| "unknown".to_owned());
            Trouble::Backend(GpuError::Other(old_driver(&driver, call)))
        }
        NvmlError::GpuLost | NvmlError::ResetRequired => {
            Trouble::Device(GpuError::Lost(id.clone(), error_text(error)))
        }
        error => Trouble::Device(GpuError::Other(format!("{call} on {id}: {}", error_text(error)))),
    }
}

fn old_driver(driver: &str, call: &str) -> String {
    format!(
        "the driver {driver} does not offer {call}; install NVIDIA driver {DRIVER_NEEDED} or newer"
    )
}

/// Every device that models can be placed on. A device in MIG mode is replaced by its MIG devices, because memory
/// cannot be had from the device itself any more.
fn list(nvml: &Library) -> Result<Listed, Trouble> {
    let nowhere = GpuId::new("all devices");
    let count = nvml
        .device_count()
        .map_err(|error| device_error(nvml, &nowhere, "nvmlDeviceGetCount_v2", &error))?;
    let (mut ids, mut failed) = (Vec::new(), Vec::new());
    for index in 0..count {
        match device_uuids(nvml, index) {
            Ok(uuids) => ids.extend(uuids.iter().map(|uuid| GpuId::new(uuid))),
            Err(error) => {
                // Its UUID cannot be had, so this names it as NVML counts.
                let name = GpuId::new(&format!("index {index}"));
                match device_error(nvml, &name, "nvmlDeviceGetUUID", &error) {
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
    let device = nvml.device_by_uuid(id.as_str()).map_err(|error| match error {
        NvmlError::NotFound | NvmlError::InvalidArg => match list(nvml) {
            Ok((present, _)) => Trouble::Device(GpuError::NotFound { wanted: id.clone(), present }),
            Err(trouble) => trouble,
        },
        error => device_error(nvml, id, "nvmlDeviceGetHandleByUUID", &error),
    })?;
    let name =
        device.name().map_err(|error| device_error(nvml, id, "nvmlDeviceGetName", &error))?;
    let memory = device.memory_info().map_err(|error| match error {
        NvmlError::NotSupported => Trouble::Device(GpuError::MemoryUnsupported(id.clone())),
        error => device_error(nvml, id, "nvmlDeviceGetMemoryInfo_v2", &error),
    })?;
    // Memory that the driver and the firmware keep for themselves is no model's, and v2 `used` does not count it.
    let total = memory.total.saturating_sub(memory.reserved);
    if total == 0 {
        return Err(Trouble::Device(GpuError::ZeroMemory(id.clone())));
    }
    let processes = processes(nvml, &device)
        .map_err(|error| device_error(nvml, id, "the process lists (_v3)", &error))?;
    Ok(GpuReading {
        id: id.clone(),
        name,
        total: Bytes(total),
        used: Bytes(memory.used),
        processes,
    })
}

/// The processes on a device; none where the driver does not say.
fn processes(nvml: &Library, device: &Device<'_>) -> Result<Vec<ProcessMemory>, NvmlError> {
    if nvml.sys_driver_version().is_ok_and(|driver| has_broken_lists(&driver)) {
        return Ok(Vec::new());
    }
    let compute = process_list(|| device.running_compute_processes())?;
    let graphics = process_list(|| device.running_graphics_processes())?;
    Ok(merge(&compute, &graphics))
}

/// Drivers 535.43 to 535.98 write larger entries into the `_v3` lists than the interface says: over the end of the
/// buffer, and in the wrong places.
fn has_broken_lists(driver: &str) -> bool {
    let mut parts = driver.split('.').map(|part| part.parse::<u32>().ok());
    parts.next().flatten() == Some(535) && parts.next().flatten().is_some_and(|minor| minor < 104)
}

/// One list, asked for again while it outgrows its buffer; empty where the device has none or keeps it from us.
fn process_list(
    ask: impl Fn() -> Result<Vec<ProcessInfo>, NvmlError>,
) -> Result<Vec<ProcessInfo>, NvmlError> {
    for _ in 1..LIST_TRIES {
        match ask() {
            Err(NvmlError::InsufficientSize(_)) => {}
            Err(NvmlError::NotSupported | NvmlError::NoPermission) => return Ok(Vec::new()),
            answer => return answer,
        }
    }
    ask()
}

/// One entry a process. A process with both kinds of context is in both lists with the same bytes, so the larger number
/// counts; one that is several times in a list holds several MIG slices, which add up.
fn merge(compute: &[ProcessInfo], graphics: &[ProcessInfo]) -> Vec<ProcessMemory> {
    let mut merged = per_process(compute);
    for (pid, bytes) in per_process(graphics) {
        merged
            .entry(pid)
            .and_modify(|have| *have = combine(*have, bytes, Ord::max))
            .or_insert(bytes);
    }
    merged.into_iter().map(|(pid, bytes)| ProcessMemory { pid, bytes }).collect()
}

fn per_process(list: &[ProcessInfo]) -> BTreeMap<u32, Known<Bytes>> {
    let mut sums = BTreeMap::new();
    for process in list {
        let bytes = match process.used_gpu_memory {
            UsedGpuMemory::Used(bytes) => Known::Known(Bytes(bytes)),
            UsedGpuMemory::Unavailable => Known::Unknown,
        };
        sums.entry(process.pid)
            .and_modify(|have| *have = combine(*have, bytes, |a, b| a + b))
            .or_insert(bytes);
    }
    sums
}

/// Unknown with anything is unknown.
fn combine(
    a: Known<Bytes>,
    b: Known<Bytes>,
    join: impl FnOnce(Bytes, Bytes) -> Bytes,
) -> Known<Bytes> {
    match (a, b) {
        (Known::Known(a), Known::Known(b)) => Known::Known(join(a, b)),
        (Known::Unknown, _) | (_, Known::Unknown) => Known::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(pid: u32, used: UsedGpuMemory) -> ProcessInfo {
        ProcessInfo { pid, used_gpu_memory: used, gpu_instance_id: None, compute_instance_id: None }
    }

    #[test]
    fn lists_are_merged_by_process() {
        use UsedGpuMemory::{Unavailable, Used};
        let compute = [process(1, Used(100)), process(2, Used(7)), process(2, Used(8))];
        let graphics = [process(1, Used(100)), process(3, Unavailable), process(4, Used(1))];
        let bytes = |pid, n| ProcessMemory { pid, bytes: Known::Known(Bytes(n)) };
        assert_eq!(
            merge(&compute, &graphics),
            [
                bytes(1, 100),
                bytes(2, 15),
                ProcessMemory { pid: 3, bytes: Known::Unknown },
                bytes(4, 1)
            ]
        );
        let unknown = [process(1, Unavailable)];
        assert_eq!(merge(&compute[..1], &unknown)[0].bytes, Known::Unknown);
    }

    #[test]
    fn a_list_that_outgrows_its_buffer_is_asked_for_again() {
        let asked = std::cell::Cell::new(0);
        let ask = |good_after: usize| {
            asked.set(0);
            process_list(|| {
                asked.set(asked.get() + 1);
                if asked.get() > good_after {
                    Ok(vec![process(1, UsedGpuMemory::Used(1))])
                } else {
                    Err(NvmlError::InsufficientSize(None))
                }
            })
        };
        assert_eq!(ask(2).unwrap().len(), 1);
        assert!(matches!(ask(usize::MAX), Err(NvmlError::InsufficientSize(_))));
        assert_eq!(asked.get(), LIST_TRIES);
        assert!(process_list(|| Err(NvmlError::NotSupported)).unwrap().is_empty());
        assert!(process_list(|| Err(NvmlError::GpuLost)).is_err());
    }

    #[test]
    fn initialisation_errors_have_their_own_cause() {
        let path = Path::new("libnvidia-ml.so.1");
        let text = |error: NvmlError| init_error(path, &error);
        assert!(matches!(text(NvmlError::DriverNotLoaded), GpuError::DriverNotLoaded(_)));
        assert!(matches!(text(NvmlError::LibRmVersionMismatch), GpuError::VersionMismatch(_)));
        assert!(matches!(text(NvmlError::LibraryNotFound), GpuError::LibraryMissing(_)));
        let GpuError::Other(other) = text(NvmlError::UnexpectedVariant(42)) else { panic!() };
        assert!(other.contains("42"), "{other}");
        let GpuError::Other(other) = text(NvmlError::NoPermission) else { panic!() };
        assert!(other.contains("/dev/nvidiactl"), "{other}");
    }

    #[test]
    fn a_library_that_cannot_be_loaded_is_named() {
        let path = Path::new("/nonexistent/libnvidia-ml.so.1");
        let Err(GpuError::LibraryMissing(text)) = init(Some(path)) else { panic!() };
        assert!(text.contains("/nonexistent/libnvidia-ml.so.1"), "{text}");
        assert!(!text.contains("libloading"), "{text}");
    }

    #[test]
    fn one_device_lost_leaves_the_others_and_all_lost_is_an_error() {
        let id = GpuId::new("GPU-1");
        let error = || vec![(id.clone(), GpuError::Lost(id.clone(), "off the bus".into()))];
        let reading = GpuReading {
            id: GpuId::new("GPU-0"),
            name: "test".into(),
            total: Bytes(1),
            used: Bytes(0),
            processes: Vec::new(),
        };
        let snapshot = settle(vec![reading], error()).unwrap();
        assert_eq!(snapshot.lost, [(id.clone(), "off the bus".to_owned())]);
        assert!(matches!(settle(Vec::new(), error()), Err(Trouble::Device(GpuError::Lost(..)))));
        let zero = vec![(id.clone(), GpuError::ZeroMemory(id.clone()))];
        assert!(matches!(settle(Vec::new(), zero), Err(Trouble::Device(GpuError::ZeroMemory(_)))));
    }

    #[test]
    fn drivers_with_broken_lists_are_known() {
        for (driver, broken) in [
            ("535.54.03", true),
            ("535.98", true),
            ("535.104.05", false),
            ("535.183.01", false),
            ("550.54.14", false),
            ("510.47", false),
            ("", false),
            ("535", false),
        ] {
            assert_eq!(has_broken_lists(driver), broken, "{driver}");
        }
    }
}
