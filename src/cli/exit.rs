//! How `hostler` ends: one enum of exit statuses, one type of failure.

use std::fmt;
use std::process::ExitCode;

/// The exit statuses. Documented in docs/cli.md and in the manual page; never renumbered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Exit {
    /// Done.
    Ok = 0,
    /// It was tried and failed; the message says why.
    Failed = 1,
    /// The command line is wrong.
    Usage = 2,
    /// There is no daemon on the bus, or no bus.
    NotRunning = 3,
    /// No such model, job or file.
    NotFound = 4,
    /// There is no room for the model, or there will never be.
    NoRoom = 5,
    /// Not allowed.
    Denied = 6,
    /// Not within the time that was given.
    Timeout = 7,
    /// doctor: a check does not hold.
    Unfit = 8,
    /// The configuration is wrong (`EX_CONFIG`).
    Config = 78,
    /// Interrupted, by Ctrl-C, SIGTERM, or SIGHUP.
    Interrupted = 130,
}

impl Exit {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::Ok,
        Self::Failed,
        Self::Usage,
        Self::NotRunning,
        Self::NotFound,
        Self::NoRoom,
        Self::Denied,
        Self::Timeout,
        Self::Unfit,
        Self::Config,
        Self::Interrupted,
    ];

    /// What it means, for the manual page.
    #[must_use]
    pub const fn meaning(self) -> &'static str {
        match self {
            Self::Ok => "done",
            Self::Failed => "it was tried and failed; the message says why",
            Self::Usage => "the command line is wrong",
            Self::NotRunning => "there is no daemon on the bus, or no bus",
            Self::NotFound => "no such model, job or file",
            Self::NoRoom => "there is no room for the model, or there will never be",
            Self::Denied => "not allowed",
            Self::Timeout => "not within the time that was given",
            Self::Unfit => "doctor: a check does not hold",
            Self::Config => "the configuration is wrong",
            Self::Interrupted => {
                "interrupted, by Ctrl-C, SIGTERM, or a terminal that went (SIGHUP)"
            }
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Why a command did not do what it was asked for. Printed once, by [`super::run`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The exit status.
    pub exit: Exit,
    /// What failed, on which thing, why. Empty: it was said already.
    pub message: String,
    /// What to do about it; empty where the message says it.
    pub fix: String,
}

/// What commands return.
pub type Outcome<T = ()> = Result<T, Failure>;

impl Failure {
    /// A failure whose message is whole.
    pub fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, message: message.into(), fix: String::new() }
    }

    /// The same with what to do.
    #[must_use]
    pub fn fix(mut self, fix: impl Into<String>) -> Self {
        self.fix = fix.into();
        self
    }

    /// An exit status and nothing more to say.
    #[must_use]
    pub const fn said(exit: Exit) -> Self {
        Self { exit, message: String::new(), fix: String::new() }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        if self.fix.is_empty() { Ok(()) } else { write!(f, "\n  fix: {}", self.fix) }
    }
}

/// A reader that went away (`hostler list | head`) is no failure; anything else is.
impl From<std::io::Error> for Failure {
    fn from(err: std::io::Error) -> Self {
        if err.kind() == std::io::ErrorKind::BrokenPipe {
            return Self::said(Exit::Ok);
        }
        Self::new(Exit::Failed, err.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_different_and_documented() {
        let documented = include_str!("../../docs/cli.md");
        let mut numbers: Vec<u8> = Exit::ALL.iter().map(|e| *e as u8).collect();
        for exit in Exit::ALL {
            let row = format!("| {} | {} |", exit as u8, exit.meaning());
            assert!(documented.contains(&row), "docs/cli.md has no row {row:?}");
        }
        numbers.dedup();
        assert_eq!(numbers.len(), Exit::ALL.len());
    }

    #[test]
    fn a_failure_shows_its_fix_below() {
        let failure = Failure::new(Exit::Failed, "x failed").fix("do y");
        assert_eq!(failure.to_string(), "x failed\n  fix: do y");
        let pipe = std::io::Error::from(std::io::ErrorKind::BrokenPipe);
        assert_eq!(Failure::from(pipe), Failure::said(Exit::Ok));
    }
}
