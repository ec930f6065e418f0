//! Which processes hold memory on a device.
//!
//! Purpose: one list with one entry a process out of NVML's two. Owner: [`super::reader`]. Invariants: bytes that NVML does
//! not know stay [`Known::Unknown`]; a driver that lists no processes is no error, because totals alone are of use.

use std::collections::BTreeMap;

use nvml_wrapper::enums::device::UsedGpuMemory;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::struct_wrappers::device::ProcessInfo;
use nvml_wrapper::{Device, Nvml as Library};

use crate::types::{Bytes, Known, ProcessMemory};

/// How often a process list is asked for: it may outgrow its buffer between the question for its length and the one
/// for its entries.
const LIST_TRIES: usize = 4;
/// The processes on a device; none where the driver does not say.
pub(super) fn of(nvml: &Library, device: &Device<'_>) -> Result<Vec<ProcessMemory>, NvmlError> {
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

/// One list, asked for again while it outgrows its buffer; empty where the device has none, keeps it from us, or has a longer one each
/// time: the totals are of use without it.
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
    match ask() {
        Err(NvmlError::InsufficientSize(_)) => Ok(Vec::new()),
        answer => answer,
    }
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
        assert!(ask(usize::MAX).unwrap().is_empty(), "it is not known");
        assert_eq!(asked.get(), LIST_TRIES);
        assert!(process_list(|| Err(NvmlError::NotSupported)).unwrap().is_empty());
        assert!(process_list(|| Err(NvmlError::GpuLost)).is_err());
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
