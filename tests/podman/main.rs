//! The podman adapter against a podman.
//!
//! * `wire`: against a scripted server on a Unix socket: what a podman that hangs, dies or talks nonsense does to us. Runs
//!   everywhere. `devices`: of GPUs, the same.
//! * `contract`, `images`: against a real rootless podman, judged by effects (`/proc`, control groups, the clock), never by podman's
//!   word. Ignored unless asked for, because it needs a host: as the service user, with its API socket running,
//!
//!   ```text
//!   HOSTLER_TEST_PODMAN_SOCKET=/run/hostler/service/podman.sock HOSTLER_TEST_IMAGE=localhost/busybox:1 \
//!       cargo test --test podman -- --ignored
//!   ```
//!
//!   where the image is made by `tests/podman/image.sh` and `podman import`.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a panic is a test's failure report")]

mod contract;
mod devices;
mod fake;
mod faults;
mod helpers;
mod host;
mod images;
mod lists;
mod logs;
mod pulls;
mod support;
mod wire;
