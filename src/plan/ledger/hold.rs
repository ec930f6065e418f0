//! What one instance holds, by its promise and by what was seen of it.

use super::{Hold, Ledger, Stage};
use crate::types::{Bytes, GpuId, InstanceId, Known};

impl Hold {
    /// What this hold takes on one device: the larger of promise and observation.
    #[must_use]
    pub fn charge(&self, gpu: &GpuId) -> Bytes {
        if let Stage::Quarantined { .. } = self.stage {
            return self.missing.get(gpu).copied().unwrap_or(Bytes::ZERO);
        }
        self.promised.max(self.seen(gpu))
    }

    pub(super) const fn is_quarantined(&self) -> bool {
        matches!(self.stage, Stage::Quarantined { .. })
    }

    pub(super) fn seen(&self, gpu: &GpuId) -> Bytes {
        self.observed.get(gpu).and_then(Known::get).unwrap_or(Bytes::ZERO)
    }

    /// What of the memory in use on a device is its.
    pub(super) fn in_use(&self, gpu: &GpuId) -> Bytes {
        match (self.stage, self.observed.get(gpu)) {
            // What is missing is in use, and is charged already.
            (Stage::Quarantined { .. }, _) => self.charge(gpu),
            (_, Some(Known::Known(bytes))) => *bytes,
            // Where the driver attributes nothing, the promise is the best guess of what is ours. A start that has claimed
            // nothing yet is then taken for foreign use at most, which errs towards refusing.
            (_, Some(Known::Unknown)) => self.promised,
            (_, None) => Bytes::ZERO,
        }
    }

    /// What of that is more than was promised to it.
    pub(super) fn excess(&self, gpu: &GpuId) -> Bytes {
        if self.is_quarantined() {
            return Bytes::ZERO;
        }
        self.in_use(gpu).saturating_sub(self.promised)
    }

    /// Observed on all its devices together; unknown if any of them is.
    #[must_use]
    pub fn observed_total(&self) -> Known<Bytes> {
        let mut sum = Bytes::ZERO;
        for gpu in &self.gpus {
            match self.observed.get(gpu) {
                Some(Known::Known(bytes)) => sum += *bytes,
                Some(Known::Unknown) | None => return Known::Unknown,
            }
        }
        Known::Known(sum)
    }

    /// The most observed on any one of its devices; `None` if nothing was measured.
    #[must_use]
    pub fn observed_peak(&self) -> Option<Bytes> {
        self.observed.values().filter_map(Known::get).max().filter(|b| *b > Bytes::ZERO)
    }
}

impl Ledger {
    /// Keeps another amount free on each device from now on.
    pub fn set_headroom(&mut self, headroom: Bytes) {
        self.headroom = headroom;
    }

    /// The instance serves its last requests and leaves for another then, or does not after all.
    pub fn drain(&mut self, instance: &InstanceId, draining: bool) {
        if let Some(hold) = self.holds.get_mut(instance) {
            hold.draining = draining;
        }
    }
}
