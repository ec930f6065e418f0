//! A collector of OpenTelemetry's, as far as OTLP over HTTP goes.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{Map, Value};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::mpsc;

use crate::SOON;

/// A span, taken apart.
#[derive(Clone, Debug)]
pub struct Span {
    pub trace: String,
    pub id: String,
    pub parent: Option<String>,
    pub name: String,
    pub kind: u64,
    pub flags: u64,
    pub start: u64,
    pub end: u64,
    pub attributes: BTreeMap<String, Value>,
    pub events: Vec<(String, u64)>,
    pub failed: bool,
}

type Answers = Arc<Mutex<Vec<(StatusCode, &'static str)>>>;

pub struct Collector {
    place: hostler::types::Collector,
    /// What is answered next, the last first; then 200.
    pub answers: Answers,
    came: mpsc::UnboundedReceiver<Value>,
    /// All that came and was looked at.
    pub bodies: Vec<Value>,
    waiting: Vec<Span>,
    _dir: Option<tempfile::TempDir>,
}

impl Collector {
    /// On an address.
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let origin = hostler::types::Origin {
            tls: false,
            host: "127.0.0.1".into(),
            port: listener.local_addr().unwrap().port(),
            prefix: "/v1/traces".into(),
        };
        let (told, came) = mpsc::unbounded_channel();
        let answers = Answers::default();
        let given = answers.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, told.clone(), given.clone()));
            }
        });
        Self::new(hostler::types::Collector::Http(origin), answers, came, None)
    }

    /// On a Unix socket.
    pub fn unix() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("otel.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let (told, came) = mpsc::unbounded_channel();
        let answers = Answers::default();
        let given = answers.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, told.clone(), given.clone()));
            }
        });
        Self::new(hostler::types::Collector::Unix(path), answers, came, Some(dir))
    }

    fn new(
        place: hostler::types::Collector,
        answers: Answers,
        came: mpsc::UnboundedReceiver<Value>,
        dir: Option<tempfile::TempDir>,
    ) -> Self {
        Self { place, answers, came, bodies: vec![], waiting: vec![], _dir: dir }
    }

    pub fn place(&self) -> hostler::types::Collector {
        self.place.clone()
    }

    /// The next so many spans, of as many requests as it takes; no more have come with them.
    pub async fn spans(&mut self, count: usize) -> Vec<Span> {
        while self.waiting.len() < count {
            let body = tokio::time::timeout(SOON, self.came.recv()).await.unwrap().unwrap();
            self.waiting.extend(read(&body));
            self.bodies.push(body);
        }
        assert_eq!(self.waiting.len(), count, "{:?}", self.waiting);
        std::mem::take(&mut self.waiting)
    }
}

async fn serve(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    told: mpsc::UnboundedSender<Value>,
    answers: Answers,
) {
    let take = service_fn(|request: Request<Incoming>| {
        let (told, answers) = (told.clone(), answers.clone());
        async move {
            assert_eq!((request.method().as_str(), request.uri().path()), ("POST", "/v1/traces"));
            assert_eq!(request.headers()["content-type"], "application/json");
            let body = request.into_body().collect().await.unwrap().to_bytes();
            let answer = answers.lock().unwrap().pop();
            let (status, text) = answer.unwrap_or((StatusCode::OK, "{}"));
            if status.is_success() {
                told.send(serde_json::from_slice(&body).unwrap()).unwrap();
            }
            let mut response = Response::new(Full::new(Bytes::from_static(text.as_bytes())));
            *response.status_mut() = status;
            Ok::<_, Infallible>(response)
        }
    });
    // An error: the daemon has gone.
    let _ = hyper::server::conn::http1::Builder::new()
        .serve_connection(TokioIo::new(stream), take)
        .await;
}

fn read(body: &Value) -> Vec<Span> {
    let resources = body["resourceSpans"].as_array().unwrap();
    let scopes = resources.iter().flat_map(|r| r["scopeSpans"].as_array().unwrap());
    scopes
        .flat_map(|s| s["spans"].as_array().unwrap())
        .map(|s| span(s.as_object().unwrap()))
        .collect()
}

fn span(span: &Map<String, Value>) -> Span {
    let text = |key: &str| span[key].as_str().unwrap().to_owned();
    let number = |value: &Value| value.as_str().unwrap().parse::<u64>().unwrap();
    let value = |value: &Value| match value.as_object().unwrap().iter().next().unwrap() {
        (kind, value) if kind == "intValue" => number(value).into(),
        (kind, value) => {
            assert_eq!(kind, "stringValue");
            value.clone()
        }
    };
    let attributes = span["attributes"].as_array().unwrap();
    let pairs =
        attributes.iter().map(|a| (a["key"].as_str().unwrap().to_owned(), value(&a["value"])));
    let all: BTreeMap<_, _> = pairs.collect();
    assert_eq!(all.len(), attributes.len(), "a key is there twice: {span:?}");
    let events = span["events"].as_array().unwrap();
    Span {
        trace: text("traceId"),
        id: text("spanId"),
        parent: span.get("parentSpanId").map(|p| p.as_str().unwrap().to_owned()),
        name: text("name"),
        kind: span["kind"].as_u64().unwrap(),
        flags: span["flags"].as_u64().unwrap(),
        start: number(&span["startTimeUnixNano"]),
        end: number(&span["endTimeUnixNano"]),
        attributes: all,
        events: events
            .iter()
            .map(|e| (e["name"].as_str().unwrap().to_owned(), number(&e["timeUnixNano"])))
            .collect(),
        failed: span["status"].get("code").is_some_and(|code| code == 2),
    }
}
