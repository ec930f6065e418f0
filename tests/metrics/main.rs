//! Metrics: the page of a real supervisor and server with the stand-in engine behind, read by real parsers; and that documents,
//! dashboards and alerts name what there is.
//!
//! The parsers come from their registries into the cache (`tools.sh`). Where that is not possible, a test says so and is counted as
//! skipped by `make check`.
#![expect(clippy::unwrap_used, reason = "a panic is how a test reports its failure")]

mod contrib;
mod documents;
#[path = "../clients/house.rs"]
mod house;
mod page;
mod served;
#[path = "../clients/world.rs"]
mod world;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// The tree.
fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Where a parser is; `None`: it cannot be had, which was noted.
fn tool(test: &str, name: &str) -> Option<PathBuf> {
    let output = Command::new(root().join("tests/metrics/tools.sh")).arg(name).output().unwrap();
    testhost::fetched(test, &format!("tools.sh {name}"), &output).map(PathBuf::from)
}

/// Runs a program on a text.
fn feed(command: &mut Command, text: &str) -> Output {
    let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

/// Fails with what a program said, unless it was content.
fn content(what: &str, output: &Output) {
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{what}: {}{}", said(&output.stdout), said(&output.stderr));
}
