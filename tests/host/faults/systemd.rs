//! Managers that restart, machines that reboot, buses that are not there, a daemon that is stuck.

use serde_json::json;
use testhost::{Look, wait_for};

use super::answered;
use crate::harness::{
    COUNT, FIRST, SOON, containers, count, count_request, engine, get, nothing_left, post,
    property, serving, skip_unless_wanted, wait_busy, wait_property,
};

#[test]
fn fault_06_a_user_manager_that_goes_is_named_and_its_return_is_enough() {
    skip_unless_wanted!();
    let host = serving(COUNT).unwrap();
    count(&host).check();
    let first = engine(&host).unwrap();
    // It takes its containers with it.
    host.root("systemctl restart user@$(id -u hostler).service").unwrap();
    answered(&host, 8);
    assert_ne!(engine(&host).unwrap(), first);
    assert_eq!(containers(&host).unwrap().len(), 1);
    // No linger, no manager: the socket's file stays, and nobody listens.
    host.root("rm /var/lib/systemd/linger/hostler; systemctl stop user@$(id -u hostler).service")
        .unwrap();
    let problem = wait_for("the problem", SOON, || {
        let status = get(&host, "/api/v1/status")?.json();
        let found = status["problems"]
            .as_array()
            .into_iter()
            .flatten()
            .find(|p| p["code"] == "podman_unreachable")
            .cloned();
        Ok(found.map_or_else(|| Look::NotYet(status["problems"].to_string()), Look::Done))
    })
    .unwrap();
    let message = problem["message"].as_str().unwrap();
    assert!(message.contains("hostler-podman.socket"), "{message}");
    host.root(
        "touch /var/lib/systemd/linger/hostler; systemctl start user@$(id -u hostler).service",
    )
    .unwrap();
    answered(&host, 8);
    // The next look at podman finds it well.
    wait_for("the problem to be over", SOON, || {
        let problems = get(&host, "/ready")?.json()["problems"].clone();
        Ok(if problems == json!([]) { Look::Done(()) } else { Look::NotYet(problems.to_string()) })
    })
    .unwrap();
}

#[test]
fn fault_07_after_a_reboot_nothing_of_the_old_boot_is_believed() {
    skip_unless_wanted!();
    let mut host = serving(COUNT).unwrap();
    count(&host).check();
    let journal = "/var/lib/hostler/state/journal";
    let before = host.root(&format!("cat {journal}")).unwrap();
    assert!(before.contains("io.hostler.model"), "{before}");
    let old = containers(&host).unwrap();
    // The plug is pulled: the journal is left open, and podman's containers too.
    host.root("systemctl enable hostler.socket").unwrap();
    host.power_cut().unwrap();
    wait_property(&host, "hostler.socket", "ActiveState", SOON, |state| state == "active").unwrap();
    assert_eq!(host.root(&format!("cat {journal}")).unwrap(), before, "it survived");
    answered(&host, 8);
    let new = containers(&host).unwrap();
    assert!(new.len() == 1 && new != old, "{new:?}");
    let after = host.root(&format!("cat {journal}")).unwrap();
    let generation = |text: &str| {
        let at = text.find("\"generation\":").unwrap() + 13;
        text[at..].split([',', '}']).next().unwrap().parse::<u64>().unwrap()
    };
    assert!(generation(&after) > generation(&before), "{before} {after}");
    host.root("systemctl stop hostler.service").unwrap();
    nothing_left(&host);
}

#[test]
fn fault_30_without_a_bus_the_data_path_is_unaffected() {
    skip_unless_wanted!();
    let host = serving(COUNT).unwrap();
    count(&host).check();
    host.root(
        "systemctl mask --now --runtime dbus.socket dbus.service polkit.service 2>/dev/null; true",
    )
    .unwrap();
    for _ in 0..3 {
        count(&host).check();
    }
    assert_eq!(get(&host, "/health").unwrap().status, 200);
    // A daemon that starts without a bus serves as well.
    host.root("kill -9 $(pgrep --exact hostlerd)").unwrap();
    count(&host).check();
    host.root("systemctl unmask --runtime dbus.socket dbus.service polkit.service; systemctl start dbus.socket").unwrap();
    count(&host).check();
}

#[test]
fn fault_31_a_daemon_that_is_stuck_is_restarted_and_loses_nothing() {
    skip_unless_wanted!();
    let host = serving(COUNT).unwrap();
    host.write_file(
        "/etc/systemd/system/hostler.service.d/watchdog.conf",
        "[Service]\nWatchdogSec=3\nTimeoutAbortSec=2\n",
    )
    .unwrap();
    host.root("systemctl daemon-reload").unwrap();
    count(&host).check();
    let (before, pid) = (containers(&host).unwrap(), engine(&host).unwrap());
    // One is under way then: the engine is held until nobody takes its answer.
    host.root(&format!("kill -STOP {pid}")).unwrap();
    let cut = post(&host, "/v1/chat/completions", &count_request("count", 64));
    wait_busy(&host, "count", SOON).unwrap();
    host.root(&format!("kill -STOP {}", property(&host, "hostler.service", "MainPID").unwrap()))
        .unwrap();
    host.root(&format!("kill -CONT {pid}")).unwrap();
    // Nobody accepts this one: it waits in the socket, which is systemd's as well.
    let waiting = count(&host);
    wait_property(&host, "hostler.service", "NRestarts", FIRST, |n| n == "1").unwrap();
    waiting.check();
    answered(&host, 8);
    let cut = cut.wait();
    assert!(!cut.failure.is_empty() && !cut.body.contains("[DONE]"), "{cut:?}");
    assert_eq!((containers(&host).unwrap(), engine(&host).unwrap()), (before, pid));
    let journal = host.journal("hostler.service").unwrap();
    assert!(journal.contains("adopting the running container"), "{journal}");
}
