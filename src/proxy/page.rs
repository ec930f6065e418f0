//! What is asked about the host, and who may ask.
//!
//! Purpose: between a route and the [`super::port::Console`]. Owner: `service`. Invariants: where keys are asked for, the host is shown
//! only to holders of a key for all models, and changed only by an administrator's; nobody changes anything without a key, so no page
//! of another site can; what ends with the drain does not hold it up; a stream ends when whoever sees it may not any more.

use std::sync::Arc;

use futures_util::StreamExt;
use hyper::header::{self, HeaderValue};
use hyper::{HeaderMap, Response, StatusCode};

use super::answer::Source;
use super::error::ApiError;
use super::inference::Visitor;
use super::keys::Key;
use super::port::{Asker, Content, Page};
use super::record::Record;
use super::route::Route;
use super::rules::{Rules, SharedRules};
use super::service::Service;
use super::stream::Peer;

/// What is served where there is nothing but metrics.
///
/// # Errors
/// 404 for all else.
pub(super) fn is_monitoring(route: &Route) -> Result<(), ApiError> {
    if matches!(route, Route::Health | Route::Page(Page::Metrics | Page::EngineMetrics(_))) {
        return Ok(());
    }
    let message =
        "this address has /metrics, /metrics/models/NAME and /health alone ([metrics] listen)";
    Err(ApiError::new(StatusCode::NOT_FOUND, "unknown_path", message))
}

/// Whether a page is shown to those who have no key.
pub(super) fn is_open(page: &Page, peer: Peer, headers: &HeaderMap) -> bool {
    // A proxy on this host speaks for others.
    let forwarded = [header::FORWARDED.as_str(), "x-forwarded-for", "x-real-ip", "via"];
    let local = matches!(peer, Peer::Unix | Peer::Loopback)
        && !forwarded.iter().any(|name| headers.contains_key(*name));
    match page {
        // It holds nothing of the host.
        Page::Ui | Page::OpenApi => true,
        Page::Metrics | Page::EngineMetrics(_) => local || peer == Peer::Monitoring,
        // The socket's file says who may.
        Page::DebugState | Page::DebugPlan(_) => peer == Peer::Unix,
        Page::Models
        | Page::Externals
        | Page::Gpus
        | Page::Jobs
        | Page::Events
        | Page::Log(_)
        | Page::Act(..) => false,
    }
}

/// Whether a visitor may see the page.
///
/// # Errors
/// 403 for who may not, 404 for a page that is not there.
pub(super) fn may(page: &Page, peer: Peer, visitor: &Visitor) -> Result<(), ApiError> {
    match page {
        Page::DebugState | Page::DebugPlan(_) if peer != Peer::Unix => Err(ApiError::new(
            StatusCode::NOT_FOUND,
            "unknown_path",
            "pages for debugging are on the Unix socket alone: curl --unix-socket /run/hostler/http.sock",
        )),
        // An engine's log may hold what its clients asked; on the bus it needs a right of its own, too.
        Page::Act(..) | Page::Log(_) if !visitor.key().is_some_and(|key| key.admin) => {
            Err(ApiError::new(
                StatusCode::FORBIDDEN,
                "admin_key_required",
                "only a key with admin = true in the file of keys ([auth] keys_file) changes anything or reads logs here; on the \
             host, the command hostler does",
            ))
        }
        Page::Ui | Page::OpenApi => Ok(()),
        Page::Metrics | Page::EngineMetrics(_) if visitor.key().is_none() => Ok(()),
        Page::Metrics
        | Page::EngineMetrics(_)
        | Page::Models
        | Page::Externals
        | Page::Gpus
        | Page::Jobs
        | Page::Events
        | Page::Log(_)
        | Page::Act(..)
        | Page::DebugState
        | Page::DebugPlan(_) => sees_all(visitor),
    }
}

/// Whether a visitor may know all about the host.
///
/// # Errors
/// 403 for a key that is good for some models only.
pub(super) fn sees_all(visitor: &Visitor) -> Result<(), ApiError> {
    if visitor.key().is_none_or(|key| key.models.is_empty()) {
        return Ok(());
    }
    Err(ApiError::new(
        StatusCode::FORBIDDEN,
        "key_limited",
        "this key is for some models only; the state of the host is shown to keys without a list of models",
    ))
}

/// The console's answer.
///
/// # Errors
/// As the console refuses.
pub(super) async fn answer(
    service: &Arc<Service>,
    page: Page,
    (visitor, peer): (&Visitor, Peer),
    headers: &HeaderMap,
    record: &mut Record,
) -> Result<Response<Source>, ApiError> {
    record.routine = matches!(page, Page::Metrics | Page::EngineMetrics(_));
    if let Page::EngineMetrics(name)
    | Page::Log(name)
    | Page::Act(name, _)
    | Page::DebugPlan(name) = &page
    {
        record.is_about(name);
    }
    let openmetrics = headers
        .get_all(header::ACCEPT)
        .iter()
        .any(|value| value.to_str().is_ok_and(|v| v.contains("application/openmetrics-text")));
    let asker = Asker {
        key: visitor.name().map(str::to_owned),
        admin: visitor.key().is_some_and(|key| key.admin),
        keys: !visitor.rules.keys.is_empty(),
        openmetrics,
    };
    let answered = service.console.answer(page.clone(), asker).await;
    let mut response = answered.map_err(|refusal| {
        let status = StatusCode::from_u16(refusal.status);
        let status = status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        ApiError::new(status, refusal.code, refusal.message)
    })?;
    let nosniff = HeaderValue::from_static("nosniff");
    response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, nosniff);
    Ok(response.map(|content| match content {
        Content::Whole(bytes) => Source::Whole(Some(bytes)),
        Content::Stream(stream) => {
            let ending = service.ending.clone().cancelled_owned();
            let barred = barred(service.rules.clone(), page, peer, visitor.key().cloned());
            let over = async move {
                tokio::select! {
                    () = ending => {}
                    () = barred => {}
                }
            };
            Source::Page(Box::pin(stream.take_until(over)))
        }
    }))
}

/// Waits until the rules in force do not show the page any more to who holds that key.
async fn barred(rules: SharedRules, page: Page, peer: Peer, key: Option<Key>) {
    let mut replaced = rules.replaced();
    while still_may(&rules.load_full(), &page, peer, key.as_ref()) {
        if replaced.changed().await.is_err() {
            return;
        }
    }
}

fn still_may(rules: &Arc<Rules>, page: &Page, peer: Peer, key: Option<&Key>) -> bool {
    let mut visitor = Visitor { rules: rules.clone(), key: None };
    if !rules.keys.is_empty() {
        // It is known by its secret: its place in the list and its name may be another's by now.
        let same = |key: &Key| rules.keys.iter().position(|k| k.digest == key.digest);
        visitor.key = key.and_then(same);
        if visitor.key.is_none() {
            return false;
        }
    }
    may(page, peer, &visitor).is_ok()
}
