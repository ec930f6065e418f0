//! A real host for tests and for the demo: Debian with systemd as PID 1, user managers, journald, D-Bus and rootless
//! podman, booted by systemd-nspawn in about a second.
//!
//! Owner: each [`Host`] is owned by the value that [`Builder::boot`] returns. Dropping it, panicking, or killing the process with
//! any signal ends the host: a *keeper* process holds the read end of a pipe and removes everything when the pipe closes.
//! What even a killed keeper left behind is removed by the next boot.
//!
//! Invariants:
//! * many hosts run at once, also from several checkouts: each has its own cgroup, namespaces, network and scratch directory;
//! * the root that they share is a read-only overlay layer; `/var/lib/hostler` is on a real file system, for rootless
//!   podman cannot put its own overlay on top of another one;
//! * nothing is written into the checkout, and no traffic leaves: a host has a loopback interface and nothing else.

pub mod assets;
mod error;
mod exec;
mod host;
mod life;
mod package;
mod place;
mod wait;

pub use error::{Error, Result};
pub use exec::Run;
pub use host::{Builder, Host, Suite};
pub use package::{Format, package};
pub use place::{cache, checkout, prerequisites, script};
pub use wait::{Look, wait_for};

/// Whether host tests are to be skipped (`HOSTLER_HOST_TESTS=skip`), which is [noted](skip).
pub fn skipped(test: &str) -> bool {
    let wanted = std::env::var_os("HOSTLER_HOST_TESTS").is_none_or(|value| value != "skip");
    if !wanted {
        skip(test, "HOSTLER_HOST_TESTS=skip");
    }
    !wanted
}

/// Says that a test did not run, and why, and adds a line to the file that `HOSTLER_SKIPPED` names, which `make check` counts: a
/// skipped test is never a silent pass.
pub fn skip(test: &str, why: &str) {
    eprintln!("SKIPPED {test}: {why}");
    if let Some(list) = std::env::var_os("HOSTLER_SKIPPED") {
        use std::io::Write as _;
        let written = std::fs::OpenOptions::new()
            .append(true)
            .create(true)
            .open(&list)
            .and_then(|mut file| writeln!(file, "{test}: {why}"));
        if let Err(error) = written {
            eprintln!("count {test} as skipped in {}: {error}, ignoring", list.display());
        }
    }
}

/// What a script that fetches something for tests has printed; `None`: it cannot be had here (status 75), which is [noted](skip).
///
/// # Panics
/// If the script failed otherwise.
#[must_use]
pub fn fetched(test: &str, what: &str, output: &std::process::Output) -> Option<String> {
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    match output.status.code() {
        Some(0) => Some(said(&output.stdout)),
        Some(75) => {
            skip(test, &said(&output.stderr));
            None
        }
        _ => panic!("{what}: {}", said(&output.stderr)),
    }
}
