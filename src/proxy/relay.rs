//! An engine's answer on its way to the client.
//!
//! Purpose: pass bytes on as they come, and know how the answer ended. Owner: the answer's body. Invariants: the lease is
//! returned as soon as the engine has nothing left to do for the request, or the client is gone; the engine's connection is closed
//! before the lease is returned; a stream that broke off ends with an error event, any other answer that broke off ends in
//! an error.

use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::SizeHint;
use hyper::header::HeaderValue;

use super::chunks::Chunks;
use super::endpoints::Events;
use super::error::ApiError;
use super::forward::Engines;
use super::grant::Grant;
use super::message::{Body, Framing};
use super::port::Side;
use super::upstream::Conn;
use crate::supervisor::handle::Meter;

/// An answer that broke off.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the engine's answer broke off after {after} bytes: {cause}")]
pub(super) struct Broken {
    after: u64,
    cause: String,
    /// Who broke it off.
    pub by: Side,
}

/// What must live as long as the engine works for the request. The order of the fields is the order of their ends.
#[derive(Debug)]
struct Held {
    conn: Conn,
    body: Body,
    grant: Grant,
    /// Where the connection goes after a whole answer; `None`: it is closed.
    keep: Option<Arc<Engines>>,
}

impl Held {
    /// The answer is whole: the connection is free, then the grant is.
    fn end(self) {
        let Self { conn, body: _, grant, keep } = self;
        // One that runs elsewhere is reached anew each time: nobody here knows how long it keeps a connection.
        if let (Some(engines), Some(stream), Some(lease)) = (keep, conn.rest(), grant.lease()) {
            engines.pool.put(lease.instance(), stream);
        }
        drop(grant);
    }
}

/// The bytes of an engine's answer.
#[derive(Debug)]
pub(super) struct Relay {
    held: Option<Held>,
    /// What it carries, if it is a stream of server-sent events, and for which request.
    events: Option<(Events, HeaderValue)>,
    /// Something can be appended: the client knows of no length.
    open: bool,
    /// Where the chunks of a stream from one of our engines are counted.
    meter: Option<(Meter, Chunks)>,
    sent: u64,
    /// The last bytes sent, to know whether an event is still open.
    tail: [u8; 4],
    mended: Option<Broken>,
    /// To be told when what came before has gone out.
    broken: Option<Broken>,
}

impl Relay {
    /// `keep`: the connection may serve another request; `events`: what it carries, if it is a stream of server-sent
    /// events, and the request's ID. Where its engine stated no length, an error event can be appended.
    pub fn new(
        conn: Conn,
        framing: Framing,
        grant: Grant,
        keep: Option<Arc<Engines>>,
        events: Option<(Events, HeaderValue)>,
    ) -> Self {
        grant.heard();
        let meter = grant
            .lease()
            .filter(|_| events.is_some())
            .map(|lease| (lease.meter().clone(), Chunks::default()));
        let open = !matches!(framing, Framing::Length(_));
        let held = Some(Held { conn, body: framing.into(), grant, keep });
        let (sent, tail) = (0, [0; 4]);
        let mut relay = Self { held, events, open, meter, sent, tail, mended: None, broken: None };
        relay.end_if_whole();
        relay
    }

    /// The client has another head than the engine's, which states no length.
    pub fn open(&mut self) {
        self.open = true;
    }

    fn end_if_whole(&mut self) {
        if let Some(held) = self.held.take_if(|held| held.body.is_whole()) {
            held.end();
        }
    }

    /// The next bytes.
    pub fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Broken>>> {
        if let Some(broken) = self.broken.take() {
            return Poll::Ready(Some(Err(broken)));
        }
        let Some(held) = &mut self.held else { return Poll::Ready(None) };
        match std::task::ready!(held.conn.poll_data(&mut held.body, cx)) {
            Ok(data) => {
                held.grant.heard();
                // With the last byte, not after it: the client may ask again at once.
                self.end_if_whole();
                if let Some(data) = &data {
                    self.note(data);
                }
                Poll::Ready(data.map(Ok))
            }
            Err(cause) => {
                let broken = Broken { after: self.sent, cause, by: Side::Engine };
                let status = hyper::StatusCode::BAD_GATEWAY;
                let error = ApiError::new(status, "engine_failed", broken.to_string());
                self.break_off(broken, &error, cx)
            }
        }
    }

    /// Ends it before the engine does, because the daemon ends.
    pub fn end_early(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Broken>>> {
        let error = ApiError::drained();
        let (after, cause) = (self.sent, error.message.clone());
        let broken = Broken { after, cause, by: Side::Host };
        self.break_off(broken, &error, cx)
    }

    fn break_off(
        &mut self,
        broken: Broken,
        error: &ApiError,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, Broken>>> {
        self.held = None;
        let Some((events, id)) = self.events.as_ref().filter(|_| self.open) else {
            // What was given out before goes to the client first: an error makes hyper forget it.
            self.broken = Some(broken);
            cx.waker().wake_by_ref();
            return Poll::Pending;
        };
        let event = self.closed(&error.event(*events, id));
        self.mended = Some(broken);
        Poll::Ready(Some(Ok(event)))
    }

    /// Whether it is a stream of server-sent events.
    pub fn is_events(&self) -> bool {
        self.events.is_some()
    }

    /// Whether all bytes were given out.
    pub const fn is_end(&self) -> bool {
        self.held.is_none() && self.broken.is_none()
    }

    /// What is known of the number of bytes to come.
    pub fn size_hint(&self) -> SizeHint {
        match &self.held {
            Some(held) => held.body.left().map_or_else(SizeHint::default, SizeHint::with_exact),
            None => SizeHint::with_exact(0),
        }
    }

    /// How the engine's stream broke off, when the client was told by an event.
    pub fn take_mended(&mut self) -> Option<Broken> {
        self.mended.take()
    }

    fn note(&mut self, data: &Bytes) {
        if let Some((meter, chunks)) = &mut self.meter {
            meter.add(chunks.count(data));
        }
        self.sent = self.sent.saturating_add(u64::try_from(data.len()).unwrap_or(u64::MAX));
        let last = &data[data.len().saturating_sub(4)..];
        self.tail.rotate_left(last.len());
        let from = self.tail.len() - last.len();
        self.tail[from..].copy_from_slice(last);
    }

    /// An error's event, behind the end of one that is still open, and no more: an empty event of its own makes some clients fail.
    fn closed(&self, error: &[u8]) -> Bytes {
        let end = match &self.tail {
            _ if self.sent == 0 => "",
            [.., b'\n', b'\n'] | [b'\r', b'\n', b'\r', b'\n'] => "",
            [.., b'\n'] => "\n",
            _ => "\n\n",
        };
        let mut event = Vec::from(end.as_bytes());
        event.extend_from_slice(error);
        event.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_event_closes_what_is_open_and_nothing_else() {
        let prefix = |sent: &[&str]| {
            let mut relay = Relay {
                held: None,
                events: None,
                open: true,
                meter: None,
                sent: 0,
                tail: [0; 4],
                mended: None,
                broken: None,
            };
            for chunk in sent {
                relay.note(&Bytes::copy_from_slice(chunk.as_bytes()));
            }
            let event = relay.closed(b"data: {{}}\n\n");
            let text = String::from_utf8(event.to_vec()).unwrap();
            assert!(text.ends_with("}}\n\n"), "{text}");
            text.split("data: ").next().unwrap().to_owned()
        };
        assert_eq!(prefix(&[]), "");
        assert_eq!(prefix(&["data: 1\n\n"]), "");
        assert_eq!(prefix(&["data: 1\r\n", "\r\n"]), "");
        assert_eq!(prefix(&["data: 1\n", "\n"]), "");
        assert_eq!(prefix(&["data: 1\n"]), "\n");
        assert_eq!(prefix(&["data: {\"a"]), "\n\n");
        assert_eq!(prefix(&["d"]), "\n\n");
        assert_eq!(prefix(&["data: 1", "\n", "\n", ""]), "");
    }
}
