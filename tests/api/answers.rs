//! Answers of our own: routes, refusals and their shapes.

use std::sync::Arc;
use std::time::Duration;

use hostler::types::{Denied, Fault, FaultCode, Moment, Phase, Problem};
use serde_json::Value;

use crate::house::{Happened, Policy, Setup, house, key, playing, rules};
use crate::wire::{BODY, CHAT, get, post};

#[tokio::test]
async fn models_are_listed_and_none_is_woken() {
    let mut house = playing(vec![]).await;
    let list = house.ask(get("/v1/models")).await;
    assert_eq!(list.status, 200);
    let list = list.json();
    assert_eq!(list["object"], "list");
    let ids: Vec<&Value> = list["data"].as_array().unwrap().iter().map(|m| &m["id"]).collect();
    assert_eq!(ids, ["m", "gpt-4o", "org/big"]);
    assert_eq!(list["data"][0]["owned_by"], "hostler");
    for path in ["/v1/models/org/big", "/v1/models/org%2Fbig"] {
        assert_eq!(house.ask(get(path)).await.json()["id"], "org/big");
    }
    let error = house.ask(get("/v1/models/nope")).await.error(404, "model_not_found");
    assert_eq!(error["param"], "model");
    house.supervisor.quiet();
    house.engine.untouched();
}

/// One that was removed from the configuration is in the picture until it is gone; asking for it is answered 404 from the removal on.
#[tokio::test]
async fn a_model_that_was_removed_and_still_drains_is_not_listed() {
    let mut setup = Setup::default();
    setup.rules.models.retain(|name, _| name.as_str() != "m");
    setup.rules.aliases.clear();
    let house = house(setup).await;
    let list = house.ask(get("/v1/models")).await.json();
    let ids: Vec<&Value> = list["data"].as_array().unwrap().iter().map(|m| &m["id"]).collect();
    assert_eq!(ids, ["org/big"]);
    for gone in ["/v1/models/m", "/v1/models/gpt-4o"] {
        house.ask(get(gone)).await.error(404, "model_not_found");
    }
    let tags = house.ask(get("/api/tags")).await.json();
    let names: Vec<&Value> =
        tags["models"].as_array().unwrap().iter().map(|m| &m["name"]).collect();
    assert_eq!(names, ["org/big"]);
    // Operators see what still takes memory.
    let status = house.ask(get("/api/v1/status")).await.json();
    assert_eq!(status["models"][0]["name"], "m");
}

#[tokio::test]
async fn health_ready_status() {
    let house = playing(vec![]).await;
    assert_eq!(house.ask(get("/health")).await.status, 200);
    assert_eq!(house.ask(get("/ready")).await.status, 200);
    let status = house.ask(get("/api/v1/status")).await.json();
    assert_eq!(status["models"][1]["name"], "org/big");
    let text = get("/api/v1/status").replace("\r\n\r\n", "\r\naccept: text/plain\r\n\r\n");
    let table = house.ask(text).await;
    assert_eq!(table.headers["content-type"], "text/plain; charset=utf-8");
    assert!(table.text().starts_with("MODEL    PHASE"), "{}", table.text());

    house.supervisor.status.send_modify(|status| {
        let mut changed = (**status).clone();
        changed.problems.push(Problem {
            code: "gpu_lost",
            message: "GPU-a is lost".into(),
            since: Moment::START,
        });
        *status = Arc::new(changed);
    });
    let ready = house.ask(get("/ready")).await;
    assert_eq!(ready.status, 503);
    assert_eq!(ready.json()["problems"][0]["code"], "gpu_lost");
    assert_eq!(house.ask(get("/health")).await.status, 200);
}

#[tokio::test]
async fn head_answers_without_a_body() {
    let house = playing(vec![]).await;
    let reply = house.ask(get("/health").replace("GET", "HEAD")).await;
    assert_eq!((reply.status, reply.body.len()), (200, 0));
    assert_ne!(reply.headers["content-length"], "0");
}

/// What a new admin's browser opens first, and what `ollama list` asks before anything else.
#[tokio::test]
async fn the_root_says_what_this_is_to_everybody() {
    let rules = hostler::proxy::Rules { keys: vec![key("alice")], ..rules() };
    let house = house(Setup { rules, ..Setup::default() }).await;
    let reply = house.ask(get("/")).await;
    assert_eq!((reply.status, &*reply.headers["content-type"]), (200, "text/plain; charset=utf-8"));
    assert_eq!(reply.text(), "Hostler is running; the API is at /v1, the dashboard at /ui\n");
    let reply = house.ask(get("/").replace("GET", "HEAD")).await;
    assert_eq!((reply.status, reply.body.len()), (200, 0));
    house.ask(post("/", BODY)).await.error(405, "method_not_allowed");
    let refused = house.ask(get("/v1/models")).await;
    assert_eq!(&*refused.headers["x-should-retry"], "false");
    refused.error(401, "invalid_api_key");
}

#[tokio::test]
async fn wrong_paths_and_methods() {
    let mut house = playing(vec![]).await;
    house.ask(get("/v2")).await.error(404, "unknown_path");
    house.ask(post("/sleep", BODY)).await.error(404, "unknown_path");
    let ollamas = house.ask(post("/api/chat", BODY)).await;
    assert_eq!(ollamas.status, 404);
    assert!(ollamas.json()["error"].as_str().unwrap().contains("http://HOST:PORT/v1"));
    let reply = house.ask(get(CHAT)).await;
    reply.error(405, "method_not_allowed");
    assert_eq!(reply.headers["allow"], "POST");
    let reply = house.ask(post("/v1/models", BODY)).await;
    reply.error(405, "method_not_allowed");
    assert_eq!(reply.headers["allow"], "GET, HEAD");
    let bare = format!("POST {CHAT} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    house.ask(bare).await.error(411, "length_required");
    house.supervisor.quiet();
    house.engine.untouched();
}

#[tokio::test]
async fn a_refused_post_leaves_the_connection_usable() {
    let house = playing(vec![]).await;
    let mut client = house.client().await;
    client.send(crate::wire::post_with("/nowhere", "", vec![b'x'; 200_000])).await;
    client.until("unknown_path").await;
    client.send(get("/health")).await;
    client.until("{\"status\":\"ok\"}").await;
}

#[tokio::test]
async fn fault_25_bad_bodies() {
    let mut house = playing(vec![]).await;
    for (body, code, param) in [
        ("", "invalid_json", Value::Null),
        ("{", "invalid_json", Value::Null),
        ("[]", "invalid_json", Value::Null),
        ("{}", "missing_required_parameter", "model".into()),
        ("{\"model\":7}", "invalid_type", "model".into()),
        ("{\"model\":\"m\",\"stream\":\"yes\"}", "invalid_type", "stream".into()),
        ("{\"model\":\"m\",\"model\":\"m\"}", "duplicate_parameter", "model".into()),
    ] {
        let error = house.ask(post(CHAT, body)).await.error(400, code);
        assert_eq!(error["param"], param, "{body}");
        assert_eq!(error["type"], "invalid_request_error");
    }
    let packed = b"\x1f\x8b\x08\0\0\0\0\0\0\x03".to_vec();
    let packed =
        crate::wire::post_with(CHAT, "connection: close\r\ncontent-encoding: gzip\r\n", packed);
    house.ask(packed).await.error(415, "unsupported_encoding");
    // Large enough to be looked into on another thread.
    let large = format!("{{\"x\":\"{}\"}}", "y".repeat(1 << 20));
    house.ask(post(CHAT, large)).await.error(400, "missing_required_parameter");
    let name = format!("{{\"model\":\"{}\"}}", "y".repeat(1 << 20));
    let reply = house.ask(post(CHAT, name)).await;
    reply.error(404, "model_not_found");
    assert!(reply.body.len() < 1000);
    house.supervisor.quiet();
    house.engine.untouched();
}

#[tokio::test]
async fn refusals_of_the_supervisor() {
    let m = || "m".parse().unwrap();
    let after = Duration::from_millis(2500);
    let fault = Fault::new(FaultCode::EngineExited, "exit 1").with_log(vec!["boom".into()]);
    let cases = [
        (Denied::UnknownModel { model: "m".into() }, 404, None),
        (
            Denied::NoRoom { model: m(), why: "x".into(), report: None, retry_after: after },
            503,
            Some("3"),
        ),
        (
            Denied::StillLoading { model: m(), phase: Phase::Loading, retry_after: after },
            503,
            Some("3"),
        ),
        (Denied::QueueFull { model: m(), queued: 5, retry_after: Duration::ZERO }, 503, Some("1")),
        (Denied::LoadFailed { model: m(), fault, retry_after: after }, 503, Some("3")),
        (Denied::ShuttingDown, 503, Some("1")),
    ];
    for (denied, status, retry) in cases {
        let policy = Policy::Deny(denied.clone());
        let mut house = house(Setup { policy, ..Setup::default() }).await;
        let reply = house.ask(post(CHAT, BODY)).await;
        let error = reply.error(status, denied.code());
        assert_eq!(reply.headers.get("retry-after").map(String::as_str), retry, "{denied}");
        if matches!(denied, Denied::LoadFailed { .. }) {
            assert_eq!(error["details"]["fault"], "engine_exited");
            assert_eq!(error["details"]["log_tail"][0], "boom");
        }
        house.supervisor.expect(&[Happened::Asked("m".into())]).await;
        house.engine.untouched();
    }
    let never = Denied::NeverFits {
        model: m(),
        need: hostler::types::Bytes::gib(9),
        devices: 1,
        largest: hostler::types::Bytes::gib(8),
        report: None,
    };
    let house = house(Setup { policy: Policy::Deny(never), ..Setup::default() }).await;
    let reply = house.ask(post(CHAT, BODY)).await;
    reply.error(503, "model_never_fits");
    assert_eq!(reply.headers["x-should-retry"], "false");
    assert!(!reply.headers.contains_key("retry-after"));
}
