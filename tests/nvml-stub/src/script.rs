//! `devices.toml`: what the machine's driver and devices are to look like.
//!
//! Owner: the test, or the person, who plays the world. Unknown keys are errors, so a typo cannot
//! switch a fault off. [`Script::save`] renames a complete file into place: a reader sees the old
//! world or the new one.

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::{Size, StateDir};

/// The whole machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Script {
    /// The driver's version, as `nvmlSystemGetDriverVersion` gives it.
    pub driver: String,
    /// The library's version, as `nvmlSystemGetNVMLVersion` gives it.
    pub nvml: String,
    /// CUDA's version × 1000, as `nvmlSystemGetCudaDriverVersion` gives it (12.8 is 12080).
    pub cuda: i32,
    /// What `nvmlInit_v2` answers.
    pub init: Code,
    /// How long `nvmlInit_v2` hangs before it answers, in milliseconds.
    pub init_hang_ms: u64,
    /// What every call after a good `nvmlInit_v2` answers, instead of its result.
    pub fault: Code,
    /// How long every call hangs before it answers, in milliseconds.
    pub hang_ms: u64,
    /// The devices, in NVML's order.
    #[serde(rename = "gpu", skip_serializing_if = "Vec::is_empty")]
    pub gpus: Vec<Gpu>,
}

impl Default for Script {
    fn default() -> Self {
        Self {
            driver: "580.65.06".into(),
            nvml: "13.580.65.06".into(),
            cuda: 13_000,
            init: Code::Ok,
            init_hang_ms: 0,
            fault: Code::Ok,
            hang_ms: 0,
            gpus: Vec::new(),
        }
    }
}

/// MIG devices that one device can be divided into.
pub const MIG_SLOTS: usize = 7;

/// One device. Memory adds up as NVML's second version has it: total = reserved + used + free.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gpu {
    /// Its UUID, `GPU-…`, at most 80 characters.
    pub uuid: String,
    /// Its product name.
    #[serde(default = "stub_name")]
    pub name: String,
    /// Its whole memory.
    pub total: Size,
    /// Memory that the driver keeps for itself.
    #[serde(default)]
    pub reserved: Size,
    /// Memory in use that no listed process accounts for.
    #[serde(default)]
    pub foreign: Size,
    /// How long a dead claim's memory stays in use, in milliseconds.
    #[serde(default)]
    pub release_lag_ms: u64,
    /// How long every call about this device hangs, in milliseconds.
    #[serde(default)]
    pub hang_ms: u64,
    /// How long the first call about it after an `nvmlInit_v2` hangs, in milliseconds: without persistence mode the driver prepares a
    /// device when the first program asks for it.
    #[serde(default)]
    pub wake_ms: u64,
    /// What is wrong with it.
    #[serde(default)]
    pub fault: GpuFault,
    /// What the process lists say about memory.
    #[serde(default)]
    pub process_memory: ProcessMemory,
    /// MIG: absent = the device has none, else whether it is on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mig: Option<bool>,
    /// The MIG devices that it is divided into, `MIG-…`; there only while MIG is on. At most [`MIG_SLOTS`]; their own
    /// `mig` and `mig_devices` mean nothing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mig_devices: Vec<Gpu>,
    /// Degrees Celsius.
    #[serde(default = "stub_temperature")]
    pub temperature_c: u32,
    /// Milliwatts.
    #[serde(default = "stub_power")]
    pub power_mw: u32,
    /// Percent of time in which a kernel ran.
    #[serde(default)]
    pub utilization_percent: u32,
    /// Compute capability, major and minor.
    #[serde(default = "stub_capability")]
    pub compute_capability: [i32; 2],
    /// Processes that exist only on paper; their bytes count as used.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub processes: Vec<Process>,
}

fn stub_name() -> String {
    "NVIDIA Stub".into()
}

fn stub_temperature() -> u32 {
    40
}

fn stub_power() -> u32 {
    50_000
}

fn stub_capability() -> [i32; 2] {
    [9, 0]
}

impl Gpu {
    /// In MIG mode: no process can have memory of the device itself, only of its MIG devices.
    #[must_use]
    pub fn in_mig_mode(&self) -> bool {
        self.mig == Some(true)
    }

    /// Its MIG devices, while there are any.
    #[must_use]
    pub fn slices(&self) -> &[Self] {
        if self.in_mig_mode() { &self.mig_devices } else { &[] }
    }

    /// A healthy, empty device of `total` bytes.
    pub fn new(uuid: impl Into<String>, total: u64) -> Self {
        Self {
            uuid: uuid.into(),
            name: stub_name(),
            total: Size(total),
            reserved: Size(0),
            foreign: Size(0),
            release_lag_ms: 0,
            hang_ms: 0,
            wake_ms: 0,
            fault: GpuFault::None,
            process_memory: ProcessMemory::Known,
            mig: None,
            mig_devices: Vec::new(),
            temperature_c: stub_temperature(),
            power_mw: stub_power(),
            utilization_percent: 0,
            compute_capability: stub_capability(),
            processes: Vec::new(),
        }
    }
}

/// A process on paper.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Process {
    /// The PID that the reader is told, untranslated.
    pub pid: u32,
    /// Its memory.
    pub bytes: Size,
    /// Which of the two lists it is in.
    #[serde(default)]
    pub kind: Kind,
}

/// Which process list.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// `nvmlDeviceGetComputeRunningProcesses`.
    #[default]
    Compute,
    /// `nvmlDeviceGetGraphicsRunningProcesses`.
    Graphics,
}

/// What is wrong with a device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GpuFault {
    /// Nothing.
    #[default]
    None,
    /// Fallen off the bus: every call about it, its handle included, answers `GPU_IS_LOST`, and so does the search for any UUID.
    Lost,
    /// The same as newer drivers tell it: there is no handle of it, for an `UNKNOWN` reason.
    Unknown,
    /// Total, used and free are all 0.
    ZeroMemory,
    /// Memory information answers `NOT_SUPPORTED` (unified-memory boards).
    MemoryNotSupported,
    /// Memory information answers `UNKNOWN`.
    MemoryUnknown,
    /// The process lists answer `NO_PERMISSION`.
    ProcessesNoPermission,
    /// The process lists answer `NOT_SUPPORTED`.
    ProcessesNotSupported,
}

/// What the process lists say about memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProcessMemory {
    /// The true bytes.
    #[default]
    Known,
    /// `NVML_VALUE_NOT_AVAILABLE` for every process.
    NotAvailable,
}

/// An NVML return code.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Code {
    /// 0
    #[default]
    Ok,
    /// 4
    NoPermission,
    /// 9
    DriverNotLoaded,
    /// 10
    Timeout,
    /// 15
    GpuIsLost,
    /// 18
    LibRmVersionMismatch,
    /// 20
    Memory,
    /// 999
    Unknown,
    /// Any other number, written `{ number = 26 }`.
    #[serde(untagged)]
    Other {
        /// The code itself.
        number: u32,
    },
}

impl Code {
    /// The number in `nvml.h`.
    #[must_use]
    pub fn number(self) -> u32 {
        match self {
            Self::Ok => 0,
            Self::NoPermission => 4,
            Self::DriverNotLoaded => 9,
            Self::Timeout => 10,
            Self::GpuIsLost => 15,
            Self::LibRmVersionMismatch => 18,
            Self::Memory => 20,
            Self::Unknown => 999,
            Self::Other { number } => number,
        }
    }
}

/// Why a script cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum ScriptError {
    /// The file cannot be read or written.
    #[error("cannot access {path}: {source}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is no script.
    #[error("{path} is no device script: {source}")]
    Parse {
        /// Which file.
        path: PathBuf,
        /// What is wrong, with the line.
        source: Box<toml::de::Error>,
    },
    /// The script cannot be written as TOML.
    #[error("cannot write the script as TOML: {0}")]
    Encode(#[from] toml::ser::Error),
}

impl Script {
    /// A healthy machine with these devices.
    #[must_use]
    pub fn with_gpus(gpus: Vec<Gpu>) -> Self {
        Self { gpus, ..Self::default() }
    }

    /// Reads the script of a state directory.
    ///
    /// # Errors
    /// When there is none, or it is malformed.
    pub fn load(dir: &StateDir) -> Result<Self, ScriptError> {
        let path = dir.devices();
        let text = std::fs::read_to_string(&path)
            .map_err(|source| ScriptError::Io { path: path.clone(), source })?;
        toml::from_str(&text).map_err(|e| ScriptError::Parse { path, source: Box::new(e) })
    }

    /// Writes the script atomically, and creates the directory and its `claims` table where they
    /// are missing, open to every user: engines run under other (subordinate) user IDs.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn save(&self, dir: &StateDir) -> Result<(), ScriptError> {
        let text = toml::to_string(self)?;
        let at = |path: PathBuf| move |source| ScriptError::Io { path, source };
        if !dir.path().exists() {
            std::fs::create_dir_all(dir.path()).map_err(at(dir.path().into()))?;
            open_to_all(dir.path(), 0o777).map_err(at(dir.path().into()))?;
        }
        crate::claims::create(dir).map_err(at(dir.claims()))?;
        let target = dir.devices();
        let temporary = dir.path().join(format!(".devices.{}.tmp", unique()));
        let write = || -> std::io::Result<()> {
            let mut file = std::fs::File::create(&temporary)?;
            file.write_all(text.as_bytes())?;
            drop(file);
            open_to_all(&temporary, 0o644)?;
            std::fs::rename(&temporary, &target)
        };
        write().map_err(at(target))
    }

    /// Reads, changes and saves the script in one go.
    ///
    /// # Errors
    /// As [`Script::load`] and [`Script::save`].
    pub fn edit(dir: &StateDir, change: impl FnOnce(&mut Self)) -> Result<(), ScriptError> {
        let mut script = Self::load(dir)?;
        change(&mut script);
        script.save(dir)
    }

    /// The device or MIG device with this UUID.
    #[must_use]
    pub fn gpu(&self, uuid: &str) -> Option<&Gpu> {
        self.find(uuid).map(|(_, gpu)| gpu)
    }

    /// The same, if processes can have memory of it: not of a whole device in MIG mode.
    pub(crate) fn usable(&self, uuid: &str) -> Option<&Gpu> {
        self.gpu(uuid).filter(|gpu| !gpu.in_mig_mode())
    }

    /// The same, with the position of the device that it is or is a part of.
    pub(crate) fn find(&self, uuid: &str) -> Option<(usize, &Gpu)> {
        let mut all = self.gpus.iter().enumerate().flat_map(|(index, gpu)| {
            std::iter::once(gpu).chain(gpu.slices()).map(move |device| (index, device))
        });
        all.find(|(_, device)| device.uuid == uuid)
    }

    /// The device or MIG device with this UUID, to change.
    pub fn gpu_mut(&mut self, uuid: &str) -> Option<&mut Gpu> {
        let (index, _) = self.find(uuid)?;
        let gpu = self.gpus.get_mut(index)?;
        if gpu.uuid == uuid {
            return Some(gpu);
        }
        gpu.mig_devices.iter_mut().find(|slice| slice.uuid == uuid)
    }
}

pub(crate) fn open_to_all(path: &std::path::Path, mode: u32) -> std::io::Result<()> {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
}

fn unique() -> String {
    static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    format!("{}.{number}", std::process::id())
}

#[cfg(test)]
mod tests;
