//! The memory backends: device memory from NVML, or the host's own for machines without it.
//!
//! Purpose: two implementations of [`crate::supervisor::ports::Gpus`], [`Nvml`] and [`Host`], and the readiness check
//! that podman will be able to hand the configured devices to a container ([`cdi`]). Owner: the composition root picks
//! exactly one backend, by the configuration. Invariants: neither backend ever stands in for the other; a number that
//! could not be had is [`Known::Unknown`](crate::types::Known::Unknown) or an error, never a zero; every call ends
//! within its deadline, whatever the driver or the kernel does.

mod cause;
pub mod cdi;
mod handles;
mod host;
mod nvml;
mod partial;
mod processes;
mod reader;
mod settle;
mod thread;
mod turns;
mod vitals;

pub use host::Host;
pub use nvml::Nvml;

use std::time::Duration;

/// How long a call of either backend may take unless told otherwise.
pub const DEADLINE: Duration = Duration::from_secs(3);
/// How long NVML may take for its first answer: without persistence mode the driver prepares each device when the first program asks for
/// it, which takes one to three seconds for each.
pub(crate) const FIRST: Duration = Duration::from_secs(60);
