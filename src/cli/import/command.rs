//! What a `cmd` of llama-swap starts: an engine of the host, an engine in a container, or something else. PURE.

use std::collections::BTreeMap;

use toml::Value;

use super::container;
use super::left::Why;
use crate::cli::add::container::{is_shell, name, program};
use crate::cli::add::volumes::Volume;
use crate::types::EngineKind;

/// An engine, as the command starts it.
#[derive(Clone, Debug, PartialEq)]
pub struct Started {
    /// Which.
    pub engine: EngineKind,
    /// Its image; `None`: a program of the host.
    pub image: Option<String>,
    /// The engine's own command line, behind its program's name.
    pub exec: Vec<String>,
    /// Its environment.
    pub env: BTreeMap<String, String>,
    /// What the container has beside its image.
    pub volumes: Vec<Volume>,
    /// UUIDs of its devices.
    pub gpus: Vec<String>,
    /// How many devices it is given, where that is said.
    pub devices: usize,
    /// Other keys of Hostler.
    pub keys: Vec<(&'static str, Value)>,
    /// What was not taken over.
    pub left: Vec<(String, Why)>,
}

impl Started {
    /// An engine of the host.
    pub fn new(engine: EngineKind, exec: Vec<String>) -> Self {
        Self {
            engine,
            image: None,
            exec,
            env: BTreeMap::new(),
            volumes: Vec::new(),
            gpus: Vec::new(),
            devices: 0,
            keys: Vec::new(),
            left: Vec::new(),
        }
    }
}

/// Stands for `#` while words are split: only lines that begin with it are comments in llama-swap.
const HASH: &str = "\u{E000}";

/// Splits a command into words as llama-swap does: lines that begin with `#` are left out, the others are one command.
///
/// # Errors
/// For a quote that does not end.
pub fn words(cmd: &str) -> Result<Vec<String>, Why> {
    let lines = cmd.lines().filter(|line| !line.trim_start().starts_with('#'));
    let whole: Vec<&str> = lines
        .map(|line| {
            let trimmed = line.trim();
            trimmed.strip_suffix('\\').unwrap_or(line)
        })
        .collect();
    let words = shlex::split(&whole.join("\n").replace('#', HASH))
        .ok_or_else(|| Why::new("has a quote that does not end", "correct it, and import again"))?;
    Ok(words.into_iter().map(|word| word.replace(HASH, "#")).collect())
}

/// What a command starts.
///
/// # Errors
/// If it is no engine that Hostler runs.
pub fn read(cmd: &str) -> Result<Started, Why> {
    let words = words(cmd)?;
    let Some(first) = words.first() else {
        return Err(Why::new("is empty", "write the engine's command"));
    };
    if container::is_one(&words) {
        return container::read(&words);
    }
    if is_shell(first) {
        return Err(shell());
    }
    let Some((at, length, engine)) = program(&words) else {
        return Err(unknown(name(first), &words));
    };
    let (before, after) = words.split_at(at);
    let mut started = Started::new(engine, after.iter().skip(length).cloned().collect());
    let mut wrapper = Vec::new();
    for word in before {
        match word.split_once('=') {
            _ if name(word) == "env" || word == "exec" => {}
            Some((name, value)) if !name.starts_with('-') && wrapper.is_empty() => {
                started.env.insert(name.to_owned(), value.to_owned());
            }
            _ => wrapper.push(word.as_str()),
        }
    }
    if !wrapper.is_empty() {
        let key = format!("cmd: {}", wrapper.join(" "));
        let why = Why::new(
            "an engine of Hostler is a container's first process, with nothing around it",
            "look for a key or an argument of the engine that does the same",
        );
        started.left.push((key, why));
    }
    Ok(started)
}

/// Why a shell is none.
pub fn shell() -> Why {
    Why::new(
        "starts a shell, and its script is not read here",
        "write the engine's own command in its place, and import again",
    )
}

/// Why a program is none that Hostler runs.
pub fn unknown(program: &str, words: &[String]) -> Why {
    if words.iter().any(|word| word.contains("sglang")) {
        return Why::new(
            "starts SGLang, which Hostler does not run yet",
            "let it run as a service of its own, and define it with engine = \"external\" and its url",
        );
    }
    Why::new(
        format!("starts {program}, and Hostler runs llama-server and vLLM only"),
        "let it run as a service of its own, and define it with engine = \"external\" and its url",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_as_llama_swap_splits_them() {
        let split = |text| words(text).unwrap();
        assert_eq!(
            split("# a comment\nllama-server \\\n  --x 'a b' # no comment\n  -y \"#1\"\n"),
            ["llama-server", "--x", "a b", "#", "no", "comment", "-y", "#1"]
        );
        assert!(words("llama-server 'x").is_err());
    }

    #[test]
    fn engines_of_the_host() {
        use EngineKind::{Llamacpp, Vllm};
        let table: [(&str, EngineKind, &[&str]); 4] = [
            ("/opt/llama-server-b6123 -m /m.gguf", Llamacpp, &["-m", "/m.gguf"]),
            ("env A=1 llama-server -ngl 9", Llamacpp, &["-ngl", "9"]),
            ("/venv/bin/vllm serve org/m --dtype auto", Vllm, &["org/m", "--dtype", "auto"]),
            ("python3 -m vllm.entrypoints.openai.api_server --model /m", Vllm, &["--model", "/m"]),
        ];
        for (cmd, engine, exec) in table {
            let started = read(cmd).unwrap();
            assert_eq!((started.engine, started.image), (engine, None), "{cmd}");
            assert_eq!(started.exec, exec, "{cmd}");
        }
        assert_eq!(read("env A=1 llama-server").unwrap().env["A"], "1");
        let wrapped = read("numactl --cpunodebind=0 llama-server").unwrap();
        assert_eq!(wrapped.left[0].0, "cmd: numactl --cpunodebind=0");
    }

    #[test]
    fn what_is_no_engine_says_why() {
        for (cmd, word) in [
            ("python3 -m sglang.launch_server --model-path /m", "SGLang"),
            ("bash -c 'llama-server -m /m'", "shell"),
            ("whisper-server --port 1", "whisper-server"),
            ("vllm bench", "vllm"),
            ("", "empty"),
        ] {
            let why = read(cmd).unwrap_err();
            assert!(why.why.contains(word), "{cmd}: {why:?}");
        }
    }
}
