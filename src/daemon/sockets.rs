//! Where the daemon listens.
//!
//! Purpose: sockets that systemd handed over, or that the configuration names, as the front door takes them. Owner: [`super::run`].
//! Invariant: an address that cannot be had is a failure of the start, which names it; but IPv6's loopback, of the default alone, is left
//! out on a host without IPv6.

use std::io;
use std::net::SocketAddr;

use rustix::io::Errno;
use tokio::net::TcpListener;

use super::{Exit, StartFailure};
use crate::adapters::systemd::Handed;
use crate::config::{Config, ServerConfig};
use crate::proxy::{self, Listener};
use crate::types::sandbox;

/// The sockets that systemd handed over.
///
/// # Errors
/// Which of them cannot be used.
pub(super) fn handed(handed: Vec<(String, Handed)>) -> Result<Vec<Listener>, StartFailure> {
    let convert = |handed| -> io::Result<Listener> {
        Ok(match handed {
            Handed::Tcp(socket) => {
                socket.set_nonblocking(true)?;
                TcpListener::from_std(socket)?.into()
            }
            Handed::Unix(socket) => {
                socket.set_nonblocking(true)?;
                tokio::net::UnixListener::from_std(socket)?.into()
            }
        })
    };
    let mut listeners = Vec::new();
    for (name, socket) in handed {
        listeners.push(convert(socket).map_err(|err| {
            let message =
                format!("the socket {name:?} handed over by systemd cannot be used: {err}");
            StartFailure::new(Exit::Listen, message)
        })?);
    }
    Ok(listeners)
}

/// Foreground mode: binds what the configuration or the command line says.
///
/// # Errors
/// Which address cannot be had.
pub(super) fn bind(config: &Config) -> Result<Vec<Listener>, StartFailure> {
    let listeners = bind_by(&config.server.listen, proxy::listen)?;
    Ok(listeners.into_iter().map(Listener::from).collect())
}

fn bind_by(
    addresses: &[SocketAddr],
    listen: impl Fn(SocketAddr) -> io::Result<TcpListener>,
) -> Result<Vec<TcpListener>, StartFailure> {
    let default = addresses == ServerConfig::default_listen();
    let mut listeners = Vec::new();
    for address in addresses {
        match listen(*address) {
            Ok(listener) => {
                tracing::info!("listening on {address}");
                listeners.push(listener);
            }
            Err(err) if default && address.is_ipv6() && is_no_address(&err) => {
                tracing::info!("not listening on {address}: this host has no IPv6 ({err})");
            }
            Err(err) => {
                let message = format!(
                    "cannot listen on {address}: {err}; is another hostlerd, or hostler.socket, using it?"
                );
                return Err(StartFailure::new(Exit::Listen, message));
            }
        }
    }
    Ok(listeners)
}

/// Whether the host has no such address, or not even its family. What somebody else uses is another thing.
fn is_no_address(err: &io::Error) -> bool {
    let missing = [Errno::AFNOSUPPORT, Errno::ADDRNOTAVAIL];
    Errno::from_io_error(err).is_some_and(|errno| missing.contains(&errno))
}

/// Monitoring's own addresses; systemd hands over none of these.
///
/// # Errors
/// Which address cannot be had.
pub(super) fn bind_metrics(config: &Config) -> Result<Vec<Listener>, StartFailure> {
    let bind = |address: &SocketAddr| {
        proxy::listen(*address).map(Listener::Scrapes).map_err(|err| {
            let why = sandbox::unconnected(&err);
            let message = format!("cannot listen on {address} ([metrics] listen): {why}");
            StartFailure::new(Exit::Listen, message)
        })
    };
    config.metrics.listen.iter().map(bind).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A host whose IPv6 fails so.
    fn bind(addresses: &[SocketAddr], six: Errno) -> Result<usize, String> {
        let listen = |address: SocketAddr| {
            if address.is_ipv6() {
                return Err(io::Error::from(six));
            }
            proxy::listen("127.0.0.1:0".parse().unwrap())
        };
        let bound = bind_by(addresses, listen);
        bound.map(|listeners| listeners.len()).map_err(|failure| failure.message)
    }

    #[tokio::test]
    async fn a_host_without_ipv6_is_served_on_ipv4_unless_it_was_told_otherwise() {
        let default = ServerConfig::default_listen();
        for missing in [Errno::AFNOSUPPORT, Errno::ADDRNOTAVAIL] {
            assert_eq!(bind(&default, missing), Ok(1));
            let given = ["127.0.0.1:9000", "[::1]:9000"].map(|a| a.parse().unwrap());
            let why = bind(&given, missing).unwrap_err();
            assert!(why.starts_with("cannot listen on [::1]:9000: "), "{why}");
        }
        for other in [Errno::ADDRINUSE, Errno::ACCESS] {
            let why = bind(&default, other).unwrap_err();
            assert!(why.starts_with("cannot listen on [::1]:8711: "), "{why}");
        }
    }
}
