//! Device memory: which devices are in sight, what is claimed on them, and when it does not fit.
//!
//! Claims live in the stub driver's state directory and end with the process. Messages are those of
//! the real engines, so a log reader can be tested on them.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use nvidia_ml::{Claim, ClaimError, Script, StateDir};
use serde_json::{Value, json};

use crate::config::{Config, Visibility};
use crate::knobs::{Flavor, Knobs, Kv, Ramp, Vram};
use crate::state::pause;

/// Memory could not be had; the text is what the engine prints before it ends.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0}")]
pub struct NoMemory(pub String);

/// What the engine holds.
#[derive(Debug)]
pub(crate) struct Memory {
    dir: StateDir,
    claims: Mutex<Vec<Claim>>,
}

/// Bytes per device at each step of the engine's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Needs {
    pub overhead: u64,
    pub weights: u64,
    pub kv: u64,
}

impl Needs {
    fn whole(self) -> u64 {
        self.overhead + self.weights + self.kv
    }
}

const GIB: f64 = (1_u64 << 30) as f64;

#[expect(clippy::cast_precision_loss, reason = "for messages with two digits")]
fn gib(bytes: u64) -> f64 {
    bytes as f64 / GIB
}

impl Memory {
    pub(crate) fn new(config: &Config) -> Self {
        Self { dir: config.nvstub.clone(), claims: Mutex::default() }
    }

    fn claims(&self) -> std::sync::MutexGuard<'_, Vec<Claim>> {
        self.claims.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Chooses devices, claims the overhead, and checks that the rest fits as the real engine does at its
    /// start: vLLM's context is there before it looks, and comes on top of its share of the device.
    pub(crate) fn begin(
        &self,
        config: &Config,
        knobs: &Knobs,
        vram: Vram,
    ) -> Result<Needs, NoMemory> {
        let script = Script::load(&self.dir).map_err(|error| no_devices(&error.to_string()))?;
        let devices = visible(&script, &config.visibility);
        let Some(devices) = devices.get(..config.tensor_parallel) else {
            return Err(no_devices(&format!("{} in sight", devices.len())));
        };
        let mut needs = Needs { overhead: vram.overhead, weights: vram.weights, kv: 0 };
        let mut claims = self.claims();
        for uuid in devices {
            claims.push(take(Claim::take(&self.dir, uuid, needs.overhead), knobs.flavor)?);
        }
        for uuid in devices {
            let usage = nvidia_ml::usage(&self.dir, uuid).map_err(|e| NoMemory(e.to_string()))?;
            let usage = usage.ok_or_else(|| no_devices(uuid))?;
            let share = config.utilization.unwrap_or(0.9);
            // CUDA's total is without what the driver keeps for itself.
            let desired = portion(usage.total.saturating_sub(usage.reserved), share);
            needs.kv = match (config.kv_bytes, vram.kv) {
                (Some(bytes), _) | (None, Kv::Bytes(bytes)) => bytes,
                (None, Kv::Auto) => desired.saturating_sub(vram.weights),
            };
            let by_share = knobs.flavor == Flavor::Vllm
                && config.kv_bytes.is_none()
                && (config.utilization.is_some() || vram.kv == Kv::Auto);
            let rest = needs.weights + needs.kv;
            let least = if by_share { rest.max(desired) } else { rest };
            if least > usage.free() {
                // A refused allocation is what leaves the trace that tests look for.
                drop(Claim::take(&self.dir, uuid, least));
                return Err(too_little(knobs.flavor, share, usage.free(), usage.total, least));
            }
        }
        Ok(needs)
    }

    /// Grows every claim to overhead + weights during `time`.
    pub(crate) async fn load_weights(
        &self,
        needs: Needs,
        ramp: Ramp,
        time: Duration,
        flavor: Flavor,
    ) -> Result<(), NoMemory> {
        let steps = match ramp {
            Ramp::Once => 1,
            Ramp::Steps(steps) => steps,
        };
        for step in 1..=steps {
            let part =
                u64::try_from(u128::from(needs.weights) * u128::from(step) / u128::from(steps))
                    .unwrap_or(needs.weights);
            self.resize(needs.overhead + part, flavor)?;
            pause(time / steps).await;
        }
        Ok(())
    }

    /// Grows every claim to the whole need.
    pub(crate) fn complete(&self, needs: Needs, flavor: Flavor) -> Result<(), NoMemory> {
        self.resize(needs.whole(), flavor)
    }

    /// Sets every claim to `bytes`.
    pub(crate) fn resize(&self, bytes: u64, flavor: Flavor) -> Result<(), NoMemory> {
        self.claims().iter_mut().try_for_each(|claim| take(claim.resize(bytes), flavor))
    }

    /// The largest claim, which is the same on every device outside of a failed resize.
    pub(crate) fn held(&self) -> u64 {
        self.claims().iter().map(Claim::bytes).max().unwrap_or(0)
    }

    /// Gives everything back.
    pub(crate) fn release(&self) {
        self.claims().clear();
    }

    pub(crate) fn describe(&self) -> Value {
        let claims = self.claims();
        claims.iter().map(|claim| json!({"gpu": claim.uuid(), "bytes": claim.bytes()})).collect()
    }
}

#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a share of a device: below 2^53, and positive"
)]
fn portion(total: u64, share: f64) -> u64 {
    (total as f64 * share) as u64
}

fn take<T>(outcome: Result<T, ClaimError>, flavor: Flavor) -> Result<T, NoMemory> {
    outcome.map_err(|error| match error {
        ClaimError::OutOfMemory { wanted, free, total, .. } => {
            out_of_memory(flavor, wanted, free, total)
        }
        other @ (ClaimError::NoSuchGpu(_)
        | ClaimError::GpuLost(_)
        | ClaimError::Full
        | ClaimError::Busy
        | ClaimError::Script(_)
        | ClaimError::Io { .. }) => NoMemory(format!("CUDA error: {other}")),
    })
}

fn no_devices(why: &str) -> NoMemory {
    NoMemory(format!("RuntimeError: No CUDA GPUs are available ({why})"))
}

/// vLLM's words at start-up, llama.cpp's when it allocates.
pub(crate) fn too_little(
    flavor: Flavor,
    share: f64,
    free: u64,
    total: u64,
    wanted: u64,
) -> NoMemory {
    match flavor {
        Flavor::Vllm => NoMemory(format!(
            "ValueError: Free memory on device cuda:0 ({:.2}/{:.2} GiB) on startup is less than \
             desired GPU memory utilization ({share}, {:.2} GiB). Decrease GPU memory utilization \
             or reduce GPU memory used by other processes.",
            gib(free),
            gib(total),
            gib(wanted)
        )),
        Flavor::LlamaCpp => out_of_memory(flavor, wanted, free, total),
    }
}

fn out_of_memory(flavor: Flavor, wanted: u64, free: u64, total: u64) -> NoMemory {
    NoMemory(match flavor {
        Flavor::Vllm => format!(
            "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate {:.2} GiB. GPU 0 has a \
             total capacity of {:.2} GiB of which {:.2} GiB is free.",
            gib(wanted),
            gib(total),
            gib(free)
        ),
        Flavor::LlamaCpp => format!(
            "ggml_backend_cuda_buffer_type_alloc_buffer: allocating {:.2} MiB on device 0: \
             cudaMalloc failed: out of memory",
            gib(wanted) * 1024.0
        ),
    })
}

/// The devices in sight, by UUID, in the process's own order.
pub(crate) fn visible(script: &Script, visibility: &Visibility) -> Vec<String> {
    let present: Vec<(usize, &str)> = script
        .gpus
        .iter()
        .enumerate()
        .filter(|(index, _)| {
            visibility.nodes.as_ref().is_none_or(|dir| dir.join(format!("nvidia{index}")).exists())
        })
        .flat_map(|(index, gpu)| {
            // Of a device in MIG mode, its MIG devices are in sight.
            let itself = (!gpu.in_mig_mode()).then_some(gpu);
            itself.into_iter().chain(gpu.slices()).map(move |gpu| (index, gpu.uuid.as_str()))
        })
        .collect();
    // By index of the machine first, then CUDA renumbers what is left.
    let mounted: Vec<&str> = match visibility.nvidia.as_deref() {
        None | Some("all") => present.into_iter().map(|(_, uuid)| uuid).collect(),
        Some(list) => list
            .split(',')
            .filter_map(|wanted| {
                let wanted = wanted.trim();
                let matches = |(index, uuid): &&(usize, &str)| {
                    *uuid == wanted || wanted.parse() == Ok(*index)
                };
                present.iter().find(matches).map(|(_, uuid)| *uuid)
            })
            .collect(),
    };
    let Some(list) = visibility.cuda.as_deref() else {
        return mounted.into_iter().map(str::to_owned).collect();
    };
    // CUDA takes entries up to the first invalid one; a UUID may be shortened.
    list.split(',')
        .map_while(|wanted| {
            let wanted = wanted.trim();
            match wanted.parse::<usize>() {
                Ok(index) => mounted.get(index).copied(),
                Err(_) if wanted.is_empty() => None,
                Err(_) => mounted.iter().copied().find(|uuid| uuid.starts_with(wanted)),
            }
        })
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use nvidia_ml::Gpu;

    fn seen(nvidia: Option<&str>, cuda: Option<&str>) -> Vec<String> {
        let gpus = ["GPU-a1", "GPU-b2", "GPU-c3"].map(|uuid| Gpu::new(uuid, 1 << 30));
        let visibility = Visibility {
            nvidia: nvidia.map(str::to_owned),
            cuda: cuda.map(str::to_owned),
            nodes: None,
        };
        visible(&Script::with_gpus(gpus.into()), &visibility)
    }

    #[test]
    fn the_variables_choose_as_the_real_ones_do() {
        assert_eq!(seen(None, None).len(), 3);
        assert_eq!(seen(Some("all"), Some("2,0")), ["GPU-c3", "GPU-a1"]);
        assert_eq!(seen(Some("GPU-b2,2"), None), ["GPU-b2", "GPU-c3"]);
        assert_eq!(seen(Some("1,2"), Some("0")), ["GPU-b2"]);
        assert_eq!(seen(None, Some("GPU-c")), ["GPU-c3"]);
        assert_eq!(seen(None, Some("0,7,1")), ["GPU-a1"]);
        for nothing in ["void", "none", ""] {
            assert!(seen(Some(nothing), None).is_empty(), "{nothing}");
        }
        assert!(seen(None, Some("")).is_empty());
    }

    #[test]
    fn of_a_divided_device_the_parts_are_seen() {
        let mut gpu = Gpu::new("GPU-a1", 4);
        gpu.mig = Some(true);
        gpu.mig_devices = vec![Gpu::new("MIG-1", 2), Gpu::new("MIG-2", 2)];
        let script = Script::with_gpus(vec![gpu, Gpu::new("GPU-b2", 1)]);
        let nvidia = Some("MIG-2".to_owned());
        let one = Visibility { nvidia, cuda: None, nodes: None };
        assert_eq!(visible(&script, &one), ["MIG-2"]);
        let all = visible(&script, &Visibility::default());
        assert_eq!(all, ["MIG-1", "MIG-2", "GPU-b2"]);
    }

    #[test]
    fn device_nodes_limit_what_is_seen() {
        let dev = tempfile::tempdir().unwrap();
        std::fs::write(dev.path().join("nvidia1"), "").unwrap();
        let gpus = ["GPU-a1", "GPU-b2"].map(|uuid| Gpu::new(uuid, 1));
        let nodes = Some(dev.path().to_owned());
        let visibility = Visibility { nodes, ..Visibility::default() };
        assert_eq!(visible(&Script::with_gpus(gpus.into()), &visibility), ["GPU-b2"]);
    }
}
