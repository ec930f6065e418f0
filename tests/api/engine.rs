//! A scripted engine on raw sockets: it writes exactly the bytes it is told and reports what it sees.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hostler::supervisor::ports::Endpoint;
use hostler::types::Secret;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc};

use crate::wire::{self, Io};

/// What it does after it has read a request.
#[derive(Clone, Debug)]
pub enum Step {
    Send(Vec<u8>),
    /// Waits until the test lets it go on, once for each permit.
    Gate(Arc<Semaphore>),
    Close,
    /// RST, with TCP.
    Reset,
}

/// What an engine that is reached over TCP asks for.
pub const KEY: &str = "the-engines-own";

pub fn send(bytes: impl AsRef<[u8]>) -> Step {
    Step::Send(bytes.as_ref().to_vec())
}

/// What it saw.
#[derive(Debug)]
pub enum Seen {
    Request(Request),
    /// The peer closed or reset a connection that the script had left open.
    Left,
}

#[derive(Debug)]
pub struct Request {
    pub line: String,
    pub headers: BTreeMap<String, String>,
    pub body: Vec<u8>,
}

pub struct Engine {
    pub endpoint: Endpoint,
    pub seen: mpsc::UnboundedReceiver<Seen>,
}

/// Where it listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    Unix,
    Tcp,
}

impl Engine {
    pub async fn start(family: Family, dir: &Path, script: Vec<Step>) -> Self {
        let (report, seen) = mpsc::unbounded_channel();
        let script = Arc::new(script);
        let endpoint = match family {
            Family::Unix => {
                let path: PathBuf = dir.join("e.sock");
                let listener = UnixListener::bind(&path).unwrap();
                tokio::spawn(async move {
                    while let Ok((stream, _)) = listener.accept().await {
                        tokio::spawn(serve_unix(stream, script.clone(), report.clone()));
                    }
                });
                Endpoint::Unix(path)
            }
            Family::Tcp => {
                let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
                let address: SocketAddr = listener.local_addr().unwrap();
                tokio::spawn(async move {
                    while let Ok((stream, _)) = listener.accept().await {
                        tokio::spawn(serve_tcp(stream, script.clone(), report.clone()));
                    }
                });
                Endpoint::Tcp(address, Some(Secret(KEY.into())))
            }
        };
        Self { endpoint, seen }
    }

    pub async fn request(&mut self) -> Request {
        match wire::soon("a request at the engine", self.seen.recv()).await.unwrap() {
            Seen::Request(request) => request,
            Seen::Left => panic!("the peer left before it asked"),
        }
    }

    pub async fn left(&mut self) {
        match wire::soon("the engine's peer to leave", self.seen.recv()).await.unwrap() {
            Seen::Left => {}
            Seen::Request(request) => panic!("an unexpected request: {request:?}"),
        }
    }

    /// Asserts that no request has come so far.
    pub fn untouched(&mut self) {
        if let Ok(seen) = self.seen.try_recv() {
            panic!("the engine saw {seen:?}");
        }
    }
}

async fn serve_unix(
    mut s: UnixStream,
    script: Arc<Vec<Step>>,
    report: mpsc::UnboundedSender<Seen>,
) {
    play(&mut s, &script, &report).await;
}

async fn serve_tcp(mut s: TcpStream, script: Arc<Vec<Step>>, report: mpsc::UnboundedSender<Seen>) {
    if play(&mut s, &script, &report).await {
        s.set_zero_linger().unwrap();
    }
}

/// Plays the script on one connection; `true`: end it with a reset.
async fn play<S: Io>(s: &mut S, script: &[Step], report: &mpsc::UnboundedSender<Seen>) -> bool {
    let Some(request) = read_request(s).await else { return false };
    let mut next = Some(request);
    while let Some(request) = next.take() {
        let _ = report.send(Seen::Request(request));
        match once(s, script, report).await {
            Some(reset) => return reset,
            None => next = read_request(s).await,
        }
    }
    let _ = report.send(Seen::Left);
    false
}

/// Plays the script for one request; `None`: the connection stays open.
async fn once<S: Io>(
    s: &mut S,
    script: &[Step],
    report: &mpsc::UnboundedSender<Seen>,
) -> Option<bool> {
    for step in script {
        match step {
            Step::Send(bytes) => {
                if s.write_all(bytes).await.is_err() {
                    let _ = report.send(Seen::Left);
                    return Some(false);
                }
            }
            Step::Gate(gate) => gate.acquire().await.unwrap().forget(),
            Step::Close => return Some(false),
            Step::Reset => return Some(true),
        }
    }
    None
}

async fn read_request<S: Io>(s: &mut S) -> Option<Request> {
    let mut raw = Vec::new();
    let end = loop {
        if let Some(at) = raw.windows(4).position(|w| w == b"\r\n\r\n") {
            break at;
        }
        if s.read_buf(&mut raw).await.ok()? == 0 {
            return None;
        }
    };
    let head = String::from_utf8(raw[..end].to_vec()).unwrap();
    let mut lines = head.split("\r\n");
    let line = lines.next().unwrap().to_owned();
    let headers: BTreeMap<String, String> = lines
        .map(|l| l.split_once(':').unwrap())
        .map(|(n, v)| (n.to_ascii_lowercase(), v.trim().to_owned()))
        .collect();
    let length: usize = headers.get("content-length").map_or(0, |n| n.parse().unwrap());
    let mut body = raw.split_off(end + 4);
    while body.len() < length {
        if s.read_buf(&mut body).await.ok()? == 0 {
            return None;
        }
    }
    Some(Request { line, headers, body })
}
