//! vLLM's routes for sleeping, and the canary.
//!
//! Purpose: one question, one answer, each bounded in time. Owner: the executor asks through the port. Invariants: an
//! answer other than 200 is an error; what an engine says of itself is passed on, not believed: vLLM answers 200 and
//! "sleeping" also where it gave no memory back.
//!
//! The routes exist with `VLLM_SERVER_DEV_MODE=1` alone. `/sleep` without a mode aborts what runs; nothing does: only idle
//! instances are put to sleep.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper::header::{self, HeaderValue};
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use crate::supervisor::ports::{CanaryError, Endpoint};
use crate::types::{ModelName, SleepLevel, one_line};

/// For `/sleep`: hundreds of gigabytes are copied to the host in this time. For a wake at level 1: it is faster.
const DEADLINE: Duration = Duration::from_secs(60);
/// A few tokens; the first request after a load may compile kernels.
const CANARY_DEADLINE: Duration = Duration::from_secs(30);
/// The most that an answer is read.
const BODY_MAX: usize = 64 << 10;
/// Shorter than a block of vLLM's prefix cache (16 tokens): no answer comes from the cache.
const PROMPT: &str = "1, 2, 3, 4,";
/// Enough for weights that are wrong to show, few enough to be quick.
const TOKENS: u32 = 8;

/// `POST /sleep`.
///
/// # Errors
/// What went wrong, for people.
pub(super) async fn sleep(endpoint: &Endpoint, level: SleepLevel) -> Result<(), String> {
    post(endpoint, &format!("/sleep?level={level}"), None, DEADLINE).await.map(drop)
}

/// `POST /wake_up`; from level 2 in vLLM's three steps: memory for the weights, the weights, memory for the cache.
///
/// # Errors
/// What went wrong, for people.
pub(super) async fn wake(
    endpoint: &Endpoint,
    level: SleepLevel,
    reload: Duration,
) -> Result<(), String> {
    match level {
        SleepLevel::One => post(endpoint, "/wake_up", None, DEADLINE).await.map(drop),
        SleepLevel::Two => {
            post(endpoint, "/wake_up?tags=weights", None, DEADLINE).await?;
            let body = json!({"method": "reload_weights"});
            post(endpoint, "/collective_rpc", Some(body), reload).await?;
            post(endpoint, "/wake_up?tags=kv_cache", None, DEADLINE).await.map(drop)
        }
    }
}

/// The likeliest continuation of a fixed text. Asks first whether the engine sleeps: it would leave the request hanging.
///
/// # Errors
/// When it sleeps, or does not answer as a completion is answered.
pub(super) async fn canary(endpoint: &Endpoint, model: &ModelName) -> Result<String, CanaryError> {
    let failed = CanaryError::Failed;
    let sleeping = sing(endpoint, Method::GET, "/is_sleeping", None).await?;
    match sleeping.get("is_sleeping").and_then(Value::as_bool) {
        Some(false) => {}
        Some(true) => return Err(CanaryError::Asleep),
        None => return Err(failed(format!("/is_sleeping answered {}", short(&sleeping)))),
    }
    let body = json!({
        "model": model, "prompt": PROMPT, "max_tokens": TOKENS, "temperature": 0, "stream": false,
    });
    let answer = sing(endpoint, Method::POST, "/v1/completions", Some(body)).await?;
    match answer.pointer("/choices/0/text").and_then(Value::as_str) {
        // An empty text would be equal to that of an engine which has lost everything.
        Some(text) if !text.is_empty() => Ok(text.to_owned()),
        Some(_) | None => Err(failed(format!("/v1/completions answered {}", short(&answer)))),
    }
}

/// One question of the canary's. An engine that cannot answer is told from one that does not want to.
async fn sing(
    endpoint: &Endpoint,
    method: Method,
    path: &str,
    body: Option<Value>,
) -> Result<Value, CanaryError> {
    let bounds = (CANARY_DEADLINE, BODY_MAX);
    let (status, body) =
        converse(endpoint, method, path, body, bounds).await.map_err(CanaryError::Silent)?;
    match status {
        200 => Ok(serde_json::from_slice(&body).unwrap_or_default()),
        500.. => Err(CanaryError::Silent(refused(path, status, &body))),
        _ => Err(CanaryError::Failed(refused(path, status, &body))),
    }
}

async fn post(
    endpoint: &Endpoint,
    path: &str,
    body: Option<Value>,
    deadline: Duration,
) -> Result<Value, String> {
    exchange(endpoint, Method::POST, path, body, deadline).await
}

/// One request, which must be answered 200; `Null` for a body that is not JSON.
async fn exchange(
    endpoint: &Endpoint,
    method: Method,
    path: &str,
    body: Option<Value>,
    deadline: Duration,
) -> Result<Value, String> {
    let (status, body) = converse(endpoint, method, path, body, (deadline, BODY_MAX)).await?;
    if status != 200 {
        return Err(refused(path, status, &body));
    }
    Ok(serde_json::from_slice(&body).unwrap_or_default())
}

fn refused(path: &str, status: u16, body: &[u8]) -> String {
    // It goes into log lines and onto terminals, and an engine is not trusted with either.
    let text = one_line(String::from_utf8_lossy(&body[..body.len().min(200)]));
    format!("{path}: answered {status}: {text}")
}

/// One request on a connection of its own: status and body of the answer, at most so late and so long.
///
/// # Errors
/// What went wrong, for people.
pub(super) async fn converse(
    endpoint: &Endpoint,
    method: Method,
    path: &str,
    body: Option<Value>,
    (deadline, body_max): (Duration, usize),
) -> Result<(u16, Bytes), String> {
    let asked = async {
        let connect = |error: std::io::Error| format!("{path}: cannot connect: {error}");
        let mut request = request(method, path, body)?;
        if let Some(key) = endpoint.key() {
            let bearer = HeaderValue::try_from(format!("Bearer {}", key.0));
            let bearer = bearer.map_err(|_| "its key is no header".to_owned())?;
            request.headers_mut().insert(header::AUTHORIZATION, bearer);
        }
        match endpoint {
            Endpoint::Unix(socket) => {
                let stream = Endpoint::connect_unix(socket).await.map_err(connect)?;
                ask(stream, request, body_max).await
            }
            Endpoint::Tcp(address, _) => {
                let stream = TcpStream::connect(address).await.map_err(connect)?;
                ask(stream, request, body_max).await
            }
        }
        .map_err(|why| format!("{path}: {why}"))
    };
    let late = |_| Err(format!("{path}: no answer within {} s", deadline.as_secs()));
    tokio::time::timeout(deadline, asked).await.unwrap_or_else(late)
}

fn request(
    method: Method,
    path: &str,
    body: Option<Value>,
) -> Result<Request<Full<Bytes>>, String> {
    let body = body.map(|b| b.to_string()).unwrap_or_default();
    let mut request = Request::new(Full::new(Bytes::from(body)));
    *request.method_mut() = method;
    *request.uri_mut() = path.parse().map_err(|err| format!("{path}: {err}"))?;
    let headers = request.headers_mut();
    headers.insert(header::HOST, HeaderValue::from_static("localhost"));
    headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(request)
}

async fn ask<S>(
    stream: S,
    request: Request<Full<Bytes>>,
    body_max: usize,
) -> Result<(u16, Bytes), String>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|err| err.to_string())?;
    let asked = async {
        let response = sender.send_request(request).await.map_err(|err| err.to_string())?;
        let status = response.status();
        let body = Limited::new(response.into_body(), body_max).collect().await;
        Ok((status.as_u16(), body.map_err(|err| err.to_string())?.to_bytes()))
    };
    tokio::pin!(asked);
    tokio::pin!(connection);
    // The connection is driven here, so that the deadline ends both.
    tokio::select! {
        answer = &mut asked => answer,
        _ = &mut connection => asked.await,
    }
}

fn short(value: &Value) -> String {
    value.to_string().chars().take(200).collect()
}

#[cfg(test)]
mod tests;
