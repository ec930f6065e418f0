//! What has happened lately.
//!
//! Purpose: the last notices in order, for those who look, and each new one for those who listen. Owner: the composition root. Invariants:
//! bounded; who listens too slowly is told that something was left out.

use crate::supervisor::witness::{Notice, Witness};
use crate::types::Moment;

/// The last notices.
#[derive(Debug, Default)]
pub struct Timeline {}

impl Witness for Timeline {
    fn see(&self, _: Moment, _: &Notice) {}
}
