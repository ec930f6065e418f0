//! On which devices an imported model runs, and on how many. PURE.

use super::{Making, Started};
use crate::cli::add::file::Definition;
use crate::types::EngineKind;

impl Making<'_> {
    /// Devices by UUID are taken over; of numbers only how many they are.
    pub(super) fn devices(
        &mut self,
        name: &str,
        value: &str,
        started: &mut Started,
        definition: &mut Definition,
    ) {
        let list: Vec<&str> = value.split(',').map(str::trim).filter(|id| !id.is_empty()).collect();
        let uuids = list.iter().all(|id| id.starts_with("GPU-") || id.starts_with("MIG-"));
        if uuids && !list.is_empty() {
            started.gpus = list.iter().map(|id| (*id).to_owned()).collect();
        } else {
            let why = "a device's number can change, and Hostler chooses the devices";
            let instead = "gpus = [\"GPU-…\"] names them as nvidia-smi -L prints them";
            self.leave(format!("env: {name}"), why, instead);
        }
        let count = i64::try_from(list.len()).unwrap_or(1);
        if count > 1 && definition.get("gpu_count").is_none() && value != "all" {
            definition.set("gpu_count", count);
        }
    }

    /// On how many devices it runs, where that is said; where nothing says it, llama-server takes all that it sees.
    pub(super) fn gpu_count(
        &mut self,
        started: &Started,
        args: &[String],
        definition: &mut Definition,
    ) {
        if definition.get("gpu_count").is_some() {
            return;
        }
        let devices = started.devices.max(started.gpus.len());
        if devices > 1 {
            return definition.set("gpu_count", i64::try_from(devices).unwrap_or(i64::MAX));
        }
        let one = |word: &str| {
            ["-dev ", "-ts ", "--device ", "--tensor-split "]
                .iter()
                .any(|flag| word.starts_with(flag))
        };
        let said =
            self.left.iter().any(|left| one(&left.key) || left.key.ends_with("_VISIBLE_DEVICES"));
        let none = args.iter().any(|word| word == "none");
        let all = started.image.is_none() && started.engine == EngineKind::Llamacpp;
        if self.whole.gpus && all && !said && !none && devices == 0 {
            self.leave(
                "cmd: all GPUs",
                "llama-server takes all that it sees, and here as many as gpu_count says, 1 unless told",
                "write gpu_count where one is too little",
            );
        }
    }
}
