//! One NVML reading: the blocking work of [`super::Nvml`], on its own thread.
//!
//! Purpose: turn what NVML says about the configured devices into a [`GpuSnapshot`] or a [`GpuError`]. Owner: the NVML
//! thread. Invariants: each device is looked for at NVML's indices ([`handles`]), and what was last found at an index tells which one it
//! is that does not answer there; a device that has been read once can later be *lost* but never makes the others unreadable; before that,
//! what is wrong with it is a start-up error with its own cause, unless it is lost: then the others are read all the same.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nvml_wrapper::Nvml as Library;
use nvml_wrapper::error::NvmlError;

use super::cause::{Trouble, device_trouble, init_error};
use super::partial::Partial;
use super::settle::{about, settle, silence};
use super::turns::{Order, Turns};
use super::{FIRST, handles, vitals};
use crate::supervisor::ports::GpuError;
use crate::types::{GpuId, GpuReading, GpuSnapshot, GpuVitals};

/// What the dynamic linker is asked for when the configuration names no library.
const LIBRARY: &str = "libnvidia-ml.so.1";

/// State of the NVML thread.
pub(super) struct Reader {
    library: Option<PathBuf>,
    /// From the configuration; empty: every device there is.
    wanted: Vec<GpuId>,
    /// Who takes longer hangs.
    limit: Duration,
    /// For a caller who cannot wait.
    partial: Arc<Partial>,
    /// Loaded and initialised at the first reading that gets so far.
    nvml: Option<Library>,
    /// Every device there is, once all of them have told their UUID; unused where `wanted` is not empty. Found once, so
    /// that a device which disappears later is lost and not forgotten.
    all: Vec<GpuId>,
    /// Devices that were read at least once.
    seen: BTreeSet<GpuId>,
    /// What was found at each of NVML's indices when it last answered.
    slots: BTreeMap<u32, Vec<GpuId>>,
    /// Indices of which the driver knew nothing when it was last asked.
    doubted: BTreeSet<u32>,
    turns: Turns,
}

/// A reading, and how its devices do.
pub(super) type Reading = (GpuSnapshot, Vec<GpuVitals>);

/// What a reading has found so far.
#[derive(Default)]
struct Round {
    /// With NVML's index of each.
    devices: Vec<(u32, GpuReading, Option<GpuVitals>)>,
    /// All that told their UUID, wanted or not.
    present: Vec<GpuId>,
    /// Devices that could not be read.
    failed: Vec<(GpuId, GpuError)>,
    /// Indices that did not even tell what is there.
    silent: Vec<(u32, GpuError)>,
}

impl Reader {
    pub(super) fn new(
        library: Option<PathBuf>,
        wanted: Vec<GpuId>,
        limit: Duration,
        partial: Arc<Partial>,
    ) -> Self {
        Self {
            library,
            wanted,
            limit,
            partial,
            nvml: None,
            all: Vec::new(),
            seen: BTreeSet::new(),
            slots: BTreeMap::new(),
            doubted: BTreeSet::new(),
            turns: Turns::default(),
        }
    }

    /// Reads all devices once.
    pub(super) fn read(&mut self) -> Result<Reading, GpuError> {
        // Taken out, and put back only when NVML as a whole is sound: otherwise it is shut down here, and the next
        // reading begins with `nvmlInit`.
        let nvml = match self.nvml.take() {
            Some(nvml) => nvml,
            None => init(self.library.as_deref())?,
        };
        let read = self.read_all(&nvml);
        self.partial.clear();
        match read {
            Ok(reading) => {
                self.nvml = Some(nvml);
                Ok(reading)
            }
            Err(Trouble::Device(error)) => {
                self.nvml = Some(nvml);
                Err(error)
            }
            Err(Trouble::Backend(error)) => Err(error),
        }
    }

    fn read_all(&mut self, nvml: &Library) -> Result<Reading, Trouble> {
        let nowhere = GpuId::new("all devices");
        let count = nvml
            .device_count()
            .map_err(|error| device_trouble(nvml, &nowhere, "nvmlDeviceGetCount_v2", &error))?;
        // Only footprint keys need it: a driver that will not tell is one of its own, and no reason to serve nobody.
        let driver = nvml.sys_driver_version().unwrap_or_default();
        self.partial.begin(self.awaited(count), driver.clone());
        // Without persistence mode the driver prepares each device when it is first asked, which takes seconds.
        let limit = if self.seen.is_empty() { self.limit.max(FIRST) } else { self.limit };
        let mut round = Round::default();
        let [homes, others] = self.indices(count);
        // Of those that nobody is known to want, none has to be asked.
        for (indices, must) in [(homes, true), (others, self.wanted.is_empty())] {
            if self.is_complete(&round) {
                break;
            }
            let order = self.turns.order(indices.into_iter(), must, Instant::now());
            let Order { ask, resting } = order;
            for (index, took) in resting {
                let took = Duration::from_secs(took.as_secs().max(1));
                self.is_silent(index, GpuError::Timeout(took), &mut round);
            }
            for index in ask {
                if self.is_complete(&round) {
                    break;
                }
                let begun = Instant::now();
                self.visit(nvml, index, begun + limit, &mut round)?;
                self.turns.asked(index, begun.elapsed(), limit, Instant::now());
            }
        }
        self.finish(round, driver)
    }

    /// NVML's indices, first those where wanted devices were last found: the others are asked only where these do not have them all, and
    /// none of these rests because one that nobody wants could be asked.
    fn indices(&self, count: u32) -> [Vec<u32>; 2] {
        let known = |index: &u32| {
            let there = self.slots.get(index);
            there.is_some_and(|ids| ids.iter().any(|id| self.wanted.contains(id)))
        };
        let (homes, others) = (0..count).partition(known);
        [homes, others]
    }

    fn is_complete(&self, round: &Round) -> bool {
        !self.wanted.is_empty() && self.wanted.iter().all(|id| round.present.contains(id))
    }

    /// What this reading is to find, as far as is known before it.
    fn awaited(&self, count: u32) -> Vec<GpuId> {
        if !self.targets().is_empty() {
            return self.targets().to_vec();
        }
        (0..count).flat_map(|index| self.names(index)).collect()
    }

    /// What is at an index as far as is known.
    fn names(&self, index: u32) -> Vec<GpuId> {
        let known = self.slots.get(&index).filter(|ids| !ids.is_empty());
        known.cloned().unwrap_or_else(|| vec![GpuId::at_index(index)])
    }

    /// The devices that are to be read; empty: it is not known yet which there are.
    fn targets(&self) -> &[GpuId] {
        if self.wanted.is_empty() { &self.all } else { &self.wanted }
    }

    fn wants(&self, id: &GpuId) -> bool {
        self.targets().is_empty() || self.targets().contains(id)
    }

    /// Reads what is at an index. What hangs once hangs in each call: after `end` nothing more is asked of it.
    fn visit(
        &mut self,
        nvml: &Library,
        index: u32,
        end: Instant,
        round: &mut Round,
    ) -> Result<(), Trouble> {
        let found = match handles::at(nvml, index, &self.wanted) {
            Ok(found) => found,
            Err(failed) => {
                let error = self.why_silent(nvml, index, &failed)?;
                self.is_silent(index, error, round);
                return Ok(());
            }
        };
        self.doubted.remove(&index);
        let unnamed = GpuId::at_index(index);
        self.slots.insert(index, found.iter().map(|(id, _)| id.clone()).collect());
        if Instant::now() >= end {
            self.is_silent(index, GpuError::Timeout(self.limit), round);
            return Ok(());
        }
        for (id, device) in found {
            round.present.push(id.clone());
            if !self.wants(&id) {
                continue;
            }
            match handles::read(nvml, &id, &device) {
                Ok(reading) => {
                    self.partial.add(&unnamed, &reading);
                    let vitals = (Instant::now() < end).then(|| vitals::of(&id, &device));
                    round.devices.push((index, reading, vitals));
                    self.seen.insert(id);
                }
                // What was never read is a mistake in the set-up; only a device that fell off the bus never is.
                Err(Trouble::Device(error))
                    if self.seen.contains(&id) || matches!(error, GpuError::Lost(..)) =>
                {
                    self.partial.silent(&id, silence(&error));
                    round.failed.push((id, error));
                }
                Err(trouble) => return Err(trouble),
            }
        }
        Ok(())
    }

    /// Newer drivers do not call a device lost that fell off the bus: they do not know it. Said once it may be any trouble of theirs.
    fn why_silent(
        &mut self,
        nvml: &Library,
        index: u32,
        (call, error): &handles::Failed,
    ) -> Result<GpuError, Trouble> {
        let unknown = matches!(error, NvmlError::Unknown);
        let before = self.doubted.remove(&index);
        if unknown {
            self.doubted.insert(index);
        }
        let name = self.names(index).swap_remove(0);
        if unknown && before {
            let why =
                "the driver does not know it any more: it fell off the bus or is inaccessible";
            return Ok(GpuError::Lost(name, why.to_owned()));
        }
        match device_trouble(nvml, &name, call, error) {
            Trouble::Device(error) => Ok(error),
            backend @ Trouble::Backend(_) => Err(backend),
        }
    }

    fn is_silent(&self, index: u32, error: GpuError, round: &mut Round) {
        for id in self.names(index) {
            if self.wants(&id) {
                self.partial.silent(&id, silence(&error));
            }
        }
        round.silent.push((index, error));
    }

    /// Whom each silence is of, and what became of those that nobody found.
    fn finish(&mut self, round: Round, driver: String) -> Result<Reading, Trouble> {
        let Round { mut devices, present, mut failed, silent } = round;
        let unsettled = self.targets().is_empty();
        if unsettled && silent.is_empty() {
            if present.is_empty() {
                return Err(Trouble::Device(GpuError::NoDevices));
            }
            self.all.clone_from(&present);
        }
        let mut missing: Vec<GpuId> = if unsettled {
            self.seen.iter().filter(|id| !present.contains(id)).cloned().collect()
        } else {
            self.targets().iter().filter(|id| !present.contains(id)).cloned().collect()
        };
        // Those of which nobody ever learned what they are.
        let mut strangers = Vec::new();
        for (index, error) in silent {
            let Some(ids) = self.slots.get(&index) else {
                strangers.push((GpuId::at_index(index), error));
                continue;
            };
            let here = |id: &&GpuId| !present.contains(id) && (unsettled || missing.contains(id));
            let here: Vec<GpuId> = ids.iter().filter(here).cloned().collect();
            missing.retain(|id| !here.contains(id));
            failed.extend(here.into_iter().map(|id| about(id, error.clone())));
        }
        if unsettled {
            failed.append(&mut strangers);
        }
        let (gone, never): (Vec<GpuId>, Vec<GpuId>) =
            missing.into_iter().partition(|id| self.seen.contains(id));
        let not_found = |wanted: GpuId| GpuError::NotFound { wanted, present: present.clone() };
        // What is configured and was never seen may be a device that does not tell its name. There cannot be more of them.
        if let Some(wanted) = never.get(strangers.len()) {
            return Err(Trouble::Device(not_found(wanted.clone())));
        }
        failed.extend(never.into_iter().zip(strangers).map(|(id, (_, error))| about(id, error)));
        failed.extend(gone.into_iter().map(|id| (id.clone(), not_found(id))));
        let place = |id: &GpuId| self.wanted.iter().position(|wanted| wanted == id);
        devices.sort_by_key(|(index, reading, _)| (place(&reading.id), *index));
        let (devices, vitals): (_, Vec<_>) =
            devices.into_iter().map(|(_, read, vitals)| (read, vitals)).unzip();
        let snapshot = settle(devices, failed, &self.seen, driver)?;
        Ok((snapshot, vitals.into_iter().flatten().collect()))
    }
}

/// Loads the library and initialises it.
fn init(library: Option<&Path>) -> Result<Library, GpuError> {
    let path = library.unwrap_or(Path::new(LIBRARY));
    Library::builder().lib_path(path.as_os_str()).init().map_err(|error| init_error(path, &error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_that_cannot_be_loaded_is_named() {
        let path = Path::new("/nonexistent/libnvidia-ml.so.1");
        let Err(GpuError::LibraryMissing(text)) = init(Some(path)) else { panic!() };
        assert!(text.contains("/nonexistent/libnvidia-ml.so.1"), "{text}");
        assert!(!text.contains("libloading"), "{text}");
    }
}
