//! What a hostile client can get *through*: the raw cases of `raw`, played against Hostler in front of real servers, and what
//! those saw counted. A request is smuggled if a back end saw one that Hostler did not grant, or saw it otherwise.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use hostler::supervisor::ports::Endpoint;

use crate::house::{Happened, Setup, house};
use crate::raw;
use crate::wire::{self, CHAT};

/// A server that is ended with the test.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/api/raw").join(name)
}

/// What a script prints last.
fn made_by(name: &str) -> PathBuf {
    let output = Command::new(script(name)).stderr(Stdio::inherit()).output().unwrap();
    assert!(output.status.success(), "{name}: {}", output.status);
    String::from_utf8(output.stdout).unwrap().lines().last().unwrap().into()
}

async fn listens(socket: &Path) {
    let up = async {
        while tokio::net::UnixStream::connect(socket).await.is_err() {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    wire::soon("a back end to listen", up).await;
}

/// One request as a back end saw it.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    line: String,
    body: Option<usize>,
}

/// Plays all cases against a back end and compares what it saw with what was granted.
async fn play(socket: PathBuf, seen: impl Fn() -> Vec<Seen>) {
    listens(&socket).await;
    let endpoint = Some(Endpoint::Unix(socket));
    let mut house = house(Setup { endpoint, ..raw::setup() }).await;
    let before = seen().len();
    let all = raw::cases();
    let mut granted = 0;
    for case in &all {
        let _ = raw::answer(&house, &case.raw).await;
        // All that a case could ask for it has asked by now: its last answer has come.
        while let Ok(happened) = house.supervisor.happened.try_recv() {
            granted += usize::from(matches!(happened, Happened::Asked(_)));
        }
    }
    assert!(all.len() >= 300 && granted >= 40, "{granted} of {}", all.len());
    let arrived = async {
        while seen().len() < before + granted {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    wire::soon("what was granted to arrive", arrived).await;
    let seen = seen();
    let others: Vec<&Seen> = seen[before..]
        .iter()
        .filter(|s| s.line != format!("POST {CHAT}") || s.body.is_some_and(|n| n < 13))
        .collect();
    assert!(others.is_empty(), "smuggled: {others:?}");
    assert_eq!(seen.len() - before, granted, "the back end saw more than was granted");
}

/// `METHOD PATH LENGTH` lines.
fn lines(file: &Path) -> Vec<Seen> {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let parse = |line: &str| {
        let (line, length) = line.rsplit_once(' ').unwrap();
        Seen { line: line.to_owned(), body: length.parse().ok() }
    };
    text.lines().map(parse).collect()
}

async fn uvicorn(parser: &str) {
    let dir = tempfile::tempdir().unwrap();
    let (socket, log) = (dir.path().join("e.sock"), dir.path().join("seen"));
    let mut command = Command::new(made_by("uvicorn.sh"));
    command.arg(script("seen.py")).arg(&socket).arg(&log).arg(parser);
    let _server = Server(command.spawn().unwrap());
    play(socket, || lines(&log)).await;
}

#[tokio::test]
async fn fault_24_nothing_is_smuggled_to_uvicorn_with_httptools() {
    uvicorn("httptools").await;
}

#[tokio::test]
async fn fault_24_nothing_is_smuggled_to_uvicorn_with_h11() {
    uvicorn("h11").await;
}

#[tokio::test]
async fn fault_24_nothing_is_smuggled_to_nginx() {
    let dir = tempfile::tempdir().unwrap();
    let (socket, log) = (dir.path().join("e.sock"), dir.path().join("seen"));
    let (d, config) = (dir.path().display(), dir.path().join("nginx.conf"));
    let text = format!(
        "daemon off; master_process off; pid {d}/pid; error_log {d}/error.log crit; events {{}}\n\
         http {{ log_format seen '$request_method $request_uri $content_length'; access_log {d}/seen seen;\n\
         client_body_temp_path {d}/b; proxy_temp_path {d}/p; fastcgi_temp_path {d}/f; uwsgi_temp_path {d}/u;\n\
         scgi_temp_path {d}/s; server {{ listen unix:{d}/e.sock; location / {{ return 200 '{{}}'; }} }} }}\n"
    );
    std::fs::write(&config, text).unwrap();
    let mut command = Command::new("/usr/sbin/nginx");
    command.arg("-p").arg(dir.path()).arg("-c").arg(&config).stderr(Stdio::null());
    let _server = Server(command.spawn().expect("nginx; run tests/host/prereqs.sh"));
    play(socket, || lines(&log)).await;
}

#[tokio::test]
async fn fault_24_nothing_is_smuggled_to_llama_server() {
    let dir = tempfile::tempdir().unwrap();
    let root = made_by("llama.sh");
    let model = made_by("../../../contrib/engines/models/count.sh");
    let (socket, log) = (dir.path().join("e.sock"), dir.path().join("log"));
    let libraries = root.join("usr/lib/x86_64-linux-gnu");
    let mut command = Command::new(libraries.join("ld-linux-x86-64.so.2"));
    command
        .arg("--library-path")
        .arg(format!("{0}:{0}/llama", libraries.display()))
        .arg(root.join("usr/bin/llama-server"))
        .args(["--host", socket.to_str().unwrap(), "-m", model.to_str().unwrap()])
        .args(["-c", "512", "-n", "4", "-t", "1", "--no-ui"])
        .env("GGML_BACKEND_PATH", libraries.join("ggml/backends0/libggml-cpu-x64.so"))
        .stdout(std::fs::File::create(&log).unwrap())
        .stderr(std::fs::File::options().append(true).open(&log).unwrap());
    let _server = Server(command.spawn().unwrap());
    listens(&socket).await;
    // It writes no log of requests, so its answers are counted, on a tap before it.
    let tap = dir.path().join("tap.sock");
    let answers = tapped(&tap, socket);
    let seen = || {
        let answers = answers.lock().unwrap();
        let known = format!("POST {CHAT}");
        let other = "a path that it does not know".to_owned();
        let line =
            |text: &str| if text.contains("File Not Found") { &other } else { &known }.clone();
        let texts = answers.iter().map(|bytes| String::from_utf8_lossy(bytes).into_owned());
        let each = texts.flat_map(|text| {
            let heads = text.matches("HTTP/1.1 ").count();
            vec![line(&text); heads]
        });
        each.map(|line| Seen { line, body: None }).collect()
    };
    play(tap, seen).await;
}

/// What came back on each connection through a socket that leads to another.
fn tapped(tap: &Path, to: PathBuf) -> Arc<Mutex<Vec<Vec<u8>>>> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let all: Arc<Mutex<Vec<Vec<u8>>>> = Arc::default();
    let (listener, kept) = (tokio::net::UnixListener::bind(tap).unwrap(), all.clone());
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let (to, kept) = (to.clone(), kept.clone());
            tokio::spawn(async move {
                let Ok(server) = tokio::net::UnixStream::connect(to).await else { return };
                let at = {
                    let mut kept = kept.lock().unwrap();
                    kept.push(Vec::new());
                    kept.len() - 1
                };
                let (mut from_client, mut to_client) = client.into_split();
                let (mut from_server, mut to_server) = server.into_split();
                let up = tokio::spawn(async move {
                    let _ = tokio::io::copy(&mut from_client, &mut to_server).await;
                });
                let mut buffer = [0; 4096];
                while let Ok(n @ 1..) = from_server.read(&mut buffer).await {
                    kept.lock().unwrap()[at].extend_from_slice(&buffer[..n]);
                    let _ = to_client.write_all(&buffer[..n]).await;
                }
                up.abort();
            });
        }
    });
    all
}
