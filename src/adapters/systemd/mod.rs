//! systemd: sockets that it hands over, what it is told in return, and what it is asked ([`manager`]).
//!
//! Purpose: `LISTEN_FDS` with their names, and `sd_notify`. Owner: the composition root. Invariants: without systemd
//! every call is a quiet no-op; a notification that cannot be sent is logged once per call and never stops the daemon; a text,
//! whatever it holds, is a status and nothing else.

pub mod manager;

use std::io;
use std::net::TcpListener;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::time::Duration;

use rustix::net::AddressFamily;
use sd_notify::NotifyState;

use crate::types::one_line;

/// Characters of a status that are sent.
const STATUS_MAX: usize = 1000;

/// A listening socket that systemd bound.
#[derive(Debug)]
pub enum Handed {
    /// IPv4 or IPv6.
    Tcp(TcpListener),
    /// A Unix stream socket.
    Unix(UnixListener),
}

/// Takes the sockets of socket activation, with their `FileDescriptorName`s. Empty without socket activation. Call
/// it once, before any thread is started.
///
/// # Errors
/// If the environment is inconsistent, or a descriptor is no listening stream socket of a family that we serve.
pub fn take_sockets() -> io::Result<Vec<(String, Handed)>> {
    let mut sockets = Vec::new();
    for (fd, name) in sd_notify::listen_fds_with_names()? {
        // SAFETY: systemd passed this descriptor to this process alone, nobody else in it knows the number, and
        // `sd_notify` has checked LISTEN_PID.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let family = rustix::net::sockopt::socket_domain(&fd)?;
        let handed = if family == AddressFamily::UNIX {
            Handed::Unix(fd.into())
        } else if family == AddressFamily::INET || family == AddressFamily::INET6 {
            Handed::Tcp(fd.into())
        } else {
            let message =
                format!("the socket {name:?} handed over by systemd is of an unknown family");
            return Err(io::Error::other(message));
        };
        sockets.push((name, handed));
    }
    Ok(sockets)
}

/// Start-up is over.
pub fn ready(status: &str) {
    send(&[NotifyState::Ready, NotifyState::Status(&line(status))]);
}

/// The configuration is being read again; [`ready`] ends it.
pub fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => send(&[NotifyState::Reloading, now]),
        Err(err) => tracing::warn!("systemd is not told of the reload, ignoring: {err}"),
    }
}

/// What `systemctl status` shows.
pub fn status(text: &str) {
    send(&[NotifyState::Status(&line(text))]);
}

/// The start (or stop) takes longer: systemd is to wait at least `more` from now.
pub fn extend_timeout(more: Duration) {
    let usec = u32::try_from(more.as_micros()).unwrap_or(u32::MAX);
    send(&[NotifyState::ExtendTimeoutUsec(usec)]);
}

/// The shutdown has begun.
pub fn stopping(status: &str) {
    send(&[NotifyState::Stopping, NotifyState::Status(&line(status))]);
}

/// The owner's loop turns.
pub fn watchdog() {
    send(&[NotifyState::Watchdog]);
}

/// How often systemd wants to hear from the watchdog at the latest; `None`: not at all.
#[must_use]
pub fn watchdog_interval() -> Option<Duration> {
    sd_notify::watchdog_enabled()
}

/// A status as it may be sent: each line of a notification is a field of its own, and a text too long for a datagram would keep all
/// others from arriving.
fn line(text: &str) -> String {
    one_line(text.chars().take(STATUS_MAX).collect::<String>())
}

fn send(states: &[NotifyState<'_>]) {
    if let Err(err) = sd_notify::notify(states) {
        tracing::warn!(%err, "systemd could not be notified, ignoring");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_one_field_whatever_it_holds() {
        let status = line("Failed: crun: no such device\nMAINPID=1\n\u{1b}[0mREADY=1");
        let sent = NotifyState::Status(&status).to_string();
        assert_eq!(sent, "STATUS=Failed: crun: no such device MAINPID=1 [0mREADY=1");
        assert_eq!(line(&"é".repeat(99_999)).chars().count(), STATUS_MAX);
    }
}
