//! The life of a host outside of it: its scratch directory, its keeper, its end. Owner: [`crate::Host`].
//!
//! Invariant: a host that is not persistent lives exactly as long as its keeper holds the lock `hosts/ID.lock`. A lock that nobody
//! holds belongs to a host whose keeper was killed, and whoever boots next removes that host.

use crate::error::IoContext;
use crate::place;
use crate::{Error, Result};
use rustix::fs::FlockOperation;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

const CLEANUP: &str = include_str!("cleanup.sh");

/// A host's name and the two places that it occupies on the machine.
#[derive(Clone, Debug)]
pub(crate) struct Site {
    pub(crate) id: String,
    pub(crate) scratch: PathBuf,
    pub(crate) cgroup: PathBuf,
}

impl Site {
    pub(crate) fn named(id: &str) -> Result<Self> {
        Ok(Self {
            id: id.to_owned(),
            scratch: place::hosts().join(id),
            cgroup: place::cgroup2()?.join(id),
        })
    }

    /// Beside the scratch directory, so that it exists before and after it.
    fn lock_path(&self) -> PathBuf {
        let mut name = self.scratch.clone().into_os_string();
        name.push(".lock");
        name.into()
    }

    pub(crate) fn is_persistent(&self) -> bool {
        self.scratch.join("persistent").exists()
    }

    pub(crate) fn is_populated(&self) -> bool {
        std::fs::read_to_string(self.cgroup.join("cgroup.events"))
            .is_ok_and(|events| events.lines().any(|line| line == "populated 1"))
    }

    /// Claims the name, makes the scratch directory, and starts the keeper unless the host is to outlive this process.
    pub(crate) fn claim(&self, persistent: bool) -> Result<Option<Child>> {
        let hosts = place::hosts();
        std::fs::create_dir_all(&hosts).doing("create", &hosts)?;
        let _alone = lock(&hosts.join(".lock"))?;
        reap(&hosts)?;
        let lock_path = self.lock_path();
        let held = lock(&lock_path)?;
        let keeper = if persistent { None } else { Some(self.cleanup("wait", held.into())?) };
        for name in ["upper/etc", "work", "root", "data", "dev"] {
            let dir = self.scratch.join(name);
            std::fs::create_dir_all(&dir).doing("create", &dir)?;
        }
        // These become directories of the host, whatever this process's umask is.
        for name in ["upper", "upper/etc", "data"] {
            let dir = self.scratch.join(name);
            std::fs::set_permissions(&dir, PermissionsExt::from_mode(0o755))
                .doing("chmod", &dir)?;
        }
        // A number that nobody else has at this time: this host's machine id and boot-to-boot identity.
        let uuid = std::fs::read_to_string("/proc/sys/kernel/random/uuid")
            .doing("read", "/proc/sys/kernel/random/uuid")?;
        self.write("upper/etc/machine-id", &uuid.replace('-', ""))?;
        if persistent {
            self.write("persistent", "")?;
        }
        self.device("fuse", 10, 229)?;
        self.device("tun", 10, 200)?;
        Ok(keeper)
    }

    fn write(&self, name: &str, text: &str) -> Result<()> {
        let path = self.scratch.join(name);
        std::fs::write(&path, text).doing("write", &path)
    }

    /// A device node that every user of the host may open, as udev leaves these two on a real one.
    fn device(&self, name: &str, major: u32, minor: u32) -> Result<()> {
        let path = self.scratch.join("dev").join(name);
        let made = rustix::fs::mknodat(
            rustix::fs::CWD,
            &path,
            rustix::fs::FileType::CharacterDevice,
            rustix::fs::Mode::from_raw_mode(0o666),
            rustix::fs::makedev(major, minor),
        );
        match made {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(errno) => return Err(std::io::Error::from(errno)).doing("make device", &path),
        }
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o666)).doing("chmod", &path)
    }

    /// Starts the script that removes the host: at once (`now`), or when its standard input ends (`wait`). It is in a session
    /// of its own, so that a signal to this process's group does not reach it. `lock` is kept open for as long as it runs.
    fn cleanup(&self, when: &str, lock: Stdio) -> Result<Child> {
        Command::new("setsid")
            .args(["bash", "-c", CLEANUP, "hostler-testhost-keeper", &self.id])
            .arg(&self.scratch)
            .arg(&self.cgroup)
            .arg(when)
            .current_dir("/")
            .stdin(if when == "wait" { Stdio::piped() } else { Stdio::null() })
            .stdout(lock)
            .stderr(Stdio::null())
            .spawn()
            .map_err(|source| Error::Spawn { program: "setsid bash".into(), source })
    }

    /// Removes the host now.
    pub(crate) fn remove(&self) -> Result<()> {
        finish(&self.id, self.cleanup("now", Stdio::null())?)
    }

    /// Kills every process of the host, as a power cut would, and empties its cgroup for the next boot.
    pub(crate) fn kill_all(&self) -> Result<()> {
        let kill = self.cgroup.join("cgroup.kill");
        if kill.exists() {
            std::fs::write(&kill, "1").doing("write", &kill)?;
        }
        crate::wait_for(
            &format!("the processes of {} to end", self.id),
            std::time::Duration::from_secs(20),
            || {
                if self.is_populated() {
                    return Ok(crate::Look::NotYet("some are left".into()));
                }
                Ok(crate::Look::Done(()))
            },
        )?;
        remove_cgroups(&self.cgroup)
    }
}

/// Waits for a cleanup to end.
pub(crate) fn finish(id: &str, mut cleanup: Child) -> Result<()> {
    drop(cleanup.stdin.take());
    let status = cleanup
        .wait()
        .map_err(|source| Error::Spawn { program: "the host's keeper".into(), source })?;
    if status.success() {
        return Ok(());
    }
    Err(Error::Command {
        what: format!("removing host {id}"),
        status,
        stdout: String::new(),
        stderr: "some of its processes, files or cgroups are left".into(),
    })
}

/// Removes a tree of empty cgroups, children first.
fn remove_cgroups(cgroup: &Path) -> Result<()> {
    let Ok(entries) = std::fs::read_dir(cgroup) else { return Ok(()) };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_cgroups(&entry.path())?;
        }
    }
    std::fs::remove_dir(cgroup).doing("remove cgroup", cgroup)
}

/// Opens a lock file and waits for its lock, which lasts as long as the file is open.
pub(crate) fn lock(path: &Path) -> Result<File> {
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .doing("open", path)?;
    rustix::fs::flock(&file, FlockOperation::LockExclusive)
        .map_err(std::io::Error::from)
        .doing("lock", path)?;
    Ok(file)
}

/// Removes hosts whose keeper is dead. The caller holds the lock over all hosts.
fn reap(hosts: &Path) -> Result<()> {
    for entry in std::fs::read_dir(hosts).doing("list", hosts)?.flatten() {
        let path = entry.path();
        let name = entry.file_name();
        let Some(id) = name.to_str().and_then(|name| name.strip_suffix(".lock")) else { continue };
        if id.is_empty() {
            continue;
        }
        let site = Site::named(id)?;
        if site.is_persistent() {
            continue;
        }
        if let Some(_held) = unheld(&path)? {
            eprintln!("test host: removing {id}, whose test was killed");
            site.remove()?;
        }
    }
    Ok(())
}

/// The lock at `path`, taken, where nobody holds it. None as well where the file is gone: a keeper that ends on its own removes it
/// at any time after it was listed, and has removed its host by then.
fn unheld(path: &Path) -> Result<Option<File>> {
    let file = match OpenOptions::new().write(true).open(path) {
        Err(gone) if gone.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        opened => opened.doing("open", path)?,
    };
    Ok(rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok().then_some(file))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_unheld_only_where_it_is_there_and_free() {
        let path = std::env::temp_dir().join(format!("testhost-lock-{}", std::process::id()));
        assert!(unheld(&path).unwrap().is_none(), "its keeper removed it since it was listed");
        let held = lock(&path).unwrap();
        assert!(unheld(&path).unwrap().is_none(), "its keeper lives");
        drop(held);
        assert!(unheld(&path).unwrap().is_some(), "its keeper was killed");
        std::fs::remove_file(&path).unwrap();
    }
}
