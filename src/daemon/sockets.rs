//! Where the daemon listens.
//!
//! Purpose: sockets that systemd handed over, or that the configuration names, as the front door takes them. Owner: [`super::run`].
//! Invariant: an address that cannot be had is a failure of the start, which names it.

use std::net::SocketAddr;

use super::{Exit, StartFailure};
use crate::adapters::systemd::Handed;
use crate::config::Config;
use crate::proxy::{self, Listener};
use crate::types::sandbox;

/// The sockets that systemd handed over.
///
/// # Errors
/// Which of them cannot be used.
pub(super) fn handed(handed: Vec<(String, Handed)>) -> Result<Vec<Listener>, StartFailure> {
    let convert = |handed| -> std::io::Result<Listener> {
        Ok(match handed {
            Handed::Tcp(socket) => {
                socket.set_nonblocking(true)?;
                tokio::net::TcpListener::from_std(socket)?.into()
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
    let mut listeners = Vec::new();
    for address in &config.server.listen {
        let bound = proxy::listen(*address);
        let listener = bound.map_err(|err| {
            let message = format!("cannot listen on {address}: {err}; is another hostlerd, or hostler.socket, using it?");
            StartFailure::new(Exit::Listen, message)
        })?;
        tracing::info!("listening on {address}");
        listeners.push(listener.into());
    }
    Ok(listeners)
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
