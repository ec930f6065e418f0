//! Memory that live processes hold.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::script::Device;

const SLOT: usize = 128;
const UUID: usize = 64;
const SLOTS: usize = 256;

/// Memory that this process holds on a device, until it is dropped or the process ends, however it ends.
///
/// POSIX locks belong to a process and a file: the file must not be opened and closed elsewhere in the same process, or
/// all its claims end.
#[derive(Debug)]
pub struct Claim {
    file: File,
    slot: usize,
    uuid: String,
}

/// A claim as a reader sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// Holder, in the reader's PID namespace; 0 if it cannot be seen from there.
    pub pid: u32,
    /// Of the device.
    pub uuid: String,
    /// Held.
    pub bytes: u64,
}

impl Claim {
    /// Takes memory. There is no check whether it is free: a stand-in engine asks the stub first, as a real one asks CUDA.
    ///
    /// # Errors
    /// If the directory's `claims` cannot be opened for writing, or all slots are taken.
    pub fn take(dir: &Path, gpu_uuid: &str, bytes: u64) -> io::Result<Self> {
        let file = open(dir, true)?;
        for slot in 0..SLOTS {
            if lock(&file, slot, libc::F_WRLCK)? {
                let claim = Self { file, slot, uuid: gpu_uuid.to_owned() };
                claim.resize(bytes)?;
                return Ok(claim);
            }
        }
        Err(io::Error::other("all slots for claims are taken"))
    }

    /// Changes how much is held.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn resize(&self, bytes: u64) -> io::Result<()> {
        let mut record = [0; SLOT];
        let uuid = self.uuid.as_bytes();
        let length = uuid.len().min(UUID);
        record[..length].copy_from_slice(&uuid[..length]);
        record[UUID..UUID + 8].copy_from_slice(&bytes.to_le_bytes());
        self.file.write_all_at(&record, (self.slot * SLOT) as u64)
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        // The lock goes with the file; the record of an unlocked slot means nothing.
        let _ = lock(&self.file, self.slot, libc::F_UNLCK);
    }
}

pub(crate) fn open(dir: &Path, write: bool) -> io::Result<File> {
    let path = dir.join("claims");
    if !write {
        return File::open(path);
    }
    let made = !path.exists();
    let file =
        OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path)?;
    if made {
        // Engines run as other users than whoever made the stage.
        file.set_permissions(std::fs::Permissions::from_mode(0o666))?;
    }
    Ok(file)
}

fn range(slot: usize, kind: libc::c_int) -> libc::flock {
    // SAFETY: a plain C struct of integers, for which zero is a value.
    let mut range: libc::flock = unsafe { std::mem::zeroed() };
    range.l_type = libc::c_short::try_from(kind).unwrap_or_default();
    range.l_start = (slot * SLOT) as libc::off_t;
    range.l_len = SLOT as libc::off_t;
    range
}

/// Sets a slot's lock. `false`: another process holds it.
fn lock(file: &File, slot: usize, kind: libc::c_int) -> io::Result<bool> {
    let range = range(slot, kind);
    // SAFETY: the descriptor is open and the pointer is to a live `flock`.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLK, &raw const range) } == 0 {
        return Ok(true);
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EAGAIN | libc::EACCES) => Ok(false),
        _ => Err(error),
    }
}

/// Who holds a slot, if anybody but this process does.
fn holder(file: &File, slot: usize) -> io::Result<Option<u32>> {
    let mut range = range(slot, libc::F_WRLCK);
    // SAFETY: the descriptor is open and the pointer is to a live `flock`.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETLK, &raw mut range) } != 0 {
        return Err(io::Error::last_os_error());
    }
    if libc::c_int::from(range.l_type) == libc::F_UNLCK {
        return Ok(None);
    }
    Ok(Some(u32::try_from(range.l_pid).unwrap_or(0)))
}

/// All live claims. None where there is no file.
pub(crate) fn held(dir: &Path) -> io::Result<BTreeMap<usize, Held>> {
    let file = match open(dir, false) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        Err(error) => return Err(error),
    };
    let slots = (file.metadata()?.len() as usize).div_ceil(SLOT).min(SLOTS);
    let mut all = BTreeMap::new();
    for slot in 0..slots {
        let Some(pid) = holder(&file, slot)? else { continue };
        let mut record = [0; SLOT];
        file.read_exact_at(&mut record, (slot * SLOT) as u64)?;
        let uuid = record[..UUID].split(|b| *b == 0).next().unwrap_or_default();
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&record[UUID..UUID + 8]);
        let uuid = String::from_utf8_lossy(uuid).into_owned();
        all.insert(slot, Held { pid, uuid, bytes: u64::from_le_bytes(bytes) });
    }
    Ok(all)
}

/// Claims that have ended, and when that was noticed.
struct Memory {
    last: BTreeMap<usize, Held>,
    ended: Vec<(Held, Instant)>,
}

static MEMORY: Mutex<Memory> = Mutex::new(Memory { last: BTreeMap::new(), ended: Vec::new() });

/// Bytes of ended claims on a device that its lag still keeps, given the live ones.
pub(crate) fn lagging(live: &BTreeMap<usize, Held>, device: &Device) -> u64 {
    let mut memory = MEMORY.lock().unwrap_or_else(PoisonError::into_inner);
    let last = std::mem::replace(&mut memory.last, live.clone());
    let now = Instant::now();
    for (slot, held) in last {
        if live.get(&slot).is_none_or(|l| l.pid != held.pid || l.uuid != held.uuid) {
            memory.ended.push((held, now));
        }
    }
    memory.ended.retain(|(_, at)| at.elapsed() < Duration::from_secs(3600));
    let lag = Duration::from_millis(device.release_lag_ms);
    let kept = memory.ended.iter().filter(|(h, at)| h.uuid == device.uuid && at.elapsed() < lag);
    kept.map(|(held, _)| held.bytes).sum()
}
