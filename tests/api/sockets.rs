//! WebSockets through the front door.

use std::sync::Arc;
use std::time::Duration;

use hostler::proxy::port::Side;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

use crate::engine::{Step, send};
use crate::house::{Ends, Happened, House, Setup, house, key, playing, rules};
use crate::wire::{Client, get, soon};

pub const OPENING: &str = "GET /v1/realtime?model=m HTTP/1.1\r\nhost: localhost\r\nupgrade: websocket\r\n\
    connection: Upgrade\r\nsec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
    sec-websocket-protocol: realtime\r\nauthorization: Bearer k\r\ntraceparent: 00-1\r\n\r\n";

const CONSENT: &str = "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\
    sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nsec-websocket-protocol: realtime\r\nx-secret: 1\r\n\r\n\x01\x02\x00frame";

/// A client whose socket is open, and that has had the engine's first frame.
async fn opened(house: &House) -> Client<TcpStream> {
    let mut client = house.client().await;
    client.send(OPENING).await;
    client.until("frame").await;
    client
}

#[tokio::test]
async fn bytes_pass_both_ways_and_the_lease_lives_as_long() {
    let mut house = playing(vec![send(CONSENT)]).await;
    let client = opened(&house).await;
    let head = String::from_utf8_lossy(&client.raw).to_ascii_lowercase();
    assert!(head.starts_with("http/1.1 101 "), "{head}");
    for line in [
        "upgrade: websocket",
        "connection: upgrade",
        "sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo=",
        "x-request-id: ",
    ] {
        assert!(head.contains(line), "{line}: {head}");
    }
    assert!(!head.contains("x-secret") && head.contains("\u{1}\u{2}\0frame"), "{head}");
    let seen = house.engine.request().await;
    assert_eq!(seen.line, "GET /v1/realtime?model=m HTTP/1.1");
    assert_eq!(seen.headers["sec-websocket-protocol"], "realtime");
    assert_eq!(seen.headers["traceparent"], "00-1");
    assert!(!seen.headers.contains_key("authorization"));
    house.supervisor.expect(&[Happened::Asked("m".into())]).await;
    house.supervisor.quiet();
    drop(client);
    house.engine.left().await;
    house.supervisor.expect(&[Happened::Released]).await;
}

/// A page can set no header, and its browser drops a socket for which no protocol is chosen.
#[tokio::test]
async fn a_page_sends_its_key_among_the_protocols() {
    let opening = |offered: &str| {
        let opening = OPENING.replace("authorization: Bearer k\r\n", "");
        opening.replace("protocol: realtime", &format!("protocol: {offered}"))
    };
    let offered = "realtime, openai-insecure-api-key.sk-page, openai-organization.org-1\r\n\
        sec-websocket-protocol: openai-project.proj_1,openai-beta.realtime-v1";
    let silent = CONSENT.replace("sec-websocket-protocol: realtime\r\n", "");
    for keys in [vec![], vec![key("page")]] {
        let asks = !keys.is_empty();
        let rules = hostler::proxy::Rules { keys, ..rules() };
        let mut house =
            house(Setup { script: vec![send(&silent)], rules, ..Setup::default() }).await;
        let mut client = house.client().await;
        client.send(opening(offered)).await;
        client.until("frame").await;
        let head = String::from_utf8_lossy(&client.raw).to_ascii_lowercase();
        assert!(head.contains("\r\nsec-websocket-protocol: realtime\r\n"), "{head}");
        let seen = house.engine.request().await;
        assert_eq!(seen.headers["sec-websocket-protocol"], "realtime, openai-beta.realtime-v1");
        assert!(!format!("{seen:?}").contains("sk-page"), "{seen:?}");
        // Its browser would drop the socket, for which no other protocol could be chosen.
        let alone = opening("openai-insecure-api-key.sk-page");
        let alone = house.ask(alone.replace("\r\n\r\n", "\r\nconnection: close\r\n\r\n")).await;
        let error = alone.error(400, "invalid_value");
        assert!(error["message"].as_str().unwrap().contains("\"realtime\""), "{error}");
        assert!(!alone.text().contains("sk-page"));
        if asks {
            let wrong = opening("realtime, openai-insecure-api-key.sk-other");
            let wrong = wrong.replace("\r\n\r\n", "\r\nconnection: close\r\n\r\n");
            house.ask(wrong).await.error(401, "invalid_api_key");
        }
    }
}

#[tokio::test]
async fn an_engine_without_sockets_says_so_itself() {
    let no =
        "HTTP/1.1 404 Not Found\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}";
    let mut house = playing(vec![send(no)]).await;
    let mut client = house.client().await;
    client.send(OPENING).await;
    client.until("{}").await;
    assert!(client.raw.starts_with(b"HTTP/1.1 404 "));
    house.supervisor.expect(&[Happened::Asked("m".into()), Happened::Released]).await;
}

#[tokio::test]
async fn a_socket_ends_with_the_server_at_the_end_of_the_drain() {
    let (behind, mut ends) = Ends::behind();
    let setup = Setup {
        script: vec![send(CONSENT)],
        drain: Duration::from_millis(500),
        behind,
        ..Setup::default()
    };
    let mut house = house(setup).await;
    let mut client = opened(&house).await;
    house.stop.cancel();
    let drained = soon("the server to end", &mut house.served).await.unwrap();
    assert_eq!(drained.aborted, 1);
    assert_eq!(ends.recv().await.unwrap().broken_by, Some(Side::Host));
    client.end().await.ok();
    house.supervisor.expect(&[Happened::Asked("m".into()), Happened::Released]).await;
}

#[tokio::test]
async fn what_the_client_sends_arrives() {
    let mut house = playing(vec![send(CONSENT), Step::Close]).await;
    let mut client = opened(&house).await;
    client.io.write_all(b"hello").await.unwrap();
    // The engine closed: the client is told by the end of the bytes.
    let mut rest = Vec::new();
    let _ = soon("the end", client.io.read_to_end(&mut rest)).await;
    house.supervisor.expect(&[Happened::Asked("m".into()), Happened::Released]).await;
}

/// The client has the end, keeps its side open and says nothing more: the lease comes back nevertheless.
#[tokio::test]
async fn an_engines_end_ends_a_client_that_never_closes() {
    let mut house = playing(vec![send(CONSENT), Step::Close]).await;
    let mut client = opened(&house).await;
    let mut rest = Vec::new();
    soon("the end", client.io.read_to_end(&mut rest)).await.unwrap();
    house.supervisor.expect(&[Happened::Asked("m".into()), Happened::Released]).await;
    drop(client);
}

/// Sockets alone fill the house: nobody but they can make room, and they do.
#[tokio::test]
async fn sockets_that_have_ended_make_room_for_others() {
    let mut setup = Setup { script: vec![send(CONSENT)], ..Setup::default() };
    setup.limits.max_connections = 2;
    let mut house = house(setup).await;
    for _ in 0..3 {
        let held = [opened(&house).await, opened(&house).await];
        let mut third = house.client().await;
        third.send(get("/health")).await;
        for _ in &held {
            house.engine.request().await;
        }
        drop(held);
        for _ in 0..2 {
            house.engine.left().await;
        }
        assert_eq!(third.reply().await.status, 200);
    }
}

/// The record lives as long as the socket, and knows who ended it: a side that says so before it leaves has not broken off.
#[tokio::test]
async fn a_socket_is_told_when_it_is_over() {
    const GOODBYE: &[u8] = b"\x88\x02\x03\xe8";
    let head = CONSENT.split_once("\r\n\r\n").unwrap().0;
    let parting = || [head.as_bytes(), b"\r\n\r\n\x81\x02hi", GOODBYE].concat();
    let gate = || Step::Gate(Arc::new(Semaphore::new(0)));
    for (script, by, bytes) in [
        (vec![send(CONSENT), gate()], Some(Side::Client), 8),
        (vec![send(CONSENT), Step::Close], Some(Side::Engine), 8),
        (vec![send(parting()), Step::Close], None, 4 + 4),
    ] {
        let (behind, mut ends) = Ends::behind();
        let house = house(Setup { script, behind, ..Setup::default() }).await;
        let mut client = house.client().await;
        client.send(OPENING).await;
        if by == Some(Side::Client) {
            client.until("frame").await;
            assert!(ends.try_recv().is_err(), "the socket is open");
        } else {
            soon("the end", client.io.read_to_end(&mut Vec::new())).await.unwrap();
        }
        drop(client);
        let end = soon("the socket to be told", ends.recv()).await.unwrap();
        assert_eq!((end.status, end.broken_by, end.bytes), (Some(101), by, bytes));
        assert!(end.instance.is_some());
        assert!(ends.try_recv().is_err(), "once");
    }
}
