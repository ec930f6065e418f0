//! L3: what people can see of the inside: logs, metrics, and what has happened.

pub mod catalog;
pub mod log;
pub mod metrics;
pub mod telling;
pub mod timeline;
#[cfg(feature = "otlp")]
pub mod traces;
