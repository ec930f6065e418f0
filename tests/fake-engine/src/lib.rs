//! A deterministic stand-in for vLLM and `llama-server`.
//!
//! It answers their routes with exact text at a set pace, claims memory in the stub driver's state
//! directory, sleeps and wakes, and fails, on purpose and in time, in every way that a supervisor must
//! survive. The program takes the real engines' arguments, so that a supervisor's argument vector can
//! be given unchanged; tests may run it in-process instead ([`run`], [`start`]).
//!
//! | module | what |
//! |---|---|
//! | [`knobs`] | what a test may choose, and how that is written |
//! | [`config`] | environment and arguments |
//! | [`state`] | phase, counters, requests and aborts seen |
//! | `server` | loading, listening, the end |
//! | `routes` | what is answered where |
//! | `more` | the routes with fixed answers |
//! | `sse` | generations and their events |
//! | `sleep` | sleep, wake, pause |
//! | `vram` | claims on devices |
//! | [`chaos`] | wire faults |
//! | [`text`] | what the model says |
//!
//! # Invariants
//!
//! * Same settings, same requests: same bytes (but for `created`).
//! * The library never ends or signals the process it runs in; it returns an [`Exit`].
//! * A request whose client leaves before the whole answer is noted as aborted within a token's time.

pub mod chaos;
pub mod config;
mod infer;
pub mod knobs;
mod more;
mod routes;
mod server;
mod sleep;
mod sse;
pub mod state;
pub mod text;
mod vram;

use std::sync::Arc;

pub use config::{Config, Listen};
pub use knobs::{KnobError, Knobs};
pub use state::{Engine, Exit};

/// Runs an engine to its end, in the present runtime.
pub async fn run(config: Config) -> Exit {
    Engine::new(config).serve().await
}

/// Starts an engine as a task of the present runtime; abort the task to be rid of it.
#[must_use]
pub fn start(config: Config) -> (Arc<Engine>, tokio::task::JoinHandle<Exit>) {
    let engine = Engine::new(config);
    let task = tokio::spawn(Arc::clone(&engine).serve());
    (engine, task)
}
