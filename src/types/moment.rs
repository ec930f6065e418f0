//! Monotonic time as the pure layers see it.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A point on the daemon's monotonic clock: the time since the daemon started.
///
/// The pure layers never read a clock; whoever calls them passes one of these. It never goes backwards and does not
/// follow wall-clock jumps, so a clock change can evict nothing.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    schemars::JsonSchema,
)]
#[serde(transparent)]
pub struct Moment(pub Duration);

impl Moment {
    /// The daemon's start.
    pub const START: Self = Self(Duration::ZERO);

    /// A moment `secs` seconds after the start; for tests and simulations.
    #[must_use]
    pub const fn from_secs(secs: u64) -> Self {
        Self(Duration::from_secs(secs))
    }

    /// How long after `earlier` this is; zero if it is not after it.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl std::ops::Add<Duration> for Moment {
    type Output = Self;
    fn add(self, d: Duration) -> Self {
        Self(self.0.saturating_add(d))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn never_negative_never_overflows() {
        let a = Moment::from_secs(3);
        let b = a + Duration::from_secs(2);
        assert_eq!(b.since(a), Duration::from_secs(2));
        assert_eq!(a.since(b), Duration::ZERO);
        assert_eq!(Moment(Duration::MAX) + Duration::from_secs(1), Moment(Duration::MAX));
    }
}
