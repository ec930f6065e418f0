//! Models that somebody else runs.
//!
//! Purpose: route to an endpoint on another host, a service or a cloud, with its own key, and know whether it lives. Owner: the
//! rules name them; the server runs [`watch`] as one task. Invariants: nothing is started, stopped or measured for them; their key
//! is never shown and goes to no other host; one that is known to be dead is not asked, so that clients learn it at once.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use hyper::header::{self, HeaderName, HeaderValue};
use hyper::http::request;
use hyper::{HeaderMap, Request, StatusCode, Uri};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::endpoints::Events;
use super::error::ApiError;
use super::order;
use super::rules::{Rules, SharedRules};
use super::stream::Stream;
use super::upstream::{Conn, Lost};
use crate::types::{ModelName, Origin, sandbox};

/// Between two questions whether it lives.
const PERIOD: Duration = Duration::from_secs(5);
/// For the answer.
const ANSWER: Duration = Duration::from_secs(5);

/// One of them.
#[derive(Clone, Debug)]
pub struct External {
    /// Where it is.
    pub origin: Origin,
    /// Its key; `None`: it asks for none. Marked as sensitive, so that it is not printed.
    pub key: Option<HeaderValue>,
    /// The path that is asked to know whether it lives.
    pub health: String,
}

/// What is known of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Health {
    Well,
    Ill(String),
}

/// What is known of them all; who is not in it has not been asked yet.
pub(super) type Healths = ArcSwap<BTreeMap<ModelName, Health>>;

impl External {
    /// Connects, with TLS where the URL says so.
    ///
    /// # Errors
    /// As the kernel or the other side says.
    pub(super) async fn connect(&self) -> std::io::Result<Stream> {
        let Origin { tls, host, port, .. } = &self.origin;
        Stream::far(host, *port, *tls).await
    }

    /// Makes a request for an engine one for this endpoint: its prefix, its name, its key.
    pub(super) fn dress(&self, head: &mut request::Parts, events: Events) {
        let path = format!("{}{}", self.origin.prefix, head.uri);
        if let Ok(uri) = Uri::try_from(path) {
            head.uri = uri;
        }
        if let Ok(host) = HeaderValue::try_from(self.origin.authority()) {
            head.headers.insert(header::HOST, host);
        }
        self.unlock(&mut head.headers, events);
    }

    fn unlock(&self, headers: &mut HeaderMap, events: Events) {
        let Some(key) = &self.key else { return };
        if let Some(bearer) = order::bearer(key.as_bytes()) {
            headers.insert(header::AUTHORIZATION, bearer);
        }
        if events == Events::Messages {
            headers.insert(HeaderName::from_static("x-api-key"), key.clone());
        }
    }

    async fn probe(&self) -> Health {
        let asked = tokio::time::timeout(ANSWER, self.ask()).await;
        match asked {
            Ok(Ok(status)) if status.is_success() => Health::Well,
            Ok(Ok(status)) => {
                Health::Ill(format!("{} is answered with status {status}", self.health))
            }
            Ok(Err(why)) => Health::Ill(why),
            Err(_) => Health::Ill(format!("{} is not answered within {ANSWER:?}", self.health)),
        }
    }

    async fn ask(&self) -> Result<StatusCode, String> {
        let unreached = |e| format!("it cannot be reached: {}", sandbox::unconnected(&e));
        let stream = self.connect().await.map_err(unreached)?;
        let mut request = Request::new(());
        *request.uri_mut() = Uri::try_from(&*self.health).map_err(|e| e.to_string())?;
        let (mut head, ()) = request.into_parts();
        self.dress(&mut head, Events::Other);
        let mut conn = Conn::new(stream);
        let asked = order::written(&Request::from_parts(head, ()), &[]);
        conn.send(&asked, &[]).await.map_err(|e| e.to_string())?;
        match conn.head().await {
            Ok(head) => Ok(head.status),
            Err(Lost::Silent(error)) => Err(error.to_string()),
            Err(Lost::Broken(why)) => Err(why),
        }
    }
}

/// Whether a model may be asked.
///
/// # Errors
/// 503 where it is known to be dead.
pub(super) fn check(healths: &Healths, model: &ModelName) -> Result<(), ApiError> {
    match healths.load().get(model) {
        Some(Health::Ill(why)) => {
            let message = format!("model {model} is run elsewhere, and not well: {why}");
            let error = ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "external_unwell", message);
            Err(error.retry_after(PERIOD))
        }
        Some(Health::Well) | None => Ok(()),
    }
}

/// What the status shows of them.
pub(super) fn report(rules: &Rules, healths: &Healths) -> Vec<serde_json::Value> {
    let healths = healths.load();
    let row = |(name, external): (&ModelName, &Arc<External>)| {
        let (health, why) = match healths.get(name) {
            None => ("unknown", None),
            Some(Health::Well) => ("well", None),
            Some(Health::Ill(why)) => ("unwell", Some(why)),
        };
        json!({ "name": name, "url": external.origin.to_string(), "health": health, "why": why })
    };
    rules.externals.iter().map(row).collect()
}

/// Asks all that the rules name, again and again.
pub(super) async fn watch(rules: SharedRules, healths: Arc<Healths>, end: CancellationToken) {
    loop {
        let externals = rules.load_full().externals.clone();
        let asked =
            externals.iter().map(|(name, e)| async move { (name.clone(), e.probe().await) });
        let found: BTreeMap<_, _> = tokio::select! {
            found = futures_util::future::join_all(asked) => found.into_iter().collect(),
            () = end.cancelled() => return,
        };
        let before = healths.load_full();
        for (name, health) in &found {
            match (before.get(name), health) {
                (Some(Health::Well), Health::Well) | (Some(Health::Ill(_)), Health::Ill(_)) => {}
                (_, Health::Well) => {
                    tracing::info!(model = %name, "{name}: the external endpoint is well")
                }
                (_, Health::Ill(why)) => {
                    tracing::warn!(model = %name, "{name}: the external endpoint is not well, retrying: {why}");
                }
            }
        }
        healths.store(Arc::new(found));
        tokio::select! {
            () = tokio::time::sleep(PERIOD) => {}
            () = end.cancelled() => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_gets_the_endpoints_name_path_and_key() {
        let origin =
            Origin { tls: true, host: "api.lan".into(), port: 8443, prefix: "/team".into() };
        let key = Some(HeaderValue::from_static("sk-far"));
        let external = External { origin, key, health: "/v1/models".into() };
        let dressed = |events| {
            let request = Request::builder().uri("/v1/messages").header("host", "localhost");
            let (mut head, ()) = request.body(()).unwrap().into_parts();
            external.dress(&mut head, events);
            head
        };
        let head = dressed(Events::Messages);
        assert_eq!(head.uri, "/team/v1/messages");
        assert_eq!(head.headers["host"], "api.lan:8443");
        assert_eq!(head.headers["authorization"], "Bearer sk-far");
        assert_eq!(head.headers["x-api-key"], "sk-far");
        assert!(!format!("{:?}", head.headers["authorization"]).contains("sk-far"));
        assert!(!dressed(Events::Chat).headers.contains_key("x-api-key"));
    }
}
