//! Who has to leave.

use super::planner::{Holder, Standing};
use crate::types::{Bytes, GpuId, InstanceId, Moment};

/// The least costly set of idle instances whose leaving frees at least `missing` on `gpu`; `None` if all of them
/// together would not do. Longest unused first; afterwards everyone whose leaving turns out unnecessary is spared, so no
/// proper subset of the answer would do.
pub(super) fn victims(holders: &[Holder], gpu: &GpuId, missing: Bytes) -> Option<Vec<InstanceId>> {
    let mut idle: Vec<(&Holder, Bytes)> = holders
        .iter()
        .filter(|h| h.standing == Standing::Idle)
        .filter_map(|h| h.charge_on(gpu).map(|charge| (h, charge)))
        .collect();
    // The instance as the last key makes the order total, hence the plan deterministic.
    idle.sort_by_key(|(h, _)| (h.last_used, h.instance.clone()));
    let mut chosen: Vec<(&Holder, Bytes)> = Vec::new();
    let mut freed = Bytes::ZERO;
    for (holder, charge) in idle {
        if freed >= missing {
            break;
        }
        freed += charge;
        chosen.push((holder, charge));
    }
    if freed < missing {
        return None;
    }
    // Spare the most recently used first.
    for at in (0..chosen.len()).rev() {
        let without = freed.saturating_sub(chosen[at].1);
        if without >= missing {
            freed = without;
            chosen.remove(at);
        }
    }
    Some(chosen.into_iter().map(|(h, _)| h.instance.clone()).collect())
}

/// Orders candidate sets: fewer victims first, then those that were unused for longest.
pub(super) fn cost(holders: &[Holder], set: &[InstanceId]) -> (usize, Moment) {
    let used = holders.iter().filter(|h| set.contains(&h.instance)).map(|h| h.last_used);
    (set.len(), used.max().unwrap_or(Moment::START))
}
