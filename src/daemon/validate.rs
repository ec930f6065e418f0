//! The checks before READY, tried until they hold.
//!
//! Purpose: nothing is promised to systemd or a client that was not just tried; what is tried is [`crate::checks`]. Owner: the
//! composition root runs [`gate`] once. Invariants: what may heal by itself is tried again with growing delays until
//! `[startup] timeout`; nothing is ever skipped or replaced by a guess.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::adapters::systemd;
use crate::checks::{Check, Checks, Exit, Learned, StartFailure};
use crate::supervisor::ports::Found;
use crate::types::GpuSnapshot;

/// The first delay between two attempts of one check.
const DELAY_MIN: Duration = Duration::from_millis(250);
/// The longest.
const DELAY_MAX: Duration = Duration::from_secs(5);
/// How much longer systemd is asked to wait, again and again while the start goes on.
const EXTENSION: Duration = Duration::from_secs(90);

/// What the checks found out on the way.
#[derive(Debug)]
pub struct Proven {
    /// The devices.
    pub devices: GpuSnapshot,
    /// Our containers that an earlier daemon left.
    pub found: Vec<Found>,
    /// podman's API version.
    pub podman: String,
}

/// Does a part of the start and has systemd wait for it. A part may take several calls of podman's that are slow each, so no single
/// extension is long enough for it; that it ends is for the deadlines of those calls to see to.
pub async fn patiently<T>(part: impl Future<Output = T>) -> T {
    let asking = async {
        loop {
            systemd::extend_timeout(EXTENSION);
            tokio::time::sleep(EXTENSION / 3).await;
        }
    };
    tokio::select! {
        result = part => result,
        never = asking => never,
    }
}

/// Runs [`Check::GATE`].
///
/// # Errors
/// The first check that does not hold, or does not come to hold in time.
pub async fn gate(checks: &Checks<'_>) -> Result<Proven, StartFailure> {
    let until = Instant::now() + checks.config.startup.timeout;
    let mut learned = Learned::default();
    for check in Check::GATE {
        let look = async || checks.look(check, &mut learned).await.map(drop);
        retry(until, check.subject(), look).await?;
    }
    let Learned { devices: Some(devices), podman: Some(podman), found: Some(found) } = learned
    else {
        return Err(StartFailure::new(Exit::Internal, "the checks before READY are incomplete"));
    };
    for (id, why) in &devices.lost {
        tracing::warn!(gpu = %id, "device {id} is lost, this host is served without it: {}", why.why());
    }
    Ok(Proven { devices, found, podman: podman.version })
}

/// Tries a check until it holds, its failure is final, or the time is over.
async fn retry(
    until: Instant,
    what: &str,
    mut look: impl AsyncFnMut() -> Result<(), StartFailure>,
) -> Result<(), StartFailure> {
    let mut delay = DELAY_MIN;
    let mut attempt = 1_u32;
    loop {
        systemd::status(&format!("Checking {what}"));
        let failure = match look().await {
            Ok(()) => return Ok(()),
            Err(failure) => failure,
        };
        if failure.lasting || Instant::now() + delay > until {
            return Err(failure);
        }
        tracing::warn!(code = %failure.exit, attempt, "{what}: attempt {attempt} failed, retrying: {failure}");
        systemd::status(&format!("Waiting for {what} (attempt {attempt} failed: {failure})"));
        tokio::time::sleep(delay).await;
        delay = (delay * 2).min(DELAY_MAX);
        attempt += 1;
    }
}

/// One status line for `systemctl status`.
#[must_use]
pub fn summary(status: &Arc<crate::types::Status>) -> String {
    use crate::types::Phase;
    let count = |phase| status.models.iter().filter(|m| m.phase == phase).count();
    let ready: Vec<&str> =
        status.models.iter().filter(|m| m.phase == Phase::Ready).map(|m| m.name.as_str()).collect();
    let mut text = format!("{} of {} models ready", ready.len(), status.models.len());
    if !ready.is_empty() {
        text.push_str(&format!(" ({})", ready.join(", ")));
    }
    let loading = count(Phase::Pulling) + count(Phase::Starting) + count(Phase::Loading);
    if loading > 0 {
        text.push_str(&format!(", {loading} loading"));
    }
    let (busy, queued) =
        status.models.iter().fold((0, 0), |(b, q), m| (b + m.in_flight, q + m.queued));
    text.push_str(&format!("; requests: {busy} running, {queued} waiting"));
    for gpu in &status.gpus {
        match (gpu.free.get(), gpu.total.get()) {
            (Some(free), Some(total)) => {
                text.push_str(&format!("; {}: {free} of {total} free", gpu.id));
            }
            _ => text.push_str(&format!("; {}: memory unknown", gpu.id)),
        }
    }
    for problem in &status.problems {
        text.push_str(&format!("; PROBLEM {}: {}", problem.code, problem.message));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A check that fails so often, and how often it was tried.
    async fn tried(failures: u32, failure: StartFailure) -> (Result<(), StartFailure>, u32) {
        let until = Instant::now() + Duration::from_secs(60);
        let mut looks = 0;
        let look = async || {
            looks += 1;
            if looks > failures { Ok(()) } else { Err(failure.clone()) }
        };
        (retry(until, "it", look).await, looks)
    }

    #[tokio::test(start_paused = true)]
    async fn what_may_pass_is_tried_again_until_the_time_is_over() {
        // podman, which is busy, does not know an image.
        let busy = StartFailure::new(Exit::Podman, "does not answer");
        let (found, looks) = tried(3, busy.clone()).await;
        assert!(found.is_ok());
        assert_eq!(looks, 4);
        let (found, looks) = tried(u32::MAX, busy).await;
        assert_eq!(found.unwrap_err().exit, Exit::Podman);
        // 0.25 + 0.5 + 1 + 2 + 4 s, then 5 s each.
        assert_eq!(looks, 5 + 1 + 10);
    }

    #[tokio::test(start_paused = true)]
    async fn what_lasts_is_told_at_once() {
        let missing = StartFailure::new(Exit::Image, "is not there").lasting();
        let (found, looks) = tried(1, missing).await;
        assert_eq!((found.unwrap_err().exit, looks), (Exit::Image, 1));
    }
}
