//! What flows through leases, counted where it flows.
//!
//! Purpose: how fast models answer, without a lock or a message on the path of the bytes. Owner: the task makes one for each model and
//! reads it for the picture; every lease holds a clone. Invariants: it only grows; adding is one relaxed addition.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Pieces of answers that a model has streamed, since the daemon's start.
#[derive(Clone, Debug, Default)]
pub struct Meter(Arc<AtomicU64>);

impl Meter {
    /// So many more went by.
    pub fn add(&self, count: u64) {
        // The number alone matters, not what else happened before it.
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    /// So many went by.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
