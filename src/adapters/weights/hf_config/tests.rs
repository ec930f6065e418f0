//! Configurations of well-known models in all their forms, and damaged ones.

use proptest::prelude::*;

use super::*;
use crate::types::Bytes;

fn of(text: &str) -> CacheShape {
    shape(text.as_bytes()).unwrap_or_else(|err| panic!("{err}: {text}"))
}

fn layer(count: u32, heads: u32, size: u32, reach: Reach) -> CacheLayers {
    CacheLayers { count, heads, key: size, value: size, reach }
}

#[test]
fn a_plain_model() {
    // Qwen2.5 0.5B Instruct: 896 / 14 = 64 numbers a head.
    let found = of(r#"{"model_type": "qwen2", "hidden_size": 896, "num_hidden_layers": 24,
        "num_attention_heads": 14, "num_key_value_heads": 2, "max_position_embeddings": 32768,
        "max_window_layers": 21, "sliding_window": 32768, "use_sliding_window": false,
        "torch_dtype": "bfloat16"}"#);
    assert_eq!(found.layers, [layer(24, 2, 64, Reach::Whole)]);
    assert_eq!((found.context_max, found.element_bytes), (Some(32_768), Some(2)));
}

#[test]
fn names_of_older_models_and_a_head_for_each() {
    let found = of(r#"{"n_layer": 12, "n_head": 12, "n_embd": 768, "n_positions": 1024,
        "torch_dtype": "float32"}"#);
    assert_eq!(found.layers, [layer(12, 12, 64, Reach::Whole)]);
    assert_eq!((found.context_max, found.element_bytes), (Some(1024), Some(4)));
    let each = of(r#"{"num_hidden_layers": 3, "num_attention_heads": 12, "head_dim": 64,
        "num_key_value_heads": [3, 0, 4]}"#);
    let want = [layer(1, 3, 64, Reach::Whole), layer(1, 4, 64, Reach::Whole)];
    assert_eq!(each.layers, want);
}

#[test]
fn what_a_file_leaves_out_is_what_its_class_takes() {
    // Gemma 3 12B and 4B, instruction tuned: the numbers that their files have.
    let large = of(r#"{"model_type": "gemma3", "text_config": {"hidden_size": 3840,
        "intermediate_size": 15360, "model_type": "gemma3_text", "num_attention_heads": 16,
        "num_hidden_layers": 48, "num_key_value_heads": 8, "sliding_window": 1024,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"}}, "torch_dtype": "bfloat16"}"#);
    let (window, whole) = (Reach::Window(1024), Reach::Whole);
    assert_eq!(large.layers, [layer(40, 8, 256, window), layer(8, 8, 256, whole)]);
    assert_eq!(large.context_max, Some(131_072));
    let small = of(r#"{"model_type": "gemma3", "text_config": {"hidden_size": 2560,
        "intermediate_size": 10240, "model_type": "gemma3_text", "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024}}"#);
    assert_eq!(small.layers, [layer(29, 4, 256, window), layer(5, 4, 256, whole)]);
    assert_eq!(small.context_max, Some(131_072));
    // LLaVA 1.5 7B.
    let llava = of(r#"{"model_type": "llava", "text_config": {"model_type": "llama",
        "max_position_embeddings": 4096, "torch_dtype": "float16", "vocab_size": 32064}}"#);
    assert_eq!(llava.layers, [layer(32, 32, 128, Reach::Whole)]);
    // LLaVA 1.6 with Mistral 7B; what is said to be nothing is not left out.
    let next = of(r#"{"model_type": "llava_next", "text_config": {"model_type": "mistral",
        "max_position_embeddings": 32768, "num_key_value_heads": null, "sliding_window": null}}"#);
    assert_eq!(next.layers, [layer(32, 32, 128, Reach::Whole)]);
    // Of a class that nobody wrote down here nothing is taken.
    assert!(shape(br#"{"model_type": "unheard", "num_hidden_layers": 2}"#).is_err());
}

#[test]
fn windows_in_all_their_forms() {
    let base = r#""num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256"#;
    let reaches = |rest: &str| -> Vec<(u32, Reach)> {
        of(&format!("{{{base}, {rest}}}")).layers.iter().map(|l| (l.count, l.reach)).collect()
    };
    let whole = |n| (n, Reach::Whole);
    let window = |n| (n, Reach::Window(512));
    let gemma = r#""num_hidden_layers": 26, "sliding_window": 512"#;
    assert_eq!(
        reaches(&format!(r#"{gemma}, "model_type": "gemma3_text""#)),
        [window(22), whole(4)]
    );
    assert_eq!(
        reaches(&format!(r#"{gemma}, "sliding_window_pattern": 2"#)),
        [window(13), whole(13)]
    );
    assert_eq!(reaches(&format!(r#"{gemma}, "model_type": "mistral""#)), [window(26)]);
    assert_eq!(reaches(&format!(r#"{gemma}, "model_type": "unheard""#)), [whole(26)]);
    let qwen = format!(r#"{gemma}, "use_sliding_window": true, "max_window_layers": 20"#);
    assert_eq!(reaches(&qwen), [whole(20), window(6)]);
    let listed = r#""num_hidden_layers": 6, "sliding_window": 512, "attention_chunk_size": 8192,
        "layer_types": ["sliding_attention", "full_attention", "linear_attention", "mlp",
        "chunked_attention", "unheard"]"#;
    let want = [window(1), whole(2), (1, Reach::State), (1, Reach::Window(8192))];
    assert_eq!(reaches(listed), want);
    let unsaid = r#""num_hidden_layers": 2, "sliding_window": null,
        "layer_types": ["sliding_attention"]"#;
    assert_eq!(reaches(unsaid), [whole(2)], "what is not said errs upwards");
    let hybrid = r#""num_hidden_layers": 8, "full_attention_interval": 4"#;
    assert_eq!(reaches(hybrid), [(6, Reach::State), whole(2)]);
}

#[test]
fn the_text_part_of_a_multimodal_model() {
    let found = of(r#"{"torch_dtype": "bfloat16", "vision_config": {"num_hidden_layers": 99},
        "text_config": {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 64}}"#);
    assert_eq!(found.layers, [layer(2, 4, 16, Reach::Whole)]);
    assert_eq!(found.element_bytes, Some(2), "said outside");
    let deep = of(r#"{"thinker_config": {"text_config": {"num_hidden_layers": 1,
        "num_attention_heads": 1, "hidden_size": 8}}}"#);
    assert_eq!(deep.layers, [layer(1, 1, 8, Reach::Whole)]);
}

/// Whisper large-v3 turbo: four layers, each of which looks at what is written and at what was heard.
#[test]
fn a_decoder_remembers_what_its_encoder_made_of_the_input() {
    let turbo = of(r#"{"model_type": "whisper", "is_encoder_decoder": true, "d_model": 1280,
        "encoder_layers": 32, "encoder_attention_heads": 20, "decoder_layers": 4,
        "decoder_attention_heads": 20, "num_hidden_layers": 32, "max_source_positions": 1500,
        "max_target_positions": 448, "max_length": 448, "torch_dtype": "float16"}"#);
    assert_eq!(turbo.layers, [layer(4, 20, 64, Reach::Whole), layer(4, 20, 64, Reach::Encoded)]);
    assert_eq!((turbo.context_max, turbo.element_bytes), (Some(448), Some(2)));
}

#[test]
fn the_longest_sequence_by_all_its_names() {
    let context = |said: &str| of(&format!(r#"{{"num_hidden_layers": 0, {said}}}"#)).context_max;
    for key in [
        "max_position_embeddings",
        "n_positions",
        "max_seq_len",
        "seq_length",
        "model_max_length",
        "max_target_positions",
        "max_sequence_length",
        "max_seq_length",
        "seq_len",
    ] {
        assert_eq!(context(&format!(r#""{key}": 77"#)), Some(77), "{key}");
    }
    assert_eq!(context(r#""seq_length": 2048, "max_position_embeddings": 4096"#), Some(2048));
    // Command R.
    assert_eq!(
        context(r#""model_max_length": 131072, "max_position_embeddings": 8192"#),
        Some(131_072)
    );
    // What is said of the text counts before what is said outside.
    let inner = r#""seq_length": 5, "text_config": {"num_hidden_layers": 0, "max_seq_len": 9}"#;
    assert_eq!(context(inner), Some(9));
}

#[test]
fn whole_layers_with_heads_of_their_own_and_shared_caches() {
    // Gemma 4 31B: every sixth layer has 4 heads of 512 numbers, the others 16 of 256.
    let gemma = |rest: &str| {
        let kinds = [r#""sliding_attention""#; 5].join(",") + r#","full_attention""#;
        let kinds = [kinds.as_str(); 10].join(",");
        of(&format!(
            r#"{{"model_type": "gemma4_text", "num_hidden_layers": 60, "num_attention_heads": 32,
            "num_key_value_heads": 16, "num_global_key_value_heads": 4, "head_dim": 256,
            "global_head_dim": 512, "sliding_window": 1024, {rest}, "layer_types": [{kinds}]}}"#
        ))
        .layers
    };
    let window = |n| layer(n, 16, 256, Reach::Window(1024));
    let fewer = gemma(r#""attention_k_eq_v": true"#);
    assert_eq!(fewer, [window(50), layer(10, 4, 512, Reach::Whole)]);
    // Without values that are keys it has as many heads there as anywhere.
    assert_eq!(gemma(r#""attention_k_eq_v": false"#)[1], layer(10, 16, 512, Reach::Whole));
    let shared = gemma(r#""attention_k_eq_v": true, "num_kv_shared_layers": 30"#);
    assert_eq!(shared, [window(25), layer(5, 4, 512, Reach::Whole)]);
}

#[test]
fn hybrid_models_in_all_their_forms() {
    let of = |text: &str| {
        let found = of(text);
        let reaches: Vec<(u32, Reach)> = found.layers.iter().map(|l| (l.count, l.reach)).collect();
        (reaches, found.state)
    };
    let (whole, state) = (|n| (n, Reach::Whole), |n| (n, Reach::State));
    let heads = r#""num_attention_heads": 32, "num_key_value_heads": 2, "head_dim": 128"#;
    // Qwen3.6 35B A3B: 8,192 numbers of three tokens in 2 bytes, and 32 × 128 × 128 in 4.
    let qwen = of(&format!(
        r#"{{"text_config": {{{heads}, "num_hidden_layers": 40, "full_attention_interval": 4,
        "linear_num_key_heads": 16, "linear_key_head_dim": 128, "linear_num_value_heads": 32,
        "linear_value_head_dim": 128, "linear_conv_kernel_dim": 4}}}}"#
    ));
    assert_eq!(qwen, (vec![state(30), whole(10)], Some(Bytes(8192 * 3 * 2 + 32 * 128 * 128 * 4))));
    // Nemotron 3 Nano: 64 heads of 64 numbers × 128 in 4 bytes; (4,096 + 2 × 8 × 128) of three tokens.
    let mamba = r#""mamba_num_heads": 64, "mamba_head_dim": 64, "ssm_state_size": 128, "n_groups": 8,
        "conv_kernel": 4"#;
    let size = Some(Bytes(6144 * 3 * 2 + 64 * 64 * 128 * 4));
    let nemotron = of(&format!(r#"{{{heads}, {mamba}, "hybrid_override_pattern": "MEM*EM-"}}"#));
    assert_eq!(nemotron, (vec![state(3), whole(1)], size));
    let words = r#""layers_block_type": ["mamba", "moe", "attention", "mlp"]"#;
    assert_eq!(of(&format!("{{{heads}, {mamba}, {words}}}")), (vec![state(1), whole(1)], size));
    // Jamba: 8,192 numbers × 16, and of three tokens.
    let jamba = of(&format!(
        r#"{{{heads}, "num_hidden_layers": 16, "attn_layer_period": 8, "attn_layer_offset": 4,
        "hidden_size": 4096, "mamba_expand": 2, "mamba_d_state": 16, "mamba_d_conv": 4}}"#
    ));
    assert_eq!(jamba, (vec![state(14), whole(2)], Some(Bytes(8192 * 3 * 2 + 8192 * 16 * 4))));
    // Kimi Linear counts its layers from 1.
    let kimi = of(&format!(
        r#"{{{heads}, "num_hidden_layers": 4, "linear_attn_config": {{"full_attn_layers": [4],
        "kda_layers": [1, 2, 3], "num_heads": 32, "head_dim": 128, "short_conv_kernel_size": 4}}}}"#
    ));
    let size = Some(Bytes(3 * 4096 * 3 * 2 + 32 * 128 * 128 * 4));
    assert_eq!(kimi, (vec![state(3), whole(1)], size));
    let bamba =
        of(&format!(r#"{{{heads}, "num_hidden_layers": 4, "attn_layer_indices": [0, 2]}}"#));
    assert_eq!(bamba, (vec![whole(2), state(2)], None), "what a state takes is not said");
    // Falcon H1 has both in each layer; LFM2 a convolution alone.
    let falcon = of(&format!(r#"{{{heads}, "model_type": "falcon_h1", "num_hidden_layers": 3}}"#));
    assert_eq!(falcon.0, [whole(3), state(3)]);
    let lfm = of(&format!(
        r#"{{{heads}, "num_hidden_layers": 2, "hidden_size": 2048, "conv_L_cache": 3,
        "layer_types": ["conv", "full_attention"]}}"#
    ));
    assert_eq!(lfm, (vec![state(1), whole(1)], Some(Bytes(2048 * 2 * 2))));
}

/// DeepSeek V3: 512 + 64 numbers for all 128 heads.
#[test]
fn a_compressed_cache() {
    let found = of(r#"{"num_hidden_layers": 61, "num_attention_heads": 128,
        "num_key_value_heads": 128, "hidden_size": 7168, "kv_lora_rank": 512,
        "qk_rope_head_dim": 64, "max_position_embeddings": 163840, "rope_scaling":
        {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096}}"#);
    let want = CacheLayers { count: 61, heads: 1, key: 576, value: 0, reach: Reach::Whole };
    assert_eq!(found.layers, [want]);
    assert_eq!(found.context_max, Some(163_840));
}

#[test]
fn a_stretched_context() {
    let context = |rope: &str| {
        let text = format!(
            r#"{{"num_hidden_layers": 0, "max_position_embeddings": 32768, "rope_scaling": {rope}}}"#
        );
        of(&text).context_max
    };
    let yarn = r#"{"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}"#;
    assert_eq!(context(yarn), Some(131_072));
    // Llama 3.1 writes the stretched length itself.
    let told =
        r#"{"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 8192}"#;
    assert_eq!(context(told), Some(32_768));
    assert_eq!(context(r#"{"type": "linear", "factor": 1e300}"#), Some(u32::MAX));
    for odd in ["null", "{}", "[]", r#"{"type": "yarn", "factor": "x"}"#] {
        assert_eq!(context(odd), Some(32_768), "{odd}");
    }
}

#[test]
fn what_is_missing_or_absurd_is_named() {
    for (text, want) in [
        ("", "is no JSON"),
        ("[]", "is no JSON object"),
        ("{}", "has no num_hidden_layers"),
        (r#"{"num_hidden_layers": 1}"#, "has no num_attention_heads"),
        (r#"{"num_hidden_layers": 1, "num_attention_heads": 4}"#, "has neither head_dim"),
        (r#"{"num_hidden_layers": 99999}"#, "more than any model"),
        (
            r#"{"num_hidden_layers": 1, "num_attention_heads": 4, "head_dim": 99999999999}"#,
            "more than any model",
        ),
    ] {
        let err = shape(text.as_bytes()).unwrap_err();
        assert!(err.contains(want), "{err}");
    }
}

const KEYS: [&str; 23] = [
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_size",
    "max_position_embeddings",
    "sliding_window",
    "use_sliding_window",
    "layer_types",
    "rope_scaling",
    "kv_lora_rank",
    "qk_rope_head_dim",
    "text_config",
    "sliding_window_pattern",
    "full_attention_interval",
    "max_window_layers",
    "layers_block_type",
    "num_kv_shared_layers",
    "attn_layer_period",
    "attn_layer_offset",
    "attn_layer_indices",
    "mamba_d_state",
    "linear_num_value_heads",
];

proptest! {
    #[test]
    fn no_input_panics(bytes: Vec<u8>) {
        let _ = shape(&bytes);
    }

    #[test]
    fn no_values_panic(
        values in proptest::collection::vec((0_usize..6, any::<u64>(), 0_u64..40), KEYS.len()),
    ) {
        let mut map = serde_json::Map::new();
        for (key, (kind, large, small)) in KEYS.iter().zip(values) {
            let value = match kind {
                0 => Value::from(large),
                1 | 2 => Value::from(small),
                3 => Value::from(vec!["sliding_attention"; small as usize]),
                4 => serde_json::json!({"type": "yarn", "factor": large as f64}),
                _ => Value::Null,
            };
            map.insert((*key).to_owned(), value);
        }
        let _ = shape(Value::Object(map).to_string().as_bytes());
    }
}
