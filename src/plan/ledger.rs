//! The ledger: per device, who holds how much.
//!
//! ```text
//!   reserve ──▶ Reserved ──confirm──▶ Confirmed ──release──▶ Releasing ──gone, then observed──▶ (dropped)
//!                   └────────────────────release───────────────▲
//! ```
//! A hold is charged with the larger of what was promised and what was observed, from the plan until a reading of
//! the device that was *taken after* its processes were proven gone. What the driver has not given back by then shows up
//! as foreign use in that same reading, so no byte is ever free in between.

use std::collections::BTreeMap;

use crate::types::{Bytes, GpuId, GpuSnapshot, GpuStatus, InstanceId, Known, Moment, Placement};

/// What one instance holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hold {
    /// Its devices.
    pub gpus: Vec<GpuId>,
    /// Promised on each of them.
    pub promised: Bytes,
    /// Last observed on each of them; absent or unknown: not measured.
    pub observed: BTreeMap<GpuId, Known<Bytes>>,
    /// How far it is.
    pub stage: Stage,
}

/// How far a hold is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Promised; the engine is starting.
    Reserved,
    /// The engine is ready.
    Confirmed,
    /// Being stopped; `gone`: when its last process was proven dead.
    Releasing {
        /// `None` while processes may live.
        gone: Option<Moment>,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Device {
    name: String,
    total: Bytes,
    used: Bytes,
    lost: Option<String>,
}

/// One device's sums. See [`Ledger::row`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Identity.
    pub id: GpuId,
    /// Memory that models could ever use.
    pub total: Bytes,
    /// Kept free.
    pub headroom: Bytes,
    /// Charged to instances that start.
    pub reserved: Bytes,
    /// Charged to instances that are ready.
    pub confirmed: Bytes,
    /// Charged to instances that stop.
    pub releasing: Bytes,
    /// In use by anybody else.
    pub foreign: Bytes,
    /// What may be promised now.
    pub free: Bytes,
    /// A start or a stop is under way on it.
    pub gated: bool,
}

/// Device memory and its holders.
#[derive(Clone, Debug)]
pub struct Ledger {
    headroom: Bytes,
    devices: BTreeMap<GpuId, Device>,
    holds: BTreeMap<InstanceId, Hold>,
    /// The last reading failed: numbers are stale and nothing new may be promised.
    stale: Option<String>,
}

impl Ledger {
    /// An empty ledger that keeps `headroom` free on each device; unknown until the first [`Ledger::observe`].
    #[must_use]
    pub fn new(headroom: Bytes) -> Self {
        let stale = Some("device memory has not been measured yet".to_owned());
        Self { headroom, devices: BTreeMap::new(), holds: BTreeMap::new(), stale }
    }

    /// Promises memory to an instance that is about to start.
    pub fn reserve(&mut self, instance: InstanceId, placement: &Placement) {
        let hold = Hold {
            gpus: placement.gpus.clone(),
            promised: placement.need.bytes,
            observed: BTreeMap::new(),
            stage: Stage::Reserved,
        };
        self.holds.insert(instance, hold);
    }

    /// The instance is ready: its load is over.
    pub fn confirm(&mut self, instance: &InstanceId) {
        self.set_stage(instance, Stage::Confirmed);
    }

    /// The instance is being stopped.
    pub fn release(&mut self, instance: &InstanceId) {
        self.set_stage(instance, Stage::Releasing { gone: None });
    }

    /// No process of the instance is left since `now`.
    pub fn gone(&mut self, instance: &InstanceId, now: Moment) {
        self.set_stage(instance, Stage::Releasing { gone: Some(now) });
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
        usage: &BTreeMap<InstanceId, BTreeMap<GpuId, Known<Bytes>>>,
    ) {
        self.stale = None;
        for reading in &snapshot.devices {
            let device = Device {
                name: reading.name.clone(),
                total: reading.total,
                used: reading.used,
                lost: None,
            };
            self.devices.insert(reading.id.clone(), device);
        }
        for (id, why) in &snapshot.lost {
            if let Some(device) = self.devices.get_mut(id) {
                device.lost = Some(why.clone());
            }
        }
        for (instance, seen) in usage {
            if let Some(hold) = self.holds.get_mut(instance) {
                hold.observed.clone_from(seen);
            }
        }
        self.holds.retain(|_, hold| match hold.stage {
            Stage::Releasing { gone: Some(gone) } => taken < gone,
            Stage::Reserved | Stage::Confirmed | Stage::Releasing { gone: None } => true,
        });
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

    /// The sums of every device that can be used now, in the order of the identifiers.
    #[must_use]
    pub fn rows(&self) -> Vec<Row> {
        let usable = self.devices.iter().filter(|(_, d)| d.lost.is_none());
        usable.map(|(id, device)| self.row(id, device)).collect()
    }

    fn row(&self, id: &GpuId, device: &Device) -> Row {
        let mut sums = [Bytes::ZERO; 3];
        let mut attributed = Bytes::ZERO;
        let mut gated = false;
        for hold in self.holds.values().filter(|h| h.gpus.contains(id)) {
            let charge = hold.charge(id);
            let (slot, gates) = match hold.stage {
                Stage::Reserved => (0, true),
                Stage::Confirmed => (1, false),
                Stage::Releasing { .. } => (2, true),
            };
            sums[slot] += charge;
            gated |= gates;
            // Where the driver attributes nothing, the promise is the best guess of what is ours. A start that has
            // claimed nothing yet is then taken for foreign use at most, which errs towards refusing.
            attributed += match hold.observed.get(id) {
                Some(Known::Known(bytes)) => *bytes,
                Some(Known::Unknown) => hold.promised,
                None => Bytes::ZERO,
            };
        }
        let foreign = device.used.saturating_sub(attributed);
        let spoken_for = sums.into_iter().sum::<Bytes>() + foreign + self.headroom;
        let [reserved, confirmed, releasing] = sums;
        Row {
            id: id.clone(),
            total: device.total,
            headroom: self.headroom,
            reserved,
            confirmed,
            releasing,
            foreign,
            free: device.total.saturating_sub(spoken_for),
            gated,
        }
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
                name: device.name.clone(),
                total: value(row.total),
                headroom: row.headroom,
                reserved: row.reserved,
                confirmed: row.confirmed,
                releasing: row.releasing,
                foreign: value(row.foreign),
                free: value(row.free),
            });
        }
        all
    }

    /// Lost devices with the reason.
    pub fn lost(&self) -> impl Iterator<Item = (&GpuId, &str)> {
        self.devices.iter().filter_map(|(id, d)| d.lost.as_deref().map(|why| (id, why)))
    }
}

impl Hold {
    /// What this hold takes on one device: the larger of promise and observation.
    #[must_use]
    pub fn charge(&self, gpu: &GpuId) -> Bytes {
        let seen = self.observed.get(gpu).and_then(Known::get).unwrap_or(Bytes::ZERO);
        self.promised.max(seen)
    }

    /// Observed on all its devices together; unknown if any of them is.
    #[must_use]
    pub fn observed_total(&self) -> Known<Bytes> {
        let mut sum = Bytes::ZERO;
        for gpu in &self.gpus {
            match self.observed.get(gpu) {
                Some(Known::Known(bytes)) => sum += *bytes,
                Some(Known::Unknown) | None => return Known::Unknown,
            }
        }
        Known::Known(sum)
    }

    /// The most observed on any one of its devices; `None` if nothing was measured.
    #[must_use]
    pub fn observed_peak(&self) -> Option<Bytes> {
        self.observed.values().filter_map(Known::get).max().filter(|b| *b > Bytes::ZERO)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Generation, GpuReading, Need, NeedSource};

    fn gpu() -> GpuId {
        GpuId::new("GPU-a")
    }

    fn id(n: u64) -> InstanceId {
        InstanceId::new("m".parse().unwrap(), Generation(n), 0)
    }

    fn placement(bytes: u64) -> Placement {
        let need = Need { bytes: Bytes(bytes), source: NeedSource::Declared };
        Placement { gpus: vec![gpu()], need, device_total: Bytes(1000) }
    }

    fn reading(used: u64) -> GpuSnapshot {
        let device = GpuReading {
            id: gpu(),
            name: "X".into(),
            total: Bytes(1000),
            used: Bytes(used),
            processes: vec![],
        };
        GpuSnapshot { devices: vec![device], lost: vec![] }
    }

    fn seen(n: u64, bytes: Known<Bytes>) -> BTreeMap<InstanceId, BTreeMap<GpuId, Known<Bytes>>> {
        BTreeMap::from([(id(n), BTreeMap::from([(gpu(), bytes)]))])
    }

    #[test]
    fn nothing_is_known_before_the_first_reading() {
        let mut ledger = Ledger::new(Bytes(0));
        assert!(ledger.stale().is_some());
        assert!(ledger.rows().is_empty());
        ledger.observe(Moment::START, &reading(0), &BTreeMap::new());
        assert!(ledger.stale().is_none());
        ledger.mark_stale("nvml hangs");
        assert_eq!(ledger.stale(), Some("nvml hangs"));
        assert_eq!(ledger.status()[0].free, Known::Unknown);
    }

    #[test]
    fn a_promise_is_charged_before_it_is_used_and_not_twice_after() {
        let mut ledger = Ledger::new(Bytes(100));
        ledger.observe(Moment::START, &reading(50), &BTreeMap::new());
        ledger.reserve(id(1), &placement(300));
        let row = &ledger.rows()[0];
        assert_eq!((row.reserved, row.foreign, row.free), (Bytes(300), Bytes(50), Bytes(550)));
        assert!(row.gated);
        ledger.observe(Moment::from_secs(1), &reading(250), &seen(1, Known::Known(Bytes(200))));
        assert_eq!(ledger.rows()[0].free, Bytes(550));
        ledger.confirm(&id(1));
        // It took more than it was promised: the truth is charged.
        ledger.observe(Moment::from_secs(2), &reading(450), &seen(1, Known::Known(Bytes(400))));
        let row = &ledger.rows()[0];
        assert_eq!((row.confirmed, row.foreign, row.free), (Bytes(400), Bytes(50), Bytes(450)));
        assert!(!row.gated);
        assert_eq!(ledger.hold(&id(1)).unwrap().observed_peak(), Some(Bytes(400)));
        assert_eq!(ledger.hold(&id(1)).unwrap().observed_total(), Known::Known(Bytes(400)));
    }

    #[test]
    fn a_release_counts_only_when_it_was_seen_afterwards() {
        let mut ledger = Ledger::new(Bytes(0));
        ledger.observe(Moment::START, &reading(0), &BTreeMap::new());
        ledger.reserve(id(1), &placement(400));
        ledger.confirm(&id(1));
        ledger.release(&id(1));
        ledger.observe(Moment::from_secs(5), &reading(0), &BTreeMap::new());
        assert_eq!(ledger.rows()[0].releasing, Bytes(400), "processes may live");
        ledger.gone(&id(1), Moment::from_secs(6));
        ledger.observe(Moment::from_secs(5), &reading(0), &BTreeMap::new());
        assert_eq!(ledger.rows()[0].free, Bytes(600), "that reading was begun before the end");
        // The driver lags: what it still holds is foreign use, not free memory.
        ledger.observe(Moment::from_secs(7), &reading(400), &BTreeMap::new());
        let row = &ledger.rows()[0];
        assert_eq!((row.releasing, row.foreign, row.free), (Bytes(0), Bytes(400), Bytes(600)));
        assert!(ledger.hold(&id(1)).is_none());
    }

    #[test]
    fn without_attribution_the_promise_stands_in() {
        let mut ledger = Ledger::new(Bytes(0));
        ledger.reserve(id(1), &placement(300));
        ledger.observe(Moment::START, &reading(350), &seen(1, Known::Unknown));
        let row = &ledger.rows()[0];
        assert_eq!((row.foreign, row.free), (Bytes(50), Bytes(650)));
        assert_eq!(ledger.hold(&id(1)).unwrap().observed_total(), Known::Unknown);
        assert_eq!(ledger.hold(&id(1)).unwrap().observed_peak(), None);
    }

    #[test]
    fn a_lost_device_offers_nothing_and_comes_back() {
        let mut ledger = Ledger::new(Bytes(0));
        ledger.observe(Moment::START, &reading(0), &BTreeMap::new());
        let lost = GpuSnapshot { devices: vec![], lost: vec![(gpu(), "fell off the bus".into())] };
        ledger.observe(Moment::from_secs(1), &lost, &BTreeMap::new());
        assert!(ledger.rows().is_empty());
        assert_eq!(ledger.lost().next(), Some((&gpu(), "fell off the bus")));
        assert_eq!(ledger.status()[0].total, Known::Unknown);
        ledger.observe(Moment::from_secs(2), &reading(0), &BTreeMap::new());
        assert_eq!(ledger.rows().len(), 1);
        // Unknown instances change nothing.
        ledger.confirm(&id(9));
        assert_eq!(ledger.holds().count(), 0);
    }
}
