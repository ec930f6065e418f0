//! The inference routes: chat, completions, embeddings.
//!
//! A body is read as JSON, checked as the real engine checks it, admitted, and answered whole or as a
//! stream. Dropping the answer's future or body is how an abort is felt.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use hyper::Response;
use hyper::header::{self, HeaderValue};
use serde_json::{Value, json};

use crate::chaos::{self, Chaos};
use crate::knobs::{Flavor, Knobs, Text};
use crate::routes::{bytes, failure, json as reply, refused};
use crate::server::Wire;
use crate::sse::{self, Body, Form, Generation, Step};
use crate::state::{Engine, Flight, Phase, pause};
use crate::text::{self, Limits, count_tokens, mix};

const DIMENSIONS: u64 = 384;

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs())
}

/// A request that the engine refuses: status and message.
#[derive(Debug, PartialEq, Eq)]
struct Refusal(u16, String);

fn bad(message: impl Into<String>) -> Refusal {
    Refusal(400, message.into())
}

/// What was asked.
#[derive(Debug)]
struct Ask {
    chat: bool,
    model: String,
    prompt: String,
    limits: Limits,
    stream: bool,
    include_usage: bool,
}

pub(crate) async fn answer(
    engine: &Arc<Engine>,
    wire: &Arc<Wire>,
    path: &str,
    body: &Bytes,
    number: u64,
) -> Response<Body> {
    engine.count_inference().await;
    let knobs = engine.knobs();
    for fault in &knobs.chaos {
        match fault {
            Chaos::SlowHeader(delay) => pause(*delay).await,
            Chaos::Status(status) => {
                return refused(engine, failure(knobs.flavor, *status, "chaos"));
            }
            Chaos::Drop(_)
            | Chaos::Stall(_)
            | Chaos::HalfEvent(_)
            | Chaos::ErrorEvent(_)
            | Chaos::NoDone
            | Chaos::Gzip
            | Chaos::BigEvent(_)
            | Chaos::CloseAfterStream
            | Chaos::Garbage => {}
        }
    }
    let answered = match path {
        "/v1/embeddings" => embed(engine, &knobs, body, number).await,
        _ => generate(engine, wire, &knobs, path == "/v1/chat/completions", body, number).await,
    };
    answered.unwrap_or_else(|Refusal(status, message)| {
        refused(engine, failure(knobs.flavor, status, &message))
    })
}

fn object(body: &[u8]) -> Result<Value, Refusal> {
    let value: Value =
        serde_json::from_slice(body).map_err(|e| bad(format!("JSON decode error: {e}")))?;
    if value.is_object() { Ok(value) } else { Err(bad("the body must be a JSON object")) }
}

/// The name to answer with; vLLM refuses names it does not serve.
fn model(knobs: &Knobs, ask: &Value) -> Result<String, Refusal> {
    let asked = ask.get("model").and_then(Value::as_str);
    match (knobs.flavor, asked) {
        (Flavor::Vllm, Some(name)) if !knobs.models.iter().any(|known| known == name) => {
            Err(Refusal(404, format!("The model `{name}` does not exist.")))
        }
        (_, name) => Ok(name.unwrap_or(knobs.model()).to_owned()),
    }
}

fn content(message: &Value) -> String {
    match &message["content"] {
        Value::String(text) => text.clone(),
        Value::Array(parts) => parts.iter().filter_map(|part| part["text"].as_str()).collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) => String::new(),
    }
}

fn whole_number(ask: &Value, key: &str) -> Result<Option<usize>, Refusal> {
    let value = &ask[key];
    if value.is_null() {
        return Ok(None);
    }
    let number = value.as_u64().and_then(|n| usize::try_from(n).ok());
    let wrong = || bad(format!("{key}: Input should be a valid integer of at least 0"));
    number.map(Some).ok_or_else(wrong)
}

fn parse(engine: &Engine, knobs: &Knobs, chat: bool, body: &[u8]) -> Result<(Ask, usize), Refusal> {
    let ask = object(body)?;
    let model = model(knobs, &ask)?;
    let (whole, last) = if chat {
        let messages = ask["messages"].as_array().ok_or_else(|| bad("messages: Field required"))?;
        if messages.is_empty() && knobs.flavor == Flavor::Vllm {
            return Err(bad("messages: at least one is required"));
        }
        let texts: Vec<String> = messages.iter().map(content).collect();
        (texts.join(" "), texts.last().cloned().unwrap_or_default())
    } else {
        let prompt = match &ask["prompt"] {
            Value::String(text) => text.clone(),
            Value::Array(list) => list.first().and_then(Value::as_str).unwrap_or("").to_owned(),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) => {
                return Err(bad("prompt: Field required"));
            }
        };
        (prompt.clone(), prompt)
    };
    let prompt_tokens = count_tokens(&whole);
    let window = engine.config.max_model_len;
    let room = window.saturating_sub(prompt_tokens);
    let asked = whole_number(&ask, "max_completion_tokens")?;
    let asked = asked.or(whole_number(&ask, "max_tokens")?);
    if knobs.flavor == Flavor::Vllm && (room == 0 || asked.is_some_and(|most| most > room)) {
        return Err(bad(format!(
            "This model's maximum context length is {window} tokens. However, you requested {} \
             tokens ({prompt_tokens} in the messages, {} in the completion).",
            prompt_tokens + asked.unwrap_or(1),
            asked.unwrap_or(1)
        )));
    }
    let default = if chat || knobs.flavor == Flavor::LlamaCpp { room } else { 16 };
    if ask["n"].as_u64().is_some_and(|n| n != 1) {
        return Err(bad("n: this engine answers once"));
    }
    let stop = match &ask["stop"] {
        Value::String(text) => vec![text.clone()],
        Value::Array(list) => list.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) => Vec::new(),
    };
    let limits = Limits {
        max_tokens: asked.unwrap_or(default).min(room),
        stop,
        ignore_eos: ask["ignore_eos"] == true,
    };
    // A chat prompt ends in the template's marker, so the counting model starts at 1.
    let prompt = if chat && knobs.text == Text::Count { String::new() } else { last };
    let stream = ask["stream"] == true;
    let include_usage = ask["stream_options"]["include_usage"] == true;
    Ok((Ask { chat, model, prompt, limits, stream, include_usage }, prompt_tokens))
}

async fn admit(engine: &Arc<Engine>, flavor: Flavor, number: u64) -> Result<Flight, Refusal> {
    if engine.phase() == Phase::CoreDead {
        return Err(Refusal(500, sse::CORE_DEAD.into()));
    }
    Flight::admit(engine, number).await.map_err(|_| {
        Refusal(
            503,
            match flavor {
                Flavor::Vllm => "The server is overloaded: too many queued requests.".into(),
                Flavor::LlamaCpp => "no slot available".into(),
            },
        )
    })
}

async fn generate(
    engine: &Arc<Engine>,
    wire: &Arc<Wire>,
    knobs: &Knobs,
    chat: bool,
    body: &Bytes,
    number: u64,
) -> Result<Response<Body>, Refusal> {
    let (ask, prompt_tokens) = parse(engine, knobs, chat, body)?;
    let flight = admit(engine, knobs.flavor, number).await?;
    let gibberish = engine.control.borrow().gibberish;
    let script = text::script(&knobs.text, &ask.prompt, &ask.limits, gibberish);
    let generation = Generation::new(flight, script, prompt_tokens);
    let prefix = if ask.chat { "chatcmpl" } else { "cmpl" };
    let form = Form {
        chat: ask.chat,
        id: format!("{prefix}-fake-{number}"),
        model: ask.model,
        created: now(),
        include_usage: ask.include_usage,
    };
    if chaos::has(&knobs.chaos, Chaos::Garbage) {
        return Ok(garbage(generation, ask.stream));
    }
    if !ask.stream {
        return whole(generation, &form, wire).await;
    }
    let mut response = bytes(200, "text/event-stream", "");
    if knobs.flavor == Flavor::Vllm {
        let kind = HeaderValue::from_static("text/event-stream; charset=utf-8");
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
    }
    if chaos::has(&knobs.chaos, Chaos::Gzip) {
        response.headers_mut().insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    *response.body_mut() = sse::body(generation, form, Arc::clone(wire));
    Ok(response)
}

fn garbage(mut generation: Generation, stream: bool) -> Response<Body> {
    generation.flight.finish();
    if stream {
        bytes(200, "text/event-stream", &b"data: {\"choices\":[{\xff\xfe<html>\n\nnonsense\n\n"[..])
    } else {
        bytes(200, "application/json", &b"{\"choices\":[{\xff\xfe<html>"[..])
    }
}

async fn whole(
    mut generation: Generation,
    form: &Form,
    wire: &Arc<Wire>,
) -> Result<Response<Body>, Refusal> {
    let knobs = Arc::clone(&generation.knobs);
    let mut said = String::new();
    let finish = loop {
        match chaos::at_token(&knobs.chaos, generation.flight.tokens) {
            Some(Chaos::Stall(_)) => std::future::pending().await,
            Some(Chaos::ErrorEvent(_)) => {
                generation.flight.finish();
                return Err(Refusal(500, sse::CORE_DEAD.into()));
            }
            Some(Chaos::Drop(_) | Chaos::HalfEvent(_)) => {
                generation.flight.finish();
                let mut response = bytes(200, "application/json", "");
                *response.body_mut() = sse::broken(wire, b"{\"id\":\"ch");
                return Ok(response);
            }
            _ => {}
        }
        match generation.step().await {
            Step::Piece(piece) => said.push_str(&piece),
            Step::Finish(finish) => break finish,
            Step::EngineEnds => {
                generation.flight.finish();
                return Err(Refusal(500, sse::CORE_DEAD.into()));
            }
        }
    };
    generation.flight.finish();
    let (object, choice) = if form.chat {
        let message = json!({"role": "assistant", "content": said});
        ("chat.completion", json!({"index": 0, "message": message, "logprobs": null}))
    } else {
        ("text_completion", json!({"index": 0, "text": said, "logprobs": null}))
    };
    let mut answer = form.envelope(object, json!([choice]));
    answer["choices"][0]["finish_reason"] = json!(finish.as_str());
    answer["usage"] = generation.usage();
    if knobs.flavor == Flavor::LlamaCpp {
        answer["timings"] = generation.timings();
    }
    Ok(packed(&knobs, &answer))
}

fn packed(knobs: &Knobs, answer: &Value) -> Response<Body> {
    if !chaos::has(&knobs.chaos, Chaos::Gzip) {
        return reply(200, answer);
    }
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    // Writing to a vector cannot fail.
    let _written = std::io::Write::write_all(&mut gzip, answer.to_string().as_bytes());
    let mut response = bytes(200, "application/json", gzip.finish().unwrap_or_default());
    response.headers_mut().insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    response
}

async fn embed(
    engine: &Arc<Engine>,
    knobs: &Knobs,
    body: &Bytes,
    number: u64,
) -> Result<Response<Body>, Refusal> {
    let ask = object(body)?;
    let model = model(knobs, &ask)?;
    let inputs: Vec<String> = match &ask["input"] {
        Value::String(text) => vec![text.clone()],
        Value::Array(list) => list
            .iter()
            .map(|input| input.as_str().map_or_else(|| input.to_string(), str::to_owned))
            .collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) => {
            return Err(bad("input: Field required"));
        }
    };
    let base64 = ask["encoding_format"] == "base64";
    let mut flight = admit(engine, knobs.flavor, number).await?;
    // Embeddings take the time of one token each.
    let each = Duration::from_secs_f64(1.0 / knobs.rate);
    pause(knobs.ttft + each * u32::try_from(inputs.len()).unwrap_or(u32::MAX)).await;
    let data: Vec<Value> = inputs
        .iter()
        .enumerate()
        .map(|(index, text)| {
            let vector = vector(text);
            let embedding = if base64 { json!(encode(&vector)) } else { json!(vector) };
            json!({"object": "embedding", "index": index, "embedding": embedding})
        })
        .collect();
    let tokens: usize = inputs.iter().map(|text| count_tokens(text)).sum();
    flight.finish();
    Ok(packed(
        knobs,
        &json!({
            "object": "list",
            "data": data,
            "model": model,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }),
    ))
}

/// A unit vector that depends on the text alone.
fn vector(text: &str) -> Vec<f32> {
    let seed = text.bytes().fold(0, |hash, byte| mix(hash ^ u64::from(byte)));
    #[expect(clippy::cast_precision_loss, reason = "thousandths")]
    let raw: Vec<f32> =
        (0..DIMENSIONS).map(|i| (mix(seed ^ i) % 2001) as f32 / 1000.0 - 1.0).collect();
    let norm = raw.iter().map(|x| x * x).sum::<f32>().sqrt().max(f32::MIN_POSITIVE);
    raw.into_iter().map(|x| x / norm).collect()
}

/// Little-endian floats in base64, as clients ask for by default.
fn encode(vector: &[f32]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let bytes: Vec<u8> = vector.iter().flat_map(|x| x.to_le_bytes()).collect();
    let mut text = String::new();
    for group in bytes.chunks(3) {
        let at = |i: usize| u32::from(group.get(i).copied().unwrap_or(0));
        let bits = at(0) << 16 | at(1) << 8 | at(2);
        for digit in 0..4 {
            if digit <= group.len() {
                text.push(char::from(DIGITS[(bits >> (18 - 6 * digit) & 63) as usize]));
            } else {
                text.push('=');
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_of_floats() {
        assert_eq!(encode(&[1.0]), "AACAPw==");
        assert_eq!(encode(&[1.0, -2.5, 0.5]), "AACAPwAAIMAAAAA/");
    }

    #[test]
    fn vectors_are_of_length_one_and_tell_texts_apart() {
        let (a, b) = (vector("a"), vector("b"));
        assert!((a.iter().map(|x| x * x).sum::<f32>() - 1.0).abs() < 1e-4);
        assert!(a != b && a == vector("a"));
    }
}
