//! Waiting for an event with a deadline. Owner: tests. Invariant: nothing here sleeps for luck; each poll asks for the
//! awaited state itself, and a deadline that passes says what was seen last.

use crate::{Error, Result};
use std::time::{Duration, Instant};

/// How far apart two looks are, at most.
const POLL_MAX: Duration = Duration::from_millis(100);

/// What one look found.
pub enum Look<T> {
    /// It has happened.
    Done(T),
    /// Not yet; the text is shown if the deadline passes.
    NotYet(String),
}

/// Looks until the event has happened, or fails after `limit`, naming `what` and the last sight of it.
pub fn wait_for<T>(
    what: &str,
    limit: Duration,
    mut look: impl FnMut() -> Result<Look<T>>,
) -> Result<T> {
    let started = Instant::now();
    let mut pause = Duration::from_millis(5);
    loop {
        let seen = match look()? {
            Look::Done(value) => return Ok(value),
            Look::NotYet(seen) => seen,
        };
        let elapsed = started.elapsed();
        if elapsed >= limit {
            return Err(Error::Timeout {
                what: what.to_owned(),
                seconds: elapsed.as_secs_f64(),
                seen,
            });
        }
        std::thread::sleep(pause.min(limit.saturating_sub(elapsed)));
        pause = (pause * 2).min(POLL_MAX);
    }
}
