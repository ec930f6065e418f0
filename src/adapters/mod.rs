//! L3: one folder per port. Adapters carry out what the core decided; they never import each other, [`disk`] aside.
pub mod disk;
pub mod engine;
pub mod gpu;
pub mod podman;
pub mod state_file;
pub mod systemd;
pub mod weights;
