//! From a request's head to what it asks for. PURE.
//!
//! Purpose: the one list of paths and methods; those that lead to engines are in `endpoints`. Owner: `service`. Invariants: the
//! answer depends on nothing but the head; a path that is not listed here can reach neither supervisor nor engine.

use hyper::header;
use hyper::{HeaderMap, Method, StatusCode, Uri, Version};

use super::endpoints::Task;
use super::error::ApiError;
use super::port::Page;
use super::strict;
use crate::types::{Denied, ModelName};

/// What a request asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Route {
    /// `GET /v1/models`.
    Models,
    /// `GET /v1/models/{id}`.
    Model(ModelName),
    /// A request that an engine answers.
    Inference(Task),
    /// Something about an earlier answer of an engine's.
    Recall(Recall),
    /// `GET /v1/realtime?model=…`, a WebSocket: the model as the client wrote it.
    Realtime(String),
    /// `GET /`: what this is. A person looks here first, and so does Ollama's own client.
    Root,
    /// `GET /health`: the process serves.
    Health,
    /// `GET /ready`: nothing is wrong.
    Ready,
    /// `GET /api/v1/status`.
    Status(Format),
    /// What clients of Ollama ask before they show a list of models; read-only.
    Ollama(Ollama),
    /// Something about the host.
    Page(Page),
    /// A browser asks whether another site's page may send what the path knows.
    Preflight,
}

/// `/v1/responses/{id}` and what is below it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Recall {
    /// The answer's identifier: letters, digits, `_` and `-`.
    pub id: String,
    /// What is wanted.
    pub act: Act,
    /// What of the query is passed on, with its `?`: made anew of the parameters that are known. Empty if none.
    pub query: String,
}

/// What can be done with an earlier answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Act {
    /// `GET /v1/responses/{id}`.
    Retrieve,
    /// `POST /v1/responses/{id}/cancel`.
    Cancel,
}

/// Ollama's questions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ollama {
    /// `GET /api/version`.
    Version,
    /// `GET /api/tags`: what is configured.
    Tags,
    /// `GET /api/ps`: what is loaded.
    Ps,
}

/// How the status is to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// For programs.
    Json,
    /// For people: `Accept: text/plain`.
    Text,
}

impl Route {
    /// The word for it in logs.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Models => "models",
            Self::Model(_) => "model",
            Self::Inference(task) => task.name(),
            Self::Recall(Recall { act: Act::Retrieve, .. }) => "response",
            Self::Recall(Recall { act: Act::Cancel, .. }) => "response_cancel",
            Self::Realtime(_) => "realtime",
            Self::Root => "root",
            Self::Health => "health",
            Self::Ready => "ready",
            Self::Status(_) => "status",
            Self::Ollama(Ollama::Version) => "ollama_version",
            Self::Ollama(Ollama::Tags) => "ollama_tags",
            Self::Ollama(Ollama::Ps) => "ollama_ps",
            Self::Page(page) => pages::name(page),
            Self::Preflight => "preflight",
        }
    }

    /// The methods that it knows, as `Allow` names them, and whether this is one.
    fn allows(&self, method: &Method) -> (&'static str, bool) {
        match self {
            Self::Inference(_) | Self::Recall(Recall { act: Act::Cancel, .. }) => {
                ("POST", method == Method::POST)
            }
            Self::Realtime(_) | Self::Recall(Recall { act: Act::Retrieve, .. }) => {
                ("GET", method == Method::GET)
            }
            Self::Page(Page::Act(..)) => ("POST", method == Method::POST),
            Self::Models
            | Self::Page(_)
            | Self::Model(_)
            | Self::Root
            | Self::Health
            | Self::Ready
            | Self::Status(_)
            | Self::Ollama(_) => ("GET, HEAD", method == Method::GET || method == Method::HEAD),
            Self::Preflight => ("OPTIONS", true),
        }
    }
}

/// Routes a head.
///
/// # Errors
/// 400 for a head that breaks the rules, 404 for an unknown path, 405 for a method that the path does not know, 411 for a
/// POST that does not say whether it has a body, 426 for a plain request where only a WebSocket is spoken.
pub(super) fn route(
    method: &Method,
    uri: &Uri,
    version: Version,
    headers: &HeaderMap,
) -> Result<Route, ApiError> {
    strict::check(method, uri, version, headers).map_err(ApiError::malformed)?;
    let found = find(uri, headers);
    let asks_first =
        method == Method::OPTIONS && headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
    // A page hears what is wrong with a path by the request itself: of the question before it its browser tells nothing.
    if asks_first && found.as_ref().err().is_none_or(|error| !error.close) {
        return Ok(Route::Preflight);
    }
    let route = found?;
    let (allow, allowed) = route.allows(method);
    if !allowed {
        return Err(not_allowed(allow));
    }
    if matches!(route, Route::Realtime(_)) {
        strict::websocket(version, headers).map_err(|why| {
            ApiError::new(StatusCode::UPGRADE_REQUIRED, "websocket_required", why)
        })?;
    }
    if matches!(route, Route::Inference(_)) && !has_length(headers) {
        return Err(ApiError::new(
            StatusCode::LENGTH_REQUIRED,
            "length_required",
            "a POST needs Content-Length or Transfer-Encoding: chunked",
        ));
    }
    Ok(route)
}

fn find(uri: &Uri, headers: &HeaderMap) -> Result<Route, ApiError> {
    let path = uri.path();
    if let Some(task) = Task::at(path) {
        return Ok(Route::Inference(task));
    }
    if let Some(page) = pages::find(path, uri.query()) {
        return page.map(Route::Page);
    }
    Ok(match path {
        "/v1/models" => Route::Models,
        "/v1/realtime" => Route::Realtime(realtime_model(uri.query().unwrap_or_default())?),
        "/" => Route::Root,
        "/health" => Route::Health,
        "/ready" => Route::Ready,
        "/api/v1/status" => Route::Status(format(headers)),
        "/api/version" => Route::Ollama(Ollama::Version),
        "/api/tags" => Route::Ollama(Ollama::Tags),
        "/api/ps" => Route::Ollama(Ollama::Ps),
        path => match (path.strip_prefix("/v1/models/"), path.strip_prefix("/v1/responses/")) {
            (Some(id), _) => Route::Model(model(id)?),
            // Only a model's name may be escaped: any other escape hides a path from whoever reads it unescaped.
            (None, _) if path.contains('%') => {
                return Err(ApiError::malformed("the path must not hold percent-escapes"));
            }
            (None, Some(rest)) => {
                recall(rest, uri.query()).map(Route::Recall).ok_or_else(unknown_path)?
            }
            (None, None) if OLLAMA_ONLY.contains(&path) => return Err(ollama_path()),
            (None, None) => return Err(unknown_path()),
        },
    })
}

fn unknown_path() -> ApiError {
    ApiError::new(
        StatusCode::NOT_FOUND,
        "unknown_path",
        "unknown path; GET /v1/models lists the models, and docs/api.md the paths: /v1/chat/completions, /v1/completions, \
         /v1/responses, /v1/embeddings, /v1/messages and others",
    )
}

/// Paths with which Ollama's clients go on once they have seen a list of models.
const OLLAMA_ONLY: [&str; 10] = [
    "/api/chat",
    "/api/generate",
    "/api/embed",
    "/api/embeddings",
    "/api/show",
    "/api/pull",
    "/api/push",
    "/api/create",
    "/api/copy",
    "/api/delete",
];

fn ollama_path() -> ApiError {
    ApiError::new(
        StatusCode::NOT_FOUND,
        "unknown_path",
        "of Ollama's paths this host answers only the questions what is there (/api/version, /api/tags, /api/ps); set the client to an \
         OpenAI-compatible connection with the base URL http://HOST:PORT/v1",
    )
}

fn recall(rest: &str, query: Option<&str>) -> Option<Recall> {
    let (id, act) = match rest.split_once('/') {
        None => (rest, Act::Retrieve),
        Some((id, "cancel")) => (id, Act::Cancel),
        Some(_) => return None,
    };
    let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
    // Two paths of OpenAI's, with POST.
    let path = act == Act::Retrieve && ["input_tokens", "compact"].contains(&id);
    let good = (1..=128).contains(&id.len()) && id.bytes().all(plain) && !path;
    let query =
        if act == Act::Retrieve { resumed(query.unwrap_or_default()) } else { String::new() };
    good.then(|| Recall { id: id.to_owned(), act, query })
}

/// Of a query what asks for an answer as a stream, and from where on: the first of each. The others are none of ours to pass on.
fn resumed(query: &str) -> String {
    let first =
        |name: &str| query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
    let stream =
        first("stream").filter(|v| ["true", "false", "True", "False", "1", "0"].contains(v));
    let number = |v: &&str| (1..=18).contains(&v.len()) && v.bytes().all(|b| b.is_ascii_digit());
    let after = first("starting_after").filter(number);
    let mut out = String::new();
    for (name, value) in [("stream", stream), ("starting_after", after)] {
        if let Some(value) = value {
            out.extend([if out.is_empty() { "?" } else { "&" }, name, "=", value]);
        }
    }
    out
}

/// The one `model` of a query; the others are the engine's business and none of ours to pass on.
fn realtime_model(query: &str) -> Result<String, ApiError> {
    let bad = |code, message| {
        let mut error = ApiError::new(StatusCode::BAD_REQUEST, code, message);
        error.param = Some("model");
        error
    };
    let mut models = query.split('&').filter_map(|pair| pair.strip_prefix("model="));
    match (models.next(), models.next()) {
        (None, _) => {
            Err(bad("missing_required_parameter", "\"model\" is missing: /v1/realtime?model=NAME"))
        }
        (Some(_), Some(_)) => Err(bad("duplicate_parameter", "\"model\" is given more than once")),
        (Some(text), None) => decode(text)
            .ok_or_else(|| ApiError::malformed("the model's name holds a broken percent-escape")),
    }
}

fn not_allowed(allow: &'static str) -> ApiError {
    let message = format!("this path knows only {allow}");
    let mut error = ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message);
    error.allow = Some(allow);
    error
}

fn has_length(headers: &HeaderMap) -> bool {
    strict::has(headers, &header::CONTENT_LENGTH)
        || strict::has(headers, &header::TRANSFER_ENCODING)
}

/// A model's name in a path. OpenAI's clients write its slashes as `%2F`, people write them as they are; both are taken,
/// because the name is looked up as a whole and goes nowhere else.
fn model(id: &str) -> Result<ModelName, ApiError> {
    let decoded = decode(id)
        .ok_or_else(|| ApiError::malformed("the model's name holds a broken percent-escape"))?;
    // What climbs after decoding is refused like what climbs before.
    strict::path(&format!("/{decoded}")).map_err(ApiError::malformed)?;
    decoded.parse::<ModelName>().map_err(|_| {
        // A text that is no name names no model.
        ApiError::impossible_model(&decoded)
            .unwrap_or_else(|| Denied::UnknownModel { model: decoded }.into())
    })
}

fn decode(text: &str) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let mut digit = || bytes.next().and_then(|b| char::from(b).to_digit(16));
        let (high, low) = (digit()?, digit()?);
        out.push(u8::try_from(high * 16 + low).ok()?);
    }
    String::from_utf8(out).ok()
}

/// The first media range of `Accept` that names one of the two decides; weights are not worth a parser here.
fn format(headers: &HeaderMap) -> Format {
    let accept = headers.get_all(header::ACCEPT).iter().filter_map(|v| v.to_str().ok());
    let ranges = accept.flat_map(|v| v.split(',')).map(|r| r.split(';').next().unwrap_or(r).trim());
    for range in ranges {
        if range.eq_ignore_ascii_case("text/plain") {
            return Format::Text;
        }
        if range.eq_ignore_ascii_case("application/json") {
            return Format::Json;
        }
    }
    Format::Json
}

mod pages;
#[cfg(test)]
mod tests;
