//! A scripted library in the place of NVIDIA's, one copy with its own script for each test.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use hostler::adapters::gpu::Nvml;
use hostler::supervisor::ports::Gpus as _;
use hostler::types::{Bytes, GpuId, GpuReading, GpuSnapshot, Known};

/// What the library plays. Codes are NVML's.
#[derive(Clone, Debug, Default)]
pub struct Script {
    /// What initialisation returns.
    pub init: u32,
    /// Every call waits until this is false again.
    pub hang: bool,
    pub driver: &'static str,
    pub gpus: Vec<Gpu>,
    pub processes: Vec<Process>,
}

#[derive(Clone, Debug)]
pub struct Gpu {
    pub uuid: &'static str,
    pub total: u64,
    pub reserved: u64,
    pub used: u64,
    /// What reading its memory returns; 15 (lost) also spoils its look-up.
    pub fault: u32,
    /// NVML does not list it at all.
    pub absent: bool,
}

#[derive(Clone, Debug)]
pub struct Process {
    /// Position in [`Script::gpus`].
    pub gpu: usize,
    pub pid: u32,
    /// `None`: the driver does not say.
    pub bytes: Option<u64>,
    pub graphics: bool,
}

const UUIDS: [&str; 2] =
    ["GPU-00000000-0000-0000-0000-000000000000", "GPU-11111111-1111-1111-1111-111111111111"];

/// GPU `index` of the first script.
pub fn gpu(index: usize) -> GpuId {
    GpuId::new(UUIDS[index])
}

/// Builds the library once for all tests: a Rust toolchain for this target comes with a C compiler driver as its linker.
fn built() -> &'static PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let library = PathBuf::from(env!("CARGO_TARGET_TMPDIR"))
            .join(format!("libnvidia-ml-{}.so", std::process::id()));
        let status = Command::new("cc")
            .args(["-std=gnu11", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o"])
            .args([&library, &PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/gpu/nvml.c")])
            .status()
            .expect("cc builds the scripted NVML library; install gcc or clang");
        assert!(status.success(), "cc could not build tests/gpu/nvml.c: {status}");
        library
    })
}

/// A library with a script.
pub struct Rig {
    dir: tempfile::TempDir,
    pub script: Script,
}

impl Rig {
    /// Two GPUs of 24 GiB with 1 GiB reserved and nothing in use.
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::copy(built(), dir.path().join("libnvidia-ml.so.1")).unwrap();
        let gpus = UUIDS.map(|uuid| Gpu {
            uuid,
            total: 24 << 30,
            reserved: 1 << 30,
            used: 0,
            fault: 0,
            absent: false,
        });
        let script = Script { driver: "550.54.14", gpus: gpus.to_vec(), ..Script::default() };
        let mut rig = Self { dir, script };
        rig.change(|_| ());
        rig
    }

    pub fn library(&self) -> PathBuf {
        self.dir.path().join("libnvidia-ml.so.1")
    }

    /// Changes the script and makes the library follow it.
    pub fn change(&mut self, change: impl FnOnce(&mut Script)) {
        change(&mut self.script);
        let Script { init, hang, driver, gpus, processes } = &self.script;
        let mut text = format!("init {init}\ndriver {driver}\nhang {}\n", u8::from(*hang));
        for Gpu { uuid, total, reserved, used, fault, absent } in gpus {
            let present = u8::from(!absent);
            writeln!(text, "gpu {uuid} {total} {reserved} {used} {fault} {present}").unwrap();
        }
        for Process { gpu, pid, bytes, graphics } in processes {
            let bytes = bytes.unwrap_or(u64::MAX);
            let list = if *graphics { 'g' } else { 'c' };
            writeln!(text, "process {gpu} {pid} {bytes} {list}").unwrap();
        }
        // Renamed into place: a call must never see half a script.
        let path = self.dir.path().join("script");
        std::fs::write(path.with_extension("new"), text).unwrap();
        std::fs::rename(path.with_extension("new"), path).unwrap();
    }

    /// The adapter for both GPUs.
    pub fn nvml(&self) -> Nvml {
        self.nvml_for(&[gpu(0), gpu(1)])
    }

    /// The adapter for some GPUs, with a deadline that no sound call comes near.
    pub fn nvml_for(&self, gpus: &[GpuId]) -> Nvml {
        Nvml::with_deadline(Some(self.library()), gpus.to_vec(), Duration::from_secs(20))
    }
}

/// One device of a snapshot.
pub fn device(snapshot: &GpuSnapshot, index: usize) -> &GpuReading {
    let found = snapshot.devices.iter().find(|device| device.id == gpu(index));
    found.unwrap_or_else(|| panic!("{} is not in {snapshot:?}", gpu(index)))
}

/// What `pids` hold on a device.
pub async fn usage(nvml: &Nvml, pids: &[u32], index: usize) -> Known<Bytes> {
    let snapshot = Arc::new(nvml.snapshot().await.unwrap());
    nvml.usage(pids.to_vec(), vec![gpu(index)], snapshot).await[&gpu(index)]
}
