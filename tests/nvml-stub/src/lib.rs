//! A scripted `libnvidia-ml.so.1`.
//!
//! Built as a cdylib it stands where NVIDIA's library would, so that the real `nvml-wrapper` runs in every test. What it
//! answers is in a directory (environment `NVSTUB`, else `/run/nvstub`) that is read anew at every call:
//!
//! * `script.json`, a [`Script`]: devices, processes, faults. A person may edit it.
//! * `claims`: memory that live processes hold, a [`Claim`] each, in slots of 128 bytes. A claim counts while its process holds a
//!   POSIX lock on its slot; the kernel names the holder *in the reader's own PID namespace*, and a killed process's claim ends by
//!   itself, as real device memory does. (Not an OFD lock: those have no holder.)
//!
//! As an rlib it is the other half: [`Script::write`] for tests, [`Claim`] for stand-in engines.
//!
//! Invariant: no state is kept between calls but one: memory of a claim that has ended stays in use for the device's
//! `release_lag_ms` from the moment at which this process noticed its end.

mod claims;
mod ffi;
mod script;

pub use claims::{Claim, Held};
pub use script::{Device, Process, Script};

use std::path::PathBuf;

/// The directory of the script and the claims.
#[must_use]
pub fn directory() -> PathBuf {
    std::env::var_os("NVSTUB").map_or_else(|| PathBuf::from("/run/nvstub"), PathBuf::from)
}
