//! The checks that READY waits for.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::exit::{Exit, StartFailure};
use super::{Check, Checks, Finding, Learned, Outcome, images};
use crate::adapters::gpu::cdi;
use crate::config::GpuBackend;
use crate::plan::equals;
use crate::supervisor::ports::GpuError;
use crate::types::{
    Fault, GpuId, GpuReading, GpuSnapshot, ModelName, ModelSpec, Silence, Transport,
};

/// The oldest podman API that Hostler speaks to.
const PODMAN_MIN: (u32, u32) = (4, 3);
/// The fix where a model wants more equal devices than there are.
const FEWER: &str =
    "lower gpu_count; devices of one model are of one product and size, and no slices of MIG";

impl Checks<'_> {
    pub(super) async fn devices(&self, learned: &mut Learned) -> Result<Finding, StartFailure> {
        let snapshot = self.gpus.snapshot().await.map_err(gpu_failure)?;
        let finding = judge(&snapshot, &self.config.models)?;
        learned.devices = Some(snapshot);
        Ok(finding)
    }

    /// Device memory is known when this is asked; without it nobody knows which devices there are.
    pub(super) fn cdi(&self, learned: &Learned) -> Result<Finding, StartFailure> {
        if self.config.gpu.backend == GpuBackend::Host {
            return Ok(Finding::pass(Check::Cdi, "not needed: backend = \"host\""));
        }
        let devices = learned.devices.iter().flat_map(|s| &s.devices);
        let ids: Vec<GpuId> = devices.map(|d| d.id.clone()).collect();
        let report = cdi::check(self.cdi_dirs, &ids)
            .map_err(|err| StartFailure::new(Exit::Cdi, err.to_string()))?;
        let defined = |d: &cdi::CdiDevice| format!("{} in {}", d.name, d.file.display());
        let mut measured: Vec<String> = report.devices.iter().map(defined).collect();
        if measured.is_empty() {
            measured.push(format!("a specification of kind {}", cdi::KIND));
        }
        let mut finding = Finding::pass(Check::Cdi, "");
        if let Some((file, why)) = report.ignored.first() {
            measured.push(format!("{} cannot be used ({why})", file.display()));
            finding.outcome = Outcome::Warn;
            finding.fix = format!("mend or remove {}", file.display());
        }
        finding.measured = measured.join("; ");
        Ok(finding)
    }

    pub(super) async fn podman(&self, learned: &mut Learned) -> Result<Finding, StartFailure> {
        let info = self.containers.info().await;
        let info = info.map_err(|fault| StartFailure::new(Exit::Podman, fault.message))?;
        let socket = self.config.podman.socket.display();
        if !info.rootless {
            let message = format!(
                "the podman API at {socket} runs as root; Hostler drives rootless podman only: point [podman] socket at the service user's own API"
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
        let measured = format!("podman {}, rootless, at {socket}", info.version);
        learned.podman = Some(info);
        Ok(Finding::pass(Check::Podman, measured))
    }

    pub(super) async fn network(&self) -> Result<Finding, StartFailure> {
        let mut transports: Vec<Transport> =
            self.config.models.values().map(|m| m.transport).collect();
        transports.sort_unstable();
        transports.dedup();
        if transports.is_empty() {
            transports.push(Transport::Unix);
        }
        let mut proven = Vec::new();
        for transport in transports {
            self.containers
                .prove_network(transport)
                .await
                .map_err(|fault| StartFailure::new(Exit::Network, fault.message))?;
            proven.push(match transport {
                Transport::Unix => "a Unix socket mounted into a container without a network",
                Transport::Tcp => "a port published on loopback",
            });
        }
        let measured = format!("a throw-away container was reached by {}", proven.join(" and "));
        Ok(Finding::pass(Check::Network, measured))
    }

    /// A pinned model whose image cannot come by itself would fail at once and for ever. Others fail on demand only.
    pub(super) async fn images(&self) -> Result<Finding, StartFailure> {
        let (mut here, mut missing) = (0_usize, Vec::new());
        // Models share images: podman is asked once for each.
        let images = self.config.models.values().map(|m| m.image.clone()).collect();
        let asked = images::ids(images, |image| self.containers.image_id(image)).await;
        for spec in self.config.models.values() {
            let image = &spec.image;
            let comes = self.config.podman.pull && !image.is_local();
            match asked.get(image) {
                Some(Ok(Some(_))) => here += 1,
                Some(Err(fault)) if spec.pin && !comes => {
                    return Err(StartFailure::new(Exit::Podman, fault.message.clone()));
                }
                Some(Err(fault)) => missing.push(format!("{image} is not known: {fault}")),
                _ if spec.pin && !comes => {
                    let message = format!(
                        "the image {image} of the pinned model {} is not in the service user's storage; build, load or pull it there",
                        spec.name
                    );
                    // It does not come by waiting.
                    return Err(StartFailure::new(Exit::Image, message).lasting());
                }
                _ if comes => missing.push(format!("{image} of {} will be pulled", spec.name)),
                _ => missing.push(format!("{image} of {} is missing", spec.name)),
            }
        }
        let mut measured = format!("{here} of {} models have theirs", self.config.models.len());
        if missing.is_empty() {
            return Ok(Finding::pass(Check::Images, measured));
        }
        measured.push_str(&format!("; {}", missing.join(", ")));
        let socket = self.config.podman.socket.display();
        let fix = format!("podman --remote --url unix://{socket} pull (or load) IMAGE");
        Ok(Finding::bad(Check::Images, Outcome::Warn, measured, &fix))
    }

    pub(super) async fn found(&self, learned: &mut Learned) -> Result<Finding, StartFailure> {
        let list = self.containers.list().await;
        let list = list.map_err(|fault: Fault| StartFailure::new(Exit::Podman, fault.message))?;
        let running = list.iter().filter(|found| found.running.is_some()).count();
        let measured = format!("{} of ours, {running} of them running", list.len());
        learned.found = Some(list);
        Ok(Finding::pass(Check::Containers, measured))
    }
}

/// Models that never load here, as they want more equal devices than there are.
fn unequal(models: &BTreeMap<ModelName, Arc<ModelSpec>>, devices: &[GpuReading]) -> Vec<String> {
    let of = |spec: &Arc<ModelSpec>| {
        let may = |d: &&GpuReading| spec.gpus.is_empty() || spec.gpus.contains(&d.id);
        let allowed: Vec<&GpuReading> = devices.iter().filter(may).collect();
        let (wanted, equal) = (spec.gpu_count, equals(&allowed));
        let short = u32::try_from(equal).is_ok_and(|equal| equal < wanted);
        let slices = allowed.iter().any(|d| d.id.is_slice());
        let why = if slices { " (an engine sees one slice of MIG alone)" } else { "" };
        short.then(|| {
            format!(
                "model {} never loads: gpu_count = {wanted}, and of its devices at most {equal} are equal{why}",
                spec.name
            )
        })
    };
    models.values().filter_map(of).collect()
}

/// Which model is bound to a device that is neither `present` nor `lost`, if one is.
pub fn bound_elsewhere(
    models: &BTreeMap<ModelName, Arc<ModelSpec>>,
    present: &[&GpuId],
    lost: &[&GpuId],
) -> Option<String> {
    let there = |wanted: &GpuId| present.iter().chain(lost).any(|id| id.may_be(wanted));
    models.values().find_map(|spec| {
        let wanted = spec.gpus.iter().find(|id| !there(id))?;
        let present: Vec<&str> = present.iter().map(|id| id.as_str()).collect();
        Some(format!(
            "model {} is bound to the device {wanted}, which does not exist; there are: {}",
            spec.name,
            present.join(", ")
        ))
    })
}

/// Whether models can be served with what was read. A GPU that is lost fails nothing on the others: it is told, and missed by the models
/// that are bound to it alone. What does not answer for any other reason may do so in a moment, so it is waited for.
fn judge(
    snapshot: &GpuSnapshot,
    models: &BTreeMap<ModelName, Arc<ModelSpec>>,
) -> Result<Finding, StartFailure> {
    let unread = |(id, why): &(GpuId, Silence)| match why {
        Silence::Unread(why) => Some(GpuError::Other(format!("{id} does not answer ({why})"))),
        Silence::Gone(_) => None,
    };
    if let Some(error) = snapshot.lost.iter().find_map(unread) {
        return Err(gpu_failure(error));
    }
    if snapshot.devices.is_empty() {
        let lost = snapshot.lost.first();
        let lost = lost.map(|(id, why)| GpuError::Lost(id.clone(), why.why().to_owned()));
        return Err(gpu_failure(lost.unwrap_or(GpuError::NoDevices)));
    }
    if let Some(empty) = snapshot.devices.iter().find(|d| d.total.0 == 0) {
        return Err(gpu_failure(GpuError::ZeroMemory(empty.id.clone())));
    }
    let present: Vec<&GpuId> = snapshot.devices.iter().map(|d| &d.id).collect();
    let lost: Vec<&GpuId> = snapshot.lost.iter().map(|(id, _)| id).collect();
    if let Some(message) = bound_elsewhere(models, &present, &lost) {
        return Err(StartFailure::new(Exit::GpuNotFound, message));
    }
    let device =
        |d: &GpuReading| format!("{} ({}): {} of {} in use", d.id, d.name, d.used, d.total);
    let mut measured: Vec<String> = snapshot.devices.iter().map(device).collect();
    if !snapshot.driver.is_empty() {
        measured.push(format!("driver {}", snapshot.driver));
    }
    if snapshot.lost.is_empty() {
        let unequal = unequal(models, &snapshot.devices);
        if unequal.is_empty() {
            return Ok(Finding::pass(Check::Memory, measured.join("; ")));
        }
        measured.extend(unequal);
        return Ok(Finding::bad(Check::Memory, Outcome::Warn, measured.join("; "), FEWER));
    }
    let lost = snapshot.lost.iter().map(|(id, why)| format!("{id} is lost: {}", why.why()));
    measured.extend(lost);
    Ok(Finding::bad(Check::Memory, Outcome::Warn, measured.join("; "), Exit::GpuFailed.fix()))
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
        | GpuError::NoFirstAnswer(_)
        | GpuError::Other(_) => false,
    };
    let exit = match err {
        GpuError::LibraryMissing(_) => Exit::NvmlMissing,
        GpuError::DriverNotLoaded(_) => Exit::DriverNotLoaded,
        GpuError::VersionMismatch(_) => Exit::DriverMismatch,
        GpuError::ZeroMemory(_) | GpuError::MemoryUnsupported(_) => Exit::GpuMemory,
        GpuError::NotFound { .. } | GpuError::NoDevices => Exit::GpuNotFound,
        GpuError::Lost(..)
        | GpuError::Timeout(_)
        | GpuError::NoFirstAnswer(_)
        | GpuError::Other(_) => Exit::GpuFailed,
        GpuError::HostMemory(_) => Exit::HostMemory,
    };
    let failure = StartFailure::new(exit, err.to_string());
    if lasting { failure.lasting() } else { failure }
}

/// `"5.4.2"` → `(5, 4)`.
pub(super) fn version(text: &str) -> Option<(u32, u32)> {
    let mut parts = text.split(['.', '-']);
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::types::{Bytes, test_spec};

    #[test]
    fn podman_versions() {
        assert_eq!(version("5.4.2"), Some((5, 4)));
        assert_eq!(version("6.0-dev"), Some((6, 0)));
        assert_eq!(version("four"), None);
        assert!(version("4.3.1").is_some_and(|v| v >= PODMAN_MIN));
        assert!(version("4.2.0").is_some_and(|v| v < PODMAN_MIN));
    }

    #[test]
    fn who_wants_more_equal_devices_than_there_are_is_named() {
        let gib = |n: u64| Bytes(n << 30);
        let device = |id: &str, name: &str, total| GpuReading {
            id: GpuId::new(id),
            name: name.into(),
            total,
            used: Bytes(0),
            processes: vec![],
        };
        let mut pair = test_spec("pair");
        pair.gpu_count = 2;
        let named = |spec: &ModelSpec, devices: &[GpuReading]| {
            unequal(&[(spec.name.clone(), Arc::new(spec.clone()))].into(), devices).join("; ")
        };
        let two = [device("GPU-a", "3090", gib(24)), device("GPU-b", "3060", gib(12))];
        assert_eq!(
            named(&pair, &two),
            "model pair never loads: gpu_count = 2, and of its devices at most 1 are equal"
        );
        assert_eq!(named(&test_spec("one"), &two), "");
        let mut three = two.to_vec();
        three.push(device("GPU-c", "3060", gib(12)));
        assert_eq!(named(&pair, &three), "", "the smaller two");
        pair.gpus = vec![GpuId::new("GPU-a"), GpuId::new("GPU-c")];
        assert!(named(&pair, &three).contains("at most 1"), "those it may have count");
        pair.gpus = vec![];
        let slices = ["MIG-a", "MIG-b"].map(|id| device(id, "H100 MIG 3g.40gb", gib(40)));
        assert!(named(&pair, &slices).ends_with("(an engine sees one slice of MIG alone)"));
    }

    #[test]
    fn one_lost_gpu_is_served_without_as_long_as_another_answers() {
        let [a, b] = ["GPU-a", "GPU-b"].map(GpuId::new);
        let gone = || Silence::Gone("fell off the bus".into());
        let device = GpuReading {
            id: a.clone(),
            name: "test".into(),
            total: Bytes(1),
            used: Bytes(0),
            processes: Vec::new(),
        };
        let of = |devices: &[GpuReading], lost: &[(GpuId, Silence)], bound: &GpuId| {
            let (devices, lost) = (devices.to_vec(), lost.to_vec());
            let snapshot = GpuSnapshot { devices, lost, driver: String::new() };
            let model = Arc::new(ModelSpec { gpus: vec![bound.clone()], ..test_spec("m") });
            judge(&snapshot, &[(model.name.clone(), model)].into()).map(|f| (f.outcome, f.measured))
        };
        let devices = [device];
        let (outcome, measured) = of(&devices, &[(b.clone(), gone())], &b).unwrap();
        assert_eq!(outcome, Outcome::Warn);
        assert!(measured.contains("GPU-b is lost: fell off the bus"), "{measured}");
        // It does not tell which one it is, so it may be the one that the model is bound to.
        assert!(of(&devices, &[(GpuId::at_index(1), gone())], &b).is_ok());
        let exit = |found: Result<_, StartFailure>| found.map(|_| ()).unwrap_err().exit;
        assert_eq!(exit(of(&devices, &[], &b)), Exit::GpuNotFound);
        assert_eq!(exit(of(&[], &[(b.clone(), gone())], &b)), Exit::GpuFailed);
        let unread = Silence::Unread("it is busy".into());
        assert_eq!(exit(of(&devices, &[(b, unread)], &a)), Exit::GpuFailed);
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
            (GpuError::NoFirstAnswer(Duration::from_secs(60)), 25),
            (GpuError::Other("x".into()), 25),
            (GpuError::HostMemory("x".into()), 26),
        ];
        for (err, status) in cases {
            let failure = gpu_failure(err.clone());
            assert_eq!(failure.exit as u8, status, "{err}");
            assert!(!failure.exit.fix().is_empty(), "{err}");
        }
    }
}
