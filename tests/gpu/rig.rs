//! The stub library in the place of NVIDIA's, and its script.

use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use hostler::adapters::gpu::Nvml;
use hostler::supervisor::ports::Gpus as _;
use hostler::types::{Bytes, GpuId, GpuReading, GpuSnapshot, Known};
use nvidia_ml::{Claim, Gpu, Script, Size, StateDir};
use tokio::sync::{Mutex, MutexGuard};

const UUIDS: [&str; 2] =
    ["GPU-00000000-0000-0000-0000-000000000000", "GPU-11111111-1111-1111-1111-111111111111"];

/// GPU `index` of the first script.
pub fn gpu(index: usize) -> GpuId {
    GpuId::new(UUIDS[index])
}

/// Where the script and the library lie, for the whole process: the stub finds its script by the environment.
fn stage() -> &'static (tempfile::TempDir, StateDir) {
    static STAGE: OnceLock<(tempfile::TempDir, StateDir)> = OnceLock::new();
    STAGE.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::new(dir.path().join("state"));
        // SAFETY: under the once-lock, before any library that reads the environment by itself is loaded; all else here
        // goes through the standard library, which has a lock for it.
        unsafe { std::env::set_var(nvidia_ml::ENV, state.path()) };
        std::fs::copy(built(), dir.path().join("libnvidia-ml.so.1")).unwrap();
        (dir, state)
    })
}

/// The stub as cargo built it for this test: a dev-dependency's dynamic library lies beside the test's executable.
fn built() -> PathBuf {
    let library = std::env::current_exe().unwrap().with_file_name("libnvidia_ml.so");
    assert!(library.is_file(), "no {}; run \"cargo build -p nvml-stub\"", library.display());
    library
}

/// The stage, for one test at a time.
pub struct Rig {
    _turn: MutexGuard<'static, ()>,
    state: &'static StateDir,
}

impl Rig {
    /// Two GPUs of 24 GiB with 1 GiB reserved and nothing in use.
    pub async fn new() -> Self {
        static TURN: Mutex<()> = Mutex::const_new(());
        let rig = Self { _turn: TURN.lock().await, state: &stage().1 };
        rig.reset();
        rig
    }

    /// Back to the first script.
    pub fn reset(&self) {
        let gpus = UUIDS.map(|uuid| Gpu { reserved: Size(1 << 30), ..Gpu::new(uuid, 24 << 30) });
        Script::with_gpus(gpus.to_vec()).save(self.state).unwrap();
    }

    /// Changes the script; the stub follows it from its next call on.
    pub fn change(&self, change: impl FnOnce(&mut Script)) {
        Script::edit(self.state, change).unwrap();
    }

    pub fn library(&self) -> PathBuf {
        stage().0.path().join("libnvidia-ml.so.1")
    }

    /// The adapter for both GPUs.
    pub fn nvml(&self) -> Nvml {
        self.nvml_for(&[gpu(0), gpu(1)])
    }

    /// The adapter for some GPUs, with a deadline that no sound call comes near.
    pub fn nvml_for(&self, gpus: &[GpuId]) -> Nvml {
        Nvml::with_deadline(Some(self.library()), gpus.to_vec(), Duration::from_secs(20))
    }

    /// A process that holds memory of a GPU until it is killed. (Not this one: the stub asks the kernel who holds a lock,
    /// and the kernel does not report one's own.)
    pub fn claimant(&self, index: usize, bytes: u64) -> Claimant {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "rig::hold_a_claim", "--ignored", "--nocapture"])
            .env(CLAIM, format!("{} {bytes}", UUIDS[index]))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap().contains("held")), "the claim was refused");
        Claimant(child)
    }
}

/// A process with a claim; killed and waited for when dropped.
pub struct Claimant(Child);

impl Claimant {
    pub fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Claimant {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// For [`hold_a_claim`]: UUID and bytes.
const CLAIM: &str = "GPU_TEST_CLAIM";

#[test]
#[ignore = "no test: the process that Rig::claimant starts"]
fn hold_a_claim() {
    let Ok(wanted) = std::env::var(CLAIM) else { return };
    let (uuid, bytes) = wanted.split_once(' ').unwrap();
    let _claim = Claim::take(&StateDir::from_env(), uuid, bytes.parse().unwrap()).unwrap();
    println!("held");
    // Until killed, or the other end is gone.
    let _ = std::io::stdin().lock().read_line(&mut String::new());
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
