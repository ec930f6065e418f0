//! An engine's answer, from bytes. PURE.
//!
//! Purpose: the head with what decides where the body ends, and the body without its framing. Owner: `upstream`. Invariants: an
//! answer whose end two readers could see at different places is refused; nothing here grows with what an engine sends.

mod chunked;

use std::mem::MaybeUninit;

use bytes::Bytes;
use hyper::header::{self, HeaderName, HeaderValue};
use hyper::{HeaderMap, StatusCode};

use chunked::Chunks;

use super::strict::all;

/// Lines in a head.
const LINES_MAX: usize = 128;
/// Bytes of a head.
pub(super) const HEAD_MAX: usize = 64 << 10;

/// How a body's end is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    /// So many bytes.
    Length(u64),
    /// Chunks.
    Chunked,
    /// The connection's end, which a broken connection looks like.
    Close,
}

/// A head.
#[derive(Debug)]
pub(super) struct Head {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub framing: Framing,
    /// Another request may follow on the connection.
    pub lasting: bool,
    /// Its bytes.
    pub length: usize,
}

/// Reads a head; `None`: it is not whole yet.
///
/// # Errors
/// What is wrong with it.
pub(super) fn head(bytes: &[u8]) -> Result<Option<Head>, String> {
    // Not written before it is known how many there are: it is most of what a small head costs.
    let mut lines = [const { MaybeUninit::uninit() }; LINES_MAX];
    let mut response = httparse::Response::new(&mut []);
    let parsed = httparse::ParserConfig::default().parse_response_with_uninit_headers(
        &mut response,
        bytes,
        &mut lines,
    );
    let length = match parsed {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) if bytes.len() >= HEAD_MAX => {
            return Err(format!("its head is longer than {HEAD_MAX} bytes"));
        }
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(error) => return Err(format!("its head is not HTTP: {error}")),
    };
    let status = StatusCode::from_u16(response.code.unwrap_or(0)).map_err(|e| e.to_string())?;
    let mut headers = HeaderMap::with_capacity(response.headers.len() + 2);
    // One copy for all values.
    let all = Bytes::copy_from_slice(&bytes[..length]);
    for line in response.headers.iter() {
        let name = HeaderName::from_bytes(line.name.as_bytes()).map_err(|e| e.to_string())?;
        let value = match line.value {
            [] => Ok(HeaderValue::from_static("")),
            value => {
                let start = value.as_ptr().addr() - bytes.as_ptr().addr();
                HeaderValue::from_maybe_shared(all.slice(start..start + value.len()))
            }
        };
        headers.append(name, value.map_err(|e| e.to_string())?);
    }
    let framing = framing(status, &headers)?;
    let lasting = response.version == Some(1) && framing != Framing::Close && lasting(&headers);
    Ok(Some(Head { status, headers, framing, lasting, length }))
}

/// What decides of a connection's end. Most heads have none of it, and names are sooner compared than looked up.
const LASTING: [HeaderName; 3] = [header::TRANSFER_ENCODING, header::CONNECTION, header::SERVER];

fn framing(status: StatusCode, headers: &HeaderMap) -> Result<Framing, String> {
    if status.is_informational()
        || status == StatusCode::NO_CONTENT
        || status == StatusCode::NOT_MODIFIED
    {
        return Ok(Framing::Length(0));
    }
    let mut codings = all(headers, header::TRANSFER_ENCODING);
    match (codings.next(), codings.next()) {
        (None, _) => {}
        (Some(coding), None) if coding.as_bytes().eq_ignore_ascii_case(b"chunked") => {
            return Ok(Framing::Chunked);
        }
        _ => return Err("its Transfer-Encoding is not \"chunked\"".to_owned()),
    }
    let mut lengths = all(headers, header::CONTENT_LENGTH);
    let Some(length) = lengths.next() else { return Ok(Framing::Close) };
    let digits = length.as_bytes();
    let plain = (1..=18).contains(&digits.len()) && digits.iter().all(u8::is_ascii_digit);
    if !plain || lengths.any(|other| other != length) {
        return Err("its Content-Length is not one number".to_owned());
    }
    let number = length.to_str().ok().and_then(|text| text.parse().ok());
    number.map(Framing::Length).ok_or_else(|| "its Content-Length is not a number".to_owned())
}

fn lasting(headers: &HeaderMap) -> bool {
    if !headers.keys().any(|name| LASTING.contains(name)) {
        return true;
    }
    let closes = |value: &HeaderValue| {
        value
            .as_bytes()
            .split(|b| *b == b',')
            .any(|t| t.trim_ascii().eq_ignore_ascii_case(b"close"))
    };
    let both = headers.contains_key(header::TRANSFER_ENCODING)
        && headers.contains_key(header::CONTENT_LENGTH);
    // Each connection holds one of llama-server's few threads, idle or not: one that waits there keeps others out. And behind a stream
    // it closes, whatever it has said.
    let server = headers.get(header::SERVER).map_or(&b""[..], HeaderValue::as_bytes);
    !both
        && !server.starts_with(b"llama.cpp")
        && !headers.get_all(header::CONNECTION).iter().any(closes)
}

/// A body being read.
#[derive(Debug)]
pub(super) enum Body {
    /// So many bytes are missing.
    Length(u64),
    Chunked(Chunks),
    Close,
}

impl From<Framing> for Body {
    fn from(framing: Framing) -> Self {
        match framing {
            Framing::Length(length) => Self::Length(length),
            Framing::Chunked => Self::Chunked(Chunks::default()),
            Framing::Close => Self::Close,
        }
    }
}

impl Body {
    /// Whether nothing is missing. A body that ends with the connection never says so.
    pub fn is_whole(&self) -> bool {
        match self {
            Self::Length(left) => *left == 0,
            Self::Chunked(chunks) => chunks.are_whole(),
            Self::Close => false,
        }
    }

    /// The number of bytes to come, where it is known.
    pub const fn left(&self) -> Option<u64> {
        match self {
            Self::Length(left) => Some(*left),
            Self::Chunked(_) | Self::Close => None,
        }
    }

    /// Whether that many bytes are all the body's own; then they are taken.
    pub fn takes_all(&mut self, count: usize) -> bool {
        let Self::Length(left) = self else { return matches!(self, Self::Close) };
        let rest = left.checked_sub(count as u64);
        *left = rest.unwrap_or(*left);
        rest.is_some()
    }

    /// Takes bytes in, gives the body's own out, and says how many were used; those behind the body's end are not.
    ///
    /// # Errors
    /// What is wrong with the framing.
    pub fn take(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<usize, &'static str> {
        match self {
            Self::Length(left) => {
                let count = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                out.extend_from_slice(&bytes[..count]);
                *left -= count as u64;
                Ok(count)
            }
            Self::Chunked(chunks) => chunks.take(bytes, out),
            Self::Close => {
                out.extend_from_slice(bytes);
                Ok(bytes.len())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> Result<Option<Head>, String> {
        head(text.as_bytes())
    }

    fn framed(lines: &str) -> Result<(Framing, bool), String> {
        parse(&format!("HTTP/1.1 200 OK\r\n{lines}\r\n"))
            .map(|h| h.unwrap())
            .map(|h| (h.framing, h.lasting))
    }

    #[test]
    fn heads() {
        assert!(parse("HTTP/1.1 200 OK\r\ncontent-len").unwrap().is_none());
        let whole =
            parse("HTTP/1.1 429 Too Many\r\nX-A: 1\r\nx-a: 2\r\n\r\nbody").unwrap().unwrap();
        assert_eq!((whole.status.as_u16(), whole.length), (429, 41));
        assert_eq!(whole.headers.get_all("x-a").iter().count(), 2);
        for bad in
            ["220 smtp ready\r\n\r\n", "HTTP/2 200 OK\r\n\r\n", "HTTP/1.1 99 x\r\n\r\n", "\0"]
        {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
        assert!(
            head(&[b"HTTP/1.1 200 OK\r\nx: ".to_vec(), vec![b'y'; HEAD_MAX]].concat()).is_err()
        );
    }

    #[test]
    fn where_a_body_ends() {
        assert_eq!(framed("content-length: 5\r\n"), Ok((Framing::Length(5), true)));
        assert_eq!(
            framed("content-length: 5\r\nconnection: x, Close\r\n"),
            Ok((Framing::Length(5), false))
        );
        assert_eq!(
            framed("content-length: 5\r\nserver: llama.cpp\r\n"),
            Ok((Framing::Length(5), false))
        );
        assert_eq!(framed("transfer-encoding: Chunked\r\n"), Ok((Framing::Chunked, true)));
        assert_eq!(
            framed("transfer-encoding: chunked\r\ncontent-length: 5\r\n"),
            Ok((Framing::Chunked, false))
        );
        assert_eq!(framed(""), Ok((Framing::Close, false)));
        for bad in [
            "transfer-encoding: gzip, chunked\r\n",
            "transfer-encoding: identity\r\ntransfer-encoding: chunked\r\n",
            "content-length: 5\r\ncontent-length: 6\r\n",
            "content-length: +5\r\n",
            "content-length: 9999999999999999999\r\n",
            "content-length:\r\n",
        ] {
            assert!(framed(bad).is_err(), "{bad:?}");
        }
        let old = parse("HTTP/1.0 200 OK\r\ncontent-length: 5\r\n\r\n").unwrap().unwrap();
        assert!(!old.lasting);
        let none = parse("HTTP/1.1 204 No\r\ntransfer-encoding: chunked\r\n\r\n").unwrap().unwrap();
        assert_eq!(none.framing, Framing::Length(0));
    }

    fn decode(pieces: &[&[u8]]) -> Result<(Vec<u8>, bool, usize), &'static str> {
        let (mut body, mut out, mut used) = (Body::from(Framing::Chunked), Vec::new(), 0);
        for piece in pieces {
            used += body.take(piece, &mut out)?;
        }
        Ok((out, body.is_whole(), used))
    }

    #[test]
    fn chunks() {
        let all = b"3\r\nabc\r\n00A;x=\"y\"\r\n0123456789\r\n0\r\nx: 1\r\n\r\nrest";
        let (out, whole, used) = decode(&[all]).unwrap();
        assert_eq!((out.as_slice(), whole, used), (&b"abc0123456789"[..], true, all.len() - 4));
        assert_eq!(decode(&[b"3\r\nab"]).unwrap(), (b"ab".to_vec(), false, 5));
        let endless = [b"1;".to_vec(), vec![b'a'; 20 << 10]].concat();
        let bad: [&[u8]; 11] = [
            b"\r\n",
            b"x\r\n",
            b"-1\r\n",
            b"3\nabc\r\n",
            b"3\r\nabcd\r\n",
            b"3\r\nabc\n",
            b"0\r\n\n",
            b"1;a\nx",
            b"0000000000000001\r\n",
            b"ffffffffffffffff\r\n",
            &endless,
        ];
        for bad in bad {
            assert!(decode(&[bad]).is_err(), "{:?}", String::from_utf8_lossy(bad));
        }
    }

    proptest! {
        #[test]
        fn cuts_make_no_difference(
            data in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..40), 0..6),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
        ) {
            let mut raw = Vec::new();
            for piece in &data {
                raw.extend_from_slice(format!("{:X}\r\n", piece.len()).as_bytes());
                raw.extend_from_slice(piece);
                raw.extend_from_slice(b"\r\n");
            }
            raw.extend_from_slice(b"0\r\n\r\n");
            let mut cuts: Vec<usize> = cuts.iter().map(|c| c.index(raw.len())).collect();
            cuts.extend([0, raw.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&[u8]> = cuts.windows(2).map(|w| &raw[w[0]..w[1]]).collect();
            prop_assert_eq!(decode(&pieces), Ok((data.concat(), true, raw.len())));
        }
    }
}
