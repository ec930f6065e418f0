//! How long a load may take.
//!
//! ```text
//!   began ─────────────── expected ──▶ it has failed, unless it gets on: then [`PATIENCE`] after its last sign of that
//!     └───────────────────────────────────────────────── limit (load_timeout) ──▶ it has failed in any case
//! ```
//! What is expected is three times the slowest of its last loads; before the first, what the size of its weights takes from a
//! slow disk; without either the limit. Signs are lines of its log, and memory that it takes. Pure.

use std::collections::VecDeque;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::types::{Bytes, Moment};

/// How long a load that has begun to get on may show nothing: compiling kernels takes minutes.
pub const PATIENCE: Duration = Duration::from_secs(180);
/// Never less is expected: a machine may be busy with other things.
const EXPECTED_MIN: Duration = Duration::from_secs(60);
/// Loads that are remembered. Of so few the slowest is their 99th percentile.
const LOADS_MAX: usize = 32;
/// The slowest of them, times this.
const FACTOR: u32 = 3;
/// What a slow disk reads in a second.
const DISK: u64 = 50 << 20;
/// What an engine needs besides, before it was ever seen to load: it imports, compiles, warms up.
const BESIDES: Duration = Duration::from_secs(300);

/// How long a model's loads took, the oldest first; in milliseconds on disk.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Loads(VecDeque<u64>);

impl Loads {
    /// One more.
    pub fn record(&mut self, took: Duration) {
        if self.0.len() == LOADS_MAX {
            self.0.pop_front();
        }
        self.0.push_back(u64::try_from(took.as_millis()).unwrap_or(u64::MAX));
    }

    /// Whether none was seen.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The last one.
    #[must_use]
    pub fn last(&self) -> Option<Duration> {
        self.0.back().map(|ms| Duration::from_millis(*ms))
    }

    /// How long the next one is expected to take at most; `None`: nothing is known. `weights`: their size.
    #[must_use]
    pub fn expected(&self, weights: Option<Bytes>) -> Option<Duration> {
        let slowest = self.0.iter().max().map(|ms| Duration::from_millis(*ms));
        let seen = slowest.map(|slowest| slowest.saturating_mul(FACTOR));
        let guess = weights.map(|bytes| BESIDES + Duration::from_secs(bytes.0 / DISK));
        seen.or(guess).map(|time| time.max(EXPECTED_MIN))
    }
}

/// One load under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    began: Moment,
    expected: Duration,
    limit: Duration,
    got_on: Option<Moment>,
}

impl Pace {
    /// A load that begins now; `limit` whatever happens.
    #[must_use]
    pub fn new(began: Moment, expected: Option<Duration>, limit: Duration) -> Self {
        Self { began, expected: expected.unwrap_or(limit).min(limit), limit, got_on: None }
    }

    /// The same from another moment on: what came before was no part of it.
    #[must_use]
    pub fn from(self, began: Moment) -> Self {
        Self { began, got_on: None, ..self }
    }

    /// It has shown that it gets on.
    pub fn gets_on(&mut self, now: Moment) {
        self.got_on = Some(now);
    }

    /// When it has failed, as things are.
    #[must_use]
    pub fn deadline(&self) -> Moment {
        let by_signs = self.got_on.map_or(Moment::START, |at| at + PATIENCE);
        (self.began + self.expected).max(by_signs).min(self.began + self.limit)
    }

    /// Why it has failed by then, for people.
    #[must_use]
    pub fn why(&self) -> String {
        if self.deadline() >= self.began + self.limit {
            return format!(
                "within its load_timeout of {} s; raise load_timeout if the engine is only slow",
                self.limit.as_secs()
            );
        }
        let expected = self.expected.as_secs();
        match self.got_on {
            Some(_) => format!(
                "and has shown nothing for {} s, neither a line nor memory, beyond the {expected} s that were expected",
                PATIENCE.as_secs()
            ),
            None => format!(
                "within the {expected} s that its earlier loads or its weights let expect, and showed no progress, neither a line nor memory"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn what_is_expected_is_learned() {
        let mut loads = Loads::default();
        assert_eq!(loads.expected(None), None);
        assert_eq!(loads.expected(Some(Bytes::gib(100))), Some(s(300 + 2048)));
        loads.record(s(2));
        assert_eq!(loads.expected(Some(Bytes::gib(100))), Some(s(60)), "seen beats guessed");
        loads.record(s(100));
        for _ in 0..31 {
            loads.record(s(40));
            assert_eq!(loads.expected(None), Some(s(300)));
        }
        loads.record(s(40));
        assert_eq!(loads.expected(None), Some(s(120)), "what was long ago is forgotten");
    }

    #[test]
    fn progress_extends_and_its_absence_ends() {
        let at = Moment::from_secs;
        let mut pace = Pace::new(at(10), Some(s(60)), s(600));
        assert_eq!(pace.deadline(), at(70), "nothing is seen of it");
        assert!(pace.why().contains("no progress"), "{}", pace.why());
        pace.gets_on(at(20));
        assert_eq!(pace.deadline(), at(200));
        pace.gets_on(at(400));
        assert_eq!(pace.deadline(), at(580));
        assert!(pace.why().contains("nothing for 180 s"), "{}", pace.why());
        pace.gets_on(at(500));
        assert_eq!(pace.deadline(), at(610), "never beyond the limit");
        assert!(pace.why().contains("load_timeout of 600 s"), "{}", pace.why());
        assert_eq!(Pace::new(at(10), None, s(600)).deadline(), at(610), "nothing is known");
        assert_eq!(Pace::new(at(10), Some(s(60)), s(5)).deadline(), at(15), "bounded");
    }
}
