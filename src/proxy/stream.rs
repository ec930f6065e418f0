//! Sockets of both families behind one type.
//!
//! Purpose: clients come by TCP or a Unix socket, engines listen on either; nobody else should care. Owner: the server
//! (listeners, client streams) and `forward` (engine streams). Invariant: a TCP stream never waits to fill a packet.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UnixListener, UnixStream};

use crate::supervisor::ports::Endpoint;

/// A bound socket that clients connect to: made by the daemon, or handed over by systemd.
#[derive(Debug)]
pub enum Listener {
    /// TCP, on loopback addresses.
    Tcp(TcpListener),
    /// A Unix stream socket.
    Unix(UnixListener),
}

impl From<TcpListener> for Listener {
    fn from(listener: TcpListener) -> Self {
        Self::Tcp(listener)
    }
}

impl From<UnixListener> for Listener {
    fn from(listener: UnixListener) -> Self {
        Self::Unix(listener)
    }
}

/// Connections that may wait to be accepted: as systemd's sockets have it, within the kernel's own bound.
const BACKLOG: u32 = 4096;

/// Binds a TCP address.
///
/// # Errors
/// As the kernel says.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // A daemon that comes back at once must not wait for connections of the last one to be forgotten.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

impl Listener {
    /// The same socket, in the hands of the runtime that this is called on.
    ///
    /// # Errors
    /// As the kernel says.
    pub(super) fn rehomed(self) -> io::Result<Self> {
        Ok(match self {
            Self::Tcp(listener) => TcpListener::from_std(listener.into_std()?)?.into(),
            Self::Unix(listener) => UnixListener::from_std(listener.into_std()?)?.into(),
        })
    }

    /// The address that other hosts could reach it by; `None`: there is none.
    ///
    /// # Errors
    /// If the socket does not know its address.
    pub fn exposed(&self) -> io::Result<Option<SocketAddr>> {
        match self {
            Self::Tcp(listener) => {
                Ok(Some(listener.local_addr()?).filter(|address| !address.ip().is_loopback()))
            }
            Self::Unix(_) => Ok(None),
        }
    }

    pub(super) fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<Stream>> {
        match self {
            Self::Tcp(l) => l.poll_accept(cx).map_ok(|(s, _)| Stream::tcp(s)),
            Self::Unix(l) => l.poll_accept(cx).map_ok(|(s, _)| Stream::Unix(s)),
        }
    }
}

/// The next connection on any of the listeners. `turn` moves on with every connection, so that a busy listener cannot starve
/// the others.
pub(super) async fn accept(listeners: &[Listener], turn: &mut usize) -> io::Result<Stream> {
    std::future::poll_fn(|cx| {
        for offset in 0..listeners.len() {
            let index = (*turn + offset) % listeners.len();
            if let Poll::Ready(result) = listeners[index].poll_accept(cx) {
                *turn = index + 1;
                return Poll::Ready(result);
            }
        }
        Poll::Pending
    })
    .await
}

/// A connected socket.
#[derive(Debug)]
pub(super) enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Stream {
    /// Connects to an engine.
    ///
    /// # Errors
    /// As the kernel says. `WouldBlock`: a Unix listener's queue is full.
    pub async fn connect(endpoint: &Endpoint) -> io::Result<Self> {
        match endpoint {
            Endpoint::Unix(path) => UnixStream::connect(path).await.map(Self::Unix),
            Endpoint::Tcp(address) => TcpStream::connect(address).await.map(Self::tcp),
        }
    }

    fn tcp(stream: TcpStream) -> Self {
        // Tokens are small and each is wanted at once. A failure costs latency only.
        let _ = stream.set_nodelay(true);
        Self::Tcp(stream)
    }

    /// Until there may be something to read.
    pub fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(stream) => stream.poll_read_ready(cx),
            Self::Unix(stream) => stream.poll_read_ready(cx),
        }
    }

    /// Reads what is there.
    ///
    /// # Errors
    /// As the kernel says. `WouldBlock`: nothing is there.
    pub fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.try_read(buffer),
            Self::Unix(stream) => stream.try_read(buffer),
        }
    }

    /// Makes the close that follows a reset instead of an orderly end. Unix sockets have no such thing.
    pub fn reset_on_close(&self) {
        match self {
            Self::Tcp(stream) => {
                let _ = stream.set_zero_linger();
            }
            Self::Unix(_) => {}
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(s) => Pin::new(s).poll_read(cx, buf),
            Self::Unix(s) => Pin::new(s).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(s) => Pin::new(s).poll_write(cx, buf),
            Self::Unix(s) => Pin::new(s).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(s) => Pin::new(s).poll_flush(cx),
            Self::Unix(s) => Pin::new(s).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(s) => Pin::new(s).poll_shutdown(cx),
            Self::Unix(s) => Pin::new(s).poll_shutdown(cx),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(s) => Pin::new(s).poll_write_vectored(cx, bufs),
            Self::Unix(s) => Pin::new(s).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }
}
