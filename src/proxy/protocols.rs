//! The protocols that a WebSocket's client offers. PURE.
//!
//! Purpose: a page can set no header, so OpenAI's clients in browsers put their key among the protocols; it is told from what an
//! engine may see. Owner: `keys` for the key, `websocket` for the rest. Invariants: no key and nothing of its holder is passed on or
//! sent back; a client that offered `realtime` is answered a protocol, for browsers drop a socket that has none of those they offered.

use hyper::HeaderMap;
use hyper::header::{HeaderValue, SEC_WEBSOCKET_PROTOCOL};

/// Before a key.
const KEY: &[u8] = b"openai-insecure-api-key.";
/// Before what is between the client and us.
const PRIVATE: [&[u8]; 3] = [KEY, b"openai-organization.", b"openai-project."];
/// What is spoken.
const REALTIME: &[u8] = b"realtime";

fn offered(headers: &HeaderMap) -> impl Iterator<Item = &[u8]> {
    let values = headers.get_all(SEC_WEBSOCKET_PROTOCOL).iter();
    let all = values.flat_map(|value| value.as_bytes().split(|b| *b == b','));
    all.map(<[u8]>::trim_ascii).filter(|protocol| !protocol.is_empty())
}

/// Whether it begins so, in whatever letters: what is misspelt is no less secret.
fn begins(protocol: &[u8], with: &[u8]) -> bool {
    protocol.get(..with.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(with))
}

/// The keys among them.
pub(super) fn keys(headers: &HeaderMap) -> impl Iterator<Item = &[u8]> {
    let keys = offered(headers).filter(|protocol| begins(protocol, KEY));
    keys.filter_map(|protocol| protocol.get(KEY.len()..))
}

/// What of them an engine may see.
pub(super) fn passed(headers: &HeaderMap) -> Option<HeaderValue> {
    let public = |protocol: &&[u8]| !PRIVATE.iter().any(|with| begins(protocol, with));
    let all = offered(headers).filter(public).collect::<Vec<_>>().join(&b", "[..]);
    // Parts of headers make one.
    HeaderValue::from_bytes(&all).ok().filter(|all| !all.is_empty())
}

/// The one that is chosen where the engine names none.
pub(super) fn chosen(headers: &HeaderMap) -> Option<HeaderValue> {
    offered(headers)
        .any(|protocol| protocol == REALTIME)
        .then(|| HeaderValue::from_static("realtime"))
}

/// Whether none of those offered could be chosen without sending back what is private. A browser drops a socket for which none of its
/// protocols is chosen, or one that it did not offer.
pub(super) fn are_private(headers: &HeaderMap) -> bool {
    offered(headers).next().is_some() && passed(headers).is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(values: &[&'static str]) -> HeaderMap {
        let value = |v: &&'static str| (SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(v));
        values.iter().map(value).collect()
    }

    #[test]
    fn keys_are_told_from_protocols() {
        let headers = head(&[
            "realtime,openai-insecure-api-key.sk-a, openai-organization.o",
            " ,OpenAI-Insecure-Api-Key.sk-b ,openai-project.p, openai-beta.realtime-v1",
        ]);
        assert!(keys(&headers).eq([&b"sk-a"[..], b"sk-b"]));
        assert_eq!(passed(&headers).unwrap(), "realtime, openai-beta.realtime-v1");
        assert_eq!(chosen(&headers).unwrap(), "realtime");
        for none in [&["openai-insecure-api-key.sk-a"][..], &["openai-insecure-api-key."], &[]] {
            assert_eq!((passed(&head(none)), chosen(&head(none))), (None, None), "{none:?}");
        }
        assert_eq!(chosen(&head(&["other"])), None, "nobody asked for it");
        let private = |protocols| are_private(&head(&[protocols]));
        assert!(private("openai-insecure-api-key.sk-a, openai-project.p"));
        assert!(!private("openai-insecure-api-key.sk-a, other") && !private(" ,"));
    }
}
