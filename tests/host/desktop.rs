//! The same daemon for a desktop user, in that user's own manager.

use crate::harness::{
    Answer, COUNT, SOON, check_count, count_request, installed, skip_unless_wanted,
};
use std::fs::File;
use testhost::{Host, Look, wait_for};

const HOME: &str = "/home/alice";

/// A host with a user who has a manager, images, models and a configuration of her own.
fn alice() -> Host {
    let host = installed().boot().unwrap();
    // The package listens for the system's daemon, which has the same ports.
    host.root("systemctl --quiet disable --now hostler.socket hostler-unix.socket").unwrap();
    host.root("useradd --create-home alice && touch /var/lib/systemd/linger/alice").unwrap();
    host.root("systemctl start user@$(id -u alice).service").unwrap();
    let image = File::open(testhost::assets::llama_server_image().unwrap()).unwrap();
    let mut load = host.user_command("alice", "podman");
    assert!(load.args(["load", "--quiet"]).stdin(image).status().unwrap().success());
    let model = testhost::assets::count_512().unwrap();
    host.copy_in(&model, &format!("{HOME}/models")).unwrap();
    host.root(&format!("mv {HOME}/models/*.gguf {HOME}/models/count-512.gguf")).unwrap();
    let toml = COUNT.replace("/var/lib/hostler/models", &format!("{HOME}/models"));
    host.write_file(&format!("{HOME}/.config/hostler/hostler.toml"), &toml).unwrap();
    host.root(&format!("chown -R alice: {HOME}")).unwrap();
    host
}

fn ask(host: &Host, options: &str) -> Answer {
    let body = count_request("count", 512);
    let url = "http://127.0.0.1:8711/v1/chat/completions";
    let script = format!("curl -sS -i -N --max-time 60 {options} --data-binary '{body}' {url}");
    Answer::of(&host.user("alice", &script).unwrap())
}

#[test]
fn a_desktop_user_starts_a_socket_and_is_answered() {
    skip_unless_wanted!();
    let host = alice();
    let state = |unit: &str| {
        let run = host.user("alice", &format!("systemctl --user show -P ActiveState {unit}"));
        run.unwrap().trim().to_owned()
    };
    host.user("alice", "systemctl --user start hostler.socket hostler-unix.socket").unwrap();
    assert_eq!(state("hostler.service"), "inactive");
    // Her podman's API is there before the daemon, for `hostler add`.
    host.user("alice", "test -S $XDG_RUNTIME_DIR/hostler/podman.sock").unwrap();
    check_count(&ask(&host, ""), 512);
    assert_eq!(state("hostler.service"), "active");
    check_count(&ask(&host, "--unix-socket $XDG_RUNTIME_DIR/hostler/http.sock"), 512);
    // The line is written once a second at the most.
    wait_for("the status line", SOON, || {
        let shown = host.user("alice", "systemctl --user status --no-pager hostler.service")?;
        let ready = shown.contains("Status: \"1 of 1 models ready (count)");
        Ok(if ready { Look::Done(()) } else { Look::NotYet(shown) })
    })
    .unwrap();

    // Everything runs as her, and the service user's podman is none of it.
    let owner = host.root("ps -o user= -p $(pgrep --exact hostlerd)").unwrap();
    assert_eq!(owner.trim(), "alice");
    let cgroup = host.root("cat /proc/$(pgrep --exact llama-server)/cgroup").unwrap();
    let uid = host.root("id -u alice").unwrap();
    assert!(cgroup.contains(&format!("/user@{}.service/", uid.trim())), "{cgroup}");
    let status = host.root("cat /proc/$(pgrep --exact llama-server)/status").unwrap();
    assert!(
        status.contains("CapBnd:\t0000000000000000") && status.contains("NoNewPrivs:\t1"),
        "{status}"
    );

    // A killed daemon finds its container again; a stop leaves nothing.
    let pid = host.root("pgrep --exact llama-server").unwrap();
    host.user("alice", "systemctl --user kill --signal=SIGKILL hostler.service").unwrap();
    check_count(&ask(&host, ""), 512);
    assert_eq!(host.root("pgrep --exact llama-server").unwrap(), pid);
    host.user("alice", "systemctl --user stop hostler.service").unwrap();
    let left = host.root("pgrep --list-full 'llama-server|hostlerd|conmon' || true").unwrap();
    assert_eq!(left, "");
    assert_eq!(host.user("alice", "podman ps --all --quiet").unwrap(), "");
}

#[test]
fn a_desktop_user_has_control_and_models_as_units() {
    skip_unless_wanted!();
    let host = alice();
    let her = |script: &str| host.user("alice", script).unwrap();
    let state =
        |unit: &str| her(&format!("systemctl --user show -P ActiveState {unit}")).trim().to_owned();
    // Nothing runs: a call on her own bus starts her own daemon.
    assert_eq!(state("hostler.service"), "inactive");
    let manager = "org.hostler1 /org/hostler1 org.hostler1.Manager";
    let models = her(&format!("busctl --user call {manager} ListModels"));
    assert!(models.starts_with("a(sosstt) 1 \"count\" \"/org/hostler1/model/count\""), "{models}");
    assert_eq!(state("hostler.service"), "active");
    assert_eq!(host.root("ps -o user= -p $(pgrep --exact hostlerd)").unwrap().trim(), "alice");
    // The program finds it by itself; on the system's bus there is none.
    assert!(her("hostler list").contains("count"));
    assert_eq!(host.try_root("hostler --system list").unwrap().status.code(), Some(3));

    // A unit of hers that requires a model starts once the model answers.
    let unit = "[Unit]\nRequires=hostler-model@count.service\nAfter=hostler-model@count.service\n\
                [Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=sh -c 'hostler --json show count >%t/seen'\n";
    host.write_file(&format!("{HOME}/.config/systemd/user/needs.service"), unit).unwrap();
    her("systemctl --user daemon-reload && systemctl --user start needs.service");
    let seen: serde_json::Value = serde_json::from_str(&her("cat $XDG_RUNTIME_DIR/seen")).unwrap();
    assert_eq!((&seen["phase"], &seen["pinned"]), (&"ready".into(), &true.into()), "{seen}");
    let shown = her("systemctl --user status --no-pager hostler-model@count.service");
    assert!(shown.contains("Status: \"count is ready"), "{shown}");

    // A restart of the daemon keeps the container, its pin and both units.
    let engine = host.root("pgrep --exact llama-server").unwrap();
    her("systemctl --user restart hostler.service");
    let shown: serde_json::Value = serde_json::from_str(&her("hostler --json show count")).unwrap();
    assert_eq!(shown["pinned"], true, "{shown}");
    her("hostler wait count --timeout 30s");
    assert_eq!(host.root("pgrep --exact llama-server").unwrap(), engine);
    assert_eq!(
        (state("needs.service"), state("hostler-model@count.service")),
        ("active".into(), "active".into())
    );

    // It ends with the unit.
    her("systemctl --user stop hostler-model@count.service");
    assert_eq!(state("needs.service"), "inactive");
    assert_eq!(her("podman ps --all --quiet"), "");
}

#[test]
fn a_desktop_user_without_configuration_is_told_where_it_goes() {
    skip_unless_wanted!();
    let host = alice();
    host.root(&format!("rm -r {HOME}/.config/hostler")).unwrap();
    host.user("alice", "systemctl --user start hostler.socket").unwrap();
    let answer = ask(&host, "");
    assert_eq!(answer.status, 503, "{answer:?}");
    let message = answer.json()["error"]["message"].as_str().unwrap().to_owned();
    assert!(message.contains("config_invalid"), "{message}");
    assert!(message.contains(&format!("{HOME}/.config/hostler")), "{message}");
}
