//! Headers written as converters write them, cut and damaged in every way.

use proptest::prelude::*;

use super::*;

/// Writes headers as llama.cpp's converters do.
pub(in crate::adapters::weights) struct Builder {
    version: u32,
    entries: u64,
    body: Vec<u8>,
}

impl Builder {
    pub(in crate::adapters::weights) fn new(version: u32) -> Self {
        Self { version, entries: 0, body: Vec::new() }
    }

    fn string(&mut self, text: &str) {
        self.body.extend((text.len() as u64).to_le_bytes());
        self.body.extend(text.as_bytes());
    }

    fn entry(&mut self, key: &str, kind: u32) {
        self.entries += 1;
        self.string(key);
        self.body.extend(kind.to_le_bytes());
    }

    pub(in crate::adapters::weights) fn text(&mut self, key: &str, value: &str) {
        self.entry(key, 8);
        self.string(value);
    }

    pub(in crate::adapters::weights) fn number(&mut self, key: &str, value: u32) {
        self.entry(key, 4);
        self.body.extend(value.to_le_bytes());
    }

    fn numbers(&mut self, key: &str, values: &[i32]) {
        self.entry(key, 9);
        self.body.extend(5_u32.to_le_bytes());
        self.body.extend((values.len() as u64).to_le_bytes());
        values.iter().for_each(|v| self.body.extend(v.to_le_bytes()));
    }

    fn flags(&mut self, key: &str, values: &[bool]) {
        self.entry(key, 9);
        self.body.extend(7_u32.to_le_bytes());
        self.body.extend((values.len() as u64).to_le_bytes());
        values.iter().for_each(|v| self.body.push(u8::from(*v)));
    }

    pub(in crate::adapters::weights) fn strings(&mut self, key: &str, count: u64) {
        self.entry(key, 9);
        self.body.extend(8_u32.to_le_bytes());
        self.body.extend(count.to_le_bytes());
        (0..count).for_each(|n| self.string(&format!("token{n}")));
    }

    pub(in crate::adapters::weights) fn bytes(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend(0_u64.to_le_bytes());
        out.extend(self.entries.to_le_bytes());
        out.extend(&self.body);
        out
    }
}

/// Llama 3 8B.
pub(in crate::adapters::weights) fn llama() -> Vec<u8> {
    let mut header = Builder::new(3);
    header.strings("tokenizer.ggml.tokens", 3);
    header.text("general.architecture", "llama");
    header.number("llama.block_count", 32);
    header.number("llama.context_length", 8192);
    header.number("llama.embedding_length", 4096);
    header.number("llama.attention.head_count", 32);
    header.number("llama.attention.head_count_kv", 8);
    header.bytes()
}

fn layer(count: u32, heads: u32, size: u32, reach: Reach) -> CacheLayers {
    CacheLayers { count, heads, key: size, value: size, reach }
}

#[test]
fn a_plain_model() {
    let found = shape(&llama()).unwrap();
    assert_eq!(found.layers, [layer(32, 8, 128, Reach::Whole)]);
    assert_eq!((found.context_max, found.element_bytes), (Some(8192), Some(2)));
    let mut old = llama();
    old[4] = 2;
    assert_eq!(shape(&old).unwrap(), found);
}

/// Gemma 3 4B as converters write it: 34 layers, 4 key-value heads of 256, a window of 1,024 in five of six layers.
#[test]
fn a_window_by_the_architecture() {
    let mut header = Builder::new(3);
    header.text("general.architecture", "gemma3");
    header.number("gemma3.block_count", 34);
    header.number("gemma3.embedding_length", 2560);
    header.number("gemma3.attention.head_count", 8);
    header.number("gemma3.attention.head_count_kv", 4);
    header.number("gemma3.attention.key_length", 256);
    header.number("gemma3.attention.value_length", 256);
    header.number("gemma3.attention.sliding_window", 1024);
    let found = shape(&header.bytes()).unwrap();
    // 34 = 5 × 6 + 4: five whole ones.
    let want = [layer(29, 4, 256, Reach::Window(1024)), layer(5, 4, 256, Reach::Whole)];
    assert_eq!(found.layers, want);
    assert_eq!(found.context_max, None);
}

#[test]
fn layers_that_differ() {
    let mut header = Builder::new(3);
    header.text("general.architecture", "x");
    header.number("x.block_count", 4);
    header.number("x.embedding_length", 512);
    header.number("x.attention.head_count", 8);
    header.numbers("x.attention.head_count_kv", &[0, 2, 2, 4]);
    header.number("x.attention.sliding_window", 128);
    header.flags("x.attention.sliding_window_pattern", &[true, true, false, true]);
    header.number("x.attention.key_length_swa", 32);
    header.number("x.attention.value_length_swa", 32);
    let want = [
        layer(1, 2, 32, Reach::Window(128)),
        layer(1, 2, 64, Reach::Whole),
        layer(1, 4, 32, Reach::Window(128)),
    ];
    assert_eq!(shape(&header.bytes()).unwrap().layers, want);

    let mut hybrid = Builder::new(3);
    hybrid.text("general.architecture", "qwen3next");
    hybrid.number("qwen3next.block_count", 8);
    hybrid.number("qwen3next.full_attention_interval", 4);
    hybrid.number("qwen3next.attention.head_count", 16);
    hybrid.number("qwen3next.attention.head_count_kv", 2);
    hybrid.number("qwen3next.attention.key_length", 256);
    hybrid.number("qwen3next.attention.value_length", 256);
    let want = [layer(6, 2, 256, Reach::State), layer(2, 2, 256, Reach::Whole)];
    assert_eq!(shape(&hybrid.bytes()).unwrap().layers, want);
}

/// DeepSeek V3: one compressed head of 512 + 64 numbers; llama.cpp's earlier versions keep the 512 once more as value.
#[test]
fn a_compressed_cache() {
    let mut header = Builder::new(3);
    header.text("general.architecture", "deepseek2");
    header.number("deepseek2.block_count", 61);
    header.number("deepseek2.attention.head_count", 128);
    header.number("deepseek2.attention.head_count_kv", 1);
    header.number("deepseek2.attention.key_length", 576);
    header.number("deepseek2.attention.value_length", 512);
    let want = CacheLayers { count: 61, heads: 1, key: 576, value: 512, reach: Reach::Whole };
    assert_eq!(shape(&header.bytes()).unwrap().layers, [want]);
}

#[test]
fn an_encoder_remembers_nothing() {
    let mut header = Builder::new(3);
    header.text("general.architecture", "bert");
    header.number("bert.block_count", 6);
    header.entry("bert.attention.causal", 7);
    header.body.push(0);
    assert!(shape(&header.bytes()).unwrap().layers.is_empty());
}

#[test]
fn what_is_missing_or_damaged_is_named() {
    let err = |bytes: &[u8]| shape(bytes).unwrap_err();
    assert_eq!(err(b"GGML0000"), GgufError::Foreign);
    assert_eq!(err(b"GGUF\x01\0\0\0"), GgufError::Version(1));
    // Big-endian version 3.
    assert_eq!(err(b"GGUF\0\0\0\x03"), GgufError::Version(3 << 24));
    let none = Builder::new(3);
    assert_eq!(err(&none.bytes()), GgufError::Missing("general.architecture".into()));
    let mut half = Builder::new(3);
    half.text("general.architecture", "llama");
    assert_eq!(err(&half.bytes()).to_string(), "its header lacks llama.block_count");
    for steering in ["\x1b]52;c;bGw=\x07", "", "a b", &"x".repeat(65)] {
        let mut odd = Builder::new(3);
        odd.text("general.architecture", steering);
        assert_eq!(err(&odd.bytes()), GgufError::Corrupt("its architecture is no name"));
    }
    half.number("llama.block_count", 100_000);
    assert!(matches!(err(&half.bytes()), GgufError::Corrupt(_)));
    let mut long = llama();
    // The number of entries.
    long[16..24].copy_from_slice(&u64::MAX.to_le_bytes());
    assert!(matches!(err(&long), GgufError::Corrupt(_)));
    let mut text = Builder::new(3);
    text.entry("general.name", 8);
    text.body.extend(u64::MAX.to_le_bytes());
    assert!(matches!(err(&text.bytes()), GgufError::Corrupt(_)));
    let mut deep = Builder::new(3);
    deep.entry("x", 9);
    for _ in 0..64 {
        deep.body.extend(9_u32.to_le_bytes());
        deep.body.extend(1_u64.to_le_bytes());
    }
    assert_eq!(err(&deep.bytes()), GgufError::Corrupt("arrays are nested too deeply"));
}

#[test]
fn a_header_cut_anywhere_asks_for_more() {
    let whole = llama();
    for end in 0..whole.len() {
        assert_eq!(shape(&whole[..end]), Err(GgufError::Truncated), "cut at {end}");
    }
}

#[test]
fn names_of_parts() {
    let want = ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"].map(String::from).to_vec();
    assert_eq!(parts("m-00001-of-00002.gguf"), Some(want));
    for other in ["m.gguf", "m-00002-of-00002.gguf", "m-00001-of-2.gguf", "m-00001-of-00000.gguf"] {
        assert_eq!(parts(other), None, "{other}");
    }
}

proptest! {
    #[test]
    fn no_input_panics(bytes: Vec<u8>) {
        let _ = shape(&bytes);
        let mut begun = b"GGUF\x03\0\0\0".to_vec();
        begun.extend(&bytes);
        let _ = shape(&begun);
    }

    #[test]
    fn no_damage_panics(at in 0_usize..400, with: u8, cut in 0_usize..400) {
        let mut bytes = llama();
        if let Some(byte) = bytes.get_mut(at) {
            *byte = with;
        }
        bytes.truncate(bytes.len().saturating_sub(cut));
        let _ = shape(&bytes);
    }

    #[test]
    fn no_name_panics(name: String) {
        let _ = parts(&name);
    }
}
