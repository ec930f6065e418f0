//! A host: boot, reboot, power cut, end. Owner: the test or the demo that booted it.

use crate::error::IoContext;
use crate::life::{self, Site};
use crate::wait::{Look, wait_for};
use crate::{Error, Result, place};
use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

const LAUNCH: &str = include_str!("launch.sh");
/// A boot takes about a second; two cores that are busy compiling may stretch that.
const BOOT_MAX: Duration = Duration::from_secs(120);
/// An orderly shutdown waits for containers that ignore SIGTERM (10 s) and for the daemon's drain.
const SHUTDOWN_MAX: Duration = Duration::from_secs(150);

/// Which Debian a host is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Suite {
    /// Debian 12: podman 4.3 with slirp4netns, systemd 252.
    Bookworm,
    /// Debian 13: podman 5.4 with passt, systemd 257.
    #[default]
    Trixie,
}

impl Suite {
    /// By its name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        [Self::Bookworm, Self::Trixie].into_iter().find(|suite| suite.name() == name)
    }

    /// As debootstrap calls it.
    fn name(self) -> &'static str {
        match self {
            Self::Bookworm => "bookworm",
            Self::Trixie => "trixie",
        }
    }
}

/// What a host is to have. Made by [`Host::builder`].
#[derive(Debug, Default)]
pub struct Builder {
    name: Option<String>,
    suite: Suite,
    binds: Vec<String>,
    install: Option<PathBuf>,
    images: Vec<PathBuf>,
}

impl Builder {
    /// Gives the host a name and lets it outlive this process; [`Host::attach`] finds it again, [`Host::stop`] ends it.
    #[must_use]
    pub fn persistent(mut self, name: &str) -> Self {
        self.name = Some(format!("hostler-{name}"));
        self
    }

    /// Another Debian than 13.
    #[must_use]
    pub fn suite(mut self, suite: Suite) -> Self {
        self.suite = suite;
        self
    }

    /// Shows a file or directory of the machine inside the host, read-only.
    #[must_use]
    pub fn bind_ro(mut self, source: &Path, target: &str) -> Self {
        self.binds.push(format!("--bind-ro={}:{target}", source.display()));
        self
    }

    /// Installs the Debian package of what is built in `bindir` and of the checkout once the host runs.
    #[must_use]
    pub fn install(mut self, bindir: &Path) -> Self {
        self.install = Some(bindir.to_owned());
        self
    }

    /// Loads an image archive into the service user's podman (needs [`Builder::install`]).
    #[must_use]
    pub fn image(mut self, archive: &Path) -> Self {
        self.images.push(archive.to_owned());
        self
    }

    /// Builds the shared root if the cache lacks it, boots, and installs what was asked for.
    pub fn boot(self) -> Result<Host> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        place::prerequisites()?;
        let root = PathBuf::from(place::script("tests/host/mkroot.sh", &[self.suite.name()])?);
        let persistent = self.name.is_some();
        let id = self.name.unwrap_or_else(|| {
            let count = COUNT.fetch_add(1, Ordering::Relaxed);
            format!("hostler-{}-{count}", std::process::id())
        });
        let site = Site::named(&id)?;
        if persistent {
            site.remove()?;
        }
        let keeper = site.claim(persistent)?;
        let mut host =
            Host { site, root, nspawn: None, keeper, binds: self.binds, leader: 0, persistent };
        host.start()?;
        if let Some(bindir) = self.install {
            host.install(&bindir)?;
        }
        for image in self.images {
            host.load_image(&image)?;
        }
        Ok(host)
    }
}

/// A running host. Dropping it ends it, unless it is persistent.
#[derive(Debug)]
pub struct Host {
    site: Site,
    root: PathBuf,
    nspawn: Option<Child>,
    keeper: Option<Child>,
    binds: Vec<String>,
    leader: u32,
    persistent: bool,
}

impl Host {
    /// A plain host: systemd, podman, no Hostler.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// Finds a persistent host that runs.
    pub fn attach(name: &str) -> Result<Option<Host>> {
        let site = Site::named(&format!("hostler-{name}"))?;
        if !site.is_populated() {
            return Ok(None);
        }
        let mut host = Host {
            site,
            root: PathBuf::new(),
            nspawn: None,
            keeper: None,
            binds: Vec::new(),
            leader: 0,
            persistent: true,
        };
        host.find_leader()?;
        Ok(Some(host))
    }

    /// Ends a persistent host and removes all that it had, or does nothing where there is none.
    pub fn stop(name: &str) -> Result<()> {
        Site::named(&format!("hostler-{name}"))?.remove()
    }

    /// The host's name on this machine: also its hostname, its cgroup and its scratch directory.
    pub fn id(&self) -> &str {
        &self.site.id
    }

    /// The host's cgroup on this machine. Everything that runs in the host is below it.
    pub fn cgroup(&self) -> &Path {
        &self.site.cgroup
    }

    /// The host's scratch directory on this machine.
    pub fn scratch(&self) -> &Path {
        &self.site.scratch
    }

    /// The PID on this machine of the host's PID 1.
    pub fn leader(&self) -> u32 {
        self.leader
    }

    /// A path of the host as seen from this machine: good for sockets and plain files. An absolute symlink on the way would
    /// lead back into the machine's own tree, so write with [`Host::write_file`] instead.
    pub fn path(&self, inside: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{inside}", self.leader))
    }

    /// Restarts the host in an orderly way, as `systemctl reboot` does, and waits until it is up again.
    pub fn reboot(&mut self) -> Result<()> {
        // The connection may break before systemctl has its answer; what counts is that the host goes down.
        let asked = self.try_root("systemctl reboot")?;
        let what = format!("{} to go down for its reboot", self.site.id);
        let nspawn = &mut self.nspawn;
        wait_for(&what, SHUTDOWN_MAX, || match nspawn {
            None => Ok(Look::Done(())),
            Some(child) => match child.try_wait() {
                Ok(Some(_)) => Ok(Look::Done(())),
                Ok(None) | Err(_) => Ok(Look::NotYet(asked.stderr.clone())),
            },
        })?;
        self.site.kill_all()?;
        self.start()
    }

    /// Kills everything in the host at one blow and boots it again from its disk. What processes had written is there, also
    /// what was not yet synced: the machine's page cache does not lose its power.
    pub fn power_cut(&mut self) -> Result<()> {
        self.site.kill_all()?;
        if let Some(mut nspawn) = self.nspawn.take() {
            nspawn.wait().map_err(|source| Error::Spawn { program: "nspawn".into(), source })?;
        }
        self.start()
    }

    fn start(&mut self) -> Result<()> {
        std::fs::create_dir_all(&self.site.cgroup).doing("create cgroup", &self.site.cgroup)?;
        let console = self.site.scratch.join("console.log");
        let log =
            OpenOptions::new().create(true).append(true).open(&console).doing("open", &console)?;
        let also = log.try_clone().doing("duplicate", &console)?;
        let child = Command::new("setsid")
            .args(["unshare", "--mount", "--propagation", "private", "bash", "-c", LAUNCH])
            .arg("hostler-testhost-launch")
            .arg(&self.site.id)
            .arg(&self.root)
            .arg(&self.site.scratch)
            .arg(&self.site.cgroup)
            .args(&self.binds)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(also)
            .spawn()
            .map_err(|source| Error::Spawn { program: "setsid unshare".into(), source })?;
        self.nspawn = Some(child);
        self.find_leader()?;
        let state = wait_for("the host to finish booting", BOOT_MAX, || {
            self.assert_alive()?;
            let run = self.try_root("systemctl is-system-running --wait")?;
            Ok(match run.stdout.trim() {
                "running" | "degraded" => Look::Done(run.stdout),
                other => Look::NotYet(format!("{other} {}", run.stderr)),
            })
        })?;
        if state.trim() == "degraded" {
            eprintln!("{}: booted with failed units:\n{}", self.id(), self.failed_units()?);
        }
        Ok(())
    }

    /// Units that failed, one a line; empty on a sound host.
    pub fn failed_units(&self) -> Result<String> {
        self.root("systemctl list-units --failed --plain --no-legend --no-pager")
    }

    fn find_leader(&mut self) -> Result<()> {
        let procs = self.site.cgroup.join("payload/init.scope/cgroup.procs");
        let leader = wait_for("the host's PID 1", BOOT_MAX, || {
            let pids = std::fs::read_to_string(&procs).unwrap_or_default();
            if let Some(pid) = pids.lines().next().and_then(|line| line.parse().ok()) {
                return Ok(Look::Done(pid));
            }
            self.assert_alive()?;
            Ok(Look::NotYet("systemd-nspawn runs, its payload does not".into()))
        })?;
        self.leader = leader;
        Ok(())
    }

    fn assert_alive(&mut self) -> Result<()> {
        let Some(child) = &mut self.nspawn else { return Ok(()) };
        match child.try_wait() {
            Ok(None) => Ok(()),
            Ok(Some(status)) => {
                Err(Error::Boot { why: format!("nspawn: {status}"), console: self.console() })
            }
            Err(error) => Err(Error::Boot { why: error.to_string(), console: self.console() }),
        }
    }

    /// The end of the console's log: what nspawn and the host's PID 1 said.
    fn console(&self) -> String {
        let text = std::fs::read(self.site.scratch.join("console.log")).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let from = text.lines().count().saturating_sub(40);
        text.lines().skip(from).collect::<Vec<_>>().join("\n")
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let journal = self.root("journalctl -b --no-pager -o short-monotonic -n 80");
            eprintln!(
                "--- the host's journal\n{}",
                journal.unwrap_or_else(|error| error.to_string())
            );
        }
        if self.persistent {
            return;
        }
        if let Some(keeper) = self.keeper.take()
            && let Err(error) = life::finish(&self.site.id, keeper)
        {
            eprintln!("test host: {error}");
        }
        if let Some(mut nspawn) = self.nspawn.take()
            && let Err(error) = nspawn.wait()
        {
            eprintln!("test host: wait for nspawn: {error}");
        }
    }
}
