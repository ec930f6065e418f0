//! Commands that mend what a check found.
//!
//! Purpose: the fix that a finding shows and the one that `hostler doctor --fix` runs are the same text. Invariants: they are
//! made here, from the check and the user, never from what somebody else said: doctor runs as root, the daemon does not. A command is
//! for what was found to be wrong; where nothing could be looked at nothing is run, as some of these end all models.

use std::fs;
use std::path::PathBuf;

use super::{Check, Outcome, SERVICE_USER};
use crate::adapters::gpu::cdi;
use crate::types::{CDI_GENERATE, CDI_WRITE};

/// IDs that a user of containers gets.
const RANGE: u64 = 65_536;
/// Where distributions begin to give them.
const FIRST: u64 = 100_000;

/// The commands that mend a check for `user`, each with its arguments; none where no command does.
#[must_use]
pub fn repair(check: Check, user: &str) -> Vec<Vec<String>> {
    let system = user == SERVICE_USER;
    let text = match check {
        // The first makes CUDA's nodes alone, and what the second asks the driver for makes those of all cards.
        Check::DeviceNodes => "nvidia-modprobe -u -c 0\nnvidia-smi --list-gpus".to_owned(),
        Check::Cdi => specification(cdi::winner(&super::cdi_dirs())),
        Check::Linger => format!("loginctl enable-linger {user}"),
        Check::Podman if system => {
            format!("systemctl --user --machine={user}@ restart hostler-podman.socket")
        }
        Check::Podman => "systemctl --user restart hostler-user-podman.socket".to_owned(),
        Check::Subids => {
            let read = |file| fs::read_to_string(file).unwrap_or_default();
            subids(user, system, &read("/etc/subuid"), &read("/etc/subgid"))
        }
        Check::Selinux => "setsebool -P container_use_devices 1".to_owned(),
        Check::Memory
        | Check::CdiVersion
        | Check::Cgroups
        | Check::Labels
        | Check::Events
        | Check::Disk
        | Check::Images
        | Check::Network
        | Check::Containers
        | Check::Ports
        | Check::GpuContainer => return Vec::new(),
    };
    let words = |line: &str| line.split(' ').map(str::to_owned).collect();
    text.lines().map(words).collect()
}

/// The commands for what a check found, told by its outcome and by the fix that is shown; none where those are about something that
/// no command of ours mends.
#[must_use]
pub fn wanted(check: Check, outcome: &str, fix: &str, user: &str) -> Vec<Vec<String>> {
    let commands = repair(check, user);
    // A warning may be that nothing could be looked at, or about another thing than the command's; and so may closed nodes be.
    let found = match Outcome::named(outcome) {
        Some(Outcome::Fail) if check != Check::DeviceNodes => true,
        Some(Outcome::Fail | Outcome::Warn) => fix == shown(&commands),
        Some(Outcome::Pass) | None => false,
    };
    if found { commands } else { Vec::new() }
}

/// Commands as a person would type them.
#[must_use]
pub fn shown(commands: &[Vec<String>]) -> String {
    let lines: Vec<String> = commands.iter().map(|command| command.join(" ")).collect();
    lines.join(" && ")
}

/// What writes a CDI specification, to the file that wins; `None`: there is none yet.
fn specification(winner: Option<PathBuf>) -> String {
    winner
        .map_or(CDI_WRITE.to_owned(), |file| format!("{CDI_GENERATE} --output={}", file.display()))
}

/// What gives a user subordinate IDs, where these files are `/etc/subuid` and `/etc/subgid`.
fn subids(user: &str, system: bool, subuid: &str, subgid: &str) -> String {
    let mut lines = Vec::new();
    // A user who has them, and whose podman does not know yet, gets no second range.
    if !(has_range(subuid, user) && has_range(subgid, user)) {
        let from = free_range(&format!("{subuid}\n{subgid}"));
        let to = from + RANGE - 1;
        lines.push(format!("usermod --add-subuids {from}-{to} --add-subgids {from}-{to} {user}"));
    }
    // podman keeps its first mapping in a process that lives on, also over a restart of its service.
    if system {
        let manager = format!("--user --machine={user}@");
        lines.push(format!("systemd-run {manager} --quiet --wait --collect podman system migrate"));
        lines.push(format!("systemctl {manager} restart hostler-podman.service"));
    } else {
        lines.push("podman system migrate".to_owned());
        lines.push("systemctl --user restart hostler-user-podman.service".to_owned());
    }
    lines.join("\n")
}

/// Whether a line of such a file gives a user as many as containers need.
fn has_range(text: &str, user: &str) -> bool {
    text.lines().any(|line| {
        let mut fields = line.split(':');
        let (name, count) = (fields.next(), fields.nth(1));
        let count = count.and_then(|count| count.trim().parse::<u64>().ok());
        name == Some(user) && count.is_some_and(|count| count >= RANGE)
    })
}

/// The first range of IDs that no line of `/etc/subuid` and `/etc/subgid` has a part of.
fn free_range(taken: &str) -> u64 {
    let mut ranges: Vec<(u64, u64)> = taken
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(':').skip(1).map(|f| f.trim().parse::<u64>());
            let (start, count) = (fields.next()?.ok()?, fields.next()?.ok()?);
            Some((start, start.saturating_add(count)))
        })
        .collect();
    ranges.sort_unstable();
    ranges.iter().fold(
        FIRST,
        |at, (start, end)| {
            if *start < at + RANGE && *end > at { *end } else { at }
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_that_nobody_has() {
        assert_eq!(free_range(""), 100_000);
        assert_eq!(free_range("a:100000:65536\n"), 165_536);
        assert_eq!(free_range("b:165536:65536\na:100000:65536\nnonsense\n"), 231_072);
        assert_eq!(free_range("a:500000:65536\n"), 100_000);
    }

    #[test]
    fn ids_are_given_once_and_podman_is_told() {
        let give = |subuid: &str, subgid: &str| subids("hostler", true, subuid, subgid);
        let migrate = "systemd-run --user --machine=hostler@ --quiet --wait --collect podman system migrate\n\
             systemctl --user --machine=hostler@ restart hostler-podman.service";
        let range = "--add-subuids 165536-231071 --add-subgids 165536-231071 hostler\n";
        let (other, own) = ("other:100000:65536\n", "hostler:165536:65536\n");
        assert_eq!(give(other, other), format!("usermod {range}{migrate}"));
        assert_eq!(give(own, own), migrate, "it has them already");
        assert!(give(own, "").starts_with("usermod --add-subuids 100000-165535 "));
        assert!(give("hostler:1:10\n", "hostler:1:10\n").starts_with("usermod "));
        assert!(subids("alice", false, "", "").contains("\npodman system migrate\n"));
    }

    #[test]
    fn commands_are_as_shown() {
        let commands = repair(Check::Linger, "hostler");
        assert_eq!(shown(&commands), "loginctl enable-linger hostler");
        assert!(repair(Check::Network, "hostler").is_empty());
    }

    #[test]
    fn a_specification_is_written_where_it_counts() {
        assert_eq!(specification(None), CDI_WRITE);
        let run = specification(Some("/var/run/cdi/nvidia.yaml".into()));
        assert_eq!(run, format!("{CDI_GENERATE} --output=/var/run/cdi/nvidia.yaml"));
    }

    #[test]
    fn commands_are_run_for_what_was_found() {
        let wanted = |check, outcome, fix| shown(&wanted(check, outcome, fix, "hostler"));
        for (check, fix) in [
            (Check::Subids, "mend podman first"),
            (Check::Selinux, "mend podman first"),
            (Check::Cdi, "mend or remove /etc/cdi/other.yaml"),
            (Check::Linger, ""),
        ] {
            assert_eq!(wanted(check, "WARN", fix), "", "{check:?}");
        }
        let enable = "loginctl enable-linger hostler";
        assert_eq!(wanted(Check::Linger, "WARN", enable), enable);
        assert_eq!(wanted(Check::Linger, "PASS", enable), "");
        assert!(wanted(Check::Subids, "FAIL", "").ends_with("restart hostler-podman.service"));
    }
}
