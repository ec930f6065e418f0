//! Processes under test: where they run, what they use. From `/proc` alone.

use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_setaffinity};

/// A process and its children, killed on drop.
pub struct Process {
    child: Child,
    /// Those that do the work.
    pids: Vec<u32>,
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(pid) = Pid::from_raw(i32::try_from(self.child.id()).unwrap_or(0)) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let until = Instant::now() + Duration::from_secs(2);
        while Instant::now() < until {
            if matches!(self.child.try_wait(), Ok(Some(_))) {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Pins the calling process, and what it starts, to one processor.
pub fn pin_self(cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu);
    sched_setaffinity(None, &set).context("pinning to a processor")
}

impl Process {
    /// Starts `command` on processor `cpu`; what it says goes to `said`.
    pub fn start(cpu: usize, command: &Command, said: Option<File>) -> Result<Self> {
        let mut pinned = Command::new("taskset");
        pinned.arg("-c").arg(cpu.to_string()).arg(command.get_program()).args(command.get_args());
        pinned.stdin(Stdio::null());
        if let Some(file) = said {
            pinned.stderr(file);
        }
        let child = pinned.spawn().with_context(|| format!("starting {command:?}"))?;
        let pids = vec![child.id()];
        Ok(Self { child, pids })
    }

    /// Waits until it listens, and takes its children in.
    pub async fn ready(&mut self, listens: impl AsyncFn() -> bool) -> Result<()> {
        let until = Instant::now() + Duration::from_secs(20);
        while !listens().await {
            if Instant::now() > until || self.child.try_wait()?.is_some() {
                bail!("a process did not come up");
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let parent = self.child.id();
        let path = format!("/proc/{parent}/task/{parent}/children");
        let children = std::fs::read_to_string(path).unwrap_or_default();
        self.pids = std::iter::once(parent)
            .chain(children.split_whitespace().filter_map(|p| p.parse().ok()))
            .collect();
        Ok(())
    }

    /// Time on a processor so far, in nanoseconds, of all threads.
    pub fn cpu_ns(&self) -> Result<u64> {
        self.time(|_| true)
    }

    /// The same, of the threads of this name.
    pub fn cpu_ns_of(&self, name: &str) -> Result<u64> {
        self.time(|of| of == name)
    }

    fn time(&self, counts: impl Fn(&str) -> bool) -> Result<u64> {
        let mut sum = 0;
        for pid in &self.pids {
            for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
                let task = task?.path();
                if !counts(std::fs::read_to_string(task.join("comm"))?.trim_end()) {
                    continue;
                }
                let stat = std::fs::read_to_string(task.join("schedstat"))?;
                let first = stat.split_whitespace().next().unwrap_or_default();
                sum += first.parse::<u64>().context("schedstat")?;
            }
        }
        Ok(sum)
    }

    /// Proportional set size, in bytes, of all its processes.
    pub fn pss(&self) -> Result<u64> {
        self.sum("smaps_rollup", "Pss:")
    }

    /// Resident set size, in bytes.
    pub fn rss(&self) -> Result<u64> {
        self.sum("status", "VmRSS:")
    }

    /// The largest resident set size since [`Self::forget_peak`], in bytes.
    pub fn peak(&self) -> Result<u64> {
        self.sum("status", "VmHWM:")
    }

    /// Begins a new measurement of the peak.
    pub fn forget_peak(&self) -> Result<()> {
        for pid in &self.pids {
            std::fs::write(format!("/proc/{pid}/clear_refs"), "5")?;
        }
        Ok(())
    }

    fn sum(&self, file: &str, key: &str) -> Result<u64> {
        let mut sum = 0;
        for pid in &self.pids {
            let path = format!("/proc/{pid}/{file}");
            let text = std::fs::read_to_string(Path::new(&path)).context(path)?;
            let line = text.lines().find(|l| l.starts_with(key)).context("a line of /proc")?;
            let kib = line.split_whitespace().nth(1).unwrap_or_default();
            sum += kib.parse::<u64>()? << 10;
        }
        Ok(sum)
    }
}
