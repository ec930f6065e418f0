//! Models that somebody else runs.
//!
//! Purpose: route to an endpoint on another host, a service or a cloud, with its own key, and know whether it lives (`health`). Owner:
//! the rules name them. Invariants: nothing is started, stopped or measured for them; their key
//! is never shown and goes to no other host; one that is known to be dead is not asked, so that clients learn it at once.

mod health;

use hyper::header::{self, HeaderName, HeaderValue};
use hyper::http::request;
use hyper::{HeaderMap, Request, StatusCode, Uri};

pub use health::Healths;
pub(super) use health::{Far, grant, watch};

use super::endpoints::Dialect;
use super::keys::X_API_KEY;
use super::order;
use super::stream::Stream;
use super::upstream::{Conn, Lost};
use crate::types::{Origin, sandbox};

/// What Anthropic's kind of service wants beside its key; others do not look.
const ANTHROPIC_VERSION: (HeaderName, HeaderValue) =
    (HeaderName::from_static("anthropic-version"), HeaderValue::from_static("2023-06-01"));

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct External {
    /// Where it is.
    pub origin: Origin,
    /// Its key; `None`: it asks for none. Marked as sensitive, so that it is not printed.
    pub key: Option<HeaderValue>,
    /// The path that is asked to know whether it lives.
    pub health: String,
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

    /// Asks whether it lives.
    ///
    /// # Errors
    /// Why there is no answer.
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

#[cfg(test)]
mod tests {
    use super::*;

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
