//! Ending well.

use std::sync::Arc;
use std::time::Duration;

use hostler::proxy::Drained;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

use crate::engine::{Step, send};
use crate::house::{Happened, Policy, Setup, house, playing, rules};
use crate::wire::{BODY, CHAT, SSE, chunk, get, post_with, soon};

#[tokio::test]
async fn running_requests_finish_and_new_ones_are_not_taken() {
    let gate = Arc::new(Semaphore::new(0));
    let script = vec![
        send(SSE),
        send(chunk("data: 1\n\n")),
        Step::Gate(gate.clone()),
        send(chunk("data: [DONE]\n\n")),
        send("0\r\n\r\n"),
    ];
    let mut house = playing(script).await;
    let mut streaming = house.client().await;
    streaming.send(post_with(CHAT, "", BODY)).await;
    streaming.until("data: 1").await;
    let mut idle = house.client().await;
    idle.send("GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
    idle.until("{\"status\":\"ok\"}").await;
    // Accepted, but its first request has not come yet.
    let mut late = house.client().await;
    let mut waiting = house.client().await;
    waiting.send("GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
    waiting.until("{\"status\":\"ok\"}").await;

    house.stop.cancel();
    let refused = async {
        while TcpStream::connect(house.tcp).await.is_ok() {
            tokio::task::yield_now().await;
        }
    };
    soon("the listener to close", refused).await;
    // The request was on its way when the end began: this delay is what is tested, not a wait for something.
    tokio::time::sleep(Duration::from_millis(60)).await;
    late.send("GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
    late.until("{\"status\":\"ok\"}").await;
    assert!(String::from_utf8_lossy(&late.raw).contains("connection: close"));
    idle.end().await.unwrap();
    assert!(!house.served.is_finished());
    gate.add_permits(1);
    let reply = streaming.reply().await;
    assert!(reply.whole);
    assert!(reply.text().ends_with("[DONE]\n\n"));
    let drained = soon("the server to end", &mut house.served).await.unwrap();
    assert_eq!(drained, Drained { aborted: 0 });
    let events = [Happened::Asked("m".into()), Happened::Released];
    house.supervisor.expect(&events).await;
}

const DRAIN: Duration = Duration::from_millis(500);

#[tokio::test]
async fn a_stream_that_does_not_end_is_ended_with_an_event() {
    let script = vec![send(SSE), send(chunk("data: 1\n\n"))];
    let mut house = house(Setup { script, drain: DRAIN, ..Setup::default() }).await;
    let mut client = house.client().await;
    client.send(post_with(CHAT, "", BODY)).await;
    client.until("data: 1").await;
    house.engine.request().await;
    house.stop.cancel();
    let reply = client.reply().await;
    assert!(reply.whole, "{reply:?}");
    let (before, event) = reply.text().rsplit_once("data: ").unwrap();
    assert_eq!(before, "data: 1\n\n");
    let event: serde_json::Value = serde_json::from_str(event.trim_end()).unwrap();
    assert_eq!(event["error"]["code"], "shutting_down");
    let drained = soon("the server to end", &mut house.served).await.unwrap();
    assert_eq!(drained, Drained { aborted: 1 });
    house.engine.left().await;
    let events = [Happened::Asked("m".into()), Happened::Released];
    house.supervisor.expect(&events).await;
}

#[tokio::test]
async fn who_waits_for_the_engines_head_is_told() {
    let mut house = house(Setup { drain: DRAIN, ..Setup::default() }).await;
    let mut client = house.client().await;
    client.send(post_with(CHAT, "", BODY)).await;
    house.engine.request().await;
    house.stop.cancel();
    let reply = client.reply().await;
    let error = reply.error(503, "shutting_down");
    assert!(error["message"].as_str().unwrap().contains("drain_timeout"), "{error}");
    assert_eq!(reply.headers["retry-after"], "1");
    house.engine.left().await;
    let drained = soon("the server to end", &mut house.served).await.unwrap();
    assert_eq!(drained, Drained { aborted: 1 });
}

#[tokio::test]
async fn who_gets_signs_of_life_is_told_by_an_event() {
    let mut rules = rules();
    rules.feedback_after = Duration::from_millis(20);
    let setup = Setup { policy: Policy::Hold, rules, drain: DRAIN, ..Setup::default() };
    let mut house = house(setup).await;
    let mut client = house.client().await;
    client.send(post_with(CHAT, "", BODY)).await;
    client.until(": hostler phase=").await;
    house.stop.cancel();
    let reply = client.reply().await;
    assert!(reply.whole, "{reply:?}");
    assert!(reply.text().contains("\"code\":\"shutting_down\""), "{reply:?}");
    soon("the server to end", &mut house.served).await.unwrap();
    house.supervisor.expect(&[Happened::Asked("m".into()), Happened::Cancelled]).await;
}

#[tokio::test]
async fn half_a_plain_body_never_looks_whole() {
    let head =
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n";
    let script = vec![send(head), send(chunk("{\"a\":"))];
    let mut house = house(Setup { script, drain: DRAIN, ..Setup::default() }).await;
    let mut client = house.client().await;
    client.send(post_with(CHAT, "", BODY)).await;
    client.until("{\"a\":").await;
    house.stop.cancel();
    assert!(!client.reply().await.whole);
    soon("the server to end", &mut house.served).await.unwrap();
}

#[tokio::test]
async fn who_does_not_listen_is_cut() {
    let mut script = vec![send(SSE)];
    // More than all socket buffers on the way can hold.
    script.extend(std::iter::repeat_n(send(chunk(vec![b'x'; 1 << 20])), 64));
    let mut house = house(Setup { script, drain: DRAIN, ..Setup::default() }).await;
    let mut client = house.client().await;
    client.send(post_with(CHAT, "", BODY)).await;
    house.engine.request().await;
    house.stop.cancel();
    let drained = soon("the server to end", &mut house.served).await.unwrap();
    assert_eq!(drained, Drained { aborted: 1 });
    house.engine.left().await;
    let events = [Happened::Asked("m".into()), Happened::Released];
    house.supervisor.expect(&events).await;
}

#[tokio::test]
async fn an_idle_server_ends_soon() {
    let mut house = playing(vec![]).await;
    house.ask(get("/health")).await;
    house.stop.cancel();
    soon("the server to end", &mut house.served).await.unwrap();
    assert!(TcpStream::connect(house.tcp).await.is_err());
}
