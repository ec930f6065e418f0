//! What a model will need that was never measured.
//!
//! Purpose: from a model's files ([`Anatomy`]) and its specification to bytes per device, part by part: weights, key-value
//! cache, the engine itself. Owner: nobody. Invariants: arithmetic saturates; no input panics; in doubt the larger number,
//! because too much promised costs room and too little an engine that dies while it loads.
//!
//! Not seen are things beside the model that arguments name (draft models, LoRA adapters), and layers that they keep in host memory.
//! Who uses these declares `vram`; a measurement replaces the estimate after the first load.

mod args;
mod context;
mod vllm;

use std::fmt;

use crate::types::{Anatomy, Bytes, CacheLayers, CacheShape, EngineKind, ModelSpec, Reach};

pub use context::{LEFT_FREE, context, is_fitted, shortened};
pub use vllm::{max_num_batched_tokens, max_num_seqs};

/// Beside weights and cache, on each device of llama-server: the CUDA context (0.3–0.5 GiB by card and driver) and the
/// work buffer, of which the scores of 512 tokens for a vocabulary of 150,000 are 0.3 GiB. A rule of thumb.
const LLAMACPP_BASE: Bytes = Bytes::mib(768);
/// Beside weights and cache, on each device of vLLM: CUDA context, CUDA graphs, and the activations of its profiling run,
/// about 2,000 to 8,000 tokens at once. A rule of thumb that errs upwards for models below some 30 billion parameters;
/// the share of the weights covers the larger ones.
const VLLM_BASE: Bytes = Bytes::gib(2);
/// Of the weights, as a divisor: work buffers grow with the model; and layers cannot be split evenly over devices.
const LLAMACPP_SHARE: u32 = 10;
/// The same for vLLM, which splits every layer.
const VLLM_SHARE: u32 = 20;
/// What a projector works in beside its own size: the largest image that it takes, as a rule of thumb that errs upwards.
const PROJECTOR_WORK: Bytes = Bytes::gib(1);
/// llama.cpp's cache as a part of the weights, as a divisor, where nothing describes it. A rule of thumb from before shapes were
/// read; it is too small for long contexts.
const ASSUMED_CACHE_SHARE: u32 = 5;

/// llama.cpp pads contexts and windows to so many tokens (`GGML_PAD(…, 256)` in `llama-kv-cache-iswa.cpp`).
const LLAMACPP_PAD: u64 = 256;
/// Tokens that llama.cpp works on at once; a window's cache holds them on top (`-ub`).
const LLAMACPP_UBATCH: u64 = 512;
/// Sequences where `parallel` is not set: what newer llama-servers choose. Only windows and states depend on it, the
/// context is a total.
const LLAMACPP_SEQUENCES: u64 = 4;

/// A state that does not grow (linear attention, Mamba) counts as a cache of so many tokens where its size is not known:
/// Qwen3-Next keeps about 1 MiB a layer, and its cache would have 2 KiB a token. A rule of thumb that errs upwards.
const STATE_TOKENS: u64 = 1024;

/// What a model is expected to need on each of its devices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Estimate {
    /// All parts together.
    pub bytes_per_device: Bytes,
    /// Per device.
    pub weights: Bytes,
    /// Key-value cache, per device.
    pub kv: Bytes,
    /// The engine itself: contexts, work buffers, its own code; per device.
    pub overhead: Bytes,
    /// The projector with its work buffer, whole on each device, for any of them may be the first; zero: there is none.
    pub projector: Bytes,
    /// What the cache was computed from; `None`: it was assumed to be a part of the weights.
    pub cache: Option<CacheUse>,
    /// Of vLLM, where layers keep states: a block of its cache, per device. Each sequence that it may serve at once wants one.
    pub state_block: Option<Bytes>,
    /// What the files said, from [`Anatomy::source`].
    pub source: String,
}

/// Tokens that a cache is computed for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheUse {
    /// Context, in tokens.
    pub tokens: u64,
    /// So often; 1 where the context is a total for all sequences.
    pub sequences: u64,
    /// Of all layers on all devices, for a token that no window has passed.
    pub bytes_per_token: Bytes,
}

impl fmt::Display for Estimate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            bytes_per_device: all,
            weights,
            kv,
            overhead,
            projector,
            cache,
            state_block: _,
            source,
        } = self;
        write!(f, "{all} on each device: weights {weights}, cache {kv} (")?;
        match cache {
            None => f.write_str("assumed, its shape is not known")?,
            Some(CacheUse { tokens, sequences: 1, bytes_per_token: each }) => {
                write!(f, "{tokens} tokens at {each}")?;
            }
            Some(CacheUse { tokens, sequences, bytes_per_token: each }) => {
                write!(f, "{sequences} sequences of {tokens} tokens at {each}")?;
            }
        }
        write!(f, "), engine {overhead}")?;
        if *projector > Bytes::ZERO {
            write!(f, ", projector {projector}")?;
        }
        write!(f, "; from {source}")
    }
}

/// What a model will need, from what its files say.
///
/// llama.cpp keeps a cache for `context` tokens in all, which its sequences share; vLLM is given one full sequence, and more
/// where `parallel` asks for it. Without `context` it is the length that the model was made for: vLLM takes it by itself, and
/// llama-server is told it (see [`context`]).
///
/// `None` for a vLLM whose cache nothing describes: with less than one full sequence needs it does not start, so that
/// a guess is no better than none.
#[must_use]
pub fn estimate(anatomy: &Anatomy, spec: &ModelSpec) -> Option<Estimate> {
    at(anatomy, spec, spec.context)
}

/// The same with another context than the specification's.
fn at(anatomy: &Anatomy, spec: &ModelSpec, context: Option<u32>) -> Option<Estimate> {
    let devices = spec.gpu_count.max(1);
    let types = Types::of(spec, anatomy.cache.as_ref());
    let weights = match spec.engine {
        EngineKind::Llamacpp => anatomy.weights,
        EngineKind::Vllm => types.widened(anatomy),
    };
    let weights = weights.scale(1, devices);
    let found = anatomy.cache.as_ref().and_then(|shape| cache(shape, spec, context, types));
    if found.is_none() && spec.engine == EngineKind::Vllm {
        return None;
    }
    let kv = found.map_or(weights.scale(1, ASSUMED_CACHE_SHARE), |found| found.bytes);
    let mask = found.map_or(Bytes::ZERO, |found| found.mask);
    let overhead = match spec.engine {
        EngineKind::Llamacpp => LLAMACPP_BASE + weights.scale(1, LLAMACPP_SHARE) + mask,
        EngineKind::Vllm => VLLM_BASE + weights.scale(1, VLLM_SHARE) + mask,
    };
    let projector = match anatomy.projector {
        Bytes::ZERO => Bytes::ZERO,
        size => size + PROJECTOR_WORK,
    };
    Some(Estimate {
        bytes_per_device: weights + kv + overhead + projector,
        weights,
        kv,
        overhead,
        projector,
        cache: found.map(|found| found.used),
        state_block: found.and_then(|found| found.state_block),
        source: anatomy.source.clone(),
    })
}

/// What a cache comes to on one device.
#[derive(Clone, Copy)]
struct Cache {
    bytes: Bytes,
    /// llama.cpp's attention masks: part of its work buffer, and the part that grows with the context.
    mask: Bytes,
    used: CacheUse,
    /// As [`Estimate::state_block`].
    state_block: Option<Bytes>,
}

/// `None` where the context is known to nobody.
fn cache(
    shape: &CacheShape,
    spec: &ModelSpec,
    context: Option<u32>,
    types: Types,
) -> Option<Cache> {
    if shape.layers.is_empty() {
        let used = CacheUse { tokens: 0, sequences: 1, bytes_per_token: Bytes::ZERO };
        return Some(Cache { bytes: Bytes::ZERO, mask: Bytes::ZERO, used, state_block: None });
    }
    let context = u64::from(context.or(shape.context_max)?);
    Some(match spec.engine {
        EngineKind::Llamacpp => llamacpp_cache(shape, spec, types, context),
        EngineKind::Vllm => vllm::cache(shape, spec, types, context),
    })
}

fn llamacpp_cache(shape: &CacheShape, spec: &ModelSpec, types: Types, context: u64) -> Cache {
    let layers = shape.layers.iter();
    let cells = |layer: &CacheLayers| llamacpp_tokens(layer.reach, context, spec);
    let held = |layer: &CacheLayers| times(types.token(layer, layer.heads), cells(layer));
    let all: Bytes = layers.clone().map(held).sum();
    // One f16 for each token of the cache and each that is worked on: once for whole layers, once for windows.
    let widest = |windowed: bool| {
        let window = |l: &&CacheLayers| matches!(l.reach, Reach::Window(_)) == windowed;
        let cells = layers.clone().filter(window).map(cells).max().unwrap_or(0);
        times(Bytes(cells), llamacpp_batch(spec).saturating_mul(2))
    };
    let bytes_per_token = types.of_a_token(shape);
    let used = CacheUse { tokens: pad(context, LLAMACPP_PAD), sequences: 1, bytes_per_token };
    let bytes = all.scale(1, spec.gpu_count.max(1));
    Cache { bytes, mask: widest(false) + widest(true), used, state_block: None }
}

/// Tokens that llama.cpp works on at once.
fn llamacpp_batch(spec: &ModelSpec) -> u64 {
    let batch = args::value(spec, &["-ub", "--ubatch-size"], "LLAMA_ARG_UBATCH");
    batch.and_then(|text| text.parse().ok()).unwrap_or(LLAMACPP_UBATCH)
}

/// Tokens that a layer of llama.cpp holds, for all sequences together.
fn llamacpp_tokens(reach: Reach, context: u64, spec: &ModelSpec) -> u64 {
    let sequences = spec.parallel.map_or(LLAMACPP_SEQUENCES, u64::from).max(1);
    let whole = pad(context, LLAMACPP_PAD);
    match reach {
        Reach::Whole | Reach::Encoded => whole,
        Reach::State => sequences.saturating_mul(STATE_TOKENS),
        Reach::Window(window) => {
            let (window, batch) = (u64::from(window), llamacpp_batch(spec));
            let full = args::has(spec, &["--swa-full"]);
            if full || spec.env.contains_key("LLAMA_ARG_SWA_FULL") {
                return whole;
            }
            // Hostler asks for one cache that all sequences share; the arguments may undo it.
            let held = if args::has(spec, &["--no-kv-unified", "-no-kvu"]) {
                pad(window.saturating_add(batch), LLAMACPP_PAD).saturating_mul(sequences)
            } else {
                pad(window.saturating_mul(sequences).saturating_add(batch), LLAMACPP_PAD)
            };
            held.min(whole)
        }
    }
}

fn pad(tokens: u64, to: u64) -> u64 {
    tokens.div_ceil(to).saturating_mul(to)
}

fn times(bytes: Bytes, n: u64) -> Bytes {
    Bytes(bytes.0.saturating_mul(n))
}

/// How large a number of the cache is, in bytes per 32 of them: llama.cpp's quantised types come in blocks of 32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Types {
    key: u32,
    value: u32,
    /// Of the model's own numbers.
    element: u32,
}

impl Types {
    fn of(spec: &ModelSpec, shape: Option<&CacheShape>) -> Self {
        let stored = shape.and_then(|s| s.element_bytes).unwrap_or(2).clamp(1, 8);
        match spec.engine {
            EngineKind::Llamacpp => {
                let key = args::value(spec, &["-ctk", "--cache-type-k"], "LLAMA_ARG_CACHE_TYPE_K");
                let value =
                    args::value(spec, &["-ctv", "--cache-type-v"], "LLAMA_ARG_CACHE_TYPE_V");
                Self { key: llamacpp_block(key), value: llamacpp_block(value), element: stored }
            }
            EngineKind::Vllm => {
                let element = match args::value(spec, &["--dtype"], "") {
                    Some("float32" | "float") => 4,
                    Some("float16" | "half" | "bfloat16") => 2,
                    // vLLM makes f32 models half as wide of its own accord; counting the whole errs upwards.
                    _ => stored,
                };
                let kind = args::value(spec, &["--kv-cache-dtype"], "");
                let block = kind.and_then(vllm::block).unwrap_or(element * 32);
                Self { key: block, value: block, element }
            }
        }
    }

    /// Weights that are made wider while they are loaded (`--dtype float32`).
    fn widened(self, anatomy: &Anatomy) -> Bytes {
        let stored = anatomy.cache.as_ref().and_then(|s| s.element_bytes).unwrap_or(2).clamp(1, 8);
        if self.element > stored {
            anatomy.weights.scale(self.element, stored)
        } else {
            anatomy.weights
        }
    }

    /// One token in all layers that keep tokens of what is written, on all devices.
    fn of_a_token(self, shape: &CacheShape) -> Bytes {
        let grows = |l: &&CacheLayers| !matches!(l.reach, Reach::State | Reach::Encoded);
        shape.layers.iter().filter(grows).map(|layer| self.token(layer, layer.heads)).sum()
    }

    /// One token in so many heads of each of these layers.
    fn token(self, layer: &CacheLayers, heads: u32) -> Bytes {
        let numbers = |width: u32, block: u32| u64::from(width) * u64::from(block);
        let head = numbers(layer.key, self.key).saturating_add(numbers(layer.value, self.value));
        let all = head.saturating_mul(u64::from(heads)).saturating_mul(u64::from(layer.count));
        Bytes(all.div_ceil(32))
    }
}

/// Bytes of 32 numbers; sizes of blocks as in `ggml-common.h`. An unknown word is f16, llama.cpp's default.
fn llamacpp_block(kind: Option<&str>) -> u32 {
    match kind.unwrap_or("f16") {
        "f32" => 128,
        "q8_0" => 34,
        "q5_1" => 24,
        "q5_0" => 22,
        "q4_1" => 20,
        "q4_0" | "iq4_nl" => 18,
        _ => 64,
    }
}

#[cfg(test)]
mod tests;
