//! Whose daemon a command is about: the system's or the caller's own.
//!
//! Purpose: one answer for all commands that were not told. Invariants: what runs comes before what is configured, and the system's before
//! the caller's own; root's is the system's.

use std::path::PathBuf;

use super::Context;
use super::bus::{connect, has_owner};
use crate::config::Dirs;

impl Context {
    /// Whose daemon: as told; else the system's, unless only the caller's own runs or is configured.
    pub async fn is_user(&self) -> bool {
        if let Some(told) = self.told() {
            return told;
        }
        for user in [false, true] {
            if let Ok(connection) = connect(user).await
                && has_owner(&connection).await.unwrap_or(false)
            {
                return user;
            }
        }
        self.is_configured_for_user()
    }

    /// The same of daemons that do not run. No bus is asked: what is configured has to be knowable without one.
    pub fn is_configured_for_user(&self) -> bool {
        let own = || own_config().is_some_and(|path| path.exists());
        let system = || Dirs::system().all.iter().any(|dir| dir.join("hostler.toml").exists());
        self.told().unwrap_or_else(|| own() && !system())
    }

    /// Whose daemon the caller means, whichever there are. Root's is the system's.
    fn told(&self) -> Option<bool> {
        let told = self.global.user || self.global.system;
        (told || rustix::process::geteuid().is_root()).then_some(self.global.user)
    }
}

/// The settings of the caller's own daemon.
fn own_config() -> Option<PathBuf> {
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".config"));
    let dir = std::env::var_os("XDG_CONFIG_HOME").map(PathBuf::from).or_else(home)?;
    Some(dir.join("hostler/hostler.toml"))
}
