//! A real host for tests and for the demo: Debian 13 with systemd as PID 1, user managers, journald, D-Bus and rootless
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
mod place;
mod wait;

pub use error::{Error, Result};
pub use exec::Run;
pub use host::{Builder, Host};
pub use place::{cache, checkout, prerequisites, script};
pub use wait::{Look, wait_for};

/// Whether host tests are to be skipped (`HOSTLER_HOST_TESTS=skip`). Says so, with the test's name, and adds a line to the
/// file that `HOSTLER_SKIPPED` names, which `make check` counts: a skipped test is never a silent pass.
pub fn skipped(test: &str) -> bool {
    if std::env::var_os("HOSTLER_HOST_TESTS").is_none_or(|value| value != "skip") {
        return false;
    }
    eprintln!("SKIPPED {test}: HOSTLER_HOST_TESTS=skip");
    if let Some(list) = std::env::var_os("HOSTLER_SKIPPED") {
        use std::io::Write as _;
        let written = std::fs::OpenOptions::new()
            .append(true)
            .create(true)
            .open(&list)
            .and_then(|mut file| writeln!(file, "{test}: HOSTLER_HOST_TESTS=skip"));
        if let Err(error) = written {
            eprintln!("count {test} as skipped in {}: {error}, ignoring", list.display());
        }
    }
    true
}
