//! What an engine is asked, and its bytes. PURE.
//!
//! Purpose: the request that we write in the place of the client's. Owner: the request's future. Invariants: nothing of the client's
//! but what [`PASSED`] names and the request's ID gets into it; its length is that of the body, all of which is in hand or to come.

use std::borrow::Cow;

use bytes::Bytes;
use hyper::header::{self, HeaderName, HeaderValue};
use hyper::{HeaderMap, Method, Request, Uri};

use super::endpoints::{BodyForm, Events, Task};
use super::record::REQUEST_ID;
use super::route::{Act, Recall};
use super::strict;
use super::trace::{TRACEPARENT, TRACESTATE};

/// Headers of the client's that an engine may see. Keys and cookies are not among them: they are between the client and us.
const PASSED: [HeaderName; 8] = [
    header::CONTENT_TYPE,
    header::ACCEPT,
    header::USER_AGENT,
    TRACEPARENT,
    TRACESTATE,
    HeaderName::from_static("anthropic-version"),
    HeaderName::from_static("anthropic-beta"),
    HeaderName::from_static("openai-beta"),
];

/// What an engine is asked, and in which form it may answer.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub method: Method,
    /// Made up by us, so it is a URI's.
    path: Cow<'static, str>,
    pub events: Events,
    /// It is asked with JSON, as we have seen by then.
    json: bool,
}

impl From<Task> for Target {
    fn from(task: Task) -> Self {
        let json = task.body() == BodyForm::Json;
        Self { method: Method::POST, path: task.path().into(), events: task.events(), json }
    }
}

impl From<&Recall> for Target {
    fn from(recall: &Recall) -> Self {
        let (method, end) = match recall.act {
            Act::Retrieve => (Method::GET, ""),
            Act::Cancel => (Method::POST, "/cancel"),
        };
        // `route` lets letters, digits, `_` and `-` through, and nothing else; the query is its own.
        let path = format!("/v1/responses/{}{end}{}", recall.id, recall.query).into();
        Self { method, path, events: Events::Responses, json: false }
    }
}

/// What is to be sent.
pub(super) struct Order {
    pub target: Target,
    /// The client's, to pick from.
    pub headers: HeaderMap,
    /// The request's ID.
    pub id: HeaderValue,
    /// By which the engine knows the request.
    pub engines_id: HeaderValue,
    /// What there is of the body.
    pub body: Bytes,
    /// How many bytes of it come later.
    pub rest: usize,
}

static LOCALHOST: HeaderValue = HeaderValue::from_static("localhost");
static JSON: HeaderValue = HeaderValue::from_static("application/json");

impl Order {
    /// How the client hears of what happens in a stream that has begun: in which form, and of which request.
    pub const fn told(&self) -> (Events, &HeaderValue) {
        (self.target.events, &self.id)
    }

    fn posts(&self) -> bool {
        self.target.method == Method::POST
    }

    fn length(&self) -> usize {
        self.body.len() + self.rest
    }

    /// All that an engine gets of headers, but for the length of a body that is posted.
    fn lines(&self) -> impl Iterator<Item = (HeaderName, &HeaderValue)> {
        // What a client sends are few, and to be compared is cheaper than to be looked up.
        // What is JSON is called so, whatever its client calls it: `curl -d` says that it is a form, and vLLM believes that.
        let mut types = strict::all(&self.headers, header::CONTENT_TYPE);
        let typed = types.next().is_some_and(|kind| !self.target.json || is_json(kind));
        let passes = move |name: &&HeaderName| {
            PASSED.contains(name) && (typed || **name != header::CONTENT_TYPE)
        };
        let passed = self.headers.keys().filter(passes);
        let passed = passed.filter_map(|name| Some((name.clone(), self.headers.get(name)?)));
        let default = (self.posts() && !typed).then_some((header::CONTENT_TYPE, &JSON));
        let host = std::iter::once((header::HOST, &LOCALHOST));
        host.chain(default).chain(passed).chain(std::iter::once((REQUEST_ID, &self.engines_id)))
    }

    /// The request for who changes it before it is written.
    pub(super) fn request(&self) -> Request<()> {
        let mut request = Request::new(());
        *request.method_mut() = self.target.method.clone();
        // Were it none, the engine would refuse the bare root.
        *request.uri_mut() = Uri::try_from(&*self.target.path).unwrap_or_default();
        let headers = request.headers_mut();
        headers.extend(self.lines().map(|(name, value)| (name, value.clone())));
        if self.posts() {
            headers.insert(header::CONTENT_LENGTH, HeaderValue::from(self.length()));
        }
        request
    }

    /// The request's head in its bytes, and what of its body goes out with it.
    pub(super) fn written(&self, body: &[u8]) -> Vec<u8> {
        let length = self.posts().then(|| self.length());
        bytes_of(&self.target.method, &self.target.path, self.lines(), length, body)
    }
}

fn is_json(kind: &HeaderValue) -> bool {
    let essence = kind.as_bytes().split(|b| *b == b';').next().unwrap_or_default();
    essence.trim_ascii().eq_ignore_ascii_case(JSON.as_bytes())
}

/// The same of a request that is all there.
pub(super) fn written(request: &Request<()>, body: &[u8]) -> Vec<u8> {
    let lines = request.headers().iter().map(|(name, value)| (name.clone(), value));
    let target = request.uri().path_and_query().map_or("/", |target| target.as_str());
    bytes_of(request.method(), target, lines, None, body)
}

/// A key as it is sent, not to be printed; `None`: it can stand in no header.
pub(super) fn bearer(key: &[u8]) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_bytes(&[b"Bearer ", key].concat()).ok()?;
    value.set_sensitive(true);
    Some(value)
}

fn bytes_of<'a>(
    method: &Method,
    target: &str,
    lines: impl Iterator<Item = (HeaderName, &'a HeaderValue)>,
    length: Option<usize>,
    body: &[u8],
) -> Vec<u8> {
    let mut all = Vec::with_capacity(512 + body.len());
    for part in [method.as_str(), " ", target, " HTTP/1.1\r\n"] {
        all.extend_from_slice(part.as_bytes());
    }
    // Not a loop: each part of the chain goes by itself so.
    lines.for_each(|(name, value)| {
        for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
            all.extend_from_slice(part);
        }
    });
    if let Some(length) = length {
        for part in ["content-length: ", itoa::Buffer::new().format(length), "\r\n"] {
            all.extend_from_slice(part.as_bytes());
        }
    }
    all.extend_from_slice(b"\r\n");
    all.extend_from_slice(body);
    all
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub fn map(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let pair = |(n, v): &(&'static str, &'static str)| {
            (HeaderName::from_static(n), HeaderValue::from_static(v))
        };
        pairs.iter().map(pair).collect()
    }

    #[test]
    fn the_engine_sees_only_what_is_allowed() {
        let headers = map(&[
            ("authorization", "Bearer k"),
            ("cookie", "c=1"),
            ("x-api-key", "k"),
            ("host", "evil"),
            ("connection", "keep-alive"),
            ("transfer-encoding", "chunked"),
            ("x-forwarded-for", "10.0.0.1"),
            ("content-type", "application/json; charset=utf-8"),
            ("accept", "text/event-stream"),
            ("traceparent", "00-1"),
            ("x-request-id", "theirs"),
        ]);
        let id = HeaderValue::from_static("told");
        let engines_id = HeaderValue::from_static("ours");
        let body = Bytes::from_static(b"{}");
        let order = Order { target: Task::Chat.into(), headers, id, engines_id, body, rest: 3 };
        let head = order.written(&[]);
        assert_eq!(written(&order.request(), &[]).len(), head.len(), "both ways are one");
        let text = String::from_utf8(head).unwrap();
        let (line, rest) = text.split_once("\r\n").unwrap();
        assert_eq!(line, "POST /v1/chat/completions HTTP/1.1");
        let mut got: Vec<&str> = rest.strip_suffix("\r\n\r\n").unwrap().split("\r\n").collect();
        got.sort_unstable();
        let want = [
            "accept: text/event-stream",
            "content-length: 5",
            "content-type: application/json; charset=utf-8",
            "host: localhost",
            "traceparent: 00-1",
            "x-request-id: ours",
        ];
        assert_eq!(got, want);
    }

    #[test]
    fn what_is_json_is_called_json() {
        const FORM: &str = "application/x-www-form-urlencoded";
        const PARTS: &str = "multipart/form-data; boundary=b";
        for (task, theirs, want) in [
            (Task::Chat, Some(FORM), "application/json"),
            (Task::Chat, Some("text/plain"), "application/json"),
            (Task::Chat, Some("application/jsonl"), "application/json"),
            (Task::Chat, Some("Application/JSON"), "Application/JSON"),
            (Task::Chat, None, "application/json"),
            (Task::Transcriptions, Some(PARTS), PARTS),
        ] {
            let headers = theirs.map(|kind| map(&[("content-type", kind)])).unwrap_or_default();
            let (id, body) = (HeaderValue::from_static("ours"), Bytes::new());
            let engines_id = id.clone();
            let order = Order { target: task.into(), headers, id, engines_id, body, rest: 0 };
            let head = String::from_utf8(order.written(&[])).unwrap();
            let kinds: Vec<&str> =
                head.split("\r\n").filter_map(|l| l.strip_prefix("content-type: ")).collect();
            assert_eq!(kinds, [want], "{theirs:?}");
        }
    }
}
