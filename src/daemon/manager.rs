//! systemd's managers, as the daemon needs them: one that ends what outlives its container, one that says why it stops.

use std::path::PathBuf;

use crate::adapters::systemd::manager::{self as systemd, StopJob, UserManager};

/// The bus of the manager that podman's containers belong to. The service user's is passed on by a unit of that manager,
/// because the daemon's sandbox hides `/run/user`.
pub fn of_containers(user: bool) -> UserManager {
    let socket = match super::runtime_dir().filter(|_| user) {
        Some(dir) => dir.join("bus"),
        None => PathBuf::from("/run/hostler/service/bus.sock"),
    };
    UserManager::at(&socket)
}

/// Whether systemd is about to start the daemon again: then its models stay, whatever `on_stop` says about a stop.
pub async fn restarts(user: bool) -> bool {
    match systemd::stop_job(user).await {
        Ok(job) => job == StopJob::Restart,
        Err(why) => {
            tracing::warn!("{why}; this is taken for a stop, by on_stop in [policy]");
            false
        }
    }
}
