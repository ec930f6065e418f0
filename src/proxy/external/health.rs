//! Whether models that somebody else runs live.
//!
//! ```text
//!             ┌──────────────────── an answer ──────────────────────┐
//!             ▼                                                      │
//!  unknown ─▶ well ── so many questions in a row without an answer ──▶ unwell
//!     └───────────────────────────────────────────────────────────────▲
//! ```
//! Purpose: ask each of them, again and again, and know what that means. Owner: the server runs [`watch`] as one task, which alone writes
//! [`Healths`]; the status, the bus and metrics read it. Invariants: what is known is known of an endpoint, not of a name: a reload with
//! another address, path or key begins with nothing, and is asked at once; one that is busy is not called dead: not for less than
//! [`MISSES`] questions, nor while it answers requests, nor within [`PATIENCE`] for its silence while requests are under way; nobody waits
//! for the slowest.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use hyper::StatusCode;
use tokio_util::sync::CancellationToken;

use super::super::error::ApiError;
use super::super::rules::{Rules, SharedRules};
use super::External;
use crate::types::{ExternalHealth, ExternalStatus, ModelName, Moment};

/// Between two questions whether it lives.
const PERIOD: Duration = Duration::from_secs(5);
/// After one that was missed, until that means something.
const AGAIN: Duration = Duration::from_secs(1);
/// So many in a row mean something, as with engines of our own.
const MISSES: u32 = 3;
/// For the answer.
const ANSWER: Duration = Duration::from_secs(5);

/// How long one that answers one thing at a time, or by few threads, may be silent for those that it works on: as long as a whole answer
/// may take.
const PATIENCE: Duration = Duration::from_secs(600);

/// What is known of one's health.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Health {
    Well,
    Ill(String),
}

/// What came of a question.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Answer {
    Well,
    /// It cannot be reached, or answers as nobody does who is well.
    Ill(String),
    /// Nothing in time.
    Silent(String),
}

/// What is heard of an endpoint by those who ask it for more than its health.
#[derive(Debug, Default)]
struct Heard {
    /// A number that grows when it says something to a client.
    said: AtomicU64,
    /// Requests under way to it.
    under_way: AtomicUsize,
}

impl Heard {
    fn says(&self) {
        // Only whether it grows matters, so that one of two at once may be lost.
        self.said.store(self.said().wrapping_add(1), Ordering::Relaxed);
    }

    fn said(&self) -> u64 {
        self.said.load(Ordering::Relaxed)
    }
}

/// A request's share in that, for as long as it is under way.
#[derive(Debug)]
struct Voice(Arc<Heard>);

impl Voice {
    fn of(heard: &Arc<Heard>) -> Self {
        heard.under_way.fetch_add(1, Ordering::Relaxed);
        Self(heard.clone())
    }
}

impl Drop for Voice {
    fn drop(&mut self) {
        self.0.under_way.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What is known of one.
#[derive(Clone, Debug)]
struct Known {
    of: Arc<External>,
    /// With when it was first found so, in a row; `None`: that is not known yet.
    health: Option<(Health, Moment)>,
    /// Questions in a row without an answer.
    missed: u32,
    /// Since when it is silent, in a row.
    silent_since: Option<Moment>,
    heard: Arc<Heard>,
    /// What it had said when it was asked last.
    said: u64,
}

impl Known {
    fn nothing(of: Arc<External>) -> Self {
        Self { of, health: None, missed: 0, silent_since: None, heard: Arc::default(), said: 0 }
    }

    fn is_of(&self, external: &Arc<External>) -> bool {
        Arc::ptr_eq(&self.of, external) || self.of == *external
    }

    fn health(&self) -> Option<&Health> {
        self.health.as_ref().map(|(health, _)| health)
    }

    /// A question is over. Until the next.
    fn asked(&mut self, name: &ModelName, answer: Answer, now: Moment) -> Duration {
        let said = self.heard.said();
        let answers = said != self.said;
        self.said = said;
        let why = match answer {
            Answer::Silent(why) if !answers => {
                let since = *self.silent_since.get_or_insert(now);
                let at_work = self.heard.under_way.load(Ordering::Relaxed) > 0;
                if at_work && now.since(since) < PATIENCE {
                    return PERIOD;
                }
                why
            }
            Answer::Ill(why) if !answers => {
                self.silent_since = None;
                why
            }
            // What it answers its clients counts as well.
            Answer::Well | Answer::Ill(_) | Answer::Silent(_) => {
                (self.missed, self.silent_since) = (0, None);
                self.found(name, Health::Well, now);
                return PERIOD;
            }
        };
        self.missed = self.missed.saturating_add(1);
        let known = matches!(self.health(), Some(Health::Ill(_)));
        if self.missed < MISSES && !known {
            return AGAIN;
        }
        self.found(name, Health::Ill(why), now);
        PERIOD
    }

    fn found(&mut self, name: &ModelName, health: Health, now: Moment) {
        let since = match (&self.health, &health) {
            (Some((Health::Well, since)), Health::Well)
            | (Some((Health::Ill(_), since)), Health::Ill(_)) => *since,
            (_, Health::Well) => {
                tracing::info!(model = %name, "{name}: the external endpoint is well");
                now
            }
            (_, Health::Ill(why)) => {
                tracing::warn!(model = %name, "{name}: the external endpoint is not well, retrying: {why}");
                now
            }
        };
        self.health = Some((health, since));
    }
}

/// What is known of them all.
#[derive(Debug, Default)]
pub struct Healths(ArcSwap<BTreeMap<ModelName, Known>>);

impl Healths {
    /// All that the rules name, in the order of their names.
    #[must_use]
    pub fn status(&self, rules: &Rules) -> Vec<ExternalStatus> {
        let all = self.0.load();
        let row = |(name, external): (&ModelName, &Arc<External>)| {
            let known = all.get(name).filter(|known| known.is_of(external));
            let found = known.and_then(|known| known.health.as_ref());
            let (health, why) = match found.map(|(health, _)| health) {
                None => (ExternalHealth::Unknown, None),
                Some(Health::Well) => (ExternalHealth::Well, None),
                Some(Health::Ill(why)) => (ExternalHealth::Unwell, Some(why.clone())),
            };
            let aliases = rules.aliases.iter().filter(|(_, of)| *of == name);
            ExternalStatus {
                name: name.clone(),
                aliases: aliases.map(|(alias, _)| alias.clone()).collect(),
                url: external.origin.to_string(),
                health,
                why,
                since: found.map(|(_, since)| *since),
            }
        };
        rules.externals.iter().map(row).collect()
    }

    /// Holds to new rules. Those of whom nothing is known.
    fn follow(&self, rules: &Rules) -> Vec<(ModelName, Arc<External>)> {
        let before = self.0.load_full();
        let mut news = Vec::new();
        let all = rules.externals.iter().map(|(name, external)| {
            let known = before.get(name).filter(|known| known.is_of(external)).cloned();
            let known = known.unwrap_or_else(|| {
                news.push((name.clone(), external.clone()));
                Known::nothing(external.clone())
            });
            (name.clone(), known)
        });
        let all = all.collect();
        self.0.store(Arc::new(all));
        news
    }

    /// A question is over. Until the next; `None`: there is none, for another endpoint has its name by now, or none.
    fn asked(&self, question: &Question, answer: Answer, now: Moment) -> Option<Duration> {
        let mut all = (*self.0.load_full()).clone();
        let known = all.get_mut(&question.name);
        let known = known.filter(|known| Arc::ptr_eq(&known.of, &question.of))?;
        let next = known.asked(&question.name, answer, now);
        self.0.store(Arc::new(all));
        Some(next)
    }
}

/// The right to ask one.
#[derive(Debug)]
pub(in crate::proxy) struct Far {
    pub external: Arc<External>,
    voice: Option<Voice>,
}

impl Far {
    /// It answers.
    pub fn heard(&self) {
        if let Some(voice) = &self.voice {
            voice.0.says();
        }
    }

    /// It refuses: what is still to come of that is no sign that it is well, or at work.
    pub fn refuses(&mut self) {
        self.voice = None;
    }
}

/// The right to ask a model.
///
/// # Errors
/// 503 where it is known to be dead.
pub(in crate::proxy) fn grant(
    healths: &Healths,
    model: &ModelName,
    external: &Arc<External>,
) -> Result<Far, ApiError> {
    let all = healths.0.load();
    let known = all.get(model).filter(|known| known.is_of(external));
    if let Some(Health::Ill(why)) = known.and_then(Known::health) {
        let message = format!("model {model} is run elsewhere, and not well: {why}");
        let error = ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "external_unwell", message);
        return Err(error.retry_after(PERIOD));
    }
    Ok(Far { external: external.clone(), voice: known.map(|known| Voice::of(&known.heard)) })
}

/// Whether one lives.
struct Question {
    name: ModelName,
    of: Arc<External>,
}

impl Question {
    async fn ask(self, after: Duration) -> (Self, Answer) {
        tokio::time::sleep(after).await;
        let path = &self.of.health;
        let answer = match tokio::time::timeout(ANSWER, self.of.ask()).await {
            Ok(Ok(status)) if status.is_success() => Answer::Well,
            Ok(Ok(status)) => Answer::Ill(format!("{path} is answered with status {status}")),
            Ok(Err(why)) => Answer::Ill(why),
            Err(_) => Answer::Silent(format!("{path} is not answered within {ANSWER:?}")),
        };
        (self, answer)
    }
}

/// Asks all that the rules name, again and again. `now`: the clock of the status.
pub(in crate::proxy) async fn watch(
    rules: SharedRules,
    healths: Arc<Healths>,
    now: impl Fn() -> Moment,
    end: CancellationToken,
) {
    let mut questions = FuturesUnordered::new();
    let mut replaced = rules.replaced();
    replaced.mark_changed();
    loop {
        tokio::select! {
            () = end.cancelled() => return,
            Ok(()) = replaced.changed() => {
                for (name, of) in healths.follow(&rules.load()) {
                    questions.push(Question { name, of }.ask(Duration::ZERO));
                }
            }
            Some((question, answer)) = questions.next() => {
                if let Some(after) = healths.asked(&question, answer, now()) {
                    questions.push(question.ask(after));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
