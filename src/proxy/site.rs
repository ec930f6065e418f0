//! Under which names, and from whose pages, the endpoint may be used. PURE.
//!
//! Purpose: keep pages of other sites out. A page may send a request to this host's port from its visitor's browser; it may even
//! make its own name point here, and is then no other site's to the browser (DNS rebinding). Owner: `service` asks before anything
//! else. Invariants: where anybody may come in, by TCP, it is under a name that nobody else can have, or one that was configured;
//! without configuration no answer carries a CORS header.

use std::net::{Ipv4Addr, Ipv6Addr};

use hyper::header::{self, HeaderValue};
use hyper::{HeaderMap, StatusCode};

use super::error::ApiError;
use super::rules::Rules;
use super::stream::Peer;
use super::strict;

/// Of a name that is refused, so many bytes are said.
const SAID: usize = 100;

/// Checks where a request comes from; the origin that its answer may be shown to.
///
/// # Errors
/// 421 for a name that is not one of ours, 403 for a page that may not.
pub(super) fn check(
    rules: &Rules,
    peer: Peer,
    headers: &HeaderMap,
) -> Result<Option<HeaderValue>, ApiError> {
    // A key is what such a page has not, and no page reaches a Unix socket.
    let open = rules.hosts.is_empty() && rules.keys.is_empty() && peer != Peer::Unix;
    if !open && rules.hosts.is_empty() && !strict::has(headers, &header::ORIGIN) {
        return Ok(None);
    }
    let given = strict::all(headers, header::HOST).next();
    let host = given.map_or(&b""[..], HeaderValue::as_bytes);
    if open && given.is_some() && !is_ours_alone(name(host)) {
        return Err(unlisted(name(host)));
    }
    if !rules.hosts.is_empty() && !rules.hosts.iter().any(|known| is(host, known)) {
        return Err(misdirected(
            "the Host header names none of the hosts that are configured ([server] hosts)",
        ));
    }
    let Some(origin) = strict::all(headers, header::ORIGIN).next() else { return Ok(None) };
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
    let named = String::from_utf8_lossy(&bytes[..bytes.len().min(SAID)]).to_ascii_lowercase();
    let mut message = format!("the origin {named:?} may not use this endpoint");
    if named == "null" {
        // Any page can have it, by a frame of its own.
        message += "; it is nobody's, and listed in [server] origins it lets any page in";
    } else if !named.is_empty() && bytes.len() <= SAID {
        message += "; if it is yours (a page, or a program on a desktop such as Jan): [server] origins = [";
        message += &format!("{named:?}]");
    }
    Err(ApiError::new(StatusCode::FORBIDDEN, "origin_not_allowed", message))
}

/// Whether a `Host` is a name of ours, whatever its port.
fn is(host: &[u8], known: &str) -> bool {
    let name = name(host);
    // The same address has several spellings.
    let address = |text: &[u8]| {
        let text = std::str::from_utf8(text).ok()?.strip_prefix('[')?.strip_suffix(']')?;
        text.parse::<Ipv6Addr>().ok()
    };
    name.eq_ignore_ascii_case(known.as_bytes())
        || address(name).is_some_and(|it| address(known.as_bytes()) == Some(it))
}

/// A `Host` without its port.
fn name(host: &[u8]) -> &[u8] {
    match host.iter().rposition(|b| *b == b':') {
        // A colon within brackets is part of an address.
        Some(at) if !host[at..].contains(&b']') => &host[..at],
        Some(_) | None => host,
    }
}

/// Whether no page of another site can have come under this name: it is an address, which nobody can make point elsewhere, or
/// one that browsers look up nowhere.
fn is_ours_alone(name: &[u8]) -> bool {
    let Ok(name) = std::str::from_utf8(name) else { return false };
    if let Some(address) = name.strip_prefix('[') {
        return address.strip_suffix(']').is_some_and(|a| a.parse::<Ipv6Addr>().is_ok());
    }
    let name = name.strip_suffix('.').unwrap_or(name);
    let last = name.rsplit('.').next().unwrap_or_default();
    last.eq_ignore_ascii_case("localhost") || name.parse::<Ipv4Addr>().is_ok()
}

/// The refusal of a name that may be anybody's, with all that lets it in and keeps the others.
fn unlisted(name: &[u8]) -> ApiError {
    let name = String::from_utf8_lossy(&name[..name.len().min(SAID)]).to_ascii_lowercase();
    misdirected(format!(
        "without keys this host answers to localhost and addresses, not to {name:?}, which a web page could have made point \
         here; if the name is this host's: [server] hosts = [{name:?}, \"localhost\", \"127.0.0.1\", \"[::1]\"]"
    ))
}

fn misdirected(message: impl Into<String>) -> ApiError {
    ApiError::new(StatusCode::MISDIRECTED_REQUEST, "host_not_allowed", message)
}

/// What an answer needs so that a page of `origin` may read it.
pub(super) fn share(headers: &mut HeaderMap, origin: HeaderValue) {
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    headers.append(header::VARY, HeaderValue::from_static("origin"));
    let exposed = HeaderValue::from_static("x-request-id, request-id, retry-after, x-should-retry");
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
    use crate::proxy::Key;

    fn head(host: &'static str, origin: Option<&'static str>) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, HeaderValue::from_static(host));
        if let Some(origin) = origin {
            headers.insert(header::ORIGIN, HeaderValue::from_static(origin));
        }
        headers
    }

    #[test]
    fn hosts_that_are_listed_are_the_only_ones() {
        let some = Rules { hosts: vec!["gpu.lan".into(), "[::1]".into()], ..Rules::default() };
        let spelt = head("[0:0:0:0:0:0:0:1]:8711", None);
        assert_eq!(
            check(&some, Peer::Loopback, &spelt),
            Ok(None),
            "an address however it is written"
        );
        for peer in [Peer::Loopback, Peer::Far, Peer::Unix] {
            for good in ["gpu.lan", "GPU.lan:8711", "[::1]:8711", "[::1]"] {
                assert!(check(&some, peer, &head(good, None)).is_ok(), "{good}");
            }
            for bad in ["evil.lan", "gpu.lan.evil", "[::2]:8711", "localhost"] {
                let refused = check(&some, peer, &head(bad, None)).unwrap_err();
                assert_eq!(refused.status, 421, "{bad}");
            }
        }
    }

    /// A page's own name that points here is no other site's to the browser: there is no `Origin`, or it is the `Host`.
    #[test]
    fn a_name_that_may_be_a_pages_own_is_refused_where_anybody_may_come_in() {
        let open = Rules::default();
        for good in [
            "localhost",
            "LocalHost:8711",
            "localhost.",
            "hostler.localhost:8711",
            "127.0.0.1:8711",
            "127.0.0.1.",
            "192.0.2.7",
            "[::1]:8711",
            "[2001:db8::7]",
        ] {
            assert_eq!(check(&open, Peer::Loopback, &head(good, None)), Ok(None), "{good}");
        }
        for bad in [
            "evil.example:8711",
            "gpu",
            "notlocalhost",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "127.1",
            "0x7f000001",
            "[::1",
            "[evil]",
            ".",
        ] {
            let mut from_page = head(bad, None);
            from_page.insert(header::ORIGIN, format!("http://{bad}").parse().unwrap());
            for headers in [head(bad, None), from_page] {
                let refused = check(&open, Peer::Loopback, &headers).unwrap_err();
                assert_eq!(refused.status, 421, "{bad}");
            }
            assert!(check(&open, Peer::Unix, &head(bad, None)).is_ok(), "{bad}");
        }
        let error = check(&open, Peer::Loopback, &head("Chat.lan:8711", None)).unwrap_err();
        let fix = "[server] hosts = [\"chat.lan\", \"localhost\", \"127.0.0.1\", \"[::1]\"]";
        assert!(error.message.contains(fix), "{}", error.message);
        // Health checks of load balancers name nobody, and no browser is so old.
        assert_eq!(check(&open, Peer::Loopback, &HeaderMap::new()), Ok(None));
        let key = Key {
            name: "k".into(),
            digest: [0; 32],
            models: vec![],
            per_minute: None,
            concurrent: None,
            share: 1,
            admin: false,
        };
        let keys = Rules { keys: vec![key], ..Rules::default() };
        assert!(check(&keys, Peer::Loopback, &head("chat.lan", None)).is_ok());
    }

    #[test]
    fn pages_of_other_sites_stay_out() {
        let none = Rules::default();
        // Where the name was looked at already, or need not be.
        let status = |rules: &Rules, origin| {
            let head = head("gpu.lan:8711", Some(origin));
            check(rules, Peer::Unix, &head).map_err(|e| e.status.as_u16())
        };
        let told = check(&none, Peer::Unix, &head("gpu.lan:8711", Some("tauri://localhost")));
        let told = told.unwrap_err().message;
        assert!(told.ends_with("[server] origins = [\"tauri://localhost\"]"), "{told}");
        let told =
            check(&none, Peer::Unix, &head("gpu.lan:8711", Some("null"))).unwrap_err().message;
        assert!(told.ends_with("it lets any page in"), "{told}");
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
