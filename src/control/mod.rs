//! L3: control over D-Bus, `org.hostler1`.
//!
//! ```text
//!  /org/hostler1                    org.hostler1.Manager, org.freedesktop.DBus.ObjectManager
//!  /org/hostler1/model/<escaped>    org.hostler1.Model     one for each configured model
//!  /org/hostler1/gpu/<escaped>      org.hostler1.Gpu       one for each device
//!  /org/hostler1/job/<n>            org.hostler1.Job       one for each operation, also for a while after its end
//! ```
//! Purpose: what an operator asks and sees. Owner: the composition root runs [`bus::run`]; the context is shared by all
//! objects. Invariants: sees only `supervisor::handle` and `types`, and the [`Host`] that it is given; reads the published
//! `Status` and asks for outcomes, never one and then the other; every call that changes something is asked of [`polkit`] first and is
//! denied where nobody answers; long work is a job whose path is returned at once; without a bus the daemon serves as before.
//!
//! # Numbers
//! Memory is bytes, times are microseconds. What is unknown, or has no end, is 2^64 − 1, as in systemd's own interfaces; a
//! timestamp that never was is 0.

#![expect(
    clippy::disallowed_types,
    reason = "zbus makes interfaces, options and signals of HashMaps; none of them is walked in an order that is seen"
)]

use std::future::Future;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::supervisor::handle::Handle;
use crate::types::{Bytes, Check, ExternalStatus, InstanceId, Known, ModelStatus, Moment};

pub mod bus;
pub mod deed;
pub mod document;
pub mod error;
pub mod gpu;
pub mod job;
pub mod jobs;
pub mod manager;
mod mirror;
pub mod model;
pub mod options;
pub mod path;
pub mod polkit;
mod sync;

use error::{Code, Error};
use jobs::Jobs;
use polkit::Gate;

/// The well-known name.
pub const NAME: &str = "org.hostler1";

/// Bytes, counts or microseconds that are not known, or never end.
pub const UNKNOWN: u64 = u64::MAX;

/// A boxed future: the host is a trait object.
pub type HostFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What control asks of the composition root: what reaches beyond the supervisor.
pub trait Host: Send + Sync + 'static {
    /// Runs the checks that READY waits for, each once, all of them.
    fn validate(&self) -> HostFuture<'_, Vec<Check>>;

    /// Reads the configuration again and applies the difference. `Err`: what is wrong with
    /// it, with file and line; nothing was changed.
    fn reload(&self) -> HostFuture<'_, Result<Reloaded, String>>;

    /// Applies what was written while nobody had the daemon's name on the bus: who wrote it found nobody to tell.
    fn catch_up(&self) -> HostFuture<'_, ()>;

    /// The read end of a pipe into which a container's log is written: its last `lines` lines, or all, and with `follow` what
    /// comes until it ends.
    fn open_log(
        &self,
        instance: InstanceId,
        lines: Option<usize>,
        follow: bool,
    ) -> HostFuture<'_, Result<OwnedFd, String>>;

    /// What the front door knows of models that run elsewhere, which the supervisor does not own. In the order of their names.
    fn externals(&self) -> Vec<ExternalStatus>;
}

/// What a reload has left for a restart, by the keys of the configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reloaded {
    /// Has changed, and is read at the start only.
    pub restart_to_apply: Vec<String>,
    /// A credential, which is as the start was given it, whatever has become of its file.
    pub credentials_kept: Vec<String>,
}

/// What does not change while the daemon runs.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// Of the daemon.
    pub version: String,
    /// podman's API version, as it was at the start.
    pub podman: String,
    /// Where it accepts requests: `127.0.0.1:8711`, `/run/hostler/http.sock`.
    pub listeners: Vec<String>,
}

/// What every object has in common.
pub struct Context {
    handle: Handle,
    host: Arc<dyn Host>,
    facts: Facts,
    gate: Gate,
    jobs: Jobs,
    epoch: Epoch,
}

impl std::fmt::Debug for Context {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Context").field("facts", &self.facts).finish_non_exhaustive()
    }
}

/// What makes a moment a time of day. Moments stand still while the host is suspended, and the clock is set: what has happened lately is
/// right, what was before the last such step is off by it.
#[derive(Debug, Default)]
struct Epoch(AtomicU64);

impl Epoch {
    /// So much is no step: two looks at one moment have one time.
    const STEP: Duration = Duration::from_secs(1);

    fn at(&self, wall: Duration, now: Moment) -> u64 {
        let (new, known) = (us(wall.saturating_sub(now.0)), self.0.load(Ordering::Relaxed));
        if new.abs_diff(known) < us(Self::STEP) {
            return known;
        }
        self.0.store(new, Ordering::Relaxed);
        new
    }
}

impl Context {
    /// Control of a supervisor.
    #[must_use]
    pub fn new(handle: Handle, host: Arc<dyn Host>, facts: Facts, gate: Gate) -> Arc<Self> {
        Arc::new(Self { handle, host, facts, gate, jobs: Jobs::default(), epoch: Epoch::default() })
    }

    /// The wall clock at [`Moment::START`], in microseconds since 1970, as the clock is now.
    fn epoch_us(&self) -> u64 {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.epoch.at(wall, self.handle.now())
    }

    /// The wall clock at a moment, in microseconds since 1970.
    fn timestamp(&self, at: Option<Moment>) -> u64 {
        at.map_or(0, |at| self.epoch_us().saturating_add(us(at.0)))
    }

    /// The model of a name or an alias, as it is now.
    fn model(&self, name: &str) -> Result<ModelStatus, Error> {
        let status = self.handle.status();
        let is = |m: &&ModelStatus| {
            m.name.as_str() == name || m.aliases.iter().any(|a| a.as_str() == name)
        };
        status.models.iter().find(is).cloned().ok_or_else(|| self.none_of_ours(name))
    }

    /// Why there is nothing that could be done to a model of that name here.
    fn none_of_ours(&self, name: &str) -> Error {
        if let Some(external) = self.host.externals().iter().find(|e| e.answers_to(name)) {
            let ExternalStatus { name, url, .. } = external;
            let message = format!(
                "model {name} runs elsewhere, at {url}: its requests are passed on, and nothing of it can be loaded, stopped, pinned, \
                 measured or read here; do that where it runs, or see \"hostler show {name}\""
            );
            return Error::new(Code::Conflict, message);
        }
        let short: String = name.chars().take(200).collect();
        let message = format!(
            "model {short:?} is not configured on this host; \"hostler list\" shows those that are"
        );
        Error::new(Code::UnknownModel, message)
    }
}

/// Microseconds.
fn us(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// Bytes on the bus.
fn bytes(known: Known<Bytes>) -> u64 {
    known.get().map_or(UNKNOWN, |bytes| bytes.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_day_follow_the_clock_over_a_suspend() {
        let (epoch, second) = (Epoch::default(), 1_000_000);
        let at =
            |wall, now| epoch.at(Duration::from_micros(wall), Moment(Duration::from_micros(now)));
        let start = 1000 * second;
        assert_eq!(at(start + 5 * second, 5 * second), start);
        // Two clocks that are read one after the other.
        assert_eq!(at(start + 7 * second + 40, 7 * second), start);
        // Eight hours of sleep, which the daemon's clock does not count.
        let slept = 8 * 3600 * second;
        assert_eq!(at(start + 9 * second + slept, 9 * second), start + slept);
        assert_eq!(at(start + 10 * second + slept, 10 * second), start + slept);
        // A clock that was set back.
        assert_eq!(at(11 * second, 11 * second), 0);
    }
}
