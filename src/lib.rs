//! Hostler: a systemd- and podman-native GPU host agent.
//!
//! It serves one OpenAI-compatible endpoint and runs rootless podman model containers behind it, on demand, so that they
//! always fit the measured device memory. `ARCHITECTURE.md` has the reasons; this is the tour.
//!
//! | Layer | Module | What it is |
//! |---|---|---|
//! | L0 | [`types`] | vocabulary: names, bytes, phases, specifications, refusals |
//! | L1 | [`config`] | TOML files → a checked configuration, or every error at once |
//! | L1 | [`plan`] | pure planning: the memory ledger, needs, placement, eviction, with reasons |
//! | L2 | [`supervisor`] | the one owner of state: events in, effects out; ports to the outside |
//! | L3 | [`adapters`] | podman, NVML and host memory, engines, systemd, weights, the state on disk |
//! | L3 | [`proxy`] | the HTTP front door |
//! | L3 | [`control`] | D-Bus: objects, jobs, polkit |
//! | L3 | [`observe`] | logs, metrics, the timeline of what has happened, traces |
//! | L3 | [`console`] | pages about the host: metrics, status, events, the dashboard |
//! | L4 | [`checks`] | what must be true on the host: the gate of READY, and `hostler doctor` |
//! | top | [`daemon`] | composition root of `hostlerd` |
//! | top | [`cli`] | `hostler`, the operator's program: D-Bus, files and checks |
//!
//! # Architecture Invariants
//! * Layers point downwards only; adapters never import each other, `disk` aside; `proxy` sees `supervisor::handle`, the `Endpoint`
//!   of a lease, and `types`.
//! * The pure layers (`types`, `plan`, `config` and `supervisor`, but for the few files in `IMPURE`) name no tokio, no clock, no file
//!   system, no network, no tracing. A test (`tests/tidy/rules.rs`) enforces both rules.
//! * One task owns every instance and the ledger. Everybody else asks it for an outcome.
//! * Plan, then execute: a plan leaves no choices to whoever carries it out.

pub mod adapters;
pub mod checks;
pub mod cli;
pub mod config;
pub mod console;
pub mod control;
pub mod daemon;
#[cfg(test)]
mod fuzz;
pub mod observe;
pub mod plan;
pub mod proxy;
pub mod supervisor;
pub mod types;
