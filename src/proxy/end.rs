//! The end of all connections.
//!
//! Purpose: what the server says to its connections when it drains. Owner: the server, which says it; connections look for it at each
//! of their turns. Invariant: what was said stays said.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio_util::sync::CancellationToken;

/// A word to all connections, which each of them can look for at the price of one load.
#[derive(Clone, Debug, Default)]
pub(super) struct Signal {
    token: CancellationToken,
    given: Arc<AtomicBool>,
}

impl Signal {
    /// Says it, once and for all.
    pub fn give(&self) {
        // First, so that whoever is woken sees it.
        self.given.store(true, Ordering::Release);
        self.token.cancel();
    }

    /// Whether it was said.
    pub fn is_given(&self) -> bool {
        self.given.load(Ordering::Acquire)
    }

    /// The same as a token, for who waits for nothing else.
    pub fn token(&self) -> CancellationToken {
        self.token.clone()
    }
}

/// When connections have to end.
#[derive(Clone, Debug, Default)]
pub(super) struct End {
    /// Finish the request in hand, then end.
    pub drain: Signal,
    /// The time for that is over.
    pub over: Signal,
}
