//! What is answered where, in the words of the engine that is mimicked.
//!
//! `/_fake/*` is the test's own door, always open while something listens. Inference routes are in
//! `infer`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{self, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use serde_json::{Value, json};

use crate::infer;
use crate::knobs::Flavor;
use crate::more;
use crate::server::Wire;
use crate::sleep::{self, Outcome};
use crate::sse::{self, Body};
use crate::state::{Engine, Phase, add};

const MOST_BODY: usize = 256 << 20;
/// llama-server closes a connection after so many requests.
const LLAMA_REQUESTS: u64 = 100;

pub(crate) fn bytes(status: u16, kind: &'static str, body: impl Into<Bytes>) -> Response<Body> {
    let body = Full::new(body.into()).map_err(|never| match never {}).boxed_unsync();
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::OK);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

pub(crate) fn json(status: u16, body: &Value) -> Response<Body> {
    bytes(status, "application/json", body.to_string())
}

fn empty(status: u16) -> Response<Body> {
    let mut response = bytes(status, "text/plain", "");
    response.headers_mut().remove(header::CONTENT_TYPE);
    response
}

pub(crate) fn failure(flavor: Flavor, status: u16, message: &str) -> Response<Body> {
    let kind = match (flavor, status) {
        (Flavor::Vllm, 400) => "BadRequestError",
        (Flavor::Vllm, 404) => "NotFoundError",
        (Flavor::Vllm, 503) => "ServiceUnavailableError",
        (Flavor::Vllm, _) => "InternalServerError",
        (Flavor::LlamaCpp, 400) => "invalid_request_error",
        (Flavor::LlamaCpp, 401) => "authentication_error",
        (Flavor::LlamaCpp, 404) => "not_found_error",
        (Flavor::LlamaCpp, 503) => "unavailable_error",
        (Flavor::LlamaCpp, _) => "server_error",
    };
    json(status, &sse::error(flavor, status, kind, message))
}

fn not_found(flavor: Flavor) -> Response<Body> {
    match flavor {
        Flavor::Vllm => json(404, &json!({"detail": "Not Found"})),
        Flavor::LlamaCpp => failure(flavor, 404, "File Not Found"),
    }
}

/// Answers one request.
pub(crate) async fn answer(
    engine: Arc<Engine>,
    wire: Arc<Wire>,
    request: Request<Incoming>,
) -> Response<Body> {
    let flavor = engine.knobs().flavor;
    let (head, body) = request.into_parts();
    let body = match Limited::new(body, MOST_BODY).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) => return failure(flavor, 400, &format!("cannot read the body: {error}")),
    };
    let mut response = if let Some(door) = head.uri.path().strip_prefix("/_fake/") {
        fake(&engine, &head.method, door, &body)
    } else {
        let number = engine.note_request(&head, &body);
        route(&engine, &wire, &head, &body, number).await
    };
    let server = match flavor {
        Flavor::Vllm => "uvicorn",
        Flavor::LlamaCpp => "llama.cpp",
    };
    let headers = response.headers_mut();
    headers.insert(header::SERVER, HeaderValue::from_static(server));
    if flavor == Flavor::LlamaCpp {
        headers.insert("keep-alive", HeaderValue::from_static("timeout=5, max=100"));
        if wire.requests.fetch_add(1, Ordering::SeqCst) + 1 >= LLAMA_REQUESTS {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
    }
    response
}

fn fake(engine: &Arc<Engine>, method: &Method, door: &str, body: &[u8]) -> Response<Body> {
    match (method, door) {
        (&Method::GET, "state") => json(200, &engine.state()),
        (&Method::PUT, "config") => match configure(engine, body) {
            Ok(()) => json(200, &engine.state()["knobs"]),
            Err(message) => json(400, &json!({"error": message})),
        },
        _ => json(404, &json!({"error": "GET /_fake/state or PUT /_fake/config"})),
    }
}

/// Sets knobs from a JSON object (`{"rate": 50, "chaos": "drop@tok:3"}`): all of them, or none.
fn configure(engine: &Arc<Engine>, body: &[u8]) -> Result<(), String> {
    let wanted: BTreeMap<String, Value> =
        serde_json::from_slice(body).map_err(|e| format!("not a JSON object: {e}"))?;
    let mut knobs = (*engine.knobs()).clone();
    for (name, value) in wanted {
        let text = match value {
            Value::String(text) => text,
            other @ (Value::Null
            | Value::Bool(_)
            | Value::Number(_)
            | Value::Array(_)
            | Value::Object(_)) => other.to_string(),
        };
        let name = name.to_ascii_uppercase().replace('-', "_");
        knobs.set(&name, &text, engine.config.seed).map_err(|e| e.to_string())?;
    }
    engine.set_knobs(knobs);
    Ok(())
}

async fn route(
    engine: &Arc<Engine>,
    wire: &Arc<Wire>,
    head: &hyper::http::request::Parts,
    body: &Bytes,
    number: u64,
) -> Response<Body> {
    let flavor = engine.knobs().flavor;
    let path = head.uri.path();
    let phase = engine.phase();
    if flavor == Flavor::LlamaCpp && !matches!(phase, Phase::Ready | Phase::Ending) {
        return failure(flavor, 503, "Loading model");
    }
    let guarded = path.starts_with("/v1") || (flavor == Flavor::LlamaCpp && path != "/health");
    if let Some(key) = engine.config.api_key.as_ref().filter(|_| guarded) {
        let given = head.headers.get(header::AUTHORIZATION).and_then(|v| v.to_str().ok());
        if given.and_then(|given| given.strip_prefix("Bearer ")) != Some(key.as_str()) {
            return match flavor {
                Flavor::Vllm => json(401, &json!({"error": "Unauthorized"})),
                Flavor::LlamaCpp => failure(flavor, 401, "Invalid API Key"),
            };
        }
    }
    match (head.method.as_str(), path) {
        ("POST", "/v1/chat/completions" | "/v1/completions" | "/v1/embeddings") => {
            infer::answer(engine, wire, path, body, number).await
        }
        (_, path) if more::is_one(path) => {
            engine.count_inference().await;
            more::answer(&head.method, path, body).unwrap_or_else(|| not_found(flavor))
        }
        ("GET", "/v1/models") => json(200, &models(engine)),
        ("GET" | "POST", "/ping") if flavor == Flavor::Vllm => health(engine),
        ("GET", "/health") => health(engine),
        ("GET", "/metrics") if engine.config.metrics => {
            if flavor == Flavor::LlamaCpp {
                // Its loop answers between tokens, and not at all where it hangs.
                let _ = engine.control.subscribe().wait_for(|control| !control.frozen).await;
            }
            bytes(200, "text/plain; version=0.0.4; charset=utf-8", metrics(engine))
        }
        ("GET", "/metrics") => {
            failure(flavor, 501, "This server does not support metrics endpoint.")
        }
        _ => match flavor {
            Flavor::Vllm => vllm(engine, head, body).await,
            Flavor::LlamaCpp => llamacpp(engine, head),
        },
    }
}

fn health(engine: &Engine) -> Response<Body> {
    match engine.knobs().flavor {
        Flavor::Vllm if engine.phase() == Phase::CoreDead => empty(503),
        Flavor::Vllm => empty(200),
        Flavor::LlamaCpp => json(200, &json!({"status": "ok"})),
    }
}

fn models(engine: &Engine) -> Value {
    let knobs = engine.knobs();
    let length = engine.config.max_model_len;
    let data: Vec<Value> = knobs
        .models
        .iter()
        .map(|name| match knobs.flavor {
            Flavor::Vllm => json!({
                "id": name, "object": "model", "created": infer::now(), "owned_by": "vllm",
                "root": name, "parent": null, "max_model_len": length, "permission": [],
            }),
            Flavor::LlamaCpp => json!({
                "id": name, "object": "model", "created": infer::now(), "owned_by": "llamacpp",
                "meta": {"n_ctx_train": length, "n_vocab": 832},
            }),
        })
        .collect();
    json!({"object": "list", "data": data})
}

fn metrics(engine: &Engine) -> String {
    let knobs = engine.knobs();
    let counters = &engine.counters;
    let get = |n: &std::sync::atomic::AtomicU64| n.load(Ordering::SeqCst).to_string();
    let running = engine.running.borrow().to_string();
    let waiting = engine.waiting().to_string();
    let asleep = u8::from(sleep::is_sleeping(engine)).to_string();
    let rows: Vec<(&str, &str, String)> = match knobs.flavor {
        Flavor::Vllm => vec![
            ("vllm:num_requests_running", "gauge", running),
            ("vllm:num_requests_waiting", "gauge", waiting),
            ("vllm:kv_cache_usage_perc", "gauge", "0".into()),
            ("vllm:engine_sleep_state", "gauge", asleep),
            ("vllm:request_success_total", "counter", get(&counters.finished)),
            ("vllm:prompt_tokens_total", "counter", get(&counters.prompt_tokens)),
            ("vllm:generation_tokens_total", "counter", get(&counters.tokens)),
        ],
        Flavor::LlamaCpp => vec![
            ("llamacpp:requests_processing", "gauge", running),
            ("llamacpp:requests_deferred", "gauge", waiting),
            ("llamacpp:prompt_tokens_total", "counter", get(&counters.prompt_tokens)),
            ("llamacpp:tokens_predicted_total", "counter", get(&counters.tokens)),
        ],
    };
    let labels = match knobs.flavor {
        Flavor::Vllm => format!("{{engine=\"0\",model_name=\"{}\"}}", knobs.model()),
        Flavor::LlamaCpp => String::new(),
    };
    rows.into_iter()
        .map(|(name, kind, value)| format!("# TYPE {name} {kind}\n{name}{labels} {value}\n"))
        .collect()
}

async fn vllm(
    engine: &Arc<Engine>,
    head: &hyper::http::request::Parts,
    body: &[u8],
) -> Response<Body> {
    let pairs = pairs(head.uri.query().unwrap_or(""));
    let query: BTreeMap<String, String> = pairs.iter().cloned().collect();
    let dev = engine.config.dev_mode;
    let outcome = match (head.method.as_str(), head.uri.path()) {
        ("GET", "/version") => return json(200, &json!({"version": "0.32.0"})),
        ("GET", "/load") => {
            let load = *engine.running.borrow() + engine.waiting();
            return json(200, &json!({"server_load": load}));
        }
        ("GET", "/is_sleeping") if dev => {
            return json(200, &json!({"is_sleeping": sleep::is_sleeping(engine)}));
        }
        ("GET", "/is_paused") if dev => {
            return json(200, &json!({"is_paused": engine.control.borrow().paused}));
        }
        ("POST", "/sleep") if dev => sleep::sleep(engine, &query).await,
        ("POST", "/wake_up") if dev => {
            let tags: Vec<String> =
                pairs.into_iter().filter(|(key, _)| key == "tags").map(|(_, tag)| tag).collect();
            sleep::wake(engine, &tags).await
        }
        ("POST", "/collective_rpc") if dev => match sleep::rpc(engine, body) {
            Outcome::Done => return json(200, &json!({"results": [null]})),
            refused @ (Outcome::BadQuery(_) | Outcome::Failed) => refused,
        },
        ("POST", "/pause") if dev => sleep::hold(engine, &query).await,
        ("POST", "/resume") if dev => sleep::resume(engine),
        _ => return not_found(Flavor::Vllm),
    };
    match outcome {
        Outcome::Done => empty(200),
        Outcome::BadQuery(why) => failure(Flavor::Vllm, 400, why),
        Outcome::Failed => failure(Flavor::Vllm, 500, sse::CORE_DEAD),
    }
}

fn llamacpp(engine: &Engine, head: &hyper::http::request::Parts) -> Response<Body> {
    match (head.method.as_str(), head.uri.path()) {
        ("GET", "/v1/health") => health(engine),
        ("GET", "/models") => json(200, &models(engine)),
        ("GET", "/props") => json(
            200,
            &json!({
                "total_slots": engine.knobs().slots,
                "model_path": engine.knobs().model(),
                "default_generation_settings": {"n_ctx": engine.config.max_model_len},
            }),
        ),
        ("GET", "/slots") => {
            let running = *engine.running.borrow();
            let slots = (0..engine.knobs().slots.min(64))
                .map(|id| json!({"id": id, "is_processing": id < running}));
            json(200, &slots.collect())
        }
        _ => not_found(Flavor::LlamaCpp),
    }
}

/// A query's pairs; percent signs are not needed by anything here.
fn pairs(query: &str) -> Vec<(String, String)> {
    query
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect()
}

/// Notes a refusal that never became a generation.
pub(crate) fn refused(engine: &Engine, response: Response<Body>) -> Response<Body> {
    add(&engine.counters.refused, 1);
    response
}
