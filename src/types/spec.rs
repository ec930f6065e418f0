//! What an admin asked for: one model's specification.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{Anatomy, Bytes, DoorSpec, GpuId, ImageRef, ModelName, SleepLevel};

/// Which engine an image holds; decides its argv, health route and transport.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum EngineKind {
    /// llama.cpp's `llama-server`.
    Llamacpp,
    /// vLLM's OpenAI server.
    Vllm,
}

impl EngineKind {
    /// The word for it in the configuration, labels and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Llamacpp => "llamacpp",
            Self::Vllm => "vllm",
        }
    }

    /// Whether it looks at its devices as a whole when it starts: it refuses to with less free than it is told to take, and
    /// takes for its own whatever else changes on them until it is ready.
    #[must_use]
    pub const fn profiles_device(self) -> bool {
        match self {
            Self::Llamacpp => false,
            Self::Vllm => true,
        }
    }
}

/// How the daemon reaches an engine.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Serialize,
    Deserialize,
    schemars::JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// A Unix socket in a bind-mounted directory; the container has no network at all.
    #[default]
    Unix,
    /// A port published on loopback, for engines that cannot listen on a Unix socket.
    Tcp,
}

/// What happens to a request for a model that has no room now, but could have.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Serialize,
    Deserialize,
    schemars::JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum OnFull {
    /// Idle models are evicted; if that does not help, it waits.
    #[default]
    Evict,
    /// It is refused at once.
    Refuse,
    /// It waits until there is room, and evicts nobody.
    Wait,
}

/// How the models to evict are chosen.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Serialize,
    Deserialize,
    schemars::JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Eviction {
    /// By reload time and likelihood of need.
    #[default]
    Cost,
    /// Longest unused first.
    Lru,
}

/// Where a model's weights are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Weights {
    /// A file or directory of the host, bind-mounted read-only.
    Path(PathBuf),
    /// An OCI image mounted read-only; `path` is the file or directory inside it, absolute.
    Image {
        /// The image that holds the weights.
        image: ImageRef,
        /// Inside the image.
        path: PathBuf,
    },
    /// The engine image brings its own, or the arguments name them.
    Builtin,
}

/// One model, checked and with all defaults filled in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelSpec {
    /// What clients write in `"model"`.
    pub name: ModelName,
    /// Other names for it.
    pub aliases: Vec<ModelName>,
    /// What runs inside the image.
    pub engine: EngineKind,
    /// The engine's image.
    pub image: ImageRef,
    /// The model's files.
    pub weights: Weights,
    /// What makes images part of the prompt, a file of the host; llama.cpp alone has it apart from the weights.
    pub projector: Option<PathBuf>,
    /// What the model's files say about the memory it needs; `None` where they could not be read without starting
    /// something. Follows from `weights` and `projector`, so it is no part of the hash.
    pub anatomy: Option<Anatomy>,
    /// How the daemon reaches the engine.
    pub transport: Transport,
    /// Memory per device that the admin declared; `None`: estimated, or measured later.
    pub vram: Option<Bytes>,
    /// Context length in tokens; `None`: the engine's default.
    pub context: Option<u32>,
    /// Sequences served at once; `None`: the engine's default.
    pub parallel: Option<u32>,
    /// Devices it is spread over by tensor parallelism; at least 1.
    pub gpu_count: u32,
    /// Devices it may be placed on; empty: all configured ones.
    pub gpus: Vec<GpuId>,
    /// Further engine arguments; none of them sets what Hostler computes.
    pub args: Vec<String>,
    /// Further environment of the container.
    pub env: BTreeMap<String, String>,
    /// `/dev/shm` of the container.
    pub shm_size: Bytes,
    /// Unloaded after so long without a request; `None`: never.
    pub idle_timeout: Option<Duration>,
    /// From start to ready; beyond it the load has failed.
    pub load_timeout: Duration,
    /// How often it is asked whether it is well, while it is ready; `None`: never.
    pub health_interval: Option<Duration>,
    /// From SIGTERM to SIGKILL.
    pub stop_timeout: Duration,
    /// Loaded at start-up and never evicted or idled out.
    pub pin: bool,
    /// From -100 to 100: it may evict models up to its own priority, and of those that wait the highest goes first.
    pub priority: i8,
    /// What happens when there is no room for it.
    pub on_full: OnFull,
    /// How deep it may sleep instead of being stopped; `None`: never.
    pub sleep_level: Option<SleepLevel>,
    /// Stopped after so long asleep; `None`: only when its memory is needed.
    pub sleep_timeout: Option<Duration>,
    /// What the front door does for it.
    pub door: DoorSpec,
}

/// Identity of everything in a [`ModelSpec`] that shapes the container; two specs of the same hash may share one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct SpecHash(pub String);

impl SpecHash {
    /// The hash of no specification: what has it fits nothing.
    pub const NONE: Self = Self(String::new());
}

impl ModelSpec {
    /// Hashes what shapes the container; policy (idle time, pin, priority, time-outs) is left out, so that changing it
    /// restarts nothing.
    #[must_use]
    pub fn spec_hash(&self) -> SpecHash {
        // vLLM refuses a name that it was not told at its start; llama-server takes any.
        let names: &[ModelName] = match self.engine {
            EngineKind::Vllm => &self.aliases,
            EngineKind::Llamacpp => &[],
        };
        let shape = (
            // Raised when the container that Hostler makes of the same specification changes.
            3_u32,
            (&self.name, names, self.engine, &self.image, &self.weights, self.transport),
            (self.vram, self.context, self.parallel, self.gpu_count),
            &self.projector,
            // An engine that sleeps keeps its memory in another way, so what it was measured to take is another number.
            (&self.args, &self.env, self.shm_size, self.sleep_level.is_some()),
        );
        // A tuple of strings, numbers and maps with string keys cannot fail to serialise; an empty text would still
        // be a constant, which only costs a reload.
        let text = serde_json::to_vec(&shape).unwrap_or_default();
        let digest = Sha256::digest(&text);
        SpecHash(digest.iter().take(12).map(|b| format!("{b:02x}")).collect())
    }
}

/// Memory an instance needs on each of its devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, schemars::JsonSchema)]
pub struct Need {
    /// Per device.
    pub bytes: Bytes,
    /// Where the number comes from.
    pub source: NeedSource,
}

/// Where a [`Need`] comes from, weakest last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum NeedSource {
    /// Observed on an earlier incarnation of the same specification.
    Measured,
    /// `vram` in the configuration.
    Declared,
    /// From what the model's files say.
    Estimated,
    /// Nothing is known: it gets whole devices to itself.
    Exclusive,
}

/// Where an instance goes, as decided by the planner and recorded in the container's labels.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Placement {
    /// Devices, in the order the engine numbers them; empty only while it has no place yet.
    pub gpus: Vec<GpuId>,
    /// Promised on each of them.
    pub need: Need,
    /// What an engine that takes all it is given is told to take of each of them: never more than is promised, and not grown by
    /// what it was then seen to hold.
    pub budget: Bytes,
    /// The smallest device's total memory; what a share of the whole card is computed from.
    pub device_total: Bytes,
}

/// A specification with nothing special about it, for the tests of every layer.
#[cfg(test)]
#[must_use]
pub fn test_spec(name: &str) -> ModelSpec {
    ModelSpec {
        name: name.parse().unwrap(),
        aliases: vec![],
        engine: EngineKind::Llamacpp,
        image: ImageRef::parse("localhost/e:1").unwrap(),
        weights: Weights::Path("/w.gguf".into()),
        projector: None,
        anatomy: None,
        transport: Transport::Unix,
        vram: None,
        context: None,
        parallel: None,
        gpu_count: 1,
        gpus: vec![],
        args: vec![],
        env: BTreeMap::new(),
        shm_size: Bytes::mib(64),
        idle_timeout: None,
        load_timeout: Duration::from_secs(600),
        health_interval: None,
        stop_timeout: Duration::from_secs(10),
        pin: false,
        priority: 0,
        on_full: OnFull::Evict,
        sleep_level: None,
        sleep_timeout: None,
        door: DoorSpec::default(),
    }
}

#[cfg(test)]
mod tests;
