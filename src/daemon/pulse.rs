//! What systemd is told while the daemon runs.
//!
//! Owner: the composition root runs both tasks until the drain.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::validate;
use crate::adapters::systemd;
use crate::supervisor::handle::Handle;

/// `STATUS=` at most this often.
const STATUS_INTERVAL: Duration = Duration::from_millis(500);

/// Keeps `systemctl status` up to date.
pub async fn report(handle: Handle) {
    let mut changes = handle.watch();
    let mut last = String::new();
    while changes.changed().await.is_ok() {
        let text = validate::summary(&handle.status());
        if text != last {
            systemd::status(&text);
            last = text;
        }
        tokio::time::sleep(STATUS_INTERVAL).await;
    }
}

/// Feeds systemd's watchdog while the owner's loop turns, and only then: podman may hang, the owner may not.
pub async fn feed_watchdog(turns: Arc<AtomicU64>) {
    let Some(interval) = systemd::watchdog_interval() else { return };
    let mut seen = None;
    loop {
        let now = turns.load(Ordering::Relaxed);
        if seen.replace(now) != Some(now) {
            systemd::watchdog();
        }
        tokio::time::sleep(interval / 3).await;
    }
}

/// Tells the journal of each problem that begins or ends, whoever found it.
pub async fn problems(handle: Handle) {
    let mut changes = handle.watch();
    let mut known: BTreeMap<&'static str, String> = BTreeMap::new();
    loop {
        let status = changes.borrow_and_update().clone();
        let now: BTreeMap<_, _> =
            status.problems.iter().map(|p| (p.code, p.message.clone())).collect();
        for (code, message) in &now {
            if known.get(code) != Some(message) {
                tracing::warn!(kind = "problem", code, "{code}: {message}");
            }
        }
        for code in known.keys().filter(|code| !now.contains_key(*code)) {
            tracing::info!(kind = "problem_over", code, "{code}: it is over");
        }
        known = now;
        if changes.changed().await.is_err() {
            return;
        }
    }
}
