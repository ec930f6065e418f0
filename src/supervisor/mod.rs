//! L2: the one owner of state.
//!
//! ```text
//!                    Ask (handles)          Event (completions, observations, time)
//!  proxy, control ───────────────▶ task ───────────────▶ State::handle(now, event) ──▶ [Effect]
//!        ▲                          │ ▲                                                  │
//!        └── Lease / Denied, Status ┘ └───────────────── execute (ports) ◀───────────────┘
//! ```
//! Purpose: every transition of every instance happens in one place, in one order. Owner: [`task::Supervisor`] owns the
//! [`state::State`]; nobody else sees it. Invariants: the owner never waits for an effect: effects go out as data, and
//! completions come back as events that name their instance; an event of an earlier incarnation is dropped.
//!
//! # Architecture Invariant
//! All here but what is in `IMPURE` (`tests/tidy/rules.rs`: the loop, the ports, what carries effects out) names no clock, no tokio, no
//! file system, no network and no tracing: a simulation drives it with made-up time, and one seed gives one history.

mod discover;
pub mod effect;
pub mod event;
mod execute;
mod express;
pub mod handle;
pub mod health;
mod instance;
mod lifecycle;
mod log;
mod look;
mod measure;
mod meter;
pub mod notice;
mod operator;
mod pace;
mod picture;
pub mod ports;
mod pressure;
mod queue;
mod reconfigure;
mod refusal;
mod room;
mod schedule;
mod sleep;
pub mod state;
mod stir;
mod story;
pub mod sweep;
pub mod task;
mod traffic;
mod turn;
mod waits;
mod wake;
pub mod witness;

#[cfg(test)]
mod tests;
