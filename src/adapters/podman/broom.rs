//! Removing the directory of an engine's socket, whatever the engine made in it.
//!
//! Purpose: what an engine locks there belongs to a subordinate ID, which alone may open it, and it would take the host's memory until the
//! next boot. So a container of that very user removes it, and then goes itself. Owner: whoever ends an instance. Invariants: this
//! process never goes into a directory that an engine made, however deep they are; it takes no longer than any call that changes something.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::error::PodmanError;
use super::{Inner, create, helper, socket_dir};
use crate::supervisor::ports::SOCKET_DIR;

/// Directories that could not be removed, and why.
pub type Left = BTreeMap<PathBuf, String>;

/// `$1` is where the directory is mounted, which itself can be neither changed nor removed from there.
const SCRIPT: &str = "chmod -R u+rwx \"$1\"; rm -rf \"$1\"";

impl Inner {
    /// Removes a directory. One that stays costs memory, of all engines' share where that is bounded, and is told.
    pub(super) async fn remove_dir(&self, dir: &Path) {
        let stays = self.clear_away(dir).await.err();
        self.left.send_if_modified(|left| match stays {
            Some(why) => left.insert(dir.to_owned(), why.clone()) != Some(why),
            None => left.remove(dir).is_some(),
        });
    }

    /// # Errors
    /// Why it stays.
    async fn clear_away(&self, dir: &Path) -> Result<(), String> {
        let Err(locked) = take_away(dir).await else { return Ok(()) };
        let swept = self.sweep_out(dir).await.map_err(|e| e.to_string());
        let left = take_away(dir).await.err();
        if let Some(reason) = left {
            let why = swept.err().map(|why| format!("; {why}")).unwrap_or_default();
            let reason = format!("{reason}{why}");
            tracing::error!(dir = %dir.display(), %reason, "what an engine left in {} could not be removed ({reason}) and takes memory; as the service user: \"podman unshare rm -rf {}\"", dir.display(), dir.display());
            return Err(reason);
        }
        tracing::warn!(dir = %dir.display(), reason = %locked, "an engine had made directories beside its socket, which are removed");
        Ok(())
    }

    /// Empties a directory as the user that the engine was.
    async fn sweep_out(&self, dir: &Path) -> Result<(), PodmanError> {
        // What is directly in it belongs to that user, the directory to us.
        let _ = fs::set_permissions(dir, Permissions::from_mode(0o777));
        let limit = self.api.deadlines.act;
        let name = helper::name();
        let swept = async {
            self.helper_image().await?;
            self.run_to_end(&body(dir, &self.namespace, &name), &mut |_| {}).await
        };
        let swept = tokio::time::timeout(limit, swept).await.unwrap_or_else(|_| {
            Err(PodmanError::Deadline { what: "empty an engine's directory".into(), after: limit })
        });
        self.sweep_helper(&name).await?;
        swept
    }
}

/// Not on a thread that others wait for: there may be many files.
async fn take_away(dir: &Path) -> std::io::Result<()> {
    let dir = dir.to_owned();
    let gone = tokio::task::spawn_blocking(move || socket_dir::remove(&dir)).await;
    gone.unwrap_or_else(|e| Err(std::io::Error::other(e)))
}

fn body(dir: &Path, namespace: &str, name: &str) -> Value {
    let command = ["/usr/bin/sh", "-c", SCRIPT, "sh", SOCKET_DIR];
    let mut body = helper::plain(namespace, name, &command.map(str::to_owned));
    // As the engine, and nothing more.
    body["user"] = create::USER.into();
    body["netns"] = json!({"nsmode": "none"});
    body["mounts"] =
        json!([create::ro("/usr".as_ref(), "/usr".as_ref()), create::rw(dir, SOCKET_DIR.as_ref())]);
    body
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_sweeps_is_the_engines_user_without_rights_or_network() {
        let body = body(Path::new("/run/hostler/engines/i"), "ns", "hostler-helper-1");
        assert_eq!(body["user"], "1000:1000");
        assert_eq!(body["cap_drop"], json!(["ALL"]));
        assert_eq!(
            (&body["no_new_privileges"], &body["read_only_filesystem"]),
            (&json!(true), &json!(true))
        );
        assert_eq!(body["netns"], json!({"nsmode": "none"}));
        assert_eq!(body["labels"], json!({"io.hostler.helper": "ns"}));
        assert_eq!(body["mounts"][1]["source"], "/run/hostler/engines/i");
        assert_eq!(body["mounts"].as_array().unwrap().len(), 2);
    }

    /// The very script, as the owner of what was locked.
    #[test]
    fn what_was_locked_and_nested_is_gone() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("i");
        fs::create_dir_all(dir.join("locked/inner")).unwrap();
        fs::write(dir.join("locked/inner/file"), "x").unwrap();
        fs::write(dir.join(" -rf *\n"), "x").unwrap();
        for path in ["locked/inner", "locked"] {
            fs::set_permissions(dir.join(path), Permissions::from_mode(0o0)).unwrap();
        }
        let run = std::process::Command::new("sh").args(["-c", SCRIPT, "sh"]).arg(&dir).status();
        assert!(run.unwrap().success() && !dir.exists());
    }
}
