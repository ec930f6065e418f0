//! The other routes of real engines, with fixed answers: enough for a client to parse, and to see who asked for what.
//!
//! Each echoes the model that it was asked for. Streams come as events of their own chunks.

use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use hyper::header::{self, HeaderValue};
use hyper::{Method, Response};
use serde_json::{Value, json};

use crate::infer::now;
use crate::routes::{bytes, json as reply};
use crate::sse::Body;
use crate::state::pause;

/// The words of a streamed answer.
const WORDS: [&str; 3] = ["one", " two", " three"];

/// Whether a path is one of these routes.
pub(crate) fn is_one(path: &str) -> bool {
    const PATHS: [&str; 10] = [
        "/v1/responses",
        "/v1/messages",
        "/v1/audio/",
        "/v1/images/generations",
        "/rerank",
        "/v1/rerank",
        "/v2/rerank",
        "/score",
        "/v1/score",
        "/tokenize",
    ];
    path == "/detokenize" || PATHS.iter().any(|known| path.starts_with(known))
}

/// Answers one of these routes; `None`: it is none of them.
pub(crate) fn answer(method: &Method, path: &str, body: &Bytes) -> Option<Response<Body>> {
    if method == Method::GET {
        let id = path.strip_prefix("/v1/responses/")?;
        return Some(reply(200, &response(id, "recalled")));
    }
    let ask: Value = serde_json::from_slice(body).unwrap_or_default();
    let model = ask["model"].as_str().unwrap_or("unnamed");
    let streams = ask["stream"] == true;
    Some(match path {
        "/v1/responses" if streams => events(response_events(model)),
        "/v1/responses" => reply(200, &response("resp_fake-1", model)),
        "/v1/messages" if streams => events(message_events(model)),
        "/v1/messages" => reply(
            200,
            &message(model, "end_turn", json!([{"type": "text", "text": WORDS.concat()}])),
        ),
        "/v1/messages/count_tokens" => reply(200, &json!({"input_tokens": 7})),
        "/v1/audio/transcriptions" | "/v1/audio/translations" => {
            reply(200, &json!({"text": format!("{} bytes were heard", body.len())}))
        }
        "/v1/audio/speech" => bytes(200, "audio/mpeg", &b"ID3\x00\xff\xfbspoken"[..]),
        "/v1/images/generations" => {
            reply(200, &json!({"created": now(), "data": [{"b64_json": "aW1hZ2U="}]}))
        }
        "/rerank" | "/v1/rerank" | "/v2/rerank" => {
            let results = [
                json!({"index": 1, "relevance_score": 0.9}),
                json!({"index": 0, "relevance_score": 0.1}),
            ];
            reply(200, &json!({"model": model, "results": results}))
        }
        "/score" | "/v1/score" => reply(
            200,
            &json!({"object": "list", "model": model, "data": [{"index": 0, "score": 0.5}]}),
        ),
        "/tokenize" => reply(200, &json!({"tokens": [1, 2, 3], "count": 3})),
        "/detokenize" => reply(200, &json!({"prompt": WORDS.concat()})),
        _ => {
            let id = path.strip_prefix("/v1/responses/")?.strip_suffix("/cancel")?;
            reply(200, &response(id, "cancelled"))
        }
    })
}

fn response(id: &str, model: &str) -> Value {
    let content = json!([{"type": "output_text", "text": WORDS.concat(), "annotations": []}]);
    json!({
        "id": id, "object": "response", "created_at": now(), "status": "completed", "model": model, "error": null,
        "incomplete_details": null, "instructions": null, "metadata": {}, "parallel_tool_calls": true,
        "temperature": 1.0, "top_p": 1.0, "tool_choice": "auto", "tools": [],
        "output": [{"id": "msg_1", "type": "message", "role": "assistant", "status": "completed", "content": content}],
        "usage": {
            "input_tokens": 1, "output_tokens": 3, "total_tokens": 4,
            "input_tokens_details": {"cached_tokens": 0}, "output_tokens_details": {"reasoning_tokens": 0},
        },
    })
}

fn response_events(model: &str) -> Vec<(&'static str, Value)> {
    let whole = response("resp_fake-2", model);
    let mut events =
        vec![("response.created", json!({"type": "response.created", "response": whole}))];
    events.extend(WORDS.iter().map(|word| {
        let delta = json!({
            "type": "response.output_text.delta", "item_id": "msg_1", "output_index": 0, "content_index": 0,
            "delta": word, "logprobs": [],
        });
        ("response.output_text.delta", delta)
    }));
    events.push(("response.completed", json!({"type": "response.completed", "response": whole})));
    for (number, (_, event)) in events.iter_mut().enumerate() {
        event["sequence_number"] = json!(number);
    }
    events
}

fn message(model: &str, reason: &str, content: Value) -> Value {
    let reason = Some(reason).filter(|r| !r.is_empty());
    json!({
        "id": "msg_fake", "type": "message", "role": "assistant", "model": model, "content": content,
        "stop_reason": reason, "stop_sequence": null, "usage": {"input_tokens": 1, "output_tokens": 3},
    })
}

fn message_events(model: &str) -> Vec<(&'static str, Value)> {
    let start = json!({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}});
    let mut events = vec![
        (
            "message_start",
            json!({"type": "message_start", "message": message(model, "", json!([]))}),
        ),
        ("content_block_start", start),
    ];
    events.extend(WORDS.iter().map(|word| {
        let delta = json!({"type": "text_delta", "text": word});
        ("content_block_delta", json!({"type": "content_block_delta", "index": 0, "delta": delta}))
    }));
    events.push(("content_block_stop", json!({"type": "content_block_stop", "index": 0})));
    let delta = json!({"stop_reason": "end_turn", "stop_sequence": null});
    events.push((
        "message_delta",
        json!({"type": "message_delta", "delta": delta, "usage": {"output_tokens": 3}}),
    ));
    events.push(("message_stop", json!({"type": "message_stop"})));
    events
}

fn events(events: Vec<(&'static str, Value)>) -> Response<Body> {
    let frames = futures_util::stream::iter(events).then(|(name, data)| async move {
        pause(Duration::from_millis(1)).await;
        Ok(Frame::data(Bytes::from(format!("event: {name}\ndata: {data}\n\n"))))
    });
    let mut response = Response::new(StreamBody::new(frames).boxed_unsync());
    let kind = HeaderValue::from_static("text/event-stream");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}
