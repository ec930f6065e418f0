//! An engine's answer on its way to the client.
//!
//! Purpose: pass bytes on as they come, and know how the answer ended. Owner: the answer's body. Invariants: the lease is
//! returned as soon as the engine has nothing left to do for the request, or the client is gone; the engine's connection is closed
//! before the lease is returned; a stream that broke off ends with an error event, any other answer that broke off ends in
//! an error.

use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Body, Incoming, SizeHint};
use tokio::task::JoinHandle;

use super::endpoints::Events;
use super::error::ApiError;
use super::grant::Grant;

/// An answer that broke off.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the engine's answer broke off after {after} bytes: {cause}")]
pub(super) struct Broken {
    after: u64,
    cause: String,
}

/// The task that moves an engine connection's bytes; it ends, and the connection with it, when this is dropped.
#[derive(Debug)]
pub(super) struct Driver(JoinHandle<()>);

impl Driver {
    /// Runs a connection.
    pub fn spawn(connection: impl Future<Output = ()> + Send + 'static) -> Self {
        Self(tokio::spawn(connection))
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What must live as long as the engine works for the request. The order of the fields is the order of their ends.
#[derive(Debug)]
struct Held {
    body: Incoming,
    _driver: Driver,
    _grant: Grant,
}

/// The bytes of an engine's answer.
#[derive(Debug)]
pub(super) struct Relay {
    held: Option<Held>,
    /// What it carries, if it is a stream of server-sent events.
    events: Option<Events>,
    sent: u64,
    /// The last bytes sent, to know whether an event is still open.
    tail: [u8; 4],
    mended: Option<Broken>,
}

impl Relay {
    /// `events`: the answer is a stream of server-sent events, to which an error event can be appended, and carries these.
    pub fn new(body: Incoming, driver: Driver, grant: Grant, events: Option<Events>) -> Self {
        let held = Held { body, _driver: driver, _grant: grant };
        Self { held: Some(held), events, sent: 0, tail: [0; 4], mended: None }
    }

    /// The next bytes.
    pub fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Broken>>> {
        loop {
            let Some(held) = &mut self.held else { return Poll::Ready(None) };
            match std::task::ready!(std::pin::Pin::new(&mut held.body).poll_frame(cx)) {
                Some(Ok(frame)) => {
                    // Trailers are hop-by-hop here: the client was not promised any.
                    let Ok(data) = frame.into_data() else { continue };
                    self.note(&data);
                    return Poll::Ready(Some(Ok(data)));
                }
                None => {
                    self.held = None;
                    return Poll::Ready(None);
                }
                Some(Err(error)) => {
                    self.held = None;
                    let broken = Broken { after: self.sent, cause: chain(&error) };
                    let Some(events) = self.events else {
                        return Poll::Ready(Some(Err(broken)));
                    };
                    let event = self.error_event(&broken, events);
                    self.mended = Some(broken);
                    return Poll::Ready(Some(Ok(event)));
                }
            }
        }
    }

    /// Whether it is a stream of server-sent events.
    pub fn is_events(&self) -> bool {
        self.events.is_some()
    }

    /// Whether all bytes were given out.
    pub fn is_end(&self) -> bool {
        self.held.as_ref().is_none_or(|h| h.body.is_end_stream())
    }

    /// What is known of the number of bytes to come.
    pub fn size_hint(&self) -> SizeHint {
        match &self.held {
            Some(held) => held.body.size_hint(),
            None => SizeHint::with_exact(0),
        }
    }

    /// How the engine's stream broke off, when the client was told by an event.
    pub fn take_mended(&mut self) -> Option<Broken> {
        self.mended.take()
    }

    fn note(&mut self, data: &Bytes) {
        self.sent = self.sent.saturating_add(u64::try_from(data.len()).unwrap_or(u64::MAX));
        let last = &data[data.len().saturating_sub(4)..];
        self.tail.rotate_left(last.len());
        let from = self.tail.len() - last.len();
        self.tail[from..].copy_from_slice(last);
    }

    /// Ends an event that is still open, and no more: an empty event of its own makes some clients fail.
    fn error_event(&self, broken: &Broken, events: Events) -> Bytes {
        let end = match &self.tail {
            _ if self.sent == 0 => "",
            [.., b'\n', b'\n'] | [b'\r', b'\n', b'\r', b'\n'] => "",
            [.., b'\n'] => "\n",
            _ => "\n\n",
        };
        let error =
            ApiError::new(hyper::StatusCode::BAD_GATEWAY, "engine_failed", broken.to_string());
        let mut event = Vec::from(end.as_bytes());
        event.extend_from_slice(&error.event(events));
        event.into()
    }
}

/// An error with its causes in one line.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_event_closes_what_is_open_and_nothing_else() {
        let prefix = |sent: &[&str]| {
            let mut relay = Relay { held: None, events: None, sent: 0, tail: [0; 4], mended: None };
            for chunk in sent {
                relay.note(&Bytes::copy_from_slice(chunk.as_bytes()));
            }
            let event =
                relay.error_event(&Broken { after: relay.sent, cause: "x".into() }, Events::Chat);
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
