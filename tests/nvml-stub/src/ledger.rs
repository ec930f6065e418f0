//! What a device's memory looks like: the script and the claims, added up.
//!
//! Owner: whoever asks; nothing is kept. Used by the C side for its answers and by claimants to see
//! whether they fit, so both always agree.

use std::collections::BTreeMap;

use crate::claims::{Seen, SeenState, Table, now_ms};
use crate::script::{Gpu, Kind, Script};
use crate::{Process, Size, StateDir};

/// Memory of one device, in bytes; total = reserved + used + free.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Usage {
    /// All of it.
    pub total: u64,
    /// The driver's own.
    pub reserved: u64,
    /// In use: foreign, processes on paper, living claims and claims not yet released.
    pub used: u64,
    /// The part of `used` that belongs to dead claims within `release_lag_ms`.
    pub lingering: u64,
    /// Processes: those on paper in the script's order, then claimants by PID, one entry each.
    pub processes: Vec<Process>,
}

impl Usage {
    /// Bytes that can still be had.
    #[must_use]
    pub fn free(&self) -> u64 {
        self.total.saturating_sub(self.reserved).saturating_sub(self.used)
    }
}

/// The present memory of device `uuid`; `None` when the script has no such device.
///
/// # Errors
/// When the script or the claims table cannot be read.
pub fn usage(dir: &StateDir, uuid: &str) -> Result<Option<Usage>, crate::ClaimError> {
    let script = Script::load(dir)?;
    let seen = scan(dir).map_err(|source| crate::ClaimError::Io { path: dir.claims(), source })?;
    Ok(script.gpu(uuid).map(|gpu| of(gpu, &seen, now_ms())))
}

/// All claims; none when there is no table yet.
pub(crate) fn scan(dir: &StateDir) -> std::io::Result<Vec<Seen>> {
    match Table::open(dir) {
        Ok(mut table) => table.scan(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// The arithmetic alone.
pub(crate) fn of(gpu: &Gpu, seen: &[Seen], now: u64) -> Usage {
    let mut claimants: BTreeMap<u32, u64> = BTreeMap::new();
    let mut lingering = 0_u64;
    for claim in seen.iter().filter(|claim| claim.record.uuid == gpu.uuid) {
        match claim.state {
            SeenState::Alive(pid) => *claimants.entry(pid).or_default() += claim.record.bytes,
            SeenState::Gone(at) if now < at.saturating_add(gpu.release_lag_ms) => {
                lingering += claim.record.bytes;
            }
            SeenState::Gone(_) => {}
        }
    }
    let on_paper: u64 = gpu.processes.iter().map(|process| process.bytes.0).sum();
    let claimed: u64 = claimants.values().sum();
    let slices: u64 = gpu.slices().iter().map(|slice| of(slice, seen, now).used).sum();
    let mut processes = gpu.processes.clone();
    processes.extend(
        claimants
            .into_iter()
            // The driver lists no process whose PID it cannot tell, nor one without a context.
            .filter(|(pid, bytes)| *pid != 0 && *bytes != 0)
            .map(|(pid, bytes)| Process { pid, bytes: Size(bytes), kind: Kind::Compute }),
    );
    Usage {
        total: gpu.total.0,
        reserved: gpu.reserved.0,
        used: gpu.foreign.0 + on_paper + claimed + lingering + slices,
        lingering,
        processes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Record;

    fn claim(uuid: &str, bytes: u64, state: SeenState) -> Seen {
        let record =
            Record { uuid: uuid.into(), bytes, taken_ms: 1, freed_ms: 0, pid: 1, pid_namespace: 1 };
        Seen { record, state }
    }

    #[test]
    fn everything_is_counted_once_and_only_on_its_device() {
        let mut gpu = Gpu::new("GPU-0", 1000);
        gpu.reserved = Size(100);
        gpu.foreign = Size(10);
        gpu.release_lag_ms = 50;
        gpu.processes.push(Process { pid: 3, bytes: Size(5), kind: Kind::Graphics });
        let seen = [
            claim("GPU-0", 200, SeenState::Alive(9)),
            claim("GPU-0", 20, SeenState::Alive(9)),
            claim("GPU-0", 40, SeenState::Gone(1000)),
            claim("GPU-0", 7, SeenState::Alive(0)),
            claim("GPU-1", 99, SeenState::Alive(9)),
        ];
        let usage = of(&gpu, &seen, 1049);
        assert_eq!((usage.used, usage.lingering, usage.free()), (10 + 5 + 220 + 40 + 7, 40, 618));
        let listed: Vec<_> = usage.processes.iter().map(|p| (p.pid, p.bytes.0)).collect();
        assert_eq!(listed, [(3, 5), (9, 220)]);
        assert_eq!(of(&gpu, &seen, 1050).lingering, 0);
    }

    #[test]
    fn a_shrunken_device_has_nothing_free() {
        let usage = of(&Gpu::new("GPU-0", 100), &[claim("GPU-0", 500, SeenState::Alive(2))], 0);
        assert_eq!(usage.free(), 0);
    }
}
