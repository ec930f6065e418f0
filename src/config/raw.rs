//! The configuration as written: a serde mirror of the files, and their JSON schema.
//!
//! Purpose: names, types and documentation of every key, once; nothing here knows a rule that needs two keys. Owner:
//! made by [`super::tree`], consumed by [`super::parse`] and [`super::model`]. All keys are optional here, so that a
//! drop-in may set any of them; values carry their spans. The doc comments become the schema's descriptions.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserialize, Deserializer, Error, MapAccess, Visitor};
use toml::Spanned;

use super::health::RawHealth;
use super::log::RawLog;
use super::memory::RawMemory;
use super::traces::RawTraces;
use crate::types::{Eviction, Feedback, OnFull, Transport};

mod schema;
mod server;
mod startup;

pub use schema::schema;
pub use server::{RawAuth, RawKey, RawKeys, RawMetrics, RawServer};
pub use startup::RawStartup;

/// A text that [`super::check`] understands; as a type of its own, so that a wrong TOML type is answered with an example.
macro_rules! text_type {
    ($(#[$doc:meta])* $name:ident, $expecting:literal, $pattern:literal) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct $name(pub String);

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Text;
                impl Visitor<'_> for Text {
                    type Value = $name;
                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str($expecting)
                    }
                    fn visit_str<E: Error>(self, text: &str) -> Result<$name, E> {
                        Ok($name(text.to_owned()))
                    }
                }
                deserializer.deserialize_str(Text)
            }
        }

        impl JsonSchema for $name {
            fn inline_schema() -> bool {
                true
            }
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($name).into()
            }
            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({ "type": "string", "pattern": $pattern })
            }
        }
    };
}

text_type!(
    /// A length of time with its unit: `90s`, `10m`, `1h 30m`.
    DurationText,
    "a duration in quotes, such as \"90s\" or \"1h 30m\"",
    r"^(never|\s*[0-9].*[a-zA-Zµ].*)$"
);
text_type!(
    /// An amount of memory with its unit: `512MiB`, `24GiB`.
    BytesText,
    "an amount of memory in quotes, such as \"512MiB\" or \"24GiB\"",
    r"^\s*[0-9]+(\.[0-9]+)?\s*([kKmMgGtTpP][iI]?)?[bB]\s*$"
);

/// A TOML table. Serde by itself would also take a list for a struct, its elements for the fields in their order.
#[derive(Debug, Default)]
pub struct Table<T>(pub T);

/// How a [`Table`] is to be written, for whoever wrote something else.
pub trait Written {
    /// Completes "must be …".
    const FORM: &'static str;
}

macro_rules! written {
    ($($name:ident: $form:literal),* $(,)?) => {
        $(impl Written for $name { const FORM: &'static str = $form; })*
    };
}

written! {
    RawServer: "a table, [server]",
    RawAuth: "a table, [auth]",
    RawKey: "a table, [keys.NAME]",
    RawGpu: "a table, [gpu]",
    RawPodman: "a table, [podman]",
    RawPolicy: "a table, [policy]",
    RawStartup: "a table, [startup]",
    RawModel: "a table, [models.NAME]",
    RawWeights: "a table, { path = \"/…\" } or { image = \"…\", path = \"/…\" }",
}

impl<'de, T: Deserialize<'de> + Written> Deserialize<'de> for Table<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Map<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de> + Written> Visitor<'de> for Map<T> {
            type Value = Table<T>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(T::FORM)
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Table<T>, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(Table)
            }
        }
        deserializer.deserialize_map(Map(PhantomData))
    }
}

/// Hostler's configuration: `hostler.toml` and its drop-ins `hostler.toml.d/*.toml`. A file of `models.d/` holds the
/// keys of one model at its top level instead.
#[derive(Debug, Default, serde::Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RawFile {
    /// The HTTP endpoint.
    #[schemars(with = "RawServer")]
    pub server: Table<RawServer>,
    /// Who may come in.
    #[schemars(with = "RawAuth")]
    pub auth: Table<RawAuth>,
    /// Which memory models are placed in. Required.
    #[schemars(with = "RawGpu")]
    pub gpu: Option<Spanned<Table<RawGpu>>>,
    /// What may be done with memory beside the devices'.
    #[schemars(with = "RawMemory")]
    pub memory: Table<RawMemory>,
    /// How podman is reached.
    #[schemars(with = "RawPodman")]
    pub podman: Table<RawPodman>,
    /// What happens without being asked.
    #[schemars(with = "RawPolicy")]
    pub policy: Table<RawPolicy>,
    /// How engines that serve are asked whether they still can.
    #[schemars(with = "RawHealth")]
    pub health: Table<RawHealth>,
    /// The checks before the service reports that it is ready.
    #[schemars(with = "RawStartup")]
    pub startup: Table<RawStartup>,
    /// Where metrics are shown beside the front door.
    #[schemars(with = "RawMetrics")]
    pub metrics: Table<RawMetrics>,
    /// Where spans of requests and loads are sent.
    #[schemars(with = "RawTraces")]
    pub traces: Table<RawTraces>,
    /// What is written down.
    #[schemars(with = "RawLog")]
    pub log: Table<RawLog>,
    /// Models by name: `[models.NAME]`, in quotes where the name has dots or slashes: `[models."org/model"]`.
    #[schemars(with = "BTreeMap<String, RawModel>")]
    pub models: BTreeMap<Spanned<String>, Table<RawModel>>,
}

/// Which memory models are placed in.
#[derive(Debug, Default, serde::Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RawGpu {
    /// Where memory is measured: "nvml" (NVIDIA GPUs) or "host" (RAM: models run on the CPU, also with unified memory). Required.
    #[schemars(with = "RawBackend", extend("required" = true))]
    pub backend: Option<Spanned<RawBackend>>,
    /// NVML only: UUIDs of the devices to manage, as `nvidia-smi -L` prints them (GPU-… or MIG-…). Default []: all.
    #[schemars(with = "Vec<String>", extend("default" = []))]
    pub devices: Option<Spanned<Vec<Spanned<String>>>>,
    /// Memory kept free on each device, up to 1TiB. Default "512MiB".
    #[schemars(with = "BytesText", extend("default" = "512MiB"))]
    pub headroom: Option<Spanned<BytesText>>,
    /// Host backend only: how much of the host's memory there is for models, 1MiB to 64TiB. The headroom is kept free of it. Default: all.
    #[schemars(with = "BytesText")]
    pub budget: Option<Spanned<BytesText>>,
    /// NVML only: absolute path of libnvidia-ml.so.1. Default: as the dynamic linker finds it.
    #[schemars(with = "String")]
    pub nvml_library: Option<Spanned<String>>,
}

/// Where memory is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum RawBackend {
    /// NVIDIA's management library.
    Nvml,
    /// The host's RAM.
    Host,
}

/// How podman is reached.
#[derive(Debug, Default, serde::Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RawPodman {
    /// Absolute path of podman's API socket. Default "/run/hostler/service/podman.sock"; in user mode
    /// "$XDG_RUNTIME_DIR/hostler/podman.sock".
    #[schemars(with = "String", extend("default" = "/run/hostler/service/podman.sock"))]
    pub socket: Option<Spanned<String>>,
    /// Label that marks the containers of this daemon, so that two daemons, each with its own `engine_dir` and state, can share one podman: 1 to 32 of a-z, 0-9
    /// and "-". Default "default".
    #[schemars(with = "String", regex(pattern = r"^[a-z0-9-]{1,32}$"), extend("default" = "default"))]
    pub namespace: Option<Spanned<String>>,
    /// Absolute path, at most 40 bytes, of the directory for the engines' sockets. Default "/run/hostler/engines"; in
    /// user mode "$XDG_RUNTIME_DIR/hostler/engines".
    #[schemars(with = "String", extend("default" = "/run/hostler/engines"))]
    pub engine_dir: Option<Spanned<String>>,
    /// Whether images that are missing are pulled. Default true.
    #[schemars(with = "bool", extend("default" = true))]
    pub pull: Option<bool>,
}

/// What happens without being asked.
#[derive(Debug, Default, serde::Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RawPolicy {
    /// What stopping the service does to its containers: "stop", or "keep" them for the next start. A
    /// restart always keeps them. Default "stop".
    #[schemars(with = "RawOnStop", extend("default" = "stop"))]
    pub on_stop: Option<RawOnStop>,
    /// How long a stop waits for running requests, 0s to 1h. Default "30s".
    #[schemars(with = "DurationText", extend("default" = "30s"))]
    pub drain_timeout: Option<Spanned<DurationText>>,
    /// How models to evict are chosen: "cost" (reload time, likelihood of need) or "lru" (longest unused). Default "cost".
    #[schemars(with = "Eviction", extend("default" = "cost"))]
    pub eviction: Option<Eviction>,
    /// A model that became ready less than this ago is evicted only for one of higher priority, 0s to 1h. Default "10s".
    #[schemars(with = "DurationText", extend("default" = "10s"))]
    pub min_residency: Option<Spanned<DurationText>>,
    /// Busy models finish and leave when another has waited so long for their place, and start anew where a reload has changed them so
    /// long ago; 0s to 1h, "0s": never. Default "30s".
    #[schemars(with = "DurationText", extend("default" = "30s"))]
    pub turn_after: Option<Spanned<DurationText>>,
    /// What happens when there is no room for a model: "evict" idle ones, "wait" for room until max_wait without
    /// evicting, or "refuse" at once with 503. Default "evict".
    #[schemars(with = "OnFull", extend("default" = "evict"))]
    pub on_full: Option<OnFull>,
    /// When nothing was requested for so long, models that were never measured are loaded and measured, one after the
    /// other, as far as there is room without evicting anybody; 0s to 1h, "0s": never. Default "0s".
    #[schemars(with = "DurationText", extend("default" = "0s"))]
    pub measure_after: Option<Spanned<DurationText>>,
    /// When that may begin: hours of the day in the host's local time, also over midnight ("22:00-06:00"); needs
    /// measure_after. Default "00:00-24:00".
    #[schemars(with = "String", extend("default" = "00:00-24:00"))]
    pub measure_hours: Option<Spanned<String>>,
}

/// What a stop of the service does to its containers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum RawOnStop {
    /// Stop and remove them.
    Stop,
    /// Keep them for the next start.
    Keep,
}

/// One model.
#[derive(Debug, Default, serde::Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RawModel {
    /// In models.d only: what clients write in "model". Default: the file's name without ".toml".
    #[schemars(with = "String")]
    pub name: Option<Spanned<String>>,
    /// What runs inside the image: "llamacpp" (llama-server) or "vllm"; or "external": it runs elsewhere, at `url`. Required.
    #[schemars(with = "RawEngine", extend("required" = true))]
    pub engine: Option<Spanned<RawEngine>>,
    /// The engine's container image, as podman takes it. Required, unless it is external. Default: none.
    #[schemars(with = "String")]
    pub image: Option<Spanned<String>>,
    /// External only: where it is, "http://HOST:PORT" or "https://HOST". Default: none, it must be given.
    #[schemars(with = "String")]
    pub url: Option<Spanned<String>>,
    /// External only: name of the systemd credential that holds its key. Default: none, it asks for no key.
    #[schemars(with = "String")]
    pub key_credential: Option<Spanned<String>>,
    /// External only: the path that is asked to know whether it lives. Default "/v1/models".
    #[schemars(with = "String", extend("default" = "/v1/models"))]
    pub health: Option<Spanned<String>>,
    /// Where the model's files are. Default: inside the engine's image, named by `args`.
    #[schemars(with = "RawWeights")]
    pub weights: Option<Spanned<Table<RawWeights>>>,
    /// llamacpp only: absolute path of the file (`mmproj-….gguf`) by which it sees images or hears. Default: none, it knows text alone.
    #[schemars(with = "String")]
    pub projector: Option<Spanned<String>>,
    /// How the engine is reached: "unix" (a socket; the container has no network) or "tcp" (a port on loopback, which
    /// every user of the host can connect to, and a network: docs/security.md). Default "unix".
    #[schemars(with = "Transport", extend("default" = "unix"))]
    pub transport: Option<Spanned<Transport>>,
    /// Memory that the model needs on each of its devices, 1MiB to 64TiB. Default: estimated, then measured. vLLM is told to
    /// take so much; for its context 1GiB more is promised to it, 2GiB on each of several devices, or it is told less.
    #[schemars(with = "BytesText")]
    pub vram: Option<Spanned<BytesText>>,
    /// Context length in tokens, 1 to 16777216; of llama.cpp what all sequences share. Most of what a model needs beside its weights
    /// follows from it. Default: what the model was made for, or, of llama.cpp with vram, as much of that as fits.
    #[schemars(with = "u32", range(min = 1, max = 16_777_216))]
    pub context: Option<Spanned<i64>>,
    /// Sequences served at once, 1 to 4096. Default: the engine's; for vllm with a model that keeps states (Mamba, linear
    /// attention) what its cache has room for, 16 to 256.
    #[schemars(with = "u32", range(min = 1, max = 4096))]
    pub parallel: Option<Spanned<i64>>,
    /// Devices that the model is spread over, equal ones (one product and size, no slices of MIG), 1 to 64. Default 1.
    #[schemars(with = "u32", range(min = 1, max = 64), extend("default" = 1))]
    pub gpu_count: Option<Spanned<i64>>,
    /// UUIDs of the devices it may be placed on, a part of `devices` in [gpu]. Default []: any of them.
    #[schemars(with = "Vec<String>", extend("default" = []))]
    pub gpus: Option<Spanned<Vec<Spanned<String>>>>,
    /// Further arguments of the engine, at most 256. What has a key of its own here is refused. Default [].
    #[schemars(with = "Vec<String>", extend("default" = []))]
    pub args: Option<Vec<Spanned<String>>>,
    /// Further environment variables of the container. Default {}.
    #[schemars(with = "BTreeMap<String, String>", extend("default" = {}))]
    pub env: Option<BTreeMap<Spanned<String>, Spanned<String>>>,
    /// Size of the container's /dev/shm, 1MiB to 1TiB. Default "64MiB"; "1GiB" for vllm.
    #[schemars(with = "BytesText", extend("default" = "64MiB"))]
    pub shm_size: Option<Spanned<BytesText>>,
    /// Unloaded after so long without a request, 1s to 8760h, or "never". Default "10m".
    #[schemars(with = "DurationText", extend("default" = "10m"))]
    pub idle_timeout: Option<Spanned<DurationText>>,
    /// From the container's start to a healthy engine, 1s to 24h; a load that takes longer has failed. Default "10m".
    #[schemars(with = "DurationText", extend("default" = "10m"))]
    pub load_timeout: Option<Spanned<DurationText>>,
    /// How often it is asked whether it is well, 1s to 1h, or "never". Default: as in [health].
    #[schemars(with = "DurationText")]
    pub health_interval: Option<Spanned<DurationText>>,
    /// From SIGTERM to SIGKILL when the engine is stopped, 1s to 10m. Default "10s".
    #[schemars(with = "DurationText", extend("default" = "10s"))]
    pub stop_timeout: Option<Spanned<DurationText>>,
    /// Whether it is loaded at start-up and never unloaded to make room or for idling. Default false.
    #[schemars(with = "bool", extend("default" = false))]
    pub pin: Option<Spanned<bool>>,
    /// From -100 to 100. It may evict models up to its own priority, and of models that wait the highest goes first.
    /// Default 0.
    #[schemars(with = "i8", range(min = -100, max = 100), extend("default" = 0))]
    pub priority: Option<Spanned<i64>>,
    /// What happens when there is no room for it: "evict", "wait" or "refuse". Default: as in [policy].
    #[schemars(with = "OnFull")]
    pub on_full: Option<Spanned<OnFull>>,
    /// How deep it may sleep instead of being stopped (engine "vllm" over a Unix socket on a GPU): 0 never, 1 with its
    /// weights in the host's memory, 2 also without them. Default 1 where host_ram_budget is set.
    #[schemars(with = "u8", range(min = 0, max = 2))]
    pub sleep_level: Option<Spanned<i64>>,
    /// Stopped after so long asleep, 1s to 8760h, or "never". Default "4h".
    #[schemars(with = "DurationText", extend("default" = "4h"))]
    pub sleep_timeout: Option<Spanned<DurationText>>,
    /// What streams get while they wait for it: "comment" (lines that clients of event streams leave out), "chunk" (empty chunks,
    /// for clients that stumble over comments) or "off". Default "comment".
    #[schemars(with = "Feedback", extend("default" = "comment"))]
    pub loading_feedback: Option<Feedback>,
    /// Requests that it is given at once, 1 to 65536; others wait for their turn. Default: any number.
    #[schemars(with = "u32", range(min = 1, max = 65536))]
    pub max_concurrent: Option<Spanned<i64>>,
    /// Parameters for requests that do not have them: { temperature = 0.7 }. Default {}.
    #[schemars(with = "BTreeMap<String, serde_json::Value>", extend("default" = {}))]
    pub defaults: Option<BTreeMap<Spanned<String>, Spanned<toml::Value>>>,
    /// Parameters that requests have whatever they say; max_tokens or max_completion_tokens is then the only bound of an answer, whatever name a client has for it. Default {}.
    #[schemars(with = "BTreeMap<String, serde_json::Value>", extend("default" = {}))]
    pub force: Option<BTreeMap<Spanned<String>, Spanned<toml::Value>>>,
    /// What the engine is told in "model". Default: what the client wrote; with engine = "external" the model's own name for its aliases,
    /// which the far side does not know.
    #[schemars(with = "String")]
    pub served_name: Option<Spanned<String>>,
    /// Other names that clients may use for it. Default [].
    #[schemars(with = "Vec<String>", extend("default" = []))]
    pub aliases: Option<Vec<Spanned<String>>>,
}

/// What runs a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum RawEngine {
    /// llama.cpp's `llama-server`.
    Llamacpp,
    /// vLLM's OpenAI server.
    Vllm,
    /// Somebody else.
    External,
}

/// Where a model's files are: on the host, { path = "/srv/models/m.gguf" }, or in an image of their own,
/// { image = "registry/name:tag", path = "/m.gguf" }.
#[derive(Debug, Default, serde::Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RawWeights {
    /// Absolute path of the file or directory: on the host, or inside `image`. Required.
    #[schemars(with = "String", extend("required" = true))]
    pub path: Option<Spanned<String>>,
    /// The image that holds the files; it is mounted read-only. Default: none, the files are on the host.
    #[schemars(with = "String")]
    pub image: Option<Spanned<String>>,
}

#[cfg(test)]
mod tests;
