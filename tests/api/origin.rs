//! What an engine may not tell a client: where to go instead, and what would hold for all of this host.

use std::time::Duration;

use hostler::types::{Bytes, Phase};

use crate::engine::{Engine, Family, Step, send};
use crate::external;
use crate::flowing::{Taker, before};
use crate::house::{House, Setup, house, instance, playing};
use crate::sockets::OPENING;
use crate::wire::{CHAT, Reply, get, post};

const ELSEWHERE: &str = "HTTP/1.1 307 Elsewhere\r\nlocation: http://evil.example/\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";

/// Clients would send all that they have sent here to the other place, too.
fn is_kept_here(reply: &Reply) {
    let error = reply.error(502, "engine_failed");
    let message = error["message"].as_str().unwrap();
    assert!(message.ends_with("with a redirect (307), which is not followed"), "{message}");
    assert!(!reply.headers.contains_key("location"), "{reply:?}");
}

#[tokio::test]
async fn a_redirect_of_an_engines_is_a_fault_of_its() {
    let house = playing(vec![send(ELSEWHERE)]).await;
    is_kept_here(&house.ask(post(CHAT, r#"{"model":"m"}"#)).await);
    let opening = OPENING.replace("\r\n\r\n", "\r\nconnection: close\r\n\r\n");
    is_kept_here(&house.ask(opening).await);
    // What cannot be told from an order to go elsewhere.
    for status in [300, 301, 302, 303, 304, 308, 399] {
        let script = vec![send(ELSEWHERE.replace("307", &status.to_string()))];
        let reply = playing(script).await.ask(post(CHAT, r#"{"model":"m"}"#)).await;
        reply.error(502, "engine_failed");
    }
}

#[tokio::test]
async fn a_redirect_is_no_answer_to_a_body_that_flows() {
    let mut setup = Setup { script: vec![send(ELSEWHERE)], ..Setup::default() };
    setup.limits.flow_pace = Duration::from_secs(3600);
    // One that does not flow is refused.
    setup.rules.max_buffered = Bytes::mib(1);
    let large = format!(r#"{{"model":"m","input":"{}"}}"#, "a".repeat(2 << 20));
    is_kept_here(&house(setup).await.ask(post(CHAT, large)).await);
}

#[tokio::test]
async fn a_redirect_is_no_stored_response() {
    let stored =
        "HTTP/1.1 200 OK\r\ncontent-length: 15\r\nconnection: close\r\n\r\n{\"id\":\"resp_a\"}";
    let (house, listener, _dir) = before(|_| {}).await;
    house.supervisor.show("m", |m| {
        m.instance = Some(instance());
        m.phase = Phase::Ready;
    });
    let asked = async |house: &House, request: Vec<u8>, said: &str| {
        let engine = async {
            let mut taker = Taker::accept(&listener).await;
            taker.answer(said).await;
        };
        tokio::join!(house.ask(request), engine).0
    };
    let first = asked(&house, post("/v1/responses", r#"{"model":"m"}"#), stored).await;
    assert_eq!(first.status, 200);
    is_kept_here(&asked(&house, get("/v1/responses/resp_a").into(), ELSEWHERE).await);
}

/// It may be honest, and mean another address of its own: there its clients would be past all keys and limits.
#[tokio::test]
async fn a_redirect_of_one_that_runs_elsewhere_is_a_fault_of_its() {
    let dir = tempfile::tempdir().unwrap();
    let far = Engine::start(Family::Tcp, dir.path(), vec![send(ELSEWHERE), Step::Close]).await;
    let house = external::with(&far.endpoint, None).await;
    is_kept_here(&house.ask(post(CHAT, r#"{"model":"far/away"}"#)).await);
}
