//! `org.hostler1.Gpu`: one device's ledger.

use std::sync::Arc;

use zbus::interface;

use super::{Context, UNKNOWN, bytes};
use crate::types::{GpuId, GpuProcess, GpuStatus};

/// The object of one device.
#[derive(Debug)]
pub struct Gpu {
    context: Arc<Context>,
    id: GpuId,
}

impl Gpu {
    pub(super) fn new(context: Arc<Context>, id: GpuId) -> Self {
        Self { context, id }
    }

    fn number(&self, of: impl FnOnce(&GpuStatus) -> u64) -> u64 {
        let status = self.context.handle.status();
        status.gpus.iter().find(|gpu| gpu.id == self.id).map_or(UNKNOWN, of)
    }
}

#[interface(name = "org.hostler1.Gpu")]
impl Gpu {
    /// Its NVML identifier, or "host".
    #[zbus(property(emits_changed_signal = "const"), name = "UUID")]
    fn uuid(&self) -> String {
        self.id.as_str().to_owned()
    }

    /// Its product name.
    #[zbus(property(emits_changed_signal = "const"))]
    fn name(&self) -> String {
        let status = self.context.handle.status();
        let gpu = status.gpus.iter().find(|gpu| gpu.id == self.id);
        gpu.map(|gpu| gpu.name.clone()).unwrap_or_default()
    }

    /// Bytes that models could ever use; 2^64 − 1: not known, as the device or its driver does not answer.
    #[zbus(property)]
    fn total(&self) -> u64 {
        self.number(|gpu| bytes(gpu.total))
    }

    /// Kept free by configuration.
    #[zbus(property)]
    fn headroom(&self) -> u64 {
        self.number(|gpu| gpu.headroom.0)
    }

    /// Promised to models that are not ready yet.
    #[zbus(property(emits_changed_signal = "invalidates"))]
    fn reserved(&self) -> u64 {
        self.number(|gpu| gpu.reserved.0)
    }

    /// Held by models that are ready.
    #[zbus(property(emits_changed_signal = "invalidates"))]
    fn confirmed(&self) -> u64 {
        self.number(|gpu| gpu.confirmed.0)
    }

    /// Held by models that were stopped, until it is seen to be given back.
    #[zbus(property(emits_changed_signal = "invalidates"))]
    fn releasing(&self) -> u64 {
        self.number(|gpu| gpu.releasing.0)
    }

    /// Not given back by models that are gone.
    #[zbus(property(emits_changed_signal = "invalidates"))]
    fn quarantined(&self) -> u64 {
        self.number(|gpu| gpu.quarantined.0)
    }

    /// Used by others; 2^64 − 1: not known.
    #[zbus(property(emits_changed_signal = "invalidates"))]
    fn foreign(&self) -> u64 {
        self.number(|gpu| bytes(gpu.foreign))
    }

    /// What could be promised now; 2^64 − 1: not known.
    #[zbus(property(emits_changed_signal = "invalidates"))]
    fn free(&self) -> u64 {
        self.number(|gpu| bytes(gpu.free))
    }

    /// Processes that hold memory on it, by the last reading: process, the model whose it is (empty: none of Hostler's), bytes (2^64 − 1: the
    /// driver does not say). Empty for "host".
    #[zbus(property(emits_changed_signal = "invalidates"))]
    fn processes(&self) -> Vec<(u32, String, u64)> {
        let status = self.context.handle.status();
        let gpu = status.gpus.iter().find(|gpu| gpu.id == self.id);
        let row = |p: &GpuProcess| {
            let model = p.model.as_ref().map(ToString::to_string).unwrap_or_default();
            (p.pid, model, bytes(p.bytes))
        };
        gpu.map(|gpu| gpu.processes.iter().map(row).collect()).unwrap_or_default()
    }
}
