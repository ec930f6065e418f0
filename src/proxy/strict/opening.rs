//! A WebSocket's opening. PURE.
//!
//! Purpose: refuse what is no opening handshake before an engine is woken for it. Owner: `route`. Invariant: what passes has a key, a
//! version and no body.

use hyper::header::{self, HeaderName, HeaderValue};
use hyper::{HeaderMap, Version};

/// Checks a WebSocket's opening handshake (RFC 6455, 4.2.1), beyond what [`super::check`] has seen.
///
/// # Errors
/// What is missing.
pub(in crate::proxy) fn websocket(
    version: Version,
    headers: &HeaderMap,
) -> Result<(), &'static str> {
    let one = |name: &HeaderName| {
        let mut values = headers.get_all(name).iter();
        values.next().filter(|_| values.next().is_none()).map(HeaderValue::as_bytes)
    };
    let tokens = headers.get_all(header::CONNECTION).iter();
    let mut tokens = tokens.flat_map(|v| v.as_bytes().split(|b| *b == b','));
    if version != Version::HTTP_11
        || !one(&header::UPGRADE).is_some_and(|to| to.eq_ignore_ascii_case(b"websocket"))
        || !tokens.any(|t| t.trim_ascii().eq_ignore_ascii_case(b"upgrade"))
    {
        return Err(
            "this path speaks WebSocket only: send Upgrade: websocket and Connection: Upgrade",
        );
    }
    if one(&header::SEC_WEBSOCKET_VERSION) != Some(b"13") {
        return Err("Sec-WebSocket-Version must be 13");
    }
    // 16 bytes in base64.
    if one(&header::SEC_WEBSOCKET_KEY).is_none_or(|key| key.len() != 24) {
        return Err("Sec-WebSocket-Key must be given once, 16 bytes in base64");
    }
    if headers.contains_key(header::CONTENT_LENGTH)
        || headers.contains_key(header::TRANSFER_ENCODING)
    {
        return Err("a WebSocket's opening has no body");
    }
    Ok(())
}
