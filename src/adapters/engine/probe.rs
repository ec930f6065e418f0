//! The health probe.
//!
//! Purpose: one question, one answer. Owner: the executor asks through the port. Invariants: one that loads is waited for no longer
//! than [`DEADLINE`], any other as long as who asks has it ([`super::check`]); "not yet" is never an error: rootless podman
//! accepts connections to a published port and resets them until the engine listens.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::header::{self, HeaderValue};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use crate::supervisor::ports::Endpoint;
use crate::types::{EngineKind, sandbox};

/// Connecting, asking and the whole answer. An engine that loads weights with all its threads may miss it: that is "not yet".
const DEADLINE: Duration = Duration::from_secs(1);
/// The most that a health answer is read.
const BODY_MAX: usize = 64 << 10;
/// With it an engine may make files in a directory of the service user's.
const OTHERS_WRITE: u32 = 0o002;
/// How many names an engine may leave in its socket's directory; both engines make one, the socket.
const NAMES_MAX: usize = 64;
/// How large all files there may be together.
const FILES_MAX: u64 = 64 << 10;

/// What an engine says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Health {
    Ready,
    /// It loads, or does not listen.
    NotYet,
    /// It lives, and has not got to the question: its queue of connections is full.
    Busy,
}

/// Asks `GET /health` of an engine that loads: whether it is ready. One that is has its directory closed.
///
/// # Errors
/// When it answers what a healthy engine never answers.
pub(super) async fn health(engine: EngineKind, endpoint: &Endpoint) -> Result<bool, String> {
    let said = tokio::time::timeout(DEADLINE, say(engine, endpoint)).await;
    let ready = said.unwrap_or(Ok(Health::Busy))? == Health::Ready;
    match endpoint {
        Endpoint::Unix(path) if ready => close(path).map(|()| true),
        Endpoint::Unix(_) | Endpoint::Tcp(..) => Ok(ready),
    }
}

/// Lets an engine that is ready change nothing more in its socket's directory, where it is one of "the others": it has its socket,
/// and keeps it as long as it lives, asleep or not. It could fill the host's memory there, or put something else in its socket's place.
/// What it made before would stay as long: with much of it no other engine has room for a socket, and the next daemon none for its proof.
/// So that is judged once, and the directory is the engine's again where it does not pass, to take away what is too much; one that an
/// earlier daemon has let in serves on.
///
/// # Errors
/// When it cannot be closed, or holds more than an engine has to do with there.
fn close(socket: &Path) -> Result<(), String> {
    let Some(dir) = socket.parent() else { return Ok(()) };
    let shown = dir.display();
    let unseen = |e| format!("its directory {shown} could not be looked into: {e}");
    let before = fs::metadata(dir).map_err(unseen)?.permissions();
    let set = |permissions| {
        let set = fs::set_permissions(dir, permissions);
        set.map_err(|e| format!("its directory {shown} could not be closed: {e}"))
    };
    if before.mode() & OTHERS_WRITE == 0 {
        return Ok(());
    }
    // First: nothing comes to what is looked at.
    set(Permissions::from_mode(0o755))?;
    let Some(what) = too_much(dir).map_err(unseen)? else { return Ok(()) };
    set(before)?;
    Err(format!(
        "it is not used, for it made {what} in its socket's directory {shown}, which takes the room of all engines' sockets; its args or env have to \
         name a place below /tmp for files of its own"
    ))
}

/// What of an engine's own in that directory is too much. No link is followed and no directory gone into; no size is named, for a file
/// may grow, and the same trouble is told once.
fn too_much(dir: &Path) -> io::Result<Option<String>> {
    let mut bytes = 0;
    for (before, entry) in fs::read_dir(dir)?.enumerate() {
        if before == NAMES_MAX {
            return Ok(Some(format!("more than {NAMES_MAX} names")));
        }
        let entry = entry?;
        let what = entry.metadata()?;
        if what.is_dir() {
            return Ok(Some(format!("a directory ({:?})", entry.file_name())));
        }
        if what.is_file() {
            // With holes it holds less than its size, and may hold that tomorrow.
            bytes += what.len().max(512 * what.blocks());
        }
        if bytes > FILES_MAX {
            return Ok(Some(format!("files of more than {} KiB", FILES_MAX >> 10)));
        }
    }
    Ok(None)
}

/// Asks `GET /health`, however long that takes.
///
/// # Errors
/// When it answers what a healthy engine never answers.
pub(super) async fn say(engine: EngineKind, endpoint: &Endpoint) -> Result<Health, String> {
    match endpoint {
        Endpoint::Unix(path) => match Endpoint::connect_unix(path).await {
            Ok(stream) => ask(engine, stream).await,
            Err(error) => not_connected(&error, endpoint),
        },
        Endpoint::Tcp(address, _) => match TcpStream::connect(address).await {
            Ok(stream) => ask(engine, stream).await,
            Err(error) => not_connected(&error, endpoint),
        },
    }
}

fn not_connected(error: &io::Error, endpoint: &Endpoint) -> Result<Health, String> {
    // A Unix listener whose queue is full.
    if error.kind() == io::ErrorKind::WouldBlock {
        return Ok(Health::Busy);
    }
    let not_yet = matches!(
        error.kind(),
        io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::NotFound
            | io::ErrorKind::TimedOut
    );
    if not_yet {
        return Ok(Health::NotYet);
    }
    Err(match endpoint {
        Endpoint::Unix(path) => format!("cannot connect to {}: {error}", path.display()),
        Endpoint::Tcp(address, _) => {
            format!("cannot connect to {address}: {}", sandbox::unconnected(error))
        }
    })
}

async fn ask<S>(engine: EngineKind, stream: S) -> Result<Health, String>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let mut request = Request::new(Empty::<Bytes>::new());
    *request.uri_mut() = hyper::Uri::from_static("/health");
    let headers = request.headers_mut();
    headers.insert(header::HOST, HeaderValue::from_static("localhost"));
    headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    let (mut sender, connection) = match http1::handshake(TokioIo::new(stream)).await {
        Ok(pair) => pair,
        Err(error) => return broken(&error),
    };
    let asked = async {
        match sender.send_request(request).await {
            Ok(response) => judge(engine, response).await,
            Err(error) => broken(&error),
        }
    };
    tokio::pin!(asked);
    tokio::pin!(connection);
    // The connection is driven here, not by a task of its own, so that the deadline ends both.
    tokio::select! {
        answer = &mut asked => answer,
        // It may end before its last answer is looked at.
        _ = &mut connection => asked.await,
    }
}

/// A connection that ends without an answer is one that podman's port forwarder took, or one of an engine that is only
/// just starting or ending. Bytes that are not HTTP are another matter.
fn broken(error: &hyper::Error) -> Result<Health, String> {
    if error.is_parse() {
        return Err(format!("/health answered something that is not HTTP: {error}"));
    }
    Ok(Health::NotYet)
}

async fn judge(engine: EngineKind, response: Response<Incoming>) -> Result<Health, String> {
    let status = response.status();
    if status == StatusCode::SERVICE_UNAVAILABLE {
        return Ok(Health::NotYet);
    }
    if status != StatusCode::OK {
        return Err(format!("/health answered {status}; expected 200, or 503 while loading"));
    }
    match engine {
        // Its body is empty.
        EngineKind::Vllm => Ok(Health::Ready),
        EngineKind::Llamacpp => {
            let Ok(body) = Limited::new(response.into_body(), BODY_MAX).collect().await else {
                return Ok(Health::NotYet);
            };
            let body = body.to_bytes();
            let value: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
            if value.get("status").and_then(serde_json::Value::as_str) == Some("ok") {
                return Ok(Health::Ready);
            }
            let text = String::from_utf8_lossy(&body[..body.len().min(200)]).into_owned();
            Err(format!("/health answered 200 with {text:?}; expected {{\"status\":\"ok\"}}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, UnixListener};

    use super::*;

    /// One answer from a listener that speaks whatever it is told.
    async fn answer(engine: EngineKind, answer: &'static str) -> Result<bool, String> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = Endpoint::Tcp(listener.local_addr().unwrap(), None);
        let serve = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = [0; 1024];
            let n = stream.read(&mut head).await.unwrap();
            assert!(head[..n].starts_with(b"GET /health HTTP/1.1\r\n"));
            stream.write_all(answer.as_bytes()).await.unwrap();
        });
        let result = health(engine, &endpoint).await;
        serve.await.unwrap();
        result
    }

    const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 15\r\n\r\n{\"status\":\"ok\"}";
    const EMPTY: &str = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
    const LOADING: &str = "HTTP/1.1 503 Loading\r\ncontent-length: 0\r\n\r\n";

    #[tokio::test]
    async fn answers() {
        use EngineKind::{Llamacpp, Vllm};
        assert_eq!(answer(Llamacpp, OK).await, Ok(true));
        assert_eq!(answer(Vllm, EMPTY).await, Ok(true));
        assert_eq!(answer(Vllm, OK).await, Ok(true));
        assert_eq!(answer(Llamacpp, LOADING).await, Ok(false));
        assert_eq!(answer(Vllm, LOADING).await, Ok(false));
        assert_eq!(answer(Vllm, "").await, Ok(false), "accepted, then closed");
        assert!(answer(Llamacpp, EMPTY).await.is_err());
        for odd in ["404 Not Found", "500 x", "401 x"] {
            let text = format!("HTTP/1.1 {odd}\r\ncontent-length: 0\r\n\r\n").leak();
            assert!(answer(Vllm, text).await.unwrap_err().contains(&odd[..3]));
        }
        assert!(answer(Vllm, "220 smtp ready\r\n\r\n").await.unwrap_err().contains("not HTTP"));
    }

    #[tokio::test]
    async fn nobody_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("e.sock");
        let endpoint = Endpoint::Unix(path.clone());
        assert_eq!(health(EngineKind::Vllm, &endpoint).await, Ok(false), "no such socket");
        drop(UnixListener::bind(&path).unwrap());
        assert_eq!(health(EngineKind::Vllm, &endpoint).await, Ok(false), "refused");
        std::fs::rename(&path, dir.path().join("other")).unwrap();
        std::os::unix::fs::symlink("other", &path).unwrap();
        let why = health(EngineKind::Vllm, &endpoint).await.unwrap_err();
        assert!(why.contains("e.sock: ") && why.contains("a link"), "{why}");
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        assert_eq!(health(EngineKind::Vllm, &Endpoint::Tcp(address, None)).await, Ok(false));
    }

    #[tokio::test]
    async fn the_directory_of_one_that_is_ready_is_closed_to_it() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("i");
        std::fs::create_dir(&dir).unwrap();
        std::fs::set_permissions(&dir, Permissions::from_mode(0o777)).unwrap();
        let mode = || std::fs::metadata(&dir).unwrap().permissions().mode() & 0o7777;
        let listener = UnixListener::bind(dir.join("e.sock")).unwrap();
        let endpoint = Endpoint::Unix(dir.join("e.sock"));
        for (said, open) in [(LOADING, 0o777), (OK, 0o755), (OK, 0o755)] {
            let serve = async {
                let (mut stream, _) = listener.accept().await.unwrap();
                assert!(stream.read(&mut [0; 1024]).await.unwrap() > 0);
                stream.write_all(said.as_bytes()).await.unwrap();
            };
            let (ready, ()) = tokio::join!(health(EngineKind::Llamacpp, &endpoint), serve);
            assert_eq!((ready, mode()), (Ok(said == OK), open));
        }
    }

    #[test]
    fn what_an_engine_made_beside_its_socket_is_looked_at_when_it_is_ready() {
        let said = |make: &dyn Fn(&Path)| {
            let root = tempfile::tempdir().unwrap();
            let dir = root.path().join("i");
            fs::create_dir(&dir).unwrap();
            fs::set_permissions(&dir, Permissions::from_mode(0o777)).unwrap();
            let _socket = std::os::unix::net::UnixListener::bind(dir.join("e.sock")).unwrap();
            make(&dir);
            let closed = close(&dir.join("e.sock"));
            // One that is not let in may take away what is too much.
            let open = if closed.is_ok() { 0o755 } else { 0o777 };
            assert_eq!(fs::metadata(&dir).unwrap().permissions().mode() & 0o777, open);
            // And one that was, by whichever daemon, serves on.
            fs::set_permissions(&dir, Permissions::from_mode(0o755)).unwrap();
            assert_eq!(close(&dir.join("e.sock")), Ok(()));
            closed.err().unwrap_or_default()
        };
        let file = |dir: &Path, n: usize, size: usize| {
            fs::write(dir.join(n.to_string()), vec![1; size]).unwrap();
        };
        assert_eq!(said(&|_| {}), "");
        assert_eq!(said(&|dir| (0..4).for_each(|n| file(dir, n, 16 << 10))), "");
        assert_eq!(said(&|dir| (1..NAMES_MAX).for_each(|n| file(dir, n, 0))), "");
        // Wherever they lead, they take a name each.
        let link = |dir: &Path| std::os::unix::fs::symlink("/usr", dir.join("link")).unwrap();
        assert_eq!(said(&link), "");
        let sparse = |dir: &Path| {
            fs::File::create(dir.join("x")).unwrap().set_len(1 << 40).unwrap();
        };
        for (make, what) in [
            (
                &(|dir: &Path| (0..5).for_each(|n| file(dir, n, 16 << 10))) as &dyn Fn(&Path),
                "files of more than 64 KiB",
            ),
            (&(|dir: &Path| (0..NAMES_MAX).for_each(|n| file(dir, n, 0))), "more than 64 names"),
            (&(|dir: &Path| fs::create_dir(dir.join("d\n")).unwrap()), "a directory (\"d\\n\")"),
            (&sparse, "files of more than 64 KiB"),
        ] {
            let why = said(make);
            assert!(
                why.contains(what) && why.contains("/i, ") && why.contains("below /tmp"),
                "{why}"
            );
        }
    }

    #[tokio::test]
    async fn reset_and_silence() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = Endpoint::Tcp(listener.local_addr().unwrap(), None);
        let serve = tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            stream.set_zero_linger().unwrap();
            drop(stream);
            listener
        });
        assert_eq!(health(EngineKind::Llamacpp, &endpoint).await, Ok(false), "reset");
        // Nobody accepts any more; the kernel's queue does.
        let _listener = serve.await.unwrap();
        let start = std::time::Instant::now();
        assert_eq!(health(EngineKind::Llamacpp, &endpoint).await, Ok(false), "silent");
        assert!(start.elapsed() < 2 * DEADLINE);
    }
}
