//! Where the engine's settings come from: environment, engine arguments, `--fake.x=y`.
//!
//! The arguments are those of `vllm serve` and `llama-server`: what matters here is read, the rest is
//! accepted and ignored, so a supervisor's real argument vector can be given unchanged. Pure: the
//! environment is passed in.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use nvidia_ml::StateDir;

use crate::knobs::{Flavor, KnobError, Knobs};

/// Where the engine listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listen {
    /// A Unix socket at this path, which must not exist yet.
    Unix(PathBuf),
    /// A TCP address; port 0 takes a free one (`GET /_fake/state` tells it to nobody: in-process
    /// callers ask [`crate::Engine::address`]).
    Tcp(SocketAddr),
}

/// Everything the engine is started with.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// What a test may change at run time.
    pub knobs: Knobs,
    /// Where to listen.
    pub listen: Listen,
    /// The stub driver's state.
    pub nvstub: StateDir,
    /// STATE_DIR: where starts are counted (file `starts`).
    pub state_dir: Option<PathBuf>,
    /// SEED: chooses within ranges.
    pub seed: u64,
    /// Key that `/v1` requires (`--api-key`, `VLLM_API_KEY`, `LLAMA_API_KEY`).
    pub api_key: Option<String>,
    /// Whether vLLM's development routes exist (`VLLM_SERVER_DEV_MODE=1`).
    pub dev_mode: bool,
    /// Whether sleep frees memory (`--enable-sleep-mode`); without, it only says so.
    pub sleep_mode: bool,
    /// `--gpu-memory-utilization`, if given.
    pub utilization: Option<f64>,
    /// `--kv-cache-memory-bytes`, if given.
    pub kv_bytes: Option<u64>,
    /// `--tensor-parallel-size`: devices used.
    pub tensor_parallel: usize,
    /// `--max-model-len`, `-c`: tokens of prompt and answer together.
    pub max_model_len: usize,
    /// `--metrics` (llama.cpp serves `/metrics` only then).
    pub metrics: bool,
    /// Which devices the process may see; see `vram`.
    pub visibility: Visibility,
}

/// What limits the devices in sight, as the variables say it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Visibility {
    /// `NVIDIA_VISIBLE_DEVICES`: absent or `all` = all; `void`, `none`, empty = none; else UUIDs or indexes.
    pub nvidia: Option<String>,
    /// `CUDA_VISIBLE_DEVICES`: UUIDs, or indexes among those above.
    pub cuda: Option<String>,
    /// FAKE_DEVICE_NODES: a directory in which `nvidiaN` must exist for device N to be seen.
    pub nodes: Option<PathBuf>,
}

impl Config {
    /// A healthy engine that serves `model` on a Unix socket.
    pub fn unix(model: impl Into<String>, socket: impl Into<PathBuf>) -> Self {
        let knobs = Knobs { models: vec![model.into()], ..Knobs::default() };
        Self {
            knobs,
            listen: Listen::Unix(socket.into()),
            nvstub: StateDir::from_env(),
            state_dir: None,
            seed: 0,
            api_key: None,
            dev_mode: true,
            sleep_mode: true,
            utilization: None,
            kv_bytes: None,
            tensor_parallel: 1,
            max_model_len: 32_768,
            metrics: true,
            visibility: Visibility::default(),
        }
    }

    /// The same with one knob set, as `FAKE_{knob}={value}` would.
    ///
    /// # Errors
    /// When the knob or its value is not understood.
    pub fn with(mut self, knob: &str, value: &str) -> Result<Self, KnobError> {
        let seed = self.seed;
        self.knobs.set(knob, value, seed)?;
        Ok(self)
    }

    /// Reads environment and arguments (`arguments[0]` is the program's name: `llama-server`
    /// chooses that flavour, unless FAKE_FLAVOR says otherwise).
    ///
    /// # Errors
    /// When a knob or a used argument is not understood.
    pub fn read(
        environment: &BTreeMap<String, String>,
        arguments: &[String],
    ) -> Result<Self, KnobError> {
        let (program, rest) = arguments.split_first().map_or(("", arguments), |(p, r)| (p, r));
        let mut config = Self::unix("fake", "");
        config.knobs.models.clear();
        if program.rsplit('/').next() == Some("llama-server")
            || rest.first().is_some_and(|first| first == "llama-server")
        {
            config.knobs.flavor = Flavor::LlamaCpp;
        }
        let variable =
            |name: &str| environment.get(name).filter(|value| !value.is_empty()).cloned();
        let mut fakes: BTreeMap<String, String> = environment
            .iter()
            .filter_map(|(name, value)| Some((name.strip_prefix("FAKE_")?, value)))
            .filter(|(name, _)| *name != "DEVICE_NODES")
            .map(|(name, value)| (name.to_owned(), value.clone()))
            .collect();
        let rest: Vec<String> = rest
            .iter()
            .filter(|argument| {
                let Some(pair) = argument.strip_prefix("--fake.") else { return true };
                let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
                fakes.insert(name.to_ascii_uppercase().replace(['-', '.'], "_"), value.to_owned());
                false
            })
            .cloned()
            .collect();
        config.seed = number(&fakes.remove("SEED").unwrap_or_default(), "SEED", 0)?;
        config.state_dir = fakes.remove("STATE_DIR").map(PathBuf::from);
        if let Some(flavor) = fakes.remove("FLAVOR") {
            config.knobs.set("FLAVOR", &flavor, 0)?;
        }
        config.nvstub = variable(nvidia_ml::ENV)
            .map_or_else(|| StateDir::new(nvidia_ml::DEFAULT_DIR), StateDir::new);
        config.dev_mode = variable("VLLM_SERVER_DEV_MODE").is_some_and(|value| value == "1");
        config.api_key = variable("VLLM_API_KEY").or_else(|| variable("LLAMA_API_KEY"));
        config.visibility = Visibility {
            nvidia: environment.get("NVIDIA_VISIBLE_DEVICES").cloned(),
            cuda: environment.get("CUDA_VISIBLE_DEVICES").cloned(),
            nodes: variable("FAKE_DEVICE_NODES").map(PathBuf::from),
        };
        config.sleep_mode = false;
        config.metrics = config.knobs.flavor == Flavor::Vllm;
        config.arguments(&rest)?;
        // Phases say more than the plain total, whichever comes first in the alphabet.
        for (name, value) in fakes {
            config.knobs.set(&name, &value, config.seed)?;
        }
        if config.knobs.models.is_empty() {
            config.knobs.models.push("fake".into());
        }
        Ok(config)
    }

    fn arguments(&mut self, arguments: &[String]) -> Result<(), KnobError> {
        let vllm = self.knobs.flavor == Flavor::Vllm;
        let mut host = if vllm { "0.0.0.0".to_owned() } else { "127.0.0.1".to_owned() };
        let mut port = if vllm { 8000 } else { 8080 };
        let mut socket: Option<PathBuf> = None;
        let (mut positional, mut model, mut names) = (None, None, Vec::new());
        let mut rest = arguments.iter().peekable();
        while let Some(argument) = rest.next() {
            let (name, inline) = match argument.split_once('=') {
                Some((name, value)) if name.starts_with('-') => (name, Some(value.to_owned())),
                _ => (argument.as_str(), None),
            };
            let name = name.replace('_', "-");
            match name.as_str() {
                "--enable-sleep-mode" => self.sleep_mode = true,
                "--metrics" => self.metrics = true,
                "vllm" | "llama-server" | "serve" => {}
                "--served-model-name" => {
                    names.extend(inline);
                    while let Some(next) = rest.next_if(|next| !next.starts_with('-')) {
                        names.push(next.clone());
                    }
                }
                flag if flag.starts_with('-') => {
                    if !TAKES_VALUE.contains(&flag) {
                        // Unknown flags are ignored, with their value if one follows.
                        if inline.is_none() {
                            rest.next_if(|next| !next.starts_with('-'));
                        }
                        continue;
                    }
                    let value = inline.or_else(|| rest.next().cloned()).unwrap_or_default();
                    match flag {
                        "--uds" => socket = Some(value.into()),
                        "--host" => host = value,
                        "--port" => port = number(&value, "--port", port)?,
                        "--alias" | "-a" => names.extend(value.split(',').map(str::to_owned)),
                        "--model" | "-m" => model = Some(value),
                        "--api-key" => self.api_key = Some(value),
                        "--gpu-memory-utilization" => {
                            self.utilization = Some(number(&value, flag, 0.9)?);
                        }
                        "--kv-cache-memory-bytes" | "--kv-cache-memory" => {
                            self.kv_bytes = Some(size(&value, flag)?);
                        }
                        "--tensor-parallel-size" | "-tp" => {
                            self.tensor_parallel = number(&value, flag, 1)?;
                        }
                        "--max-model-len" | "-c" | "--ctx-size" => {
                            self.max_model_len = usize::try_from(size(&value, flag)?).unwrap_or(0);
                        }
                        "--max-num-seqs" | "-np" | "--parallel" => {
                            self.knobs.slots = number(&value, flag, 1)?;
                        }
                        "--max-num-queued-reqs" => {
                            self.knobs.queue = Some(number(&value, flag, 0)?);
                        }
                        _ => {}
                    }
                }
                _ => positional = positional.or(Some(argument.clone())),
            }
        }
        if names.is_empty() {
            names.extend(model.or(positional));
        }
        self.knobs.models = names;
        if host.ends_with(".sock") {
            socket = Some(PathBuf::from(&host));
        }
        self.listen = match socket {
            Some(path) => Listen::Unix(path),
            None => Listen::Tcp(SocketAddr::new(address(&host)?, port)),
        };
        if self.max_model_len == 0 {
            self.max_model_len = 32_768;
        }
        Ok(())
    }
}

const TAKES_VALUE: [&str; 20] = [
    "--uds",
    "--host",
    "--port",
    "--alias",
    "-a",
    "--model",
    "-m",
    "--api-key",
    "--gpu-memory-utilization",
    "--kv-cache-memory-bytes",
    "--kv-cache-memory",
    "--tensor-parallel-size",
    "-tp",
    "--max-model-len",
    "-c",
    "--ctx-size",
    "--max-num-seqs",
    "-np",
    "--parallel",
    "--max-num-queued-reqs",
];

fn address(host: &str) -> Result<IpAddr, KnobError> {
    if host == "localhost" {
        return Ok(Ipv4Addr::LOCALHOST.into());
    }
    host.parse().map_err(|_| bad("--host", host, "an IP address, localhost, or a path in .sock"))
}

fn number<T: std::str::FromStr>(value: &str, name: &str, default: T) -> Result<T, KnobError> {
    if value.is_empty() {
        return Ok(default);
    }
    value.parse().map_err(|_| bad(name, value, "a number"))
}

/// vLLM takes `8k`, `32K`, `25.6G` too.
fn size(value: &str, name: &str) -> Result<u64, KnobError> {
    let size: Result<nvidia_ml::Size, _> = value.parse();
    size.map(|size| size.0).map_err(|_| bad(name, value, "a number, or one with k, M or G"))
}

fn bad(name: &str, value: &str, expected: &'static str) -> KnobError {
    KnobError { knob: name.to_owned(), value: value.to_owned(), expected }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::knobs::{Fail, Text};

    fn read(environment: &[(&str, &str)], line: &str) -> Result<Config, KnobError> {
        let environment =
            environment.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let arguments: Vec<_> = line.split_whitespace().map(str::to_owned).collect();
        Config::read(&environment, &arguments)
    }

    #[test]
    fn a_real_vllm_command_line() {
        let config = read(
            &[("FAKE_TEXT", "echo"), ("VLLM_SERVER_DEV_MODE", "1"), ("PATH", "/bin")],
            "/usr/bin/vllm serve Qwen/Qwen3-8B --uds /run/engine/e.sock --served-model-name qwen3 \
             chat --port 8000 --max-model-len=16k --gpu-memory-utilization 0.5 --enable-sleep-mode \
             --tensor-parallel-size 2 --some-new-flag value --enforce-eager --max_num_seqs 4",
        )
        .unwrap();
        assert_eq!(config.listen, Listen::Unix("/run/engine/e.sock".into()));
        assert_eq!(config.knobs.models, ["qwen3", "chat"]);
        assert_eq!((config.max_model_len, config.utilization), (16_384, Some(0.5)));
        assert_eq!((config.tensor_parallel, config.knobs.slots), (2, 4));
        assert!(config.sleep_mode && config.dev_mode);
        assert_eq!(config.knobs.text, Text::Echo);
    }

    #[test]
    fn a_real_llama_server_command_line() {
        let config = read(
            &[],
            "llama-server -m /models/m.gguf --alias tiny -c 4096 -ngl 99 --host /run/e.sock --jinja",
        )
        .unwrap();
        assert_eq!(config.knobs.flavor, Flavor::LlamaCpp);
        assert_eq!(config.listen, Listen::Unix("/run/e.sock".into()));
        assert_eq!(config.knobs.models, ["tiny"]);
        assert_eq!(config.max_model_len, 4096);
        let config = read(&[("FAKE_FLAVOR", "llamacpp")], "fake-engine --port 9").unwrap();
        assert_eq!(config.listen, Listen::Tcp("127.0.0.1:9".parse().unwrap()));
    }

    #[test]
    fn arguments_win_over_the_environment_and_knobs_over_engine_flags() {
        let config = read(
            &[("FAKE_FAIL", "oom@1s"), ("FAKE_MODEL", "a,b")],
            "fake-engine serve m --fake.fail=none --fake.load-phases=weights=1s",
        )
        .unwrap();
        assert_eq!(config.knobs.fail, Fail::None);
        assert_eq!(config.knobs.models, ["a", "b"]);
        assert_eq!(config.knobs.load.weights.as_secs(), 1);
    }

    #[test]
    fn a_misspelt_knob_is_refused_by_name() {
        let error = read(&[("FAKE_FIAL", "none")], "fake-engine").unwrap_err();
        assert!(error.to_string().contains("FAKE_FIAL"), "{error}");
        assert!(read(&[], "fake-engine --port many").is_err());
    }
}
