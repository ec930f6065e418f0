//! The owner is told that there is something to look at.
//!
//! Purpose: what is counted beside the owner, leases that need no asking and waits for turns, gets into its picture with one message for
//! all that happens until it looks. Owner: the task makes one; whoever counts shares it. Invariant: between two looks there is at
//! most one message, and none is missing: what is counted behind a look is told anew.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::mpsc;

use super::handle::Ask;
use crate::types::InstanceId;

/// The longest that readers of the picture, and clocks of idleness, are behind what passes.
pub(super) const STIR_MAX: Duration = Duration::from_millis(50);

/// What tells the owner.
#[derive(Debug)]
pub(super) struct Stir {
    asks: mpsc::UnboundedSender<Ask>,
    /// The owner knows that something passes.
    stirred: AtomicBool,
}

impl Stir {
    pub(super) fn new(asks: mpsc::UnboundedSender<Ask>) -> Arc<Self> {
        Arc::new(Self { asks, stirred: AtomicBool::new(false) })
    }

    /// Something is to be looked at soon.
    pub(super) fn stir(&self) {
        if !self.stirred.load(Ordering::Acquire) && !self.stirred.swap(true, Ordering::AcqRel) {
            let _ = self.asks.send(Ask::Stir);
        }
    }

    /// A lease has come back whose end may be waited for.
    pub(super) fn release(&self, instance: &InstanceId) {
        // A supervisor that has ended has nothing left to count.
        let _ = self.asks.send(Ask::Release { instance: instance.clone() });
    }

    /// The owner looks: what happens from now on is news again.
    pub(super) fn looks(&self) {
        self.stirred.store(false, Ordering::Release);
    }
}
