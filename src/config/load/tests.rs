//! Which files are read, in which order, and what of them cannot be.

use std::os::unix::fs::symlink;

use super::*;

const GOOD: &str = "[gpu]\nbackend = \"host\"\n";

fn root(files: &[(&str, &str)]) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    for (path, text) in files {
        let path = root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    root
}

fn paths(root: &tempfile::TempDir) -> Vec<String> {
    read(root.path(), &Dirs::system()).into_iter().map(|s| s.path).collect()
}

#[test]
fn sources_come_in_the_order_in_which_they_apply() {
    let root = root(&[
        ("usr/lib/hostler/hostler.toml", GOOD),
        ("usr/lib/hostler/hostler.toml.d/10.toml", "#"),
        ("etc/hostler/hostler.toml.d/20.toml", "#"),
        ("run/hostler/hostler.toml.d/15.toml", "#"),
        ("run/hostler/hostler.toml.d/20.toml", "#"),
        ("etc/hostler/models.d/a.toml", "#"),
    ]);
    assert_eq!(
        paths(&root),
        [
            "/usr/lib/hostler/hostler.toml",
            "/usr/lib/hostler/hostler.toml.d/10.toml",
            "/run/hostler/hostler.toml.d/15.toml",
            "/etc/hostler/hostler.toml.d/20.toml",
            "/etc/hostler/models.d/a.toml",
        ]
    );
}

#[test]
fn dev_null_masks_without_being_read() {
    let root = root(&[
        ("usr/lib/hostler/hostler.toml", GOOD),
        ("usr/lib/hostler/models.d/a.toml", "#"),
        ("etc/hostler/models.d/b.toml", "#"),
    ]);
    symlink("/dev/null", root.path().join("etc/hostler/models.d/a.toml")).unwrap();
    assert_eq!(paths(&root), ["/usr/lib/hostler/hostler.toml", "/etc/hostler/models.d/b.toml"]);
}

#[test]
fn what_cannot_be_read_is_an_error_like_any_other() {
    let root = root(&[("etc/hostler/hostler.toml", GOOD), ("etc/hostler/models.d", "a file")]);
    let drop_ins = root.path().join("etc/hostler/hostler.toml.d");
    fs::create_dir_all(drop_ins.join("dir.toml")).unwrap();
    fs::write(drop_ins.join("big.toml"), "#".repeat((1 << 20) + 1)).unwrap();
    fs::write(drop_ins.join("bytes.toml"), b"# \xff").unwrap();
    symlink("nowhere", drop_ins.join("link.toml")).unwrap();
    // A device that would never end.
    symlink("/dev/zero", drop_ins.join("zero.toml")).unwrap();
    let errors = load(root.path(), &Dirs::system(), &Defaults::system()).unwrap_err();
    let text = errors.to_string();
    let starts = [
        "/etc/hostler/hostler.toml.d/big.toml: cannot be read: it has 1048577 bytes",
        "/etc/hostler/hostler.toml.d/bytes.toml: cannot be read: it is not UTF-8 from byte 2",
        "/etc/hostler/hostler.toml.d/dir.toml: cannot be read: it is not a regular file",
        "/etc/hostler/hostler.toml.d/link.toml: cannot be read: No such file",
        "/etc/hostler/hostler.toml.d/zero.toml: cannot be read: it is not a regular file",
        "/etc/hostler/models.d: cannot be read: Not a directory",
    ];
    assert_eq!(text.lines().count(), starts.len(), "{text}");
    for (line, start) in text.lines().zip(starts) {
        assert!(line.starts_with(start), "{line}");
    }
}

#[test]
fn settings_that_cannot_be_reached_are_not_replaced_by_the_vendors() {
    let root = root(&[("usr/lib/hostler/hostler.toml", GOOD), ("etc/hostler", "not a directory")]);
    let sources = read(root.path(), &Dirs::system());
    assert_eq!(sources[0].path, "/etc/hostler/hostler.toml");
    assert!(sources[0].text.is_err());
}

/// What somebody sees who is not root.
fn as_nobody<T: Send>(look: impl FnOnce() -> T + Send) -> T {
    let look = || {
        if rustix::process::geteuid().is_root() {
            // Of this thread alone.
            let nobody = rustix::process::Uid::from_raw(65_534);
            rustix::thread::set_thread_res_uid(nobody, nobody, nobody).unwrap();
        }
        look()
    };
    std::thread::scope(|scope| scope.spawn(look).join().unwrap())
}

#[test]
fn who_may_not_look_into_the_services_directory_can_check_what_is_beside_it() {
    use std::os::unix::fs::PermissionsExt as _;
    let root = root(&[
        ("etc/hostler/hostler.toml", GOOD),
        ("usr/lib/hostler/models.d/a.toml", "#"),
        ("run/hostler/models.d/b.toml", "#"),
    ]);
    let mode = |path: &Path, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    };
    mode(root.path(), 0o755);
    let closed = root.path().join("run/hostler");
    mode(&closed, 0);
    let seen = || {
        let dirs = Dirs::system().as_seen(root.path());
        let paths: Vec<_> = read(root.path(), &dirs).into_iter().map(|s| s.path).collect();
        (paths, dirs.hidden().to_vec())
    };
    let (sources, hidden) = as_nobody(seen);
    assert_eq!(sources, ["/etc/hostler/hostler.toml", "/usr/lib/hostler/models.d/a.toml"]);
    assert_eq!(hidden, [Path::new("/run/hostler")]);
    // The daemon has to see all of it.
    let strict = as_nobody(|| load(root.path(), &Dirs::system(), &Defaults::system()));
    let errors = strict.unwrap_err().to_string();
    assert!(errors.contains("/run/hostler/models.d: cannot be read: Permission"), "{errors}");
    // A host may have its settings in the vendor's file and in drop-ins alone.
    fs::remove_file(root.path().join("etc/hostler/hostler.toml")).unwrap();
    fs::write(root.path().join("usr/lib/hostler/hostler.toml"), GOOD).unwrap();
    let (sources, hidden) = as_nobody(seen);
    assert_eq!(sources, ["/usr/lib/hostler/hostler.toml", "/usr/lib/hostler/models.d/a.toml"]);
    assert_eq!(hidden, [Path::new("/run/hostler")]);
    // The administrator's own directory is not passed over.
    mode(&root.path().join("etc/hostler"), 0);
    let (sources, _) = as_nobody(seen);
    assert_eq!(sources[0], "/etc/hostler/hostler.toml");
    mode(&root.path().join("etc/hostler"), 0o755);
    mode(&closed, 0o755);
}

#[test]
fn no_file_at_all_names_where_one_is_looked_for() {
    let root = root(&[]);
    let user = Dirs::user(Path::new("/home/u/.config"));
    let errors = load(root.path(), &user, &Defaults::system()).unwrap_err();
    assert!(errors.to_string().contains("/home/u/.config/hostler/hostler.toml"), "{errors}");
}

#[test]
fn one_file_alone() {
    let root = root(&[("f.toml", GOOD), ("f.toml.d/x.toml", "not toml")]);
    let path = root.path().join("f.toml");
    assert!(load_file(&path, &Defaults::system()).is_ok());
    let errors = load_file(&root.path().join("g.toml"), &Defaults::system()).unwrap_err();
    assert!(errors.to_string().contains("g.toml: cannot be read: No such file"), "{errors}");
}
