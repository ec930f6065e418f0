//! Streams that wait for their model: what they get meanwhile, and how it ends.

use std::sync::Arc;
use std::time::Duration;

use hostler::proxy::port::{Behind, Side};
use hostler::types::{Denied, DoorSpec, Fault, FaultCode, Feedback, LoadProgress, Moment, Phase};
use tokio::sync::Semaphore;

use crate::engine::{Step, send};
use crate::house::{Ends, Happened, House, Policy, Setup, house, instance, rules};
use crate::wire::{CHAT, Reply, SSE, chunk, post, soon};

const STREAM: &str = r#"{"model":"m","stream":true,"messages":[]}"#;
const PLAIN: &str = r#"{"model":"m","messages":[]}"#;

async fn waiting(form: Feedback, script: Vec<Step>) -> House {
    seen_by(Behind::default(), form, script).await
}

/// A stream whose engine is asked once signs of life have come, and then does that.
async fn late(script: Vec<Step>) -> Reply {
    let house = waiting(Feedback::Comment, script).await;
    let mut client = house.client().await;
    client.send(post(CHAT, STREAM)).await;
    client.until(": hostler").await;
    house.supervisor.grant_held();
    client.reply().await
}

/// An engine that refuses with this.
fn bad_request(body: &str) -> Step {
    let head = "HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\ncontent-length: ";
    send(format!("{head}{}\r\n\r\n{body}", body.len()))
}

async fn seen_by(behind: Behind, form: Feedback, script: Vec<Step>) -> House {
    let mut rules = rules();
    rules.feedback_after = Duration::from_millis(20);
    rules.feedback_interval = Duration::from_millis(30);
    let spec = DoorSpec { feedback: form, ..DoorSpec::default() };
    rules.models.insert("m".parse().unwrap(), spec.into());
    let setup = Setup { policy: Policy::Hold, script, rules, behind, ..Setup::default() };
    let house = house(setup).await;
    house.supervisor.show("m", |m| {
        m.phase = Phase::Loading;
        // The last load took longer than what this one is of.
        m.load_ms = Some(90_000);
        m.progress = Some(progress(60));
    });
    house
}

/// Begun with the daemon, which is a moment ago.
fn progress(expected: u64) -> LoadProgress {
    let expected = Some(Duration::from_secs(expected));
    LoadProgress { since: Moment::START, expected, pulled: None }
}

fn events() -> Vec<Step> {
    vec![send(SSE), send(chunk("data: 1\n\n")), send(chunk("data: [DONE]\n\n")), send("0\r\n\r\n")]
}

#[tokio::test]
async fn comments_until_the_engines_own_bytes() {
    let mut house = waiting(Feedback::Comment, events()).await;
    let mut client = house.client().await;
    client.send(post(CHAT, STREAM)).await;
    client.until("phase=loading waited=0s eta=5").await;
    client.raw.clear();
    // More than one, with nobody's help.
    client.until(": hostler phase=loading").await;
    assert_eq!(house.supervisor.grant_held(), [true]);
    client.until("data: [DONE]").await;
    house.supervisor.expect(&[Happened::Asked("m".into()), Happened::Released]).await;
}

/// A wake, which takes a second where the load takes a minute and a half.
#[tokio::test]
async fn what_is_left_of_a_wake_is_what_wakes_take() {
    let house = waiting(Feedback::Comment, events()).await;
    house.supervisor.show("m", |m| {
        m.phase = Phase::Waking;
        m.progress = Some(progress(2));
    });
    let mut client = house.client().await;
    client.send(post(CHAT, STREAM)).await;
    client.until("phase=waking waited=0s eta=1s\n").await;
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
    let text = late(vec![bad_request(body)]).await;
    assert!(text.text().contains("data: {\"error\":{\"message\":\"bad temperature\""), "{text:?}");
    assert!(!text.text().contains("[DONE]"));
}

/// Of the shapes that are none of OpenAI's.
#[tokio::test]
async fn the_words_of_an_engine_that_refuses_after_the_200_are_told() {
    for body in [
        r#"{"object":"error","message":"the context is too long","code":400}"#,
        r#"{"detail":"the context is too long"}"#,
    ] {
        let reply = late(vec![bad_request(body)]).await;
        let words = "400 Bad Request instead of a stream: the context is too long\"";
        assert!(reply.text().contains(words), "{reply:?}");
        assert!(reply.text().contains("\"code\":\"engine_refused\""), "{reply:?}");
    }
}

/// What gathers an engine's stream before it passes it on knows its length; the client's head has none.
#[tokio::test]
async fn a_stream_of_a_stated_length_is_one() {
    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: 23";
    let all = "data: 1\n\ndata: [DONE]\n\n";
    for (sent, ends) in [(all, all), ("data: 1\n\n", "\"code\":\"engine_failed\"}}\n\n")] {
        let reply = late(vec![send(format!("{head}\r\n\r\n{sent}")), Step::Close]).await;
        assert!(reply.text().contains("data: 1\n\n") && reply.text().ends_with(ends), "{reply:?}");
        assert!(reply.whole && !reply.headers.contains_key("content-length"), "{reply:?}");
    }
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

/// A mistake of a client's is no end of its engine's or of this host's, though it was found behind the 200.
#[tokio::test]
async fn who_broke_off_what_failed_after_the_200_is_told_apart() {
    let failed = "HTTP/1.1 500 Oh\r\ncontent-length: 0\r\n\r\n";
    let no_room = Denied::NoRoom {
        model: "m".parse().unwrap(),
        why: "x".into(),
        report: None,
        retry_after: Duration::from_secs(5),
    };
    for (script, denied, want) in [
        (vec![bad_request("{}")], None, ("engine_refused", None)),
        (vec![send(failed)], None, ("engine_refused", Some(Side::Engine))),
        (vec![], Some(no_room), ("no_room", Some(Side::Host))),
    ] {
        let (behind, mut ends) = Ends::behind();
        let house = seen_by(behind, Feedback::Comment, script).await;
        let mut client = house.client().await;
        client.send(post(CHAT, STREAM)).await;
        client.until(": hostler").await;
        match denied {
            Some(denied) => house.supervisor.deny_held(&denied),
            None => drop(house.supervisor.grant_held()),
        }
        assert_eq!(client.reply().await.status, 200);
        let end = soon("the request to end", ends.recv()).await.unwrap();
        assert_eq!((end.status, end.refused, end.broken_by), (Some(200), Some(want.0), want.1));
    }
}

/// What an engine works on is no wait for it, whoever leaves.
#[tokio::test]
async fn a_client_that_leaves_after_the_engine_was_asked_has_waited_until_then() {
    for asked in [true, false] {
        let (behind, mut ends) = Ends::behind();
        let silent = vec![Step::Gate(Arc::new(Semaphore::new(0)))];
        let mut house = seen_by(behind, Feedback::Comment, silent).await;
        let mut client = house.client().await;
        client.send(post(CHAT, STREAM)).await;
        client.until(": hostler").await;
        if asked {
            assert_eq!(house.supervisor.grant_held(), [true]);
            house.engine.request().await;
        }
        // One that was due, and one that is due an interval later.
        for _ in 0..2 {
            client.raw.clear();
            client.until(": hostler").await;
        }
        drop(client);
        let end = soon("the request to end", ends.recv()).await.unwrap();
        let (queue, total) = (end.queue.unwrap(), end.total);
        assert_eq!(end.instance, asked.then(self::instance));
        assert_eq!(total - queue >= Duration::from_millis(25), asked, "{queue:?} of {total:?}");
    }
}
