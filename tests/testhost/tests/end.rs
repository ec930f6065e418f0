//! However a host ends, nothing of it stays: no process, no cgroup, no mount, no file.

#![expect(clippy::unwrap_used, reason = "a panic is a test's failure report")]

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use testhost::{Host, Look, wait_for};

/// What is left of a host on the machine, as a list for a person; empty when nothing is.
fn leftovers(id: &str, cgroup: &Path, scratch: &Path, leader: u32) -> Vec<String> {
    let mut left = Vec::new();
    for path in [cgroup, scratch, Path::new(&format!("/sys/fs/cgroup/systemd/{id}"))] {
        if path.exists() {
            left.push(path.display().to_string());
        }
    }
    // A dead process stays a zombie until the machine's own PID 1 reaps it, in its own time.
    let stat = std::fs::read_to_string(format!("/proc/{leader}/stat")).unwrap_or_default();
    if stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X'])) {
        left.push(format!("process {leader}: {stat}"));
    }
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    left.extend(mounts.lines().filter(|line| line.contains(id)).map(str::to_owned));
    left
}

fn assert_gone(id: &str, cgroup: &Path, scratch: &Path, leader: u32) {
    wait_for(&format!("host {id} to be gone"), Duration::from_secs(30), || {
        let left = leftovers(id, cgroup, scratch, leader);
        Ok(if left.is_empty() { Look::Done(()) } else { Look::NotYet(left.join("; ")) })
    })
    .unwrap();
}

#[test]
fn a_dropped_host_leaves_nothing() {
    if testhost::skipped("a_dropped_host_leaves_nothing") {
        return;
    }
    let host = Host::builder().boot().unwrap();
    let (id, leader) = (host.id().to_owned(), host.leader());
    let (cgroup, scratch) = (host.cgroup().to_owned(), host.scratch().to_owned());
    assert!(!leftovers(&id, &cgroup, &scratch, leader).is_empty());
    drop(host);
    // At once, not at some time: the drop waits for the end.
    assert_eq!(leftovers(&id, &cgroup, &scratch, leader), Vec::<String>::new());
}

#[test]
fn two_hosts_do_not_disturb_each_other() {
    if testhost::skipped("two_hosts_do_not_disturb_each_other") {
        return;
    }
    let one = Host::builder().boot().unwrap();
    let two = Host::builder().boot().unwrap();
    one.write_file("/etc/only-here", "one").unwrap();
    assert!(!two.try_root("test -e /etc/only-here").unwrap().status.success());
    assert_ne!(
        one.root("cat /etc/machine-id").unwrap(),
        two.root("cat /etc/machine-id").unwrap(),
        "each host is a machine of its own"
    );
    drop(one);
    assert_eq!(two.root("systemctl is-system-running").unwrap().trim(), "running");
}

/// A process that holds a host, as a test does, and what it told about it.
struct Holder {
    child: Child,
    id: String,
    cgroup: PathBuf,
    scratch: PathBuf,
    leader: u32,
}

fn hold() -> Holder {
    let mut child = Command::new(env!("CARGO_BIN_EXE_hostler-testhost"))
        .arg("hold")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let mut words = line.trim().split('\t').map(str::to_owned);
    let mut next = || words.next().unwrap();
    let (id, cgroup, scratch) = (next(), next().into(), next().into());
    Holder { child, id, cgroup, scratch, leader: next().parse().unwrap() }
}

#[test]
fn a_killed_test_leaves_nothing() {
    if testhost::skipped("a_killed_test_leaves_nothing") {
        return;
    }
    let mut held = hold();
    held.child.kill().unwrap();
    held.child.wait().unwrap();
    assert_gone(&held.id, &held.cgroup, &held.scratch, held.leader);
}

#[test]
fn what_a_killed_keeper_leaves_the_next_boot_removes() {
    if testhost::skipped("what_a_killed_keeper_leaves_the_next_boot_removes") {
        return;
    }
    let mut held = hold();
    let keeper = keeper_of(held.child.id());
    let killed = Command::new("kill").args(["-KILL", &keeper.to_string()]).status().unwrap();
    assert!(killed.success());
    held.child.kill().unwrap();
    held.child.wait().unwrap();
    assert!(held.scratch.exists(), "nobody was left to remove it");
    let next = Host::builder().boot().unwrap();
    assert_gone(&held.id, &held.cgroup, &held.scratch, held.leader);
    drop(next);
}

/// The keeper is the child of the holder that is not nspawn.
fn keeper_of(holder: u32) -> u32 {
    let children = Command::new("ps")
        .args(["--no-headers", "-o", "pid,args", "--ppid", &holder.to_string()])
        .output()
        .unwrap();
    let children = String::from_utf8(children.stdout).unwrap();
    let line = children.lines().find(|line| line.contains("hostler-testhost-keeper")).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}
