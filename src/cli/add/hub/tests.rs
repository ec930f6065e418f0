//! What is said of a download, and where it may go.

use super::*;

#[test]
fn what_the_container_does_is_shown() {
    let shown = |text| serde_json::from_str::<Line>(text).unwrap().message("org/m");
    assert_eq!(shown(r#"{"at": 7}"#).unwrap(), "org/m");
    assert_eq!(shown(r#"{"writing": true}"#).unwrap(), "org/m: writing to the disk");
    let checking = shown(r#"{"checking": 66}"#).unwrap();
    assert_eq!(checking, "org/m: checking the digest, 66 %");
    assert_eq!(shown(r#"{"total": 7, "files": 1}"#), None);
}

#[test]
fn programs_that_were_left_out_are_named() {
    let left_out = |code: &str| {
        let text = format!(r#"{{"dir": "d", "commit": "c", "bytes": 1, "main": null{code}}}"#);
        serde_json::from_str::<Fetched>(&text).unwrap().left_out("org/m")
    };
    assert_eq!(left_out(""), None);
    assert_eq!(left_out(r#", "code": []"#), None);
    let one = left_out(r#", "code": ["modeling_x.py"]"#).unwrap();
    assert!(one.starts_with("org/m has Python files of its own (modeling_x.py), "), "{one}");
    let more = left_out(r#", "code": ["a.py", "b.py", "c.py"]"#).unwrap();
    assert!(more.contains("(a.py and 2 more)"), "{more}");
}

#[test]
fn who_downloads_owns_what_was_made() {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
    let dir = tempfile::tempdir().unwrap();
    let new = dir.path().join("a/models");
    let refused = made(&new, Some(Some((7, 9))), false).unwrap_err();
    assert!(refused.fix.contains(&format!("-o hostler -g hostler {}", new.display())));
    made(&new, Some(None), true).unwrap_err();
    assert!(!dir.path().join("a").exists(), "nothing is touched");
    if rustix::process::geteuid().is_root() {
        assert_eq!(made(&new, Some(Some((7, 9))), true).unwrap(), new);
        let meta = std::fs::metadata(&new).unwrap();
        assert_eq!((meta.uid(), meta.gid(), meta.permissions().mode() & 0o777), (7, 9, 0o755));
        assert_eq!(std::fs::metadata(dir.path().join("a")).unwrap().uid(), 0);
    }
    assert!(made(&new, None, false).unwrap().is_dir());
    // As a definition takes it.
    let relative = models_dir(Path::new("."), true, true).unwrap();
    assert_eq!(relative, std::env::current_dir().unwrap());
    let other = models_dir(&dir.path().join("none"), true, false).unwrap();
    assert!(other.is_absolute() && !other.exists(), "a dry run makes nothing");
    let up = models_dir(&new.join("../other"), true, true).unwrap();
    assert_eq!(up, dir.path().canonicalize().unwrap().join("a/other"));
}

#[test]
fn a_directory_that_is_there_has_to_be_the_service_users_to_write() {
    use std::os::unix::fs::PermissionsExt as _;
    if !rustix::process::geteuid().is_root() {
        // Only root can ask in somebody's name, and is refused here.
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let open = |path: &Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    open(dir.path(), 0o755);
    let disk = dir.path().join("disk");
    std::fs::create_dir(&disk).unwrap();
    open(&disk, 0o755);
    let service = Some(Some((7, 9)));
    let refused = made(&disk, service, true).unwrap_err();
    let fix = format!("sudo chown hostler: {};", disk.display());
    assert!(refused.exit == Exit::Denied && refused.fix.starts_with(&fix), "{refused}");
    std::os::unix::fs::chown(&disk, Some(7), Some(9)).unwrap();
    assert_eq!(made(&disk, service, true).unwrap(), disk);
    open(dir.path(), 0o700);
    made(&disk, service, true).unwrap_err();
    // Whoever fetches for themselves finds out by themselves.
    assert_eq!(made(&disk, None, true).unwrap(), disk);
}

#[test]
fn only_a_local_hub_needs_the_hosts_network() {
    let network = |text| network(text).unwrap();
    assert_eq!(network("http://127.0.0.1:8080"), Network::Host);
    assert_eq!(network("http://localhost/x"), Network::Host);
    assert_eq!(network("http://[::1]:80"), Network::Host);
    assert_eq!(network("https://hub.example"), Network::Own);
    assert_eq!(network(&default_endpoint()), Network::Own);
    assert!(super::network("hub.example").is_err());
}
