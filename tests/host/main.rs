//! Tests on a real host: systemd as PID 1, rootless podman, the units of this tree installed as a package would.
//!
//! Each test boots hosts of its own (see the crate `testhost`) and may run beside any other. `HOSTLER_HOST_TESTS=skip` skips them,
//! and says so; a machine that cannot run them fails them with the reason.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a panic is how a test reports its failure"
)]

mod activation;
mod bus;
mod cli;
mod confinement;
mod console;
mod crash;
mod desktop;
mod doctor;
mod doors;
mod endpoint;
mod engine;
mod faults;
mod harness;
mod hub;
mod journal;
mod locked;
mod memory;
mod nvidia;
mod operator;
mod packages;
mod platform;
mod readiness;
mod reload;
mod restart;
mod room;
#[path = "../bus/schema.rs"]
mod schema;
mod surface;
mod swap;
mod terminal;
#[cfg(feature = "otlp")]
mod traces;
mod units;
mod weights;
