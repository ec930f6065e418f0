//! systemd's managers over D-Bus: what they are asked, which is little.
//!
//! Purpose: the last resort against processes that outlive their container, which the daemon's sandbox keeps it from killing
//! itself (`cgroup.kill` is read-only for it); and why this process is being stopped. Owner: the composition root, and the process of a
//! model's unit. Invariants: a connection a question, each within [`DEADLINE`]; only scopes of podman's containers are killed; an
//! answer that does not come is an error, never a guess.

use std::path::Path;
use std::time::Duration;

use zbus::connection::Builder;
use zbus::proxy::CacheProperties;
use zbus::{Connection, OwnedObjectPath, Proxy};

use crate::supervisor::ports::{PortFuture, Scopes};

/// Connecting, asking and answering.
const DEADLINE: Duration = Duration::from_secs(5);
const SERVICE: &str = "org.freedesktop.systemd1";
const PATH: &str = "/org/freedesktop/systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";
const UNIT: &str = "org.freedesktop.systemd1.Unit";
const JOB: &str = "org.freedesktop.systemd1.Job";
/// What the manager says of a unit that is not loaded.
const NO_SUCH_UNIT: &str = "org.freedesktop.systemd1.NoSuchUnit";

/// The manager that podman's containers belong to.
#[derive(Clone, Debug)]
pub struct UserManager {
    address: String,
}

impl UserManager {
    /// The manager whose bus listens on this socket.
    #[must_use]
    pub fn at(socket: &Path) -> Self {
        Self { address: format!("unix:path={}", socket.display()) }
    }

    async fn kill_scope(&self, scope: &str) -> Result<(), String> {
        if !is_container(scope) {
            return Err(format!("{scope:?} is no scope of a podman container"));
        }
        let killed = async {
            let bus = Builder::address(self.address.as_str()).build().await?;
            let manager = proxy(&bus, PATH, MANAGER).await?;
            manager.call::<_, _, ()>("KillUnit", &(scope, "all", 9_i32)).await
        };
        match within(killed).await {
            Err(zbus::Error::MethodError(name, _, _)) if name == NO_SUCH_UNIT => Ok(()),
            other => other
                .map_err(|e| format!("the user manager at {} did not kill it: {e}", self.address)),
        }
    }
}

impl Scopes for UserManager {
    fn kill(&self, scope: String) -> PortFuture<'_, Result<(), String>> {
        Box::pin(async move { self.kill_scope(&scope).await })
    }
}

/// `libpod-` and 64 hexadecimal digits.
fn is_container(scope: &str) -> bool {
    let id = scope.strip_prefix("libpod-").and_then(|rest| rest.strip_suffix(".scope"));
    id.is_some_and(|id| id.len() == 64 && id.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// Why systemd stops this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopJob {
    /// It will be started again at once.
    Restart,
    /// It is to be gone; or nobody asked systemd, and the signal came from elsewhere.
    Stop,
}

/// Asks the manager of this very unit what job it works on; `user`: a desktop user's manager.
///
/// # Errors
/// Why it is not known, for people.
pub async fn stop_job(user: bool) -> Result<StopJob, String> {
    let asked = async {
        let builder = if user { Builder::session() } else { Builder::system() };
        let bus = builder.build().await?;
        let manager = proxy(&bus, PATH, MANAGER).await?;
        let unit: OwnedObjectPath = manager.call("GetUnitByPID", &(std::process::id(),)).await?;
        let unit = proxy(&bus, unit.as_str(), UNIT).await?;
        let (number, job): (u32, OwnedObjectPath) = unit.get_property("Job").await?;
        if number == 0 {
            return Ok(StopJob::Stop);
        }
        let job = proxy(&bus, job.as_str(), JOB).await?;
        let kind: String = job.get_property("JobType").await?;
        // "try-restart" is turned into one of these when it is queued; "reload-or-restart" likewise.
        Ok(if kind == "restart" { StopJob::Restart } else { StopJob::Stop })
    };
    within(asked).await.map_err(|e| format!("systemd could not be asked for its job: {e}"))
}

async fn proxy<'a>(bus: &Connection, path: &'a str, of: &'static str) -> zbus::Result<Proxy<'a>> {
    zbus::proxy::Builder::new(bus)
        .destination(SERVICE)
        .path(path)
        .interface(of)
        .cache_properties(CacheProperties::No)
        .build()
        .await
}

async fn within<T>(work: impl Future<Output = zbus::Result<T>>) -> zbus::Result<T> {
    let late = || zbus::Error::Failure(format!("no answer within {DEADLINE:?}"));
    tokio::time::timeout(DEADLINE, work).await.unwrap_or_else(|_| Err(late()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_containers_are_killed_and_nobody_there_is_said() {
        let manager = UserManager::at(Path::new("/nowhere/bus.sock"));
        for other in ["user@1000.service", "libpod-x.scope", "libpod-conmon-1.scope"] {
            let why = manager.kill(other.to_owned()).await.unwrap_err();
            assert!(why.contains("no scope of a podman container"), "{why}");
        }
        let scope = format!("libpod-{}.scope", "a1".repeat(32));
        let why = manager.kill(scope).await.unwrap_err();
        assert!(why.contains("/nowhere/bus.sock"), "{why}");
    }
}
