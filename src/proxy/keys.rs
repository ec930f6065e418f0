//! Who a client is.
//!
//! Purpose: from the key in a request's head to the name that an admin gave it, and what its holder may use. Owner: `service`
//! asks once a request. Invariants: only digests of keys are held; they are compared in constant time, and all of them, so that
//! the time tells nothing; a key is never logged and never passed on.

use hyper::header::{self, HeaderName};
use hyper::{HeaderMap, StatusCode};
use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq};

use super::error::ApiError;
use super::protocols;
use crate::types::ModelName;

/// Where Anthropic's clients put their key.
pub(super) const X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");
/// No key is longer; a longer one is not worth its hash.
const KEY_BYTES_MAX: usize = 512;

/// One key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// What logs and metrics call its holder.
    pub name: String,
    /// SHA-256 of the key.
    pub digest: [u8; 32],
    /// Models that it may use; empty: all.
    pub models: Vec<ModelName>,
    /// Requests in a minute; `None`: as many as come.
    pub per_minute: Option<u32>,
    /// Requests at once, waiting ones too; `None`: as many as come.
    pub concurrent: Option<u32>,
    /// Its weight where holders of keys share a model that serves no more at once; at least 1.
    pub share: u32,
    /// It may load and unload models and what else changes the host's state.
    pub admin: bool,
}

impl Key {
    /// Whether it may use the model of this name.
    #[must_use]
    pub fn allows(&self, model: &ModelName) -> bool {
        self.models.is_empty() || self.models.contains(model)
    }
}

/// Which of the keys a request's head holds. `socket`: it opens a WebSocket, whose protocols may hold it too.
///
/// # Errors
/// 401 where there is none, or none that is known.
pub(super) fn identify(keys: &[Key], headers: &HeaderMap, socket: bool) -> Result<usize, ApiError> {
    let refused =
        |message: &str| Err(ApiError::new(StatusCode::UNAUTHORIZED, "invalid_api_key", message));
    let given = match given(headers, socket) {
        Ok(given) => given,
        Err(why) => return refused(why),
    };
    if given.len() > KEY_BYTES_MAX {
        return refused("the API key is not known");
    }
    let digest = Sha256::digest(given);
    let mut found = None;
    for (at, key) in keys.iter().enumerate() {
        let same: Choice = key.digest.ct_eq(digest.as_slice());
        if bool::from(same) {
            found = Some(at);
        }
    }
    found.map_or_else(|| refused("the API key is not known"), Ok)
}

/// The key in a head; two different ones are none, as nobody can tell which is meant.
///
/// # Errors
/// Why there is none.
fn given(headers: &HeaderMap, socket: bool) -> Result<&[u8], &'static str> {
    let bearer = |value: &'_ header::HeaderValue| -> Option<usize> {
        let bytes = value.as_bytes();
        let scheme = bytes.get(..7)?;
        scheme.eq_ignore_ascii_case(b"bearer ").then_some(7)
    };
    let mut keys = headers
        .get_all(header::AUTHORIZATION)
        .iter()
        .filter_map(|v| bearer(v).and_then(|at| v.as_bytes().get(at..)).map(<[u8]>::trim_ascii))
        .chain(headers.get_all(&X_API_KEY).iter().map(|v| v.as_bytes().trim_ascii()))
        .chain(socket.then(|| protocols::keys(headers)).into_iter().flatten())
        .filter(|key| !key.is_empty());
    let first = keys
        .next()
        .ok_or("an API key is needed: send Authorization: Bearer KEY, or x-api-key: KEY")?;
    if !keys.all(|other| other == first) {
        return Err(
            "two different API keys were sent, in Authorization, x-api-key or a WebSocket's protocols: send one",
        );
    }
    Ok(first)
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::header::HeaderValue;

    fn key(name: &str, secret: &str) -> Key {
        Key {
            name: name.to_owned(),
            digest: Sha256::digest(secret).into(),
            models: vec![],
            per_minute: None,
            concurrent: None,
            share: 1,
            admin: false,
        }
    }

    fn head(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn a_key_is_found_where_clients_put_it() {
        let keys = [key("alice", "sk-a"), key("bob", "sk-b")];
        let who =
            |pairs: &[_]| identify(&keys, &head(pairs), false).map(|at| keys[at].name.clone());
        assert_eq!(who(&[("authorization", "Bearer sk-a")]).unwrap(), "alice");
        assert_eq!(who(&[("authorization", "bearer  sk-b ")]).unwrap(), "bob");
        assert_eq!(who(&[("x-api-key", "sk-b")]).unwrap(), "bob");
        let both = [("authorization", "Bearer sk-a"), ("x-api-key", "sk-a")];
        assert_eq!(who(&both).unwrap(), "alice");
    }

    #[test]
    fn all_else_is_nobody() {
        let keys = [key("alice", "sk-a"), key("bob", "sk-b")];
        let cases: [&[(&str, &str)]; 9] = [
            &[],
            &[("authorization", "Bearer sk-c")],
            &[("authorization", "Bearer ")],
            &[("authorization", "Basic sk-a")],
            &[("authorization", "sk-a")],
            &[("authorization", "Bearer SK-A")],
            &[("authorization", "Bearer sk-a"), ("x-api-key", "sk-b")],
            &[("authorization", "Bearer sk-a"), ("authorization", "Bearer sk-c")],
            &[("x-api-key", "")],
        ];
        for pairs in cases {
            let error = identify(&keys, &head(pairs), false).unwrap_err();
            assert_eq!((error.status.as_u16(), error.code), (401, "invalid_api_key"), "{pairs:?}");
        }
        let long = "x".repeat(513);
        let mut headers = HeaderMap::new();
        headers.insert("x-api-key", HeaderValue::from_str(&long).unwrap());
        assert!(identify(&[key("l", &long)], &headers, false).is_err());
    }

    #[test]
    fn a_sockets_protocols_may_hold_the_key() {
        let keys = [key("alice", "sk-a"), key("bob", "sk-b")];
        let offer = ("sec-websocket-protocol", "realtime, openai-insecure-api-key.sk-b");
        assert_eq!(identify(&keys, &head(&[offer]), true).unwrap(), 1);
        assert!(identify(&keys, &head(&[offer]), false).is_err(), "it opens none");
        assert!(identify(&keys, &head(&[offer, ("x-api-key", "sk-a")]), true).is_err());
    }

    /// As Anthropic's SDK does where both of its variables are set.
    #[test]
    fn who_sends_two_keys_is_told_so() {
        let both = [("authorization", "Bearer sk-a"), ("x-api-key", "sk-b")];
        let error = identify(&[key("alice", "sk-a")], &head(&both), false).unwrap_err();
        assert_eq!((error.status.as_u16(), error.code), (401, "invalid_api_key"));
        assert!(error.message.contains("two different"), "{}", error.message);
    }

    #[test]
    fn models_of_a_key() {
        let mut key = key("a", "k");
        let model = |m: &str| -> ModelName { m.parse().unwrap() };
        assert!(key.allows(&model("x")));
        key.models = vec![model("y")];
        assert!(key.allows(&model("y")) && !key.allows(&model("x")));
    }
}
