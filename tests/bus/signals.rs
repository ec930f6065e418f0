//! The operator's program, interrupted: by signals, by a time that is over, and by a daemon that leaves.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::process::{Child, Command, Stdio};

use hostler::supervisor::handle::Ask;
use hostler::types::{Denied, Phase};
use rustix::process::{Pid, Signal, kill_process};

use crate::cli::{end, next, spawn};
use crate::house::{House, status};

/// As `kill` does.
pub fn send(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

/// Whether anything more was asked of the supervisor.
fn asked_more(house: &mut House) -> bool {
    std::iter::from_fn(|| house.asks.try_recv().ok()).any(|ask| matches!(ask, Ask::Operate { .. }))
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_more_is_begun_after_an_interruption() {
    let mut house = House::open(status()).await;
    for (args, signal) in [
        (["--json", "unload", "small", "org/m"], Signal::INT),
        (["--json", "load", "small", "org/m"], Signal::TERM),
    ] {
        let child = spawn(&house, &args, &[]);
        let (model, _, answer) = next(&mut house).await;
        assert_eq!(model, "small");
        send(&child, signal);
        let ended = end(child).await;
        assert_eq!(ended.code, 130, "{args:?}: {ended:?}");
        assert!(!asked_more(&mut house), "{args:?}");
        drop(answer);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_more_is_begun_when_the_time_is_over() {
    let mut house = House::open(status()).await;
    let child = spawn(&house, &["--json", "load", "small", "org/m", "--timeout", "3s"], &[]);
    let (_, _, answer) = next(&mut house).await;
    let late = end(child).await;
    assert_eq!(late.code, 7, "{late:?}");
    assert!(late.err.contains("not tried: org/m"), "{late:?}");
    assert_eq!(late.json().as_array().unwrap().len(), 1, "{late:?}");
    assert!(!asked_more(&mut house));
    drop(answer);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_more_is_begun_of_a_daemon_that_stops() {
    let mut house = House::open(status()).await;
    let child = spawn(&house, &["--json", "load", "nothing", "small", "org/m"], &[]);
    let (model, _, answer) = next(&mut house).await;
    assert_eq!(model, "small", "a model that fails does not keep the others from being tried");
    answer.send(Err(Denied::ShuttingDown)).unwrap();
    let gone = end(child).await;
    assert_eq!(gone.code, 3, "{gone:?}");
    assert!(
        gone.err.starts_with("hostler: model \"nothing\" is not"),
        "the earlier one is told: {gone:?}"
    );
    assert!(gone.err.contains("not tried: org/m"), "{gone:?}");
    let rows = gone.json();
    let models: Vec<_> = rows.as_array().unwrap().iter().map(|row| &row["model"]).collect();
    assert_eq!(models, ["nothing", "small"]);
    assert!(!asked_more(&mut house));
}

#[tokio::test(flavor = "multi_thread")]
async fn signals_end_whatever_waits() {
    let house = House::open(status()).await;
    for signal in [Signal::INT, Signal::TERM, Signal::HUP] {
        let (read, write) = std::io::pipe().unwrap();
        *house.root.log.lock().unwrap() = Some(Ok(read.into()));
        let mut child = spawn(&house, &["logs", "-f", "org/m"], &[]);
        (&write).write_all(b"one\n").unwrap();
        let mut line = [0_u8; 4];
        child.stdout.as_mut().unwrap().read_exact(&mut line).unwrap();
        send(&child, signal);
        let ended = end(child).await;
        assert_eq!((ended.code, ended.err.as_str()), (130, ""), "{signal:?}: {ended:?}");
        drop(write);
    }
}

/// The daemon's end of the pipe goes with it, as the container's does with the container: a script must know which.
#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_leaves_is_not_the_end_of_the_log() {
    for follow in [true, false] {
        let house = House::open(status()).await;
        let (read, write) = std::io::pipe().unwrap();
        *house.root.log.lock().unwrap() = Some(Ok(read.into()));
        let args: &[&str] = if follow { &["logs", "-f", "org/m"] } else { &["logs", "org/m"] };
        let mut child = spawn(&house, args, &[]);
        (&write).write_all(b"one\n").unwrap();
        let mut line = [0_u8; 4];
        child.stdout.as_mut().unwrap().read_exact(&mut line).unwrap();
        drop(house);
        drop(write);
        let ended = end(child).await;
        assert_eq!(ended.code, if follow { 3 } else { 0 }, "{ended:?}");
        assert_eq!(ended.err.contains("daemon does not run"), follow, "{ended:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_ignored_stays_ignored() {
    let house = House::open(status()).await;
    let (read, mut write) = std::io::pipe().unwrap();
    *house.root.log.lock().unwrap() = Some(Ok(read.into()));
    let mut child = Command::new("sh")
        .args(["-c", "trap '' HUP; exec \"$0\" --user logs -f org/m"])
        .arg(env!("CARGO_BIN_EXE_hostler"))
        .env("DBUS_SESSION_BUS_ADDRESS", &house.daemon.address)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = [0_u8; 4];
    // One that heeds the signal may still show a line that comes with it, and no other.
    for round in ["one\n", "two\n", "etc\n"] {
        write.write_all(round.as_bytes()).unwrap();
        child.stdout.as_mut().unwrap().read_exact(&mut line).unwrap();
        assert_eq!(line, round.as_bytes());
        send(&child, Signal::HUP);
    }
    drop(write);
    let ended = end(child).await;
    assert_eq!(ended.code, 0, "{ended:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_load_without_a_bar_says_what_it_waits_for_and_an_interrupted_one_how_to_end_it() {
    let mut waits = status();
    waits.models[1].phase = Phase::Waiting;
    waits.models[1].waiting_for = Some("org/m is busy".to_owned());
    let mut house = House::open(waits).await;
    let mut child = spawn(&house, &["load", "small"], &[]);
    let (_, _, _answer) = next(&mut house).await;
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let mut said = String::new();
    tokio::task::block_in_place(|| stderr.read_line(&mut said)).unwrap();
    assert_eq!(said, "small waits: org/m is busy\n");
    send(&child, Signal::INT);
    tokio::task::block_in_place(|| stderr.read_to_string(&mut said)).unwrap();
    let end_it = "it goes on without you\n  fix: hostler unload MODEL ends a load\n";
    assert!(said.ends_with(end_it), "{said}");
    assert_eq!(end(child).await.code, 130);
}

/// `hostler top` on a terminal, drawn once.
fn top(house: &House) -> Child {
    let program = env!("CARGO_BIN_EXE_hostler");
    let line = format!("stty cols 110 rows 24; exec {program} --user top --every 10ms");
    let mut terminal = Command::new("script")
        .args(["--quiet", "--return", "--command", &line, "/dev/null"])
        .env("DBUS_SESSION_BUS_ADDRESS", &house.daemon.address)
        .env("TERM", "xterm")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut seen, mut buffer) = (String::new(), [0_u8; 4096]);
    while !seen.contains("leaves") {
        let count = terminal.stdout.as_mut().unwrap().read(&mut buffer).unwrap();
        assert!(count > 0, "it ended: {seen}");
        seen.push_str(&String::from_utf8_lossy(&buffer[..count]));
    }
    terminal
}

#[tokio::test(flavor = "multi_thread")]
async fn top_gives_the_terminal_back_also_where_nobody_answers() {
    let house = House::open(status()).await;
    let terminal = top(&house);
    let id = terminal.id();
    let children = std::fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap();
    let pid: i32 = children.trim().parse().unwrap();
    kill_process(Pid::from_raw(pid).unwrap(), Signal::TERM).unwrap();
    let ended = end(terminal).await;
    assert_eq!(ended.code, 130, "{ended:?}");
    assert!(ended.out.contains("\x1b[?1049l"), "{ended:?}");

    let mut terminal = top(&house);
    house.daemon.hang();
    terminal.stdin.as_mut().unwrap().write_all(b"q").unwrap();
    let ended = end(terminal).await;
    assert_eq!(ended.code, 0, "{ended:?}");
}
