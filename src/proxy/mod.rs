//! L3: the HTTP front door.
//!
//! Purpose: take OpenAI-style requests from clients, ask the supervisor for a lease on the model each one names, and
//! carry bytes between client and engine. Owner: the composition root starts one [`Server`]; each connection is a task
//! of its own.
//!
//! ```text
//!  server, crowd ─ accept, bounds, drain service ─ one request from head to answer
//!    └─ conn ─ one connection, its clocks    ├─ strict, route, endpoints, site, keys ─ PURE: what is asked, by whom
//!                                            ├─ inference ─ a request for an engine
//!                                            │    ├─ intake, budget; peek, multipart, rewrite ─ the body; PURE: its model
//!                                            │    ├─ patience, gate, admission ─ a turn and a lease in one time; PURE: whose turn
//!                                            │    ├─ flow ─ a large body on its way through, as it comes
//!                                            │    ├─ wait, beat ─ signs of life while a model loads; PURE: their bytes
//!                                            │    └─ grant, forward, relay, answer ─ to the engine and back, under a lease;
//!                                            │         │         PURE: order ─ what it is asked; chunks ─ how many went by
//!                                            │         └─ upstream, message ─ its connection; PURE: its answer
//!                                            ├─ external ─ models that run elsewhere: their health, their key
//!                                            ├─ websocket, tunnel, recall ─ sockets; answers that are asked for again
//!                                            ├─ trace ─ PURE: its place in the client's trace, and the engine's
//!                                            ├─ page, port ─ what is asked about the host, and of whom
//!                                            └─ respond, table ─ PURE: answers of our own
//! ```
//!
//! # Architecture Invariants
//! * The path to the engine is rebuilt from an allowlist; nothing that a client wrote in a request line or a header
//!   outside it reaches an engine. Body bytes are passed unchanged in both directions.
//! * Nothing here decides about models: no phase is read before a lease is asked for, but to tell who got
//!   no turn why. Who asks for a stored answer asks for nothing that would load its model.
//! * A lease lives inside the response's body, so it ends with the last byte or with the client, whichever is first.
//! * An answer that broke off never looks whole.
//! * A client that has left is noticed by the end of its stream of bytes. One that pipelined a further request before it left is
//!   noticed only by the first write to it that fails, because hyper reads no further while bytes are waiting.
//! * Prompts, completions, keys and cookies are never logged.

mod admission;
mod answer;
mod beat;
mod bell;
mod budget;
mod chunks;
mod clock;
mod conn;
mod crowd;
mod end;
mod endpoints;
mod error;
mod external;
mod flow;
mod forward;
mod frames;
#[cfg(test)]
mod fuzz;
mod gate;
mod grant;
mod inference;
mod intake;
mod keys;
mod message;
mod multipart;
mod order;
mod page;
mod patience;
mod peek;
mod pool;
pub mod port;
mod protocols;
mod recall;
mod record;
mod refuse;
mod relay;
mod respond;
mod rewrite;
mod room;
mod route;
mod rules;
mod server;
mod service;
mod site;
mod stream;
mod strict;
mod table;
mod trace;
mod tunnel;
mod upstream;
mod wait;
mod websocket;

pub use external::{External, Healths};
pub use forward::Upstream;
pub use keys::Key;
pub use refuse::{Cause, refuse};
pub use rules::{InForce, Rules, SharedRules};
pub use server::{Drained, LAST_REQUESTS, Limits, Server};
pub use stream::{Listener, listen};

/// Whether a body would be let through: what a request's scan costs, for `benches/`.
#[doc(hidden)]
#[must_use]
pub fn scan(body: &[u8]) -> bool {
    peek::peek(body).is_ok()
}
