//! Who is told what the owner tells people.
//!
//! Purpose: the port by which counters and a timeline see each [`Notice`] that the journal gets, once and in the same order. Owner:
//! the composition root makes one; the owner's task calls it. Invariant: it is called in the owner's turn, so it may neither block nor
//! compute for long.

pub use super::effect::{Notice, StopReason};
pub use super::notice::{Line, Weight};
pub use super::ports::{Call, Calls};
use crate::types::Moment;

/// Sees what happens to models.
pub trait Witness: Send + Sync + 'static {
    /// This has just happened. `request`: the ID of the request that it happens for, as the journal has it.
    fn see(&self, at: Moment, notice: &Notice, request: Option<&str>);

    /// What there is was looked at, and compared with what is known; `ok`: there was an answer.
    fn looked(&self, at: Look, ok: bool) {
        let _ = (at, ok);
    }
}

/// What is looked at now and then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// podman's list of our containers.
    Containers,
    /// The memory of the devices.
    Devices,
}

/// Two, one after the other.
impl<A: Witness, B: Witness> Witness for (std::sync::Arc<A>, std::sync::Arc<B>) {
    fn see(&self, at: Moment, notice: &Notice, request: Option<&str>) {
        self.0.see(at, notice, request);
        self.1.see(at, notice, request);
    }

    fn looked(&self, at: Look, ok: bool) {
        self.0.looked(at, ok);
        self.1.looked(at, ok);
    }
}

/// Nobody.
#[derive(Clone, Copy, Debug, Default)]
pub struct Blind;

impl Witness for Blind {
    fn see(&self, _: Moment, _: &Notice, _: Option<&str>) {}
}
