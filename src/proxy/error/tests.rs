//! What each dialect is told, and with which status and headers.

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
        (Denied::NoRoom { model: model.clone(), why: "x".into(), report: None, retry_after: d }, 7),
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
fn the_line_that_says_why_is_told_however_much_follows_it() {
    let mut wrote = vec!["ValueError: needs 9 GiB".to_owned()];
    wrote.extend((0..49).map(|line| format!("  File \"x.py\", line {line}")));
    wrote.push("RuntimeError: Failed. See root cause above.".to_owned());
    let error = ApiError::from(Denied::LoadFailed {
        model: "m".parse().unwrap(),
        fault: Fault::new(FaultCode::EngineExited, "exit 1").with_log(wrote),
        retry_after: Duration::from_secs(5),
    });
    let body = body(&error);
    let message = body["error"]["message"].as_str().unwrap();
    assert!(message.ends_with("; its last words: ValueError: needs 9 GiB"), "{message}");
    assert_eq!(body["error"]["details"]["log_tail"].as_array().unwrap().len(), 20);
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
        assert_eq!(error.is_hopeless(), code < 500 && code != 429, "{code}");
        assert_eq!((error.openai_type(), error.anthropic_type()), (openai, anthropic), "{code}");
    }
    let late = ApiError::new(status(408), "x", "y");
    assert!(!late.is_hopeless());
}

/// Anthropic's coding agent takes `overloaded_error` for what passes, and asks for minutes; others sleep for as long as they are told.
#[test]
fn only_what_passes_says_so() {
    let model: ModelName = "m".parse().unwrap();
    let minutes = Duration::from_secs(290);
    let failed = |retry_after| {
        let fault = Fault::new(FaultCode::EngineExited, "exit 1");
        ApiError::from(Denied::LoadFailed { model: "m".parse().unwrap(), fault, retry_after })
    };
    let why = "x".to_owned();
    let no_room = ApiError::from(Denied::NoRoom { model, why, report: None, retry_after: minutes });
    assert_eq!(no_room.anthropic_type(), "overloaded_error");
    assert_eq!((no_room.retry_after_secs(), no_room.is_hopeless()), (Some(60), false));
    let pause = failed(minutes);
    assert_eq!(pause.anthropic_type(), "api_error");
    assert_eq!((pause.retry_after_secs(), pause.is_hopeless()), (Some(290), true));
    assert!(!failed(Duration::from_secs(5)).is_hopeless());
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
    let (error, failed) = responses.split_once("\n\n").unwrap();
    let failed = failed.strip_prefix("event: response.failed\ndata: ").unwrap();
    let failed: Value = serde_json::from_str(failed).unwrap();
    let why = json!({"code": "engine_failed", "message": "it \n broke"});
    assert_eq!(
        (&failed["type"], &failed["response"]["error"], &failed["response"]["output"]),
        (&json!("response.failed"), &why, &json!([]))
    );
    let error = format!("{error}\n\n");
    for event in [chat, anthropic, error] {
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
