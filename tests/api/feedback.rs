//! Streams that wait for their model: what they get meanwhile, and how it ends.

use std::time::Duration;

use hostler::types::{Denied, DoorSpec, Fault, FaultCode, Feedback, Phase};

use crate::engine::send;
use crate::house::{Happened, House, Policy, Setup, house, rules};
use crate::wire::{CHAT, SSE, chunk, post};

const STREAM: &str = r#"{"model":"m","stream":true,"messages":[]}"#;
const PLAIN: &str = r#"{"model":"m","messages":[]}"#;

async fn waiting(form: Feedback, script: Vec<crate::engine::Step>) -> House {
    let mut rules = rules();
    rules.feedback_after = Duration::from_millis(20);
    rules.feedback_interval = Duration::from_millis(30);
    let spec = DoorSpec { feedback: form, ..DoorSpec::default() };
    rules.models.insert("m".parse().unwrap(), spec.into());
    let house = house(Setup { policy: Policy::Hold, script, rules, ..Setup::default() }).await;
    house.supervisor.show("m", |m| {
        m.phase = Phase::Loading;
        m.load_ms = Some(60_000);
    });
    house
}

fn events() -> Vec<crate::engine::Step> {
    vec![send(SSE), send(chunk("data: 1\n\n")), send(chunk("data: [DONE]\n\n")), send("0\r\n\r\n")]
}

#[tokio::test]
async fn comments_until_the_engines_own_bytes() {
    let mut house = waiting(Feedback::Comment, events()).await;
    let mut client = house.client().await;
    client.send(post(CHAT, STREAM)).await;
    client.until("phase=loading waited=0s eta=59s\n").await;
    client.raw.clear();
    // More than one, with nobody's help.
    client.until(": hostler phase=loading").await;
    assert_eq!(house.supervisor.grant_held(), [true]);
    client.until("data: [DONE]").await;
    house.supervisor.expect(&[Happened::Asked("m".into()), Happened::Released]).await;
}

#[tokio::test]
async fn the_bytes_are_those_that_are_safe() {
    for (path, form) in
        [(CHAT, Feedback::Comment), (CHAT, Feedback::Chunk), ("/v1/messages", Feedback::Comment)]
    {
        let house = waiting(form, events()).await;
        let mut client = house.client().await;
        client.send(post(path, STREAM)).await;
        let sign = match (path, form) {
            (CHAT, Feedback::Comment) => ": hostler",
            (CHAT, _) => "\"delta\":{\"content\":\"\"}",
            _ => "event: ping",
        };
        client.until(sign).await;
        assert_eq!(house.supervisor.grant_held(), [true]);
        let reply = client.reply().await;
        assert_eq!((reply.status, reply.whole), (200, true));
        assert_eq!(reply.headers["content-type"], "text/event-stream");
        let (signs, rest) = reply.text().split_once("data: 1\n\n").unwrap();
        assert_eq!(rest, "data: [DONE]\n\n");
        assert!(!signs.contains("id:") || form == Feedback::Chunk, "{signs}");
        assert!(!signs.starts_with('\n') && !signs.contains("\n\n\n"), "{signs}");
        if (path, form) == (CHAT, Feedback::Comment) {
            for line in signs.lines() {
                let ok = line.starts_with(": hostler phase=");
                assert!(ok, "one line each, and no blank one after it: {signs:?}");
            }
        }
    }
}

#[tokio::test]
async fn a_load_that_fails_after_the_200_ends_with_an_error_event() {
    let fault = Fault::new(FaultCode::EngineExited, "exit 1").with_log(vec!["boom".into()]);
    let failed = Denied::LoadFailed {
        model: "m".parse().unwrap(),
        fault,
        retry_after: Duration::from_secs(5),
    };
    for (path, begin) in [
        (CHAT, "data: {\"error\":{\"message\":\"model m failed"),
        ("/v1/messages", "event: error\ndata: {\"type\":\"error\",\"error\":{"),
        ("/v1/responses", "event: error\ndata: {\"type\":\"error\",\"code\":\"model_load_failed\""),
    ] {
        let house = waiting(Feedback::Comment, vec![]).await;
        let mut client = house.client().await;
        client.send(crate::wire::post_with(path, "", STREAM)).await;
        client.until(if path == "/v1/messages" { "ping" } else { ": hostler" }).await;
        house.supervisor.deny_held(&failed);
        // The connection ends, although the client would keep it.
        let reply = client.reply().await;
        assert_eq!((reply.status, reply.whole), (200, true));
        let text = reply.text();
        assert!(text.contains(begin), "{path}: {text}");
        assert!(text.contains("boom") || path == "/v1/responses", "{text}");
        assert!(text.ends_with("}\n\n") && !text.contains("[DONE]"), "{text}");
    }
}

#[tokio::test]
async fn an_engine_that_refuses_after_the_200_is_heard() {
    let body = r#"{"error":{"message":"bad temperature","type":"invalid_request_error"}}"#;
    let head = "HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\ncontent-length: ";
    let script = vec![send(format!("{head}{}\r\n\r\n{body}", body.len()))];
    let house = waiting(Feedback::Comment, script).await;
    let mut client = house.client().await;
    client.send(post(CHAT, STREAM)).await;
    client.until(": hostler").await;
    house.supervisor.grant_held();
    let text = client.reply().await;
    assert!(text.text().contains("data: {\"error\":{\"message\":\"bad temperature\""), "{text:?}");
    assert!(!text.text().contains("[DONE]"));
}

/// Who is served soon, and who asks for no stream, gets the status that is true.
#[tokio::test]
async fn quick_answers_and_plain_ones_keep_their_status() {
    let body = "HTTP/1.1 418 Odd\r\ncontent-length: 0\r\n\r\n";
    let mut setup = Setup { script: vec![send(body)], ..Setup::default() };
    setup.rules.feedback_after = Duration::from_secs(20);
    let quick = house(setup).await;
    assert_eq!(quick.ask(post(CHAT, STREAM)).await.status, 418);
    for (form, request) in [(Feedback::Comment, PLAIN), (Feedback::Off, STREAM)] {
        let house = waiting(form, vec![send(body)]).await;
        let mut client = house.client().await;
        client.send(post(CHAT, request)).await;
        let mut supervisor = house.supervisor;
        supervisor.expect(&[Happened::Asked("m".into())]).await;
        // Longer than a stream would be left in silence.
        tokio::time::sleep(Duration::from_millis(80)).await;
        supervisor.grant_held();
        assert_eq!(client.reply().await.status, 418, "{form:?}");
    }
}

#[tokio::test]
async fn a_client_that_leaves_while_it_gets_signs_of_life_leaves_the_queue() {
    let mut house = waiting(Feedback::Comment, vec![]).await;
    let mut client = house.client().await;
    client.send(post(CHAT, STREAM)).await;
    client.until(": hostler").await;
    drop(client);
    house.supervisor.expect(&[Happened::Asked("m".into()), Happened::Cancelled]).await;
}
