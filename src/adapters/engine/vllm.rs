//! vLLM's OpenAI server. PURE.
//!
//! Purpose: its argv and environment. Owner: [`super::Profiles`]. Invariants: the share of a card that vLLM is told to take never
//! exceeds what the planner promised: it is rounded down. What the estimate of its need rests on, it is told.

use std::path::Path;

use super::socket;
use crate::plan::estimate::{max_num_batched_tokens, max_num_seqs};
use crate::supervisor::ports::{LaunchOrder, TCP_PORT};
use crate::types::{Bytes, ModelSpec, Placement, Transport};

/// Arguments after the image's entry point. The model is given by `--model`: `vllm serve` moves it to the front with a
/// warning, and the older entry point knows nothing else.
pub(super) fn command(order: &LaunchOrder, model: Option<&Path>) -> Vec<String> {
    let (spec, placement) = (&order.spec, &order.placement);
    let mut argv: Vec<String> = Vec::new();
    let mut add = |words: &[&str]| argv.extend(words.iter().map(|w| (*w).to_owned()));
    if let Some(model) = model {
        add(&["--model", &model.to_string_lossy()]);
    }
    match spec.transport {
        Transport::Unix => add(&["--uds", &socket()]),
        Transport::Tcp => add(&["--host", "0.0.0.0", "--port", &TCP_PORT.to_string()]),
    }
    add(&["--served-model-name", spec.name.as_str()]);
    // Aliases too: vLLM refuses names that it was not told. Not an adapter's: told as the model's, older ones answer with the bare model.
    let adapters = adapters(&spec.args);
    let aliases = spec.aliases.iter().map(|alias| alias.as_str());
    add(&aliases.filter(|alias| !adapters.iter().any(|name| name == alias)).collect::<Vec<_>>());
    if let Some(context) = order.context {
        add(&["--max-model-len", &context.to_string()]);
    }
    // On a CPU it takes what it likes: nothing there depends on it.
    let (sequences, batched) = if on_host(placement) {
        (spec.parallel, None)
    } else {
        let batched = max_num_batched_tokens(spec, placement.device_total);
        (max_num_seqs(spec, placement.budget), batched)
    };
    if let Some(sequences) = sequences {
        add(&["--max-num-seqs", &sequences.to_string()]);
    }
    if let Some(batched) = batched {
        add(&["--max-num-batched-tokens", &batched.to_string()]);
    }
    if spec.gpu_count > 1 {
        add(&["--tensor-parallel-size", &spec.gpu_count.to_string()]);
    }
    if !on_host(placement) {
        add(&["--gpu-memory-utilization", &share(placement.budget, placement.device_total)]);
    }
    if spec.sleep_level.is_some() {
        add(&["--enable-sleep-mode"]);
    }
    argv.extend(spec.args.iter().cloned());
    argv
}

/// Names of adapters that arguments bring in: `--lora-modules NAME=PATH …`, each also as JSON with a `name`.
fn adapters(args: &[String]) -> Vec<String> {
    let mut names = Vec::new();
    let mut inside = false;
    for arg in args {
        let (flag, inline) = match arg.split_once('=') {
            Some((flag, rest)) if flag.starts_with("--") => (flag, Some(rest)),
            _ => (arg.as_str(), None),
        };
        if flag.starts_with('-') {
            inside = flag.replace('_', "-") == "--lora-modules";
        }
        let value = if flag.starts_with('-') { inline } else { Some(arg.as_str()) };
        let Some(value) = value.filter(|_| inside) else { continue };
        let json = serde_json::from_str::<serde_json::Value>(value).ok();
        let named = json.as_ref().and_then(|module| module.get("name")?.as_str());
        names.extend(named.or(value.split_once('=').map(|(name, _)| name)).map(str::to_owned));
    }
    names
}

/// Environment: nothing is fetched and nobody is told.
pub(super) fn env(spec: &ModelSpec, placement: &Placement) -> Vec<(&'static str, String)> {
    let mut env: Vec<(&'static str, String)> = [
        ("HF_HUB_OFFLINE", "1"),
        ("TRANSFORMERS_OFFLINE", "1"),
        ("VLLM_NO_USAGE_STATS", "1"),
        ("DO_NOT_TRACK", "1"),
        // Caches go below it; the root file system is read-only.
        ("HOME", "/tmp"),
        // The container's user has no entry in the image's passwd, and torch asks for its name.
        ("USER", "hostler"),
        ("LOGNAME", "hostler"),
    ]
    .map(|(k, v)| (k, v.to_owned()))
    .into();
    if spec.transport == Transport::Unix {
        // There is no other interface: workers must find each other on this one.
        env.extend(
            [
                ("VLLM_HOST_IP", "127.0.0.1"),
                ("GLOO_SOCKET_IFNAME", "lo"),
                ("NCCL_SOCKET_IFNAME", "lo"),
            ]
            .map(|(k, v)| (k, v.to_owned())),
        );
    }
    if spec.sleep_level.is_some() {
        // The routes for sleeping. They come with others that run code in the engine, so nobody but the daemon may reach
        // them: the configuration allows sleep over the Unix socket alone, and the proxy writes the paths that it asks.
        env.push(("VLLM_SERVER_DEV_MODE", "1".to_owned()));
    }
    if on_host(placement) {
        let cache = kv_cache_gib(placement.budget, spec.anatomy.as_ref().map(|a| a.weights));
        env.push(("VLLM_CPU_KVCACHE_SPACE", cache.to_string()));
    }
    env
}

fn on_host(placement: &Placement) -> bool {
    placement.gpus.iter().any(|gpu| gpu.is_host())
}

/// `need / total` with four digits, rounded down; never 0 and never above 1, which vLLM refuses.
fn share(need: Bytes, total: Bytes) -> String {
    let share = u128::from(need.0) * 10_000 / u128::from(total.0.max(1));
    let share = share.clamp(1, 10_000);
    format!("{}.{:04}", share / 10_000, share % 10_000)
}

/// What of the promised memory is left for the KV cache on a CPU, in whole GiB (vLLM takes no less): without the weights and a GiB
/// for the runtime, or a quarter where the weights' size is not known. At least 1.
fn kv_cache_gib(need: Bytes, weights: Option<Bytes>) -> u64 {
    let left = match weights {
        Some(weights) => need.saturating_sub(weights).saturating_sub(Bytes::gib(1)),
        None => need.scale(1, 4),
    };
    (left.0 >> 30).max(1)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{order, placement, spec};
    use super::*;
    use crate::plan::estimate::estimate;
    use crate::types::{Anatomy, CacheLayers, CacheShape, EngineKind, NeedSource, Reach};

    fn value<'a>(env: &'a [(&'static str, String)], key: &str) -> Option<&'a str> {
        env.iter().find(|(k, _)| *k == key).map(|(_, v)| v.as_str())
    }

    #[test]
    fn on_gpus_with_everything() {
        let mut spec = spec(EngineKind::Vllm);
        spec.aliases = vec!["gpt-4o".parse().unwrap()];
        spec.context = Some(4096);
        spec.parallel = Some(16);
        spec.gpu_count = 2;
        spec.args = vec!["--enforce-eager".into()];
        let placement = placement(&["GPU-a", "GPU-b"], Bytes::gib(20), Bytes::gib(80));
        let got = command(&order(&spec, &placement), Some(Path::new("/models/m")));
        let want = "--model /models/m --uds /run/engine/e.sock --served-model-name org/m gpt-4o \
                    --max-model-len 4096 --max-num-seqs 16 --tensor-parallel-size 2 \
                    --gpu-memory-utilization 0.2500 --enforce-eager";
        assert_eq!(got.join(" "), want);
        let env = env(&spec, &placement);
        assert_eq!(value(&env, "HF_HUB_OFFLINE"), Some("1"));
        assert_eq!(value(&env, "HOME"), Some("/tmp"));
        assert_eq!(value(&env, "VLLM_CPU_KVCACHE_SPACE"), None);
    }

    #[test]
    fn an_adapter_is_no_name_of_the_model() {
        let mut spec = spec(EngineKind::Vllm);
        spec.aliases = ["small", "sql", "de", "b"].map(|name| name.parse().unwrap()).into();
        let placement = placement(&["GPU-a"], Bytes::gib(20), Bytes::gib(80));
        let served = |spec: &ModelSpec| {
            let argv = command(&order(spec, &placement), None);
            let names = argv.iter().skip_while(|word| *word != "--served-model-name").skip(1);
            names.take_while(|word| !word.starts_with("--")).cloned().collect::<Vec<_>>().join(" ")
        };
        assert_eq!(served(&spec), "org/m small sql de b");
        let json = r#"{"name": "de", "path": "/models/m/de"}"#;
        let args = ["--enable-lora", "--lora-modules", "sql=/models/m/sql", json, "--x", "b=1"];
        spec.args = args.map(str::to_owned).into();
        assert_eq!(served(&spec), "org/m small b");
        spec.args = vec!["--lora_modules=sql=/models/m/sql".into()];
        assert_eq!(served(&spec), "org/m small de b");
    }

    #[test]
    fn on_the_host_over_tcp() {
        let mut spec = spec(EngineKind::Vllm);
        spec.transport = Transport::Tcp;
        let source = "a test".to_owned();
        spec.anatomy =
            Some(Anatomy { weights: Bytes::gib(2), projector: Bytes::ZERO, cache: None, source });
        let placement = placement(&["host"], Bytes::gib(8), Bytes::gib(64));
        let got = command(&order(&spec, &placement), None);
        assert_eq!(got.join(" "), "--host 0.0.0.0 --port 8000 --served-model-name org/m");
        let env = env(&spec, &placement);
        assert_eq!(value(&env, "VLLM_CPU_KVCACHE_SPACE"), Some("5"));
        assert_eq!(value(&env, "GLOO_SOCKET_IFNAME"), None);
    }

    #[test]
    fn sleep_is_made_possible_only_where_it_is_wanted() {
        let mut spec = spec(EngineKind::Vllm);
        let placement = placement(&["GPU-a"], Bytes::gib(20), Bytes::gib(80));
        let sleeps = |spec: &crate::types::ModelSpec| {
            let flag =
                command(&order(spec, &placement), None).iter().any(|a| a == "--enable-sleep-mode");
            (flag, value(&env(spec, &placement), "VLLM_SERVER_DEV_MODE").map(str::to_owned))
        };
        assert_eq!(sleeps(&spec), (false, None));
        spec.sleep_level = Some(crate::types::SleepLevel::One);
        assert_eq!(sleeps(&spec), (true, Some("1".to_owned())));
    }

    /// vLLM takes what it is told, whoever reckoned it: an estimate is passed on like a declaration.
    #[test]
    fn an_estimated_need_is_the_budget_too() {
        for source in [NeedSource::Estimated, NeedSource::Measured, NeedSource::Exclusive] {
            let mut placement = placement(&["GPU-a"], Bytes::gib(18), Bytes::gib(80));
            placement.need.source = source;
            let got = command(&order(&spec(EngineKind::Vllm), &placement), None).join(" ");
            assert!(got.ends_with("--gpu-memory-utilization 0.2250"), "{source:?}: {got}");
        }
    }

    fn with_layers(layers: &[(u32, Reach)], state: Option<Bytes>) -> ModelSpec {
        let layer = |&(count, reach)| CacheLayers { count, heads: 2, key: 256, value: 256, reach };
        let cache = CacheShape {
            layers: layers.iter().map(layer).collect(),
            context_max: Some(32_768),
            element_bytes: Some(2),
            state,
        };
        let source = "a test".to_owned();
        let mut spec = spec(EngineKind::Vllm);
        spec.anatomy = Some(Anatomy {
            weights: Bytes::gib(35),
            projector: Bytes::ZERO,
            cache: Some(cache),
            source,
        });
        spec
    }

    /// Qwen3.6 35B A3B: vLLM's own 1,024 sequences would want as many blocks, and it would end after all was loaded.
    #[test]
    fn a_model_with_states_is_told_how_many_sequences_its_cache_has_blocks_for() {
        let layers = [(30, Reach::State), (10, Reach::Whole)];
        let mut spec = with_layers(&layers, Some(Bytes(2_146_304)));
        let told = |spec: &ModelSpec, gpu: &str, budget: Bytes| {
            let argv = command(&order(spec, &placement(&[gpu], budget, Bytes::gib(80))), None);
            let at = argv.iter().position(|word| word == "--max-num-seqs")?;
            argv.get(at + 1)?.parse::<u64>().ok()
        };
        let found = estimate(spec.anatomy.as_ref().unwrap(), &spec).unwrap();
        // A block: 10 layers × 1,056 tokens × 2 KiB.
        let block = 10 * 1056 * 2048;
        let sequences = told(&spec, "GPU-a", found.bytes_per_device).unwrap();
        assert!((16..=found.kv.0 / block).contains(&sequences), "{sequences} in {}", found.kv);
        // With less than it takes it is told the fewest, with all of a device no more than on a smaller one.
        assert_eq!(told(&spec, "GPU-a", Bytes::gib(36)), Some(16));
        assert_eq!(told(&spec, "GPU-a", Bytes::gib(79)), Some(256));
        assert_eq!(told(&spec, "host", Bytes::gib(64)), None);
        spec.parallel = Some(3);
        assert_eq!(told(&spec, "GPU-a", Bytes::gib(79)), Some(3), "what the admin said");
        assert_eq!(told(&with_layers(&[(10, Reach::Whole)], None), "GPU-a", Bytes::gib(79)), None);
    }

    #[test]
    fn on_the_largest_devices_a_window_holds_what_was_counted() {
        let windowed = [(5, Reach::Window(1024)), (1, Reach::Whole)];
        let told = |spec: &ModelSpec, total| {
            let argv = command(&order(spec, &placement(&["GPU-a"], Bytes::gib(40), total)), None);
            argv.join(" ").contains("--max-num-batched-tokens 8192")
        };
        assert!(told(&with_layers(&windowed, None), Bytes::gib(178)));
        assert!(!told(&with_layers(&windowed, None), Bytes::gib(140)), "it is the default there");
        assert!(!told(&with_layers(&[(6, Reach::Whole)], None), Bytes::gib(178)));
        let mut said = with_layers(&windowed, None);
        said.args = vec!["--max-num-batched-tokens=4096".into()];
        assert!(!told(&said, Bytes::gib(178)));
    }

    #[test]
    fn an_estimate_leaves_a_cpu_its_cache() {
        let mut spec = spec(EngineKind::Vllm);
        let layer = CacheLayers { count: 32, heads: 8, key: 128, value: 128, reach: Reach::Whole };
        let cache =
            CacheShape { layers: vec![layer], context_max: Some(24_576), ..CacheShape::default() };
        let source = "a test".to_owned();
        let anatomy =
            Anatomy { weights: Bytes::gib(15), projector: Bytes::ZERO, cache: Some(cache), source };
        let found = estimate(&anatomy, &spec).unwrap();
        assert_eq!(found.kv, Bytes::gib(3));
        spec.anatomy = Some(anatomy);
        let env = env(&spec, &placement(&["host"], found.bytes_per_device, Bytes::gib(64)));
        assert_eq!(value(&env, "VLLM_CPU_KVCACHE_SPACE"), Some("4"), "at least the cache");
    }

    #[test]
    fn the_share_is_rounded_down_and_stays_in_range() {
        assert_eq!(share(Bytes(1), Bytes(3)), "0.3333");
        assert_eq!(share(Bytes(2), Bytes(3)), "0.6666");
        assert_eq!(share(Bytes(99_999), Bytes(100_000)), "0.9999");
        assert_eq!(share(Bytes(5), Bytes(5)), "1.0000");
        assert_eq!(share(Bytes(6), Bytes(5)), "1.0000");
        assert_eq!(share(Bytes(1), Bytes::gib(80)), "0.0001");
        assert_eq!(share(Bytes(u64::MAX), Bytes(u64::MAX)), "1.0000");
        assert_eq!(share(Bytes(1), Bytes::ZERO), "1.0000");
    }

    #[test]
    fn the_cpu_cache_leaves_room_for_the_weights() {
        assert_eq!(kv_cache_gib(Bytes::gib(8), Some(Bytes::gib(3))), 4);
        assert_eq!(kv_cache_gib(Bytes::gib(2), Some(Bytes::gib(3))), 1);
        assert_eq!(kv_cache_gib(Bytes::gib(16), None), 4);
    }
}
