//! Engine arguments and environment that Hostler sets itself.
//!
//! Purpose: an argument that overrides what Hostler computes would make its accounting wrong without a word, so it is
//! refused with the key to use instead. Owner: one table an engine; whoever lets Hostler compute another argument adds
//! it here. Names follow llama-server's and vLLM's own lists of arguments; vLLM's (`vllm/engine/arg_utils.py`,
//! `vllm/entrypoints/launchers/cli_args.py`, `vllm/entrypoints/cli/serve.py`, `vllm/envs.py`) as of version 0.33. There
//! decode-context parallelism uses the devices of the tensor's, and what multimodal work reserves comes out of the cache.

use std::collections::BTreeMap;

use toml::Spanned;

use crate::types::EngineKind;

use super::source::Report;

/// What may not be set, and what to do instead.
struct Rule {
    /// Long and short forms.
    flags: &'static [&'static str],
    /// Environment variables of the same meaning.
    env: &'static [&'static str],
    /// The fix.
    instead: &'static str,
    /// Allowed where `weights` is absent, because then only the arguments can name the model.
    names_weights: bool,
}

const fn rule(
    flags: &'static [&'static str],
    env: &'static [&'static str],
    instead: &'static str,
) -> Rule {
    Rule { flags, env, instead, names_weights: false }
}

const WEIGHTS: &str = "use the key weights";
const LISTEN: &str = "Hostler decides where the engine listens; choose with the key transport";
const KEYS: &str = "nobody but Hostler can reach the engine; remove it";
const PATHS: &str = "Hostler calls the engine's own paths; remove it";
const TOKEN: &str = "engines run offline, and hostler add takes HF_TOKEN itself; remove it";
const DEVICES: &str =
    "Hostler decides which devices it sees; choose with the keys gpus and gpu_count";

const LLAMACPP: &[Rule] = &[
    Rule {
        flags: &[
            "-m",
            "--model",
            "-mu",
            "--model-url",
            "-hf",
            "-hfr",
            "--hf-repo",
            "-hff",
            "--hf-file",
            "-dr",
            "--docker-repo",
        ],
        env: &[
            "LLAMA_ARG_MODEL",
            "LLAMA_ARG_MODEL_URL",
            "LLAMA_ARG_HF_REPO",
            "LLAMA_ARG_HF_FILE",
            "LLAMA_ARG_DOCKER_REPO",
        ],
        instead: WEIGHTS,
        names_weights: true,
    },
    rule(
        &["--host", "--port", "--reuse-port"],
        &["LLAMA_ARG_HOST", "LLAMA_ARG_PORT", "LLAMA_ARG_REUSE_PORT"],
        LISTEN,
    ),
    rule(&["-a", "--alias"], &["LLAMA_ARG_ALIAS"], "use the model's name or the key aliases"),
    rule(&["-c", "--ctx-size"], &["LLAMA_ARG_CTX_SIZE"], "use the key context"),
    rule(&["-np", "--parallel"], &["LLAMA_ARG_N_PARALLEL"], "use the key parallel"),
    // Without a context it makes one of that for each sequence.
    rule(
        &["--kv-unified-per-slot"],
        &["LLAMA_ARG_KV_UNIFIED_PER_SLOT"],
        "use the keys context and parallel",
    ),
    rule(
        &["--api-key", "--api-key-file", "--ssl-key-file", "--ssl-cert-file"],
        &[
            "LLAMA_API_KEY",
            "LLAMA_ARG_API_KEY_FILE",
            "LLAMA_ARG_SSL_KEY_FILE",
            "LLAMA_ARG_SSL_CERT_FILE",
        ],
        KEYS,
    ),
    rule(&["-hft", "--hf-token"], &[], TOKEN),
    rule(&["--api-prefix"], &["LLAMA_ARG_API_PREFIX"], PATHS),
    rule(
        &["--sleep-idle-seconds"],
        &["LLAMA_ARG_SLEEP_IDLE_SECONDS"],
        "Hostler drives idling; use the key idle_timeout",
    ),
    rule(
        &["--models-dir", "--models-preset", "--models-max", "--models-autoload"],
        &[
            "LLAMA_ARG_MODELS_DIR",
            "LLAMA_ARG_MODELS_PRESET",
            "LLAMA_ARG_MODELS_MAX",
            "LLAMA_ARG_MODELS_AUTOLOAD",
        ],
        "an engine serves one model; define another [models.NAME]",
    ),
];

const VLLM: &[Rule] = &[
    Rule { flags: &["--model"], env: &[], instead: WEIGHTS, names_weights: true },
    rule(&["--uds", "--host", "--port"], &[], LISTEN),
    rule(&["--served-model-name"], &[], "use the model's name or the key aliases"),
    rule(&["--max-model-len"], &[], "use the key context"),
    rule(&["--max-num-seqs"], &[], "use the key parallel"),
    rule(&["-tp", "--tensor-parallel-size"], &[], "use the key gpu_count"),
    rule(
        &[
            "-pp",
            "--pipeline-parallel-size",
            "-dp",
            "--data-parallel-size",
            "-pcp",
            "--prefill-context-parallel-size",
        ],
        &[],
        "it is not offered; the key gpu_count is tensor parallelism",
    ),
    rule(
        &[
            "-dpn",
            "--data-parallel-rank",
            "-dpr",
            "--data-parallel-start-rank",
            "-dpl",
            "--data-parallel-size-local",
            "-dpa",
            "--data-parallel-address",
            "-dpp",
            "--data-parallel-rpc-port",
            "-dpb",
            "--data-parallel-backend",
            "-dph",
            "--data-parallel-hybrid-lb",
            "-dpe",
            "--data-parallel-external-lb",
            "-dpm",
            "--data-parallel-multi-port-external-lb",
            "--data-parallel-supervisor-port",
            "-n",
            "--nnodes",
            "-r",
            "--node-rank",
            "--master-addr",
            "--master-port",
        ],
        // Read where no argument says how many there are.
        &[
            "VLLM_DP_SIZE",
            "VLLM_DP_RANK",
            "VLLM_DP_RANK_LOCAL",
            "VLLM_DP_MASTER_IP",
            "VLLM_DP_MASTER_PORT",
        ],
        "an engine runs on this host alone and answers at one place; remove it",
    ),
    rule(&["--device-ids"], &[], DEVICES),
    rule(
        &[
            "--gpu-memory-utilization",
            "--device-memory-utilization",
            "--kv-cache-memory-bytes",
            "--num-gpu-blocks-override",
        ],
        &[],
        "Hostler computes it from the placement; use the key vram",
    ),
    rule(
        &[
            "--api-key",
            "--ssl-keyfile",
            "--ssl-certfile",
            "--ssl-ca-certs",
            "--ssl-cert-reqs",
            "--ssl-ciphers",
            "--enable-ssl-refresh",
        ],
        &["VLLM_API_KEY"],
        KEYS,
    ),
    rule(&["--hf-token"], &[], TOKEN),
    rule(&["--root-path"], &[], PATHS),
    rule(
        &["--enable-sleep-mode", "--no-enable-sleep-mode"],
        &["VLLM_SERVER_DEV_MODE"],
        "Hostler decides whether a model may sleep; remove it",
    ),
    rule(&["--config"], &[], "a file could set what Hostler computes; write its arguments here"),
    rule(
        &["--headless", "--grpc", "--grpc-port"],
        &[],
        "Hostler talks to the engine over HTTP; remove it",
    ),
];

/// Owned by the container's device injection, whatever the engine.
const DEVICE_ENV: &[&str] =
    &["CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"];

fn rules(engine: EngineKind) -> &'static [Rule] {
    match engine {
        EngineKind::Llamacpp => LLAMACPP,
        EngineKind::Vllm => VLLM,
    }
}

/// The rule that an argument breaks. Follows how the engines read arguments: both take `_` for `-` in long ones, and
/// vLLM takes unambiguous beginnings, and the value of a short one of one letter without a space.
fn broken_by(engine: EngineKind, arg: &str, builtin: bool) -> Option<&'static Rule> {
    let flag = arg.split('=').next().unwrap_or_default();
    if !flag.starts_with('-') || flag.trim_start_matches('-').is_empty() {
        return None;
    }
    let flag = if flag.starts_with("--") { flag.replace('_', "-") } else { flag.to_owned() };
    let names = |known: &str| match engine {
        EngineKind::Llamacpp => known == flag,
        EngineKind::Vllm => {
            let letter = known.len() == 2 && !flag.starts_with("--");
            known.starts_with(&flag) || (letter && flag.starts_with(known))
        }
    };
    let applies = |rule: &&Rule| !(builtin && rule.names_weights);
    rules(engine).iter().filter(applies).find(|rule| rule.flags.iter().any(|known| names(known)))
}

/// Why an argument of an engine, `--flag` or `--flag=value`, is Hostler's to set, and what to do instead; for whoever takes a
/// command line over. Weights are taken for named by a key.
#[must_use]
pub fn reserved_argument(engine: EngineKind, arg: &str) -> Option<&'static str> {
    broken_by(engine, arg, false).map(|rule| rule.instead)
}

/// The same of a variable of an engine's environment.
#[must_use]
pub fn reserved_variable(engine: EngineKind, name: &str) -> Option<&'static str> {
    let ours = rules(engine).iter().find(|rule| rule.env.contains(&name)).map(|rule| rule.instead);
    ours.or_else(|| DEVICE_ENV.contains(&name).then_some(DEVICES))
}

/// Further arguments; those that Hostler sets are reported.
pub(super) fn args(
    report: &mut Report<'_>,
    key: &str,
    values: Option<&[Spanned<String>]>,
    engine: Option<EngineKind>,
    builtin: bool,
) -> Vec<String> {
    let values = values.unwrap_or_default();
    if let Some(first) = values.get(256) {
        report.at(first.span().start, key, "has at most 256 arguments; remove the rest");
    }
    for value in values {
        let text = value.get_ref();
        let mut wrong = |message: String| report.at(value.span().start, key, message);
        if text.contains('\0') {
            wrong("an argument must not contain NUL".to_owned());
        } else if text.len() > 65_536 {
            wrong(format!("an argument has at most 64 KiB, this one has {} bytes", text.len()));
        } else if let Some((flag, rest)) = two(text) {
            let each: Vec<String> =
                rest.split_whitespace().map(|word| format!("{word:?}")).collect();
            wrong(format!(
                "each word of a command line is an argument of its own; write {flag:?}, {}",
                each.join(", ")
            ));
        } else if let Some(rule) = engine.and_then(|e| broken_by(e, text, builtin)) {
            let flag = text.split('=').next().unwrap_or_default();
            wrong(format!("{flag:?} is Hostler's to set: {}", rule.instead));
        }
    }
    values.iter().map(|v| v.get_ref().clone()).collect()
}

/// The flag and the value of a text that holds both, as a shell's line has them: to an engine it is one word that it does not know.
fn two(text: &str) -> Option<(&str, &str)> {
    let named = text.trim_start_matches('-');
    let flag = named.len() < text.len() && named.starts_with(|c: char| c.is_ascii_alphabetic());
    let (word, rest) = text.split_once(char::is_whitespace).filter(|_| flag)?;
    (!word.contains(['=', '{', '"'])).then_some((word, rest.trim()))
}

/// Further environment; what Hostler or the device injection sets is reported.
pub(super) fn env(
    report: &mut Report<'_>,
    key: &str,
    values: Option<&BTreeMap<Spanned<String>, Spanned<String>>>,
    engine: Option<EngineKind>,
    builtin: bool,
) -> BTreeMap<String, String> {
    let mut good = BTreeMap::new();
    for (name, value) in values.into_iter().flatten() {
        let (text, offset) = (name.get_ref(), name.span().start);
        let key = format!("{key}.{}", super::tree::quote_key(text));
        let set =
            |rule: &&Rule| !(builtin && rule.names_weights) && rule.env.contains(&text.as_str());
        let ours = engine.and_then(|e| rules(e).iter().find(set)).map(|rule| rule.instead);
        let ours = ours.or_else(|| DEVICE_ENV.contains(&text.as_str()).then_some(DEVICES));
        if let Some(instead) = ours {
            report.at(offset, &key, format!("is Hostler's to set: {instead}"));
        }
        if !is_env_name(text) {
            let message = "a variable's name must be letters, digits and _, not starting with a digit, at most 128";
            report.at(offset, &key, message);
        }
        if value.get_ref().contains('\0') || value.get_ref().len() > 65_536 {
            let message = "a variable's value must have at most 64 KiB and no NUL";
            report.at(value.span().start, &key, message);
        }
        good.insert(text.clone(), value.get_ref().clone());
    }
    good
}

fn is_env_name(text: &str) -> bool {
    let ok = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    !text.is_empty()
        && text.len() <= 128
        && text.bytes().all(ok)
        && !text.starts_with(|c: char| c.is_ascii_digit())
}

#[cfg(test)]
mod tests;
