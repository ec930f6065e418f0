//! The directories that are one daemon's alone.
//!
//! Purpose: no two daemons run the same containers. Each would take the other's for strays and end them, or adopt them and start what the
//! other stops, and both would write one state. Owner: the composition root, which holds [`Alone`] to its end. Invariants: they are held
//! before podman is asked for anything; the kernel gives them back when the process ends, however it ends, so nothing is left to clean up.

use std::fs::{self, File, TryLockError};
use std::io::ErrorKind;
use std::path::Path;

use crate::checks::{Exit, StartFailure};

/// Held as long as it lives.
#[derive(Debug)]
pub struct Alone {
    _held: Vec<File>,
}

/// Makes the directory of the engines' sockets, and takes it and the directory of the state. That one is systemd's to make; where there
/// is none, nothing is kept that somebody could write over.
///
/// # Errors
/// [`Exit::State`]: it cannot be made. [`Exit::Twice`]: another daemon has one of them.
pub fn take(engines: &Path, state: &Path) -> Result<Alone, StartFailure> {
    make(engines)?;
    let engines = hold(engines, "[podman] engine_dir")?;
    let state = hold(state, "$STATE_DIRECTORY")?;
    Ok(Alone { _held: engines.into_iter().chain(state).collect() })
}

/// The directory below which each engine gets one for its socket. Only the service user may look into it: the engines
/// reach theirs by a bind mount.
fn make(dir: &Path) -> Result<(), StartFailure> {
    use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .and_then(|()| fs::set_permissions(dir, fs::Permissions::from_mode(0o700)))
        .map_err(|err| {
            let message = format!(
                "the directory {} for the engines' sockets cannot be made: {err}; it must be writable for the service user",
                dir.display()
            );
            StartFailure::new(Exit::State, message)
        })
}

/// `key`: where another one is chosen.
fn hold(dir: &Path, key: &str) -> Result<Option<File>, StartFailure> {
    let failed = |why: &dyn std::fmt::Display| {
        let message = format!("the directory {} cannot be locked: {why}", dir.display());
        StartFailure::new(Exit::State, message)
    };
    let file = match File::open(dir) {
        Ok(file) => file,
        Err(err) if err.kind() == ErrorKind::NotFound => return Ok(None),
        Err(err) => return Err(failed(&err)),
    };
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => {
            let message = format!(
                "another hostlerd has the directory {dir} (fuser -v {dir} names it): two would end each other's models; stop that one, or \
                 give this one its own [podman] namespace, engine_dir and $STATE_DIRECTORY (here {key} is the same)",
                dir = dir.display()
            );
            Err(StartFailure::new(Exit::Twice, message))
        }
        Err(TryLockError::Error(err)) => Err(failed(&err)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_daemon_is_told_of_the_first() {
        let root = tempfile::tempdir().unwrap();
        let [engines, state, other] =
            ["run/engines", "state", "other"].map(|d| root.path().join(d));
        fs::create_dir(&state).unwrap();
        let first = take(&engines, &state).unwrap();
        let twice = take(&engines, &other).unwrap_err();
        assert_eq!(twice.exit, Exit::Twice);
        let text = twice.message;
        assert!(text.contains(&format!("fuser -v {}", engines.display())), "{text}");
        assert!(text.ends_with("(here [podman] engine_dir is the same)"), "{text}");
        let twice = take(&other, &state).unwrap_err();
        assert!(twice.message.ends_with("(here $STATE_DIRECTORY is the same)"), "{twice}");
        // Of its own it may have all, and so may whoever comes after it.
        let _beside = take(&other, &root.path().join("nowhere")).unwrap();
        drop(first);
        take(&engines, &state).unwrap();
    }
}
