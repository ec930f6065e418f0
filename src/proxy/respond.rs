//! Answers of our own. PURE.
//!
//! Purpose: from a value to a response with its headers. Owner: `service`. Invariants: every error goes through
//! [`error`]; nothing here asks the supervisor for anything, so a model list never wakes a model.

use bytes::Bytes;
use hyper::header::{self, HeaderName, HeaderValue};
use hyper::{Response, StatusCode};
use serde::Serialize;
use serde_json::json;

use super::error::ApiError;
use super::route::Format;
use super::table::table;
use crate::types::{ModelName, Status};

/// OpenAI's clients read it; others ignore it.
const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");

/// An answer whose bytes are all known.
pub(super) type Whole = Response<Bytes>;

/// An error.
pub(super) fn error(error: &ApiError) -> Whole {
    let mut response = json_response(error.status, error.json());
    let headers = response.headers_mut();
    if let Some(secs) = error.retry_after_secs() {
        headers.insert(header::RETRY_AFTER, HeaderValue::from(secs));
    }
    if error.hopeless {
        headers.insert(SHOULD_RETRY, HeaderValue::from_static("false"));
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
}

impl<'a> Model<'a> {
    const fn new(id: &'a str, created: u64) -> Self {
        Self { id, object: "model", created, owned_by: "hostler" }
    }
}

/// `GET /v1/models`: all configured names and aliases, loaded or not. `created`: Unix seconds of the daemon's start, for
/// want of anything that means more.
pub(super) fn models(status: &Status, created: u64) -> Whole {
    let names = status.models.iter().flat_map(|m| std::iter::once(&m.name).chain(&m.aliases));
    let data: Vec<Model<'_>> = names.map(|n| Model::new(n.as_str(), created)).collect();
    ok(&json!({ "object": "list", "data": data }))
}

/// `GET /v1/models/{id}`.
///
/// # Errors
/// 404 for a name that is not configured.
pub(super) fn model(status: &Status, name: &ModelName, created: u64) -> Result<Whole, ApiError> {
    let known = status.models.iter().any(|m| m.name == *name || m.aliases.contains(name));
    if known {
        return Ok(ok(&Model::new(name.as_str(), created)));
    }
    Err(crate::types::Denied::UnknownModel { model: name.to_string() }.into())
}

/// `GET /health`: the process serves. Says nothing about models or GPUs, so that nobody restarts a healthy daemon for them.
pub(super) fn health() -> Whole {
    ok(&json!({ "status": "ok" }))
}

/// `GET /ready`: 200, or 503 with what is wrong.
pub(super) fn ready(status: &Status) -> Whole {
    let ready = status.problems.is_empty() && !status.shutting_down;
    let word = match (ready, status.shutting_down) {
        (true, _) => "ready",
        (false, true) => "shutting_down",
        (false, false) => "degraded",
    };
    let code = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let body = json!({ "status": word, "problems": status.problems });
    json_response(code, serde_json::to_vec(&body).unwrap_or_default())
}

/// `GET /api/v1/status`.
pub(super) fn status(status: &Status, format: Format) -> Whole {
    match format {
        Format::Json => ok(status),
        Format::Text => whole(StatusCode::OK, "text/plain; charset=utf-8", table(status).into()),
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

    use serde_json::Value;

    use super::super::table::tests::model as configured;
    use super::*;
    use crate::types::{Moment, Problem};

    fn value(response: &Whole) -> Value {
        serde_json::from_slice(response.body()).unwrap()
    }

    fn status_of_two() -> Status {
        let mut a = configured("org/a");
        a.aliases = vec!["gpt-4o".parse().unwrap()];
        Status { models: vec![a, configured("b")], ..Status::default() }
    }

    #[test]
    fn models_and_aliases_are_listed() {
        let body = value(&models(&status_of_two(), 7));
        assert_eq!(body["object"], "list");
        let ids: Vec<_> = body["data"].as_array().unwrap().iter().map(|m| &m["id"]).collect();
        assert_eq!(ids, ["org/a", "gpt-4o", "b"]);
        let want = json!({"id":"org/a","object":"model","created":7,"owned_by":"hostler"});
        assert_eq!(body["data"][0], want);
    }

    #[test]
    fn one_model_by_name_or_alias() {
        let get = |name: &str| model(&status_of_two(), &name.parse().unwrap(), 7);
        assert_eq!(value(&get("gpt-4o").unwrap())["id"], "gpt-4o");
        assert_eq!(value(&get("org/a").unwrap())["id"], "org/a");
        assert_eq!(get("a").unwrap_err().status, 404);
    }

    #[test]
    fn ready_says_what_is_wrong() {
        let mut status = status_of_two();
        assert_eq!(ready(&status).status(), 200);
        status.problems.push(Problem {
            code: "gpu_lost",
            message: "GPU-a is lost".into(),
            since: Moment::START,
        });
        let response = ready(&status);
        assert_eq!(response.status(), 503);
        assert_eq!(value(&response)["problems"][0]["code"], "gpu_lost");
        status.problems.clear();
        status.shutting_down = true;
        assert_eq!(ready(&status).status(), 503);
    }

    #[test]
    fn an_errors_headers() {
        let mut e = ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "x", "y")
            .retry_after(Duration::from_millis(1500));
        e.hopeless = true;
        e.allow = Some("GET");
        let response = error(&e.closing());
        let header = |name: &str| response.headers()[name].to_str().unwrap().to_owned();
        assert_eq!(header("retry-after"), "2");
        assert_eq!(header("x-should-retry"), "false");
        assert_eq!(header("allow"), "GET");
        assert_eq!(header("connection"), "close");
        assert_eq!(header("content-length"), response.body().len().to_string());
    }

    #[test]
    fn status_in_two_formats() {
        let text = status(&status_of_two(), Format::Text);
        assert!(text.body().starts_with(b"MODEL"));
        let body = value(&status(&status_of_two(), Format::Json));
        assert_eq!(body["models"][1]["name"], "b");
        assert_eq!(body["models"][1]["phase"], "stopped");
    }
}
