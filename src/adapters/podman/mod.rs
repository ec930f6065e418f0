//! The podman adapter.
