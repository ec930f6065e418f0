//! How many bytes of requests' bodies may be held at once.
//!
//! Purpose: `max_body` bounds one request; this bounds them all together, so that many large ones cannot take the memory that
//! models need. Owner: `service` holds one [`Budget`]; a body holds its [`Share`] as long as it is in memory. Invariants: never more
//! is given out than there is; nobody waits, because bodies that wait for each other would wait for ever.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hyper::StatusCode;

use super::error::ApiError;

/// What is held now.
#[derive(Debug, Default)]
pub(super) struct Budget {
    held: AtomicU64,
}

/// One body's part; given back when it is dropped.
#[derive(Debug)]
pub(super) struct Share {
    budget: Arc<Budget>,
    max: u64,
    held: u64,
}

impl Budget {
    /// A share of nothing yet, in a budget of `max` bytes.
    pub fn share(self: &Arc<Self>, max: u64) -> Share {
        Share { budget: self.clone(), max, held: 0 }
    }
}

impl Share {
    /// Takes so many bytes more.
    ///
    /// # Errors
    /// 503 where they are not there now.
    pub fn grow(&mut self, bytes: usize) -> Result<(), ApiError> {
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        let fits = |held: u64| held.checked_add(bytes).filter(|sum| *sum <= self.max);
        let order = Ordering::Relaxed;
        if self.budget.held.fetch_update(order, order, fits).is_err() {
            let message =
                "too many bytes of requests are held at once (max_buffered); try again in a moment";
            let error = ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "bodies_full", message);
            return Err(error.retry_after(Duration::from_secs(1)).closing());
        }
        self.held += bytes;
        Ok(())
    }

    /// Gives all back.
    pub fn release(&mut self) {
        let held = std::mem::take(&mut self.held);
        self.budget.held.fetch_sub(held, Ordering::Relaxed);
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.release();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_out_comes_back() {
        let budget = Arc::new(Budget::default());
        let mut a = budget.share(10);
        let mut b = budget.share(10);
        a.grow(6).unwrap();
        b.grow(4).unwrap();
        let full = b.grow(1).unwrap_err();
        assert_eq!((full.status.as_u16(), full.retry_after_secs()), (503, Some(1)));
        assert!(b.grow(usize::MAX).is_err());
        a.release();
        b.grow(6).unwrap();
        drop(a);
        drop(b);
        assert_eq!(budget.held.load(Ordering::Relaxed), 0);
    }
}
