//! An engine that other users of the host can connect to serves none of them.

use testhost::Host;

use crate::harness::{
    COUNT, PODMAN, allow_internet, containers, count, events, get, nothing_left, serving,
    skip_unless_wanted,
};

/// What another user of the host gets from the engine itself.
fn direct(host: &Host, port: &str, path: &str, key: Option<&str>) -> String {
    let key = key.map(|key| format!("-H 'authorization: Bearer {key}'")).unwrap_or_default();
    let data = if path == "/metrics" {
        ""
    } else {
        "-d '{\"prompt\":\"1\",\"content\":\"1\",\"n_predict\":1}'"
    };
    host.root(&format!(
        "setpriv --reuid=65534 --regid=65534 --clear-groups curl -sS -o /dev/null -w '%{{http_code}}' \
         --max-time 60 -H 'content-type: application/json' {key} {data} http://127.0.0.1:{port}{path}"
    ))
    .unwrap()
}

#[test]
fn nobody_but_the_daemon_may_ask_an_engine_over_tcp() {
    skip_unless_wanted!();
    let toml = COUNT.replace("context = 4096", "context = 4096\ntransport = \"tcp\"");
    let host = serving(&toml).unwrap();
    allow_internet(&host).unwrap();
    count(&host).check();
    let before = containers(&host).unwrap();
    let port = host.user("hostler", &format!("{PODMAN} port {} 8000", before[0].0)).unwrap();
    let port = port.trim().rsplit(':').next().unwrap().to_owned();

    // Another user of the host is refused, wherever an engine does something; the daemon is not, for its own questions either.
    let refused = |when: &str| {
        for path in ["/v1/chat/completions", "/v1/completions", "/tokenize", "/metrics"] {
            assert_eq!(direct(&host, &port, path, None), "401", "{path} {when}");
            assert_eq!(direct(&host, &port, path, Some("wrong")), "401", "{path} {when}");
        }
        let page = get(&host, "/metrics/models/count").unwrap();
        assert_eq!(page.status, 200, "{when}: {page:?}");
        assert!(page.body.contains("llamacpp"), "{when}: {page:?}");
    };
    refused("after the load");

    // It is where root and the service user can read it, and nobody else.
    let inspected = format!(
        "{PODMAN} inspect {} --format '{{{{range .Config.Env}}}}{{{{println .}}}}{{{{end}}}}'",
        before[0].0
    );
    let environment = host.user("hostler", &inspected).unwrap();
    let key = environment.lines().find_map(|line| line.strip_prefix("LLAMA_API_KEY=")).unwrap();
    assert_eq!(key.len(), 64, "{key}");
    assert_eq!(direct(&host, &port, "/tokenize", Some(key)), "200", "it is the key that counts");
    assert!(!host.root("ps -eo args").unwrap().contains(key));
    assert!(!host.root("journalctl --no-pager --output=json").unwrap().contains(key));
    let everything = format!("{PODMAN} events --stream=false --since 1h --format json");
    assert!(!host.user("hostler", &everything).unwrap().contains(key));
    assert!(!get(&host, "/api/v1/status").unwrap().body.contains(key));

    // A later daemon knows it too: after a crash, and after a restart that keeps the model.
    host.root("systemctl kill --signal=SIGKILL --kill-whom=main hostler.service").unwrap();
    count(&host).check();
    refused("after a crash of the daemon");
    host.root("systemctl restart hostler.service").unwrap();
    count(&host).check();
    refused("after a restart of the daemon");
    assert_eq!(containers(&host).unwrap(), before);
    // podman also tells when it looks at one anew.
    let mut all = events(&host, "count").unwrap();
    all.retain(|event| event != "sync");
    assert_eq!(all, ["create", "init", "start"]);

    // It ends with the container.
    host.root("systemctl stop hostler.service").unwrap();
    assert_eq!(containers(&host).unwrap(), []);
    nothing_left(&host);
}
