//! Large bodies that go to the engine as they come: what it gets, and what clients are told.

use std::time::{Duration, Instant};

use hostler::supervisor::ports::Endpoint;
use hostler::types::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixListener, UnixStream};

use crate::house::{Happened, House, Setup, house};
use crate::wire::{BODY, CHAT, Client, Reply, post, post_with, soon};

pub const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}";
/// More than all sockets on the way hold together.
pub const LARGE: usize = 24 << 20;
pub const SHORT: Duration = Duration::from_millis(300);

/// A large body with its model in front, and what is behind the large part.
pub fn body(behind: &str) -> Vec<u8> {
    let text = "a".repeat(LARGE);
    format!(r#"{{"model":"m","messages":[{{"role":"user","content":"{text}"}}]{behind}"#)
        .into_bytes()
}

/// A house before a listener that the test serves itself, whose clients all count as fast.
pub async fn before(change: impl FnOnce(&mut Setup)) -> (House, UnixListener, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("mine.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let mut setup = Setup { endpoint: Some(Endpoint::Unix(path)), ..Setup::default() };
    setup.limits.flow_pace = Duration::from_secs(3600);
    change(&mut setup);
    (house(setup).await, listener, dir)
}

/// The engine's side of one connection.
pub struct Taker {
    stream: UnixStream,
    pub head: String,
    pub body: Vec<u8>,
}

impl Taker {
    pub async fn accept(listener: &UnixListener) -> Self {
        let (mut stream, _) = soon("a connection to the engine", listener.accept()).await.unwrap();
        let mut raw = Vec::new();
        let head = async {
            loop {
                if let Some(at) = raw.windows(4).position(|w| w == b"\r\n\r\n") {
                    break at + 4;
                }
                assert_ne!(stream.read_buf(&mut raw).await.unwrap(), 0, "closed within the head");
            }
        };
        let end = soon("a head", head).await;
        let body = raw.split_off(end);
        Self { stream, head: String::from_utf8(raw).unwrap(), body }
    }

    /// Takes so many bytes of the body, or what there is of it: `false`.
    pub async fn take(&mut self, count: usize) -> bool {
        let read = async {
            while self.body.len() < count {
                if !matches!(self.stream.read_buf(&mut self.body).await, Ok(n) if n > 0) {
                    return false;
                }
            }
            true
        };
        soon("a body", read).await
    }

    /// Nothing comes any more.
    pub async fn left(&mut self) {
        assert!(!self.take(usize::MAX).await);
    }

    pub async fn answer(&mut self, text: &str) {
        self.stream.write_all(text.as_bytes()).await.unwrap();
    }
}

async fn released(house: &mut House) {
    house.supervisor.expect(&[Happened::Asked("m".into()), Happened::Released]).await;
    house.supervisor.quiet();
}

/// Sends what it can: the server may close before it has read all.
pub async fn pour(client: &mut Client<TcpStream>, bytes: &[u8]) {
    let _ = soon("a body to be taken", client.io.write_all(bytes)).await;
}

#[tokio::test]
async fn a_large_body_is_at_the_engine_before_its_end_is_there() {
    let (mut house, listener, _dir) = before(|_| {}).await;
    let body = body("}");
    let request = post_with(CHAT, "", &body);
    let mut client = house.client().await;
    let half = request.len() / 2;
    let (taker, ()) = tokio::join!(
        async {
            let mut taker = Taker::accept(&listener).await;
            // All that was sent, but for what is held until more is there, and what sockets hold.
            assert!(taker.take(half - (1 << 20)).await);
            taker
        },
        pour(&mut client, &request[..half])
    );
    let mut taker = taker;
    assert!(taker.head.contains(&format!("content-length: {}\r\n", body.len())), "{}", taker.head);
    let (all, ()) = tokio::join!(taker.take(body.len()), pour(&mut client, &request[half..]));
    assert!(all && taker.body == body, "the body was changed on its way");
    taker.answer(OK).await;
    client.until("{}").await;
    released(&mut house).await;
    // The client's connection goes on, and so does the engine's.
    client.raw.clear();
    client.send(post_with(CHAT, "", BODY)).await;
    taker.body.clear();
    let mut raw = Vec::new();
    let second = async {
        while !raw.ends_with(BODY.as_bytes()) {
            assert_ne!(taker.stream.read_buf(&mut raw).await.unwrap(), 0, "closed");
        }
    };
    soon("the second request", second).await;
    taker.answer(OK).await;
    client.until("{}").await;
}

/// What a client is told that sends this, and whether its connection went on; the engine must never have it whole.
async fn refused(body: &[u8], flows: bool) -> (Reply, bool) {
    let slow = Duration::ZERO;
    let (mut house, listener, _dir) = before(|s| {
        if !flows {
            s.limits.flow_pace = slow;
        }
    })
    .await;
    let mut client = house.client().await;
    let request = post_with(CHAT, "", body);
    let engine = async {
        if !flows {
            return;
        }
        let mut taker = Taker::accept(&listener).await;
        taker.left().await;
        assert!(taker.body.len() < body.len() && body.starts_with(&taker.body));
    };
    let told = async {
        pour(&mut client, &request).await;
        client.until("\"code\":").await;
        client.until("}}").await;
    };
    let ((), ()) = tokio::join!(engine, told);
    if flows {
        released(&mut house).await;
    } else {
        house.supervisor.quiet();
    }
    let reply = Reply::parse(&client.raw);
    client.raw.clear();
    let goes_on =
        client.io.write_all(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n").await.is_ok() && {
            let answer = client.io.read_buf(&mut client.raw).await;
            matches!(answer, Ok(n) if n > 0)
        };
    (reply, goes_on)
}

#[tokio::test]
async fn fault_25_a_large_body_is_refused_as_a_small_one_is_and_no_engine_has_it_whole() {
    for (behind, code) in [
        (r#","model":"m"}"#, "duplicate_parameter"),
        (r#","model":"org/big"}"#, "duplicate_parameter"),
        (r#","n":100000}"#, "invalid_value"),
        (r#","stream":1}"#, "invalid_type"),
        ("}}", "invalid_json"),
        ("", "invalid_json"),
        (r#","x":"\ud800"}"#, "invalid_json"),
    ] {
        let bad = body(behind);
        let (flowing, goes_on) = refused(&bad, true).await;
        flowing.error(400, code);
        let (held, went_on) = refused(&bad, false).await;
        assert_eq!((flowing.status, goes_on), (held.status, went_on), "{behind}");
        assert_eq!(
            flowing.headers.keys().collect::<Vec<_>>(),
            held.headers.keys().collect::<Vec<_>>()
        );
        assert!(goes_on, "{behind}");
    }
    // In the middle: the engine is let go at once, though the client goes on sending.
    let mut bad = body("}");
    bad[LARGE / 2] = 0xff;
    refused(&bad, true).await.0.error(400, "invalid_json");
}

#[tokio::test]
async fn an_engine_that_answers_before_it_has_all_is_heard() {
    let said = "HTTP/1.1 413 Too Large\r\ncontent-length: 9\r\n\r\n{\"why\":1}";
    let (mut house, listener, _dir) = before(|_| {}).await;
    let request = post_with(CHAT, "", body("}"));
    // Its client goes on sending, and keeps its connection.
    let mut client = house.client().await;
    let engine = async {
        let mut taker = Taker::accept(&listener).await;
        assert!(taker.take(1 << 20).await);
        taker.answer(said).await;
        taker
    };
    let (mut taker, ()) = tokio::join!(engine, pour(&mut client, &request));
    client.until("{\"why\":1}").await;
    let reply = Reply::parse(&client.raw);
    assert_eq!((reply.status, reply.headers.get("connection")), (413, None));
    taker.left().await;
    released(&mut house).await;
    // Its client waits for the answer, and is told that the connection ends.
    let mut client = house.client().await;
    let engine = async {
        let mut taker = Taker::accept(&listener).await;
        assert!(taker.take(1 << 20).await);
        taker.answer(said).await;
        taker
    };
    let (mut taker, ()) = tokio::join!(engine, pour(&mut client, &request[..LARGE / 2]));
    let reply = client.reply().await;
    assert_eq!((reply.status, &*reply.headers["connection"], reply.whole), (413, "close", true));
    taker.left().await;
    released(&mut house).await;
}

#[tokio::test]
async fn an_engine_that_says_something_in_between_gets_the_rest() {
    let (mut house, listener, _dir) = before(|_| {}).await;
    let body = body("}");
    let request = post_with(CHAT, "", &body);
    let mut client = house.client().await;
    let half = request.len() / 2;
    let engine = async {
        let mut taker = Taker::accept(&listener).await;
        taker.answer("HTTP/1.1 100 Continue\r\n\r\n").await;
        assert!(taker.take(half - (1 << 20)).await);
        // Its client has sent what it sends for now: this is what comes next.
        taker.answer("HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n").await;
        taker
    };
    let (mut taker, ()) = tokio::join!(engine, pour(&mut client, &request[..half]));
    let (all, ()) = tokio::join!(taker.take(body.len()), pour(&mut client, &request[half..]));
    assert!(all && taker.body == body, "the body was changed on its way");
    taker.answer(OK).await;
    client.until("{}").await;
    let reply = Reply::parse(&client.raw);
    assert_eq!((reply.status, reply.headers.get("link")), (200, None));
    released(&mut house).await;
}

#[tokio::test]
async fn an_engine_that_says_nothing_but_interim_answers_has_failed() {
    let (mut house, listener, _dir) = before(|_| {}).await;
    let request = post(CHAT, body("}"));
    let engine = async {
        let mut taker = Taker::accept(&listener).await;
        assert!(taker.take(1 << 20).await);
        taker.answer(&"HTTP/1.1 102 Processing\r\n\r\n".repeat(17)).await;
        taker.left().await;
    };
    let ((), reply) = tokio::join!(engine, house.ask(request));
    reply.error(502, "engine_failed");
    released(&mut house).await;
}

/// DESIGN's bound on how late an engine may feel it; a machine under load may be late once.
#[tokio::test]
async fn fault_21_a_client_that_leaves_within_its_body() {
    for reset in [false, true] {
        let mut best = Duration::MAX;
        for _ in 0..5 {
            let (mut house, listener, _dir) = before(|_| {}).await;
            let mut client = house.client().await;
            let request = post_with(CHAT, "", body("}"));
            let engine = async {
                let mut taker = Taker::accept(&listener).await;
                assert!(taker.take(LARGE / 2 - (1 << 20)).await);
                taker
            };
            let (mut taker, ()) = tokio::join!(engine, pour(&mut client, &request[..LARGE / 2]));
            if reset {
                client.io.set_zero_linger().unwrap();
            }
            let start = Instant::now();
            drop(client);
            taker.left().await;
            best = best.min(start.elapsed());
            assert!(taker.body.len() <= LARGE / 2);
            released(&mut house).await;
            if best <= Duration::from_millis(100) {
                break;
            }
        }
        assert!(best <= Duration::from_millis(100), "the engine felt it only after {best:?}");
    }
}

#[tokio::test]
async fn fault_22_an_engine_that_dies_within_a_body() {
    for (behind, status, code) in [("}", 502, "engine_failed"), ("}}", 400, "invalid_json")] {
        let (mut house, listener, _dir) = before(|_| {}).await;
        let request = post(CHAT, body(behind));
        let engine = async {
            let mut taker = Taker::accept(&listener).await;
            assert!(taker.take(1 << 20).await);
        };
        let ((), reply) = tokio::join!(engine, house.ask(request));
        reply.error(status, code);
        released(&mut house).await;
        // Once, for the body cannot be sent again.
        let again = tokio::time::timeout(Duration::ZERO, listener.accept()).await;
        assert!(again.is_err(), "it was sent again");
    }
}

#[tokio::test]
async fn fault_23_a_flowing_body_that_stalls_is_refused_and_its_engine_let_go() {
    let (mut house, listener, _dir) = before(|s| s.limits.body_progress_timeout = 3 * SHORT).await;
    let mut client = house.client().await;
    let request = post_with(CHAT, "", body("}"));
    let engine = async {
        let mut taker = Taker::accept(&listener).await;
        taker.left().await;
    };
    let ((), ()) = tokio::join!(engine, pour(&mut client, &request[..LARGE / 2]));
    client.reply().await.error(408, "body_timeout");
    released(&mut house).await;
}

#[tokio::test]
async fn fault_22_an_engine_that_takes_nothing_is_given_up() {
    let (mut house, listener, _dir) = before(|s| s.upstream.header_timeout = SHORT).await;
    let request = post(CHAT, body("}"));
    let (_held, reply) = tokio::join!(Taker::accept(&listener), house.ask(request));
    reply.error(504, "engine_timeout");
    released(&mut house).await;
}

#[tokio::test]
async fn what_flows_takes_no_part_of_the_memory_for_bodies() {
    let (house, listener, _dir) = before(|s| s.rules.max_buffered = Bytes::mib(1)).await;
    let large = body("}");
    let engine = async {
        let mut taker = Taker::accept(&listener).await;
        assert!(taker.take(large.len()).await);
        taker.answer(OK).await;
    };
    let (reply, ()) = tokio::join!(house.ask(post(CHAT, &large)), engine);
    assert_eq!(reply.status, 200);
    let last = [br#"{"x":""#, &*vec![b'a'; 2 << 20], br#"","model":"m"}"#].concat();
    house.ask(post(CHAT, last)).await.error(503, "bodies_full");
}

/// Who reads only when all is sent, as most clients do, would see a reset in the answer's place.
#[tokio::test]
async fn who_sends_all_before_it_reads_gets_to_read_why_it_is_refused() {
    let large = "a".repeat(LARGE);
    let early = format!(r#"{{"model":"m","background":true,"input":"{large}"}}"#);
    let late = format!(r#"{{"input":"{large}","model":"m"}}"#);
    for (path, body, buffered, status, code) in
        [("/v1/responses", early, 1024, 400, "invalid_value"), (CHAT, late, 1, 503, "bodies_full")]
    {
        let (house, _listener, _dir) =
            before(|s| s.rules.max_buffered = Bytes::mib(buffered)).await;
        let mut client = house.client().await;
        let sent = client.io.write_all(&post_with(path, "", body)).await;
        assert!(sent.is_ok(), "{code}: {sent:?}");
        client.until("\"code\":").await;
        client.until("}}").await;
        Reply::parse(&client.raw).error(status, code);
    }
}
