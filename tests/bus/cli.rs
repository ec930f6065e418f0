//! The operator's program as a client: its own process, the real objects on a private bus, a scripted supervisor.

use std::io::Write as _;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use hostler::control::Reloaded;
use hostler::supervisor::handle::{Ask, Verb};
use hostler::types::{
    Bytes, Check, CheckVerdict, Denied, Evict, Fault, FaultCode, GpuId, Haste, Outcome, Phase,
    Preview, PreviewGpu, Status, Wish,
};
use serde_json::Value;
use tokio::sync::oneshot;

use crate::house::{House, status};

/// Starts `hostler --user` with arguments.
pub fn spawn(house: &House, args: &[&str], env: &[(&str, &str)]) -> Child {
    spawn_on(&house.daemon.address, args, env)
}

/// The same, on a bus.
pub fn spawn_on(address: &str, args: &[&str], env: &[(&str, &str)]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_hostler"))
        .arg("--user")
        .args(args)
        .env("DBUS_SESSION_BUS_ADDRESS", address)
        .envs(env.iter().copied())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Its end.
pub async fn end(child: Child) -> Run {
    let output = tokio::task::spawn_blocking(move || child.wait_with_output().unwrap());
    Run::of(output.await.unwrap())
}

pub async fn run(house: &House, args: &[&str]) -> Run {
    end(spawn(house, args, &[])).await
}

#[derive(Debug)]
pub struct Run {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Run {
    fn of(output: Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let code = output.status.code().unwrap_or(-1);
        Self { code, out: text(&output.stdout), err: text(&output.stderr) }
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|err| panic!("{err}: {self:?}"))
    }
}

/// What an operator wants of the supervisor next.
pub async fn next(house: &mut House) -> (String, Verb, oneshot::Sender<Result<(), Denied>>) {
    loop {
        if let Ask::Operate { model, verb, answer, .. } = house.asks.recv().await.unwrap() {
            return (model.to_string(), verb, answer);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_there_is_shown_for_people_and_for_programs() {
    let house = House::open(status()).await;
    let shown = run(&house, &["status"]).await;
    assert_eq!((shown.code, shown.err.as_str()), (0, ""), "{shown:?}");
    for text in
        ["hostler 1.2.3: running", "podman 5.4.2", "127.0.0.1:8711", "GPU-1", "org/m", "small"]
    {
        assert!(shown.out.contains(text), "{text} is not in {}", shown.out);
    }
    assert!(!shown.out.contains('\x1b'), "no colour to a pipe");
    let json = run(&house, &["--json", "status"]).await.json();
    assert_eq!(json["models"][0]["name"], "org/m");
    let listed = run(&house, &["--json", "list", "--phase", "stopped"]).await.json();
    assert_eq!((&listed[0]["name"], listed.as_array().unwrap().len()), (&"small".into(), 1));
    let bare = run(&house, &["--no-legend", "list"]).await.out;
    assert_eq!(bare.lines().count(), 2, "{bare}");
    let none = run(&house, &["list", "--phase", "failed", "--phase", "asleep"]).await;
    assert_eq!(
        (none.code, none.out.as_str(), none.err.as_str()),
        (0, "", "no model is failed or asleep\n")
    );
    let one = run(&house, &["--json", "show", "gpt-4o"]).await.json();
    assert_eq!(one["name"], "org/m");
    let unknown = run(&house, &["show", "nothing"]).await;
    assert_eq!(unknown.code, 4, "{unknown:?}");
    assert!(unknown.err.contains("fix: hostler list"), "{}", unknown.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_load_waits_and_tells_how_it_ended() {
    let mut house = House::open(status()).await;
    let args = ["load", "gpt-4o", "--pin", "--evict", "any", "--gpus", "GPU-1"];
    let child = spawn(&house, &args, &[]);
    let (model, verb, answer) = next(&mut house).await;
    let wish = Wish { pin: true, evict: Some(Evict::Any), gpus: vec![GpuId::new("GPU-1")] };
    assert_eq!((model.as_str(), verb), ("org/m", Verb::Load(wish)));
    answer.send(Ok(())).unwrap();
    let done = end(child).await;
    assert_eq!((done.code, done.err.as_str()), (0, "gpt-4o: ready\n"), "{done:?}");

    let child = spawn(&house, &["load", "small"], &[]);
    let (_, _, answer) = next(&mut house).await;
    let fault = Fault::new(FaultCode::EngineExited, "exit code 1");
    let mut wrote = vec!["ValueError: needs 9 GiB".to_owned()];
    wrote.extend((0..49).map(|line| format!("  File \"x.py\", line {line}")));
    wrote.push("RuntimeError: Failed. See root cause above.".to_owned());
    let mut seen = status();
    seen.models[1].error = Some(fault.clone().with_log(wrote));
    house.status.send(Arc::new(seen)).unwrap();
    let model = "small".parse().unwrap();
    answer.send(Err(Denied::LoadFailed { model, fault, retry_after: Duration::ZERO })).unwrap();
    let failed = end(child).await;
    assert_eq!(failed.code, 1, "{failed:?}");
    assert!(
        failed.err.contains("exit code 1; its last words: ValueError: needs 9 GiB\n"),
        "{}",
        failed.err
    );
    assert!(failed.err.contains("fix: hostler show MODEL"), "{}", failed.err);
    let shown = run(&house, &["show", "small"]).await.out;
    assert!(shown.contains("| ValueError: needs 9 GiB\n"), "{shown}");
    assert!(shown.ends_with("| RuntimeError: Failed. See root cause above.\n"), "{shown}");

    let child = spawn(&house, &["--json", "load", "small"], &[]);
    let (_, _, answer) = next(&mut house).await;
    let (model, why) = ("small".parse().unwrap(), "busy".to_owned());
    let full = Denied::NoRoom { model, why, report: None, retry_after: Duration::ZERO };
    answer.send(Err(full)).unwrap();
    let full = end(child).await;
    assert_eq!(full.code, 5, "{full:?}");
    assert_eq!(full.json()[0]["done"], false);

    // Without waiting, and not longer than told.
    let begun = run(&house, &["load", "--no-block", "small"]).await;
    assert_eq!(begun.out, "small: /org/hostler1/job/4\n", "{begun:?}");
    // What was begun is told, though another was not.
    let begun = run(&house, &["load", "--no-block", "small", "nothing", "small"]).await;
    assert_eq!(begun.out, "small: /org/hostler1/job/5\nsmall: /org/hostler1/job/6\n", "{begun:?}");
    assert_eq!((begun.code, begun.err.contains("nothing")), (4, true), "{begun:?}");
    let late = run(&house, &["load", "small", "--timeout", "100ms"]).await;
    assert_eq!(late.code, 7, "{late:?}");
    assert_eq!(run(&house, &["load", "nothing"]).await.code, 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn models_are_let_go_pinned_and_put_to_sleep() {
    let mut house = House::open(status()).await;
    for (args, wanted) in [
        (&["unload", "org/m", "--now"][..], Verb::Unload(Haste::Now)),
        (&["unload", "org/m"], Verb::Unload(Haste::Drain)),
        (&["pin", "org/m"], Verb::Pin(true)),
        (&["unpin", "org/m"], Verb::Pin(false)),
        (&["sleep", "org/m"], Verb::Sleep),
        (&["wake", "org/m"], Verb::Wake),
        (&["measure", "org/m"], Verb::Measure),
    ] {
        let child = spawn(&house, args, &[]);
        let (model, verb, answer) = next(&mut house).await;
        assert_eq!((model.as_str(), verb), ("org/m", wanted));
        answer.send(Ok(())).unwrap();
        let done = end(child).await;
        assert_eq!(done.code, 0, "{args:?}: {done:?}");
    }
    // One that is not there does not keep the others from being tried.
    let child = spawn(&house, &["--json", "pin", "nothing", "small"], &[]);
    let (model, verb, answer) = next(&mut house).await;
    assert_eq!((model.as_str(), verb), ("small", Verb::Pin(true)));
    answer.send(Ok(())).unwrap();
    let pinned = end(child).await;
    assert_eq!(pinned.code, 4, "{pinned:?}");
    assert_eq!(
        (&pinned.json()[0]["done"], &pinned.json()[1]["done"]),
        (&false.into(), &true.into())
    );
    let quiet = spawn(&house, &["-q", "unload", "org/m"], &[]);
    next(&mut house).await.2.send(Ok(())).unwrap();
    let quiet = end(quiet).await;
    assert_eq!((quiet.out.as_str(), quiet.err.as_str()), ("", ""));
}

#[tokio::test(flavor = "multi_thread")]
async fn plan_and_why_show_the_reasons() {
    let mut house = House::open(status()).await;
    for (command, outcome, code) in
        [("plan", Outcome::Start, 0), ("plan", Outcome::Wait, 5), ("why", Outcome::Start, 0)]
    {
        let child = spawn(&house, &[command, "small"], &[]);
        let answer = loop {
            if let Some(Ask::Preview { answer, .. }) = house.asks.recv().await {
                break answer;
            }
        };
        let gpus = vec![PreviewGpu { gpu: GpuId::new("GPU-1"), bytes: Bytes::gib(1) }];
        let why = "as the test says".to_owned();
        answer.send(Ok(Preview { outcome, why, gpus, leaving: vec![], report: None })).unwrap();
        let shown = end(child).await;
        assert_eq!(shown.code, code, "{shown:?}");
        assert!(shown.out.contains("as the test says"), "{}", shown.out);
        assert!(shown.out.contains("on GPU-1: 1.0 GiB"), "{}", shown.out);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn wait_follows_the_phases() {
    let house = House::open(status()).await;
    assert_eq!(run(&house, &["wait"]).await.code, 0);
    assert_eq!(run(&house, &["wait", "org/m"]).await.code, 0);
    assert_eq!(run(&house, &["wait", "small", "--timeout", "50ms"]).await.code, 7);
    assert_eq!(run(&house, &["wait", "small", "--phase", "up"]).await.code, 2);
    let child = spawn(&house, &["wait", "small", "--timeout", "60s"], &[]);
    let mut ready = status();
    ready.models[1].phase = Phase::Ready;
    house.status.send(Arc::new(ready)).unwrap();
    assert_eq!(end(child).await.code, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn reload_doctor_and_logs_ask_the_composition_root() {
    let house = House::open(status()).await;
    let later =
        Reloaded { restart_to_apply: vec!["[gpu] backend".to_owned()], ..Default::default() };
    *house.root.reload.lock().unwrap() = Some(Ok(later));
    let applied = run(&house, &["reload"]).await;
    assert_eq!(applied.err, "reloaded\nrestart to apply: [gpu] backend\n", "{applied:?}");
    // A credential may have changed or not: a script that restarts for what is in the list does not for it.
    let credentials_kept =
        ["[auth] keys_credential", "models.far.key_credential"].map(str::to_owned);
    let kept = Reloaded { credentials_kept: credentials_kept.to_vec(), ..Default::default() };
    *house.root.reload.lock().unwrap() = Some(Ok(kept));
    let applied = run(&house, &["reload"]).await;
    let want = "reloaded\nas the start was given them, and new ones take a restart: [auth] keys_credential, models.far.key_credential\n";
    assert_eq!(applied.err, want, "{applied:?}");
    let document = run(&house, &["reload", "--json"]).await;
    let document: serde_json::Value = serde_json::from_str(&document.out).unwrap();
    let want = serde_json::json!({"restart_to_apply": [], "credentials_kept": credentials_kept});
    assert_eq!(document, want);
    *house.root.reload.lock().unwrap() = Some(Err("/etc/x.toml:3: no".to_owned()));
    let wrong = run(&house, &["reload"]).await;
    assert_eq!(wrong.code, 78, "{wrong:?}");
    assert!(wrong.err.contains("/etc/x.toml:3: no"), "{}", wrong.err);

    house.root.checks.lock().unwrap().push(Check {
        name: "podman".to_owned(),
        verdict: CheckVerdict::Fail,
        found: "no answer".to_owned(),
        fix: "start it".to_owned(),
    });
    let home = tempfile::tempdir().unwrap();
    std::fs::create_dir(home.path().join("hostler")).unwrap();
    std::fs::write(home.path().join("hostler/hostler.toml"), "[gpu]\nbackend = \"host\"\n")
        .unwrap();
    let place = [("XDG_CONFIG_HOME", home.path().to_str().unwrap())];
    let checked = end(spawn(&house, &["doctor"], &place)).await;
    assert_eq!(checked.code, 8, "{checked:?}");
    assert!(checked.out.contains("FAIL  podman  no answer\n"), "{}", checked.out);
    assert!(checked.out.contains("fix: start it\n"), "{}", checked.out);

    let (read, mut write) = std::io::pipe().unwrap();
    *house.root.log.lock().unwrap() = Some(Ok(read.into()));
    write.write_all(b"one\ntwo\n").unwrap();
    drop(write);
    let logs = run(&house, &["logs", "-f", "org/m"]).await;
    assert_eq!((logs.code, logs.out.as_str()), (0, "one\ntwo\n"), "{logs:?}");
    let asked = house.root.asked.lock().unwrap().clone();
    assert!(asked.last().unwrap().ends_with("Some(10) true"), "{asked:?}");
    let none = run(&house, &["logs", "small"]).await;
    assert_eq!(none.code, 4, "{none:?}");
    assert!(none.err.contains("fix: hostler show MODEL"), "{none:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_or_a_bus_that_is_not_there_is_said() {
    let mut house = House::open(Status::default()).await;
    let empty = run(&house, &["list"]).await;
    assert_eq!((empty.code, empty.out.as_str()), (0, ""));
    assert_eq!(empty.err, "no models are configured; hostler add defines one\n");
    assert_eq!(run(&house, &["status"]).await.err, empty.err);
    let child = spawn(&house, &["status"], &[("DBUS_SESSION_BUS_ADDRESS", "unix:path=/nowhere")]);
    let missing = end(child).await;
    assert_eq!(missing.code, 3, "{missing:?}");
    assert!(missing.err.contains("cannot be reached"), "{}", missing.err);
    let daemon = crate::house::Daemon::start("unix:tmpdir=/tmp");
    let address = [("DBUS_SESSION_BUS_ADDRESS", daemon.address.as_str())];
    for command in ["status", "list", "reload"] {
        let alone = end(spawn(&house, &[command], &address)).await;
        assert_eq!(alone.code, 3, "{alone:?}");
        assert!(alone.err.contains("systemctl --user start hostler"), "{}", alone.err);
    }
    house.asks.close();
}

/// Every command, with what it needs: how many documents `--json` gives.
#[tokio::test(flavor = "multi_thread")]
async fn json_is_one_document_or_is_refused() {
    use clap::CommandFactory as _;
    let mut house = House::open(status()).await;
    let home = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = home.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    file("hostler/hostler.toml", "[gpu]\nbackend = \"host\"\n");
    let weights = file("w.gguf", "GGUF");
    let swap = file("c.yaml", "models: {m: {cmd: llama-server -m /m.gguf}}\n");
    let place = [("XDG_CONFIG_HOME", home.path().to_str().unwrap())];
    let rows: &[(&[&str], bool)] = &[
        (&["status"], true),
        (&["list"], true),
        (&["list", "--external"], true),
        (&["show", "small"], true),
        (&["load", "small"], true),
        (&["load", "--no-block", "small"], true),
        (&["unload", "small"], true),
        (&["unload", "--all"], true),
        (&["unload", "--all", "--no-block"], true),
        (&["pin", "small"], true),
        (&["unpin", "small"], true),
        (&["sleep", "org/m"], true),
        (&["wake", "org/m"], true),
        (&["plan", "small"], true),
        (&["why", "small"], true),
        (&["measure", "small"], true),
        (&["logs", "org/m"], false),
        (&["top"], false),
        (&["wait"], true),
        (&["wait", "org/m"], true),
        (&["reload"], true),
        (&["add", &weights, "--image", "registry.example/llama:1"], true),
        (&["remove", "w"], true),
        (&["import", "llama-swap", &swap, "--llamacpp-image", "registry.example/llama:1"], true),
        (&["config", "check"], true),
        (&["config", "files"], true),
        (&["config", "schema"], true),
        (&["doctor"], true),
    ];
    let all = hostler::cli::Cli::command();
    for command in all.get_subcommands().filter(|command| !command.is_hide_set()) {
        let name = command.get_name();
        assert!(rows.iter().any(|(args, _)| args[0] == name), "{name} is not tried here");
    }
    for (args, document) in rows {
        *house.root.reload.lock().unwrap() = Some(Ok(Reloaded::default()));
        let child = spawn(&house, &[&["--json"], *args].concat(), &place);
        let mut ended = std::pin::pin!(end(child));
        let run = loop {
            tokio::select! {
                run = &mut ended => break run,
                ask = house.asks.recv() => answer(ask.unwrap()),
            }
        };
        if *document {
            run.json();
        } else {
            assert_eq!((run.code, run.out.as_str()), (2, ""), "{args:?}: {run:?}");
        }
    }
}

/// As a supervisor that does whatever it is asked for.
fn answer(ask: Ask) {
    if let Ask::Operate { answer, .. } = ask {
        drop(answer.send(Ok(())));
    } else if let Ask::Preview { answer, .. } = ask {
        let (gpus, leaving) = (vec![], vec![]);
        let (outcome, why) = (Outcome::Start, String::new());
        drop(answer.send(Ok(Preview { outcome, why, gpus, leaving, report: None })));
    }
}
