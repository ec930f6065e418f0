//! Refusals in the shape of OpenAI's errors.
//!
//! Purpose: every answer that is not a success is one [`ApiError`], so shape and headers are decided in one place.
//! Owner: `respond` turns it into bytes. Invariant: [`Denied`] is mapped to HTTP here and nowhere else.

use std::time::Duration;

use hyper::StatusCode;
use serde::Serialize;
use serde_json::{Value, json};

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

    /// The value of `Retry-After` in seconds: rounded up, so that nobody comes too early, and never 0, which some
    /// clients take for "at once".
    pub fn retry_after_secs(&self) -> Option<u64> {
        self.retry_after.map(|d| d.as_secs().saturating_add(u64::from(d.subsec_nanos() > 0)).max(1))
    }

    /// The body: `{"error":{…}}`.
    pub fn json(&self) -> Vec<u8> {
        let shape = Shape {
            error: Inner {
                message: &self.message,
                r#type: if self.status.is_client_error() {
                    "invalid_request_error"
                } else {
                    "server_error"
                },
                param: self.param,
                code: self.code,
                details: self.details.as_deref(),
            },
        };
        // Strings and JSON values cannot fail to serialise.
        serde_json::to_vec(&shape).unwrap_or_default()
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
            Denied::NeverFits { need, largest, report, .. } => {
                let details = json!({ "need": need, "largest": largest, "plan": report });
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
        let mut error = Self::new(status, denied.code(), denied.to_string());
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

    fn body(error: &ApiError) -> Value {
        serde_json::from_slice(&error.json()).unwrap()
    }

    #[test]
    fn every_refusal_has_its_status_and_headers() {
        let model: ModelName = "m".parse().unwrap();
        let d = Duration::from_millis(6001);
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
            (
                Denied::QueueFull {
                    model: model.clone(),
                    queued: 9,
                    retry_after: Duration::from_secs(3),
                },
                3,
            ),
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
        assert_eq!(body["error"]["details"]["fault"], "engine_exited");
        assert_eq!(body["error"]["details"]["log_tail"][0], "no memory");
    }

    #[test]
    fn an_absurd_name_is_cut() {
        assert_eq!(ApiError::impossible_model("m"), None);
        let error = ApiError::impossible_model(&"é".repeat(100_000)).unwrap();
        assert_eq!(error.status, 404);
        assert!(error.message.len() < 300, "{}", error.message.len());
    }
}
