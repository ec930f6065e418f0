//! Metrics.
//!
//! Purpose: count what happens, for Prometheus. Owner: the composition root. Invariant: labels are bounded by the configuration.

use crate::proxy::port::{Observer, Seen};
use crate::supervisor::witness::{Notice, Witness};
use crate::types::{Moment, Status};

/// All that is counted.
#[derive(Debug, Default)]
pub struct Metrics {}

impl Metrics {
    /// The page, in OpenMetrics' text format.
    #[must_use]
    pub fn render(&self, _status: &Status) -> String {
        String::new()
    }
}

impl Observer for Metrics {
    fn begun(&self) {}
    fn ended(&self, _: &Seen<'_>) {}
}

impl Witness for Metrics {
    fn see(&self, _: Moment, _: &Notice) {}
}
