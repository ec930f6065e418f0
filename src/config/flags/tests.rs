//! Which arguments and variables are refused, and which pass.

use super::*;

fn refused(engine: EngineKind, arg: &str) -> bool {
    broken_by(engine, arg, false).is_some()
}

#[test]
fn every_form_of_a_refused_flag() {
    use EngineKind::{Llamacpp, Vllm};
    for arg in [
        "-m",
        "-c",
        "--ctx-size",
        "--ctx_size",
        "--ctx-size=8",
        "-np",
        "--host=x",
        "-hf",
        "-hft",
        "--kv-unified-per-slot",
    ] {
        assert!(refused(Llamacpp, arg), "{arg}");
    }
    for arg in [
        "--gpu-memory-utilization=0.9",
        "--gpu_memory_utilization",
        "--gpu-memory-util",
        "-tp",
        "-tp=2",
        "-t",
        "--tensor-parallel",
        "--uds",
        "-dpl",
        "--data-parallel-size-local=2",
        "--nnodes",
        "-n2",
        "-r1",
        "--device-memory-utilization=0.9",
        "--grpc",
        "-pcp",
        "--device-ids",
        "--num-gpu-blocks-override",
        "--root-path",
        "--max-model-len",
        "--kv-cache-memory-bytes",
        "--hf-token=x",
        "--hf-t",
    ] {
        assert!(refused(Vllm, arg), "{arg}");
    }
}

#[test]
fn ordinary_arguments_pass() {
    use EngineKind::{Llamacpp, Vllm};
    for arg in [
        "-ngl",
        "99",
        "--embeddings",
        "--metrics",
        "--hostile",
        "-",
        "--",
        "-1",
        "-cb",
        "",
        "-t",
        "-kvu",
    ] {
        assert!(!refused(Llamacpp, arg), "{arg}");
    }
    for arg in [
        "--enforce-eager",
        "--quantization",
        "awq",
        "--model-impl",
        "--max-num-batched-tokens",
        "--decode-context-parallel-size",
        "-ep",
        "--kv-cache-dtype",
        "--cpu-offload-gb",
        "--trust-remote-code",
        "-q",
        "--mm-ipc-gpu-memory-gb",
        "--max-num-active-seqs",
        "--",
        "--config-format",
        "--hf-overrides",
        "--hf-config-path",
        "0.9",
    ] {
        assert!(!refused(Vllm, arg), "{arg}");
    }
}

#[test]
fn without_weights_the_arguments_may_name_the_model() {
    for (engine, arg) in [(EngineKind::Llamacpp, "-m"), (EngineKind::Vllm, "--model=x")] {
        assert!(refused(engine, arg));
        assert!(broken_by(engine, arg, true).is_none());
    }
    assert!(broken_by(EngineKind::Llamacpp, "--host", true).is_some());
}

#[test]
fn variables_that_mean_a_refused_flag() {
    let (llamacpp, vllm) = (EngineKind::Llamacpp, EngineKind::Vllm);
    let instead = reserved_variable(llamacpp, "LLAMA_ARG_KV_UNIFIED_PER_SLOT");
    assert_eq!(instead, Some("use the keys context and parallel"));
    assert_eq!(reserved_variable(vllm, "LLAMA_ARG_KV_UNIFIED_PER_SLOT"), None);
}

#[test]
fn names_of_variables() {
    for good in ["A", "_x", "HF_HOME2"] {
        assert!(is_env_name(good), "{good}");
    }
    for bad in ["", "2A", "A-B", "A B", "É"] {
        assert!(!is_env_name(bad), "{bad}");
    }
}
