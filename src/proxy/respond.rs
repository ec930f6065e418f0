//! Answers of our own. PURE.
//!
//! Purpose: from a value to a response with its headers. Owner: `service`. Invariants: every error goes through
//! [`error`]; nothing here asks the supervisor for anything, so a model list never wakes a model.

use bytes::Bytes;
use hyper::header::{self, HeaderName, HeaderValue};
use hyper::{HeaderMap, Response, StatusCode};
use serde::Serialize;
use serde_json::{Value, json};

use super::endpoints::Dialect;
use super::error::ApiError;
use super::record::REQUEST_ID;
use super::route::{Format, Ollama};
use super::table::table;
use crate::types::{ExternalStatus, ModelName, ModelStatus, Phase, Status};

/// OpenAI's clients read it; others ignore it.
const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");

/// An answer whose bytes are all known.
pub(super) type Whole = Response<Bytes>;

/// Where Anthropic's clients look for the request's ID.
const ANTHROPICS_ID: HeaderName = HeaderName::from_static("request-id");

/// Which request an answer is for, under the names that the client's dialect has for it. An engine's own is of no use to anybody here.
pub(super) fn name(headers: &mut HeaderMap, dialect: Dialect, id: HeaderValue) {
    if dialect == Dialect::Anthropic {
        headers.insert(ANTHROPICS_ID, id.clone());
    }
    headers.insert(REQUEST_ID, id);
}

/// An error, in the client's dialect. `id`: the request's.
pub(super) fn error(error: &ApiError, dialect: Dialect, id: &HeaderValue) -> Whole {
    let mut response = json_response(error.status, error.json(dialect, id));
    let headers = response.headers_mut();
    if let Some(secs) = error.retry_after_secs() {
        headers.insert(header::RETRY_AFTER, HeaderValue::from(secs));
    }
    if error.is_hopeless() {
        headers.insert(SHOULD_RETRY, HeaderValue::from_static("false"));
    }
    if error.status == StatusCode::UNAUTHORIZED {
        headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    if let Some(allow) = error.allow {
        headers.insert(header::ALLOW, HeaderValue::from_static(allow));
    }
    if error.close {
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

#[derive(Serialize)]
struct Model<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    owned_by: &'static str,
    /// Tokens of its context, where that is configured. By vLLM's name for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    max_model_len: Option<u32>,
    /// The same by the name of those who sell models.
    #[serde(skip_serializing_if = "Option::is_none")]
    context_length: Option<u32>,
}

impl<'a> Model<'a> {
    const fn new(id: &'a str, created: u64, context: Option<u32>) -> Self {
        let (object, owned_by) = ("model", "hostler");
        Self { id, object, created, owned_by, max_model_len: context, context_length: context }
    }
}

/// `GET /v1/models`: all configured names and aliases that the client `may` use, loaded or not. `created`: Unix seconds of the
/// daemon's start, for want of anything that means more.
/// `others`: names of models that run elsewhere.
pub(super) fn models<'o>(
    status: &'o Status,
    created: u64,
    may: impl Fn(&ModelName) -> bool,
    others: impl Iterator<Item = &'o ModelName>,
) -> Whole {
    let mine = status.models.iter().filter(|m| may(&m.name));
    let names = mine.flat_map(|m| {
        std::iter::once(&m.name).chain(&m.aliases).map(|name| (name.as_str(), m.context))
    });
    let names = names.chain(others.map(|name| (name.as_str(), None)));
    let data: Vec<Model<'_>> =
        names.map(|(name, context)| Model::new(name, created, context)).collect();
    ok(&json!({ "object": "list", "data": data }))
}

/// `GET /v1/models/{id}`.
///
/// # Errors
/// 404 for a name that is not configured, or that the client may not use.
pub(super) fn model<'o>(
    status: &Status,
    name: &ModelName,
    created: u64,
    may: impl Fn(&ModelName) -> bool,
    mut others: impl Iterator<Item = &'o ModelName>,
) -> Result<Whole, ApiError> {
    let mut mine = status.models.iter().filter(|m| may(&m.name));
    let own = mine.find(|m| m.name == *name || m.aliases.contains(name)).map(|m| m.context);
    if let Some(context) = own.or_else(|| others.any(|n| n == name).then_some(None)) {
        return Ok(ok(&Model::new(name.as_str(), created, context)));
    }
    Err(crate::types::Denied::UnknownModel { model: name.to_string() }.into())
}

/// What clients of Ollama ask before they offer a model: the names of [`models`], and which of them are loaded here. Chatting with it is
/// for OpenAI's paths.
pub(super) fn ollama<'o>(
    what: Ollama,
    status: &'o Status,
    created: u64,
    may: impl Fn(&ModelName) -> bool,
    others: impl Iterator<Item = &'o ModelName>,
) -> Whole {
    let date =
        jiff::Timestamp::from_second(i64::try_from(created).unwrap_or(0)).unwrap_or_default();
    let date = date.to_string();
    let entry = |name: &ModelName, model: Option<&ModelStatus>| {
        // Sizes that are not known are 0 in this protocol, which has no other word for it.
        let size = model.and_then(|m| m.observed.get()).map_or(0, |b| b.0);
        json!({
            "name": name, "model": name, "modified_at": date, "size": size, "size_vram": size, "digest": "",
            "expires_at": date,
            "details": {
                "parent_model": "", "format": "", "family": "", "families": [], "parameter_size": "",
                "quantization_level": "",
            },
        })
    };
    let mine = status.models.iter().filter(|m| may(&m.name));
    match what {
        Ollama::Version => ok(&json!({ "version": env!("CARGO_PKG_VERSION") })),
        Ollama::Tags => {
            let mine = mine.flat_map(|m| {
                std::iter::once(&m.name).chain(&m.aliases).map(move |n| entry(n, Some(m)))
            });
            let all: Vec<_> = mine.chain(others.map(|n| entry(n, None))).collect();
            ok(&json!({ "models": all }))
        }
        Ollama::Ps => {
            let loaded = mine.filter(|m| matches!(m.phase, Phase::Ready | Phase::Draining));
            let loaded: Vec<_> = loaded.map(|m| entry(&m.name, Some(m))).collect();
            ok(&json!({ "models": loaded }))
        }
    }
}

/// 204.
pub(super) fn nothing() -> Whole {
    let mut response = Response::new(Bytes::new());
    *response.status_mut() = StatusCode::NO_CONTENT;
    response
}

/// `GET /`: says nothing of the host, for it is answered to everybody.
pub(super) fn root() -> Whole {
    let text = "Hostler is running; the API is at /v1, the dashboard at /ui\n";
    whole(StatusCode::OK, "text/plain; charset=utf-8", text.into())
}

/// `GET /health`: the process serves. Says nothing about models or GPUs, so that nobody restarts a healthy daemon for them.
pub(super) fn health() -> Whole {
    ok(&json!({ "status": "ok" }))
}

/// `GET /ready`: 200, or 503 with what is wrong, which strangers are not told.
pub(super) fn ready(status: &Status, known: bool) -> Whole {
    let hindered = status.problems.iter().any(crate::types::Problem::hinders_requests);
    let ready = !hindered && !status.shutting_down;
    let word = match (ready, status.shutting_down) {
        (true, _) => "ready",
        (false, true) => "shutting_down",
        (false, false) => "degraded",
    };
    let code = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let mut body = json!({ "status": word });
    if known {
        body["problems"] = json!(status.problems);
    }
    json_response(code, serde_json::to_vec(&body).unwrap_or_default())
}

/// The status, what is said of the daemon itself, and what is known of models that run elsewhere.
#[derive(Serialize)]
struct Everything<'a> {
    #[serde(flatten)]
    about: serde_json::Map<String, Value>,
    #[serde(flatten)]
    status: &'a Status,
    externals: Vec<ExternalStatus>,
}

/// `GET /api/v1/status`.
pub(super) fn status(
    status: &Status,
    format: Format,
    about: serde_json::Map<String, Value>,
    externals: Vec<ExternalStatus>,
) -> Whole {
    match format {
        // What engines wrote is on a page of its own, for who may read it.
        Format::Json => ok(&Everything { about, status: &status.without_logs(), externals }),
        Format::Text => {
            let text = table(status, &externals);
            whole(StatusCode::OK, "text/plain; charset=utf-8", text.into())
        }
    }
}

fn ok(value: &impl Serialize) -> Whole {
    // Plain data with string keys cannot fail to serialise.
    json_response(StatusCode::OK, serde_json::to_vec(value).unwrap_or_default())
}

fn json_response(status: StatusCode, body: Vec<u8>) -> Whole {
    whole(status, "application/json", body.into())
}

fn whole(status: StatusCode, content_type: &'static str, body: Bytes) -> Whole {
    let length = HeaderValue::from(body.len());
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(header::CONTENT_LENGTH, length);
    // A page that guesses types must not take an error's text for a script.
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::types::test_status as configured;
    use crate::types::{ModelStatus, Moment, Problem};

    fn value(response: &Whole) -> Value {
        serde_json::from_slice(response.body()).unwrap()
    }

    fn status_of_two() -> Status {
        let mut a = configured("org/a");
        a.aliases = vec!["gpt-4o".parse().unwrap()];
        let b = ModelStatus { context: Some(4096), ..configured("b") };
        Status { models: vec![a, b], ..Status::default() }
    }

    #[test]
    fn models_and_aliases_are_listed() {
        let body = value(&models(&status_of_two(), 7, |_| true, std::iter::empty()));
        assert_eq!(body["object"], "list");
        let ids: Vec<_> = body["data"].as_array().unwrap().iter().map(|m| &m["id"]).collect();
        assert_eq!(ids, ["org/a", "gpt-4o", "b"]);
        let want = json!({"id":"org/a","object":"model","created":7,"owned_by":"hostler"});
        assert_eq!(body["data"][0], want);
        let context =
            |body: &Value| (body["max_model_len"].clone(), body["context_length"].clone());
        assert_eq!(context(&body["data"][2]), (json!(4096), json!(4096)), "it is configured");
        let b = "b".parse().unwrap();
        let b = model(&status_of_two(), &b, 7, |_| true, std::iter::empty()).unwrap();
        assert_eq!(context(&value(&b)), (json!(4096), json!(4096)));
    }

    #[test]
    fn one_model_by_name_or_alias() {
        let get = |name: &str| {
            model(
                &status_of_two(),
                &name.parse().unwrap(),
                7,
                |n| n.as_str() != "b",
                std::iter::empty(),
            )
        };
        assert_eq!(value(&get("gpt-4o").unwrap())["id"], "gpt-4o");
        assert_eq!(value(&get("org/a").unwrap())["id"], "org/a");
        assert_eq!(get("a").unwrap_err().status, 404);
        assert_eq!(get("b").unwrap_err().status, 404, "it may not be used");
    }

    #[test]
    fn ollamas_clients_see_what_there_is() {
        let mut status = status_of_two();
        let far: ModelName = "far".parse().unwrap();
        let get = |what, status: &Status| {
            value(&ollama(what, status, 7, |n| n.as_str() != "b", std::iter::once(&far)))
        };
        assert_eq!(get(Ollama::Version, &status)["version"], env!("CARGO_PKG_VERSION"));
        let tags = get(Ollama::Tags, &status);
        let names: Vec<_> = tags["models"].as_array().unwrap().iter().map(|m| &m["name"]).collect();
        assert_eq!(names, ["org/a", "gpt-4o", "far"]);
        assert_eq!(tags["models"][0]["modified_at"], "1970-01-01T00:00:07Z");
        assert_eq!(get(Ollama::Ps, &status)["models"], json!([]));
        status.models[0].phase = Phase::Ready;
        assert_eq!(get(Ollama::Ps, &status)["models"][0]["model"], "org/a");
    }

    #[test]
    fn ready_says_what_is_wrong() {
        let mut status = status_of_two();
        assert_eq!(ready(&status, true).status(), 200);
        status.problems.push(Problem {
            code: "gpu_lost",
            message: "GPU-a is lost".into(),
            since: Moment::START,
        });
        let response = ready(&status, true);
        assert_eq!(response.status(), 503);
        assert_eq!(value(&response)["problems"][0]["code"], "gpu_lost");
        assert!(value(&ready(&status, false)).get("problems").is_none());
        status.problems.clear();
        status.shutting_down = true;
        assert_eq!(ready(&status, true).status(), 503);
    }

    #[test]
    fn an_errors_headers() {
        let mut e = ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "x", "y")
            .retry_after(Duration::from_millis(1500));
        e.hopeless = true;
        e.allow = Some("GET");
        let response = error(&e.closing(), Dialect::OpenAi, &HeaderValue::from_static("r-1"));
        let header = |name: &str| response.headers()[name].to_str().unwrap().to_owned();
        assert_eq!(header("retry-after"), "2");
        assert_eq!(header("x-should-retry"), "false");
        assert_eq!(header("allow"), "GET");
        assert_eq!(header("connection"), "close");
        assert_eq!(header("content-length"), response.body().len().to_string());
    }

    #[test]
    fn what_an_engine_wrote_is_not_in_the_status() {
        let mut all = status_of_two();
        let fault = crate::types::Fault::new(crate::types::FaultCode::EngineExited, "exit code 1");
        all.models[0].error = Some(fault.with_log(vec!["what a client sent".to_owned()]));
        let body = value(&status(&all, Format::Json, serde_json::Map::new(), vec![]));
        let error = &body["models"][0]["error"];
        assert_eq!((&error["message"], &error["log_tail"]), (&json!("exit code 1"), &json!([])));
        assert_eq!(error["log_withheld"], true);
    }

    #[test]
    fn status_in_two_formats() {
        let text = status(&status_of_two(), Format::Text, serde_json::Map::new(), vec![]);
        assert!(text.body().starts_with(b"MODEL"));
        let body = value(&status(&status_of_two(), Format::Json, serde_json::Map::new(), vec![]));
        assert_eq!(body["models"][1]["name"], "b");
        assert_eq!(body["models"][1]["phase"], "stopped");
    }
}
