//! The operator's program against the real daemon, on the real bus, with real containers.

use std::io::Read as _;
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::Value;
use testhost::{Host, Look, Run, wait_for};

use crate::harness::{
    COUNT, FIRST, SOON, containers, count, get, model, property, put_count_model, serving,
    show_status, skip_unless_wanted, wait_phase, wait_property,
};
use crate::schema;

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
    // With nothing, with a model and a job, and with a model that failed.
    schema::check(&json(&host, "status"));
    good(&host, "load count");
    let loaded = json(&host, "status");
    schema::check(&loaded);
    assert_eq!(loaded["jobs"][0]["state"], "done", "{loaded:#}");
    host.root("kill -KILL $(pgrep --exact llama-server) && chmod 0 /var/lib/hostler/models/*.gguf")
        .unwrap();
    let failed = wait_for("the model to fail", FIRST, || {
        let status = json(&host, "status");
        let failed = !status["models"][0]["error"].is_null();
        Ok(if failed { Look::Done(status) } else { Look::NotYet(status.to_string()) })
    });
    schema::check(&failed.unwrap());
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

    // A restart of the daemon ends neither unit, and the model keeps its container and its pin.
    let before = containers(&host).unwrap();
    host.root("systemctl restart hostler.service").unwrap();
    let shown = json(&host, "show count");
    assert_eq!(shown["pinned"], true, "from the first moment: {shown}");
    wait_phase(&host, "count", "ready", FIRST).unwrap();
    assert_eq!(containers(&host).unwrap(), before);
    wait_property(&host, "hostler-model@count.service", "StatusText", SOON, |text| {
        text.starts_with("count is ")
    })
    .unwrap();
    for unit in ["needs.service", "hostler-model@count.service"] {
        assert_eq!(property(&host, unit, "ActiveState").unwrap(), "active", "{unit}");
    }

    // Nor does a restart of the unit itself, as by needrestart, unload what it stands for.
    host.root("systemctl restart hostler-model@count.service").unwrap();
    assert_eq!(containers(&host).unwrap(), before);
    let shown = json(&host, "show count");
    assert_eq!((&shown["phase"], &shown["pinned"]), (&"ready".into(), &true.into()), "{shown}");

    host.root("systemctl start needs.service").unwrap();
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

/// The counting model and another, which go when nobody asks for two seconds, and one that is pinned by its configuration.
fn idling() -> Host {
    let model = COUNT.split_once("[models.count]").unwrap().1;
    let idle = "idle_timeout = \"2s\"\n";
    let toml = format!("{COUNT}{idle}[models.other]{model}{idle}[models.own]{model}pin = true\n");
    let host = serving(&toml).unwrap();
    host.root("systemctl start hostler.service").unwrap();
    host
}

/// The journal as it is on the disk.
fn kept(host: &Host) -> String {
    host.root("cat /var/lib/hostler/state/journal").unwrap()
}

#[test]
fn what_an_operator_said_about_pins_outlives_the_daemon() {
    skip_unless_wanted!();
    let host = idling();
    wait_phase(&host, "own", "ready", FIRST).unwrap();
    good(&host, "load count");
    good(&host, "pin count");
    good(&host, "unload own");
    let before = containers(&host).unwrap();
    let holds = |how: &str| {
        let pin = |name: &str| json(&host, &format!("show {name}"))["pinned"].clone();
        assert_eq!((pin("count"), pin("own")), (true.into(), false.into()), "{how}");
        wait_phase(&host, "count", "ready", FIRST).unwrap();
        assert_eq!(containers(&host).unwrap(), before, "{how}");
        assert_eq!(model(&host, "own").unwrap()["phase"], "stopped", "{how}");
    };
    host.root("systemctl restart hostler.service").unwrap();
    holds("after a restart");
    // A daemon that is killed, too: what was said is on the disk.
    assert!(kept(&host).contains(r#""pins":{"count":true,"own":false}"#), "{}", kept(&host));
    host.root("systemctl kill --signal=KILL hostler.service").unwrap();
    wait_property(&host, "hostler.service", "NRestarts", SOON, |count| count == "1").unwrap();
    host.wait_unit("hostler.service", "active", FIRST).unwrap();
    holds("after a kill");
    // Where its idle time is over, that of one which was loaded later is too.
    good(&host, "load other");
    wait_phase(&host, "other", "stopped", SOON).unwrap();
    assert_eq!(containers(&host).unwrap(), before, "a pinned model is never idle");
    good(&host, "unpin count");
    wait_phase(&host, "count", "stopped", SOON).unwrap();

    // A pin may be all that there is of a model; a stop with the models ends it, and the configuration decides.
    good(&host, "load count --pin");
    host.root("systemctl stop hostler.service").unwrap();
    assert_eq!(containers(&host).unwrap(), []);
    assert!(kept(&host).contains(r#""pins":{}"#), "{}", kept(&host));
    host.root("systemctl start hostler.service").unwrap();
    wait_phase(&host, "own", "ready", FIRST).unwrap();
    let rows = ["count", "own"].map(|name| json(&host, &format!("show {name}"))["pinned"].clone());
    assert_eq!(rows, [serde_json::Value::from(false), true.into()]);
    assert_eq!(model(&host, "count").unwrap()["phase"], "stopped");
}

#[test]
fn a_reboot_ends_what_was_said_about_pins() {
    skip_unless_wanted!();
    let mut host = running();
    good(&host, "load count --pin");
    host.reboot().unwrap();
    host.root("systemctl start hostler.service").unwrap();
    good(&host, "wait --timeout 60s");
    assert_eq!(json(&host, "show count")["pinned"], false);
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
