//! What the journal tells, to those who ask it.

use hostler::observe::catalog;
use serde_json::Value;
use testhost::{Host, Look, wait_for};

use crate::harness::{
    COUNT, SOON, allow_internet, config, count_request, curl, get, serving, skip_unless_wanted,
};

const BASE: &str = "http://127.0.0.1:8711";

/// The journal's entries that match.
fn entries(host: &Host, matches: &str) -> Vec<Value> {
    let text = host.root(&format!("journalctl --sync; journalctl -b -o json --no-pager {matches}"));
    text.unwrap().lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

fn field<'e>(entry: &'e Value, name: &str) -> &'e str {
    entry[name].as_str().unwrap_or_default()
}

#[test]
fn one_request_tells_its_whole_story_with_the_load_that_it_caused() {
    skip_unless_wanted!();
    let host = serving(COUNT).unwrap();
    let url = format!("{BASE}/v1/chat/completions");
    let body = count_request("count", 24);
    let json = "content-type: application/json";
    let ask = |id: &str| {
        let id = format!("x-request-id: {id}");
        let answer = curl(&host, &["-H", json, "-H", &id, "--data-binary", &body, &url]);
        assert_eq!(answer.status, 200, "{answer:?}");
    };
    ask("story-1");
    ask("story-2");
    let story = wait_for("the request's own line", SOON, || {
        let story = entries(&host, "HOSTLER_REQUEST_ID=story-1");
        let over = story.iter().any(|e| field(e, "HOSTLER_KIND") == "request");
        Ok(if over { Look::Done(story) } else { Look::NotYet(format!("{story:?}")) })
    });
    let story = story.unwrap();
    let kinds: Vec<&str> = story.iter().map(|e| field(e, "HOSTLER_KIND")).collect();
    assert_eq!(kinds, ["starting", "loading", "ready", "request"], "{story:?}");
    let instance = field(&story[0], "HOSTLER_INSTANCE");
    assert!(instance.starts_with("hostler-count-g"), "{instance}");
    for entry in &story {
        let message = catalog::of(field(entry, "HOSTLER_KIND")).unwrap();
        assert_eq!(field(entry, "MESSAGE_ID"), message.id);
        assert_eq!(field(entry, "HOSTLER_MODEL"), "count");
        assert_eq!(field(entry, "HOSTLER_INSTANCE"), instance);
        assert_eq!(field(entry, "PRIORITY"), "6");
        assert_eq!(field(entry, "SYSLOG_IDENTIFIER"), "hostlerd");
        assert_eq!(field(entry, "_SYSTEMD_UNIT"), "hostler.service");
        assert!(field(entry, "MESSAGE").contains("count"), "{entry}");
    }
    let over = story.last().unwrap();
    for (name, value) in [("HOSTLER_ROUTE", "chat_completions"), ("HOSTLER_STATUS", "200")] {
        assert_eq!(field(over, name), value);
    }
    for times in ["HOSTLER_QUEUE_MS", "HOSTLER_FIRST_BYTE_MS", "HOSTLER_TOTAL_MS"] {
        assert!(field(over, times).parse::<u64>().is_ok(), "{times} in {over}");
    }
    // The second one loaded nothing, and finds the load by its instance.
    let second = wait_for("the second line", SOON, || {
        let second = entries(&host, "HOSTLER_REQUEST_ID=story-2");
        Ok(if second.is_empty() { Look::NotYet(String::new()) } else { Look::Done(second) })
    });
    let second = second.unwrap();
    assert_eq!(second.len(), 1, "{second:?}");
    assert_eq!(field(&second[0], "HOSTLER_INSTANCE"), instance);

    // The catalogue is systemd's own to read.
    host.root("journalctl --update-catalog").unwrap();
    for message in catalog::ALL {
        let dump = host.root(&format!("journalctl --dump-catalog {}", message.id)).unwrap();
        assert!(dump.contains(&format!("Subject: {}", message.subject)), "{dump}");
    }
    let explained = host.root("journalctl -b --no-pager -x HOSTLER_KIND=ready").unwrap();
    assert!(explained.contains("A model is ready"), "{explained}");
}

#[test]
fn every_line_of_a_burst_is_there_once_and_in_order() {
    const MANY: usize = 3000;
    skip_unless_wanted!();
    let host = serving(&format!("{COUNT}\n[log]\nrequest_lines = 1000000\n")).unwrap();
    // One connection asks one question after the other.
    let ask = format!("curl -s -o /dev/null '{BASE}/v1/models/none-[1-{MANY}]'");
    host.root(&ask).unwrap();
    let lines = wait_for("the lines", SOON, || {
        let lines = entries(&host, "HOSTLER_KIND=request HOSTLER_ROUTE=model");
        let some = lines.len();
        Ok(if some < MANY { Look::NotYet(some.to_string()) } else { Look::Done(lines) })
    });
    let lines = lines.unwrap();
    assert_eq!(lines.len(), MANY);
    // The IDs sort by time.
    let ids: Vec<&str> = lines.iter().map(|e| field(e, "HOSTLER_REQUEST_ID")).collect();
    assert!(ids.is_sorted_by(|a, b| a < b), "a line is there twice, or in another's place");
    let message = catalog::of("request").unwrap();
    for line in &lines {
        for (name, value) in [
            ("MESSAGE_ID", message.id),
            ("PRIORITY", "6"),
            ("SYSLOG_IDENTIFIER", "hostlerd"),
            ("HOSTLER_STATUS", "404"),
            ("HOSTLER_ERROR", "model_not_found"),
            ("HOSTLER_ABORTED", "false"),
        ] {
            assert_eq!(field(line, name), value, "{name} in {line}");
        }
        assert!(field(line, "MESSAGE").starts_with("model -: 404 after "), "{line}");
    }
    let lost = entries(&host, "HOSTLER_KIND=log_lines_lost");
    assert!(lost.is_empty(), "{lost:?}");
    // As it is by itself, a part of them is told and the others are counted.
    config(&host, COUNT).unwrap();
    host.root("systemctl reload hostler.service").unwrap();
    host.root(&ask).unwrap();
    wait_for("told and counted", SOON, || {
        let told = entries(&host, "HOSTLER_KIND=request HOSTLER_ROUTE=model").len() - MANY;
        let untold = entries(&host, "HOSTLER_KIND=requests_untold");
        let counted = untold.iter().map(|e| field(e, "HOSTLER_LINES").parse::<usize>().unwrap());
        let seen = (told, counted.sum::<usize>());
        assert!(seen.0 + seen.1 <= MANY, "{seen:?}");
        let all = seen.1 > 0 && seen.0 + seen.1 == MANY;
        Ok(if all { Look::Done(()) } else { Look::NotYet(format!("{seen:?}")) })
    })
    .unwrap();
}

#[test]
fn what_is_logged_is_changed_by_a_reload() {
    skip_unless_wanted!();
    let host = serving(COUNT).unwrap();
    let asked = || entries(&host, "HOSTLER_KIND=request HOSTLER_ROUTE=health").len();
    let reload = |log: &str| {
        config(&host, &format!("{COUNT}{log}")).unwrap();
        host.root("systemctl reload hostler.service").unwrap();
    };
    assert_eq!(get(&host, "/health").unwrap().status, 200);
    assert_eq!(asked(), 0, "a routine question is no news");
    reload("\n[log]\nlevel = \"info,hostler::proxy=debug\"\n");
    let seen = wait_for("a debug line", SOON, || {
        assert_eq!(get(&host, "/health").unwrap().status, 200);
        let seen = asked();
        Ok(if seen > 0 { Look::Done(seen) } else { Look::NotYet(seen.to_string()) })
    });
    seen.unwrap();
    reload("\n[log]\nlevel = \"info\"\n");
    let before = asked();
    assert_eq!(get(&host, "/health").unwrap().status, 200);
    assert_eq!(asked(), before, "it is quiet again");
    // A wrong one is refused as a whole, with its place.
    config(&host, &format!("{COUNT}\n[log]\nlevel = \"loud\"\n")).unwrap();
    host.root("systemctl reload hostler.service; true").unwrap();
    let failed = entries(&host, "HOSTLER_KIND=reload_failed");
    let [failed] = &failed[..] else { panic!("{failed:?}") };
    assert!(field(failed, "MESSAGE").contains("log.level"), "{failed}");
    let message = catalog::of("reload_failed").unwrap();
    assert_eq!(field(failed, "MESSAGE_ID"), message.id);
}

#[test]
fn metrics_have_an_address_of_their_own_where_the_sandbox_lets_them() {
    skip_unless_wanted!();
    let own = format!("{COUNT}\n[metrics]\nlisten = [\"127.0.0.1:9711\"]\n");
    let host = serving(&own).unwrap();
    // The start fails and says what to write where; clients hear it, too.
    let refused = get(&host, "/health").unwrap();
    assert_eq!(refused.status, 503, "{refused:?}");
    assert!(refused.body.contains("RestrictAddressFamilies=AF_INET AF_INET6"), "{refused:?}");
    allow_internet(&host).unwrap();
    let page = wait_for("the metrics", SOON * 3, || {
        let _ = get(&host, "/health");
        let page = curl(&host, &["http://127.0.0.1:9711/metrics"]);
        Ok(if page.status == 200 { Look::Done(page) } else { Look::NotYet(format!("{page:?}")) })
    });
    assert!(page.unwrap().body.contains("hostler_build_info{"));
    let elsewhere = curl(&host, &["http://127.0.0.1:9711/v1/models"]);
    assert_eq!(elsewhere.status, 404, "{elsewhere:?}");
    assert_eq!(get(&host, "/v1/models").unwrap().status, 200);
}
