//! Refusals, in the shape of errors that the client's dialect has.
//!
//! Purpose: every answer that is not a success is one [`ApiError`], so shape and headers are decided in one place.
//! Owner: `respond` turns it into bytes. Invariant: [`Denied`] is mapped to HTTP here and nowhere else.

use std::time::Duration;

use hyper::StatusCode;
use hyper::header::HeaderValue;
use serde::Serialize;
use serde_json::{Value, json};

use super::endpoints::{Dialect, Events};
use crate::types::{Denied, ModelName};

/// An error as a client gets it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct ApiError {
    /// HTTP status.
    pub status: StatusCode,
    /// `error.code`: a stable word to match.
    pub code: &'static str,
    /// `error.message`: for people.
    pub message: String,
    /// `error.param`: the part of the request that is at fault.
    pub param: Option<&'static str>,
    /// `error.details`: our addition to OpenAI's shape; left out when `None`.
    pub details: Option<Box<Value>>,
    /// `Retry-After`; rounded up to whole seconds, at least one.
    pub retry_after: Option<Duration>,
    /// `x-should-retry: false`, which OpenAI's clients obey: a retry is useless.
    pub hopeless: bool,
    /// `Allow`, for 405.
    pub allow: Option<&'static str>,
    /// The connection ends with this answer: what follows on it cannot be trusted or was not read.
    pub close: bool,
}

#[derive(Serialize)]
struct Shape<'a> {
    error: Inner<'a>,
}

#[derive(Serialize)]
struct Inner<'a> {
    message: &'a str,
    r#type: &'static str,
    param: Option<&'static str>,
    code: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    details: Option<&'a Value>,
}

/// Anthropic's shape; the fields that it does not know are those that OpenAI's shape has.
#[derive(Serialize)]
struct Tagged<'a> {
    r#type: &'static str,
    error: Inner<'a>,
    request_id: &'a str,
}

/// An error event of `/v1/responses` has its fields at the top; most clients look for `error` nevertheless.
#[derive(Serialize)]
struct ResponsesEvent<'a> {
    r#type: &'static str,
    code: &'static str,
    message: &'a str,
    param: Option<&'static str>,
    sequence_number: u32,
    error: Inner<'a>,
}

impl ApiError {
    /// An error with neither headers nor details.
    pub fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self {
            status,
            code,
            message: message.into(),
            param: None,
            details: None,
            retry_after: None,
            hopeless: false,
            allow: None,
            close: false,
        }
    }

    /// A request that breaks HTTP's rules, or bends them in a way that two parsers could read differently: 400 and the
    /// end of the connection.
    pub fn malformed(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "malformed_request", message).closing()
    }

    /// What runs into the end of the daemon's drain.
    pub fn drained() -> Self {
        let error = Self::from(Denied::ShuttingDown);
        let message = format!("{}, and the answer did not end within drain_timeout", error.message);
        Self { message, ..error }.closing()
    }

    /// The same error, after which the connection ends.
    pub fn closing(mut self) -> Self {
        self.close = true;
        self
    }

    /// The same error with a time after which a retry has a chance.
    pub fn retry_after(mut self, after: Duration) -> Self {
        self.retry_after = Some(after);
        self
    }

    /// Whether it tells of something that went wrong on the engine's side.
    pub fn is_engines(&self) -> bool {
        self.code.starts_with("engine_")
    }

    /// The value of `Retry-After` in seconds: rounded up, so that nobody comes too early, and never 0, which some
    /// clients take for "at once".
    pub fn retry_after_secs(&self) -> Option<u64> {
        self.retry_after.map(|d| d.as_secs().saturating_add(u64::from(d.subsec_nanos() > 0)).max(1))
    }

    /// The body, in the shape that the client's dialect has for errors. `id`: the request's.
    pub fn json(&self, dialect: Dialect, id: &HeaderValue) -> Vec<u8> {
        match dialect {
            Dialect::OpenAi => bytes(&Shape { error: self.inner(self.openai_type()) }),
            Dialect::Anthropic => bytes(&Tagged {
                r#type: "error",
                error: self.inner(self.anthropic_type()),
                request_id: id.to_str().unwrap_or_default(),
            }),
            Dialect::Ollama => bytes(&json!({ "error": self.message, "code": self.code })),
        }
    }

    /// The error as an event of a stream that has begun. Never followed by a `[DONE]`.
    pub fn event(&self, events: Events, id: &HeaderValue) -> Vec<u8> {
        let (name, data) = match events {
            Events::Messages => ("event: error\n", self.json(Dialect::Anthropic, id)),
            Events::Responses => {
                let event = ResponsesEvent {
                    r#type: "error",
                    code: self.code,
                    message: &self.message,
                    param: self.param,
                    sequence_number: 0,
                    error: self.inner(self.openai_type()),
                };
                ("event: error\n", bytes(&event))
            }
            Events::Chat | Events::Text | Events::Other => ("", self.json(Dialect::OpenAi, id)),
        };
        [name.as_bytes(), b"data: ", &data, b"\n\n"].concat()
    }

    fn inner(&self, r#type: &'static str) -> Inner<'_> {
        Inner {
            message: &self.message,
            r#type,
            param: self.param,
            code: self.code,
            details: self.details.as_deref(),
        }
    }

    fn openai_type(&self) -> &'static str {
        match self.status.as_u16() {
            401 => "authentication_error",
            403 => "permission_error",
            429 => "rate_limit_error",
            400..=499 => "invalid_request_error",
            _ => "server_error",
        }
    }

    fn anthropic_type(&self) -> &'static str {
        match self.status.as_u16() {
            401 => "authentication_error",
            403 => "permission_error",
            404 => "not_found_error",
            413 => "request_too_large",
            429 => "rate_limit_error",
            400..=499 => "invalid_request_error",
            503 => "overloaded_error",
            _ => "api_error",
        }
    }

    /// The refusal of a name that no model can have, without asking the supervisor; `None` for one that may exist. The
    /// name is cut, so that an absurd one is not sent back whole.
    pub fn impossible_model(name: &str) -> Option<Self> {
        if name.len() <= ModelName::LENGTH_MAX {
            return None;
        }
        let cut = name.floor_char_boundary(ModelName::LENGTH_MAX);
        Some(Denied::UnknownModel { model: format!("{}…", &name[..cut]) }.into())
    }
}

fn bytes(shape: &impl Serialize) -> Vec<u8> {
    // Strings and JSON values cannot fail to serialise.
    serde_json::to_vec(shape).unwrap_or_default()
}

impl From<Denied> for ApiError {
    fn from(denied: Denied) -> Self {
        let status = match &denied {
            Denied::UnknownModel { .. } => StatusCode::NOT_FOUND,
            // Only operators are told this, and they do not come by HTTP.
            Denied::Conflict { .. } => StatusCode::CONFLICT,
            Denied::NeverFits { .. }
            | Denied::NoRoom { .. }
            | Denied::StillLoading { .. }
            | Denied::LoadFailed { .. }
            | Denied::QueueFull { .. }
            | Denied::Unmeasurable { .. }
            | Denied::Unloaded { .. }
            | Denied::ShuttingDown => StatusCode::SERVICE_UNAVAILABLE,
        };
        let (param, details, hopeless) = match &denied {
            Denied::UnknownModel { .. } => (Some("model"), None, false),
            Denied::NeverFits { need, devices, largest, report, .. } => {
                let details =
                    json!({ "need": need, "devices": devices, "largest": largest, "plan": report });
                (Some("model"), Some(details), true)
            }
            Denied::NoRoom { report, .. } => (None, Some(json!({ "plan": report })), false),
            Denied::LoadFailed { fault, .. } => {
                (None, Some(json!({ "fault": fault.code, "log_tail": fault.log_tail })), false)
            }
            Denied::StillLoading { .. }
            | Denied::QueueFull { .. }
            | Denied::Unmeasurable { .. }
            | Denied::Unloaded { .. }
            | Denied::Conflict { .. }
            | Denied::ShuttingDown => (None, None, false),
        };
        let mut message = denied.to_string();
        if let Denied::LoadFailed { fault, .. } = &denied
            && let Some(last) = fault.log_tail.last()
        {
            message += &format!("; its last words: {last}");
        }
        let mut error = Self::new(status, denied.code(), message);
        error.param = param;
        error.details = details.map(Box::new);
        error.hopeless = hopeless;
        error.retry_after = denied.retry_after();
        error
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Bytes, Fault, FaultCode, Phase};

    const ID: HeaderValue = HeaderValue::from_static("r-1");

    fn body(error: &ApiError) -> Value {
        serde_json::from_slice(&error.json(Dialect::OpenAi, &ID)).unwrap()
    }

    #[test]
    fn every_refusal_has_its_status_and_headers() {
        let model: ModelName = "m".parse().unwrap();
        let (d, three) = (Duration::from_millis(6001), Duration::from_secs(3));
        let busy: [(Denied, u64); 6] = [
            (
                Denied::NoRoom {
                    model: model.clone(),
                    why: "x".into(),
                    report: None,
                    retry_after: d,
                },
                7,
            ),
            (
                Denied::StillLoading {
                    model: model.clone(),
                    phase: Phase::Loading,
                    retry_after: Duration::ZERO,
                },
                1,
            ),
            (Denied::QueueFull { model: model.clone(), queued: 9, retry_after: three }, 3),
            (
                Denied::LoadFailed {
                    model: model.clone(),
                    fault: Fault::new(FaultCode::EngineExited, "exit 1"),
                    retry_after: Duration::from_nanos(1),
                },
                1,
            ),
            (Denied::Unloaded { model: model.clone() }, 1),
            (Denied::ShuttingDown, 1),
        ];
        for (denied, secs) in busy {
            let error = ApiError::from(denied.clone());
            assert_eq!(error.status, 503, "{denied}");
            assert_eq!(error.retry_after_secs(), Some(secs), "{denied}");
            assert_eq!(body(&error)["error"]["code"], denied.code());
            assert_eq!(body(&error)["error"]["type"], "server_error");
            assert!(!error.hopeless);
        }
        let never = ApiError::from(Denied::NeverFits {
            model,
            need: Bytes::gib(9),
            devices: 1,
            largest: Bytes::gib(8),
            report: None,
        });
        assert_eq!((never.status.as_u16(), never.hopeless, never.retry_after), (503, true, None));
    }

    #[test]
    fn unknown_model_is_openais_404() {
        let error = ApiError::from(Denied::UnknownModel { model: "nope".into() });
        assert_eq!(error.status, 404);
        let body = body(&error);
        assert_eq!(body["error"]["code"], "model_not_found");
        assert_eq!(body["error"]["param"], "model");
        assert_eq!(body["error"]["type"], "invalid_request_error");
        assert_eq!(error.retry_after_secs(), None);
        assert!(body["error"].get("details").is_none());
    }

    #[test]
    fn a_failed_load_shows_what_the_engine_said() {
        let error = ApiError::from(Denied::LoadFailed {
            model: "m".parse().unwrap(),
            fault: Fault::new(FaultCode::EngineExited, "exit 1").with_log(vec!["no memory".into()]),
            retry_after: Duration::from_secs(5),
        });
        let body = body(&error);
        let message = body["error"]["message"].as_str().unwrap();
        assert!(message.ends_with("exit 1; its last words: no memory"), "{message}");
        assert_eq!(body["error"]["details"]["fault"], "engine_exited");
        assert_eq!(body["error"]["details"]["log_tail"][0], "no memory");
    }

    #[test]
    fn each_dialect_has_its_shape() {
        let error = ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "model_loading", "wait");
        let of = |dialect| -> Value { serde_json::from_slice(&error.json(dialect, &ID)).unwrap() };
        let anthropic = of(Dialect::Anthropic);
        assert_eq!(anthropic["type"], "error");
        assert_eq!(anthropic["error"]["type"], "overloaded_error");
        assert_eq!(anthropic["error"]["message"], "wait");
        assert_eq!(anthropic["request_id"], "r-1");
        assert_eq!(of(Dialect::Ollama)["error"], "wait");
        let status = |code| StatusCode::from_u16(code).unwrap();
        for (code, openai, anthropic) in [
            (400, "invalid_request_error", "invalid_request_error"),
            (401, "authentication_error", "authentication_error"),
            (403, "permission_error", "permission_error"),
            (404, "invalid_request_error", "not_found_error"),
            (413, "invalid_request_error", "request_too_large"),
            (429, "rate_limit_error", "rate_limit_error"),
            (502, "server_error", "api_error"),
        ] {
            let error = ApiError::new(status(code), "x", "y");
            assert_eq!(
                (error.openai_type(), error.anthropic_type()),
                (openai, anthropic),
                "{code}"
            );
        }
    }

    #[test]
    fn an_event_tells_each_client_in_its_form() {
        let error = ApiError::new(StatusCode::BAD_GATEWAY, "engine_failed", "it \n broke");
        let text = |events| String::from_utf8(error.event(events, &ID)).unwrap();
        let chat = text(Events::Chat);
        assert!(chat.starts_with("data: {\"error\":{\"message\":\"it \\n broke\""), "{chat}");
        let anthropic = text(Events::Messages);
        assert!(anthropic.starts_with("event: error\ndata: {\"type\":\"error\",\"error\":{"));
        assert!(anthropic.ends_with("},\"request_id\":\"r-1\"}\n\n"), "{anthropic}");
        let responses = text(Events::Responses);
        assert!(responses.starts_with("event: error\ndata: {\"type\":\"error\",\"code\":"));
        assert!(responses.contains("\"error\":{\"message\""));
        for event in [chat, anthropic, responses] {
            assert!(event.ends_with("\n\n") && event.matches('\n').count() <= 3, "{event}");
        }
    }

    #[test]
    fn an_absurd_name_is_cut() {
        assert_eq!(ApiError::impossible_model("m"), None);
        let error = ApiError::impossible_model(&"é".repeat(100_000)).unwrap();
        assert_eq!(error.status, 404);
        assert!(error.message.len() < 300, "{}", error.message.len());
    }
}
