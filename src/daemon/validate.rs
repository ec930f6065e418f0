//! What must be true before READY, in the order in which it is proven.
//!
//! Purpose: nothing is promised to systemd or a client that was not just tried. Owner: the composition root runs
//! [`Checks::run`] once. Invariants: each cause has its own message and exit status; what may heal by itself is tried
//! again with growing delays until `[startup] timeout`; nothing is ever skipped or replaced by a guess.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::exit::{Exit, StartFailure};
use crate::adapters::gpu::cdi;
use crate::adapters::systemd;
use crate::config::{Config, GpuBackend};
use crate::supervisor::ports::{Found, GpuError};
use crate::supervisor::task::Ports;
use crate::types::{Fault, GpuId, GpuSnapshot, Transport};

/// The first delay between two attempts of one check.
const DELAY_MIN: Duration = Duration::from_millis(250);
/// The longest.
const DELAY_MAX: Duration = Duration::from_secs(5);
/// How much longer systemd is asked to wait at each attempt; more than any single check can take.
const EXTENSION: Duration = Duration::from_secs(90);
/// The oldest podman API that Hostler speaks to.
const PODMAN_MIN: (u32, u32) = (4, 3);

/// What the checks found out on the way.
#[derive(Debug)]
pub struct Proven {
    /// The devices.
    pub devices: GpuSnapshot,
    /// Our containers that an earlier daemon left.
    pub found: Vec<Found>,
    /// podman's API version.
    pub podman: String,
}

/// The checks.
pub struct Checks<'a> {
    /// What was asked for.
    pub config: &'a Config,
    /// What to ask.
    pub ports: &'a Ports,
    /// Where CDI specifications are.
    pub cdi_dirs: &'a [PathBuf],
}

impl Checks<'_> {
    /// Runs them all.
    ///
    /// # Errors
    /// The first check that does not hold, or does not come to hold in time.
    pub async fn run(&self) -> Result<Proven, StartFailure> {
        let until = Instant::now() + self.config.startup.timeout;
        let devices = retry(until, "device memory", || self.devices()).await?;
        if self.config.gpu.backend == GpuBackend::Nvml {
            let ids: Vec<GpuId> = devices.devices.iter().map(|d| d.id.clone()).collect();
            retry(until, "CDI devices", || self.cdi(&ids)).await?;
        }
        let podman = retry(until, "podman", || self.podman()).await?;
        retry(until, "the path to the engines", || self.network()).await?;
        self.images().await?;
        let found = retry(until, "containers of an earlier daemon", || self.found()).await?;
        Ok(Proven { devices, found, podman })
    }

    async fn devices(&self) -> Result<GpuSnapshot, StartFailure> {
        let snapshot = self.ports.gpus.snapshot().await.map_err(gpu_failure)?;
        if let Some((id, why)) = snapshot.lost.first() {
            return Err(gpu_failure(GpuError::Lost(id.clone(), why.clone())));
        }
        if snapshot.devices.is_empty() {
            return Err(gpu_failure(GpuError::NoDevices));
        }
        if let Some(empty) = snapshot.devices.iter().find(|d| d.total.0 == 0) {
            return Err(gpu_failure(GpuError::ZeroMemory(empty.id.clone())));
        }
        let known = |id: &GpuId| snapshot.devices.iter().any(|d| d.id == *id);
        for spec in self.config.models.values() {
            if let Some(wanted) = spec.gpus.iter().find(|id| !known(id)) {
                let present: Vec<String> =
                    snapshot.devices.iter().map(|d| d.id.to_string()).collect();
                let message = format!(
                    "model {} is bound to the device {wanted}, which does not exist; there are: {}",
                    spec.name,
                    present.join(", ")
                );
                return Err(StartFailure::new(Exit::GpuNotFound, message));
            }
        }
        Ok(snapshot)
    }

    async fn cdi(&self, ids: &[GpuId]) -> Result<(), StartFailure> {
        cdi::check(self.cdi_dirs, ids)
            .map(drop)
            .map_err(|err| StartFailure::new(Exit::Cdi, err.to_string()))
    }

    async fn podman(&self) -> Result<String, StartFailure> {
        let info = self.ports.containers.info().await;
        let info = info.map_err(|fault| StartFailure::new(Exit::Podman, fault.message))?;
        if !info.rootless {
            let message = format!(
                "the podman API at {} runs as root; Hostler drives rootless podman only: point [podman] socket at the service user's own API",
                self.config.podman.socket.display()
            );
            return Err(StartFailure::new(Exit::PodmanUnfit, message).lasting());
        }
        if version(&info.version).is_none_or(|v| v < PODMAN_MIN) {
            let message = format!(
                "podman {} is too old; Hostler needs {}.{} or newer",
                info.version, PODMAN_MIN.0, PODMAN_MIN.1
            );
            return Err(StartFailure::new(Exit::PodmanUnfit, message).lasting());
        }
        Ok(info.version)
    }

    async fn network(&self) -> Result<(), StartFailure> {
        let mut transports: Vec<Transport> =
            self.config.models.values().map(|m| m.transport).collect();
        transports.sort_unstable();
        transports.dedup();
        if transports.is_empty() {
            transports.push(Transport::Unix);
        }
        for transport in transports {
            self.ports
                .containers
                .prove_network(transport)
                .await
                .map_err(|fault| StartFailure::new(Exit::Network, fault.message))?;
        }
        Ok(())
    }

    /// A pinned model whose image cannot come by itself would fail at once and for ever.
    async fn images(&self) -> Result<(), StartFailure> {
        for spec in self.config.models.values().filter(|m| m.pin) {
            if self.config.podman.pull && !spec.image.is_local() {
                continue;
            }
            let found = self.ports.containers.image_id(spec.image.clone()).await;
            let found = found.map_err(|fault| StartFailure::new(Exit::Podman, fault.message))?;
            if found.is_none() {
                let message = format!(
                    "the image {} of the pinned model {} is not in the service user's storage; build, load or pull it there",
                    spec.image, spec.name
                );
                return Err(StartFailure::new(Exit::Image, message));
            }
        }
        Ok(())
    }

    async fn found(&self) -> Result<Vec<Found>, StartFailure> {
        let list = self.ports.containers.list().await;
        list.map_err(|fault: Fault| StartFailure::new(Exit::Podman, fault.message))
    }
}

/// Tries a check until it holds, its failure is final, or the time is over.
async fn retry<T, F: Future<Output = Result<T, StartFailure>>>(
    until: Instant,
    what: &str,
    check: impl Fn() -> F,
) -> Result<T, StartFailure> {
    let mut delay = DELAY_MIN;
    let mut attempt = 1_u32;
    loop {
        systemd::extend_timeout(EXTENSION);
        systemd::status(&format!("Checking {what}"));
        let failure = match check().await {
            Ok(value) => return Ok(value),
            Err(failure) => failure,
        };
        if failure.lasting || Instant::now() + delay > until {
            return Err(failure);
        }
        tracing::warn!(code = %failure.exit, attempt, "{what}: attempt {attempt} failed, retrying: {failure}");
        systemd::status(&format!("Waiting for {what} (attempt {attempt} failed: {failure})"));
        tokio::time::sleep(delay).await;
        delay = (delay * 2).min(DELAY_MAX);
        attempt += 1;
    }
}

/// Faults that cannot go away within a start are not waited out: clients learn the cause at once, and systemd starts the
/// daemon anew after a while.
fn gpu_failure(err: GpuError) -> StartFailure {
    let lasting = match err {
        GpuError::LibraryMissing(_)
        | GpuError::VersionMismatch(_)
        | GpuError::MemoryUnsupported(_)
        | GpuError::HostMemory(_) => true,
        GpuError::DriverNotLoaded(_)
        | GpuError::ZeroMemory(_)
        | GpuError::NotFound { .. }
        | GpuError::NoDevices
        | GpuError::Lost(..)
        | GpuError::Timeout(_)
        | GpuError::Other(_) => false,
    };
    let exit = match err {
        GpuError::LibraryMissing(_) => Exit::NvmlMissing,
        GpuError::DriverNotLoaded(_) => Exit::DriverNotLoaded,
        GpuError::VersionMismatch(_) => Exit::DriverMismatch,
        GpuError::ZeroMemory(_) | GpuError::MemoryUnsupported(_) => Exit::GpuMemory,
        GpuError::NotFound { .. } | GpuError::NoDevices => Exit::GpuNotFound,
        GpuError::Lost(..) | GpuError::Timeout(_) | GpuError::Other(_) => Exit::GpuFailed,
        GpuError::HostMemory(_) => Exit::HostMemory,
    };
    let failure = StartFailure::new(exit, err.to_string());
    if lasting { failure.lasting() } else { failure }
}

/// `"5.4.2"` → `(5, 4)`.
fn version(text: &str) -> Option<(u32, u32)> {
    let mut parts = text.split(['.', '-']);
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// Where podman looks for CDI specifications.
#[must_use]
pub fn cdi_dirs() -> Vec<PathBuf> {
    vec![PathBuf::from("/etc/cdi"), PathBuf::from("/var/run/cdi")]
}

/// One status line for `systemctl status`.
#[must_use]
pub fn summary(status: &Arc<crate::types::Status>) -> String {
    use crate::types::Phase;
    let count = |phase| status.models.iter().filter(|m| m.phase == phase).count();
    let ready: Vec<&str> =
        status.models.iter().filter(|m| m.phase == Phase::Ready).map(|m| m.name.as_str()).collect();
    let mut text = format!("{} of {} models ready", ready.len(), status.models.len());
    if !ready.is_empty() {
        text.push_str(&format!(" ({})", ready.join(", ")));
    }
    let loading = count(Phase::Pulling) + count(Phase::Starting) + count(Phase::Loading);
    if loading > 0 {
        text.push_str(&format!(", {loading} loading"));
    }
    let (busy, queued) =
        status.models.iter().fold((0, 0), |(b, q), m| (b + m.in_flight, q + m.queued));
    text.push_str(&format!("; requests: {busy} running, {queued} waiting"));
    for gpu in &status.gpus {
        match (gpu.free.get(), gpu.total.get()) {
            (Some(free), Some(total)) => {
                text.push_str(&format!("; {}: {free} of {total} free", gpu.id));
            }
            _ => text.push_str(&format!("; {}: memory unknown", gpu.id)),
        }
    }
    for problem in &status.problems {
        text.push_str(&format!("; PROBLEM {}: {}", problem.code, problem.message));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn podman_versions() {
        assert_eq!(version("5.4.2"), Some((5, 4)));
        assert_eq!(version("6.0-dev"), Some((6, 0)));
        assert_eq!(version("four"), None);
        assert!(version("4.3.1").is_some_and(|v| v >= PODMAN_MIN));
        assert!(version("4.2.0").is_some_and(|v| v < PODMAN_MIN));
    }

    #[test]
    fn every_gpu_error_has_its_exit_status() {
        let id = GpuId::new("GPU-a");
        let cases = [
            (GpuError::LibraryMissing("x".into()), 20),
            (GpuError::DriverNotLoaded("x".into()), 21),
            (GpuError::VersionMismatch("x".into()), 22),
            (GpuError::ZeroMemory(id.clone()), 23),
            (GpuError::MemoryUnsupported(id.clone()), 23),
            (GpuError::NotFound { wanted: id.clone(), present: vec![] }, 24),
            (GpuError::NoDevices, 24),
            (GpuError::Lost(id, "x".into()), 25),
            (GpuError::Timeout(Duration::from_secs(3)), 25),
            (GpuError::Other("x".into()), 25),
            (GpuError::HostMemory("x".into()), 26),
        ];
        for (err, status) in cases {
            assert_eq!(gpu_failure(err.clone()).exit as u8, status, "{err}");
        }
    }
}
