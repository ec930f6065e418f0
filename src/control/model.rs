//! `org.hostler1.Model`: one configured model.

use std::sync::Arc;

use zbus::message::Header;
use zbus::{Connection, Fd, OwnedObjectPath, interface};

use super::deed::Deed;
use super::error::{Code, Error};
use super::options::{self, LogOptions, Options};
use super::polkit::Action;
use super::{Context, UNKNOWN, bytes, us};
use crate::types::{ModelName, ModelStatus};

/// The object of one model.
#[derive(Debug)]
pub struct Model {
    context: Arc<Context>,
    name: ModelName,
}

impl Model {
    pub(super) fn new(context: Arc<Context>, name: ModelName) -> Self {
        Self { context, name }
    }

    /// As it is now; the object outlives its model by a moment when the configuration drops it.
    fn now(&self) -> Result<ModelStatus, Error> {
        self.context.model(self.name.as_str())
    }

    async fn log(
        &self,
        call: Header<'_>,
        bus: &Connection,
        how: LogOptions,
    ) -> Result<Fd<'static>, Error> {
        self.context.gate.check(bus, &call, Action::ReadLogs).await?;
        let opened = self.context.open_log(self.name.as_str(), how.lines, how.follow).await;
        opened.map(Fd::from)
    }
}

#[interface(name = "org.hostler1.Model")]
impl Model {
    /// Loads it, or wakes it. Returns a job, which is done when the model answers. Options: "pin" b, "evict" s (none, idle or any),
    /// "gpus" as; see the manager's Load.
    async fn load(
        &self,
        options: Options,
        #[zbus(header)] call: Header<'_>,
        #[zbus(connection)] bus: &Connection,
    ) -> Result<OwnedObjectPath, Error> {
        self.context.load(bus, &call, self.name.as_str(), &options).await
    }

    /// Unpins and unloads it: "drain" lets running requests finish, "now" breaks them off. Returns a job, which is done when nothing of
    /// it is left.
    async fn unload(
        &self,
        mode: String,
        #[zbus(header)] call: Header<'_>,
        #[zbus(connection)] bus: &Connection,
    ) -> Result<OwnedObjectPath, Error> {
        self.context.unload(bus, &call, self.name.as_str(), &mode).await
    }

    /// Puts it to sleep: its memory is given back and its container kept. Only one that is idle, and may sleep by its configuration.
    async fn sleep(
        &self,
        #[zbus(header)] call: Header<'_>,
        #[zbus(connection)] bus: &Connection,
    ) -> Result<OwnedObjectPath, Error> {
        self.context.checked(bus, &call, Deed::Sleep(self.name.clone())).await
    }

    /// Wakes it. Only one that sleeps.
    async fn wake(
        &self,
        #[zbus(header)] call: Header<'_>,
        #[zbus(connection)] bus: &Connection,
    ) -> Result<OwnedObjectPath, Error> {
        self.context.checked(bus, &call, Deed::Wake(self.name.clone())).await
    }

    /// Never evicts it nor idles it out from now on, and loads it as soon as there is room; "Pinned" says how long that lasts. Does not
    /// wait for the load. Like every method, and unlike "Pinned", it asks for a password where one is needed and the caller allows that.
    async fn pin(
        &self,
        #[zbus(header)] call: Header<'_>,
        #[zbus(connection)] bus: &Connection,
    ) -> Result<(), Error> {
        self.context.gate.check(bus, &call, Action::LoadModel).await?;
        Ok(self.context.handle.pin(&self.name, true).await?)
    }

    /// Lets it go when it is idle.
    async fn unpin(
        &self,
        #[zbus(header)] call: Header<'_>,
        #[zbus(connection)] bus: &Connection,
    ) -> Result<(), Error> {
        self.context.gate.check(bus, &call, Action::UnloadModel).await?;
        Ok(self.context.handle.pin(&self.name, false).await?)
    }

    /// What its container wrote, and what it writes until it ends: the read end of a pipe. A log has 64 MiB at most; when they are full it
    /// begins anew, without what was there.
    async fn open_log(
        &self,
        #[zbus(header)] call: Header<'_>,
        #[zbus(connection)] bus: &Connection,
    ) -> Result<Fd<'static>, Error> {
        self.log(call, bus, LogOptions { lines: None, follow: true }).await
    }

    /// The same by options: "lines" t, only the last so many; "follow" b, also what comes (without it the pipe ends after what there
    /// is).
    async fn open_log_with(
        &self,
        options: Options,
        #[zbus(header)] call: Header<'_>,
        #[zbus(connection)] bus: &Connection,
    ) -> Result<Fd<'static>, Error> {
        self.log(call, bus, options::log(&options)?).await
    }

    /// Its configured name.
    #[zbus(property(emits_changed_signal = "const"))]
    fn name(&self) -> String {
        self.name.to_string()
    }

    /// Other names it answers to.
    #[zbus(property)]
    fn aliases(&self) -> Result<Vec<String>, Error> {
        Ok(self.now()?.aliases.iter().map(ToString::to_string).collect())
    }

    /// The engine in its image: "llamacpp", "vllm", …
    #[zbus(property)]
    fn engine(&self) -> Result<String, Error> {
        Ok(self.now()?.engine.to_owned())
    }

    /// "stopped", "waiting", "pulling", "starting", "loading", "ready", "draining", "dozing", "asleep", "waking", "stopping" or
    /// "failed".
    #[zbus(property)]
    fn phase(&self) -> Result<String, Error> {
        Ok(self.now()?.phase.as_str().to_owned())
    }

    /// Its container's name; empty while it has none.
    #[zbus(property)]
    fn container(&self) -> Result<String, Error> {
        Ok(self.now()?.instance.map(|id| id.to_string()).unwrap_or_default())
    }

    /// podman's ID of that container; empty while it does not run.
    #[zbus(property, name = "ContainerID")]
    fn container_id(&self) -> Result<String, Error> {
        Ok(self.now()?.container.unwrap_or_default())
    }

    /// Devices that it is placed on; empty while it is not.
    #[zbus(property)]
    fn gpus(&self) -> Result<Vec<String>, Error> {
        Ok(self.now()?.gpus.iter().map(|gpu| gpu.as_str().to_owned()).collect())
    }

    /// Bytes that are promised to it on each device, while it sleeps when it wakes; 2^64 − 1 while it has no place.
    #[zbus(property, name = "VramPlanned")]
    fn vram_planned(&self) -> Result<u64, Error> {
        Ok(self.now()?.planned.map_or(UNKNOWN, |need| need.bytes.0))
    }

    /// Bytes that it was last seen to hold on all its devices together; 2^64 − 1: not known.
    #[zbus(property(emits_changed_signal = "invalidates"), name = "VramObserved")]
    fn vram_observed(&self) -> Result<u64, Error> {
        Ok(bytes(self.now()?.observed))
    }

    /// Bytes that it was measured to need on one device, the median of the samples; 2^64 − 1: not measured yet.
    #[zbus(property(emits_changed_signal = "invalidates"))]
    fn footprint(&self) -> Result<u64, Error> {
        Ok(self.now()?.footprint.map_or(UNKNOWN, |f| f.bytes.0))
    }

    /// How sure that is: "none", "low", "medium" or "high".
    #[zbus(property)]
    fn footprint_confidence(&self) -> Result<String, Error> {
        Ok(self.now()?.footprint.map_or("none", |f| f.confidence).to_owned())
    }

    /// Requests that it serves now.
    #[zbus(property(emits_changed_signal = "invalidates"))]
    fn active_requests(&self) -> Result<u32, Error> {
        Ok(self.now()?.in_flight)
    }

    /// Requests, and operators' loads, that wait for it now: for it to be ready, or for one of its turns (max_concurrent).
    #[zbus(property(emits_changed_signal = "invalidates"))]
    fn queued_requests(&self) -> Result<u32, Error> {
        Ok(self.now()?.queued)
    }

    /// When a request last began or ended, in microseconds since 1970; 0: never.
    #[zbus(property(emits_changed_signal = "invalidates"))]
    fn last_used_timestamp(&self) -> Result<u64, Error> {
        Ok(self.context.timestamp(self.now()?.last_used))
    }

    /// Unused for so many microseconds, it is unloaded or put to sleep; 2^64 − 1: never.
    #[zbus(property, name = "IdleTimeoutUSec")]
    fn idle_timeout_usec(&self) -> Result<u64, Error> {
        Ok(self.now()?.idle_timeout.map_or(UNKNOWN, us))
    }

    /// Never evicted, never idled out. Setting it is Pin or Unpin for whoever may without a password: nobody is asked for one, and polkit
    /// has a second to answer. A pin lasts, over restarts of the daemon, until the model is unloaded, the daemon is stopped with its
    /// models, or the host reboots; then "pin" in the configuration counts again.
    #[zbus(property)]
    fn pinned(&self) -> Result<bool, Error> {
        Ok(self.now()?.pinned)
    }

    #[zbus(property)]
    async fn set_pinned(
        &self,
        pinned: bool,
        #[zbus(header)] call: Option<Header<'_>>,
        #[zbus(connection)] bus: &Connection,
    ) -> Result<(), Error> {
        let call = call.ok_or_else(|| Error::new(Code::Internal, "a call without a header"))?;
        let action = if pinned { Action::LoadModel } else { Action::UnloadModel };
        // zbus keeps all objects locked for as long as a setter takes, and would dispatch no call of anybody behind a dialog.
        self.context.gate.check_briefly(bus, &call, action).await.map_err(|mut err| {
            err.message += "; the methods Pin and Unpin wait for polkit and may ask for a password";
            err
        })?;
        Ok(self.context.handle.pin(&self.name, pinned).await?)
    }

    /// Of its load or wake, from 0 to 1, by what earlier ones took; -1: none is under way, or that is not known.
    #[zbus(property(emits_changed_signal = "false"))]
    fn progress(&self) -> Result<f64, Error> {
        Ok(self.context.progress(&self.now()?).0)
    }

    /// Microseconds until it is ready, by what earlier loads took; 2^64 − 1: none is under way, or that is not known.
    #[zbus(property(emits_changed_signal = "false"), name = "EtaUSec")]
    fn eta_usec(&self) -> Result<u64, Error> {
        Ok(self.context.progress(&self.now()?).1)
    }

    /// What the last successful load took, in microseconds; 2^64 − 1: there was none.
    #[zbus(property, name = "LoadUSec")]
    fn load_usec(&self) -> Result<u64, Error> {
        Ok(self.now()?.load_ms.map_or(UNKNOWN, |ms| ms.saturating_mul(1000)))
    }

    /// The last failure, until a later load succeeds: its kind (such as "engine_exited"), and a text for people; both empty: none.
    #[zbus(property)]
    fn last_error(&self) -> Result<(String, String), Error> {
        let fault = self.now()?.error;
        Ok(fault.map_or_else(Default::default, |f| (f.code.as_str().to_owned(), f.message)))
    }

    /// Failures of starts and of running engines since the daemon's start.
    #[zbus(property)]
    fn restarts(&self) -> Result<u32, Error> {
        Ok(self.now()?.restarts)
    }

    /// Why it waits, in the planner's words; of one that serves and is configured otherwise now, what it waits for to start anew; empty
    /// while it does not.
    #[zbus(property)]
    fn waiting_for(&self) -> Result<String, Error> {
        Ok(self.now()?.waiting_for.unwrap_or_default())
    }

    /// The last plan that was made for it, as JSON, with the reasons for every device and every model in the way; empty: none was.
    #[zbus(property(emits_changed_signal = "invalidates"))]
    fn report(&self) -> Result<String, Error> {
        let report = self.now()?.report;
        Ok(report.map(|r| serde_json::to_string(&*r).unwrap_or_default()).unwrap_or_default())
    }

    /// How deep it sleeps: 1 or 2; 0: it does not.
    #[zbus(property)]
    fn sleep_level(&self) -> Result<u8, Error> {
        let level = self.now()?.sleep.and_then(|sleep| sleep.level);
        Ok(level.map_or(0, crate::types::SleepLevel::number))
    }
}
