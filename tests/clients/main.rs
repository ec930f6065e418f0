//! Real clients against the real supervisor and server, with the stand-in engine behind: what people run, unmodified.
//!
//! The clients come from their registries into the cache (`env.sh`). Where that is not possible, a test says so and is counted as
//! skipped by `make check`.
#![expect(clippy::unwrap_used, reason = "a panic is how a test reports its failure")]

mod behind;
mod browser;
mod house;
mod pages;
mod world;

use std::path::{Path, PathBuf};
use std::time::Duration;

use house::{House, KEY};
use tokio::process::Command;

/// A client with an interpreter that is busy with other things.
const SOON: Duration = Duration::from_secs(120);

fn here() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients")
}

/// Where the clients of a kind are; `None`: they cannot be had, which was noted.
async fn clients(test: &str, kind: &str) -> Option<PathBuf> {
    let output = Command::new(here().join("env.sh")).arg(kind).output().await.unwrap();
    testhost::fetched(test, &format!("env.sh {kind}"), &output).map(PathBuf::from)
}

async fn python(client: &str) {
    let Some(dir) = clients(client, "python").await else { return };
    // A load that is felt, so that the signs of life pass through each client's parser.
    let house = House::new("", &[("FAKE_LOAD", "1s")], |rules| {
        rules.feedback_after = Duration::from_millis(100);
        rules.feedback_interval = Duration::from_millis(150);
    })
    .await;
    let mut command = Command::new(dir.join("bin/python"));
    command.arg(here().join("clients.py")).arg(client).env("PATH_TO_LLM", dir.join("bin/llm"));
    run(command, &house).await;
}

async fn node(client: &str) {
    let Some(dir) = clients(client, "node").await else { return };
    let house = House::new("", &[("FAKE_LOAD", "1s")], |rules| {
        rules.feedback_after = Duration::from_millis(100);
        rules.feedback_interval = Duration::from_millis(150);
    })
    .await;
    // Modules are looked for beside the script.
    let script = dir.join("clients.mjs");
    std::fs::copy(here().join("clients.mjs"), &script).unwrap();
    let mut command = Command::new("node");
    command.arg(script).arg(client);
    run(command, &house).await;
}

async fn run(mut command: Command, house: &House) {
    command.env("BASE", format!("http://{}", house.address)).env("KEY", KEY).kill_on_drop(true);
    let output = tokio::time::timeout(SOON, command.output()).await.unwrap().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn openai_python() {
    python("openai").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn anthropic_python() {
    python("anthropic").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn langchain_python() {
    python("langchain").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn llm_on_the_command_line() {
    python("llm").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn openai_node() {
    node("openai").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn anthropic_node() {
    node("anthropic").await;
}
