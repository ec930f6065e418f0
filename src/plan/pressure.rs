//! Who yields when others take the memory.
//!
//! Purpose: at rest, without anybody who wants to start: a device whose headroom is being used up is relieved by idle
//! instances, in the order of their cost. What is promised but not used does not count: nobody misses it yet. Nor, up to half
//! of the headroom, does what instances use beyond their promises: others did not take it, and an engine that always takes some
//! more than it was told would be stopped as often as it is loaded. Not beyond that, or the device could run full unseen.
//! Invariants: nobody who serves or is pinned, and no process that is not ours; nobody leaves for more than others hold, nor beside a
//! load that it would disturb; where a start or stop is under way nothing is judged, for its numbers are not settled.

use super::eviction::{Candidate, Choice};
use super::holder::{Holder, Standing};
use super::ledger::{Ledger, Row};
use super::planner::Rules;
use super::sleep::{Victim, gentlest};
use crate::types::{Bytes, GpuId, InstanceId, Moment};

/// One device under pressure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Relief {
    /// Which.
    pub gpu: GpuId,
    /// How much of its headroom is in use by others.
    pub missing: Bytes,
    /// Who yields: the cheapest set that frees so much, or everybody idle there where that is not enough; empty: nobody is
    /// idle, or all who are would disturb a load on another of their devices. Those sleep whose sleep is enough.
    pub victims: Vec<Victim>,
}

/// The devices on which more than `slack` is missing, with those who yield.
#[must_use]
pub fn relieve(
    now: Moment,
    rules: Rules,
    ledger: &Ledger,
    holders: &[Holder],
    slack: Bytes,
) -> Vec<Relief> {
    if ledger.stale().is_some() {
        return Vec::new();
    }
    let rows = ledger.rows();
    let pressed = rows.iter().filter(|row| !row.gated && missing(row) > slack);
    pressed.map(|row| relief(now, rules, holders, row)).collect()
}

fn missing(row: &Row) -> Bytes {
    let forgiven = row.excess.min(row.headroom.scale(1, 2));
    let missing = (row.used + row.headroom).saturating_sub(row.total + forgiven);
    // On the host processes share pages with its cache, which are theirs but not in use: what others hold is not known there.
    if row.id.is_host() { missing } else { missing.min(row.foreign) }
}

fn relief(now: Moment, rules: Rules, holders: &[Holder], row: &Row) -> Relief {
    let holds = |h: &&Holder| h.charge_on(&row.id).is_some_and(|c| c > Bytes::ZERO);
    let yields = |h: &&Holder| matches!(h.standing, Standing::Idle | Standing::Asleep);
    let idle = holders.iter().filter(yields).filter(holds);
    let idle: Vec<&Holder> = idle.collect();
    let costs = rules.policy.weigh(now, &idle);
    let candidates: Vec<Candidate<'_>> =
        idle.iter().zip(costs).map(|(holder, cost)| Candidate { holder, cost }).collect();
    let choice = Choice { candidates: &candidates, missing: &missing, count: 1 };
    let groups = [vec![row]];
    let set = choice.cheapest(&groups).unwrap_or_else(|| {
        let mut all: Vec<InstanceId> = idle.iter().map(|h| h.instance.clone()).collect();
        all.sort();
        all
    });
    let judged = gentlest(&choice, &groups, &set, rules.sleep, holders);
    let victims = judged.into_iter().map(|(victim, _)| victim).collect();
    Relief { gpu: row.id.clone(), missing: missing(row), victims }
}
