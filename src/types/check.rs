//! What a check of the host came to: what READY waits for, `Validate` reports and `hostler doctor` shows.

use std::fmt;

/// One check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// What was looked at, in a few words.
    pub name: String,
    /// What that came to.
    pub verdict: CheckVerdict,
    /// What was measured or found.
    pub found: String,
    /// What mends it; empty where nothing has to be mended.
    pub fix: String,
}

/// What a [`Check`] came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum CheckVerdict {
    /// As it must be.
    Pass,
    /// It works, and should be looked at.
    Warn,
    /// The daemon would not start with it.
    Fail,
}

impl CheckVerdict {
    /// The word for it on the bus.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pass => "PASS",
            Self::Warn => "WARN",
            Self::Fail => "FAIL",
        }
    }
}

impl fmt::Display for CheckVerdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}
