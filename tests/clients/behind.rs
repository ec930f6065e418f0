//! A real proxy in front: nginx whose patience with silence is shorter than a load, and nginx and HAProxy as `contrib/` has them.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::process::Stdio;
use std::time::{Duration, Instant};

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
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

/// Of the defaults for all requests, with some patience.
async fn nginx(house: &House) -> Option<Proxy> {
    serve(tempfile::tempdir().unwrap(), free_port(), |port| {
        format!(
            "server {{\nlisten 127.0.0.1:{port};\nlocation / {{\nproxy_pass http://{};\nproxy_http_version 1.1;\n\
             proxy_read_timeout {PATIENCE};\n}}\n}}\n",
            house.address
        )
    })
    .await
}

/// The one in `contrib/`, of which only the addresses are others, and the certificate is made here.
async fn nginx_of_contrib(house: &House) -> Option<Proxy> {
    let dir = tempfile::tempdir().unwrap();
    let (crt, key) = (dir.path().join("crt"), dir.path().join("key"));
    let made = Command::new("openssl")
        .args("req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2".split(' '))
        .args(["-subj", "/CN=localhost", "-out"])
        .arg(&crt)
        .arg("-keyout")
        .arg(&key)
        .output();
    let made = made.await.unwrap();
    assert!(made.status.success(), "{made:?}");
    serve(dir, free_port(), |port| {
        let mut config = include_str!("../../contrib/nginx/hostler.conf").to_owned();
        for (example, ours) in [
            ("listen 443 ssl", format!("listen 127.0.0.1:{port} ssl")),
            ("/etc/nginx/certs/hostler.crt", crt.display().to_string()),
            ("/etc/nginx/certs/hostler.key", key.display().to_string()),
            ("server 127.0.0.1:8711", format!("server {}", house.address)),
        ] {
            assert!(config.contains(example), "{example}");
            config = config.replace(example, &ours);
        }
        config
    })
    .await
}

/// nginx with these servers.
async fn serve(
    dir: tempfile::TempDir,
    port: u16,
    servers: impl FnOnce(u16) -> String,
) -> Option<Proxy> {
    let root = dir.path().display();
    let temps: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|name| format!("{name}_temp_path {root}/{name};\n"))
        .concat();
    let config = format!(
        "daemon off;\nmaster_process off;\npid {root}/pid;\nerror_log stderr;\nevents {{}}\nhttp {{\naccess_log off;\n{temps}{}}}\n",
        servers(port)
    );
    let file = dir.path().join("nginx.conf");
    std::fs::write(&file, config).unwrap();
    let args = ["-p".as_ref(), dir.path(), "-e".as_ref(), "stderr".as_ref(), "-c".as_ref(), &file];
    start(Command::new("nginx").args(args), port, dir).await
}

/// The one in `contrib/`, of which only the addresses are others; with its second host, where there is one.
async fn haproxy(here: SocketAddr, other: Option<SocketAddr>) -> Option<Proxy> {
    let (dir, port) = (tempfile::tempdir().unwrap(), free_port());
    let mut config = include_str!("../../contrib/haproxy/haproxy.cfg").to_owned();
    for (example, ours) in [
        (
            "bind :443 ssl crt /etc/haproxy/certs/ alpn h2,http/1.1",
            format!("bind 127.0.0.1:{port}"),
        ),
        ("server here 127.0.0.1:8711", format!("server here {here}")),
        (
            "#server other 192.0.2.20:8711",
            other.map_or_else(String::new, |other| format!("server other {other}")),
        ),
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
    let Some(haproxy) = haproxy(house.address, None).await else { return };
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

/// A host that says its name to whatever it is asked.
async fn named(name: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    if !matches!(stream.read_buf(&mut head).await, Ok(1..)) {
                        return;
                    }
                }
                let length = name.len();
                let answer = format!(
                    "HTTP/1.1 200 OK\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{name}"
                );
                let _ = stream.write_all(answer.as_bytes()).await;
            });
        }
    });
    address
}

/// Each host would load a key's model, whose other half of requests the other has.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_haproxy_of_contrib_keeps_the_clients_of_a_key_at_one_host() {
    let (here, other) = (named("here").await, named("other").await);
    let Some(haproxy) = haproxy(here, Some(other)).await else { return };
    let met = async |header: String| {
        let head = "GET /v1/models HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n";
        let answer = send(&haproxy, &format!("{head}{header}\r\n\r\n")).await;
        let (head, name) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200 "), "{answer}");
        name.to_owned()
    };
    let mut all = BTreeSet::new();
    for n in 0..16 {
        let host = met(format!("x-api-key: sk-{n}")).await;
        for same in [
            format!("x-api-key: sk-{n}"),
            format!("authorization: Bearer sk-{n}"),
            format!("sec-websocket-protocol: realtime, openai-insecure-api-key.sk-{n}"),
            format!("sec-websocket-protocol: openai-insecure-api-key.sk-{n}, realtime"),
        ] {
            assert_eq!(met(same.clone()).await, host, "{same}");
        }
        all.insert(host);
    }
    assert_eq!(all.len(), 2, "one host had all keys");
}

/// What curl, which takes any certificate here, is told by the proxy.
async fn curl(proxy: &Proxy, path: &str, args: &[&str]) -> String {
    let url = format!("https://127.0.0.1:{}{path}", proxy.port);
    let mut curl = Command::new("curl");
    curl.args(["--insecure", "--silent", "--no-buffer", "--include", "--max-time", "90"]);
    let output = curl.args(args).arg(url).output().await.unwrap();
    String::from_utf8(output.stdout).unwrap()
}

/// The engine sends its second token after more than a minute: who sees the first before has it from a proxy that gathers nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_nginx_of_contrib_passes_each_event_on_at_once_and_keeps_metrics_in() {
    let house = House::new("", &[("FAKE_RATE", "0.01")], |_| {}).await;
    let Some(nginx) = nginx_of_contrib(&house).await else { return };
    let body = r#"{"model":"org/fake","stream":true,"max_tokens":5,"messages":[{"role":"user","content":"hi"}]}"#;
    let key = format!("authorization: Bearer {KEY}");
    let mut curl_stream = Command::new("curl")
        .args(["--insecure", "--silent", "--no-buffer", "--header", &key, "--data", body])
        .arg(format!("https://127.0.0.1:{}/v1/chat/completions", nginx.port))
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(curl_stream.stdout.take().unwrap()).lines();
    let first = async {
        // The first with text comes after one that says who speaks.
        while let Some(line) = lines.next_line().await.unwrap() {
            if line.contains("\"content\":\"") {
                return line;
            }
        }
        panic!("the stream ended without a token")
    };
    let first = tokio::time::timeout(Duration::from_secs(40), first).await;
    assert!(first.unwrap().starts_with("data: {"));
    drop(curl_stream);

    // A picture is larger than what nginx takes by itself.
    let large = format!(
        r#"{{"model":"org/fake","max_tokens":1,"messages":[{{"role":"user","content":"{}"}}]}}"#,
        "a".repeat(2 << 20)
    );
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("large.json");
    std::fs::write(&file, large).unwrap();
    let data = format!("@{}", file.display());
    let args = ["--header", &key, "--data-binary", &data];
    let answer = curl(&nginx, "/v1/chat/completions", &args).await;
    assert!(answer.contains("HTTP/1.1 200 "), "{answer}");

    for path in ["/metrics", "/metrics/models/org/fake", "/metrics?x", "/%6Detrics", "//metrics"] {
        let refused = curl(&nginx, path, &[]).await;
        assert!(refused.starts_with("HTTP/1.1 40"), "{path}: {refused}");
        assert!(!refused.contains("hostler_"), "{path}: {refused}");
    }
    // Without a key it is Hostler that says so.
    let refused = curl(&nginx, "/v1/models", &[]).await;
    assert!(refused.contains("HTTP/1.1 401 ") && refused.contains("\"error\""), "{refused}");
}
