//! A Hugging Face `config.json`: the shape of the key-value cache.
//!
//! Purpose: read from a model's configuration what an estimate needs. Owner: nobody; bytes in, numbers out. Invariants: no input
//! panics; what is not understood is taken as the larger of what it may mean, or is an error, never 0.

mod state;

use serde_json::Value;

use super::gguf::LAYERS_MAX;
use crate::types::{CacheLayers, CacheShape, Reach};

/// The largest `config.json` that is read, in bytes; those with quantisation tables per layer reach 1 MB.
pub const SIZE_MAX: u64 = 4 << 20;
/// Heads, and numbers per head: beyond it the file is damaged.
const WIDTH_MAX: u64 = 1 << 24;

/// Where multimodal models keep the configuration of their text part.
const TEXT_PARTS: [&str; 5] =
    ["text_config", "llm_config", "language_config", "thinker_config", "language_model"];
/// How deep text parts may lie in each other (`thinker_config.text_config`).
const TEXT_DEPTH: usize = 3;

/// Model types whose every layer has the window where nothing else is said. Of any other one a window without a list of
/// layers is not believed, which errs upwards.
const ALL_WINDOWED: [&str; 3] = ["mistral", "mixtral", "starcoder2"];
/// Model types with a fixed pattern: every n-th layer is a whole one.
const PATTERNS: [(&str, u64); 6] = [
    ("gemma2", 2),
    ("gemma3", 6),
    ("gemma3_text", 6),
    ("gemma3n_text", 5),
    ("cohere2", 4),
    ("gpt_oss", 2),
];

/// Model types whose every layer keeps a state beside its attention.
const BOTH: [&str; 1] = ["falcon_h1"];

/// The longest sequence, as vLLM looks for it: the shortest of these (`derive_max_model_len_and_key` in its
/// `transformers_utils/model_arch_config_convertor.py`).
const CONTEXTS: [&str; 8] = [
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "seq_length",
    "max_target_positions",
    "max_sequence_length",
    "max_seq_length",
    "seq_len",
];

/// What model types take for numbers that a file leaves out, by the defaults of their classes in `transformers`. Multimodal
/// models of these types do so.
const CLASS_DEFAULTS: [(&str, &[(&str, u64)]); 3] = [
    (
        "gemma3_text",
        &[
            ("num_attention_heads", 8),
            ("num_key_value_heads", 4),
            ("head_dim", 256),
            ("max_position_embeddings", 131_072),
        ],
    ),
    ("llama", &[("num_hidden_layers", 32), ("num_attention_heads", 32), ("hidden_size", 4096)]),
    (
        "mistral",
        &[
            ("num_hidden_layers", 32),
            ("num_attention_heads", 32),
            ("num_key_value_heads", 8),
            ("hidden_size", 4096),
        ],
    ),
];

/// Reads the cache's shape.
///
/// # Errors
/// With the reason, as a fragment that follows the file's name.
pub fn shape(text: &[u8]) -> Result<CacheShape, String> {
    let root: Value = serde_json::from_slice(text).map_err(|err| format!("is no JSON: {err}"))?;
    if !root.is_object() {
        return Err("is no JSON object".to_owned());
    }
    let mut part = &root;
    for _ in 0..TEXT_DEPTH {
        match TEXT_PARTS.iter().filter_map(|key| part.get(key)).find(|inner| inner.is_object()) {
            Some(inner) => part = inner,
            None => break,
        }
    }
    let config = Config { root: &root, part };
    let layers = config.layers().ok_or("has no num_hidden_layers")?;
    if layers > LAYERS_MAX {
        return Err(format!("has {layers} layers, more than any model"));
    }
    let mut shape = CacheShape {
        layers: Vec::new(),
        context_max: config.context(),
        element_bytes: config.element_bytes(),
        state: config.state(),
    };
    // The last ones may look into the cache of earlier ones (Gemma 3n).
    let own = layers.saturating_sub(config.number(&["num_kv_shared_layers"]).unwrap_or(0));
    for at in 0..own {
        let reach = config.reach(at);
        let more = match reach {
            // A decoder looks at what the encoder made of the input in each layer too.
            Some(_) if config.flag("is_encoder_decoder") => Some(Reach::Encoded),
            Some(Reach::Whole) if BOTH.contains(&config.text("model_type")) => Some(Reach::State),
            Some(_) | None => None,
        };
        for reach in [reach, more].into_iter().flatten() {
            if let Some(layer) = config.layer(at, reach)? {
                shape.push(layer);
            }
        }
    }
    Ok(shape)
}

/// A list of what layers are.
#[derive(Clone, Copy)]
enum Kinds<'a> {
    Words(&'a [Value]),
    /// A letter each (Nemotron-H): `M` keeps a state, `*` is attention.
    Letters(&'a str),
}

impl<'a> Kinds<'a> {
    fn len(self) -> usize {
        match self {
            Self::Words(all) => all.len(),
            Self::Letters(all) => all.len(),
        }
    }

    /// Nothing where the list is too short.
    fn at(self, layer: u64) -> &'a str {
        let at = usize::try_from(layer).unwrap_or(usize::MAX);
        let kind = match self {
            Self::Words(all) => all.get(at).and_then(Value::as_str),
            Self::Letters(all) => at.checked_add(1).and_then(|end| all.get(at..end)),
        };
        kind.unwrap_or_default()
    }
}

struct Config<'a> {
    root: &'a Value,
    /// The text part, or the root again.
    part: &'a Value,
}

impl<'a> Config<'a> {
    fn get(&self, key: &str) -> Option<&'a Value> {
        let said = |value: &'a Value| value.get(key).filter(|v| !v.is_null());
        said(self.part).or_else(|| said(self.root))
    }

    /// The first of several names for the same thing; where none of them is there, what the model's class takes.
    fn number(&self, keys: &[&str]) -> Option<u64> {
        let said = keys.iter().find_map(|key| self.get(key)?.as_u64());
        said.or_else(|| keys.iter().find_map(|key| self.class_default(key)))
    }

    fn class_default(&self, key: &str) -> Option<u64> {
        if self.part.get(key).is_some() {
            return None;
        }
        let kind = self.text("model_type");
        let (_, defaults) = CLASS_DEFAULTS.iter().find(|(name, _)| *name == kind)?;
        defaults.iter().find(|(name, _)| *name == key).map(|(_, value)| *value)
    }

    /// How many; of an encoder–decoder those of the decoder, because an encoder remembers nothing.
    fn layers(&self) -> Option<u64> {
        let decoder = if self.flag("is_encoder_decoder") {
            self.number(&["decoder_layers", "num_decoder_layers"])
        } else {
            None
        };
        let said = || self.number(&["num_hidden_layers", "n_layer", "n_layers", "num_layers"]);
        let listed = || u64::try_from(self.listed()?.len()).ok();
        decoder.or_else(said).or_else(listed)
    }

    fn flag(&self, key: &str) -> bool {
        self.get(key).and_then(Value::as_bool).unwrap_or(false)
    }

    fn text(&self, key: &str) -> &'a str {
        self.get(key).and_then(Value::as_str).unwrap_or_default()
    }

    fn layer(&self, at: u64, reach: Reach) -> Result<Option<CacheLayers>, String> {
        let width = |n: u64| {
            let small = u32::try_from(n).ok().filter(|n| u64::from(*n) <= WIDTH_MAX);
            small.ok_or_else(|| format!("has a width of {n}, more than any model"))
        };
        if let (Some(rank), Some(rope)) =
            (self.number(&["kv_lora_rank"]), self.number(&["qk_rope_head_dim"]))
        {
            // MLA keeps one compressed vector for all heads, keys and values; sparse attention an index beside it.
            let index = self.number(&["index_head_dim"]).unwrap_or(0);
            let key = width(rank)?.saturating_add(width(rope)?).saturating_add(width(index)?);
            return Ok(Some(CacheLayers { count: 1, heads: 1, key, value: 0, reach }));
        }
        let all =
            ["num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads"];
        let all = self.number(&all);
        // Gemma 4 has wider heads where it looks at everything, and where those keep their keys as values too, fewer.
        let global = |key| if reach == Reach::Whole { self.number(&[key]) } else { None };
        let fewer = global("num_global_key_value_heads").filter(|_| self.flag("attention_k_eq_v"));
        let heads = match self.get("num_key_value_heads") {
            Some(Value::Array(each)) => {
                usize::try_from(at).ok().and_then(|i| each.get(i)?.as_u64())
            }
            _ => self.number(&["num_key_value_heads", "num_kv_heads", "n_head_kv"]),
        };
        let heads = fewer.or(heads).or(all).ok_or("has no num_attention_heads")?;
        if heads == 0 {
            return Ok(None);
        }
        let size = global("global_head_dim").or_else(|| self.number(&["head_dim"])).or_else(|| {
            let hidden = self.number(&["hidden_size", "n_embd", "d_model"])?;
            Some(hidden.div_ceil(all.filter(|n| *n > 0)?))
        });
        let size = width(size.ok_or("has neither head_dim nor hidden_size")?)?;
        let heads = width(heads)?;
        Ok(Some(CacheLayers { count: 1, heads, key: size, value: size, reach }))
    }

    /// `None`: the layer has no attention at all.
    fn reach(&self, at: u64) -> Option<Reach> {
        let window = self.window("sliding_window");
        let windowed = |yes: bool| match window {
            Some(window) if yes => Some(Reach::Window(window)),
            _ => Some(Reach::Whole),
        };
        if let Some(kinds) = self.listed() {
            return match kinds.at(at) {
                "sliding_attention" => windowed(true),
                "chunked_attention" => {
                    let chunk = self.window("attention_chunk_size");
                    Some(chunk.map_or(Reach::Whole, Reach::Window))
                }
                "linear_attention" | "mamba" | "mamba2" | "recurrent" | "conv" | "M" => {
                    Some(Reach::State)
                }
                "mlp" | "moe" | "-" | "E" => None,
                _ => Some(Reach::Whole),
            };
        }
        if let Some(whole) = self.whole_among_states(at) {
            return Some(if whole { Reach::Whole } else { Reach::State });
        }
        let kind = self.text("model_type");
        let known = PATTERNS.iter().find(|(name, _)| *name == kind).map(|(_, every)| *every);
        let every = self.number(&["sliding_window_pattern", "_sliding_window_pattern"]).or(known);
        if let Some(every) = every.filter(|n| *n > 0) {
            return windowed(!(at + 1).is_multiple_of(every));
        }
        match self.get("use_sliding_window").and_then(Value::as_bool) {
            // Qwen 2: the layers from here on have the window.
            Some(true) => windowed(self.number(&["max_window_layers"]).is_some_and(|n| at >= n)),
            Some(false) => Some(Reach::Whole),
            None => windowed(ALL_WINDOWED.contains(&kind)),
        }
    }

    /// What each layer is, where the file says it.
    fn listed(&self) -> Option<Kinds<'a>> {
        let words = ["layer_types", "layers_block_type"];
        let words =
            words.iter().find_map(|key| self.get(key)?.as_array()).map(|all| Kinds::Words(all));
        let letters = || self.get("hybrid_override_pattern")?.as_str().map(Kinds::Letters);
        words.or_else(letters)
    }

    /// Whether a layer looks at everything, where all others keep states; `None`: it is not that kind of model.
    fn whole_among_states(&self, at: u64) -> Option<bool> {
        if let Some(every) = self.number(&["full_attention_interval"]).filter(|n| *n > 0) {
            return Some((at + 1).is_multiple_of(every));
        }
        // Jamba.
        if let Some(every) = self.number(&["attn_layer_period"]).filter(|n| *n > 0) {
            let offset = self.number(&["attn_layer_offset"]).unwrap_or(0);
            return Some(at % every == offset);
        }
        // Kimi Linear counts from 1, Bamba from 0.
        let among = |list: &Value, at: u64| {
            let most = usize::try_from(LAYERS_MAX).unwrap_or(usize::MAX);
            Some(list.as_array()?.iter().take(most).any(|n| n.as_u64() == Some(at)))
        };
        let kimi = self.get("linear_attn_config").and_then(|linear| linear.get("full_attn_layers"));
        kimi.and_then(|list| among(list, at + 1))
            .or_else(|| among(self.get("attn_layer_indices")?, at))
    }

    fn window(&self, key: &str) -> Option<u32> {
        self.number(&[key]).and_then(|n| u32::try_from(n).ok()).filter(|n| *n > 0)
    }

    /// The longest sequence that vLLM makes of it, where none is asked for.
    fn context(&self) -> Option<u32> {
        let number = |of: &Value, key: &str| of.get(key)?.as_u64().filter(|n| *n > 0);
        let shortest = |of: &Value| {
            // Command R: this one counts, whatever the others say.
            let told = number(of, "model_max_length");
            told.or_else(|| CONTEXTS.iter().filter_map(|key| number(of, key)).min())
        };
        let own = shortest(self.part).or_else(|| shortest(self.root));
        let own = own.or_else(|| self.class_default("max_position_embeddings"))?;
        let scaled = self.scaled(own).unwrap_or(own);
        Some(u32::try_from(own.max(scaled)).unwrap_or(u32::MAX))
    }

    fn scaled(&self, own: u64) -> Option<u64> {
        let rope = self.get("rope_scaling").or_else(|| self.get("rope_parameters"))?;
        let kind = rope.get("rope_type").or_else(|| rope.get("type"))?.as_str()?;
        // These say how the model's own length came about; vLLM multiplies for all others, except for Gemma 3.
        let told = ["su", "longrope", "llama3", "mrope", "default", "proportional"];
        if told.contains(&kind) || self.text("model_type").starts_with("gemma3") {
            return None;
        }
        let factor = rope.get("factor")?.as_f64().filter(|f| f.is_finite() && *f >= 1.0)?;
        let original = rope.get("original_max_position_embeddings").and_then(Value::as_u64);
        // In thousandths, so that the rest is whole numbers; a cast from f64 saturates.
        let thousandths = (factor * 1000.0).ceil() as u64;
        Some(original.unwrap_or(own).saturating_mul(thousandths) / 1000)
    }

    fn element_bytes(&self) -> Option<u32> {
        let kind = ["dtype", "torch_dtype"].iter().find_map(|key| self.get(key)?.as_str())?;
        match kind {
            "float16" | "bfloat16" | "half" => Some(2),
            "float32" | "float" => Some(4),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests;
