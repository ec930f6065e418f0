//! By what samples are judged.
//!
//! Purpose: the sampler's numbers, each with why it is that. Owner: nobody; data.

use std::time::Duration;

use crate::types::Bytes;

/// When samples agree, and when to stop asking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SampleRule {
    /// Fewer samples are never steady: with five, two may be wrong and the median still right.
    pub samples_min: usize,
    /// So many make a confidence high, if they hardly vary; and more are not kept. With one reading every 2 s that is
    /// half a minute.
    pub samples_good: usize,
    /// Samples that are nearer to the last one show the same state of the driver again, and are not counted.
    pub spacing_min: Duration,
    /// Only samples of so long ago are compared: longer than [`SampleRule::samples_good`] readings, short enough that a
    /// slow growth over minutes is not averaged away.
    pub window: Duration,
    /// Samples agree when their median absolute deviation is at most one part in so many of their median …
    pub steady_parts: u32,
    /// … or at most this: drivers give out memory in pieces of 2 MiB, and engines allocate in tens of them.
    pub steady_floor: Bytes,
    /// Memory of others may grow by so much unnoticed: desktops and drivers breathe. The same as the ledger's slack.
    pub foreign_slack: Bytes,
    /// After more disturbances than so many, before any steady state, the device is not quiet enough to measure on.
    pub voids_max: u32,
    /// From ready, or from the first memory of one that held nothing before. An engine that has not settled by then grows with
    /// its work, and has no footprint but its peak.
    pub patience: Duration,
    /// An engine that is ready has its weights where it computes. One that holds nothing on its devices for so long after
    /// that, in readings that follow each other, does not use them: far more than a driver is late with its lists.
    pub nothing: Duration,
}

impl Default for SampleRule {
    fn default() -> Self {
        Self {
            samples_min: 5,
            samples_good: 15,
            spacing_min: Duration::from_millis(500),
            window: Duration::from_secs(60),
            steady_parts: 100,
            steady_floor: Bytes::mib(16),
            foreign_slack: Bytes::mib(64),
            voids_max: 5,
            patience: Duration::from_secs(600),
            nothing: Duration::from_secs(60),
        }
    }
}
