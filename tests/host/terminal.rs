//! The operator's program on a real terminal: a pane of tmux, whose screen is looked at.

use std::time::Duration;

use nvidia_ml::{Gpu, Script};
use testhost::{Host, Look, wait_for};

use crate::harness::{
    ALL, COUNT, Fake, SOON, Scene, count, count_to, model, serving, skip_unless_wanted,
};

/// Runs a command line in a pane, which stays when that has ended.
fn open(host: &Host, line: &str) {
    let tmux = "TERM=xterm-256color tmux -f /dev/null new-session -d -s it -x 130 -y 24";
    host.root(&format!("{tmux} '{line}; echo it ended with $?; sleep 600'")).unwrap();
}

/// Waits until the pane shows something; the whole screen then.
fn wait_pane(host: &Host, what: &str, seen: impl Fn(&str) -> bool) -> String {
    wait_for(&format!("the terminal to show {what}"), SOON, || {
        let text = host.root("tmux capture-pane -p -t it")?;
        Ok(if seen(&text) { Look::Done(text) } else { Look::NotYet(text) })
    })
    .unwrap()
}

/// What a table on the screen has in a column, in the row that begins so.
fn cell(screen: &str, row: &str, column: &str) -> String {
    let head = screen.lines().find(|line| line.starts_with("MODEL ")).unwrap_or_default();
    let line = screen.lines().find(|line| line.starts_with(row)).unwrap_or_default();
    let Some(at) = head.find(column) else { panic!("no {column} in {screen}") };
    let rest: String = line.chars().skip(head[..at].chars().count()).collect();
    rest.split_whitespace().next().unwrap_or_default().to_owned()
}

#[test]
fn top_shows_devices_models_and_their_speed_live() {
    skip_unless_wanted!();
    let host = serving(COUNT).unwrap();
    host.root("systemctl start hostler.service").unwrap();
    let run = host.try_root("hostler top").unwrap();
    assert_eq!(run.status.code(), Some(2), "no terminal: {run:?}");
    open(&host, "hostler top --every 200ms");
    let text = wait_pane(&host, "the model", |t| t.contains("count") && t.contains("stopped"));
    assert!(text.starts_with("hostler "), "{text}");
    assert!(text.lines().any(|l| l.starts_with("host ") && l.contains("free of")), "{text}");
    assert_eq!(cell(&text, "count", "PHASE"), "stopped");
    host.root("hostler load count --pin").unwrap();
    let text = wait_pane(&host, "it ready", |t| {
        t.lines().any(|l| l.starts_with("count") && l.contains("ready") && l.contains("pin"))
    });
    let bar = text.lines().find(|l| l.starts_with("host ")).unwrap();
    assert!(bar.contains('█'), "what the model holds is in the bar: {bar}");
    wait_pane(&host, "that nothing streams", |t| cell(t, "count", "CHUNKS/S") == "0");

    // While it streams, and no longer.
    let counting = count(&host);
    let fast = |t: &str| cell(t, "count", "CHUNKS/S").parse::<f64>().is_ok_and(|rate| rate > 5.0);
    wait_pane(&host, "its speed", fast);
    counting.check();
    wait_pane(&host, "that nothing streams any more", |t| cell(t, "count", "CHUNKS/S") == "0");
    // A chunk for each token, and a few without; an answer in one piece is none of them.
    let chunks = || model(&host, "count").unwrap()["chunks"].as_u64().unwrap();
    let one = chunks();
    assert!((ALL as u64..=ALL as u64 + 4).contains(&one), "{one}");
    count_to(&host, 24).check();
    wait_for("the count to be published", SOON, || {
        let more = chunks() - one;
        Ok(if more >= 24 { Look::Done(()) } else { Look::NotYet(more.to_string()) })
    })
    .unwrap();
    assert!(chunks() - one <= 28, "{}", chunks() - one);
    host.root("tmux send-keys -t it q").unwrap();
    wait_pane(&host, "the shell again", |t| t.contains("it ended with 0") && !t.contains("MODEL"));
}

#[test]
fn a_load_shows_its_phase_and_how_long_it_will_take() {
    skip_unless_wanted!();
    let gpu = Gpu::new("GPU-00000000-0000-0000-0000-000000000000".to_owned(), 16 << 30);
    let slow = Fake::new("small", "2GiB").env("LOAD", "6s").line("vram = \"3GiB\"");
    let scene = Scene::new(&Script::with_gpus(vec![gpu]), "", &[slow]).unwrap();
    let host = &scene.host;
    host.root("systemctl start hostler.service").unwrap();
    // The first load has nothing to go by but its phase.
    open(host, "hostler load small");
    let text = wait_pane(host, "the phase", |t| t.contains("small: loading"));
    assert!(!text.contains("left"), "{text}");
    wait_pane(host, "the end", |t| t.contains("small: ready") && t.contains("it ended with 0"));
    host.root("tmux kill-server; hostler unload small").unwrap();

    open(host, "hostler load small");
    let text = wait_pane(host, "phase and time", |t| {
        t.contains("small: loading, about ") && t.contains("s left [")
    });
    let seconds = |text: &str| -> f64 {
        let rest = text.split_once("about ").map_or("", |(_, rest)| rest);
        rest.split_once("s left").and_then(|(n, _)| n.parse().ok()).unwrap_or(f64::INFINITY)
    };
    assert!(seconds(&text) <= 20.0, "{text}");
    wait_pane(host, "a bar that moves", |t| t.contains("[====") && seconds(t) < 6.0);
    let text = wait_pane(host, "the end", |t| t.contains("it ended with 0"));
    assert!(text.contains("small: ready") && !text.contains("left ["), "the bar is gone: {text}");
    host.root("tmux kill-server; hostler unload small").unwrap();

    // Colours are for a terminal that wants them.
    let colours = |line: &str| {
        open(host, line);
        wait_pane(host, "the list", |t| t.contains("stopped") && t.contains("it ended with 0"));
        let raw = host.root("tmux capture-pane -e -p -t it; tmux kill-server").unwrap();
        raw.lines().any(|line| line.contains("stopped") && line.contains('\x1b'))
    };
    assert!(colours("hostler list"));
    assert!(!colours("NO_COLOR=1 hostler list"));

    // Ctrl-C leaves the wait, and not the load.
    open(host, "hostler load small");
    wait_pane(host, "the phase", |t| t.contains("small: loading"));
    host.root("tmux send-keys -t it C-c").unwrap();
    wait_pane(host, "the end of the wait", |t| {
        t.contains("goes on without you") && t.contains("it ended with 130")
    });
    scene.wait_model("small", "ready", Duration::from_secs(30), |row| row["phase"] == "ready");
}
