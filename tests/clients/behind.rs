//! A real proxy in front: nginx whose patience with silence is shorter than a load, and HAProxy as `contrib/` has it.

use std::process::Stdio;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

use crate::house::{House, KEY};
use testhost::skip;

/// A sixtieth of what is usual, for a load that is shorter by as much: 60 s to 10 min.
const PATIENCE: &str = "1s";
const LOAD: &str = "10s";

struct Proxy {
    port: u16,
    _process: Child,
    _dir: tempfile::TempDir,
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

async fn nginx(house: &House) -> Option<Proxy> {
    let dir = tempfile::tempdir().unwrap();
    let port = free_port();
    let root = dir.path().display();
    let temps: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|name| format!("{name}_temp_path {root}/{name};\n"))
        .concat();
    let config = format!(
        "daemon off;\nmaster_process off;\npid {root}/pid;\nerror_log stderr;\nevents {{}}\nhttp {{\naccess_log off;\n{temps}\
         server {{\nlisten 127.0.0.1:{port};\nlocation / {{\nproxy_pass http://{};\nproxy_http_version 1.1;\n\
         proxy_read_timeout {PATIENCE};\n}}\n}}\n}}\n",
        house.address
    );
    let file = dir.path().join("nginx.conf");
    std::fs::write(&file, config).unwrap();
    let args = ["-p".as_ref(), dir.path(), "-e".as_ref(), "stderr".as_ref(), "-c".as_ref(), &file];
    start(Command::new("nginx").args(args), port, dir).await
}

/// The one in `contrib/`, of which only the addresses are others.
async fn haproxy(house: &House) -> Option<Proxy> {
    let (dir, port) = (tempfile::tempdir().unwrap(), free_port());
    let mut config = include_str!("../../contrib/haproxy/haproxy.cfg").to_owned();
    for (example, ours) in [
        (
            "bind :443 ssl crt /etc/haproxy/certs/ alpn h2,http/1.1",
            format!("bind 127.0.0.1:{port}"),
        ),
        ("server here 127.0.0.1:8711", format!("server here {}", house.address)),
    ] {
        assert!(config.contains(example), "{example}");
        config = config.replace(example, &ours);
    }
    let file = dir.path().join("haproxy.cfg");
    std::fs::write(&file, config).unwrap();
    start(Command::new("haproxy").args(["-db".as_ref(), "-f".as_ref(), file.as_path()]), port, dir)
        .await
}

async fn start(command: &mut Command, port: u16, dir: tempfile::TempDir) -> Option<Proxy> {
    let program = command.as_std().get_program().to_string_lossy().into_owned();
    let started = command.stderr(Stdio::inherit()).kill_on_drop(true).spawn();
    let process = match started {
        Ok(process) => process,
        Err(error) => {
            skip(&format!("behind {program}"), &format!("{program} cannot be run: {error}"));
            return None;
        }
    };
    let begun = Instant::now();
    while TcpStream::connect(("127.0.0.1", port)).await.is_err() {
        assert!(begun.elapsed() < Duration::from_secs(30), "{program} does not listen");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Some(Proxy { port, _process: process, _dir: dir })
}

/// A stream through it, to its end.
async fn ask(proxy: &Proxy) -> String {
    let body = r#"{"model":"org/fake","stream":true,"max_tokens":5,"messages":[{"role":"user","content":"hi"}]}"#;
    let request = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {KEY}\r\nconnection: close\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    );
    send(proxy, &request).await
}

async fn send(proxy: &Proxy, request: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", proxy.port)).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut all = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(100), stream.read_to_end(&mut all));
    read.await.unwrap().unwrap();
    String::from_utf8(all).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_load_survives_a_proxy_that_waits_for_a_tenth_of_it() {
    let house = House::new("", &[("FAKE_LOAD", LOAD)], |rules| {
        rules.feedback_after = Duration::from_millis(200);
        rules.feedback_interval = Duration::from_millis(200);
    })
    .await;
    let Some(nginx) = nginx(&house).await else { return };
    let begun = Instant::now();
    let answer = ask(&nginx).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert!(answer.contains(": hostler phase=loading waited="), "{answer}");
    assert!(answer.contains("data: [DONE]"), "{answer}");
    assert!(begun.elapsed() >= Duration::from_secs(10), "the load was not what was waited for");
}

/// The same without signs of life: the test above could fail.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_signs_of_life_the_proxy_gives_up() {
    let off = "loading_feedback = \"off\"";
    let house = House::new(off, &[("FAKE_LOAD", LOAD)], |_| {}).await;
    let Some(nginx) = nginx(&house).await else { return };
    let answer = ask(&nginx).await;
    assert!(answer.starts_with("HTTP/1.1 504 "), "{answer}");
}

/// A load that fails after the 200 reaches the client behind the proxy as an error, not as an end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_load_is_an_error_event_behind_a_proxy_too() {
    let house = House::new("load_timeout = \"3s\"", &[("FAKE_LOAD", "60s")], |rules| {
        rules.feedback_after = Duration::from_millis(200);
        rules.feedback_interval = Duration::from_millis(200);
    })
    .await;
    let Some(nginx) = nginx(&house).await else { return };
    let answer = ask(&nginx).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert!(answer.contains("\"code\":\"model_load_failed\""), "{answer}");
    assert!(!answer.contains("[DONE]"), "{answer}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_haproxy_of_contrib_passes_streams_on_and_keeps_metrics_in() {
    let house = House::new("", &[], |_| {}).await;
    let Some(haproxy) = haproxy(&house).await else { return };
    let answer = ask(&haproxy).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert!(answer.contains("data: [DONE]"), "{answer}");
    // It asks from this host, where they need no key.
    for path in ["/metrics", "/metrics/models/org/fake", "/metrics?x", "/%6Detrics"] {
        let request =
            format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
        let refused = send(&haproxy, &request).await;
        assert!(refused.starts_with("HTTP/1.1 40"), "{path}: {refused}");
        assert!(!refused.contains("hostler_"), "{path}: {refused}");
    }
}
