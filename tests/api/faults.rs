//! Engines that die: no answer that broke off looks whole.

use std::time::{Duration, Instant};

use hostler::proxy::Upstream;
use hostler::supervisor::ports::Endpoint;

use crate::engine::{Family, Step, send};
use crate::house::{Happened, Setup, house, playing};
use crate::wire::{BODY, CHAT, SSE, chunk, post};

async fn dies(family: Family, script: Vec<Step>) -> crate::wire::Reply {
    let mut house = house(Setup { family, script, ..Setup::default() }).await;
    let reply = house.ask(post(CHAT, BODY)).await;
    let events = [Happened::Asked("m".into()), Happened::Released];
    house.supervisor.expect(&events).await;
    house.supervisor.quiet();
    reply
}

#[tokio::test]
async fn fault_22_before_its_headers() {
    for family in [Family::Unix, Family::Tcp] {
        for script in [
            vec![Step::Close],
            vec![Step::Reset],
            vec![send("HTTP/1.1 200 OK\r\ncontent-"), Step::Close],
            vec![send("220 smtp ready\r\n\r\n"), Step::Close],
            vec![send("HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\n\r\n"), Step::Close],
        ] {
            let error = dies(family, script).await.error(502, "engine_failed");
            assert!(error["message"].as_str().unwrap().starts_with("model m: "), "{error}");
            assert_eq!(error["type"], "server_error");
        }
    }
}

#[tokio::test]
async fn fault_22_in_the_middle_of_a_stream() {
    for (family, last, end) in [
        (Family::Unix, "data: 1\n\n", Step::Close),
        (Family::Tcp, "data: 1\n\n", Step::Close),
        (Family::Tcp, "data: 1\n\ndata: {\"cho", Step::Reset),
        (Family::Unix, "", Step::Close),
    ] {
        let mut script = vec![send(SSE)];
        if !last.is_empty() {
            script.push(send(chunk(last)));
        }
        script.push(end);
        let reply = dies(family, script).await;
        assert_eq!(reply.status, 200);
        let text = reply.text().to_owned();
        let (before, event) = text.rsplit_once("data: ").unwrap();
        assert_eq!(before.trim_end(), last.trim_end());
        let event: serde_json::Value = serde_json::from_str(event.trim_end()).unwrap();
        assert_eq!(event["error"]["code"], "engine_failed");
        assert!(text.ends_with("}}\n\n"), "{text:?}");
        assert!(!text.contains("[DONE]"), "{text:?}");
        assert!(!text.contains("\n\n\n"), "an empty event: {text:?}");
    }
}

#[tokio::test]
async fn after_an_error_event_the_connection_ends() {
    let house = playing(vec![send(SSE), send(chunk("data: 1\n\n")), Step::Close]).await;
    let mut client = house.client().await;
    // Without "connection: close": it is the server that ends it.
    client.send(crate::wire::post_with(CHAT, "", BODY)).await;
    client.end().await.unwrap();
    assert!(String::from_utf8_lossy(&client.raw).contains("engine_failed"));
}

#[tokio::test]
async fn fault_22_in_the_middle_of_a_plain_body() {
    for family in [Family::Unix, Family::Tcp] {
        for head in [
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{\"a\":",
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n\
             5\r\n{\"a\":\r\n",
            // Nothing can be appended to a stream that has stated its length.
            "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: 100\r\n\r\ndata:",
        ] {
            let reply = dies(family, vec![send(head), Step::Close]).await;
            assert_eq!(reply.status, 200);
            assert!(!reply.whole, "{reply:?}");
        }
    }
}

#[tokio::test]
async fn a_client_without_framing_gets_a_reset() {
    let head =
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n";
    // HTTP/1.0 has no chunks: only the kind of the connection's end tells it from a whole answer.
    let request = format!(
        "POST {CHAT} HTTP/1.0\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{BODY}",
        BODY.len()
    );
    let house = playing(vec![send(head), send(chunk("{\"a\":")), Step::Close]).await;
    let mut client = house.client().await;
    client.send(&request).await;
    client.end().await.unwrap_err();

    let house = playing(vec![send(head), send(chunk("{}")), send("0\r\n\r\n")]).await;
    let mut client = house.client().await;
    client.send(&request).await;
    client.end().await.unwrap();
    assert!(client.raw.ends_with(b"\r\n\r\n{}"));
}

#[tokio::test]
async fn fault_22_it_never_answers() {
    let upstream = Upstream { header_timeout: Duration::from_millis(200), ..Upstream::default() };
    let mut house = house(Setup { upstream, ..Setup::default() }).await;
    let reply = house.ask(post(CHAT, BODY)).await;
    reply.error(504, "engine_timeout");
    assert_eq!(&*reply.headers["x-should-retry"], "false", "it would be all done once more");
    house.engine.request().await;
    house.engine.left().await;
}

#[tokio::test]
async fn it_is_not_there() {
    let mut house = playing(vec![]).await;
    let Endpoint::Unix(path) = house.engine.endpoint.clone() else { panic!() };
    std::fs::remove_file(path).unwrap();
    let reply = house.ask(post(CHAT, BODY)).await;
    reply.error(502, "engine_unreachable");
    assert_eq!(reply.headers["retry-after"], "1");
    let events = [Happened::Asked("m".into()), Happened::Released];
    house.supervisor.expect(&events).await;
}

#[tokio::test]
async fn it_puts_a_link_to_somebody_else_in_its_place() {
    let house = playing(vec![]).await;
    let Endpoint::Unix(path) = house.engine.endpoint.clone() else { panic!() };
    let other = path.with_file_name("other.sock");
    let victim = tokio::net::UnixListener::bind(&other).unwrap();
    std::fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink(&other, &path).unwrap();
    let reply = house.ask(post(CHAT, BODY)).await;
    reply.error(502, "engine_unreachable");
    let nobody = tokio::time::timeout(Duration::ZERO, victim.accept()).await;
    assert!(nobody.is_err(), "it was connected to");
}

#[tokio::test]
async fn its_queue_is_full_for_a_while() {
    // A listener with a queue of one that accepts nobody yet.
    let mut house = playing(vec![]).await;
    let Endpoint::Unix(path) = house.engine.endpoint.clone() else { panic!() };
    std::fs::remove_file(&path).unwrap();
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    rustix::net::listen(&listener, 0).unwrap();
    listener.set_nonblocking(true).unwrap();
    let mut fill = Vec::new();
    while let Ok(stream) = tokio::net::UnixStream::connect(&path).await {
        fill.push(stream);
    }
    let mut client = house.client().await;
    client.send(post(CHAT, BODY)).await;
    house.supervisor.expect(&[Happened::Asked("m".into())]).await;
    // Time for some refused attempts; not enough for the proxy's patience.
    let start = Instant::now();
    let listener = tokio::net::UnixListener::from_std(listener).unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    drop(fill);
    let serve = async {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = [0; 4096];
            if matches!(stream.read(&mut head).await, Ok(n) if n > 0) {
                let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}";
                stream.write_all(answer).await.unwrap();
                return;
            }
        }
    };
    crate::wire::soon("the request", serve).await;
    assert_eq!(client.reply().await.status, 200);
    assert!(start.elapsed() < Duration::from_secs(10));
}

/// Each is passed over, and their number is bounded: an engine that sends nothing else has failed.
#[tokio::test]
async fn fault_22_interim_answers_without_end() {
    const INTERIM: &str = "HTTP/1.1 100 Continue\r\n\r\n";
    for family in [Family::Unix, Family::Tcp] {
        let error = dies(family, vec![send(INTERIM.repeat(100_000))]).await;
        let error = error.error(502, "engine_failed");
        assert!(error["message"].as_str().unwrap().contains("interim"), "{error}");
        // A few are no fault, and neither is one that comes in two pieces.
        let few = INTERIM.repeat(8) + "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n";
        let rest = "\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}";
        let reply = dies(family, vec![send(few), send(rest), Step::Close]).await;
        assert_eq!((reply.status, reply.text(), reply.whole), (200, "{}", true));
    }
}

/// The chunks are the body, whatever else the head says of its length.
#[tokio::test]
async fn fault_22_a_length_beside_chunks_cuts_nothing_off() {
    for length in [2, 100] {
        let head = format!(
            "HTTP/1.1 200 OK\r\ncontent-length: {length}\r\ntransfer-encoding: chunked\r\n\r\n"
        );
        let script = vec![send(head), send(chunk("hello")), send("0\r\n\r\n"), Step::Close];
        let reply = dies(Family::Unix, script).await;
        assert_eq!((reply.status, reply.text(), reply.whole), (200, "hello", true));
        assert!(!reply.headers.contains_key("content-length"), "{reply:?}");
    }
}
