//! The ledger: per device, who holds how much.
//!
//! ```text
//!   reserve ──▶ Reserved ──confirm──▶ Confirmed ──release──▶ Releasing ──gone, given back──▶ (dropped)
//!                   └────────────────────release───────────────▲    │                            ▲
//!                                                                   └─deadline─▶ Quarantined ──given back
//!   Confirmed ──doze──▶ Dozing ──asleep, observed──▶ Asleep ──wake──▶ Reserved        (`asleep`)
//! ```
//! A hold is charged with the larger of what was promised and what was observed, from the plan until its release has been
//! *observed*: a reading that was begun after its processes were proven gone, in which the device no longer has memory in use
//! that nobody accounts for (`release`). Until then its devices are gated. After a deadline what is still missing is
//! quarantined: charged, but no longer in the way. Nor is one whose stops have failed for so long.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::types::{
    Bytes, GpuId, GpuProcess, GpuReading, GpuSnapshot, GpuStatus, InstanceId, Known, Moment,
    Placement, ProcessMemory, Silence,
};

/// What one instance holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hold {
    /// Its devices.
    pub gpus: Vec<GpuId>,
    /// Promised on each of them.
    pub promised: Bytes,
    /// Last observed on each of them; absent or unknown: not measured.
    pub observed: BTreeMap<GpuId, Known<Bytes>>,
    /// When the reading was begun that this was observed in.
    looked: Moment,
    /// Its processes at the last observation with any.
    pub pids: Vec<u32>,
    /// How far it is.
    pub stage: Stage,
    /// Since when its stops fail: nobody knows when its memory comes back.
    pub stuck: Option<Moment>,
    /// It serves its last requests, and leaves for another then.
    pub draining: bool,
    /// In use on its devices when its end was ordered.
    before: BTreeMap<GpuId, Bytes>,
    /// What of that was seen to be its: a driver that does not name its process any more may keep it all the same.
    held: BTreeMap<GpuId, Bytes>,
    /// Of one that is quarantined: what each of its devices still misses.
    missing: BTreeMap<GpuId, Bytes>,
}

/// How far a hold is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Promised; the engine is starting.
    Reserved,
    /// The engine is ready.
    Confirmed,
    /// The engine is being put to sleep. It gates its devices and is charged in full until what it keeps was observed.
    Dozing {
        /// When the engine said that it sleeps; `None`: not yet.
        slept: Option<Moment>,
        /// What it is expected to keep on each device.
        residual: Bytes,
    },
    /// The engine sleeps: charged with what it was observed to keep.
    Asleep,
    /// Being stopped; `gone`: when its last process was proven dead.
    Releasing {
        /// `None` while processes may live.
        gone: Option<Moment>,
    },
    /// Gone, and its memory was not given back in time on the devices that are left to it.
    Quarantined {
        /// Since when.
        since: Moment,
    },
}

/// How exactly releases are judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReleaseRule {
    /// Memory in use that nobody accounts for may grow by so much without being called a release that is late: drivers
    /// keep small amounts.
    pub slack: Bytes,
    /// From the end of the last process to the quarantine.
    pub deadline: Duration,
}

impl Default for ReleaseRule {
    fn default() -> Self {
        Self { slack: Bytes::mib(64), deadline: Duration::from_secs(30) }
    }
}

/// What one instance was seen to hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Its processes, as the host numbers them.
    pub pids: Vec<u32>,
    /// On each of its devices.
    pub bytes: BTreeMap<GpuId, Known<Bytes>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Device {
    reading: GpuReading,
    /// In use without anybody to account for it, when nothing of ours was being released.
    unexplained_at_rest: Bytes,
    /// It seems to be more beside memory that has been given up: since when, and the least that was seen since then.
    rising: Option<(Moment, Bytes)>,
    /// It did not answer at the last reading.
    lost: Option<Silence>,
    /// It lists no process, and did not say either what one of ours holds: an empty list does not mean that nobody holds anything. Never
    /// so where it has listed one: until an engine has its context an empty list is true there.
    blind: bool,
    /// It has listed processes.
    lists: bool,
}

/// Device memory and its holders.
#[derive(Clone, Debug)]
pub struct Ledger {
    headroom: Bytes,
    rule: ReleaseRule,
    devices: BTreeMap<GpuId, Device>,
    /// Devices that did not answer at the last reading, nor at any before.
    absent: Vec<(GpuId, Silence)>,
    /// Version of the driver at the last reading.
    driver: String,
    holds: BTreeMap<InstanceId, Hold>,
    /// When the last good reading was begun.
    taken: Moment,
    /// The last reading failed: numbers are stale and nothing new may be promised.
    stale: Option<String>,
}

impl Ledger {
    /// An empty ledger that keeps `headroom` free on each device; unknown until the first [`Ledger::observe`].
    #[must_use]
    pub fn new(headroom: Bytes, rule: ReleaseRule) -> Self {
        let stale = Some("device memory has not been measured yet".to_owned());
        let (devices, holds) = (BTreeMap::new(), BTreeMap::new());
        let (driver, taken) = (String::new(), Moment::START);
        let absent = Vec::new();
        Self { headroom, rule, devices, absent, driver, holds, taken, stale }
    }

    /// Promises memory to an instance that is about to start.
    pub fn reserve(&mut self, instance: InstanceId, placement: &Placement) {
        let hold = Hold {
            gpus: placement.gpus.clone(),
            promised: placement.need.bytes,
            observed: BTreeMap::new(),
            looked: Moment::START,
            pids: Vec::new(),
            stage: Stage::Reserved,
            stuck: None,
            draining: false,
            before: BTreeMap::new(),
            held: BTreeMap::new(),
            missing: BTreeMap::new(),
        };
        self.holds.insert(instance, hold);
    }

    /// The instance has nothing on its devices and will not have: what was promised to it is free again.
    pub fn withdraw(&mut self, instance: &InstanceId) {
        self.holds.remove(instance);
    }

    /// The instance is ready: its load is over.
    pub fn confirm(&mut self, instance: &InstanceId) {
        self.set_stage(instance, Stage::Confirmed);
    }

    fn set_stage(&mut self, instance: &InstanceId, stage: Stage) {
        if let Some(hold) = self.holds.get_mut(instance) {
            hold.stage = stage;
        }
    }

    /// Takes in a reading that was begun at `taken`, with the use of each instance by it.
    pub fn observe(
        &mut self,
        taken: Moment,
        snapshot: &GpuSnapshot,
        usage: &BTreeMap<InstanceId, Usage>,
    ) {
        self.stale = None;
        self.taken = taken;
        self.driver.clone_from(&snapshot.driver);
        for reading in &snapshot.devices {
            // Before the first reading nothing of ours has ended: what is unexplained in it is nobody's debt.
            let first = || (reading.unexplained().unwrap_or(Bytes::ZERO), None);
            let earlier = self.devices.get(&reading.id);
            let lists = earlier.is_some_and(|d| d.lists) || !reading.processes.is_empty();
            let blind = earlier.is_some_and(|d| d.blind) && !lists;
            let earlier = earlier.map(|d| (d.unexplained_at_rest, d.rising));
            let (unexplained_at_rest, rising) = earlier.unwrap_or_else(first);
            let reading = reading.clone();
            let device = Device { reading, unexplained_at_rest, rising, lost: None, blind, lists };
            self.devices.insert(device.reading.id.clone(), device);
        }
        self.absent.clear();
        for (id, why) in &snapshot.lost {
            match self.devices.get_mut(id) {
                Some(device) => device.lost = Some(why.clone()),
                None => self.absent.push((id.clone(), why.clone())),
            }
        }
        for (instance, seen) in usage {
            let unsaid = seen.bytes.iter().filter(|(_, bytes)| **bytes == Known::Unknown);
            for (gpu, _) in unsaid {
                if let Some(device) = self.devices.get_mut(gpu) {
                    device.blind |= !device.lists;
                }
            }
            if let Some(hold) = self.holds.get_mut(instance) {
                hold.observed.clone_from(&seen.bytes);
                hold.looked = taken;
                if !seen.pids.is_empty() {
                    hold.pids.clone_from(&seen.pids);
                }
            }
        }
        self.judge_releases(taken);
        self.learn_rest();
    }

    /// A reading failed: until the next good one nothing may be promised.
    pub fn mark_stale(&mut self, why: &str) {
        self.stale = Some(why.to_owned());
    }

    /// Why the numbers cannot be trusted now, if so.
    #[must_use]
    pub fn stale(&self) -> Option<&str> {
        self.stale.as_deref()
    }

    /// An instance's hold.
    #[must_use]
    pub fn hold(&self, instance: &InstanceId) -> Option<&Hold> {
        self.holds.get(instance)
    }

    /// All holds.
    pub fn holds(&self) -> impl Iterator<Item = (&InstanceId, &Hold)> {
        self.holds.iter()
    }

    /// The picture for readers. Numbers of a lost device or of a stale ledger are unknown, not old.
    #[must_use]
    pub fn status(&self) -> Vec<GpuStatus> {
        let mut all = Vec::with_capacity(self.devices.len());
        for (id, device) in &self.devices {
            let row = self.row(id, device);
            let known = self.stale.is_none() && device.lost.is_none();
            let value = |bytes| if known { Known::Known(bytes) } else { Known::Unknown };
            all.push(GpuStatus {
                id: id.clone(),
                name: device.reading.name.clone(),
                total: value(row.total),
                headroom: row.headroom,
                reserved: row.reserved,
                confirmed: row.confirmed,
                releasing: row.releasing,
                quarantined: row.quarantined,
                foreign: value(row.foreign),
                free: value(row.free),
                processes: self.processes(device, known),
            });
        }
        all.extend(self.absent.iter().map(|(id, _)| nothing_known(id)));
        all
    }

    fn processes(&self, device: &Device, known: bool) -> Vec<GpuProcess> {
        let owner = |pid: u32| {
            let mut holds = self.holds.iter();
            holds.find(|(_, hold)| hold.pids.contains(&pid)).map(|(id, _)| id.model.clone())
        };
        let process =
            |p: &ProcessMemory| GpuProcess { pid: p.pid, model: owner(p.pid), bytes: p.bytes };
        let readings = device.reading.processes.iter().filter(|_| known);
        readings.map(process).collect()
    }

    /// Whether it is the host's memory, which engines do not profile.
    #[must_use]
    pub fn is_host(&self) -> bool {
        self.devices.keys().any(GpuId::is_host)
    }

    /// Whether there are readings, and none of them is of this device: it is not managed.
    #[must_use]
    pub fn excludes(&self, gpu: &GpuId) -> bool {
        !self.devices.is_empty() && !self.devices.contains_key(gpu)
    }

    /// Devices that did not answer, with the reason.
    pub fn silent(&self) -> impl Iterator<Item = (&GpuId, &Silence)> {
        let read = self.devices.iter().filter_map(|(id, d)| d.lost.as_ref().map(|why| (id, why)));
        read.chain(self.absent.iter().map(|(id, why)| (id, why)))
    }

    /// Those of them that are gone for good, as far as is known.
    pub fn lost(&self) -> impl Iterator<Item = (&GpuId, &str)> {
        self.silent()
            .filter(|(_, why)| matches!(why, Silence::Gone(_)))
            .map(|(id, s)| (id, s.why()))
    }
}

/// Of a device that never answered.
fn nothing_known(id: &GpuId) -> GpuStatus {
    GpuStatus {
        id: id.clone(),
        name: String::new(),
        total: Known::Unknown,
        headroom: Bytes::ZERO,
        reserved: Bytes::ZERO,
        confirmed: Bytes::ZERO,
        releasing: Bytes::ZERO,
        quarantined: Bytes::ZERO,
        foreign: Known::Unknown,
        free: Known::Unknown,
        processes: Vec::new(),
    }
}

mod asleep;
mod hold;
mod release;
mod row;
mod sample;

pub use release::Missing;
pub use row::Row;

#[cfg(test)]
mod tests;
