//! L1: configuration, from TOML texts to a checked [`Config`].
//!
//! Purpose: everything that can be wrong in a configuration is found here, all at once, with file, line and column,
//! before a port is bound or podman is asked. Owner: `load` reads files below a given root; all else is pure.
//!
//! ```text
//!  load ──▶ Source (path, text) ──▶ tree: one TOML tree a source, what does not fit `raw` reported and cut out
//!                                     ├─ settings: merged key by key ──▶ parse: sections ─┐
//!                                     └─ models: never merged ─▶ model, flags, door ──────┴─▶ Config | ConfigErrors
//!  load ──▶ the file of keys ──▶ keys: against the configuration's models ──▶ Config::keys
//! ```
//!
//! # Architecture Invariant
//! Only `load` touches the file system; nothing here reads a clock, the environment or the network, or logs. A value is
//! never clamped or corrected: it is taken as written or refused with the reason.

mod check;
mod door;
mod error;
mod external;
mod flags;
mod health;
mod keys;
mod load;
mod log;
mod memory;
mod misplaced;
mod model;
mod parse;
mod projector;
mod raw;
mod server;
mod source;
mod traces;
mod tree;
mod types;

pub use door::is_clients;
pub use error::{ConfigError, ConfigErrors, Position};
pub use flags::{reserved_argument, reserved_variable};
pub use health::HealthConfig;
pub use keys::keys;
pub use load::{Dirs, closed_fix, load, load_external_keys, load_file, load_keys, read};
pub use log::{LogConfig, log_filter};
pub use parse::parse;
pub use raw::schema;
pub use source::{Source, SourceKind};
pub use traces::TracesConfig;
pub use types::{
    Config, Defaults, GpuBackend, GpuConfig, KeyConfig, KeySource, MemoryConfig, MetricsConfig,
    OnStop, PodmanConfig, PolicyConfig, ServerConfig, StartupConfig,
};
