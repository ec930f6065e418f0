//! What is counted with: numbers that only grow, without a lock.
//!
//! Purpose: counting on the thread of requests costs a few relaxed additions. Owner: whoever counts. Invariants: no reader makes a
//! writer wait, nor the other way round; a row stays until its owner drops it, so keys must be bounded.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;

/// Seconds of most things that take from milliseconds to minutes.
pub(super) const SECONDS: &[f64] = &[
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0,
];
/// Seconds of loads and of what podman does for them.
pub(super) const LONG_SECONDS: &[f64] = &[
    0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0,
    3600.0,
];

/// A number that grows.
#[derive(Debug, Default)]
pub(super) struct Count(AtomicU64);

impl Count {
    pub(super) fn add(&self, by: u64) {
        // The number alone matters, not what else happened before it.
        self.0.fetch_add(by, Ordering::Relaxed);
    }

    pub(super) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// How often values fell into which bucket.
#[derive(Debug)]
pub(super) struct Histogram {
    /// Upper bounds, in seconds; what is above all of them has one more.
    bounds: &'static [f64],
    counts: Box<[Count]>,
    nanos: Count,
}

/// A histogram as it was read.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Read {
    pub(super) sum: f64,
    pub(super) count: u64,
    /// (upper bound, values in this bucket alone), the last without a bound.
    pub(super) buckets: Vec<(f64, u64)>,
}

impl Histogram {
    pub(super) fn new(bounds: &'static [f64]) -> Self {
        let counts = (0..=bounds.len()).map(|_| Count::default()).collect();
        Self { bounds, counts, nanos: Count::default() }
    }

    pub(super) fn observe(&self, value: Duration) {
        let seconds = value.as_secs_f64();
        let at = self.bounds.iter().position(|bound| seconds <= *bound);
        self.add(at.unwrap_or(self.bounds.len()), 1, value);
    }

    /// So many values at once, in one bucket; `sum` is of all of them, or is given with another bucket.
    pub(super) fn add(&self, bucket: usize, count: u64, sum: Duration) {
        if let Some(counter) = self.counts.get(bucket) {
            counter.add(count);
        }
        self.nanos.add(u64::try_from(sum.as_nanos()).unwrap_or(u64::MAX));
    }

    pub(super) fn read(&self) -> Read {
        let bounds = self.bounds.iter().copied().chain([f64::INFINITY]);
        let buckets: Vec<_> = bounds.zip(self.counts.iter().map(Count::get)).collect();
        // From the buckets, so that the page is never at odds with itself.
        let count = buckets.iter().map(|(_, n)| n).sum();
        Read { sum: Duration::from_nanos(self.nanos.get()).as_secs_f64(), count, buckets }
    }
}

/// Rows that are made when they are first asked for.
#[derive(Debug)]
pub(super) struct Table<K, V>(ArcSwap<BTreeMap<K, Arc<V>>>);

impl<K, V> Default for Table<K, V> {
    fn default() -> Self {
        Self(ArcSwap::default())
    }
}

impl<K: Ord + Clone, V> Table<K, V> {
    /// Does something with the row of a key; makes it first if need be.
    pub(super) fn with<Q, T>(
        &self,
        key: &Q,
        own: impl Fn() -> K,
        new: impl Fn() -> V,
        act: impl FnOnce(&V) -> T,
    ) -> T
    where
        K: std::borrow::Borrow<Q>,
        Q: Ord + ?Sized,
    {
        if let Some(row) = self.0.load().get(key) {
            return act(row);
        }
        let row = Arc::new(new());
        // Of two who make it at once, both take the one that stayed.
        self.0.rcu(|rows| {
            let mut rows = BTreeMap::clone(rows);
            rows.entry(own()).or_insert_with(|| row.clone());
            rows
        });
        act(self.0.load().get(key).unwrap_or(&row))
    }

    /// Keeps some rows. Whoever counts in another one at this moment counts for nobody.
    pub(super) fn retain(&self, keep: impl Fn(&K, &V) -> bool) {
        // Mostly all of them stay.
        if self.0.load().iter().all(|(key, row)| keep(key, row)) {
            return;
        }
        self.0.rcu(|rows| {
            let mut rows = BTreeMap::clone(rows);
            rows.retain(|key, row| keep(key, row));
            rows
        });
    }

    /// All rows, in the order of the keys.
    pub(super) fn rows(&self) -> Arc<BTreeMap<K, Arc<V>>> {
        self.0.load_full()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_fall_into_their_buckets() {
        let histogram = Histogram::new(&[0.1, 1.0]);
        for ms in [0, 100, 101, 1000, 1001, 90_000] {
            histogram.observe(Duration::from_millis(ms));
        }
        let read = histogram.read();
        assert_eq!(read.buckets, [(0.1, 2), (1.0, 2), (f64::INFINITY, 2)]);
        assert_eq!(read.count, 6);
        assert!((read.sum - 92.202).abs() < 1e-9, "{}", read.sum);
    }

    #[test]
    fn rows_are_made_once_by_many() {
        let table: Table<String, Count> = Table::default();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for i in 0..400 {
                        let key = (i % 7).to_string();
                        table.with(key.as_str(), || key.clone(), Count::default, |c| c.add(1));
                    }
                });
            }
        });
        let rows = table.rows();
        assert_eq!(rows.len(), 7);
        assert_eq!(rows.values().map(|c| c.get()).sum::<u64>(), 1600);
    }
}
