//! Signals that ask the program to end: Ctrl-C's, SIGTERM, and SIGHUP of a terminal or an ssh session that goes.
//!
//! Purpose: each of them ends each command, at whatever it waits. Owner: [`super::run`], except while a command holds on
//! to them itself, because there is something to tell or to clear away. Invariants: once the program has listened for a signal the
//! kernel ends it by that signal no more, so from then on somebody heeds it at any time; what was ignored when the program was
//! started stays ignored, as under `nohup` or in a script's background.

use std::future::poll_fn;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Notify, watch};

/// How many hold on to the signals. As these it is the process's.
static HELD: AtomicUsize = AtomicUsize::new(0);
/// Tells them that one came. One listener tells all, so that who begins to hold on in the moment in which a signal comes does not miss it.
static CAME: LazyLock<watch::Sender<()>> = LazyLock::new(watch::Sender::default);
/// One came while somebody held on to them, who has let go without having looked.
static MISSED: Notify = Notify::const_new();

/// While this lives, whoever has it ends the command when a signal comes.
#[derive(Debug)]
pub struct Held {
    came: watch::Receiver<()>,
}

/// From now on the caller heeds signals.
#[must_use]
pub fn hold() -> Held {
    HELD.fetch_add(1, Ordering::Relaxed);
    Held { came: CAME.subscribe() }
}

impl Held {
    /// Until one comes, of those that come while they are held.
    pub async fn interrupted(&mut self) {
        // The sender is never dropped.
        let _ = self.came.changed().await;
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        HELD.fetch_sub(1, Ordering::Relaxed);
        if self.came.has_changed().unwrap_or(false) {
            MISSED.notify_one();
        }
    }
}

/// Until a signal comes that nobody holds on to. Those who do are told from here.
pub async fn unheeded() {
    let mut signals = listen();
    loop {
        let came = poll_fn(|cx| {
            let came = signals.iter_mut().any(|signal| signal.poll_recv(cx).is_ready());
            if came { Poll::Ready(()) } else { Poll::Pending }
        });
        tokio::select! {
            () = came => {}
            () = MISSED.notified() => return,
        }
        if HELD.load(Ordering::Relaxed) == 0 {
            return;
        }
        CAME.send_replace(());
    }
}

/// Ears for those that are not ignored.
fn listen() -> Vec<Signal> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = ignored(&status);
    let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
    let heeded = kinds.into_iter().filter(|kind| (ignored >> (kind.as_raw_value() - 1)) & 1 == 0);
    // One that cannot be listened for ends the program as it always did.
    heeded.filter_map(|kind| signal(kind).ok()).collect()
}

/// The signals that a process ignores, by a bit each.
fn ignored(status: &str) -> u64 {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether it is over by now.
    fn over(future: std::pin::Pin<&mut impl Future>) -> bool {
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        future.poll(&mut cx).is_ready()
    }

    #[test]
    fn none_is_missed_by_who_begins_to_hold_on_or_lets_go() {
        // As the listener does where somebody has begun to hold on since the signal came.
        let mut held = hold();
        CAME.send_replace(());
        assert!(over(std::pin::pin!(held.interrupted())));
        assert!(!over(std::pin::pin!(held.interrupted())));
        drop(held);
        assert!(!over(std::pin::pin!(MISSED.notified())), "it was heeded");
        let held = hold();
        CAME.send_replace(());
        drop(held);
        assert!(over(std::pin::pin!(MISSED.notified())));
    }

    #[test]
    fn what_is_ignored_is_read() {
        assert_eq!(ignored("SigBlk:\t0000000000000004\nSigIgn:\t0000000000001001\n"), 0x1001);
        assert_eq!(ignored(""), 0);
    }
}
