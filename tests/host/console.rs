//! The pages about the host, on a real one: what an administrator does and reads there.

use std::fmt::Write as _;

use sha2::{Digest, Sha256};

use crate::harness::{COUNT, SOON, curl, serving, skip_unless_wanted};

const URL: &str = "http://127.0.0.1:8711";

fn keys() -> String {
    let mut text = String::new();
    for (name, more) in [("boss", "admin = true\n"), ("reader", "")] {
        let digest = Sha256::digest(format!("sk-{name}"));
        let digest: String = digest.iter().fold(String::new(), |mut hex, byte| {
            let _ = write!(hex, "{byte:02x}");
            hex
        });
        let _ = write!(text, "[keys.{name}]\nsha256 = \"{digest}\"\n{more}");
    }
    text
}

#[test]
fn an_administrator_loads_a_model_and_reads_its_log_over_http() {
    skip_unless_wanted!();
    let host = serving(COUNT).unwrap();
    host.write_file("/etc/hostler/keys.toml", &keys()).unwrap();
    host.root("chown root:hostler /etc/hostler/keys.toml; chmod 640 /etc/hostler/keys.toml")
        .unwrap();
    let auth = "[auth]\nkeys_file = \"/etc/hostler/keys.toml\"\n";
    host.write_file("/etc/hostler/hostler.toml", &format!("{auth}{COUNT}")).unwrap();
    let ask = |name: &str, args: &[&str], path: &str| {
        let (key, url) = (format!("authorization: Bearer sk-{name}"), format!("{URL}{path}"));
        let mut all = vec!["-H", &key, &url];
        all.extend_from_slice(args);
        curl(&host, &all)
    };

    let page = curl(&host, &[&format!("{URL}/ui")]);
    assert_eq!(page.status, 200);
    assert!(page.header("content-security-policy").is_some_and(|p| p.contains("'sha256-")));
    assert!(page.body.contains("<title>Hostler</title>"));

    let load = "/api/v1/models/count/load";
    assert_eq!(ask("reader", &["-X", "POST"], load).status, 403);
    let begun = ask("boss", &["-X", "POST"], load);
    assert_eq!(begun.status, 202, "{begun:?}");
    let job = begun.json()["job"].as_u64().unwrap();
    let said = format!("job {job} (load count) is done");
    let journal = host.wait_journal("hostler.service", &said, SOON * 2).unwrap();
    assert!(journal.contains("load was asked for over HTTP with the key \"boss\""), "{journal}");
    // The job's whole story.
    let only = "-o cat --output-fields=HOSTLER_KIND";
    let story = host.root(&format!("journalctl -b --no-pager {only} HOSTLER_JOB={job}")).unwrap();
    assert_eq!(
        story.split_whitespace().collect::<Vec<_>>(),
        ["starting", "loading", "ready", "job"]
    );
    let models = ask("reader", &[], "/api/v1/models").json();
    assert_eq!(models[0]["phase"], "ready", "{models}");
    let jobs = ask("reader", &[], "/api/v1/jobs").json();
    assert_eq!((&jobs[0]["kind"], &jobs[0]["state"]), (&"load".into(), &"done".into()), "{jobs}");

    // What the engine said, from podman, line by line; and what has happened. Both are endless: curl leaves by itself.
    assert_eq!(ask("reader", &[], "/api/v1/models/count/log").status, 403);
    let log = ask("boss", &["--max-time", "3"], "/api/v1/models/count/log");
    assert_eq!(log.header("content-type"), Some("text/event-stream"));
    assert!(log.body.contains("event: line\ndata: \"") && log.body.contains("llama"), "{log:?}");
    let events = ask("reader", &["--max-time", "3"], "/api/v1/events");
    assert!(events.body.starts_with("event: you\ndata: {\"admin\":false,"), "{}", events.body);
    assert!(events.body.contains("\"kind\":\"ready\""), "{}", events.body);

    // For debugging, on the socket that only those may reach who may look.
    assert_eq!(ask("boss", &[], "/debug/state").status, 404);
    let unix = ["--unix-socket", "/run/hostler/http.sock", "http://hostler/debug/plan?model=count"];
    let plan = curl(&host, &unix).json();
    assert_eq!(plan["outcome"], "loaded", "{plan}");

    let unload = ask("boss", &["-X", "POST"], "/api/v1/models/count/unload");
    assert_eq!(unload.status, 202);
    host.wait_journal("hostler.service", "(unload count) is done", SOON).unwrap();
}
