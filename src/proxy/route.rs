//! From a request's head to what it asks for. PURE.
//!
//! Purpose: the one list of paths and methods. Owner: `service`. Invariants: the answer depends on nothing but the head; a
//! path that is not listed here can reach neither supervisor nor engine.

use hyper::header;
use hyper::{HeaderMap, Method, StatusCode, Uri, Version};

use super::error::ApiError;
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
    Completion(Task),
    /// `GET /health`: the process serves.
    Health,
    /// `GET /ready`: nothing is wrong.
    Ready,
    /// `GET /api/v1/status`.
    Status(Format),
}

/// What an engine is asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Task {
    /// `POST /v1/chat/completions`.
    Chat,
    /// `POST /v1/completions`.
    Text,
    /// `POST /v1/embeddings`.
    Embeddings,
}

impl Task {
    /// The path on the engine's side, which is ours to write.
    pub const fn path(self) -> &'static str {
        match self {
            Self::Chat => "/v1/chat/completions",
            Self::Text => "/v1/completions",
            Self::Embeddings => "/v1/embeddings",
        }
    }
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
            Self::Completion(Task::Chat) => "chat_completions",
            Self::Completion(Task::Text) => "completions",
            Self::Completion(Task::Embeddings) => "embeddings",
            Self::Health => "health",
            Self::Ready => "ready",
            Self::Status(_) => "status",
        }
    }
}

/// Routes a head.
///
/// # Errors
/// 400 for a head that breaks the rules, 404 for an unknown path, 405 for a method that the path does not know, 411 for a
/// POST that does not say whether it has a body.
pub(super) fn route(
    method: &Method,
    uri: &Uri,
    version: Version,
    headers: &HeaderMap,
) -> Result<Route, ApiError> {
    strict::check(method, uri, version, headers).map_err(ApiError::malformed)?;
    let route = match uri.path() {
        "/v1/chat/completions" => Route::Completion(Task::Chat),
        "/v1/completions" => Route::Completion(Task::Text),
        "/v1/embeddings" => Route::Completion(Task::Embeddings),
        "/v1/models" => Route::Models,
        "/health" => Route::Health,
        "/ready" => Route::Ready,
        "/api/v1/status" => Route::Status(format(headers)),
        path => match path.strip_prefix("/v1/models/") {
            Some(id) => Route::Model(model(id)?),
            // Only a model's name may be escaped: any other escape hides a path from whoever reads it unescaped.
            None if path.contains('%') => {
                return Err(ApiError::malformed("the path must not hold percent-escapes"));
            }
            None => {
                return Err(ApiError::new(
                    StatusCode::NOT_FOUND,
                    "unknown_path",
                    "unknown path; known are /v1/models, /v1/chat/completions, /v1/completions, \
                     /v1/embeddings, /health, /ready and /api/v1/status",
                ));
            }
        },
    };
    match route {
        Route::Completion(_) if method != Method::POST => Err(not_allowed("POST")),
        Route::Completion(_) if !has_length(headers) => Err(ApiError::new(
            StatusCode::LENGTH_REQUIRED,
            "length_required",
            "a POST needs Content-Length or Transfer-Encoding: chunked",
        )),
        Route::Models | Route::Model(_) | Route::Health | Route::Ready | Route::Status(_)
            if method != Method::GET && method != Method::HEAD =>
        {
            Err(not_allowed("GET, HEAD"))
        }
        route @ (Route::Completion(_)
        | Route::Models
        | Route::Model(_)
        | Route::Health
        | Route::Ready
        | Route::Status(_)) => Ok(route),
    }
}

fn not_allowed(allow: &'static str) -> ApiError {
    let message = format!("this path knows only {allow}");
    let mut error = ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message);
    error.allow = Some(allow);
    error
}

fn has_length(headers: &HeaderMap) -> bool {
    headers.contains_key(header::CONTENT_LENGTH) || headers.contains_key(header::TRANSFER_ENCODING)
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

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::header::HeaderValue;

    fn head(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, HeaderValue::from_static("localhost"));
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    fn get(target: &'static str) -> Result<Route, ApiError> {
        route(&Method::GET, &Uri::from_static(target), Version::HTTP_11, &head(&[]))
    }

    #[test]
    fn known_paths() {
        assert_eq!(get("/v1/models"), Ok(Route::Models));
        assert_eq!(get("/health?x=1"), Ok(Route::Health));
        assert_eq!(get("/ready"), Ok(Route::Ready));
        assert_eq!(get("/api/v1/status"), Ok(Route::Status(Format::Json)));
        for task in [Task::Chat, Task::Text, Task::Embeddings] {
            let uri = Uri::from_static(task.path());
            let headers = head(&[("content-length", "2")]);
            let got = route(&Method::POST, &uri, Version::HTTP_11, &headers);
            assert_eq!(got, Ok(Route::Completion(task)));
        }
    }

    #[test]
    fn a_model_by_name_with_slashes() {
        let name = |n: &str| Ok(Route::Model(n.parse().unwrap()));
        assert_eq!(get("/v1/models/a"), name("a"));
        assert_eq!(get("/v1/models/Qwen/Qwen3-8B"), name("Qwen/Qwen3-8B"));
        assert_eq!(get("/v1/models/Qwen%2FQwen3:8b"), name("Qwen/Qwen3:8b"));
        for unknown in ["/v1/models/", "/v1/models/a/", "/v1/models/%41%20"] {
            assert_eq!(get(unknown).unwrap_err().status, 404, "{unknown}");
        }
        for bad in ["%", "%2", "%zz", "%ff", "..%2fchat", "a%2f%2e%2e%2fb", "%2Fa", "a%5cb"] {
            let uri: Uri = format!("/v1/models/{bad}").parse().unwrap();
            let got = route(&Method::GET, &uri, Version::HTTP_11, &head(&[]));
            assert_eq!(got.unwrap_err().status, 400, "{bad}");
        }
    }

    #[test]
    fn unknown_paths_and_hidden_ones() {
        for unknown in ["/", "/v1", "/v1/chat/completions/", "/V1/models", "/sleep", "/metrics"] {
            let error = get(unknown).unwrap_err();
            assert_eq!((error.status.as_u16(), error.close), (404, false), "{unknown}");
        }
        for bad in ["/v1%2fmodels", "/v1/%63hat/completions", "/v1/../health", "/%2e%2e/x"] {
            let error = get(bad).unwrap_err();
            assert_eq!((error.status.as_u16(), error.close), (400, true), "{bad}");
        }
    }

    /// vLLM's development routes run code in the engine: with them on, no client may come near them.
    #[test]
    fn routes_for_development_are_nobodys() {
        let headers = head(&[("content-length", "2")]);
        for path in [
            "/sleep?level=1",
            "/sleep?level=2&mode=abort",
            "/wake_up",
            "/wake_up?tags=weights",
            "/is_sleeping",
            "/collective_rpc",
            "/pause",
            "/resume",
            "/server_info",
            "/reset_prefix_cache",
            "/v1/../collective_rpc",
            "/v1/completions/../../sleep",
            "//sleep",
            "/%73leep",
        ] {
            for method in [Method::GET, Method::POST, Method::HEAD] {
                let uri: Uri = path.parse().unwrap();
                let got = route(&method, &uri, Version::HTTP_11, &headers);
                let status = got.unwrap_err().status.as_u16();
                assert!(status == 404 || status == 400, "{method} {path}: {status}");
            }
        }
    }

    #[test]
    fn methods_and_lengths() {
        let error = get("/v1/chat/completions").unwrap_err();
        assert_eq!((error.status.as_u16(), error.allow), (405, Some("POST")));
        let post = |target, pairs: &[_]| {
            route(&Method::POST, &Uri::from_static(target), Version::HTTP_11, &head(pairs))
        };
        let error = post("/health", &[]).unwrap_err();
        assert_eq!((error.status.as_u16(), error.allow), (405, Some("GET, HEAD")));
        assert_eq!(post("/v1/embeddings", &[]).unwrap_err().status, 411);
        assert!(post("/v1/embeddings", &[("transfer-encoding", "chunked")]).is_ok());
        assert_eq!(post("/nowhere", &[]).unwrap_err().status, 404);
        let uri = Uri::from_static("/ready");
        let head = route(&Method::HEAD, &uri, Version::HTTP_11, &head(&[]));
        assert_eq!(head, Ok(Route::Ready));
    }

    #[test]
    fn accept_chooses_the_format() {
        let status = |accept: &'static str| {
            let uri = Uri::from_static("/api/v1/status");
            route(&Method::GET, &uri, Version::HTTP_11, &head(&[("accept", accept)])).unwrap()
        };
        assert_eq!(status("text/plain"), Route::Status(Format::Text));
        assert_eq!(status("text/html, text/plain;q=0.5, */*"), Route::Status(Format::Text));
        assert_eq!(status("application/json, text/plain"), Route::Status(Format::Json));
        assert_eq!(status("*/*"), Route::Status(Format::Json));
    }
}
