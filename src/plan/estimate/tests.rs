//! Numbers of well-known models, reckoned by hand beside them.

use proptest::prelude::*;

use super::*;
use crate::types::test_spec;

pub(super) fn layers(count: u32, heads: u32, size: u32, reach: Reach) -> CacheLayers {
    CacheLayers { count, heads, key: size, value: size, reach }
}

pub(super) fn shape(layers: &[CacheLayers], context: u32) -> CacheShape {
    CacheShape {
        layers: layers.to_vec(),
        context_max: Some(context),
        element_bytes: Some(2),
        state: None,
    }
}

pub(super) fn anatomy(weights: Bytes, cache: Option<CacheShape>) -> Anatomy {
    Anatomy { weights, projector: Bytes::ZERO, cache, source: "a test".to_owned() }
}

pub(super) fn spec(engine: EngineKind) -> ModelSpec {
    let mut spec = test_spec("m");
    spec.engine = engine;
    spec
}

/// 32 layers × 8 heads × (128 + 128) numbers × 2 bytes = 131,072 bytes = 128 KiB a token at f16; 8,192 tokens = 1 GiB.
pub(super) fn llama_3_8b() -> Anatomy {
    anatomy(Bytes::gib(15), Some(shape(&[layers(32, 8, 128, Reach::Whole)], 8192)))
}

/// 24 layers × 2 heads × (64 + 64) × 2 bytes = 12,288 bytes = 12 KiB a token; 32,768 tokens = 384 MiB.
fn qwen_2_5_half_b() -> Anatomy {
    anatomy(Bytes::mib(942), Some(shape(&[layers(24, 2, 64, Reach::Whole)], 32_768)))
}

/// Gemma 3 4B: 5 whole layers and 29 with a window of 1,024, each 4 heads × (256 + 256) × 2 bytes = 4 KiB a token.
pub(super) fn gemma_3_4b() -> Anatomy {
    let layers = [layers(29, 4, 256, Reach::Window(1024)), layers(5, 4, 256, Reach::Whole)];
    anatomy(Bytes::gib(8), Some(shape(&layers, 131_072)))
}

/// 61 layers × (512 + 64) × 2 bytes = 70,272 bytes a token, the same on every device.
fn deepseek_v3() -> Anatomy {
    let layer = CacheLayers { count: 61, heads: 1, key: 576, value: 0, reach: Reach::Whole };
    anatomy(Bytes::gib(640), Some(shape(&[layer], 163_840)))
}

pub(super) fn kv(anatomy: &Anatomy, spec: &ModelSpec) -> Bytes {
    estimate(anatomy, spec).unwrap().kv
}

fn per_token(anatomy: &Anatomy, engine: EngineKind) -> u64 {
    estimate(anatomy, &spec(engine)).unwrap().cache.unwrap().bytes_per_token.0
}

#[test]
fn bytes_per_token_of_well_known_models() {
    for engine in [EngineKind::Llamacpp, EngineKind::Vllm] {
        assert_eq!(per_token(&llama_3_8b(), engine), 128 << 10);
        assert_eq!(per_token(&qwen_2_5_half_b(), engine), 12 << 10);
        assert_eq!(per_token(&gemma_3_4b(), engine), 34 * (4 << 10));
        assert_eq!(per_token(&deepseek_v3(), engine), 70_272);
    }
}

#[test]
fn llamacpp_shares_one_context() {
    let model = llama_3_8b();
    let mut spec = spec(EngineKind::Llamacpp);
    let found = estimate(&model, &spec).unwrap();
    assert_eq!(
        (found.weights, found.kv),
        (Bytes::gib(15), Bytes::gib(1)),
        "the model's own length"
    );
    // The mask: 8,192 × 512 tokens × 2 bytes.
    let base = Bytes::mib(768) + Bytes::mib(8);
    assert_eq!(found.overhead, base + Bytes::gib(15).scale(1, 10));
    assert_eq!(found.bytes_per_device, found.weights + found.kv + found.overhead);
    spec.parallel = Some(8);
    assert_eq!(kv(&model, &spec), Bytes::gib(1), "sequences share it");
    spec.context = Some(16_384);
    assert_eq!(kv(&model, &spec), Bytes::gib(2));
    spec.gpu_count = 2;
    let half = estimate(&model, &spec).unwrap();
    assert_eq!((half.weights, half.kv), (Bytes::gib(15).scale(1, 2), Bytes::gib(1)));
    // A context is padded to 256 tokens.
    spec = self::spec(EngineKind::Llamacpp);
    spec.context = Some(1);
    assert_eq!(kv(&model, &spec), Bytes::mib(32));
}

#[test]
fn llamacpp_cache_types() {
    let model = llama_3_8b();
    let with = |args: &[&str]| {
        let mut spec = spec(EngineKind::Llamacpp);
        spec.args = args.iter().map(|a| (*a).to_owned()).collect();
        kv(&model, &spec)
    };
    // q8_0: 34 bytes for 32 numbers, where f16 has 64.
    assert_eq!(with(&["-ctk", "q8_0", "--cache-type-v", "q8_0"]), Bytes::gib(1).scale(34, 64));
    // Keys alone: half of it at 18 of 64.
    assert_eq!(with(&["--cache-type-k", "q4_0"]), Bytes::mib(512) + Bytes::mib(512).scale(18, 64));
    assert_eq!(with(&["-ctk", "f32", "-ctv", "f32"]), Bytes::gib(2));
    assert_eq!(with(&["-ctk", "unheard"]), Bytes::gib(1));
    let mut spec = spec(EngineKind::Llamacpp);
    spec.env.insert("LLAMA_ARG_CACHE_TYPE_K".into(), "q8_0".into());
    assert_eq!(kv(&model, &spec), Bytes::mib(512) + Bytes::mib(512).scale(34, 64));
}

#[test]
fn llamacpp_windows() {
    let model = gemma_3_4b();
    let mut spec = spec(EngineKind::Llamacpp);
    spec.context = Some(32_768);
    spec.parallel = Some(1);
    // Whole: 5 × 4 KiB × 32,768 = 640 MiB. Windows: 29 × 4 KiB × (1,024 + 512) = 174 MiB. All whole: 4,352 MiB.
    assert_eq!(kv(&model, &spec), Bytes::mib(640 + 174));
    spec.parallel = Some(2);
    // 29 × 4 KiB × (2 × 1,024 + 512) = 290 MiB.
    assert_eq!(kv(&model, &spec), Bytes::mib(640 + 290));
    spec.args = vec!["--no-kv-unified".into()];
    assert_eq!(kv(&model, &spec), Bytes::mib(640 + 2 * 174));
    spec.args.clear();
    spec.parallel = Some(100);
    assert_eq!(kv(&model, &spec), Bytes::mib(4352), "never more than the whole");
    spec.parallel = Some(1);
    spec.args = vec!["-ub".into(), "1024".into()];
    assert_eq!(kv(&model, &spec), Bytes::mib(640 + 232));
    spec.args = vec!["--swa-full".into()];
    assert_eq!(kv(&model, &spec), Bytes::mib(4352));
}

/// What llama-server b10434 logged (`llama_kv_cache: size = …`) for a model of 8 layers in Gemma 3's pattern, 2 heads of 64,
/// a window of 512 and 16,384 tokens.
#[test]
fn as_a_real_llama_server_allocates() {
    let layers = [layers(7, 2, 64, Reach::Window(512)), layers(1, 2, 64, Reach::Whole)];
    let model = anatomy(Bytes::mib(9), Some(shape(&layers, 16_384)));
    for (parallel, args, kib) in [
        (1, vec![], 8192 + 3584),
        (3, vec![], 8192 + 7168),
        (1, vec!["-ub", "1000"], 8192 + 5376),
        (1, vec!["--swa-full"], 8192 + 57_344),
    ] {
        let mut spec = spec(EngineKind::Llamacpp);
        spec.parallel = Some(parallel);
        spec.args = args.into_iter().map(str::to_owned).collect();
        assert_eq!(kv(&model, &spec), Bytes(kib << 10), "{parallel} {:?}", spec.args);
    }
}

#[test]
fn vllm_holds_full_sequences() {
    let model = llama_3_8b();
    let mut spec = spec(EngineKind::Vllm);
    let one = estimate(&model, &spec).unwrap();
    assert_eq!((one.weights, one.kv), (Bytes::gib(15), Bytes::gib(1)));
    assert_eq!(one.overhead, Bytes::gib(2) + Bytes::gib(15).scale(1, 20));
    spec.parallel = Some(3);
    assert_eq!(kv(&model, &spec), Bytes::gib(3));
    spec.parallel = Some(256);
    assert_eq!(kv(&model, &spec), Bytes::gib(4), "more would only be comfort");
    spec.parallel = None;
    spec.context = Some(4096);
    assert_eq!(kv(&model, &spec), Bytes::mib(512));
    spec.args = vec!["--kv-cache-dtype=fp8_e4m3".into()];
    assert_eq!(kv(&model, &spec), Bytes::mib(256));
    for kind in ["auto", "turboquant_4bit_nc", "unheard"] {
        spec.args = vec!["--kv_cache_dtype".into(), kind.into()];
        assert_eq!(kv(&model, &spec), Bytes::mib(512), "{kind}");
    }
    // 34 and 18 bytes for 32 numbers of 2.
    for (kind, of_64) in [("int8_per_token_head", 34), ("fp8_per_token_head", 34), ("nvfp4", 18)] {
        spec.args = vec!["--kv-cache-dtype".into(), kind.into()];
        assert_eq!(kv(&model, &spec), Bytes::mib(512).scale(of_64, 64), "{kind}");
    }
    spec.args = vec!["--dtype".into(), "float32".into()];
    let wide = estimate(&model, &spec).unwrap();
    assert_eq!((wide.weights, wide.kv), (Bytes::gib(30), Bytes::gib(1)));
}

#[test]
fn vllm_splits_heads_while_there_are_any() {
    let mut spec = spec(EngineKind::Vllm);
    for (devices, heads) in [(1, 8), (2, 4), (8, 1), (16, 1)] {
        spec.gpu_count = devices;
        assert_eq!(kv(&llama_3_8b(), &spec), Bytes::mib(128 * heads), "on {devices}");
    }
    // A compressed cache is the same on each device.
    spec.context = Some(16_384);
    let found = estimate(&deepseek_v3(), &spec).unwrap();
    assert_eq!(found.kv, Bytes(70_272 * 16_384));
    assert_eq!(found.weights, Bytes::gib(40));
}

#[test]
fn without_a_shape_a_part_of_the_weights_is_assumed_unless_the_engine_would_not_start() {
    let found = estimate(&anatomy(Bytes::gib(10), None), &spec(EngineKind::Llamacpp)).unwrap();
    assert_eq!((found.kv, found.cache), (Bytes::gib(2), None));
    // Nobody knows the length.
    let mut open = llama_3_8b();
    open.cache.as_mut().unwrap().context_max = None;
    assert_eq!(kv(&open, &spec(EngineKind::Llamacpp)), Bytes::gib(3));
    let mut vllm = spec(EngineKind::Vllm);
    assert_eq!(estimate(&open, &vllm), None, "it wants one whole sequence, however long that is");
    assert_eq!(estimate(&anatomy(Bytes::gib(10), None), &vllm), None);
    vllm.context = Some(8192);
    assert_eq!(kv(&open, &vllm), Bytes::gib(1));
    // An encoder has no cache at all.
    let encoder = anatomy(Bytes::mib(100), Some(CacheShape::default()));
    assert_eq!(kv(&encoder, &spec(EngineKind::Llamacpp)), Bytes::ZERO);
}

#[test]
fn it_explains_itself() {
    let mut spec = spec(EngineKind::Vllm);
    spec.parallel = Some(2);
    let text = estimate(&llama_3_8b(), &spec).unwrap().to_string();
    let want = "19.8 GiB on each device: weights 15.0 GiB, cache 2.0 GiB (2 sequences of 8192 tokens at 128.0 KiB), \
                engine 2.8 GiB; from a test";
    assert_eq!(text, want);
    spec.engine = EngineKind::Llamacpp;
    let text = estimate(&anatomy(Bytes::gib(10), None), &spec).unwrap().to_string();
    assert!(text.contains("assumed, its shape is not known"), "{text}");
    let seeing = Anatomy { projector: Bytes::gib(1), ..llama_3_8b() };
    let text = estimate(&seeing, &spec).unwrap().to_string();
    assert!(text.contains(", projector 2.0 GiB; from"), "{text}");
}

/// It is not spread over the devices, and which of them has it is the engine's to say.
#[test]
fn a_projector_is_whole_on_each_device() {
    let mut spec = spec(EngineKind::Llamacpp);
    spec.gpu_count = 2;
    let blind = estimate(&llama_3_8b(), &spec).unwrap();
    let seeing = Anatomy { projector: Bytes::mib(850), ..llama_3_8b() };
    let seeing = estimate(&seeing, &spec).unwrap();
    let more = seeing.bytes_per_device.saturating_sub(blind.bytes_per_device);
    assert_eq!(more, Bytes::mib(850) + Bytes::gib(1));
    assert_eq!((seeing.weights, seeing.overhead), (blind.weights, blind.overhead));
}

fn any_layers() -> impl Strategy<Value = CacheLayers> {
    let reach = prop_oneof![
        Just(Reach::Whole),
        Just(Reach::State),
        Just(Reach::Encoded),
        any::<u32>().prop_map(Reach::Window)
    ];
    (any::<u32>(), any::<u32>(), any::<u32>(), any::<u32>(), reach).prop_map(
        |(count, heads, key, value, reach)| CacheLayers { count, heads, key, value, reach },
    )
}

proptest! {
    #[test]
    fn no_anatomy_panics_and_more_devices_never_need_more_each(
        weights: u64,
        layers in proptest::collection::vec(any_layers(), 0..4),
        context_max: Option<u32>,
        context: Option<u32>,
        parallel: Option<u32>,
        element_bytes: Option<u32>,
        state: Option<u64>,
        vllm: bool,
        devices in 1_u32..9,
    ) {
        let cache = CacheShape { layers, context_max, element_bytes, state: state.map(Bytes) };
        let anatomy = anatomy(Bytes(weights), Some(cache));
        let mut spec = spec(if vllm { EngineKind::Vllm } else { EngineKind::Llamacpp });
        (spec.context, spec.parallel) = (context, parallel);
        let alone = estimate(&anatomy, &spec);
        spec.gpu_count = devices;
        let spread = estimate(&anatomy, &spec);
        prop_assert_eq!(alone.is_some(), spread.is_some());
        let (Some(alone), Some(spread)) = (alone, spread) else { return Ok(()) };
        prop_assert!(spread.bytes_per_device <= alone.bytes_per_device);
        prop_assert!(spread.bytes_per_device > Bytes::ZERO);
        let _ = spread.to_string();
    }
}
