//! What it costs to stop an idle instance.
//!
//! Purpose: the one place that says whose memory is worth most. Owner: nobody; everything here is a value. Invariants:
//! whole numbers only, so that the same input gives the same plan on every machine; the cost of a set is the sum of the
//! costs of its members, so more victims never cost less.
//!
//! # The cost
//! The default, [`CostAware`], asks how long everybody will have to wait for the model's return: its learned load time,
//! times how likely it is needed within the next minute. That likelihood is the sum of two estimates, which err in
//! opposite ways:
//!
//! * *frequency*: the share of minutes in which it was used, with a half-life of [`HALF_LIFE`]. Requests of one minute
//!   count once, because one load serves them all: a burst of a thousand requests is not a thousand needs. It is slow to
//!   see that a model has come or gone.
//! * *recency*: one minute over the time since its last use and one minute. What was used just now is likely used again
//!   soon, and what has been silent for an hour is likely silent for another minute. It knows nothing of habits.
//!
//! [`Lru`] is the baseline: it stops what was unused for longest, whatever its return takes.

use std::fmt;
use std::time::Duration;

use super::holder::Holder;
use crate::types::{Bytes, Eviction, Moment};

/// Half of what is known about a model's frequency is forgotten in this time. Long enough to see that a model is used every
/// few minutes, short enough that a morning's habits do not rule the afternoon; it is also the default `idle_timeout`,
/// after which an unused model is gone anyway.
pub const HALF_LIFE: Duration = Duration::from_mins(10);
/// Uses within this time of one that was counted are the same need.
const NEED_SPAN: Duration = Duration::from_mins(1);
/// Certainty, in the fixed-point numbers of this module.
const ONE: u64 = 1 << 20;
/// `2^(-1/2)`, `2^(-1/4)`, … in units of `2^-32`.
const ROOTS: [u64; 8] = [
    3_037_000_500,
    3_611_622_603,
    3_938_502_376,
    4_112_874_773,
    4_202_935_003,
    4_248_701_965,
    4_271_771_996,
    4_283_353_945,
];
/// What an engine's start is taken to last beside reading its weights, before one was seen.
const START_GUESS: Duration = Duration::from_secs(10);
/// And how fast weights are taken to be read, in bytes a millisecond: about 1 GB/s, a common NVMe disk.
const READ_GUESS: u64 = 1_000_000;

/// What it costs that an instance leaves. Comparable only among costs of one policy at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cost(pub u128);

impl std::ops::Add for Cost {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

/// Who is missed least.
pub trait Policy: fmt::Debug + Sync {
    /// The cost of each candidate's leaving, in their order. All are given at once because a policy may rank them; the
    /// result must not depend on their order.
    fn weigh(&self, now: Moment, candidates: &[&Holder]) -> Vec<Cost>;
}

/// The policy of that name.
#[must_use]
pub fn named(eviction: Eviction) -> &'static dyn Policy {
    match eviction {
        Eviction::Cost => &CostAware,
        Eviction::Lru => &Lru,
    }
}

/// Longest unused first. Costs are powers of two by rank, so that the freshest member decides between two sets, then the
/// second freshest, and so on: any number of older ones leave before one that is fresher.
#[derive(Clone, Copy, Debug)]
pub struct Lru;

impl Policy for Lru {
    fn weigh(&self, _now: Moment, candidates: &[&Holder]) -> Vec<Cost> {
        let age = |h: &Holder| (h.last_used, h.instance.clone());
        let mut ages: Vec<_> = candidates.iter().map(|h| age(h)).collect();
        ages.sort();
        let rank = |h: &Holder| ages.iter().position(|a| *a == age(h)).unwrap_or(0);
        // Beyond 126 candidates the freshest ones are alike.
        candidates.iter().map(|h| Cost(1 << rank(h).min(126))).collect()
    }
}

/// Reload time times the likelihood of need: see the module's text.
#[derive(Clone, Copy, Debug)]
pub struct CostAware;

impl Policy for CostAware {
    fn weigh(&self, now: Moment, candidates: &[&Holder]) -> Vec<Cost> {
        let cost = |h: &&Holder| {
            let need = h.demand.frequency(now) + recency(now.since(h.last_used));
            Cost(reload(h).as_millis().saturating_mul(u128::from(need)))
        };
        candidates.iter().map(cost).collect()
    }
}

/// How long its return takes: as learned, else guessed from its memory.
fn reload(holder: &Holder) -> Duration {
    let charged: Bytes = holder.charges.iter().map(|(_, bytes)| *bytes).sum();
    let guess = || START_GUESS + Duration::from_millis(charged.0 / READ_GUESS);
    holder.demand.reload().unwrap_or_else(guess)
}

fn recency(age: Duration) -> u64 {
    let (span, age) = (millis(NEED_SPAN), millis(age));
    ONE * span / span.saturating_add(age)
}

/// What is known about the use of one model, over all its incarnations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Demand {
    /// Share of the minutes in which it was used, in `1/ONE`, as of `counted`.
    frequency: u64,
    /// When a use was last counted.
    counted: Option<Moment>,
    /// From the start to ready.
    reload: Option<Duration>,
}

impl Demand {
    /// A lease was granted.
    pub fn used(&mut self, now: Moment) {
        if self.counted.is_some_and(|at| now.since(at) < NEED_SPAN) {
            return;
        }
        // Used in every minute, the share approaches `ONE`.
        let step = ONE - decayed(ONE, NEED_SPAN);
        self.frequency = (self.frequency(now) + step).min(ONE);
        self.counted = Some(now);
    }

    /// A load was seen to take so long, without the image's pull. The last two count half each, those before less: a
    /// first load from a cold disk is not what a reload takes.
    pub fn loaded(&mut self, took: Duration) {
        self.reload = Some(self.reload.map_or(took, |earlier| (earlier + took) / 2));
    }

    /// Share of the minutes in which it was used, in units of `2^-20`; old ones count less.
    #[must_use]
    pub fn frequency(&self, now: Moment) -> u64 {
        self.counted.map_or(0, |at| decayed(self.frequency, now.since(at)))
    }

    /// How long a load takes; `None`: none was seen.
    #[must_use]
    pub const fn reload(&self) -> Option<Duration> {
        self.reload
    }
}

/// What is left of `value`, at most [`ONE`], after `age`.
fn decayed(value: u64, age: Duration) -> u64 {
    let (age, half) = (millis(age), millis(HALF_LIFE));
    let whole = u32::try_from(age / half).unwrap_or(u32::MAX);
    let mut left = value.checked_shr(whole).unwrap_or(0);
    // The rest of a half-life in binary: each bit stands for one root of one half.
    let part = (age % half) * (1 << ROOTS.len()) / half;
    for (bit, root) in ROOTS.iter().enumerate() {
        if part & (1 << (ROOTS.len() - 1 - bit)) != 0 {
            left = (left * root) >> 32;
        }
    }
    left
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
