//! Large bodies that are taken in before an engine is asked, and why each of them is.

use std::time::Duration;

use hostler::proxy::Key;
use hostler::types::DoorSpec;

use crate::flowing::{OK, SHORT, Taker, before, body, pour};
use crate::house::{Happened, Policy, Setup, key};
use crate::wire::{BODY, CHAT, chunk, post, post_with};

#[tokio::test]
async fn a_body_of_unknown_length_is_taken_in_and_gets_one() {
    let (house, listener, _dir) = before(|_| {}).await;
    let body = body("}");
    let mut request = format!(
        "POST {CHAT} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n"
    )
    .into_bytes();
    for piece in body.chunks(1 << 20) {
        request.extend(chunk(piece));
    }
    let mut client = house.client().await;
    pour(&mut client, &request).await;
    let early = tokio::time::timeout(SHORT, listener.accept()).await;
    assert!(early.is_err(), "an engine was asked before the end was there");
    client.send("0\r\n\r\n").await;
    let mut taker = Taker::accept(&listener).await;
    assert!(taker.head.contains(&format!("content-length: {}\r\n", body.len())));
    assert!(taker.take(body.len()).await && taker.body == body);
    taker.answer(OK).await;
    assert_eq!(client.reply().await.status, 200);
}

#[tokio::test]
async fn a_slow_client_keeps_no_engine_waiting() {
    let (mut house, listener, _dir) = before(|s| s.limits.flow_pace = Duration::ZERO).await;
    let body = body("}");
    let request = post(CHAT, &body);
    let (most, last) = request.split_at(request.len() - 1);
    let mut client = house.client().await;
    pour(&mut client, most).await;
    let early = tokio::time::timeout(SHORT, listener.accept()).await;
    assert!(early.is_err(), "an engine was asked before the end was there");
    house.supervisor.quiet();
    client.send(last).await;
    let mut taker = Taker::accept(&listener).await;
    assert!(taker.take(body.len()).await && taker.body == body);
    taker.answer(OK).await;
    assert_eq!(client.reply().await.status, 200);
}

#[tokio::test]
async fn a_model_that_is_not_there_is_waited_for_with_the_body_in_hand() {
    let (mut house, listener, _dir) = before(|s| s.policy = Policy::Hold).await;
    let body = body(r#","stream":true}"#);
    let request = post(CHAT, &body);
    let asked = || Happened::Asked("m".into());
    let mut client = house.client().await;
    pour(&mut client, &request).await;
    // The body's end is needed to know how to wait.
    house.supervisor.expect(&[asked(), Happened::Cancelled, asked()]).await;
    client.until(": hostler phase=").await;
    assert_eq!(house.supervisor.grant_held(), [false, true]);
    let mut taker = Taker::accept(&listener).await;
    assert!(taker.take(body.len()).await && taker.body == body);
    let sse = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\ndata: 1\n\n";
    taker.answer(sse).await;
    client.until("data: 1\n\n").await;
    // A client that leaves while it waits is felt, whatever it has sent.
    drop(client);
    taker.left().await;
    let ends = [house.supervisor.next().await, house.supervisor.next().await];
    assert_eq!(ends, [Happened::Released, Happened::Released]);
}

#[tokio::test]
async fn a_place_in_the_queue_is_counted_once_and_kept() {
    let key = Key { per_minute: Some(1), ..key("a") };
    let hold = |s: &mut Setup| {
        s.policy = Policy::Hold;
        s.rules.keys = vec![key];
    };
    let (mut house, listener, _dir) = before(hold).await;
    let large = body("}");
    let with_key = "authorization: Bearer sk-a\r\nconnection: close\r\n";
    let mut client = house.client().await;
    pour(&mut client, &post_with(CHAT, with_key, &large)).await;
    let asked = || Happened::Asked("m".into());
    house.supervisor.expect(&[asked(), Happened::Cancelled, asked()]).await;
    house.supervisor.grant_held();
    let mut taker = Taker::accept(&listener).await;
    assert!(taker.take(large.len()).await);
    taker.answer(OK).await;
    assert_eq!(client.reply().await.status, 200);
    house.ask(post_with(CHAT, with_key, BODY)).await.error(429, "rate_limited");
}

#[tokio::test]
async fn who_has_to_wait_for_a_turn_waits_with_the_body_in_hand() {
    let one = |s: &mut Setup| {
        let spec = DoorSpec { max_concurrent: Some(1), ..DoorSpec::default() };
        s.rules.models.insert("m".parse().unwrap(), spec.into());
    };
    let (mut house, listener, _dir) = before(one).await;
    let large = body("}");
    let request = post(CHAT, &large);
    let (mut first, mut second) = (house.client().await, house.client().await);
    let engine = async {
        let mut taker = Taker::accept(&listener).await;
        assert!(taker.take(large.len()).await);
        taker
    };
    let (mut taker, ()) = tokio::join!(engine, pour(&mut first, &request));
    pour(&mut second, &request).await;
    let asked = || Happened::Asked("m".into());
    house.supervisor.expect(&[asked()]).await;
    house.supervisor.quiet();
    // So the second gets a connection of its own, too.
    taker.answer("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\n{}").await;
    assert_eq!(first.reply().await.status, 200);
    let mut taker = Taker::accept(&listener).await;
    assert!(taker.take(large.len()).await);
    house.supervisor.expect(&[Happened::Released, asked()]).await;
    taker.answer(OK).await;
    assert_eq!(second.reply().await.status, 200);
}

/// It takes its time with its body, and no turn from who is there: the one that comes while it does is served, and it is when it is
/// there.
#[tokio::test]
async fn who_is_slow_with_its_body_holds_no_turn_meanwhile() {
    let one = |s: &mut Setup| {
        let spec = DoorSpec { max_concurrent: Some(1), ..DoorSpec::default() };
        s.rules.models.insert("m".parse().unwrap(), spec.into());
    };
    let (mut house, listener, _dir) = before(one).await;
    let asked = || Happened::Asked("m".into());
    let closing = "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\n{}";
    let mut first = house.client().await;
    first.send(post(CHAT, BODY)).await;
    let mut taker = Taker::accept(&listener).await;
    house.supervisor.expect(&[asked()]).await;
    let large = body("}");
    let request = post(CHAT, &large);
    let (most, last) = request.split_at(request.len() - 1);
    let mut slow = house.client().await;
    pour(&mut slow, most).await;
    // It has a place in the queue by now, and its turn comes.
    taker.answer(closing).await;
    assert_eq!(first.reply().await.status, 200);
    house.supervisor.expect(&[Happened::Released]).await;
    let mut third = house.client().await;
    third.send(post(CHAT, BODY)).await;
    let mut taker = Taker::accept(&listener).await;
    assert!(taker.take(BODY.len()).await);
    house.supervisor.expect(&[asked()]).await;
    slow.send(last).await;
    house.supervisor.quiet();
    taker.answer(closing).await;
    assert_eq!(third.reply().await.status, 200);
    let mut taker = Taker::accept(&listener).await;
    assert!(taker.take(large.len()).await && taker.body == large);
    house.supervisor.expect(&[Happened::Released, asked()]).await;
    taker.answer(OK).await;
    assert_eq!(slow.reply().await.status, 200);
}
