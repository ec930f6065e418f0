//! `GET /api/v1/models/{id}/log`: what a model's container wrote last, and what it writes, as server-sent events.
//!
//! Owner: the connection that reads. Invariants: one event a line, its data a JSON string, so that no byte of a log can be taken for
//! the stream's own; a line is cut where it is longer than any screen; where the log ends an event says so, and a stream that ends without it
//! was cut off: the daemon leaves, or the key may not read it any more.

use std::os::fd::OwnedFd;

use bytes::Bytes;
use futures_util::stream;
use tokio::io::{AsyncBufRead, AsyncBufReadExt, BufReader};
use tokio::net::unix::pipe;

use super::events::event;
use crate::proxy::port::ByteStream;

/// Of one line; the rest is left out.
const LINE_MAX: usize = 4096;
/// Lines that were written before somebody looked.
pub(super) const LINES: usize = 200;

/// The lines that come out of a pipe, and that there are no more.
///
/// # Errors
/// If it is no pipe.
pub(super) fn lines(log: OwnedFd) -> std::io::Result<ByteStream> {
    let reader = BufReader::new(pipe::Receiver::from_owned_fd(log)?);
    Ok(Box::pin(stream::unfold(Some(reader), |reader| async move {
        let mut reader = reader?;
        let Some(line) = line(&mut reader).await else {
            // With data, without which nobody is told of an event.
            return Some((event("end", "{}"), None));
        };
        let text = String::from_utf8_lossy(&line);
        // A string cannot fail to serialise.
        let json = serde_json::to_string(text.trim_end()).unwrap_or_default();
        Some((event("line", &json), Some(reader)))
    })))
}

/// The next line, cut; `None`: there is none any more.
async fn line(reader: &mut (impl AsyncBufRead + Unpin)) -> Option<Bytes> {
    let mut line = Vec::new();
    loop {
        // What cannot be read any more is at its end.
        let buffer = reader.fill_buf().await.ok()?;
        if buffer.is_empty() {
            return (!line.is_empty()).then(|| line.into());
        }
        let end = memchr::memchr(b'\n', buffer);
        let part = end.unwrap_or(buffer.len());
        let room = LINE_MAX.saturating_sub(line.len());
        line.extend_from_slice(&buffer[..part.min(room)]);
        let used = end.map_or(part, |at| at + 1);
        reader.consume(used);
        if end.is_some() {
            return Some(line.into());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::StreamExt;
    use std::io::Write as _;

    #[tokio::test]
    async fn each_line_is_an_event_and_the_end_is_the_end() {
        let (read, mut write) = std::io::pipe().unwrap();
        write.write_all(b"one\n\nevent: x\xff\r\n").unwrap();
        write.write_all(&[b'y'; 5000]).unwrap();
        write.write_all(b"\nlast").unwrap();
        drop(write);
        let all: Vec<Bytes> = lines(read.into()).unwrap().collect().await;
        let text = |at: usize| std::str::from_utf8(&all[at]).unwrap();
        assert_eq!(text(0), "event: line\ndata: \"one\"\n\n");
        assert_eq!(text(1), "event: line\ndata: \"\"\n\n");
        assert_eq!(text(2), "event: line\ndata: \"event: x\u{fffd}\"\n\n");
        assert_eq!(text(3).matches('y').count(), LINE_MAX);
        assert_eq!(text(4), "event: line\ndata: \"last\"\n\n");
        assert_eq!(text(5), "event: end\ndata: {}\n\n");
        assert_eq!(all.len(), 6);
    }
}
