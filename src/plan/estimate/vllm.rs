//! vLLM's cache, as vLLM itself reckons it before it starts, and the arguments that hold it to that.
//!
//! Purpose: from a cache's shape to bytes on one device: one full sequence, without which it refuses to start, and some more.
//! Owner: nobody. Invariants: as in [`super`]; what depends on a number that vLLM chooses by the device is counted with one
//! that Hostler passes, or that is the largest it chooses.
//!
//! As of vLLM 0.33: `v1/core/kv_cache_planning.py` (groups), `v1/kv_cache_interface.py` (what a layer holds),
//! `platforms/interface.py` (pages of hybrid models), `config/vllm.py` (tokens in flight).

use super::{Cache, CacheUse, STATE_TOKENS, Types, args, estimate, pad, times};
use crate::types::{Bytes, CacheLayers, CacheShape, ModelSpec, Reach};

/// vLLM's blocks, in tokens.
const BLOCK: u64 = 16;
/// Tokens that vLLM works on at once by default on devices from 70 GiB on; smaller ones take 2,048
/// (`get_batch_defaults` in `engine/arg_utils.py`).
const BATCHED: u64 = 8192;
/// From here on the default is twice as much.
const LARGE_DEVICE: Bytes = Bytes::gib(160);
/// While one batch is worked on the next is made ready, and what neither has finished is kept (`max_concurrent_batches`).
const BATCHES: u64 = 2;

/// With less cache than one full sequence vLLM refuses to start. More is comfort: its cache is paged, sequences seldom
/// reach full length, and what does not fit waits. So `parallel` counts up to this many full ones.
const SEQUENCES_MAX: u32 = 4;
/// A state is there in full from the first token on, so that more of them are counted: so many where `parallel` is not set,
const STATES: u32 = 4;
/// and so many at most.
const STATES_MAX: u32 = 16;
/// Of each state, the one that is worked on and the one before it, so that a prefix can be found again
/// (`mamba_cache_mode = "align"`).
const STATE_COPIES: u64 = 2;

/// Of a model whose layers keep states, sequences at once where `parallel` is not set: at least so many,
const HYBRID_SEQUENCES_MIN: u32 = 16;
/// and at most so many: vLLM's default on smaller devices.
const HYBRID_SEQUENCES_MAX: u32 = 256;
/// It starts only with a block for each sequence that it may serve at once (`resolve_cudagraph_mode_and_sizes` in
/// `config/compilation.py`: "max_num_seqs exceeds available Mamba cache blocks"). Twice as many, because what is left for
/// blocks rests on a rule of thumb.
const BLOCKS_A_SEQUENCE: u32 = 2;

/// Sequences that vLLM is told to serve at once (`--max-num-seqs`), with a budget of `budget` on each device. `None`: as many as
/// it chooses.
///
/// What the admin said; else, of a model whose layers keep states, what its cache has blocks for: vLLM's own 256, or 1,024 on
/// large devices, are more than the cache of one full sequence has, and it ends where they are.
#[must_use]
pub fn max_num_seqs(spec: &ModelSpec, budget: Bytes) -> Option<u32> {
    spec.parallel.or_else(|| {
        let found = estimate(spec.anatomy.as_ref()?, spec)?;
        let cache = budget.saturating_sub(found.weights).saturating_sub(found.overhead);
        let blocks = cache.0 / found.state_block?.0.max(1) / u64::from(BLOCKS_A_SEQUENCE);
        let blocks = u32::try_from(blocks).unwrap_or(u32::MAX);
        Some(blocks.clamp(HYBRID_SEQUENCES_MIN, HYBRID_SEQUENCES_MAX))
    })
}

/// Tokens that vLLM is told to work on at once (`--max-num-batched-tokens`) on devices of so many bytes: what the estimate was made
/// with, where its own default is more and what layers hold depends on it. `None`: its default.
#[must_use]
pub fn max_num_batched_tokens(spec: &ModelSpec, device_total: Bytes) -> Option<u64> {
    let shape = spec.anatomy.as_ref()?.cache.as_ref()?;
    let held = |layer: &CacheLayers| match effective(layer.reach, spec) {
        Reach::Window(_) | Reach::Encoded => true,
        Reach::Whole | Reach::State => false,
    };
    // Without chunks a batch has to hold the longest prompt.
    let chunks = !args::has(spec, &["--no-enable-chunked-prefill"]);
    let ours = chunks && said_batch(spec).is_none() && device_total >= LARGE_DEVICE;
    (ours && shape.layers.iter().any(held)).then_some(BATCHED)
}

/// What it comes to on one device.
pub(super) fn cache(shape: &CacheShape, spec: &ModelSpec, types: Types, context: u64) -> Cache {
    let pool = Pool::new(shape, spec, types);
    let sequences = u64::from(spec.parallel.unwrap_or(1).clamp(1, SEQUENCES_MAX));
    let states = u64::from(spec.parallel.unwrap_or(STATES).clamp(1, STATES_MAX));
    let batch = said_batch(spec).unwrap_or(BATCHED);
    let batches = if args::has(spec, &["--no-async-scheduling"]) { 1 } else { BATCHES };
    let in_flight = batch.saturating_mul(batches);
    // One block more: a window seldom begins where a block does, and where blocks are large the last one is seldom full.
    let tail = |kind: &Kind| match pool.page {
        Some(page) => times(page, kind.layers),
        None => times(kind.token, BLOCK),
    };
    let held = |tokens: u64| pad(tokens.min(context), BLOCK);
    let kind = |kind: &Kind| match kind.reach {
        Reach::Whole if pool.page.is_none() => times(times(kind.token, held(context)), sequences),
        Reach::Whole => times(times(kind.token, held(context)) + tail(kind), sequences),
        // What is in flight is so for all sequences together.
        Reach::Window(width) => {
            let first = held(u64::from(width).saturating_sub(1).saturating_add(in_flight));
            let next = held(u64::from(width)).saturating_mul(sequences - 1);
            times(kind.token, first.saturating_add(next)) + times(tail(kind), sequences)
        }
        // `CrossAttentionSpec` counts a whole batch, which is more than one sequence has: of Whisper, five times 1,500.
        Reach::Encoded => times(kind.token, pad(batch, BLOCK)),
        Reach::State => {
            let page = pool.page.unwrap_or_default();
            times(page, kind.layers.saturating_mul(STATE_COPIES).saturating_mul(states))
        }
    };
    let bytes: Bytes = pool.kinds.iter().map(kind).sum();
    let told = spec.parallel.unwrap_or(HYBRID_SEQUENCES_MIN);
    let state_block = pool.page.map(|page| times(page, pool.group));
    let least =
        state_block.map(|block| times(block, u64::from(told) * u64::from(BLOCKS_A_SEQUENCE)));
    let bytes_per_token = types.of_a_token(shape);
    let used = CacheUse { tokens: pad(context, BLOCK), sequences, bytes_per_token };
    Cache { bytes: bytes.max(least.unwrap_or_default()), mask: Bytes::ZERO, used, state_block }
}

/// Layers that hold the same tokens of a sequence.
struct Kind {
    reach: Reach,
    /// How many, with those that only fill up the last group.
    layers: u64,
    /// One token in all of them, on one device.
    token: Bytes,
    /// The same in the widest of them.
    widest: Bytes,
}

/// The one pool of blocks that serves layers of all kinds.
struct Pool {
    kinds: Vec<Kind>,
    /// Layers in a group; a block holds as many of one kind.
    group: u64,
    /// A layer's part of a block, where some layers keep states: tokens are put together until it is as large as a state.
    page: Option<Bytes>,
}

impl Pool {
    fn new(shape: &CacheShape, spec: &ModelSpec, types: Types) -> Self {
        let devices = spec.gpu_count.max(1);
        let mut kinds: Vec<Kind> = Vec::new();
        for layer in shape.layers.iter().filter(|layer| layer.count > 0) {
            let reach = effective(layer.reach, spec);
            // Heads are split over the devices; one that there are too few of is on each.
            let token = |count| {
                types.token(&CacheLayers { count, ..*layer }, layer.heads.div_ceil(devices))
            };
            let (all, one, count) = (token(layer.count), token(1), u64::from(layer.count));
            match kinds.iter_mut().find(|kind| kind.reach == reach) {
                Some(kind) => {
                    kind.layers = kind.layers.saturating_add(count);
                    kind.token += all;
                    kind.widest = kind.widest.max(one);
                }
                None => kinds.push(Kind { reach, layers: count, token: all, widest: one }),
            }
        }
        let group = group_size(&kinds);
        for kind in &mut kinds {
            let padded = pad(kind.layers, group);
            kind.token += times(kind.widest, padded - kind.layers);
            kind.layers = padded;
        }
        let widest = |states: bool| {
            let of = kinds.iter().filter(|kind| (kind.reach == Reach::State) == states);
            of.map(|kind| kind.widest).max()
        };
        let page = widest(true).map(|unknown| {
            let state = shape.state.map(|all| Bytes(all.0.div_ceil(u64::from(devices))));
            let state = state.unwrap_or(times(unknown, STATE_TOKENS));
            match widest(false).map(|token| times(token, BLOCK)).filter(|step| *step > Bytes::ZERO)
            {
                Some(step) => Bytes(pad(state.0, step.0)),
                None => state,
            }
        });
        Self { kinds, group, page }
    }
}

/// As many layers as the kind with the fewest has; where none has half as many again, as the one with the most
/// (`_get_kv_cache_groups_uniform_page_size`). At least 1.
fn group_size(kinds: &[Kind]) -> u64 {
    let least = kinds.iter().map(|kind| kind.layers).min().unwrap_or(1);
    let most = kinds.iter().map(|kind| kind.layers).max().unwrap_or(1);
    if most.saturating_mul(2) < least.saturating_mul(3) { most } else { least }
}

/// What vLLM makes of a reach: without its manager of hybrid caches, layers with a window hold everything. The variable turns it
/// off for chunks alone, which nobody tells from windows here.
fn effective(reach: Reach, spec: &ModelSpec) -> Reach {
    let chunks = spec.env.get("VLLM_ALLOW_CHUNKED_LOCAL_ATTN_WITH_HYBRID_KV_CACHE");
    let off = args::has(spec, &["--disable-hybrid-kv-cache-manager"])
        || chunks.is_some_and(|allowed| allowed == "0");
    match reach {
        Reach::Window(_) if off => Reach::Whole,
        Reach::Whole | Reach::Window(_) | Reach::State | Reach::Encoded => reach,
    }
}

/// Tokens that the arguments let it work on at once.
fn said_batch(spec: &ModelSpec) -> Option<u64> {
    args::number(args::value(spec, &["--max-num-batched-tokens"], "")?)
}

/// Bytes of 32 numbers in a cache of this type (`CacheDType` in `config/cache.py`); `None`: the model's own. One that is not known
/// here, as `turboquant_…`, counts as the model's own, which errs upwards.
pub(super) fn block(kind: &str) -> Option<u32> {
    Some(match kind {
        // A sparse MLA cache in fp8 has its scales in between: 656 bytes for 576 numbers.
        "fp8_ds_mla" | "bfloat16" | "float16" | "half" => 64,
        // A scale of 4 bytes beside each head, which is 64 numbers or wider (`TritonAttentionBackend.customize_spec`).
        "fp8_per_token_head" | "int8_per_token_head" => 34,
        "int4_per_token_head" => 18,
        // A byte of scale for 16 numbers (`nvfp4_kv_cache_full_dim`).
        "nvfp4" | "nvfp4_4over6" => 18,
        fp8 if fp8.starts_with("fp8") => 32,
        _ => return None,
    })
}

#[cfg(test)]
mod tests;
