//! Sockets of both families behind one type.
//!
//! Purpose: clients come by TCP or a Unix socket, engines listen on either; nobody else should care. Owner: the server
//! (listeners, client streams) and `forward` (engine streams). Invariants: a TCP stream never waits to fill a packet; one from or to
//! another host does not outlive that host's silent end.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use rustix::net::sockopt;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UnixListener, UnixStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use crate::supervisor::ports::Endpoint;

/// A bound socket that clients connect to: made by the daemon, or handed over by systemd.
#[derive(Debug)]
pub enum Listener {
    /// TCP, on loopback addresses.
    Tcp(TcpListener),
    /// A Unix stream socket.
    Unix(UnixListener),
    /// TCP, for monitoring alone: metrics and nothing else, to whoever can reach it.
    Scrapes(TcpListener),
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

/// What may wait in a Unix socket for a large body's reader. The kernel takes it twice, for what it keeps beside the bytes, and no more than
/// `net.core.wmem_max`.
const ROOM: usize = 256 << 10;

/// So long a TCP connection is silent before the kernel asks whether the other side is there, and how often.
const PROBE_AFTER: Duration = Duration::from_secs(60);
const PROBE_EVERY: Duration = Duration::from_secs(15);
const PROBES: u32 = 4;

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
    /// The same socket, whoever bound it, in the hands of the runtime that this is called on. What its connections are to have of
    /// the kernel is set here, once: they inherit it.
    ///
    /// # Errors
    /// As the kernel says.
    pub(super) fn rehomed(self) -> io::Result<Self> {
        Ok(match self {
            Self::Tcp(listener) => steady(TcpListener::from_std(listener.into_std()?)?).into(),
            Self::Unix(listener) => UnixListener::from_std(listener.into_std()?)?.into(),
            Self::Scrapes(listener) => {
                Self::Scrapes(steady(TcpListener::from_std(listener.into_std()?)?))
            }
        })
    }

    /// The address by which other hosts could reach what keys protect; `None`: there is none.
    ///
    /// # Errors
    /// If the socket does not know its address.
    pub fn exposed(&self) -> io::Result<Option<SocketAddr>> {
        match self {
            Self::Tcp(listener) => {
                Ok(Some(listener.local_addr()?).filter(|address| !address.ip().is_loopback()))
            }
            Self::Unix(_) | Self::Scrapes(_) => Ok(None),
        }
    }

    /// Where it listens, for people: an address with its port, or a path.
    #[must_use]
    pub fn shown(&self) -> String {
        let unknown = |_| "unknown".to_owned();
        match self {
            Self::Tcp(listener) | Self::Scrapes(listener) => {
                listener.local_addr().map_or_else(unknown, |address| address.to_string())
            }
            Self::Unix(listener) => listener.local_addr().map_or_else(unknown, |address| {
                let path = address.as_pathname().map(|path| path.display().to_string());
                path.unwrap_or_else(|| "a socket without a name".to_owned())
            }),
        }
    }

    pub(super) fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<(Stream, Peer)>> {
        match self {
            Self::Tcp(l) => l.poll_accept(cx).map_ok(|(s, from)| (Stream::Tcp(s), Peer::at(from))),
            Self::Unix(l) => l.poll_accept(cx).map_ok(|(s, _)| (Stream::Unix(s), Peer::Unix)),
            Self::Scrapes(l) => {
                l.poll_accept(cx).map_ok(|(s, _)| (Stream::Tcp(s), Peer::Monitoring))
            }
        }
    }
}

/// Gives a listener what each connection inherits from it.
fn steady(listener: TcpListener) -> TcpListener {
    // Tokens are small and each is wanted at once. A failure costs latency only.
    let _ = sockopt::set_tcp_nodelay(&listener, true);
    probed(&listener);
    listener
}

/// Has the kernel ask a silent other side whether it is still there; where nothing answers the connection ends after two minutes in
/// all. A failure costs what is held for a host that vanished, until something is written to it.
fn probed(socket: impl AsFd) {
    let socket = socket.as_fd();
    let _ = sockopt::set_tcp_keepidle(socket, PROBE_AFTER);
    let _ = sockopt::set_tcp_keepintvl(socket, PROBE_EVERY);
    let _ = sockopt::set_tcp_keepcnt(socket, PROBES);
    let _ = sockopt::set_socket_keepalive(socket, true);
}

/// How TLS is spoken, made once: reading the system's certificates takes milliseconds.
fn tls_config() -> io::Result<Arc<ClientConfig>> {
    static CONFIG: OnceLock<Arc<ClientConfig>> = OnceLock::new();
    if let Some(config) = CONFIG.get() {
        return Ok(config.clone());
    }
    let mut roots = RootCertStore::empty();
    let (good, _bad) =
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if good == 0 {
        return Err(io::Error::other(
            "this host has no certificates to trust; install ca-certificates",
        ));
    }
    let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(CONFIG.get_or_init(|| Arc::new(config)).clone())
}

/// The next connection on any of the listeners, and who is there. `turn` moves on with every connection, so that a busy listener cannot starve
/// the others.
pub(super) async fn accept(listeners: &[Listener], turn: &mut usize) -> io::Result<(Stream, Peer)> {
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
    Tls(Box<TlsStream<TcpStream>>),
}

/// Where a client is, as far as the kernel tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Peer {
    /// At a Unix socket: who may connect is the file system's word.
    Unix,
    /// On this host.
    Loopback,
    /// Anywhere.
    Far,
    /// Anywhere, at a listener that has only metrics.
    Monitoring,
}

impl Peer {
    fn at(address: SocketAddr) -> Self {
        if address.ip().to_canonical().is_loopback() { Self::Loopback } else { Self::Far }
    }
}

impl Stream {
    /// Connects to an engine.
    ///
    /// # Errors
    /// As the kernel says. `WouldBlock`: a Unix listener's queue is full.
    pub async fn connect(endpoint: &Endpoint) -> io::Result<Self> {
        match endpoint {
            Endpoint::Unix(path) => Endpoint::connect_unix(path).await.map(Self::Unix),
            Endpoint::Tcp(address, _) => TcpStream::connect(address).await.map(Self::tcp),
        }
    }

    /// Connects to an endpoint on another host. Its certificate is checked by the system's list.
    ///
    /// # Errors
    /// As the kernel, the resolver or TLS says.
    pub async fn far(host: &str, port: u16, tls: bool) -> io::Result<Self> {
        let stream = TcpStream::connect((host, port)).await?;
        // An engine here needs it not: its kernel is ours.
        probed(&stream);
        if !tls {
            return Ok(Self::tcp(stream));
        }
        let _ = stream.set_nodelay(true);
        let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
        let stream = TlsConnector::from(tls_config()?).connect(name, stream).await?;
        Ok(Self::Tls(Box::new(stream)))
    }

    fn tcp(stream: TcpStream) -> Self {
        // Tokens are small and each is wanted at once. A failure costs latency only.
        let _ = stream.set_nodelay(true);
        Self::Tcp(stream)
    }

    /// Whether the other side has neither closed nor said anything. TLS has words of its own, so it is never sure there.
    pub fn is_quiet(&self) -> bool {
        let mut byte = [0];
        let read = match self {
            Self::Tcp(stream) => stream.try_read(&mut byte),
            Self::Unix(stream) => stream.try_read(&mut byte),
            Self::Tls(_) => return false,
        };
        read.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
    }

    /// Lets more wait in a Unix socket for the other side to read it. With the usual room, 208 KiB, a large body stops and goes fifty times,
    /// and each stop is a wake-up on either side; TCP finds its room by itself. A failure costs that speed only.
    pub fn make_room(&self) {
        if let Self::Unix(stream) = self {
            let _ = sockopt::set_socket_send_buffer_size(stream, ROOM);
        }
    }

    /// Makes the close that follows a reset instead of an orderly end. Unix sockets have no such thing.
    pub fn reset_on_close(&self) {
        match self {
            Self::Tcp(stream) => {
                let _ = stream.set_zero_linger();
            }
            Self::Unix(_) | Self::Tls(_) => {}
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
            Self::Tls(s) => Pin::new(s).poll_read(cx, buf),
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
            Self::Tls(s) => Pin::new(s).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(s) => Pin::new(s).poll_flush(cx),
            Self::Unix(s) => Pin::new(s).poll_flush(cx),
            Self::Tls(s) => Pin::new(s).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(s) => Pin::new(s).poll_shutdown(cx),
            Self::Unix(s) => Pin::new(s).poll_shutdown(cx),
            Self::Tls(s) => Pin::new(s).poll_shutdown(cx),
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
            Self::Tls(s) => Pin::new(s).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the kernel has it, of one that we bound and one that was handed over.
    #[tokio::test]
    async fn what_is_accepted_waits_for_no_packet_and_notices_who_vanished() {
        let handed = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        handed.set_nonblocking(true).unwrap();
        let handed = TcpListener::from_std(handed).unwrap();
        let bound = || listen("127.0.0.1:0".parse().unwrap()).unwrap();
        for listener in [bound().into(), Listener::Scrapes(bound()), handed.into()] {
            let (Listener::Tcp(socket) | Listener::Scrapes(socket)) = &listener else { panic!() };
            let address = socket.local_addr().unwrap();
            let listeners = [listener.rehomed().unwrap()];
            let _client = TcpStream::connect(address).await.unwrap();
            let (accepted, _) = accept(&listeners, &mut 0).await.unwrap();
            let Stream::Tcp(accepted) = accepted else { panic!("{accepted:?}") };
            assert!(accepted.nodelay().unwrap());
            keeps(&accepted);
            let far = Stream::far("127.0.0.1", address.port(), false).await.unwrap();
            let Stream::Tcp(far) = far else { panic!("{far:?}") };
            assert!(far.nodelay().unwrap());
            keeps(&far);
        }
    }

    fn keeps(socket: &TcpStream) {
        assert!(sockopt::socket_keepalive(socket).unwrap());
        assert_eq!(sockopt::tcp_keepidle(socket).unwrap(), Duration::from_secs(60));
        assert_eq!(sockopt::tcp_keepintvl(socket).unwrap(), Duration::from_secs(15));
        assert_eq!(sockopt::tcp_keepcnt(socket).unwrap(), 4);
    }
}
