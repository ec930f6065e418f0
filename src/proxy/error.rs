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

/// Codes of what passes by waiting.
const PASSES: [&str; 5] = ["model_loading", "no_room", "model_busy", "queue_full", "bodies_full"];

/// The longest `Retry-After` of what passes by waiting: clients' libraries give up at once at more than 60 s or 120 s, or sleep through any
/// time. Who comes sooner waits here.
const PASSES_WITHIN: Duration = Duration::from_secs(60);

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

/// An error event of `/v1/responses` has its fields at the top; most clients look for `error` nevertheless. Codex knows neither, but
/// [`Failed`] alone.
#[derive(Serialize)]
struct ResponsesEvent<'a> {
    r#type: &'static str,
    code: &'static str,
    message: &'a str,
    param: Option<&'static str>,
    sequence_number: u32,
    error: Inner<'a>,
}

/// How an answer of `/v1/responses` ends that has failed. Behind the error: OpenAI's library wants an answer's beginning before this one.
#[derive(Serialize)]
struct Failed<'a> {
    r#type: &'static str,
    sequence_number: u32,
    response: Answered<'a>,
}

#[derive(Serialize)]
struct Answered<'a> {
    id: &'a str,
    object: &'static str,
    status: &'static str,
    error: Why<'a>,
    output: [(); 0],
}

#[derive(Serialize)]
struct Why<'a> {
    code: &'static str,
    message: &'a str,
}

/// Whether an `error.code` says that an engine failed, in place of this host's own refusal.
pub(super) fn is_engines(code: &str) -> bool {
    code.starts_with("engine_")
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
        is_engines(self.code)
    }

    /// The value of `Retry-After` in seconds: rounded up, so that nobody comes too early, and never 0, which some
    /// clients take for "at once".
    pub fn retry_after_secs(&self) -> Option<u64> {
        self.retry_after.map(|d| d.as_secs().saturating_add(u64::from(d.subsec_nanos() > 0)).max(1))
    }

    /// Whether the same request would be refused again: what is the client's fault does not pass by waiting, unless a time is said for it.
    pub fn is_hopeless(&self) -> bool {
        let passes = self.retry_after.is_some()
            || matches!(self.status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS);
        self.hopeless || (self.status.is_client_error() && !passes)
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

    /// The error as the last events of a stream that has begun. Never followed by a `[DONE]`.
    pub fn event(&self, events: Events, id: &HeaderValue) -> Vec<u8> {
        let (name, data) = match events {
            Events::Messages => ("event: error\n", self.json(Dialect::Anthropic, id)),
            Events::Responses => {
                let failed = Failed {
                    r#type: "response.failed",
                    sequence_number: 1,
                    response: Answered {
                        id: id.to_str().unwrap_or_default(),
                        object: "response",
                        status: "failed",
                        error: Why { code: self.code, message: &self.message },
                        output: [],
                    },
                };
                let event = ResponsesEvent {
                    r#type: "error",
                    code: self.code,
                    message: &self.message,
                    param: self.param,
                    sequence_number: 0,
                    error: self.inner(self.openai_type()),
                };
                let data =
                    [&*bytes(&event), b"\n\nevent: response.failed\ndata: ", &bytes(&failed)];
                ("event: error\n", data.concat())
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
            // For what is called so Anthropic's coding agent asks again and again, whatever `x-should-retry` says, and tells no reason.
            503 if PASSES.contains(&self.code) => "overloaded_error",
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
            // Only operators are told this: over D-Bus, and by `/api/v1`.
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
                (None, Some(json!({ "fault": fault.code, "log_tail": fault.short_log() })), false)
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
            && let Some(last) = fault.last_words()
        {
            message += &format!("; its last words: {last}");
        }
        let mut error = Self::new(status, denied.code(), message);
        error.param = param;
        error.details = details.map(Box::new);
        error.hopeless = hopeless;
        error.retry_after = denied.retry_after();
        match &denied {
            Denied::NoRoom { .. } | Denied::StillLoading { .. } => {
                error.retry_after = error.retry_after.map(|after| after.min(PASSES_WITHIN));
            }
            // The pause of a breaker, which some libraries would sleep through before they show the reason.
            Denied::LoadFailed { retry_after, .. } => error.hopeless = *retry_after > PASSES_WITHIN,
            Denied::UnknownModel { .. }
            | Denied::NeverFits { .. }
            | Denied::QueueFull { .. }
            | Denied::Unmeasurable { .. }
            | Denied::Unloaded { .. }
            | Denied::Conflict { .. }
            | Denied::ShuttingDown => {}
        }
        error
    }
}

#[cfg(test)]
mod tests;
