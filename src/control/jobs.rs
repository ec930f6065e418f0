//! Operations that take long: their records, their ends.
//!
//! Purpose: a call returns the path of a job at once, for bus clients wait 25 s; the job's own task waits for the supervisor. Owner
//! of: all records, also for a while after their end, so that whoever waits can read why. Invariants: a record is there before its
//! path is returned; it ends once; of the ended ones those that ended first are forgotten beyond [`KEPT`]; a job outlives the bus, not
//! the daemon; its work waits for no bus.

use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use zbus::Connection;

use super::error::{Code, Error};
use super::job::Job;
use super::manager::{Manager, ManagerSignals};
use super::polkit::Action;
use super::{Context, UNKNOWN, path, us};
use crate::types::{ModelName, Moment};

/// Ended jobs that can still be looked at.
pub const KEPT: usize = 64;
/// Jobs that may run at one time, of those that take room and of those that give it; beyond it a call is refused, lest a caller in a
/// loop fill the daemon's memory.
pub const RUNNING_MAX: usize = 1024;
/// Of these, jobs of one kind for one model: who asks again and again for what finds no room leaves room for the others to ask.
pub const ALIKE_MAX: usize = 64;

/// How long the bus may take to show a new job.
const SHOW_TIME: Duration = Duration::from_secs(2);

/// What a job does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Makes a model ready.
    Load,
    /// Makes it leave.
    Unload,
    /// Makes all leave.
    UnloadAll,
    /// Finds out what it needs.
    Measure,
    /// Puts it to sleep.
    Sleep,
    /// Wakes it.
    Wake,
}

impl Kind {
    /// The word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Load => "load",
            Self::Unload => "unload",
            Self::UnloadAll => "unload-all",
            Self::Measure => "measure",
            Self::Sleep => "sleep",
            Self::Wake => "wake",
        }
    }

    /// Whether it makes room, which whatever waits for room must not keep from being asked for.
    const fn makes_room(self) -> bool {
        match self {
            Self::Unload | Self::UnloadAll | Self::Sleep => true,
            Self::Load | Self::Measure | Self::Wake => false,
        }
    }

    /// What whoever begins or cancels it must be allowed.
    #[must_use]
    pub const fn action(self) -> Action {
        match self {
            Self::Load | Self::Measure | Self::Wake => Action::LoadModel,
            Self::Unload | Self::UnloadAll | Self::Sleep => Action::UnloadModel,
        }
    }
}

/// Where a job is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Under way.
    Running,
    /// It came to what it was for.
    Done,
    /// It did not.
    Failed(Error),
    /// It was given up.
    Cancelled,
}

impl State {
    /// The word for it.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Done => "done",
            Self::Failed(_) => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

/// One job.
#[derive(Clone, Debug)]
pub struct Record {
    /// The last part of its path.
    pub id: u32,
    /// What it does.
    pub kind: Kind,
    /// To which; `None`: to all.
    pub model: Option<ModelName>,
    /// Where it is.
    pub state: State,
    /// Since when.
    pub began: Moment,
    cancel: CancellationToken,
}

impl Record {
    pub(super) fn is_running(&self) -> bool {
        self.state == State::Running
    }

    pub(super) fn model_text(&self) -> String {
        self.model.as_ref().map_or_else(String::new, ToString::to_string)
    }

    pub(super) fn error(&self) -> Option<&Error> {
        match &self.state {
            State::Failed(error) => Some(error),
            State::Running | State::Done | State::Cancelled => None,
        }
    }
}

#[derive(Debug, Default)]
struct Table {
    last: u32,
    records: BTreeMap<u32, Record>,
    /// Those that are over, in the order of their ends: one that took long is news however many began after it.
    ended: VecDeque<u32>,
    /// Where to say what happens to jobs, while there is a bus.
    bus: Option<Connection>,
}

/// All jobs.
#[derive(Debug, Default)]
pub struct Jobs(Mutex<Table>);

impl Jobs {
    fn table(&self) -> std::sync::MutexGuard<'_, Table> {
        // No step of a change to the table can panic half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One job, as it is now.
    #[must_use]
    pub fn get(&self, id: u32) -> Option<Record> {
        self.table().records.get(&id).cloned()
    }

    /// All, oldest first.
    #[must_use]
    pub fn all(&self) -> Vec<Record> {
        self.table().records.values().cloned().collect()
    }

    pub(super) fn cancel(&self, id: u32) -> Result<(), Error> {
        let table = self.table();
        let unknown = || Error::new(Code::UnknownJob, format!("job {id} is over and forgotten"));
        let record = table.records.get(&id).ok_or_else(unknown)?;
        if !record.is_running() {
            let message = format!("job {id} is {} already", record.state.as_str());
            return Err(Error::new(Code::Conflict, message));
        }
        record.cancel.cancel();
        Ok(())
    }

    pub(super) fn set_bus(&self, bus: Option<Connection>) {
        self.table().bus = bus;
    }

    fn bus(&self) -> Option<Connection> {
        self.table().bus.clone()
    }

    fn add(&self, kind: Kind, model: Option<ModelName>, began: Moment) -> Result<Record, Error> {
        let mut table = self.table();
        let running = || table.records.values().filter(|r| r.is_running());
        if running().filter(|r| r.kind == kind && r.model == model).count() >= ALIKE_MAX {
            let named = |name| (kind.as_str(), ModelName::as_str(name));
            let (what, whom) = model.as_ref().map_or(("unload", "all models"), named);
            let message = format!("{ALIKE_MAX} jobs are running already that {what} {whom}");
            return Err(Error::new(Code::QueueFull, message));
        }
        let makes_room = kind.makes_room();
        if running().filter(|r| r.kind.makes_room() == makes_room).count() >= RUNNING_MAX {
            let message = format!("{RUNNING_MAX} jobs are running already");
            return Err(Error::new(Code::QueueFull, message));
        }
        table.last = table.last.wrapping_add(1).max(1);
        let cancel = CancellationToken::new();
        let record = Record { id: table.last, kind, model, state: State::Running, began, cancel };
        table.records.insert(record.id, record.clone());
        Ok(record)
    }

    /// Ends a job; those that are forgotten for it.
    fn end(&self, id: u32, state: State) -> Vec<u32> {
        let mut table = self.table();
        if let Some(record) = table.records.get_mut(&id) {
            record.state = state;
            table.ended.push_back(id);
        }
        let excess = table.ended.len().saturating_sub(KEPT);
        let forgotten: Vec<u32> = table.ended.drain(..excess).collect();
        for id in &forgotten {
            table.records.remove(id);
        }
        forgotten
    }
}

impl Context {
    /// Begins a job: its task runs when this returns its number, and its object is there unless the bus hangs.
    pub(super) async fn begin<F>(
        self: &Arc<Self>,
        kind: Kind,
        model: Option<ModelName>,
        work: impl FnOnce(u32) -> F,
    ) -> Result<u32, Error>
    where
        F: Future<Output = Result<(), Error>> + Send + 'static,
    {
        let record = self.jobs.add(kind, model, self.handle.now())?;
        let id = record.id;
        let (work, context, job) = (work(id), self.clone(), record.clone());
        let (shown, seen) = oneshot::channel::<()>();
        tokio::spawn(async move {
            let cancelled = job.cancel.clone();
            // First the work: what is done is done, also if it was cancelled in the same moment.
            let state = tokio::select! {
                biased;
                result = work => result.map_or_else(State::Failed, |()| State::Done),
                () = cancelled.cancelled() => State::Cancelled,
            };
            // Nobody is told of an end before the beginning. An error is the end of `begin`, however it ended.
            let _ = seen.await;
            context.finish(job, state).await;
        });
        if let Some(bus) = self.jobs.bus() {
            // A bus that hangs or is going takes no job with it: whoever asked may have come by HTTP.
            let show = tokio::time::timeout(SHOW_TIME, self.show(&bus, &record)).await;
            let why = match show {
                Ok(Ok(())) => None,
                Ok(Err(err)) => Some(err.to_string()),
                Err(_) => Some(format!("it could not be put there within {SHOW_TIME:?}")),
            };
            if let Some(why) = why {
                tracing::warn!(job = id, "job {id} is not to be seen on the bus: {why}");
            }
        }
        drop(shown);
        Ok(id)
    }

    async fn show(self: &Arc<Self>, bus: &Connection, record: &Record) -> zbus::Result<()> {
        let object = path::job(record.id);
        bus.object_server().at(&object, Job::new(self.clone(), record.id)).await?;
        let manager = bus.object_server().interface::<_, Manager>(path::ROOT).await?;
        manager.job_new(&object, record.kind.as_str(), &record.model_text()).await
    }

    async fn finish(&self, record: Record, state: State) {
        let (model, word) = (record.model_text(), state.as_str());
        let kind = record.kind.as_str();
        match &state {
            State::Failed(error) => {
                tracing::warn!(kind = "job", %model, job = record.id, "job {} ({kind} {model}) failed: {error}", record.id);
            }
            State::Running | State::Done | State::Cancelled => {
                tracing::info!(kind = "job", %model, job = record.id, "job {} ({kind} {model}) is {word}", record.id);
            }
        }
        let forgotten = self.jobs.end(record.id, state);
        let Some(bus) = self.jobs.bus() else { return };
        // A bus that goes away in between takes its listeners with it.
        if let Err(err) = self.announce(&bus, &record, &model, word, forgotten).await {
            tracing::debug!(%err, "the end of job {} could not be announced, ignoring", record.id);
        }
    }

    async fn announce(
        &self,
        bus: &Connection,
        record: &Record,
        model: &str,
        word: &str,
        forgotten: Vec<u32>,
    ) -> zbus::Result<()> {
        // First, whatever else goes wrong. One that was begun while there was no bus is not there.
        for id in forgotten {
            let _ = bus.object_server().remove::<Job, _>(path::job(id)).await;
        }
        let object = path::job(record.id);
        // Nor need this one be there any more: many may have ended since. Whoever waits for its end is told all the same.
        if let Ok(job) = bus.object_server().interface::<_, Job>(&object).await {
            job.get().await.state_changed(job.signal_emitter()).await?;
            if word == "failed" {
                job.get().await.error_changed(job.signal_emitter()).await?;
            }
        }
        let manager = bus.object_server().interface::<_, Manager>(path::ROOT).await?;
        manager.job_removed(&object, record.kind.as_str(), model, word).await
    }

    /// The phase of a job's model.
    pub(super) fn phase(&self, job: &Record) -> Option<String> {
        let model = self.model(job.model.as_ref()?.as_str()).ok()?;
        Some(model.phase.as_str().to_owned())
    }

    /// Progress from 0 to 1 (-1: unknown) and microseconds to go of a job.
    pub(super) fn job_progress(&self, job: &Record) -> (f64, u64) {
        match (&job.state, &job.model) {
            (State::Done, _) => (1.0, 0),
            (State::Running, Some(model)) => {
                self.model(model.as_str()).map_or((-1.0, UNKNOWN), |m| self.progress(&m))
            }
            (State::Running | State::Failed(_) | State::Cancelled, _) => (-1.0, UNKNOWN),
        }
    }

    /// The same of a model's load or wake.
    pub(super) fn progress(&self, model: &crate::types::ModelStatus) -> (f64, u64) {
        let Some(load) = &model.progress else { return (-1.0, UNKNOWN) };
        if let Some(pulled) = load.pulled {
            // The load is still to come; how long the rest takes, nobody knows.
            let part = pulled.done.0 as f64 / pulled.total.0.max(1) as f64;
            return (part.min(0.99), UNKNOWN);
        }
        let Some(expected) = load.expected else { return (-1.0, UNKNOWN) };
        let took = self.handle.now().since(load.since);
        let left = expected.saturating_sub(took);
        // It is not over before it is.
        let part = (took.as_secs_f64() / expected.as_secs_f64().max(1e-6)).min(0.99);
        (part, us(left))
    }
}

#[cfg(test)]
mod tests;
