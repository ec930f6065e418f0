//! Memory of those who sleep.
//!
//! As with a stop, the word of whoever lets go is not believed: vLLM says that it sleeps also where it gave nothing back. A
//! dozing hold keeps its charge until a reading that was begun after the engine said that it sleeps shows what is left.

use super::{Ledger, Stage};
use crate::types::{Bytes, InstanceId, Known, Moment};

impl Ledger {
    /// The instance is being put to sleep, and is expected to keep `residual` on each of its devices.
    pub fn doze(&mut self, instance: &InstanceId, residual: Bytes) {
        self.set_stage(instance, Stage::Dozing { slept: None, residual });
    }

    /// Its engine said at `now` that it sleeps.
    pub fn slept(&mut self, instance: &InstanceId, now: Moment) {
        if let Some(hold) = self.holds.get_mut(instance)
            && let Stage::Dozing { slept, .. } = &mut hold.stage
        {
            *slept = Some(now);
        }
    }

    /// What a dozing instance keeps, on the device where that is most. `None`: it was not looked at since its engine said that it
    /// sleeps, or the last reading failed. Unknown: the driver does not say.
    #[must_use]
    pub fn residual(&self, instance: &InstanceId) -> Option<Known<Bytes>> {
        let hold = self.holds.get(instance)?;
        let Stage::Dozing { slept: Some(slept), .. } = hold.stage else { return None };
        if self.stale.is_some() || hold.looked < slept || hold.observed.is_empty() {
            return None;
        }
        let on = |gpu| hold.observed.get(gpu).and_then(Known::get);
        let most: Option<Vec<Bytes>> = hold.gpus.iter().map(on).collect();
        Some(most.and_then(|m| m.into_iter().max()).map_or(Known::Unknown, Known::Known))
    }

    /// It sleeps and keeps `residual` on each of its devices at most: the rest may be promised to others.
    pub fn asleep(&mut self, instance: &InstanceId, residual: Bytes) {
        self.set_stage(instance, Stage::Asleep);
        self.promise(instance, residual);
    }

    /// Promises memory to an instance that is about to wake.
    pub fn wake(&mut self, instance: &InstanceId, need: Bytes) {
        self.set_stage(instance, Stage::Reserved);
        self.promise(instance, need);
    }

    fn promise(&mut self, instance: &InstanceId, bytes: Bytes) {
        if let Some(hold) = self.holds.get_mut(instance) {
            hold.promised = bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use super::*;
    use crate::plan::{ReleaseRule, Usage};
    use crate::types::{Generation, GpuId, GpuReading, GpuSnapshot, Need, NeedSource, Placement};

    fn gpu() -> GpuId {
        GpuId::new("GPU-a")
    }

    fn id() -> InstanceId {
        InstanceId::new("m".parse().unwrap(), Generation(1), 0)
    }

    fn observe(ledger: &mut Ledger, at: u64, held: Known<Bytes>) {
        let used = held.get().unwrap_or(Bytes(60));
        let device =
            GpuReading { id: gpu(), name: "X".into(), total: Bytes(100), used, processes: vec![] };
        let snapshot = GpuSnapshot { devices: vec![device], lost: vec![], driver: String::new() };
        let bytes = BTreeMap::from([(gpu(), held)]);
        let usage = BTreeMap::from([(id(), Usage { pids: vec![1], bytes })]);
        ledger.observe(Moment::from_secs(at), &snapshot, &usage);
    }

    /// Ready with 60 of 100 bytes.
    fn ready() -> Ledger {
        let mut ledger = Ledger::new(Bytes(0), ReleaseRule::exact(Duration::from_secs(30)));
        let need = Need { bytes: Bytes(60), source: NeedSource::Declared };
        let placement =
            Placement { gpus: vec![gpu()], need, budget: need.bytes, device_total: Bytes(100) };
        ledger.reserve(id(), &placement);
        ledger.confirm(&id());
        observe(&mut ledger, 1, Known::Known(Bytes(60)));
        ledger
    }

    #[test]
    fn a_sleep_frees_only_what_was_seen_to_be_given_back() {
        let mut ledger = ready();
        ledger.doze(&id(), Bytes(5));
        let row = &ledger.rows()[0];
        assert_eq!((row.releasing, row.free, row.soon), (Bytes(60), Bytes(40), Bytes(95)));
        assert!(row.gated);
        observe(&mut ledger, 2, Known::Known(Bytes(10)));
        assert_eq!(ledger.residual(&id()), None, "it has not said so yet");
        ledger.slept(&id(), Moment::from_secs(4));
        assert_eq!(ledger.residual(&id()), None, "begun before that");
        let snapshot = GpuSnapshot { devices: vec![], lost: vec![], driver: String::new() };
        ledger.observe(Moment::from_secs(4), &snapshot, &BTreeMap::new());
        assert_eq!(ledger.residual(&id()), None, "others were looked at");
        observe(&mut ledger, 5, Known::Known(Bytes(10)));
        let seen = ledger.residual(&id());
        assert_eq!(seen, Some(Known::Known(Bytes(10))));
        ledger.mark_stale("no answer");
        assert_eq!(ledger.residual(&id()), None, "it may have given more back since");
        observe(&mut ledger, 5, Known::Known(Bytes(10)));
        assert_eq!(ledger.rows()[0].free, Bytes(40), "charged until somebody decides");
        ledger.asleep(&id(), Bytes(10));
        let row = &ledger.rows()[0];
        assert_eq!((row.confirmed, row.free, row.gated), (Bytes(10), Bytes(90), false));
        // It takes more than it kept: the truth is charged.
        observe(&mut ledger, 6, Known::Known(Bytes(20)));
        assert_eq!(ledger.rows()[0].free, Bytes(80));
        ledger.wake(&id(), Bytes(60));
        let row = &ledger.rows()[0];
        assert_eq!((row.reserved, row.free, row.gated), (Bytes(60), Bytes(40), true));
    }

    #[test]
    fn where_the_driver_does_not_say_nothing_is_freed() {
        let mut ledger = ready();
        ledger.doze(&id(), Bytes(5));
        ledger.slept(&id(), Moment::from_secs(2));
        observe(&mut ledger, 3, Known::Unknown);
        assert_eq!(ledger.residual(&id()), Some(Known::Unknown));
        assert_eq!(ledger.rows()[0].free, Bytes(40));
    }
}
