//! Requests that two parsers could read differently: 400, the end of the connection, and nothing behind it is touched.

use crate::engine::{Step, send};
use crate::house::{Happened, playing};
use crate::wire::{BODY, CHAT, chunk};

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}";

/// A POST that would be answered but for one thing: its request line, its header lines, or its body.
fn request(line: &str, headers: &[&str], body: &[u8]) -> Vec<u8> {
    let mut all = format!("{line}\r\ncontent-type: application/json\r\n").into_bytes();
    for header in headers {
        all.extend_from_slice(header.as_bytes());
        all.extend_from_slice(b"\r\n");
    }
    all.extend_from_slice(b"\r\n");
    all.extend_from_slice(body);
    all
}

fn cases() -> Vec<(String, Vec<u8>)> {
    let length = format!("content-length: {}", BODY.len());
    let post = format!("POST {CHAT} HTTP/1.1");
    let chunked = [chunk(BODY), b"0\r\n\r\n".to_vec()].concat();
    let mut cases = Vec::new();
    for hosts in [
        &[][..],
        &["host: a", "host: b"],
        &["host: a", "host: a"],
        &["host:"],
        &["host: a b"],
        &["host: a/b"],
        &["host: u@a"],
        &["host: a, b"],
        &["host: a:b"],
    ] {
        let headers = [hosts, &[&*length]].concat();
        cases.push((format!("{hosts:?}"), request(&post, &headers, BODY.as_bytes())));
    }
    for line in [
        format!("POST http://localhost{CHAT} HTTP/1.1"),
        format!("POST http://other{CHAT} HTTP/1.1"),
        format!("TRACE {CHAT} HTTP/1.1"),
        "CONNECT localhost:80 HTTP/1.1".into(),
        format!("post {CHAT} HTTP/1.1"),
        format!("Post {CHAT} HTTP/1.1"),
        format!("FOO {CHAT} HTTP/1.1"),
        "POST /v1/../v1/chat/completions HTTP/1.1".into(),
        "POST /v1/./chat/completions HTTP/1.1".into(),
        "POST /v1/%2e%2e/v1/chat/completions HTTP/1.1".into(),
        "POST /v1/.%2E/v1/chat/completions HTTP/1.1".into(),
        "POST //v1/chat/completions HTTP/1.1".into(),
        "POST /v1//chat/completions HTTP/1.1".into(),
        "POST /v1%2fchat/completions HTTP/1.1".into(),
        "POST /v1/%63hat/completions HTTP/1.1".into(),
        "GET /v1/models/..%2f..%2fsleep HTTP/1.1".into(),
        "OPTIONS * HTTP/1.1".into(),
    ] {
        let all = request(&line, &["host: localhost", &length], BODY.as_bytes());
        cases.push((line, all));
    }
    for header in [
        "connection: content-length, host",
        "connection: x-request-id",
        "expect: 200-ok",
        "expect: 100-continue, x",
        "content-length: 7",
        "host : b",
        " folded: 1",
        "x y: 1",
    ] {
        let all = request(&post, &["host: localhost", &length, header], BODY.as_bytes());
        cases.push((header.into(), all));
    }
    for bad in ["0041", "+41", "-41", "0x29", "41,41", "41 41", "", "99999999999999999999"] {
        let header = format!("content-length: {bad}");
        let all = request(&post, &["host: localhost", &header], BODY.as_bytes());
        cases.push((header, all));
    }
    for coding in [
        ",chunked",
        "gzip, chunked",
        "chunked, chunked",
        "identity",
        "chunked, identity",
        "xchunked",
        "identity\r\ntransfer-encoding: chunked",
        "chunked\r\ntransfer-encoding: chunked",
        "\"chunked\"",
        "chunked;q=1",
    ] {
        let header = format!("transfer-encoding: {coding}");
        cases.push((header.clone(), request(&post, &["host: localhost", &header], &chunked)));
    }
    let ten = format!("POST {CHAT} HTTP/1.0");
    let headers = ["host: localhost", "transfer-encoding: chunked"];
    cases.push(("chunks in HTTP/1.0".into(), request(&ten, &headers, &chunked)));
    for bad in ["0x5\r\n{\"mod\r\n", "-5\r\n", "fffffffffffffffff\r\n", "5\n{\"mod", "\r\n"] {
        let all = request(&post, &headers, bad.as_bytes());
        cases.push((format!("chunk {bad:?}"), all));
    }
    for trailer in ["content-length: 5", "transfer-encoding: chunked", "host: b"] {
        let body = [chunk(BODY), format!("0\r\n{trailer}\r\n\r\n").into_bytes()].concat();
        cases.push((format!("trailer {trailer}"), request(&post, &headers, &body)));
    }
    cases
}

#[tokio::test]
async fn fault_24_each_is_refused_and_nothing_follows() {
    let mut house = playing(vec![send(OK)]).await;
    for (name, mut all) in cases() {
        // What is hidden behind it must not be served as a request of its own.
        all.extend_from_slice(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n");
        let mut client = house.client().await;
        client.send(all).await;
        let _ = client.end().await;
        let text = String::from_utf8_lossy(&client.raw);
        assert!(
            text.starts_with("HTTP/1.1 400 ") || text.starts_with("HTTP/1.0 400 "),
            "{name}: {text:?}"
        );
        assert_eq!(text.matches("HTTP/1.1 ").count(), 1, "{name}: {text:?}");
        if let Ok(happened) = house.supervisor.happened.try_recv() {
            panic!("{name}: {happened:?}");
        }
        house.engine.untouched();
    }
}

#[tokio::test]
async fn a_length_beside_chunks_is_read_as_chunks_and_ends_the_connection() {
    // hyper hides the length from us; RFC 9112 allows to go on if the connection ends.
    let mut house = playing(vec![send(OK), Step::Close]).await;
    for order in [
        ["content-length: 5", "transfer-encoding: chunked"],
        ["transfer-encoding: chunked", "content-length: 5"],
    ] {
        let line = format!("POST {CHAT} HTTP/1.1");
        let body =
            [chunk(BODY), b"0\r\n\r\nGET /health HTTP/1.1\r\nhost: localhost\r\n\r\n".to_vec()]
                .concat();
        let mut client = house.client().await;
        client.send(request(&line, &["host: localhost", order[0], order[1]], &body)).await;
        let _ = client.end().await;
        let text = String::from_utf8_lossy(&client.raw);
        assert_eq!(text.matches("HTTP/1.1 ").count(), 1, "{text:?}");
        let request = house.engine.request().await;
        assert_eq!(request.body, BODY.as_bytes());
        assert_eq!(request.headers["content-length"], BODY.len().to_string());
        let events = [Happened::Asked("m".into()), Happened::Released];
        house.supervisor.expect(&events).await;
    }
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let mut house = playing(vec![send(OK), Step::Close]).await;
    let one = request(
        &format!("POST {CHAT} HTTP/1.1"),
        &["host: localhost", &format!("content-length: {}", BODY.len())],
        BODY.as_bytes(),
    );
    let two = b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    let mut client = house.client().await;
    client.send([&one[..], two].concat()).await;
    client.end().await.unwrap();
    let text = String::from_utf8_lossy(&client.raw);
    assert_eq!(text.matches("HTTP/1.1 200 OK").count(), 2);
    assert!(text.ends_with("{\"status\":\"ok\"}"), "{text}");
    house.engine.request().await;
}
