//! The header of a GGUF file: the shape of its key-value cache.
//!
//! Purpose: read from the first bytes of a file what an estimate needs, and nothing else. Owner: nobody; bytes in, numbers
//! out. Invariants: no input panics; nothing is allocated in proportion to a length that the file claims; a length beyond
//! its limit is [`GgufError::Corrupt`], not a request for more bytes. Format: GGUF v2 and v3, little-endian; names of
//! keys as llama.cpp writes and reads them.

use std::collections::BTreeMap;

use crate::types::{CacheLayers, CacheShape, Reach};

/// Bytes in the name of a key; the format's own limit.
const KEY_MAX: u64 = 65_535;
/// Entries in the metadata; real files have fewer than a hundred.
const ENTRIES_MAX: u64 = 1 << 16;
/// Bytes of a string, and items of an array; the largest known vocabularies have a fortieth of it.
const LENGTH_MAX: u64 = 1 << 24;
/// The longest name of an architecture, in bytes.
const NAME_MAX: usize = 64;
/// Arrays of arrays; real files have none.
const DEPTH_MAX: u32 = 4;
/// Layers of a model; the deepest known have fewer than 200.
pub(super) const LAYERS_MAX: u64 = 1024;

/// Why a header gives no shape.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GgufError {
    /// The file does not begin as GGUF does.
    #[error("it is no GGUF file")]
    Foreign,
    /// A version whose layout is not known here: 1, a future one, or a big-endian file.
    #[error("GGUF version {0} is not known")]
    Version(u32),
    /// The header goes on after the bytes that were given; with more of them it may be read.
    #[error("the file ends within its header")]
    Truncated,
    /// It contradicts itself or exceeds a limit.
    #[error("its header is damaged: {0}")]
    Corrupt(&'static str),
    /// A key without which there is no shape.
    #[error("its header lacks {0}")]
    Missing(String),
}

/// Reads the cache's shape from the beginning of a file (of the first one, where a model is split).
///
/// # Errors
/// See [`GgufError`]; on [`GgufError::Truncated`] try again with more of the file.
pub fn shape(bytes: &[u8]) -> Result<CacheShape, GgufError> {
    let mut name = None;
    walk(bytes, |key, value| {
        if let (b"general.architecture", Value::Text(text)) = (key, value) {
            name = std::str::from_utf8(text).ok().map(str::to_owned);
        }
        name.is_none()
    })?;
    let name = name.ok_or_else(|| GgufError::Missing("general.architecture".to_owned()))?;
    if !is_name(&name) {
        return Err(GgufError::Corrupt("its architecture is no name"));
    }
    let mut keys = Keys { name: &name, known: BTreeMap::new() };
    walk(bytes, |key, value| {
        let own = key.strip_prefix(name.as_bytes()).and_then(|rest| rest.strip_prefix(b"."));
        if let Some(&wanted) = WANTED.iter().find(|wanted| own == Some(wanted.as_bytes())) {
            keys.known.insert(wanted, value);
        }
        true
    })?;
    keys.shape()
}

/// Whether it can be the name of an architecture, which is told to people: `llama`, `gpt-oss`, `qwen2moe`.
fn is_name(text: &str) -> bool {
    let usual = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    (1..=NAME_MAX).contains(&text.len()) && text.bytes().all(usual)
}

/// The names of all files of a model in several, `…-00001-of-00003.gguf`, in order; `None` where the name is no first part.
#[must_use]
pub fn parts(name: &str) -> Option<Vec<String>> {
    let rest = name.strip_suffix(".gguf")?;
    let (stem, count) = rest.rsplit_once("-of-")?;
    let stem = stem.strip_suffix("-00001")?;
    if count.len() != 5 || !count.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let parts: u32 = count.parse().ok()?;
    (parts > 0)
        .then(|| (1..=parts).map(|part| format!("{stem}-{part:05}-of-{count}.gguf")).collect())
}

const BLOCKS: &str = "block_count";
const CONTEXT: &str = "context_length";
const WIDTH: &str = "embedding_length";
const INTERVAL: &str = "full_attention_interval";
const HEADS: &str = "attention.head_count";
const KV_HEADS: &str = "attention.head_count_kv";
const KEY: &str = "attention.key_length";
const VALUE: &str = "attention.value_length";
const KEY_SWA: &str = "attention.key_length_swa";
const VALUE_SWA: &str = "attention.value_length_swa";
const CAUSAL: &str = "attention.causal";
const WINDOW: &str = "attention.sliding_window";
const PATTERN: &str = "attention.sliding_window_pattern";

/// Below the architecture's name; each is read by llama.cpp for the size of its cache.
const WANTED: [&str; 13] = [
    BLOCKS, CONTEXT, WIDTH, INTERVAL, HEADS, KV_HEADS, KEY, VALUE, KEY_SWA, VALUE_SWA, CAUSAL,
    WINDOW, PATTERN,
];

/// Architectures whose pattern llama.cpp knows itself: every n-th layer looks at the whole context, the others at the
/// window. One that is not listed and says nothing is taken to look at everything, which errs upwards.
const PATTERNS: [(&str, u64); 5] =
    [("gemma2", 2), ("gemma3", 6), ("gemma3n", 5), ("gpt-oss", 2), ("cohere2", 4)];

/// One value of the metadata, as far as any is needed.
#[derive(Clone, Copy, Debug)]
enum Value<'a> {
    Number(u64),
    Flag(bool),
    Text(&'a [u8]),
    /// Items of one fixed size.
    Items {
        kind: u32,
        items: &'a [u8],
    },
    /// Floats, negative numbers, arrays of strings.
    Other,
}

struct Keys<'a> {
    name: &'a str,
    known: BTreeMap<&'static str, Value<'a>>,
}

impl Keys<'_> {
    fn shape(&self) -> Result<CacheShape, GgufError> {
        let missing = |key: &str| GgufError::Missing(format!("{}.{key}", self.name));
        let layers = self.number(BLOCKS, 0).ok_or_else(|| missing(BLOCKS))?;
        if layers > LAYERS_MAX {
            return Err(GgufError::Corrupt("it has too many layers"));
        }
        let context_max = self.number(CONTEXT, 0).and_then(|n| u32::try_from(n).ok());
        let mut shape = CacheShape {
            context_max: context_max.filter(|n| *n > 0),
            // llama.cpp's own default; a GGUF file names no other type for what is computed.
            element_bytes: Some(2),
            ..CacheShape::default()
        };
        if let Some(Value::Flag(false)) = self.known.get(CAUSAL) {
            // An encoder sees its whole input at once and remembers nothing.
            return Ok(shape);
        }
        for layer in 0..layers {
            let heads = self.number(KV_HEADS, layer).or_else(|| self.number(HEADS, layer));
            let heads = heads.ok_or_else(|| missing(HEADS))?;
            let reach = self.reach(layer);
            // Hybrid models have layers without attention; their small states are part of the overhead.
            if heads == 0 {
                continue;
            }
            let windowed = matches!(reach, Reach::Window(_));
            let length = |short: &'static str, own: &'static str| {
                let special = if windowed { self.number(short, layer) } else { None };
                let length = special.or_else(|| self.number(own, layer)).or_else(|| {
                    let all = self.number(HEADS, layer).filter(|n| *n > 0)?;
                    Some(self.number(WIDTH, layer)?.div_ceil(all))
                });
                length.and_then(|n| u32::try_from(n).ok()).ok_or_else(|| missing(own))
            };
            let (key, value) = (length(KEY_SWA, KEY)?, length(VALUE_SWA, VALUE)?);
            let heads = u32::try_from(heads).map_err(|_| GgufError::Corrupt("too many heads"))?;
            shape.push(CacheLayers { count: 1, heads, key, value, reach });
        }
        Ok(shape)
    }

    /// As llama.cpp decides it: of a period n the last layer is a whole one; of a period 0 none is.
    fn reach(&self, layer: u64) -> Reach {
        if let Some(every) = self.number(INTERVAL, layer)
            && every > 0
            && !(layer + 1).is_multiple_of(every)
        {
            return Reach::State;
        }
        let window = self.number(WINDOW, layer).and_then(|n| u32::try_from(n).ok());
        let Some(window) = window.filter(|n| *n > 0) else { return Reach::Whole };
        let known = PATTERNS.iter().find(|(name, _)| *name == self.name).map(|(_, every)| *every);
        let windowed = match self.known.get(PATTERN) {
            Some(Value::Items { .. }) => self.number(PATTERN, layer).is_some_and(|n| n != 0),
            Some(Value::Number(every)) => !(layer + 1).is_multiple_of(*every),
            Some(Value::Flag(_) | Value::Text(_) | Value::Other) | None => {
                known.is_some_and(|every| !(layer + 1).is_multiple_of(every))
            }
        };
        if windowed { Reach::Window(window) } else { Reach::Whole }
    }

    /// A number for one layer: the same for all, or from an array; booleans in arrays count as 0 and 1.
    fn number(&self, key: &str, layer: u64) -> Option<u64> {
        match self.known.get(key)? {
            Value::Number(n) => Some(*n),
            Value::Items { kind, items } => {
                let size = size_of(*kind)?;
                let at = layer.checked_mul(size)?;
                let at = usize::try_from(at).ok()?;
                number_of(*kind, items.get(at..)?.get(..usize::try_from(size).ok()?)?)
            }
            Value::Flag(_) | Value::Text(_) | Value::Other => None,
        }
    }
}

/// Bytes of a value of a fixed size; the numbers are the format's.
const fn size_of(kind: u32) -> Option<u64> {
    match kind {
        // u8, i8, bool
        0 | 1 | 7 => Some(1),
        // u16, i16
        2 | 3 => Some(2),
        // u32, i32, f32
        4..=6 => Some(4),
        // u64, i64, f64
        10..=12 => Some(8),
        _ => None,
    }
}

/// A whole number of zero or more.
fn number_of(kind: u32, bytes: &[u8]) -> Option<u64> {
    let float = matches!(kind, 6 | 12);
    let signed = matches!(kind, 1 | 3 | 5 | 11);
    let negative = signed && bytes.last().is_some_and(|b| b & 0x80 != 0);
    if float || negative || bytes.len() > 8 {
        return None;
    }
    Some(bytes.iter().rev().fold(0, |n, byte| (n << 8) | u64::from(*byte)))
}

/// Calls `each` with every key and value, until it says no.
fn walk<'a>(
    bytes: &'a [u8],
    mut each: impl FnMut(&'a [u8], Value<'a>) -> bool,
) -> Result<(), GgufError> {
    let mut reader = Reader { rest: bytes };
    if reader.take(4)? != b"GGUF" {
        return Err(GgufError::Foreign);
    }
    let version = reader.u32()?;
    if !(2..=3).contains(&version) {
        return Err(GgufError::Version(version));
    }
    let _tensors = reader.u64()?;
    let entries = reader.u64()?;
    if entries > ENTRIES_MAX {
        return Err(GgufError::Corrupt("it has too many entries"));
    }
    for _ in 0..entries {
        let length = reader.u64()?;
        if length > KEY_MAX {
            return Err(GgufError::Corrupt("the name of a key is too long"));
        }
        let key = reader.take(length)?;
        let kind = reader.u32()?;
        let value = reader.value(kind, 0)?;
        if !each(key, value) {
            return Ok(());
        }
    }
    Ok(())
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn take(&mut self, length: u64) -> Result<&'a [u8], GgufError> {
        let length = usize::try_from(length).map_err(|_| GgufError::Corrupt("a length"))?;
        let (taken, rest) = self.rest.split_at_checked(length).ok_or(GgufError::Truncated)?;
        self.rest = rest;
        Ok(taken)
    }

    fn u32(&mut self) -> Result<u32, GgufError> {
        Ok(self.take(4)?.iter().rev().fold(0, |n, byte| (n << 8) | u32::from(*byte)))
    }

    fn u64(&mut self) -> Result<u64, GgufError> {
        Ok(self.take(8)?.iter().rev().fold(0, |n, byte| (n << 8) | u64::from(*byte)))
    }

    /// How many bytes or items follow.
    fn length(&mut self) -> Result<u64, GgufError> {
        let length = self.u64()?;
        if length > LENGTH_MAX {
            return Err(GgufError::Corrupt("a string or an array is too long"));
        }
        Ok(length)
    }

    fn value(&mut self, kind: u32, depth: u32) -> Result<Value<'a>, GgufError> {
        if let Some(size) = size_of(kind) {
            let bytes = self.take(size)?;
            return Ok(match (kind, number_of(kind, bytes)) {
                (7, Some(flag)) => Value::Flag(flag != 0),
                (_, Some(number)) => Value::Number(number),
                (_, None) => Value::Other,
            });
        }
        match kind {
            8 => {
                let length = self.length()?;
                Ok(Value::Text(self.take(length)?))
            }
            9 if depth < DEPTH_MAX => {
                let (kind, count) = (self.u32()?, self.length()?);
                if let Some(size) = size_of(kind) {
                    // Both are bounded far below what a u64 holds.
                    return Ok(Value::Items { kind, items: self.take(count * size)? });
                }
                // Each item takes at least 8 bytes of what is there, so the loop is bounded by the input.
                for _ in 0..count {
                    self.value(kind, depth + 1)?;
                }
                Ok(Value::Other)
            }
            9 => Err(GgufError::Corrupt("arrays are nested too deeply")),
            _ => Err(GgufError::Corrupt("a value has an unknown type")),
        }
    }
}

#[cfg(test)]
pub(super) mod tests;
