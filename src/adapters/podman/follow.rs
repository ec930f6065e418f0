//! A container's log as a pipe.
//!
//! Purpose: whoever may read logs gets a descriptor and follows at his own pace; nothing of the log is kept here. Invariants: podman's
//! frames are taken out, the text is passed on as the engine wrote it; the work ends with the container, or when nobody reads any more; a
//! reader that does not read holds back podman, and nobody else.
//!
//! That podman goes is no end of the container's: a log that is followed goes on, from where it broke off, when podman answers again. A pipe
//! has no way to tell its reader that but a line of ours between those of the engine.

use std::os::fd::OwnedFd;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::FutureExt as _;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use tokio::io::{AsyncWriteExt as _, Interest};
use tokio::net::unix::pipe;

use super::error::PodmanError;
use super::wire::{Driver, Wire, encode};

/// In errors.
const WHAT: &str = "logs";
/// Between two attempts to reach a podman that went.
const PAUSE: Duration = Duration::from_millis(500);
/// An engine's line is written so long before it is here, at most.
const ON_THE_WAY: Duration = Duration::from_secs(1);

/// Which part of whose log.
#[derive(Debug)]
struct Wanted {
    /// Encoded.
    container: String,
    lines: Option<usize>,
    follow: bool,
}

impl Wanted {
    /// podman's path; `since`: not the last lines, but those from a moment on, in seconds since 1970.
    fn path(&self, since: Option<u64>) -> String {
        let Self { container, lines, follow } = self;
        let from = match (since, lines) {
            (Some(since), _) => format!("&since={since}"),
            (None, Some(lines)) => format!("&tail={lines}"),
            (None, None) => String::new(),
        };
        format!("/containers/{container}/logs?stdout=true&stderr=true&follow={follow}{from}")
    }
}

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
    let wanted = Wanted { container: encode(container), lines, follow };
    let opened = wire.stream(WHAT, &wanted.path(None)).await?;
    let failed =
        |e: std::io::Error| PodmanError::Garbage { what: WHAT.into(), detail: e.to_string() };
    let (write, read) = pipe::pipe().map_err(failed)?;
    let read = read.into_blocking_fd().map_err(failed)?;
    tokio::spawn(pump(wire.clone(), wanted, opened, write));
    Ok(read)
}

async fn pump(
    wire: Wire,
    wanted: Wanted,
    (mut body, mut connection): (Incoming, Driver),
    mut write: pipe::Sender,
) {
    let mut so_far = SoFar { heard: SystemTime::now(), in_line: false };
    while so_far.pass_on(body, &mut write).await.is_err() {
        drop(connection);
        let line_end = if std::mem::take(&mut so_far.in_line) { "\n" } else { "" };
        let what_comes = if wanted.follow {
            ", and it goes on when podman answers again; its last lines may come twice"
        } else {
            " before its end"
        };
        let note = format!("{line_end}hostlerd: podman broke this log off{what_comes}\n");
        if write.write_all(note.as_bytes()).await.is_err() || !wanted.follow {
            return;
        }
        let again = tokio::select! {
            again = reopen(&wire, &wanted, so_far.heard) => again,
            _ = write.ready(Interest::ERROR) => return,
        };
        let Some(again) = again else { return };
        (body, connection) = again;
    }
}

/// podman went in the middle of its answer.
#[derive(Debug)]
struct Broken;

/// What the reader has.
#[derive(Debug)]
struct SoFar {
    /// When something came that was waited for.
    heard: SystemTime,
    /// It ends within a line.
    in_line: bool,
}

impl SoFar {
    /// Until podman's answer ends, or nobody reads any more.
    async fn pass_on(
        &mut self,
        mut body: Incoming,
        write: &mut pipe::Sender,
    ) -> Result<(), Broken> {
        let mut frames = Frames::default();
        loop {
            // What was held back by a slow reader is older than now: it may come twice, and must not be left out.
            let frame = match body.frame().now_or_never() {
                Some(held_back) => held_back,
                None => tokio::select! {
                    frame = body.frame() => {
                        self.heard = SystemTime::now();
                        frame
                    }
                    // Nobody reads any more, and a container may be silent for days.
                    _ = write.ready(Interest::ERROR) => return Ok(()),
                },
            };
            let Some(frame) = frame else { return Ok(()) };
            let Ok(data) = frame.map_err(|_| Broken)?.into_data() else { continue };
            let text = frames.take(&data);
            if write.write_all(&text).await.is_err() {
                return Ok(());
            }
            self.in_line = text.last().map_or(self.in_line, |last| *last != b'\n');
        }
    }
}

/// The rest of a log, when podman has it; `None`: there is none any more, for its container is gone.
async fn reopen(wire: &Wire, wanted: &Wanted, heard: SystemTime) -> Option<(Incoming, Driver)> {
    let since = heard.duration_since(UNIX_EPOCH).unwrap_or_default().saturating_sub(ON_THE_WAY);
    let path = wanted.path(Some(since.as_secs()));
    loop {
        tokio::time::sleep(PAUSE).await;
        match wire.stream(WHAT, &path).await {
            Ok(again) => return Some(again),
            Err(PodmanError::Refused { .. }) => return None,
            // Also one that does not begin its answer, as the engine has written nothing since.
            Err(_) => {}
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
