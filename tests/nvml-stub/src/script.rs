//! What the stub plays.

use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// The whole stage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Script {
    /// What `nvmlInit_v2` returns; 0 is success, 9 "driver not loaded", 18 "library and driver differ".
    pub init: u32,
    /// Every call but `nvmlInit_v2` takes so long, in milliseconds; read anew while it waits, so a hang can be ended.
    pub hang_ms: u64,
    /// The driver's version.
    pub driver: String,
    /// In the order of their indices.
    pub devices: Vec<Device>,
}

/// One device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Device {
    /// `GPU-…`.
    pub uuid: String,
    /// Product name.
    pub name: String,
    /// Bytes of memory, with what is reserved.
    pub total: u64,
    /// Bytes that driver and firmware keep.
    pub reserved: u64,
    /// Bytes in use by nobody in particular; version 2 `used` is this plus claims plus what lags plus `processes`.
    pub used: u64,
    /// What every call about this device returns; 15 is "lost".
    pub fault: u32,
    /// What calls about its memory return; 3 is "not supported".
    pub memory_fault: u32,
    /// The driver does not attribute memory to processes.
    pub no_process_memory: bool,
    /// Bytes of a claim that ended stay in use for so many milliseconds.
    pub release_lag_ms: u64,
    /// NVML does not list it at all.
    pub absent: bool,
    /// Processes beside those with claims.
    pub processes: Vec<Process>,
}

/// One process on a device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Process {
    /// As the reader sees it.
    pub pid: u32,
    /// `None`: the driver does not tell.
    pub bytes: Option<u64>,
    /// In the list of graphics, not compute, processes.
    #[serde(default)]
    pub graphics: bool,
}

impl Default for Script {
    fn default() -> Self {
        Self { init: 0, hang_ms: 0, driver: "570.00.00".to_owned(), devices: Vec::new() }
    }
}

impl Default for Device {
    fn default() -> Self {
        Self {
            uuid: "GPU-00000000-0000-0000-0000-000000000000".to_owned(),
            name: "NVIDIA Stub 24GB".to_owned(),
            total: 24 << 30,
            reserved: 0,
            used: 0,
            fault: 0,
            memory_fault: 0,
            no_process_memory: false,
            release_lag_ms: 0,
            absent: false,
            processes: Vec::new(),
        }
    }
}

impl Script {
    /// Reads `script.json`.
    ///
    /// # Errors
    /// If it cannot be read or is no script.
    pub fn read(dir: &Path) -> io::Result<Self> {
        let text = std::fs::read(dir.join("script.json"))?;
        serde_json::from_slice(&text).map_err(io::Error::other)
    }

    /// Replaces `script.json` in one step, so that no reader sees half of it, and makes sure that there is a file for claims which
    /// everybody may write.
    ///
    /// # Errors
    /// If the directory cannot be written.
    pub fn write(&self, dir: &Path) -> io::Result<()> {
        crate::claims::open(dir, true)?;
        let new = dir.join(format!("script.json.{}", std::process::id()));
        std::fs::write(&new, serde_json::to_vec_pretty(self).map_err(io::Error::other)?)?;
        std::fs::rename(new, dir.join("script.json"))
    }
}
