//! Signals that ask the program to end: Ctrl-C's, SIGTERM, and SIGHUP of a terminal or an ssh session that goes.
//!
//! Purpose: each of them ends each command, at whatever it waits. Owner: [`super::run`], except while a command holds on
//! to them itself, because there is something to tell or to clear away. Invariants: once the program has listened for a signal the
//! kernel ends it by that signal no more, so from then on somebody heeds it at any time; what was ignored when the program was
//! started stays ignored, as under `nohup` or in a script's background.

use std::future::poll_fn;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// How many hold on to the signals. As these it is the process's.
static HELD: AtomicUsize = AtomicUsize::new(0);

/// While this lives, whoever has it ends the command when a signal comes.
#[derive(Debug)]
pub struct Held(());

impl Drop for Held {
    fn drop(&mut self) {
        HELD.fetch_sub(1, Ordering::Relaxed);
    }
}

/// From now on the caller heeds signals.
#[must_use]
pub fn hold() -> Held {
    HELD.fetch_add(1, Ordering::Relaxed);
    Held(())
}

/// Until a signal comes that nobody holds on to.
pub async fn unheeded() {
    loop {
        interrupted().await;
        if HELD.load(Ordering::Relaxed) == 0 {
            return;
        }
    }
}

/// Until a signal comes, of those that come after this call.
pub fn interrupted() -> impl Future<Output = ()> + Send {
    let mut signals = Signals::listen();
    async move { signals.come().await }
}

/// Ears for them.
#[derive(Debug)]
pub struct Signals(Vec<Signal>);

impl Signals {
    /// Listens from now on.
    #[must_use]
    pub fn listen() -> Self {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let ignored = ignored(&status);
        let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
        let heeded =
            kinds.into_iter().filter(|kind| (ignored >> (kind.as_raw_value() - 1)) & 1 == 0);
        // One that cannot be listened for ends the program as it always did.
        Self(heeded.filter_map(|kind| signal(kind).ok()).collect())
    }

    /// Until one comes.
    pub async fn come(&mut self) {
        poll_fn(|cx| {
            let came = self.0.iter_mut().any(|signal| signal.poll_recv(cx).is_ready());
            if came { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }
}

/// The signals that a process ignores, by a bit each.
fn ignored(status: &str) -> u64 {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_ignored_is_read() {
        assert_eq!(ignored("SigBlk:\t0000000000000004\nSigIgn:\t0000000000001001\n"), 0x1001);
        assert_eq!(ignored(""), 0);
    }
}
