//! Doing things inside a host. Owner: the test. A command enters all of the host's namespaces and runs in the cgroup of its PID
//! 1, so it ends with the host; a user's command runs in a transient unit of that user's own manager, as after a login.

use crate::error::IoContext;
use crate::package::{Format, package};
use crate::wait::{Look, wait_for};
use crate::{Error, Host, Result};
use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

/// What a command gave.
#[derive(Debug)]
pub struct Run {
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Run {
    /// The standard output of a command that succeeded, or an error with all that it said.
    pub fn success(self, what: &str) -> Result<String> {
        if self.status.success() {
            return Ok(self.stdout);
        }
        let Run { status, stdout, stderr } = self;
        Err(Error::Command { what: what.to_owned(), status, stdout, stderr })
    }
}

/// `$0`: the cgroup to join; the rest: the command.
const ENTER: &str = r#"echo $$ >"$0" && exec nsenter "$@""#;

/// `$0`: the user; the rest: the command. Not `systemd-run -p User=`: rootless podman works in a user manager only.
const AS_USER: &str = r#"run=/run/user/$(id -u "$0")
exec runuser -u "$0" -- env "XDG_RUNTIME_DIR=$run" "DBUS_SESSION_BUS_ADDRESS=unix:path=$run/bus" \
  systemd-run --user --quiet --pipe --wait --collect -- "$@""#;

impl Host {
    /// A command as root in the host, ready for more arguments and for its standard streams.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("bash");
        command
            .args(["-c", ENTER])
            .arg(self.cgroup().join("payload/init.scope/cgroup.procs"))
            .args(["--all", "--target", &self.leader().to_string(), "--", program])
            .env_clear()
            .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .env("HOME", "/root")
            .env("LANG", "C.UTF-8")
            .env("SYSTEMD_PAGER", "")
            .current_dir("/");
        command
    }

    /// A command as a user of the host, in that user's own manager (which must run: see `loginctl enable-linger`).
    pub fn user_command(&self, user: &str, program: &str) -> Command {
        let mut command = self.command("sh");
        command.args(["-c", AS_USER, user, program]);
        command
    }

    /// Runs a shell script as root; its output, or an error if it fails.
    pub fn root(&self, script: &str) -> Result<String> {
        self.try_root(script)?.success(script)
    }

    /// Runs a shell script as root; how it ended and what it said.
    pub fn try_root(&self, script: &str) -> Result<Run> {
        output(self.command("sh").args(["-c", script]), script)
    }

    /// Runs a shell script as a user; its output, or an error if it fails.
    pub fn user(&self, user: &str, script: &str) -> Result<String> {
        self.try_user(user, script)?.success(script)
    }

    /// Runs a shell script as a user; how it ended and what it said.
    pub fn try_user(&self, user: &str, script: &str) -> Result<Run> {
        output(self.user_command(user, "sh").args(["-c", script]), script)
    }

    /// Writes a file (root, 0644) with its missing parents.
    pub fn write_file(&self, path: &str, contents: &str) -> Result<()> {
        let mut child = self
            .command("install")
            .args(["-D", "-m", "0644", "/dev/stdin", path])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|source| Error::Spawn { program: "install".into(), source })?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(contents.as_bytes()).doing("write", path)?;
        }
        let ended = child.wait_with_output().doing("write", path)?;
        run_of(ended).success(&format!("writing {path}")).map(drop)
    }

    /// Copies a file or a directory of the machine, owned by root, into a directory of the host, which is made if missing.
    pub fn copy_in(&self, source: &Path, into: &str) -> Result<()> {
        let name = source.file_name().unwrap_or_default();
        let parent = source.parent().unwrap_or(Path::new("/"));
        self.unpack(parent, name.as_ref(), into)
    }

    /// Sends `name` below `from` as an archive and unpacks it in the host: unlike a write through `/proc/PID/root`, symlinks of
    /// the host lead where they lead inside it.
    fn unpack(&self, from: &Path, name: &Path, into: &str) -> Result<()> {
        let spawned = |source| Error::Spawn { program: "tar".into(), source };
        let mut packing = Command::new("tar")
            .args(["--create", "--owner=0", "--group=0", "--dereference", "--directory"])
            .arg(from)
            .arg(name)
            .stdout(Stdio::piped())
            .spawn()
            .map_err(spawned)?;
        let stream = packing.stdout.take().map_or_else(Stdio::null, Stdio::from);
        let script = r#"mkdir -p "$0" && exec tar --extract --no-overwrite-dir --directory "$0""#;
        let unpacked = output(self.command("sh").args(["-c", script, into]).stdin(stream), "tar")?;
        packing.wait().map_err(spawned)?;
        unpacked.success(&format!("copying {} into {into}", from.join(name).display())).map(drop)
    }

    /// Installs the Debian package of what is built in `bindir` and of the checkout, as `dpkg --install` does: with its scripts.
    pub fn install(&self, bindir: &Path) -> Result<()> {
        let package = package(bindir, Format::Deb, "0.0.1")?;
        let stream = File::open(&package).doing("open", &package)?;
        // Its writes need not survive a crash of the machine.
        let script = "cat >/tmp/hostler.deb && \
             DEBIAN_FRONTEND=noninteractive dpkg --force-unsafe-io --install /tmp/hostler.deb && rm /tmp/hostler.deb";
        output(self.command("sh").args(["-c", script]).stdin(stream), "dpkg --install")?
            .success("dpkg --install hostler")
            .map(drop)
    }

    /// Loads an image archive into the service user's podman.
    pub fn load_image(&self, archive: &Path) -> Result<()> {
        let stream = File::open(archive).doing("open", archive)?;
        let mut command = self.user_command("hostler", "podman");
        let loaded = output(command.args(["load", "--quiet"]).stdin(stream), "podman load")?;
        loaded.success(&format!("podman load < {}", archive.display())).map(drop)
    }

    /// All that a unit of the system or of a user manager, and its manager about it, logged since the boot.
    pub fn journal(&self, unit: &str) -> Result<String> {
        self.root(&format!(
            "journalctl --sync; journalctl -b --no-pager -o short-monotonic \
             _SYSTEMD_UNIT={unit} + UNIT={unit} + _SYSTEMD_USER_UNIT={unit} + USER_UNIT={unit}"
        ))
    }

    /// Waits until a unit's journal has a text; returns the journal.
    pub fn wait_journal(&self, unit: &str, text: &str, limit: Duration) -> Result<String> {
        wait_for(&format!("{text:?} in the journal of {unit}"), limit, || {
            let journal = self.journal(unit)?;
            Ok(if journal.contains(text) { Look::Done(journal) } else { Look::NotYet(journal) })
        })
    }

    /// Waits until a system unit's `ActiveState` is `state`.
    pub fn wait_unit(&self, unit: &str, state: &str, limit: Duration) -> Result<()> {
        wait_for(&format!("{unit} to be {state}"), limit, || {
            let seen =
                self.root(&format!("systemctl show --property=ActiveState --value {unit}"))?;
            Ok(if seen.trim() == state { Look::Done(()) } else { Look::NotYet(seen) })
        })
    }
}

fn run_of(output: std::process::Output) -> Run {
    Run {
        status: output.status,
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

fn output(command: &mut Command, what: &str) -> Result<Run> {
    let ended =
        command.output().map_err(|source| Error::Spawn { program: what.to_owned(), source })?;
    Ok(run_of(ended))
}
