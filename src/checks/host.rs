//! Checks that only doctor makes: what is wrong here shows later, or as the failure of one of the others.
//!
//! Invariant: each says what it measured. What could not be looked at is a warning, and nothing that a command is run for: nothing was
//! found to be wrong.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use super::gate::version;
use super::repair::{repair, shown};
use super::{Check, Checks, Finding, Learned, Outcome, disk, gpus, labels, ports};
use crate::adapters::gpu::cdi;
use crate::config::GpuBackend;
use crate::supervisor::ports::PodmanHost;
use crate::types::GpuId;

/// IDs that containers need: images hold files of users up to 65535.
const IDS_MIN: u64 = 65_536;
const NVML_ONLY: &str = "not needed: backend = \"host\"";
const UNCONFINED: &str = "does not confine podman's containers";
const UNSEEN: &str = "see why it cannot be looked at; docs/cli.md says what is to hold";
/// What nodes are that are there and that only some may open.
const CLOSED: &str = "not open to the users that engines run as";
/// A program that makes nodes makes them by the module's word again.
const OPEN: &str = "\"options nvidia NVreg_DeviceFileMode=0666\" in a file of /etc/modprobe.d, in place of another mode there, then reboot; engines run as users of no group";
const UNASKED: &str = "could not be looked at: podman does not answer";

/// What was seen; or why nothing was.
type Judged = Result<(Outcome, String), String>;

impl Checks<'_> {
    /// A check that is not of the gate.
    pub(super) async fn host(&self, check: Check, learned: &Learned) -> Finding {
        let nvml = self.config.gpu.backend == GpuBackend::Nvml;
        let needs_gpu = matches!(
            check,
            Check::DeviceNodes | Check::CdiVersion | Check::Selinux | Check::GpuContainer
        );
        if needs_gpu && !nvml {
            return Finding::pass(check, NVML_ONLY);
        }
        let podman = learned.podman.as_ref();
        let judged = match check {
            Check::DeviceNodes => {
                device_nodes(Path::new("/dev"), Path::new("/proc/driver/nvidia/gpus"))
            }
            Check::Linger => self.linger(),
            Check::GpuContainer => Ok(self.gpu_container(learned).await),
            Check::Ports => Ok(ports::judge(&self.config.server.listen)),
            Check::Cgroups => podman.map_or_else(unasked, |p| Ok(cgroups(&p.host))),
            Check::Subids => podman.map_or_else(unasked, |p| subids(&p.host)),
            Check::Events => podman.map_or_else(unasked, |p| Ok(self.events(&p.host))),
            Check::Disk => match podman {
                Some(p) => Ok(disk::judge(&p.host).await),
                None => unasked(),
            },
            Check::Selinux => podman.map_or_else(unasked, |p| selinux(&p.host)),
            Check::Labels => match podman.map(|p| p.host.selinux == Some(true)) {
                None => unasked(),
                Some(true) => Ok(labels::look(self.config).await),
                Some(false) => Ok((Outcome::Pass, UNCONFINED.to_owned())),
            },
            Check::CdiVersion => {
                podman.map_or_else(unasked, |p| Ok(self.cdi_version(&p.version, learned)))
            }
            // Those of the gate are made there.
            Check::Memory
            | Check::Cdi
            | Check::Podman
            | Check::Images
            | Check::Network
            | Check::Containers => Err("is not made here".to_owned()),
        };
        finding(check, judged, self.user)
    }

    fn linger(&self) -> Judged {
        let file = Path::new("/var/lib/systemd/linger").join(self.user);
        let user = self.user;
        match file.try_exists() {
            Ok(true) => Ok((Outcome::Pass, format!("on for {user}"))),
            Ok(false) if user == super::SERVICE_USER => {
                let why = "its containers end, and podman's API is gone, until somebody logs in";
                Ok((Outcome::Fail, format!("off for {user}: {why}")))
            }
            Ok(false) => {
                Ok((Outcome::Warn, format!("off for {user}: models end with the last session")))
            }
            Err(error) => Err(format!("{}: {error}", file.display())),
        }
    }

    /// A system user cannot read the journal: with journald its events and logs are empty, without an error.
    fn events(&self, podman: &PodmanHost) -> (Outcome, String) {
        let logger = podman.events_logger.as_deref().unwrap_or("unknown");
        let system = self.user == super::SERVICE_USER;
        match logger {
            "file" => (Outcome::Pass, "file".to_owned()),
            "journald" if !system => (Outcome::Pass, "journald".to_owned()),
            _ if system => {
                (Outcome::Fail, format!("{logger}: a system user's events would be lost"))
            }
            _ => (Outcome::Warn, logger.to_owned()),
        }
    }

    /// With the devices that were found; without any there is nothing to give to a container.
    async fn gpu_container(&self, learned: &Learned) -> (Outcome, String) {
        let devices = learned.devices.iter().flat_map(|s| &s.devices);
        let ids: Vec<GpuId> = devices.map(|d| d.id.clone()).collect();
        if ids.is_empty() || learned.podman.is_none() {
            return (Outcome::Warn, "could not be tried: no device, or no podman".to_owned());
        }
        match self.containers.try_devices(ids.clone()).await {
            Ok(lines) => match gpus::judge(&lines, &ids) {
                Ok(measured) => (Outcome::Pass, measured),
                Err(why) => (Outcome::Fail, why),
            },
            Err(fault) => (Outcome::Fail, fault.message),
        }
    }

    fn cdi_version(&self, podman: &str, learned: &Learned) -> (Outcome, String) {
        let devices = learned.devices.iter().flat_map(|s| &s.devices);
        let ids: Vec<GpuId> = devices.map(|d| d.id.clone()).collect();
        let Ok(report) = cdi::check(self.cdi_dirs, &ids) else {
            return (Outcome::Warn, "no usable specification".to_owned());
        };
        let newest = report.devices.iter().max_by_key(|d| version(&d.cdi_version));
        let Some(device) = newest else {
            return (Outcome::Warn, "no device is defined".to_owned());
        };
        judge_cdi(&device.cdi_version, podman, &device.file)
    }
}

fn unasked() -> Judged {
    Err(UNASKED.to_owned())
}

fn finding(check: Check, judged: Judged, user: &str) -> Finding {
    let (outcome, measured) = match judged {
        Ok((Outcome::Pass, measured)) => return Finding::pass(check, measured),
        Ok(seen) => seen,
        Err(why) => {
            let fix = if why == UNASKED { "mend podman first" } else { UNSEEN };
            return Finding::bad(check, Outcome::Warn, why, fix);
        }
    };
    if measured.ends_with(CLOSED) {
        return Finding::bad(check, outcome, measured, OPEN);
    }
    let commands = repair(check, user);
    let fix = if commands.is_empty() { advice(check, user).to_owned() } else { shown(&commands) };
    Finding { check, outcome, measured, fix }
}

/// What `user` does where no command does it.
pub(super) fn advice(check: Check, user: &str) -> &'static str {
    match check {
        Check::Cgroups => "boot with systemd.unified_cgroup_hierarchy=1",
        Check::Disk if user == super::SERVICE_USER => {
            "sudo podman --remote --url unix:///run/hostler/service/podman.sock image prune, or put /var/lib/hostler on a larger disk"
        }
        Check::Disk => "podman image prune, or a larger disk for ~/.local/share/containers",
        Check::Events => {
            "set events_logger = \"file\" in /usr/lib/hostler/containers.conf, and see that hostler-podman.service has it: systemctl --user --machine=hostler@ cat hostler-podman.service"
        }
        Check::Ports => "end what listens there, or change the port: systemctl edit hostler.socket",
        Check::GpuContainer => {
            "after an upgrade of the driver: reboot, or reload its modules (docs/operate.md), then write the CDI specification anew; else what the checks cdi and device_nodes say"
        }
        Check::CdiVersion => {
            "upgrade podman, or write the specification with an older nvidia-container-toolkit (1.18.2 or older for podman before 5.4)"
        }
        Check::Labels => {
            "semanage fcontext -a -t container_ro_file_t 'PATH(/.*)?' and restorecon -RF PATH; docs/install.md"
        }
        Check::Memory
        | Check::DeviceNodes
        | Check::Cdi
        | Check::Podman
        | Check::Subids
        | Check::Linger
        | Check::Selinux
        | Check::Images
        | Check::Network
        | Check::Containers => "see docs/troubleshoot.md",
    }
}

/// The nodes below `dev`, of as many cards as the driver has entries for in `cards`.
fn device_nodes(dev: &Path, cards: &Path) -> Judged {
    let entries = fs::read_dir(dev).map_err(|error| format!("{}: {error}", dev.display()))?;
    let mut nodes = Vec::new();
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Ok(data) = entry.metadata() else { continue };
        if name.starts_with("nvidia") && data.file_type().is_char_device() {
            nodes.push((name, data.mode()));
        }
    }
    nodes.sort();
    // Without the module there is none.
    let cards = fs::read_dir(cards).map_or(0, |cards| cards.flatten().count());
    Ok(judge_nodes(dev, &nodes, cards))
}

/// Each node with its mode.
fn judge_nodes(dev: &Path, nodes: &[(String, u32)], cards: usize) -> (Outcome, String) {
    const LASTS: &str = "The fix lasts until the next boot; nvidia-persistenced, enabled as a service, makes them at each";
    if nodes.is_empty() {
        return (Outcome::Fail, format!("there is no {}/nvidia*. {LASTS}", dev.display()));
    }
    let closed = nodes.iter().filter(|(_, mode)| mode & 0o006 != 0o006);
    let closed: Vec<_> =
        closed.map(|(name, mode)| format!("{name} ({:o})", mode & 0o777)).collect();
    if !closed.is_empty() {
        return (Outcome::Fail, format!("{}: {CLOSED}", closed.join(", ")));
    }
    let number = |name: &str| name.strip_prefix("nvidia").is_some_and(|n| n.parse::<u8>().is_ok());
    let seen = nodes.iter().filter(|(name, _)| number(name)).count();
    let names: Vec<&str> = nodes.iter().map(|(name, _)| name.as_str()).collect();
    let measured = names.join(", ");
    if seen < cards {
        let less = format!("{measured}: {cards} cards, and nodes of {seen} of them. {LASTS}");
        return (Outcome::Fail, less);
    }
    if names.contains(&"nvidia-uvm") {
        return (Outcome::Pass, measured);
    }
    (Outcome::Warn, format!("{measured}; without nvidia-uvm no engine can use CUDA"))
}

fn cgroups(podman: &PodmanHost) -> (Outcome, String) {
    let seen = podman.cgroup_version.as_deref().unwrap_or("unknown");
    match seen {
        "v2" => {
            (Outcome::Pass, format!("v2, controllers: {}", podman.cgroup_controllers.join(" ")))
        }
        "unknown" => (Outcome::Warn, "podman does not say which version".to_owned()),
        _ => (Outcome::Fail, format!("{seen}: rootless containers need v2")),
    }
}

fn subids(podman: &PodmanHost) -> Judged {
    let (Some(users), Some(groups)) = (podman.user_ids, podman.group_ids) else {
        return Err("podman does not say how many".to_owned());
    };
    let measured = format!("{users} user and {groups} group IDs");
    // One of them is the user's own.
    if users.min(groups) > IDS_MIN - 1 {
        return Ok((Outcome::Pass, measured));
    }
    let why = "in podman's containers; images need";
    Ok((
        Outcome::Fail,
        format!("{measured} {why} {IDS_MIN} of each. The fix ends the models that run"),
    ))
}

fn selinux(podman: &PodmanHost) -> Judged {
    const BOOLEAN: &str = "/sys/fs/selinux/booleans/container_use_devices";
    if podman.selinux != Some(true) {
        return Ok((Outcome::Pass, UNCONFINED.to_owned()));
    }
    match fs::read_to_string(BOOLEAN) {
        Ok(text) if text.starts_with('1') => {
            Ok((Outcome::Pass, "container_use_devices is on".to_owned()))
        }
        Ok(_) => {
            Ok((Outcome::Fail, "container_use_devices is off: engines cannot open GPUs".to_owned()))
        }
        Err(error) => Err(format!("{BOOLEAN}: {error}")),
    }
}

/// The newest CDI version that a podman reads, by the library that its releases were built with.
fn cdi_max(podman: (u32, u32)) -> (u32, u32) {
    match podman {
        p if p >= (5, 6) => (1, 0),
        p if p >= (5, 4) => (0, 8),
        p if p >= (4, 9) => (0, 6),
        _ => (0, 5),
    }
}

fn judge_cdi(cdi: &str, podman: &str, file: &Path) -> (Outcome, String) {
    let file = file.display();
    let (Some(have), Some(able)) = (version(cdi), version(podman).map(cdi_max)) else {
        return (Outcome::Warn, format!("{file} is of version {cdi}; podman is {podman}"));
    };
    let measured =
        format!("{file} is of version {cdi}; podman {podman} reads up to {}.{}", able.0, able.1);
    if have <= able {
        (Outcome::Pass, measured)
    } else {
        (Outcome::Fail, format!("{measured}: it would say \"unresolvable CDI devices\""))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cdi_versions_against_podmans() {
        let judge = |cdi, podman| judge_cdi(cdi, podman, Path::new("/etc/cdi/n.yaml")).0;
        assert_eq!(judge("0.5.0", "4.3.1"), Outcome::Pass);
        assert_eq!(judge("0.7.0", "4.9.4"), Outcome::Fail);
        assert_eq!(judge("0.8.0", "5.4.2"), Outcome::Pass);
        assert_eq!(judge("1.0.0", "5.4.2"), Outcome::Fail);
        assert_eq!(judge("1.0.0", "5.6.0"), Outcome::Pass);
        assert_eq!(judge("new", "5.6.0"), Outcome::Warn);
    }

    #[test]
    fn what_podman_says_is_judged() {
        let mut podman = PodmanHost::default();
        assert!(subids(&podman).unwrap_err().contains("does not say"));
        podman.user_ids = Some(1);
        podman.group_ids = Some(65_537);
        assert_eq!(subids(&podman).unwrap().0, Outcome::Fail);
        podman.user_ids = Some(65_537);
        assert_eq!(subids(&podman).unwrap().0, Outcome::Pass);
        podman.cgroup_version = Some("v1".into());
        assert_eq!(cgroups(&podman).0, Outcome::Fail);
        podman.cgroup_version = Some("v2".into());
        assert_eq!(cgroups(&podman).0, Outcome::Pass);
        assert_eq!(selinux(&podman).unwrap().0, Outcome::Pass);
    }

    #[test]
    fn nodes_are_looked_at_and_not_only_their_names() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("nvidia0"), "no device").unwrap();
        let none = dir.path().join("none");
        let (outcome, text) = device_nodes(dir.path(), &none).unwrap();
        assert_eq!(outcome, Outcome::Fail, "{text}");
        assert!(device_nodes(&none, &none).is_err());
    }

    #[test]
    fn each_card_has_a_node() {
        let judge = |names: &[&str], cards| {
            let nodes: Vec<_> = names.iter().map(|name| ((*name).to_owned(), 0o20666)).collect();
            judge_nodes(Path::new("/dev"), &nodes, cards)
        };
        let all = ["nvidia-uvm", "nvidia0", "nvidia1", "nvidiactl"];
        assert_eq!(judge(&all, 2).0, Outcome::Pass);
        let (outcome, text) = judge(&all, 4);
        assert_eq!(outcome, Outcome::Fail, "{text}");
        assert!(text.contains("4 cards, and nodes of 2 of them"), "{text}");
        assert!(text.contains("nvidia-persistenced"), "{text}");
        assert_eq!(judge(&all[1..], 2).0, Outcome::Warn);
        let found = finding(Check::DeviceNodes, Ok(judge(&all, 4)), "hostler");
        let run = super::super::wanted(Check::DeviceNodes, "FAIL", &found.fix, "hostler");
        assert_eq!(run.len(), 2, "CUDA's and the cards': {run:?}");
    }

    #[test]
    fn a_closed_node_is_opened_by_the_module_and_by_no_command() {
        let closed = format!("nvidia0 (660): {CLOSED}");
        let found = finding(Check::DeviceNodes, Ok((Outcome::Fail, closed)), "hostler");
        assert!(found.fix.contains("NVreg_DeviceFileMode"), "{}", found.fix);
        let run = |found: &Finding| {
            let outcome = found.outcome.as_str();
            super::super::wanted(Check::DeviceNodes, outcome, &found.fix, "hostler")
        };
        assert!(run(&found).is_empty());
        let none = (Outcome::Fail, "there is no /dev/nvidia*".to_owned());
        let found = finding(Check::DeviceNodes, Ok(none), "hostler");
        assert_eq!(shown(&run(&found)), found.fix);
        assert!(found.fix.starts_with("nvidia-modprobe "), "{}", found.fix);
    }

    #[test]
    fn a_command_is_shown_for_what_was_seen_alone() {
        let fix = |judged| finding(Check::Subids, judged, "hostler").fix;
        for why in [UNASKED, "podman does not say how many"] {
            let found = finding(Check::Subids, Err(why.to_owned()), "hostler");
            assert_eq!((found.outcome, found.measured.as_str()), (Outcome::Warn, why));
            assert!(!found.fix.is_empty() && !found.fix.contains("migrate"), "{}", found.fix);
        }
        let few = PodmanHost { user_ids: Some(1), group_ids: Some(1), ..PodmanHost::default() };
        assert!(fix(subids(&few)).contains("podman system migrate"));
        assert_eq!(fix(Ok((Outcome::Pass, String::new()))), "");
    }
}
