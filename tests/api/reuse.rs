//! Connections to engines: kept where that is safe, and never at the price of a request.

use std::time::Duration;

use hostler::supervisor::ports::Endpoint;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

use crate::house::{House, Setup, house};
use crate::wire::{BODY, CHAT, Reply, post, soon};

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}";

/// A house before a listener that the test serves itself.
async fn before(
    listener: fn(&std::path::Path) -> UnixListener,
) -> (House, UnixListener, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("mine.sock");
    let listener = listener(&path);
    let endpoint = Some(Endpoint::Unix(path));
    (house(Setup { endpoint, ..Setup::default() }).await, listener, dir)
}

async fn accept(listener: &UnixListener) -> UnixStream {
    soon("a connection to the engine", listener.accept()).await.unwrap().0
}

/// Reads one request, head and body.
async fn request(engine: &mut UnixStream) {
    let mut raw = Vec::new();
    let read = async {
        while !raw.ends_with(BODY.as_bytes()) {
            assert_ne!(engine.read_buf(&mut raw).await.unwrap(), 0, "closed");
        }
    };
    soon("a request", read).await;
    assert_eq!(raw.windows(5).filter(|w| w == b"POST ").count(), 1);
}

/// Asks while the engine does `work`.
async fn ask(house: &House, work: impl Future<Output = ()>) -> u16 {
    let (reply, ()) = tokio::join!(house.ask(post(CHAT, BODY)), work);
    reply.status
}

fn bind(path: &std::path::Path) -> UnixListener {
    UnixListener::bind(path).unwrap()
}

async fn answer(engine: &mut UnixStream, text: &str) {
    request(engine).await;
    engine.write_all(text.as_bytes()).await.unwrap();
}

/// The engine gives these answers, all on its first connection, which is then kept.
async fn over_one_connection(
    texts: &[&str],
) -> (House, UnixListener, UnixStream, tempfile::TempDir) {
    let (house, listener, dir) = before(bind).await;
    let mut engine = None;
    for text in texts {
        let work = async {
            if engine.is_none() {
                engine = Some(accept(&listener).await);
            }
            answer(engine.as_mut().unwrap(), text).await;
        };
        assert_eq!(ask(&house, work).await, 200);
    }
    (house, listener, engine.unwrap(), dir)
}

#[tokio::test]
async fn one_connection_carries_many_requests() {
    over_one_connection(&[OK, OK, OK]).await;
}

#[tokio::test]
async fn a_stream_that_ends_as_it_should_leaves_its_connection() {
    const STREAM: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n\
                          9\r\ndata: 1\n\n\r\n0\r\n\r\n";
    let (house, listener, engine, _dir) = over_one_connection(&[STREAM, STREAM, OK]).await;
    // An engine that closes behind a stream, and has not said so.
    let work = async {
        drop(engine);
        answer(&mut accept(&listener).await, OK).await;
    };
    assert_eq!(ask(&house, work).await, 200);
}

#[tokio::test]
async fn a_kept_connection_that_dies_costs_no_request() {
    let (house, listener, mut engine, _dir) = over_one_connection(&[OK]).await;
    let second = async {
        // It takes the request in and closes, as an engine does whose patience ended at that moment.
        request(&mut engine).await;
        drop(engine);
        answer(&mut accept(&listener).await, OK).await;
    };
    assert_eq!(ask(&house, second).await, 200);
}

/// What a client is told whose engine goes with the request in its hands.
async fn lost(work: impl AsyncFnOnce(UnixStream, UnixListener)) -> Reply {
    let (house, listener, mut engine, _dir) = over_one_connection(&[OK]).await;
    let second = async {
        request(&mut engine).await;
        work(engine, listener).await;
    };
    tokio::join!(house.ask(post(CHAT, BODY)), second).0
}

#[tokio::test]
async fn an_engine_that_goes_for_good_was_asked_and_the_client_is_told_so() {
    let reply = lost(async |engine, listener| drop((engine, listener))).await;
    reply.error(502, "engine_failed");
    assert!(!reply.headers.contains_key("retry-after"), "it was asked: {reply:?}");
}

#[tokio::test]
async fn what_an_engine_has_worked_on_is_not_asked_again() {
    let reply = lost(async |engine, listener| {
        // It works; then its process ends.
        tokio::time::sleep(Duration::from_millis(1100)).await;
        drop(engine);
        let again = tokio::time::timeout(Duration::from_millis(300), listener.accept()).await;
        assert!(again.is_err(), "nobody asks again");
    })
    .await;
    reply.error(502, "engine_failed");
}

#[tokio::test]
async fn what_was_begun_is_not_asked_again() {
    let (house, _listener, mut engine, _dir) = over_one_connection(&[OK]).await;
    let second = async {
        answer(&mut engine, "HTTP/1.1 200 OK\r\ncont").await;
        drop(engine);
    };
    assert_eq!(ask(&house, second).await, 502);
}

#[tokio::test]
async fn none_is_kept_by_llama_server_or_with_a_rest() {
    for text in [
        "HTTP/1.1 200 OK\r\nserver: llama.cpp\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n0",
        "HTTP/1.1 200 OK\r\nserver: llama.cpp\r\ncontent-length: 2\r\n\r\n{}",
        "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\n{}",
        "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
    ] {
        let (house, listener, _dir) = before(bind).await;
        let work = async {
            let mut engine = accept(&listener).await;
            answer(&mut engine, text).await;
            let mut byte = [0; 1];
            let end = engine.read(&mut byte);
            assert_eq!(soon("the end of the connection", end).await.unwrap(), 0, "{text}");
        };
        assert_eq!(ask(&house, work).await, 200);
    }
}
