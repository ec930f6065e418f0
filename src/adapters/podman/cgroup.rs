//! The kernel's word on what runs.
//!
//! Purpose: podman can be wrong about life and death (a killed monitor leaves "running", a wiped runtime directory
//! leaves "exited"), so both are read from the containers' control groups. Invariants: reads only, but for
//! [`kill`]; a container is found by its 64-digit ID in the group's name, never by podman's word, and only where the group
//! belongs to the user who runs the containers: anybody may give a group of their own that name, but to nobody else.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

/// How deep below the root containers are looked for; systemd's user managers put them at depth 5, pods at 6.
const DEPTH_MAX: usize = 12;

/// Where cgroup2 is mounted: `/sys/fs/cgroup`, or elsewhere on hosts that still have version 1 beside it.
///
/// # Errors
/// If it is not mounted at all, or `/proc` cannot be read.
pub fn mount() -> io::Result<PathBuf> {
    let text = fs::read_to_string("/proc/self/mountinfo")?;
    mount_in(&text).ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::NotFound,
            "no cgroup2 file system is mounted; boot with systemd.unified_cgroup_hierarchy=1",
        )
    })
}

/// The shortest cgroup2 mount point of a mountinfo text.
fn mount_in(mountinfo: &str) -> Option<PathBuf> {
    let points = mountinfo.lines().filter_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        let point = before.split(' ').nth(4)?;
        after.starts_with("cgroup2 ").then(|| unescape(point))
    });
    points.min_by_key(String::len).map(PathBuf::from)
}

/// Undoes mountinfo's octal escapes.
fn unescape(text: &str) -> String {
    text.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}

/// The control groups of all podman containers of the user `owner` below `root`, by container ID. One walk answers for all of them.
///
/// # Errors
/// If `root` itself cannot be read; groups that vanish during the walk are simply gone.
pub fn containers(root: &Path, owner: u32) -> io::Result<BTreeMap<String, PathBuf>> {
    let mut found = BTreeMap::new();
    fs::metadata(root)?;
    walk(root, DEPTH_MAX, &mut |path, name| {
        let Some(id) = container_id(name) else { return Ok(true) };
        // By whose it is and not by where it is: `cgroup_parent` puts containers elsewhere, and nobody can give a group away.
        if unless_gone(fs::symlink_metadata(path))?.is_some_and(|meta| meta.uid() == owner) {
            found.insert(id.to_owned(), path.to_owned());
        }
        Ok(false)
    })?;
    Ok(found)
}

/// The container ID in `libpod-ID.scope` (systemd) or `libpod-ID` (cgroupfs).
fn container_id(name: &str) -> Option<&str> {
    let id = name.strip_prefix("libpod-")?;
    let id = id.strip_suffix(".scope").unwrap_or(id);
    (id.len() == 64 && id.bytes().all(|b| b.is_ascii_hexdigit())).then_some(id)
}

/// Calls `visit` for each directory below `dir`; `false` keeps out of it.
fn walk(
    dir: &Path,
    depth: usize,
    visit: &mut dyn FnMut(&Path, &str) -> io::Result<bool>,
) -> io::Result<()> {
    let entries = match fs::read_dir(dir) {
        // Kept from us, so nobody's that we started; whoever wants its processes fails on their list.
        Err(err) if err.kind() == io::ErrorKind::PermissionDenied => return Ok(()),
        entries => unless_gone(entries)?,
    };
    let Some(entries) = entries else { return Ok(()) };
    for entry in entries {
        let Some(entry) = unless_gone(entry)? else { continue };
        if !unless_gone(entry.file_type())?.is_some_and(|t| t.is_dir()) {
            continue;
        }
        let path = entry.path();
        let name = entry.file_name();
        let descend = name.to_str().map_or(Ok(false), |name| visit(&path, name))?;
        if descend && depth > 0 {
            walk(&path, depth - 1, visit)?;
        }
    }
    Ok(())
}

/// The processes of a group and of all groups below it; empty when it is gone. Zombies are not among them.
///
/// # Errors
/// If they cannot be read, for example because this process has no file descriptor left: that is no death.
pub fn pids(group: &Path) -> io::Result<Vec<u32>> {
    let mut pids = procs(group)?;
    walk(group, DEPTH_MAX, &mut |path, _| {
        pids.extend(procs(path)?);
        Ok(true)
    })?;
    Ok(pids)
}

/// Whether no process is left for certain.
pub fn is_empty(group: &Path) -> bool {
    pids(group).is_ok_and(|pids| pids.is_empty())
}

fn procs(group: &Path) -> io::Result<Vec<u32>> {
    let text = unless_gone(fs::read_to_string(group.join("cgroup.procs")))?.unwrap_or_default();
    Ok(text.lines().filter_map(|line| line.parse().ok()).collect())
}

/// `None` for a group that vanished meanwhile, or one of threads, whose processes are in its parent's list.
fn unless_gone<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(err) => match Errno::from_io_error(&err) {
            Some(Errno::NOENT | Errno::NODEV | Errno::OPNOTSUPP) => Ok(None),
            _ => Err(err),
        },
    }
}

/// Kills all processes of a group and of those below it at once, forks included.
///
/// # Errors
/// Where `cgroup.kill` is not writable (a sandboxed daemon) or does not exist (Linux before 5.14).
pub fn kill(group: &Path) -> io::Result<()> {
    fs::write(group.join("cgroup.kill"), "1")
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "2b0ca17c9de905f8d4255685acc6d0cb3576845a4d0eac892c19207155ff16db";

    #[test]
    fn the_mount_is_found_on_unified_and_hybrid_hosts() {
        let unified =
            "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n";
        assert_eq!(mount_in(unified).unwrap(), Path::new("/sys/fs/cgroup"));
        let hybrid = "30 23 0:26 / /sys/fs/cgroup ro - tmpfs tmpfs ro\n\
                      31 30 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
                      32 30 0:28 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n";
        assert_eq!(mount_in(hybrid).unwrap(), Path::new("/sys/fs/cgroup/unified"));
        assert_eq!(mount_in("1 1 0:1 / / rw - ext4 /dev/x rw\n"), None);
    }

    #[test]
    fn containers_are_found_by_their_id_alone() {
        let root = tempfile::tempdir().unwrap();
        let slice = root.path().join("user.slice/user-9.slice");
        let scope = slice.join(format!("libpod-{ID}.scope"));
        let other = ID.replace('2', "3");
        fs::create_dir_all(scope.join("container")).unwrap();
        fs::create_dir_all(slice.join(format!("libpod-conmon-{ID}.scope"))).unwrap();
        fs::create_dir_all(slice.join("libpod-short.scope")).unwrap();
        let bare = root.path().join("libpod_parent").join(format!("libpod-{other}"));
        fs::create_dir_all(&bare).unwrap();
        let us = owner_of(root.path());
        let found = containers(root.path(), us).unwrap();
        assert_eq!(found, BTreeMap::from([(ID.to_owned(), scope), (other, bare)]));
        assert!(containers(&root.path().join("nope"), us).is_err());
    }

    fn owner_of(path: &Path) -> u32 {
        fs::metadata(path).unwrap().uid()
    }

    #[test]
    fn a_group_that_somebody_else_named_so_is_not_the_containers() {
        let root = tempfile::tempdir().unwrap();
        let us = owner_of(root.path());
        let scope =
            |user: u32| root.path().join(format!("user.slice/user-{user}.slice/libpod-{ID}.scope"));
        fs::create_dir_all(scope(996)).unwrap();
        assert_eq!(containers(root.path(), us + 1).unwrap(), BTreeMap::new());
        // Only root may give directories away, as others have them on a real host.
        if us != 0 {
            return;
        }
        // The directory's order is the file system's: of so many some come before ours and some behind it.
        for user in 1000..1020 {
            fs::create_dir_all(scope(user)).unwrap();
            std::os::unix::fs::chown(scope(user), Some(user), None).unwrap();
        }
        let found = containers(root.path(), us).unwrap();
        assert_eq!(found, BTreeMap::from([(ID.to_owned(), scope(996))]));
    }

    #[test]
    fn pids_are_those_of_the_whole_subtree() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("container/deep")).unwrap();
        fs::write(root.path().join("cgroup.procs"), "").unwrap();
        fs::write(root.path().join("container/cgroup.procs"), "12\n13\n").unwrap();
        fs::write(root.path().join("container/deep/cgroup.procs"), "14\n").unwrap();
        assert_eq!(pids(root.path()).unwrap(), [12, 13, 14]);
        assert_eq!(pids(&root.path().join("gone")).unwrap(), [0; 0]);
        assert!(is_empty(&root.path().join("gone")) && !is_empty(root.path()));
    }

    #[test]
    fn what_cannot_be_read_is_not_taken_for_dead() {
        let root = tempfile::tempdir().unwrap();
        // Stands for any other error than "not there", such as EMFILE: reading a directory fails with EISDIR.
        fs::create_dir_all(root.path().join("container/cgroup.procs")).unwrap();
        fs::write(root.path().join("cgroup.procs"), "").unwrap();
        assert!(pids(root.path()).is_err());
        assert!(!is_empty(root.path()));
    }

    #[test]
    fn killing_needs_the_file() {
        let root = tempfile::tempdir().unwrap();
        kill(root.path()).unwrap();
        assert_eq!(fs::read_to_string(root.path().join("cgroup.kill")).unwrap(), "1");
        assert!(kill(&root.path().join("gone")).is_err());
    }
}
