//! The operator's program against the real daemon, on the real bus, with real containers.

use std::io::Read as _;
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::Value;
use testhost::{Host, Look, Run, wait_for};

use crate::harness::{
    COUNT, FIRST, SOON, containers, count, get, model, property, put_count_model, serving,
    show_status, skip_unless_wanted, wait_phase,
};

fn hostler(host: &Host, args: &str) -> Run {
    host.try_root(&format!("hostler {args}")).unwrap()
}

fn code(run: &Run) -> i32 {
    run.status.code().unwrap_or(-1)
}

fn good(host: &Host, args: &str) -> String {
    let run = hostler(host, args);
    assert_eq!(code(&run), 0, "hostler {args}: {}{}", run.stdout, run.stderr);
    run.stdout
}

fn json(host: &Host, args: &str) -> Value {
    let text = good(host, &format!("--json {args}"));
    serde_json::from_str(&text).unwrap_or_else(|err| panic!("{err} in {text}"))
}

/// The counting model, and a daemon that runs.
fn running() -> Host {
    let host = serving(COUNT).unwrap();
    host.root("systemctl start hostler.service").unwrap();
    host
}

#[test]
fn a_model_is_loaded_watched_and_let_go() {
    skip_unless_wanted!();
    let host = running();
    good(&host, "wait --timeout 30s");
    assert!(good(&host, "list").contains("count"));
    assert_eq!(code(&hostler(&host, "load nonsense")), 4);
    let plan = json(&host, "plan count");
    assert_eq!(plan["outcome"], "start", "{plan}");
    assert!(good(&host, "why count").contains("would start at once"));

    let run = hostler(&host, "load count");
    assert_eq!(code(&run), 0, "{run:?}");
    assert!(run.stderr.contains("count: ready"), "{}", run.stderr);
    assert_eq!(model(&host, "count").unwrap()["phase"], "ready");
    count(&host).check();
    good(&host, "wait count --timeout 1s");
    let shown = json(&host, "show count");
    assert_eq!((&shown["phase"], &shown["pinned"]), (&"ready".into(), &false.into()), "{shown}");

    good(&host, "pin count");
    assert_eq!(json(&host, "show count")["pinned"], true);
    good(&host, "unpin count");
    assert_eq!(json(&host, "show count")["pinned"], false);
    assert!(good(&host, "logs count").contains("llama"), "what the engine wrote");
    let lines = good(&host, "logs -n 3 count");
    assert_eq!(lines.lines().count(), 3, "{lines}");
    // An engine that cannot sleep says so.
    let run = hostler(&host, "sleep count");
    assert_eq!(code(&run), 1, "{run:?}");
    assert!(!run.stderr.is_empty());

    good(&host, "unload count");
    assert_eq!(model(&host, "count").unwrap()["phase"], "stopped");
    assert_eq!(containers(&host).unwrap(), []);
    assert_eq!(code(&hostler(&host, "logs count")), 4);
    let text = good(&host, "measure count");
    assert!(text.contains("count: ") && text.contains("samples"), "{text}");
    assert_eq!(code(&hostler(&host, "wait count --phase draining --timeout 1s")), 7);
}

#[test]
fn the_status_is_as_its_schema_says() {
    skip_unless_wanted!();
    let host = running();
    let status = json(&host, "status");
    let schema = testhost::checkout().join("docs/status.schema.json");
    let schema: Value = serde_json::from_str(&std::fs::read_to_string(schema).unwrap()).unwrap();
    for key in schema["required"].as_array().unwrap() {
        assert!(status.get(key.as_str().unwrap()).is_some(), "{key} is not in {status:#}");
    }
    for key in status.as_object().unwrap().keys() {
        assert!(schema["properties"].get(key).is_some(), "{key} is not in the schema");
    }
    let text = good(&host, "status");
    assert!(text.contains("running") && text.contains("127.0.0.1:8711"), "{text}");
    assert!(!text.contains('\x1b'), "no colours to a pipe");
    assert!(!good(&host, "--no-legend list").contains("MODEL"));
    // doctor asks the daemon.
    let run = hostler(&host, "--json doctor");
    let rows: Value = serde_json::from_str(&run.stdout).unwrap();
    let daemon = rows.as_array().unwrap().iter().find(|row| row["check"] == "daemon").unwrap();
    assert_eq!(daemon["outcome"], "PASS", "{rows:#}");
    assert!(rows.as_array().unwrap().len() > 10, "{rows:#}");
}

#[test]
fn a_new_model_is_applied_and_a_wrong_file_changes_nothing() {
    skip_unless_wanted!();
    let host = running();
    let path = put_count_model(&host).unwrap();
    let run = hostler(&host, &format!("add {path} --name second"));
    assert_eq!(code(&run), 0, "{run:?}");
    assert!(run.stderr.contains("reloaded"), "{}", run.stderr);
    good(&host, "load second");
    host.write_file("/etc/hostler/models.d/bad.toml", "engine = \"none\"\n").unwrap();
    let run = hostler(&host, "reload");
    assert_eq!(code(&run), 78, "{run:?}");
    assert!(run.stderr.contains("/etc/hostler/models.d/bad.toml:1:"), "{}", run.stderr);
    assert_eq!(json(&host, "show second")["phase"], "ready");
    host.root("rm /etc/hostler/models.d/bad.toml").unwrap();
    good(&host, "remove second");
    wait_for("the removed model to go", SOON, || {
        let seen = hostler(&host, "show second");
        Ok(if code(&seen) == 4 { Look::Done(()) } else { Look::NotYet(seen.stdout) })
    })
    .unwrap();
}

#[test]
fn who_may_not_is_told_what_to_do() {
    skip_unless_wanted!();
    let host = running();
    host.root("useradd --create-home alice && loginctl enable-linger alice").unwrap();
    host.root("systemctl start user@$(id -u alice).service").unwrap();
    let run = host.try_user("alice", "hostler --system load count").unwrap();
    assert_eq!(code(&run), 6, "{run:?}");
    assert!(run.stderr.contains("hostler-admin"), "{}", run.stderr);
    host.root("systemctl stop hostler.socket hostler-unix.socket hostler.service").unwrap();
    let run = hostler(&host, "list");
    assert_eq!(code(&run), 3, "{run:?}");
}

/// What a pane of tmux shows.
fn pane(host: &Host) -> String {
    host.root("tmux capture-pane -p -t top").unwrap()
}

fn wait_pane(host: &Host, what: &str, seen: impl Fn(&str) -> bool) -> String {
    wait_for(&format!("top to show {what}"), SOON, || {
        let text = pane(host);
        Ok(if seen(&text) { Look::Done(text) } else { Look::NotYet(text) })
    })
    .unwrap()
}

#[test]
fn top_shows_devices_and_models_live() {
    skip_unless_wanted!();
    let host = running();
    let run = hostler(&host, "top");
    assert_eq!(code(&run), 2, "no terminal: {run:?}");
    host.root("TERM=xterm-256color tmux -f /dev/null new-session -d -s top -x 120 -y 24 'hostler top --every 200ms; sleep 600'").unwrap();
    let text = wait_pane(&host, "the model", |t| t.contains("count") && t.contains("stopped"));
    assert!(text.starts_with("hostler "), "{text}");
    assert!(text.lines().any(|l| l.starts_with("host ") && l.contains("free of")), "{text}");
    assert!(text.contains("MODEL") && text.contains("PHASE"), "{text}");
    good(&host, "load count --pin");
    let text = wait_pane(&host, "it ready", |t| {
        t.lines().any(|l| l.starts_with("count") && l.contains("ready") && l.contains("pin"))
    });
    let bar = text.lines().find(|l| l.starts_with("host ")).unwrap();
    assert!(bar.contains('█'), "what the model holds is in the bar: {bar}");
    host.root("tmux send-keys -t top q").unwrap();
    wait_pane(&host, "nothing any more", |t| !t.contains("MODEL"));
}

#[test]
fn a_unit_that_requires_a_model_starts_once_the_model_answers() {
    skip_unless_wanted!();
    let host = running();
    let unit = "[Unit]\nRequires=hostler-model@count.service\nAfter=hostler-model@count.service\n\
                [Service]\nType=oneshot\nRemainAfterExit=yes\n\
                ExecStart=curl -sSf http://127.0.0.1:8711/api/v1/status -o /run/seen.json\n";
    host.write_file("/etc/systemd/system/needs.service", unit).unwrap();
    host.root("systemctl daemon-reload && systemctl start needs.service").unwrap();
    let seen: Value = serde_json::from_str(&host.root("cat /run/seen.json").unwrap()).unwrap();
    let model = seen["models"].as_array().unwrap().iter().find(|m| m["name"] == "count").unwrap();
    assert_eq!((&model["phase"], &model["pinned"]), (&"ready".into(), &true.into()), "{model}");
    let shown = show_status(&host, "hostler-model@count.service").unwrap();
    assert!(shown.contains("Status: \"count is ready"), "{shown}");

    // A restart of the daemon ends neither unit, and the pin is given anew.
    host.root("systemctl restart hostler.service").unwrap();
    wait_for("the pin to be given anew", FIRST, || {
        let shown = json(&host, "show count");
        let pinned = shown["pinned"] == true && shown["phase"] == "ready";
        Ok(if pinned { Look::Done(()) } else { Look::NotYet(shown.to_string()) })
    })
    .unwrap();
    assert_eq!(property(&host, "needs.service", "ActiveState").unwrap(), "active");

    host.root("systemctl stop hostler-model@count.service").unwrap();
    assert_eq!(property(&host, "needs.service", "ActiveState").unwrap(), "inactive");
    wait_phase(&host, "count", "stopped", SOON).unwrap();
    assert_eq!(containers(&host).unwrap(), []);

    // An operator who takes the model away takes the ground from under the unit.
    host.root("systemctl start hostler-model@count.service").unwrap();
    good(&host, "unload count");
    host.wait_unit("hostler-model@count.service", "failed", SOON).unwrap();
    let shown = show_status(&host, "hostler-model@count.service").unwrap();
    assert!(shown.contains("by an operator"), "{shown}");
}

#[test]
fn a_model_that_fails_fails_its_unit_with_the_reason() {
    skip_unless_wanted!();
    let broken = "[models.\"org/broken\"]\nengine = \"llamacpp\"\nimage = \"localhost/hostler/llama-server:latest\"\n\
                  weights = { path = \"/var/lib/hostler/models/none.gguf\" }\n";
    let host = serving(&format!("{COUNT}\n{broken}")).unwrap();
    host.root("touch /var/lib/hostler/models/none.gguf").unwrap();
    host.root("systemctl start hostler.service").unwrap();
    let unit = "[Unit]\nRequires=hostler-model@org-broken.service\nAfter=hostler-model@org-broken.service\n\
                [Service]\nType=oneshot\nExecStart=touch /run/was-started\n";
    host.write_file("/etc/systemd/system/needs.service", unit).unwrap();
    host.root("systemctl daemon-reload").unwrap();
    let started = Instant::now();
    let run = host.try_root("systemctl start needs.service").unwrap();
    assert!(!run.status.success(), "{run:?}");
    assert!(started.elapsed() < Duration::from_secs(120));
    assert!(!host.path("/run/was-started").exists());
    let shown = show_status(&host, "hostler-model@org-broken.service").unwrap();
    assert!(shown.contains("Status: \"Failed: ") && shown.contains("org/broken"), "{shown}");
    // One that is not configured, too.
    assert!(
        !host.try_root("systemctl start hostler-model@nowhere.service").unwrap().status.success()
    );
    let shown = show_status(&host, "hostler-model@nowhere.service").unwrap();
    assert!(shown.contains("is not configured"), "{shown}");
    assert_eq!(get(&host, "/health").unwrap().status, 200);
}

#[test]
fn following_a_log_ends_with_the_container() {
    skip_unless_wanted!();
    let host = running();
    good(&host, "load count");
    let mut follow = host
        .command("hostler")
        .args(["logs", "-f", "-n", "1", "count"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    count(&host).check();
    good(&host, "unload count");
    let mut text = String::new();
    follow.stdout.take().unwrap().read_to_string(&mut text).unwrap();
    assert!(follow.wait().unwrap().success());
    assert!(!text.is_empty());
}
