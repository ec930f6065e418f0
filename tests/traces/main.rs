//! Traces: what a collector gets of the real supervisor and server, with the stand-in engine behind; and what the engine is told.
//!
//! Only with the feature `otlp`. What is sent is read by the decoder that OpenTelemetry makes from its own definition (`decode.py`); where
//! that cannot be had, it is noted as skipped.
#![expect(clippy::unwrap_used, reason = "a panic is how a test reports its failure")]

mod collector;
#[path = "../clients/house.rs"]
mod house;
mod trouble;
#[path = "../clients/world.rs"]
mod world;

use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use collector::{Collector, Span};
use hostler::observe::metrics::Metrics;
use hostler::observe::traces::Traces;
use house::{House, KEY};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_util::sync::{CancellationToken, DropGuard};
use world::World;

/// A machine that is busy with other things.
pub const SOON: Duration = Duration::from_secs(60);
const ALL: u32 = 1_000_000;
const PROMPT: &str = "a-prompt-that-is-nobodys-business";
const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const CALLER: &str = "b7ad6b7169203331";

/// A house whose requests are traced.
pub struct Traced {
    house: House,
    world: Arc<World>,
    _stop: DropGuard,
}

/// The usual one.
pub async fn usual(collector: &Collector, sample: u32) -> Traced {
    playing(collector, sample, &[("FAKE_LOAD", "300ms")]).await
}

/// The same with another engine.
async fn playing(collector: &Collector, sample: u32, knobs: &[(&str, &str)]) -> Traced {
    let stop = CancellationToken::new();
    let (to, until) = (collector.place(), stop.clone());
    let mut there = None;
    let watchers = |world: &Arc<World>, metrics: Arc<Metrics>, timeline| {
        there = Some(world.clone());
        let (traces, exporter) = Traces::new(to, sample, metrics.clone());
        tokio::spawn(exporter.run(until));
        let known = Arc::new((metrics.clone(), timeline));
        let watchers: house::Watchers =
            (Arc::new((metrics, traces.clone())), Arc::new((known, traces)));
        watchers
    };
    let house = House::watched("", knobs, |_| {}, watchers).await;
    Traced { house, world: there.unwrap(), _stop: stop.drop_guard() }
}

/// One request on a connection of its own; the whole answer.
pub async fn ask(house: &House, head: &str, body: &str) -> String {
    let exchange = async {
        let mut stream = TcpStream::connect(house.address).await.unwrap();
        let length = if body.is_empty() {
            String::new()
        } else {
            format!("content-length: {}\r\n", body.len())
        };
        let text = format!(
            "{head}{length}host: x\r\nauthorization: Bearer {KEY}\r\nconnection: close\r\n\r\n{body}"
        );
        stream.write_all(text.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    };
    tokio::time::timeout(SOON, exchange).await.unwrap()
}

async fn chat(house: &House, model: &str, headers: &str) -> String {
    let body = format!(
        "{{\"model\":\"{model}\",\"stream\":true,\"max_tokens\":8,\"messages\":[{{\"role\":\"user\",\"content\":\"{PROMPT}\"}}]}}"
    );
    ask(house, &format!("POST /v1/chat/completions HTTP/1.1\r\n{headers}"), &body).await
}

/// What the engine was told with its last request for an answer: (traceparent, tracestate).
fn told(of: &Traced) -> (Option<String>, Option<String>) {
    let containers = of.world.containers.lock().unwrap();
    let (engine, _) = containers.values().next().unwrap();
    let state = engine.state();
    let requests = state["requests"].as_array().unwrap();
    let last = requests.iter().rfind(|r| r["path"] == "/v1/chat/completions").unwrap();
    let header = |name: &str| {
        let headers = last["headers"].as_array().unwrap();
        let mut with = headers.iter().filter(|h| h[0] == name).map(|h| h[1].as_str().unwrap());
        let value = with.next().map(str::to_owned);
        assert_eq!(with.next(), None, "{name} twice");
        value
    };
    (header("traceparent"), header("tracestate"))
}

/// OpenTelemetry's own decoder takes what was sent, and sees the same spans in it.
fn decoded(test: &str, body: &Value, spans: &[&Span]) {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let tools = Command::new(root.join("metrics/tools.sh")).arg("otlp").output().unwrap();
    let Some(path) = testhost::fetched(test, "tools.sh otlp", &tools) else { return };
    let mut python = Command::new("python3");
    python.arg(root.join("traces/decode.py")).env("PYTHONPATH", path);
    let mut python = python.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    serde_json::to_writer(python.stdin.take().unwrap(), body).unwrap();
    let output = python.wait_with_output().unwrap();
    assert!(output.status.success());
    let seen: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    for span in spans {
        let same = seen.iter().find(|s| s["span"] == span.id.as_str()).unwrap();
        assert_eq!(same["trace"], span.trace.as_str());
        assert_eq!(same["parent"].as_str(), Some(span.parent.as_deref().unwrap_or_default()));
        assert_eq!(same["name"], span.name.as_str());
        assert_eq!(same["attributes"], serde_json::to_value(&span.attributes).unwrap());
        assert_eq!(
            (&same["start"], &same["end"]),
            (&Value::from(span.start), &Value::from(span.end))
        );
        assert_eq!(same["events"].as_array().unwrap().len(), span.events.len());
        assert_eq!(same["service"], "hostler");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_is_one_trace_from_its_client_over_the_load_to_the_engine() {
    let mut collector = Collector::start().await;
    let traced = usual(&collector, 0).await;
    let headers =
        format!("x-request-id: r-1\r\ntraceparent: 00-{TRACE}-{CALLER}-01\r\ntracestate: v=1\r\n");
    let answer = chat(&traced.house, "gpt-4o", &headers).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let spans = collector.spans(3).await;
    let of = |name: &str| spans.iter().find(|s| s.name == name).unwrap();
    let (request, wait, load) = (of("POST /v1/chat/completions"), of("wait"), of("load org/fake"));
    for span in [request, wait, load] {
        assert_eq!(span.trace, TRACE);
        assert!(span.start <= span.end, "{span:?}");
        assert!(!span.failed, "{span:?}");
    }
    assert_eq!(request.parent.as_deref(), Some(CALLER));
    assert_eq!((request.kind, request.flags), (2, 0x301));
    for inner in [wait, load] {
        assert_eq!(inner.parent.as_deref(), Some(request.id.as_str()));
        assert_eq!((inner.kind, inner.flags), (1, 0x101));
    }
    let engine = format!("00-{TRACE}-{}-01", request.id);
    assert_eq!(
        told(&traced),
        (Some(engine), Some("v=1".into())),
        "the engine works for the request"
    );

    assert!(request.start <= wait.start && wait.end <= request.end);
    assert!(wait.end - wait.start >= 300_000_000 && load.end - load.start >= 300_000_000);
    let [(first, at)] = &request.events[..] else { panic!("{request:?}") };
    assert_eq!(first, "first_byte");
    assert!((wait.end..=request.end).contains(at));
    assert_eq!(load.events.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["loading"]);
    let instance = request.attributes["hostler.instance"].as_str().unwrap();
    assert!(instance.starts_with("hostler-org"), "{instance}");
    assert_eq!(load.attributes["hostler.instance"], instance);
    for (key, value) in [
        ("http.request.method", "POST"),
        ("http.route", "/v1/chat/completions"),
        ("url.path", "/v1/chat/completions"),
        ("url.scheme", "http"),
        ("gen_ai.operation.name", "chat"),
        ("gen_ai.request.model", "gpt-4o"),
        ("hostler.model", "org/fake"),
        ("hostler.request_id", "r-1"),
        ("hostler.endpoint", "chat_completions"),
    ] {
        assert_eq!(request.attributes[key], value, "{key}");
    }
    assert_eq!(request.attributes["http.response.status_code"], 200);
    assert!(request.attributes["http.response.body.size"].as_u64().unwrap() > 100);
    assert!(!request.attributes.contains_key("error.type"));
    let test = "traces::a_request_is_one_trace_from_its_client_over_the_load_to_the_engine";
    for body in &collector.bodies {
        let text = body.to_string();
        assert!(!text.contains(PROMPT) && !text.contains(KEY), "{text}");
        let inside: Vec<&Span> = spans.iter().filter(|s| text.contains(&s.id)).collect();
        decoded(test, body, &inside);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_caller_decides_and_who_has_none_is_sampled() {
    let mut collector = Collector::start().await;
    // Nobody who comes without one is traced.
    let traced = usual(&collector, 0).await;
    let not_kept = format!("00-{TRACE}-{CALLER}-00");
    chat(&traced.house, "org/fake", &format!("traceparent: {not_kept}\r\ntracestate: v=1\r\n"))
        .await;
    assert_eq!(told(&traced), (Some(not_kept), Some("v=1".into())), "as the client wrote it");
    chat(&traced.house, "org/fake", "").await;
    assert_eq!(told(&traced), (None, None));
    chat(&traced.house, "org/fake", &format!("traceparent: 00-{TRACE}-{CALLER}-01\r\n")).await;
    let spans = collector.spans(2).await;
    assert!(spans.iter().all(|s| s.trace == TRACE), "those before were not sent: {spans:?}");
    drop(traced);

    let mut collector = Collector::start().await;
    let traced = usual(&collector, ALL).await;
    ask(&traced.house, "GET /health HTTP/1.1\r\n", "").await;
    chat(&traced.house, "org/fake", "traceparent: junk\r\ntracestate: v=1\r\n").await;
    let spans = collector.spans(3).await;
    let request = spans.iter().find(|s| s.parent.is_none()).unwrap();
    assert_eq!(request.flags, 0x101);
    let engine = format!("00-{}-{}-01", request.trace, request.id);
    assert_eq!(told(&traced), (Some(engine), None), "a new trace, and the state was of another");
    assert!(spans.iter().all(|s| s.trace == request.trace), "no span of a routine question");
    let asked = format!("GET /health HTTP/1.1\r\ntraceparent: 00-{TRACE}-{CALLER}-01\r\n");
    ask(&traced.house, &asked, "").await;
    let spans = collector.spans(1).await;
    assert_eq!((spans[0].name.as_str(), spans[0].trace.as_str()), ("GET health", TRACE));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_went_wrong_is_in_the_span() {
    let mut collector = Collector::start().await;
    let traced = usual(&collector, ALL).await;
    assert!(chat(&traced.house, "nobody", "").await.starts_with("HTTP/1.1 404"));
    let spans = collector.spans(2).await;
    let refused = spans.iter().find(|s| s.kind == 2).unwrap();
    assert_eq!(refused.attributes["error.type"], "model_not_found");
    assert_eq!(refused.attributes["gen_ai.request.model"], "nobody");
    assert!(!refused.attributes.contains_key("hostler.model"));
    assert!(!refused.failed, "it was the client's mistake");
    ask(&traced.house, "GET /nowhere/secret?key=k HTTP/1.1\r\n", "").await;
    let spans = collector.spans(1).await;
    assert_eq!(
        (spans[0].name.as_str(), &spans[0].attributes["url.path"]),
        ("GET", &"/nowhere/secret".into())
    );

    drop(traced);

    let mut collector = Collector::start().await;
    let traced = playing(&collector, ALL, &[("FAKE_CHAOS", "drop@tok:3")]).await;
    chat(&traced.house, "org/fake", "").await;
    let spans = collector.spans(3).await;
    let broken = spans.iter().find(|s| s.kind == 2).unwrap();
    assert!(broken.failed, "{broken:?}");
    assert_eq!(broken.attributes["hostler.aborted_by"], "engine");
}
