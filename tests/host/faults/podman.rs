//! podman that hangs, leaves, runs full, or cannot start what it made.

use serde_json::json;
use testhost::{Host, Look, wait_for};

use super::answered;
use crate::harness::{
    COUNT, SOON, config, containers, count, count_request, engine, get, model, nothing_left, post,
    property, serving, skip_unless_wanted, wait_phase,
};

const CHAT: &str = "/v1/chat/completions";
const MANAGER: &str = "systemctl --user -M hostler@";

/// A second model of the same image, on another name.
fn two_models() -> String {
    let (_, table) = COUNT.split_once("[models.count]").unwrap();
    format!("{COUNT}\n[models.other]{table}")
}

/// Waits until the status names a problem, or none.
fn wait_problem(host: &Host, code: Option<&str>) {
    wait_for(&format!("the problem {code:?}"), SOON, || {
        let answer = get(host, "/api/v1/status")?.json();
        let codes: Vec<_> = answer["problems"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|p| p["code"].clone())
            .collect();
        let there = code.map_or(codes.is_empty(), |code| codes.contains(&json!(code)));
        Ok(if there { Look::Done(()) } else { Look::NotYet(answer["problems"].to_string()) })
    })
    .unwrap();
}

#[test]
fn fault_02_a_podman_that_hangs_keeps_nobody_from_a_ready_model() {
    skip_unless_wanted!();
    let host = serving(COUNT).unwrap();
    count(&host).check();
    let api = host.root(&format!("{MANAGER} show -P MainPID hostler-podman.service")).unwrap();
    host.root(&format!("kill -STOP {api}")).unwrap();
    wait_problem(&host, Some("podman_unreachable"));
    let answer = get(&host, "/ready").unwrap();
    assert_eq!(answer.json()["problems"][0]["code"], "podman_unreachable", "{answer:?}");
    for _ in 0..3 {
        count(&host).check();
    }
    // A death is known all the same, at once.
    let pid = engine(&host).unwrap();
    host.root(&format!("kill -9 {pid}")).unwrap();
    wait_for("the death to be known", SOON, || {
        let row = model(&host, "count")?;
        Ok(if row["phase"] == "ready" { Look::NotYet(row.to_string()) } else { Look::Done(()) })
    })
    .unwrap();
    host.root(&format!("kill -CONT {api}")).unwrap();
    wait_problem(&host, None);
    answered(&host, 8);
    assert_eq!(containers(&host).unwrap().len(), 1);
}

#[test]
fn fault_03_a_podman_that_leaves_when_idle_is_found_again() {
    skip_unless_wanted!();
    let host = serving(&format!("{COUNT}idle_timeout = \"2s\"\n")).unwrap();
    host.write_file(
        "/etc/systemd/user/hostler-podman.service.d/idle.conf",
        "[Service]\nExecStart=\nExecStart=/usr/bin/podman system service --time=1\n",
    )
    .unwrap();
    host.root(&format!("{MANAGER} daemon-reload; {MANAGER} stop hostler-podman.service")).unwrap();
    for _ in 0..3 {
        answered(&host, 8);
        wait_phase(&host, "count", "stopped", SOON).unwrap();
        wait_for("podman to leave", SOON, || {
            let state =
                host.try_root(&format!("{MANAGER} is-active hostler-podman.service"))?.stdout;
            Ok(if state.trim() == "active" { Look::NotYet(state) } else { Look::Done(()) })
        })
        .unwrap();
    }
    host.root("systemctl stop hostler.service").unwrap();
    nothing_left(&host);
}

#[test]
fn fault_09_a_full_storage_is_named_and_mends_itself() {
    skip_unless_wanted!();
    let host = serving(COUNT).unwrap();
    // All that podman writes from now on goes to a file system without a free block; its images stay where they are.
    let storage = "/var/lib/hostler/.local/share/containers/storage/overlay-containers";
    host.root(&format!("mount -t tmpfs -o size=64k,mode=0700,uid=$(id -u hostler),gid=$(id -g hostler) full {storage}"))
        .unwrap();
    host.root(&format!("cp -a {storage}/. /tmp/ 2>/dev/null; dd if=/dev/zero of={storage}/fill bs=4k 2>/dev/null; true"))
        .unwrap();
    let answer = post(&host, CHAT, &count_request("count", 8)).wait();
    let error = answer.json()["error"].clone();
    assert_eq!(answer.status, 503, "{answer:?}");
    println!("a full storage: {error}");
    let text = error.to_string();
    assert!(text.contains("storage_full") || text.contains("no space left"), "{error}");
    host.root(&format!("umount {storage}")).unwrap();
    answered(&host, 8);
    assert_eq!(containers(&host).unwrap().len(), 1, "nothing of the failed ones is left");
}

#[test]
fn fault_26_a_journal_that_cannot_be_written_is_a_problem_until_it_can() {
    skip_unless_wanted!();
    let host = serving(&format!("{COUNT}idle_timeout = \"1s\"\n")).unwrap();
    host.root("systemctl start hostler.service").unwrap();
    let state = "/var/lib/hostler/state";
    let pid = property(&host, "hostler.service", "MainPID").unwrap();
    let strace = format!(
        "setsid strace -qq -f -p {pid} -e trace=fsync,fdatasync -e inject=fsync,fdatasync:error=EIO -o /dev/null >/dev/null 2>&1 & \
         for n in $(seq 100); do grep -q 'TracerPid:.*[1-9]' /proc/{pid}/status && break; sleep 0.05; done"
    );
    for (bad, good, words) in [
        (
            format!("mount -t tmpfs -o ro,mode=0755 none {state}"),
            format!("umount {state}"),
            "read-only",
        ),
        (
            format!(
                "mount -t tmpfs -o size=16k,mode=0700,uid=$(id -u hostler),gid=$(id -g hostler) none {state}; \
                 dd if=/dev/zero of={state}/fill bs=1k 2>/dev/null; true"
            ),
            format!("umount {state}"),
            "no space",
        ),
        (strace, "pkill strace".to_owned(), "input/output error"),
    ] {
        wait_phase(&host, "count", "stopped", SOON).unwrap();
        host.root(&bad).unwrap();
        // A model is loaded all the same: its container's labels say whose it is.
        count(&host).check();
        wait_problem(&host, Some("journal_unwritable"));
        let answer = get(&host, "/ready").unwrap();
        assert!(answer.body.to_lowercase().contains(words), "{words}: {answer:?}");
        host.root(&good).unwrap();
        wait_for("the journal to be written", SOON, || {
            let ready = get(&host, "/ready")?.body;
            let bad = ready.contains("journal_unwritable");
            Ok(if bad { Look::NotYet(ready) } else { Look::Done(()) })
        })
        .unwrap();
    }
    count(&host).check();
    let journal = host.root(&format!("cat {state}/journal")).unwrap();
    assert!(journal.contains("io.hostler.model"), "{journal}");
    host.root("systemctl stop hostler.service").unwrap();
    nothing_left(&host);
}

#[test]
fn fault_09_podman_without_locks_is_named_and_recovers() {
    skip_unless_wanted!();
    let host = serving(COUNT).unwrap();
    host.write_file("/etc/containers/containers.conf.d/locks.conf", "[engine]\nnum_locks = 32\n")
        .unwrap();
    // Locks live in shared memory, and are as many as when that was made.
    host.root(&format!(
        "{MANAGER} stop hostler-podman.service; rm -f /dev/shm/libpod_rootless_lock_*"
    ))
    .unwrap();
    let podman = "podman --remote --url unix:///run/hostler/service/podman.sock";
    let fill = format!(
        "for n in $(seq 40); do {podman} create --name other-$n localhost/hostler/llama-server:latest || break; done"
    );
    host.user("hostler", &fill).unwrap();
    let answer = post(&host, CHAT, &count_request("count", 8)).wait();
    let error = answer.json()["error"].to_string();
    assert_eq!(answer.status, 503, "{answer:?}");
    assert!(error.contains("lock"), "{error}");
    host.user("hostler", &format!("{podman} rm other-1 other-2")).unwrap();
    answered(&host, 8);
    let names: Vec<String> = containers(&host).unwrap().into_iter().map(|(_, name)| name).collect();
    assert!(names.iter().any(|name| name == "other-3"), "others' are left alone: {names:?}");
}

#[test]
fn fault_10_what_cannot_be_started_is_removed_and_not_tried_in_a_loop() {
    skip_unless_wanted!();
    // The image has no such program: podman creates, and cannot start.
    let host = serving(&two_models()).unwrap();
    host.user("hostler", "c=$(printf 'FROM localhost/hostler/llama-server:latest\\nENTRYPOINT [\"/nope\"]\\n'); d=$(mktemp -d); echo \"$c\" >$d/Containerfile; podman build --quiet -t localhost/bad:1 $d").unwrap();
    let broken = two_models().replace("[models.other]", "[models.bad]");
    let (good, bad) = broken.split_once("[models.bad]").unwrap();
    let bad = bad.replace("localhost/hostler/llama-server:latest", "localhost/bad:1");
    config(&host, &format!("{good}[models.bad]{bad}")).unwrap();
    let before = count(&host);
    for _ in 0..20 {
        let answer = post(&host, CHAT, &count_request("bad", 8)).wait();
        let error = answer.json()["error"].clone();
        assert_eq!((answer.status, &error["code"]), (503, &json!("model_load_failed")), "{error}");
    }
    before.check();
    let names: Vec<String> = containers(&host).unwrap().into_iter().map(|(_, name)| name).collect();
    assert!(names.iter().all(|name| name.starts_with("hostler-count-")), "{names:?}");
    let row = model(&host, "bad").unwrap();
    let tried = row["health"]["failures_in_a_row"].as_u64().unwrap();
    assert!((1..=7).contains(&tried), "{row}");
}
