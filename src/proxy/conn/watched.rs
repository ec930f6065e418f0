//! A client's socket as hyper has it.
//!
//! Purpose: tell the connection's [`Pulse`] what happens on the socket. Owner: the connection. Invariants: an answer that broke off ends in
//! a reset and in no orderly end; many small pieces are written as one.

use std::io;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use rustix::net::RecvFlags;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{Pulse, Stream};

/// What is so small all in all is copied into one piece before it is written.
const TOGETHER: usize = 1 << 10;

/// A client's socket that reports what happens on it.
pub(super) struct Watched {
    pub stream: Stream,
    pub pulse: Arc<Pulse>,
}

impl Watched {
    /// Whether the client has sent something that was not read yet, as the kernel has it.
    fn has_more(&self) -> bool {
        let socket = match &self.stream {
            Stream::Tcp(socket) => socket.as_fd(),
            Stream::Unix(socket) => socket.as_fd(),
            Stream::Tls(_) => return false,
        };
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        rustix::net::recv(socket, &mut [0_u8][..], flags).is_ok_and(|(count, _)| count > 0)
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        if self.pulse.state().reset {
            self.stream.reset_on_close();
        }
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let poll = Pin::new(&mut this.stream).poll_read(cx, buf);
        if buf.filled().len() > before {
            this.pulse.heard();
        }
        // What is here already may be news to the runtime.
        if poll.is_pending() && this.pulse.is_asked() && this.has_more() {
            this.pulse.stays();
        }
        poll
    }
}

impl AsyncWrite for Watched {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let poll = Pin::new(&mut this.stream).poll_write(cx, buf);
        this.pulse.wrote(poll.is_pending());
        poll
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.pulse.state().reset {
            // An orderly FIN first would undo the reset.
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut this.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let stream = Pin::new(&mut this.stream);
        let (mut small, mut length) = ([0; TOGETHER], 0);
        for buf in bufs {
            if let Some(place) = small.get_mut(length..length + buf.len()) {
                place.copy_from_slice(buf);
            }
            length += buf.len();
        }
        // One piece is cheaper for the kernel than many.
        let poll = match small.get(..length) {
            Some(whole) => stream.poll_write(cx, whole),
            None => stream.poll_write_vectored(cx, bufs),
        };
        this.pulse.wrote(poll.is_pending());
        poll
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
