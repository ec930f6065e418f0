//! What the bus shows, for those who are not on it.
//!
//! Purpose: the same documents and deeds for the console's pages. Owner: none. Invariants: whoever calls has asked who it is for; what is
//! shown here is made by the functions that make it for the bus.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use tokio::sync::watch;

use super::error::{Code, Error};
use super::{Context, document};
use crate::types::{ExternalStatus, ModelName, Status, Wish};

impl Context {
    /// The latest picture.
    #[must_use]
    pub fn status(&self) -> Arc<Status> {
        self.handle.status()
    }

    /// Models that run elsewhere.
    #[must_use]
    pub fn externals(&self) -> Vec<ExternalStatus> {
        self.host.externals()
    }

    /// For those who wait for changes of the status.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Arc<Status>> {
        self.handle.watch()
    }

    /// What `GetStatus` returns to who may not read logs.
    #[must_use]
    pub fn status_json(&self) -> String {
        document::json(self, false)
    }

    /// What is said of the daemon itself there.
    #[must_use]
    pub fn about(&self) -> serde_json::Map<String, serde_json::Value> {
        document::about(self)
    }

    /// The jobs that are said there, as a JSON list.
    #[must_use]
    pub fn jobs_json(&self) -> String {
        document::jobs_json(self)
    }

    /// A configured model, by its name or an alias.
    ///
    /// # Errors
    /// [`Code::UnknownModel`]; [`Code::Conflict`] for one that runs elsewhere.
    pub fn name(&self, name: &str) -> Result<ModelName, Error> {
        Ok(self.model(name)?.name)
    }

    /// What `Plan` without options returns: what a load would do now, as JSON.
    ///
    /// # Errors
    /// As `Plan`.
    pub async fn plan_json(&self, name: &str) -> Result<String, Error> {
        let model = self.name(name)?;
        let preview = self.handle.preview(&model, Wish::default()).await?;
        Ok(serde_json::to_string(&preview).unwrap_or_default())
    }

    /// Pins a model, which loads it, or unpins it, which lets it go when it is idle. Does not wait for either.
    ///
    /// # Errors
    /// As the supervisor refuses.
    pub async fn pin(&self, model: &ModelName, pinned: bool) -> Result<(), Error> {
        Ok(self.handle.pin(model, pinned).await?)
    }

    /// The read end of a pipe with the last lines of a model's container, and with `follow` what it writes until it ends.
    ///
    /// # Errors
    /// As [`Context::name`]; [`Code::NoLog`] where it has no container.
    pub async fn open_log(
        &self,
        name: &str,
        lines: Option<usize>,
        follow: bool,
    ) -> Result<OwnedFd, Error> {
        let model = self.model(name)?;
        let Some(instance) = model.instance else {
            let message = format!("model {} has no container now, so there is no log", model.name);
            return Err(Error::new(Code::NoLog, message));
        };
        let opened = self.host.open_log(instance, lines, follow).await;
        opened.map_err(|why| Error::new(Code::NoLog, why))
    }
}
