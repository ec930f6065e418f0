//! What podman, its monitor and the user manager forget, and what lives on.

use std::time::{Duration, Instant};

use serde_json::json;
use testhost::{Host, Look, wait_for};

use crate::harness::{
    COUNT, PODMAN, SOON, containers, count, engine, left_over, model, nothing_left, serving,
    skip_unless_wanted, status, wait_phase,
};

/// From a death to its being known, with room for a machine that does other things too.
const KNOWN_DEAD: Duration = Duration::from_secs(2);

/// The monitor of the one container.
fn conmon(host: &Host) -> u32 {
    let pids = host.root("pgrep --exact conmon").unwrap();
    pids.trim().parse().unwrap_or_else(|_| panic!("not one conmon, but {pids:?}"))
}

/// Kills and says how long it took until the model was not ready any more.
fn known_dead_after(host: &Host, pids: &str) -> Duration {
    host.root(&format!("kill -9 {pids}")).unwrap();
    let killed = Instant::now();
    wait_for("the death to be known", SOON, || {
        let row = model(host, "count")?;
        let known = row["phase"] != "ready";
        Ok(if known { Look::Done(()) } else { Look::NotYet(row.to_string()) })
    })
    .unwrap();
    killed.elapsed()
}

#[test]
fn fault_04_a_death_is_known_at_once_though_the_monitor_is_gone() {
    skip_unless_wanted!();
    let host = serving(COUNT).unwrap();
    count(&host).check();
    // The monitor alone: podman would take long to notice, but the engine lives and serves.
    let before = engine(&host).unwrap();
    host.root(&format!("kill -9 {}", conmon(&host))).unwrap();
    count(&host).check();
    assert_eq!(engine(&host).unwrap(), before);
    // And now the engine: nobody is left who could tell podman, which says that it runs.
    let id = containers(&host).unwrap()[0].0.clone();
    let took = known_dead_after(&host, &before.to_string());
    assert!(took < KNOWN_DEAD, "{took:?}");
    println!("known dead after {took:?} (the monitor was gone)");
    count(&host).check();
    let after = containers(&host).unwrap();
    assert!(after.len() == 1 && after[0].0 != id, "{after:?}");

    // Both at once.
    let both = format!("{} {}", conmon(&host), engine(&host).unwrap());
    let took = known_dead_after(&host, &both);
    assert!(took < KNOWN_DEAD, "{took:?}");
    println!("known dead after {took:?} (both killed)");
    // The second death within a minute: not at once, but without anybody's help.
    super::answered(&host, 8);
    host.root("systemctl stop hostler.service").unwrap();
    nothing_left(&host);
}

/// Makes podman believe in a reboot: its runtime directories are gone, the processes are not.
fn wipe(host: &Host) {
    host.user("hostler", "systemctl --user stop hostler-podman.service").unwrap();
    host.user("hostler", "rm -rf $XDG_RUNTIME_DIR/libpod $XDG_RUNTIME_DIR/containers").unwrap();
    host.user("hostler", "systemctl --user start hostler-podman.socket").unwrap();
}

fn unload_by_idling(host: &Host) {
    wait_phase(host, "count", "stopped", SOON).unwrap();
}

#[test]
fn fault_05_what_podman_forgets_is_ended_by_what_the_journal_and_the_kernel_know() {
    skip_unless_wanted!();
    // The daemon lives: it goes on serving, and ends what podman takes for dead.
    let host = serving(&format!("{COUNT}idle_timeout = \"3s\"\n")).unwrap();
    count(&host).check();
    let before = engine(&host).unwrap();
    wipe(&host);
    count(&host).check();
    assert_eq!(engine(&host).unwrap(), before, "it lives, and serves");
    unload_by_idling(&host);
    // conmon ends by itself once its container has.
    wait_for("nothing but the daemon to be left", SOON, || {
        let left = left_over(&host)?;
        let clean = !left.contains("conmon") && !left.contains("libpod-");
        Ok(if clean { Look::Done(()) } else { Look::NotYet(left) })
    })
    .unwrap();
    assert_eq!(host.try_root("pgrep --exact llama-server").unwrap().stdout, "");

    // The daemon is gone meanwhile, and podman has forgotten it whole: only the journal has its name.
    count(&host).check();
    host.root("systemctl kill --signal=SIGKILL --kill-whom=main hostler.service; systemctl stop hostler.service").unwrap();
    let forgotten = engine(&host).unwrap();
    wipe(&host);
    host.user("hostler", &format!("{PODMAN} rm --force --all")).unwrap();
    assert_eq!(engine(&host).unwrap(), forgotten, "podman removed it, and it lives");
    assert_eq!(containers(&host).unwrap(), []);
    let answer = status(&host).unwrap();
    assert_eq!(answer["models"][0]["name"], json!("count"));
    wait_for("the end of what was forgotten", SOON, || {
        let pids = host.try_root("pgrep --exact llama-server")?.stdout;
        Ok(if pids.is_empty() { Look::Done(()) } else { Look::NotYet(pids) })
    })
    .unwrap();
    let journal = host.journal("hostler.service").unwrap();
    assert!(journal.contains("podman has forgotten"), "{journal}");
    count(&host).check();
    assert_eq!(containers(&host).unwrap().len(), 1);
    host.root("systemctl stop hostler.service").unwrap();
    nothing_left(&host);
}
