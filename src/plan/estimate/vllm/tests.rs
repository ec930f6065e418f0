//! What vLLM 0.33 demands by its own formulas, in blocks; where it says so in a file, that is named.

use super::super::tests::{anatomy, gemma_3_4b, kv, layers, shape, spec};
use super::*;
use crate::types::{Anatomy, EngineKind};

/// Gemma 3 27B, instruction tuned: 10 whole layers and 52 with a window of 1,024, each 16 heads × (128 + 128) × 2 bytes = 8 KiB.
fn gemma_3_27b() -> Anatomy {
    let layers = [layers(52, 16, 128, Reach::Window(1024)), layers(10, 16, 128, Reach::Whole)];
    anatomy(Bytes::gib(51), Some(shape(&layers, 131_072)))
}

/// Qwen3.6 35B A3B in FP8: 10 whole layers of 2 KiB a token, 30 with a state of 2,146,304 bytes.
fn qwen_35b() -> Anatomy {
    let layers = [layers(30, 2, 256, Reach::State), layers(10, 2, 256, Reach::Whole)];
    let shape = CacheShape { state: Some(Bytes(2_146_304)), ..shape(&layers, 262_144) };
    anatomy(Bytes::gib(35), Some(shape))
}

fn vllm(context: Option<u32>, args: &[&str]) -> ModelSpec {
    let mut spec = spec(EngineKind::Vllm);
    (spec.context, spec.args) = (context, args.iter().map(|a| (*a).to_owned()).collect());
    spec
}

/// `SlidingWindowSpec.max_admission_blocks_per_request` (`v1/kv_cache_interface.py`): ⌈(window − 1 + tokens in flight) / 16⌉ + 1
/// blocks, and `_get_kv_cache_groups_uniform_page_size` (`v1/core/kv_cache_planning.py`): 52 layers in 6 groups of 10.
#[test]
fn windows_hold_two_batches_in_groups_of_equal_size() {
    // A block: 10 layers × 16 tokens × 8 KiB.
    let blocks = |whole: u64, windowed: u64| Bytes((whole + 6 * windowed) * 10 * 16 * 8192);
    let model = gemma_3_27b();
    // ⌈(1,023 + 2 × 8,192) / 16⌉ + 1 = 1,089; all in all 17.98 GiB.
    assert_eq!(kv(&model, &vllm(None, &[])), blocks(8192, 1089));
    assert_eq!(kv(&model, &vllm(Some(32_768), &[])), blocks(2048, 1089));
    assert_eq!(kv(&model, &vllm(None, &["--max-num-batched-tokens", "2K"])), blocks(8192, 321));
    assert_eq!(kv(&model, &vllm(None, &["--no-async-scheduling"])), blocks(8192, 577));
    assert_eq!(
        kv(&model, &vllm(Some(4096), &[])),
        blocks(256, 257),
        "never more than all, and one"
    );
    // A second sequence holds its window; what is in flight is so for both together.
    let mut two = vllm(None, &[]);
    two.parallel = Some(2);
    assert_eq!(kv(&model, &two), blocks(2 * 8192, 1089 + 65));
}

#[test]
fn without_the_manager_of_hybrid_caches_windows_hold_everything() {
    let model = gemma_3_4b();
    let mut spec = vllm(Some(32_768), &["--disable-hybrid-kv-cache-manager"]);
    // 34 layers of 4 KiB a token, in one group.
    assert_eq!(kv(&model, &spec), Bytes::mib(4352));
    spec.args.clear();
    assert!(kv(&model, &spec) < Bytes::mib(4352));
    // `envs.py`: on by default.
    let variable = "VLLM_ALLOW_CHUNKED_LOCAL_ATTN_WITH_HYBRID_KV_CACHE";
    spec.env.insert(variable.into(), "1".into());
    assert!(kv(&model, &spec) < Bytes::mib(4352));
    spec.env.insert(variable.into(), "0".into());
    assert_eq!(kv(&model, &spec), Bytes::mib(4352));
}

/// A kind that has few layers more than another makes no group of its own out of them.
#[test]
fn groups_are_as_large_as_the_larger_kind_where_both_are_alike() {
    let tokens = |whole: u32, windowed: u32| {
        let window = layers(windowed, 1, 64, Reach::Window(128));
        let model = [window, layers(whole, 1, 64, Reach::Whole)];
        // 256 bytes a token; windows: ⌈(127 + 16,384) / 16⌉ + 1 = 1,033 blocks.
        kv(&anatomy(Bytes::gib(1), Some(shape(&model, 65_536))), &vllm(None, &[])).0 / 256
    };
    assert_eq!(tokens(12, 12), 12 * 65_536 + 12 * 1033 * 16);
    assert_eq!(tokens(12, 13), 13 * 65_536 + 13 * 1033 * 16);
    assert_eq!(tokens(12, 18), 12 * 65_536 + 24 * 1033 * 16);
    // Of one kind alone there is one group.
    assert_eq!(tokens(0, 7), 7 * 1033 * 16);
}

/// `update_block_size_for_backend` (`platforms/interface.py`): a page of attention grows to 66 × 16 = 1,056 tokens, the size of a state.
#[test]
fn a_pool_with_states_has_a_block_for_each_sequence() {
    let model = qwen_35b();
    let page = 1056 * 2048;
    let block = 10 * page;
    let found = estimate(&model, &vllm(None, &[])).unwrap();
    assert_eq!(found.state_block, Some(Bytes(block)));
    // One sequence: ⌈262,144 / 1,056⌉ = 249 blocks and 2 for each of 3 groups of states. Ours has the states of four.
    let whole = 10 * 262_144 * 2048 + block;
    assert_eq!(found.kv, Bytes(whole + 4 * 30 * 2 * page));
    assert!(found.kv >= Bytes((249 + 3 * 2) * block));
    // Short ones, and many: 32 blocks at least, and two for each sequence that it may serve (`config/compilation.py`: one).
    let mut many = vllm(Some(4096), &[]);
    assert_eq!(kv(&model, &many), Bytes(32 * block));
    many.parallel = Some(256);
    assert_eq!(kv(&model, &many), Bytes(512 * block));
    assert_eq!(max_num_seqs(&many, Bytes::gib(80)), Some(256));
    // What it is told is no more than its estimate has blocks for.
    for context in [4096, 32_768, 131_072, 262_144] {
        let spec = vllm(Some(context), &[]);
        let with = ModelSpec { anatomy: Some(model.clone()), ..spec.clone() };
        let found = estimate(&model, &spec).unwrap();
        let told = max_num_seqs(&with, found.bytes_per_device).unwrap();
        assert!(told >= 16 && u64::from(told) <= found.kv.0 / block, "{told} of {context}");
    }
}

/// Over two devices each has half of every state, and half of the heads.
#[test]
fn states_are_spread_over_devices() {
    let mut spec = vllm(Some(4096), &[]);
    spec.gpu_count = 2;
    // 1,073,152 bytes; one head of 1 KiB a token: 66 × 16 tokens again.
    let block = estimate(&qwen_35b(), &spec).unwrap().state_block;
    assert_eq!(block, Some(Bytes(10 * 1056 * 1024)));
}

/// Qwen3-Next without a word of what its states take: 36 of them and 12 whole layers of 2 KiB a token.
#[test]
fn states_of_unknown_size() {
    let next = [layers(36, 2, 256, Reach::State), layers(12, 2, 256, Reach::Whole)];
    let next = anatomy(Bytes::gib(80), Some(shape(&next, 262_144)));
    let found = estimate(&next, &vllm(Some(32_768), &[])).unwrap();
    assert_eq!(found.state_block, Some(Bytes::mib(12 * 2)));
    assert_eq!(found.kv, Bytes::mib(12 * (64 + 2) + 4 * 36 * 2 * 2));
    assert_eq!(found.cache.unwrap().bytes_per_token, Bytes(12 * 2048), "a state is of no token");
}

/// Whisper large-v3: 32 layers of 20 heads × (64 + 64) × 2 bytes = 5 KiB. `CrossAttentionSpec` counts `max_num_encoder_input_tokens`,
/// which is a whole batch (`config/scheduler.py`).
#[test]
fn what_an_encoder_made_is_a_batch() {
    let layers = [layers(32, 20, 64, Reach::Whole), layers(32, 20, 64, Reach::Encoded)];
    let whisper = anatomy(Bytes::mib(2950), Some(shape(&layers, 448)));
    let blocks = |n: u64| Bytes(n * 32 * 16 * 5120);
    let found = estimate(&whisper, &vllm(None, &[])).unwrap();
    assert_eq!(found.kv, blocks(448 / 16 + 8192 / 16));
    assert!(found.bytes_per_device < Bytes::gib(7), "{found}");
    assert_eq!(found.cache.unwrap().bytes_per_token, Bytes(32 * 5120));
    let small = vllm(None, &["--max-num-batched-tokens=1600"]);
    assert_eq!(kv(&whisper, &small), blocks(448 / 16 + 1600 / 16));
}
