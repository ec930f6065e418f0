//! What can go wrong with a test host. Owner: whoever drives the host. `Debug` prints the same text as `Display`, for a test
//! that returns or unwraps an error shows it by `Debug`.

use std::path::PathBuf;
use std::process::ExitStatus;

/// A failure of the test host itself or of a command in it.
#[derive(thiserror::Error)]
pub enum Error {
    /// The machine lacks something that a host needs.
    #[error(
        "this machine cannot run a test host: {missing}. {fix} (HOSTLER_HOST_TESTS=skip skips host tests, and says so)"
    )]
    Prerequisite {
        /// What is missing.
        missing: String,
        /// What a person does about it.
        fix: &'static str,
    },
    /// A file or directory of the host could not be prepared.
    #[error("{doing} {path}: {source}")]
    Io {
        /// What was being done, as a verb phrase.
        doing: &'static str,
        /// On which path.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// A program of the machine could not be run at all.
    #[error("run {program}: {source}")]
    Spawn {
        /// The program.
        program: String,
        /// The system's answer.
        source: std::io::Error,
    },
    /// A command ended with another status than 0.
    #[error("{what} ended with {status}\n--- stdout\n{stdout}\n--- stderr\n{stderr}")]
    Command {
        /// The command, or what it was for.
        what: String,
        /// How it ended.
        status: ExitStatus,
        /// Its standard output.
        stdout: String,
        /// Its standard error.
        stderr: String,
    },
    /// Something that was waited for did not come in time.
    #[error("waited {seconds:.1} s for {what}; last seen: {seen}")]
    Timeout {
        /// What was waited for.
        what: String,
        /// For how long, in seconds.
        seconds: f64,
        /// The state at the end, for the person who reads this.
        seen: String,
    },
    /// The host died while it booted.
    #[error("the host did not boot ({why}); its console:\n{console}")]
    Boot {
        /// What was seen.
        why: String,
        /// The end of the console log.
        console: String,
    },
}

impl std::fmt::Debug for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}

/// The result of everything in this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Names what was being done, and on which path, in an I/O error.
pub(crate) trait IoContext<T> {
    fn doing(self, doing: &'static str, path: impl Into<PathBuf>) -> Result<T>;
}

impl<T> IoContext<T> for std::io::Result<T> {
    fn doing(self, doing: &'static str, path: impl Into<PathBuf>) -> Result<T> {
        self.map_err(|source| Error::Io { doing, path: path.into(), source })
    }
}
