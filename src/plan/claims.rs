//! Room that is kept for those whose turn it is.
//!
//! Purpose: nobody is overtaken for ever. Whoever waits for memory that is on its way, on devices where it fits then, has
//! a claim on them until it has started, and those behind it start elsewhere or wait. Without that a model that needs
//! several devices, or most of one, waits as long as smaller ones find the holes that are made for it. Owner: the pass over
//! all who wait, which asks for them in the order of their priority and age, and hands the claims of each on to the next.
//! Invariants: a claim is made only where nothing but the end of starts, stops and falling asleep is in the way, all of
//! which have their deadlines, or the end of the requests on those who make way for it, or of a load that their leaving would
//! disturb, and, for one whose turn it is, the time until those that may leave then are old enough; who waits for a busy model
//! before its turn, or for others' processes, claims nothing. So every claim ends.

use std::collections::BTreeMap;

use super::ledger::Row;
use crate::types::{Bytes, GpuId};

/// What is kept on each device, for those who go before whoever asks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Claims(BTreeMap<GpuId, Bytes>);

impl Claims {
    /// Of so much on each of the devices.
    pub(super) fn on<'a>(devices: impl Iterator<Item = (&'a GpuId, Bytes)>) -> Self {
        Self(devices.map(|(gpu, bytes)| (gpu.clone(), bytes)).collect())
    }

    /// These too.
    pub fn add(&mut self, more: Self) {
        for (gpu, bytes) in more.0 {
            *self.0.entry(gpu).or_default() += bytes;
        }
    }

    /// Whether anything is kept on a device.
    #[must_use]
    pub fn touch(&self, gpu: &GpuId) -> bool {
        self.0.contains_key(gpu)
    }

    /// Nothing is claimed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// A device as those behind the claims have to see it: what is kept is not free, and a start there would close the
    /// device to the one whose turn it is.
    pub(super) fn apply(&self, mut row: Row) -> Row {
        if let Some(kept) = self.0.get(&row.id) {
            row.free = row.free.saturating_sub(*kept);
            row.soon = row.soon.saturating_sub(*kept);
            row.kept = *kept;
            row.gated = true;
        }
        row
    }
}
