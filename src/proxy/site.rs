//! Under which names, and from whose pages, the endpoint may be used. PURE.
//!
//! Purpose: keep pages of other sites out. A page may send a request to this host's port from its visitor's browser; it may even
//! make its own name point here. Owner: `service` asks before anything else. Invariants: a client that is no browser is not
//! concerned (it sends no `Origin`), unless names were configured; without configuration no answer carries a CORS header.

use hyper::header::{self, HeaderValue};
use hyper::{HeaderMap, StatusCode};

use super::error::ApiError;
use super::rules::Rules;
use super::strict::has;

/// Checks where a request comes from; the origin that its answer may be shown to.
///
/// # Errors
/// 421 for a name that is not one of ours, 403 for a page that may not.
pub(super) fn check(rules: &Rules, headers: &HeaderMap) -> Result<Option<HeaderValue>, ApiError> {
    if rules.hosts.is_empty() && !has(headers, &header::ORIGIN) {
        return Ok(None);
    }
    let host = headers.get(header::HOST).map_or(&b""[..], HeaderValue::as_bytes);
    if !rules.hosts.is_empty() && !rules.hosts.iter().any(|known| is(host, known)) {
        return Err(ApiError::new(
            StatusCode::MISDIRECTED_REQUEST,
            "host_not_allowed",
            "the Host header names none of the hosts that are configured ([server] hosts)",
        ));
    }
    let Some(origin) = headers.get(header::ORIGIN) else { return Ok(None) };
    let allowed = |o: &String| o == "*" || o.as_bytes() == origin.as_bytes();
    if rules.origins.iter().any(allowed) {
        return Ok(Some(origin.clone()));
    }
    let bytes = origin.as_bytes();
    let authority = bytes.strip_prefix(b"https://").or_else(|| bytes.strip_prefix(b"http://"));
    if authority.is_some_and(|a| a.eq_ignore_ascii_case(host)) {
        // A page of the same host, behind a proxy that serves both: no other site's.
        return Ok(None);
    }
    Err(ApiError::new(
        StatusCode::FORBIDDEN,
        "origin_not_allowed",
        "pages of other sites may not use this endpoint; [server] origins lists those that may",
    ))
}

/// Whether a `Host` is a name of ours, whatever its port.
fn is(host: &[u8], known: &str) -> bool {
    let name = match host.iter().rposition(|b| *b == b':') {
        // A colon within brackets is part of an address.
        Some(at) if !host[at..].contains(&b']') => &host[..at],
        Some(_) | None => host,
    };
    name.eq_ignore_ascii_case(known.as_bytes())
}

/// What an answer needs so that a page of `origin` may read it.
pub(super) fn share(headers: &mut HeaderMap, origin: HeaderValue) {
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    headers.append(header::VARY, HeaderValue::from_static("origin"));
    let exposed = HeaderValue::from_static("x-request-id, retry-after, x-should-retry");
    headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, exposed);
}

/// What a browser is told that asks first.
pub(super) fn preflight(headers: &mut HeaderMap, asked: &HeaderMap) {
    let methods = HeaderValue::from_static("GET, POST, OPTIONS");
    headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, methods);
    // What may be sent is no secret and passes no further than our own list allows.
    if let Some(wanted) = asked.get(header::ACCESS_CONTROL_REQUEST_HEADERS) {
        headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, wanted.clone());
    }
    headers.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600"));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(host: &'static str, origin: Option<&'static str>) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, HeaderValue::from_static(host));
        if let Some(origin) = origin {
            headers.insert(header::ORIGIN, HeaderValue::from_static(origin));
        }
        headers
    }

    #[test]
    fn hosts_are_checked_only_where_they_are_listed() {
        let any = Rules::default();
        assert!(check(&any, &head("anything:1", None)).is_ok());
        let some = Rules { hosts: vec!["gpu.lan".into(), "[::1]".into()], ..Rules::default() };
        for good in ["gpu.lan", "GPU.lan:8711", "[::1]:8711", "[::1]"] {
            assert!(check(&some, &head(good, None)).is_ok(), "{good}");
        }
        for bad in ["evil.lan", "gpu.lan.evil", "[::2]:8711", "localhost"] {
            assert_eq!(check(&some, &head(bad, None)).unwrap_err().status, 421, "{bad}");
        }
    }

    #[test]
    fn pages_of_other_sites_stay_out() {
        let none = Rules::default();
        let status = |rules: &Rules, origin| {
            check(rules, &head("gpu.lan:8711", Some(origin))).map_err(|e| e.status.as_u16())
        };
        for bad in ["https://evil", "null", "https://gpu.lan", "file://gpu.lan:8711", ""] {
            assert_eq!(status(&none, bad), Err(403), "{bad}");
        }
        assert_eq!(status(&none, "https://gpu.lan:8711"), Ok(None), "its own page, behind a proxy");
        let some = Rules { origins: vec!["https://chat.lan".into()], ..Rules::default() };
        assert_eq!(
            status(&some, "https://chat.lan"),
            Ok(Some("https://chat.lan".parse().unwrap()))
        );
        assert_eq!(status(&some, "https://chat.lan.evil"), Err(403));
        let any = Rules { origins: vec!["*".into()], ..Rules::default() };
        assert!(status(&any, "https://evil").unwrap().is_some());
    }
}
