//! `hostler import`, the program itself: what it writes is accepted by `hostler config check`, and nothing is replaced unasked.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Output};

fn hostler(dir: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hostler"));
    command.current_dir(dir).env("MODELS", "/srv/models").args(arguments).output().unwrap()
}

/// The same for somebody who is not root, with a home.
fn somebody(home: &Path, arguments: &[&str]) -> Output {
    // Another user may not reach where it was built.
    let program = home.join("hostler");
    if !program.exists() {
        fs::copy(env!("CARGO_BIN_EXE_hostler"), &program).unwrap();
    }
    let mut command = Command::new(program);
    if rustix::process::geteuid().is_root() {
        command.uid(65534).gid(65534);
    }
    command.env("HOME", home).env_remove("XDG_CONFIG_HOME").args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

const IMAGE: [&str; 2] = ["--llamacpp-image", "registry.example/llama-server:1"];

#[test]
fn what_is_imported_is_accepted() {
    let dir = tempfile::tempdir().unwrap();
    let yaml = concat!(env!("CARGO_MANIFEST_DIR"), "/src/cli/tests/llama-swap.yaml");
    let command = ["import", "llama-swap", yaml, IMAGE[0], IMAGE[1]];
    let printed = hostler(dir.path(), &command);
    assert_eq!(printed.status.code(), Some(0), "{}", text(&printed.stderr));
    assert!(
        text(&printed.stderr).contains("warning: model sglang not taken over: it starts SGLang")
    );
    let written = hostler(dir.path(), &[&command[..], &["--output", "hostler.toml"]].concat());
    assert_eq!(written.status.code(), Some(0), "{}", text(&written.stderr));
    let there = fs::read_to_string(dir.path().join("hostler.toml")).unwrap();
    assert_eq!(there, text(&printed.stdout), "printed and written are the same");
    let check = hostler(dir.path(), &["config", "check", "--file", "hostler.toml"]);
    assert_eq!(check.status.code(), Some(0), "{}", text(&check.stderr));
    let json = hostler(dir.path(), &[&["--json"], &command[..]].concat());
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(json["text"], there.as_str());
    assert!(json["not_taken_over"].as_array().unwrap().iter().any(|l| l["model"] == "whisper"));
}

#[test]
fn nothing_is_replaced_unasked_or_by_less() {
    let dir = tempfile::tempdir().unwrap();
    let place = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
    let there = || fs::read_to_string(dir.path().join("h.toml")).unwrap();
    place("c.yaml", "models: {m: {cmd: llama-server -m /m.gguf}}\n");
    place("h.toml", "mine");
    let import = |more: &[&str]| {
        let command = ["import", "llama-swap", "c.yaml", "--output", "h.toml"];
        hostler(dir.path(), &[&command[..], more].concat())
    };
    let refused = import(&IMAGE);
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused.stderr).contains("--force"));
    let imageless = import(&["--force"]);
    assert_eq!(imageless.status.code(), Some(2));
    assert!(text(&imageless.stderr).contains("--llamacpp-image"));
    assert_eq!(there(), "mine");
    assert_eq!(import(&["--force", IMAGE[0], IMAGE[1]]).status.code(), Some(0));
    assert!(there().contains("[models.m]"));
    assert_eq!(hostler(dir.path(), &["import", "llama-swap", "none.yaml"]).status.code(), Some(4));
}

/// The service's credentials are not there for whoever checks by hand.
#[test]
fn keys_of_other_services_do_not_fail_a_check_by_hand() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("h.toml");
    let model = "[models.far]\nengine = \"external\"\nurl = \"http://192.0.2.1\"\nkey_credential = \"far\"\n";
    fs::write(&file, format!("[gpu]\nbackend = \"host\"\n{model}")).unwrap();
    let check = hostler(dir.path(), &["config", "check", "--file", "h.toml"]);
    assert_eq!(check.status.code(), Some(0), "{}", text(&check.stderr));
}

#[test]
fn who_has_a_daemon_of_their_own_checks_its_files() {
    let home = tempfile::tempdir().unwrap();
    fs::set_permissions(home.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let dir = home.path().join(".config/hostler");
    fs::create_dir_all(&dir).unwrap();
    let file = dir.join("hostler.toml");
    fs::write(&file, "[gpu]\nbackend = \"host\"\n").unwrap();
    let listed = somebody(home.path(), &["config", "files"]);
    assert_eq!(text(&listed.stdout), format!("{}\n", file.display()), "{}", text(&listed.stderr));
    let checked = somebody(home.path(), &["config", "check"]);
    assert_eq!(checked.status.code(), Some(0), "{}", text(&checked.stderr));
    let system = somebody(home.path(), &["--system", "config", "files"]);
    assert!(!text(&system.stdout).contains("/.config/"), "{}", text(&system.stdout));
}
