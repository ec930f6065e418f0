//! `org.hostler1.Job`: one operation and where it is.

use std::sync::Arc;

use zbus::Connection;
use zbus::interface;
use zbus::message::Header;

use super::Context;
use super::error::{Code, Error};

/// The object of one job.
#[derive(Debug)]
pub struct Job {
    context: Arc<Context>,
    id: u32,
}

impl Job {
    pub(super) fn new(context: Arc<Context>, id: u32) -> Self {
        Self { context, id }
    }
}

#[interface(name = "org.hostler1.Job")]
impl Job {
    /// Gives the operation up. A load that nobody else waits for ends with it; a stop that has begun goes on. Needs the same
    /// authorization as what began the job.
    async fn cancel(
        &self,
        #[zbus(header)] call: Header<'_>,
        #[zbus(connection)] bus: &Connection,
    ) -> Result<(), Error> {
        let job = self.context.jobs.get(self.id).ok_or_else(|| gone(self.id))?;
        self.context.gate.check(bus, &call, job.kind.action()).await?;
        self.context.jobs.cancel(self.id)
    }

    /// Its number, the last part of its path.
    #[zbus(property(emits_changed_signal = "const"))]
    fn id(&self) -> u32 {
        self.id
    }

    /// What it does: "load", "unload", "unload-all", "measure", "sleep" or "wake".
    #[zbus(property(emits_changed_signal = "const"))]
    fn kind(&self) -> String {
        self.job().map_or_else(String::new, |job| job.kind.as_str().to_owned())
    }

    /// The model's name; empty for "unload-all".
    #[zbus(property(emits_changed_signal = "const"))]
    fn model(&self) -> String {
        self.job().map_or_else(String::new, |job| job.model_text())
    }

    /// "running", "done", "failed" or "cancelled".
    #[zbus(property)]
    fn state(&self) -> String {
        self.job().map_or("cancelled", |job| job.state.as_str()).to_owned()
    }

    /// Where the model is while the job runs: its phase. The model's own Phase says when it changes.
    #[zbus(property(emits_changed_signal = "false"))]
    fn phase(&self) -> String {
        let job = self.job().filter(|job| job.is_running());
        job.and_then(|job| self.context.phase(&job)).unwrap_or_default()
    }

    /// From 0 to 1, by what earlier loads of the model took; -1: not known.
    #[zbus(property(emits_changed_signal = "false"))]
    fn progress(&self) -> f64 {
        self.job().map_or(-1.0, |job| self.context.job_progress(&job).0)
    }

    /// Microseconds until it is done, by what earlier loads of the model took; 2^64 − 1: not known.
    #[zbus(property(emits_changed_signal = "false"), name = "EtaUSec")]
    fn eta_usec(&self) -> u64 {
        self.job().map_or(super::UNKNOWN, |job| self.context.job_progress(&job).1)
    }

    /// When it was begun, in microseconds since 1970.
    #[zbus(property(emits_changed_signal = "const"))]
    fn began_timestamp(&self) -> u64 {
        self.context.timestamp(self.job().map(|job| job.began))
    }

    /// Why it failed: the D-Bus error's name, and a text for people; both empty while there is none.
    #[zbus(property)]
    fn error(&self) -> (String, String) {
        let error = self.job().and_then(|job| job.error().cloned());
        error.map_or_else(Default::default, |e| (e.code.name().to_owned(), e.message))
    }
}

impl Job {
    fn job(&self) -> Option<super::jobs::Record> {
        self.context.jobs.get(self.id)
    }
}

fn gone(id: u32) -> Error {
    Error::new(Code::UnknownJob, format!("job {id} is over and forgotten"))
}
