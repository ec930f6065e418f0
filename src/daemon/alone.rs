//! The directories that are one daemon's alone.
//!
//! Purpose: no two daemons run the same containers. Each would take the other's for strays and end them, or adopt them and start what the
//! other stops, and both would write one state. Owner: the composition root, which holds [`Alone`] to its end. Invariants: they are held
//! before podman is asked for anything; the kernel gives them back when the process ends, however it ends, so nothing is left to clean up.
//! Where a file system has no locks nothing is held: that is told, and no reason to serve nobody.

use std::fs::{self, File, TryLockError};
use std::io::{Error, ErrorKind};
use std::path::Path;

use rustix::io::Errno;

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
    let file = match File::open(dir) {
        Ok(file) => file,
        Err(err) if err.kind() == ErrorKind::NotFound => return Ok(None),
        Err(err) => return Err(failed(dir, &err)),
    };
    held(file.try_lock(), dir, key).map(|held| held.then_some(file))
}

/// Whether there is a lock.
fn held(lock: Result<(), TryLockError>, dir: &Path, key: &str) -> Result<bool, StartFailure> {
    match lock {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => {
            let message = format!(
                "another hostlerd has the directory {dir} (fuser -v {dir} names it): two would end each other's models; stop that one, or \
                 give this one its own [podman] namespace, engine_dir and $STATE_DIRECTORY (here {key} is the same)",
                dir = dir.display()
            );
            Err(StartFailure::new(Exit::Twice, message))
        }
        Err(TryLockError::Error(err)) if has_no_locks(&err) => {
            tracing::warn!(
                dir = %dir.display(),
                "the directory {dir} cannot be locked, for its file system has no locks ({err}): a second hostlerd on it would not be noticed, and \
                 would end this one's models; give {key} a place on another file system",
                dir = dir.display()
            );
            Ok(false)
        }
        Err(TryLockError::Error(err)) => Err(failed(dir, &err)),
    }
}

fn failed(dir: &Path, why: &Error) -> StartFailure {
    let message = format!("the directory {} cannot be locked: {why}", dir.display());
    StartFailure::new(Exit::State, message)
}

/// Whether it says that nobody can lock anything there: NFS without lockd, some of FUSE.
#[must_use]
pub fn has_no_locks(error: &Error) -> bool {
    // Both "not implemented" and "not supported".
    error.kind() == ErrorKind::Unsupported
        || error.raw_os_error() == Some(Errno::NOLCK.raw_os_error())
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

    #[test]
    fn a_file_system_without_locks_ends_no_start() {
        let dir = Path::new("/srv/nfs/state");
        let locked =
            |errno: Errno| held(Err(TryLockError::Error(errno.into())), dir, "$STATE_DIRECTORY");
        for errno in [Errno::NOLCK, Errno::OPNOTSUPP, Errno::NOSYS] {
            assert!(!locked(errno).unwrap(), "{errno:?}");
        }
        for errno in [Errno::IO, Errno::INTR] {
            let failure = locked(errno).unwrap_err();
            assert_eq!(failure.exit, Exit::State);
            assert!(failure.message.contains("/srv/nfs/state cannot be locked: "), "{failure}");
        }
        assert!(held(Ok(()), dir, "$STATE_DIRECTORY").unwrap());
    }
}
