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
use crate::types::Problem;

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

/// Tells the journal of each problem that begins, turns into another one or ends, whoever found it.
pub async fn problems(handle: Handle) {
    let mut changes = handle.watch();
    let mut known = Known::default();
    loop {
        let status = changes.borrow_and_update().clone();
        let (begun, over) = known.news(&status.problems);
        for Problem { code, message, .. } in begun {
            tracing::warn!(kind = "problem", code, "{code}: {message}");
        }
        for code in over {
            tracing::info!(kind = "problem_over", code, "{code}: it is over");
        }
        if changes.changed().await.is_err() {
            return;
        }
    }
}

/// What each problem was last told to be.
#[derive(Default)]
struct Known(BTreeMap<&'static str, String>);

impl Known {
    /// Problems to be told of, and the codes of those that are over.
    fn news<'p>(&mut self, now: &'p [Problem]) -> (Vec<&'p Problem>, Vec<&'static str>) {
        let gists: BTreeMap<_, _> = now.iter().map(|p| (p.code, p.gist())).collect();
        let begun = now.iter().filter(|p| self.0.get(p.code) != gists.get(p.code)).collect();
        let over = self.0.keys().copied().filter(|code| !gists.contains_key(code)).collect();
        self.0 = gists;
        (begun, over)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Bytes, Moment};

    fn pressed(gpu: &str, bytes: Bytes, why: &str) -> Vec<Problem> {
        let message = format!("{gpu}: {bytes} of its headroom is in use, and {why}");
        vec![Problem { code: "memory_pressure", message, since: Moment::START }]
    }

    #[test]
    fn other_amounts_of_memory_are_no_news() {
        let mut known = Known::default();
        let why = "no model there may leave now";
        let mut told = |now: &[Problem]| {
            let (begun, over) = known.news(now);
            (begun.len(), over.len())
        };
        assert_eq!(told(&pressed("GPU-1", Bytes::mib(300), why)), (1, 0));
        for mib in [301, 999, 1024, 12_345, 3_000_000] {
            assert_eq!(told(&pressed("GPU-1", Bytes::mib(mib), why)), (0, 0), "{mib}");
        }
        assert_eq!(told(&pressed("GPU-1", Bytes(3), why)), (0, 0));
        assert_eq!(told(&pressed("GPU-2", Bytes(3), why)), (1, 0), "another device");
        let other = "podman does not answer, so no model leaves";
        assert_eq!(told(&pressed("GPU-2", Bytes(3), other)), (1, 0), "another cause");
        assert_eq!(told(&[]), (0, 1));
        assert_eq!(told(&[]), (0, 0));
        assert_eq!(told(&pressed("GPU-2", Bytes(3), other)), (1, 0), "again");
    }

    #[test]
    fn what_is_no_amount_of_memory_is_told_anew() {
        let mut known = Known::default();
        let mut told = |message: &str| {
            let message = message.to_owned();
            known.news(&[Problem { code: "x", message, since: Moment::START }]).0.len()
        };
        for message in ["4 models", "5 models", "m#4 (1.0 GiB)", "m#5 (1.0 GiB)", "m#5 (1.0 GiB) B"]
        {
            assert_eq!(told(message), 1, "{message}");
        }
        assert_eq!(told("m#5 (8.5 MiB) B"), 0);
    }
}
