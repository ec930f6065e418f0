//! Every route that leads to an engine: its bytes, its errors' shape, and what is not there.

use std::sync::Arc;

use hostler::proxy::Rules;
use hostler::types::{DoorSpec, Phase};
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use crate::engine::{Step, send};
use crate::house::{Happened, House, Setup, house, instance, key, playing, rules};
use crate::wire::{BODY, CHAT, SSE, chunk, get, post, post_with};

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nserver: e\r\nx-odd: 1\r\ncontent-length: 7\r\n\r\n{\"a\":1}";

/// Those whose model is in JSON.
pub const JSON_PATHS: [&str; 15] = [
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/embeddings",
    "/v1/rerank",
    "/rerank",
    "/v2/rerank",
    "/v1/score",
    "/score",
    "/v1/audio/speech",
    "/v1/images/generations",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/tokenize",
    "/detokenize",
];

/// Those whose model is a field of a form.
pub const FORM_PATHS: [&str; 2] = ["/v1/audio/transcriptions", "/v1/audio/translations"];

#[tokio::test]
async fn every_path_reaches_the_engine_and_comes_back_as_it_is() {
    let mut house = playing(vec![send(OK), Step::Close]).await;
    for path in JSON_PATHS {
        let body = format!("{{ \"input\":\"\\u00e9\", \"model\":\"m\", \"path\":\"{path}\" }}");
        let reply = house.ask(post(path, &body)).await;
        assert_eq!((reply.status, reply.text()), (200, "{\"a\":1}"), "{path}");
        assert_eq!((&*reply.headers["server"], &*reply.headers["x-odd"]), ("e", "1"));
        let seen = house.engine.request().await;
        assert_eq!(seen.line, format!("POST {path} HTTP/1.1"));
        assert_eq!(String::from_utf8(seen.body).unwrap(), body);
    }
}

#[tokio::test]
async fn an_upload_names_its_model_in_the_form() {
    let mut house = playing(vec![send(OK), Step::Close]).await;
    let form = "--XX\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a.wav\"\r\n\
                Content-Type: audio/wav\r\n\r\nRIFF\0\r\n\r\n--XX\r\n\
                Content-Disposition: form-data; name=\"model\"\r\n\r\nm\r\n--XX--\r\n";
    let upload = |path: &str, form: &str| {
        format!(
            "POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: multipart/form-data; boundary=XX\r\n\
             content-length: {}\r\nconnection: close\r\n\r\n{form}",
            form.len()
        )
    };
    for path in FORM_PATHS {
        assert_eq!(house.ask(upload(path, form)).await.status, 200);
        let seen = house.engine.request().await;
        assert_eq!(seen.line, format!("POST {path} HTTP/1.1"));
        assert_eq!(seen.headers["content-type"], "multipart/form-data; boundary=XX");
        assert_eq!(seen.body, form.as_bytes());
        house.supervisor.expect(&[Happened::Asked("m".into()), Happened::Released]).await;
    }
    let twice = form.replace(
        "--XX--",
        "--XX\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\nn\r\n--XX--",
    );
    house.ask(upload("/v1/audio/translations", &twice)).await.error(400, "duplicate_parameter");
    house.ask(post("/v1/audio/translations", "{\"model\":\"m\"}")).await.error(400, "invalid_form");
    house.supervisor.quiet();
    house.engine.untouched();
}

#[tokio::test]
async fn each_dialect_gets_its_errors() {
    let house = playing(vec![]).await;
    let reply = house.ask(post("/v1/messages", "{}")).await;
    assert_eq!(reply.status, 400);
    let body: Value = reply.json();
    assert_eq!(body["type"], "error");
    assert_eq!(body["error"]["type"], "invalid_request_error");
    let reply = house.ask(get("/v1/messages")).await;
    assert_eq!((reply.status, &reply.json()["type"]), (405, &json!("error")));
    let reply = house.ask(get("/api/nothing")).await;
    assert_eq!(reply.status, 404);
    assert!(reply.json()["error"].is_string());
    house.ask(get("/v1/nothing")).await.error(404, "unknown_path");
}

/// What engines offer for their own development, and what would cost the host something, is nobody's.
#[tokio::test]
async fn what_is_not_listed_is_not_there() {
    let mut house = playing(vec![]).await;
    for path in [
        "/sleep",
        "/wake_up",
        "/is_sleeping",
        "/collective_rpc",
        "/pause",
        "/server_info",
        "/reset_prefix_cache",
        "/start_profile",
        "/v1/load_lora_adapter",
        "/v1/audio/other",
        "/props",
        "/slots",
        "/flush_cache",
        "/update_weights_from_disk",
        "/openapi.json",
        "/docs",
        "/api/generate",
        "/api/pull",
        "/v1/responses/a/b",
    ] {
        for request in [get(path).into_bytes(), post(path, "{\"model\":\"m\"}")] {
            let reply = house.ask(request).await;
            assert_eq!(reply.status, 404, "{path}");
        }
    }
    house.supervisor.quiet();
    house.engine.untouched();
}

#[tokio::test]
async fn ollamas_clients_find_the_models() {
    let mut house = playing(vec![]).await;
    let tags = house.ask(get("/api/tags")).await.json();
    let names: Vec<&Value> =
        tags["models"].as_array().unwrap().iter().map(|m| &m["name"]).collect();
    assert_eq!(names, ["m", "gpt-4o", "org/big"]);
    assert!(house.ask(get("/api/version")).await.json()["version"].is_string());
    assert_eq!(house.ask(get("/api/ps")).await.json(), json!({"models": []}));
    house.supervisor.quiet();
}

const STORED: &str = "{\"id\":\"resp_a-1\",\"object\":\"response\"}";

fn stored() -> String {
    let length = STORED.len();
    format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{STORED}"
    )
}

#[tokio::test]
async fn a_response_is_had_again_from_the_instance_that_gave_it() {
    let body = STORED;
    let mut house = playing(vec![send(stored()), Step::Close]).await;
    house.ask(get("/v1/responses/resp_a-1")).await.error(404, "response_not_found");
    assert_eq!(house.ask(post("/v1/responses", "{\"model\":\"gpt-4o\"}")).await.text(), body);
    house.engine.request().await;
    house.supervisor.expect(&[Happened::Asked("m".into()), Happened::Released]).await;
    // Its engine is gone: nobody is woken for it.
    house.ask(get("/v1/responses/resp_a-1")).await.error(404, "response_not_found");
    house.supervisor.quiet();
    house.supervisor.show("m", |m| m.instance = Some(instance()));
    // It cannot take a request now: it is not made ready for one of these.
    for (phase, status, code) in [
        (Phase::Draining, 503, "model_not_ready"),
        (Phase::Dozing, 503, "model_not_ready"),
        (Phase::Asleep, 503, "model_not_ready"),
        (Phase::Waking, 503, "model_not_ready"),
        (Phase::Stopping, 404, "response_not_found"),
        (Phase::Failed, 404, "response_not_found"),
    ] {
        house.supervisor.show("m", |m| m.phase = phase);
        house.ask(get("/v1/responses/resp_a-1")).await.error(status, code);
        house.ask(post("/v1/responses/resp_a-1/cancel", "")).await.error(status, code);
    }
    house.supervisor.quiet();
    house.supervisor.show("m", |m| m.phase = Phase::Ready);
    assert_eq!(house.ask(get("/v1/responses/resp_a-1")).await.text(), body);
    house.supervisor.expect(&[Happened::Reached("m".into())]).await;
    let seen = house.engine.request().await;
    assert_eq!(seen.line, "GET /v1/responses/resp_a-1 HTTP/1.1");
    assert!(!seen.headers.contains_key("content-type"));
    let resumed = get("/v1/responses/resp_a-1?stream=true&starting_after=5&x=%0d");
    assert_eq!(house.ask(resumed).await.text(), body);
    let seen = house.engine.request().await.line;
    assert_eq!(seen, "GET /v1/responses/resp_a-1?stream=true&starting_after=5 HTTP/1.1");
    let cancel = post("/v1/responses/resp_a-1/cancel", "");
    assert_eq!(house.ask(cancel).await.status, 200);
    assert_eq!(house.engine.request().await.line, "POST /v1/responses/resp_a-1/cancel HTTP/1.1");
    house.ask(get("/v1/responses/resp_b")).await.error(404, "response_not_found");
}

#[tokio::test]
async fn an_answer_that_is_no_success_is_no_response_to_be_had_again() {
    let refusal = stored().replace("200 OK", "400 Bad Request");
    let mut house = playing(vec![send(refusal), Step::Close]).await;
    house.supervisor.show("m", |m| {
        m.instance = Some(instance());
        m.phase = Phase::Ready;
    });
    let refused = house.ask(post("/v1/responses", "{\"model\":\"m\"}")).await;
    assert_eq!((refused.status, refused.text()), (400, STORED));
    house.engine.request().await;
    house.ask(get("/v1/responses/resp_a-1")).await.error(404, "response_not_found");
    house.engine.untouched();
}

/// What alice's requests have in their heads.
const ALICE: &str = "authorization: Bearer sk-alice\r\nconnection: close\r\n";

/// The response, asked for again.
fn retrieval() -> String {
    format!("GET /v1/responses/resp_a-1 HTTP/1.1\r\nhost: localhost\r\n{ALICE}\r\n")
}

/// Where alice has had a response of an engine that waits at the gate before each.
async fn responded(rules: Rules, gate: &Arc<Semaphore>) -> House {
    let script = vec![Step::Gate(gate.clone()), send(stored()), Step::Close];
    let mut house = house(Setup { rules, script, ..Setup::default() }).await;
    house.supervisor.show("m", |m| {
        m.instance = Some(instance());
        m.phase = Phase::Ready;
    });
    let first = post_with("/v1/responses", ALICE, "{\"model\":\"m\"}");
    assert_eq!(house.ask(first).await.text(), STORED);
    house.engine.request().await;
    house
}

/// A turn at the model is not waited for: who has it may be who is to be cancelled.
#[tokio::test]
async fn a_response_is_had_again_by_what_its_key_may() {
    let gate = Arc::new(Semaphore::new(1));
    let mut rules = rules();
    let mut alice = key("alice");
    alice.concurrent = Some(1);
    rules.keys = vec![alice];
    let spec = DoorSpec { max_concurrent: Some(1), ..DoorSpec::default() };
    rules.models.insert("m".parse().unwrap(), spec.into());
    let mut house = responded(rules, &gate).await;
    let mut held = house.client().await;
    held.send(retrieval()).await;
    house.engine.request().await;
    house.ask(retrieval()).await.error(429, "too_many_at_once");
    gate.add_permits(1);
    assert_eq!(held.reply().await.text(), STORED);
    // The model is busy with somebody else.
    let mut new = (*house.rules.load_full()).clone();
    new.keys.push(key("bob"));
    house.rules.store(Arc::new(new.clone()));
    let mut other = house.client().await;
    let bobs = ALICE.replace("alice", "bob");
    other.send(post_with(CHAT, &bobs, BODY)).await;
    house.engine.request().await;
    let mut again = house.client().await;
    again.send(retrieval()).await;
    house.engine.request().await;
    gate.add_permits(2);
    assert_eq!((other.reply().await.status, again.reply().await.text()), (200, STORED));
    // What was taken from the key since.
    new.keys[0].models = vec!["org/big".parse().unwrap()];
    house.rules.store(Arc::new(new.clone()));
    house.ask(retrieval()).await.error(403, "model_not_allowed");
    // A name that means another model by now.
    new.keys[0].models.clear();
    new.models.remove("m");
    new.aliases.insert("m".parse().unwrap(), "org/big".parse().unwrap());
    house.rules.store(Arc::new(new));
    house.ask(retrieval()).await.error(404, "response_not_found");
    house.engine.untouched();
}

/// What its key has under way may be what is to be cancelled.
#[tokio::test]
async fn a_cancel_counts_for_its_keys_rate_alone() {
    let gate = Arc::new(Semaphore::new(1));
    let mut rules = rules();
    let mut alice = key("alice");
    (alice.concurrent, alice.per_minute) = (Some(1), Some(3));
    rules.keys = vec![alice];
    let mut house = responded(rules, &gate).await;
    let mut held = house.client().await;
    held.send(retrieval()).await;
    house.engine.request().await;
    let cancel = || post_with("/v1/responses/resp_a-1/cancel", ALICE, "");
    let mut cancels = house.client().await;
    cancels.send(cancel()).await;
    let seen = house.engine.request().await.line;
    assert_eq!(seen, "POST /v1/responses/resp_a-1/cancel HTTP/1.1");
    house.ask(cancel()).await.error(429, "rate_limited");
    gate.add_permits(2);
    assert_eq!((cancels.reply().await.status, held.reply().await.text()), (200, STORED));
    house.engine.untouched();
}

#[tokio::test]
async fn parameters_and_names_are_set_only_where_that_is_configured() {
    let object = |value: Value| value.as_object().unwrap().clone();
    let spec = hostler::types::DoorSpec {
        defaults: object(json!({"temperature": 0.5})),
        force: object(json!({"max_tokens": 9})),
        served_name: Some("inside".into()),
        ..Default::default()
    };
    let mut rules = rules();
    rules.models.insert("m".parse().unwrap(), spec.into());
    let mut house =
        house(Setup { script: vec![send(OK), Step::Close], rules, ..Setup::default() }).await;
    let ask = |model: &str| {
        let body = format!("{{\"messages\": [ ], \"model\":\"{model}\",\"max_tokens\":1000 }}");
        post("/v1/chat/completions", body)
    };
    house.ask(ask("gpt-4o")).await;
    let seen = String::from_utf8(house.engine.request().await.body).unwrap();
    assert_eq!(
        seen,
        "{\"messages\":[ ],\"model\":\"inside\",\"max_tokens\":9,\"temperature\":0.5}"
    );
    house.ask(ask("org/big")).await;
    let seen = String::from_utf8(house.engine.request().await.body).unwrap();
    assert_eq!(seen, "{\"messages\": [ ], \"model\":\"org/big\",\"max_tokens\":1000 }");
}

/// Requests for different models and paths on one connection, one after the other: each gets its own answer.
#[tokio::test]
async fn a_kept_alive_connection_routes_each_request_anew() {
    let mut house = playing(vec![send(OK), Step::Close]).await;
    let mut client = house.client().await;
    let models = ["m", "org/big", "gpt-4o"];
    for turn in 0..300 {
        let (path, model) = (JSON_PATHS[turn % JSON_PATHS.len()], models[turn % models.len()]);
        let body = format!("{{\"turn\":{turn},\"model\":\"{model}\"}}");
        client.send(post_with(path, "", &body)).await;
        client.until("{\"a\":1}").await;
        client.raw.clear();
        let seen = house.engine.request().await;
        assert_eq!(seen.line, format!("POST {path} HTTP/1.1"));
        assert_eq!(seen.body, body.as_bytes());
        let asked = if model == "gpt-4o" { "m" } else { model };
        house.supervisor.expect(&[Happened::Asked(asked.into()), Happened::Released]).await;
    }
}

/// Theirs is `message._request_id` and `error.request_id`, and they look nowhere else for it.
#[tokio::test]
async fn anthropics_clients_are_told_the_requests_id() {
    let breaks_off = vec![
        send(SSE.replace("\r\n\r\n", "\r\nrequest-id: theirs\r\n\r\n")),
        send(chunk("event: ping\ndata: {}\n\n")),
        Step::Close,
    ];
    let mut rules = rules();
    rules.origins = vec!["https://chat.lan".into()];
    let house = house(Setup { script: breaks_off, rules, ..Setup::default() }).await;
    let headers = "x-request-id: r-1\r\norigin: https://chat.lan\r\nconnection: close\r\n";
    let ask = |path, body| house.ask(post_with(path, headers, body));
    let (refused, whole) = (ask("/v1/messages", "{}").await, ask("/v1/messages", BODY).await);
    for reply in [&refused, &whole] {
        for name in ["request-id", "x-request-id"] {
            assert_eq!(reply.headers[name], "r-1");
        }
        let exposed = &reply.headers["access-control-expose-headers"];
        assert!(exposed.split(", ").any(|name| name == "request-id"), "{exposed}");
    }
    assert_eq!(refused.json()["request_id"], "r-1");
    assert!(whole.text().ends_with("},\"request_id\":\"r-1\"}\n\n"), "{}", whole.text());
    let openais = ask(CHAT, "{}").await;
    assert!(!openais.headers.contains_key("request-id"));
    assert!(openais.json().get("request_id").is_none());
}
