//! Where things are on the machine: the cache, the checkout, the cgroup tree; and whether a host can run here at all.
//! Owner: the host. Invariant: nothing of a host is written into the checkout.

use crate::error::IoContext;
use crate::{Error, Result};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The checkout that this crate was built from.
pub fn checkout() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here).to_owned()
}

/// The cache outside the tree: `HOSTLER_CACHE`, else `XDG_CACHE_HOME/hostler`, else `~/.cache/hostler`.
/// The scripts beside this crate decide in the same way.
pub fn cache() -> PathBuf {
    let var = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    var("HOSTLER_CACHE").unwrap_or_else(|| {
        var("XDG_CACHE_HOME")
            .or_else(|| var("HOME").map(|home| home.join(".cache")))
            .unwrap_or_else(|| "/root/.cache".into())
            .join("hostler")
    })
}

/// The directory with a directory for each host.
pub(crate) fn hosts() -> PathBuf {
    cache().join("hosts")
}

/// Runs a script of the checkout, with its messages on our standard error, and returns the last line of its output.
pub fn script(relative: &str, args: &[&str]) -> Result<String> {
    let path = checkout().join(relative);
    let output = Command::new(&path)
        .args(args)
        .stderr(std::process::Stdio::inherit())
        .output()
        .map_err(|source| Error::Spawn { program: path.display().to_string(), source })?;
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        return Err(Error::Command {
            what: format!("{relative} {}", args.join(" ")),
            status: output.status,
            stdout,
            stderr: "(above)".into(),
        });
    }
    Ok(stdout.trim_end().lines().next_back().unwrap_or_default().to_owned())
}

/// Where cgroup v2 is mounted.
pub(crate) fn cgroup2() -> Result<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").doing("read", "/proc/self/mounts")?;
    mounts
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ').skip(1);
            Some((fields.next()?, fields.next()?))
        })
        .find(|(_, kind)| *kind == "cgroup2")
        .map(|(path, _)| PathBuf::from(path))
        .ok_or_else(|| Error::Prerequisite {
            missing: "no cgroup v2 hierarchy is mounted".into(),
            fix: "Mount one: mount -t cgroup2 none /sys/fs/cgroup/unified.",
        })
}

/// Checks what a host needs from the machine, and names the first thing that is missing.
pub fn prerequisites() -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        return Err(Error::Prerequisite {
            missing: "not root".into(),
            fix: "Run it as root or with sudo.",
        });
    }
    let path = std::env::var("PATH").unwrap_or_default();
    let found = |program: &str| {
        std::env::split_paths(&path)
            .chain(["/usr/sbin".into(), "/sbin".into()])
            .any(|dir| dir.join(program).exists())
    };
    for program in ["systemd-nspawn", "debootstrap", "nsenter", "unshare", "setsid"] {
        if !found(program) {
            return Err(Error::Prerequisite {
                missing: format!("{program} is not installed"),
                fix: "Run tests/host/prereqs.sh.",
            });
        }
    }
    let cgroup2 = cgroup2()?;
    let probe = Command::new("unshare")
        .args(["-m", "-p", "-n", "-i", "-u", "--fork", "true"])
        .output()
        .map_err(|source| Error::Spawn { program: "unshare".into(), source })?;
    if !probe.status.success() {
        return Err(Error::Prerequisite {
            missing: format!(
                "namespaces are refused ({})",
                String::from_utf8_lossy(&probe.stderr).trim()
            ),
            fix: "Run it on a machine, or in a container, that may make namespaces.",
        });
    }
    rustix::fs::access(&cgroup2, rustix::fs::Access::WRITE_OK).map_err(|_| Error::Prerequisite {
        missing: format!("{} is read-only", cgroup2.display()),
        fix: "Mount the cgroup v2 hierarchy read-write.",
    })
}
