//! The claims table: device memory held by living processes.
//!
//! `claims` is a header of 4,096 bytes (its first byte is the table's lock) and 256 slots of 128
//! bytes (module `record`). A claimant takes a POSIX write lock on its slot's range and writes the
//! slot; the lock ends with the process, however it ends. A reader asks the kernel who holds the
//! range and so learns the PID in its own namespace.
//!
//! When a claim ends in good order, the claimant notes the time in the slot. When its process was
//! killed, the first reader or claimant that sees the slot unlocked notes the time instead; a reader
//! without write access keeps that time to itself. From then on `release_lag_ms` runs. So after a
//! kill the lag is counted from the *first look*, not from the death: poll, or look once after it.
//!
//! Invariants: the table's file is never closed once opened (closing drops the process's locks);
//! slots change only under the table's lock; a slot with a time of freeing is dead for good.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::lock::{self, Holder};
use crate::record::{LEN, Record};
use crate::script::{GpuFault, open_to_all};
use crate::{Script, ScriptError, StateDir, ledger};

const HEADER: u64 = 4096;
const SLOTS: usize = 256;
const CLAIMANT_PATIENCE: Duration = Duration::from_secs(5);
const READER_PATIENCE: Duration = Duration::from_millis(20);

/// Why memory was not had.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    /// It does not fit; the attempt is in the directory's `violations`.
    #[error("out of memory on {uuid}: wanted {wanted} bytes, free {free} of {total}")]
    OutOfMemory {
        /// Which device.
        uuid: String,
        /// Bytes asked for.
        wanted: u64,
        /// Bytes free at that moment, the claim's own old bytes included.
        free: u64,
        /// Bytes of the device.
        total: u64,
    },
    /// The script has no such device, or one that is in MIG mode.
    #[error("no device {0} to be used in the script")]
    NoSuchGpu(String),
    /// The script says the device is lost.
    #[error("device {0} is lost")]
    GpuLost(String),
    /// All slots hold living claims.
    #[error("the claims table is full: {SLOTS} claims live")]
    Full,
    /// The table's lock was not to be had.
    #[error("the claims table stayed locked for {} s: a claimant is stopped", CLAIMANT_PATIENCE.as_secs())]
    Busy,
    /// The script cannot be read.
    #[error(transparent)]
    Script(#[from] ScriptError),
    /// The table cannot be read, locked or written.
    #[error("claims table {path}: {source}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Memory of one device, held until the value is dropped or the process ends.
#[derive(Debug)]
pub struct Claim {
    dir: StateDir,
    uuid: String,
    slot: usize,
    bytes: u64,
    taken_ms: u64,
}

impl Claim {
    /// Takes `bytes` of the device `uuid`.
    ///
    /// # Errors
    /// [`ClaimError::OutOfMemory`] when it does not fit next to everything else on the device.
    pub fn take(dir: &StateDir, uuid: &str, bytes: u64) -> Result<Self, ClaimError> {
        let script = Script::load(dir)?;
        create(dir).map_err(at(dir))?;
        let mut table = Table::open(dir).map_err(at(dir))?;
        table.exclusively(dir, |table| {
            let seen = table.scan().map_err(at(dir))?;
            check_fits(dir, &script, &seen, uuid, bytes, 0)?;
            let now = now_ms();
            let slot = table.free_slot(&script, now).map_err(at(dir))?.ok_or(ClaimError::Full)?;
            if !lock::try_lock(&table.file, offset(slot), LEN as u64).map_err(at(dir))? {
                return Err(ClaimError::Busy);
            }
            let claim =
                Self { dir: dir.clone(), uuid: uuid.to_owned(), slot, bytes, taken_ms: now };
            table.held.insert(slot);
            table.write(slot, &claim.record(0)).map_err(at(dir))?;
            Ok(claim)
        })
    }

    /// Changes the claim to `bytes`; on failure it stays as it was.
    ///
    /// # Errors
    /// [`ClaimError::OutOfMemory`] when the growth does not fit.
    pub fn resize(&mut self, bytes: u64) -> Result<(), ClaimError> {
        let dir = self.dir.clone();
        let script = Script::load(&dir)?;
        let mut table = Table::open(&dir).map_err(at(&dir))?;
        table.exclusively(&dir, |table| {
            if bytes > self.bytes {
                let seen = table.scan().map_err(at(&dir))?;
                check_fits(&dir, &script, &seen, &self.uuid, bytes, self.bytes)?;
            }
            let old = std::mem::replace(&mut self.bytes, bytes);
            table.write(self.slot, &self.record(0)).map_err(|source| {
                self.bytes = old;
                at(&dir)(source)
            })
        })
    }

    /// Bytes held.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The device's UUID.
    #[must_use]
    pub fn uuid(&self) -> &str {
        &self.uuid
    }

    fn record(&self, freed_ms: u64) -> Record {
        Record {
            uuid: self.uuid.clone(),
            bytes: self.bytes,
            taken_ms: self.taken_ms,
            freed_ms,
            pid: std::process::id(),
            pid_namespace: pid_namespace(),
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let dir = self.dir.clone();
        let Ok(mut table) = Table::open(&dir) else { return };
        let freed = self.record(now_ms());
        let released = table.exclusively(&dir, |table| {
            table.write(self.slot, &freed).map_err(at(&dir))?;
            lock::unlock(&table.file, offset(self.slot), LEN as u64).map_err(at(&dir))
        });
        // Without the table's lock the slot cannot be marked; give up its lock, and the next
        // reader marks it as it would after a kill.
        if released.is_err() {
            let _unlocked = lock::unlock(&table.file, offset(self.slot), LEN as u64);
        }
        table.held.remove(&self.slot);
    }
}

fn check_fits(
    dir: &StateDir,
    script: &Script,
    seen: &[Seen],
    uuid: &str,
    wanted: u64,
    own: u64,
) -> Result<(), ClaimError> {
    let gpu = script.usable(uuid).ok_or_else(|| ClaimError::NoSuchGpu(uuid.to_owned()))?;
    if matches!(gpu.fault, GpuFault::Lost | GpuFault::Unknown) {
        return Err(ClaimError::GpuLost(uuid.to_owned()));
    }
    let usage = ledger::of(gpu, seen, now_ms());
    let free = usage.free().saturating_add(own);
    if wanted <= free {
        return Ok(());
    }
    let total = gpu.total.0;
    let line = format!(
        "t_ms={} gpu={uuid} wanted={wanted} free={free} total={total} pid={}\n",
        now_ms(),
        std::process::id()
    );
    let path = dir.violations();
    let noted = OpenOptions::new().append(true).create(true).mode(0o666).open(&path);
    noted
        .and_then(|mut file| {
            let _only_the_owner_may = open_to_all(&path, 0o666);
            file.write_all(line.as_bytes())
        })
        .map_err(|source| ClaimError::Io { path, source })?;
    Err(ClaimError::OutOfMemory { uuid: uuid.to_owned(), wanted, free, total })
}

fn at(dir: &StateDir) -> impl Fn(io::Error) -> ClaimError {
    let path = dir.claims();
    move |source| ClaimError::Io { path: path.clone(), source }
}

/// Makes sure that the table exists and that every user may claim.
pub(crate) fn create(dir: &StateDir) -> io::Result<()> {
    let path = dir.claims();
    match OpenOptions::new().write(true).create_new(true).mode(0o666).open(&path) {
        // Closing this descriptor is harmless: the file is new, nobody here has a lock on it.
        Ok(_) => open_to_all(&path, 0o666),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        // A container may see the directory read-only; opening the table will tell.
        Err(_) if path.exists() => Ok(()),
        Err(error) => Err(error),
    }
}

/// A slot with a record in it, and what became of its claimant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    pub record: Record,
    pub state: SeenState,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SeenState {
    /// The claimant lives, under this PID in our namespace.
    Alive(u32),
    /// It has been gone since this time.
    Gone(u64),
}

/// The open table of one directory in this process.
pub(crate) struct Table {
    file: File,
    inode: (u64, u64),
    writable: bool,
    /// Whether this process holds the table's lock: POSIX locks do not nest.
    locked: bool,
    held: std::collections::BTreeSet<usize>,
    first_seen_gone: BTreeMap<(usize, u64), u64>,
}

static TABLES: Mutex<BTreeMap<StateDir, &'static Mutex<Table>>> = Mutex::new(BTreeMap::new());

impl Table {
    /// The process's table for `dir`; a new one when the file was replaced.
    pub(crate) fn open(dir: &StateDir) -> io::Result<MutexGuard<'static, Self>> {
        let mut tables = TABLES.lock().unwrap_or_else(PoisonError::into_inner);
        let metadata = std::fs::metadata(dir.claims())?;
        let inode = (metadata.dev(), metadata.ino());
        if let Some(known) = tables.get(dir) {
            let table = known.lock().unwrap_or_else(PoisonError::into_inner);
            if table.inode == inode {
                return Ok(table);
            }
        }
        let both = OpenOptions::new().read(true).write(true).open(dir.claims());
        let writable = both.is_ok();
        let file = both.or_else(|_| File::open(dir.claims()))?;
        // Leaked on purpose: see the module's invariants.
        let table: &'static Mutex<Self> = Box::leak(Box::new(Mutex::new(Self {
            file,
            inode,
            writable,
            locked: false,
            held: std::collections::BTreeSet::new(),
            first_seen_gone: BTreeMap::new(),
        })));
        tables.insert(dir.clone(), table);
        Ok(table.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn exclusively<T>(
        &mut self,
        dir: &StateDir,
        work: impl FnOnce(&mut Self) -> Result<T, ClaimError>,
    ) -> Result<T, ClaimError> {
        if !lock::lock_within(&self.file, 0, 1, CLAIMANT_PATIENCE).map_err(at(dir))? {
            return Err(ClaimError::Busy);
        }
        self.locked = true;
        let outcome = work(self);
        self.locked = false;
        lock::unlock(&self.file, 0, 1).map_err(at(dir))?;
        outcome
    }

    fn read(&self) -> io::Result<Vec<Option<Record>>> {
        let mut bytes = vec![0; SLOTS * LEN];
        let mut filled = 0;
        while filled < bytes.len() {
            match self.file.read_at(&mut bytes[filled..], HEADER + filled as u64)? {
                0 => break,
                n => filled += n,
            }
        }
        Ok(bytes.chunks_exact(LEN).map(Record::decode).collect())
    }

    fn write(&self, slot: usize, record: &Record) -> io::Result<()> {
        self.file.write_all_at(&record.encode(), offset(slot))
    }

    /// Everything in the table, the dead noted as dead.
    pub(crate) fn scan(&mut self) -> io::Result<Vec<Seen>> {
        let mut seen = Vec::new();
        for (slot, record) in self.read()?.into_iter().enumerate() {
            let Some(record) = record else { continue };
            let state = match self.alive(slot, &record)? {
                Some(pid) => SeenState::Alive(pid),
                None if record.freed_ms != 0 => SeenState::Gone(record.freed_ms),
                None => SeenState::Gone(self.note_gone(slot, &record)?),
            };
            seen.push(Seen { record, state });
        }
        Ok(seen)
    }

    fn alive(&self, slot: usize, record: &Record) -> io::Result<Option<u32>> {
        if record.freed_ms != 0 {
            return Ok(None);
        }
        // One's own locks are invisible, so one knows one's own claims by name.
        if record.pid == std::process::id() && record.pid_namespace == pid_namespace() {
            return Ok(Some(record.pid));
        }
        match lock::holder(&self.file, offset(slot), LEN as u64)? {
            Holder::Free => Ok(None),
            Holder::Process(pid) => Ok(Some(pid)),
        }
    }

    /// Notes a killed claimant's end in the slot, or here when the slot cannot be written.
    fn note_gone(&mut self, slot: usize, record: &Record) -> io::Result<u64> {
        let now = now_ms();
        let known = *self.first_seen_gone.entry((slot, record.taken_ms)).or_insert(now);
        if !self.writable {
            return Ok(known);
        }
        if self.locked {
            return self.mark(slot, record, known);
        }
        if !lock::lock_within(&self.file, 0, 1, READER_PATIENCE)? {
            return Ok(known);
        }
        let marked = self.mark(slot, record, known);
        lock::unlock(&self.file, 0, 1)?;
        marked
    }

    /// Writes the time of freeing, unless the slot has changed since; under the table's lock.
    fn mark(&self, slot: usize, record: &Record, gone_ms: u64) -> io::Result<u64> {
        let mut bytes = [0; LEN];
        self.file.read_exact_at(&mut bytes, offset(slot))?;
        let current = Record::decode(&bytes);
        let unchanged = current.as_ref() == Some(record);
        if unchanged && self.alive(slot, record)?.is_none() {
            self.write(slot, &Record { freed_ms: gone_ms, ..record.clone() })?;
        }
        Ok(current.map_or(gone_ms, |r| if r.freed_ms == 0 { gone_ms } else { r.freed_ms }))
    }

    /// A slot that no living claim has and whose old memory is released.
    fn free_slot(&self, script: &Script, now: u64) -> io::Result<Option<usize>> {
        let mut oldest: Option<(u64, usize)> = None;
        for (slot, record) in self.read()?.into_iter().enumerate() {
            if self.held.contains(&slot) {
                continue;
            }
            let Some(record) = record else { return Ok(Some(slot)) };
            if record.freed_ms == 0 {
                continue;
            }
            let lag = script.gpu(&record.uuid).map_or(0, |gpu| gpu.release_lag_ms);
            if record.freed_ms.saturating_add(lag) <= now {
                return Ok(Some(slot));
            }
            let candidate = (record.freed_ms, slot);
            oldest = Some(oldest.map_or(candidate, |known| known.min(candidate)));
        }
        Ok(oldest.map(|(_, slot)| slot))
    }
}

fn offset(slot: usize) -> u64 {
    HEADER + (slot * LEN) as u64
}

/// Milliseconds of the machine's monotonic clock.
pub(crate) fn now_ms() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is a `timespec` to be filled; the clock exists on every Linux.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    u64::try_from(now.tv_sec * 1000 + now.tv_nsec / 1_000_000).unwrap_or(0)
}

fn pid_namespace() -> u64 {
    // Without /proc the number is 0 for all, which only matters to a process that reads its own
    // claims.
    std::fs::metadata("/proc/self/ns/pid").map_or(0, |metadata| metadata.ino())
}
