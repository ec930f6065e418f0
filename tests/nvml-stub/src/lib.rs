//! A scripted `libnvidia-ml.so.1`: the real NVML client code runs over it on a machine without a GPU.
//!
//! Built twice from one source. The `cdylib` exports the C symbols that `nvml-wrapper` calls (module
//! `abi`). The `rlib` is the other side: tests write the script ([`Script`]), stand-in engines
//! hold memory ([`Claim`]).
//!
//! # The state directory
//!
//! Everything is in one directory, named by `NVSTUB` (default `/run/nvstub`), which may be
//! bind-mounted into containers. It holds:
//!
//! | file | written by | what |
//! |---|---|---|
//! | `devices.toml` | a person, a test, [`Script::save`] | driver, devices, foreign memory, faults |
//! | `claims` | engines, through [`Claim`] | one 128-byte slot per claim; see [`claims`] |
//! | `violations` | [`Claim`] | a line for every claim that did not fit |
//!
//! No answer is cached: each NVML call reads the files again, so a test changes the world by
//! renaming a new `devices.toml` into place.
//!
//! # Invariants
//!
//! * A claim lives exactly as long as its process (a POSIX record lock says so), whatever ends it.
//! * Bytes promised by claims never exceed the device: a claim that does not fit is refused and
//!   leaves a line in `violations`, as a real allocation fails.
//! * The reader never needs write access; with it, all readers agree on when a claim ended.

mod abi;
pub mod claims;
mod codes;
mod ledger;
mod lock;
mod presence;
mod record;
mod script;
mod size;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

pub use claims::{Claim, ClaimError};
pub use ledger::{Usage, usage};
pub use script::{
    Code, Gpu, GpuFault, Kind, MIG_SLOTS, Process, ProcessMemory, Script, ScriptError,
};
pub use size::{Size, SizeError};

/// The environment variable that names the state directory.
pub const ENV: &str = "NVSTUB";

/// The state directory used when [`ENV`] is unset.
pub const DEFAULT_DIR: &str = "/run/nvstub";

/// A state directory: the place where script, claims and violations lie.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct StateDir(PathBuf);

impl StateDir {
    /// The directory at `path`; nothing is created or checked.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// The directory that this process's environment names.
    #[must_use]
    pub fn from_env() -> Self {
        let named = std::env::var_os(ENV).filter(|value| !value.is_empty());
        Self::new(named.as_deref().unwrap_or(OsStr::new(DEFAULT_DIR)))
    }

    /// The directory itself.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The script: `devices.toml`.
    #[must_use]
    pub fn devices(&self) -> PathBuf {
        self.0.join("devices.toml")
    }

    /// The claims table.
    #[must_use]
    pub fn claims(&self) -> PathBuf {
        self.0.join("claims")
    }

    /// The record of claims that did not fit.
    #[must_use]
    pub fn violations(&self) -> PathBuf {
        self.0.join("violations")
    }

    /// The claims that did not fit so far, one line each, oldest first; empty when all fitted.
    ///
    /// A line reads `t_ms=… gpu=… wanted=… free=… total=… pid=…` (bytes; milliseconds of the
    /// monotonic clock; the PID as the claimant sees itself).
    ///
    /// # Errors
    /// When the file exists but cannot be read.
    pub fn read_violations(&self) -> std::io::Result<Vec<String>> {
        match std::fs::read_to_string(self.violations()) {
            Ok(text) => Ok(text.lines().map(str::to_owned).collect()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }
}

/// The built `libnvidia_ml.so`, as Cargo leaves it beside a test or program of this workspace.
///
/// For a client that loads by soname, copy or link it to `libnvidia-ml.so.1`. `None` when it was not
/// built: `cargo build -p nvml-stub` does that.
#[must_use]
pub fn built_library() -> Option<PathBuf> {
    let program = std::env::current_exe().ok()?;
    // Tests lie in `deps/`, programs one above it.
    program
        .ancestors()
        .skip(1)
        .take(2)
        .map(|dir| dir.join("libnvidia_ml.so"))
        .find(|so| so.exists())
}
