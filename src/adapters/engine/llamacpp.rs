//! llama.cpp's `llama-server`. PURE.
//!
//! Purpose: its argv and environment. Owner: [`super::Profiles`].

use std::path::Path;

use super::{PROJECTOR, socket};
use crate::plan::estimate::{LEFT_FREE, is_fitted};
use crate::supervisor::ports::{LaunchOrder, TCP_PORT};
use crate::types::{Bytes, ModelSpec, Placement, Transport};

/// Arguments after the image's entry point.
pub(super) fn command(order: &LaunchOrder, model: Option<&Path>) -> Vec<String> {
    let (spec, placement) = (&order.spec, &order.placement);
    let mut argv: Vec<String> = Vec::new();
    let mut add = |words: &[&str]| argv.extend(words.iter().map(|w| (*w).to_owned()));
    match spec.transport {
        // A host that ends in `.sock` is a Unix socket to llama-server.
        Transport::Unix => add(&["--host", &socket()]),
        Transport::Tcp => add(&["--host", "0.0.0.0", "--port", &TCP_PORT.to_string()]),
    }
    if let Some(model) = model {
        add(&["-m", &model.to_string_lossy()]);
    }
    if spec.projector.is_some() {
        add(&["--mmproj", PROJECTOR]);
    }
    add(&["--alias", spec.name.as_str()]);
    if let Some(context) = order.context {
        add(&["-c", &context.to_string()]);
    }
    if let Some(parallel) = spec.parallel {
        add(&["-np", &parallel.to_string()]);
        if parallel > 1 {
            // Without it each sequence gets only its share of the context: 8,192 tokens for four would refuse a
            // prompt of 3,000. The memory is the same.
            add(&["--kv-unified"]);
        }
    }
    if !on_host(placement) {
        // With a number it gives up to fit what does not fit, and dies of it.
        add(&["-ngl", if fits_itself(spec, placement) { "auto" } else { "999" }]);
    }
    add(&["--metrics", "--no-webui"]);
    argv.extend(spec.args.iter().cloned());
    argv
}

/// What llama-server keeps of prompts beside its slots, by itself, in the host's memory (`--cache-ram`).
const KEPT: Bytes = Bytes::gib(8);
/// Which part of the host's memory one of them may take for that, as a divisor: several run beside each other, and nobody accounts for it
/// where models are measured by their devices' memory.
const KEPT_SHARE: u32 = 16;

/// Requests that it takes at once, each by a thread of its own, which waits as a rule. By itself it has as many as the host has cores, and
/// older ones make no more: a request beyond them is not read, nor is the question for its health.
const HTTP_THREADS: &str = "256";

/// Whether it finds out by itself what of the model goes to its devices.
fn fits_itself(spec: &ModelSpec, placement: &Placement) -> bool {
    let count = u32::try_from(placement.gpus.len()).unwrap_or(u32::MAX);
    !on_host(placement) && is_fitted(spec, placement.device_total.scale(count, 1))
}

/// Environment. `host_memory`: all that the host has; zero: not known.
pub(super) fn env(
    spec: &ModelSpec,
    placement: &Placement,
    host_memory: Bytes,
) -> Vec<(&'static str, String)> {
    // The root file system is read-only and the user has no home in the image.
    let mut env =
        vec![("HOME", "/tmp".to_owned()), ("LLAMA_ARG_THREADS_HTTP", HTTP_THREADS.to_owned())];
    if fits_itself(spec, placement) {
        // By the word of the configuration, and not of the need: that is a measurement once it was seen to hold a little more.
        if spec.vram.is_some() {
            // It would take all that is free at the moment, and not what it was promised.
            let rest = placement.device_total.saturating_sub(placement.budget).max(LEFT_FREE);
            env.push(("LLAMA_ARG_FIT_TARGET", (rest.0 >> 20).to_string()));
        }
    } else if placement.gpus.len() > 1 {
        // By itself it splits a model by what is free on each device, and each of them was promised the same.
        env.push(("LLAMA_ARG_TENSOR_SPLIT", vec!["1"; placement.gpus.len()].join(",")));
    }
    if on_host(placement) {
        // Mapped weights are page cache: the kernel counts them as available although the engine needs them, so the
        // ledger would promise them twice. The option's name changed twice (--no-mmap, --mmap, --load-mode), and an
        // argument that is unknown ends the engine, whereas a variable is ignored.
        env.extend([
            ("LLAMA_ARG_NO_MMAP", "1".to_owned()),
            ("LLAMA_ARG_MMAP", "0".to_owned()),
            ("LLAMA_ARG_LOAD_MODE", "none".to_owned()),
            // Prompts that it keeps beside its slots: up to 8 GiB of the memory that models are measured by here, taken bit by
            // bit in days of traffic.
            ("LLAMA_ARG_CACHE_RAM", "0".to_owned()),
            // Copies of what cannot be rolled back (windows, states), up to 32 a slot: 18 GiB of a Qwen3.8 27B with four. Without
            // any it would read a conversation from its beginning wherever a turn departs from what it holds.
            ("LLAMA_ARG_CTX_CHECKPOINTS", "2".to_owned()),
        ]);
    } else {
        let kept = host_memory.scale(1, KEPT_SHARE);
        if host_memory > Bytes::ZERO && kept < KEPT {
            env.push(("LLAMA_ARG_CACHE_RAM", (kept.0 >> 20).to_string()));
        }
    }
    env
}

fn on_host(placement: &Placement) -> bool {
    placement.gpus.iter().any(crate::types::GpuId::is_host)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{order, placement, spec};
    use super::*;
    use crate::supervisor::ports::Engines as _;
    use crate::types::{Anatomy, EngineKind, NeedSource};

    #[test]
    fn on_the_host_over_a_socket() {
        let spec = spec(EngineKind::Llamacpp);
        let host = placement(&["host"], Bytes::gib(1), Bytes::gib(8));
        let got = command(&order(&spec, &host), Some(Path::new("/models/m.gguf")));
        let want = "--host /run/engine/e.sock -m /models/m.gguf --alias org/m --metrics --no-webui";
        assert_eq!(got.join(" "), want);
        let mapped = |gpu| {
            let env = env(&spec, &placement(&[gpu], Bytes::gib(1), Bytes::gib(8)), Bytes::ZERO);
            !env.iter().any(|(key, value)| *key == "LLAMA_ARG_LOAD_MODE" && value == "none")
        };
        assert!(!mapped("host") && mapped("GPU-a"));
    }

    #[test]
    fn what_it_would_choose_by_what_is_free_is_said() {
        let value = |gpus: &[&str], name: &str| {
            let spec = spec(EngineKind::Llamacpp);
            let env = env(&spec, &placement(gpus, Bytes::gib(1), Bytes::gib(8)), Bytes::ZERO);
            env.into_iter().find(|(key, _)| *key == name).map(|(_, value)| value)
        };
        let split = "LLAMA_ARG_TENSOR_SPLIT";
        assert_eq!(value(&["GPU-a", "GPU-b", "GPU-c"], split).as_deref(), Some("1,1,1"));
        assert_eq!(value(&["GPU-a"], split), None);
    }

    /// They are no memory of a device.
    #[test]
    fn what_it_keeps_beside_its_slots_is_bounded() {
        let on = |gpu: &str, name: &str, host_memory| {
            let spec = spec(EngineKind::Llamacpp);
            let env = env(&spec, &placement(&[gpu], Bytes::gib(1), Bytes::gib(8)), host_memory);
            env.into_iter().find(|(key, _)| *key == name).map(|(_, value)| value)
        };
        let kept = "LLAMA_ARG_CACHE_RAM";
        assert_eq!(on("GPU-a", kept, Bytes::ZERO), None, "nobody knows how much there is");
        assert_eq!(on("GPU-a", kept, Bytes::gib(32)).as_deref(), Some("2048"));
        assert_eq!(on("GPU-a", kept, Bytes::gib(128)), None, "its own bound is no higher");
        assert_eq!(on("host", kept, Bytes::gib(32)).as_deref(), Some("0"));
    }

    #[test]
    fn on_the_host_it_keeps_few_checkpoints() {
        let kept = |gpu: &str| {
            let spec = spec(EngineKind::Llamacpp);
            let env = env(&spec, &placement(&[gpu], Bytes::gib(1), Bytes::gib(8)), Bytes::ZERO);
            env.into_iter().find(|(key, _)| *key == "LLAMA_ARG_CTX_CHECKPOINTS")
        };
        assert_eq!(kept("host").map(|(_, value)| value).as_deref(), Some("2"));
        assert_eq!(kept("GPU-a"), None);
    }

    /// Each request has one until its last byte, and the question for its health needs one, too.
    #[test]
    fn it_has_threads_for_more_requests_than_the_host_has_cores() {
        let mut spec = spec(EngineKind::Llamacpp);
        let threads = |spec: &ModelSpec| {
            let order = order(spec, &placement(&["GPU-a"], Bytes::gib(1), Bytes::gib(8)));
            let profiles = super::super::Profiles::default();
            profiles.container(&order).env.get("LLAMA_ARG_THREADS_HTTP").cloned()
        };
        assert_eq!(threads(&spec).as_deref(), Some("256"));
        spec.env.insert("LLAMA_ARG_THREADS_HTTP".into(), "9".into());
        assert_eq!(threads(&spec).as_deref(), Some("9"), "as an argument does, by itself");
    }

    #[test]
    fn what_is_larger_than_its_devices_fits_itself_into_them() {
        let mut spec = spec(EngineKind::Llamacpp);
        let source = "a test".to_owned();
        let weights = Bytes::gib(43);
        spec.anatomy = Some(Anatomy { weights, projector: Bytes::ZERO, cache: None, source });
        let said = |spec: &ModelSpec, gpus: &[&str], source| {
            let mut placement = placement(gpus, Bytes::gib(16), Bytes::gib(24));
            placement.need.source = source;
            let argv = command(&order(spec, &placement), None).join(" ");
            let env = env(spec, &placement, Bytes::ZERO);
            let value = |name| env.iter().find(|(key, _)| *key == name).map(|(_, v)| v.clone());
            let layers = argv.split(" -ngl ").skip(1).map(|rest| rest.split(' ').next().unwrap());
            let (target, split) = (value("LLAMA_ARG_FIT_TARGET"), value("LLAMA_ARG_TENSOR_SPLIT"));
            (layers.collect::<Vec<_>>().join(" "), target, split)
        };
        let (one, two) = (&["GPU-a"][..], &["GPU-a", "GPU-b"][..]);
        assert_eq!(said(&spec, one, NeedSource::Exclusive), ("auto".into(), None, None));
        // With what it was promised, and no more, also when it was seen to hold a little more.
        spec.vram = Some(Bytes::gib(16));
        for source in [NeedSource::Declared, NeedSource::Measured] {
            let target = Some("8192".to_owned());
            assert_eq!(said(&spec, one, source), ("auto".into(), target, None));
        }
        spec.vram = None;
        // Two of them hold it.
        let split = Some("1,1".to_owned());
        assert_eq!(said(&spec, two, NeedSource::Estimated), ("999".into(), None, split));
        spec.anatomy.as_mut().unwrap().weights = Bytes::gib(60);
        // With a split it would give up as with a number.
        assert_eq!(said(&spec, two, NeedSource::Exclusive), ("auto".into(), None, None));
        assert_eq!(said(&spec, &["host"], NeedSource::Declared), (String::new(), None, None));
        spec.args = ["-ngl", "40"].map(str::to_owned).into();
        assert_eq!(said(&spec, one, NeedSource::Exclusive), ("999 40".into(), None, None));
    }

    #[test]
    fn on_a_gpu_over_tcp_with_everything() {
        let mut spec = spec(EngineKind::Llamacpp);
        spec.transport = Transport::Tcp;
        spec.context = Some(8192);
        spec.parallel = Some(4);
        spec.args = vec!["--flash-attn".into(), "on".into()];
        let placement = placement(&["GPU-a"], Bytes::gib(1), Bytes::gib(8));
        let got = command(&order(&spec, &placement), None);
        let want = "--host 0.0.0.0 --port 8000 --alias org/m -c 8192 -np 4 --kv-unified -ngl 999 \
                    --metrics --no-webui --flash-attn on";
        assert_eq!(got.join(" "), want);
    }
}
