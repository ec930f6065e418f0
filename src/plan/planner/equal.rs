//! Which devices are equal, and can so have one model together.
//!
//! Purpose: an engine that is spread over several devices runs at the pace of the smallest, so they are of one product and size.
//! Owner: the planner. Invariants: a slice of a device (MIG) is equal to no other, for a process sees one slice alone; the order in
//! which devices come does not matter.

use super::{Row, Want};
use crate::types::{Bytes, GpuId, GpuReading};

/// Equal devices of one product may differ by that part of their memory, as a divisor: what a driver keeps for itself is not the
/// same on each of them (10,986 and 10,989 MiB), and more on the one with a display.
const EQUAL_SHARE: u64 = 64;

/// How many of these devices are equal, at most.
#[must_use]
pub fn equals(devices: &[&GpuReading]) -> usize {
    let sets = alike(devices, |device| (device.name.as_str(), device.total, &device.id));
    sets.iter().map(Vec::len).max().unwrap_or(0)
}

/// Equal devices together, the smallest first.
pub(super) fn groups<'a>(rows: &[&'a Row]) -> Vec<Vec<&'a Row>> {
    alike(rows, |row| (row.name.as_str(), row.total, &row.id))
}

fn alike<'a, T>(
    devices: &[&'a T],
    of: impl Fn(&'a T) -> (&'a str, Bytes, &'a GpuId),
) -> Vec<Vec<&'a T>> {
    let mut sorted = devices.to_vec();
    sorted.sort_by_key(|device| of(device));
    let mut sets: Vec<Vec<&T>> = Vec::new();
    for device in sorted {
        let (name, total, id) = of(device);
        let equal = |first: &'a T| {
            let (its_name, its_total, its_id) = of(first);
            let more = total.saturating_sub(its_total).0;
            let whole = !id.is_slice() && !its_id.is_slice();
            whole && name == its_name && more <= its_total.0 / EQUAL_SHARE
        };
        match sets.last_mut().filter(|set| equal(set[0])) {
            Some(set) => set.push(device),
            None => sets.push(vec![device]),
        }
    }
    sets
}

impl Want<'_> {
    /// The `count` equal devices with the fewest failures, then with the least free memory; ties go to the lower identifier.
    pub(super) fn tightest<'a>(&self, rows: &[&'a Row], count: usize) -> Option<Vec<&'a Row>> {
        let rank = |row: &&'a Row| (self.failures_on(&row.id), row.free, &row.id);
        let full = groups(rows).into_iter().filter(|group| group.len() >= count);
        full.map(|mut group| {
            group.sort_by_key(rank);
            group.truncate(count);
            group
        })
        .min_by_key(|group| (group.last().map(|row| self.failures_on(&row.id)), rank(&group[0])))
    }

    fn failures_on(&self, gpu: &GpuId) -> u32 {
        self.shunned.get(gpu).copied().unwrap_or(0)
    }
}
