//! Commands that mend what a check found.
//!
//! Purpose: the fix that a finding shows and the one that `hostler doctor --fix` runs are the same text. Invariant: they are
//! made here, from the check and the user, never from what somebody else said: doctor runs as root, the daemon does not.

use std::fs;

use super::{Check, SERVICE_USER};

/// IDs that a user of containers gets.
const RANGE: u64 = 65_536;
/// Where distributions begin to give them.
const FIRST: u64 = 100_000;

/// The commands that mend a check for `user`, each with its arguments; none where no command does.
#[must_use]
pub fn repair(check: Check, user: &str) -> Vec<Vec<String>> {
    let system = user == SERVICE_USER;
    let text = match check {
        Check::DeviceNodes => "nvidia-modprobe -c 0 -u".to_owned(),
        Check::Cdi => {
            "nvidia-ctk cdi generate --device-name-strategy=uuid --output=/etc/cdi/nvidia.yaml"
                .to_owned()
        }
        Check::Linger => format!("loginctl enable-linger {user}"),
        Check::Podman if system => {
            format!("systemctl --user --machine={user}@ restart hostler-podman.socket")
        }
        Check::Podman => "systemctl --user restart hostler-user-podman.socket".to_owned(),
        Check::Subids => {
            let taken: Vec<String> = ["/etc/subuid", "/etc/subgid"]
                .iter()
                .filter_map(|file| fs::read_to_string(file).ok())
                .collect();
            let from = free_range(&taken.join("\n"));
            let to = from + RANGE - 1;
            let give =
                format!("usermod --add-subuids {from}-{to} --add-subgids {from}-{to} {user}");
            // podman keeps its first mapping in a process that lives on.
            let again = if system {
                format!("systemctl --user --machine={user}@ restart hostler-podman.service")
            } else {
                "systemctl --user restart hostler-user-podman.service".to_owned()
            };
            format!("{give}\n{again}")
        }
        Check::Selinux => "setsebool -P container_use_devices 1".to_owned(),
        Check::Memory
        | Check::CdiVersion
        | Check::Cgroups
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

/// Commands as a person would type them.
#[must_use]
pub fn shown(commands: &[Vec<String>]) -> String {
    let lines: Vec<String> = commands.iter().map(|command| command.join(" ")).collect();
    lines.join(" && ")
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
    fn commands_are_as_shown() {
        let commands = repair(Check::Linger, "hostler");
        assert_eq!(shown(&commands), "loginctl enable-linger hostler");
        assert_eq!(repair(Check::Subids, "hostler").len(), 2);
        assert!(repair(Check::Network, "hostler").is_empty());
    }
}
