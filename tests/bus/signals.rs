//! The operator's program, interrupted: by signals, by a time that is over, and by a daemon that leaves.

use std::process::Child;

use hostler::supervisor::handle::Ask;
use hostler::types::Denied;
use rustix::process::{Pid, Signal, kill_process};

use crate::cli::{end, next, spawn};
use crate::house::{House, status};

fn send(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

/// Whether anything more was asked of the supervisor.
fn asked_more(house: &mut House) -> bool {
    std::iter::from_fn(|| house.asks.try_recv().ok()).any(|ask| matches!(ask, Ask::Operate { .. }))
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_more_is_begun_after_an_interruption() {
    let mut house = House::open(status()).await;
    let child = spawn(&house, &["unload", "small", "org/m"], &[]);
    let (model, _, answer) = next(&mut house).await;
    assert_eq!(model, "small");
    send(&child, Signal::INT);
    let ended = end(child).await;
    assert_eq!(ended.code, 130, "{ended:?}");
    assert!(!asked_more(&mut house));
    drop(answer);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_more_is_begun_when_the_time_is_over() {
    let mut house = House::open(status()).await;
    let child = spawn(&house, &["--json", "load", "small", "org/m", "--timeout", "500ms"], &[]);
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
