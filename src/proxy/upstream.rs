//! A connection to an engine.
//!
//! Purpose: send one request that we wrote, read one answer, and know whether another request may follow. Owner: `forward`, then
//! the answer's [`super::relay::Relay`]. Invariants: while nothing comes, a connection holds no buffer; dropping it closes it; one
//! may be kept for another request ([`super::pool`]) only where its last answer ended exactly where it said it would.

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use hyper::StatusCode;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use super::message::{self, Body, Head};
use super::stream::Stream;
use crate::supervisor::ports::Endpoint;

/// What is read at once. One such buffer serves all connections of a thread: bytes are copied out of it at their exact size.
const READ: usize = 64 << 10;
thread_local! {
    static BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ].into());
}

/// A piece that a socket's usual room hardly holds.
const LARGE: usize = 128 << 10;

/// Interim answers before the answer.
const INTERIM_MAX: u8 = 16;

/// A connection.
#[derive(Debug)]
pub(super) struct Conn {
    stream: Stream,
    /// What came behind the head, or of one that is not whole.
    carry: Vec<u8>,
    /// The answer's head, or what is wrong with it, where it came before it was waited for.
    early: Option<Box<Result<Head, String>>>,
    /// The request went out whole.
    sent: bool,
    /// The socket was given room for large pieces.
    roomy: bool,
    /// Interim answers that came.
    interim: u8,
}

/// Why there is no head.
#[derive(Debug)]
pub(super) enum Lost {
    /// Before a byte came.
    Silent(io::Error),
    /// Later, or it was none.
    Broken(String),
}

/// What a connection brought that has no head yet.
enum Came {
    /// It, or what is wrong with it.
    Head(Result<Head, String>),
    /// Some of it, which is carried.
    Bytes,
    /// The other side has closed.
    End,
}

impl Conn {
    pub const fn new(stream: Stream) -> Self {
        Self { stream, carry: Vec::new(), early: None, sent: false, roomy: false, interim: 0 }
    }

    /// Sends all of it. Ends early, and well, where the engine answers before it has read everything; an interim answer is none.
    ///
    /// # Errors
    /// If the engine takes no more.
    pub async fn send(&mut self, head: &[u8], body: &[u8]) -> io::Result<()> {
        if body.len() >= LARGE && !std::mem::replace(&mut self.roomy, true) {
            self.stream.make_room();
        }
        let mut slices = [IoSlice::new(head), IoSlice::new(body)];
        let mut left = if body.is_empty() { &mut slices[..1] } else { &mut slices[..] };
        self.sent = false;
        std::future::poll_fn(|cx| {
            if let Poll::Ready(sent) = poll_send(&mut self.stream, &mut left, cx) {
                self.sent = sent.is_ok();
                return Poll::Ready(sent);
            }
            // It waits for nothing but our reading, perhaps.
            let early = ready!(self.poll_answered(cx))?;
            Poll::Ready(if early { Ok(()) } else { Err(io::ErrorKind::ConnectionReset.into()) })
        })
        .await
    }

    /// Whether the last piece that was given to [`Conn::send`] went out whole: where not, the answer is on its way.
    pub const fn is_sent(&self) -> bool {
        self.sent
    }

    /// Waits until the engine begins its answer, though it has not got all yet. May be dropped and called again.
    ///
    /// # Errors
    /// If it has closed instead.
    pub async fn speaks(&mut self) -> io::Result<()> {
        if !std::future::poll_fn(|cx| self.poll_answered(cx)).await? {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.sent = false;
        Ok(())
    }

    /// Waits until the answer has begun, which is then [`Conn::head`]'s to tell; `false`: the other side has closed. After interim ones the
    /// engine may wait for the rest of the request.
    fn poll_answered(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        loop {
            match ready!(self.poll_head(cx))? {
                Came::Head(head) => {
                    self.early = Some(Box::new(head));
                    return Poll::Ready(Ok(true));
                }
                Came::Bytes => {}
                Came::End => return Poll::Ready(Ok(false)),
            }
        }
    }

    /// Waits for the head of the answer; interim ones are passed over, if they are few.
    ///
    /// # Errors
    /// If there is none.
    pub async fn head(&mut self) -> Result<Head, Lost> {
        if let Some(early) = self.early.take() {
            return early.map_err(Lost::Broken);
        }
        let mut any = self.interim > 0 || !self.carry.is_empty();
        loop {
            match std::future::poll_fn(|cx| self.poll_head(cx)).await {
                Ok(Came::Head(head)) => return head.map_err(Lost::Broken),
                Ok(Came::Bytes) => any = true,
                Ok(Came::End) if any => {
                    return Err(Lost::Broken("it closed the connection within its head".into()));
                }
                Ok(Came::End) => return Err(Lost::Silent(io::ErrorKind::UnexpectedEof.into())),
                Err(error) if any => return Err(Lost::Broken(error.to_string())),
                Err(error) => return Err(Lost::Silent(error)),
            }
        }
    }

    /// The head of the answer in `bytes`, if it is whole. What is behind it is carried, and so is what there is of one that is not;
    /// interim ones are counted and forgotten.
    fn find_head(&mut self, mut bytes: &[u8]) -> Result<Option<Head>, String> {
        let mut found = None;
        while !bytes.is_empty()
            && let Some(head) = message::head(bytes)?
        {
            bytes = &bytes[head.length..];
            if !is_interim(head.status) {
                found = Some(head);
                break;
            }
            self.interim += 1;
            if self.interim > INTERIM_MAX {
                return Err(format!("it sent more than {INTERIM_MAX} interim answers"));
            }
        }
        self.carry.extend_from_slice(bytes);
        Ok(found)
    }

    /// What comes next. Most heads come whole, and are read where they came to.
    fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Came>> {
        BUFFER.with_borrow_mut(|buffer| {
            let mut read = ReadBuf::new(buffer);
            ready!(Pin::new(&mut self.stream).poll_read(cx, &mut read))?;
            let bytes = read.filled();
            if bytes.is_empty() {
                return Poll::Ready(Ok(Came::End));
            }
            let found = if self.carry.is_empty() {
                self.find_head(bytes)
            } else {
                let mut carry = std::mem::take(&mut self.carry);
                carry.extend_from_slice(bytes);
                self.find_head(&carry)
            };
            Poll::Ready(Ok(found.transpose().map_or(Came::Bytes, Came::Head)))
        })
    }

    /// The next bytes of a body; `None`: it is whole.
    pub fn poll_data(
        &mut self,
        body: &mut Body,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<Bytes>, String>> {
        let early = || "the connection was closed early".to_owned();
        loop {
            if body.is_whole() {
                return Poll::Ready(Ok(None));
            }
            let mut out = Vec::new();
            if self.carry.is_empty() {
                let carry = &mut self.carry;
                let stream = &mut self.stream;
                let read = ready!(poll_buffer(stream, cx, |bytes| {
                    out.reserve_exact(bytes.len());
                    let used = body.take(bytes, &mut out)?;
                    carry.extend_from_slice(&bytes[used..]);
                    Ok::<_, &'static str>(bytes.len())
                }));
                let count = read.map_err(|e| e.to_string())?.map_err(str::to_owned)?;
                if count == 0 {
                    return Poll::Ready(match body {
                        Body::Close => {
                            *body = Body::Length(0);
                            Ok(None)
                        }
                        Body::Length(_) | Body::Chunked(_) => Err(early()),
                    });
                }
            } else {
                let carry = std::mem::take(&mut self.carry);
                if body.takes_all(carry.len()) {
                    out = carry;
                } else {
                    let used = body.take(&carry, &mut out)?;
                    self.carry.extend_from_slice(&carry[used..]);
                }
            }
            if !out.is_empty() {
                return Poll::Ready(Ok(Some(out.into())));
            }
        }
    }

    /// The socket and what came behind the head.
    pub fn into_parts(self) -> (Stream, Vec<u8>) {
        (self.stream, self.carry)
    }

    /// The socket, if all was sent, and nothing came that nobody asked for.
    pub fn rest(self) -> Option<Stream> {
        (self.sent && self.carry.is_empty()).then_some(self.stream)
    }
}

/// Whether another answer follows on this one.
fn is_interim(status: StatusCode) -> bool {
    status.is_informational() && status != StatusCode::SWITCHING_PROTOCOLS
}

/// Connects. A Unix listener whose queue is full says so at once, where TCP would wait: then it is tried until the deadline.
/// Any other failure is tried once more, after a moment.
pub(super) async fn connect(endpoint: &Endpoint, timeout: Duration) -> io::Result<Stream> {
    let deadline = Instant::now() + timeout;
    let mut pause = Duration::from_millis(1);
    let mut failed = false;
    loop {
        let attempt = tokio::time::timeout_at(deadline, Stream::connect(endpoint)).await;
        let error = match attempt.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
            Ok(stream) => return Ok(stream),
            Err(error) => error,
        };
        let full = error.kind() == io::ErrorKind::WouldBlock;
        if Instant::now() >= deadline || (failed && !full) {
            return Err(error);
        }
        failed |= !full;
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

/// Writes what is left. Over TLS all of it may have been taken and some of it be held back, which goes out only where that is asked for.
fn poll_send(
    stream: &mut Stream,
    left: &mut &mut [IoSlice<'_>],
    cx: &mut Context<'_>,
) -> Poll<io::Result<()>> {
    while let Some(first) = left.first() {
        let stream = Pin::new(&mut *stream);
        let wrote = match left.len() {
            // The plain call is the cheaper one.
            1 => stream.poll_write(cx, first),
            _ => stream.poll_write_vectored(cx, left),
        };
        match ready!(wrote)? {
            0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
            count => IoSlice::advance_slices(left, count),
        }
    }
    Pin::new(stream).poll_flush(cx)
}

/// What comes next, through the thread's buffer; an empty slice: the other side has closed.
fn poll_buffer<R>(
    stream: &mut Stream,
    cx: &mut Context<'_>,
    take: impl FnOnce(&[u8]) -> R,
) -> Poll<io::Result<R>> {
    BUFFER.with_borrow_mut(|buffer| {
        let mut read = ReadBuf::new(buffer);
        ready!(Pin::new(stream).poll_read(cx, &mut read))?;
        Poll::Ready(Ok(take(read.filled())))
    })
}

#[cfg(test)]
mod tests;
