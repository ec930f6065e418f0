//! Jobs of the daemon: begun, watched, and how they ended.
//!
//! Invariants: the signal of a job's end is listened for before the job is begun, so none is missed; a daemon that leaves in
//! the middle ends the wait; Ctrl-C leaves the wait and not the job.

use std::time::Duration;

use futures_util::StreamExt as _;
use indicatif::{ProgressBar, ProgressStyle};
use tokio::time::Instant;
use zbus::{OwnedObjectPath, Proxy};

use super::Context;
use super::bus::{self, Bus};
use super::document::Named;
use super::exit::{Exit, Failure, Outcome};
use super::signals;
use crate::types::last_words;

/// How often a bar moves.
const TICK: Duration = Duration::from_millis(200);
/// How often it is looked whether a model waits for room, where no bar says so.
const LOOK: Duration = Duration::from_secs(2);
/// 2^64 − 1: the daemon does not know.
const UNKNOWN: u64 = u64::MAX;

/// Ears for the ends of jobs.
pub struct Watch {
    removed: zbus::proxy::SignalStream<'static>,
    owner: zbus::proxy::OwnerChangedStream<'static>,
}

impl Watch {
    /// Listens from now on.
    ///
    /// # Errors
    /// If the bus does not let us.
    pub async fn new(bus: &Bus) -> Outcome<Self> {
        let failed = |err: zbus::Error| bus::failure(&err, bus.user);
        Ok(Self {
            removed: bus.manager.receive_signal("JobRemoved").await.map_err(failed)?,
            owner: bus.manager.receive_owner_changed().await.map_err(failed)?,
        })
    }

    /// Waits for the end of a job, as people do: not for ever.
    ///
    /// # Errors
    /// As [`Watch::ended`]; a time-out, or an interruption.
    pub async fn end(
        &mut self,
        context: &Context,
        bus: &Bus,
        job: &OwnedObjectPath,
        subject: &str,
        deadline: Option<Instant>,
    ) -> Outcome {
        let mut held = signals::hold();
        let (exit, why) = tokio::select! {
            ended = self.ended(context, bus, job, subject) => return ended,
            () = until(deadline) => (Exit::Timeout, "not done within the time that was given; it goes on"),
            () = held.interrupted() => (Exit::Interrupted, "it goes on without you"),
        };
        Err(Failure::new(exit, format!("{subject}: {why}")))
    }

    /// Waits for the end of a job.
    ///
    /// # Errors
    /// The job's own, or a daemon that left.
    pub async fn ended(
        &mut self,
        context: &Context,
        bus: &Bus,
        job: &OwnedObjectPath,
        subject: &str,
    ) -> Outcome {
        let object = bus::proxy(&bus.connection, job.as_str(), "org.hostler1.Job").await?;
        let bar = bar(context, subject);
        let mut tick = tokio::time::interval(TICK);
        let mut look = tokio::time::interval_at(Instant::now() + LOOK, LOOK);
        let mut silent = bar.is_none();
        let ended = loop {
            tokio::select! {
                message = self.removed.next() => {
                    let Some(message) = message else { break Err(bus::not_running(bus.user)) };
                    type Removed = (OwnedObjectPath, String, String, String);
                    let Ok((path, _, _, result)) = message.body().deserialize::<Removed>() else { continue };
                    if path == *job {
                        break if result == "done" { Ok(()) } else { Err(why(&object, bus, &result, subject).await) };
                    }
                }
                owner = self.owner.next() => {
                    if !matches!(owner, Some(Some(_))) {
                        break Err(bus::not_running(bus.user));
                    }
                }
                _ = tick.tick() => if let Some(bar) = &bar { move_on(bar, bus, &object, subject).await },
                _ = look.tick(), if silent => if let Some(why) = waits_for(bus, subject).await {
                    context.out.say(&format!("{subject} waits: {why}"));
                    silent = false;
                },
            }
        };
        if let Some(bar) = bar {
            bar.finish_and_clear();
        }
        ended
    }
}

/// When a time that was given is over; without one, far away.
#[must_use]
pub fn deadline(timeout: Option<Duration>) -> Option<Instant> {
    timeout.and_then(|time| Instant::now().checked_add(time))
}

/// Until then.
pub async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// A bar, where one can be seen.
fn bar(context: &Context, subject: &str) -> Option<ProgressBar> {
    if !context.out.bars {
        return None;
    }
    let bar = ProgressBar::new(1000);
    // The template is fixed; one that cannot be read shows the default bar.
    if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} [{bar:30}] {elapsed}") {
        bar.set_style(style.progress_chars("=> "));
    }
    bar.set_message(subject.to_owned());
    Some(bar)
}

/// Asks the job where it is. One that cannot be asked any more is about to say that it has ended.
async fn move_on(bar: &ProgressBar, bus: &Bus, job: &Proxy<'_>, subject: &str) {
    let phase: String = bus.property(job, "Phase").await.unwrap_or_default();
    let progress: f64 = bus.property(job, "Progress").await.unwrap_or(-1.0);
    let eta: u64 = bus.property(job, "EtaUSec").await.unwrap_or(UNKNOWN);
    let eta = (eta != UNKNOWN).then(|| Duration::from_micros(eta));
    if progress >= 0.0 {
        bar.set_position((progress.clamp(0.0, 1.0) * 1000.0) as u64);
    }
    bar.set_message(line(subject, &phase, eta));
    bar.tick();
}

/// `small: loading, about 12s left`.
fn line(subject: &str, phase: &str, eta: Option<Duration>) -> String {
    let mut text = subject.to_owned();
    if !phase.is_empty() {
        text += &format!(": {phase}");
    }
    if let Some(eta) = eta {
        text += &format!(", about {} left", super::output::span(eta));
    }
    text
}

/// Why a job did not do it.
async fn why(job: &Proxy<'_>, bus: &Bus, result: &str, subject: &str) -> Failure {
    let error: (String, String) = bus.property(job, "Error").await.unwrap_or_default();
    if error.0.is_empty() {
        return Failure::new(Exit::Failed, format!("{subject}: {result}"));
    }
    let mut failure = bus::named(&error.0, &error.1, bus.user);
    if error.0 == bus::LOAD_FAILED
        && let Some(words) = last_words_of(bus, subject).await
    {
        failure.message += &format!("; its last words: {words}");
    }
    failure
}

/// What a model that is to be loaded waits for.
async fn waits_for(bus: &Bus, model: &str) -> Option<String> {
    let (_, document) = bus.status().await.ok()?;
    document.model(model)?.waiting_for.clone()
}

/// What the engine of a model that failed wrote last, for who may read that.
async fn last_words_of(bus: &Bus, model: &str) -> Option<String> {
    let (_, document) = bus.status().await.ok()?;
    let Named::Here(model) = document.named(model)? else { return None };
    last_words(&model.error.as_ref()?.log_tail).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_bar_says() {
        assert_eq!(line("m", "", None), "m");
        assert_eq!(
            line("m", "loading", Some(Duration::from_secs(12))),
            "m: loading, about 12s left"
        );
    }
}
