//! A request's spans.
//!
//! Purpose: what the journal's line of a request says, under OpenTelemetry's names where it has some (HTTP and GenAI conventions), else
//! under `hostler.`. Owner: [`super::Traces`]. PURE. Invariant: as for every span, no prompt, no answer, no key.

use super::span::Span;
use crate::proxy::port::{Seen, Side, Traced};

/// What an engine is asked to do, by the words of the front door's list; other paths ask none.
fn operation(route: &str) -> Option<&str> {
    match route {
        "chat_completions" | "messages" | "responses" => Some("chat"),
        "completions" => Some("text_completion"),
        "embeddings" | "rerank" | "score" | "transcriptions" | "translations" | "speech"
        | "images" | "count_tokens" | "tokenize" | "detokenize" => Some(route),
        _ => None,
    }
}

/// The request itself.
pub(super) fn request(seen: &Seen<'_>, traced: &Traced<'_>) -> Span {
    let operation = operation(seen.route);
    // Such paths are exactly those of the list, so they are few; others have names in them.
    let route = operation.map(|_| traced.path);
    let method = traced.method.as_str();
    let name = match (route, seen.route) {
        (Some(route), _) => format!("{method} {route}"),
        (None, "-") => method.to_owned(),
        (None, word) => format!("{method} {word}"),
    };
    let mut span = Span::of(&traced.trace, name, traced.began);
    span.took(seen.total);
    span.text("http.request.method", method);
    span.text("url.scheme", "http");
    span.text("url.path", traced.path);
    span.text("hostler.request_id", traced.id);
    span.text("hostler.endpoint", seen.route);
    let instance = seen.instance.map(ToString::to_string);
    let texts = [
        ("http.route", route),
        ("gen_ai.operation.name", operation),
        ("gen_ai.request.model", traced.asked),
        ("hostler.model", seen.model.map(|model| model.as_str())),
        ("hostler.instance", instance.as_deref()),
        ("hostler.aborted_by", seen.broken_by.map(Side::as_str)),
    ];
    for (key, value) in texts {
        if let Some(value) = value {
            span.text(key, value);
        }
    }
    if let Some(status) = seen.status {
        span.number("http.response.status_code", status.into());
    }
    span.number("http.response.body.size", seen.bytes);
    if let Some(first) = seen.first_byte {
        span.event("first_byte", traced.began + first);
    }
    let status = seen.status.filter(|status| *status >= 400).map(|status| status.to_string());
    let why = seen.refused.or(status.as_deref());
    let server = seen.status.is_some_and(|status| status >= 500)
        || matches!(seen.broken_by, Some(Side::Engine | Side::Host));
    match why {
        _ if server => span.failed(why.unwrap_or("broken_off")),
        // Of a mistake of the client's the server's span is none.
        Some(why) => span.text("error.type", why),
        None => {}
    }
    span
}

/// Its wait for a turn and an engine, the load included; `None`: it did not get so far.
pub(super) fn wait(seen: &Seen<'_>, traced: &Traced<'_>) -> Option<Span> {
    let (queued, wait) = (traced.queued?, seen.queue?);
    let mut span = Span::below(&traced.trace, "wait".to_owned(), traced.began + queued);
    span.took(wait);
    if let Some(model) = seen.model {
        span.text("hostler.model", model.as_str());
    }
    Some(span)
}
