//! Models that somebody else runs.
//!
//! Purpose: route to an endpoint on another host, a service or a cloud, with its own key, and know whether it lives. Owner: the
//! rules name them; the server runs [`watch`] as one task and alone writes [`Healths`], which the status, the bus and metrics
//! read. Invariants: nothing is started, stopped or measured for them; their key
//! is never shown and goes to no other host; one that is known to be dead is not asked, so that clients learn it at once.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use hyper::header::{self, HeaderName, HeaderValue};
use hyper::http::request;
use hyper::{HeaderMap, Request, StatusCode, Uri};
use tokio_util::sync::CancellationToken;

use super::endpoints::Dialect;
use super::error::ApiError;
use super::keys::X_API_KEY;
use super::order;
use super::rules::{Rules, SharedRules};
use super::stream::Stream;
use super::upstream::{Conn, Lost};
use crate::types::{ExternalHealth, ExternalStatus, ModelName, Moment, Origin, sandbox};

/// Between two questions whether it lives.
const PERIOD: Duration = Duration::from_secs(5);
/// For the answer.
const ANSWER: Duration = Duration::from_secs(5);

/// What Anthropic's kind of service wants beside its key; others do not look.
const ANTHROPIC_VERSION: (HeaderName, HeaderValue) =
    (HeaderName::from_static("anthropic-version"), HeaderValue::from_static("2023-06-01"));

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

/// What one's last answer means.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Health {
    Well,
    Ill(String),
}

/// What is known of one.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Found {
    health: Health,
    /// When it was first found so, in a row.
    since: Moment,
}

/// What is known of them all; who is not in it has not been asked yet.
#[derive(Debug, Default)]
pub struct Healths(ArcSwap<BTreeMap<ModelName, Found>>);

impl Healths {
    /// All that the rules name, in the order of their names.
    #[must_use]
    pub fn status(&self, rules: &Rules) -> Vec<ExternalStatus> {
        let found = self.0.load();
        let row = |(name, external): (&ModelName, &Arc<External>)| {
            let known = found.get(name);
            let (health, why) = match known.map(|found| &found.health) {
                None => (ExternalHealth::Unknown, None),
                Some(Health::Well) => (ExternalHealth::Well, None),
                Some(Health::Ill(why)) => (ExternalHealth::Unwell, Some(why.clone())),
            };
            let aliases = rules.aliases.iter().filter(|(_, of)| *of == name);
            ExternalStatus {
                name: name.clone(),
                aliases: aliases.map(|(alias, _)| alias.clone()).collect(),
                url: external.origin.to_string(),
                health,
                why,
                since: known.map(|found| found.since),
            }
        };
        rules.externals.iter().map(row).collect()
    }
}

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
    pub(super) fn dress(&self, head: &mut request::Parts) {
        let dialect = Dialect::of(head.uri.path());
        let path = format!("{}{}", self.origin.prefix, head.uri);
        if let Ok(uri) = Uri::try_from(path) {
            head.uri = uri;
        }
        if let Ok(host) = HeaderValue::try_from(self.origin.authority()) {
            head.headers.insert(header::HOST, host);
        }
        self.unlock(&mut head.headers, dialect);
    }

    fn unlock(&self, headers: &mut HeaderMap, dialect: Dialect) {
        let Some(key) = &self.key else { return };
        if let Some(bearer) = order::bearer(key.as_bytes()) {
            headers.insert(header::AUTHORIZATION, bearer);
        }
        if dialect == Dialect::Anthropic {
            headers.insert(X_API_KEY, key.clone());
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
        self.dress(&mut head);
        // The path does not tell which kind of service it is, so it is asked as both kinds want it.
        self.unlock(&mut head.headers, Dialect::Anthropic);
        let (version, value) = ANTHROPIC_VERSION;
        head.headers.insert(version, value);
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
    match healths.0.load().get(model).map(|found| &found.health) {
        Some(Health::Ill(why)) => {
            let message = format!("model {model} is run elsewhere, and not well: {why}");
            let error = ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "external_unwell", message);
            Err(error.retry_after(PERIOD))
        }
        Some(Health::Well) | None => Ok(()),
    }
}

/// Asks all that the rules name, again and again. `now`: the clock of the status.
pub(super) async fn watch(
    rules: SharedRules,
    healths: Arc<Healths>,
    now: impl Fn() -> Moment,
    end: CancellationToken,
) {
    loop {
        let externals = rules.load_full().externals.clone();
        let asked =
            externals.iter().map(|(name, e)| async move { (name.clone(), e.probe().await) });
        let answers: BTreeMap<_, _> = tokio::select! {
            answers = futures_util::future::join_all(asked) => answers.into_iter().collect(),
            () = end.cancelled() => return,
        };
        let before = healths.0.load_full();
        let found = answers.into_iter().map(|(name, health)| {
            let since = since(&name, before.get(&name), &health).unwrap_or_else(&now);
            (name, Found { health, since })
        });
        healths.0.store(Arc::new(found.collect()));
        tokio::select! {
            () = tokio::time::sleep(PERIOD) => {}
            () = end.cancelled() => return,
        }
    }
}

/// Since when it is as it was found again; `None`: it is news, which the log tells.
fn since(name: &ModelName, before: Option<&Found>, health: &Health) -> Option<Moment> {
    match (before, health) {
        (Some(Found { health: Health::Well, since }), Health::Well)
        | (Some(Found { health: Health::Ill(_), since }), Health::Ill(_)) => return Some(*since),
        (_, Health::Well) => {
            tracing::info!(model = %name, "{name}: the external endpoint is well");
        }
        (_, Health::Ill(why)) => {
            tracing::warn!(model = %name, "{name}: the external endpoint is not well, retrying: {why}");
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_readers_see_of_them() {
        let name = |n: &str| -> ModelName { n.parse().unwrap() };
        let origin = Origin { tls: false, host: "far".into(), port: 8711, prefix: "/x".into() };
        let key = Some(HeaderValue::from_static("sk-far"));
        let external = Arc::new(External { origin, key, health: "/v1/models".into() });
        let rules = Rules {
            externals: ["ill", "new", "well"].map(|n| (name(n), external.clone())).into(),
            aliases: BTreeMap::from([(name("w"), name("well")), (name("m"), name("mine"))]),
            ..Rules::default()
        };
        let since = Moment::from_secs(7);
        let healths = Healths::default();
        let found = |health| Found { health, since };
        healths.0.store(Arc::new(BTreeMap::from([
            (name("ill"), found(Health::Ill("dead".into()))),
            (name("well"), found(Health::Well)),
            (name("left"), found(Health::Well)),
        ])));
        let rows = healths.status(&rules);
        let seen: Vec<_> = rows
            .iter()
            .map(|row| (row.name.as_str(), row.health, row.why.as_deref(), row.since))
            .collect();
        assert_eq!(
            seen,
            [
                ("ill", ExternalHealth::Unwell, Some("dead"), Some(since)),
                ("new", ExternalHealth::Unknown, None, None),
                ("well", ExternalHealth::Well, None, Some(since)),
            ]
        );
        assert_eq!((&*rows[2].url, &rows[2].aliases), ("http://far:8711/x", &vec![name("w")]));
        assert!(rows[2].answers_to("w") && rows[2].answers_to("well") && !rows[2].answers_to("m"));
        assert!(!serde_json::to_string(&rows).unwrap().contains("sk-far"));
    }

    #[test]
    fn a_health_dates_from_its_first_answer() {
        let name: ModelName = "m".parse().unwrap();
        let at = Moment::from_secs(7);
        let ill = |why: &str| Health::Ill(why.into());
        let found = |health| Some(Found { health, since: at });
        let since = |before: Option<Found>, health| since(&name, before.as_ref(), &health);
        assert_eq!(since(None, Health::Well), None);
        assert_eq!(since(found(Health::Well), Health::Well), Some(at));
        assert_eq!(since(found(ill("a")), ill("b")), Some(at), "another reason is no other health");
        assert_eq!(since(found(Health::Well), ill("a")), None);
        assert_eq!(since(found(ill("a")), Health::Well), None);
    }

    #[test]
    fn a_request_gets_the_endpoints_name_path_and_key() {
        let origin =
            Origin { tls: true, host: "api.lan".into(), port: 8443, prefix: "/team".into() };
        let key = Some(HeaderValue::from_static("sk-far"));
        let external = External { origin, key, health: "/v1/models".into() };
        let dressed = |path: &str| {
            let request = Request::builder().uri(path).header("host", "localhost");
            let (mut head, ()) = request.body(()).unwrap().into_parts();
            external.dress(&mut head);
            head
        };
        let head = dressed("/v1/messages");
        assert_eq!(head.uri, "/team/v1/messages");
        assert_eq!(head.headers["host"], "api.lan:8443");
        assert_eq!(head.headers["authorization"], "Bearer sk-far");
        assert_eq!(head.headers["x-api-key"], "sk-far");
        assert!(!format!("{:?}", head.headers["authorization"]).contains("sk-far"));
        assert_eq!(dressed("/v1/messages/count_tokens").headers["x-api-key"], "sk-far");
        assert!(!dressed("/v1/chat/completions").headers.contains_key("x-api-key"));
    }
}
