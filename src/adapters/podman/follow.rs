//! A container's log as a pipe.
//!
//! Purpose: whoever may read logs gets a descriptor and follows at his own pace; nothing of the log is kept here. Invariants: podman's
//! frames are taken out, the text is passed on as the engine wrote it; the work ends with the container, with podman, or when nobody
//! reads any more; a reader that does not read holds back podman, and nobody else.

use std::os::fd::OwnedFd;

use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use tokio::io::{AsyncWriteExt as _, Interest};
use tokio::net::unix::pipe;

use super::error::PodmanError;
use super::wire::{Driver, Wire, encode};

/// Opens the log of a container.
///
/// # Errors
/// Where podman does not answer, or knows no such container.
pub(super) async fn open(
    wire: &Wire,
    container: &str,
    lines: Option<usize>,
    follow: bool,
) -> Result<OwnedFd, PodmanError> {
    let what = "logs";
    let tail = lines.map_or_else(String::new, |lines| format!("&tail={lines}"));
    let container = encode(container);
    let path =
        format!("/containers/{container}/logs?stdout=true&stderr=true&follow={follow}{tail}");
    let (body, driver) = wire.stream(what, &path).await?;
    let failed =
        |e: std::io::Error| PodmanError::Garbage { what: what.into(), detail: e.to_string() };
    let (write, read) = pipe::pipe().map_err(failed)?;
    let read = read.into_blocking_fd().map_err(failed)?;
    tokio::spawn(pump(body, driver, write));
    Ok(read)
}

async fn pump(mut body: Incoming, _connection: Driver, mut write: pipe::Sender) {
    let mut frames = Frames::default();
    loop {
        let frame = tokio::select! {
            frame = body.frame() => frame,
            // Nobody reads any more, and a container may be silent for days.
            _ = write.ready(Interest::ERROR) => return,
        };
        let Some(Ok(frame)) = frame else { return };
        let Ok(data) = frame.into_data() else { continue };
        if write.write_all(&frames.take(&data)).await.is_err() {
            return;
        }
    }
}

/// Takes the headers `[stream, 0, 0, 0, length in 4 bytes, big end first]` out, however the stream is cut. One that is not framed
/// (of a container with a terminal) is its own payload.
#[derive(Debug, Default)]
struct Frames {
    header: Vec<u8>,
    /// Of the present frame still to come.
    left: usize,
    raw: bool,
}

impl Frames {
    fn take(&mut self, mut data: &[u8]) -> Vec<u8> {
        let mut text = Vec::with_capacity(data.len());
        while !data.is_empty() {
            if self.raw {
                text.extend_from_slice(data);
                break;
            }
            if self.left > 0 {
                let (payload, rest) = data.split_at(self.left.min(data.len()));
                text.extend_from_slice(payload);
                self.left -= payload.len();
                data = rest;
                continue;
            }
            let missing = 8_usize.saturating_sub(self.header.len());
            let (part, rest) = data.split_at(missing.min(data.len()));
            self.header.extend_from_slice(part);
            data = rest;
            match *self.header.as_slice() {
                [0..=2, 0, 0, 0, a, b, c, d] => {
                    self.left = u32::from_be_bytes([a, b, c, d]) as usize;
                    self.header.clear();
                }
                [] | [0..=2] | [0..=2, 0] | [0..=2, 0, 0] | [0..=2, 0, 0, 0, ..]
                    if self.header.len() < 8 => {}
                _ => {
                    self.raw = true;
                    text.append(&mut self.header);
                }
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_taken_out_however_they_are_cut() {
        let mut stream = Vec::new();
        for (kind, text) in [(1_u8, "one\n"), (2, ""), (2, "two\nthree"), (1, "\n")] {
            stream.extend([kind, 0, 0, 0]);
            stream.extend(u32::try_from(text.len()).unwrap().to_be_bytes());
            stream.extend(text.as_bytes());
        }
        for size in 1..=stream.len() {
            let mut frames = Frames::default();
            let text: Vec<u8> = stream.chunks(size).flat_map(|part| frames.take(part)).collect();
            assert_eq!(text, b"one\ntwo\nthree\n", "in pieces of {size}");
        }
        let plain = b"no frames at all";
        let mut frames = Frames::default();
        let text: Vec<u8> = plain.chunks(3).flat_map(|part| frames.take(part)).collect();
        assert_eq!(text, plain);
    }
}
