//! WebSockets, for `/v1/realtime`.
//!
//! Purpose: pass the opening to the engine. Owner: the request's future; what is open then is the [`Tunnel`]'s. Invariant: what is passed
//! of the opening is from an allowlist.

use std::sync::Arc;

use hyper::header::{self, HeaderName, HeaderValue};
use hyper::http::request::Parts;
use hyper::upgrade::OnUpgrade;
use hyper::{HeaderMap, Request, Response, StatusCode};

use super::answer::Source;
use super::endpoints::Events;
use super::error::ApiError;
use super::forward::{self, Failure};
use super::grant::Grant;
use super::inference::Visitor;
use super::order;
use super::patience::Asking;
use super::protocols;
use super::record::{REQUEST_ID, Record};
use super::service::Service;
use super::trace::{TRACEPARENT, TRACESTATE};
use super::tunnel::Tunnel;
use super::upstream::{Conn, Lost};
use crate::types::{Denied, DoorSpec};

/// What the engine sees of the opening, beside what [`protocols`] lets pass.
const PASSED: [HeaderName; 7] = [
    header::SEC_WEBSOCKET_KEY,
    header::SEC_WEBSOCKET_VERSION,
    header::SEC_WEBSOCKET_EXTENSIONS,
    header::USER_AGENT,
    TRACEPARENT,
    TRACESTATE,
    HeaderName::from_static("openai-beta"),
];

/// What the client sees of the engine's consent.
const RETURNED: [HeaderName; 3] = [
    header::SEC_WEBSOCKET_ACCEPT,
    header::SEC_WEBSOCKET_PROTOCOL,
    header::SEC_WEBSOCKET_EXTENSIONS,
];

/// Opens a socket to a model's engine.
///
/// # Errors
/// Why there is none. What the engine says instead of consent comes back as any answer of its.
pub(super) async fn open(
    service: &Arc<Service>,
    mut head: Parts,
    model: String,
    visitor: &Visitor,
    record: &mut Record,
) -> Result<Response<Source>, ApiError> {
    record.is_for(&model, visitor.rules.resolve(&model));
    if let Some(error) = ApiError::impossible_model(&model) {
        return Err(error);
    }
    if protocols::are_private(&head.headers) {
        let message = "the WebSocket offers nothing but its key as a protocol, which is not sent back: offer \"realtime\", too, as in \
             new WebSocket(url, [\"realtime\", \"openai-insecure-api-key.KEY\"])";
        let mut error = ApiError::new(StatusCode::BAD_REQUEST, "invalid_value", message);
        error.param = Some("Sec-WebSocket-Protocol");
        return Err(error);
    }
    let client = head.extensions.remove::<OnUpgrade>().ok_or_else(|| {
        ApiError::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "internal",
            "the connection cannot be upgraded",
        )
    })?;
    record.queue_begins();
    let granted = grant(service, &model, visitor, &record.id()).await;
    record.queue_ends();
    let (grant, spec) = granted?;
    record.instance = grant.lease().map(|lease| lease.instance().clone());
    let engines = &service.engines;
    let stream = grant.connect(engines).await;
    let mut conn = Conn::new(stream.map_err(|failure| failure.to_api(&model))?);
    let name = spec.served_name.as_deref().unwrap_or(&model);
    let request = request(&head.headers, name, record.engines_id());
    let opening = order::written(&grant.dress(request), &[]);
    let asked = async {
        conn.send(&opening, &[]).await.map_err(Lost::Silent)?;
        conn.head().await
    };
    let consent = match tokio::time::timeout(engines.header_timeout, asked).await {
        Ok(Ok(head)) => head,
        Ok(Err(lost)) => return Err(Failure::from(lost).to_api(&model)),
        Err(_) => return Err(Failure::Timeout(engines.header_timeout).to_api(&model)),
    };
    if consent.status != StatusCode::SWITCHING_PROTOCOLS {
        let refusal = forward::admitted(consent).map_err(|failure| failure.to_api(&model))?;
        let answer = forward::answer(conn, refusal, grant, (Events::Other, &record.id()), engines);
        return Ok(answer.map(|relay| Source::Relay(Box::new(relay), None)));
    }
    let tunnel = Tunnel::new(client, conn, grant, service.clone());
    let mut accepted = Response::new(Source::Socket(Box::new(tunnel)));
    *accepted.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = accepted.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    for name in RETURNED {
        if let Some(value) = consent.headers.get(&name) {
            headers.insert(name, value.clone());
        }
    }
    if !headers.contains_key(header::SEC_WEBSOCKET_PROTOCOL)
        && let Some(protocol) = protocols::chosen(&head.headers)
    {
        headers.insert(header::SEC_WEBSOCKET_PROTOCOL, protocol);
    }
    Ok(accepted)
}

async fn grant(
    service: &Arc<Service>,
    model: &str,
    visitor: &Visitor,
    id: &HeaderValue,
) -> Result<(Grant, Arc<DoorSpec>), ApiError> {
    let rules = &visitor.rules;
    rules.resolve(model).ok_or_else(|| Denied::UnknownModel { model: model.to_owned() })?;
    let spec = super::inference::admit_model(visitor, model)?;
    let asking = Asking {
        gate: &service.gate,
        supervisor: &service.supervisor,
        healths: &service.healths,
        visitor,
        model,
        spec: &spec,
        id: id.to_str().ok(),
    };
    let grant = asking.grant(None, rules.max_wait).await?;
    Ok((grant, spec))
}

fn request(client: &HeaderMap, model: &str, id: HeaderValue) -> Request<()> {
    let mut request = Request::new(());
    let query: String = model
        .bytes()
        .map(|b| match b {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                char::from(b).to_string()
            }
            other => format!("%{other:02X}"),
        })
        .collect();
    // Letters, digits and escapes make a target; were it not so, the engine would refuse the bare path.
    *request.uri_mut() = hyper::Uri::try_from(format!("/v1/realtime?model={query}"))
        .unwrap_or_else(|_| hyper::Uri::from_static("/v1/realtime"));
    let headers = request.headers_mut();
    headers.insert(header::HOST, HeaderValue::from_static("localhost"));
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    for name in PASSED {
        if let Some(value) = client.get(&name) {
            headers.insert(name, value.clone());
        }
    }
    if let Some(protocols) = protocols::passed(client) {
        headers.insert(header::SEC_WEBSOCKET_PROTOCOL, protocols);
    }
    headers.insert(REQUEST_ID, id);
    request
}
