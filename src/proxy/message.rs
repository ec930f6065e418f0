//! An engine's answer, from bytes. PURE.
//!
//! Purpose: the head with what decides where the body ends, and the body without its framing. Owner: `upstream`. Invariants: an
//! answer whose end two readers could see at different places is refused; nothing here grows with what an engine sends.

use bytes::Bytes;
use hyper::header::{self, HeaderName, HeaderValue};
use hyper::{HeaderMap, StatusCode};

/// Lines in a head.
const LINES_MAX: usize = 128;
/// Bytes of a head.
pub(super) const HEAD_MAX: usize = 64 << 10;
/// Bytes of extensions between two chunks' data, and of all trailers.
const ASIDE_MAX: u32 = 16 << 10;

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
    let mut lines = [httparse::EMPTY_HEADER; LINES_MAX];
    let mut response = httparse::Response::new(&mut lines);
    let length = match response.parse(bytes) {
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

fn framing(status: StatusCode, headers: &HeaderMap) -> Result<Framing, String> {
    if status.is_informational()
        || status == StatusCode::NO_CONTENT
        || status == StatusCode::NOT_MODIFIED
    {
        return Ok(Framing::Length(0));
    }
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
    match (codings.next(), codings.next()) {
        (None, _) => {}
        (Some(coding), None) if coding.as_bytes().eq_ignore_ascii_case(b"chunked") => {
            return Ok(Framing::Chunked);
        }
        _ => return Err("its Transfer-Encoding is not \"chunked\"".to_owned()),
    }
    let mut lengths = headers.get_all(header::CONTENT_LENGTH).iter();
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
    let closes = |value: &HeaderValue| {
        value
            .as_bytes()
            .split(|b| *b == b',')
            .any(|t| t.trim_ascii().eq_ignore_ascii_case(b"close"))
    };
    let both = headers.contains_key(header::TRANSFER_ENCODING)
        && headers.contains_key(header::CONTENT_LENGTH);
    // Each connection holds one of llama-server's few threads, idle or not: one that waits there keeps others out.
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
            Self::Chunked(chunks) => chunks.at == At::Done,
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

/// Where in the framing of chunks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum At {
    /// In a size, of which so many digits have come.
    #[default]
    Size,
    Extension,
    SizeEnd,
    Data,
    DataEnd,
    DataEndLf,
    /// At the start of a trailer, or of the last line end.
    Line,
    Trailer,
    TrailerEnd,
    End,
    Done,
}

/// The decoder of chunks.
#[derive(Debug, Default)]
pub(super) struct Chunks {
    at: At,
    /// Of the size so far, or of the data to come.
    size: u64,
    digits: u8,
    aside: u32,
}

impl Chunks {
    fn take(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<usize, &'static str> {
        let mut i = 0;
        while let Some(&byte) = bytes.get(i) {
            if self.at == At::Done {
                break;
            }
            if self.at == At::Data {
                let count = usize::try_from(self.size).unwrap_or(usize::MAX).min(bytes.len() - i);
                out.extend_from_slice(&bytes[i..i + count]);
                self.size -= count as u64;
                i += count;
                if self.size == 0 {
                    self.at = At::DataEnd;
                }
                continue;
            }
            self.step(byte)?;
            i += 1;
        }
        Ok(i)
    }

    fn step(&mut self, byte: u8) -> Result<(), &'static str> {
        self.at = match (self.at, byte) {
            (At::Size, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => {
                let digit = char::from(byte).to_digit(16).unwrap_or(0);
                self.digits += 1;
                if self.digits > 15 {
                    return Err("a chunk's size is too long");
                }
                self.size = self.size << 4 | u64::from(digit);
                At::Size
            }
            (At::Size, _) if self.digits == 0 => return Err("a chunk has no size"),
            (At::Size, b'\r') => At::SizeEnd,
            (At::Size, b';' | b' ' | b'\t') => At::Extension,
            (At::Extension, b'\r') => At::SizeEnd,
            (At::SizeEnd, b'\n') => {
                self.digits = 0;
                if self.size == 0 { At::Line } else { At::Data }
            }
            (At::DataEnd, b'\r') => At::DataEndLf,
            (At::DataEndLf, b'\n') => {
                self.aside = 0;
                At::Size
            }
            (At::Line, b'\r') => At::End,
            (At::Trailer, b'\r') => At::TrailerEnd,
            (At::TrailerEnd, b'\n') => At::Line,
            (At::End, b'\n') => At::Done,
            // Neither is passed on, so neither is looked at.
            (At::Extension | At::Line | At::Trailer, _) if byte != b'\n' => {
                self.aside += 1;
                if self.aside > ASIDE_MAX {
                    return Err("a chunk's extension or the trailers have no end");
                }
                if self.at == At::Extension { At::Extension } else { At::Trailer }
            }
            _ => return Err("a chunk's line does not end as it must"),
        };
        Ok(())
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
