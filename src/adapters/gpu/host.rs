//! The host's own memory, for models on the CPU; also of boards whose GPU shares it.
//!
//! Purpose: the [`Gpus`] port on `/proc`. Owner: the composition root, by `[gpu] backend = "host"` only. Invariants: one
//! device, [`GpuId::host`]; a process's memory is its proportional set size or unknown, never its resident set, which
//! counts shared pages once per process; reads happen off the runtime's threads, end for the caller within the deadline,
//! and at most [`READERS`] of them can hang at a time.
//!
//! # What the numbers are
//! `total` is `MemTotal`, or the budget where one is set that is smaller. `used` is the part of `total` that the host
//! cannot give any more: `total − min(total, MemAvailable)`. Without a budget that is `MemTotal − MemAvailable`, all that
//! anybody uses. With one, it stays zero while the rest of the host leaves the budget alone, so that what a model is
//! given is never more than the kernel has, and what lies outside the budget is nobody's business. Usage counts the
//! pages of weights that are mapped from files, although the kernel could drop them: a model that has to read its
//! weights again for each token is of no use.
//!
//! Reading another user's `smaps_rollup` takes the right to trace it. The daemon has that over rootless containers of its
//! own user as long as it runs in the user namespace that podman runs in (no `PrivateUsers=`); by that right it also sees
//! them where `/proc` hides others (`ProtectProc=invisible`).

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use tokio::sync::Semaphore;

use crate::adapters::disk;
use crate::supervisor::ports::{GpuError, Gpus, PortFuture};
use crate::types::{Bytes, GpuId, GpuReading, GpuSnapshot, Known};

/// How many reads of one sort may be under way, and so how many threads a hanging `/proc` can hold.
pub const READERS: usize = 4;

/// The host backend.
pub struct Host {
    budget: Option<Bytes>,
    proc: PathBuf,
    deadline: Duration,
    // Two, because a process that hangs in the kernel can block its own file but not /proc/meminfo.
    memory: Arc<Semaphore>,
    processes: Arc<Semaphore>,
}

impl Host {
    /// A backend on `/proc`, with [`super::DEADLINE`] for each call. `budget`: what models may use together; `None`:
    /// all of the host's memory.
    #[must_use]
    pub fn new(budget: Option<Bytes>) -> Self {
        Self::with_proc(budget, "/proc".into(), super::DEADLINE)
    }

    /// Like [`Host::new`] with another `/proc` and deadline, for tests.
    #[must_use]
    pub fn with_proc(budget: Option<Bytes>, proc: PathBuf, deadline: Duration) -> Self {
        let readers = || Arc::new(Semaphore::new(READERS));
        Self { budget, proc, deadline, memory: readers(), processes: readers() }
    }

    /// Does a blocking read elsewhere; `None`: not within the deadline.
    async fn read<T: Send + 'static>(
        &self,
        gate: &Arc<Semaphore>,
        read: impl FnOnce(&Path) -> T + Send + 'static,
    ) -> Option<T> {
        let proc = self.proc.clone();
        disk::blocking(Arc::clone(gate), self.deadline, move || read(&proc)).await
    }
}

impl Gpus for Host {
    fn snapshot(&self) -> PortFuture<'_, Result<GpuSnapshot, GpuError>> {
        let budget = self.budget;
        Box::pin(async move {
            let answer = self.read(&self.memory, move |proc| reading(proc, budget)).await;
            let reading = answer.unwrap_or_else(|| {
                Err(format!("{} was not read within {:?}", self.proc.display(), self.deadline))
            });
            match reading {
                Ok(reading) => Ok(GpuSnapshot {
                    devices: vec![reading],
                    lost: Vec::new(),
                    driver: String::new(),
                }),
                Err(why) => Err(GpuError::HostMemory(why)),
            }
        })
    }

    /// `snapshot` is not used. Any other device than [`GpuId::host`] is unknown.
    fn usage(
        &self,
        pids: Vec<u32>,
        gpus: Vec<GpuId>,
        _snapshot: Arc<GpuSnapshot>,
    ) -> PortFuture<'_, BTreeMap<GpuId, Known<Bytes>>> {
        Box::pin(async move {
            let sum = self.read(&self.processes, move |proc| pss_sum(proc, &pids)).await;
            let sum = sum.unwrap_or(Known::Unknown);
            gpus.into_iter()
                .map(|gpu| {
                    let bytes = if gpu.is_host() { sum } else { Known::Unknown };
                    (gpu, bytes)
                })
                .collect()
        })
    }
}

/// The one device, as [the module](self) defines its numbers.
fn reading(proc: &Path, budget: Option<Bytes>) -> Result<GpuReading, String> {
    let path = proc.join("meminfo");
    let text = std::fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
    let field = |name: &str| {
        kib_field(&text, name).ok_or_else(|| format!("{}: no {name} in it", path.display()))
    };
    let (installed, available) = (field("MemTotal")?, field("MemAvailable")?);
    let total = budget.map_or(installed, |budget| budget.min(installed));
    if total == Bytes::ZERO {
        return Err(format!("{}: MemTotal is zero", path.display()));
    }
    Ok(GpuReading {
        id: GpuId::host(),
        name: cpu_name(&std::fs::read_to_string(proc.join("cpuinfo")).unwrap_or_default()),
        total,
        used: total.saturating_sub(available),
        processes: Vec::new(),
    })
}

/// Proportional set sizes of all `pids` together; unknown as soon as one of them is.
fn pss_sum(proc: &Path, pids: &[u32]) -> Known<Bytes> {
    let mut sum = Bytes::ZERO;
    for pid in pids {
        let path = proc.join(pid.to_string()).join("smaps_rollup");
        match std::fs::read_to_string(path) {
            Ok(text) => match kib_field(&text, "Pss") {
                Some(bytes) => sum += bytes,
                None => return Known::Unknown,
            },
            Err(error) if has_ended(&error) => {}
            Err(_) => return Known::Unknown,
        }
    }
    Known::Known(sum)
}

/// The process is gone, or a zombie without memory (`ESRCH` on reading).
fn has_ended(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
        || Errno::from_io_error(error).is_some_and(|errno| errno == Errno::SRCH)
}

/// The number of a line `NAME:   123 kB`.
fn kib_field(text: &str, name: &str) -> Option<Bytes> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim_end().parse().ok()?;
    Some(Bytes(kib.checked_mul(1024)?))
}

/// The processor's model; where `/proc/cpuinfo` has none (most Arm machines), its architecture.
fn cpu_name(cpuinfo: &str) -> String {
    let model = cpuinfo.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        let value = value.trim();
        (["model name", "cpu model", "Model"].contains(&name.trim()) && !value.is_empty())
            .then(|| value.to_owned())
    });
    model.unwrap_or_else(|| format!("{} CPU", std::env::consts::ARCH))
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command, Stdio};
    use std::time::Instant;

    use rustix::fs::{CWD, FileType, Mode, OFlags};

    use super::*;

    /// A `/proc` of our own making.
    fn fake(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        dir
    }

    fn host(budget: Option<Bytes>, proc: &Path) -> Host {
        Host::with_proc(budget, proc.to_owned(), super::super::DEADLINE)
    }

    const MEMINFO: &str = "MemTotal:       65536 kB\nMemFree:  1 kB\nMemAvailable:   40960 kB\n";

    async fn numbers(budget: Option<u64>) -> (u64, u64) {
        let dir = fake(&[("meminfo", MEMINFO), ("cpuinfo", "processor : 0\nmodel name : X 1\n")]);
        let snapshot = host(budget.map(Bytes::mib), dir.path()).snapshot().await.unwrap();
        let [device] = &snapshot.devices[..] else { panic!("{snapshot:?}") };
        assert_eq!((device.id.clone(), device.name.as_str()), (GpuId::host(), "X 1"));
        assert!(device.processes.is_empty());
        (device.total.0 >> 20, device.used.0 >> 20)
    }

    #[tokio::test]
    async fn the_budget_is_full_only_as_far_as_the_host_has_nothing_left() {
        // 64 MiB, of which 40 MiB are available.
        assert_eq!(numbers(None).await, (64, 24));
        assert_eq!(numbers(Some(32)).await, (32, 0));
        assert_eq!(numbers(Some(48)).await, (48, 8));
        assert_eq!(numbers(Some(1024)).await, (64, 24));
    }

    #[tokio::test]
    async fn memory_that_cannot_be_read_is_an_error_that_names_the_file() {
        for (files, wanted) in [
            (&[][..], "meminfo"),
            (&[("meminfo", "MemTotal: 5 kB\n")][..], "MemAvailable"),
            (&[("meminfo", "MemTotal: 0 kB\nMemAvailable: 0 kB\n")][..], "zero"),
            (&[("meminfo", "MemTotal: five kB\nMemAvailable: 0 kB\n")][..], "MemTotal"),
        ] {
            let dir = fake(files);
            let error = host(None, dir.path()).snapshot().await.unwrap_err();
            assert!(error.to_string().contains(wanted), "{error}");
        }
    }

    async fn usage(host: &Host, pids: &[u32]) -> Known<Bytes> {
        let gpus = vec![GpuId::host(), GpuId::new("GPU-1")];
        let usage = host.usage(pids.to_vec(), gpus, Arc::default()).await;
        assert_eq!(usage[&GpuId::new("GPU-1")], Known::Unknown);
        usage[&GpuId::host()]
    }

    #[tokio::test]
    async fn usage_is_the_proportional_set_size_of_what_still_lives() {
        let rollup = |pss: u32| {
            format!("1-2 ---p 0 0:0 0 [rollup]\nRss: 999 kB\nPss: {pss} kB\nPss_Anon: 1 kB\n")
        };
        let dir = fake(&[
            ("1/smaps_rollup", &rollup(4)),
            ("2/smaps_rollup", &rollup(8)),
            ("3/smaps_rollup", "Rss: 999 kB\n"),
        ]);
        let host = host(None, dir.path());
        assert_eq!(usage(&host, &[1, 2, 77]).await, Known::Known(Bytes(12 << 10)));
        assert_eq!(usage(&host, &[77]).await, Known::Known(Bytes::ZERO));
        assert_eq!(usage(&host, &[]).await, Known::Known(Bytes::ZERO));
        assert_eq!(
            usage(&host, &[1, 3]).await,
            Known::Unknown,
            "the resident set must not stand in"
        );
    }

    #[test]
    fn only_a_process_that_has_ended_counts_nothing() {
        assert!(has_ended(&Errno::SRCH.into()));
        assert!(has_ended(&Errno::NOENT.into()));
        assert!(!has_ended(&Errno::ACCESS.into()));
        assert!(!has_ended(&Errno::PERM.into()));
    }

    /// A shell with about 20 MiB of its own.
    fn hog() -> (Child, io::Lines<io::BufReader<std::process::ChildStdout>>) {
        use io::BufRead as _;
        let script = "a=$(head -c 20000000 /dev/zero | tr '\\0' x); echo ready; read x";
        let mut child = Command::new("sh")
            .args(["-c", script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = io::BufReader::new(child.stdout.take().unwrap()).lines();
        (child, lines)
    }

    #[tokio::test]
    async fn a_real_process_is_measured_and_a_zombie_is_nothing() {
        let (mut child, mut lines) = hog();
        assert_eq!(lines.next().unwrap().unwrap(), "ready");
        let host = Host::new(None);
        let Known::Known(bytes) = usage(&host, &[child.id()]).await else { panic!() };
        assert!(bytes > Bytes(20_000_000) && bytes < Bytes(200_000_000), "{bytes}");

        child.kill().unwrap();
        // Killed but not waited for: soon a zombie, whose file is there and cannot be read.
        let deadline = Instant::now() + Duration::from_secs(10);
        while usage(&host, &[child.id()]).await != Known::Known(Bytes::ZERO) {
            assert!(Instant::now() < deadline, "a zombie must come to count nothing");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        child.wait().unwrap();
        assert_eq!(usage(&host, &[child.id()]).await, Known::Known(Bytes::ZERO));
    }

    #[tokio::test]
    async fn this_machine_has_memory() {
        let snapshot = Host::new(None).snapshot().await.unwrap();
        let device = &snapshot.devices[0];
        assert!(device.total > Bytes::mib(64) && device.used < device.total, "{device:?}");
        assert!(!device.name.is_empty());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_read_that_hangs_ends_at_the_deadline_and_holds_its_place() {
        // A FIFO hangs whoever opens it, until somebody writes.
        let dir = fake(&[("meminfo", MEMINFO)]);
        std::fs::create_dir(dir.path().join("1")).unwrap();
        let fifo = dir.path().join("1/smaps_rollup");
        rustix::fs::mknodat(CWD, &fifo, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        let host = Host::with_proc(None, dir.path().to_owned(), Duration::from_millis(50));
        for _ in 0..READERS + 2 {
            assert_eq!(usage(&host, &[1]).await, Known::Unknown);
        }
        assert_eq!(host.processes.available_permits(), 0);
        assert!(host.snapshot().await.is_ok(), "a hanging process must not hide the total");
        // Lets the readers end, without which the runtime would wait for them for ever. Again and again, because one that
        // opens the FIFO late hangs anew; without waiting, because nobody may be there to read any more.
        let recovered = async {
            while host.processes.available_permits() < READERS {
                drop(rustix::fs::open(&fifo, OFlags::WRONLY | OFlags::NONBLOCK, Mode::empty()));
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), recovered).await.unwrap();
    }

    #[test]
    fn a_processor_has_a_name_everywhere() {
        assert_eq!(cpu_name("processor\t: 0\nmodel name\t: Some CPU @ 2GHz\n"), "Some CPU @ 2GHz");
        assert_eq!(cpu_name("CPU part : 0xd0c\n"), format!("{} CPU", std::env::consts::ARCH));
    }
}
