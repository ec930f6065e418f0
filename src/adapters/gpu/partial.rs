//! What a reading has found so far, for a caller who cannot wait for its end.
//!
//! Purpose: where one device hangs, the others were read, and that is worth as much as ever. Owner: [`super::Nvml`]; the NVML thread
//! fills it, the caller whose deadline comes takes it. Invariants: each reading begins with nothing, so nothing old is ever taken for new;
//! what was taken is filled no further, so that nobody is answered by what a reading finds long after its caller left.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::types::{GpuId, GpuReading, GpuSnapshot, Silence};

/// The reading that runs, once it asks for devices, until it was taken.
#[derive(Debug, Default)]
pub(super) struct Partial(Mutex<Option<Found>>);

#[derive(Debug)]
struct Found {
    devices: Vec<GpuReading>,
    lost: Vec<(GpuId, Silence)>,
    awaited: Vec<GpuId>,
    driver: String,
}

impl Partial {
    /// No reading runs.
    pub(super) fn clear(&self) {
        *self.found() = None;
    }

    /// A reading begins of these devices.
    pub(super) fn begin(&self, awaited: Vec<GpuId>, driver: String) {
        *self.found() = Some(Found { devices: Vec::new(), lost: Vec::new(), awaited, driver });
    }

    /// A device was read, which was awaited by this name.
    pub(super) fn add(&self, awaited: &GpuId, reading: &GpuReading) {
        if let Some(found) = self.found().as_mut() {
            found.awaited.retain(|id| id != awaited && *id != reading.id);
            found.devices.push(reading.clone());
        }
    }

    /// A device did not let itself be read.
    pub(super) fn silent(&self, awaited: &GpuId, why: Silence) {
        if let Some(found) = self.found().as_mut() {
            found.awaited.retain(|id| id != awaited);
            found.lost.push((awaited.clone(), why));
        }
    }

    /// What was read within `deadline`; `None` where that is nothing.
    pub(super) fn take(&self, deadline: Duration) -> Option<GpuSnapshot> {
        let Found { devices, mut lost, awaited, driver } = self.found().take()?;
        let silent =
            |id| (id, Silence::Unread(format!("NVML did not answer for it within {deadline:?}")));
        lost.extend(awaited.into_iter().map(silent));
        (!devices.is_empty()).then_some(GpuSnapshot { devices, lost, driver })
    }

    fn found(&self) -> MutexGuard<'_, Option<Found>> {
        // Nothing under the lock can leave it half changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Bytes;

    fn reading(id: &str) -> GpuReading {
        GpuReading {
            id: GpuId::new(id),
            name: "test".into(),
            total: Bytes(1),
            used: Bytes(0),
            processes: Vec::new(),
        }
    }

    #[test]
    fn what_was_read_is_told_once_with_what_was_not() {
        let (partial, deadline) = (Partial::default(), Duration::from_secs(3));
        let ids = || ["a", "b", "c"].map(GpuId::new).to_vec();
        assert_eq!(partial.take(deadline), None);
        partial.begin(ids(), "580".into());
        assert_eq!(partial.take(deadline), None, "nothing was read");
        partial.begin(ids(), "580".into());
        partial.add(&GpuId::new("a"), &reading("a"));
        partial.silent(&GpuId::new("c"), Silence::Gone("fell off the bus".into()));
        let taken = partial.take(deadline).unwrap();
        assert_eq!((taken.devices, taken.driver.as_str()), (vec![reading("a")], "580"));
        let [(gone, Silence::Gone(_)), (lost, Silence::Unread(why))] = &taken.lost[..] else {
            panic!("{:?}", taken.lost)
        };
        assert_eq!((gone.as_str(), lost.as_str()), ("c", "b"));
        assert!(why.contains("within 3s"), "{why}");
        // Its caller is gone: what the thread still finds answers nobody.
        partial.add(&GpuId::new("b"), &reading("b"));
        assert_eq!(partial.take(deadline), None);
    }
}
