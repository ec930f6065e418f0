//! The HTTP front door over real sockets: the real server, a scripted engine behind it, a scripted supervisor beside it.
//!
//! Nothing here sleeps to let something happen: tests wait for events, with a bound that only a failure reaches.

#![expect(clippy::unwrap_used, reason = "a panic in a test is its failure report")]

mod answers;
mod backends;
mod doors;
mod drain;
mod engine;
mod external;
mod faults;
mod feedback;
mod flowing;
mod house;
mod leaving;
mod limits;
mod load;
mod log;
mod origin;
mod pages;
mod raw;
mod refuse;
mod reuse;
mod smuggling;
mod sockets;
mod streaming;
mod surface;
mod taken_in;
mod wire;
