//! A span, in OTLP's JSON form.
//!
//! Purpose: the few fields of `opentelemetry.proto.trace.v1` that are said here, under their JSON names. Owner: [`super::Traces`] until it
//! is over, then the exporter. PURE. Invariants: identifiers are hexadecimal and numbers of 64 bits texts, as OTLP has it in JSON;
//! a span's end is never before its beginning.

use std::time::{Duration, SystemTime};

use serde::{Serialize, Serializer};

use crate::proxy::port::Trace;

/// Flags: sampled, and it is known whether the parent is in another process.
const SAMPLED: u32 = 0x101;
/// It is.
const REMOTE: u32 = 0x200;

/// What it is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Something inside the daemon.
    Internal = 1,
    /// A request that it answers.
    Server = 2,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Span {
    trace_id: String,
    span_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    parent_span_id: Option<String>,
    flags: u32,
    name: String,
    kind: u8,
    #[serde(serialize_with = "nanos")]
    start_time_unix_nano: SystemTime,
    #[serde(serialize_with = "nanos")]
    end_time_unix_nano: SystemTime,
    attributes: Vec<Attribute>,
    events: Vec<Event>,
    status: Status,
}

#[derive(Debug, Serialize)]
struct Attribute {
    key: &'static str,
    value: Value,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
enum Value {
    StringValue(String),
    #[serde(serialize_with = "text")]
    IntValue(u64),
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Event {
    #[serde(serialize_with = "nanos")]
    time_unix_nano: SystemTime,
    name: &'static str,
}

#[derive(Debug, Default, Serialize)]
struct Status {
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<u8>,
}

fn nanos<S: Serializer>(at: &SystemTime, to: S) -> Result<S::Ok, S::Error> {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    to.collect_str(&since.as_nanos())
}

fn text<S: Serializer>(number: &u64, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(number)
}

impl Span {
    /// Of a request.
    pub(super) fn of(trace: &Trace, name: String, began: SystemTime) -> Self {
        Self {
            trace_id: format!("{:032x}", trace.trace),
            span_id: format!("{:016x}", trace.span),
            parent_span_id: trace.parent.map(|parent| format!("{parent:016x}")),
            flags: SAMPLED | trace.parent.map_or(0, |_| REMOTE),
            name,
            kind: Kind::Server as u8,
            start_time_unix_nano: began,
            end_time_unix_nano: began,
            attributes: Vec::new(),
            events: Vec::new(),
            status: Status::default(),
        }
    }

    /// Of something that is done for a request.
    pub(super) fn below(of: &Trace, name: String, began: SystemTime) -> Self {
        let own = Trace { span: super::random_span(), parent: Some(of.span), ..*of };
        Self { flags: SAMPLED, kind: Kind::Internal as u8, ..Self::of(&own, name, began) }
    }

    /// It took so long.
    pub(super) fn took(&mut self, time: Duration) {
        self.end(self.start_time_unix_nano + time);
    }

    /// It is over now.
    pub(super) fn end(&mut self, at: SystemTime) {
        self.end_time_unix_nano = at.max(self.start_time_unix_nano);
    }

    pub(super) fn text(&mut self, key: &'static str, value: &str) {
        self.attributes.push(Attribute { key, value: Value::StringValue(value.to_owned()) });
    }

    pub(super) fn number(&mut self, key: &'static str, value: u64) {
        self.attributes.push(Attribute { key, value: Value::IntValue(value) });
    }

    pub(super) fn event(&mut self, name: &'static str, at: SystemTime) {
        self.events.push(Event { time_unix_nano: at, name });
    }

    /// It failed, in a word that never changes.
    pub(super) fn failed(&mut self, why: &str) {
        self.text("error.type", why);
        self.status.code = Some(2);
    }
}

/// Spans in the body of one request to the collector.
pub(super) fn body(spans: &[Span]) -> Vec<u8> {
    let service = |key, value: &str| Attribute { key, value: Value::StringValue(value.to_owned()) };
    let version = env!("CARGO_PKG_VERSION");
    let body = serde_json::json!({"resourceSpans": [{
        "resource": {"attributes": [
            service("service.name", "hostler"),
            service("service.version", version),
            service("host.name", &host()),
        ]},
        "scopeSpans": [{"scope": {"name": "hostler", "version": version}, "spans": spans}],
    }]});
    body.to_string().into_bytes()
}

fn host() -> String {
    let name = rustix::system::uname();
    name.nodename().to_string_lossy().into_owned()
}
