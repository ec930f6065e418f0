//! Bytes that nobody meant, for what reads clients and engines. See [`crate::fuzz`].

use hyper::header::{self, HeaderName, HeaderValue};
use hyper::{HeaderMap, Method, Uri, Version};

use super::endpoints::Events;
use super::message::{self, Body};
use super::peek::{Peek, Scan, peek};
use super::route::{Route, route};
use super::{multipart, rewrite};
use crate::fuzz::{fuzz, halves};
use crate::types::DoorSpec;

const JSON: [&str; 22] = [
    "\"",
    "\\u00e9",
    "\\ud83d\\ude00",
    "\\",
    "{",
    "}",
    "[",
    "]",
    ":",
    ",",
    "\"model\"",
    "\"m\"",
    "\"stream\"",
    "true",
    "null",
    "1e400",
    "-0.5",
    "\"n\":",
    "\u{1f600}",
    "\0",
    " ",
    "\"max_tokens\"",
];

#[test]
fn fuzz_body_scan() {
    fuzz("body", &JSON, |input| {
        let whole = peek(input);
        let (front, back) = halves(input);
        let mut scan = Scan::new();
        let cut = scan.feed(front).and_then(|()| scan.feed(back)).and_then(|()| scan.finish());
        assert_eq!(cut.is_ok(), whole.is_ok());
        let Ok(found) = whole else { return };
        // What we let through reads the same to everybody else.
        let value: serde_json::Value = serde_json::from_slice(input).unwrap();
        let model = value["model"].as_str().unwrap();
        assert!(model == found.model || model.len() > crate::types::ModelName::LENGTH_MAX);
        assert_eq!(value["stream"].as_bool().unwrap_or(false), found.stream);
        let spec = DoorSpec { served_name: Some("other".into()), ..DoorSpec::default() };
        let written = rewrite::rewrite(&bytes::Bytes::copy_from_slice(input), &spec, Events::Chat);
        assert_eq!(peek(&written).unwrap().model, "other");
    });
}

fn parts(input: &[u8]) -> (Method, Option<Uri>, HeaderMap) {
    let mut lines = input.split(|b| *b == b'\n');
    let method = Method::from_bytes(lines.next().unwrap_or_default()).unwrap_or(Method::POST);
    let uri = Uri::try_from(lines.next().unwrap_or_default()).ok();
    let mut headers = HeaderMap::new();
    for line in lines.take(50) {
        let mut parts = line.splitn(2, |b| *b == b':');
        let name = HeaderName::from_bytes(parts.next().unwrap_or_default());
        let value = HeaderValue::from_bytes(parts.next().unwrap_or_default());
        if let (Ok(name), Ok(value)) = (name, value) {
            headers.append(name, value);
        }
    }
    (method, uri, headers)
}

#[test]
fn fuzz_route_and_headers() {
    let words = [
        "/v1/",
        "chat/completions",
        "models/",
        "%2f",
        "..",
        "//",
        "\\",
        "\n",
        "host:a",
        "content-length:1",
        "transfer-encoding:chunked",
        "connection:",
        "upgrade:websocket",
        "expect:100-continue",
        "GET",
        "POST",
        "/v1/responses/",
        "/cancel",
        "?model=",
        "sec-websocket-key:",
    ];
    fuzz("route", &words, |input| {
        let (method, Some(uri), headers) = parts(input) else { return };
        match route(&method, &uri, Version::HTTP_11, &headers) {
            Ok(found) => {
                assert_eq!(headers.get_all(header::HOST).iter().count(), 1);
                assert!(headers.get_all(header::CONTENT_LENGTH).iter().count() <= 1);
                assert!(uri.path().split('/').all(|segment| segment != ".."));
                assert!(!uri.path().contains('\\'));
                if let Route::Inference(task) = found {
                    assert_eq!(method, Method::POST);
                    assert!(task.path().starts_with('/') && !task.path().contains('%'));
                }
            }
            Err(error) => assert!(error.status.is_client_error(), "{error:?}"),
        }
    });
}

#[test]
fn fuzz_multipart() {
    let words = [
        "--b\r\n",
        "--b--\r\n",
        "\r\n\r\n",
        "content-disposition: form-data; name=\"model\"",
        "name=",
        "filename=\"x\"",
        "\"",
        "\r\n",
        "--b",
        "whisper",
    ];
    fuzz("multipart", &words, |input| {
        let (front, back) = halves(input);
        for (content_type, body) in
            [(&b"multipart/form-data; boundary=b"[..], input), (front, back)]
        {
            match multipart::peek(Some(content_type), body) {
                Ok(found) => {
                    let Peek { model, stream } = &found.peek;
                    assert!(!stream || body.len() > model.len());
                    let part = &body[found.model.clone()];
                    let value = part.windows(4).position(|w| w == b"\r\n\r\n").unwrap() + 4;
                    assert!(part[value..].starts_with(model.as_bytes()));
                    let renamed = multipart::renamed(body, found.model, "x");
                    let again = multipart::peek(Some(content_type), &renamed).unwrap();
                    assert_eq!(again.peek, Peek { model: "x".into(), stream: *stream });
                }
                Err(error) => assert!(error.status.is_client_error()),
            }
        }
    });
}

/// All that comes out of a body that came in these pieces; `None`: it was refused.
fn relayed(body: &mut Body, pieces: [&[u8]; 2]) -> Option<(Vec<u8>, bool)> {
    let mut out = Vec::new();
    for piece in pieces {
        let used = body.take(piece, &mut out).ok()?;
        assert!(used <= piece.len());
    }
    Some((out, body.is_whole()))
}

#[test]
fn fuzz_sse_relay() {
    let words = [
        "HTTP/1.1 200 OK\r\n",
        "transfer-encoding: chunked\r\n",
        "content-length: 5\r\n",
        "\r\n",
        "\r\n\r\n",
        "5\r\n",
        "data: x\n\n",
        "0\r\n\r\n",
        ";x=y",
        "ffffffffffffffff",
        "connection: close\r\n",
        "HTTP/1.1 100 x\r\n\r\n",
    ];
    fuzz("relay", &words, |input| {
        let Ok(Some(head)) = message::head(input) else { return };
        let body = &input[head.length..];
        let whole = relayed(&mut head.framing.into(), [body, b""]);
        let (front, back) = halves(body);
        let cut = relayed(&mut head.framing.into(), [front, back]);
        assert_eq!(cut, whole);
        if let Some((out, _)) = whole {
            assert!(out.len() <= body.len());
        }
    });
}
