//! What containers' units and command lines share. PURE.

use crate::types::EngineKind;

/// Programs whose images are named as an engine's, and are none.
const OTHERS: [(&str, &str); 5] = [
    ("ollama", "Ollama, which keeps models of its own; docs/coming-from.md says how to move them"),
    ("llama-swap", "llama-swap; hostler import llama-swap translates its configuration"),
    ("llama-stack", "Llama Stack, which Hostler does not run"),
    ("llamastack", "Llama Stack, which Hostler does not run"),
    ("sglang", "SGLang, which Hostler does not run yet"),
];

/// What is in an image whose name only looks like an engine's.
pub fn other(image: &str) -> Option<&'static str> {
    let (name, rest) = image.rsplit_once('/').unwrap_or(("", image));
    let image = format!("{name}/{}", rest.split([':', '@']).next().unwrap_or_default());
    let image = image.to_ascii_lowercase();
    OTHERS.iter().find(|(name, _)| image.contains(name)).map(|(_, what)| *what)
}

/// The engine in an image, by the image's name.
pub fn guess(image: &str) -> Option<EngineKind> {
    let name = image.to_ascii_lowercase();
    if other(image).is_some() {
        None
    } else if name.contains("vllm") {
        Some(EngineKind::Vllm)
    } else if name.contains("llama") {
        Some(EngineKind::Llamacpp)
    } else {
        None
    }
}

/// podman's way to write a size, in Hostler's.
pub fn shm_size(value: &str) -> String {
    let text = value.trim_end_matches(['b', 'B', 'i']).to_ascii_uppercase();
    let (number, unit) = text.split_at(text.len().saturating_sub(1));
    match unit {
        "K" | "M" | "G" => format!("{number}{unit}iB"),
        _ => format!("{text}B"),
    }
}

/// Why a variable does not belong into an engine's environment.
pub fn unwanted(name: &str) -> Option<&'static str> {
    if ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"].contains(&name) {
        return Some("engines run offline, and hostler add takes HF_TOKEN itself");
    }
    let devices = name.ends_with("_VISIBLE_DEVICES");
    devices.then_some("Hostler decides which devices an engine sees")
}

/// A GPU's UUID, from the name of its CDI device.
///
/// # Errors
/// With the reason why it says no device that Hostler can be told.
pub fn gpu(value: &str) -> Result<String, String> {
    let Some(name) = value.strip_prefix("nvidia.com/gpu=") else {
        return Err("an engine gets GPUs only, by CDI".to_owned());
    };
    if name == "all" {
        return Err(
            "Hostler chooses the devices; gpu_count says how many, 1 unless told".to_owned()
        );
    }
    if name.starts_with("GPU-") || name.starts_with("MIG-") {
        return Ok(name.to_owned());
    }
    Err("is a device by its number, which can change; nvidia-smi -L shows its UUID for gpus = [\"GPU-…\"]".to_owned())
}

/// Of a command line that names its program behind the image: there the image's own entry point runs what it is told.
pub const ENTRY: &str =
    "Hostler starts the engine of the image; use an image whose entry point is the engine";

/// The program's name without its directory.
pub fn name(word: &str) -> &str {
    word.rsplit('/').next().unwrap_or(word)
}

/// Where the engine's program is in a command line, how many words name it, and which engine it is.
pub fn program(words: &[String]) -> Option<(usize, usize, EngineKind)> {
    words.iter().enumerate().find_map(|(at, word)| {
        let next = |n: usize| words.get(at + n).map(String::as_str);
        if name(word).starts_with("llama-server") {
            return Some((at, 1, EngineKind::Llamacpp));
        }
        if name(word) == "vllm" && next(1) == Some("serve") {
            return Some((at, 2, EngineKind::Vllm));
        }
        let module = name(word).starts_with("python")
            && next(1) == Some("-m")
            && next(2).is_some_and(|module| module.starts_with("vllm.entrypoints."));
        module.then_some((at, 3, EngineKind::Vllm))
    })
}

/// Whether a program is a shell, of whose script nobody here knows what it starts.
pub fn is_shell(program: &str) -> bool {
    ["sh", "bash", "dash", "zsh", "fish"].contains(&name(program))
}

/// On how many devices of CDI a container runs, where each is named.
pub fn devices<'d>(values: impl Iterator<Item = &'d str>) -> usize {
    values.filter(|value| value.starts_with("nvidia.com/gpu=") && !value.ends_with("=all")).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_engine_goes_by_its_images_name_and_others_do_not() {
        for (image, engine) in [
            ("registry.example/llama.cpp:server-cuda", Some(EngineKind::Llamacpp)),
            ("localhost/hostler/llama-server", Some(EngineKind::Llamacpp)),
            ("registry.example:5000/VLLM/x@sha256:0", Some(EngineKind::Vllm)),
            ("registry.example/ollama/ollama:latest", None),
            ("registry.example/llama-swap:cuda", None),
            ("registry.example/llamastack/distribution-vllm", None),
            ("registry.example/sglang:llama", None),
            ("registry.example/x", None),
        ] {
            assert_eq!(guess(image), engine, "{image}");
        }
        assert!(other("registry.example/ollama/ollama").unwrap().contains("Ollama"));
        assert_eq!(other("registry.example/x:ollama"), None);
    }
}
