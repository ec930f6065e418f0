//! An engine's command line, taken apart into the keys that Hostler has for it. PURE.

use toml::Value;

use super::container::{ENTRY, program};
use crate::config;
use crate::types::EngineKind;

/// What a command line says.
#[derive(Debug, Default, PartialEq)]
pub struct Taken {
    /// The path, or the hub's ID, of the model.
    pub model: Option<String>,
    /// What the engine was to fetch from a hub by itself: `org/name`, or `org/name:Q4_K_M`.
    pub fetch: Option<String>,
    /// A name that clients use.
    pub name: Option<String>,
    /// Further ones.
    pub aliases: Vec<String>,
    /// Keys of the configuration.
    pub keys: Vec<(&'static str, Value)>,
    /// All that has no key.
    pub args: Vec<String>,
    /// What was not taken over, with the reason.
    pub left: Vec<(String, String)>,
    /// Keys that it leaves to the engine by name: what is below it does not set them either.
    unset: Vec<&'static str>,
}

/// What a flag is to Hostler.
enum Meaning {
    Model,
    Fetch,
    Name,
    Number(&'static str),
    /// Devices by their names in the engine.
    Devices,
    /// What part of the model each device gets.
    Split,
    Dropped(&'static str),
    /// The same of a flag without a value.
    DroppedAlone(&'static str),
    /// The same where only the next word shows whether there is a value.
    DroppedMaybe(&'static str),
}

const LISTEN: &str = "Hostler decides where the engine listens";
const KEYS: &str = "nobody but Hostler can reach the engine";
const SHARE: &str = "Hostler computes it from the place; say what the model needs with vram";
const DEVICES: &str = "a container's devices are numbered anew; gpu_count says on how many it runs, gpus names them by UUID";
const UNEVEN: &str = "devices of one model are equal ones here, and each holds the same; on unequal ones give it one, with gpus and without gpu_count, and -ngl or --n-cpu-moe for what does not fit there";
const SLEEP: &str = "Hostler drives sleep and idling";

/// Up to where the configuration takes a number.
fn most(key: &str) -> i64 {
    match key {
        "context" => 1 << 24,
        "parallel" => 4096,
        _ => 64,
    }
}

/// A number of a command line, as its key takes it; else why it is none. `None` for no reason: it leaves that to the engine, which the
/// configuration says by saying nothing.
fn number(engine: EngineKind, key: &str, value: &str) -> Result<i64, Option<String>> {
    let free = match (engine, key) {
        (EngineKind::Llamacpp, _) => ["0", "-1"].contains(&value),
        (EngineKind::Vllm, "context") => ["auto", "-1"].contains(&value),
        (EngineKind::Vllm, _) => false,
    };
    let most = most(key);
    match value.parse::<i64>() {
        _ if free => Err(None),
        Ok(number) if (1..=most).contains(&number) => Ok(number),
        _ => Err(Some(format!("{key} is a whole number from 1 to {most} here"))),
    }
}

fn meaning(engine: EngineKind, flag: &str) -> Option<Meaning> {
    use Meaning::{
        Devices, Dropped, DroppedAlone, DroppedMaybe, Fetch, Model, Name, Number, Split,
    };
    // As the engines read them.
    let flag = if flag.starts_with("--") { &flag.replace('_', "-") } else { flag };
    Some(match (engine, flag) {
        (EngineKind::Llamacpp, "-m") | (_, "--model") => Model,
        (EngineKind::Llamacpp, "-hf" | "-hfr" | "--hf-repo") => Fetch,
        (EngineKind::Llamacpp, "-a" | "--alias") | (EngineKind::Vllm, "--served-model-name") => {
            Name
        }
        (EngineKind::Llamacpp, "-c" | "--ctx-size") | (EngineKind::Vllm, "--max-model-len") => {
            Number("context")
        }
        (EngineKind::Llamacpp, "-np" | "--parallel") | (EngineKind::Vllm, "--max-num-seqs") => {
            Number("parallel")
        }
        (EngineKind::Vllm, "-tp" | "--tensor-parallel-size") => Number("gpu_count"),
        (EngineKind::Llamacpp, "-dev" | "--device") => Devices,
        (EngineKind::Llamacpp, "-ts" | "--tensor-split") => Split,
        (EngineKind::Llamacpp, "-mg" | "--main-gpu") => Dropped(DEVICES),
        (_, "--host" | "--port") | (EngineKind::Vllm, "--uds") => Dropped(LISTEN),
        (
            _,
            "--api-key" | "--ssl-keyfile" | "--ssl-certfile" | "--ssl-key-file" | "--ssl-cert-file",
        ) => Dropped(KEYS),
        (EngineKind::Vllm, "--gpu-memory-utilization" | "--kv-cache-memory-bytes") => {
            Dropped(SHARE)
        }
        (EngineKind::Vllm, "--enable-sleep-mode") => DroppedAlone(SLEEP),
        (EngineKind::Llamacpp, "--sleep-idle-seconds") => Dropped(SLEEP),
        _ => DroppedMaybe(config::reserved_argument(engine, flag)?),
    })
}

impl Taken {
    /// A flag with a number; the last of several counts.
    fn number(&mut self, engine: EngineKind, key: &'static str, flag: &str, value: &str) {
        self.keys.retain(|(known, _)| *known != key);
        let why = match number(engine, key, value) {
            Ok(number) => return self.keys.push((key, Value::from(number))),
            Err(why) => why,
        };
        self.unset.push(key);
        let why = why.unwrap_or_else(|| {
            let engine = if engine == EngineKind::Vllm { "vLLM" } else { "llama.cpp" };
            format!("{engine} decides it, as where {key} is not set here; set {key} where it is to be less")
        });
        self.left.push((format!("{flag} {value}"), why));
    }

    /// Devices of llama.cpp, of which only the number holds here.
    fn devices(&mut self, flag: &str, value: &str) {
        if value == "none" {
            return self.args.extend([flag.to_owned(), value.to_owned()]);
        }
        self.count(value.split(',').count());
        self.left.push((format!("{flag} {value}"), DEVICES.to_owned()));
    }

    /// How llama.cpp divides a model: among those that get a part of it.
    fn split(&mut self, flag: &str, value: &str) {
        let parts: Vec<&str> = value.split([',', '/']).map(str::trim).collect();
        let part = |part: &&&str| part.parse::<f64>().is_ok_and(|part| part > 0.0);
        let parts: Vec<&str> = parts.iter().filter(part).copied().collect();
        if parts.len() < 2 {
            return self.left.push((format!("{flag} {value}"), DEVICES.to_owned()));
        }
        self.count(parts.len());
        let size = |part: &&str| part.parse::<f64>().unwrap_or_default();
        if parts.windows(2).any(|two| size(&two[0]).total_cmp(&size(&two[1])).is_ne()) {
            return self.left.push((format!("{flag} {value}"), UNEVEN.to_owned()));
        }
        self.args.extend([flag.to_owned(), parts.join(",")]);
    }

    /// It runs on so many devices, or on more where something else says so.
    fn count(&mut self, devices: usize) {
        let Some(count) =
            i64::try_from(devices).ok().filter(|n| (2..=most("gpu_count")).contains(n))
        else {
            return;
        };
        match self.keys.iter_mut().find(|(key, _)| *key == "gpu_count") {
            Some((_, there)) if there.as_integer() < Some(count) => *there = Value::from(count),
            Some(_) => {}
            None => self.keys.push(("gpu_count", Value::from(count))),
        }
    }

    /// What another says that this does not. Its arguments and what it left come behind.
    pub fn or(&mut self, other: Self) {
        if self.model.is_none() && self.fetch.is_none() {
            (self.model, self.fetch) = (other.model, other.fetch);
        }
        if self.name.is_none() {
            self.name = other.name;
            self.aliases.extend(other.aliases);
        }
        for (key, value) in other.keys {
            if !self.keys.iter().any(|(known, _)| *known == key) && !self.unset.contains(&key) {
                self.keys.push((key, value));
            }
        }
        self.args.extend(other.args);
        self.left.extend(other.left);
    }
}

/// The flag that says the same as a variable of an engine's environment, for those that have a key here. A flag is above it.
pub fn flag_of(engine: EngineKind, variable: &str) -> Option<&'static str> {
    Some(match (engine, variable) {
        (EngineKind::Llamacpp, "LLAMA_ARG_MODEL") => "--model",
        (EngineKind::Llamacpp, "LLAMA_ARG_HF_REPO") => "--hf-repo",
        (EngineKind::Llamacpp, "LLAMA_ARG_ALIAS") => "--alias",
        (EngineKind::Llamacpp, "LLAMA_ARG_CTX_SIZE") => "--ctx-size",
        (EngineKind::Llamacpp, "LLAMA_ARG_N_PARALLEL") => "--parallel",
        (EngineKind::Llamacpp, "LLAMA_ARG_DEVICE") => "--device",
        (EngineKind::Llamacpp, "LLAMA_ARG_TENSOR_SPLIT") => "--tensor-split",
        (EngineKind::Llamacpp, "LLAMA_ARG_MAIN_GPU") => "--main-gpu",
        _ => return None,
    })
}

/// Takes a command line apart. The engine's own program in front, and vLLM's `serve`, are left out, as the image has an entry point.
pub fn read(engine: EngineKind, exec: &[String]) -> Taken {
    let mut taken = Taken::default();
    // A flag in front: then it is no program, but what a flag names.
    let first = exec.first().is_some_and(|word| !word.starts_with('-'));
    let skip = match program(exec).filter(|(.., found)| first && *found == engine) {
        Some((at, length, _)) => at + length,
        None => usize::from(exec.first().is_some_and(|word| word == "serve")),
    };
    let (program, words) = exec.split_at(skip);
    if !program.is_empty() {
        taken.left.push((program.join(" "), ENTRY.to_owned()));
    }
    let mut words = words.iter().peekable();
    // vllm serve MODEL …
    if engine == EngineKind::Vllm
        && let Some(first) = words.next_if(|word| !word.starts_with('-'))
    {
        taken.model = Some(first.clone());
    }
    while let Some(word) = words.next() {
        let (flag, joined) = match word.split_once('=') {
            Some((flag, value)) if flag.starts_with('-') => (flag, Some(value.to_owned())),
            _ => (word.as_str(), None),
        };
        let Some(meaning) = meaning(engine, flag) else {
            taken.args.push(word.clone());
            continue;
        };
        if let Meaning::DroppedAlone(why) = meaning {
            taken.left.push((word.clone(), why.to_owned()));
            continue;
        }
        if let Meaning::DroppedMaybe(why) = meaning {
            if joined.is_none() {
                words.next_if(|word| !word.starts_with('-'));
            }
            taken.left.push((flag.to_owned(), why.to_owned()));
            continue;
        }
        let value = joined.or_else(|| words.next().cloned()).unwrap_or_default();
        match meaning {
            Meaning::Model => taken.model = Some(value),
            Meaning::Fetch => taken.fetch = Some(value),
            Meaning::Name => {
                let mut names: Vec<String> = vec![value];
                while engine == EngineKind::Vllm
                    && let Some(more) = words.next_if(|word| !word.starts_with('-'))
                {
                    names.push(more.clone());
                }
                let mut names = names
                    .into_iter()
                    .flat_map(|n| n.split(',').map(|n| n.trim().to_owned()).collect::<Vec<_>>());
                taken.name = names.next();
                taken.aliases.extend(names);
            }
            Meaning::Devices => taken.devices(flag, &value),
            Meaning::Split => taken.split(flag, &value),
            Meaning::Number(key) => taken.number(engine, key, flag, &value),
            Meaning::Dropped(why) | Meaning::DroppedAlone(why) | Meaning::DroppedMaybe(why) => {
                taken.left.push((flag.to_owned(), why.to_owned()));
            }
        }
    }
    taken
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(engine: EngineKind, text: &str) -> Taken {
        let words: Vec<String> = text.split(' ').map(str::to_owned).collect();
        super::read(engine, &words)
    }

    #[test]
    fn keys_take_the_place_of_flags() {
        let taken = read(
            EngineKind::Llamacpp,
            "/app/llama-server -m /m/a.gguf --host 0.0.0.0 --port=8080 -c 4096 -np 4 -ngl 99 --alias small",
        );
        assert_eq!(taken.model.as_deref(), Some("/m/a.gguf"));
        assert_eq!(taken.name.as_deref(), Some("small"));
        assert_eq!(taken.keys, [("context", Value::from(4096)), ("parallel", Value::from(4))]);
        assert_eq!(taken.args, ["-ngl", "99"]);
        let left: Vec<&str> = taken.left.iter().map(|(flag, _)| flag.as_str()).collect();
        let program = "/app/llama-server";
        assert_eq!(left, [program, "--host", "--port"], "and no value, which may be a key");
    }

    #[test]
    fn vllm_serves_its_first_word_under_several_names() {
        let taken = read(
            EngineKind::Vllm,
            "vllm serve /model --served-model-name a b --enable-sleep-mode -tp 2 --max-model-len auto",
        );
        assert_eq!(taken.model.as_deref(), Some("/model"));
        assert_eq!((taken.name.as_deref(), taken.aliases), (Some("a"), vec!["b".to_owned()]));
        assert_eq!(taken.keys, [("gpu_count", Value::from(2))]);
        assert_eq!(taken.left.len(), 3);
        let module = "python3 -m vllm.entrypoints.openai.api_server";
        let taken = read(EngineKind::Vllm, &format!("{module} --model /m --dtype auto"));
        assert_eq!(
            (taken.model.as_deref(), taken.args.join(" ").as_str()),
            (Some("/m"), "--dtype auto")
        );
        assert_eq!(taken.left, [(module.to_owned(), ENTRY.to_owned())]);
    }

    #[test]
    fn devices_of_llama_cpp_are_counted() {
        let of = |words: &str| {
            let taken = read(EngineKind::Llamacpp, words);
            let count = taken.keys.iter().find(|(key, _)| *key == "gpu_count");
            let left: Vec<String> = taken.left.into_iter().map(|(flag, _)| flag).collect();
            (count.and_then(|(_, n)| n.as_integer()), taken.args.join(" "), left.join("; "))
        };
        let said = |count, args: &str, left: &str| (count, args.to_owned(), left.to_owned());
        assert_eq!(of("-ts 24,12"), said(Some(2), "", "-ts 24,12"), "never on unequal devices");
        assert_eq!(of("-ts 1,1.0"), said(Some(2), "-ts 1,1.0", ""));
        assert_eq!(of("--tensor-split=0,1,1"), said(Some(2), "--tensor-split 1,1", ""));
        assert_eq!(of("-ts 0/1"), said(None, "", "-ts 0/1"));
        assert_eq!(of("-dev CUDA0,CUDA1 -ngl 9"), said(Some(2), "-ngl 9", "-dev CUDA0,CUDA1"));
        assert_eq!(of("-dev CUDA1 -mg 0"), said(None, "", "-dev CUDA1; -mg"));
        assert_eq!(of("--device none"), said(None, "--device none", ""));
        assert_eq!(
            of("-ts 1,1,1 -dev CUDA0,CUDA1"),
            said(Some(3), "-ts 1,1,1", "-dev CUDA0,CUDA1")
        );
    }

    #[test]
    fn what_the_configuration_refuses_is_left_with_its_value() {
        let taken = read(
            EngineKind::Llamacpp,
            "llama-server -hf org/m:Q4 --ctx_size 8 --api-prefix /x --reuse-port -ngl 9",
        );
        assert_eq!(taken.fetch.as_deref(), Some("org/m:Q4"));
        assert_eq!(taken.keys, [("context", Value::from(8))]);
        assert_eq!(taken.args, ["-ngl", "9"]);
        let left: Vec<&str> = taken.left.iter().map(|(flag, _)| flag.as_str()).collect();
        assert_eq!(left, ["llama-server", "--api-prefix", "--reuse-port"]);
        let taken = read(EngineKind::Vllm, "vllm serve /m -pp 2 --headless --dtype auto");
        assert_eq!(taken.args, ["--dtype", "auto"]);
        assert_eq!(taken.left.len(), 3);
    }

    #[test]
    fn a_number_that_leaves_it_to_the_engine_or_is_none_is_no_key() {
        let mut taken = read(EngineKind::Llamacpp, "-m /m -c 4096 -c 0 -np -1");
        taken.or(read(EngineKind::Llamacpp, "--ctx-size 8192 --parallel 4"));
        assert_eq!(taken.keys, [], "and a variable of the environment does not set it either");
        let left: Vec<&str> = taken.left.iter().map(|(flag, _)| flag.as_str()).collect();
        assert_eq!(left, ["-c 0", "-np -1"]);
        assert!(
            taken.left.iter().all(|(_, why)| why.contains("llama.cpp decides it")),
            "{taken:?}"
        );
        let taken = read(
            EngineKind::Vllm,
            "/m --max-model-len -1 --max-num-seqs 5000 -tp 0 --max-num-seqs 4096",
        );
        assert_eq!(taken.keys, [("parallel", Value::from(4096))]);
        let why: Vec<&str> = taken.left.iter().map(|(_, why)| why.as_str()).collect();
        assert!(why[0].contains("vLLM decides it"), "{why:?}");
        assert!(why[1].contains("from 1 to 4096") && why[2].contains("from 1 to 64"), "{why:?}");
    }
}
