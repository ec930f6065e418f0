//! What NVML tells about a device beside its memory.
//!
//! Purpose: load, heat and power, for people. Owner: the NVML thread reads them behind the memory of each device, so that a scrape asks
//! the driver for nothing; [`Last`] is what callers see. Invariants: a function that the driver or the board does not have is unknown,
//! never 0; a reading that is too old is none.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use nvml_wrapper::Device;
use nvml_wrapper::enum_wrappers::device::TemperatureSensor;
use nvml_wrapper::error::NvmlError;

use crate::types::{GpuId, GpuVitals, Known};

/// Readings come every two seconds.
const AGE_MAX: Duration = Duration::from_secs(15);

/// The last reading.
#[derive(Debug, Default)]
pub(super) struct Last(Mutex<Option<(Instant, Vec<GpuVitals>)>>);

impl Last {
    pub(super) fn set(&self, vitals: Vec<GpuVitals>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), vitals));
    }

    /// Empty where the last one is too old.
    pub(super) fn get(&self) -> Vec<GpuVitals> {
        let last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = last.as_ref().filter(|(taken, _)| taken.elapsed() <= AGE_MAX);
        fresh.map(|(_, vitals)| vitals.clone()).unwrap_or_default()
    }
}

/// Of one device.
pub(super) fn of(id: &GpuId, device: &Device<'_>) -> GpuVitals {
    let busy = device.utilization_rates();
    let percent = |value: u32| f64::from(value) / 100.0;
    let watts = |milliwatts: u32| f64::from(milliwatts) / 1000.0;
    let (compute, memory) = match busy {
        Ok(busy) => (Known::Known(percent(busy.gpu)), Known::Known(percent(busy.memory))),
        Err(_) => (Known::Unknown, Known::Unknown),
    };
    GpuVitals {
        id: id.clone(),
        compute,
        memory,
        temperature: known(device.temperature(TemperatureSensor::Gpu), f64::from),
        power: known(device.power_usage(), watts),
        power_limit: known(device.enforced_power_limit(), watts),
    }
}

fn known(read: Result<u32, NvmlError>, unit: impl Fn(u32) -> f64) -> Known<f64> {
    read.map_or(Known::Unknown, |value| Known::Known(unit(value)))
}
