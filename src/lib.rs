//! Hostler: a systemd- and podman-native GPU host agent.
pub mod adapters;
pub mod config;
pub mod plan;
pub mod proxy;
pub mod supervisor;
pub mod types;
