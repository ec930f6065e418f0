//! Bytes pass unchanged, and at once.

use std::sync::Arc;

use tokio::sync::Semaphore;

use crate::engine::{Family, Step, send};
use crate::house::{Happened, House, Setup, house, playing};
use crate::wire::{BODY, CHAT, Client, Io, Reply, SSE, chunk, post, post_with};

/// Pieces that do not respect events, lines or characters.
const PIECES: [&[u8]; 9] = [
    b"d",
    b"ata: {\"a\":\"\xc3",
    b"\xa9\"}\n",
    b"\n",
    b": comment\n\nevent: x\r\ndata: 1\r\n\r\n",
    b"data: \0\x01\xff\n\n",
    b"id: 7\ndata: [DO",
    b"NE]\n",
    b"\n",
];

fn odd_stream(gate: &Arc<Semaphore>) -> Vec<Step> {
    let mut script = vec![send(SSE)];
    for piece in PIECES {
        script.extend([send(chunk(piece)), Step::Gate(gate.clone())]);
    }
    script.extend([send("0\r\n\r\n"), Step::Close]);
    script
}

async fn passes_identically<S: Io>(mut house: House, gate: Arc<Semaphore>, mut client: Client<S>) {
    client.send(post(CHAT, BODY)).await;
    let mut want = Vec::new();
    for piece in PIECES {
        want.extend_from_slice(piece);
        // The engine sends the next piece only after this one has arrived: nothing may hold it back.
        let arrived = async {
            loop {
                if client.raw.windows(4).any(|w| w == b"\r\n\r\n")
                    && Reply::parse(&client.raw).body.len() == want.len()
                {
                    return;
                }
                use tokio::io::AsyncReadExt;
                assert_ne!(client.io.read_buf(&mut client.raw).await.unwrap(), 0);
            }
        };
        crate::wire::soon("a piece", arrived).await;
        gate.add_permits(1);
    }
    let reply = client.reply().await;
    assert_eq!(reply.body, want);
    assert_eq!(reply.chunks, PIECES.map(<[u8]>::len));
    assert!(reply.whole);
    assert_eq!(reply.headers["content-type"], "text/event-stream");
    assert_eq!(reply.headers["x-accel-buffering"], "no", "nginx gathers 16 KiB otherwise");
    let events = [Happened::Asked("m".into()), Happened::Released];
    house.supervisor.expect(&events).await;
    house.supervisor.quiet();
}

#[tokio::test]
async fn a_stream_passes_byte_for_byte_from_unix_to_tcp() {
    let gate = Arc::new(Semaphore::new(0));
    let house = playing(odd_stream(&gate)).await;
    let client = house.client().await;
    passes_identically(house, gate, client).await;
}

#[tokio::test]
async fn a_stream_passes_byte_for_byte_from_tcp_to_unix() {
    let gate = Arc::new(Semaphore::new(0));
    let script = odd_stream(&gate);
    let house = house(Setup { family: Family::Tcp, script, ..Setup::default() }).await;
    let client = house.unix_client().await;
    passes_identically(house, gate, client).await;
}

#[tokio::test]
async fn the_engine_gets_the_body_as_it_was_and_few_headers() {
    let script = vec![send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")];
    let mut house = playing(script).await;
    let body = "{ \"x\" : \"\\u00e9\\/\" ,\t\"model\":\"m\", \"y\": 1.50e0}\n";
    let headers = "authorization: Bearer secret\r\ncookie: a=b\r\nx-api-key: k\r\n\
                   x-request-id: abc-1\r\ntraceparent: 00-1\r\nuser-agent: t/1\r\nconnection: close\r\n";
    let reply = house.ask(post_with("/v1/embeddings?api-version=1", headers, body)).await;
    assert_eq!((reply.status, reply.text()), (200, "{}"));
    assert_eq!(reply.headers["x-request-id"], "abc-1");
    let request = house.engine.request().await;
    assert_eq!(request.line, "POST /v1/embeddings HTTP/1.1");
    assert_eq!(request.body, body.as_bytes());
    let names: Vec<&str> = request.headers.keys().map(String::as_str).collect();
    let want =
        ["content-length", "content-type", "host", "traceparent", "user-agent", "x-request-id"];
    assert_eq!(names, want);
    assert_eq!(request.headers["host"], "localhost");
    // Its client may use that ID again meanwhile.
    let id = request.headers["x-request-id"].strip_prefix("abc-1-").unwrap();
    assert!(id.len() == 8 && id.bytes().all(|b| b.is_ascii_hexdigit()), "{id}");
}

/// vLLM takes the ID for its own of the request: it refuses the second, or ends it with the first.
#[tokio::test]
async fn requests_of_one_id_are_different_ones_to_the_engine() {
    let gate = Arc::new(Semaphore::new(0));
    let script =
        vec![Step::Gate(gate.clone()), send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")];
    let mut house = playing(script).await;
    let same = post_with(CHAT, "x-request-id: job-7\r\nconnection: close\r\n", BODY);
    let (mut first, mut second) = (house.client().await, house.client().await);
    first.send(&same).await;
    second.send(&same).await;
    let mut seen = Vec::new();
    for _ in 0..2 {
        seen.push(house.engine.request().await.headers["x-request-id"].clone());
    }
    assert!(seen[0] != seen[1] && seen.iter().all(|id| id.starts_with("job-7-")), "{seen:?}");
    gate.add_permits(3);
    for client in [first, second] {
        assert_eq!(client.reply().await.headers["x-request-id"], "job-7");
    }
    // One of ours is nobody else's.
    let reply = house.ask(post(CHAT, BODY)).await;
    assert_eq!(house.engine.request().await.headers["x-request-id"], reply.headers["x-request-id"]);
}

#[tokio::test]
async fn a_chunked_request_reaches_the_engine_with_a_length() {
    let script = vec![send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")];
    let mut house = playing(script).await;
    let mut request = format!(
        "POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n"
    )
    .into_bytes();
    for piece in BODY.as_bytes().chunks(7) {
        request.extend(chunk(piece));
    }
    request.extend(b"0\r\nx-checksum: 1\r\n\r\n");
    assert_eq!(house.ask(request).await.status, 200);
    let got = house.engine.request().await;
    assert_eq!(got.body, BODY.as_bytes());
    assert!(!got.headers.contains_key("transfer-encoding"));
}

#[tokio::test]
async fn the_engines_status_and_headers_pass() {
    let head = "HTTP/1.1 429 Too Many\r\ncontent-type: application/json\r\nx-engine: 1\r\n\
                keep-alive: timeout=5\r\nconnection: keep-alive\r\nset-cookie: a=b\r\ncontent-length: 5\r\n\r\n{\"e\"}";
    let house = playing(vec![send(head)]).await;
    let reply = house.ask(post(CHAT, BODY)).await;
    assert_eq!((reply.status, reply.text()), (429, "{\"e\"}"));
    assert_eq!(reply.headers["x-engine"], "1");
    for stays in ["keep-alive", "set-cookie"] {
        assert!(!reply.headers.contains_key(stays), "{reply:?}");
    }
}

#[tokio::test]
async fn a_connection_serves_many_requests() {
    let script = vec![send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"), Step::Close];
    let mut house = playing(script).await;
    let mut client = house.client().await;
    for _ in 0..5 {
        client.raw.clear();
        client.send(post_with(CHAT, "", BODY)).await;
        client.until("\r\n\r\n{}").await;
        let events = [Happened::Asked("m".into()), Happened::Released];
        house.supervisor.expect(&events).await;
    }
}
