//! What hyper lets through and a careful server does not. PURE.
//!
//! Purpose: refuse heads that two HTTP parsers could read differently, so that nothing can be smuggled past whatever
//! stands before or behind this server. Owner: `route` asks before it looks at anything else. Invariant: every refusal
//! is 400 and ends the connection, because what follows on it cannot be told apart from the request.
//!
//! Not to be seen from here, since hyper resolves it: `Content-Length` beside `Transfer-Encoding` (hyper reads chunks
//! and closes) and equal repeated `Content-Length` lines (hyper keeps one). Neither can reach an engine: its request is
//! rebuilt with a length of our own.

mod opening;

use hyper::header::{self, HeaderName, HeaderValue};
use hyper::{HeaderMap, Method, Uri, Version};
pub(super) use opening::websocket;

/// Fields that decide where a message ends, who it is for, who asks or how it is read; forbidden in trailers.
const NO_TRAILERS: [HeaderName; 12] = [
    header::AUTHORIZATION,
    header::COOKIE,
    header::CONTENT_ENCODING,
    header::CONTENT_TYPE,
    header::EXPECT,
    header::CONTENT_LENGTH,
    header::TRANSFER_ENCODING,
    header::HOST,
    header::CONNECTION,
    header::UPGRADE,
    header::TRAILER,
    header::TE,
];

/// What [`connection`] looks at.
const CONNECTION: [HeaderName; 2] = [header::CONNECTION, header::EXPECT];

/// What `Connection` may hold. Who offers an upgrade is served without it (RFC 9110, 7.8): many clients offer HTTP/2 with their first
/// request, and proxies say `upgrade` with each. Engines, some of which would stumble, see neither.
const OPTIONS: [&[u8]; 6] = [b"close", b"keep-alive", b"te", b"upgrade", b"http2-settings", b""];

/// A field that may be given once.
#[derive(Clone, Copy, Debug, Default)]
enum Once<'h> {
    #[default]
    Never,
    One(&'h HeaderValue),
    Often,
}

impl<'h> Once<'h> {
    fn add(&mut self, value: &'h HeaderValue) {
        *self = if matches!(self, Self::Never) { Self::One(value) } else { Self::Often };
    }
}

/// What the checks need of a head, found in one pass: heads are short, and names are sooner compared than looked up.
#[derive(Debug, Default)]
struct Fields<'h> {
    host: Once<'h>,
    length: Once<'h>,
    coding: Once<'h>,
    connection: bool,
}

impl<'h> Fields<'h> {
    fn of(headers: &'h HeaderMap) -> Self {
        let mut fields = Self::default();
        for (name, value) in headers {
            if *name == header::HOST {
                fields.host.add(value);
            } else if *name == header::CONTENT_LENGTH {
                fields.length.add(value);
            } else if *name == header::TRANSFER_ENCODING {
                fields.coding.add(value);
            } else if CONNECTION.contains(name) {
                fields.connection = true;
            }
        }
        fields
    }
}

/// Methods that a client may use without being taken for a broken one. Which of them a path knows is for `route`.
const METHODS: [Method; 7] = [
    Method::GET,
    Method::HEAD,
    Method::POST,
    Method::PUT,
    Method::DELETE,
    Method::PATCH,
    Method::OPTIONS,
];

/// The values of a field: found by comparing, which is cheaper than looking up where there are so few.
pub(super) fn all(headers: &HeaderMap, name: HeaderName) -> impl Iterator<Item = &HeaderValue> {
    headers.iter().filter(move |(given, _)| **given == name).map(|(_, value)| value)
}

/// Whether a head has a field.
pub(super) fn has(headers: &HeaderMap, name: &HeaderName) -> bool {
    headers.keys().any(|given| given == name)
}

/// Checks a request's head.
///
/// # Errors
/// What is wrong with it, for the client's developer.
pub(super) fn check(
    method: &Method,
    uri: &Uri,
    version: Version,
    headers: &HeaderMap,
) -> Result<(), &'static str> {
    if !METHODS.contains(method) {
        return Err("the method is not one of GET, HEAD, POST, PUT, DELETE, PATCH, OPTIONS");
    }
    if uri.scheme().is_some() || uri.authority().is_some() || !uri.path().starts_with('/') {
        return Err("the request target must be a path; this server is not a forward proxy");
    }
    path(uri.path())?;
    let fields = Fields::of(headers);
    host(version, fields.host)?;
    framing(fields.coding, fields.length)?;
    if fields.connection {
        connection(headers)?;
    }
    Ok(())
}

/// Checks trailers, which must not change what the head said.
///
/// # Errors
/// What is wrong with them.
pub(super) fn trailers(trailers: &HeaderMap) -> Result<(), &'static str> {
    if NO_TRAILERS.iter().any(|name| trailers.contains_key(name)) {
        return Err("a trailer must not hold what belongs into the head: lengths, codings, Host, \
                    Connection, Upgrade, Trailer, TE, Expect, credentials or types");
    }
    Ok(())
}

/// Checks a path.
///
/// # Errors
/// What is wrong with it.
pub(super) fn path(path: &str) -> Result<(), &'static str> {
    if is_plain(path.as_bytes()) {
        return Ok(());
    }
    if path.contains('\\') {
        return Err("the path must not hold a backslash");
    }
    // Compared after decoding dots: `%2e%2e` climbs as well as `..` does in some servers.
    let decoded;
    let dots = if path.contains("%2") {
        decoded = path.replace("%2e", ".").replace("%2E", ".");
        &decoded
    } else {
        path
    };
    let mut segments = dots.split('/').skip(1).peekable();
    while let Some(segment) = segments.next() {
        if segment == "." || segment == ".." {
            return Err("the path must not hold the segments \".\" and \"..\"");
        }
        if segment.is_empty() && segments.peek().is_some() {
            return Err("the path must not hold empty segments");
        }
    }
    Ok(())
}

/// Whether a path holds nothing that [`path`] would have to look at: most do not.
fn is_plain(path: &[u8]) -> bool {
    let plain = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'/' | b'_' | b'-');
    path.iter().all(plain) && !path.windows(2).any(|two| two == b"//")
}

fn host(version: Version, host: Once<'_>) -> Result<(), &'static str> {
    match host {
        // Health checks of load balancers still speak HTTP/1.0 without a Host.
        Once::Never if version == Version::HTTP_10 => Ok(()),
        Once::Never => Err("the Host header is missing"),
        Once::Often => Err("the Host header is given more than once"),
        Once::One(host) if valid_host(host.as_bytes()) => Ok(()),
        Once::One(_) => Err("the Host header is not a host name or address with an optional port"),
    }
}

fn valid_host(host: &[u8]) -> bool {
    let (name, port) = match host.strip_prefix(b"[") {
        Some(rest) => {
            let Some(end) = rest.iter().position(|b| *b == b']') else { return false };
            let (address, rest) = rest.split_at(end);
            let hex = |b: &u8| b.is_ascii_hexdigit() || matches!(b, b':' | b'.');
            if address.is_empty() || !address.iter().all(hex) {
                return false;
            }
            (address, &rest[1..])
        }
        None => {
            let end = host.iter().position(|b| *b == b':').unwrap_or(host.len());
            let (name, rest) = host.split_at(end);
            let ok = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
            if !name.iter().all(ok) {
                return false;
            }
            (name, rest)
        }
    };
    let port_ok = match port.split_first() {
        None => true,
        Some((b':', digits)) => digits.len() <= 5 && digits.iter().all(u8::is_ascii_digit),
        Some(_) => false,
    };
    !name.is_empty() && port_ok
}

fn framing(coding: Once<'_>, length: Once<'_>) -> Result<(), &'static str> {
    match coding {
        Once::Never => {}
        Once::One(coding) if coding.as_bytes().eq_ignore_ascii_case(b"chunked") => {}
        Once::One(_) | Once::Often => {
            return Err("Transfer-Encoding must be exactly \"chunked\"");
        }
    }
    match length {
        Once::Never => Ok(()),
        Once::One(_) if matches!(coding, Once::One(_)) => {
            Err("Content-Length and Transfer-Encoding exclude each other")
        }
        Once::One(length) => {
            let digits = length.as_bytes();
            let plain = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
            if plain && (digits.len() == 1 || digits[0] != b'0') {
                Ok(())
            } else {
                Err("Content-Length must be a decimal number without leading zeros")
            }
        }
        Once::Often => Err("Content-Length is given more than once"),
    }
}

fn connection(headers: &HeaderMap) -> Result<(), &'static str> {
    for value in headers.get_all(header::CONNECTION) {
        for token in value.as_bytes().split(|b| *b == b',') {
            let token = token.trim_ascii();
            if !OPTIONS.iter().any(|option| token.eq_ignore_ascii_case(option)) {
                return Err(
                    "Connection may hold only \"close\", \"keep-alive\", \"TE\" and what offers an upgrade",
                );
            }
        }
    }
    let mut expects = headers.get_all(header::EXPECT).iter();
    match (expects.next(), expects.next()) {
        (None, _) => Ok(()),
        (Some(e), None) if e.as_bytes().eq_ignore_ascii_case(b"100-continue") => Ok(()),
        _ => Err("Expect may only be \"100-continue\""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, HeaderValue::from_static("localhost:8711"));
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    fn post(pairs: &[(&'static str, &'static str)]) -> Result<(), &'static str> {
        let uri = Uri::from_static("/v1/chat/completions");
        check(&Method::POST, &uri, Version::HTTP_11, &with(pairs))
    }

    #[test]
    fn ordinary_clients_pass() {
        post(&[("content-length", "0")]).unwrap();
        post(&[("content-length", "10"), ("connection", "keep-alive")]).unwrap();
        post(&[("transfer-encoding", "Chunked"), ("connection", "Close, TE")]).unwrap();
        post(&[("content-length", "5"), ("expect", "100-Continue")]).unwrap();
        post(&[("connection", "Upgrade, HTTP2-Settings"), ("upgrade", "h2c")]).unwrap();
        post(&[("connection", "upgrade")]).unwrap();
    }

    #[test]
    fn framing_tricks_fail() {
        for bad in [",chunked", "gzip, chunked", "chunked, chunked", "identity", "chunked,", ""] {
            assert!(post(&[("transfer-encoding", bad)]).is_err(), "{bad:?}");
        }
        let doubled = [("transfer-encoding", "identity"), ("transfer-encoding", "chunked")];
        assert!(post(&doubled).is_err());
        for bad in ["05", "00", "+5", "5,5", "-1", "", "0x5", "5 "] {
            assert!(post(&[("content-length", bad)]).is_err(), "{bad:?}");
        }
        assert!(post(&[("content-length", "5"), ("content-length", "5")]).is_err());
        assert!(post(&[("content-length", "5"), ("transfer-encoding", "chunked")]).is_err());
    }

    #[test]
    fn connection_tricks_fail() {
        assert!(post(&[("connection", "content-length, host")]).is_err());
        assert!(post(&[("connection", "x-request-id")]).is_err());
        assert!(post(&[("connection", "upgrade, host")]).is_err());
        assert!(post(&[("connection", "keep-alive, foo")]).is_err());
        for bad in ["", "200-ok", "100-continue, x"] {
            assert!(post(&[("expect", bad)]).is_err(), "{bad:?}");
        }
        assert!(post(&[("expect", "100-continue"), ("expect", "100-continue")]).is_err());
    }

    #[test]
    fn one_valid_host() {
        let get = |version, hosts: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for host in hosts {
                headers.append(header::HOST, HeaderValue::from_static(host));
            }
            check(&Method::GET, &Uri::from_static("/health"), version, &headers)
        };
        for good in ["localhost", "127.0.0.1:8711", "[::1]:8711", "[::1]", "gpu-1.lan.", "a_b:1"] {
            get(Version::HTTP_11, &[good]).unwrap();
        }
        for bad in ["", "a b", "a/b", "u@h", "a:b", "[::1", "[]", "[::1]x", ":80", "a:123456", "é"]
        {
            if let Ok(value) = HeaderValue::from_str(bad) {
                let mut headers = HeaderMap::new();
                headers.insert(header::HOST, value);
                let uri = Uri::from_static("/health");
                let got = check(&Method::GET, &uri, Version::HTTP_11, &headers);
                assert!(got.is_err(), "{bad:?}");
            }
        }
        assert!(get(Version::HTTP_11, &[]).is_err());
        get(Version::HTTP_10, &[]).unwrap();
        assert!(get(Version::HTTP_10, &["a", "a"]).is_err());
    }

    #[test]
    fn targets_and_methods() {
        let get = |method: &str, target: &'static str| {
            let method = Method::from_bytes(method.as_bytes()).unwrap();
            check(&method, &Uri::from_static(target), Version::HTTP_11, &with(&[]))
        };
        for good in
            ["/", "/health", "/v1/models/", "/v1/models/a/b", "/x?a=../b", "/v1/models/a%2Fb"]
        {
            get("GET", good).unwrap();
        }
        for bad in
            ["/../health", "/v1/./models", "/v1/%2e%2E/health", "/v1/.%2e", "//health", "/a//b"]
        {
            assert!(get("GET", bad).is_err(), "{bad}");
        }
        assert!(get("GET", "http://localhost/health").is_err());
        assert!(get("OPTIONS", "*").is_err());
        assert!(get("CONNECT", "localhost:80").is_err());
        for bad in ["TRACE", "CONNECT", "get", "Post", "FOO"] {
            assert!(get(bad, "/health").is_err(), "{bad}");
        }
    }

    #[test]
    fn trailers_cannot_reframe() {
        trailers(&with(&[])).unwrap_err();
        let mut map = HeaderMap::new();
        map.insert("x-checksum", HeaderValue::from_static("1"));
        trailers(&map).unwrap();
        map.insert(header::CONTENT_LENGTH, HeaderValue::from_static("1"));
        trailers(&map).unwrap_err();
    }
}
