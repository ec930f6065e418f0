//! From a socket to an answer, and back to nothing: the daemon's whole life as systemd and a client see it.

use crate::harness::{
    COUNT, Counting, SOON, check_count, containers, count, count_a_little, events, get,
    nothing_left, property, serving, show_status, skip_unless_wanted, wait_property,
};

#[test]
fn the_first_request_starts_the_daemon_and_the_model_and_a_stop_leaves_nothing() {
    skip_unless_wanted!();
    let host = serving(COUNT).unwrap();
    assert_eq!(property(&host, "hostler.service", "ActiveState").unwrap(), "inactive");
    assert_eq!(containers(&host).unwrap(), []);

    count(&host).check();
    assert_eq!(property(&host, "hostler.service", "ActiveState").unwrap(), "active");
    let first = containers(&host).unwrap();
    assert_eq!(first.len(), 1, "{first:?}");
    let said = |text: &str| text.starts_with("1 of 1 models ready (count)");
    wait_property(&host, "hostler.service", "StatusText", SOON, said).unwrap();
    let shown = show_status(&host, "hostler.service").unwrap();
    assert!(shown.contains("Status: \"1 of 1 models ready (count)"), "{shown}");
    assert!(shown.contains("Active: active (running)"), "{shown}");

    host.root("systemctl stop hostler.service").unwrap();
    assert_eq!(property(&host, "hostler.service", "Result").unwrap(), "success");
    nothing_left(&host);
    assert_eq!(containers(&host).unwrap(), []);
    for socket in ["hostler.socket", "hostler-unix.socket"] {
        assert_eq!(property(&host, socket, "ActiveState").unwrap(), "active", "{socket}");
    }
    assert_eq!(property(&host, "hostler.service", "ActiveState").unwrap(), "inactive");

    count(&host).check();
    let second = containers(&host).unwrap();
    assert_eq!(second.len(), 1, "{second:?}");
    assert_ne!(first, second);
    assert_eq!(host.failed_units().unwrap(), "");
}

#[test]
fn clients_that_come_at_once_share_one_container() {
    skip_unless_wanted!();
    let host = serving(COUNT).unwrap();
    let clients: Vec<_> = (0..4).map(|_| count_a_little(&host)).collect();
    clients.into_iter().for_each(Counting::check);
    assert_eq!(containers(&host).unwrap().len(), 1);
    assert_eq!(events(&host, "count").unwrap(), ["create", "init", "start"]);
    // The daemon, too, was started once.
    assert_eq!(property(&host, "hostler.service", "NRestarts").unwrap(), "0");
    let journal = host.journal("hostler.service").unwrap();
    assert_eq!(journal.matches("count: starting on").count(), 1, "{journal}");
}

#[test]
fn every_way_in_serves_the_same() {
    skip_unless_wanted!();
    let host = serving(COUNT).unwrap();
    let unix = ["--unix-socket", "/run/hostler/http.sock", "http://localhost/health"];
    for args in [&unix[..], &["http://127.0.0.1:8711/health"], &["http://[::1]:8711/health"]] {
        let answer = crate::harness::curl(&host, args);
        assert_eq!(
            (answer.status, answer.body.as_str()),
            (200, r#"{"status":"ok"}"#),
            "{answer:?}"
        );
    }
    let request = crate::harness::count_request("count", 512);
    let chat = "http://localhost/v1/chat/completions";
    let answer =
        crate::harness::curl(&host, &[&unix[..2], &["--data-binary", &request, chat]].concat());
    check_count(&answer, 512);
    // Members of the group hostler may use the socket, nobody else.
    let as_nobody = "setpriv --reuid=nobody --regid=nogroup --clear-groups";
    let curl = "curl -sS --fail --unix-socket /run/hostler/http.sock http://localhost/health";
    assert!(!host.try_root(&format!("{as_nobody} {curl}")).unwrap().status.success());
    let as_member = "setpriv --reuid=nobody --regid=hostler --clear-groups";
    host.root(&format!("{as_member} {curl}")).unwrap();
    assert_eq!(get(&host, "/ready").unwrap().status, 200);
}
