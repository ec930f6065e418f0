//! The ledger as whoever measures one instance sees it.

use super::{Device, Ledger, Stage};
use crate::plan::footprint::{DeviceSample, Sample};
use crate::types::{DeviceHolder, GpuId, InstanceId, Known};

impl Ledger {
    /// The devices `gpus` at the last reading, as far as they answered: what `of` holds, and what everybody else does. For
    /// an instance that has no hold yet: what is there before its start.
    #[must_use]
    pub fn sample(&self, of: &InstanceId, gpus: &[GpuId]) -> Sample {
        let answered = self.devices.iter().filter(|(id, d)| gpus.contains(id) && d.lost.is_none());
        answered.map(|(id, device)| (id.clone(), self.device_sample(of, id, device))).collect()
    }

    fn device_sample(&self, of: &InstanceId, id: &GpuId, device: &Device) -> DeviceSample {
        let others = self.holds.iter().filter(|(other, h)| *other != of && h.gpus.contains(id));
        let own = match self.holds.get(of) {
            None => Known::Known(crate::types::Bytes::ZERO),
            Some(hold) => hold.observed.get(id).copied().unwrap_or(Known::Unknown),
        };
        // With memory of ours in it that is not told apart, what is left is nobody's for certain. And on the host others
        // come and go all the time, while what a process holds is known exactly.
        let told_apart = |h: &super::Hold| {
            matches!(h.stage, Stage::Releasing { .. } | Stage::Quarantined { .. })
                || !matches!(h.observed.get(id), Some(Known::Unknown))
        };
        let all = self.holds.values().filter(|h| h.gpus.contains(id));
        let foreign = if id.is_host() || !all.clone().all(told_apart) {
            Known::Unknown
        } else {
            Known::Known(self.row(id, device).foreign)
        };
        let others = others.map(|(_, hold)| hold.charge(id)).sum();
        DeviceSample { own, device_used: device.reading.used, others, foreign }
    }

    /// Every instance that is charged on a device, and with how much.
    #[must_use]
    pub fn holders_on(&self, gpu: &GpuId) -> Vec<DeviceHolder> {
        let here = self.holds.iter().filter(|(_, hold)| hold.gpus.contains(gpu));
        let holder = |(id, hold): (&InstanceId, &super::Hold)| DeviceHolder {
            instance: id.clone(),
            bytes: hold.charge(gpu),
        };
        here.map(holder).collect()
    }

    /// Version of the driver at the last reading; empty for the host backend.
    #[must_use]
    pub fn driver(&self) -> &str {
        &self.driver
    }

    /// Product name of a device.
    #[must_use]
    pub fn name(&self, gpu: &GpuId) -> Option<&str> {
        self.devices.get(gpu).map(|device| device.reading.name.as_str())
    }

    /// Product names of all devices, ascending, each once.
    #[must_use]
    pub fn names(&self) -> Vec<&str> {
        let names = self.devices.values().map(|device| device.reading.name.as_str());
        let mut names: Vec<&str> = names.collect();
        names.sort_unstable();
        names.dedup();
        names
    }
}
