//! The directory that an engine puts its socket in.
//!
//! Purpose: one directory an instance, named like its container, below the engines' directory. Invariants: the
//! parent belongs to this process's user and is mode 0700, so nobody else gets below it; the directory is mode 0777
//! whatever the umask, because the engine is a subordinate ID that no mode bit but "other" reaches. The engine sees the
//! directory as a mount of its own and never looks it up through the parent. When it is ready it is closed to it (mode 0755), by who asks
//! whether it is: nothing can be made, renamed or unlinked there any more.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::supervisor::ports::SOCKET_NAME;
use crate::types::{Fault, FaultCode};

/// Bytes of a Unix socket's path, the closing NUL not counted (unix(7): `sun_path` has 108).
const SUN_PATH_MAX: usize = 107;

/// The directory of the container `name`.
#[must_use]
pub fn path(engine_dir: &Path, name: &str) -> PathBuf {
    engine_dir.join(name)
}

/// Makes the directory.
///
/// # Errors
/// [`FaultCode::Internal`] where the socket's path would be too long, the directory exists, or the file system
/// refuses.
pub fn make(engine_dir: &Path, name: &str) -> Result<PathBuf, Fault> {
    let dir = path(engine_dir, name);
    let length = dir.join(SOCKET_NAME).as_os_str().len();
    if length > SUN_PATH_MAX {
        return Err(Fault::new(
            FaultCode::Internal,
            format!(
                "the engine socket's path {:?} has {length} bytes, a Unix socket's has at most {SUN_PATH_MAX}; set [podman] engine_dir to a shorter path",
                dir.join(SOCKET_NAME)
            ),
        ));
    }
    create(engine_dir, &dir).map_err(|e| {
        Fault::new(
            FaultCode::Internal,
            format!(
                "the engine's socket directory {dir:?} could not be made ({e}); [podman] engine_dir must be a directory that the daemon's user owns"
            ),
        )
    })?;
    Ok(dir)
}

fn create(engine_dir: &Path, dir: &Path) -> io::Result<()> {
    if !engine_dir.is_dir() {
        DirBuilder::new().recursive(true).mode(0o700).create(engine_dir)?;
    }
    fs::create_dir(dir)?;
    let open = fs::set_permissions(dir, Permissions::from_mode(0o777));
    if open.is_err() {
        let _ = fs::remove_dir(dir);
    }
    open
}

/// Removes the directory and what the engine left directly in it. The entries belong to a subordinate ID, but the directory
/// is ours, so they can be unlinked. What is in a directory of the engine's is not: it may be locked, and so deep that whoever goes
/// down into it comes to the end of its stack.
///
/// # Errors
/// If something is left. A directory that is not there is `Ok`.
pub fn remove(dir: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    let mut left = None;
    for entry in entries {
        let entry = entry?;
        let is_dir = entry.file_type()?.is_dir();
        let gone =
            if is_dir { fs::remove_dir(entry.path()) } else { fs::remove_file(entry.path()) };
        left = left.or(gone.err());
    }
    left.map_or_else(|| fs::remove_dir(dir), Err)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn modes_do_not_depend_on_the_umask() {
        let root = tempfile::tempdir().unwrap();
        let engines = root.path().join("engines");
        let dir = make(&engines, "i").unwrap();
        let mode = |p: &Path| fs::metadata(p).unwrap().permissions().mode() & 0o7777;
        assert_eq!(mode(&engines), 0o700);
        assert_eq!(mode(&dir), 0o777);
        let again = make(&engines, "i").unwrap_err();
        assert!(again.message.contains("engine_dir"), "{again}");
        let _socket = UnixListener::bind(dir.join(SOCKET_NAME)).unwrap();
        remove(&dir).unwrap();
        assert!(!dir.exists());
        remove(&dir).unwrap();
    }

    #[test]
    fn what_an_engine_made_is_removed_but_for_what_is_deeper() {
        let root = tempfile::tempdir().unwrap();
        let dir = make(root.path(), "i").unwrap();
        let outside = root.path().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("kept"), "").unwrap();
        std::os::unix::fs::symlink(&outside, dir.join("link")).unwrap();
        fs::create_dir(dir.join("empty")).unwrap();
        fs::create_dir_all(dir.join("full/deeper")).unwrap();
        let _socket = UnixListener::bind(dir.join(SOCKET_NAME)).unwrap();
        let error = remove(&dir).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::DirectoryNotEmpty, "{error}");
        let names: Vec<_> = fs::read_dir(&dir).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names, ["full"]);
        fs::remove_dir(dir.join("full/deeper")).unwrap();
        remove(&dir).unwrap();
        assert!(outside.join("kept").exists(), "a link was followed");
    }

    #[test]
    fn a_path_that_no_socket_can_have_is_refused_before_anything_is_made() {
        let root = tempfile::tempdir().unwrap();
        let fault = make(root.path(), &"x".repeat(100)).unwrap_err();
        assert!(fault.message.contains("at most 107"), "{fault}");
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
    }
}
